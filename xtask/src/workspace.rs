//! The workspace as chores see it: where it is, and its release build of the gateway.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The top of this checkout. Chores that are started below it behave as if they were started here.
pub(crate) fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// The cargo that runs this chore.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    command
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// A release build of `portcullis`, as it is measured and tested; gives its path.
pub(crate) fn build_gateway() -> Result<PathBuf> {
    let status = cargo()
        .args(["build", "--release", "--package", "portcullis"])
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the release build of portcullis failed");
    Ok(target_directory().join("release/portcullis"))
}
