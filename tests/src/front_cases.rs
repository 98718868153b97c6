//! Reads the table of PROXY headers, `tests/fronts/proxy.txt`. Its format is in the README beside
//! it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::transcript::unescape;

/// What a front sends, and what the gate reads in it.
#[derive(Debug)]
pub struct Case {
    /// What the case shows.
    pub name: String,
    /// The first octets of a connection.
    pub octets: Vec<u8>,
    /// What the header says, in words.
    pub expected: String,
    /// The octets behind the header.
    pub rest: Vec<u8>,
}

/// All cases, in their order.
///
/// # Errors
/// The file cannot be read, or a line is none of the table.
pub fn all() -> Result<Vec<Case>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fronts/proxy.txt");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let mut cases: Vec<Case> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.is_empty() {
            continue;
        }
        let place = || format!("proxy.txt:{}", at + 1);
        let (key, text) = line.split_once(' ').with_context(place)?;
        if key == "#" {
            cases.push(Case {
                name: text.to_owned(),
                octets: Vec::new(),
                expected: String::new(),
                rest: Vec::new(),
            });
            continue;
        }
        let case = cases.last_mut().with_context(place)?;
        match key {
            "<" => unescape(text, &mut case.octets).with_context(place)?,
            ">" => text.clone_into(&mut case.expected),
            "=" => unescape(text, &mut case.rest).with_context(place)?,
            _ => bail!("{}: neither #, <, > nor =", place()),
        }
    }
    for case in &cases {
        ensure!(!case.expected.is_empty(), "{}: no line with >", case.name);
    }
    ensure!(!cases.is_empty(), "no cases");
    Ok(cases)
}
