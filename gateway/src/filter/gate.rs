//! The admin endpoint of the gate that holds the filter. It is stored beside the pins, so that a
//! command finds it without a configuration.

use std::net::SocketAddr;
use std::path::Path;

use portcullis_ebpf_common::layout::GateRecord;

use super::Error;
use super::address::{of_source, source};
use super::maps::Maps;
use super::pins::Pins;

/// The admin endpoint of the gate that holds the filter under this pin path, or held it last;
/// `None` if it has none. The gate may have ended since.
///
/// # Errors
/// As of [`status`](fn@super::status).
pub fn admin(pin_path: &Path) -> Result<Option<SocketAddr>, Error> {
    let record = Maps::open(&Pins::attached(pin_path)?)?.gate()?;
    Ok(address(&record))
}

pub(super) fn record(admin: Option<SocketAddr>) -> GateRecord {
    admin.map_or_else(GateRecord::default, |admin| GateRecord {
        admin: source(admin.ip()).0,
        port: admin.port().into(),
    })
}

fn address(record: &GateRecord) -> Option<SocketAddr> {
    let port = u16::try_from(record.port).ok().filter(|port| *port != 0)?;
    Some(SocketAddr::new(of_source(record.admin), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_back_from_its_record() {
        for text in ["127.0.0.1:9925", "[::1]:80", "[::]:65535"] {
            let admin = text.parse().unwrap();
            assert_eq!(address(&record(Some(admin))), Some(admin), "{text}");
        }
        assert_eq!(address(&record(None)), None);
    }
}
