//! How many new sightings one client's network may bring a minute.
//!
//! A token bucket for each client prefix (/24, /56) that holds one minute's worth. The table is bounded: buckets that
//! have filled up again are as good as new ones and go first; while none has, further prefixes share one bucket.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::clock::Timestamp;
use crate::prefix::Prefix;

/// The most client prefixes with a bucket of their own: 3 MB.
const BUCKETS_MAX: usize = 32_768;

/// A full table is searched for idle buckets no more often than this.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The span in which an empty bucket fills up.
const FILL: Duration = Duration::from_secs(60);

/// Buckets by client prefix.
#[derive(Debug)]
pub(crate) struct Rates {
    per_minute: u32,
    buckets: HashMap<Prefix, Bucket, RandomState>,
    shared: Bucket,
    swept: Timestamp,
    buckets_max: usize,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// In sixty-thousandths of a sighting, so that a millisecond's share is a whole number; below zero after one large
    /// answer.
    level: i64,
    at: Timestamp,
}

/// One sighting in a bucket's level.
const ONE: i64 = 60_000;

impl Rates {
    /// Allows so many a minute; 0 for any number.
    pub(crate) fn new(per_minute: u32, now: Timestamp) -> Self {
        let shared = Bucket { level: full(per_minute), at: now };
        Self { per_minute, buckets: HashMap::default(), shared, swept: now, buckets_max: BUCKETS_MAX }
    }

    /// Takes `count` new sightings for `client`, all or none; our own questions have no client and no limit.
    ///
    /// An answer that is larger than a whole minute's worth passes when the bucket is full, and is worked off later.
    pub(crate) fn take(&mut self, client: Option<IpAddr>, count: usize, now: Timestamp) -> bool {
        let Some(client) = client.filter(|_| self.per_minute > 0 && count > 0) else { return true };
        let (prefix, per_minute) = (client_prefix(client), self.per_minute);
        if !self.buckets.contains_key(&prefix) && self.buckets.len() >= self.buckets_max {
            self.sweep(now);
        }
        let has_room = self.buckets.len() < self.buckets_max;
        let fresh = Bucket { level: full(per_minute), at: now };
        let bucket = match self.buckets.get_mut(&prefix) {
            Some(bucket) => bucket,
            None if has_room => self.buckets.entry(prefix).or_insert(fresh),
            None => &mut self.shared,
        };
        bucket.fill(per_minute, now);
        let wanted = i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(ONE);
        if bucket.level < wanted.min(full(per_minute)) {
            return false;
        }
        bucket.level = bucket.level.saturating_sub(wanted);
        true
    }

    fn sweep(&mut self, now: Timestamp) {
        if now.since(self.swept) < SWEEP_EVERY {
            return;
        }
        self.swept = now;
        let per_minute = self.per_minute;
        self.buckets.retain(|_, bucket| {
            bucket.fill(per_minute, now);
            bucket.level < full(per_minute)
        });
    }
}

impl Bucket {
    fn fill(&mut self, per_minute: u32, now: Timestamp) {
        let millis = i64::try_from(now.since(self.at).as_millis()).unwrap_or(i64::MAX);
        let gained = millis.saturating_mul(i64::from(per_minute));
        self.level = self.level.saturating_add(gained).min(full(per_minute));
        self.at = self.at.max(now);
    }
}

fn full(per_minute: u32) -> i64 {
    const { assert!(FILL.as_millis() == ONE as u128, "a millisecond brings `per_minute` of `ONE`") };
    i64::from(per_minute) * ONE
}

/// Returns the network that a client is held to: what one customer usually holds.
pub(super) fn client_prefix(client: IpAddr) -> Prefix {
    match client.to_canonical() {
        addr @ IpAddr::V4(_) => Prefix::truncated(addr, 24),
        addr @ IpAddr::V6(_) => Prefix::truncated(addr, 56),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn one_prefix_gets_its_minute_and_no_more() {
        let start = Timestamp::from_secs(1000);
        let mut rates = Rates::new(60, start);
        assert!(rates.take(client("192.0.2.1"), 59, start));
        assert!(!rates.take(client("192.0.2.200"), 2, start), "same /24");
        assert!(rates.take(client("::ffff:192.0.2.7"), 1, start), "same /24, as a dual-stack socket shows it");
        assert!(rates.take(client("192.0.3.1"), 60, start), "another /24");
        assert!(!rates.take(client("192.0.2.1"), 1, start.after(Duration::from_millis(999))));
        assert!(rates.take(client("192.0.2.1"), 1, start.after(Duration::from_millis(1000))));
        assert!(rates.take(client("2001:db8:0:100::1"), 60, start));
        assert!(!rates.take(client("2001:db8:0:1ff::1"), 1, start), "same /56");
        assert!(rates.take(client("2001:db8:0:200::1"), 1, start));
    }

    #[test]
    fn zero_and_our_own_questions_have_no_limit() {
        let start = Timestamp::from_secs(1000);
        assert!(Rates::new(0, start).take(client("192.0.2.1"), usize::MAX, start));
        assert!(Rates::new(1, start).take(None, usize::MAX, start));
    }

    #[test]
    fn answer_larger_than_a_minute_passes_once_and_is_worked_off() {
        let start = Timestamp::from_secs(1000);
        let mut rates = Rates::new(10, start);
        assert!(rates.take(client("192.0.2.1"), 30, start));
        assert!(!rates.take(client("192.0.2.1"), 1, start.after(Duration::from_secs(119))));
        assert!(rates.take(client("192.0.2.1"), 1, start.after(Duration::from_secs(126))));
    }

    #[test]
    fn full_table_shares_one_bucket_until_others_are_idle() {
        let start = Timestamp::from_secs(1000);
        let mut rates = Rates::new(10, start);
        rates.buckets_max = 2;
        assert!(rates.take(client("192.0.1.1"), 10, start));
        assert!(rates.take(client("192.0.2.1"), 10, start));
        assert!(rates.take(client("192.0.3.1"), 10, start), "the shared bucket");
        assert!(!rates.take(client("192.0.4.1"), 1, start), "shared and empty");
        assert_eq!(rates.buckets.len(), 2);
        let later = start.after(FILL);
        assert!(rates.take(client("192.0.4.1"), 10, later));
        assert_eq!(rates.buckets.len(), 1, "idle buckets made room");
    }
}
