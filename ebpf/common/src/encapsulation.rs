//! Packets within packets that the filter does not look into: they pass, and are counted by their
//! names.
//!
//! What Linux would still find TCP in (VLAN tags, PPPoE, IPv6 extension headers) is read in
//! [`packet`](crate::packet). Here is what only the end of a tunnel opens, and that end has an
//! interface for it on which a filter can sit: to drop what might be mail in a tunnel would cut
//! VPNs off.

/// A packet within a packet, by the name of what encloses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Encapsulation {
    /// Labels (RFC 3032).
    Mpls = 0,
    /// Provider backbone bridges (802.1ah).
    MacInMac = 1,
    /// Encrypted Ethernet (802.1AE).
    Macsec = 2,
    /// PPP in PPPoE that is neither IPv4 nor IPv6 nor control: compressed (RFC 1144, RFC 1962), or
    /// multilink (RFC 1990).
    Ppp = 3,
    /// IPv4 or IPv6 in either of them (RFC 2003, RFC 2473, RFC 4213): 6in4, 6rd, DS-Lite.
    IpInIp = 4,
    /// RFC 2784, and PPTP.
    Gre = 5,
    /// RFC 4303, and in UDP (RFC 3948).
    Esp = 6,
    /// RFC 4302. Linux delivers what is behind it only with a security association.
    Ah = 7,
    /// RFC 3931, and in UDP (RFC 2661).
    L2tp = 8,
    /// RFC 3378.
    EtherIp = 9,
    /// RFC 7348, and its generic extension.
    Vxlan = 10,
    /// RFC 8926.
    Geneve = 11,
    /// User data of mobile networks (3GPP TS 29.281).
    Gtp = 12,
}

/// How many kinds have a name.
pub const ENCAPSULATIONS: usize = 13;

/// PPP without PPPoE; here also what PPP carries in PPPoE, if that is neither IPv4 nor IPv6 nor
/// control.
pub(crate) const ETHERTYPE_PPP: u16 = 0x880b;

impl Encapsulation {
    /// All, in the order of their numbers.
    pub const ALL: [Self; ENCAPSULATIONS] = [
        Self::Mpls,
        Self::MacInMac,
        Self::Macsec,
        Self::Ppp,
        Self::IpInIp,
        Self::Gre,
        Self::Esp,
        Self::Ah,
        Self::L2tp,
        Self::EtherIp,
        Self::Vxlan,
        Self::Geneve,
        Self::Gtp,
    ];

    /// Its name in the status and the metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mpls => "mpls",
            Self::MacInMac => "mac-in-mac",
            Self::Macsec => "macsec",
            Self::Ppp => "ppp",
            Self::IpInIp => "ip-in-ip",
            Self::Gre => "gre",
            Self::Esp => "esp",
            Self::Ah => "ah",
            Self::L2tp => "l2tp",
            Self::EtherIp => "etherip",
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
            Self::Gtp => "gtp",
        }
    }

    /// What an EtherType announces.
    #[inline(always)]
    #[must_use]
    pub const fn of_ether_type(ether_type: u16) -> Option<Self> {
        Some(match ether_type {
            0x8847 | 0x8848 => Self::Mpls,
            0x88e7 => Self::MacInMac,
            0x88e5 => Self::Macsec,
            ETHERTYPE_PPP => Self::Ppp,
            _ => return None,
        })
    }

    /// What the protocol of an IPv4 header, or the next header of an IPv6 header, announces.
    #[inline(always)]
    #[must_use]
    pub const fn of_protocol(protocol: u8) -> Option<Self> {
        Some(match protocol {
            4 | 41 => Self::IpInIp,
            47 => Self::Gre,
            50 => Self::Esp,
            51 => Self::Ah,
            97 => Self::EtherIp,
            115 => Self::L2tp,
            _ => return None,
        })
    }

    /// What a UDP port usually takes. 4500 takes the key exchange of ESP, too; 8472 is what Linux
    /// took before VXLAN had a port.
    #[inline(always)]
    #[must_use]
    pub const fn of_udp_port(port: u16) -> Option<Self> {
        Some(match port {
            1701 => Self::L2tp,
            2152 => Self::Gtp,
            4500 => Self::Esp,
            4789 | 4790 | 8472 => Self::Vxlan,
            6081 => Self::Geneve,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_counts_in_its_own_place() {
        for (place, kind) in Encapsulation::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place, "{}", kind.name());
        }
    }
}
