//! Sessions that come by a trusted front: the header of the PROXY protocol before the first octet
//! of SMTP (or of TLS), health checks, and what follows for the rest of a session.
//!
//! Only the task of a connection from a listed address is another one, so a plain connection pays
//! one comparison for it. The header is read by a task of its own that is gone, with its buffer,
//! when that of the session begins; what comes behind it stays in the connection's input and
//! belongs to what follows, the client's first octets or a TLS handshake.
//!
//! The client that a front names is the client everywhere: policy, limits, questions, records. The
//! filter alone sees the front's packets and never the client's, so it gets no verdict for either
//! ([`Session::is_behind_front`]). A front that names no client (a health check, `UNKNOWN`), or
//! itself, is not taken for the client: that would give strangers the rights of the front's
//! network.

mod xclient;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use portcullis_smtp::reply::{EnhancedCode, Reply};
use portcullis_smtp::server::{Blame, Settings};

use super::connection::Ending;
use super::counters::HeaderResult;
use super::deadline::Deadline;
use super::listener::Listener;
use super::reactor::{Reactor, Service, Task};
use super::session::{Session, session};
use crate::config;
use crate::driver::Conn;
use crate::fronts::TrustedFronts;
use crate::fronts::proxy::{BadHeader, Header, Reader};
use crate::policy::{self, Rule};

/// How long a front may take to send the whole header. The specification (section 3) wants at least
/// three seconds, for a segment that has to be sent again.
const HEADER_MAX: Duration = Duration::from_secs(10);
/// A listener complains of its fronts at most so often; the metrics have all of it.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

/// To MAIL, where it is not known which client it comes from. The mail waits until the front is
/// repaired (RFC 3463, X.3.5: system incorrectly configured).
static NO_CLIENT: Reply<'static> = Reply::fixed(
    451,
    EnhancedCode(4, 3, 5),
    "The proxy in front of this server does not say which client this is",
);

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Peer {
    /// A client, or a front that can only pass one on.
    #[default]
    Client,
    /// A front that may name clients with XCLIENT.
    Front,
    /// A front that looks whether the gate is there, or that does not know its client.
    Check,
}

/// Whom a session that comes by a front is with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum With {
    /// The front itself, so far.
    #[default]
    Front,
    /// The client that it named.
    Client,
    /// It is not known.
    Unknown,
}

/// What is kept of a session that comes by a front.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Front {
    with: With,
    /// The greeting name is that of XCLIENT, whatever EHLO says.
    has_helo: bool,
    /// XCLIENT said which of EHLO and HELO the client used.
    is_extended: Option<bool>,
    /// A handshake is with the front, and not with the client.
    is_named_by_xclient: bool,
}

/// Where a session comes from.
pub(super) struct Origin {
    /// The client's address; the front's, if it names none.
    pub(super) address: IpAddr,
    pub(super) peer: Peer,
    pub(super) front: Option<Box<Front>>,
}

impl Origin {
    /// A client that has connected by itself.
    fn direct(address: IpAddr) -> Self {
        Self {
            address,
            peer: Peer::Client,
            front: None,
        }
    }

    fn by(with: With, address: IpAddr, peer: Peer) -> Self {
        let front = Front {
            with,
            ..Front::default()
        };
        Self {
            address,
            peer,
            front: Some(Box::new(front)),
        }
    }
}

/// The trusted fronts of a listener, and what EHLO offers to them.
pub(super) struct Fronts {
    proxies: TrustedFronts,
    may_name: TrustedFronts,
    offer_to_front: Settings,
    offer_to_check: Settings,
    complains_after: Cell<Duration>,
}

impl Fronts {
    /// Those of a listener that offers this to clients; `None`: it has no fronts.
    pub(super) fn new(listener: &config::Listener, offer: &Settings) -> Option<Box<Self>> {
        let (proxies, may_name) = (&listener.proxy_protocol_from, &listener.xclient_from);
        if proxies.is_empty() && may_name.is_empty() {
            return None;
        }
        Some(Box::new(Self {
            proxies: proxies.clone(),
            may_name: may_name.clone(),
            offer_to_front: Settings {
                xclient: true,
                ..offer.clone()
            },
            // What a check may do beyond its greeting is nothing.
            offer_to_check: Settings {
                starttls: false,
                mechanisms: portcullis_smtp::sasl::Mechanisms::default(),
                auth_required: false,
                ..offer.clone()
            },
            complains_after: Cell::new(Duration::ZERO),
        }))
    }

    /// The settings for a peer that is no client.
    pub(super) fn settings(&self, peer: Peer) -> Option<&Settings> {
        match peer {
            Peer::Client => None,
            Peer::Front => Some(&self.offer_to_front),
            Peer::Check => Some(&self.offer_to_check),
        }
    }

    /// The peer at this address, once there is no header to come from it any more.
    fn peer(&self, address: IpAddr) -> Peer {
        if self.may_name.contains(address) {
            Peer::Front
        } else {
            Peer::Client
        }
    }

    /// Whether it is time for a complaint about a front.
    fn may_complain(&self, now: Duration) -> bool {
        let is_due = now >= self.complains_after.get();
        if is_due {
            self.complains_after.set(now + COMPLAINT_PAUSE);
        }
        is_due
    }
}

/// The task of a connection that was just accepted.
pub(super) fn task(
    reactor: &Rc<Reactor>,
    conn: Conn,
    peer: SocketAddr,
    listener: Rc<Listener>,
) -> Task {
    let (reactor, address) = (Rc::clone(reactor), peer.ip().to_canonical());
    let origin = match listener.fronts() {
        None => Origin::direct(address),
        Some(fronts) if fronts.proxies.contains(address) => {
            return Box::pin(behind_header(reactor, conn, address, listener));
        }
        Some(fronts) => match fronts.peer(address) {
            Peer::Front => Origin::by(With::Front, address, Peer::Front),
            Peer::Client | Peer::Check => Origin::direct(address),
        },
    };
    Box::pin(session(reactor, conn, origin, listener))
}

/// A connection that begins with a PROXY header. The session behind it is a task that takes the
/// place of this one, so that it is no larger than another.
async fn behind_header(reactor: Rc<Reactor>, conn: Conn, front: IpAddr, listener: Rc<Listener>) {
    // It takes the place of a session from here on; with the header it becomes one.
    let sessions = |reactor: &Reactor, change: i32| {
        let sessions = reactor.sessions.get();
        reactor.sessions.set(sessions.saturating_add_signed(change));
    };
    sessions(&reactor, 1);
    let header = header(&reactor, conn).await;
    sessions(&reactor, -1);
    let may_name = |address| {
        let peer = listener.fronts().map(|fronts| fronts.peer(address));
        peer == Some(Peer::Front)
    };
    // A check of HAProxy in version 1 names HAProxy itself.
    let names_itself = |client: IpAddr| client == front && !may_name(client);
    let header = match header {
        Ok(Header::Client(endpoints)) if names_itself(endpoints.client().ip()) => Ok(Header::Local),
        header => header,
    };
    reactor.counters.proxy_header(HeaderResult::of(&header));
    let origin = match header {
        Ok(Header::Client(endpoints)) => {
            let client = endpoints.client();
            reactor.with(conn, |connection| connection.peer_port = client.port());
            let client = client.ip();
            if may_name(client) {
                Origin::by(With::Front, client, Peer::Front)
            } else {
                Origin::by(With::Client, client, Peer::Client)
            }
        }
        Ok(Header::Local | Header::Unknown) => Origin::by(With::Unknown, front, Peer::Check),
        Err(NoHeader::Stopping) => {
            if !listener.is_implicit() {
                reactor.write(conn, |out| policy::STOPPING.write(out));
            }
            return reactor.finish(conn, Ending::Linger);
        }
        Err(failure) => {
            complain(&reactor, &listener, front, &failure);
            return reactor.finish(conn, Ending::Linger);
        }
    };
    let task = session(Rc::clone(&reactor), conn, origin, listener);
    reactor.spawn(conn, Box::pin(task));
}

/// Why a connection of a front has no header.
#[derive(Debug)]
enum NoHeader {
    /// It begins with something else, or with a bad one.
    Bad(BadHeader),
    /// It ended within the header.
    Cut,
    /// It ended, or broke, before the first octet: a check that only connects.
    Nothing,
    /// The time for it is over.
    Late,
    /// The gate stops.
    Stopping,
}

impl HeaderResult {
    fn of(header: &Result<Header, NoHeader>) -> Self {
        match header {
            Ok(Header::Client(_)) => Self::Client,
            Ok(Header::Local) => Self::Local,
            Ok(Header::Unknown) => Self::Unknown,
            Err(NoHeader::Bad(_) | NoHeader::Cut) => Self::Bad,
            Err(NoHeader::Nothing | NoHeader::Stopping) => Self::Missing,
            Err(NoHeader::Late) => Self::Late,
        }
    }
}

fn complain(reactor: &Reactor, listener: &Listener, front: IpAddr, failure: &NoHeader) {
    let why = match failure {
        NoHeader::Bad(error) => error.to_string(),
        NoHeader::Cut => "it ended within the header".to_owned(),
        NoHeader::Late => "the header was not complete after ten seconds".to_owned(),
        NoHeader::Nothing | NoHeader::Stopping => return,
    };
    let fronts = listener.fronts();
    if fronts.is_some_and(|fronts| fronts.may_complain(reactor.now.get())) {
        let listener = listener.facts.address;
        tracing::warn!(
            %front, %listener, why,
            "connection of a trusted front closed: it has to begin with a PROXY header \
             (proxy_protocol_from)"
        );
    }
}

/// Reads the header.
fn header<'r>(
    reactor: &'r Reactor,
    conn: Conn,
) -> impl Future<Output = Result<Header, NoHeader>> + 'r {
    let due = reactor.now.get() + HEADER_MAX;
    let mut reader = Box::<Reader>::default();
    poll_fn(move |_| poll_header(reactor, conn, &mut reader, due))
}

fn poll_header(
    reactor: &Reactor,
    conn: Conn,
    reader: &mut Reader,
    due: Duration,
) -> Poll<Result<Header, NoHeader>> {
    let polled = reactor.polled();
    if polled.has_input {
        let read = reactor.read(conn, |input, _| match reader.read(input) {
            Ok(Some((header, taken))) => (taken, Ok(Some(header))),
            Ok(None) => (input.len(), Ok(None)),
            Err(error) => (input.len(), Err(error)),
        });
        match read {
            Some(Ok(Some(header))) => return Poll::Ready(Ok(header)),
            Some(Err(error)) => return Poll::Ready(Err(NoHeader::Bad(error))),
            Some(Ok(None)) | None => {}
        }
    }
    if polled.is_at_end || !polled.is_open {
        let failure = if reader.is_empty() {
            NoHeader::Nothing
        } else {
            NoHeader::Cut
        };
        return Poll::Ready(Err(failure));
    }
    if reactor.service.get() != Service::Open {
        return Poll::Ready(Err(NoHeader::Stopping));
    }
    if Deadline::ProxyHeader.is_past(reactor, due) {
        return Poll::Ready(Err(NoHeader::Late));
    }
    Poll::Pending
}

impl Session {
    /// Whether XCLIENT has named the client: a certificate is the front's then.
    pub(super) fn is_named_by_xclient(&self) -> bool {
        self.front
            .as_ref()
            .is_some_and(|front| front.is_named_by_xclient)
    }

    /// Whether it came by a trusted front. The packets are the front's then: nothing of what the
    /// client does may have the filter drop anything.
    pub(super) fn is_behind_front(&self) -> bool {
        self.front.is_some()
    }

    /// Whether it is with a front and no client, so far: no limit on one source holds for it, and
    /// no DNS list is asked about it.
    pub(super) fn is_with_front(&self) -> bool {
        let front = self.front.as_ref();
        front.is_some_and(|front| front.with != With::Client)
    }

    /// Whether it is not known which client it is with: it may look whether the gate is there, and
    /// send no mail. It is not recorded as a client's.
    pub(super) fn is_with_unknown(&self) -> bool {
        let front = self.front.as_ref();
        front.is_some_and(|front| front.with == With::Unknown)
    }

    /// Whether it is a health check, which counts as no session of a client.
    pub(super) fn is_check(&self) -> bool {
        self.channel.peer == Peer::Check
    }

    /// Whether the client said EHLO.
    pub(super) fn is_extended(&self) -> bool {
        let named = self.front.as_ref().and_then(|front| front.is_extended);
        named.unwrap_or(self.smtp.is_extended())
    }

    /// Whether the greeting name is known from the front, which has its own words with us.
    pub(super) fn has_named_helo(&self) -> bool {
        self.front.as_ref().is_some_and(|front| front.has_helo)
    }

    /// Forgets the greeting name, also that which a front has told.
    pub(super) fn forget_helo(&mut self) {
        self.helo.clear();
        if let Some(front) = &mut self.front {
            front.has_helo = false;
        }
    }

    /// Answers MAIL of a client that is not known.
    pub(super) fn refuse_unknown(&mut self, out: &mut Vec<u8>) {
        let listener = self.listener();
        let reactor = &self.reactor;
        reactor.counters.command_refused(Rule::UNKNOWN_CLIENT);
        let fronts = listener.fronts();
        if fronts.is_some_and(|fronts| fronts.may_complain(reactor.now.get())) {
            let (front, listener) = (self.client.address, listener.facts.address);
            tracing::warn!(
                %front, %listener,
                "mail deferred: a trusted front does not say which client it comes from"
            );
        }
        let settings = listener.settings(self.channel);
        self.smtp.refuse(settings, &NO_CLIENT, Blame::None, out);
    }
}
