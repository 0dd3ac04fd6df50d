//! DNS over UDP, with both ways to read datagrams: the batched one of Linux, and the portable one beside it.
//!
//! The daemon runs inside the test, since only the library lets choose between them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use greenlane::config::{Config, Env};
use greenlane::daemon::Daemon;
use greenlane::listen::plain::Backend;
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use tempfile::TempDir;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::harness::{Client, PATIENCE, Setup, question, tag};
use crate::upstream::{Act, Asked, Upstream};

const BACKENDS: [Backend; 2] = [Backend::Batched, Backend::Portable];

/// A daemon of this process.
struct Inside {
    daemon: Arc<Daemon>,
    client: Client,
    _folder: TempDir,
}

impl Inside {
    async fn start(setup: Setup, change: impl FnOnce(&mut Config)) -> Self {
        let folder = setup.write();
        let mut config = Config::load(&folder.path().join("config.toml"), &Env::of_process()).unwrap();
        config.warm.is_on = false;
        change(&mut config);
        let daemon = Daemon::start(config, None).await.unwrap();
        let client = Client { dns: daemon.dns()[0], web: daemon.web().unwrap() };
        Self { daemon, client, _folder: folder }
    }

    async fn with(backend: Backend, upstream: &Upstream) -> Self {
        Self::start(Setup::new(upstream.addr), |config| config.listen.backend = backend).await
    }
}

async fn ordinary() -> Upstream {
    Upstream::start(|asked| asked.a([192, 0, 2, 1])).await
}

/// Asks an address from a socket that would take a reply from anywhere; returns where it came from.
async fn reply_source(asked: SocketAddr, octets: &[u8]) -> SocketAddr {
    let any: IpAddr = if asked.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let socket = UdpSocket::bind((any, 0)).await.unwrap();
    let mut reply = vec![0; 4096];
    socket.send_to(octets, asked).await.unwrap();
    let (len, source) = timeout(PATIENCE, socket.recv_from(&mut reply)).await.expect("a reply").unwrap();
    assert_eq!(reply[..2], octets[..2]);
    assert!(len > 12);
    source
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_leave_from_the_address_that_was_asked() {
    let upstream = ordinary().await;
    for backend in BACKENDS {
        for (wildcard, addresses) in [("0.0.0.0:0", &["127.0.0.1", "127.0.0.2", "127.9.8.7"][..]), ("[::]:0", &["::1"])]
        {
            let setup =
                Setup::new(upstream.addr).only("listen", &format!("dns = [\"{wildcard}\"]\nweb = \"127.0.0.1:0\""));
            if wildcard.starts_with('[') && UdpSocket::bind(wildcard).await.is_err() {
                continue;
            }
            let inside = Inside::start(setup, |config| config.listen.backend = backend).await;
            let port = inside.client.dns.port();
            for address in addresses {
                let asked = SocketAddr::new(address.parse().unwrap(), port);
                let name = format!("at{}.example", address.replace([':', '.'], "-"));
                let octets = question(&name, RecordType::A).to_vec().unwrap();
                let before = upstream.count();
                assert_eq!(reply_source(asked, &octets).await, asked, "a miss, {backend:?}");
                assert_eq!(upstream.count(), before + 1, "asked for once");
                assert_eq!(reply_source(asked, &octets).await, asked, "a hit, {backend:?}");
                let refused = [&octets[..2], &[0x29], &octets[3..]].concat();
                assert_eq!(reply_source(asked, &refused).await, asked, "a refusal, {backend:?}");
                assert_eq!(upstream.count(), before + 1, "one miss");
            }
            inside.daemon.drain().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_question_of_a_burst_gets_one_answer_and_noise_none() {
    let upstream = ordinary().await;
    for backend in BACKENDS {
        let inside = Inside::with(backend, &upstream).await;
        inside.client.ask("warm.listed.example", RecordType::A).await;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.connect(inside.client.dns).await.unwrap();
        let mut expected = HashMap::new();
        // As many as even a small receive buffer holds.
        for i in 0..100u16 {
            let name = if i % 3 == 0 { "warm.listed.example".to_owned() } else { format!("cold-{i}.listed.example") };
            let mut asked = question(&name, RecordType::A);
            asked.metadata.id = i;
            let octets = asked.to_vec().unwrap();
            socket.send(&octets).await.unwrap();
            expected.insert(i, name);
            match i % 4 {
                0 => drop(socket.send(&[]).await.unwrap()),
                1 => drop(socket.send(&octets[..11]).await.unwrap()),
                2 => drop(socket.send(&[&octets[..2], &[0x80], &octets[3..]].concat()).await.unwrap()),
                // Refused, so that it is answered, too.
                _ => {
                    let id = (1000 + i).to_be_bytes();
                    socket.send(&[&id[..], &octets[2..], &[0]].concat()).await.unwrap();
                    expected.insert(1000 + i, "FORMERR".to_owned());
                }
            }
        }
        let mut reply = vec![0; 4096];
        while !expected.is_empty() {
            let len = timeout(PATIENCE, socket.recv(&mut reply)).await.expect("each is answered").unwrap();
            let message = Message::from_vec(&reply[..len]).unwrap();
            let name = expected.remove(&message.metadata.id).expect("each once");
            if name == "FORMERR" {
                assert_eq!(u16::from(message.metadata.response_code), 1);
            } else {
                assert_eq!(message.queries[0].name().to_string().trim_end_matches('.'), name);
                assert_eq!(message.answers.len(), 1);
                assert!(tag(&message).is_some());
            }
        }
        inside.client.until_metric("greenlane_listen_dropped_total{reason=\"nonsense\"}", |count| count == 75.0).await;
        inside.daemon.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beyond_the_bound_is_dropped_and_counted_and_hits_go_on() {
    for backend in BACKENDS {
        let is_held = Arc::new(AtomicBool::new(true));
        let held = Arc::clone(&is_held);
        let upstream = Upstream::start(move |asked: &Asked| {
            let is_silent = asked.name().starts_with("held") && held.load(Ordering::SeqCst);
            if is_silent { Act::Drop } else { asked.a([192, 0, 2, 1]) }
        })
        .await;
        let inside = Inside::start(Setup::new(upstream.addr), |config| {
            config.listen.backend = backend;
            config.listen.waiting_max = 4;
        })
        .await;
        // Over TCP: its place would be free only a moment after the reply.
        inside.client.ask_tcp("warm.example", RecordType::A).await;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.connect(inside.client.dns).await.unwrap();
        for i in 0..4 {
            let octets = question(&format!("held-{i}.example"), RecordType::A).to_vec().unwrap();
            socket.send(&octets).await.unwrap();
        }
        let dropped = "greenlane_listen_dropped_total{reason=\"overload\"}";
        let fifth = question("fifth.example", RecordType::A).to_vec().unwrap();
        socket.send(&fifth).await.unwrap();
        inside.client.until_metric(dropped, |count| count == 1.0).await;
        assert!(!inside.client.ask("warm.example", RecordType::A).await.answers.is_empty(), "hits go on");
        is_held.store(false, Ordering::SeqCst);
        // Answered or given up: either way those four make room.
        let mut reply = [0; 512];
        for _ in 0..4 {
            timeout(PATIENCE, socket.recv(&mut reply)).await.expect("each of the four").unwrap();
        }
        // The place is free a moment after the reply was sent.
        let mut answer = None;
        while answer.is_none() {
            answer = inside.client.udp_within(&fifth, Duration::from_secs(2)).await;
        }
        assert_eq!(upstream.counts().get("fifth.example"), Some(&1));
        inside.daemon.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overlong_datagram_is_malformed_and_harms_nobody() {
    let upstream = ordinary().await;
    for backend in BACKENDS {
        let inside = Inside::with(backend, &upstream).await;
        let whole = question("long.example", RecordType::A).to_vec().unwrap();
        for len in [4095, 4096, 4097, 20_000, 65_507] {
            let mut octets = whole.clone();
            octets.resize(len, 0);
            let reply = inside.client.udp(&octets).await.expect("an answer");
            assert_eq!((reply[3] & 15, &reply[..2]), (1, &whole[..2]), "{len} octets: FORMERR, {backend:?}");
        }
        assert!(!inside.client.ask("long.example", RecordType::A).await.answers.is_empty());
        inside.daemon.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_of_real_clients_stay_on_the_quick_way() {
    let upstream = ordinary().await;
    for backend in BACKENDS {
        let inside = Inside::with(backend, &upstream).await;
        inside.client.ask("a.listed.example", RecordType::A).await;
        let asked = upstream.count();
        // COOKIE (RFC 7873), NSID (RFC 5001), KEEPALIVE (RFC 7828), PADDING (RFC 7830), client subnet (RFC 7871).
        let options: [&[u8]; 5] = [
            &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 3, 0, 0],
            &[0, 11, 0, 0],
            &[
                0, 12, 0, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
            &[0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2],
        ];
        let hits = "greenlane_cache_lookups_total{result=\"hit\"}";
        let before = inside.client.metric(hits).await;
        let plain = question("A.Listed.example", RecordType::A).to_vec().unwrap();
        let all = options.concat();
        for chosen in options.iter().copied().chain([&all[..]]) {
            let mut octets = plain.clone();
            let len_at = octets.len() - 2;
            octets[len_at..].copy_from_slice(&(chosen.len() as u16).to_be_bytes());
            octets.extend_from_slice(chosen);
            let reply = Message::from_vec(&inside.client.udp(&octets).await.expect("an answer")).unwrap();
            assert_eq!(reply.answers.len(), 1);
            assert!(tag(&reply).is_some(), "tagged with {chosen:02x?}");
        }
        assert_eq!(upstream.count(), asked);
        assert_eq!(inside.client.metric(hits).await - before, 6.0);
        inside.daemon.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_readers_share_one_port_and_a_stranger_does_not() {
    let upstream = ordinary().await;
    for backend in BACKENDS {
        let inside = Inside::start(Setup::new(upstream.addr), |config| {
            config.listen.backend = backend;
            config.listen.threads = 4;
        })
        .await;
        // The system spreads clients by their ports: all four sockets get some.
        for _ in 0..40 {
            assert!(!inside.client.ask("a.listed.example", RecordType::A).await.answers.is_empty());
        }
        let other =
            Setup::new(upstream.addr).only("listen", &format!("dns = [\"{}\"]\nweb = \"off\"", inside.client.dns));
        let folder = other.write();
        let config = Config::load(&folder.path().join("config.toml"), &Env::of_process()).unwrap();
        let error = Daemon::start(config, None).await.err().expect("the port is taken").to_string();
        assert!(error.contains("is in use (UDP)"), "{error}");
        inside.daemon.drain().await;
        // All sockets are closed: the port is free for one that does not share.
        let addr = inside.client.dns;
        let mut bound = std::net::UdpSocket::bind(addr);
        for _ in 0..PATIENCE.as_millis() / 20 {
            if bound.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            bound = std::net::UdpSocket::bind(addr);
        }
        bound.expect("drained");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sleeping_readers_end_with_the_daemon_and_those_who_wait_are_answered() {
    let upstream = Upstream::start(|asked| {
        let answer = asked.a([192, 0, 2, 1]);
        if asked.name().starts_with("slow") { answer.after(Duration::from_millis(300)) } else { answer }
    })
    .await;
    for backend in BACKENDS {
        let inside = Inside::with(backend, &upstream).await;
        let asked = upstream.count();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.connect(inside.client.dns).await.unwrap();
        socket.send(&question("slow.example", RecordType::A).to_vec().unwrap()).await.unwrap();
        while upstream.count() == asked {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        timeout(PATIENCE, inside.daemon.drain()).await.expect("the readers end");
        let mut reply = [0; 512];
        timeout(PATIENCE, socket.recv(&mut reply)).await.expect("what waited is answered").unwrap();
    }
}
