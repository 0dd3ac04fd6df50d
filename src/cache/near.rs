//! The answers that one thread gave lately, at hand without a lock.
//!
//! A [`Near`] stands in front of the [`Cache`]: a table of references that its thread alone uses, so that a hit on a
//! popular name touches nothing that another core writes. It holds no answer of its own. What left the cache was
//! marked when it left, and [`Cache::clear`] begins a new epoch; both are looked at with every find, so that an answer
//! is never given that a look into the cache itself would not find.
//!
//! The cache keeps what is asked for often, so it is told of one hit in [`TOLD_EVERY`]. A place is given up for
//! another answer once that was asked for more often than the one in it.

use std::ops::Deref;

use super::{Cache, Entry, KeyHash};

/// Places. With as many, nine in ten questions of a busy resolver are found; they take 128 KiB.
const PLACES: usize = 8192;

/// How many questions are looked ahead at, at most.
const AHEAD_MAX: usize = 64;

/// Larger answers are found in the cache alone: until its place is looked at again, what left the cache still takes
/// memory beyond the cache's bound, at most this for each place.
const ENTRY_BYTES_MAX: usize = 2048;

/// Of how many hits the cache is told one.
const TOLD_EVERY: u8 = 16;

/// How much a place's answer gains on others by being asked for, at most.
const CREDIT_MAX: u8 = 8;

/// A thread's own table of references into a [`Cache`]. Belongs to one cache; another one's answers are not in it.
#[derive(Debug)]
pub struct Near {
    places: Box<[Place]>,
    epoch: u64,
    /// What is about to be asked for.
    ahead: Vec<KeyHash>,
}

#[derive(Clone, Debug, Default)]
struct Place {
    /// The half of the hash that does not choose the place; DO and CD are in it.
    tag: u32,
    entry: Option<Entry>,
    hits: u8,
    credit: u8,
}

/// An entry as it was found.
#[derive(Debug)]
pub enum Found<'a> {
    /// In the thread's own table.
    Near(&'a Entry),
    /// In the cache.
    Far(Entry),
}

impl Deref for Found<'_> {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        match self {
            Self::Near(entry) => entry,
            Self::Far(entry) => entry,
        }
    }
}

impl Near {
    /// Makes an empty table.
    pub fn new() -> Self {
        let places = vec![Place::default(); PLACES].into_boxed_slice();
        Self { places, epoch: 0, ahead: Vec::with_capacity(AHEAD_MAX) }
    }

    /// Finds the entry of a key made by [`super::KeyBuf::fill`], as [`Cache::find`] does; does not allocate.
    pub fn find(&mut self, cache: &Cache, key: &[u8]) -> Option<Found<'_>> {
        let epoch = cache.epoch();
        if self.epoch != epoch {
            self.places.fill(Place::default());
            self.epoch = epoch;
        }
        let hash = cache.hash(key);
        let place = &mut self.places[hash.place(PLACES)];
        if !place.is_at_hand(hash, key) || place.is_due() {
            place.give_up_what_left();
            let entry = cache.find_by(hash, key)?;
            if entry.size_bytes() > ENTRY_BYTES_MAX || !place.yields(hash) {
                return Some(Found::Far(entry));
            }
            place.entry = Some(entry);
        }
        place.entry.as_ref().map(Found::Near)
    }

    /// Notes that a key will be asked for soon; with many of them [`Near::reach`] pays.
    pub fn foresee(&mut self, cache: &Cache, key: &[u8]) {
        if self.ahead.len() < AHEAD_MAX {
            self.ahead.push(cache.hash(key));
        }
    }

    /// Touches the answers of all keys foreseen. One after another each would wait for memory, several times; read in
    /// short loops that depend on nothing else, they are waited for together.
    pub fn reach(&mut self) {
        let mut touched = 0;
        for hash in &self.ahead {
            if let Some(entry) = self.expected(*hash) {
                touched ^= entry.touch_head();
            }
        }
        for hash in &self.ahead {
            if let Some(entry) = self.expected(*hash) {
                touched ^= entry.touch_octets();
            }
        }
        std::hint::black_box(touched);
        self.ahead.clear();
    }

    fn expected(&self, hash: KeyHash) -> Option<&Entry> {
        let place = &self.places[hash.place(PLACES)];
        place.entry.as_ref().filter(|_| place.tag == hash.tag())
    }
}

impl Default for Near {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    fn is_at_hand(&self, hash: KeyHash, key: &[u8]) -> bool {
        let entry = self.entry.as_ref().filter(|_| self.tag == hash.tag());
        entry.is_some_and(|entry| entry.is_kept() && entry.answers(key))
    }

    /// Counts a hit; returns whether the cache is to be told of it.
    fn is_due(&mut self) -> bool {
        self.credit = (self.credit + 1).min(CREDIT_MAX);
        self.hits = (self.hits + 1) % TOLD_EVERY;
        self.hits == 0
    }

    /// Frees the place, and the memory, if the cache keeps its answer no more.
    fn give_up_what_left(&mut self) {
        self.entry.take_if(|entry| !entry.is_kept());
    }

    /// Returns whether the place is given to an answer, and notes it then.
    fn yields(&mut self, hash: KeyHash) -> bool {
        if self.tag != hash.tag() {
            if self.entry.is_some() && self.credit > 0 {
                self.credit -= 1;
                return false;
            }
            (self.tag, self.hits, self.credit) = (hash.tag(), 0, 0);
        }
        true
    }
}
