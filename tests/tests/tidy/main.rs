//! The house rules as a test: who may know whom, where unsafe code is, how files open and how long
//! they get.
//!
//! A rule without a check is forgotten in a month, and a reviewer's time is better spent on what no
//! program can see.

mod columns;
mod directions;
mod documents;
mod rules;
mod source;
mod walks;
mod words;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use source::Source;

/// The top of the repository.
fn top() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// All Rust files below a directory, but not what was built.
fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    files_with(&["rs"], directory, found)
}

/// All files below a directory with one of these extensions, but not what was built.
fn files_with(extensions: &[&str], directory: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            let is_built = entry.file_name() == "target" || entry.file_name() == ".git";
            if !is_built {
                files_with(extensions, &path, found)?;
            }
        } else if path
            .extension()
            .is_some_and(|found| extensions.iter().any(|one| found == *one))
        {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn every_file_keeps_the_house_rules() {
    let mut files = Vec::new();
    rust_files(top(), &mut files).expect("the repository can be read");
    files.sort();
    assert!(
        files.len() > 20,
        "only {} files: looked in the wrong place?",
        files.len()
    );
    let faults: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let path = file.strip_prefix(top()).expect("found below the top");
            let text = fs::read_to_string(file).expect("source is UTF-8");
            rules::check(&Source::new(&path.to_string_lossy(), &text))
        })
        .collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn no_module_knows_one_that_stands_above_or_beside_it() {
    let mut files = Vec::new();
    rust_files(&top().join("gateway/src"), &mut files).expect("the repository can be read");
    files.sort();
    let (mut faults, mut needed) = (Vec::new(), Vec::new());
    for file in files {
        let path = file.strip_prefix(top()).expect("found below the top");
        let text = fs::read_to_string(&file).expect("source is UTF-8");
        let (found, exceptions) = directions::check(&Source::new(&path.to_string_lossy(), &text));
        faults.extend(found);
        needed.extend(exceptions);
    }
    faults.extend(directions::superfluous(&needed));
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Places whose texts do not keep the rule yet. A place leaves this list when its texts keep it;
/// nothing is added.
const NOT_YET: &[&str] = &[];

#[test]
fn every_text_keeps_to_100_columns_and_to_the_words_of_the_field() {
    let mut files = Vec::new();
    files_with(&["rs", "md"], top(), &mut files).expect("the repository can be read");
    files.sort();
    let mut faults = Vec::new();
    for file in files {
        let path = file.strip_prefix(top()).expect("found below the top");
        if NOT_YET.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a text is UTF-8");
        let path = path.to_string_lossy();
        faults.extend(columns::check(&path, &text));
        faults.extend(words::check(&path, &text));
    }
    let number = faults.len();
    assert!(faults.is_empty(), "{number} faults\n{}", faults.join("\n"));
}

/// Metrics and log messages that the operator's document names are still in the code: a rule of an
/// alert system or a search in a log is written from there.
#[test]
fn operations_names_no_metric_and_no_log_message_that_is_not_in_the_code() {
    let document = top().join("gateway/docs/operations.md");
    let document = fs::read_to_string(document).expect("the document is UTF-8");
    let mut files = Vec::new();
    rust_files(&top().join("gateway/src"), &mut files).expect("the repository can be read");
    let code: String = files
        .iter()
        .map(|file| fs::read_to_string(file).expect("source is UTF-8"))
        .collect();
    let faults = rules::operations(&document, &code);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// The documents that a reader is sent to: links, headings, the length of the README, and what the
/// code cites.
#[test]
fn documents_are_short_lead_somewhere_and_are_here() {
    let read = |path: &Path| fs::read_to_string(top().join(path)).expect("the text is UTF-8");
    let mut paths = Vec::new();
    files_with(&["md"], top(), &mut paths).expect("the repository can be read");
    let documents: documents::Documents = paths
        .iter()
        .map(|path| {
            path.strip_prefix(top())
                .expect("found below the top")
                .to_owned()
        })
        .map(|path| (path.clone(), read(&path)))
        .collect();
    let mut faults = documents::dead_links(&documents, |path| top().join(path).exists());
    faults.extend(documents::readme(&read(Path::new("README.md"))));
    let names = documents.keys().filter_map(|path| path.file_name());
    let names = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let mut sources = Vec::new();
    files_with(&["rs"], top(), &mut sources).expect("the repository can be read");
    for source in &sources {
        let path = source.strip_prefix(top()).expect("found below the top");
        let source = Source::new(&path.to_string_lossy(), &read(path));
        faults.extend(documents::unknown_citations(&source, &names));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// The walks lead a newcomer through the code, function by function.
#[test]
fn the_walks_of_the_architecture_lead_through_the_code_as_it_is() {
    let document = fs::read_to_string(top().join("gateway/docs/architecture.md"));
    let document = document.expect("the document is UTF-8");
    let faults = walks::check(&document, |path| fs::read_to_string(top().join(path)).ok());
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn operations_explains_every_metric() {
    let document = fs::read_to_string(top().join("gateway/docs/operations.md"));
    let document = document.expect("the document is UTF-8");
    let mut files = Vec::new();
    files_with(&["rs"], &top().join("gateway/src/control"), &mut files).expect("it can be read");
    let text = |file: &PathBuf| fs::read_to_string(file).expect("source is UTF-8");
    let code: String = files.iter().map(text).collect();
    assert_eq!(documents::unexplained_metrics(&document, &code), [""; 0]);
}

#[test]
fn the_tests_have_a_document_that_names_each_suite() {
    let document = fs::read_to_string(top().join("tests/README.md"));
    let document = document.expect("the document is UTF-8");
    let suites = fs::read_dir(top().join("tests/tests")).expect("it can be read");
    let suites = suites.map(|suite| suite.expect("it can be read").path());
    let suites = suites.filter_map(|suite| Some(suite.file_stem()?.to_str()?.to_owned()));
    let is_named = |suite: &String| {
        let mut names = document.split(['`', ' ', '/']);
        names.any(|name| name == suite.as_str())
    };
    let missing: Vec<_> = suites.filter(|suite| !is_named(suite)).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn crates_depend_on_nothing_that_they_may_not_know() {
    for path in rules::manifests() {
        let text = fs::read_to_string(top().join(path)).expect(path);
        let manifest = text.parse().expect(path);
        assert_eq!(rules::dependencies(path, &manifest), Vec::<String>::new());
    }
}

#[test]
fn nothing_is_added_to_the_top_level() {
    let ignored = fs::read_to_string(top().join(".gitignore")).expect(".gitignore");
    let names: Vec<String> = fs::read_dir(top())
        .expect("the repository can be read")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    let faults = rules::top_level(names.iter().map(String::as_str), &ignored);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
