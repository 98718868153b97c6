//! From compiled lists to a generation in force.
//!
//! A list keeps its slot, and with it its counters, for as long as a list of its name and action is
//! in force, whatever its place in the configuration. A new generation is built beside the old one:
//! slots and names first, then what the lists are in the snapshot, then the one update that puts it
//! in place. A process that dies in between leaves the old generation with its names.

use portcullis_ebpf_common::layout::{LIST_NAME_MAX, LIST_SLOTS, ListCounters, ListRecord};
use portcullis_ebpf_common::snapshot::{CLASSES, FIRST_FREE, Field, Line};
use portcullis_ebpf_common::{Action, Class};

use super::Error;
use super::maps::{Maps, padded, text};
use super::memory::{KernelMemory, blocks_of};
use super::settings::check_list_count;
use crate::lists::{Compiled, ListAction, Memory as _};

/// A list in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KernelList {
    pub(super) name: String,
    pub(super) class: Class,
    pub(super) action: Action,
    /// Its place in the configuration.
    pub(super) position: u32,
    pub(super) entries: u64,
    /// What its slot had counted when it took it.
    pub(super) counted_before: ListCounters,
}

/// All lists that are in force together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Generation {
    /// Every swap adds one; 0 if there never were any lists.
    pub(super) number: u32,
    /// The blocks of its snapshot.
    pub(super) blocks: u32,
    /// And its lines.
    pub(super) lines: usize,
    /// In the order of the configuration.
    pub(super) lists: Vec<KernelList>,
}

/// The generation in force.
pub(super) fn in_force(maps: &Maps) -> Result<Generation, Error> {
    let Some(header) = maps.snapshot_header()? else {
        return Ok(Generation::default());
    };
    let number = Field::GENERATION.of(&header) as u32;
    let mut lists = Vec::new();
    for slot in 0..LIST_SLOTS {
        let record = maps.list_record(number % 2, slot)?;
        let class = Class(record.class);
        if let Some(action) = class.action() {
            lists.push(KernelList {
                name: text(&record.name),
                class,
                action,
                position: record.position,
                entries: record.entries,
                counted_before: record.counted_before,
            });
        }
    }
    lists.sort_by_key(|list| list.position);
    let lines = Field::LINES.of(&header) as usize;
    Ok(Generation {
        number,
        blocks: blocks_of(lines),
        lines,
        lists,
    })
}

/// Puts compiled lists in place of the generation in force, and gives the new one. Lists that only
/// SMTP acts on are left out.
pub(super) fn swap(
    maps: &mut Maps,
    old: &Generation,
    compiled: &Compiled,
) -> Result<Generation, Error> {
    let number = old.number.wrapping_add(1);
    let counted = maps.counted()?;
    let new = assign(&old.lists, compiled, |slot| counted.list(slot))?;
    let copy;
    let memory = match compiled.filtered.memory::<KernelMemory>() {
        Some(memory) => memory,
        None => {
            copy = copied(compiled.filtered.lines())?;
            &copy
        }
    };
    let mut records = vec![FREE; LIST_SLOTS as usize];
    for list in new.iter().flatten() {
        if let Some(record) = records.get_mut(list.class.slot() as usize) {
            *record = ListRecord {
                name: padded(&list.name),
                class: list.class.0,
                position: list.position,
                entries: list.entries,
                counted_before: list.counted_before,
            };
        }
    }
    for (slot, record) in (0..).zip(records) {
        maps.set_list_record(number % 2, slot, record)?;
    }
    let fixed = memory.lines().get(CLASSES..FIRST_FREE);
    let before = fixed.map(<[Line]>::to_vec).unwrap_or_default();
    let set_classes = |lines: &[Line]| {
        for (line, classes) in (CLASSES..FIRST_FREE).zip(lines) {
            memory.set_line(line, *classes);
        }
    };
    set_classes(&class_lines(&new));
    // The memory may be in force already, and stays so after an error.
    maps.swap_snapshot(memory, number, old.blocks)
        .inspect_err(|_| set_classes(&before))?;
    let lists = new.into_iter().flatten().collect();
    Ok(Generation {
        number,
        blocks: memory.block_count(),
        lines: memory.lines().len(),
        lists,
    })
}

/// The record of a slot that no list has.
const FREE: ListRecord = ListRecord {
    name: [0; LIST_NAME_MAX],
    class: Class::NONE.0,
    position: 0,
    entries: 0,
    counted_before: [0; 2],
};

/// The kernel's form of each compiled list; `None` for one that does not go there. A list that
/// takes a new slot keeps in `counted_before` what the counter of the slot shows.
fn assign(
    old: &[KernelList],
    compiled: &Compiled,
    counted: impl Fn(u32) -> ListCounters,
) -> Result<Vec<Option<KernelList>>, Error> {
    let actions = compiled.lists.iter().map(|list| match list.action {
        ListAction::Permit => Some(Action::Permit),
        ListAction::Drop => Some(Action::Drop),
        ListAction::HardDrop => Some(Action::HardDrop),
        ListAction::Reject => None,
    });
    check_list_count(actions.clone().flatten().count())?;
    // A slot of the old generation is not free even if its list is gone: packets still count on it
    // until the swap.
    let slots = 0..u16::try_from(LIST_SLOTS).unwrap_or(u16::MAX);
    let mut free =
        slots.filter(|slot| !old.iter().any(|list| list.class.slot() == u32::from(*slot)));
    let mut assigned = Vec::with_capacity(compiled.lists.len());
    for ((position, list), action) in (0..).zip(&compiled.lists).zip(actions) {
        let Some(action) = action else {
            assigned.push(None);
            continue;
        };
        if list.name.is_empty() || list.name.len() > LIST_NAME_MAX || list.name.contains('\0') {
            return Err(Error::ListName {
                name: list.name.clone(),
                max: LIST_NAME_MAX,
            });
        }
        let kept = old
            .iter()
            .find(|before| before.name == list.name && before.action == action);
        let (class, counted_before) = match kept {
            Some(before) => (before.class, before.counted_before),
            None => {
                let slot = free.next().ok_or_else(|| too_many(compiled))?;
                (Class::new(action, slot), counted(u32::from(slot)))
            }
        };
        assigned.push(Some(KernelList {
            name: list.name.clone(),
            class,
            action,
            position,
            entries: list.entries,
            counted_before,
        }));
    }
    Ok(assigned)
}

/// There are two slots for each list, so this is said only of a configuration that was never
/// checked.
fn too_many(compiled: &Compiled) -> Error {
    Error::TooMany {
        what: "lists",
        number: compiled.lists.len(),
        max: LIST_SLOTS as usize / 2,
    }
}

/// A snapshot of our own memory in a map.
fn copied(lines: &[Line]) -> Result<KernelMemory, Error> {
    let mut memory = KernelMemory::new(lines.len())?;
    // What is zero is so already, and most of a small snapshot is: a page that is not touched is
    // not mapped.
    for (to, from) in memory.lines_mut().iter_mut().zip(lines) {
        if *from != Line::default() {
            *to = *from;
        }
    }
    Ok(memory)
}

/// The lines that say what each list is in the kernel.
fn class_lines(lists: &[Option<KernelList>]) -> [Line; FIRST_FREE - CLASSES] {
    let mut lines = [Line::default(); FIRST_FREE - CLASSES];
    let classes = bytemuck::cast_slice_mut::<Line, u32>(&mut lines);
    for (class, list) in classes.iter_mut().zip(lists) {
        *class = list.as_ref().map_or(Class::NONE, |list| list.class).0;
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;

    use super::*;
    use crate::filter::pins::Pins;
    use crate::filter::{links, memory};
    use crate::lists::List;

    fn compiled(lists: &[(&str, ListAction)]) -> Compiled {
        Compiled {
            lists: lists
                .iter()
                .map(|(name, action)| List {
                    name: (*name).to_owned(),
                    action: *action,
                    entries: 1,
                    ipv6_entries: 0,
                    covered: None,
                    file: None,
                })
                .collect(),
            ..Compiled::default()
        }
    }

    /// Pins that go, whatever becomes of the test.
    struct Removed(String);

    impl Drop for Removed {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Lists over all of IPv4 have two blocks.
    fn of_two_blocks() -> Compiled {
        let ends = ["0.0.0.1/32", "255.255.255.254/32"].map(|net| net.parse().unwrap());
        let list = compiled(&[("wide", ListAction::Drop)]).lists.remove(0);
        Compiled::build(vec![(list, ends.into_iter().collect())], memory::memory)
    }

    #[test]
    fn only_the_blocks_in_force_are_held() {
        if !crate::netns::permitted() {
            let skipped = "SKIPPED (needs root): blocks of lists that are exchanged";
            let _ = writeln!(std::io::stderr(), "{skipped}");
            return;
        }
        let root = Removed(format!(
            "/sys/fs/bpf/portcullis-test-blocks-{}",
            std::process::id()
        ));
        let pins = Pins::new(Path::new(&root.0));
        let _lock = pins.prepare().unwrap();
        links::create_maps(&pins).unwrap();
        Maps::create_records(&pins).unwrap();
        let mut maps = Maps::open(&pins).unwrap();
        let (narrow, wide) = (compiled(&[("narrow", ListAction::Drop)]), of_two_blocks());
        let mut generation = Generation::default();
        for (lists, held) in [
            (&narrow, vec![0]),
            (&wide, vec![0, 1]),
            (&wide, vec![0, 65]),
            (&narrow, vec![0]),
            (&wide, vec![0, 65]),
            (&narrow, vec![0]),
        ] {
            generation = swap(&mut maps, &generation, lists).unwrap();
            assert_eq!(maps.held_blocks(), held, "generation {}", generation.number);
            assert_eq!(in_force(&maps).unwrap(), generation);
        }
        // A process that ends before it exchanges them.
        let left = wide.filtered.memory::<KernelMemory>().unwrap();
        maps.put_block(left, generation.number + 1, 1);
        assert_eq!(maps.held_blocks(), [0, 65]);
        maps.sweep_snapshot(generation.number);
        assert_eq!(maps.held_blocks(), [0]);
    }

    fn slots_for(
        old: &[KernelList],
        compiled: &Compiled,
    ) -> Result<Vec<Option<KernelList>>, Error> {
        assign(old, compiled, |_| [0; 2])
    }

    fn slots(assigned: &[Option<KernelList>]) -> Vec<Option<u32>> {
        assigned
            .iter()
            .map(|list| list.as_ref().map(|list| list.class.slot()))
            .collect()
    }

    #[test]
    fn a_list_keeps_its_counters_when_the_configuration_is_reordered() {
        use ListAction::{Drop, Permit};
        let first = slots_for(&[], &compiled(&[("a", Drop), ("b", Permit), ("c", Drop)])).unwrap();
        assert_eq!(slots(&first), [Some(0), Some(1), Some(2)]);
        let old: Vec<_> = first.into_iter().flatten().collect();
        let second =
            slots_for(&old, &compiled(&[("c", Drop), ("new", Drop), ("a", Drop)])).unwrap();
        assert_eq!(slots(&second), [Some(2), Some(3), Some(0)]);
    }

    #[test]
    fn a_slot_of_the_generation_in_force_is_not_given_to_another_list() {
        let old: Vec<_> = slots_for(&[], &compiled(&[("a", ListAction::Drop)]))
            .unwrap()
            .into_iter()
            .flatten()
            .collect();
        let renamed = slots_for(&old, &compiled(&[("b", ListAction::Drop)])).unwrap();
        assert_eq!(slots(&renamed), [Some(1)]);
        let turned = slots_for(&old, &compiled(&[("a", ListAction::Permit)])).unwrap();
        assert_eq!(
            slots(&turned),
            [Some(1)],
            "drops of the old list would count as permits of the new one"
        );
    }

    #[test]
    fn a_list_for_smtp_only_does_not_go_into_the_kernel() {
        let lists = compiled(&[("reject", ListAction::Reject), ("drop", ListAction::Drop)]);
        assert_eq!(slots(&slots_for(&[], &lists).unwrap()), [None, Some(0)]);
    }

    #[test]
    fn every_list_can_be_renamed_at_once_at_the_limit_and_one_more_is_refused() {
        let names: Vec<String> = (0..257).map(|number| format!("list-{number}")).collect();
        let of = |names: &[String]| {
            let lists: Vec<_> = names
                .iter()
                .map(|name| (name.as_str(), ListAction::Drop))
                .collect();
            compiled(&lists)
        };
        let old: Vec<_> = slots_for(&[], &of(&names[..256]))
            .unwrap()
            .into_iter()
            .flatten()
            .collect();
        let renamed: Vec<String> = names[..256]
            .iter()
            .map(|name| format!("{name}-new"))
            .collect();
        assert_eq!(slots_for(&old, &of(&renamed)).unwrap().len(), 256);
        assert!(matches!(
            slots_for(&[], &of(&names)),
            Err(Error::TooMany { number: 257, .. })
        ));
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused_by_name() {
        let long = "x".repeat(LIST_NAME_MAX + 1);
        let error = slots_for(&[], &compiled(&[(&long, ListAction::Drop)])).unwrap_err();
        assert!(error.to_string().contains(&long), "{error}");
        assert!(slots_for(&[], &compiled(&[("", ListAction::Drop)])).is_err());
    }
}
