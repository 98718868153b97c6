//! Files that are no text, or text that is written otherwise: told by what they are, and not by a
//! thousand invalid lines.
//!
//! The first octets say it. What is found here is not read on: no line of it means anything.
//! Rejected: to uncompress and to convert (a list that unpacks to a terabyte, and a library for
//! each of nine forms, in a program that runs as root at first).

use super::Reason;

/// What a file is that begins so. The first line is enough: no mark holds a line end.
const MARKS: [(&[u8], Reason); 12] = [
    (
        &[0x1f, 0x8b],
        "compressed with gzip: uncompress the file first",
    ),
    (
        &[0x1f, 0x9d],
        "compressed with compress (.Z): uncompress the file first",
    ),
    (b"BZh", "compressed with bzip2: uncompress the file first"),
    (
        &[0xfd, b'7', b'z', b'X', b'Z'],
        "compressed with xz: uncompress the file first",
    ),
    (
        &[0x28, 0xb5, 0x2f, 0xfd],
        "compressed with zstd: uncompress the file first",
    ),
    (
        &[0x04, 0x22, 0x4d, 0x18],
        "compressed with lz4: uncompress the file first",
    ),
    (b"LZIP", "compressed with lzip: uncompress the file first"),
    (
        b"PK\x03\x04",
        "a zip archive: unpack the list from it first",
    ),
    (
        &[b'7', b'z', 0xbc, 0xaf],
        "a 7-Zip archive: unpack the list from it first",
    ),
    (&[0xff, 0xfe], UTF_16),
    (&[0xfe, 0xff], UTF_16),
    (
        b"PCLISTS",
        "a compiled snapshot of lists, which is no list: [lists] snapshot = ... loads it",
    ),
];

const UTF_16: Reason =
    "written in UTF-16: convert the file first, as with `iconv -f UTF-16 -t UTF-8`";

/// Pairs of octets that are looked at where there is no byte order mark.
const PAIRS: usize = 8;

/// What a file is, by its first line; `None` for text.
#[must_use]
pub fn foreign(first_line: &[u8]) -> Option<Reason> {
    let mut marks = MARKS.iter();
    let marked = marks.find(|(mark, _)| first_line.starts_with(mark));
    marked
        .map(|(_, reason)| *reason)
        .or_else(|| is_utf_16(first_line).then_some(UTF_16))
}

/// ASCII in UTF-16 has a zero in each pair, always at the same place. Two pairs at least: junk may
/// have one.
fn is_utf_16(text: &[u8]) -> bool {
    let (pairs, _) = text.as_chunks::<2>();
    let pairs = &pairs[..pairs.len().min(PAIRS)];
    pairs.len() >= 2
        && (pairs.iter().all(|&[low, high]| low != 0 && high == 0)
            || pairs.iter().all(|&[high, low]| low != 0 && high == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_never_taken_for_something_else() {
        for text in [
            &b""[..],
            b"1",
            b"192.0.2.1",
            b"192.0.2.1\0",
            b"\0\r\r",
            b"\xde\xad\xbe\xef\0\0",
            b"# B\xe9z\xe9h",
            b"7.0.0.0/8",
            b"{\"cidr\":\"192.0.2.0/24\"}",
        ] {
            assert_eq!(foreign(text), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn utf_16_is_known_with_and_without_a_mark_in_both_orders() {
        for text in [
            &b"\xff\xfe1\0.\0"[..],
            b"\xfe\xff\x001\0.",
            b"1\0.\x002\0",
            b"\x001\0.\x002",
        ] {
            assert_eq!(foreign(text), Some(UTF_16), "{}", text.escape_ascii());
        }
    }
}
