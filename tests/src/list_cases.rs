//! Reads the list cases: `tests/lists/FORMAT.txt`, described in `tests/lists/README.md`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use portcullis::lists::format::{Format, Reading};

/// A file of a list, and what has to be read in it.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// `cidr.txt:12: what would be broken`.
    pub name: String,
    /// How the file is written.
    pub format: Format,
    /// The file.
    pub file: Vec<u8>,
    /// What it has to be read as.
    pub expected: Expected,
    /// Whether rbldnsd reads it otherwise, on purpose.
    pub unlike_rbldnsd: bool,
}

/// What a file has to be read as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The prefixes in order.
    pub prefixes: Vec<String>,
    /// There are more of them.
    pub and_more: bool,
    /// Number of each bad line, and words of the reason.
    pub bad: Vec<(u64, String)>,
    /// Lines known to be no entries.
    pub skipped: u64,
    /// Exclusions.
    pub excluded: u64,
    /// Prefixes that were there or are covered.
    pub merged: u64,
    /// Prefixes with host bits.
    pub masked: u64,
    /// Whether the file looks cut off.
    pub incomplete: bool,
}

impl Case {
    /// What differs between what was read and what was expected, if anything.
    #[must_use]
    pub fn differs(&self, reading: &Reading) -> Option<String> {
        let mut read = Expected {
            prefixes: reading.entries.iter().map(|net| net.to_string()).collect(),
            and_more: self.expected.and_more,
            bad: Vec::new(),
            skipped: reading.skipped,
            excluded: reading.excluded,
            merged: reading.merged,
            masked: reading.masked,
            incomplete: reading.incomplete.is_some(),
        };
        if self.expected.and_more {
            read.prefixes.truncate(self.expected.prefixes.len());
        }
        for bad in &reading.invalid_lines {
            let wanted = self.expected.bad.iter().find(|(line, _)| *line == bad.line);
            let reason = wanted.filter(|(_, words)| bad.reason.contains(words.as_str()));
            let reason = reason.map_or(bad.reason, |(_, words)| words.as_str());
            read.bad.push((bad.line, reason.to_owned()));
        }
        (read != self.expected).then(|| {
            format!(
                "{}\n  read     {read:?}\n  expected {:?}",
                self.name, self.expected
            )
        })
    }
}

/// Where the cases are.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lists")
}

/// All cases of all formats.
///
/// # Errors
/// A file that cannot be read, or a line that is none of a case.
pub fn load() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (name, format) in Format::ALL {
        let file = format!("{name}.txt");
        let text = std::fs::read_to_string(directory().join(&file)).context(file.clone())?;
        parse(&file, format, &text, &mut cases)?;
    }
    Ok(cases)
}

fn parse(file: &str, format: Format, text: &str, cases: &mut Vec<Case>) -> Result<()> {
    let before = cases.len();
    // Empty lines between cases are not of the file.
    let mut empty = 0;
    for (number, line) in (1..).zip(text.lines()) {
        let place = || format!("{file}:{number}");
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(Case {
                name: format!("{}: {name}", place()),
                format,
                ..Case::default()
            });
            empty = 0;
        } else if cases.len() == before {
            ensure!(
                line.is_empty() || line.starts_with('#'),
                "{}: not in a case",
                place()
            );
        } else if line.is_empty() {
            empty += 1;
        } else if let Some(case) = cases.last_mut() {
            case.file.extend(std::iter::repeat_n(b'\n', empty));
            empty = 0;
            match line.strip_prefix("->") {
                Some(said) => case.expect(said.trim()).with_context(place)?,
                None => unescape(line, &mut case.file).with_context(place)?,
            }
        }
    }
    Ok(())
}

impl Case {
    fn expect(&mut self, said: &str) -> Result<()> {
        let expected = &mut self.expected;
        match said.split_once(' ') {
            Some(("bad", bad)) => {
                let (line, words) = bad.split_once(": ").context("bad LINE: words")?;
                expected.bad.push((line.parse()?, words.to_owned()));
            }
            Some(("skipped", count)) => expected.skipped = count.parse()?,
            Some(("excluded", count)) => expected.excluded = count.parse()?,
            Some(("merged", count)) => expected.merged = count.parse()?,
            Some(("masked", count)) => expected.masked = count.parse()?,
            _ if said == "incomplete" => expected.incomplete = true,
            _ if said == "unlike rbldnsd" => self.unlike_rbldnsd = true,
            _ if said == "..." => expected.and_more = true,
            _ => {
                let prefixes = said.split(' ').map(str::to_owned);
                expected.prefixes.extend(prefixes);
            }
        }
        Ok(())
    }
}

/// A line of a file with its end, unless a backslash takes it away.
fn unescape(line: &str, into: &mut Vec<u8>) -> Result<()> {
    let mut octets = line.bytes();
    while let Some(octet) = octets.next() {
        if octet != b'\\' {
            into.push(octet);
            continue;
        }
        into.push(match octets.next() {
            None => return Ok(()),
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'0') => 0,
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let digits = [octets.next(), octets.next()].map(Option::unwrap_or_default);
                u8::from_str_radix(std::str::from_utf8(&digits)?, 16)?
            }
            Some(other) => bail!("unknown escape \\{}", char::from(other)),
        });
    }
    into.push(b'\n');
    Ok(())
}
