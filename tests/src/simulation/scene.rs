//! A scene of the simulation: a few clients that follow a script, next hops that answer line by
//! line, and what happens at which moment to the gate itself. Time is virtual; nothing is random
//! but what the network of the scene is told to do.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use portcullis::config::{self, Config};
use portcullis::driver::Listener;
use portcullis::worker::counters::Counters;
use portcullis::worker::port::{ControlEnd, port};
use portcullis::worker::records::{Record, RecordQueue};
use portcullis::worker::{Shared, Size, Worker};

use super::driver::{Fate, Faults, Network, Peer, simulation};

/// What a client does, one thing after the other.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends this.
    Say(Vec<u8>),
    /// Waits until what it has heard since its last step contains this.
    Hear(&'static str),
    /// Lets time go by.
    Wait(Duration),
    /// Closes its side.
    Close,
    /// Breaks the connection.
    Reset,
}

/// Sends these lines, each with its CRLF, in one piece.
pub fn say(lines: &str) -> Step {
    Step::Say(lines.replace('\n', "\r\n").into_bytes())
}

/// What a next hop does about a line.
#[derive(Clone, Debug)]
pub enum Act {
    /// It replies with this line.
    Say(&'static str),
    /// It replies with this line after a while, if it hears nothing before.
    Later(Duration, &'static str),
    /// It says nothing.
    Silence,
    /// It closes the connection.
    Close,
}

/// What next hops say: to the connect (an empty line), to each command, and to the message (`.`).
/// The first argument is the number of the connection, from 0.
pub type Script = Rc<dyn Fn(usize, SocketAddr, &str) -> Act>;

/// What was said at which moment, by whom.
pub type Log = Rc<RefCell<Vec<(Duration, String)>>>;

struct Client {
    steps: std::vec::IntoIter<Step>,
    awaited: Option<&'static str>,
    waits: Option<Duration>,
    heard: String,
    log: Log,
}

impl Client {
    fn go_on(&mut self, now: Duration, send: &mut Vec<u8>) -> Fate {
        loop {
            if let Some(until) = self.waits {
                if now < until {
                    return Fate::Wake(until - now);
                }
                self.waits = None;
            }
            if let Some(awaited) = self.awaited {
                if !self.heard.contains(awaited) {
                    return Fate::Stay;
                }
                self.awaited = None;
                self.heard.clear();
            }
            match self.steps.next() {
                None => return Fate::Stay,
                Some(Step::Say(octets)) => send.extend_from_slice(&octets),
                Some(Step::Hear(awaited)) => self.awaited = Some(awaited),
                Some(Step::Wait(time)) => self.waits = Some(now + time),
                Some(Step::Close) => return Fate::Close,
                Some(Step::Reset) => return Fate::Reset,
            }
        }
    }
}

impl Peer for Client {
    fn octets(&mut self, now: Duration, octets: &[u8], send: &mut Vec<u8>) -> Fate {
        let text = String::from_utf8_lossy(octets).into_owned();
        for line in text.lines() {
            self.log.borrow_mut().push((now, line.to_owned()));
        }
        self.heard.push_str(&text);
        self.go_on(now, send)
    }

    fn ended(&mut self, now: Duration, _send: &mut Vec<u8>) -> Fate {
        self.log.borrow_mut().push((now, "(closed)".to_owned()));
        Fate::Close
    }

    fn reset(&mut self, now: Duration) {
        self.log.borrow_mut().push((now, "(reset)".to_owned()));
    }
}

struct NextHop {
    number: usize,
    address: SocketAddr,
    script: Script,
    begun: bool,
    in_content: bool,
    input: Vec<u8>,
    later: Option<(Duration, &'static str)>,
    log: Log,
}

impl NextHop {
    fn line(&mut self, line: &str, now: Duration, send: &mut Vec<u8>) -> Option<Fate> {
        let said = format!("hop {}: {line}", self.number);
        self.log.borrow_mut().push((now, said));
        if self.in_content && line != "." {
            return None;
        }
        self.in_content = false;
        let reply = match (self.script)(self.number, self.address, line) {
            Act::Say(reply) => reply,
            Act::Later(time, reply) => {
                self.later = Some((now + time, reply));
                return None;
            }
            Act::Silence => return None,
            Act::Close => return Some(Fate::Close),
        };
        self.say(reply, send);
        None
    }

    /// The binary header of the PROXY protocol, which holds ends of lines. A scene has no network
    /// that cuts it in two.
    fn strip_header(&mut self) {
        if self.input.starts_with(b"\r\n\r\n\0\r\nQUIT\n") {
            let rest = usize::from(u16::from_be_bytes([self.input[14], self.input[15]]));
            self.input.drain(..16 + rest);
        }
    }

    fn say(&mut self, reply: &str, send: &mut Vec<u8>) {
        self.in_content |= reply.starts_with("354");
        send.extend_from_slice(reply.as_bytes());
        send.extend_from_slice(b"\r\n");
    }
}

impl Peer for NextHop {
    fn octets(&mut self, now: Duration, octets: &[u8], send: &mut Vec<u8>) -> Fate {
        if !std::mem::replace(&mut self.begun, true)
            && let Some(fate) = self.line("", now, send)
        {
            return fate;
        }
        self.input.extend_from_slice(octets);
        self.strip_header();
        while let Some(end) = self.input.windows(2).position(|pair| pair == b"\r\n") {
            let line = String::from_utf8_lossy(&self.input[..end]).into_owned();
            self.input.drain(..end + 2);
            if let Some(fate) = self.line(&line, now, send) {
                return fate;
            }
        }
        match self.later {
            Some((due, reply)) if now >= due => {
                self.later = None;
                self.say(reply, send);
                Fate::Stay
            }
            Some((due, _)) => Fate::Wake(due - now),
            None => Fate::Stay,
        }
    }

    fn ended(&mut self, now: Duration, _send: &mut Vec<u8>) -> Fate {
        let number = self.number;
        self.log
            .borrow_mut()
            .push((now, format!("hop {number}: (closed)")));
        Fate::Close
    }

    fn reset(&mut self, now: Duration) {
        let number = self.number;
        self.log
            .borrow_mut()
            .push((now, format!("hop {number}: (reset)")));
    }
}

/// The usual replies of a next hop.
pub fn usual(line: &str) -> Act {
    let verb = line.get(..4).unwrap_or(line).to_ascii_uppercase();
    Act::Say(match verb.as_str() {
        "" => "220 hop.example ESMTP",
        "EHLO" => "250-hop.example\r\n250-PIPELINING\r\n250 8BITMIME",
        "DATA" => "354 Go on",
        "QUIT" => "221 Bye",
        _ => "250 Ok",
    })
}

/// A worker in a scene.
pub struct Scene {
    /// Its network; [`Network::act`] does something at a moment.
    pub network: Network,
    /// What the control plane changes.
    pub shared: Arc<Shared>,
    /// The other end of its port.
    pub control: ControlEnd,
    /// What it counts.
    pub counters: Arc<Counters>,
    /// What all have said.
    pub log: Log,
    worker: Worker,
    records: Arc<RecordQueue>,
}

fn parse(configuration: &str) -> Arc<Config> {
    let parsed = config::parse(Path::new("scene.toml"), configuration);
    Arc::new(parsed.unwrap_or_else(|errors| panic!("{errors}")))
}

impl Scene {
    /// A worker with this configuration, and next hops that follow the script wherever it connects.
    pub fn new(configuration: &str, delay_max: Duration, script: Script) -> Self {
        let log = Log::default();
        let mut number = 0;
        let dial_log = Rc::clone(&log);
        let dial = move |address: SocketAddr| -> Option<Box<dyn Peer>> {
            let next_hop = NextHop {
                number,
                address,
                script: Rc::clone(&script),
                begun: false,
                in_content: false,
                input: Vec::new(),
                later: None,
                log: Rc::clone(&dial_log),
            };
            number += 1;
            Some(Box::new(next_hop))
        };
        let faults = Faults {
            cut: 0,
            rearm: 0,
            stale: 0,
            reset: 0,
            batch: 90,
            buffers: 64,
            buffer_size: 16 << 10,
            delay_max,
            room: 1 << 30,
        };
        let (driver, network) = simulation(1, faults, Box::new(dial));
        let shared = Arc::new(Shared::new(parse(configuration)));
        let counters = Arc::new(Counters::default());
        let (port, control) = port(64, || {}, || {});
        let records = Arc::new(RecordQueue::new(1 << 20, || ()));
        let size = Size {
            listeners: 1,
            sessions_max: 64,
            next_hops_max: 8,
        };
        let worker = Worker::new(
            driver,
            0,
            size,
            Arc::clone(&shared),
            Arc::clone(&counters),
            port,
            Arc::clone(&records),
        );
        Self {
            network,
            shared,
            control,
            counters,
            log,
            worker,
            records,
        }
    }

    /// A client that connects after a while. What it hears goes to the log that is returned.
    pub fn client(&self, after: Duration, from: [u8; 4], steps: Vec<Step>) -> Log {
        let log = Log::default();
        let client = Client {
            steps: steps.into_iter(),
            awaited: None,
            waits: None,
            heard: String::new(),
            log: Rc::clone(&log),
        };
        let from = SocketAddr::from((from, 40_000));
        self.network
            .arrive(after, Listener(0), from, Box::new(client));
        log
    }

    /// Has a configuration take the place of the one in force.
    pub fn reload(&self, after: Duration, configuration: &str) {
        let (config, shared) = (parse(configuration), Arc::clone(&self.shared));
        self.network
            .act(after, move |_| shared.config.store(config));
    }

    /// Turns until this moment, or until the worker has ended; whether it has.
    pub fn run_until(&mut self, until: Duration) -> bool {
        while self.network.now() < until {
            if !self.worker.turn().expect("a driver that works") {
                return true;
            }
        }
        false
    }

    /// The records since the last call.
    pub fn records(&self) -> Vec<Record> {
        self.records.take()
    }
}

/// A log as text, a line each, without the times.
pub fn lines(log: &Log) -> Vec<String> {
    log.borrow().iter().map(|(_, line)| line.clone()).collect()
}
