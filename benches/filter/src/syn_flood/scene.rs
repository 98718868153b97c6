//! A listener, its honest clients and a flood, in namespaces. The filter is on both links of the
//! listener, and counts what the flood sends in the name of a client together with what the client
//! sends.
//!
//! ```text
//!   world --- in [ inside: listener on port 25 ] clients --- honest
//! ```

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use portcullis::netns::Namespace;
use portcullis_benches::figures::Spread;
use socket2::{Domain, Socket, Type};

use super::{Defence, Names, Turn};
use crate::attached::{AttachedFilter, Unlisted};
use crate::cores::{self, Core};
use crate::flood::received_packets;
use crate::peers::{Peers, Room};
use crate::traffic::{Family, Sequence, TARGET, TARGET_INTERFACE};

/// A client that has waited for so long has been kept out.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// What a turn without a flood has over itself.
const CALM: Spread = Spread {
    median: 1.0,
    min: 1.0,
    max: 1.0,
};
/// Clients at a time.
const CLIENTS: usize = 4;
/// What a paced flood is cut into.
const PACE: Duration = Duration::from_millis(50);
/// Packets at a time of a flood that is not paced: to begin and to end takes the kernel some 20 ms.
const STEP: u32 = 1 << 19;
/// The queue of the listener, as the gateway asks for it.
const BACKLOG: i32 = 4096;
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

pub(super) struct Scene {
    defence: Defence,
    // In the order in which they have to go.
    filter: Option<AttachedFilter>,
    listener: Listener,
    flood: Peers,
    uplink: u32,
    inside: Namespace,
    world: Namespace,
    honest: Namespace,
}

impl Scene {
    pub(super) fn new(defence: Defence) -> Result<Self> {
        let [inside, world, honest] = ["inside", "world", "honest"].map(Namespace::create);
        let (inside, world, honest) = (inside?, world?, honest?);
        inside.veth("in", &world, "out")?;
        inside.veth("clients", &honest, "eth0")?;
        inside.address("in", "198.18.0.1/24")?;
        inside.address("clients", &format!("{TARGET}/24"))?;
        honest.address("eth0", &format!("{CLIENT}/24"))?;
        set_up_inside(&inside)?;
        let mut flood = Peers::load(Family::Ipv4, Room::default(), false)?;
        let uplink = world.run(|| -> Result<u32> {
            // Takes the answers to the flood, and sends none.
            flood.attach("empty", "out")?;
            Ok(if_nametoindex("out")?)
        })??;
        let listener = inside.run(Listener::start)??;
        let filter = match defence {
            Defence::Kernel => None,
            Defence::Portcullis => Some(AttachedFilter::attach(
                &inside,
                &["in", "clients"],
                &Default::default(),
                Unlisted::Pass,
            )?),
        };
        Ok(Self {
            defence,
            filter,
            listener,
            flood,
            uplink,
            inside,
            world,
            honest,
        })
    }

    /// Lets clients connect for a while, beside a flood of this many packets a second in these
    /// names.
    pub(super) fn turn(&mut self, names: Names, rate: u32, time: Duration) -> Result<Turn> {
        self.flood.begin(match names {
            Names::Random => Sequence::unlisted(Family::Ipv4, u32::MAX),
            Names::Own => Sequence::of_one(CLIENT),
        })?;
        let (arrived, cookies) = self.counts()?;
        let stop = AtomicBool::new(false);
        let Self {
            flood,
            uplink,
            world,
            honest,
            ..
        } = self;
        let (clients, seconds) = thread::scope(|scope| -> Result<_> {
            let flooding = (rate > 0)
                .then(|| scope.spawn(|| world.run(|| send(flood, names, *uplink, rate, &stop))));
            // The queue of the listener has to be full before it is a flood.
            thread::sleep(Duration::from_millis(200));
            let began = Instant::now();
            let clients = honest.run(|| connect_for(time));
            let seconds = began.elapsed() + Duration::from_millis(200);
            stop.store(true, Ordering::Relaxed);
            if let Some(flooding) = flooding {
                let flooded = flooding.join();
                flooded.ok().context("the flood has panicked")???;
            }
            Ok((clients??, seconds))
        })?;
        let (arrived_now, cookies_now) = self.counts()?;
        ensure!(self.listener.is_alive(), "the listener is gone");
        Ok(Turn {
            defence: self.defence,
            names,
            rate,
            flood: (arrived_now - arrived) as f64 / seconds.as_secs_f64(),
            connects: clients.connected as f64 / time.as_secs_f64(),
            worst: clients.worst.as_secs_f64(),
            failed: clients.failed,
            over_calm: CALM,
            cookies: cookies_now - cookies,
        })
    }

    /// Packets that have arrived from the world, and SYN cookies that the filter has sent.
    fn counts(&self) -> Result<(u64, u64)> {
        let devices = self
            .inside
            .run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        let arrived = received_packets(&devices, "in").context("no interface in")?;
        let cookies = match &self.filter {
            Some(filter) => filter.syn_cookies()?,
            None => 0,
        };
        Ok((arrived, cookies))
    }
}

/// Answers to any source go back to the world, without ARP for each of them.
fn set_up_inside(inside: &Namespace) -> Result<()> {
    let ip = |arguments: &[&str]| -> Result<()> {
        let output = inside.command("ip").args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "ip {}: {said}",
            arguments.join(" ")
        );
        Ok(())
    };
    ip(&["link", "set", "in", "address", TARGET_INTERFACE])?;
    ip(&[
        "neighbour",
        "replace",
        "198.18.0.2",
        "lladdr",
        "02:00:00:00:00:02",
        "dev",
        "in",
        "nud",
        "permanent",
    ])?;
    ip(&["route", "add", "default", "via", "198.18.0.2"])?;
    // A veth hands frames to the stack one by one unless GRO is on, and without GRO it drops the
    // frames that XDP has made.
    let output = inside
        .command("ethtool")
        .args(["-K", "in", "gro", "on"])
        .output()?;
    ensure!(
        output.status.success(),
        "ethtool: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    inside.run(|| -> io::Result<()> {
        for interface in ["all", "in", "default"] {
            fs::write(
                format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"),
                "0",
            )?;
        }
        fs::write("/proc/sys/net/ipv4/tcp_syncookies", "1")
    })??;
    Ok(())
}

/// Sends until told to stop.
fn send(flood: &mut Peers, names: Names, uplink: u32, rate: u32, stop: &AtomicBool) -> Result<()> {
    cores::stay_on(Core::Flood)?;
    let paced = rate < u32::MAX;
    let step = if paced {
        rate / (1_000 / PACE.as_millis() as u32)
    } else {
        STEP
    };
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        flood.syn_flood(names, uplink, step)?;
        if paced {
            due += PACE;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    Ok(())
}

/// What clients have met.
#[derive(Default)]
struct Clients {
    connected: u64,
    failed: u64,
    worst: Duration,
}

/// Connects, again and again, with a few clients at a time.
fn connect_for(time: Duration) -> Result<Clients> {
    let until = Instant::now() + time;
    let client = move || -> Result<Clients> {
        cores::stay_on(Core::Clients)?;
        let mut clients = Clients::default();
        while Instant::now() < until {
            let began = Instant::now();
            match connect() {
                Ok(()) => clients.connected += 1,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => clients.failed += 1,
                Err(error) => return Err(error.into()),
            }
            clients.worst = clients.worst.max(began.elapsed());
        }
        Ok(clients)
    };
    thread::scope(|scope| {
        // Threads begin in the namespace of the one that starts them.
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let mut all = Clients::default();
        for thread in threads {
            let one = thread.join().ok().context("a client has panicked")??;
            all.connected += one.connected;
            all.failed += one.failed;
            all.worst = all.worst.max(one.worst);
        }
        Ok(all)
    })
}

/// Connects and hangs up at once, by a RST, so that no port stays taken.
fn connect() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&SocketAddr::from((TARGET, 25)).into(), PATIENCE)
}

/// A listener that takes every connection and closes it.
struct Listener {
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Listener {
    /// Starts in this thread's namespace.
    fn start() -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((IpAddr::V4(TARGET), 25)).into())?;
        socket.listen(BACKLOG)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || {
            // On the clients' core: what the flood's has left over is not to decide.
            let _ = cores::stay_on(Core::Clients);
            while !stopped.load(Ordering::Relaxed) {
                // A timeout without a client is an error here, too: look at `stop` again.
                drop(socket.accept());
            }
        };
        let thread = Some(
            thread::Builder::new()
                .name("listener".to_owned())
                .spawn(work)?,
        );
        Ok(Self { thread, stop })
    }

    fn is_alive(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
