//! Sessions in scenes of the simulation, where the moment decides: what stops while something is
//! waited for, and what a reload changes for sessions that are there.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use portcullis::worker::Life;
use portcullis_tests::simulation::scene::{Act, Scene, Step, lines, say, usual};

const SECOND: Duration = Duration::from_secs(1);
const QUICK: Duration = Duration::from_micros(10);

const ONE: &str = r#"
hostname = "gate.example"
[[listener]]
address = "192.0.2.1:25"
[relay]
networks = ["10.9.0.0/16"]
domains = ["a.example"]
connect_timeout = "10s"
reply_timeout = "60s"
connections = 1
[limits]
shutdown_timeout = "5s"
[[route]]
domains = ["*"]
next_hop = ["10.0.0.1:25"]
"#;

const ZONE: &str = r#"
[[dnsbl]]
zone = "bl.example"
score = 2
[dnsbl_policy]
servers = ["192.0.2.53"]
reject_at = 2
timeout = "30s"
"#;

fn local() -> [u8; 4] {
    [10, 9, 0, 1]
}

fn stranger() -> [u8; 4] {
    [10, 8, 0, 1]
}

fn sessions_open(scene: &Scene) -> u64 {
    scene.counters.sessions_open.load(Ordering::Relaxed)
}

fn stop(scene: &Scene, after: Duration) {
    let shared = Arc::clone(&scene.shared);
    scene
        .network
        .act(after, move |_| shared.set_life(Life::Draining));
}

#[test]
fn a_session_whose_recipient_waits_for_dns_lists_is_told_when_the_time_to_finish_is_over() {
    let mut scene = Scene::new(
        &format!("{ONE}{ZONE}"),
        QUICK,
        Rc::new(|_, _, line| usual(line)),
    );
    let heard = scene.client(
        SECOND,
        stranger(),
        vec![
            Step::Hear("220 "),
            say("EHLO client.example\n"),
            Step::Hear("250 "),
            say("MAIL FROM:<x@y.example>\nRCPT TO:<c@a.example>\n"),
        ],
    );
    stop(&scene, 3 * SECOND);
    assert!(scene.run_until(60 * SECOND), "it ends");
    let heard = lines(&heard);
    assert!(
        heard.iter().any(|line| line.starts_with("421 4.3.2")),
        "{heard:?}"
    );
    assert_eq!(
        (sessions_open(&scene), scene.records().len()),
        (0, 2),
        "the session and its transaction are recorded"
    );
}

#[test]
fn a_refusal_that_waits_for_the_next_hop_keeps_no_session_when_the_time_to_finish_is_over() {
    let script = |_, _: SocketAddr, line: &str| match line.get(..4) {
        Some("RCPT") => Act::Silence,
        _ => usual(line),
    };
    let mut scene = Scene::new(ONE, QUICK, Rc::new(script));
    let heard = scene.client(
        SECOND,
        stranger(),
        vec![
            Step::Hear("220 "),
            say("EHLO client.example\n"),
            Step::Hear("250 "),
            say("MAIL FROM:<x@y.example>\nRCPT TO:<c@a.example>\nRCPT TO:<d@else.example>\n"),
        ],
    );
    stop(&scene, 3 * SECOND);
    assert!(scene.run_until(60 * SECOND), "it ends");
    let heard = lines(&heard);
    assert!(
        heard.iter().any(|line| line.starts_with("421 4.3.2")),
        "{heard:?} {:?}",
        scene.log.borrow()
    );
    assert_eq!((sessions_open(&scene), scene.records().len()), (0, 2),);
}

#[test]
fn a_next_hop_that_never_answers_rset_does_not_keep_the_gate_beyond_its_time_to_finish() {
    let script = |_, _: SocketAddr, line: &str| match line.get(..4) {
        Some("RSET") => Act::Silence,
        _ => usual(line),
    };
    let mut scene = Scene::new(ONE, QUICK, Rc::new(script));
    scene.client(
        SECOND,
        local(),
        vec![
            Step::Hear("220 "),
            say("EHLO client.example\n"),
            Step::Hear("250 "),
            say("MAIL FROM:<x@y.example>\nRCPT TO:<c@a.example>\nRSET\nQUIT\n"),
            Step::Hear("221 "),
            Step::Close,
        ],
    );
    stop(&scene, 3 * SECOND);
    assert!(scene.run_until(60 * SECOND), "it ends");
    let ended = scene.network.now();
    assert!(
        ended < 9 * SECOND + SECOND / 2,
        "{ended:?} {:?}",
        scene.log.borrow()
    );
}

#[test]
fn a_connect_that_takes_too_long_gives_its_slot_back_when_it_has_ended() {
    let one = ONE.replace("connect_timeout = \"10s\"", "connect_timeout = \"1s\"");
    let mut scene = Scene::new(&one, 60 * SECOND, Rc::new(|_, _, line| usual(line)));
    for number in 0..20 {
        scene.client(
            Duration::ZERO,
            [10, 9, 0, number],
            vec![
                Step::Hear("220 "),
                say("EHLO client.example\n"),
                Step::Hear("250 "),
                say("MAIL FROM:<x@y.example>\nRCPT TO:<c@a.example>\n"),
            ],
        );
    }
    // The pool gives attempts up; their connections are closed in the same second or the next.
    let mut given_up = None;
    while scene.network.now() < 60 * SECOND {
        scene.run_until(scene.network.now() + Duration::from_millis(1));
        let now = scene.network.now();
        let open: u32 = scene.counters.hops().iter().map(|hop| hop.open).sum();
        let is_held = open == 0 && scene.network.connections() > 20;
        let since = *given_up.get_or_insert(now);
        if !is_held || open > 0 {
            given_up = None;
        }
        assert!(
            now - since < SECOND + SECOND / 2,
            "held since {since:?}, at {now:?}"
        );
    }
}

/// What a session hears that was there before a reload to this limit, and sends this command after
/// it.
fn heard_behind_a_reload(limit: &str, command: &str) -> Vec<String> {
    let limited = ONE.replace("[limits]", &format!("[limits]\n{limit}"));
    let mut scene = Scene::new(ONE, QUICK, Rc::new(|_, _, line| usual(line)));
    let heard = scene.client(
        SECOND,
        local(),
        vec![
            Step::Hear("220 "),
            say("EHLO client.example\n"),
            Step::Hear("250 "),
            Step::Wait(5 * SECOND),
            say(command),
        ],
    );
    scene.reload(3 * SECOND, &limited);
    scene.run_until(30 * SECOND);
    lines(&heard)
}

#[test]
fn a_reload_holds_for_the_next_mail_of_a_session_that_is_there() {
    let command = "MAIL FROM:<x@y.example> SIZE=2000000\n";
    let heard = heard_behind_a_reload("message_size = \"1MB\"", command);
    assert!(
        heard.last().is_some_and(|line| line.starts_with("552 ")),
        "{heard:?}"
    );
}

#[test]
fn a_shorter_command_timeout_holds_for_an_idle_session_from_its_next_command() {
    let heard = heard_behind_a_reload("command_timeout = \"10s\"", "NOOP\n");
    assert!(
        heard.iter().any(|line| line.starts_with("421 4.4.2")),
        "{heard:?}"
    );
}

#[test]
fn a_client_that_breaks_off_as_the_next_hop_answers_does_not_stop_the_worker() {
    let script = |_, _: SocketAddr, line: &str| match line.get(..4) {
        Some("RCPT") => Act::Later(SECOND, "250 Ok"),
        _ => usual(line),
    };
    // The moment at which the client breaks off passes over that of the answer.
    for micros in 0..200 {
        let mut scene = Scene::new(ONE, QUICK, Rc::new(script));
        scene.client(
            SECOND,
            stranger(),
            vec![
                Step::Hear("220 "),
                say("EHLO client.example\n"),
                Step::Hear("250 HELP"),
                say("MAIL FROM:<x@y.example>\nRCPT TO:<c@a.example>\nRCPT TO:<d@else.example>\n"),
                Step::Wait(SECOND + Duration::from_micros(5 * micros)),
                Step::Reset,
            ],
        );
        scene.run_until(20 * SECOND);
    }
}

/// What a next hop does about a connection.
type Greeting = fn(SocketAddr) -> Act;

/// What a client hears whose message is for two next hops that are told of it by this, and how
/// often each was connected to. The gate may begin to stop meanwhile.
fn delivered(
    send_client: &str,
    greet: Greeting,
    stop_after: Option<Duration>,
) -> (Vec<String>, [usize; 2]) {
    let two = ONE
        .replace("connections = 1", "connections = 5")
        .replace(
            "shutdown_timeout = \"5s\"",
            "shutdown_timeout = \"30s\"\ngreeting_delay = \"0s\"",
        )
        .replace(
            "next_hop = [\"10.0.0.1:25\"]",
            &format!(
                "next_hop = [\"10.0.0.1:25\", \"10.0.0.2:25\"]\nsend_client = \"{send_client}\""
            ),
        );
    let connects = Rc::new(Cell::new([0; 2]));
    let counted = Rc::clone(&connects);
    let script = move |_, address: SocketAddr, line: &str| match line {
        "" => {
            let mut connects = counted.get();
            connects[usize::from(address == first())] += 1;
            counted.set(connects);
            greet(address)
        }
        _ => usual(line),
    };
    let mut scene = Scene::new(&two, QUICK, Rc::new(script));
    // The network of a scene has the worker wait for several things to happen.
    for tick in 0..2_000 {
        scene.network.act(Duration::from_millis(5) * tick, |_| ());
    }
    let heard = scene.client(
        SECOND,
        local(),
        vec![
            Step::Hear("220 "),
            say("EHLO client.example\n"),
            Step::Hear("250 HELP"),
            say("MAIL FROM:<x@y.example>\nRCPT TO:<c@a.example>\nDATA\n"),
            Step::Hear("354 "),
            say("Subject: x\n\nx\n.\nQUIT\n"),
        ],
    );
    if let Some(after) = stop_after {
        stop(&scene, after);
    }
    scene.run_until(9 * SECOND);
    let [second, first] = connects.get();
    (lines(&heard), [first, second])
}

fn welcome() -> Act {
    usual("")
}

fn slow() -> Act {
    Act::Later(SECOND * 3 / 2, "220 hop.example ESMTP")
}

fn first() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 25))
}

#[test]
fn a_first_hop_that_is_slow_or_dead_makes_no_storm_where_connections_are_for_one_client() {
    let cases: [(&str, Greeting); 4] = [
        ("the first is slow", |hop| {
            if hop == first() { slow() } else { welcome() }
        }),
        ("the first is dead", |hop| {
            if hop == first() {
                Act::Silence
            } else {
                welcome()
            }
        }),
        ("the second is dead", |hop| {
            if hop == first() { slow() } else { Act::Silence }
        }),
        ("both are slow", |_| slow()),
    ];
    // A gate that stops keeps no connection of any kind.
    let ways = [("proxy-v2", None), ("no", Some(2 * SECOND))];
    for (name, greet) in cases {
        for (send_client, stop_after) in ways {
            let (heard, connects) = delivered(send_client, greet, stop_after);
            let mut replies = heard.iter().skip_while(|line| !line.starts_with("354"));
            let is_delivered = replies.nth(1).is_some_and(|line| line.starts_with("250"));
            assert!(
                is_delivered && connects.iter().sum::<usize>() <= 3,
                "{name}, {send_client}: {connects:?} {heard:?}"
            );
        }
    }
}
