//! The lines of a file that may hold anything.
//!
//! A line is handed out where it lies in the reader's buffer; only one that lies across the
//! buffer's end is copied. What is longer than [`LINE_MAX`] is no line of a list, but a file of
//! another kind, or one without line ends: it is passed over in a stream and told as one bad line,
//! however long it is. Rejected: `BufRead::split` (an allocation per line, and a gigabyte of memory
//! for a line of a gigabyte), and reading the whole file (lists are larger than what a gate should
//! need).

use std::io::{self, BufRead};

/// More than the longest line that any format knows (rbldnsd cuts at 4 KiB), in octets.
pub const LINE_MAX: usize = 64 * 1024;

/// A line without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Counted from 1.
    pub number: u64,
    /// Its octets; the beginning, of one that is too long.
    pub text: &'a [u8],
    /// Whether it is longer than [`LINE_MAX`].
    pub too_long: bool,
    /// Whether its end is there. The last line of a file that was cut off lacks it.
    pub ended: bool,
}

/// Reads lines.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    number: u64,
    octets: u64,
    /// What of the reader's buffer was handed out last.
    used: usize,
    /// A line that lies across the end of the reader's buffer, or its beginning.
    copy: Vec<u8>,
}

/// Where the line ends that begins at the front of the reader's buffer.
enum End {
    Here(usize),
    /// Beyond the buffer, which is this long.
    Beyond(usize),
    OfFile,
}

impl<R: BufRead> Lines<R> {
    /// All lines of a reader. Its buffer should be some tens of kilobytes.
    pub fn new(reader: R) -> Lines<R> {
        Lines {
            reader,
            number: 0,
            octets: 0,
            used: 0,
            copy: Vec::new(),
        }
    }

    /// How many octets the lines had so far.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// The next line; `None` at the end. Line ends are `\n` and `\r\n`, and a byte order mark is no
    /// part of the first line.
    ///
    /// # Errors
    /// When the reader fails.
    pub fn advance(&mut self) -> io::Result<Option<Line<'_>>> {
        self.reader.consume(std::mem::take(&mut self.used));
        self.copy.clear();
        let mut too_long = false;
        let ended = match self.find_end()? {
            End::OfFile => return Ok(None),
            End::Here(at) => {
                self.used = at + 1;
                self.octets += self.used as u64;
                self.number += 1;
                // The buffer holds it, so that this reads nothing.
                let text = &self.reader.fill_buf()?[..at];
                let kept = &text[..at.min(LINE_MAX)];
                return Ok(Some(line(self.number, kept, at > LINE_MAX, true)));
            }
            End::Beyond(length) => {
                let mut end = End::Beyond(length);
                loop {
                    let (length, over) = match end {
                        End::Here(at) => (at, true),
                        End::Beyond(length) => (length, false),
                        End::OfFile => break false,
                    };
                    let room = LINE_MAX - self.copy.len();
                    too_long |= length > room;
                    let part = &self.reader.fill_buf()?[..length];
                    self.copy.extend_from_slice(&part[..length.min(room)]);
                    let consumed = length + usize::from(over);
                    self.reader.consume(consumed);
                    self.octets += consumed as u64;
                    if over {
                        break true;
                    }
                    end = self.find_end()?;
                }
            }
        };
        self.number += 1;
        Ok(Some(line(self.number, &self.copy, too_long, ended)))
    }

    fn find_end(&mut self) -> io::Result<End> {
        let buffer = loop {
            match self.reader.fill_buf() {
                Ok(buffer) => break buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        Ok(match memchr::memchr(b'\n', buffer) {
            _ if buffer.is_empty() => End::OfFile,
            Some(at) => End::Here(at),
            None => End::Beyond(buffer.len()),
        })
    }
}

fn line(number: u64, text: &[u8], too_long: bool, ended: bool) -> Line<'_> {
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
    let text = match text.strip_prefix(BYTE_ORDER_MARK) {
        Some(rest) if number == 1 => rest,
        _ => text,
    };
    Line {
        number,
        text: text.strip_suffix(b"\r").unwrap_or(text),
        too_long,
        ended,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read};

    use proptest::prelude::*;

    use super::*;

    /// Number, text, whether it is too long, whether it has an end.
    fn all(mut lines: Lines<impl BufRead>) -> Vec<(u64, Vec<u8>, bool, bool)> {
        let mut all = Vec::new();
        while let Some(line) = lines.advance().unwrap() {
            all.push((line.number, line.text.to_vec(), line.too_long, line.ended));
        }
        all
    }

    #[test]
    fn a_line_without_an_end_is_one_bad_line_in_constant_memory() {
        let long = io::repeat(b'x').take(1 << 26);
        let file = BufReader::with_capacity(1 << 16, b"a\n".chain(long).chain(&b"\nb"[..]));
        let mut lines = Lines::new(file);
        assert_eq!(lines.advance().unwrap().unwrap().text, b"a");
        let long = lines.advance().unwrap().unwrap();
        assert_eq!(
            (long.number, long.text.len(), long.too_long, long.ended),
            (2, LINE_MAX, true, true)
        );
        let last = lines.advance().unwrap().unwrap();
        assert_eq!(
            (last.number, last.text, last.too_long, last.ended),
            (3, &b"b"[..], false, false)
        );
        assert_eq!(lines.advance().unwrap(), None);
        assert_eq!(lines.octets(), (1 << 26) + 4);
        assert!(lines.copy.capacity() <= 4 * LINE_MAX);
    }

    #[test]
    fn line_ends_and_marks_of_other_systems_are_no_part_of_a_line() {
        let lines = all(Lines::new(&b"\xef\xbb\xbfa\r\n\r\n\n\0\r\r\nb"[..]));
        let texts: Vec<&[u8]> = lines.iter().map(|(_, text, ..)| &text[..]).collect();
        assert_eq!(texts, [&b"a"[..], b"", b"", b"\0\r", b"b"]);
    }

    proptest! {
        #[test]
        fn where_the_buffer_ends_makes_no_difference(
            text in prop::collection::vec(
                prop_oneof![4 => Just(b'x'), 2 => Just(b'\n'), 1 => any::<u8>()],
                0..200,
            ),
            capacity in 1..70usize,
        ) {
            let whole = all(Lines::new(&text[..]));
            let parts = all(Lines::new(BufReader::with_capacity(capacity, &text[..])));
            prop_assert_eq!(&parts, &whole);
            let expected = text.split_inclusive(|&octet| octet == b'\n').count();
            prop_assert_eq!(whole.len(), expected);
        }
    }
}
