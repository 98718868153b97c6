//! The commands as a user sees them: help with examples, exit codes for scripts, and errors that
//! name the file, the line and the next step.

use std::fs;
use std::path::Path;
use std::process::Output;

use anyhow::{Result, ensure};
use portcullis_tests::process::portcullis;

/// Every command, and words that its help must have.
const COMMANDS: &[(&[&str], &[&str])] = &[
    (
        &[],
        &[
            "run", "reload", "demo", "check", "explain", "filter", "user", "doctor",
        ],
    ),
    (&["run"], &["-c", "FILE"]),
    (&["reload"], &["-c", "admin_socket"]),
    (&["demo"], &["root", "--json"]),
    (&["check"], &["-c", "FILE"]),
    (&["explain"], &["--client", "--rcpt", "--json"]),
    (&["filter"], &["status", "detach", "events", "verdicts"]),
    (&["filter", "status"], &["--json", "--watch"]),
    (&["filter", "events"], &["--json", "--count", "sample"]),
    (
        &["filter", "verdicts"],
        &["list", "add", "remove", "flush", "/64"],
    ),
    (&["filter", "verdicts", "list"], &["--json", "--why"]),
    (
        &["filter", "verdicts", "add"],
        &["--for", "--note", "-c", "--file", "--json"],
    ),
    (&["filter", "status"], &["are parts of it"]),
    (&["filter", "verdicts", "remove"], &["IP"]),
    (&["filter", "verdicts", "flush"], &["-c"]),
    (&["filter", "attach"], &["-c"]),
    (&["doctor"], &["-c", "--json"]),
    (
        &["user"],
        &["add", "passwd", "senders", "remove", "list", "[auth]"],
    ),
    (
        &["user", "add"],
        &["-c", "FILE", "NAME", "--scram", "--senders"],
    ),
    (&["user", "passwd"], &["-c", "--scram", "--no-scram"]),
    (&["user", "senders"], &["-c", "--any"]),
    (&["user", "remove"], &["-c"]),
    (&["user", "list"], &["-c", "--json"]),
    (&["filter", "detach"], &["-c"]),
];

fn both(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn every_command_has_help_that_ends_well() -> Result<()> {
    for (command, words) in COMMANDS {
        let output = portcullis(command.iter().chain(&["--help"]))?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.code() == Some(0),
            "{command:?} --help: {}",
            output.status
        );
        for word in *words {
            ensure!(
                said.contains(word),
                "{command:?} --help says nothing of {word}:\n{said}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_version_is_told() -> Result<()> {
    let output = portcullis(["--version"])?;
    ensure!(
        output.status.success() && both(&output).starts_with("portcullis "),
        "{}",
        both(&output)
    );
    Ok(())
}

#[test]
fn a_wrong_command_line_is_exit_code_2() -> Result<()> {
    let wrong: &[&[&str]] = &[
        &["nonsense"],
        &["run", "--nonsense"],
        &["run", "-c", "/nonexistent/portcullis.toml"],
        &["check", "-c", "/nonexistent/portcullis.toml"],
        &["explain"],
        &["explain", "--client", "not-an-address"],
        &["explain", "--client", "192.0.2.1", "--dnsbl", "bl.example"],
        // A zone that is not in the configuration would count as silent.
        &[
            "explain",
            "--client",
            "192.0.2.1",
            "--dnsbl",
            "bl.example=127.0.0.2",
        ],
        &["explain", "--client", "192.0.2.1", "--interface", "none"],
        &["filter", "nonsense"],
        &["filter", "verdicts", "add"],
        &["filter", "verdicts", "add", "192.0.2.0/24"],
        &["filter", "verdicts", "add", "192.0.2.1", "--for", "1"],
        &["filter", "verdicts", "add", "192.0.2.1", "--json"],
        &["filter", "verdicts", "remove"],
        &["filter", "events", "--count", "some"],
    ];
    for arguments in wrong {
        let output = portcullis(*arguments)?;
        ensure!(
            output.status.code() == Some(2),
            "{arguments:?}: {}\n{}",
            output.status,
            both(&output)
        );
        ensure!(!output.stderr.is_empty(), "{arguments:?} says nothing");
    }
    Ok(())
}

#[test]
fn a_wrong_configuration_is_exit_code_2_with_every_line_named() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("portcullis.toml");
    fs::write(
        &file,
        "hostname = \"gate.example\"\nworkerz = 2\n\n[limits]\nsessions = \"many\"\n",
    )?;
    for command in ["run", "check"] {
        let output = portcullis([Path::new(command), Path::new("-c"), &file])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(2),
            "{command}: {}\n{said}",
            output.status
        );
        for part in [
            "portcullis.toml:2",
            "workerz",
            "workers",
            "portcullis.toml:5",
        ] {
            ensure!(
                said.contains(part),
                "{command} says nothing of {part}:\n{said}"
            );
        }
    }
    Ok(())
}

#[test]
fn check_tells_what_is_in_force() -> Result<()> {
    let output = portcullis(["check"])?;
    ensure!(output.status.success(), "{}", both(&output));
    ensure!(
        both(&output).contains("127.0.0.1:2525"),
        "{}",
        both(&output)
    );
    Ok(())
}

#[test]
fn explain_names_the_rule() -> Result<()> {
    let stranger = [
        "explain",
        "--client",
        "203.0.113.7",
        "--from",
        "a@b.example",
        "--rcpt",
        "user@foreign.example",
        "--json",
    ];
    let output = portcullis(stranger)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let explained: serde_json::Value = serde_json::from_str(&said)?;
    ensure!(
        said.contains("closed-relay") && said.contains("550"),
        "{explained:#}"
    );
    let local = [
        "explain",
        "--client",
        "127.0.0.1",
        "--rcpt",
        "user@foreign.example",
    ];
    let output = portcullis(local)?;
    ensure!(
        output.status.success() && both(&output).contains("local-network"),
        "{}",
        both(&output)
    );
    Ok(())
}

#[test]
fn explain_takes_a_listener_and_a_user_of_the_configuration_and_no_other() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let hash = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$\
                U4mvDVC1ZVFlcTkq0rYrwqCpp0r3ADM3QkLVG0vu0wM";
    let users = format!("alice password={hash} senders=alice@isp.example\n");
    fs::write(directory.path().join("users"), users)?;
    let file = directory.path().join("portcullis.toml");
    let text = "[[listener]]\naddress = \"192.0.2.1:25\"\n\
                [[listener]]\naddress = \"192.0.2.2:25\"\nauth = \"on\"\n\
                [[route]]\ndomains = [\"*\"]\nnext_hop = [\"discard\"]\n\
                [auth]\nusers = \"users\"\n";
    fs::write(&file, text)?;
    let file = file.display().to_string();
    let explain = |more: &[&str]| {
        let usual = ["explain", "-c", &file, "--client", "203.0.113.7"];
        portcullis(usual.iter().chain(more))
    };
    let output = explain(&[
        "--listener",
        "192.0.2.2:25",
        "--auth",
        "Alice",
        "--from",
        "alice@isp.example",
        "--rcpt",
        "user@far.example",
        "--rcpt",
        "user@[192.0.2.2]",
    ])?;
    let said = both(&output);
    ensure!(
        output.status.success()
            && said.contains("user alice")
            && said.contains("may send as alice@isp.example")
            && said.contains("authenticated")
            && said.contains("message "),
        "{said}"
    );
    let bob = ["--from", "bob@isp.example", "--auth", "alice"];
    let there = ["--listener", "192.0.2.2:25"];
    for (more, rule) in [(&there[..], "foreign-sender"), (&[], "not-implemented")] {
        let said = both(&explain(&[&bob[..], more].concat())?);
        ensure!(said.contains(rule), "{said}");
    }
    for wrong in [["--listener", "192.0.2.3:25"], ["--auth", "bob"]] {
        let output = explain(&wrong)?;
        let said = both(&output);
        ensure!(
            output.status.code() == Some(2) && said.contains(wrong[1]),
            "{wrong:?}: {said}"
        );
    }
    Ok(())
}

#[test]
fn a_port_that_is_taken_is_exit_code_1_and_named() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("portcullis.toml");
    let text = format!(
        "hostname = \"gate.example\"\nstate_dir = \"{}\"\n\
         [[listener]]\naddress = \"{address}\"\nservice = \"relay\"\n\
         [[route]]\ndomains = [\"*\"]\nnext_hop = [\"discard\"]\n",
        directory.path().display()
    );
    fs::write(&file, text)?;
    let output = portcullis([Path::new("run"), Path::new("-c"), &file])?;
    ensure!(
        output.status.code() == Some(1),
        "{}\n{}",
        output.status,
        both(&output)
    );
    ensure!(
        both(&output).contains(&address.to_string()),
        "{}",
        both(&output)
    );
    Ok(())
}
