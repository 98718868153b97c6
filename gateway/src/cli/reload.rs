//! `portcullis reload`: has the running gate read its configuration again.

use std::process::ExitCode;

use portcullis::config;
use portcullis::control::ask::{self, NotDone};
use portcullis::printable::printable;
use serde::Deserialize;

use super::admin_socket::AdminSocket;
use super::{ConfigFile, EXIT_USAGE};

/// Arguments of `portcullis reload`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The gate reads its configuration and its lists again, as at a SIGHUP. A bad one changes nothing, and
the errors are printed here, too. The command finds the gate by `admin_socket` in the configuration,
or at /run/portcullis/admin.sock; `admin_users` and `admin_groups` say who may use it.

Examples:
  portcullis reload -c /etc/portcullis.toml

Exit codes: 0 reloaded, 1 not reloaded or no gate runs, 2 the configuration is wrong.")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigFile,
}

/// What became of it.
#[derive(Deserialize)]
struct Reloaded {
    result: String,
    changed: Vec<String>,
    more: usize,
    kept: Vec<String>,
    errors: Vec<String>,
}

/// Reloads, and says what changed.
pub(crate) fn run(args: &Args) -> ExitCode {
    match find(args) {
        Ok(gate) => reload(&gate),
        Err(code) => code,
    }
}

fn find(args: &Args) -> Result<AdminSocket, ExitCode> {
    let Some(file) = &args.config.config else {
        return Ok(AdminSocket::usual());
    };
    let config = config::load_without_lists(file).map_err(|errors| {
        eprintln!("{errors}");
        AdminSocket::hint(file);
        ExitCode::from(EXIT_USAGE)
    })?;
    AdminSocket::of(&config).ok_or_else(|| {
        eprintln!(
            "portcullis reload: {} has no `admin_socket`; SIGHUP to the gate reloads it, too",
            file.display()
        );
        ExitCode::from(EXIT_USAGE)
    })
}

fn reload(gate: &AdminSocket) -> ExitCode {
    let done: Reloaded = match ask::command(gate.path(), "/api/reload", &()) {
        Ok(done) => done,
        Err(why_not) => {
            let code = gate.say(&why_not);
            if let NotDone::NoGate(_) = why_not {
                eprintln!("`portcullis run` starts one; `-c FILE` names one with another socket");
            }
            return code;
        }
    };
    for error in &done.errors {
        eprintln!("{}", printable(error));
    }
    if done.result != "good" {
        eprintln!("not reloaded: all stays as it was");
        return ExitCode::FAILURE;
    }
    for kept in &done.kept {
        eprintln!(
            "warning: {kept} cannot change while the gate runs; the old value stays until a restart"
        );
    }
    let changed = match (&*done.changed, done.more) {
        ([], _) => "nothing has changed".to_owned(),
        (changed, 0) => changed.join(", "),
        (changed, more) => format!("{}, and {more} more", changed.join(", ")),
    };
    println!("reloaded: {}", printable(&changed));
    ExitCode::SUCCESS
}
