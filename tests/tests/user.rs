//! `portcullis user`: the user file from its first line to its last, as an operator makes it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use portcullis::auth::exchange::{Exchange, Mechanism, Step};
use portcullis::auth::{Memory, Users};
use portcullis_tests::process::binary;
use tempfile::TempDir;

struct Site {
    directory: TempDir,
}

impl Site {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let configuration = "[[listener]]\naddress = \"127.0.0.1:2525\"\n\
             [[route]]\ndomains = [\"*\"]\nnext_hop = [\"discard\"]\n\
             [auth]\nusers = \"users\"\n";
        fs::write(directory.path().join("gate.toml"), configuration)?;
        Ok(Self { directory })
    }

    fn configuration(&self) -> PathBuf {
        self.directory.path().join("gate.toml")
    }

    fn users(&self) -> PathBuf {
        self.directory.path().join("users")
    }

    /// `portcullis user ARGUMENTS -c FILE`, with this on standard input.
    fn user(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut child = Command::new(binary()?)
            .arg("user")
            .args(arguments)
            .arg("-c")
            .arg(self.configuration())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("its standard input")?;
        // It may have ended before it read any.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        Ok(child.wait_with_output()?)
    }

    #[track_caller]
    fn good(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.user(arguments, input)?;
        let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        ensure!(
            output.status.success(),
            "{arguments:?}: {}: {out}{err}",
            output.status
        );
        Ok(out.into_owned())
    }

    #[track_caller]
    fn bad(&self, arguments: &[&str], code: i32, part: &str) -> Result<()> {
        let output = self.user(arguments, "other password\n")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(code),
            "{arguments:?}: {}: {said}",
            output.status
        );
        ensure!(said.contains(part), "{arguments:?}: {said}");
        Ok(())
    }

    /// The user that PLAIN with this name and password comes to.
    fn login(&self, name: &str, password: &str) -> Result<Option<String>> {
        let users = Users::read(&self.users()).map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
        let mut exchange = Exchange::new(Mechanism::Plain, &users, [0; 16]);
        let response = format!("\0{name}\0{password}").into_bytes();
        let Step::Check(credentials) = exchange.begin(Some(response.into())) else {
            anyhow::bail!("PLAIN asks for a check");
        };
        let user = users.check(&credentials, &mut Memory::default());
        Ok(user.map(|user| user.name.to_string()))
    }
}

#[test]
fn a_user_is_added_changed_listed_and_removed() -> Result<()> {
    let site = Site::new()?;
    site.good(
        &["add", "Alice@ISP.example", "--senders", "alice@isp.example"],
        "first secret\n",
    )?;
    site.good(&["add", "scanner", "--scram"], "machine")?;
    ensure!(fs::metadata(site.users())?.permissions().mode() & 0o777 == 0o600);
    let file = fs::read_to_string(site.users())?;
    ensure!(
        !file.contains("first secret") && !file.contains("machine"),
        "{file}"
    );
    ensure!(site.login("alice@isp.example", "first secret")?.is_some());
    ensure!(site.login("SCANNER", "machine")?.as_deref() == Some("scanner"));
    ensure!(site.login("scanner", "machine\n")?.is_none());

    site.good(&["passwd", "alice@isp.example"], "second\r\n")?;
    ensure!(site.login("alice@isp.example", "first secret")?.is_none());
    ensure!(site.login("alice@isp.example", "second")?.is_some());

    let listed: serde_json::Value = serde_json::from_str(&site.good(&["list", "--json"], "")?)?;
    let expected = serde_json::json!([
        {"name": "alice@isp.example", "scram": false, "senders": ["alice@isp.example"], "line": 4},
        {"name": "scanner", "scram": true, "senders": null, "line": 5},
    ]);
    ensure!(listed == expected, "{listed}");
    let table = site.good(&["list"], "")?;
    ensure!(
        table.contains("scanner") && !table.contains("argon2"),
        "{table}"
    );

    site.good(&["remove", "scanner"], "")?;
    ensure!(site.login("scanner", "machine")?.is_none());
    site.bad(&["remove", "scanner"], 1, "there is no user scanner")
}

#[test]
fn another_password_replaces_scram_keys_too() -> Result<()> {
    let site = Site::new()?;
    let keys = || -> Result<Option<String>> {
        let file = fs::read_to_string(site.users())?;
        let key = file
            .split_ascii_whitespace()
            .find(|word| word.starts_with("scram="));
        Ok(key.map(str::to_owned))
    };
    site.good(&["add", "alice", "--scram"], "one")?;
    let first = keys()?;
    site.good(&["passwd", "alice"], "two")?;
    ensure!(first.is_some() && keys()?.is_some() && keys()? != first);
    site.good(&["passwd", "alice", "--no-scram"], "three")?;
    ensure!(keys()?.is_none());
    site.good(&["passwd", "alice", "--scram"], "four")?;
    ensure!(keys()?.is_some());
    Ok(())
}

#[test]
fn what_cannot_be_done_is_said_and_changes_nothing() -> Result<()> {
    let site = Site::new()?;
    site.good(&["add", "alice"], "secret")?;
    let before = fs::read(site.users())?;
    site.bad(&["add", "ALICE"], 1, "is a user already; `passwd`")?;
    site.bad(&["add", "a b"], 2, "a name has no")?;
    site.bad(&["add", "bob", "--senders", "*"], 1, "bad sender `*`")?;
    site.bad(&["passwd", "bob"], 1, "there is no user bob")?;
    site.bad(&["senders", "alice"], 2, "required")?;
    let output = site.user(&["add", "bob"], "")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("from 1 to 1,024 octets"), "{said}");
    ensure!(fs::read(site.users())? == before);
    site.good(&["senders", "alice", "a.example"], "")?;
    site.good(&["senders", "alice", "--any"], "")?;
    ensure!(fs::read(site.users())? == before);

    fs::write(site.users(), "alice password=hunter2\n")?;
    site.bad(
        &["add", "bob"],
        1,
        "users:1: the password is no argon2 hash",
    )?;
    fs::write(site.configuration(), "[filter]\ninterfaces = []\n")?;
    let output = site.user(&["list"], "")?;
    ensure!(output.status.code() == Some(2), "{}", output.status);
    Ok(())
}

/// A terminal of its own, by Python's pty: what is typed is not shown.
#[test]
fn a_terminal_does_not_show_the_password_and_asks_twice() -> Result<()> {
    const SCRIPT: &str = r#"
import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:-2])
shown = b""
def until(text):
    global shown
    while text not in shown:
        shown += os.read(terminal, 1024)
until(b"Password: ")
# The echo is off once the prompt is there, but for a moment.
time.sleep(0.3)
os.write(terminal, sys.argv[-2].encode() + b"\n")
until(b"again: ")
time.sleep(0.3)
os.write(terminal, sys.argv[-1].encode() + b"\n")
try:
    while True:
        more = os.read(terminal, 1024)
        if not more: break
        shown += more
except OSError:
    pass
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;
    let site = Site::new()?;
    let typed = |name: &str, first: &str, second: &str| -> Result<(bool, String)> {
        let output = Command::new("python3")
            .args(["-c", SCRIPT])
            .arg(binary()?)
            .args(["user", "add", name, "-c"])
            .arg(site.configuration())
            .args([first, second])
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok((
            output.status.success(),
            said + &String::from_utf8_lossy(&output.stderr),
        ))
    };
    let (good, said) = typed("alice", "sesame17", "sesame17")?;
    ensure!(good && !said.contains("sesame17"), "{said}");
    ensure!(site.login("alice", "sesame17")?.is_some());
    let (good, said) = typed("bob", "sesame17", "sesame18")?;
    ensure!(!good && said.contains("the two differ"), "{said}");
    ensure!(site.login("bob", "sesame17")?.is_none());
    Ok(())
}

#[test]
fn check_says_that_users_are_not_asked_for_yet() -> Result<()> {
    let site = Site::new()?;
    let check = || -> Result<(Option<i32>, String)> {
        let mut command = Command::new(binary()?);
        let output = command
            .args(["check", "-c"])
            .arg(site.configuration())
            .output()?;
        Ok((
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    };
    let (code, said) = check()?;
    ensure!(
        code == Some(2) && said.contains("portcullis user add"),
        "{code:?}: {said}"
    );
    site.good(&["add", "alice"], "secret")?;
    let (code, said) = check()?;
    ensure!(
        code == Some(0) && said.contains("no listener offers AUTH"),
        "{code:?}: {said}"
    );
    Ok(())
}
