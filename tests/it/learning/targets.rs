//! Where HTTPS records of listed names point (RFC 9460).

use std::net::IpAddr;

use hickory_proto::rr::RecordType;

use super::{a, aaaa, addr, cname, holds, reply, svcb, with};
use crate::harness::{Greenlane, addresses, tag};
use crate::upstream::{A, AAAA, HTTPS, Upstream, record};

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
