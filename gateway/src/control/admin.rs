//! The admin endpoint: HTTP for the monitoring, on an address that only it should reach.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | the text format of Prometheus |
//! | `/api/status` | the same as JSON |
//! | `/api/refusals` | the sources refused of late, why and until when, as JSON |
//! | `/api/events` | drops as they happen: a JSON object a line, until the client goes |
//!
//! It changes nothing and has no authentication: bind it to the loopback or to a network of the
//! operators. A connection is good for one request and for half a minute, unless it follows the
//! events. There are at most 32 at a time, of which 8 follow: more wait in the kernel's queue, or
//! get a 503.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio::time;

use super::state::State;
use super::{Control, Error, metrics};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 32;
/// Those of them that follow the events.
const FOLLOWERS_MAX: usize = 8;
/// For the head of the request to be there.
const HEADER_MAX: Duration = Duration::from_secs(10);
/// For all of a connection.
const CONNECTION_MAX: Duration = Duration::from_secs(30);
/// After an accept has failed (no descriptors, no memory) the next is left for so long.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Listens on the admin address, which may need privileges that are given up afterwards.
pub(super) fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|error| Error::Admin { address, error })
}

/// What connections share.
struct Endpoint {
    control: Arc<Control>,
    followers: Arc<Semaphore>,
}

/// Answers for as long as the gate runs.
pub(super) async fn serve(control: Arc<Control>, listener: tokio::net::TcpListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let endpoint = Arc::new(Endpoint {
        control,
        followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
    });
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let endpoint = Arc::clone(&endpoint);
                tokio::spawn(async move {
                    converse_in_time(endpoint, stream).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take an admin connection; trying again in a moment");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection, and ends it if that takes too long, unless it follows the events.
async fn converse_in_time(endpoint: Arc<Endpoint>, stream: TcpStream) {
    let follows = Arc::new(AtomicBool::new(false));
    let mut conversation = Box::pin(converse(endpoint, stream, Arc::clone(&follows)));
    let in_time = time::timeout(CONNECTION_MAX, &mut conversation).await;
    match in_time {
        Ok(()) => {}
        Err(_) if follows.load(Ordering::Relaxed) => conversation.await,
        Err(_) => tracing::debug!("an admin connection took too long"),
    }
}

async fn converse(endpoint: Arc<Endpoint>, stream: TcpStream, follows: Arc<AtomicBool>) {
    let service =
        service_fn(move |request| answer(Arc::clone(&endpoint), request, Arc::clone(&follows)));
    let conversation = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = conversation.await {
        tracing::debug!(%error, "an admin connection ended early");
    }
}

/// What a client can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Metrics,
    Status,
    Refusals,
    Events,
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

/// Finds what is asked for, or the status that says why there is none.
fn route(method: &Method, path: &str) -> Result<Resource, StatusCode> {
    let resource = match path {
        "/metrics" => Resource::Metrics,
        "/api/status" => Resource::Status,
        "/api/refusals" => Resource::Refusals,
        "/api/events" => Resource::Events,
        _ => return Err(StatusCode::NOT_FOUND),
    };
    if matches!(*method, Method::GET | Method::HEAD) {
        Ok(resource)
    } else {
        Err(StatusCode::METHOD_NOT_ALLOWED)
    }
}

async fn answer(
    endpoint: Arc<Endpoint>,
    request: Request<Incoming>,
    follows: Arc<AtomicBool>,
) -> Result<Response<ResponseBody>, Infallible> {
    let resource = match route(request.method(), request.uri().path()) {
        Ok(resource) => resource,
        Err(status) => return Ok(refusal(status, "")),
    };
    if resource == Resource::Events {
        return Ok(match follow(&endpoint) {
            Ok(events) => {
                follows.store(true, Ordering::Relaxed);
                response("application/x-ndjson", events)
            }
            Err(why_not) => refusal(StatusCode::SERVICE_UNAVAILABLE, &why_not),
        });
    }
    // Reading the filter's counters takes hundreds of system calls.
    let body = spawn_blocking(move || body_of(resource, &endpoint.control)).await;
    Ok(match body {
        Ok(Some((content_type, body))) => response(content_type, ResponseBody::whole(body)),
        Ok(None) | Err(_) => refusal(StatusCode::INTERNAL_SERVER_ERROR, ""),
    })
}

/// What the filter drops from now on, or why there are no events.
fn follow(endpoint: &Endpoint) -> Result<ResponseBody, String> {
    let follower = Arc::clone(&endpoint.followers).try_acquire_owned();
    let _follower =
        follower.map_err(|_| format!("{FOLLOWERS_MAX} connections follow the events already"))?;
    let lines = endpoint.control.drops.follow()?;
    Ok(ResponseBody::Events { lines, _follower })
}

fn body_of(resource: Resource, control: &Control) -> Option<(&'static str, String)> {
    let json = match resource {
        Resource::Metrics => {
            let text = metrics::render(&State::collect(control));
            return Some((metrics::CONTENT_TYPE, text));
        }
        Resource::Status => serde_json::to_string_pretty(&State::collect(control)),
        Resource::Refusals => serde_json::to_string_pretty(&control.refusals.list()),
        // They are followed.
        Resource::Events => return None,
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
    if status == StatusCode::METHOD_NOT_ALLOWED {
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_is_served_and_nothing_can_be_changed() {
        let cases = [
            (Method::GET, "/metrics", Ok(Resource::Metrics)),
            (Method::HEAD, "/metrics", Ok(Resource::Metrics)),
            (Method::GET, "/api/status", Ok(Resource::Status)),
            (Method::GET, "/api/refusals", Ok(Resource::Refusals)),
            (Method::GET, "/api/events", Ok(Resource::Events)),
            (
                Method::POST,
                "/api/status",
                Err(StatusCode::METHOD_NOT_ALLOWED),
            ),
            (
                Method::DELETE,
                "/metrics",
                Err(StatusCode::METHOD_NOT_ALLOWED),
            ),
            (Method::GET, "/", Err(StatusCode::NOT_FOUND)),
            (Method::GET, "/metrics/", Err(StatusCode::NOT_FOUND)),
            (Method::POST, "/api/../metrics", Err(StatusCode::NOT_FOUND)),
        ];
        for (method, path, expected) in cases {
            assert_eq!(route(&method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn both_forms_can_be_written() {
        let state = State::default();
        assert!(!metrics::render(&state).is_empty());
        assert!(serde_json::to_string_pretty(&state).is_ok());
    }
}
