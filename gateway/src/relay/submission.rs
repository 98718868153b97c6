//! What a submitted message lacks: `Date` and `Message-ID` are added to one without them (RFC 6409
//! section 8, RFC 5322 section 3.6).
//!
//! The header is looked at while it streams by, whatever the pieces it arrives in, and nothing is
//! held back: what is missing goes out where the header ends, before its empty line, or behind the
//! last line of a message that has none. Rejected: our own fields at the top of the message, which
//! would have to wait until the whole header is there. A message that another server relays is left
//! as it is (RFC 5321 section 6.4).

/// The fields that are looked for, and their places in [`HeaderScan::found`].
const FIELDS: [&[u8]; 2] = [b"date", b"message-id"];

/// Finds out which of the fields a message has.
#[derive(Clone, Copy, Debug, Default)]
struct HeaderScan {
    found: [bool; FIELDS.len()],
    line: Line,
}

/// What is known of the present line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    /// It has not begun.
    #[default]
    Start,
    /// So many octets of it are the beginning of the name of this field.
    Name { field: u8, matched: u8 },
    /// It is another one, or has told what it is.
    Other,
    /// The header is over.
    Body,
}

impl HeaderScan {
    /// Takes the next piece; where in it the header ends, before the empty line.
    fn update(&mut self, piece: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(&octet) = piece.get(at) {
            match self.line {
                Line::Body => return None,
                // There is no CR by itself in a message: an empty line begins here.
                Line::Start if octet == b'\r' => {
                    self.line = Line::Body;
                    return Some(at);
                }
                Line::Start => {
                    self.line = Line::Other;
                    let name = FIELDS
                        .iter()
                        .position(|name| name[0] == octet.to_ascii_lowercase());
                    if let Some(field) = name {
                        let field = field as u8;
                        self.line = Line::Name { field, matched: 1 };
                    }
                }
                Line::Name { field, matched } => self.line = self.name(field, matched, octet),
                Line::Other => {
                    at += memchr::memchr(b'\n', &piece[at..])?;
                    self.line = Line::Start;
                }
            }
            at += 1;
        }
        None
    }

    /// The next octet of a line that may be one of the fields. White space before the colon is of
    /// the obsolete syntax (RFC 5322 section 4.5), and read as everywhere.
    fn name(&mut self, field: u8, matched: u8, octet: u8) -> Line {
        let name = FIELDS[usize::from(field)];
        match (name.get(usize::from(matched)), octet) {
            (Some(&wanted), octet) if wanted == octet.to_ascii_lowercase() => Line::Name {
                field,
                matched: matched + 1,
            },
            (None, b' ' | b'\t') => Line::Name { field, matched },
            (None, b':') => {
                self.found[usize::from(field)] = true;
                Line::Other
            }
            (_, b'\n') => Line::Start,
            _ => Line::Other,
        }
    }
}

/// A message that may lack fields, on its way.
#[derive(Debug)]
pub struct Submission {
    scan: HeaderScan,
    /// The values of the fields, in the order of [`FIELDS`].
    date: String,
    id: String,
    is_added: bool,
}

impl Submission {
    /// `date` is the value of a `Date` field; `id` names the message and is unique on `hostname`.
    pub fn new(date: &str, id: &str, hostname: &str) -> Self {
        Self {
            scan: HeaderScan::default(),
            date: format!("Date: {date}\r\n"),
            id: format!("Message-ID: <{id}@{hostname}>\r\n"),
            is_added: false,
        }
    }

    /// How many octets are added at most.
    pub fn length_max(&self) -> usize {
        // The day of the month may get a second digit until the message comes, and a last line its
        // end.
        self.date.len() + 1 + self.id.len() + 2
    }

    /// Gives `take` the next piece of the message, with what is missing where the header ends.
    pub fn pass<'p>(&mut self, piece: &'p [u8], mut take: impl FnMut(&[u8])) {
        let end = self.scan.update(piece).unwrap_or(0);
        let (before, after): (&'p [u8], &'p [u8]) = piece.split_at(end);
        if !before.is_empty() {
            take(before);
        }
        if self.scan.line == Line::Body {
            self.add(&mut take);
        }
        if !after.is_empty() {
            take(after);
        }
    }

    /// Gives `take` what is missing at the end of a message that is all header.
    pub fn end(&mut self, mut take: impl FnMut(&[u8])) {
        // With BDAT the last line need not have an end.
        let is_cut = !matches!(self.scan.line, Line::Start | Line::Body);
        if is_cut && !self.is_added && self.scan.found != [true; 2] {
            take(b"\r\n");
        }
        self.add(&mut take);
    }

    fn add(&mut self, take: &mut impl FnMut(&[u8])) {
        if std::mem::replace(&mut self.is_added, true) {
            return;
        }
        for (found, field) in self.scan.found.iter().zip([&self.date, &self.id]) {
            if !found {
                take(field.as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DATE: &str = "Date: D\r\n";
    const ID: &str = "Message-ID: <1@h>\r\n";

    fn pass(message: &str, cuts: &[usize]) -> String {
        let mut submission = Submission::new("D", "1", "h");
        let (mut out, mut from) = (Vec::new(), 0);
        for &cut in cuts.iter().chain([&message.len()]) {
            let cut = cut.clamp(from, message.len());
            let piece = &message.as_bytes()[from..cut];
            submission.pass(piece, |part| out.extend_from_slice(part));
            from = cut;
        }
        submission.end(|part| out.extend_from_slice(part));
        assert!(out.len() <= message.len() + submission.length_max());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_header_whose_last_line_has_no_end_gets_one() {
        for (message, passed) in [
            ("Subject: x", format!("Subject: x\r\n{DATE}{ID}")),
            ("Subje", format!("Subje\r\n{DATE}{ID}")),
            (
                "Date: a\r\nMessage-ID: <a@b>",
                "Date: a\r\nMessage-ID: <a@b>".to_owned(),
            ),
            ("Subject: x\r\n", format!("Subject: x\r\n{DATE}{ID}")),
        ] {
            assert_eq!(pass(message, &[]), passed, "{message}");
        }
    }

    #[test]
    fn what_is_missing_is_added_once_before_the_end_of_the_header() {
        let both = format!("{DATE}{ID}");
        for (header, added) in [
            ("Subject: x\r\n", &*both),
            ("Date: a\r\n", ID),
            ("dATE \t: a\r\nX: y\r\n", ID),
            ("message-id: <a@b>\r\n", DATE),
            ("X: y\r\nMessage-ID:\r\n <a@b>\r\nDATE:x\r\n", ""),
            ("Dated: a\r\nMessage-IDs: b\r\n", &both),
            ("X: y\r\n Date: folded\r\n\tMessage-ID: folded\r\n", &both),
            ("Resent-Date: a\r\nResent-Message-ID: b\r\n", &both),
            ("Date\r\nMessage-ID\r\n", &both),
            ("DaDate: x\r\n", &both),
            ("", &both),
        ] {
            for body in ["", "\r\n", "\r\nDate: in the body\r\n\r\nMessage-ID: b\r\n"] {
                let expected = format!("{header}{added}{body}");
                let message = format!("{header}{body}");
                assert_eq!(pass(&message, &[]), expected, "{message:?}");
                for cut in 0..message.len() {
                    assert_eq!(pass(&message, &[cut]), expected, "{message:?} at {cut}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_added_does_not_depend_on_how_the_message_is_cut(
            lines in prop::collection::vec(
                prop_oneof!["Date: x", "DATE :", "Dat", "Message-Id: y", "Message-", " z", ""],
                0..8,
            ),
            mut cuts in prop::collection::vec(0..120usize, 0..12),
        ) {
            let message: String = lines.iter().flat_map(|line| [line.as_str(), "\r\n"]).collect();
            cuts.sort_unstable();
            prop_assert_eq!(pass(&message, &cuts), pass(&message, &[]));
        }
    }
}
