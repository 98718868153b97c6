//! A trusted front in the simulation: it passes a client on behind a PROXY header that comes in
//! pieces. Some stall within the header, break off, or send something else; then their client has
//! no session.

use std::net::SocketAddr;
use std::time::Duration;

use portcullis::fronts::proxy::{Endpoints, Header, write_v1, write_v2};

use super::client::Client;
use super::driver::{Fate, Peer};

/// What becomes of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    /// It is sent.
    Whole,
    /// No more than half of it comes.
    Stalls,
    /// The front goes away within it.
    Breaks,
    /// Something else comes.
    Garbage,
}

/// A front with its client.
pub(super) struct Front {
    client: Client,
    course: Course,
    /// What is still to be sent of the header.
    header: Vec<u8>,
    /// When the next piece goes out.
    due: Duration,
    /// The gate has said something.
    is_answered: bool,
    rng: fastrand::Rng,
}

impl Front {
    /// A front that passes on a client at this address.
    pub(super) fn new(client: Client, address: SocketAddr, mut rng: fastrand::Rng) -> Self {
        let server = SocketAddr::from(([192, 0, 2, 1], 25));
        // The addresses of the simulation are those of clients.
        let endpoints = Endpoints::new(address, server).map(Header::Client);
        let named = endpoints.unwrap_or(Header::Unknown);
        let mut header = Vec::new();
        if rng.bool() {
            write_v1(&named, &mut header);
        } else {
            write_v2(&named, &mut header);
        }
        let course = match rng.u8(..10) {
            0 => Course::Stalls,
            1 => Course::Breaks,
            2 => Course::Garbage,
            _ => Course::Whole,
        };
        match course {
            Course::Stalls | Course::Breaks => header.truncate(header.len() / 2),
            Course::Garbage => header[0] ^= 0xff,
            Course::Whole => {}
        }
        Self {
            client,
            course,
            header,
            due: Duration::ZERO,
            is_answered: false,
            rng,
        }
    }

    /// The client has no session: it has nothing to say, and expects nothing.
    fn give_up(&mut self, now: Duration) {
        self.client.reset(now);
    }
}

impl Peer for Front {
    fn octets(&mut self, now: Duration, octets: &[u8], send: &mut Vec<u8>) -> Fate {
        if !octets.is_empty() {
            self.is_answered = true;
            return self.client.octets(now, octets, send);
        }
        if self.header.is_empty() {
            return self.client.octets(now, octets, send);
        }
        if now >= self.due {
            let piece = self.rng.usize(1..=self.header.len());
            send.extend(self.header.drain(..piece));
            self.due = now + Duration::from_millis(self.rng.u64(..500));
        }
        match (self.header.is_empty(), self.course) {
            (false, _) => Fate::Wake(self.due.saturating_sub(now)),
            (true, Course::Breaks) => {
                self.give_up(now);
                if self.rng.bool() {
                    Fate::Reset
                } else {
                    Fate::Close
                }
            }
            (true, _) => Fate::Stay,
        }
    }

    fn ended(&mut self, now: Duration, send: &mut Vec<u8>) -> Fate {
        if self.is_answered {
            return self.client.ended(now, send);
        }
        // The header was none, or the network took too long over it.
        self.give_up(now);
        Fate::Close
    }

    fn reset(&mut self, now: Duration) {
        self.client.reset(now);
    }
}
