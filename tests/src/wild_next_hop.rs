//! Next hops that may answer anything, for fuzzing.
//!
//! A script is groups of octets with [`COMMAND`] between them; the octet after it says which
//! command the relay sends then.

use portcullis_smtp::client::{Client, ClientEvent, MailCommand, Sent};
use portcullis_smtp::data::Stuffer;
use portcullis_smtp::reply::Reply;
use portcullis_smtp::sasl::Mechanism;

/// Ends a group; the next octet is a command.
pub const COMMAND: u8 = 0xfe;

/// Octets of a reply's text that are kept.
const TEXT_LENGTH_MAX: usize = 1024;

/// Plays a script with the next hop's octets in one piece and one by one.
///
/// # Errors
/// Something that must hold whatever a next hop answers does not.
pub fn check(script: &[u8]) -> Result<(), String> {
    let whole = play(script, usize::MAX)?;
    let cut = play(script, 1)?;
    if whole == cut {
        Ok(())
    } else {
        Err(format!("{cut:#?} instead of {whole:#?}"))
    }
}

/// The replies and octets of a session.
type Played = (Vec<(Option<Sent>, Reply<'static>)>, Vec<u8>);

fn play(script: &[u8], cut: usize) -> Result<Played, String> {
    let mut client = Client::new();
    let mut out = Vec::new();
    let mut replies = Vec::new();
    let mut kept = Vec::new();
    for (index, group) in script.split(|&octet| octet == COMMAND).enumerate() {
        let answered = match group.split_first() {
            Some((command, rest)) if index > 0 => {
                send(&mut client, *command, &mut out);
                rest
            }
            _ => group,
        };
        for piece in answered.chunks(cut) {
            kept.extend_from_slice(piece);
            while take(&mut client, &mut kept, &mut replies)? {}
        }
    }
    if out
        .split_inclusive(|&octet| octet == b'\n')
        .any(|line| !line.ends_with(b"\r\n"))
    {
        return Err(format!("commands are no lines: {}", out.escape_ascii()));
    }
    Ok((replies, out))
}

/// Takes one event; false when there is no more.
fn take(
    client: &mut Client,
    kept: &mut Vec<u8>,
    replies: &mut Vec<(Option<Sent>, Reply<'static>)>,
) -> Result<bool, String> {
    let owed = client.replies_owed();
    let (used, event) = client.handle(kept);
    let (to, reply) = match event {
        ClientEvent::NeedInput => (None, None),
        ClientEvent::Malformed => {
            kept.clear();
            return Ok(false);
        }
        ClientEvent::Reply { to, reply } => (Some(to), Some(reply.into_owned())),
        ClientEvent::Unsolicited(reply) => (None, Some(reply.into_owned())),
    };
    kept.drain(..used);
    let Some(reply) = reply else {
        let bounded = kept.len() < 4096 && client.replies_owed() == owed;
        return if bounded {
            Ok(false)
        } else {
            Err(format!("{} octets are kept", kept.len()))
        };
    };
    let control = reply.text.chars().any(|c| c != '\n' && c.is_control());
    if control
        || reply.text.len() > TEXT_LENGTH_MAX
        || client.replies_owed() + usize::from(to.is_some()) != owed
    {
        return Err(format!("{reply:?} to {to:?}"));
    }
    replies.push((to, reply));
    Ok(true)
}

fn send(client: &mut Client, command: u8, out: &mut Vec<u8>) {
    let mail = MailCommand {
        path: "a@b.example",
        size: Some(10),
        body_8bit: true,
        smtputf8: true,
        ..MailCommand::default()
    };
    match command % 16 {
        0 => client.ehlo("gate.example", out),
        1 => client.helo("gate.example", out),
        2 => client.mail(&mail, out),
        3 => client.rcpt(
            "c@d.example",
            Some("NEVER"),
            Some("rfc822;c@d.example"),
            out,
        ),
        4 => client.data(out),
        5 => client.end_of_data(&mut Stuffer::new(), out),
        6 => client.bdat(0, false, out),
        7 => client.bdat(0, true, out),
        8 => client.rset(out),
        9 => client.starttls(out),
        10 => client.secured(),
        11 => _ = client.auth(Mechanism::Plain, Some(b"\0a\0b"), out),
        12 => client.auth_response(b"", out),
        13 => client.auth_cancel(out),
        14 => client.xclient(" ADDR=192.0.2.1", out),
        _ => client.quit(out),
    }
}
