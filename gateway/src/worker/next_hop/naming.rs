//! Which client a next hop is told of, where the route of a message wants that.
//!
//! A header of the PROXY protocol names one client for a whole connection: it goes out before
//! anything else, and the connection is closed when the client's transaction is over. XCLIENT is
//! sent for each client before its transaction. A connection that has named one client and cannot
//! name the next is closed, for the next would act in the name of the one before.

use super::{End, Session};
use crate::fronts::SendClient;
use crate::fronts::xclient::Offered;
use crate::relay::client::write_header;
use crate::relay::destination::Loss;
use crate::relay::hop::HopEvent;
use crate::relay::owner::Owner;
use crate::relay::replies::CLIENT_UNNAMED;

/// What a next hop was told of clients.
#[derive(Default)]
pub(super) struct Naming {
    /// What its last reply to EHLO says that it takes.
    pub(super) offered: Offered,
    pub(super) stage: Stage,
    /// The attributes of the client in whose name the connection stands; empty: it is the gate.
    named: String,
    /// Those that XCLIENT was sent with.
    sent: String,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing is awaited.
    #[default]
    Settled,
    /// The reply to XCLIENT, or to the EHLO after it.
    Awaited,
    /// XCLIENT was refused.
    Refused,
}

impl Naming {
    /// The next hop has taken XCLIENT; EHLO comes next.
    pub(super) fn accepted(&mut self) {
        self.named = std::mem::take(&mut self.sent);
        self.offered = Offered::default();
    }

    /// The connection stands in the name of a client, and cannot name another. Postfix takes
    /// XCLIENT again only if that client, too, is one that it takes it from.
    pub(super) fn is_final(&self) -> bool {
        !self.named.is_empty() && !self.offered.names_clients()
    }
}

impl Session {
    /// Writes the header that the connection begins with, if the route wants one.
    pub(super) fn write_header(&self) {
        let send_client = self.shared.hop.demands().send_client;
        if send_client.can_change_client() {
            return;
        }
        let owner = self.shared.owner();
        self.reactor.write(self.conn, |out| match &owner {
            Some(owner) => owner.client(&mut |client| write_header(client, send_client, out)),
            None => write_header(None, send_client, out),
        });
    }

    /// Whether the transaction of the owner can go on: its client is named, or need not be.
    pub(super) fn is_client_named(&mut self, owner: &dyn Owner) -> Result<bool, End> {
        if self.shared.hop.demands().send_client != SendClient::Xclient {
            return Ok(true);
        }
        match self.state.naming.stage {
            Stage::Awaited => return Ok(false),
            Stage::Refused => {
                // It is about this client: no reason to speak in the gate's name, which may do more
                // there, nor to leave the next hop alone.
                self.count(HopEvent::ClientUnnamed);
                self.state.refusal = Some(CLIENT_UNNAMED);
                return Err(End::Replaced);
            }
            Stage::Settled => {}
        }
        if !self.shared.is_new_owner.take() {
            return Ok(true);
        }
        let (naming, mut attributes) = (&mut self.state.naming, None);
        owner.client(&mut |client| attributes = client.map(|it| it.attributes(naming.offered)));
        match attributes {
            None if naming.named.is_empty() => Ok(true),
            Some(attributes) if naming.offered.names_clients() => {
                if attributes == naming.named {
                    return Ok(true);
                }
                let smtp = &mut self.smtp;
                self.reactor
                    .write(self.conn, |out| smtp.xclient(&attributes, out));
                naming.stage = Stage::Awaited;
                naming.sent = attributes;
                Ok(false)
            }
            _ => self.cannot_name(),
        }
    }

    /// The next hop does not take the client of the transaction.
    pub(super) fn cannot_name(&mut self) -> Result<bool, End> {
        if !self.state.naming.named.is_empty() {
            return Err(End::Replaced);
        }
        let id = self.shared.id();
        let is_required = self.shared.hop.demands().send_client_required;
        if self.reactor.pool.with(|pool| pool.unnamed(id)) {
            let advice = "let it take XCLIENT from the gate (Postfix: \
                          smtpd_authorized_xclient_hosts), or set send_client = \"no\" in its \
                          [[route]]";
            if is_required {
                tracing::warn!(next_hop = %id, advice, "next hop does not take XCLIENT: no mail");
            } else {
                tracing::warn!(
                    next_hop = %id,
                    advice,
                    "next hop does not take XCLIENT: it sees the gate in place of clients"
                );
            }
        }
        if !is_required {
            return Ok(true);
        }
        self.state.refusal = Some(CLIENT_UNNAMED);
        Err(End::Lost(Loss::Unfit))
    }
}
