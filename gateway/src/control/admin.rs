//! The admin endpoints: HTTP on an address for the monitoring, and on a unix socket for commands.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | the text format of Prometheus |
//! | `/api/status` | the same as JSON |
//! | `/api/refusals` | the sources refused of late, why and until when, as JSON |
//! | `/api/verdicts` | the recent verdicts in force, as JSON |
//! | `/api/grants` | the grants in force, as JSON |
//! | `/api/events` | drops as they happen: a JSON object a line, until the client goes |
//! | POST to a path in `commands.rs` | what became of the command, as JSON |
//!
//! Both serve all of it. At the address reading takes no password, but for verdicts and grants:
//! bind it to the loopback or to a network of the operators. A change, and those two, take the
//! token. The socket admits no stranger, not even to read. A connection is good for one request and
//! for half a minute, unless it follows the events or waits for the end of a command. Each endpoint
//! has at most 32 at a time, and 8 follow: more wait in the kernel's queue, or get a 503.
//!
//! | file | subject |
//! |---|---|
//! | `caller.rs` | who sends a request, and whether it may change the gate |
//! | `commands.rs` | the table of commands |
//! | `grants.rs` | grants by command |
//! | `host.rs` | whether a request over the loopback means this host |
//! | `listeners.rs` | both sockets and their connections |
//! | `refused.rs` | callers that were refused, in the log |
//! | `socket.rs` | where the unix socket is made, and whose it is |
//! | `verdicts.rs` | recent verdicts by command |

mod caller;
mod commands;
pub mod grants;
mod host;
mod listeners;
mod refused;
mod socket;
pub mod verdicts;

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::spawn_blocking;

use self::caller::Access;
use self::commands::{COMMANDS, Command};
use self::listeners::{Endpoint, Peer};
use super::state::State;
use super::{Control, Error, metrics};
use crate::config::Admin;

pub(super) use self::listeners::{Held, Listeners};
pub(super) use self::refused::Refused;

/// Connections of an endpoint that follow the events.
const FOLLOWERS_MAX: usize = 8;
/// Bytes of a request: the most sources at a time, each with a long note.
const BODY_MAX: usize = 8 << 20;

/// Whether a start could open the endpoints, as far as that can be told without opening them.
///
/// # Errors
/// Why it could not.
pub(crate) fn rehearse(admin: &Admin) -> Result<(), Error> {
    Access::of(admin)?;
    admin.socket.as_deref().map_or(Ok(()), socket::try_bind)
}

/// What a client can ask for.
enum Resource {
    Read(Reading),
    Events,
    Change(&'static Command),
}

/// What is only read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Metrics,
    Status,
    Refusals,
    Verdicts,
    Grants,
}

impl Reading {
    /// It names users and their addresses.
    fn is_private(self) -> bool {
        matches!(self, Self::Verdicts | Self::Grants)
    }
}

/// The body of a response: all of it, or the events as they come.
enum ResponseBody {
    Whole(Option<Bytes>),
    Events {
        lines: mpsc::Receiver<Bytes>,
        /// Its place among those that may follow.
        _follower: OwnedSemaphorePermit,
    },
}

impl ResponseBody {
    fn whole(text: impl Into<Bytes>) -> Self {
        Self::Whole(Some(text.into()).filter(|text| !text.is_empty()))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match self.get_mut() {
            Self::Whole(text) => Poll::Ready(text.take()),
            Self::Events { lines, .. } => lines.poll_recv(context),
        };
        next.map(|data| data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(text) => {
                let length = text.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(length as u64)
            }
            Self::Events { .. } => SizeHint::default(),
        }
    }
}

/// Finds what is asked for, or the status that says why there is none and the methods that there
/// are.
fn route(method: &Method, path: &str) -> Result<Resource, (StatusCode, &'static str)> {
    const NOT_ALLOWED: StatusCode = StatusCode::METHOD_NOT_ALLOWED;
    if let Some(command) = COMMANDS.iter().find(|command| command.path == path) {
        return match *method {
            Method::POST => Ok(Resource::Change(command)),
            _ => Err((NOT_ALLOWED, "POST")),
        };
    }
    let resource = match path {
        "/metrics" => Resource::Read(Reading::Metrics),
        "/api/status" => Resource::Read(Reading::Status),
        "/api/refusals" => Resource::Read(Reading::Refusals),
        "/api/verdicts" => Resource::Read(Reading::Verdicts),
        "/api/grants" => Resource::Read(Reading::Grants),
        "/api/events" => Resource::Events,
        _ => return Err((StatusCode::NOT_FOUND, "")),
    };
    if matches!(*method, Method::GET | Method::HEAD) {
        Ok(resource)
    } else {
        Err((NOT_ALLOWED, "GET, HEAD"))
    }
}

async fn answer(
    endpoint: Arc<Endpoint>,
    request: Request<Incoming>,
    peer: Peer,
    takes_long: Arc<AtomicBool>,
) -> Result<Response<ResponseBody>, Infallible> {
    if !peer.means_this_gate(&endpoint.control, request.headers()) {
        let why = "its Host is neither an address, `localhost` nor the gate's `hostname`";
        return Ok(refusal(StatusCode::MISDIRECTED_REQUEST, why));
    }
    Ok(match route(request.method(), request.uri().path()) {
        Err((status, methods)) => {
            let mut response = refusal(status, "");
            if !methods.is_empty() {
                let methods = HeaderValue::from_static(methods);
                response.headers_mut().insert(ALLOW, methods);
            }
            response
        }
        Ok(Resource::Read(reading)) => {
            let caller = peer.caller(&endpoint.access, request.headers());
            if reading.is_private() && !caller.is_trusted() {
                let why = "this is read with the token in `admin_token_file`, or at `admin_socket`";
                return Ok(refusal(StatusCode::FORBIDDEN, why));
            }
            read(endpoint, reading).await
        }
        Ok(Resource::Events) => match follow(&endpoint) {
            Ok(events) => {
                takes_long.store(true, Ordering::Relaxed);
                response("application/x-ndjson", events)
            }
            Err(why_not) => refusal(StatusCode::SERVICE_UNAVAILABLE, &why_not),
        },
        Ok(Resource::Change(command)) => {
            let caller = peer.caller(&endpoint.access, request.headers());
            let (control, access) = (Arc::clone(&endpoint.control), &endpoint.access);
            if let Err(why_not) = access.permits_changes(&caller) {
                if let Some(number) = control.refused.count(Instant::now()) {
                    let command = command.name;
                    tracing::warn!(command, by = %caller, number, "refused: {why_not}");
                }
                return Ok(refusal(StatusCode::FORBIDDEN, &why_not));
            }
            let body = match whole(request.into_body()).await {
                Ok(body) => body,
                Err(status) => return Ok(refusal(status, "")),
            };
            takes_long.store(true, Ordering::Relaxed);
            match command.carry_out(control, caller, body).await {
                Ok(json) => response("application/json", ResponseBody::whole(json + "\n")),
                Err(not_done) => refusal(not_done.status, &not_done.why),
            }
        }
    })
}

/// Reads the body of a request, which is bounded.
async fn whole(mut incoming: Incoming) -> Result<Bytes, StatusCode> {
    let mut body = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut incoming).poll_frame(context)).await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        if let Ok(data) = frame.into_data() {
            if body.len() + data.len() > BODY_MAX {
                return Err(StatusCode::PAYLOAD_TOO_LARGE);
            }
            body.extend_from_slice(&data);
        }
    }
    Ok(body.into())
}

async fn read(endpoint: Arc<Endpoint>, reading: Reading) -> Response<ResponseBody> {
    // Reading the filter's counters takes hundreds of system calls.
    let body = spawn_blocking(move || body_of(reading, &endpoint.control)).await;
    match body {
        Ok(Some((content_type, body))) => response(content_type, ResponseBody::whole(body)),
        Ok(None) | Err(_) => refusal(StatusCode::INTERNAL_SERVER_ERROR, ""),
    }
}

/// What the filter drops from now on, or why there are no events.
fn follow(endpoint: &Endpoint) -> Result<ResponseBody, String> {
    let follower = Arc::clone(&endpoint.followers).try_acquire_owned();
    let _follower =
        follower.map_err(|_| format!("{FOLLOWERS_MAX} connections follow the events already"))?;
    let lines = endpoint.control.drops.follow()?;
    Ok(ResponseBody::Events { lines, _follower })
}

fn body_of(reading: Reading, control: &Control) -> Option<(&'static str, String)> {
    let json = match reading {
        Reading::Metrics => {
            let text = metrics::render(&State::collect(control));
            return Some((metrics::CONTENT_TYPE, text));
        }
        Reading::Status => serde_json::to_string_pretty(&State::collect(control)),
        Reading::Refusals => serde_json::to_string_pretty(&control.refusals.list()),
        // There may be very many: no spaces.
        Reading::Grants => serde_json::to_string(&grants::list(control)),
        Reading::Verdicts => {
            let held = control.filter.as_ref();
            let verdicts = held.map(|held| held.verdicts.list()).transpose();
            serde_json::to_string(&verdicts.ok()?.unwrap_or_default())
        }
    };
    Some(("application/json", json.ok()? + "\n"))
}

fn response(content_type: &'static str, body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// An error, and why.
fn refusal(status: StatusCode, why: &str) -> Response<ResponseBody> {
    let reason = match why {
        "" => status.canonical_reason().unwrap_or_default(),
        why => why,
    };
    let body = ResponseBody::whole(format!("{reason}\n"));
    let mut response = response("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_never_changes_and_a_change_is_always_posted() {
        let cases = [
            (Method::GET, "/metrics", Ok("Metrics")),
            (Method::HEAD, "/metrics", Ok("Metrics")),
            (Method::GET, "/api/status", Ok("Status")),
            (Method::GET, "/api/refusals", Ok("Refusals")),
            (Method::GET, "/api/verdicts", Ok("Verdicts")),
            (Method::GET, "/api/grants", Ok("Grants")),
            (Method::POST, "/api/grants/add", Ok("grants add")),
            (Method::GET, "/api/grants/revoke", Err(405)),
            (Method::GET, "/api/events", Ok("events")),
            (Method::POST, "/api/reload", Ok("reload")),
            (Method::POST, "/api/verdicts/add", Ok("verdicts add")),
            (Method::GET, "/api/reload", Err(405)),
            (Method::HEAD, "/api/verdicts/flush", Err(405)),
            (Method::POST, "/api/status", Err(405)),
            (Method::POST, "/api/verdicts", Err(405)),
            (Method::DELETE, "/metrics", Err(405)),
            (Method::GET, "/", Err(404)),
            (Method::GET, "/metrics/", Err(404)),
            (Method::POST, "/api/../metrics", Err(404)),
        ];
        for (method, path, expected) in cases {
            let found = match route(&method, path) {
                Ok(Resource::Read(reading)) => Ok(format!("{reading:?}")),
                Ok(Resource::Events) => Ok("events".to_owned()),
                Ok(Resource::Change(command)) => Ok(command.name.to_owned()),
                Err((status, _)) => Err(status.as_u16()),
            };
            assert_eq!(found, expected.map(str::to_owned), "{method} {path}");
        }
    }

    #[test]
    fn both_forms_can_be_written() {
        let state = State::default();
        assert!(!metrics::render(&state).is_empty());
        assert!(serde_json::to_string_pretty(&state).is_ok());
    }
}
