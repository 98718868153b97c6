//! From compiled lists to a generation in force.
//!
//! A list keeps its slot, and with it its counters, for as long as a list of its name and action is in force, whatever
//! its place in the configuration. A new generation is built beside the old one: slots and names first, then the trie,
//! then the one update that puts it in place. A process that dies in between leaves the old generation with its names.

use std::net::IpAddr;

use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use portcullis_ebpf_common::layout::{
    GENERATION_KEY, GENERATION_KEY_BITS, LIST_NAME_MAX, LIST_SLOTS,
};
use portcullis_ebpf_common::packet::FAMILY_BITS;
use portcullis_ebpf_common::{Action, Class, Source};

use super::Error;
use super::error::kernel;
use super::maps::{Maps, Trie, list_record, text};
use super::settings::check_list_count;
use crate::policy::lists::{Compiled, ListAction};

/// `BPF_F_NO_PREALLOC`, without which the kernel makes no trie.
const NO_PREALLOC: u32 = 1;

/// A list in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KernelList {
    pub(super) name: String,
    pub(super) class: Class,
    pub(super) action: Action,
    /// Its place in the configuration.
    pub(super) position: u32,
    pub(super) entries: u64,
}

/// All lists that are in force together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Generation {
    /// Every swap adds one; 0 if there never were any lists.
    pub(super) number: u32,
    /// In the order of the configuration.
    pub(super) lists: Vec<KernelList>,
}

/// The generation in force.
pub(super) fn in_force(maps: &Maps) -> Result<Generation, Error> {
    let Some(trie) = maps.lists()? else {
        return Ok(Generation::default());
    };
    let key = Key::new(GENERATION_KEY_BITS, GENERATION_KEY);
    let number = trie
        .get(&key, 0)
        .map_err(kernel("reading the generation of the lists"))?;
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
            });
        }
    }
    lists.sort_by_key(|list| list.position);
    Ok(Generation { number, lists })
}

/// Puts compiled lists in place of the generation in force, and gives the new one. Lists that only SMTP acts on are left
/// out.
pub(super) fn swap(
    maps: &mut Maps,
    old: &Generation,
    compiled: &Compiled,
) -> Result<Generation, Error> {
    let number = old.number.wrapping_add(1);
    let new = assign(&old.lists, compiled)?;
    for list in new.iter().flatten() {
        if !old.lists.iter().any(|before| before.class == list.class) {
            maps.clear_list_counters(list.class.slot())?;
        }
    }
    let trie = build(compiled, &new, number)?;
    let empty = list_record("", Class::NONE.0, 0, 0);
    let mut records = vec![empty; LIST_SLOTS as usize];
    for list in new.iter().flatten() {
        if let Some(record) = records.get_mut(list.class.slot() as usize) {
            *record = list_record(&list.name, list.class.0, list.position, list.entries);
        }
    }
    for (slot, record) in (0..).zip(records) {
        maps.set_list_record(number % 2, slot, record)?;
    }
    maps.swap_lists(&trie)?;
    let lists = new.into_iter().flatten().collect();
    Ok(Generation { number, lists })
}

/// What each of the compiled lists is in the kernel; `None` for one that does not go there.
fn assign(old: &[KernelList], compiled: &Compiled) -> Result<Vec<Option<KernelList>>, Error> {
    let actions = compiled.lists.iter().map(|list| match list.action {
        ListAction::Permit => Some(Action::Permit),
        ListAction::Drop => Some(Action::Drop),
        ListAction::Reject => None,
    });
    check_list_count(actions.clone().flatten().count())?;
    // A slot of the old generation is not free even if its list is gone: packets still count on it until the swap.
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
        let class = match kept {
            Some(before) => before.class,
            None => Class::new(action, free.next().ok_or_else(|| too_many(compiled))?),
        };
        assigned.push(Some(KernelList {
            name: list.name.clone(),
            class,
            action,
            position,
            entries: list.entries,
        }));
    }
    Ok(assigned)
}

/// There are two slots for each list, so this is said only of a configuration that was never checked.
fn too_many(compiled: &Compiled) -> Error {
    Error::TooMany {
        what: "lists",
        number: compiled.lists.len(),
        max: LIST_SLOTS as usize / 2,
    }
}

/// A trie that holds all prefixes and its generation.
fn build(
    compiled: &Compiled,
    lists: &[Option<KernelList>],
    generation: u32,
) -> Result<Trie, Error> {
    let step = "filling the lists";
    let class = |index: u16| {
        lists
            .get(usize::from(index))
            .and_then(Option::as_ref)
            .map(|list| list.class)
    };
    let entries = compiled
        .prefixes
        .iter()
        .filter_map(|(prefix, index)| Some((prefix, class(*index)?)));
    let number = entries.clone().count();
    let size = u32::try_from(number + 1).map_err(kernel(step))?;
    let mut trie = Trie::create(size, NO_PREALLOC).map_err(kernel(step))?;
    for (prefix, class) in entries {
        let (bits, source) = key(prefix);
        trie.insert(&Key::new(bits, source.0), class.0, 0)
            .map_err(kernel(step))?;
    }
    let key = Key::new(GENERATION_KEY_BITS, GENERATION_KEY);
    trie.insert(&key, generation, 0).map_err(kernel(step))?;
    Ok(trie)
}

/// A prefix as the trie has it: its length with the family in front, and its first address.
fn key(prefix: &IpNet) -> (u32, Source) {
    let source = match prefix.network() {
        IpAddr::V4(address) => Source::ipv4(address.octets()),
        IpAddr::V6(address) => Source::ipv6(address.octets()),
    };
    (FAMILY_BITS + u32::from(prefix.prefix_len()), source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::lists::List;

    fn compiled(lists: &[(&str, ListAction)]) -> Compiled {
        Compiled {
            lists: lists
                .iter()
                .map(|(name, action)| List {
                    name: (*name).to_owned(),
                    action: *action,
                    entries: 1,
                })
                .collect(),
            ..Compiled::default()
        }
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
        let first = assign(&[], &compiled(&[("a", Drop), ("b", Permit), ("c", Drop)])).unwrap();
        assert_eq!(slots(&first), [Some(0), Some(1), Some(2)]);
        let old: Vec<_> = first.into_iter().flatten().collect();
        let second = assign(&old, &compiled(&[("c", Drop), ("new", Drop), ("a", Drop)])).unwrap();
        assert_eq!(slots(&second), [Some(2), Some(3), Some(0)]);
    }

    #[test]
    fn a_slot_of_the_generation_in_force_is_not_given_to_another_list() {
        let old: Vec<_> = assign(&[], &compiled(&[("a", ListAction::Drop)]))
            .unwrap()
            .into_iter()
            .flatten()
            .collect();
        let renamed = assign(&old, &compiled(&[("b", ListAction::Drop)])).unwrap();
        assert_eq!(slots(&renamed), [Some(1)]);
        let turned = assign(&old, &compiled(&[("a", ListAction::Permit)])).unwrap();
        assert_eq!(
            slots(&turned),
            [Some(1)],
            "drops of the old list would count as permits of the new one"
        );
    }

    #[test]
    fn a_list_for_smtp_only_does_not_go_into_the_kernel() {
        let lists = compiled(&[("reject", ListAction::Reject), ("drop", ListAction::Drop)]);
        assert_eq!(slots(&assign(&[], &lists).unwrap()), [None, Some(0)]);
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
        let old: Vec<_> = assign(&[], &of(&names[..256]))
            .unwrap()
            .into_iter()
            .flatten()
            .collect();
        let renamed: Vec<String> = names[..256]
            .iter()
            .map(|name| format!("{name}-new"))
            .collect();
        assert_eq!(assign(&old, &of(&renamed)).unwrap().len(), 256);
        assert!(matches!(
            assign(&[], &of(&names)),
            Err(Error::TooMany { number: 257, .. })
        ));
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused_by_name() {
        let long = "x".repeat(LIST_NAME_MAX + 1);
        let error = assign(&[], &compiled(&[(&long, ListAction::Drop)])).unwrap_err();
        assert!(error.to_string().contains(&long), "{error}");
        assert!(assign(&[], &compiled(&[("", ListAction::Drop)])).is_err());
    }

    #[test]
    fn a_prefix_of_one_family_never_covers_the_other() {
        let (bits, source) = key(&"::/0".parse().unwrap());
        assert_eq!(bits, 32);
        assert_ne!(source.0[0], key(&"0.0.0.0/0".parse().unwrap()).1.0[0]);
        let (bits, source) = key(&"192.0.2.77/24".parse().unwrap());
        assert_eq!((bits, source), (56, Source::ipv4([192, 0, 2, 0])));
    }
}
