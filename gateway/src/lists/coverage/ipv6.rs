//! IPv6: the prefixes in the tables, laid beside each other as ranges.

use bytemuck::Pod;
use portcullis_ebpf_common::snapshot::{
    CLASSES, DEEP, Line, LongSlot, Mark, ShortSlot, TABLE_LINES, Table,
};

use super::{Covered, Lists, assigned, last_ipv6};

/// A range of IPv6 addresses and the list that decides about it.
type Range = (u128, u128, u16);

/// Counts what is newly refused for each list of `after`.
pub(super) fn count(before: &Lists<'_>, after: &Lists<'_>, newly: &mut [Covered]) {
    let all = [
        &after.0.filtered,
        &after.0.rejected,
        &before.0.filtered,
        &before.0.rejected,
    ]
    .map(|snapshot| flattened(ipv6_ranges(snapshot.lines())));
    // Between two of these nothing changes.
    let mut cuts: Vec<u128> = all
        .iter()
        .flatten()
        .flat_map(|&(first, last, _)| [Some(first), last.checked_add(1)])
        .flatten()
        .chain([0])
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut cursors = all.each_ref().map(|ranges| ranges.iter().peekable());
    for (at, &first) in cuts.iter().enumerate() {
        let last = cuts.get(at + 1).map_or(u128::MAX, |next| next - 1);
        let [new_filtered, new_rejected, old_filtered, old_rejected] =
            cursors.each_mut().map(|ranges| {
                while ranges.next_if(|range| range.1 < first).is_some() {}
                let here = ranges.peek().filter(|range| range.0 <= first);
                here.map(|range| range.2)
            });
        let list = after.refuses(new_filtered, new_rejected);
        if let Some(list) = list.and_then(|list| newly.get_mut(usize::from(list)))
            && before.refuses(old_filtered, old_rejected).is_none()
        {
            list.ipv6 += assigned(first, last);
        }
    }
}

/// The prefixes in both tables.
fn ipv6_ranges(lines: &[Line]) -> Vec<Range> {
    let mut ranges = Vec::new();
    let mut add = |address: u128, mark: u64| {
        if let Some((list, length)) = Mark(mark as u32).get() {
            ranges.push((address, last_ipv6(address, length), list));
        }
    };
    for [upper, mark] in slots::<ShortSlot>(lines, 1) {
        let is_deep = Mark(*mark as u32)
            .get()
            .is_some_and(|(_, length)| u32::from(length) == DEEP);
        if !is_deep {
            add(u128::from(*upper) << 64, *mark);
        }
    }
    for [upper, lower, mark, _] in slots::<LongSlot>(lines, 1 + TABLE_LINES) {
        add(u128::from(*upper) << 64 | u128::from(*lower), *mark);
    }
    ranges
}

/// The slots of the table whose head begins with this line.
fn slots<Slot: Pod>(lines: &[Line], head: usize) -> &[Slot] {
    const _: () = assert!(1 + 2 * TABLE_LINES == CLASSES);
    let Some(head) = lines.get(head..head + TABLE_LINES) else {
        return &[];
    };
    let head = head.as_flattened();
    if head[Table::LENGTH_COUNT] == 0 {
        return &[];
    }
    let first = head[Table::SLOTS] as usize;
    let slots: &[Slot] = bytemuck::cast_slice(lines);
    let end = first.saturating_add(head[Table::SLOT_COUNT] as usize);
    slots.get(first..end).unwrap_or_default()
}

/// Nested ranges as disjoint ones, in order: where one lies within another, the inner one decides.
fn flattened(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable_by_key(|&(first, last, _)| (first, std::cmp::Reverse(last)));
    let mut flat = Vec::with_capacity(ranges.len());
    let mut open: Vec<(u128, u16)> = Vec::new();
    // Where what is not told yet begins.
    let mut at = 0;
    let mut close = |open: &mut Vec<(u128, u16)>, at: &mut u128, up_to: Option<u128>| {
        while let Some(&(last, list)) = open.last() {
            let ends_before = up_to.is_none_or(|up_to| last < up_to);
            let end = match up_to {
                Some(up_to) if !ends_before => up_to.checked_sub(1),
                _ => Some(last),
            };
            if let Some(end) = end.filter(|end| *at <= *end) {
                flat.push((*at, end, list));
                *at = end.saturating_add(1);
            }
            if !ends_before {
                break;
            }
            open.pop();
            if last == u128::MAX {
                // What encloses it ends there, too.
                open.clear();
            }
        }
    };
    for (first, last, list) in ranges {
        close(&mut open, &mut at, Some(first));
        at = first;
        open.push((last, list));
    }
    close(&mut open, &mut at, None);
    flat
}
