//! What a next hop says, and what that means for the session with it.

use std::rc::Rc;
use std::task::Poll;

use portcullis_smtp::client::{ClientEvent, Sent, offered_arguments};
use portcullis_smtp::reply::Reply;
use portcullis_smtp::sasl::Encoded;
use zeroize::Zeroizing;

use super::naming::{Naming, Stage};
use super::{End, Session};
use crate::fronts::xclient::Offered;
use crate::relay::destination::Loss;
use crate::relay::login::{Exchange, Unexpected};
use crate::relay::owner::Owner;

/// What a reply means for the session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Goes,
    /// STARTTLS was accepted: the handshake comes next.
    StartTls,
    StartTlsRefused,
    /// A challenge has its response, which is to go out.
    Respond,
    /// A challenge cannot be answered.
    Cancel,
    LoggedIn,
    LoginFailed,
    /// HELO is to be tried.
    Helo,
    /// EHLO or HELO was accepted.
    Ready,
    Ehlo,
    Ends(End),
}

/// What replies change.
#[derive(Default)]
pub(super) struct State {
    /// A transaction was begun on it that has not been completed.
    pub(super) needs_reset: bool,
    /// The final reply to a message is awaited, which may take longer than others (RFC 5321 section
    /// 4.5.3.2.6).
    pub(super) awaits_final: bool,
    /// What it said when it took no session, or ended it.
    pub(super) refusal: Option<Reply<'static>>,
    /// What the next hop was told of clients.
    pub(super) naming: Naming,
    /// The exchange of AUTH that goes on, and the response to the latest challenge.
    pub(super) login: Option<Box<Exchange>>,
    response: Zeroizing<Vec<u8>>,
    /// The gate has cancelled it.
    pub(super) cancelled: bool,
}

impl Session {
    /// Takes the replies that have come; ready with what the last one means if there was one.
    pub(super) fn poll_replies(&mut self) -> Poll<Result<After, End>> {
        let polled = self.reactor.polled();
        if !polled.has_input {
            return if polled.is_open && !polled.is_at_end {
                Poll::Pending
            } else {
                Poll::Ready(Err(End::Lost(Loss::Broken)))
            };
        }
        let reactor = Rc::clone(&self.reactor);
        let owner = self.shared.owner();
        let owner = owner.as_deref();
        let (smtp, state) = (&mut self.smtp, &mut self.state);
        let mut has_secret = false;
        let read = reactor.read(self.conn, |input, out| {
            let (mut taken, mut latest) = (0, None);
            loop {
                let is_kept = smtp.transactions() > 1;
                let (consumed, event) = smtp.handle(&input[taken..]);
                taken += consumed;
                let after = match event {
                    ClientEvent::NeedInput => break,
                    ClientEvent::Reply { to, reply } => state.take(to, &reply, owner, is_kept),
                    ClientEvent::Unsolicited(reply) => {
                        let is_secret = state.login.is_some();
                        let reply = if is_secret { bare(&reply) } else { reply };
                        if let Some(owner) = owner.filter(|_| reply.code != 421) {
                            owner.interrupted(&reply);
                        }
                        state.refusal = Some(reply.into_owned());
                        After::Ends(End::Lost(Loss::Broken))
                    }
                    ClientEvent::Malformed => After::Ends(End::Lost(Loss::Broken)),
                };
                match after {
                    After::Ehlo => smtp.ehlo(&reactor.config().hostname, out),
                    After::Helo => smtp.helo(&reactor.config().hostname, out),
                    After::Respond => {
                        let response = std::mem::take(&mut state.response);
                        smtp.auth_response(&response, out);
                        has_secret = true;
                    }
                    After::Cancel => smtp.auth_cancel(out),
                    _ => {}
                }
                let ends = matches!(after, After::Ends(_));
                latest = Some(after);
                if ends {
                    break;
                }
            }
            (taken, latest)
        });
        if has_secret {
            reactor.with(self.conn, |connection| connection.has_secret = true);
        }
        match read {
            Some(Some(After::Ends(end))) => Poll::Ready(Err(end)),
            _ if polled.is_at_end => Poll::Ready(Err(End::Lost(Loss::Broken))),
            Some(Some(after)) => Poll::Ready(Ok(after)),
            Some(None) => Poll::Pending,
            None => Poll::Ready(Err(End::Lost(Loss::Broken))),
        }
    }
}

impl State {
    /// Takes a reply. `is_kept`: the connection had carried other transactions.
    fn take(
        &mut self,
        to: Sent,
        reply: &Reply<'_>,
        owner: Option<&dyn Owner>,
        is_kept: bool,
    ) -> After {
        let lost = || After::Ends(End::Lost(Loss::Broken));
        let without_text;
        let reply = if to == Sent::Auth && reply.code != 334 {
            without_text = bare(reply);
            &without_text
        } else {
            reply
        };
        if reply.code == 421 || !fits(to, reply) {
            self.refusal = (reply.code == 421).then(|| reply.clone().into_owned());
            return lost();
        }
        let may_be_the_connection = is_kept && owner.is_some_and(Owner::may_be_the_connection);
        match to {
            Sent::Mail if reply.is_transient() && may_be_the_connection => {
                self.refusal = Some(reply.clone().into_owned());
                return After::Ends(End::Replaced);
            }
            Sent::Greeting if reply.is_positive() => return After::Ehlo,
            Sent::Ehlo if reply.is_permanent() => {
                // Either it does not know EHLO, or it hangs up on HELO as well and this was the
                // reason.
                self.refusal = Some(reply.clone().into_owned());
                return After::Helo;
            }
            Sent::Ehlo | Sent::Helo if reply.is_positive() => {
                let offered = offered_arguments(reply, "XCLIENT");
                self.naming.offered = offered.map(Offered::new).unwrap_or_default();
                self.naming.stage = Stage::Settled;
                return After::Ready;
            }
            Sent::Xclient if reply.is_positive() => {
                self.naming.accepted();
                return After::Ehlo;
            }
            Sent::Xclient => self.naming.stage = Stage::Refused,
            Sent::Greeting | Sent::Ehlo | Sent::Helo => {
                self.refusal = Some(reply.clone().into_owned());
                return lost();
            }
            Sent::StartTls if reply.code == 220 => return After::StartTls,
            Sent::StartTls => {
                self.refusal = Some(reply.clone().into_owned());
                return After::StartTlsRefused;
            }
            Sent::Auth => return self.login_reply(reply),
            // Only QUIT is sent.
            Sent::Quit => return lost(),
            // A next hop that refuses to forget a transaction is not to get another.
            Sent::Rset if !reply.is_positive() => return lost(),
            Sent::Rset => {}
            Sent::Mail | Sent::Rcpt | Sent::Data | Sent::Chunk | Sent::Message => {
                if to == Sent::Message {
                    self.needs_reset = false;
                    self.awaits_final = false;
                }
                if let Some(owner) = owner {
                    owner.reply(to, reply);
                }
            }
        }
        After::Goes
    }

    /// A reply within AUTH.
    fn login_reply(&mut self, reply: &Reply<'_>) -> After {
        let Some(exchange) = self.login.as_mut().filter(|_| reply.is_positive()) else {
            self.login = None;
            self.refusal = Some(reply.clone().into_owned());
            return After::LoginFailed;
        };
        if reply.code != 334 {
            let is_complete = exchange.is_complete();
            self.login = None;
            if is_complete {
                return After::LoggedIn;
            }
            tracing::error!("next hop accepts AUTH and has not proved that it knows the password");
            return After::LoginFailed;
        }
        let mut challenge = Vec::new();
        let response = match Encoded::parse(reply.text.trim().as_bytes()) {
            Some(encoded) => {
                encoded.decode(&mut challenge);
                exchange.respond(&challenge)
            }
            None => Err(Unexpected("a challenge that is no base64")),
        };
        match response {
            Ok(response) => {
                self.response = response;
                After::Respond
            }
            Err(Unexpected(what)) => {
                let mechanism = exchange.mechanism().name();
                tracing::error!(mechanism, "next hop sends {what}");
                self.login = None;
                self.cancelled = true;
                After::Cancel
            }
        }
    }
}

/// The reply without its words: some servers quote the line that they refuse, and in AUTH that is
/// the password.
fn bare(reply: &Reply<'_>) -> Reply<'static> {
    Reply::new(reply.code, reply.enhanced, "")
}

/// Whether a reply of this kind can be an answer to the command at all. Taking a 250 to DATA for a
/// success would lose the message.
fn fits(to: Sent, reply: &Reply<'_>) -> bool {
    match to {
        Sent::Data if reply.is_positive() => reply.code == 354,
        Sent::Auth if reply.code == 334 => true,
        _ => matches!(reply.code, 200..=299 | 400..=599),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use portcullis_smtp::reply::EnhancedCode;
    use portcullis_smtp::sasl::Mechanism;

    use super::*;
    use crate::auth::random_salt;
    use crate::relay::login::Login;

    #[test]
    fn what_a_next_hop_quotes_of_auth_is_not_kept() {
        for code in [421, 535, 500] {
            let login = Arc::new(Login::new("gate", Zeroizing::new(b"sesame".to_vec())));
            let offered = [Mechanism::Plain].into_iter().collect();
            let exchange = login.begin(offered, random_salt().unwrap()).unwrap();
            let mut state = State {
                login: Some(Box::new(exchange)),
                ..State::default()
            };
            let text = "what is AUTH PLAIN AGdhdGUAc2VzYW1l";
            let reply = Reply::new(code, Some(EnhancedCode(5, 7, 8)), text);
            state.take(Sent::Auth, &reply, None, false);
            let kept = state.refusal.expect("the refusal").to_string();
            assert!(kept.starts_with(&code.to_string()), "{kept}");
            assert!(!kept.contains("AUTH"), "{kept}");
        }
    }
}
