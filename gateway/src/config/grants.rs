//! `[grants]`: addresses that may relay for a while, because their user has logged in elsewhere
//! (POP-before-SMTP) or an operator says so.
//!
//! Without the table there are no grants, and no socket at which one could be asked for.

mod pattern;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::keys::{Absent, DAY, Form, Key, KeyTable, SECOND, count, duration, text};
use super::section::Section;

pub use pattern::{Login, LoginPattern};

/// As many as the map of the filter has room for.
const MAX: u64 = 65_536;
/// Each has a thread.
const FOLLOWED_MAX: usize = 8;
const HALF_AN_HOUR: Duration = Duration::from_secs(1_800);

pub(super) static KEYS: KeyTable = KeyTable {
    header: "[grants]",
    about: "POP-before-SMTP: an address from which a user has logged in at the POP or IMAP server, \
            or that `portcullis grant` names, may relay for a while. The filter passes it, unless \
            it is on a hard drop list. Grants are for one address, of IPv6 too. They are kept in \
            `state_dir`.",
    keys: &[
        Key::new(
            "time",
            duration(HALF_AN_HOUR, SECOND..=DAY),
            "How long a grant holds. Another login begins the time again.",
        )
        .at_start(),
        Key::new(
            "max",
            count("grants", MAX, 1..=MAX),
            "How many grants there may be. Beyond it none is added, which is logged and counted.",
        )
        .at_start(),
        Key::new(
            "follow",
            Form::Tables(&FOLLOW),
            "The logs that tell of logins. At most 8.",
        )
        .at_start(),
    ],
    later: &[],
};

static FOLLOW: KeyTable = KeyTable {
    header: "[[grants.follow]]",
    about: "A log whose lines tell who has logged in, from which address. The gate reads what is \
            appended after its start.",
    keys: &[
        Key::new(
            "file",
            text("a path, or `-` for the standard input", Absent::Required),
            "The log: a file, which may be rotated or truncated, or a FIFO. The user that the gate \
             becomes has to be able to read it, also after a rotation.",
        )
        .see(&["user"])
        .at_start(),
        Key::new(
            "pattern",
            text(
                "`dovecot`, or a regular expression with a group named `ip`",
                Absent::Is("dovecot"),
            ),
            "Which lines tell of a login, and where the address is in them; a group named `user` \
             is logged with the grant. Anchor it with `^`, name the tag of the program, and let \
             nothing that a client chooses, such as a user name, match before the address.",
        )
        .at_start(),
    ],
    later: &[],
};

/// `[grants]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    /// How long a grant holds.
    pub time: Duration,
    /// How many there may be.
    pub max: usize,
    /// The logs that tell of logins.
    pub follow: Vec<Follow>,
}

/// A log that tells of logins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    /// Where it is read.
    pub file: Followed,
    /// Which lines tell of a login.
    pub pattern: LoginPattern,
}

/// Where a log is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// The standard input.
    StandardInput,
    /// A file or a FIFO.
    Path(PathBuf),
}

impl Grants {
    /// Whether a client of a network can have this address, and so a grant: not loopback,
    /// multicast, broadcast or the unspecified address.
    pub fn may_have(address: IpAddr) -> bool {
        let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
        !(address.is_loopback()
            || address.is_multicast()
            || address.is_unspecified()
            || is_broadcast)
    }

    /// Reads the table; `None` if there is none.
    pub(super) fn read(mut s: Section<'_, '_>) -> Option<Grants> {
        if !s.is_given() {
            return None;
        }
        let document = s.document;
        let time = s.duration("time");
        let max = s.count("max") as usize;
        let mut follow: Vec<Follow> = Vec::new();
        for (number, mut s) in s.tables("follow").into_iter().enumerate() {
            if number == FOLLOWED_MAX {
                document.error(&s.span, format!("more than {FOLLOWED_MAX} logs"));
            }
            let file = s.text("file", |file| {
                let file = match file {
                    "-" => Followed::StandardInput,
                    "" => return Err("empty".to_owned()),
                    file => Followed::Path(document.resolve(file)),
                };
                let is_known = follow.iter().any(|other| other.file == file);
                if is_known {
                    return Err("it is followed already".to_owned());
                }
                Ok(file)
            });
            let pattern = s.text("pattern", LoginPattern::parse);
            s.finish();
            if let (Some(file), Some(pattern)) = (file, pattern) {
                follow.push(Follow {
                    file: file.into_inner(),
                    pattern: pattern.into_inner(),
                });
            }
        }
        s.finish();
        Some(Grants { time, max, follow })
    }
}
