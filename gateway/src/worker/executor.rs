//! The tasks of a worker, and how they are polled.
//!
//! A task belongs to a connection, and its slot is its waker: whatever happens to a connection
//! polls its task, and nothing else does. A task is polled a few times in vain rather than kept
//! from going on: what it waits for it looks at itself. Between batches a task has one timer, the
//! earliest of the deadlines that it asked about when it was polled.

use std::task::{Context, Waker};

use super::reactor::{Reactor, Task};
use crate::driver::Conn;

/// Tasks by slot.
#[derive(Default)]
pub(super) struct Executor {
    tasks: Vec<Option<(u32, Task)>>,
}

impl Executor {
    /// Begins the task of a connection. It has to be polled once.
    pub(super) fn begin(&mut self, conn: Conn, task: Task) {
        let slot = conn.slot as usize;
        if slot >= self.tasks.len() {
            self.tasks.resize_with(slot + 1, || None);
        }
        self.tasks[slot] = Some((conn.generation, task));
    }

    /// Polls the task of a connection, if it has one.
    pub(super) fn poll(&mut self, reactor: &Reactor, conn: Conn) {
        let slot = conn.slot as usize;
        let Some(Some((generation, task))) = self.tasks.get_mut(slot) else {
            return;
        };
        if *generation != conn.generation {
            return;
        }
        reactor.begin_poll(conn);
        let polled = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let due = reactor.end_poll();
        if polled.is_ready() {
            self.tasks[slot] = None;
        }
        reactor.wheel.with(|wheel| match due {
            Some(due) if polled.is_pending() => wheel.set(conn.slot, due),
            _ => wheel.clear(conn.slot),
        });
        reactor.touch_polled(conn);
    }
}
