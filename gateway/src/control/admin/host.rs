//! Whether a request over the loopback means this host. A page in a browser on this machine can ask
//! the loopback through a name of its own (DNS rebinding); the `Host` of such a request has that
//! name (RFC 9110, section 7.2).

use std::net::IpAddr;

use hyper::header::{HOST, HeaderMap};

/// Whether the `Host` of a request is an address, `localhost` or this name, or there is none.
pub(super) fn is_ours(headers: &HeaderMap, hostname: &str) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    hosts.all(|host| host.to_str().is_ok_and(|host| names(host, hostname)))
}

fn names(host: &str, hostname: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((literal, _)) => literal,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.eq_ignore_ascii_case(hostname)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_stranger_points_at_the_loopback_is_not_ours() {
        for host in [
            "127.0.0.1:9925",
            "[::1]:9925",
            "[::1]",
            "LocalHost:9925",
            "gate.isp.example",
            "gate.isp.example.:9925",
        ] {
            assert!(names(host, "gate.isp.example"), "{host}");
        }
        for host in [
            "rebind.example:9925",
            "127.0.0.1.rebind.example",
            "",
            "[::1",
        ] {
            assert!(!names(host, "gate.isp.example"), "{host}");
        }
        assert!(is_ours(&HeaderMap::new(), "gate"), "HTTP/1.0 needs none");
        let mut twice = HeaderMap::new();
        twice.append(HOST, "localhost".parse().unwrap());
        twice.append(HOST, "rebind.example".parse().unwrap());
        assert!(!is_ours(&twice, "gate"));
    }
}
