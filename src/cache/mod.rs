//! Answers that we already have.
//!
//! A [`Cache`] maps a [`Key`] (name without case, type, DO, CD) to an [`Entry`]: the upstream's octets with the
//! places of their TTLs, the time they came, and the catalogue's match. It is bounded in octets; what is asked
//! rarely leaves first. It knows nothing of freshness: the reader asks the entry with its own `now`. DO and CD are
//! part of the key, or data that failed validation would reach clients that never asked for it (RFC 4035 §4.7).

use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::{Cache as Shards, DefaultLifecycle};

mod entry;

pub use entry::{Entry, Key, KeyBuf, Mark, Tagged};

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

/// What the shards need for an entry besides its own octets: slot, hash table, reference counts.
const OVERHEAD_BYTES: u64 = 96;

/// A typical small answer, to size the shards' tables from the bound in octets.
const TYPICAL_ENTRY_BYTES: u64 = 512;

#[derive(Clone, Debug)]
struct ByOctets;

impl Weighter<Key, Arc<Entry>> for ByOctets {
    fn weight(&self, key: &Key, entry: &Arc<Entry>) -> u64 {
        (key.as_bytes().len() + entry.size_bytes()) as u64 + OVERHEAD_BYTES
    }
}

/// The answers, shared by all threads.
pub struct Cache {
    shards: Shards<Key, Arc<Entry>, ByOctets, foldhash::fast::RandomState, DefaultLifecycle<Key, Arc<Entry>>>,
}

impl Cache {
    /// Makes an empty cache of at most `size_bytes` octets.
    pub fn new(size_bytes: u64) -> Self {
        let items = usize::try_from(size_bytes / TYPICAL_ENTRY_BYTES).unwrap_or(usize::MAX).max(64);
        let shards = Shards::with(items, size_bytes, ByOctets, Default::default(), DefaultLifecycle::default());
        Self { shards }
    }

    /// Finds the entry of a key made by [`KeyBuf::fill`]; fresh or not. One shard read, no allocation.
    pub fn find(&self, key: &[u8]) -> Option<Arc<Entry>> {
        self.shards.get(key)
    }

    /// Keeps an entry, in the place of an older one.
    pub fn insert(&self, key: Key, entry: Arc<Entry>) {
        self.shards.insert(key, entry);
    }

    /// Forgets an entry.
    pub fn remove(&self, key: &[u8]) {
        self.shards.remove(key);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.shards.clear();
    }

    /// Returns how many entries there are, stale ones included.
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// Returns the octets in use.
    pub fn size_bytes(&self) -> u64 {
        self.shards.weight()
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("entries", &self.len()).finish_non_exhaustive()
    }
}
