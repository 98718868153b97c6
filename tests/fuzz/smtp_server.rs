//! Fuzzes the session toward clients: whatever they say, however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_tests::{fuzz_seeds, wild_client};

fuzz_target!(init: fuzz_seeds::server(), |script: &[u8]| {
    if let Err(error) = wild_client::check(script) {
        panic!("{error}");
    }
});
