//! The text format of Prometheus: metrics with their help and type, and samples with their labels.

use std::fmt::{Display, Write as _};

use crate::filter::Reasons;

/// The text so far, and the metric that samples are for.
#[derive(Default)]
pub(super) struct Text(String, &'static str);

impl Text {
    /// All that was written.
    pub(super) fn into_string(self) -> String {
        self.0
    }

    /// Begins a metric that only goes up; `help` says what it counts.
    pub(super) fn counter(&mut self, name: &'static str, help: &str) {
        self.family(name, "counter", help);
    }

    /// Begins a metric that goes up and down.
    pub(super) fn gauge(&mut self, name: &'static str, help: &str) {
        self.family(name, "gauge", help);
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.1 = name;
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A value of the metric that was begun last.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(self.1);
        for (number, (name, value)) in labels.iter().enumerate() {
            self.0.push(if number == 0 { '{' } else { ',' });
            let _ = write!(self.0, "{name}=\"");
            escape(value, &mut self.0);
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// One value for each reason for which packets are dropped.
    pub(super) fn reasons(&mut self, interface: &str, reasons: Reasons) {
        for (reason, packets) in reasons.each() {
            self.sample(&[("interface", interface), ("reason", reason)], packets);
        }
    }
}

/// Backslashes, quotes and line ends would end a label value before its time.
fn escape(value: &str, text: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_value_cannot_break_out_of_its_quotes() {
        let mut text = Text::default();
        text.counter("x", "y");
        text.sample(&[("rule", "a\"b\\c\nd é"), ("other", "")], 1);
        assert_eq!(
            text.0,
            "# HELP x y\n# TYPE x counter\nx{rule=\"a\\\"b\\\\c\\nd é\",other=\"\"} 1\n"
        );
    }
}
