//! Fuzzes the session toward next hops: whatever they answer, however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_tests::{transcript, wild_next_hop};

fuzz_target!(init: transcript::write_seeds("client", "S", &[], &[wild_next_hop::COMMAND, 0]), |script: &[u8]| {
    if let Err(error) = wild_next_hop::check(script) {
        panic!("{error}");
    }
});
