//! `portcullis filter verdicts list --why`: whom the gate has refused, as it remembers.

use std::io::{self, Write};
use std::process::ExitCode;

use portcullis::control::ask;
use portcullis::control::refusals::RefusedSource;
use portcullis::filter::{self, VerdictStatus};
use serde::Serialize;

use super::super::super::table::Table;
use super::super::Place;
use super::{failure, print};

/// The verdicts in force, and whom the gate remembers to have refused.
#[derive(Serialize)]
pub(super) struct History {
    pub(super) verdicts: Vec<VerdictStatus>,
    pub(super) refusals: Vec<RefusedSource>,
}

/// Asks the gate that holds the filter.
pub(super) fn refusals(place: &Place) -> Result<Vec<RefusedSource>, ExitCode> {
    let failed = |why: &str| {
        eprintln!(
            "portcullis filter verdicts: who was refused is known to the gate that holds the filter, and {why}"
        );
        ExitCode::FAILURE
    };
    let admin = filter::admin(&place.pin_path()?).map_err(|error| failure(&error, place))?;
    let admin = admin.ok_or_else(|| {
        failed("none with an admin endpoint does: set `admin` in its configuration")
    })?;
    let answer = ask::get(admin, "/api/refusals")
        .and_then(|answer| serde_json::from_reader(answer).map_err(io::Error::from));
    answer.map_err(|error| failed(&format!("the one at {admin} cannot be asked: {error}")))
}

impl History {
    pub(super) fn print(&self, json: bool, out: &mut impl Write) -> io::Result<()> {
        if json {
            serde_json::to_writer_pretty(&mut *out, self)?;
            return writeln!(out);
        }
        print(false, &self.verdicts, out)?;
        writeln!(out)?;
        if self.refusals.is_empty() {
            return writeln!(out, "nobody was refused since the gate was started");
        }
        let mut table = Table::new([
            "refused", "times", "first", "last", "client", "by", "kept out",
        ]);
        for source in &self.refusals {
            let by = source.rules.iter();
            let by: Vec<String> = by.map(|by| format!("{} ({})", by.rule, by.times)).collect();
            table.row([
                source.source.clone(),
                source.times.to_string(),
                source.first.clone(),
                source.last.clone(),
                source.client.to_string(),
                by.join(", "),
                match (&source.kept_out_until, &source.not_kept_out) {
                    (Some(until), _) => format!("until {until}"),
                    (None, Some(why)) => format!("no: {why}"),
                    (None, None) => String::new(),
                },
            ]);
        }
        table.write(out)
    }
}
