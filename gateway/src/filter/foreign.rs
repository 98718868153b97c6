//! Another program on an interface: what it is, and how to remove it.
//!
//! That depends on how it was attached: the kernel refuses `ip link` for a program with a BPF link,
//! and a program without one has no link to detach.

use aya::programs::loaded_programs;

use super::bpf::Link;
use super::netlink::{AttachMode, AttachedProgram};
use super::{Error, attached};

/// The error for an interface with another program. That program is left alone.
pub(super) fn occupied(interface: &str, index: u32, other: AttachedProgram) -> Error {
    let info = loaded_programs()
        .flatten()
        .find(|info| info.id() == other.program);
    let name = info
        .as_ref()
        .and_then(|info| info.name_as_str())
        .unwrap_or("without a name");
    let place = match other.place {
        AttachMode::Driver => "in the driver",
        AttachMode::Generic => "generic",
        AttachMode::Hardware => "in the hardware",
    };
    Error::Occupied {
        interface: interface.to_owned(),
        program: format!("{name:?} (id {}, {place})", other.program),
        removal: removal(interface, index, other),
    }
}

/// The command that removes a program from an interface.
fn removal(interface: &str, index: u32, other: AttachedProgram) -> String {
    let flag = match other.place {
        AttachMode::Driver => "xdpdrv",
        AttachMode::Generic => "xdpgeneric",
        AttachMode::Hardware => "xdpoffload",
    };
    let by_netlink = format!("`ip link set dev {interface} {flag} off`");
    match Link::find(index, other.program) {
        Ok(None) => by_netlink,
        Ok(Some(link)) => match attached::pinned_as(link.id) {
            Some(path) => format!(
                "it is the filter that is pinned under {0}: \
                 `portcullis filter detach --pin-path {0}`",
                path.display()
            ),
            None => format!(
                "`bpftool link detach id {}`, or remove the pin of that link",
                link.id
            ),
        },
        Err(_) => format!(
            "`bpftool net` shows how it is attached: {by_netlink}, or `bpftool link detach id N` \
             for a BPF link"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write as _};

    use portcullis_ebpf_common::layout::InterfaceConstant;

    use super::super::pins::Pins;
    use super::super::{bpf, links};
    use super::*;
    use crate::netns::Namespace;

    #[test]
    fn the_command_that_removes_another_program_works() -> io::Result<()> {
        if !crate::netns::permitted() {
            let _ = writeln!(io::stderr(), "SKIPPED (needs root): foreign programs");
            return Ok(());
        }
        let (here, there) = (Namespace::create("here")?, Namespace::create("there")?);
        here.veth("up", &there, "down")?;
        let path = format!("/sys/fs/bpf/portcullis-test-pinned-{}", std::process::id());
        let mut object = links::unpinned(InterfaceConstant(0)).unwrap();
        let program = links::program(&mut object).unwrap();
        program.pin(&path).unwrap();
        let ip = |arguments: &[&str]| here.command("ip").args(arguments).status();
        let pins = Pins::new(std::path::Path::new("/sys/fs/bpf/portcullis-test-nowhere"));
        let ours = || here.run(|| links::ours_on(&pins, "up").map_err(|error| error.to_string()));
        for flag in ["xdpdrv", "xdpgeneric"] {
            assert!(ip(&["link", "set", "dev", "up", flag, "pinned", &path])?.success());
            let error = ours()?.unwrap_err();
            let command = format!("ip link set dev up {flag} off");
            assert!(error.contains(&format!("(`{command}`)")), "{error}");
            let words: Vec<&str> = command.split(' ').skip(1).collect();
            assert!(ip(&words)?.success());
            assert_eq!(ours()?, Ok(None));
        }
        // By a link that no filter has pinned.
        let descriptor = program.fd().unwrap();
        let link =
            here.run(|| Link::create(descriptor, links::index("up").unwrap(), bpf::XDP_DRIVER))??;
        let error = ours()?.unwrap_err();
        assert!(!ip(&["link", "set", "dev", "up", "xdpdrv", "off"])?.success());
        let command = format!("`bpftool link detach id {}`", link.id);
        assert!(
            error.contains(&command) && !error.contains("ip link set"),
            "{error}"
        );
        // As bpftool does.
        link.detach()?;
        assert_eq!(ours()?, Ok(None));
        std::fs::remove_file(path)
    }
}
