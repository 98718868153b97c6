//! From the tables of the file to a [`Config`]: each table by the module of its subject, then what
//! only shows when they are seen together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use toml::Spanned;
use toml::de::DeTable;

use super::document::Document;
use super::error::Error;
use super::grants::{self, Grants};
use super::keys::{Absent, Form, Key, KeyTable, text, word};
use super::limits::Limits;
use super::list::{Files, Lists};
use super::listener::Given;
use super::pending::Places;
use super::section::Section;
use super::{
    Config, Filter, FilterMode, Log, LogFormat, LogLevel, admin, auth, dnsbl, filter, limits, list,
    listener, relay, route, saved_lists, tls,
};
use crate::lists::{Compiled, Read};
use crate::policy::domain::{self, Domains, Pattern, normal_form};
use crate::policy::{Policy, Terms};

/// The top of the file, and by it all of the tables.
pub(super) static KEYS: KeyTable = KeyTable {
    header: "",
    about: "At the top of the file, before the first table.",
    keys: &[
        Key::new(
            "hostname",
            text(
                "a domain in ASCII",
                Absent::Varies("the name of the machine"),
            ),
            "The name of the gate: in its greeting, in `Received` lines and toward next hops.",
        ),
        Key::new(
            "state_dir",
            text("a path", Absent::Is("/var/lib/portcullis")),
            "The directory for what outlives a restart: the lists in force and the grants. \
             The gate creates it if it is missing. Two gates on one machine need two directories.",
        )
        .see(&["user", "filter.pin_path"])
        .at_start(),
        Key::new(
            "workers",
            Form::Count {
                unit: "threads",
                default: Absent::Varies("one per core"),
                range: 1..=1_024,
            },
            "Threads that serve sessions, each with an io_uring of its own.",
        )
        .see(&["relay.connections"])
        .at_start(),
        admin::ADDRESS,
        admin::SOCKET,
        admin::USERS,
        admin::GROUPS,
        admin::TOKEN_FILE,
        Key::new(
            "user",
            text("the name of a user", Absent::Nothing),
            "The user that the gate becomes once it holds ports, rings and the filter. Without \
             this key the gate keeps the user that started it.",
        )
        .see(&["state_dir"])
        .at_start(),
        Key::new(
            "listener",
            Form::Tables(&listener::KEYS),
            "Where sessions come in.",
        )
        .at_start(),
        Key::new(
            "filter",
            Form::Table(&filter::KEYS),
            "The half in the kernel.",
        ),
        Key::new("grants", Form::Table(&grants::KEYS), "POP-before-SMTP.").at_start(),
        Key::new(
            "lists",
            Form::Table(&list::keys::LISTS),
            "What holds for all lists.",
        ),
        Key::new(
            "list",
            Form::Tables(&list::keys::LIST),
            "Lists of addresses.",
        ),
        Key::new("dnsbl", Form::Tables(&dnsbl::ZONE_KEYS), "DNS lists."),
        Key::new(
            "dnsbl_policy",
            Form::Table(&dnsbl::KEYS),
            "How DNS lists are asked.",
        ),
        Key::new(
            "relay",
            Form::Table(&relay::KEYS),
            "Who and what is local; next hops.",
        ),
        Key::new("route", Form::Tables(&route::KEYS), "Where mail goes."),
        Key::new("limits", Form::Table(&limits::KEYS), "What is bounded."),
        Key::new("tls", Form::Table(&tls::KEYS), "TLS of clients."),
        Key::new("auth", Form::Table(&auth::KEYS), "Who may authenticate."),
        Key::new("log", Form::Table(&LOG_KEYS), "What is written to the log."),
    ],
    later: &["spool"],
};

static LOG_KEYS: KeyTable = KeyTable {
    header: "[log]",
    about: "What is written to the log, which is the standard error.",
    keys: &[
        Key::new(
            "format",
            word(
                "text",
                &[("text", "for people"), ("json", "one JSON object a line")],
            ),
            "How a line is written.",
        )
        .at_start(),
        Key::new(
            "level",
            word(
                "info",
                &[
                    ("error", "what does not work"),
                    ("warn", "what may not work for long"),
                    ("info", "one line a session and one a transaction"),
                    ("debug", "what led to a decision"),
                    ("trace", "every command"),
                ],
            ),
            "How much is logged; each level includes those before it.",
        ),
    ],
    later: &[],
};

/// Reads all tables, and the files of the lists. Faults are noted in the document; with faults,
/// what comes back is not to be used. The policy has no lists yet.
pub(super) fn config<'d>(
    document: &Document<'d>,
    root: &Spanned<DeTable<'d>>,
    files: Files,
) -> (Config, Option<Read>, Places) {
    let mut top = Section::new(document, &KEYS, Some(root.get_ref()), 0..0);
    let hostname = read_hostname(&mut top);
    let state_dir = read_state_dir(&mut top);
    let workers = read_workers(&mut top);
    let admin = admin::read(&mut top);
    let user = top
        .text("user", |text| admin::account(text, "user"))
        .map(Spanned::into_inner);
    let listener_tables = top.tables("listener");
    let filter_table = top.table("filter");
    let grants_table = top.table("grants");
    let lists_table = top.table("lists");
    let list_tables = top.tables("list");
    let zone_tables = top.tables("dnsbl");
    let dnsbl_table = top.table("dnsbl_policy");
    let mut relay_table = top.table("relay");
    let route_tables = top.tables("route");
    let mut limits_table = top.table("limits");
    let tls_table = top.table("tls");
    let auth_table = top.table("auth");
    let mut log_table = top.table("log");
    check_purpose(&top);
    top.finish();

    let given = Given {
        auth: auth_table.is_given(),
        tls: tls_table.is_given(),
        client_authorities: tls_table.has("client_authorities"),
    };
    let listeners = listener::read(listener_tables, given);
    let filter_span = filter_table.span_of("interfaces");
    let mut filter = Filter::read(filter_table);
    let grants = Grants::read(grants_table);
    let (mut lists, list_files) = Lists::read(lists_table, list_tables);
    let last = saved_lists(&state_dir);
    let last = matches!(files, Files::ReadOrLast).then_some(&*last);
    let read = match files {
        Files::Read | Files::ReadOrLast => lists.read_and_tell(document, &list_files, last),
        Files::Leave => None,
    };
    let (zones, dnsbl) = dnsbl::read(zone_tables, dnsbl_table);
    let (local, relay) = relay::read(&mut relay_table);
    let relay_span = relay_table.span.clone();
    relay_table.finish();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|listener| listener.address).collect();
    let errors_before_routes = document.error_count();
    let (routes, route_index) =
        route::read(route_tables, &addresses, !matches!(files, Files::Leave));
    let limits = Limits::read(&mut limits_table);
    limits_table.finish();
    let tls = tls::read(tls_table, !matches!(files, Files::Leave));
    let auth_span = auth_table.span.clone();
    let auth = auth::read(auth_table, !matches!(files, Files::Leave));
    if auth.is_some() && !listeners.iter().any(|listener| listener.auth) {
        let message = "no listener offers AUTH (`auth = \"on\"`): the users of [auth] are not used";
        document.warn(&auth_span, message);
    }
    let log = read_log(&mut log_table);
    log_table.finish();

    if document.error_count() == errors_before_routes && !routes.is_empty() {
        check_routes(document, &relay_span, &local.domains, &route_index);
    }

    let own = addresses
        .iter()
        .map(SocketAddr::ip)
        .filter(|ip| !ip.is_unspecified())
        .map(|ip| ip.to_canonical());
    if let Some(filter) = &mut filter {
        filter.local_networks.clone_from(&local.networks);
    }
    let monitored = filter
        .as_ref()
        .is_some_and(|filter| filter.mode == FilterMode::Monitor);
    let policy = Policy::new(Terms {
        hostname: hostname.clone(),
        addresses: own.chain(local.addresses).collect(),
        networks: local.networks,
        domains: local.domains,
        lists: Compiled::default(),
        drop_lists_refuse: !monitored,
        dnsbl: zones,
    });
    let config = Config {
        path: None,
        hostname,
        state_dir,
        workers,
        admin,
        user,
        listeners,
        filter,
        grants,
        lists,
        policy: Arc::new(policy),
        routes,
        limits,
        dnsbl,
        relay,
        tls,
        auth,
        log,
        warnings: Vec::new(),
        in_force: Vec::new(),
        named_files: Vec::new(),
        route_index,
    };
    let places = Places::new(document, &filter_span, &relay_span);
    (config, read, places)
}

/// A gate that would do nothing, or take mail that has nowhere to go.
fn check_purpose(top: &Section<'_, '_>) {
    let document = top.document;
    if !top.has("listener") && !top.has("filter") {
        let message = "nothing to do: there is neither a [[listener]] nor a [filter]";
        document.error_elsewhere(Error::whole_file(document.path, message));
    }
    if top.has("listener") && !top.has("route") {
        let message = "there is a [[listener]] but no [[route]]: say where mail goes";
        document.error_elsewhere(Error::whole_file(document.path, message));
    }
}

/// The name of the machine, where the file gives none.
fn read_hostname(top: &mut Section<'_, '_>) -> String {
    let usable = |text: &str| {
        let name = normal_form(text).into_owned();
        if !name.is_ascii() {
            return Err(
                "the greeting is ASCII (RFC 5321 section 4.2): write the xn-- form".to_owned(),
            );
        }
        domain::check(&name).map(|()| name)
    };
    if let Some(name) = top.text("hostname", usable) {
        return name.into_inner();
    }
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = usable(machine.trim()).unwrap_or_else(|_| "localhost".to_owned());
    top.by_default("hostname", format_args!("\"{name}\""));
    name
}

fn read_state_dir(top: &mut Section<'_, '_>) -> PathBuf {
    let path = top.text("state_dir", |path| match path {
        "" => Err("empty".to_owned()),
        path => Ok(path.to_owned()),
    });
    let path = path.map(Spanned::into_inner).unwrap_or_default();
    top.document.resolve(&path)
}

/// More workers than cores is doubtful but works; a configuration is often looked at on another
/// machine.
fn read_workers(top: &mut Section<'_, '_>) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = top.count_or("workers", cores as u64);
    let workers = usize::try_from(workers).unwrap_or(cores);
    if workers > cores {
        let message = format!(
            "{workers} workers are more than this machine's {cores} cores: they will share them"
        );
        top.document.warn(&top.span_of("workers"), message);
    }
    workers
}

fn read_log(s: &mut Section<'_, '_>) -> Log {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let levels = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    Log {
        format: s.word("format", &formats).unwrap_or(LogFormat::Text),
        level: s.word("level", &levels).unwrap_or(LogLevel::Info),
    }
}

/// Mail that every client may send here needs a way on: else it would be accepted by the policy and
/// refused for want of a route.
fn check_routes(
    document: &Document<'_>,
    span: &std::ops::Range<usize>,
    domains: &[Pattern],
    index: &Domains,
) {
    let covered = |pattern: &&Pattern| match pattern {
        Pattern::Exact(domain) => index.lookup(domain).is_some(),
        // A name that no route can have by itself.
        Pattern::Beneath(domain) => index.lookup(&format!("*.{domain}")).is_some(),
        Pattern::Any => true,
    };
    let stranded: Vec<_> = domains.iter().filter(|pattern| !covered(pattern)).collect();
    for pattern in stranded.iter().take(10) {
        document.error_with(
            span,
            format!("no [[route]] covers the local domain {pattern}"),
            "add it to the `domains` of a [[route]], or a [[route]] for \"*\"",
        );
    }
    if stranded.len() > 10 {
        document.error(
            span,
            format!("{} local domains in all have no route", stranded.len()),
        );
    }
}
