//! `cargo xtask setup`: lists the missing Debian packages that tests and benches use, and installs
//! them as root.
//!
//! A package counts as installed if the file that we use exists. That is faster than a query to
//! dpkg, and also right if the file came from elsewhere. Servers are installed for their programs,
//! not as services: none runs afterwards, and none starts at the next boot. Rejected: a container
//! image, which would hide from an operator what is needed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, io};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

/// A Debian package, the file in it that we use, and what for. A file without a slash is searched
/// in the PATH.
struct Package {
    name: &'static str,
    file: &'static str,
    purpose: &'static str,
    /// The service that it would start.
    service: Option<&'static str>,
}

const fn tool(name: &'static str, file: &'static str, purpose: &'static str) -> Package {
    Package {
        name,
        file,
        purpose,
        service: None,
    }
}

const PACKAGES: &[Package] = &[
    Package {
        service: Some("postfix"),
        ..tool(
            "postfix",
            "smtp-source",
            "load and next hop (smtp-source, smtp-sink), and a peer",
        )
    },
    Package {
        service: Some("nginx"),
        ..tool("nginx", "nginx", "a peer: the mail proxy")
    },
    tool(
        "libnginx-mod-mail",
        "/usr/lib/nginx/modules/ngx_mail_module.so",
        "the mail proxy itself",
    ),
    Package {
        service: Some("haproxy"),
        ..tool("haproxy", "haproxy", "a trusted front in the tests")
    },
    Package {
        service: Some("rbldnsd"),
        ..tool("rbldnsd", "rbldnsd", "serves DNS lists to the tests")
    },
    Package {
        service: Some("dovecot"),
        ..tool("dovecot-core", "dovecot", "answers passwords in the tests")
    },
    tool(
        "dovecot-pop3d",
        "/usr/lib/dovecot/pop3-login",
        "a POP server, whose log tells of logins",
    ),
    tool("swaks", "swaks", "a client in the tests"),
    tool(
        "libnet-ssleay-perl",
        "/usr/share/doc/libnet-ssleay-perl/copyright",
        "TLS of swaks",
    ),
    tool("curl", "curl", "a client in the tests"),
    tool("msmtp", "msmtp", "a client in the tests (SCRAM)"),
    tool("gsasl", "gsasl", "a client in the tests (SCRAM)"),
    tool("python3", "python3", "a client in the tests (smtplib)"),
    tool("iproute2", "ip", "network namespaces and their links"),
    tool(
        "util-linux",
        "setpriv",
        "processes that end with the test that started them",
    ),
    tool("nftables", "nft", "a peer: drops in an ingress set"),
    tool("xdp-tools", "xdp-filter", "a peer: drops in XDP"),
    tool("ethtool", "ethtool", "what an interface does to packets"),
    tool("netsniff-ng", "trafgen", "floods inside of namespaces"),
    tool(
        "tcpdump",
        "tcpdump",
        "what is on the wire; the oracle of the filter's tests",
    ),
    tool(
        "openssl",
        "openssl",
        "certificates, and a client in the tests (s_client)",
    ),
    tool(
        "ca-certificates",
        "/etc/ssl/certs/ca-certificates.crt",
        "fetching crates",
    ),
    tool("valgrind", "valgrind", "counts instructions in a bench"),
    tool("gcc", "cc", "links what Rust builds; mimalloc"),
    tool(
        "libc6-dev",
        "/usr/include/stdlib.h",
        "links what Rust builds",
    ),
    tool("g++", "c++", "libFuzzer"),
];

/// Options of `cargo xtask setup`.
#[derive(Args, Debug, Default)]
pub(crate) struct Options {
    /// Only list what is missing; exit code 1 if anything is
    #[arg(long)]
    check: bool,
}

/// Installs what is missing, or prints how to.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let missing = missing();
    if missing.is_empty() {
        println!("setup: all {} packages are there", PACKAGES.len());
        return Ok(ExitCode::SUCCESS);
    }
    for package in &missing {
        println!("setup: {} is missing: {}", package.name, package.purpose);
    }
    if options.check || !may_install() {
        let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
        println!(
            "setup: as root, on Debian: cargo xtask setup\n       or: \
             DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {}",
            names.join(" ")
        );
        return Ok(ExitCode::FAILURE);
    }
    install(&missing)?;
    let still_missing: Vec<&str> = self::missing().iter().map(|package| package.name).collect();
    ensure!(
        still_missing.is_empty(),
        "installed, but the files that are used do not exist: {}",
        still_missing.join(" ")
    );
    Ok(ExitCode::SUCCESS)
}

fn missing() -> Vec<&'static Package> {
    PACKAGES
        .iter()
        .filter(|package| find(package.file).is_none())
        .collect()
}

/// The path of a program or file. Also searches the sbin directories, which the PATH of root may
/// lack.
fn find(file: &str) -> Option<PathBuf> {
    if file.starts_with('/') {
        return Path::new(file).exists().then(|| PathBuf::from(file));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(directories)
        .map(|directory| directory.join(file))
        .find(|candidate| candidate.is_file())
}

/// Whether this process is root on a machine with apt-get.
pub(crate) fn may_install() -> bool {
    is_root() && find("apt-get").is_some()
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

fn install(packages: &[&Package]) -> Result<()> {
    let _no_services = NoServices::start()?;
    answer_postfix_question()?;
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    println!("setup: installing {}", names.join(" "));
    // A fresh machine has no package lists, and an old one may list versions that are gone.
    if apt_get(&["install", "-y", "--no-install-recommends"], &names).is_err() {
        println!("setup: fetching the package lists");
        apt_get(&["update"], &[])?;
        apt_get(&["install", "-y", "--no-install-recommends"], &names)?;
    }
    for service in packages.iter().filter_map(|package| package.service) {
        disable(service)?;
    }
    Ok(())
}

fn apt_get(arguments: &[&str], packages: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .arg("-q")
        .args(arguments)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("cannot start apt-get")?;
    ensure!(status.success(), "apt-get {} failed", arguments[0]);
    Ok(())
}

/// Answers Postfix's installation question, so that it does not write a configuration for this
/// machine's mail.
fn answer_postfix_question() -> Result<()> {
    if Path::new("/etc/postfix/main.cf").exists() {
        return Ok(());
    }
    let mut debconf = Command::new("debconf-set-selections")
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start debconf-set-selections")?;
    if let Some(mut input) = debconf.stdin.take() {
        input.write_all(b"postfix postfix/main_mailer_type select No configuration\n")?;
    }
    ensure!(debconf.wait()?.success(), "debconf-set-selections failed");
    Ok(())
}

/// Stops a service that was just installed, now and after the next boot.
fn disable(service: &str) -> Result<()> {
    let mut command = if Path::new("/run/systemd/system").exists() {
        let mut systemctl = Command::new("systemctl");
        systemctl.args(["disable", "--now", service]);
        systemctl
    } else {
        let mut script = Command::new(format!("/etc/init.d/{service}"));
        script.arg("stop");
        script
    };
    // Some init scripts fail if the service does not run; that is no failure here.
    command
        .status()
        .with_context(|| format!("cannot stop {service}: {command:?}"))?;
    Ok(())
}

/// While this value lives, installed packages start no services: invoke-rc.d(8) runs `policy-rc.d`,
/// and its exit code 101 forbids the start. An existing policy is the administrator's, and stays.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn start() -> io::Result<Self> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n")?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("setup: cannot remove {POLICY}, remove it by hand: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_makes_its_package_missing() {
        assert_eq!(find("/nonexistent/module.so"), None);
        assert_eq!(find("no-such-program-anywhere"), None);
        assert!(find("sh").is_some());
    }

    #[test]
    fn no_package_is_named_twice() {
        let mut names: Vec<&str> = PACKAGES.iter().map(|package| package.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PACKAGES.len());
    }
}
