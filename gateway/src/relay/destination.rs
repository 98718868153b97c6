//! Where a message goes, and what was tried to get it there.
//!
//! A transaction has one destination: the first recipient decides, and one that needs another is
//! deferred, so that the client sends it again. The next hops of a destination are tried in their
//! order, one after the other.

use portcullis_smtp::reply::Reply;
use smallvec::SmallVec;

use super::hop::{Hop, HopId};
use super::pool::Wish;
use super::replies::{Refusal, unavailable};
use crate::fronts::SendClient;

/// Where a message goes.
#[derive(Debug)]
pub enum Destination {
    /// The first recipient decides.
    Undecided,
    /// Nowhere: it is counted and thrown away, for load tests.
    Discard,
    /// To the first of these next hops that takes it.
    NextHops(NextHops),
}

/// How a connection to a next hop was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It broke, or was closed. That may have been long ago, and says nothing about the next hop.
    Broken,
    /// The next hop did not take it, or does not answer on it.
    NoAnswer,
    /// The next hop did not take it, but has others from us that work.
    Crowded,
    /// It had carried other transactions and takes no more, it seems.
    Deferred,
    /// The next hop does not meet what its route demands of it; what is said is ours.
    Unfit,
    /// Its TLS failed, and the next connection to it will be in the clear.
    Unencrypted,
}

/// The next hops of a transaction, in the order in which they are tried.
#[derive(Debug, Default)]
pub struct NextHops {
    hops: SmallVec<[Hop; 2]>,
    /// Those that have failed it.
    tried: Vec<HopId>,
    /// A connection that was taken from the pool turned out to be dead: the next one is to be new.
    fresh: bool,
    /// It has waited for a connection in vain: no next hop that is not known to work is to cost it
    /// more time.
    hurried: bool,
    /// A connection of its own broke, and was replaced once.
    replaced: bool,
    /// What a next hop said when it ended a connection, or took none.
    said: Option<Box<Reply<'static>>>,
    /// A kept connection deferred the sender: what the client hears if there is no other
    /// connection.
    deferral: Option<Box<Reply<'static>>>,
}

impl NextHops {
    /// Those next hops, none of them tried.
    pub fn new(hops: impl IntoIterator<Item = Hop>) -> Self {
        Self {
            hops: hops.into_iter().collect(),
            ..Self::default()
        }
    }

    /// All of them.
    pub fn ids(&self) -> impl Iterator<Item = HopId> {
        self.hops.iter().map(Hop::id)
    }

    /// One of them.
    pub fn hop(&self, id: HopId) -> Option<&Hop> {
        self.hops.iter().find(|hop| hop.id() == id)
    }

    /// Whether one of them is to be told of the client.
    pub fn want_client(&self) -> bool {
        let mut hops = self.hops.iter();
        hops.any(|hop| hop.demands().send_client != SendClient::No)
    }

    /// Those that have failed the transaction.
    pub fn tried(&self) -> &[HopId] {
        &self.tried
    }

    /// Whether there is a choice.
    pub fn has_others(&self) -> bool {
        self.hops.len() > 1
    }

    /// What the transaction wants of its next connection.
    pub fn wish(&self) -> Wish {
        Wish {
            fresh: self.fresh,
            hurried: self.hurried,
        }
    }

    /// A connection is opened for the transaction. If this one is lost too, it is not for having
    /// been idle too long.
    pub fn connecting(&mut self) {
        self.fresh = true;
    }

    /// The transaction goes on without the connection that is being opened for it.
    pub fn hurry(&mut self) {
        self.fresh = false;
        self.hurried = true;
    }

    /// The transaction has let its connection go, and will ask for another.
    pub fn parked(&mut self) {
        self.fresh = false;
    }

    /// A connection to this next hop was lost; `said` is what the next hop said when it went.
    pub fn lost(&mut self, address: HopId, loss: Loss, said: Option<Reply<'static>>) {
        match loss {
            // There are other connections to it, or will be: one of those will do.
            Loss::Crowded | Loss::Unencrypted => self.fresh = false,
            Loss::Broken | Loss::Deferred if !self.fresh => self.fresh = true,
            Loss::Broken if !self.replaced => self.replaced = true,
            Loss::Broken | Loss::Deferred | Loss::NoAnswer | Loss::Unfit => {
                self.tried.push(address);
                self.fresh = false;
            }
        }
        let said = said.map(Box::new);
        match loss {
            Loss::Deferred | Loss::Unfit => self.deferral = said,
            _ => self.said = said.or(self.said.take()),
        }
    }

    /// Whether a deferred sender may be about the connection and not about the sender: it is one
    /// from the pool, and that was not found out yet in this transaction.
    pub fn may_be_the_connection(&self) -> bool {
        !self.fresh && self.deferral.is_none()
    }

    /// The answer when none of them takes the transaction; `refusal` is what one of them has said
    /// to others.
    pub fn unavailable(&mut self, refusal: Option<&Refusal>) -> Reply<'static> {
        if let Some(deferral) = self.deferral.take() {
            return *deferral;
        }
        let said = self.said.take().map(|said| Refusal::Said(*said));
        unavailable(said.as_ref().or(refusal))
    }
}
