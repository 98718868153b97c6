//! `portcullis lists` with large files, broken files and none.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Output;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::full;
use portcullis_tests::process::portcullis;
use serde_json::Value;
use tempfile::TempDir;

/// A directory for lists and their snapshot.
struct Scene(TempDir);

impl Scene {
    fn new() -> Result<Scene> {
        let builder = tempfile::Builder::new()
            .prefix("portcullis-lists-")
            .tempdir();
        Ok(Scene(builder?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Compiles files, given as `NAME=ACTION:FORMAT` with the name of the file.
    fn compile(&self, lists: &[&str], more: &[&str]) -> Result<Output> {
        let output = self.path("lists.snapshot").display().to_string();
        let mut arguments = vec![
            "lists".to_owned(),
            "compile".to_owned(),
            "-o".to_owned(),
            output,
        ];
        for list in lists {
            let name = list.split('=').next().unwrap_or_default();
            arguments.push("--list".to_owned());
            arguments.push(format!("{list}:{}", self.path(name).display()));
        }
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        portcullis(arguments)
    }

    fn report(&self, lists: &[&str]) -> Result<Value> {
        let output = self.compile(lists, &["--json"])?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
    }

    fn look_up(&self, addresses: &[String]) -> Result<Vec<Value>> {
        let mut arguments = vec!["lists".to_owned(), "lookup".to_owned()];
        arguments.push(self.path("lists.snapshot").display().to_string());
        arguments.extend_from_slice(addresses);
        arguments.push("--json".to_owned());
        let output = portcullis(arguments)?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
    }
}

fn lines(output: &Output) -> (String, String) {
    let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn millions_of_entries_are_compiled_and_found_by_list_and_prefix() -> Result<()> {
    let count = if full() { 10_000_000 } else { 500_000 };
    let scene = Scene::new()?;
    let mut random = fastrand::Rng::with_seed(3);
    let mut picked = Vec::new();
    for (name, head, tail) in [
        (
            "zone",
            "$SOA 3000 ns.x admin.x 0 600 300 86400 300\n:127.0.0.2:Listed: $\n",
            " :127.0.0.3:text",
        ),
        ("netset", "# netset\n", ""),
    ] {
        let mut text = head.to_owned();
        let first: u32 = if name == "zone" { 0 } else { 1 << 31 };
        for number in 0..count {
            let address = Ipv4Addr::from_bits(first | random.u32(..) >> 1);
            writeln!(text, "{address}{tail}")?;
            if number % (count / 10) == 0 {
                picked.push((address.to_string(), name));
            }
        }
        fs::write(scene.path(name), text)?;
    }
    let begun = Instant::now();
    let report = scene.report(&["zone=drop:rbldnsd-ip4set", "netset=reject:cidr"])?;
    println!(
        "{count} entries of each form: {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    for list in report["lists"].as_array().context("lists")? {
        let (entries, merged) = (list["entries"].as_u64(), list["merged"].as_u64());
        ensure!(
            entries.zip(merged).map(|(a, b)| a + b) == Some(count),
            "{list}"
        );
        ensure!(list["refused"] == 0, "{list}");
    }
    let addresses: Vec<String> = picked.iter().map(|(address, _)| address.clone()).collect();
    let begun = Instant::now();
    let answers = scene.look_up(&addresses)?;
    ensure!(
        begun.elapsed().as_secs() < 2,
        "a look-up reads the whole file"
    );
    for (answer, (address, list)) in answers.iter().zip(&picked) {
        let found = &answer["listings"][0];
        ensure!(
            found["list"] == *list && found["prefix"] == format!("{address}/32"),
            "{answer}"
        );
    }
    Ok(())
}

#[test]
fn a_broken_file_gives_what_can_be_read_in_it_and_tells_the_rest() -> Result<()> {
    let scene = Scene::new()?;
    let list = "broken=drop:cidr";
    let path = scene.path("broken");
    let compile = || -> Result<(String, String)> {
        let output = scene.compile(&[list], &["--force"])?;
        ensure!(output.status.success(), "{output:?}");
        Ok(lines(&output))
    };

    // Binary junk between good lines.
    let mut junk = b"192.0.2.1\n".to_vec();
    junk.extend((0..5_000).map(|number: u32| (number * 167 % 251) as u8));
    junk.extend(b"\n192.0.2.2\n");
    fs::write(&path, &junk)?;
    let (_, told) = compile()?;
    ensure!(
        told.contains("skipped") && told.contains("more lines are skipped"),
        "{told}"
    );
    ensure!(
        !told.contains('\u{1b}') && !told.contains('\0'),
        "junk is printed"
    );

    // Half a line at the end.
    fs::write(&path, "192.0.2.1\n198.51.100.0/2")?;
    let (_, told) = compile()?;
    ensure!(
        told.contains("broken:2:") && told.contains("cut off"),
        "{told}"
    );

    // A line of a gigabyte, less on weak machines.
    let mut file = File::create(&path)?;
    file.write_all(b"192.0.2.1\n")?;
    file.seek(SeekFrom::Current(if full() { 1 << 30 } else { 1 << 27 }))?;
    file.write_all(b"\n192.0.2.2\n")?;
    drop(file);
    let (_, told) = compile()?;
    ensure!(
        told.contains("broken:2: skipped: longer than any line"),
        "{told}"
    );
    let found = scene.look_up(&["192.0.2.2".to_owned()])?;
    ensure!(found[0]["listings"][0]["list"] == "broken", "{found:?}");

    // Line ends of another system.
    fs::write(&path, "192.0.2.1\r\n# x\r\n198.51.100.0/24\r\n")?;
    let (_, told) = compile()?;
    ensure!(told.is_empty(), "{told}");
    Ok(())
}

#[test]
fn a_list_that_cannot_be_used_leaves_the_snapshot_as_it_was() -> Result<()> {
    let scene = Scene::new()?;
    let list = "drop=drop:cidr";
    fs::write(scene.path("drop"), "192.0.2.1\n192.0.2.2\n192.0.2.3\n")?;
    ensure!(scene.compile(&[list], &[])?.status.success());
    let before = fs::read(scene.path("lists.snapshot"))?;
    let cases: [(&str, &[&str], &str); 4] = [
        ("", &[], "(3 -> 0 entries)"),
        ("192.0.2.1\n", &[], "(3 -> 1 entries)"),
        (
            "192.0.2.1\n192.0.2.2\n192.0.2\n",
            &["--strict"],
            "drop:3: not an address",
        ),
        ("<html>\n", &["--force"], "is this the right file"),
    ];
    for (text, more, expected) in cases {
        fs::write(scene.path("drop"), text)?;
        let output = scene.compile(&[list], more)?;
        let (_, told) = lines(&output);
        ensure!(output.status.code() == Some(1), "{text:?}: {output:?}");
        ensure!(told.contains(expected), "{text:?}: {told}");
        ensure!(
            fs::read(scene.path("lists.snapshot"))? == before,
            "{text:?}"
        );
    }
    fs::remove_file(scene.path("drop"))?;
    let (_, told) = lines(&scene.compile(&[list], &[])?);
    ensure!(told.contains("No such file"), "{told}");
    Ok(())
}

#[test]
fn what_the_command_line_gets_wrong_is_told_with_exit_code_2() -> Result<()> {
    let cases: [&[&str]; 6] = [
        &["lists", "compile"],
        &["lists", "compile", "--list", "a=drop:cidr:x"],
        &[
            "lists",
            "compile",
            "--list",
            "a=allow:cidr:x",
            "-o",
            "/dev/null",
        ],
        &[
            "lists",
            "compile",
            "--list",
            "a=drop:cidr:x",
            "--list",
            "a=drop:cidr:y",
            "-o",
            "/dev/null",
        ],
        &["lists", "lookup", "a.snapshot"],
        &["lists", "stat", "-c", "/nonexistent"],
    ];
    for arguments in cases {
        let output = portcullis(arguments)?;
        ensure!(output.status.code() == Some(2), "{arguments:?}: {output:?}");
        ensure!(!output.stderr.is_empty(), "{arguments:?}");
    }
    Ok(())
}
