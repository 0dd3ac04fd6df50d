//! Single flight: equal questions that are on their way share one exchange and one hold.
//!
//! The first to ask leads: its question goes on whatever becomes of its client, so that one that goes away takes no
//! answer from the others. Whoever asks meanwhile comes aboard. All are told by the same event, so no second client
//! overtakes the first one's programming.
//!
//! A flight may be there to replace a cached answer ([`Aged`]). Then nobody who comes once it is overdue waits for it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::cache::Entry;
use crate::clock::Timestamp;
use crate::wire::{Answer, Question, ReplyCookie, Transport};

/// The most questions on their way at once; one more is answered with SERVFAIL.
const FLIGHTS_MAX: usize = 16_384;

/// Tells a client its reply; dropped, if there is none to tell.
pub type Tell = Box<dyn FnOnce(&[u8]) + Send>;

/// Whoever waits for a flight.
pub(super) enum Passenger {
    /// A task. It hears of the leader's failure by the end of the channel.
    Task(oneshot::Sender<Entry>),
    /// A packet whose reply is made and told where the flight lands.
    Packet(Packet),
}

/// A question as its client sent it, and how the client is told.
pub(super) struct Packet {
    pub(super) octets: SmallVec<[u8; 64]>,
    /// What its reply carries.
    pub(super) cookie: Option<ReplyCookie>,
    pub(super) transport: Transport,
    pub(super) tell: Tell,
}

/// Those who wait for one flight; mostly it is one.
pub(super) type Passengers = SmallVec<[Passenger; 1]>;

/// The cached answer that a flight is to replace.
#[derive(Clone)]
pub(super) struct Aged {
    pub(super) entry: Entry,
    /// From when on it is given although it has ended; `None` for never.
    pub(super) overdue: Option<Timestamp>,
}

impl Aged {
    /// Returns whether it is still worth more than this failure. What validation refused ends what has ended.
    pub(super) fn outlasts(&self, failure: &Answer, now: Timestamp) -> bool {
        self.entry.is_fresh(now) || (self.overdue.is_some() && !failure.is_refused_by_dnssec())
    }

    /// Returns whether nobody needs to wait for a newer one.
    fn is_to_be_given(&self, now: Timestamp) -> bool {
        self.overdue.is_some_and(|overdue| overdue <= now) || self.entry.is_fresh(now)
    }
}

/// Who waits for one flight, and what it is to replace.
#[derive(Default)]
struct Aboard {
    passengers: Passengers,
    aged: Option<Aged>,
}

/// The questions on their way.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Arc<Question>, Aboard, foldhash::fast::RandomState>>);

/// How a question travels.
pub(super) enum Boarding<S: FnOnce(Passengers)> {
    /// It is the first: whoever holds this answers it with [`Leader::land`].
    Lead(Leader<S>),
    /// It waits for another's answer.
    Follow,
    /// It need not wait: this answer is there.
    Relieved(Passenger, Entry),
    /// There are too many on their way; it stays behind.
    Full(Passenger),
}

/// The duty to answer; dropping it without [`Leader::land`] leaves those who wait to `sorry`.
pub(super) struct Leader<S: FnOnce(Passengers)> {
    question: Arc<Question>,
    flights: Arc<Flights>,
    /// Gone once it has landed.
    sorry: Option<S>,
}

impl Flights {
    /// Joins the flight of `question`, or starts it; `sorry` gets its passengers if its leader fails.
    pub(super) fn board<S: FnOnce(Passengers)>(
        self: &Arc<Self>,
        question: &Arc<Question>,
        passenger: Passenger,
        now: Timestamp,
        sorry: S,
    ) -> Boarding<S> {
        let mut flights = self.0.lock();
        if let Some(aboard) = flights.get_mut(question) {
            if let Some(aged) = aboard.aged.as_ref().filter(|aged| aged.is_to_be_given(now)) {
                return Boarding::Relieved(passenger, aged.entry.clone());
            }
            aboard.passengers.push(passenger);
            return Boarding::Follow;
        }
        if flights.len() >= FLIGHTS_MAX {
            return Boarding::Full(passenger);
        }
        let aboard = Aboard { passengers: SmallVec::from_iter([passenger]), aged: None };
        flights.insert(Arc::clone(question), aboard);
        Boarding::Lead(Leader { question: Arc::clone(question), flights: Arc::clone(self), sorry: Some(sorry) })
    }

    /// Starts a flight that nobody waits for; `None` if there is one, or no room.
    pub(super) fn start<S: FnOnce(Passengers)>(
        self: &Arc<Self>,
        question: &Arc<Question>,
        aged: Aged,
        sorry: S,
    ) -> Option<Leader<S>> {
        let mut flights = self.0.lock();
        if flights.len() >= FLIGHTS_MAX || flights.contains_key(question) {
            return None;
        }
        flights.insert(Arc::clone(question), Aboard { passengers: Passengers::new(), aged: Some(aged) });
        Some(Leader { question: Arc::clone(question), flights: Arc::clone(self), sorry: Some(sorry) })
    }

    /// Takes those out who wait for this very flight, if it is overdue at `now`, and what they are to be given.
    pub(super) fn relieve(&self, question: &Arc<Question>, now: Timestamp) -> Option<(Passengers, Entry)> {
        let mut flights = self.0.lock();
        // Another flight of the same question has a copy of its own.
        flights.get_key_value(question).filter(|(led, _)| Arc::ptr_eq(led, question))?;
        let Aboard { passengers, aged } = flights.get_mut(question)?;
        let aged = aged.as_ref().filter(|aged| aged.is_to_be_given(now))?;
        Some((std::mem::take(passengers), aged.entry.clone()))
    }

    fn end(&self, question: &Question) -> Passengers {
        self.0.lock().remove(question).unwrap_or_default().passengers
    }
}

impl<S: FnOnce(Passengers)> Leader<S> {
    /// Says what the flight is to replace.
    pub(super) fn replaces(&self, aged: Aged) {
        if let Some(aboard) = self.flights.0.lock().get_mut(&self.question) {
            aboard.aged = Some(aged);
        }
    }

    /// Ends the flight and returns who waited for it, to be told. The caller has put the answer into the cache before,
    /// if it belongs there, so that a question that comes right afterwards finds it.
    pub(super) fn land(mut self) -> Passengers {
        self.sorry = None;
        self.flights.end(&self.question)
    }
}

impl<S: FnOnce(Passengers)> Drop for Leader<S> {
    fn drop(&mut self) {
        if let Some(sorry) = self.sorry.take() {
            sorry(self.flights.end(&self.question));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Mark;
    use crate::name::Name;
    use crate::wire;

    const NOW: Timestamp = Timestamp::from_secs(1);

    fn question(name: &str) -> Arc<Question> {
        Arc::new(Question::new(Name::parse(name).unwrap(), 1))
    }

    fn task() -> (Passenger, oneshot::Receiver<Entry>) {
        let (sender, seat) = oneshot::channel();
        (Passenger::Task(sender), seat)
    }

    #[tokio::test]
    async fn a_leader_that_fails_releases_those_who_wait() {
        let flights = Arc::new(Flights::default());
        let (first, second) = (task(), task());
        let Boarding::Lead(leader) = flights.board(&question("a.example"), first.0, NOW, drop) else {
            panic!("first leads")
        };
        assert!(matches!(flights.board(&question("A.example"), second.0, NOW, drop), Boarding::Follow));
        drop(leader);
        assert!(first.1.await.is_err() && second.1.await.is_err());
        assert!(
            matches!(flights.board(&question("a.example"), task().0, NOW, drop), Boarding::Lead(..)),
            "the next leads anew"
        );
    }

    #[test]
    fn a_flight_that_landed_ends_no_later_one() {
        let flights = Arc::new(Flights::default());
        let Boarding::Lead(leader) = flights.board(&question("a.example"), task().0, NOW, drop) else {
            panic!("it leads")
        };
        assert_eq!(leader.land().len(), 1);
        let Boarding::Lead(_next) = flights.board(&question("a.example"), task().0, NOW, drop) else {
            panic!("it leads anew")
        };
        assert!(matches!(flights.board(&question("a.example"), task().0, NOW, drop), Boarding::Follow));
    }

    fn aged(overdue: Option<Timestamp>) -> Aged {
        let question = question("a.example");
        let answer = wire::synthesize(&question, 0, &[]);
        let mark = Mark { generation: 1, tagged: None, is_learned: false, programmed: true };
        // It ends as the second begins.
        Aged { entry: Entry::new(&question, answer.kept(), Timestamp::default(), 1, mark), overdue }
    }

    #[test]
    fn nobody_waits_for_a_flight_that_is_overdue() {
        let (flights, asked, later) = (Arc::new(Flights::default()), question("a.example"), Timestamp::from_secs(2));
        let Boarding::Lead(leader) = flights.board(&asked, task().0, NOW, drop) else { panic!("it leads") };
        leader.replaces(aged(Some(later)));
        assert!(matches!(flights.board(&asked, task().0, NOW, drop), Boarding::Follow));
        assert!(flights.relieve(&asked, NOW).is_none(), "not yet");
        assert_eq!(flights.relieve(&asked, later).map(|(relieved, _)| relieved.len()), Some(2));
        assert!(matches!(flights.board(&asked, task().0, later, drop), Boarding::Relieved(..)));
        assert!(leader.land().is_empty());
    }

    #[test]
    fn a_flight_is_relieved_for_its_own_delay_only() {
        let flights = Arc::new(Flights::default());
        let (first, second) = (question("a.example"), question("a.example"));
        let lead = |asked: &Arc<Question>| {
            let Boarding::Lead(leader) = flights.board(asked, task().0, NOW, drop) else { panic!("it leads") };
            leader.replaces(aged(Some(NOW)));
            leader
        };
        lead(&first).land();
        let _second = lead(&second);
        assert!(flights.relieve(&first, NOW).is_none());
        assert!(flights.relieve(&second, NOW).is_some());
    }

    #[test]
    fn what_is_asked_ahead_is_waited_for_once_the_old_answer_has_ended() {
        let (flights, asked) = (Arc::new(Flights::default()), question("a.example"));
        let _leader = flights.start(&asked, aged(None), drop).unwrap();
        assert!(flights.start(&asked, aged(None), drop).is_none(), "one is enough");
        let before = Timestamp::from_millis(999);
        assert!(matches!(flights.board(&asked, task().0, before, drop), Boarding::Relieved(..)));
        assert!(matches!(flights.board(&asked, task().0, NOW, drop), Boarding::Follow));
        assert!(flights.relieve(&asked, Timestamp::from_secs(99)).is_none(), "stale answers are switched off");
    }
}
