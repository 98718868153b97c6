//! A gate, rbldnsd and a tap before it in one namespace, and clients with addresses of every kind
//! in another.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use portcullis::netns::{Family, Namespace};
use portcullis_tests::dialogue::{Dialogue, connect_from};
use portcullis_tests::name_server::{Rbldnsd, Tap};
use portcullis_tests::process::Process;

pub(crate) const GATE4: &str = "198.51.100.25";
pub(crate) const GATE6: &str = "2001:db8:100::25";

pub(crate) const LISTED4: &str = "203.0.113.66";
pub(crate) const LISTED6: &str = "2001:db8:bad:1::66";
pub(crate) const HONEST4: &str = "203.0.113.10";
pub(crate) const HONEST6: &str = "2001:db8:900d::10";
/// Listed as the others, and on a permit list of the gate.
pub(crate) const PERMITTED4: &str = "203.0.113.67";
pub(crate) const PERMITTED6: &str = "2001:db8:bad:2::67";
/// Listed as the others, and in a local network.
pub(crate) const LOCAL4: &str = "192.0.2.66";
pub(crate) const LOCAL6: &str = "2001:db8:10ca::66";
/// Listed as the others, and on a welcome list.
pub(crate) const WELCOME4: &str = "203.0.113.68";
/// On a list that says so by 127.0.0.9.
pub(crate) const WEAK4: &str = "203.0.113.69";

const CLIENTS: [&str; 10] = [
    LISTED4, LISTED6, HONEST4, HONEST6, PERMITTED4, PERMITTED6, LOCAL4, LOCAL6, WELCOME4, WEAK4,
];

/// What rbldnsd serves.
const ZONES: [(&str, &str, &str); 11] = [
    (
        "bl.test",
        "ip4set",
        ":127.0.0.2:Listed\n203.0.113.66\n203.0.113.67\n203.0.113.68\n192.0.2.66\n203.0.113.69 :127.0.0.9:Weak\n198.18.0.0/16\n",
    ),
    (
        "bl.test",
        "ip6trie",
        ":127.0.0.2:Listed\n2001:db8:bad::/48\n2001:db8:10ca::66/128\n",
    ),
    ("late.test", "ip4set", ":127.0.0.2:Listed\n203.0.113.66\n"),
    // This one has the test entry of RFC 5782.
    (
        "other.test",
        "ip4set",
        ":127.0.0.2:Listed\n127.0.0.2\n203.0.113.10\n",
    ),
    (
        "welcome.test",
        "ip4set",
        ":127.0.0.5:Welcome\n203.0.113.68\n",
    ),
    // What a list says to a resolver that may not ask, and what a domain says that was given up.
    (
        "refuses.test",
        "ip4set",
        ":127.255.255.254:You may not ask\n0.0.0.0/1\n128.0.0.0/1\n",
    ),
    (
        "parked.test",
        "ip4set",
        ":192.0.2.80:Buy me\n0.0.0.0/1\n128.0.0.0/1\n",
    ),
    // What a list says whose operator wants to be asked no more.
    (
        "world.test",
        "ip4set",
        ":127.0.0.2:Listed\n0.0.0.0/1\n128.0.0.0/1\n",
    ),
    ("world.test", "ip6trie", ":127.0.0.2:Listed\n::/0\n"),
    (
        "world6.test",
        "ip4set",
        ":127.0.0.2:Listed\n127.0.0.2\n192.0.2.250\n",
    ),
    ("world6.test", "ip6trie", ":127.0.0.2:Listed\n::/0\n"),
];

/// Where the gate asks.
pub(crate) const TAP: &str = "127.0.0.1:5353";
pub(crate) const RBLDNSD: &str = "127.0.0.1:5354";

pub(crate) struct Scene {
    pub(crate) inside: Namespace,
    pub(crate) outside: Namespace,
    pub(crate) tap: Tap,
    _rbldnsd: Rbldnsd,
    directory: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Result<Self> {
        let (inside, outside) = (Namespace::create("gate")?, Namespace::create("clients")?);
        inside.veth("edge", &outside, "far")?;
        inside.addresses("edge", [format!("{GATE4}/32"), format!("{GATE6}/128")])?;
        let prefix =
            |client: &str| format!("{client}/{}", if client.contains(':') { 128 } else { 32 });
        outside.addresses("far", CLIENTS.map(prefix))?;
        for (family, gate) in [
            (Family::V4, format!("{GATE4}/32")),
            (Family::V6, format!("{GATE6}/128")),
        ] {
            inside.neighbours("default", "edge", family)?;
            outside.neighbours(&gate, "far", family)?;
        }
        let rbldnsd = Rbldnsd::start_in(&inside, RBLDNSD.parse()?, &ZONES)?;
        let tap = Tap::start_in(&inside, TAP.parse()?, RBLDNSD.parse()?)?;
        let directory = tempfile::Builder::new()
            .prefix("portcullis-dnsbl-")
            .tempdir()?;
        let permitted = format!("{PERMITTED4}\n{PERMITTED6}\n");
        std::fs::write(directory.path().join("permitted"), permitted)?;
        Ok(Self {
            inside,
            outside,
            tap,
            _rbldnsd: rbldnsd,
            directory,
        })
    }

    /// So many more clients, each with an address of its own.
    pub(crate) fn crowd(&self, count: u8) -> Result<Vec<String>> {
        let crowd: Vec<String> = (0..count)
            .map(|number| format!("198.19.0.{number}"))
            .collect();
        let addresses = crowd.iter().map(|client| format!("{client}/32"));
        self.outside.addresses("far", addresses)?;
        Ok(crowd)
    }

    /// A gate with these tables of DNS lists.
    pub(crate) fn gate(&self, dnsbl: &str) -> Result<Process<'_>> {
        Process::start_in(&self.inside, &self.configuration(dnsbl))
    }

    /// `[filter]` for the interface that clients come in by, under a path of this test's own.
    pub(crate) fn filter(&self) -> (PathBuf, String) {
        let name = self.inside.name();
        let pin_path = PathBuf::from(format!("/sys/fs/bpf/portcullis-test-{name}"));
        let text = format!(
            "[filter]\ninterfaces = [{{ name = \"edge\", role = \"edge\" }}]\npin_path = \"{}\"\n",
            pin_path.display()
        );
        (pin_path, text)
    }

    /// Its configuration.
    pub(crate) fn configuration(&self, dnsbl: &str) -> String {
        let permitted = self.directory.path().join("permitted");
        format!(
            r#"hostname = "gate.example"
state_dir = "@DIR@"
workers = 2
admin = "127.0.0.1:9925"
[log]
format = "json"
[[listener]]
address = "{GATE4}:25"
[[listener]]
address = "[{GATE6}]:25"
[[list]]
name = "permitted"
file = "{}"
format = "cidr"
action = "permit"
[relay]
# The last two are the gate itself, which is asked whether it listens.
networks = ["192.0.2.0/24", "2001:db8:10ca::/48", "{GATE4}/32", "{GATE6}/128"]
domains = ["isp.example"]
[[route]]
domains = ["*"]
next_hop = ["discard"]
{dnsbl}
"#,
            permitted.display()
        )
    }

    /// A session from a client's address, after its greeting.
    pub(crate) fn session(&self, client: &str) -> Result<Dialogue> {
        Dialogue::greeted(self.connect(client)?)
    }

    pub(crate) fn connect(&self, client: &str) -> Result<std::net::TcpStream> {
        let client: IpAddr = client.parse()?;
        let gate = if client.is_ipv4() { GATE4 } else { GATE6 };
        connect_from(&self.outside, client, SocketAddr::new(gate.parse()?, 25))
    }

    /// The reply to a client's first recipient, with nothing but 250 before it.
    pub(crate) fn first_recipient(&self, client: &str) -> Result<String> {
        let mut session = self.session(client)?;
        session.expect("EHLO client.example", "250")?;
        session.expect("MAIL FROM:<a@client.example>", "250")?;
        Ok(session.say("RCPT TO:<user@isp.example>")?.text())
    }

    /// A client can send a message.
    pub(crate) fn is_served(&self, client: &str) -> Result<()> {
        let mut session = self.session(client)?;
        let reply = session.message(
            "a@client.example",
            &["user@isp.example"],
            b"Subject: x\r\n\r\nx\r\n",
        )?;
        ensure!(reply.code == 250, "{client}: {}", reply.text());
        session.expect("QUIT", "221").map(drop)
    }

    /// Whether any zone was asked about this client.
    pub(crate) fn was_asked_about(&self, client: &str) -> Result<bool> {
        let name = portcullis::policy::dnsbl::query_name(client.parse()?, "");
        let reversed = name.trim_end_matches('.');
        Ok(self
            .tap
            .asked()
            .iter()
            .any(|asked| asked.starts_with(reversed)))
    }
}

/// `[dnsbl_policy]` with the tap, and this besides.
pub(crate) fn policy(more: &str) -> String {
    format!("[dnsbl_policy]\nservers = [\"{TAP}\"]\n{more}\n")
}

/// Far less than any timeout here, and enough for a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(1);
