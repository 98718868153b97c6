//! The sockets of the endpoints: opened with all privileges, served within the runtime, and each
//! connection bounded.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time;

use super::super::user::User;
use super::super::{Control, Error};
use super::caller::{Access, Caller};
use super::{FOLLOWERS_MAX, answer, host, socket};
use crate::config::Admin;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 32;
/// For the head of the request to be there.
const HEADER_MAX: Duration = Duration::from_secs(10);
/// For all of a connection.
const CONNECTION_MAX: Duration = Duration::from_secs(30);
/// For a peer to take the word that it is not admitted.
const REFUSAL_MAX: Duration = Duration::from_secs(1);
/// After an accept has failed (no descriptors, no memory) the next is left for so long.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What was taken with all privileges.
pub(in super::super) struct Held {
    address: Option<std::net::TcpListener>,
    socket: Option<StdUnixListener>,
    access: Access,
}

impl Held {
    /// Opens the endpoints, which may need privileges that are given up afterwards.
    ///
    /// # Errors
    /// An address or socket at which it cannot listen; a user, group or token that cannot be used.
    pub(in super::super) fn take(admin: &Admin, user: Option<&User>) -> Result<Self, Error> {
        let access = Access::of(admin)?;
        let socket = admin.socket.as_deref();
        let socket = socket.map(|path| socket::bind(path, &access, user));
        Ok(Self {
            address: admin.address.map(listen).transpose()?,
            socket: socket.transpose()?,
            access,
        })
    }
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    let listener = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|error| Error::Admin { address, error })
}

/// The endpoints, within the runtime.
pub(in super::super) struct Listeners {
    address: Option<TcpListener>,
    socket: Option<UnixListener>,
    access: Access,
}

impl Listeners {
    pub(in super::super) fn of(held: Held) -> io::Result<Self> {
        Ok(Self {
            address: held.address.map(TcpListener::from_std).transpose()?,
            socket: held.socket.map(UnixListener::from_std).transpose()?,
            access: held.access,
        })
    }

    /// Where HTTP is served.
    pub(in super::super) fn address(&self) -> Option<SocketAddr> {
        self.address.as_ref()?.local_addr().ok()
    }

    /// Whether a client can ask anything.
    pub(in super::super) fn serves(&self) -> bool {
        self.address.is_some() || self.socket.is_some()
    }

    /// Answers for as long as the gate runs.
    pub(in super::super) fn serve(self, control: &Arc<Control>) {
        let endpoint = Arc::new(Endpoint {
            control: Arc::clone(control),
            access: self.access,
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
        });
        if let Some(listener) = self.address {
            tokio::spawn(serve_address(Arc::clone(&endpoint), listener));
        }
        if let Some(listener) = self.socket {
            tokio::spawn(serve_socket(endpoint, listener));
        }
    }
}

/// What connections share.
pub(super) struct Endpoint {
    pub(super) control: Arc<Control>,
    pub(super) access: Access,
    pub(super) followers: Arc<Semaphore>,
}

/// Who is at the other end of a connection.
#[derive(Clone)]
pub(super) enum Peer {
    /// A client at the address, which each request may name.
    Client(SocketAddr),
    /// A peer that the socket admits.
    Admitted(Caller),
}

async fn serve_address(endpoint: Arc<Endpoint>, listener: TcpListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, from)) => {
                let endpoint = Arc::clone(&endpoint);
                tokio::spawn(async move {
                    converse_in_time(endpoint, stream, Peer::Client(from)).await;
                    drop(permit);
                });
            }
            Err(error) => pause_accepting(&error).await,
        }
    }
}

async fn serve_socket(endpoint: Arc<Endpoint>, listener: UnixListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let endpoint = Arc::clone(&endpoint);
                tokio::spawn(async move {
                    if let Some((stream, peer)) = admit(&endpoint, stream).await {
                        converse_in_time(endpoint, stream, peer).await;
                    }
                    drop(permit);
                });
            }
            Err(error) => pause_accepting(&error).await,
        }
    }
}

async fn pause_accepting(error: &io::Error) {
    tracing::warn!(%error, "cannot take an admin connection; trying again in a moment");
    time::sleep(ACCEPT_PAUSE).await;
}

/// Lets a peer at the socket in, or tells it at once that it may not: a stranger holds no
/// connection that an operator could need.
async fn admit(endpoint: &Arc<Endpoint>, mut stream: UnixStream) -> Option<(UnixStream, Peer)> {
    let credentials = stream.peer_cred().ok()?;
    let asked = Arc::clone(endpoint);
    let judged = spawn_blocking(move || {
        let (uid, gid) = (credentials.uid(), credentials.gid());
        asked.access.admit(uid, gid)
    });
    match judged.await.ok()? {
        Ok(caller) => Some((stream, Peer::Admitted(caller))),
        Err(caller) => {
            if let Some(number) = endpoint.control.refused.count(Instant::now()) {
                tracing::warn!(
                    by = %caller,
                    number,
                    "refused at the admin socket: neither admin_users nor admin_groups"
                );
            }
            let text = format!(
                "{caller} may not give this gate commands: `admin_users` and `admin_groups` in \
                 its configuration say who may\n"
            );
            let answer = format!(
                "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain; charset=utf-8\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
            let told = stream.write_all(answer.as_bytes());
            // A peer that does not read it has not asked to know.
            let _ = time::timeout(REFUSAL_MAX, told).await;
            None
        }
    }
}

/// Serves a connection, and ends it if that takes too long, unless it follows the events or waits
/// for a command.
async fn converse_in_time<S>(endpoint: Arc<Endpoint>, stream: S, peer: Peer)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let takes_long = Arc::new(AtomicBool::new(false));
    let conversation = converse(endpoint, stream, peer, Arc::clone(&takes_long));
    let mut conversation = Box::pin(conversation);
    let in_time = time::timeout(CONNECTION_MAX, &mut conversation).await;
    match in_time {
        Ok(()) => {}
        Err(_) if takes_long.load(Ordering::Relaxed) => conversation.await,
        Err(_) => tracing::debug!("an admin connection took too long"),
    }
}

async fn converse<S>(endpoint: Arc<Endpoint>, stream: S, peer: Peer, takes_long: Arc<AtomicBool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        answer(
            Arc::clone(&endpoint),
            request,
            peer.clone(),
            Arc::clone(&takes_long),
        )
    });
    let conversation = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = conversation.await {
        tracing::debug!(%error, "an admin connection ended early");
    }
}

impl Peer {
    /// Whether a request with these headers is for this gate, and not for a name that a stranger
    /// has pointed at the loopback.
    pub(super) fn means_this_gate(&self, control: &Control, headers: &HeaderMap) -> bool {
        match self {
            Self::Client(from) if from.ip().to_canonical().is_loopback() => {
                host::is_ours(headers, &control.shared.config.load().hostname)
            }
            Self::Client(_) | Self::Admitted(_) => true,
        }
    }

    /// Who sends a request with these headers.
    pub(super) fn caller(self, access: &Access, headers: &HeaderMap) -> Caller {
        match self {
            Self::Admitted(caller) => caller,
            Self::Client(from) => {
                let authorization = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
                access.client(from, authorization)
            }
        }
    }
}
