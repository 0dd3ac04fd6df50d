//! Asking anew before an answer ends, so that those who ask all the time never wait.
//!
//! The hit path says which entry is due ([`Entry::is_due`]: in demand, and near its end) and goes on; one task takes
//! the entries from a bounded queue and asks, at most [`SEATS`] at a time, through the same flights as everybody. The
//! answer is learned, then it takes the place of the old one, which is given meanwhile. Whatever else comes of it leaves
//! the old one alone.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::meter::Prefetch;
use super::{Flight, Pipeline, Shared};
use crate::cache::Entry;
use crate::clock::Timestamp;

/// The most entries that are due and not yet asked for; one more is forgotten.
const DUE_MAX: usize = 256;

/// How many are asked for at once.
const SEATS: usize = 64;

/// Entries that are due.
pub(super) struct Due {
    /// Has its room from the start: the hit path allocates nothing.
    entries: Mutex<VecDeque<Entry>>,
    more: Notify,
    seats: Arc<Semaphore>,
}

impl Default for Due {
    fn default() -> Self {
        Self {
            entries: Mutex::new(VecDeque::with_capacity(DUE_MAX)),
            more: Notify::new(),
            seats: Arc::new(Semaphore::new(SEATS)),
        }
    }
}

impl Due {
    /// Takes one more; returns whether there was room.
    fn push(&self, entry: Entry) -> bool {
        let mut entries = self.entries.lock();
        let has_room = entries.len() < DUE_MAX;
        if has_room {
            entries.push_back(entry);
            drop(entries);
            self.more.notify_one();
        }
        has_room
    }

    async fn next(&self) -> Entry {
        loop {
            let first = self.entries.lock().pop_front();
            match first {
                Some(entry) => return entry,
                None => self.more.notified().await,
            }
        }
    }
}

impl Pipeline {
    /// Takes note that an entry is given, and has it asked for anew if it is due. No wait, no allocation.
    #[inline]
    pub(super) fn given(&self, entry: &Entry, now: Timestamp) {
        if entry.is_due(now) {
            self.fall_due(entry);
        }
    }

    #[cold]
    fn fall_due(&self, entry: &Entry) {
        let Shared { current, due, meter, .. } = &*self.0;
        if current.load().ahead.prefetch && !due.push(entry.clone()) {
            meter.prefetch(Prefetch::Forgotten);
        }
    }

    /// Asks for entries that are due, for ever.
    pub(super) async fn ask_for_due(&self) {
        let due = &self.0.due;
        loop {
            // Nobody closes it.
            let Ok(seat) = Arc::clone(&due.seats).acquire_owned().await else { return };
            let entry = due.next().await;
            if !self.refresh(entry, seat) {
                self.0.meter.prefetch(Prefetch::Forgotten);
            }
        }
    }

    /// Asks for one entry; returns whether it had to be.
    fn refresh(&self, entry: Entry, seat: OwnedSemaphorePermit) -> bool {
        let Shared { flights, current, clock, .. } = &*self.0;
        let (current, now) = (current.load(), clock.now());
        // One that waited beyond its end is asked for by whoever needs it.
        if !entry.is_fresh(now) || !current.ahead.prefetch {
            return false;
        }
        let Some(question) = entry.question().map(Arc::new) else { return false };
        let aged = self.aged(entry, now);
        let pipeline = self.clone();
        let Some(leader) = flights.start(&question, aged.clone(), move |left| pipeline.apologize(left)) else {
            return false;
        };
        let upstreams = Arc::clone(current.forward());
        let runtime = Handle::current();
        self.watch(&aged, &question, None);
        self.ask(Flight { question, client: None, upstreams, runtime, leader, aged: Some(aged), seat: Some(seat) });
        true
    }
}
