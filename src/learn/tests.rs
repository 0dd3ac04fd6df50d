//! The book as a state machine, and the tasks around it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::book::{Admitted, Book};
use super::caps::TriggerKey;
use super::metrics::Metrics;
use super::{Confirm, Learner, Listing, Offer, Options, Outcome, Reason, Start, start};
use crate::catalogue::{AppId, Tag, TagApp};
use crate::clock::{Clock, Timestamp};
use crate::metrics::Registry;
use crate::name::Name;
use crate::prefix::Prefix;
use crate::set::{Event, Need, Since, StaticEntry};
use crate::source::Location;

pub(super) const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Makes a tag of one app.
pub(super) fn tag(app: &str, trigger: &str) -> Tag {
    let hit = TagApp { app: AppId::new(app), trigger: trigger.into(), location: Location::file(app) };
    Tag::new(vec![hit])
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Matches names by their last two labels: `x.zoom.test` is app `zoom` by trigger `zoom.test`, unless `not` says so.
pub(super) fn listing(not: &'static [&'static str]) -> Listing {
    Listing::new(Vec::new(), move |name| {
        let text = name.to_string();
        let trigger = text.rsplitn(3, '.').take(2).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(".");
        let app = trigger.split('.').next().unwrap().to_owned();
        (trigger.ends_with(".test") && !not.contains(&&*app)).then(|| tag(&app, &trigger))
    })
}

/// Public space to learn from.
pub(super) fn addr(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0800_0000 + n).into()
}

pub(super) fn after(secs: u64) -> Timestamp {
    START.after(Duration::from_secs(secs))
}

struct Bench {
    book: Book,
    registry: Registry,
}

impl Bench {
    fn new(options: Options) -> Self {
        let registry = Registry::new();
        let (book, first) = Book::new(options, listing(&[]), 1, None, START, (Metrics::new(&registry), &registry));
        first.confirm();
        Self { book, registry }
    }

    fn offer(&mut self, of: &str, addrs: &[u32], ttl_secs: u32, now: Timestamp) -> Outcome {
        let addresses: Vec<_> = addrs.iter().map(|n| (addr(*n), ttl_secs)).collect();
        let offer = Admitted {
            name: name(of),
            tag: listing(&[]).tag(&name(of)).unwrap(),
            address_count: addresses.len(),
            addresses,
            client: Some(Ipv4Addr::new(192, 0, 2, 1).into()),
            generation: 1,
            admission: Arc::clone(self.book.admission()),
        };
        let outcome = self.book.offer(offer, now);
        self.turn(now);
        outcome
    }

    fn turn(&mut self, now: Timestamp) {
        self.book.expire(now);
        self.book.publish(now).confirm();
    }

    fn addrs(&self) -> Vec<IpAddr> {
        self.book.draft().reader().snapshot().hosts().map(|host| host.addr()).collect()
    }

    fn serial(&self) -> u64 {
        self.book.draft().serial()
    }

    fn counts(&self, metric: &str) -> bool {
        let text = String::from_utf8(self.registry.render()).unwrap();
        text.lines().any(|line| line == metric)
    }
}

fn addrs(numbers: &[u32]) -> Vec<IpAddr> {
    numbers.iter().map(|n| addr(*n)).collect()
}

#[test]
fn sighting_ends_at_hold_plus_grace_and_hit_extends_it() {
    let mut bench = Bench::new(Options::default());
    assert_eq!(bench.offer("a.zoom.test", &[1], 60, START), Outcome::Programmed);
    let end = |bench: &Bench| bench.book.draft().host(addr(1)).unwrap().end();
    assert_eq!(end(&bench), after(900));
    bench.offer("a.zoom.test", &[1], 60, after(100));
    assert_eq!(end(&bench), after(1000));
    bench.offer("a.zoom.test", &[1], 3600, after(100));
    assert_eq!(end(&bench), after(4000));
    bench.offer("a.zoom.test", &[1], 5, after(200));
    assert_eq!(end(&bench), after(4000), "no offer shortens an end");
    assert_eq!(bench.book.draft().reader().snapshot().serial(), 1);
    bench.turn(after(3999));
    assert_eq!(bench.addrs(), addrs(&[1]));
    bench.turn(after(4000));
    assert_eq!(bench.addrs(), addrs(&[]));
}

#[test]
fn address_leaves_with_its_last_sighting() {
    let mut bench = Bench::new(Options::default());
    bench.offer("a.zoom.test", &[1], 60, START);
    bench.offer("b.zoom.test", &[1], 60, after(100));
    bench.turn(after(900));
    assert_eq!(bench.addrs(), addrs(&[1]));
    bench.turn(after(1000));
    assert_eq!(bench.addrs(), addrs(&[]));
    assert!(bench.book.triggers().is_empty(), "nothing is kept of names that are gone");
    assert!(bench.book.draft().records().is_empty());
}

fn small() -> Options {
    Options { max_total: 4, max_per_name: 3, max_per_trigger: 3, new_per_client_per_minute: 0, ..Options::default() }
}

#[test]
fn live_addresses_are_not_pushed_out() {
    let mut bench = Bench::new(small());
    assert_eq!(bench.offer("a.zoom.test", &[1, 2], 60, START), Outcome::Programmed);
    assert_eq!(bench.offer("a.webex.test", &[3, 4], 60, START), Outcome::Programmed);
    assert_eq!(bench.offer("a.teams.test", &[5], 60, after(60)), Outcome::Refused, "told until this very moment");
    assert_eq!(bench.addrs(), addrs(&[1, 2, 3, 4]));
    assert!(bench.counts(r#"greenlane_learn_refused_total{reason="max-total"} 1"#));
    assert_eq!(bench.offer("a.teams.test", &[5], 60, START.after(Duration::from_millis(60_001))), Outcome::Programmed);
    assert_eq!(bench.addrs().len(), 4);
    assert!(bench.counts("greenlane_learn_evicted_total 1"));
}

#[test]
fn longest_unasked_leaves_first() {
    let mut bench = Bench::new(small());
    bench.offer("a.zoom.test", &[1], 60, START);
    bench.offer("a.webex.test", &[2], 1, after(10));
    bench.offer("a.teams.test", &[3], 30, after(20));
    bench.offer("a.jabber.test", &[4], 30, after(5));
    // Told last, asked first: what counts is when it was asked.
    bench.offer("a.slack.test", &[5], 60, after(100));
    assert_eq!(bench.addrs(), addrs(&[2, 3, 4, 5]));
    bench.offer("a.jabber.test", &[4], 1, after(101));
    bench.offer("b.slack.test", &[6], 60, after(103));
    assert_eq!(bench.addrs(), addrs(&[3, 4, 5, 6]));
    bench.offer("c.slack.test", &[7], 60, after(104));
    assert_eq!(bench.addrs(), addrs(&[4, 5, 6, 7]));
    assert_eq!(bench.offer("d.slack.test", &[8], 60, after(105)), Outcome::Refused, "its trigger is full and told");
}

#[test]
fn caps_of_name_and_trigger_choose_among_their_own() {
    let mut bench = Bench::new(small());
    bench.offer("old.webex.test", &[9], 1, START);
    bench.offer("a.zoom.test", &[1], 1, after(1));
    bench.offer("a.zoom.test", &[2, 3], 60, after(2));
    assert_eq!(bench.offer("a.zoom.test", &[4], 60, after(10)), Outcome::Programmed);
    assert_eq!(bench.addrs(), addrs(&[2, 3, 4, 9]), "not the older address of another trigger");
    assert_eq!(bench.offer("b.zoom.test", &[5], 60, after(10)), Outcome::Refused);
    assert!(bench.counts(r#"greenlane_learn_refused_total{reason="max-per-trigger"} 1"#));
    assert_eq!(bench.offer("b.zoom.test", &[4], 60, after(10)), Outcome::Programmed, "an address that is there");
    assert_eq!(bench.addrs(), addrs(&[2, 3, 4, 9]));
}

#[test]
fn answer_larger_than_the_name_may_hold_is_refused_whole() {
    let mut bench = Bench::new(small());
    assert_eq!(bench.offer("a.zoom.test", &[1, 2, 3, 4], 60, START), Outcome::Refused);
    assert_eq!(bench.addrs(), addrs(&[]));
    assert!(bench.counts(r#"greenlane_learn_refused_total{reason="max-per-name"} 4"#));
}

#[test]
fn refused_answer_evicts_nobody() {
    let mut bench = Bench::new(small());
    bench.offer("a.zoom.test", &[1, 2], 1, START);
    bench.offer("a.webex.test", &[3, 4], 600, START);
    // Two could leave, three would have to.
    assert_eq!(bench.offer("a.teams.test", &[5, 6, 7], 60, after(10)), Outcome::Refused);
    assert_eq!(bench.addrs(), addrs(&[1, 2, 3, 4]));
    assert_eq!(bench.offer("a.teams.test", &[5, 6], 60, after(10)), Outcome::Programmed);
    assert_eq!(bench.addrs(), addrs(&[3, 4, 5, 6]));
}

#[test]
fn address_told_under_one_name_stays_for_both() {
    let mut bench = Bench::new(small());
    bench.offer("a.zoom.test", &[1, 2], 1, START);
    bench.offer("a.webex.test", &[1, 3, 4], 600, after(1));
    assert_eq!(bench.offer("a.teams.test", &[5], 60, after(10)), Outcome::Programmed);
    assert_eq!(bench.addrs(), addrs(&[1, 3, 4, 5]));
}

#[test]
fn sightings_of_one_address_are_bounded() {
    let mut bench = Bench::new(Options { new_per_client_per_minute: 0, ..Options::default() });
    for n in 0..512 {
        assert_eq!(bench.offer(&format!("n{n}.zoom.test"), &[1], 60, START), Outcome::Programmed);
    }
    assert_eq!(bench.offer("more.zoom.test", &[1], 60, after(1)), Outcome::Refused);
    assert_eq!(bench.offer("more.zoom.test", &[1], 60, after(61)), Outcome::Programmed);
    assert_eq!(bench.book.draft().host(addr(1)).unwrap().sightings().len(), 512);
}

#[test]
fn rate_refuses_new_sightings_and_renews_known_ones() {
    let mut bench = Bench::new(Options { new_per_client_per_minute: 2, ..Options::default() });
    assert_eq!(bench.offer("a.zoom.test", &[1, 2], 60, START), Outcome::Programmed);
    assert_eq!(bench.offer("a.zoom.test", &[1, 3], 60, after(10)), Outcome::Refused);
    assert_eq!(bench.book.draft().host(addr(1)).unwrap().end(), after(910));
    assert!(bench.counts(r#"greenlane_learn_refused_total{reason="client-rate"} 1"#));
    assert_eq!(bench.offer("a.zoom.test", &[1], 60, after(11)), Outcome::Programmed);
}

#[test]
fn reload_takes_out_what_is_listed_no_longer_as_one_serial() {
    let mut bench = Bench::new(Options::default());
    bench.offer("a.zoom.test", &[1, 2], 60, START);
    bench.offer("a.webex.test", &[2, 3], 60, START);
    let serial = bench.serial();
    let mut next = listing(&["zoom"]);
    next.statics = vec![StaticEntry { prefix: "198.51.100.0/24".parse().unwrap(), apps: [AppId::new("webex")].into() }];
    bench.book.reload(next, 2, None, Confirm::No, after(1));
    bench.turn(after(1));
    assert_eq!(bench.serial(), serial + 1);
    assert_eq!(bench.addrs(), addrs(&[2, 3]));
    let reader = bench.book.draft().reader();
    let Since::Delta(delta) = reader.since(reader.snapshot().session(), serial) else { panic!("one step") };
    let prefixes = |items: &[crate::set::Item]| items.iter().map(|item| item.prefix().to_string()).collect::<Vec<_>>();
    assert_eq!(prefixes(&delta.withdrawn), ["8.0.0.1/32"]);
    assert_eq!(prefixes(&delta.announced), ["8.0.0.2/32", "198.51.100.0/24"], "2 lost an app");
    assert_eq!(bench.offer("a.zoom.test", &[9], 60, after(2)), Outcome::Programmed);
    assert_eq!(bench.addrs(), addrs(&[2, 3]), "matched before the reload, listed no longer");
}

#[test]
fn reload_retags_and_keeps_the_times() {
    let mut bench = Bench::new(Options { max_per_trigger: 1, ..Options::default() });
    bench.offer("a.zoom.test", &[1], 60, START);
    bench.book.reload(Listing::new(Vec::new(), |_| Some(tag("new", "*.test"))), 2, None, Confirm::No, after(50));
    bench.turn(after(50));
    let host = bench.book.draft().host(addr(1)).unwrap().clone();
    let sighting = &host.sightings()[0];
    assert!(sighting.tag().has_app("new"));
    assert_eq!((sighting.first_seen(), sighting.last_seen(), sighting.end()), (START, START, after(900)));
    assert_eq!(bench.offer("b.zoom.test", &[2], 60, after(51)), Outcome::Refused, "counted under the new trigger");
    bench.turn(after(900));
    assert_eq!(bench.addrs(), addrs(&[]));
}

#[test]
fn reload_takes_out_what_is_admissible_no_longer() {
    let mut bench = Bench::new(Options::default());
    bench.offer("a.zoom.test", &[1, 2], 60, START);
    let stale = Arc::clone(bench.book.admission());
    let never: Vec<Prefix> = vec!["8.0.0.1".parse().unwrap()];
    bench.book.reload(listing(&[]), 2, Some(Options { never, ..Options::default() }), Confirm::No, after(1));
    bench.turn(after(1));
    assert_eq!(bench.addrs(), addrs(&[2]));
    let late = Admitted {
        name: name("a.zoom.test"),
        tag: tag("zoom", "zoom.test"),
        addresses: vec![(addr(1), 60), (addr(3), 60)],
        address_count: 2,
        client: None,
        generation: 2,
        admission: stale,
    };
    assert_eq!(bench.book.offer(late, after(2)), Outcome::Programmed);
    bench.turn(after(2));
    assert_eq!(bench.addrs(), addrs(&[2, 3]), "admitted by the old rules, refused by the new");
}

/// Something that happens to a book.
#[derive(Clone, Debug)]
enum Step {
    Offer { name: usize, first: u32, count: u32, ttl_secs: u32 },
    Wait { millis: u64 },
    Reload,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        6 => (0..6_usize, 0..14_u32, 1..4_u32, prop_oneof![Just(0_u32), 1..30_u32])
            .prop_map(|(name, first, count, ttl_secs)| Step::Offer { name, first, count, ttl_secs }),
        4 => (1..20_000_u64).prop_map(|millis| Step::Wait { millis }),
        1 => Just(Step::Reload),
    ];
    prop::collection::vec(one, 1..80)
}

const NAMES: [&str; 6] = ["a.zoom.test", "b.zoom.test", "a.webex.test", "b.webex.test", "a.teams.test", "teams.test"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is offered and however time passes: what a client was told stays until its TTL has ended, nothing
    /// stays a second beyond the longest end it was given, no cap is passed, and the counts are what a scan finds.
    #[test]
    fn never_early_never_overstayed_never_over_a_cap(steps in steps(), hold in 0..20_u64, grace in 0..5_u64) {
        let options = Options {
            min_hold: Duration::from_secs(hold),
            grace: Duration::from_secs(grace),
            max_total: 10,
            max_per_name: 4,
            max_per_trigger: 6,
            ..small()
        };
        let mut bench = Bench::new(options.clone());
        let reader = bench.book.draft().reader();
        let mut now = START;
        let mut told: HashMap<(usize, u32), Timestamp> = HashMap::new();
        let mut ends: HashMap<(Name, IpAddr), Timestamp> = HashMap::new();
        let mut generation = 1;
        for step in steps {
            match step {
                Step::Wait { millis } => now = now.after(Duration::from_millis(millis)),
                Step::Reload => {
                    generation += 1;
                    bench.book.reload(listing(&[]), generation, None, Confirm::No, now);
                }
                Step::Offer { name, first, count, ttl_secs } => {
                    let numbers: Vec<u32> = (first..first + count).collect();
                    // Half of the way, as the handle does it: what is known is extended without the writer.
                    let snapshot = reader.snapshot();
                    let need = Need::new(now, Duration::from_secs(ttl_secs.into()), options.min_hold, options.grace);
                    let known = |n: &u32| {
                        let held = snapshot.host(addr(*n)).and_then(|host| host.sighting(&NAMES[name].parse().unwrap()));
                        held.is_some_and(|one| one.extend(&need) != crate::set::Extended::Short)
                    };
                    let rest: Vec<u32> = numbers.iter().copied().filter(|n| !known(n)).collect();
                    let outcome = if rest.is_empty() {
                        Outcome::Programmed
                    } else {
                        bench.offer(NAMES[name], &rest, ttl_secs, now)
                    };
                    for n in &numbers {
                        // A known address of an answer that was refused is renewed too.
                        let held = ends.entry((NAMES[name].parse().unwrap(), addr(*n))).or_default();
                        *held = (*held).max(need.end);
                    }
                    let promised = |n: &u32| outcome == Outcome::Programmed || !rest.contains(n);
                    for n in numbers.into_iter().filter(promised) {
                        let held = told.entry((name, n)).or_default();
                        *held = (*held).max(need.told_until);
                    }
                }
            }
            bench.turn(now);
            let found = reader.snapshot();
            for (&(name, n), &told_until) in &told {
                let held = found.host(addr(n)).and_then(|host| host.sighting(&NAMES[name].parse().unwrap()));
                prop_assert!(told_until <= now || held.is_some(), "{} lost {} at {now}", NAMES[name], addr(n));
            }
            for host in found.hosts() {
                prop_assert!(host.end() > now);
                for one in host.sightings() {
                    prop_assert!(one.end() <= ends[&(one.name().clone(), one.addr())], "longer than anything needs");
                    prop_assert!(one.told_until() <= one.end() && one.end() <= one.granted());
                }
            }
            let draft = bench.book.draft();
            prop_assert!(draft.host_count() <= options.max_total);
            let mut under: HashMap<String, usize> = HashMap::new();
            for host in draft.hosts() {
                let mut triggers: Vec<_> =
                    host.sightings().iter().map(|one| one.tag().primary().trigger.to_string()).collect();
                triggers.sort();
                triggers.dedup();
                triggers.into_iter().for_each(|trigger| *under.entry(trigger).or_default() += 1);
            }
            for (trigger, count) in &under {
                prop_assert!(*count <= options.max_per_trigger, "{trigger}");
            }
            for text in NAMES {
                prop_assert!(draft.address_count(&name(text)) <= options.max_per_name);
                let trigger = listing(&[]).tag(&name(text)).unwrap();
                let counted = bench.book.triggers().address_count(&TriggerKey::new(trigger.primary()));
                prop_assert_eq!(counted, under.get(&*trigger.primary().trigger).copied().unwrap_or(0));
            }
        }
    }
}

#[test]
fn flood_at_the_cap_stays_cheap() {
    // Thirty thousand offers at a cap of five thousand: with a scan for each this would take minutes.
    let options =
        Options { max_total: 5000, max_per_trigger: 5000, new_per_client_per_minute: 0, ..Options::default() };
    let mut bench = Bench::new(options);
    for n in 0..30_000_u32 {
        let outcome = bench.offer(&format!("n{n}.zoom.test"), &[n], 1, START.after(Duration::from_millis(n.into())));
        assert_eq!(outcome, Outcome::Programmed);
    }
    assert_eq!(bench.book.draft().host_count(), 5000);
}

pub(super) fn offer(of: &str, addrs: &[(&str, u32)]) -> Offer {
    Offer {
        name: name(of),
        tag: listing(&[]).tag(&name(of)).unwrap(),
        addresses: addrs.iter().map(|(addr, ttl)| (addr.parse().unwrap(), *ttl)).collect(),
        targets: Vec::new(),
        octets: 100,
        client: None,
        generation: 1,
    }
}

fn running(options: Options) -> (Learner, Clock, Registry, tokio::task::JoinHandle<()>) {
    let (clock, registry) = (Clock::manual(START), Registry::new());
    let (learner, writer) = start(Start::new(options, listing(&[]), 1), clock.clone(), &registry);
    (learner, clock, registry, tokio::spawn(writer.run()))
}

/// Lets other tasks run until so many offers wait.
async fn until_queued(learner: &Learner, count: usize) {
    while learner.offers.len() < count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn offer_is_in_the_set_when_it_returns() {
    let (learner, clock, ..) = running(Options::default());
    let now = clock.now();
    let given = offer("a.zoom.test", &[("8.8.8.8", 60), ("10.0.0.1", 60), ("2620:fe::fe", 30), ("8.8.8.8", 90)]);
    assert_eq!(learner.offer(given, now).await, Outcome::Programmed);
    let snapshot = learner.reader().snapshot();
    assert_eq!(snapshot.serial(), 1);
    assert_eq!(snapshot.hosts().count(), 2);
    let held = learner.reader().sightings_of(&name("a.zoom.test"));
    assert_eq!(held.len(), 2);
    let told = held.iter().find(|one| one.addr().is_ipv4()).unwrap().told_until();
    assert_eq!(told, now.after(Duration::from_secs(90)), "of two TTLs the longer");
    assert_eq!(learner.admits("10.0.0.1".parse().unwrap()).map_err(Reason::as_str), Err("special-purpose"));
}

#[tokio::test]
async fn known_addresses_need_no_writer() {
    let (learner, clock, _, task) = running(Options::default());
    let given = offer("a.zoom.test", &[("8.8.8.8", 60)]);
    assert_eq!(learner.offer(given.clone(), clock.now()).await, Outcome::Programmed);
    let mut events = learner.reader().subscribe();
    task.abort();
    let _ = task.await;
    clock.advance(Duration::from_secs(100));
    assert_eq!(learner.offer(given.clone(), clock.now()).await, Outcome::Programmed);
    let expected = [("8.8.8.8".parse().unwrap(), after(1000))];
    assert_eq!(events.next().await, Event::Renewed(expected.into()));
    clock.advance(Duration::from_secs(501));
    assert_eq!(learner.offer(given, clock.now()).await, Outcome::Late, "beyond what was granted");
}

#[tokio::test(start_paused = true)]
async fn answer_waits_no_longer_than_the_hold_and_is_learned_all_the_same() {
    let clock = Clock::manual(START);
    let (learner, writer) = start(Start::new(Options::default(), listing(&[]), 1), clock.clone(), &Registry::new());
    let asked = tokio::time::Instant::now();
    assert_eq!(learner.offer(offer("a.zoom.test", &[("8.8.8.8", 60)]), START).await, Outcome::Late);
    assert_eq!(asked.elapsed().as_millis() / 10, 10);
    tokio::spawn(writer.run());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(learner.reader().snapshot().hosts().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn answers_beyond_the_bound_go_out_at_once() {
    let (learner, writer) =
        start(Start::new(Options::default(), listing(&[]), 1), Clock::manual(START), &Registry::new());
    let waiting: Vec<_> = (0..super::queue::QUEUE_LEN_MAX)
        .map(|n| {
            let learner = learner.clone();
            tokio::spawn(
                async move { learner.offer(offer(&format!("n{n}.zoom.test"), &[("8.8.8.8", 60)]), START).await },
            )
        })
        .collect();
    until_queued(&learner, super::queue::QUEUE_LEN_MAX).await;
    let asked = tokio::time::Instant::now();
    assert_eq!(learner.offer(offer("a.zoom.test", &[("8.8.8.8", 60)]), START).await, Outcome::Late);
    assert_eq!(asked.elapsed(), Duration::ZERO);
    drop(writer);
    for one in waiting {
        assert_eq!(one.await.unwrap(), Outcome::Late);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_offers_make_one_serial() {
    let (learner, writer) =
        start(Start::new(Options::default(), listing(&[]), 1), Clock::manual(START), &Registry::new());
    let waiting: Vec<_> = (0..100)
        .map(|n| {
            let learner = learner.clone();
            tokio::spawn(async move {
                learner.offer(offer(&format!("n{n}.zoom.test"), &[(&format!("8.8.8.{n}"), 60)]), START).await
            })
        })
        .collect();
    until_queued(&learner, 100).await;
    tokio::spawn(writer.run());
    for one in waiting {
        assert_eq!(one.await.unwrap(), Outcome::Programmed);
    }
    assert_eq!(learner.reader().snapshot().serial(), 1);
    assert_eq!(learner.reader().snapshot().hosts().count(), 100);
}

#[tokio::test(start_paused = true)]
async fn address_is_gone_within_a_second_of_its_end() {
    let (learner, clock, ..) = running(Options::default());
    learner.offer(offer("a.zoom.test", &[("8.8.8.8", 60)]), START).await;
    let step = async |span: Duration| {
        clock.advance(span);
        tokio::time::sleep(Duration::from_millis(600)).await;
        learner.reader().snapshot().hosts().count()
    };
    assert_eq!(step(Duration::from_millis(899_999)).await, 1);
    assert_eq!(step(Duration::from_millis(1)).await, 0);
}

#[tokio::test]
async fn writer_ends_with_the_last_handle() {
    let (learner, _, _, task) = running(Options::default());
    let twin = learner.clone();
    drop(learner);
    assert!(!task.is_finished());
    drop(twin);
    task.await.unwrap();
}

#[tokio::test]
async fn targets_are_followed_until_a_reload_says_otherwise() {
    let (learner, ..) = running(Options::default());
    let mut given = offer("a.zoom.test", &[]);
    given.targets = vec![(name("cdn.example"), 60)];
    learner.offer(given, START).await;
    let (listed, tag) = learner.followed(&name("cdn.example"), after(59)).unwrap();
    assert_eq!((listed, tag.has_app("zoom")), (name("a.zoom.test"), true));
    assert!(learner.followed(&name("cdn.example"), after(60)).is_none());
    learner.reload(listing(&["zoom"]), 2, None, Confirm::Explicit).await;
    assert!(learner.followed(&name("cdn.example"), START).is_none());
}

#[tokio::test]
async fn reload_returns_when_it_is_published() {
    let (learner, clock, registry, _) = running(Options::default());
    learner.offer(offer("a.zoom.test", &[("8.8.8.8", 60)]), clock.now()).await;
    let options = Options { never: vec!["9.9.9.9".parse().unwrap()], ..Options::default() };
    learner.reload(listing(&["zoom"]), 2, Some(options), Confirm::No).await;
    assert_eq!(learner.reader().snapshot().hosts().count(), 0);
    assert_eq!(learner.offer(offer("a.webex.test", &[("9.9.9.9", 60)]), clock.now()).await, Outcome::Programmed);
    assert_eq!(learner.reader().snapshot().hosts().count(), 0);
    let text = String::from_utf8(registry.render()).unwrap();
    assert!(text.contains(r#"greenlane_learn_refused_total{reason="never"} 1"#), "{text}");
    assert!(text.contains(r#"greenlane_learn_offers_total{outcome="programmed"} 2"#));
}
