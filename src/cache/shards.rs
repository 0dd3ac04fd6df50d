//! The table behind the cache: entries found by their hash, and those that leave when there is no room.
//!
//! A [`Shards`] is a row of hash tables, each behind a lock of its own and with an equal part of the bound. A place in
//! a table is one word, the entry itself: its hash is made anew from its own question when a table grows, and what the
//! choice of the leaving one needs stands in the entry's head. So a kept answer costs 10 to 20 octets beside its own
//! allocation; lists and slots of their own would cost three times as much.
//!
//! Who leaves is chosen as by a clock: a hand goes round over the places, an entry that was found since counts down, up
//! to three times, and one that was not found leaves. What is asked once only is thus gone in one turn,
//! and what is asked often stays. The hand looks at [`LOOKED_AT_MAX`] entries at most before one has to go, so that
//! keeping an answer never takes long.

use hashbrown::HashTable;
use parking_lot::RwLock;
use smallvec::SmallVec;

use super::KeyHash;
use super::entry::Entry;

/// The most tables. When a table grows every entry in it is hashed anew, so small ones keep others waiting for less.
const SHARDS_MAX: u64 = 64;

/// A table is worth this many octets; with a small bound there are fewer tables.
const SHARD_BYTES: u64 = 256 << 10;

/// How many entries the hand looks at before the one least found must leave.
const LOOKED_AT_MAX: usize = 128;

/// Entries by the hash of their question, bounded in octets.
pub(super) struct Shards {
    /// A power of two of them.
    shards: Box<[RwLock<Shard>]>,
    shard_bytes_max: u64,
}

#[derive(Default)]
struct Shard {
    table: HashTable<Entry>,
    /// Octets of the entries themselves.
    entries_bytes: u64,
    /// Where the next look for one that leaves begins.
    hand: usize,
}

/// What left; mostly one for one.
type Gone = SmallVec<[Entry; 4]>;

impl Shards {
    /// Makes empty tables of at most `size_bytes` octets in all.
    pub(super) fn new(size_bytes: u64) -> Self {
        let count = (size_bytes / SHARD_BYTES).clamp(1, SHARDS_MAX);
        let count = if count.is_power_of_two() { count } else { count.next_power_of_two() / 2 };
        Self { shards: (0..count).map(|_| RwLock::default()).collect(), shard_bytes_max: size_bytes / count }
    }

    /// Finds the entry of a key.
    pub(super) fn find(&self, hash: KeyHash, key: &[u8]) -> Option<Entry> {
        let shard = self.shard(hash).read();
        let entry = shard.table.find(hash.in_table(), |entry| entry.answers(key))?;
        entry.note_found();
        Some(entry.clone())
    }

    /// Keeps an entry in the place of one with the same key; `hasher` tells the hash of any entry. One that is larger
    /// than a table's bound is not kept.
    pub(super) fn insert(&self, hash: KeyHash, key: &[u8], entry: Entry, hasher: impl Fn(&Entry) -> KeyHash) {
        let size_bytes = size_of_one(&entry);
        // What leaves is dropped after the lock: to free memory takes time.
        let mut gone = Gone::new();
        let mut shard = self.shard(hash).write();
        gone.extend(shard.remove(hash, key));
        shard.make_room(|kept| hasher(kept).in_table());
        if shard.table.allocation_size() as u64 + size_bytes > self.shard_bytes_max {
            return;
        }
        while shard.size_bytes() + size_bytes > self.shard_bytes_max {
            let Some(one) = shard.evict() else { break };
            gone.push(one);
        }
        shard.entries_bytes += size_bytes;
        shard.table.insert_unique(hash.in_table(), entry, |kept| hasher(kept).in_table());
        drop(shard);
    }

    /// Takes the entry of a key out.
    pub(super) fn remove(&self, hash: KeyHash, key: &[u8]) {
        // Dropped after the lock.
        let _gone = self.shard(hash).write().remove(hash, key);
    }

    /// Takes everything out, without telling the entries.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            // Replaced under the lock, dropped after it.
            let before = std::mem::take(&mut *shard.write());
            drop(before);
        }
    }

    /// Goes through the entries, table by table; none is locked between two steps.
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry> {
        self.shards.iter().flat_map(|shard| shard.read().table.iter().cloned().collect::<Vec<_>>())
    }

    /// Returns how many entries there are.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().table.len()).sum()
    }

    /// Returns the octets in use.
    pub(super) fn size_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.read().size_bytes()).sum()
    }

    fn shard(&self, hash: KeyHash) -> &RwLock<Shard> {
        // The number of shards is a power of two, and never zero.
        &self.shards[hash.shard(self.shards.len())]
    }
}

impl Shard {
    fn size_bytes(&self) -> u64 {
        self.entries_bytes + self.table.allocation_size() as u64
    }

    /// Takes the entry of a key out.
    fn remove(&mut self, hash: KeyHash, key: &[u8]) -> Option<Entry> {
        let found = self.table.find_entry(hash.in_table(), |kept| kept.answers(key)).ok()?;
        let (entry, _) = found.remove();
        self.note_gone(&entry);
        Some(entry)
    }

    fn note_gone(&mut self, entry: &Entry) {
        self.entries_bytes -= size_of_one(entry);
        entry.leave();
    }

    /// Makes room in the table for one more. By itself it would double when it is but half full of entries and the rest
    /// are marks of those that left, and never be less again.
    fn make_room(&mut self, hasher: impl Fn(&Entry) -> u64) {
        let count = self.table.len();
        if count == self.table.capacity() {
            let mut table = HashTable::with_capacity(count + count / 8 + 1);
            for entry in self.table.drain() {
                table.insert_unique(hasher(&entry), entry, &hasher);
            }
            (self.table, self.hand) = (table, 0);
        }
    }

    /// Takes out one entry; `None` if there is none.
    fn evict(&mut self) -> Option<Entry> {
        if self.table.is_empty() {
            return None;
        }
        let places = self.table.num_buckets();
        let mut looked_at = 0;
        let mut least: Option<(usize, u8)> = None;
        let chosen = loop {
            let place = self.hand % places;
            self.hand = place + 1;
            let Some(entry) = self.table.get_bucket(place) else { continue };
            let used = entry.count_down();
            if least.is_none_or(|(_, least)| used < least) {
                least = Some((place, used));
            }
            looked_at += 1;
            if used == 0 || looked_at >= LOOKED_AT_MAX.min(self.table.len()) {
                break least.map_or(place, |(place, _)| place);
            }
        };
        let (entry, _) = self.table.get_bucket_entry(chosen).ok()?.remove();
        self.note_gone(&entry);
        Some(entry)
    }
}

/// Returns the octets that an entry takes, its place in a table aside: its allocation, and a sixteenth for what lies idle
/// between allocations once answers of many sizes have come and gone.
fn size_of_one(entry: &Entry) -> u64 {
    let allocated = entry.size_bytes() as u64;
    allocated + allocated / 16
}
