//! The paths of the workspace, and the release build of the gateway, for the chores.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The top of this checkout. Chores run here, wherever they are started.
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

/// The release build of the gateway, for tests and benches. It may not be built yet.
pub(crate) fn gateway_binary() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| OsString::from("target"));
    root().join(target).join("release/portcullis")
}

/// The command that builds [`gateway_binary`].
pub(crate) fn build_gateway() -> Command {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "portcullis"]);
    build
}
