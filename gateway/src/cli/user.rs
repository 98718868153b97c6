//! `portcullis user`: the users of `[auth] users`.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use portcullis::auth::edit::{self, Fields};
use portcullis::auth::store::{self, Owner, UpdateError};
use portcullis::auth::users::checked_name;
use portcullis::auth::{Password, PasswordHash, ScramKeys, Users, random_salt};
use portcullis::config::{self, BackEnd, Config};
use portcullis::policy::Senders;
use serde::Serialize;
use zeroize::Zeroizing;

use super::table::Table;
use super::{EXIT_USAGE, finished};

/// Arguments of `portcullis user`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The user file is the one that `users` in [auth] of the configuration names; -c FILE is the
configuration. A reload of the gate (SIGHUP) reads it again. The file has an argon2 hash of each
password, never the password. It belongs to the user that the gate becomes, with mode 0600.

The password comes from the terminal, without being shown, or from standard input: its first line.

Examples:
  portcullis user add -c /etc/portcullis.toml alice@isp.example
  portcullis user add -c /etc/portcullis.toml alice --scram --senders alice@isp.example
  pwgen -s 20 1 | portcullis user add -c /etc/portcullis.toml scanner
  portcullis user passwd -c /etc/portcullis.toml alice
  portcullis user list -c /etc/portcullis.toml --json

Exit codes: 0 good, 1 it failed or there is no such user, 2 the command line or the configuration is
wrong.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Add a user, with a password from the terminal or from standard input
    Add(AddArgs),
    /// Give a user another password
    Passwd(PasswdArgs),
    /// Say as whom a user may send
    Senders(SendersArgs),
    /// Remove a user
    Remove(RemoveArgs),
    /// Who there is
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// The configuration file, which names the user file
    #[arg(short, long = "config", value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Names are compared without regard to case. They have no space, no `,` and no `=`.

SCRAM-SHA-256 needs keys of its own, because an argon2 hash cannot serve it. Guessing
passwords from stolen keys is faster than from the argon2 hash: store keys only for users whose
client wants SCRAM.")]
struct AddArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// The name that the user logs in with: a word, or its mail address
    name: String,
    /// Store keys for SCRAM-SHA-256, too
    #[arg(long)]
    scram: bool,
    /// As whom it may send: addresses, domains, .parent domains, with commas; without it: as anyone
    #[arg(long, value_name = "LIST")]
    senders: Option<String>,
}

#[derive(Debug, clap::Args)]
struct PasswdArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// The user
    name: String,
    /// Store keys for SCRAM-SHA-256, too; a user who has them keeps having some
    #[arg(long)]
    scram: bool,
    /// Store none, and remove those that are there
    #[arg(long, conflicts_with = "scram")]
    no_scram: bool,
}

#[derive(Debug, clap::Args)]
struct SendersArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// The user
    name: String,
    /// Addresses, domains and .parent domains, with commas
    #[arg(required_unless_present = "any")]
    list: Option<String>,
    /// It may send as anyone
    #[arg(long, conflicts_with = "list")]
    any: bool,
}

#[derive(Debug, clap::Args)]
struct RemoveArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// The user
    name: String,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Print JSON: an array of name, scram, senders (null: anyone) and line
    #[arg(long)]
    json: bool,
}

/// Does what the command line says.
pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match &args.command {
        Command::Add(args) => add(args),
        Command::Passwd(args) => passwd(args),
        Command::Senders(args) => senders(args),
        Command::Remove(args) => remove(args),
        Command::List(args) => list(args),
    };
    done.unwrap_or_else(|code| code)
}

/// The user file of a configuration.
struct UserFile {
    path: PathBuf,
    /// The user that the gate becomes, if this process may give a file to it.
    owner: Option<Owner>,
}

impl UserFile {
    fn of(args: &ConfigArg) -> Result<Self, ExitCode> {
        let config = config::load_without_lists(&args.config).map_err(|errors| {
            eprintln!("{errors}");
            ExitCode::from(EXIT_USAGE)
        })?;
        let owner = owner(&config);
        let back_end = config.auth.map(|auth| auth.back_end);
        let Some(BackEnd::Users { file: path, .. }) = back_end else {
            eprintln!(
                "portcullis user: {} names no user file; write\n\n[auth]\nusers = \"users\"",
                args.config.display()
            );
            return Err(ExitCode::from(EXIT_USAGE));
        };
        Ok(Self { path, owner })
    }

    fn update(&self, edit: impl FnOnce(&str) -> Result<String, String>) -> Result<Users, ExitCode> {
        store::update(&self.path, self.owner, edit).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: UpdateError) -> ExitCode {
        let path = self.path.display();
        match error {
            UpdateError::Refused(why) => eprintln!("portcullis user: {why} ({path})"),
            UpdateError::Faulty(faults) => {
                for fault in faults {
                    match fault.line {
                        Some(line) => eprintln!("{path}:{line}: {}", fault.message),
                        None => eprintln!("{path}: {}", fault.message),
                    }
                }
                eprintln!("portcullis user: the file has faults: mend these lines first");
            }
            UpdateError::Io { step, error } => {
                eprintln!("portcullis user: cannot {step} {path}: {error}");
            }
            UpdateError::Locked => eprintln!(
                "portcullis user: another program holds the lock of the directory of {path}; try \
                 again"
            ),
        }
        ExitCode::FAILURE
    }
}

fn owner(config: &Config) -> Option<Owner> {
    let name = config.user.as_deref()?;
    if !nix::unistd::Uid::effective().is_root() {
        return None;
    }
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => Some((user.uid.as_raw(), user.gid.as_raw())),
        _ => {
            eprintln!("warning: the user {name} is not on this machine; a new file is root's");
            None
        }
    }
}

fn add(args: &AddArgs) -> Result<ExitCode, ExitCode> {
    let name = name(&args.name)?;
    let file = UserFile::of(&args.config)?;
    // Before a password is typed in vain.
    if file.path.exists() {
        let users = Users::read(&file.path);
        let users = users.map_err(|faults| file.failed(UpdateError::Faulty(faults)))?;
        if users.get(&name).is_some() {
            let why = format!("{name} is a user already; `passwd` changes the password");
            return Err(file.failed(UpdateError::Refused(why)));
        }
    }
    let password = read_password()?;
    let fields = Fields {
        password: Some(hash(&password)?),
        scram: args.scram.then(|| keys(&password)).transpose()?.map(Some),
        senders: args.senders.clone().map(Some),
    };
    file.update(|text| edit::add(text, &name, &fields))?;
    println!("{name} is added to {}", file.path.display());
    Ok(ExitCode::SUCCESS)
}

fn passwd(args: &PasswdArgs) -> Result<ExitCode, ExitCode> {
    let (name, file) = (name(&args.name)?, UserFile::of(&args.config)?);
    let users = Users::read(&file.path);
    let users = users.map_err(|faults| file.failed(UpdateError::Faulty(faults)))?;
    let Some(user) = users.get(&name) else {
        let why = format!("there is no user {name}");
        return Err(file.failed(UpdateError::Refused(why)));
    };
    // Old keys would still let the old password in.
    let with_keys = args.scram || (user.scram.is_some() && !args.no_scram);
    let password = read_password()?;
    let fields = Fields {
        password: Some(hash(&password)?),
        scram: Some(with_keys.then(|| keys(&password)).transpose()?),
        senders: None,
    };
    file.update(|text| edit::change(text, &name, &fields))?;
    println!("{name} has another password; it is in force with the next reload (SIGHUP)");
    Ok(ExitCode::SUCCESS)
}

fn senders(args: &SendersArgs) -> Result<ExitCode, ExitCode> {
    let (name, file) = (name(&args.name)?, UserFile::of(&args.config)?);
    let senders = Some(args.list.clone());
    let fields = Fields {
        senders,
        ..Fields::default()
    };
    file.update(|text| edit::change(text, &name, &fields))?;
    match &args.list {
        Some(list) => println!("{name} may send as {list}"),
        None => println!("{name} may send as anyone"),
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(args: &RemoveArgs) -> Result<ExitCode, ExitCode> {
    let (name, file) = (name(&args.name)?, UserFile::of(&args.config)?);
    file.update(|text| edit::remove(text, &name))?;
    println!("{name} is removed; that is in force with the next reload (SIGHUP)");
    Ok(ExitCode::SUCCESS)
}

/// A user in JSON.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    scram: bool,
    senders: Option<&'a [String]>,
    line: usize,
}

fn list(args: &ListArgs) -> Result<ExitCode, ExitCode> {
    let file = UserFile::of(&args.config)?;
    let users = Users::read(&file.path);
    let users = users.map_err(|faults| file.failed(UpdateError::Faulty(faults)))?;
    let all = users.all();
    let listed: Vec<Listed<'_>> = all
        .iter()
        .map(|user| Listed {
            name: &user.name,
            scram: user.scram.is_some(),
            senders: user.senders.as_deref().map(Senders::entries),
            line: user.line,
        })
        .collect();
    let mut stdout = io::stdout().lock();
    if args.json {
        let printed = serde_json::to_writer_pretty(&mut stdout, &listed).map_err(io::Error::from);
        return Ok(finished(printed.and_then(|()| writeln!(stdout))));
    }
    if listed.is_empty() {
        return Ok(finished(writeln!(
            stdout,
            "no users in {}",
            shown(&file.path)
        )));
    }
    let mut table = Table::new(["user", "scram", "may send as"]);
    for user in listed {
        let senders = user
            .senders
            .map_or("anyone".to_owned(), |list| list.join(","));
        let scram = if user.scram { "yes" } else { "no" };
        table.row([user.name.to_owned(), scram.to_owned(), senders]);
    }
    Ok(finished(table.write(&mut stdout)))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn name(given: &str) -> Result<Box<str>, ExitCode> {
    checked_name(given).map_err(|why| {
        eprintln!("portcullis user: {given:?}: {why}");
        ExitCode::from(EXIT_USAGE)
    })
}

fn hash(password: &Password) -> Result<String, ExitCode> {
    PasswordHash::create(password, &salt()?).map_err(|error| {
        eprintln!("portcullis user: {error}");
        ExitCode::FAILURE
    })
}

fn keys(password: &Password) -> Result<String, ExitCode> {
    Ok(ScramKeys::create(password, &salt()?).to_text())
}

fn salt() -> Result<[u8; 16], ExitCode> {
    random_salt().map_err(|error| {
        eprintln!("portcullis user: no random octets: {error}");
        ExitCode::FAILURE
    })
}

/// The password: twice from a terminal, or once from standard input.
fn read_password() -> Result<Password, ExitCode> {
    let failed = |why: &dyn std::fmt::Display| {
        eprintln!("portcullis user: {why}");
        ExitCode::FAILURE
    };
    let octets = if io::stdin().is_terminal() {
        let ask = |prompt: &str| {
            let typed = rpassword::prompt_password(prompt);
            let typed = typed.map(|text| Zeroizing::new(text.into_bytes()));
            typed.map_err(|error| failed(&format!("cannot read the password: {error}")))
        };
        let first = ask("Password: ")?;
        if *first != *ask("The same again: ")? {
            return Err(failed(&"the two differ; nothing is changed"));
        }
        first
    } else {
        first_line().map_err(|error| failed(&format!("cannot read the password: {error}")))?
    };
    Password::new(octets)
        .ok_or_else(|| failed(&"a password has from 1 to 1,024 octets, and no NUL"))
}

/// The first line of standard input, without its end.
fn first_line() -> io::Result<Zeroizing<Vec<u8>>> {
    // Enough that it does not grow, which would leave a copy behind.
    let mut line = Zeroizing::new(Vec::with_capacity(4_096));
    io::stdin()
        .lock()
        .take(4_096)
        .read_until(b'\n', &mut line)?;
    while line
        .last()
        .is_some_and(|octet| matches!(octet, b'\r' | b'\n'))
    {
        line.pop();
    }
    Ok(line)
}
