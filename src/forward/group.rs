//! Which upstream of a group is asked, and when the next.
//!
//! A question is a *race* of tries. The first goes to the upstream that the strategy puts first; a further one starts
//! beside it when the last one failed or its patience ran out, at the least-tried upstream in the same order. Earlier
//! tries run on: the first answer wins, however slow, until the question's time is over. So a lost packet costs one
//! patience (at most 0.9 s), a dead upstream costs it once and then stands behind the others, and an answer that
//! comes late still counts.
//!
//! With [`Strategy::Fastest`] a question is *hedged*: once the first try has waited longer than 19 of 20 replies of its
//! upstream take, the next upstream is asked beside it, if that one is well. At most one question in ten is, over time,
//! so that a slow spell of one upstream does not double the load of the other.
//!
//! *Probes* start together with the first try and beside it, so they cost the client nothing: at upstreams that are
//! down, when their pause is over; and for [`Strategy::Fastest`] at those never measured, and at one of the others
//! with each 32nd question.
//!
//! A failure reply is kept while others are asked once each; if none of them does better it is the answer, rcode and
//! EDE as they came. When a race is won, what still runs is left running for a while in a bounded number of tasks:
//! whether a slow upstream is alive is seen only by waiting for it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use prometheus::IntCounter;
use smallvec::SmallVec;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

use super::upstream::{Begun, Outcome, Peer, Trouble};
use super::{Failure, Strategy};
use crate::clock::Clock;
use crate::wire::{Question, Walked, rcode};

/// With [`Strategy::Fastest`], one question in so many is put to another upstream too.
const EXPLORE_EVERY: usize = 32;

/// How long tries run on after their race is won.
const LINGER: Duration = Duration::from_secs(2);

/// How many won races may have tries running on, over all groups; beyond, they are cut short.
pub(super) const LINGERING_MAX: usize = 256;

/// The longest pause before a further try.
const PATIENCE_LATER_MAX: Duration = Duration::from_secs(2);

/// Upstreams that can stand in for each other.
pub(super) struct Group {
    /// In the order of the configuration; not empty.
    peers: Vec<Arc<Peer>>,
    strategy: Strategy,
    /// How many questions came, to know when to explore.
    count: AtomicUsize,
    shares: Shares,
    hedges: IntCounter,
    lingering: Arc<Semaphore>,
}

/// What a hedge costs in shares, of which each question brings one: one question in ten may be hedged.
const HEDGE_COST: u32 = 10;

/// How many shares are saved for a bad moment at most.
const HEDGE_SHARES_MAX: u32 = 200;

/// How many upstreams a group has at most, commonly: a plan for them takes no allocation.
const PEERS_USUAL: usize = 4;

/// Indices into [`Group::peers`].
type Peers = SmallVec<[usize; PEERS_USUAL]>;

/// Whom a question goes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Each upstream once.
    order: Peers,
    /// Asked at once beside the first of `order`.
    probes: Peers,
}

impl Plan {
    /// Returns each upstream once, the first to be asked first.
    pub(super) fn order(&self) -> &[usize] {
        &self.order
    }

    /// Returns the one who is asked at first, if it is only one.
    pub(super) fn only(&self) -> Option<usize> {
        if self.probes.is_empty() { self.order.first().copied() } else { None }
    }
}

impl Group {
    /// Makes a group of `peers`; `lingering` is shared by all groups, and `hedges` counts for all.
    pub(super) fn new(
        peers: Vec<Arc<Peer>>,
        strategy: Strategy,
        lingering: Arc<Semaphore>,
        hedges: IntCounter,
    ) -> Self {
        let shares = Shares(AtomicU32::new(HEDGE_COST));
        Self { peers, strategy, count: AtomicUsize::new(0), shares, hedges, lingering }
    }

    /// Returns the upstreams in the order of the configuration.
    pub(super) fn peers(&self) -> &[Arc<Peer>] {
        &self.peers
    }

    /// Asks until there is an answer, nobody is left to ask, or `deadline` has come.
    ///
    /// # Errors
    /// [`Failure`] if no upstream gave any reply that can be passed on.
    pub(super) async fn ask(&self, question: &Question, clock: &Clock, deadline: Instant) -> Result<Walked, Failure> {
        self.ask_as_planned(self.plan(clock), Arc::new(question.clone()), deadline).await
    }

    /// Asks as [`Group::ask`] does, after a plan that was made before.
    ///
    /// # Errors
    /// As [`Group::ask`].
    pub(super) async fn ask_as_planned(
        &self,
        plan: Plan,
        question: Arc<Question>,
        deadline: Instant,
    ) -> Result<Walked, Failure> {
        let mut race = Race::new(self, plan.order, question);
        for probe in plan.probes {
            race.start(probe);
        }
        // The first try does not wait for the probes.
        race.next_at = Instant::now();
        race.run(deadline).await
    }

    /// Goes on with a question whose first try was begun as planned; it has ended, or its time is over.
    ///
    /// # Errors
    /// As [`Group::ask`].
    pub(super) async fn go_on(
        &self,
        plan: Plan,
        question: Arc<Question>,
        begun: Begun,
        deadline: Instant,
    ) -> Result<Walked, Failure> {
        let mut race = Race::new(self, plan.order, question);
        race.take_over(begun);
        race.run(deadline).await
    }

    /// Decides on the order and the probes.
    pub(super) fn plan(&self, clock: &Clock) -> Plan {
        if self.peers.len() == 1 {
            return Plan { order: SmallVec::from_elem(0, 1), probes: SmallVec::new() };
        }
        self.shares.save();
        let now = clock.now();
        let turn = self.count.fetch_add(1, Ordering::Relaxed);
        let mut keys = SmallVec::<[_; PEERS_USUAL]>::with_capacity(self.peers.len());
        let mut probes = Peers::new();
        for (at, peer) in self.peers.iter().enumerate() {
            let mut health = peer.health();
            let score = if self.strategy == Strategy::Fastest { health.score() } else { Duration::ZERO };
            keys.push((health.is_down(), score, at));
            let is_new = self.strategy == Strategy::Fastest && !peer.was_asked();
            if health.take_probe(now) || is_new {
                probes.push(at);
            }
        }
        keys.sort_unstable();
        let order: Peers = keys.into_iter().map(|(_, _, at)| at).collect();
        if self.strategy == Strategy::Fastest && order.len() > 1 && turn % EXPLORE_EVERY == EXPLORE_EVERY - 1 {
            probes.push(order[1 + turn / EXPLORE_EVERY % (order.len() - 1)]);
            probes.dedup();
        }
        probes.retain(|probe| Some(&*probe) != order.first());
        Plan { order, probes }
    }
}

impl Group {
    /// Returns how long the first try of a plan waits before the question is hedged, if it is to be.
    pub(super) fn hedge_after(&self, plan: &[usize]) -> Option<Duration> {
        let [first, second, ..] = plan else { return None };
        let second_is_well = || !self.peers[*second].health().is_down();
        let hedge_after = if self.strategy == Strategy::Fastest { self.peers[*first].hedge_after() } else { None };
        hedge_after.filter(|_| second_is_well())
    }
}

/// What is saved for hedges: each question brings one share, a hedge costs [`HEDGE_COST`].
#[derive(Debug)]
struct Shares(AtomicU32);

impl Shares {
    /// Saves the share of one question.
    fn save(&self) {
        let more = |shares: u32| (shares < HEDGE_SHARES_MAX).then_some(shares + 1);
        // Full is as good as saved.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Pays for a hedge; `false` if there have been too many of late.
    fn pay(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |shares| shares.checked_sub(HEDGE_COST)).is_ok()
    }
}

/// One question's tries.
struct Race<'a> {
    group: &'a Group,
    order: Peers,
    question: Arc<Question>,
    running: FuturesUnordered<Running>,
    /// Of each upstream: how many tries were started.
    tries: Vec<u32>,
    /// Of each upstream: whether asking it again is of no use.
    spent: Vec<bool>,
    /// The number of the latest try.
    latest: usize,
    /// When the next try may start: when the patience of the latest ends, or before, for a hedge.
    next_at: Instant,
    /// When the patience of the latest try ends, if `next_at` is a hedge's.
    unhedged_at: Option<Instant>,
    /// When the patience of all tries ends.
    patience_end: Instant,
    /// The failure reply that is the answer if nothing better comes.
    best: Option<Box<Walked>>,
    trouble: Option<Trouble>,
}

type Running = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// A try that ended: its number, its upstream, and how.
struct Ended {
    number: usize,
    peer: usize,
    outcome: Outcome,
}

impl<'a> Race<'a> {
    fn new(group: &'a Group, order: Peers, question: Arc<Question>) -> Self {
        let now = Instant::now();
        Self {
            group,
            order,
            question,
            running: FuturesUnordered::new(),
            tries: vec![0; group.peers.len()],
            spent: vec![false; group.peers.len()],
            latest: 0,
            next_at: now,
            unhedged_at: None,
            patience_end: now,
            best: None,
            trouble: None,
        }
    }

    /// Takes over the first try, begun elsewhere at the first upstream in order.
    fn take_over(&mut self, begun: Begun) {
        let peer = self.order.first().copied().unwrap_or_default();
        let station = &self.group.peers[peer];
        let patience_end = begun.at + station.patience();
        self.tries[peer] += 1;
        self.latest += 1;
        self.patience_end = patience_end;
        self.pause(begun.at, patience_end);
        let left = patience_end.saturating_duration_since(Instant::now());
        let (number, trying) = (self.latest, station.clone().resume(self.question.clone(), begun, left));
        self.running.push(Box::pin(async move { Ended { number, peer, outcome: trying.await } }));
    }

    /// Runs to the end.
    async fn run(mut self, deadline: Instant) -> Result<Walked, Failure> {
        while Instant::now() < deadline {
            let next = self.next();
            if let Some(peer) = next
                && Instant::now() >= self.next_at
            {
                match self.unhedged_at.take() {
                    Some(later) if !self.group.shares.pay() => self.next_at = later,
                    hedged => {
                        if hedged.is_some() {
                            self.group.hedges.inc();
                        }
                        self.start(peer);
                    }
                }
                continue;
            }
            let wake = match next {
                Some(_) => self.next_at,
                // Everyone was asked: with a failure reply in hand the others get their patience, not all the time.
                None if self.running.is_empty() => break,
                None if self.best.is_some() => self.patience_end,
                None => deadline,
            };
            tokio::select! {
                biased;
                Some(ended) = self.running.next() => {
                    if let Some(walked) = self.settle(ended) {
                        self.linger();
                        return Ok(*walked);
                    }
                }
                () = sleep_until(wake.min(deadline)) => {
                    if next.is_none() {
                        break;
                    }
                }
            }
        }
        let result = self.conclude();
        self.linger();
        result
    }

    /// Returns whom the next try goes to: the least tried in order; with a failure reply in hand, only the untried.
    fn next(&self) -> Option<usize> {
        let may = |&peer: &usize| {
            let tries_max = if self.best.is_some() { 1 } else { self.group.peers[peer].tries_max() };
            !self.spent[peer] && self.tries[peer] < tries_max
        };
        self.order.iter().copied().filter(may).min_by_key(|&peer| self.tries[peer])
    }

    /// Starts a try; each further one at the same upstream has twice the patience.
    fn start(&mut self, peer: usize) {
        let station = &self.group.peers[peer];
        let patience = (station.patience() * (1 << self.tries[peer].min(4))).min(PATIENCE_LATER_MAX);
        self.tries[peer] += 1;
        self.latest += 1;
        let now = Instant::now();
        self.patience_end = self.patience_end.max(now + patience);
        self.pause(now, now + patience);
        let (number, trying) = (self.latest, station.clone().attempt(self.question.clone(), patience));
        self.running.push(Box::pin(async move { Ended { number, peer, outcome: trying.await } }));
    }

    /// Sets when the next try may start after one that began at `begun` and has patience until `patience_end`.
    fn pause(&mut self, begun: Instant, patience_end: Instant) {
        let is_first = self.tries.iter().sum::<u32>() == 1;
        let hedge_after = if is_first { self.group.hedge_after(&self.order) } else { None };
        let hedge_at = hedge_after.map(|after| begun + after).filter(|&at| at < patience_end);
        self.unhedged_at = hedge_at.map(|_| patience_end);
        self.next_at = hedge_at.unwrap_or(patience_end);
    }

    /// Takes in how a try ended; returns the answer if it is one.
    fn settle(&mut self, ended: Ended) -> Option<Box<Walked>> {
        match ended.outcome {
            Outcome::Final(walked) => return Some(walked),
            Outcome::Refused(walked) => {
                self.spent[ended.peer] = true;
                if self.best.as_ref().is_none_or(|best| worth(&walked) > worth(best)) {
                    self.best = Some(walked);
                }
            }
            Outcome::Unusable(trouble) => {
                self.spent[ended.peer] |= trouble == Trouble::Network;
                self.trouble = Some(trouble);
            }
        }
        if ended.number == self.latest {
            self.next_at = Instant::now();
            self.unhedged_at = None;
        }
        None
    }

    /// Returns what is left when there was no answer.
    fn conclude(&mut self) -> Result<Walked, Failure> {
        match (self.best.take(), self.trouble) {
            (Some(best), _) => Ok(*best),
            (None, _) if !self.running.is_empty() => Err(Failure::TimedOut),
            (None, Some(Trouble::Malformed)) => Err(Failure::Malformed),
            (None, _) => Err(Failure::Network),
        }
    }

    /// Lets what still runs run on for a while.
    fn linger(self) {
        if self.running.is_empty() {
            return;
        }
        let Ok(permit) = self.group.lingering.clone().try_acquire_owned() else {
            return;
        };
        let rest = self.running.for_each(|_| std::future::ready(()));
        tokio::spawn(async move {
            let _permit = permit;
            let _ = timeout(LINGER, rest).await;
        });
    }
}

/// Returns how much a failure reply tells: a SERVFAIL with its reason most, a REFUSED least.
fn worth(walked: &Walked) -> u32 {
    match (walked.answer.rcode(), walked.answer.edes().is_empty()) {
        (rcode::SERVFAIL, false) => 3,
        (rcode::SERVFAIL, true) => 2,
        (_, false) => 1,
        (_, true) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_question_in_ten_may_be_hedged_over_time() {
        let shares = Shares(AtomicU32::new(HEDGE_COST));
        let mut hedges = 0;
        for _ in 0..1000 {
            shares.save();
            hedges += u32::from(shares.pay());
        }
        assert_eq!(hedges, 101);
        (0..10_000).for_each(|_| shares.save());
        assert_eq!((0..1000).filter(|_| shares.pay()).count(), 20, "a bad moment has what was saved, within a bound");
    }
}
