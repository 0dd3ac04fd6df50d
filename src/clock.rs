//! Time: the only caller of `now()`.
//!
//! A [`Timestamp`] counts milliseconds since the Unix epoch as *our* clock sees them: the wall time at start plus
//! what the monotonic clock has counted since. It never goes back and a stepped system clock does not move it, so
//! ends stay right while the process lives; it means the same to another process as long as both clocks are set.
//! Logic takes `now` as an argument, and a task that waits for an instant asks the clock to wake it. A test uses
//! [`Clock::manual`] and adds to it; that wakes whoever waited for a moment gone by.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

/// The longest single sleep on the real clock: timers stand still while the machine is suspended.
const SLEEP_MAX: Duration = Duration::from_millis(500);

/// How often two clocks are read until nothing came between.
const READINGS_MAX: usize = 50;

/// Returns what the kernel's monotonic clock shows.
fn monotonic_millis() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000)
}

/// An instant: milliseconds since the Unix epoch on our own clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Takes milliseconds since the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Takes seconds since the Unix epoch.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Returns milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns seconds since the Unix epoch, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// Returns seconds since the Unix epoch, rounded up: an end told in seconds is never early.
    pub const fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(1000)
    }

    /// Returns the instant `span` later.
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Returns the instant so many milliseconds later, or earlier.
    pub const fn shifted(self, millis: i64) -> Self {
        Self(self.0.saturating_add_signed(millis))
    }

    /// Returns the span since `earlier`, zero if that lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Seconds since the Unix epoch with three decimals.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// Where `now` comes from; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System { started: Instant, started_millis: u64 },
    Manual(Arc<watch::Sender<u64>>),
}

impl Clock {
    /// Makes the real clock, stamped with the wall time of this moment.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system")]
    pub fn system() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started_millis = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        Self(Source::System { started: Instant::now(), started_millis })
    }

    /// Makes a clock that stands at `now` until [`Clock::advance`] moves it.
    pub fn manual(now: Timestamp) -> Self {
        Self(Source::Manual(Arc::new(watch::Sender::new(now.0))))
    }

    /// Returns this moment; about 25 ns.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System { started, started_millis } => Timestamp(*started_millis).after(started.elapsed()),
            Source::Manual(now) => Timestamp(*now.borrow()),
        }
    }

    /// Returns how many milliseconds this clock is ahead of the kernel's monotonic one: it stays the same while the
    /// process lives, and two processes of one boot differ by what the wall clock was set in between. A manual clock has
    /// none.
    pub fn ahead_of_monotonic_millis(&self) -> Option<i64> {
        let Source::System { .. } = &self.0 else { return None };
        // Both are read at one moment only if nobody came between; the closest reading counts.
        let readings = (0..READINGS_MAX).map(|_| {
            let before = monotonic_millis();
            let now = i64::try_from(self.now().as_millis()).ok();
            let after = monotonic_millis();
            (after.saturating_sub(before), now.map(|now| now.saturating_sub(after)))
        });
        let mut best = (i64::MAX, None);
        for reading in readings {
            best = if reading.0 < best.0 { reading } else { best };
            if best.0 <= 1 {
                break;
            }
        }
        best.1
    }

    /// Moves a manual clock on, for all its clones; the real clock is left alone.
    pub fn advance(&self, span: Duration) {
        if let Source::Manual(now) = &self.0 {
            now.send_modify(|now| *now = Timestamp(*now).after(span).0);
        }
    }

    /// Waits until `end` has come; returns at once if it has. Safe to cancel.
    pub async fn sleep_until(&self, end: Timestamp) {
        match &self.0 {
            Source::System { .. } => loop {
                let left = end.since(self.now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(SLEEP_MAX)).await;
            },
            Source::Manual(now) => {
                // The sender lives in `self`, so it cannot be gone.
                let _ = now.subscribe().wait_for(|now| *now >= end.0).await;
            }
        }
    }
}

/// A span under measurement, for metrics; logic takes a [`Clock`].
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Begins to measure.
    #[expect(
        clippy::disallowed_methods,
        reason = "the clock counts milliseconds, which is too coarse for some metrics"
    )]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns what has passed since.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_moves_all_its_clones() {
        let clock = Clock::manual(Timestamp::from_secs(10));
        let twin = clock.clone();
        clock.advance(Duration::from_millis(1500));
        assert_eq!(twin.now(), Timestamp::from_millis(11_500));
        assert_eq!(twin.now().as_secs_ceil(), 12);
        assert_eq!(twin.now().as_secs(), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn moving_a_manual_clock_wakes_who_waits_for_that_moment() {
        let clock = Clock::manual(Timestamp::from_secs(10));
        let twin = clock.clone();
        let mut asleep = tokio::spawn(async move { twin.sleep_until(Timestamp::from_secs(12)).await });
        clock.advance(Duration::from_millis(1999));
        assert!(tokio::time::timeout(Duration::from_secs(3600), &mut asleep).await.is_err(), "a millisecond early");
        clock.advance(Duration::from_millis(1));
        asleep.await.unwrap();
        clock.sleep_until(Timestamp::from_secs(11)).await;
    }

    #[tokio::test]
    async fn system_clock_wakes_on_time() {
        let clock = Clock::system();
        let end = clock.now().after(Duration::from_millis(20));
        clock.sleep_until(end).await;
        assert!(clock.now() >= end);
    }

    #[test]
    fn clocks_of_one_boot_differ_by_what_the_system_was_set() {
        let (first, second) = (Clock::system(), Clock::system());
        let ahead = |clock: &Clock| clock.ahead_of_monotonic_millis().unwrap();
        // Nobody sets the system's clock during a test; it may be slewed, and we may have been kept waiting.
        assert!(ahead(&first).abs_diff(ahead(&second)) < 5000);
        assert_eq!(Clock::manual(Timestamp::from_secs(1)).ahead_of_monotonic_millis(), None);
        assert_eq!(Timestamp::from_millis(5).shifted(-7), Timestamp::from_millis(0));
        assert_eq!(Timestamp::from_millis(5).shifted(7), Timestamp::from_millis(12));
    }

    #[test]
    fn system_clock_never_goes_back() {
        let clock = Clock::system();
        let first = clock.now();
        assert!(clock.now() >= first);
        assert!(first > Timestamp::from_secs(1_700_000_000));
    }
}
