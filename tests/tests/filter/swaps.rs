//! Lists swapped during a flood: no packet is checked against half a list, or against none.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use portcullis::filter;
use portcullis::lists::{Compiled, List, ListAction};
use portcullis_tests::root;
use socket2::{Domain, Protocol, Socket, Type};

use crate::scene::{GATE4, GATE6, LISTED4, LISTED6, Scene, dropped};

const SWAPS: u32 = 1_000;
/// How often the packet is run through the program at a time.
const RUNS: u32 = 200_000;

/// A generation in which the flooder is on one of two lists; both are there in each, so that both
/// keep their counts.
fn generation(first: &[&str], second: &[&str]) -> Compiled {
    let list = |name: &str, nets: &[&str]| {
        let list = List {
            name: name.to_owned(),
            action: ListAction::Drop,
            entries: nets.len() as u64,
            ipv6_entries: 0,
            covered: None,
            file: None,
        };
        let nets = nets.iter().map(|net| net.parse().expect("a prefix"));
        (list, nets.collect())
    };
    Compiled::build(
        vec![list("first", first), list("second", second)],
        filter::memory,
    )
}

/// Sends SYNs until stopped. Returns how many.
fn flood(stop: &AtomicBool) -> io::Result<u64> {
    // The kernel adds the IP header; the data begins with the TCP header.
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
    let source: IpAddr = LISTED4.parse().map_err(io::Error::other)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    let gate: IpAddr = GATE4.parse().map_err(io::Error::other)?;
    let gate = SocketAddr::new(gate, 0).into();
    let syn = [
        0x80, 0, 0, 25, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
    ];
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        match socket.send_to(&syn, &gate) {
            Ok(_) => sent += 1,
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Packets that the sender's end of the link dropped, because the other end did not keep up.
fn lost(scene: &Scene) -> anyhow::Result<u64> {
    let shown = scene
        .outside
        .command("ip")
        .args(["-s", "-j", "link", "show", "lan"])
        .output()?;
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
    Ok(shown[0]["stats64"]["tx"]["dropped"]
        .as_u64()
        .unwrap_or_default())
}

#[test]
fn a_thousand_swaps_under_flood_let_no_packet_of_a_source_on_both_lists_pass() -> anyhow::Result<()>
{
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let others = "198.51.100.0/24";
    let generations = [
        generation(&["192.0.2.66/32", "192.0.2.64/28"], &[others]),
        generation(&[others, "10.0.0.0/22"], &["192.0.2.64/26"]),
    ];
    let settings = scene.settings();
    let mut owner = scene
        .gate
        .run(|| filter::Filter::attach(&settings, &generations[1]))??;
    // Makes the gate's link-layer address known: packets that wait for it may be lost.
    assert!(!scene.reaches(LISTED4, 25));
    assert!(scene.reaches(LISTED4, 587));
    let before = scene.status();
    let passed = before.interfaces[0].passed;
    let counted = |list| dropped(&scene.status(), list) - dropped(&before, list);
    let lost_before = lost(&scene)?;

    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| -> anyhow::Result<u64> {
        let flood = scope.spawn(|| scene.outside.run(|| flood(&stop)));
        for swap in 0..SWAPS {
            let swapped = owner.update_lists(&generations[swap as usize % 2]);
            if swapped.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            swapped?;
        }
        stop.store(true, Ordering::Relaxed);
        Ok(flood.join().expect("the flood ends")??)
    })?;
    let status = scene.status();
    assert_eq!(status.generation, before.generation + SWAPS);
    assert_eq!(status.interfaces[0].passed, passed, "not one came through");
    let (first, second) = (counted("first"), counted("second"));
    assert_eq!(
        first + second,
        sent - (lost(&scene)? - lost_before),
        "each was counted once"
    );
    assert!(
        first > 1_000 && second > 1_000,
        "the flood met both generations: {first}, {second}"
    );
    Ok(())
}

#[test]
fn the_program_itself_gives_one_answer_while_lists_are_swapped() -> anyhow::Result<()> {
    let generations = [
        generation(&["192.0.2.66/32", "2001:db8::66/128"], &[]),
        generation(&[], &["192.0.2.64/26", "2001:db8::/64"]),
    ];
    gives_one_answer(&generations, &[0, 1])
}

/// Lists over all of IPv4 have their IPv6 prefixes, and the end of their directory, beyond the
/// first block.
#[test]
fn lists_of_several_blocks_are_swapped_as_whole_as_those_of_one() -> anyhow::Result<()> {
    let ends = ["0.0.0.1/32", "255.255.255.254/32"];
    let generations = [
        generation(&[ends[0], ends[1], "2001:db8::66/128"], &[]),
        generation(&[], &[ends[0], ends[1], "2001:db8::/64"]),
        generation(&["2001:db8::/32"], &[]),
    ];
    // The same one twice, too: its header changes while it is in force.
    gives_one_answer(&generations, &[0, 0, 1, 2, 2, 1, 1, 0, 2])
}

/// Swaps these generations in this order again and again, while a packet of a source that all of
/// them list is run through the program.
fn gives_one_answer(generations: &[Compiled], order: &[usize]) -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut settings = scene.settings();
    settings.interfaces.clear();
    let mut owner = filter::Filter::attach(&settings, &generations[1])?;
    let (stop, mut trial) = (AtomicBool::new(false), owner.trial()?);
    let frame = {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
        frame.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
        for address in [LISTED6, GATE6] {
            frame.extend(address.parse::<std::net::Ipv6Addr>()?.octets());
        }
        frame.extend([
            0x80, 0, 0, 25, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
        ]);
        frame
    };
    let runs = thread::scope(|scope| -> anyhow::Result<u64> {
        let flood = scope.spawn(|| -> Result<u64, filter::Error> {
            let mut runs = 0;
            while !stop.load(Ordering::Relaxed) {
                // The kernel needs milliseconds to begin and to end a run; no packet is checked
                // then.
                assert!(trial.run(&frame, RUNS)?.dropped);
                runs += u64::from(RUNS);
            }
            Ok(runs)
        });
        for which in order.iter().cycle().take(SWAPS as usize / 4) {
            let swapped = owner.update_lists(&generations[*which]);
            if swapped.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            swapped?;
        }
        stop.store(true, Ordering::Relaxed);
        Ok(flood.join().expect("the flood ends")?)
    })?;
    let status = owner.status()?;
    assert_eq!(
        dropped(&status, "first") + dropped(&status, "second"),
        runs,
        "every run was dropped, and counted once"
    );
    Ok(())
}
