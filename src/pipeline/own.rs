//! Questions of our own: asked for the set, not for a client.
//!
//! They take the way of any other, aboard the same flights, so that a client who asks the same meanwhile shares the
//! exchange and the hold. What the cache answers freshly is learned anew without asking anybody, by the same call that a
//! reload makes for. Nothing of it is counted among the questions of clients.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::flight::{Boarding, Passenger};
use super::{Flight, Pipeline, Shared};
use crate::cache::{Entry, KeyBuf};
use crate::clock::Timestamp;
use crate::wire::{self, Question, Rules};

/// What a question of our own came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The answer's addresses are in the set.
    Held {
        /// Until when the cache gives the answer.
        fresh_until: Timestamp,
        /// When the first of its addresses leaves.
        end: Timestamp,
    },
    /// The answer holds no address that the set could hold.
    Nothing {
        /// Until when the cache gives the answer.
        fresh_until: Timestamp,
    },
    /// Addresses came, but the set or its sinks did not take them in time, or had no room.
    Late,
    /// No answer came, or a failure.
    Failed,
}

impl Pipeline {
    /// Asks a question for the set alone. What the cache holds for longer than `ahead` is learned anew; anything else is
    /// asked of an upstream, even if the cache would still answer. Must run inside a tokio runtime.
    pub async fn ask_ahead(&self, question: Question, ahead: Duration) -> Heard {
        let (question, pipeline) = (Arc::new(question), self.clone());
        let ((sender, seat), now) = (oneshot::channel(), self.0.clock.now());
        match self.0.flights.board(&question, Passenger::Task(sender), now, move |left| pipeline.apologize(left)) {
            Boarding::Follow => {}
            // No room, or an upstream that keeps silent.
            Boarding::Full(_) | Boarding::Relieved(..) => return Heard::Failed,
            Boarding::Lead(leader) => {
                let upstreams = Arc::clone(self.0.current.load().forward());
                let (question, runtime) = (Arc::clone(&question), Handle::current());
                let (client, aged, seat) = (None, None, None);
                let flight = Flight { question, client, upstreams, runtime: runtime.clone(), leader, aged, seat };
                let (pipeline, until) = (self.clone(), now.after(ahead));
                let cached = self.0.cache.find(KeyBuf::new().fill_of(&flight.question));
                match cached.filter(|entry| entry.is_fresh(until)) {
                    None => pipeline.ask(flight),
                    // A task, so that those who come aboard are told even if we are no longer waited for.
                    Some(entry) => drop(runtime.spawn(async move {
                        let again = pipeline.learn_again(&flight.question, &entry, None).await;
                        pipeline.deliver(flight, &again, pipeline.0.clock.now());
                    })),
                }
            }
        }
        match seat.await {
            Ok(entry) => self.heard(&question, &entry),
            Err(_) => Heard::Failed,
        }
    }

    fn heard(&self, question: &Question, entry: &Entry) -> Heard {
        let Shared { learner, .. } = &*self.0;
        let fresh_until = entry.stored().after(Duration::from_secs(u64::from(entry.lifetime_secs())));
        if entry.answer().kind() == wire::Kind::Failure {
            // An upstream that does not know the type is well, and will not know it in a minute either.
            let is_known = !matches!(entry.answer().rcode(), wire::rcode::FORMERR | wire::rcode::NOTIMP);
            return if is_known { Heard::Failed } else { Heard::Nothing { fresh_until } };
        }
        if !entry.is_programmed() {
            return Heard::Late;
        }
        let rules = Rules { min_ttl: 0, max_ttl: u32::MAX, negative_max_ttl: u32::MAX, trust_ad: true };
        let walked = wire::walk(entry.answer().bytes(), question, &rules);
        let addresses = walked.map(|walked| walked.facts.addresses).unwrap_or_default();
        let snapshot = learner.reader().snapshot();
        let sightings = addresses.iter().filter_map(|seen| snapshot.host(seen.addr)?.sighting(&question.name));
        match sightings.map(|sighting| sighting.end()).min() {
            Some(end) => Heard::Held { fresh_until, end },
            None => Heard::Nothing { fresh_until },
        }
    }
}

#[cfg(test)]
mod tests;
