//! The scenarios: what each client of a simulated worker does, and what is counted by.
//!
//! The load is that of `bench relay` where there is a load: messages of 1 KiB, one message per
//! connection or connections that are kept, 16 at a time.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Connections at a time.
const AT_ONCE: u32 = 16;
/// Idle sessions at a time.
const IDLE_AT_ONCE: u32 = 500;
/// How long an idle session is silent after its EHLO.
const SILENCE: Duration = Duration::from_secs(60);
/// Recipients of a transaction, where recipients are counted.
const RECIPIENTS: u32 = 50;
/// Octets of a message.
const MESSAGE_LEN: usize = 1024;

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// One message per connection, accepted and discarded
    Discard,
    /// Messages on connections that are kept, accepted and discarded
    DiscardKept,
    /// One message per connection, passed on to a next hop whose connections are kept
    Through,
    /// Messages on connections that are kept, passed on to such a next hop
    ThroughKept,
    /// EHLO, a minute of silence, QUIT
    Idle,
    /// A client from elsewhere that names a recipient elsewhere and is refused
    Stranger,
    /// RCPT after RCPT: a command, a decision of the policy, a reply
    Recipients,
    /// NOOP after NOOP: a command and a reply
    Noop,
}

/// Where clients come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The networks of `[relay]`.
    Local,
    /// Anywhere else.
    Elsewhere,
}

/// A command or a message, and the code of the reply that it has to get.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) send: Vec<u8>,
    pub(crate) code: u16,
    /// The client waits before it sends.
    pub(crate) after: Duration,
}

impl Exchange {
    fn new(send: impl Into<Vec<u8>>, code: u16) -> Self {
        let (send, after) = (send.into(), Duration::ZERO);
        Self { send, code, after }
    }
}

/// What every client of a run does.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) origin: Origin,
    /// Clients, one after another on each of `at_once` places.
    pub(crate) clients: u32,
    pub(crate) at_once: u32,
    opening: Vec<Exchange>,
    repeated: Vec<Exchange>,
    times: u32,
    quit: Exchange,
}

impl Script {
    /// The exchange at this place; `None` after the last.
    pub(crate) fn exchange(&self, place: usize) -> Option<&Exchange> {
        let Some(after_opening) = place.checked_sub(self.opening.len()) else {
            return self.opening.get(place);
        };
        let repeated = self.repeated.len() * self.times as usize;
        if after_opening < repeated {
            return self.repeated.get(after_opening % self.repeated.len());
        }
        (after_opening == repeated).then_some(&self.quit)
    }
}

impl Scenario {
    /// What instructions are counted by.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Discard | Self::Through | Self::Idle | Self::Stranger => "session",
            Self::DiscardKept | Self::ThroughKept => "message",
            Self::Recipients => "recipient",
            Self::Noop => "command",
        }
    }

    /// The name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What it is, for the report.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Discard => "discard, one message per connection",
            Self::DiscardKept => "discard, connections kept",
            Self::Through => "cut-through, one message per connection",
            Self::ThroughKept => "cut-through, connections kept",
            Self::Idle => "EHLO, 60 s of silence, QUIT",
            Self::Stranger => "refused stranger",
            Self::Recipients => "accepted recipient (RCPT)",
            Self::Noop => "NOOP",
        }
    }

    /// Whether messages go to a next hop.
    pub(crate) fn is_through(self) -> bool {
        matches!(self, Self::Through | Self::ThroughKept)
    }

    /// Messages that arrive at the next hop in a run of this many units.
    pub(crate) fn messages(self, units: u32) -> u32 {
        if self.is_through() { units } else { 0 }
    }

    /// What clients do in a run of this many units, which [`round`](Self::round) has made even.
    pub(crate) fn script(self, units: u32) -> Script {
        let domain = if self.is_through() {
            "through.example"
        } else {
            "discard.example"
        };
        let mail = Exchange::new("MAIL FROM:<sender@client.example>\r\n", 250);
        let rcpt = Exchange::new(format!("RCPT TO:<recipient@{domain}>\r\n"), 250);
        let message = vec![
            mail.clone(),
            rcpt.clone(),
            Exchange::new("DATA\r\n", 354),
            Exchange::new(content(), 250),
        ];
        let mut script = Script {
            origin: Origin::Local,
            clients: units,
            at_once: AT_ONCE,
            // The greeting comes unasked.
            opening: vec![
                Exchange::new("", 220),
                Exchange::new("EHLO client.example\r\n", 250),
            ],
            repeated: message,
            times: 1,
            quit: Exchange::new("QUIT\r\n", 221),
        };
        let kept = |script: &mut Script, units_per_time: u32| {
            script.clients = AT_ONCE;
            script.times = units / AT_ONCE / units_per_time;
        };
        match self {
            Self::Discard | Self::Through => {}
            Self::DiscardKept | Self::ThroughKept => kept(&mut script, 1),
            Self::Idle => {
                script.at_once = IDLE_AT_ONCE;
                script.repeated.clear();
                script.quit.after = SILENCE;
            }
            Self::Stranger => {
                script.origin = Origin::Elsewhere;
                let elsewhere = "RCPT TO:<recipient@elsewhere.example>\r\n";
                script.repeated = vec![mail, Exchange::new(elsewhere, 550)];
            }
            Self::Recipients => {
                script.repeated = vec![rcpt; RECIPIENTS as usize];
                script.repeated.insert(0, mail);
                script.repeated.push(Exchange::new("RSET\r\n", 250));
                kept(&mut script, RECIPIENTS);
            }
            Self::Noop => {
                script.repeated = vec![Exchange::new("NOOP\r\n", 250)];
                kept(&mut script, 1);
            }
        }
        script
    }

    /// The next number of units that divides evenly among the clients.
    pub(crate) fn round(self, units: u32) -> u32 {
        let step = match self {
            Self::Recipients => AT_ONCE * RECIPIENTS,
            Self::Idle => IDLE_AT_ONCE,
            _ => AT_ONCE,
        };
        units.next_multiple_of(step)
    }
}

/// A message as DATA carries it, its end included.
fn content() -> Vec<u8> {
    let header = "From: sender@client.example\r\nSubject: bench\r\n\r\n";
    let line = "a line of a message, as long as people write them when they write lines\r\n";
    let mut content = header.to_owned();
    while content.len() < MESSAGE_LEN {
        content.push_str(line);
    }
    content.push_str(".\r\n");
    content.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchanges(script: &Script) -> usize {
        (0..)
            .take_while(|place| script.exchange(*place).is_some())
            .count()
    }

    #[test]
    fn a_kept_connection_carries_its_share_of_the_messages() {
        let script = Scenario::DiscardKept.script(160);
        assert_eq!((script.clients, exchanges(&script)), (16, 2 + 4 * 10 + 1));
    }

    #[test]
    fn a_session_without_messages_is_greeting_ehlo_and_quit() {
        let script = Scenario::Idle.script(500);
        assert_eq!(exchanges(&script), 3);
    }
}
