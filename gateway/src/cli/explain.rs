//! `portcullis explain`: what would happen to a client, and which rule decides.

use std::borrow::Cow;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use portcullis::auth::name_key;
use portcullis::config::{Config, Listener};
use portcullis::control::dnsbl;
use portcullis::explain::{
    Explanation, LineBreak, PacketFacts, Question, RecentVerdict, ScoreSum, Step, explain,
};
use portcullis::filter::{Verdicts, format_network, verdict_network};
use portcullis::policy::dnsbl::{DnsblAnswer, ZoneAnswer};
use portcullis::policy::domain::normal_form;
use portcullis::policy::{Identity, Lookup, Proof};
use portcullis::printable::printable;

use super::{ConfigFile, EXIT_USAGE};

/// Arguments of `portcullis explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Goes through the stages of a session (packet, connect, hello, auth, mail, dnsbl, rcpt, route, data,
message) with the filter's order of verdicts, the gate's own SMTP parser and its policy, without a
connection. It ends where the client would be turned away; what becomes of the message after that is
the next hop's word. The DNS lists of the configuration are really queried, and the recent verdicts
and grants of a running filter are read if you are root. What is not known is named: the outcome of
such a stage is \"wait\".

Examples:
  portcullis explain -c gate.toml --client 198.51.100.7 --rcpt user@isp.example
  portcullis explain -c gate.toml --client 198.51.100.7 --rcpt 'user%b.example@isp.example'
  portcullis explain -c gate.toml --client 198.51.100.7 --from a@b.example --rcpt b@c.example
  portcullis explain -c gate.toml --client 2001:db8::25 --helo mail.example --json
  portcullis explain -c gate.toml --client 198.51.100.7 --rcpt user@isp.example --offline
  portcullis explain -c gate.toml --client 198.51.100.7 --rcpt user@isp.example \\
      --dnsbl bl.example=127.0.0.2
  portcullis explain -c gate.toml --client 198.51.100.7 --listener 192.0.2.25:587 \\
      --auth alice --from alice@isp.example --rcpt user@elsewhere.example

Exit code: 0 if there is an answer, whatever it is; 2 if the question or the configuration is
wrong.")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// The address that the client connects from
    #[arg(long, value_name = "IP")]
    client: IpAddr,
    /// The name it gives with EHLO (default: its address as a literal)
    #[arg(long, value_name = "NAME")]
    helo: Option<String>,
    /// The sender of the message (default: the null sender)
    #[arg(long, value_name = "ADDRESS")]
    from: Option<String>,
    /// A recipient; may be given more than once
    #[arg(long, value_name = "ADDRESS")]
    rcpt: Vec<String>,
    /// The user of [auth] that it authenticates as, after EHLO. What the user has sent in the last
    /// hour is taken to be nothing
    #[arg(long, value_name = "USER")]
    auth: Option<String>,
    /// The listener that it connects to, by its address in the configuration (default: the first)
    #[arg(long, value_name = "ADDRESS")]
    listener: Option<SocketAddr>,
    /// What a DNS list says of the client, in place of a query (ZONE= for not listed); may be given
    /// more than once, and zones that are left out are silent
    #[arg(long, value_name = "ZONE=ADDRESS", value_parser = stated_answer)]
    dnsbl: Vec<ZoneAnswer>,
    /// As if the client's address had a grant
    #[arg(long)]
    granted: bool,
    /// Query no DNS lists
    #[arg(long)]
    offline: bool,
    /// The interface that the client comes in by (default: the first one of the edge)
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Why there is no explanation.
enum Failure {
    /// The question is wrong.
    Question(LineBreak),
    /// What it depends on could not be looked up.
    Dnsbl(io::Error),
}

/// Prints the stages.
pub(crate) fn run(args: Args) -> ExitCode {
    let fail = |message: &str| {
        // If the standard error is closed, the exit code still tells.
        let _ = writeln!(io::stderr(), "portcullis explain: {message}");
        ExitCode::from(EXIT_USAGE)
    };
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    if let Some(message) = unknown_interface(&config, args.interface.as_deref()) {
        return fail(&message);
    }
    if let Some(message) = unknown_zone(&config, &args.dnsbl) {
        return fail(&message);
    }
    let listener = match args.listener.map(|address| listener(&config, address)) {
        Some(Err(message)) => return fail(&message),
        found => found.and_then(Result::ok),
    };
    let identity = match args.auth.map(|user| identity(&config, &user)) {
        Some(Err(message)) => return fail(&message),
        found => found.and_then(Result::ok),
    };
    let stated = (!args.dnsbl.is_empty()).then_some(args.dnsbl);
    let (recent, is_granted) = remembered(&config, args.client).unzip();
    let question = Question {
        listener,
        identity,
        hello: args.helo,
        sender: args.from,
        recipients: args.rcpt,
        packet: PacketFacts {
            interface: args.interface,
            recent,
            over_budget: None,
        },
        granted: args.granted || is_granted == Some(true),
        dnsbl: stated,
        ..Question::new(args.client)
    };
    let explanation = match explain_all(&config, question, args.offline) {
        Ok(explanation) => explanation,
        Err(Failure::Question(error)) => return fail(&error.to_string()),
        Err(Failure::Dnsbl(error)) => {
            fail(&format!(
                "DNSBL lookup failed: {error} (--offline leaves it out)"
            ));
            return ExitCode::FAILURE;
        }
    };
    let mut stdout = io::stdout().lock();
    let printed = if args.json {
        print_json(&explanation, &mut stdout)
    } else {
        print_table(&explanation, &mut stdout)
    };
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Explains, and has looked up what that turns out to depend on.
fn explain_all(
    config: &Config,
    mut question: Question,
    offline: bool,
) -> Result<Explanation, Failure> {
    let explanation = explain(config, &question).map_err(Failure::Question)?;
    if offline || !explanation.waits_for.contains(&Lookup::Dnsbl.name()) {
        return Ok(explanation);
    }
    let answers = dnsbl::look_up(config, question.client).map_err(Failure::Dnsbl)?;
    question.dnsbl = Some(answers);
    explain(config, &question).map_err(Failure::Question)
}

/// The listener of this address.
fn listener(config: &Config, address: SocketAddr) -> Result<Listener, String> {
    let mut listeners = config.listeners.iter();
    let found = listeners.find(|listener| listener.address == address);
    found.cloned().ok_or_else(|| {
        let addresses = config.listeners.iter().map(|listener| listener.address);
        let addresses: Vec<_> = addresses.map(|address| address.to_string()).collect();
        let known = addresses.join(", ");
        format!("--listener {address}: not the address of a [[listener]] (there are: {known})")
    })
}

/// The user of this name, as one who has authenticated.
fn identity(config: &Config, user: &str) -> Result<Identity, String> {
    let auth = config.auth.as_ref();
    let auth = auth.ok_or("--auth: the configuration has no users ([auth])")?;
    let (name, senders) = match auth.users() {
        Some(users) => {
            let found = users.get(user);
            let found = found.ok_or_else(|| format!("--auth {user}: not in the user file"))?;
            (found.name.clone(), found.senders.clone())
        }
        // Only Dovecot knows its users.
        None => (
            name_key(user).ok_or_else(|| format!("--auth {user}: no user can have this name"))?,
            None,
        ),
    };
    Ok(Identity {
        user: name.into(),
        proof: Proof::Password,
        senders,
    })
}

/// What is wrong with the name of an interface.
fn unknown_interface(config: &Config, interface: Option<&str>) -> Option<String> {
    let name = interface?;
    let mut interfaces = config.filter.iter().flat_map(|filter| &filter.interfaces);
    let known = interfaces.any(|interface| interface.name == name);
    (!known).then(|| format!("--interface {name}: not one of filter.interfaces"))
}

/// What is wrong with the zones whose answers were given: a misspelt one would be silent.
fn unknown_zone(config: &Config, answers: &[ZoneAnswer]) -> Option<String> {
    let zones = &config.policy.dnsbl().zones;
    let is_known = |answer: &&ZoneAnswer| zones.iter().any(|zone| zone.name == answer.zone);
    let unknown = answers.iter().find(|answer| !is_known(answer))?;
    Some(format!("--dnsbl {}: not a zone of [[dnsbl]]", unknown.zone))
}

/// Whether the running filter has a recent verdict on a client, and whether the client has a grant
/// there; `None` where that cannot be read: there is no filter, or the caller is not root.
fn remembered(config: &Config, client: IpAddr) -> Option<(RecentVerdict, bool)> {
    let filter = config.filter.as_ref()?;
    let maps = Verdicts::open(&filter.pin_path).ok()?;
    let is_granted = maps.granted().ok()?.contains(&client.to_canonical());
    let verdicts = maps.list().ok()?;
    let source = format_network(&verdict_network(client));
    let of_client = verdicts.iter().find(|verdict| verdict.source == source);
    let recent = of_client.map_or(RecentVerdict::Absent, |verdict| {
        let left = verdict.expires_in_seconds;
        RecentVerdict::Present(format!(
            "{} {}, {left} s left",
            verdict.cause.name(),
            verdict.note
        ))
    });
    Some((recent, is_granted))
}

/// `ZONE=ADDRESS[,ADDRESS]`, or `ZONE=` for a zone that has no such name.
fn stated_answer(text: &str) -> Result<ZoneAnswer, String> {
    let (zone, addresses) = text
        .split_once('=')
        .ok_or("ZONE=ADDRESS expected, or ZONE= for not listed")?;
    let addresses = addresses.split(',').filter(|address| !address.is_empty());
    let addresses: Result<Vec<_>, _> = addresses.map(str::parse).collect();
    let addresses = addresses.map_err(|_| "an IPv4 address expected after =".to_owned())?;
    Ok(ZoneAnswer {
        zone: normal_form(zone).into(),
        answer: if addresses.is_empty() {
            DnsblAnswer::NotListed
        } else {
            DnsblAnswer::Addresses(addresses)
        },
    })
}

fn print_json(explanation: &Explanation, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, explanation)?;
    writeln!(out)
}

fn print_table(explanation: &Explanation, out: &mut impl Write) -> io::Result<()> {
    write!(
        out,
        "client {} ({})",
        explanation.client, explanation.standing
    )?;
    if let Some(user) = &explanation.user {
        write!(out, ", user {}", printable(user))?;
    }
    if let Some(ScoreSum { sum, reject_at }) = explanation.score {
        write!(out, ", DNS lists give {sum} points of {reject_at}")?;
    }
    writeln!(out, "\n")?;
    let cells = |of: fn(&Step) -> &str| -> Vec<Cow<'_, str>> {
        let stages = explanation.stages.iter();
        stages.map(|stage| printable(of(stage))).collect()
    };
    let width = |heading: &str, cells: &[Cow<'_, str>]| {
        let widths = cells.iter().map(|cell| cell.chars().count());
        widths.chain([heading.len()]).max().unwrap_or(0)
    };
    let (subjects, rules) = (cells(|stage| &stage.subject), cells(|stage| &stage.rule));
    let (subject, rule) = (width("what", &subjects), width("rule", &rules));
    writeln!(
        out,
        "{:<8} {:<subject$}  {:<7} {:<rule$}  answer",
        "stage", "what", "outcome", "rule"
    )?;
    for (stage, (what, by)) in explanation.stages.iter().zip(subjects.iter().zip(&rules)) {
        let mut lines = stage.answer.lines();
        let first = printable(lines.next().unwrap_or_default());
        let more = if lines.next().is_some() { " ..." } else { "" };
        let unless = match &*stage.waits_for {
            [] => String::new(),
            waits_for => format!("(unknown: {}) ", waits_for.join(", ")),
        };
        let outcome = stage.outcome.as_str();
        let line = format!(
            "{:<8} {what:<subject$}  {outcome:<7} {by:<rule$}  {unless}{first}{more}",
            stage.stage
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
