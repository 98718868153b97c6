//! IPv4: the directory, the cells and their marks.
//!
//! Prefixes up to /24 are painted over the directory, the least important first: the last mark
//! painted decides. Longer prefixes are sorted, so that those of one /24 lie together, in the order
//! in which they are painted over its 256 addresses. Both orders are the orders of packed integers,
//! which makes it possible to sort ten million prefixes in a quarter of a second.

use portcullis_ebpf_common::snapshot::{
    CELL_MARKS_BITS, ENTRY_ALL, ENTRY_CELL, ENTRY_KIND_SHIFT, ENTRY_LONE, ENTRY_PAIR, Field, Line,
    Mark, PRESENCE,
};

use super::super::entries::Ipv4Prefix;
use super::presence::Presence;
use super::{NumberedList, Ranks};

/// Prefixes that cover whole /24s are painted over the directory.
const SHORT_MAX: u8 = 24;
/// /24s of a /16.
const NETWORKS: u32 = 256;
/// Entries of the directory in a line.
const ENTRIES: usize = size_of::<Line>() / size_of::<u32>();
/// Marks in a line.
const MARKS: usize = size_of::<Line>() / size_of::<u16>();
/// The presence bits of a /24 whose two halves are both non-empty.
const BOTH: u64 = 0b11;

/// The marks of a range of /24s that no prefix covers.
static UNPAINTED: [u16; 4096] = [0; 4096];

/// The prefixes of all lists, packed.
#[derive(Default)]
pub(super) struct Prefixes {
    short: Vec<Short>,
    long: Vec<Long>,
}

/// A prefix up to /24. Sorted as it is painted: low ranks before high ones, then by length,
/// then by network; the first list of several with the same prefix comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Short(u64);

impl Short {
    const LIST_BITS: u32 = 9;

    fn new(list: u16, rank: u8, prefix: Ipv4Prefix) -> Self {
        Self(
            u64::from(rank) << 38
                | u64::from(prefix.length) << 33
                | u64::from(prefix.address >> 8) << Self::LIST_BITS
                | u64::from(list),
        )
    }

    /// All but the list.
    fn prefix(self) -> u64 {
        self.0 >> Self::LIST_BITS
    }

    fn network(self) -> u32 {
        (self.prefix() & 0xff_ffff) as u32
    }

    fn length(self) -> u8 {
        (self.0 >> 33 & 31) as u8
    }

    /// How many /24s it covers.
    fn networks(self) -> u32 {
        1 << (SHORT_MAX - self.length())
    }

    fn mark(self) -> u16 {
        mark(
            (self.0 & ((1 << Self::LIST_BITS) - 1)) as u16,
            self.length(),
        )
    }
}

/// A prefix beyond /24. Sorted by its /24, then as it is painted: low ranks before high ones,
/// then by length; of several lists with the same prefix the first comes last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Long(u64);

impl Long {
    const LISTS: u16 = 511;

    fn new(list: u16, rank: u8, prefix: Ipv4Prefix) -> Self {
        Self(
            u64::from(prefix.address >> 8) << 25
                | u64::from(rank) << 23
                | u64::from(prefix.length) << 17
                | u64::from(Self::LISTS - list) << 8
                | u64::from(prefix.address & 0xff),
        )
    }

    fn network(self) -> u32 {
        (self.0 >> 25) as u32
    }

    fn rank(self) -> u8 {
        (self.0 >> 23 & 3) as u8
    }

    fn length(self) -> u8 {
        (self.0 >> 17 & 63) as u8
    }

    fn octet(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    fn mark(self) -> u16 {
        mark(Self::LISTS - (self.0 >> 8 & 511) as u16, self.length())
    }
}

/// A mark in its 16 bits: the length of an IPv4 prefix leaves one unused.
fn mark(list: u16, length: u8) -> u16 {
    Mark::new(list, length).0 as u16
}

impl Prefixes {
    pub(super) fn with_room_for(lists: &[NumberedList]) -> Self {
        let prefixes = lists.iter().flat_map(|list| &list.entries.ipv4);
        let short = prefixes
            .clone()
            .filter(|prefix| prefix.length <= SHORT_MAX)
            .count();
        Self {
            short: Vec::with_capacity(short),
            long: Vec::with_capacity(prefixes.count() - short),
        }
    }

    pub(super) fn add(&mut self, list: u16, rank: u8, prefixes: &[Ipv4Prefix]) {
        for prefix in prefixes {
            if prefix.length <= SHORT_MAX {
                self.short.push(Short::new(list, rank, *prefix));
            } else {
                self.long.push(Long::new(list, rank, *prefix));
            }
        }
    }

    /// Settles what is short, and counts what the rest will need.
    pub(super) fn plan(mut self, ranks: &Ranks) -> Plan {
        self.short.sort_unstable();
        self.short.dedup_by_key(|short| short.prefix());
        self.long.sort_unstable();
        let mut directory = Directory::around(&self.short, &self.long);
        directory.paint(&self.short);
        let mut plan = Plan {
            directory,
            presence: Presence::empty(),
            long: self.long,
            cells: 0,
            marks: 0,
        };
        if plan.directory.count == 0 {
            return plan;
        }
        let mut presence = Presence::fine();
        let (mut cells, mut marks) = (0, 0);
        plan.directory
            .for_each_painted(|network, _| presence.set(network, BOTH));
        plan.for_each_network(ranks, |network, found| {
            presence.set(network, found.halves());
            if let Network::Cell(cell) = found {
                cells += 1;
                marks += cell.marks.len();
            }
        });
        plan.presence = presence.coarsened();
        (plan.cells, plan.marks) = (cells, marks);
        plan
    }
}

/// The /24s from the first /16 that is not empty to the last.
struct Directory {
    first: u32,
    count: u32,
    /// What the short prefixes say; empty if there are none.
    painted: Vec<u16>,
}

impl Directory {
    fn around(short: &[Short], long: &[Long]) -> Self {
        let firsts = short.iter().map(|short| short.network()).min();
        let lasts = short
            .iter()
            .map(|short| short.network() + (short.networks() - 1))
            .max();
        let first = firsts
            .into_iter()
            .chain(long.first().map(|long| long.network()));
        let last = lasts
            .into_iter()
            .chain(long.last().map(|long| long.network()));
        let (first, count) = match first.min().zip(last.max()) {
            Some((first, last)) => (first / NETWORKS, last / NETWORKS - first / NETWORKS + 1),
            None => (0, 0),
        };
        Self {
            first,
            count,
            painted: Vec::new(),
        }
    }

    /// The lines of entries.
    fn lines(&self) -> usize {
        self.count as usize * NETWORKS as usize / ENTRIES
    }

    /// The place of a /24 in this directory.
    fn at(&self, network: u32) -> usize {
        (network - self.first * NETWORKS) as usize
    }

    fn paint(&mut self, short: &[Short]) {
        if short.is_empty() {
            return;
        }
        self.painted = vec![0; (self.count * NETWORKS) as usize];
        for short in short {
            let first = self.at(short.network());
            self.painted[first..first + short.networks() as usize].fill(short.mark());
        }
    }

    /// Calls `each` for every painted /24, with its mark.
    fn for_each_painted(&self, mut each: impl FnMut(u32, u16)) {
        let first = self.first * NETWORKS;
        for (number, marks) in (0..).zip(self.painted.chunks(UNPAINTED.len())) {
            // Most are unpainted.
            if marks == &UNPAINTED[..marks.len()] {
                continue;
            }
            for (network, mark) in (first + number * UNPAINTED.len() as u32..).zip(marks) {
                if *mark != 0 {
                    each(network, *mark);
                }
            }
        }
    }

    /// The mark that the short prefixes leave on a /24.
    fn painted(&self, network: u32) -> u16 {
        self.painted
            .get(self.at(network))
            .copied()
            .unwrap_or_default()
    }
}

/// The form that a /24 with longer prefixes takes.
enum Network<'a> {
    All(u16),
    Lone {
        octet: u8,
        mark: u16,
    },
    /// Two addresses of one list, which names them as such.
    Pair {
        octets: [u8; 2],
        mark: u16,
    },
    Cell(Cell<'a>),
}

impl Network<'_> {
    /// The presence bits of its two halves.
    fn halves(&self) -> u64 {
        match self {
            Self::All(0) => 0,
            Self::All(_) => BOTH,
            Self::Lone { octet, .. } => 1 << (octet >> 7),
            Self::Pair { octets: [a, b], .. } => 1 << (a >> 7) | 1 << (b >> 7),
            Self::Cell(cell) if cell.rest != 0 => BOTH,
            Self::Cell(cell) => {
                let half = |words: &[u64]| u64::from(words.iter().any(|word| *word != 0));
                half(&cell.bits[..2]) | half(&cell.bits[2..]) << 1
            }
        }
    }
}

/// Addresses whose mark differs from that of the rest.
struct Cell<'a> {
    bits: [u64; 4],
    rest: u16,
    /// The one mark that they all have; 0: they have these.
    uniform: u16,
    marks: &'a [u16],
}

/// Everything about IPv4 but where its lines are.
pub(super) struct Plan {
    presence: Presence,
    directory: Directory,
    long: Vec<Long>,
    cells: usize,
    marks: usize,
}

impl Plan {
    pub(super) fn lines(&self) -> usize {
        self.presence.lines() + self.directory.lines() + self.cells + self.marks.div_ceil(MARKS)
    }

    /// Settles each /24 that has longer prefixes, in order.
    fn for_each_network(&self, ranks: &Ranks, mut each: impl FnMut(u32, Network<'_>)) {
        let mut marks = [0; 256];
        for keys in self
            .long
            .chunk_by(|left, right| left.network() == right.network())
        {
            let network = keys[0].network();
            let rest = self.directory.painted(network);
            let rank = Mark(u32::from(rest))
                .get()
                .map_or(0, |(list, _)| ranks.of(list));
            each(network, settle(keys, rest, rank, &mut marks));
        }
    }

    /// Writes the lines, which begin where presence does.
    pub(super) fn write(&self, header: &mut Line, lines: &mut [Line], ranks: &Ranks) {
        let directory = PRESENCE + self.presence.lines();
        let first_cell = directory + self.directory.lines();
        Field::PRESENCE_SHIFT.set(header, self.presence.shift().into());
        let first_entry = (directory * ENTRIES) as u64;
        let unknown = u64::from(self.directory.first * NETWORKS);
        Field::DIRECTORY.set(header, first_entry.wrapping_sub(unknown));
        let (presence, rest) = lines.split_at_mut(self.presence.lines());
        self.presence.write(presence);
        let (directory, rest) = rest.split_at_mut(self.directory.lines());
        let (cells, mark_lines) = rest.split_at_mut(self.cells);
        let entries: &mut [u32] = bytemuck::cast_slice_mut(directory);
        let marks: &mut [u16] = bytemuck::cast_slice_mut(mark_lines);
        let mut set = |network: u32, entry: u32| entries[self.directory.at(network)] = entry;
        let all = |mark: u16| ENTRY_ALL << ENTRY_KIND_SHIFT | u32::from(mark);
        // What is not written costs no memory.
        self.directory
            .for_each_painted(|network, mark| set(network, all(mark)));
        // Cells and marks are counted from line 0, so that no reader needs the header to find them.
        // Even if every IPv4 address has a mark of its own, there are fewer than 2^28 lines before
        // the last cell.
        let marks_before = (first_cell + self.cells) * MARKS;
        let (mut cell_count, mut mark_count) = (0, 0);
        self.for_each_network(ranks, |network, found| {
            let entry = match found {
                Network::All(mark) => all(mark),
                Network::Lone { octet, mark } => {
                    ENTRY_LONE << ENTRY_KIND_SHIFT | u32::from(octet) << 16 | u32::from(mark)
                }
                Network::Pair {
                    octets: [a, b],
                    mark,
                } => {
                    let octets = u32::from(a) | u32::from(b) << 8;
                    let number = u32::from(mark) & Mark::NUMBER;
                    ENTRY_PAIR << ENTRY_KIND_SHIFT | octets << 9 | number
                }
                Network::Cell(cell) => {
                    cells[cell_count] = cell.line((marks_before + mark_count) as u64);
                    let end = mark_count + cell.marks.len();
                    marks[mark_count..end].copy_from_slice(cell.marks);
                    mark_count = end;
                    cell_count += 1;
                    let cell = (first_cell + cell_count - 1) as u32;
                    ENTRY_CELL << ENTRY_KIND_SHIFT | cell
                }
            };
            set(network, entry);
        });
    }
}

impl Cell<'_> {
    /// As [`portcullis_ebpf_common::snapshot`] describes it.
    fn line(&self, marks: u64) -> Line {
        let [a, b, c, d] = self.bits;
        let counts = [a, b, c].map(u64::count_ones).map(u64::from);
        let before_2 = counts[0] + counts[1];
        let before = counts[0] | before_2 << 8 | (before_2 + counts[2]) << 16;
        let kinds = u64::from(self.rest) | u64::from(self.uniform) << 16;
        [a, b, c, d, marks | before << CELL_MARKS_BITS, kinds, 0, 0]
    }
}

/// The form of one /24: its sorted keys, painted over the mark of its short prefixes.
fn settle<'a>(keys: &[Long], rest: u16, rank: u8, marks: &'a mut [u16; 256]) -> Network<'a> {
    if rest == 0
        && let Some(network) = addresses_of_one_list(keys)
    {
        return network;
    }
    marks.fill(rest);
    for key in keys {
        if key.rank() >= rank {
            let first = usize::from(key.octet());
            marks[first..first + (1 << (32 - key.length()))].fill(key.mark());
        }
    }
    let mut bits = [0; 4];
    let mut count = 0;
    let mut uniform = 0;
    let mut differ = false;
    for octet in 0..256 {
        let mark = marks[octet];
        if mark != rest {
            bits[octet >> 6] |= 1 << (octet & 63);
            differ |= count > 0 && mark != uniform;
            uniform = mark;
            // Those that count move to the front, where the cell will find them.
            marks[count] = mark;
            count += 1;
        }
    }
    match count {
        0 => Network::All(rest),
        256 if !differ => Network::All(uniform),
        1 if rest == 0 => Network::Lone {
            octet: lone(bits),
            mark: uniform,
        },
        _ => Network::Cell(Cell {
            bits,
            rest,
            uniform: if differ { 0 } else { uniform },
            marks: if differ { &marks[..count] } else { &[] },
        }),
    }
}

/// Most /24s hold a few single addresses of one list and nothing else: no need to look at the other
/// 250.
fn addresses_of_one_list<'a>(keys: &[Long]) -> Option<Network<'a>> {
    let first = keys.first()?;
    // All but the octet.
    let same = |key: &Long| key.0 >> 8 == first.0 >> 8;
    if first.length() != 32 || !keys.iter().all(same) {
        return None;
    }
    let mut bits = [0_u64; 4];
    for key in keys {
        bits[usize::from(key.octet() >> 6)] |= 1 << (key.octet() & 63);
    }
    let mark = first.mark();
    Some(match bits.iter().map(|word| word.count_ones()).sum() {
        1 => Network::Lone {
            octet: lone(bits),
            mark,
        },
        // Sorted by the octet: the last differs from the first.
        2 => Network::Pair {
            octets: [first.octet(), keys.last()?.octet()],
            mark,
        },
        256 => Network::All(mark),
        _ => Network::Cell(Cell {
            bits,
            rest: 0,
            uniform: mark,
            marks: &[],
        }),
    })
}

/// The place of the only bit.
fn lone(bits: [u64; 4]) -> u8 {
    (0..)
        .zip(bits)
        .find(|(_, word)| *word != 0)
        .map_or(0, |(at, word)| at * 64 + word.trailing_zeros() as u8)
}
