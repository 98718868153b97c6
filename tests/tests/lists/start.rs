//! Starts with files of lists that are not there or cannot be used, and what a compile that was
//! killed leaves.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Result, ensure};
use portcullis_tests::process::{Process, portcullis};

use super::gate::{NOTICED, SHIPPED, Scene, greeting, wait_for_reloads};

/// What may stand where the list was.
type Fault = (&'static str, fn(&Path) -> std::io::Result<()>, &'static str);

const FAULTS: [Fault; 5] = [
    ("nothing", |_| Ok(()), "No such file"),
    (
        "a directory",
        |path| fs::create_dir(path),
        "not a regular file",
    ),
    (
        "a link to nowhere",
        |path| symlink("/nonexistent", path),
        "No such file",
    ),
    (
        "an error page",
        |path| fs::write(path, "<html>\n</html>\n"),
        "no other line is valid",
    ),
    (
        "a compressed file",
        |path| fs::write(path, b"\x1f\x8b\x08\0\n\n"),
        "gzip",
    ),
];

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

#[test]
fn a_start_with_a_list_that_cannot_be_used_takes_those_of_the_last_compile_loudly() -> Result<()> {
    let listed = format!("{SHIPPED}127.0.0.0/8\n");
    let scene = Scene::new(&listed)?;
    fs::write(scene.path("portcullis.toml"), &scene.configuration)?;
    ensure!(scene.compile(&[])?.status.success());
    for (what, put, told) in FAULTS {
        remove(&scene.path("drop"))?;
        put(&scene.path("drop"))?;
        let gate = scene.start()?;
        ensure!(greeting(&gate)? == 554, "{what}: the gate is open");
        let line = gate.wait_for_log(told, NOTICED)?;
        ensure!(line.contains("ERROR"), "{what}: {line}");
        gate.wait_for_log("the lists of the last compile are in force", NOTICED)?;
        ensure!(gate.metric("portcullis_lists_old", "")? == 1.0, "{what}");
        // `check` does not take it for good.
        let file = scene.path("portcullis.toml").display().to_string();
        let check = portcullis(["check", "-c", &file])?;
        ensure!(check.status.code() == Some(2), "{what}: {check:?}");
        remove(&scene.path("drop"))?;
        scene.replace(&format!("{listed}192.0.2.9\n"))?;
        wait_for_reloads(&gate, "good", 1.0)?;
        ensure!(gate.metric("portcullis_lists_old", "")? == 0.0, "{what}");
    }
    Ok(())
}

#[test]
fn lists_that_are_not_those_of_the_last_compile_stop_the_start() -> Result<()> {
    let scene = Scene::new(SHIPPED)?;
    let missing = |configuration: &str| -> Result<()> {
        let error = Process::start(configuration)
            .err()
            .map(|error| error.to_string());
        let error = error.unwrap_or_default();
        ensure!(
            error.contains("exit status: 2")
                && error.contains("portcullis.toml:")
                && error.contains("file = "),
            "{error}"
        );
        Ok(())
    };
    fs::remove_file(scene.path("drop"))?;
    // There is none.
    missing(&scene.configuration)?;
    scene.replace(SHIPPED)?;
    drop(scene.start()?);
    fs::write(scene.path("portcullis.toml"), &scene.configuration)?;
    ensure!(scene.compile(&[])?.status.success());
    fs::remove_file(scene.path("drop"))?;
    missing(
        &scene
            .configuration
            .replace("action = \"drop\"", "action = \"permit\""),
    )?;
    missing(
        &scene
            .configuration
            .replace("name = \"drop\"", "name = \"other\""),
    )?;
    drop(scene.start()?);
    Ok(())
}

#[test]
fn what_a_killed_compile_left_is_removed_by_the_next() -> Result<()> {
    let scene = Scene::new(SHIPPED)?;
    fs::write(scene.path("portcullis.toml"), &scene.configuration)?;
    let mut child = std::process::Command::new("true").spawn()?;
    child.wait()?;
    let left = scene.path(&format!(".lists-{}-x7Yz01", child.id()));
    let mut half = vec![0; 64];
    half.extend_from_slice(b"{\"compiled_at\":1764000000,\"lists\":[]}");
    fs::write(&left, half)?;
    let others = scene.path(&format!(".lists-{}-abcdef", child.id()));
    fs::write(&others, "not written by a compile\n")?;
    ensure!(scene.compile(&[])?.status.success());
    ensure!(!left.exists(), "it is still there");
    ensure!(others.exists(), "what is not ours was removed");
    Ok(())
}
