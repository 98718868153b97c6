//! The lines of the log for records: one for each session, one for each transaction, and nothing
//! for each command.
//!
//! The fields have the same names in text and in JSON, and the rule is the one that
//! `portcullis explain` names. Their version is
//! [`SCHEMA`](crate::worker::records::SCHEMA).

use std::collections::BTreeMap;
use std::fmt::Write as _;
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
    let tls = record.tls.as_deref();
    let cipher = tls.and_then(|tls| tls.cipher);
    let certificate = tls.and_then(|tls| tls.client.as_ref());
    tracing::info!(
        target: "session",
        id = %record.id,
        client = %record.client,
        helo = &*record.helo,
        user = record.user.as_deref(),
        decision = if record.is_refused { "refused" } else { "served" },
        rule = %record.rule,
        accepted = record.accepted,
        refused = record.refused,
        errors = record.errors,
        bytes = record.octets,
        ms = record.time.as_millis() as u64,
        tls = cipher.map(|cipher| cipher.version),
        cipher = cipher.map(|cipher| cipher.suite),
        tls_resumed = cipher.and(tls).map(|tls| tls.is_resumed),
        certificate = certificate.map(|certificate| &*certificate.subject),
        fingerprint = certificate.map(|certificate| hex(&certificate.fingerprint)),
        tls_error = tls.and_then(|tls| tls.fault.as_deref()),
    );
}

/// A fingerprint as it is written in the configuration.
fn hex(octets: &[u8]) -> String {
    let mut text = String::with_capacity(2 * octets.len());
    for octet in octets {
        // Writing to a string cannot fail.
        let _ = write!(text, "{octet:02x}");
    }
    text
}

fn write_transaction(record: &TransactionRecord) {
    tracing::info!(
        target: "transaction",
        id = %record.id,
        client = %record.client,
        user = record.user.as_deref(),
        decision = record.outcome.name(),
        rule = %record.rule,
        from = record.texts.sender(),
        to = record.texts.recipient(),
        recipients = record.recipients,
        refused = record.refused,
        next_hop = %record.reached,
        next_hop_tls = Some(record.next_hop_tls).filter(|version| !version.is_empty()),
        bytes = record.octets,
        ms = record.time.as_millis() as u64,
        reply = record.texts.reply().map(|reply| reply.to_string()),
    );
}

/// What the log has said of lost records.
#[derive(Default)]
pub(super) struct Losses {
    logged: BTreeMap<&'static str, u64>,
    last: Option<Instant>,
}

impl Losses {
    /// Says what was lost since the last time, unless that was a moment ago.
    pub(super) fn log(&mut self, lost: &BTreeMap<&'static str, u64>) {
        if self
            .last
            .is_none_or(|last| last.elapsed() >= COMPLAINT_PAUSE)
        {
            self.log_all(lost);
        }
    }

    /// Says what was lost since the last time.
    pub(super) fn log_all(&mut self, lost: &BTreeMap<&'static str, u64>) {
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
            let logged = self.logged.insert(reader, *records).unwrap_or_default();
            if *records > logged {
                news.push((*reader, *records - logged));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::SocketAddr;
    use std::sync::{Arc, Mutex};

    use portcullis_smtp::reply::{EnhancedCode, Reply};

    use super::*;
    use crate::policy::Rule;
    use crate::worker::counters::TransactionOutcome;
    use crate::worker::records::{Reached, TraceId, TransactionTexts};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(octets)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn session() -> Record {
        Record::Session(SessionRecord {
            id: TraceId(0xab),
            client: [192, 0, 2, 1].into(),
            helo: "client.example".into(),
            user: Some("alice".into()),
            is_refused: true,
            rule: Rule::ERRORS,
            accepted: 1,
            refused: 2,
            errors: 3,
            octets: 4,
            time: Duration::from_millis(5),
            tls: None,
        })
    }

    fn transaction(reply: Option<&Reply<'_>>) -> Record {
        Record::Transaction(TransactionRecord {
            id: TraceId(0xac),
            client: [192, 0, 2, 1].into(),
            user: reply.is_some().then(|| "alice".into()),
            outcome: TransactionOutcome::Accepted,
            rule: Rule::LOCAL_DOMAIN,
            refused_by: Some(Rule::CLOSED_RELAY),
            recipients: 1,
            refused: 2,
            reached: Reached::NextHop(SocketAddr::from(([10, 0, 0, 5], 25))),
            next_hop_tls: "",
            octets: 3,
            time: Duration::from_millis(4),
            texts: TransactionTexts::new("a@b.example", "c@d.example", reply),
        })
    }

    #[test]
    fn the_lines_have_the_fields_that_scripts_know_in_their_order() {
        let reply = Reply::new(250, Some(EnhancedCode(2, 0, 0)), "taken\nas it is");
        let records = [session(), transaction(Some(&reply)), transaction(None)];
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt()
            .without_time()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(lines, || records.iter().for_each(write));
        let octets = written.0.lock().unwrap().clone();
        let expected = "INFO session: id=AB client=192.0.2.1 helo=\"client.example\" \
            user=\"alice\" decision=\"refused\" rule=errors accepted=1 refused=2 errors=3 \
            bytes=4 ms=5\n \
            INFO transaction: id=AC client=192.0.2.1 user=\"alice\" decision=\"accepted\" \
            rule=local-domain from=\"a@b.example\" to=\"c@d.example\" recipients=1 refused=2 \
            next_hop=10.0.0.5:25 bytes=3 ms=4 reply=\"250 2.0.0 taken as it is\"\n \
            INFO transaction: id=AC client=192.0.2.1 decision=\"accepted\" rule=local-domain \
            from=\"a@b.example\" to=\"c@d.example\" recipients=1 refused=2 \
            next_hop=10.0.0.5:25 bytes=3 ms=4\n";
        assert_eq!(String::from_utf8(octets).unwrap().trim_start(), expected);
    }

    #[test]
    fn a_loss_is_logged_once_with_what_came_since() {
        let mut losses = Losses::default();
        assert_eq!(losses.news(&[("log", 0)].into()), []);
        assert_eq!(losses.news(&[("log", 3)].into()), [("log", 3)]);
        assert_eq!(losses.news(&[("log", 3)].into()), []);
        let both = [("all", 1), ("log", 5)].into();
        assert_eq!(losses.news(&both), [("all", 1), ("log", 2)]);
    }
}
