//! Network namespaces for the demo, the whole-system tests and the benches.
//!
//! In a namespace a client can have an outside address, an interface can have the XDP program, and
//! a flood can run, without any effect on the machine. Only the *network* namespace changes: mounts
//! stay shared, so `/sys/fs/bpf` and temporary files are the same inside. (Rejected for that
//! reason: `ip netns exec`, which creates a mount namespace with another `/sys`. Note that
//! `/sys/class/net` therefore still shows the interfaces outside; `ip` and `if_nametoindex` show
//! those inside.)
//!
//! The `ip` tool creates links and addresses: its commands can be repeated by hand when something
//! looks wrong. All of this needs root (`CAP_SYS_ADMIN` and `CAP_NET_ADMIN`).

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{process, thread};

use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps the names.
const DIRECTORY: &str = "/run/netns";

/// The prefix of every name; the ID of the process that created it follows, see [`sweep`].
const MARK: &str = "pc-";

/// An address family, where a prefix alone does not tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    const fn option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

/// A new network namespace, deleted with everything in it when this is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// Held open: entering works even after another process has deleted the name.
    handle: File,
}

impl Namespace {
    /// Creates a namespace with its loopback up, and IPv6 addresses that are usable at once (no
    /// duplicate address detection).
    ///
    /// Its name is `pc-PID-PREFIX-N`, so that concurrent test processes have different names.
    ///
    /// # Errors
    /// If the `ip` tool is missing or fails; the usual reason is a user other than root
    /// ([`permitted`] checks that beforehand).
    pub fn create(prefix: &str) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{MARK}{}-{prefix}-{number}", process::id());
        ip(&["netns", "add", &name])?;
        let handle = match File::open(path_of(&name)) {
            Ok(handle) => handle,
            Err(error) => {
                delete(&name);
                return Err(error);
            }
        };
        let namespace = Self { name, handle };
        namespace.up("lo")?;
        namespace.run(|| {
            // New interfaces copy "default"; "all" would change none of them.
            fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")?;
            fs::write("/proc/sys/net/ipv6/conf/default/accept_ra", "0")
        })??;
        Ok(namespace)
    }

    /// Its name for `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file of the namespace, `/run/netns/NAME`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Runs `work` on a new thread in the namespace, and waits for it.
    ///
    /// Sockets that `work` opens and processes that it starts stay in the namespace:
    /// `namespace.run(|| TcpListener::bind(..))` returns a listener that any thread can use. A
    /// panic in `work` continues in the caller.
    ///
    /// # Errors
    /// If the thread cannot be started or may not enter the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = thread::Builder::new()
                .name(self.name.clone())
                .spawn_scoped(scope, || {
                    setns(&self.handle, CloneFlags::CLONE_NEWNET)?;
                    Ok(work())
                })?;
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command to run inside. Its process ID is that of `program`: `nsenter` executes it without
    /// a fork.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn up(&self, interface: &str) -> io::Result<()> {
        self.ip(&["link", "set", "dev", interface, "up"])
    }

    /// Gives an interface an address with its prefix length (`192.0.2.1/24`, `2001:db8::1/64`).
    ///
    /// # Errors
    /// When there is no such interface, or the address is malformed or there already.
    pub fn address(&self, interface: &str, address: &str) -> io::Result<()> {
        self.addresses(interface, [address])
    }

    /// Gives an interface many addresses at once; hundreds cost one process.
    ///
    /// # Errors
    /// As [`address`](Self::address).
    pub fn addresses<A: std::fmt::Display>(
        &self,
        interface: &str,
        addresses: impl IntoIterator<Item = A>,
    ) -> io::Result<()> {
        let mut batch = String::new();
        for address in addresses {
            let address = address.to_string();
            let nodad = if address.contains(':') { " nodad" } else { "" };
            batch.push_str(&format!("address add {address} dev {interface}{nodad}\n"));
        }
        self.ip_batch(&batch)
    }

    /// Adds a route: `to` is a prefix or `default`, `via` an address of a neighbour.
    ///
    /// # Errors
    /// When `via` cannot be reached directly, or the route is there already.
    pub fn route(&self, to: &str, via: &str) -> io::Result<()> {
        // Without the family `ip` takes "default" for an IPv4 route, even via an IPv6 neighbour.
        let family = if via.contains(':') {
            Family::V6
        } else {
            Family::V4
        };
        self.ip(&[family.option(), "route", "add", to, "via", via])
    }

    /// Adds a route that makes every address in `to` (a prefix or `default`) a neighbour on this
    /// interface.
    ///
    /// # Errors
    /// When the interface is not there or not up, or the route is there already.
    pub fn neighbours(&self, to: &str, interface: &str, family: Family) -> io::Result<()> {
        self.ip(&[family.option(), "route", "add", to, "dev", interface])
    }

    /// Creates a veth pair, one end here and one in `other`, both up.
    ///
    /// # Errors
    /// When one of the names is taken or longer than 15 characters.
    pub fn veth(
        &self,
        interface: &str,
        other: &Namespace,
        other_interface: &str,
    ) -> io::Result<()> {
        let ours: &[&str] = &["link", "add", "name", interface, "type", "veth"];
        let theirs: &[&str] = &["peer", "name", other_interface, "netns", &other.name];
        self.ip(&[ours, theirs].concat())?;
        self.up(interface)?;
        other.up(other_interface)
    }

    fn ip(&self, arguments: &[&str]) -> io::Result<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    fn ip_batch(&self, batch: &str) -> io::Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "-batch", "-"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(no_tool)?;
        if let Some(mut input) = child.stdin.take() {
            // If the tool stops reading, its standard error has the reason.
            let _ = input.write_all(batch.as_bytes());
        }
        let done = child.wait_with_output()?;
        succeeded(done.status, &done.stderr, || {
            format!("ip -n {} -batch", self.name)
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// Connects two namespaces with a veth pair, both ends up: see [`Namespace::veth`].
///
/// # Errors
/// When one of the names is taken or longer than 15 characters.
pub fn veth(a: &Namespace, interface_a: &str, b: &Namespace, interface_b: &str) -> io::Result<()> {
    a.veth(interface_a, b, interface_b)
}

/// Whether this process may create namespaces.
#[must_use]
pub fn permitted() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Deletes namespaces whose creators are gone (killed before they could clean up). Returns how
/// many.
///
/// # Errors
/// If the directory of the names cannot be read. A missing directory is no error.
pub fn sweep() -> io::Result<usize> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut swept = 0;
    for entry in entries {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if maker(name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            delete(name);
            swept += 1;
        }
    }
    Ok(swept)
}

/// The process that created a namespace of this name, if the name has our form.
fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(MARK)?.split_once('-')?.0.parse().ok()
}

fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Deletes the name; the namespace itself ends with its last process and socket. A failure is
/// ignored: the next [`sweep`] tries again.
fn delete(name: &str) {
    let _ = Command::new("ip")
        .args(["netns", "del", name])
        .stderr(Stdio::null())
        .status();
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let done = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(no_tool)?;
    succeeded(done.status, &done.stderr, || {
        format!("ip {}", arguments.join(" "))
    })
}

fn succeeded(
    status: process::ExitStatus,
    stderr: &[u8],
    command: impl FnOnce() -> String,
) -> io::Result<()> {
    if status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(stderr);
    Err(io::Error::other(format!(
        "{}: {}",
        command(),
        message.trim()
    )))
}

fn no_tool(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            io::ErrorKind::NotFound,
            "the `ip` tool is missing: install iproute2 (apt-get install iproute2)",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn root() -> bool {
        if !permitted() {
            // Not captured by the test runner, which would hide it from a passing run.
            let test = thread::current();
            let _ = writeln!(
                io::stderr(),
                "SKIPPED (needs root): {}",
                test.name().unwrap_or("?")
            );
        }
        permitted()
    }

    #[test]
    fn only_names_of_ours_have_a_maker() {
        assert_eq!(maker("pc-4711-demo-0"), Some(4711));
        assert_eq!(maker("pc-x-demo-0"), None);
        assert_eq!(maker("pc-4711"), None);
        assert_eq!(maker("blue"), None);
    }

    #[test]
    fn two_namespaces_reach_each_other_over_both_families_at_once() -> io::Result<()> {
        if !root() {
            return Ok(());
        }
        let (a, b) = (Namespace::create("a")?, Namespace::create("b")?);
        veth(&a, "west", &b, "east")?;
        a.addresses("west", ["192.0.2.1/24", "2001:db8::1/64"])?;
        b.addresses("east", ["192.0.2.2/24", "2001:db8::2/64"])?;
        for address in ["192.0.2.2:25", "[2001:db8::2]:25"] {
            let listener = b.run(|| TcpListener::bind(address))??;
            let mut client = a.run(|| TcpStream::connect(address))??;
            listener.accept()?.0.write_all(b"220")?;
            let mut greeting = [0; 3];
            client.read_exact(&mut greeting)?;
            assert_eq!(&greeting, b"220");
        }
        Ok(())
    }

    #[test]
    fn a_command_runs_inside_under_its_own_process_id() -> io::Result<()> {
        if !root() {
            return Ok(());
        }
        let namespace = Namespace::create("cmd")?;
        let mut command = namespace.command("sh");
        command.args(["-c", "echo $$; readlink /proc/self/ns/net"]);
        let child = command.stdout(Stdio::piped()).spawn()?;
        let pid = child.id();
        let output = String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned();
        let (printed, net) = output.trim().split_once('\n').unwrap_or_default();
        assert_eq!(printed, pid.to_string());
        assert_ne!(net, fs::read_link("/proc/self/ns/net")?.to_string_lossy());
        Ok(())
    }

    #[test]
    fn a_dropped_namespace_is_gone_and_a_dead_makers_one_is_swept() -> io::Result<()> {
        if !root() {
            return Ok(());
        }
        let path = Namespace::create("gone")?.path();
        assert!(!path.exists());
        // A process ID beyond pid_max does not exist.
        let orphan = "pc-4294967295-orphan-0";
        ip(&["netns", "add", orphan])?;
        assert!(sweep()? >= 1);
        assert!(!path_of(orphan).exists());
        Ok(())
    }

    #[test]
    fn a_refusal_of_the_tool_says_which_command_and_why() -> io::Result<()> {
        if !root() {
            return Ok(());
        }
        let namespace = Namespace::create("err")?;
        let message = namespace.up("nowhere").map_err(|error| error.to_string());
        assert!(
            message
                .as_ref()
                .is_err_and(|text| text.contains("link set dev nowhere up")),
            "{message:?}"
        );
        Ok(())
    }
}
