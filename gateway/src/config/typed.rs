//! Reading a key by its form: each method names a key and gives its value, or what is in force
//! without it. A bad value is noted as a fault, and its default goes on in its place, so that all
//! faults are found in one go.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::keys::{Absent, Form};
use super::section::{LATER, Section, Value};
use super::value;

impl<'d> Section<'_, 'd> {
    /// A text, through `parse`. Without the key its default, which `parse` takes.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Spanned<T>> {
        let Form::Text { default, .. } = *self.form(key) else {
            panic!("{key} is described as a text");
        };
        match (self.value(key), default) {
            (Some(value), _) => self.parse_text(key, value, parse),
            (None, Absent::Is(default)) => {
                self.by_default(key, format_args!("{default:?}"));
                parse(default)
                    .ok()
                    .map(|parsed| Spanned::new(self.span.clone(), parsed))
            }
            (None, Absent::Required) => {
                self.missing_unless_given(key);
                None
            }
            (None, _) => None,
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

    /// The entries of a list that is absent, through `parse`; none if it has no default.
    pub(super) fn default_texts<T>(
        &mut self,
        key: &'static str,
        mut parse: impl FnMut(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let Form::Texts { default, .. } = *self.form(key) else {
            panic!("{key} is described as a list of texts");
        };
        let Absent::Is(default) = default else {
            return Vec::new();
        };
        self.by_default(key, format_args!("{default:?}"));
        default
            .iter()
            .filter_map(|entry| parse(entry).ok())
            .collect()
    }

    /// A whole number.
    pub(super) fn count(&mut self, key: &'static str) -> u64 {
        let Form::Count {
            default: Absent::Is(default),
            ..
        } = *self.form(key)
        else {
            panic!("{key} is described as a number with a default");
        };
        self.count_or(key, default)
    }

    /// A whole number whose default depends on the machine.
    pub(super) fn count_or(&mut self, key: &'static str, default: u64) -> u64 {
        let Form::Count { range, .. } = self.form(key) else {
            panic!("{key} is described as a number");
        };
        let Some(value) = self.value(key) else {
            self.by_default(key, default);
            return default;
        };
        self.number(key, value, range.clone()).unwrap_or(default)
    }

    /// A whole number that fits into 32 bits because its range does.
    pub(super) fn count_u32(&mut self, key: &'static str) -> u32 {
        u32::try_from(self.count(key)).unwrap_or(u32::MAX)
    }

    /// Yes or no.
    pub(super) fn flag(&mut self, key: &'static str) -> bool {
        let Form::Flag { default } = *self.form(key) else {
            panic!("{key} is described as true or false");
        };
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

    /// One of the words of the key, by what each means here. `None` after an error.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        meanings: &[(&'static str, T)],
    ) -> Option<T> {
        let &Form::Word {
            default,
            words,
            later,
        } = self.form(key)
        else {
            panic!("{key} is described as a word");
        };
        let described = words.iter().map(|word| word.0);
        debug_assert!(
            described.clone().eq(meanings.iter().map(|word| word.0)),
            "the words of {key} are those of its description"
        );
        let one_of = move |text: &str| match meanings.iter().find(|(word, _)| *word == text) {
            Some(&(_, meaning)) => Ok(meaning),
            None if later.contains(&text) => Err(format!("{key} = \"{text}\" is {LATER}")),
            None => {
                let known: Vec<_> = described.map(|word| format!("\"{word}\"")).collect();
                Err(format!("{key} can be {}", known.join(" or ")))
            }
        };
        match (self.value(key), default) {
            (Some(value), _) => {
                let meaning = self.parse_text(key, value, one_of);
                meaning.map(Spanned::into_inner)
            }
            (None, Absent::Is(default)) => {
                self.by_default(key, format_args!("\"{default}\""));
                one_of(default).ok()
            }
            (None, Absent::Required) => {
                self.missing_unless_given(key);
                None
            }
            (None, _) => None,
        }
    }

    /// A length of time.
    pub(super) fn duration(&mut self, key: &'static str) -> Duration {
        let Form::Duration {
            default: Absent::Is(default),
            ..
        } = *self.form(key)
        else {
            panic!("{key} is described as a length of time with a default");
        };
        self.duration_or(key, default)
    }

    /// A length of time whose default depends on another key.
    pub(super) fn duration_or(&mut self, key: &'static str, default: Duration) -> Duration {
        let Form::Duration { range, .. } = self.form(key) else {
            panic!("{key} is described as a length of time");
        };
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

    /// A number of bytes.
    pub(super) fn size(&mut self, key: &'static str) -> u64 {
        let &Form::Size { default, ref range } = self.form(key) else {
            panic!("{key} is described as a size");
        };
        let fallback = value::size(default).unwrap_or(*range.start());
        let Some(value) = self.value(key) else {
            self.by_default(key, format_args!("\"{default}\""));
            return fallback;
        };
        if value.get_ref().is_integer() {
            return self.number(key, value, range.clone()).unwrap_or(fallback);
        }
        let within = |text: &str| match value::size(text)? {
            size if range.contains(&size) => Ok(size),
            _ => Err(format!(
                "out of range: from {} to {} bytes make sense",
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

    /// A list of TCP ports.
    pub(super) fn ports(&mut self, key: &'static str) -> Vec<u16> {
        let &Form::Ports { default, most } = self.form(key) else {
            panic!("{key} is described as a list of ports");
        };
        let Some(value) = self.value(key) else {
            self.by_default(key, format_args!("{default:?}"));
            return default.to_vec();
        };
        let (document, span) = (self.document, value.span());
        let Some(array) = value.get_ref().as_array() else {
            let advice = format!("write {key} = {default:?}");
            document.error_with(&span, format!("`{key}` is a list of numbers"), advice);
            return Vec::new();
        };
        if array.is_empty() || array.len() > most {
            document.error(&span, format!("from 1 to {most} ports make sense"));
        }
        let port = |value| self.number(key, value, 1..=u64::from(u16::MAX));
        let ports = array.iter().filter_map(port);
        ports.filter_map(|port| u16::try_from(port).ok()).collect()
    }

    /// A whole number that is not 0; less than 0 for a welcome list.
    pub(super) fn score(&mut self, key: &'static str) -> i32 {
        let &Form::Score { default, most } = self.form(key) else {
            panic!("{key} is described as a score");
        };
        let Some(value) = self.value(key) else {
            self.by_default(key, default);
            return default;
        };
        let number = value.get_ref().as_integer();
        let number =
            number.and_then(|integer| i32::from_str_radix(integer.as_str(), integer.radix()).ok());
        match number {
            Some(0) => self.document.error_with(
                &value.span(),
                format!("a `{key}` of 0 would make the zone count for nothing"),
                "give it a score, or remove the zone",
            ),
            Some(score) if (-most..=most).contains(&score) => return score,
            _ => {
                let message = format!(
                    "`{key}` is a whole number from -{most} to {most}, \
                     less than 0 for a welcome list"
                );
                self.document.error(&value.span(), message);
            }
        }
        default
    }
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
