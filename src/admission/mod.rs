//! Which addresses may be in the set at all, and why others may not.
//!
//! A bypass entry for a private or reserved address would open a hole in the inspected network itself, so anybody who
//! can answer for a listed name would choose where. [`Admission::check`] lets public unicast addresses through and
//! gives the first [`Refused`] against any other, in this order: our own and the upstreams' addresses, what the
//! operator excludes, NAT64 space, multicast, the special-purpose registries, space outside the public Internet.
//! `treat-as-public` lifts the last two and nothing else. The same rules hold for addresses that are in the set when
//! the options change, and for every state that comes from elsewhere; there [`Admission::check_prefix`] asks the same
//! of prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::prefix::{Family, Prefix};

mod special;

pub use special::Row;

/// Why an address may not be in the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
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
}

impl Refused {
    /// Every metric label value.
    pub const LABELS: [&str; 6] = ["own", "never", "nat64", "multicast", "special-purpose", "not-unicast"];

    /// Returns the metric label value.
    pub fn as_str(self) -> &'static str {
        Self::LABELS[match self {
            Self::Own => 0,
            Self::Never => 1,
            Self::Nat64 => 2,
            Self::Multicast => 3,
            Self::Special(_) => 4,
            Self::NotUnicast => 5,
        }]
    }
}

/// One clause for a person who asks why.
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("our own address or an upstream's"),
            Self::Never => f.write_str("excluded by learn.never"),
            Self::Nat64 => f.write_str("NAT64 space that learn.nat64 does not name (RFC 6052)"),
            Self::Multicast => f.write_str("multicast (RFC 5771, RFC 4291)"),
            Self::Special(row) => write!(f, "special-purpose space: {} ({})", row.name, row.rfc),
            Self::NotUnicast => f.write_str("outside the global unicast space (RFC 4291)"),
        }
    }
}

/// The operator's part of the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Our own addresses and those of the upstreams.
    pub own: Vec<Prefix>,
    /// Addresses that are never let in, whatever else says so.
    pub never: Vec<Prefix>,
    /// NAT64 prefixes whose embedded IPv4 address decides.
    pub nat64: Vec<Prefix>,
    /// Special-purpose space that a laboratory lets in.
    pub treat_as_public: Vec<Prefix>,
}

/// Which addresses may be in the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission(Rules);

impl Admission {
    /// Takes the rules.
    pub fn new(rules: impl Into<Rules>) -> Self {
        Self(rules.into())
    }

    /// Lets an address through, or says why not.
    ///
    /// # Errors
    /// The first of [`Refused::Own`], [`Refused::Never`], [`Refused::Nat64`], [`Refused::Multicast`],
    /// [`Refused::Special`], [`Refused::NotUnicast`] that holds; for an address made by NAT64 also what holds for the
    /// IPv4 address inside.
    pub fn check(&self, addr: IpAddr) -> Result<(), Refused> {
        if holds(&self.0.own, addr) {
            return Err(Refused::Own);
        }
        if holds(&self.0.never, addr) {
            return Err(Refused::Never);
        }
        if let IpAddr::V6(v6) = addr {
            if let Some(nat64) = self.0.nat64.iter().find(|prefix| prefix.contains(addr)) {
                let inner = embedded(v6, nat64.len()).ok_or(Refused::Nat64)?;
                return self.check(IpAddr::V4(inner));
            }
            if is_nat64_space(v6) {
                return Err(Refused::Nat64);
            }
        }
        if special::is_multicast(addr) {
            return Err(Refused::Multicast);
        }
        if holds(&self.0.treat_as_public, addr) {
            return Ok(());
        }
        match special::row(addr) {
            Some(row) if !row.globally_reachable => Err(Refused::Special(row)),
            _ if !special::is_unicast_space(addr) => Err(Refused::NotUnicast),
            _ => Ok(()),
        }
    }

    /// Lets a prefix through if every address in it may pass, or says what in it may not.
    ///
    /// Stricter than [`Admission::check`] on every address in one point: no prefix wider than a host lies in NAT64
    /// space, since each address there would have to be looked at.
    ///
    /// # Errors
    /// As for an address.
    pub fn check_prefix(&self, prefix: &Prefix) -> Result<(), Refused> {
        if prefix.is_host() {
            return self.check(prefix.addr());
        }
        let meets = |others: &[Prefix]| others.iter().any(|other| overlap(prefix, other));
        if meets(&self.0.own) {
            return Err(Refused::Own);
        }
        if meets(&self.0.never) {
            return Err(Refused::Never);
        }
        if meets(&self.0.nat64) || meets(&nat64_space()) {
            return Err(Refused::Nat64);
        }
        if meets(&special::multicast()) {
            return Err(Refused::Multicast);
        }
        let is_lifted = |part: &Prefix| self.0.treat_as_public.iter().any(|public| public.covers(part));
        if is_lifted(prefix) {
            return Ok(());
        }
        let around = special::row_around(prefix);
        let mut inside = special::rows(prefix.family()).iter().filter(|row| prefix.covers(&row.prefix()));
        match around.filter(|row| !row.globally_reachable) {
            Some(row) => Err(Refused::Special(row)),
            None => match inside.find(|row| !row.globally_reachable && !is_lifted(&row.prefix())) {
                Some(row) => Err(Refused::Special(row)),
                // IPv4 space beside multicast and these rows is all unicast.
                None if prefix.family() == Family::V6 && !special::unicast_space_v6().covers(prefix) => {
                    Err(Refused::NotUnicast)
                }
                None => Ok(()),
            },
        }
    }
}

/// Returns whether two prefixes share an address: then one covers the other.
fn overlap(one: &Prefix, other: &Prefix) -> bool {
    one.covers(other) || other.covers(one)
}

fn holds(prefixes: &[Prefix], addr: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(addr))
}

/// Returns whether `addr` lies in 64:ff9b::/96 (RFC 6052) or 64:ff9b:1::/48 (RFC 8215).
fn is_nat64_space(addr: Ipv6Addr) -> bool {
    matches!(addr.segments(), [0x64, 0xff9b, 0, 0, 0, 0, _, _] | [0x64, 0xff9b, 1, ..])
}

/// The same as prefixes.
fn nat64_space() -> [Prefix; 2] {
    let at = |third, len| Prefix::truncated(Ipv6Addr::new(0x64, 0xff9b, third, 0, 0, 0, 0, 0).into(), len);
    [at(0, 96), at(1, 48)]
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

    fn check(rules: &Rules, addr: &str) -> Result<(), &'static str> {
        Admission::new(rules.clone()).check(addr.parse().unwrap()).map_err(Refused::as_str)
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
            assert_eq!(check(&Rules::default(), addr), Err(reason), "{addr}");
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
            assert_eq!(check(&Rules::default(), addr), Ok(()), "{addr}");
        }
    }

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn treat_as_public_lifts_the_registries_only() {
        let rules = Rules {
            treat_as_public: prefixes(&["0.0.0.0/0", "::/0"]),
            own: prefixes(&["192.0.2.1", "2001:db8::1"]),
            never: prefixes(&["198.51.100.0/24", "2001:db8:1::/48"]),
            ..Rules::default()
        };
        for addr in ["192.0.2.2", "198.18.0.1", "10.0.0.1", "2001:2::1", "fd00::1", "4000::1"] {
            assert_eq!(check(&rules, addr), Ok(()), "{addr}");
        }
        assert_eq!(check(&rules, "192.0.2.1"), Err("own"));
        assert_eq!(check(&rules, "2001:db8::1"), Err("own"));
        assert_eq!(check(&rules, "198.51.100.9"), Err("never"));
        assert_eq!(check(&rules, "2001:db8:1::9"), Err("never"));
        assert_eq!(check(&rules, "64:ff9b::a00:1"), Err("nat64"));
        assert_eq!(check(&rules, "224.0.0.1"), Err("multicast"));
        assert_eq!(check(&rules, "ff02::1"), Err("multicast"));
    }

    #[test]
    fn own_and_never_win_over_public() {
        let rules = Rules { own: prefixes(&["9.9.9.9"]), never: prefixes(&["2606:4700::/32"]), ..Rules::default() };
        assert_eq!(check(&rules, "9.9.9.9"), Err("own"));
        assert_eq!(check(&rules, "2606:4700::1111"), Err("never"));
        assert_eq!(check(&rules, "9.9.9.10"), Ok(()));
    }

    #[test]
    fn nat64_passes_when_named_and_its_inside_is_admissible() {
        let rules = Rules {
            nat64: prefixes(&["64:ff9b::/96", "2001:db8:64::/96", "2001:db8:aa00::/40", "fd00::/80"]),
            never: prefixes(&["8.8.4.0/24", "64:ff9b::101:101"]),
            ..Rules::default()
        };
        assert_eq!(check(&rules, "64:ff9b::8.8.8.8"), Ok(()));
        assert_eq!(check(&rules, "2001:db8:64::8.8.8.8"), Ok(()));
        // RFC 6052 §2.4: 192.0.2.33 under a /40 is 2001:db8:1c0:2:21::; here 8.8.8.8.
        assert_eq!(check(&rules, "2001:db8:aa08:808:8::"), Ok(()));
        assert_eq!(check(&rules, "2001:db8:aa08:808:108::"), Err("nat64"), "octet 8 must be zero");
        assert_eq!(check(&rules, "64:ff9b::10.0.0.1"), Err("special-purpose"));
        assert_eq!(check(&rules, "64:ff9b::127.0.0.1"), Err("special-purpose"));
        assert_eq!(check(&rules, "64:ff9b::8.8.4.4"), Err("never"), "the IPv4 address inside");
        assert_eq!(check(&rules, "64:ff9b::1.1.1.1"), Err("never"), "the whole address");
        assert_eq!(check(&rules, "64:ff9b:1::8.8.8.8"), Err("nat64"));
        assert_eq!(check(&rules, "fd00::8.8.8.8"), Err("nat64"), "no NAT64 prefix has 80 bits");
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

    fn check_prefix(rules: &Rules, prefix: &str) -> Result<(), &'static str> {
        Admission::new(rules.clone()).check_prefix(&prefix.parse().unwrap()).map_err(Refused::as_str)
    }

    #[test]
    fn prefixes_are_refused_for_any_part_of_them() {
        let table = [
            ("10.0.0.0/8", Err("special-purpose")),
            ("10.1.0.0/16", Err("special-purpose")),
            ("8.0.0.0/6", Err("special-purpose")),
            ("192.0.0.0/8", Err("special-purpose")),
            ("192.0.0.8/30", Err("special-purpose")),
            ("203.0.112.0/20", Err("special-purpose")),
            ("192.168.1.1/32", Err("special-purpose")),
            ("224.0.0.0/8", Err("multicast")),
            ("192.0.0.0/2", Err("multicast")),
            ("240.0.0.0/8", Err("special-purpose")),
            ("8.0.0.0/8", Ok(())),
            ("20.50.235.0/24", Ok(())),
            ("192.31.196.0/25", Ok(())),
            ("2001::/20", Err("special-purpose")),
            ("2001:db8:7::/48", Err("special-purpose")),
            ("64:ff9b::/96", Err("nat64")),
            ("64:ff9b::/90", Err("nat64")),
            ("2000::/3", Err("special-purpose")),
            ("2600::/19", Ok(())),
            ("4000::/19", Err("not-unicast")),
            ("ff00::/19", Err("multicast")),
            ("2001:20::/28", Ok(())),
        ];
        for (prefix, expected) in table {
            assert_eq!(check_prefix(&Rules::default(), prefix), expected, "{prefix}");
        }
    }

    #[test]
    fn prefixes_meet_the_operators_rules() {
        let rules = Rules {
            own: prefixes(&["20.0.0.7"]),
            never: prefixes(&["8.8.0.0/16"]),
            nat64: prefixes(&["2600:64::/96"]),
            treat_as_public: prefixes(&["192.0.2.0/24", "198.18.0.0/15"]),
        };
        let table = [
            ("20.0.0.0/24", Err("own")),
            ("8.8.8.0/24", Err("never")),
            ("8.0.0.0/8", Err("never")),
            ("2600:64::/64", Err("nat64")),
            ("192.0.2.0/25", Ok(())),
            ("192.0.2.0/23", Ok(())),
            ("198.18.0.0/16", Ok(())),
            ("198.0.0.0/8", Err("special-purpose")),
        ];
        for (prefix, expected) in table {
            assert_eq!(check_prefix(&rules, prefix), expected, "{prefix}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_prefix_passes_that_holds_an_address_that_does_not(
            octets in proptest::prelude::any::<[u8; 4]>(),
            len in 1_u8..=32,
            host in proptest::prelude::any::<u32>(),
        ) {
            let admission = Admission::new(Rules { treat_as_public: prefixes(&["192.0.2.0/24"]), ..Rules::default() });
            let prefix = Prefix::truncated(IpAddr::from(octets), len);
            let inside = u32::from(Ipv4Addr::from(octets)) ^ (host & u32::MAX.checked_shr(u32::from(len)).unwrap_or(0));
            let inside = IpAddr::V4(Ipv4Addr::from_bits(inside));
            proptest::prop_assert!(prefix.contains(inside));
            if admission.check_prefix(&prefix).is_ok() {
                proptest::prop_assert_eq!(admission.check(inside), Ok(()));
            }
        }
    }
}
