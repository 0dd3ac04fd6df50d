//! The bounded list of questions that wait for an upstream.
//!
//! When it is full the question that has waited longest gives up its seat: it is the likeliest to be one that nobody
//! will answer, and its client the likeliest to have asked anew. A flood therefore costs the flooder, not the next
//! client.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::hopes::Place;

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
    taken: BTreeMap<u64, Notice>,
}

/// How a question hears that its seat is taken by a later one.
#[derive(Debug, Default)]
enum Notice {
    /// Not yet told how.
    #[default]
    None,
    /// A task: dropping the sender tells it.
    Task(#[expect(dead_code, reason = "it is dropped")] oneshot::Sender<()>),
    /// It waits for a reply without a task.
    Place(Place),
}

/// One question's seat, given up when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    waiting: Arc<Waiting>,
    number: u64,
}

impl Waiting {
    /// Makes room for `seats_max` questions, at least one.
    pub(super) fn new(seats_max: usize) -> Arc<Self> {
        Arc::new(Self { seats_max: seats_max.max(1), seats: Mutex::default() })
    }

    /// Takes a seat, the oldest one if none is free.
    pub(super) fn enter(self: &Arc<Self>) -> Seat {
        let (number, evicted) = {
            let mut seats = self.seats.lock();
            let evicted = if seats.taken.len() >= self.seats_max { seats.taken.pop_first() } else { None };
            let number = seats.next;
            seats.next += 1;
            seats.taken.insert(number, Notice::None);
            (number, evicted)
        };
        if let Some((_, Notice::Place(place))) = evicted
            && let Some(hope) = place.take()
        {
            hope.evicted();
        }
        Seat { waiting: Arc::clone(self), number }
    }

    /// Returns how many wait.
    pub(super) fn len(&self) -> usize {
        self.seats.lock().taken.len()
    }

    /// Says that the question with seat `number` hears at `place` that it lost it; nothing if it has by now. One that
    /// went over to a task meanwhile hears it there.
    pub(super) fn notify_at(&self, number: u64, place: Place) {
        if let Some(notice @ Notice::None) = self.seats.lock().taken.get_mut(&number) {
            *notice = Notice::Place(place);
        }
    }

    fn notify_task(&self, number: u64, sender: oneshot::Sender<()>) {
        let before =
            self.seats.lock().taken.get_mut(&number).map(|notice| std::mem::replace(notice, Notice::Task(sender)));
        // Outside of the lock: it may hold the last hand on a socket.
        drop(before);
    }
}

impl Seat {
    /// Returns the room it is in.
    pub(super) fn waiting(&self) -> &Arc<Waiting> {
        &self.waiting
    }

    /// Returns its number, for [`Waiting::notify_at`].
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Waits until the seat is taken by a later question.
    pub(super) async fn evicted(&self) {
        let (sender, evicted) = oneshot::channel();
        self.waiting.notify_task(self.number, sender);
        let _ = evicted.await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let left = self.waiting.seats.lock().taken.remove(&self.number);
        // Outside of the lock: it may hold the last hand on a socket.
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn full_room_evicts_the_oldest_only() {
        let room = Waiting::new(2);
        let first = room.enter();
        let second = room.enter();
        assert!(first.evicted().now_or_never().is_none());
        let third = room.enter();
        assert!(first.evicted().now_or_never().is_some());
        assert!(second.evicted().now_or_never().is_none());
        assert!(third.evicted().now_or_never().is_none());
        drop(first);
        assert_eq!(room.len(), 2);
        drop((second, third));
        assert_eq!(room.len(), 0);
    }
}
