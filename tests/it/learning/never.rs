//! What is never learned: the client gets it, the set does not, and the metrics say why.

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::rr::RecordType;

use super::{a, aaaa, number, refused, reply, serial, ttls};
use crate::harness::{Setup, addresses, tag};
use crate::upstream::{AAAA, Upstream, record, wire_name};

/// Address, reason that the metrics give. 9.9.9.9 is an upstream of a route, 1.2.3.0/24 and 2600::/16 stand in
/// `learn.never`, 127.0.0.1 is where greenlane listens.
pub(crate) const HOSTILE: [(&str, &str); 42] = [
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

pub(crate) fn hostile_record(owner: &str, addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => a(owner, 300, addr),
        IpAddr::V6(addr) => record(&wire_name(owner), AAAA, 300, &addr.octets()),
    }
}

/// Documentation addresses are what they are here: nothing is treated as public.
pub(crate) fn strict(upstream: &Upstream) -> Setup {
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
