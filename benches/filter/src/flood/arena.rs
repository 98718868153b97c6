//! Where a flood meets a contestant: two namespaces joined by a pair of interfaces, the flood's
//! generator at one end.
//!
//! The frames are made in the kernel (`BPF_PROG_TEST_RUN` with live frames) and cross the link on
//! the core that makes them, so a figure is what one core makes, delivers and drops, and the drop
//! is only a part of it. What arrived is what the receiving interface counted, for every contestant
//! alike; what got past the contestant is what the IP layer behind it counted, and has to be next
//! to nothing.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use portcullis::netns::Namespace;
use portcullis_benches::interrupt;

use crate::cores::{self, Core};
use crate::peers::{Peers, Room};
use crate::traffic::{Family, Sequence};

/// The interface in front of which the contestant stands.
pub(super) const INTERFACE: &str = "in";
/// The interface out of which the flood comes.
const UPLINK: &str = "out";
/// Packets at a time. To begin and to end takes the kernel some 20 ms, in which nothing is sent:
/// with fewer packets that would be a part of the figure, and the larger the quicker the
/// contestant.
const STEP: u32 = 1 << 22;
/// What may get past a contestant: the machine's own packets, not the flood's.
const PASSED_MAX: u64 = 100;

/// See the module.
pub(super) struct Arena {
    pub(super) inside: Namespace,
    world: Namespace,
    peers: Peers,
    uplink: u32,
}

/// How much of a sequence is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Amount {
    /// So many packets.
    Packets(u32),
    /// For so long.
    Time(Duration),
}

/// What a flood came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flooded {
    pub(super) packets: u64,
    pub(super) seconds: f64,
}

impl Flooded {
    pub(super) fn per_second(self) -> f64 {
        self.packets as f64 / self.seconds
    }
}

impl Arena {
    pub(super) fn new() -> Result<Self> {
        let (inside, world) = (Namespace::create("inside")?, Namespace::create("world")?);
        inside.veth(INTERFACE, &world, UPLINK)?;
        for namespace in [&inside, &world] {
            // The interfaces would send packets of their own.
            namespace.run(|| fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"))??;
        }
        let mut peers = Peers::load(Family::Ipv4, Room::default(), false)?;
        let uplink = world.run(|| -> Result<u32> {
            // Frames can be sent out of an interface only if it takes some, too.
            peers.attach("empty", UPLINK)?;
            Ok(if_nametoindex(UPLINK)?)
        })??;
        Ok(Self {
            inside,
            world,
            peers,
            uplink,
        })
    }

    /// Floods the contestant from the sources of the sequence, from the first one on.
    pub(super) fn flood(&mut self, sequence: Sequence, amount: Amount) -> Result<Flooded> {
        self.peers.begin(sequence)?;
        let (arrived_before, passed_before) = self.counts()?;
        let Self {
            world,
            peers,
            uplink,
            ..
        } = self;
        let seconds = world.run(|| send(peers, *uplink, amount))??;
        let (arrived, passed) = self.settled_counts()?;
        let (packets, passed) = (arrived - arrived_before, passed - passed_before);
        ensure!(
            passed <= PASSED_MAX,
            "{passed} of {packets} packets got past the contestant"
        );
        ensure!(packets > 0, "no packet arrived");
        Ok(Flooded { packets, seconds })
    }

    /// The counts when nothing is under way any more.
    fn settled_counts(&self) -> Result<(u64, u64)> {
        let mut before = self.counts()?;
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            std::thread::sleep(Duration::from_millis(5));
            let now = self.counts()?;
            if now == before || Instant::now() > deadline {
                return Ok(now);
            }
            before = now;
        }
    }

    /// Packets that have arrived at the interface, and at the IP layer behind it.
    fn counts(&self) -> Result<(u64, u64)> {
        self.inside.run(|| {
            let devices = fs::read_to_string("/proc/thread-self/net/dev")?;
            let snmp = fs::read_to_string("/proc/thread-self/net/snmp")?;
            let arrived = received_packets(&devices, INTERFACE)
                .with_context(|| format!("no {INTERFACE} in /proc/net/dev"))?;
            Ok((
                arrived,
                ip_in_receives(&snmp).context("no Ip in /proc/net/snmp")?,
            ))
        })?
    }
}

fn send(peers: &mut Peers, uplink: u32, amount: Amount) -> Result<f64> {
    cores::stay_on(Core::Flood)?;
    let begin = Instant::now();
    let mut sent = 0;
    loop {
        interrupt::check()?;
        let step = match amount {
            Amount::Packets(packets) if sent >= packets => break,
            Amount::Packets(packets) => STEP.min(packets - sent),
            Amount::Time(limit) if begin.elapsed() >= limit => break,
            Amount::Time(_) => STEP,
        };
        peers.flood(uplink, step)?;
        sent += step;
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// The second column of an interface's line, after the bytes.
pub(crate) fn received_packets(devices: &str, interface: &str) -> Option<u64> {
    let (_, figures) = devices
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == interface)?;
    figures.split_whitespace().nth(1)?.parse().ok()
}

/// `InReceives` of the group `Ip`, which has a line of names and one of figures.
fn ip_in_receives(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter(|line| line.starts_with("Ip: "));
    let column = lines
        .next()?
        .split(' ')
        .position(|name| name == "InReceives")?;
    lines.next()?.split(' ').nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_received_packets_of_the_right_interface_are_read() {
        let devices =
            "Inter-|   Receive\n face |bytes    packets\n    lo: 10 1 0\n   in: 840 21 0 0\n";
        assert_eq!(received_packets(devices, "in"), Some(21));
        assert_eq!(received_packets(devices, "out"), None);
    }

    #[test]
    fn the_packets_of_the_ip_layer_are_found_by_name() {
        let snmp = "Ip: Forwarding DefaultTTL InReceives InHdrErrors\nIp: 1 64 77 0\n\
                    Icmp: InMsgs\nIcmp: 5\n";
        assert_eq!(ip_in_receives(snmp), Some(77));
    }
}
