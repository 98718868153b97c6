//! `cargo xtask setup`: the Debian packages that tests and benches use: names what is missing, and
//! installs it as root.
//!
//! A package is there if the file that is used of it is there, which is quicker than asking dpkg
//! and also right where it was put by other means. Servers are installed for their programs, not as
//! services: none is left running, and none will be started at the next boot. Rejected: a container
//! image, which would hide from an operator what is needed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, io};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

/// A Debian package, the file in it that is used, and for what. A name without a slash is looked
/// for in the PATH.
struct Package {
    name: &'static str,
    file: &'static str,
    purpose: &'static str,
    /// What it would start by itself.
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
        service: Some("rbldnsd"),
        ..tool("rbldnsd", "rbldnsd", "serves DNS lists to the tests")
    },
    tool("swaks", "swaks", "a client in the tests"),
    tool("curl", "curl", "a client in the tests"),
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
    tool("openssl", "openssl", "certificates for the tests"),
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

/// What `cargo xtask setup` is told.
#[derive(Args, Debug, Default)]
pub(crate) struct Options {
    /// Only says what is missing; exit code 1 if anything is
    #[arg(long)]
    check: bool,
}

/// Installs what is missing, or says how to.
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
            "setup: as root, on Debian: cargo xtask setup\n       or: DEBIAN_FRONTEND=noninteractive \
             apt-get install -y --no-install-recommends {}",
            names.join(" ")
        );
        return Ok(ExitCode::FAILURE);
    }
    install(&missing)?;
    let still_missing: Vec<&str> = self::missing().iter().map(|package| package.name).collect();
    ensure!(
        still_missing.is_empty(),
        "installed, but what is used of them is not there: {}",
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

/// Where a program or file is. Root's PATH may lack the sbin directories, in which most of these
/// programs are.
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

/// Whether this process is root's.
pub(crate) fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

fn install(packages: &[&Package]) -> Result<()> {
    let _no_services = NoServices::start()?;
    answer_postfix_question()?;
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    println!("setup: installing {}", names.join(" "));
    // The package lists of a fresh machine are empty, those of an old one name versions that are
    // gone.
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

/// Without an answer Postfix's installation writes a configuration for this machine's mail, which
/// is none of ours.
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

/// A service that was installed just now is not to run, now or after the next boot.
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
    // That it was not running is no failure, and not every init script thinks so.
    command
        .status()
        .with_context(|| format!("cannot stop {service}: {command:?}"))?;
    Ok(())
}

/// While it lives, packages that are installed start no services: invoke-rc.d(8) asks
/// `policy-rc.d`, and 101 forbids. A policy that the machine has already is the administrator's,
/// and stays as it is.
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
            eprintln!("setup: {POLICY} has to be removed by hand: {error}");
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
