//! TLS as a client: what a route verifies, shows and resumes. The server is this module's own,
//! which the other tests hold against rustls' client.

use std::time::SystemTime;

use super::super::test_pki::{Authority, load};
use super::super::{
    ClientCertificates, ClientSettings, ClientTls, Fault, FaultKind, KeyFiles, MinVersion,
    ServerSettings, ServerTls, Step, Tls, Trust, Verification,
};
use super::run;

fn route(verification: Verification) -> ClientSettings {
    ClientSettings {
        min_version: MinVersion::Tls12,
        verification,
        certificate: None,
    }
}

fn client(settings: &ClientSettings) -> ClientTls {
    ClientTls::new(settings, SystemTime::now()).unwrap()
}

/// Lets both go on until neither has anything to send; the first fault ends it.
fn exchange(client: &mut Tls, server: &mut Tls) -> Result<(), Fault> {
    let mut to_server = run(client, b"").map_err(|(_, fault)| fault)?.out;
    while !to_server.is_empty() {
        let to_client = run(server, &to_server).map_err(|(_, fault)| fault)?.out;
        to_server = run(client, &to_client).map_err(|(_, fault)| fault)?.out;
    }
    Ok(())
}

fn connect(client: &ClientTls, name: &str, server: &ServerTls) -> Result<(Tls, Tls), Fault> {
    let mut ours = client.connect(name)?;
    let mut theirs = server.accept()?;
    exchange(&mut ours, &mut theirs)?;
    assert!(ours.is_ready() && theirs.is_ready());
    Ok((ours, theirs))
}

#[test]
fn mail_goes_through_both_ways() {
    let authority = Authority::new();
    let server = authority.listener(&ServerSettings::default());
    let client = client(&route(Verification::None));
    let (mut ours, mut theirs) = connect(&client, "192.0.2.1", &server).unwrap();
    let mut out = Vec::new();
    ours.seal(b"EHLO mx.example\r\n", &mut out).unwrap();
    assert_eq!(
        run(&mut theirs, &out).unwrap().plain,
        b"EHLO mx.example\r\n"
    );
    let mut out = Vec::new();
    theirs.seal(b"250 OK\r\n", &mut out).unwrap();
    theirs.close(&mut out);
    let heard = run(&mut ours, &out).unwrap();
    assert_eq!(heard.plain, b"250 OK\r\n");
    assert!(heard.steps.contains(&Step::Closed));
    assert_eq!(ours.cipher().unwrap().version, "TLS1.3");
}

#[test]
fn a_next_hop_is_verified_by_its_name() {
    let authority = Authority::new();
    let server = authority.listener(&ServerSettings::default());
    let kind = |verification, name: &str| {
        let connected = connect(&client(&route(verification)), name, &server);
        connected.map(|_| ()).map_err(|fault| fault.kind())
    };
    let of_authority = || Verification::Name(Trust::File(authority.file()));
    assert_eq!(kind(of_authority(), "mx.example"), Ok(()));
    assert_eq!(kind(of_authority(), "mx.example."), Ok(()));
    let refused = Err(FaultKind::Certificate);
    assert_eq!(kind(of_authority(), "other.example"), refused);
    assert_eq!(kind(of_authority(), "192.0.2.1"), refused);
    let other = Authority::new();
    let of_another = Verification::Name(Trust::File(other.file()));
    assert_eq!(kind(of_another, "mx.example"), refused);
    assert_eq!(kind(Verification::None, "other.example"), Ok(()));
}

#[test]
fn a_pinned_next_hop_is_verified_by_its_certificate_alone() {
    let authority = Authority::new();
    let files = authority.issue_expired("pinned", &["old.example"]);
    let identity = load(&files).unwrap();
    let print = identity.fingerprint();
    let certificates = super::super::Certificates::new(identity, Vec::new());
    let server = ServerTls::new(
        &ServerSettings::default(),
        &std::sync::Arc::new(certificates),
        &super::super::Tickets::default(),
    )
    .unwrap();
    let pinned = client(&route(Verification::Pinned(vec![[0; 32], print])));
    let (ours, _) = connect(&pinned, "mx.example", &server).unwrap();
    assert_eq!(ours.peer().unwrap().fingerprint, print);
    let other = client(&route(Verification::Pinned(vec![[0; 32]])));
    let fault = connect(&other, "mx.example", &server).unwrap_err();
    assert_eq!(fault.kind(), FaultKind::Certificate);
}

#[test]
fn the_system_trusts_no_authority_of_a_test() {
    let server = Authority::new().listener(&ServerSettings::default());
    let settings = route(Verification::Name(Trust::System));
    // A machine may have no store at all, and then says so.
    match ClientTls::new(&settings, SystemTime::now()) {
        Ok(client) => {
            let fault = connect(&client, "mx.example", &server).unwrap_err();
            assert_eq!(fault.kind(), FaultKind::Certificate);
        }
        Err(error) => assert!(error.advice.contains("ca-certificates"), "{error}"),
    }
}

#[test]
fn a_route_shows_its_certificate_to_a_next_hop_that_asks() {
    let authority = Authority::new();
    let server = authority.listener(&ServerSettings {
        client_certificates: ClientCertificates::Require(authority.file()),
        ..ServerSettings::default()
    });
    let files = authority.issue("gate", &["gate.example"]);
    let settings = ClientSettings {
        certificate: Some(files.clone()),
        ..route(Verification::None)
    };
    let (_, theirs) = connect(&client(&settings), "mx.example", &server).unwrap();
    assert_eq!(
        theirs.peer().unwrap().fingerprint,
        load(&files).unwrap().fingerprint()
    );
    let without = client(&route(Verification::None));
    assert!(connect(&without, "mx.example", &server).is_err());
    let broken = ClientSettings {
        certificate: Some(KeyFiles {
            key: authority.file(),
            ..files
        }),
        ..route(Verification::None)
    };
    assert!(ClientTls::new(&broken, SystemTime::now()).is_err());
}

#[test]
fn sessions_of_one_route_are_not_resumed_by_another() {
    let authority = Authority::new();
    let server = authority.listener(&ServerSettings::default());
    let resumed = |client: &ClientTls| {
        connect(client, "mx.example", &server)
            .unwrap()
            .0
            .is_resumed()
    };
    let lax = client(&route(Verification::None));
    assert!(!resumed(&lax));
    assert!(resumed(&lax));
    let strict = client(&route(Verification::Name(Trust::File(authority.file()))));
    assert!(!resumed(&strict));
    assert!(resumed(&strict));
}

#[test]
fn a_name_that_is_none_is_refused() {
    let client = client(&route(Verification::None));
    assert!(client.connect("not a name").is_err());
}
