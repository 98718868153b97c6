//! The service from a worker's port to its answer.

use std::path::Path;

use zeroize::Zeroizing;

use super::*;
use crate::auth::edit::{self, Fields};
use crate::auth::{Password, PasswordHash};
use crate::config;
use crate::driver::Conn;
use crate::worker::port::{ControlEnd, Message, Port, Question, port};

const SECOND: Duration = Duration::from_secs(1);
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 7));

fn credentials(name: &str, text: &str) -> Arc<Credentials> {
    let octets = Zeroizing::new(text.as_bytes().to_vec());
    Arc::new(Credentials {
        name: name.into(),
        password: Password::new(octets).unwrap(),
    })
}

/// A worker's port with the service behind it.
struct Scene {
    port: Port,
    end: ControlEnd,
    passwords: Passwords,
    _directory: tempfile::TempDir,
}

impl Scene {
    /// With alice in the user file, or without users.
    fn new(has_users: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let password = &credentials("", "wonderland").password;
        let fields = Fields {
            password: Some(PasswordHash::create(password, &[1; 16]).unwrap()),
            ..Fields::default()
        };
        let users = edit::add("", "alice", &fields).unwrap();
        std::fs::write(directory.path().join("users"), users).unwrap();
        let auth = if has_users {
            "[auth]\nusers = \"users\"\n"
        } else {
            ""
        };
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:2525\"\n\
             [[route]]\ndomains = [\"*\"]\nnext_hop = [\"discard\"]\n{auth}"
        );
        let file = directory.path().join("gate.toml");
        let config = config::parse(Path::new(&file), &text).unwrap();
        let (port, end) = port(64, || {}, || {});
        Self {
            port,
            end,
            passwords: Passwords::new(&Arc::new(Control::idle(config)), None),
            _directory: directory,
        }
    }

    /// Asks, and gives the answer with the time that it took.
    async fn ask(&mut self, question: Question) -> (LookupAnswer, Duration) {
        let conn = Conn {
            slot: 1,
            generation: 0,
        };
        let begun = Instant::now();
        self.port
            .ask(conn, question, Duration::ZERO, 30 * SECOND)
            .unwrap();
        for message in self.end.take() {
            let Message::Ask(ask) = message else {
                panic!("{message:?}")
            };
            match ask.question.clone() {
                Question::Password {
                    client,
                    credentials,
                    ..
                } => {
                    self.passwords.check(client, credentials, ask);
                }
                Question::WrongProof { client, name, .. } => {
                    self.passwords.wrong(client, &name, ask);
                }
                question => panic!("{question:?}"),
            }
        }
        loop {
            if let Some(answered) = self.port.take(begun.elapsed()).pop() {
                return (answered.answer, begun.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn password(&mut self, name: &str, text: &str) -> (LookupAnswer, Duration) {
        let credentials = credentials(name, text);
        self.ask(Question::Password {
            client: CLIENT,
            credentials,
            is_behind_front: false,
        })
        .await
    }
}

fn refused() -> LookupAnswer {
    LookupAnswer::Password(PasswordAnswer::Refused)
}

#[tokio::test]
async fn a_right_password_is_answered_with_its_user_at_once_and_a_wrong_one_is_held_back() {
    let mut scene = Scene::new(true);
    let accepted = PasswordAnswer::Accepted("alice".into());
    for _ in 0..2 {
        let (answer, _) = scene.password("alice", "wonderland").await;
        assert_eq!(answer, LookupAnswer::Password(accepted.clone()));
    }
    for (name, text) in [("alice", "x"), ("carol", "wonderland")] {
        let (answer, took) = scene.password(name, text).await;
        assert_eq!(answer, refused());
        assert!(took >= SECOND, "{name}: {took:?}");
    }
}

#[tokio::test]
async fn a_wrong_proof_of_scram_counts_with_wrong_passwords() {
    let mut scene = Scene::new(true);
    let proof = || Question::WrongProof {
        client: CLIENT,
        name: "alice".into(),
        is_behind_front: false,
    };
    for _ in 0..3 {
        let (answer, took) = scene.ask(proof()).await;
        assert_eq!(answer, refused());
        assert!(took < 2 * SECOND, "{took:?}");
    }
    let (answer, took) = scene.password("bob", "x").await;
    assert_eq!(answer, refused());
    assert!(took >= 2 * SECOND, "{took:?}");
}

#[tokio::test]
async fn without_users_the_answer_is_not_that_the_password_is_wrong() {
    let mut scene = Scene::new(false);
    let (answer, _) = scene.password("alice", "wonderland").await;
    assert_eq!(answer, LookupAnswer::Password(PasswordAnswer::Unavailable));
}

#[test]
fn a_question_about_a_password_does_not_show_it() {
    let client = CLIENT;
    let credentials = credentials("alice", "sesame4711");
    let shown = format!(
        "{:?}",
        Question::Password {
            client,
            credentials,
            is_behind_front: false
        }
    );
    assert!(
        shown.contains("alice") && !shown.contains("sesame"),
        "{shown}"
    );
}
