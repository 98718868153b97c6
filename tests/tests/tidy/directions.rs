//! Who may know whom among the modules of `gateway/src`: a module knows those that stand below it
//! in the table, and no other of its own level. So there is no circle, and a change below can be
//! read without what is above.
//!
//! What a module knows is read from its paths (`crate::x`, `portcullis::x`, `super::super::x`,
//! trees of `use` included). Tests know what they like. Rejected: `cargo-modules` and the like,
//! which want a build for what a page of text says.

use crate::source::Source;

/// The modules, the top first. What stands on one line does not know each other.
const LEVELS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["control", "doctor"],
    &["filter", "worker"],
    &["explain"],
    &["config"],
    &["auth"],
    &["policy", "relay"],
    &["lists", "driver", "tls"],
    // Leaves that every module may know.
    &["fronts", "netns", "printable"],
];

/// Parts of a module that must not know a part beside them: a circle of two that was there once.
const APART: &[(&str, &str)] = &[
    ("control::lists", "control::reload"),
    ("control::lists", "control::watch"),
    ("control::reload", "control::watch"),
];

/// What may nevertheless know a module, and why. Each has to be needed: one that is not is a fault.
const EXCEPTIONS: &[Exception] = &[Exception {
    place: "doctor",
    knows: "control",
    why: "it rehearses a start by the code of a start, which lives there",
}];

pub(crate) struct Exception {
    /// A module, with all that is in it.
    place: &'static str,
    /// The module of the top level that it may know.
    knows: &'static str,
    pub(crate) why: &'static str,
}

/// A path that a module names, from the top of the crate.
struct Named {
    line: usize,
    path: Vec<String>,
}

/// What one file knows and may not; and the exceptions that it needs.
pub(crate) fn check(source: &Source) -> (Vec<String>, Vec<&'static Exception>) {
    let (mut faults, mut needed) = (Vec::new(), Vec::new());
    let Some(module) = module_of(&source.path) else {
        return (faults, needed);
    };
    let Some(own) = module.first() else {
        return (faults, needed);
    };
    let Some(own_level) = level(own) else {
        let fault = format!(
            "{}: the module {own} has no place in the table",
            source.path
        );
        return (vec![fault], needed);
    };
    for Named { line, path } in paths(source.shipped_code(), &module) {
        let Some(known) = path.first() else {
            continue;
        };
        let is_apart = |(from, to): &&(&str, &str)| is_in(&module, from) && is_in(&path, to);
        if let Some((from, to)) = APART.iter().find(is_apart) {
            faults.push(format!("{}:{line}: {from} may not know {to}", source.path));
        }
        let Some(level) = level(known).filter(|_| known != own) else {
            continue;
        };
        if level > own_level {
            continue;
        }
        let allows = |it: &&Exception| is_in(&module, it.place) && it.knows == known;
        match EXCEPTIONS.iter().find(allows) {
            Some(exception) => needed.push(exception),
            None => faults.push(format!(
                "{}:{line}: {own} may not know {known}",
                source.path
            )),
        }
    }
    (faults, needed)
}

/// The exceptions that are not among those that are needed.
pub(crate) fn superfluous(needed: &[&Exception]) -> Vec<String> {
    let is_needed = |it: &&Exception| needed.iter().any(|needed| std::ptr::eq(*needed, *it));
    let superfluous = EXCEPTIONS.iter().filter(|it| !is_needed(it));
    superfluous
        .map(|it| {
            let Exception { place, knows, why } = it;
            format!("{place} does not know {knows} any more: take the exception out ({why})")
        })
        .collect()
}

fn level(module: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&module))
}

/// Whether a path leads to this module, or into it.
fn is_in(path: &[String], module: &str) -> bool {
    let parts: Vec<&str> = module.split("::").collect();
    path.len() >= parts.len() && path.iter().zip(parts).all(|(a, b)| a == b)
}

/// The module that a file of `gateway/src` is; none for a file elsewhere, and for tests.
fn module_of(path: &str) -> Option<Vec<String>> {
    let path = path.strip_prefix("gateway/src/")?.strip_suffix(".rs")?;
    let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
    if module.iter().any(|part| part == "tests") || path == "lib" {
        return None;
    }
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    Some(module)
}

/// All paths in the code of a module that begin at the top of the crate, or lead upwards.
fn paths(code: &str, module: &[String]) -> Vec<Named> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut named = Vec::new();
    for start in ["crate::", "portcullis::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            // Not the rest of a name, and not the second of `super::super::`.
            if before.is_some_and(|c| is_word(c) || c == ':') {
                continue;
            }
            let mut text = &code[at..];
            let mut ends = Vec::new();
            tree(&mut text, &mut Vec::new(), &mut ends);
            let line = code[..at].lines().count().max(1);
            let line = line + usize::from(code[..at].ends_with('\n'));
            named.extend(ends.into_iter().map(|path| Named {
                line,
                path: from_the_top(path, module),
            }));
        }
    }
    named.sort_by_key(|named| named.line);
    named
}

/// The paths of a tree (`a::{b, c::d}`), each from its beginning.
fn tree(text: &mut &str, before: &mut Vec<String>, ends: &mut Vec<Vec<String>>) {
    let depth = before.len();
    loop {
        let rest = text.trim_start();
        let length = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if let Some(inner) = rest.strip_prefix('{') {
            *text = inner;
            while !text.trim_start().starts_with('}') {
                let left = text.len();
                tree(text, before, ends);
                *text = text.trim_start().trim_start_matches(',');
                if text.len() == left {
                    break;
                }
            }
            *text = text.trim_start().strip_prefix('}').unwrap_or(text);
            break;
        }
        if length == 0 {
            ends.push(before.clone());
            break;
        }
        before.push(rest[..length].to_owned());
        *text = &rest[length..];
        match text.strip_prefix("::") {
            Some(more) => *text = more,
            None => {
                ends.push(before.clone());
                // `as name`: not a path.
                if let Some(renamed) = text.trim_start().strip_prefix("as ") {
                    *text = renamed.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
                }
                break;
            }
        }
    }
    before.truncate(depth);
}

/// A path as it was written, from the top of the crate.
fn from_the_top(path: Vec<String>, module: &[String]) -> Vec<String> {
    let ups = path.iter().take_while(|part| *part == "super").count();
    if ups == 0 {
        return path.into_iter().skip(1).collect();
    }
    let kept = module.len().saturating_sub(ups);
    let kept = module.iter().take(kept).cloned();
    kept.chain(path.into_iter().skip(ups)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(path: &str, code: &str) -> Vec<String> {
        check(&Source::new(path, code)).0
    }

    #[track_caller]
    fn assert_broken(path: &str, code: &str) {
        assert_eq!(faults(path, code).len(), 1, "{path}: {code}");
    }

    #[track_caller]
    fn assert_kept(path: &str, code: &str) {
        assert_eq!(faults(path, code), [""; 0], "{path}: {code}");
    }

    #[test]
    fn a_module_that_knows_what_is_above_it_is_found() {
        assert_broken(
            "gateway/src/lists/snapshot.rs",
            "use crate::filter::KernelMemory;",
        );
        assert_broken(
            "gateway/src/policy/mod.rs",
            "use crate::{lists, config::Config};",
        );
        assert_broken(
            "gateway/src/config/mod.rs",
            "fn f() { crate::control::g() }",
        );
        assert_broken("gateway/src/policy/mod.rs", "use super::config::Config;");
        assert_broken(
            "gateway/src/lists/file/left_over.rs",
            "use super::super::super::config;",
        );
        assert_broken(
            "gateway/src/netns.rs",
            "use crate::config::{\n    self,\n    Config,\n};\n"
                .replace("self,\n    ", "")
                .as_str(),
        );
        assert_broken("gateway/src/control/mod.rs", "use portcullis::cli::run;");
    }

    #[test]
    fn modules_of_one_level_that_know_each_other_are_found() {
        assert_broken(
            "gateway/src/control/state.rs",
            "use crate::doctor::examine;",
        );
        assert_broken("gateway/src/filter/mod.rs", "use crate::worker::Shared;");
        assert_broken("gateway/src/relay/pool.rs", "use crate::policy::Rule;");
    }

    #[test]
    fn a_module_knows_what_is_below_it_and_its_own_parts() {
        assert_kept(
            "gateway/src/cli/lists/compile.rs",
            "use portcullis::lists::file;",
        );
        assert_kept(
            "gateway/src/cli/run.rs",
            "use crate::cli::finished; use super::table::T;",
        );
        assert_kept("gateway/src/relay/pool.rs", "use crate::driver::Conn;");
        assert_kept(
            "gateway/src/lists/build/mod.rs",
            "use super::super::entries::Entries;",
        );
        assert_kept(
            "gateway/src/lists/mod.rs",
            "use crate::printable::printable;",
        );
    }

    #[test]
    fn tests_and_text_know_what_they_like() {
        let tests = "#[cfg(test)]\nmod tests { use crate::config; }";
        assert_kept("gateway/src/lists/entries.rs", tests);
        assert_kept("gateway/src/policy/tests.rs", "use crate::config;");
        assert_kept(
            "gateway/src/lists/mod.rs",
            "// As crate::config.\nconst A: &str = \"crate::config\";",
        );
        assert_kept("tests/src/lib.rs", "use portcullis::config;");
    }

    #[test]
    fn a_circle_that_was_taken_apart_is_found_again() {
        assert_broken(
            "gateway/src/control/lists.rs",
            "use super::{Control, reload, names};",
        );
        assert_broken(
            "gateway/src/control/reload.rs",
            "use super::watch::{self as w};",
        );
        assert_kept(
            "gateway/src/control/reload.rs",
            "use super::{Control, lists};",
        );
        assert_kept("gateway/src/control/reload.rs", "use crate::lists::file;");
    }

    #[test]
    fn a_module_without_a_place_in_the_table_is_found() {
        assert_broken("gateway/src/queue/mod.rs", "");
    }

    #[test]
    fn an_exception_holds_where_it_is_made_and_is_found_when_nothing_needs_it() {
        let code = "use crate::control::start;";
        let (faults, needed) = check(&Source::new("gateway/src/doctor/machine.rs", code));
        assert_eq!((faults.len(), needed.len()), (0, 1));
        assert_eq!(superfluous(&needed).len(), EXCEPTIONS.len() - 1);
        assert_broken("gateway/src/filter/mod.rs", code);
    }
}
