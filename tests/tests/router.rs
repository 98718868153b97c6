//! An ISP's router in small: customers on one side, the world on the other, the filter on both
//! interfaces with the role of each.
//!
//! ```text
//!   customer --- inside [ router ] wan --- world
//! ```
//!
//! Everything is forwarded, nothing ends on the router, and the filter is put there by the command,
//! as an operator would.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis::netns::Namespace;
use portcullis_tests::process::binary;
use portcullis_tests::root;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

const CUSTOMER: [&str; 2] = ["198.18.0.10", "2001:db8:18::10"];
/// A customer with a mail server of its own, which the operator permits.
const BUSINESS: [&str; 2] = ["198.18.0.25", "2001:db8:18::25"];
const WORLD: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
/// The ISP's smart host, reached through the world.
const SMART_HOST: [&str; 2] = ["203.0.113.25", "2001:db8:113::25"];
const SPAMMER: [&str; 2] = ["203.0.113.66", "2001:db8:113::66"];

/// A connection that is refused is refused within this time; one that is dropped is not heard of
/// for longer.
const AT_ONCE: Duration = Duration::from_millis(500);

struct Router {
    customer: Namespace,
    router: Namespace,
    world: Namespace,
    directory: tempfile::TempDir,
    listeners: Vec<TcpListener>,
}

impl Router {
    fn new(filter: &str) -> Result<Self> {
        let router = Self {
            customer: Namespace::create("customer")?,
            router: Namespace::create("router")?,
            world: Namespace::create("world")?,
            directory: tempfile::tempdir()?,
            listeners: Vec::new(),
        };
        router.join()?;
        router.write(filter)?;
        // A RST leaves by the way the packet came in, and a veth takes such a frame only if its
        // other end has a program. The filter looks for it when it is put in place.
        router.attach(&router.customer, "peer.toml")?;
        router.attach(&router.router, "gate.toml")?;
        router.listen()
    }

    fn join(&self) -> Result<()> {
        self.router.veth("inside", &self.customer, "eth0")?;
        self.router.veth("wan", &self.world, "eth0")?;
        self.router
            .addresses("inside", ["198.18.0.1/24", "2001:db8:18::1/64"])?;
        self.router
            .addresses("wan", ["203.0.113.1/24", "2001:db8:113::1/64"])?;
        let with_length = |[four, six]: [&str; 2]| [format!("{four}/24"), format!("{six}/64")];
        self.customer.addresses("eth0", with_length(CUSTOMER))?;
        self.customer.addresses("eth0", with_length(BUSINESS))?;
        for addresses in [WORLD, SMART_HOST, SPAMMER] {
            self.world.addresses("eth0", with_length(addresses))?;
        }
        self.router.run(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })??;
        self.customer.route("default", "198.18.0.1")?;
        self.customer.route("default", "2001:db8:18::1")?;
        self.world.route("default", "203.0.113.1")?;
        self.world.route("default", "2001:db8:113::1")?;
        Ok(())
    }

    fn write(&self, filter: &str) -> Result<()> {
        let directory = self.directory.path();
        let lines = |addresses: &[[&str; 2]]| addresses.concat().join("\n");
        fs::write(directory.join("permit"), lines(&[BUSINESS, SMART_HOST]))?;
        fs::write(directory.join("drop"), lines(&[SPAMMER]))?;
        let gate = format!(
            r#"state_dir = "."
[filter]
interfaces = [{{ name = "wan", role = "edge" }}, {{ name = "inside", role = "customer" }}]
pin_path = "{}"
{filter}
[[list]]
name = "friends"
file = "permit"
action = "permit"
[[list]]
name = "spammers"
file = "drop"
action = "drop"
"#,
            self.pin_path("router")
        );
        fs::write(directory.join("gate.toml"), gate)?;
        let peer = format!(
            "state_dir = \".\"\n[filter]\ninterfaces = [{{ name = \"eth0\" }}]\nports = [65535]\npin_path = \"{}\"\n",
            self.pin_path("peer")
        );
        fs::write(directory.join("peer.toml"), peer)?;
        Ok(())
    }

    fn pin_path(&self, what: &str) -> String {
        format!("/sys/fs/bpf/{}-{what}", self.router.name())
    }

    fn command(&self, namespace: &Namespace, arguments: &[&str]) -> Result<Output> {
        let mut command = namespace.command(binary()?);
        let output = command
            .args(arguments)
            .current_dir(self.directory.path())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "portcullis {}: {said}",
            arguments.join(" ")
        );
        Ok(output)
    }

    fn attach(&self, namespace: &Namespace, config: &str) -> Result<()> {
        self.command(namespace, &["filter", "attach", "-c", config])
            .map(drop)
    }

    fn status(&self) -> Result<Value> {
        let output = self.command(
            &self.router,
            &["filter", "status", "--json", "-c", "gate.toml"],
        )?;
        serde_json::from_slice(&output.stdout).context("the status is JSON")
    }

    /// The number at a place of one interface's status.
    fn count(&self, interface: &str, place: &str) -> Result<u64> {
        let status = self.status()?;
        let interfaces = status["interfaces"].as_array().context("interfaces")?;
        let of_name = interfaces.iter().find(|other| other["name"] == interface);
        let count = of_name.and_then(|of_name| of_name.pointer(place));
        count
            .and_then(Value::as_u64)
            .with_context(|| format!("{interface}{place} in {status}"))
    }

    /// Servers on both sides, on port 25 and on one that is not filtered.
    fn listen(mut self) -> Result<Self> {
        let places = [
            (&self.customer, &[CUSTOMER][..]),
            (&self.world, &[WORLD, SMART_HOST][..]),
        ];
        let mut listeners = Vec::new();
        for (namespace, addresses) in places {
            for address in addresses.concat() {
                let address: IpAddr = address.parse()?;
                for port in [25, 587] {
                    listeners.push(namespace.run(|| TcpListener::bind((address, port)))??);
                }
            }
        }
        self.listeners = listeners;
        Ok(self)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for (namespace, config) in [(&self.router, "gate.toml"), (&self.customer, "peer.toml")] {
            // Nothing is attached if that is what failed.
            let _ = self.command(namespace, &["filter", "detach", "-c", config]);
        }
    }
}

/// What becomes of an attempt to connect.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    Connected,
    Refused,
    /// Nothing was heard.
    Silence,
}

fn connect(from: &Namespace, source: &str, to: &str, port: u16) -> Result<Attempt> {
    let (source, to): (IpAddr, IpAddr) = (source.parse()?, to.parse()?);
    let attempt = from.run(|| -> io::Result<TcpStream> {
        let socket = Socket::new(
            Domain::for_address(SocketAddr::new(to, port)),
            Type::STREAM,
            None,
        )?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&SocketAddr::new(to, port).into(), AT_ONCE)?;
        Ok(socket.into())
    })?;
    match attempt {
        Ok(_) => Ok(Attempt::Connected),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Attempt::Refused),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(Attempt::Silence),
        Err(error) => Err(error).with_context(|| format!("{source} -> {to}:{port}")),
    }
}

/// Whether a datagram from the world reaches port 25 of a customer.
fn datagram_arrives(router: &Router, from: &str, to: &str) -> Result<bool> {
    let (from, to): (IpAddr, IpAddr) = (from.parse()?, to.parse()?);
    let receiver = router.customer.run(|| UdpSocket::bind((to, 25)))??;
    receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
    let sender = router.world.run(|| UdpSocket::bind((from, 0)))??;
    sender.send_to(b"not mail", (to, 25))?;
    Ok(receiver.recv(&mut [0; 16]).is_ok_and(|octets| octets == 8))
}

#[test]
fn a_customer_reaches_port_25_only_if_either_end_is_permitted_and_is_told_at_once() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let router = Router::new("")?;
    for family in 0..2 {
        let [customer, business, world, smart_host] =
            [CUSTOMER, BUSINESS, WORLD, SMART_HOST].map(|addresses| addresses[family]);
        let cases = [
            (customer, world, 25, Attempt::Refused),
            (customer, smart_host, 25, Attempt::Connected),
            (business, world, 25, Attempt::Connected),
            (customer, world, 587, Attempt::Connected),
        ];
        for (source, to, port, expected) in cases {
            let began = Instant::now();
            let attempt = connect(&router.customer, source, to, port)?;
            ensure!(
                attempt == expected,
                "{source} -> {to}:{port}: {attempt:?}, not {expected:?}"
            );
            ensure!(
                began.elapsed() < AT_ONCE,
                "{source} -> {to}:{port} took {:?}",
                began.elapsed()
            );
        }
    }
    ensure!(
        router.count("inside", "/resets")? == 2,
        "one RST of each family: {}",
        router.status()?
    );
    ensure!(
        router.count("inside", "/permitted")? > 4,
        "{}",
        router.status()?
    );
    Ok(())
}

#[test]
fn a_listed_source_does_not_get_through_to_a_customer_and_others_do() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let router = Router::new("")?;
    for family in 0..2 {
        let [customer, world, spammer] =
            [CUSTOMER, WORLD, SPAMMER].map(|addresses| addresses[family]);
        let cases = [
            (spammer, 25, Attempt::Silence),
            (spammer, 587, Attempt::Connected),
            (world, 25, Attempt::Connected),
        ];
        for (source, port, expected) in cases {
            let attempt = connect(&router.world, source, customer, port)?;
            ensure!(
                attempt == expected,
                "{source} -> {customer}:{port}: {attempt:?}, not {expected:?}"
            );
        }
    }
    ensure!(
        router.count("wan", "/dropped/listed")? == 2,
        "{}",
        router.status()?
    );
    ensure!(
        router.count("inside", "/dropped/listed")? == 0,
        "lists of sources are for the edge"
    );
    Ok(())
}

/// So many SYNs of trafgen's from the world to a customer's port.
fn trafgen(router: &Router, source: &str, to: &str, port: u16, packets: u64) -> Result<()> {
    let shown = router
        .router
        .command("ip")
        .args(["-j", "link", "show", "wan"])
        .output()?;
    let shown: Value = serde_json::from_slice(&shown.stdout)?;
    let interface = shown[0]["address"]
        .as_str()
        .context("an Ethernet address")?;
    let network = if source.contains(':') { "ipv6" } else { "ipv4" };
    let packet = format!(
        "{{ eth(da={interface}), {network}(sa={source}, da={to}), tcp(sp=40001, dp={port}, syn, win=1024) }}"
    );
    let mut command = router.world.command("trafgen");
    command.args([
        "--out",
        "eth0",
        "--cpus",
        "1",
        "--num",
        &packets.to_string(),
        &packet,
    ]);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "trafgen {packet}: {said}");
    Ok(())
}

#[test]
fn every_syn_of_trafgen_from_a_listed_source_is_dropped_and_counted_and_no_other() -> Result<()> {
    const PACKETS: u64 = 1_000;
    if !root() {
        return Ok(());
    }
    // More than any budget, through a router that has no cookie for them: what may be forged is not
    // dropped for its number.
    let router = Router::new("syn_budget = 1")?;
    for family in 0..2 {
        let [customer, world, spammer] =
            [CUSTOMER, WORLD, SPAMMER].map(|addresses| addresses[family]);
        let listed_before = router.count("wan", "/dropped/listed")?;
        trafgen(&router, spammer, customer, 25, PACKETS)?;
        trafgen(&router, spammer, customer, 587, PACKETS)?;
        let passed_before = router.count("wan", "/passed")?;
        trafgen(&router, world, customer, 25, PACKETS)?;
        ensure!(
            router.count("wan", "/dropped/listed")? == listed_before + PACKETS,
            "{}",
            router.status()?
        );
        ensure!(
            router.count("wan", "/passed")? == passed_before + PACKETS,
            "{}",
            router.status()?
        );
        ensure!(router.count("wan", "/over_budget")? > 0);
    }
    Ok(())
}

#[test]
fn a_customer_is_refused_in_silence_where_the_operator_wants_that_or_the_rate_is_used_up()
-> Result<()> {
    if !root() {
        return Ok(());
    }
    for filter in ["customer_refusal = \"drop\"", "resets_per_second = 0"] {
        let router = Router::new(filter)?;
        for family in 0..2 {
            let attempt = connect(&router.customer, CUSTOMER[family], WORLD[family], 25)?;
            ensure!(attempt == Attempt::Silence, "{filter}: {attempt:?}");
        }
        ensure!(
            router.count("inside", "/dropped/customer")? == 2,
            "{}",
            router.status()?
        );
        ensure!(
            router.count("inside", "/resets")? == 0,
            "{}",
            router.status()?
        );
    }
    Ok(())
}

#[test]
fn in_monitor_mode_everything_passes_and_what_would_not_is_counted() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let router = Router::new("mode = \"monitor\"\nunlisted = \"drop\"")?;
    for family in 0..2 {
        let [customer, world, spammer] =
            [CUSTOMER, WORLD, SPAMMER].map(|addresses| addresses[family]);
        ensure!(connect(&router.customer, customer, world, 25)? == Attempt::Connected);
        ensure!(connect(&router.world, spammer, customer, 25)? == Attempt::Connected);
        ensure!(connect(&router.world, world, customer, 25)? == Attempt::Connected);
    }
    for (interface, reason) in [
        ("inside", "customer"),
        ("wan", "listed"),
        ("wan", "unlisted"),
    ] {
        ensure!(
            router.count(interface, &format!("/monitored/{reason}"))? >= 2,
            "{}",
            router.status()?
        );
    }
    Ok(())
}

#[test]
fn with_unlisted_sources_dropped_only_mail_is_dropped() -> Result<()> {
    if !root() {
        return Ok(());
    }
    // Neighbours are found, datagrams delivered and other ports reached, over both families: only
    // TCP to port 25 is dropped.
    let router = Router::new("unlisted = \"drop\"")?;
    for family in 0..2 {
        let [customer, world, smart_host] =
            [CUSTOMER, WORLD, SMART_HOST].map(|addresses| addresses[family]);
        ensure!(connect(&router.world, world, customer, 25)? == Attempt::Silence);
        ensure!(connect(&router.world, smart_host, customer, 25)? == Attempt::Connected);
        ensure!(connect(&router.world, world, customer, 587)? == Attempt::Connected);
        ensure!(
            datagram_arrives(&router, world, customer)?,
            "UDP to port 25 is none of the filter's business"
        );
    }
    Ok(())
}
