//! How fast questions of our own may follow each other.
//!
//! A budget in questions a second, and less while an upstream suffers: each failure doubles the gap between two questions, up
//! to [`GAP_MAX`]; each answer that came in good time takes two fifths off, down to the budget. So some broken names among
//! many good ones slow nothing down, and an upstream that is away is asked once in five seconds until it is back.

use std::time::Duration;

use crate::clock::Timestamp;

/// The longest gap: soon enough to notice that an upstream is back.
pub(super) const GAP_MAX: Duration = Duration::from_secs(5);

/// When the next question may be asked.
#[derive(Debug)]
pub(super) struct Pace {
    base: Duration,
    gap: Duration,
    next: Timestamp,
}

impl Pace {
    /// Allows so many questions a second, at least one.
    pub(super) fn new(per_second: u32) -> Self {
        let base = Duration::from_secs(1) / per_second.max(1);
        Self { base, gap: base, next: Timestamp::default() }
    }

    /// Allows so many a second from now on; what is known of upstreams stays.
    pub(super) fn set(&mut self, per_second: u32) {
        let was_slow = self.is_slow();
        self.base = Self::new(per_second).base;
        self.gap = if was_slow { self.gap.max(self.base) } else { self.base };
    }

    /// Returns when the next question may be asked.
    pub(super) fn next(&self) -> Timestamp {
        self.next
    }

    /// Notes that one was asked.
    pub(super) fn asked(&mut self, now: Timestamp) {
        // A second may not be made up for later, or a busy moment would be followed by a burst.
        self.next = self.next.max(now).after(self.gap);
    }

    /// Notes that nothing is asked for a while: clients come first.
    pub(super) fn wait(&mut self, until: Timestamp) {
        self.next = self.next.max(until);
    }

    /// Notes an answer in good time; returns whether upstreams are well again that suffered before.
    pub(super) fn well(&mut self) -> bool {
        let was_slow = self.is_slow();
        self.gap = (self.gap * 3 / 5).max(self.base);
        was_slow && !self.is_slow()
    }

    /// Notes a failure, or an answer that came late.
    pub(super) fn suffered(&mut self) {
        self.gap = (self.gap * 2).clamp(self.base, GAP_MAX.max(self.base));
    }

    fn is_slow(&self) -> bool {
        self.gap > self.base
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks as fast as the pace lets it for `span`; returns how many questions that were.
    fn asks(pace: &mut Pace, from: Timestamp, span: Duration, mut after: impl FnMut(&mut Pace)) -> usize {
        let (mut now, mut count) = (pace.next().max(from), 0);
        while now < from.after(span) {
            pace.asked(now);
            after(pace);
            count += 1;
            now = pace.next();
        }
        count
    }

    const START: Timestamp = Timestamp::from_secs(1000);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn budget_is_kept_and_an_idle_second_is_not_made_up_for() {
        let mut pace = Pace::new(10);
        assert_eq!(asks(&mut pace, START, MINUTE, |_| ()), 600);
        let later = START.after(MINUTE * 60);
        assert_eq!(asks(&mut pace, later, MINUTE, |_| ()), 600);
    }

    #[test]
    fn an_upstream_that_is_away_is_hardly_asked_and_then_all_goes_on() {
        let mut pace = Pace::new(20);
        let failing = asks(&mut pace, START, MINUTE, Pace::suffered);
        assert!((12..=26).contains(&failing), "{failing} in a minute");
        let back = pace.next();
        let mut is_well = 0;
        asks(&mut pace, back, MINUTE, |pace| is_well += usize::from(pace.well()));
        assert_eq!(is_well, 1, "it is told once");
        let well = asks(&mut pace, back.after(MINUTE), MINUTE, |_| ());
        assert_eq!(well, 1200);
    }

    #[test]
    fn some_broken_names_slow_nothing_down_for_long() {
        let mut pace = Pace::new(20);
        let (mut count, mut is_well) = (0, false);
        let asked = asks(&mut pace, START, MINUTE, |pace| {
            count += 1;
            match count % 10 {
                0 => pace.suffered(),
                _ => is_well |= pace.well(),
            }
        });
        assert!(is_well && asked > 900, "{asked} of 1200");
    }

    #[test]
    fn clients_come_first() {
        let mut pace = Pace::new(20);
        pace.wait(START.after(MINUTE));
        assert_eq!(pace.next(), START.after(MINUTE));
    }

    #[test]
    fn another_budget_counts_at_once() {
        let mut pace = Pace::new(1);
        pace.set(100);
        assert_eq!(asks(&mut pace, START, MINUTE, |_| ()), 6000);
        (0..20).for_each(|_| pace.suffered());
        pace.set(50);
        assert!(
            asks(&mut pace, START.after(MINUTE * 9), MINUTE, |_| ()) <= 13,
            "and an upstream that suffers is spared on"
        );
    }
}
