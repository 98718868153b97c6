//! Spamhaus DROP as it is published for programs: a JSON object on each line,
//! `{"cidr":"192.0.2.0/24","sblid":"SBL1",...}`, and at the end one that tells how many there were:
//! `{"type":"metadata",...,"records":1}`. Files that were joined have one for each part. Where the
//! last is missing or counts something else, the file was cut off.

use std::borrow::Cow;

use serde::Deserialize;

use super::{Dialect, Found, Meaning, Reason, cidr};

/// The format, with what was counted.
#[derive(Debug, Default)]
pub(super) struct Drop {
    /// Since the last line with metadata.
    records: u64,
    metadata: bool,
    differs: bool,
}

/// The members that mean something here; there are others.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    cidr: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    records: Option<u64>,
}

impl Dialect for Drop {
    fn line(&mut self, text: &[u8], _ended: bool, found: &mut Found) -> Result<Meaning, Reason> {
        let text = text.trim_ascii();
        if text.is_empty() || text[0] == b'#' || text[0] == b';' {
            return Ok(Meaning::Nothing);
        }
        let record: Record<'_> =
            serde_json::from_slice(text).map_err(|_| "not a JSON object with a prefix")?;
        match record {
            Record {
                cidr: Some(cidr), ..
            } => {
                self.records += 1;
                let (net, was_masked) = cidr::prefix(&cidr)?;
                found.push(net)?;
                Ok(if was_masked {
                    Meaning::MaskedEntry
                } else {
                    Meaning::Entry
                })
            }
            Record {
                kind: Some(kind),
                records,
                ..
            } if kind == "metadata" => {
                let counted = std::mem::take(&mut self.records);
                self.metadata = true;
                self.differs |= records.is_some_and(|records| records != counted);
                Ok(Meaning::Directive)
            }
            Record { .. } => Err("a JSON object without \"cidr\""),
        }
    }

    fn incomplete(&self) -> Option<Reason> {
        if self.differs {
            Some("the metadata and the file differ in the number of records")
        } else if !self.metadata || self.records > 0 {
            Some("the metadata at the end is missing: the file looks cut off")
        } else {
            None
        }
    }
}
