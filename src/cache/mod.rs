//! Answers that we already have.
//!
//! A [`Cache`] maps a key ([`KeyBuf`]: name without case, type, DO, CD) to an [`Entry`]: the upstream's octets with the
//! places of their TTLs, the time they came, and the catalogue's match. It is bounded in octets; what is asked
//! rarely leaves first. It knows nothing of freshness: the reader asks the entry with its own `now`, and an entry past
//! its end stays until something replaces it. DO and CD are
//! part of the key, or data that failed validation would reach clients that never asked for it (RFC 4035 §4.7).

use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::DefaultLifecycle;

mod entry;

pub use entry::{Entry, KeyBuf, Mark, Tagged};

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
        }
    }
}

/// What the shards need for an entry besides its own octets: a slot of their slab, a place in their hash table and
/// what both have to spare.
const SLOT_BYTES: u64 = 56;

/// A typical small answer, to size the shards' tables from the bound in octets.
const TYPICAL_ENTRY_BYTES: u64 = 256;

/// An entry is found by the hash of its key alone, so that no second copy of the name is kept; the question in the
/// entry's answer says whether it is the right one.
type Hash = u64;

#[derive(Clone, Debug)]
struct ByOctets;

impl Weighter<Hash, Entry> for ByOctets {
    fn weight(&self, _: &Hash, entry: &Entry) -> u64 {
        entry.size_bytes() as u64 + SLOT_BYTES
    }
}

/// Hashes what is a hash already.
#[derive(Clone, Copy, Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not used by `u64`; any mixing will do.
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

type Shards =
    quick_cache::sync::Cache<Hash, Entry, ByOctets, BuildHasherDefault<AsItIs>, DefaultLifecycle<Hash, Entry>>;

/// The answers, shared by all threads.
pub struct Cache {
    shards: Shards,
    /// Seeded anew in each process, so that nobody can make names that collide.
    hasher: foldhash::fast::RandomState,
}

impl Cache {
    /// Makes an empty cache of at most `size_bytes` octets.
    pub fn new(size_bytes: u64) -> Self {
        let items = usize::try_from(size_bytes / TYPICAL_ENTRY_BYTES).unwrap_or(usize::MAX).max(64);
        let shards = Shards::with(items, size_bytes, ByOctets, Default::default(), DefaultLifecycle::default());
        Self { shards, hasher: Default::default() }
    }

    /// Finds the entry of a key made by [`KeyBuf::fill`]; fresh or not. One shard read, no allocation.
    pub fn find(&self, key: &[u8]) -> Option<Entry> {
        self.shards.get(&self.hash(key)).filter(|entry| entry.answers(key))
    }

    /// Keeps the entry of such a key, in the place of an older one.
    pub fn insert(&self, key: &[u8], entry: Entry) {
        self.shards.insert(self.hash(key), entry);
    }

    /// Forgets an entry.
    pub fn remove(&self, key: &[u8]) {
        self.shards.remove(&self.hash(key));
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

    fn hash(&self, key: &[u8]) -> Hash {
        self.hasher.hash_one(key)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("entries", &self.len()).finish_non_exhaustive()
    }
}
