//! The grants in the kernel: addresses that pass, unless a hard drop list has them.
//!
//! The gate alone writes the map, from the grants that it holds. The program looks an address up
//! only if its hint is set. A grant is written before its hint, and a hint is cleared after its
//! last grant. Each grant ends by itself, at its time by CLOCK_MONOTONIC.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aya::maps::{HashMap, MapData};
use nix::libc;
use portcullis_ebpf_common::Source;
use portcullis_ebpf_common::layout::{GRANT_HINTS, grant_hint};
use rustc_hash::FxHashSet;

use super::Error;
use super::address::{of_source, source};
use super::batch;
use super::clock::{in_ns, now_ns};
use super::control::Control;
use super::error::{kernel, os_error};
use super::maps::{open, open_data};
use super::pins::Pins;

/// The grants of an attached filter. Several threads can use it at once.
pub struct Grants(Mutex<Maps>);

struct Maps {
    grants: HashMap<MapData, Key, u64>,
    /// The same map, to read all of it.
    map: MapData,
    control: Control,
    /// What the map holds.
    known: FxHashSet<Key>,
}

type Key = [u32; 5];

impl Grants {
    pub(super) fn of(pins: &Pins) -> Result<Self, Error> {
        let map = open_data(pins, "GRANTS")?;
        let all = batch::elements::<Key, u64>(&map).map_err(kernel("reading the grants"))?;
        Ok(Self(Mutex::new(Maps {
            grants: open(pins, "GRANTS")?,
            map,
            control: Control::open(pins)?,
            known: all.into_iter().map(|(key, _)| key).collect(),
        })))
    }

    /// Adds a grant, or renews it. It holds for `time`, and for no neighbour in an IPv6 /64.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the map cannot be written; it is full with 65,536.
    pub fn add(&self, address: IpAddr, time: Duration) -> Result<(), Error> {
        self.with(|maps| maps.add(address, time))
    }

    /// Removes grants.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the map cannot be written.
    pub fn remove(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        self.with(|maps| {
            let gone = addresses.iter().map(|address| source(*address).0);
            maps.remove(&gone.collect::<Vec<_>>())
        })
    }

    /// Has these grants and no others.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the map cannot be read or written.
    pub fn replace(&self, grants: &[(IpAddr, Duration)]) -> Result<(), Error> {
        self.with(|maps| {
            let new: FxHashSet<Key> = grants
                .iter()
                .map(|(address, _)| source(*address).0)
                .collect();
            let all = batch::elements::<Key, u64>(&maps.map);
            let all = all.map_err(kernel("reading the grants"))?;
            let old = all.into_iter().map(|(key, _)| key);
            let gone: Vec<Key> = old.filter(|key| !new.contains(key)).collect();
            maps.remove(&gone)?;
            let mut added = grants.iter();
            added.try_for_each(|(address, time)| maps.add(*address, *time))
        })
    }

    fn with(&self, change: impl FnOnce(&mut Maps) -> Result<(), Error>) -> Result<(), Error> {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The addresses with a grant in force, from the map of the program.
///
/// # Errors
/// [`Error::Kernel`] if it cannot be read.
pub(super) fn in_force(map: &MapData) -> Result<Vec<IpAddr>, Error> {
    let all = batch::elements::<Key, u64>(map).map_err(kernel("reading the grants"))?;
    let now_ns = now_ns();
    let in_force = all.into_iter().filter(|(_, until_ns)| now_ns < *until_ns);
    Ok(in_force.map(|(key, _)| of_source(key)).collect())
}

impl Maps {
    fn add(&mut self, address: IpAddr, time: Duration) -> Result<(), Error> {
        let source = source(address.to_canonical());
        let until_ns = now_ns().saturating_add(in_ns(time));
        let result = self.grants.insert(source.0, until_ns, 0);
        result.map_err(kernel("writing a grant"))?;
        self.known.insert(source.0);
        self.control.set_grant_hint(grant_hint(&source.key()));
        Ok(())
    }

    fn remove(&mut self, gone: &[Key]) -> Result<(), Error> {
        for key in gone {
            match self.grants.remove(key) {
                Err(error) if os_error(&error) != Some(libc::ENOENT) => {
                    return Err(kernel("removing a grant")(error));
                }
                _ => self.known.remove(key),
            };
        }
        self.control.set_grant_hints(&self.hints());
        Ok(())
    }

    /// The hints of what the map holds.
    fn hints(&self) -> Vec<u64> {
        let mut words = vec![0_u64; GRANT_HINTS as usize / 64];
        for key in &self.known {
            let hint = grant_hint(&Source(*key).key());
            if let Some(word) = words.get_mut(hint as usize / 64) {
                *word |= 1 << (hint % 64);
            }
        }
        words
    }
}
