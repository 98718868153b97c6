//! The content of a message as it arrives, by DATA or by BDAT, and the chunks that are refused.

use super::{Event, Failure, Owed, Phase, Session, Settings};
use crate::data::{Decoded, Fault};
use crate::reply::{EnhancedCode, Reply};

static CHUNK_OK: Reply<'static> = Reply::fixed(250, EnhancedCode(2, 0, 0), "Ok");

impl Session {
    /// One step within the content of DATA.
    pub(super) fn data<'a>(
        &mut self,
        settings: &Settings,
        input: &'a [u8],
        out: &mut Vec<u8>,
    ) -> (usize, Option<Event<'a>>) {
        let (used, decoded) = self.decoder.decode(&settings.bounds(), input);
        let event = match decoded {
            Decoded::NeedInput => Some(Event::NeedInput),
            Decoded::Content(content) => Some(Event::Body(content)),
            Decoded::Fault(fault) => Some(self.give_up(fault)),
            Decoded::End => self.message_end(settings, out),
        };
        (used, event)
    }

    /// One step within a chunk.
    pub(super) fn chunk<'a>(
        &mut self,
        settings: &Settings,
        input: &'a [u8],
        out: &mut Vec<u8>,
    ) -> (usize, Option<Event<'a>>) {
        if self.chunk_left == 0 {
            return (0, self.chunk_end(settings, out));
        }
        let (used, decoded) = self
            .decoder
            .decode(&settings.bounds(), self.within_chunk(input));
        self.chunk_left -= used as u64;
        let event = match decoded {
            Decoded::NeedInput | Decoded::End if self.chunk_left == 0 => None,
            Decoded::NeedInput | Decoded::End => Some(Event::NeedInput),
            Decoded::Content(content) => Some(Event::Body(content)),
            Decoded::Fault(fault) => Some(self.give_up(fault)),
        };
        (used, event)
    }

    /// One step within a refused chunk.
    pub(super) fn discard_chunk<'a>(&mut self, input: &'a [u8]) -> (usize, Option<Event<'a>>) {
        let used = self.within_chunk(input).len();
        self.chunk_left -= used as u64;
        (used, (self.chunk_left > 0).then_some(Event::NeedInput))
    }

    /// The front of the input that belongs to the chunk.
    fn within_chunk<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        let length =
            usize::try_from(self.chunk_left).map_or(input.len(), |left| left.min(input.len()));
        &input[..length]
    }

    fn chunk_end(&mut self, settings: &Settings, out: &mut Vec<u8>) -> Option<Event<'static>> {
        if self.chunk_last {
            // A fault at the very end (a bare CR) is still an event of its own.
            return match self.decoder.finish() {
                Some(fault) => Some(self.give_up(fault)),
                None => self.message_end(settings, out),
            };
        }
        if self.failure.is_some() {
            self.answer_fault(settings, out);
        } else {
            CHUNK_OK.write(out);
            self.phase = Phase::BetweenChunks;
        }
        None
    }

    fn give_up(&mut self, fault: Fault) -> Event<'static> {
        self.failure = Some(Failure::Fault(fault));
        Event::MessageFault(fault)
    }

    fn message_end(&mut self, settings: &Settings, out: &mut Vec<u8>) -> Option<Event<'static>> {
        self.must_wait |= !self.extended;
        if self.failure.is_some() {
            self.answer_fault(settings, out);
            self.failure = None;
            return None;
        }
        self.owed = Owed::MessageEnd;
        Some(Event::MessageEnd {
            size: self.decoder.size(),
        })
    }

    /// Answers a message with a fault. The fault is kept for the chunks that the client has
    /// pipelined already.
    fn answer_fault(&mut self, settings: &Settings, out: &mut Vec<u8>) {
        let Some(Failure::Fault(fault)) = self.failure else {
            return;
        };
        self.end_transaction();
        self.failure = Some(Failure::Fault(fault));
        self.fail(settings, fault.reply(), out);
    }
}
