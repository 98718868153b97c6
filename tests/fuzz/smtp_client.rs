//! Fuzzes the session toward next hops: whatever they answer, however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_tests::{fuzz_seeds, wild_next_hop};

fuzz_target!(init: fuzz_seeds::client(), |script: &[u8]| {
    if let Err(error) = wild_next_hop::check(script) {
        panic!("{error}");
    }
});
