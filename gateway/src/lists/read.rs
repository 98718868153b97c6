//! The first stage of the way of lists into force: their files are read.
//!
//! ```text
//! Sources --read--> Read --check--> Checked --place--> Compiled --write--> file
//! ```
//!
//! [`Sources::read`] takes in what the files hold and looks for faults; a snapshot that was
//! compiled elsewhere is opened, and its check sums are verified. [`Read::check`] compares that
//! with the lists before ([`guard`](super::guard)). [`Checked::place`](super::Checked::place) asks
//! for the memory in which the lists are to lie, and writes them there. So files with faults, and
//! lists that are refused, take no memory of the kernel. A start, a reload and `lists compile` all
//! go this way.
//!
//! Rejected: to write the lists where they are to lie and to judge them there, which was one step
//! less, and took memory of the kernel for lists that were then refused.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::build::{self, NumberedList};
use super::coverage::Covered;
use super::entries::Entries;
use super::file::Stored;
use super::format::{Progress, Reading};
use super::source::{FileFindings, ListSource, Sources};
use super::watch::Stamp;
use super::{Allocate, Compiled, List, ListAction, private};

/// What hears of progress and faults while files are read.
pub trait ReadObserver {
    /// How far the reading of a list has come.
    fn progress(&mut self, _source: &ListSource, _progress: Progress) {}

    /// A list was read, and this was found in it.
    fn read(&mut self, _source: &ListSource, _reading: &Reading, _found: &FileFindings) {}

    /// A file cannot be read: that of the list with this number (0 for a snapshot).
    fn unreadable(&mut self, _number: usize, _file: &Path, _why: String) {}
}

/// Files that were read, with faults or without.
#[derive(Debug)]
pub struct Attempt {
    /// When that began.
    pub at: SystemTime,
    /// In which state each was found, in the order of [`Sources::files`].
    pub stamps: Vec<Option<Stamp>>,
    /// What they hold; `None` if one of them cannot be read or is no list.
    pub read: Option<Read>,
}

/// What the files of lists hold. Nothing of it is settled, compared or in its place.
#[derive(Debug)]
pub struct Read {
    pub(super) from: From,
    /// Whether an operator has said that what the lists lost or gained is meant.
    pub(super) is_forced: bool,
}

#[derive(Debug)]
pub(super) enum From {
    /// The entries of each list, in the order of the configuration.
    Text(Vec<(List, Entries)>),
    /// A snapshot whose check sums are good.
    Snapshot(Stored),
}

impl Sources {
    /// Reads the files. With `strict` an invalid line is a fault in every list.
    pub fn read(&self, strict: bool, observer: &mut impl ReadObserver) -> Attempt {
        let at = SystemTime::now();
        match self {
            Self::Files(sources) => read_text(sources, strict, at, observer),
            Self::Snapshot(path) => {
                let stamps = vec![Stamp::of(path)];
                let read = Stored::open(path).and_then(Read::of_snapshot);
                let read = read.map_err(|error| observer.unreadable(0, path, error.to_string()));
                let read = read.ok();
                Attempt { at, stamps, read }
            }
        }
    }
}

fn read_text(
    sources: &[ListSource],
    strict: bool,
    at: SystemTime,
    observer: &mut impl ReadObserver,
) -> Attempt {
    let (mut stamps, mut lists) = (Vec::new(), Vec::new());
    let mut is_good = true;
    for (number, source) in sources.iter().enumerate() {
        // Also of a file that cannot be read, so that a change of it is noticed.
        let stamp = Stamp::of(&source.file);
        match source.read(|progress| observer.progress(source, progress)) {
            Ok(mut reading) => {
                let found = FileFindings::of(&reading, strict || source.strict);
                observer.read(source, &reading, &found);
                is_good &= found.faults.is_empty();
                stamps.push(reading.stamp);
                let entries = std::mem::take(&mut reading.entries);
                lists.push((List::of(source, &entries), entries));
            }
            Err(error) => {
                is_good = false;
                stamps.push(stamp);
                let why = format!("cannot read {}: {error}", source.file.display());
                observer.unreadable(number, &source.file, why);
            }
        }
    }
    let read = is_good.then_some(Read {
        from: From::Text(lists),
        is_forced: false,
    });
    Attempt { at, stamps, read }
}

impl Read {
    /// The lists of a snapshot, if all of its lines are as they were written.
    ///
    /// # Errors
    /// As [`Stored::verify`].
    pub fn of_snapshot(stored: Stored) -> Result<Self, super::file::Error> {
        stored.verify()?;
        Ok(Self {
            is_forced: stored.about().forced,
            from: From::Snapshot(stored),
        })
    }

    /// What the lists are called, and how much is in them, in the order of the configuration.
    pub fn lists(&self) -> Vec<List> {
        match &self.from {
            From::Text(lists) => lists.iter().map(|(list, _)| list.clone()).collect(),
            From::Snapshot(stored) => stored.about().lists.clone(),
        }
    }

    /// The same, with the word of an operator that what they lost or gained is meant.
    #[must_use]
    pub fn forced(self, is_forced: bool) -> Self {
        let is_forced = is_forced || self.is_forced;
        Self { is_forced, ..self }
    }

    /// Settles the overlaps.
    pub(super) fn settle(self) -> Settled {
        match self.from {
            From::Text(lists) => Settled::Text(Box::new(Plan::of(lists))),
            From::Snapshot(stored) => Settled::Snapshot(stored),
        }
    }
}

/// Lists whose overlaps are settled, and that are written wherever memory is given for them, as
/// often as that is.
#[derive(Debug)]
pub(super) enum Settled {
    Text(Box<Plan>),
    Snapshot(Stored),
}

impl Settled {
    /// Writes what the filter needs into this memory, and the rest into our own.
    pub(super) fn write(&self, allocate: Allocate) -> Result<Compiled, super::file::Error> {
        match self {
            Self::Text(plan) => Ok(plan.write(allocate)),
            Self::Snapshot(stored) => stored.load(allocate),
        }
    }
}

/// Settled lists of which only the lines are missing.
pub(super) struct Plan {
    lists: Vec<List>,
    filtered: build::Plan,
    rejected: build::Plan,
}

impl Plan {
    /// Settles lists that are given in the order of the configuration.
    pub(super) fn of(lists: Vec<(List, Entries)>) -> Self {
        let (mut filtered, mut rejected) = (Vec::new(), Vec::new());
        let mut kept = Vec::with_capacity(lists.len());
        for (number, (list, entries)) in (0..).zip(lists) {
            let numbered = NumberedList {
                number,
                rank: list.action.rank(),
                entries,
            };
            match list.action {
                ListAction::Permit | ListAction::Drop | ListAction::HardDrop => {
                    filtered.push(numbered);
                }
                ListAction::Reject => rejected.push(numbered),
            }
            kept.push(list);
        }
        Self {
            lists: kept,
            filtered: build::plan(filtered),
            rejected: build::plan(rejected),
        }
    }

    pub(super) fn write(&self, allocate: Allocate) -> Compiled {
        Compiled {
            lists: self.lists.clone(),
            filtered: self.filtered.write(allocate),
            rejected: self.rejected.write(private),
        }
    }
}

impl core::fmt::Debug for Plan {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Plan({} lists)", self.lists.len())
    }
}

impl ListSource {
    fn read(&self, progress: impl FnMut(Progress)) -> io::Result<Reading> {
        super::format::read_file(self.format, &self.file, progress)
    }
}

impl List {
    /// A list as it was read.
    pub fn of(source: &ListSource, entries: &Entries) -> List {
        List {
            name: source.name.clone(),
            action: source.action,
            entries: entries.len() as u64,
            ipv6_entries: entries.ipv6.len() as u64,
            covered: Some(Covered::of(entries)),
            // The snapshot may be asked from another directory.
            file: std::path::absolute(&source.file).ok(),
        }
    }
}
