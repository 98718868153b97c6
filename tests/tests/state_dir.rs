//! The files that the gate needs as an ordinary user: the state directory, its configuration, its
//! lists. If one of them cannot be used, the start, `doctor` and the metrics report it, and mail
//! goes on.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use portcullis_tests::process::{Process, portcullis};
use portcullis_tests::{machine, root, wait};
use serde_json::Value;
use tempfile::TempDir;

/// A file that was changed in place is read after five unchanged checks, ten seconds.
const SOON: Duration = Duration::from_secs(30);
/// The user `nobody`.
const USER: u32 = 65534;

/// A directory that all users may read, with a list and a file of domains in it.
struct Files {
    directory: TempDir,
}

impl Files {
    fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-files-")
            .tempdir()?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        let files = Self { directory };
        fs::write(files.path("list"), "192.0.2.1\n")?;
        fs::write(files.path("domains"), "isp.example\n")?;
        Ok(files)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// A gate that becomes the user `nobody`, and keeps its state there.
    fn configuration(&self, state_dir: &Path) -> Result<String> {
        let (listener, admin) = (machine::free_address()?, machine::free_address()?);
        Ok(format!(
            r#"hostname = "gate.example"
state_dir = "{}"
workers = 1
user = "nobody"
admin = "{admin}"
[log]
format = "json"
[[listener]]
address = "{listener}"
[[route]]
domains = ["*"]
next_hop = ["discard"]
[relay]
networks = ["127.0.0.0/8"]
domains_file = "{}"
[[list]]
name = "testers"
file = "{}"
action = "reject"
"#,
            state_dir.display(),
            self.path("domains").display(),
            self.path("list").display()
        ))
    }

    fn mode(&self, name: &str, mode: u32) -> Result<()> {
        Ok(fs::set_permissions(
            self.path(name),
            Permissions::from_mode(mode),
        )?)
    }

    /// The findings of `doctor` about files: level, subject and text.
    fn doctor(&self, configuration: &str) -> Result<Vec<String>> {
        let file = self.path("doctor.toml");
        fs::write(&file, configuration)?;
        let output = portcullis(["doctor", "--json", "-c", &file.to_string_lossy()])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let findings: Vec<Value> = serde_json::from_slice(&output.stdout).context(said)?;
        let text =
            |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let subjects = [
            "files",
            "state_dir",
            "list",
            "configuration",
            "file of the configuration",
        ];
        let findings = findings.iter().map(|finding| {
            let (level, subject) = (text(finding, "level"), text(finding, "subject"));
            (
                subject.clone(),
                format!("{level} {subject}: {}", text(finding, "found")),
            )
        });
        let about = findings.filter(|(subject, _)| subjects.contains(&&**subject));
        Ok(about.map(|(_, line)| line).collect())
    }
}

/// A small file system, unmounted when this is dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(path: std::path::PathBuf, size: &str) -> Result<Self> {
        fs::create_dir(&path)?;
        let options = format!("size={size},mode=777");
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(&*options),
        )?;
        Ok(Self(path))
    }

    fn make_read_only(&self) -> Result<()> {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        Ok(mount(
            None::<&str>,
            &self.0,
            None::<&str>,
            flags,
            None::<&str>,
        )?)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn saves(gate: &Process<'_>, result: &str) -> Result<f64> {
    gate.metric(
        "portcullis_state_saves_total",
        &format!("result=\"{result}\""),
    )
}

/// A gate that starts and serves, but cannot keep its lists: it reports that, and so does `doctor`.
fn is_told(files: &Files, state_dir: &Path, problem: &str) -> Result<()> {
    let configuration = files.configuration(state_dir)?;
    let told = files.doctor(&configuration)?;
    ensure!(
        told.iter()
            .any(|line| line.starts_with("warning state_dir:") && line.contains(problem)),
        "doctor: {told:?}"
    );
    let gate = Process::start(&configuration)?;
    let line = gate.wait_for_log("state_dir: ", SOON)?;
    ensure!(line.contains("WARN") && line.contains(problem), "{line}");
    gate.wait_for_log("the lists in force are not kept", SOON)?;
    // It is counted after it is logged.
    wait::until("the failure to be counted", SOON, || {
        (saves(&gate, "failed").ok()? == 1.0).then_some(())
    })?;
    ensure!(saves(&gate, "good")? == 0.0);
    ensure!(gate.metric("portcullis_file_unusable", "state_dir")? == 1.0);
    gate.dialogue()?.expect("EHLO client.example", "250")?;
    Ok(())
}

#[test]
fn a_missing_state_directory_is_made_for_the_user_that_the_gate_becomes() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let files = Files::new()?;
    let state_dir = files.path("var/lib/gate");
    let configuration = files.configuration(&state_dir)?;
    let told = files.doctor(&configuration)?;
    ensure!(
        told.iter().any(|line| line.starts_with("ok state_dir:")),
        "{told:?}"
    );
    ensure!(!state_dir.exists(), "doctor has made it");
    let gate = Process::start(&configuration)?;
    wait::until("the lists to be kept", SOON, || {
        state_dir.join("lists.snapshot").exists().then_some(())
    })?;
    let made = fs::metadata(&state_dir)?;
    ensure!(
        (made.uid(), made.mode() & 0o777) == (USER, 0o750),
        "{made:?}"
    );
    wait::until("the save to be counted", SOON, || {
        (saves(&gate, "good").ok()? == 1.0).then_some(())
    })?;
    ensure!(gate.metric("portcullis_state_last_saved_timestamp_seconds", "")? > 1_600_000_000.0);
    ensure!(gate.metric("portcullis_file_unusable", "state_dir")? == 0.0);
    drop(gate);
    let told = files.doctor(&configuration)?;
    ensure!(
        told == ["ok files: the gate can use all files that it needs later"],
        "{told:?}"
    );
    Ok(())
}

#[test]
fn a_state_directory_that_cannot_be_written_is_told_at_the_start_and_by_doctor() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let files = Files::new()?;
    let of_root = files.path("of-root");
    fs::create_dir(&of_root)?;
    is_told(&files, &of_root, "permission denied for nobody")?;
    ensure!(
        fs::metadata(&of_root)?.uid() == 0,
        "what is there keeps its owner"
    );

    let hidden = files.path("hidden");
    fs::create_dir_all(hidden.join("state"))?;
    std::os::unix::fs::chown(hidden.join("state"), Some(USER), None)?;
    files.mode("hidden", 0o700)?;
    is_told(
        &files,
        &hidden.join("state"),
        &format!("by {}", hidden.display()),
    )?;

    let read_only = Mounted::new(files.path("read-only"), "1m")?;
    read_only.make_read_only()?;
    is_told(&files, &read_only.0, "read-only file system")?;

    let full = Mounted::new(files.path("full"), "16k")?;
    // To the last page.
    let filled = fs::write(full.0.join("filler"), vec![0; 1 << 20]);
    ensure!(filled.is_err(), "it was not full");
    is_told(&files, &full.0, "full: ")?;

    fs::write(files.path("file"), "")?;
    is_told(&files, &files.path("file"), "not a directory")
}

#[test]
fn files_that_only_root_can_read_are_told_at_the_start_and_a_chmod_brings_them_into_force()
-> Result<()> {
    if !root() {
        return Ok(());
    }
    let files = Files::new()?;
    files.mode("list", 0o600)?;
    files.mode("domains", 0o600)?;
    let state_dir = files.path("state");
    let configuration = files.configuration(&state_dir)?;
    fs::write(files.path("doctor.toml"), "")?;
    files.mode("doctor.toml", 0o600)?;
    let told = files.doctor(&configuration)?;
    for subject in ["list", "file of the configuration", "configuration"] {
        let beginning = format!("warning {subject}: ");
        let is_told = |line: &String| {
            line.starts_with(&beginning) && line.contains("permission denied for nobody")
        };
        ensure!(told.iter().any(is_told), "{subject}: {told:?}");
    }
    let gate = Process::start(&configuration)?;
    for what in ["list: ", "file of the configuration: "] {
        let line = gate.wait_for_log(&format!("\"{what}"), SOON)?;
        ensure!(
            line.contains("WARN") && line.contains("permission denied for nobody"),
            "{line}"
        );
    }
    ensure!(gate.metric("portcullis_file_unusable", "")? == 2.0);

    // A new list that the gate may not read.
    fs::write(files.path("list"), "192.0.2.1\n192.0.2.2\n")?;
    // A file that is written in place is read after ten unchanged seconds.
    gate.wait_for_log("the lists stay as they were", 3 * SOON)?;
    files.mode("list", 0o644)?;
    gate.wait_for_log("list testers (1 -> 2 entries)", 3 * SOON)?;

    files.mode("domains", 0o644)?;
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("reloaded; nothing has changed", SOON)?;
    Ok(())
}
