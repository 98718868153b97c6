//! Whether the answers of the program (a SYN cookie, a RST to a customer) arrive.
//!
//! On three kinds of interfaces they do not, or not as they should:
//!
//! - A veth passes a frame of a program in the driver (`XDP_TX`) to its peer only if a program runs
//!   in the driver there too. Otherwise it drops the frame or, with NAPI or GRO, keeps it in a ring
//!   until other traffic comes.
//! - A driver that strips VLAN tags hides the tag from the program: the answer to a tagged frame
//!   leaves without a tag.
//! - Without an Ethernet header the kernel cannot tell the protocol of a packet that the program
//!   sends back, and PPP, WireGuard and tunnels send IP only. A TUN device does not check.
//!
//! The peer of a veth may be in any namespace, so it cannot be asked. But its program shows at this
//! end: while it runs, the kernel removes segmentation offload from the features that can be
//! changed here (`veth_xdp_set`). Rejected: a test frame. The counters of a veth do not tell it
//! from other traffic, it would disturb the peer, and it takes privileges that a gate has dropped
//! before a reload.

use std::collections::BTreeMap;
use std::fmt;

use portcullis_ebpf_common::layout::{self, INTERFACES_MAX, LinkLayer};

use super::features::{Features, features};
use super::maps::InterfaceSlot;
use super::{link_layer, links, netlink};
use crate::config::{CustomerRefusal, Filter, FilterMode, Interface, Role, XdpMode};

/// A feature that can be changed at one end of a veth while the other end runs no program in its
/// driver.
const SEGMENTATION: &str = "tx-tcp-segmentation";
/// The driver strips 802.1Q tags from the frames.
const STRIPS_TAGS: &str = "rx-vlan-hw-parse";
/// The same for the tags of 802.1ad.
const STRIPS_PROVIDER_TAGS: &str = "rx-vlan-stag-hw-parse";

/// Why the answers of the program do not arrive on an interface as they should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerFault {
    interface: String,
    role: Role,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The peer of the veth runs no program in its driver.
    Lost,
    /// There is no Ethernet header.
    Headerless,
    /// The driver strips tags from the frames: those of 802.1Q, those of 802.1ad.
    Untagged([bool; 2]),
}

/// What the kernel reports about an interface.
struct Facts {
    is_veth: bool,
    layer: LinkLayer,
    /// `None` on a kernel without ethtool's netlink interface.
    features: Option<Features>,
}

impl AnswerFault {
    /// The interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Whether no answer arrives at all. Then the program sends none there.
    pub fn is_lost(&self) -> bool {
        matches!(self.fault, Fault::Lost | Fault::Headerless)
    }

    /// The fault and its effect, in words.
    pub fn found(&self) -> &'static str {
        match (self.fault, self.role) {
            (Fault::Lost, Role::Edge) => {
                "the other end of this veth runs no XDP program, and SYN cookies of the filter \
                 would be lost: they are left to the kernel there"
            }
            (Fault::Lost, Role::Customer) => {
                "the other end of this veth runs no XDP program, and RSTs of the filter would be \
                 lost: customers are dropped there instead of being answered"
            }
            (Fault::Headerless, Role::Edge) => {
                "its packets have no Ethernet header, and SYN cookies of the filter would be lost: \
                 they are left to the kernel there"
            }
            (Fault::Headerless, Role::Customer) => {
                "its packets have no Ethernet header, and RSTs of the filter would be lost: \
                 customers are dropped there instead of being answered"
            }
            (Fault::Untagged(_), Role::Edge) => {
                "its driver keeps VLAN tags beside the frames (rx-vlan-offload): \
                 the SYN cookie for a tagged SYN leaves without its tag, and is lost"
            }
            (Fault::Untagged(_), Role::Customer) => {
                "its driver keeps VLAN tags beside the frames (rx-vlan-offload): \
                 the RST for a tagged packet leaves without its tag, and is lost"
            }
        }
    }

    /// What the operator can do.
    pub fn next_step(&self) -> String {
        match (self.fault, self.role) {
            (Fault::Lost, role) => format!(
                "put an XDP program on the other end, in the driver (a filter for another port \
                 will do: see \"Answers of the filter\" in operations.md); or say so in the \
                 configuration: {}",
                without_answers(role)
            ),
            (Fault::Headerless, role) => format!(
                "nothing can be done about it there; or say so in the configuration, for all \
                 interfaces: {}",
                without_answers(role)
            ),
            (Fault::Untagged(stripped), _) => {
                let options = ["rxvlan off", "rx-vlan-stag-hw-parse off"].into_iter();
                let options = options.zip(stripped).filter(|(_, stripped)| *stripped);
                let options: Vec<_> = options.map(|(option, _)| option).collect();
                format!(
                    "if tagged frames come there: ethtool -K {} {}",
                    self.interface,
                    options.join(" ")
                )
            }
        }
    }
}

/// The setting that turns answers off on interfaces with this role.
const fn without_answers(role: Role) -> &'static str {
    match role {
        Role::Edge => "filter.syn_cookies = false",
        Role::Customer => "filter.customer_refusal = \"drop\"",
    }
}

impl fmt::Display for AnswerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (found, next_step) = (self.found(), self.next_step());
        write!(f, "interface {}: {found}; {next_step}", self.interface)
    }
}

/// The fault of an interface on which the program would answer with these settings. `None` also if
/// the kernel reports nothing about the interface. This changes nothing.
pub fn answer_fault(settings: &Filter, interface: &Interface) -> Option<AnswerFault> {
    look(settings, interface).flatten()
}

/// The outer `None`: the kernel reports nothing about the interface.
fn look(settings: &Filter, interface: &Interface) -> Option<Option<AnswerFault>> {
    if !is_answered(settings, interface.role) {
        return Some(None);
    }
    let index = links::index(&interface.name).ok()?;
    let description = netlink::describe(index).ok()?;
    let facts = Facts {
        is_veth: description.kind == "veth",
        layer: link_layer::judge(&description).ok()?,
        features: features(index).unwrap_or_default(),
    };
    let fault = judge(settings.xdp_mode, &facts);
    Some(fault.map(|fault| AnswerFault {
        interface: interface.name.clone(),
        role: interface.role,
        fault,
    }))
}

/// Whether the program answers anything on an interface with this role.
fn is_answered(settings: &Filter, role: Role) -> bool {
    let answers = match role {
        Role::Edge => settings.syn_cookies,
        Role::Customer => {
            settings.customer_refusal == CustomerRefusal::Reset && settings.resets_per_second > 0
        }
    };
    answers && settings.mode == FilterMode::Enforce
}

fn judge(mode: XdpMode, facts: &Facts) -> Option<Fault> {
    let features = facts.features.as_ref();
    if facts.layer == LinkLayer::RawIp {
        return Some(Fault::Headerless);
    }
    if facts.is_veth {
        // A veth has the flags of tags too, but they mean nothing there.
        let answered = features.is_some_and(|features| !features.changeable.contains(SEGMENTATION));
        // A frame of a generic program is sent as every other frame.
        return (mode == XdpMode::Driver && !answered).then_some(Fault::Lost);
    }
    let stripped = [STRIPS_TAGS, STRIPS_PROVIDER_TAGS]
        .map(|name| features.is_some_and(|features| features.active.contains(name)));
    (stripped != [false; 2]).then_some(Fault::Untagged(stripped))
}

/// The faults of all interfaces of a filter, by the names of the interfaces.
#[derive(Clone, Debug, Default)]
pub(super) struct AnswerFaults(BTreeMap<String, AnswerFault>);

impl AnswerFaults {
    /// Checks the interfaces of these settings again. An interface that cannot be checked (it is
    /// gone for now, or in another namespace) keeps its fault.
    pub(super) fn again(&self, settings: &Filter) -> Self {
        let mut now = BTreeMap::new();
        for interface in &settings.interfaces {
            let before = self.0.get(&interface.name);
            let found = look(settings, interface).unwrap_or_else(|| before.cloned());
            now.extend(found.map(|fault| (interface.name.clone(), fault)));
        }
        Self(now)
    }

    /// Logs what has changed.
    pub(super) fn log_changes(&self, before: &Self, settings: &Filter) {
        for interface in &settings.interfaces {
            let of = |faults: &Self| faults.0.get(&interface.name).cloned();
            match (of(before), of(self)) {
                (before, Some(fault)) if before.as_ref() != Some(&fault) => {
                    tracing::warn!("{fault}");
                }
                (Some(_), None) if is_answered(settings, interface.role) => tracing::info!(
                    interface = interface.name,
                    "what the filter answers there arrives from now on"
                ),
                _ => {}
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &AnswerFault> {
        self.0.values()
    }

    /// Turns answers off where they would be lost, and in slots whose interface is not known yet.
    pub(super) fn silence(&self, in_kernel: &mut layout::Settings, taken: &[InterfaceSlot]) {
        for slot in 0..INTERFACES_MAX {
            let mut interfaces = taken.iter().filter(|taken| taken.slot == slot);
            let arrives = interfaces.any(|taken| {
                let fault = self.0.get(&taken.interface.name);
                !fault.is_some_and(AnswerFault::is_lost)
            });
            if !arrives {
                in_kernel.set_silent(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use portcullis_ebpf_common::layout::INTERFACE_SLOTS;

    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn facts(is_veth: bool, active: &[&str], changeable: &[&str]) -> Facts {
        Facts {
            is_veth,
            layer: LinkLayer::Ethernet,
            features: Some(Features {
                active: set(active),
                changeable: set(changeable),
            }),
        }
    }

    #[test]
    fn a_veth_needs_a_program_at_its_other_end_and_its_tag_features_do_not_matter() {
        let tags = [STRIPS_TAGS, STRIPS_PROVIDER_TAGS];
        let cases = [
            (XdpMode::Driver, facts(true, &tags, &[SEGMENTATION]), true),
            (XdpMode::Driver, facts(true, &tags, &tags), false),
            (XdpMode::Generic, facts(true, &tags, &[SEGMENTATION]), false),
        ];
        for (mode, facts, lost) in cases {
            let fault = lost.then_some(Fault::Lost);
            assert_eq!(judge(mode, &facts), fault, "{mode:?} {:?}", facts.features);
        }
        let unknown = Facts {
            is_veth: true,
            layer: LinkLayer::Ethernet,
            features: None,
        };
        assert_eq!(
            judge(XdpMode::Driver, &unknown),
            Some(Fault::Lost),
            "without knowledge the kernel answers, and its answers arrive"
        );
    }

    #[test]
    fn a_driver_that_strips_tags_of_either_kind_is_found() {
        let on = |active: &[&str]| judge(XdpMode::Driver, &facts(false, active, active));
        assert_eq!(on(&[SEGMENTATION]), None);
        assert_eq!(on(&[STRIPS_TAGS]), Some(Fault::Untagged([true, false])));
        assert_eq!(
            on(&[STRIPS_PROVIDER_TAGS]),
            Some(Fault::Untagged([false, true]))
        );
        let off = facts(false, &[], &[STRIPS_TAGS, STRIPS_PROVIDER_TAGS]);
        assert_eq!(judge(XdpMode::Driver, &off), None);
    }

    #[test]
    fn without_an_ethernet_header_nothing_is_answered_but_on_a_tun_device() {
        let on = |layer| {
            let facts = Facts {
                layer,
                ..facts(false, &[], &[])
            };
            judge(XdpMode::Generic, &facts)
        };
        assert_eq!(on(LinkLayer::RawIp), Some(Fault::Headerless));
        assert_eq!(on(LinkLayer::Tun), None);
    }

    #[test]
    fn the_fault_names_the_command_that_repairs_it() {
        let fault = |fault| AnswerFault {
            interface: "eth7".to_owned(),
            role: Role::Edge,
            fault,
        };
        for (stripped, line) in [
            ([true, false], "ethtool -K eth7 rxvlan off"),
            ([false, true], "ethtool -K eth7 rx-vlan-stag-hw-parse off"),
            (
                [true, true],
                "ethtool -K eth7 rxvlan off rx-vlan-stag-hw-parse off",
            ),
        ] {
            let text = fault(Fault::Untagged(stripped)).to_string();
            assert!(text.ends_with(line), "{text}");
        }
    }

    #[test]
    fn what_the_kernel_says_of_a_veth_is_what_ethtool_sets() {
        if !crate::netns::permitted() {
            return;
        }
        let gate = crate::netns::Namespace::create("features").unwrap();
        gate.veth("here", &gate, "there").unwrap();
        let look = || {
            gate.run(|| {
                let index = links::index("here").unwrap();
                let kind = netlink::describe(index).unwrap().kind;
                (kind, features(index).unwrap().unwrap().active)
            })
            .unwrap()
        };
        let (kind, active) = look();
        assert_eq!(kind, "veth");
        assert!(active.contains(STRIPS_TAGS) && active.contains(STRIPS_PROVIDER_TAGS));
        let mut ethtool = gate.command("ethtool");
        let options = ["-K", "here", "rxvlan", "off", STRIPS_PROVIDER_TAGS, "off"];
        assert!(ethtool.args(options).status().unwrap().success());
        let (_, active) = look();
        assert!(!active.contains(STRIPS_TAGS) && !active.contains(STRIPS_PROVIDER_TAGS));
    }

    #[test]
    fn without_answers_there_is_no_fault() {
        let answers = Filter::default();
        assert!(is_answered(&answers, Role::Edge) && is_answered(&answers, Role::Customer));
        let edge_only = [
            (
                "refusal",
                Filter {
                    customer_refusal: CustomerRefusal::Drop,
                    ..answers.clone()
                },
            ),
            (
                "rate",
                Filter {
                    resets_per_second: 0,
                    ..answers.clone()
                },
            ),
        ];
        for (what, settings) in edge_only {
            assert!(is_answered(&settings, Role::Edge), "{what}");
            assert!(!is_answered(&settings, Role::Customer), "{what}");
        }
        let no_cookies = Filter {
            syn_cookies: false,
            ..answers.clone()
        };
        assert!(!is_answered(&no_cookies, Role::Edge));
        assert!(is_answered(&no_cookies, Role::Customer));
        let monitor = Filter {
            mode: FilterMode::Monitor,
            ..answers
        };
        assert!(!is_answered(&monitor, Role::Edge) && !is_answered(&monitor, Role::Customer));
    }

    #[test]
    fn a_slot_is_silent_unless_its_interface_is_known_and_answers_arrive_there() {
        let slot = |slot, name: &str| InterfaceSlot {
            slot,
            interface: Interface {
                name: name.to_owned(),
                role: Role::Edge,
            },
            xdp_mode: XdpMode::Driver,
            counted_before: layout::NOTHING_COUNTED,
        };
        let fault = |name: &str, fault| {
            let fault = AnswerFault {
                interface: name.to_owned(),
                role: Role::Edge,
                fault,
            };
            (name.to_owned(), fault)
        };
        let faults = AnswerFaults(BTreeMap::from([
            fault("lost", Fault::Lost),
            fault("untagged", Fault::Untagged([true, false])),
        ]));
        let taken = [
            slot(0, "lost"),
            slot(33, "untagged"),
            slot(INTERFACES_MAX - 1, "good"),
        ];
        let measures = layout::Measures::default();
        let mut settings = layout::Settings::new(layout::Mode::Enforce, measures, &[25]);
        faults.silence(&mut settings, &taken);
        let answering: Vec<u32> = (0..INTERFACE_SLOTS)
            .filter(|slot| !settings.is_silent(*slot))
            .collect();
        // The last slot is for frames that come from no interface.
        assert_eq!(answering, [33, INTERFACES_MAX - 1, INTERFACES_MAX]);
    }
}
