//! Who may change a running gate, and where: the keys that begin with `admin`.
//!
//! Reading needs no password, so `admin` may be on a network of the operators. What changes the
//! gate comes over the unix socket, where the kernel says who the peer is, or over the loopback
//! with a token; never over an open port.

use std::net::SocketAddr;
use std::path::PathBuf;

use toml::Spanned;

use super::keys::{Absent, Form, Key, text};
use super::section::Section;
use super::value;

/// Where commands look for the gate when no configuration is named.
pub const ADMIN_SOCKET: &str = "/run/portcullis/admin.sock";

/// The admin endpoints, and who may use them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// Where metrics and state are served over HTTP.
    pub address: Option<SocketAddr>,
    /// The unix socket for commands.
    pub socket: Option<PathBuf>,
    /// Users that the socket admits, besides root and the gate's own: names, or numbers.
    pub users: Vec<String>,
    /// Groups whose members the socket admits: names, or numbers.
    pub groups: Vec<String>,
    /// The file with the token for changes at `address`.
    pub token_file: Option<PathBuf>,
}

pub(super) const ADDRESS: Key = Key::new(
    "admin",
    text("an IP address and a port", Absent::Nothing),
    "Where metrics (`/metrics`) and state (`/api/status`, `/api/refusals`, `/api/events`) are \
     served over HTTP, without a password: keep it on the loopback or behind a firewall. With a \
     token the gate can be changed there, and `/api/verdicts` and `/api/grants` are served, too.",
)
.see(&["admin_token_file", "admin_socket"])
.at_start();

pub(super) const SOCKET: Key = Key::new(
    "admin_socket",
    text("a path", Absent::Nothing),
    "The unix socket at which the running gate takes commands (`portcullis reload`, `portcullis \
     grant`, `portcullis filter verdicts`) from root, its own user, and those of the next two \
     keys. Without `-c` \
     commands look at /run/portcullis/admin.sock. A directory that is missing is created.",
)
.see(&["admin_users", "admin_groups", "user"])
.at_start();

pub(super) const USERS: Key = Key::new(
    "admin_users",
    Form::Texts {
        what: "names or numbers of users",
        default: Absent::Nothing,
    },
    "Users that may give the gate commands. The kernel tells the gate who a peer is.",
)
.see(&["admin_socket"])
.at_start();

pub(super) const GROUPS: Key = Key::new(
    "admin_groups",
    Form::Texts {
        what: "names or numbers of groups",
        default: Absent::Nothing,
    },
    "Groups whose members may give the gate commands. With one group and no `admin_users` the \
     socket belongs to that group, and no other user can open it.",
)
.see(&["admin_socket"])
.at_start();

pub(super) const TOKEN_FILE: Key = Key::new(
    "admin_token_file",
    text("a path", Absent::Nothing),
    "A file with one line of at least 16 characters. A request that changes the gate, or reads \
     verdicts or grants, is taken at `admin`, too, if it says `Authorization: Bearer` and that \
     token. Only with `admin` on the loopback, as the token crosses the network in the clear. Only \
     root or the gate's user should be able to read the file.",
)
.see(&["admin"])
.at_start();

/// Reads the keys.
pub(super) fn read(top: &mut Section<'_, '_>) -> Admin {
    let document = top.document;
    let path = |top: &mut Section<'_, '_>, key| {
        let path = top.text(key, |path| match path {
            "" => Err("empty".to_owned()),
            path => Ok(document.resolve(path)),
        });
        path.map(Spanned::into_inner)
    };
    let address = top.text("admin", value::socket_address);
    let socket = path(top, "admin_socket");
    let names = |top: &mut Section<'_, '_>, key, what| {
        let names = top.texts(key, |text| account(text, what));
        let names = names.unwrap_or_default().into_iter();
        names.map(Spanned::into_inner).collect()
    };
    let admin = Admin {
        users: names(top, "admin_users", "user"),
        groups: names(top, "admin_groups", "group"),
        token_file: path(top, "admin_token_file"),
        address: address.map(Spanned::into_inner),
        socket,
    };
    check(top, &admin);
    admin
}

/// Keys that would do nothing, and a port that would be open to changes.
fn check(top: &Section<'_, '_>, admin: &Admin) {
    let error = |key: &str, message: &str, advice: &str| {
        top.document.error_with(&top.span_of(key), message, advice);
    };
    if !top.has("admin_socket") {
        for key in ["admin_users", "admin_groups"] {
            if top.has(key) {
                let message = format!("`{key}` says who may use `admin_socket`, which is missing");
                error(key, &message, &format!("admin_socket = \"{ADMIN_SOCKET}\""));
            }
        }
    }
    if !top.has("admin_token_file") {
        return;
    }
    if !top.has("admin") {
        let message = "`admin_token_file` is for changes at `admin`, which is missing";
        error("admin_token_file", message, "admin = \"127.0.0.1:9925\"");
    }
    let address = admin.address.filter(|address| {
        let ip = address.ip().to_canonical();
        !ip.is_loopback()
    });
    if let Some(address) = address {
        let message = format!("{address} would be a port on the network that changes the gate");
        let advice = "put `admin` on the loopback, or leave `admin_token_file` out and use \
                      `admin_socket`";
        error("admin", &message, advice);
    }
}

/// The name or number of a user or group.
pub(super) fn account(text: &str, what: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let is_name =
        !text.is_empty() && text.len() <= 32 && !text.starts_with('-') && text.chars().all(fits);
    if is_name {
        Ok(text.to_owned())
    } else {
        Err(format!("expected the name of a {what} of this system"))
    }
}
