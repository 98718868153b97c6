//! Fuzzes the reader of PROXY headers: whatever a front sends first, however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_tests::{fuzz_seeds, wild_front};

fuzz_target!(init: fuzz_seeds::proxy(), |script: &[u8]| {
    if let Err(error) = wild_front::check_proxy(script) {
        panic!("{error}");
    }
});
