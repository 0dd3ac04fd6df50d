//! The laws of merging, and what becomes of claims when resolvers fail or forget.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const LEASE: Duration = Duration::from_secs(3600);

fn book() -> Book {
    Book::new(2, Limits { hosts_max: 100, statics_max: 10, lease: LEASE })
}

fn addr(n: u8) -> IpAddr {
    IpAddr::from([8, 8, 0, n])
}

fn prefix(n: u8) -> Prefix {
    Prefix::truncated(IpAddr::from([20, n, 0, 0]), 16)
}

fn secs(secs: u64) -> Timestamp {
    NOW.after(Duration::from_secs(secs))
}

fn apps() -> Apps {
    Arc::from([AppId::new("zoom")])
}

/// A whole set of hosts with their ends in seconds from now, and of prefixes.
fn whole(session: u64, hosts: &[(u8, u64)], statics: &[u8]) -> Delta {
    Delta {
        session,
        reset: true,
        hosts: hosts.iter().map(|(n, end)| (addr(*n), (secs(*end), apps()))).collect(),
        statics: statics.iter().map(|n| (prefix(*n), apps())).collect(),
        ..Delta::default()
    }
}

fn withdrawn(session: u64, hosts: &[u8], statics: &[u8]) -> Delta {
    Delta {
        session,
        hosts_withdrawn: hosts.iter().map(|n| addr(*n)).collect(),
        statics_withdrawn: statics.iter().map(|n| prefix(*n)).collect(),
        ..Delta::default()
    }
}

fn renewed(session: u64, hosts: &[(u8, u64)]) -> Renewed {
    Renewed { session, ends: hosts.iter().map(|(n, end)| (addr(*n), secs(*end))).collect() }
}

/// The last octets of the hosts that are held.
fn held(book: &Book) -> Vec<u8> {
    let mut held: Vec<u8> = (0..=255).filter(|n| book.hosts.contains_key(&addr(*n))).collect();
    held.sort_unstable();
    held
}

fn statics(book: &Book) -> Vec<Prefix> {
    book.statics.keys().copied().collect()
}

#[test]
fn two_resolvers_make_the_union_with_the_latest_end() {
    let mut book = book();
    book.told(0, whole(1, &[(1, 100), (2, 900)], &[1]), NOW);
    book.told(1, whole(7, &[(2, 100), (3, 100)], &[1, 2]), NOW);
    assert_eq!(held(&book), [1, 2, 3]);
    assert_eq!(book.host(addr(2)).unwrap().0, secs(900));
    book.told(0, withdrawn(1, &[1, 2], &[1]), secs(50));
    assert_eq!(held(&book), [2, 3], "the other wants it still");
    assert_eq!(book.host(addr(2)).unwrap().0, secs(100));
    assert_eq!(statics(&book), [prefix(1), prefix(2)]);
}

#[test]
fn sink_is_told_what_changed_and_repeats_cost_nothing() {
    let mut book = book();
    book.told(0, whole(1, &[(1, 900)], &[1]), NOW);
    let news = book.news(NOW).unwrap();
    let needed = secs(900).after(LIVE_MARGIN);
    assert_eq!(news.hosts, [(addr(1), Some(needed.after(SLACK_MAX)))]);
    assert_eq!(news.statics.unwrap().len(), 1);
    book.renewed(0, &renewed(1, &[(1, 1400)]));
    assert_eq!(book.news(NOW), None, "inside what was granted");
    book.renewed(0, &renewed(1, &[(1, 1501)]));
    assert_eq!(book.news(NOW).unwrap().hosts.len(), 1);
    book.told(0, withdrawn(1, &[1], &[]), NOW);
    assert_eq!(book.news(NOW).unwrap(), News { hosts: vec![(addr(1), None)], statics: None });
    assert_eq!(book.news(NOW), None);
}

#[test]
fn new_session_is_merged_before_anything_leaves() {
    let mut book = book();
    book.told(0, whole(1, &[(1, 100), (2, 200), (3, 300)], &[]), NOW);
    let taken = book.told(0, whole(2, &[(3, 50), (4, 900)], &[]), NOW);
    assert_eq!((taken.is_new_session, taken.kept, taken.is_disbelieved), (true, 2, false));
    assert_eq!(held(&book), [1, 2, 3, 4]);
    book.expire(secs(100));
    assert_eq!(held(&book), [1, 2, 3, 4]);
    book.expire(secs(101));
    assert_eq!(held(&book), [2, 3, 4], "what the old session told goes with its end");
    // 3 ends in the new session; the old one had told more.
    book.told(0, withdrawn(2, &[3], &[]), secs(50));
    assert_eq!(held(&book), [2, 3, 4]);
    book.expire(secs(301));
    assert_eq!(held(&book), [4]);
}

#[test]
fn taken_off_the_lists_beats_the_promise_of_an_earlier_session() {
    let mut book = book();
    book.told(0, whole(1, &[(1, 900)], &[]), NOW);
    book.told(0, whole(2, &[], &[]), NOW);
    book.told(0, whole(2, &[(1, 800)], &[]), NOW);
    book.told(0, withdrawn(2, &[1], &[]), secs(10));
    assert_eq!(held(&book), [] as [u8; 0]);
}

#[test]
fn whole_set_of_the_same_session_takes_out_what_it_lacks() {
    let mut book = book();
    book.told(0, whole(1, &[(1, 900), (2, 900), (3, 900)], &[1, 2]), NOW);
    book.told(0, whole(1, &[(1, 900), (2, 900)], &[1]), NOW);
    assert_eq!((held(&book), statics(&book)), (vec![1, 2], vec![prefix(1)]));
}

#[test]
fn shrink_of_more_than_half_is_not_believed_until_the_ends() {
    let mut book = book();
    book.told(0, whole(1, &[(1, 100), (2, 200), (3, 300)], &[1, 2, 3]), NOW);
    let taken = book.told(0, whole(1, &[(1, 900)], &[1]), NOW);
    assert_eq!((taken.kept, taken.is_disbelieved), (4, true));
    assert_eq!((held(&book).len(), statics(&book).len()), (3, 3));
    book.expire(secs(201));
    assert_eq!(held(&book), [1, 3], "1 is listed, and its resolver followed");
    book.expire(NOW.after(LEASE));
    assert_eq!(statics(&book), [prefix(1)]);
}

#[test]
fn empty_set_by_fault_empties_nothing() {
    let mut book = book();
    book.told(0, whole(1, &[(1, 100)], &[1]), NOW);
    for session in [1, 2] {
        book.told(0, whole(session, &[], &[]), NOW);
        assert_eq!((held(&book), statics(&book)), (vec![1], vec![prefix(1)]), "session {session}");
    }
}

#[test]
fn one_resolver_fails_and_its_hosts_stay_until_their_ends() {
    let mut book = book();
    book.told(0, whole(1, &[(1, 100)], &[1]), NOW);
    book.told(1, whole(7, &[(2, 100)], &[2]), NOW);
    book.failed(0, secs(10));
    assert_eq!(book.floor(), None);
    assert_eq!(book.next_end(), Some(secs(101)));
    book.expire(secs(100));
    assert_eq!(held(&book), [1, 2]);
    book.expire(secs(101));
    assert_eq!(held(&book), [2]);
    assert_eq!(statics(&book), [prefix(1), prefix(2)]);
    book.told(1, whole(7, &[(2, 9000)], &[2]), secs(102));
    book.expire(secs(10).after(LEASE));
    assert_eq!(statics(&book), [prefix(2)], "its prefixes lapse with the lease");
}

#[test]
fn all_resolvers_fail_and_every_host_stays_for_the_lease() {
    let mut book = book();
    book.told(0, whole(1, &[(1, 100), (2, 5000)], &[1]), NOW);
    book.told(1, whole(7, &[(3, 100)], &[]), NOW);
    book.news(NOW);
    book.failed(0, NOW);
    book.failed(1, secs(10));
    let floor = secs(10).after(LEASE);
    assert_eq!(book.next_end(), Some(floor));
    let told = book.news(secs(10)).unwrap().hosts;
    assert!(told.iter().all(|(_, until)| until.unwrap() >= floor), "the kernel's timeouts reach as far: {told:?}");
    assert_eq!(told.len(), 2, "2 is held long enough");
    book.expire(secs(9).after(LEASE));
    assert_eq!(held(&book), [1, 2, 3]);
    book.expire(floor);
    assert_eq!(held(&book), [2]);
    book.expire(secs(5001));
    assert_eq!((held(&book).len(), statics(&book)), (0, vec![prefix(1)]), "prefixes have no end");
}

#[test]
fn resolver_that_is_back_is_merged_before_ends_count_again() {
    let mut book = book();
    book.told(0, whole(1, &[(1, 100), (2, 100), (3, 100)], &[]), NOW);
    book.failed(0, secs(50));
    book.expire(secs(1000));
    assert_eq!(held(&book).len(), 3);
    book.told(0, whole(1, &[(1, 1900), (2, 1900)], &[]), secs(1000));
    book.expire(secs(1000));
    assert_eq!(held(&book), [1, 2]);
}

#[test]
fn followed_resolver_withdraws_by_itself_and_a_late_renewal_is_in_time() {
    let mut book = book();
    book.told(0, whole(1, &[(1, 100)], &[]), NOW);
    book.expire(secs(140));
    book.renewed(0, &renewed(1, &[(1, 900)]));
    book.expire(secs(200));
    assert_eq!(held(&book), [1]);
    book.expire(secs(900).after(LIVE_MARGIN));
    assert_eq!(held(&book), [] as [u8; 0], "one that forgets to withdraw holds nothing for ever");
}

#[test]
fn renewals_of_another_session_or_of_strangers_are_ignored() {
    let mut book = book();
    book.told(0, whole(1, &[(1, 100)], &[]), NOW);
    book.renewed(0, &renewed(2, &[(1, 900)]));
    book.renewed(1, &renewed(1, &[(1, 900)]));
    book.renewed(0, &renewed(1, &[(5, 900)]));
    assert_eq!((held(&book), book.host(addr(1)).unwrap().0), (vec![1], secs(100)));
}

#[test]
fn bounds_refuse_the_new_and_keep_the_old() {
    let mut book = Book::new(2, Limits { hosts_max: 2, statics_max: 1, lease: LEASE });
    book.told(0, whole(1, &[(1, 100), (2, 100)], &[1]), NOW);
    let taken = book.told(1, whole(7, &[(1, 900), (3, 900), (4, 900)], &[1, 2]), NOW);
    assert_eq!((taken.refused.of("max-total"), taken.refused.of("max-statics")), (2, 1));
    assert_eq!((held(&book), book.host(addr(1)).unwrap().0), (vec![1, 2], secs(900)));
    assert_eq!(book.counts(Family::V4), (2, 1));
}

#[test]
fn whole_news_hold_everything_and_leave_nothing_to_tell() {
    let mut book = book();
    book.told(0, whole(1, &[(2, 100), (1, 100)], &[1]), NOW);
    let news = book.whole(NOW);
    assert_eq!(news.hosts.iter().map(|(addr, _)| *addr).collect::<Vec<_>>(), [addr(1), addr(2)]);
    assert_eq!(news.statics.unwrap().len(), 1);
    assert_eq!(book.news(NOW), None);
}

/// Something that may happen.
#[derive(Clone, Debug)]
enum Step {
    Whole(Source, u64, Vec<(u8, u64)>),
    Withdrawn(Source, Vec<u8>),
    Renewed(Source, Vec<(u8, u64)>),
    Failed(Source),
    Passes(u64),
}

fn ends() -> impl Strategy<Value = Vec<(u8, u64)>> {
    proptest::collection::vec((0_u8..8, 1_u64..2000), 0..8)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_usize..2, 1_u64..3, ends()).prop_map(|(source, session, ends)| Step::Whole(source, session, ends)),
        (0_usize..2, proptest::collection::vec(0_u8..8, 0..3)).prop_map(|(source, gone)| Step::Withdrawn(source, gone)),
        (0_usize..2, ends()).prop_map(|(source, ends)| Step::Renewed(source, ends)),
        (0_usize..2).prop_map(Step::Failed),
        (1_u64..600).prop_map(Step::Passes),
    ]
}

/// Carries out a step; ends count from its moment.
fn go(book: &mut Book, step: &Step, now: &mut Timestamp) {
    let from_now = |ends: &[(u8, u64)]| -> Vec<(u8, u64)> {
        ends.iter().map(|(n, end)| (*n, end + now.since(NOW).as_secs())).collect()
    };
    match step {
        Step::Whole(source, session, ends) => {
            book.told(*source, whole(*session, &from_now(ends), &[]), *now);
        }
        Step::Withdrawn(source, gone) => {
            let session = book.sources[*source].session.unwrap_or(1);
            book.told(*source, withdrawn(session, gone, &[]), *now);
        }
        Step::Renewed(source, ends) => {
            let session = book.sources[*source].session.unwrap_or(1);
            book.renewed(*source, &renewed(session, &from_now(ends)));
        }
        Step::Failed(source) => book.failed(*source, *now),
        Step::Passes(span) => *now = now.after(Duration::from_secs(*span)),
    }
    book.expire(*now);
}

proptest! {
    #[test]
    fn order_of_resolvers_makes_no_difference(one in ends(), two in ends()) {
        let (mut first, mut second) = (book(), book());
        first.told(0, whole(1, &one, &[]), NOW);
        first.told(1, whole(2, &two, &[]), NOW);
        second.told(1, whole(2, &two, &[]), NOW);
        second.told(0, whole(1, &one, &[]), NOW);
        prop_assert_eq!(first.whole(NOW), second.whole(NOW));
        // A whole set tells each host once, so the last pair of it counts.
        let mut union: HashMap<u8, u64> = one.into_iter().collect();
        for (n, end) in two.into_iter().collect::<HashMap<_, _>>() {
            let known = union.entry(n).or_insert(end);
            *known = end.max(*known);
        }
        let merged: HashMap<u8, u64> =
            held(&first).into_iter().map(|n| (n, first.host(addr(n)).unwrap().0.since(NOW).as_secs())).collect();
        prop_assert_eq!(merged, union);
    }

    #[test]
    fn sink_holds_what_the_book_holds(steps in proptest::collection::vec(step(), 0..40)) {
        let (mut book, mut now) = (book(), NOW);
        let mut sink: HashMap<IpAddr, Timestamp> = HashMap::new();
        for step in steps {
            go(&mut book, &step, &mut now);
            for (addr, until) in book.news(now).unwrap_or_default().hosts {
                match until {
                    Some(until) => sink.insert(addr, until),
                    None => sink.remove(&addr),
                };
            }
            let (told, kept): (HashSet<_>, HashSet<_>) = (sink.keys().collect(), book.hosts.keys().collect());
            prop_assert_eq!(told, kept);
            for (addr, host) in &book.hosts {
                let needed = host.needed(book.floor);
                prop_assert!(sink[addr] >= needed && sink[addr] <= needed.after(SLACK_MAX + LEASE + LIVE_MARGIN));
                prop_assert!(book.ends.contains(&(host.leaves, *addr)));
            }
            prop_assert_eq!(book.ends.len(), book.hosts.len());
            prop_assert_eq!(book.host_counts, [book.hosts.len(), 0]);
        }
    }

    #[test]
    fn nothing_leaves_before_its_end_but_withdrawn(steps in proptest::collection::vec(step(), 0..40)) {
        let (mut book, mut now) = (book(), NOW);
        for step in steps {
            let before: Vec<(u8, Timestamp)> =
                held(&book).into_iter().map(|n| (n, book.host(addr(n)).unwrap().0)).collect();
            let floor = book.floor;
            go(&mut book, &step, &mut now);
            for (n, end) in before {
                let is_held = book.hosts.contains_key(&addr(n));
                let may_leave = match &step {
                    Step::Whole(..) | Step::Withdrawn(..) => true,
                    Step::Renewed(..) | Step::Failed(_) => end <= now,
                    Step::Passes(_) => end < now && floor.is_none_or(|floor| floor <= now),
                };
                prop_assert!(is_held || may_leave, "{n} left {now} before {end}, by {step:?}");
            }
        }
    }
}
