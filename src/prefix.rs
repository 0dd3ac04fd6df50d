//! A canonical IP prefix: an address and a length without host bits.
//!
//! The one parser for prefixes in the configuration, in lists, in feeds and on the command line. Prefixes are
//! ordered IPv4 first, then by address, then by length (shorter first), so a sorted list puts a covering prefix
//! right before what it covers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

/// IP version of an address or prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Returns the family of `addr`; an IPv4-mapped address counts as IPv6.
    pub fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Returns `4` or `6`, as used in metric labels and query strings.
    pub fn digit(self) -> &'static str {
        match self {
            Self::V4 => "4",
            Self::V6 => "6",
        }
    }

    /// Returns the length of a host prefix, 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// A prefix without host bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix(IpNet);

/// Why text or parts are no canonical prefix.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PrefixError {
    /// Neither an address nor address/length.
    #[error("`{0}` is no IP prefix, expected address/length such as 198.51.100.0/24 or 2001:db8:1::/48")]
    Malformed(String),
    /// A length beyond 32 or 128.
    #[error("prefix length {len} is too long, at most {max} for this family")]
    Length {
        /// The length found.
        len: u32,
        /// The longest one allowed.
        max: u8,
    },
    /// Bits set right of the length.
    #[error("host bits are set in {found}, the prefix is {expected}")]
    HostBits {
        /// The text found.
        found: String,
        /// The prefix with these bits cleared.
        expected: Prefix,
    },
}

impl Prefix {
    /// Makes a prefix of `addr` and `len`.
    ///
    /// # Errors
    /// [`PrefixError::Length`] if `len` is over 32 or 128, [`PrefixError::HostBits`] if a bit beyond it is set.
    pub fn new(addr: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let net = IpNet::new(addr, len)
            .map_err(|_| PrefixError::Length { len: u32::from(len), max: Family::of(addr).bits() })?;
        let canonical = Self(net.trunc());
        if canonical.addr() != addr {
            return Err(PrefixError::HostBits { found: net.to_string(), expected: canonical });
        }
        Ok(canonical)
    }

    /// Makes the prefix of `len` that holds `addr`, clearing the host bits; `len` is cut at 32 or 128.
    pub fn truncated(addr: IpAddr, len: u8) -> Self {
        match addr {
            IpAddr::V4(addr) => Self(IpNet::V4(Ipv4Net::new_assert(addr, len.min(32)).trunc())),
            IpAddr::V6(addr) => Self(IpNet::V6(Ipv6Net::new_assert(addr, len.min(128)).trunc())),
        }
    }

    /// Makes the prefix that holds `addr` alone.
    pub fn host(addr: IpAddr) -> Self {
        Self(IpNet::from(addr))
    }

    /// Returns the first address.
    pub fn addr(&self) -> IpAddr {
        self.0.addr()
    }

    /// Returns the length in bits.
    #[expect(clippy::len_without_is_empty, reason = "the length of a prefix is a count of bits")]
    pub fn len(&self) -> u8 {
        self.0.prefix_len()
    }

    /// Returns the IP version.
    pub fn family(&self) -> Family {
        Family::of(self.addr())
    }

    /// Returns whether the prefix holds one address only.
    pub fn is_host(&self) -> bool {
        self.0.prefix_len() == self.0.max_prefix_len()
    }

    /// Returns whether `addr` lies inside; never across families.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.0.contains(&addr)
    }

    /// Returns whether every address of `other` lies inside.
    pub fn covers(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }

    /// Returns the same as an `ipnet` type.
    pub fn net(&self) -> IpNet {
        self.0
    }
}

/// Reads `address/length`; a bare address is a host prefix.
impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let malformed = || PrefixError::Malformed(text.to_owned());
        let Some((addr, len)) = text.split_once('/') else {
            return text.parse().map(Self::host).map_err(|_| malformed());
        };
        let addr: IpAddr = addr.parse().map_err(|_| malformed())?;
        if len.is_empty() || len.len() > 3 || !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        let len: u32 = len.parse().map_err(|_| malformed())?;
        let max = Family::of(addr).bits();
        match u8::try_from(len) {
            Ok(len) if len <= max => Self::new(addr, len),
            _ => Err(PrefixError::Length { len, max }),
        }
    }
}

/// Address/length, the length always written.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Ipv4Addr> for Prefix {
    fn from(addr: Ipv4Addr) -> Self {
        Self::host(IpAddr::V4(addr))
    }
}

impl From<Ipv6Addr> for Prefix {
    fn from(addr: Ipv6Addr) -> Self {
        Self::host(IpAddr::V6(addr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["198.51.100.0/24", "0.0.0.0/0", "2001:db8:1::/48", "192.0.2.1/32", "::/0"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        assert_eq!("192.0.2.1".parse::<Prefix>().unwrap().to_string(), "192.0.2.1/32");
    }

    #[test]
    fn host_bits_name_the_right_prefix() {
        let error = "198.51.100.7/24".parse::<Prefix>().unwrap_err();
        assert_eq!(error.to_string(), "host bits are set in 198.51.100.7/24, the prefix is 198.51.100.0/24");
    }

    #[test]
    fn bad_text_is_refused() {
        for text in ["", "/", "1.2.3/8", "1.2.3.4/", "1.2.3.4/+8", "1.2.3.4/8/8", "example.com", "1.2.3.4/ 8"] {
            assert!(matches!(text.parse::<Prefix>(), Err(PrefixError::Malformed(_))), "{text}");
        }
        assert_eq!("1.2.3.4/33".parse::<Prefix>(), Err(PrefixError::Length { len: 33, max: 32 }));
        assert_eq!("::/129".parse::<Prefix>(), Err(PrefixError::Length { len: 129, max: 128 }));
        assert_eq!("1.2.3.4/999".parse::<Prefix>(), Err(PrefixError::Length { len: 999, max: 32 }));
    }

    #[test]
    fn order_is_family_then_address_then_length() {
        let mut list: Vec<Prefix> =
            ["::/0", "10.0.0.0/16", "10.0.0.0/8", "9.0.0.0/8"].iter().map(|t| t.parse().unwrap()).collect();
        list.sort();
        let texts: Vec<String> = list.iter().map(Prefix::to_string).collect();
        assert_eq!(texts, ["9.0.0.0/8", "10.0.0.0/8", "10.0.0.0/16", "::/0"]);
    }

    #[test]
    fn truncation_clears_host_bits() {
        assert_eq!(Prefix::truncated("10.1.2.3".parse().unwrap(), 8).to_string(), "10.0.0.0/8");
        assert_eq!(Prefix::truncated("2001:db8::1".parse().unwrap(), 56).to_string(), "2001:db8::/56");
    }
}
