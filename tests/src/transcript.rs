//! Reads transcripts: SMTP sessions written down, each of which is checked against the code. The
//! format is described in `tests/transcripts/README.md`, for people who write them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// One session.
#[derive(Clone, Debug)]
pub struct Case {
    /// What would be broken if it did not go like this.
    pub name: String,
    /// File and line, for messages.
    pub origin: String,
    /// What happens, in order.
    pub lines: Vec<Line>,
}

/// One line of a case: a key, and a text that the test behind the key understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Counted from 1, for messages.
    pub number: usize,
    /// `C`, `S`, `set` and so on.
    pub key: String,
    /// What follows the key and one space.
    pub text: String,
    /// Whether CRLF belongs to the text: `C: QUIT` rather than `C~ QUIT`.
    pub ends_line: bool,
}

impl Line {
    /// The octets that the text stands for: `\r`, `\n`, `\0`, `\\`, `\{`, `\xHH` and `{600*text}`
    /// resolved.
    ///
    /// # Errors
    /// An escape that is none.
    pub fn octets(&self) -> Result<Vec<u8>> {
        let mut octets = Vec::new();
        unescape(&self.text, &mut octets)
            .with_context(|| format!("line {}: {:?}", self.number, self.text))?;
        if self.ends_line {
            octets.extend_from_slice(b"\r\n");
        }
        Ok(octets)
    }
}

/// The octets that a text stands for: see [`Line::octets`].
///
/// # Errors
/// An escape that is none.
pub fn octets(text: &str) -> Result<Vec<u8>> {
    let mut octets = Vec::new();
    unescape(text, &mut octets)?;
    Ok(octets)
}

/// All cases of the files in `tests/transcripts/KIND`, in the order of their names.
///
/// # Errors
/// A file cannot be read, or a line is none of a transcript.
pub fn read(kind: &str) -> Result<Vec<Case>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("transcripts")
        .join(kind);
    let entries = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    let mut files: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        cases.extend(parse(&text, &name)?);
    }
    Ok(cases)
}

/// The cases of one file.
///
/// # Errors
/// A line is none of a transcript.
pub fn parse(text: &str, file: &str) -> Result<Vec<Case>> {
    let mut cases: Vec<Case> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix("== ") {
            let origin = format!("{file}:{number}");
            cases.push(Case {
                name: name.to_owned(),
                origin,
                lines: Vec::new(),
            });
            continue;
        }
        let Some(case) = cases.last_mut() else {
            bail!("{file}:{number}: no case has begun (\"== what it shows\")");
        };
        let end = line
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(line.len());
        let (key, rest) = line.split_at(end);
        let (ends_line, text) = match rest.chars().next() {
            Some(mark @ (':' | '~')) if !key.is_empty() => (mark == ':', &rest[1..]),
            _ => bail!("{file}:{number}: neither \"key: text\" nor \"key~ text\""),
        };
        case.lines.push(Line {
            number,
            key: key.to_owned(),
            text: text.strip_prefix(' ').unwrap_or(text).to_owned(),
            ends_line,
        });
    }
    Ok(cases)
}

pub(crate) fn unescape(text: &str, octets: &mut Vec<u8>) -> Result<()> {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                let escape = rest.chars().next().context("a backslash at the end")?;
                rest = &rest[escape.len_utf8()..];
                match escape {
                    'r' => octets.push(b'\r'),
                    'n' => octets.push(b'\n'),
                    '0' => octets.push(0),
                    '\\' | '{' => octets.push(escape as u8),
                    'x' => {
                        let (digits, after) =
                            rest.split_at_checked(2).context("\\x wants two digits")?;
                        octets.push(u8::from_str_radix(digits, 16)?);
                        rest = after;
                    }
                    _ => bail!("\\{escape} is no escape"),
                }
            }
            '{' => {
                let (inner, after) = rest.split_once('}').context("a { without }")?;
                let (count, repeated) = inner.split_once('*').context("{count*text} expected")?;
                for _ in 0..count.parse()? {
                    unescape(repeated, octets)?;
                }
                rest = after;
            }
            _ => octets.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Ok(())
}
