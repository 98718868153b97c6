//! The gateway's own commands, run as processes on an interface of a namespace of their own.
//!
//! This is how another build's filter becomes a contestant: its object fits its own userspace half
//! and no other, so that half has to put it in place. It is also how long lists take is measured
//! ([`loading`](crate::loading)).

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use portcullis::netns::Namespace;
use portcullis_benches::interrupt;
use portcullis_benches::process::{Privileges, Running};

use crate::attached::{free_pin_path, program_on};
use crate::traffic::Sequence;

/// A list of ten million entries takes seconds; what takes this long hangs.
const TIME_MAX: Duration = Duration::from_secs(300);
/// The interface that the filter is put on.
const INTERFACE: &str = "in";

/// A gateway's binary and the interface that its commands are about.
pub(crate) struct Commands {
    binary: PathBuf,
    namespace: Namespace,
    _outside: Namespace,
    directory: PathBuf,
    /// Where its filter is pinned.
    pub(crate) pins: PathBuf,
}

impl Commands {
    /// Makes the namespace; the files of the commands go to `directory`.
    pub(crate) fn new(binary: &Path, directory: &Path) -> Result<Self> {
        let (namespace, outside) = (Namespace::create("inside")?, Namespace::create("world")?);
        namespace.veth(INTERFACE, &outside, "out")?;
        Ok(Self {
            binary: fs::canonicalize(binary)
                .with_context(|| format!("no gateway at {}", binary.display()))?,
            namespace,
            _outside: outside,
            directory: directory.to_owned(),
            pins: free_pin_path(),
        })
    }

    /// Writes a configuration with these lists.
    pub(crate) fn configuration(&self, name: &str, lists: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        let filter = format!(
            "state_dir = \"{}\"\n[filter]\n\
             interfaces = [{{ name = \"{INTERFACE}\", role = \"edge\" }}]\npin_path = \"{}\"\n",
            self.directory.display(),
            self.pins.display()
        );
        fs::write(&path, format!("{filter}{lists}"))?;
        Ok(path)
    }

    /// Runs a command to its end; gives the seconds it took, and the most bytes of memory it had.
    ///
    /// # Errors
    /// If it fails, or the run is interrupted.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<(f64, u64)> {
        interrupt::check()?;
        let net = format!("--net={}", self.namespace.path().display());
        let binary = self.binary.to_string_lossy();
        let arguments = [&[net.as_str(), "--", binary.as_ref()], arguments].concat();
        let begin = Instant::now();
        let mut running = Running::start(
            "portcullis",
            "nsenter",
            &arguments,
            Privileges::Kept,
            &self.directory,
        )?;
        let (status, memory_peak) = running.wait_weighing(TIME_MAX)?;
        let seconds = begin.elapsed().as_secs_f64();
        ensure!(
            status.success(),
            "{arguments:?} ended ({status})\n{}",
            running.log_tail()
        );
        Ok((seconds, memory_peak))
    }

    /// Puts the filter on the interface, with the lists of a configuration.
    pub(crate) fn attach(&self, configuration: &Path) -> Result<(f64, u64)> {
        self.run(&["filter", "attach", "-c", &configuration.to_string_lossy()])
    }

    /// Takes it off again.
    pub(crate) fn detach(&self) -> Result<()> {
        // Not with `run`: it has to work after an interruption, too.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace.path().display()));
        command.arg("--").arg(&self.binary);
        command
            .args(["filter", "detach", "--pin-path"])
            .arg(&self.pins);
        let output = command.output().context("cannot start nsenter")?;
        ensure!(
            output.status.success(),
            "{command:?} ended ({})\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        if self.pins.exists()
            && let Err(error) = self.detach()
        {
            let pins = self.pins.display();
            eprintln!("{pins} has to be removed by hand: {error:#}");
        }
    }
}

/// Another build's filter on an interface of its own, with a list of this sequence.
pub(crate) struct OtherBuild {
    commands: Commands,
}

impl OtherBuild {
    /// Puts it in place by that build's own `filter attach`.
    pub(crate) fn attach(binary: &Path, listed: Sequence, directory: &Path) -> Result<Self> {
        let commands = Commands::new(binary, directory)?;
        let list = directory.join("list of the other build");
        let mut file = BufWriter::new(File::create(&list)?);
        for network in listed.list() {
            writeln!(file, "{network}")?;
        }
        file.into_inner()?;
        let lists = format!(
            "[[list]]\nname = \"bench\"\nfile = \"{}\"\naction = \"drop\"\n",
            list.display()
        );
        let configuration = commands.configuration("other-build.toml", &lists)?;
        commands.attach(&configuration)?;
        fs::remove_file(list)?;
        Ok(Self { commands })
    }

    /// Its program.
    pub(crate) fn program(&self) -> Result<ProgramFd> {
        program_on(&self.commands.namespace, INTERFACE)
    }
}
