//! Frames run through the program in the kernel, without an interface (`BPF_PROG_TEST_RUN`).

use std::time::Duration;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapError, RingBuf};
use aya::programs::{TestRun, TestRunOptions};
use portcullis_ebpf_common::Source;
use portcullis_ebpf_common::layout::{
    Event, INTERFACES_MAX, InterfaceConstant, InterfaceCounters, LinkLayer, PackedSettings,
    RecentVerdict, Role, Settings, VerdictKey, hint,
};
use portcullis_ebpf_common::packet::FAMILY_BITS;

use super::error::kernel;
use super::maps::{Maps, Value};
use super::pins::Pins;
use super::{Error, links};

/// An instance of the program that sits on no interface and holds frames against the lists and
/// settings in force.
///
/// It counts what the lists decide, and beside it in a slot for interfaces that belongs to none.
/// What the relay learns can be put into its maps as it is, so that it can be seen what the program
/// makes of it. It is for a [`Filter`](super::Filter) without interfaces, so that nothing of a real
/// one is touched.
pub struct Trial {
    object: Ebpf,
    maps: Maps,
}

/// What the program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Dropped, or passed.
    pub dropped: bool,
    /// What was sent back where the frame came from.
    pub sent: Option<Vec<u8>>,
    /// The mean time that one run took. A frame repeated flatters the cache.
    pub duration: Duration,
}

impl Trial {
    pub(super) fn new(pins: &Pins, role: Role, layer: LinkLayer) -> Result<Self, Error> {
        // One slot past the last of an interface.
        let interface = InterfaceConstant::new(INTERFACES_MAX, role, layer);
        Ok(Self {
            object: links::load(pins, interface)?,
            maps: Maps::open(pins)?,
        })
    }

    /// Runs a frame through the program as often as told. The kernel wants at least the 14 octets
    /// of an Ethernet header.
    ///
    /// # Errors
    /// [`Error::Kernel`], for a frame that the kernel does not take; [`Error::NotPermitted`].
    pub fn run(&mut self, frame: &[u8], repeat: u32) -> Result<Outcome, Error> {
        // An answer can be a little longer than what it answers.
        let mut sent = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut sent),
            repeat,
            ..TestRunOptions::default()
        };
        let result = links::program(&mut self.object)?
            .test_run(options)
            .map_err(kernel("running a frame through the program"))?;
        sent.truncate(result.data_size_out as usize);
        Ok(Outcome {
            dropped: result.return_value == XDP_DROP,
            sent: (result.return_value == XDP_TX).then_some(sent),
            duration: result.duration,
        })
    }

    /// Puts settings in force as they are, also such as no configuration gives.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn set_settings(&mut self, settings: Settings) -> Result<(), Error> {
        self.maps.swap_settings(settings)
    }

    /// Sends every frame down the slow path, until settings are put in force again.
    pub fn slow_path_only(&self) {
        let control = self.maps.control();
        control.set_packed_settings(PackedSettings::SLOW_PATH_ONLY);
    }

    /// What was counted so far for the frames of all trials under this pin path.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn counted(&self) -> Result<InterfaceCounters, Error> {
        Ok(self.maps.counted()?.interface(INTERFACES_MAX))
    }

    /// Puts a recent verdict in place as it is.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn set_recent(&mut self, key: VerdictKey, verdict: RecentVerdict) -> Result<(), Error> {
        let mut verdicts: HashMap<_, VerdictKey, Value<RecentVerdict>> = self.map("VERDICTS")?;
        let failed = "writing a recent verdict";
        let result = verdicts.insert(key, Value(verdict), 0);
        result.map_err(kernel(failed))?;
        self.maps.control().set_hint(hint(&key));
        Ok(())
    }

    /// The recent verdict under a key, with what the program has counted in it.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn recent(&mut self, key: VerdictKey) -> Result<Option<RecentVerdict>, Error> {
        let verdicts: HashMap<_, VerdictKey, Value<RecentVerdict>> = self.map("VERDICTS")?;
        match verdicts.get(&key, 0) {
            Ok(verdict) => Ok(Some(verdict.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(kernel("reading a recent verdict")(error)),
        }
    }

    /// Takes all recent verdicts away.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn clear_recent(&mut self) -> Result<(), Error> {
        let failed = "removing the recent verdicts";
        let mut verdicts: HashMap<_, VerdictKey, Value<RecentVerdict>> = self.map("VERDICTS")?;
        let keys: Vec<VerdictKey> = verdicts.keys().flatten().collect();
        for key in keys {
            verdicts.remove(&key).map_err(kernel(failed))?;
        }
        Ok(())
    }

    /// Makes a prefix, so many bits of this address, a local network.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn add_local(&mut self, address: Source, bits: u8) -> Result<(), Error> {
        let mut networks: LpmTrie<_, [u32; 5], u32> = self.map("LOCAL_NETWORKS")?;
        let key = Key::new(FAMILY_BITS + u32::from(bits), address.0);
        let result = networks.insert(&key, 1, 0);
        result.map_err(kernel("writing a local network"))
    }

    /// Says until when somebody reads events, in nanoseconds of CLOCK_MONOTONIC; 0: nobody does.
    pub fn set_reader(&self, until_ns: u64) {
        self.maps.control().reader_until_ns.set(until_ns);
    }

    /// The events that are there. They are taken away.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn events(&mut self) -> Result<Vec<Event>, Error> {
        let data = self.data("EVENTS")?;
        let mut ring = RingBuf::try_from(data).map_err(kernel("opening the events"))?;
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            events.extend(Event::from_bytes(&item));
        }
        Ok(events)
    }

    /// Begins the rates anew, as if a second had passed.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn clear_rates(&mut self) -> Result<(), Error> {
        let mut cells: Array<_, u64> = self.map("RATES")?;
        for cell in 0..cells.len() {
            cells.set(cell, 0, 0).map_err(kernel("clearing a rate"))?;
        }
        Ok(())
    }

    fn data(&mut self, name: &'static str) -> Result<&mut Map, Error> {
        let missing = MapError::KeyNotFound;
        self.object
            .map_mut(name)
            .ok_or(missing)
            .map_err(kernel("finding a map of the program"))
    }

    fn map<'a, T>(&'a mut self, name: &'static str) -> Result<T, Error>
    where
        T: TryFrom<&'a mut Map, Error = MapError>,
    {
        T::try_from(self.data(name)?).map_err(kernel("opening a map of the program"))
    }
}

/// `enum xdp_action` of linux/bpf.h.
const XDP_DROP: u32 = 1;
const XDP_TX: u32 = 3;
