//! Reads the policy cases: `tests/policy/*.txt`, described in `tests/policy/README.md`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// One client with one recipient, and what the gate has to answer.
#[derive(Clone, Debug)]
pub struct Case {
    /// `relaying.txt:12`, for messages.
    pub place: String,
    /// Where the client connects from.
    pub client: IpAddr,
    /// What it says with EHLO.
    pub hello: String,
    /// As it stands in MAIL, perhaps with angle brackets.
    pub sender: String,
    /// As it stands in RCPT, perhaps with angle brackets.
    pub recipient: String,
    /// The code of the first reply that refuses, or of the reply to RCPT.
    pub code: u16,
    /// The rule that decides.
    pub rule: String,
}

impl Case {
    /// The commands of the client, without line ends: EHLO, MAIL, RCPT.
    #[must_use]
    pub fn commands(&self) -> [String; 3] {
        let is_ascii = self.sender.is_ascii() && self.recipient.is_ascii();
        let parameters = if is_ascii { "" } else { " SMTPUTF8" };
        [
            format!("EHLO {}", self.hello),
            format!("MAIL FROM:{}{parameters}", enclosed(&self.sender)),
            format!("RCPT TO:{}", enclosed(&self.recipient)),
        ]
    }
}

fn enclosed(address: &str) -> String {
    if address.starts_with('<') {
        address.to_owned()
    } else {
        format!("<{address}>")
    }
}

/// Where the cases and their configuration, `gate.toml`, are.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policy")
}

/// All cases of all files.
///
/// # Errors
/// A file that cannot be read, or a line that is no case.
pub fn load() -> Result<Vec<Case>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in directory().read_dir()? {
        files.push(entry?.path());
    }
    files.retain(|path| path.extension().is_some_and(|end| end == "txt"));
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&file).with_context(|| name.clone())?;
        for (number, line) in (1..).zip(text.lines()) {
            if !line.trim().is_empty() && !line.starts_with('#') {
                let place = format!("{name}:{number}");
                cases.push(parse(&place, line).with_context(|| place.clone())?);
            }
        }
    }
    Ok(cases)
}

fn parse(place: &str, line: &str) -> Result<Case> {
    let columns: Vec<_> = line
        .split("  ")
        .map(str::trim)
        .filter(|column| !column.is_empty())
        .collect();
    let [client, hello, sender, recipient, code, rule] = columns[..] else {
        bail!("six columns are wanted, with two or more spaces between them");
    };
    Ok(Case {
        place: place.to_owned(),
        client: client.parse()?,
        hello: hello.to_owned(),
        sender: sender.to_owned(),
        recipient: recipient.to_owned(),
        code: code.parse()?,
        rule: rule.to_owned(),
    })
}
