//! Those who hold the set elsewhere, and which of them answers wait for.
//!
//! Every sink gets every change, side by side. The writer waits for those that say that they are up, at most the
//! hold; the answers of the others are taken in the background. A sink that lets the hold run out, or needs more than
//! half of it [`SLOW_LEN`] times in a row, is *slow*: it is probed, and waited for again once it has caught up and
//! answered [`QUICK_LEN`] times in time. One that has dropped orders gets the whole set when it asks for more. One
//! that is gone is not told any more.
//!
//! Followers elsewhere that acknowledge join and leave as they like ([`Joins`]), and are waited for by the same rules if
//! the operator wants that. They follow the set by their own stream, so an order for one is nothing but a question when
//! it holds the change: it is asked only while it is waited for, or to probe it. So at most two orders lie with each.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge};
use tokio::sync::Notify;

use super::metrics::Metrics;
use crate::clock::{Clock, Timestamp};
use crate::set::outlet::{Applied, Change, NotSent, Outlet, Reply, State};
use crate::set::{Draft, Joined, Joins};

/// So many commits in a row that each take more than half the hold make a sink slow.
const SLOW_LEN: u32 = 20;

/// So many answers in a row within half the hold let a slow sink be waited for again.
const QUICK_LEN: u32 = 3;

/// When nothing is to be probed: later than any clock shows.
const NEVER: Timestamp = Timestamp::from_millis(u64::MAX);

/// How often a slow sink that has caught up is probed.
const PROBE_EVERY: Duration = Duration::from_millis(250);

/// All sinks.
#[derive(Debug)]
pub(super) struct Sinks {
    sinks: Vec<Sink>,
    joins: Joins,
    waits_for_followers: bool,
    metrics: Metrics,
    news: Arc<Notify>,
    clock: Clock,
}

#[derive(Debug)]
struct Sink {
    outlet: Outlet,
    /// What it is called in the log.
    who: String,
    /// Whether it follows elsewhere, and comes and goes.
    is_follower: bool,
    /// The order that an answer waits for.
    awaited: Option<Sent>,
    /// Orders that nobody waits for.
    behind: VecDeque<Sent>,
    judge: Judge,
    is_gone: bool,
    probed: Timestamp,
    meter: Meter,
}

#[derive(Debug)]
struct Sent {
    reply: Reply,
    at: Timestamp,
    /// It takes as long as it takes, which says nothing about how long others would.
    is_bulk: bool,
}

#[derive(Debug)]
struct Meter {
    /// Not of those that nobody ever waits for; followers are counted together instead.
    waited: Option<IntGauge>,
    late: IntCounter,
    failed: IntCounter,
    /// How long followers take.
    took: Option<Histogram>,
}

impl Meter {
    fn waited(&self, is_waited_for: bool) {
        if let Some(waited) = &self.waited {
            waited.set(is_waited_for.into());
        }
    }
}

/// Whether a sink keeps within the hold.
#[derive(Debug, Default)]
struct Judge {
    is_slow: bool,
    /// How many answers in a row took more than half the hold; while slow, how many did not.
    in_a_row: u32,
}

impl Judge {
    /// Takes in an answer and how long it took. Returns whether that makes the sink slow.
    fn took(&mut self, applied: Applied, span: Duration, hold: Duration) -> bool {
        // Without a hold nobody is waited for, and nobody is slow.
        let is_quick = hold.is_zero() || span <= hold / 2;
        // A failure comes quickly when orders are dropped unseen, so it speaks for nobody.
        let counts = if self.is_slow { is_quick && applied == Applied::Held } else { !is_quick };
        self.in_a_row = if counts { self.in_a_row + 1 } else { 0 };
        if !self.is_slow && self.in_a_row >= SLOW_LEN {
            self.timed_out();
            return true;
        }
        false
    }

    /// Makes it slow, as an answer does that did not come within the hold.
    fn timed_out(&mut self) {
        *self = Self { is_slow: true, in_a_row: 0 };
    }

    /// Makes a slow one quick if it has answered in time often enough. Returns whether that happened.
    fn recovers(&mut self) -> bool {
        let does = self.is_slow && self.in_a_row >= QUICK_LEN;
        if does {
            *self = Self::default();
        }
        does
    }
}

impl Sinks {
    pub(super) fn new(outlets: Vec<Outlet>, joins: Joins, metrics: &Metrics, clock: Clock) -> Self {
        let news = Arc::new(Notify::new());
        joins.report_to(&news);
        let sinks = outlets.into_iter().map(|outlet| {
            outlet.report_to(&news);
            Sink::local(outlet, metrics)
        });
        let sinks = sinks.collect();
        Self { sinks, joins, waits_for_followers: false, metrics: metrics.clone(), news, clock }
    }

    /// Says whether answers wait for followers.
    pub(super) fn wait_for_followers(&mut self, does: bool) {
        self.waits_for_followers = does;
    }

    /// Returns whether nobody holds the set elsewhere.
    pub(super) fn is_empty(&mut self) -> bool {
        self.let_in_and_out();
        self.sinks.is_empty()
    }

    /// Tells every sink of a change and waits for those that are up, at most `hold`. Returns whether all of them hold
    /// it. Not to be cancelled.
    pub(super) async fn tell(&mut self, change: &Arc<Change>, draft: &Draft, hold: Duration) -> bool {
        // Under load this is the only place where the others are looked at.
        poll_fn(|cx| {
            let _ = self.poll_behind(cx, hold);
            Poll::Ready(())
        })
        .await;
        let is_left = self.send(change, draft, hold);
        let mut all_hold = !is_left;
        let (news, patience) = (Arc::clone(&self.news), tokio::time::sleep(hold));
        tokio::pin!(patience);
        loop {
            tokio::select! {
                biased;
                () = poll_fn(|cx| self.poll_awaited(cx, hold, &mut all_hold)) => return all_hold,
                () = news.notified() => all_hold &= !self.leave_those_down(),
                () = &mut patience => {
                    self.time_out();
                    return false;
                }
            }
        }
    }

    /// Waits until something is to be done for a sink nobody waits for, and does it. Safe to cancel.
    pub(super) async fn tend(&mut self, draft: &Draft, hold: Duration) {
        self.catch_up(draft);
        let (news, clock, next_probe) = (Arc::clone(&self.news), self.clock.clone(), self.next_probe());
        tokio::select! {
            () = poll_fn(|cx| self.poll_behind(cx, hold)) => {}
            () = news.notified() => {}
            () = clock.sleep_until(next_probe) => {}
        }
    }

    /// Returns whether it is left to a sink that others would wait for, since it is bulk.
    fn send(&mut self, change: &Arc<Change>, draft: &Draft, hold: Duration) -> bool {
        self.catch_up(draft);
        let now = self.clock.now();
        let asks_followers = self.waits_for_followers && !hold.is_zero() && !change.last;
        let has_time = change.is_bulk() && !change.whole && !change.last;
        let mut is_left = false;
        for sink in &mut self.sinks {
            let is_waited_for = sink.is_waited_for();
            if sink.is_follower && !(asks_followers && is_waited_for) {
                continue;
            }
            let Some(sent) = sink.send(change, now) else { continue };
            let waits = is_waited_for && !hold.is_zero();
            is_left |= waits && has_time;
            if waits && !has_time {
                sink.awaited = Some(sent);
            } else {
                sink.behind.push_back(sent);
            }
        }
        is_left
    }

    /// Sends the whole set to those who ask for it, and a probe to those that are slow and have caught up.
    fn catch_up(&mut self, draft: &Draft) {
        self.let_in_and_out();
        let now = self.clock.now();
        let mut whole = None;
        for sink in &mut self.sinks {
            let sent = if sink.outlet.wants_whole() {
                sink.send(whole.get_or_insert_with(|| Arc::new(draft.whole(now))), now)
            } else if sink.next_probe(self.waits_for_followers).is_some_and(|next| next <= now) {
                sink.probed = now;
                sink.send(&Arc::new(Change::empty(draft.session(), draft.serial(), now)), now)
            } else {
                None
            };
            sink.behind.extend(sent);
        }
    }

    fn next_probe(&self) -> Timestamp {
        let probes = self.sinks.iter().filter_map(|sink| sink.next_probe(self.waits_for_followers));
        probes.min().unwrap_or(NEVER)
    }

    /// Takes in followers that have joined, and forgets those that have left.
    fn let_in_and_out(&mut self) {
        for joined in self.joins.take() {
            joined.outlet.report_to(&self.news);
            self.sinks.push(Sink::follower(joined, &self.metrics));
        }
        self.sinks.retain(|sink| !sink.is_follower || !sink.outlet.is_gone());
        self.count_followers();
    }

    fn count_followers(&self) {
        let followers = self.sinks.iter().filter(|sink| sink.is_follower);
        let waited = followers.clone().filter(|sink| self.waits_for_followers && sink.is_waited_for());
        self.metrics.followers(followers.count(), waited.count());
    }

    /// Takes the answers that are waited for; ready once all have come.
    fn poll_awaited(&mut self, cx: &mut Context<'_>, hold: Duration, all_hold: &mut bool) -> Poll<()> {
        let now = self.clock.now();
        let mut is_ready = true;
        for sink in &mut self.sinks {
            let Some(mut sent) = sink.awaited.take() else { continue };
            match sent.reply.poll(cx) {
                Poll::Ready(applied) => {
                    sink.answered(applied, &sent, now.since(sent.at), hold);
                    *all_hold &= applied == Applied::Held;
                }
                Poll::Pending => {
                    sink.awaited = Some(sent);
                    is_ready = false;
                }
            }
        }
        if is_ready { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Takes the answers that nobody waits for; ready once one has come.
    fn poll_behind(&mut self, cx: &mut Context<'_>, hold: Duration) -> Poll<()> {
        let now = self.clock.now();
        let mut has_any = false;
        for sink in &mut self.sinks {
            for mut sent in std::mem::take(&mut sink.behind) {
                match sent.reply.poll(cx) {
                    Poll::Ready(applied) => {
                        sink.answered(applied, &sent, now.since(sent.at), hold);
                        has_any = true;
                    }
                    Poll::Pending => sink.behind.push_back(sent),
                }
            }
            if has_any && sink.behind.is_empty() {
                sink.judge_anew();
            }
        }
        if has_any { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Stops waiting for those that say that they are not up. Returns whether there was one.
    fn leave_those_down(&mut self) -> bool {
        let mut has_any = false;
        for sink in self.sinks.iter_mut().filter(|sink| sink.outlet.state() != State::Up) {
            // Its answer may still come, and is as good as any other then.
            has_any |= sink.awaited.is_some();
            sink.behind.extend(sink.awaited.take());
        }
        has_any
    }

    fn time_out(&mut self) {
        for sink in &mut self.sinks {
            if let Some(sent) = sink.awaited.take() {
                sink.behind.push_back(sent);
                sink.judge.timed_out();
                sink.meter.late.inc();
                sink.meter.waited(false);
                tracing::warn!(
                    "{} did not hold a change in time: answers do not wait for it until it keeps up",
                    sink.who
                );
            }
        }
        self.count_followers();
    }
}

impl Sink {
    fn local(outlet: Outlet, metrics: &Metrics) -> Self {
        let who = outlet.name().to_owned();
        let waited = outlet.is_awaited().then(|| metrics.sink_waited.with_label_values(&[outlet.name()]));
        waited.iter().for_each(|waited| waited.set(1));
        Self::new(outlet, who, metrics, waited)
    }

    fn follower(joined: Joined, metrics: &Metrics) -> Self {
        let Joined { outlet, who } = joined;
        let mut follower = Self::new(outlet, who, metrics, None);
        follower.is_follower = true;
        follower.meter.took = Some(metrics.ack.clone());
        follower
    }

    fn new(outlet: Outlet, who: String, metrics: &Metrics, waited: Option<IntGauge>) -> Self {
        let meter = Meter {
            late: metrics.sink_late.with_label_values(&[outlet.name()]),
            failed: metrics.sink_failed.with_label_values(&[outlet.name()]),
            took: None,
            waited,
        };
        Self {
            outlet,
            who,
            is_follower: false,
            awaited: None,
            behind: VecDeque::new(),
            judge: Judge::default(),
            is_gone: false,
            probed: Timestamp::default(),
            meter,
        }
    }

    /// Sends it a change; `None` if it does not take any now.
    fn send(&mut self, change: &Arc<Change>, now: Timestamp) -> Option<Sent> {
        if self.is_gone {
            return None;
        }
        match self.outlet.send(change) {
            Ok(reply) => Some(Sent { reply, at: now, is_bulk: change.is_bulk() }),
            // It lags too far behind. What it missed it gets with the whole set, once it asks for more.
            Err(NotSent::Full) => {
                self.judge.timed_out();
                None
            }
            Err(NotSent::Gone) => {
                // A follower comes and goes.
                if !self.is_follower {
                    tracing::error!("{} is gone: the set is held there no longer", self.who);
                }
                self.is_gone = true;
                self.meter.waited(false);
                None
            }
        }
    }

    fn is_waited_for(&self) -> bool {
        let is_up = !self.is_gone && !self.judge.is_slow && self.outlet.state() == State::Up;
        let waits = is_up && self.outlet.is_awaited();
        self.meter.waited(waits);
        waits
    }

    fn answered(&mut self, applied: Applied, sent: &Sent, span: Duration, hold: Duration) {
        match &self.meter.took {
            _ if applied == Applied::Failed => self.meter.failed.inc(),
            Some(took) => took.observe(span.as_secs_f64()),
            None => {}
        }
        if !sent.is_bulk && self.judge.took(applied, span, hold) {
            self.meter.waited(false);
            tracing::warn!("{} takes too long to hold changes: answers do not wait for it", self.who);
        }
    }

    /// Lets answers wait for a slow sink again, if it has shown that it is quick.
    fn judge_anew(&mut self) {
        if self.judge.recovers() && self.outlet.is_awaited() {
            tracing::info!("{} keeps up again: answers wait for it", self.who);
        }
    }

    /// Returns when it is to be probed, if it is slow and no order is left with it.
    fn next_probe(&self, waits_for_followers: bool) -> Option<Timestamp> {
        let is_wanted = !self.is_gone && (waits_for_followers || !self.is_follower);
        let is_idle = is_wanted && self.judge.is_slow && self.behind.is_empty();
        is_idle.then(|| self.probed.after(PROBE_EVERY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;
    use crate::set::Session;
    use crate::set::outlet::{BULK_LEN, outlet};

    const HOLD: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn bulk_is_neither_waited_for_nor_makes_a_sink_slow() {
        let now = Timestamp::from_secs(1_800_000_000);
        let (clock, registry) = (Clock::manual(now), Registry::new());
        let (outlet, mut intake) = outlet("nftables");
        let mut sinks = Sinks::new(vec![outlet], Joins::default(), &Metrics::new(&registry), clock.clone());
        let draft = Draft::new(Session(7), now, &registry);
        let host = |n: usize| (std::net::IpAddr::from(u32::try_from(n).unwrap().to_be_bytes()), None);
        let change = |count: usize| {
            let hosts = (0..count).map(host).collect();
            Arc::new(Change { hosts, ..Change::empty(Session(7), 1, now) })
        };
        assert!(!sinks.tell(&change(BULK_LEN + 1), &draft, HOLD).await, "it is not held yet, and nobody waits");
        let bulk = intake.next().await.unwrap();
        // What is fresh is waited for meanwhile.
        let fresh = change(1);
        let (is_held, ()) = tokio::join!(sinks.tell(&fresh, &draft, HOLD), async {
            intake.next().await.unwrap().done(Applied::Held);
        });
        assert!(is_held);
        clock.advance(HOLD * 20);
        bulk.done(Applied::Held);
        sinks.tend(&draft, HOLD).await;
        assert!(sinks.sinks[0].is_waited_for() && sinks.sinks[0].behind.is_empty());
    }

    #[test]
    fn twenty_slow_answers_in_a_row_make_a_sink_slow_and_three_quick_ones_quick() {
        let (slow, quick) = (Duration::from_millis(51), Duration::from_millis(50));
        let mut judge = Judge::default();
        for _ in 0..19 {
            assert!(!judge.took(Applied::Held, slow, HOLD));
        }
        assert!(!judge.took(Applied::Held, quick, HOLD), "one in between counts");
        for _ in 0..19 {
            assert!(!judge.took(Applied::Held, slow, HOLD));
        }
        assert!(judge.took(Applied::Held, slow, HOLD));
        assert!(judge.is_slow);
        for span in [quick, quick, slow, quick, quick] {
            judge.took(Applied::Held, span, HOLD);
            assert!(!judge.recovers());
        }
        judge.took(Applied::Held, quick, HOLD);
        assert!(judge.recovers());
        assert!(!judge.is_slow);
    }
}
