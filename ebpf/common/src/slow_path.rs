//! The slow path's verdict: any frame, and every fact about it.
//!
//! The program in the kernel, the tests on the host and userspace's own explanation run the same
//! [`judge`]; only the reader of the frame, the lists and the memory of sources differ.

use core::convert::Infallible;

use crate::layout::{Role, Settings, VERDICT_GRACE_NS, VerdictKey};
use crate::packet::{self, Content, Packet, Segment, Source};
use crate::verdict::{Class, Facts, Verdict, decide};

/// Where a source is looked up.
pub trait Lookup {
    /// The class of the longest prefix that covers the source, or [`Class::NONE`].
    fn class(&self, source: &Source) -> Class;
}

/// What is known of sources from one packet to the next.
pub trait Memory {
    /// A recent verdict, where it lies.
    type Recent: Recent;

    /// When the grant for a source ends, in nanoseconds of CLOCK_MONOTONIC; 0: it has none.
    fn granted_until_ns(&self, source: &Source) -> u64;
    /// The recent verdict on a source, expired or not.
    fn recent(&self, key: &VerdictKey) -> Option<Self::Recent>;
    /// Whether a source is in a local network.
    fn is_local(&self, source: &Source) -> bool;
    /// Nanoseconds of CLOCK_MONOTONIC, as exact as a tick.
    fn now_ns(&self) -> u64;
    /// Takes a SYN from the budget of a source for this second; `true`: there was nothing left.
    fn exhausts(&self, key: &VerdictKey, budget: u32) -> bool;
}

/// A recent verdict, where it lies.
pub trait Recent {
    /// When it was added.
    fn added_ns(&self) -> u64;
    /// When it ends.
    fn expires_ns(&self) -> u64;
    /// Counts a packet against it.
    fn count(&self, now_ns: u64);
}

/// The verdict on a frame, in which [`packet::read`] has found this.
#[inline(always)]
pub fn judge<P, L, M>(
    frame: &P,
    content: &Content,
    role: Role,
    settings: &Settings,
    lists: &L,
    memory: &M,
) -> Verdict
where
    P: Packet + ?Sized,
    L: Lookup,
    M: Memory,
{
    let segment = match content {
        Content::Segment(segment) => segment,
        Content::TooManyTags => return Verdict::Tags,
        Content::Unread(_) | Content::Other => return Verdict::Other,
    };
    // A hidden port is taken for a filtered one.
    if segment
        .port
        .get()
        .is_some_and(|port| !settings.filters(port))
    {
        return Verdict::Other;
    }
    let Ok(verdict) = decide(&AllFacts {
        frame,
        segment,
        role,
        settings,
        lists,
        memory,
    });
    verdict
}

/// A segment with all that the facts about it come from.
struct AllFacts<'a, P: ?Sized, L, M> {
    frame: &'a P,
    segment: &'a Segment,
    role: Role,
    settings: &'a Settings,
    lists: &'a L,
    memory: &'a M,
}

impl<P, L, M> Facts for AllFacts<'_, P, L, M>
where
    P: Packet + ?Sized,
    L: Lookup,
    M: Memory,
{
    type Unknown = Infallible;

    #[inline(always)]
    fn role(&self) -> Role {
        self.role
    }

    #[inline(always)]
    fn source(&self) -> Result<Class, Infallible> {
        Ok(self.lists.class(&self.segment.source))
    }

    #[inline(always)]
    fn destination(&self) -> Result<Class, Infallible> {
        let destination = packet::destination(self.frame, self.segment);
        Ok(destination.map_or(Class::NONE, |address| self.lists.class(&address)))
    }

    #[inline(always)]
    fn granted(&self) -> Result<bool, Infallible> {
        let until_ns = self.memory.granted_until_ns(&self.segment.source);
        Ok(until_ns != 0 && self.memory.now_ns() < until_ns)
    }

    #[inline(always)]
    fn recent_verdict(&self) -> Result<bool, Infallible> {
        let Some(recent) = self.memory.recent(&self.segment.source.key()) else {
            return Ok(false);
        };
        let now_ns = self.memory.now_ns();
        let grace = now_ns.wrapping_sub(recent.added_ns()) < VERDICT_GRACE_NS;
        let drops = now_ns < recent.expires_ns()
            && (!grace || packet::opens(self.frame, self.segment))
            && !self.memory.is_local(&self.segment.source);
        if drops {
            recent.count(now_ns);
        }
        Ok(drops)
    }

    #[inline(always)]
    fn drop_unlisted(&self) -> bool {
        self.settings.drop_unlisted()
    }

    #[inline(always)]
    fn over_budget(&self) -> Result<bool, Infallible> {
        let budget = self.settings.syn_budget;
        Ok(budget != 0
            && packet::opens(self.frame, self.segment)
            && self.memory.exhausts(&self.segment.source.key(), budget)
            && !self.memory.is_local(&self.segment.source))
    }
}
