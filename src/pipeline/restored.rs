//! Answers of an earlier run.
//!
//! They go into the cache as they are, unless a newer one is there, and whoever asks for one first has it matched and
//! learned before it is given: such an entry is of no generation. What HTTPS and SVCB answers of listed names point to is
//! followed at once, since clients who remember these answers ask for it without asking for them again.

use std::sync::Arc;

use super::{Pipeline, Shared};
use crate::cache::{Entry, KeyBuf};
use crate::forward::Forward;
use crate::wire::{Question, rtype};

impl Pipeline {
    /// Keeps an answer that was cached by an earlier run and asked of `upstreams`. Returns whether it is to be learned at
    /// once, with [`Pipeline::learn_restored`].
    pub fn restore(&self, question: &Question, entry: &Entry, upstreams: &Arc<Forward>) -> bool {
        let mut key = KeyBuf::new();
        if self.0.cache.find(key.fill_of(question)).is_none() {
            self.keep(question, entry, upstreams, self.0.clock.now());
        }
        let points_elsewhere = matches!(question.qtype, rtype::HTTPS | rtype::SVCB);
        points_elsewhere && self.0.current.load().catalogue.find(&question.name).is_some()
    }

    /// Learns a restored answer before anybody asks for it.
    pub async fn learn_restored(&self, question: &Question, upstreams: &Arc<Forward>) {
        let Shared { cache, clock, current, .. } = &*self.0;
        let found = cache.find(KeyBuf::new().fill_of(question));
        let is_of_now = |entry: &Entry| entry.is_of(current.load().generation);
        let Some(entry) = found.filter(|entry| entry.is_fresh(clock.now()) && !is_of_now(entry)) else { return };
        let again = self.learn_again(question, &entry, None).await;
        self.keep(question, &again, upstreams, clock.now());
    }
}
