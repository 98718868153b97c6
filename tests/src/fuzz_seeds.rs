//! The tables of cases as the beginning of a fuzzer's corpus.
//!
//! Each target writes its own when it starts, as scripts of the `wild_*` module that it feeds, into
//! the directory that `PORTCULLIS_FUZZ_SEEDS` names; `cargo xtask fuzz` sets it.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::{
    front_cases, list_cases, packet_cases, transcript, wild_client, wild_list, wild_login,
    wild_next_hop, wild_sasl, wild_tls,
};

/// What clients say in the transcripts, with a flush wherever the server speaks. The policy accepts
/// everything, and groups are cut into pieces of four octets.
pub fn server() {
    write(|| spoken("server", "C", &[0, 3], &[wild_client::FLUSH]));
}

/// What next hops say in the transcripts, with a command wherever the relay speaks.
pub fn client() {
    write(|| spoken("client", "S", &[], &[wild_next_hop::COMMAND, 0]));
}

/// The files of the list cases.
pub fn lists() {
    write(|| Ok(list_cases::load()?.iter().map(wild_list::script).collect()));
}

/// Logs with logins, and with what is near one.
pub fn logins() {
    write(|| {
        Ok(wild_login::SEEDS
            .map(|seed| seed.as_bytes().to_vec())
            .to_vec())
    });
}

/// The frames of the packet cases, with the two octets of [`wild_packet`](crate::wild_packet) that
/// choose the settings.
pub fn packets() {
    write(|| {
        let files = packet_cases::all()?;
        let cases = files.iter().flat_map(|file| &file.cases);
        Ok(cases
            .map(|case| [&[0, 0], case.frame.as_slice()].concat())
            .collect())
    });
}

/// The beginnings of connections in the table of PROXY headers.
pub fn proxy() {
    write(|| {
        let cases = front_cases::all()?;
        Ok(cases
            .iter()
            .map(|case| [&[3], case.octets.as_slice()].concat())
            .collect())
    });
}

/// Exchanges that come to a check or to a proof, lines of Dovecot, and a user file.
pub fn sasl() {
    write(|| Ok(wild_sasl::SEEDS.iter().map(|seed| seed.to_vec()).collect()));
}

/// A client whose names are as they should be, and one whose names are not.
pub fn xclient() {
    write(|| {
        let names = ["[192.0.2.1]\nanna\nclient.example", "a b\r\n+=\0\nü\n"];
        Ok(names
            .map(|names| [&[0xff], names.as_bytes()].concat())
            .to_vec())
    });
}

/// The first octets of a client, whole and in pieces, and a handshake in which nothing is changed
/// before the first record after it.
pub fn tls() {
    write(|| {
        let hello = wild_tls::client_hello().map_err(anyhow::Error::msg)?;
        Ok(vec![
            [&[0, 255], hello.as_slice()].concat(),
            [&[0, 0], hello.as_slice()].concat(),
            [&[2, 255, 23, 3, 3, 0, 4][..], b"QUIT"].concat(),
            [&[3, 255][..], &[0; 450], &[1]].concat(),
        ])
    });
}

/// A fuzzer without seeds still works, so that they cannot be written is only said.
fn write(seeds: impl FnOnce() -> Result<Vec<Vec<u8>>>) {
    let Some(directory) = std::env::var_os("PORTCULLIS_FUZZ_SEEDS") else {
        return;
    };
    let written = seeds().and_then(|seeds| {
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(Path::new(&directory).join(format!("case-{number}")), seed)?;
        }
        Ok(())
    });
    if let Err(error) = written {
        eprintln!("no seeds: {error:#}");
    }
}

/// What the side with this key says in each transcript of this kind, behind `begin`; `separator`
/// goes where the other side spoke.
fn spoken(kind: &str, key: &str, begin: &[u8], separator: &[u8]) -> Result<Vec<Vec<u8>>> {
    let cases = transcript::read(kind)?;
    cases
        .iter()
        .map(|case| {
            let mut seed = begin.to_vec();
            let mut speaking = true;
            for line in &case.lines {
                if line.key == key {
                    if !speaking && seed.len() > begin.len() {
                        seed.extend_from_slice(separator);
                    }
                    seed.extend(line.octets()?);
                }
                speaking = line.key == key;
            }
            Ok(seed)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_a_flush_wherever_the_server_spoke_between_two_commands() {
        let seeds = spoken("server", "C", &[0, 3], &[wild_client::FLUSH]).unwrap();
        let flushes = |seed: &Vec<u8>| seed.contains(&wild_client::FLUSH);
        assert!(seeds.iter().all(|seed| seed.starts_with(&[0, 3])));
        assert!(seeds.iter().any(flushes));
        assert!(
            seeds
                .iter()
                .all(|seed| seed.get(2) != Some(&wild_client::FLUSH))
        );
    }
}
