//! The log of the kernel's verifier for a program that it refuses, made readable.
//!
//! The log has a line for each instruction of every branch, tens of thousands of lines. The reason
//! is one line at its end, before the statistics. The error message has that line, its source line
//! and the last steps. A developer who repairs the program needs the whole log, so that is written
//! to a file.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process;

/// Steps before the reason that are shown.
const STEPS: usize = 6;
/// Maximum number of files of one process.
const FILES_MAX: u32 = 10;

/// A verifier's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierLog {
    text: String,
    file: Option<PathBuf>,
}

impl VerifierLog {
    /// Takes a log and writes it to a file in this directory. A failure to write is logged only.
    pub(super) fn keep(text: String, directory: &Path) -> Self {
        let file = write(&text, directory);
        let file = file.inspect_err(|error| {
            let directory = directory.display();
            tracing::warn!(%error, %directory, "cannot keep the verifier's log");
        });
        Self {
            text,
            file: file.ok(),
        }
    }

    /// The lines of the log about the program, without the statistics at its end.
    fn lines(&self) -> Vec<&str> {
        let statistics = [
            "processed ",
            "verification time",
            "stack depth",
            "peak_states",
        ];
        let is_statistics = |line: &&str| statistics.iter().any(|start| line.starts_with(start));
        let mut lines: Vec<&str> = self
            .text
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
            .collect();
        while lines.last().is_some_and(is_statistics) {
            lines.pop();
        }
        lines
    }
}

/// Writes a new file. It never opens an existing one: all users may write to the directory.
fn write(text: &str, directory: &Path) -> io::Result<PathBuf> {
    let mut number = 0;
    loop {
        let name = format!("portcullis-verifier-{}-{number}.log", process::id());
        let path = directory.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match file {
            Ok(mut file) => {
                file.write_all(text.as_bytes())?;
                return Ok(path);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < FILES_MAX => {
                number += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The reason first, then the source line, the last steps and the file, on indented lines. The last
/// line has no line end.
impl fmt::Display for VerifierLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let Some((reason, steps)) = lines.split_last() else {
            return write!(f, "it wrote no log");
        };
        write!(f, "{reason}")?;
        let shown = steps.len().saturating_sub(STEPS);
        let (before, shown) = steps.split_at(shown);
        // Lines of the source begin with a semicolon.
        let is_source = |line: &&&str| line.starts_with(';');
        if !shown.iter().any(|line| line.starts_with(';'))
            && let Some(source) = before.iter().rev().find(is_source)
        {
            write!(f, "\n    {source}\n    ...")?;
        }
        for step in shown {
            write!(f, "\n    {step}")?;
        }
        match &self.file {
            Some(file) => write!(
                f,
                "\nall {} lines of its log are in {}",
                self.text.lines().count(),
                file.display()
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of a real log.
    const LOG: &str = "\
0: R1=ctx() R10=fp0
; let frame = Frame { @ main.rs:63
0: (bf) r6 = r1                       ; R1=ctx() R6_w=ctx()
1: (b7) r7 = 2                        ; R7_w=2
2: (b7) r1 = 0                        ; R1_w=0
3: (63) *(u32 *)(r10 -8) = r1         ; R1_w=0 R10=fp0 fp-8=????0
4: (bf) r2 = r10                      ; R2_w=fp0 R10=fp0
5: (07) r2 += -8                      ; R2_w=fp-8
6: (18) r1 = 0xffff8881052bc400       ; R1_w=map_ptr(map=SETTINGS,ks=4,vs=4)
8: (bf) r0 = r0
R0 !read_ok
processed 8 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
";

    #[test]
    fn the_reason_stands_first_then_the_source_and_the_last_steps() {
        let directory = tempfile::tempdir().unwrap();
        let log = VerifierLog::keep(LOG.to_owned(), directory.path());
        let text = log.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "R0 !read_ok");
        assert_eq!(lines[1], "    ; let frame = Frame { @ main.rs:63");
        assert_eq!(lines[lines.len() - 2], "    8: (bf) r0 = r0");
        assert!(
            lines
                .last()
                .unwrap()
                .starts_with("all 12 lines of its log are in "),
            "{text}"
        );
        assert!(!text.contains("processed") && lines.len() == 10, "{text}");
        let file = log.file.unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), LOG);
    }

    #[test]
    fn a_log_of_any_length_and_an_empty_one_fit_on_a_screen() {
        let directory = tempfile::tempdir().unwrap();
        let long = "12: (b7) r1 = 0\n\n".repeat(100_000) + "BPF program is too large.\n";
        let text = VerifierLog::keep(long, directory.path()).to_string();
        assert!(text.starts_with("BPF program is too large.\n"), "{text}");
        assert!(text.lines().count() < 12, "{text}");
        let nowhere = VerifierLog::keep(String::new(), Path::new("/nonexistent"));
        assert_eq!(nowhere.to_string(), "it wrote no log");
    }

    #[test]
    fn a_file_that_is_there_already_is_not_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let first = VerifierLog::keep("first".to_owned(), directory.path());
        let second = VerifierLog::keep("second".to_owned(), directory.path());
        assert_ne!(first.file, second.file);
        assert_eq!(
            std::fs::read_to_string(first.file.unwrap()).unwrap(),
            "first"
        );
    }
}
