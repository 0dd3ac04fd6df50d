//! One set for many resolvers: built binaries, and a real `redis-server` between them.

mod engine;
mod faults;
mod hostile;
mod partition;

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tokio::time::sleep;

use crate::harness::{Client, Greenlane, PATIENCE, Setup, addresses};
use crate::upstream::{Asked, Upstream};

use engine::{Engine, has_engine};

/// Answers `nA-B.…` with 198.18.A.B.
async fn numbering() -> Upstream {
    Upstream::start(|asked| asked.a(number(asked))).await
}

fn number(asked: &Asked) -> [u8; 4] {
    let name = asked.name();
    let label = name.split('.').next().unwrap().strip_prefix('n').unwrap_or("0-0");
    let (high, low) = label.split_once('-').unwrap_or(("0", "0"));
    [198, 18, high.parse().unwrap_or(0), low.parse().unwrap_or(0)]
}

fn setup(upstream: &Upstream, engine: &Engine) -> Setup {
    Setup::new(upstream.addr)
        .with("store", &format!("cluster = \"{}\"", engine.url()))
        .with("learn", "hold = \"1s\"")
        .with("catalogue", "watch = false")
        .with("log", "level = \"info\"")
}

fn name(high: u8, low: u8) -> String {
    format!("n{high}-{low}.listed.example")
}

async fn learn(client: &Client, high: u8, lows: impl IntoIterator<Item = u8>) {
    for low in lows {
        let answer = client.ask(&name(high, low), RecordType::A).await;
        assert_eq!(addresses(&answer), [format!("198.18.{high}.{low}")]);
    }
}

/// Waits until all resolvers serve the same octets, and `is_it` takes them.
async fn until_one(all: &[&Greenlane], is_it: impl Fn(&str) -> bool) -> String {
    let mut pages = Vec::new();
    for _ in 0..PATIENCE.as_millis() / 20 {
        pages.clear();
        for greenlane in all {
            pages.push(greenlane.text("/prefixes.txt").await);
        }
        if pages.iter().all(|page| *page == pages[0]) && is_it(&pages[0]) {
            return pages.swap_remove(0);
        }
        sleep(Duration::from_millis(20)).await;
    }
    let logs: String = all.iter().map(|greenlane| greenlane.log()).collect();
    panic!("the sets do not become one: {pages:#?}\n{logs}");
}

/// How many addresses a page of prefixes covers.
fn host_count(page: &str) -> u64 {
    page.lines().map(|line| 1 << (32 - line.rsplit_once('/').unwrap().1.parse::<u32>().unwrap())).sum()
}

/// The ends of an address's sightings.
async fn ends(client: &Client, addr: &str) -> Vec<u64> {
    let json = client.json(&format!("/explain?address={addr}")).await;
    json["sightings"].as_array().unwrap().iter().map(|one| one["end"].as_u64().unwrap()).collect()
}

/// Starts two resolvers of one engine, and waits until both have joined it.
async fn two_joined(upstream: &Upstream, engine: &Engine) -> (Greenlane, Greenlane) {
    let a = setup(upstream, engine).start().await;
    let b = setup(upstream, engine).start().await;
    until_joined(&a).await;
    until_joined(&b).await;
    (a, b)
}

async fn until_joined(greenlane: &Greenlane) {
    greenlane.until_metric("greenlane_cluster_up", |up| up == 1.0).await;
}

#[tokio::test]
async fn what_one_learns_the_other_serves_until_the_same_end() {
    if !has_engine() {
        return;
    }
    let (upstream, engine) = (numbering().await, Engine::start().await);
    let (a, b) = two_joined(&upstream, &engine).await;
    learn(&a, 1, 1..=20).await;
    learn(&b, 2, 1..=20).await;
    let page = until_one(&[&a, &b], |page| host_count(page) == 40).await;
    assert!(page.starts_with("198.18.1."), "{page}");
    for addr in ["198.18.1.7", "198.18.2.7"] {
        let (here, there) = (ends(&a, addr).await, ends(&b, addr).await);
        assert_eq!(here, there);
        assert_eq!(here[0] % 30, 0, "a whole half minute");
    }
    let json = b.json("/explain?address=198.18.1.7").await;
    assert_eq!(json["sightings"][0]["name"], "n1-7.listed.example", "with the name that it was learned for");
    // A third one that comes later knows all of it before it answers anything.
    let c = setup(&upstream, &engine).start().await;
    assert_eq!(c.text("/prefixes.txt").await, page);
    a.until_metric("greenlane_cluster_peers", |peers| peers == 2.0).await;
    crate::metrics::assert_asked_for_what_a_cluster_has(&a.text("/metrics").await);
}

#[tokio::test]
async fn three_learn_at_the_same_time_and_agree() {
    if !has_engine() {
        return;
    }
    let (upstream, engine) = (numbering().await, Engine::start().await);
    let mut all = Vec::new();
    for _ in 0..3 {
        let greenlane = setup(&upstream, &engine).start().await;
        until_joined(&greenlane).await;
        all.push(Arc::new(greenlane));
    }
    let mut asking = tokio::task::JoinSet::new();
    for (at, greenlane) in all.iter().enumerate() {
        let greenlane = Arc::clone(greenlane);
        asking.spawn(async move {
            // Half of the names are everybody's, half are its own.
            learn(&greenlane, 9, 0..=99).await;
            learn(&greenlane, at as u8, 0..=99).await;
        });
    }
    while let Some(asked) = asking.join_next().await {
        asked.unwrap();
    }
    let all: Vec<&Greenlane> = all.iter().map(|one| &**one).collect();
    until_one(&all, |page| host_count(page) == 400).await;
    for low in [0, 50, 99] {
        let addr = format!("198.18.9.{low}");
        let expected = ends(all[0], &addr).await;
        for other in &all[1..] {
            for _ in 0..100 {
                if ends(other, &addr).await == expected {
                    break;
                }
                sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(ends(other, &addr).await, expected, "{addr}");
        }
    }
}

#[tokio::test]
async fn a_resolver_that_is_lost_leaves_what_it_told_to_the_others() {
    if !has_engine() {
        return;
    }
    let (upstream, engine) = (numbering().await, Engine::start().await);
    let mut a = setup(&upstream, &engine).start().await;
    let b = setup(&upstream, &engine).start().await;
    until_joined(&b).await;
    learn(&a, 1, 1..=20).await;
    until_one(&[&a, &b], |page| host_count(page) == 20).await;
    a.signal("KILL");
    a.ended().await;
    // Its disk is lost, too.
    for file in std::fs::read_dir(a.path("")).unwrap().map(|entry| entry.unwrap().path()) {
        let is_store = file.file_name().unwrap().to_string_lossy().starts_with("greenlane.redb");
        if is_store && file.is_file() {
            std::fs::remove_file(file).unwrap();
        }
    }
    assert_eq!(host_count(&b.text("/prefixes.txt").await), 20);
    a.begin_again().await;
    assert_eq!(a.text("/prefixes.txt").await, b.text("/prefixes.txt").await, "from its first answer on");
}

#[tokio::test]
async fn clusters_of_other_ids_on_one_engine_do_not_mix() {
    if !has_engine() {
        return;
    }
    let (upstream, engine) = (numbering().await, Engine::start().await);
    let a = setup(&upstream, &engine).start().await;
    let b = setup(&upstream, &engine).with("store", "cluster-id = \"other\"").start().await;
    until_joined(&a).await;
    until_joined(&b).await;
    learn(&a, 1, 1..=3).await;
    learn(&b, 2, 1..=3).await;
    a.until_metric("greenlane_cluster_sent_total", |sent| sent >= 3.0).await;
    b.until_metric("greenlane_cluster_sent_total", |sent| sent >= 3.0).await;
    let c = setup(&upstream, &engine).with("store", "cluster-id = \"other\"").start().await;
    assert_eq!(c.text("/prefixes.txt").await, b.text("/prefixes.txt").await);
    assert_eq!(host_count(&a.text("/prefixes.txt").await), 3);
    assert_eq!(a.metric("greenlane_cluster_peers").await, 0.0);
}

#[tokio::test]
async fn lists_that_differ_are_warned_of_once() {
    if !has_engine() {
        return;
    }
    let (upstream, engine) = (numbering().await, Engine::start().await);
    let more = "# Demo\nlisted.example\nother.example\n";
    let a = setup(&upstream, &engine).start().await;
    let b = setup(&upstream, &engine).list("demo.list", more).start().await;
    a.until_metric("greenlane_cluster_peers_differing", |peers| peers == 1.0).await;
    b.until_metric("greenlane_cluster_peers_differing", |peers| peers == 1.0).await;
    b.ask("n7-7.other.example", RecordType::A).await;
    learn(&b, 1, [1]).await;
    a.until_metric("greenlane_cluster_received_total{result=\"unlisted\"}", |count| count >= 1.0).await;
    until_shown(&a, "198.18.1.1/32").await;
    assert_eq!(a.prefixes("").await, ["198.18.1.1/32"], "each keeps what its own lists have");
    let mut a = a;
    a.until(|a| a.log().contains("have other lists than this one").then_some(())).await;
    // Once the name is listed here, too, what the others know of it comes at once.
    std::fs::write(a.path("zones/demo.list"), more).unwrap();
    a.signal("HUP");
    until_one(&[&a, &b], |page| host_count(page) == 2).await;
    a.until_metric("greenlane_cluster_peers_differing", |peers| peers == 0.0).await;
    a.until(|a| a.log().contains("the same lists again").then_some(())).await;
    assert_eq!(a.log().matches("have other lists than this one").count(), 1, "{}", a.log());
}

async fn until_shown(client: &Client, prefix: &str) {
    for _ in 0..PATIENCE.as_millis() / 20 {
        if client.prefixes("").await.iter().any(|one| one == prefix) {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("{prefix} does not come: {:?}", client.prefixes("").await);
}

#[tokio::test]
async fn an_eviction_goes_for_all_and_does_not_come_back() {
    if !has_engine() {
        return;
    }
    let (upstream, engine) = (numbering().await, Engine::start().await);
    // Everything is past what was told at once, and nothing ends by itself.
    let small = |setup: Setup| setup.with("learn", "max-total = 10\nmin-hold = \"0s\"\ngrace = \"1h\"");
    let brief = Upstream::start(|asked| {
        let record = crate::upstream::record(asked.qname(), crate::upstream::A, 1, &number(asked));
        asked.reply().answer(&record).act()
    })
    .await;
    let a = small(setup(&brief, &engine)).start().await;
    let b = small(setup(&brief, &engine)).start().await;
    until_joined(&a).await;
    until_joined(&b).await;
    learn(&a, 1, 0..10).await;
    until_one(&[&a, &b], |page| host_count(page) == 10).await;
    // Told until a whole half minute.
    let mut learned = false;
    for _ in 0..400 {
        a.ask(&name(2, 1), RecordType::A).await;
        if a.prefixes("").await.iter().any(|one| one == "198.18.2.1/32") {
            learned = true;
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!(learned, "there was never room");
    let page = until_one(&[&a, &b], |page| page.contains("198.18.2.1/32")).await;
    assert_eq!(host_count(&page), 10, "one has left for it, everywhere");
    let c = small(setup(&upstream, &engine)).start().await;
    assert_eq!(c.text("/prefixes.txt").await, page, "the removal is known to who comes later");
}
