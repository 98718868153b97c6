//! Sessions that come by a trusted front, on virtual time: who the client is for the policy, the
//! limits and the records, and what becomes of fronts that stall, break off or send something else.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use portcullis::fronts::proxy::{Endpoints, Header, write_v1, write_v2};
use portcullis::policy::dnsbl::{DnsblAnswer, ZoneAnswer};
use portcullis::worker::counters::HeaderResult;
use portcullis::worker::port::{LookupAnswer, Message, Notice, Question};
use portcullis::worker::records::{Record, SessionRecord};
use portcullis_tests::simulation::scene::{Act, Log, Scene, Step, lines, say, usual};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const QUICK: Duration = Duration::from_micros(10);
/// The end of a scene.
pub(crate) const END: Duration = Duration::from_secs(60);

/// A balancer that speaks the PROXY protocol. It is in a local network itself.
pub(crate) const BALANCER: [u8; 4] = [10, 9, 7, 1];
/// A mail proxy that speaks XCLIENT, in a local network too.
pub(crate) const MAIL_PROXY: [u8; 4] = [10, 9, 7, 2];
pub(crate) const LOCAL: &str = "10.9.0.1";
pub(crate) const STRANGER: &str = "10.8.0.1";

pub(crate) const GATE: &str = r#"
hostname = "gate.example"
[[listener]]
address = "192.0.2.1:25"
proxy_protocol_from = ["10.9.7.1"]
xclient_from = ["10.9.7.2/32"]
[relay]
networks = ["10.9.0.0/16"]
domains = ["a.example"]
[[route]]
domains = ["*"]
next_hop = ["10.0.0.1:25"]
[limits]
"#;

pub(crate) fn scene(limits: &str) -> Scene {
    scene_of(GATE, limits)
}

/// As [`scene`], with another beginning than [`GATE`].
pub(crate) fn scene_of(gate: &str, limits: &str) -> Scene {
    let configuration = format!("{gate}{limits}");
    let script = |_, _: SocketAddr, line: &str| match line.get(..4) {
        Some("RCPT") => Act::Say("250 2.1.5 Ok"),
        _ => usual(line),
    };
    Scene::new(&configuration, QUICK, Rc::new(script))
}

pub(crate) fn client(address: &str) -> Header {
    let address = SocketAddr::new(address.parse().expect("an address"), 50_000);
    let server = "192.0.2.1:25".parse().expect("an address");
    Header::Client(Endpoints::new(address, server).expect("a client"))
}

pub(crate) fn v1(header: &Header) -> Vec<u8> {
    let mut octets = Vec::new();
    write_v1(header, &mut octets);
    octets
}

pub(crate) fn v2(header: &Header) -> Vec<u8> {
    let mut octets = Vec::new();
    write_v2(header, &mut octets);
    octets
}

/// A header, and then EHLO and an envelope to a recipient elsewhere.
pub(crate) fn relays(header: Vec<u8>) -> Vec<Step> {
    vec![
        Step::Say(header),
        Step::Hear("220 "),
        say("EHLO client.example\n"),
        Step::Hear("250 HELP"),
        say("MAIL FROM:<x@y.example>\nRCPT TO:<c@else.example>\nQUIT\n"),
        Step::Hear("221 "),
        Step::Close,
    ]
}

/// The reply to the recipient of [`relays`].
pub(crate) fn recipient_reply(heard: &Log) -> String {
    let heard = lines(heard);
    let last = heard.iter().rev().nth(1).or(heard.last());
    let at = heard.iter().position(|line| line.starts_with("221"));
    let reply = at.and_then(|at| heard.get(at - 1)).or(last);
    reply.cloned().unwrap_or_default()
}

pub(crate) fn sessions(scene: &Scene) -> Vec<SessionRecord> {
    let records = scene.records().into_iter();
    let sessions = records.filter_map(|record| match record {
        Record::Session(session) => Some(session),
        Record::Transaction(_) => None,
    });
    sessions.collect()
}

pub(crate) fn clients(scene: &Scene) -> Vec<String> {
    let sessions = sessions(scene).into_iter();
    sessions.map(|session| session.client.to_string()).collect()
}

fn headers(scene: &Scene, result: HeaderResult) -> u64 {
    let mut counts = scene.counters.proxy_headers();
    counts.find(|(it, _)| *it == result).map_or(0, |it| it.1)
}

pub(crate) fn sessions_total(scene: &Scene) -> u64 {
    scene.counters.sessions_total.load(Ordering::Relaxed)
}

pub(crate) fn nothing_is_left(scene: &Scene) {
    assert_eq!(scene.counters.sessions_open.load(Ordering::Relaxed), 0);
    assert_eq!(scene.network.buffers_out(), 0);
}

#[test]
fn the_client_of_a_header_is_who_it_says_and_never_the_front() {
    for write in [v1, v2] {
        for (address, code) in [
            (STRANGER, "550 5.7.1"),
            (LOCAL, "250"),
            ("2001:db8::9", "550"),
        ] {
            let mut scene = scene("");
            let heard = scene.client(SECOND, BALANCER, relays(write(&client(address))));
            scene.run_until(END);
            let reply = recipient_reply(&heard);
            assert!(reply.starts_with(code), "{address}: {:?}", lines(&heard));
            assert_eq!(clients(&scene), [address]);
            assert_eq!(headers(&scene, HeaderResult::Client), 1);
            nothing_is_left(&scene);
        }
    }
}

#[test]
fn a_message_of_a_client_behind_a_front_is_traced_to_the_client() {
    let mut scene = scene("");
    let mut steps = relays(v2(&client(LOCAL)));
    steps.truncate(4);
    steps.extend([
        say("MAIL FROM:<x@y.example>\nRCPT TO:<c@else.example>\nDATA\n"),
        Step::Hear("354"),
        say("Subject: x\n\n.\n"),
        Step::Hear("250"),
        Step::Close,
    ]);
    scene.client(SECOND, BALANCER, steps);
    scene.run_until(END);
    let log = lines(&scene.log);
    let received = log.iter().find(|line| line.contains("Received:"));
    let received = received.expect("a line of ours");
    assert!(received.contains("([10.9.0.1])"), "{received}");
}

#[test]
fn a_header_in_any_pieces_is_one_header() {
    for header in [v1(&client(LOCAL)), v2(&client(LOCAL))] {
        for cut in 1..header.len() {
            let mut scene = scene("");
            let (first, rest) = header.split_at(cut);
            let mut steps = vec![Step::Say(first.to_vec()), Step::Wait(SECOND)];
            steps.extend(relays(rest.to_vec()));
            let heard = scene.client(SECOND, BALANCER, steps);
            scene.run_until(END);
            let reply = recipient_reply(&heard);
            assert!(reply.starts_with("250"), "cut at {cut}: {reply}");
        }
    }
}

#[test]
fn what_comes_behind_a_header_in_one_piece_is_the_clients() {
    for header in [v1(&client(STRANGER)), v2(&client(STRANGER))] {
        let mut scene = scene("");
        let octets = [header, b"EHLO early.example\r\n".to_vec()].concat();
        let heard = scene.client(SECOND, BALANCER, vec![Step::Say(octets)]);
        scene.run_until(END);
        // Before the greeting that is an early talker, as without a front.
        let heard = lines(&heard);
        assert!(
            heard.iter().any(|line| line.starts_with("554 5.5.0")),
            "{heard:?}"
        );
        let records = sessions(&scene);
        assert_eq!(records[0].client.to_string(), STRANGER);
        assert_eq!(records[0].rule.name(), "early-talker");
    }
}

#[test]
fn a_header_from_a_stranger_changes_nothing() {
    let mut scene = scene("");
    let mut steps = relays(Vec::new());
    steps[0] = Step::Hear("220 ");
    steps[1] = Step::Say(v1(&client(LOCAL)));
    steps.insert(2, Step::Hear("500 "));
    let stranger = [10, 8, 0, 66];
    let late = scene.client(SECOND, stranger, steps);
    let early = scene.client(SECOND, stranger, vec![Step::Say(v2(&client(LOCAL)))]);
    scene.run_until(END);
    assert!(
        recipient_reply(&late).starts_with("550 5.7.1"),
        "{:?}",
        lines(&late)
    );
    let heard = lines(&early);
    assert!(
        heard.iter().any(|line| line.starts_with("554 ")),
        "{heard:?}"
    );
    assert_eq!(clients(&scene), ["10.8.0.66"; 2]);
    assert_eq!(headers(&scene, HeaderResult::Client), 0);
}

#[test]
fn a_health_check_is_answered_and_is_no_client() {
    let local = v2(&Header::Local);
    let unknown = [v1(&Header::Unknown), v2(&Header::Unknown)];
    // A check of HAProxy in version 1 names HAProxy itself.
    let itself = v1(&client("10.9.7.1"));
    for header in [vec![local, itself], unknown.to_vec()].concat() {
        let mut scene = scene("sessions_per_source = 1");
        let check = || {
            vec![
                Step::Say(header.clone()),
                Step::Hear("220 "),
                say("EHLO check.example\n"),
                Step::Hear("250 HELP"),
                say("NOOP\n"),
                Step::Hear("250 "),
                // Not even from a local network: it is not known whose mail it is.
                say("MAIL FROM:<x@y.example>\n"),
                Step::Hear("451 4.3.5"),
                say("RCPT TO:<c@a.example>\n"),
                Step::Hear("503"),
                say("XCLIENT ADDR=10.9.0.1\n"),
                Step::Hear("550"),
                Step::Wait(3 * SECOND),
                say("QUIT\n"),
                Step::Hear("221 "),
                Step::Close,
            ]
        };
        let heard = [(); 3].map(|()| scene.client(SECOND, BALANCER, check()));
        scene.run_until(END);
        for heard in heard {
            let heard = lines(&heard);
            assert!(
                heard.iter().any(|line| line.starts_with("221")),
                "{heard:?}"
            );
        }
        assert_eq!((sessions_total(&scene), scene.records().len()), (0, 0));
        let [local, unknown] = [HeaderResult::Local, HeaderResult::Unknown];
        assert_eq!(headers(&scene, local) + headers(&scene, unknown), 3);
        nothing_is_left(&scene);
    }
}

#[test]
fn a_front_that_stalls_breaks_off_or_sends_something_else_is_closed_and_counted() {
    let header = v2(&client(LOCAL));
    let (half, text) = (header[..20].to_vec(), v1(&client(LOCAL)));
    let over_long = [&text[..text.len() - 2], &[b' '; 200]].concat();
    let bad_version = [&header[..12], b"\x31", &header[13..]].concat();
    let stall = |octets: Vec<u8>| vec![Step::Say(octets)];
    let broken = |end| vec![Step::Say(half.clone()), Step::Wait(SECOND), end];
    let cases = [
        (stall(half.clone()), HeaderResult::Late, 12),
        (stall(text[..9].to_vec()), HeaderResult::Late, 12),
        (vec![Step::Wait(END)], HeaderResult::Late, 12),
        (broken(Step::Close), HeaderResult::Bad, 4),
        (broken(Step::Reset), HeaderResult::Bad, 4),
        (
            stall(b"EHLO client.example\r\n".to_vec()),
            HeaderResult::Bad,
            2,
        ),
        (stall(b"\x16\x03\x01\x02\0".to_vec()), HeaderResult::Bad, 2),
        (stall(over_long), HeaderResult::Bad, 2),
        (stall(bad_version), HeaderResult::Bad, 2),
        (vec![Step::Close], HeaderResult::Missing, 2),
    ];
    for (number, (steps, result, seconds_max)) in cases.into_iter().enumerate() {
        let mut scene = scene("");
        let heard = scene.client(SECOND, BALANCER, steps);
        scene.run_until(END + SECOND);
        assert_eq!(headers(&scene, result), 1, "case {number}: {heard:?}");
        let heard = heard.borrow();
        let said: Vec<_> = heard
            .iter()
            .filter(|(_, line)| !line.starts_with('('))
            .collect();
        assert!(said.is_empty(), "case {number}: {said:?}");
        if let Some((at, _)) = heard.first() {
            assert!(*at <= seconds_max * SECOND, "case {number}: {at:?}");
        }
        assert_eq!((sessions_total(&scene), scene.records().len()), (0, 0));
        nothing_is_left(&scene);
    }
}

#[test]
fn a_header_drop_by_drop_has_no_more_time_than_another() {
    let mut scene = scene("");
    let steps = v2(&client(LOCAL)).into_iter();
    let steps = steps.flat_map(|octet| [Step::Say(vec![octet]), Step::Wait(SECOND)]);
    scene.client(SECOND, BALANCER, steps.collect());
    scene.run_until(END);
    assert_eq!(headers(&scene, HeaderResult::Late), 1);
}

#[test]
fn the_limit_for_one_source_counts_clients_and_not_the_front() {
    let mut scene = scene("sessions_per_source = 2");
    let stay = |address: &str| {
        let mut steps = relays(v2(&client(address)));
        steps.insert(4, Step::Wait(5 * SECOND));
        steps
    };
    let crowd: Vec<_> = (1..=5)
        .map(|number| scene.client(SECOND, BALANCER, stay(&format!("10.8.1.{number}"))))
        .collect();
    let same = [(); 3].map(|()| scene.client(SECOND, BALANCER, stay(STRANGER)));
    scene.run_until(END);
    for heard in &crowd {
        assert!(lines(heard)[0].starts_with("220"), "{:?}", lines(heard));
    }
    let refused = same
        .iter()
        .filter(|heard| lines(heard)[0].starts_with("421 4.7.0"));
    assert_eq!(refused.count(), 1);
    nothing_is_left(&scene);
}

#[test]
fn dns_lists_are_asked_about_the_client_and_the_filter_hears_that_it_must_not_drop() {
    let zones = "[[dnsbl]]\nzone = \"bl.example\"\nscore = 2\n[dnsbl_policy]\n\
                 servers = [\"192.0.2.53\"]\nreject_at = 2\n";
    let by_xclient = |address: &str| {
        let mut steps = relays(Vec::new());
        steps[0] = Step::Hear("220 ");
        steps[1] = say(&format!("XCLIENT ADDR={address}\n"));
        steps.insert(2, Step::Hear("220 "));
        steps
    };
    let to_us = |steps: Vec<Step>| -> Vec<Step> {
        let local = |step| match step {
            Step::Say(octets) => {
                let text = String::from_utf8_lossy(&octets).replace("else.example", "a.example");
                // A binary header is no text.
                Step::Say(if octets.contains(&0) {
                    octets
                } else {
                    text.into_bytes()
                })
            }
            step => step,
        };
        steps.into_iter().map(local).collect()
    };
    for (front, steps) in [
        (BALANCER, relays(v2(&client(STRANGER)))),
        (MAIL_PROXY, by_xclient(STRANGER)),
        ([10, 8, 0, 1], relays(Vec::new())),
    ] {
        let mut scene = scene(zones);
        let heard = scene.client(SECOND, front, to_us(steps));
        let mut asked = Vec::new();
        let mut notices = Vec::new();
        while scene.network.now() < END {
            scene.run_until(scene.network.now() + Duration::from_millis(1));
            for message in scene.control.take() {
                match message {
                    Message::Ask(ask) => {
                        let Question::Dnsbl(address) = ask.question else {
                            panic!("{ask:?}")
                        };
                        asked.push(address);
                        let listed = DnsblAnswer::Addresses(vec![[127, 0, 0, 2].into()]);
                        let answer = ZoneAnswer {
                            zone: "bl.example".into(),
                            answer: listed,
                        };
                        ask.answer(LookupAnswer::Dnsbl(Some([answer].into())));
                    }
                    Message::Notice(notice) => notices.push(notice),
                }
            }
        }
        let client: IpAddr = STRANGER.parse().expect("an address");
        assert_eq!(asked, [client], "{front:?}");
        assert!(
            recipient_reply(&heard).starts_with("554 5.7.1"),
            "{:?}",
            lines(&heard)
        );
        let [Notice::Refused(refusal)] = notices.as_slice() else {
            panic!("{notices:?}")
        };
        assert_eq!(refusal.client, client);
        assert_eq!(refusal.is_behind_front, front != [10, 8, 0, 1]);
    }
}
