//! The pinned maps, typed. Their layout is in [`portcullis_ebpf_common::layout`].
#![allow(
    unsafe_code,
    reason = "aya needs an unsafe marker on the values of a map"
)]

use aya::Pod;
use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapError, PerCpuArray};
use portcullis_ebpf_common::layout::{
    self, Counters, GateRecord, INTERFACE_NAME_MAX, INTERFACE_SLOTS, INTERFACES_MAX,
    InterfaceCounters, InterfaceRecord, LIST_SLOTS, ListCounters, ListRecord, NOTHING_COUNTED,
    PackedSettings, RecentVerdict, SNAPSHOT_BLOCKS_MAX, TOP_SOURCES_MAX, TopSource,
    VERDICT_COUNTERS as VERDICT_COUNTERS_MAX, snapshot_slot,
};
use portcullis_ebpf_common::snapshot::Line;

use super::Error;
use super::control::Control;
use super::error::kernel;
use super::memory::{self, BlockMap, KernelMemory};
use super::pins::Pins;
use crate::config::{Interface, Role, XdpMode};

/// The maps that the program's object defines; the loader creates and pins them.
pub(super) const PROGRAM_MAPS: [&str; 11] = [
    "SETTINGS",
    "CONTROL",
    "SNAPSHOT",
    "COUNTERS",
    "VERDICTS",
    "GRANTS",
    "LOCAL_NETWORKS",
    "SYN_SKETCH",
    "RATES",
    "EVENTS",
    "EVENT_RATES",
];

const LIST_RECORDS: &str = "LIST_RECORDS";
const INTERFACE_RECORDS: &str = "INTERFACE_RECORDS";
pub(super) const VERDICT_COUNTERS: &str = "VERDICT_COUNTERS";
pub(super) const TOP_SOURCES: &str = "TOP_SOURCES";
const GATE: &str = "GATE";

/// A value of a map that is a struct.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Value<T>(pub(super) T);

// SAFETY: all of them are `repr(C)` structs of integers without padding, for which every bit
// pattern is a value.
unsafe impl Pod for Value<layout::Settings> {}
// SAFETY: as above.
unsafe impl Pod for Value<Counters> {}
// SAFETY: as above.
unsafe impl Pod for Value<ListRecord> {}
// SAFETY: as above.
unsafe impl Pod for Value<InterfaceRecord> {}
// SAFETY: as above.
unsafe impl Pod for Value<RecentVerdict> {}
// SAFETY: as above.
unsafe impl Pod for Value<TopSource> {}
// SAFETY: as above.
unsafe impl Pod for Value<GateRecord> {}

/// Handles of all maps under one pin path.
pub(super) struct Maps {
    settings: ArrayOfMaps<MapData, Array<MapData, Value<layout::Settings>>>,
    control: Control,
    snapshot: ArrayOfMaps<MapData, BlockMap>,
    /// The same map, because aya 0.14 cannot remove an element of it.
    snapshot_elements: MapData,
    counters: PerCpuArray<MapData, Value<Counters>>,
    list_records: Array<MapData, Value<ListRecord>>,
    interface_records: Array<MapData, Value<InterfaceRecord>>,
    top_sources: Array<MapData, Value<TopSource>>,
    gate: Array<MapData, Value<GateRecord>>,
}

impl Maps {
    /// Opens the pinned maps.
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            settings: open(pins, "SETTINGS")?,
            control: Control::open(pins)?,
            snapshot: open(pins, "SNAPSHOT")?,
            snapshot_elements: open_data(pins, "SNAPSHOT")?,
            counters: open(pins, "COUNTERS")?,
            list_records: open(pins, LIST_RECORDS)?,
            interface_records: open(pins, INTERFACE_RECORDS)?,
            top_sources: open(pins, TOP_SOURCES)?,
            gate: open(pins, GATE)?,
        })
    }

    /// Creates and pins the maps that the program does not use, unless they exist.
    pub(super) fn create_records(pins: &Pins) -> Result<(), Error> {
        create::<Value<ListRecord>>(pins, LIST_RECORDS, 2 * LIST_SLOTS)?;
        create::<Value<InterfaceRecord>>(pins, INTERFACE_RECORDS, INTERFACES_MAX)?;
        create::<u64>(pins, VERDICT_COUNTERS, VERDICT_COUNTERS_MAX)?;
        create::<Value<TopSource>>(pins, TOP_SOURCES, TOP_SOURCES_MAX)?;
        create::<Value<GateRecord>>(pins, GATE, 1)
    }

    /// The record of the gate's admin endpoint.
    pub(super) fn gate(&self) -> Result<GateRecord, Error> {
        let record = self.gate.get(&0, 0);
        Ok(record
            .map_err(kernel("reading the gate's admin endpoint"))?
            .0)
    }

    pub(super) fn set_gate(&mut self, record: GateRecord) -> Result<(), Error> {
        let result = self.gate.set(0, Value(record), 0);
        result.map_err(kernel("writing the gate's admin endpoint"))
    }

    /// The sources with the most dropped packets, highest first, as the reader of the events last
    /// wrote them.
    pub(super) fn top_sources(&self) -> Result<Vec<TopSource>, Error> {
        let mut sources = Vec::new();
        for place in 0..TOP_SOURCES_MAX {
            let source = self.top_sources.get(&place, 0);
            let Value(source) = source.map_err(kernel("reading the top sources"))?;
            if source.written_ns == 0 {
                break;
            }
            sources.push(source);
        }
        Ok(sources)
    }

    /// The settings in force.
    pub(super) fn settings(&self) -> Result<Option<layout::Settings>, Error> {
        let failed = "reading the settings";
        let Some(inner) = found(self.settings.get(&0, 0)).map_err(kernel(failed))? else {
            return Ok(None);
        };
        Ok(Some(inner.get(&0, 0).map_err(kernel(failed))?.0))
    }

    /// Puts settings in place whole: they are written beside the old ones, and one update swaps
    /// them. Meanwhile every packet takes the slow path, which reads the settings themselves.
    pub(super) fn swap_settings(&mut self, settings: layout::Settings) -> Result<(), Error> {
        let failed = "writing the settings";
        let mut inner = Array::create(1, 0).map_err(kernel(failed))?;
        inner.set(0, Value(settings), 0).map_err(kernel(failed))?;
        let before = self.control.packed_settings();
        self.control
            .set_packed_settings(PackedSettings::SLOW_PATH_ONLY);
        let result = self.settings.set(0, &inner, 0).map_err(kernel(failed));
        // After an error the old settings are in force.
        let packed = result
            .as_ref()
            .map_or(before, |()| PackedSettings::new(&settings));
        self.control.set_packed_settings(packed);
        result
    }

    /// The header of the snapshot in force.
    pub(super) fn snapshot_header(&self) -> Result<Option<Line>, Error> {
        let step = "reading the header of the lists in force";
        let Some(map) = found(self.snapshot.get(&0, 0)).map_err(kernel(step))? else {
            return Ok(None);
        };
        memory::header(&map).map(Some)
    }

    /// The blocks of the generation in force; `None` if there is none.
    pub(super) fn snapshot_blocks(
        &self,
        generation: u32,
        blocks: u32,
    ) -> Result<Option<Vec<BlockMap>>, Error> {
        let block = |block| self.snapshot.get(&snapshot_slot(generation, block), 0);
        let blocks = (0..blocks).map(block).collect::<Result<Vec<_>, _>>();
        let blocks = found(blocks).map_err(kernel("opening the lists in force"))?;
        Ok(blocks.filter(|blocks| !blocks.is_empty()))
    }

    /// Replaces the generation before, which has `blocks_before` blocks, by a snapshot. When this
    /// returns, no packet is being checked against the old generation, and its memory is released
    /// here. After an error the old generation stays in force.
    ///
    /// All blocks but the first go to elements that no packet reads yet. The first block, whose
    /// header says where they are, then exchanges the generations. If the memory is in force
    /// already, writing its header does.
    pub(super) fn swap_snapshot(
        &mut self,
        memory: &KernelMemory,
        generation: u32,
        blocks_before: u32,
    ) -> Result<(), Error> {
        let before = generation.wrapping_sub(1);
        if let Err(error) = self.put_snapshot(memory, generation) {
            memory.set_generation(before);
            self.empty(generation, memory.block_count());
            return Err(kernel("putting the lists in place")(error));
        }
        self.empty(before, blocks_before);
        Ok(())
    }

    fn put_snapshot(&mut self, memory: &KernelMemory, generation: u32) -> Result<(), MapError> {
        for (block, map) in (0..).zip(memory.blocks()).skip(1) {
            self.snapshot
                .set(snapshot_slot(generation, block), map, 0)?;
        }
        memory.set_generation(generation);
        self.snapshot.set(0, &memory.blocks()[0], 0)
    }

    /// Releases the blocks of a generation that is not in force. If that fails, they stay until
    /// others replace them.
    fn empty(&self, generation: u32, blocks: u32) {
        for slot in (1..blocks).map(|block| snapshot_slot(generation, block)) {
            if let Err(error) = memory::remove(&self.snapshot_elements, slot) {
                tracing::warn!(%error, slot, "the memory of old lists is kept for now");
            }
        }
    }

    /// Releases the blocks that a process has left in the place of the next generation, because it
    /// ended before it could exchange the generations. Reading the elements takes privileges that a
    /// gate drops: only the process that attaches the filter may call this.
    pub(super) fn sweep_snapshot(&self, generation: u32) {
        let next = generation.wrapping_add(1);
        let left = (1..SNAPSHOT_BLOCKS_MAX)
            .rev()
            .find(|block| self.snapshot.get(&snapshot_slot(next, *block), 0).is_ok());
        self.empty(next, left.map_or(0, |last| last + 1));
    }

    /// The memory that the program reads for nearly every packet.
    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    /// The record of a list's slot in a bank.
    pub(super) fn list_record(&self, bank: u32, slot: u32) -> Result<ListRecord, Error> {
        let record = self.list_records.get(&(bank * LIST_SLOTS + slot), 0);
        Ok(record.map_err(kernel("reading the names of the lists"))?.0)
    }

    pub(super) fn set_list_record(
        &mut self,
        bank: u32,
        slot: u32,
        record: ListRecord,
    ) -> Result<(), Error> {
        let index = bank * LIST_SLOTS + slot;
        let result = self.list_records.set(index, Value(record), 0);
        result.map_err(kernel("writing the names of the lists"))
    }

    /// The counters of each slot so far, summed over all CPUs.
    pub(super) fn counted(&self) -> Result<Counted, Error> {
        let values = self.counters.get(&0, 0);
        let values = values.map_err(kernel("reading the counters"))?;
        let mut counted = Counted::default();
        for Value(counters) in values.iter() {
            add(&mut counted.interfaces, &counters.interfaces);
            add(&mut counted.lists, &counters.lists);
        }
        Ok(counted)
    }

    /// The slots of interfaces that are in use.
    pub(super) fn interfaces(&self) -> Result<Vec<InterfaceSlot>, Error> {
        let mut taken = Vec::new();
        for slot in 0..INTERFACES_MAX {
            let record = self
                .interface_records
                .get(&slot, 0)
                .map_err(kernel("reading the names of the interfaces"))?;
            let record = record.0;
            let name = text(&record.name);
            if !name.is_empty() {
                taken.push(InterfaceSlot {
                    slot,
                    interface: Interface {
                        name,
                        role: if record.role == layout::Role::Customer as u32 {
                            Role::Customer
                        } else {
                            Role::Edge
                        },
                    },
                    xdp_mode: if record.xdp_mode == 0 {
                        XdpMode::Driver
                    } else {
                        XdpMode::Generic
                    },
                    counted_before: record.counted_before,
                });
            }
        }
        Ok(taken)
    }

    /// Records the interface of a slot.
    pub(super) fn take_interface_slot(&mut self, taken: &InterfaceSlot) -> Result<(), Error> {
        let record = InterfaceRecord {
            name: padded::<INTERFACE_NAME_MAX>(&taken.interface.name),
            role: taken.interface.role.in_kernel() as u32,
            xdp_mode: u32::from(taken.xdp_mode == XdpMode::Generic),
            counted_before: taken.counted_before,
        };
        let result = self.interface_records.set(taken.slot, Value(record), 0);
        result.map_err(kernel("writing the name of an interface"))
    }

    /// Frees the slot of an interface.
    pub(super) fn free_interface_slot(&mut self, slot: u32) -> Result<(), Error> {
        let free = InterfaceRecord {
            name: [0; INTERFACE_NAME_MAX],
            role: 0,
            xdp_mode: 0,
            counted_before: NOTHING_COUNTED,
        };
        let result = self.interface_records.set(slot, Value(free), 0);
        result.map_err(kernel("clearing the name of an interface"))
    }
}

/// The counters of each slot, over all interfaces or lists that used it.
pub(super) struct Counted {
    interfaces: Vec<InterfaceCounters>,
    lists: Vec<ListCounters>,
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            interfaces: vec![NOTHING_COUNTED; INTERFACE_SLOTS as usize],
            lists: vec![ListCounters::default(); LIST_SLOTS as usize],
        }
    }
}

impl Counted {
    pub(super) fn interface(&self, slot: u32) -> InterfaceCounters {
        let counters = self.interfaces.get(slot as usize);
        counters.copied().unwrap_or(NOTHING_COUNTED)
    }

    pub(super) fn list(&self, slot: u32) -> ListCounters {
        self.lists.get(slot as usize).copied().unwrap_or_default()
    }
}

/// The difference between two readings of the same counters.
pub(super) fn since<const N: usize>(now: [u64; N], before: [u64; N]) -> [u64; N] {
    core::array::from_fn(|at| now[at].wrapping_sub(before[at]))
}

fn add<const N: usize>(totals: &mut [[u64; N]], counters: &[[u64; N]]) {
    for (total, counter) in totals.iter_mut().flatten().zip(counters.iter().flatten()) {
        *total = total.wrapping_add(*counter);
    }
}

#[cfg(test)]
impl Maps {
    /// The elements of `SNAPSHOT` that hold a block.
    pub(super) fn held_blocks(&self) -> Vec<u32> {
        let is_held = |slot: &u32| self.snapshot.get(slot, 0).is_ok();
        (0..layout::SNAPSHOT_SLOTS).filter(is_held).collect()
    }

    /// Puts a block of a snapshot into its place in a generation, and does no more.
    pub(super) fn put_block(&mut self, memory: &KernelMemory, generation: u32, block: u32) {
        let slot = snapshot_slot(generation, block);
        let map = &memory.blocks()[block as usize];
        self.snapshot.set(slot, map, 0).unwrap();
    }
}

/// The slot of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InterfaceSlot {
    pub(super) slot: u32,
    pub(super) interface: Interface,
    pub(super) xdp_mode: XdpMode,
    /// The counters of the slot when the interface got it.
    pub(super) counted_before: InterfaceCounters,
}

/// The text before the padding of zeros.
pub(super) fn text(padded: &[u8]) -> String {
    let length = padded
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(padded.len());
    String::from_utf8_lossy(&padded[..length]).into_owned()
}

/// A text, padded with zeros. Longer texts were refused before.
pub(super) fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut padded = [0; N];
    for (place, byte) in padded.iter_mut().zip(text.bytes()) {
        *place = byte;
    }
    padded
}

/// Creates and pins an array, unless it exists.
fn create<V: Pod>(pins: &Pins, name: &'static str, length: u32) -> Result<(), Error> {
    let failed = "creating the maps of records";
    if pins.map(name).exists() {
        return Ok(());
    }
    let map = Array::<_, V>::create(length, 0).map_err(kernel(failed))?;
    map.pin(pins.map(name)).map_err(kernel(failed))
}

/// Opens a pinned map.
pub(super) fn open<T>(pins: &Pins, name: &'static str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = Map::from_map_data(open_data(pins, name)?).map_err(kernel(OPENING))?;
    T::try_from(map).map_err(kernel(OPENING))
}

pub(super) fn open_data(pins: &Pins, name: &'static str) -> Result<MapData, Error> {
    MapData::from_pin(pins.map(name)).map_err(kernel(OPENING))
}

const OPENING: &str = "opening a pinned map";

/// `None` for an element that was never set.
pub(super) fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(None),
        result => result.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use portcullis_ebpf_common::layout::LIST_NAME_MAX;

    use super::*;

    #[test]
    fn records_have_no_padding_and_the_size_that_the_layout_says() {
        let silent = 4 * INTERFACE_SLOTS.div_ceil(32) as usize;
        let settings = 4 * 4 + 2 * layout::PORTS_MAX + silent;
        assert_eq!(size_of::<layout::Settings>(), settings);
        assert_eq!(size_of::<ListRecord>(), LIST_NAME_MAX + 4 + 4 + 8 + 2 * 8);
        assert_eq!(
            size_of::<InterfaceRecord>(),
            INTERFACE_NAME_MAX + 4 + 4 + 40 * 8
        );
        let counters = 40 * INTERFACE_SLOTS + 2 * LIST_SLOTS;
        assert_eq!(size_of::<Counters>(), 8 * counters as usize);
        assert_eq!(
            size_of::<RecentVerdict>(),
            4 * 8 + 4 + 4 + layout::VERDICT_NOTE_MAX
        );
        assert_eq!(size_of::<TopSource>(), 3 * 8 + 5 * 4 + 3 * 4);
        assert_eq!(size_of::<GateRecord>(), 5 * 4 + 4);
    }

    #[test]
    fn a_name_of_full_length_comes_back_whole() {
        let name = "x".repeat(LIST_NAME_MAX);
        assert_eq!(text(&padded::<LIST_NAME_MAX>(&name)), name);
    }
}
