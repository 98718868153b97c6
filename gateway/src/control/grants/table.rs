//! The grants themselves. Pure: the time is an argument, in seconds since 1970.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A grant for an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Grant {
    /// When it was added first, in seconds since 1970.
    pub(in super::super) since: u64,
    /// When it ends, in seconds since 1970.
    pub(in super::super) until: u64,
    /// For how many seconds it was added or renewed last; 0: not known.
    #[serde(default)]
    pub(in super::super) seconds: u64,
    /// Who wanted it: an operator, or a user of the POP server.
    pub(in super::super) by: String,
}

/// What became of a grant that was to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddResult {
    /// The address had none.
    Added,
    /// The address had one, which is replaced.
    Renewed,
    /// There are as many as there may be.
    NoRoom,
}

/// All grants, at most a fixed number.
pub(super) struct Table {
    grants: BTreeMap<IpAddr, Grant>,
    by_end: BTreeSet<(u64, IpAddr)>,
    max: usize,
}

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self {
            grants: BTreeMap::new(),
            by_end: BTreeSet::new(),
            max,
        }
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    pub(super) fn len(&self) -> usize {
        self.grants.len()
    }

    pub(super) fn get(&self, address: IpAddr) -> Option<&Grant> {
        self.grants.get(&address)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, &Grant)> {
        self.grants.iter().map(|(address, grant)| (*address, grant))
    }

    pub(super) fn add(&mut self, address: IpAddr, grant: Grant) -> AddResult {
        let before = self.grants.get(&address).map(|before| before.until);
        if before.is_none() && self.grants.len() >= self.max {
            return AddResult::NoRoom;
        }
        if let Some(until) = before {
            self.by_end.remove(&(until, address));
        }
        self.by_end.insert((grant.until, address));
        self.grants.insert(address, grant);
        debug_assert_eq!(self.grants.len(), self.by_end.len());
        if before.is_some() {
            AddResult::Renewed
        } else {
            AddResult::Added
        }
    }

    pub(super) fn remove(&mut self, address: IpAddr) -> Option<Grant> {
        let grant = self.grants.remove(&address)?;
        self.by_end.remove(&(grant.until, address));
        Some(grant)
    }

    /// Removes the grants that end now or have ended. Returns their addresses.
    pub(super) fn expire(&mut self, now: u64) -> Vec<IpAddr> {
        let mut over = Vec::new();
        while let Some(&(until, address)) = self.by_end.first()
            && until <= now
        {
            self.by_end.pop_first();
            self.grants.remove(&address);
            over.push(address);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(until: u64) -> Grant {
        Grant {
            since: 1,
            until,
            seconds: 1,
            by: String::new(),
        }
    }

    fn address(host: u8) -> IpAddr {
        [192, 0, 2, host].into()
    }

    #[test]
    fn a_grant_ends_at_its_last_end_and_not_at_an_earlier_one() {
        let mut table = Table::new(8);
        assert_eq!(table.add(address(1), grant(100)), AddResult::Added);
        assert_eq!(table.add(address(2), grant(50)), AddResult::Added);
        assert_eq!(table.add(address(1), grant(200)), AddResult::Renewed);
        assert_eq!(table.expire(49), [] as [IpAddr; 0]);
        assert_eq!(table.expire(199), [address(2)]);
        assert_eq!(table.get(address(1)), Some(&grant(200)));
        assert_eq!(table.expire(200), [address(1)]);
        assert_eq!((table.len(), table.by_end.len()), (0, 0));
    }

    #[test]
    fn a_full_table_renews_and_adds_no_more_until_one_is_removed() {
        let mut table = Table::new(2);
        table.add(address(1), grant(100));
        table.add(address(2), grant(100));
        assert_eq!(table.add(address(3), grant(100)), AddResult::NoRoom);
        assert_eq!(table.add(address(2), grant(300)), AddResult::Renewed);
        assert_eq!(table.remove(address(1)), Some(grant(100)));
        assert_eq!(table.remove(address(1)), None);
        assert_eq!(table.add(address(3), grant(100)), AddResult::Added);
    }
}
