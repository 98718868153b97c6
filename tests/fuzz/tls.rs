//! Fuzzes the TLS transport: the first octet says what the rest is and where it is put.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_tests::{fuzz_seeds, wild_tls};

fuzz_target!(init: fuzz_seeds::tls(), |script: &[u8]| {
    if let Err(error) = wild_tls::check(script) {
        panic!("{error}");
    }
});
