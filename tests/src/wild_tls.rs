//! Octets of a network that may be anything, toward both sides of the TLS transport, for fuzzing
//! and for properties.
//!
//! A script is octets: the first says what the rest is, the second how it is cut. Keys and random
//! octets are new each time, so a script does not lead to the same octets twice; what must hold
//! does not depend on them.

use std::fs;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use portcullis::tls::{
    Certificates, ClientSettings, ClientTls, Identity, KeyFiles, MinVersion, ServerSettings,
    ServerTls, Step, Tickets, Tls, Verification,
};

/// What the client says after the handshake.
const PLAIN: &[u8] = b"EHLO client.example\r\nMAIL FROM:<a@client.example>\r\n";
/// More than is ever kept of what is incomplete: the longest flight of a handshake.
const KEPT_MAX: usize = 1 << 15;
/// What one side may say, beyond a few octets for each that it gets.
const SENT_MAX: usize = 1 << 14;

/// What the rest of a script is, from the first octet modulo 4.
#[derive(Clone, Copy, Debug)]
enum Script {
    /// The first octets that a server gets.
    ToServer,
    /// The first octets that a client gets.
    ToClient,
    /// What a server gets after a good handshake.
    AfterHandshake,
    /// What is changed in what a good client sends: each octet is combined (XOR) with one of it.
    Changes,
}

/// A listener with a certificate of its own making, and a route that verifies nothing.
///
/// # Panics
/// When there is no directory for temporary files.
#[must_use]
pub fn ends() -> (ServerTls, ClientTls) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let made = rcgen::generate_simple_self_signed(["mx.example".to_owned()]);
    let made = made.expect("a certificate");
    let files = KeyFiles {
        certificate: directory.path().join("cert.pem"),
        key: directory.path().join("key.pem"),
    };
    fs::write(&files.certificate, made.cert.pem()).expect("a file");
    fs::write(&files.key, made.signing_key.serialize_pem()).expect("a file");
    let now = SystemTime::now();
    let identity = Identity::load(&files, now).expect("a good certificate");
    let certificates = Arc::new(Certificates::new(identity, Vec::new()));
    let settings = ServerSettings::default();
    let server = ServerTls::new(&settings, &certificates, &Tickets::default());
    let client = ClientSettings {
        min_version: MinVersion::Tls12,
        verification: Verification::None,
        certificate: None,
    };
    let client = ClientTls::new(&client, now).expect("nothing is read for it");
    (server.expect("nothing is read for it"), client)
}

static ENDS: LazyLock<(ServerTls, ClientTls)> = LazyLock::new(ends);

/// Plays a script.
///
/// # Errors
/// Something that must hold whatever comes does not.
pub fn check(script: &[u8]) -> Result<(), String> {
    let [kind, cut, octets @ ..] = script else {
        return Ok(());
    };
    let kinds = [
        Script::ToServer,
        Script::ToClient,
        Script::AfterHandshake,
        Script::Changes,
    ];
    let kind = kinds[usize::from(*kind) % kinds.len()];
    let cut = usize::from(*cut) * 8 + 1;
    play(kind, cut, octets).map_err(|fault| format!("{kind:?}, cut {cut}: {fault}"))
}

/// The first octets of a client.
///
/// # Errors
/// There are no random octets.
pub fn client_hello() -> Result<Vec<u8>, String> {
    let mut client = client()?;
    Ok(feed(&mut client, b"")?.out)
}

/// Lets a client and a server shake hands.
///
/// # Errors
/// The handshake fails.
pub fn shake_hands(client: &mut Tls, server: &mut Tls) -> Result<(), String> {
    let mut to_server = feed(client, b"")?.out;
    while !to_server.is_empty() {
        let to_client = feed(server, &to_server)?.out;
        to_server = feed(client, &to_client)?.out;
    }
    if client.is_ready() && server.is_ready() {
        Ok(())
    } else {
        Err("the handshake is not complete".to_owned())
    }
}

fn play(kind: Script, cut: usize, octets: &[u8]) -> Result<(), String> {
    match kind {
        Script::ToServer => nothing_is_opened(&mut server()?, cut, octets),
        Script::ToClient => nothing_is_opened(&mut client()?, cut, octets),
        Script::AfterHandshake => {
            let (mut client, mut server) = (client()?, server()?);
            shake_hands(&mut client, &mut server)?;
            nothing_is_opened(&mut server, cut, octets)
        }
        Script::Changes => changed(cut, octets),
    }
}

/// A good client whose octets are changed on the way: what is opened is what it sent, or the
/// beginning of it.
fn changed(cut: usize, changes: &[u8]) -> Result<(), String> {
    let (mut client, mut server) = (client()?, server()?);
    let mut changes = changes.iter();
    let mut opened = Vec::new();
    let mut to_server = feed(&mut client, b"")?.out;
    while !to_server.is_empty() {
        for (octet, change) in to_server.iter_mut().zip(&mut changes) {
            *octet ^= change;
        }
        let (mut to_client, mut is_faulty) = (Vec::new(), false);
        for piece in to_server.chunks(cut) {
            let stepped = feed(&mut server, piece)?;
            opened.extend(stepped.plain);
            to_client.extend(stepped.out);
            is_faulty = stepped.is_faulty;
        }
        if is_faulty {
            break;
        }
        let was_ready = client.is_ready();
        let stepped = feed(&mut client, &to_client)?;
        to_server = stepped.out;
        if client.is_ready() && !was_ready && !stepped.is_faulty {
            client
                .seal(PLAIN, &mut to_server)
                .map_err(|fault| fault.to_string())?;
        }
    }
    if PLAIN.starts_with(&opened) {
        Ok(())
    } else {
        Err(format!("opened {}", opened.escape_ascii()))
    }
}

fn nothing_is_opened(tls: &mut Tls, cut: usize, octets: &[u8]) -> Result<(), String> {
    let (mut sent, mut was_faulty) = (0, false);
    for piece in octets.chunks(cut) {
        let stepped = feed(tls, piece)?;
        if !stepped.plain.is_empty() {
            return Err(format!("opened {}", stepped.plain.escape_ascii()));
        }
        if was_faulty && !(stepped.is_faulty && stepped.out.is_empty()) {
            return Err("it goes on after a fault".to_owned());
        }
        was_faulty = stepped.is_faulty;
        sent += stepped.out.len();
    }
    if sent > SENT_MAX + 4 * octets.len() {
        return Err(format!("{sent} octets sent for {}", octets.len()));
    }
    let is_sealed = tls.seal(b"250 OK\r\n", &mut Vec::new()).is_ok();
    if is_sealed && (was_faulty || !tls.is_ready()) {
        return Err("it seals what it must not".to_owned());
    }
    tls.close(&mut Vec::new());
    Ok(())
}

#[derive(Default)]
struct Stepped {
    plain: Vec<u8>,
    out: Vec<u8>,
    is_faulty: bool,
}

/// Feeds octets and steps until nothing more can be done.
fn feed(tls: &mut Tls, octets: &[u8]) -> Result<Stepped, String> {
    tls.feed(octets);
    let mut stepped = Stepped::default();
    // Each step takes an octet at least, or says something that is said once.
    for _ in 0..2 * (octets.len() + KEPT_MAX) {
        let before = stepped.plain.len();
        match tls.step(&mut stepped.plain, &mut stepped.out) {
            Ok(Step::Blocked) if tls.octets_kept() > KEPT_MAX => {
                return Err(format!("{} octets are kept", tls.octets_kept()));
            }
            Ok(Step::Blocked) => return Ok(stepped),
            Ok(Step::Opened) if stepped.plain.len() - before > 1 << 14 => {
                return Err("more than a record in one step".to_owned());
            }
            Ok(_) => {}
            Err(_) if stepped.plain.len() != before => {
                return Err("a fault opened something".to_owned());
            }
            Err(_) => {
                stepped.is_faulty = true;
                return Ok(stepped);
            }
        }
    }
    Err("it is never blocked".to_owned())
}

fn server() -> Result<Tls, String> {
    ENDS.0.accept().map_err(|fault| fault.to_string())
}

fn client() -> Result<Tls, String> {
    let client = ENDS.1.connect("mx.example");
    client.map_err(|fault| fault.to_string())
}
