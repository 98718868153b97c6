//! Runs frames through the program in the kernel, without an interface (`BPF_PROG_TEST_RUN`).

use std::time::Duration;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapError, RingBuf};
use aya::programs::{TestRun, TestRunOptions};
use portcullis_ebpf_common::Source;
use portcullis_ebpf_common::layout::{
    Event, INTERFACES_MAX, InterfaceConstant, InterfaceCounters, LinkLayer, PackedSettings,
    RecentVerdict, Role, Settings, VerdictKey, grant_hint, hint,
};
use portcullis_ebpf_common::packet::FAMILY_BITS;

use super::error::kernel;
use super::maps::{Maps, Value};
use super::pins::Pins;
use super::{Error, links};

/// An instance of the program that is attached to no interface. It checks frames against the lists
/// and settings in force.
///
/// It counts for the lists, and in an interface slot that belongs to no interface. A test can write
/// its maps directly: settings, recent verdicts, local networks. Use it with a
/// [`Filter`](super::Filter) without interfaces, so that no real traffic is affected.
pub struct Trial {
    object: Ebpf,
    maps: Maps,
}

/// What the program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialResult {
    /// The frame was dropped.
    pub dropped: bool,
    /// The frame that was sent back (`XDP_TX`).
    pub sent: Option<Vec<u8>>,
    /// The mean time of one run. It is too good for a repeated frame, which stays in the cache.
    pub duration: Duration,
}

impl Trial {
    pub(super) fn new(pins: &Pins, role: Role, layer: LinkLayer) -> Result<Self, Error> {
        // The slot after those of interfaces.
        let interface = InterfaceConstant::new(INTERFACES_MAX, role, layer);
        Ok(Self {
            object: links::load(pins, interface)?,
            maps: Maps::open(pins)?,
        })
    }

    /// Runs a frame through the program `repeat` times. The kernel needs at least the 14 octets of
    /// an Ethernet header.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel refuses the frame; [`Error::NotPermitted`].
    pub fn run(&mut self, frame: &[u8], repeat: u32) -> Result<TrialResult, Error> {
        // An answer can be a little longer than the frame.
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
        Ok(TrialResult {
            dropped: result.return_value == XDP_DROP,
            sent: (result.return_value == XDP_TX).then_some(sent),
            duration: result.duration,
        })
    }

    /// Puts any settings in force, also those that no configuration has.
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

    /// The counters so far of the frames of all trials under this pin path.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn counted(&self) -> Result<InterfaceCounters, Error> {
        Ok(self.maps.counted()?.interface(INTERFACES_MAX))
    }

    /// Adds any recent verdict.
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

    /// The recent verdict under a key, with the counters of the program.
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

    /// Adds a grant for an address.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn set_grant(&mut self, source: Source, until_ns: u64) -> Result<(), Error> {
        let mut grants: HashMap<_, [u32; 5], u64> = self.map("GRANTS")?;
        let result = grants.insert(source.0, until_ns, 0);
        result.map_err(kernel("writing a grant"))?;
        let control = self.maps.control();
        control.set_grant_hint(grant_hint(&source.key()));
        Ok(())
    }

    /// Removes all recent verdicts.
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

    /// Adds a local network: the first `bits` bits of this address.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn add_local(&mut self, address: Source, bits: u8) -> Result<(), Error> {
        let mut networks: LpmTrie<_, [u32; 5], u32> = self.map("LOCAL_NETWORKS")?;
        let key = Key::new(FAMILY_BITS + u32::from(bits), address.0);
        let result = networks.insert(&key, 1, 0);
        result.map_err(kernel("writing a local network"))
    }

    /// Sets until when there is a reader of events, in nanoseconds of CLOCK_MONOTONIC; 0: there is
    /// none.
    pub fn set_reader(&self, until_ns: u64) {
        self.maps.control().reader_until_ns.set(until_ns);
    }

    /// Takes all waiting events.
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

    /// Resets the rates, as if a second had passed.
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
