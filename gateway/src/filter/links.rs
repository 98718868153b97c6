//! Puts the program on an interface, and takes it off.
//!
//! What keeps a program on an interface is a pinned link. A link that still leads to the interface gets the new program
//! in one step, with no packet unfiltered in between. A link that leads nowhere (the interface was deleted and made
//! again) or to another mode is replaced.

use std::time::Duration;
use std::{env, io, thread};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode as AyaMode, loaded_programs};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use nix::libc;
use nix::net::if_::if_nametoindex;
use portcullis_ebpf_common::layout::{InterfaceConstant, LinkLayer, Role};

use super::Error;
use super::error::{kernel, os_error};
use super::link_layer;
use super::maps::PROGRAM_MAPS;
use super::netlink::{self, Attached, Place};
use super::pins::Pins;
use super::settings::role_in_kernel;
use super::verifier::VerifierLog;
use crate::config::{Interface, XdpMode};

/// The program, as `cargo xtask ebpf build` made it.
static OBJECT: &[u8] = include_bytes_aligned!("../../../ebpf/prebuilt/portcullis.o");
/// The program, and the same for kernels that know nothing of frames in several buffers.
const PROGRAMS: [&str; 2] = ["portcullis", "portcullis_linear"];

/// How long a link may take to let go, and how often that is looked at.
const DETACH_MAX: Duration = Duration::from_secs(5);
const DETACH_STEP: Duration = Duration::from_millis(2);

/// Creates the maps that are not pinned yet.
pub(super) fn create_maps(pins: &Pins) -> Result<(), Error> {
    let constant = InterfaceConstant::new(0, Role::Edge, LinkLayer::Ethernet);
    object(OBJECT, pins, constant).map(drop)
}

/// Loads an instance of the program for such an interface, over the pinned maps.
pub(super) fn load(pins: &Pins, interface: InterfaceConstant) -> Result<Ebpf, Error> {
    load_from(OBJECT, pins, interface)
}

/// The object over the pinned maps; its programs are not loaded, which is when the verifier walks them.
fn object(octets: &[u8], pins: &Pins, interface: InterfaceConstant) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    loader.override_global("INTERFACE", &interface.0, true);
    for name in PROGRAM_MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    loader
        .load(octets)
        .map_err(kernel("loading the program's maps"))
}

fn load_from(octets: &[u8], pins: &Pins, interface: InterfaceConstant) -> Result<Ebpf, Error> {
    let mut object = object(octets, pins, interface)?;
    let [program, linear] = PROGRAMS;
    named(&mut object, program)?
        .load()
        .or_else(|error| match error {
            // The first kernel that takes such a program is 5.18; the others do not know the flag.
            ProgramError::LoadError { ref io_error, .. }
                if matches!(io_error.raw_os_error(), Some(libc::EINVAL | libc::E2BIG)) =>
            {
                // What the first one was refused for is what counts if this one is, too.
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

/// The program that was loaded out of an object.
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
    })
}

/// How the program came to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// A link was made.
    New,
    /// A link that was there got the new program.
    TakenOver,
}

/// Puts the program for this slot on an interface; gives the kernel's number of the program.
pub(super) fn put(
    pins: &Pins,
    interface: &Interface,
    slot: u32,
    mode: XdpMode,
) -> Result<(Put, u32), Error> {
    let Interface {
        name: interface,
        role,
    } = interface;
    let index = index(interface)?;
    let layer = link_layer::of(interface, index)?;
    let pinned = pinned(pins, interface);
    let here = ours_alone(index, interface, pinned.as_ref())?;
    let constant = InterfaceConstant::new(slot, role_in_kernel(*role), layer);
    let mut object = load(pins, constant)?;
    let program = program(&mut object)?;
    let info = program.info();
    let number = info
        .map_err(kernel("asking for the program's number"))?
        .id();
    match pinned {
        Some(link) if here.iter().any(|attached| fits(attached.place, mode)) => {
            let step = "putting the program into its link";
            let link = XdpLink::try_from(link).map_err(link_error(interface, step))?;
            program
                .attach_to_link(link)
                .map_err(link_error(interface, step))?;
            Ok((Put::TakenOver, number))
        }
        stale => {
            if let Some(link) = stale {
                if !here.is_empty() {
                    tracing::warn!(
                        interface,
                        "changing the XDP mode: packets pass unfiltered for a moment"
                    );
                }
                drop(link);
                remove(pins, interface)?;
            }
            attach(pins, interface, index, program, mode)?;
            Ok((Put::New, number))
        }
    }
}

/// Where the program of this link sits on an interface; another one there is an error.
fn ours_alone(
    index: u32,
    interface: &str,
    pinned: Option<&FdLink>,
) -> Result<Vec<Attached>, Error> {
    let here =
        netlink::attached(index).map_err(link_error(interface, "asking for its XDP program"))?;
    let ours = pinned.and_then(program_of);
    match here.iter().find(|attached| Some(attached.program) != ours) {
        Some(other) => Err(occupied(interface, *other)),
        None => Ok(here),
    }
}

/// Whether the filter of these pins sits on an interface; another program there is an error.
pub(super) fn is_ours(pins: &Pins, index: u32, interface: &str) -> Result<bool, Error> {
    let here = ours_alone(index, interface, pinned(pins, interface).as_ref())?;
    Ok(!here.is_empty())
}

fn attach(
    pins: &Pins,
    interface: &str,
    index: u32,
    program: &mut Xdp,
    mode: XdpMode,
) -> Result<(), Error> {
    let aya_mode = match mode {
        XdpMode::Driver => AyaMode::Driver,
        XdpMode::Generic => AyaMode::Skb,
    };
    let id = program
        .attach_to_if_index(index, aya_mode)
        .map_err(|error| attach_error(interface, index, mode, error))?;
    let link = program
        .take_link(id)
        .map_err(link_error(interface, "taking its link"))?;
    // A kernel without links for XDP (before 5.9) would leave a netlink attachment, which cannot be pinned: dropping it
    // here takes the program off again.
    let link = FdLink::try_from(link).map_err(link_error(
        interface,
        "making its link (Linux 5.9 or newer)",
    ))?;
    link.pin(pins.link(interface))
        .map_err(link_error(interface, "pinning its link"))?;
    Ok(())
}

fn attach_error(interface: &str, index: u32, mode: XdpMode, error: ProgramError) -> Error {
    match os_error(&error) {
        Some(libc::EPERM) => Error::NotPermitted {
            what: "attaching an XDP program",
        },
        // Somebody was faster.
        Some(libc::EBUSY | libc::EEXIST) => {
            match netlink::attached(index).unwrap_or_default().first() {
                Some(other) => occupied(interface, *other),
                None => link_error(interface, "attaching")(error),
            }
        }
        Some(number @ (libc::EOPNOTSUPP | libc::ERANGE | libc::EINVAL | libc::ENOMEM))
            if mode == XdpMode::Driver =>
        {
            Error::NoDriverMode {
                interface: interface.to_owned(),
                source: io::Error::from_raw_os_error(number),
            }
        }
        _ => link_error(interface, "attaching")(error),
    }
}

/// Takes the program off an interface, and returns when it is off. That there is none is no error.
///
/// The kernel lets a link go some time after its last pin was removed; nothing could be attached until then.
pub(super) fn remove(pins: &Pins, interface: &str) -> Result<(), Error> {
    let attached = attached(pins, interface);
    Pins::remove(&pins.link(interface))?;
    let Some((index, ours)) = attached else {
        return Ok(());
    };
    let step = "waiting until its program is gone";
    let waits = DETACH_MAX.as_millis() / DETACH_STEP.as_millis();
    for _ in 0..waits {
        let here = netlink::attached(index).map_err(link_error(interface, step))?;
        if here.iter().all(|attached| attached.program != ours.program) {
            return Ok(());
        }
        thread::sleep(DETACH_STEP);
    }
    Err(link_error(interface, step)(io::Error::from(
        io::ErrorKind::TimedOut,
    )))
}

/// The index of an interface and the program of its pinned link, if it is in this network namespace and the link leads
/// to it.
pub(super) fn attached(pins: &Pins, interface: &str) -> Option<(u32, Attached)> {
    let ours = pinned(pins, interface).as_ref().and_then(program_of)?;
    sits_on(interface, ours)
}

/// The index of an interface and where this program sits on it, if it does.
pub(super) fn sits_on(interface: &str, program: u32) -> Option<(u32, Attached)> {
    let index = index(interface).ok()?;
    let mut here = netlink::attached(index).ok()?.into_iter();
    let attached = here.find(|attached| attached.program == program)?;
    Some((index, attached))
}

fn pinned(pins: &Pins, interface: &str) -> Option<FdLink> {
    PinnedLink::from_pin(pins.link(interface))
        .ok()
        .map(FdLink::from)
}

fn program_of(link: &FdLink) -> Option<u32> {
    Some(link.info().ok()?.program_id())
}

fn fits(place: Place, mode: XdpMode) -> bool {
    match place {
        Place::Driver | Place::Hardware => mode == XdpMode::Driver,
        Place::Generic => mode == XdpMode::Generic,
    }
}

fn occupied(interface: &str, other: Attached) -> Error {
    let info = loaded_programs()
        .flatten()
        .find(|info| info.id() == other.program);
    let name = info
        .as_ref()
        .and_then(|info| info.name_as_str())
        .unwrap_or("without a name");
    let place = match other.place {
        Place::Driver => "in the driver",
        Place::Generic => "generic",
        Place::Hardware => "in the hardware",
    };
    Error::Occupied {
        interface: interface.to_owned(),
        program: format!("{name:?} (id {}, {place})", other.program),
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

    /// The kernel gives up after a million instructions, and older kernels see fewer ways that are alike.
    const VERIFIED_MAX: u32 = 600_000;

    #[test]
    fn the_verifier_takes_both_programs_on_every_kind_of_interface_with_room_to_spare() {
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
    fn a_program_that_the_verifier_refuses_is_told_by_the_reason() {
        // Instructions of the kind `call bpf_map_lookup_elem`, whose result is then nothing that was ever written.
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
        let reason = "the kernel's verifier refused the program (Permission denied (os error 13)): R0 !read_ok";
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
