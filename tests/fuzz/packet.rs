//! Fuzzes the reader of packets, the verdict and the RST: whatever comes in over the wire.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_tests::{fuzz_seeds, wild_packet};

fuzz_target!(init: fuzz_seeds::packets(), |script: &[u8]| {
    if let Err(error) = wild_packet::check(script) {
        panic!("{error}");
    }
});
