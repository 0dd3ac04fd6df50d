//! How upstreams are chosen, hedged, given up and found again, seen from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hickory_proto::rr::RecordType;

use crate::harness::{Setup, addresses};
use crate::upstream::{Act, Upstream};

fn both(first: &Upstream, second: &Upstream, more: &str) -> Setup {
    let upstreams = format!("upstreams = [\"udp://{}\", \"udp://{}\"]\n{more}", first.addr, second.addr);
    Setup::new(first.addr).only("forward", &upstreams)
}

#[tokio::test]
async fn a_late_answer_is_hedged_and_the_rest_is_not() {
    let first = Upstream::start(|asked| match asked.name().split('.').next() {
        Some(label) if label.starts_with("late") => asked.a([192, 0, 2, 1]).after(Duration::from_secs(4)),
        _ => asked.a([192, 0, 2, 1]),
    })
    .await;
    let second = Upstream::start(|asked| asked.a([192, 0, 2, 2]).after(Duration::from_millis(15))).await;
    let greenlane = both(&first, &second, "strategy = \"fastest\"").start().await;
    let hedges = "greenlane_forward_hedges_total";
    // Each round learns what is usual, then meets what is not; on a busy machine what is usual may take more than one.
    for round in 0..20 {
        for number in 0..60 {
            greenlane.ask(&format!("n{number}.r{round}.example"), RecordType::A).await;
        }
        let before = greenlane.metric(hedges).await;
        let reply = greenlane.ask(&format!("late.r{round}.example"), RecordType::A).await;
        assert_eq!(addresses(&reply), ["192.0.2.2"], "the second upstream is quicker than four seconds");
        if greenlane.metric(hedges).await > before {
            return;
        }
    }
    panic!("never hedged");
}

#[tokio::test]
async fn an_upstream_that_is_down_is_probed_and_found_again() {
    let is_down = Arc::new(AtomicBool::new(true));
    let script = {
        let is_down = Arc::clone(&is_down);
        move |asked: &crate::upstream::Asked| match is_down.load(Ordering::SeqCst) {
            true => Act::Drop,
            false => asked.a([192, 0, 2, 1]),
        }
    };
    let first = Upstream::start(script).await;
    let second = Upstream::start(|asked| asked.a([192, 0, 2, 2])).await;
    let greenlane = both(&first, &second, "strategy = \"ordered\"").start().await;
    for number in 0..100 {
        let reply = greenlane.ask(&format!("n{number}.example"), RecordType::A).await;
        assert_eq!(addresses(&reply), ["192.0.2.2"]);
    }
    // The question that found it down, and probes with ever longer pauses.
    assert!(first.count() <= 8, "{} questions went to an upstream that is down", first.count());

    is_down.store(false, Ordering::SeqCst);
    for number in 0.. {
        let reply = greenlane.ask(&format!("back{number}.example"), RecordType::A).await;
        if addresses(&reply) == ["192.0.2.1"] {
            break;
        }
        assert!(number < 3000, "it is never found again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn letters_go_out_at_random_and_the_clients_own_come_back() {
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let forward = format!("upstreams = [\"udp://{}\"]\ncase-randomization = true", upstream.addr);
    let greenlane = Setup::new(upstream.addr).only("forward", &forward).start().await;
    let name = "A-Name-Of-Many-Letters.eXample.";
    // The second is answered from the cache.
    for _ in 0..2 {
        let reply = greenlane.ask(name, RecordType::A).await;
        assert_eq!(addresses(&reply), ["192.0.2.1"]);
        assert_eq!(reply.queries[0].name().to_string(), name);
    }
    let sent = upstream.log()[0].qname().to_vec();
    assert_ne!(sent, sent.to_ascii_lowercase());
}
