//! `portcullis check`: is the configuration good, and what is in force?

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use portcullis::config::Config;
use portcullis::config::reference::{self, DescribedTable, Description, fill};
use portcullis::control::interfaces::unconfigured;

use super::{ConfigFile, EXIT_USAGE, finished};

/// Arguments of `portcullis check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints every setting in force as TOML, with those by default marked, and what became of the lists.
Reads the files that the configuration names (lists, networks, domains); changes nothing, needs no
rights, and does not resolve names. As root it also reports a filter that is still in place
although the configuration has none.

Examples:
  portcullis check -c /etc/portcullis.toml
  portcullis check                            what is in force without a file
  portcullis check -c new.toml > /dev/null && systemctl reload portcullis
  portcullis check --keys                     what can be configured: every key, described
  portcullis check --keys limits              the keys of a table; also limits.sessions, or sessions

Exit code: 0 if the configuration is good, 2 if not: then every fault is printed with its file, line
and column. With --keys: 2 if there is no such table or key.")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// Describe the keys of the configuration instead: all, or those of one table or name
    #[arg(long, value_name = "TABLE", num_args = 0..=1, conflicts_with = "config")]
    keys: Option<Option<String>>,
    /// Print the descriptions as JSON
    #[arg(long, requires = "keys")]
    json: bool,
}

/// Prints what is in force, or every fault; or describes keys.
pub(crate) fn run(args: &Args) -> ExitCode {
    if let Some(name) = &args.keys {
        return describe(name.as_deref(), args.json);
    }
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    for warning in &config.warnings {
        // That the standard error cannot be written to makes the configuration no worse.
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
    finished(io::stdout().write_all(in_force(&config).as_bytes()))
}

/// Describes all keys, or those of a name.
fn describe(name: Option<&str>, json: bool) -> ExitCode {
    let tables = match name {
        None => reference::tables(),
        Some(name) => match reference::find(name) {
            Ok(found) => found,
            Err(meant) => {
                let meant = meant.map(|meant| format!("; did you mean `{meant}`?"));
                let meant = meant.unwrap_or_default();
                eprintln!("portcullis check: there is no table or key `{name}`{meant}");
                return ExitCode::from(EXIT_USAGE);
            }
        },
    };
    if json {
        let keys: Vec<Description> = tables.into_iter().flat_map(|table| table.keys).collect();
        let mut stdout = io::stdout().lock();
        let printed = serde_json::to_writer_pretty(&mut stdout, &keys).map_err(io::Error::from);
        return finished(printed.and_then(|()| writeln!(stdout)));
    }
    finished(io::stdout().write_all(descriptions(&tables).as_bytes()))
}

fn descriptions(tables: &[DescribedTable]) -> String {
    let mut text = String::new();
    for table in tables {
        if !text.is_empty() {
            text.push('\n');
        }
        let header = Some(table.header).filter(|header| !header.is_empty());
        let header = header.unwrap_or("# at the top of the file");
        writeln!(text, "{header}\n{}", fill(table.about, WIDTH, "# ")).ok();
        table
            .keys
            .iter()
            .for_each(|key| describe_key(key, &mut text));
    }
    text
}

/// Columns of a description: what a terminal has at least, as a rule.
const WIDTH: usize = 80;

fn describe_key(key: &Description, text: &mut String) {
    let indent = "    ";
    writeln!(text, "\n{}", key.key).ok();
    let value = format!("{}; default: {}", key.value, key.default);
    writeln!(text, "{}", fill(&value, WIDTH, indent)).ok();
    writeln!(text, "{}", fill(&key.about, WIDTH, indent)).ok();
    if key.needs_restart {
        writeln!(text, "{indent}A change waits for the next start.").ok();
    }
    if !key.see.is_empty() {
        let see = format!("See {}.", key.see.join(", "));
        writeln!(text, "{}", fill(&see, WIDTH, indent)).ok();
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
    writeln!(text, "# `portcullis check --keys` describes every key").ok();
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

    /// The lines, without what tells defaults.
    fn settings(text: &str) -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.trim_end_matches("# default").trim_end().to_owned())
            .collect()
    }

    #[test]
    fn what_check_prints_is_a_configuration_with_the_same_settings() {
        let first = in_force(&Config::default_gate());
        let second =
            portcullis::config::parse(Path::new("printed"), &first).map(|config| in_force(&config));
        assert_eq!(second.as_deref().map(settings), Ok(settings(&first)));
    }

    #[test]
    fn a_table_of_a_route_is_printed_behind_its_route() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("password"), "sesame").unwrap();
        let file = directory.path().join("gate.toml");
        let mut text = "[[listener]]\naddress = \"127.0.0.1:2525\"\n".to_owned();
        for domain in ["a.example", "*"] {
            text += &format!(
                "[[route]]\ndomains = [\"{domain}\"]\nnext_hop = [\"smarthost.example:587\"]\n\
                 tls = \"required\"\nauth = {{ user = \"gate\", password_file = \"password\" }}\n"
            );
        }
        let parse = |text: &str| portcullis::config::parse(&file, text).map(|c| in_force(&c));
        let first = parse(&text).unwrap();
        assert_eq!(first.matches("[route.auth]").count(), 2, "{first}");
        assert_eq!(parse(&first).as_deref().map(settings), Ok(settings(&first)));
    }
    #[test]
    fn a_key_is_described_with_its_range_its_default_and_what_it_interacts_with() {
        let tables = reference::find("filter.xdp_mode").expect("there is such a key");
        let text = descriptions(&tables);
        for part in [
            "[filter]\n# ",
            "\nxdp_mode\n    `\"driver\"` or `\"generic\"`; default: `\"driver\"`\n",
            "A change waits for the next start.",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let tables = reference::find("sessions_per_source").expect("there is such a key");
        let text = descriptions(&tables);
        let interacts = "See relay.networks, list.action.";
        assert!(text.contains("from 1 to 10000000; default: `50`"), "{text}");
        assert!(text.contains(interacts), "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= WIDTH),
            "{text}"
        );
    }

    #[test]
    fn the_keys_are_an_option_with_and_without_a_name() {
        use clap::Parser as _;
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let keys = |line: &[&str]| Line::try_parse_from(line).map(|line| line.args.keys).ok();
        assert_eq!(keys(&["check"]), Some(None));
        assert_eq!(keys(&["check", "--keys"]), Some(Some(None)));
        assert_eq!(keys(&["check", "--keys", "--json"]), Some(Some(None)));
        assert_eq!(
            keys(&["check", "--keys", "limits"]),
            Some(Some(Some("limits".to_owned())))
        );
        assert_eq!(keys(&["check", "--json"]), None);
        assert_eq!(keys(&["check", "--keys", "-c", "file"]), None);
    }
}
