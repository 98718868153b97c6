//! The documents that are made from the tables: the checks in the order in which they decide
//! (`checks.md`, which the documentation of the policy shows), and the rules with their meaning
//! (a section of `docs/operations.md`). The tests compare both; `PORTCULLIS_BLESS=1` writes them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use portcullis::policy::Rule;
use portcullis::policy::pipeline::{CHECKS, Check, Effect};

/// Where the section of the rules begins and ends.
const BEGIN: &str = "<!-- rules -->\n";
const END: &str = "<!-- /rules -->\n";

fn of_gateway(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../gateway")
        .join(path)
}

/// The table of the checks.
fn checks() -> String {
    let mut text = String::from(
        "| at | check | what it does | rules | a refusal is an error of a stranger |\n\
         |---|---|---|---|---|\n",
    );
    for (stage, checks) in CHECKS {
        for check in *checks {
            let rules: Vec<_> = check.rules.iter().map(|rule| code(*rule)).collect();
            let _ = writeln!(
                text,
                "| {} | {} | {}{} | {} | {} |",
                stage.name(),
                check.name,
                check.does,
                limits_of(check),
                rules.join(", "),
                counts(check),
            );
        }
    }
    text
}

fn limits_of(check: &Check) -> &'static str {
    match check.effect {
        Effect::Admits => "",
        Effect::Restricts => " (whatever has admitted it)",
        Effect::Scores => {
            " (the points of checks that follow each other are added up, and refuse a client at \
             `dnsbl_policy.reject_at`, whatever has admitted it)"
        }
    }
}

fn counts(check: &Check) -> &'static str {
    let may_refuse = check.rules.iter().any(|rule| refuses(*rule));
    match (may_refuse, check.counts) {
        (false, _) => "",
        (true, true) => "yes",
        (true, false) => "no",
    }
}

fn refuses(rule: Rule) -> bool {
    rule.reply_codes().starts_with(['4', '5'])
}

/// The table of the rules.
fn rules() -> String {
    let mut text = String::from("| rule | reply | what it means |\n|---|---|---|\n");
    for rule in Rule::fixed() {
        let (name, reply, meaning) = (code(rule), rule.reply_codes(), rule.meaning());
        let _ = writeln!(text, "| {name} | {reply} | {meaning} |");
    }
    text
}

fn code(rule: Rule) -> String {
    format!("`{}`", rule.documented_name())
}

/// Compares a document with what it has to be, or writes it.
fn check(path: &Path, written: &str, right: &str) {
    if std::env::var_os("PORTCULLIS_BLESS").is_some() {
        std::fs::write(path, right).expect("the document can be written");
        return;
    }
    if written == right {
        return;
    }
    let mut lines = written.lines().zip(right.lines());
    let line = lines.position(|(written, right)| written != right);
    let number = line.unwrap_or(written.lines().count().min(right.lines().count())) + 1;
    panic!(
        "{} does not show the table from line {number} on: run this test with PORTCULLIS_BLESS=1 \
         and read the change",
        path.display()
    );
}

#[test]
fn the_documentation_shows_the_checks_in_their_order() {
    let path = of_gateway("src/policy/checks.md");
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    check(&path, &written, &checks());
}

#[test]
fn the_operators_document_has_every_rule_with_its_meaning() {
    let path = of_gateway("docs/operations.md");
    let written = std::fs::read_to_string(&path).expect("the document is there");
    let (before, rest) = written.split_once(BEGIN).expect("the section begins");
    let (_, after) = rest.split_once(END).expect("the section ends");
    let right = format!("{before}{BEGIN}\n{}\n{END}{after}", rules());
    check(&path, &written, &right);
}

/// The names that releases have had. Dashboards and scripts hold them: a name may come, and none
/// may change or go. It is not written by `PORTCULLIS_BLESS`.
#[test]
fn no_rule_name_is_lost_and_none_is_new_without_being_written_down() {
    let text = include_str!("../policy/rule-names");
    let mut written: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let names: Vec<String> = Rule::fixed().map(Rule::documented_name).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    written.sort_unstable();
    names.sort_unstable();
    assert_eq!(
        names, written,
        "on the left the rules, on the right tes../policy/rule-names"
    );
}

#[test]
fn every_rule_has_one_sentence_that_says_what_it_means() {
    for rule in Rule::fixed() {
        let meaning = rule.meaning();
        let begins = meaning.starts_with(|c: char| c.is_ascii_uppercase());
        assert!(begins && meaning.ends_with('.'), "{rule}: {meaning}");
    }
}
