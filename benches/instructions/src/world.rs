//! The world of a run: one worker on a simulated driver without faults, clients that follow a
//! script, and a next hop that takes everything.
//!
//! The plan is fixed by a seed: two runs of one build count the same. It is the only file (beside
//! `counted`) that knows how a worker is made, so that the same bench can be put into an older tree
//! and the two be compared.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use portcullis::config;
use portcullis::driver::Listener;
use portcullis::worker::counters::Counters;
use portcullis::worker::port::port;
use portcullis::worker::records::RecordQueue;
use portcullis::worker::{Shared, Size, Worker};
use portcullis_tests::simulation::driver::{Dial, Fate, Faults, Network, Peer, simulation};
use serde::{Deserialize, Serialize};

use crate::counted::{Uncounted, counted_turn};
use crate::scenario::{Origin, Scenario, Script};

const CONFIGURATION: &str = r#"
hostname = "gate.example"
[[listener]]
address = "192.0.2.1:25"
service = "relay"
[relay]
networks = ["10.9.0.0/16"]
domains = ["through.example", "discard.example"]
[[route]]
domains = ["through.example"]
next_hop = ["10.0.0.1:25"]
[[route]]
domains = ["discard.example"]
next_hop = ["discard"]
[limits]
sessions_per_source = 10000
"#;

/// No faults; completions come together as they do under load.
const NO_FAULTS: Faults = Faults {
    cut: 0,
    rearm: 0,
    stale: 0,
    reset: 0,
    batch: 75,
    buffers: 256,
    buffer_size: 4096,
    delay_max: Duration::from_micros(200),
    room: 1 << 30,
};

/// Batches per unit that no run needs.
const TURNS_PER_UNIT_MAX: u64 = 10_000;

/// What the peers have seen.
#[derive(Default)]
struct Tally {
    /// Clients that have followed their script to its end.
    done: u32,
    /// Messages at the next hop.
    arrived: u32,
    /// The first thing that went wrong.
    fault: Option<String>,
}

/// Operations that the worker has submitted.
pub(crate) type Operations = Rc<Cell<u64>>;

type SharedTally = Rc<RefCell<Tally>>;

/// What a run had the driver do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    /// Sends, receives that were armed, accepts, closes and the like.
    pub(crate) operations: u64,
    /// Waits: each is a system call.
    pub(crate) batches: u64,
}

/// Runs a scenario to its end.
///
/// # Errors
/// If a reply is not the one expected, a message is lost, or the run does not end.
pub(crate) fn run(scenario: Scenario, units: u32) -> Result<Work> {
    let tally = SharedTally::default();
    let script = Rc::new(scenario.script(units));
    let operations = Operations::default();
    let (mut worker, network) = world(&tally, &operations)?;
    let turns_max = TURNS_PER_UNIT_MAX * u64::from(units);
    let mut arrived = 0;
    let mut batches = 0;
    while batches < turns_max {
        let done = tally.borrow().done;
        if done == script.clients {
            break;
        }
        while arrived < script.clients && arrived - done < script.at_once {
            arrive(&network, arrived, &script, &tally);
            arrived += 1;
        }
        batches += 1;
        if !counted_turn(&mut worker)? {
            bail!("the worker ended");
        }
        if let Some(fault) = tally.borrow_mut().fault.take() {
            bail!(fault);
        }
    }
    let tally = tally.borrow();
    ensure!(
        tally.done == script.clients,
        "{} of {} clients came to their end",
        tally.done,
        script.clients
    );
    let sent = scenario.messages(units);
    ensure!(
        tally.arrived == sent,
        "{} of {sent} messages are at the next hop",
        tally.arrived
    );
    Ok(Work {
        operations: operations.get(),
        batches,
    })
}

/// Bytes of records that are kept, as in the gate. What is beyond is dropped: nothing reads them.
const RECORDS_MAX: usize = 8 << 20;

/// The worker, and the network that clients come from.
fn world(tally: &SharedTally, operations: &Operations) -> Result<(Worker, Network)> {
    let config = config::parse(Path::new("instructions.toml"), CONFIGURATION)
        .map_err(|errors| anyhow!("{errors}"))?;
    let at_next_hop = Rc::clone(tally);
    let dial: Dial = Box::new(move |_| Some(Box::new(NextHop::new(Rc::clone(&at_next_hop)))));
    let (driver, network) = simulation(1, NO_FAULTS, dial);
    let size = Size {
        listeners: 1,
        sessions_max: 1024,
        next_hops_max: 64,
    };
    // There are no DNS lists: nothing is asked.
    let (asks, _) = port(1, || {}, || {});
    let worker = Worker::new(
        Uncounted::new(driver, Rc::clone(operations)),
        0,
        size,
        Arc::new(Shared::new(Arc::new(config))),
        Arc::new(Counters::default()),
        asks,
        Arc::new(RecordQueue::new(RECORDS_MAX, || {})),
    );
    Ok((worker, network))
}

/// Lets a client connect.
fn arrive(network: &Network, number: u32, script: &Rc<Script>, tally: &SharedTally) {
    let network_part = match script.origin {
        Origin::Local => [10, 9],
        Origin::Elsewhere => [198, 18],
    };
    let [high, low] = (number as u16).to_be_bytes();
    let from = SocketAddr::from(([network_part[0], network_part[1], high, low], 40_000));
    let client = Client {
        script: Rc::clone(script),
        place: 0,
        input: Vec::new(),
        is_waiting: false,
        tally: Rc::clone(tally),
    };
    network.arrive(Duration::ZERO, Listener(0), from, Box::new(client));
}

/// A client that follows a script, one command at a time.
struct Client {
    script: Rc<Script>,
    /// The exchange whose reply is to come.
    place: usize,
    input: Vec<u8>,
    /// It waits before it sends what the exchange begins with.
    is_waiting: bool,
    tally: SharedTally,
}

impl Client {
    fn is_done(&self) -> bool {
        self.script.exchange(self.place).is_none()
    }

    fn fault(&self, what: impl Into<String>) {
        let mut tally = self.tally.borrow_mut();
        tally.fault.get_or_insert(what.into());
    }

    /// Sends what the present exchange begins with.
    fn begin(&mut self, send: &mut Vec<u8>) -> Fate {
        self.is_waiting = false;
        match self.script.exchange(self.place) {
            Some(exchange) => {
                send.extend_from_slice(&exchange.send);
                Fate::Stay
            }
            None => {
                self.tally.borrow_mut().done += 1;
                Fate::Close
            }
        }
    }

    /// The reply to the present exchange has come.
    fn reply(&mut self, code: u16, send: &mut Vec<u8>) -> Fate {
        let expected = self
            .script
            .exchange(self.place)
            .map(|exchange| exchange.code);
        if expected != Some(code) {
            self.fault(format!(
                "exchange {}: {code} is not {expected:?}",
                self.place
            ));
            return Fate::Close;
        }
        self.place += 1;
        match self.script.exchange(self.place) {
            Some(exchange) if exchange.after > Duration::ZERO => {
                self.is_waiting = true;
                Fate::Wake(exchange.after)
            }
            _ => self.begin(send),
        }
    }
}

impl Peer for Client {
    fn octets(&mut self, _now: Duration, octets: &[u8], send: &mut Vec<u8>) -> Fate {
        if octets.is_empty() {
            return if self.is_waiting {
                self.begin(send)
            } else {
                Fate::Stay
            };
        }
        self.input.extend_from_slice(octets);
        let Some(lines) = self.input.strip_suffix(b"\r\n") else {
            return Fate::Stay;
        };
        // Commands go out one by one, so there is one reply, and its last line ends it.
        let last = lines
            .rsplit(|octet| *octet == b'\n')
            .next()
            .unwrap_or_default();
        let Some((code, b' ')) = last.split_at_checked(3).and_then(|(code, text)| {
            let code = std::str::from_utf8(code).ok()?.parse().ok()?;
            Some((code, *text.first()?))
        }) else {
            return Fate::Stay;
        };
        self.input.clear();
        self.reply(code, send)
    }

    fn ended(&mut self, _now: Duration, _send: &mut Vec<u8>) -> Fate {
        if !self.is_done() {
            self.fault("the worker hung up");
        }
        Fate::Close
    }

    fn reset(&mut self, _now: Duration) {
        if !self.is_done() {
            self.fault("the worker broke a connection");
        }
    }
}

/// A connection to a next hop that takes everything.
struct NextHop {
    input: Vec<u8>,
    has_greeted: bool,
    in_content: bool,
    tally: SharedTally,
}

impl NextHop {
    fn new(tally: SharedTally) -> Self {
        Self {
            input: Vec::new(),
            has_greeted: false,
            in_content: false,
            tally,
        }
    }

    fn line(&mut self, line: &[u8], send: &mut Vec<u8>) -> Result<Fate> {
        if self.in_content {
            if line == b".\r\n" {
                self.in_content = false;
                self.tally.borrow_mut().arrived += 1;
                send.extend_from_slice(b"250 2.0.0 Ok\r\n");
            }
            return Ok(Fate::Stay);
        }
        let verb = line
            .get(..4)
            .context("a command of less than four letters")?;
        let reply: &[u8] = match verb {
            b"EHLO" => b"250-hop.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n",
            b"MAIL" | b"RCPT" | b"RSET" | b"NOOP" => b"250 2.0.0 Ok\r\n",
            b"DATA" => {
                self.in_content = true;
                b"354 End data with <CR><LF>.<CR><LF>\r\n"
            }
            b"QUIT" => {
                send.extend_from_slice(b"221 2.0.0 Bye\r\n");
                return Ok(Fate::Close);
            }
            _ => bail!("the next hop was told {:?}", String::from_utf8_lossy(line)),
        };
        send.extend_from_slice(reply);
        Ok(Fate::Stay)
    }
}

impl Peer for NextHop {
    fn octets(&mut self, _now: Duration, octets: &[u8], send: &mut Vec<u8>) -> Fate {
        if !self.has_greeted {
            self.has_greeted = true;
            send.extend_from_slice(b"220 hop.example ESMTP\r\n");
        }
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(octets);
        let mut rest = input.as_slice();
        let mut fate = Fate::Stay;
        while let Some(end) = rest.iter().position(|octet| *octet == b'\n') {
            let (line, more) = rest.split_at(end + 1);
            rest = more;
            fate = self.line(line, send).unwrap_or_else(|error| {
                let mut tally = self.tally.borrow_mut();
                tally.fault.get_or_insert(error.to_string());
                Fate::Close
            });
        }
        self.input = rest.to_vec();
        fate
    }

    fn ended(&mut self, _now: Duration, _send: &mut Vec<u8>) -> Fate {
        Fate::Close
    }

    fn reset(&mut self, _now: Duration) {}
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_scenario_comes_to_its_end_with_every_reply_as_expected() {
        for scenario in Scenario::value_variants() {
            let result = run(*scenario, scenario.round(32));
            assert!(result.is_ok(), "{scenario:?}: {result:?}");
        }
    }
}
