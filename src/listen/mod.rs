//! Questions come in: sockets, frames, who may ask.

use std::net::SocketAddr;

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
