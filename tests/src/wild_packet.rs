//! Frames that may be anything, for fuzzing and for properties.
//!
//! A script is bytes: the first two say under which circumstances the rest, a frame, is judged.

use std::num::NonZeroU16;

use portcullis_ebpf_common::fast_path::{self, Beginning, Headers, PlainSource, SlowPath};
use portcullis_ebpf_common::layout::{
    LinkLayer, Measures, Mode, PackedSettings, Role, Settings, VerdictKey,
};
use portcullis_ebpf_common::packet::{self, NETWORK_MAX, TRANSPORT_MAX, VLAN_TAGS_MAX};
use portcullis_ebpf_common::reply::{self, TcpReply};
use portcullis_ebpf_common::{
    Action, Class, Content, Framing, Lookup, Memory, Packet, Port, Recent, Segment, Source,
    Verdict, judge,
};

use crate::packet_cases::tagged;

/// Plays a script.
///
/// # Errors
/// Something that must hold whatever comes in does not.
pub fn check(script: &[u8]) -> Result<(), String> {
    let [circumstances, known, frame @ ..] = script else {
        return Ok(());
    };
    if frame.len() < 14 {
        return Ok(());
    }
    // Fuzzers find both kinds of frames, whatever it was meant to be.
    for layer in [LinkLayer::Ethernet, LinkLayer::RawIp, LinkLayer::Tun] {
        let content = packet::read(frame, layer);
        let segment = content.segment();
        if let Some(segment) = &segment {
            reads_what_is_there(frame, segment, layer)?;
            answers_make_sense(frame, segment)?;
        }
        what_is_behind_changes_nothing(frame, segment, layer)?;
        nothing_hides_in_a_later_buffer(frame, segment, layer)?;
        verdicts_keep_their_promises(*circumstances, *known, frame, content)?;
    }
    let content = packet::read(frame, LinkLayer::Ethernet);
    the_fast_path_keeps_to_the_slow_one(*circumstances, *known, frame, content)?;
    tags_change_nothing(frame, content)?;
    framing_changes_nothing(frame, content)
}

fn hold(condition: bool, what: &str) -> Result<(), String> {
    if condition {
        Ok(())
    } else {
        Err(what.to_owned())
    }
}

fn reads_what_is_there(frame: &[u8], segment: &Segment, layer: LinkLayer) -> Result<(), String> {
    let Segment {
        network, transport, ..
    } = *segment;
    let in_front = match segment.framing {
        Framing::Nothing | Framing::Tun => 0,
        Framing::Ethernet => 14,
        Framing::Pppoe => 22,
        Framing::PppoeShort => 21,
    };
    let tags = network.checked_sub(in_front);
    hold(
        tags.is_some_and(|tags| tags % 4 == 0 && tags / 4 <= VLAN_TAGS_MAX),
        "the network header",
    )?;
    hold(network <= NETWORK_MAX, "a network header so far inside")?;
    let nothing = layer != LinkLayer::Ethernet;
    hold(nothing == (in_front == 0), "what is in front")?;
    hold(transport <= TRANSPORT_MAX, "a TCP header so far inside")?;
    hold(transport >= network + 20, "a TCP header within another")?;
    let at = network + if segment.source.is_ipv4() { 12 } else { 8 };
    let words = segment.source.0[1..].iter();
    let address: Vec<u8> = words.flat_map(|word| word.to_ne_bytes()).collect();
    let length = if segment.source.is_ipv4() { 4 } else { 16 };
    hold(frame[at..at + length] == address[..length], "the source")?;
    let port = frame.half(transport + 2);
    let read = segment.port.get();
    hold(read.is_none() || port == read, "the port")
}

fn what_is_behind_changes_nothing(
    frame: &[u8],
    segment: Option<Segment>,
    layer: LinkLayer,
) -> Result<(), String> {
    let mut longer = frame.to_vec();
    longer.extend([0; 64]);
    match segment {
        Some(segment) if !segment.port.is_hidden() => hold(
            packet::read(&*longer, layer) == Content::Segment(segment),
            "bytes behind the port are read",
        ),
        _ => Ok(()),
    }
}

/// The first buffer of a frame that has more.
struct Begun<'a>(&'a [u8]);

impl Packet for Begun<'_> {
    fn half(&self, offset: usize) -> Option<u16> {
        self.0.half(offset)
    }

    fn word(&self, offset: usize) -> Option<u32> {
        self.0.word(offset)
    }

    fn continues(&self) -> bool {
        true
    }
}

/// Wherever the first buffer ends behind the addresses, the frame is seen as what it is, or as
/// hiding it.
fn nothing_hides_in_a_later_buffer(
    frame: &[u8],
    segment: Option<Segment>,
    layer: LinkLayer,
) -> Result<(), String> {
    let Some(segment) = segment else {
        return Ok(());
    };
    let fixed = if segment.source.is_ipv4() { 20 } else { 40 };
    for end in (segment.network + fixed..frame.len()).take(128) {
        let begun = packet::read(&Begun(&frame[..end]), layer).segment();
        let Some(begun) = begun else {
            return Err(format!("a first buffer of {end} bytes shows nothing"));
        };
        hold(begun.source == segment.source, "another source")?;
        hold(
            begun.port.is_hidden() || begun == segment,
            "another segment",
        )?;
    }
    Ok(())
}

fn is_tag(kind: Option<u16>) -> bool {
    matches!(kind, Some(0x8100 | 0x88a8 | 0x9100))
}

/// The same, so much further inside.
fn moved(content: Content, bytes: usize) -> Content {
    match content {
        Content::Segment(segment) => Content::Segment(Segment {
            network: segment.network + bytes,
            transport: segment.transport + bytes,
            ..segment
        }),
        other => other,
    }
}

fn tags_change_nothing(frame: &[u8], content: Content) -> Result<(), String> {
    if is_tag(frame.half(12)) {
        return Ok(());
    }
    for tags in 1..=VLAN_TAGS_MAX {
        let found = packet::read(&*tagged(frame, tags), LinkLayer::Ethernet);
        hold(
            found == moved(content, 4 * tags),
            "it is something else behind tags",
        )?;
    }
    for tags in [VLAN_TAGS_MAX + 1, VLAN_TAGS_MAX + 7] {
        let found = packet::read(&*tagged(frame, tags), LinkLayer::Ethernet);
        hold(
            found == Content::TooManyTags,
            "so many tags are looked past",
        )?;
    }
    Ok(())
}

/// What is behind an Ethernet header is the same in PPPoE, and where nothing is in front of it.
fn framing_changes_nothing(frame: &[u8], content: Content) -> Result<(), String> {
    let (protocol, version) = match frame.half(12) {
        Some(0x0800) => (0x21, 4),
        Some(0x86dd) => (0x57, 6),
        _ => return Ok(()),
    };
    let [addresses, packet] = [&frame[..12], &frame[14..]];
    let with = |framing| match content {
        Content::Segment(segment) => Content::Segment(Segment { framing, ..segment }),
        other => other,
    };
    let session = [0x88, 0x64, 0x11, 0, 0, 1, 0, 2];
    let protocol = [0, protocol];
    let framings = [
        (Framing::Pppoe, &protocol[..]),
        (Framing::PppoeShort, &protocol[1..]),
    ];
    for (framing, protocol) in framings {
        let in_session = [addresses, &session, protocol, packet].concat();
        for tags in [0, 1, VLAN_TAGS_MAX] {
            let found = packet::read(&*tagged(&in_session, tags), LinkLayer::Ethernet);
            let expected = moved(with(framing), 6 + protocol.len() + 4 * tags);
            hold(found == expected, "it is something else in PPPoE")?;
        }
    }
    if packet.first().is_none_or(|first| first >> 4 != version) {
        return Ok(());
    }
    let found = moved(packet::read(packet, LinkLayer::RawIp), 14);
    hold(
        found == with(Framing::Nothing),
        "it is something else without an Ethernet header",
    )
}

/// RFC 1071, with nothing clever.
fn folded(bytes: &[u8], mut sum: usize) -> usize {
    for pair in bytes.chunks(2) {
        sum += usize::from(pair[0]) << 8 | usize::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn answers_make_sense(frame: &[u8], segment: &Segment) -> Result<(), String> {
    let reset = reply::reset(frame, segment);
    let cookie = TcpReply::cookie(0x0102_fffe, u32::MAX, NonZeroU16::new(1460));
    if let Some(reset) = reset {
        let is_part = segment.port.is_hidden() || segment.fragment;
        hold(!is_part, "a RST for a part")?;
        let is_tun = segment.framing == Framing::Tun;
        hold(frame[0] & 1 == 0 || is_tun, "a RST for many")?;
        let answered = [Framing::Ethernet, Framing::Pppoe, Framing::Tun];
        hold(answered.contains(&segment.framing), "a RST that is lost")?;
        hold(frame[segment.transport + 13] & 4 == 0, "a RST for a RST")?;
        hold(reset.flags & 4 != 0 && reset.mss.is_none(), "no RST")?;
    }
    for answer in reset.iter().chain([&cookie]) {
        let length = if segment.source.is_ipv4() { 4 } else { 16 };
        let at = segment.network + if length == 4 { 12 } else { 8 };
        let addresses = &frame[at..at + 2 * length];
        let words = addresses.chunks_exact(4).flat_map(<[u8; 4]>::try_from);
        let words: Vec<u32> = words.map(u32::from_ne_bytes).collect();
        let sum = reply::sum(&words);
        let tcp = bytes(&reply::tcp(0x1234_5678, sum, answer));
        let tcp = &tcp[..answer.tcp_bytes() as usize];
        let pseudo = folded(addresses, 6 + tcp.len());
        hold(folded(tcp, pseudo) == 0xffff, "the checksum of the segment")?;
        if length == 4 {
            let header = bytes(&reply::ipv4(sum, answer));
            let sum = folded(addresses, folded(&header, 0));
            hold(sum == 0xffff, "the checksum of the header")?;
            let length = u16::from_be_bytes([header[2], header[3]]);
            hold(usize::from(length) == 20 + tcp.len(), "the length")?;
        } else {
            let header = bytes(&reply::ipv6(answer));
            let length = u16::from_be_bytes([header[4], header[5]]);
            hold(usize::from(length) == tcp.len(), "the length")?;
        }
    }
    Ok(())
}

/// Every source is on the same list and has the same past.
#[derive(Clone, Copy)]
struct Alike {
    class: Class,
    /// When the recent verdict was added.
    recent_ns: Option<u64>,
    local: bool,
    exhausted: bool,
    granted_until_ns: u64,
}

const NOW_NS: u64 = 1 << 40;

impl Lookup for Alike {
    fn class(&self, _source: &Source) -> Class {
        self.class
    }
}

struct Added(u64);

impl Recent for Added {
    fn added_ns(&self) -> u64 {
        self.0
    }

    fn expires_ns(&self) -> u64 {
        NOW_NS + 1
    }

    fn count(&self, _now_ns: u64) {}
}

impl Memory for Alike {
    type Recent = Added;

    fn granted_until_ns(&self, _source: &Source) -> u64 {
        self.granted_until_ns
    }

    fn recent(&self, _key: &VerdictKey) -> Option<Added> {
        self.recent_ns.map(Added)
    }

    fn is_local(&self, _source: &Source) -> bool {
        self.local
    }

    fn now_ns(&self) -> u64 {
        NOW_NS
    }

    fn exhausts(&self, _key: &VerdictKey, _budget: u32) -> bool {
        self.exhausted
    }
}

/// What is in force, and what is known of all sources.
struct Scene {
    role: Role,
    measures: Measures,
    settings: Settings,
    alike: Alike,
}

impl Scene {
    fn new(circumstances: u8, known: u8) -> Self {
        let is = |bit: u8| circumstances >> bit & 1 == 1;
        let measures = Measures {
            drop_unlisted: is(1),
            ..Measures::default()
        };
        let mut settings = Settings::new(Mode::Enforce, measures, &[25, 587]);
        settings.syn_budget = u32::from(is(2));
        let fresh = if is(3) { NOW_NS - 1 } else { 0 };
        Self {
            role: if is(0) { Role::Customer } else { Role::Edge },
            measures,
            settings,
            alike: Alike {
                class: match known % 4 {
                    0 => Class::NONE,
                    1 => Class::new(Action::Permit, 1),
                    2 => Class::new(Action::Drop, 2),
                    _ => Class::new(Action::HardDrop, 3),
                },
                recent_ns: is(4).then_some(fresh),
                local: is(5),
                granted_until_ns: [0, NOW_NS, NOW_NS + 1][usize::from(known / 4 % 3)],
                exhausted: is(6),
            },
        }
    }
}

/// A frame whose beginning the fast path reads.
struct Plain<'a>(&'a [u8]);

impl Beginning for Plain<'_> {
    fn headers<const BYTES: usize>(&self) -> Option<impl Headers> {
        self.0.first_chunk::<BYTES>().map(Bytes)
    }
}

struct Bytes<'a, const N: usize>(&'a [u8; N]);

impl<const N: usize> Headers for Bytes<'_, N> {
    fn word<const AT: usize>(&self) -> u32 {
        self.0.as_slice().word(AT).unwrap_or_default()
    }

    fn double<const AT: usize>(&self) -> u64 {
        let double = self.0[AT..].first_chunk();
        u64::from_ne_bytes(double.copied().unwrap_or_default())
    }
}

impl fast_path::Sources for Alike {
    fn class(&self, _source: PlainSource) -> Result<Class, SlowPath> {
        Ok(self.class)
    }

    fn may_be_granted(&self, _key: &VerdictKey) -> bool {
        self.granted_until_ns != 0
    }

    fn may_be_recent(&self, _key: &VerdictKey) -> bool {
        self.recent_ns.is_some()
    }
}

/// What the fast path reads, and its verdict where it has one, are those of the slow path. It
/// leaves to the slow path only what it has to.
fn the_fast_path_keeps_to_the_slow_one(
    circumstances: u8,
    known: u8,
    frame: &[u8],
    content: Content,
) -> Result<(), String> {
    let Ok(plain) = fast_path::read(&Plain(frame)) else {
        return Ok(());
    };
    let Some(segment) = content.segment() else {
        return Err("the fast path reads what is no segment".to_owned());
    };
    hold(
        plain.source.key() == segment.source.key(),
        "the fast path reads another source",
    )?;
    hold(!segment.fragment, "the fast path reads a fragment")?;
    let scene = Scene::new(circumstances, known);
    let packed = PackedSettings::new(&scene.settings);
    let decided = fast_path::judge(&plain, packed, &scene.alike);
    let verdict = judge(
        frame,
        &content,
        Role::Edge,
        &scene.settings,
        &scene.alike,
        &scene.alike,
    );
    if let Ok(decided) = decided {
        return hold(decided == verdict, "another verdict on the fast path");
    }
    let may_be_granted = scene.alike.granted_until_ns != 0;
    let depends = match scene.alike.class.action() {
        None => {
            scene.alike.recent_ns.is_some()
                || packet::opens(frame, &segment)
                || (scene.measures.drop_unlisted && may_be_granted)
        }
        Some(Action::Drop) => may_be_granted,
        Some(Action::HardDrop | Action::Permit) => false,
    };
    let first_port = segment.port == Port::new(25);
    hold(depends || !first_port, "left to the slow path")
}

fn verdicts_keep_their_promises(
    circumstances: u8,
    known: u8,
    frame: &[u8],
    content: Content,
) -> Result<(), String> {
    let Scene {
        role,
        measures,
        settings,
        alike,
    } = Scene::new(circumstances, known);
    let verdict = judge(frame, &content, role, &settings, &alike, &alike);
    let many_tags = content == Content::TooManyTags;
    hold(many_tags == (verdict == Verdict::Tags), "too many tags")?;
    if many_tags {
        let drops = [Mode::Enforce, Mode::Monitor, Mode::Off].map(|mode| verdict.drops(mode));
        return hold(drops == [true, false, false], "only enforcing drops");
    }
    let segment = content.segment();
    let filtered = |port: Port| port.get().is_none_or(|port| settings.filters(port));
    let concerned = segment.is_some_and(|segment| filtered(segment.port));
    hold(concerned == (verdict != Verdict::Other), "whom it concerns")?;
    if !concerned {
        return Ok(());
    }
    let permitted = alike.class.action() == Some(Action::Permit);
    hold(permitted == (verdict == Verdict::Permitted(1)), "a permit")?;
    let is_granted = alike.granted_until_ns > NOW_NS;
    let hard = alike.class.action() == Some(Action::HardDrop);
    hold(
        role == Role::Customer || !is_granted || hard || verdict.reason().is_none(),
        "a grant is dropped by no list but a hard one",
    )?;
    hold(
        verdict != Verdict::Granted || (is_granted && !hard && !permitted),
        "a grant that is over, or on a hard list",
    )?;
    let learned = matches!(verdict, Verdict::Recent | Verdict::OverBudget);
    hold(!(learned && alike.local), "a local source")?;
    let unbudgeted = Settings::new(Mode::Enforce, measures, &[25, 587]);
    let without = judge(frame, &content, role, &unbudgeted, &alike, &alike);
    hold(
        without == verdict || (without, verdict) == (Verdict::Passed, Verdict::OverBudget),
        "a budget drops nothing, because the source of a SYN may be forged",
    )?;
    hold(
        (verdict == Verdict::Customer) == (role == Role::Customer && !permitted),
        "a customer",
    )?;
    let quiet = [Mode::Monitor, Mode::Off];
    hold(
        !quiet.iter().any(|mode| verdict.drops(*mode)),
        "only enforcing drops",
    )?;
    hold(
        verdict.drops(Mode::Enforce) == verdict.reason().is_some(),
        "a drop without a reason",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet_cases;

    #[test]
    fn what_must_hold_of_any_frame_holds_of_the_cases_and_of_what_is_near_them() {
        let mut random = fastrand::Rng::with_seed(791);
        for file in packet_cases::all().expect("the cases can be read") {
            for case in file.cases {
                for _ in 0..50 {
                    let mut script = vec![random.u8(..), random.u8(..)];
                    script.extend(&case.frame);
                    for _ in 0..random.usize(..4) {
                        let at = random.usize(2..script.len());
                        script[at] = random.u8(..);
                    }
                    if let Err(error) = check(&script) {
                        panic!("{error}: {:02x?}", &script[..script.len().min(200)]);
                    }
                }
            }
        }
    }
}
