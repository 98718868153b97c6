//! Domains as they are compared: ASCII letters without regard to case, a trailing dot ignored, and
//! everything else after Unicode lower-casing.
//!
//! There is no IDNA conversion: a domain that mail reaches in both forms is listed in both
//! (`münchen.example` and `xn--mnchen-3ya.example`). The tables of IDNA would be the largest thing
//! in the gate, for a second line in a file.

use std::borrow::Cow;
use std::fmt;

use rustc_hash::FxHashMap;

/// What one entry of a list of domains covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// `isp.example`: this domain.
    Exact(String),
    /// `.isp.example`: every domain beneath it, but not itself.
    Beneath(String),
    /// `*`: every domain.
    Any,
}

impl Pattern {
    /// Reads an entry.
    ///
    /// # Errors
    /// What is wrong with it, in a few words.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        if text == "*" {
            return Ok(Pattern::Any);
        }
        let (beneath, domain) = match text.strip_prefix('.') {
            Some(domain) => (true, domain),
            None => (false, text),
        };
        let domain = normal_form(domain).into_owned();
        check(&domain)?;
        Ok(if beneath {
            Pattern::Beneath(domain)
        } else {
            Pattern::Exact(domain)
        })
    }
}

/// As it is written in the configuration.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Exact(domain) => f.write_str(domain),
            Pattern::Beneath(domain) => write!(f, ".{domain}"),
            Pattern::Any => f.write_str("*"),
        }
    }
}

/// Whether this is a domain in its normal form: labels of letters, digits, hyphens, underscores
/// (met in the wild) or of characters beyond ASCII, within the lengths of RFC 1035 section 2.3.4.
pub(crate) fn check(domain: &str) -> Result<(), String> {
    if domain.contains('*') {
        return Err(
            "a star stands alone; write \".isp.example\" for all that is beneath isp.example"
                .to_owned(),
        );
    }
    if domain.contains('@') {
        return Err("expected a domain, not an address".to_owned());
    }
    if domain.len() > 253 {
        return Err("longer than 253 octets".to_owned());
    }
    for label in domain.split('.') {
        let known = |c: char| {
            c.is_ascii_alphanumeric()
                || c == '-'
                || c == '_'
                || (!c.is_ascii() && c.is_alphanumeric())
        };
        if label.is_empty() || label.len() > 63 || label.starts_with('-') || label.ends_with('-') {
            return Err(format!(
                "`{domain}` is not a domain (look at the label `{label}`)"
            ));
        }
        if let Some(c) = label.chars().find(|&c| !known(c)) {
            return Err(format!(
                "`{domain}` is not a domain: {c:?} cannot be in one"
            ));
        }
    }
    Ok(())
}

/// The form in which domains are compared. Allocates only for what is not in that form already.
pub fn normal_form(domain: &str) -> Cow<'_, str> {
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    if domain
        .bytes()
        .all(|octet| octet.is_ascii() && !octet.is_ascii_uppercase())
    {
        Cow::Borrowed(domain)
    } else {
        Cow::Owned(domain.to_lowercase())
    }
}

/// Domain patterns, each with a number. The most specific pattern answers: the domain itself, then
/// the closest `.parent`, then `*`; of equal patterns the one that was added first.
#[derive(Clone, Debug, Default)]
pub struct Domains {
    exact: FxHashMap<Box<str>, u16>,
    beneath: FxHashMap<Box<str>, u16>,
    any: Option<u16>,
}

impl Domains {
    /// Adds a pattern; `false` when it was there already, and the older number stays.
    pub fn add(&mut self, pattern: &Pattern, number: u16) -> bool {
        let (map, domain) = match pattern {
            Pattern::Exact(domain) => (&mut self.exact, domain),
            Pattern::Beneath(domain) => (&mut self.beneath, domain),
            Pattern::Any => {
                let first = self.any.is_none();
                self.any.get_or_insert(number);
                return first;
            }
        };
        let mut first = false;
        map.entry(domain.as_str().into()).or_insert_with(|| {
            first = true;
            number
        });
        first
    }

    /// The number of the most specific pattern that covers the domain.
    pub fn lookup(&self, domain: &str) -> Option<u16> {
        let domain = normal_form(domain);
        if let Some(&number) = self.exact.get(&*domain) {
            return Some(number);
        }
        if !self.beneath.is_empty() {
            let parents = domain.match_indices('.').map(|(at, _)| &domain[at + 1..]);
            if let Some(&number) = parents
                .into_iter()
                .find_map(|parent| self.beneath.get(parent))
            {
                return Some(number);
            }
        }
        self.any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(patterns: &[&str]) -> Domains {
        let mut domains = Domains::default();
        for (number, text) in patterns.iter().enumerate() {
            domains.add(&Pattern::parse(text).expect(text), number as u16);
        }
        domains
    }

    #[test]
    fn the_most_specific_pattern_answers_whatever_the_order() {
        let table = domains(&[
            "*",
            ".example",
            ".isp.example",
            "isp.example",
            "isp.example",
        ]);
        let cases = [
            ("isp.example", 3),
            ("ISP.Example.", 3),
            ("mail.isp.example", 2),
            ("a.mail.isp.example", 2),
            ("notisp.example", 1),
            ("example", 0),
            ("elsewhere.test", 0),
        ];
        for (domain, number) in cases {
            assert_eq!(table.lookup(domain), Some(number), "{domain}");
        }
        assert_eq!(domains(&[".isp.example"]).lookup("isp.example"), None);
    }

    #[test]
    fn domains_beyond_ascii_are_compared_without_regard_to_case() {
        assert_eq!(
            domains(&["München.example"]).lookup("mÜNCHEN.example"),
            Some(0)
        );
    }

    #[test]
    fn what_is_no_domain_is_refused_in_a_list() {
        for text in [
            "",
            ".",
            "a..b",
            "*.example",
            "user@isp.example",
            "a b",
            "-a.example",
            "isp.example:25",
        ] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }
}
