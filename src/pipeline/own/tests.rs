//! The parts joined as the daemon joins them, around a scripted upstream, on a clock that stands still.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::cache::Cache;
use crate::catalogue;
use crate::clock::Clock;
use crate::forward::tests::scripted::{self, A, Act, Asked, Upstream, record};
use crate::forward::{self, Forward, Protocol};
use crate::learn::{self, Listing};
use crate::metrics::Registry;
use crate::pipeline::{Current, TagOptions, Tried};
use crate::policy::Special;
use crate::wire::{Seen, Transport};

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
const RULES: Rules = Rules { min_ttl: 0, max_ttl: 86_400, negative_max_ttl: 3600, trust_ad: false };

/// What a sighting stays at least, grace included.
const STAY: Duration = Duration::from_secs(900);

struct Inside {
    pipeline: Pipeline,
    clock: Clock,
    registry: Registry,
    upstream: Upstream,
}

impl Inside {
    /// The `n`-th question, from 0, is answered as `script` says.
    async fn start(script: impl Fn(&Asked, usize) -> Act + Send + Sync + 'static) -> Self {
        let count = AtomicUsize::new(0);
        let upstream = Upstream::start(move |asked| script(asked, count.fetch_add(1, Ordering::SeqCst))).await;
        let files = [("demo.list", &b"# Demo\nlisted.example\n"[..])];
        let loaded = catalogue::compile(files, &catalogue::Options::default(), jiff::civil::date(2027, 1, 15)).unwrap();
        let catalogue = Arc::new(loaded.catalogue);
        let matching = Arc::clone(&catalogue);
        let listing = Listing::new(Vec::new(), move |name| matching.find(name).map(|id| matching.tag(id)));
        let (clock, registry) = (Clock::manual(START), Registry::new());
        let asked = forward::Upstream { protocol: Protocol::Udp, addr: upstream.addr, tls_name: None, path: None };
        let options = forward::Options { upstreams: vec![asked], ..forward::Options::default() };
        let forward = Forward::with_roots(options, RULES, clock.clone(), &registry, Vec::new()).unwrap();
        let options = learn::Options {
            treat_as_public: vec!["192.0.2.0/24".parse().unwrap()],
            // A busy machine must not make an answer late.
            hold: Duration::from_secs(30),
            ..learn::Options::default()
        };
        let (learner, writer) = learn::start(learn::Start::new(options, listing, 1), clock.clone(), &registry);
        tokio::spawn(writer.run());
        let special = Special::new(Vec::new());
        let current = Current::new(1, catalogue, Arc::new(forward), special, RULES, TagOptions::default());
        let pipeline = Pipeline::new(current, Cache::new(1 << 20), learner, clock.clone(), &registry);
        Self { pipeline, clock, registry, upstream }
    }

    async fn ask(&self, name: &str, ahead_secs: u64) -> Heard {
        let question = Question::new(name.parse().unwrap(), A);
        self.pipeline.ask_ahead(question, Duration::from_secs(ahead_secs)).await
    }

    fn pass(&self, secs: u64) {
        self.clock.advance(Duration::from_secs(secs));
    }

    /// Whether a client gets an answer from the cache.
    fn is_cached(&self, name: &str) -> bool {
        let mut octets = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
        octets.extend(scripted::wire_name(name));
        octets.extend([0, 1, 0, 1]);
        let Seen::Question(view) = wire::see(&octets, Transport::Udp) else { panic!("a question") };
        let mut out = Vec::new();
        let tried = self.pipeline.try_answer(&view, Transport::Udp, self.clock.now(), &mut out);
        tried == Tried::Answered && out[3] & 0x0f == 0 && out[7] == 1
    }
}

fn minute(asked: &Asked) -> Act {
    asked.reply().answer(&record(&[0xc0, 12], A, 60, &[192, 0, 2, 1])).act()
}

fn at(secs: u64) -> Timestamp {
    START.after(Duration::from_secs(secs))
}

#[tokio::test]
async fn what_is_cached_is_learned_anew_without_asking_until_shortly_before_its_end() {
    let inside = Inside::start(|asked, _| minute(asked)).await;
    assert_eq!(inside.ask("listed.example", 10).await, Heard::Held { fresh_until: at(60), end: START.after(STAY) });
    inside.pass(40);
    assert_eq!(inside.ask("listed.example", 10).await, Heard::Held { fresh_until: at(60), end: at(40).after(STAY) });
    assert_eq!(inside.upstream.count(), 1);
    inside.pass(10);
    assert_eq!(inside.ask("listed.example", 10).await, Heard::Held { fresh_until: at(110), end: at(50).after(STAY) });
    assert_eq!(inside.upstream.count(), 2);
    let text = String::from_utf8(inside.registry.render()).unwrap();
    let lookups = text.lines().filter(|line| line.starts_with("greenlane_cache_lookups_total{"));
    assert_eq!(lookups.filter(|line| line.ends_with(" 0")).count(), 3, "no client asked:\n{text}");
}

#[tokio::test]
async fn a_failure_takes_no_good_answer_from_clients() {
    let inside = Inside::start(|asked, before| if before == 0 { minute(asked) } else { asked.fail(2) }).await;
    inside.ask("listed.example", 10).await;
    inside.pass(55);
    assert_eq!(inside.ask("listed.example", 10).await, Heard::Failed);
    assert!(inside.is_cached("listed.example"));
    inside.pass(5);
    assert!(!inside.is_cached("listed.example"));
}

#[tokio::test]
async fn an_answer_that_the_set_takes_nothing_from_holds_nothing() {
    let inside = Inside::start(|asked, _| match asked.name().as_str() {
        "private.listed.example" => asked.a([10, 0, 0, 1]),
        "none.listed.example" => asked.fail(3),
        "unknown.listed.example" => asked.fail(4),
        _ => asked.reply().act(),
    })
    .await;
    assert_eq!(inside.ask("private.listed.example", 0).await, Heard::Nothing { fresh_until: at(300) });
    assert_eq!(inside.ask("none.listed.example", 0).await, Heard::Nothing { fresh_until: START });
    assert_eq!(inside.ask("empty.listed.example", 0).await, Heard::Nothing { fresh_until: START });
    assert!(matches!(inside.ask("unknown.listed.example", 0).await, Heard::Nothing { .. }));
    assert_eq!(inside.ask("other.example", 0).await, Heard::Nothing { fresh_until: START });
}

#[tokio::test]
async fn clients_who_ask_meanwhile_share_the_exchange() {
    let inside = Inside::start(|asked, _| minute(asked).after(Duration::from_millis(300))).await;
    let (one, two) = tokio::join!(inside.ask("listed.example", 0), inside.ask("listed.example", 0));
    assert_eq!((one, inside.upstream.count()), (two, 1));
}
