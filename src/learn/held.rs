//! Tests of the way to store and sinks, with puppets in their place; of restoring, and of lists that shrink.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::tests::{START, addr, after, listing, name, offer, tag};
use super::{Confirm, Learner, Listing, Options, Outcome, Start, start};
use crate::catalogue::AppId;
use crate::clock::{Clock, Timestamp};
use crate::metrics::Registry;
use crate::set::outlet::{Applied, Intake, Kept, Order, Outlet, Restored, SightingChange, State, outlet};
use crate::set::{Joins, Need, Session, StaticEntry};

/// How a puppet treats an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Hold,
    /// Holds it so many milliseconds later, and takes others meanwhile.
    After(u64),
    Fail,
    Drop,
    /// Keeps it and says nothing.
    Hang,
    /// Ends.
    Die,
}

/// What a puppet holds: what it has answered as held.
#[derive(Debug, Default)]
struct Holding {
    hosts: HashMap<IpAddr, Timestamp>,
    sightings: HashMap<(IpAddr, String), Kept>,
    statics: usize,
    order_count: usize,
    whole_count: usize,
    is_complete: bool,
}

impl Holding {
    fn apply(&mut self, order: &Order) {
        let change = &order.change;
        self.order_count += 1;
        if change.whole {
            self.whole_count += 1;
            self.hosts.clear();
            self.sightings.clear();
        }
        self.is_complete = change.last;
        self.statics = change.statics.as_ref().map_or(self.statics, |statics| statics.len());
        assert!(change.hosts.is_sorted_by(|a, b| a.0 < b.0), "sorted, each once");
        for (addr, until) in &change.hosts {
            match until {
                Some(until) => drop(self.hosts.insert(*addr, *until)),
                None => drop(self.hosts.remove(addr)),
            }
        }
        for step in &change.sightings {
            match step {
                SightingChange::Put(kept) => {
                    assert!(kept.end <= kept.granted);
                    self.sightings.insert((kept.addr, kept.name.to_string()), kept.clone());
                }
                SightingChange::Gone { addr, name } => drop(self.sightings.remove(&(*addr, name.to_string()))),
            }
        }
    }
}

struct Puppet {
    holding: Arc<Mutex<Holding>>,
    act: Arc<Mutex<Act>>,
    health: crate::set::outlet::Health,
}

impl Puppet {
    fn spawn(mut intake: Intake) -> Self {
        let (holding, act) = (Arc::new(Mutex::new(Holding::default())), Arc::new(Mutex::new(Act::Hold)));
        let health = intake.health();
        let (held, acting) = (Arc::clone(&holding), Arc::clone(&act));
        tokio::spawn(async move {
            let mut hung = Vec::new();
            while let Some(order) = intake.next().await {
                let act = *acting.lock();
                match act {
                    Act::Hold => {
                        held.lock().apply(&order);
                        order.done(Applied::Held);
                    }
                    Act::After(millis) => {
                        let held = Arc::clone(&held);
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_millis(millis)).await;
                            held.lock().apply(&order);
                            order.done(Applied::Held);
                        });
                    }
                    Act::Fail => order.done(Applied::Failed),
                    Act::Drop => drop(order),
                    Act::Hang => hung.push(order),
                    Act::Die => return,
                }
                // What was kept back is done when it acts again, in its order.
                if act == Act::Hold {
                    for order in hung.drain(..) {
                        order.done(Applied::Failed);
                    }
                }
            }
        });
        Self { holding, act, health }
    }

    fn act(&self, act: Act) {
        *self.act.lock() = act;
    }

    fn until(&self, addr: IpAddr) -> Option<Timestamp> {
        self.holding.lock().hosts.get(&addr).copied()
    }

    fn orders(&self) -> usize {
        self.holding.lock().order_count
    }
}

struct Stage {
    learner: Learner,
    clock: Clock,
    registry: Registry,
    puppets: Vec<Puppet>,
    task: JoinHandle<()>,
}

impl Stage {
    async fn new(names: &[&'static str]) -> Self {
        Self::with(names, Options::default(), listing(&[]), None).await
    }

    async fn with(names: &[&'static str], options: Options, listing: Listing, restored: Option<Restored>) -> Self {
        let (clock, registry) = (Clock::manual(START), Registry::new());
        let (outlets, intakes): (Vec<Outlet>, Vec<Intake>) = names.iter().map(|name| outlet(name)).unzip();
        let puppets = intakes.into_iter().map(Puppet::spawn).collect();
        let start_with = Start { outlets, restored, ..Start::new(options, listing, 1) };
        let (learner, writer) = start(start_with, clock.clone(), &registry);
        let task = tokio::spawn(writer.run());
        learner.begun().await;
        Self { learner, clock, registry, puppets, task }
    }

    /// The same, and followers may join.
    async fn with_followers(names: &[&'static str], does_wait: bool) -> (Self, Joins) {
        let (clock, registry, joins) = (Clock::manual(START), Registry::new(), Joins::default());
        let (outlets, intakes): (Vec<Outlet>, Vec<Intake>) = names.iter().map(|name| outlet(name)).unzip();
        let puppets = intakes.into_iter().map(Puppet::spawn).collect();
        let options = Options { hold_for_followers: does_wait, ..Options::default() };
        let start_with = Start { outlets, joins: joins.clone(), ..Start::new(options, listing(&[]), 1) };
        let (learner, writer) = start(start_with, clock.clone(), &registry);
        let task = tokio::spawn(writer.run());
        learner.begun().await;
        (Self { learner, clock, registry, puppets, task }, joins)
    }

    async fn offer(&self, name: &str, addrs: &[&str]) -> Outcome {
        let addrs: Vec<(&str, u32)> = addrs.iter().map(|addr| (*addr, 60)).collect();
        self.learner.offer(offer(name, &addrs), self.clock.now()).await
    }

    /// Lets time pass on both clocks.
    async fn pass(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    fn metric(&self, line: &str) -> bool {
        let text = String::from_utf8(self.registry.render()).unwrap();
        text.lines().any(|found| found == line)
    }

    fn addrs(&self) -> Vec<String> {
        self.learner.reader().snapshot().hosts().map(|host| host.addr().to_string()).collect()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn answer_is_let_go_when_every_sink_holds_its_addresses() {
    let stage = Stage::new(&["store", "nftables"]).await;
    stage.puppets[1].act(Act::After(30));
    let asked = Instant::now();
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8", "2620:fe::fe"]).await, Outcome::Programmed);
    assert_eq!(asked.elapsed().as_millis(), 30, "the slower one counts");
    for puppet in &stage.puppets {
        assert_eq!(puppet.until(ip("8.8.8.8")), Some(after(1500)));
        assert_eq!(puppet.until(ip("2620:fe::fe")), Some(after(1500)));
        assert_eq!(puppet.holding.lock().sightings.len(), 2);
    }
    let orders = stage.puppets[1].orders();
    let asked = Instant::now();
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Programmed);
    assert_eq!((asked.elapsed(), stage.puppets[1].orders()), (Duration::ZERO, orders), "known, and free");
}

#[tokio::test(start_paused = true)]
async fn second_answer_does_not_overtake_the_first() {
    let stage = Stage::new(&["nftables"]).await;
    stage.puppets[0].act(Act::After(40));
    let asked = Instant::now();
    let first = stage.offer("a.zoom.test", &["8.8.8.8"]);
    let second = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let outcome = stage.offer("a.zoom.test", &["8.8.8.8"]).await;
        (outcome, asked.elapsed().as_millis())
    };
    let orders = stage.puppets[0].orders();
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first, second), (Outcome::Programmed, (Outcome::Programmed, 40)));
    assert_eq!(stage.puppets[0].orders(), orders + 1, "and makes no second order");
}

#[tokio::test(start_paused = true)]
async fn new_name_at_a_held_address_waits_for_the_store_alone() {
    let stage = Stage::new(&["store"]).await;
    stage.offer("a.zoom.test", &["8.8.8.8"]).await;
    stage.offer("b.zoom.test", &["8.8.8.8"]).await;
    let holding = stage.puppets[0].holding.lock();
    assert_eq!(holding.sightings.len(), 2);
    assert_eq!(holding.hosts[&ip("8.8.8.8")], after(1500));
}

#[tokio::test(start_paused = true)]
async fn hung_sink_delays_no_longer_than_the_hold_and_then_nobody() {
    let stage = Stage::new(&["store", "nftables"]).await;
    stage.puppets[1].act(Act::Hang);
    let asked = Instant::now();
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Late);
    assert_eq!(asked.elapsed().as_millis() / 10, 10);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(stage.metric(r#"greenlane_learn_sink_late_total{sink="nftables"} 1"#));
    assert!(stage.metric(r#"greenlane_learn_sink_waited{sink="nftables"} 0"#));
    let asked = Instant::now();
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Programmed);
    assert_eq!(stage.offer("b.zoom.test", &["8.8.4.4"]).await, Outcome::Programmed);
    assert_eq!(asked.elapsed(), Duration::ZERO);
    assert_eq!(stage.puppets[0].until(ip("8.8.4.4")), Some(after(1500)), "the store is waited for");
}

#[tokio::test(start_paused = true)]
async fn sink_that_keeps_up_again_is_waited_for_again() {
    let stage = Stage::new(&["nftables"]).await;
    stage.puppets[0].act(Act::After(150));
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Late);
    stage.pass(100).await;
    assert_eq!(stage.puppets[0].until(ip("8.8.8.8")), Some(after(1500)));
    stage.puppets[0].act(Act::Hold);
    // Three probes, a quarter of a second apart.
    for _ in 0..4 {
        stage.pass(250).await;
    }
    stage.puppets[0].act(Act::After(20));
    let asked = Instant::now();
    assert_eq!(stage.offer("b.zoom.test", &["8.8.4.4"]).await, Outcome::Programmed);
    assert_eq!(asked.elapsed().as_millis(), 20);
    assert!(stage.metric(r#"greenlane_learn_sink_waited{sink="nftables"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn sink_that_says_it_is_down_is_not_waited_for() {
    let stage = Stage::new(&["nftables"]).await;
    stage.puppets[0].act(Act::Hang);
    stage.puppets[0].health.set(State::Down);
    let asked = Instant::now();
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Programmed);
    assert_eq!(asked.elapsed(), Duration::ZERO);
    // It goes down while an answer waits for it.
    stage.puppets[0].health.set(State::Up);
    let health = stage.puppets[0].health.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        health.set(State::Down);
    });
    assert_eq!(stage.offer("b.zoom.test", &["8.8.4.4"]).await, Outcome::Late);
    assert_eq!(asked.elapsed().as_millis(), 10);
}

#[tokio::test(start_paused = true)]
async fn failed_change_makes_late_answers_and_is_asked_for_again() {
    let stage = Stage::new(&["nftables"]).await;
    for act in [Act::Fail, Act::Drop] {
        stage.puppets[0].act(act);
        assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Late);
    }
    assert_eq!(stage.puppets[0].until(ip("8.8.8.8")), None);
    stage.puppets[0].act(Act::Hold);
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Programmed);
    assert_eq!(stage.puppets[0].until(ip("8.8.8.8")), Some(after(1500)));
    assert!(stage.metric(r#"greenlane_learn_sink_failures_total{sink="nftables"} 2"#));
}

#[tokio::test(start_paused = true)]
async fn sink_that_dies_is_forgotten() {
    let stage = Stage::new(&["store", "nftables"]).await;
    stage.puppets[1].act(Act::Die);
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Late, "it died with the order");
    let asked = Instant::now();
    assert_eq!(stage.offer("b.zoom.test", &["8.8.4.4"]).await, Outcome::Programmed);
    assert_eq!(asked.elapsed(), Duration::ZERO);
    assert!(!stage.task.is_finished());
}

#[tokio::test(start_paused = true)]
async fn sink_that_left_orders_lying_gets_the_whole_set() {
    let (way, mut intake) = outlet("lazy");
    let start_with = Start { outlets: vec![way], ..Start::new(Options::default(), listing(&[]), 1) };
    let (learner, writer) = start(start_with, Clock::manual(START), &Registry::new());
    tokio::spawn(writer.run());
    intake.next().await.unwrap().done(Applied::Held);
    learner.begun().await;
    // It takes none from now on.
    for n in 0..80 {
        let given = offer(&format!("n{n}.zoom.test"), &[(&format!("8.8.8.{n}"), 60)]);
        learner.offer(given, START).await;
    }
    assert_eq!(learner.reader().snapshot().hosts().count(), 80);
    let mut holding = Holding::default();
    while holding.hosts.len() < 80 {
        let order = intake.next().await.unwrap();
        holding.apply(&order);
        order.done(Applied::Held);
    }
    assert_eq!(holding.whole_count, 1);
}

/// Has a puppet join as a follower that holds what it began with.
async fn join(joins: &Joins) -> Puppet {
    let (outlet, intake) = outlet("followers");
    joins.join(outlet, "a follower".to_owned());
    let puppet = Puppet::spawn(intake);
    tokio::time::sleep(Duration::from_millis(1)).await;
    puppet
}

#[tokio::test(start_paused = true)]
async fn answer_waits_for_every_follower_that_acknowledges() {
    // With and without anybody else who holds the set.
    for local in [&["nftables"][..], &[]] {
        let (stage, joins) = Stage::with_followers(local, true).await;
        let (near, far) = (join(&joins).await, join(&joins).await);
        assert!(stage.metric("greenlane_learn_followers_waited 2"), "seen before anything else happens");
        near.act(Act::After(5));
        far.act(Act::After(30));
        let asked = Instant::now();
        assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Programmed);
        assert_eq!(asked.elapsed().as_millis(), 30);
        assert_eq!((near.orders(), far.orders(), far.holding.lock().whole_count), (1, 1, 0), "never the whole set");
        assert!(stage.metric("greenlane_learn_followers 2") && stage.metric("greenlane_learn_followers_waited 2"));
        // Known now; and a later end than was granted is waited for, too.
        let asked = Instant::now();
        assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Programmed);
        assert_eq!(asked.elapsed(), Duration::ZERO);
        stage.pass(700_000).await;
        let asked = Instant::now();
        assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Programmed);
        assert_eq!(asked.elapsed().as_millis(), 30);
        assert!(stage.metric("greenlane_learn_ack_seconds_count 4"));
    }
}

#[tokio::test(start_paused = true)]
async fn follower_that_is_not_up_or_not_wanted_costs_nothing() {
    let (stage, joins) = Stage::with_followers(&["nftables"], true).await;
    let follower = join(&joins).await;
    follower.act(Act::Hang);
    follower.health.set(State::Down);
    let asked = Instant::now();
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Programmed);
    assert_eq!((asked.elapsed(), follower.orders()), (Duration::ZERO, 0));
    assert!(stage.metric("greenlane_learn_followers 1") && stage.metric("greenlane_learn_followers_waited 0"));

    let (stage, joins) = Stage::with_followers(&["nftables"], false).await;
    let follower = join(&joins).await;
    follower.act(Act::After(30));
    let asked = Instant::now();
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Programmed);
    assert_eq!(asked.elapsed(), Duration::ZERO);
    // A reload says otherwise.
    let options = Options { hold_for_followers: true, ..Options::default() };
    stage.learner.reload(listing(&[]), 2, Some(options), Confirm::No).await;
    let (asked, orders) = (Instant::now(), follower.orders());
    assert_eq!(stage.offer("b.zoom.test", &["8.8.4.4"]).await, Outcome::Programmed);
    assert_eq!((asked.elapsed().as_millis(), follower.orders()), (30, orders + 1));
}

#[tokio::test(start_paused = true)]
async fn dead_follower_costs_one_hold_and_one_that_leaves_none() {
    let (stage, joins) = Stage::with_followers(&["nftables"], true).await;
    let follower = join(&joins).await;
    follower.act(Act::Hang);
    let asked = Instant::now();
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Late);
    assert_eq!(asked.elapsed().as_millis() / 10, 10);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(stage.metric(r#"greenlane_learn_sink_late_total{sink="followers"} 1"#));
    let asked = Instant::now();
    for n in 0..100 {
        let addr = format!("8.8.4.{n}");
        assert_eq!(stage.offer(&format!("n{n}.zoom.test"), &[&addr]).await, Outcome::Programmed);
    }
    assert_eq!(
        (asked.elapsed(), stage.offer("a.zoom.test", &["8.8.8.8"]).await),
        (Duration::ZERO, Outcome::Programmed)
    );
    stage.pass(10_000).await;
    assert!(follower.orders() <= 1, "no order is added to one that does not answer");

    // Another is waited for all the while; it leaves with an order in its hands.
    let other = join(&joins).await;
    other.act(Act::After(10));
    let asked = Instant::now();
    assert_eq!(stage.offer("b.zoom.test", &["9.9.9.9"]).await, Outcome::Programmed);
    assert_eq!(asked.elapsed().as_millis(), 10);
    other.act(Act::Die);
    assert_eq!(stage.offer("c.zoom.test", &["9.9.9.8"]).await, Outcome::Late);
    assert_eq!(stage.offer("c.zoom.test", &["9.9.9.8"]).await, Outcome::Programmed);
    assert_eq!(asked.elapsed().as_millis(), 10);
    assert!(stage.metric("greenlane_learn_followers 1"));
}

#[tokio::test(start_paused = true)]
async fn follower_that_keeps_up_again_is_waited_for_again() {
    let (stage, joins) = Stage::with_followers(&["nftables"], true).await;
    let follower = join(&joins).await;
    follower.act(Act::After(150));
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Late);
    follower.act(Act::Hold);
    for _ in 0..5 {
        stage.pass(250).await;
    }
    follower.act(Act::After(20));
    let asked = Instant::now();
    assert_eq!(stage.offer("b.zoom.test", &["8.8.4.4"]).await, Outcome::Programmed);
    assert_eq!(asked.elapsed().as_millis(), 20);
}

#[tokio::test(start_paused = true)]
async fn closing_does_not_wait_for_followers() {
    let (stage, joins) = Stage::with_followers(&["store"], true).await;
    let follower = join(&joins).await;
    follower.act(Act::Hang);
    let asked = Instant::now();
    stage.learner.close().await;
    assert_eq!((asked.elapsed(), follower.orders()), (Duration::ZERO, 0));
}

#[tokio::test(start_paused = true)]
async fn ends_and_renewals_are_told() {
    let stage = Stage::new(&["nftables"]).await;
    stage.offer("a.zoom.test", &["8.8.8.8"]).await;
    stage.pass(700_000).await;
    assert_eq!(stage.offer("a.zoom.test", &["8.8.8.8"]).await, Outcome::Programmed, "beyond what was granted");
    assert_eq!(stage.puppets[0].until(ip("8.8.8.8")), Some(after(2200)));
    stage.pass(899_999).await;
    assert_eq!(stage.puppets[0].holding.lock().hosts.len(), 1);
    stage.pass(1).await;
    let holding = stage.puppets[0].holding.lock();
    assert_eq!((holding.hosts.len(), holding.sightings.len()), (0, 0), "withdrawn on time, not when the grant ends");
}

#[tokio::test(start_paused = true)]
async fn statics_are_told_at_start_and_when_they_change() {
    let mut first = listing(&[]);
    first.statics = statics(3);
    let stage = Stage::with(&["nftables"], Options::default(), first, None).await;
    assert_eq!(stage.puppets[0].holding.lock().statics, 3);
    let mut next = listing(&[]);
    next.statics = statics(2);
    stage.learner.reload(next, 2, None, Confirm::No).await;
    assert_eq!(stage.puppets[0].holding.lock().statics, 2);
    let orders = stage.puppets[0].orders();
    let mut same = listing(&[]);
    same.statics = statics(2);
    stage.learner.reload(same, 3, None, Confirm::No).await;
    assert!(stage.puppets[0].orders() <= orders + 1);
}

#[tokio::test(start_paused = true)]
async fn closing_tells_the_ends_of_now() {
    let stage = Stage::new(&["store"]).await;
    stage.offer("a.zoom.test", &["8.8.8.8"]).await;
    stage.pass(100_000).await;
    stage.offer("a.zoom.test", &["8.8.8.8"]).await;
    assert_eq!(kept(&stage, "a.zoom.test", "8.8.8.8").end, after(900), "extended without a word");
    stage.learner.close().await;
    assert!(stage.puppets[0].holding.lock().is_complete);
    assert_eq!(kept(&stage, "a.zoom.test", "8.8.8.8").end, after(1000));
    assert_eq!(stage.offer("b.zoom.test", &["8.8.4.4"]).await, Outcome::Late);
    stage.task.await.unwrap();
}

fn kept(stage: &Stage, of: &str, addr: &str) -> Kept {
    stage.puppets[0].holding.lock().sightings[&(ip(addr), name(of).to_string())].clone()
}

fn statics(count: u8) -> Vec<StaticEntry> {
    let prefix = |n| format!("198.51.{n}.0/24").parse().unwrap();
    (0..count).map(|n| StaticEntry { prefix: prefix(n), apps: [AppId::new("zoom")].into() }).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Offer { name: usize, first: u32, count: u32 },
    Act { sink: usize, act: Act },
    State { sink: usize, state: State },
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let act = prop_oneof![
        4 => Just(Act::Hold),
        3 => (0..160_u64).prop_map(Act::After),
        1 => Just(Act::Fail),
        1 => Just(Act::Drop),
        1 => Just(Act::Hang),
    ];
    let state = prop_oneof![3 => Just(State::Up), 1 => Just(State::Down), 1 => Just(State::Slow)];
    let one = prop_oneof![
        8 => (0..4_usize, 0..10_u32, 1..4_u32).prop_map(|(name, first, count)| Step::Offer { name, first, count }),
        3 => (0..2_usize, act).prop_map(|(sink, act)| Step::Act { sink, act }),
        1 => (0..2_usize, state).prop_map(|(sink, state)| Step::State { sink, state }),
        4 => prop_oneof![0..300_u64, 0..900_000_u64].prop_map(Step::Pass),
    ];
    prop::collection::vec(one, 1..50)
}

const NAMES: [&str; 4] = ["a.zoom.test", "b.zoom.test", "a.webex.test", "b.webex.test"];

/// Offers and checks: an answer waits no longer than the hold, and one that is programmed is held, for as long as it
/// needs, by every sink that was always waited for.
async fn check_offer(stage: &Stage, of: usize, numbers: Vec<u32>, was_away: &[bool]) -> Result<(), TestCaseError> {
    let texts: Vec<String> = numbers.iter().map(|n| addr(*n).to_string()).collect();
    let now = stage.clock.now();
    let asked = Instant::now();
    let outcome = stage.offer(NAMES[of], &texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
    // The timer of tokio counts whole milliseconds.
    prop_assert!(asked.elapsed() <= Duration::from_millis(101), "{:?}", asked.elapsed());
    if outcome != Outcome::Programmed {
        return Ok(());
    }
    let need = Need::new(now, Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(300));
    for (sink, _) in stage.puppets.iter().zip(was_away).filter(|(_, was_away)| !**was_away) {
        let holding = sink.holding.lock();
        for n in &numbers {
            let until = holding.hosts.get(&addr(*n));
            prop_assert!(
                until.is_some_and(|until| *until >= need.end),
                "{} until {until:?}, not {}",
                addr(*n),
                need.end
            );
            let kept = holding.sightings.get(&(addr(*n), name(NAMES[of]).to_string()));
            prop_assert!(kept.is_some_and(|kept| kept.granted >= need.end), "{} is not kept", addr(*n));
        }
    }
    Ok(())
}

async fn play(steps: Vec<Step>) -> Result<(), TestCaseError> {
    const SINKS: [&str; 2] = ["store", "nftables"];
    let stage = Stage::new(&SINKS).await;
    let mut was_away = [false; 2];
    for step in steps {
        match step {
            Step::Act { sink, act } => stage.puppets[sink].act(act),
            Step::State { sink, state } => {
                was_away[sink] |= state != State::Up;
                stage.puppets[sink].health.set(state);
            }
            Step::Pass(millis) => stage.pass(millis).await,
            Step::Offer { name, first, count } => {
                let both = check_offer(&stage, name, (first..first + count).collect(), &was_away);
                // Somebody else asks for the same at the same time.
                let twin = check_offer(&stage, name, vec![first], &was_away);
                let (both, twin) = tokio::join!(both, twin);
                // What has hung becomes known to be slow a moment later.
                tokio::time::sleep(Duration::from_millis(2)).await;
                both.and(twin)?;
            }
        }
        for (sink, label) in SINKS.iter().enumerate() {
            was_away[sink] |= !stage.metric(&format!("greenlane_learn_sink_waited{{sink=\"{label}\"}} 1"))
                || !stage.metric(&format!("greenlane_learn_sink_late_total{{sink=\"{label}\"}} 0"));
        }
        prop_assert!(!stage.task.is_finished());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn programmed_means_held_by_all_who_are_up(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(play(steps))?;
    }
}

fn restored(sightings: Vec<Kept>, is_complete: bool) -> Restored {
    Restored { session: Session(7), serial: 41, is_complete, sightings }
}

/// A sighting seen 100 s before the start: its end is 800 s after it, and it was granted 600 s more.
fn seen(of: &str, n: u32) -> Kept {
    let before = Timestamp::from_secs(START.as_secs() - 100);
    Kept {
        addr: addr(n),
        name: name(of),
        first_seen: before,
        last_seen: before,
        told_until: Timestamp::from_secs(START.as_secs() - 40),
        end: after(800),
        granted: after(1400),
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_is_back_with_its_ends() {
    let ended = Kept { end: START, granted: START, ..seen("a.zoom.test", 1) };
    let private = Kept { addr: ip("10.0.0.1"), ..seen("a.zoom.test", 0) };
    let all = vec![seen("a.zoom.test", 2), seen("stranger.example", 3), seen("b.webex.test", 2), ended, private];
    let stage = Stage::with(&["store"], Options::default(), listing(&[]), Some(restored(all, true))).await;
    let snapshot = stage.learner.reader().snapshot();
    assert_eq!((snapshot.session(), snapshot.serial()), (Session(7), 42));
    let host = snapshot.host(addr(2)).unwrap();
    assert_eq!((snapshot.hosts().count(), host.sightings().len(), host.end()), (1, 2, after(800)));
    assert!(host.sightings()[0].tag().has_app("zoom"));
    for (result, count) in [("kept", 2), ("unlisted", 1), ("ended", 1), ("inadmissible", 1), ("full", 0)] {
        assert!(stage.metric(&format!("greenlane_learn_restored_total{{result=\"{result}\"}} {count}")), "{result}");
    }
    // Whoever holds the set elsewhere has it all, and nothing else.
    assert_eq!(stage.puppets[0].until(addr(2)), Some(after(800)));
    assert_eq!(stage.puppets[0].holding.lock().sightings.len(), 2);
    stage.pass(799_999).await;
    assert_eq!(stage.addrs().len(), 1);
    stage.pass(1).await;
    assert_eq!(stage.addrs().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_an_end_may_be_what_was_granted() {
    let all = vec![seen("a.zoom.test", 1)];
    let stage = Stage::with(&[], Options::default(), listing(&[]), Some(restored(all, false))).await;
    let host = stage.learner.reader().snapshot().host(addr(1)).unwrap().clone();
    assert_eq!(host.end(), after(1400));
    assert_eq!(host.sightings()[0].told_until(), after(1100), "somebody may have been told until then");
}

#[tokio::test(start_paused = true)]
async fn caps_hold_for_what_was_kept() {
    let told = |n: u32| Kept { told_until: after(u64::from(n)), ..seen("a.zoom.test", n) };
    let options = Options { max_per_name: 3, ..Options::default() };
    let all = restored((1..6).map(told).collect(), true);
    let stage = Stage::with(&[], options, listing(&[]), Some(all)).await;
    assert_eq!(stage.addrs(), ["8.0.0.3", "8.0.0.4", "8.0.0.5"], "those told for longest");
    assert!(stage.metric("greenlane_learn_restored_total{result=\"full\"} 2"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_listed_admissible_and_ahead_is_back(
        kept in prop::collection::btree_map((0..3_usize, 0..20_u32), (0..1000_u64, 0..600_u64), 0..30),
        is_complete in any::<bool>(),
    ) {
        const OF: [&str; 3] = ["a.zoom.test", "a.webex.test", "stranger.example"];
        let options = Options { never: vec!["8.0.0.0/29".parse().unwrap()], max_shrink: 1.0, ..Options::default() };
        let all: Vec<Kept> = kept.iter().map(|(&(of, n), &(end, slack))| {
            let end = Timestamp::from_secs(START.as_secs() - 300 + end);
            let granted = end.after(Duration::from_secs(slack));
            Kept { end, granted, told_until: end, ..seen(OF[of], n) }
        }).collect();
        let expected: HashMap<(IpAddr, String), Timestamp> = all.iter().filter_map(|kept| {
            let end = if is_complete { kept.end } else { kept.granted };
            let is_back = end > START && kept.name.to_string().contains("test") && kept.addr >= addr(8);
            is_back.then(|| ((kept.addr, kept.name.to_string()), end))
        }).collect();
        let start_with =
            Start { restored: Some(restored(all, is_complete)), ..Start::new(options, listing(&[]), 1) };
        let (learner, _writer) = start(start_with, Clock::manual(START), &Registry::new());
        let snapshot = learner.reader().snapshot();
        let found: HashMap<(IpAddr, String), Timestamp> = snapshot.hosts().flat_map(|host| host.sightings().to_vec())
            .map(|one| ((one.addr(), one.name().to_string()), one.end())).collect();
        prop_assert_eq!(found, expected);
    }
}

/// Learns so many addresses of one app each.
async fn learned(stage: &Stage, counts: &[(&str, u32)]) {
    for &(app, count) in counts {
        for n in 0..count {
            let addr = addr(n + 1000 * app.len() as u32).to_string();
            assert_eq!(stage.offer(&format!("n{n}.{app}.test"), &[&addr]).await, Outcome::Programmed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lists_that_shrink_too_much_keep_the_set_until_it_is_confirmed() {
    let mut first = listing(&[]);
    first.statics = statics(6);
    let stage = Stage::with(&["nftables"], Options::default(), first, None).await;
    learned(&stage, &[("zoom", 6), ("webex", 8)]).await;
    // 12 of 20 would go; a name that comes anew is learned all the same.
    let reload = |generation, confirm| stage.learner.reload(listing(&["zoom"]), generation, None, confirm);
    assert_eq!(reload(2, Confirm::No).await, 12);
    assert_eq!(stage.addrs().len(), 14);
    assert_eq!(stage.learner.reader().snapshot().statics().len(), 6);
    assert!(stage.metric("greenlane_learn_shrink_held 12"));
    assert_eq!(reload(3, Confirm::No).await, 12, "a file that changes never confirms");
    assert_eq!(reload(4, Confirm::Explicit).await, 12, "the operator hears of it");
    assert_eq!(reload(5, Confirm::No).await, 12);
    assert_eq!(reload(6, Confirm::Explicit).await, 0);
    assert_eq!((stage.addrs().len(), stage.learner.reader().snapshot().statics().len()), (8, 0));
    assert!(stage.metric("greenlane_learn_shrink_held 0"));
    assert_eq!(stage.puppets[0].holding.lock().hosts.len(), 8);
    assert_eq!(stage.puppets[0].holding.lock().statics, 0);
}

#[tokio::test(start_paused = true)]
async fn shrink_is_confirmed_in_so_many_words_or_taken_back() {
    let stage = Stage::new(&["nftables"]).await;
    learned(&stage, &[("zoom", 12), ("webex", 4)]).await;
    assert_eq!(stage.learner.reload(listing(&["zoom"]), 2, None, Confirm::Explicit).await, 12);
    assert_eq!(stage.learner.reload(listing(&[]), 3, None, Confirm::Explicit).await, 0, "it was a mistake");
    assert_eq!(stage.addrs().len(), 16);
    assert!(stage.metric("greenlane_learn_shrink_held 0"));
    assert_eq!(stage.learner.accept_shrink().await.entries, 0, "there is nothing to accept");
    assert_eq!(stage.learner.reload(listing(&["zoom"]), 4, None, Confirm::Explicit).await, 12);
    let released = stage.learner.accept_shrink().await;
    let snapshot = stage.learner.reader().snapshot();
    let withdrawn = released.withdrawn.unwrap();
    assert_eq!((released.entries, withdrawn.len(), released.serial), (12, 12, snapshot.serial()));
    assert!(withdrawn.iter().all(|item| snapshot.host(item.prefix().addr()).is_none()));
    assert_eq!(stage.addrs().len(), 4);
    assert_eq!(stage.puppets[0].holding.lock().hosts.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn ends_pass_and_what_may_not_be_learned_leaves_though_a_shrink_waits() {
    let stage = Stage::new(&["nftables"]).await;
    learned(&stage, &[("zoom", 12)]).await;
    let options = Options { never: vec!["8.0.15.160/32".parse().unwrap()], ..Options::default() };
    assert_eq!(addr(4000), ip("8.0.15.160"));
    let kept = stage.learner.reload(listing(&["zoom"]), 2, Some(options), Confirm::No).await;
    assert_eq!((kept, stage.addrs().len()), (11, 11));
    stage.pass(900_000).await;
    assert_eq!(stage.addrs().len(), 0);
    assert!(stage.metric("greenlane_learn_shrink_held 0"));
}

#[tokio::test(start_paused = true)]
async fn small_or_allowed_shrinks_are_not_held() {
    let stage = Stage::new(&[]).await;
    learned(&stage, &[("zoom", 9)]).await;
    assert_eq!(stage.learner.reload(listing(&["zoom"]), 2, None, Confirm::No).await, 0);
    assert_eq!(stage.addrs().len(), 0);
    let stage = Stage::new(&[]).await;
    learned(&stage, &[("zoom", 10), ("webex", 10)]).await;
    assert_eq!(stage.learner.reload(listing(&["zoom"]), 2, None, Confirm::No).await, 0, "half is no more than half");
    assert_eq!(stage.addrs().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn restart_under_lists_that_shrank_keeps_the_set_too() {
    let all: Vec<Kept> = (0..12).map(|n| seen("a.zoom.test", n)).chain([seen("a.webex.test", 20)]).collect();
    let stage = Stage::with(&["store"], Options::default(), listing(&["zoom"]), Some(restored(all, true))).await;
    assert_eq!(stage.addrs().len(), 13);
    assert!(stage.metric("greenlane_learn_shrink_held 12"));
    let host = stage.learner.reader().snapshot().host(addr(1)).unwrap().clone();
    assert!(host.sightings()[0].tag().has_app("unlisted"));
    assert_eq!(stage.learner.accept_shrink().await.entries, 12);
    assert_eq!(stage.addrs(), ["8.0.0.20"]);
    let again: Vec<Kept> = (0..12).map(|n| seen("a.zoom.test", n)).collect();
    let stage = Stage::with(&[], Options::default(), listing(&["zoom"]), Some(restored(again, true))).await;
    stage.learner.reload(listing(&[]), 2, None, Confirm::No).await;
    assert_eq!(stage.addrs().len(), 12);
    let host = stage.learner.reader().snapshot().host(addr(1)).unwrap().clone();
    assert_eq!(host.sightings()[0].tag(), &tag("zoom", "zoom.test"), "listed again");
}

#[tokio::test(start_paused = true)]
async fn very_many_that_end_together_leave_in_turns() {
    let options = Options { new_per_client_per_minute: 0, ..Options::default() };
    let one = |n: u32| seen(&format!("n{n}.zoom.test"), n);
    let all = restored((0..8192).map(one).collect(), true);
    let options = Options { max_per_trigger: 10_000, ..options };
    let stage = Stage::with(&["store"], options, listing(&[]), Some(all)).await;
    stage.pass(800_000).await;
    assert_eq!(stage.addrs().len(), 0);
    let snapshot = stage.learner.reader().snapshot();
    assert_eq!(snapshot.serial(), 44, "two batches");
}
