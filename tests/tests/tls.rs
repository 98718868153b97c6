//! The TLS transport under octets that may be anything, however they are cut.

use portcullis_tests::wild_tls;
use proptest::prelude::*;

fn cases() -> u32 {
    if portcullis_tests::full() { 4000 } else { 300 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn whatever_comes_what_must_hold_holds(
        kind in 0_u8..4,
        cut in any::<u8>(),
        // Mostly nothing is changed, so that changes get to the records after the handshake.
        good in 0_usize..700,
        octets in prop::collection::vec(any::<u8>(), 0..200),
        is_record in any::<bool>(),
    ) {
        let mut script = vec![kind, cut];
        if kind == 3 {
            script.resize(2 + good, 0);
        } else if is_record {
            script.extend([22, 3, 3, 0, octets.len().try_into().unwrap_or(u8::MAX)]);
        }
        script.extend(octets);
        let checked = wild_tls::check(&script);
        prop_assert!(checked.is_ok(), "{checked:?}");
    }

    #[test]
    fn a_hello_that_was_changed_is_taken_or_refused(
        cut in any::<u8>(),
        at in any::<prop::sample::Index>(),
        octets in prop::collection::vec(any::<u8>(), 1..4),
    ) {
        let mut script = vec![0, cut];
        let hello = wild_tls::client_hello().unwrap();
        let at = at.index(hello.len());
        script.extend(&hello[..at]);
        script.extend(&octets);
        script.extend(hello.get(at + octets.len()..).unwrap_or_default());
        let checked = wild_tls::check(&script);
        prop_assert!(checked.is_ok(), "{checked:?}");
    }
}
