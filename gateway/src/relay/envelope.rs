//! The envelope of a transaction: what was agreed with MAIL and RCPT.
//!
//! All texts of a transaction lie one behind the other in one allocation, its [`Arena`]: a
//! transaction of a thousand recipients makes no thousand strings. Texts that are of no more use
//! (a refused recipient, a reply that was passed on) leave a gap; when the gaps outweigh the rest,
//! the texts move together.

use portcullis_smtp::envelope::{Mail, Rcpt, Ret};
use smallvec::SmallVec;

use super::received;

/// Gaps below this many bytes are not worth moving anything.
const GAPS_MAX: usize = 4096;
/// Room for the texts of a transaction with one recipient, in bytes.
const TEXTS: usize = 192;

/// Where a text of the transaction lies in its [`Arena`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Its length in bytes.
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether the text is empty.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// The texts of one transaction.
#[derive(Debug, Default)]
pub struct Arena {
    texts: String,
    /// Bytes that no span names any more.
    gaps: usize,
}

impl Arena {
    /// With room for the texts of a common transaction.
    fn with_room() -> Self {
        Self {
            texts: String::with_capacity(TEXTS),
            gaps: 0,
        }
    }

    /// Keeps a text.
    pub fn push(&mut self, text: &str) -> Span {
        // Commands and replies are bounded, and so is their number: `u32` is never too small. Text
        // beyond it would be kept as empty rather than be mixed up.
        let start = self.texts.len();
        let Ok(end) = u32::try_from(start + text.len()) else {
            return Span::default();
        };
        self.texts.push_str(text);
        Span {
            start: start as u32,
            end,
        }
    }

    /// The text of a span that [`push`](Self::push) returned.
    pub fn get(&self, span: Span) -> &str {
        let range = span.start as usize..span.end as usize;
        self.texts.get(range).unwrap_or_default()
    }

    /// The text is of no more use.
    pub fn free(&mut self, span: Span) {
        if span.end as usize == self.texts.len() {
            self.texts.truncate(span.start as usize);
        } else {
            self.gaps += span.len();
        }
    }

    /// Whether the texts should [move](Self::compact) together.
    pub fn wants_compacting(&self) -> bool {
        self.gaps > GAPS_MAX && self.gaps > self.texts.len() / 2
    }

    /// Moves the texts together: `each` is called once with a function that every span still in use
    /// has to be given to.
    pub fn compact(&mut self, each: impl FnOnce(&mut dyn FnMut(&mut Span))) {
        let old = std::mem::take(self);
        each(&mut |span| *span = self.push(old.get(*span)));
    }
}

/// One recipient that is not refused so far.
#[derive(Debug)]
pub(super) struct Recipient {
    pub(super) path: Span,
    pub(super) notify: Option<Span>,
    pub(super) original: Option<Span>,
}

impl Recipient {
    /// All its texts.
    pub(super) fn spans(&mut self) -> impl Iterator<Item = &mut Span> {
        let optional = self.notify.iter_mut().chain(self.original.iter_mut());
        std::iter::once(&mut self.path).chain(optional)
    }
}

/// What was agreed with MAIL and RCPT.
#[derive(Debug)]
pub struct Envelope {
    pub(super) texts: Arena,
    pub(super) sender: Span,
    /// As the client declares it, and what our own line adds besides the recipient in it.
    size: Option<u64>,
    trace_length: u64,
    pub(super) eight_bit: bool,
    pub(super) utf8: bool,
    pub(super) ret: Option<Ret>,
    pub(super) envelope_id: Option<Span>,
    /// A parameter of RFC 3461 was given.
    dsn: bool,
    pub(super) recipients: SmallVec<[Recipient; 1]>,
}

impl Envelope {
    /// The envelope as MAIL begins it.
    pub fn new(mail: &Mail<'_>) -> Self {
        let mut texts = Arena::with_room();
        let sender = texts.push(mail.path.as_ref().map_or("", |path| path.without_route()));
        let envelope_id = mail.envelope_id.map(|id| texts.push(id));
        Self {
            texts,
            sender,
            size: mail.size,
            trace_length: 0,
            eight_bit: mail.body_8bit,
            utf8: mail.smtputf8,
            ret: mail.ret,
            envelope_id,
            dsn: mail.ret.is_some() || mail.envelope_id.is_some(),
            recipients: SmallVec::new(),
        }
    }

    /// Adds a recipient.
    pub(super) fn push(&mut self, rcpt: &Rcpt<'_>) {
        let path = self.texts.push(rcpt.path.without_route());
        let notify = rcpt.notify.map(|notify| self.texts.push(notify));
        let original = rcpt.original_recipient.map(|text| self.texts.push(text));
        self.dsn |= notify.is_some() || original.is_some();
        self.recipients.push(Recipient {
            path,
            notify,
            original,
        });
    }

    /// Takes the recipient at a place out; what it asks of a next hop is forgotten, its path stays
    /// until it is [freed](Arena::free).
    pub(super) fn remove(&mut self, place: usize) -> Span {
        let recipient = self.recipients.remove(place);
        for span in [recipient.original, recipient.notify].into_iter().flatten() {
            self.texts.free(span);
        }
        recipient.path
    }

    /// All texts, for [`Arena::compact`].
    pub(super) fn spans(&mut self) -> impl Iterator<Item = &mut Span> {
        let recipients = self.recipients.iter_mut().flat_map(Recipient::spans);
        let id = self.envelope_id.iter_mut();
        std::iter::once(&mut self.sender)
            .chain(id)
            .chain(recipients)
    }

    /// The reverse-path without its brackets; empty for `<>`.
    pub fn sender(&self) -> &str {
        self.texts.get(self.sender)
    }

    /// The forward-paths that are not refused so far, in their order.
    pub fn recipients(&self) -> impl ExactSizeIterator<Item = &str> {
        let texts = &self.texts;
        let recipients = self.recipients.iter();
        recipients.map(move |recipient| texts.get(recipient.path))
    }

    /// Whether SMTPUTF8 was asked for.
    pub fn is_utf8(&self) -> bool {
        self.utf8
    }

    /// Whether a size was declared, so that what is added to the message matters.
    pub fn declares_size(&self) -> bool {
        self.size.is_some()
    }

    /// How long our own line is without a recipient in it, in octets.
    pub fn set_trace_length(&mut self, octets: usize) {
        self.trace_length = octets as u64;
    }

    /// The size as it is passed on: the message grows by our own line. It may name the recipient,
    /// or not if there will be several.
    pub(super) fn size_with_trace(&self) -> Option<u64> {
        let size = self.size?;
        let first = self.recipients().next();
        let named = first.map_or(0, |path| received::recipient_length(path) as u64);
        Some(size.saturating_add(self.trace_length + named))
    }

    /// Whether something was asked for that only a next hop with DSN can do (RFC 3461).
    pub fn asks_for_dsn(&self) -> bool {
        self.dsn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_survive_when_they_move_together() {
        let mut arena = Arena::default();
        let mut kept = arena.push("kept");
        for _ in 0..1_000 {
            let reply = arena.push("250 2.1.5 Ok");
            let behind = arena.push("x");
            arena.free(reply);
            arena.free(behind);
        }
        let mut last = arena.push("last");
        assert!(arena.wants_compacting());
        arena.compact(|each| [&mut kept, &mut last].into_iter().for_each(each));
        assert_eq!((arena.get(kept), arena.get(last)), ("kept", "last"));
        assert!(!arena.wants_compacting() && arena.texts.len() == 8);
    }

    #[test]
    fn the_last_text_leaves_no_gap() {
        let mut arena = Arena::default();
        for _ in 0..1_000 {
            let reply = arena.push("250 2.1.5 Ok");
            arena.free(reply);
        }
        assert!(arena.texts.is_empty() && arena.gaps == 0);
    }
}
