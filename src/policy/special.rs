//! Special-use names, answered at home.
//!
//! A forwarder in front of private clients must not leak their questions for `localhost`, `home.arpa` or private
//! reverse zones to the internet (RFC 6761, 6303, 7686, 8375, 9476, 9462). [`Special`] answers them as an empty,
//! locally served zone would: `localhost` with the loopback addresses, the reverse names of these with `localhost`,
//! the apex of the other zones with NODATA, everything else with NXDOMAIN, each with an SOA so that clients cache it.
//!
//! `_dns.resolver.arpa` tells of our encrypted listeners, where there are any ([`Designated`]). Names that software asks to
//! learn whether it may go around the network's resolver are denied if the operator says so ([`Options`]).
//!
//! A forwarding route at or below such a zone is a switch: whoever routes `10.in-addr.arpa` or `corp.home.arpa` to a server
//! of theirs wants it asked. `forward.special` is the other: the names in it are put to the upstreams of all names.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::Hosts;
use super::designated::{self, Designated};
use crate::name::Name;
use crate::wire::{Question, rcode, rtype};

/// The TTL of these answers and their SOA, as RFC 6303 §3 gives it.
const TTL_SECS: u32 = 10_800;

/// The TTL of what a hosts file says: a change is seen within minutes.
const HOSTS_TTL_SECS: u32 = 300;

/// Names under which nothing exists, apex included: RFC 6761 §6.2 and §6.4, RFC 7686, RFC 9476, and RFC 6762 §22.1
/// for a resolver that is not asked for multicast names.
const NOTHING: [&str; 5] = ["invalid", "test", "onion", "alt", "local"];

/// Zones served empty: RFC 8375, RFC 9462 §8.3, and the registry that RFC 6303 and RFC 7793 began.
const EMPTY: [&str; 20] = [
    "home.arpa",
    "resolver.arpa",
    "0.in-addr.arpa",
    "10.in-addr.arpa",
    "127.in-addr.arpa",
    "254.169.in-addr.arpa",
    "168.192.in-addr.arpa",
    "2.0.192.in-addr.arpa",
    "100.51.198.in-addr.arpa",
    "113.0.203.in-addr.arpa",
    "255.255.255.255.in-addr.arpa",
    "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
    LOOPBACK_6,
    "d.f.ip6.arpa",
    "8.e.f.ip6.arpa",
    "9.e.f.ip6.arpa",
    "a.e.f.ip6.arpa",
    "b.e.f.ip6.arpa",
    "8.b.d.0.1.0.0.2.ip6.arpa",
    // The apex of RFC 9462's discovery name: NODATA tells a client that there is nothing to discover.
    "_dns.resolver.arpa",
];

/// Browsers that find no such name stay with the resolver of the network (Mozilla's "canary domain").
const KEEP_BROWSERS: [&str; 1] = ["use-application-dns.net"];

/// Apple's clients that find no such names do not relay (Apple, "Prepare your network for iCloud Private Relay").
const PRIVATE_RELAY: [&str; 2] = ["mask.icloud.com", "mask-h2.icloud.com"];

/// Names that are denied only if asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether browsers are told to stay with us.
    pub keep_browsers: bool,
    /// Whether iCloud Private Relay is told to stay away.
    pub block_private_relay: bool,
}

const LOOPBACK_4: &str = "1.0.0.127.in-addr.arpa";
const LOOPBACK_6: &str = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa";

/// What stands under a zone of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zone {
    /// The loopback addresses, at the apex and below.
    Localhost,
    /// Nothing at all.
    Nothing,
    /// An apex with SOA and NS, nothing below.
    Empty,
}

/// The special-use names and the routes that take some of them away.
#[derive(Clone, Debug)]
pub struct Special {
    /// Keyed by the apex in wire form.
    zones: HashMap<Box<[u8]>, Zone, foldhash::fast::RandomState>,
    routes: Vec<Name>,
    loopback: [Option<Name>; 2],
    /// Our encrypted listeners; another certificate changes what is told.
    designated: Option<Arc<ArcSwap<Designated>>>,
    hosts: Arc<Hosts>,
}

impl Special {
    /// Takes the zones that have routes of their own, and those that are switched off.
    pub fn new(routes: Vec<Name>) -> Self {
        let mut zones = HashMap::default();
        let mut add = |text: &str, zone| {
            // The tables hold well-formed names only; `every_zone_of_the_tables_parses` would show one that is not.
            if let Ok(name) = Name::parse(text) {
                zones.insert(name.as_wire().into(), zone);
            }
        };
        add("localhost", Zone::Localhost);
        NOTHING.iter().for_each(|text| add(text, Zone::Nothing));
        EMPTY.iter().for_each(|text| add(text, Zone::Empty));
        // RFC 1918's 172.16.0.0/12 and RFC 6598's 100.64.0.0/10 are many zones each.
        (16..32).for_each(|octet| add(&format!("{octet}.172.in-addr.arpa"), Zone::Empty));
        (64..128).for_each(|octet| add(&format!("{octet}.100.in-addr.arpa"), Zone::Empty));
        let loopback = [LOOPBACK_4, LOOPBACK_6].map(|text| Name::parse(text).ok());
        Self { zones, routes, loopback, designated: None, hosts: Arc::default() }
    }

    /// Denies the names that the options say.
    #[must_use]
    pub fn denying(mut self, options: Options) -> Self {
        let Options { keep_browsers, block_private_relay } = options;
        let browsers = KEEP_BROWSERS.iter().filter(|_| keep_browsers);
        let relay = PRIVATE_RELAY.iter().filter(|_| block_private_relay);
        for name in browsers.chain(relay).filter_map(|text| Name::parse(text).ok()) {
            self.zones.insert(name.as_wire().into(), Zone::Nothing);
        }
        self
    }

    /// Tells of encrypted listeners what stands there at the time of the question.
    #[must_use]
    pub fn telling(self, designated: Arc<ArcSwap<Designated>>) -> Self {
        Self { designated: Some(designated), ..self }
    }

    /// Answers SVCB questions for our encrypted listeners.
    fn discovery(&self, question: &Question) -> Option<Vec<u8>> {
        if question.qtype != rtype::SVCB {
            return None;
        }
        let designated = self.designated.as_ref()?.load();
        let records = designated.of(&question.name)?;
        let mut reply = Reply::new(question, 0);
        for rdata in records {
            reply.octets[7] += 1;
            reply.record([0xc0, 12], rtype::SVCB, designated::TTL_SECS, rdata);
        }
        Some(reply.octets)
    }

    /// Answers the names of a hosts file, too; it comes first.
    #[must_use]
    pub fn with_hosts(self, hosts: Arc<Hosts>) -> Self {
        Self { hosts, ..self }
    }

    /// Answers what stands in the hosts file.
    fn answer_of_hosts(&self, question: &Question) -> Option<Vec<u8>> {
        let name = question.name.as_wire();
        let mut reply = Reply { ttl_secs: HOSTS_TTL_SECS, ..Reply::new(question, name.len()) };
        if let (rtype::PTR, Some(found)) = (question.qtype, self.hosts.name(&question.name)) {
            reply.add(rtype::PTR, found.as_wire());
            return Some(reply.octets);
        }
        for addr in self.hosts.addresses(&question.name)? {
            match (addr, question.qtype) {
                (IpAddr::V4(addr), rtype::A) => reply.add(rtype::A, &addr.octets()),
                (IpAddr::V6(addr), rtype::AAAA) => reply.add(rtype::AAAA, &addr.octets()),
                _ => {}
            }
        }
        if reply.octets[7] == 0 {
            reply.deny(rcode::NOERROR, name);
        }
        Some(reply.octets)
    }

    /// Returns whether a name is ours to answer.
    pub fn holds(&self, name: &Name) -> bool {
        self.zone_of(name).is_some()
    }

    /// Returns the answer as a message in wire form, or `None` if the name is not ours to answer.
    pub fn answer(&self, question: &Question) -> Option<Vec<u8>> {
        if let Some(octets) = self.answer_of_hosts(question).or_else(|| self.discovery(question)) {
            return Some(octets);
        }
        let (apex, zone) = self.zone_of(&question.name)?;
        let is_apex = apex.len() == question.name.as_wire().len();
        let mut reply = Reply::new(question, apex.len());
        match (zone, question.qtype) {
            (Zone::Localhost, rtype::A) => reply.add(rtype::A, &Ipv4Addr::LOCALHOST.octets()),
            (Zone::Localhost, rtype::AAAA) => reply.add(rtype::AAAA, &Ipv6Addr::LOCALHOST.octets()),
            (Zone::Empty, rtype::PTR) if self.loopback.contains(&Some(question.name.clone())) => {
                reply.add(rtype::PTR, b"\x09localhost\0");
            }
            (Zone::Empty, rtype::SOA) if is_apex => reply.add(rtype::SOA, &soa(apex)),
            (Zone::Empty, rtype::NS) if is_apex => reply.add(rtype::NS, apex),
            (Zone::Localhost, _) => reply.deny(rcode::NOERROR, apex),
            (Zone::Empty, _) if is_apex || self.loopback.contains(&Some(question.name.clone())) => {
                reply.deny(rcode::NOERROR, apex);
            }
            (Zone::Nothing | Zone::Empty, _) => reply.deny(rcode::NXDOMAIN, apex),
        }
        Some(reply.octets)
    }

    /// Finds the deepest zone of ours that holds `name`, unless a route stands at or below that zone.
    fn zone_of<'a>(&self, name: &'a Name) -> Option<(&'a [u8], Zone)> {
        let mut rest = name.as_wire();
        while rest.len() > 1 {
            if let Some(&zone) = self.zones.get(rest) {
                let is_routed =
                    self.routes.iter().any(|route| name.is_at_or_below(route) && route.as_wire().len() >= rest.len());
                return (!is_routed).then_some((rest, zone));
            }
            rest = &rest[1 + usize::from(rest[0])..];
        }
        None
    }
}

/// A reply being written: header and question first, one record after them.
struct Reply {
    octets: Vec<u8>,
    ttl_secs: u32,
    /// A compression pointer to the apex inside the question.
    apex_pointer: [u8; 2],
}

impl Reply {
    fn new(question: &Question, apex_len: usize) -> Self {
        let name = question.name.as_wire();
        let mut octets = vec![0, 0, 0x80, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
        octets.extend_from_slice(name);
        octets.extend_from_slice(&question.qtype.to_be_bytes());
        octets.extend_from_slice(&question.qclass.to_be_bytes());
        // The question starts at 12 and a name has at most 255 octets, so the place always fits a pointer's 14 bits.
        let place = 0xc000 | (12 + name.len() - apex_len) as u16;
        Self { octets, ttl_secs: TTL_SECS, apex_pointer: place.to_be_bytes() }
    }

    /// Answers with one more record of the name asked; there are fewer than 256.
    fn add(&mut self, rtype: u16, rdata: &[u8]) {
        self.octets[7] += 1;
        self.record([0xc0, 12], rtype, self.ttl_secs, rdata);
    }

    /// Answers with no record and the SOA of the zone (RFC 2308 §2).
    fn deny(&mut self, rcode: u16, apex: &[u8]) {
        self.octets[3] |= rcode as u8;
        self.octets[9] = 1;
        self.record(self.apex_pointer, rtype::SOA, TTL_SECS, &soa(apex));
    }

    fn record(&mut self, owner: [u8; 2], rtype: u16, ttl_secs: u32, rdata: &[u8]) {
        self.octets.extend_from_slice(&owner);
        self.octets.extend_from_slice(&rtype.to_be_bytes());
        self.octets.extend_from_slice(&1u16.to_be_bytes());
        self.octets.extend_from_slice(&ttl_secs.to_be_bytes());
        self.octets.extend_from_slice(&(rdata.len() as u16).to_be_bytes());
        self.octets.extend_from_slice(rdata);
    }
}

/// The SOA of a locally served zone as RFC 6303 §3 writes it: `@ nobody.invalid. 1 3600 1200 604800 10800`.
fn soa(apex: &[u8]) -> Vec<u8> {
    let mut rdata = apex.to_vec();
    rdata.extend_from_slice(b"\x06nobody\x07invalid\0");
    for number in [1, 3600, 1200, 604_800, TTL_SECS] {
        rdata.extend_from_slice(&number.to_be_bytes());
    }
    rdata
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, ResponseCode};
    use hickory_proto::rr::{RData, RecordType};

    use super::*;

    fn ask(special: &Special, name: &str, qtype: u16) -> Option<Message> {
        let question =
            Question { name: Name::parse(name).unwrap(), qtype, qclass: 1, dnssec_ok: false, checking_disabled: false };
        special.answer(&question).map(|octets| Message::from_vec(&octets).unwrap())
    }

    #[test]
    fn every_zone_of_the_tables_parses() {
        let special = Special::new(Vec::new());
        assert_eq!(special.zones.len(), 1 + NOTHING.len() + EMPTY.len() + 16 + 64);
        assert!(special.loopback.iter().all(Option::is_some));
    }

    #[test]
    fn localhost_and_below_is_loopback() {
        let special = Special::new(Vec::new());
        for name in ["localhost", "a.b.LocalHost"] {
            let a = ask(&special, name, rtype::A).unwrap();
            assert_eq!(a.answers[0].data, RData::A(Ipv4Addr::LOCALHOST.into()));
            let aaaa = ask(&special, name, rtype::AAAA).unwrap();
            assert_eq!(aaaa.answers[0].data, RData::AAAA(Ipv6Addr::LOCALHOST.into()));
            let mx = ask(&special, name, rtype::MX).unwrap();
            assert_eq!(mx.metadata.response_code, ResponseCode::NoError);
            assert!(mx.answers.is_empty());
            assert_eq!(mx.authorities[0].record_type(), RecordType::SOA);
        }
    }

    #[test]
    fn names_for_nothing_do_not_exist() {
        let special = Special::new(Vec::new());
        for name in ["invalid", "a.test", "x.onion", "a.b.alt", "printer.local", "lab.home.arpa", "9.9.10.in-addr.arpa"]
        {
            let reply = ask(&special, name, rtype::A).unwrap();
            assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
            assert_eq!(reply.authorities.len(), 1, "{name}");
        }
        for name in ["example.com", "tests", "16.172.example", "32.172.in-addr.arpa", "arpa", "."] {
            assert!(ask(&special, name, rtype::A).is_none(), "{name}");
        }
    }

    #[test]
    fn an_empty_zone_has_an_apex() {
        let special = Special::new(Vec::new());
        let soa = ask(&special, "home.arpa", rtype::SOA).unwrap();
        assert_eq!(soa.answers[0].record_type(), RecordType::SOA);
        let ns = ask(&special, "10.in-addr.arpa", rtype::NS).unwrap();
        assert_eq!(ns.answers[0].record_type(), RecordType::NS);
        let a = ask(&special, "31.172.in-addr.arpa", rtype::A).unwrap();
        assert_eq!(a.metadata.response_code, ResponseCode::NoError);
        let discovery = ask(&special, "_dns.resolver.arpa", 64).unwrap();
        assert_eq!(discovery.metadata.response_code, ResponseCode::NoError);
        assert!(discovery.answers.is_empty());
    }

    #[test]
    fn loopback_reverse_names_are_localhost() {
        let special = Special::new(Vec::new());
        for name in [LOOPBACK_4, LOOPBACK_6] {
            let reply = ask(&special, name, rtype::PTR).unwrap();
            assert_eq!(reply.answers[0].data.to_string(), "localhost.");
        }
    }

    #[test]
    fn what_is_ours_is_known_by_its_zone() {
        let special = Special::new(Vec::new());
        let holds = |name: &str| special.holds(&Name::parse(name).unwrap());
        assert!(["home.arpa", "a.b.home.arpa", "localhost", "7.10.in-addr.arpa"].iter().all(|name| holds(name)));
        assert!(!["arpa", ".", "example.com", "in-addr.arpa"].iter().any(|name| holds(name)));
    }

    #[test]
    fn a_hosts_file_comes_first() {
        let text = "10.0.0.1 nas.home.arpa\n10.0.0.2 nas.home.arpa\n2001:db8::1 localhost\n";
        let special = Special::new(Vec::new()).with_hosts(Arc::new(Hosts::parse(text).0));
        let a = ask(&special, "NAS.home.arpa", rtype::A).unwrap();
        assert_eq!(
            a.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>(),
            ["10.0.0.1", "10.0.0.2"]
        );
        assert_eq!(a.answers[0].ttl, HOSTS_TTL_SECS);
        for qtype in [rtype::AAAA, rtype::MX] {
            let none = ask(&special, "nas.home.arpa", qtype).unwrap();
            assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0));
            assert_eq!(none.authorities[0].record_type(), RecordType::SOA);
        }
        let ptr = ask(&special, "2.0.0.10.in-addr.arpa", rtype::PTR).unwrap();
        assert_eq!(ptr.answers[0].data.to_string(), "nas.home.arpa.");
        let other = ask(&special, "3.0.0.10.in-addr.arpa", rtype::PTR).unwrap();
        assert_eq!(other.metadata.response_code, ResponseCode::NXDomain);
        assert!(ask(&special, "example.com", rtype::A).is_none());
    }

    #[test]
    fn a_route_takes_its_names_away() {
        let routes = ["10.in-addr.arpa", "lab.test", "arpa"].map(|text| Name::parse(text).unwrap());
        let special = Special::new(routes.to_vec());
        assert!(ask(&special, "1.2.3.10.in-addr.arpa", rtype::PTR).is_none());
        assert!(ask(&special, "a.lab.test", rtype::A).is_none());
        assert!(ask(&special, "b.test", rtype::A).is_some(), "another name of the zone stays ours");
        assert!(ask(&special, "home.arpa", rtype::A).is_some(), "a route above the zone is no wish for it");
    }

    #[test]
    fn encrypted_listeners_are_told_of_and_another_certificate_changes_it() {
        use super::super::Way;
        let names = |texts: &[&str]| texts.iter().map(|text| Name::parse(text).unwrap()).collect::<Vec<_>>();
        let addresses = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let ways = [
            Way { alpn: "h2", port: 443, path: Some("/dns-query{?dns}"), addresses: addresses.clone() },
            Way { alpn: "dot", port: 853, path: None, addresses },
        ];
        let told = Arc::new(ArcSwap::from_pointee(Designated::default()));
        let special = Special::new(Vec::new()).telling(Arc::clone(&told));
        let at = |name: &str, qtype: u16| ask(&special, name, qtype);
        assert!(at("_dns.resolver.arpa", rtype::SVCB).unwrap().answers.is_empty(), "nothing to tell");
        told.store(Arc::new(Designated::new(&names(&["dns.example.net", "other.example"]), &ways)));
        for name in ["_dns.resolver.arpa", "_DNS.dns.example.net", "_dns.other.example"] {
            let reply = at(name, rtype::SVCB).unwrap();
            let shown: Vec<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
            assert_eq!(shown.len(), 2, "{name}");
            assert!(shown[0].starts_with("1 dns.example.net. alpn=h2"), "{}", shown[0]);
            assert!(shown[0].contains("port=443") && shown[0].contains("192.0.2.1"), "{}", shown[0]);
            assert!(shown[1].starts_with("2 dns.example.net. alpn=dot"), "{}", shown[1]);
        }
        assert!(at("_dns.resolver.arpa", rtype::A).unwrap().answers.is_empty());
        assert!(at("_dns.dns.example.net", rtype::A).is_none(), "other types are not ours to answer");
        assert!(at("_dns.third.example", rtype::SVCB).is_none());
        told.store(Arc::new(Designated::new(&[], &ways)));
        assert!(at("_dns.resolver.arpa", rtype::SVCB).unwrap().answers.is_empty(), "no name that could be checked");
    }

    #[test]
    fn names_that_lead_around_us_are_denied_only_if_asked_for() {
        let browsers = "use-application-dns.net";
        let relay = ["mask.icloud.com", "mask-h2.icloud.com"];
        let plain = Special::new(Vec::new());
        assert!(ask(&plain, browsers, rtype::A).is_none() && ask(&plain, relay[0], rtype::A).is_none());
        let options = Options { keep_browsers: true, block_private_relay: false };
        let keeping = Special::new(Vec::new()).denying(options);
        assert_eq!(ask(&keeping, browsers, rtype::A).unwrap().metadata.response_code, ResponseCode::NXDomain);
        assert!(ask(&keeping, relay[0], rtype::A).is_none());
        let blocking = Special::new(Vec::new()).denying(Options { keep_browsers: false, block_private_relay: true });
        for name in relay {
            assert_eq!(ask(&blocking, name, rtype::AAAA).unwrap().metadata.response_code, ResponseCode::NXDomain);
        }
        assert!(ask(&blocking, browsers, rtype::A).is_none() && ask(&blocking, "www.icloud.com", rtype::A).is_none());
    }
}
