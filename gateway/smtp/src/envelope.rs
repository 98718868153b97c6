//! MAIL and RCPT: the arguments of the two commands that build an envelope, with their ESMTP
//! parameters.
//!
//! All parts borrow from the command line. They are checked here, once: the parts of a [`Mail`] or
//! a [`Rcpt`] may be passed on as they are.

use crate::path::{Path, split_brackets};
use crate::reply::{EnhancedCode, Reply};

/// RFC 3461, 4.4: the maximum length of an ENVID.
const ENVELOPE_ID_LENGTH_MAX: usize = 100;
/// RFC 4954, 3: AUTH adds this much to the command line of MAIL, keyword included.
const SUBMITTER_LENGTH_MAX: usize = 500 - " AUTH=".len();
/// RFC 3461, 4.2: the maximum length of an ORCPT.
const ORIGINAL_RECIPIENT_LENGTH_MAX: usize = 500;

static SENDER_SYNTAX: Reply<'static> = Reply::fixed(
    501,
    EnhancedCode(5, 1, 7),
    "Bad sender address: MAIL FROM:<address> expected",
);
static RECIPIENT_SYNTAX: Reply<'static> = Reply::fixed(
    501,
    EnhancedCode(5, 1, 3),
    "Bad recipient address: RCPT TO:<address> expected",
);
static NEEDS_SMTPUTF8: Reply<'static> = Reply::fixed(
    501,
    EnhancedCode(5, 6, 7),
    "Address beyond ASCII without SMTPUTF8",
);
static NOT_UTF8: Reply<'static> =
    Reply::fixed(501, EnhancedCode(5, 5, 2), "Octets that are not UTF-8");
static PARAMETER_UNKNOWN: Reply<'static> =
    Reply::fixed(555, EnhancedCode(5, 5, 4), "Parameter not implemented");
static PARAMETER_VALUE: Reply<'static> =
    Reply::fixed(501, EnhancedCode(5, 5, 4), "Bad value of a parameter");
static PARAMETER_TWICE: Reply<'static> =
    Reply::fixed(501, EnhancedCode(5, 5, 4), "Parameter given twice");

/// How much of a message a failure report returns (RFC 3461, 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// The whole message.
    Full,
    /// Only its header.
    Headers,
}

/// The arguments of MAIL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mail<'a> {
    /// The reverse-path; `None` is the null path `<>` of bounces.
    pub path: Option<Path<'a>>,
    /// The size of the message as the client declares it, in octets (RFC 1870).
    pub size: Option<u64>,
    /// `BODY=8BITMIME` (RFC 6152).
    pub body_8bit: bool,
    /// `SMTPUTF8` (RFC 6531).
    pub smtputf8: bool,
    /// `RET` (RFC 3461).
    pub ret: Option<Ret>,
    /// `ENVID` (RFC 3461), in xtext as written.
    pub envelope_id: Option<&'a str>,
    /// `AUTH` (RFC 4954, 5): who submitted the message, in xtext as written; `<>` if that is not
    /// known. It is a claim of the client.
    pub submitter: Option<&'a str>,
}

/// The arguments of RCPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rcpt<'a> {
    /// The forward-path.
    pub path: Path<'a>,
    /// `NOTIFY` (RFC 3461), as written.
    pub notify: Option<&'a str>,
    /// `ORCPT` (RFC 3461), the address type and the address in xtext, as written.
    pub original_recipient: Option<&'a str>,
}

type Refusal = &'static Reply<'static>;

impl<'a> Mail<'a> {
    /// Parses what follows `MAIL `. `dsn`: the parameters of RFC 3461 are allowed; `auth`: that
    /// of RFC 4954.
    pub(crate) fn parse(arguments: &'a [u8], dsn: bool, auth: bool) -> Result<Self, Refusal> {
        let (raw, parameters) = split_path(arguments, "FROM:", &SENDER_SYNTAX)?;
        let mut mail = Self {
            path: None,
            size: None,
            body_8bit: false,
            smtputf8: false,
            ret: None,
            envelope_id: None,
            submitter: None,
        };
        let mut body = None;
        for parameter in Parameters(parameters) {
            let (keyword, value) = parameter?;
            match keyword {
                _ if keyword.eq_ignore_ascii_case("SIZE") => {
                    once(&mut mail.size, value.and_then(parse_size))?;
                }
                _ if keyword.eq_ignore_ascii_case("BODY") => {
                    once(&mut body, Some(parse_body(value)?))?;
                }
                _ if keyword.eq_ignore_ascii_case("SMTPUTF8") => {
                    let mut seen = mail.smtputf8.then_some(());
                    once(&mut seen, value.is_none().then_some(()))?;
                    mail.smtputf8 = true;
                }
                _ if dsn && keyword.eq_ignore_ascii_case("RET") => {
                    once(&mut mail.ret, value.and_then(parse_ret))?;
                }
                _ if dsn && keyword.eq_ignore_ascii_case("ENVID") => {
                    let value = value.filter(|v| v.len() <= ENVELOPE_ID_LENGTH_MAX && is_xtext(v));
                    once(&mut mail.envelope_id, value)?;
                }
                _ if auth && keyword.eq_ignore_ascii_case("AUTH") => {
                    let value = value.filter(|v| v.len() <= SUBMITTER_LENGTH_MAX && is_xtext(v));
                    once(&mut mail.submitter, value)?;
                }
                _ => return Err(&PARAMETER_UNKNOWN),
            }
        }
        mail.body_8bit = body == Some(Body::EightBit);
        if !raw.is_empty() {
            mail.path = Some(parse_path(raw, mail.smtputf8, &SENDER_SYNTAX)?);
        }
        Ok(mail)
    }
}

impl<'a> Rcpt<'a> {
    /// Parses what follows `RCPT `. `smtputf8`: MAIL had that parameter. `dsn`: the parameters of
    /// RFC 3461 are allowed.
    pub(crate) fn parse(arguments: &'a [u8], smtputf8: bool, dsn: bool) -> Result<Self, Refusal> {
        let (raw, parameters) = split_path(arguments, "TO:", &RECIPIENT_SYNTAX)?;
        let mut notify = None;
        let mut original_recipient = None;
        for parameter in Parameters(parameters) {
            let (keyword, value) = parameter?;
            match keyword {
                _ if dsn && keyword.eq_ignore_ascii_case("NOTIFY") => {
                    once(&mut notify, value.filter(|v| is_notify(v)))?;
                }
                _ if dsn && keyword.eq_ignore_ascii_case("ORCPT") => {
                    let value = value.filter(|v| is_original_recipient(v, smtputf8));
                    once(&mut original_recipient, value)?;
                }
                _ => return Err(&PARAMETER_UNKNOWN),
            }
        }
        let path = parse_path(raw, smtputf8, &RECIPIENT_SYNTAX)?;
        Ok(Self {
            path,
            notify,
            original_recipient,
        })
    }
}

/// Splits `FROM:<path> parameters`. Spaces before the path are allowed: many clients send one.
fn split_path<'a>(
    arguments: &'a [u8],
    keyword: &str,
    syntax: Refusal,
) -> Result<(&'a str, &'a str), Refusal> {
    let arguments = str::from_utf8(arguments).map_err(|_| &NOT_UTF8)?;
    let (begin, rest) = arguments.split_at_checked(keyword.len()).ok_or(syntax)?;
    if !begin.eq_ignore_ascii_case(keyword) {
        return Err(syntax);
    }
    let (raw, parameters) = split_brackets(rest.trim_start_matches(' ')).map_err(|_| syntax)?;
    if !parameters.is_empty() && !parameters.starts_with(' ') {
        return Err(syntax);
    }
    Ok((raw, parameters))
}

fn parse_path<'a>(raw: &'a str, smtputf8: bool, syntax: Refusal) -> Result<Path<'a>, Refusal> {
    if !smtputf8 && !raw.is_ascii() {
        return Err(&NEEDS_SMTPUTF8);
    }
    Path::parse(raw).map_err(|_| syntax)
}

/// The `keyword[=value]` words after a path (RFC 5321, 4.1.2 `esmtp-param`).
struct Parameters<'a>(&'a str);

impl<'a> Iterator for Parameters<'a> {
    type Item = Result<(&'a str, Option<&'a str>), Refusal>;

    fn next(&mut self) -> Option<Self::Item> {
        let text = self.0.trim_start_matches(' ');
        if text.is_empty() {
            return None;
        }
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        self.0 = rest;
        let (keyword, value) = match word.split_once('=') {
            Some((keyword, value)) => (keyword, Some(value)),
            None => (word, None),
        };
        Some(
            if value.is_some_and(|v| {
                v.is_empty() || v.contains('=') && !keyword.eq_ignore_ascii_case("ORCPT")
            }) {
                Err(&PARAMETER_VALUE)
            } else {
                Ok((keyword, value))
            },
        )
    }
}

/// Stores a value. A value that could not be parsed and a second value are refused.
fn once<T>(place: &mut Option<T>, value: Option<T>) -> Result<(), Refusal> {
    if place.is_some() {
        return Err(&PARAMETER_TWICE);
    }
    *place = Some(value.ok_or(&PARAMETER_VALUE)?);
    Ok(())
}

/// One to twenty digits (RFC 1870, 5). A size beyond 64 bits becomes the largest one.
fn parse_size(value: &str) -> Option<u64> {
    let digits = (1..=20).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| value.parse().unwrap_or(u64::MAX))
}

#[derive(PartialEq)]
enum Body {
    SevenBit,
    EightBit,
}

/// `BINARYMIME` (RFC 3030) is known but not offered.
fn parse_body(value: Option<&str>) -> Result<Body, Refusal> {
    match value {
        Some(v) if v.eq_ignore_ascii_case("7BIT") => Ok(Body::SevenBit),
        Some(v) if v.eq_ignore_ascii_case("8BITMIME") => Ok(Body::EightBit),
        Some(v) if v.eq_ignore_ascii_case("BINARYMIME") => Err(&PARAMETER_UNKNOWN),
        _ => Err(&PARAMETER_VALUE),
    }
}

fn parse_ret(value: &str) -> Option<Ret> {
    match value {
        _ if value.eq_ignore_ascii_case("FULL") => Some(Ret::Full),
        _ if value.eq_ignore_ascii_case("HDRS") => Some(Ret::Headers),
        _ => None,
    }
}

/// RFC 3461, 4.1: NEVER alone, or a list of the others.
fn is_notify(value: &str) -> bool {
    let is_condition = |word: &str| {
        ["SUCCESS", "FAILURE", "DELAY"]
            .iter()
            .any(|c| word.eq_ignore_ascii_case(c))
    };
    value.eq_ignore_ascii_case("NEVER") || value.split(',').all(is_condition)
}

/// RFC 3461, 4.2: `addr-type;xtext`; with SMTPUTF8 the address may be in UTF-8 (RFC 6533, 3).
fn is_original_recipient(value: &str, smtputf8: bool) -> bool {
    let Some((kind, address)) = value.split_once(';') else {
        return false;
    };
    let is_kind = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let is_address = if smtputf8 && kind.eq_ignore_ascii_case("utf-8") {
        !address.is_empty() && address.chars().all(|c| c > ' ' && !c.is_control())
    } else {
        !address.is_empty() && is_xtext(address)
    };
    value.len() <= ORIGINAL_RECIPIENT_LENGTH_MAX && is_kind && is_address
}

/// RFC 3461, 4: printable ASCII without `=`; after `+` come two hexadecimal digits in upper case.
pub(crate) fn is_xtext(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let hex = |b: Option<u8>| matches!(b, Some(b'0'..=b'9' | b'A'..=b'F'));
        let good = match byte {
            b'+' => hex(bytes.next()) && hex(bytes.next()),
            b'=' => false,
            _ => matches!(byte, b'!'..=b'~'),
        };
        if !good {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_mail_are_all_understood() {
        let mail = Mail::parse(
            b"from: <a@b> SIZE=12 body=8BITMIME SMTPUTF8 RET=HDRS  ENVID=x+2By AUTH=e+3Dm@b ",
            true,
            true,
        )
        .unwrap();
        assert_eq!(mail.path.unwrap().raw, "a@b");
        assert_eq!(
            (mail.size, mail.body_8bit, mail.smtputf8),
            (Some(12), true, true)
        );
        assert_eq!(
            (mail.ret, mail.envelope_id),
            (Some(Ret::Headers), Some("x+2By"))
        );
        assert_eq!(mail.submitter, Some("e+3Dm@b"));
        let unknown = Mail::parse(b"FROM:<> AUTH=<>", true, true).unwrap();
        assert_eq!(unknown.submitter, Some("<>"));
        let not_offered = Mail::parse(b"FROM:<> AUTH=<>", true, false);
        assert_eq!(not_offered.map_err(|reply| reply.code), Err(555));
        assert_eq!(Mail::parse(b"FROM:<>", true, false).unwrap().path, None);
        assert_eq!(
            Mail::parse(b"FROM:<> SIZE=99999999999999999999", true, false)
                .unwrap()
                .size,
            Some(u64::MAX)
        );
    }

    #[test]
    fn malformed_mail_is_refused_with_the_right_code() {
        for (arguments, code) in [
            (&b"<a@b>"[..], 501),
            (b"FROM:a@b", 501),
            (b"FROM:<a@b>SIZE=1", 501),
            (b"FROM:<a@b> SIZE", 501),
            (b"FROM:<a@b> SIZE=", 501),
            (b"FROM:<a@b> SIZE=-1", 501),
            (b"FROM:<a@b> SIZE=123456789012345678901", 501),
            (b"FROM:<a@b> SIZE=1 SIZE=1", 501),
            (b"FROM:<a@b> BODY=9BIT", 501),
            (b"FROM:<a@b> BODY=BINARYMIME", 555),
            (b"FROM:<a@b> SMTPUTF8=yes", 501),
            (b"FROM:<a@b> SMTPUTF8 SMTPUTF8", 501),
            (b"FROM:<a@b> ENVID=a+2", 501),
            (b"FROM:<a@b> AUTH", 501),
            (b"FROM:<a@b> AUTH=a+2", 501),
            (b"FROM:<a@b> AUTH=<> AUTH=<>", 501),
            (b"FROM:<a@b> COLOUR=green", 555),
            (b"FROM:<\xc3\xa4@b>", 501),
            (b"FROM:<\xff@b> SMTPUTF8", 501),
        ] {
            let refused = Mail::parse(arguments, true, true).map_err(|reply| reply.code);
            assert_eq!(refused, Err(code), "{}", arguments.escape_ascii());
        }
        assert!(Mail::parse(b"FROM:<\xc3\xa4@b> SMTPUTF8", true, true).is_ok());
    }

    #[test]
    fn parameters_of_rcpt_are_checked_and_kept_as_written() {
        let rcpt = Rcpt::parse(
            b"TO:<a@b> NOTIFY=success,DELAY ORCPT=rfc822;a+2Bc@d",
            false,
            true,
        )
        .unwrap();
        assert_eq!(
            (rcpt.notify, rcpt.original_recipient),
            (Some("success,DELAY"), Some("rfc822;a+2Bc@d"))
        );
        for (arguments, code) in [
            (&b"TO:<>"[..], 501),
            (b"TO:<a@b> NOTIFY=NEVER,DELAY", 501),
            (b"TO:<a@b> NOTIFY=", 501),
            (b"TO:<a@b> ORCPT=a@b", 501),
            (b"TO:<a@b> ORCPT=rfc822;", 501),
            (b"TO:<a@b> SIZE=1", 555),
            (b"FROM:<a@b>", 501),
        ] {
            let refused = Rcpt::parse(arguments, false, true).map_err(|reply| reply.code);
            assert_eq!(refused, Err(code), "{}", arguments.escape_ascii());
        }
    }
}
