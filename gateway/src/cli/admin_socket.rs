//! The gate that runs beside a command, and carries it out.
//!
//! A change goes through the gate when one runs: it logs who made it, and the caller needs no
//! privileges. Without a gate a command works on the filter itself, which takes root.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use portcullis::config::ADMIN_SOCKET;
use portcullis::control::ask::{self, NotDone};
use portcullis::printable::printable;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The statuses of a gate that holds another filter or none, and of one that does not know the
/// command.
const NOT_THIS_GATE: [u16; 2] = [404, 409];

/// The socket at which a gate may listen for commands.
pub(super) struct AdminSocket {
    path: PathBuf,
}

impl AdminSocket {
    /// The socket of a configuration, if it names one.
    pub(super) fn of(config: &portcullis::config::Config) -> Option<Self> {
        let path = config.admin.socket.clone()?;
        Some(Self { path })
    }

    /// The socket at the usual place, for a command without a configuration.
    pub(super) fn usual() -> Self {
        Self {
            path: ADMIN_SOCKET.into(),
        }
    }

    /// Says to a user who may not read the configuration how a command finds the gate without it.
    pub(super) fn hint(file: &Path) {
        let opened = std::fs::File::open(file);
        if opened.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
            eprintln!(
                "this user may not read {}; without -c the command asks the gate at \
                 {ADMIN_SOCKET}, if that is its admin_socket",
                file.display()
            );
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Has the gate carry out a command that can be done without it, too. `None` if it has to be:
    /// no gate runs, or it is not the one that is meant.
    ///
    /// # Errors
    /// When the gate refuses: the exit code, after saying why.
    pub(super) fn carry_out<A: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<Option<A>, ExitCode> {
        match ask::command(&self.path, path, request) {
            Ok(answer) => Ok(Some(answer)),
            Err(NotDone::NoGate(_)) => Ok(None),
            Err(NotDone::Refused { status, .. }) if NOT_THIS_GATE.contains(&status) => Ok(None),
            Err(NotDone::Broken(error)) => {
                eprintln!(
                    "the gate at {} does not answer ({error}): working without it",
                    self.path.display()
                );
                Ok(None)
            }
            Err(why_not) => Err(self.say(&why_not)),
        }
    }

    /// Says why a command was not carried out.
    pub(super) fn say(&self, why_not: &NotDone) -> ExitCode {
        let why_not = why_not.to_string();
        let path = self.path.display();
        eprintln!("portcullis: {path}: {}", printable(&why_not));
        ExitCode::FAILURE
    }
}
