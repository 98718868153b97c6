//! `[[list]]` and the files it names: the addresses that the filter and the SMTP side are given.

use std::fs;
use std::ops::Range;
use std::path::Path;

use ipnet::IpNet;
use toml::Spanned;

use super::error::{Error, Position};
use super::section::Section;
use crate::lists::cidr::Cidr;
use crate::lists::{Compiled, ListAction};

/// The most lists that a configuration may have: each has its counters in the kernel.
const LISTS_MAX: usize = 256;

/// Reads the `[[list]]` tables and the files they name, and settles their overlaps.
pub(super) fn read_lists(sections: Vec<Section<'_, '_>>) -> Compiled {
    let mut lists: Vec<(String, ListAction, Vec<IpNet>)> = Vec::new();
    for (number, mut s) in sections.into_iter().enumerate() {
        if number == LISTS_MAX {
            s.document
                .error(&s.span, format!("more than {LISTS_MAX} lists"));
        }
        let name = s.required_text("name", |name| match list_name(name) {
            Ok(()) if lists.iter().any(|(other, ..)| other == name) => {
                Err(format!("\"{name}\" is named twice"))
            }
            checked => checked.map(|()| name.to_owned()),
        });
        let file = s.required_text("file", |file| Ok(file.to_owned()));
        s.word("format", Some("cidr"), &[("cidr", ())], &FORMATS_LATER);
        s.missing_unless_given("action");
        let action = s.word("action", None, &ACTIONS, &[]);
        let prefixes = file.map(|file| read_cidr(&s, &file));
        if let (Some(name), Some(action), Some(prefixes)) = (name, action, prefixes) {
            lists.push((name.into_inner(), action, prefixes));
        }
        s.finish(&["url", "refresh"]);
    }
    // Too many were refused above.
    lists.truncate(LISTS_MAX);
    Compiled::new(lists)
}

const ACTIONS: [(&str, ListAction); 3] = [
    ("drop", ListAction::Drop),
    ("reject", ListAction::Reject),
    ("permit", ListAction::Permit),
];

const FORMATS_LATER: [&str; 6] = [
    "rbldnsd-ip4set",
    "rbldnsd-ip4trie",
    "rbldnsd-ip4tset",
    "rbldnsd-ip6trie",
    "rbldnsd-ip6tset",
    "spamhaus-json",
];

/// Names of lists stand in metrics, in rule names and in replies.
fn list_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match name {
        _ if name.is_empty() || name.len() > 64 => {
            Err("from 1 to 64 characters make a name".to_owned())
        }
        _ if !name.chars().all(fits) => {
            Err("letters, digits, `-`, `_` and `.` make a name".to_owned())
        }
        _ => Ok(()),
    }
}

fn read_cidr(s: &Section<'_, '_>, file: &Spanned<String>) -> Vec<IpNet> {
    let path = s.document.resolve(file.get_ref());
    let Some(octets) = read_file(s, &path, &file.span()) else {
        return Vec::new();
    };
    let list = Cidr::read(&octets);
    for bad in &list.bad_lines {
        let width = bad.text.chars().count().max(1);
        let position = Position {
            line: bad.line,
            column: 1,
            width,
            text: bad.text.clone(),
        };
        s.document.error_elsewhere(Error {
            file: path.clone(),
            position: Some(position),
            message: bad.reason.to_owned(),
            advice: None,
        });
    }
    if list.bad_line_count > list.bad_lines.len() as u64 {
        let message = format!(
            "{} lines in all cannot be read; the first are shown",
            list.bad_line_count
        );
        s.document
            .error_elsewhere(Error::whole_file(&path, message));
    }
    if let Some(line) = list.masked_first {
        let message = format!(
            "{} of {} prefixes have bits set beyond their length, which are ignored; the first is in line {line}",
            list.masked_count,
            list.prefixes.len()
        );
        s.document.warn_elsewhere(Error::whole_file(&path, message));
    }
    if list.prefixes.is_empty() && list.bad_line_count == 0 {
        s.document
            .warn_elsewhere(Error::whole_file(&path, "the list is empty"));
    }
    list.prefixes
}

/// The octets of a file that the configuration names at `span`.
pub(super) fn read_file(s: &Section<'_, '_>, path: &Path, span: &Range<usize>) -> Option<Vec<u8>> {
    match fs::read(path) {
        Ok(octets) => Some(octets),
        Err(error) => {
            let advice = "paths are relative to the directory of the configuration file";
            s.document.error_with(
                span,
                format!("cannot read {}: {error}", path.display()),
                advice,
            );
            None
        }
    }
}
