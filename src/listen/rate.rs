//! How much one client may ask over UDP.
//!
//! A source address of UDP may be forged, so that whoever is asked answers somebody else. A [`Limiter`] gives each client
//! prefix (/24 and /56, unless other lengths are configured) two buckets, one for questions and one for replies that are
//! errors. A bucket holds what a second allows. Whoever has emptied one gets no reply, but for every n-th question a
//! truncated one: a client that is really there comes back over TCP, where its address is no forgery and nothing is
//! limited but connections.
//!
//! A bucket is one number, the time at which it is full again (the generic cell rate algorithm), so that taking from it
//! is one atomic step and refilling is none. `governor` counts in the same way, but keeps its keys in a map of locks that
//! grows with the clients, forged ones included, and has to be swept; here the table has a fixed size. A client that
//! finds its four places taken by others takes the one of whoever has asked the least: who is over the limit stays in.
//! Two threads that give one place to two clients at once may count a question for the wrong one; no more than that.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use foldhash::fast::RandomState;

use crate::clock::Timestamp;
use crate::prefix::Prefix;

/// Nanoseconds of a second: what a full bucket holds.
const SECOND: u64 = 1_000_000_000;

/// Places that a client may have.
const WAYS: usize = 4;

/// Groups of that many places: room for 16,384 clients in half a MiB.
const GROUPS: usize = 4096;

/// How much one client may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Questions a second; 0 for no limit.
    pub per_second: u32,
    /// Replies a second that are errors; 0 for no limit.
    pub errors_per_second: u32,
    /// Every how-many-th question beyond the limit gets a truncated reply; 0 for none.
    pub slip: u32,
    /// Length of an IPv4 client prefix, at most 32.
    pub len4: u8,
    /// Length of an IPv6 client prefix, at most 64.
    pub len6: u8,
    /// Clients without a limit.
    pub exempt: Vec<Prefix>,
}

/// No limits; if there are, not for loopback, and half of the replies beyond are truncated ones.
impl Default for Options {
    fn default() -> Self {
        let exempt = ["127.0.0.0/8", "::1/128"].iter().filter_map(|text| text.parse().ok()).collect();
        Self { per_second: 0, errors_per_second: 0, slip: 2, len4: 24, len6: 56, exempt }
    }
}

/// What is to be done with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is within the limit.
    Pass,
    /// It is beyond the limit and gets a reply that says no more than that.
    Slip,
    /// It is beyond the limit and gets none.
    Drop,
}

/// The buckets of all clients.
#[derive(Debug)]
pub struct Limiter {
    options: Options,
    /// What one question takes out of its bucket, and one error.
    costs: [u64; 2],
    groups: Box<[[Place; WAYS]]>,
    /// Seeded at random: nobody can know which clients share a group.
    hasher: RandomState,
}

/// The buckets of one client.
#[derive(Debug, Default)]
struct Place {
    /// Whose they are; 0 for nobody's.
    client: AtomicU64,
    /// When each is full again, in nanoseconds: that of questions, that of errors.
    full_at: [AtomicU64; 2],
    /// How many questions were beyond the limit.
    beyond: AtomicU32,
}

/// The two buckets.
#[derive(Clone, Copy)]
enum Bucket {
    Questions,
    Errors,
}

impl Limiter {
    /// Makes full buckets; `None` if nothing is limited.
    pub fn new(options: &Options) -> Option<Arc<Self>> {
        let cost = |per_second: u32| SECOND.checked_div(u64::from(per_second)).unwrap_or(0);
        let costs = [cost(options.per_second), cost(options.errors_per_second)];
        let groups = std::iter::repeat_with(Default::default).take(GROUPS);
        (costs != [0, 0]).then(|| {
            let (options, groups) = (options.clone(), groups.collect());
            Arc::new(Self { options, costs, groups, hasher: RandomState::default() })
        })
    }

    /// Returns whether a client has no limit.
    pub fn exempts(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.options.exempt.iter().any(|prefix| prefix.contains(client))
    }

    /// Counts a question.
    pub fn question(&self, client: IpAddr, now: Timestamp) -> Verdict {
        self.take(Bucket::Questions, client, now)
    }

    /// Counts a reply that is an error.
    pub fn error(&self, client: IpAddr, now: Timestamp) -> Verdict {
        self.take(Bucket::Errors, client, now)
    }

    fn take(&self, bucket: Bucket, client: IpAddr, now: Timestamp) -> Verdict {
        let cost = self.costs[bucket as usize];
        if cost == 0 {
            return Verdict::Pass;
        }
        let place = self.place(self.number(client));
        let now = now.as_millis().saturating_mul(1_000_000);
        let taken = place.full_at[bucket as usize].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let next = full_at.max(now).saturating_add(cost);
            (next <= now.saturating_add(SECOND)).then_some(next)
        });
        match (taken, self.options.slip) {
            (Ok(_), _) => Verdict::Pass,
            (Err(_), 0) => Verdict::Drop,
            (Err(_), slip) => {
                let beyond = place.beyond.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
                if beyond.is_multiple_of(slip) { Verdict::Slip } else { Verdict::Drop }
            }
        }
    }

    /// Finds the place of a client, or gives it the one of whoever has asked the least.
    fn place(&self, client: u64) -> &Place {
        let group = &self.groups[self.hasher.hash_one(client) as usize % GROUPS];
        if let Some(place) = group.iter().find(|place| place.client.load(Ordering::Relaxed) == client) {
            return place;
        }
        let emptiest = |place: &&Place| place.full_at.iter().map(|at| at.load(Ordering::Relaxed)).max();
        let place = group.iter().min_by_key(emptiest).unwrap_or(&group[0]);
        place.client.store(client, Ordering::Relaxed);
        place.full_at.iter().for_each(|at| at.store(0, Ordering::Relaxed));
        place.beyond.store(0, Ordering::Relaxed);
        place
    }

    /// Returns the number of the client's prefix; no other prefix has it, and it is not 0.
    fn number(&self, client: IpAddr) -> u64 {
        let bits = match client.to_canonical() {
            // The upper half of a multicast address, which no client has.
            IpAddr::V4(addr) => {
                let unused = 32 - u32::from(self.options.len4.min(32));
                let kept = u32::MAX.checked_shl(unused).unwrap_or(0);
                (0xff00 << 48) | u64::from(addr.to_bits() & kept)
            }
            IpAddr::V6(addr) => {
                let unused = 64 - u32::from(self.options.len6.min(64));
                (addr.to_bits() >> 64) as u64 & u64::MAX.checked_shl(unused).unwrap_or(0)
            }
        };
        // All ones would be a multicast address, too.
        !bits
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const START: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn limiter(per_second: u32, errors_per_second: u32, slip: u32) -> Arc<Limiter> {
        Limiter::new(&Options { per_second, errors_per_second, slip, ..Options::default() }).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn passing(limiter: &Limiter, client: &str, count: usize, now: Timestamp) -> usize {
        (0..count).filter(|_| limiter.question(ip(client), now) == Verdict::Pass).count()
    }

    #[test]
    fn without_limits_there_is_no_limiter() {
        assert!(Limiter::new(&Options::default()).is_none());
    }

    #[test]
    fn a_second_holds_what_is_allowed_and_fills_again() {
        for rate in [1, 3, 7, 100, 999, 5000] {
            let limiter = limiter(rate, 0, 2);
            assert_eq!(passing(&limiter, "192.0.2.1", 10_000, START), rate as usize);
            assert_eq!(passing(&limiter, "192.0.2.1", 10_000, START.after(Duration::from_secs(1))), rate as usize);
            let half = passing(&limiter, "192.0.2.1", 10_000, START.after(Duration::from_millis(1500)));
            assert!(half.abs_diff(rate as usize / 2) <= 1, "{half} of {rate}");
        }
    }

    #[test]
    fn a_prefix_shares_its_buckets_and_no_other_does() {
        let limiter = limiter(10, 0, 2);
        assert_eq!(passing(&limiter, "192.0.2.1", 10, START), 10);
        assert_eq!(passing(&limiter, "192.0.2.255", 1, START), 0);
        assert_eq!(passing(&limiter, "::ffff:192.0.2.7", 1, START), 0);
        assert_eq!(passing(&limiter, "192.0.3.1", 1, START), 1);
        assert_eq!(passing(&limiter, "2001:db8:0:100::1", 10, START), 10);
        assert_eq!(passing(&limiter, "2001:db8:0:1ff::2", 1, START), 0);
        assert_eq!(passing(&limiter, "2001:db8:0:200::1", 1, START), 1);
    }

    #[test]
    fn errors_have_a_bucket_of_their_own() {
        let limiter = limiter(5, 2, 0);
        let client = ip("192.0.2.1");
        let errors: Vec<Verdict> = (0..4).map(|_| limiter.error(client, START)).collect();
        assert_eq!(errors, [Verdict::Pass, Verdict::Pass, Verdict::Drop, Verdict::Drop]);
        assert_eq!(passing(&limiter, "192.0.2.1", 9, START), 5);
    }

    #[test]
    fn every_nth_question_beyond_slips() {
        for (slip, expected) in [(0, 0), (1, 12), (2, 6), (3, 4)] {
            let limiter = limiter(1, 0, slip);
            let verdicts: Vec<Verdict> = (0..13).map(|_| limiter.question(ip("192.0.2.1"), START)).collect();
            assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Slip).count(), expected, "{slip}");
            assert_eq!(verdicts[0], Verdict::Pass);
        }
    }

    #[test]
    fn who_is_listed_has_no_limit() {
        let limiter = limiter(1, 0, 0);
        assert!(["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"].iter().all(|text| limiter.exempts(ip(text))));
        assert!(!limiter.exempts(ip("192.0.2.1")));
    }

    /// A flood of forged addresses does not push those out who are over the limit.
    #[test]
    fn who_is_beyond_the_limit_stays_in_while_others_come() {
        let limiter = limiter(100, 0, 0);
        assert_eq!(passing(&limiter, "192.0.2.1", 500, START), 100);
        for i in 0..200_000u32 {
            limiter.question(IpAddr::from((0x0a00_0000 + (i << 8)).to_be_bytes()), START);
        }
        assert_eq!(passing(&limiter, "192.0.2.1", 5, START), 0);
    }

    #[test]
    fn many_threads_take_no_more_than_there_is() {
        let limiter = limiter(1000, 0, 0);
        let count = || passing(&limiter, "192.0.2.1", 2000, START);
        let passed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        // All four may have made the place at once, and each time it was full.
        assert!((1000..=4000).contains(&passed), "{passed}");
        assert_eq!(count(), 0);
    }

    proptest! {
        #[test]
        fn prefixes_and_numbers_are_the_same_thing(addrs in prop::collection::vec(any::<IpAddr>(), 1..50), len4 in 0u8..=32, len6 in 0u8..=64) {
            let limiter = Limiter::new(&Options { per_second: 1, len4, len6, ..Options::default() }).unwrap();
            let may_ask = |addr: &IpAddr| !addr.is_multicast();
            let addrs: Vec<IpAddr> = addrs.into_iter().filter(may_ask).map(|addr| addr.to_canonical()).collect();
            let prefix = |addr: &IpAddr| Prefix::truncated(*addr, if addr.is_ipv4() { len4 } else { len6 });
            let numbers: HashSet<u64> = addrs.iter().map(|addr| limiter.number(*addr)).collect();
            prop_assert!(!numbers.contains(&0));
            prop_assert_eq!(numbers.len(), addrs.iter().map(prefix).collect::<HashSet<_>>().len());
        }

        #[test]
        fn no_second_lets_more_than_twice_the_limit_pass(gaps in prop::collection::vec(0u64..400, 1..300), rate in 1u32..50) {
            let limiter = limiter(rate, 0, 0);
            let mut now = START;
            let mut passed: Vec<Timestamp> = Vec::new();
            for gap in gaps {
                now = now.after(Duration::from_millis(gap));
                if limiter.question(ip("192.0.2.1"), now) == Verdict::Pass {
                    passed.push(now);
                }
            }
            for from in &passed {
                let within = passed.iter().filter(|at| *at >= from && at.since(*from) < Duration::from_secs(1)).count();
                prop_assert!(within <= 2 * rate as usize, "{within} of {rate}");
            }
        }
    }
}
