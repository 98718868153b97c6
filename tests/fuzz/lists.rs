//! Fuzzes the readers of lists: the first octet says the format, the rest is the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_tests::{fuzz_seeds, wild_list};

fuzz_target!(init: fuzz_seeds::lists(), |script: &[u8]| {
    if let Err(error) = wild_list::check(script) {
        panic!("{error}");
    }
});
