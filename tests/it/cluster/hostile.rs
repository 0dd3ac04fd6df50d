//! An engine that lies: garbage in every key and in the stream, and a server that does not speak the protocol.
//!
//! Nothing of it gets into the set that lists and admission would not let in, nothing panics, and what other resolvers
//! say beside it is heard.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const SIGHTINGS: &[u8] = b"greenlane:{greenlane}:sightings";
const GONE: &[u8] = b"greenlane:{greenlane}:gone";
const CHANGES: &[u8] = b"greenlane:{greenlane}:changes";
const NODES: &[u8] = b"greenlane:{greenlane}:nodes";
const MARK: &[u8] = b"greenlane:{greenlane}:mark";

/// A member as resolvers write it.
fn member(addr: &[u8], name: &str) -> Vec<u8> {
    let mut octets = vec![if addr.len() == 4 { 4 } else { 6 }];
    octets.extend_from_slice(addr);
    for label in name.split('.') {
        octets.push(label.len() as u8);
        octets.extend_from_slice(label.as_bytes());
    }
    octets
}

/// A message as resolvers write it, with one record.
fn message(kind: u8, end: u64, member: &[u8]) -> Vec<u8> {
    let mut octets = vec![1];
    octets.extend_from_slice(&7u64.to_be_bytes());
    octets.extend_from_slice(&0u64.to_be_bytes());
    octets.push(kind);
    octets.extend_from_slice(&end.to_be_bytes()[2..]);
    octets.extend_from_slice(&(member.len() as u16).to_be_bytes());
    octets.extend_from_slice(member);
    octets
}

fn millis_ahead(secs: u64) -> u64 {
    greenlane::clock::Clock::system().now().as_millis() + 1000 * secs
}

/// Members that must not come in, with their scores.
fn wrong_members() -> Vec<(String, Vec<u8>)> {
    let good = || member(&[198, 18, 66, 6], "bad.listed.example");
    let ahead = millis_ahead(900).to_string();
    let mut upper = good();
    upper[6] = b'B';
    let private: [&[u8]; 6] = [
        &[10, 0, 0, 1],
        &[127, 0, 0, 1],
        &[224, 0, 0, 1],
        &[169, 254, 1, 1],
        &[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, 66, 6],
    ];
    let mut wrong: Vec<(String, Vec<u8>)> =
        private.iter().map(|addr| (ahead.clone(), member(addr, "bad.listed.example"))).collect();
    let hundred_years = millis_ahead(100 * 365 * 86_400).to_string();
    wrong.extend([
        (ahead.clone(), member(&[198, 18, 66, 6], "www.unlisted.example")),
        (ahead.clone(), member(&[198, 18, 66, 6], "example")),
        (ahead.clone(), vec![4, 198, 18, 66, 6]),
        (ahead.clone(), Vec::new()),
        (ahead.clone(), vec![0xff; 40]),
        (ahead.clone(), vec![4]),
        (ahead.clone(), upper),
        (ahead.clone(), [&good()[..], &[63, b'x']].concat()),
        (ahead.clone(), vec![b'x'; 4 << 20]),
        (hundred_years, good()),
        ("+inf".to_owned(), member(&[198, 18, 66, 7], "bad.listed.example")),
        ("-inf".to_owned(), member(&[198, 18, 66, 8], "bad.listed.example")),
        ("-5".to_owned(), member(&[198, 18, 66, 9], "bad.listed.example")),
        (format!("{ahead}.5"), member(&[198, 18, 66, 10], "bad.listed.example")),
        ("1e300".to_owned(), member(&[198, 18, 66, 11], "bad.listed.example")),
        ("1000".to_owned(), member(&[198, 18, 66, 12], "bad.listed.example")),
    ]);
    wrong
}

async fn fill(engine: &Engine) {
    for (score, member) in wrong_members() {
        for key in [SIGHTINGS, GONE] {
            let _: u64 = engine.run(&[b"ZADD", key, score.as_bytes(), &member]).await;
        }
        let end = score.parse::<u64>().unwrap_or(0);
        let one = message(1, end, &member[..member.len().min(60_000)]);
        let mut cut = one.clone();
        cut.truncate(one.len().saturating_sub(3));
        let other_version = [&[9], &one[1..]].concat();
        let unknown_kind = message(77, end, &member[..member.len().min(300)]);
        for payload in [&one[..], &cut, &other_version, &unknown_kind, &member] {
            let _: String = engine.run(&[b"XADD", CHANGES, b"*", b"m", payload]).await;
        }
        let _: String = engine.run(&[b"XADD", CHANGES, b"*", &member, b"x", b"m", b"y"]).await;
    }
    for n in 0..100u32 {
        let garbage = vec![0xee; n as usize];
        let _: u64 = engine.run(&[b"HSET", NODES, &n.to_be_bytes(), &garbage]).await;
    }
    let _: u64 = engine.run(&[b"HSET", NODES, b"large", &vec![b'1'; 4 << 20]]).await;
}

#[tokio::test]
async fn nothing_gets_in_that_an_answer_could_not_have_brought() {
    if !has_engine() {
        return;
    }
    let (upstream, engine) = (numbering().await, Engine::start().await);
    // Before it starts, so that it is compared; and after, so that it comes by the stream.
    fill(&engine).await;
    let a = setup(&upstream, &engine).start().await;
    until_joined(&a).await;
    learn(&a, 1, [1]).await;
    fill(&engine).await;
    // A word of the right form is heard: all before it was read.
    let good = member(&[198, 18, 2, 2], "good.listed.example");
    let end = millis_ahead(900);
    let _: String = engine.run(&[b"XADD", CHANGES, b"*", b"m", &message(1, end, &good)]).await;
    until_shown(&a, "198.18.2.2/32").await;
    assert_eq!(a.prefixes("").await, ["198.18.1.1/32", "198.18.2.2/32"]);
    for reason in ["malformed", "too-far", "unlisted", "inadmissible"] {
        let line = format!("greenlane_cluster_received_total{{result=\"{reason}\"}}");
        assert!(a.metric(&line).await >= 1.0, "{reason}");
    }
    assert!(!a.log().contains("panicked"), "{}", a.log());
    assert_eq!(a.metric("greenlane_cluster_peers_differing").await, 0.0);
}

#[tokio::test]
async fn an_end_is_bounded_by_what_an_answer_could_have_given() {
    if !has_engine() {
        return;
    }
    let (upstream, engine) = (numbering().await, Engine::start().await);
    let a = setup(&upstream, &engine).with("cache", "max-ttl = \"1h\"").start().await;
    until_joined(&a).await;
    let one = member(&[198, 18, 2, 2], "good.listed.example");
    let _: String = engine.run(&[b"XADD", CHANGES, b"*", b"m", &message(1, millis_ahead(30 * 86_400), &one)]).await;
    until_shown(&a, "198.18.2.2/32").await;
    let left = ends(&a, "198.18.2.2").await[0] - millis_ahead(0) / 1000;
    assert!(left <= 3600 + 300 + 601, "{left}");
}

#[tokio::test]
async fn a_forged_removal_takes_nothing_that_somebody_was_told() {
    if !has_engine() {
        return;
    }
    let (upstream, engine) = (numbering().await, Engine::start().await);
    let (a, b) = two_joined(&upstream, &engine).await;
    learn(&a, 1, [1]).await;
    until_one(&[&a, &b], |page| host_count(page) == 1).await;
    let before = ends(&a, "198.18.1.1").await[0];
    let one = member(&[198, 18, 1, 1], &name(1, 1));
    let end = millis_ahead(3600);
    let _: String = engine.run(&[b"XADD", CHANGES, b"*", b"m", &message(2, end, &one)]).await;
    a.until_metric("greenlane_cluster_received_total{result=\"kept\"}", |kept| kept >= 1.0).await;
    assert_eq!(until_one(&[&a, &b], |page| host_count(page) == 1).await, "198.18.1.1/32\n");
    assert!(ends(&a, "198.18.1.1").await[0] > before, "it outbids the removal, for everybody");
}

#[tokio::test]
async fn keys_of_another_type_are_an_outage_and_no_more() {
    if !has_engine() {
        return;
    }
    let (upstream, engine) = (numbering().await, Engine::start().await);
    for key in [SIGHTINGS, GONE, CHANGES, NODES] {
        let _: String = engine.run(&[b"SET", key, b"a string"]).await;
    }
    let _: u64 = engine.run(&[b"LPUSH", MARK, b"a list"]).await;
    let a = setup(&upstream, &engine).start().await;
    for key in [MARK, CHANGES, GONE, SIGHTINGS, NODES] {
        let errors = a.metric("greenlane_cluster_errors_total").await;
        a.until_metric("greenlane_cluster_errors_total", |now| now > errors).await;
        let _: u64 = engine.run(&[b"DEL", key]).await;
    }
    learn(&a, 1, 0..3).await;
    until_joined(&a).await;
    let b = setup(&upstream, &engine).start().await;
    until_one(&[&a, &b], |page| host_count(page) == 3).await;
}

/// What a server may say that is no engine.
fn wrong_replies() -> Vec<Vec<u8>> {
    vec![
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"$99999999999999\r\n".to_vec(),
        b"*99999999999999\r\n$1\r\nx\r\n".to_vec(),
        b"%9223372036854775807\r\n+a\r\n+b\r\n".to_vec(),
        b"|1\r\n+a\r\n+b\r\n:1\r\n".to_vec(),
        b"*1\r\n".repeat(5000),
        b"-ERR no\r\n".repeat(50),
        b"+OK\r\n".repeat(50),
        b":7\r\n".repeat(50),
        b"$-1\r\n".repeat(50),
        b"*0\r\n".repeat(50),
        b"*2\r\n$1\r\n0\r\n*0\r\n".repeat(50),
        b"\xff\xfe\xfd\r\n".to_vec(),
        Vec::new(),
    ]
}

#[tokio::test]
async fn a_server_that_is_no_engine_is_an_outage_and_no_more() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let replies = wrong_replies();
    let served = tokio::spawn(async move {
        for reply in replies.iter().cycle() {
            let (mut stream, _) = listener.accept().await.unwrap();
            let reply = reply.clone();
            tokio::spawn(async move {
                let mut asked = [0; 4096];
                let _ = stream.read(&mut asked).await;
                let _ = stream.write_all(&reply).await;
                let _ = stream.read(&mut asked).await;
                // One that promised much goes on until nobody listens.
                if reply.starts_with(b"$9") {
                    while stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
                }
            });
        }
    });
    let upstream = numbering().await;
    let a = Setup::new(upstream.addr).with("store", &format!("cluster = \"redis://{addr}\"")).start().await;
    a.until_metric("greenlane_cluster_errors_total", |errors| errors >= 5.0).await;
    learn(&a, 1, 0..5).await;
    assert_eq!(host_count(&a.text("/prefixes.txt").await), 5);
    let status = std::fs::read_to_string(format!("/proc/{}/status", a.pid())).unwrap();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    assert!(peak.unwrap() < 600_000, "{peak:?} kB");
    served.abort();
}
