//! What trusted fronts send first: the table of PROXY headers, and properties that hold whatever
//! comes.

use portcullis_tests::front_cases::{self, Case};
use portcullis_tests::wild_front::{self, Read, read_in_pieces};
use proptest::prelude::*;

fn in_words(read: &Read) -> String {
    match read {
        Ok(Some((header, _))) => header.to_string(),
        Ok(None) => "incomplete".to_owned(),
        Err(error) => format!("bad: {error}"),
    }
}

fn cases() -> Vec<Case> {
    front_cases::all().expect("the table can be read")
}

#[test]
fn headers_are_read_as_the_table_says_however_they_are_cut() {
    for case in cases() {
        let Case { name, octets, .. } = &case;
        let whole = read_in_pieces(octets, octets.len());
        assert_eq!(in_words(&whole), case.expected, "{name}");
        if let Ok(Some((_, length))) = whole {
            assert_eq!(octets[length..], case.rest, "{name}: what follows");
        }
        for piece in 1..octets.len() {
            let read = read_in_pieces(octets, piece);
            assert_eq!(read, whole, "{name}: in pieces of {piece}");
        }
    }
}

#[test]
fn a_header_without_its_end_is_neither_good_nor_bad() {
    for case in cases() {
        let Case { name, octets, .. } = &case;
        let Ok(Some((_, length))) = read_in_pieces(octets, octets.len()) else {
            continue;
        };
        for end in 0..length {
            let read = read_in_pieces(&octets[..end], octets.len());
            assert_eq!(read, Ok(None), "{name}: {end} octets");
        }
    }
}

#[test]
fn what_must_hold_of_any_beginning_holds_of_what_is_near_the_table() {
    let mut random = fastrand::Rng::with_seed(2_205);
    for case in cases() {
        for _ in 0..200 {
            let mut script = vec![random.u8(..)];
            script.extend(&case.octets);
            for _ in 0..random.usize(..4) {
                let at = random.usize(1..script.len());
                script[at] = random.u8(..);
            }
            if let Err(error) = wild_front::check_proxy(&script) {
                panic!("{}: {error}: {}", case.name, script.escape_ascii());
            }
        }
    }
}

proptest! {
    #[test]
    fn what_must_hold_of_xclient_holds_whatever_a_client_calls_itself(
        offered: u8,
        names in prop::collection::vec(".{0,300}", 0..4),
    ) {
        let script = [&[offered], names.join("\n").as_bytes()].concat();
        prop_assert_eq!(wild_front::check_xclient(&script), Ok(()));
    }
}
