//! What the kernel's TCP is set to, and whether the ports can be had.

use std::io;
use std::net::SocketAddr;

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Finding, setting};
use crate::config::Config;
use crate::control::admin;
use crate::control::start::BACKLOG;

/// The kernel cuts the queue of a listening socket to this.
pub(super) fn backlog() -> Finding {
    let wanted = u64::from(BACKLOG.unsigned_abs());
    match setting("net/core/somaxconn") {
        Some(most) if most >= wanted => {
            Finding::ok("listen queue", format!("net.core.somaxconn is {most}"))
        }
        Some(most) => Finding::warning(
            "listen queue",
            format!("net.core.somaxconn is {most}: a burst of more connections is turned away"),
            format!("sysctl -w net.core.somaxconn={wanted}"),
        ),
        None => Finding::warning(
            "listen queue",
            "net.core.somaxconn cannot be read",
            "look whether /proc/sys is mounted",
        ),
    }
}

/// The users, the groups and the token of the admin endpoints, and the place of the socket.
pub(super) fn access(config: &Config) -> Option<Finding> {
    let (socket, token) = (&config.admin.socket, &config.admin.token_file);
    if socket.is_none() && token.is_none() {
        return None;
    }
    Some(match admin::rehearse(&config.admin) {
        Ok(()) => {
            let found = "the socket can be made, and those who may use it exist";
            Finding::ok(
                "admin",
                if socket.is_some() {
                    found
                } else {
                    "the token is good"
                },
            )
        }
        Err(error) => Finding::problem(
            "admin",
            error,
            "correct the key, or what it names: the gate does not start without it",
        ),
    })
}

pub(super) fn syn_cookies(filter_answers: bool) -> Finding {
    judge_syn_cookies(setting("net/ipv4/tcp_syncookies"), filter_answers)
}

/// `filter_answers`: a filter is to send the kernel's cookies before the kernel has to.
fn judge_syn_cookies(value: Option<u64>, filter_answers: bool) -> Finding {
    match value {
        Some(0) => Finding::warning(
            "SYN cookies",
            "net.ipv4.tcp_syncookies is 0: a flood of spoofed SYNs keeps every client out",
            "sysctl -w net.ipv4.tcp_syncookies=1",
        ),
        Some(2) if filter_answers => Finding::ok(
            "SYN cookies",
            "net.ipv4.tcp_syncookies is 2: the filter answers every SYN for a port of this \
             host, at the price of window scaling and SACK for every client",
        ),
        Some(1) if filter_answers => Finding::ok(
            "SYN cookies",
            "net.ipv4.tcp_syncookies is 1: the filter answers SYNs while the queue of a \
             listener is full; with 2 it answers every one, and no flood gets as far as that \
             queue, at the price of window scaling and SACK for every client",
        ),
        Some(value) => Finding::ok("SYN cookies", format!("net.ipv4.tcp_syncookies is {value}")),
        // A kernel can be built without them.
        None => Finding::warning(
            "SYN cookies",
            "this kernel has none: a flood of spoofed SYNs keeps every client out",
            "use a kernel with CONFIG_SYN_COOKIES",
        ),
    }
}

/// Every address that the gate listens on.
pub(super) fn ports(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut gate_runs = false;
    for address in config.listeners.iter().map(|listener| listener.address) {
        let subject = format!("listen on {address}");
        findings.push(match bind(address, true) {
            Err(error) => judge_error(subject, address, &error),
            Ok(()) if bind(address, false).is_err() => {
                gate_runs = true;
                Finding::ok(
                    subject,
                    "shared with a process that does now, most likely a gate",
                )
            }
            Ok(()) => Finding::ok(subject, "can be had"),
        });
    }
    findings.extend(
        config
            .admin
            .address
            .map(|address| admin(address, gate_runs)),
    );
    findings
}

fn admin(address: SocketAddr, gate_runs: bool) -> Finding {
    let subject = format!("admin on {address}");
    match bind(address, false) {
        Ok(()) => Finding::ok(subject, "can be had"),
        Err(error) if gate_runs && error.raw_os_error() == Some(libc::EADDRINUSE) => {
            Finding::ok(subject, "taken, most likely by the gate that runs")
        }
        Err(error) => judge_error(subject, address, &error),
    }
}

fn judge_error(subject: String, address: SocketAddr, error: &io::Error) -> Finding {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => Finding::problem(
            subject,
            "another process has it",
            format!(
                "`ss -ltnp 'sport = :{}'` says which; stop it, or choose another address",
                address.port()
            ),
        ),
        Some(libc::EACCES) => Finding::problem(
            subject,
            format!(
                "this user may not listen on ports below {}",
                setting("net/ipv4/ip_unprivileged_port_start").unwrap_or(1024)
            ),
            "start as root (with `user`, to run as another user), or with CAP_NET_BIND_SERVICE",
        ),
        Some(libc::EADDRNOTAVAIL) => Finding::problem(
            subject,
            "this machine does not have the address",
            "`ip address` shows the addresses that it has",
        ),
        _ => Finding::problem(subject, error, "choose another address"),
    }
}

/// Takes an address for a moment, without listening: no client connects meanwhile.
fn bind(address: SocketAddr, shared: bool) -> io::Result<()> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::path::Path;

    use super::super::Level;
    use super::*;
    use crate::config;

    #[test]
    fn what_keeps_the_admin_endpoints_from_a_start_is_a_problem() {
        use std::os::unix::fs::PermissionsExt as _;

        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default_gate();
        assert_eq!(access(&config), None);
        config.admin.socket = Some(directory.path().join("admin.sock"));
        assert_eq!(access(&config).unwrap().level, Level::Ok);
        config.admin.users = vec!["no-such-user".to_owned()];
        let finding = access(&config).unwrap();
        assert_eq!(finding.level, Level::Problem, "{finding:?}");
        assert!(finding.found.contains("no-such-user"), "{finding:?}");
        config.admin.users.clear();
        config.admin.socket = Some(directory.path().join("no/run/admin.sock"));
        assert_eq!(access(&config).unwrap().level, Level::Problem);
        let token = directory.path().join("token");
        std::fs::write(&token, "0123456789abcdef").unwrap();
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(&token, open).unwrap();
        config.admin.socket = None;
        config.admin.token_file = Some(token);
        assert_eq!(access(&config).unwrap().level, Level::Problem);
    }

    #[test]
    fn a_port_that_another_program_has_is_found() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let config = format!(
            "admin = \"{address}\"\n[[listener]]\naddress = \"{address}\"\n\
             [[route]]\ndomains = [\"*\"]\nnext_hop = [\"discard\"]\n"
        );
        let config = config::parse(Path::new("test"), &config);
        let config = config.unwrap_or_else(|errors| panic!("{errors}"));
        for finding in ports(&config) {
            assert_eq!(finding.level, Level::Problem, "{finding:?}");
            let next_step = finding.next_step.unwrap();
            assert!(
                next_step.contains(&address.port().to_string()),
                "{next_step}"
            );
        }
        drop(taken);
        assert!(
            ports(&config)
                .iter()
                .all(|finding| finding.level == Level::Ok)
        );
    }

    #[test]
    fn what_a_cookie_for_every_syn_brings_is_told_where_a_filter_would_send_them() {
        for (value, filter_answers, level, words) in [
            (Some(0), true, Level::Warning, "keeps every client out"),
            (None, true, Level::Warning, "keeps every client out"),
            (Some(1), true, Level::Ok, "with 2 it answers every one"),
            (Some(2), true, Level::Ok, "at the price of window scaling"),
            (Some(1), false, Level::Ok, "tcp_syncookies is 1"),
            (Some(2), false, Level::Ok, "tcp_syncookies is 2"),
        ] {
            let finding = judge_syn_cookies(value, filter_answers);
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.found.contains(words), "{finding:?}");
        }
    }

    #[test]
    fn an_address_of_another_machine_is_found() {
        let finding = admin("192.0.2.1:2525".parse().unwrap(), false);
        assert_eq!(finding.level, Level::Problem, "{finding:?}");
    }
}
