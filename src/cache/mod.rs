//! Answers that we already have.

use std::time::Duration;

/// How much is kept, and how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bound in octets, over all entries with their overhead.
    pub size_bytes: u64,
    /// TTLs below this are raised to it; zero leaves them alone.
    pub min_ttl: Duration,
    /// TTLs above this are cut to it.
    pub max_ttl: Duration,
    /// Negative answers live at most this long (RFC 2308 §5).
    pub negative_max_ttl: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            size_bytes: 256 << 20,
            min_ttl: Duration::ZERO,
            max_ttl: Duration::from_secs(86_400),
            negative_max_ttl: Duration::from_secs(3600),
        }
    }
}
