//! A bounded queue between two threads that never wait for each other: one puts items in, the other
//! takes all that are there.
//!
//! The consumer is woken by the first item after it has looked, and not by those behind it: one
//! wake a batch, however many items. The lock is held to push one item or to swap the vector, and
//! each queue has one producer or one consumer, so two workers never want the same lock. Rejected:
//! a lock-free ring. It needs unsafe code or a second crate, and saves 20 ns an item.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The queue. Each item has a weight (one, or its size in bytes), and the sum has a bound.
pub(super) struct BoundedQueue<T> {
    items: Mutex<Items<T>>,
    /// There may be some: a consumer looks often, and mostly there is nothing.
    filled: AtomicBool,
    weight_max: usize,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Items<T> {
    queued: Vec<T>,
    weight: usize,
}

impl<T> BoundedQueue<T> {
    /// An empty queue; `wake` ends the consumer's wait and must not block.
    pub(super) fn new(weight_max: usize, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let items = Items {
            queued: Vec::new(),
            weight: 0,
        };
        Self {
            items: Mutex::new(items),
            filled: AtomicBool::new(false),
            weight_max,
            wake: Box::new(wake),
        }
    }

    /// Puts an item in; `false` if there is no room for it.
    pub(super) fn put(&self, item: T, weight: usize) -> bool {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        if items.weight.saturating_add(weight) > self.weight_max {
            return false;
        }
        items.weight += weight;
        items.queued.push(item);
        let was_filled = self.filled.swap(true, Ordering::AcqRel);
        drop(items);
        if !was_filled {
            (self.wake)();
        }
        true
    }

    /// Takes all items, the first put in first.
    pub(super) fn take(&self) -> Vec<T> {
        if !self.filled.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        self.filled.store(false, Ordering::Release);
        items.weight = 0;
        std::mem::take(&mut items.queued)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn the_consumer_is_woken_once_for_all_items_of_a_batch() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&wakes);
        let queue = BoundedQueue::new(8, move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        for batch in 1..=3 {
            assert!((0..5).all(|item| queue.put(item, 1)));
            assert_eq!(wakes.load(Ordering::Relaxed), batch);
            assert_eq!(queue.take(), [0, 1, 2, 3, 4]);
        }
        assert!(queue.take().is_empty());
    }

    #[test]
    fn an_item_for_which_there_is_no_room_is_turned_away_and_later_ones_fit_again() {
        let queue = BoundedQueue::new(10, || ());
        assert!(queue.put("a", 6) && !queue.put("b", 5) && queue.put("c", 4));
        assert_eq!(queue.take(), ["a", "c"]);
        assert!(queue.put("d", 10));
        assert!(!queue.put("e", usize::MAX));
    }
}
