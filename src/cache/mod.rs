//! Answers that we already have.
//!
//! A [`Cache`] maps a key ([`KeyBuf`]: name without case, type, DO, CD) to an [`Entry`]: the upstream's octets with the
//! places of their TTLs, the time they came, and the catalogue's match. It is bounded in octets; what is asked
//! rarely leaves first. It knows nothing of freshness: the reader asks the entry with its own `now`, and an entry past
//! its end stays until something replaces it. DO and CD are
//! part of the key, or data that failed validation would reach clients that never asked for it (RFC 4035 §4.7).
//!
//! No key is kept: the question stands in the entry's octets and is compared with each find. A thread that answers
//! much puts a [`Near`] in front.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

mod entry;
mod near;
pub mod save;
mod shards;

pub use entry::{Entry, KeyBuf, Mark, Tagged};
pub use near::{Found, Near};
use shards::Shards;

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
    /// What is done before and beyond the end of an answer.
    pub ahead: Ahead,
    /// Whether answers survive a restart.
    pub save: bool,
}

/// What is done before and beyond the end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// How long past its end an answer may be given when no upstream answers (RFC 8767); zero for never.
    pub serve_stale: Duration,
    /// Whether answers in demand are asked anew shortly before their end.
    pub prefetch: bool,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { serve_stale: Duration::from_secs(86_400), prefetch: true }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            size_bytes: 256 << 20,
            min_ttl: Duration::ZERO,
            max_ttl: Duration::from_secs(86_400),
            negative_max_ttl: Duration::from_secs(3600),
            ahead: Ahead::default(),
            save: false,
        }
    }
}

/// What an entry is found by: 62 bits of a hash that nobody outside can foresee, and DO and CD as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyHash(u64);

impl KeyHash {
    /// The bits of DO and CD.
    const FLAGS: u64 = 3;

    /// Chooses one of `places`, a power of two.
    fn place(self, places: usize) -> usize {
        (self.0 >> 32) as usize & (places - 1)
    }

    /// The other half, with DO and CD.
    fn tag(self) -> u32 {
        self.0 as u32
    }

    /// Chooses one of `count` shards, a power of two.
    fn shard(self, count: usize) -> usize {
        (self.0 >> 48) as usize & (count - 1)
    }

    /// As a table wants it: even in its lowest and in its highest bits.
    fn in_table(self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// The answers, shared by all threads.
pub struct Cache {
    shards: Shards,
    hasher: foldhash::quality::RandomState,
    /// Counts how often everything was forgotten.
    epoch: AtomicU64,
}

impl Cache {
    /// Makes an empty cache of at most `size_bytes` octets.
    pub fn new(size_bytes: u64) -> Self {
        Self { shards: Shards::new(size_bytes), hasher: Default::default(), epoch: AtomicU64::new(0) }
    }

    /// Finds the entry of a key made by [`KeyBuf::fill`]; fresh or not. One shard read, no allocation.
    pub fn find(&self, key: &[u8]) -> Option<Entry> {
        self.find_by(self.hash(key), key)
    }

    /// Keeps an entry, in the place of an older one. Its answer must be to the question of the key.
    pub fn insert(&self, key: &[u8], entry: Entry) {
        self.shards.insert(self.hash(key), key, entry, |kept| {
            let mut key = KeyBuf::new();
            self.hash(kept.fill_key(&mut key))
        });
    }

    /// Forgets an entry.
    pub fn remove(&self, key: &[u8]) {
        self.shards.remove(self.hash(key), key);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.shards.clear();
        // Afterwards, or a thread could begin the epoch with an answer of the one before.
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Goes through the entries, stale ones included; of those that come or leave meanwhile some are seen.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.shards.iter()
    }

    /// Returns how many entries there are, stale ones included.
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the octets in use.
    pub fn size_bytes(&self) -> u64 {
        self.shards.size_bytes()
    }

    fn hash(&self, key: &[u8]) -> KeyHash {
        let flags = key.get(2).copied().map_or(0, u64::from);
        KeyHash(self.hasher.hash_one(key) & !KeyHash::FLAGS | flags & KeyHash::FLAGS)
    }

    fn find_by(&self, hash: KeyHash, key: &[u8]) -> Option<Entry> {
        self.shards.find(hash, key)
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("entries", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
