//! Where a list comes from: a file, how it is written, and what being listed in it means.

use std::path::{Path, PathBuf};
use std::slice;

use super::ListAction;
use super::format::{Format, Reading};

/// A list, as the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListSource {
    /// For people, and unique among the lists.
    pub name: String,
    /// What being on it means.
    pub action: ListAction,
    /// How the file is written.
    pub format: Format,
    /// The file.
    pub file: PathBuf,
    /// Whether an invalid line is an error, rather than skipped and counted.
    pub strict: bool,
}

/// Where all lists come from: one or the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources {
    /// A file each, in the order of the configuration.
    Files(Vec<ListSource>),
    /// A snapshot that was compiled before.
    Snapshot(PathBuf),
}

impl Default for Sources {
    fn default() -> Self {
        Self::Files(Vec::new())
    }
}

impl Sources {
    /// Whether there are no lists.
    pub fn is_empty(&self) -> bool {
        self.files().next().is_none()
    }

    /// The lists that have a file each.
    pub fn lists(&self) -> &[ListSource] {
        match self {
            Self::Files(lists) => lists,
            Self::Snapshot(_) => &[],
        }
    }

    /// The snapshot, if that is where they come from.
    pub fn snapshot(&self) -> Option<&Path> {
        match self {
            Self::Files(_) => None,
            Self::Snapshot(path) => Some(path),
        }
    }

    /// The files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let snapshot = self.snapshot().into_iter();
        let lists: slice::Iter<'_, ListSource> = self.lists().iter();
        lists.map(|list| &*list.file).chain(snapshot)
    }
}

/// What is wrong with a list as it was read: faults make it useless, doubts do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileFindings {
    /// Why the list must not be used.
    pub faults: Vec<FileFinding>,
    /// What an operator should look at.
    pub doubts: Vec<FileFinding>,
}

/// Something about a file, or about one line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFinding {
    /// Number and beginning of the line, if it is about one.
    pub line: Option<(u64, String)>,
    /// What was found.
    pub message: String,
    /// What to do.
    pub advice: Option<&'static str>,
}

impl FileFinding {
    fn of_file(message: impl Into<String>) -> FileFinding {
        FileFinding {
            line: None,
            message: message.into(),
            advice: None,
        }
    }
}

impl FileFindings {
    /// Looks at a list as it was read.
    pub fn of(reading: &Reading, strict: bool) -> FileFindings {
        let mut findings = FileFindings::default();
        let (bad, empty) = (reading.invalid_line_count, reading.entries.is_empty());
        if let Some(foreign) = reading.foreign {
            findings.faults.push(FileFinding::of_file(foreign));
            return findings;
        }
        if strict {
            let lines = reading.invalid_lines.iter().map(|bad| FileFinding {
                line: Some((bad.line, bad.text.clone())),
                message: bad.reason.to_owned(),
                advice: None,
            });
            findings.faults.extend(lines);
            if bad > reading.invalid_lines.len() as u64 {
                findings.faults.push(FileFinding::of_file(format!(
                    "{bad} invalid lines in all; the first are shown"
                )));
            }
            let incomplete = reading.incomplete.map(FileFinding::of_file);
            findings.faults.extend(incomplete);
        } else if let Some(first) = reading.invalid_lines.first() {
            let line = Some((first.line, first.text.clone()));
            if empty {
                findings.faults.push(FileFinding {
                    line,
                    message: format!("{}, and no other line is valid", first.reason),
                    advice: Some("is this the right file, and is its `format` another one?"),
                });
            } else {
                let count = match bad {
                    1 => String::new(),
                    2 => " (and one more invalid line)".to_owned(),
                    _ => format!(" (and {} more invalid lines)", bad - 1),
                };
                findings.doubts.push(FileFinding {
                    line,
                    message: format!("skipped: {}{count}", first.reason),
                    advice: Some(
                        "`strict = true` makes this an error; `portcullis lists compile` shows \
                         more of them",
                    ),
                });
            }
        }
        if !strict {
            let incomplete = reading.incomplete.map(FileFinding::of_file);
            findings.doubts.extend(incomplete);
        }
        if let Some(line) = reading.masked_first {
            findings.doubts.push(FileFinding::of_file(format!(
                "{} of {} prefixes have bits set beyond their length, which are ignored; the \
                 first is in line {line}",
                reading.masked,
                reading.entries.len()
            )));
        }
        if empty && bad == 0 {
            findings
                .doubts
                .push(FileFinding::of_file("the list is empty"));
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::super::format;
    use super::*;

    fn of(text: &str, strict: bool) -> FileFindings {
        let reading = format::read(Format::Cidr, text.as_bytes(), |_| {}).unwrap();
        FileFindings::of(&reading, strict)
    }

    #[test]
    fn a_bad_line_among_good_ones_is_a_doubt_unless_the_list_is_strict() {
        let text = "192.0.2.1\nx\ny\n";
        let findings = of(text, false);
        assert!(findings.faults.is_empty());
        assert_eq!(findings.doubts[0].line, Some((2, "x".to_owned())));
        assert!(findings.doubts[0].message.contains("one more invalid line"));
        let strict = of(text, true);
        assert_eq!((strict.faults.len(), strict.doubts.len()), (2, 0));
    }

    #[test]
    fn a_file_of_which_no_line_can_be_read_is_no_list() {
        assert_eq!(of("<html>\n</html>\n", false).faults.len(), 1);
    }

    #[test]
    fn a_file_that_is_no_text_is_one_fault_that_says_what_it_is() {
        for strict in [false, true] {
            let findings = of("1\0.\x002\0\n\0x\ny\n", strict);
            assert_eq!((findings.faults.len(), findings.doubts.len()), (1, 0));
            let fault = &findings.faults[0];
            assert!(
                fault.line.is_none() && fault.message.contains("UTF-16"),
                "{fault:?}"
            );
        }
    }

    #[test]
    fn an_empty_list_is_a_doubt() {
        for strict in [false, true] {
            let findings = of("# none at the moment\n", strict);
            assert_eq!((findings.faults.len(), findings.doubts.len()), (0, 1));
        }
    }
}
