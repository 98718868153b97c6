//! Tells the service manager how the gate is: the datagrams of sd_notify(3), where `NOTIFY_SOCKET`
//! asks for them.
//!
//! Three messages and no answer are less than a dependency. Nothing depends on their arriving: a
//! gate without a service manager is the usual case while one tries it out.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The gate serves, or serves again after a reload.
pub(super) fn ready() {
    tell("READY=1");
}

/// A reload has begun. Type=notify-reload wants to know when, so that it can tell it from the one
/// before.
pub(super) fn reloading() {
    let since_boot = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    let microseconds = since_boot.as_micros();
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
}

/// The gate is about to stop.
pub(super) fn stopping() {
    tell("STOPPING=1");
}

fn tell(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(path.as_bytes(), state) {
        tracing::debug!(%error, "cannot tell the service manager");
    }
}

/// A leading `@` means the zero octet of an abstract address.
fn send(path: &[u8], state: &str) -> io::Result<()> {
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_manager_hears_it_on_a_path_and_on_an_abstract_address() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("portcullis-test-{}", std::process::id());
        let on_path = UnixDatagram::bind(&path).unwrap();
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        let on_name = UnixDatagram::bind_addr(&abstract_address).unwrap();
        let wanted = [
            (on_path, path.as_os_str().as_bytes().to_vec()),
            (on_name, format!("@{name}").into_bytes()),
        ];
        for (socket, address) in wanted {
            send(&address, "READY=1").unwrap();
            let mut heard = [0; 64];
            let length = socket.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], b"READY=1");
        }
    }
}
