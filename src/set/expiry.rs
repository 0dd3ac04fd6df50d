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

    /// Takes many in at once, each with its end.
    pub(crate) fn fill(&mut self, ends: Vec<(Timestamp, Arc<Sighting>)>) {
        self.heap.extend(ends.into_iter().map(|(end, sighting)| Entry { end, sighting }).collect::<Vec<_>>());
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{START, addr, record, sighting};
    use super::super::{Extended, Need};
    use super::*;

    fn after(secs: u64) -> Timestamp {
        START.after(Duration::from_secs(secs))
    }

    #[test]
    fn sighting_leaves_at_its_end_of_now_and_not_before() {
        let mut expiry = Expiry::default();
        let one = Arc::new(sighting(addr(1, true), &record("a.test", &["a"]), START));
        expiry.push(Arc::clone(&one));
        assert_eq!(expiry.next_end(), Some(after(900)));
        let need = Need::new(after(100), Duration::ZERO, Duration::from_secs(600), Duration::from_secs(300));
        assert_eq!(one.extend(&need), Extended::Renewed);
        assert!(expiry.pop(after(999)).is_none());
        assert_eq!(expiry.next_end(), Some(after(1000)));
        assert!(expiry.pop(after(1000)).is_some());
        assert_eq!(one.extend(&need), Extended::Short, "nothing extends what has left");
        assert_eq!(expiry.next_end(), None);
    }

    #[test]
    fn sweep_forgets_what_left_otherwise() {
        let mut expiry = Expiry::default();
        let record = record("a.test", &["a"]);
        for n in 0..2000 {
            let one = Arc::new(sighting(addr(n, true), &record, START));
            expiry.push(Arc::clone(&one));
            if n > 10 {
                one.leave_if(|_| true);
            }
        }
        expiry.sweep(11);
        assert_eq!(expiry.heap.len(), 11);
        assert_eq!(std::iter::from_fn(|| expiry.pop(after(900))).count(), 11);
    }
}
