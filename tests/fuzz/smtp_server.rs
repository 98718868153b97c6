//! Fuzzes the session toward clients: whatever they say, however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_tests::{transcript, wild_client};

fuzz_target!(init: transcript::write_seeds("server", "C", &[0, 3], &[wild_client::FLUSH]), |script: &[u8]| {
    if let Err(error) = wild_client::check(script) {
        panic!("{error}");
    }
});
