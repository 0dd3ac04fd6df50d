//! Offers that wait for the writer: bounded, and fair between client prefixes.
//!
//! Each client prefix (/24, /56) has a lane of its own; so have our own questions. Lanes are served in turn, so that
//! one client's flood queues behind itself. When there is no room the newest offer of the longest lane goes out at once
//! instead, with a TTL of 1 s; that may be the one that just came.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::Outcome;
use super::book::Admitted;
use super::rate::client_prefix;
use crate::clock::Timestamp;
use crate::prefix::Prefix;

/// The most answers that wait to be taken. With one batch under way, 4,096 wait in all.
pub(super) const QUEUE_LEN_MAX: usize = 3072;

/// The most octets of answers that wait to be taken. With one batch under way, 16 MiB wait in all.
pub(super) const QUEUE_OCTETS_MAX: usize = 12 << 20;

/// An offer that waits.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) offer: Admitted,
    /// When the answer was given.
    pub(super) now: Timestamp,
    /// How large the answer is that waits with it.
    pub(super) octets: usize,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// The queue; one reader.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lanes: Mutex<Lanes>,
    arrived: Notify,
}

/// A client prefix; `None` for our own questions.
type Lane = Option<Prefix>;

#[derive(Debug, Default)]
struct Lanes {
    /// Never an empty one.
    table: HashMap<Lane, VecDeque<Pending>, RandomState>,
    /// Each lane once, the next to be served first.
    turns: VecDeque<Lane>,
    len: usize,
    octets: usize,
    /// Nobody will take anything out any more.
    is_closed: bool,
}

impl Queue {
    /// Makes an empty queue.
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Takes an offer in. If there is no room, one goes out unanswered: the newest of the longest lane.
    pub(super) fn push(&self, pending: Pending) {
        let mut out = Vec::new();
        {
            let mut lanes = self.lanes.lock();
            if lanes.is_closed {
                return;
            }
            lanes.push(pending);
            while lanes.len > QUEUE_LEN_MAX || lanes.octets > QUEUE_OCTETS_MAX {
                out.extend(lanes.drop_newest_of_longest());
            }
        }
        self.arrived.notify_one();
        // Dropped here, outside of the lock: whoever waits for it is woken and hears that it is late.
        drop(out);
    }

    /// Takes the next offer out, if there is one.
    pub(super) fn try_pop(&self) -> Option<Pending> {
        self.lanes.lock().pop()
    }

    /// Waits for the next offer. Safe to cancel.
    pub(super) async fn pop(&self) -> Pending {
        loop {
            if let Some(pending) = self.try_pop() {
                return pending;
            }
            self.arrived.notified().await;
        }
    }

    /// Lets everything that waits go out, and whatever comes.
    pub(super) fn close(&self) {
        let left = std::mem::replace(&mut *self.lanes.lock(), Lanes { is_closed: true, ..Lanes::default() });
        drop(left);
    }

    /// Returns how many wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lanes.lock().len
    }
}

impl Lanes {
    fn push(&mut self, pending: Pending) {
        let lane = pending.offer.client.map(client_prefix);
        self.len += 1;
        self.octets += pending.octets;
        let waiting = self.table.entry(lane).or_default();
        if waiting.is_empty() {
            self.turns.push_back(lane);
        }
        waiting.push_back(pending);
    }

    fn pop(&mut self) -> Option<Pending> {
        let lane = self.turns.pop_front()?;
        let waiting = self.table.get_mut(&lane)?;
        let next = waiting.pop_front()?;
        if waiting.is_empty() {
            self.table.remove(&lane);
        } else {
            self.turns.push_back(lane);
        }
        self.took(&next);
        Some(next)
    }

    /// Costs a look at each lane, which is less than what the offer would cost the writer.
    fn drop_newest_of_longest(&mut self) -> Option<Pending> {
        let (&lane, waiting) = self.table.iter_mut().max_by_key(|(_, waiting)| waiting.len())?;
        let newest = waiting.pop_back()?;
        if waiting.is_empty() {
            self.table.remove(&lane);
            self.turns.retain(|turn| *turn != lane);
        }
        self.took(&newest);
        Some(newest)
    }

    fn took(&mut self, pending: &Pending) {
        self.len -= 1;
        self.octets -= pending.octets;
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::Options;
    use super::super::admit::Admission;
    use super::super::tests::tag;
    use super::*;

    fn pending(client: &str, octets: usize) -> (Pending, oneshot::Receiver<Outcome>) {
        let (reply, outcome) = oneshot::channel();
        let offer = Admitted {
            name: "a.zoom.test".parse().unwrap(),
            tag: tag("zoom", "zoom.test"),
            addresses: Vec::new(),
            address_count: 0,
            client: Some(client.parse().unwrap()),
            generation: 1,
            admission: Arc::new(Admission::new(&Options::default())),
        };
        (Pending { offer, now: Timestamp::default(), octets, reply }, outcome)
    }

    fn next(queue: &Queue) -> IpAddr {
        queue.try_pop().unwrap().offer.client.unwrap()
    }

    #[test]
    fn lanes_are_served_in_turn() {
        let queue = Queue::new();
        let mut outcomes = Vec::new();
        for client in ["192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.1", "2001:db8::1"] {
            let (pending, outcome) = pending(client, 1);
            queue.push(pending);
            outcomes.push(outcome);
        }
        let order: Vec<_> = (0..5).map(|_| next(&queue).to_string()).collect();
        assert_eq!(order, ["192.0.2.1", "198.51.100.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"]);
        assert!(queue.try_pop().is_none());
        assert!(queue.lanes.lock().table.is_empty());
    }

    #[test]
    fn flood_makes_room_for_others() {
        let queue = Queue::new();
        let mut flood: Vec<_> = (0..QUEUE_LEN_MAX)
            .map(|_| {
                let (pending, outcome) = pending("192.0.2.1", 1);
                queue.push(pending);
                outcome
            })
            .collect();
        let (other, mut outcome) = pending("198.51.100.1", 1);
        queue.push(other);
        assert!(flood.pop().unwrap().try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        assert!(outcome.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        assert_eq!(queue.len(), QUEUE_LEN_MAX);
        let (more, mut outcome) = pending("192.0.2.9", 1);
        queue.push(more);
        assert!(
            outcome.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed),
            "the flood's own"
        );
    }

    #[test]
    fn octets_are_bounded_too() {
        let queue = Queue::new();
        let mut outcomes = Vec::new();
        for _ in 0..300 {
            let (pending, outcome) = pending("192.0.2.1", 60_000);
            queue.push(pending);
            outcomes.push(outcome);
        }
        assert_eq!(queue.len(), QUEUE_OCTETS_MAX / 60_000);
        let (other, mut outcome) = pending("198.51.100.1", 65_535);
        queue.push(other);
        assert!(queue.lanes.lock().octets <= QUEUE_OCTETS_MAX);
        assert!(outcome.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
    }
}
