//! The socket at which operators add, list and revoke grants: `operator.sock` in `state_dir`.
//!
//! The kernel keeps it: those who may write to the socket (root, the user of the gate and its
//! group) may ask, no address of a network leads to it, and the log names the user. A connection is
//! one line of JSON either way.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::{Grants, now};
use crate::printable::printable;

/// The name of the socket in `state_dir`.
const SOCKET: &str = "operator.sock";
/// Connections at a time.
const CONNECTIONS_MAX: usize = 8;
/// For all of a connection.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Bytes of a request.
const REQUEST_MAX: u64 = 1_024;

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Adds a grant, or renews it; without a time for that of the configuration.
    Grant {
        /// The address.
        address: IpAddr,
        /// How long it holds.
        seconds: Option<u64>,
    },
    /// The grants in force.
    List,
    /// Removes a grant.
    Revoke {
        /// The address.
        address: IpAddr,
    },
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// The grants that were asked for: all, or the one that was added.
    Grants(Vec<Granted>),
    /// Whether there was a grant to revoke.
    Revoked(bool),
    /// It was not done, and why.
    Error(String),
}

/// A grant in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// The address.
    pub address: IpAddr,
    /// Who wanted it: an operator, or a user and the log that tells of its login.
    pub by: String,
    /// When it was added first, in seconds since 1970.
    pub since: u64,
    /// When it ends, in seconds since 1970.
    pub until: u64,
    /// Seconds until it ends.
    pub expires_in_seconds: u64,
}

/// Asks the gate whose state is in this directory.
///
/// # Errors
/// When no gate answers there, or it may not be asked.
pub fn ask(state_dir: &Path, request: &Request) -> io::Result<Response> {
    let path = state_dir.join(SOCKET);
    let stream = BlockingStream::connect(&path).map_err(|error| {
        let next_step = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "run this as root or in the group of the gate's user"
            }
            _ => "is a gate with [grants] running with this configuration?",
        };
        let text = format!(
            "cannot ask the gate at {}: {error}; {next_step}",
            path.display()
        );
        io::Error::new(error.kind(), text)
    })?;
    stream.set_read_timeout(Some(CONNECTION_MAX))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    (&stream).write_all(&text)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// Answers for as long as the gate runs.
pub(super) fn start(grants: &Arc<Grants>, state_dir: &Path) {
    let path = state_dir.join(SOCKET);
    match listen(&path) {
        Ok(listener) => {
            let grants = Arc::clone(grants);
            tokio::spawn(serve(grants, listener));
        }
        Err(error) => {
            let path = path.display();
            tracing::error!(%path, %error, "`portcullis grant` cannot ask this gate");
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if BlockingStream::connect(path).is_ok() {
        return Err(io::Error::other(
            "another gate answers there: give each its own state_dir",
        ));
    }
    // One that an earlier run has left.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(PathBuf::from(path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

async fn serve(grants: Arc<Grants>, listener: UnixListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let grants = Arc::clone(&grants);
                tokio::spawn(async move {
                    // One that takes too long, or goes away, hears nothing.
                    let _ = timeout(CONNECTION_MAX, converse(&grants, stream)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection of an operator");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn converse(grants: &Grants, mut stream: UnixStream) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (read, mut write) = stream.split();
    let mut line = Vec::new();
    let mut read = tokio::io::BufReader::new(read.take(REQUEST_MAX));
    read.read_until(b'\n', &mut line).await?;
    let response = match serde_json::from_slice(&line) {
        Ok(request) => answer(grants, &request, uid),
        Err(error) => Response::Error(format!("not a request: {error}")),
    };
    let mut text = serde_json::to_vec(&response)?;
    text.push(b'\n');
    write.write_all(&text).await?;
    write.shutdown().await
}

fn answer(grants: &Grants, request: &Request, uid: u32) -> Response {
    let name = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let name = name.map_or_else(|| format!("uid {uid}"), |user| user.name);
    let by = format!("operator {}", printable(&name));
    let told = |address, grant: super::Grant| Granted {
        address,
        expires_in_seconds: grant.until.saturating_sub(now()),
        by: grant.by,
        since: grant.since,
        until: grant.until,
    };
    match *request {
        Request::Grant { address, seconds } => {
            let address = address.to_canonical();
            let time = seconds.map(Duration::from_secs);
            match grants.add(address, time, &by, true) {
                Ok(grant) => Response::Grants(vec![told(address, grant)]),
                Err(super::NoRoom) => {
                    Response::Error("there are as many grants as grants.max allows".to_owned())
                }
            }
        }
        Request::List => {
            let all = grants.list().into_iter();
            Response::Grants(all.map(|(address, grant)| told(address, grant)).collect())
        }
        Request::Revoke { address } => Response::Revoked(grants.revoke(address, &by)),
    }
}
