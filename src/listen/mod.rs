//! Questions come in: sockets, frames, who may ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::prefix::Prefix;

pub mod access;

/// An address to listen on, and what its absence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Where.
    pub addr: SocketAddr,
    /// Whether it comes from the built-in defaults: a default that the host lacks (no IPv6) is skipped.
    pub is_default: bool,
}

/// Where questions come in, and from whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// UDP and TCP addresses.
    pub dns: Vec<Address>,
    /// Client prefixes that are answered; others get REFUSED.
    pub allow: Vec<Prefix>,
    /// Most TCP connections at once.
    pub max_connections: usize,
    /// Most TCP connections of one client prefix (/24, /56).
    pub max_connections_per_client: usize,
}

/// Port 5300 on loopback, for loopback and the private ranges.
impl Default for Options {
    fn default() -> Self {
        let address = |ip| Address { addr: SocketAddr::new(ip, 5300), is_default: true };
        Self {
            dns: vec![address(IpAddr::V4(Ipv4Addr::LOCALHOST)), address(IpAddr::V6(Ipv6Addr::LOCALHOST))],
            // Each text is a prefix, as a test of the configuration holds.
            allow: access::ALLOWED_BY_DEFAULT.iter().filter_map(|text| text.parse().ok()).collect(),
            max_connections: 1000,
            max_connections_per_client: 200,
        }
    }
}
