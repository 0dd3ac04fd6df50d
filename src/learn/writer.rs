//! The one task that changes the set.
//!
//! It takes what waits in its queue as one batch, so that a burst of answers makes one snapshot and one serial:
//!
//! ```text
//!  offers ─▶ apply each ─▶ take out what has ended ─▶ publish ─▶ tell store and sinks ─▶ answer each
//!                                                                 └─ at most the hold ─┘
//! ```
//!
//! While store and sinks are at it, the next batch gathers: an answer whose address is on its way already finds it held
//! when its turn comes, and nobody overtakes. When they do not hold a batch in time, its answers are late and its
//! sightings stay as if not granted, so that the next answer with them asks again. Between batches the writer sleeps
//! until the next end. Commands have a queue of their own and go first; offers that were matched before a reload are
//! matched again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::book::Book;
use super::hear::Hearings;
use super::queue::{Pending, Queue};
use super::sinks::Sinks;
use super::{Confirm, Hearing, Listing, Options, Outcome, Released, Rules, Shared};
use crate::clock::{Clock, Timestamp};
use crate::set::outlet::Change;
use crate::set::{Batch, Since};

/// The most offers in one batch: so many take some milliseconds, a small part of the hold.
const BATCH_LEN_MAX: usize = 1024;

/// The most octets of answers in one batch. With those of the queue, 16 MiB wait in all.
const BATCH_OCTETS_MAX: usize = 4 << 20;

/// How long store and sinks may take for the whole set at start, before anybody has asked anything.
const BEGIN_PATIENCE: Duration = Duration::from_secs(5);

/// How long they may take for the last word.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// When nothing ends: later than any clock shows.
const NEVER: Timestamp = Timestamp::from_millis(u64::MAX);

/// What the writer is asked to do beside taking offers.
#[derive(Debug)]
pub(super) enum Command {
    Reload(Box<Reload>),
    AcceptShrink(oneshot::Sender<Released>),
    /// Answered with true by a writer that takes its turns.
    ShowLife(oneshot::Sender<bool>),
    Close(oneshot::Sender<()>),
}

/// A new listing that waits.
#[derive(Debug)]
pub(super) struct Reload {
    pub(super) listing: Listing,
    pub(super) generation: u64,
    pub(super) options: Option<Options>,
    pub(super) confirm: Confirm,
    /// Hears how many entries stay that the listing does not have.
    pub(super) done: oneshot::Sender<usize>,
}

/// The task that changes the set; does nothing until it [runs](Self::run).
#[derive(Debug)]
pub struct Writer {
    pub(super) book: Book,
    /// What the set begins with, until it is told.
    pub(super) first: Option<Batch>,
    pub(super) begun: watch::Sender<bool>,
    pub(super) sinks: Sinks,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Clock,
    pub(super) offers: Arc<Queue>,
    pub(super) commands: mpsc::Receiver<Command>,
    /// What other resolvers say.
    pub(super) hearings: mpsc::Receiver<Hearings>,
}

impl Writer {
    /// Runs until the last handle is gone, or one closes it.
    pub async fn run(mut self) {
        self.begin().await;
        let offers = Arc::clone(&self.offers);
        loop {
            let (next_end, hold) = (self.book.next_end().unwrap_or(NEVER), self.hold());
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Reload(reload)) => self.reload(*reload).await,
                    Some(Command::AcceptShrink(done)) => self.accept_shrink(done).await,
                    Some(Command::ShowLife(done)) => {
                        let _ = done.send(true);
                    }
                    Some(Command::Close(done)) => {
                        self.close().await;
                        let _ = done.send(());
                        return;
                    }
                    None => return self.finish().await,
                },
                first = offers.pop() => self.batch(first).await,
                Some(hearings) = self.hearings.recv() => self.hear(hearings).await,
                () = self.clock.sleep_until(next_end) => {
                    self.publish().await;
                    // Of very many that end together the others come in the next turn; let somebody else have theirs.
                    tokio::task::yield_now().await;
                }
                () = self.sinks.tend(self.book.draft(), hold) => {}
            }
        }
    }

    async fn begin(&mut self) {
        if let Some(first) = self.first.take() {
            let whole = |writer: &Self, _: &Batch| writer.book.draft().whole(writer.clock.now());
            self.settle(first, whole, BEGIN_PATIENCE).await;
        }
        self.begun.send_replace(true);
    }

    async fn batch(&mut self, first: Pending) {
        let (mut known, mut granted, mut octets) = (Vec::new(), Vec::new(), 0);
        let mut next = Some(first);
        while let Some(pending) = next {
            octets += pending.octets;
            // Its TTL counts from when the client is told, which is after this.
            let now = pending.now.max(self.clock.now());
            let steps_before = self.book.draft().step_count();
            let outcome = self.book.offer(pending.offer, now);
            let asks = self.book.draft().step_count() > steps_before;
            if asks { &mut granted } else { &mut known }.push((pending.reply, outcome));
            let is_full = known.len() + granted.len() >= BATCH_LEN_MAX || octets >= BATCH_OCTETS_MAX;
            next = if is_full { None } else { self.offers.try_pop() };
        }
        // Answers never keep others' words waiting for more than a batch.
        let heard = self.hearings.try_recv().ok().map(|hearings| self.take_in(hearings));
        let batch = self.take_batch();
        if let Some(heard) = heard {
            heard.tell();
        }
        // Whoever asks for nothing that is not held need not wait for it. Nobody listens any more when the hold ran
        // out.
        for (reply, outcome) in known {
            let _ = reply.send(outcome);
        }
        let is_held = self.tell(batch).await;
        for (reply, outcome) in granted {
            let outcome = if outcome == Outcome::Programmed && !is_held { Outcome::Late } else { outcome };
            let _ = reply.send(outcome);
        }
    }

    async fn hear(&mut self, hearings: Hearings) {
        let heard = self.take_in(hearings);
        let batch = self.take_batch();
        heard.tell();
        self.tell(batch).await;
    }

    fn take_in(&mut self, Hearings { words, done }: Hearings) -> Heard {
        let now = self.clock.now();
        let mut hearing = Hearing::default();
        words.iter().for_each(|word| hearing.count(self.book.hear(word, now)));
        Heard { hearing, done }
    }

    async fn reload(&mut self, reload: Reload) {
        let Reload { listing, generation, options, confirm, done } = reload;
        let kept = self.book.reload(listing, generation, options, confirm, self.clock.now());
        self.shared.rules.store(Arc::new(Rules::new(Arc::clone(self.book.admission()), self.book.options())));
        self.sinks.wait_for_followers(self.book.options().hold_for_followers);
        self.shared.targets.rematch(generation, |name| self.book.listing().tag(name));
        self.publish().await;
        let _ = done.send(kept);
    }

    async fn accept_shrink(&mut self, done: oneshot::Sender<Released>) {
        let (session, before) = (self.book.draft().session(), self.book.draft().serial());
        let entries = self.book.accept_shrink();
        // What ends at the same moment is none of it, and leaves in the next turn.
        let batch = self.book.publish(self.clock.now());
        let mut released = Released::default();
        if entries > 0 {
            let withdrawn = match self.book.draft().reader().since(session, before) {
                Since::Delta(delta) => Some(delta.withdrawn.clone()),
                Since::Current => Some(Vec::new()),
                Since::Reset => None,
            };
            released = Released { entries, serial: self.book.draft().serial(), withdrawn };
        }
        self.tell(batch).await;
        let _ = done.send(released);
    }

    /// Applies what is left, though nobody waits for it any more.
    async fn finish(&mut self) {
        while let Some(first) = self.offers.try_pop() {
            self.batch(first).await;
        }
        self.close().await;
    }

    async fn close(&mut self) {
        self.offers.close();
        if !self.sinks.is_empty() {
            let last = Arc::new(self.book.draft().last(self.clock.now()));
            self.sinks.tell(&last, self.book.draft(), CLOSE_PATIENCE).await;
        }
    }

    /// Takes out what has ended, publishes that together with what was changed before, and tells it.
    async fn publish(&mut self) {
        let batch = self.take_batch();
        self.tell(batch).await;
    }

    fn take_batch(&mut self) -> Batch {
        let now = self.clock.now();
        self.book.expire(now);
        self.book.publish(now)
    }

    /// Tells a batch and lets its grants count if it is held. Returns whether it is.
    async fn tell(&mut self, batch: Batch) -> bool {
        let change = |writer: &Self, batch: &Batch| writer.book.draft().change(batch, writer.clock.now());
        self.settle(batch, change, self.hold()).await
    }

    async fn settle(&mut self, batch: Batch, word: impl FnOnce(&Self, &Batch) -> Change, patience: Duration) -> bool {
        let is_held = self.sinks.is_empty() || {
            let change = word(self, &batch);
            change.is_empty() || self.sinks.tell(&Arc::new(change), self.book.draft(), patience).await
        };
        if is_held {
            batch.confirm();
        }
        is_held
    }

    fn hold(&self) -> Duration {
        self.book.options().hold
    }
}

/// What became of the words of others, to be told once it is published.
struct Heard {
    hearing: Hearing,
    done: oneshot::Sender<Hearing>,
}

impl Heard {
    fn tell(self) {
        // Whoever asked may have gone.
        let _ = self.done.send(self.hearing);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.offers.close();
    }
}
