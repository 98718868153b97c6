//! The ring under the contract, with peers that are plain sockets on the loopback.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use portcullis::driver::ring::{PreparedRing, RingDriver, RingSettings, listen};

use super::{Shape, World, conformance};

/// A ring, and peers that are plain sockets on the loopback.
struct Loopback {
    driver: RingDriver,
    address: SocketAddr,
    next_hop: TcpListener,
}

fn peer(stream: TcpStream) -> TcpStream {
    stream.set_nonblocking(true).unwrap();
    stream
}

impl World for Loopback {
    type Driver = RingDriver;
    type Peer = TcpStream;

    fn new(shape: Shape) -> Self {
        let listener = listen("127.0.0.1:0".parse().unwrap(), 128).unwrap();
        let twin = TcpListener::from(listener.try_clone().unwrap());
        let settings = RingSettings {
            slots: shape.slots,
            listeners: vec![listener],
            buffers: shape.buffers,
            buffer_size: shape.buffer_size,
            ..RingSettings::default()
        };
        Self {
            driver: RingDriver::start(PreparedRing::new(settings).unwrap()).unwrap(),
            address: twin.local_addr().unwrap(),
            next_hop: TcpListener::bind("127.0.0.1:0").unwrap(),
        }
    }

    fn driver(&mut self) -> &mut RingDriver {
        &mut self.driver
    }

    fn call(&mut self) -> (TcpStream, SocketAddr) {
        let stream = TcpStream::connect(self.address).unwrap();
        let address = stream.local_addr().unwrap();
        (peer(stream), address)
    }

    fn next_hop(&mut self) -> SocketAddr {
        self.next_hop.local_addr().unwrap()
    }

    fn unbound(&mut self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    }

    fn called(&mut self) -> TcpStream {
        peer(self.next_hop.accept().unwrap().0)
    }

    fn say(&mut self, peer: &mut TcpStream, bytes: &[u8]) -> usize {
        match peer.write(bytes) {
            Ok(taken) => taken,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        }
    }

    fn hear(&mut self, peer: &mut TcpStream, heard: &mut Vec<u8>) -> bool {
        let mut buffer = [0; 65536];
        loop {
            match peer.read(&mut buffer) {
                Ok(0) => return true,
                Ok(length) => heard.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn read_slowly(&mut self, _peer: &mut TcpStream) {}

    fn finish(&mut self, peer: &mut TcpStream) {
        peer.shutdown(Shutdown::Write).unwrap();
    }
}

conformance!(Loopback);
