//! One table of the configuration, read key by key: each method names a key, what its value has to
//! be, and what is in force without it.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::{Document, Setting, Table};
use super::value;

/// A value as it stands in the text.
pub(super) type Value<'d> = Spanned<DeValue<'d>>;

/// The words for something that is described but not built yet: a clear error, never a silence.
const LATER: &str = "not in this version of Portcullis";

/// One table while it is read. Every method that reads a key notes it as known;
/// [`finish`](Section::finish) then finds the keys that nobody asked for.
pub(super) struct Section<'a, 'd> {
    pub(super) document: &'a Document<'d>,
    header: String,
    /// `None`: the table is not in the file, and all is by default.
    table: Option<&'a DeTable<'d>>,
    /// Where the table stands, for faults about the whole of it.
    pub(super) span: Range<usize>,
    known: Vec<&'static str>,
    settings: Vec<Setting>,
}

impl<'a, 'd> Section<'a, 'd> {
    pub(super) fn new(
        document: &'a Document<'d>,
        header: &str,
        table: Option<&'a DeTable<'d>>,
        span: Range<usize>,
    ) -> Section<'a, 'd> {
        Section {
            document,
            header: header.to_owned(),
            table,
            span,
            known: Vec::new(),
            settings: Vec::new(),
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

    /// The value of a key, which is thereby known.
    pub(super) fn value(&mut self, key: &'static str) -> Option<&'a Value<'d>> {
        self.known.push(key);
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
        let (table, span) = match self.value(key) {
            None => (None, 0..0),
            Some(value) => {
                let table = value.get_ref().as_table();
                if table.is_none() {
                    self.document.error_with(
                        &value.span(),
                        format!("`{key}` is a table"),
                        format!("write [{key}]"),
                    );
                }
                (table, value.span())
            }
        };
        Section::new(self.document, &format!("[{key}]"), table, span)
    }

    /// An array of tables within this one.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Section<'a, 'd>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let entries = value
            .get_ref()
            .as_array()
            .map(|array| array.iter().collect())
            .unwrap_or(vec![value]);
        let within = self.header.trim_matches(['[', ']']);
        let header = if within.is_empty() {
            format!("[[{key}]]")
        } else {
            format!("[[{within}.{key}]]")
        };
        let mut sections = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry.get_ref().as_table() {
                Some(table) if value.get_ref().is_array() => {
                    sections.push(Section::new(
                        self.document,
                        &header,
                        Some(table),
                        entry.span(),
                    ));
                }
                _ => {
                    let message = format!("there can be several `{key}` tables");
                    self.document
                        .error_with(&entry.span(), message, format!("write {header}"));
                }
            }
        }
        sections
    }

    /// A text, through `parse`.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Spanned<T>> {
        let value = self.value(key)?;
        self.parse_text(key, value, parse)
    }

    /// A text that has to be there.
    pub(super) fn required_text<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Spanned<T>> {
        self.missing_unless_given(key);
        self.text(key, parse)
    }

    /// An error when the key is not in the table.
    pub(super) fn missing_unless_given(&self, key: &str) {
        if self.is_given() && !self.has(key) {
            self.document.error(
                &self.span,
                format!("`{key}` is missing in this {}", self.header),
            );
        }
    }

    /// A list of texts, each through `parse`; every bad one is a fault of its own. `None` when the
    /// key is absent.
    pub(super) fn texts<T>(
        &mut self,
        key: &'static str,
        mut parse: impl FnMut(&str) -> Result<T, String>,
    ) -> Option<Vec<Spanned<T>>> {
        let value = self.value(key)?;
        let Some(array) = value.get_ref().as_array() else {
            let advice = format!("write {key} = [\"...\"]");
            self.document.error_with(
                &value.span(),
                format!("`{key}` is a list of strings"),
                advice,
            );
            return Some(Vec::new());
        };
        Some(
            array
                .iter()
                .filter_map(|entry| self.parse_text(key, entry, &mut parse))
                .collect(),
        )
    }

    /// A whole number within a range.
    pub(super) fn count(
        &mut self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> u64 {
        let Some(value) = self.value(key) else {
            self.by_default(key, default);
            return default;
        };
        self.number(key, value, range).unwrap_or(default)
    }

    /// Yes or no.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.value(key) else {
            self.by_default(key, default);
            return default;
        };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.document.error(
                &value.span(),
                format!("`{key}` is true or false, not {}", kind(value)),
            );
            default
        })
    }

    /// One of a few words. A word of `later` is one that only a later version knows.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        default: Option<&'static str>,
        words: &[(&'static str, T)],
        later: &[&str],
    ) -> Option<T> {
        let one_of = |text: &str| match words.iter().find(|(word, _)| *word == text) {
            Some(&(_, meaning)) => Ok(meaning),
            None if later.contains(&text) => Err(format!("{key} = \"{text}\" is {LATER}")),
            None => {
                let known: Vec<_> = words
                    .iter()
                    .map(|(word, _)| format!("\"{word}\""))
                    .collect();
                Err(format!("{key} can be {}", known.join(" or ")))
            }
        };
        match self.text(key, one_of) {
            Some(meaning) => Some(meaning.into_inner()),
            None => {
                let default = default?;
                if !self.has(key) {
                    self.by_default(key, format_args!("\"{default}\""));
                }
                one_of(default).ok()
            }
        }
    }

    /// A length of time within a range.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(value) = self.value(key) else {
            self.by_default(key, format_args!("\"{}\"", value::write_duration(default)));
            return default;
        };
        let within = |text: &str| match value::duration(text)? {
            duration if range.contains(&duration) => Ok(duration),
            _ => Err(format!(
                "out of range: from {} to {} make sense",
                value::write_duration(*range.start()),
                value::write_duration(*range.end())
            )),
        };
        if value.get_ref().is_integer() {
            let message = format!("`{key}` is a length of time with its unit");
            self.document
                .error_with(&value.span(), message, "write \"30s\", \"5m\" or \"1h\"");
            return default;
        }
        self.parse_text(key, value, within)
            .map_or(default, Spanned::into_inner)
    }

    /// A number of octets within a range. `default` is written as in the file.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        default: &'static str,
        range: RangeInclusive<u64>,
    ) -> u64 {
        let fallback = value::size(default).unwrap_or(*range.start());
        let Some(value) = self.value(key) else {
            self.by_default(key, format_args!("\"{default}\""));
            return fallback;
        };
        if value.get_ref().is_integer() {
            return self.number(key, value, range).unwrap_or(fallback);
        }
        let within = |text: &str| match value::size(text)? {
            size if range.contains(&size) => Ok(size),
            _ => Err(format!(
                "out of range: from {} to {} octets make sense",
                range.start(),
                range.end()
            )),
        };
        self.parse_text(key, value, within)
            .map_or(fallback, Spanned::into_inner)
    }

    /// A whole number of a list or a key, within a range.
    pub(super) fn number(
        &self,
        key: &str,
        value: &Value<'_>,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let number = value.get_ref().as_integer().map(|integer| {
            i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i128::MAX)
        });
        let document = self.document;
        match number {
            None => document.error(
                &value.span(),
                format!("`{key}` is a whole number, not {}", kind(value)),
            ),
            Some(number) => match u64::try_from(number) {
                Ok(number) if range.contains(&number) => return Some(number),
                _ => document.error(
                    &value.span(),
                    format!(
                        "`{key}` is out of range: from {} to {} make sense",
                        range.start(),
                        range.end()
                    ),
                ),
            },
        }
        None
    }

    fn parse_text<T>(
        &self,
        key: &str,
        value: &Value<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Spanned<T>> {
        let span = value.span();
        let Some(text) = value.get_ref().as_str() else {
            self.document
                .error(&span, format!("`{key}` is a string, not {}", kind(value)));
            return None;
        };
        match parse(text) {
            Ok(parsed) => Some(Spanned::new(span, parsed)),
            Err(message) if message.ends_with(LATER) => {
                self.document.error(&span, message);
                None
            }
            Err(message) => {
                self.document
                    .error(&span, format!("bad `{key}`: {message}"));
                None
            }
        }
    }

    /// Keys that nobody asked for are errors: those of `later` versions with these words, the rest
    /// with the key that may have been meant.
    pub(super) fn finish(self, later: &[&'static str]) {
        for (key, _) in self.table.into_iter().flatten() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let place = if self.header.is_empty() {
                "at the top"
            } else {
                &self.header
            };
            if later.contains(&name) {
                self.document
                    .error(&key.span(), format!("`{name}` ({place}) is {LATER}"));
                continue;
            }
            let message = format!("unknown key `{name}` ({place})");
            match nearest(name, self.known.iter().chain(later)) {
                Some(meant) => self.document.error_with(
                    &key.span(),
                    message,
                    format!("did you mean `{meant}`?"),
                ),
                None => {
                    let advice = format!("known here: {}", self.known.join(", "));
                    self.document.error_with(&key.span(), message, advice);
                }
            }
        }
        self.document.in_force(Table {
            header: self.header,
            settings: self.settings,
        });
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

fn kind(value: &Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn nearest<'k>(name: &str, keys: impl Iterator<Item = &'k &'static str>) -> Option<&'static str> {
    let scored = keys.map(|key| (strsim::jaro_winkler(name, key), *key));
    let (score, key) = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (score > 0.8).then_some(key)
}
