//! What the filter needs: capabilities, a BPF file system, the JIT compiler, and interfaces whose
//! drivers run XDP.

use caps::{CapSet, Capability};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{Finding, setting};
use crate::config::{Config, Filter, Interface, XdpMode};
use crate::control::interfaces;
use crate::filter;

/// Attaching takes all three; `CAP_SYS_ADMIN` stands for each of them.
const CAPABILITIES: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
];

pub(super) fn filter(settings: &Filter) -> Vec<Finding> {
    let mut findings = vec![capabilities(), file_system(settings), jit()];
    for found in &settings.interfaces {
        findings.push(interface(settings, found));
        findings.extend(answers(settings, found));
    }
    let unconfigured_interfaces = filter::unconfigured_interfaces(settings).unwrap_or_default();
    findings.extend(unconfigured_interfaces.into_iter().map(|name| {
        Finding::warning(
            format!("interface {name}"),
            "the filter sits there now, and the configuration does not name it",
            "a start takes it off; if it is to stay, name the interface in filter.interfaces",
        )
    }));
    findings
}

/// Filters that drop although the configuration has none, or has it off.
pub(super) fn unconfigured(config: &Config) -> Vec<Finding> {
    let found = interfaces::unconfigured(config, true).into_iter();
    found
        .map(|found| Finding::warning("filter", found.text, found.removal))
        .collect()
}

fn capabilities() -> Finding {
    let subject = "capabilities";
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    let has =
        |wanted: &Capability| held.contains(wanted) || held.contains(&Capability::CAP_SYS_ADMIN);
    let missing: Vec<String> = CAPABILITIES
        .iter()
        .filter(|wanted| !has(wanted))
        .map(ToString::to_string)
        .collect();
    if missing.is_empty() {
        Finding::ok(subject, "the filter can be put in place")
    } else {
        let found = format!("missing: {}", missing.join(", "));
        Finding::problem(
            subject,
            found,
            "run as root (with `user`, to serve as another user)",
        )
    }
}

fn file_system(settings: &Filter) -> Finding {
    let (subject, path) = ("BPF file system", &settings.pin_path);
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    let mounted = existing
        .and_then(|ancestor| statfs(ancestor).ok())
        .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if filter::pins_are_private(path) == Some(true) {
        let found = "only this process and its children see it: a filter would be gone with them";
        Finding::warning(
            subject,
            found,
            "enter a network namespace with `nsenter --net=/run/netns/NAME`, not with `ip netns \
             exec`",
        )
    } else if mounted {
        Finding::ok(subject, format!("{} is on one", path.display()))
    } else if path.starts_with("/sys/fs/bpf") && nix::unistd::geteuid().is_root() {
        Finding::ok(subject, "not mounted yet; the gate does it at its start")
    } else {
        let found = format!("{} is on none", path.display());
        Finding::problem(
            subject,
            found,
            "mount -t bpf bpf /sys/fs/bpf, and choose a filter.pin_path on it",
        )
    }
}

fn jit() -> Finding {
    match setting("net/core/bpf_jit_enable") {
        Some(0) => Finding::warning(
            "BPF compiler",
            "net.core.bpf_jit_enable is 0: the program is interpreted, many times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        // Without the setting the kernel was built to compile always.
        _ => Finding::ok("BPF compiler", "on"),
    }
}

/// Whether what the program answers there arrives; nothing is said where it does.
fn answers(settings: &Filter, interface: &Interface) -> Option<Finding> {
    let fault = filter::answer_fault(settings, interface)?;
    let subject = format!("answers on {}", fault.interface());
    Some(Finding::warning(subject, fault.found(), fault.next_step()))
}

fn interface(settings: &Filter, interface: &Interface) -> Finding {
    let subject = format!("interface {}", interface.name);
    let state = match filter::interface_state(settings, interface) {
        Err(error @ filter::Error::NoSuchInterface { .. }) if settings.wait_for_interfaces => {
            return Finding::warning(subject, "it does not exist; the gate waits for it", error);
        }
        Err(error) => return Finding::problem(subject, "the filter cannot be put there", error),
        Ok(state) => state,
    };
    if !state.differences.is_empty() {
        let found = if state.is_ours {
            "the filter sits there now, but not as the configuration has it: "
        } else {
            "unfiltered: "
        };
        return Finding::warning(
            subject,
            format!("{found}{}", state.differences.join("; ")),
            "restart the gate, or without one: portcullis filter attach (a running gate puts a \
             lost filter back at SIGHUP)",
        );
    }
    if state.is_ours {
        return Finding::ok(subject, "the filter sits there now");
    }
    match (settings.xdp_mode, state.driver_mode) {
        (XdpMode::Generic, Some(true)) => Finding::warning(
            subject,
            "its driver could run the filter, but xdp_mode is \"generic\"",
            "set filter.xdp_mode = \"driver\": it drops for a fraction of the cost",
        ),
        (XdpMode::Generic, _) => Finding::ok(subject, "there, for the generic mode"),
        (XdpMode::Driver, Some(true)) => Finding::ok(subject, "its driver runs XDP programs"),
        (XdpMode::Driver, Some(false)) => Finding::problem(
            subject,
            "its driver runs no XDP programs",
            "set filter.xdp_mode = \"generic\", which works everywhere and saves little",
        ),
        (XdpMode::Driver, None) => Finding::warning(
            subject,
            "the kernel does not say whether its driver runs XDP programs (it does since Linux \
             6.3)",
            "try it: portcullis filter attach",
        ),
    }
}
