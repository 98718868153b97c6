//! What is printed about a configuration, as data: `config/bad/NAME.toml` with
//! `NAME.errors` beside it (word for word), and `config/good/NAME.toml`
//! with `NAME.warnings` where there are any.
//!
//! To add a case, write the `.toml`, run with `PORTCULLIS_BLESS=1`, and read what was written
//! beside it: it is what an operator will read.

use std::fs;
use std::path::{Path, PathBuf};

use portcullis::config;
use portcullis_tests::pki::Pki;

fn cases(directory: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("the tests run in the directory of their package");
    let paths = entries.map(|entry| entry.expect("a readable directory").path());
    let mut cases: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    cases.sort();
    assert!(!cases.is_empty(), "no cases in {directory}");
    cases
}

/// Compares with the file, or writes it when asked to. No file and nothing to print are the same.
fn compare(file: &Path, printed: &str) -> Result<(), String> {
    if std::env::var_os("PORTCULLIS_BLESS").is_some() {
        let written = if printed.is_empty() {
            Ok(())
        } else {
            fs::write(file, printed)
        };
        return written.map_err(|error| error.to_string());
    }
    let expected = fs::read_to_string(file).unwrap_or_default();
    if printed == expected {
        return Ok(());
    }
    Err(format!(
        "--- {} has\n{expected}\n--- but this was printed\n{printed}",
        file.display()
    ))
}

fn fail_with(faults: &[String]) {
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_fault_of_a_configuration_is_told_with_its_place() {
    let mut faults = Vec::new();
    for case in cases("config/bad") {
        match config::load(&case) {
            Ok(_) => faults.push(format!("{} was taken", case.display())),
            Err(errors) => {
                let printed = format!("{errors}\n");
                faults.extend(compare(&case.with_extension("errors"), &printed).err());
            }
        }
    }
    fail_with(&faults);
}

#[test]
fn a_good_configuration_is_taken_and_doubts_are_told() {
    let mut faults = Vec::new();
    for case in cases("config/good") {
        match config::load(&case) {
            Err(errors) => faults.push(errors.to_string()),
            Ok(config) => {
                let warnings: String = config
                    .warnings
                    .iter()
                    .map(|warning| format!("{warning}\n"))
                    .collect();
                faults.extend(compare(&case.with_extension("warnings"), &warnings).err());
            }
        }
    }
    fail_with(&faults);
}

#[test]
fn the_gate_without_a_file_listens_on_the_loopback_alone_and_sends_nothing_on() {
    let config = config::Config::default_gate();
    assert!(
        config
            .listeners
            .iter()
            .all(|listener| listener.address.ip().is_loopback())
    );
    assert!(config.filter.is_none() && config.admin.address.is_none());
    assert!(
        config
            .routes
            .iter()
            .all(|route| route.next_hops == [config::NextHop::Discard])
    );
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

/// The configuration that a newcomer copies is good as it stands, once its lists are there.
#[test]
fn the_configuration_in_the_readme_is_good() {
    let readme = fs::read_to_string("../README.md").expect("the README is UTF-8");
    let sample = readme
        .split_once("```toml\n")
        .and_then(|(_, rest)| rest.split_once("```"));
    let (sample, _) = sample.expect("there is a sample");
    let directory = tempfile::tempdir().expect("a directory of its own");
    fs::create_dir(directory.path().join("lists")).expect("it can be made");
    for (list, entry) in [("partners", "198.51.100.7"), ("drop", "203.0.113.0/24")] {
        let file = directory.path().join(format!("lists/{list}.netset"));
        fs::write(file, format!("{entry}\n")).expect("it can be written");
    }
    let pki = Pki::new().expect("an authority");
    let files = pki
        .issue("mx1", &["mx1.isp.example"])
        .expect("a certificate");
    for (from, to) in [(files.certificate, "cert.pem"), (files.key, "key.pem")] {
        fs::rename(from, directory.path().join(to)).expect("it can be moved");
    }
    fs::write(directory.path().join("users"), "").expect("it can be written");
    let file = directory.path().join("portcullis.toml");
    fs::write(&file, sample).expect("it can be written");
    let config = config::load(&file).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert!(config.filter.is_some() && !config.listeners.is_empty());
}

/// What the document of the configuration says is what the code reads by.
#[test]
fn the_document_of_the_configuration_describes_every_key_as_it_is_read() {
    const MARK: &str = "--test configuration -->\n";
    let path = Path::new("../gateway/docs/configuration.md");
    let document = fs::read_to_string(path).expect("the document is UTF-8");
    let (opening, keys) = document
        .split_once(MARK)
        .expect("the mark is in the document");
    let written = config::reference::markdown();
    if std::env::var_os("PORTCULLIS_BLESS").is_some() {
        fs::write(path, format!("{opening}{MARK}{written}")).expect("it can be written");
    } else {
        assert!(
            keys == written,
            "{} differs from the descriptions in gateway/src/config; to write it anew:\n\
             PORTCULLIS_BLESS=1 cargo test -p portcullis-tests --test configuration",
            path.display()
        );
    }
}

/// So that a new key is in the example that has them all, and in what `check` prints.
#[test]
fn the_complete_configuration_has_every_key_that_check_prints() {
    // [lists] snapshot and [[list]] exclude one another.
    const ELSEWHERE: [(&str, &str); 1] = [("[lists]", "snapshot")];
    let config = config::load(Path::new("config/good/complete.toml")).expect("it is good");
    let given = |header: &str, key: &str| {
        config.in_force.iter().any(|table| {
            let mut settings = table.settings.iter();
            table.header == header && settings.any(|setting| setting.key == key && setting.given)
        })
    };
    let mut missing = Vec::new();
    for table in &config.in_force {
        for setting in table.settings.iter().filter(|setting| !setting.given) {
            let (header, key) = (table.header.as_str(), setting.key.as_str());
            if !given(header, key) && !ELSEWHERE.contains(&(header, key)) {
                missing.push(format!("{header} {key} = {}", setting.value));
            }
        }
    }
    fail_with(&missing);
}
