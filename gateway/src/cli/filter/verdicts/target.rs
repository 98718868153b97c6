//! Where verdicts are changed: by the gate that holds the filter, or in its maps when there is
//! none.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ipnet::IpNet;
use portcullis::control::admin::verdicts::{
    self, Add, Added, Flush, Flushed, NOTE_MAX, Remove, Removed, SOURCES_MAX, Wanted,
};
use portcullis::control::ask;
use portcullis::filter::{self, VerdictStatus, Verdicts};

use super::super::super::admin_socket::AdminSocket;
use super::super::Place;
use super::failure;

/// The verdicts of a filter.
pub(super) struct Target<'a> {
    place: &'a Place,
    pin_path: PathBuf,
    /// The gate, until it is known that there is none for this filter.
    gate: Option<AdminSocket>,
    maps: Option<Verdicts>,
}

impl<'a> Target<'a> {
    pub(super) fn find(place: &'a Place) -> Result<Self, ExitCode> {
        let (pin_path, gate) = place.find()?;
        Ok(Self {
            place,
            pin_path,
            gate,
            maps: None,
        })
    }

    /// Adds verdicts, at most as many as a request may have.
    pub(super) fn add(&mut self, wanted: Vec<Wanted>) -> Result<Added, ExitCode> {
        let request = Add {
            pin_path: Some(self.pin_path.clone()),
            verdicts: wanted,
        };
        self.change("/api/verdicts/add", &request, |maps| {
            verdicts::add(maps, None, &request.verdicts)
        })
    }

    /// Removes verdicts, in as many requests as it takes. Gives for each source whether it had one.
    pub(super) fn remove(&mut self, sources: &[IpNet]) -> Result<Vec<bool>, ExitCode> {
        let mut all = Vec::with_capacity(sources.len());
        for sources in sources.chunks(SOURCES_MAX) {
            let request = Remove {
                pin_path: Some(self.pin_path.clone()),
                sources: sources.to_vec(),
            };
            let Removed { removed } = self.change("/api/verdicts/remove", &request, |maps| {
                verdicts::remove(maps, &request.sources)
            })?;
            all.extend(removed);
        }
        Ok(all)
    }

    pub(super) fn flush(&mut self) -> Result<Flushed, ExitCode> {
        let request = Flush {
            pin_path: Some(self.pin_path.clone()),
        };
        self.change("/api/verdicts/flush", &request, |maps| {
            let removed = maps.flush()?;
            Ok(Flushed { removed })
        })
    }

    /// The verdicts in force: from the maps, or, for a user that may not read them, from the gate.
    pub(super) fn list(&mut self) -> Result<Vec<VerdictStatus>, ExitCode> {
        let listed = Verdicts::open(&self.pin_path).and_then(|maps| maps.list());
        match (listed, &self.gate) {
            (Err(error @ filter::Error::NotPermitted { .. }), Some(gate)) => {
                match ask::read(gate.path(), "/api/verdicts") {
                    Ok(list) => Ok(list),
                    Err(why_not) => {
                        failure(&error, self.place);
                        Err(gate.say(&why_not))
                    }
                }
            }
            (listed, _) => listed.map_err(|error| failure(&error, self.place)),
        }
    }

    fn change<A: serde::de::DeserializeOwned>(
        &mut self,
        path: &str,
        request: &impl serde::Serialize,
        directly: impl FnOnce(&Verdicts) -> Result<A, filter::Error>,
    ) -> Result<A, ExitCode> {
        if let Some(gate) = &self.gate
            && let Some(answer) = gate.carry_out(path, request)?
        {
            return Ok(answer);
        }
        let gate = self.gate.take();
        let maps = match self.maps.take() {
            Some(maps) => Ok(maps),
            None => Verdicts::open(&self.pin_path),
        };
        let done = maps.and_then(|maps| directly(self.maps.insert(maps)));
        done.map_err(|error| {
            let code = failure(&error, self.place);
            if let (filter::Error::NotPermitted { .. }, Some(gate)) = (&error, gate) {
                eprintln!(
                    "no gate that holds this filter listens at {}: only root can change it now",
                    gate.path().display()
                );
            }
            code
        })
    }
}

/// A verdict to add, in the terms of a request.
pub(super) fn wanted(source: IpNet, duration: Duration, note: &str) -> Wanted {
    let end = (0..=NOTE_MAX.min(note.len())).rev();
    let end = end.into_iter().find(|end| note.is_char_boundary(*end));
    let seconds = duration.as_millis().div_ceil(1_000);
    Wanted {
        source,
        seconds: u64::try_from(seconds).unwrap_or(u64::MAX),
        note: note[..end.unwrap_or(0)].to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_two_characters_before_it_is_sent() {
        let source: IpNet = "192.0.2.1/32".parse().unwrap();
        let note = "é".repeat(NOTE_MAX) + "x";
        let one = wanted(source, Duration::from_millis(1_500), &note[..]);
        assert_eq!((one.seconds, one.note.len()), (2, NOTE_MAX));
        let note = format!("x{note}");
        let one = wanted(source, Duration::from_secs(1), &note);
        assert_eq!((one.seconds, one.note.len()), (1, NOTE_MAX - 1));
    }
}
