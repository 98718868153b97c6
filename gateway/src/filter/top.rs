//! The sources with the most dropped packets, from the events: counts that halve every minute, for
//! a bounded number of sources.
//!
//! The counts are not halved all the time. Instead an event has more weight the later it comes
//! (forward decay: Cormode and others, 2009), and a count is scaled when it is read. When there is
//! no room for another source, the half with the lowest counts is removed: in a flood of forged
//! sources, which come once each, the sources that come again stay. Rejected: the space-saving
//! algorithm, which gives a new source the count of the one it replaces, so that in such a flood
//! every source looks busy.

use portcullis_ebpf_common::Source;
use portcullis_ebpf_common::layout::{Event, TopSource};
use rustc_hash::FxHashMap;

/// Sources that are counted at a time.
const SOURCES_MAX: usize = 4_096;
/// Seconds after which a count has halved.
const HALF_LIFE: f64 = 60.0;
/// Doublings after which all weights are scaled down; a float has room for a thousand.
const DOUBLINGS_MAX: f64 = 500.0;

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    sources: FxHashMap<[u32; 5], Count>,
    /// The time at which an event has the weight 1.
    epoch_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    weight: f64,
    last: Event,
}

impl Ranking {
    /// Counts an event.
    pub(super) fn add(&mut self, event: &Event) {
        if self.sources.is_empty() {
            self.epoch_ns = event.time_ns;
        }
        if self.doublings(event.time_ns) > DOUBLINGS_MAX {
            self.rebase(event.time_ns);
        }
        let weight = self.doublings(event.time_ns).exp2();
        let key = counted_as(event.source);
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&key) {
            self.forget_half();
        }
        let count = self.sources.entry(key).or_insert(Count {
            weight: 0.0,
            last: *event,
        });
        count.weight += weight;
        count.last = *event;
    }

    /// The sources with the highest counts, at most `number`, highest first.
    pub(super) fn first(&self, number: usize, now_ns: u64) -> Vec<TopSource> {
        let mut counts: Vec<(&[u32; 5], &Count)> = self.sources.iter().collect();
        counts.sort_unstable_by(|(a_key, a), (b_key, b)| {
            b.weight.total_cmp(&a.weight).then_with(|| a_key.cmp(b_key))
        });
        let shrink = (-self.doublings(now_ns)).exp2();
        let top = counts
            .into_iter()
            .take(number)
            .map(|(key, count)| TopSource {
                written_ns: now_ns,
                last_ns: count.last.time_ns,
                events: (count.weight * shrink).round() as u64,
                source: *key,
                reason: count.last.reason,
                list_slot: count.last.list_slot,
                interface_slot: count.last.interface_slot,
            });
        // A source without events for minutes is left out.
        top.filter(|top| top.events > 0).collect()
    }

    fn doublings(&self, time_ns: u64) -> f64 {
        // Events of several CPUs come slightly out of order: it can be slightly negative.
        let since = time_ns
            .cast_signed()
            .wrapping_sub(self.epoch_ns.cast_signed());
        since as f64 / 1e9 / HALF_LIFE
    }

    fn rebase(&mut self, time_ns: u64) {
        let shrink = (-self.doublings(time_ns)).exp2();
        self.epoch_ns = time_ns;
        self.sources.retain(|_, count| {
            count.weight *= shrink;
            count.weight > 0.001
        });
    }

    fn forget_half(&mut self) {
        let mut weights: Vec<f64> = self.sources.values().map(|count| count.weight).collect();
        let (_, median, _) = weights.select_nth_unstable_by(SOURCES_MAX / 2, f64::total_cmp);
        let median = *median;
        let mut room = SOURCES_MAX / 2;
        self.sources.retain(|_, count| {
            // Of the counts equal to the median, as many as there is room for.
            let stays = count.weight > median || (count.weight == median && room > 0);
            if stays {
                room = room.saturating_sub(1);
            }
            stays
        });
    }
}

/// An IPv6 source counts for its /64.
fn counted_as(source: [u32; 5]) -> [u32; 5] {
    let [family, first, second, ..] = source;
    if Source(source).is_ipv4() {
        source
    } else {
        [family, first, second, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn event(source: Source, time_ns: u64) -> Event {
        Event {
            time_ns,
            source: source.0,
            port: 25,
            monitored: 0,
            reason: 0,
            list_slot: 3,
            interface_slot: 4,
            reserved: 0,
        }
    }

    fn ipv4(number: u32) -> Source {
        Source::ipv4(number.to_be_bytes())
    }

    #[test]
    fn a_count_halves_every_minute_however_long_it_goes_on() {
        let mut ranking = Ranking::default();
        for second in 0..100_000 {
            ranking.add(&event(ipv4(1), second * SECOND));
        }
        let now = 99_999 * SECOND;
        let counted = |after: u64| ranking.first(1, now + after * SECOND)[0].events;
        // One a second: 1 + 2^(-1/60) + 2^(-2/60) + ... = 87.
        assert_eq!((counted(0), counted(60), counted(120)), (87, 44, 22));
        assert!(ranking.first(1, now + 3_600 * SECOND).is_empty());
    }

    #[test]
    fn a_flood_of_forged_sources_does_not_displace_a_source_that_comes_again() {
        let mut ranking = Ranking::default();
        let mut time = 0;
        for number in 0..100_000_u32 {
            time += SECOND / 1_000;
            ranking.add(&event(ipv4(1_000 + number), time));
            if number % 100 == 0 {
                ranking.add(&event(ipv4(7), time));
            }
        }
        let top = ranking.first(2, time);
        assert_eq!(top[0].source, ipv4(7).0);
        assert!(top[0].events > 100 && top[1].events <= 2, "{top:?}");
        assert!(ranking.sources.len() <= SOURCES_MAX);
    }

    #[test]
    fn a_host_with_many_ipv6_addresses_counts_once() {
        let mut ranking = Ranking::default();
        for last in 0..9 {
            let mut octets = [0; 16];
            octets[0] = 0x20;
            octets[15] = last;
            ranking.add(&event(Source::ipv6(octets), SECOND));
        }
        let top = ranking.first(9, SECOND);
        assert_eq!(top.len(), 1);
        assert_eq!((top[0].events, top[0].list_slot), (9, 3));
    }

    #[test]
    fn events_out_of_order_do_no_harm() {
        let mut ranking = Ranking::default();
        ranking.add(&event(ipv4(1), 100 * SECOND));
        ranking.add(&event(ipv4(1), 99 * SECOND));
        assert_eq!(ranking.first(1, 100 * SECOND)[0].events, 2);
    }
}
