//! The errors of the filter, and what to do about each.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::attached::detach_command;
use super::events::Reader;
use super::verifier::VerifierLog;

/// An error of aya, kept as the cause: nothing outside of the filter decides on it.
type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Why an operation on the filter failed. The text names the interface or the path, and the next
/// step.
#[derive(Debug)]
pub enum Error {
    /// The configuration has an interface twice.
    InterfaceTwice {
        /// Its name.
        interface: String,
    },
    /// The maps have no room for this number.
    TooMany {
        /// The things counted, in words.
        what: &'static str,
        /// The number wanted.
        number: usize,
        /// The largest number possible.
        max: usize,
    },
    /// No port, or port 0.
    Ports,
    /// A list's name is empty or does not fit into its record.
    ListName {
        /// The name.
        name: String,
        /// Maximum length of a name in bytes.
        max: usize,
    },
    /// There is no such interface in this network namespace.
    NoSuchInterface {
        /// The name.
        interface: String,
        /// The new name of an interface that had this name and has the filter.
        renamed: Option<String>,
    },
    /// Another XDP program is attached to the interface. It is left alone.
    Occupied {
        /// The interface.
        interface: String,
        /// The other program, as `name (id 17, in the driver)`.
        program: String,
        /// How to remove it, which depends on how it was attached.
        removal: String,
    },
    /// The filter is attached to interfaces of another network namespace.
    OtherNamespace {
        /// The pin path.
        path: PathBuf,
        /// The interfaces.
        interfaces: Vec<String>,
        /// The namespace, if it was recorded.
        namespace: Option<u64>,
    },
    /// The program could not read the frames of the interface.
    Unreadable {
        /// The interface.
        interface: String,
        /// Why, and what to do instead.
        reason: String,
    },
    /// The driver does not run XDP programs.
    NoDriverMode {
        /// The interface.
        interface: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The kernel does not permit it.
    NotPermitted {
        /// The operation, in words.
        what: &'static str,
    },
    /// There is no BPF file system at the pin path.
    NoBpfFs {
        /// The pin path.
        path: PathBuf,
        /// Why mounting one failed, if that was tried.
        source: Option<io::Error>,
    },
    /// Another process holds the filter under this pin path.
    InUse {
        /// The pin path.
        path: PathBuf,
    },
    /// The pin path of an attached filter cannot be changed.
    PinPathChanged {
        /// The path in force.
        path: PathBuf,
    },
    /// Another process has detached the filter while this one held it.
    Detached {
        /// The pin path.
        path: PathBuf,
    },
    /// Nothing is pinned there.
    NotAttached {
        /// The pin path.
        path: PathBuf,
        /// The interface of the request, or all.
        interface: Option<String>,
    },
    /// The kernel's verifier refused the program.
    Verifier {
        /// The error of the kernel.
        source: io::Error,
        /// The log of the verifier.
        log: VerifierLog,
    },
    /// The link of an interface could not be created, updated or pinned.
    Link {
        /// The interface.
        interface: String,
        /// The step that failed, in words.
        step: &'static str,
        /// Why.
        source: BoxedError,
    },
    /// Loading the program failed, or reading or writing a map.
    Kernel {
        /// The step that failed, in words.
        step: &'static str,
        /// Why.
        source: BoxedError,
    },
    /// Another process reads the events.
    EventsTaken {
        /// The process, if it is known.
        reader: Option<Reader>,
    },
    /// A file operation on the pins failed.
    Pin {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InterfaceTwice { interface } => {
                write!(f, "interface {interface} is listed twice; remove one")
            }
            Self::TooMany { what, number, max } => {
                write!(f, "{number} {what}; the filter has room for {max}")
            }
            Self::Ports => write!(
                f,
                "the filter needs at least one port, and port 0 is not valid"
            ),
            Self::ListName { name, max } => {
                write!(
                    f,
                    "list {name:?}: a name has 1 to {max} bytes, none of them NUL; rename it"
                )
            }
            Self::NoSuchInterface {
                interface,
                renamed: Some(now),
            } => write!(
                f,
                "interface {interface}: it was renamed to {now} and still has the filter; name it \
                 so in filter.interfaces"
            ),
            Self::NoSuchInterface {
                interface,
                renamed: None,
            } => write!(
                f,
                "interface {interface}: there is none in this network namespace; `ip link` shows \
                 those that there are, and filter.wait_for_interfaces = true waits for one that \
                 comes later"
            ),
            Self::Occupied {
                interface,
                program,
                removal,
            } => write!(
                f,
                "interface {interface}: the XDP program {program} sits there already and was left \
                 alone; remove it ({removal}) or leave the interface out"
            ),
            Self::OtherNamespace {
                path,
                interfaces,
                namespace,
            } => {
                write!(
                    f,
                    "{}: the filter that is pinned there sits on {} in another network \
                     namespace",
                    path.display(),
                    interfaces.join(", ")
                )?;
                if let Some(namespace) = namespace {
                    write!(f, " (`lsns -t net` shows it as {namespace})")?;
                }
                write!(
                    f,
                    ", and was left alone: choose another filter.pin_path, or take it off with \
                     `{}`",
                    detach_command(path)
                )
            }
            Self::Unreadable { interface, reason } => {
                write!(
                    f,
                    "interface {interface}: the filter cannot work there: {reason}"
                )
            }
            Self::NoDriverMode { interface, source } => write!(
                f,
                "interface {interface}: its driver takes no XDP program now ({source}); a lower \
                 MTU or fewer queues may help (see `dmesg`), or ask for the slower generic mode \
                 with xdp_mode = \"generic\""
            ),
            Self::NotPermitted { what } => write!(
                f,
                "{what}: not permitted; run as root, or with CAP_BPF, CAP_NET_ADMIN and \
                 CAP_PERFMON"
            ),
            Self::NoBpfFs { path, source } => {
                write!(f, "{}: there is no BPF file system", path.display())?;
                if let Some(source) = source {
                    write!(f, ", and mounting one failed ({source})")?;
                }
                write!(
                    f,
                    "; `mount -t bpf bpf /sys/fs/bpf`, or choose a pin path on one"
                )
            }
            Self::InUse { path } => write!(
                f,
                "{}: another process holds this filter; a running gate puts it back by itself and \
                 at a reload (SIGHUP): stop it, or choose another pin path",
                path.display()
            ),
            Self::PinPathChanged { path } => write!(
                f,
                "the filter is pinned under {}; another pin path needs a restart (and `{}` for \
                 the old one)",
                path.display(),
                detach_command(path)
            ),
            Self::Detached { path } => write!(
                f,
                "{}: the filter was detached while the gate ran; restart the gate to put it back",
                path.display()
            ),
            Self::NotAttached { path, interface } => match interface {
                Some(interface) => write!(
                    f,
                    "interface {interface}: no filter of {} sits on it",
                    path.display()
                ),
                None => write!(f, "{}: no filter is pinned there", path.display()),
            },
            Self::Verifier { source, log } => write!(
                f,
                "the kernel's verifier refused the program ({source}): {log}\n\
                 this is a bug, or a kernel older than 5.15: please report it with `uname -r`"
            ),
            Self::Link {
                interface,
                step,
                source,
            } => write!(f, "interface {interface}: {step}: {}", Chain(&**source)),
            Self::Kernel { step, source } => write!(f, "{step}: {}", Chain(&**source)),
            Self::EventsTaken { reader } => {
                match reader {
                    Some(reader) => write!(
                        f,
                        "the events are read by process {} ({})",
                        reader.process, reader.name
                    )?,
                    None => write!(f, "the events are read by another process")?,
                }
                write!(
                    f,
                    ", and they can have one reader; `portcullis filter status` shows the top \
                     sources that it sees, and so does /metrics of a gate"
                )
            }
            Self::Pin { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {}

/// An error with its causes: aya's outer messages rarely contain the kernel's error.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut written = self.0.to_string();
        f.write_str(&written)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // aya's transparent variants repeat the error that they wrap.
            if !written.contains(&text) {
                write!(f, ": {text}")?;
                written = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

/// The error number of the kernel, however deep it is wrapped.
pub(super) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        cause = error.source();
    }
    None
}

/// Makes an [`Error::Kernel`], or an [`Error::NotPermitted`] if that is the reason.
pub(super) fn kernel<E>(step: &'static str) -> impl Fn(E) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |error| match os_error(&error) {
        Some(nix::libc::EPERM) => Error::NotPermitted { what: step },
        _ => Error::Kernel {
            step,
            source: Box::new(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_permission_is_found_however_deep_it_is_wrapped() {
        #[derive(Debug)]
        struct Outer(io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`bpf_map_create` failed")
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let refused = kernel("loading")(Outer(io::Error::from_raw_os_error(nix::libc::EPERM)));
        assert!(refused.to_string().contains("run as root"), "{refused}");
        let failed = kernel("loading")(Outer(io::Error::from_raw_os_error(nix::libc::E2BIG)));
        let text = failed.to_string();
        assert!(
            text.starts_with("loading: `bpf_map_create` failed: Argument list"),
            "{text}"
        );
    }
}
