//! What a `[[route]]` demands of the connections to its next hops: how they hear of the client,
//! TLS, and as whom the gate authenticates.
//!
//! `auth` needs `tls = "required"`. With less the password would go to any server that answers in
//! place of the next hop: opportunistic TLS does not verify it, and can be stripped.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use toml::Spanned;
use zeroize::Zeroizing;

use super::keys::{Absent, Form, Key, KeyTable, flag, text, word};
use super::route::NextHop;
use super::section::Section;
use crate::fronts::SendClient;
use crate::policy::domain;
use crate::relay::hop::{Demands, HopTls};
use crate::relay::login::Login;
use crate::tls::{
    ClientSettings, ClientTls, Doubt, Fingerprint, Identity, KeyFiles, LoadError, MinVersion,
    NextHopTls, Trust, Verification,
};

/// More than a password has.
const PASSWORD_LENGTH_MAX: usize = 1_024;

pub(super) const SEND_CLIENT: Key = Key::new(
    "send_client",
    word(
        "no",
        &[
            ("no", "not at all: it sees the gate"),
            (
                "xclient",
                "by XCLIENT, where it offers that; a connection serves one client after the other",
            ),
            (
                "proxy-v2",
                "by the binary header of the PROXY protocol; a connection serves one transaction",
            ),
        ],
    ),
    "How the next hops hear which client a message comes from. They have to trust the gate with \
     it, and with a PROXY header they have to expect one.",
)
.see(&["route.send_client_required"]);

pub(super) const SEND_CLIENT_REQUIRED: Key = Key::new(
    "send_client_required",
    flag(false),
    "Whether clients hear 451 if a next hop does not take XCLIENT. Without this key the mail goes \
     on in the name of the gate, which is counted and logged.",
)
.see(&["route.send_client"]);

pub(super) const TLS: Key = Key::new(
    "tls",
    word(
        "opportunistic",
        &[
            ("off", "never"),
            (
                "opportunistic",
                "where the next hop offers STARTTLS, whatever its certificate",
            ),
            (
                "required",
                "always, and the next hop is verified; without it no mail goes out, and clients \
                 hear 451",
            ),
        ],
    ),
    "Whether connections to the next hops are encrypted, by STARTTLS.",
)
.see(&[
    "route.tls_fallback",
    "route.tls_authorities",
    "route.tls_fingerprints",
]);

pub(super) const TLS_FALLBACK: Key = Key::new(
    "tls_fallback",
    flag(true),
    "With `tls = \"opportunistic\"`: whether mail goes in the clear to a next hop whose STARTTLS \
     fails, for five minutes. With `false` clients hear 451 meanwhile.",
)
.see(&["route.tls"]);

pub(super) const TLS_MIN_VERSION: Key = Key::new(
    "tls_min_version",
    word(
        "1.2",
        &[("1.2", "TLS 1.2 and 1.3"), ("1.3", "TLS 1.3 alone")],
    ),
    "The least version of TLS.",
);

pub(super) const TLS_AUTHORITIES: Key = Key::new(
    "tls_authorities",
    text("a path", Absent::Nothing),
    "With `tls = \"required\"`: a file of authorities in PEM, which are trusted in place of those \
     of this system.",
)
.see(&["route.tls"]);

pub(super) const TLS_NAME: Key = Key::new(
    "tls_name",
    text(
        "a host name",
        Absent::Varies("the name or address in `next_hop`"),
    ),
    "With `tls = \"required\"`: the name that the certificates of the next hops have to be for.",
)
.see(&["route.next_hop"]);

pub(super) const TLS_FINGERPRINTS: Key = Key::new(
    "tls_fingerprints",
    Form::Texts {
        what: "SHA-256 of a certificate in DER, as 64 hexadecimal digits, with or without colons",
        default: Absent::Nothing,
    },
    "With `tls = \"required\"`: the certificates that are taken, in place of those that are valid \
     for the name. `openssl x509 -noout -fingerprint -sha256 -in FILE` shows it.",
)
.see(&["route.tls"]);

pub(super) const TLS_CERTIFICATE: Key = Key::new(
    "tls_certificate",
    text("a path", Absent::Nothing),
    "The chain of certificates in PEM that a next hop is shown if it asks for one.",
)
.see(&["route.tls_key"]);

pub(super) const TLS_KEY: Key = Key::new(
    "tls_key",
    text("a path", Absent::Nothing),
    "The private key of `tls_certificate` in PEM, without a passphrase.",
)
.see(&["route.tls_certificate"]);

pub(super) const AUTH: Key = Key::new(
    "auth",
    Form::Table(&AUTH_KEYS),
    "As whom the gate authenticates with the next hops (a smart host may want that), by \
     SCRAM-SHA-256, PLAIN or LOGIN. Needs `tls = \"required\"`: the password would else go to \
     any server that answers in their place.",
)
.see(&["route.tls"]);

static AUTH_KEYS: KeyTable = KeyTable {
    header: "[route.auth]",
    about: "As whom the gate authenticates with the next hops of a route: \
            `auth = { user = \"...\", password_file = \"...\" }`.",
    keys: &[
        Key::new(
            "user",
            text("a name", Absent::Required),
            "The user, as the next hop knows it.",
        ),
        Key::new(
            "password_file",
            text("a path", Absent::Required),
            "A file with the password and nothing else; a line end after it does not count. It \
             has to be readable for `user` at the top, and for no other user. A reload reads it \
             again.",
        )
        .see(&["user"]),
    ],
    later: &[],
};

/// Reads what the route demands, for each of its next hops. With `read_files` false the files are
/// left alone, and there is neither TLS nor AUTH.
pub(super) fn read(
    s: &mut Section<'_, '_>,
    next_hops: &[NextHop],
    read_files: bool,
) -> Vec<Arc<Demands>> {
    let (send_client, send_client_required) = send_client(s);
    let tls = Tls::read(s);
    let login = login(s, read_files);
    if next_hops.contains(&NextHop::Discard) {
        // What `check` prints says the defaults, and is good.
        let demanded = [
            ("send_client", send_client != SendClient::No),
            ("tls", tls.mode == NextHopTls::Required),
            ("auth", s.has("auth")),
        ];
        for (key, _) in demanded.into_iter().filter(|(_, is_demanded)| *is_demanded) {
            let message = format!("`{key}` is of no use: \"discard\" is no server");
            s.document.error(&s.span_of(key), message);
        }
        return next_hops.iter().map(|_| Arc::default()).collect();
    }
    if s.has("auth") {
        if tls.mode != NextHopTls::Required {
            s.document.error_with(
                &s.span_of("auth"),
                "`auth` needs `tls = \"required\"`: the password would go to any server that \
                 answers in place of the next hop",
                "add it, with `tls_authorities` or `tls_fingerprints` if no public authority \
                 vouches for the next hop",
            );
        }
        if send_client == SendClient::Xclient {
            s.document.error(
                &s.span_of("auth"),
                "`auth` and `send_client = \"xclient\"` exclude each other: XCLIENT says anew who \
                 is authenticated",
            );
        }
    }
    let made = if read_files { tls.make(s) } else { None };
    let content = made.as_ref().map(|_| tls.content()).unwrap_or_default();
    let name = tls.name.as_ref().map(Spanned::get_ref);
    let demands = |next_hop: &NextHop| {
        let mut demands = Demands::default();
        demands.send_client = send_client;
        demands.send_client_required = send_client_required;
        demands.login.clone_from(&login);
        if let (Some(made), NextHop::Host { name: host, .. }) = (&made, next_hop) {
            demands.tls = match tls.mode {
                NextHopTls::Off => HopTls::Off,
                NextHopTls::Opportunistic => HopTls::Opportunistic {
                    tls: made.clone(),
                    falls_back: tls.falls_back,
                },
                NextHopTls::Required => HopTls::Required(made.clone()),
            };
            demands.tls_name = name.unwrap_or(host).as_str().into();
        }
        demands.sealed(&content)
    };
    next_hops.iter().map(demands).collect()
}

fn send_client(s: &mut Section<'_, '_>) -> (SendClient, bool) {
    let send_client = s.word(
        "send_client",
        &[
            ("no", SendClient::No),
            ("xclient", SendClient::Xclient),
            ("proxy-v2", SendClient::ProxyV2),
        ],
    );
    let send_client = send_client.unwrap_or_default();
    let is_required = s.flag("send_client_required");
    if is_required && send_client != SendClient::Xclient {
        s.document.error_with(
            &s.span_of("send_client_required"),
            "`send_client_required` is about XCLIENT",
            "remove it, or write send_client = \"xclient\"; a PROXY header needs no offer",
        );
    }
    (send_client, is_required)
}

/// The keys of TLS.
struct Tls {
    mode: NextHopTls,
    falls_back: bool,
    name: Option<Spanned<String>>,
    settings: ClientSettings,
}

impl Tls {
    fn read(s: &mut Section<'_, '_>) -> Self {
        let mode = s.word(
            "tls",
            &[
                ("off", NextHopTls::Off),
                ("opportunistic", NextHopTls::Opportunistic),
                ("required", NextHopTls::Required),
            ],
        );
        let mode = mode.unwrap_or_default();
        let falls_back = s.flag("tls_fallback");
        let min_version = s.word(
            "tls_min_version",
            &[("1.2", MinVersion::Tls12), ("1.3", MinVersion::Tls13)],
        );
        let authorities = path(s, "tls_authorities");
        let name = s.text("tls_name", |name| {
            let name = domain::normal_form(name).into_owned();
            domain::check(&name).map(|()| name)
        });
        let pins = s.texts("tls_fingerprints", fingerprint);
        let certificate = path(s, "tls_certificate");
        let key = path(s, "tls_key");
        let only = |key: &str, wanted: &str| {
            if s.has(key) {
                let message = format!("`{key}` is of no use without `tls = \"{wanted}\"`");
                s.document.error(&s.span_of(key), message);
            }
        };
        // The defaults may be written, as `check` does.
        if mode != NextHopTls::Opportunistic && !falls_back {
            only("tls_fallback", "opportunistic");
        }
        if mode != NextHopTls::Required {
            let verifying = ["tls_authorities", "tls_name", "tls_fingerprints"];
            verifying.into_iter().for_each(|key| only(key, "required"));
        }
        if mode == NextHopTls::Off {
            if min_version.is_some_and(|version| version != MinVersion::default()) {
                only("tls_min_version", "required");
            }
            let with_tls = ["tls_certificate", "tls_key"];
            with_tls.into_iter().for_each(|key| only(key, "required"));
        }
        if s.is_empty_list("tls_fingerprints") {
            let span = s.span_of("tls_fingerprints");
            s.document.error(&span, "`tls_fingerprints` is empty");
        }
        if pins.is_some() {
            for key in ["tls_authorities", "tls_name"]
                .into_iter()
                .filter(|key| s.has(key))
            {
                let message = format!("`{key}` does not count beside `tls_fingerprints`");
                s.document.error(&s.span_of(key), message);
            }
        }
        let verification = match (mode, pins, authorities) {
            (NextHopTls::Required, Some(pins), _) => {
                Verification::Pinned(pins.into_iter().map(Spanned::into_inner).collect())
            }
            (NextHopTls::Required, None, Some(file)) => Verification::Name(Trust::File(file)),
            (NextHopTls::Required, None, None) => Verification::Name(Trust::System),
            _ => Verification::None,
        };
        let certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(KeyFiles { certificate, key }),
            (None, None) => None,
            (certificate, _) => {
                let (given, other) = match certificate {
                    Some(_) => ("tls_certificate", "tls_key"),
                    None => ("tls_key", "tls_certificate"),
                };
                let message = format!("`{given}` needs `{other}`");
                s.document.error(&s.span_of(given), message);
                None
            }
        };
        Self {
            mode,
            falls_back,
            name,
            settings: ClientSettings {
                min_version: min_version.unwrap_or_default(),
                verification,
                certificate,
            },
        }
    }

    /// Loads the files; their faults and doubts stand at the keys that name them.
    fn make(&self, s: &Section<'_, '_>) -> Option<ClientTls> {
        if self.mode == NextHopTls::Off {
            return None;
        }
        let now = SystemTime::now();
        let key_of = |path: &Path| match &self.settings.certificate {
            Some(files) if files.key == path => "tls_key",
            Some(files) if files.certificate == path => "tls_certificate",
            _ if s.has("tls_authorities") => "tls_authorities",
            _ => "tls",
        };
        if let Some(Ok(identity)) = self
            .settings
            .certificate
            .as_ref()
            .map(|files| Identity::load(files, now))
        {
            // A client's certificate need not name a host.
            let doubts = identity.doubts().iter();
            for doubt in doubts.filter(|doubt| !matches!(doubt, Doubt::NoNames(_))) {
                s.document
                    .warn(&s.span_of("tls_certificate"), doubt.to_string());
            }
        }
        match ClientTls::new(&self.settings, now) {
            Ok(made) => Some(made),
            Err(LoadError {
                path,
                problem,
                advice,
            }) => {
                let message = format!("{}: {problem}", path.display());
                let span = s.span_of(key_of(&path));
                s.document.error_with(&span, message, advice);
                None
            }
        }
    }

    /// Everything that TLS is made of: settings, and what is in their files.
    fn content(&self) -> Vec<u8> {
        let mut content = format!("{:?}", self.settings).into_bytes();
        let files = self.settings.certificate.as_ref();
        let authorities = match &self.settings.verification {
            Verification::Name(Trust::File(path)) => Some(path),
            _ => None,
        };
        let paths = files.map(|files| [&files.certificate, &files.key]);
        for path in paths.into_iter().flatten().chain(authorities) {
            content.extend(fs::read(path).unwrap_or_default());
        }
        content
    }
}

fn path(s: &mut Section<'_, '_>, key: &'static str) -> Option<PathBuf> {
    let path = s.text(key, |path| match path {
        "" => Err("empty".to_owned()),
        path => Ok(path.to_owned()),
    })?;
    let path = s.document.resolve(path.get_ref());
    s.document.names_file(&path);
    Some(path)
}

fn fingerprint(text: &str) -> Result<Fingerprint, String> {
    let wanted = || "a SHA-256 of 64 hexadecimal digits is wanted".to_owned();
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(wanted());
    }
    let mut fingerprint = Fingerprint::default();
    for (octet, pair) in fingerprint.iter_mut().zip(digits.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| wanted())?;
        *octet = u8::from_str_radix(pair, 16).map_err(|_| wanted())?;
    }
    Ok(fingerprint)
}

fn login(s: &mut Section<'_, '_>, read_files: bool) -> Option<Arc<Login>> {
    let mut auth = s.table("auth");
    let user = auth.text("user", |user| match user {
        "" => Err("empty".to_owned()),
        user if user.chars().any(char::is_control) => Err("it has a control character".to_owned()),
        user => Ok(user.to_owned()),
    });
    let file = path(&mut auth, "password_file");
    let span = auth.span_of("password_file");
    let document = auth.document;
    auth.finish_within(s);
    let (user, file) = user.zip(file)?;
    if !read_files {
        return None;
    }
    match password(&file) {
        Ok(password) => {
            let mode = fs::metadata(&file).map(|metadata| metadata.permissions().mode());
            if mode.is_ok_and(|mode| mode & 0o004 != 0) {
                let file = file.display();
                let message =
                    format!("{file}: all users of this machine can read it (chmod o-rwx)");
                document.warn(&span, message);
            }
            Some(Arc::new(Login::new(user.get_ref(), password)))
        }
        Err(problem) => {
            let message = format!("{}: {problem}", file.display());
            let advice = "write the password into it and nothing else, readable for the user of \
                          the gate alone";
            document.error_with(&span, message, advice);
            None
        }
    }
}

/// The password in a file. What is wrong is said without what is in it.
fn password(file: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let metadata = fs::metadata(file).map_err(|error| format!("cannot be read: {error}"))?;
    // A FIFO would hang.
    if !metadata.is_file() || metadata.len() > PASSWORD_LENGTH_MAX as u64 + 2 {
        return Err("is no regular file of at most 1,024 octets".to_owned());
    }
    let read = fs::read(file).map_err(|error| format!("cannot be read: {error}"))?;
    let mut password = Zeroizing::new(read);
    if password.last() == Some(&b'\n') {
        password.pop();
    }
    if password.last() == Some(&b'\r') {
        password.pop();
    }
    if password.is_empty() {
        return Err("is empty".to_owned());
    }
    if password
        .iter()
        .any(|octet| matches!(octet, 0 | b'\r' | b'\n'))
    {
        return Err("has more than one line, or a NUL".to_owned());
    }
    Ok(password)
}
