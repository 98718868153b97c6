//! The mechanisms from the first response to the last: SCRAM against rsasl's client, the
//! others against a user file.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use rsasl::callback::{Context, Request, SessionCallback, SessionData};
use rsasl::config::SASLConfig;
use rsasl::mechanisms::scram::SCRAM_SHA256;
use rsasl::prelude::{Mechname, Registry, SASLClient, SessionError};
use rsasl::property::{AuthId, AuthzId, Password as ClientPassword};
use sha2::{Digest as _, Sha256};

use super::super::edit::{self, Fields};
use super::super::{Memory, PasswordHash, ScramKeys};
use super::*;

fn octets(text: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.as_bytes().to_vec())
}

fn password(text: &str) -> Password {
    Password::new(octets(text)).unwrap()
}

/// alice with SCRAM keys, bob without.
fn users() -> Users {
    let fields = |text: &str, scram: bool| Fields {
        password: Some(PasswordHash::create(&password(text), &[1; 16]).unwrap()),
        scram: scram.then(|| Some(ScramKeys::create(&password(text), &[2; 16]).to_text())),
        senders: None,
    };
    let text = edit::add("", "alice", &fields("wonderland", true)).unwrap();
    let text = edit::add(&text, "bob", &fields("builder", false)).unwrap();
    Users::parse(&text).unwrap()
}

fn exchange(mechanism: &str, users: &Users) -> Exchange {
    Exchange::new(
        Mechanism::from_name(mechanism.as_bytes()).unwrap(),
        users,
        [3; 16],
    )
}

/// The user that comes out of a check.
fn checked(step: Step, users: &Users) -> Option<String> {
    let Step::Check(credentials) = step else {
        panic!("{step:?}");
    };
    let user = users.check(&credentials, &mut Memory::default());
    user.map(|user| user.name.to_string())
}

#[test]
fn plain_is_accepted_for_the_right_password_alone() {
    let users = users();
    let said = |text: &str| {
        let step = exchange("plain", &users).begin(Some(octets(text)));
        checked(step, &users)
    };
    assert_eq!(said("\0alice\0wonderland").as_deref(), Some("alice"));
    assert_eq!(said("\0ALICE\0wonderland").as_deref(), Some("alice"));
    assert_eq!(said("Alice\0alice\0wonderland").as_deref(), Some("alice"));
    for wrong in [
        "\0alice\0Wonderland",
        "\0alice\0builder",
        "\0carol\0wonderland",
        "\0\u{7}\0wonderland",
        "\0\0wonderland",
        // As another user.
        "bob\0alice\0wonderland",
    ] {
        assert_eq!(said(wrong), None, "{wrong:?}");
    }
}

#[test]
fn plain_without_an_initial_response_asks_for_one() {
    let mut exchange = exchange("PLAIN", &users());
    let step = exchange.begin(None);
    assert!(matches!(step, Step::Challenge(text) if text.is_empty()));
    let step = exchange.step(octets("\0alice\0wonderland"));
    assert_eq!(checked(step, &users()).as_deref(), Some("alice"));
    let step = exchange.step(octets("\0alice\0wonderland"));
    assert!(matches!(step, Step::Malformed), "{step:?}");
}

#[test]
fn what_is_not_plain_is_malformed_and_a_password_that_cannot_be_is_wrong() {
    let said = |text: &str| exchange("PLAIN", &users()).begin(Some(octets(text)));
    for text in ["", "alice", "\0alice", "\0alice\0won\0der", "\0a\0b\0c\0d"] {
        let step = said(text);
        assert!(matches!(step, Step::Malformed), "{text:?}: {step:?}");
    }
    let step = said("\0alice\0");
    assert!(matches!(step, Step::Wrong(_)), "{step:?}");
}

#[test]
fn login_asks_for_the_name_unless_it_came_with_the_command() {
    let users = users();
    for initial in [None, Some(octets("bob"))] {
        let mut exchange = exchange("LOGIN", &users);
        let asked = initial.is_none();
        let mut step = exchange.begin(initial);
        if asked {
            assert!(matches!(&step, Step::Challenge(text) if text == b"Username:"));
            step = exchange.step(octets("Bob"));
        }
        assert!(matches!(&step, Step::Challenge(text) if text == b"Password:"));
        let step = exchange.step(octets("builder"));
        assert_eq!(checked(step, &users).as_deref(), Some("bob"));
    }
}

struct Client {
    name: &'static str,
    password: &'static str,
    acts_as: &'static str,
}

impl SessionCallback for Client {
    fn callback(
        &self,
        _: &SessionData,
        _: &Context<'_>,
        request: &mut Request<'_>,
    ) -> Result<(), SessionError> {
        request
            .satisfy::<AuthId>(self.name)?
            .satisfy::<ClientPassword>(self.password.as_bytes())?;
        if !self.acts_as.is_empty() {
            request.satisfy::<AuthzId>(self.acts_as)?;
        }
        Ok(())
    }
}

/// Runs SCRAM with rsasl's client: the end, and the salt that the server told.
fn scram(users: &Users, client: Client) -> (Step, String) {
    let config = SASLConfig::builder()
        .with_registry(Registry::with_mechanisms(std::slice::from_ref(
            &SCRAM_SHA256,
        )))
        .with_callback(client)
        .unwrap();
    let name = Mechname::parse(b"SCRAM-SHA-256").unwrap();
    let mut client = SASLClient::new(config).start_suggested(&[name]).unwrap();
    let mut exchange = exchange("SCRAM-SHA-256", users);
    let mut response = Vec::new();
    client.step(None, &mut response).unwrap();
    let mut step = exchange.begin(Some(Zeroizing::new(response)));
    let mut salt = String::new();
    loop {
        let Step::Challenge(challenge) = &step else {
            return (step, salt);
        };
        let text = String::from_utf8(challenge.clone()).unwrap();
        if let Some(told) = text.split(',').find_map(|part| part.strip_prefix("s=")) {
            salt = told.to_owned();
        }
        let mut response = Vec::new();
        client.step(Some(challenge), &mut response).unwrap();
        step = exchange.step(Zeroizing::new(response));
    }
}

const ALICE: Client = Client {
    name: "alice",
    password: "wonderland",
    acts_as: "",
};

#[test]
fn scram_proves_a_password_and_the_server_proves_itself() {
    let (step, salt) = scram(&users(), ALICE);
    assert!(matches!(step, Step::Success(name) if &*name == "alice"));
    assert_eq!(BASE64.decode(salt).unwrap(), [2; 16]);
    let (step, _) = scram(
        &users(),
        Client {
            name: "Alice",
            ..ALICE
        },
    );
    assert!(matches!(step, Step::Success(name) if &*name == "alice"));
}

#[test]
fn scram_is_refused_alike_for_a_wrong_password_no_keys_no_user_and_another_user() {
    let users = users();
    let mut salts = Vec::new();
    for (name, password, acts_as) in [
        ("alice", "Wonderland", ""),
        ("bob", "builder", ""),
        ("carol", "wonderland", ""),
        ("alice", "wonderland", "bob"),
    ] {
        let client = || Client {
            name,
            password,
            acts_as,
        };
        let (step, salt) = scram(&users, client());
        assert!(matches!(step, Step::Wrong(_)), "{name}: {step:?}");
        assert_eq!(scram(&users, client()).1, salt, "{name} has one salt");
        assert_eq!(BASE64.decode(&salt).unwrap().len(), 16);
        salts.push(salt);
    }
    assert_ne!(salts[1], salts[2], "each unknown user has its own salt");
}

#[test]
fn scram_that_is_malformed_ends_and_a_response_after_the_end_is_no_panic() {
    for message in [
        "",
        "n,,",
        "p=tls-unique,,n=a,r=b",
        "n,,n=,r=x",
        "y",
        "n,,n=a=ZZ,r=x",
        "\0",
    ] {
        let mut exchange = exchange("SCRAM-SHA-256", &users());
        let step = exchange.begin(Some(octets(message)));
        if !matches!(step, Step::Challenge(_)) {
            assert!(matches!(step, Step::Malformed), "{message}: {step:?}");
        }
        for _ in 0..2 {
            let step = exchange.step(octets("c=biws,r=x,p=AAA"));
            assert!(
                matches!(step, Step::Wrong(_) | Step::Malformed),
                "{message}: {step:?}"
            );
        }
    }
}

/// The exchange of RFC 7677 section 3, by which keys made elsewhere fit as well.
#[test]
fn keys_of_a_password_are_those_of_the_rfc() {
    let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let mut salted = [0; 32];
    pbkdf2::pbkdf2_hmac::<Sha256>(b"pencil", &salt, 4_096, &mut salted);
    let hmac = |key: &[u8], text: &[u8]| -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(text);
        mac.finalize().into_bytes().into()
    };
    let stored = Sha256::digest(hmac(&salted, b"Client Key"));
    let server = hmac(&salted, b"Server Key");
    let text = format!(
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==${}:{}",
        BASE64.encode(stored),
        BASE64.encode(server)
    );
    assert_eq!(ScramKeys::parse(&text).unwrap().to_text(), text);
    let message = "n=user,r=rOprNGfwEbeRWgbNEkqO,\
        r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
        c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    let signature = BASE64.encode(hmac(&server, message.as_bytes()));
    assert_eq!(signature, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
}

#[test]
fn no_state_of_an_exchange_shows_what_the_client_said() {
    let mut exchange = exchange("LOGIN", &users());
    exchange.begin(Some(octets("alice")));
    assert_eq!(format!("{exchange:?}"), "Exchange(LOGIN)");
    let step = exchange.step(octets("wonderland"));
    assert!(!format!("{step:?}").contains("wonder"), "{step:?}");
    assert_eq!(format!("{:?}", users()), "Users(2)");
    let shown = format!("{:?}", users().get("alice"));
    assert!(
        !shown.contains("argon2id$") && !shown.contains("stored"),
        "{shown}"
    );
}
