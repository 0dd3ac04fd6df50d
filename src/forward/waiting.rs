//! The bounded list of questions that wait for an upstream.
//!
//! When it is full the question that has waited longest gives up its seat: it is the likeliest to be one that nobody
//! will answer, and its client the likeliest to have asked anew. A flood therefore costs the flooder, not the next
//! client.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The seats; entering is never refused.
#[derive(Debug)]
pub(super) struct Waiting {
    seats_max: usize,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    /// By the order of entering.
    taken: BTreeMap<u64, oneshot::Sender<()>>,
}

/// One question's seat, given up when dropped.
#[derive(Debug)]
pub(super) struct Seat<'a> {
    waiting: &'a Waiting,
    number: u64,
    evicted: oneshot::Receiver<()>,
}

impl Waiting {
    /// Makes room for `seats_max` questions, at least one.
    pub(super) fn new(seats_max: usize) -> Self {
        Self { seats_max: seats_max.max(1), seats: Mutex::default() }
    }

    /// Takes a seat, the oldest one if none is free.
    pub(super) fn enter(&self) -> Seat<'_> {
        let (evict, evicted) = oneshot::channel();
        let mut seats = self.seats.lock();
        if seats.taken.len() >= self.seats_max {
            // Dropping the sender tells its question.
            seats.taken.pop_first();
        }
        let number = seats.next;
        seats.next += 1;
        seats.taken.insert(number, evict);
        Seat { waiting: self, number, evicted }
    }

    /// Returns how many wait.
    pub(super) fn len(&self) -> usize {
        self.seats.lock().taken.len()
    }
}

impl Seat<'_> {
    /// Waits until the seat is taken by a later question.
    pub(super) async fn evicted(&mut self) {
        let _ = (&mut self.evicted).await;
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.waiting.seats.lock().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn full_room_evicts_the_oldest_only() {
        let room = Waiting::new(2);
        let mut first = room.enter();
        let mut second = room.enter();
        assert!(first.evicted().now_or_never().is_none());
        let mut third = room.enter();
        assert!(first.evicted().now_or_never().is_some());
        assert!(second.evicted().now_or_never().is_none());
        assert!(third.evicted().now_or_never().is_none());
        drop(first);
        assert_eq!(room.len(), 2);
        drop((second, third));
        assert_eq!(room.len(), 0);
    }
}
