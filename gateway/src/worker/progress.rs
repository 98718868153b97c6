//! Whether a peer still takes what it is sent.
//!
//! That our kernel has taken octets says little: it holds a quarter of a megabyte that was never
//! sent, and as much as the peer's window on top. What counts is what the peer's TCP has
//! acknowledged. The kernel tells how much it has not, if it is asked, and a worker asks when a
//! deadline has passed: nothing is asked for peers that are quick, and a slow one is looked at a
//! few times within the time that it may take nothing at all.

use std::time::Duration;

use super::connection::{Connection, Role};

/// How often a peer is looked at within the time that it may take nothing.
const LOOKS: u32 = 4;

/// How long a peer that does take them may be about our last words. It counts as a session no more,
/// neither of the worker nor of its source, so that this bounds what a source can hold beyond its
/// sessions.
const LAST_WORDS_MAX: Duration = Duration::from_secs(30);

/// What is known of a connection whose deadline has passed.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Octets that the kernel has taken since the first look.
    handed: u64,
    /// Of those and of what it held then, how many the peer had taken at the last look: negative,
    /// until it has taken more than it held.
    taken: Option<i64>,
    /// When it was first asked about.
    since: Duration,
    /// The latest answer, until the task takes it; and whether the peer has not taken everything.
    pub(super) answer: Option<(Look, bool)>,
}

impl Progress {
    /// Takes an answer of the kernel; whether the peer has taken anything since the last look, if
    /// there was one.
    fn look(&mut self, unacknowledged: u32) -> Look {
        let taken = self.handed as i64 - i64::from(unacknowledged);
        match self.taken.replace(taken) {
            None => Look::First,
            Some(before) if taken > before => Look::Moved,
            Some(_) => Look::Still,
        }
    }

    /// From now on, with nothing known yet.
    pub(super) fn new(since: Duration) -> Box<Self> {
        Box::new(Self {
            since,
            ..Self::default()
        })
    }

    /// The kernel has taken octets.
    pub(super) fn handed(&mut self, octets: usize) {
        self.handed += octets as u64;
    }
}

/// What a look at a peer has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// There is nothing to compare with.
    First,
    /// It has taken something since the last look.
    Moved,
    /// It has not.
    Still,
}

/// When a peer that may take nothing for `timeout` is looked at next.
pub(super) fn next_look(timeout: Duration) -> Duration {
    timeout / LOOKS
}

impl Connection {
    /// The peer has taken some of what it was sent and not all. If those are our last words, its
    /// time for all of them runs from now.
    pub(super) fn sent_in_part(&mut self, now: Duration) {
        if matches!(self.role, Role::None) && self.is_sending_last() {
            self.progress.get_or_insert_with(|| Progress::new(now));
        }
    }

    /// When a connection that stays in its phase for `longest` at most is to be looked at. At
    /// `over` the gate stops, and its time is over as well.
    pub(super) fn closing_due(&self, now: Duration, longest: Duration, over: Duration) -> Duration {
        let due = (now + longest).min(over.saturating_add(longest));
        match &self.progress {
            Some(progress) if self.is_sending_last() => due.min(progress.since + LAST_WORDS_MAX),
            _ => due,
        }
    }

    /// The kernel says how much the peer has not taken. Returns whether that is for the
    /// connection's task to look at.
    pub(super) fn unacknowledged(
        &mut self,
        result: &std::io::Result<u32>,
        now: Duration,
        over: Duration,
    ) -> bool {
        let has_output = self.has_output();
        let Some(progress) = self.progress.as_deref_mut() else {
            return false;
        };
        // A kernel that cannot tell leaves the deadline as it is.
        let (look, waits) = match result {
            &Ok(octets) => (progress.look(octets), has_output || octets > 0),
            Err(_) => (Look::Still, has_output),
        };
        progress.answer = Some((look, waits));
        let since = progress.since;
        match self.role {
            Role::Client(_) | Role::NextHop(_) => return true,
            Role::None if self.is_sending_last() => {
                let enough = now >= (since + LAST_WORDS_MAX).min(over);
                if look == Look::Still || enough {
                    self.abort();
                }
            }
            Role::None | Role::Accepting(_) => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_peer_takes_is_progress() {
        let mut progress = Progress::default();
        assert_eq!(progress.look(300_000), Look::First);
        assert_eq!(progress.look(300_000), Look::Still);
        // The kernel takes more, the peer nothing.
        progress.handed(50_000);
        assert_eq!(progress.look(350_000), Look::Still);
        // As much is handed over as the peer takes.
        progress.handed(1_000);
        assert_eq!(progress.look(350_000), Look::Moved);
        assert_eq!(progress.look(349_999), Look::Moved);
        assert_eq!(progress.look(0), Look::Moved);
        assert_eq!(progress.look(0), Look::Still);
    }
}
