//! `portcullis filter verdicts list --why`: the sources that the gate has refused.

use std::io::{self, Write};
use std::process::ExitCode;

use portcullis::control::ask::{self, NotDone};
use portcullis::control::refusals::RefusedSource;
use portcullis::filter::{self, VerdictStatus};
use serde::Serialize;

use super::super::super::table::Table;
use super::super::Place;
use super::{failure, print};

/// The verdicts in force, and the sources that the gate has refused.
#[derive(Serialize)]
pub(super) struct History {
    pub(super) verdicts: Vec<VerdictStatus>,
    pub(super) refusals: Vec<RefusedSource>,
}

/// Gets the refusals from the gate that holds the filter.
pub(super) fn refusals(place: &Place) -> Result<Vec<RefusedSource>, ExitCode> {
    let failed = |why: &str| {
        eprintln!(
            "portcullis filter verdicts: the gate that holds the filter knows which sources were \
             refused, but {why}"
        );
        ExitCode::FAILURE
    };
    let (pin_path, gate) = place.find()?;
    // Another filter than the usual may be of another gate than that at the usual socket.
    if let Some(gate) = gate.filter(|_| place.pin_path.is_none()) {
        match ask::read(gate.path(), "/api/refusals") {
            Ok(refusals) => return Ok(refusals),
            Err(NotDone::NoGate(_) | NotDone::NotPermitted | NotDone::Refused { .. }) => {}
            Err(why_not @ NotDone::Broken(_)) => return Err(gate.say(&why_not)),
        }
    }
    let admin = filter::admin(&pin_path).map_err(|error| failure(&error, place))?;
    let admin = admin.ok_or_else(|| {
        failed("it has no admin endpoint: set `admin_socket` or `admin` in its configuration")
    })?;
    let answer = ask::get(admin, "/api/refusals")
        .and_then(|answer| serde_json::from_reader(answer).map_err(io::Error::from));
    answer.map_err(|error| failed(&format!("it does not answer at {admin}: {error}")))
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
            return writeln!(out, "no source was refused since the gate was started");
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
                self.kept_out(source),
            ]);
        }
        table.write(out)
    }

    /// Whether the filter drops a source now. The verdict of the gate can have been removed or
    /// evicted since.
    fn kept_out(&self, source: &RefusedSource) -> String {
        let mut verdicts = self.verdicts.iter();
        let is_in_force = verdicts.any(|verdict| verdict.source == source.source);
        match (&source.kept_out_until, &source.not_kept_out) {
            (Some(until), _) if is_in_force => format!("until {until}"),
            (Some(_), _) => "no: its verdict is over, or was removed".to_owned(),
            (None, Some(why)) => format!("no: {why}"),
            (None, None) if is_in_force => "by a verdict that a person added".to_owned(),
            (None, None) => "no: the verdict that a person added is over".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use portcullis::filter::Cause;

    use super::*;

    fn refused(until: Option<&str>, why_not: Option<&str>) -> RefusedSource {
        RefusedSource {
            source: "192.0.2.66".to_owned(),
            client: "192.0.2.66".parse().unwrap(),
            times: 1,
            first: "2026-01-02T03:04:05Z".to_owned(),
            last: "2026-01-02T03:04:05Z".to_owned(),
            rules: Vec::new(),
            kept_out_until: until.map(str::to_owned),
            not_kept_out: why_not.map(str::to_owned),
        }
    }

    fn verdict() -> VerdictStatus {
        VerdictStatus {
            source: "192.0.2.66".to_owned(),
            cause: Cause::Dnsbl,
            note: String::new(),
            age_seconds: 0,
            expires_in_seconds: 60,
            packets: 0,
            last_packet_seconds_ago: None,
            except: Vec::new(),
        }
    }

    #[test]
    fn a_source_whose_verdict_was_removed_is_not_said_to_be_kept_out() {
        let until = Some("2026-01-02T04:04:05Z");
        let cases = [
            (true, until, None, "until 2026-01-02T04:04:05Z"),
            (
                false,
                until,
                None,
                "no: its verdict is over, or was removed",
            ),
            (true, None, None, "by a verdict that a person added"),
            (
                false,
                None,
                None,
                "no: the verdict that a person added is over",
            ),
            (
                false,
                None,
                Some("there is no filter"),
                "no: there is no filter",
            ),
        ];
        for (has_verdict, until, why_not, text) in cases {
            let history = History {
                verdicts: has_verdict.then(verdict).into_iter().collect(),
                refusals: Vec::new(),
            };
            assert_eq!(history.kept_out(&refused(until, why_not)), text);
        }
    }
}
