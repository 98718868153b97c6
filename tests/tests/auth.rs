//! AUTH through the whole gate: real clients with every mechanism, by the user file and by a real
//! Dovecot; what is refused; and where a password must never be.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use portcullis_tests::dialogue::Dialogue;
use portcullis_tests::dovecot::Dovecot;
use portcullis_tests::process::{Process, relay_to};
use portcullis_tests::root;
use portcullis_tests::users::{UserFile, base64, plain};

const SOON: Duration = Duration::from_secs(10);
const PASSWORD: &str = "looking-glass-1871-and-the-red-queen-too";
const USERS: &[(&str, &str)] = &[("alice", PASSWORD), ("bob", "builder")];

/// A gate that offers AUTH in the clear and throws mail away. `back_end` is the content of
/// `[auth]`.
fn configuration(back_end: &str, more: &str) -> Result<String> {
    let more = format!(
        "[auth]\n{back_end}\n[relay]\nnetworks = [\"192.0.2.0/24\"]\n\
         domains = [\"gate.example\"]\n{more}"
    );
    let offers = "service = \"relay\"\nauth = \"on\"\nauth_without_tls = true";
    Ok(relay_to("192.0.2.1:25", &more)?
        .replace("\"192.0.2.1:25\"", "\"discard\"")
        .replace("service = \"relay\"", offers))
}

fn of_users(users: &UserFile) -> String {
    format!("users = \"{}\"", users.path().display())
}

fn with_users(more: &str) -> Result<(Process<'static>, UserFile)> {
    let users = UserFile::new(USERS)?;
    let gate = Process::start(&configuration(&of_users(&users), more)?)?;
    Ok((gate, users))
}

/// A session after EHLO, with the reply to it.
fn hello(gate: &Process<'_>) -> Result<(Dialogue, String)> {
    let mut client = gate.dialogue()?;
    client.patience(Duration::from_secs(40))?;
    let offered = client.expect("EHLO client.example", "250")?.text();
    Ok((client, offered))
}

fn run(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    output.with_context(|| format!("{program} is missing: `cargo xtask setup` installs it"))
}

/// Each of the real clients sends one message, or fails to, as alice with this password. Returns
/// what each said, by name, and whether it was content. `only`: those whose name has one of these.
fn real_clients(
    gate: &Process<'_>,
    password: &str,
    only: &[&str],
) -> Result<Vec<(String, bool, String)>> {
    let (host, port) = (gate.address().ip(), gate.address().port());
    let message = gate.directory().join("message");
    fs::write(&message, "Subject: from a client\r\n\r\nhello\r\n")?;
    let mut commands = Vec::new();
    for mechanism in ["PLAIN", "LOGIN"] {
        let mut swaks = Command::new("swaks");
        swaks
            .args(["--server", &gate.address().to_string()])
            .args(["--ehlo", "client.example", "--timeout", "40s"])
            .args(["--from", "alice@gate.example", "--to", "b@gate.example"])
            .args(["--auth", mechanism, "--auth-user", "alice"])
            .args(["--auth-password", password]);
        commands.push((format!("swaks {mechanism}"), swaks));
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--verbose", "--max-time", "40"])
            .args(["--mail-from", "alice@gate.example"])
            .args(["--mail-rcpt", "b@gate.example", "--upload-file"])
            .arg(&message)
            .args(["--login-options", &format!("AUTH={mechanism}")])
            .args(["--user", &format!("alice:{password}")])
            .arg(format!("smtp://{host}:{port}/client.example"));
        commands.push((format!("curl {mechanism}"), curl));
    }
    for mechanism in ["scram-sha-256", "plain", "login"] {
        let script = format!(
            "msmtp --host={host} --port={port} --tls=off --auth={mechanism} --user=alice \
             --passwordeval='echo {password}' --from=alice@gate.example --timeout=40 \
             b@gate.example < {}",
            message.display()
        );
        let mut msmtp = Command::new("sh");
        msmtp.args(["-c", &script]);
        commands.push((format!("msmtp {mechanism}"), msmtp));
    }
    let mut gsasl = Command::new("gsasl");
    gsasl
        .args([
            "--smtp",
            "--no-starttls",
            "--quality-of-protection=qop-auth",
        ])
        .args(["--connect", &gate.address().to_string()])
        .args(["--mechanism", "SCRAM-SHA-256", "-a", "alice"])
        .args(["-p", password]);
    commands.push(("gsasl SCRAM-SHA-256".to_owned(), gsasl));
    const SMTPLIB: &str = "import smtplib, sys\n\
        host, port, password = sys.argv[1:]\n\
        with smtplib.SMTP(host, int(port), timeout=40) as client:\n \
        client.login('alice', password)\n \
        client.sendmail('alice@gate.example', ['b@gate.example'], 'Subject: x\\n\\nhello')\n";
    let mut python = Command::new("python3");
    python.args([
        "-c",
        SMTPLIB,
        &host.to_string(),
        &port.to_string(),
        password,
    ]);
    commands.push(("smtplib".to_owned(), python));
    let mut results = Vec::new();
    for (name, mut command) in commands {
        if !only.iter().any(|part| name.contains(part)) {
            continue;
        }
        let output = run(&mut command)?;
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said += &String::from_utf8_lossy(&output.stderr);
        results.push((name, output.status.success(), said));
    }
    Ok(results)
}

fn all_are_served(gate: &Process<'_>) -> Result<()> {
    let results = real_clients(gate, PASSWORD, &[""])?;
    for (name, is_good, said) in &results {
        ensure!(*is_good, "{name}: {said}\n{}", gate.log());
    }
    // gsasl sends no message, but ends its session.
    let count = results.len() as f64;
    ensure!(gate.metric("portcullis_auth_attempts_total", "\"accepted\"")? >= count);
    let sessions = || {
        let of_alice =
            |line: &serde_json::Value| line["target"] == "session" && line["user"] == "alice";
        let lines = gate.log_lines().into_iter().filter(of_alice).count();
        (lines >= results.len()).then_some(())
    };
    portcullis_tests::wait::until("a record of each session", SOON, sessions)
        .with_context(|| gate.log())
}

#[test]
fn real_clients_are_who_they_say_with_every_mechanism() -> Result<()> {
    let (gate, _users) = with_users("")?;
    let (_, offered) = hello(&gate)?;
    ensure!(
        offered.contains("AUTH SCRAM-SHA-256 PLAIN LOGIN"),
        "{offered}"
    );
    all_are_served(&gate)
}

#[test]
fn real_clients_with_a_wrong_password_are_refused_and_no_password_is_logged() -> Result<()> {
    let users = UserFile::new(USERS)?;
    let text = configuration(&of_users(&users), "")?.replace("[log]", "[log]\nlevel = \"trace\"");
    let gate = Process::start(&text)?;
    const WRONG: &str = "through-the-glass";
    // Each refusal takes longer: one for each mechanism is enough.
    let some = ["swaks", "msmtp scram"];
    for (name, is_good, said) in real_clients(&gate, WRONG, &some)? {
        ensure!(!is_good, "{name}: {said}");
    }
    ensure!(gate.metric("portcullis_auth_attempts_total", "\"refused\"")? >= 3.0);
    let (mut client, _) = hello(&gate)?;
    client.expect(&plain("alice", PASSWORD), "235")?;
    // One who types the password where the name goes.
    let (mut client, _) = hello(&gate)?;
    client.expect(&plain(PASSWORD, WRONG), "535 5.7.8")?;
    client.expect("QUIT", "221")?;
    gate.wait_for_log("wrong password", SOON)?;
    let log = gate.log();
    for secret in [PASSWORD, WRONG] {
        let as_plain = plain("alice", secret);
        for text in [
            secret,
            &base64(secret),
            as_plain.trim_start_matches("AUTH PLAIN "),
        ] {
            ensure!(!log.contains(text), "{text} is in the log:\n{log}");
        }
    }
    Ok(())
}

#[test]
fn what_is_no_authentication_is_refused_as_rfc_4954_says() -> Result<()> {
    let (gate, _users) = with_users("[limits]\nerrors_per_session = 100\n")?;
    let mut early = gate.dialogue()?;
    early.expect(&plain("alice", PASSWORD), "503")?;
    let (mut client, _) = hello(&gate)?;
    client.expect("AUTH", "501 5.5.4")?;
    client.expect("AUTH CRAM-MD5", "504 5.5.4")?;
    client.expect("AUTH PLAIN not-base64", "501 5.5.2")?;
    client.expect("AUTH PLAIN", "334")?;
    client.expect("not base64", "501 5.5.2")?;
    client.expect("AUTH LOGIN", "334 VXNlcm5hbWU6")?;
    client.expect("*", "501 5.7.0")?;
    client.expect("AUTH LOGIN", "334")?;
    client.expect(&base64("alice"), "334 UGFzc3dvcmQ6")?;
    client.expect("*", "501 5.7.0")?;
    client.expect(&format!("AUTH PLAIN {}", base64("alice")), "501 5.5.2")?;
    client.expect(
        &format!("AUTH SCRAM-SHA-256 {}", base64("n,,")),
        "501 5.5.2",
    )?;
    // RFC 4954 section 4: lines of up to 12,288 octets without their CRLF.
    client.expect("AUTH PLAIN", "334")?;
    client.expect(&base64(&"x".repeat(9_216)), "501 5.5.2")?;
    client.expect("AUTH PLAIN", "334")?;
    client.expect(&"A".repeat(12_292), "500 5.5.6")?;
    // After all that it is as any session.
    client.expect(&plain("alice", PASSWORD), "235 2.7.0")?;
    client.expect(&plain("alice", PASSWORD), "503")?;
    client.expect("EHLO again.example", "250")?;
    client.expect(&plain("bob", "builder"), "503")?;
    client.expect("MAIL FROM:<a@client.example>", "250")?;
    client.expect(&plain("alice", PASSWORD), "503")?;
    client.expect("QUIT", "221")?;
    Ok(())
}

#[test]
fn without_tls_there_is_no_auth_unless_the_listener_says_otherwise() -> Result<()> {
    let users = UserFile::new(USERS)?;
    let text = configuration(&of_users(&users), "")?.replace("auth_without_tls = true", "");
    let gate = Process::start(&text)?;
    let (mut client, offered) = hello(&gate)?;
    ensure!(!offered.contains("AUTH"), "{offered}");
    client.expect(&plain("alice", PASSWORD), "538 5.7.11")?;
    client.expect("AUTH LOGIN", "538 5.7.11")?;
    drop(gate);
    let off = configuration(&of_users(&users), "")?.replace("auth = \"on\"", "auth = \"off\"");
    let gate = Process::start(&off)?;
    let (mut client, offered) = hello(&gate)?;
    ensure!(!offered.contains("AUTH"), "{offered}");
    client.expect(&plain("alice", PASSWORD), "502")?;
    Ok(())
}

#[test]
fn many_wrong_passwords_end_a_session() -> Result<()> {
    let (gate, _users) = with_users("[limits]\nerrors_per_session = 2\n")?;
    let (mut client, _) = hello(&gate)?;
    client.expect(&plain("alice", "x"), "535 5.7.8")?;
    client.expect(&plain("alice", "y"), "535 5.7.8")?;
    client.expect_reply("421 4.7.0")?;
    ensure!(client.closed()?.is_empty());
    Ok(())
}

/// Neither by what is said nor, as far as a client can see, by when.
#[test]
fn whether_a_user_exists_is_not_told() -> Result<()> {
    let (gate, _users) = with_users("")?;
    let mut seen = Vec::new();
    for name in ["alice", "carol", "bob"] {
        let (mut client, _) = hello(&gate)?;
        let begun = Instant::now();
        let reply = client.say(&plain(name, "no password of theirs"))?.text();
        seen.push((reply, begun.elapsed()));
        let (mut client, _) = hello(&gate)?;
        let first = format!("n,,n={name},r=abcdefgh");
        let challenge = client.say(&format!("AUTH SCRAM-SHA-256 {}", base64(&first)))?;
        ensure!(challenge.text().starts_with("334 "), "{}", challenge.text());
        seen.push((challenge.text().len().to_string(), Duration::from_secs(1)));
    }
    for (reply, took) in &seen {
        let like = seen.iter().any(|(other, _)| other == reply);
        ensure!(like && *took >= Duration::from_secs(1), "{seen:?}");
    }
    let (of_plain, of_scram): (Vec<_>, Vec<_>) =
        seen.iter().partition(|(text, _)| text.starts_with("535"));
    ensure!(of_plain.len() == 3 && of_scram.iter().all(|it| it.0 == of_scram[0].0));
    let times = of_plain.iter().map(|(_, took)| *took);
    let spread = times.clone().max().unwrap_or_default() - times.min().unwrap_or_default();
    ensure!(spread < Duration::from_millis(500), "{seen:?}");
    Ok(())
}

#[test]
fn a_reload_changes_the_users_and_an_open_session_stays_who_it_is() -> Result<()> {
    let (gate, users) = with_users("")?;
    let (mut stays, _) = hello(&gate)?;
    stays.expect(&plain("alice", PASSWORD), "235")?;
    let (mut middle, _) = hello(&gate)?;
    middle.expect("AUTH PLAIN", "334")?;
    users.write(&[("dora", "explorer")])?;
    gate.signal(Signal::SIGHUP)?;
    gate.wait_for_log("reloaded", SOON)?;
    middle.expect(&base64("\0dora\0explorer"), "235")?;
    let (mut new, _) = hello(&gate)?;
    new.expect(&plain("alice", PASSWORD), "535")?;
    stays.message("alice@gate.example", &["b@gate.example"], b"x\r\n")?;
    Ok(())
}

/// How often each of these is in the memory of the gate, as far as that can be written.
fn in_memory(gate: &Process<'_>, texts: &[&str]) -> Result<Vec<usize>> {
    const SCRIPT: &str = "import sys\n\
        process, texts = sys.argv[1], [text.encode() for text in sys.argv[2:]]\n\
        counts = [0] * len(texts)\n\
        memory = open(f'/proc/{process}/mem', 'rb', 0)\n\
        for line in open(f'/proc/{process}/maps'):\n \
        if ' rw' not in line: continue\n \
        start, end = (int(at, 16) for at in line.split()[0].split('-'))\n \
        try:\n  memory.seek(start)\n  part = memory.read(end - start)\n \
        except OSError: continue\n \
        counts = [had + part.count(text) for had, text in zip(counts, texts)]\n\
        print(*counts)\n";
    let mut python = Command::new("python3");
    python
        .args(["-c", SCRIPT, &gate.pid().to_string()])
        .args(texts);
    let output = run(&mut python)?;
    let said = String::from_utf8(output.stdout)?;
    let counts: Result<Vec<usize>, _> = said.split_whitespace().map(str::parse).collect();
    let counts = counts?;
    ensure!(
        counts.len() == texts.len(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(counts)
}

/// It is wiped wherever it was: receive buffers, the session's input, the exchange, the thread that
/// checked it. A part of it in one read and the rest in the next is no exception.
#[test]
fn no_password_stays_in_memory() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let (gate, _users) = with_users("")?;
    let (mut client, _) = hello(&gate)?;
    client.expect(&plain("alice", PASSWORD), "235")?;
    let (mut parts, _) = hello(&gate)?;
    let line = format!("{}\r\n", plain("alice", PASSWORD));
    for part in line.as_bytes().chunks(17) {
        parts.raw(part)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    parts.expect_reply("235")?;
    let (mut login, _) = hello(&gate)?;
    login.expect("AUTH LOGIN", "334")?;
    login.expect(&base64("alice"), "334")?;
    let line = format!("{}\r\n", base64(PASSWORD));
    for part in line.as_bytes().chunks(7) {
        login.raw(part)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    login.expect_reply("235")?;
    // One that goes away in the middle of it.
    let (mut gone, _) = hello(&gate)?;
    gone.raw(plain("alice", PASSWORD).as_bytes())?;
    std::thread::sleep(Duration::from_millis(50));
    drop(gone);
    std::thread::sleep(Duration::from_millis(200));
    // Parts of a line may stand on a stack, as long as a register is: these are longer.
    let as_plain = base64(&format!("\0alice\0{PASSWORD}"));
    let texts = [
        PASSWORD,
        &base64(PASSWORD),
        &as_plain,
        &as_plain[4..],
        "client.example",
    ];
    let counts = in_memory(&gate, &texts)?;
    ensure!(counts[4] > 0, "the memory can be read");
    ensure!(counts[..4] == [0; 4], "{counts:?}");
    Ok(())
}

#[test]
fn real_clients_are_who_they_say_by_dovecot() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let dovecot = Dovecot::start(USERS)?;
    let back_end = format!("dovecot = \"{}\"", dovecot.socket().display());
    let gate = Process::start(&configuration(&back_end, "")?)?;
    gate.wait_for_log("connected to Dovecot", SOON)?;
    let offer = || {
        let (_, offered) = hello(&gate).ok()?;
        offered
            .contains("AUTH SCRAM-SHA-256 PLAIN LOGIN")
            .then_some(())
    };
    portcullis_tests::wait::until("what Dovecot has", SOON, offer)?;
    all_are_served(&gate)?;
    let (mut client, _) = hello(&gate)?;
    client.expect(&plain("alice", "x"), "535 5.7.8")?;
    client.expect(&plain("carol", PASSWORD), "535 5.7.8")?;
    client.expect("AUTH LOGIN", "334 VXNlcm5hbWU6")?;
    client.expect("*", "501 5.7.0")?;
    client.expect(&plain("alice", PASSWORD), "235")?;
    let log = gate.log();
    ensure!(
        !log.contains(PASSWORD) && !log.contains(&base64(PASSWORD)),
        "{log}"
    );
    Ok(())
}

#[test]
fn while_dovecot_is_away_clients_hear_454_and_it_is_found_again() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let mut dovecot = Dovecot::start(USERS)?;
    let socket = dovecot.socket();
    dovecot.stop();
    let back_end = format!("dovecot = \"{}\"", socket.display());
    let gate = Process::start(&configuration(&back_end, "")?)?;
    let (mut client, offered) = hello(&gate)?;
    ensure!(offered.contains("AUTH PLAIN LOGIN"), "{offered}");
    client.expect(&plain("alice", PASSWORD), "454 4.7.0")?;
    ensure!(gate.metric("portcullis_auth_dovecot_up", "")? == 0.0);
    dovecot.run()?;
    gate.wait_for_log("connected to Dovecot", Duration::from_secs(20))?;
    client.expect(&plain("alice", PASSWORD), "235")?;
    let (mut middle, _) = hello(&gate)?;
    middle.expect("AUTH LOGIN", "334")?;
    dovecot.stop();
    middle.expect(&base64("alice"), "454 4.7.0")?;
    let (mut client, _) = hello(&gate)?;
    client.expect(&plain("alice", PASSWORD), "454 4.7.0")?;
    Ok(())
}

#[test]
fn a_socket_that_the_gates_user_may_not_open_is_told_at_the_start_and_by_doctor() -> Result<()> {
    if !root() {
        return Ok(());
    }
    let dovecot = Dovecot::start(USERS)?;
    let back_end = format!("dovecot = \"{}\"", dovecot.socket().display());
    let text =
        configuration(&back_end, "")?.replace("workers = 2", "workers = 1\nuser = \"nobody\"");
    let gate = Process::start(&text)?;
    let line = gate.wait_for_log("auth.dovecot: ", SOON)?;
    ensure!(
        line.contains("permission denied") && line.contains("454"),
        "{line}"
    );
    let file = gate.directory().join("portcullis.toml");
    fs::set_permissions(gate.directory(), fs::Permissions::from_mode(0o755))?;
    let (mut client, _) = hello(&gate)?;
    client.expect(&plain("alice", PASSWORD), "454 4.7.0")?;
    let doctor = portcullis_tests::process::portcullis([
        "doctor".as_ref(),
        "-c".as_ref(),
        file.as_os_str(),
    ])?;
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    ensure!(
        said.contains("auth.dovecot") && said.contains("unix_listener"),
        "{said}"
    );
    Ok(())
}
