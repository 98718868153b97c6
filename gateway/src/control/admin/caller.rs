//! Who sends a request, and whether that caller may change the gate.
//!
//! At the unix socket the kernel says who the peer is (`SO_PEERCRED`, unix(7)); at the HTTP address
//! a token does. The groups of a peer are those of the user database, as at a login, and the one
//! that its process has.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;

use nix::unistd::{self, Gid, Group, Uid};

use super::super::Error;
use crate::config::Admin;

/// Characters that a token has to have.
const TOKEN_MIN: usize = 16;
/// Bytes of a file that are read for it.
const TOKEN_MAX: u64 = 1_024;

/// Who sends a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// A process of this machine, at the unix socket, that is admitted.
    Peer {
        /// Its user.
        uid: u32,
        /// The name of that user, if it has one.
        name: Option<String>,
    },
    /// A client with the token.
    Token(SocketAddr),
    /// A client with another token.
    WrongToken(SocketAddr),
    /// A client without a token.
    Unknown(SocketAddr),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer { uid, name: None } => write!(f, "uid {uid}"),
            Self::Peer {
                uid,
                name: Some(name),
            } => write!(f, "{name} (uid {uid})"),
            Self::Token(from) => write!(f, "token from {from}"),
            Self::WrongToken(from) => write!(f, "wrong token from {from}"),
            Self::Unknown(from) => write!(f, "{from}"),
        }
    }
}

impl Caller {
    /// Whether it may change the gate, and read what is private.
    pub(super) fn is_trusted(&self) -> bool {
        matches!(self, Self::Peer { .. } | Self::Token(_))
    }
}

/// Who may change this gate.
#[derive(Clone, Default)]
pub(in super::super) struct Access {
    /// Users besides root and the gate's own.
    uids: Vec<u32>,
    gids: Vec<u32>,
    /// The user and the group that a user namespace shows in place of all that it does not map.
    unmapped: (Option<u32>, Option<u32>),
    token: Option<Token>,
    /// For the advice in a refusal.
    socket: Option<PathBuf>,
}

/// The secret of those that change the gate over HTTP. It is never printed.
#[derive(Clone)]
struct Token(String);

impl Access {
    /// Looks the users and groups up and reads the token. To be done with all privileges: the file
    /// may be root's alone.
    ///
    /// # Errors
    /// A user or group that does not exist; a token that cannot be used.
    pub(in super::super) fn of(admin: &Admin) -> Result<Self, Error> {
        let uids = admin.users.iter().map(|name| uid_of(name));
        let gids = admin.groups.iter().map(|name| gid_of(name));
        let token = admin.token_file.as_deref().map(|path| {
            read_token(path).map_err(|error| Error::AdminToken {
                path: path.to_owned(),
                error,
            })
        });
        Ok(Self {
            uids: uids.collect::<Result<_, _>>()?,
            gids: gids.collect::<Result<_, _>>()?,
            unmapped: (unmapped("uid"), unmapped("gid")),
            token: token.transpose()?,
            socket: admin.socket.clone(),
        })
    }

    /// The group that the socket is given to, if those that it admits are one group.
    pub(super) fn only_group(&self) -> Option<u32> {
        match (&*self.uids, &*self.gids) {
            ([], [group]) => Some(*group),
            _ => None,
        }
    }

    /// Whether users besides root and the gate's own are admitted.
    pub(super) fn admits_others(&self) -> bool {
        !(self.uids.is_empty() && self.gids.is_empty())
    }

    /// The peer, if it is admitted. May ask the user database: blocks.
    ///
    /// # Errors
    /// Who is not admitted.
    pub(super) fn admit(&self, uid: u32, gid: u32) -> Result<Caller, Caller> {
        let user = unistd::User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let is_admitted = self.unmapped.0 != Some(uid)
            && (uid == 0
                || uid == unistd::geteuid().as_raw()
                || self.uids.contains(&uid)
                || (self.gids.contains(&gid) && self.unmapped.1 != Some(gid))
                || user.as_ref().is_some_and(|user| self.has_group_of(user)));
        let peer = Caller::Peer {
            uid,
            name: user.map(|user| user.name),
        };
        if is_admitted { Ok(peer) } else { Err(peer) }
    }

    fn has_group_of(&self, user: &unistd::User) -> bool {
        if self.gids.is_empty() {
            return false;
        }
        let name = std::ffi::CString::new(user.name.as_str()).unwrap_or_default();
        let groups = unistd::getgrouplist(&name, user.gid).unwrap_or_default();
        let mut groups = groups.into_iter().map(Gid::as_raw);
        groups.any(|group| self.gids.contains(&group))
    }

    /// The client at the HTTP address, by what its `Authorization` header says.
    pub(super) fn client(&self, from: SocketAddr, authorization: Option<&[u8]>) -> Caller {
        let Some(said) = authorization else {
            return Caller::Unknown(from);
        };
        let said = match said.split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token.trim_ascii(),
            _ => return Caller::WrongToken(from),
        };
        match &self.token {
            Some(token) if token.is(said) => Caller::Token(from),
            _ => Caller::WrongToken(from),
        }
    }

    /// Whether the caller may change the gate.
    ///
    /// # Errors
    /// Why not, and how it could.
    pub(super) fn permits_changes(&self, caller: &Caller) -> Result<(), String> {
        let why_not = match caller {
            caller if caller.is_trusted() => return Ok(()),
            Caller::WrongToken(_) if self.token.is_some() => {
                return Err("that is not the token in `admin_token_file`".to_owned());
            }
            Caller::Unknown(_) if self.token.is_some() => {
                "a change needs the header `Authorization: Bearer TOKEN`, with the token in \
                 `admin_token_file`"
            }
            _ => {
                "nothing can be changed at this address: set `admin_token_file` for it (on the \
                 loopback)"
            }
        };
        Err(match &self.socket {
            Some(socket) => format!("{why_not}, or use the socket {}", socket.display()),
            None => format!("{why_not}, or set `admin_socket`"),
        })
    }
}

impl Token {
    /// Compares without telling by its time how much of it was right.
    fn is(&self, said: &[u8]) -> bool {
        let token = self.0.as_bytes();
        let differs = token.iter().zip(said).fold(0, |sum, (a, b)| sum | (a ^ b));
        token.len() == said.len() && std::hint::black_box(differs) == 0
    }
}

/// The number that stands for all users (`uid`) or groups (`gid`) that this process's user
/// namespace does not map; `None` if it maps all (user_namespaces(7)).
fn unmapped(kind: &str) -> Option<u32> {
    let map = std::fs::read_to_string(format!("/proc/self/{kind}_map")).ok();
    let number = std::fs::read_to_string(format!("/proc/sys/kernel/overflow{kind}")).ok();
    unmapped_in(map.as_deref(), number.as_deref())
}

fn unmapped_in(map: Option<&str>, number: Option<&str>) -> Option<u32> {
    /// Of a kernel that is not told otherwise.
    const USUAL: u32 = 65_534;

    let is_all = |map: &str| map.split_whitespace().eq(["0", "0", "4294967295"]);
    if map.is_some_and(is_all) {
        return None;
    }
    let number = number.and_then(|number| number.trim().parse().ok());
    Some(number.unwrap_or(USUAL))
}

fn uid_of(name: &str) -> Result<u32, Error> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let user = unistd::User::from_name(name).ok().flatten();
    let user = user.ok_or_else(|| Error::NoSuchAccount {
        key: "admin_users",
        name: name.to_owned(),
    });
    user.map(|user| user.uid.as_raw())
}

fn gid_of(name: &str) -> Result<u32, Error> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let group = Group::from_name(name).ok().flatten();
    let group = group.ok_or_else(|| Error::NoSuchAccount {
        key: "admin_groups",
        name: name.to_owned(),
    });
    group.map(|group| group.gid.as_raw())
}

fn read_token(path: &Path) -> io::Result<Token> {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o007 != 0 {
        return Err(io::Error::other(
            "every user can open it; `chmod 640` it, or 600",
        ));
    }
    file.take(TOKEN_MAX + 1).read_to_string(&mut text)?;
    let token = text.trim();
    let is_one_word = token.bytes().all(|byte| byte.is_ascii_graphic());
    if token.len() < TOKEN_MIN || text.len() as u64 > TOKEN_MAX || !is_one_word {
        return Err(io::Error::other(
            "it has to hold one line of at least 16 printable ASCII characters, without a space; \
             `openssl rand -hex 32` makes one",
        ));
    }
    Ok(Token(token.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn with_token() -> Access {
        Access {
            token: Some(Token(TOKEN.to_owned())),
            ..Access::default()
        }
    }

    #[test]
    fn without_the_whole_token_nothing_is_changed_and_the_refusal_says_how() {
        let from: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let longer = format!("Bearer {TOKEN}0");
        let shorter = format!("Bearer {}", &TOKEN[1..]);
        let access = with_token();
        for said in [
            None,
            Some(&*longer),
            Some(&*shorter),
            Some("Basic x"),
            Some("Bearer "),
        ] {
            let caller = access.client(from, said.map(str::as_bytes));
            let why_not = access.permits_changes(&caller).unwrap_err();
            assert!(why_not.contains("token"), "{said:?}: {why_not}");
        }
        let right = format!("bearer {TOKEN}");
        let caller = access.client(from, Some(right.as_bytes()));
        assert_eq!(caller, Caller::Token(from));
        assert_eq!(access.permits_changes(&caller), Ok(()));
        let none = Access::default();
        let caller = none.client(from, Some(right.as_bytes()));
        let why_not = none.permits_changes(&caller).unwrap_err();
        assert!(why_not.contains("admin_token_file"), "{why_not}");
    }

    #[test]
    fn a_peer_is_admitted_by_its_user_or_its_group_and_no_other() {
        let access = Access {
            uids: vec![54_321],
            gids: vec![54_400],
            ..Access::default()
        };
        assert!(access.admit(0, 0).is_ok(), "root");
        assert!(access.admit(54_321, 1).is_ok(), "a user");
        assert!(access.admit(54_322, 54_400).is_ok(), "a group");
        let stranger = access.admit(54_322, 54_321).unwrap_err();
        assert_eq!(stranger.to_string(), "uid 54322");
    }

    #[test]
    fn a_user_that_the_namespace_does_not_map_is_not_the_one_that_it_is_shown_as() {
        let all = Some("         0          0 4294967295\n");
        let some = Some("         0     100000      65536\n");
        assert_eq!(unmapped_in(all, Some("65534\n")), None);
        assert_eq!(unmapped_in(some, Some("65533\n")), Some(65_533));
        assert_eq!(unmapped_in(None, None), Some(65_534));
        let mut access = Access {
            uids: vec![65_534],
            gids: vec![65_534],
            ..Access::default()
        };
        assert!(access.admit(65_534, 65_534).is_ok(), "all users are mapped");
        access.unmapped = (Some(65_534), Some(65_534));
        assert!(access.admit(65_534, 1).is_err(), "the user");
        assert!(access.admit(54_322, 65_534).is_err(), "the group");
    }

    #[test]
    fn a_token_that_every_user_can_read_or_guess_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let read = |text: &str, mode| {
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            read_token(&file).map(|token| token.0)
        };
        assert_eq!(read("0123456789abcdef\n", 0o640).unwrap(), TOKEN);
        for (text, mode) in [
            ("0123456789abcdef\n", 0o644),
            ("short\n", 0o600),
            ("0123456789 abcdef\n", 0o600),
            ("0123456789abcdef\n0123456789abcdef\n", 0o600),
        ] {
            assert!(read(text, mode).is_err(), "{text:?} {mode:o}");
        }
    }
}
