//! One question to one name server: over UDP, and again over TCP when the answer did not fit into a
//! packet.
//!
//! Only an answer is an answer: there are these addresses, or there is no such name. What else a
//! server may say (SERVFAIL, REFUSED, a referral to others, octets that are no DNS message, an ICMP
//! error) is a failure of that server, told at once, and says nothing about the name. A packet that
//! does not belong to the question is not even that: it may be forged, and the wait goes on.
//!
//! Rejected: a resolver library. Those take SERVFAIL and REFUSED of the fastest server for the
//! answer, do not tell which server said what, and do not hear of ICMP errors. What they do beyond
//! this (following aliases) is what the name servers that are asked do already: each of them
//! recurses, or has the zone itself.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{self, Instant};

/// A packet may have been lost: after this time the question is sent again, then after twice as
/// long, and so on.
const RESEND_AFTER: Duration = Duration::from_secs(1);
/// The question offers no room beyond the 512 octets of RFC 1035; some servers send more
/// nevertheless.
const PACKET_MAX: usize = 4_096;
/// The most addresses of an answer that are looked at. No list gives so many.
const ADDRESSES_MAX: usize = 32;

/// A question for the IPv4 addresses of a name.
#[derive(Debug)]
pub(super) struct DnsQuery {
    id: u16,
    query: Query,
    octets: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DnsAnswer {
    /// None: there is no such name, or it has no address.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// How long it may be remembered (RFC 2308 section 5 for an answer that there is nothing).
    pub(super) lasts: Duration,
}

/// Why a server gave no answer.
#[derive(Debug)]
pub(super) enum QueryError {
    /// It cannot be reached.
    Io(io::Error),
    /// It said nothing in time.
    Silent,
    /// It says that it cannot or does not want to answer.
    Code(ResponseCode),
    /// It refers to other servers: it does not have the zone, and does not recurse.
    Referral,
    /// What it sent is no answer that could be read.
    Broken(&'static str),
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Silent => f.write_str("no answer in time"),
            Self::Code(code) => write!(f, "it answers {}", mnemonic(*code)),
            Self::Referral => f.write_str(
                "it refers to other name servers: it neither has the zone nor asks for it",
            ),
            Self::Broken(what) => f.write_str(what),
        }
    }
}

impl From<io::Error> for QueryError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The name that operators know a code by.
fn mnemonic(code: ResponseCode) -> String {
    match code {
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        other => format!("code {} ({other})", other.low()),
    }
}

impl DnsQuery {
    /// The question for a name; `None` if that cannot be a name.
    pub(super) fn new(name: &str) -> Option<Self> {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        let query = Query::query(Name::from_ascii(name).ok()?, RecordType::A);
        message.add_query(query.clone());
        Some(Self {
            id: message.metadata.id,
            query,
            octets: message.to_vec().ok()?,
        })
    }

    /// Asks a server. Does not end by itself when nothing comes.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub(super) async fn ask(&self, server: SocketAddr) -> Result<DnsAnswer, QueryError> {
        let mut message = self.over_udp(server).await?;
        if message.metadata.truncation {
            message = self.over_tcp(server).await?;
            if message.metadata.truncation {
                return Err(QueryError::Broken(
                    "its answer is cut off, over TCP as well",
                ));
            }
        }
        read(&message)
    }

    async fn over_udp(&self, server: SocketAddr) -> Result<Message, QueryError> {
        let any: SocketAddr = if server.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(any).await?;
        // A connected socket hears that the port is closed; with this also that the host or its
        // network is out of reach.
        let set = if server.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)
        };
        set.map_err(io::Error::from)?;
        socket.connect(server).await?;
        let mut packet = vec![0; PACKET_MAX];
        let mut pause = RESEND_AFTER;
        loop {
            socket.send(&self.octets).await?;
            let resend_at = Instant::now() + pause;
            while let Ok(received) = time::timeout_at(resend_at, socket.recv(&mut packet)).await {
                let length = received?;
                if let Some(message) = self.response_in(&packet[..length])? {
                    return Ok(message);
                }
            }
            pause *= 2;
        }
    }

    async fn over_tcp(&self, server: SocketAddr) -> Result<Message, QueryError> {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(self.octets.len()).unwrap_or_default();
        // In one write: some servers take the length and the message only together.
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&self.octets);
        stream.write_all(&framed).await?;
        let mut message = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut message).await?;
        self.response_in(&message)?
            .ok_or(QueryError::Broken("over TCP it answers another question"))
    }

    /// The response to this question, if it is one. `None`: it belongs to another question, or to
    /// none.
    ///
    /// # Errors
    /// When it belongs to this question and is no DNS message.
    fn response_in(&self, octets: &[u8]) -> Result<Option<Message>, QueryError> {
        if octets.first_chunk() != Some(&self.id.to_be_bytes()) {
            return Ok(None);
        }
        let message = Message::from_vec(octets)
            .or_else(|error| cut_off(octets).ok_or(error))
            .map_err(|_| QueryError::Broken("what it sends is no DNS message"))?;
        if message.metadata.message_type != MessageType::Response {
            return Err(QueryError::Broken("it sends the question back"));
        }
        match &*message.queries {
            [query] if *query == self.query => Ok(Some(message)),
            // A server that cannot read the question does not repeat it.
            [] if !is_answer(message.metadata.response_code) => Ok(Some(message)),
            [] => Err(QueryError::Broken("its answer is to no question")),
            _ => Ok(None),
        }
    }
}

/// The message without its records, if it says that it is cut off: some servers (tinydns is one)
/// cut where the packet is full, and leave the numbers of records as they were.
fn cut_off(octets: &[u8]) -> Option<Message> {
    /// The first octet of the flags, and in it TC.
    const FLAGS: usize = 2;
    const TRUNCATION: u8 = 1 << 1;
    /// The numbers of answers, authorities and additional records.
    const RECORD_COUNTS: Range<usize> = 6..12;
    if octets.get(FLAGS)? & TRUNCATION == 0 {
        return None;
    }
    let mut head = octets.to_vec();
    head.get_mut(RECORD_COUNTS)?.fill(0);
    Message::from_vec(&head).ok()
}

/// Whether a code says something about the name, and not about the server.
fn is_answer(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

fn read(message: &Message) -> Result<DnsAnswer, QueryError> {
    let code = message.metadata.response_code;
    if !is_answer(code) {
        return Err(QueryError::Code(code));
    }
    let has = |kind| {
        let mut authorities = message.authorities.iter();
        authorities.any(|record| record.record_type() == kind)
    };
    let knows = message.metadata.authoritative || message.metadata.recursion_available;
    let is_empty = message.answers.is_empty() && code == ResponseCode::NoError;
    if is_empty && !knows && has(RecordType::NS) && !has(RecordType::SOA) {
        return Err(QueryError::Referral);
    }
    let addresses: Vec<Ipv4Addr> = message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) if code == ResponseCode::NoError => Some(address.0),
            _ => None,
        })
        .take(ADDRESSES_MAX)
        .collect();
    let seconds = if addresses.is_empty() {
        negative_seconds(message)
    } else {
        message.answers.iter().map(|record| record.ttl).min()
    };
    Ok(DnsAnswer {
        addresses,
        lasts: Duration::from_secs(seconds.unwrap_or(0).into()),
    })
}

/// How long an answer that there is nothing holds (RFC 2308 section 5); `None` if it does not say.
fn negative_seconds(message: &Message) -> Option<u32> {
    let mut authorities = message.authorities.iter();
    authorities.find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, NS, SOA};

    use super::*;

    const NAME: &str = "9.113.0.203.bl.example.";

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn response(question: &DnsQuery, code: ResponseCode) -> Message {
        let mut message = Message::from_vec(&question.octets).unwrap().into_response();
        message.metadata.response_code = code;
        message
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let (ns, admin) = (name("ns.bl.example."), name("admin.bl.example."));
        let soa = SOA::new(ns, admin, 1, 600, 300, 86_400, minimum);
        Record::from_rdata(name("bl.example."), ttl, RData::SOA(soa))
    }

    fn listing(ttl: u32, address: [u8; 4]) -> Record {
        Record::from_rdata(name(NAME), ttl, RData::A(A(address.into())))
    }

    #[test]
    fn only_what_is_said_about_the_name_is_an_answer() {
        let question = DnsQuery::new(NAME).unwrap();
        let mut listed = response(&question, ResponseCode::NoError);
        listed.add_answer(listing(300, [127, 0, 0, 2]));
        listed.add_answer(listing(60, [127, 0, 0, 4]));
        let mut unlisted = response(&question, ResponseCode::NXDomain);
        unlisted.add_authority(soa(900, 120));
        let empty = response(&question, ResponseCode::NoError);
        let mut referral = empty.clone();
        let ns = RData::NS(NS(name("a.root-servers.example.")));
        referral.add_authority(Record::from_rdata(Name::root(), 60, ns));
        let mut recursed = referral.clone();
        recursed.metadata.recursion_available = true;
        let answers: [(&str, &Message, &[[u8; 4]], u64); 4] = [
            ("listed", &listed, &[[127, 0, 0, 2], [127, 0, 0, 4]], 60),
            ("unlisted", &unlisted, &[], 120),
            ("empty", &empty, &[], 0),
            ("recursed", &recursed, &[], 0),
        ];
        for (what, message, addresses, seconds) in answers {
            let expected = DnsAnswer {
                addresses: addresses.iter().map(|address| (*address).into()).collect(),
                lasts: Duration::from_secs(seconds),
            };
            assert_eq!(read(message).ok(), Some(expected), "{what}");
        }
        assert!(matches!(read(&referral), Err(QueryError::Referral)));
        for code in [
            ResponseCode::ServFail,
            ResponseCode::Refused,
            ResponseCode::FormErr,
            ResponseCode::NotImp,
            ResponseCode::NotAuth,
        ] {
            let mut refusal = response(&question, code);
            // Whatever stands beside it.
            refusal.add_answer(listing(300, [127, 0, 0, 2]));
            assert!(
                matches!(read(&refusal), Err(QueryError::Code(found)) if found == code),
                "{code}"
            );
        }
    }

    #[test]
    fn an_answer_that_is_cut_within_a_record_is_asked_for_again_over_tcp() {
        let question = DnsQuery::new(NAME).unwrap();
        let mut listed = response(&question, ResponseCode::NoError);
        listed.add_answer(listing(300, [127, 0, 0, 2]));
        let whole = listed.to_vec().unwrap();
        for (length, is_told) in [
            (whole.len() - 3, true),
            (question.octets.len(), true),
            (question.octets.len() - 1, true),
            (whole.len() - 3, false),
        ] {
            let mut cut = whole[..length].to_vec();
            if is_told {
                cut[2] |= 2;
            }
            let found = question.response_in(&cut);
            if is_told && length >= question.octets.len() {
                let message = found.unwrap().expect("a response");
                assert!(message.metadata.truncation && message.answers.is_empty());
            } else {
                assert!(matches!(found, Err(QueryError::Broken(_))), "{length}");
            }
        }
    }

    #[test]
    fn a_packet_that_belongs_to_another_question_is_not_heard() {
        let question = DnsQuery::new(NAME).unwrap();
        let octets = |message: &Message| message.to_vec().unwrap();
        let good = response(&question, ResponseCode::NXDomain);
        assert!(
            question
                .response_in(&octets(&good))
                .is_ok_and(|found| found.is_some())
        );
        let mut other_id = good.clone();
        other_id.metadata.id = question.id.wrapping_add(1);
        let other_name = {
            let mut other = DnsQuery::new("9.113.0.203.other.example.").unwrap();
            other.octets[..2].copy_from_slice(&question.id.to_be_bytes());
            response(&other, ResponseCode::NXDomain)
        };
        for unheard in [octets(&other_id), octets(&other_name), vec![], vec![0]] {
            let found = question.response_in(&unheard);
            assert!(found.as_ref().is_ok_and(Option::is_none), "{found:?}");
        }
        let mut no_question = good.clone();
        no_question.queries.clear();
        for broken in [
            question.octets.clone(),
            octets(&no_question),
            octets(&good)[..20].to_vec(),
            question.id.to_be_bytes().to_vec(),
        ] {
            let found = question.response_in(&broken);
            assert!(matches!(found, Err(QueryError::Broken(_))), "{found:?}");
        }
        // What a server answers that could not even read the question.
        no_question.metadata.response_code = ResponseCode::FormErr;
        assert!(
            question
                .response_in(&octets(&no_question))
                .is_ok_and(|found| found.is_some())
        );
    }
}
