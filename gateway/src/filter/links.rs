//! Attaches the program to an interface, and detaches it.
//!
//! A pinned link keeps a program attached. A link that still leads to the interface gets the new
//! program in one step, with no packet unfiltered in between. A link without an interface (it was
//! deleted and created again) or with another mode is replaced. The index of the interface and the
//! ID of the program identify a link, because names change.

use std::{env, io};

use aya::programs::{ProgramError, ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use nix::libc;
use nix::net::if_::{if_indextoname, if_nametoindex};
use portcullis_ebpf_common::layout::{InterfaceConstant, LinkLayer, Role};

use super::Error;
use super::bpf::{self, Link};
use super::error::{kernel, os_error};
use super::foreign::occupied;
use super::maps::PROGRAM_MAPS;
use super::netlink::{self, AttachMode, AttachedProgram};
use super::pins::{Pins, is_pin};
use super::verifier::VerifierLog;
use crate::config::XdpMode;

/// The object file that `cargo xtask ebpf build` made.
static OBJECT: &[u8] = include_bytes_aligned!("../../../ebpf/prebuilt/portcullis.o");
/// The program, and the same for kernels without XDP frames in several buffers.
const PROGRAMS: [&str; 2] = ["portcullis", "portcullis_linear"];

/// Creates the maps that are not pinned yet.
pub(super) fn create_maps(pins: &Pins) -> Result<(), Error> {
    let constant = InterfaceConstant::new(0, Role::Edge, LinkLayer::Ethernet);
    object(OBJECT, pins, constant).map(drop)
}

/// Loads an instance of the program for such an interface, with the pinned maps.
pub(super) fn load(pins: &Pins, interface: InterfaceConstant) -> Result<Ebpf, Error> {
    load_from(OBJECT, pins, interface)
}

/// The object with the pinned maps. Its programs are not loaded yet; loading verifies them.
fn object(bytes: &[u8], pins: &Pins, interface: InterfaceConstant) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    loader.override_global("INTERFACE", &interface.0, true);
    for name in PROGRAM_MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    loader
        .load(bytes)
        .map_err(kernel("loading the program's maps"))
}

/// The program for such an interface, loaded with maps that are not pinned: nothing is left when it
/// is dropped.
pub(super) fn unpinned(interface: InterfaceConstant) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    loader.override_global("INTERFACE", &interface.0, true);
    let object = loader.load(OBJECT);
    verified(object.map_err(kernel("loading the program's maps"))?)
}

fn load_from(bytes: &[u8], pins: &Pins, interface: InterfaceConstant) -> Result<Ebpf, Error> {
    verified(object(bytes, pins, interface)?)
}

/// The object with its program loaded.
fn verified(mut object: Ebpf) -> Result<Ebpf, Error> {
    let [program, linear] = PROGRAMS;
    named(&mut object, program)?
        .load()
        .or_else(|error| match error {
            // Linux 5.18 is the first kernel that accepts such a program; older ones do not know
            // the flag.
            ProgramError::LoadError { ref io_error, .. }
                if matches!(io_error.raw_os_error(), Some(libc::EINVAL | libc::E2BIG)) =>
            {
                // If this one is refused too, the error of the first one is reported.
                named(&mut object, linear)?
                    .load()
                    .map_err(|_| error)
                    .map_err(refused)
            }
            error => Err(refused(error)),
        })?;
    Ok(object)
}

fn refused(error: ProgramError) -> Error {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } if io_error.raw_os_error() != Some(libc::EPERM) => Error::Verifier {
            source: io_error,
            log: VerifierLog::keep(verifier_log.to_string(), &env::temp_dir()),
        },
        error => kernel("loading the program")(error),
    }
}

/// The loaded program of an object.
pub(super) fn program(object: &mut Ebpf) -> Result<&mut Xdp, Error> {
    let [program, linear] = PROGRAMS;
    let loaded = named(object, program)?.fd().is_ok();
    named(object, if loaded { program } else { linear })
}

fn named<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, Error> {
    let step = "finding the program in its object";
    let program = object
        .program_mut(name)
        .ok_or(ProgramError::NotLoaded)
        .map_err(kernel(step))?;
    program.try_into().map_err(kernel::<ProgramError>(step))
}

/// The kernel's index of an interface in this thread's network namespace.
pub(super) fn index(interface: &str) -> Result<u32, Error> {
    if_nametoindex(interface).map_err(|_| Error::NoSuchInterface {
        interface: interface.to_owned(),
        renamed: None,
    })
}

/// A program that is loaded for one slot, role and link layer. It can be attached while this is
/// open. Loading takes privileges; attaching takes none.
pub(super) struct Loaded {
    descriptor: ProgramFd,
    /// The kernel's ID of the program.
    pub(super) number: u32,
}

/// Loads the program for such an interface, and keeps it open.
pub(super) fn open(pins: &Pins, interface: InterfaceConstant) -> Result<Loaded, Error> {
    let mut object = load(pins, interface)?;
    let program = program(&mut object)?;
    let number = program
        .info()
        .map_err(kernel("asking for the program's number"))?
        .id();
    let step = "keeping the program open";
    let descriptor = program.fd().map_err(kernel(step))?;
    let descriptor = descriptor.try_clone().map_err(kernel(step))?;
    Ok(Loaded { descriptor, number })
}

/// How the program was attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PutResult {
    /// With a new link.
    New,
    /// An existing link got the new program.
    TakenOver,
}

/// Attaches a program to the interface of this name. Also returns the index of the interface.
pub(super) fn put(
    pins: &Pins,
    interface: &str,
    program: &Loaded,
    mode: XdpMode,
) -> Result<(PutResult, u32), Error> {
    let index = index(interface)?;
    let pinned = pinned(pins, interface);
    let here = only_ours(index, interface, pinned.as_ref())?;
    match pinned {
        Some(mut link) if here.iter().any(|attached| fits(attached.place, mode)) => {
            let step = "putting the program into its link";
            link.update(&program.descriptor)
                .map_err(link_error(interface, step))?;
            Ok((PutResult::TakenOver, index))
        }
        stale => {
            if let Some(link) = stale {
                if !here.is_empty() {
                    tracing::warn!(
                        interface,
                        "changing the XDP mode: packets pass unfiltered for a moment"
                    );
                }
                free_name(pins, interface, &link, !here.is_empty())?;
            }
            attach(pins, interface, index, program, mode)?;
            Ok((PutResult::New, index))
        }
    }
}

/// How the program of this link is attached to an interface. Another program there is an error.
fn only_ours(
    index: u32,
    interface: &str,
    pinned: Option<&Link>,
) -> Result<Vec<AttachedProgram>, Error> {
    let here =
        netlink::attached(index).map_err(link_error(interface, "asking for its XDP program"))?;
    let ours = pinned.map(|link| link.program);
    match here.iter().find(|attached| Some(attached.program) != ours) {
        Some(other) => Err(occupied(interface, index, *other)),
        None => Ok(here),
    }
}

/// How the filter of these pins is attached to an interface, whatever the name of its pin. Another
/// program there is an error.
pub(super) fn ours_on(pins: &Pins, interface: &str) -> Result<Option<AttachedProgram>, Error> {
    let index = index(interface)?;
    let mut pinned = pinned(pins, interface).filter(|link| link.index == index);
    if pinned.is_none() {
        let mut others = pins.linked()?.into_iter();
        pinned =
            others.find_map(|name| self::pinned(pins, &name).filter(|link| link.index == index));
    }
    let here = only_ours(index, interface, pinned.as_ref())?;
    Ok(here.first().copied())
}

fn attach(
    pins: &Pins,
    interface: &str,
    index: u32,
    program: &Loaded,
    mode: XdpMode,
) -> Result<(), Error> {
    let flags = match mode {
        XdpMode::Driver => bpf::XDP_DRIVER,
        XdpMode::Generic => bpf::XDP_GENERIC,
    };
    let link = Link::create(&program.descriptor, index, flags)
        .map_err(|error| attach_error(interface, index, mode, error))?;
    // Without a pin the link would end when this returns, and detach the program.
    link.pin(&pins.link(interface))
        .map_err(link_error(interface, "pinning its link"))
}

fn attach_error(interface: &str, index: u32, mode: XdpMode, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EPERM) => Error::NotPermitted {
            what: "attaching an XDP program",
        },
        // Another program was faster.
        Some(libc::EBUSY | libc::EEXIST) => {
            match netlink::attached(index).unwrap_or_default().first() {
                Some(other) => occupied(interface, index, *other),
                None => link_error(interface, "attaching")(error),
            }
        }
        // The error of the kernel if the interface was deleted meanwhile.
        Some(libc::EINVAL | libc::ENODEV) if name_of(index).is_none() => Error::NoSuchInterface {
            interface: interface.to_owned(),
            renamed: None,
        },
        Some(libc::EOPNOTSUPP | libc::ERANGE | libc::EINVAL | libc::ENOMEM)
            if mode == XdpMode::Driver =>
        {
            Error::NoDriverMode {
                interface: interface.to_owned(),
                source: error,
            }
        }
        _ => link_error(interface, "attaching")(error),
    }
}

/// Detaches the program from an interface, and returns when that is done. No program is no error.
pub(super) fn remove(pins: &Pins, interface: &str) -> Result<(), Error> {
    // Otherwise the kernel ends a link some time after its last pin is removed, and until then no
    // program can be attached.
    if let Some(link) = pinned(pins, interface).filter(|link| link.index != 0) {
        link.detach()
            .map_err(link_error(interface, "taking its program off"))?;
    }
    Pins::remove(&pins.link(interface))
}

/// A program on an interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AttachPoint {
    /// The index of the interface.
    pub(super) index: u32,
    /// The name that the interface has now.
    pub(super) name: String,
    /// The program there.
    pub(super) attached: AttachedProgram,
}

/// Where the link that is pinned for an interface is attached, if that is in this network
/// namespace.
pub(super) fn attach_point(pins: &Pins, interface: &str) -> Option<AttachPoint> {
    let link = pinned(pins, interface)?;
    attach_point_of(link.index, link.program)
}

/// How this program is attached to the interface with this index, if it is.
pub(super) fn attach_point_of(index: u32, program: u32) -> Option<AttachPoint> {
    let name = name_of(index)?;
    let mut here = netlink::attached(index).ok()?.into_iter();
    let attached = here.find(|attached| attached.program == program)?;
    Some(AttachPoint {
        index,
        name,
        attached,
    })
}

/// Whether an interface has no program.
pub(super) fn is_free(index: u32) -> bool {
    netlink::attached(index).is_ok_and(|here| here.is_empty())
}

/// The name of an interface of this network namespace.
fn name_of(index: u32) -> Option<String> {
    let name = if_indextoname(index).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// The link that is pinned for an interface, if there is one and this process may open it.
pub(super) fn pinned(pins: &Pins, interface: &str) -> Option<Link> {
    let path = pins.link(interface);
    if !is_pin(&path) {
        return None;
    }
    Link::pinned(&path).ok().flatten()
}

/// The interfaces whose pinned link leads to an interface of another network namespace.
pub(super) fn elsewhere(pins: &Pins) -> Result<Vec<String>, Error> {
    let mut names = pins.linked()?;
    names.retain(|name| {
        pinned(pins, name).is_some_and(|link| {
            link.index != 0 && attach_point_of(link.index, link.program).is_none()
        })
    });
    Ok(names)
}

/// Renames every pin after its interface. Returns the old and the new names. The link tells its
/// interface: that may have been renamed since, or two may have exchanged their names.
pub(super) fn follow_names(pins: &Pins) -> Result<Vec<(String, String)>, Error> {
    let mut renamed = Vec::new();
    for name in pins.linked()? {
        let Some(link) = pinned(pins, &name) else {
            continue;
        };
        if let Some(point) = attach_point_of(link.index, link.program)
            && point.name != name
        {
            renamed.push((name, point.name, link.id));
        }
    }
    // First to temporary names, because two may have exchanged theirs. A process that ends in
    // between leaves pins with names that no interface has.
    for (old, _, id) in &renamed {
        pins.rename_link(old, &temporary_name(*id))?;
    }
    for (_, new, id) in &renamed {
        if let Some(link) = pinned(pins, new) {
            free_name(pins, new, &link, false)?;
        }
        pins.rename_link(&temporary_name(*id), new)?;
    }
    Ok(renamed
        .into_iter()
        .map(|(old, new, _)| (old, new))
        .collect())
}

/// Frees the name of a pin. A link to an interface of another network namespace is kept, under a
/// temporary name. (Its index does not help: another interface may have it here.)
fn free_name(pins: &Pins, interface: &str, link: &Link, is_here: bool) -> Result<(), Error> {
    if link.index == 0 || is_here {
        remove(pins, interface)
    } else {
        pins.rename_link(interface, &temporary_name(link.id))
    }
}

/// A temporary name of a pin: longer than the name of an interface can be.
fn temporary_name(link: u32) -> String {
    format!("being-renamed-{link:010}")
}

fn fits(place: AttachMode, mode: XdpMode) -> bool {
    match place {
        AttachMode::Driver | AttachMode::Hardware => mode == XdpMode::Driver,
        AttachMode::Generic => mode == XdpMode::Generic,
    }
}

pub(super) fn link_error<E>(interface: &str, step: &'static str) -> impl Fn(E) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |error| match os_error(&error) {
        Some(libc::EPERM) => Error::NotPermitted { what: step },
        _ => Error::Link {
            interface: interface.to_owned(),
            step,
            source: Box::new(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use std::io::Write as _;

    /// The kernel stops after a million instructions. Older kernels prune fewer equal paths and
    /// need more.
    const VERIFIED_MAX: u32 = 600_000;

    #[test]
    fn the_verifier_accepts_both_programs_for_every_kind_of_interface_with_a_margin() {
        if !crate::netns::permitted() {
            let skipped = "SKIPPED (needs root): the verifier's work on the programs";
            let _ = writeln!(io::stderr(), "{skipped}");
            return;
        }
        let kinds = [
            (Role::Edge, LinkLayer::Ethernet),
            (Role::Customer, LinkLayer::Ethernet),
            (Role::Edge, LinkLayer::RawIp),
            (Role::Customer, LinkLayer::RawIp),
            (Role::Edge, LinkLayer::Tun),
            (Role::Customer, LinkLayer::Tun),
        ];
        for (role, layer) in kinds {
            for name in PROGRAMS {
                let InterfaceConstant(interface) = InterfaceConstant::new(0, role, layer);
                let mut loader = EbpfLoader::new();
                loader.override_global("INTERFACE", &interface, true);
                let mut object = loader.load(OBJECT).unwrap();
                let program = named(&mut object, name).unwrap();
                program.load().unwrap_or_else(|error| {
                    panic!("{name}, {role:?}, {layer:?}: {}", refused(error))
                });
                let info = program.info().unwrap();
                let verified = info.verified_instruction_count().unwrap_or_default();
                let _ = writeln!(
                    io::stderr(),
                    "{name}, {role:?}, {layer:?}: {verified} verified"
                );
                assert!(
                    verified < VERIFIED_MAX,
                    "{name}, {role:?}, {layer:?}: {verified}"
                );
            }
        }
    }

    #[test]
    fn the_error_for_a_refused_program_has_the_verifiers_reason() {
        // Replaces `call bpf_map_lookup_elem`: its result is then never written.
        const CALL: [u8; 8] = [0x85, 0, 0, 0, 1, 0, 0, 0];
        const NOTHING: [u8; 8] = [0xbf, 0, 0, 0, 0, 0, 0, 0];
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let mut broken = OBJECT.to_vec();
        for instruction in broken.chunks_exact_mut(8) {
            if *instruction == CALL {
                instruction.copy_from_slice(&NOTHING);
            }
        }
        let root = format!(
            "/sys/fs/bpf/portcullis-test-verifier-{}",
            std::process::id()
        );
        let pins = Pins::new(&PathBuf::from(root));
        let lock = pins.prepare().unwrap();
        let error = load_from(&broken, &pins, InterfaceConstant(0)).unwrap_err();
        pins.remove_all().unwrap();
        drop(lock);
        let text = error.to_string();
        let reason = "the kernel's verifier refused the program \
                      (Permission denied (os error 13)): R0 !read_ok";
        assert_eq!(text.lines().next(), Some(reason), "{text}");
        let kept = text
            .lines()
            .find(|line| line.contains("lines of its log are in"));
        let file = kept.and_then(|line| line.rsplit(' ').next()).unwrap();
        assert!(
            std::fs::read_to_string(file)
                .unwrap()
                .contains("R0 !read_ok")
        );
        std::fs::remove_file(file).unwrap();
    }
}
