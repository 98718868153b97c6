//! Attempts to relay through the gate, in the forms that open-relay testers use.

use std::io;

use super::honest::Client;
use super::scene::{DOMAIN, HOSTNAME, Scene};

/// `HOST` stands for the gate's name, `LOCAL` for its own domain, `IP` for its address.
const RECIPIENTS: [&str; 18] = [
    "user@victim.example",
    "user%victim.example@[IP]",
    "user%victim.example@HOST",
    "user%victim.example@LOCAL",
    "\"user@victim.example\"@LOCAL",
    "\"user%victim.example\"@LOCAL",
    "\"user@victim.example\"",
    "user@victim.example@[IP]",
    "user@victim.example@LOCAL",
    "user@victim.example@",
    "@[IP]:user@victim.example",
    "@HOST:user@victim.example",
    "@LOCAL:user@victim.example",
    "victim.example!user",
    "victim.example!user@[IP]",
    "victim.example!user@LOCAL",
    "IMCEASMTP-user+40victim+2Eexample@LOCAL",
    "user@[192.0.2.99]",
];

/// A stranger, the gate's own domain, its own name, the null path.
const SENDERS: [&str; 4] = ["spam@stranger.example", "user@LOCAL", "spam@HOST", ""];

/// The results of the attempts.
#[derive(Clone, Debug, Default)]
pub(super) struct Abuse {
    pub(super) tried: u32,
    pub(super) refused: u32,
    /// The attempts that were not refused, with their replies.
    pub(super) wrong: Vec<String>,
}

/// Tries every recipient with every sender.
pub(super) fn attempt(scene: &Scene) -> io::Result<Abuse> {
    let ip = match scene.address().ip() {
        std::net::IpAddr::V4(address) => address.to_string(),
        std::net::IpAddr::V6(address) => format!("IPv6:{address}"),
    };
    let real = |form: &str| {
        form.replace("[IP]", &format!("[{ip}]"))
            .replace("HOST", HOSTNAME)
            .replace("LOCAL", DOMAIN)
    };
    let mut abuse = Abuse::default();
    for sender in SENDERS.map(real) {
        let mut client = Client::connect(scene)?;
        client.expect(220)?;
        client.say("EHLO stranger.example\r\n")?;
        client.expect(250)?;
        client.say(&format!("MAIL FROM:<{sender}>\r\n"))?;
        client.expect(250)?;
        for recipient in RECIPIENTS.map(real) {
            client.say(&format!("RCPT TO:<{recipient}>\r\n"))?;
            let (code, line) = client.reply()?;
            abuse.tried += 1;
            // Refused by the policy, or by SMTP because it is not an address.
            if line.starts_with("550 5.7.1 ") || code == 501 || code == 553 {
                abuse.refused += 1;
            } else {
                abuse
                    .wrong
                    .push(format!("<{sender}> to <{recipient}>: {line}"));
            }
        }
    }
    Ok(abuse)
}
