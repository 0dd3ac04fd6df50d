//! What enters the set, when, for how long, and what never does: the real binary, its answers, its feed, its metrics.
//!
//! This file holds what the tests beside it share: records, a greenlane that is patient, looks at the feed.

use std::net::{IpAddr, Ipv4Addr};

use greenlane::prefix::Prefix;
use hickory_proto::op::Message;

use crate::harness::{Greenlane, Setup};
use crate::upstream::{A, AAAA, Act, Asked, CNAME, Upstream, record, wire_name};

mod answers;
mod caps;
mod ends;
pub(crate) mod never;
mod targets;

pub(super) const DNAME: u16 = 39;
pub(super) const SVCB: u16 = 64;

/// An address of ours by number, far enough from its neighbours that no two make a wider prefix.
pub(crate) fn addr(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + 2 * n)
}

pub(crate) fn a(owner: &str, ttl: u32, addr: Ipv4Addr) -> Vec<u8> {
    record(&wire_name(owner), A, ttl, &addr.octets())
}

pub(crate) fn aaaa(owner: &str, ttl: u32, addr: &str) -> Vec<u8> {
    let IpAddr::V6(addr) = addr.parse().unwrap() else { panic!("{addr} is no IPv6 address") };
    record(&wire_name(owner), AAAA, ttl, &addr.octets())
}

pub(crate) fn cname(owner: &str, ttl: u32, target: &str) -> Vec<u8> {
    record(&wire_name(owner), CNAME, ttl, &wire_name(target))
}

/// RDATA of HTTPS and SVCB; no hints and a priority of 0 is alias mode.
pub(crate) fn svcb(priority: u16, target: &str, v4: &[Ipv4Addr], v6: &[&str]) -> Vec<u8> {
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

pub(crate) fn reply(asked: &Asked, records: &[Vec<u8>]) -> Act {
    records.iter().fold(asked.reply(), |reply, record| reply.answer(record)).act()
}

/// A greenlane that waits for the set as long as it may be told to, so that a busy machine makes no answer late.
pub(crate) fn patient(upstream: &Upstream) -> Setup {
    Setup::new(upstream.addr).with("learn", "hold = \"1s\"")
}

pub(super) async fn with(script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> (Upstream, Greenlane) {
    let upstream = Upstream::start(script).await;
    let greenlane = patient(&upstream).start().await;
    (upstream, greenlane)
}

/// Whether a feed covers an address.
pub(crate) fn holds(feed: &[String], addr: impl Into<IpAddr>) -> bool {
    let addr = addr.into();
    feed.iter().any(|line| line.parse::<Prefix>().unwrap().contains(addr))
}

pub(crate) fn ttls(message: &Message) -> Vec<u32> {
    message.answers.iter().map(|record| record.ttl).collect()
}

pub(super) async fn refused(greenlane: &Greenlane, reason: &str) -> f64 {
    greenlane.metric(&format!("greenlane_learn_refused_total{{reason=\"{reason}\"}}")).await
}

pub(super) async fn serial(greenlane: &Greenlane) -> f64 {
    greenlane.metric("greenlane_set_serial").await
}

/// The number in a name such as `n17.listed.example`.
pub(crate) fn number(asked: &Asked) -> u32 {
    asked.name().split('.').next().unwrap()[1..].parse().unwrap()
}
