//! `[tls]`: the certificates that clients are shown, and what handshakes may cost.
//!
//! The files are read with the configuration, so that a reload with a bad certificate or key is
//! refused as a whole and the one in force stays.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use toml::Spanned;

use super::document::Document;
use super::keys::{Absent, Form, Key, KeyTable, SECOND, count, duration, text, word};
use super::section::Section;
use crate::auth::name_key;
use crate::tls::{
    Certificates, ClientCertificates, Fingerprint, Identity, KeyFiles, LoadError, MinVersion, Peer,
    ServerSettings, ServerTls, Tickets,
};

const HALF_A_MINUTE: Duration = Duration::from_secs(30);

pub(super) static KEYS: KeyTable = KeyTable {
    header: "[tls]",
    about: "TLS of clients. With this table listeners offer STARTTLS, unless their own `tls` says \
            otherwise. The files have to be readable for `user`; after a change of them a reload \
            (SIGHUP) puts the new ones in force, and sessions that are there go on.",
    keys: &[
        Key::new(
            "certificate",
            text("a path", Absent::Required),
            "The certificate of this host and the chain behind it, in PEM. Clients that ask for no \
             name, or for one that no certificate is for, are shown this one.",
        )
        .see(&["user"]),
        Key::new(
            "key",
            text("a path", Absent::Required),
            "The private key of `certificate`, in PEM, without a passphrase. It may be in the same \
             file.",
        )
        .see(&["user"]),
        Key::new(
            "also",
            Form::Tables(&ALSO),
            "More certificates, for other names or with another kind of key.",
        ),
        Key::new(
            "min_version",
            word(
                "1.2",
                &[("1.2", "TLS 1.2 and 1.3"), ("1.3", "TLS 1.3 alone")],
            ),
            "The least version that is spoken. Nothing below 1.2 is (RFC 8996).",
        ),
        Key::new(
            "client_authorities",
            text("a path", Absent::Nothing),
            "The authorities, in PEM, of the certificates that clients may show. A listener that \
             asks for certificates needs it.",
        )
        .see(&["listener.client_certificates"]),
        Key::new(
            "client",
            Form::Tables(&CLIENT),
            "Who is known by a certificate.",
        ),
        Key::new(
            "handshakes",
            count("handshakes", 2_000, 1..=1_000_000),
            "Handshakes at a time, of the whole gate. Beyond it STARTTLS is answered with \
             `454 4.7.0`, and a connection that begins with a handshake is closed.",
        ),
        Key::new(
            "handshakes_per_source",
            count("handshakes a minute", 120, 1..=1_000_000),
            "Handshakes in a minute from one source: an IPv4 address or an IPv6 /64. Beyond it as \
             for `handshakes`. It holds for strangers only, as `limits.sessions_per_source` does.",
        )
        .see(&["limits.sessions_per_source"]),
        Key::new(
            "handshake_timeout",
            duration(HALF_A_MINUTE, SECOND..=Duration::from_secs(300)),
            "How long a whole handshake may take; then the connection is closed.",
        ),
    ],
    later: &[],
};

static ALSO: KeyTable = KeyTable {
    header: "[[tls.also]]",
    about: "One more certificate. A client is shown the one for the name that it asks for (SNI); \
            of several for one name the first whose key it can verify.",
    keys: &[
        Key::new(
            "certificate",
            text("a path", Absent::Required),
            "As `tls.certificate`.",
        ),
        Key::new("key", text("a path", Absent::Required), "As `tls.key`."),
    ],
    later: &[],
};

static CLIENT: KeyTable = KeyTable {
    header: "[[tls.client]]",
    about: "A client that is known by its certificate, at listeners that ask for one: it counts as \
            authenticated, without AUTH. The certificate has to be good by `client_authorities`; \
            it is named by its fingerprint or by its subject.",
    keys: &[
        Key::new(
            "user",
            text("the name of a user", Absent::Required),
            "Who it is. If `[auth]` has a user of this name, that user's `senders` hold.",
        )
        .see(&["auth.users"]),
        Key::new(
            "fingerprint",
            text("64 hexadecimal digits", Absent::Nothing),
            "The SHA-256 of the certificate in DER, as the log has it, with or without colons \
             (`openssl x509 -noout -fingerprint -sha256`).",
        ),
        Key::new(
            "subject",
            text("a subject as RFC 4514 writes it", Absent::Nothing),
            "The subject of the certificate, as the log has it: `CN=mx.customer.example`. All \
             that `client_authorities` certify under this subject are this user.",
        ),
    ],
    later: &[],
};

/// What the tickets of this process are sealed with: a reload goes on with them.
static TICKETS: LazyLock<Tickets> = LazyLock::new(Tickets::default);

/// How a listener uses TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerTls {
    /// Not at all.
    Off,
    /// It offers STARTTLS (RFC 3207).
    StartTls,
    /// From the first octet (RFC 8314).
    Implicit,
}

/// Whether the clients of a listener are asked for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskForCertificates {
    /// They are not.
    Off,
    /// One without is let in.
    Ask,
    /// One without is not.
    Require,
}

/// `[tls]`.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The files of authorities for certificates of clients, if there is one.
    pub client_authorities: Option<PathBuf>,
    /// Handshakes at a time, of the whole gate.
    pub handshakes: u32,
    /// Handshakes in a minute from one source.
    pub handshakes_per_source: u32,
    /// How long one may take.
    pub handshake_timeout: Duration,
    known: Known,
    /// What handshakes are made with; `None` if the files were left alone.
    servers: Option<Servers>,
}

/// Which certificate is whose.
#[derive(Clone, Debug, Default)]
struct Known {
    by_fingerprint: HashMap<Fingerprint, Arc<str>>,
    by_subject: HashMap<String, Arc<str>>,
}

/// By what is asked of clients.
#[derive(Clone, Debug)]
struct Servers {
    off: ServerTls,
    /// Of a client that may have a certificate, and of one that has to.
    by_certificate: Option<(ServerTls, ServerTls)>,
}

impl Tls {
    /// What the handshakes of a listener with this demand are made with.
    pub fn server(&self, demand: AskForCertificates) -> Option<&ServerTls> {
        let servers = self.servers.as_ref()?;
        let by_certificate = servers.by_certificate.as_ref();
        match demand {
            AskForCertificates::Off => Some(&servers.off),
            AskForCertificates::Ask => by_certificate.map(|(ask, _)| ask),
            AskForCertificates::Require => by_certificate.map(|(_, require)| require),
        }
    }

    /// The user that a client with this certificate is.
    pub fn user(&self, peer: &Peer) -> Option<&Arc<str>> {
        let by_fingerprint = self.known.by_fingerprint.get(&peer.fingerprint);
        by_fingerprint.or_else(|| self.known.by_subject.get(&peer.subject))
    }

    /// Forgets the keys of tickets that only configurations before this one have used.
    pub fn forget_old_tickets(&self) {
        let Some(servers) = &self.servers else {
            return;
        };
        let mut in_use = vec![&servers.off];
        in_use.extend(
            servers
                .by_certificate
                .iter()
                .flat_map(|(ask, require)| [ask, require]),
        );
        TICKETS.keep_only(&in_use);
    }
}

/// Reads the table, and the files that it names unless they are to be left alone.
pub(super) fn read(mut s: Section<'_, '_>, read_files: bool) -> Option<Tls> {
    if !s.is_given() {
        return None;
    }
    let document = s.document;
    let first = key_files(&mut s);
    let mut others = Vec::new();
    for mut table in s.tables("also") {
        others.extend(key_files(&mut table));
        table.finish_within(&mut s);
    }
    let known = read_clients(s.tables("client"));
    let versions = [("1.2", MinVersion::Tls12), ("1.3", MinVersion::Tls13)];
    let min_version = s.word("min_version", &versions).unwrap_or_default();
    let authorities = s.text("client_authorities", path).map(|path| {
        let span = path.span();
        (document.resolve(path.get_ref()), span)
    });
    if let Some((path, _)) = &authorities {
        document.names_file(path);
    }
    let mut tls = Tls {
        client_authorities: authorities.as_ref().map(|(path, _)| path.clone()),
        handshakes: s.count_u32("handshakes"),
        handshakes_per_source: s.count_u32("handshakes_per_source"),
        handshake_timeout: s.duration("handshake_timeout"),
        known,
        servers: None,
    };
    s.finish();
    if !read_files {
        return Some(tls);
    }
    let identity = load(document, &first?);
    let others: Vec<_> = others.iter().map(|files| load(document, files)).collect();
    let others: Option<Vec<_>> = others.into_iter().collect();
    let certificates = Arc::new(Certificates::new(identity?, others?));
    let server = |client_certificates, span: &Range<usize>| {
        let settings = ServerSettings {
            min_version,
            client_certificates,
            ..ServerSettings::default()
        };
        let made = ServerTls::new(&settings, &certificates, &TICKETS);
        made.map_err(|error| complain(document, span, &error)).ok()
    };
    let by_certificate = match authorities {
        None => None,
        Some((path, span)) => Some((
            server(ClientCertificates::Ask(path.clone()), &span)?,
            server(ClientCertificates::Require(path), &span)?,
        )),
    };
    tls.servers = Some(Servers {
        off: server(ClientCertificates::Off, &(0..0))?,
        by_certificate,
    });
    Some(tls)
}

/// A certificate with its key, and where the file says so.
struct Named {
    files: KeyFiles,
    certificate: Range<usize>,
    key: Range<usize>,
}

fn key_files(s: &mut Section<'_, '_>) -> Option<Named> {
    let certificate: Option<Spanned<String>> = s.text("certificate", path);
    let key = s.text("key", path);
    let (certificate, key) = (certificate?, key?);
    let files = KeyFiles {
        certificate: s.document.resolve(certificate.get_ref()),
        key: s.document.resolve(key.get_ref()),
    };
    s.document.names_file(&files.certificate);
    if files.key != files.certificate {
        s.document.names_file(&files.key);
    }
    Some(Named {
        files,
        certificate: certificate.span(),
        key: key.span(),
    })
}

fn read_clients(tables: Vec<Section<'_, '_>>) -> Known {
    let mut known = Known::default();
    for mut s in tables {
        let user = s.text("user", user_name);
        let fingerprint = s.text("fingerprint", fingerprint);
        let subject = s.text("subject", path);
        if s.has("fingerprint") == s.has("subject") {
            let message = "a client is named by `fingerprint` or by `subject`, and by one of them";
            s.document.error(&s.span, message);
        }
        let user = user.map(|user| Arc::<str>::from(user.into_inner()));
        let is_twice = match (user, fingerprint, subject) {
            (Some(user), Some(print), None) => {
                let print = print.into_inner();
                known.by_fingerprint.insert(print, user).is_some()
            }
            (Some(user), None, Some(subject)) => {
                let subject = subject.into_inner();
                known.by_subject.insert(subject, user).is_some()
            }
            _ => false,
        };
        if is_twice {
            let message = "this certificate is another client's already";
            s.document.error(&s.span, message);
        }
        s.finish();
    }
    known
}

fn user_name(name: &str) -> Result<Box<str>, String> {
    name_key(name).ok_or_else(|| "no user can have this name".to_owned())
}

fn fingerprint(text: &str) -> Result<Fingerprint, String> {
    let wrong = || "a fingerprint has 64 hexadecimal digits".to_owned();
    let digits: Vec<u8> = text.bytes().filter(|octet| *octet != b':').collect();
    let mut print = Fingerprint::default();
    if digits.len() != 2 * print.len() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(wrong());
    }
    for (octet, pair) in print.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
        *octet = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
    }
    Ok(print)
}

fn load(document: &Document<'_>, named: &Named) -> Option<Identity> {
    match Identity::load(&named.files, SystemTime::now()) {
        Ok(identity) => {
            for doubt in identity.doubts() {
                document.warn(&named.certificate, doubt.to_string());
            }
            Some(identity)
        }
        Err(error) => {
            let is_key = error.path == named.files.key;
            let span = if is_key {
                &named.key
            } else {
                &named.certificate
            };
            complain(document, span, &error);
            None
        }
    }
}

fn complain(document: &Document<'_>, span: &Range<usize>, error: &LoadError) {
    let message = format!("{}: {}", error.path.display(), error.problem);
    document.error_with(span, message, error.advice.clone());
}

fn path(path: &str) -> Result<String, String> {
    match path {
        "" => Err("empty".to_owned()),
        path => Ok(path.to_owned()),
    }
}
