//! Matched addresses become sightings: admission, caps, the one writer.

use std::time::Duration;

use crate::prefix::Prefix;

/// What may be learned, how much, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long an answer with new addresses waits for the set and its local sinks.
    pub hold: Duration,
    /// A sighting lives at least this long, however short its TTL.
    pub min_hold: Duration,
    /// A sighting lives this much longer than the TTL that the client was told.
    pub grace: Duration,
    /// Addresses that are never learned, whatever else says so.
    pub never: Vec<Prefix>,
    /// Special-purpose space that a laboratory lets in (RFC 6890 registries are lifted here).
    pub treat_as_public: Vec<Prefix>,
    /// NAT64 prefixes (/96) whose embedded IPv4 address decides.
    pub nat64: Vec<Prefix>,
    /// Our own addresses and those of the upstreams: never learned.
    pub own: Vec<Prefix>,
    /// The most learned addresses in all.
    pub max_total: usize,
    /// The most addresses for one name.
    pub max_per_name: usize,
    /// The most addresses under one trigger.
    pub max_per_trigger: usize,
    /// New sightings a minute for one client prefix (/24, /56); 0 for no limit.
    pub new_per_client_per_minute: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hold: Duration::from_millis(100),
            min_hold: Duration::from_secs(600),
            grace: Duration::from_secs(300),
            never: Vec::new(),
            treat_as_public: Vec::new(),
            nat64: Vec::new(),
            own: Vec::new(),
            max_total: 32_768,
            max_per_name: 1000,
            max_per_trigger: 8192,
            new_per_client_per_minute: 3000,
        }
    }
}
