//! Fuzzes the responses of AUTH, lines of Dovecot, and the user file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_tests::{fuzz_seeds, wild_sasl};

fuzz_target!(init: fuzz_seeds::sasl(), |script: &[u8]| {
    if let Err(error) = wild_sasl::check(script) {
        panic!("{error}");
    }
});
