//! Times a firewall elsewhere: from a new address to its word that the kernel has it, over real HTTP on this machine.
//!
//! Resolver, follower and kernel are this machine's, in a network namespace of their own, so needs root. Target: p99 ≤
//! 20 ms from a change to the kernel; what is printed holds the way back, too.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use greenlane::admission::Admission;
use greenlane::catalogue::{self, AppId, Tag, TagApp};
use greenlane::clock::Clock;
use greenlane::export::follow::{Access, Follower, Options as FollowOptions, Sink, WIDEST4, WIDEST6};
use greenlane::export::nftables::{
    Metrics, Mode, Options as NftOptions, SetNames, Surplus, TableFamily, remove, start,
};
use greenlane::learn::{self, Learner, Listing, Offer, Outcome, Start};
use greenlane::metrics::Registry;
use greenlane::name::Name;
use greenlane::set::Joins;
use greenlane::set::outlet::outlet;
use greenlane::source::Location;
use greenlane::web;
use nix::sched::{CloneFlags, unshare};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

fn main() {
    let timed = thread::spawn(|| {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            println!("skipped: needs root");
            return;
        }
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|status| status.success()), "ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let site = Site::open().await;
            site.time("one new address at a time", 1, Duration::ZERO, 2_000, 0).await;
            site.time("the same, 100 a second", 1, Duration::from_millis(10), 1_000, 2_000).await;
            site.time("eight at a time", 8, Duration::ZERO, 1_000, 3_000).await;
            site.stop.cancel();
        });
        thread::sleep(Duration::from_millis(600));
        remove(&nft_options()).unwrap();
    });
    timed.join().unwrap();
}

struct Site {
    learner: Learner,
    clock: Clock,
    stop: CancellationToken,
}

fn nft_options() -> NftOptions {
    NftOptions {
        mode: Mode::Own { mark: 1, size: 65_536 },
        family: TableFamily::Inet,
        table: "greenlane".to_owned(),
        sets: SetNames { learned4: Some("learned4".to_owned()), ..SetNames::default() },
        hold: Duration::from_millis(100),
    }
}

fn tag() -> Tag {
    let location = Location::file("zones/zoom.list");
    Tag::new(vec![TagApp { app: AppId::new("zoom"), trigger: "zoom.test".into(), location }])
}

impl Site {
    /// A resolver whose answers wait for one follower, which is up when this returns.
    async fn open() -> Self {
        let (clock, registry, joins, stop) =
            (Clock::system(), Registry::new(), Joins::default(), CancellationToken::new());
        let options = learn::Options {
            hold: Duration::from_secs(1),
            hold_for_followers: true,
            new_per_client_per_minute: 0,
            max_per_trigger: 100_000,
            ..learn::Options::default()
        };
        let admission = Admission::new(&options);
        let listing = Listing::new(Vec::new(), |_| Some(tag()));
        let (learner, writer) =
            learn::start(Start { joins: joins.clone(), ..Start::new(options, listing, 1) }, clock.clone(), &registry);
        tokio::spawn(writer.run());
        let lists = catalogue::compile([], &catalogue::Options::default(), jiff::civil::date(2027, 1, 1)).unwrap();
        let state = web::State {
            reader: learner.reader(),
            catalogue: Arc::new(arc_swap::ArcSwap::from_pointee(lists.catalogue)),
            registry: registry.clone(),
            clock: clock.clone(),
            ready: Arc::new(AtomicBool::new(true)),
            tokens: Arc::default(),
            joins,
            hooks: web::Hooks::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // On a runtime of their own, as they are processes of their own elsewhere.
        let (served, stopping) = (listener.into_std().unwrap(), stop.clone());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                web::serve(TcpListener::from_std(served).unwrap(), state, web::Options::default(), stopping).await;
            });
        });
        let (following, ticking) = (stop.clone(), clock.clone());
        thread::spawn(move || follow(&url, admission, ticking, following));
        let waited = |text: String| text.lines().any(|line| line == "greenlane_learn_followers_waited 1");
        let begun = Instant::now();
        while !waited(String::from_utf8(registry.render()).unwrap()) {
            assert!(begun.elapsed() < Duration::from_secs(60), "the follower does not come up");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { learner, clock, stop }
    }

    /// Offers `count` names with one new address each, so many at a time.
    async fn time(&self, what: &str, at_a_time: usize, pause: Duration, count: u32, first: u32) {
        let mut took = Vec::new();
        let numbers: Vec<u32> = (first..first + count).collect();
        for chunk in numbers.chunks(at_a_time) {
            let offers = chunk.iter().map(async |n| {
                let addr = (0x0b00_0000 + n * 7).to_be_bytes().into();
                let offer = Offer {
                    name: Name::parse(&format!("n{n}.zoom.test")).unwrap(),
                    tag: tag(),
                    addresses: vec![(addr, 60)],
                    targets: Vec::new(),
                    octets: 100,
                    client: None,
                    generation: 1,
                };
                let begun = Instant::now();
                let outcome = self.learner.offer(offer, self.clock.now()).await;
                (outcome, begun.elapsed())
            });
            for (outcome, span) in futures_util::future::join_all(offers).await {
                assert_eq!(outcome, Outcome::Programmed);
                took.push(span);
            }
            tokio::time::sleep(pause).await;
        }
        took.sort_unstable();
        let at = |share: usize| took[(took.len() * share / 1000).min(took.len() - 1)];
        println!("{what}: p50 {:?}, p99 {:?}, longest {:?}", at(500), at(990), at(999));
    }
}

fn follow(url: &str, admission: Admission, clock: Clock, stop: CancellationToken) {
    let registry = Registry::new();
    let (way, intake) = outlet("nftables");
    start(nft_options(), Surplus::Adopt, intake, clock.clone(), Metrics::new(&registry)).unwrap();
    let options = FollowOptions {
        resolvers: vec![url.parse().unwrap()],
        access: Access::default(),
        admission,
        widest4: WIDEST4,
        widest6: WIDEST6,
        max_total: 32_768,
        lease: Duration::from_secs(3600),
        acknowledges: true,
    };
    let follower = Follower::new(options, vec![Sink::Outlet(way)], clock, &registry).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(follower.follow(stop, |_| {})).unwrap();
}
