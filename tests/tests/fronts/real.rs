//! HAProxy and nginx in front of the real gate: by version 1 and 2 of the PROXY protocol and by
//! XCLIENT, with their health checks.
//!
//! ```text
//!   clients --- pub [ HAProxy, nginx ] priv --- edge [ gate ]
//! ```

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis::netns::{Family, Namespace};
use portcullis_tests::dialogue::{Dialogue, connect_from};
use portcullis_tests::process::Process;
use portcullis_tests::{root, wait};

/// In a local network of the gate.
const CUSTOMER: &str = "192.0.2.10";
const STRANGER: &str = "203.0.113.66";
/// Where the fronts listen.
const PUBLIC: &str = "198.51.100.10";
/// Where they connect from.
const FRONT: &str = "10.0.0.7";
const GATE: &str = "10.0.0.25";
const PASSED_ON_BY_XCLIENT: u16 = 2525;

const SOON: Duration = Duration::from_secs(10);

struct Scene {
    clients: Namespace,
    fronts: Namespace,
    inside: Namespace,
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Result<Self> {
        let [clients, fronts, inside] = ["clients", "fronts", "gate"].map(Namespace::create);
        let (clients, fronts, inside) = (clients?, fronts?, inside?);
        clients.veth("far", &fronts, "pub")?;
        clients.addresses("far", [CUSTOMER, STRANGER].map(|it| format!("{it}/32")))?;
        clients.neighbours(&format!("{PUBLIC}/32"), "far", Family::V4)?;
        fronts.addresses("pub", [format!("{PUBLIC}/32")])?;
        fronts.neighbours("default", "pub", Family::V4)?;
        fronts.veth("priv", &inside, "edge")?;
        fronts.addresses("priv", [format!("{FRONT}/24")])?;
        inside.addresses("edge", [format!("{GATE}/24")])?;
        for namespace in [&fronts, &inside] {
            namespace.up("lo")?;
        }
        let directory = tempfile::Builder::new()
            .prefix("portcullis-fronts-")
            .tempdir()?;
        Ok(Self {
            clients,
            fronts,
            inside,
            directory,
        })
    }

    /// A gate that takes the fronts' word. Their own address is in a local network.
    fn gate(&self) -> Result<Process<'_>> {
        let configuration = format!(
            r#"hostname = "gate.example"
state_dir = "@DIR@"
workers = 2
admin = "127.0.0.1:9925"
[log]
format = "json"
[[listener]]
address = "{GATE}:25"
proxy_protocol_from = ["{FRONT}"]
[[listener]]
address = "{GATE}:{PASSED_ON_BY_XCLIENT}"
xclient_from = ["{FRONT}"]
[relay]
networks = ["192.0.2.0/24", "10.0.0.0/24"]
domains = ["isp.example"]
[[route]]
domains = ["*"]
next_hop = ["discard"]
"#
        );
        Process::start_in(&self.inside, &configuration)
    }

    fn dialogue(&self, from: &str, port: u16) -> Result<Dialogue> {
        let to = SocketAddr::new(PUBLIC.parse()?, port);
        Dialogue::greeted(connect_from(&self.clients, from.parse()?, to)?)
    }

    /// The reply to a recipient elsewhere, by the front at this port.
    fn relays(&self, from: &str, port: u16) -> Result<String> {
        let mut dialogue = self.dialogue(from, port)?;
        dialogue.expect("EHLO client.example", "250")?;
        dialogue.expect("MAIL FROM:<a@client.example>", "250")?;
        let reply = dialogue.say("RCPT TO:<someone@elsewhere.example>")?;
        Ok(reply.text())
    }

    fn start(&self, program: &str, arguments: &[&str], port: u16) -> Result<Front> {
        let mut command: Command = self.fronts.command(program);
        let child = command
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.directory.path().join("front.log"))?)
            .spawn()
            .with_context(|| format!("{program} (cargo xtask setup installs it)"))?;
        let front = Front(child);
        let to = SocketAddr::new(PUBLIC.parse()?, port);
        let listens = || connect_from(&self.clients, CUSTOMER.parse().ok()?, to).ok();
        wait::until("the front to listen", SOON, listens).with_context(|| {
            fs::read_to_string(self.directory.path().join("front.log")).unwrap_or_default()
        })?;
        Ok(front)
    }
}

/// A front as a process, in the foreground.
struct Front(Child);

impl Drop for Front {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        // They end their own workers; a kill would leave them.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Whether the log has a session of this client.
fn has_session(gate: &Process<'_>, client: &str) -> bool {
    let lines = gate.log_lines();
    let is_its = |line: &serde_json::Value| line["target"] == "session" && line["client"] == client;
    lines.iter().any(is_its)
}

/// A customer relays by this front, a stranger does not, and the log has the two and not the front.
fn is_transparent(scene: &Scene, gate: &Process<'_>, port: u16) -> Result<()> {
    let reply = scene.relays(CUSTOMER, port)?;
    ensure!(reply.starts_with("250"), "customer by {port}: {reply}");
    let reply = scene.relays(STRANGER, port)?;
    ensure!(
        reply.starts_with("550 5.7.1"),
        "stranger by {port}: {reply}"
    );
    for client in [CUSTOMER, STRANGER] {
        wait::until("the record", SOON, || {
            has_session(gate, client).then_some(())
        })
        .with_context(|| gate.log())?;
    }
    ensure!(!has_session(gate, FRONT), "{}", gate.log());
    Ok(())
}

#[test]
fn haproxy_passes_clients_on_by_both_versions_and_its_checks_are_no_clients() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let gate = scene.gate()?;
    let backend = |name: &str, port: u16, send: &str| {
        format!(
            "frontend {name}\n  bind {PUBLIC}:{port}\n  default_backend {name}-gate\n\
             backend {name}-gate\n  option smtpchk EHLO check.example\n  \
             server gate {GATE}:25 {send} source {FRONT} check inter 200ms fall 1 rise 1\n"
        )
    };
    let text = format!(
        "global\n  maxconn 100\ndefaults\n  mode tcp\n  timeout connect 5s\n  \
         timeout client 30s\n  timeout server 30s\n  timeout check 3s\n{}{}",
        backend("one", 25, "send-proxy"),
        backend("two", 26, "send-proxy-v2"),
    );
    fs::write(scene.directory.path().join("haproxy.cfg"), text)?;
    let before = gate.metric("portcullis_sessions_total", "")?;
    let _haproxy = scene.start("haproxy", &["-db", "-f", "haproxy.cfg"], 25)?;
    let headers = |result: &str| {
        let label = format!("result=\"{result}\"");
        gate.metric("portcullis_proxy_headers_total", &label)
    };
    let checked = || headers("local").ok().filter(|count| *count >= 8.0);
    wait::until("a few checks", SOON, checked).with_context(|| gate.log())?;
    for port in [25, 26] {
        is_transparent(&scene, &gate, port)?;
    }
    // A connect to see whether HAProxy listens was passed on as well.
    let clients = headers("client")?;
    let sessions = gate.metric("portcullis_sessions_total", "")? - before;
    ensure!(
        sessions <= clients,
        "{sessions} sessions of {clients} clients"
    );
    ensure!(headers("bad")? + headers("late")? == 0.0, "{}", gate.log());
    Ok(())
}

#[test]
fn a_mail_proxy_of_nginx_passes_clients_on_by_a_header_or_by_xclient() -> Result<()> {
    const MODULE: &str = "/usr/lib/nginx/modules/ngx_mail_module.so";
    if !root() {
        return Ok(());
    }
    ensure!(Path::new(MODULE).exists(), "{MODULE} (cargo xtask setup)");
    let scene = Scene::new()?;
    let gate = scene.gate()?;
    let oracle = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    // nginx asks an HTTP server where each session goes: itself.
    let location = |name: &str, port: u16| {
        format!(
            "location /{name} {{ add_header Auth-Status OK; add_header Auth-Server {GATE}; \
             add_header Auth-Port {port}; return 204; }}\n"
        )
    };
    let server = |port: u16, name: &str, more: &str| {
        format!(
            "server {{ listen {PUBLIC}:{port}; protocol smtp; smtp_auth none; \
             auth_http {oracle}/{name}; proxy_pass_error_message on; {more} }}\n"
        )
    };
    let text = format!(
        "load_module {MODULE};\ndaemon off;\nuser nobody nogroup;\nworker_processes 1;\n\
         pid nginx.pid;\nerror_log stderr warn;\nevents {{ worker_connections 256; }}\n\
         http {{\naccess_log off;\nclient_body_temp_path body; proxy_temp_path proxy;\n\
         fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
         server {{ listen {oracle};\n{}{} }}\n}}\n\
         mail {{\nserver_name nginx.example;\n{}{}}}\n",
        location("header", 25),
        location("xclient", PASSED_ON_BY_XCLIENT),
        server(25, "header", "xclient off; proxy_protocol on;"),
        server(26, "xclient", "xclient on;"),
    );
    fs::write(scene.directory.path().join("nginx.conf"), text)?;
    let prefix = format!("{}/", scene.directory.path().display());
    let arguments = ["-p", &prefix, "-c", "nginx.conf", "-e", "stderr"];
    let _nginx = scene.start("nginx", &arguments, 25)?;
    is_transparent(&scene, &gate, 25)?;
    ensure!(gate.metric("portcullis_xclient_total", "")? == 0.0);
    is_transparent(&scene, &gate, 26)?;
    let named = gate.metric("portcullis_xclient_total", "result=\"client\"")?;
    ensure!(named == 2.0, "{named}");
    Ok(())
}
