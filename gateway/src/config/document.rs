//! The configuration file while it is read: its text, and what was found in it so far.
//!
//! It is read key by key (see [`section`](super::section)), so that every fault is found with its
//! place, no key is passed over in silence, and what is in force (given or by default) can be shown
//! afterwards from the same calls.
//!
//! Rejected: serde's derive. It stops at the first fault, has no word for "belongs to a later
//! version", and leaves the defaults where `check` cannot see them.

use std::cell::RefCell;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeTable;

use super::error::{Error, Position};

/// A setting as it is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// The value, written as TOML.
    pub value: String,
    /// Whether the file says so; else it is the default.
    pub given: bool,
}

/// The settings of one table of the configuration, as they are in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// `""` for the top, `"[limits]"`, `"[[listener]]"`.
    pub header: String,
    /// In the order in which the table is documented.
    pub settings: Vec<Setting>,
}

/// One file while it is read: the text, and what was found so far.
pub(super) struct Document<'d> {
    pub(super) path: &'d Path,
    pub(super) text: &'d str,
    errors: RefCell<Vec<(usize, Error)>>,
    warnings: RefCell<Vec<(usize, Error)>>,
    tables: RefCell<Vec<Table>>,
    files: RefCell<Vec<PathBuf>>,
}

/// A document that was read: what is wrong with it, and what is in force.
pub(super) struct ReadDocument {
    pub(super) errors: Vec<Error>,
    /// With where they are, in no order: more may come.
    pub(super) warnings: Vec<(usize, Error)>,
    pub(super) tables: Vec<Table>,
    /// Files that it names, except those of lists.
    pub(super) files: Vec<PathBuf>,
}

impl<'d> Document<'d> {
    pub(super) fn new(path: &'d Path, text: &'d str) -> Document<'d> {
        Document {
            path,
            text,
            errors: RefCell::default(),
            warnings: RefCell::default(),
            tables: RefCell::default(),
            files: RefCell::default(),
        }
    }

    /// The tables of the text, with a fault noted for each place that is not TOML.
    pub(super) fn parse(&self) -> Spanned<DeTable<'d>> {
        let (root, faults) = DeTable::parse_recoverable(self.text);
        for fault in faults {
            let message = fault.message().replace('\n', ", ");
            self.error(
                &fault.span().unwrap_or(0..0),
                format!("not TOML: {message}"),
            );
        }
        root
    }

    /// A path in the configuration is relative to the directory of the configuration file.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    pub(super) fn error(&self, span: &Range<usize>, message: impl Into<String>) {
        self.note(&self.errors, span, message.into(), None);
    }

    pub(super) fn error_with(
        &self,
        span: &Range<usize>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.note(&self.errors, span, message.into(), Some(advice.into()));
    }

    /// A fault that is not at a place of this file.
    pub(super) fn error_elsewhere(&self, error: Error) {
        self.errors.borrow_mut().push((usize::MAX, error));
    }

    pub(super) fn warn(&self, span: &Range<usize>, message: impl Into<String>) {
        self.note(&self.warnings, span, message.into(), None);
    }

    pub(super) fn warn_elsewhere(&self, warning: Error) {
        self.warnings.borrow_mut().push((usize::MAX, warning));
    }

    fn note(
        &self,
        to: &RefCell<Vec<(usize, Error)>>,
        span: &Range<usize>,
        message: String,
        advice: Option<String>,
    ) {
        let position = Some(Position::of(self.text, span.clone()));
        to.borrow_mut().push((
            span.start,
            Error {
                file: self.path.to_owned(),
                position,
                message,
                advice,
            },
        ));
    }

    pub(super) fn has_errors(&self) -> bool {
        self.error_count() > 0
    }

    pub(super) fn error_count(&self) -> usize {
        self.errors.borrow().len()
    }

    /// Notes what is in force in one table.
    pub(super) fn in_force(&self, table: Table) {
        self.tables.borrow_mut().push(table);
    }

    /// Notes a file that is read with this one.
    pub(super) fn names_file(&self, path: &Path) {
        self.files.borrow_mut().push(path.to_owned());
    }

    pub(super) fn finish(self) -> ReadDocument {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|(at, _)| *at);
        ReadDocument {
            errors: errors.into_iter().map(|(_, error)| error).collect(),
            warnings: self.warnings.into_inner(),
            tables: self.tables.into_inner(),
            files: self.files.into_inner(),
        }
    }
}
