//! Who a connection to a next hop works for.
//!
//! A connection outlives what it carries: it is opened, kept, cleaned up and closed by a task of
//! its own. While it carries something it has an owner: the transaction of a client today, a
//! delivery from a queue next. The owner says what is to be told, and hears what the next hop says.

use std::net::SocketAddr;

use portcullis_smtp::client::{Client, Sent};
use portcullis_smtp::reply::Reply;

use super::client::MessageClient;
use super::destination::Loss;
use super::hop::HopId;
use crate::driver::Conn;

/// What an owner may know of the connection that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The next hop.
    pub address: SocketAddr,
    /// The version of TLS; empty in the clear.
    pub tls_version: &'static str,
}

/// What a connection has to know of its owner before it does anything to the next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Content, or DATA, may have reached the next hop: it can only be left by closing.
    pub past_envelope: bool,
    /// Only the final reply is still to come.
    pub awaits_final: bool,
    /// There is something for its own task to do: an answer to give, or the connection to let go
    /// because the next hop has nothing more to do with it.
    pub has_news: bool,
}

/// What a connection to a next hop carries.
///
/// No method may wait, or call back into the connection: an owner notes what it is told, and its
/// own task, which is woken, goes on with it.
pub trait Owner {
    /// The task to wake when there is news: that of the connection with this name.
    fn task(&self) -> Conn;
    /// Tells the next hop what it can be told now. Called when the connection is ready, when the
    /// owner woke it, and after replies. Returns whether that began a transaction with it.
    fn advance(&self, link: Link, hop: &mut Client, out: &mut Vec<u8>) -> bool;
    /// A reply to a command of this transaction.
    fn reply(&self, to: Sent, reply: &Reply<'_>);
    /// The next hop has spoken out of turn, and is about to be left.
    fn interrupted(&self, reply: &Reply<'_>);
    /// How far it has come.
    fn standing(&self) -> Standing;
    /// Whether a deferred MAIL may be about the connection, which had carried others, and not about
    /// the sender.
    fn may_be_the_connection(&self) -> bool;
    /// Whether something was asked for that only a next hop with DSN can do (RFC 3461).
    fn asks_for_dsn(&self) -> bool;
    /// Shows `look` the client that the message comes from, where the route wants the next hop to
    /// be told of it; a message from a queue has none.
    fn client(&self, look: &mut dyn FnMut(Option<&MessageClient>));
    /// The next hop has taken some of its output; `waiting` octets are left. Returns whether the
    /// owner waits for that.
    fn relieved(&self, waiting: usize) -> bool;
    /// The next hop takes long over the connection, and the owner has lost it to the background.
    fn overtaken(&self);
    /// The connection is gone; `said` is what the next hop said when it went.
    fn lost(&self, hop: HopId, loss: Loss, said: Option<Reply<'static>>);
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use portcullis_smtp::client::{ClientEvent, MailCommand};
    use portcullis_smtp::data::Stuffer;
    use portcullis_smtp::reply::EnhancedCode;
    use portcullis_smtp::server::{Blame, Event, Session, Settings};

    use super::*;

    const MESSAGE: &[u8] = b"Subject: from a queue\r\n\r\n.stuffed\r\n";
    const UNKNOWN: Reply<'static> = Reply::fixed(550, EnhancedCode(5, 1, 1), "No such user");

    /// A message from a queue, which has no client: what a spool will have.
    struct Delivery {
        recipients: Vec<&'static str>,
        state: RefCell<Delivered>,
    }

    #[derive(Default)]
    struct Delivered {
        mail_told: bool,
        told: usize,
        data_told: bool,
        invited: bool,
        ended: bool,
        /// The code for each recipient, and for the message.
        codes: Vec<u16>,
        lost: Option<Loss>,
    }

    impl Owner for Delivery {
        fn task(&self) -> Conn {
            Conn::NONE
        }

        fn advance(&self, _: Link, hop: &mut Client, out: &mut Vec<u8>) -> bool {
            let state = &mut *self.state.borrow_mut();
            let begins = !state.mail_told && hop.may_send();
            if begins {
                let command = MailCommand {
                    path: "a@queue.example",
                    ..MailCommand::default()
                };
                hop.mail(&command, out);
                state.mail_told = true;
            }
            while state.mail_told && state.told < self.recipients.len() && hop.may_send() {
                hop.rcpt(self.recipients[state.told], None, None, out);
                state.told += 1;
            }
            let all_told = state.told == self.recipients.len() && hop.replies_owed() == 0;
            if all_told && !state.data_told && state.codes.contains(&250) {
                hop.data(out);
                state.data_told = true;
            }
            if state.invited && !state.ended {
                let mut stuffer = Stuffer::new();
                stuffer.write(MESSAGE, out);
                hop.end_of_data(&mut stuffer, out);
                state.ended = true;
            }
            begins
        }

        fn reply(&self, to: Sent, reply: &Reply<'_>) {
            let mut state = self.state.borrow_mut();
            match to {
                Sent::Data => state.invited = reply.code == 354,
                Sent::Rcpt | Sent::Message => state.codes.push(reply.code),
                _ => {}
            }
        }

        fn interrupted(&self, _: &Reply<'_>) {}

        fn standing(&self) -> Standing {
            let state = self.state.borrow();
            Standing {
                past_envelope: state.data_told && !state.ended,
                awaits_final: state.ended && state.codes.len() == self.recipients.len(),
                has_news: false,
            }
        }

        fn may_be_the_connection(&self) -> bool {
            false
        }

        fn asks_for_dsn(&self) -> bool {
            false
        }

        fn client(&self, look: &mut dyn FnMut(Option<&MessageClient>)) {
            look(None);
        }

        fn relieved(&self, _: usize) -> bool {
            false
        }

        fn overtaken(&self) {}

        fn lost(&self, _: HopId, loss: Loss, _: Option<Reply<'static>>) {
            self.state.borrow_mut().lost = Some(loss);
        }
    }

    /// The server's side of the session, in memory: what it has been sent.
    fn serve(session: &mut Session, input: &[u8], out: &mut Vec<u8>, message: &mut Vec<u8>) {
        let settings = Settings::new("mx.example".to_owned());
        session.flushed();
        let mut taken = 0;
        loop {
            let step = session.handle(&settings, &input[taken..], out);
            taken += step.consumed;
            match step.event {
                Event::NeedInput => break,
                Event::Rcpt(rcpt) if rcpt.path.raw.starts_with("gone@") => {
                    session.refuse(&settings, &UNKNOWN, Blame::None, out);
                }
                Event::Body(piece) => message.extend_from_slice(piece),
                Event::Quit | Event::Abort(_) => panic!("{:?}", step.event),
                _ => session.accept(&settings, out),
            }
        }
        assert_eq!(taken, input.len());
    }

    #[test]
    fn a_delivery_that_is_no_client_can_own_a_connection() {
        let owner: &dyn Owner = &Delivery {
            recipients: vec!["b@mx.example", "gone@mx.example"],
            state: RefCell::default(),
        };
        let link = Link {
            address: SocketAddr::from(([192, 0, 2, 1], 25)),
            tls_version: "",
        };
        let (mut server, mut client) = (Session::new(), Client::new());
        let (mut to_client, mut message, mut begun) = (Vec::new(), Vec::new(), 0);
        server.greet(&Settings::new("mx.example".to_owned()), &mut to_client);
        while !to_client.is_empty() {
            let replies = std::mem::take(&mut to_client);
            let (mut taken, mut to_server) = (0, Vec::new());
            let mut is_ready = true;
            loop {
                let (used, event) = client.handle(&replies[taken..]);
                taken += used;
                match event {
                    ClientEvent::NeedInput => break,
                    ClientEvent::Reply {
                        to: Sent::Greeting, ..
                    } => is_ready = false,
                    ClientEvent::Reply { to: Sent::Ehlo, .. } => {}
                    ClientEvent::Reply { to, reply } => owner.reply(to, &reply),
                    other => panic!("{other:?}"),
                }
            }
            if is_ready {
                begun += u32::from(owner.advance(link, &mut client, &mut to_server));
            } else {
                client.ehlo("gate.example", &mut to_server);
            }
            if !to_server.is_empty() {
                serve(&mut server, &to_server, &mut to_client, &mut message);
            }
        }
        assert_eq!(message, MESSAGE);
        assert_eq!((begun, client.replies_owed()), (1, 0));
        let standing = owner.standing();
        assert!(
            !standing.past_envelope && !standing.awaits_final,
            "{standing:?}"
        );
    }
}
