//! What is wrong with a configuration, in words that help to put it right: every fault at once,
//! each with its file, line and column, the line itself, and what to do. Rejected: stopping at the
//! first fault (an edit and a reload per fault), and serde's errors (one at a time, and without the
//! advice).

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A place in a text file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// How many characters the fault takes on its first line; at least 1.
    pub width: usize,
    /// The line as it is in the file.
    pub text: String,
}

impl Position {
    /// The place of a range of bytes of `source`; a range beyond the end is cut to it.
    pub(super) fn of(source: &str, span: Range<usize>) -> Position {
        let start = floor_boundary(source, span.start);
        let line_start = source[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = source[start..]
            .find('\n')
            .map_or(source.len(), |at| start + at);
        let end = floor_boundary(source, span.end).clamp(start, line_end);
        Position {
            line: source[..line_start]
                .bytes()
                .filter(|&byte| byte == b'\n')
                .count()
                + 1,
            column: source[line_start..start].chars().count() + 1,
            width: source[start..end].chars().count().max(1),
            text: source[line_start..line_end]
                .trim_end_matches('\r')
                .to_owned(),
        }
    }
}

fn floor_boundary(source: &str, at: usize) -> usize {
    let mut at = at.min(source.len());
    while !source.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// One fault (or, among [warnings](super::Config::warnings), one doubt).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The file that holds it: the configuration, or a file that the configuration names.
    pub file: PathBuf,
    /// Where in the file; `None` when it is about the file as a whole.
    pub position: Option<Position>,
    /// What is wrong.
    pub message: String,
    /// What to do about it, where that is not plain from the message.
    pub advice: Option<String>,
}

impl Error {
    pub(super) fn whole_file(file: &Path, message: impl Into<String>) -> Error {
        Error {
            file: file.to_owned(),
            position: None,
            message: message.into(),
            advice: None,
        }
    }

    /// The same in one line, for a log: the place first, as compilers write it, and the advice in
    /// parentheses.
    #[must_use]
    pub fn one_line(&self) -> String {
        let file = self.file.display();
        let place = match &self.position {
            Some(at) => format!("{file}:{}:{}", at.line, at.column),
            None => file.to_string(),
        };
        match &self.advice {
            Some(advice) => format!("{place}: {} ({advice})", self.message),
            None => format!("{place}: {}", self.message),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        let Some(at) = &self.position else {
            write!(f, ": {}", self.message)?;
            return self
                .advice
                .iter()
                .try_for_each(|advice| write!(f, "\n      = {advice}"));
        };
        write!(f, ":{}:{}: {}", at.line, at.column, self.message)?;
        // A tab keeps its width in the line of marks, so that the marks stand under what they mean.
        let indent: String = at
            .text
            .chars()
            .take(at.column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        write!(f, "\n{:>5} | {}", at.line, at.text)?;
        write!(f, "\n      | {indent}{}", "^".repeat(at.width))?;
        self.advice
            .iter()
            .try_for_each(|advice| write!(f, "\n      = {advice}"))
    }
}

/// Every fault of a configuration, in the order of the file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub Vec<Error>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.0 {
            writeln!(f, "{error}")?;
        }
        match self.0.len() {
            1 => write!(f, "1 error"),
            n => write!(f, "{n} errors"),
        }
    }
}

impl std::error::Error for Errors {}
