//! The bytes of a log as lines, in pieces as they come. A line that is too long is left out whole:
//! what tells of a login never is.

/// Bytes of a line, without its end.
pub const LINE_MAX: usize = 8_192;

/// The line that has begun.
#[derive(Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
    /// It is too long already.
    is_long: bool,
    /// Its beginning was not read.
    is_rest: bool,
    /// Lines that were too long.
    long: u64,
}

impl Lines {
    /// Takes the next bytes, and gives each line that they end, without its LF and a CR before it.
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if std::mem::take(&mut self.is_rest) {
                continue;
            }
            if self.is_long || self.begun.len() + line.len() > LINE_MAX {
                self.long += 1;
            } else if self.begun.is_empty() {
                each(without_cr(line));
            } else {
                self.begun.extend_from_slice(line);
                each(without_cr(&self.begun));
            }
            self.begun.clear();
            self.is_long = false;
        }
        if self.is_rest {
            return;
        }
        if self.is_long || self.begun.len() + bytes.len() > LINE_MAX {
            self.is_long = true;
            self.begun.clear();
        } else {
            self.begun.extend_from_slice(bytes);
        }
    }

    /// Forgets the line that has begun: the file was truncated.
    pub fn reset(&mut self) {
        self.begun.clear();
        self.is_long = false;
        self.is_rest = false;
    }

    /// Leaves out all up to the next end of a line: the bytes to come begin within one.
    pub fn skip_rest(&mut self) {
        self.reset();
        self.is_rest = true;
    }

    /// How many lines were too long since this was asked last.
    pub fn take_long(&mut self) -> u64 {
        std::mem::take(&mut self.long)
    }
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_wherever_the_bytes_are_cut() {
        let text = b"one\r\n\ntwo\nnot ended";
        for cut in 0..text.len() {
            let (mut lines, mut given) = (Lines::default(), Vec::new());
            lines.feed(&text[..cut], |line| given.push(line.to_vec()));
            lines.feed(&text[cut..], |line| given.push(line.to_vec()));
            assert_eq!(given, [&b"one"[..], b"", b"two"], "{cut}");
        }
    }

    #[test]
    fn the_rest_of_a_line_is_no_line() {
        let (mut lines, mut given) = (Lines::default(), Vec::new());
        lines.skip_rest();
        for piece in [&b"192.0"[..], b".2.1", b"\nwhole\n"] {
            lines.feed(piece, |line| given.push(line.to_vec()));
        }
        assert_eq!((given, lines.take_long()), (vec![b"whole".to_vec()], 0));
    }

    #[test]
    fn a_line_that_is_too_long_is_left_out_and_the_next_is_read() {
        let (mut lines, mut given) = (Lines::default(), Vec::new());
        for _ in 0..100 {
            lines.feed(&[b'x'; 1000], |line| given.push(line.to_vec()));
            assert!(lines.begun.capacity() <= 4 * LINE_MAX);
        }
        lines.feed(b"\nshort\n", |line| given.push(line.to_vec()));
        assert_eq!((given, lines.take_long()), (vec![b"short".to_vec()], 1));
        let (mut whole, mut number) = ([b'y'; LINE_MAX + 2], 0);
        whole[LINE_MAX] = b'\n';
        lines.feed(&whole, |line| number += line.len());
        assert_eq!((number, lines.take_long()), (LINE_MAX, 0));
    }
}
