//! The house rules as a test: who may know whom, where unsafe code is, how files open and how long
//! they get.
//!
//! A rule that nobody checks is forgotten in a month, and a reviewer's time is better spent on what
//! no program can see.

mod directions;
mod rules;
mod source;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use source::Source;

/// The top of the repository.
fn top() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// All Rust files of the repository, but not what was built.
fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            let is_built = entry.file_name() == "target" || entry.file_name() == ".git";
            if !is_built {
                rust_files(&path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
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
