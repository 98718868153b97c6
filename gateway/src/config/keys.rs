//! What each key of the configuration is: its form, its default, its range and what it does.
//!
//! This is the one source of that knowledge. [`Section`](super::section::Section) reads a key by
//! its entry here, so the default and the range in force are those that are described; an unknown
//! key is compared with these names; `portcullis check --keys` and `docs/configuration.md` print
//! them ([`reference`](super::reference)). The entries of a table stand in the module that reads
//! the table. A key that is read and not described, or described and not read, ends a debug build
//! and so every test that reads a configuration.
//!
//! Rejected: descriptions in the document alone, which nothing keeps true; and a schema file, which
//! would be a second home of every default.

use std::ops::RangeInclusive;
use std::time::Duration;

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// One table of the configuration, as it is described.
#[derive(Debug)]
pub(super) struct KeyTable {
    /// `""` for the top, `"[limits]"`, `"[[listener]]"`, `"[[filter.interfaces]]"`.
    pub(super) header: &'static str,
    /// What the table is for: a sentence or two.
    pub(super) about: &'static str,
    /// Its keys, in the order in which they are documented.
    pub(super) keys: &'static [Key],
    /// Keys of later versions. They are refused in these words and described nowhere.
    pub(super) later: &'static [&'static str],
}

/// One key, as it is described.
#[derive(Debug)]
pub(super) struct Key {
    /// As it is written in the file.
    pub(super) name: &'static str,
    /// What its value has to be, and what is in force without it.
    pub(super) form: Form,
    /// What it does: a sentence or two.
    pub(super) about: &'static str,
    /// Keys that it interacts with, as `relay.networks`.
    pub(super) see: &'static [&'static str],
    /// Whether a change of it waits for the next start: a reload keeps the old value and says so.
    pub(super) needs_restart: bool,
}

/// What the value of a key has to be.
#[derive(Debug)]
pub(super) enum Form {
    /// A string that says `what`.
    Text {
        /// What the string holds: "a path".
        what: &'static str,
        /// Without the key.
        default: Absent<&'static str>,
    },
    /// A list of strings, each of which says `what`.
    Texts {
        /// What each string holds, in the plural: "domains".
        what: &'static str,
        /// Without the key.
        default: Absent<&'static [&'static str]>,
    },
    /// A list of TCP ports.
    Ports {
        /// Without the key.
        default: &'static [u16],
        /// How many there may be.
        most: usize,
    },
    /// A whole number.
    Count {
        /// What is counted: "sessions", "bytes per second".
        unit: &'static str,
        /// Without the key.
        default: Absent<u64>,
        /// What is accepted.
        range: RangeInclusive<u64>,
    },
    /// A whole number that may be less than 0, and is not 0.
    Score {
        /// Without the key.
        default: i32,
        /// The largest, either way.
        most: i32,
    },
    /// `true` or `false`.
    Flag {
        /// Without the key.
        default: bool,
    },
    /// One of a few words.
    Word {
        /// Without the key.
        default: Absent<&'static str>,
        /// Each word with what it means.
        words: &'static [(&'static str, &'static str)],
        /// Words of later versions, which are refused as such.
        later: &'static [&'static str],
    },
    /// A string with a number and its unit: `"30s"`.
    Duration {
        /// Without the key.
        default: Absent<Duration>,
        /// What is accepted.
        range: RangeInclusive<Duration>,
    },
    /// A number of bytes, or a string with a number and its unit: `"50MB"`.
    Size {
        /// Without the key, as it is written in the file.
        default: &'static str,
        /// What is accepted, in bytes.
        range: RangeInclusive<u64>,
    },
    /// A table.
    Table(&'static KeyTable),
    /// Any number of tables of one kind.
    Tables(&'static KeyTable),
}

/// What is in force without a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Absent<T> {
    /// The configuration is refused.
    Required,
    /// Nothing.
    Nothing,
    /// This value.
    Is(T),
    /// A value that depends on the machine or on another key, in words.
    Varies(&'static str),
}

impl Key {
    /// A key that interacts with no other and follows a reload.
    pub(super) const fn new(name: &'static str, form: Form, about: &'static str) -> Key {
        Key {
            name,
            form,
            about,
            see: &[],
            needs_restart: false,
        }
    }

    /// The same key, which interacts with these.
    pub(super) const fn see(self, see: &'static [&'static str]) -> Key {
        Key { see, ..self }
    }

    /// The same key, of which a change waits for the next start.
    pub(super) const fn at_start(self) -> Key {
        Key {
            needs_restart: true,
            ..self
        }
    }

    /// The table, or the kind of tables, that the key holds.
    pub(super) fn table(&self) -> Option<&'static KeyTable> {
        match self.form {
            Form::Table(table) | Form::Tables(table) => Some(table),
            _ => None,
        }
    }
}

impl KeyTable {
    /// The key of this name.
    pub(super) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// This table and all that are beneath it, in the order of the document.
    pub(super) fn all(&'static self) -> Vec<&'static KeyTable> {
        let beneath = self.keys.iter().filter_map(Key::table);
        std::iter::once(self)
            .chain(beneath.flat_map(KeyTable::all))
            .collect()
    }
}

pub(super) const fn text(what: &'static str, default: Absent<&'static str>) -> Form {
    Form::Text { what, default }
}

pub(super) const fn count(unit: &'static str, default: u64, range: RangeInclusive<u64>) -> Form {
    let default = Absent::Is(default);
    Form::Count {
        unit,
        default,
        range,
    }
}

pub(super) const fn duration(default: Duration, range: RangeInclusive<Duration>) -> Form {
    let default = Absent::Is(default);
    Form::Duration { default, range }
}

pub(super) const fn word(
    default: &'static str,
    words: &'static [(&'static str, &'static str)],
) -> Form {
    Form::Word {
        default: Absent::Is(default),
        words,
        later: &[],
    }
}

pub(super) const fn flag(default: bool) -> Form {
    Form::Flag { default }
}

/// The name that was probably meant, if one is near enough.
pub(super) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let scored = known.map(|key| (strsim::jaro_winkler(name, key), key));
    let (score, key) = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (score > 0.8).then_some(key)
}
