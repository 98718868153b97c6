//! What is wrong with a file of certificates or keys, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why a file of certificates or keys cannot be used.
#[derive(Debug)]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
    /// What to do.
    pub advice: String,
}

impl LoadError {
    pub(super) fn new(
        path: &Path,
        problem: impl Into<String>,
        advice: impl Into<String>,
    ) -> LoadError {
        LoadError {
            path: path.to_owned(),
            problem: problem.into(),
            advice: advice.into(),
        }
    }

    pub(super) fn unreadable(path: &Path, error: &io::Error) -> LoadError {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => {
                "check the path; a relative one starts at the directory of \
                                        the configuration file"
            }
            io::ErrorKind::PermissionDenied => {
                "make it readable for the user that the gate becomes, for instance by its group"
            }
            _ => "check the file and its file system",
        };
        LoadError::new(path, format!("cannot be read: {error}"), advice)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoadError {
            path,
            problem,
            advice,
        } = self;
        write!(f, "{}: {problem} ({advice})", path.display())
    }
}

impl std::error::Error for LoadError {}
