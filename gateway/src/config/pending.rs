//! A configuration whose lists are not in force yet.
//!
//! What the files hold is compared with the lists before, and only then asked memory for
//! ([`lists`](crate::lists)); both takes what the rest of the configuration says: whom no list may
//! refuse, and whether there is a filter. So the rest comes first.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::document::Document;
use super::error::{Error, Errors, Position};
use super::{Config, NextHop};
use crate::lists::guard::{Guard, Protected, ProtectedRole};
use crate::lists::{Placed, Read};

/// A configuration that was read, and what the files of its lists hold.
#[derive(Debug)]
pub struct Pending {
    /// All but the lists: its policy has none.
    pub config: Config,
    /// What the files hold; `None` if there are no lists, or they were left alone.
    pub read: Option<Read>,
    /// What was found in the text, with the place in the file.
    warnings: Vec<(usize, Error)>,
    places: Option<Places>,
}

/// The line of the configuration at which a doubt about lists is reported.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// That customers do not reach a listener.
    customers: (usize, Position),
    /// That a list holds a local network.
    local: (usize, Position),
}

impl Places {
    pub(super) fn new(
        document: &Document<'_>,
        customers: &Range<usize>,
        local: &Range<usize>,
    ) -> Self {
        let place = |span: &Range<usize>| (span.start, Position::of(document.text, span.clone()));
        Self {
            customers: place(customers),
            local: place(local),
        }
    }
}

impl Pending {
    pub(super) fn new(
        config: Config,
        read: Option<Read>,
        warnings: Vec<(usize, Error)>,
        places: Places,
    ) -> Self {
        Self {
            config,
            read,
            warnings,
            places: Some(places),
        }
    }

    /// The configuration that is in force, with its files of lists read again. What is doubtful
    /// about the lists is its only warning.
    ///
    /// # Errors
    /// Every fault of the files.
    pub fn again(config: &Config) -> Result<Self, Errors> {
        let mut config = config.clone();
        let (read, doubts) = config.lists.read_again()?;
        let warnings = doubts.into_iter().map(|doubt| (usize::MAX, doubt));
        Ok(Self {
            config,
            read: Some(read),
            warnings: warnings.collect(),
            places: None,
        })
    }

    /// What is found in the text, and in the files of the lists.
    pub fn warnings(&self) -> impl Iterator<Item = &Error> {
        self.warnings.iter().map(|(_, warning)| warning)
    }

    /// The configuration with these lists. Its warnings are those of the text and of the files, and
    /// what is doubtful about the lists under it.
    #[must_use]
    pub fn with(self, placed: Placed) -> Config {
        let Self {
            mut config,
            mut warnings,
            places,
            ..
        } = self;
        let lists = &placed.compiled;
        let file = config.path.clone().unwrap_or_default();
        let mut warn = |place: Option<(usize, Position)>, doubts: Vec<String>| {
            let (at, position) =
                place.map_or((usize::MAX, None), |(at, position)| (at, Some(position)));
            warnings.extend(doubts.into_iter().map(|doubt| {
                let position = position.clone();
                let doubt = Error::whole_file(&file, doubt);
                (at, Error { position, ..doubt })
            }));
        };
        let (customers, local) = match places {
            Some(Places { customers, local }) => (Some(customers), Some(local)),
            None => (None, None),
        };
        warn(customers, config.customer_doubts(lists));
        warn(local, config.list_doubts(lists));
        warn(None, placed.warnings);
        warnings.sort_by_key(|(at, _)| *at);
        config.warnings = warnings.into_iter().map(|(_, warning)| warning).collect();
        config.policy = Arc::new(config.policy.with_lists(placed.compiled));
        config
    }

    /// The configuration with its lists in memory of this process, whatever was in force before:
    /// to look at it.
    ///
    /// # Errors
    /// A snapshot that changed after it was found good.
    pub fn unchecked(mut self) -> Result<Config, Errors> {
        let Some(read) = self.read.take() else {
            let warnings = self.warnings().cloned().collect();
            return Ok(Config {
                warnings,
                ..self.config
            });
        };
        let placed = read.unchecked().place(None)?;
        Ok(self.with(placed))
    }
}

impl Config {
    /// What the guard needs to judge its lists, from the configuration.
    pub fn guard(&self) -> Guard {
        Guard {
            shrink_max: self.lists.shrink_max,
            grow_max: self.lists.grow_max,
            protected: self.protected(),
        }
    }

    /// The protected addresses, which no list may newly refuse, that the configuration names.
    fn protected(&self) -> Vec<Protected> {
        let networks = self.policy.networks();
        let networks = networks.map(|net| Protected::new(net, ProtectedRole::LocalNetwork));
        let own = self.policy.addresses().iter();
        let own = own.map(|address| Protected::address(*address, ProtectedRole::Gate));
        let hops = self.routes.iter().flat_map(|route| &route.next_hops);
        let hops = hops.flat_map(NextHop::addresses);
        let hops = hops.map(|hop| Protected::address(hop.ip(), ProtectedRole::NextHop));
        let servers = self.dnsbl.servers.iter();
        let servers =
            servers.map(|server| Protected::address(server.ip(), ProtectedRole::NameServer));
        let fronts = self.fronts();
        let fronts = fronts.map(|net| Protected::new(net, ProtectedRole::Front));
        let all = networks.chain(own).chain(hops).chain(servers).chain(fronts);
        let all = all.flatten();
        let mut distinct = Vec::new();
        for protected in all {
            if !distinct.contains(&protected) {
                distinct.push(protected);
            }
        }
        distinct
    }
}

/// One whose lists are what they are.
impl From<Config> for Pending {
    fn from(config: Config) -> Self {
        Self {
            warnings: config.warnings.iter().cloned().map(|it| (0, it)).collect(),
            read: None,
            places: None,
            config,
        }
    }
}

/// The fault of a file as a whole.
impl From<crate::lists::file::Error> for Errors {
    fn from(error: crate::lists::file::Error) -> Self {
        let path: &Path = &error.path;
        Self(vec![Error::whole_file(path, error.to_string())])
    }
}
