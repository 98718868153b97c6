//! What is counted and what is not, by the names of functions.
//!
//! Callgrind's `--toggle-collect` turns counting on or off whenever a function that matches is
//! entered or left. [`counted_turn`] turns it on for a batch of the worker; within that, each
//! function `driver_call_*` turns it off for what the simulated driver does, the peers included.
//! What is left is the worker's own work, and its allocations. Rejected: counting everything and
//! subtracting a run without a worker (the simulation costs more than the worker does).
//!
//! What the kernel would have to do is not in the instructions, so operations and batches are
//! counted beside them: one more send per message costs more than all of the worker's own work.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use portcullis::driver::{Buffer, Completion, Conn, Driver, Listener};
use portcullis::worker::Worker;

use crate::world::Operations;

/// Patterns for `--toggle-collect`, one for each of the functions below.
pub(crate) const TOGGLES: [&str; 2] = ["*counted_turn*", "*driver_call_*"];

/// One batch of the worker, with counting on.
#[inline(never)]
pub(crate) fn counted_turn(worker: &mut Worker) -> io::Result<bool> {
    worker.turn()
}

/// A driver whose work is not counted; how often it is asked for work is.
pub(crate) struct Uncounted<D> {
    driver: D,
    operations: Operations,
}

impl<D> Uncounted<D> {
    pub(crate) fn new(driver: D, operations: Operations) -> Self {
        Self { driver, operations }
    }
}

/// Implements [`Driver`] with a function for each method that is never inlined, so that Callgrind
/// sees it. Those listed are operations of the kernel.
macro_rules! uncounted {
    ($($call:ident: fn $name:ident($($arg:ident: $type:ty),*);)*) => {
        $(
            #[inline(never)]
            fn $call<D: Driver>(this: &mut Uncounted<D> $(, $arg: $type)*) {
                this.operations.set(this.operations.get() + 1);
                this.driver.$name($($arg),*);
            }
        )*

        impl<D: Driver> Driver for Uncounted<D> {
            $(
                fn $name(&mut self $(, $arg: $type)*) {
                    $call(self $(, $arg)*);
                }
            )*

            fn now(&self) -> Duration {
                driver_call_now(&self.driver)
            }

            fn unix_time(&self) -> u64 {
                driver_call_unix_time(&self.driver)
            }

            fn bytes(&self, buffer: &Buffer) -> &[u8] {
                driver_call_bytes(&self.driver, buffer)
            }

            fn recycle(&mut self, buffer: Buffer) {
                driver_call_recycle(&mut self.driver, buffer);
            }

            fn wait(
                &mut self,
                timeout: Duration,
                completions: &mut Vec<Completion>,
            ) -> io::Result<()> {
                driver_call_wait(&mut self.driver, timeout, completions)
            }
        }
    };
}

uncounted! {
    driver_call_accept: fn accept(listener: Listener, conn: Conn);
    driver_call_stop_accepting: fn stop_accepting();
    driver_call_connect: fn connect(conn: Conn, to: SocketAddr);
    driver_call_receive: fn receive(conn: Conn);
    driver_call_pause: fn pause(conn: Conn);
    driver_call_send: fn send(conn: Conn, buffer: Vec<u8>);
    driver_call_unacknowledged: fn unacknowledged(conn: Conn);
    driver_call_wipe: fn wipe(buffer: &Buffer);
    driver_call_shutdown: fn shutdown(conn: Conn, both: bool);
    driver_call_close: fn close(conn: Conn);
}

#[inline(never)]
fn driver_call_now<D: Driver>(driver: &D) -> Duration {
    driver.now()
}

#[inline(never)]
fn driver_call_unix_time<D: Driver>(driver: &D) -> u64 {
    driver.unix_time()
}

#[inline(never)]
fn driver_call_bytes<'a, D: Driver>(driver: &'a D, buffer: &Buffer) -> &'a [u8] {
    driver.bytes(buffer)
}

#[inline(never)]
fn driver_call_recycle<D: Driver>(driver: &mut D, buffer: Buffer) {
    driver.recycle(buffer);
}

#[inline(never)]
fn driver_call_wait<D: Driver>(
    driver: &mut D,
    timeout: Duration,
    completions: &mut Vec<Completion>,
) -> io::Result<()> {
    driver.wait(timeout, completions)
}
