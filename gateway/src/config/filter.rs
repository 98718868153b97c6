//! `[filter]`: where the in-kernel half is attached and what it does about a match.

use std::path::PathBuf;

use ipnet::IpNet;

use super::limits::count;
use super::section::Section;

/// The most ports that the filter looks at: they are compared one by one, for every packet.
const PORTS_MAX: usize = 16;

/// `[filter]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Where the program is attached.
    pub interfaces: Vec<Interface>,
    /// Whether an interface that is not there at the start is waited for.
    pub wait_for_interfaces: bool,
    /// The TCP ports whose packets are held against the lists.
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

/// What `[filter]` is without a word in it; it sits on no interface.
impl Default for Filter {
    fn default() -> Filter {
        Filter {
            interfaces: Vec::new(),
            wait_for_interfaces: false,
            ports: vec![25],
            mode: FilterMode::Enforce,
            unlisted: Unlisted::Pass,
            xdp_mode: XdpMode::Driver,
            syn_budget: 200,
            syn_cookies: true,
            customer_refusal: CustomerRefusal::Reset,
            resets_per_second: 1_000,
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
    /// The outside: packets that come in are held against the lists.
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
            wait_for_interfaces: s.flag("wait_for_interfaces", default.wait_for_interfaces),
            ports: read_ports(&mut s),
            mode: s
                .word("mode", Some("enforce"), &MODES, &[])
                .unwrap_or(default.mode),
            unlisted: s
                .word("unlisted", Some("pass"), &UNLISTED, &[])
                .unwrap_or(default.unlisted),
            xdp_mode: s
                .word("xdp_mode", Some("driver"), &XDP_MODES, &[])
                .unwrap_or(default.xdp_mode),
            syn_budget: count(&mut s, "syn_budget", default.syn_budget, 0..=1_000_000_000),
            syn_cookies: s.flag("syn_cookies", default.syn_cookies),
            customer_refusal: s
                .word("customer_refusal", Some("reset"), &REFUSALS, &[])
                .unwrap_or(default.customer_refusal),
            resets_per_second: count(
                &mut s,
                "resets_per_second",
                default.resets_per_second,
                0..=1_000_000_000,
            ),
            pin_path: match s.text("pin_path", absolute_path) {
                Some(path) => path.into_inner(),
                None => {
                    s.by_default("pin_path", format_args!("\"{PIN_PATH}\""));
                    default.pin_path
                }
            },
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
            s.finish(&[]);
            tables.into_iter().for_each(|table| table.finish(&[]));
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
        Err("an absolute path within a BPF file system is wanted".to_owned())
    }
}

fn read_interface(table: &mut Section<'_, '_>, others: &[Interface]) -> Option<Interface> {
    let name = table.required_text("name", |name| match name {
        _ if others.iter().any(|other| other.name == name) => Err(format!("{name} is named twice")),
        _ if is_interface_name(name) => Ok(name.to_owned()),
        _ => Err("the name of a network interface is wanted, such as \"eth0\"".to_owned()),
    });
    let role = table.word("role", Some("edge"), &ROLES, &[]);
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

fn read_ports(s: &mut Section<'_, '_>) -> Vec<u16> {
    let Some(value) = s.value("ports") else {
        s.by_default("ports", "[25]");
        return vec![25];
    };
    let document = s.document;
    let Some(array) = value.get_ref().as_array() else {
        document.error_with(
            &value.span(),
            "`ports` is a list of numbers",
            "write ports = [25]",
        );
        return Vec::new();
    };
    if array.is_empty() || array.len() > PORTS_MAX {
        document.error(
            &value.span(),
            format!("from 1 to {PORTS_MAX} ports make sense"),
        );
    }
    let port = |value| {
        s.number("ports", value, 1..=65_535)
            .and_then(|port| u16::try_from(port).ok())
    };
    array.iter().filter_map(port).collect()
}
