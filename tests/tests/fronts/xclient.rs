//! XCLIENT of a mail proxy, on virtual time: each client that it names has a session of its own,
//! and nothing of the one before.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use portcullis::worker::port::{LookupAnswer, Message, PasswordAnswer};
use portcullis_tests::simulation::scene::{Scene, Step, lines, say, usual};
use portcullis_tests::users::{UserFile, plain};

use crate::scenes::{
    BALANCER, END, GATE, LOCAL, MAIL_PROXY, QUICK, SECOND, STRANGER, client, clients,
    nothing_is_left, recipient_reply, relays, scene, scene_of, sessions, sessions_total, v1, v2,
};

/// A gate whose front names clients that may name others in turn: a front behind a front.
fn naming_on() -> String {
    let others = "\"10.9.7.2/32\", \"10.8.0.0/24\", \"10.9.0.0/24\", \"2001:db8::/48\"";
    GATE.replace("\"10.9.7.2/32\"", others)
}

fn xclient_steps(attributes: &[&str]) -> Vec<Step> {
    let mut steps = vec![
        Step::Hear("220 "),
        say("EHLO proxy.example\n"),
        Step::Hear("XCLIENT NAME ADDR"),
    ];
    for attributes in attributes {
        steps.extend([
            say(&format!("XCLIENT {attributes}\n")),
            Step::Hear("220 gate.example"),
            say("EHLO client.example\n"),
            Step::Hear("250 HELP"),
            say("MAIL FROM:<x@y.example>\n"),
            Step::Hear(" "),
            say("RCPT TO:<c@else.example>\n"),
            Step::Hear(" "),
            say("RSET\n"),
            Step::Hear("250 "),
        ]);
    }
    steps.extend([say("QUIT\n"), Step::Hear("221 "), Step::Close]);
    steps
}

#[test]
fn each_client_that_xclient_names_has_a_session_of_its_own() {
    let mut scene = scene_of(&naming_on(), "sessions_per_source = 1");
    let named = [
        "ADDR=10.9.0.1 HELO=one.example",
        "ADDR=IPV6:2001:db8::9 PROTO=SMTP",
        "ADDR=10.9.0.2",
    ];
    let heard = scene.client(SECOND, MAIL_PROXY, xclient_steps(&named));
    scene.run_until(END);
    let heard = lines(&heard);
    let relayed = heard.iter().filter(|line| line.starts_with("250 2.1.5"));
    let denied = heard.iter().filter(|line| line.starts_with("550 5.7.1"));
    assert_eq!((relayed.count(), denied.count()), (2, 1), "{heard:?}");
    let records = sessions(&scene);
    let said: Vec<_> = records
        .iter()
        .map(|record| (record.client.to_string(), &*record.helo, record.refused))
        .collect();
    let expected = [
        ("10.9.0.1".to_owned(), "one.example", 0),
        ("2001:db8::9".to_owned(), "client.example", 1),
        ("10.9.0.2".to_owned(), "client.example", 0),
    ];
    assert_eq!(said, expected);
    assert_eq!(sessions_total(&scene), 3);
    assert_eq!(scene.counters.xclient_total.load(Ordering::Relaxed), 3);
    nothing_is_left(&scene);
}

#[test]
fn a_front_that_names_no_address_sends_no_mail_in_its_own_name() {
    for attributes in [
        "ADDR=[UNAVAILABLE]",
        "ADDR=[TEMPUNAVAIL] NAME=local.example",
        "LOGIN=joe HELO=a.example",
        "ADDR=0.0.0.0",
    ] {
        let mut scene = scene("");
        let heard = scene.client(SECOND, MAIL_PROXY, xclient_steps(&[attributes]));
        scene.run_until(END);
        let heard = lines(&heard);
        assert!(
            heard.iter().any(|line| line.starts_with("451 4.3.5")),
            "{heard:?}"
        );
        assert!(
            !heard.iter().any(|line| line.starts_with("250 2.1.5")),
            "{heard:?}"
        );
        assert_eq!(scene.records().len(), 0);
        assert_eq!(
            scene.counters.xclient_unknown_total.load(Ordering::Relaxed),
            1
        );
        nothing_is_left(&scene);
    }
}

#[test]
fn an_attribute_without_an_address_is_about_the_client_before_and_a_login_opens_nothing() {
    let mut scene = scene_of(&naming_on(), "");
    let named = ["ADDR=10.8.0.1", "LOGIN=joe HELO=joe.example"];
    let heard = scene.client(SECOND, MAIL_PROXY, xclient_steps(&named));
    scene.run_until(END);
    let heard = lines(&heard);
    let denied = heard.iter().filter(|line| line.starts_with("550 5.7.1"));
    assert_eq!(denied.count(), 2, "{heard:?}");
    assert_eq!(clients(&scene), [STRANGER; 2]);
}

/// A proxy of mail often only copies octets once the envelope is through: XCLIENT is the client's
/// own then.
#[test]
fn a_client_that_was_named_cannot_name_another() {
    for first in ["ADDR=10.8.0.1", "ADDR=[UNAVAILABLE]"] {
        let mut scene = scene("");
        let mut steps = xclient_steps(&[first]);
        let quit = steps.len() - 3;
        steps.splice(
            quit..quit,
            [
                say("XCLIENT ADDR=10.9.0.1\n"),
                Step::Hear("550 5.7.0"),
                say("EHLO client.example\n"),
                Step::Hear("250 HELP"),
                say("MAIL FROM:<x@y.example>\n"),
                Step::Hear(" "),
                say("RCPT TO:<c@else.example>\n"),
                Step::Hear("50"),
            ],
        );
        let heard = scene.client(SECOND, MAIL_PROXY, steps);
        scene.run_until(END);
        let heard = lines(&heard);
        assert!(
            heard.iter().any(|line| line.starts_with("550 5.7.0")),
            "{heard:?}"
        );
        assert!(
            !heard.iter().any(|line| line.starts_with("250 2.1.5")),
            "{heard:?}"
        );
        let offers = heard.iter().filter(|line| line.contains("XCLIENT NAME"));
        assert_eq!(offers.count(), 1, "{heard:?}");
    }
}

#[test]
fn xclient_from_a_stranger_is_refused_and_changes_nothing() {
    let mut scene = scene("");
    let mut steps = relays(Vec::new());
    steps[0] = Step::Hear("220 ");
    steps[1] = say("XCLIENT ADDR=10.9.0.1\n");
    steps.insert(2, Step::Hear("550 5.7.0"));
    // A stranger itself, and one behind a balancer: only the address of the client counts.
    let stranger = scene.client(SECOND, [10, 8, 0, 66], steps.clone());
    steps.insert(0, Step::Say(v1(&client(STRANGER))));
    let behind = scene.client(SECOND, BALANCER, steps);
    scene.run_until(END);
    for heard in [stranger, behind] {
        let reply = recipient_reply(&heard);
        assert!(reply.starts_with("550 5.7.1"), "{:?}", lines(&heard));
        let offer = lines(&heard);
        assert!(
            !offer.iter().any(|line| line.contains("XCLIENT")),
            "{offer:?}"
        );
    }
    assert_eq!(scene.counters.xclient_total.load(Ordering::Relaxed), 0);
}

#[test]
fn a_mail_proxy_behind_a_balancer_names_its_clients() {
    let mut scene = scene("");
    let mut steps = xclient_steps(&["ADDR=10.9.0.1"]);
    steps.insert(0, Step::Say(v2(&client("10.9.7.2"))));
    let heard = scene.client(SECOND, BALANCER, steps);
    scene.run_until(END);
    let heard = lines(&heard);
    assert!(
        heard.iter().any(|line| line.starts_with("250 2.1.5")),
        "{heard:?}"
    );
    assert_eq!(clients(&scene), [LOCAL]);
}

#[test]
fn a_client_of_xclient_beyond_the_limit_of_its_source_is_refused_in_place_of_the_greeting() {
    let mut scene = scene("sessions_per_source = 1");
    let steps = || {
        let mut steps = xclient_steps(&["ADDR=10.8.0.1"]);
        steps.insert(5, Step::Wait(5 * SECOND));
        steps
    };
    let first = scene.client(SECOND, MAIL_PROXY, steps());
    let second = scene.client(2 * SECOND, MAIL_PROXY, steps());
    scene.run_until(END);
    assert!(lines(&first).iter().any(|line| line.starts_with("221")));
    let heard = lines(&second);
    assert!(
        heard.iter().any(|line| line.starts_with("421 4.7.0")),
        "{heard:?}"
    );
    let rules: Vec<_> = sessions(&scene)
        .iter()
        .map(|record| record.rule.name())
        .collect();
    assert_eq!(rules, ["sessions-per-source", "unlisted"]);
    nothing_is_left(&scene);
}

#[test]
fn who_has_authenticated_is_not_the_client_that_is_named_next() {
    let users = UserFile::new(&[("alice", "wonderland")]).expect("a user file");
    let configuration = format!(
        "{}\n[auth]\nusers = \"{}\"\n",
        naming_on().replace(
            "proxy_protocol_from",
            "auth = \"on\"\nauth_without_tls = true\nproxy_protocol_from"
        ),
        users.path().display()
    );
    let mut scene = Scene::new(&configuration, QUICK, Rc::new(|_, _, line| usual(line)));
    let mut steps = xclient_steps(&["ADDR=10.8.0.1", "ADDR=10.8.0.2 LOGIN=alice"]);
    let auth = format!("{}\n", plain("alice", "wonderland"));
    // The first client proves that it is alice.
    steps.splice(7..7, [say(&auth), Step::Hear("235 ")]);
    let heard = scene.client(SECOND, MAIL_PROXY, steps);
    while scene.network.now() < END {
        scene.run_until(scene.network.now() + Duration::from_millis(1));
        for message in scene.control.take() {
            let Message::Ask(ask) = message else { continue };
            assert!(ask.question.is_behind_front(), "{:?}", ask.question);
            let alice = PasswordAnswer::Accepted("alice".into());
            ask.answer(LookupAnswer::Password(alice));
        }
    }
    let heard = lines(&heard);
    let denied: Vec<_> = heard
        .iter()
        .filter(|line| line.starts_with("550 5.7.1"))
        .collect();
    assert_eq!(denied.len(), 1, "{heard:?}");
    let users: Vec<_> = sessions(&scene)
        .into_iter()
        .map(|record| {
            (
                record.client.to_string(),
                record.user.map(|user| user.to_string()),
            )
        })
        .collect();
    let alice = Some("alice".to_owned());
    let expected = [(STRANGER.to_owned(), alice), ("10.8.0.2".to_owned(), None)];
    assert_eq!(users, expected);
    nothing_is_left(&scene);
}
