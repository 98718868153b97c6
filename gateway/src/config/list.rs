//! `[lists]`, `[[list]]` and the files they name: the addresses that the filter and the SMTP side are given.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::document::Document;
use super::error::{Error, Position};
use super::section::Section;
use crate::lists::format::{Format, Reading};
use crate::lists::guard;
use crate::lists::source::{Finding, Findings, Source};
use crate::lists::{Allocate, Compiled, List, ListAction};

/// The most lists that a configuration may have: each has its counters in the kernel.
const LISTS_MAX: usize = 256;

/// `[lists]` and `[[list]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lists {
    /// In the order of the configuration.
    pub sources: Vec<Source>,
    /// A compiled file in place of the sources.
    pub snapshot: Option<PathBuf>,
    /// Percent of its entries that a list may lose between two compiles; 100 switches the guard off.
    pub shrink_max: u8,
    /// Whether files that change are read again without being asked.
    pub watch: bool,
}

/// What becomes of the files of lists while a configuration is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Files {
    /// They are read and compiled, what the filter needs into this memory.
    Read(Allocate),
    /// Somebody else reads them.
    Leave,
}

impl Lists {
    /// Reads the tables.
    pub(super) fn read(
        mut table: Section<'_, '_>,
        sections: Vec<Section<'_, '_>>,
    ) -> (Lists, Vec<Range<usize>>) {
        let document = table.document;
        let snapshot = table.text("snapshot", |file| Ok(document.resolve(file)));
        if let (Some(file), false) = (&snapshot, sections.is_empty()) {
            document.error_with(
                &file.span(),
                "there is a compiled snapshot and there are [[list]] tables: one or the other",
                "compile the lists into the snapshot with `portcullis lists compile`, or leave it out",
            );
        }
        let mut lists = Lists {
            sources: Vec::new(),
            snapshot: snapshot.map(toml::Spanned::into_inner),
            shrink_max: table.count(
                "shrink_max",
                guard::SHRINK_MAX.into(),
                0..=guard::OFF.into(),
            ) as u8,
            watch: table.flag("watch", true),
        };
        table.finish(&[]);
        let mut spans = Vec::new();
        for (number, s) in sections.into_iter().enumerate() {
            if number == LISTS_MAX {
                document.error(&s.span, format!("more than {LISTS_MAX} lists"));
            }
            if let Some((source, span)) = read_source(s, &lists.sources)
                && number < LISTS_MAX
            {
                lists.sources.push(source);
                spans.push(span);
            }
        }
        (lists, spans)
    }

    /// Reads the files and settles their overlaps. `spans`: where the configuration names the files.
    pub(super) fn compile(
        &mut self,
        document: &Document<'_>,
        spans: &[Range<usize>],
        allocate: Allocate,
    ) -> Compiled {
        let mut lists = Vec::new();
        for (source, span) in self.sources.iter_mut().zip(spans) {
            match source.read(|_| {}) {
                Ok(reading) => {
                    tell(document, source, &reading);
                    lists.push((List::of(source, &reading), reading.entries));
                }
                Err(error) => cannot_read(document, &source.file, span, &error),
            }
        }
        if document.has_errors() {
            return Compiled::default();
        }
        Compiled::build(lists, allocate)
    }
}

/// A table and where it names its file.
fn read_source(mut s: Section<'_, '_>, others: &[Source]) -> Option<(Source, Range<usize>)> {
    let name = s.required_text("name", |name| match list_name(name) {
        Ok(()) if others.iter().any(|other| other.name == name) => {
            Err(format!("\"{name}\" is named twice"))
        }
        checked => checked.map(|()| name.to_owned()),
    });
    let document = s.document;
    let file = s.required_text("file", |file| Ok(document.resolve(file)));
    let format = s.word("format", Some("cidr"), &Format::ALL, &[]);
    s.missing_unless_given("action");
    let action = s.word("action", None, &ACTIONS, &[]);
    let strict = s.flag("strict", false);
    s.finish(&["url", "refresh"]);
    let (name, file) = (name?.into_inner(), file?);
    let span = file.span();
    let source = Source {
        name,
        action: action?,
        format: format?,
        file: file.into_inner(),
        strict,
        stamp: None,
    };
    Some((source, span))
}

const ACTIONS: [(&str, ListAction); 3] = [
    ("drop", ListAction::Drop),
    ("reject", ListAction::Reject),
    ("permit", ListAction::Permit),
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

/// What was found in a list.
fn tell(document: &Document<'_>, source: &Source, reading: &Reading) {
    let error = |finding: Finding| Error {
        file: source.file.clone(),
        position: finding.line.map(|(line, text)| Position {
            line: usize::try_from(line).unwrap_or(usize::MAX),
            column: 1,
            width: text.chars().count().max(1),
            text,
        }),
        message: finding.message,
        advice: finding.advice.map(str::to_owned),
    };
    let findings = Findings::of(reading, source.strict);
    findings
        .faults
        .into_iter()
        .for_each(|fault| document.error_elsewhere(error(fault)));
    findings
        .doubts
        .into_iter()
        .for_each(|doubt| document.warn_elsewhere(error(doubt)));
}

/// The octets of a file that the configuration names at `span`.
pub(super) fn read_file(s: &Section<'_, '_>, path: &Path, span: &Range<usize>) -> Option<Vec<u8>> {
    match fs::read(path) {
        Ok(octets) => Some(octets),
        Err(error) => {
            cannot_read(s.document, path, span, &error);
            None
        }
    }
}

fn cannot_read(document: &Document<'_>, path: &Path, span: &Range<usize>, error: &io::Error) {
    document.error_with(
        span,
        format!("cannot read {}: {error}", path.display()),
        "paths are relative to the directory of the configuration file",
    );
}
