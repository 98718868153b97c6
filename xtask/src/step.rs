//! The steps of a long chore: each is announced with its command, timed, and listed in the summary
//! at the end.
//!
//! A step that fails does not end the run: after twenty minutes a developer wants to know all
//! faults.

use std::fmt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// The steps of a run so far.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<Done>,
}

struct Done {
    name: String,
    took: Duration,
    failure: Option<String>,
}

impl Steps {
    /// Announces a command and runs it. Returns whether it succeeded.
    pub(crate) fn run(&mut self, name: &str, command: &mut Command) -> bool {
        let shown = shown(command);
        self.check(name, &shown, || match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{shown}: {status}")),
            Err(error) => Err(format!("{shown}: cannot be started: {error}")),
        })
    }

    /// The same for a step that is a function.
    pub(crate) fn check(
        &mut self,
        name: &str,
        shown: &str,
        step: impl FnOnce() -> Result<(), String>,
    ) -> bool {
        println!("\n==> {name}: {shown}");
        let start = Instant::now();
        let failure = step().err();
        let took = start.elapsed();
        if let Some(failure) = &failure {
            eprintln!("==> {name} FAILED after {}: {failure}", Minutes(took));
        }
        let succeeded = failure.is_none();
        self.done.push(Done {
            name: name.to_owned(),
            took,
            failure,
        });
        succeeded
    }

    /// Prints the summary; failure if any step failed.
    pub(crate) fn finish(&self) -> ExitCode {
        println!("\n{self}");
        let failed = self.done.iter().any(|done| done.failure.is_some());
        ExitCode::from(u8::from(failed))
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for done in &self.done {
            let result = if done.failure.is_none() {
                "ok"
            } else {
                "FAILED"
            };
            writeln!(
                f,
                "{:<24} {:>8}  {result}",
                done.name,
                Minutes(done.took).to_string()
            )?;
        }
        let total = self.done.iter().map(|done| done.took).sum();
        let failed = self
            .done
            .iter()
            .filter(|done| done.failure.is_some())
            .count();
        write!(f, "{:<24} {:>8}  ", "all", Minutes(total).to_string())?;
        match failed {
            0 => write!(f, "ok"),
            failed => write!(f, "{failed} of {} FAILED", self.done.len()),
        }
    }
}

/// A duration for users: 75.2 s is `1:15 min`.
struct Minutes(Duration);

impl fmt::Display for Minutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        if seconds < 60 {
            write!(f, "{:.1} s", self.0.as_secs_f64())
        } else {
            write!(f, "{}:{:02} min", seconds / 60, seconds % 60)
        }
    }
}

/// The command line of a command.
fn shown(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    let arguments = command
        .get_args()
        .map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once(program)
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_step_fails_the_run_and_is_named() {
        let mut steps = Steps::default();
        assert!(steps.run("first", &mut Command::new("true")));
        assert!(!steps.run("second", &mut Command::new("false")));
        assert!(!steps.run("third", &mut Command::new("/no/such/program")));
        let summary = steps.to_string();
        let second = summary.lines().nth(1).unwrap();
        assert!(
            second.starts_with("second") && second.ends_with("FAILED"),
            "{summary}"
        );
        assert!(summary.ends_with("2 of 3 FAILED"), "{summary}");
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(Minutes(Duration::from_millis(1234)).to_string(), "1.2 s");
        assert_eq!(Minutes(Duration::from_secs(75)).to_string(), "1:15 min");
    }
}
