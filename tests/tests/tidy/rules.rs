//! The house rules that a program can check, each as a function from what it looks at to what is
//! wrong.
//!
//! Rustc and clippy keep the others (the workspace's lints). Each rule is shown below to be able to
//! fail.

use crate::source::{Source, lines_with};

/// A file over this length wants to be two; the aim is around 400.
const LINES_MAX: usize = 600;

/// Names that say nothing about what is in a file.
const EMPTY_NAMES: &[&str] = &[
    "util", "utils", "helper", "helpers", "manager", "common", "misc",
];

/// The one place whose name is exempt: what program and userspace share.
const COMMON: &str = "ebpf/common";

/// Where each of these may be known, of `gateway` and `ebpf` (chores, benches and tests use what
/// they like).
const CONFINED: &[(&str, &[&str])] = &[
    ("tokio", &["gateway/src/control", "gateway/src/main"]),
    ("hyper", &["gateway/src/control"]),
    ("aya", &["gateway/src/filter"]),
    ("aya_ebpf", &["ebpf/program"]),
    ("ppp", &["gateway/src/fronts"]),
    ("rustls", &["gateway/src/tls"]),
    ("argon2", &["gateway/src/auth"]),
    ("rpassword", &["gateway/src/cli"]),
    ("clap", &["gateway/src/cli", "gateway/src/main"]),
    ("mimalloc", &["gateway/src/cli", "gateway/src/main"]),
    ("io_uring", &["gateway/uring"]),
    (
        "portcullis_uring",
        &[
            "gateway/src/control",
            "gateway/src/doctor",
            "gateway/src/driver",
            "gateway/uring",
        ],
    ),
    ("anyhow", &[]),
];

const UNSAFE: &[&str] = &["gateway/uring", "gateway/src/filter", "ebpf/program"];

/// What takes the time as an argument and makes no system call. (An address is not a system call:
/// `std::net::IpAddr`.)
const PURE: &[&str] = &[
    "gateway/smtp/src",
    "gateway/src/fronts",
    "gateway/src/policy",
    "gateway/src/relay",
    "gateway/src/worker",
    "gateway/src/spool/format",
    "ebpf/common/src",
    "tests/src/simulation",
];

/// What reaches for the clock, the disk, the network or the process.
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "std::fs",
    "std::process",
    "std::thread",
    "std::env",
    "fs",
    "File",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "nix",
];

/// Crates that may depend on nothing else, by their manifests.
const DEPENDENCIES: &[(&str, &[&str])] = &[
    ("gateway/smtp/Cargo.toml", &["memchr"]),
    ("gateway/uring/Cargo.toml", &["io-uring", "libc"]),
    ("ebpf/common/Cargo.toml", &["bytemuck"]),
];

/// The top level, which is fixed, with the files that every repository has beside it.
const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "gateway",
    "ebpf",
    "xtask",
    "benches",
    "tests",
    "README.md",
    "Cargo.lock",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "CHANGELOG.md",
    ".cargo",
    ".ci",
    ".git",
    ".gitignore",
];

/// Whether a file is this file, or below this directory.
fn is_within(path: &str, place: &str) -> bool {
    path.strip_prefix(place)
        .is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
}

fn is_within_any(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| is_within(path, place))
}

/// Everything that is wrong with one file.
pub(crate) fn check(source: &Source) -> Vec<String> {
    let rules = [
        opening,
        length,
        name,
        confinement,
        unsafe_code,
        safety_comments,
        purity,
        promises,
    ];
    rules
        .iter()
        .flat_map(|rule| rule(source))
        .map(|fault| format!("{}{fault}", source.path))
        .collect()
}

fn opening(source: &Source) -> Vec<String> {
    if source.text.starts_with("//!") {
        return Vec::new();
    }
    vec![":1: does not open with //! lines that say what it is and why".to_owned()]
}

fn length(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    if lines <= LINES_MAX {
        return Vec::new();
    }
    vec![format!(": {lines} lines: which two subjects are in it?")]
}

fn name(source: &Source) -> Vec<String> {
    let path = source.path.strip_prefix(COMMON).unwrap_or(&source.path);
    path.split(['/', '.', '_', '-'])
        .filter(|part| EMPTY_NAMES.contains(part))
        .map(|part| format!(": \"{part}\" does not say what is in it"))
        .collect()
}

fn confinement(source: &Source) -> Vec<String> {
    if !is_within_any(&source.path, &["gateway", "ebpf"]) || source.path.contains("/tests/") {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for &(dependency, places) in CONFINED {
        if !is_within_any(&source.path, places) {
            for line in lines_with(source.shipped_code(), dependency) {
                faults.push(format!(":{line}: {dependency} is known only in {places:?}"));
            }
        }
    }
    faults
}

fn unsafe_code(source: &Source) -> Vec<String> {
    if is_within_any(&source.path, UNSAFE) {
        return Vec::new();
    }
    lines_with(&source.code, "unsafe")
        .into_iter()
        .map(|line| format!(":{line}: unsafe outside of {UNSAFE:?}"))
        .collect()
}

/// Clippy has this rule too; the program is a workspace of its own, without the lints of this one.
fn safety_comments(source: &Source) -> Vec<String> {
    let code: Vec<&str> = source.code.lines().collect();
    let comments: Vec<&str> = source.comments.lines().collect();
    lines_with(&source.code, "unsafe")
        .into_iter()
        .filter(|&line| {
            let here = code[line - 1];
            let is_declaration = here.contains("unsafe fn") || here.contains("unsafe extern");
            // On the line itself, or above the statement that it is part of.
            let first = line.saturating_sub(8);
            let is_argued = comments[first..line]
                .iter()
                .any(|text| text.contains("SAFETY:"));
            !is_declaration && !here.contains("#[unsafe(") && !is_argued
        })
        .map(|line| format!(":{line}: unsafe without a SAFETY: line"))
        .collect()
}

fn purity(source: &Source) -> Vec<String> {
    if !is_within_any(&source.path, PURE) {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for &word in IMPURE {
        for line in lines_with(source.shipped_code(), word) {
            faults.push(format!(
                ":{line}: {word} in what takes the time and the world as arguments"
            ));
        }
    }
    faults
}

/// What is not written yet is in an issue, not in the source.
fn promises(source: &Source) -> Vec<String> {
    ["TODO", "FIXME", "XXX"]
        .iter()
        .flat_map(|word| {
            lines_with(&source.comments, word)
                .into_iter()
                .map(move |line| format!(":{line}: {word}"))
        })
        .collect()
}

/// What a manifest depends on and may not.
pub(crate) fn dependencies(path: &str, manifest: &toml::Table) -> Vec<String> {
    let Some((_, allowed)) = DEPENDENCIES.iter().find(|(of, _)| *of == path) else {
        return Vec::new();
    };
    let tables = ["dependencies", "build-dependencies", "target"];
    tables
        .iter()
        .filter_map(|table| manifest.get(*table)?.as_table())
        .flat_map(toml::Table::keys)
        .filter(|name| !allowed.contains(&name.as_str()))
        .map(|name| format!("{path}: depends on {name}; it may depend on {allowed:?} alone"))
        .collect()
}

/// The manifests that [`dependencies`] has something to say about.
pub(crate) fn manifests() -> impl Iterator<Item = &'static str> {
    DEPENDENCIES.iter().map(|(path, _)| *path)
}

/// What is at the top and does not belong there; `ignored` is `.gitignore`.
pub(crate) fn top_level<'a>(
    names: impl IntoIterator<Item = &'a str>,
    ignored: &str,
) -> Vec<String> {
    let is_ignored = |name: &str| {
        ignored
            .lines()
            .any(|line| line.trim_end_matches('/').strip_prefix('/') == Some(name))
    };
    names
        .into_iter()
        .filter(|name| !TOP_LEVEL.contains(name) && !is_ignored(name))
        .map(|name| format!("{name}: the top level is fixed, and this is not part of it"))
        .collect()
}

/// Metrics (`portcullis_...`) and log messages (WARN `...`, ERROR `...`, INFO `...`) of a document
/// that the code does not have.
pub(crate) fn operations(document: &str, code: &str) -> Vec<String> {
    // A message may go over several lines.
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (document, code) = (one_line(document), one_line(code));
    let code = code.replace("\\ ", "");
    let quoted = |text: &str| text.split('`').nth(1).map(str::to_owned);
    let mut missing = Vec::new();
    let metrics = document.match_indices("portcullis_").map(|(at, _)| {
        let name = document[at..].chars();
        name.take_while(|c| c.is_ascii_lowercase() || *c == '_')
            .collect::<String>()
    });
    missing.extend(metrics.filter(|name| !code.contains(&format!("\"{name}\""))));
    for level in ["WARN `", "ERROR `", "INFO `"] {
        for (at, _) in document.match_indices(level) {
            let message = quoted(&document[at..]).unwrap_or_default();
            let mut parts = message.split("...").map(str::trim);
            if !parts.all(|part| code.contains(part.trim_end_matches(':'))) {
                missing.push(message);
            }
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(path: &str, text: &str) -> usize {
        check(&Source::new(path, &format!("//! What and why.\n{text}"))).len()
    }

    #[track_caller]
    fn assert_broken(path: &str, text: &str) {
        assert_eq!(faults(path, text), 1, "{path}: {text}");
    }

    #[track_caller]
    fn assert_kept(path: &str, text: &str) {
        assert_eq!(faults(path, text), 0, "{path}: {text}");
    }

    #[test]
    fn a_file_that_does_not_say_what_it_is_is_found() {
        assert_eq!(check(&Source::new("a.rs", "use std::io;")).len(), 1);
        assert_kept("a.rs", "use std::io;");
    }

    #[test]
    fn a_file_that_grew_too_long_is_found() {
        assert_broken("a.rs", &"\n".repeat(LINES_MAX));
        assert_kept("a.rs", &"\n".repeat(LINES_MAX - 1));
    }

    #[test]
    fn a_name_that_says_nothing_is_found() {
        assert_broken("gateway/src/utils.rs", "");
        assert_broken("gateway/src/policy/list_helper.rs", "");
        assert_broken("gateway/src/manager/mod.rs", "");
        assert_broken("tests/src/common/mod.rs", "");
        assert_kept("ebpf/common/src/lib.rs", "");
        assert_kept("gateway/src/commonplace.rs", "");
    }

    #[test]
    fn a_dependency_outside_of_its_place_is_found() {
        assert_broken("gateway/src/worker/mod.rs", "use tokio::spawn;");
        assert_broken("gateway/src/main.rs", "use aya::Ebpf;");
        assert_broken(
            "gateway/src/relay/mod.rs",
            "fn f(c: rustls::ServerConfig) {}",
        );
        assert_broken(
            "gateway/src/config/mod.rs",
            "#[derive(clap::Args)]\nstruct A;",
        );
        assert_broken("gateway/src/cli/run.rs", "use anyhow::Result;");
        assert_broken("gateway/src/worker/mod.rs", "use portcullis_uring::Ring;");
        assert_kept("gateway/src/control.rs", "use tokio::spawn;");
        assert_kept("gateway/src/control/dns.rs", "use tokio::spawn;");
        assert_kept(
            "gateway/src/worker/mod.rs",
            "// Why not tokio: ...\nlet a = \"tokio\";",
        );
        assert_kept("xtask/src/main.rs", "use anyhow::Result;");
    }

    #[test]
    fn unsafe_code_outside_of_its_places_is_found() {
        let argued = "// SAFETY: the slice is not empty.\nunsafe { f() }";
        assert_broken("gateway/src/worker/mod.rs", argued);
        assert_broken("tests/tests/a.rs", argued);
        assert_kept("gateway/uring/src/ring.rs", argued);
        assert_kept("gateway/smtp/src/lib.rs", "#![forbid(unsafe_code)]");
    }

    #[test]
    fn unsafe_code_without_an_argument_is_found() {
        assert_broken("ebpf/program/src/main.rs", "fn f() { unsafe { g() } }");
        assert_broken("ebpf/program/src/main.rs", "unsafe impl Send for A {}");
        assert_kept(
            "ebpf/program/src/main.rs",
            "// SAFETY: checked above.\nlet a =\n    unsafe { g() };",
        );
        assert_kept(
            "ebpf/program/src/main.rs",
            "#[unsafe(no_mangle)]\nunsafe fn f() {}",
        );
    }

    #[test]
    fn a_clock_or_a_disk_in_what_is_pure_is_found() {
        assert_broken("gateway/src/policy/mod.rs", "let now = Instant::now();");
        assert_broken("gateway/src/policy/lists.rs", "let text = fs::read(path);");
        assert_broken(
            "gateway/src/relay/transaction.rs",
            "use std::net::TcpStream;",
        );
        assert_broken(
            "gateway/smtp/src/server/mod.rs",
            "let now = SystemTime::now();",
        );
        assert_kept(
            "gateway/src/policy/mod.rs",
            "use std::net::IpAddr;\nfn f(now: Duration) {}",
        );
        assert_kept(
            "gateway/src/policy/mod.rs",
            "#[cfg(test)]\nmod tests { use std::fs; }",
        );
        assert_kept("gateway/src/control/mod.rs", "let now = Instant::now();");
    }

    #[test]
    fn a_promise_in_a_comment_is_found() {
        assert_broken("a.rs", "// TODO: the rest");
        assert_kept("a.rs", "let todos = \"TODO\";");
    }

    #[test]
    fn a_dependency_of_a_crate_that_has_none_is_found() {
        let manifest = |text: &str| text.parse::<toml::Table>().unwrap();
        let path = "gateway/smtp/Cargo.toml";
        let good = manifest(
            "[dependencies]\nmemchr.workspace = true\n[dev-dependencies]\nproptest = \"1\"",
        );
        assert!(dependencies(path, &good).is_empty());
        let bad = manifest("[dependencies]\nmemchr = \"2\"\nbytes = \"1\"");
        assert_eq!(dependencies(path, &bad).len(), 1);
        assert!(dependencies("gateway/Cargo.toml", &bad).is_empty());
    }

    #[test]
    fn a_new_thing_at_the_top_is_found() {
        let names = ["Cargo.toml", "gateway", "target", "docs"];
        assert_eq!(top_level(names, "/target\n").len(), 1);
    }

    #[test]
    fn a_metric_or_a_message_that_the_code_lacks_is_a_fault() {
        let code = "text.family(\"portcullis_up\"); warn!(\"it is down: \\\n    look\");";
        let good = "`portcullis_up{x}`: WARN `it is down: look`, WARN `it ... look`";
        assert_eq!(operations(good, code), Vec::<String>::new());
        let bad = "`portcullis_down`: WARN `it is up`";
        assert_eq!(operations(bad, code), ["portcullis_down", "it is up"]);
    }
}
