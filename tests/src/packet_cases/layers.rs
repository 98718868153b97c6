//! A frame from its layers, as they are written in a packet case.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str;

use anyhow::{Context as _, Result, bail, ensure};

/// The bytes of a frame, and whether tags may be put into it: it has an Ethernet header and none
/// of its own.
pub(super) fn frame(text: &str) -> Result<(Vec<u8>, bool)> {
    let layers: Vec<Layer<'_>> = text.split('|').map(Layer::parse).collect();
    let is_ethernet = layers.first().is_some_and(|layer| layer.name == "eth");
    let taggable = is_ethernet && layers.iter().all(|layer| !layer.name.starts_with("vlan"));
    let mut bytes = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        layer
            .write(&layers[index + 1..], &mut bytes)
            .with_context(|| layer.name.to_owned())?;
    }
    ensure!(bytes.len() >= 14, "a frame has at least 14 bytes");
    Ok((bytes, taggable))
}

struct Layer<'a> {
    name: &'a str,
    words: Vec<&'a str>,
}

/// What a header calls the one behind it if there is none: "no next header" of IPv6.
const NOTHING: u8 = 59;

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

    fn address<T>(&self, key: &str, default: Option<T>) -> Result<T>
    where
        T: str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        match self.value(key) {
            Some(text) => text.parse().with_context(|| text.to_owned()),
            None => default.with_context(|| format!("{key}=")),
        }
    }

    /// What the header in front calls this layer: an EtherType.
    fn ether_type(&self) -> Result<u16> {
        Ok(match self.name {
            "ipv4" => 0x0800,
            "ipv6" => 0x86dd,
            "vlan" => u16::from_str_radix(self.value("tpid").unwrap_or("8100"), 16)?,
            "vlans" => 0x8100,
            "pppoe" => 0x8864,
            other => bail!("{other} has no type of its own; say type="),
        })
    }

    /// What the header in front calls this layer: a protocol number.
    fn protocol(&self) -> u8 {
        match self.name {
            "hop-by-hop" => 0,
            // Options given in hexadecimal stand between the header and what it announces.
            "tcp" | "hex" => 6,
            "udp" => 17,
            "routing" => 43,
            "fragment" => 44,
            "destination" => 60,
            _ => NOTHING,
        }
    }

    fn write(&self, behind: &[Layer<'_>], to: &mut Vec<u8>) -> Result<()> {
        let next = behind.first();
        let ether_type = || match self.value("type") {
            Some(hex) => Ok(u16::from_str_radix(hex, 16)?),
            None => next.context("there is no next layer")?.ether_type(),
        };
        let announced = self.number("next", next.map_or(NOTHING, Layer::protocol));
        match self.name {
            "eth" => {
                to.extend(mac(self.value("dst").unwrap_or("02:00:00:00:00:01"))?);
                to.extend([2, 0, 0, 0, 0, 2]);
                to.extend(ether_type()?.to_be_bytes());
            }
            "vlan" => {
                to.extend(self.number("id", 1_u16)?.to_be_bytes());
                to.extend(ether_type()?.to_be_bytes());
            }
            "vlans" => {
                let number = self.words.first().context("how many tags?")?.parse()?;
                for tag in 1..=number {
                    to.extend([0, tag]);
                    let last = ether_type()?;
                    to.extend(if tag == number { last } else { 0x8100 }.to_be_bytes());
                }
            }
            "pppoe" => self.write_pppoe(behind, to)?,
            "ipv4" => self.write_ipv4(announced?, behind, to)?,
            "ipv6" => {
                let length = self.number("length", bytes(behind)?)?;
                let source: Ipv6Addr = self.address("src", None)?;
                let ours = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
                to.extend([self.number("version", 6_u8)? << 4, 0, 0, 0]);
                to.extend(length.to_be_bytes());
                to.extend([announced?, 64]);
                to.extend(source.octets());
                to.extend(self.address("dst", Some(ours))?.octets());
            }
            "hop-by-hop" | "routing" | "destination" => {
                let bytes = self.number("octets", 8_usize)?;
                ensure!(
                    bytes.is_multiple_of(8) && (8..=2048).contains(&bytes),
                    "octets={bytes}"
                );
                let mut header = vec![0; bytes];
                (header[0], header[1]) = (announced?, u8::try_from(bytes / 8 - 1)?);
                to.extend(header);
            }
            "fragment" => {
                let offset = self.number("offset", 0_u16)? << 3 | u16::from(self.has("more"));
                to.extend([announced?, 0]);
                to.extend(offset.to_be_bytes());
                to.extend([0, 0, 0, 1]);
            }
            "tcp" => self.write_tcp(to)?,
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
            "data" | "padding" => {
                let bytes: usize = self.words.first().context("how many bytes?")?.parse()?;
                to.extend(vec![0; bytes]);
            }
            "cut" => {
                let bytes = self
                    .words
                    .first()
                    .context("cut to how many bytes?")?
                    .parse()?;
                ensure!(bytes < to.len(), "there are only {} bytes", to.len());
                to.truncate(bytes);
            }
            other => bail!("there is no layer {other:?}"),
        }
        Ok(())
    }

    /// RFC 2516, section 4, with the protocol of PPP behind it.
    fn write_pppoe(&self, behind: &[Layer<'_>], to: &mut Vec<u8>) -> Result<()> {
        let protocol = match (self.value("protocol"), behind.first()) {
            (Some(hex), _) => u16::from_str_radix(hex, 16)?,
            (None, Some(next)) if next.name == "ipv4" => 0x0021,
            (None, Some(next)) if next.name == "ipv6" => 0x0057,
            _ => bail!("what is behind it has no protocol of its own; say protocol="),
        };
        let protocol = protocol.to_be_bytes();
        // RFC 1661, section 6.5: in one octet.
        let protocol = &protocol[usize::from(self.has("short"))..];
        let length = bytes(behind)? + u16::try_from(protocol.len())?;
        to.extend([0x11, self.number("code", 0)?]);
        to.extend(self.number("session", 1_u16)?.to_be_bytes());
        to.extend(self.number("length", length)?.to_be_bytes());
        to.extend(protocol);
        Ok(())
    }

    fn write_ipv4(&self, protocol: u8, behind: &[Layer<'_>], to: &mut Vec<u8>) -> Result<()> {
        let options = self.number("options", 0_u8)?;
        let words = self.number("ihl", 5 + options / 4)?;
        let length = 20 + u16::from(options) + bytes(behind)?;
        let flags = u16::from(self.has("df")) << 14 | u16::from(self.has("more")) << 13;
        let fragment = self.number("fragment", 0_u16)? | flags;
        let source: Ipv4Addr = self.address("src", None)?;
        to.extend([self.number("version", 4_u8)? << 4 | words, 0]);
        to.extend(self.number("length", length)?.to_be_bytes());
        to.extend([0, 1]);
        to.extend(fragment.to_be_bytes());
        to.extend([64, self.number("protocol", protocol)?, 0, 0]);
        to.extend(source.octets());
        let ours = Ipv4Addr::new(192, 0, 2, 1);
        to.extend(self.address("dst", Some(ours))?.octets());
        // RFC 791: 1 is "no operation".
        to.extend(std::iter::repeat_n(1, options.into()));
        Ok(())
    }

    fn write_tcp(&self, to: &mut Vec<u8>) -> Result<()> {
        let options: Vec<u8> = match self.value("mss") {
            Some(mss) => [2, 4]
                .into_iter()
                .chain(mss.parse::<u16>()?.to_be_bytes())
                .collect(),
            // RFC 9293: 1 is "no operation".
            None => vec![1; self.number("options", 0)?],
        };
        let words = 5 + u8::try_from(options.len() / 4)?;
        to.extend(self.number("sport", 40_001_u16)?.to_be_bytes());
        to.extend(self.number("dport", 0_u16)?.to_be_bytes());
        to.extend(self.number("seq", 1_u32)?.to_be_bytes());
        to.extend(self.number("ack", 0_u32)?.to_be_bytes());
        let mut flags = 0;
        for letter in self.value("flags").unwrap_or("S").chars() {
            let bit = "FSRPAUEC".find(letter).context("flags are FSRPAUEC")?;
            flags |= 1 << bit;
        }
        to.extend([
            self.number("doff", words)? << 4,
            flags,
            0xff,
            0xff,
            0,
            0,
            0,
            0,
        ]);
        to.extend(options);
        Ok(())
    }
}

/// How long these layers are, up to what is not part of the packet.
fn bytes(layers: &[Layer<'_>]) -> Result<u16> {
    let mut bytes = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        if matches!(layer.name, "padding" | "cut") {
            break;
        }
        layer.write(&layers[index + 1..], &mut bytes)?;
    }
    Ok(u16::try_from(bytes.len())?)
}

fn mac(text: &str) -> Result<Vec<u8>> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    ensure!(bytes.len() == 6, "{text} is no Ethernet address");
    Ok(bytes)
}
