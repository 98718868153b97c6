//! Clients that break the protocol, give up or end early.

use proptest::prelude::*;

use super::super::test_pki::Authority;
use super::super::{FaultKind, ServerSettings, Tls};
use super::{client, connected, receive, run, sealed_by, sent_by};

fn fresh() -> Tls {
    let authority = Authority::new();
    authority
        .listener(&ServerSettings::default())
        .accept()
        .unwrap()
}

/// What kind of fault these octets lead to, in a session that is good so far.
fn fault_of(octets: &[u8]) -> FaultKind {
    let (mut tls, _client) = connected(&ServerSettings::default());
    let (stepped, fault) = run(&mut tls, octets).unwrap_err();
    assert_eq!(stepped.plain, b"");
    fault.kind()
}

#[test]
fn plain_smtp_instead_of_a_handshake_is_no_tls() {
    let (stepped, fault) = run(&mut fresh(), b"MAIL FROM:<a@client.example>\r\n").unwrap_err();
    assert_eq!(fault.kind(), FaultKind::NotTls, "{fault}");
    assert_eq!(stepped.plain, b"");
}

#[test]
fn a_fault_sends_an_alert_and_is_final() {
    let (mut tls, mut client) = connected(&ServerSettings::default());
    let mut sent = sealed_by(&mut client, b"NOOP\r\n");
    *sent.last_mut().unwrap() ^= 1;
    let good = sealed_by(&mut client, b"NOOP\r\n");
    let (stepped, fault) = run(&mut tls, &sent).unwrap_err();
    assert!(receive(&mut client, &stepped.out).is_err(), "an alert");
    let (stepped, again) = run(&mut tls, &good).unwrap_err();
    assert_eq!((stepped.plain, stepped.out), (Vec::new(), Vec::new()));
    assert_eq!(again, fault);
    assert_eq!(tls.seal(b"250 OK\r\n", &mut Vec::new()), Err(fault.clone()));
    assert_eq!(tls.end(), Err(fault));
    assert_eq!(tls.octets_kept(), 0);
}

#[test]
fn an_end_without_close_notify_is_truncation() {
    let (mut tls, mut client) = connected(&ServerSettings::default());
    run(&mut tls, &sealed_by(&mut client, b"Subject: cut")).unwrap();
    assert_eq!(tls.end().unwrap_err().kind(), FaultKind::Truncated);
    let mut in_handshake = fresh();
    assert_eq!(in_handshake.end().unwrap_err().kind(), FaultKind::Truncated);
}

#[test]
fn a_record_whose_header_claims_more_than_there_may_be_is_refused_at_its_header() {
    assert_eq!(fault_of(&[23, 3, 3, 0x48, 0x00]), FaultKind::TooLarge);
    assert_eq!(fault_of(&[23, 3, 3, 0xff, 0xff]), FaultKind::TooLarge);
}

#[test]
fn a_record_of_the_greatest_length_is_awaited_in_a_bounded_buffer() {
    let (mut tls, _client) = connected(&ServerSettings::default());
    run(&mut tls, &[23, 3, 3, 0x47, 0xff]).unwrap();
    run(&mut tls, &[0; 0x47fe]).unwrap();
    assert_eq!(tls.octets_kept(), 5 + 0x47fe);
    // The last octet: it cannot be opened.
    let (_, fault) = run(&mut tls, &[0]).unwrap_err();
    assert_ne!(fault.kind(), FaultKind::Internal);
    assert_eq!(tls.octets_kept(), 0);
}

#[test]
fn a_handshake_without_an_end_is_refused() {
    let mut tls = fresh();
    // A ClientHello of 60,000 octets, in records of 16,000.
    let mut record = vec![22, 3, 1, 0x3e, 0x80, 1, 0, 0xea, 0x60];
    record.resize(5 + 16_000, 0);
    run(&mut tls, &record).unwrap();
    record[5..9].fill(0);
    run(&mut tls, &record).unwrap();
    let (_, fault) = run(&mut tls, &record).unwrap_err();
    assert_eq!(fault.kind(), FaultKind::TooLarge, "{fault}");
}

#[test]
fn an_alert_of_the_client_ends_the_session() {
    let authority = Authority::new();
    let listener = authority.listener(&ServerSettings::default());
    // A client that does not trust the authority.
    let strange = Authority::new().client_config();
    let (_, _, shaken) = super::handshake(&listener, &strange, "mx.example");
    let fault = shaken.unwrap_err();
    assert_eq!(fault.kind(), FaultKind::Alert, "{fault}");
    assert!(fault.to_string().contains("unknown_ca"), "{fault}");
}

#[test]
fn a_client_hello_after_the_handshake_is_not_followed() {
    let authority = Authority::new();
    let hello = sent_by(&mut client(&authority.client_config(), "mx.example"));
    // In the clear, where records are encrypted by now.
    assert_ne!(fault_of(&hello), FaultKind::Internal);
}

#[test]
fn empty_records_do_not_keep_it_busy_for_ever() {
    let mut tls = fresh();
    let record = [22, 3, 1, 0, 0];
    let (_, fault) = run(&mut tls, &record.repeat(2000)).unwrap_err();
    assert_eq!(fault.kind(), FaultKind::Protocol, "{fault}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_never_opens_and_never_panics(
        garbage in prop::collection::vec(any::<u8>(), 0..3000),
        header in prop::option::of((20_u8..25, 0_u16..600)),
        cut in 1_usize..64,
        is_ready in any::<bool>(),
    ) {
        let mut octets = garbage;
        if let Some((kind, length)) = header {
            let [high, low] = length.to_be_bytes();
            octets.splice(0..0, [kind, 3, 3, high, low]);
        }
        let mut tls = if is_ready {
            connected(&ServerSettings::default()).0
        } else {
            fresh()
        };
        for piece in octets.chunks(cut) {
            match run(&mut tls, piece) {
                Ok(stepped) => prop_assert!(stepped.plain.is_empty()),
                Err((stepped, _)) => prop_assert!(stepped.plain.is_empty()),
            }
        }
        let _ = tls.seal(b"250 OK\r\n", &mut Vec::new());
        tls.close(&mut Vec::new());
        prop_assert!(tls.end().is_err() || tls.is_ready());
    }

    #[test]
    fn a_changed_octet_never_changes_what_is_opened(
        at in any::<prop::sample::Index>(),
        flip in 1_u8..=255,
        cut in 1_usize..200,
    ) {
        let (mut tls, mut client) = connected(&ServerSettings::default());
        let plain = b"MAIL FROM:<a@client.example>\r\n";
        let mut sent = sealed_by(&mut client, plain);
        sent.extend(sealed_by(&mut client, plain));
        let at = at.index(sent.len());
        sent[at] ^= flip;
        let mut opened = Vec::new();
        for piece in sent.chunks(cut) {
            match run(&mut tls, piece) {
                Ok(stepped) => opened.extend(stepped.plain),
                Err((stepped, _)) => opened.extend(stepped.plain),
            }
        }
        // Some octets of a header mean nothing (RFC 8446 section 5.1); no other change is opened.
        prop_assert!(plain.repeat(2).starts_with(&opened));
    }
}
