//! The snapshot of the lists in force, and the lookup of an address in it.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use aya_ebpf::macros::btf_map;
use portcullis_ebpf_common::layout::SNAPSHOT_FLAGS;
use portcullis_ebpf_common::snapshot::{self, Line, Lines, Mark};
use portcullis_ebpf_common::{Class, Lookup, Source};

type SnapshotMap = Array<Line, 1, SNAPSHOT_FLAGS>;

#[btf_map]
static SNAPSHOT: ArrayOfMaps<SnapshotMap, 1> = ArrayOfMaps::new();

/// The lines of the snapshot that was in force when they were asked for: one packet sees one generation.
struct InMap<'a>(&'a SnapshotMap);

impl Lines for InMap<'_> {
    type Lent<'a>
        = &'a Line
    where
        Self: 'a;

    #[inline(always)]
    fn line(&self, index: u32) -> Option<&Line> {
        self.0.get(index)
    }
}

/// The generation in force.
pub(crate) struct InForce;

impl Lookup for InForce {
    #[inline(always)]
    fn class(&self, source: &Source) -> Class {
        let Some(map) = SNAPSHOT.get(0) else {
            return Class::NONE;
        };
        let lines = InMap(map);
        if source.is_ipv4() {
            let mark = snapshot::ipv4(&lines, u32::from_be(source.0[1]));
            snapshot::class_of(&lines, mark)
        } else {
            let (upper, lower) = snapshot::halves(source);
            Class(ipv6_class(upper, lower))
        }
    }

    #[inline(always)]
    fn class_of_destination(&self, destination: &Source) -> Class {
        Class(out_of_line(destination))
    }
}

/// A second copy of the lookup, out of the way of the first.
#[inline(never)]
fn out_of_line(address: &Source) -> u32 {
    InForce.class(address).0
}

/// A global function, which the verifier looks at once, by itself, and not again on every way that leads to it: it has to
/// follow the loops over the prefix lengths.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ipv6_class(upper: u64, lower: u64) -> u32 {
    let Some(map) = SNAPSHOT.get(0) else {
        return Class::NONE.0;
    };
    let lines = InMap(map);
    let mark: Mark = snapshot::ipv6(&lines, upper, lower);
    snapshot::class_of(&lines, mark).0
}
