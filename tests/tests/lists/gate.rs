//! Lists of a running gate: files that change come into force by themselves, and losses do not.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use portcullis_tests::process::{Process, portcullis, relay_to};
use portcullis_tests::wait;
use tempfile::TempDir;

/// Two looks, two seconds apart, and some.
pub(super) const NOTICED: Duration = Duration::from_secs(40);
pub(super) const SHIPPED: &str = "192.0.2.1\n192.0.2.2\n192.0.2.3\n";

/// A list that gets the clients of the test.
pub(super) struct Scene {
    pub(super) directory: TempDir,
    pub(super) configuration: String,
}

impl Scene {
    pub(super) fn new(list: &str) -> Result<Scene> {
        Scene::with(list, "")
    }

    /// With more tables.
    pub(super) fn with(list: &str, more: &str) -> Result<Scene> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-lists-")
            .tempdir()?;
        let path = directory.path().display().to_string();
        let more =
            format!("[[list]]\nname = \"drop\"\nfile = \"{path}/drop\"\naction = \"drop\"\n{more}");
        let configuration = relay_to("discard", &more)?;
        let scene = Scene {
            configuration: configuration.replace("@DIR@", &path),
            directory,
        };
        scene.replace(list)?;
        Ok(scene)
    }

    pub(super) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// As it ought to be done: beside it, and renamed.
    pub(super) fn replace(&self, list: &str) -> Result<()> {
        fs::write(self.path("new"), list)?;
        Ok(fs::rename(self.path("new"), self.path("drop"))?)
    }

    pub(super) fn start(&self) -> Result<Process<'static>> {
        fs::write(self.path("portcullis.toml"), &self.configuration)?;
        Process::start(&self.configuration)
    }

    pub(super) fn compile(&self, more: &[&str]) -> Result<std::process::Output> {
        let file = self.path("portcullis.toml").display().to_string();
        let arguments = ["lists", "compile", "-c", &file];
        portcullis(arguments.iter().chain(more))
    }
}

/// The code of the greeting.
pub(super) fn greeting(gate: &Process<'_>) -> Result<u16> {
    use std::io::Read as _;
    let mut stream = gate.tcp(gate.address())?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut code = [0; 3];
    stream.read_exact(&mut code)?;
    Ok(std::str::from_utf8(&code)?.parse()?)
}

pub(super) fn reloads(gate: &Process<'_>, result: &str) -> Result<f64> {
    let label = format!("result=\"{result}\"");
    gate.metric("portcullis_list_reloads_total", &label)
}

pub(super) fn wait_for_reloads(gate: &Process<'_>, result: &str, count: f64) -> Result<()> {
    wait::until(&format!("{count} {result}"), NOTICED, || {
        reloads(gate, result).ok().filter(|&now| now >= count)
    })?;
    Ok(())
}

#[test]
fn a_file_that_changes_comes_into_force_by_itself_and_says_what_changed() -> Result<()> {
    let scene = Scene::new(SHIPPED)?;
    let gate = scene.start()?;
    ensure!(greeting(&gate)? == 220);
    scene.replace(&format!("{SHIPPED}127.0.0.0/8\n10.0.0.0/8\n"))?;
    gate.wait_for_log("list drop (3 -> 5 entries)", NOTICED)?;
    ensure!(greeting(&gate)? == 554);
    // What is in force is kept for the next start.
    wait::until("the compiled lists", NOTICED, || {
        let stat = portcullis([
            "lists",
            "stat",
            &scene.path("lists.snapshot").display().to_string(),
        ]);
        let text = String::from_utf8_lossy(&stat.ok()?.stdout).into_owned();
        text.contains(" 5 ").then_some(())
    })
}

#[test]
fn a_copy_that_is_still_being_written_is_not_read() -> Result<()> {
    let scene = Scene::new(SHIPPED)?;
    let gate = scene.start()?;
    let mut list = SHIPPED.to_owned();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(7) {
        list.push_str("198.51.100.1\n198.51.100.2\n");
        fs::write(scene.path("drop"), &list)?;
        thread::sleep(Duration::from_millis(200));
    }
    ensure!(reloads(&gate, "good")? == 0.0, "it was read while it grew");
    wait_for_reloads(&gate, "good", 1.0)?;
    gate.wait_for_log("list drop (3 -> 5 entries)", NOTICED)?;
    Ok(())
}

#[test]
fn a_truncated_list_changes_nothing_until_an_operator_says_that_it_is_meant() -> Result<()> {
    let listed = format!("{SHIPPED}127.0.0.0/8\n");
    let scene = Scene::new(&listed)?;
    let gate = scene.start()?;
    ensure!(greeting(&gate)? == 554);
    for truncated in ["", "192.0.2.1\n"] {
        let before = reloads(&gate, "refused")?;
        scene.replace(truncated)?;
        wait_for_reloads(&gate, "refused", before + 1.0)?;
        ensure!(greeting(&gate)? == 554, "the gate is open");
    }
    gate.wait_for_log("list drop (4 -> 1 entries) lost more than", NOTICED)?;
    // It is refused once, and a reload by hand is refused, too.
    ensure!(reloads(&gate, "refused")? == 2.0);
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("not reloaded", NOTICED)?;
    ensure!(greeting(&gate)? == 554);

    let refused = scene.compile(&[])?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    let forced = scene.compile(&["--force"])?;
    ensure!(forced.status.success(), "{forced:?}");
    wait_for_reloads(&gate, "good", 1.0)?;
    ensure!(greeting(&gate)? == 220);
    Ok(())
}

#[test]
fn a_gate_that_starts_with_a_truncated_list_takes_those_of_the_last_compile() -> Result<()> {
    let scene = Scene::new(&format!("{SHIPPED}127.0.0.0/8\n"))?;
    fs::write(scene.path("portcullis.toml"), &scene.configuration)?;
    ensure!(scene.compile(&[])?.status.success());
    scene.replace("192.0.2.1\n")?;
    let gate = scene.start()?;
    ensure!(greeting(&gate)? == 554, "the gate is open");
    gate.wait_for_log("the lists of the last compile are in force", NOTICED)?;
    drop(gate);
    // A start does not make it the measure.
    let gate = scene.start()?;
    ensure!(greeting(&gate)? == 554, "the second start forgot");
    scene.replace(&format!("{SHIPPED}203.0.113.0/24\n"))?;
    wait_for_reloads(&gate, "good", 1.0)?;
    ensure!(greeting(&gate)? == 220);
    Ok(())
}

#[test]
fn a_loss_that_is_meant_is_taken_by_a_gate_that_started_with_it() -> Result<()> {
    let scene = Scene::new(&format!("{SHIPPED}127.0.0.0/8\n"))?;
    fs::write(scene.path("portcullis.toml"), &scene.configuration)?;
    ensure!(scene.compile(&[])?.status.success());
    scene.replace("192.0.2.1\n")?;
    let gate = scene.start()?;
    ensure!(greeting(&gate)? == 554, "the gate is open");
    // So that its first look is before.
    thread::sleep(Duration::from_secs(3));
    ensure!(scene.compile(&["--force"])?.status.success());
    wait_for_reloads(&gate, "good", 1.0)?;
    ensure!(greeting(&gate)? == 220);
    Ok(())
}

#[test]
fn a_list_that_is_gone_stays_in_force() -> Result<()> {
    let scene = Scene::new(&format!("{SHIPPED}127.0.0.0/8\n"))?;
    let gate = scene.start()?;
    fs::remove_file(scene.path("drop"))?;
    wait_for_reloads(&gate, "bad", 1.0)?;
    gate.wait_for_log("cannot read", NOTICED)?;
    ensure!(greeting(&gate)? == 554, "the gate is open");
    Ok(())
}

/// Longer than a file that is written in place has to rest.
const PAUSE: Duration = Duration::from_secs(12);

#[test]
fn a_download_into_the_file_itself_that_pauses_after_whole_lines_is_not_taken_half() -> Result<()> {
    use std::io::Write as _;
    let scene = Scene::new(SHIPPED)?;
    let gate = scene.start()?;
    // So that the gate has looked at the file.
    thread::sleep(Duration::from_secs(3));
    let mut file = fs::File::create(scene.path("drop"))?;
    file.write_all(format!("{SHIPPED}198.51.100.1\n").as_bytes())?;
    thread::sleep(PAUSE);
    ensure!(reloads(&gate, "good")? == 0.0, "half of it was taken");
    file.write_all(b"198.51.100.3\n198.51.100.5\n")?;
    drop(file);
    wait_for_reloads(&gate, "good", 1.0)?;
    gate.wait_for_log("list drop (3 -> 6 entries)", NOTICED)?;
    ensure!(reloads(&gate, "good")? == 1.0);
    Ok(())
}

#[test]
fn lists_that_were_compiled_elsewhere_are_loaded_and_watched() -> Result<()> {
    let scene = Scene::new(SHIPPED)?;
    fs::write(scene.path("portcullis.toml"), &scene.configuration)?;
    let output = scene.path("elsewhere").display().to_string();
    let compile = || -> Result<()> {
        let compiled = scene.compile(&["-o", &output])?;
        ensure!(compiled.status.success(), "{compiled:?}");
        Ok(())
    };
    compile()?;
    let (before, after) = scene
        .configuration
        .split_once("[[list]]")
        .expect("there is a list");
    let rest = after.split_once("[relay]").expect("there is a relay").1;
    let gate = Process::start(&format!(
        "{before}[lists]\nsnapshot = \"{output}\"\n[relay]{rest}"
    ))?;
    ensure!(greeting(&gate)? == 220);
    scene.replace(&format!("{SHIPPED}127.0.0.0/8\n"))?;
    compile()?;
    wait_for_reloads(&gate, "good", 1.0)?;
    ensure!(greeting(&gate)? == 554);
    // A snapshot that is damaged changes nothing.
    let mut octets = fs::read(Path::new(&output))?;
    octets.truncate(octets.len() / 2);
    fs::write(Path::new(&output), octets)?;
    wait_for_reloads(&gate, "bad", 1.0)?;
    ensure!(greeting(&gate)? == 554);
    Ok(())
}
