//! Those who hold the set elsewhere, and which of them answers wait for.
//!
//! Every sink gets every change, side by side. The writer waits for those that say that they are up, at most the
//! hold; the answers of the others are taken in the background. A sink that lets the hold run out, or needs more than
//! half of it [`SLOW_LEN`] times in a row, is *slow*: it is probed, and waited for again once it has caught up and
//! answered [`QUICK_LEN`] times in time. One that has dropped orders gets the whole set when it asks for more. One
//! that is gone is not told any more.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};
use tokio::sync::Notify;

use super::metrics::Metrics;
use crate::clock::{Clock, Timestamp};
use crate::set::Draft;
use crate::set::outlet::{Applied, Change, NotSent, Outlet, Reply, State};

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
    news: Arc<Notify>,
    clock: Clock,
}

#[derive(Debug)]
struct Sink {
    outlet: Outlet,
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
    waited: IntGauge,
    late: IntCounter,
    failed: IntCounter,
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
    pub(super) fn new(outlets: Vec<Outlet>, metrics: &Metrics, clock: Clock) -> Self {
        let news = Arc::new(Notify::new());
        let sinks = outlets.into_iter().map(|outlet| {
            outlet.report_to(&news);
            Sink::new(outlet, metrics)
        });
        Self { sinks: sinks.collect(), news, clock }
    }

    /// Returns whether nobody holds the set elsewhere.
    pub(super) fn is_empty(&self) -> bool {
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
        let has_time = change.is_bulk() && !change.whole && !change.last;
        let mut is_left = false;
        for sink in &mut self.sinks {
            let Some(sent) = sink.send(change, now) else { continue };
            let waits = sink.is_waited_for() && !hold.is_zero();
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
        let now = self.clock.now();
        let mut whole = None;
        for sink in &mut self.sinks {
            let sent = if sink.outlet.wants_whole() {
                sink.send(whole.get_or_insert_with(|| Arc::new(draft.whole(now))), now)
            } else if sink.next_probe().is_some_and(|next| next <= now) {
                sink.probed = now;
                sink.send(&Arc::new(Change::empty(draft.session(), draft.serial(), now)), now)
            } else {
                None
            };
            sink.behind.extend(sent);
        }
    }

    fn next_probe(&self) -> Timestamp {
        self.sinks.iter().filter_map(Sink::next_probe).min().unwrap_or(NEVER)
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
                sink.meter.waited.set(0);
                tracing::warn!(
                    "{} did not hold a change in time: answers do not wait for it until it keeps up",
                    sink.outlet.name()
                );
            }
        }
    }
}

impl Sink {
    fn new(outlet: Outlet, metrics: &Metrics) -> Self {
        let meter = Meter {
            waited: metrics.sink_waited.with_label_values(&[outlet.name()]),
            late: metrics.sink_late.with_label_values(&[outlet.name()]),
            failed: metrics.sink_failed.with_label_values(&[outlet.name()]),
        };
        meter.waited.set(1);
        let (awaited, behind, judge) = (None, VecDeque::new(), Judge::default());
        Self { outlet, awaited, behind, judge, is_gone: false, probed: Timestamp::default(), meter }
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
                tracing::error!("{} is gone: the set is held there no longer", self.outlet.name());
                self.is_gone = true;
                self.meter.waited.set(0);
                None
            }
        }
    }

    fn is_waited_for(&self) -> bool {
        let waits = !self.is_gone && !self.judge.is_slow && self.outlet.state() == State::Up;
        self.meter.waited.set(waits.into());
        waits
    }

    fn answered(&mut self, applied: Applied, sent: &Sent, span: Duration, hold: Duration) {
        if applied == Applied::Failed {
            self.meter.failed.inc();
        }
        if !sent.is_bulk && self.judge.took(applied, span, hold) {
            self.meter.waited.set(0);
            tracing::warn!("{} takes too long to hold changes: answers do not wait for it", self.outlet.name());
        }
    }

    /// Lets answers wait for a slow sink again, if it has shown that it is quick.
    fn judge_anew(&mut self) {
        if self.judge.recovers() {
            tracing::info!("{} keeps up again: answers wait for it", self.outlet.name());
        }
    }

    /// Returns when it is to be probed, if it is slow and no order is left with it.
    fn next_probe(&self) -> Option<Timestamp> {
        let is_idle = self.judge.is_slow && self.behind.is_empty() && !self.is_gone;
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
        let mut sinks = Sinks::new(vec![outlet], &Metrics::new(&registry), clock.clone());
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
