//! The peers and generators of `ebpf/prebuilt/benches.o`, loaded: see
//! `ebpf/program/src/bin/benches.rs`.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{
    ProgramFd, TestRun, TestRunAttrs, TestRunOptions, TestRunResult, Xdp, XdpMode,
};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use nix::time::ClockId;
use std::time::Duration;

use crate::syn_flood::Names;
use crate::traffic::{Family, Flags, Sequence, frame, syn_without_source};

static OBJECT: &[u8] = include_bytes_aligned!("../../../ebpf/prebuilt/benches.o");

/// `enum xdp_action` of linux/bpf.h.
pub(crate) const XDP_DROP: u32 = 1;
/// As above.
pub(crate) const XDP_PASS: u32 = 2;

/// How many entries a peer's maps have room for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Room {
    /// Of the hash map.
    pub(crate) hash: u32,
    /// Of the LPM trie.
    pub(crate) trie: u32,
}

/// A loaded object, with maps of its own.
pub(crate) struct Peers {
    object: Ebpf,
    family: Family,
}

impl Peers {
    /// Creates the maps. With `drop_unlisted` the hash map's program drops what it does not find as
    /// well.
    pub(crate) fn load(family: Family, room: Room, drop_unlisted: bool) -> Result<Self> {
        let (hash, trie) = match family {
            Family::Ipv4 => ("HASH_IPV4", "TRIE_IPV4"),
            Family::Ipv6 => ("HASH_IPV6", "TRIE_IPV6"),
        };
        let drop_unlisted = u32::from(drop_unlisted);
        let mut loader = EbpfLoader::new();
        loader.map_max_entries(hash, room.hash.max(1));
        loader.map_max_entries(trie, room.trie.max(1));
        loader.override_global("DROP_UNLISTED", &drop_unlisted, true);
        let object = loader.load(OBJECT).context("creating the peers' maps")?;
        Ok(Self { object, family })
    }

    /// A program by its name, loaded if it was not.
    pub(crate) fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self.object.program_mut(name);
        let program: &mut Xdp = program
            .with_context(|| format!("no program {name} in benches.o"))?
            .try_into()?;
        if program.fd().is_err() {
            program
                .load()
                .with_context(|| format!("loading the program {name}"))?;
        }
        Ok(program)
    }

    /// A handle of a program, to be made the contestant.
    pub(crate) fn handle(&mut self, name: &str) -> Result<ProgramFd> {
        Ok(self.program(name)?.fd()?.try_clone()?)
    }

    /// Puts a program on an interface of this thread's network namespace, in the driver, for as
    /// long as `self` lives.
    pub(crate) fn attach(&mut self, name: &str, interface: &str) -> Result<()> {
        self.program(name)?
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("attaching {name} to {interface}"))?;
        Ok(())
    }

    /// Begins a sequence from its first source.
    pub(crate) fn begin(&mut self, sequence: Sequence) -> Result<()> {
        let map = self.object.map_mut("SEQUENCE").context("no map SEQUENCE")?;
        let mut array: Array<&mut MapData, [u32; 4]> = map.try_into()?;
        let Sequence {
            kind,
            first,
            number,
        } = sequence;
        Ok(array.set(0, [0, first, number, kind as u32], 0)?)
    }

    /// Makes this program the one that `next_source` hands packets to.
    pub(crate) fn set_contestant(&mut self, contestant: &ProgramFd) -> Result<()> {
        let map = self
            .object
            .map_mut("CONTESTANT")
            .context("no map CONTESTANT")?;
        let mut array: ProgramArray<&mut MapData> = map.try_into()?;
        Ok(array.set(0, contestant, 0)?)
    }

    /// Puts the sources of a sequence into the hash map (`fill_hash`) or into the trie
    /// (`fill_trie`).
    pub(crate) fn fill(&mut self, program: &str, sequence: Sequence) -> Result<()> {
        self.begin(sequence)?;
        let mut left = sequence.number;
        while left > 0 {
            portcullis_benches::interrupt::check()?;
            let repeat = left.min(1 << 20);
            let (result, _) = self.run(program, repeat)?;
            ensure!(
                result.return_value == XDP_PASS,
                "{program}: an entry was not taken ({})",
                result.return_value
            );
            left -= repeat;
        }
        Ok(())
    }

    /// Runs a program in the kernel, as often as given. Returns the last verdict and the CPU time
    /// of this thread.
    ///
    /// The kernel's own figure is in whole nanoseconds, which are 4 % of a cheap program's.
    pub(crate) fn run(&mut self, program: &str, repeat: u32) -> Result<(TestRunResult, Duration)> {
        let frame = frame(self.family, Flags::Ack);
        let options = TestRunOptions {
            data_in: Some(&frame),
            repeat,
            ..TestRunOptions::default()
        };
        let program = self.program(program)?;
        let clock = || ClockId::CLOCK_THREAD_CPUTIME_ID.now().map(Duration::from);
        let before = clock()?;
        let result = program.test_run(options)?;
        Ok((result, clock()?.saturating_sub(before)))
    }

    /// Sends a number of packets of the sequence out of the interface with this index. The
    /// interface and its peer need a native XDP program, and the calling thread has to be in the
    /// network namespace of the interface.
    pub(crate) fn flood(&mut self, interface: u32, packets: u32) -> Result<()> {
        self.send("flood", &frame(self.family, Flags::Syn), interface, packets)
    }

    /// The same with SYNs that a listener takes: from every source of the sequence, or all in the
    /// name of its first.
    pub(crate) fn syn_flood(&mut self, names: Names, interface: u32, packets: u32) -> Result<()> {
        let frame = syn_without_source();
        let mut syn = [0; 14];
        for (word, octets) in syn.iter_mut().zip(frame.as_chunks().0) {
            *word = u32::from_ne_bytes(*octets);
        }
        let map = self.object.map_mut("SYN").context("no map SYN")?;
        let mut array: Array<&mut MapData, [u32; 14]> = map.try_into()?;
        array.set(0, syn, 0)?;
        let program = match names {
            Names::Random => "syn_flood",
            Names::Own => "syn_flood_of_one",
        };
        self.send(program, &frame, interface, packets)
    }

    fn send(&mut self, program: &str, frame: &[u8], interface: u32, packets: u32) -> Result<()> {
        // struct xdp_md of linux/bpf.h: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let frame_end = u32::try_from(frame.len())?;
        let context = [0, frame_end, 0, interface, 0, 0].map(u32::to_ne_bytes);
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(context.as_flattened()),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        self.program(program)?
            .test_run(options)
            .context("sending live frames (this needs Linux 5.18)")?;
        Ok(())
    }
}

/// Packets that are sent at a time: the kernel's own choice, and less than the 256 that a veth's
/// ring has room for.
const BATCH: u32 = 64;
