//! Which sighting ends next.
//!
//! A heap of `(end, sighting)` in which an entry may be out of date, but only to the early side: ends grow without the
//! heap being told. An entry that comes up is asked for its end of now; if that is later it goes back in under it.
//! So an extension costs nothing here, and each entry comes up once more for every time it was extended at most.
//! Sightings that left otherwise stay until they come up or until they outnumber the living.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::sighting::Sighting;
use crate::clock::Timestamp;

/// Below this many entries a sweep is not worth it.
const SWEEP_LEN_MIN: usize = 1024;

/// Sightings by their end, the first one on top.
#[derive(Debug, Default)]
pub(crate) struct Expiry {
    heap: BinaryHeap<Entry>,
}

/// 16 octets.
#[derive(Debug)]
struct Entry {
    /// No later than the end of now.
    end: Timestamp,
    sighting: Arc<Sighting>,
}

impl Expiry {
    /// Takes a sighting in.
    pub(crate) fn push(&mut self, sighting: Arc<Sighting>) {
        self.heap.push(Entry { end: sighting.end(), sighting });
    }

    /// Returns no later than when the next sighting ends.
    pub(crate) fn next_end(&self) -> Option<Timestamp> {
        self.heap.peek().map(|entry| entry.end)
    }

    /// Takes out one sighting that has ended by `now`, and marks it as left; never one whose end lies ahead.
    pub(crate) fn pop(&mut self, now: Timestamp) -> Option<Arc<Sighting>> {
        while self.next_end().is_some_and(|end| end <= now) {
            let sighting = self.heap.pop()?.sighting;
            if sighting.leave_if(|times| times.end <= now).is_some() {
                return Some(sighting);
            }
            if !sighting.has_left() {
                self.push(sighting);
            }
        }
        None
    }

    /// Forgets sightings that left otherwise, once they outnumber the `live_count` that have not.
    pub(crate) fn sweep(&mut self, live_count: usize) {
        if self.heap.len() > SWEEP_LEN_MIN.max(2 * live_count) {
            self.heap.retain(|entry| !entry.sighting.has_left());
            self.heap.shrink_to(SWEEP_LEN_MIN.max(live_count));
        }
    }
}

/// The earliest end is the greatest entry, since the heap gives the greatest first.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        other.end.cmp(&self.end)
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.end == other.end
    }
}

impl Eq for Entry {}
