//! Packet cases as data: `tests/packets/*.txt`, run on the host and through the program in the kernel.
//! The format is described in `tests/packets/README.md`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::{fs, str};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use portcullis::lists::{Compiled, ListAction};

/// One file of cases, and what is in force for all of them.
pub struct File {
    /// Where it was read.
    pub path: PathBuf,
    /// The filtered ports.
    pub ports: Vec<u16>,
    /// Whether a source on no list is dropped.
    pub drop_unlisted: bool,
    /// The lists.
    pub lists: Compiled,
    /// The cases.
    pub cases: Vec<Case>,
}

/// A frame, and what is to become of it.
pub struct Case {
    /// What it is, in words.
    pub name: String,
    /// Its octets.
    pub frame: Vec<u8>,
    /// The verdict, with the name of the list.
    pub expected: Expected,
}

/// What is to become of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It is none of the filter's business.
    Other,
    /// Its source is on no list.
    Pass,
    /// This list permits its source.
    Permit(String),
    /// This list has its source dropped.
    Drop(String),
    /// Its source is on no list, and dropped for that.
    DropUnlisted,
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

impl File {
    fn parse(path: PathBuf, text: &str) -> Result<Self> {
        let (mut ports, mut drop_unlisted, mut lists) = (Vec::new(), false, Vec::new());
        let mut cases = Vec::new();
        let mut begun: (Option<&str>, Option<Vec<u8>>) = (None, None);
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            let (keyword, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let rest = rest.trim();
            let done = match keyword {
                "" => Ok(()),
                "ports" => numbers(rest).map(|read| ports = read),
                "unlisted" => {
                    drop_unlisted = rest == "drop";
                    Ok(())
                }
                "list" => list(rest).map(|read| lists.push(read)),
                "case" => {
                    begun.0 = Some(rest);
                    Ok(())
                }
                "frame" => frame(rest).map(|octets| begun.1 = Some(octets)),
                "verdict" => match (begun.0.take(), begun.1.take()) {
                    (Some(name), Some(frame)) => expected(rest).map(|expected| {
                        let name = name.to_owned();
                        cases.push(Case {
                            name,
                            frame,
                            expected,
                        });
                    }),
                    _ => Err(anyhow!("a verdict follows a case and its frame")),
                },
                other => Err(anyhow!("there is no keyword {other:?}")),
            };
            done.with_context(|| format!("line {number}"))?;
        }
        Ok(Self {
            path,
            ports,
            drop_unlisted,
            lists: Compiled::new(lists),
            cases,
        })
    }
}

fn numbers(text: &str) -> Result<Vec<u16>> {
    let numbers = text.split_whitespace().map(|word| Ok(word.parse()?));
    numbers.collect()
}

fn list(text: &str) -> Result<(String, ListAction, Vec<ipnet::IpNet>)> {
    let mut words = text.split_whitespace();
    let action = match words.next() {
        Some("drop") => ListAction::Drop,
        Some("permit") => ListAction::Permit,
        other => bail!("{other:?} is no action"),
    };
    let name = words.next().context("the list has no name")?.to_owned();
    let prefixes = words.map(|word| word.parse().with_context(|| word.to_owned()));
    Ok((name, action, prefixes.collect::<Result<_>>()?))
}

fn expected(text: &str) -> Result<Expected> {
    Ok(match text.split_once(char::is_whitespace) {
        None if text == "other" => Expected::Other,
        None if text == "pass" => Expected::Pass,
        Some(("permit", list)) => Expected::Permit(list.to_owned()),
        Some(("drop", "unlisted")) => Expected::DropUnlisted,
        Some(("drop", list)) => Expected::Drop(list.to_owned()),
        _ => bail!("{text:?} is no verdict"),
    })
}

/// The octets of a frame, from its layers.
fn frame(text: &str) -> Result<Vec<u8>> {
    let layers: Vec<Layer<'_>> = text.split('|').map(Layer::parse).collect();
    let mut octets = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let next = layers.get(index + 1);
        layer
            .write(next, &mut octets)
            .with_context(|| layer.name.to_owned())?;
    }
    ensure!(octets.len() >= 14, "a frame has at least 14 octets");
    Ok(octets)
}

struct Layer<'a> {
    name: &'a str,
    words: Vec<&'a str>,
}

impl<'a> Layer<'a> {
    fn parse(text: &'a str) -> Self {
        let mut words = text.split_whitespace();
        Self {
            name: words.next().unwrap_or_default(),
            words: words.collect(),
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.words.contains(&flag)
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        let mut pairs = self.words.iter().filter_map(|word| word.split_once('='));
        pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    fn number<T>(&self, key: &str, default: T) -> Result<T>
    where
        T: str::FromStr<Err = std::num::ParseIntError>,
    {
        let number = self.value(key).map(str::parse).transpose();
        Ok(number.with_context(|| key.to_owned())?.unwrap_or(default))
    }

    /// What the header in front calls this layer: an EtherType.
    fn ether_type(&self) -> Result<u16> {
        Ok(match self.name {
            "ipv4" => 0x0800,
            "ipv6" => 0x86dd,
            "vlan" => 0x8100,
            other => bail!("{other} has no type of its own; say type="),
        })
    }

    /// What the header in front calls this layer: a protocol number.
    fn protocol(&self) -> Result<u8> {
        Ok(match self.name {
            "hop-by-hop" => 0,
            "tcp" => 6,
            "udp" => 17,
            "routing" => 43,
            "fragment" => 44,
            "destination" => 60,
            // Whatever it is, it is not one of those above.
            _ => 59,
        })
    }

    fn write(&self, next: Option<&Layer<'_>>, to: &mut Vec<u8>) -> Result<()> {
        let ether_type = || match self.value("type") {
            Some(hex) => Ok(u16::from_str_radix(hex, 16)?),
            None => next.context("there is no next layer")?.ether_type(),
        };
        // Options given as hex stand between the header and what it announces.
        let announced = next.map_or(Ok(59), |layer| {
            if layer.name == "hex" {
                Ok(6)
            } else {
                layer.protocol()
            }
        });
        match self.name {
            "eth" => {
                to.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
                to.extend(ether_type()?.to_be_bytes());
            }
            "vlan" => {
                to.extend(self.number("id", 1_u16)?.to_be_bytes());
                to.extend(ether_type()?.to_be_bytes());
            }
            "ipv4" => self.write_ipv4(announced?, to)?,
            "ipv6" => {
                let source: Ipv6Addr = self.value("src").context("src=")?.parse()?;
                to.extend([0x60, 0, 0, 0, 0, 20, self.number("next", announced?)?, 64]);
                to.extend(source.octets());
                to.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets());
            }
            "hop-by-hop" | "routing" | "destination" => {
                let octets = self.number("octets", 8_usize)?;
                ensure!(
                    octets.is_multiple_of(8) && (8..=2048).contains(&octets),
                    "octets={octets}"
                );
                let mut header = vec![0; octets];
                (header[0], header[1]) = (announced?, u8::try_from(octets / 8 - 1)?);
                to.extend(header);
            }
            "fragment" => {
                let offset = self.number("offset", 0_u16)? << 3 | u16::from(self.has("more"));
                to.extend([announced?, 0]);
                to.extend(offset.to_be_bytes());
                to.extend([0, 0, 0, 1]);
            }
            "tcp" => {
                to.extend(self.number("sport", 40_001_u16)?.to_be_bytes());
                to.extend(self.number("dport", 0_u16)?.to_be_bytes());
                to.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
            }
            "udp" => {
                to.extend(self.number("sport", 40_001_u16)?.to_be_bytes());
                to.extend(self.number("dport", 0_u16)?.to_be_bytes());
                to.extend([0, 8, 0, 0]);
            }
            "hex" => {
                let digits = self.words.concat();
                for pair in digits.as_bytes().chunks(2) {
                    to.push(u8::from_str_radix(str::from_utf8(pair)?, 16)?);
                }
            }
            "cut" => {
                let length = self
                    .words
                    .first()
                    .context("cut to how many octets?")?
                    .parse()?;
                ensure!(length < to.len(), "there are only {} octets", to.len());
                to.truncate(length);
            }
            other => bail!("there is no layer {other:?}"),
        }
        Ok(())
    }

    fn write_ipv4(&self, protocol: u8, to: &mut Vec<u8>) -> Result<()> {
        let options = self.number("options", 0_u8)?;
        let words = self.number("ihl", 5 + options / 4)?;
        let source: Ipv4Addr = self.value("src").context("src=")?.parse()?;
        let flags = u16::from(self.has("df")) << 14 | u16::from(self.has("more")) << 13;
        let fragment = self.number("fragment", 0_u16)? | flags;
        to.extend([0x40 | words, 0, 0, 40, 0, 1]);
        to.extend(fragment.to_be_bytes());
        to.extend([64, self.number("protocol", protocol)?, 0, 0]);
        to.extend(source.octets());
        to.extend([192, 0, 2, 1]);
        // RFC 791: 1 is "no operation".
        to.extend(std::iter::repeat_n(1, options.into()));
        Ok(())
    }
}
