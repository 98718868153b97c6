//! What the keys of the configuration are, in words: for `portcullis check --keys`, and for
//! `docs/configuration.md`, which a test holds to this.

use std::fmt::{Display, Write as _};

use super::compile::KEYS;
use super::keys::{Absent, Form, Key, KeyTable, nearest};
use super::value::{write_duration, write_size};

/// A key in words.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Description {
    /// The table as it is written in the file: `[limits]`; empty for the top.
    pub table: &'static str,
    /// As it is written in the table.
    pub key: &'static str,
    /// What its value has to be, with its range.
    pub value: String,
    /// What is in force without it: in words, or as TOML between backticks.
    pub default: String,
    /// What it does.
    pub about: String,
    /// Keys that it interacts with, as `relay.networks`.
    pub see: &'static [&'static str],
    /// Whether a change of it waits for the next start.
    pub needs_restart: bool,
}

/// A table with the words for it and its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedTable {
    /// As it is written in the file: `[limits]`; empty for the top.
    pub header: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// Its keys, but those at the top that lead to a table.
    pub keys: Vec<Description>,
}

/// All tables of the configuration, in the order of the document.
pub fn tables() -> Vec<DescribedTable> {
    let described = |table: &'static KeyTable| {
        let keys = table.keys.iter();
        let keys = keys.filter(|key| key.table().is_none() || !table.header.is_empty());
        DescribedTable {
            header: table.header,
            about: table.about,
            keys: keys.map(|key| describe(table, key)).collect(),
        }
    };
    KEYS.all().into_iter().map(described).collect()
}

/// What a name means: a table (`limits`, `[limits]`), a key (`sessions`), or both
/// (`limits.sessions`). Tables come with the keys that are meant.
///
/// # Errors
/// The name that was probably meant, if one is near.
pub fn find(name: &str) -> Result<Vec<DescribedTable>, Option<String>> {
    let wanted = name.trim_matches(['[', ']']);
    let mut known: Vec<String> = Vec::new();
    let mut found = Vec::new();
    for mut table in tables() {
        known.push(table.path().to_owned());
        known.extend(table.keys.iter().map(|key| key.key.to_owned()));
        known.extend(table.keys.iter().map(Description::path));
        let is_whole = !wanted.is_empty() && table.path() == wanted;
        let is_meant = |key: &Description| is_whole || key.key == wanted || key.path() == wanted;
        table.keys.retain(is_meant);
        if !table.keys.is_empty() {
            found.push(table);
        }
    }
    if found.is_empty() {
        let meant = nearest(wanted, known.iter().map(String::as_str));
        return Err(meant.map(str::to_owned));
    }
    Ok(found)
}

impl DescribedTable {
    /// The header without its brackets.
    fn path(&self) -> &'static str {
        self.header.trim_matches(['[', ']'])
    }
}

impl Description {
    /// How the key is called outside of its table: `limits.sessions`, `hostname`.
    pub fn path(&self) -> String {
        match self.table.trim_matches(['[', ']']) {
            "" => self.key.to_owned(),
            table => format!("{table}.{}", self.key),
        }
    }
}

fn describe(table: &'static KeyTable, key: &'static Key) -> Description {
    let mut about = key.about.to_owned();
    if let Form::Word { words, .. } = key.form {
        for (word, meaning) in words {
            write!(about, " `{word}`: {meaning}.").ok();
        }
    }
    Description {
        table: table.header,
        key: key.name,
        value: value(&key.form),
        default: default(&key.form),
        about,
        see: key.see,
        needs_restart: key.needs_restart,
    }
}

fn value(form: &Form) -> String {
    match form {
        Form::Text { what, .. } => (*what).to_owned(),
        Form::Texts { what, .. } => format!("a list of {what}"),
        Form::Ports { most, .. } => format!("a list of 1 to {most} TCP ports"),
        Form::Count { unit, range, .. } => {
            format!(
                "{unit}: a whole number from {} to {}",
                range.start(),
                range.end()
            )
        }
        Form::Score { most, .. } => format!("a whole number from -{most} to {most}, but not 0"),
        Form::Flag { .. } => "`true` or `false`".to_owned(),
        Form::Word { words, .. } => {
            let words: Vec<_> = words
                .iter()
                .map(|(word, _)| format!("`\"{word}\"`"))
                .collect();
            match words.as_slice() {
                [one] => one.clone(),
                [first @ .., last] => format!("{} or {last}", first.join(", ")),
                [] => String::new(),
            }
        }
        Form::Duration { range, .. } => {
            let (least, most) = (write_duration(*range.start()), write_duration(*range.end()));
            format!("a duration from {least} to {most}")
        }
        Form::Size { range, .. } => {
            let (least, most) = (write_size(*range.start()), write_size(*range.end()));
            format!("a size from {least} to {most}")
        }
        Form::Table(table) => format!("the table `{}`", table.header),
        Form::Tables(table) => format!("tables `{}`", table.header),
    }
}

fn default(form: &Form) -> String {
    fn absent<T>(default: Absent<T>, shown: impl FnOnce(T) -> String) -> String {
        match default {
            Absent::Required => "required".to_owned(),
            Absent::Nothing => "none".to_owned(),
            Absent::Is(value) => format!("`{}`", shown(value)),
            Absent::Varies(words) => words.to_owned(),
        }
    }
    let quoted = |text: &dyn Display| format!("\"{text}\"");
    match form {
        Form::Text { default, .. } | Form::Word { default, .. } => {
            absent(*default, |text| quoted(&text))
        }
        Form::Texts { default, .. } => absent(*default, |list| format!("{list:?}")),
        Form::Ports { default, .. } => format!("`{default:?}`"),
        Form::Count { default, .. } => absent(*default, |number| number.to_string()),
        Form::Score { default, .. } => format!("`{default}`"),
        Form::Flag { default } => format!("`{default}`"),
        Form::Duration { default, .. } => {
            absent(*default, |duration| quoted(&write_duration(duration)))
        }
        Form::Size { default, .. } => format!("`\"{default}\"`"),
        Form::Table(_) | Form::Tables(_) => "none".to_owned(),
    }
}

/// All tables as Markdown: what `docs/configuration.md` has behind its opening.
pub fn markdown() -> String {
    let mut text = String::new();
    for table in tables() {
        let title = match table.header {
            "" => "At the top".to_owned(),
            header => format!("`{header}`"),
        };
        write!(text, "\n## {title}\n\n{}\n\n", fill(table.about, 100, "")).ok();
        text.push_str("| key | value | default | what it does |\n|---|---|---|---|\n");
        for key in table.keys {
            let mut about = key.about;
            if key.needs_restart {
                about.push_str(" *A change waits for the next start.*");
            }
            if !key.see.is_empty() {
                let see: Vec<_> = key.see.iter().map(|key| format!("`{key}`")).collect();
                write!(about, " See {}.", see.join(", ")).ok();
            }
            let row = [format!("`{}`", key.key), key.value, key.default, about];
            writeln!(
                text,
                "| {} |",
                row.map(|cell| cell.replace('|', "\\|")).join(" | ")
            )
            .ok();
        }
    }
    text
}

/// The text in lines of at most `width` characters, each with this indent.
pub fn fill(text: &str, width: usize, indent: &str) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let length = indent.len() + line.chars().count() + 1 + word.chars().count();
        if !line.is_empty() && length > width {
            lines.push_str(indent);
            lines.push_str(&line);
            lines.push('\n');
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines + indent + &line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_is_referred_to_is_described() {
        let all = tables();
        let keys = || all.iter().flat_map(|table| &table.keys);
        let mut known: Vec<String> = keys().map(Description::path).collect();
        known.extend(all.iter().map(|table| table.path().to_owned()));
        for key in keys() {
            for see in key.see {
                let own = key.path();
                assert!(known.iter().any(|path| path == see), "{own}: {see}");
                assert_ne!(own, *see, "a key is no news about itself");
            }
            assert!(key.about.ends_with('.'), "{}: {}", key.key, key.about);
        }
    }

    #[test]
    fn a_key_is_found_by_itself_by_its_table_and_by_both() {
        let keys = |name| {
            let found = find(name).map(|tables| {
                let keys = tables.iter().flat_map(|table| &table.keys);
                keys.map(|key| key.key).collect::<Vec<&str>>()
            });
            found.unwrap_or_default()
        };
        assert_eq!(keys("limits.sessions"), ["sessions"]);
        assert_eq!(keys("domains"), ["domains", "domains"]);
        assert_eq!(
            keys("[lists]"),
            ["snapshot", "shrink_max", "grow_max", "watch"]
        );
        assert_eq!(keys("filter.interfaces"), ["interfaces", "name", "role"]);
        assert_eq!(keys("hostname"), ["hostname"]);
        assert_eq!(keys(""), [""; 0]);
        assert_eq!(
            find("limit.sessions"),
            Err(Some("limits.sessions".to_owned()))
        );
        assert_eq!(find("zzz"), Err(None));
    }

    #[test]
    fn a_line_is_filled_up_to_its_width() {
        assert_eq!(fill("aa bb  cc", 7, "  "), "  aa bb\n  cc");
        assert_eq!(fill("aaaaaaaaaa", 4, ""), "aaaaaaaaaa");
    }
}
