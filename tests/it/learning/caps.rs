//! Caps and rates: who is refused, who makes room, and who never does.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use super::ends::left;
use super::{a, addr, number, patient, refused, reply, ttls};
use crate::harness::{Greenlane, PATIENCE, addresses, question, tag};
use crate::upstream::Upstream;

async fn numbered(learn: &str, ttl: u32) -> (Upstream, Greenlane) {
    let upstream = Upstream::start(move |asked| reply(asked, &[a(&asked.name(), ttl, addr(number(asked)))])).await;
    let greenlane = patient(&upstream).with("learn", learn).start().await;
    (upstream, greenlane)
}

async fn ask_numbered(greenlane: &Greenlane, n: u32) -> Message {
    greenlane.ask(&format!("n{n}.listed.example"), RecordType::A).await
}

/// The addresses of these numbers, and no other.
async fn assert_set(greenlane: &Greenlane, ns: &[u32]) {
    let expected: Vec<_> = ns.iter().map(|n| format!("{}/32", addr(*n))).collect();
    assert_eq!(greenlane.prefixes("").await, expected);
}

#[tokio::test]
async fn a_flood_at_max_total_is_refused_and_pushes_nobody_out() {
    let (_upstream, greenlane) = numbered("max-total = 3", 300).await;
    for n in 0..3 {
        assert_eq!(ttls(&ask_numbered(&greenlane, n).await), [300]);
    }
    for n in 3..40 {
        let answer = ask_numbered(&greenlane, n).await;
        assert_eq!((addresses(&answer), ttls(&answer)), (vec![addr(n).to_string()], vec![1]), "it passes, for 1 s");
        assert!(tag(&answer).is_some());
    }
    assert_set(&greenlane, &[0, 1, 2]).await;
    assert_eq!(refused(&greenlane, "max-total").await, 37.0);
    assert_eq!(greenlane.metric("greenlane_learn_evicted_total").await, 0.0);
    assert_eq!(ttls(&ask_numbered(&greenlane, 39).await), [1], "and again when it comes from the cache");
    assert_eq!(ttls(&ask_numbered(&greenlane, 1).await).len(), 1);
    assert_set(&greenlane, &[0, 1, 2]).await;
}

#[tokio::test]
async fn max_per_trigger_counts_all_names_under_one_line() {
    let upstream = Upstream::start(|asked| reply(asked, &[a(&asked.name(), 300, addr(number(asked)))])).await;
    let greenlane = patient(&upstream)
        .list("demo.list", "# Demo\nlisted.example\nsecond.example\n")
        .with("learn", "max-per-trigger = 2")
        .start()
        .await;
    for (name, ttl) in [
        ("n1.listed.example", 300),
        ("n2.a.listed.example", 300),
        ("n3.b.listed.example", 1),
        ("n4.second.example", 300),
        ("n5.listed.example", 1),
        ("n6.second.example", 300),
        ("n7.second.example", 1),
    ] {
        assert_eq!(ttls(&greenlane.ask(name, RecordType::A).await), [ttl], "{name}");
    }
    assert_set(&greenlane, &[1, 2, 4, 6]).await;
    assert_eq!(refused(&greenlane, "max-per-trigger").await, 3.0);
}

#[tokio::test]
async fn max_per_name_counts_one_names_addresses() {
    let upstream = Upstream::start(|asked| {
        // A new address with every exchange; CD and DO have answers of their own.
        reply(asked, &[a(&asked.name(), 300, addr(asked.before as u32))])
    })
    .await;
    let greenlane = patient(&upstream).with("learn", "max-per-name = 2").start().await;
    let mut octets = question("www.listed.example", RecordType::A).to_vec().unwrap();
    let len = octets.len();
    for (cd, dnssec_ok, ttl) in [(0, 0, 300), (0x10, 0, 300), (0, 0x80, 1), (0x10, 0x80, 1)] {
        octets[3] = octets[3] & !0x10 | cd;
        octets[len - 4] = dnssec_ok;
        let answer = Message::from_vec(&greenlane.udp(&octets).await.unwrap()).unwrap();
        assert_eq!(ttls(&answer), [ttl], "CD {cd} DO {dnssec_ok}");
    }
    assert_set(&greenlane, &[0, 1]).await;
    assert_eq!(refused(&greenlane, "max-per-name").await, 2.0);
    greenlane.ask("other.listed.example", RecordType::A).await;
    assert_set(&greenlane, &[0, 1, 4]).await;
}

#[tokio::test]
async fn an_answer_larger_than_max_per_name_is_learned_not_at_all() {
    let upstream = Upstream::start(|asked| {
        let all: Vec<_> = (0..number(asked)).map(|n| a(&asked.name(), 300, addr(n))).collect();
        reply(asked, &all)
    })
    .await;
    let greenlane = patient(&upstream).with("learn", "max-per-name = 3").start().await;
    let answer = greenlane.ask("n5.listed.example", RecordType::A).await;
    assert_eq!(ttls(&answer), [1; 5]);
    assert_set(&greenlane, &[]).await;
    assert_eq!(refused(&greenlane, "max-per-name").await, 5.0);
    assert_eq!(ttls(&greenlane.ask("n3.listed.example", RecordType::A).await), [300; 3]);
    assert_set(&greenlane, &[0, 1, 2]).await;
}

#[tokio::test]
async fn only_addresses_past_the_ttl_told_make_room_longest_unasked_first() {
    let upstream = Upstream::start(|asked| {
        let n = number(asked);
        reply(asked, &[a(&asked.name(), if n == 2 { 300 } else { 1 }, addr(n))])
    })
    .await;
    let greenlane = patient(&upstream).with("learn", "max-total = 3").start().await;
    for n in [1, 0, 2] {
        ask_numbered(&greenlane, n).await;
    }
    assert_eq!(ttls(&ask_numbered(&greenlane, 3).await), [1], "refused");
    assert_set(&greenlane, &[0, 1, 2]).await;
    // Told for a second, counted as two: what is cached is told to live a second longer than it was stored for.
    sleep(Duration::from_millis(2300)).await;
    assert_set(&greenlane, &[0, 1, 2]).await;
    ask_numbered(&greenlane, 4).await;
    assert_set(&greenlane, &[0, 2, 4]).await;
    assert_eq!(greenlane.metric("greenlane_learn_evicted_total").await, 1.0);
    ask_numbered(&greenlane, 5).await;
    assert_set(&greenlane, &[2, 4, 5]).await;
    ask_numbered(&greenlane, 6).await;
    assert_set(&greenlane, &[2, 4, 5]).await;
}

/// Asks from an address of loopback.
async fn ask_from(greenlane: &Greenlane, client: [u8; 4], name: &str) -> Message {
    let socket = UdpSocket::bind(SocketAddr::from((client, 0))).await.unwrap();
    socket.connect(greenlane.dns).await.unwrap();
    socket.send(&question(name, RecordType::A).to_vec().unwrap()).await.unwrap();
    let mut octets = vec![0; 4096];
    let len = timeout(PATIENCE, socket.recv(&mut octets)).await.unwrap().unwrap();
    Message::from_vec(&octets[..len]).unwrap()
}

#[tokio::test]
async fn new_addresses_are_rated_by_client_prefix() {
    let (_upstream, greenlane) = numbered("new-per-client-per-minute = 5", 300).await;
    for n in 0..8 {
        let answer = ask_from(&greenlane, [127, 0, 0, 1 + n as u8], &format!("n{n}.listed.example")).await;
        assert_eq!(ttls(&answer), [if n < 5 { 300 } else { 1 }], "number {n}, all of one /24");
    }
    assert_set(&greenlane, &[0, 1, 2, 3, 4]).await;
    assert_eq!(refused(&greenlane, "client-rate").await, 3.0);
    let other = ask_from(&greenlane, [127, 0, 1, 1], "n9.listed.example").await;
    assert_eq!(ttls(&other), [300], "another /24");
    let known = ask_from(&greenlane, [127, 0, 0, 1], "n9.listed.example").await;
    assert!(ttls(&known)[0] > 1, "what is known costs nothing");
    assert_set(&greenlane, &[0, 1, 2, 3, 4, 9]).await;
}

#[tokio::test]
async fn what_was_refused_is_learned_once_there_is_room() {
    let (upstream, greenlane) = numbered("max-total = 1\nmin-hold = \"0s\"\ngrace = \"0s\"", 2).await;
    ask_numbered(&greenlane, 0).await;
    assert_eq!(ttls(&ask_numbered(&greenlane, 1).await), [1]);
    assert!(left(&greenlane, addr(0), Duration::from_secs(5)).await.is_some());
    ask_numbered(&greenlane, 1).await;
    assert_set(&greenlane, &[1]).await;
    assert!(upstream.count() >= 2);
}
