//! The transport against rustls' own client and server, which keep buffers, and against itself.

mod hostile;
mod load;
mod next_hop;
mod server;
mod session;

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::test_pki::Authority;
use super::{Fault, ServerSettings, ServerTls, Step, Tls};

/// All that stepping led to.
#[derive(Debug, Default)]
struct Stepped {
    plain: Vec<u8>,
    out: Vec<u8>,
    steps: Vec<Step>,
}

/// Feeds octets and steps until the connection is blocked.
fn run(tls: &mut Tls, received: &[u8]) -> Result<Stepped, (Stepped, Fault)> {
    tls.feed(received);
    let mut stepped = Stepped::default();
    loop {
        match tls.step(&mut stepped.plain, &mut stepped.out) {
            Ok(step) => {
                stepped.steps.push(step);
                if step == Step::Blocked {
                    return Ok(stepped);
                }
            }
            Err(fault) => return Err((stepped, fault)),
        }
    }
}

/// rustls' own client.
fn client(config: &ClientConfig, name: &str) -> ClientConnection {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    ClientConnection::new(Arc::new(config.clone()), name).unwrap()
}

/// All that the client has to send.
fn sent_by(client: &mut ClientConnection) -> Vec<u8> {
    let mut sent = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut sent).unwrap();
    }
    sent
}

/// Gives the client octets; what it reads of them, or what is wrong with them.
fn receive(client: &mut ClientConnection, mut octets: &[u8]) -> Result<Vec<u8>, rustls::Error> {
    let mut plain = Vec::new();
    while !octets.is_empty() {
        client.read_tls(&mut octets).unwrap();
        client.process_new_packets()?;
        let mut part = [0; 4096];
        while let Ok(octets @ 1..) = client.reader().read(&mut part) {
            plain.extend_from_slice(&part[..octets]);
        }
    }
    Ok(plain)
}

/// Lets the two shake hands; `cut` is how many octets the server gets at a time.
fn shake_hands(tls: &mut Tls, client: &mut ClientConnection, cut: usize) -> Result<(), Fault> {
    loop {
        let sent = sent_by(client);
        if sent.is_empty() {
            return Ok(());
        }
        for piece in sent.chunks(cut) {
            let (out, fault) = match run(tls, piece) {
                Ok(stepped) => (stepped.out, None),
                Err((stepped, fault)) => (stepped.out, Some(fault)),
            };
            let _ = receive(client, &out);
            if let Some(fault) = fault {
                return Err(fault);
            }
        }
    }
}

/// A server and a client that have shaken hands.
fn connected(settings: &ServerSettings) -> (Tls, ClientConnection) {
    let authority = Authority::new();
    let listener = authority.listener(settings);
    let mut client = client(&authority.client_config(), "mx.example");
    let mut tls = listener.accept().unwrap();
    shake_hands(&mut tls, &mut client, usize::MAX).unwrap();
    assert!(tls.is_ready() && !client.is_handshaking());
    (tls, client)
}

/// What the client has to send for these plain octets.
fn sealed_by(client: &mut ClientConnection, plain: &[u8]) -> Vec<u8> {
    client.writer().write_all(plain).unwrap();
    sent_by(client)
}

/// A handshake between a listener and a client with this configuration.
fn handshake(
    listener: &ServerTls,
    config: &ClientConfig,
    name: &str,
) -> (Tls, ClientConnection, Result<(), Fault>) {
    let mut client = client(config, name);
    let mut tls = listener.accept().unwrap();
    let shaken = shake_hands(&mut tls, &mut client, usize::MAX);
    (tls, client, shaken)
}
