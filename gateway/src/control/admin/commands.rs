//! What a caller can have the gate do: one table. A new command is an entry here, with a function
//! that takes the body of the request and gives what is answered.
//!
//! A command runs in a task of its own: a client that goes away in the middle does not leave a
//! change half done. Each is logged when it ends, with who gave it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::spawn_blocking;

use super::super::{Control, reload};
use super::caller::Caller;
use super::{grants, verdicts};

/// A command, and where it is posted to.
pub(super) struct Command {
    pub(super) path: &'static str,
    /// Its name in the log.
    pub(super) name: &'static str,
    run: fn(Arc<Control>, Bytes, Caller) -> Running,
}

/// All commands.
pub(super) static COMMANDS: [Command; 6] = [
    Command {
        path: "/api/reload",
        name: "reload",
        run: |control, _, _| Box::pin(reload_now(control)),
    },
    Command {
        path: "/api/verdicts/add",
        name: "verdicts add",
        run: |control, body, _| Box::pin(blocking(control, body, verdicts::add_at)),
    },
    Command {
        path: "/api/verdicts/remove",
        name: "verdicts remove",
        run: |control, body, _| Box::pin(blocking(control, body, verdicts::remove_at)),
    },
    Command {
        path: "/api/verdicts/flush",
        name: "verdicts flush",
        run: |control, body, _| Box::pin(blocking(control, body, verdicts::flush_at)),
    },
    Command {
        path: "/api/grants/add",
        name: "grants add",
        run: |control, body, by| {
            Box::pin(blocking(control, body, move |control, request| {
                grants::add_at(control, request, &by)
            }))
        },
    },
    Command {
        path: "/api/grants/revoke",
        name: "grants revoke",
        run: |control, body, by| {
            Box::pin(blocking(control, body, move |control, request| {
                grants::revoke_at(control, request, &by)
            }))
        },
    },
];

type Running = Pin<Box<dyn Future<Output = Result<Done, NotDone>> + Send>>;

/// A command that was carried out.
pub(super) struct Done {
    /// What is answered, as JSON.
    answer: String,
    /// What is logged of it.
    summary: String,
}

impl Done {
    pub(super) fn new(answer: &impl Serialize, summary: String) -> Result<Self, NotDone> {
        let answer = serde_json::to_string(answer).map_err(NotDone::broken)?;
        Ok(Self { answer, summary })
    }
}

/// A command that was not carried out.
#[derive(Debug)]
pub(super) struct NotDone {
    pub(super) status: StatusCode,
    pub(super) why: String,
}

impl NotDone {
    pub(super) fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self {
            status,
            why: why.into(),
        }
    }

    pub(super) fn broken(error: impl Into<Box<dyn std::error::Error>>) -> Self {
        let error = error.into();
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl Command {
    /// Carries the command out, and logs it. Gives the answer.
    pub(super) async fn carry_out(
        &'static self,
        control: Arc<Control>,
        by: Caller,
        body: Bytes,
    ) -> Result<String, NotDone> {
        let task = tokio::spawn(async move {
            let result = (self.run)(control, body, by.clone()).await;
            let (command, by) = (self.name, by.to_string());
            match &result {
                Ok(done) => {
                    tracing::info!(command, by, result = done.summary, "admin command");
                }
                Err(NotDone { why, .. }) => {
                    tracing::warn!(command, by, error = why, "admin command failed");
                }
            }
            result
        });
        let result = task.await.map_err(NotDone::broken)?;
        result.map(|done| done.answer)
    }
}

/// Runs a command that blocks, with its request from JSON.
async fn blocking<R: DeserializeOwned + Send + 'static>(
    control: Arc<Control>,
    body: Bytes,
    run: impl FnOnce(&Control, &R) -> Result<Done, NotDone> + Send + 'static,
) -> Result<Done, NotDone> {
    let done = spawn_blocking(move || {
        let request: R = serde_json::from_slice(&body)
            .map_err(|error| NotDone::new(StatusCode::BAD_REQUEST, error.to_string()))?;
        run(&control, &request)
    });
    done.await.map_err(NotDone::broken)?
}

async fn reload_now(control: Arc<Control>) -> Result<Done, NotDone> {
    match reload::now(&control).await {
        Some(last) => Done::new(&last, last.result.to_owned()),
        None => Err(NotDone::new(
            StatusCode::CONFLICT,
            reload::NO_FILE.to_owned(),
        )),
    }
}
