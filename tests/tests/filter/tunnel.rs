//! An interface without an Ethernet header, a TUN device: what is listed does not come in by a
//! tunnel, either; and what the program cannot read is not said to be filtered.

use std::fs;
use std::io::{self, BufRead as _, BufReader, ErrorKind};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use portcullis::config::{Role, XdpMode};
use portcullis::filter::Error;
use portcullis::netns::Namespace;
use portcullis_tests::process::binary;
use portcullis_tests::root;

use crate::scene::{
    GATE4, HONEST4, HONEST6, LISTED4, LISTED6, PERMITTED4, Scene, dropped, has_program, knock,
};

/// Two TUN devices, one in each namespace, with what is written into the one coming out of the
/// other.
const TUNNEL: &str = r#"
import ctypes, fcntl, os, select, struct, sys
TUNSETIFF, TUNSETLINK, IFF_TUN_NO_PI = 0x400454ca, 0x400454cd, 0x1001
def open_tun(name, hardware_type):
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
    if hardware_type:
        fcntl.ioctl(tun, TUNSETLINK, hardware_type)
    return tun
def enter(namespace):
    with open("/run/netns/" + namespace) as file:
        assert ctypes.CDLL(None).setns(file.fileno(), 0x40000000) == 0
gate, outside, hardware_type = sys.argv[1:]
enter(gate)
ends = [open_tun("wan", int(hardware_type))]
enter(outside)
ends.append(open_tun("lan", 0))
print("ready", flush=True)
while True:
    readable = select.select([0, *ends], [], [])[0]
    if 0 in readable:
        break
    for end in readable:
        try:
            os.write(ends[end == ends[0]], os.read(end, 65536))
        except OSError:
            pass  # One of them is down.
"#;

/// A tunnel that is there for as long as this is.
struct Tunnel {
    process: Child,
    _until_closed: ChildStdin,
}

impl Tunnel {
    fn dig(gate: &Namespace, outside: &Namespace, hardware_type: u16) -> io::Result<Self> {
        let mut process = Command::new("python3")
            .args(["-c", TUNNEL, gate.name(), outside.name()])
            .arg(hardware_type.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let [input, output] = [process.stdin.is_some(), process.stdout.is_some()];
        assert!(input && output, "both are piped");
        let mut line = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let until_closed = process.stdin.take().ok_or(ErrorKind::BrokenPipe)?;
        if line.trim() != "ready" {
            process.kill()?;
            return Err(io::Error::other("no tunnel"));
        }
        Ok(Self {
            process,
            _until_closed: until_closed,
        })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A scene whose gate and outside are joined by a tunnel, and its settings.
fn scene() -> Result<(Scene, Tunnel)> {
    let mut tunnel = None;
    let scene = Scene::joined(|scene| {
        tunnel = Some(Tunnel::dig(&scene.gate, &scene.outside, 0)?);
        scene.gate.up("wan")?;
        scene.outside.up("lan")?;
        scene.give_addresses()
    })?;
    Ok((scene, tunnel.context("a tunnel")?))
}

#[test]
fn listed_sources_do_not_come_in_by_a_tunnel() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let (scene, _tunnel) = scene()?;
    for source in [LISTED4, LISTED6, HONEST4] {
        ensure!(scene.reaches(source, 25), "the tunnel does not work");
    }
    let mut settings = scene.settings();
    let refused = scene.attach(&settings).err();
    ensure!(
        matches!(refused, Some(Error::NoDriverMode { .. })),
        "{refused:?}"
    );
    settings.xdp_mode = XdpMode::Generic;
    let _filter = scene.attach(&settings)?;
    for source in [LISTED4, LISTED6] {
        ensure!(!scene.reaches(source, 25), "{source} is on a drop list");
        ensure!(scene.reaches(source, 587), "port 587 is not filtered");
    }
    for source in [HONEST4, HONEST6, PERMITTED4] {
        ensure!(scene.reaches(source, 25), "{source} may come in");
    }
    let status = scene.status();
    let wan = &status.interfaces[0];
    ensure!(
        (wan.link, wan.xdp_mode, wan.attached) == (Some("ip"), "generic", true),
        "{wan:?}"
    );
    ensure!(dropped(&status, "spammers") == 2, "{status:?}");
    ensure!(
        wan.permitted > 0 && wan.passed > wan.permitted && wan.other > 0,
        "{wan:?}"
    );
    Ok(())
}

#[test]
fn a_customer_behind_a_tun_device_is_told_that_it_may_not_send() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let (scene, _tunnel) = scene()?;
    let mut settings = scene.settings();
    settings.xdp_mode = XdpMode::Generic;
    settings.interfaces[0].role = Role::Customer;
    let _filter = scene.attach(&settings)?;
    for source in [HONEST4, HONEST6] {
        let refused = scene.outside.run(|| knock(source, 25))?;
        let kind = refused.map(|_| ()).map_err(|error| error.kind());
        ensure!(
            kind == Err(ErrorKind::ConnectionRefused),
            "{source}: {kind:?}"
        );
    }
    ensure!(scene.reaches(PERMITTED4, 25) && scene.reaches(HONEST4, 587));
    let wan = &scene.status().interfaces[0];
    ensure!((wan.dropped.customer, wan.resets) == (0, 2), "{wan:?}");
    Ok(())
}

#[test]
fn a_cookie_comes_out_of_a_tun_device() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let (scene, _tunnel) = scene()?;
    let always = || fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2");
    scene.gate.run(always)??;
    let mut settings = scene.settings();
    settings.xdp_mode = XdpMode::Generic;
    let _filter = scene.attach(&settings)?;
    for source in [HONEST4, HONEST6] {
        ensure!(scene.reaches(source, 25), "{source} does not connect");
    }
    let wan = &scene.status().interfaces[0];
    ensure!(wan.syn_cookies >= 2, "{wan:?}");
    Ok(())
}

#[test]
fn an_interface_that_the_program_cannot_read_is_refused_and_doctor_says_why() -> Result<()> {
    if !root() {
        return Ok(());
    }
    // 803: as a WLAN card in monitor mode.
    let (gate, outside) = (Namespace::create("gate")?, Namespace::create("outside")?);
    let _tunnel = Tunnel::dig(&gate, &outside, 803)?;
    gate.up("wan")?;
    gate.address("wan", &format!("{GATE4}/24"))?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("portcullis.toml");
    let pin_path = format!(
        "/sys/fs/bpf/portcullis-test-{}-unreadable",
        std::process::id()
    );
    let text = format!(
        "[filter]\ninterfaces = [{{ name = \"wan\" }}]\nxdp_mode = \"generic\"\npin_path = \"{pin_path}\"\n"
    );
    fs::write(&file, text)?;
    let commands = [["filter", "attach"].as_slice(), &["doctor"]];
    for arguments in commands {
        let output = gate
            .command(binary()?)
            .args(arguments)
            .arg("-c")
            .arg(&file)
            .output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let reason = "(hardware type 803) begin with neither Ethernet nor IP";
        ensure!(
            output.status.code() == Some(1) && said.contains("wan") && said.contains(reason),
            "{arguments:?}: {}\n{said}",
            output.status
        );
        ensure!(!said.contains("in place on"), "{said}");
    }
    ensure!(!has_program(&gate, "wan")?, "it was put there all the same");
    ensure!(
        !fs::exists(pin_path)?,
        "a refused start leaves nothing behind"
    );
    Ok(())
}

#[test]
fn doctor_says_where_customers_hear_nothing() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let gate = Namespace::create("gate")?;
    // Its reader wants to be told what each packet is, and what the kernel says of an answer is
    // wrong.
    let made = gate
        .command("ip")
        .args(["tuntap", "add", "dev", "wan", "mode", "tun", "pi"])
        .status()?;
    ensure!(made.success(), "no TUN device");
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("portcullis.toml");
    let doctor = |refusal: &str| -> Result<String> {
        let text = format!(
            "[filter]\ninterfaces = [{{ name = \"wan\", role = \"customer\" }}]\nxdp_mode = \"generic\"\n\
             customer_refusal = \"{refusal}\"\n"
        );
        fs::write(&file, text)?;
        let mut doctor = gate.command(binary()?);
        let output = doctor.arg("doctor").arg("-c").arg(&file).output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let words = "customers are dropped there instead of being answered";
    ensure!(doctor("reset")?.contains(words), "nothing is said");
    ensure!(!doctor("drop")?.contains(words), "nobody asked for answers");
    Ok(())
}
