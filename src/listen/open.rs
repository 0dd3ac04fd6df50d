//! The connections that are open, whatever they speak: bounded in all and for each client prefix.
//!
//! A new connection always finds a [`Seat`]; when there are too many, the idlest leaves: of the same client prefix if that
//! has too many, else of all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::client_prefix;
use crate::clock::Timestamp;
use crate::prefix::Prefix;

/// The connections open now, within their bounds.
#[derive(Debug)]
pub struct Open {
    pub(super) max: usize,
    max_per_client: usize,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    taken: HashMap<u64, Taken>,
    by_client: HashMap<Prefix, usize>,
}

#[derive(Debug)]
struct Taken {
    client: Prefix,
    /// When it was last answered, in milliseconds.
    active: Arc<AtomicU64>,
    evict: CancellationToken,
}

/// One connection's place; leaving frees it.
#[derive(Debug)]
pub(super) struct Seat {
    number: u64,
    open: Arc<Open>,
    active: Arc<AtomicU64>,
    /// Tells it to leave.
    pub(super) evict: CancellationToken,
}

impl Open {
    /// Makes room for `max` connections, `max_per_client` of one client prefix; both at least one.
    pub fn new(max: usize, max_per_client: usize) -> Self {
        Self { max: max.max(1), max_per_client: max_per_client.max(1), seats: Mutex::default() }
    }

    /// Returns how many connections are open.
    pub fn len(&self) -> usize {
        self.seats.lock().taken.len()
    }

    /// Returns whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells the connection that was answered longest ago to leave, if there is one.
    pub(super) fn evict_idlest(&self) {
        self.seats.lock().evict_idlest(|_| true);
    }

    /// Seats a new connection; the idlest one leaves if there are too many.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr, now: Timestamp) -> Seat {
        let client = client_prefix(client);
        let mut seats = self.seats.lock();
        if seats.by_client.get(&client).is_some_and(|&count| count >= self.max_per_client) {
            seats.evict_idlest(|taken| taken.client == client);
        } else if seats.taken.len() >= self.max {
            seats.evict_idlest(|_| true);
        }
        let number = seats.next;
        seats.next += 1;
        let active = Arc::new(AtomicU64::new(now.as_millis()));
        let evict = CancellationToken::new();
        *seats.by_client.entry(client).or_default() += 1;
        seats.taken.insert(number, Taken { client, active: Arc::clone(&active), evict: evict.clone() });
        Seat { number, open: Arc::clone(self), active, evict }
    }
}

impl Seats {
    /// Tells the connection that was answered longest ago to leave; its place is free at once.
    fn evict_idlest(&mut self, may_go: impl Fn(&Taken) -> bool) {
        let idlest = self
            .taken
            .iter()
            .filter(|(_, taken)| may_go(taken))
            .min_by_key(|(number, taken)| (taken.active.load(Ordering::Relaxed), **number))
            .map(|(number, _)| *number);
        if let Some(number) = idlest {
            self.leave(number);
        }
    }

    fn leave(&mut self, number: u64) {
        let Some(taken) = self.taken.remove(&number) else { return };
        taken.evict.cancel();
        if let Some(count) = self.by_client.get_mut(&taken.client) {
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&taken.client);
            }
        }
    }
}

impl Seat {
    /// Notes that it was answered.
    pub(super) fn touch(&self, now: Timestamp) {
        self.active.store(now.as_millis(), Ordering::Relaxed);
    }

    /// Returns what notes that in the connection's tasks.
    pub(super) fn activity(&self) -> Activity {
        Activity(Arc::clone(&self.active))
    }
}

/// When a connection was last answered.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<AtomicU64>);

impl Activity {
    /// Notes that it was answered.
    pub(super) fn touch(&self, now: Timestamp) {
        self.0.store(now.as_millis(), Ordering::Relaxed);
    }

    /// Returns how long ago it was answered, or seated.
    pub(super) fn idle(&self, now: Timestamp) -> Duration {
        Duration::from_millis(now.as_millis().saturating_sub(self.0.load(Ordering::Relaxed)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.open.seats.lock().leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idlest_connection_leaves_for_a_new_one() {
        let open = Arc::new(Open::new(3, 2));
        let at = Timestamp::from_secs;
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = open.enter(ip("192.0.2.1"), at(1));
        let second = open.enter(ip("192.0.2.2"), at(2));
        first.touch(at(3));
        let third = open.enter(ip("192.0.2.3"), at(4));
        assert!(second.evict.is_cancelled(), "one prefix has two at most, the idlest of them goes");
        assert!(!first.evict.is_cancelled());
        let _other = open.enter(ip("198.51.100.1"), at(5));
        let _more = open.enter(ip("203.0.113.1"), at(6));
        assert!(first.evict.is_cancelled(), "three in all, the idlest goes");
        assert!(!third.evict.is_cancelled());
        assert_eq!(open.len(), 3);
    }

    #[test]
    fn a_connection_that_ends_frees_its_place() {
        let open = Arc::new(Open::new(1, 1));
        let seat = open.enter("192.0.2.1".parse().unwrap(), Timestamp::from_secs(1));
        drop(seat);
        assert!(open.is_empty());
        assert!(open.seats.lock().by_client.is_empty());
    }
}
