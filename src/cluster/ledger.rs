//! What the engine is known to hold, and what is to be told to it.
//!
//! For each sighting there are two numbers, and both only grow: the latest end that anybody has set, and the latest end
//! of one that left early. It is held while the first is larger than the second. So it does not matter in which order,
//! or how often, words arrive; everybody who has heard all of them agrees.
//!
//! ```text
//!   own end ─▶ judge ─▶ later than known: tell ─▶ queue ─▶ engine
//!                    └▶ others hold it longer, or it left with a later end: our own end must move up
//! ```
//! An address that was evicted and is seen again is new: its end is moved past the one that it left with.
//!
//! The ledger keeps a hash for each sighting, not the sighting. It is bounded; a sighting without a place in it is told
//! more often than needed. The queue is bounded, too: when ends find no room, all of the set is compared anew; a removal
//! that finds none is dropped, and the address stays elsewhere until its end.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;

use foldhash::fast::RandomState;

use super::message::{END_MAX, Member, member, read_member};
use crate::clock::Timestamp;
use crate::name::Name;

/// The most changes that wait to be sent: some 8 MB.
pub(super) const QUEUE_LEN_MAX: usize = 65_536;

/// The most sightings remembered: 32 MB, some eight times what a set of the usual bounds can hold.
const KNOWN_LEN_MAX: usize = 1 << 20;

/// The two numbers of a sighting, in milliseconds; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    /// The latest end.
    pub(super) held: u64,
    /// The latest end of one that left before it.
    pub(super) gone: u64,
}

/// What is to be done about an end of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    /// The others must be told this end.
    pub(super) tell: Option<u64>,
    /// Our own end must move to this.
    pub(super) lift: Option<u64>,
}

/// The ledger.
#[derive(Debug)]
pub(super) struct Ledger {
    known: HashMap<u64, Ends, RandomState>,
    hasher: foldhash::quality::RandomState,
    queue: HashMap<Member, Ends, RandomState>,
    /// Removals that were taken, and may not have arrived.
    sending: Vec<(Member, Ends)>,
    /// Somebody sends what is queued.
    is_linked: bool,
    must_tell_all: bool,
    dropped_count: u64,
    known_len_max: usize,
    queue_len_max: usize,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            known: HashMap::default(),
            hasher: foldhash::quality::RandomState::default(),
            queue: HashMap::default(),
            sending: Vec::new(),
            is_linked: false,
            must_tell_all: false,
            dropped_count: 0,
            known_len_max: KNOWN_LEN_MAX,
            queue_len_max: QUEUE_LEN_MAX,
        }
    }
}

impl Ledger {
    /// Begins to queue what changes, and forgets what the engine was known to hold: it is about to be read. Removals that
    /// it has yet to hear of are remembered, or what left would come back.
    pub(super) fn link(&mut self) {
        self.is_linked = true;
        self.known.clear();
        let removals = self.queue.iter().map(|(member, ends)| (member, ends.gone));
        let removals = removals.chain(self.sending.iter().map(|(member, ends)| (member, ends.gone)));
        for (member, end) in removals.filter(|(_, end)| *end > 0) {
            if let Some(key) = read_member(member).map(|pair| self.hasher.hash_one((pair.0, &pair.1))) {
                let known = self.known.entry(key).or_default();
                known.gone = known.gone.max(end);
            }
        }
    }

    /// Stops queueing ends: all of the set is compared once the engine is back. Removals still wait.
    pub(super) fn unlink(&mut self) {
        self.is_linked = false;
        self.must_tell_all = false;
        self.queue.retain(|_, ends| {
            ends.held = 0;
            ends.gone > 0
        });
        for (member, ends) in std::mem::take(&mut self.sending) {
            let waiting = self.queue.entry(member).or_default();
            waiting.gone = waiting.gone.max(ends.gone);
        }
    }

    /// Notes an end of our own and queues what the others must be told. Returns where our own end must move.
    pub(super) fn held(&mut self, addr: IpAddr, name: &Name, end: Timestamp) -> Option<u64> {
        let Judgement { tell, lift } = self.judge(addr, name, end);
        if let Some(tell) = tell.filter(|_| self.is_linked) {
            match self.queued(addr, name) {
                Some(ends) => ends.held = ends.held.max(tell),
                None => self.must_tell_all = true,
            }
        }
        lift
    }

    /// Notes an end of our own; telling it is left to the caller.
    pub(super) fn judge(&mut self, addr: IpAddr, name: &Name, end: Timestamp) -> Judgement {
        let Some(known) = self.known(addr, name) else {
            return Judgement { tell: Some(end.as_millis().min(END_MAX)), lift: None };
        };
        let (end, before) = (end.as_millis().min(END_MAX), *known);
        if before.held > end && before.held > before.gone {
            return Judgement { tell: None, lift: Some(before.held) };
        }
        let held = end.max((before.gone + 1).min(END_MAX));
        known.held = held.max(before.held);
        Judgement { tell: (held > before.held).then_some(held), lift: (held > end).then_some(held) }
    }

    /// Notes that a sighting of ours left before `end`, and queues it.
    pub(super) fn gone(&mut self, addr: IpAddr, name: &Name, end: Timestamp) {
        let mut end = end.as_millis().min(END_MAX);
        if let Some(known) = self.known(addr, name) {
            end = end.max(known.held);
            known.gone = known.gone.max(end);
        }
        match self.queued(addr, name) {
            Some(ends) => ends.gone = ends.gone.max(end),
            None => self.dropped_count += 1,
        }
    }

    /// Notes an end that another has set. Returns whether it is news.
    pub(super) fn heard_held(&mut self, addr: IpAddr, name: &Name, end: u64) -> bool {
        let Some(known) = self.known(addr, name) else { return true };
        let is_news = end > known.held && end > known.gone;
        known.held = known.held.max(end);
        is_news
    }

    /// Notes that a sighting left elsewhere before `end`. Returns whether it has no later end.
    pub(super) fn heard_gone(&mut self, addr: IpAddr, name: &Name, end: u64) -> bool {
        let Some(known) = self.known(addr, name) else { return true };
        known.gone = known.gone.max(end);
        known.held <= known.gone
    }

    /// Takes some of what waits to be sent; to be [confirmed](Self::sent), or removals wait again after
    /// [`Self::unlink`].
    pub(super) fn take(&mut self, len_max: usize) -> Vec<(Member, Ends)> {
        let taken: Vec<(Member, Ends)> = if self.queue.len() <= len_max {
            std::mem::take(&mut self.queue).into_iter().collect()
        } else {
            let members: Vec<Member> = self.queue.keys().take(len_max).cloned().collect();
            members.into_iter().filter_map(|member| self.queue.remove_entry(&member)).collect()
        };
        self.sending.extend(taken.iter().filter(|(_, ends)| ends.gone > 0).cloned());
        taken
    }

    /// Notes that what was taken has arrived.
    pub(super) fn sent(&mut self) {
        self.sending.clear();
    }

    /// Returns whether all of the set must be compared, once.
    pub(super) fn take_must_tell_all(&mut self) -> bool {
        std::mem::take(&mut self.must_tell_all)
    }

    /// Says that events were missed: all of the set must be compared.
    pub(super) fn tell_all(&mut self) {
        self.must_tell_all = self.is_linked;
    }

    /// Returns how many changes wait.
    pub(super) fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// Takes how many removals were dropped since the last time.
    pub(super) fn take_dropped_count(&mut self) -> u64 {
        std::mem::take(&mut self.dropped_count)
    }

    /// Forgets what has ended.
    pub(super) fn prune(&mut self, now: Timestamp) {
        let now = now.as_millis();
        self.known.retain(|_, ends| ends.held.max(ends.gone) > now);
        self.queue.retain(|_, ends| ends.held.max(ends.gone) > now);
    }

    fn known(&mut self, addr: IpAddr, name: &Name) -> Option<&mut Ends> {
        let key = self.hasher.hash_one((addr, name));
        if self.known.len() >= self.known_len_max && !self.known.contains_key(&key) {
            return None;
        }
        Some(self.known.entry(key).or_default())
    }

    fn queued(&mut self, addr: IpAddr, name: &Name) -> Option<&mut Ends> {
        let member = member(addr, name);
        if self.queue.len() >= self.queue_len_max && !self.queue.contains_key(&member) {
            return None;
        }
        Some(self.queue.entry(member).or_default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addr() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    fn name() -> Name {
        "a.example".parse().unwrap()
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn linked() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.link();
        ledger
    }

    fn taken(ledger: &mut Ledger) -> Vec<Ends> {
        ledger.take(10).into_iter().map(|(_, ends)| ends).collect()
    }

    #[test]
    fn what_is_known_is_not_told_again() {
        let mut ledger = linked();
        assert_eq!(ledger.held(addr(), &name(), at(100)), None);
        assert_eq!(taken(&mut ledger), [Ends { held: 100, gone: 0 }]);
        assert_eq!(ledger.held(addr(), &name(), at(100)), None);
        assert!(ledger.heard_held(addr(), &name(), 130));
        assert!(!ledger.heard_held(addr(), &name(), 130), "heard twice");
        assert_eq!(ledger.held(addr(), &name(), at(130)), None, "what was heard comes back from the set");
        assert_eq!(taken(&mut ledger), []);
        assert_eq!(ledger.held(addr(), &name(), at(110)), Some(130), "others hold it longer");
    }

    #[test]
    fn evicted_address_that_is_seen_again_outlives_its_removal() {
        let mut ledger = linked();
        ledger.held(addr(), &name(), at(100));
        ledger.gone(addr(), &name(), at(100));
        assert_eq!(taken(&mut ledger), [Ends { held: 100, gone: 100 }]);
        assert!(!ledger.heard_held(addr(), &name(), 90), "a late word on what left");
        assert_eq!(ledger.held(addr(), &name(), at(100)), Some(101));
        assert_eq!(taken(&mut ledger), [Ends { held: 101, gone: 0 }]);
        assert!(!ledger.heard_gone(addr(), &name(), 100), "it has a later end");
    }

    #[test]
    fn full_queue_drops_removals_and_compares_ends_anew() {
        let mut ledger = Ledger { queue_len_max: 1, ..linked() };
        let other: Name = "b.example".parse().unwrap();
        ledger.held(addr(), &name(), at(100));
        ledger.held(addr(), &other, at(100));
        assert!(ledger.take_must_tell_all() && !ledger.take_must_tell_all());
        ledger.gone(addr(), &other, at(100));
        assert_eq!((ledger.queue_len(), ledger.take_dropped_count()), (1, 1));
    }

    #[test]
    fn while_the_engine_is_away_only_removals_wait() {
        let mut ledger = linked();
        let other: Name = "b.example".parse().unwrap();
        ledger.held(addr(), &name(), at(100));
        ledger.gone(addr(), &other, at(100));
        assert_eq!(taken(&mut ledger).len(), 2, "taken, and lost with the link");
        ledger.unlink();
        ledger.held(addr(), &name(), at(200));
        ledger.link();
        assert!(!ledger.heard_held(addr(), &other, 100), "the engine has yet to hear that it left");
        assert_eq!(taken(&mut ledger), [Ends { held: 0, gone: 100 }]);
        ledger.sent();
        ledger.unlink();
        assert_eq!(ledger.queue_len(), 0);
        ledger.prune(at(300));
        assert!(ledger.known.is_empty());
    }

    #[test]
    fn sighting_without_a_place_is_told_each_time() {
        let mut ledger = Ledger { known_len_max: 0, ..linked() };
        for _ in 0..2 {
            ledger.held(addr(), &name(), at(100));
            assert_eq!(taken(&mut ledger), [Ends { held: 100, gone: 0 }]);
        }
        assert!(ledger.heard_held(addr(), &name(), 100) && ledger.heard_gone(addr(), &name(), 100));
    }

    proptest! {
        /// Words in any order, some twice, come to the same.
        #[test]
        fn order_does_not_matter(words in proptest::collection::vec((any::<bool>(), 1u64..50), 0..20), seed: u64) {
            let state = |words: &[(bool, u64)]| {
                let mut ledger = linked();
                for &(is_held, end) in words {
                    if is_held { ledger.heard_held(addr(), &name(), end); } else { ledger.heard_gone(addr(), &name(), end); }
                }
                *ledger.known(addr(), &name()).unwrap()
            };
            let mut other = words.clone();
            other.extend(words.iter().take(5).copied());
            let len = other.len().max(1);
            other.rotate_left(usize::try_from(seed % 1000).unwrap() % len);
            other.reverse();
            prop_assert_eq!(state(&words), state(&other));
        }

        /// Whatever was heard before, an end of our own ends up held, and no earlier.
        #[test]
        fn own_end_wins(before in proptest::collection::vec((any::<bool>(), 1u64..50), 0..20), end in 1u64..50) {
            let mut ledger = linked();
            for (is_held, end) in before {
                if is_held { ledger.heard_held(addr(), &name(), end); } else { ledger.heard_gone(addr(), &name(), end); }
            }
            let lift = ledger.held(addr(), &name(), at(end));
            let known = *ledger.known(addr(), &name()).unwrap();
            prop_assert!(known.held > known.gone && known.held >= end);
            prop_assert_eq!(lift.unwrap_or(end), known.held, "ours is the shared end");
        }
    }
}
