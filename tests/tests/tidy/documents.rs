//! What the documents promise: that the README is short, that links lead somewhere, that code cites
//! only documents that are here, and that no metric is missing from the operator's document.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::source::Source;

/// A newcomer reads this much; the rest has documents of its own.
const README_LINES_MAX: usize = 150;

/// All documents of the repository: path and text.
pub(crate) type Documents = BTreeMap<PathBuf, String>;

/// What is wrong with the length of the README.
pub(crate) fn readme(text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > README_LINES_MAX).then(|| {
        format!("README.md: {lines} lines, more than {README_LINES_MAX}: gateway/docs has room")
    })
}

/// The links that lead to no file (`exists` knows them all, from the top of the repository) or to
/// no heading.
pub(crate) fn dead_links(documents: &Documents, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let headings: BTreeMap<&PathBuf, BTreeSet<String>> = documents
        .iter()
        .map(|(path, text)| (path, anchors(text)))
        .collect();
    let mut dead = Vec::new();
    for (path, text) in documents {
        for link in links(text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => normal(&path.parent().unwrap_or(Path::new("")).join(file)),
            };
            let is_file = documents.contains_key(&target) || exists(&target);
            let has_heading = headings
                .get(&target)
                .is_some_and(|known| known.contains(anchor));
            if !is_file || !(anchor.is_empty() || has_heading) {
                dead.push(format!("{}: {link} leads nowhere", path.display()));
            }
        }
    }
    dead
}

/// Targets of `[text](target)` within the repository.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1);
    let targets = targets.filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets.filter(|target| !target.contains("://"))
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        is_code ^= line.starts_with("```");
        if is_code || !line.starts_with('#') {
            continue;
        }
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        anchors.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    anchors
}

fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}

/// Names of documents in the comments of a source file that the repository lacks.
/// `known` are the file names that it has.
pub(crate) fn unknown_citations(source: &Source, known: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(source.comments.lines()) {
        let words = line.split(|c: char| !(c.is_alphanumeric() || matches!(c, '.' | '-' | '_')));
        for word in words.map(|word| word.trim_end_matches('.')) {
            if word.len() > 3 && word.ends_with(".md") && !known.contains(word) {
                faults.push(format!("{}:{number}: {word} is not here", source.path));
            }
        }
    }
    faults
}

/// Metrics that the code has and the operator's document does not explain.
pub(crate) fn unexplained_metrics(document: &str, code: &str) -> Vec<String> {
    let mut missing = BTreeSet::new();
    for (at, _) in code.match_indices("\"portcullis_") {
        let name = code[at + 1..].split('"').next().unwrap_or_default();
        let is_metric = name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_');
        let is_explained = document.match_indices(name).any(|(at, _)| {
            let next = document[at + name.len()..].chars().next();
            !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
        });
        if is_metric && !is_explained {
            missing.insert(name.to_owned());
        }
    }
    missing.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_readme_that_grew_is_found() {
        assert_eq!(readme(&"x\n".repeat(README_LINES_MAX)), None);
        assert!(readme(&"x\n".repeat(README_LINES_MAX + 1)).is_some());
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let document = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
        let good = "# The `a`, and B!\n[x](#the-a-and-b) [y](../c.md#c) [z](../LICENSE) \
                    [w](https://example.org/#x)\n";
        let bad = "[x](#none) [y](../c.md#none) [z](none.md)\n```\n# none\n```\n";
        let c = document("c.md", "## C\n");
        let dead = |text| {
            let documents = [document("docs/a.md", text), c.clone()].into();
            dead_links(&documents, |path| path == Path::new("LICENSE")).len()
        };
        assert_eq!((dead(good), dead(bad)), (0, 3));
    }

    #[test]
    fn a_document_that_is_not_here_is_found() {
        let known = ["README.md".to_owned()].into();
        let faults = |text| unknown_citations(&Source::new("a.rs", text), &known).len();
        assert_eq!(
            faults("// See README.md.\nlet a = \"plan.md\"; // and `docs/README.md`"),
            0
        );
        assert_eq!(faults("// See plan.md, too."), 1);
    }

    #[test]
    fn a_metric_that_no_document_explains_is_found() {
        let code = "gauge(\"portcullis_up\"); gauge(\"portcullis_up_total\");";
        assert_eq!(
            unexplained_metrics("`portcullis_up_total`", code),
            ["portcullis_up"]
        );
        assert_eq!(
            unexplained_metrics("`portcullis_up` `portcullis_up_total{x}`", code),
            [""; 0]
        );
    }
}
