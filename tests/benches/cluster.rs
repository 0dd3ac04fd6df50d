//! What many resolvers cost: two in this process, on a real `redis-server` that it starts on a free port.
//!
//! `cargo bench --bench cluster` prints
//! - the octets of a sighting on the engine at 100,000, everything included (`used_memory`);
//! - the time from an answer at one resolver until the other serves its address, one at a time and at 1,000 changes a
//!   second, and how long after the last change both serve the same octets;
//! - how long a resolver that comes new takes to hold all 100,000.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use greenlane::catalogue::{self, Catalogue};
use greenlane::clock::{Clock, Stopwatch};
use greenlane::cluster::{Cluster, Options, Prepared};
use greenlane::learn::{self, Learner, Listing, Offer};
use greenlane::metrics::Registry;
use greenlane::name::Name;
use greenlane::set::Selection;
use greenlane::set::outlet::outlet_aside;
use tokio::sync::watch;
use tokio::time::sleep;

const SIGHTINGS: u32 = 100_000;
const RATE: u32 = 1000;
const SECONDS: u32 = 10;

struct Engine {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Engine {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr()).expect("a port").port();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string(), "--dir"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let engine = Self { child: child.ok()?, port, _folder: folder };
        while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(engine)
    }

    async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).expect("an URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("an engine");
        let mut command = redis::Cmd::new();
        words.iter().for_each(|word| {
            command.arg(word);
        });
        command.query_async(&mut connection).await.expect("an answer")
    }

    async fn used_memory(&self) -> u64 {
        let info: String = self.ask(&["INFO", "memory"]).await;
        info.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok()).expect("its memory")
    }
}

struct Resolver {
    learner: Learner,
    catalogue: Arc<Catalogue>,
    clock: Clock,
    cluster: Cluster,
    _relisted: watch::Sender<Arc<Catalogue>>,
}

impl Resolver {
    fn start(engine: &Engine, catalogue: &Arc<Catalogue>) -> Self {
        let (registry, clock) = (Registry::new(), Clock::system());
        let options = learn::Options {
            max_total: 1 << 20,
            max_per_name: 1 << 20,
            max_per_trigger: 1 << 20,
            new_per_client_per_minute: 0,
            is_shared: true,
            ..learn::Options::default()
        };
        let matching = Arc::clone(catalogue);
        let listing = Listing::new(Vec::new(), move |name| matching.find(name).map(|id| matching.tag(id)));
        let mut start = learn::Start::new(options, listing, 1);
        let (outlet, intake) = outlet_aside("cluster");
        start.outlets.push(outlet);
        let (learner, writer) = learn::start(start, clock.clone(), &registry);
        tokio::spawn(writer.run());
        let url = format!("redis://127.0.0.1:{}", engine.port);
        let options = Options::new(&url, false, "bench".to_owned(), Duration::from_secs(86_400)).expect("an URL");
        let prepared = Prepared::new(&options, &registry).expect("options");
        let relisted = watch::Sender::new(Arc::clone(catalogue));
        let (cluster, running) = prepared.join(learner.clone(), intake, relisted.subscribe(), clock.clone());
        tokio::spawn(running);
        Self { learner, catalogue: Arc::clone(catalogue), clock, cluster, _relisted: relisted }
    }

    async fn learn(&self, n: u32) {
        let name: Name = Name::parse(&format!("host-{}.pool.example.com", n / 8)).expect("a name");
        let tag = self.catalogue.find(&name).map(|id| self.catalogue.tag(id)).expect("a listed name");
        let addresses = vec![(addr(n), 3600)];
        let offer = Offer { name, tag, addresses, targets: Vec::new(), octets: 100, client: None, generation: 1 };
        let _ = self.learner.offer(offer, self.clock.now()).await;
    }

    fn has(&self, n: u32) -> bool {
        self.learner.reader().snapshot().host(addr(n)).is_some()
    }

    fn count(&self) -> usize {
        self.learner.reader().snapshot().hosts().count()
    }

    fn page(&self) -> Vec<String> {
        let prefixes = self.learner.reader().snapshot().prefixes(&Selection::default());
        prefixes.iter().map(ToString::to_string).collect()
    }

    async fn until_has(&self, n: u32) {
        let mut changes = self.learner.reader().subscribe();
        while !self.has(n) {
            let _ = tokio::time::timeout(Duration::from_millis(100), changes.next()).await;
        }
    }
}

/// Half of the addresses are IPv6.
fn addr(n: u32) -> IpAddr {
    if n.is_multiple_of(2) {
        Ipv4Addr::from_bits(0x0800_0000 + n).into()
    } else {
        IpAddr::from([0x2600, 0x1f18, 0, 0, 0, 0, (n >> 16) as u16, n as u16])
    }
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    format!("p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", at(0.5), at(0.99), at(1.0))
}

async fn measure() {
    let Some(engine) = Engine::start() else {
        println!("skipped: this bench needs redis-server");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("demo.list"), "# Demo\npool.example.com\n").expect("a list");
    let options = catalogue::Options { path: folder.path().to_owned(), ..catalogue::Options::default() };
    let lists = catalogue::load(&options, jiff::civil::date(2030, 1, 1)).expect("lists").catalogue;
    let lists = Arc::new(lists);
    let (a, b) = (Resolver::start(&engine, &lists), Resolver::start(&engine, &lists));
    a.cluster.joined().await;
    b.cluster.joined().await;
    let empty = engine.used_memory().await;

    let whole = Stopwatch::start();
    for n in 0..SIGHTINGS / 64 {
        let offers = (0..64).map(|i| a.learn(n * 64 + i));
        futures_util::future::join_all(offers).await;
    }
    let count = SIGHTINGS / 64 * 64;
    while b.count() < count as usize {
        sleep(Duration::from_millis(20)).await;
    }
    println!("{count} sightings from one to the other in {:.2} s", whole.elapsed().as_secs_f64());
    sleep(Duration::from_millis(500)).await;
    let octets = (engine.used_memory().await - empty) as f64 / f64::from(count);
    let of_set: u64 = engine.ask(&["MEMORY", "USAGE", "greenlane:{bench}:sightings", "SAMPLES", "0"]).await;
    let of_stream: u64 = engine.ask(&["MEMORY", "USAGE", "greenlane:{bench}:changes", "SAMPLES", "0"]).await;
    println!(
        "on the engine: {octets:.0} octets a sighting in all ({:.0} in the sorted set, {:.0} in the stream)",
        of_set as f64 / f64::from(count),
        of_stream as f64 / f64::from(count)
    );

    let coming = Stopwatch::start();
    let c = Resolver::start(&engine, &lists);
    c.cluster.joined().await;
    println!("a third one holds all {} after {:.2} s", c.count(), coming.elapsed().as_secs_f64());

    let mut times = Vec::new();
    for n in 0..1000 {
        let n = SIGHTINGS + n;
        let took = Stopwatch::start();
        tokio::join!(a.learn(n), b.until_has(n));
        times.push(took.elapsed());
    }
    println!("one change at a time, answer to the other's set: {}", spread(times));

    let (a, b) = (Arc::new(a), Arc::new(b));
    let mut tasks = Vec::new();
    let begun = Stopwatch::start();
    for n in 0..RATE * SECONDS {
        let due = Duration::from_secs(1) * n / RATE;
        if let Some(left) = due.checked_sub(begun.elapsed()) {
            sleep(left).await;
        }
        let (a, b, n) = (Arc::clone(&a), Arc::clone(&b), 2 * SIGHTINGS + n);
        tasks.push(tokio::spawn(async move {
            let took = Stopwatch::start();
            tokio::join!(a.learn(n), b.until_has(n));
            took.elapsed()
        }));
    }
    let last = Stopwatch::start();
    while !b.has(2 * SIGHTINGS + RATE * SECONDS - 1) || a.count() != b.count() {
        sleep(Duration::from_millis(1)).await;
    }
    let settled = last.elapsed();
    assert_eq!(a.page(), b.page(), "the same octets");
    let times: Vec<Duration> = futures_util::future::join_all(tasks).await.into_iter().flatten().collect();
    println!("{RATE} changes a second for {SECONDS} s: {}", spread(times));
    println!("both serve the same octets {:.0} ms after the last change", settled.as_secs_f64() * 1000.0);
}

fn main() {
    // `cargo test` runs benches that have no harness of their own, too.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads").block_on(measure());
}
