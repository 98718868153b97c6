//! How long a client may take over its next command, and whether one that takes longer is busy with
//! reading what it was sent.

use std::task::Poll;
use std::time::Duration;

use super::deadline::Deadline;
use super::end::End;
use super::progress::{Look, next_look};
use super::session::Session;

/// Whether a client whose time for a command is over is being looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReaderLook {
    /// Its time is not over.
    None,
    /// The kernel was asked what it has taken.
    Asked,
    /// The kernel is asked then.
    At(Duration),
}

impl Session {
    /// The client has `command_timeout` for its next whole command, however it spreads its octets.
    pub(super) fn expect_command(&mut self) {
        self.progress_at = self.reactor.now.get();
        self.command_due = self.progress_at + self.limits().command_timeout;
        if self.look != ReaderLook::None {
            self.look = ReaderLook::None;
            self.reactor.forget_progress(self.conn);
        }
    }

    /// Ready when the client's time for its next command is over. It may be busy with reading our
    /// replies: the kernel is asked what it has taken of them.
    pub(super) fn poll_command_due<T>(&mut self) -> Poll<Result<T, End>> {
        let now = self.reactor.now.get();
        let timeout = self.limits().command_timeout;
        if let Some((look, unsent)) = self.reactor.polled().look {
            if look == Look::Moved {
                self.command_due = now + timeout;
            }
            if unsent && (look == Look::First || now < self.command_due) {
                self.look = ReaderLook::At(now + next_look(timeout));
            } else if now < self.command_due {
                self.look = ReaderLook::None;
            } else {
                return Poll::Ready(Err(End::Timeout));
            }
        }
        let at = match self.look {
            ReaderLook::None => self.command_due,
            ReaderLook::At(at) => at,
            ReaderLook::Asked => return Poll::Pending,
        };
        if Deadline::Command.is_past(&self.reactor, at) {
            self.look = ReaderLook::Asked;
            self.reactor.ask_progress(self.conn);
        }
        Poll::Pending
    }
}
