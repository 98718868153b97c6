//! Fuzzes the attributes of XCLIENT: whatever a client calls itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_tests::{fuzz_seeds, wild_front};

fuzz_target!(init: fuzz_seeds::xclient(), |script: &[u8]| {
    if let Err(error) = wild_front::check_xclient(script) {
        panic!("{error}");
    }
});
