//! Octets through a connection that is good.

use proptest::prelude::*;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, SupportedProtocolVersion};

use super::super::test_pki::Authority;
use super::super::{Cipher, FaultKind, MinVersion, ServerSettings, Step, provider};
use super::{client, connected, receive, run, sealed_by, sent_by, shake_hands};

const COMMANDS: &[u8] = b"EHLO client.example\r\nMAIL FROM:<a@client.example>\r\n";

/// A client that speaks one version alone.
fn client_of(authority: &Authority, version: &'static SupportedProtocolVersion) -> ClientConfig {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth()
}

#[test]
fn a_handshake_and_records_split_at_every_octet_come_out_the_same() {
    for version in [&TLS12, &TLS13] {
        let authority = Authority::new();
        let listener = authority.listener(&ServerSettings::default());
        let config = client_of(&authority, version);
        let mut client = client(&config, "mx.example");
        let mut tls = listener.accept().unwrap();
        shake_hands(&mut tls, &mut client, 1).unwrap();
        assert!(tls.is_ready());
        let mut plain = Vec::new();
        for octet in sealed_by(&mut client, COMMANDS) {
            plain.extend(run(&mut tls, &[octet]).unwrap().plain);
        }
        assert_eq!(plain, COMMANDS);
        let mut out = Vec::new();
        tls.seal(b"250 OK\r\n", &mut out).unwrap();
        assert_eq!(receive(&mut client, &out).unwrap(), b"250 OK\r\n");
    }
}

#[test]
fn a_step_opens_one_record() {
    let (mut tls, mut client) = connected(&ServerSettings::default());
    let mut sent = sealed_by(&mut client, b"NOOP\r\n");
    sent.extend(sealed_by(&mut client, b"QUIT\r\n"));
    tls.feed(&sent);
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    assert_eq!(tls.step(&mut plain, &mut out), Ok(Step::Opened));
    assert_eq!(plain, b"NOOP\r\n");
    assert_eq!(tls.step(&mut plain, &mut out), Ok(Step::Opened));
    assert_eq!(tls.step(&mut plain, &mut out), Ok(Step::Blocked));
    assert_eq!(plain, b"NOOP\r\nQUIT\r\n");
}

#[test]
fn the_handshake_is_said_to_be_complete_once() {
    let authority = Authority::new();
    let mut tls = authority
        .listener(&ServerSettings::default())
        .accept()
        .unwrap();
    let mut client = client(&authority.client_config(), "mx.example");
    let hello = run(&mut tls, &sent_by(&mut client)).unwrap();
    assert!(!hello.steps.contains(&Step::Ready) && tls.cipher().is_none());
    receive(&mut client, &hello.out).unwrap();
    let finished = run(&mut tls, &sent_by(&mut client)).unwrap();
    let ready = finished.steps.iter().filter(|step| **step == Step::Ready);
    assert_eq!(ready.count(), 1);
    let again = run(&mut tls, &sealed_by(&mut client, b"NOOP\r\n")).unwrap();
    assert!(!again.steps.contains(&Step::Ready));
}

#[test]
fn nothing_is_sealed_before_the_handshake_is_complete() {
    let authority = Authority::new();
    let mut tls = authority
        .listener(&ServerSettings::default())
        .accept()
        .unwrap();
    let mut out = Vec::new();
    assert!(tls.seal(b"220 mx.example\r\n", &mut out).is_err());
    tls.close(&mut out);
    assert_eq!(out, b"");
    // It can still go on.
    let mut client = client(&authority.client_config(), "mx.example");
    shake_hands(&mut tls, &mut client, usize::MAX).unwrap();
}

#[test]
fn what_was_fed_before_a_seal_is_opened_in_its_order() {
    let (mut tls, mut client) = connected(&ServerSettings::default());
    let mut sent = sealed_by(&mut client, b"NOOP\r\n");
    sent.extend(sealed_by(&mut client, b"QUIT\r\n"));
    client.send_close_notify();
    sent.extend(sent_by(&mut client));
    tls.feed(&sent);
    let mut out = Vec::new();
    tls.seal(b"250 OK\r\n", &mut out).unwrap();
    assert_eq!(receive(&mut client, &out).unwrap(), b"250 OK\r\n");
    let rest = run(&mut tls, b"").unwrap();
    assert_eq!(rest.plain, b"NOOP\r\nQUIT\r\n");
    assert_eq!(rest.steps, [Step::Opened, Step::Closed, Step::Blocked]);
}

#[test]
fn close_notify_goes_both_ways_and_nothing_is_read_after_it() {
    let (mut tls, mut client) = connected(&ServerSettings::default());
    client.send_close_notify();
    let mut sent = sent_by(&mut client);
    sent.extend_from_slice(b"DATA\r\n");
    let stepped = run(&mut tls, &sent).unwrap();
    assert_eq!(stepped.steps, [Step::Closed, Step::Blocked]);
    assert_eq!(stepped.plain, b"");
    assert_eq!(run(&mut tls, b"garbage").unwrap().steps, [Step::Blocked]);
    assert_eq!(tls.end(), Ok(()));
    let mut out = Vec::new();
    tls.seal(b"221 Bye\r\n", &mut out).unwrap();
    tls.close(&mut out);
    assert_eq!(receive(&mut client, &out).unwrap(), b"221 Bye\r\n");
    let mut eof = [0; 1];
    let read = std::io::Read::read(&mut client.reader(), &mut eof);
    assert_eq!(read.unwrap(), 0, "a clean end");
}

#[test]
fn version_and_cipher_are_named_as_iana_does() {
    let (tls, _) = connected(&ServerSettings::default());
    assert_eq!(
        tls.cipher(),
        Some(Cipher {
            version: "TLS1.3",
            suite: "TLS_AES_256_GCM_SHA384",
        })
    );
    assert_eq!(tls.peer(), None);
}

#[test]
fn a_listener_for_tls_13_alone_refuses_12() {
    let authority = Authority::new();
    let tls12 = client_of(&authority, &TLS12);
    let listener = authority.listener(&ServerSettings {
        min_version: MinVersion::Tls13,
        ..ServerSettings::default()
    });
    let (_, _, shaken) = super::handshake(&listener, &tls12, "mx.example");
    assert_eq!(shaken.unwrap_err().kind(), FaultKind::Incompatible);
}

#[test]
fn an_idle_connection_keeps_no_octets() {
    let (mut tls, mut client) = connected(&ServerSettings::default());
    let sent = sealed_by(&mut client, &[b'a'; 20_000]);
    run(&mut tls, &sent[..sent.len() - 1]).unwrap();
    assert!(tls.octets_kept() > 0);
    run(&mut tls, &sent[sent.len() - 1..]).unwrap();
    assert_eq!(tls.octets_kept(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_octets_go_through_however_they_are_cut(
        plain in prop::collection::vec(any::<u8>(), 0..70_000),
        cut in 1_usize..40_000,
    ) {
        let (mut tls, mut client) = connected(&ServerSettings::default());
        // rustls' client takes 64 KiB at a time.
        let mut opened = Vec::new();
        for part in plain.chunks(30_000) {
            for piece in sealed_by(&mut client, part).chunks(cut) {
                opened.extend(run(&mut tls, piece).unwrap().plain);
            }
        }
        prop_assert!(opened == plain);
        let mut out = Vec::new();
        for part in plain.chunks(cut) {
            tls.seal(part, &mut out).unwrap();
        }
        let mut received = Vec::new();
        for piece in out.chunks(cut) {
            received.extend(receive(&mut client, piece).unwrap());
        }
        prop_assert!(received == plain);
    }
}
