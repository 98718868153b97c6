//! Fuzzes what follows a log for logins: the first octet says how it is cut, the rest is the log.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_tests::{fuzz_seeds, wild_login};

fuzz_target!(init: fuzz_seeds::logins(), |script: &[u8]| {
    if let Err(error) = wild_login::check(script) {
        panic!("{error}");
    }
});
