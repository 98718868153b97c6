//! The result of adding a verdict, in words.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use ipnet::IpNet;
use portcullis::config::write_duration;
use portcullis::filter::{self, AddResult, Exemption, VerdictStatus, verdict_network};

/// The source of a verdict, in words.
pub(super) fn whom(source: IpNet) -> String {
    let network = verdict_network(source.addr());
    match source {
        IpNet::V6(address) if address.prefix_len() > 64 => {
            format!("{network} (the /64 of {})", address.addr())
        }
        _ => filter::format_network(&network),
    }
}

/// Why there is no room, and what to do.
pub(super) const NO_ROOM: &str = "there is no room: the map is full of verdicts that were added \
     by hand; `filter verdicts remove` and `flush` make room";

pub(super) fn in_words(
    source: IpNet,
    duration: Duration,
    result: &AddResult,
    except: &[Exemption],
) -> (String, ExitCode) {
    let (whom, duration) = (whom(source), write_duration(duration));
    let except = match except {
        [] => String::new(),
        except => format!(", {}", but_for(except)),
    };
    match result {
        AddResult::Added => (
            format!("{whom} is kept out for {duration}{except}"),
            ExitCode::SUCCESS,
        ),
        // A verdict of an operator replaces every other.
        AddResult::Renewed | AddResult::Kept => (
            format!("{whom} was kept out already, and is for {duration} from now{except}"),
            ExitCode::SUCCESS,
        ),
        AddResult::Refused(exemption) => (refused(source, exemption), ExitCode::FAILURE),
        AddResult::NoRoom => (format!("{whom}: {NO_ROOM}"), ExitCode::FAILURE),
    }
}

/// That a verdict keeps these addresses out only when their grants end.
pub(super) fn still_pass(granted: &[IpAddr]) -> String {
    let (Some(first), more) = (granted.first(), granted.len().saturating_sub(1)) else {
        return String::new();
    };
    match more {
        0 => format!("{first} has a grant and still passes: `portcullis grant revoke {first}`"),
        more => {
            format!("{first} and {more} more have a grant and still pass: `portcullis grant list`")
        }
    }
}

fn refused(source: IpNet, exemption: &Exemption) -> String {
    let network = exemption.network();
    let source = match source.prefix_len() == source.max_prefix_len() {
        true => source.addr().to_string(),
        false => source.to_string(),
    };
    let mut text = match exemption {
        Exemption::Local { .. } => format!(
            "{source} is in the local network {network} (relay.networks), which no verdict keeps \
             out"
        ),
        Exemption::Permitted { list, .. } => format!(
            "{source} is permitted by the list \"{list}\" ({network}), which no verdict overrules"
        ),
    };
    if network.addr().is_ipv6() && network.prefix_len() > 64 {
        text += &format!(
            "; the rest of its /64 can be kept out: add {}",
            verdict_network(network.addr())
        );
    }
    text
}

/// The note, and the exempt parts of the source.
pub(super) fn noted(verdict: &VerdictStatus) -> String {
    if verdict.except.is_empty() {
        return verdict.note.clone();
    }
    let except = format!("({})", but_for(&verdict.except));
    format!("{} {except}", verdict.note).trim_start().to_owned()
}

/// The exempt parts of a /64, in words.
fn but_for(except: &[Exemption]) -> String {
    let parts: Vec<String> = except
        .iter()
        .map(|part| format!("{}, which is {}", part.network(), part.reason()))
        .collect();
    format!("but for {}", parts.join(", and "))
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    fn text(text: &str, result: &AddResult, except: &[Exemption]) -> String {
        let source = source(text).unwrap();
        in_words(source, Duration::from_secs(3_600), result, except).0
    }

    fn local(network: &str) -> Exemption {
        Exemption::Local {
            network: network.parse().unwrap(),
        }
    }

    #[test]
    fn a_verdict_on_an_ipv6_address_names_its_64_and_the_exempt_parts() {
        assert_eq!(
            text("2001:db8::66", &AddResult::Added, &[]),
            "2001:db8::/64 (the /64 of 2001:db8::66) is kept out for 1h"
        );
        let friends = Exemption::Permitted {
            list: "friends".to_owned(),
            network: "2001:db8::7/128".parse().unwrap(),
        };
        assert_eq!(
            text(
                "2001:db8::/64",
                &AddResult::Added,
                &[local("2001:db8:0:0:1::/80"), friends]
            ),
            "2001:db8::/64 is kept out for 1h, but for 2001:db8:0:0:1::/80, which is local, and \
             2001:db8::7/128, which is permitted by friends"
        );
    }

    #[test]
    fn a_part_of_a_64_that_is_local_is_not_said_to_be_all_of_it() {
        let result = AddResult::Refused(local("2001:db8:0:0:1::/80"));
        assert_eq!(
            text("2001:db8::1:0:0:9", &result, &[]),
            "2001:db8::1:0:0:9 is in the local network 2001:db8:0:0:1::/80 (relay.networks), \
             which no verdict keeps out; the rest of its /64 can be kept out: add 2001:db8::/64"
        );
        let result = AddResult::Refused(local("2001:db8::/32"));
        assert_eq!(
            text("2001:db8:1::/64", &result, &[]),
            "2001:db8:1::/64 is in the local network 2001:db8::/32 (relay.networks), which no \
             verdict keeps out"
        );
    }
}
