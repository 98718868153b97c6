//! `[[route]]`: which next hop gets the mail of which domains.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::demands;
use super::keys::{Absent, Form, Key, KeyTable, flag};
use super::relay::texts_and_file;
use super::section::Section;
use crate::policy::domain::{self, Domains, Pattern, normal_form};
use crate::relay::hop::{Demands, Hop};

pub(super) static KEYS: KeyTable = KeyTable {
    header: "[[route]]",
    about: "Where mail goes. The most specific pattern of all routes decides: the domain itself, \
            then the closest `.parent`, then `*`. Of two routes with the same pattern the first in \
            the file gets the mail.",
    keys: &[
        Key::new(
            "domains",
            Form::Texts {
                what: "domains, `.parent` for all that is beneath it, or `*`",
                default: Absent::Nothing,
            },
            "The recipients' domains that the route is for. Required without `domains_file`.",
        )
        .see(&["relay.domains"]),
        Key::new(
            "domains_file",
            Form::Text {
                what: "a path",
                default: Absent::Nothing,
            },
            "A file with more of them, one per line; `#` begins a comment.",
        )
        .see(&["route.domains"]),
        Key::new(
            "next_hop",
            Form::Texts {
                what: "addresses or host names, with or without a port (25); or `discard`",
                default: Absent::Required,
            },
            "The servers that take the mail, in the order in which they are tried. Each address \
             of a name is a next hop of its own. `discard` stands alone: the mail is accepted, \
             counted and thrown away.",
        )
        .see(&["relay.connect_timeout", "relay.retry_after"]),
        Key::new(
            "mode",
            Form::Word {
                default: Absent::Is("cut-through"),
                words: &[("cut-through", "when the next hop has taken it")],
                later: &["spool"],
            },
            "When the client hears that its message was accepted.",
        ),
        Key::new(
            "dsn",
            flag(false),
            "Whether the next hops of the route offer DSN (RFC 3461). The gate offers it to \
             clients only if every route has this set.",
        ),
        demands::TLS,
        demands::TLS_FALLBACK,
        demands::TLS_MIN_VERSION,
        demands::TLS_AUTHORITIES,
        demands::TLS_NAME,
        demands::TLS_FINGERPRINTS,
        demands::TLS_CERTIFICATE,
        demands::TLS_KEY,
        demands::AUTH,
        demands::SEND_CLIENT,
        demands::SEND_CLIENT_REQUIRED,
    ],
    later: &[],
};

/// A route: for recipients in these domains, these next hops in their order.
///
/// The most specific pattern of all routes decides: the domain itself, then the closest `.parent`
/// (all that is beneath it), then `*`. Where two routes have the same pattern, the first in the
/// file gets the mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// As they are compared: in lower case.
    pub domains: Vec<Pattern>,
    /// In the order in which they are tried. Never empty; [`NextHop::Discard`] stands alone.
    pub next_hops: Vec<NextHop>,
    /// The next hops as the configuration writes them: by these a destination is the same or
    /// another one. See [`Recipient::next_hops`](crate::policy::pipeline::Recipient::next_hops).
    pub target: Arc<str>,
    /// When the client gets the 250 to its message.
    pub mode: RouteMode,
    /// Its next hops offer DSN (RFC 3461).
    pub dsn: bool,
    /// What is demanded of each of the next hops, in their order.
    pub demands: Vec<Arc<Demands>>,
}

impl Route {
    /// The addresses known for the next hops, in the order in which they are tried.
    pub fn hops(&self) -> impl Iterator<Item = Hop> {
        let next_hops = self.next_hops.iter().zip(&self.demands);
        next_hops.flat_map(|(next_hop, demands)| {
            let addresses = next_hop.addresses().iter();
            addresses.map(|address| Hop::new(*address, Arc::clone(demands)))
        })
    }
}

/// When the client hears that its message was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteMode {
    /// When the next hop has taken it: the client's final reply is the next hop's.
    CutThrough,
}

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// An SMTP server.
    Host {
        /// A name, or an address as text.
        name: String,
        /// Its port.
        port: u16,
        /// Filled in for an address; names are resolved while the gate runs, because what they
        /// stand for changes.
        addresses: Vec<SocketAddr>,
    },
    /// Nowhere: accepted, counted and thrown away. For load tests.
    Discard,
}

impl NextHop {
    /// The addresses known for it, in the order in which they are tried.
    pub fn addresses(&self) -> &[SocketAddr] {
        match self {
            Self::Host { addresses, .. } => addresses,
            Self::Discard => &[],
        }
    }
}

/// As it is written in the configuration, with its port.
impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NextHop::Host { name, port, .. } if name.contains(':') => write!(f, "[{name}]:{port}"),
            NextHop::Host { name, port, .. } => write!(f, "{name}:{port}"),
            NextHop::Discard => f.write_str("discard"),
        }
    }
}

/// Reads the `[[route]]` tables; `listeners` are the addresses that would be a loop. With
/// `read_files` false the files of certificates and passwords are left alone.
pub(super) fn read(
    sections: Vec<Section<'_, '_>>,
    listeners: &[SocketAddr],
    read_files: bool,
) -> (Vec<Route>, Domains) {
    let (mut routes, mut index) = (Vec::<Route>::new(), Domains::default());
    let mut without_dsn = None;
    for mut s in sections {
        if !s.has("domains_file") {
            s.missing_unless_given("domains");
        }
        let domains =
            texts_and_file(&mut s, "domains", "domains_file", Pattern::parse).unwrap_or_default();
        s.missing_unless_given("next_hop");
        let next_hops = read_next_hops(&mut s, listeners);
        for key in ["domains", "next_hop"]
            .into_iter()
            .filter(|key| s.is_empty_list(key))
        {
            s.document
                .error(&s.span_of(key), format!("`{key}` is empty"));
        }
        let mode = s.word("mode", &[("cut-through", RouteMode::CutThrough)]);
        match u16::try_from(routes.len()) {
            Ok(number) => {
                for pattern in &domains {
                    if !index.add(pattern, number) {
                        s.document.warn(
                            &s.span,
                            format!("{pattern} has a route already, which is the one that counts"),
                        );
                    }
                }
            }
            Err(_) => s.document.error(&s.span, "too many routes"),
        }
        let dsn = s.flag("dsn");
        let demands = demands::read(&mut s, &next_hops, read_files);
        routes.push(Route {
            domains,
            target: target(&next_hops, &demands, &routes),
            demands,
            next_hops,
            mode: mode.unwrap_or(RouteMode::CutThrough),
            dsn,
        });
        if !dsn {
            without_dsn.get_or_insert((s.document, s.span.clone()));
        }
        s.finish();
    }
    if let Some((document, span)) = without_dsn
        && routes.iter().any(|route| route.dsn)
    {
        document.warn(
            &span,
            "DSN is not offered, because this [[route]] does not say `dsn = true` \
             as another one does",
        );
    }
    (routes, index)
}

/// The next hops as they are written. A route before that leads to the same ones and demands other
/// things of them is another destination: it tells them apart.
fn target(next_hops: &[NextHop], demands: &[Arc<Demands>], before: &[Route]) -> Arc<str> {
    let names: Vec<_> = next_hops.iter().map(NextHop::to_string).collect();
    let names = names.join(", ");
    let same = |route: &&Route| route.next_hops == next_hops;
    if let Some(route) = before.iter().filter(same).find(|it| it.demands == demands) {
        return Arc::clone(&route.target);
    }
    match before.iter().filter(same).count() {
        0 => names.into(),
        others => format!("{names} (by route {})", others + 1).into(),
    }
}

fn read_next_hops(s: &mut Section<'_, '_>, listeners: &[SocketAddr]) -> Vec<NextHop> {
    let hops = s.texts("next_hop", |text| match next_hop(text)? {
        NextHop::Host { addresses, .. } if addresses.iter().any(|hop| is_own(hop, listeners)) => {
            Err(format!("{text} is a [[listener]] of this gate: a loop"))
        }
        hop => Ok(hop),
    });
    let hops = hops.unwrap_or_default();
    if let Some(discard) = hops
        .iter()
        .find(|hop| *hop.get_ref() == NextHop::Discard)
        .filter(|_| hops.len() > 1)
    {
        s.document.error(
            &discard.span(),
            "\"discard\" cannot stand beside another next hop",
        );
    }
    hops.into_iter().map(toml::Spanned::into_inner).collect()
}

fn is_own(hop: &SocketAddr, listeners: &[SocketAddr]) -> bool {
    let same_address = |listener: &SocketAddr| {
        listener.ip() == hop.ip()
            || (listener.ip().is_unspecified()
                && (hop.ip().is_loopback() || hop.ip().is_unspecified()))
    };
    listeners
        .iter()
        .any(|listener| listener.port() == hop.port() && same_address(listener))
}

/// `"10.0.0.5:25"`, `"[2001:db8::5]:25"`, `"smarthost.isp.example:25"`, each also without the port
/// (then 25); `"discard"`.
fn next_hop(text: &str) -> Result<NextHop, String> {
    match text {
        "discard" => return Ok(NextHop::Discard),
        "mx" => return Err("next_hop = [\"mx\"] is not in this version of Portcullis".to_owned()),
        _ => {}
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return literal(SocketAddr::new(address, 25));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return literal(address);
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (
            name,
            port.parse()
                .map_err(|_| format!("`{port}` is not a port"))?,
        ),
        None => (text, 25),
    };
    if port == 0 {
        return Err("port 0 is not a port to connect to".to_owned());
    }
    let name = normal_form(name).into_owned();
    domain::check(&name)?;
    if name
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Err(format!("`{name}` is neither an address nor a name"));
    }
    Ok(NextHop::Host {
        name,
        port,
        addresses: Vec::new(),
    })
}

fn literal(address: SocketAddr) -> Result<NextHop, String> {
    let ip = address.ip().to_canonical();
    let address = SocketAddr::new(ip, address.port());
    match address.port() {
        0 => Err("port 0 is not a port to connect to".to_owned()),
        port => Ok(NextHop::Host {
            name: ip.to_string(),
            port,
            addresses: vec![address],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_hop_is_read_as_it_is_written() {
        let cases = [
            ("10.0.0.5:2525", "10.0.0.5", 2525, true),
            ("10.0.0.5", "10.0.0.5", 25, true),
            ("[2001:db8::5]:24", "2001:db8::5", 24, true),
            ("[2001:db8::5]", "2001:db8::5", 25, true),
            ("2001:db8::5", "2001:db8::5", 25, true),
            (
                "Smarthost.isp.example:587",
                "smarthost.isp.example",
                587,
                false,
            ),
            ("smarthost", "smarthost", 25, false),
        ];
        for (text, wanted, wanted_port, is_literal) in cases {
            let Ok(NextHop::Host {
                name,
                port,
                addresses,
            }) = next_hop(text)
            else {
                panic!("{text}")
            };
            assert_eq!(
                (name.as_str(), port, addresses.len() == 1),
                (wanted, wanted_port, is_literal),
                "{text}"
            );
        }
        for text in [
            "",
            ":25",
            "10.0.0.5:0",
            "host:0",
            "host:smtp",
            "10.0.0.256:25",
            "a b:25",
            "user@host:25",
        ] {
            assert!(next_hop(text).is_err(), "{text}");
        }
    }
}
