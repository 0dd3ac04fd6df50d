//! What keeping costs: the commit of a batch beside what is stored, answers that wait for it, a restart, the disk.
//!
//! `cargo bench --bench store` first prints what criterion does not: the spread of a commit as the writer sees it (order
//! sent until `Held`, both thread switches included) for 1 and for 100 sightings at 100,000 stored, at rest and at 1,000
//! a second; the hold of answers while 20,000 new sightings a second come in, through writer and store; and with 100,000
//! and 1,000,000 sightings the size of the files, how long it takes to make them smaller, and a restart after an orderly
//! end and after a kill that leaves 20,000 in the journal: until the store is read, until the set is there, and until
//! the store has taken note of what the set begins with, which is when the first question is read. Then criterion times
//! the commit of one.
//!
//! `STORE_BENCH=hold` does the one part alone; so do `commits`, `restart` and `commit_1`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use greenlane::catalogue::{AppId, Tag, TagApp};
use greenlane::clock::{Clock, Stopwatch, Timestamp};
use greenlane::learn::{self, Listing, Offer, Outcome};
use greenlane::metrics::Registry;
use greenlane::name::Name;
use greenlane::set::Session;
use greenlane::set::outlet::{Applied, Change, Kept, Outlet, Restored, SightingChange, outlet};
use greenlane::source::Location;
use greenlane::store::{Durability, Metrics, Options, Store, run};
use tokio::runtime::Runtime;

const STORED: u64 = 100_000;

fn start() -> Timestamp {
    Clock::system().now()
}

/// Spreads `n` over 64 bits: a step of splitmix64.
fn spread(n: u64) -> u64 {
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The `n`th sighting: half IPv4, half IPv6, eight addresses to a name.
fn put(n: u64, now: Timestamp) -> SightingChange {
    let bits = spread(n);
    let addr = if n.is_multiple_of(2) {
        IpAddr::V4(Ipv4Addr::from_bits((bits >> 32) as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits((0x2600_u128 << 112) | u128::from(bits)))
    };
    let after = |secs| now.after(Duration::from_secs(secs));
    SightingChange::Put(Kept {
        addr,
        name: Name::parse(&format!("host-{}.pool.example.com", n / 8)).expect("a name"),
        first_seen: now,
        last_seen: now,
        told_until: after(3600),
        end: after(7200),
        granted: after(7800),
    })
}

/// A store at work.
struct Work {
    outlet: Outlet,
    thread: JoinHandle<()>,
    runtime: Runtime,
    session: Session,
    serial: u64,
    next: u64,
}

impl Work {
    fn open(folder: &Path, durability: Durability) -> (Self, Restored) {
        let options = Options { path: folder.join("greenlane.redb"), durability };
        let opened = Store::open(&options, &Clock::system()).expect("opens");
        let (outlet, intake) = outlet("store");
        let metrics = Metrics::new(&Registry::new());
        let store = opened.store;
        let thread = thread::spawn(move || run(store, intake, &Clock::system(), metrics));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let Restored { session, serial, .. } = opened.restored;
        let next = opened.restored.sightings.len() as u64;
        (Self { outlet, thread, runtime, session, serial, next }, opened.restored)
    }

    fn batch(&mut self, len: u64) -> Change {
        self.serial += 1;
        let now = start();
        let sightings = (self.next..self.next + len).map(|n| put(n, now)).collect();
        self.next += len;
        Change { sightings, ..Change::empty(self.session, self.serial, now) }
    }

    /// Sends and waits; returns how long that took.
    fn keep(&self, change: Change) -> Duration {
        let change = Arc::new(change);
        let watch = Stopwatch::start();
        let mut reply = self.outlet.send(&change).expect("room");
        let applied = self.runtime.block_on(reply.wait());
        let took = watch.elapsed();
        assert_eq!(applied, Applied::Held);
        took
    }

    fn fill(&mut self, count: u64) {
        while self.next < count {
            let batch = self.batch(10_000);
            self.keep(batch);
        }
    }

    fn stop(mut self) {
        let last = Change { last: true, ..self.batch(0) };
        self.keep(last);
        drop(self.outlet);
        self.thread.join().expect("the store ends");
    }
}

fn spread_of(what: &str, mut spans: Vec<Duration>) {
    spans.sort_unstable();
    let at = |share: usize| spans[(spans.len() - 1) * share / 1000].as_secs_f64() * 1e3;
    let (p50, p99, p999, max, count) = (at(500), at(990), at(999), at(1000), spans.len());
    println!("store/{what}: p50 {p50:.3} ms, p99 {p99:.3} ms, p99.9 {p999:.3} ms, longest {max:.1} ms, of {count}");
}

fn commits(folder: &Path, durability: Durability) {
    let (mut work, _) = Work::open(folder, durability);
    work.fill(STORED);
    // Until the database has taken it.
    thread::sleep(Duration::from_secs(3));
    for (len, pause, count) in [(1, 1000, 5000), (1, 0, 20_000), (100, 100_000, 60)] {
        let count = if durability == Durability::Disk { (count / 20).max(40) } else { count };
        let mut spans = Vec::new();
        for _ in 0..count {
            let batch = work.batch(len);
            spans.push(work.keep(batch));
            thread::sleep(Duration::from_micros(pause));
        }
        let pace = if pause == 0 { "at once".to_owned() } else { format!("each {} ms", pause / 1000) };
        spread_of(&format!("commit_{len} at {STORED} stored, {durability:?}, {pace}"), spans);
    }
    work.stop();
}

fn tag() -> Tag {
    Tag::new(vec![TagApp {
        app: AppId::new("pool"),
        trigger: "pool.example.com".into(),
        location: Location::file("pool"),
    }])
}

fn learn_options() -> learn::Options {
    learn::Options {
        hold: Duration::from_secs(1),
        max_total: 4_000_000,
        max_per_name: 4_000_000,
        max_per_trigger: 4_000_000,
        new_per_client_per_minute: 0,
        ..learn::Options::default()
    }
}

fn learn_start(restored: Restored) -> learn::Start {
    let listing = Listing::new(Vec::new(), |_| Some(tag()));
    learn::Start { restored: Some(restored), ..learn::Start::new(learn_options(), listing, 1) }
}

/// The hold of answers that bring in one new sighting each, at a steady pace: 20 each millisecond.
fn group_commit(folder: &Path, durability: Durability, secs: u64) {
    let options = Options { path: folder.join("greenlane.redb"), durability };
    let (clock, registry) = (Clock::system(), Registry::new());
    let opened = Store::open(&options, &clock).expect("opens");
    let (way, intake) = outlet("store");
    let (store, metrics, twin) = (opened.store, Metrics::new(&registry), clock.clone());
    let keeping = thread::spawn(move || run(store, intake, &twin, metrics));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let spans = runtime.block_on(async {
        let start = learn::Start { outlets: vec![way], ..learn_start(opened.restored) };
        let (learner, writer) = learn::start(start, clock.clone(), &registry);
        let writing = tokio::spawn(writer.run());
        learner.begun().await;
        let tag = tag();
        let mut answers = tokio::task::JoinSet::new();
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        for tick in 0..secs * 1000 {
            ticks.tick().await;
            for n in tick * 20..tick * 20 + 20 {
                let SightingChange::Put(kept) = put(n, clock.now()) else { continue };
                let (learner, now, tag) = (learner.clone(), clock.now(), tag.clone());
                answers.spawn(async move {
                    let watch = Stopwatch::start();
                    let offer = Offer {
                        name: kept.name,
                        tag,
                        addresses: vec![(kept.addr, 300)],
                        targets: Vec::new(),
                        octets: 100,
                        client: None,
                        generation: 1,
                    };
                    let outcome = learner.offer(offer, now).await;
                    (outcome, watch.elapsed())
                });
            }
        }
        let answers = answers.join_all().await;
        let late = answers.iter().filter(|(outcome, _)| *outcome != Outcome::Programmed).count();
        if late > 0 {
            println!("store/hold: {late} answers were late, after a second: this machine is too busy for the pace");
        }
        learner.close().await;
        let _ = writing.await;
        answers.into_iter().map(|(_, span)| span).collect::<Vec<_>>()
    });
    keeping.join().expect("the store ends");
    spread_of(&format!("hold at 20000 new sightings a second for {secs} s, {durability:?}"), spans);
}

fn size(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).expect("a folder").filter_map(Result::ok);
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}

fn tell_size(folder: &Path, count: u64, when: &str) {
    let len = size(folder);
    println!("store/size: {count} sightings in {:.1} MB, {} octets each, {when}", len as f64 / 1e6, len / count);
}

/// Waits until the files keep their size for a second; returns how long it changed.
fn settled(folder: &Path) -> Duration {
    let (watch, mut last, mut changed) = (Stopwatch::start(), 0, Duration::ZERO);
    while watch.elapsed() < changed + Duration::from_secs(3) {
        let len = size(folder);
        if len != last {
            (last, changed) = (len, watch.elapsed());
        }
        thread::sleep(Duration::from_millis(5));
    }
    changed
}

/// Copies the files of a store, as they are.
fn copied(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for file in fs::read_dir(folder).expect("a folder").filter_map(Result::ok) {
        fs::copy(file.path(), copy.path().join(file.file_name())).expect("copied");
    }
    copy
}

fn restart(folder: &Path, count: u64) {
    let (mut work, _) = Work::open(folder, Durability::Process);
    work.fill(count);
    work.stop();
    tell_size(folder, count, "filled at once");
    let (mut work, _) = Work::open(folder, Durability::Process);
    let batch = work.batch(1);
    work.keep(batch);
    let took = settled(folder).as_millis();
    tell_size(folder, count, &format!("after compaction, {took} ms after the first change"));
    work.stop();
    let timed = |folder: &Path, what: &str| {
        let copy = copied(folder);
        let options = Options { path: copy.path().join("greenlane.redb"), durability: Durability::Process };
        let clock = Clock::system();
        let watch = Stopwatch::start();
        let opened = Store::open(&options, &clock).expect("opens");
        let (took, len) = (watch.elapsed().as_millis(), opened.restored.sightings.len());
        let (way, intake) = outlet("store");
        let (store, metrics, twin) = (opened.store, Metrics::new(&Registry::new()), clock.clone());
        let keeping = thread::spawn(move || run(store, intake, &twin, metrics));
        let start = learn::Start { outlets: vec![way], ..learn_start(opened.restored) };
        let (learner, writer) = learn::start(start, clock, &Registry::new());
        let whole = watch.elapsed().as_millis();
        let hosts = learner.reader().snapshot().hosts().count();
        println!("store/restart: {len} sightings after {what} in {took} ms; a set of {hosts} hosts in {whole} ms");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let writing = tokio::spawn(writer.run());
            learner.begun().await;
            println!("store/restart: {len} sightings after {what}: ready in {} ms", watch.elapsed().as_millis());
            learner.close().await;
            let _ = writing.await;
        });
        keeping.join().expect("the store ends");
    };
    timed(folder, "an orderly end");
    // What a kill leaves: a database that was not closed, and the changes of a second in the journal.
    let (mut work, _) = Work::open(folder, Durability::Process);
    let batch = work.batch(20_000);
    work.keep(batch);
    let copy = copied(folder);
    work.stop();
    timed(copy.path(), "a kill");
}

fn benches(c: &mut Criterion) {
    let folder = || tempfile::tempdir().expect("a folder");
    let only = std::env::var("STORE_BENCH").ok();
    let does = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if does("commits") {
        commits(folder().path(), Durability::Process);
        commits(folder().path(), Durability::Disk);
    }
    if does("hold") {
        group_commit(folder().path(), Durability::Process, 20);
        group_commit(folder().path(), Durability::Disk, 5);
    }
    if does("restart") {
        restart(folder().path(), 100_000);
        restart(folder().path(), 1_000_000);
    }
    if !does("commit_1") {
        return;
    }

    let folder = folder();
    let (mut work, _) = Work::open(folder.path(), Durability::Process);
    work.fill(STORED);
    c.bench_function("store/commit_1", |b| {
        b.iter_custom(|count| {
            (0..count).fold(Duration::ZERO, |sum, _| {
                let batch = work.batch(1);
                sum + work.keep(batch)
            })
        });
    });
    work.stop();
}

criterion_group! {
    name = store;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(5));
    targets = benches
}
criterion_main!(store);
