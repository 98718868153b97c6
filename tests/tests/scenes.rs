//! Sessions in scenes of the simulation, where the moment decides: what stops while something is
//! waited for, and what a reload changes for sessions that are there.

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
