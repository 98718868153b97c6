//! `cargo xtask ebpf`: builds the XDP program, and checks that its source builds the committed
//! object.
//!
//! The object is committed because few machines have its compiler: so a stable `cargo build` of the
//! gateway is enough. `verify` builds it again and compares everything that reaches the kernel.
//! Paths are remapped, so two checkouts build the same object.

mod object;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};

use self::toolchain::Toolchain;
use crate::{setup, workspace};

const TARGET: &str = "bpfel-unknown-none";

/// The programs: the filter, and its peers for the benches.
const PROGRAMS: [&str; 2] = ["portcullis", "benches"];

/// The subcommands of `cargo xtask ebpf`.
#[derive(Subcommand)]
pub(crate) enum Ebpf {
    /// Builds the program and writes the object, and the tools that built it, into ebpf/prebuilt
    #[command(after_help = toolchain::HELP)]
    Build(Options),
    /// Builds the program and compares it with the committed object; as root it installs what is
    /// missing
    #[command(after_help = toolchain::HELP)]
    Verify(Options),
}

/// The options of both.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Install missing tools (apt-get, cargo install); needs root
    #[arg(long)]
    install: bool,
}

/// Builds, or builds and compares.
pub(crate) fn run(chore: &Ebpf) -> Result<ExitCode> {
    match chore {
        Ebpf::Build(options) => {
            let toolchain = toolchain::find(options.install)?;
            for (name, object) in compile(&toolchain)? {
                let path = prebuilt(&format!("{name}.o"));
                fs::write(&path, object)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                println!("ebpf: ebpf/prebuilt/{name}.o is up to date");
            }
            fs::write(prebuilt("built-with.txt"), toolchain.record())
                .context("cannot write ebpf/prebuilt/built-with.txt")?;
            Ok(ExitCode::SUCCESS)
        }
        Ebpf::Verify(options) => {
            let toolchain = toolchain::find(options.install || setup::may_install())?;
            let built = compile(&toolchain)?;
            verify(&toolchain, &built)
        }
    }
}

fn verify(toolchain: &Toolchain, built: &[(&str, Vec<u8>)]) -> Result<ExitCode> {
    let mut differs = false;
    for (name, built) in built {
        let committed = read(&prebuilt(&format!("{name}.o")))?;
        let differences = object::compare(&committed, built)?;
        if differences.is_empty() {
            let instructions = object::instructions(&committed)?;
            println!(
                "ebpf: the source builds the committed {name}.o ({instructions} instructions)"
            );
        }
        for difference in &differences {
            println!("ebpf: {name}.o: {difference}");
        }
        differs |= !differences.is_empty();
    }
    if !differs {
        return Ok(ExitCode::SUCCESS);
    }
    let record = fs::read_to_string(prebuilt("built-with.txt")).unwrap_or_default();
    if record == toolchain.record() {
        bail!(
            "the source does not build the committed object; run `cargo xtask ebpf build` and \
             commit ebpf/prebuilt"
        );
    }
    bail!(
        "the committed object was built with\n{record}and this is\n{}so it may differ for that \
         reason alone; build with the former, or run `cargo xtask ebpf build` and commit \
         ebpf/prebuilt",
        toolchain.record()
    );
}

/// Builds the programs. Returns the name and the object of each.
fn compile(toolchain: &Toolchain) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let directory = workspace::root().join("ebpf/program");
    println!(
        "ebpf: building with {}",
        toolchain.record().trim_end().replace('\n', ", ")
    );
    let mut build = Command::new("cargo");
    build
        .current_dir(&directory)
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            TARGET,
            "-Z",
            "build-std=core",
        ])
        .env("CARGO_TARGET_DIR", directory.join("target"))
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            rust_flags(toolchain)?.join("\x1f"),
        )
        // This allows a stable compiler to build `core`.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", &toolchain.rustc)
        .env("PATH", toolchain.path())
        // Set by the cargo that runs this chore, and meant for its own compiler.
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN");
    let status = build.status().context("cannot start cargo")?;
    ensure!(status.success(), "the program does not build");
    let linked = directory.join("target").join(TARGET).join("release");
    PROGRAMS
        .iter()
        .map(|&name| Ok((name, object::strip(&read(&linked.join(name))?)?)))
        .collect()
}

/// Flags for full debug information, from which the linker makes the BTF that defines the maps, and
/// against paths of this machine in the object.
fn rust_flags(toolchain: &Toolchain) -> Result<Vec<String>> {
    let mut flags = vec!["-Cdebuginfo=2".to_owned(), "-Clink-arg=--btf".to_owned()];
    let mut remap =
        |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    remap(workspace::root(), "/portcullis");
    remap(&toolchain.source, "/rust");
    // The directory below is named after the registry, which differs from machine to machine.
    let registry = toolchain::cargo_home()?.join("registry/src");
    if let Ok(entries) = fs::read_dir(&registry) {
        for entry in entries {
            remap(&entry?.path(), "/crates");
        }
    }
    Ok(flags)
}

fn prebuilt(name: &str) -> PathBuf {
    workspace::root().join("ebpf/prebuilt").join(name)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
