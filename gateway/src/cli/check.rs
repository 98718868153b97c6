//! `portcullis check`: is the configuration good, and what is in force?

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use portcullis::config::Config;
use portcullis::control::interfaces::unconfigured;

use super::ConfigFile;

/// Arguments of `portcullis check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints every setting in force as TOML, with those by default marked, and what became of the lists.
Reads the files that the configuration names (lists, networks, domains); changes nothing, needs no
rights, and does not resolve names. As root it also tells of a filter that is still in place
although the configuration has none.

Examples:
  portcullis check -c /etc/portcullis.toml
  portcullis check                            what is in force without a file
  portcullis check -c new.toml > /dev/null && systemctl reload portcullis

Exit code: 0 if the configuration is good, 2 if not: then every fault is told with its file, line
and column.")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigFile,
}

/// Prints what is in force, or every fault.
pub(crate) fn run(args: &Args) -> ExitCode {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    for warning in &config.warnings {
        // With nobody listening on the standard error the configuration is no worse.
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    for found in unconfigured(&config, true) {
        let _ = writeln!(
            io::stderr(),
            "warning: {}\n      = `{}` takes it off",
            found.text,
            found.removal
        );
    }
    match io::stdout().write_all(in_force(&config).as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// The configuration in force, as a file that says the same, and a summary in comments.
fn in_force(config: &Config) -> String {
    let mut text = String::new();
    match &config.path {
        Some(path) => writeln!(text, "# in force with {}", path.display()),
        None => writeln!(text, "# in force without a configuration file"),
    }
    .ok();
    for table in &config.in_force {
        if !table.header.is_empty() {
            writeln!(text, "\n{}", table.header).ok();
        }
        for setting in &table.settings {
            let line = format!("{} = {}", setting.key, setting.value);
            if setting.given {
                writeln!(text, "{line}").ok();
            } else {
                writeln!(text, "{line:<48} # default").ok();
            }
        }
    }
    if !config.listeners.is_empty() {
        let offered = if config.offers_dsn() {
            "offered: every [[route]] says dsn = true"
        } else {
            "not offered: that takes dsn = true in every [[route]]"
        };
        writeln!(text, "\n# DSN is {offered}").ok();
    }
    summarise_lists(config, &mut text);
    text
}

fn summarise_lists(config: &Config, text: &mut String) {
    let lists = config.policy.lists();
    if lists.lists.is_empty() {
        return;
    }
    writeln!(text, "\n# list                 action     entries").ok();
    for list in &lists.lists {
        writeln!(
            text,
            "# {:<20} {:<8} {:>9}",
            list.name,
            list.action.as_str(),
            list.entries
        )
        .ok();
    }
    writeln!(
        text,
        "# with overlaps settled: {} KiB to permit or drop, {} KiB to reject",
        lists.filtered.size() / 1024,
        lists.rejected.size() / 1024
    )
    .ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn what_check_prints_is_a_configuration_that_says_the_same() {
        let first = in_force(&Config::default_gate());
        let second =
            portcullis::config::parse(Path::new("printed"), &first).map(|config| in_force(&config));
        let settings = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines
                .map(|line| line.trim_end_matches("# default").trim_end().to_owned())
                .collect()
        };
        assert_eq!(second.as_deref().map(settings), Ok(settings(&first)));
    }
}
