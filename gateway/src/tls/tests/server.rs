//! What a listener shows, asks for and lets clients resume.

use std::sync::Arc;

use rustls::HandshakeKind;

use super::super::test_pki::{Authority, certificate_of};
use super::super::{
    Certificates, ClientCertificates, FaultKind, ServerSettings, ServerTls, Tickets,
};
use super::{handshake, receive};

fn with_clients(client_certificates: ClientCertificates) -> ServerSettings {
    ServerSettings {
        client_certificates,
        ..ServerSettings::default()
    }
}

#[test]
fn the_certificate_is_chosen_by_the_name_that_the_client_asks_for() {
    let authority = Authority::new();
    let first = authority.identity("first", &["mx.example"]);
    let exact = authority.identity("exact", &["Mail.Example"]);
    let wild = authority.identity("wild", &["*.isp.example"]);
    let expected = [
        ("mx.example", certificate_of(&first)),
        ("mail.example", certificate_of(&exact)),
        ("smtp.isp.example", certificate_of(&wild)),
        ("a.b.isp.example", certificate_of(&first)),
        ("other.example", certificate_of(&first)),
    ];
    let certificates = Arc::new(Certificates::new(first, vec![exact, wild]));
    let settings = ServerSettings::default();
    let listener = ServerTls::new(&settings, &certificates, &Tickets::default()).unwrap();
    for (name, certificate) in expected {
        let (_, client, _) = handshake(&listener, &authority.client_config(), name);
        let shown = client.peer_certificates();
        match shown {
            Some(shown) => assert_eq!(shown[0], certificate, "{name}"),
            // rustls' client gives up before it notes a certificate of another name.
            None => assert!(name.starts_with("a.b") || name.starts_with("other")),
        }
    }
}

#[test]
fn a_reload_shows_new_certificates_to_the_next_handshake() {
    let authority = Authority::new();
    let old = authority.identity("old", &["mx.example"]);
    let new = authority.identity("new", &["mx.example"]);
    let new_certificate = certificate_of(&new);
    let certificates = Arc::new(Certificates::new(old, Vec::new()));
    let settings = ServerSettings::default();
    let listener = ServerTls::new(&settings, &certificates, &Tickets::default()).unwrap();
    let (mut tls, mut before, _) = handshake(&listener, &authority.client_config(), "mx.example");
    certificates.replace(new, Vec::new());
    let (_, after, _) = handshake(&listener, &authority.client_config(), "mx.example");
    assert_eq!(after.peer_certificates().unwrap()[0], new_certificate);
    // The session that was there goes on.
    let mut out = Vec::new();
    tls.seal(b"250 OK\r\n", &mut out).unwrap();
    assert_eq!(receive(&mut before, &out).unwrap(), b"250 OK\r\n");
}

#[test]
fn a_client_certificate_becomes_an_identity() {
    let authority = Authority::new();
    let files = authority.issue("alice", &["alice.example"]);
    let print = super::super::test_pki::load(&files).unwrap().fingerprint();
    for wanted in [
        ClientCertificates::Ask(authority.file()),
        ClientCertificates::Require(authority.file()),
    ] {
        let listener = authority.listener(&with_clients(wanted));
        let config = authority.client_config_with(&files);
        let (tls, _, shaken) = handshake(&listener, &config, "mx.example");
        assert_eq!(shaken, Ok(()));
        let peer = tls.peer().unwrap();
        assert_eq!(peer.fingerprint, print);
        assert!(peer.subject.contains("CN=alice"), "{}", peer.subject);
    }
}

#[test]
fn without_a_good_certificate_a_client_gets_in_only_where_none_is_asked_of_it() {
    let authority = Authority::new();
    let ask = || ClientCertificates::Ask(authority.file());
    let require = || ClientCertificates::Require(authority.file());
    let none = authority.client_config();
    let expired = authority.issue_expired("expired", &["alice.example"]);
    let expired = authority.client_config_with(&expired);
    let stranger = Authority::new();
    let strange = authority.client_config_with(&stranger.issue("bob", &["bob.example"]));
    let cases = [
        (ClientCertificates::Off, &none, true),
        (ClientCertificates::Off, &strange, true),
        (ask(), &none, true),
        (ask(), &strange, false),
        (ask(), &expired, false),
        (require(), &none, false),
        (require(), &strange, false),
        (require(), &expired, false),
    ];
    for (number, (wanted, config, is_good)) in cases.into_iter().enumerate() {
        let listener = authority.listener(&with_clients(wanted));
        let (tls, _, shaken) = handshake(&listener, config, "mx.example");
        assert_eq!(shaken.is_ok(), is_good, "case {number}: {shaken:?}");
        assert_eq!(tls.peer(), None, "case {number}");
        if let Err(fault) = shaken {
            assert_eq!(
                fault.kind(),
                FaultKind::Certificate,
                "case {number}: {fault}"
            );
        }
    }
}

/// Whether a client that was at one listener resumes its session at another.
fn resumes(authority: &Authority, first: &ServerTls, second: &ServerTls) -> bool {
    let config = authority.client_config();
    let (mut tls, mut client, shaken) = handshake(first, &config, "mx.example");
    assert_eq!(shaken, Ok(()));
    let mut out = Vec::new();
    tls.seal(b"220 mx.example\r\n", &mut out).unwrap();
    receive(&mut client, &out).unwrap();
    let (_, client, shaken) = handshake(second, &config, "mx.example");
    assert_eq!(shaken, Ok(()));
    client.handshake_kind() == Some(HandshakeKind::Resumed)
}

#[test]
fn a_ticket_outlives_a_reload_but_is_void_under_another_demand_on_client_certificates() {
    let authority = Authority::new();
    let certificates = Arc::new(Certificates::new(
        authority.identity("mx", &["mx.example"]),
        Vec::new(),
    ));
    let tickets = Tickets::default();
    let listener = |wanted| ServerTls::new(&with_clients(wanted), &certificates, &tickets).unwrap();
    let off = listener(ClientCertificates::Off);
    assert!(resumes(&authority, &off, &off));
    let reloaded = listener(ClientCertificates::Off);
    assert!(resumes(&authority, &off, &reloaded));
    let asks = listener(ClientCertificates::Ask(authority.file()));
    assert!(!resumes(&authority, &off, &asks));
    assert!(resumes(&authority, &asks, &asks));
    let other = Authority::new();
    let asks_others = listener(ClientCertificates::Ask(other.file()));
    assert!(!resumes(&authority, &asks, &asks_others));
    // Keys that no listener uses are forgotten.
    tickets.keep_only(&[&off]);
    let asks_again = listener(ClientCertificates::Ask(authority.file()));
    assert!(!resumes(&authority, &asks, &asks_again));
    assert!(resumes(
        &authority,
        &off,
        &listener(ClientCertificates::Off)
    ));
}

#[test]
fn without_tickets_nothing_is_resumed() {
    let authority = Authority::new();
    let listener = authority.listener(&ServerSettings {
        tickets: false,
        ..ServerSettings::default()
    });
    assert!(!resumes(&authority, &listener, &listener));
}

#[test]
fn a_file_without_authorities_is_named() {
    let authority = Authority::new();
    let path = authority.path("empty.pem");
    std::fs::write(&path, "").unwrap();
    let certificates = Arc::new(Certificates::new(
        authority.identity("mx", &["mx.example"]),
        Vec::new(),
    ));
    let settings = with_clients(ClientCertificates::Require(path.clone()));
    let error = ServerTls::new(&settings, &certificates, &Tickets::default()).unwrap_err();
    assert_eq!(error.path, path);
}
