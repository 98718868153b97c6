//! The admin endpoint: HTTP for the monitoring, on an address that only it should reach.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | the text format of Prometheus |
//! | `/api/status` | the same as JSON |
//!
//! There is nothing to change by it and nobody is asked who they are: bind it to the loopback or to a network of the
//! operators. A connection is good for one request and for half a minute, and there are at most 32 at a time: more wait
//! in the kernel's queue.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time;

use super::state::State;
use super::{Control, Error, metrics};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 32;
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

/// Answers for as long as the gate runs.
pub(super) async fn serve(control: Arc<Control>, listener: tokio::net::TcpListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let control = Arc::clone(&control);
                tokio::spawn(async move {
                    if time::timeout(CONNECTION_MAX, converse(control, stream))
                        .await
                        .is_err()
                    {
                        tracing::debug!("an admin connection took too long");
                    }
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

async fn converse(control: Arc<Control>, stream: TcpStream) {
    let service = service_fn(move |request| answer(Arc::clone(&control), request));
    let conversation = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = conversation.await {
        tracing::debug!(%error, "an admin connection ended early");
    }
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Metrics,
    Status,
}

/// Finds what is asked for, or why it is not to be had.
fn route(method: &Method, path: &str) -> Result<Resource, StatusCode> {
    let resource = match path {
        "/metrics" => Resource::Metrics,
        "/api/status" => Resource::Status,
        _ => return Err(StatusCode::NOT_FOUND),
    };
    if matches!(*method, Method::GET | Method::HEAD) {
        Ok(resource)
    } else {
        Err(StatusCode::METHOD_NOT_ALLOWED)
    }
}

async fn answer(
    control: Arc<Control>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let resource = match route(request.method(), request.uri().path()) {
        Ok(resource) => resource,
        Err(status) => return Ok(refusal(status)),
    };
    // Reading the filter's counters takes hundreds of system calls.
    let told = spawn_blocking(move || tell(resource, &State::collect(&control))).await;
    Ok(match told {
        Ok(Some((content_type, body))) => {
            let mut response = Response::new(Full::from(body));
            let content_type = HeaderValue::from_static(content_type);
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            response
        }
        Ok(None) | Err(_) => refusal(StatusCode::INTERNAL_SERVER_ERROR),
    })
}

fn tell(resource: Resource, state: &State) -> Option<(&'static str, String)> {
    match resource {
        Resource::Metrics => Some((metrics::CONTENT_TYPE, metrics::render(state))),
        Resource::Status => {
            let json = serde_json::to_string_pretty(state).ok()?;
            Some(("application/json", json + "\n"))
        }
    }
}

fn refusal(status: StatusCode) -> Response<Full<Bytes>> {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut response = Response::new(Full::from(format!("{reason}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_is_told_and_nothing_can_be_changed() {
        let cases = [
            (Method::GET, "/metrics", Ok(Resource::Metrics)),
            (Method::HEAD, "/metrics", Ok(Resource::Metrics)),
            (Method::GET, "/api/status", Ok(Resource::Status)),
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
        for resource in [Resource::Metrics, Resource::Status] {
            assert!(tell(resource, &State::default()).is_some_and(|(_, body)| !body.is_empty()));
        }
    }
}
