//! The control plane's end of the workers' ports: each question goes to the service for its kind,
//! and the service answers the worker itself.
//!
//! A service that is behind with its questions has a bound as well: what it has no room for is
//! answered with `Full` at once.

use std::sync::Arc;

use tokio::sync::Notify;

use super::auth::Passwords;
use super::dnsbl;
use crate::driver::ring::Waker;
use crate::worker::port::{ControlEnd, Message, Notice, Port, Question, port};

/// Questions of one worker that may be outstanding: a flood of clients at a slow name server stays
/// below it, and all of them take 8 MiB.
const QUESTIONS_MAX: usize = 65_536;

/// The ends of all workers' ports, and what wakes the control plane for them.
#[derive(Debug, Default)]
pub(super) struct Ports {
    ends: Vec<ControlEnd>,
    woken: Arc<Notify>,
}

impl Ports {
    /// The port of a further worker, which its answers wake through `waker`.
    pub(super) fn add(&mut self, waker: Waker) -> Port {
        let woken = Arc::clone(&self.woken);
        let (port, end) = port(
            QUESTIONS_MAX,
            move || waker.wake(),
            move || woken.notify_one(),
        );
        self.ends.push(end);
        port
    }

    /// Questions about DNS lists that were one too many for a port.
    pub(super) fn dnsbl_unasked(&self) -> u64 {
        self.ends.iter().map(ControlEnd::dnsbl_unasked).sum()
    }

    /// Questions about who a client is that were one too many for a port.
    pub(super) fn passwords_unasked(&self) -> u64 {
        self.ends.iter().map(ControlEnd::passwords_unasked).sum()
    }
}

/// The services: one for each kind of question.
pub(super) struct Services {
    pub(super) dnsbl: dnsbl::Requests,
    pub(super) passwords: Passwords,
}

impl Services {
    /// Passes on questions and reports of the workers, as long as the gate runs.
    pub(super) async fn serve(self, ports: Arc<Ports>) {
        loop {
            ports.woken.notified().await;
            for message in ports.ends.iter().flat_map(ControlEnd::take) {
                self.pass_on(message);
            }
        }
    }

    fn pass_on(&self, message: Message) {
        match message {
            Message::Ask(ask) => match ask.question.clone() {
                Question::Dnsbl(client) => self.dnsbl.query(client, ask),
                Question::Password {
                    client,
                    credentials,
                    ..
                } => self.passwords.check(client, credentials, ask),
                Question::WrongProof { client, name, .. } => {
                    self.passwords.wrong(client, &name, ask);
                }
                Question::Sasl {
                    client,
                    is_secured,
                    said,
                    ..
                } => self.passwords.proceed(client, is_secured, said, ask),
            },
            Message::Notice(Notice::Refused(refusal)) => self.dnsbl.learn(refusal),
        }
    }
}
