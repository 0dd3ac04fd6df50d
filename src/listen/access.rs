//! Which client prefixes may ask.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::prefix::Prefix;

/// The private ranges and loopback that may ask when nothing else is configured (RFC 1918, 4193, 6598, 3927, 4291).
pub const ALLOWED_BY_DEFAULT: [&str; 9] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

/// The client prefixes that are answered; a reload replaces them while listeners ask.
#[derive(Debug)]
pub struct Access(ArcSwap<Vec<Prefix>>);

impl Access {
    /// Takes the prefixes that may ask.
    pub fn new(allow: Vec<Prefix>) -> Self {
        Self(ArcSwap::from_pointee(allow))
    }

    /// Takes others in their place.
    pub fn replace(&self, allow: Vec<Prefix>) {
        self.0.store(Arc::new(allow));
    }

    /// Returns the prefixes that may ask now.
    pub fn look(&self) -> Allowed {
        Allowed(self.0.load())
    }
}

/// The prefixes that may ask, at one moment. Not to be kept: a reload does not change it.
#[derive(Debug)]
pub struct Allowed(Guard<Arc<Vec<Prefix>>>);

impl Allowed {
    /// Returns whether `client` may ask; an IPv4-mapped address counts as its IPv4 address.
    pub fn has(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.0.iter().any(|prefix| prefix.contains(client))
    }
}
