//! Fuzzes the readers of lists: the first octet says the format, the rest is the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_tests::wild_list;

fuzz_target!(init: wild_list::write_seeds(), |script: &[u8]| {
    if let Err(error) = wild_list::check(script) {
        panic!("{error}");
    }
});
