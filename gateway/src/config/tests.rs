//! That no text can break the reading of the configuration. What is printed about a configuration
//! is data, in `tests/config`.

use std::path::Path;

use proptest::prelude::*;

use super::document::Document;
use super::section::Section;
use super::{Config, Pending, load, parse};

/// Every table and every kind of value, inline and not.
const GOOD: &str = r#"hostname = "mx1.isp.example"
workers = 1
limits = { sessions = 10, message_size = "1MiB" }
relay.networks = ["192.0.2.0/24", # here
  "2001:db8::/32"]
relay.domains = ["isp.example", "münchen.example"]

[[listener]]
address = "127.0.0.1:2525"

[filter]
interfaces = [{ name = "eth0", role = "edge" }]
ports = [25, 0x24b]

[[route]]
domains = ["*"]
next_hop = ["10.0.0.5", "[2001:db8::5]:24"]

[log]
format = 'json'
"#;

const SPLICES: [&str; 16] = [
    "\"",
    "'",
    "[",
    "]",
    "{ ",
    "}",
    "=",
    "\n",
    "\r\n",
    "\t",
    "#",
    "é",
    "[[list]]\nname = \"x\"\n",
    "0",
    "[tls]\n",
    ", ",
];

fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}

#[test]
fn the_same_is_read_from_inline_tables_and_dotted_keys() {
    let config = parse(Path::new("good"), GOOD).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(
        (config.limits.sessions, config.limits.message_size),
        (10, 1 << 20)
    );
    assert!(config.policy.is_local_domain("MÜNCHEN.example"));
    assert_eq!(
        config.filter.map(|filter| filter.ports),
        Some(vec![25, 587])
    );
}

#[test]
fn lists_that_are_read_again_bring_every_warning_of_a_check() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let text = "hostname = \"mx.isp.example\"\nstate_dir = \"/tmp\"\n\
        relay.networks = [\"192.0.2.0/24\"]\n\
        [filter]\ninterfaces = [{ name = \"eth0\" }, { name = \"eth1\", role = \"customer\" }]\n\
        [[list]]\nname = \"gate\"\nfile = \"gate\"\naction = \"permit\"\n\
        [[list]]\nname = \"feed\"\nfile = \"feed\"\naction = \"drop\"\n\
        [[listener]]\naddress = \"198.51.100.25:25\"\n\
        [[route]]\ndomains = [\"*\"]\nnext_hop = [\"203.0.113.1:25\"]\n";
    std::fs::write(file("gate.toml"), text).unwrap();
    std::fs::write(file("gate"), "198.51.100.25\n").unwrap();
    std::fs::write(file("feed"), "203.0.113.9\n").unwrap();
    let loaded = || load(&file("gate.toml")).unwrap_or_else(|errors| panic!("{errors}"));
    let told = |config: &Config| -> Vec<String> {
        let warnings = config.warnings.iter();
        let mut told: Vec<String> = warnings.map(|warning| warning.message.clone()).collect();
        told.sort();
        told
    };
    let config = loaded();
    assert_eq!(told(&config), [""; 0]);
    std::fs::write(file("gate"), "198.51.100.26\n").unwrap();
    std::fs::write(file("feed"), "192.0.2.0/24\n").unwrap();
    let again = Pending::again(&config).and_then(Pending::unchecked);
    let again = told(&again.unwrap_or_else(|errors| panic!("{errors}")));
    assert_eq!(again.len(), 2, "{again:?}");
    assert_eq!(again, told(&loaded()));
}

/// That all keys are read is an assertion of debug builds.
#[test]
#[cfg_attr(not(debug_assertions), ignore = "the assertion is not in this build")]
#[should_panic(expected = "a described key of \"[limits]\" is not read")]
fn a_key_that_is_described_and_not_read_fails_the_tests() {
    let document = Document::new(Path::new("x"), "");
    let mut limits = Section::new(&document, &super::limits::KEYS, None, 0..0);
    limits.count("sessions");
    limits.finish();
}

#[test]
#[should_panic(expected = "session of \"[limits]\" is described")]
fn a_key_that_is_read_and_not_described_fails_the_tests() {
    let document = Document::new(Path::new("x"), "");
    let mut limits = Section::new(&document, &super::limits::KEYS, None, 0..0);
    limits.count("session");
}

proptest! {
    #[test]
    fn no_text_breaks_the_reading_and_every_fault_has_its_line(
        edits in prop::collection::vec(
            (0..700usize, 0..12usize, prop::sample::select(SPLICES.to_vec())),
            1..5,
        ),
    ) {
        let mut text = GOOD.to_owned();
        for (at, length, splice) in edits {
            let (from, to) = (floor(&text, at), floor(&text, at + length));
            text.replace_range(from..to, splice);
        }
        let read: Result<Config, _> = parse(Path::new("spliced"), &text);
        for error in read.err().map(|errors| errors.0).unwrap_or_default() {
            prop_assert!(!error.to_string().is_empty());
            if let Some(at) = error.position {
                let line = text.split('\n').nth(at.line - 1);
                let line = line.map(|line| line.trim_end_matches('\r'));
                prop_assert_eq!(line, Some(at.text.as_str()));
            }
        }
    }
}
