//! VLAN tags as Linux handles them: it removes priority tags, however many, one after the other,
//! and answers the packet. So a listed source must not connect by adding tags.

use anyhow::{Result, ensure};
use portcullis_tests::root;

use crate::scene::{GATE4, HONEST4, LISTED4, PERMITTED4, Scene};

/// Sends a SYN to port 25 after this number of tags of VLAN 0. Prints whether it was answered.
const SYN: &str = r#"
import select, socket, struct, sys, time
gate, tags, port = sys.argv[1], *map(int, sys.argv[4:])
source, destination = map(socket.inet_aton, sys.argv[2:4])
def checksum(octets):
    total = sum(struct.unpack("!%dH" % (len(octets) // 2), octets))
    while total > 0xffff:
        total = (total & 0xffff) + (total >> 16)
    return total ^ 0xffff
tcp = lambda sum: struct.pack("!HHLLBBHHH", port, 25, 1, 0, 0x50, 2, 65535, sum, 0)
pseudo = source + destination + struct.pack("!HH", 6, 20)
ip = lambda sum: struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, sum) + source + destination
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
link.bind(("lan", 0x0800))
ours = link.getsockname()[4]
frame = bytes.fromhex(gate.replace(":", "")) + ours + b"\x81\0\0\0" * tags + b"\x08\0"
frame += ip(checksum(ip(0))) + tcp(checksum(pseudo + tcp(0)))
link.send(frame)
until = time.monotonic() + 0.5
while select.select([link], [], [], max(0, until - time.monotonic()))[0]:
    answer = link.recv(65536)
    is_ours = answer[26:34] == destination + source and answer[36:38] == struct.pack("!H", port)
    if is_ours and answer[47] == 0x12:
        print("answered")
        break
"#;

/// Whether a SYN from this source with this number of tags is answered.
fn is_answered(scene: &Scene, gate: &str, source: &str, tags: u16) -> Result<bool> {
    let [tags, port] = [tags.to_string(), (40_000 + tags).to_string()];
    scene.is_answered(SYN, &[gate, source, GATE4, &tags, &port])
}

#[test]
fn tags_that_linux_takes_off_bring_no_listed_source_in() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let gate = &scene.gate_hardware_address()?;
    for tags in [3, 9] {
        let answered = is_answered(&scene, gate, LISTED4, tags)?;
        ensure!(answered, "Linux looks behind {tags} tags");
    }
    let _filter = scene.attach(&scene.settings())?;
    for tags in [1, 3, 8, 9] {
        let answered = is_answered(&scene, gate, LISTED4, tags)?;
        ensure!(!answered, "a listed source behind {tags} tags");
    }
    for (source, tags) in [(HONEST4, 3), (HONEST4, 8), (PERMITTED4, 8)] {
        let answered = is_answered(&scene, gate, source, tags)?;
        ensure!(answered, "{source} behind {tags} tags");
    }
    let answered = is_answered(&scene, gate, PERMITTED4, 9)?;
    ensure!(!answered, "behind nine tags no source is permitted");
    let wan = &scene.status().interfaces[0];
    ensure!(wan.dropped.vlan_tags >= 2, "{wan:?}");
    ensure!(wan.dropped.listed >= 3 && wan.permitted > 0, "{wan:?}");
    Ok(())
}
