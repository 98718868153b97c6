//! `portcullis explain`: what would happen to a client, and which rule decides.

use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;

use portcullis::control::dnsbl;
use portcullis::policy::explain::{Explanation, Question, depends_on_listings, explain_with};
use portcullis::printable::printable;

use super::{ConfigFile, EXIT_USAGE};

/// Arguments of `portcullis explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Goes through the stages of a session (packet, connect, hello, mail, dnsbl, rcpt, route) with the
policy of the configuration and the gate's own SMTP parser, without a connection. It ends where the
client would be turned away. The DNS lists of the configuration are really asked.

Examples:
  portcullis explain -c gate.toml --client 198.51.100.7 --rcpt user@isp.example
  portcullis explain -c gate.toml --client 198.51.100.7 --rcpt 'user%b.example@isp.example'
  portcullis explain -c gate.toml --client 198.51.100.7 --from a@b.example --rcpt b@c.example
  portcullis explain -c gate.toml --client 2001:db8::25 --helo mail.example --json
  portcullis explain -c gate.toml --client 198.51.100.7 --rcpt user@isp.example --offline

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
    /// The user it authenticates as
    #[arg(long, value_name = "USER")]
    auth: Option<String>,
    /// Ask no DNS lists
    #[arg(long)]
    offline: bool,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the stages.
pub(crate) fn run(args: Args) -> ExitCode {
    let fail = |message: &str| {
        // With nobody listening on the standard error the exit code still tells.
        let _ = writeln!(io::stderr(), "portcullis explain: {message}");
        ExitCode::from(EXIT_USAGE)
    };
    if args.auth.is_some() {
        return fail("--auth: authentication is not in this version of Portcullis");
    }
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let question = Question {
        client: args.client,
        hello: args.helo,
        sender: args.from,
        recipients: args.rcpt,
    };
    let findings = if !args.offline && depends_on_listings(&config, &question) {
        match dnsbl::look_up(&config, args.client) {
            Ok(findings) => Some(findings),
            Err(error) => {
                let message = format!("cannot ask DNS lists: {error} (--offline leaves them out)");
                fail(&message);
                return ExitCode::FAILURE;
            }
        }
    } else {
        None
    };
    let explanation = match explain_with(&config, &question, findings.as_deref()) {
        Ok(explanation) => explanation,
        Err(error) => return fail(&error.to_string()),
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

fn print_json(explanation: &Explanation, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, explanation)?;
    writeln!(out)
}

fn print_table(explanation: &Explanation, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "client {} ({})\n",
        explanation.client, explanation.standing
    )?;
    let width = |heading: &str, texts: &mut dyn Iterator<Item = &str>| {
        texts
            .map(|text| text.chars().count())
            .chain([heading.len()])
            .max()
            .unwrap_or(0)
    };
    let subject = width(
        "what",
        &mut explanation
            .stages
            .iter()
            .map(|stage| stage.subject.as_str()),
    );
    let rule = width(
        "rule",
        &mut explanation.stages.iter().map(|stage| stage.rule.as_str()),
    );
    writeln!(
        out,
        "{:<8} {:<subject$}  {:<7} {:<rule$}  answer",
        "stage", "what", "outcome", "rule"
    )?;
    for stage in &explanation.stages {
        let mut lines = stage.answer.lines();
        let first = lines.next().unwrap_or_default();
        let more = if lines.next().is_some() { " ..." } else { "" };
        let outcome = stage.outcome.as_str();
        let line = format!(
            "{:<8} {:<subject$}  {outcome:<7} {:<rule$}  {first}{more}",
            stage.stage, stage.subject, stage.rule
        );
        writeln!(out, "{}", printable(line.trim_end()))?;
    }
    Ok(())
}
