//! What each user has sent in the last hour, over all workers: a stolen password is no use for
//! sending much.
//!
//! The last hour is the present hour of the clock and what is left of the one before, taken as if
//! that had been spread evenly. Rejected: a list of times for each user (its size is what is to be
//! limited), and hours that begin from nothing (twice the limit at each turn of the hour).

use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::{FxBuildHasher, FxHashMap};

use super::session::Session;
use crate::policy::pipeline::{Count, Counts};

const SHARDS: usize = 64;
/// Users that are remembered. Only those who have authenticated are, so that no stranger can fill
/// this. Where there are more within two hours, the rest of them is not limited.
const USERS_MAX: usize = 1 << 18;
const HOUR: u64 = 3_600;

/// What a user has sent in an hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Transactions that were begun.
    pub messages: u32,
    /// Recipients that the policy has accepted.
    pub recipients: u32,
}

impl Sent {
    /// One transaction.
    pub const MESSAGE: Self = Self {
        messages: 1,
        recipients: 0,
    };
    /// One recipient.
    pub const RECIPIENT: Self = Self {
        messages: 0,
        recipients: 1,
    };

    fn map(self, other: Self, of: impl Fn(u32, u32) -> u32) -> Self {
        Self {
            messages: of(self.messages, other.messages),
            recipients: of(self.recipients, other.recipients),
        }
    }
}

/// What is remembered of a user.
#[derive(Clone, Copy, Debug, Default)]
struct History {
    /// Hours since 1970.
    hour: u64,
    present: Sent,
    /// In the hour before.
    previous: Sent,
}

impl History {
    fn turn_to(&mut self, hour: u64) {
        if self.hour != hour {
            let is_next = self.hour + 1 == hour;
            self.previous = if is_next {
                self.present
            } else {
                Sent::default()
            };
            self.present = Sent::default();
            self.hour = hour;
        }
    }
}

#[derive(Default)]
struct Shard {
    users: FxHashMap<Arc<str>, History>,
    /// The hour in which those of earlier hours were last taken out.
    swept: u64,
}

/// What all users have sent.
pub struct UserCounts {
    shards: [Mutex<Shard>; SHARDS],
    shard_users_max: usize,
}

impl Default for UserCounts {
    fn default() -> Self {
        Self::with_room(USERS_MAX)
    }
}

impl UserCounts {
    fn with_room(users_max: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            shard_users_max: users_max / SHARDS,
        }
    }

    /// What the user has sent in the hour before this moment, in seconds since 1970.
    pub fn sent(&self, user: &str, unix_time: u64) -> Sent {
        let Some(mut history) = self.shard(user).users.get(user).copied() else {
            return Sent::default();
        };
        history.turn_to(unix_time / HOUR);
        let left = HOUR - unix_time % HOUR;
        history.present.map(history.previous, |present, previous| {
            let counted = (u64::from(previous) * left).div_ceil(HOUR);
            present.saturating_add(u32::try_from(counted).unwrap_or(u32::MAX))
        })
    }

    /// Counts what the user sends.
    pub fn add(&self, user: &Arc<str>, sent: Sent, unix_time: u64) {
        let hour = unix_time / HOUR;
        let mut shard = self.shard(user);
        if !shard.users.contains_key(user) && shard.users.len() >= self.shard_users_max {
            if shard.swept != hour {
                shard.swept = hour;
                shard.users.retain(|_, history| history.hour + 1 >= hour);
            }
            if shard.users.len() >= self.shard_users_max {
                return;
            }
        }
        let history = shard.users.entry(Arc::clone(user)).or_default();
        history.turn_to(hour);
        history.present = history.present.map(sent, u32::saturating_add);
    }

    fn shard(&self, user: &str) -> MutexGuard<'_, Shard> {
        let shard = FxBuildHasher.hash_one(user) as usize >> 7 & (SHARDS - 1);
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// What the user has sent within the last hour, with what is to be decided now.
    pub(super) fn user_counts(&self) -> Counts {
        let Some(identity) = &self.identity else {
            return Counts::default();
        };
        let (users, limits) = (&self.reactor.shared.users, self.limits());
        let sent = users.sent(&identity.user, self.reactor.unix_time());
        let with_this_one = |now: u32, max| Count {
            now: now.saturating_add(1),
            max,
        };
        Counts {
            user_messages: with_this_one(sent.messages, limits.messages_per_user),
            user_recipients: with_this_one(sent.recipients, limits.recipients_per_user),
            ..Counts::default()
        }
    }

    /// Counts what the user was allowed to send.
    pub(super) fn count_sent(&self, sent: Sent) {
        if let Some(identity) = &self.identity {
            let unix_time = self.reactor.unix_time();
            self.reactor
                .shared
                .users
                .add(&identity.user, sent, unix_time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_forgotten_within_the_next_hour_and_not_at_its_turn() {
        let counts = UserCounts::default();
        let alice: Arc<str> = "alice".into();
        let start = 1_000 * HOUR;
        for _ in 0..10 {
            counts.add(&alice, Sent::MESSAGE, start + HOUR - 1);
        }
        counts.add(&alice, Sent::RECIPIENT, start + HOUR - 1);
        let messages = |second| counts.sent("alice", start + second).messages;
        assert_eq!(messages(HOUR - 1), 10);
        assert_eq!(messages(HOUR), 10);
        assert_eq!(messages(HOUR + HOUR / 2), 5);
        assert_eq!(messages(2 * HOUR), 0);
        assert_eq!(counts.sent("alice", start + 2 * HOUR), Sent::default());
        assert_eq!(counts.sent("bob", start), Sent::default());
    }

    #[test]
    fn an_hour_in_which_nothing_was_sent_leaves_nothing_of_the_one_before() {
        let counts = UserCounts::default();
        let alice: Arc<str> = "alice".into();
        counts.add(&alice, Sent::MESSAGE, 0);
        counts.add(&alice, Sent::RECIPIENT, 2 * HOUR);
        assert_eq!(counts.sent("alice", 2 * HOUR), Sent::RECIPIENT);
    }

    #[test]
    fn the_users_of_the_last_hours_stay_when_there_are_too_many() {
        let room = 4 * SHARDS;
        let counts = UserCounts::with_room(room);
        let send = |prefix: &str, hour: u64| {
            for number in 0..20 * room {
                let user = format!("{prefix}{number}").into();
                counts.add(&user, Sent::MESSAGE, hour * HOUR);
            }
        };
        let remembered = |prefix: &str, hour: u64| {
            let mut users = (0..20 * room).map(|number| format!("{prefix}{number}"));
            users
                .by_ref()
                .filter(|user| counts.sent(user, hour * HOUR).messages > 0)
                .count()
        };
        send("a", 4);
        assert_eq!(remembered("a", 4), room);
        send("b", 5);
        assert_eq!((remembered("a", 5), remembered("b", 5)), (room, 0));
        send("c", 6);
        assert_eq!((remembered("a", 6), remembered("c", 6)), (0, room));
    }
}
