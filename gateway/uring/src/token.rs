//! What a completion says about itself: the 64 bits of user data.
//!
//! | bits | |
//! |---|---|
//! | 56..64 | the operation |
//! | 32..56 | the slot |
//! | 0..32 | the generation of the slot |
//!
//! Packed numbers rather than a pointer to a record per operation: a completion that comes late,
//! after its slot was taken again, is then a wrong number to be noticed and not a dangling pointer.

/// One use of one slot of the ring's table.
///
/// The kernel may deliver completions of an old use after the slot was taken again. They carry the
/// generation that their operation was submitted with, so that a caller can distinguish them
/// from those of the present use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conn {
    /// Index into the table, below [`SLOTS_MAX`].
    pub slot: u32,
    /// Counts the uses of the slot.
    pub generation: u32,
}

impl Conn {
    /// What a completion names that is about no connection.
    pub const NONE: Self = Self {
        slot: 0,
        generation: 0,
    };
}

/// The largest table whose slots fit into the user data; the kernel's own bound (2^20) is lower.
pub const SLOTS_MAX: u32 = 1 << 24;

/// What was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Operation {
    Accept = 1,
    Connect = 2,
    Receive = 3,
    Send = 4,
    Shutdown = 5,
    Close = 6,
    /// A cancellation: what it cancels completes by itself, its own outcome says nothing.
    Cancel = 7,
    /// A message from a [`Waker`](crate::Waker).
    Wake = 8,
    /// A question about what lies unsent and unacknowledged in a socket.
    Unacknowledged = 9,
}

impl Operation {
    fn from_bits(bits: u8) -> Option<Self> {
        [
            Self::Accept,
            Self::Connect,
            Self::Receive,
            Self::Send,
            Self::Shutdown,
            Self::Close,
            Self::Cancel,
            Self::Wake,
            Self::Unacknowledged,
        ]
        .into_iter()
        .find(|operation| *operation as u8 == bits)
    }
}

/// The user data of an operation on a connection. The slot must be below [`SLOTS_MAX`].
pub(crate) fn pack(operation: Operation, conn: Conn) -> u64 {
    debug_assert!(conn.slot < SLOTS_MAX);
    (operation as u64) << 56 | u64::from(conn.slot) << 32 | u64::from(conn.generation)
}

/// The operation and the connection of a completion; nothing if this crate did not pack it.
pub(crate) fn unpack(user_data: u64) -> Option<(Operation, Conn)> {
    let operation = Operation::from_bits((user_data >> 56) as u8)?;
    let conn = Conn {
        slot: (user_data >> 32) as u32 & (SLOTS_MAX - 1),
        generation: user_data as u32,
    };
    Some((operation, conn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_keeps_operation_slot_and_generation_apart() {
        for operation in [
            Operation::Accept,
            Operation::Send,
            Operation::Unacknowledged,
        ] {
            for slot in [0, 1, SLOTS_MAX - 1] {
                for generation in [0, 1, u32::MAX] {
                    let conn = Conn { slot, generation };
                    assert_eq!(unpack(pack(operation, conn)), Some((operation, conn)));
                }
            }
        }
    }

    #[test]
    fn user_data_that_was_not_packed_here_is_refused() {
        assert_eq!(unpack(0), None);
        assert_eq!(unpack(u64::MAX), None);
    }
}
