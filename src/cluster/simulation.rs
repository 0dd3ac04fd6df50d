//! Twenty resolvers for a day, in seconds: paused time, an engine of a few maps, and a seed that is printed.
//!
//! Resolvers learn, lose the engine, crash with and without their disks, evict, and come back; the engine dies and
//! forgets. Two things must hold: nothing that a client was told leaves a resolver that lives before the TTL has ended,
//! and once everybody is back all sets are one, with the same ends.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::Cluster;
use super::engine::{Commit, Engine, EngineError, Link, News, Page, Pulse, STREAM_LEN, Table};
use super::metrics::Metrics;
use super::run::Member;
use crate::catalogue::{self, Catalogue};
use crate::clock::{Clock, Timestamp};
use crate::learn::{self, Learner, Listing, Offer, Outcome};
use crate::metrics::Registry;
use crate::name::Name;
use crate::set::outlet::outlet_aside;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
const RESOLVERS: usize = 20;
/// How far the clocks move at once.
const STEP_SECS: u64 = 30;
/// How many addresses there are.
const ADDRESSES: u32 = 120;

/// An engine of a few maps.
#[derive(Debug, Default)]
struct Model {
    state: Mutex<State>,
    news: Notify,
    /// Each start is another life; links of an earlier one are dead.
    life: AtomicU64,
    is_dead: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    tables: [BTreeMap<Vec<u8>, u64>; 2],
    /// Messages with their numbers, which never begin anew.
    stream: Vec<(u64, Vec<u8>)>,
    last: u64,
    nodes: BTreeMap<String, Vec<u8>>,
    mark: Option<Vec<u8>>,
}

impl Model {
    fn die(&self) {
        self.is_dead.store(true, Ordering::SeqCst);
        self.life.fetch_add(1, Ordering::SeqCst);
        self.news.notify_waiters();
    }

    fn live(&self) {
        self.is_dead.store(false, Ordering::SeqCst);
    }

    fn forget(&self) {
        let mut state = self.state.lock();
        *state = State { last: state.last, ..State::default() };
    }
}

/// The way of one resolver to the engine.
#[derive(Clone)]
struct Way {
    model: Arc<Model>,
    clock: Clock,
    is_cut: Arc<AtomicBool>,
}

impl Way {
    fn check(&self, life: u64) -> Result<(), EngineError> {
        let is_up = !self.is_cut.load(Ordering::SeqCst)
            && !self.model.is_dead.load(Ordering::SeqCst)
            && self.model.life.load(Ordering::SeqCst) == life;
        if is_up { Ok(()) } else { Err(EngineError::Silent(0)) }
    }
}

struct ModelLink {
    way: Way,
    life: u64,
}

impl Engine for Way {
    type Link = ModelLink;

    async fn connect(&self) -> Result<ModelLink, EngineError> {
        let life = self.model.life.load(Ordering::SeqCst);
        self.check(life)?;
        Ok(ModelLink { way: self.clone(), life })
    }
}

impl ModelLink {
    fn state<T>(&self, work: impl FnOnce(&mut State) -> T) -> Result<T, EngineError> {
        self.way.check(self.life)?;
        Ok(work(&mut self.way.model.state.lock()))
    }
}

fn at(table: Table) -> usize {
    usize::from(table == Table::Gone)
}

impl Link for ModelLink {
    async fn mark(&self, mark: &str) -> Result<Vec<u8>, EngineError> {
        self.state(|state| state.mark.get_or_insert_with(|| mark.into()).clone())
    }

    async fn tail(&self) -> Result<String, EngineError> {
        self.state(|state| state.last.to_string())
    }

    async fn page(&self, table: Table, from: u64) -> Result<Page, EngineError> {
        let len = 1000;
        self.state(|state| {
            let entries = state.tables[at(table)].iter().skip(from as usize).take(len);
            let entries: Vec<_> = entries.map(|(member, end)| (member.clone(), *end as f64)).collect();
            Page { next: if entries.len() < len { 0 } else { from + len as u64 }, entries }
        })
    }

    async fn commit(&self, commit: &Commit) -> Result<(), EngineError> {
        self.state(|state| {
            for (table, entries) in [(Table::Held, &commit.held), (Table::Gone, &commit.gone)] {
                for (member, end) in entries {
                    let held = state.tables[at(table)].entry(member.to_vec()).or_default();
                    *held = (*held).max(*end);
                }
            }
            for message in &commit.messages {
                state.last += 1;
                state.stream.push((state.last, message.clone()));
            }
            let surplus = state.stream.len().saturating_sub(STREAM_LEN);
            state.stream.drain(..surplus);
        })?;
        self.way.model.news.notify_waiters();
        Ok(())
    }

    async fn news(&self, cursor: &str) -> Result<News, EngineError> {
        let after: u64 = cursor.parse().unwrap();
        let waiting = self.way.model.news.notified();
        let read = || {
            self.state(|state| state.stream.iter().filter(|(number, _)| *number > after).cloned().collect::<Vec<_>>())
        };
        let mut entries = read()?;
        if entries.is_empty() {
            let _ = tokio::time::timeout(Duration::from_secs(60), waiting).await;
            entries = read()?;
        }
        let cursor = entries.last().map_or(after, |(number, _)| *number).to_string();
        let has_gap = entries.len() >= STREAM_LEN;
        Ok(News { cursor, has_gap, messages: entries.into_iter().map(|(_, message)| message).collect() })
    }

    async fn beat(&self, node: &str, text: &str) -> Result<Pulse, EngineError> {
        let time = self.way.clock.now();
        self.state(|state| {
            state.nodes.insert(node.to_owned(), text.into());
            // Some are enough: what is made of them is the same for all.
            Pulse { mark: state.mark.clone(), time, nodes: state.nodes.values().take(2).cloned().collect() }
        })
    }

    async fn purge(&self, end: u64) -> Result<(), EngineError> {
        self.state(|state| state.tables.iter_mut().for_each(|table| table.retain(|_, held| *held > end)))
    }
}

/// One resolver.
struct Resolver {
    learner: Learner,
    /// Ours, which may be ahead of the others'.
    clock: Clock,
    is_cut: Arc<AtomicBool>,
    cluster: Cluster,
    tasks: Vec<JoinHandle<()>>,
    registry: Registry,
}

fn options(max_total: usize) -> learn::Options {
    learn::Options {
        hold: Duration::ZERO,
        min_hold: Duration::from_secs(60),
        grace: Duration::from_secs(120),
        new_per_client_per_minute: 0,
        max_total,
        is_shared: true,
        ..learn::Options::default()
    }
}

impl Resolver {
    fn start(model: &Arc<Model>, world: &World, ahead: Duration) -> Self {
        let (registry, clock) = (Registry::new(), Clock::manual(world.clock.now().after(ahead)));
        let (outlet, intake) = outlet_aside("cluster");
        let matching = Arc::clone(&world.catalogue);
        let listing = Listing::new(Vec::new(), move |name| matching.find(name).map(|id| matching.tag(id)));
        let mut start = learn::Start::new(options(world.max_total), listing, 1);
        start.outlets.push(outlet);
        let (learner, writer) = learn::start(start, clock.clone(), &registry);
        let is_cut = Arc::new(AtomicBool::new(false));
        let way = Way { model: Arc::clone(model), clock: world.clock.clone(), is_cut: Arc::clone(&is_cut) };
        let relisted = watch::Sender::new(Arc::clone(&world.catalogue));
        let (member, cluster) = Member::new(
            way,
            "the model".to_owned(),
            Duration::from_secs(90_000),
            learner.clone(),
            relisted.subscribe(),
            clock.clone(),
            Metrics::new(&registry),
        );
        let running = async move {
            member.run(intake).await;
            drop(relisted);
        };
        let tasks = vec![tokio::spawn(writer.run()), tokio::spawn(running)];
        Self { learner, clock, is_cut, cluster, tasks, registry }
    }

    /// What it holds: each sighting with its end.
    fn held(&self) -> BTreeMap<(IpAddr, Name), Timestamp> {
        let snapshot = self.learner.reader().snapshot();
        let sightings = snapshot.hosts().flat_map(|host| host.sightings());
        sightings.map(|one| ((one.addr(), one.name().clone()), one.end())).collect()
    }

    fn has(&self, n: u32) -> bool {
        self.learner.reader().snapshot().host(addr(n)).is_some()
    }

    async fn learn(&self, world: &World, n: u32, ttl_secs: u32) -> Outcome {
        let name: Name = format!("n{}.listed.example", n % 97).parse().unwrap();
        let tag = world.catalogue.find(&name).map(|id| world.catalogue.tag(id)).unwrap();
        let addresses = vec![(addr(n), ttl_secs)];
        let offer = Offer { name, tag, addresses, targets: Vec::new(), octets: 100, client: None, generation: 1 };
        match self.learner.offer_known(offer, self.clock.now()) {
            Ok(outcome) => outcome,
            Err(unknown) => {
                // With a hold of nothing an answer that must wait is late; it is applied all the same.
                let _ = self.learner.offer_rest(unknown).await;
                settle().await;
                if self.has(n) { Outcome::Programmed } else { Outcome::Refused }
            }
        }
    }

    fn crash(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn addr(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0800_0000 + n).into()
}

/// Lets every task do what it can do now.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// What all share.
struct World {
    clock: Clock,
    catalogue: Arc<Catalogue>,
    max_total: usize,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(max_total: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("demo.list"), "# Demo\nlisted.example\n").unwrap();
        let options = catalogue::Options { path: folder.path().to_owned(), ..catalogue::Options::default() };
        let loaded = catalogue::load(&options, jiff::civil::date(2030, 1, 1)).unwrap();
        Self { clock: Clock::manual(START), catalogue: Arc::new(loaded.catalogue), max_total, _folder: folder }
    }

    /// Lets time pass, for the tasks and for every clock.
    async fn pass(&self, resolvers: &[Resolver], secs: u64) {
        let mut left = secs;
        while left > 0 {
            let step = Duration::from_secs(left.min(STEP_SECS));
            tokio::time::sleep(step).await;
            self.clock.advance(step);
            resolvers.iter().for_each(|one| one.clock.advance(step));
            left -= step.as_secs();
        }
        settle().await;
    }
}

/// A promise to a client of one resolver.
#[derive(Debug)]
struct Told {
    resolver: usize,
    n: u32,
    until: Timestamp,
}

async fn run(hours: u32, seed: u64, max_total: usize) {
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (model, world) = (Arc::new(Model::default()), World::new(max_total));
    let mut resolvers: Vec<Resolver> =
        (0..RESOLVERS).map(|_| Resolver::start(&model, &world, Duration::ZERO)).collect();
    world.pass(&resolvers, 5).await;
    let mut told: Vec<Told> = Vec::new();
    let mut said = 0;
    for minute in 0..hours * 60 {
        for _ in 0..random.random_range(0..8) {
            let at = random.random_range(0..RESOLVERS);
            let (n, ttl_secs) = (random.random_range(0..ADDRESSES), random.random_range(1..900));
            if resolvers[at].learn(&world, n, ttl_secs).await == Outcome::Programmed {
                let until = world.clock.now().after(Duration::from_secs(ttl_secs.into()));
                told.push(Told { resolver: at, n, until });
                said += 1;
            }
        }
        match random.random_range(0..60) {
            0 => model.die(),
            1 => {
                model.die();
                model.forget();
            }
            2..=12 => model.live(),
            13..=20 => resolvers[random.random_range(0..RESOLVERS)].is_cut.store(true, Ordering::SeqCst),
            21..=45 => resolvers[random.random_range(0..RESOLVERS)].is_cut.store(false, Ordering::SeqCst),
            46 => {
                // Dead with its disk; another takes its place. Its clients were told by it alone if it was cut off.
                let at = random.random_range(0..RESOLVERS);
                settle().await;
                resolvers[at].crash();
                let is_alone = resolvers[at].is_cut.load(Ordering::SeqCst) || model.is_dead.load(Ordering::SeqCst);
                told.retain(|one| one.resolver != at || !is_alone);
                resolvers[at] = Resolver::start(&model, &world, Duration::ZERO);
                told.iter_mut().filter(|one| one.resolver == at).for_each(|one| one.resolver = usize::MAX);
            }
            _ => {}
        }
        world.pass(&resolvers, 60).await;
        let now = world.clock.now();
        told.retain(|one| one.until > now);
        for one in &told {
            let has = match resolvers.get(one.resolver) {
                Some(resolver) => resolver.has(one.n),
                None => resolvers.iter().any(|resolver| resolver.has(one.n)),
            };
            assert!(has, "minute {minute}, seed {seed}: {one:?} is lost");
        }
    }
    // Everybody is back, nobody is asked any more.
    model.live();
    resolvers.iter().for_each(|one| one.is_cut.store(false, Ordering::SeqCst));
    world.pass(&resolvers, 30).await;
    let first = resolvers[0].held();
    let has_room = max_total > ADDRESSES as usize;
    for (at, one) in resolvers.iter().enumerate() {
        assert!(!has_room || one.held() == first, "resolver {at}, seed {seed}: the sets are not one");
    }
    assert!(first.len() > 10 && said > 100 * hours, "{} sightings, {said} told", first.len());
    println!("{said} told, {} held at the end", first.len());
    world.pass(&resolvers, 2000).await;
    assert!(resolvers.iter().all(|one| one.held().is_empty()), "everything ends");
    assert!(model.state.lock().tables.iter().all(BTreeMap::is_empty), "in the engine, too");
    for one in &resolvers {
        one.cluster.joined().await;
        assert!(!one.registry.render().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn twenty_resolvers_agree_after_a_day_and_lose_nothing() {
    run(24, random_seed(), 32_768).await;
}

/// The same with room for a part only, so that sightings are evicted all the time.
#[tokio::test(start_paused = true)]
async fn twenty_resolvers_without_room_for_all_lose_nothing_that_was_told() {
    run(6, random_seed(), 50).await;
}

fn random_seed() -> u64 {
    std::env::var("GREENLANE_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap())
}

/// A clock that is a minute ahead or behind: ends are wall time, so the others hold longer or shorter by that much,
/// which the grace is there for.
#[tokio::test(start_paused = true)]
async fn clocks_a_minute_apart_cost_no_promise() {
    let (model, world) = (Arc::new(Model::default()), World::new(1000));
    let all =
        [Resolver::start(&model, &world, Duration::ZERO), Resolver::start(&model, &world, Duration::from_secs(60))];
    world.pass(&all, 5).await;
    for (at, n) in [(0, 1), (1, 2)] {
        assert_eq!(all[at].learn(&world, n, 300).await, Outcome::Programmed);
    }
    world.pass(&all, 3).await;
    assert_eq!(all[0].held(), all[1].held(), "the same ends, on clocks that differ");
    world.pass(&all, 290).await;
    for (at, one) in all.iter().enumerate() {
        assert_eq!(one.held().len(), 2, "resolver {at}: told for 300 s, both hold it so long");
    }
    world.pass(&all, 60 + 120 + 60 + 60).await;
    assert!(all.iter().all(|one| one.held().is_empty()), "and no longer than clock, grace and rounding");
}
