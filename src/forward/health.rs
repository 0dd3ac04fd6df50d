//! What is known of one upstream's health: does it answer, how fast, does it know EDNS.
//!
//! Pure state; `now` comes as an argument. An upstream is *down* from the first try that got no sign of life (no
//! reply to anything while that try waited) until the next reply. While it is down it stands behind the others, and
//! one question at a time is put to it beside theirs as a probe, first after 1 s, then after twice as long each
//! time, at most 30 s.
//!
//! The latency is smoothed and its spread kept as RFC 6298 does for TCP; from both comes the *patience*: how long a
//! try waits before another is started beside it. Where another upstream is well, a question is *hedged* sooner: once
//! it has waited longer than 19 of 20 replies take, as estimated by one number that each reply nudges.

use std::time::Duration;

use crate::clock::Timestamp;

/// The first pause of an upstream that went down.
const PAUSE_FIRST: Duration = Duration::from_secs(1);

/// The longest pause between two probes.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long an upstream that refused EDNS and then answered without is asked without.
const PLAIN_FOR: Duration = Duration::from_secs(15 * 60);

/// Patience with an upstream that was never measured.
const PATIENCE_UNKNOWN: Duration = Duration::from_millis(400);

/// The least patience: an upstream that answers from its cache in 5 ms may need a recursion now.
const PATIENCE_MIN: Duration = Duration::from_millis(300);

/// The most patience: a lost packet is made up for within a second.
const PATIENCE_MAX: Duration = Duration::from_millis(900);

/// Replies before the estimate of what is late is believed.
const HEDGE_SAMPLES_MIN: u64 = 16;

/// The shortest wait before a question is hedged: below, a second packet costs more than it wins.
const HEDGE_MIN: Duration = Duration::from_millis(20);

/// The state of one upstream.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Smoothed latency, and its smoothed deviation.
    latency: Option<(Duration, Duration)>,
    /// What 19 of 20 replies take at most, about.
    late: Duration,
    /// How many replies of any kind have come.
    heard: u64,
    /// Set while it is down.
    down: Option<Down>,
    /// Failure replies in a row.
    refusals: u32,
    /// It is asked without EDNS until then.
    plain_until: Timestamp,
    /// What went wrong last.
    last_error: Option<String>,
}

/// The state of an upstream that does not answer.
#[derive(Clone, Copy, Debug)]
struct Down {
    /// How long after the last probe the next is due.
    pause: Duration,
    /// When the next probe is due.
    probe_at: Timestamp,
}

impl Health {
    /// Notes a reply that took `latency`; returns whether the upstream was down.
    pub(super) fn answered(&mut self, latency: Duration) -> bool {
        self.heard += 1;
        self.late = match self.latency {
            None => latency * 2,
            // One step up for 19 down keeps one reply in 20 above it; steps are in proportion, so it finds any scale.
            Some(_) if latency > self.late => self.late + (self.late * 19 / 256).max(Duration::from_micros(19)),
            Some(_) => self.late - self.late / 256,
        };
        self.latency = Some(match self.latency {
            None => (latency, latency / 2),
            Some((smooth, spread)) => ((smooth * 7 + latency) / 8, (spread * 3 + smooth.abs_diff(latency)) / 4),
        });
        self.down.take().is_some()
    }

    /// Notes whether the reply was of use, for [`Health::score`].
    pub(super) fn served(&mut self, of_use: bool) {
        self.refusals = if of_use { 0 } else { self.refusals.saturating_add(1) };
    }

    /// Notes that a try has waited in vain for its patience; `heard` is what [`Health::heard`] said when it began.
    /// Returns whether the upstream is down from now on and was not before.
    pub(super) fn missed(&mut self, heard: u64, now: Timestamp) -> bool {
        if self.heard != heard {
            return false;
        }
        self.last_error = Some("no reply".to_owned());
        self.went_down(now)
    }

    /// Notes that asking failed outright. Returns whether the upstream is down from now on and was not before.
    pub(super) fn broke(&mut self, error: String, now: Timestamp) -> bool {
        self.last_error = Some(error);
        self.went_down(now)
    }

    /// Notes that it refused a question without a DNS reply: it is well, but was of no use.
    pub(super) fn refused(&mut self, error: String) {
        self.last_error = Some(error);
        self.served(false);
    }

    /// Marks it down; many questions that fail together count once.
    fn went_down(&mut self, now: Timestamp) -> bool {
        if self.down.is_some() {
            return false;
        }
        self.down = Some(Down { pause: PAUSE_FIRST, probe_at: now.after(PAUSE_FIRST) });
        true
    }

    /// Returns whether it is down.
    pub(super) fn is_down(&self) -> bool {
        self.down.is_some()
    }

    /// Claims the probe that is due, if one is: the next comes after twice the pause.
    pub(super) fn take_probe(&mut self, now: Timestamp) -> bool {
        match &mut self.down {
            Some(down) if now >= down.probe_at => {
                down.pause = (down.pause * 2).min(PAUSE_MAX);
                down.probe_at = now.after(down.pause);
                true
            }
            _ => false,
        }
    }

    /// Returns how many replies have come so far.
    pub(super) fn heard(&self) -> u64 {
        self.heard
    }

    /// Returns the smoothed latency; `None` before the first reply.
    pub(super) fn latency(&self) -> Option<Duration> {
        self.latency.map(|(smooth, _)| smooth)
    }

    /// Returns what the fastest strategy sorts by: the latency, doubled for each failure reply in a row.
    ///
    /// An upstream that refuses everything does so quickly; without the doubling it would be asked first forever.
    pub(super) fn score(&self) -> Duration {
        self.latency.map_or(Duration::MAX, |(smooth, _)| {
            smooth.max(Duration::from_micros(100)).saturating_mul(1 << self.refusals.min(10))
        })
    }

    /// Returns how long a try waits before another is started beside it.
    pub(super) fn patience(&self) -> Duration {
        self.latency.map_or(PATIENCE_UNKNOWN, |(smooth, spread)| {
            smooth.saturating_add(spread.saturating_mul(4)).clamp(PATIENCE_MIN, PATIENCE_MAX)
        })
    }

    /// Returns how long a question waits before it is hedged, at most [`Health::patience`]; `None` while too little is
    /// known.
    pub(super) fn hedge_after(&self) -> Option<Duration> {
        let patience = self.patience();
        (self.heard >= HEDGE_SAMPLES_MIN).then(|| self.late.clamp(HEDGE_MIN, patience))
    }

    /// Remembers that it answered without EDNS what it refused with.
    pub(super) fn refused_edns(&mut self, now: Timestamp) {
        self.plain_until = now.after(PLAIN_FOR);
    }

    /// Returns whether it is to be asked with EDNS at any time.
    pub(super) fn never_refused_edns(&self) -> bool {
        self.plain_until == Timestamp::default()
    }

    /// Returns whether it is to be asked with EDNS.
    pub(super) fn knows_edns(&self, now: Timestamp) -> bool {
        now >= self.plain_until
    }

    /// Returns what went wrong last.
    pub(super) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(1_000_000 + secs)
    }

    #[test]
    fn first_miss_takes_it_down_and_a_reply_brings_it_back() {
        let mut health = Health::default();
        assert!(health.missed(0, at(0)));
        assert!(health.is_down());
        assert!(!health.missed(0, at(0)), "only the first of a burst tells");
        assert!(health.answered(Duration::from_millis(20)));
        assert!(!health.is_down());
    }

    #[test]
    fn sign_of_life_since_the_try_began_is_no_miss() {
        let mut health = Health::default();
        let heard = health.heard();
        health.answered(Duration::from_millis(20));
        assert!(!health.missed(heard, at(0)));
        assert!(!health.is_down());
    }

    #[test]
    fn probes_come_one_at_a_time_and_ever_later() {
        let mut health = Health::default();
        health.broke("connection refused".to_owned(), at(0));
        assert!(!health.take_probe(at(0)));
        assert!(health.take_probe(at(1)));
        assert!(!health.take_probe(at(1)));
        assert!(!health.take_probe(at(2)));
        assert!(health.take_probe(at(3)));
        let mut now = 3;
        let mut pauses = Vec::new();
        for _ in 0..5 {
            let from = now;
            while !health.take_probe(at(now)) {
                now += 1;
            }
            pauses.push(now - from);
        }
        assert_eq!(pauses, [4, 8, 16, 30, 30]);
    }

    #[test]
    fn patience_follows_the_latency_within_bounds() {
        let mut health = Health::default();
        assert_eq!(health.patience(), PATIENCE_UNKNOWN);
        for _ in 0..50 {
            health.answered(Duration::from_millis(5));
        }
        assert_eq!(health.patience(), PATIENCE_MIN);
        for _ in 0..50 {
            health.answered(Duration::from_secs(3));
        }
        assert_eq!(health.patience(), PATIENCE_MAX);
    }

    #[test]
    fn hedge_comes_after_what_most_replies_take() {
        let mut health = Health::default();
        for _ in 0..HEDGE_SAMPLES_MIN - 1 {
            health.answered(Duration::from_millis(40));
        }
        assert_eq!(health.hedge_after(), None);
        // 18 in 20 take 40 ms, one 90 ms, one 200 ms: what is late lies between the last two.
        for _ in 0..200 {
            for _ in 0..18 {
                health.answered(Duration::from_millis(40));
            }
            health.answered(Duration::from_millis(90));
            health.answered(Duration::from_millis(200));
        }
        let late = health.hedge_after().unwrap();
        assert!(late > Duration::from_millis(70) && late < Duration::from_millis(220), "{late:?}");
        for _ in 0..3000 {
            health.answered(Duration::from_micros(100));
        }
        assert_eq!(health.hedge_after(), Some(HEDGE_MIN));
    }

    #[test]
    fn quick_refusals_do_not_make_it_the_fastest() {
        let (mut refusing, mut honest) = (Health::default(), Health::default());
        for _ in 0..8 {
            refusing.answered(Duration::from_millis(1));
            refusing.served(false);
            honest.answered(Duration::from_millis(30));
            honest.served(true);
        }
        assert!(honest.score() < refusing.score());
        refusing.served(true);
        assert!(refusing.score() < honest.score());
    }

    #[test]
    fn edns_trouble_is_forgotten_after_a_quarter_of_an_hour() {
        let mut health = Health::default();
        health.refused_edns(at(0));
        assert!(!health.knows_edns(at(899)));
        assert!(health.knows_edns(at(900)));
    }
}
