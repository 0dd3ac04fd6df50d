//! The one task that changes the set.
//!
//! It takes what waits in its queue as one batch, so that a burst of answers makes one snapshot and one serial:
//!
//! ```text
//!  offers ─▶ apply each ─▶ take out what has ended ─▶ publish ─▶ (wait for store and sinks) ─▶ answer each
//! ```
//!
//! Between batches it sleeps until the next end. Reloads have a queue of their own and go first; offers that were
//! matched before one are matched again.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::book::{Admitted, Book};
use super::{Listing, Options, Outcome, Rules, Shared};
use crate::clock::{Clock, Timestamp};

/// The most answers that wait to be taken. With one batch under way, 4,096 wait in all.
pub(super) const QUEUE_LEN_MAX: usize = 3072;

/// The most offers in one batch: so many take some milliseconds, a small part of the hold.
const BATCH_LEN_MAX: usize = 1024;

/// When nothing ends: later than any clock shows.
const NEVER: Timestamp = Timestamp::from_millis(u64::MAX);

/// An offer that waits.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) offer: Admitted,
    /// When the answer was given.
    pub(super) now: Timestamp,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// A new listing that waits.
#[derive(Debug)]
pub(super) struct Reload {
    pub(super) listing: Listing,
    pub(super) generation: u64,
    pub(super) options: Option<Options>,
    pub(super) done: oneshot::Sender<()>,
}

/// The task that changes the set; does nothing until it [runs](Self::run).
#[derive(Debug)]
pub struct Writer {
    book: Book,
    shared: Arc<Shared>,
    clock: Clock,
    offers: mpsc::Receiver<Pending>,
    reloads: mpsc::Receiver<Reload>,
}

impl Writer {
    pub(super) fn new(
        book: Book,
        shared: Arc<Shared>,
        clock: Clock,
        offers: mpsc::Receiver<Pending>,
        reloads: mpsc::Receiver<Reload>,
    ) -> Self {
        Self { book, shared, clock, offers, reloads }
    }

    /// Runs until the last handle is gone.
    pub async fn run(mut self) {
        loop {
            let asleep = self.clock.sleep_until(self.book.next_end().unwrap_or(NEVER));
            tokio::select! {
                biased;
                Some(reload) = self.reloads.recv() => self.reload(reload),
                first = self.offers.recv() => match first {
                    Some(first) => self.batch(first),
                    None => return,
                },
                () = asleep => self.expire(),
            }
        }
    }

    fn batch(&mut self, first: Pending) {
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some(Pending { offer, now, reply }) = next {
            // Its TTL counts from when the client is told, which is after this.
            let now = now.max(self.clock.now());
            answers.push((reply, self.book.offer(offer, now)));
            next = if answers.len() < BATCH_LEN_MAX { self.offers.try_recv().ok() } else { None };
        }
        self.expire();
        // Published. Sinks that hold addresses elsewhere (a store, a firewall) are awaited here, side by side, before
        // any answer of the batch is let go.
        for (reply, outcome) in answers {
            // Nobody listens any more when the hold ran out.
            let _ = reply.send(outcome);
        }
    }

    fn reload(&mut self, reload: Reload) {
        let Reload { listing, generation, options, done } = reload;
        self.book.reload(listing, generation, options, self.clock.now());
        self.shared.rules.store(Arc::new(Rules::new(Arc::clone(self.book.admission()), self.book.options())));
        self.shared.targets.rematch(generation, |name| self.book.listing().tag(name));
        self.expire();
        let _ = done.send(());
    }

    /// Takes out what has ended, and publishes that together with what was changed before.
    fn expire(&mut self) {
        let now = self.clock.now();
        self.book.expire(now);
        self.book.commit(now);
    }
}
