//! Fragments as Linux puts them together: what a frame has behind the end of its packet is cut off
//! before. So a listed source must not get in by a first fragment that ends in front of TCP, with
//! another protocol behind its end.

use std::time::Duration;

use anyhow::{Result, ensure};
use portcullis_tests::{root, wait};

use crate::scene::{GATE6, HONEST6, LISTED6, Scene};

/// Sends a SYN to port 25 in two fragments, the first of which ends in front of the second of two
/// extension headers; says whether it was answered.
const SYN: &str = r#"
import select, socket, struct, sys, time
gate, source, destination, port = sys.argv[1], *map(lambda a: socket.inet_pton(socket.AF_INET6, a), sys.argv[2:4]), int(sys.argv[4])
def checksum(octets):
    total = sum(struct.unpack("!%dH" % (len(octets) // 2), octets))
    while total > 0xffff:
        total = (total & 0xffff) + (total >> 16)
    return total ^ 0xffff
TCP, UDP, FRAGMENT, OPTIONS = 6, 17, 44, 60
tcp = lambda sum: struct.pack("!HHLLBBHHH", port, 25, 1, 0, 0x50, 2, 65535, sum, 0)
segment = tcp(checksum(source + destination + struct.pack("!LL", 20, TCP) + tcp(0)))
ip = lambda length: struct.pack("!LHBB", 0x60000000, length, FRAGMENT, 64) + source + destination
fragment = lambda offset, more: struct.pack("!BBHL", OPTIONS, 0, offset << 3 | more, port)
options = lambda following: bytes([following, 0, 1, 4, 0, 0, 0, 0])
first = ip(16) + fragment(0, 1) + options(OPTIONS)
behind = options(UDP) + struct.pack("!HHHH", 53, 53, 8, 0)
second = ip(8 + 8 + len(segment)) + fragment(1, 0) + options(TCP) + segment
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86dd))
link.bind(("lan", 0x86dd))
header = bytes.fromhex(gate.replace(":", "")) + link.getsockname()[4] + b"\x86\xdd"
link.send(header + first + behind)
link.send(header + second)
until = time.monotonic() + 0.5
while select.select([link], [], [], max(0, until - time.monotonic()))[0]:
    answer = link.recv(65536)
    if answer[20] == TCP and answer[56:58] == struct.pack("!H", port) and answer[67] == 0x12:
        print("answered")
        break
"#;

#[test]
fn a_first_fragment_with_another_protocol_behind_its_end_brings_no_listed_source_in() -> Result<()>
{
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    // The neighbours are known, so that nothing else is waited for. On a busy machine the first
    // solicitation takes longer than a connection may.
    let known = || (scene.reaches(LISTED6, 25) && scene.reaches(HONEST6, 25)).then_some(());
    wait::until("the neighbours to be known", Duration::from_secs(10), known)?;
    let gate = &scene.gate_hardware_address()?;
    let is_answered = |source: &str, port: &str| -> Result<bool> {
        let mut sender = scene.outside.command("python3");
        let arguments = ["-c", SYN, gate, source, GATE6, port];
        let output = sender.args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}");
        Ok(output.stdout.starts_with(b"answered"))
    };
    ensure!(is_answered(LISTED6, "40001")?, "Linux puts it together");
    let _filter = scene.attach(&scene.settings())?;
    ensure!(!is_answered(LISTED6, "40002")?, "a listed source");
    ensure!(is_answered(HONEST6, "40003")?, "an honest source");
    let wan = &scene.status().interfaces[0];
    ensure!(wan.dropped.listed == 1 && wan.hidden == 2, "{wan:?}");
    Ok(())
}
