//! Files of lists that may hold anything, for fuzzing: the first octet says the format, the rest is
//! the file.

use std::io::BufReader;

use portcullis::lists::entries::{Ipv4Prefix, Ipv6Prefix};
use portcullis::lists::format::{self, Format, Reading};

use crate::list_cases::Case;

/// Reads a file in several ways.
///
/// # Errors
/// Something that must hold whatever is in a file does not.
pub fn check(script: &[u8]) -> Result<(), String> {
    let [format, file @ ..] = script else {
        return Ok(());
    };
    let (name, format) = Format::ALL[usize::from(*format) % Format::ALL.len()];
    let read = |capacity: usize, file: &[u8]| {
        format::read(format, BufReader::with_capacity(capacity, file), |_| {})
            .map_err(|error| error.to_string())
    };
    let whole = read(1 << 16, file)?;
    if read(3, file)? != whole {
        return Err(format!("{name}: the size of the buffer makes a difference"));
    }
    check_entries(&whole).map_err(|fault| format!("{name}: {fault}"))?;
    check_counts(&whole).map_err(|fault| format!("{name}: {fault}"))?;
    // The order of lines means something to exclusions, to limits and to metadata alone.
    let has_order = whole.excluded > 0 || whole.skipped > 0 || whole.incomplete.is_some();
    if !has_order && file.ends_with(b"\n") {
        let mut lines: Vec<&[u8]> = file.split_inclusive(|&octet| octet == b'\n').collect();
        lines.reverse();
        let reversed = read(1 << 16, &lines.concat())?;
        // But for a mark at the beginning.
        if !file.starts_with(b"\xef\xbb\xbf")
            && !lines[0].starts_with(b"\xef\xbb\xbf")
            && whole.foreign.is_none()
            && reversed.foreign.is_none()
            && reversed.entries != whole.entries
        {
            return Err(format!("{name}: the order of lines makes a difference"));
        }
    }
    Ok(())
}

fn check_entries(reading: &Reading) -> Result<(), String> {
    let entries = &reading.entries;
    for prefix in &entries.ipv4 {
        if prefix.length > 32 || *prefix != Ipv4Prefix::around(prefix.address, prefix.length) {
            return Err(format!("{prefix} has host bits"));
        }
    }
    for prefix in &entries.ipv6 {
        if prefix.length > 128 || *prefix != Ipv6Prefix::around(prefix.address, prefix.length) {
            return Err(format!("{prefix} has host bits"));
        }
    }
    if !entries.ipv4.is_sorted_by(|a, b| a < b) || !entries.ipv6.is_sorted_by(|a, b| a < b) {
        return Err("the prefixes are not sorted and distinct".to_owned());
    }
    Ok(())
}

fn check_counts(reading: &Reading) -> Result<(), String> {
    let bad = reading.invalid_lines.len();
    let kept = reading
        .invalid_line_count
        .min(Reading::INVALID_LINES_KEPT as u64);
    if bad as u64 != kept {
        return Err(format!(
            "{bad} bad lines are kept of {}",
            reading.invalid_line_count
        ));
    }
    if reading
        .invalid_lines
        .iter()
        .any(|bad| bad.text.chars().any(char::is_control))
    {
        return Err("a bad line would be obeyed by a terminal".to_owned());
    }
    let accounted =
        reading.invalid_line_count + reading.skipped + reading.excluded + reading.masked;
    if accounted > reading.lines {
        return Err(format!(
            "{accounted} lines of {} are accounted for",
            reading.lines
        ));
    }
    Ok(())
}

/// The script for a case.
#[must_use]
pub fn script(case: &Case) -> Vec<u8> {
    let format = Format::ALL
        .iter()
        .position(|&(_, known)| known == case.format);
    let mut script = vec![format.unwrap_or_default() as u8];
    script.extend_from_slice(&case.file);
    script
}
