//! Connections that are open while addresses come and go.

use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::rules::{Way, block};
use super::{Lab, Seen, either_way, in_gateway, listed4, listed6, numbering, told, until};
use crate::harness::{PATIENCE, Setup};
use crate::netns::{has, load};

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

#[test]
fn quic_is_refused_unless_bypassed_and_questions_to_others_are_answered_here() {
    in_gateway(async || {
        let lab = Lab::start(Way::Redirect, |setup| setup, numbering).await;
        load(&block("udp dport 443"));
        load(&block("redirect to :53"));
        // The client asks the name server of the internet, as it thinks.
        let stubborn = lab.client.clone().with_resolver(lab.upstream.addr);
        assert_eq!(stubborn.visit("n1.listed.example", RecordType::A).await, Seen::Bypassed);
        let echo = lab.net.internet.enter(|| std::net::UdpSocket::bind("0.0.0.0:443").unwrap());
        echo.set_nonblocking(true).unwrap();
        let echo = UdpSocket::from_std(echo).unwrap();
        let quic = lab.client.udp((listed4(1), 443).into()).await;
        quic.send(b"initial").await.unwrap();
        let mut room = [0; 100];
        let (len, from) = timeout(PATIENCE, echo.recv_from(&mut room)).await.expect("it comes there").unwrap();
        assert_eq!(&room[..len], b"initial");
        assert_eq!(from.ip().to_string(), "10.99.0.2");
        let quic = lab.client.udp((listed4(2), 443).into()).await;
        quic.send(b"initial").await.unwrap();
        let refused = timeout(PATIENCE, quic.recv(&mut room)).await.expect("word comes at once");
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    });
}
