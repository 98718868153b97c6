//! How the files of lists are read: each format by the file of its family, all of them line by line
//! in one pass.
//!
//! A line is an entry, an exclusion, something that is known to be neither (a comment, a
//! directive), or bad. Bad lines are counted, and the first are kept with the reason; what they
//! mean for the list is for the caller to decide. The file may be anything: reading takes memory
//! for its entries alone, and nothing in it makes reading fail but the file system.

mod abbreviated;
mod cidr;
pub mod foreign;
pub mod lines;
mod rbldnsd;
mod spamhaus;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use ipnet::IpNet;
use rustc_hash::FxHashSet;

use self::lines::{Line, Lines};
use super::entries::{Entries, Ipv4Prefix, Ipv6Prefix, MappedTooWide, Precedence};
use super::watch::Stamp;

/// How a file is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// An address, a prefix or a range on each line, comments from `#` or `;`: netset files and the
    /// like.
    #[default]
    Cidr,
    /// rbldnsd's `ip4set`: addresses, prefixes and ranges, abbreviated or not, with values and
    /// exclusions.
    Ip4set,
    /// rbldnsd's `ip4trie`: the same without ranges.
    Ip4trie,
    /// rbldnsd's `ip4tset`: whole addresses alone.
    Ip4tset,
    /// rbldnsd's `ip6trie`: IPv6 prefixes.
    Ip6trie,
    /// rbldnsd's `ip6tset`: IPv6 /64s, less single addresses.
    Ip6tset,
    /// Spamhaus DROP as it is published: a JSON object on each line.
    SpamhausJson,
}

impl Format {
    /// All of them, with their names in the configuration.
    pub const ALL: [(&'static str, Format); 7] = [
        ("cidr", Format::Cidr),
        ("rbldnsd-ip4set", Format::Ip4set),
        ("rbldnsd-ip4trie", Format::Ip4trie),
        ("rbldnsd-ip4tset", Format::Ip4tset),
        ("rbldnsd-ip6trie", Format::Ip6trie),
        ("rbldnsd-ip6tset", Format::Ip6tset),
        ("spamhaus-json", Format::SpamhausJson),
    ];

    /// The format of this name.
    pub fn named(name: &str) -> Option<Format> {
        let found = Format::ALL.iter().find(|(known, _)| *known == name);
        found.map(|&(_, format)| format)
    }

    /// Its name in the configuration.
    pub fn as_str(self) -> &'static str {
        let found = Format::ALL.iter().find(|&&(_, known)| known == self);
        found.map_or("", |&(name, _)| name)
    }
}

/// An invalid line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidLine {
    /// Counted from 1.
    pub line: u64,
    /// Its beginning, fit to be shown.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// A file, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What it lists: sorted, distinct, without what is excluded.
    pub entries: Entries,
    /// How many lines it has.
    pub lines: u64,
    /// How many bytes it has.
    pub octets: u64,
    /// How many lines are exclusions.
    pub excluded: u64,
    /// How many prefixes were there already, or are covered by another.
    pub merged: u64,
    /// How many prefixes had bits set beyond their length; those bits were cleared.
    pub masked: u64,
    /// The first line with such a prefix.
    pub masked_first: Option<u64>,
    /// How many lines are known to be no entries: directives, default values. Comments and empty
    /// lines are not counted.
    pub skipped: u64,
    /// How many lines are invalid.
    pub invalid_line_count: u64,
    /// The first of them, at most [`INVALID_LINES_KEPT`](Reading::INVALID_LINES_KEPT).
    pub invalid_lines: Vec<InvalidLine>,
    /// What says that the file is not whole, though each line may be good.
    pub incomplete: Option<&'static str>,
    /// What the file is in place of text, if it is something else: then it was not read on, and the
    /// first line is bad.
    pub foreign: Option<&'static str>,
    /// Which state of the file it was.
    pub stamp: Option<Stamp>,
}

impl Reading {
    /// Enough to see what kind of file it is.
    pub const INVALID_LINES_KEPT: usize = 10;
}

/// How far reading has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Octets read.
    pub octets: u64,
    /// Prefixes found, before any are merged.
    pub entries: u64,
}

/// Lines between two calls with the [`Progress`].
const PROGRESS_LINES: u64 = 1 << 16;

/// The buffer for a file, in bytes: several of the longest lines.
const BUFFER: usize = 256 * 1024;

/// Opens a file and reads it.
///
/// # Errors
/// When the file cannot be opened or read, is no regular file (reading a pipe or a device might
/// never end), or changes meanwhile.
pub fn read_file(
    format: Format,
    path: &Path,
    progress: impl FnMut(Progress),
) -> io::Result<Reading> {
    // Opening a pipe without a writer would already block.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let file = File::open(path)?;
    let stamp = Stamp::from(&file.metadata()?);
    let reading = read(format, BufReader::with_capacity(BUFFER, &file), progress)?;
    stamp.is_still(&file.metadata()?)?;
    Ok(Reading {
        stamp: Some(stamp),
        ..reading
    })
}

/// Reads a list.
///
/// # Errors
/// When the reader fails.
pub fn read(
    format: Format,
    reader: impl BufRead,
    progress: impl FnMut(Progress),
) -> io::Result<Reading> {
    match format {
        Format::Cidr => read_as(cidr::Cidr, reader, progress),
        Format::Ip4set => read_as(rbldnsd::Ip4::set(), reader, progress),
        Format::Ip4trie => read_as(rbldnsd::Ip4::trie(), reader, progress),
        Format::Ip4tset => read_as(rbldnsd::Ip4tset, reader, progress),
        Format::Ip6trie => read_as(rbldnsd::Ip6trie, reader, progress),
        Format::Ip6tset => read_as(rbldnsd::Ip6tset, reader, progress),
        Format::SpamhausJson => read_as(spamhaus::Drop::default(), reader, progress),
    }
}

/// What is wrong with a line, for people.
type Reason = &'static str;

const TOO_LONG: Reason = "longer than any line of a list";
const CUT_OFF: Reason =
    "the last line, without its end, and it may mean more than it should: the file looks cut off";

/// What a good line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// A comment, or empty.
    Nothing,
    /// Known to be no entry.
    Directive,
    Entry,
    /// An entry that had bits set beyond its length.
    MaskedEntry,
    Exclusion,
}

/// A format.
trait Dialect {
    const PRECEDENCE: Precedence = Precedence::Length;

    /// Takes a line, without its end. `ended`: whether it had one.
    fn line(&mut self, text: &[u8], ended: bool, found: &mut Found) -> Result<Meaning, Reason>;

    /// After the last line: what says that the file is not whole.
    fn incomplete(&self) -> Option<Reason> {
        None
    }
}

/// What was found so far.
#[derive(Default)]
struct Found {
    entries: Entries,
    excluded: Entries,
    /// The same as `excluded`, where the first of an entry and an exclusion of the same prefix
    /// counts.
    excluded_ipv4: FxHashSet<Ipv4Prefix>,
    excluded_ipv6: FxHashSet<Ipv6Prefix>,
    /// Entries that an exclusion before them made void.
    void: u64,
}

impl Found {
    fn push(&mut self, net: IpNet) -> Result<(), Reason> {
        self.entries
            .push(net)
            .map_err(|MappedTooWide| MappedTooWide::REASON)
    }

    fn exclude(&mut self, net: IpNet) -> Result<(), Reason> {
        self.excluded
            .push(net)
            .map_err(|MappedTooWide| MappedTooWide::REASON)
    }
}

fn read_as<D: Dialect>(
    mut dialect: D,
    reader: impl BufRead,
    mut progress: impl FnMut(Progress),
) -> io::Result<Reading> {
    let mut reading = Reading::default();
    let mut found = Found::default();
    let mut lines = Lines::new(reader);
    while let Some(line) = lines.advance()? {
        reading.lines = line.number;
        if line.number == 1
            && let Some(reason) = foreign::foreign(line.text)
        {
            reading.foreign = Some(reason);
            reading.note_bad(&line, reason);
            break;
        }
        let meaning = match line {
            Line { too_long: true, .. } => Err(TOO_LONG),
            Line { text, ended, .. } => dialect.line(text, ended, &mut found),
        };
        match meaning {
            Ok(Meaning::Entry | Meaning::Nothing) => {}
            Ok(Meaning::Directive) => reading.skipped += 1,
            Ok(Meaning::Exclusion) => reading.excluded += 1,
            Ok(Meaning::MaskedEntry) => {
                reading.masked += 1;
                reading.masked_first.get_or_insert(line.number);
            }
            Err(reason) => reading.note_bad(&line, reason),
        }
        if line.number.is_multiple_of(PROGRESS_LINES) {
            progress(Progress {
                octets: lines.octets(),
                entries: found.entries.len() as u64,
            });
        }
    }
    reading.octets = lines.octets();
    reading.incomplete = dialect.incomplete().filter(|_| reading.foreign.is_none());
    reading.entries = found.entries;
    reading.merged = found.void + reading.entries.finish(found.excluded, D::PRECEDENCE);
    Ok(reading)
}

impl Reading {
    fn note_bad(&mut self, line: &Line<'_>, reason: Reason) {
        self.invalid_line_count += 1;
        if self.invalid_lines.len() < Reading::INVALID_LINES_KEPT {
            self.invalid_lines.push(InvalidLine {
                line: line.number,
                text: shown(line.text),
                reason,
            });
        }
    }
}

/// The beginning of a line, with nothing in it that a terminal or a log would obey.
fn shown(text: &[u8]) -> String {
    const SHOWN_MAX: usize = 120;
    let cut = &text[..text.len().min(SHOWN_MAX)];
    let printable = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    String::from_utf8_lossy(cut)
        .replace('\t', " ")
        .trim()
        .chars()
        .map(printable)
        .collect()
}

/// The octets before a comment, and without white space around them.
fn before_comment(text: &[u8]) -> &[u8] {
    let end = memchr::memchr2(b'#', b';', text).unwrap_or(text.len());
    text[..end].trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(text: &[u8]) -> Reading {
        read(Format::Cidr, text, |_| {}).unwrap()
    }

    #[test]
    fn every_format_has_its_name_and_no_other() {
        for (name, format) in Format::ALL {
            assert_eq!((Format::named(name), format.as_str()), (Some(format), name));
        }
        assert_eq!(Format::named("ip4set"), None);
    }

    #[test]
    fn a_bad_line_is_shown_without_what_a_terminal_would_obey() {
        let reading = bad(b"\x1b[2J\xff\tx\0");
        assert_eq!(
            reading.invalid_lines[0].text,
            "\u{fffd}[2J\u{fffd} x\u{fffd}"
        );
        let reading = bad(&b"x".repeat(1_000));
        assert_eq!(reading.invalid_lines[0].text.len(), 120);
    }

    #[test]
    fn only_the_first_bad_lines_are_kept_and_all_are_counted() {
        let reading = bad(&b"x\n".repeat(1_000));
        assert_eq!(
            (reading.invalid_line_count, reading.invalid_lines.len()),
            (1_000, 10)
        );
    }

    #[test]
    fn a_compressed_file_is_told_by_its_name() {
        let reading = bad(b"\x1f\x8b\x08\0\0\nx\nx\n");
        let reason = reading.invalid_lines[0].reason;
        assert!(reason.contains("gzip"), "{reason}");
        assert_eq!(
            (reading.foreign, reading.invalid_line_count),
            (Some(reason), 1)
        );
    }

    #[test]
    fn what_is_no_file_is_not_read_for_ever() {
        for path in ["/dev/zero", "/", "/nonexistent"] {
            assert!(
                read_file(Format::Cidr, Path::new(path), |_| {}).is_err(),
                "{path}"
            );
        }
    }

    #[test]
    fn progress_is_told_while_a_long_file_is_read() {
        let mut seen = Vec::new();
        let text = b"192.0.2.1\n".repeat(200_000);
        read(Format::Cidr, &text[..], |progress| seen.push(progress)).unwrap();
        let expected = (1..=3).map(|n| Progress {
            octets: n * 655_360,
            entries: n * 65_536,
        });
        assert!(seen.into_iter().eq(expected));
    }
}
