//! The walks of `architecture.md`: a walk is a straight list of functions, each with its file. The
//! files are there, the functions are in them, and no function is visited twice.
//!
//! A function is what stands in backticks with a `::` and ends in a small letter's word
//! (`Session::recipient`); a file ends in `.rs`. Where a function stands without its `::` it is not
//! looked for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where a path of a walk may begin, and what that stands for.
const BEGINNINGS: &[(&str, &str)] = &[
    ("program/", "ebpf/program/src/"),
    ("common/", "ebpf/common/src/"),
    ("smtp/", "gateway/smtp/"),
    ("", "gateway/src/"),
];

/// What is wrong with the walks of a document. `read` gives the text of a file.
pub(crate) fn check(document: &str, read: impl Fn(&Path) -> Option<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut number = 0;
    for walk in document.split("\n## ").filter(|it| it.starts_with("Walk:")) {
        number += 1;
        let (title, text) = walk.split_once('\n').unwrap_or((walk, ""));
        let mut code = String::new();
        for name in quoted(text).filter(|name| name.ends_with(".rs")) {
            match read(&path(name)) {
                Some(file) => code.push_str(&file),
                None => faults.push(format!("{title}: {name} is not here")),
            }
        }
        let mut visited = BTreeSet::new();
        for function in quoted(steps(text)).filter(|name| is_function(name)) {
            let name = function.rsplit("::").next().unwrap_or(function);
            if !code.contains(&format!("fn {name}")) {
                faults.push(format!("{title}: {function} is in none of its files"));
            }
            if !visited.insert(function) {
                faults.push(format!("{title}: {function} is visited twice"));
            }
        }
        if visited.is_empty() {
            faults.push(format!("{title}: no function"));
        }
    }
    if number == 0 {
        faults.push("no walk".to_owned());
    }
    faults
}

/// The numbered steps, without what stands before and behind them.
fn steps(text: &str) -> &str {
    let begin = text.find("\n1. ").unwrap_or(text.len());
    let steps = &text[begin..];
    let is_end = |at: &usize| {
        let rest = &steps[at + 2..];
        !rest.starts_with(|c: char| c.is_ascii_digit() || c == ' ')
    };
    let mut gaps = steps.match_indices("\n\n").map(|(at, _)| at);
    &steps[..gaps.find(is_end).unwrap_or(steps.len())]
}

/// What stands in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn is_function(name: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_lowercase())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    name.rsplit_once("::")
        .is_some_and(|(_, word)| is_word(word))
}

fn path(name: &str) -> PathBuf {
    let of = |(short, long): &(&str, &str)| Some(format!("{long}{}", name.strip_prefix(short)?));
    BEGINNINGS.iter().find_map(of).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(steps: &str) -> Vec<String> {
        let read = |path: &Path| (path == "gateway/src/a.rs").then(|| "fn first() {}".to_owned());
        check(&format!("# X\n\n## Walk: w\n\nBefore.\n{steps}"), read)
    }

    #[test]
    fn a_function_or_a_file_that_is_gone_is_found() {
        assert_eq!(
            faults("\n1. `A::first` (`a.rs`).\n\nBehind: `A::other`.\n"),
            [""; 0]
        );
        let gone = faults("\n1. `A::first` (`a.rs`).\n2. `A::second`.\n");
        assert_eq!(gone, ["Walk: w: A::second is in none of its files"]);
        let gone = faults("\n1. `A::first` (`a.rs`, `b.rs`).\n");
        assert_eq!(gone, ["Walk: w: b.rs is not here"]);
    }

    #[test]
    fn a_place_that_is_visited_twice_is_found() {
        let twice = faults("\n1. `A::first` (`a.rs`).\n2. `A::first`.\n");
        assert_eq!(twice, ["Walk: w: A::first is visited twice"]);
    }

    #[test]
    fn a_document_without_walks_is_found() {
        assert_eq!(check("# X\n", |_| None), ["no walk"]);
        assert_eq!(faults("\nNothing.\n"), ["Walk: w: no function"]);
    }
}
