//! A gate and its outside, in namespaces, with a listed and an honest client of both address
//! families.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use portcullis::config::{self, FilterMode, Interface, Role, XdpMode};
use portcullis::filter::{self, Error, Filter, Status};
use portcullis::lists::{Compiled, ListAction};
use portcullis::netns::Namespace;
use socket2::{Domain, Socket, Type};

pub(crate) const GATE4: &str = "192.0.2.1";
pub(crate) const GATE6: &str = "2001:db8::1";
pub(crate) const HONEST4: &str = "192.0.2.10";
pub(crate) const HONEST6: &str = "2001:db8::10";
pub(crate) const LISTED4: &str = "192.0.2.66";
pub(crate) const LISTED6: &str = "2001:db8::66";
pub(crate) const PERMITTED4: &str = "192.0.2.67";

/// A SYN without an answer is sent again after a second, so a shorter attempt is one packet.
pub(crate) const PATIENCE: Duration = Duration::from_millis(300);

/// A gate with an interface `wan`, and the outside with a few addresses.
pub(crate) struct Scene {
    pub(crate) gate: Namespace,
    pub(crate) outside: Namespace,
    pub(crate) pin_path: PathBuf,
    listeners: Vec<TcpListener>,
}

impl Scene {
    pub(crate) fn new() -> io::Result<Self> {
        Self::without_listeners()?.listening()
    }

    /// The same with `wan` and `lan` made by `connect`.
    pub(crate) fn joined(connect: impl FnOnce(&Self) -> io::Result<()>) -> io::Result<Self> {
        let scene = Self::apart()?;
        connect(&scene)?;
        scene.listening()
    }

    fn listening(mut self) -> io::Result<Self> {
        let scene = &mut self;
        for address in [GATE4, GATE6] {
            let address: IpAddr = address.parse().map_err(io::Error::other)?;
            for port in [25, 587] {
                let listener = scene.gate.run(|| TcpListener::bind((address, port)))??;
                scene.listeners.push(listener);
            }
        }
        Ok(self)
    }

    /// Whether a SYN is answered that this script sends from outside; it prints `answered` then.
    pub(crate) fn is_answered(&self, script: &str, arguments: &[&str]) -> Result<bool> {
        let output = self
            .outside
            .command("python3")
            .args(["-c", script])
            .args(arguments)
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout.starts_with(b"answered"))
    }

    pub(crate) fn without_listeners() -> io::Result<Self> {
        let scene = Self::apart()?;
        scene.connect_interfaces()?;
        Ok(scene)
    }

    /// Both namespaces, with nothing between them.
    fn apart() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            gate: Namespace::create("gate")?,
            outside: Namespace::create("outside")?,
            pin_path: format!("/sys/fs/bpf/portcullis-test-{}-{number}", process::id()).into(),
            listeners: Vec::new(),
        })
    }

    pub(crate) fn connect_interfaces(&self) -> io::Result<()> {
        self.gate.veth("wan", &self.outside, "lan")?;
        self.give_addresses()
    }

    pub(crate) fn give_addresses(&self) -> io::Result<()> {
        let (gate4, gate6) = (format!("{GATE4}/24"), format!("{GATE6}/64"));
        self.gate.addresses("wan", [gate4, gate6])?;
        let four = [HONEST4, LISTED4, PERMITTED4].map(|address| format!("{address}/24"));
        let six = [HONEST6, LISTED6].map(|address| format!("{address}/64"));
        self.outside.addresses("lan", four.iter().chain(&six))
    }

    pub(crate) fn settings(&self) -> config::Filter {
        settings(&self.pin_path)
    }

    pub(crate) fn attach(&self, settings: &config::Filter) -> Result<Filter, Error> {
        let attached = self.gate.run(|| Filter::attach(settings, &lists()));
        attached.expect("the thread enters the namespace")
    }

    pub(crate) fn status(&self) -> Status {
        let status = self.gate.run(|| filter::status(&self.pin_path));
        status
            .expect("the thread enters the namespace")
            .expect("a status")
    }

    /// The hardware address of the gate's `wan`, as `ip` shows it.
    pub(crate) fn gate_hardware_address(&self) -> io::Result<String> {
        let mut show = self.gate.command("ip");
        let shown = show.args(["-br", "link", "show", "wan"]).output()?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let address = shown.split_whitespace().nth(2);
        address
            .map(str::to_owned)
            .ok_or_else(|| io::Error::other(format!("no address: {shown}")))
    }

    /// The connection that came first to port 25 over IPv4.
    pub(crate) fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.listeners[0].accept()?;
        Ok(stream)
    }

    /// Whether a client with this address can connect to this port of the gate.
    pub(crate) fn reaches(&self, source: &str, port: u16) -> bool {
        self.outside
            .run(|| knock(source, port).is_ok())
            .expect("the thread enters the namespace")
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Most tests end with an attached filter; for the others there is nothing to detach.
        let _ = filter::detach(&self.pin_path, &[]);
    }
}

/// A program on the outside that passes everything: answers on a veth arrive only if its peer runs
/// a program in the driver.
pub(crate) struct Receiving<'s> {
    outside: &'s Namespace,
    pin_path: PathBuf,
}

impl<'s> Receiving<'s> {
    pub(crate) fn at_outside(scene: &'s Scene) -> io::Result<Self> {
        Self::in_mode(scene, XdpMode::Driver)
    }

    pub(crate) fn in_mode(scene: &'s Scene, xdp_mode: XdpMode) -> io::Result<Self> {
        let settings = config::Filter {
            interfaces: vec![Interface {
                name: "lan".to_owned(),
                role: Role::Edge,
            }],
            mode: FilterMode::Off,
            xdp_mode,
            pin_path: format!("{}-outside", scene.pin_path.display()).into(),
            ..config::Filter::default()
        };
        let attached = scene.outside.run(|| Filter::attach(&settings, &lists()))?;
        drop(attached.map_err(io::Error::other)?);
        Ok(Self {
            outside: &scene.outside,
            pin_path: settings.pin_path,
        })
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        // From within its namespace: then it is gone on return. A failure affects no other test.
        let _ = self.outside.run(|| filter::detach(&self.pin_path, &[]));
    }
}

/// A command that is to end with its test, however that ends.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Waits until it ends by itself. Returns its output, which is short.
    pub(crate) fn output(mut self) -> io::Result<Output> {
        let status = self.0.wait()?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        if let Some(mut pipe) = self.0.stdout.take() {
            pipe.read_to_end(&mut stdout)?;
        }
        if let Some(mut pipe) = self.0.stderr.take() {
            pipe.read_to_end(&mut stderr)?;
        }
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended cannot be killed any more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn knock(source: &str, port: u16) -> io::Result<TcpStream> {
    let source: IpAddr = source.parse().map_err(io::Error::other)?;
    let gate = if source.is_ipv4() { GATE4 } else { GATE6 };
    let gate = SocketAddr::new(gate.parse().map_err(io::Error::other)?, port);
    let socket = Socket::new(Domain::for_address(gate), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&gate.into(), PATIENCE)?;
    Ok(socket.into())
}

pub(crate) fn settings(pin_path: &Path) -> config::Filter {
    config::Filter {
        interfaces: vec![Interface {
            name: "wan".to_owned(),
            role: Role::Edge,
        }],
        pin_path: pin_path.to_owned(),
        ..config::Filter::default()
    }
}

pub(crate) fn lists() -> Compiled {
    let nets = |nets: &[&str]| {
        nets.iter()
            .map(|net| net.parse().expect("a prefix"))
            .collect()
    };
    Compiled::new([
        (
            "friends".to_owned(),
            ListAction::Permit,
            nets(&["192.0.2.67/32"]),
        ),
        (
            "spammers".to_owned(),
            ListAction::Drop,
            nets(&["192.0.2.64/27", "2001:db8::66/128"]),
        ),
        (
            "greetings".to_owned(),
            ListAction::Reject,
            nets(&["192.0.2.10/32"]),
        ),
    ])
}

pub(crate) fn dropped(status: &Status, list: &str) -> u64 {
    let list = status.lists.iter().find(|other| other.name == list);
    list.map_or(0, |list| list.dropped_packets)
}

pub(crate) fn has_program(namespace: &Namespace, interface: &str) -> io::Result<bool> {
    let shown = namespace
        .command("ip")
        .args(["link", "show", interface])
        .output()?;
    Ok(String::from_utf8_lossy(&shown.stdout).contains("xdp"))
}
