//! Asking ahead: the set holds what listed names answer before any client asks, and goes on holding it.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tokio::time::{Instant, sleep};

use crate::harness::{Greenlane, Setup, WARM, addresses, greenlane};
use crate::upstream::{A, AAAA, Act, Asked, HTTPS, Upstream, record};

/// How long a test waits for what takes some rounds of asking.
const ROUNDS: Duration = Duration::from_secs(90);

/// The address of a name: by the sum of its octets, so that few names share one.
fn octet(name: &str) -> u8 {
    name.bytes().fold(0u8, |sum, byte| sum.wrapping_mul(3).wrapping_add(byte))
}

fn prefix(name: &str) -> String {
    format!("192.0.2.{}/32", octet(name))
}

/// Answers A and AAAA with that TTL, and HTTPS with no record.
fn answer(asked: &Asked, ttl: u32) -> Act {
    let last = octet(&asked.name());
    match asked.qtype() {
        A => asked.reply().answer(&record(&[0xc0, 12], A, ttl, &[192, 0, 2, last])).act(),
        AAAA => {
            let octets = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
            asked.reply().answer(&record(&[0xc0, 12], AAAA, ttl, &octets)).act()
        }
        _ => asked.reply().act(),
    }
}

async fn upstream(ttl: u32) -> Upstream {
    Upstream::start(move |asked| answer(asked, ttl)).await
}

/// One that asks ahead and reloads on SIGHUP alone.
fn setup(upstream: &Upstream) -> Setup {
    Setup::new(upstream.addr)
        .env(WARM, "true")
        .with("catalogue", "watch = false")
        .with("learn", "hold = \"1s\"\nwarm-max-per-second = 200")
}

/// Waits until `is_it`.
async fn until(greenlane: &Greenlane, what: &str, mut is_it: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_it().await {
        assert!(start.elapsed() < ROUNDS, "waited in vain: {what}\n{}", greenlane.log());
        sleep(Duration::from_millis(20)).await;
    }
}

async fn until_prefixes(greenlane: &Greenlane, names: &[&str]) {
    let mut expected: Vec<String> = names.iter().map(|name| prefix(name)).collect();
    expected.sort();
    until(greenlane, "prefixes", async || {
        let mut found = greenlane.prefixes("?family=4").await;
        found.sort();
        found == expected
    })
    .await;
}

async fn hangup(greenlane: &Greenlane) {
    let done = "greenlane_catalogue_reloads_total{result=\"done\"}";
    let before = greenlane.metric(done).await;
    greenlane.signal("HUP");
    greenlane.until_metric(done, |count| count > before).await;
}

async fn results(greenlane: &Greenlane) -> [f64; 4] {
    let mut counts = [0.0; 4];
    for (count, result) in counts.iter_mut().zip(["addresses", "none", "late", "failed"]) {
        *count = greenlane.metric(&format!("greenlane_warm_queries_total{{result=\"{result}\"}}")).await;
    }
    counts
}

fn asked(upstream: &Upstream, name: &str, qtype: u16) -> usize {
    upstream.log().iter().filter(|asked| asked.name() == name && asked.qtype() == qtype).count()
}

#[tokio::test]
async fn every_trigger_is_asked_at_start_and_the_set_holds_it_without_a_client() {
    let upstream = upstream(300).await;
    let list = "# Demo\na.example\n=b.example\n*.below.example\n!never.a.example\ngone.example\n";
    let greenlane = setup(&upstream)
        .list("demo.list", list)
        .list("other.list", "# Other\na.example\nwww.other.example\n")
        .with("catalogue", "never = [\"gone.example\"]")
        .with("learn", "warm-names = \"names.txt\"")
        .file("names.txt", "# Ours\nx.below.example # by hand\nstrange.example\n")
        .start()
        .await;
    let names = ["a.example", "b.example", "www.other.example", "x.below.example"];
    until_prefixes(&greenlane, &names).await;
    greenlane.until_metric("greenlane_warm_queries_total{result=\"none\"}", |count| count >= 4.0).await;
    assert_eq!(greenlane.prefixes("?family=6").await.len(), 4);
    let questions: BTreeSet<_> = upstream.log().iter().map(|asked| (asked.name(), asked.qtype())).collect();
    let expected = names.iter().flat_map(|name| [A, AAAA, HTTPS].map(|qtype| ((*name).to_owned(), qtype)));
    assert_eq!(questions, expected.collect());
    assert_eq!(results(&greenlane).await, [8.0, 4.0, 0.0, 0.0]);
    assert_eq!(greenlane.metric("greenlane_warm_names").await, 4.0);
    let said = format!("{}:3:1: `strange.example`: no list covers it", greenlane.path("names.txt").display());
    assert!(greenlane.log().contains(&said), "{said} in {}", greenlane.log());
    // None of it was a client's question, and what is known needs no upstream.
    let text = greenlane.text("/metrics").await;
    let is_of_clients =
        |line: &&str| line.starts_with("greenlane_listen_") || line.starts_with("greenlane_cache_lookups");
    assert!(text.lines().filter(is_of_clients).all(|line| line.ends_with(" 0")), "{text}");
    let before = upstream.count();
    let reply = greenlane.ask("a.example", RecordType::A).await;
    assert_eq!(addresses(&reply), [prefix("a.example").trim_end_matches("/32")]);
    assert_eq!(upstream.count(), before);
}

#[tokio::test]
async fn addresses_are_renewed_before_they_end() {
    // They stay nine seconds, and are asked for a quarter of that before.
    let upstream = upstream(4).await;
    let greenlane = setup(&upstream)
        .list("demo.list", "# Demo\na.example\n")
        .with("learn", "min-hold = \"0s\"\ngrace = \"4s\"")
        .start()
        .await;
    until_prefixes(&greenlane, &["a.example"]).await;
    greenlane.until_metric("greenlane_set_sightings", |count| count == 2.0).await;
    let serial = greenlane.metric("greenlane_set_serial").await;
    until(&greenlane, "three rounds", async || {
        assert_eq!(greenlane.prefixes("").await.len(), 2);
        asked(&upstream, "a.example", A) >= 4
    })
    .await;
    assert_eq!(greenlane.metric("greenlane_set_serial").await, serial, "nothing left in between");
    assert!(asked(&upstream, "a.example", HTTPS) <= 2, "what has no addresses is asked rarely");
}

#[tokio::test]
async fn the_budget_bounds_names_and_questions_a_second() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&times);
    let upstream = Upstream::start(move |asked| {
        log.lock().unwrap().push(Instant::now());
        answer(asked, 300)
    })
    .await;
    let list: String = (0..30).map(|i| format!("n{i}.example\n")).collect();
    let greenlane = Setup::new(upstream.addr)
        .env(WARM, "true")
        .list("demo.list", &format!("# Demo\n{list}"))
        .with("learn", "hold = \"1s\"\nwarm-max-names = 10\nwarm-max-per-second = 10")
        .start()
        .await;
    until(&greenlane, "all questions", async || results(&greenlane).await.iter().sum::<f64>() == 30.0).await;
    assert_eq!(greenlane.metric("greenlane_warm_names").await, 10.0);
    let names: BTreeSet<String> = upstream.counts().into_keys().collect();
    assert_eq!(names, (0..10).map(|i| format!("n{i}.example")).collect(), "the first ones");
    assert!(greenlane.log().contains("learn.warm-max-names"), "{}", greenlane.log());
    // Three seconds' worth; a busy machine may let the first come late.
    let times = times.lock().unwrap();
    let took = times[times.len() - 1].duration_since(times[0]);
    assert!(took >= Duration::from_millis(1500), "{took:?}");
}

#[tokio::test]
async fn it_backs_off_while_the_upstream_fails_and_goes_on_afterwards() {
    let is_broken = Arc::new(AtomicBool::new(true));
    let broken = Arc::clone(&is_broken);
    let upstream = Upstream::start(move |asked| match broken.load(Ordering::SeqCst) {
        true => asked.fail(2),
        false => answer(asked, 300),
    })
    .await;
    let names: Vec<String> = (0..200).map(|i| format!("n{i}.example")).collect();
    let greenlane = setup(&upstream).list("demo.list", &format!("# Demo\n{}\n", names.join("\n"))).start().await;
    greenlane.until_metric("greenlane_warm_queries_total{result=\"failed\"}", |count| count >= 12.0).await;
    // The budget alone would let all 600 pass within this time.
    sleep(Duration::from_secs(3)).await;
    let asked = results(&greenlane).await[3];
    assert!(asked < 250.0, "{asked} questions");
    is_broken.store(false, Ordering::SeqCst);
    until(&greenlane, "all names", async || results(&greenlane).await[0] >= 400.0).await;
    assert_eq!(greenlane.metric("greenlane_set_sightings").await, 400.0);
}

#[tokio::test]
async fn a_reload_asks_new_names_and_takes_from_the_cache_what_is_there() {
    let upstream = upstream(300).await;
    let greenlane = setup(&upstream)
        .list("demo.list", "# Demo\na.example\n")
        .with("learn", "warm-names = \"names.txt\"")
        .file("names.txt", "")
        .start()
        .await;
    until_prefixes(&greenlane, &["a.example"]).await;
    greenlane.ask("b.example", RecordType::A).await;
    fs::write(greenlane.path("zones/demo.list"), "# Demo\na.example\nb.example\nc.example\n").unwrap();
    fs::write(greenlane.path("names.txt"), "www.c.example\n").unwrap();
    hangup(&greenlane).await;
    until_prefixes(&greenlane, &["a.example", "b.example", "c.example", "www.c.example"]).await;
    assert_eq!(asked(&upstream, "b.example", A), 1, "by the client");
    assert_eq!(asked(&upstream, "a.example", A), 1, "a reload asks no upstream for what is there");
    // And those that are listed no longer are forgotten.
    fs::write(greenlane.path("zones/demo.list"), "# Demo\na.example\nb.example\n").unwrap();
    fs::write(greenlane.path("names.txt"), "").unwrap();
    hangup(&greenlane).await;
    greenlane.until_metric("greenlane_warm_names", |count| count == 2.0).await;
}

#[tokio::test]
async fn names_used_lately_are_kept_warm_and_then_forgotten() {
    // They stay six seconds by themselves.
    let upstream = upstream(2).await;
    let greenlane =
        setup(&upstream).with("learn", "min-hold = \"0s\"\ngrace = \"3s\"\nwarm-used-for = \"15s\"").start().await;
    greenlane.ask("www.listed.example", RecordType::A).await;
    greenlane.until_metric("greenlane_warm_names", |count| count == 2.0).await;
    until(&greenlane, "rounds", async || asked(&upstream, "www.listed.example", A) >= 3).await;
    until(&greenlane, "forgotten", async || greenlane.metric("greenlane_warm_names").await == 1.0).await;
    until_prefixes(&greenlane, &["listed.example"]).await;
    assert!(asked(&upstream, "www.listed.example", A) <= 6);
}

#[tokio::test]
async fn switched_off_it_asks_nothing_and_a_reload_switches_it_on() {
    let upstream = upstream(300).await;
    let greenlane = Setup::new(upstream.addr)
        .env(WARM, "")
        .with("catalogue", "watch = false")
        .with("learn", "warm = false")
        .start()
        .await;
    greenlane.ask("www.listed.example", RecordType::A).await;
    assert_eq!(upstream.count(), 1);
    let config = fs::read_to_string(greenlane.path("config.toml")).unwrap();
    fs::write(greenlane.path("config.toml"), config.replace("warm = false", "warm = true")).unwrap();
    hangup(&greenlane).await;
    until_prefixes(&greenlane, &["listed.example", "www.listed.example"]).await;
    fs::write(greenlane.path("config.toml"), config).unwrap();
    hangup(&greenlane).await;
    greenlane.until_metric("greenlane_warm_names", |count| count == 0.0).await;
}

#[tokio::test]
async fn a_file_of_names_with_mistakes_is_refused_and_a_reload_keeps_the_old_state() {
    let upstream = upstream(300).await;
    let setup = || setup(&upstream).with("learn", "warm-names = \"names.txt\"");
    let folder = setup().write();
    let config = folder.path().join("config.toml");
    let expected = ["config.toml:", "learn.warm-names: ", "names.txt: cannot be read: "];
    for command in ["serve", "check"] {
        let output = greenlane().arg(command).arg("-c").arg(&config).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{command}: {said}");
        assert!(said.lines().count() == 1 && expected.iter().all(|part| said.contains(part)), "{command}: {said}");
    }
    let greenlane = setup().file("names.txt", "www.listed.example\n").start().await;
    until_prefixes(&greenlane, &["listed.example", "www.listed.example"]).await;
    fs::write(greenlane.path("names.txt"), "x.listed.example\n*.listed.example\n").unwrap();
    greenlane.signal("HUP");
    greenlane.until_metric("greenlane_catalogue_reloads_total{result=\"failed\"}", |count| count == 1.0).await;
    assert!(
        greenlane.log().contains("names.txt:2:1: `*.listed.example`: expected one whole name"),
        "{}",
        greenlane.log()
    );
    assert_eq!(greenlane.metric("greenlane_warm_names").await, 2.0);
}
