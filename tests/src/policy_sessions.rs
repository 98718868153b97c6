//! Reads the policy's sessions: `tests/policy/*.sessions`, described in `tests/policy/README.md`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use portcullis::config::{Auth, Config, Listener};
use portcullis::policy::dnsbl::{DnsblAnswer, ZoneAnswer};
use portcullis::policy::{Identity, Proof, Service};

use crate::policy_cases::{Case, directory};

/// What is known of a client, what it says, and what it hears.
#[derive(Clone, Debug)]
pub struct PolicySession {
    /// `order.sessions:12`, for messages.
    pub place: String,
    /// The configuration: the file beside the session's with the same name and the end `.toml`.
    pub configuration: PathBuf,
    /// Where the client connects from.
    pub client: IpAddr,
    /// What DNS lists say of it: a zone and an address.
    pub listed: Vec<(String, Ipv4Addr)>,
    /// Sessions that there are besides, those of the same source included.
    pub others: u32,
    /// Sessions of the same source that there are besides.
    pub of_source: u32,
    /// Its address has a grant.
    pub granted: bool,
    /// What is spoken where it connects to.
    pub service: Service,
    /// Who it has authenticated as, right after EHLO.
    pub user: Option<String>,
    /// What the user has sent in the last hour: messages and recipients.
    pub sent: (u32, u32),
    /// The gate is about to stop.
    pub stopping: bool,
    /// Why it cannot be played live.
    pub not_live: Option<String>,
    /// The steps, in their order.
    pub steps: Vec<PolicyStep>,
}

/// A step of a session.
#[derive(Clone, Debug)]
pub struct PolicyStep {
    /// A command as it is sent, without its end; `connect` for the connection itself.
    pub command: String,
    /// The code of the reply.
    pub code: u16,
    /// The rule that decides.
    pub rule: String,
}

impl PolicySession {
    /// Who the client has proved to be, a user of the configuration.
    ///
    /// # Panics
    /// The configuration does not have the user.
    #[must_use]
    pub fn identity(&self, config: &Config) -> Option<Identity> {
        let name = self.user.as_deref()?;
        let users = config.auth.as_ref().and_then(Auth::users);
        let user = users.and_then(|users| users.get(name)).expect(name);
        Some(Identity {
            user: (&*user.name).into(),
            proof: Proof::Password,
            senders: user.senders.clone(),
        })
    }

    /// The listener of its service that it connects to.
    ///
    /// # Panics
    /// The configuration has none.
    #[must_use]
    pub fn listener(&self, config: &Config) -> Listener {
        let mut listeners = config.listeners.iter();
        let is_its = |listener: &&Listener| {
            listener.service == self.service && listener.address.is_ipv4() == self.client.is_ipv4()
        };
        listeners.find(is_its).cloned().expect(&self.place)
    }

    /// What DNS lists say of the client, as the policy takes it.
    #[must_use]
    pub fn answers(&self) -> Vec<ZoneAnswer> {
        let answer = |(zone, address): &(String, Ipv4Addr)| ZoneAnswer {
            zone: zone.as_str().into(),
            answer: DnsblAnswer::Addresses(vec![*address]),
        };
        self.listed.iter().map(answer).collect()
    }
}

/// A case as a session. Only its last answer is known, and stands at every step.
impl From<Case> for PolicySession {
    fn from(case: Case) -> Self {
        let commands = ["connect".to_owned()].into_iter().chain(case.commands());
        let step = |command| PolicyStep {
            command,
            code: case.code,
            rule: case.rule.clone(),
        };
        Self {
            steps: commands.map(step).collect(),
            configuration: directory().join("gate.toml"),
            place: case.place,
            client: case.client,
            listed: Vec::new(),
            others: 0,
            of_source: 0,
            granted: false,
            service: Service::Relay,
            user: None,
            sent: (0, 0),
            stopping: false,
            not_live: None,
        }
    }
}

/// All sessions of all files.
///
/// # Errors
/// A file that cannot be read, or a line that says nothing known.
pub fn load() -> Result<Vec<PolicySession>> {
    let mut files = Vec::new();
    for entry in directory().read_dir()? {
        files.push(entry?.path());
    }
    files.retain(|path| path.extension().is_some_and(|end| end == "sessions"));
    files.sort();
    let mut sessions = Vec::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let text = std::fs::read_to_string(&file).with_context(|| name.clone().into_owned())?;
        sessions.extend(parse(&name, &file.with_extension("toml"), &text)?);
    }
    Ok(sessions)
}

fn parse(file: &str, configuration: &Path, text: &str) -> Result<Vec<PolicySession>> {
    let mut sessions: Vec<PolicySession> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = format!("{file}:{number}");
        let parsed = match line.strip_prefix("client ") {
            Some(client) => {
                begin(&place, configuration, client).map(|session| sessions.push(session))
            }
            None => match sessions.last_mut() {
                Some(session) => add(session, line),
                None => bail!("{place}: a session begins with its client"),
            },
        };
        parsed.with_context(|| format!("{place}: {line}"))?;
    }
    Ok(sessions)
}

fn begin(place: &str, configuration: &Path, client: &str) -> Result<PolicySession> {
    Ok(PolicySession {
        place: place.to_owned(),
        configuration: configuration.to_owned(),
        client: client.trim().parse()?,
        listed: Vec::new(),
        others: 0,
        of_source: 0,
        granted: false,
        service: Service::Relay,
        user: None,
        sent: (0, 0),
        stopping: false,
        not_live: None,
        steps: Vec::new(),
    })
}

fn add(session: &mut PolicySession, line: &str) -> Result<()> {
    if line == "granted" {
        session.granted = true;
        session.not_live = Some("the suite `grants` has live ones".to_owned());
    } else if line == "submission" {
        session.service = Service::Submission;
    } else if let Some(user) = line.strip_prefix("user ") {
        session.user = Some(user.trim().to_owned());
    } else if let Some(numbers) = line.strip_prefix("sent ") {
        let (messages, recipients) = numbers
            .trim()
            .split_once(' ')
            .context("messages and recipients are wanted")?;
        session.sent = (messages.trim().parse()?, recipients.trim().parse()?);
        session.not_live = Some("the suite `submission` has live ones".to_owned());
    } else if line == "stopping" {
        session.stopping = true;
        session.not_live = Some("a gate that stops accepts no connection".to_owned());
    } else if let Some(number) = line.strip_prefix("others ") {
        session.others = number.trim().parse()?;
    } else if let Some(number) = line.strip_prefix("of source ") {
        session.of_source = number.trim().parse()?;
        session.others = session.others.max(session.of_source);
    } else if let Some(why) = line.strip_prefix("not live ") {
        session.not_live = Some(why.trim().to_owned());
    } else if let Some(listed) = line.strip_prefix("listed ") {
        let mut words = listed.split_whitespace();
        let (Some(zone), Some(address), None) = (words.next(), words.next(), words.next()) else {
            bail!("a zone and an address are wanted");
        };
        session.listed.push((zone.to_owned(), address.parse()?));
    } else {
        session.steps.push(step(line)?);
    }
    Ok(())
}

/// The command, and at the end of the line the code and the rule.
fn step(line: &str) -> Result<PolicyStep> {
    let (rest, rule) = line.rsplit_once(' ').context("no rule")?;
    let (command, code) = rest.trim_end().rsplit_once(' ').context("no code")?;
    Ok(PolicyStep {
        command: command.trim_end().to_owned(),
        code: code.parse().context("expected the code of a reply")?,
        rule: rule.to_owned(),
    })
}
