//! `[lists]`, `[[list]]` and the files they name: the addresses that the filter and the SMTP side
//! are given.
//!
//! The module reads the tables, and finds the line of the configuration at which a fault of a list
//! file is reported. The content of the files is the business of [`lists`](crate::lists).

pub(super) mod keys;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::document::Document;
use super::error::{Error, Errors, Position};
use super::section::Section;
use crate::lists::file::{About, Stored};
use crate::lists::format::{Format, Reading};
use crate::lists::source::{FileFinding, FileFindings, ListSource, Sources};
use crate::lists::watch::Stamp;
use crate::lists::{Attempt, LISTS_MAX, ListAction, Read, ReadObserver};

/// `[lists]` and `[[list]]`, and the lists that the files gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lists {
    /// Where the lists come from.
    pub sources: Sources,
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
    /// Which state of each file was read.
    stamps: Vec<Option<Stamp>>,
}

/// What becomes of the files of lists while a configuration is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Files {
    /// They are read.
    Read,
    /// They are read; those of the last compile stand in where files cannot be used.
    ReadOrLast,
    /// The caller reads them.
    Leave,
}

impl Lists {
    /// Reads the tables. With them come the places where they name their files.
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
        let shrink_max = table.count("shrink_max") as u8;
        let grow_max = table.count("grow_max") as u8;
        let watch = table.flag("watch");
        table.finish();
        let mut spans = Vec::new();
        let mut lists = Vec::new();
        for (number, s) in sections.into_iter().enumerate() {
            if number == LISTS_MAX {
                document.error(&s.span, format!("more than {LISTS_MAX} lists"));
            }
            if let Some((source, span)) = read_source(s, &lists)
                && number < LISTS_MAX
            {
                lists.push(source);
                spans.push(span);
            }
        }
        spans.extend(snapshot.as_ref().map(toml::Spanned::span));
        let sources = match snapshot {
            Some(snapshot) => Sources::Snapshot(snapshot.into_inner()),
            None => Sources::Files(lists),
        };
        let lists = Lists {
            sources,
            shrink_max,
            grow_max,
            watch,
            compiled_at: UNIX_EPOCH,
            are_old: false,
            fallback: Vec::new(),
            stamps: Vec::new(),
        };
        (lists, spans)
    }

    /// Reads the files. `None` if they cannot be used: then `found` says why.
    fn read_files(&mut self, found: &mut FoundInFiles) -> Option<Read> {
        let Attempt { at, stamps, read } = self.sources.read(false, found);
        self.compiled_at = at;
        self.stamps = stamps;
        self.are_old = false;
        self.fallback.clear();
        read
    }

    /// Reads the files and reports faults. If they cannot be used, the lists of the last compile
    /// take their place, if there is a path to it.
    pub(super) fn read_and_tell(
        &mut self,
        document: &Document<'_>,
        spans: &[Range<usize>],
        last: Option<&Path>,
    ) -> Option<Read> {
        let mut found = FoundInFiles::default();
        let read = self.read_files(&mut found);
        let read = read.or_else(|| self.fall_back(&mut found, last?));
        found.tell(document, spans);
        read
    }

    /// Takes the lists of the last compile, if they are the same by name and action. What is wrong
    /// with the files is then no error, but [why](Lists::fallback) those are in force.
    fn fall_back(&mut self, found: &mut FoundInFiles, saved: &Path) -> Option<Read> {
        let last = Stored::open(saved).ok()?;
        if !self.are_those_of(last.about()) {
            return None;
        }
        let compiled_at = last.about().compiled_at;
        let read = Read::of_snapshot(last).ok()?;
        let FoundInFiles {
            unreadable, faults, ..
        } = std::mem::take(found);
        let unreadable = unreadable.into_iter();
        let unreadable =
            unreadable.map(
                |(number, _, message)| match self.sources.lists().get(number) {
                    Some(source) => format!("list {}: {message}", source.name),
                    None => format!("lists.snapshot: {message}"),
                },
            );
        let faults = faults.iter().map(|fault| match &fault.position {
            Some(at) => format!("{}:{}: {}", fault.file.display(), at.line, fault.message),
            None => format!("{}: {}", fault.file.display(), fault.message),
        });
        self.fallback = unreadable.chain(faults).collect();
        self.fallback.push(of_last_compile(saved, compiled_at));
        self.fallback.push(
            "correct the files; with lists.watch the gate reads them again, otherwise reload it; \
             `portcullis check` shows every fault"
                .to_owned(),
        );
        self.take_last(compiled_at);
        Some(read)
    }

    /// Notes that the lists in force are those of the last compile, which was at this second since
    /// 1970.
    pub fn take_last(&mut self, compiled_at: u64) {
        self.are_old = true;
        self.compiled_at = UNIX_EPOCH + Duration::from_secs(compiled_at);
    }

    /// Whether a snapshot has the lists of this configuration, by their names and actions, or was
    /// loaded from its snapshot.
    fn are_those_of(&self, about: &About) -> bool {
        let sources = match &self.sources {
            Sources::Snapshot(snapshot) => return about.loaded_from.as_ref() == Some(snapshot),
            Sources::Files(sources) => sources,
        };
        about.loaded_from.is_none()
            && sources.len() == about.lists.len()
            && sources.iter().all(|source| {
                let mut lists = about.lists.iter();
                lists.any(|list| source.name == list.name && source.action == list.action)
            })
    }

    /// Reads the files again, as they are now, without the configuration. With them comes what is
    /// doubtful about them.
    ///
    /// # Errors
    /// Every fault of the files.
    pub(super) fn read_again(&mut self) -> Result<(Read, Vec<Error>), Errors> {
        let mut found = FoundInFiles::default();
        match self.read_files(&mut found) {
            Some(read) => Ok((read, found.doubts)),
            None => {
                let unreadable = found.unreadable.into_iter();
                let unreadable =
                    unreadable.map(|(_, file, message)| Error::whole_file(&file, message));
                Err(Errors(unreadable.chain(found.faults).collect()))
            }
        }
    }

    /// When the files were read, in seconds since 1970.
    pub fn compiled_at_seconds(&self) -> u64 {
        let since = self.compiled_at.duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    }

    /// The files, each with its stamp when it was read.
    pub fn files(&self) -> impl Iterator<Item = (&Path, Option<Stamp>)> {
        let stamps = self.stamps.iter().copied();
        let stamps = stamps.chain(std::iter::repeat(None));
        self.sources.files().zip(stamps)
    }
}

/// That the lists of an earlier compile are in force.
pub fn of_last_compile(path: &Path, compiled_at: u64) -> String {
    let age = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs().saturating_sub(compiled_at) / 60);
    format!(
        "the lists of the last compile are in force, compiled {age} minutes ago: {}",
        path.display()
    )
}

/// What was found in the files of lists.
#[derive(Default)]
struct FoundInFiles {
    /// Files that cannot be read: their place among the sources, their path and why.
    unreadable: Vec<(usize, PathBuf, String)>,
    faults: Vec<Error>,
    doubts: Vec<Error>,
}

impl ReadObserver for FoundInFiles {
    fn read(&mut self, source: &ListSource, _: &Reading, found: &FileFindings) {
        let error = |finding: &FileFinding| Error {
            file: source.file.clone(),
            position: finding.line.as_ref().map(|(line, text)| Position {
                line: usize::try_from(*line).unwrap_or(usize::MAX),
                column: 1,
                width: text.chars().count().max(1),
                text: text.clone(),
            }),
            message: finding.message.clone(),
            advice: finding.advice.map(str::to_owned),
        };
        self.faults.extend(found.faults.iter().map(error));
        self.doubts.extend(found.doubts.iter().map(error));
    }

    fn unreadable(&mut self, number: usize, file: &Path, why: String) {
        self.unreadable.push((number, file.to_owned(), why));
    }
}

impl FoundInFiles {
    /// Tells what was found; `spans`: where the configuration names the files.
    fn tell(self, document: &Document<'_>, spans: &[Range<usize>]) {
        for (number, _, message) in self.unreadable {
            let span = spans.get(number).cloned().unwrap_or_default();
            document.error_with(&span, message, ADVICE_PATH);
        }
        self.faults
            .into_iter()
            .for_each(|fault| document.error_elsewhere(fault));
        self.doubts
            .into_iter()
            .for_each(|doubt| document.warn_elsewhere(doubt));
    }
}

/// A table and where it names its file.
fn read_source(
    mut s: Section<'_, '_>,
    others: &[ListSource],
) -> Option<(ListSource, Range<usize>)> {
    let name = s.text("name", |name| match list_name(name) {
        Ok(()) if others.iter().any(|other| other.name == name) => {
            Err(format!("\"{name}\" is named twice"))
        }
        checked => checked.map(|()| name.to_owned()),
    });
    let document = s.document;
    let file = s.text("file", |file| Ok(document.resolve(file)));
    let format = s.word("format", &Format::ALL);
    let actions = [ListAction::Drop, ListAction::Reject, ListAction::Permit];
    let actions = actions.map(|action| (action.as_str(), action));
    let action = s.word("action", &actions);
    let is_hard = s.flag("hard");
    let action = match action {
        Some(ListAction::Drop) if is_hard => Some(ListAction::HardDrop),
        Some(action) if is_hard => {
            let message = format!("a {} list cannot be hard", action.as_str());
            let advice = "leave the key out: only a drop list makes a difference for grants";
            document.error_with(&s.span_of("hard"), message, advice);
            None
        }
        action => action,
    };
    let strict = s.flag("strict");
    s.finish();
    let (name, file) = (name?.into_inner(), file?);
    let span = file.span();
    let source = ListSource {
        name,
        action: action?,
        format: format?,
        file: file.into_inner(),
        strict,
    };
    Some((source, span))
}

/// The name of a list is used in metrics, in rule names and in replies.
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
