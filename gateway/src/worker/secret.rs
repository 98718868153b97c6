//! Input that may hold a password: the lines of AUTH (RFC 4954). What was received stays in memory
//! that is used again, or is freed as it is, so it is wiped once it was read.
//!
//! Only lines of AUTH are: wiping all that comes would cost every message. Base64 is as good as
//! plain text here.

use zeroize::Zeroize as _;

/// Whether a line that has not come to its end may be AUTH with a password.
pub(super) fn begins_auth(input: &[u8]) -> bool {
    let verb = input.get(..4);
    verb.is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH"))
}

/// Appends to what was kept. Where that has to move it leaves nothing behind.
pub(super) fn append(kept: &mut Vec<u8>, octets: &[u8]) {
    if kept.capacity() - kept.len() < octets.len() {
        let mut moved = Vec::with_capacity((kept.len() + octets.len()).next_power_of_two());
        moved.extend_from_slice(kept);
        kept.zeroize();
        *kept = moved;
    }
    kept.extend_from_slice(octets);
}

/// Takes out what was used. Nothing of it is left behind the end.
pub(super) fn consume(kept: &mut Vec<u8>, used: usize) {
    let used = used.min(kept.len());
    kept.copy_within(used.., 0);
    let left = kept.len() - used;
    kept[left..].zeroize();
    kept.truncate(left);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_auth_is_known_by_its_verb_in_any_case() {
        for line in [&b"AUTH PLAIN AGE"[..], b"auth", b"Auth "] {
            assert!(begins_auth(line));
        }
        for line in [&b"AUT"[..], b"", b"MAIL FROM:<auth@a.example>"] {
            assert!(!begins_auth(line));
        }
    }

    #[test]
    fn what_was_used_is_not_left_behind_the_end() {
        let mut kept = b"AUTH PLAIN c2VjcmV0\r\nQUIT".to_vec();
        consume(&mut kept, 21);
        assert_eq!(kept, b"QUIT");
        // The octets behind the end are those of the vector still.
        let capacity = kept.capacity();
        kept.resize(capacity.min(25), b'.');
        append(&mut kept, b"x");
        assert!(!kept.windows(4).any(|part| part == b"c2Vj"));
        consume(&mut kept, 1_000);
        assert!(kept.is_empty());
    }
}
