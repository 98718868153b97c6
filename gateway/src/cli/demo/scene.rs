//! The environment of the demo: two namespaces, the gate as a process in one of them, its lists,
//! its configuration and its next hop. All of it is removed when the scene is dropped, however the
//! demo ends.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::netns::Namespace;

use super::sink::Sink;

/// The gate's name in the demo.
pub(super) const HOSTNAME: &str = "gate.example";
/// The gate's only local domain.
pub(super) const DOMAIN: &str = "isp.example";
/// The gate's addresses on the outer link.
pub(super) const GATE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// See [`GATE_V4`].
pub(super) const GATE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

/// The gate's outer interface, which has the program.
const INTERFACE: &str = "edge";
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9925);
const PATIENCE: Duration = Duration::from_secs(15);

/// A list of the demo: the content of its file, and a source on it for every number.
pub(super) struct List {
    pub(super) name: &'static str,
    contents: fn() -> String,
    pick: fn(u64) -> IpAddr,
}

impl List {
    /// A source on the list.
    pub(super) fn source(&self, random: u64) -> IpAddr {
        (self.pick)(random)
    }
}

/// The lists of a scene.
pub(super) type Lists = [List];

/// Two lists of networks and two of single sources, for both families. The networks are those for
/// benchmarks (RFC 2544) and documentation (RFC 3849): no real mail comes from there.
static LISTS: [List; 4] = [
    List {
        name: "hijacked-v4",
        contents: || "198.18.0.0/16 ; a whole network\n".to_owned(),
        pick: |random| IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 | (random as u32 & 0xffff))),
    },
    List {
        name: "botnet-v4",
        contents: || {
            (0..1u32 << 15)
                .map(|index| format!("{}\n", bot_v4(index)))
                .collect()
        },
        pick: |random| IpAddr::V4(bot_v4(random as u32 & 0x7fff)),
    },
    List {
        name: "hijacked-v6",
        contents: || "2001:db8:bad::/48 ; a whole network\n".to_owned(),
        pick: |random| {
            IpAddr::V6(Ipv6Addr::from_bits(
                0x2001_0db8_0bad << 80 | u128::from(random),
            ))
        },
    },
    List {
        name: "botnet-v6",
        contents: || {
            (0..1u64 << 14)
                .map(|index| format!("{}/64\n", bot_v6(index, 0)))
                .collect()
        },
        pick: |random| IpAddr::V6(bot_v6(random & 0x3fff, random >> 32)),
    },
];

/// Every other address of 198.19.0.0/16.
fn bot_v4(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc613_0000 | index << 1 | 1)
}

/// A host in every other /64 of the first half of 2001:db8:b07::/48.
fn bot_v6(index: u64, host: u64) -> Ipv6Addr {
    Ipv6Addr::from_bits(0x2001_0db8_0b07 << 80 | u128::from(index << 1) << 64 | u128::from(host))
}

/// The status of the filter.
#[derive(Clone, Debug, Default)]
pub(super) struct FilterFigures {
    /// Where in the kernel the program runs.
    pub(super) xdp_mode: String,
    /// Packets dropped, by list.
    pub(super) dropped: Vec<(String, u64)>,
}

/// The two namespaces; only as root.
struct Network {
    gate: Namespace,
    world: Namespace,
    /// The pin path, which is not that of the machine's own filter.
    pins: PathBuf,
}

/// See the module.
pub(super) struct Scene {
    gate: Child,
    directory: PathBuf,
    /// One for each address family, in namespaces. When both have answered, the neighbours on the
    /// link know each other: packets to an unknown neighbour would wait in a queue, uncounted.
    listeners: Vec<SocketAddr>,
    admin: SocketAddr,
    sink: Sink,
    network: Option<Network>,
    taken_down: bool,
}

impl Scene {
    /// The whole scene. Needs root.
    pub(super) fn in_namespaces() -> io::Result<Self> {
        let (gate, world) = (Namespace::create("gate")?, Namespace::create("world")?);
        gate.veth(INTERFACE, &world, "uplink")?;
        gate.addresses(
            INTERFACE,
            [format!("{GATE_V4}/24"), format!("{GATE_V6}/64")],
        )?;
        world.addresses("uplink", ["198.51.100.66/24", "2001:db8:1::66/64"])?;
        let pins = PathBuf::from(format!("/sys/fs/bpf/portcullis-demo-{}", process::id()));
        let listener = gate.run(|| TcpListener::bind(("127.0.0.1", 2525)))??;
        Self::start(
            listener,
            [IpAddr::from(GATE_V4), IpAddr::from(GATE_V6)]
                .map(|ip| SocketAddr::new(ip, 25))
                .into(),
            ADMIN,
            Some(Network { gate, world, pins }),
        )
    }

    /// Without root: the gate and its next hop on the loopback, which is not a local network here.
    pub(super) fn on_the_loopback() -> io::Result<Self> {
        let free = || TcpListener::bind("127.0.0.1:0")?.local_addr();
        let (address, admin) = (free()?, free()?);
        Self::start(
            TcpListener::bind("127.0.0.1:0")?,
            vec![address],
            admin,
            None,
        )
    }

    fn start(
        sink: TcpListener,
        listeners: Vec<SocketAddr>,
        admin: SocketAddr,
        network: Option<Network>,
    ) -> io::Result<Self> {
        let sink = Sink::start(sink, DOMAIN)?;
        let directory = env::temp_dir().join(format!("portcullis-demo-{}", process::id()));
        fs::create_dir(&directory)?;
        let gate = launch(&directory, &listeners, admin, &sink, network.as_ref());
        let gate = match gate {
            Ok(gate) => gate,
            Err(error) => {
                let _ = fs::remove_dir_all(&directory);
                return Err(error);
            }
        };
        let mut scene = Self {
            gate,
            directory,
            listeners,
            admin,
            sink,
            network,
            taken_down: false,
        };
        scene.wait_until_it_serves()?;
        Ok(scene)
    }

    /// Waits for a greeting on every listener. Then the filter is attached; a connection alone
    /// would not prove that.
    fn wait_until_it_serves(&mut self) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            if self
                .listeners
                .iter()
                .all(|address| self.greets(*address).is_ok())
            {
                return Ok(());
            }
            let ended = self.gate.try_wait()?;
            if ended.is_some() || Instant::now() > end {
                let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                let log = log.trim_end();
                return Err(io::Error::other(format!(
                    "the gate does not serve; it said:\n{log}"
                )));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn greets(&self, address: SocketAddr) -> io::Result<()> {
        let mut stream = self.connect_to(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.read_exact(&mut [0])
    }

    /// The address of the gate's first listener.
    pub(super) fn address(&self) -> SocketAddr {
        self.listeners[0]
    }

    /// The gate's next hop.
    pub(super) fn sink(&self) -> &Sink {
        &self.sink
    }

    /// The lists that the gate has.
    pub(super) fn lists(&self) -> &'static Lists {
        &LISTS
    }

    /// The outer namespace, if there is one: the flood runs there.
    pub(super) fn world(&self) -> Option<&Namespace> {
        self.network.as_ref().map(|network| &network.world)
    }

    /// A connection to the gate, from the outer namespace.
    pub(super) fn connect(&self) -> io::Result<TcpStream> {
        self.connect_to(self.address())
    }

    fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(2));
        match &self.network {
            Some(network) => network.world.run(connect)?,
            None => connect(),
        }
    }

    /// The output of `portcullis filter status --json`; `None` if there is no filter.
    pub(super) fn filter_status(&self) -> io::Result<Option<FilterFigures>> {
        let Some(network) = &self.network else {
            return Ok(None);
        };
        let output = self
            .filter_command(network, &["status", "--json"])?
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let status: serde_json::Value = serde_json::from_str(&text).map_err(|error| {
            let errors = String::from_utf8_lossy(&output.stderr);
            io::Error::other(format!(
                "the output of `filter status --json` is invalid ({error}): {text}{errors}"
            ))
        })?;
        let xdp_mode = status["interfaces"][0]["xdp_mode"]
            .as_str()
            .unwrap_or("none")
            .to_owned();
        let lists = status["lists"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let dropped = lists.iter().filter_map(|list| {
            Some((
                list["name"].as_str()?.to_owned(),
                list["dropped_packets"].as_u64()?,
            ))
        });
        Ok(Some(FilterFigures {
            xdp_mode,
            dropped: dropped.collect(),
        }))
    }

    fn filter_command(&self, network: &Network, arguments: &[&str]) -> io::Result<Command> {
        let mut command = network.gate.command(env::current_exe()?);
        command
            .arg("filter")
            .args(arguments)
            .arg("-c")
            .arg(self.directory.join(CONFIGURATION));
        Ok(command)
    }

    /// The recipients that the gate has refused so far, by the rule that refused them, from its
    /// metrics.
    pub(super) fn refused_by_rule(&self) -> io::Result<Vec<(String, u64)>> {
        let connect = || TcpStream::connect_timeout(&self.admin, PATIENCE);
        let mut stream = match &self.network {
            Some(network) => network.gate.run(connect)??,
            None => connect()?,
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut metrics = String::new();
        stream.read_to_string(&mut metrics)?;
        let samples = metrics.lines().filter_map(|line| {
            let sample = line.strip_prefix("portcullis_recipients_refused_total{rule=\"")?;
            let (rule, count) = sample.split_once("\"} ")?;
            Some((rule.to_owned(), count.parse().ok()?))
        });
        Ok(samples.collect())
    }

    /// Removes everything. The error says what could not be removed.
    pub(super) fn take_down(mut self) -> io::Result<()> {
        self.clean_up()
    }

    fn clean_up(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.taken_down, true) {
            return Ok(());
        }
        self.stop_gate();
        let mut detached = Ok(());
        if let Some(network) = &self.network {
            let output = self.filter_command(network, &["detach"])?.output()?;
            if !output.status.success() {
                detached = Err(io::Error::other(
                    String::from_utf8_lossy(&output.stderr).into_owned(),
                ));
            }
            // Already gone if the filter was detached.
            let _ = fs::remove_dir_all(&network.pins);
        }
        fs::remove_dir_all(&self.directory)?;
        detached
    }

    /// Sends SIGTERM, and SIGKILL to a gate that does not end.
    fn stop_gate(&mut self) {
        if let Ok(pid) = i32::try_from(self.gate.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let end = Instant::now() + Duration::from_secs(3);
        while matches!(self.gate.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.gate.kill();
        let _ = self.gate.wait();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // After an error; that one is reported, not this.
        let _ = self.clean_up();
    }
}

const CONFIGURATION: &str = "portcullis.toml";

/// Writes lists and configuration, and starts the gate.
fn launch(
    directory: &Path,
    listeners: &[SocketAddr],
    admin: SocketAddr,
    sink: &Sink,
    network: Option<&Network>,
) -> io::Result<Child> {
    let mut configuration = format!(
        r#"hostname = "{HOSTNAME}"
state_dir = "{directory}"
admin = "{admin}"

[relay]
networks = []
domains = ["{DOMAIN}"]

[[route]]
domains = ["*"]
next_hop = ["{sink}"]
"#,
        directory = directory.display(),
        sink = sink.address(),
    );
    for listener in listeners {
        configuration +=
            &format!("\n[[listener]]\naddress = \"{listener}\"\nservice = \"relay\"\n");
    }
    if let Some(network) = network {
        configuration += &format!(
            "\n[filter]\ninterfaces = [{{ name = \"{INTERFACE}\", role = \"edge\" }}]\n\
             ports = [25]\nmode = \"enforce\"\nxdp_mode = \"driver\"\npin_path = \"{}\"\n",
            network.pins.display()
        );
        for list in &LISTS {
            fs::write(directory.join(list.name), (list.contents)())?;
            configuration += &format!(
                "\n[[list]]\nname = \"{0}\"\nfile = \"{0}\"\nformat = \"cidr\"\n\
                 action = \"drop\"\n",
                list.name
            );
        }
    }
    fs::write(directory.join(CONFIGURATION), configuration)?;
    let binary = env::current_exe()?;
    let mut command = match network {
        Some(network) => network.gate.command(binary),
        None => Command::new(binary),
    };
    let log = File::create(directory.join("log"))?;
    command
        .args(["run", "-c"])
        .arg(directory.join(CONFIGURATION))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_of_the_flood_is_on_its_list() {
        let random = (0..1000u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for number in random {
            for list in &LISTS {
                let source = list.source(number).to_string();
                let listed = match list.name {
                    "hijacked-v4" => source.starts_with("198.18."),
                    "hijacked-v6" => source.starts_with("2001:db8:bad:"),
                    "botnet-v4" => {
                        source.starts_with("198.19.") && source.ends_with(['1', '3', '5', '7', '9'])
                    }
                    _ => source.starts_with("2001:db8:b07:"),
                };
                assert!(listed, "{source} on {}", list.name);
            }
        }
    }
}
