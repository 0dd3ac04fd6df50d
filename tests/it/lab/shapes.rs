//! The shapes in which an answer brings addresses.

use std::net::IpAddr;

use hickory_proto::rr::{RData, RecordType};

use super::rules::Way;
use super::{Lab, Seen, in_gateway, listed4, listed6, number, numbering, told};
use crate::harness::addresses;
use crate::learning::{a, aaaa, cname, reply, svcb};
use crate::upstream::{A, AAAA, Act, Asked, HTTPS, Via};

/// A chain of as many names as the one asked says; only the first is listed.
fn chain(asked: &Asked) -> Act {
    let hops = number(asked);
    let owner = |hop: u32| if hop == 0 { asked.name() } else { format!("hop{hop}.cdn.example") };
    let mut records: Vec<_> = (0..hops).map(|hop| cname(&owner(hop), 300, &owner(hop + 1))).collect();
    records.push(match asked.qtype() {
        AAAA => aaaa(&owner(hops), 300, &listed6(2000 + hops).to_string()),
        _ => a(&owner(hops), 300, listed4(2000 + hops)),
    });
    reply(asked, &records)
}

/// Sixty addresses, which only TCP carries.
fn many(asked: &Asked) -> Act {
    let all = (0..60).fold(asked.reply(), |reply, n| match asked.qtype() {
        AAAA => reply.answer(&told(listed6(3000 + n), 300)),
        _ => reply.answer(&told(listed4(3000 + n), 300)),
    });
    if asked.via == Via::Udp { asked.reply().truncated().act() } else { all.act() }
}

fn script(asked: &Asked) -> Act {
    match (asked.name().as_bytes()[0], asked.qtype()) {
        (b'c', _) => chain(asked),
        (b'm', A | AAAA) => many(asked),
        (b'h', HTTPS) => {
            let rdata = svcb(1, ".", &[listed4(4000), listed4(4001)], &[&listed6(4000).to_string()]);
            asked.reply().answer(&crate::upstream::record(&[0xc0, 12], HTTPS, 300, &rdata)).act()
        }
        _ => numbering(asked),
    }
}

#[test]
fn chains_hints_and_sixty_addresses_are_never_inspected() {
    in_gateway(async || {
        let lab = Lab::start(Way::Redirect, |setup| setup, script).await;
        for hops in 1..=12 {
            for rtype in [RecordType::A, RecordType::AAAA] {
                let name = format!("c{hops}.listed.example");
                assert_eq!(lab.client.visit(&name, rtype).await, Seen::Bypassed, "{rtype}, {hops} names on");
            }
        }
        // A client that goes by the hints alone.
        let hinted = lab.client.ask("h1.listed.example", RecordType::HTTPS).await;
        assert!(matches!(hinted.answers[0].data, RData::HTTPS(_)));
        let hints: [IpAddr; 3] = [listed4(4000).into(), listed4(4001).into(), listed6(4000).into()];
        for hint in hints {
            assert_eq!(lab.client.sees(hint, "h1.listed.example").await, Seen::Bypassed, "{hint}");
        }
        for rtype in [RecordType::A, RecordType::AAAA] {
            let over_udp = lab.client.ask("m1.listed.example", rtype).await;
            assert!(over_udp.metadata.truncation || rtype == RecordType::A, "sixty are too many for a datagram");
            let all = addresses(&lab.client.ask_tcp("m1.listed.example", rtype).await);
            assert_eq!(all.len(), 60);
            for addr in all {
                let addr: IpAddr = addr.parse().unwrap();
                assert_eq!(lab.client.sees(addr, "m1.listed.example").await, Seen::Bypassed, "{addr}");
            }
        }
        assert_eq!(lab.late().await, 0.0);
    });
}
