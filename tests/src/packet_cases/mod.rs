//! Packet cases as data: `tests/packets/*.txt`, run on the host and through the program in the
//! kernel. The format is described in `tests/packets/README.md`.

mod host;
mod layers;
mod reply;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, mem};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ipnet::IpNet;
use portcullis::lists::{Compiled, ListAction};
use portcullis_ebpf_common::Encapsulation;
use portcullis_ebpf_common::layout::{INTERFACES_MAX, LinkLayer, Measures, Mode, Role, Settings};

pub use self::host::{FirstBuffer, HostMemory, Userspace, judge_on_host, source};
pub use self::reply::Reply;

/// One file of cases, and what is in force for all of them.
pub struct File {
    /// Where it was read.
    pub path: PathBuf,
    /// The filtered ports.
    pub ports: Vec<u16>,
    /// The lists.
    pub lists: Compiled,
    /// The recent verdicts.
    pub recent: Vec<(IpAddr, Age)>,
    /// The grants.
    pub grants: Vec<(IpAddr, Age)>,
    /// The local networks.
    pub local: Vec<IpNet>,
    /// The cases.
    pub cases: Vec<Case>,
}

/// How old a recent verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Just added: the sessions of its source may end.
    Fresh,
    /// In force.
    Current,
    /// Not in force any more.
    Expired,
}

/// What is in force for a case, beside what is in force for all of its file.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// What the program does with a verdict.
    pub mode: Mode,
    /// Where the frame comes in.
    pub role: Role,
    /// How frames begin there.
    pub layer: LinkLayer,
    /// Whether a source on no list is dropped.
    pub drop_unlisted: bool,
    /// SYNs that a source may send in a second; 0: any number.
    pub syn_budget: u32,
    /// RSTs in a second, if customers get RSTs.
    pub resets: Option<u32>,
    /// Whether SYNs may be answered with cookies.
    pub cookies: bool,
    /// Whether answers on the interface are lost.
    pub answers_lost: bool,
}

/// A frame, and the verdict that it must get.
pub struct Case {
    /// What it is, in words.
    pub name: String,
    /// Its bytes.
    pub frame: Vec<u8>,
    /// Whether it is all the same with VLAN tags in it.
    pub taggable: bool,
    /// How often it has come already, in the same second.
    pub before: u32,
    /// What is in force.
    pub circumstances: Circumstances,
    /// The verdict, with the name of the list.
    pub expected: Expected,
    /// Whether its port is counted as hidden.
    pub hidden: bool,
    /// What it is counted as, if it holds a packet that is not read.
    pub unread: Option<Encapsulation>,
    /// What is sent back.
    pub reply: Option<Reply>,
}

/// The verdict that a frame must get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It is not TCP to a filtered port.
    Other,
    /// No rule drops it.
    Pass,
    /// This list permits its source or its destination.
    Permit(String),
    /// This list has its source dropped.
    Drop(String),
    /// It would be dropped, but its source has a grant.
    Granted,
    /// Its source has a recent verdict.
    DropRecent,
    /// Its source is on no list, and dropped for that.
    DropUnlisted,
    /// Its source has sent more SYNs than it may; it passes.
    OverBudget,
    /// A customer sent it.
    DropCustomer,
    /// It has more VLAN tags than are read.
    DropTags,
    /// A customer sent it, and gets a RST.
    Reset,
    /// It is answered with a SYN cookie.
    Cookie,
}

/// All files of cases.
///
/// # Errors
/// A file that cannot be read or understood, with its line.
pub fn all() -> Result<Vec<File>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("packets");
    let mut files = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        files.push(File::parse(path.clone(), &text).with_context(|| path.display().to_string())?);
    }
    ensure!(
        !files.is_empty(),
        "no packet cases in {}",
        directory.display()
    );
    Ok(files)
}

impl Circumstances {
    /// The program's settings under them.
    #[must_use]
    pub fn settings(&self, ports: &[u16]) -> Settings {
        let measures = Measures {
            drop_unlisted: self.drop_unlisted,
            syn_cookies: self.cookies,
            customer_resets: self.resets.is_some(),
        };
        let mut settings = Settings::new(self.mode, measures, ports);
        settings.syn_budget = self.syn_budget;
        settings.resets_per_second = self.resets.unwrap_or_default();
        if self.answers_lost {
            // Frames of no interface have the slot behind the last.
            settings.set_silent(INTERFACES_MAX);
        }
        settings
    }

    /// Whether a source that has sent this SYN so often before has sent more than it may.
    #[must_use]
    pub fn are_over_budget(&self, before: u32) -> bool {
        self.syn_budget != 0 && before >= self.syn_budget
    }
}

/// A case that is being read.
#[derive(Default)]
struct Begun {
    name: String,
    frame: Option<(Vec<u8>, bool)>,
    before: u32,
    reply: Option<Reply>,
}

impl File {
    fn parse(path: PathBuf, text: &str) -> Result<Self> {
        let mut file = Self {
            path,
            ports: Vec::new(),
            lists: Compiled::new(Vec::new()),
            recent: Vec::new(),
            grants: Vec::new(),
            local: Vec::new(),
            cases: Vec::new(),
        };
        let mut lists = Vec::new();
        let mut begun = Begun::default();
        let mut circumstances = Circumstances {
            mode: Mode::Enforce,
            role: Role::Edge,
            layer: LinkLayer::Ethernet,
            drop_unlisted: false,
            syn_budget: 0,
            resets: None,
            cookies: false,
            answers_lost: false,
        };
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            let (keyword, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let rest = rest.trim();
            let mut line = || -> Result<()> {
                match keyword {
                    "" => {}
                    "ports" => file.ports = each(rest)?,
                    "list" => lists.push(list(rest)?),
                    "recent" => file.recent.push(recent(rest)?),
                    "grant" => file.grants.push(recent(rest)?),
                    "local" => file.local.extend(each::<IpNet>(rest)?),
                    "case" => rest.clone_into(&mut begun.name),
                    "frame" => begun.frame = Some(layers::frame(rest)?),
                    "before" => begun.before = rest.parse()?,
                    "reply" => begun.reply = Some(Reply::parse(rest)),
                    "verdict" => {
                        let case = mem::take(&mut begun).done(rest, circumstances)?;
                        file.cases.push(case);
                    }
                    _ => circumstances.change(keyword, rest)?,
                }
                Ok(())
            };
            line().with_context(|| format!("line {number}"))?;
        }
        file.lists = Compiled::new(lists);
        Ok(file)
    }
}

impl Begun {
    fn done(self, verdict: &str, circumstances: Circumstances) -> Result<Case> {
        let (frame, taggable) = self
            .frame
            .context("a verdict follows a case and its frame")?;
        ensure!(!self.name.is_empty(), "a verdict follows a case");
        let (verdict, hidden) = match verdict.strip_suffix(" hidden") {
            Some(verdict) => (verdict, true),
            None => (verdict, false),
        };
        let (verdict, unread) = match verdict.split_once(char::is_whitespace) {
            Some(("other", name)) => ("other", Some(encapsulation(name)?)),
            _ => (verdict, None),
        };
        let expected = expected(verdict)?;
        ensure!(
            self.reply.is_some() == matches!(expected, Expected::Reset | Expected::Cookie),
            "what is answered has a reply, and nothing else"
        );
        Ok(Case {
            name: self.name,
            frame,
            taggable,
            before: self.before,
            circumstances,
            expected,
            hidden,
            unread,
            reply: self.reply,
        })
    }
}

impl Circumstances {
    fn change(&mut self, keyword: &str, value: &str) -> Result<()> {
        match (keyword, value) {
            ("mode", "enforce") => self.mode = Mode::Enforce,
            ("mode", "monitor") => self.mode = Mode::Monitor,
            ("mode", "off") => self.mode = Mode::Off,
            ("role", "edge") => self.role = Role::Edge,
            ("role", "customer") => self.role = Role::Customer,
            ("link", "ethernet") => self.layer = LinkLayer::Ethernet,
            ("link", "ip") => self.layer = LinkLayer::RawIp,
            ("link", "tun") => self.layer = LinkLayer::Tun,
            ("unlisted", "pass") => self.drop_unlisted = false,
            ("unlisted", "drop") => self.drop_unlisted = true,
            ("cookies", "on") => self.cookies = true,
            ("cookies", "off") => self.cookies = false,
            ("answers", "lost") => self.answers_lost = true,
            ("answers", "sent") => self.answers_lost = false,
            ("budget", number) => self.syn_budget = number.parse()?,
            ("refusal", "drop") => self.resets = None,
            ("refusal", value) => {
                let number = value.strip_prefix("reset").context("reset N, or drop")?;
                self.resets = Some(number.trim().parse()?);
            }
            _ => bail!("{keyword:?} {value:?} is no line of a case"),
        }
        Ok(())
    }
}

fn each<T>(text: &str) -> Result<Vec<T>>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let words = text.split_whitespace();
    let values = words.map(|word| word.parse().with_context(|| word.to_owned()));
    values.collect()
}

fn list(text: &str) -> Result<(String, ListAction, Vec<IpNet>)> {
    let mut words = text.split_whitespace();
    let action = match words.next() {
        Some("drop") => ListAction::Drop,
        Some("hard-drop") => ListAction::HardDrop,
        Some("permit") => ListAction::Permit,
        other => bail!("{other:?} is no action"),
    };
    let name = words.next().context("the list has no name")?.to_owned();
    Ok((name, action, each(&words.collect::<Vec<_>>().join(" "))?))
}

fn recent(text: &str) -> Result<(IpAddr, Age)> {
    let (address, age) = text
        .split_once(char::is_whitespace)
        .context("an address and an age")?;
    let age = match age.trim() {
        "fresh" => Age::Fresh,
        "current" => Age::Current,
        "expired" => Age::Expired,
        other => bail!("{other:?} is no age"),
    };
    Ok((address.parse()?, age))
}

fn encapsulation(name: &str) -> Result<Encapsulation> {
    let mut kinds = Encapsulation::ALL.into_iter();
    let found = kinds.find(|kind| kind.name() == name.trim());
    found.with_context(|| format!("{name:?} is no encapsulation"))
}

fn expected(text: &str) -> Result<Expected> {
    Ok(match text.split_once(char::is_whitespace) {
        None if text == "other" => Expected::Other,
        None if text == "pass" => Expected::Pass,
        None if text == "granted" => Expected::Granted,
        None if text == "reset" => Expected::Reset,
        None if text == "cookie" => Expected::Cookie,
        Some(("permit", list)) => Expected::Permit(list.to_owned()),
        Some(("drop", "recent")) => Expected::DropRecent,
        Some(("drop", "unlisted")) => Expected::DropUnlisted,
        Some(("over", "budget")) => Expected::OverBudget,
        Some(("drop", "customer")) => Expected::DropCustomer,
        Some(("drop", "tags")) => Expected::DropTags,
        Some(("drop", list)) => Expected::Drop(list.to_owned()),
        _ => return Err(anyhow!("{text:?} is no verdict")),
    })
}

/// A frame with this number of VLAN tags after its addresses; the outer one is a provider's.
#[must_use]
pub fn tagged(frame: &[u8], tags: usize) -> Vec<u8> {
    let mut bytes = frame[..12].to_vec();
    for tag in (1..=tags).rev() {
        bytes.extend(if tag == tags && tags > 1 {
            [0x88, 0xa8]
        } else {
            [0x81, 0x00]
        });
        bytes.extend([0, tag as u8]);
    }
    bytes.extend(&frame[12..]);
    bytes
}
