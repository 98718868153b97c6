//! A client or a next hop that reads at its own pace: hours of it, on virtual time.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use portcullis::config;
use portcullis::driver::Listener;
use portcullis::worker::counters::Counters;
use portcullis::worker::port::port;
use portcullis::worker::{Shared, Size, Worker};

use super::driver::{Fate, Faults, Peer, SimDriver, simulation};
use super::records;

/// All times are those by default.
const CONFIGURATION: &str = r#"
hostname = "gate.example"
[[listener]]
address = "192.0.2.1:25"
[relay]
networks = ["10.0.0.0/8"]
domains = ["a.example"]
[[route]]
domains = ["*"]
next_hop = ["10.0.0.1:25"]
"#;

/// What fits into a connection on its way.
const ROOM: usize = 512 << 10;

/// A script: what is said first, and after each reply, or each line of a command.
struct Actor {
    says: Vec<Vec<u8>>,
    /// What ends what the other side says now.
    awaits: Vec<&'static [u8]>,
    heard: Vec<u8>,
    octets: usize,
    pace: Option<u32>,
    /// Stops reading after this number of octets.
    stops_after: usize,
    /// The last thing it heard, and when.
    last: Rc<RefCell<(Vec<u8>, Duration)>>,
}

impl Peer for Actor {
    fn octets(&mut self, now: Duration, octets: &[u8], send: &mut Vec<u8>) -> Fate {
        self.octets += octets.len();
        self.heard.extend_from_slice(octets);
        if let Some(awaited) = self.awaits.first()
            && self.heard.ends_with(awaited)
        {
            self.awaits.remove(0);
            *self.last.borrow_mut() = (std::mem::take(&mut self.heard), now);
            if !self.says.is_empty() {
                send.append(&mut self.says.remove(0));
            }
        }
        Fate::Stay
    }

    fn ended(&mut self, _now: Duration, _send: &mut Vec<u8>) -> Fate {
        Fate::Close
    }

    fn reset(&mut self, _now: Duration) {}

    fn pace(&self) -> Option<u32> {
        if self.octets < self.stops_after {
            self.pace
        } else {
            Some(0)
        }
    }
}

fn faults(room: usize) -> Faults {
    Faults {
        cut: 0,
        rearm: 0,
        stale: 0,
        reset: 0,
        batch: 0,
        buffers: 64,
        buffer_size: 16 << 10,
        delay_max: Duration::ZERO,
        room,
    }
}

fn worker(driver: SimDriver, counters: Arc<Counters>) -> Result<Worker, String> {
    let config = config::parse(Path::new("simulation.toml"), CONFIGURATION)
        .map_err(|errors| errors.to_string())?;
    let size = Size {
        listeners: 1,
        sessions_max: 4,
        next_hops_max: 4,
    };
    let shared = Arc::new(Shared::new(Arc::new(config)));
    // There are no zones, and so no questions.
    let (port, _) = port(0, || (), || ());
    Ok(Worker::new(
        driver,
        0,
        size,
        shared,
        counters,
        port,
        records(),
    ))
}

/// The reply to a message of `octets` octets, and how long after the message it came, when the next
/// hop reads `pace` octets a second and stops after `stops_after`.
///
/// # Errors
/// What went wrong besides.
pub fn message(octets: usize, pace: u32, stops_after: usize) -> Result<(String, Duration), String> {
    let said = Rc::new(RefCell::default());
    let commands = [
        "EHLO client.example\r\n",
        "MAIL FROM:<x@client.example>\r\n",
        "RCPT TO:<y@a.example>\r\n",
        "DATA\r\n",
    ];
    let mut says: Vec<Vec<u8>> = commands.map(|line| line.as_bytes().to_vec()).to_vec();
    let line = [&[b'x'; 62][..], b"\r\n"].concat();
    says.push([&line.repeat(octets / line.len())[..], b".\r\n"].concat());
    let client = Actor {
        awaits: vec![b"\r\n", b"HELP\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n"],
        says,
        heard: Vec::new(),
        octets: 0,
        pace: None,
        stops_after: usize::MAX,
        last: Rc::clone(&said),
    };
    let dial = move |_: SocketAddr| -> Option<Box<dyn Peer>> {
        let replies = [
            "220 hop.example ESMTP\r\n",
            "250 hop.example\r\n",
            "250 2.1.0 Ok\r\n",
            "250 2.1.5 Ok\r\n",
            "354 Slowly\r\n",
            "250 2.0.0 Ok\r\n",
        ];
        Some(Box::new(Actor {
            says: replies.map(|line| line.as_bytes().to_vec()).to_vec(),
            awaits: vec![b"", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n.\r\n"],
            heard: Vec::new(),
            octets: 0,
            pace: Some(pace),
            stops_after,
            last: Rc::default(),
        }))
    };
    let (driver, network) = simulation(1, faults(ROOM), Box::new(dial));
    let mut worker = worker(driver, Arc::default())?;
    let from = SocketAddr::from(([10, 0, 0, 9], 40_000));
    network.arrive(Duration::ZERO, Listener(0), from, Box::new(client));
    let mut begun = Duration::ZERO;
    while network.now() < Duration::from_hours(24) {
        worker.turn().map_err(|error| error.to_string())?;
        let (reply, at) = &*said.borrow();
        let reply = String::from_utf8_lossy(reply);
        if reply.starts_with("354") {
            begun = *at;
        } else if begun > Duration::ZERO {
            return Ok((reply.into_owned(), *at - begun));
        }
    }
    Err("no reply for a day".to_owned())
}

/// How long the gate keeps a client that has said QUIT and reads `pace` octets a second of
/// `replies` replies.
///
/// # Errors
/// What went wrong besides.
pub fn farewell(replies: usize, pace: u32) -> Result<Duration, String> {
    let commands = ["RSET\r\n".repeat(replies).as_bytes(), b"QUIT\r\n"].concat();
    let client = Actor {
        says: vec![b"EHLO client.example\r\n".to_vec(), commands],
        awaits: vec![b"\r\n", b"HELP\r\n"],
        heard: Vec::new(),
        octets: 0,
        pace: Some(pace),
        stops_after: usize::MAX,
        last: Rc::default(),
    };
    let (driver, network) = simulation(1, faults(16 << 10), Box::new(|_| None));
    let counters = Arc::new(Counters::default());
    let mut worker = worker(driver, Arc::clone(&counters))?;
    let from = SocketAddr::from(([10, 0, 0, 9], 40_000));
    network.arrive(Duration::ZERO, Listener(0), from, Box::new(client));
    let (mut begun, mut ended) = (false, None);
    while network.now() < Duration::from_hours(24) {
        worker.turn().map_err(|error| error.to_string())?;
        let is_open = counters.sessions_open.load(Ordering::Relaxed) > 0;
        begun |= is_open;
        if begun && !is_open {
            let ended = *ended.get_or_insert(network.now());
            if network.connections() == 0 {
                return Ok(network.now() - ended);
            }
        }
    }
    Err("it is held for a day".to_owned())
}
