//! The lines of the log for records: one for each session, one for each transaction, and nothing
//! for each command.
//!
//! The fields have the same names in text and in JSON, and the rule is the one that
//! `portcullis explain` names. Their version is
//! [`SCHEMA`](crate::worker::records::SCHEMA).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::worker::records::{Record, SessionRecord, TransactionRecord};

/// How often the log says that records were lost, at most.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

/// Writes the line of a record.
pub(super) fn write(record: &Record) {
    match record {
        Record::Session(record) => write_session(record),
        Record::Transaction(record) => write_transaction(record),
    }
}

fn write_session(record: &SessionRecord) {
    tracing::info!(
        target: "session",
        id = %record.id,
        client = %record.client,
        helo = &*record.helo,
        decision = if record.is_refused { "refused" } else { "served" },
        rule = %record.rule,
        accepted = record.accepted,
        refused = record.refused,
        errors = record.errors,
        bytes = record.octets,
        ms = record.time.as_millis() as u64,
    );
}

fn write_transaction(record: &TransactionRecord) {
    tracing::info!(
        target: "transaction",
        id = %record.id,
        client = %record.client,
        decision = record.outcome.name(),
        rule = %record.rule,
        from = record.texts.sender(),
        to = record.texts.recipient(),
        recipients = record.recipients,
        refused = record.refused,
        next_hop = %record.reached,
        bytes = record.octets,
        ms = record.time.as_millis() as u64,
        reply = record.texts.reply().map(|reply| reply.to_string()),
    );
}

/// What the log has said of lost records.
#[derive(Default)]
pub(super) struct Losses {
    told: BTreeMap<&'static str, u64>,
    last: Option<Instant>,
}

impl Losses {
    /// Says what was lost since the last time, unless that was a moment ago.
    pub(super) fn tell(&mut self, lost: &BTreeMap<&'static str, u64>) {
        if self
            .last
            .is_none_or(|last| last.elapsed() >= COMPLAINT_PAUSE)
        {
            self.tell_all(lost);
        }
    }

    /// Says what was lost since the last time.
    pub(super) fn tell_all(&mut self, lost: &BTreeMap<&'static str, u64>) {
        for (reader, records) in self.news(lost) {
            self.last = Some(Instant::now());
            tracing::warn!(
                reader,
                records,
                "records of sessions and transactions were lost: they come faster than this \
                 reader takes them; if it is `log`, what takes the log is too slow"
            );
        }
    }

    fn news(&mut self, lost: &BTreeMap<&'static str, u64>) -> Vec<(&'static str, u64)> {
        let mut news = Vec::new();
        for (reader, records) in lost {
            let told = self.told.insert(reader, *records).unwrap_or_default();
            if *records > told {
                news.push((*reader, *records - told));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_once_with_what_came_since() {
        let mut losses = Losses::default();
        assert_eq!(losses.news(&[("log", 0)].into()), []);
        assert_eq!(losses.news(&[("log", 3)].into()), [("log", 3)]);
        assert_eq!(losses.news(&[("log", 3)].into()), []);
        let both = [("all", 1), ("log", 5)].into();
        assert_eq!(losses.news(&both), [("all", 1), ("log", 2)]);
    }
}
