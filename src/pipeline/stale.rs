//! Answers past their end, for as long as no upstream gives a newer one (RFC 8767).
//!
//! A question whose cached answer has ended is asked upstream as any other; the answer that ended waits beside the
//! flight ([`Aged`]) and is given
//! - when the flight is overdue: to those who wait, by the one sweep ([`Overdue`]), and to those who come later at once;
//! - when it fails: to those who wait, and for half a minute to all who ask, without asking upstream (the failure
//!   recheck timer, RFC 8767 §5; the entry remembers it).
//!
//! A validation failure is no such failure: it is told, and replaces what was kept. What is told has TTLs of at most
//! [`STALE_TTL_SECS`], no AD, an extended error that says so, and the tag of the current catalogue; its addresses are
//! offered to the learner first, each time, for these TTLs.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::flight::{Aged, Passengers};
use super::meter::Prefetch;
use super::{Flight, Pipeline, Shared, errands};
use crate::cache::Entry;
use crate::clock::Timestamp;
use crate::wire::{self, Answer, Ede, Facts, Kind, Question, Rules};

/// How long a client waits for a newer answer (RFC 8767 §5: the client response timer).
const PATIENCE: Duration = Duration::from_millis(1800);

/// TTLs of what is given past its end (RFC 8767 §4).
const STALE_TTL_SECS: u32 = 30;

/// The sweep comes no more often than this.
const SWEEP_PAUSE: Duration = Duration::from_millis(10);

/// The most flights watched at once, those that landed meanwhile among them. Of one more the leader waits until it
/// lands.
const WATCHED_MAX: usize = 65_536;

/// Flights that replace an answer past its end, in the order in which they become overdue.
#[derive(Default)]
pub(super) struct Overdue {
    watched: Mutex<VecDeque<Watched>>,
    /// Told when the first one comes.
    begun: Notify,
}

struct Watched {
    at: Timestamp,
    /// The leader's own, which tells the flight from later ones.
    question: Arc<Question>,
    client: Option<IpAddr>,
}

impl Overdue {
    fn push(&self, watched: Watched) {
        let mut all = self.watched.lock();
        if all.len() < WATCHED_MAX {
            all.push_back(watched);
            if all.len() == 1 {
                self.begun.notify_one();
            }
        }
    }

    fn next(&self) -> Option<Timestamp> {
        self.watched.lock().front().map(|watched| watched.at)
    }

    fn pop(&self, now: Timestamp) -> Option<Watched> {
        let mut watched = self.watched.lock();
        if watched.front()?.at <= now { watched.pop_front() } else { None }
    }
}

impl Pipeline {
    /// Returns whether an answer that has ended may still be given.
    pub(super) fn may_be_stale(&self, entry: &Entry, now: Timestamp) -> bool {
        let serve_stale = self.0.current.load().ahead.serve_stale;
        entry.answer().kind() != Kind::Failure && now < entry.end().after(serve_stale)
    }

    /// Says when an answer is to be given in the place of one that is asked for from now on.
    pub(super) fn aged(&self, entry: Entry, now: Timestamp) -> Aged {
        let is_on = !self.0.current.load().ahead.serve_stale.is_zero();
        Aged { entry, overdue: is_on.then(|| now.after(PATIENCE)) }
    }

    /// Has those relieved who wait for the flight that `question` leads, once that is overdue.
    pub(super) fn watch(&self, aged: &Aged, question: &Arc<Question>, client: Option<IpAddr>) {
        if let Some(at) = aged.overdue {
            self.0.overdue.push(Watched { at, question: Arc::clone(question), client });
        }
    }

    /// Relieves those who wait for flights that are overdue, for ever.
    pub(super) async fn relieve_overdue(&self) {
        let Shared { overdue, clock, flights, .. } = &*self.0;
        let mut swept = Timestamp::default();
        loop {
            let Some(next) = overdue.next() else {
                overdue.begun.notified().await;
                continue;
            };
            clock.sleep_until(next.max(swept.after(SWEEP_PAUSE))).await;
            swept = clock.now();
            while let Some(Watched { question, client, .. }) = overdue.pop(swept) {
                if let Some((passengers, entry)) = flights.relieve(&question, swept) {
                    self.relieve(question, entry, client, passengers, &Handle::current());
                }
            }
        }
    }

    /// Ends a flight that brought nothing new for an answer that may still be given.
    pub(super) fn refresh_failed<S: FnOnce(Passengers)>(&self, flight: Flight<S>, entry: &Entry, now: Timestamp) {
        let Flight { question, client, leader, runtime, seat, .. } = flight;
        // One that was asked ahead in vain is asked for again by the first who needs it.
        if !entry.is_fresh(now) {
            entry.note_failure(now);
        }
        if seat.is_some() {
            self.0.meter.prefetch(Prefetch::Failed);
        }
        self.relieve(question, entry.clone(), client, leader.land(), &runtime);
    }

    /// Gives those who wait a cached answer in the place of a newer one.
    pub(super) fn relieve(
        &self,
        question: Arc<Question>,
        entry: Entry,
        client: Option<IpAddr>,
        passengers: Passengers,
        runtime: &Handle,
    ) {
        if passengers.is_empty() {
            return;
        }
        let (pipeline, now) = (self.clone(), self.0.clock.now());
        if entry.is_fresh(now) {
            // It was being asked ahead when the catalogue changed.
            errands::spawn(runtime, async move {
                let again = pipeline.learn_again(&question, &entry, client).await;
                pipeline.0.meter.hit();
                pipeline.tell(passengers, &again, pipeline.0.clock.now());
            });
            return;
        }
        let Some((answer, facts)) = stale(&question, &entry) else { return self.apologize(passengers) };
        passengers.iter().for_each(|_| self.0.meter.stale());
        let octets = answer.heap_bytes();
        let told = move |question: &Question, mark| Entry::new(question, answer.kept(), now, STALE_TTL_SECS, mark);
        match self.learn_known(&question, (facts, octets), 0, (client, now)) {
            Ok(mark) => self.tell(passengers, &told(&question, mark), now),
            Err(lesson) => errands::spawn(runtime, async move {
                let mark = pipeline.learn_rest(lesson).await;
                pipeline.tell(passengers, &told(&question, mark), pipeline.0.clock.now());
            }),
        }
    }
}

/// Makes what is told of an answer past its end, and what is to be learned of it.
fn stale(question: &Question, entry: &Entry) -> Option<(Answer, Facts)> {
    // It was validated once, which says nothing of now.
    let rules = Rules { min_ttl: 0, max_ttl: STALE_TTL_SECS, negative_max_ttl: STALE_TTL_SECS, trust_ad: false };
    let kept = entry.answer();
    let walked = wire::walk(kept.bytes(), question, &rules).ok()?;
    let code = if kept.kind() == Kind::NxDomain { wire::ede::STALE_NXDOMAIN } else { wire::ede::STALE_ANSWER };
    let mut edes = vec![Ede::new(code, "")];
    edes.extend(kept.edes());
    Some((walked.answer.with_edes(&edes), walked.facts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Mark;
    use crate::name::Name;

    /// An answer of `ttl_secs` with AD, as it is kept.
    fn entry(question: &Question, ttl_secs: u32, edes: &[Ede]) -> Entry {
        let mut octets = b"\0\0\x81\xa0\0\x01\0\x01\0\0\0\0".to_vec();
        octets.extend(question.name.as_wire());
        octets.extend([0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1]);
        octets.extend(ttl_secs.to_be_bytes());
        octets.extend([0, 4, 192, 0, 2, 1]);
        let rules = Rules { min_ttl: 0, max_ttl: 86_400, negative_max_ttl: 3600, trust_ad: true };
        let answer = wire::walk(&octets, question, &rules).unwrap().answer.with_edes(edes);
        assert_eq!(answer.bytes()[3] & 0x20, 0x20);
        let mark = Mark { generation: 1, tagged: None, is_learned: false, programmed: true };
        Entry::new(question, answer.kept(), Timestamp::from_secs(1), ttl_secs, mark)
    }

    #[test]
    fn a_stale_answer_is_short_lived_and_says_what_it_is() {
        let question = Question::new(Name::parse("a.example").unwrap(), 1);
        let own = [Ede::new(10, "no signature"), Ede::new(22, ""), Ede::new(23, "")];
        for (ttl_secs, told) in [(86_400, 30), (30, 30), (7, 7)] {
            let (answer, facts) = stale(&question, &entry(&question, ttl_secs, &own)).unwrap();
            assert_eq!((answer.lifetime_secs(), facts.addresses[0].ttl_secs), (Some(told), told));
            assert_eq!(answer.edes(), [Ede::new(wire::ede::STALE_ANSWER, ""), own[0].clone(), own[1].clone()]);
            assert_eq!(answer.bytes()[3] & 0x20, 0, "AD is of then");
        }
    }
}
