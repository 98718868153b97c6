//! `[filter]`: where the in-kernel half is attached and what it does about a match.

use std::path::PathBuf;

use ipnet::IpNet;
use toml::Spanned;

use super::keys::{Absent, Form, Key, KeyTable, count, flag, text, word};
use super::section::Section;

/// The most ports that the filter looks at: they are compared one by one, for every packet.
const PORTS_MAX: usize = 16;
/// The ports that are filtered where the configuration names none.
const PORTS: &[u16] = &[25];
const SYN_BUDGET: u32 = 200;
const RESETS_PER_SECOND: u32 = 1_000;
/// More than any machine sends or receives.
const PER_SECOND_MAX: u64 = 1_000_000_000;

pub(super) static KEYS: KeyTable = KeyTable {
    header: "[filter]",
    about: "The half in the kernel: an XDP program that drops packets to port 25 before the kernel \
            allocates anything for them. Without this table there is no filter. The table cannot \
            be added or removed by a reload.",
    keys: &[
        Key::new(
            "interfaces",
            Form::Tables(&INTERFACES),
            "The interfaces that the program is attached to. Required unless `mode` is `off`.",
        )
        .at_start(),
        Key::new(
            "wait_for_interfaces",
            flag(false),
            "Whether the gate starts although an interface does not exist yet, and attaches the \
             filter when it appears. Without this a missing interface is an error, because the \
             name is usually wrong.",
        )
        .see(&["filter.interfaces"]),
        Key::new(
            "ports",
            Form::Ports {
                default: PORTS,
                most: PORTS_MAX,
            },
            "The TCP destination ports whose packets are checked against the lists. Recent \
             verdicts hold on the same ports.",
        )
        .see(&["listener.address"]),
        Key::new(
            "mode",
            word(
                "enforce",
                &[
                    ("enforce", "drops packets"),
                    (
                        "monitor",
                        "counts what would be dropped and passes it; drop lists do not refuse in \
                         SMTP either",
                    ),
                    (
                        "off",
                        "the filter is not attached; drop lists refuse in SMTP, with 554",
                    ),
                ],
            ),
            "What the filter does about a match. A gate that started with `off` changes it at the \
             next start only.",
        )
        .see(&["list.action", "dnsbl_policy.drop_for"]),
        Key::new(
            "unlisted",
            word(
                "pass",
                &[
                    ("pass", "they pass"),
                    ("drop", "only what a permit list names passes"),
                ],
            ),
            "What the filter does with sources that are on no list.",
        )
        .see(&["list.action"]),
        Key::new(
            "xdp_mode",
            word(
                "driver",
                &[
                    (
                        "driver",
                        "in the driver, before the kernel allocates anything",
                    ),
                    (
                        "generic",
                        "after the kernel has allocated a buffer: works on every interface, and \
                         costs several times as much",
                    ),
                ],
            ),
            "How the program is attached. There is no silent change from one to the other.",
        )
        .at_start(),
        Key::new(
            "syn_budget",
            count("SYNs per second", SYN_BUDGET as u64, 0..=PER_SECOND_MAX),
            "SYNs that an IPv4 address or an IPv6 /64 may send in a second before they are counted \
             as `over_budget`. None is dropped for it: the source of a SYN may be forged. 0: no \
             budget. Local networks and permitted sources have none.",
        )
        .see(&["filter.syn_cookies", "relay.networks"]),
        Key::new(
            "syn_cookies",
            flag(true),
            "Whether the filter answers SYNs to a listener of this host with the kernel's cookies \
             when the kernel gives one (`net.ipv4.tcp_syncookies`). Only on interfaces with the \
             role `edge`, and only with `mode = \"enforce\"`.",
        )
        .see(&["filter.syn_budget"]),
        Key::new(
            "customer_refusal",
            word(
                "reset",
                &[
                    ("reset", "a RST, so its connection is refused at once"),
                    ("drop", "no answer, so its connection times out"),
                ],
            ),
            "How a customer hears that it may not send.",
        )
        .see(&["filter.interfaces.role", "filter.resets_per_second"]),
        Key::new(
            "resets_per_second",
            count(
                "RSTs per second",
                RESETS_PER_SECOND as u64,
                0..=PER_SECOND_MAX,
            ),
            "RSTs to customers, on all interfaces together. Packets beyond that are dropped.",
        )
        .see(&["filter.customer_refusal"]),
        Key::new(
            "pin_path",
            text(
                "an absolute path in a BPF file system",
                Absent::Is(PIN_PATH),
            ),
            "Where the program and its maps are pinned, so that they outlive the gate. Two gates \
             on a machine need two.",
        )
        .see(&["state_dir"])
        .at_start(),
    ],
    later: &[],
};

static INTERFACES: KeyTable = KeyTable {
    header: "[[filter.interfaces]]",
    about: "One interface that the filter is attached to. Usually written inline: \
            `interfaces = [{ name = \"eth0\", role = \"edge\" }]`.",
    keys: &[
        Key::new(
            "name",
            text("the name of an interface", Absent::Required),
            "The name of the interface in the network namespace of the gate.",
        )
        .see(&["filter.wait_for_interfaces"])
        .at_start(),
        Key::new(
            "role",
            word(
                "edge",
                &[
                    (
                        "edge",
                        "the outside, and what comes in is checked against the lists",
                    ),
                    (
                        "customer",
                        "customers, and what they send to a filtered port passes only if a permit \
                         list names its source or its destination",
                    ),
                ],
            ),
            "What is behind the interface.",
        )
        .see(&["filter.customer_refusal", "list.action"])
        .at_start(),
    ],
    later: &[],
};

/// `[filter]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Where the program is attached.
    pub interfaces: Vec<Interface>,
    /// Whether an interface that is not there at the start is waited for.
    pub wait_for_interfaces: bool,
    /// The TCP ports whose packets are checked against the lists.
    pub ports: Vec<u16>,
    /// What is done about a match.
    pub mode: FilterMode,
    /// What becomes of sources that are on no list.
    pub unlisted: Unlisted,
    /// How the program is attached.
    pub xdp_mode: XdpMode,
    /// SYNs that an IPv4 address or an IPv6 /64 may send in a second before they are counted; 0:
    /// any number. It drops none: their source may be forged.
    pub syn_budget: u32,
    /// Whether SYNs for a listener of this host are answered with cookies while its queue
    /// overflows.
    pub syn_cookies: bool,
    /// How a customer hears that it may not send.
    pub customer_refusal: CustomerRefusal,
    /// RSTs to customers in a second, on all interfaces together; what is beyond is dropped.
    pub resets_per_second: u32,
    /// Where in the BPF file system the program and its maps stay.
    pub pin_path: PathBuf,
    /// Sources that no recent verdict may drop and no budget counts: the `networks` of `[relay]`.
    pub local_networks: Vec<IpNet>,
}

/// What `[filter]` is without a key in it; it is attached to no interface.
impl Default for Filter {
    fn default() -> Filter {
        Filter {
            interfaces: Vec::new(),
            wait_for_interfaces: false,
            ports: PORTS.to_vec(),
            mode: FilterMode::Enforce,
            unlisted: Unlisted::Pass,
            xdp_mode: XdpMode::Driver,
            syn_budget: SYN_BUDGET,
            syn_cookies: true,
            customer_refusal: CustomerRefusal::Reset,
            resets_per_second: RESETS_PER_SECOND,
            pin_path: PathBuf::from(PIN_PATH),
            local_networks: Vec::new(),
        }
    }
}

/// An interface and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// As the kernel names it.
    pub name: String,
    /// What is behind it.
    pub role: Role,
}

/// What is behind an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The outside: packets that come in are checked against the lists.
    Edge,
    /// Customers: what comes from them passes only if its source or its destination is permitted.
    Customer,
}

/// How a customer hears that it may not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CustomerRefusal {
    /// By a RST: its connection is refused at once.
    Reset,
    /// Not at all: its connection times out.
    Drop,
}

/// What the filter does about a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterMode {
    /// Drops.
    Enforce,
    /// Counts and passes. Drop lists then do not refuse in SMTP either: a rehearsal changes
    /// nothing.
    Monitor,
    /// The filter is not attached. Drop lists refuse in SMTP.
    Off,
}

/// What the filter does with sources that are on no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlisted {
    /// Passes them.
    Pass,
    /// Drops them: only permit lists pass.
    Drop,
}

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before the kernel allocates anything.
    Driver,
    /// After the kernel has allocated a buffer: works everywhere and saves little, so it is never a
    /// silent fallback.
    Generic,
}

impl Filter {
    /// `None` when there is no such table.
    pub(super) fn read(mut s: Section<'_, '_>) -> Option<Filter> {
        let given = s.is_given();
        let mut interfaces = Vec::new();
        let mut tables = s.tables("interfaces");
        for table in &mut tables {
            let interface = read_interface(table, &interfaces);
            interfaces.extend(interface);
        }
        let default = Filter::default();
        let filter = Filter {
            interfaces,
            wait_for_interfaces: s.flag("wait_for_interfaces"),
            ports: s.ports("ports"),
            mode: s.word("mode", &MODES).unwrap_or(default.mode),
            unlisted: s.word("unlisted", &UNLISTED).unwrap_or(default.unlisted),
            xdp_mode: s.word("xdp_mode", &XDP_MODES).unwrap_or(default.xdp_mode),
            syn_budget: s.count_u32("syn_budget"),
            syn_cookies: s.flag("syn_cookies"),
            customer_refusal: s
                .word("customer_refusal", &REFUSALS)
                .unwrap_or(default.customer_refusal),
            resets_per_second: s.count_u32("resets_per_second"),
            pin_path: s
                .text("pin_path", absolute_path)
                .map_or(default.pin_path, Spanned::into_inner),
            local_networks: Vec::new(),
        };
        // One that is off is nowhere.
        if filter.mode != FilterMode::Off {
            s.missing_unless_given("interfaces");
            if s.is_empty_list("interfaces") {
                let span = s.span_of("interfaces");
                let message = "`interfaces` is empty: the filter would be nowhere";
                let advice = "name one, or write mode = \"off\"";
                s.document.error_with(&span, message, advice);
            }
        }
        if given {
            s.finish();
            tables.into_iter().for_each(Section::finish);
        }
        given.then_some(filter)
    }
}

const MODES: [(&str, FilterMode); 3] = [
    ("enforce", FilterMode::Enforce),
    ("monitor", FilterMode::Monitor),
    ("off", FilterMode::Off),
];

const UNLISTED: [(&str, Unlisted); 2] = [("pass", Unlisted::Pass), ("drop", Unlisted::Drop)];

const XDP_MODES: [(&str, XdpMode); 2] =
    [("driver", XdpMode::Driver), ("generic", XdpMode::Generic)];

const REFUSALS: [(&str, CustomerRefusal); 2] = [
    ("reset", CustomerRefusal::Reset),
    ("drop", CustomerRefusal::Drop),
];

const ROLES: [(&str, Role); 2] = [("edge", Role::Edge), ("customer", Role::Customer)];

/// Where the filter is pinned unless `pin_path` says otherwise.
pub const PIN_PATH: &str = "/sys/fs/bpf/portcullis";

fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("expected an absolute path within a BPF file system".to_owned())
    }
}

fn read_interface(table: &mut Section<'_, '_>, others: &[Interface]) -> Option<Interface> {
    let name = table.text("name", |name| match name {
        _ if others.iter().any(|other| other.name == name) => Err(format!("{name} is named twice")),
        _ if is_interface_name(name) => Ok(name.to_owned()),
        _ => Err("expected the name of a network interface, such as \"eth0\"".to_owned()),
    });
    let role = table.word("role", &ROLES);
    Some(Interface {
        name: name?.into_inner(),
        role: role?,
    })
}

/// The kernel's own rule (dev_valid_name).
fn is_interface_name(name: &str) -> bool {
    (1..16).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name
            .contains(|c: char| c == '/' || c == ':' || c.is_ascii_whitespace() || c.is_control())
}
