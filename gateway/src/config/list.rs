//! `[lists]`, `[[list]]` and the files they name: the addresses that the filter and the SMTP side
//! are given.

pub(super) mod keys;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::document::Document;
use super::error::{Error, Errors, Position};
use super::section::Section;
use crate::lists::file;
use crate::lists::file::About;
use crate::lists::format::{Format, Reading};
use crate::lists::source::{Finding, Findings, Source};
use crate::lists::watch::Stamp;
use crate::lists::{Allocate, Compiled, Covered, List, ListAction};

/// The most lists that a configuration may have: each has its counters in the kernel.
const LISTS_MAX: usize = 256;

/// `[lists]` and `[[list]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lists {
    /// In the order of the configuration.
    pub sources: Vec<Source>,
    /// A compiled file in place of the sources.
    pub snapshot: Option<PathBuf>,
    /// Which state of it was loaded.
    snapshot_stamp: Option<Stamp>,
    /// Percent of its entries that a list may lose between two compiles; 100 switches the guard
    /// off.
    pub shrink_max: u8,
    /// Percent of the address space that a drop or reject list may newly cover between two
    /// compiles, and whether it may newly cover those whom the gate lives by; 100 switches the
    /// guard off.
    pub grow_max: u8,
    /// Whether files that change are read again without being asked.
    pub watch: bool,
    /// When the files were read.
    pub compiled_at: SystemTime,
    /// Whether what is in force is of an earlier compile than what was read.
    pub are_old: bool,
    /// Why that is so, where files could not be used at the start.
    pub fallback: Vec<String>,
    /// What each list covers, in the order of the configuration; unknown of lists that were
    /// compiled elsewhere.
    pub covered: Option<Vec<Covered>>,
    /// Whether the snapshot says that what its lists lost or gained is meant.
    pub are_forced: bool,
}

/// What becomes of the files of lists while a configuration is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Files {
    /// They are read and compiled, what the filter needs into this memory.
    Read(Allocate),
    /// The same; those of the last compile stand in where files cannot be used.
    ReadOrLast(Allocate),
    /// The caller reads them.
    Leave,
}

impl Lists {
    /// Reads the tables.
    pub(super) fn read(
        mut table: Section<'_, '_>,
        sections: Vec<Section<'_, '_>>,
    ) -> (Lists, Vec<Range<usize>>) {
        let document = table.document;
        let mut snapshot = table.text("snapshot", |file| Ok(document.resolve(file)));
        if !sections.is_empty()
            && let Some(file) = snapshot.take()
        {
            document.error_with(
                &file.span(),
                "there is a compiled snapshot and there are [[list]] tables: one or the other",
                "compile the lists into the snapshot with `portcullis lists compile`, or leave it \
                 out",
            );
        }
        let snapshot_span = snapshot.as_ref().map(toml::Spanned::span);
        let mut lists = Lists {
            sources: Vec::new(),
            snapshot: snapshot.map(toml::Spanned::into_inner),
            snapshot_stamp: None,
            compiled_at: UNIX_EPOCH,
            are_old: false,
            fallback: Vec::new(),
            covered: None,
            are_forced: false,
            shrink_max: table.count("shrink_max") as u8,
            grow_max: table.count("grow_max") as u8,
            watch: table.flag("watch"),
        };
        table.finish();
        let mut spans = Vec::new();
        spans.extend(snapshot_span);
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

    /// Reads the files and settles their overlaps; what the filter needs goes into the memory that
    /// is asked for.
    pub(super) fn compile(&mut self, allocate: Allocate) -> Outcome {
        let mut outcome = Outcome::default();
        self.compiled_at = SystemTime::now();
        self.are_old = false;
        self.fallback.clear();
        self.covered = None;
        self.are_forced = false;
        if let Some(snapshot) = &self.snapshot {
            self.snapshot_stamp = Stamp::of(snapshot);
            let stored = file::Stored::open(snapshot);
            self.are_forced = stored.as_ref().is_ok_and(|stored| stored.about().forced);
            match stored.and_then(|stored| stored.load(allocate)) {
                Ok(compiled) => outcome.compiled = compiled,
                Err(error) => outcome.unreadable.push((0, error.to_string())),
            }
            return outcome;
        }
        let mut lists = Vec::new();
        let mut covered = Vec::new();
        for (number, source) in self.sources.iter_mut().enumerate() {
            match source.read(|_| {}) {
                Ok(reading) => {
                    outcome.take(source, &reading);
                    covered.push(Covered::of(&reading.entries));
                    lists.push((List::of(source, &reading), reading.entries));
                }
                Err(error) => {
                    let message = format!("cannot read {}: {error}", source.file.display());
                    outcome.unreadable.push((number, message));
                }
            }
        }
        if outcome.is_good() {
            outcome.compiled = Compiled::build(lists, allocate);
            self.covered = Some(covered);
        }
        outcome
    }

    /// Where files cannot be used, takes the lists of the last compile, if they are the same by
    /// name and action. What is wrong with the files is then no error, but [why](Lists::fallback)
    /// those are in force.
    pub(super) fn fall_back(
        &mut self,
        outcome: Outcome,
        saved: &Path,
        allocate: Allocate,
    ) -> Outcome {
        if outcome.is_good() {
            return outcome;
        }
        let Ok(last) = file::Stored::open(saved) else {
            return outcome;
        };
        if !self.are_those_of(last.about()) {
            return outcome;
        }
        let (compiled_at, path) = (last.about().compiled_at, last.path().display().to_string());
        let Ok(compiled) = last.load(allocate) else {
            return outcome;
        };
        let unreadable = outcome.unreadable.into_iter();
        let unreadable = unreadable.map(|(number, message)| match self.sources.get(number) {
            Some(source) => format!("list {}: {message}", source.name),
            None => format!("lists.snapshot: {message}"),
        });
        let faults = outcome.faults.iter().map(|fault| match &fault.position {
            Some(at) => format!("{}:{}: {}", fault.file.display(), at.line, fault.message),
            None => format!("{}: {}", fault.file.display(), fault.message),
        });
        self.fallback = unreadable.chain(faults).collect();
        self.fallback
            .push(of_last_compile(Path::new(&path), compiled_at));
        self.fallback.push(
            "put the files right, which is noticed (with lists.watch) or wants a reload; \
             `portcullis check` shows every fault"
                .to_owned(),
        );
        self.are_old = true;
        self.compiled_at = UNIX_EPOCH + Duration::from_secs(compiled_at);
        Outcome {
            compiled,
            doubts: outcome.doubts,
            ..Outcome::default()
        }
    }

    /// Whether a snapshot has the lists of this configuration, by their names and actions, or was
    /// loaded from its snapshot.
    fn are_those_of(&self, about: &About) -> bool {
        if let Some(snapshot) = &self.snapshot {
            return about.loaded_from.as_ref() == Some(snapshot);
        }
        about.loaded_from.is_none()
            && self.sources.len() == about.lists.len()
            && self.sources.iter().all(|source| {
                let mut lists = about.lists.iter();
                lists.any(|list| source.name == list.name && source.action == list.action)
            })
    }

    /// Reads the files again, as they are now, without the configuration.
    ///
    /// # Errors
    /// Every fault of the lists.
    pub fn compile_again(
        &self,
        allocate: Allocate,
    ) -> Result<(Lists, Compiled, Vec<Error>), Errors> {
        let mut lists = self.clone();
        let outcome = lists.compile(allocate);
        if outcome.is_good() {
            return Ok((lists, outcome.compiled, outcome.doubts));
        }
        let unreadable = outcome.unreadable.into_iter().map(|(number, message)| {
            let file = lists.sources.get(number).map(|source| &source.file);
            let file = file
                .or(lists.snapshot.as_ref())
                .cloned()
                .unwrap_or_default();
            Error::whole_file(&file, message)
        });
        Err(Errors(unreadable.chain(outcome.faults).collect()))
    }

    /// When the files were read, in seconds since 1970.
    pub fn compiled_at_seconds(&self) -> u64 {
        let since = self.compiled_at.duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    }

    /// The files, each with its stamp when it was read.
    pub fn files(&self) -> impl Iterator<Item = (&Path, Option<Stamp>)> {
        let sources = self
            .sources
            .iter()
            .map(|source| (&*source.file, source.stamp));
        let snapshot = self
            .snapshot
            .iter()
            .map(|file| (&**file, self.snapshot_stamp));
        sources.chain(snapshot)
    }
}

/// That the lists of an earlier compile are in force.
pub fn of_last_compile(path: &Path, compiled_at: u64) -> String {
    let age = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs().saturating_sub(compiled_at) / 60);
    format!(
        "the lists of the last compile are in force, of {age} minutes ago: {}",
        path.display()
    )
}

/// What became of the files of lists.
#[derive(Default)]
pub(super) struct Outcome {
    compiled: Compiled,
    /// Files that cannot be read, by their place among the sources.
    unreadable: Vec<(usize, String)>,
    faults: Vec<Error>,
    doubts: Vec<Error>,
}

impl Outcome {
    fn is_good(&self) -> bool {
        self.unreadable.is_empty() && self.faults.is_empty()
    }

    /// Notes what was found in a list.
    fn take(&mut self, source: &Source, reading: &Reading) {
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
        self.faults.extend(findings.faults.into_iter().map(error));
        self.doubts.extend(findings.doubts.into_iter().map(error));
    }

    /// Tells what was found; `spans`: where the configuration names the files.
    pub(super) fn tell(self, document: &Document<'_>, spans: &[Range<usize>]) -> Compiled {
        for (number, message) in self.unreadable {
            let span = spans.get(number).cloned().unwrap_or_default();
            document.error_with(&span, message, ADVICE_PATH);
        }
        self.faults
            .into_iter()
            .for_each(|fault| document.error_elsewhere(fault));
        self.doubts
            .into_iter()
            .for_each(|doubt| document.warn_elsewhere(doubt));
        self.compiled
    }
}

/// A table and where it names its file.
fn read_source(mut s: Section<'_, '_>, others: &[Source]) -> Option<(Source, Range<usize>)> {
    let name = s.text("name", |name| match list_name(name) {
        Ok(()) if others.iter().any(|other| other.name == name) => {
            Err(format!("\"{name}\" is named twice"))
        }
        checked => checked.map(|()| name.to_owned()),
    });
    let document = s.document;
    let file = s.text("file", |file| Ok(document.resolve(file)));
    let format = s.word("format", &Format::ALL);
    let action = s.word("action", &ACTIONS);
    let strict = s.flag("strict");
    s.finish();
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

/// The octets of a file that the configuration names at `span`.
pub(super) fn read_file(s: &Section<'_, '_>, path: &Path, span: &Range<usize>) -> Option<Vec<u8>> {
    s.document.names_file(path);
    match fs::read(path) {
        Ok(octets) => Some(octets),
        Err(error) => {
            let message = format!("cannot read {}: {error}", path.display());
            s.document.error_with(span, message, ADVICE_PATH);
            None
        }
    }
}

const ADVICE_PATH: &str = "paths are relative to the directory of the configuration file";
