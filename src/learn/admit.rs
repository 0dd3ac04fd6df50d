//! What may never be learned, and why.
//!
//! A bypass entry for a private or reserved address would open a hole in the inspected network itself, so anybody who
//! can answer for a listed name would choose where. [`Admission::check`] lets public unicast addresses through and
//! gives the first [`Reason`] against any other, in this order: our own and the upstreams' addresses, what the
//! operator excludes, NAT64 space, multicast, the special-purpose registries, space outside the public Internet.
//! `treat-as-public` lifts the last two and nothing else. The same rules hold for addresses that are in the set when
//! the options change, and later for every state that comes from elsewhere.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Options;
use super::special::{self, Row};
use crate::prefix::Prefix;

/// Why an address or an answer is not learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// One of our own addresses or of an upstream.
    Own,
    /// Inside `learn.never`.
    Never,
    /// NAT64 space that `learn.nat64` does not name.
    Nat64,
    /// A multicast address.
    Multicast,
    /// Special-purpose space that is not globally reachable.
    Special(&'static Row),
    /// Outside the space of which public addresses are allocated.
    NotUnicast,
    /// `learn.max-total` is reached and no address can leave.
    FullTotal,
    /// `learn.max-per-name` is reached and no address of the name can leave, or one answer holds more.
    FullName,
    /// `learn.max-per-trigger` is reached and no address under the trigger can leave.
    FullTrigger,
    /// Too many names share addresses, and none of these can leave.
    FullSightings,
    /// The client's prefix brought too many new sightings this minute.
    ClientRate,
    /// Too many targets are being followed.
    FullTargets,
}

impl Reason {
    /// Every metric label value.
    pub const LABELS: [&str; 12] = [
        "own",
        "never",
        "nat64",
        "multicast",
        "special-purpose",
        "not-unicast",
        "max-total",
        "max-per-name",
        "max-per-trigger",
        "max-sightings",
        "client-rate",
        "max-targets",
    ];

    /// Returns the metric label value.
    pub fn as_str(self) -> &'static str {
        Self::LABELS[match self {
            Self::Own => 0,
            Self::Never => 1,
            Self::Nat64 => 2,
            Self::Multicast => 3,
            Self::Special(_) => 4,
            Self::NotUnicast => 5,
            Self::FullTotal => 6,
            Self::FullName => 7,
            Self::FullTrigger => 8,
            Self::FullSightings => 9,
            Self::ClientRate => 10,
            Self::FullTargets => 11,
        }]
    }
}

/// One clause for a person who asks why.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("our own address or an upstream's"),
            Self::Never => f.write_str("excluded by learn.never"),
            Self::Nat64 => f.write_str("NAT64 space that learn.nat64 does not name (RFC 6052)"),
            Self::Multicast => f.write_str("multicast (RFC 5771, RFC 4291)"),
            Self::Special(row) => write!(f, "special-purpose space: {} ({})", row.name, row.rfc),
            Self::NotUnicast => f.write_str("outside the global unicast space (RFC 4291)"),
            Self::FullTotal => f.write_str("learn.max-total is reached"),
            Self::FullName => f.write_str("learn.max-per-name is reached"),
            Self::FullTrigger => f.write_str("learn.max-per-trigger is reached"),
            Self::FullSightings => f.write_str("too many names share addresses"),
            Self::ClientRate => f.write_str("learn.new-per-client-per-minute is reached"),
            Self::FullTargets => f.write_str("too many targets are followed"),
        }
    }
}

/// Which addresses may be learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    own: Vec<Prefix>,
    never: Vec<Prefix>,
    nat64: Vec<Prefix>,
    treat_as_public: Vec<Prefix>,
}

impl Admission {
    /// Takes the rules out of the options.
    pub fn new(options: &Options) -> Self {
        Self {
            own: options.own.clone(),
            never: options.never.clone(),
            nat64: options.nat64.clone(),
            treat_as_public: options.treat_as_public.clone(),
        }
    }

    /// Lets an address through, or says why not.
    ///
    /// # Errors
    /// The first of [`Reason::Own`], [`Reason::Never`], [`Reason::Nat64`], [`Reason::Multicast`],
    /// [`Reason::Special`], [`Reason::NotUnicast`] that holds; for an address made by NAT64 also what holds for the
    /// IPv4 address inside.
    pub fn check(&self, addr: IpAddr) -> Result<(), Reason> {
        if holds(&self.own, addr) {
            return Err(Reason::Own);
        }
        if holds(&self.never, addr) {
            return Err(Reason::Never);
        }
        if let IpAddr::V6(v6) = addr {
            if let Some(nat64) = self.nat64.iter().find(|prefix| prefix.contains(addr)) {
                let inner = embedded(v6, nat64.len()).ok_or(Reason::Nat64)?;
                return self.check(IpAddr::V4(inner));
            }
            if is_nat64_space(v6) {
                return Err(Reason::Nat64);
            }
        }
        if special::is_multicast(addr) {
            return Err(Reason::Multicast);
        }
        if holds(&self.treat_as_public, addr) {
            return Ok(());
        }
        match special::row(addr) {
            Some(row) if !row.globally_reachable => Err(Reason::Special(row)),
            _ if !special::is_unicast_space(addr) => Err(Reason::NotUnicast),
            _ => Ok(()),
        }
    }
}

fn holds(prefixes: &[Prefix], addr: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(addr))
}

/// Returns whether `addr` lies in 64:ff9b::/96 (RFC 6052) or 64:ff9b:1::/48 (RFC 8215).
fn is_nat64_space(addr: Ipv6Addr) -> bool {
    matches!(addr.segments(), [0x64, 0xff9b, 0, 0, 0, 0, _, _] | [0x64, 0xff9b, 1, ..])
}

/// Returns the IPv4 address inside an address made with a NAT64 prefix of `len` bits (RFC 6052 §2.2).
///
/// `None` if no such prefix has that length, or if octet 8, which must be zero, is not.
fn embedded(addr: Ipv6Addr, len: u8) -> Option<Ipv4Addr> {
    if !matches!(len, 32 | 40 | 48 | 56 | 64 | 96) {
        return None;
    }
    let octets = addr.octets();
    if octets[8] != 0 && len < 96 {
        return None;
    }
    // Bits 64 to 71 are skipped; only a /96 lies behind them.
    let mut inner = octets.iter().enumerate().skip(usize::from(len / 8)).filter(|(at, _)| *at != 8).map(|(_, o)| *o);
    Some(Ipv4Addr::new(inner.next()?, inner.next()?, inner.next()?, inner.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(options: &Options, addr: &str) -> Result<(), &'static str> {
        Admission::new(options).check(addr.parse().unwrap()).map_err(Reason::as_str)
    }

    #[test]
    fn hostile_addresses_are_refused_with_their_reason() {
        let table = [
            ("0.0.0.0", "special-purpose"),
            ("0.1.2.3", "special-purpose"),
            ("10.0.0.1", "special-purpose"),
            ("100.64.0.1", "special-purpose"),
            ("100.127.255.255", "special-purpose"),
            ("127.0.0.1", "special-purpose"),
            ("169.254.169.254", "special-purpose"),
            ("172.16.0.1", "special-purpose"),
            ("172.31.255.255", "special-purpose"),
            ("192.0.0.1", "special-purpose"),
            ("192.0.0.8", "special-purpose"),
            ("192.0.0.170", "special-purpose"),
            ("192.0.2.1", "special-purpose"),
            ("192.88.99.1", "special-purpose"),
            ("192.168.1.1", "special-purpose"),
            ("198.18.0.1", "special-purpose"),
            ("198.19.255.255", "special-purpose"),
            ("198.51.100.1", "special-purpose"),
            ("203.0.113.1", "special-purpose"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.250", "multicast"),
            ("240.0.0.1", "special-purpose"),
            ("255.255.255.255", "special-purpose"),
            ("::", "special-purpose"),
            ("::1", "special-purpose"),
            ("::8.8.8.8", "not-unicast"),
            ("::ffff:8.8.8.8", "special-purpose"),
            ("::ffff:0:8.8.8.8", "not-unicast"),
            ("64:ff9b::808:808", "nat64"),
            ("64:ff9b:1::1", "nat64"),
            ("64:ff9b:2::1", "not-unicast"),
            ("100::1", "special-purpose"),
            ("100:0:0:1::1", "special-purpose"),
            ("2001::1", "special-purpose"),
            ("2001:1::4", "special-purpose"),
            ("2001:2::1", "special-purpose"),
            ("2001:10::1", "special-purpose"),
            ("2001:db8::1", "special-purpose"),
            ("2002:808:808::1", "special-purpose"),
            ("3fff:fff::1", "special-purpose"),
            ("4000::1", "not-unicast"),
            ("5f00::1", "special-purpose"),
            ("fc00::1", "special-purpose"),
            ("fd12:3456::1", "special-purpose"),
            ("fe80::1", "special-purpose"),
            ("fec0::1", "not-unicast"),
            ("ff02::1", "multicast"),
            ("ff0e::1", "multicast"),
        ];
        for (addr, reason) in table {
            assert_eq!(check(&Options::default(), addr), Err(reason), "{addr}");
        }
    }

    #[test]
    fn public_addresses_pass() {
        for addr in [
            "1.1.1.1",
            "8.8.8.8",
            "11.0.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "126.255.255.255",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.0.9",
            "192.0.0.10",
            "192.31.196.1",
            "192.52.193.1",
            "192.175.48.1",
            "198.17.255.255",
            "198.20.0.1",
            "223.255.255.255",
            "2001:1::1",
            "2001:1::2",
            "2001:1::3",
            "2001:3::1",
            "2001:4:112::1",
            "2001:20::1",
            "2001:30::1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2620:4f:8000::1",
            "2620:fe::fe",
            "2a00:1450::1",
            "3ffe::1",
        ] {
            assert_eq!(check(&Options::default(), addr), Ok(()), "{addr}");
        }
    }

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn treat_as_public_lifts_the_registries_only() {
        let options = Options {
            treat_as_public: prefixes(&["0.0.0.0/0", "::/0"]),
            own: prefixes(&["192.0.2.1", "2001:db8::1"]),
            never: prefixes(&["198.51.100.0/24", "2001:db8:1::/48"]),
            ..Options::default()
        };
        for addr in ["192.0.2.2", "198.18.0.1", "10.0.0.1", "2001:2::1", "fd00::1", "4000::1"] {
            assert_eq!(check(&options, addr), Ok(()), "{addr}");
        }
        assert_eq!(check(&options, "192.0.2.1"), Err("own"));
        assert_eq!(check(&options, "2001:db8::1"), Err("own"));
        assert_eq!(check(&options, "198.51.100.9"), Err("never"));
        assert_eq!(check(&options, "2001:db8:1::9"), Err("never"));
        assert_eq!(check(&options, "64:ff9b::a00:1"), Err("nat64"));
        assert_eq!(check(&options, "224.0.0.1"), Err("multicast"));
        assert_eq!(check(&options, "ff02::1"), Err("multicast"));
    }

    #[test]
    fn own_and_never_win_over_public() {
        let options =
            Options { own: prefixes(&["9.9.9.9"]), never: prefixes(&["2606:4700::/32"]), ..Options::default() };
        assert_eq!(check(&options, "9.9.9.9"), Err("own"));
        assert_eq!(check(&options, "2606:4700::1111"), Err("never"));
        assert_eq!(check(&options, "9.9.9.10"), Ok(()));
    }

    #[test]
    fn nat64_passes_when_named_and_its_inside_is_admissible() {
        let options = Options {
            nat64: prefixes(&["64:ff9b::/96", "2001:db8:64::/96", "2001:db8:aa00::/40", "fd00::/80"]),
            never: prefixes(&["8.8.4.0/24", "64:ff9b::101:101"]),
            ..Options::default()
        };
        assert_eq!(check(&options, "64:ff9b::8.8.8.8"), Ok(()));
        assert_eq!(check(&options, "2001:db8:64::8.8.8.8"), Ok(()));
        // RFC 6052 §2.4: 192.0.2.33 under a /40 is 2001:db8:1c0:2:21::; here 8.8.8.8.
        assert_eq!(check(&options, "2001:db8:aa08:808:8::"), Ok(()));
        assert_eq!(check(&options, "2001:db8:aa08:808:108::"), Err("nat64"), "octet 8 must be zero");
        assert_eq!(check(&options, "64:ff9b::10.0.0.1"), Err("special-purpose"));
        assert_eq!(check(&options, "64:ff9b::127.0.0.1"), Err("special-purpose"));
        assert_eq!(check(&options, "64:ff9b::8.8.4.4"), Err("never"), "the IPv4 address inside");
        assert_eq!(check(&options, "64:ff9b::1.1.1.1"), Err("never"), "the whole address");
        assert_eq!(check(&options, "64:ff9b:1::8.8.8.8"), Err("nat64"));
        assert_eq!(check(&options, "fd00::8.8.8.8"), Err("nat64"), "no NAT64 prefix has 80 bits");
    }

    #[test]
    fn embedded_addresses_are_found_at_every_length_of_rfc_6052() {
        let table = [
            (32, "2001:db8:c000:221::"),
            (40, "2001:db8:1c0:2:21::"),
            (48, "2001:db8:122:c000:2:2100::"),
            (56, "2001:db8:122:3c0:0:221::"),
            (64, "2001:db8:122:344:c0:2:2100::"),
            (96, "2001:db8:122:344::192.0.2.33"),
        ];
        for (len, addr) in table {
            assert_eq!(embedded(addr.parse().unwrap(), len), Some(Ipv4Addr::new(192, 0, 2, 33)), "/{len}");
        }
    }
}
