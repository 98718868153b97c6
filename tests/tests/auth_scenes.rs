//! AUTH in scenes of the simulation, where the moment decides: what the control plane answers late,
//! never or twice, clients that go away or do not wait, a stop and a reload in the middle.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use portcullis::worker::Life;
use portcullis::worker::auth::AuthResult;
use portcullis::worker::port::{
    Ask, Conversation, LookupAnswer, Message, PasswordAnswer, Question, Said,
};
use portcullis_tests::simulation::scene::{Log, Scene, Step, lines, say, usual};
use portcullis_tests::users::{UserFile, base64, plain};

const SECOND: Duration = Duration::from_secs(1);
const QUICK: Duration = Duration::from_micros(10);
const STRANGER: [u8; 4] = [10, 8, 0, 1];

/// A worker whose listener offers AUTH in the clear, by what `[auth]` has.
fn scene(back_end: &str) -> Scene {
    let script = Rc::new(|_, _, line: &str| usual(line));
    let scene = Scene::new(&configuration(back_end), QUICK, script);
    // The network of a scene has the worker wait for several things to happen.
    for tick in 0..10_000 {
        let at = Duration::from_millis(5) * tick;
        scene.network.act(at, |_| ());
    }
    scene
}

fn configuration(back_end: &str) -> String {
    format!(
        "hostname = \"gate.example\"\n[[listener]]\naddress = \"192.0.2.1:25\"\nauth = \"on\"\n\
         auth_without_tls = true\n[relay]\ndomains = [\"a.example\"]\n[[route]]\n\
         domains = [\"*\"]\nnext_hop = [\"10.0.0.1:25\"]\n[limits]\n\
         command_timeout = \"10s\"\ngreeting_delay = \"0s\"\n\
         shutdown_timeout = \"5s\"\n[auth]\n{back_end}\n"
    )
}

const DOVECOT: &str = "dovecot = \"/run/dovecot/auth-client\"";

fn users() -> (UserFile, String) {
    let users = UserFile::new(&[("alice", "wonderland")]).expect("a user file");
    let back_end = format!("users = \"{}\"", users.path().display());
    (users, back_end)
}

/// A client that is greeted, and then does this.
fn client(scene: &Scene, steps: impl IntoIterator<Item = Step>) -> Log {
    let greeted = [
        Step::Hear("220 "),
        say("EHLO client.example\n"),
        Step::Hear("250 HELP"),
    ];
    scene.client(SECOND, STRANGER, greeted.into_iter().chain(steps).collect())
}

/// What the worker asks in this scene.
type Asked = Rc<RefCell<Vec<Ask>>>;

/// Has the control plane take its questions at a moment, and do this with them.
fn control(scene: &Scene, after: Duration, asked: &Asked, act: impl Fn(&[Ask]) + 'static) {
    let (end, asked) = (scene.control.clone(), Rc::clone(asked));
    scene.network.act(after, move |_| {
        let asks = end.take().into_iter().filter_map(|message| match message {
            Message::Ask(ask) => Some(ask),
            Message::Notice(_) => None,
        });
        asked.borrow_mut().extend(asks);
        act(&asked.borrow());
    });
}

fn accepted() -> LookupAnswer {
    LookupAnswer::Password(PasswordAnswer::Accepted("alice".into()))
}

fn refused() -> LookupAnswer {
    LookupAnswer::Password(PasswordAnswer::Refused)
}

fn count(scene: &Scene, result: AuthResult) -> u64 {
    let counts = scene.counters.auth().into_iter();
    counts.filter(|it| it.1 == result).map(|it| it.2).sum()
}

fn sessions_open(scene: &Scene) -> u64 {
    scene.counters.sessions_open.load(Ordering::Relaxed)
}

/// When a client has heard this.
fn heard_at(log: &Log, beginning: &str) -> Option<Duration> {
    let log = log.borrow();
    let mut lines = log.iter();
    lines
        .find(|(_, line)| line.starts_with(beginning))
        .map(|(at, _)| *at)
}

fn auth() -> Step {
    say(&format!("{}\n", plain("alice", "wonderland")))
}

#[test]
fn an_answer_that_never_comes_is_454_after_half_a_minute_whatever_a_command_may_take() {
    let (_users, back_end) = users();
    let mut scene = scene(&back_end);
    let asked = Asked::default();
    control(&scene, 2 * SECOND, &asked, |_| ());
    // It comes when the session has gone on.
    let late = |asks: &[Ask]| asks.iter().for_each(|ask| ask.answer(accepted()));
    control(&scene, 33 * SECOND, &asked, late);
    let heard = client(
        &scene,
        [
            auth(),
            Step::Hear("454 4.7.0"),
            say("NOOP\n"),
            Step::Hear("250 "),
        ],
    );
    scene.run_until(40 * SECOND);
    let at = heard_at(&heard, "454 4.7.0");
    let at = at.unwrap_or_else(|| panic!("{:?}", heard.borrow()));
    assert!((30..33).contains(&at.as_secs()), "{at:?}");
    assert_eq!(count(&scene, AuthResult::Unavailable), 1);
    assert_eq!(
        count(&scene, AuthResult::Accepted),
        0,
        "{:?}",
        lines(&heard)
    );
}

#[test]
fn the_first_of_two_answers_counts_and_the_second_reaches_no_later_attempt() {
    let (_users, back_end) = users();
    let mut scene = scene(&back_end);
    let asked = Asked::default();
    control(&scene, 2 * SECOND, &asked, |asks| {
        asks[0].answer(refused());
        asks[0].answer(accepted());
    });
    control(&scene, 4 * SECOND, &asked, |asks| {
        asks[0].answer(accepted());
        assert_eq!(asks.len(), 2);
    });
    control(&scene, 5 * SECOND, &asked, |asks| asks[1].answer(refused()));
    let heard = client(
        &scene,
        [
            auth(),
            Step::Hear("535 "),
            auth(),
            Step::Hear("535 "),
            say("QUIT\n"),
            Step::Hear("221 "),
            Step::Close,
        ],
    );
    scene.run_until(10 * SECOND);
    assert_eq!(count(&scene, AuthResult::Refused), 2, "{:?}", lines(&heard));
    assert_eq!(
        (count(&scene, AuthResult::Accepted), sessions_open(&scene)),
        (0, 0)
    );
}

#[test]
fn a_client_that_goes_away_leaves_nothing_and_the_answer_reaches_no_other() {
    let (_users, back_end) = users();
    let mut scene = scene(&back_end);
    let asked = Asked::default();
    client(&scene, [auth(), Step::Wait(SECOND), Step::Reset]);
    let begun = client(
        &scene,
        [say("AUTH PLAIN\n"), Step::Hear("334 "), Step::Close],
    );
    control(&scene, SECOND + SECOND / 2, &asked, |asks| {
        assert_eq!(asks.len(), 1);
    });
    // The next client has one of the slots by then.
    let next = client(&scene, [Step::Wait(2 * SECOND), say("NOOP\n")]);
    control(&scene, 3 * SECOND, &asked, |asks| {
        asks[0].answer(accepted());
    });
    scene.run_until(8 * SECOND);
    assert_eq!(
        count(&scene, AuthResult::BrokenOff),
        2,
        "{:?}",
        lines(&begun)
    );
    assert!(heard_at(&next, "235").is_none(), "{:?}", lines(&next));
    assert_eq!(sessions_open(&scene), 1);
}

#[test]
fn a_client_that_does_not_wait_for_the_answer_is_no_user() {
    let (_users, back_end) = users();
    let mut scene = scene(&back_end);
    let asked = Asked::default();
    control(&scene, 3 * SECOND, &asked, |asks| {
        asks[0].answer(accepted());
    });
    let early = format!(
        "{}\nMAIL FROM:<x@y.example>\n",
        plain("alice", "wonderland")
    );
    let heard = client(&scene, [say(&early)]);
    scene.run_until(10 * SECOND);
    assert!(
        heard_at(&heard, "554 5.5.0").is_some(),
        "{:?}",
        lines(&heard)
    );
    assert_eq!((sessions_open(&scene), scene.records().len()), (0, 1));
}

#[test]
fn a_gate_that_stops_does_not_wait_for_a_password() {
    let (_users, back_end) = users();
    let mut scene = scene(&back_end);
    let heard = client(&scene, [auth()]);
    let shared = Arc::clone(&scene.shared);
    scene
        .network
        .act(3 * SECOND, move |_| shared.set_life(Life::Draining));
    assert!(scene.run_until(20 * SECOND), "it ends");
    assert!(
        heard_at(&heard, "421 4.3.2").is_some(),
        "{:?}",
        lines(&heard)
    );
    assert_eq!(count(&scene, AuthResult::BrokenOff), 1);
}

/// The users are gone, or are Dovecot's: the exchange that runs ends by those with which it began,
/// and what they say of a user who is no more is not believed.
#[test]
fn a_reload_in_the_middle_of_an_exchange_makes_no_user_of_one_who_is_gone() {
    let (users, back_end) = users();
    let mut scene = scene(&back_end);
    let asked = Asked::default();
    let heard = client(&scene, [auth()]);
    control(&scene, 2 * SECOND, &asked, |_| ());
    users.write(&[("dora", "explorer")]).expect("a user file");
    scene.reload(3 * SECOND, &configuration(&back_end));
    control(&scene, 4 * SECOND, &asked, |asks| {
        asks[0].answer(accepted());
    });
    scene.run_until(6 * SECOND);
    assert!(
        heard_at(&heard, "454 4.7.0").is_some(),
        "{:?}",
        lines(&heard)
    );
    assert_eq!(count(&scene, AuthResult::Accepted), 0);
}

#[test]
fn an_exchange_with_dovecot_goes_over_challenges_and_is_given_up_with_its_client() {
    let mut scene = scene(DOVECOT);
    let asked = Asked::default();
    let alive = Arc::new(());
    let conversation = Conversation::new(Arc::clone(&alive));
    let challenge = {
        let conversation = conversation.clone();
        move |text: &str| {
            let octets = text.as_bytes().to_vec();
            LookupAnswer::Password(PasswordAnswer::Challenge(octets, conversation.clone()))
        }
    };
    let again = challenge.clone();
    control(&scene, 2 * SECOND, &asked, move |asks| {
        asks[0].answer(challenge("Username:"));
    });
    control(&scene, 3 * SECOND, &asked, move |asks| {
        asks[1].answer(again("Password:"));
    });
    let heard = client(
        &scene,
        [
            say("AUTH LOGIN\n"),
            Step::Hear("334 VXNlcm5hbWU6"),
            say(&format!("{}\n", base64("alice"))),
            Step::Hear("334 UGFzc3dvcmQ6"),
            Step::Wait(2 * SECOND),
            Step::Close,
        ],
    );
    scene.run_until(4 * SECOND);
    {
        let asks = asked.borrow();
        assert_eq!(asks.len(), 2, "{:?}", lines(&heard));
        let is_response = |ask: &Ask| {
            matches!(&ask.question, Question::Sasl { said: Said::Response(it, _), .. }
                if *it == conversation)
        };
        assert!(is_response(&asks[1]), "{:?}", asks[1].question);
    }
    drop((conversation, asked));
    scene.run_until(10 * SECOND);
    assert_eq!(Arc::strong_count(&alive), 1, "the exchange is given up");
    assert_eq!(sessions_open(&scene), 0);
}
