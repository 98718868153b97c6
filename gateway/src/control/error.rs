//! Why the gate cannot start or go on, and what to do about it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::Errors;
use crate::driver::ring::{ListenError, SetupError};
use crate::filter;

/// Why the gate cannot start or go on.
#[derive(Debug)]
pub enum Error {
    /// What the configuration names, after it was found good.
    Configuration(Errors),
    /// A listening socket.
    Listen(ListenError),
    /// A ring.
    Ring(SetupError),
    /// The in-kernel half.
    Filter(filter::Error),
    /// The address of the metrics and the state.
    Admin {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// The socket for commands.
    AdminSocket {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        error: io::Error,
    },
    /// The file with the token.
    AdminToken {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        error: io::Error,
    },
    /// There is no such user or group.
    NoSuchAccount {
        /// The key of the configuration.
        key: &'static str,
        /// The name in it.
        name: String,
    },
    /// There is no such user.
    NoSuchUser {
        /// The name in the configuration.
        name: String,
    },
    /// Becoming the user failed.
    User {
        /// The name in the configuration.
        name: String,
        /// Which step.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// A worker ended before it was asked to.
    Worker {
        /// Which.
        index: usize,
        /// Why.
        error: io::Error,
    },
    /// Something else, and what was being done.
    Io(&'static str, io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(errors) => errors.fmt(f),
            Self::Listen(error) => error.fmt(f),
            Self::Ring(error) => error.fmt(f),
            Self::Filter(error) => write!(f, "the filter cannot be put in place: {error}"),
            Self::Admin { address, error } => write!(
                f,
                "admin = \"{address}\": cannot listen there: {error}; choose another address, or \
                 leave `admin` out"
            ),
            Self::AdminSocket { path, error } => write!(
                f,
                "admin_socket = \"{}\": cannot listen there: {error}; choose another path, or \
                 leave `admin_socket` out",
                path.display()
            ),
            Self::AdminToken { path, error } => write!(
                f,
                "admin_token_file = \"{}\": cannot be used: {error}",
                path.display()
            ),
            Self::NoSuchAccount { key, name } => {
                write!(f, "{key}: there is no \"{name}\" on this system")
            }
            Self::NoSuchUser { name } => write!(
                f,
                "user = \"{name}\": there is no such user; \
                 `useradd --system --no-create-home {name}` makes one"
            ),
            Self::User { name, step, error } => {
                write!(f, "user = \"{name}\": cannot {step}: {error}")?;
                if error.kind() == io::ErrorKind::PermissionDenied {
                    write!(f, "; start as root, or leave `user` out")?;
                }
                Ok(())
            }
            Self::Worker { index, error } => write!(f, "worker {index} failed: {error}"),
            Self::Io(step, error) => write!(f, "cannot {step}: {error}"),
        }
    }
}

impl std::error::Error for Error {}
