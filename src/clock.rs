//! Time: the only caller of `now()`.
//!
//! A [`Timestamp`] counts milliseconds since the Unix epoch as *our* clock sees them: the wall time at start plus
//! what the monotonic clock has counted since. It never goes back and a stepped system clock does not move it, so
//! ends stay right while the process lives; it means the same to another process as long as both clocks are set.
//! Logic takes `now` as an argument. A test uses [`Clock::manual`] and adds to it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

    /// Returns the span since `earlier`, zero if that lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Returns the same instant for HTTP dates and file times.
    pub fn to_system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0)
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
    Manual(Arc<AtomicU64>),
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
        Self(Source::Manual(Arc::new(AtomicU64::new(now.0))))
    }

    /// Returns this moment; about 25 ns.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System { started, started_millis } => Timestamp(*started_millis).after(started.elapsed()),
            Source::Manual(now) => Timestamp(now.load(Ordering::Relaxed)),
        }
    }

    /// Moves a manual clock on, for all its clones; the real clock is left alone.
    pub fn advance(&self, span: Duration) {
        if let Source::Manual(now) = &self.0 {
            now.fetch_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
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

    #[test]
    fn system_clock_never_goes_back() {
        let clock = Clock::system();
        let first = clock.now();
        assert!(clock.now() >= first);
        assert!(first > Timestamp::from_secs(1_700_000_000));
    }
}
