//! `doctor` and `run` in environments that lack something: both agree whether the gate can run.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis::netns::Namespace;
use portcullis_tests::process::binary;
use portcullis_tests::{root, wait};

/// The addresses of the gate's listener and of its admin endpoint. They are free in the test's own
/// namespace.
const LISTENER: &str = "127.0.0.1:2525";
const ADMIN: &str = "127.0.0.1:9925";

/// An environment: its name, the commands around the gate, lines of the configuration, and whether
/// a gate can run in it.
type Case = (&'static str, &'static [&'static str], &'static str, bool);

const AS_USER: &[&str] = &[
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];
/// Bytes of address space besides the program itself: enough for `doctor` to say what is missing,
/// too little for the buffers of two workers.
const MEMORY_BESIDES: u64 = 16_000_000;
const WORKERS: &str = "workers = 2\n";

const CASES: &[Case] = &[
    ("all that root may", &[], WORKERS, true),
    ("an ordinary user", AS_USER, WORKERS, true),
    (
        "root that becomes a user",
        &[],
        "workers = 2\nuser = \"nobody\"\n",
        true,
    ),
    (
        "few open files",
        &["prlimit", "--nofile=64:64"],
        WORKERS,
        false,
    ),
    (
        "more open files",
        &["prlimit", "--nofile=16:400"],
        WORKERS,
        true,
    ),
    (
        "more workers than files",
        &["prlimit", "--nofile=220:220"],
        "workers = 200\n",
        false,
    ),
    (
        "a user that is full up with threads",
        &[
            "prlimit",
            "--nproc=1:1",
            "setpriv",
            "--reuid=65533",
            "--regid=65533",
            "--clear-groups",
        ],
        WORKERS,
        false,
    ),
    (
        "a user that does not exist",
        &[],
        "workers = 2\nuser = \"no-such-user-here\"\n",
        false,
    ),
    (
        "a user that only root becomes",
        AS_USER,
        "workers = 2\nuser = \"daemon\"\n",
        false,
    ),
    (
        "root that may not become anybody",
        &["setpriv", "--bounding-set=-setuid,-setgid"],
        "workers = 2\nuser = \"nobody\"\n",
        false,
    ),
];

/// The configuration of a gate on the test's port.
fn configuration(top: &str, listener: &str, admin: &str) -> String {
    format!(
        "hostname = \"gate.example\"\nadmin = \"{admin}\"\nstate_dir = \"/tmp\"\n{top}\
         [limits]\nsessions = 1000\n[[listener]]\naddress = \"{listener}\"\n\
         [[route]]\ndomains = [\"*\"]\nnext_hop = [\"discard\"]\n"
    )
}

struct Place<'n> {
    namespace: &'n Namespace,
    directory: tempfile::TempDir,
}

impl<'n> Place<'n> {
    fn new(namespace: &'n Namespace) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // Other users have to read it, and run the files in it.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        fs::copy(binary()?, directory.path().join("portcullis"))?;
        Ok(Self {
            namespace,
            directory,
        })
    }

    fn command(&self, around: &[&str], what: &str, configuration: &str) -> Result<Command> {
        let file = self.directory.path().join("gate.toml");
        fs::write(&file, configuration)?;
        let program = self.directory.path().join("portcullis");
        let mut command = match around.split_first() {
            Some((first, rest)) => {
                let mut command = self.namespace.command(first);
                command.args(rest).arg(program);
                command
            }
            None => self.namespace.command(program),
        };
        command.args([what, "-c"]).arg(file).stdin(Stdio::null());
        Ok(command)
    }

    /// The output of `doctor`, and whether it reports that the gate can run.
    fn doctor(&self, around: &[&str], configuration: &str) -> Result<(bool, String)> {
        let output = self.command(around, "doctor", configuration)?.output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        Ok((output.status.success(), said))
    }

    /// The log of the gate, and whether it starts to serve.
    fn run(&self, around: &[&str], configuration: &str) -> Result<(bool, String)> {
        let path = self.directory.path().join("log");
        let log = File::create(&path)?;
        let mut command = self.command(around, "run", configuration)?;
        let mut child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let serves = wait::until(
            "the gate to serve or to end",
            Duration::from_secs(20),
            || {
                if read(&path).contains("serving") {
                    return Some(true);
                }
                child.try_wait().ok().flatten().map(|_| false)
            },
        );
        let _ = child.kill();
        let _ = child.wait();
        let serves = serves.with_context(|| read(&path))?;
        if serves {
            self.wait_for_the_port()?;
        }
        Ok((serves, read(&path)))
    }

    /// The kernel closes the sockets of a ring some time after its process has ended. Until then
    /// they count for that process's user.
    fn wait_for_the_port(&self) -> Result<()> {
        wait::until(
            "the port of a gate that has ended",
            Duration::from_secs(20),
            || {
                let bound = self.namespace.run(|| TcpListener::bind(LISTENER).is_ok());
                bound.is_ok_and(|bound| bound).then_some(())
            },
        )
    }

    fn agree(&self, what: &str, around: &[&str], configuration: &str, can_run: bool) -> Result<()> {
        let (doctor, findings) = self.doctor(around, configuration)?;
        let (serves, log) = self.run(around, configuration)?;
        ensure!(serves == can_run, "{what}: run {serves}:\n{log}");
        ensure!(
            doctor == serves,
            "{what}: doctor {doctor}, run {serves}:\n{findings}\n{log}"
        );
        // Neither may crash.
        ensure!(
            !log.contains("panicked") && !findings.contains("panicked"),
            "{what}: {log}\n{findings}"
        );
        if !can_run {
            ensure!(findings.contains("PROBLEM"), "{what}: {findings}");
            ensure!(log.contains("portcullis: "), "{what}: {log}");
        }
        Ok(())
    }
}

#[test]
fn doctor_says_that_the_gate_can_run_where_it_does_and_nowhere_else() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let namespace = Namespace::create("doctor")?;
    let place = Place::new(&namespace)?;
    for (what, around, top, can_run) in CASES {
        place.agree(what, around, &configuration(top, LISTENER, ADMIN), *can_run)?;
    }
    let address_space = format!("--as={}", loaded_size(&binary()?)? + MEMORY_BESIDES);
    let around = ["prlimit", &address_space];
    let configuration = configuration(WORKERS, LISTENER, ADMIN);
    place.agree("little memory", &around, &configuration, false)
}

/// How much memory a program takes before it runs, in bytes: the sum of its ELF segments. It is
/// three times as much for a debug build.
fn loaded_size(program: &Path) -> Result<u64> {
    const LOAD: &[u8] = &1u32.to_le_bytes();
    let elf = fs::read(program)?;
    let field = |at: usize, size: usize| {
        let mut number = [0; 8];
        let bytes = elf
            .get(at..at + size)
            .context("no such place in the file")?;
        number[..size].copy_from_slice(bytes);
        anyhow::Ok(u64::from_le_bytes(number))
    };
    // e_phoff, e_phentsize, e_phnum; then p_type and p_memsz of each: elf(5).
    let (table, size, count) = (field(0x20, 8)?, field(0x36, 2)?, field(0x38, 2)?);
    let mut sum = 0;
    for header in 0..count {
        let at = usize::try_from(table + header * size)?;
        if elf.get(at..at + LOAD.len()) == Some(LOAD) {
            sum += field(at + 0x28, 8)?;
        }
    }
    Ok(sum)
}

#[test]
fn doctor_says_what_a_start_does_where_the_file_of_a_list_is_gone() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let namespace = Namespace::create("doctor")?;
    let place = Place::new(&namespace)?;
    let list = place.directory.path().join("drop.netset");
    let text = configuration(WORKERS, LISTENER, ADMIN).replace(
        "state_dir = \"/tmp\"",
        &format!("state_dir = \"{}\"", place.directory.path().display()),
    ) + &format!(
        "[[list]]\nname = \"drop\"\naction = \"reject\"\nfile = \"{}\"\n",
        list.display()
    );
    let (doctor, _) = place.doctor(&[], &text)?;
    let (serves, _) = place.run(&[], &text)?;
    ensure!(
        !doctor && !serves,
        "nothing can stand in for the list: {doctor} {serves}"
    );
    fs::write(&list, "192.0.2.1\n")?;
    let file = place.directory.path().join("gate.toml");
    let program = place.directory.path().join("portcullis");
    let compiled = namespace
        .command(program)
        .args(["lists", "compile", "-c"])
        .arg(&file)
        .output()?;
    ensure!(compiled.status.success(), "{compiled:?}");
    fs::remove_file(&list)?;
    place.agree("no list, but a last compile", &[], &text, true)?;
    let (_, findings) = place.doctor(&[], &text)?;
    ensure!(findings.contains("warning  lists"), "{findings}");
    Ok(())
}

#[test]
fn doctor_finds_the_addresses_that_cannot_be_had() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let namespace = Namespace::create("doctor")?;
    let place = Place::new(&namespace)?;
    let with = |listener: &str, admin: &str| configuration(WORKERS, listener, admin);
    place.agree(
        "a privileged port",
        AS_USER,
        &with("127.0.0.1:25", ADMIN),
        false,
    )?;
    place.agree(
        "a privileged admin port",
        AS_USER,
        &with(LISTENER, "127.0.0.1:99"),
        false,
    )?;
    place.agree(
        "an address of another",
        &[],
        &with("192.0.2.77:2525", ADMIN),
        false,
    )?;
    let address: SocketAddr = LISTENER.parse()?;
    let taken = namespace.run(|| TcpListener::bind(address))??;
    place.agree("a port that is taken", &[], &with(LISTENER, ADMIN), false)?;
    place.agree(
        "an admin port that is taken",
        &[],
        &with("127.0.0.1:2526", LISTENER),
        false,
    )?;
    drop(taken);
    place.agree(
        "a port that is free again",
        &[],
        &with(LISTENER, ADMIN),
        true,
    )
}

/// Detaches the filter, which stays when a gate ends.
struct Pinned(std::path::PathBuf);

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = portcullis::filter::detach(&self.0, &[]);
    }
}

#[test]
fn doctor_finds_what_keeps_the_filter_from_its_place() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let (namespace, world) = (Namespace::create("doctor")?, Namespace::create("world")?);
    namespace.veth("edge", &world, "far")?;
    let place = Place::new(&namespace)?;
    let pin_path = format!("/sys/fs/bpf/portcullis-test-{}", namespace.name());
    let with = |interface: &str, pin_path: &str| {
        let filter = format!(
            "[filter]\ninterfaces = [{{ name = \"{interface}\" }}]\npin_path = \"{pin_path}\"\n"
        );
        configuration(WORKERS, LISTENER, ADMIN) + &filter
    };
    let no_bpf: &[&str] = &["setpriv", "--bounding-set=-bpf,-sys_admin"];
    let no_net: &[&str] = &["setpriv", "--bounding-set=-net_admin,-sys_admin"];
    let admin: &[&str] = &["setpriv", "--bounding-set=-net_admin,-bpf,-perfmon"];
    let cases: [(&str, &[&str], &str, bool); 5] = [
        ("no BPF", no_bpf, "edge", false),
        ("no network administration", no_net, "edge", false),
        ("the administration of all", admin, "edge", true),
        ("no such interface", &[], "none0", false),
        ("all that is needed", &[], "edge", true),
    ];
    for (what, around, interface, can_run) in cases {
        let _pinned = Pinned(pin_path.clone().into());
        place.agree(what, around, &with(interface, &pin_path), can_run)?;
    }
    Ok(())
}
