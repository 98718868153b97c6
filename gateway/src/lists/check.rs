//! The second and the third stage: what was read is compared with the lists before, and only then
//! written into the memory that it is to lie in.
//!
//! What lists lost is seen from their numbers. What they would newly refuse is a question to all of
//! the address space, which is asked of a draft in memory of this process. Most lists need none:
//! what they cover at all is too little to be too much, and they hold nothing that is protected.
//! When the lists are placed elsewhere, a draft is freed before the other memory is taken: there
//! are never two copies.

use core::net::IpAddr;
use std::fmt;
use std::path::Path;

use super::file::{self, Stored};
use super::guard::{self, Growth, Guard, Loss};
use super::read::{From, Read, Settled};
use super::{Allocate, Compiled, List, ListAction, private};

/// What lists are compared with.
#[derive(Debug)]
pub enum Before<'a> {
    /// The last compile, as it was kept.
    Kept(&'a Stored),
    /// The lists in force.
    InForce {
        /// What they are.
        lists: &'a Compiled,
        /// When their files were read: seconds since 1970.
        compiled_at: u64,
        /// Where an operator may have forced others since.
        kept: &'a Path,
    },
}

/// Lists that may be put in force, and lie nowhere yet.
#[derive(Debug)]
pub struct Checked {
    settled: Settled,
    draft: Option<Compiled>,
    /// What could not be compared.
    warnings: Vec<String>,
    /// With no lists before: the guard, which then only warns.
    first: Option<Guard>,
}

/// Lists in their place.
#[derive(Debug, Default)]
pub struct Placed {
    /// The lists.
    pub compiled: Compiled,
    /// What an operator should look at.
    pub warnings: Vec<String>,
}

/// Why lists are refused.
#[derive(Debug, Default)]
pub struct Refusal {
    /// Lists that lost too much.
    pub losses: Vec<Loss>,
    /// Lists that would newly refuse too much.
    pub growths: Vec<Growth>,
    /// A snapshot that was good when it was opened, and is not any more.
    pub file: Option<file::Error>,
}

/// The most losses, and the most gains, that a refusal names.
const TOLD_MAX: usize = 10;

impl Refusal {
    /// Whether there is nothing to refuse.
    pub fn is_empty(&self) -> bool {
        self.losses.is_empty() && self.growths.is_empty() && self.file.is_none()
    }

    /// What is said of it, a line each; what to do is for the caller to say.
    pub fn lines(&self) -> Vec<String> {
        let losses = bounded(&self.losses, |loss| {
            format!("{loss} lost more than lists.shrink_max allows; is the file whole?")
        });
        let growths = bounded(&self.growths, |growth| {
            format!("{growth}; is the file right?")
        });
        let file = self.file.iter().map(ToString::to_string);
        losses.into_iter().chain(growths).chain(file).collect()
    }
}

fn bounded<T>(found: &[T], line: impl Fn(&T) -> String) -> Vec<String> {
    let more = found.len().saturating_sub(TOLD_MAX);
    let more = (more > 0).then(|| format!("and {more} more of the kind"));
    found.iter().take(TOLD_MAX).map(line).chain(more).collect()
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("; "))
    }
}

impl Read {
    /// Takes the lists as they are: to look at them, or because they were in force already.
    pub fn unchecked(self) -> Checked {
        Checked {
            settled: self.settle(),
            draft: None,
            warnings: Vec::new(),
            first: None,
        }
    }

    /// Takes the lists of a first compile, with none before: what is wide is only told.
    pub fn first(self, guard: &Guard) -> Checked {
        Checked {
            first: Some(guard.clone()),
            ..self.unchecked()
        }
    }

    /// Compares the lists with those before.
    ///
    /// # Errors
    /// Why they are refused.
    pub fn check(self, guard: &Guard, before: &Before<'_>) -> Result<Checked, Refusal> {
        let mut refusal = Refusal::default();
        let (lists, is_text) = (self.lists(), matches!(self.from, From::Text(_)));
        // Of a snapshot its own compile has seen to that.
        if is_text && !self.is_forced {
            refusal.losses = guard::losses(before.lists(), &lists, guard.shrink_max);
        }
        let needs_draft = !self.is_forced && self.may_have_grown(guard, &lists);
        let mut checked = self.unchecked();
        if needs_draft {
            match checked.settled.write(private) {
                Ok(draft) => {
                    match before.growths(&draft, guard) {
                        Ok(growths) => refusal.growths = growths,
                        Err(error) => checked.warnings.push(format!(
                            "{error}; what the lists cover is compared with nothing"
                        )),
                    }
                    checked.draft = Some(draft);
                }
                Err(error) => refusal.file = Some(error),
            }
        }
        if refusal.is_empty()
            || (is_text && before.is_meant(&refusal, checked.draft.as_ref(), guard))
        {
            Ok(checked)
        } else {
            Err(refusal)
        }
    }

    /// Whether lists may refuse too much, whatever they were before: no draft is needed if not.
    fn may_have_grown(&self, guard: &Guard, lists: &[List]) -> bool {
        guard.grow_max < guard::OFF
            && (guard.may_exceed(lists).any()
                || (guard.protected.iter())
                    .any(|protected| protected.may_be_held(|address| self.may_refuse(address))))
    }

    /// Whether a drop or reject list covers an address; when in doubt it does.
    fn may_refuse(&self, address: IpAddr) -> bool {
        match &self.from {
            From::Text(lists) => lists
                .iter()
                .any(|(list, entries)| list.action != ListAction::Permit && entries.cover(address)),
            From::Snapshot(stored) => {
                let refuses = |found: Result<Option<super::Listing>, _>| {
                    found.map_or(true, |found| {
                        found.is_some_and(|listing| listing.action != ListAction::Permit)
                    })
                };
                refuses(stored.filtered(address)) || refuses(stored.rejected(address))
            }
        }
    }
}

impl Before<'_> {
    fn lists(&self) -> &[List] {
        match self {
            Self::Kept(stored) => &stored.about().lists,
            Self::InForce { lists, .. } => &lists.lists,
        }
    }

    fn growths(&self, after: &Compiled, guard: &Guard) -> Result<Vec<Growth>, file::Error> {
        match self {
            Self::Kept(stored) => Ok(guard::growths(&stored.load(private)?, after, guard)),
            Self::InForce { lists, .. } => Ok(guard::growths(lists, after, guard)),
        }
    }

    /// Whether an operator has compiled the lists so by force since these came into force.
    fn is_meant(&self, refusal: &Refusal, draft: Option<&Compiled>, guard: &Guard) -> bool {
        let Self::InForce {
            compiled_at, kept, ..
        } = self
        else {
            return false;
        };
        let Ok(last) = Stored::open(kept) else {
            return false;
        };
        let has_it = |loss: &Loss| {
            let mut same_name = last.about().lists.iter();
            same_name.any(|list| list.name == loss.list && list.entries == loss.after)
        };
        refusal.file.is_none()
            && last.about().compiled_at >= *compiled_at
            && refusal.losses.iter().all(has_it)
            && (refusal.growths.is_empty()
                || draft.is_some_and(|draft| {
                    let growths = Before::Kept(&last).growths(draft, guard);
                    growths.is_ok_and(|growths| growths.is_empty())
                }))
    }
}

impl Checked {
    /// Writes the lists: what the filter needs into the memory that is handed in, else all of it
    /// into memory of this process.
    ///
    /// # Errors
    /// A snapshot that was changed since it was opened.
    pub fn place(self, elsewhere: Option<Allocate>) -> Result<Placed, file::Error> {
        let Self {
            settled,
            draft,
            mut warnings,
            first,
        } = self;
        let compiled = match (elsewhere, draft) {
            (None, Some(draft)) => draft,
            (None, None) => settled.write(private)?,
            (Some(allocate), draft) => {
                drop(draft);
                settled.write(allocate)?
            }
        };
        if let Some(guard) = first {
            warnings.extend(guard::unknown_before(&compiled, &guard));
        }
        Ok(Placed { compiled, warnings })
    }
}

#[cfg(test)]
mod tests;
