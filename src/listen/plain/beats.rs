//! Signs of life of the threads that read datagrams: each counts its turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// The counts of all threads; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Beats(Arc<Mutex<Vec<Arc<Beat>>>>);

/// One thread's count, on a cache line of its own: nobody else writes there.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Beat(AtomicU64);

impl Beats {
    /// Makes a count for one more thread.
    pub(super) fn join(&self) -> Arc<Beat> {
        let beat = Arc::default();
        self.0.lock().push(Arc::clone(&beat));
        beat
    }

    /// Returns how many turns each thread has made.
    pub fn counts(&self) -> Vec<u64> {
        self.0.lock().iter().map(|beat| beat.0.load(Ordering::Relaxed)).collect()
    }

    /// Returns whether every thread has made a turn since the counts were `before`.
    pub fn have_all_moved(&self, before: &[u64]) -> bool {
        self.counts().iter().zip(before).all(|(now, before)| now != before)
    }
}

impl Beat {
    /// Counts a turn.
    pub(super) fn beat(&self) {
        // Only its thread writes it.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_that_stands_still_is_seen() {
        let beats = Beats::default();
        assert!(beats.have_all_moved(&beats.counts()), "none stands still where there is none");
        let (first, second) = (beats.join(), beats.join());
        let before = beats.counts();
        first.beat();
        assert!(!beats.have_all_moved(&before));
        second.beat();
        assert!(beats.have_all_moved(&before));
        assert!(!beats.have_all_moved(&beats.counts()));
    }
}
