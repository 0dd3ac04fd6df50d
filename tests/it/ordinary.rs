//! Against an ordinary upstream: hickory-server with zones from master files, behind the adapter that the demo uses.

use std::net::{Ipv4Addr, SocketAddr};

use greenlane::listen::hickory::Zones;
use greenlane::listen::{Address, Options, bind};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};

use crate::harness::{Greenlane, Setup, addresses, tag};

const ZONE: &str = "\
$TTL 300
@ IN SOA ns.example. host.example. 1 3600 600 604800 60
@ IN NS ns.example.
ns IN A 192.0.2.53
www.listed IN CNAME edge.cdn
edge.cdn IN CNAME pop.cdn
pop.cdn IN A 198.51.100.1
pop.cdn IN A 198.51.100.2
pop.cdn IN AAAA 2001:db8::1
hints.listed IN HTTPS 1 . alpn=h2 ipv4hint=198.51.100.7 ipv6hint=2001:db8::7
*.wild.listed IN A 198.51.100.9
plain IN A 192.0.2.80
text IN TXT \"a text\" \"and another\"
mail IN MX 10 plain
";

/// The upstream, as long as it is held, and a greenlane in front of it.
async fn ordinary() -> (hickory_server::Server<Zones>, Greenlane) {
    let address = Address { addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), is_default: false };
    let options = Options { dns: vec![address], threads: 1, ..Options::default() };
    let bound = bind(&options).unwrap().remove(0);
    let mut zones = Zones::new();
    zones.add("example.", ZONE).unwrap();
    let addr = bound.addr;
    let (udp, tcp) = bound.into_pair().unwrap();
    let server = zones.serve(udp, tcp);
    (server, Setup::new(addr).start().await)
}

#[tokio::test]
async fn a_chain_through_a_content_network_is_learned_for_the_listed_name() {
    let (_server, greenlane) = ordinary().await;
    let reply = greenlane.ask("www.listed.example", RecordType::A).await;
    assert_eq!(addresses(&reply), ["198.51.100.1", "198.51.100.2"]);
    assert_eq!(reply.answers.len(), 4, "the chain as the upstream gave it");
    assert_eq!(tag(&reply).as_deref(), Some("app=demo;match=listed.example"));
    assert_eq!(greenlane.prefixes("").await, ["198.51.100.1/32", "198.51.100.2/32"]);
    greenlane.ask("www.listed.example", RecordType::AAAA).await;
    assert_eq!(greenlane.prefixes("?family=6").await, ["2001:db8::1/128"]);
}

#[tokio::test]
async fn hints_and_wildcards_are_learned() {
    let (_server, greenlane) = ordinary().await;
    greenlane.ask("hints.listed.example", RecordType::HTTPS).await;
    greenlane.ask("any.wild.listed.example", RecordType::A).await;
    let learned = greenlane.prefixes("").await;
    assert_eq!(learned, ["198.51.100.7/32", "198.51.100.9/32", "2001:db8::7/128"]);
}

#[tokio::test]
async fn ordinary_names_pass_and_leave_no_trace() {
    let (_server, greenlane) = ordinary().await;
    let text = greenlane.ask("text.example", RecordType::TXT).await;
    assert!(matches!(&text.answers[0].data, RData::TXT(_)));
    let mail = greenlane.ask_tcp("mail.example", RecordType::MX).await;
    assert!(matches!(&mail.answers[0].data, RData::MX(_)));
    let none = greenlane.ask("none.example", RecordType::A).await;
    assert_eq!((none.metadata.response_code, none.authorities[0].ttl), (ResponseCode::NXDomain, 60));
    let void = greenlane.ask("plain.example", RecordType::AAAA).await;
    assert_eq!((void.metadata.response_code, void.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(greenlane.prefixes("").await, Vec::<String>::new());
}
