//! How long an address stays, and which changes make a serial.

use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use tokio::time::sleep;

use super::{a, addr, holds, patient, reply, serial, ttls};
use crate::harness::{Greenlane, Setup, question};
use crate::upstream::Upstream;

/// Nothing but the TTL keeps an address.
fn brief(upstream: &Upstream) -> Setup {
    patient(upstream).with("learn", "min-hold = \"0s\"\ngrace = \"0s\"")
}

/// When an address will leave, as `/explain` tells it.
async fn end(greenlane: &Greenlane, addr: Ipv4Addr) -> u64 {
    let why = greenlane.json(&format!("/explain?address={addr}")).await;
    why["sightings"][0]["end"].as_u64().unwrap()
}

/// Waits until the feed no longer has an address, and returns how long that took.
pub(super) async fn left(greenlane: &Greenlane, addr: Ipv4Addr, patience: Duration) -> Option<Duration> {
    let start = tokio::time::Instant::now();
    while start.elapsed() < patience {
        if !holds(&greenlane.prefixes("").await, addr) {
            return Some(start.elapsed());
        }
        sleep(Duration::from_millis(20)).await;
    }
    None
}

#[tokio::test]
async fn an_address_stays_until_the_last_ttl_told_has_ended_and_leaves_soon_after() {
    let upstream = Upstream::start(|asked| reply(asked, &[a(&asked.name(), 3, addr(1))])).await;
    let greenlane = brief(&upstream).start().await;
    greenlane.ask("www.listed.example", RecordType::A).await;
    sleep(Duration::from_millis(2300)).await;
    let hit = greenlane.ask("www.listed.example", RecordType::A).await;
    assert_eq!((upstream.count(), ttls(&hit)), (1, vec![1]), "less than a second before its end, told a whole one");
    let told = tokio::time::Instant::now();
    while told.elapsed() < Duration::from_millis(950) {
        assert!(holds(&greenlane.prefixes("").await, addr(1)), "{:?} after it was told for a second", told.elapsed());
        sleep(Duration::from_millis(25)).await;
    }
    let took = left(&greenlane, addr(1), Duration::from_secs(2)).await;
    assert!(took.is_some(), "two seconds after its last end it must be gone");
    assert_eq!(greenlane.metric("greenlane_set_sightings").await, 0.0);
}

#[tokio::test]
async fn min_hold_and_grace_keep_an_address_beyond_a_short_ttl() {
    let upstream = Upstream::start(|asked| reply(asked, &[a(&asked.name(), 0, addr(1))])).await;
    let greenlane = patient(&upstream).with("learn", "min-hold = \"1s\"\ngrace = \"1s\"").start().await;
    let answer = greenlane.ask("www.listed.example", RecordType::A).await;
    assert_eq!(ttls(&answer), [0]);
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        assert!(holds(&greenlane.prefixes("").await, addr(1)), "after {:?}", start.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    assert!(left(&greenlane, addr(1), Duration::from_secs(2)).await.is_some());
}

#[tokio::test]
async fn a_later_answer_with_a_shorter_ttl_shortens_no_end() {
    let upstream = Upstream::start(|asked| {
        let ttl = if asked.dnssec_ok() { 1 } else { 4 };
        reply(asked, &[a(&asked.name(), ttl, addr(1))])
    })
    .await;
    let greenlane = brief(&upstream).start().await;
    greenlane.ask("www.listed.example", RecordType::A).await;
    let start = tokio::time::Instant::now();
    let granted = end(&greenlane, addr(1)).await;
    let mut octets = question("www.listed.example", RecordType::A).to_vec().unwrap();
    // DO has an answer of its own, and this one is short.
    let len = octets.len();
    octets[len - 4] |= 0x80;
    let short = Message::from_vec(&greenlane.udp(&octets).await.unwrap()).unwrap();
    assert_eq!(ttls(&short), [1]);
    assert_eq!(end(&greenlane, addr(1)).await, granted);
    while start.elapsed() < Duration::from_millis(3900) {
        assert!(holds(&greenlane.prefixes("").await, addr(1)), "after {:?}", start.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn an_address_of_two_names_leaves_with_the_last_of_them() {
    let upstream = Upstream::start(|asked| {
        let ttl = if asked.name().starts_with("short") { 1 } else { 3 };
        reply(asked, &[a(&asked.name(), ttl, addr(1))])
    })
    .await;
    let greenlane = brief(&upstream).start().await;
    greenlane.ask("long.listed.example", RecordType::A).await;
    greenlane.ask("short.listed.example", RecordType::A).await;
    assert_eq!(greenlane.metric("greenlane_set_sightings").await, 2.0);
    sleep(Duration::from_millis(2600)).await;
    assert_eq!(greenlane.metric("greenlane_set_sightings").await, 1.0);
    assert!(holds(&greenlane.prefixes("").await, addr(1)));
    assert_eq!(serial(&greenlane).await, 1.0, "the set did not change with the first of them");
    assert!(left(&greenlane, addr(1), Duration::from_secs(3)).await.is_some());
}

#[tokio::test]
async fn a_batch_makes_one_serial_and_a_renewal_none() {
    let upstream = Upstream::start(|asked| {
        let all: Vec<_> = (0..20).map(|n| a(&asked.name(), 1, addr(n))).collect();
        reply(asked, &all)
    })
    .await;
    let greenlane = patient(&upstream).start().await;
    greenlane.ask("www.listed.example", RecordType::A).await;
    assert_eq!(serial(&greenlane).await, 1.0, "twenty addresses of one answer");
    let first = end(&greenlane, addr(3)).await;
    sleep(Duration::from_millis(2100)).await;
    greenlane.ask("www.listed.example", RecordType::A).await;
    assert_eq!(upstream.count(), 2);
    assert!(end(&greenlane, addr(3)).await > first, "renewed");
    assert_eq!(serial(&greenlane).await, 1.0);
    assert_eq!(greenlane.metric("greenlane_learn_admitted_total").await, 20.0);
}
