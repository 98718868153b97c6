//! Fragments as Linux reassembles them: bytes of a frame after the end of its packet are cut off
//! first. So a listed source must not connect by a first fragment that ends before TCP, with
//! another protocol in the bytes after its end.

use std::time::Duration;

use anyhow::{Result, ensure};
use portcullis_tests::{root, wait};

use crate::scene::{GATE6, HONEST6, LISTED6, Scene};

/// Sends a SYN to port 25 in two fragments, the first of which ends before the second of two
/// extension headers. Prints whether it was answered.
const SYN: &str = r#"
import select, socket, struct, sys, time
gate, port = sys.argv[1], int(sys.argv[4])
source, destination = (socket.inet_pton(socket.AF_INET6, text) for text in sys.argv[2:4])
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
    // Makes the neighbours known, so that no packet waits for them. On a busy machine the first
    // solicitation takes longer than a connection may.
    let known = || (scene.reaches(LISTED6, 25) && scene.reaches(HONEST6, 25)).then_some(());
    wait::until("the neighbours to be known", Duration::from_secs(10), known)?;
    let gate = &scene.gate_hardware_address()?;
    let is_answered =
        |source: &str, port: &str| scene.is_answered(SYN, &[gate, source, GATE6, port]);
    ensure!(is_answered(LISTED6, "40001")?, "Linux puts it together");
    let _filter = scene.attach(&scene.settings())?;
    ensure!(!is_answered(LISTED6, "40002")?, "a listed source");
    ensure!(is_answered(HONEST6, "40003")?, "an honest source");
    let wan = &scene.status().interfaces[0];
    ensure!(wan.dropped.listed == 1 && wan.hidden == 2, "{wan:?}");
    Ok(())
}
