//! The timer wheel of a worker: one deadline per slot, in ticks of a second.
//!
//! A session's deadline moves with each command, but almost none ever passes. So moving one forward
//! only writes a field: the slot stays in the list of its old tick, and is put where it belongs
//! when that tick comes round. The lists are threaded through one array indexed by slot. Rejected:
//! a timeout linked to each operation (some 350 octets of kernel memory each, and it does not fit a
//! multishot receive), and a heap (log n for each command).

use std::time::Duration;

/// Buckets of the wheel; deadlines further away wait in the last one and are put further on from
/// there.
const TICKS: usize = 1024;
/// End of a list.
const NIL: u32 = u32::MAX;
/// No deadline.
const NEVER: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Timer {
    /// The tick at which it is due.
    due: u32,
    /// The tick whose list it is in, or `NEVER` when it is in none.
    listed: u32,
    previous: u32,
    next: u32,
}

impl Timer {
    const NONE: Self = Self {
        due: NEVER,
        listed: NEVER,
        previous: NIL,
        next: NIL,
    };
}

/// Deadlines of connections by slot.
pub(super) struct Wheel {
    heads: Box<[u32]>,
    timers: Vec<Timer>,
    /// All ticks before this one have been dealt with.
    now: u32,
    listed: usize,
}

impl Default for Wheel {
    fn default() -> Self {
        Self {
            heads: vec![NIL; TICKS].into_boxed_slice(),
            timers: Vec::new(),
            now: 0,
            listed: 0,
        }
    }
}

impl Wheel {
    /// Sets the slot's only deadline: it is due at the first tick at or after `at`, so never early
    /// and at most a second late.
    pub(super) fn set(&mut self, slot: u32, at: Duration) {
        let tick = at.as_secs() + u64::from(at.subsec_nanos() > 0);
        let due = u32::try_from(tick).unwrap_or(NEVER - 1).max(self.now);
        let index = slot as usize;
        if index >= self.timers.len() {
            self.timers.resize(index + 1, Timer::NONE);
        }
        self.timers[index].due = due;
        let listed = self.timers[index].listed;
        if listed == NEVER {
            self.link(slot, due);
        } else if listed > due {
            self.unlink(slot);
            self.link(slot, due);
        }
    }

    /// Takes the slot's deadline away, if it has one.
    pub(super) fn clear(&mut self, slot: u32) {
        if let Some(timer) = self.timers.get_mut(slot as usize) {
            timer.due = NEVER;
        }
    }

    /// Adds the slots whose deadline has come by `now` to `due`; they have none afterwards.
    pub(super) fn expire(&mut self, now: Duration, due: &mut Vec<u32>) {
        let until = u32::try_from(now.as_secs()).unwrap_or(NEVER - 1);
        if self.listed == 0 {
            self.now = self.now.max(until.saturating_add(1));
            return;
        }
        while self.now <= until {
            let mut slot = self.heads[self.now as usize % TICKS];
            while slot != NIL {
                let timer = self.timers[slot as usize];
                self.unlink(slot);
                if timer.due <= self.now {
                    self.timers[slot as usize].due = NEVER;
                    due.push(slot);
                } else if timer.due != NEVER {
                    // Its bucket is never this one again before it is due: `link` looks ahead by
                    // less than a turn.
                    self.link(slot, timer.due.max(self.now + 1));
                }
                slot = timer.next;
            }
            self.now += 1;
        }
    }

    /// How long a worker may sleep at `now` without being late for a deadline by more than a tick.
    pub(super) fn sleep(&self, now: Duration) -> Duration {
        if self.listed == 0 {
            return Duration::from_secs(60);
        }
        Duration::from_secs(u64::from(self.now))
            .saturating_sub(now)
            .max(Duration::from_millis(1))
    }

    fn link(&mut self, slot: u32, due: u32) {
        let tick = due.min(self.now + TICKS as u32 - 1);
        let head = &mut self.heads[tick as usize % TICKS];
        let timer = &mut self.timers[slot as usize];
        timer.listed = tick;
        timer.previous = NIL;
        timer.next = *head;
        let next = *head;
        *head = slot;
        if next != NIL {
            self.timers[next as usize].previous = slot;
        }
        self.listed += 1;
    }

    fn unlink(&mut self, slot: u32) {
        let Timer {
            listed,
            previous,
            next,
            ..
        } = self.timers[slot as usize];
        if previous == NIL {
            self.heads[listed as usize % TICKS] = next;
        } else {
            self.timers[previous as usize].next = next;
        }
        if next != NIL {
            self.timers[next as usize].previous = previous;
        }
        self.timers[slot as usize].listed = NEVER;
        self.listed -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_deadline_moved_forward_does_not_fire_at_its_old_time() {
        let (mut wheel, mut due) = (Wheel::default(), Vec::new());
        wheel.set(3, seconds(5));
        wheel.set(3, seconds(9));
        wheel.expire(seconds(8), &mut due);
        assert!(due.is_empty());
        wheel.expire(seconds(9), &mut due);
        assert_eq!(due, [3]);
    }

    #[test]
    fn a_deadline_moved_back_fires_at_its_new_time() {
        let (mut wheel, mut due) = (Wheel::default(), Vec::new());
        wheel.set(0, seconds(500));
        wheel.set(0, seconds(2));
        wheel.expire(seconds(2), &mut due);
        assert_eq!(due, [0]);
    }

    #[test]
    fn a_deadline_further_away_than_the_wheel_is_long_is_kept() {
        let (mut wheel, mut due) = (Wheel::default(), Vec::new());
        wheel.set(0, seconds(5000));
        wheel.expire(seconds(4999), &mut due);
        assert!(due.is_empty());
        wheel.expire(seconds(5000), &mut due);
        assert_eq!(due, [0]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Clear(u32),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20u32, 0..3000u64).prop_map(|(slot, after)| Step::Set(slot, after)),
            (0..20u32).prop_map(Step::Clear),
            (0..700u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn the_wheel_fires_what_a_plain_map_of_deadlines_would(
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let (mut wheel, mut plain, mut now) = (Wheel::default(), HashMap::new(), 0u64);
            for step in steps {
                match step {
                    Step::Set(slot, after) => {
                        // A deadline in a tick already dealt with is due in the next one.
                        wheel.set(slot, seconds(now + after));
                        plain.insert(slot, now + after);
                    }
                    Step::Clear(slot) => {
                        wheel.clear(slot);
                        plain.remove(&slot);
                    }
                    Step::Pass(time) => {
                        now += time + 1;
                        let mut due = Vec::new();
                        wheel.expire(seconds(now), &mut due);
                        due.sort_unstable();
                        let mut expected: Vec<u32> =
                            plain
                                .iter()
                                .filter(|(_, at)| **at <= now)
                                .map(|(slot, _)| *slot)
                                .collect();
                        expected.sort_unstable();
                        plain.retain(|_, at| *at > now);
                        prop_assert_eq!(due, expected);
                    }
                }
            }
        }
    }
}
