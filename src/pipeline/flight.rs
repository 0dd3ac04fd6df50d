//! Single flight: equal questions that are on their way share one exchange and one hold.
//!
//! The first to ask leads: its question is answered in a task of its own, so that a client that goes away takes no
//! answer from the others. Whoever asks meanwhile waits for that task. No second client overtakes the first one's
//! programming, since both are released by the same event.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cache::{Entry, Key};

/// The most questions on their way at once; one more is answered with SERVFAIL.
const FLIGHTS_MAX: usize = 16_384;

/// What a flight brings: the answer, and whether it may be told with its TTLs.
#[derive(Clone, Debug)]
pub(super) struct Landed {
    /// The answer with its times.
    pub(super) entry: Entry,
}

type Seat = watch::Receiver<Option<Landed>>;

/// The questions on their way.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<Key, Seat, foldhash::fast::RandomState>>);

/// How a question travels.
pub(super) enum Boarding {
    /// It is the first: whoever holds this answers it with [`Leader::land`].
    Lead(Leader, Seat),
    /// It waits for another's answer.
    Follow(Seat),
    /// There are too many on their way.
    Full,
}

/// The duty to answer; dropping it without [`Leader::land`] tells those who wait that nothing came.
pub(super) struct Leader {
    key: Key,
    flights: Arc<Flights>,
    gate: watch::Sender<Option<Landed>>,
}

impl Flights {
    /// Joins the question of `key`, or starts it.
    pub(super) fn board(self: &Arc<Self>, key: &Key) -> Boarding {
        let mut flights = self.0.lock();
        if let Some(seat) = flights.get(key) {
            return Boarding::Follow(seat.clone());
        }
        if flights.len() >= FLIGHTS_MAX {
            return Boarding::Full;
        }
        let (gate, seat) = watch::channel(None);
        flights.insert(key.clone(), seat.clone());
        Boarding::Lead(Leader { key: key.clone(), flights: Arc::clone(self), gate }, seat)
    }
}

impl Leader {
    /// Hands the answer to all who wait. The caller has put it into the cache before, if it belongs there, so that a
    /// question that comes right afterwards finds it.
    pub(super) fn land(self, landed: Landed) {
        self.gate.send_replace(Some(landed));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.key);
    }
}

/// Waits for the answer; `None` if its leader failed.
pub(super) async fn wait(mut seat: Seat) -> Option<Landed> {
    // An error means that the leader is gone; what it sent before still counts.
    let _ = seat.wait_for(Option::is_some).await;
    seat.borrow().clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use crate::wire::Question;

    fn key(name: &str) -> Key {
        Key::of(&Question {
            name: Name::parse(name).unwrap(),
            qtype: 1,
            qclass: 1,
            dnssec_ok: false,
            checking_disabled: false,
        })
    }

    #[tokio::test]
    async fn a_leader_that_fails_releases_those_who_wait() {
        let flights = Arc::new(Flights::default());
        let Boarding::Lead(leader, _) = flights.board(&key("a.example")) else { panic!("first leads") };
        let Boarding::Follow(seat) = flights.board(&key("A.example")) else { panic!("second follows") };
        drop(leader);
        assert!(wait(seat).await.is_none());
        assert!(matches!(flights.board(&key("a.example")), Boarding::Lead(..)), "the next one leads anew");
    }
}
