//! A worker in a simulated world: clients and next hops with plans of their own, faults from a
//! seed, and what must hold anyway.
//!
//! What must hold, whatever the network and the next hops do:
//! - every command gets one reply, in order, and no reply comes unasked;
//! - a message that a client heard 250 for is at a next hop, once, octet for octet behind our
//!   `Received:` line, from its sender and to exactly the recipients that were accepted;
//! - no message arrives twice, however often connections break, and however slowly next hops read;
//! - a client that says nothing more is sent away in time;
//! - a stranger's recipient is not answered before DNS lists have spoken or their time is over; a
//!   client that is on no list is never refused for one, a client that is on one is, and only
//!   strangers are looked up;
//! - a client that comes by a trusted front is looked up and judged as itself, and the filter is
//!   told to drop nothing for it;
//! - everything ends: no connection, no receive buffer and no session is left over.

pub mod client;
pub mod driver;
mod front;
mod lists;
pub mod next_hop;
pub mod scene;
pub mod slow;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use portcullis::config;
use portcullis::driver::Listener;
use portcullis::worker::counters::Counters;
use portcullis::worker::records::RecordQueue;
use portcullis::worker::{Life, Shared, Size, Worker};

use self::client::{Client, Plan};
use self::driver::{Dial, Faults, Peer, simulation};
use self::front::Front;
use self::lists::{Listing, Lists};

pub use self::lists::Lookups;
use self::next_hop::NextHop;

const CONFIGURATION: &str = r#"
hostname = "gate.example"
[[listener]]
address = "192.0.2.1:25"
service = "relay"
proxy_protocol_from = ["10.7.0.1"]
[relay]
networks = ["10.9.0.0/16"]
domains = ["a.example", "b.example", "down.example", "void.example"]
connect_timeout = "10s"
reply_timeout = "20s"
message_timeout = "60s"
idle_timeout = "15s"
connections = 3
retry_after = "4s"
[limits]
command_timeout = "10m"
data_timeout = "10m"
shutdown_timeout = "30s"
[[route]]
domains = ["a.example"]
next_hop = ["10.0.0.1:25", "10.0.0.2:25"]
[[route]]
domains = ["b.example"]
next_hop = ["10.0.0.3:25"]
[[route]]
domains = ["down.example"]
next_hop = ["10.0.0.9:25"]
[[route]]
domains = ["void.example"]
next_hop = ["discard"]
"#;

/// What half of the worlds have besides.
const ZONES: &str = r#"
[[dnsbl]]
zone = "bl.example"
score = 2
[[dnsbl]]
zone = "welcome.example"
score = -2
[dnsbl_policy]
servers = ["192.0.2.53"]
reject_at = 2
timeout = "3s"
"#;

/// Sessions that the simulated worker serves at a time.
const SESSIONS_MAX: u32 = 12;
/// A run that takes more batches than this does not end. Large messages through buffers of a few
/// octets take many.
const TURNS_MAX: u32 = 5_000_000;

/// A message as its client sent it, or as it arrived.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// The reverse path.
    pub sender: String,
    /// The recipients whose RCPT was answered with 250, in order.
    pub recipients: Vec<String>,
    /// What is behind our `Received:` line.
    pub content: Vec<u8>,
}

/// What the actors of a run have seen.
#[derive(Debug, Default)]
pub struct Record {
    /// What must not happen, and did.
    pub violations: Vec<String>,
    /// Messages that a client heard 250 for, with what it sent; `None` for those that were to be
    /// thrown away.
    pub accepted: BTreeMap<String, Option<Message>>,
    /// Messages at the next hops.
    pub arrived: BTreeMap<String, Vec<Message>>,
    /// Clients whose plan is at its end, one way or another.
    pub clients_done: usize,
    /// The gate is stopping, so 421 is no surprise.
    pub stopping: bool,
    /// What DNS lists know of the clients that are asked about, by their number.
    listings: BTreeMap<usize, Listing>,
    /// The answers to the questions about them.
    lookups: Lookups,
}

/// The record, shared by all actors of a run.
pub type Shelf = Rc<RefCell<Record>>;

/// What a run came to.
#[derive(Debug)]
pub struct Summary {
    /// Messages that clients heard 250 for.
    pub accepted: usize,
    /// Messages at the next hops.
    pub arrived: usize,
    /// Batches that the worker needed.
    pub turns: u32,
    /// The answers to the questions about clients.
    pub lookups: Lookups,
}

/// Runs the world of one seed to its end.
///
/// # Errors
/// All that was violated, one per line.
pub fn run(seed: u64) -> Result<Summary, String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let shelf = Shelf::default();
    // By the seed and not by its random numbers, as below.
    let pace = (seed % 4 == 2).then(|| 1_000 + (seed % 61) as u32 * 500);
    let world = rng.u64(..);
    let mut faults = faults(&mut rng);
    if pace.is_some() {
        faults.room = 16 << 10;
    }
    let (driver, network) = simulation(world, faults, next_hops(&mut rng, &shelf, pace));
    // By the seed and not by its random numbers, so that seeds which found something before there
    // were zones still find it.
    let has_zones = seed % 2 == 1;
    let configuration = format!("{CONFIGURATION}{}", if has_zones { ZONES } else { "" });
    let config = config::parse(Path::new("simulation.toml"), &configuration)
        .map_err(|errors| errors.to_string())?;
    let (lists, port) = Lists::new(seed);
    let shared = Arc::new(Shared::new(Arc::new(config)));
    let counters = Arc::new(Counters::default());
    let size = Size {
        listeners: 1,
        sessions_max: SESSIONS_MAX,
        next_hops_max: 8,
    };
    let mut worker = Worker::new(
        driver,
        0,
        size,
        Arc::clone(&shared),
        Arc::clone(&counters),
        port,
        records(),
    );

    // By the seed alone, too.
    let mut fronts = (seed % 5 == 3).then(|| fastrand::Rng::with_seed(seed ^ 0x6672_6f6e));
    let clients = rng.usize(1..=SESSIONS_MAX as usize);
    for number in 0..clients {
        let local = rng.bool();
        let from = SocketAddr::from(([10, if local { 9 } else { 8 }, 0, number as u8 + 1], 40_000));
        let mut plan = Plan::random(&mut rng, number);
        if has_zones {
            plan.write_to_postmaster();
            if !local {
                shelf.borrow_mut().listings.insert(number, lists.listing());
            }
        }
        let client = Client::new(plan, Rc::clone(&shelf));
        let (from, client): (_, Box<dyn Peer>) = match &mut fronts {
            None => (from, Box::new(client)),
            Some(rng) => (
                SocketAddr::from(([10, 7, 0, 1], 40_000 + number as u16)),
                Box::new(Front::new(client, from, rng.fork())),
            ),
        };
        network.arrive(
            Duration::from_millis(rng.u64(..3_000)),
            Listener(0),
            from,
            client,
        );
    }
    reload_now_and_then(seed, &network, &shared, &configuration)?;
    let stop_early = (rng.u8(..5) == 0).then(|| Duration::from_millis(rng.u64(..10_000)));

    let mut turns = 0;
    let rests = loop {
        turns += 1;
        let stop = network.now() >= stop_early.unwrap_or(Duration::MAX)
            || shelf.borrow().clients_done == clients;
        if stop && !shelf.borrow().stopping {
            shelf.borrow_mut().stopping = true;
            shared.set_life(Life::Draining);
        }
        lists.serve(&network, &shelf);
        match worker.turn() {
            Ok(true) if turns < TURNS_MAX => {}
            Ok(goes_on) => break !goes_on,
            Err(error) => return Err(format!("the driver failed: {error}")),
        }
    };
    let mut record = shelf.borrow_mut();
    if !rests {
        record.violations.push(format!(
            "it does not come to rest: {turns} turns, {:?}",
            network.now()
        ));
    }
    let left = (
        network.connections(),
        network.buffers_out(),
        counters.sessions_open.load(Ordering::Relaxed),
    );
    if left != (0, 0, 0) {
        record.violations.push(format!(
            "left over: (connections, buffers, sessions) = {left:?}"
        ));
    }
    lists.compare(&mut record, fronts.is_some());
    compare(&mut record);
    if record.violations.is_empty() {
        let arrived = record.arrived.values().map(Vec::len).sum();
        Ok(Summary {
            accepted: record.accepted.len(),
            arrived,
            turns,
            lookups: record.lookups,
        })
    } else {
        Err(record.violations.join("\n"))
    }
}

/// In a third of the worlds the configuration is replaced a few times by another in which clients
/// and next hops have more time or less, and more connections or fewer.
fn reload_now_and_then(
    seed: u64,
    network: &driver::Network,
    shared: &Arc<Shared>,
    configuration: &str,
) -> Result<(), String> {
    if !seed.is_multiple_of(3) {
        return Ok(());
    }
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x7265_6c6f);
    for _ in 0..rng.u8(1..5) {
        let connections = format!("connections = {}", rng.u8(1..5));
        let idle = format!("idle_timeout = \"{}s\"", rng.u8(1..20));
        let timeout = format!("command_timeout = \"{}m\"", rng.u8(8..12));
        let text = configuration
            .replace("connections = 3", &connections)
            .replace("idle_timeout = \"15s\"", &idle)
            .replace("command_timeout = \"10m\"", &timeout);
        let config = config::parse(Path::new("simulation.toml"), &text)
            .map_err(|errors| errors.to_string())?;
        let (config, shared) = (Arc::new(config), Arc::clone(shared));
        network.act(Duration::from_millis(rng.u64(..20_000)), move |_| {
            shared.config.store(config);
        });
    }
    Ok(())
}

/// Holds what clients heard against what arrived.
fn compare(record: &mut Record) {
    let mut violations = Vec::new();
    for (id, sent) in &record.accepted {
        let arrived = record.arrived.get(id).map_or(&[][..], Vec::as_slice);
        match (sent, arrived) {
            (None, []) => {}
            (Some(sent), [one]) if one == sent => {}
            (Some(_), [_]) => violations.push(format!(
                "message {id} was changed on its way, or has other recipients"
            )),
            (Some(_), []) => violations.push(format!("message {id} is lost: its client heard 250")),
            (_, several) => {
                violations.push(format!("message {id} arrived {} times", several.len()));
            }
        }
    }
    for (id, arrived) in &record.arrived {
        if arrived.len() > 1 {
            violations.push(format!("message {id} arrived {} times", arrived.len()));
        }
    }
    record.violations.append(&mut violations);
}

/// A queue that loses all records: nothing reads them here.
fn records() -> Arc<RecordQueue> {
    Arc::new(RecordQueue::new(0, || ()))
}

fn faults(rng: &mut fastrand::Rng) -> Faults {
    let often = |rng: &mut fastrand::Rng, percent_max: u8| {
        if rng.bool() {
            0
        } else {
            rng.u8(..=percent_max)
        }
    };
    Faults {
        cut: often(rng, 80),
        rearm: often(rng, 20),
        stale: often(rng, 50),
        reset: often(rng, 3),
        buffers: if rng.bool() { 64 } else { rng.u16(1..=3) },
        buffer_size: if rng.bool() { 4096 } else { rng.u32(1..=64) },
        batch: often(rng, 95),
        delay_max: Duration::from_millis(rng.u64(1..=2_000)),
        room: 1 << 30,
    }
}

/// Three next hops with their moods; nothing answers anywhere else.
fn next_hops(rng: &mut fastrand::Rng, shelf: &Shelf, pace: Option<u32>) -> Dial {
    let mut rng = rng.fork();
    let shelf = Rc::clone(shelf);
    let moods: Vec<next_hop::Mood> = (0..3).map(|_| next_hop::Mood::random(&mut rng)).collect();
    Box::new(move |address| {
        let SocketAddr::V4(address) = address else {
            return None;
        };
        let number = usize::from(address.ip().octets()[3]).wrapping_sub(1);
        let mood = *moods.get(number)?;
        if rng.u8(..100) < mood.refuses_connection {
            return None;
        }
        let next_hop = NextHop::new(mood, pace, rng.fork(), Rc::clone(&shelf));
        Some(Box::new(next_hop))
    })
}
