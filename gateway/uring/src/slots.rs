//! The table of connections, as far as the kernel's hold on memory is concerned.
//!
//! While a send is in flight the kernel reads its buffer, and while an accept is outstanding it
//! will write an address: the table owns both until the completion is there, whatever the caller
//! does meanwhile. One record of 32 bytes per slot, allocated once; addresses come from a small
//! pool, because few slots are being accepted into at any time.

#![expect(unsafe_code, reason = "memory that the kernel writes to")]

use crate::address::RawAddress;
use crate::token::Conn;
use std::net::SocketAddr;
use std::ptr::{NonNull, addr_of_mut};

/// What the kernel holds of a slot's memory.
#[derive(Default)]
pub(crate) enum Held {
    #[default]
    Nothing,
    /// A send's buffer, which the kernel reads.
    Buffer(Vec<u8>),
    /// A peer's address: read when an operation is submitted, or written when an accept completes.
    Address(AddressCell),
}

/// One slot of the table.
#[derive(Default)]
pub(crate) struct Slot {
    pub(crate) held: Held,
    /// The use that was last begun.
    pub(crate) generation: u32,
    /// A receive is armed.
    pub(crate) receiving: bool,
    /// Both directions were shut down: a receive that was cancelled for this is at its end, not
    /// paused.
    pub(crate) shut: bool,
    /// The kernel has a shutdown of this slot to do, on a thread of its own.
    pub(crate) shutting: bool,
    /// To be closed once that shutdown is done.
    pub(crate) closing: bool,
}

impl Slot {
    /// Begins a new use.
    pub(crate) fn begin(&mut self, generation: u32) {
        self.generation = generation;
        self.receiving = false;
        self.shut = false;
    }
}

/// All slots of a ring, and the pool of addresses.
pub(crate) struct Slots {
    table: Vec<Slot>,
    spare: Vec<AddressCell>,
}

impl Slots {
    pub(crate) fn new(slots: u32) -> Self {
        let mut table = Vec::new();
        table.resize_with(slots as usize, Slot::default);
        Self {
            table,
            spare: Vec::new(),
        }
    }

    /// The slot of a connection, whatever its present generation; nothing if the table has no such
    /// slot.
    pub(crate) fn slot(&mut self, conn: Conn) -> Option<&mut Slot> {
        self.table.get_mut(conn.slot as usize)
    }

    /// The slot, if this use of it is the present one.
    pub(crate) fn present(&mut self, conn: Conn) -> Option<&mut Slot> {
        self.slot(conn)
            .filter(|slot| slot.generation == conn.generation)
    }

    /// Takes an address from the pool.
    pub(crate) fn address(&mut self, address: RawAddress) -> AddressCell {
        let mut cell = self.spare.pop().unwrap_or_else(AddressCell::new);
        cell.set(address);
        cell
    }

    /// Releases what the kernel no longer uses: a buffer is returned, an address goes back to the
    /// pool.
    ///
    /// # Safety
    /// The operation that the slot's memory was held for has completed.
    pub(crate) unsafe fn release(&mut self, conn: Conn) -> Released {
        let Some(slot) = self.slot(conn) else {
            return Released::Nothing;
        };
        match std::mem::take(&mut slot.held) {
            Held::Nothing => Released::Nothing,
            Held::Buffer(buffer) => Released::Buffer(buffer),
            Held::Address(cell) => {
                // SAFETY: the caller says that the kernel is done with it.
                let address = unsafe { cell.read() };
                self.spare.push(cell);
                Released::Address(address.parse())
            }
        }
    }

    /// Gives up the memory for good, because the kernel could not be made to let go of it.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.table));
    }
}

/// What [`Slots::release`] found.
pub(crate) enum Released {
    Nothing,
    Buffer(Vec<u8>),
    Address(Option<SocketAddr>),
}

/// An address at a place that does not move, while the kernel knows the place.
///
/// A raw pointer rather than a `Box`: a `Box` claims to be the only writer of what it holds.
pub(crate) struct AddressCell(NonNull<RawAddress>);

// SAFETY: the cell and the kernel are the only owners of its address, and the kernel does not care
// about threads.
unsafe impl Send for AddressCell {}

impl AddressCell {
    fn new() -> Self {
        Self(NonNull::from(Box::leak(Box::new(RawAddress::ROOM))))
    }

    fn set(&mut self, address: RawAddress) {
        // SAFETY: the pointer is valid, and a cell that is being set is out of the pool, hence in
        // no operation.
        unsafe { self.0.write(address) };
    }

    /// Where the kernel finds the address.
    pub(crate) fn address(&self) -> *mut libc::sockaddr {
        // SAFETY: stays within the allocation; no reference is made.
        unsafe { addr_of_mut!((*self.0.as_ptr()).bytes) }.cast()
    }

    /// Where the kernel finds the length of the address.
    pub(crate) fn length(&self) -> *mut libc::socklen_t {
        // SAFETY: stays within the allocation; no reference is made.
        unsafe { addr_of_mut!((*self.0.as_ptr()).length) }
    }

    /// # Safety
    /// The kernel does not write to it any more.
    unsafe fn read(&self) -> RawAddress {
        // SAFETY: valid and initialised since it was made; the caller excludes the only other
        // writer.
        unsafe { self.0.read() }
    }
}

impl Drop for AddressCell {
    fn drop(&mut self) {
        // SAFETY: came from a Box and was never given away; a ring that cannot get it back leaks it
        // instead.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_stays_small_enough_for_a_hundred_thousand_of_them() {
        assert_eq!(size_of::<Slot>(), 32);
    }

    #[test]
    fn addresses_are_pooled() {
        let conn = Conn {
            slot: 0,
            generation: 1,
        };
        let peer: SocketAddr = "192.0.2.1:25".parse().unwrap();
        let mut slots = Slots::new(1);
        for _ in 0..3 {
            let cell = slots.address(RawAddress::new(peer));
            slots.slot(conn).unwrap().held = Held::Address(cell);
            // SAFETY: there was no operation.
            let released = unsafe { slots.release(conn) };
            assert!(matches!(released, Released::Address(Some(address)) if address == peer));
            assert_eq!(slots.spare.len(), 1);
        }
    }
}
