//! The workspace as chores see it: where it is, and its release build of the gateway.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// The gateway as it is measured and tested: the release build. It may not be built yet.
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
