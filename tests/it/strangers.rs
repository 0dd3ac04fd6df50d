//! Strangers: clients that send anything, connections that only cost, upstreams that lie, names that want to be code.
//!
//! Whatever comes, greenlane answers by the RFCs or not at all, stays within its bounds, and serves the next good
//! question. Random octets come from [`SEED`]; a failure prints what was sent.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use greenlane::prefix::Prefix;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::opt::EdnsOption;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use crate::harness::{Client, Greenlane, PATIENCE, Setup, addresses, question, read_frame, send_frame, tag};
use crate::upstream::{A, AAAA, Act, Asked, CNAME, HTTPS, NS, OPT, SOA, TXT, Upstream, Via, record, wire_name};

/// What every random octet here comes from.
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;

// --- what must hold of any reply -----------------------------------------------------------------------------------

/// Reads the name at `at`, its pointers backwards only; returns where it ends.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    let (mut end, mut len, mut lowest) = (None, 0, at);
    loop {
        let octet = usize::from(*message.get(at)?);
        match octet {
            0 => return Some(end.unwrap_or(at + 1)),
            1..=63 => {
                len += octet + 1;
                at += octet + 1;
            }
            192.. => {
                let target = (octet & 63) << 8 | usize::from(*message.get(at + 1)?);
                end = end.or(Some(at + 2));
                if target >= lowest {
                    return None;
                }
                (at, lowest) = (target, target);
            }
            _ => return None,
        }
        if len > 254 {
            return None;
        }
    }
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*octets.get(at)?, *octets.get(at + 1)?]))
}

/// Checks that a message is whole from its first octet to its last; returns how many OPTs it has.
fn walk(message: &[u8]) -> Option<usize> {
    let counts: Vec<u16> = (4..12).step_by(2).filter_map(|at| u16_at(message, at)).collect();
    let &[questions, answers, authorities, additionals] = &counts[..] else { return None };
    let (mut at, mut opts) = (12, 0);
    for _ in 0..questions {
        at = skip_name(message, at)? + 4;
    }
    for _ in 0..u32::from(answers) + u32::from(authorities) + u32::from(additionals) {
        at = skip_name(message, at)?;
        opts += usize::from(u16_at(message, at)? == OPT);
        at += 10 + usize::from(u16_at(message, at + 8)?);
    }
    (at == message.len()).then_some(opts)
}

/// Returns what is wrong with a reply to a query, whatever that query was.
fn fault(query: &[u8], reply: &[u8], limit: usize) -> Option<&'static str> {
    let flags = |message: &[u8]| u16_at(message, 2).unwrap_or_default();
    let (asked, told) = (flags(query), flags(reply));
    let opts = walk(reply);
    let checks = [
        (reply.len() <= limit, "longer than allowed"),
        (opts.is_some_and(|opts| opts <= 1), "not whole, or two OPTs"),
        (query[..2] == reply[..2], "another id"),
        (told & 0x8000 != 0, "QR is clear"),
        ((asked ^ told) & 0x7800 == 0, "another opcode"),
        ((asked ^ told) & 0x0100 == 0, "RD is not echoed"),
        (told & 0x0440 == 0, "AA or Z"),
        (matches!(told & 0x000f, 0..=5), "an odd rcode"),
    ];
    checks.into_iter().find(|(is_right, _)| !is_right).map(|(_, what)| what)
}

/// Returns whether a packet is owed nothing: shorter than a header, or itself a reply.
fn is_owed_nothing(packet: &[u8]) -> bool {
    packet.len() < 12 || packet[2] & 0x80 != 0
}

// --- random octets -------------------------------------------------------------------------------------------------

/// Someone who sends anything.
struct Stranger(StdRng);

impl Stranger {
    fn new(salt: u64) -> Self {
        println!("seed {SEED:#x} + {salt}");
        Self(StdRng::seed_from_u64(SEED.wrapping_add(salt)))
    }

    fn octets(&mut self, len_max: usize) -> Vec<u8> {
        let len = self.0.random_range(0..=len_max);
        (0..len).map(|_| self.0.random()).collect()
    }

    /// A sound question: any name, any type, half of them with EDNS and some with options.
    fn sound(&mut self) -> Vec<u8> {
        let mut octets = self.0.random::<u16>().to_be_bytes().to_vec();
        octets.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
        for _ in 0..self.0.random_range(0..4) {
            let len = self.0.random_range(1..20usize);
            octets.push(len as u8);
            octets.extend((0..len).map(|_| self.0.random::<u8>()));
        }
        let zones = ["listed.example", "plain.example", "localhost", "example"];
        octets.extend(wire_name(zones[self.0.random_range(0..zones.len())]));
        let types = [A, NS, CNAME, SOA, TXT, AAAA, HTTPS, 65_280, 0];
        octets.extend(types[self.0.random_range(0..types.len())].to_be_bytes());
        octets.extend([0, 1]);
        if self.0.random() {
            octets[11] = 1;
            octets.extend([0, 0, 41]);
            octets.extend(self.0.random_range(0..5000u16).to_be_bytes());
            octets.extend([0, 0, if self.0.random() { 0x80 } else { 0 }, 0]);
            let options = if self.0.random() { vec![0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8] } else { Vec::new() };
            octets.extend((options.len() as u16).to_be_bytes());
            octets.extend(options);
        }
        octets
    }

    /// Spoils octets from `from` on in one to four ways.
    fn spoil(&mut self, octets: &mut Vec<u8>, from: usize) {
        const TELLING: [u8; 9] = [0, 1, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xc1, 0xff];
        for _ in 0..self.0.random_range(1..=4) {
            if octets.len() <= from {
                return;
            }
            let at = self.0.random_range(from..octets.len());
            match self.0.random_range(0..7) {
                0 => octets[at] ^= 1 << self.0.random_range(0..8),
                1 => octets[at] = TELLING[self.0.random_range(0..TELLING.len())],
                2 => octets.truncate(at),
                3 => octets.extend(self.octets(32)),
                4 => {
                    let piece = self.octets(16);
                    octets.splice(at..at, piece);
                }
                5 => {
                    let end = self.0.random_range(at..octets.len());
                    let piece = octets[at..=end].to_vec();
                    octets.splice(at..at, piece);
                }
                _ => drop(octets.drain(at..self.0.random_range(at..octets.len()))),
            }
        }
    }

    /// Anything: noise, a question with faults, or a sound one.
    fn packet(&mut self) -> Vec<u8> {
        match self.0.random_range(0..8) {
            0 => self.octets(600),
            1 => self.sound(),
            _ => {
                let mut octets = self.sound();
                self.spoil(&mut octets, 2);
                octets
            }
        }
    }
}

async fn answering() -> Upstream {
    Upstream::start(|asked| asked.a([192, 0, 2, 1])).await
}

/// Holds a greenlane to good service, right now.
async fn serves(greenlane: &Greenlane) {
    let log = greenlane.log();
    assert!(!log.contains("panicked"), "{log}");
    // The answers are cached from now on, so each time asks for names of its own.
    let name = format!("a{}.listed.example", rand::random::<u32>());
    let reply = greenlane.ask(&name, RecordType::A).await;
    assert_eq!(addresses(&reply), ["192.0.2.1"], "{reply}");
    assert_eq!(tag(&reply).as_deref(), Some("app=demo;match=listed.example"));
    assert_eq!(addresses(&greenlane.ask_tcp(&name, RecordType::A).await), ["192.0.2.1"]);
    assert_eq!(greenlane.json("/explain?address=192.0.2.1").await["in_set"], true);
    assert_eq!(greenlane.get("/readyz").await.status, 200);
}

/// Octets of memory that the process holds.
fn resident(greenlane: &Greenlane) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", greenlane.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

const MIB: usize = 1 << 20;

// --- clients -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn any_datagram_gets_a_sound_answer_or_silence() {
    const COUNT: usize = 6000;
    let upstream = answering().await;
    let greenlane = Setup::new(upstream.addr).start().await;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(greenlane.dns).await.unwrap();
    let mut stranger = Stranger::new(1);
    let (mut id, mut silent) = (0u16, 0);
    for _ in 0..COUNT / 50 {
        let mut waiting = HashMap::new();
        for _ in 0..50 {
            let mut packet = stranger.packet();
            id += 1;
            if packet.len() >= 2 {
                packet[..2].copy_from_slice(&id.to_be_bytes());
            }
            socket.send(&packet).await.unwrap();
            if is_owed_nothing(&packet) {
                silent += 1;
            } else {
                waiting.insert(id, packet);
            }
        }
        let mut room = [0; 65_535];
        while !waiting.is_empty() {
            let Ok(received) = timeout(PATIENCE, socket.recv(&mut room)).await else {
                panic!("no answer to any of {waiting:02x?}");
            };
            let reply = &room[..received.unwrap()];
            let query = waiting.remove(&u16_at(reply, 0).unwrap()).expect("each packet has one answer at most");
            if let Some(what) = fault(&query, reply, 1232) {
                panic!("{what}: {query:02x?} was answered with {reply:02x?}");
            }
        }
    }
    assert!(silent > COUNT / 20, "some are owed nothing");
    let stray = timeout(Duration::from_millis(200), socket.recv(&mut [0; 100])).await;
    assert!(stray.is_err(), "and get nothing");
    assert!(upstream.count() > COUNT / 20, "some are questions");
    serves(&greenlane).await;
}

#[tokio::test]
async fn any_stream_gets_its_answers_and_ends() {
    let upstream = answering().await;
    let greenlane = Setup::new(upstream.addr).start().await;
    for salt in 0..150 {
        let mut stranger = Stranger::new(1000 + salt);
        let (mut sent, mut waiting) = (Vec::new(), HashMap::new());
        for id in 1..=20u16 {
            let mut packet = stranger.packet();
            if packet.len() >= 2 {
                packet[..2].copy_from_slice(&id.to_be_bytes());
            }
            sent.extend((packet.len() as u16).to_be_bytes());
            sent.extend(&packet);
            if !is_owed_nothing(&packet) {
                waiting.insert(id, packet);
            }
        }
        // What is no frame any more: half of one, or noise that promises more than it brings.
        let rest = stranger.octets(100);
        sent.extend([0xff, 0xff]);
        sent.extend(rest);
        let stream = TcpStream::connect(greenlane.dns).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let writing = async {
            for piece in sent.chunks(1 + salt as usize * 7) {
                // The server may have had enough.
                if writer.write_all(piece).await.is_err() {
                    break;
                }
            }
            let _ = writer.shutdown().await;
        };
        let reading = async {
            while let Ok(len) = reader.read_u16().await {
                let mut reply = vec![0; usize::from(len)];
                reader.read_exact(&mut reply).await.unwrap();
                let id = u16_at(&reply, 0).unwrap();
                let query = waiting.remove(&id).expect("each frame has one answer at most");
                if let Some(what) = fault(&query, &reply, 65_535) {
                    panic!("{what}: {query:02x?} was answered with {reply:02x?}");
                }
            }
        };
        timeout(PATIENCE, async { tokio::join!(writing, reading) }).await.expect("the connection ends");
        assert!(waiting.is_empty(), "no answer to {waiting:02x?}");
    }
    serves(&greenlane).await;
}

/// Answers what comes to a socket, as an upstream that has come back.
async fn answer_from(socket: UdpSocket) {
    let mut room = [0; 1232];
    while let Ok((len, from)) = socket.recv_from(&mut room).await {
        let octets = room[..len].to_vec();
        let asked = Asked { via: Via::Udp, octets, from, sni: None, request: None, connection: 0, before: 0 };
        if let Act::Send(reply) = asked.a([192, 0, 2, 1]) {
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

#[tokio::test]
async fn a_flood_of_distinct_questions_is_bounded() {
    const COUNT: u32 = 10_000;
    // Nobody reads what comes here, at first.
    let upstream = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let greenlane = Setup::new(upstream.local_addr().unwrap()).with("forward", "timeout = \"4s\"").start().await;
    let before = resident(&greenlane);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let started = Instant::now();
    for i in 0..COUNT {
        let mut octets = b"\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
        octets[..2].copy_from_slice(&(i as u16).to_be_bytes());
        octets.extend(wire_name(&format!("x{i:08x}{i:08x}.listed.example")));
        octets.extend([0, 1, 0, 1]);
        socket.send_to(&octets, greenlane.dns).await.unwrap();
        // No faster than they are read, or the system drops them for us. This one is answered at home.
        if i % 256 == 255 {
            greenlane.ask_patiently("localhost", RecordType::A).await;
        }
    }
    let came = greenlane.metric("greenlane_listen_queries_total{transport=\"udp\",type=\"a\"}").await;
    println!("{came} of {COUNT} questions in {:?}", started.elapsed());
    assert!(came > 0.8 * f64::from(COUNT), "{came} came in");
    let grown = resident(&greenlane).saturating_sub(before);
    println!("{} KiB more", grown >> 10);
    assert!(grown < 100 * MIB, "{} MiB more", grown / MIB);
    // What does not need the upstream goes on, and so does the rest, once the upstream is back.
    assert_eq!(addresses(&greenlane.ask_patiently("localhost", RecordType::A).await), ["127.0.0.1"]);
    assert_eq!(greenlane.get("/readyz").await.status, 200);
    tokio::spawn(answer_from(upstream));
    let recovered = async {
        let ask = async || greenlane.ask_patiently("again.listed.example", RecordType::A).await;
        while ask().await.metadata.response_code != ResponseCode::NoError {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, recovered).await.expect("good service again");
    serves(&greenlane).await;
}

#[tokio::test]
async fn answers_to_distinct_questions_fill_the_cache_and_no_more() {
    let upstream = Upstream::start(|asked| {
        let text = [&[255][..], &[b'x'; 255]].concat().repeat(3);
        asked.reply().answer(&record(&[0xc0, 12], TXT, 300, &text)).act()
    })
    .await;
    let greenlane = Setup::new(upstream.addr).with("cache", "size = \"1MiB\"").start().await;
    let before = resident(&greenlane);
    for round in 0..40 {
        let asked = (0..100).map(|i| greenlane.ask_briefly(format!("r{round}-{i}.example"), RecordType::TXT));
        futures_util::future::join_all(asked).await;
    }
    assert_eq!(upstream.count(), 4000);
    assert!(greenlane.metric("greenlane_cache_bytes").await <= 1_048_576.0);
    // Each is longer than 768 octets.
    let entries = greenlane.metric("greenlane_cache_entries").await;
    assert!(entries > 100.0 && entries < 1_048_576.0 / 768.0, "{entries}");
    let grown = resident(&greenlane).saturating_sub(before);
    println!("{} KiB more", grown >> 10);
    assert!(grown < 20 * MIB, "{} MiB more for a cache of one", grown / MIB);
}

#[tokio::test]
async fn connections_that_only_cost_are_bounded() {
    let upstream = answering().await;
    let greenlane = Setup::new(upstream.addr).with("clients", "max-connections = 300\nper-client = 300").start().await;
    serves(&greenlane).await;
    let before = resident(&greenlane);
    // Each promises the longest frame and keeps back its last octet.
    let mut held = Vec::new();
    for _ in 0..400 {
        let mut stream = TcpStream::connect(greenlane.dns).await.unwrap();
        // Those that had to go for newer ones take no more.
        let _ = stream.write_all(&[0xff, 0xff]).await;
        let _ = stream.write_all(&vec![0x55; 65_534]).await;
        held.push(stream);
    }
    let grown = resident(&greenlane).saturating_sub(before);
    println!("{} KiB more", grown >> 10);
    // 300 frames of 64 KiB in buffers that double.
    assert!(grown < 80 * MIB, "{} MiB more", grown / MIB);
    greenlane.until_metric("greenlane_listen_connections", |open| open <= 300.0).await;
    serves(&greenlane).await;
    drop(held);
    greenlane.until_metric("greenlane_listen_connections", |open| open == 0.0).await;
}

#[tokio::test]
async fn a_client_that_asks_and_never_reads_is_bounded() {
    // 60 kB an answer, once it is cached.
    let upstream = Upstream::start(|asked| match (asked.via, asked.name().as_str()) {
        (Via::Udp, "big.example") => asked.reply().truncated().act(),
        (_, "big.example") => {
            let text = [&[255][..], &[b'x'; 255]].concat().repeat(230);
            asked.reply().answer(&record(&[0xc0, 12], TXT, 300, &text)).act()
        }
        _ => asked.a([192, 0, 2, 1]),
    })
    .await;
    let greenlane = Setup::new(upstream.addr).start().await;
    assert_eq!(greenlane.ask_tcp("big.example", RecordType::TXT).await.answers.len(), 1);
    let before = resident(&greenlane);
    let octets = question("big.example", RecordType::TXT).to_vec().unwrap();
    let mut frame = (octets.len() as u16).to_be_bytes().to_vec();
    frame.extend(&octets);
    let burst = frame.repeat(2000);
    let mut held = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(greenlane.dns).await.unwrap();
        // 120 MB of answers are asked for; as many as the sockets take are written.
        let _ = timeout(Duration::from_millis(50), stream.write_all(&burst)).await;
        held.push(stream);
    }
    let mut grown = 0;
    for _ in 0..75 {
        grown = grown.max(resident(&greenlane).saturating_sub(before));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{} KiB more", grown >> 10);
    assert!(grown < 60 * MIB, "{} MiB more", grown / MIB);
    serves(&greenlane).await;
    // They do not stay for ever either.
    greenlane.until_metric("greenlane_listen_connections", |open| open == 0.0).await;
}

// --- upstreams -----------------------------------------------------------------------------------------------------

/// The octets of a well-made reply to be spoilt: a chain, addresses, hints, authority, an option.
fn rich(asked: &Asked) -> Vec<u8> {
    let target = wire_name("cdn.listed.example");
    let hints = [&[0, 1, 0][..], &[0, 4, 0, 4, 192, 0, 2, 7], &[0, 6, 0, 16], &[0x20, 1, 0xd, 0xb8], &[7; 12]].concat();
    asked
        .reply()
        .answer(&record(&[0xc0, 12], CNAME, 60, &target))
        .answer(&record(&target, A, 60, &[192, 0, 2, 1]))
        .answer(&record(&target, AAAA, 60, &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]))
        .answer(&record(&target, HTTPS, 60, &hints))
        .authority(&record(&wire_name("example"), NS, 60, &[2, b'n', b's', 0xc0, 12]))
        .additional(&record(&wire_name("ns.example"), A, 60, &[192, 0, 2, 53]))
        .ede(3, "stale")
        .octets()
}

#[tokio::test]
async fn any_reply_of_an_upstream_ends_as_a_sound_answer() {
    let upstream = Upstream::start(|asked| {
        if asked.name().starts_with('a') {
            return asked.a([192, 0, 2, 1]);
        }
        let mut octets = rich(asked);
        // Id and question stay, or it is no reply to us; so does QR.
        let (kept, from) = (octets[..12].to_vec(), 12 + asked.question().len());
        let mut stranger = Stranger(StdRng::seed_from_u64(SEED.wrapping_add(asked.before as u64)));
        stranger.spoil(&mut octets, from);
        octets[..12].copy_from_slice(&kept);
        if stranger.0.random_range(0..4) == 0 {
            octets[6 + stranger.0.random_range(0..6)] = stranger.0.random();
        }
        Act::Send(octets)
    })
    .await;
    println!("seed {SEED:#x}");
    let greenlane = Setup::new(upstream.addr).with("forward", "timeout = \"2s\"").start().await;
    let mut failed = 0;
    for round in 0..20 {
        let asked = (0..100).map(|i| {
            let query = question(&format!("m{round}-{i}.listed.example"), RecordType::A).to_vec().unwrap();
            let client = *greenlane;
            async move { (client.udp(&query).await.expect("an answer, in time"), query) }
        });
        for (reply, query) in futures_util::future::join_all(asked).await {
            if let Some(what) = fault(&query, &reply, 1232) {
                panic!("{what}: {query:02x?} was answered with {reply:02x?}");
            }
            failed += usize::from(reply[3] & 15 == 2);
        }
    }
    println!("{failed} of 2000 ended in SERVFAIL");
    assert!(failed > 0);
    let malformed =
        greenlane.metric("greenlane_forward_upstream_failures_total{kind=\"malformed\",upstream=\"upstream-1\"}");
    assert!(malformed.await > 700.0);
    for prefix in greenlane.prefixes("?origin=learned").await {
        let prefix: Prefix = prefix.parse().unwrap();
        for never in
            ["127.0.0.0/8", "10.0.0.0/8", "224.0.0.0/3", "0.0.0.0/8", "169.254.0.0/16", "fe80::/10", "ff00::/8"]
        {
            assert!(!never.parse::<Prefix>().unwrap().covers(&prefix), "{prefix}");
        }
    }
    serves(&greenlane).await;
}

/// Names that a chain of `len` links goes through, the asked one first.
fn chain(asked: &Asked, len: usize) -> crate::upstream::Reply {
    let mut owner = vec![0xc0, 12];
    let mut reply = asked.reply();
    for i in 0..len {
        let target = wire_name(&format!("c{i}.chain.example"));
        reply = reply.answer(&record(&owner, CNAME, 300, &target));
        owner = target;
    }
    reply.answer(&record(&owner, A, 300, &[192, 0, 2, 200]))
}

/// One lie for each first label, told over UDP and TCP alike; all under a listed name.
fn lie(asked: &Asked) -> Act {
    let own = |rdata: &[u8]| record(&[0xc0, 12], A, 300, rdata);
    let a = own(&[192, 0, 2, 66]);
    let name = asked.name();
    let end = 12 + asked.question().len();
    let pointer = |at: usize| [0xc0 | (at >> 8) as u8, at as u8];
    match name.split('.').next().unwrap() {
        "loop1" => asked.reply().answer(&record(&[0xc0, 12], CNAME, 300, &[0xc0, 12])).answer(&a).act(),
        "loop2" => {
            let other = wire_name("other.example");
            let back = record(&other, CNAME, 300, &[0xc0, 12]);
            asked.reply().answer(&record(&[0xc0, 12], CNAME, 300, &other)).answer(&back).answer(&a).act()
        }
        "short" => asked.reply().answer(&own(&[192, 0, 2])).act(),
        "long" => asked.reply().answer(&own(&[192, 0, 2, 66, 0])).act(),
        "aaaa" => asked.reply().answer(&a).answer(&record(&[0xc0, 12], AAAA, 300, &[1; 15])).act(),
        // A name that points at itself, one that points ahead, and two that point at each other.
        "self" => asked.reply().answer(&record(&pointer(end), A, 300, &[192, 0, 2, 66])).act(),
        "ahead" => asked.reply().answer(&record(&pointer(end + 30), A, 300, &[192, 0, 2, 66])).answer(&a).act(),
        "mutual" => asked.reply().answer(&record(&pointer(end + 12), CNAME, 300, &pointer(end))).answer(&a).act(),
        // A name that unfolds to more than 255 octets: each target is a label longer than the one before.
        "bomb" => {
            let mut reply = asked.reply();
            let mut at = 12;
            for _ in 0..8 {
                let label = [&[40][..], &[b'b'; 40], &pointer(at)].concat();
                at = reply.octets().len() - 11 + 12;
                reply = reply.answer(&record(&[0xc0, 12], NS, 300, &label));
            }
            reply.answer(&a).act()
        }
        "label" => asked.reply().answer(&record(&[0x40, 1, 2, 0], A, 300, &[192, 0, 2, 66])).act(),
        // Counts that do not hold.
        "more" => spoilt(asked.reply().answer(&a).octets(), 7, 2),
        "fewer" => spoilt(asked.reply().answer(&a).answer(&a).octets(), 7, 1),
        "most" => spoilt(asked.reply().answer(&a).octets(), 6, 0xff),
        "cut" => {
            let octets = asked.reply().answer(&a).without_opt().octets();
            Act::Send(octets[..octets.len() - 2].to_vec())
        }
        "tail" => Act::Send([asked.reply().answer(&a).octets(), vec![0; 7]].concat()),
        "opts" => asked.reply().answer(&a).additional(&record(&[0], OPT, 0, &[])).act(),
        "option" => asked.reply().answer(&a).additional(&record(&[0], OPT, 0, &[0, 15, 0, 9, 0])).without_opt().act(),
        _ => asked.a([192, 0, 2, 1]),
    }
}

fn spoilt(mut octets: Vec<u8>, at: usize, octet: u8) -> Act {
    octets[at] = octet;
    Act::Send(octets)
}

/// Codes and texts of the extended errors (RFC 8914).
fn extended_errors(message: &Message) -> Vec<(u16, String)> {
    let options = message.edns.as_ref().map(|edns| edns.options().as_ref()).unwrap_or_default();
    let values = options.iter().filter_map(|(_, option)| match option {
        EdnsOption::Unknown(15, value) => Some(value),
        _ => None,
    });
    values.map(|value| (u16_at(value, 0).unwrap(), String::from_utf8(value[2..].to_vec()).unwrap())).collect()
}

#[tokio::test]
async fn a_lie_is_refused_whole_and_counted() {
    let upstream = Upstream::start(lie).await;
    let greenlane = Setup::new(upstream.addr).with("forward", "timeout = \"2s\"").start().await;
    let malformed = "greenlane_forward_upstream_failures_total{kind=\"malformed\",upstream=\"upstream-1\"}";
    for case in [
        "loop1", "loop2", "short", "long", "aaaa", "self", "ahead", "mutual", "bomb", "label", "more", "fewer", "most",
        "cut", "tail", "opts", "option",
    ] {
        let before = greenlane.metric(malformed).await;
        let reply = greenlane.ask(&format!("{case}.listed.example"), RecordType::A).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "{case}: {reply}");
        assert!(reply.answers.is_empty(), "{case}");
        let edes = extended_errors(&reply);
        assert!(edes.contains(&(23, "upstreams sent malformed replies".to_owned())), "{case}: {edes:?}");
        assert!(greenlane.metric(malformed).await > before, "{case} is counted");
        assert_eq!(tag(&reply).as_deref(), Some("app=demo;match=listed.example"), "{case}");
    }
    assert!(greenlane.prefixes("").await.is_empty(), "nothing is learned of a lie");
    serves(&greenlane).await;
}

#[tokio::test]
async fn a_long_chain_and_a_heap_of_records_are_bounded() {
    let upstream = Upstream::start(|asked| {
        let reply = match asked.name().split('.').next().unwrap() {
            "chain31" => chain(asked, 31),
            "chain255" => chain(asked, 255),
            "heap" => (0..3700u32).fold(asked.reply(), |reply, i| {
                reply.answer(&record(&[0xc0, 12], A, 300, &(0xc612_0000 + i * 2).to_be_bytes()))
            }),
            _ => return asked.a([192, 0, 2, 1]),
        };
        if asked.via == Via::Udp { asked.reply().truncated().act() } else { reply.act() }
    })
    .await;
    let greenlane = Setup::new(upstream.addr).start().await;
    // 32 names count. What lies behind more is not learned, so it is told for a second only.
    let near = greenlane.ask_tcp("chain31.listed.example", RecordType::A).await;
    assert_eq!(near.answers.len(), 32);
    assert!(near.answers.iter().all(|record| record.ttl == 300), "{near}");
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.200/32"]);
    let far = greenlane.ask_tcp("chain255.listed.example", RecordType::A).await;
    assert_eq!(far.answers.len(), 256, "{far}");
    assert!(far.answers.iter().all(|record| record.ttl <= 1), "{far}");
    assert_eq!(greenlane.metric("greenlane_learn_cut_chains_total").await, 1.0);
    // max-per-name is 1,000: an answer with more is refused whole and counted, and passes with a TTL of 1 s.
    let heap = greenlane.ask_tcp("heap.listed.example", RecordType::A).await;
    assert_eq!(heap.answers.len(), 3700);
    assert!(heap.answers.iter().all(|record| record.ttl <= 1));
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.200/32"]);
    assert_eq!(greenlane.metric("greenlane_learn_refused_total{reason=\"max-per-name\"}").await, 3700.0);
    serves(&greenlane).await;
}

#[tokio::test]
async fn a_storm_of_wrong_replies_costs_no_answer() {
    let upstream = Upstream::start(|asked| {
        let name = asked.name();
        let good = asked.a([192, 0, 2, 1]);
        match (name.starts_with("storm"), asked.via) {
            (false, _) => good,
            (_, Via::Udp) if name.starts_with("storm-tcp") => asked.reply().truncated().act(),
            // Wrong ids, wrong questions, noise, and then the truth.
            _ => {
                let wrong = (1..150u16).map(|i| match i % 3 {
                    0 => Act::Send(asked.reply().id(asked.id().wrapping_add(i)).octets()),
                    1 => {
                        let mut other = wire_name(&format!("x{i}.example"));
                        other.extend([0, 1, 0, 1]);
                        asked.reply().question(&other).act()
                    }
                    _ => Act::Send(vec![i as u8; usize::from(i)]),
                });
                Act::Each(wrong.chain([good]).collect())
            }
        }
    })
    .await;
    let greenlane = Setup::new(upstream.addr).start().await;
    for name in ["storm-udp.listed.example", "storm-tcp.listed.example"] {
        assert_eq!(addresses(&greenlane.ask(name, RecordType::A).await), ["192.0.2.1"], "{name}");
    }
    let mismatch = "greenlane_forward_upstream_failures_total{kind=\"mismatch\",upstream=\"upstream-1\"}";
    assert!(greenlane.metric(mismatch).await >= 90.0);
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
    serves(&greenlane).await;
}

// --- names ---------------------------------------------------------------------------------------------------------

/// Labels that would be code somewhere.
const HOSTILE: [&[u8]; 8] = [
    b"\"<;>\n\x1b[31m",
    b"\x1b]0;owned\x07",
    b"$(reboot)`reboot`",
    b"=cmd|'/c calc'!A0",
    b"</script><script>alert(1)</script>",
    b"} add element inet x y { 0.0.0.0/0 ",
    b"\r\nadd greenlane4 0.0.0.0/1",
    b"\xff\xfe\x00%s%n\\",
];

fn hostile_question(label: &[u8], rtype: u16) -> Vec<u8> {
    let mut octets = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01".to_vec();
    octets.push(label.len() as u8);
    octets.extend(label);
    octets.extend(wire_name("listed.example"));
    octets.extend(rtype.to_be_bytes());
    octets.extend([0, 1, 0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    octets
}

/// A name of one label under `listed.example` for a query string, in RFC 1035 escapes that are then percent-encoded.
fn encoded(label: &[u8]) -> String {
    let escaped: String = label.iter().map(|octet| format!("%5C{octet:03}")).collect();
    format!("{escaped}.listed.example")
}

fn assert_harmless(what: &str, text: &str) {
    let odd = text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    assert_eq!(odd, None, "{what}: {text:?}");
}

/// Holds a text to have nothing of a name in it.
fn assert_nameless(what: &str, text: &str) {
    assert_harmless(what, text);
    for part in ["reboot", "script", "owned", "calc", "listed.example", "0.0.0.0", "$", "`", "%"] {
        assert!(!text.contains(part), "{what} holds {part:?}: {text}");
    }
}

#[tokio::test]
async fn hostile_names_stay_text_wherever_they_are_shown() {
    let upstream = Upstream::start(|asked| {
        let number = HOSTILE.iter().position(|label| {
            asked.qname().starts_with(&[&[label.len() as u8], &*label.to_ascii_lowercase()].concat())
        });
        match (number, asked.qtype()) {
            (Some(number), HTTPS) => {
                // A target that is as hostile is followed.
                let target = [&[0, 1][..], &[HOSTILE[number].len() as u8], HOSTILE[number], &wire_name("cdn.example")];
                asked.reply().answer(&record(&[0xc0, 12], HTTPS, 300, &target.concat())).act()
            }
            (Some(number), _) => asked.a([192, 0, 2, 2 * number as u8 + 100]),
            (None, _) => asked.a([192, 0, 2, 1]),
        }
    })
    .await;
    let title = "# Demo \"<;>\u{1b}]0;owned\u{7} $(reboot)\nlisted.example\n";
    let greenlane = Setup::new(upstream.addr).list("demo.list", title).with("log", "level = \"trace\"").start().await;
    for label in HOSTILE {
        for rtype in [A, HTTPS] {
            let reply = greenlane.udp(&hostile_question(label, rtype)).await.unwrap();
            let name = &[&[label.len() as u8], label].concat();
            assert_eq!(reply[12..12 + name.len()], name[..], "the client gets its own octets back");
        }
    }
    let learned: Vec<IpAddr> = (0..HOSTILE.len() as u8).map(|i| IpAddr::from([192, 0, 2, 2 * i + 100])).collect();
    // Lists and executable forms: prefixes and nothing else.
    let expected: Vec<String> = learned.iter().map(|addr| format!("{addr}/32")).collect();
    assert_eq!(greenlane.prefixes("").await, expected);
    for path in ["/prefixes.txt", "/prefixes.csv", "/prefixes.nft", "/prefixes.ipset", "/prefixes.rsc", "/metrics"] {
        assert_nameless(path, &greenlane.text(path).await);
    }
    let delta = greenlane.text("/delta").await;
    assert_nameless("/delta", &delta);
    assert_nameless("/prefixes.json", &greenlane.text("/prefixes.json").await);
    assert_eq!(greenlane.text("/domains.txt").await, "listed.example\n");
    // Explanations and tables: escaped by RFC 1035, then by JSON.
    for (label, addr) in HOSTILE.iter().zip(&learned) {
        for path in [format!("/explain?name={}", encoded(label)), format!("/explain?address={addr}")] {
            let text = greenlane.text(&path).await;
            assert_harmless(&path, &text);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            let name = match value["name"].as_str() {
                Some(name) => {
                    assert_eq!(value["addresses"][0]["address"], addr.to_string(), "{path}: {text}");
                    name.to_owned()
                }
                None => value["sightings"][0]["name"].as_str().unwrap().to_owned(),
            };
            assert!(name.is_ascii() && name.ends_with(".listed.example"), "{name:?}");
            assert_eq!(
                greenlane::name::Name::parse(&name).unwrap().as_wire()[1..=label.len()],
                label.to_ascii_lowercase()
            );
            assert!(!name.contains(['\n', '\r', '\u{1b}', '\u{7}']), "{name:?}");
        }
    }
    for path in ["/apps", "/stats"] {
        let text = greenlane.text(path).await;
        assert_harmless(path, &text);
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
    }
    // The log at its loudest.
    let log = greenlane.log();
    assert!(log.lines().count() > 20, "it does log: {log}");
    assert_harmless("log", &log);
    assert!(!log.lines().any(|line| line.starts_with("add ") || line.starts_with("} add")), "{log}");
    // A terminal.
    let mut command = crate::harness::greenlane();
    command.arg("check").arg("-c").arg(greenlane.path("config.toml"));
    let output = command.output().unwrap();
    assert_harmless("check", &String::from_utf8(output.stdout).unwrap());
}

#[tokio::test]
async fn a_hostile_request_target_is_answered_in_one_harmless_line() {
    let upstream = answering().await;
    let greenlane = Setup::new(upstream.addr).start().await;
    let mut stranger = Stranger::new(7);
    for path in
        ["/explain?name=", "/explain?address=", "/prefixes.txt?app=", "/prefixes.nft?family=", "/delta?session="]
    {
        for _ in 0..40 {
            let octets = stranger.octets(300);
            let value: String = octets.iter().map(|octet| format!("%{octet:02X}")).collect();
            let page = greenlane.get(&format!("{path}{value}")).await;
            assert!(matches!(page.status, 200 | 400), "{path}: {page:?}");
            assert_harmless(path, &page.body);
            assert!(page.status == 200 || page.body.lines().count() == 1, "{page:?}");
        }
    }
    // Anything at all to the web port; the connection may break.
    for _ in 0..100 {
        let mut stream = TcpStream::connect(greenlane.web).await.unwrap();
        let mut octets = stranger.octets(400);
        if stranger.0.random() {
            octets = [b"GET /prefixes.txt HTTP/1.1\r\nHost: ", &octets[..], b"\r\n\r\n"].concat();
        }
        let _ = stream.write_all(&octets).await;
        let _ = stream.shutdown().await;
        let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("the connection ends");
    }
    serves(&greenlane).await;
}

impl Client {
    /// Asks over UDP and is content with any answer.
    async fn ask_briefly(&self, name: String, rtype: RecordType) {
        let octets = question(&name, rtype).to_vec().unwrap();
        self.udp(&octets).await.expect("an answer");
    }

    /// Asks over UDP as stubs do: again, when nothing comes.
    async fn ask_patiently(&self, name: &str, rtype: RecordType) -> Message {
        let octets = question(name, rtype).to_vec().unwrap();
        for _ in 0..PATIENCE.as_secs() {
            if let Some(reply) = self.udp_within(&octets, Duration::from_secs(1)).await {
                return Message::from_vec(&reply).unwrap();
            }
        }
        panic!("no answer for {name}");
    }
}

#[tokio::test]
async fn questions_pipelined_without_end_are_answered_in_turn() {
    let upstream = answering().await;
    let greenlane = Setup::new(upstream.addr).start().await;
    let stream = TcpStream::connect(greenlane.dns).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let writing = tokio::spawn(async move {
        for i in 0..3000 {
            let octets = question(&format!("p{i}.example"), RecordType::A).to_vec().unwrap();
            let mut frame = (octets.len() as u16).to_be_bytes().to_vec();
            frame.extend(octets);
            writer.write_all(&frame).await.unwrap();
        }
        writer
    });
    let other = greenlane.ask_tcp("other.example", RecordType::A);
    let (_, replies) = tokio::join!(other, async {
        let mut count = 0;
        while count < 3000 {
            let len = timeout(PATIENCE, reader.read_u16()).await.expect("every question is answered").unwrap();
            reader.read_exact(&mut vec![0; usize::from(len)]).await.unwrap();
            count += 1;
        }
        count
    });
    assert_eq!(replies, 3000);
    drop(writing.await.unwrap());
    let mut stream = TcpStream::connect(greenlane.dns).await.unwrap();
    send_frame(&mut stream, &question("p0.example", RecordType::A).to_vec().unwrap()).await;
    assert!(read_frame(&mut stream).await.is_some());
}
