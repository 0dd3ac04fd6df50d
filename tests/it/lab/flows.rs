//! Connections that are open while addresses come and go.

use hickory_proto::rr::RecordType;

use super::{Lab, Seen, either_way, listed4, listed6, told, until};
use crate::harness::Setup;
use crate::netns::has;

#[test]
fn open_connections_keep_their_side_while_addresses_come_and_go() {
    either_way(async |way| {
        let ends = |setup: Setup| setup.with("learn", "min-hold = \"1s\"\ngrace = \"0s\"");
        let script = |asked: &crate::upstream::Asked| asked.reply().answer(&told(super::address(asked), 1)).act();
        let lab = Lab::start(way, ends, script).await;
        let (name, rtype) = ("n1.listed.example", RecordType::A);
        // A client that had the address from elsewhere.
        let mut early = lab.client.open(listed4(1), name).await;
        let mut early6 = lab.client.open(listed6(1), name).await;
        assert_eq!((early.seen, early6.seen), (Seen::Inspected, Seen::Inspected));
        let (before, before6) = (early.get().await, early6.get().await);
        // On a busy machine the second may be over before the connection is there: then again.
        let mut flows = Vec::new();
        for (rtype, address) in [(rtype, listed4(1).into()), (RecordType::AAAA, std::net::IpAddr::from(listed6(1)))] {
            let mut tries = 0;
            flows.push(loop {
                lab.client.ask(name, rtype).await;
                let flow = lab.client.open(address, name).await;
                if flow.seen == Seen::Bypassed {
                    break flow;
                }
                tries += 1;
                assert!(tries < 10, "{way:?}: {address} is never let through");
            });
        }
        let mut firsts = Vec::new();
        for flow in &mut flows {
            firsts.push(flow.get().await);
        }
        // The address came: what was inspected goes on being so, without a break.
        assert_eq!(early.get().await, (before.0, 2), "{way:?}");
        assert_eq!(early6.get().await, (before6.0, 2), "{way:?}");
        until("the ends", || !has("learned4", &listed4(1).to_string()) && !has("learned6", &listed6(1).to_string()))
            .await;
        // The address went: what was let through goes on being so.
        for (flow, first) in flows.iter_mut().zip(firsts) {
            assert_eq!(flow.get().await, (first.0, 2), "{way:?}");
        }
        assert_eq!(early.get().await, (before.0, 3), "{way:?}");
        assert_eq!(lab.client.sees(listed4(1), name).await, Seen::Inspected, "a new one is another matter");
        assert_eq!(lab.client.sees(listed6(1), name).await, Seen::Inspected);
    });
}
