//! As whom a user may send: addresses, and domains with all of their addresses.
//!
//! It is compared with the reverse-path of MAIL. A message without one (`<>`, a notification) is
//! not a matter of it.

use portcullis_smtp::path::{Domain, Mailbox};

use super::domain::{self, Domains, Pattern, normal_form};

/// The addresses and domains of one user. Never empty.
#[derive(Clone, Debug, Default)]
pub struct Senders {
    entries: Vec<String>,
    /// Sorted, in lower case.
    addresses: Vec<String>,
    domains: Domains,
}

impl Senders {
    /// Reads a list with commas: `alice@isp.example,sales.example,.shop.example` (an address, a
    /// domain, everything beneath a domain).
    ///
    /// # Errors
    /// The entry that is neither, and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut senders = Self::default();
        for entry in text.split(',') {
            let bad = |why: String| format!("bad sender `{entry}`: {why}");
            if entry.contains('@') {
                let mailbox = Mailbox::parse(entry);
                let mailbox = mailbox.map_err(|_| bad("this is no address".to_owned()))?;
                let Domain::Name(domain) = mailbox.domain else {
                    return Err(bad("the domain of an address is a name".to_owned()));
                };
                domain::check(&normal_form(domain)).map_err(bad)?;
                senders
                    .addresses
                    .push(address_key(mailbox.local_part, domain));
            } else {
                match Pattern::parse(entry).map_err(bad)? {
                    Pattern::Any => return Err(bad("leave `senders` out for any".to_owned())),
                    pattern => senders.domains.add(&pattern, 0),
                };
            }
            senders.entries.push(entry.to_owned());
        }
        senders.addresses.sort_unstable();
        Ok(senders)
    }

    /// Whether the user may send with this address as its reverse-path.
    pub fn include(&self, mailbox: &Mailbox<'_>) -> bool {
        let Domain::Name(domain) = mailbox.domain else {
            return false;
        };
        let key = address_key(mailbox.local_part, domain);
        self.addresses.binary_search(&key).is_ok() || self.domains.lookup(domain).is_some()
    }

    /// As they are in the file, each by itself.
    pub fn entries(&self) -> &[String] {
        &self.entries
    }
}

/// Local parts are compared without case: those of one user are one person's.
fn address_key(local_part: &str, domain: &str) -> String {
    format!("{}@{}", local_part.to_lowercase(), normal_form(domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_may_use_its_addresses_and_its_domains_and_nothing_else() {
        let senders = Senders::parse("alice@isp.example,Sales.example,.shop.example").unwrap();
        let may = |address: &str| senders.include(&Mailbox::parse(address).unwrap());
        for address in [
            "alice@isp.example",
            "Alice@ISP.example",
            "anyone@sales.example",
            "x@a.b.shop.example",
        ] {
            assert!(may(address), "{address}");
        }
        for address in [
            "bob@isp.example",
            "alice@mx.isp.example",
            "x@shop.example",
            "x@notsales.example",
            "\"alice@isp.example\"@evil.example",
            "alice@[192.0.2.1]",
            "postmaster",
        ] {
            assert!(!may(address), "{address}");
        }
    }

    #[test]
    fn a_sender_that_is_no_address_and_no_domain_is_named() {
        for text in [
            "*",
            "",
            "a@",
            "@a.example",
            "a b@c.example",
            "a@[192.0.2.1]",
            "-a.example",
        ] {
            let error = Senders::parse(text).unwrap_err();
            assert!(error.contains(text), "{text}: {error}");
        }
    }
}
