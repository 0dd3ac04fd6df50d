//! Answers past their end while the upstream is away, as clients of the built binary see them. To the second, and what
//! is asked ahead, is played in `tests/scenarios/`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use greenlane::clock::Stopwatch;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::time::sleep;

use crate::harness::{Greenlane, Setup, addresses, tag};
use crate::scenarios::{edes, told};
use crate::upstream::{A, Act, Upstream, record};

const WELL: u8 = 0;
const SILENT: u8 = 1;
const SERVFAIL: u8 = 2;

/// An upstream whose mood changes, and whose answers live for a second.
async fn upstream() -> (Upstream, Arc<AtomicU8>) {
    let mood = Arc::new(AtomicU8::new(WELL));
    let moody = Arc::clone(&mood);
    let upstream = Upstream::start(move |asked| match moody.load(Ordering::SeqCst) {
        WELL => asked.reply().answer(&record(&[0xc0, 12], A, 1, &[198, 51, 100, 1])).act(),
        SILENT => Act::Drop,
        _ => asked.fail(2),
    });
    (upstream.await, mood)
}

/// Asks for names that are asked for again once they have ended.
async fn fill(greenlane: &Greenlane, names: &[&str]) {
    for name in names {
        assert_eq!(addresses(&greenlane.ask(name, RecordType::A).await), ["198.51.100.1"]);
    }
    sleep(Duration::from_millis(1100)).await;
}

fn check_stale(answer: &Message) {
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert_eq!(edes(answer), [3]);
    let [(addr, ttl_secs)] = told(answer)[..] else { panic!("one address: {answer:?}") };
    assert_eq!(addr.to_string(), "198.51.100.1");
    assert!(ttl_secs <= 1, "no longer than it was told first");
}

#[tokio::test]
async fn a_silent_upstream_costs_a_client_less_than_two_seconds_once() {
    let (upstream, mood) = upstream().await;
    let greenlane = Setup::new(upstream.addr).start().await;
    fill(&greenlane, &["www.listed.example", "tcp.listed.example", "new.listed.example"]).await;
    mood.store(SILENT, Ordering::SeqCst);
    let watch = Stopwatch::start();
    let (first, second, over_tcp) = tokio::join!(
        greenlane.ask("www.listed.example", RecordType::A),
        greenlane.ask("www.listed.example", RecordType::A),
        greenlane.ask_tcp("tcp.listed.example", RecordType::A),
    );
    assert!(watch.elapsed() >= Duration::from_millis(1700), "a newer answer is waited for");
    for answer in [first, second, over_tcp] {
        check_stale(&answer);
        assert!(tag(&answer).is_some());
    }
    check_stale(&greenlane.ask("www.listed.example", RecordType::A).await);
    greenlane.until_metric("greenlane_cache_lookups_total{result=\"stale\"}", |value| value == 4.0).await;
    // What comes at last is neither held up nor told as stale.
    mood.store(WELL, Ordering::SeqCst);
    let fresh = greenlane.ask("new.listed.example", RecordType::A).await;
    assert_eq!((edes(&fresh), addresses(&fresh)), (Vec::new(), vec!["198.51.100.1".to_owned()]));
}

#[tokio::test]
async fn a_failing_upstream_costs_nothing_and_is_left_alone() {
    let (upstream, mood) = upstream().await;
    let greenlane = Setup::new(upstream.addr).start().await;
    fill(&greenlane, &["www.listed.example"]).await;
    mood.store(SERVFAIL, Ordering::SeqCst);
    check_stale(&greenlane.ask("www.listed.example", RecordType::A).await);
    let asked = upstream.count();
    for _ in 0..5 {
        check_stale(&greenlane.ask("www.listed.example", RecordType::A).await);
        check_stale(&greenlane.ask_tcp("www.listed.example", RecordType::A).await);
    }
    assert_eq!(upstream.count(), asked, "for half a minute");
    assert_eq!(greenlane.prefixes("").await, ["198.51.100.1/32"]);
    let unknown = greenlane.ask("unknown.listed.example", RecordType::A).await;
    assert_eq!(unknown.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn stale_answers_can_be_switched_off() {
    let (upstream, mood) = upstream().await;
    let greenlane = Setup::new(upstream.addr).with("cache", "serve-stale = \"0s\"").start().await;
    fill(&greenlane, &["www.listed.example"]).await;
    mood.store(SERVFAIL, Ordering::SeqCst);
    let answer = greenlane.ask("www.listed.example", RecordType::A).await;
    assert_eq!((answer.metadata.response_code, edes(&answer)), (ResponseCode::ServFail, Vec::new()));
}
