//! What a next hop offers in its reply to EHLO (RFC 5321, 4.1.1.1).

use crate::reply::Reply;
use crate::sasl::{Mechanism, Mechanisms};

/// The extensions that a next hop offers and that a relay can use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// RFC 2920: commands may be sent in groups.
    pub pipelining: bool,
    /// RFC 1870 is offered: SIZE may be declared.
    pub size: bool,
    /// The largest message it accepts, in octets, if it says so.
    pub size_max: Option<u64>,
    /// RFC 6152: octets above 127 in the content.
    pub eight_bit_mime: bool,
    /// RFC 6531: UTF-8 in addresses and headers.
    pub smtputf8: bool,
    /// RFC 3030: BDAT.
    pub chunking: bool,
    /// RFC 3461: NOTIFY, ORCPT, RET, ENVID.
    pub dsn: bool,
    /// RFC 2034: replies have enhanced codes.
    pub enhanced_status_codes: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 4954: the mechanisms that are known here.
    pub auth: Mechanisms,
    /// RFC 9422, RCPTMAX: RCPT commands of one transaction.
    pub recipients_max: Option<u32>,
    /// RFC 9422, MAILMAX: MAIL commands of one session.
    pub transactions_max: Option<u32>,
    /// RFC 9422, RCPTDOMAINMAX: different domains of recipients in one session.
    pub recipient_domains_max: Option<u32>,
}

impl Extensions {
    /// Reads one line of the reply after the first, without code and CRLF.
    pub(super) fn offer(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let Some(keyword) = words.next() else {
            return;
        };
        match keyword.to_ascii_uppercase().as_str() {
            "PIPELINING" => self.pipelining = true,
            "SIZE" => {
                self.size = true;
                // 0 means no fixed limit (RFC 1870, 4).
                self.size_max = words
                    .next()
                    .and_then(|number| number.parse().ok())
                    .filter(|&size| size > 0);
            }
            "8BITMIME" => self.eight_bit_mime = true,
            "SMTPUTF8" => self.smtputf8 = true,
            "CHUNKING" => self.chunking = true,
            "DSN" => self.dsn = true,
            "ENHANCEDSTATUSCODES" => self.enhanced_status_codes = true,
            "STARTTLS" => self.starttls = true,
            "AUTH" => {
                let known = words.filter_map(|word| Mechanism::from_name(word.as_bytes()));
                // Some servers have two lines, one of them for broken clients.
                self.auth = known.chain(self.auth.iter()).collect();
            }
            "LIMITS" => words.for_each(|word| self.limit(word)),
            _ => {}
        }
    }

    fn limit(&mut self, word: &str) {
        if let Some((name, value)) = word.split_once('=') {
            if name.eq_ignore_ascii_case("RCPTMAX") {
                self.recipients_max = limit_value(value);
            } else if name.eq_ignore_ascii_case("MAILMAX") {
                self.transactions_max = limit_value(value);
            } else if name.eq_ignore_ascii_case("RCPTDOMAINMAX") {
                self.recipient_domains_max = limit_value(value);
            }
        }
    }
}

/// What a reply to EHLO says after this keyword; `None`: it is not offered. It is for extensions
/// that only the caller knows, such as XCLIENT.
#[must_use]
pub fn offered_arguments<'a>(reply: &'a Reply<'_>, keyword: &str) -> Option<&'a str> {
    reply.text.lines().skip(1).find_map(|line| {
        let (word, arguments) = line.split_once(' ').unwrap_or((line, ""));
        word.eq_ignore_ascii_case(keyword).then_some(arguments)
    })
}

/// One to six digits that do not begin with 0 (RFC 9422, 4). A value of any other form is ignored.
fn limit_value(value: &str) -> Option<u32> {
    let well_formed = (1..=6).contains(&value.len())
        && !value.starts_with('0')
        && value.bytes().all(|b| b.is_ascii_digit());
    well_formed.then(|| value.parse().ok()).flatten()
}
