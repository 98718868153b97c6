//! Whether a peer still takes what it is sent.
//!
//! That our kernel has taken octets says little: it holds a quarter of a megabyte that was never
//! sent, and as much as the peer's window on top. What counts is what the peer's TCP has
//! acknowledged. The kernel tells how much it has not, if it is asked, and a worker asks when a
//! deadline has passed: nothing is asked for peers that are quick, and a slow one is looked at a
//! few times within the time that it may take nothing at all.

use std::time::Duration;

use super::Gate;
use super::connection::Role;
use crate::driver::Conn;

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
    fn new(since: Duration) -> Box<Self> {
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

impl Gate {
    /// A deadline has passed: asks what the peer has taken. The answer decides, unless the deadline
    /// is moved on before it is there.
    pub(super) fn ask_progress(&mut self, conn: Conn) {
        let since = self.now;
        let connection = &mut self.table[conn];
        connection
            .progress
            .get_or_insert_with(|| Progress::new(since));
        connection.asks_progress = true;
        self.touch(conn);
    }

    /// A peer has taken some of what it was sent and not all. If those are our last words, its time
    /// for all of them runs from now.
    pub(super) fn sent_in_part(&mut self, conn: Conn) {
        let since = self.now;
        let connection = &mut self.table[conn];
        if matches!(connection.role, Role::None) && connection.is_sending_last() {
            connection
                .progress
                .get_or_insert_with(|| Progress::new(since));
        }
    }

    /// When a connection that stays in its phase for `longest` at most is to be looked at.
    pub(super) fn closing_due(&self, conn: Conn, longest: Duration) -> Duration {
        // When the gate stops its time is over as well.
        let due = (self.now + longest).min(self.drain_until.saturating_add(longest));
        let connection = &self.table[conn];
        match &connection.progress {
            Some(progress) if connection.is_sending_last() => {
                due.min(progress.since + LAST_WORDS_MAX)
            }
            _ => due,
        }
    }

    /// The kernel says how much the peer has not taken.
    pub(super) fn unacknowledged(&mut self, conn: Conn, result: &std::io::Result<u32>) {
        let Some(connection) = self.table.current(conn) else {
            return;
        };
        let has_output = connection.has_output();
        let Some(progress) = connection.progress.as_deref_mut() else {
            return;
        };
        // A kernel that cannot tell leaves the deadline as it is.
        let (look, waits) = match result {
            &Ok(octets) => (progress.look(octets), has_output || octets > 0),
            Err(_) => (Look::Still, has_output),
        };
        let since = progress.since;
        match connection.role {
            Role::Client(_) => self.client_progress(conn, look, waits),
            Role::NextHop(_) => self.next_hop_progress(conn, look, waits),
            Role::None if connection.is_sending_last() => {
                let enough = self.now >= (since + LAST_WORDS_MAX).min(self.drain_until);
                if look == Look::Still || enough {
                    connection.abort();
                }
            }
            Role::None | Role::Accepting(_) => {}
        }
        self.touch(conn);
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
