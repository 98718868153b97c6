//! One table of the configuration, read key by key, so that every key which it does not have is
//! found. What is read and by which default comes from the description of the table (see
//! [`keys`](super::keys)); how a single value is read is in [`typed`](super::typed).

use std::fmt::Display;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::{Document, Setting, Table};
use super::keys::{Form, Key, KeyTable, nearest};

/// A value as it is written in the text.
pub(super) type Value<'d> = Spanned<DeValue<'d>>;

/// The words for something that is described but not built yet: a clear error, never a silence.
pub(super) const LATER: &str = "not in this version of Portcullis";

/// One table while it is read; [`finish`](Section::finish) then finds the keys that the table does
/// not have.
pub(super) struct Section<'a, 'd> {
    pub(super) document: &'a Document<'d>,
    described: &'static KeyTable,
    /// `None`: the table is not in the file, and all is by default.
    table: Option<&'a DeTable<'d>>,
    /// Where the table stands, for faults about the whole of it.
    pub(super) span: Range<usize>,
    /// The keys that were read.
    read: Vec<&'static str>,
    settings: Vec<Setting>,
    /// The tables within this one, which are shown behind it.
    within: Vec<Table>,
}

impl<'a, 'd> Section<'a, 'd> {
    pub(super) fn new(
        document: &'a Document<'d>,
        described: &'static KeyTable,
        table: Option<&'a DeTable<'d>>,
        span: Range<usize>,
    ) -> Section<'a, 'd> {
        Section {
            document,
            described,
            table,
            span,
            read: Vec::new(),
            settings: Vec::new(),
            within: Vec::new(),
        }
    }

    pub(super) fn is_given(&self) -> bool {
        self.table.is_some()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Whether the key is there with a list that has nothing in it.
    pub(super) fn is_empty_list(&self, key: &str) -> bool {
        let value = self.table.and_then(|table| table.get(key));
        value.is_some_and(|value| {
            value
                .get_ref()
                .as_array()
                .is_some_and(|list| list.is_empty())
        })
    }

    /// Where the value of a key stands; the table, when the key is absent.
    pub(super) fn span_of(&self, key: &str) -> Range<usize> {
        self.table
            .and_then(|table| table.get(key))
            .map_or(self.span.clone(), Spanned::span)
    }

    /// How a key is described. That each key which is read has a description is held by every test
    /// that reads a configuration.
    fn described(&self, key: &str) -> &'static Key {
        let described = self.described.key(key);
        described.unwrap_or_else(|| panic!("{key} of {:?} is described", self.described.header))
    }

    /// What a value of this key has to be.
    pub(super) fn form(&self, key: &str) -> &'static Form {
        &self.described(key).form
    }

    /// The value of a key, which is thereby read.
    pub(super) fn value(&mut self, key: &'static str) -> Option<&'a Value<'d>> {
        self.read.push(key);
        let value = self.table?.get(key)?;
        // Tables show themselves.
        if !contains_table(value.get_ref()) {
            let written = self.document.text[value.span()].to_owned();
            self.settings.push(Setting {
                key: key.to_owned(),
                value: written,
                given: true,
            });
        }
        Some(value)
    }

    /// Notes what is in force for a key that the file does not have.
    pub(super) fn by_default(&mut self, key: &str, value: impl Display) {
        self.settings.push(Setting {
            key: key.to_owned(),
            value: value.to_string(),
            given: false,
        });
    }

    /// A table within this one.
    pub(super) fn table(&mut self, key: &'static str) -> Section<'a, 'd> {
        let Form::Table(described) = *self.form(key) else {
            panic!("{key} is described as a table");
        };
        let (table, span) = match self.value(key) {
            None => (None, 0..0),
            Some(value) => {
                let table = value.get_ref().as_table();
                if table.is_none() {
                    self.document.error_with(
                        &value.span(),
                        format!("`{key}` is a table"),
                        format!("write {}", described.header),
                    );
                }
                (table, value.span())
            }
        };
        Section::new(self.document, described, table, span)
    }

    /// An array of tables within this one.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Section<'a, 'd>> {
        let Form::Tables(described) = *self.form(key) else {
            panic!("{key} is described as an array of tables");
        };
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let entries = value
            .get_ref()
            .as_array()
            .map(|array| array.iter().collect())
            .unwrap_or(vec![value]);
        let mut sections = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry.get_ref().as_table() {
                Some(table) if value.get_ref().is_array() => {
                    let table = Some(table);
                    sections.push(Section::new(self.document, described, table, entry.span()));
                }
                _ => {
                    let message = format!("there can be several `{key}` tables");
                    let advice = format!("write {}", described.header);
                    self.document.error_with(&entry.span(), message, advice);
                }
            }
        }
        sections
    }

    /// An error when the key is not in the table.
    pub(super) fn missing_unless_given(&self, key: &str) {
        if self.is_given() && !self.has(key) {
            let message = format!("`{key}` is missing in this {}", self.described.header);
            self.document.error(&self.span, message);
        }
    }

    /// Ends the reading of the table: keys that it does not have are errors, those of later
    /// versions as such, the rest with the key that may have been meant.
    pub(super) fn finish(self) {
        let document = self.document;
        for table in self.ended() {
            document.in_force(table);
        }
    }

    /// As [`finish`](Self::finish), for a table within another, behind which it is shown, if it is
    /// given: TOML takes `[route.auth]` for a part of the last `[[route]]`.
    pub(super) fn finish_within(self, outer: &mut Section<'_, '_>) {
        let is_given = self.is_given();
        let tables = self.ended();
        if is_given {
            outer.within.extend(tables);
        }
    }

    fn ended(self) -> Vec<Table> {
        let described = self.described;
        debug_assert!(
            described
                .keys
                .iter()
                .all(|key| self.read.contains(&key.name)),
            "a described key of {:?} is not read: only {:?} are",
            described.header,
            self.read
        );
        for (key, _) in self.table.into_iter().flatten() {
            let name: &str = key.get_ref();
            if described.key(name).is_some() {
                continue;
            }
            let place = match described.header {
                "" => "at the top",
                header => header,
            };
            if described.later.contains(&name) {
                self.document
                    .error(&key.span(), format!("`{name}` ({place}) is {LATER}"));
                continue;
            }
            let message = format!("unknown key `{name}` ({place})");
            let names = || described.keys.iter().map(|key| key.name);
            let advice = match nearest(name, names().chain(described.later.iter().copied())) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("known here: {}", names().collect::<Vec<_>>().join(", ")),
            };
            self.document.error_with(&key.span(), message, advice);
        }
        let mut tables = vec![Table {
            header: described.header.to_owned(),
            settings: self.settings,
        }];
        tables.extend(self.within);
        tables
    }
}

fn contains_table(value: &DeValue<'_>) -> bool {
    value.is_table()
        || value.as_array().is_some_and(|array| {
            array
                .iter()
                .next()
                .is_some_and(|entry| entry.get_ref().is_table())
        })
}
