//! Discovery of encrypted listeners (RFC 9461, RFC 9462), and names that lead around us.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::{NAME, Pair, place, secured, slow_and_quick};
use crate::harness::{Greenlane, Setup};

async fn told(greenlane: &Greenlane, name: &str) -> Vec<String> {
    let reply = greenlane.ask(name, RecordType::SVCB).await;
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn clients_are_told_of_each_encrypted_listener() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    for name in ["_dns.resolver.arpa", "_dns.dns.test.example"] {
        let told = told(&greenlane, name).await;
        for (at, (alpn, before)) in
            [("h2", "DoH on https://"), ("dot", "DoT on "), ("doq", "DoQ on ")].into_iter().enumerate()
        {
            assert!(told[at].starts_with(&format!("{} {NAME}. alpn={alpn}", at + 1)), "{told:?}");
            assert!(told[at].contains(&format!("port={}", place(&greenlane, before).port())), "{told:?}");
            assert!(told[at].contains("ipv4hint=127.0.0.1"), "{told:?}");
        }
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn another_certificate_changes_what_is_told() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let mut greenlane = secured(&upstream, &pair).with("log", "level = \"info\"").start().await;
    Pair::new(&["new.test.example"]).put(&greenlane);
    greenlane.until(|this| this.log().contains("a new certificate is in force").then_some(())).await;
    for name in ["_dns.resolver.arpa", "_dns.new.test.example"] {
        assert!(told(&greenlane, name).await[0].starts_with("1 new.test.example. alpn=h2"), "{name}");
    }
}

#[tokio::test]
async fn without_encrypted_listeners_there_is_nothing_to_discover() {
    let upstream = slow_and_quick().await;
    let greenlane = Setup::new(upstream.addr).start().await;
    let reply = greenlane.ask("_dns.resolver.arpa", RecordType::SVCB).await;
    assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
}

#[tokio::test]
async fn names_that_lead_around_us_are_denied_where_the_operator_says_so() {
    let upstream = slow_and_quick().await;
    let names = ["use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com"];
    let plain = Setup::new(upstream.addr).start().await;
    let denying =
        Setup::new(upstream.addr).with("clients", "keep-browsers = true\nblock-private-relay = true").start().await;
    for name in names {
        assert_eq!(plain.ask(name, RecordType::A).await.metadata.response_code, ResponseCode::NoError, "{name}");
        assert_eq!(denying.ask(name, RecordType::A).await.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
}
