//! Who a client has proved to be, as decisions take it.
//!
//! A session that goes on over a reload is held to the users of the new configuration: one that is
//! gone has to authenticate anew.

use std::sync::Arc;

use portcullis_smtp::path::Path;

use super::Senders;

/// Who a client has proved to be.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The user, in the form in which names are compared.
    pub user: Arc<str>,
    /// How it was proved.
    pub proof: Proof,
    /// As whom it may send; `None`: as anyone.
    pub senders: Option<Arc<Senders>>,
}

/// How a client has proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// AUTH (RFC 4954).
    Password,
    /// A client certificate (RFC 8446 section 4.4.2).
    Certificate,
}

impl Identity {
    /// Whether the user may send with this reverse-path, as it stands in MAIL without the brackets.
    /// The null sender is open to every user: notifications about messages have to have it
    /// (RFC 3461 section 6.1, RFC 8098 section 3).
    pub fn may_send_as(&self, sender: &str) -> bool {
        let Some(senders) = self.senders.as_ref().filter(|_| !sender.is_empty()) else {
            return true;
        };
        // MAIL was parsed before: what does not parse is no one's address.
        Path::parse(sender).is_ok_and(|path| senders.include(&path.mailbox))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_with_senders_has_no_other_address_whatever_its_form() {
        let of = |senders: Option<&str>| Identity {
            user: "alice".into(),
            proof: Proof::Password,
            senders: senders.map(|text| Arc::new(Senders::parse(text).unwrap())),
        };
        let alice = of(Some("alice@isp.example"));
        for sender in ["", "alice@isp.example", "@relay.example:Alice@ISP.example"] {
            assert!(alice.may_send_as(sender), "{sender}");
        }
        for sender in [
            "bob@isp.example",
            "alice@isp.example@evil.example",
            "@alice@isp.example:bob@isp.example",
            "\"alice@isp.example\"@evil.example",
            "postmaster",
            " ",
        ] {
            assert!(!alice.may_send_as(sender), "{sender}");
            assert!(of(None).may_send_as(sender), "{sender}");
        }
    }
}
