//! What enters the set, when, for how long, and what never does: the real binary, its answers, its feed, its metrics.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use greenlane::prefix::Prefix;
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use crate::harness::{Greenlane, PATIENCE, Setup, addresses, question, tag};
use crate::upstream::{A, AAAA, Act, Asked, CNAME, HTTPS, Upstream, record, wire_name};

const DNAME: u16 = 39;
const SVCB: u16 = 64;

/// An address of ours by number, far enough from its neighbours that no two make a wider prefix.
fn addr(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + 2 * n)
}

fn a(owner: &str, ttl: u32, addr: Ipv4Addr) -> Vec<u8> {
    record(&wire_name(owner), A, ttl, &addr.octets())
}

fn aaaa(owner: &str, ttl: u32, addr: &str) -> Vec<u8> {
    let IpAddr::V6(addr) = addr.parse().unwrap() else { panic!("{addr} is no IPv6 address") };
    record(&wire_name(owner), AAAA, ttl, &addr.octets())
}

fn cname(owner: &str, ttl: u32, target: &str) -> Vec<u8> {
    record(&wire_name(owner), CNAME, ttl, &wire_name(target))
}

/// RDATA of HTTPS and SVCB; no hints and a priority of 0 is alias mode.
fn svcb(priority: u16, target: &str, v4: &[Ipv4Addr], v6: &[&str]) -> Vec<u8> {
    let mut rdata = priority.to_be_bytes().to_vec();
    rdata.extend(wire_name(target));
    let v6: Vec<[u8; 16]> = v6.iter().map(|addr| addr.parse::<std::net::Ipv6Addr>().unwrap().octets()).collect();
    for (key, value) in [(4u16, v4.iter().flat_map(Ipv4Addr::octets).collect::<Vec<_>>()), (6, v6.concat())] {
        if !value.is_empty() {
            rdata.extend(key.to_be_bytes());
            rdata.extend((value.len() as u16).to_be_bytes());
            rdata.extend(value);
        }
    }
    rdata
}

fn reply(asked: &Asked, records: &[Vec<u8>]) -> Act {
    records.iter().fold(asked.reply(), |reply, record| reply.answer(record)).act()
}

/// A greenlane that waits for the set as long as it may be told to, so that a busy machine makes no answer late.
fn patient(upstream: &Upstream) -> Setup {
    Setup::new(upstream.addr).with("learn", "hold = \"1s\"")
}

async fn with(script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> (Upstream, Greenlane) {
    let upstream = Upstream::start(script).await;
    let greenlane = patient(&upstream).start().await;
    (upstream, greenlane)
}

/// Whether a feed covers an address.
fn holds(feed: &[String], addr: impl Into<IpAddr>) -> bool {
    let addr = addr.into();
    feed.iter().any(|line| line.parse::<Prefix>().unwrap().contains(addr))
}

fn ttls(message: &Message) -> Vec<u32> {
    message.answers.iter().map(|record| record.ttl).collect()
}

async fn refused(greenlane: &Greenlane, reason: &str) -> f64 {
    greenlane.metric(&format!("greenlane_learn_refused_total{{reason=\"{reason}\"}}")).await
}

async fn serial(greenlane: &Greenlane) -> f64 {
    greenlane.metric("greenlane_set_serial").await
}

/// The number in a name such as `n17.listed.example`.
fn number(asked: &Asked) -> u32 {
    asked.name().split('.').next().unwrap()[1..].parse().unwrap()
}

// Never late.

#[tokio::test]
async fn an_address_is_in_the_feed_when_the_client_reads_it() {
    let (_upstream, greenlane) = with(|asked| reply(asked, &[a(&asked.name(), 300, addr(number(asked)))])).await;
    for n in 0..40 {
        let answer = greenlane.ask(&format!("n{n}.listed.example"), RecordType::A).await;
        assert_eq!(addresses(&answer), [addr(n).to_string()]);
        assert_eq!(ttls(&answer), [300]);
        let feed = greenlane.prefixes("").await;
        assert!(feed.contains(&format!("{}/32", addr(n))), "{n} right after its answer: {feed:?}");
    }
    greenlane.ask("n41.other.example", RecordType::A).await;
    assert_eq!(greenlane.prefixes("").await.len(), 40, "what is not listed is not learned");
}

#[tokio::test]
async fn two_hundred_names_asked_by_eight_clients_at_once_are_each_there_in_time() {
    let (upstream, greenlane) = with(|asked| reply(asked, &[a(&asked.name(), 300, addr(number(asked)))])).await;
    let greenlane = &greenlane;
    let clients = (0..8).map(|client| async move {
        for n in 0..200 {
            // Half of them go through the names together, the others from the middle on.
            let n = (n + client % 2 * 100) % 200;
            let answer = greenlane.ask(&format!("n{n}.listed.example"), RecordType::A).await;
            assert_eq!(ttls(&answer).len(), 1);
            assert!(ttls(&answer)[0] > 1, "programmed, so told with its TTL");
            let feed = greenlane.prefixes("").await;
            assert!(feed.contains(&format!("{}/32", addr(n))), "client {client}, name {n}");
        }
    });
    join_all(clients).await;
    assert_eq!(upstream.count(), 200);
    assert!(serial(greenlane).await <= 200.0);
}

#[tokio::test]
async fn ipv6_addresses_are_learned_too() {
    let (_upstream, greenlane) = with(|asked| match asked.qtype() {
        AAAA => reply(asked, &[aaaa(&asked.name(), 300, "2001:db8::5")]),
        _ => reply(asked, &[a(&asked.name(), 300, addr(1))]),
    })
    .await;
    greenlane.ask("www.listed.example", RecordType::AAAA).await;
    assert_eq!(greenlane.prefixes("").await, ["2001:db8::5/128"]);
    greenlane.ask("www.listed.example", RecordType::A).await;
    assert_eq!(greenlane.prefixes("").await, [format!("{}/32", addr(1)), "2001:db8::5/128".into()]);
    assert_eq!(greenlane.prefixes("?family=6").await, ["2001:db8::5/128"]);
    assert_eq!(greenlane.metric("greenlane_set_entries{family=\"6\",origin=\"learned\"}").await, 1.0);
}

#[tokio::test]
async fn sixty_addresses_of_one_answer_over_tcp_are_all_learned() {
    let (_upstream, greenlane) = with(|asked| {
        let all: Vec<_> = (0..60).map(|n| a(&asked.name(), 300, addr(n))).collect();
        match asked.via {
            crate::upstream::Via::Udp => asked.reply().truncated().act(),
            _ => reply(asked, &all),
        }
    })
    .await;
    let answer = greenlane.ask_tcp("large.listed.example", RecordType::A).await;
    assert_eq!(answer.answers.len(), 60);
    assert_eq!(greenlane.prefixes("").await, (0..60).map(|n| format!("{}/32", addr(n))).collect::<Vec<_>>());
    assert_eq!(serial(&greenlane).await, 1.0, "one answer, one serial");
}

#[tokio::test]
async fn what_is_cut_for_a_udp_client_is_learned_whole() {
    let (_upstream, greenlane) = with(|asked| {
        let all: Vec<_> = (0..60).map(|n| a(&asked.name(), 300, addr(n))).collect();
        match asked.via {
            crate::upstream::Via::Udp => asked.reply().truncated().act(),
            _ => reply(asked, &all),
        }
    })
    .await;
    let mut query = question("large.listed.example", RecordType::A);
    query.edns.as_mut().unwrap().set_max_payload(512);
    let cut = Message::from_vec(&greenlane.udp(&query.to_vec().unwrap()).await.unwrap()).unwrap();
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(greenlane.prefixes("").await.len(), 60, "its retry over TCP must not be the first to bring them");
}

// What counts of an answer.

#[tokio::test]
async fn a_chain_of_one_to_twelve_names_is_followed_and_nothing_beside_it() {
    // c4.listed.example → c4-1.cdn.example → … → c4-4.cdn.example, which owns the address; in any order.
    let (_upstream, greenlane) = with(|asked| {
        let (name, len) = (asked.name(), number(asked));
        let link = |i: u32| if i == 0 { name.clone() } else { format!("c{len}-{i}.cdn.example") };
        let mut records: Vec<_> = (0..len).map(|i| cname(&link(i), 300, &link(i + 1))).collect();
        records.push(a(&link(len), 300, addr(len)));
        // Put in by somebody along the way.
        records.push(a("stranger.example", 300, addr(1000)));
        records.push(a(&format!("sub.{name}"), 300, addr(1001)));
        records.push(a("listed.example", 300, addr(1002)));
        if len % 2 == 0 {
            records.reverse();
        }
        records
            .iter()
            .fold(asked.reply(), |reply, record| reply.answer(record))
            .authority(&record(&wire_name("listed.example"), 2, 300, &wire_name("ns.listed.example")))
            .authority(&a(&name, 300, addr(1003)))
            .additional(&a("ns.listed.example", 300, addr(1004)))
            .additional(&a(&name, 300, addr(1005)))
            .act()
    })
    .await;
    for len in 1..=12 {
        let answer = greenlane.ask_tcp(&format!("c{len}.listed.example"), RecordType::A).await;
        assert_eq!(answer.answers.len(), len as usize + 4, "the client gets all of it");
        let expected: Vec<_> = (1..=len).map(|n| format!("{}/32", addr(n))).collect();
        assert_eq!(greenlane.prefixes("").await, expected, "a chain of {len}");
    }
    let why = greenlane.json(&format!("/explain?address={}", addr(7))).await;
    assert!(why.to_string().contains("c7.listed.example"), "a sighting of the name asked: {why}");
}

#[tokio::test]
async fn a_dname_is_followed() {
    let (_upstream, greenlane) = with(|asked| {
        let dname = |owner: &str, target: &str| record(&wire_name(owner), DNAME, 300, &wire_name(target));
        let moved = asked.name().replace(".old.listed.example", ".new.example");
        match asked.name().as_str() {
            // As RFC 6672 has it, with the CNAME made from it.
            "www.old.listed.example" => reply(
                asked,
                &[
                    dname("old.listed.example", "new.example"),
                    cname(&asked.name(), 300, &moved),
                    a(&moved, 300, addr(1)),
                ],
            ),
            // And without.
            _ => reply(asked, &[dname("old.listed.example", "new.example"), a(&moved, 300, addr(2))]),
        }
    })
    .await;
    greenlane.ask("www.old.listed.example", RecordType::A).await;
    greenlane.ask("api.old.listed.example", RecordType::A).await;
    assert_eq!(greenlane.prefixes("").await, [format!("{}/32", addr(1)), format!("{}/32", addr(2))]);
}

#[tokio::test]
async fn hints_of_https_and_svcb_are_learned() {
    let (_upstream, greenlane) = with(|asked| match (asked.name().as_str(), asked.qtype()) {
        ("www.listed.example", HTTPS) => {
            let rdata = svcb(1, "", &[addr(1), addr(2)], &["2001:db8::1"]);
            reply(asked, &[record(&[0xc0, 12], HTTPS, 300, &rdata)])
        }
        ("_dns.listed.example", SVCB) => {
            reply(asked, &[record(&[0xc0, 12], SVCB, 300, &svcb(1, "svc.example", &[addr(3)], &[]))])
        }
        // Behind a CNAME, and beside one of a stranger.
        ("far.listed.example", HTTPS) => reply(
            asked,
            &[
                cname("far.listed.example", 300, "cdn.example"),
                record(&wire_name("cdn.example"), HTTPS, 300, &svcb(2, "", &[addr(4)], &[])),
                record(&wire_name("stranger.example"), HTTPS, 300, &svcb(2, "", &[addr(5)], &[])),
            ],
        ),
        other => panic!("{other:?}"),
    })
    .await;
    let answer = greenlane.ask("www.listed.example", RecordType::HTTPS).await;
    assert_eq!(tag(&answer).as_deref(), Some("app=demo;match=listed.example"));
    let feed = greenlane.prefixes("").await;
    assert_eq!(feed, [format!("{}/32", addr(1)), format!("{}/32", addr(2)), "2001:db8::1/128".into()]);
    greenlane.ask("_dns.listed.example", RecordType::SVCB).await;
    assert!(holds(&greenlane.prefixes("").await, addr(3)));
    greenlane.ask("far.listed.example", RecordType::HTTPS).await;
    let feed = greenlane.prefixes("").await;
    assert!(holds(&feed, addr(4)) && !holds(&feed, addr(5)), "{feed:?}");
}

#[tokio::test]
async fn a_listed_target_makes_no_strangers_name_listed() {
    let (_upstream, greenlane) = with(|asked| {
        let name = asked.name();
        reply(asked, &[cname(&name, 300, "www.listed.example"), a("www.listed.example", 300, addr(66))])
    })
    .await;
    let answer = greenlane.ask("stranger.example", RecordType::A).await;
    assert_eq!(addresses(&answer), [addr(66).to_string()]);
    assert_eq!(tag(&answer), None);
    assert_eq!(greenlane.prefixes("").await, [""; 0]);
    assert_eq!(greenlane.metric("greenlane_tag_answers_total{app=\"demo\"}").await, 0.0);
}

#[tokio::test]
async fn every_app_decides_alone_and_a_name_carries_all_that_say_yes() {
    let upstream = Upstream::start(|asked| {
        let last = match asked.name().split('.').next().unwrap() {
            "both" => 1,
            "files" => 2,
            _ => 3,
        };
        reply(asked, &[a(&asked.name(), 300, addr(last))])
    })
    .await;
    let greenlane = patient(&upstream)
        .list("demo.list", "# Demo\nlisted.example\n!files.listed.example\n!no.listed.example\n")
        .list("second.list", "# Second\n*.listed.example\n!no.listed.example\n")
        .start()
        .await;
    let tag_of = async |name: &str| tag(&greenlane.ask(name, RecordType::A).await);
    let both = tag_of("both.listed.example").await;
    assert_eq!(both.as_deref(), Some("app=second;match=*.listed.example;also=demo"), "`*.` is the more specific");
    assert_eq!(tag_of("files.listed.example").await.as_deref(), Some("app=second;match=*.listed.example"));
    assert_eq!(tag_of("deep.no.listed.example").await, None, "`!` speaks from that name down");
    let lines = |ns: &[u32]| ns.iter().map(|n| format!("{}/32", addr(*n))).collect::<Vec<_>>();
    assert_eq!(greenlane.prefixes("").await, lines(&[1, 2]));
    assert_eq!(greenlane.prefixes("?app=demo").await, lines(&[1]));
    assert_eq!(greenlane.prefixes("?app=second").await, lines(&[1, 2]));
}

// Where HTTPS records point.

/// `www.listed.example` has an HTTPS record that points at `svc.cdn.example`; that has one, too, that points further.
async fn pointing() -> (Upstream, Greenlane) {
    with(|asked| match (asked.name().as_str(), asked.qtype()) {
        ("www.listed.example", HTTPS) => {
            reply(asked, &[record(&[0xc0, 12], HTTPS, 300, &svcb(1, "svc.cdn.example", &[], &[]))])
        }
        ("alias.listed.example", HTTPS) => {
            reply(asked, &[record(&[0xc0, 12], HTTPS, 300, &svcb(0, "alias.cdn.example", &[], &[]))])
        }
        ("svc.cdn.example", HTTPS) => {
            reply(asked, &[record(&[0xc0, 12], HTTPS, 300, &svcb(1, "third.example", &[], &[]))])
        }
        ("svc.cdn.example", A) => reply(asked, &[a("svc.cdn.example", 300, addr(1))]),
        ("svc.cdn.example", AAAA) => reply(asked, &[aaaa("svc.cdn.example", 300, "2001:db8::1")]),
        ("alias.cdn.example", A) => {
            reply(asked, &[cname("alias.cdn.example", 300, "edge.example"), a("edge.example", 300, addr(2))])
        }
        ("third.example", A) => reply(asked, &[a("third.example", 300, addr(3))]),
        _ => asked.fail(3),
    })
    .await
}

#[tokio::test]
async fn addresses_of_a_target_are_learned_for_the_listed_name_and_untagged() {
    let (_upstream, greenlane) = pointing().await;
    assert!(tag(&greenlane.ask("www.listed.example", RecordType::HTTPS).await).is_some());
    let answer = greenlane.ask("svc.cdn.example", RecordType::A).await;
    assert_eq!((tag(&answer), addresses(&answer)), (None, vec![addr(1).to_string()]));
    assert_eq!(greenlane.prefixes("").await, [format!("{}/32", addr(1))]);
    greenlane.ask("svc.cdn.example", RecordType::AAAA).await;
    assert!(holds(&greenlane.prefixes("").await, "2001:db8::1".parse::<IpAddr>().unwrap()));
    let why = greenlane.json(&format!("/explain?address={}", addr(1))).await;
    assert!(why.to_string().contains("www.listed.example"), "{why}");
    assert!(!why.to_string().contains("svc.cdn.example"), "{why}");
    // Alias mode, and a CNAME at the target.
    greenlane.ask("alias.listed.example", RecordType::HTTPS).await;
    greenlane.ask("alias.cdn.example", RecordType::A).await;
    assert!(holds(&greenlane.prefixes("").await, addr(2)));
}

#[tokio::test]
async fn a_target_cached_before_is_learned_when_asked_again() {
    let (upstream, greenlane) = pointing().await;
    greenlane.ask("svc.cdn.example", RecordType::A).await;
    greenlane.ask("svc.cdn.example", RecordType::A).await;
    assert_eq!(upstream.count(), 1, "cached");
    assert_eq!(greenlane.prefixes("").await, [""; 0]);
    greenlane.ask("www.listed.example", RecordType::HTTPS).await;
    let answer = greenlane.ask("svc.cdn.example", RecordType::A).await;
    assert_eq!((tag(&answer), addresses(&answer)), (None, vec![addr(1).to_string()]));
    assert_eq!(greenlane.prefixes("").await, [format!("{}/32", addr(1))]);
}

#[tokio::test]
async fn nothing_is_followed_twice() {
    let (upstream, greenlane) = pointing().await;
    greenlane.ask("www.listed.example", RecordType::HTTPS).await;
    greenlane.ask("svc.cdn.example", RecordType::HTTPS).await;
    greenlane.ask("third.example", RecordType::A).await;
    assert_eq!(upstream.count(), 3);
    assert_eq!(greenlane.prefixes("").await, [""; 0]);
}

#[tokio::test]
async fn nothing_is_followed_from_a_name_that_is_not_listed() {
    let (upstream, greenlane) = pointing().await;
    greenlane.ask("svc.cdn.example", RecordType::HTTPS).await;
    greenlane.ask("third.example", RecordType::A).await;
    assert_eq!(upstream.count(), 2);
    assert_eq!(greenlane.prefixes("").await, [""; 0]);
}

// What is never learned.

/// Address, reason that the metrics give. 9.9.9.9 is an upstream of a route, 1.2.3.0/24 and 2600::/16 stand in
/// `learn.never`, 127.0.0.1 is where greenlane listens.
const HOSTILE: [(&str, &str); 42] = [
    ("0.0.0.0", "special-purpose"),
    ("0.1.2.3", "special-purpose"),
    ("10.0.0.1", "special-purpose"),
    ("100.64.0.1", "special-purpose"),
    ("127.0.0.2", "special-purpose"),
    ("127.255.255.255", "special-purpose"),
    ("169.254.169.254", "special-purpose"),
    ("172.16.0.1", "special-purpose"),
    ("172.31.255.255", "special-purpose"),
    ("192.0.0.1", "special-purpose"),
    ("192.0.2.1", "special-purpose"),
    ("192.88.99.1", "special-purpose"),
    ("192.168.1.1", "special-purpose"),
    ("198.18.0.1", "special-purpose"),
    ("198.19.255.255", "special-purpose"),
    ("198.51.100.1", "special-purpose"),
    ("203.0.113.1", "special-purpose"),
    ("240.0.0.1", "special-purpose"),
    ("255.255.255.255", "special-purpose"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.250", "multicast"),
    ("127.0.0.1", "own"),
    ("9.9.9.9", "own"),
    ("1.2.3.4", "never"),
    ("::", "special-purpose"),
    ("::1", "special-purpose"),
    ("::8.8.8.8", "not-unicast"),
    ("::ffff:8.8.8.8", "special-purpose"),
    ("::ffff:10.0.0.1", "special-purpose"),
    ("64:ff9b::8.8.8.8", "nat64"),
    ("64:ff9b::10.0.0.1", "nat64"),
    ("64:ff9b:1::1", "nat64"),
    ("100::1", "special-purpose"),
    ("2001::1", "special-purpose"),
    ("2001:db8::1", "special-purpose"),
    ("2002:808:808::1", "special-purpose"),
    ("2600::1", "never"),
    ("3fff::1", "special-purpose"),
    ("5f00::1", "special-purpose"),
    ("fc00::1", "special-purpose"),
    ("fe80::1", "special-purpose"),
    ("ff02::1", "multicast"),
];

fn hostile_record(owner: &str, addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => a(owner, 300, addr),
        IpAddr::V6(addr) => record(&wire_name(owner), AAAA, 300, &addr.octets()),
    }
}

/// Documentation addresses are what they are here: nothing is treated as public.
fn strict(upstream: &Upstream) -> Setup {
    Setup::new(upstream.addr)
        .only("learn", "hold = \"1s\"\nnever = [\"1.2.3.0/24\", \"2600::/16\"]")
        .with("[forward.route]", "zone = \"corp.example\"\nupstreams = [\"udp://9.9.9.9\"]")
}

#[tokio::test]
async fn hostile_addresses_reach_the_client_and_never_the_set() {
    let upstream = Upstream::start(|asked| {
        let at = number(asked) as usize;
        reply(asked, &[hostile_record(&asked.name(), HOSTILE[at].0.parse().unwrap())])
    })
    .await;
    let greenlane = strict(&upstream).start().await;
    for (at, (text, reason)) in HOSTILE.iter().enumerate() {
        let addr: IpAddr = text.parse().unwrap();
        let before = refused(&greenlane, reason).await;
        let rtype = if addr.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        let answer = greenlane.ask(&format!("h{at}.listed.example"), rtype).await;
        assert_eq!(addresses(&answer), [addr.to_string()], "{text} reaches the client");
        assert_eq!(ttls(&answer), [300], "{text}, with its TTL");
        assert!(tag(&answer).is_some(), "{text}, tagged");
        assert_eq!(refused(&greenlane, reason).await, before + 1.0, "{text} is counted as {reason}");
        assert_eq!(greenlane.prefixes("").await, [""; 0], "{text}");
    }
    let total: f64 = HOSTILE.len() as f64;
    let mut counted = 0.0;
    for reason in ["own", "never", "nat64", "multicast", "special-purpose", "not-unicast"] {
        counted += refused(&greenlane, reason).await;
    }
    assert_eq!(counted, total, "each once");
    assert_eq!(serial(&greenlane).await, 0.0);
}

#[tokio::test]
async fn a_public_address_among_hostile_ones_is_learned_alone() {
    let upstream = Upstream::start(|asked| {
        let hostile = HOSTILE.iter().map(|(text, _)| text.parse().unwrap()).filter(IpAddr::is_ipv4);
        let mut records: Vec<_> = hostile.map(|addr| hostile_record(&asked.name(), addr)).collect();
        records.insert(5, a(&asked.name(), 300, Ipv4Addr::new(8, 8, 8, 8)));
        reply(asked, &records)
    })
    .await;
    let greenlane = strict(&upstream).start().await;
    let answer = greenlane.ask_tcp("mixed.listed.example", RecordType::A).await;
    assert_eq!(answer.answers.len(), 25);
    assert!(ttls(&answer).iter().all(|ttl| *ttl == 300), "what may not be learned holds nothing up");
    assert_eq!(greenlane.prefixes("").await, ["8.8.8.8/32"]);
}

#[tokio::test]
async fn own_addresses_and_never_win_over_treat_as_public() {
    let upstream = Upstream::start(|asked| {
        let addrs = [[127, 0, 0, 1], [127, 0, 0, 9], [10, 0, 0, 1], [10, 9, 0, 1], [9, 9, 9, 9], [224, 0, 0, 1]];
        let all: Vec<_> = addrs.iter().map(|octets| a(&asked.name(), 300, Ipv4Addr::from(*octets))).collect();
        reply(asked, &all)
    })
    .await;
    let greenlane = Setup::new(upstream.addr)
        .only("learn", "hold = \"1s\"\ntreat-as-public = [\"0.0.0.0/0\", \"::/0\"]\nnever = [\"10.9.0.0/16\"]")
        .with("[forward.route]", "zone = \"corp.example\"\nupstreams = [\"udp://9.9.9.9\"]")
        .start()
        .await;
    greenlane.ask("www.listed.example", RecordType::A).await;
    assert_eq!(greenlane.prefixes("").await, ["10.0.0.1/32", "127.0.0.9/32"]);
}

#[tokio::test]
async fn listening_everywhere_makes_every_address_of_the_host_our_own() {
    let interfaces = nix::ifaddrs::getifaddrs().unwrap();
    let ours: Vec<Ipv4Addr> = interfaces.filter_map(|one| Some(one.address?.as_sockaddr_in()?.ip())).collect();
    assert!(!ours.is_empty());
    let all = ours.clone();
    let upstream = Upstream::start(move |asked| {
        let records: Vec<_> = all.iter().map(|addr| a(&asked.name(), 300, *addr)).collect();
        reply(asked, &records)
    })
    .await;
    let greenlane = Setup::new(upstream.addr)
        .only("listen", "dns = [\"0.0.0.0:0\"]\nweb = \"127.0.0.1:0\"")
        .only("learn", "hold = \"1s\"\ntreat-as-public = [\"0.0.0.0/0\"]")
        .start()
        .await;
    let answer = greenlane.ask("www.listed.example", RecordType::A).await;
    assert_eq!(answer.answers.len(), ours.len());
    assert_eq!(greenlane.prefixes("").await, [""; 0]);
    assert_eq!(refused(&greenlane, "own").await, ours.len() as f64);
}

#[tokio::test]
async fn nat64_addresses_pass_when_configured_and_sound_inside() {
    let upstream = Upstream::start(|asked| {
        let all = ["64:ff9b::8.8.8.8", "64:ff9b::10.0.0.1", "64:ff9b::9.9.9.9"];
        reply(asked, &all.map(|addr| aaaa(&asked.name(), 300, addr)))
    })
    .await;
    let greenlane = strict(&upstream).with("learn", "nat64 = [\"64:ff9b::/96\"]").start().await;
    greenlane.ask("www.listed.example", RecordType::AAAA).await;
    assert_eq!(greenlane.prefixes("").await, ["64:ff9b::808:808/128"], "not the private one, not the upstream's");
}

// Ends.

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
async fn left(greenlane: &Greenlane, addr: Ipv4Addr, patience: Duration) -> Option<Duration> {
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

// Serials.

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

// Caps.

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
