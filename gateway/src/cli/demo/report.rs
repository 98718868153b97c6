//! The figures of the demo: each with its value, the expected value, and whether they match.

use std::io::{self, Write as _};

use super::abuse::Abuse;
use super::flood::Sent;
use super::honest::Delivered;
use super::scene::FilterFigures;
use super::sink::Arrived;

/// All figures.
pub(super) struct Report {
    /// Honest messages to be sent.
    pub(super) messages: u32,
    /// Packets of the flood by list; `None` without root.
    pub(super) sent: Option<Sent>,
    pub(super) filter: Option<FilterFigures>,
    pub(super) delivered: Delivered,
    pub(super) arrived: Arrived,
    pub(super) abuse: Abuse,
    /// Recipients refused by the gate, by rule.
    pub(super) refused: Vec<(String, u64)>,
}

/// One figure with its expected value.
struct Check {
    what: String,
    is: String,
    must_be: String,
    good: bool,
}

impl Check {
    fn equal<T: PartialEq + ToString>(what: impl Into<String>, is: &T, must_be: &T) -> Self {
        Self {
            what: what.into(),
            is: is.to_string(),
            must_be: must_be.to_string(),
            good: is == must_be,
        }
    }
}

impl Report {
    /// Whether every figure is what it must be.
    pub(super) fn is_good(&self) -> bool {
        self.checks().iter().all(|check| check.good)
    }

    fn checks(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        if let (Some(sent), Some(filter)) = (&self.sent, &self.filter) {
            checks.push(Check::equal(
                "XDP mode",
                &filter.xdp_mode,
                &"driver".to_owned(),
            ));
            for (name, packets) in sent {
                let dropped = filter
                    .dropped
                    .iter()
                    .find(|(list, _)| list == name)
                    .map_or(0, |(_, dropped)| *dropped);
                checks.push(Check::equal(
                    format!("packets dropped by list {name}"),
                    &dropped,
                    packets,
                ));
            }
        }
        let unique = self.arrived.numbers.len().try_into().unwrap_or(u32::MAX);
        checks.push(Check::equal(
            "honest messages accepted",
            &self.delivered.accepted,
            &self.messages,
        ));
        checks.push(Check::equal(
            "honest messages arrived",
            &unique,
            &self.messages,
        ));
        checks.push(Check::equal("arrived twice", &self.arrived.twice, &0));
        checks.push(Check::equal(
            "abuse refused",
            &self.abuse.refused,
            &self.abuse.tried,
        ));
        let by_rule: u64 = self.refused.iter().map(|(_, count)| count).sum();
        checks.push(Check::equal(
            "abuse refused by a named rule",
            &by_rule,
            &self.abuse.refused.into(),
        ));
        checks.push(Check::equal("abuse arrived", &self.arrived.strays, &0));
        checks
    }

    /// Prints a table for users.
    pub(super) fn print_table(&self) {
        // A closed standard output is no failure.
        let _ = self.write_table(&mut io::stdout().lock());
    }

    fn write_table(&self, out: &mut impl io::Write) -> io::Result<()> {
        writeln!(out, "\n{:<40} {:>12} {:>12}", "figure", "is", "must be")?;
        for Check {
            what,
            is,
            must_be,
            good,
        } in self.checks()
        {
            let mark = if good { "" } else { "   WRONG" };
            writeln!(out, "{what:<40} {is:>12} {must_be:>12}{mark}")?;
        }
        match &self.sent {
            Some(sent) => {
                let packets: u64 = sent.iter().map(|(_, packets)| packets).sum();
                writeln!(
                    out,
                    "\n{packets} packets of flood, none of which reached the TCP stack"
                )?;
            }
            None => writeln!(
                out,
                "\nleft out without root: namespaces, XDP program, flood"
            )?,
        }
        let time = self.delivered.time.as_secs_f64();
        let rate = f64::from(self.delivered.accepted) / time.max(0.001);
        writeln!(
            out,
            "honest mail: {} messages in {time:.2} s, {rate:.0} a second",
            self.delivered.accepted
        )?;
        writeln!(out, "refused by rule:")?;
        for (rule, count) in &self.refused {
            writeln!(out, "  {rule:<38} {count:>12}")?;
        }
        for line in self.delivered.complaints.iter().chain(&self.abuse.wrong) {
            writeln!(out, "WRONG: {line}")?;
        }
        writeln!(
            out,
            "\n{}",
            if self.is_good() {
                "all figures are what they must be"
            } else {
                "NOT all is well"
            }
        )
    }

    /// Prints the same as JSON.
    pub(super) fn print_json(&self) {
        let checks = self.checks().into_iter().map(|check| {
            serde_json::json!({
                "figure": check.what, "is": check.is, "must_be": check.must_be, "good": check.good,
            })
        });
        let sent: Option<serde_json::Map<_, _>> = self.sent.as_ref().map(|sent| {
            sent.iter()
                .map(|(list, packets)| ((*list).to_owned(), (*packets).into()))
                .collect()
        });
        let dropped: Option<serde_json::Map<_, _>> = self.filter.as_ref().map(|filter| {
            filter
                .dropped
                .iter()
                .map(|(list, packets)| (list.clone(), (*packets).into()))
                .collect()
        });
        let refused: serde_json::Map<_, _> = self
            .refused
            .iter()
            .map(|(rule, count)| (rule.clone(), (*count).into()))
            .collect();
        let complaints = self.delivered.complaints.iter().chain(&self.abuse.wrong);
        let report = serde_json::json!({
            "good": self.is_good(),
            "checks": checks.collect::<Vec<_>>(),
            "packets_sent": sent,
            "packets_dropped": dropped,
            "messages_sent": self.delivered.accepted,
            "messages_arrived": self.arrived.numbers.len(),
            "mail_seconds": self.delivered.time.as_secs_f64(),
            "abuse_tried": self.abuse.tried,
            "abuse_refused": self.abuse.refused,
            "refused_by_rule": refused,
            "complaints": complaints.collect::<Vec<_>>(),
        });
        let _ = writeln!(io::stdout(), "{report:#}");
    }
}
