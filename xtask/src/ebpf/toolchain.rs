//! Finds a compiler with LLVM's BPF back end and the source of `core`, and the linker. If one is
//! missing, prints how to get it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::setup;

/// The version of bpf-linker that links the object.
const LINKER_VERSION: &str = "0.13.0";

/// Debian's compiler with its library source (the security suite has a recent one, for browsers),
/// and the LLVM of that compiler, for the linker.
const PACKAGES: [&str; 4] = [
    "rustc-web",
    "rust-web-src",
    "llvm-22-dev",
    "libpolly-22-dev",
];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LLVM_FEATURE: &str = "llvm-22";

/// The text of `--help` about the tools.
pub(super) const HELP: &str = "\
Needs a Rust compiler with the source of its library, and a bpf-linker with the same LLVM as the
compiler. On Debian:
  apt-get install -y --no-install-recommends rustc-web rust-web-src llvm-22-dev libpolly-22-dev
  LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked \\
    --no-default-features --features llvm-22
Elsewhere:
  rustup toolchain install nightly --component rust-src
  cargo install bpf-linker --version 0.13.0 --locked";

/// The tools that were found.
#[derive(Debug)]
pub(super) struct Toolchain {
    pub(super) rustc: PathBuf,
    /// The root of the source of the library.
    pub(super) source: PathBuf,
    compiler: String,
    linker: PathBuf,
    linker_version: String,
}

impl Toolchain {
    /// The compiler and the linker, in two lines.
    pub(super) fn record(&self) -> String {
        format!("{}\n{}\n", self.compiler, self.linker_version)
    }

    /// A search path with the linker's directory first.
    pub(super) fn path(&self) -> OsString {
        let own = self.linker.parent().map(Path::to_owned);
        let others = env::var_os("PATH").unwrap_or_default();
        let all = own.into_iter().chain(env::split_paths(&others));
        env::join_paths(all).unwrap_or(others)
    }
}

/// Finds the tools. Missing tools are installed if `install` is set; otherwise they are an error.
pub(super) fn find(install: bool) -> Result<Toolchain> {
    let mut compiler = find_compiler();
    let mut linker = find_linker();
    if compiler.is_none() || linker.is_none() {
        let needs_packages = compiler.is_none() || !Path::new(LLVM_PREFIX).exists();
        if !install {
            report(compiler.is_some(), linker.is_some());
            bail!(
                "tools to build the XDP program are missing; --install installs them (as root, on \
                 Debian)"
            );
        }
        if needs_packages {
            install_packages()?;
            compiler = find_compiler();
        }
        if linker.is_none() {
            install_linker()?;
            linker = find_linker();
        }
    }
    let (rustc, source, compiler) =
        compiler.context("there is still no compiler with the source of its library")?;
    let (linker, linker_version) = linker.context("there is still no bpf-linker")?;
    Ok(Toolchain {
        rustc,
        source,
        compiler,
        linker,
        linker_version,
    })
}

fn report(compiler: bool, linker: bool) {
    if !compiler {
        println!(
            "ebpf: missing: a Rust compiler (1.90 or newer) with the source of its library \
             (rust-src)"
        );
    }
    if !linker {
        println!("ebpf: missing: bpf-linker {LINKER_VERSION}");
    }
    println!("{HELP}");
}

/// A compiler, the root of the source of its library, and its description.
fn find_compiler() -> Option<(PathBuf, PathBuf, String)> {
    let nightly = output(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]));
    let candidates = [
        Some(PathBuf::from("/usr/bin/rustc")),
        nightly.map(PathBuf::from),
    ];
    candidates.into_iter().flatten().find_map(|rustc| {
        let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let source = PathBuf::from(sysroot).join("lib/rustlib/src/rust");
        let verbose = output(Command::new(&rustc).arg("-vV"))?;
        let there = source.join("library/core/src/lib.rs").exists() && is_recent(&verbose)?;
        there.then_some((rustc, source, describe(&verbose)?))
    })
}

/// Whether the compiler is recent enough: older ones, which Debian has too, know neither the
/// edition nor the current data layout of the target.
fn is_recent(verbose: &str) -> Option<bool> {
    let release = field(verbose, "release: ")?;
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().ok());
    Some((numbers.next()??, numbers.next()??) >= (1, 90))
}

fn describe(verbose: &str) -> Option<String> {
    let llvm = field(verbose, "LLVM version: ")?;
    Some(format!("{}, LLVM {llvm}", verbose.lines().next()?))
}

fn field<'a>(verbose: &'a str, name: &str) -> Option<&'a str> {
    verbose.lines().find_map(|line| line.strip_prefix(name))
}

/// The linker and its version, if it is the right one.
fn find_linker() -> Option<(PathBuf, String)> {
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = cargo_home().ok().map(|home| home.join("bin"));
    let linkers = installed
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|directory| directory.join("bpf-linker"));
    linkers
        .filter(|linker| linker.is_file())
        .find_map(|linker| {
            let version = output(Command::new(&linker).arg("--version"))?;
            version
                .ends_with(LINKER_VERSION)
                .then_some((linker, version))
        })
}

fn install_packages() -> Result<()> {
    ensure!(
        setup::may_install(),
        "only root can install packages, and only with apt-get:\n{HELP}"
    );
    let install = |arguments: &[&str]| {
        let mut apt_get = Command::new("apt-get");
        apt_get
            .arg("-q")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut apt_get)
    };
    let packages = [
        &["install", "-y", "--no-install-recommends"],
        PACKAGES.as_slice(),
    ]
    .concat();
    install(&packages).or_else(|_| {
        println!("ebpf: fetching the package lists");
        install(&["update"])?;
        install(&packages)
    })
}

fn install_linker() -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "install",
        "bpf-linker",
        "--locked",
        "--version",
        LINKER_VERSION,
    ]);
    if Path::new(LLVM_PREFIX).exists() {
        cargo.env("LLVM_PREFIX", LLVM_PREFIX);
        cargo.args(["--no-default-features", "--features", LLVM_FEATURE]);
    }
    run(&mut cargo)
}

fn run(command: &mut Command) -> Result<()> {
    println!("ebpf: {command:?}");
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}

/// The output of a command, if it succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Where cargo keeps crates and installed programs.
pub(super) fn cargo_home() -> Result<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERBOSE: &str = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\n\
                           release: 1.96.0\nLLVM version: 22.1.8\n";

    #[test]
    fn an_old_compiler_is_refused_and_a_nightly_is_accepted() {
        assert_eq!(is_recent(VERBOSE), Some(true));
        assert_eq!(is_recent("release: 1.63.0"), Some(false));
        assert_eq!(is_recent("release: 1.97.0-nightly"), Some(true));
        assert_eq!(is_recent("no such thing"), None);
    }

    #[test]
    fn the_record_names_compiler_and_llvm() {
        assert_eq!(
            describe(VERBOSE).unwrap(),
            "rustc 1.96.0 (ac68faa20 2026-05-25), LLVM 22.1.8"
        );
    }
}
