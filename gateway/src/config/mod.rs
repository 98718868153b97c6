//! The configuration: TOML in, one compiled and immutable [`Config`] out, or every fault at once
//! with its line.
//!
//! Parsed, not validated: what comes out has only values that make sense (networks without host
//! bits, ports that are not 0, routes for all local domains), so that nothing behind it has to
//! check again. A key that is not known is an error, and so is one that is described but not built
//! yet: a gate that passes over `[spool]` in silence is worse than one that does not start.

mod admin;
mod auth;
mod compile;
mod demands;
mod dnsbl;
mod document;
mod error;
mod filter;
mod fronts;
mod grants;
mod kernel;
mod keys;
mod limits;
mod list;
mod listener;
mod pending;
pub mod reference;
mod relay;
mod route;
mod section;
#[cfg(test)]
mod tests;
mod tls;
mod typed;
mod value;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use admin::{ADMIN_SOCKET, Admin};
pub use auth::{Auth, BackEnd};
pub use dnsbl::DnsblPolicy;
pub use document::{Setting, Table};
pub use error::{Error, Errors, Position};
pub use filter::{
    CustomerRefusal, Filter, FilterMode, Interface, PIN_PATH, Role, Unlisted, XdpMode,
};
pub use grants::{Follow, Followed, Grants, Login, LoginPattern};
pub use limits::{Limits, LineLength};
pub use list::{Lists, of_last_compile};
pub use listener::Listener;
pub use pending::Pending;
pub use relay::Relay;
pub use route::{NextHop, Route, RouteMode};
pub use tls::{AskForCertificates, ListenerTls, Tls};
pub use value::{duration, write_duration};

use document::Document;
use list::Files;
use portcullis_smtp::path::Mailbox;
use portcullis_smtp::sasl::Mechanisms;
use portcullis_smtp::server::{LongLines, Settings};

use crate::lists::format::foreign::foreign;
use crate::lists::guard::{Protected, ProtectedRole};
use crate::lists::{Compiled, ListAction};
use crate::policy::Policy;
pub use crate::policy::Service;
use crate::policy::domain::Domains;
use crate::relay::hop::DemandsId;

/// What the gate does without a configuration file: it does no harm and shows that it works.
const DEFAULT_GATE: &str = r#"[[listener]]
address = "127.0.0.1:2525"
service = "relay"

[[route]]
domains = ["*"]
next_hop = ["discard"]
"#;

/// A configuration as it is in force. Immutable; shared in an `Arc` and swapped whole.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from; `None` for the default gate.
    pub path: Option<PathBuf>,
    /// The name in the greeting, in `Received` lines and toward next hops.
    pub hostname: String,
    /// What has to outlive a restart.
    pub state_dir: PathBuf,
    /// Threads with a ring each.
    pub workers: usize,
    /// Where metrics and state are served, and who may change the gate.
    pub admin: Admin,
    /// The user to become once ports and programs are held.
    pub user: Option<String>,
    /// Where sessions come in. Empty: only the filter is run.
    pub listeners: Vec<Listener>,
    /// The in-kernel half.
    pub filter: Option<Filter>,
    /// POP-before-SMTP; `None`: no one can have a grant.
    pub grants: Option<Grants>,
    /// Where the lists come from.
    pub lists: Lists,
    /// The policy. Shared, because it holds the lists: a configuration that differs only in the
    /// address of a next hop needs no second copy of them.
    pub policy: Arc<Policy>,
    /// Where mail goes; [`Config::route`] finds the one for a recipient.
    pub routes: Vec<Route>,
    /// What is bounded, and how.
    pub limits: Limits,
    /// How DNS lists are asked. Which ones, and what their answers count for, is in the policy.
    pub dnsbl: DnsblPolicy,
    /// How next hops are treated.
    pub relay: Relay,
    /// TLS of clients. `None`: no listener has it.
    pub tls: Option<Tls>,
    /// Who may authenticate. `None`: there are no users.
    pub auth: Option<Auth>,
    /// What is written to the log.
    pub log: Log,
    /// What is doubtful but no error.
    pub warnings: Vec<Error>,
    /// Every setting in force, with those by default marked.
    pub in_force: Vec<Table>,
    /// Other files that it was read from: of domains and of networks, not of lists.
    pub named_files: Vec<PathBuf>,
    route_index: Domains,
}

/// `[log]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// For people or for programs.
    pub format: LogFormat,
    /// The least that is worth a line.
    pub level: LogLevel,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How much is logged; each level holds those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What does not work.
    Error,
    /// What may not work for long.
    Warn,
    /// One line a session and one a transaction.
    Info,
    /// What led to a decision.
    Debug,
    /// Every command.
    Trace,
}

/// Reads a configuration and the files that it names, to look at it: its lists are compared with
/// nothing, and lie in memory of this process.
///
/// # Errors
/// Every fault that was found, in the order of the file.
pub fn load(path: &Path) -> Result<Config, Errors> {
    read(path)?.unchecked()
}

/// Reads a configuration and the files that it names, to put it in force.
///
/// # Errors
/// As [`load`].
pub fn read(path: &Path) -> Result<Pending, Errors> {
    parse_with(path, &text_of(path)?, Files::Read)
}

/// As [`read`], for a start: where files of lists cannot be used, the lists of the last compile
/// stand in for all of them (see [`Lists::fallback`]), if they are the same by name and action.
///
/// # Errors
/// As [`load`].
pub fn read_for_start(path: &Path) -> Result<Pending, Errors> {
    parse_with(path, &text_of(path)?, Files::ReadOrLast)
}

/// As [`load`], but that the files of the lists, of the users and of TLS are left alone: there are
/// none.
///
/// # Errors
/// As [`load`], without what is in those files.
pub fn load_without_lists(path: &Path) -> Result<Config, Errors> {
    parse_with(path, &text_of(path)?, Files::Leave)?.unchecked()
}

fn text_of(path: &Path) -> Result<String, Errors> {
    let only = |message| Errors(vec![Error::whole_file(path, message)]);
    let bytes = std::fs::read(path)
        .map_err(|error| only(format!("cannot read the configuration: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        if let Some(foreign) = foreign(error.as_bytes()) {
            return only(format!("the file is {foreign}"));
        }
        let sane = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..sane]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count()
            + 1;
        only(format!("not UTF-8 (line {line}), as TOML has to be"))
    })
}

/// Compiles a configuration from its text; `path` is what faults are reported under and what
/// relative paths start at.
///
/// # Errors
/// As [`load`].
pub fn parse(path: &Path, text: &str) -> Result<Config, Errors> {
    parse_with(path, text, Files::Read)?.unchecked()
}

fn parse_with(path: &Path, text: &str, files: Files) -> Result<Pending, Errors> {
    let document = Document::new(path, text);
    let root = document.parse();
    if document.has_errors() {
        return Err(Errors(document.finish().errors));
    }
    let (config, lists, places) = compile::config(&document, &root, files);
    let findings = document.finish();
    if !findings.errors.is_empty() {
        return Err(Errors(findings.errors));
    }
    let config = Config {
        path: Some(path.to_owned()),
        in_force: findings.tables,
        named_files: findings.files,
        ..config
    };
    Ok(Pending::new(config, lists, findings.warnings, places))
}

fn saved_lists(state_dir: &Path) -> PathBuf {
    state_dir.join("lists.snapshot")
}

impl Config {
    /// The gate without a file: it listens on 127.0.0.1:2525 alone, has no filter, and throws away
    /// what it is sent.
    pub fn default_gate() -> Config {
        let built_in = parse(Path::new("(built in)"), DEFAULT_GATE);
        Config {
            path: None,
            ..built_in.expect("the built-in configuration is good: a test holds it")
        }
    }

    /// The route of a recipient, as its place in [`routes`](Config::routes); `None`: no route
    /// covers it.
    pub fn route(&self, mailbox: &Mailbox<'_>) -> Option<usize> {
        let number = self.route_index.lookup(self.policy.routed_domain(mailbox));
        number.map(usize::from)
    }

    /// Whether a route demands this of its next hops.
    pub fn has_demands(&self, id: DemandsId) -> bool {
        let mut demands = self.routes.iter().flat_map(|route| &route.demands);
        demands.any(|demands| demands.id() == id)
    }

    /// Where the lists of the last compile are kept.
    pub fn saved_lists(&self) -> PathBuf {
        saved_lists(&self.state_dir)
    }

    /// What is doubtful about compiled lists under this configuration. Public lists of bogons hold
    /// the private networks, so that it is easy to lock one's own people out. (That they hold a
    /// next hop with a private address as well is of no harm: it does not connect to the gate.)
    pub fn list_doubts(&self, lists: &Compiled) -> Vec<String> {
        let protected = self.guard().protected.into_iter();
        let local = protected.filter(|protected| protected.role == ProtectedRole::LocalNetwork);
        let doubt = |protected: Protected| {
            let (list, is_all) = protected.held_by(lists)?;
            let (action, name) = (list.action.as_str(), &list.name);
            Some(if is_all {
                format!(
                    "the {action} list \"{name}\" holds all of {protected}: \
                     no client there can connect"
                )
            } else {
                format!(
                    "the {action} list \"{name}\" holds much of {protected}: few there can connect"
                )
            })
        };
        local.filter_map(doubt).collect()
    }

    /// Warnings about listeners that customers cannot reach under the compiled lists: a customer
    /// that sends through this gate has to reach it.
    pub fn customer_doubts(&self, lists: &Compiled) -> Vec<String> {
        let filter = self.filter.as_ref();
        let Some(filter) = filter.filter(|filter| filter.mode != FilterMode::Off) else {
            return Vec::new();
        };
        let mut interfaces = filter.interfaces.iter();
        let Some(customers) = interfaces.find(|interface| interface.role == Role::Customer) else {
            return Vec::new();
        };
        let is_permitted = |ip| {
            let listing = lists.filtered(ip);
            listing.is_some_and(|listing| listing.action == ListAction::Permit)
        };
        let doubt = |listener: &Listener| {
            let address = listener.address;
            let ip = address.ip().to_canonical();
            // No customer gets to the loopback anyway.
            if !filter.ports.contains(&address.port()) || ip.is_loopback() || is_permitted(ip) {
                return None;
            }
            let own = if ip.is_unspecified() {
                "the address that they connect to".to_owned()
            } else {
                ip.to_string()
            };
            let interface = &customers.name;
            Some(format!(
                "customers on {interface} reach the listener {address} only if a permit list \
                 covers them or {own}: its port is filtered"
            ))
        };
        self.listeners.iter().filter_map(doubt).collect()
    }

    /// Whether clients are offered DSN (RFC 3461). What it asks for is passed on and not done here,
    /// so every next hop that a message can get to has to know it; every listener can reach every
    /// route.
    pub fn offers_dsn(&self) -> bool {
        !self.routes.is_empty() && self.routes.iter().all(|route| route.dsn)
    }

    /// The mechanisms of AUTH that a listener offers.
    fn mechanisms(&self, listener: &Listener) -> Mechanisms {
        let auth = self.auth.as_ref().filter(|_| listener.auth);
        auth.map(Auth::mechanisms).unwrap_or_default()
    }

    /// The settings of the SMTP sessions of a listener.
    pub fn session_settings(&self, listener: &Listener) -> Settings {
        Settings {
            mechanisms: self.mechanisms(listener),
            auth_without_tls: listener.auth_without_tls,
            auth_required: listener.service.is_submission(),
            message_size_max: self.limits.message_size,
            recipients_max: self.limits.recipients_per_message,
            transactions_max: self.limits.transactions_per_session,
            errors_max: self.limits.errors_per_session,
            recipients_unknown_max: self.limits.unknown_recipients_per_session,
            dsn: self.offers_dsn(),
            long_lines: match self.limits.line_length {
                LineLength::Pass => LongLines::Pass,
                LineLength::Refuse => LongLines::Refuse,
            },
            ..Settings::new(self.hostname.clone())
        }
    }
}
