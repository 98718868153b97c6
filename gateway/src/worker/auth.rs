//! AUTH of a client (RFC 4954): what it says goes to the exchange of its mechanism, and what comes
//! of that to the client.
//!
//! With a user file the exchange is here, and the control plane is asked for what takes long or is
//! counted: a password to check, a proof that is wrong. With Dovecot each response of the client is
//! a question. Meanwhile the SMTP engine takes nothing more of the client.
//!
//! That a password cannot be checked now is never the client's fault: 454, and it tries again. What
//! an exchange holds is wiped with it; what holds the octets as they came is wiped by
//! `secret.rs`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use portcullis_smtp::reply::{EnhancedCode, Reply};
use portcullis_smtp::sasl::Encoded;
use portcullis_smtp::server::{AUTH_FAILED, AUTH_UNAVAILABLE, Blame};
use zeroize::Zeroizing;

use super::port::{Conversation, LookupAnswer, PasswordAnswer, Question, QuestionId, Said};
use super::session::{LastHeard, Session};
use crate::auth::dovecot::Secret;
use crate::auth::exchange::{Exchange, Mechanism, Step};
use crate::auth::random_salt;
use crate::config::{Auth, BackEnd};
use crate::policy::{Identity, Proof};

/// How long a client waits for the control plane: a refusal is held back for up to 16 seconds.
const WITHIN: Duration = Duration::from_secs(30);

static MALFORMED: Reply<'static> = Reply::fixed(
    501,
    EnhancedCode(5, 5, 2),
    "Not a response of this mechanism",
);

/// How an attempt to authenticate has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthResult {
    /// 235.
    Accepted,
    /// 535: no user, or not the one that the client says it is.
    Refused,
    /// 454: it could not be checked.
    Unavailable,
    /// 501: not what the mechanism says.
    Malformed,
    /// The client has given it up, has gone away, or has sent what is no base64.
    BrokenOff,
}

impl AuthResult {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Accepted,
        Self::Refused,
        Self::Unavailable,
        Self::Malformed,
        Self::BrokenOff,
    ];

    /// The word for it in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Malformed => "malformed",
            Self::BrokenOff => "broken-off",
        }
    }
}

/// An AUTH command that has not come to its end. A session has one only as long as it runs.
pub(super) struct OpenAuth {
    mechanism: Mechanism,
    turn: Turn,
}

/// Whose turn it is.
enum Turn {
    /// The client's, with its response to a challenge.
    Client(Carrier),
    /// The control plane's, with the answer to this question.
    Control(QuestionId),
}

/// What carries the exchange on.
enum Carrier {
    Here(Exchange),
    Dovecot(Conversation),
}

impl Session {
    /// AUTH.
    pub(super) fn begin_auth(
        &mut self,
        mechanism: Mechanism,
        initial: Option<Encoded<'_>>,
        out: &mut Vec<u8>,
    ) {
        self.reactor.reads_secret.set(true);
        let initial = initial.map(decoded);
        let config = self.reactor.config();
        match config.auth.as_ref().map(|auth| &auth.back_end) {
            Some(BackEnd::Users {
                users: Some(users), ..
            }) => {
                // Only SCRAM has a use for it.
                let nonce = match mechanism {
                    Mechanism::ScramSha256 => random_salt(),
                    Mechanism::Plain | Mechanism::Login => Ok([0; 16]),
                };
                let Ok(nonce) = nonce else {
                    return self.end_auth(mechanism, AuthResult::Unavailable, out);
                };
                let mut exchange = Exchange::new(mechanism, users, nonce);
                let step = exchange.begin(initial);
                self.after_step(mechanism, exchange, step, out);
            }
            Some(BackEnd::Dovecot { .. }) => {
                let said = Said::Auth(mechanism, initial.map(Secret::new));
                self.ask_dovecot(mechanism, said, out);
            }
            // A reload has taken the users away.
            Some(BackEnd::Users { users: None, .. }) | None => {
                self.end_auth(mechanism, AuthResult::Unavailable, out);
            }
        }
    }

    /// The response to a challenge.
    pub(super) fn auth_response(&mut self, response: Encoded<'_>, out: &mut Vec<u8>) {
        let Some(auth) = self.auth.take() else {
            // The engine has no response without a challenge.
            return self.refuse_auth(&AUTH_UNAVAILABLE, Blame::None, out);
        };
        let OpenAuth { mechanism, turn } = *auth;
        match turn {
            Turn::Client(Carrier::Here(mut exchange)) => {
                let step = exchange.step(decoded(response));
                self.after_step(mechanism, exchange, step, out);
            }
            Turn::Client(Carrier::Dovecot(conversation)) => {
                let said = Said::Response(conversation, Secret::new(decoded(response)));
                self.ask_dovecot(mechanism, said, out);
            }
            // It waits for the reply.
            Turn::Control(id) => {
                self.reactor.forget(id);
                self.end_auth(mechanism, AuthResult::Unavailable, out);
            }
        }
    }

    /// Gives the client what came of its last response, if the answer to that has come.
    pub(super) fn take_auth(&mut self) {
        let Some(auth) = &self.auth else { return };
        let Turn::Control(id) = auth.turn else { return };
        let mechanism = auth.mechanism;
        let Some(answer) = self.reactor.answer(id) else {
            return;
        };
        self.auth = None;
        self.expect_command();
        self.heard = LastHeard::Other;
        let reactor = Rc::clone(&self.reactor);
        reactor.write(self.conn, |out| match answer {
            LookupAnswer::Password(PasswordAnswer::Accepted(user)) => {
                self.identify(mechanism, &user, out);
            }
            LookupAnswer::Password(PasswordAnswer::Refused) => {
                self.end_auth(mechanism, AuthResult::Refused, out);
            }
            LookupAnswer::Password(PasswordAnswer::Challenge(challenge, conversation)) => {
                let carrier = Carrier::Dovecot(conversation);
                self.challenge(mechanism, carrier, &challenge, out);
            }
            // One about DNS lists cannot come to this question.
            LookupAnswer::Password(PasswordAnswer::Unavailable)
            | LookupAnswer::Full
            | LookupAnswer::Late
            | LookupAnswer::Dnsbl(_) => self.end_auth(mechanism, AuthResult::Unavailable, out),
        });
    }

    /// Whether it is the control plane's turn.
    pub(super) fn awaits_auth(&self) -> bool {
        let auth = self.auth.as_deref();
        auth.is_some_and(|auth| matches!(auth.turn, Turn::Control(_)))
    }

    /// An exchange that runs is over, and not by what the mechanism says.
    pub(super) fn break_off_auth(&mut self) {
        let Some(auth) = self.auth.take() else { return };
        if let Turn::Control(id) = auth.turn {
            self.reactor.forget(id);
        }
        let counters = &self.reactor.counters;
        counters.authenticated(auth.mechanism, AuthResult::BrokenOff);
    }

    fn after_step(
        &mut self,
        mechanism: Mechanism,
        exchange: Exchange,
        step: Step,
        out: &mut Vec<u8>,
    ) {
        let client = self.client.address;
        match step {
            Step::Challenge(challenge) => {
                self.challenge(mechanism, Carrier::Here(exchange), &challenge, out);
            }
            Step::Success(user) => self.identify(mechanism, &user, out),
            Step::Check(credentials) => {
                let credentials = Arc::new(credentials);
                let question = Question::Password {
                    client,
                    credentials,
                    is_behind_front: self.is_behind_front(),
                };
                self.ask_auth(mechanism, question, out);
            }
            Step::Wrong(name) => {
                let question = Question::WrongProof {
                    client,
                    name,
                    is_behind_front: self.is_behind_front(),
                };
                self.ask_auth(mechanism, question, out);
            }
            Step::Malformed => self.end_auth(mechanism, AuthResult::Malformed, out),
        }
    }

    fn ask_dovecot(&mut self, mechanism: Mechanism, said: Said, out: &mut Vec<u8>) {
        let question = Question::Sasl {
            client: self.client.address,
            is_secured: self.channel.is_encrypted,
            said,
            is_behind_front: self.is_behind_front(),
        };
        self.ask_auth(mechanism, question, out);
    }

    fn ask_auth(&mut self, mechanism: Mechanism, question: Question, out: &mut Vec<u8>) {
        match self.reactor.ask(self.conn, question, WITHIN) {
            Some(id) => {
                let turn = Turn::Control(id);
                self.auth = Some(Box::new(OpenAuth { mechanism, turn }));
            }
            None => self.end_auth(mechanism, AuthResult::Unavailable, out),
        }
    }

    fn challenge(
        &mut self,
        mechanism: Mechanism,
        carrier: Carrier,
        challenge: &[u8],
        out: &mut Vec<u8>,
    ) {
        self.smtp.challenge(challenge, out);
        let turn = Turn::Client(carrier);
        self.auth = Some(Box::new(OpenAuth { mechanism, turn }));
    }

    /// The client is this user.
    fn identify(&mut self, mechanism: Mechanism, user: &str, out: &mut Vec<u8>) {
        let config = self.reactor.config();
        let users = config.auth.as_ref().and_then(Auth::users);
        let known = users.and_then(|users| users.get(user));
        if users.is_some() && known.is_none() {
            // A reload has taken it away meanwhile.
            return self.end_auth(mechanism, AuthResult::Unavailable, out);
        }
        self.identity = Some(Rc::new(Identity {
            user: user.into(),
            proof: Proof::Password,
            senders: known.and_then(|user| user.senders.clone()),
        }));
        self.channel.is_identified = true;
        self.end_auth(mechanism, AuthResult::Accepted, out);
    }

    /// A reload may have taken a user away, or given it other senders. One that Dovecot has vouched
    /// for stays for its session.
    pub(super) fn renew_identity(&mut self) {
        let Some(identity) = self.identity.as_deref() else {
            return;
        };
        let renewed = match identity.proof {
            Proof::Certificate => self.certificate_identity(),
            Proof::Password => {
                let config = self.reactor.config();
                let Some(users) = config.auth.as_ref().and_then(Auth::users) else {
                    return;
                };
                users.get(&identity.user).map(|user| Identity {
                    senders: user.senders.clone(),
                    ..identity.clone()
                })
            }
        };
        self.identity = renewed.map(Rc::new);
        self.channel.is_identified = self.identity.is_some();
        if self.identity.is_none() {
            self.smtp.forget_authentication();
        }
    }

    fn end_auth(&mut self, mechanism: Mechanism, result: AuthResult, out: &mut Vec<u8>) {
        self.reactor.counters.authenticated(mechanism, result);
        match result {
            AuthResult::Accepted => {
                let listener = self.listener();
                self.smtp.accept(listener.settings(self.channel), out);
            }
            AuthResult::Refused => self.refuse_auth(&AUTH_FAILED, Blame::Client, out),
            AuthResult::Malformed => self.refuse_auth(&MALFORMED, Blame::Client, out),
            AuthResult::Unavailable | AuthResult::BrokenOff => {
                self.refuse_auth(&AUTH_UNAVAILABLE, Blame::None, out);
            }
        }
    }

    fn refuse_auth(&mut self, reply: &Reply<'_>, blame: Blame, out: &mut Vec<u8>) {
        let listener = self.listener();
        let settings = listener.settings(self.channel);
        self.smtp.refuse(settings, reply, blame, out);
    }
}

/// What a client said, without base64.
fn decoded(said: Encoded<'_>) -> Zeroizing<Vec<u8>> {
    let mut octets = Zeroizing::new(Vec::new());
    said.decode(&mut octets);
    octets
}
