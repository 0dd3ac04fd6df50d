//! DNS over TLS (RFC 7858).

use std::sync::Arc;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use rustls::HandshakeKind;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{NAME, Pair, client_of, connect, framed, kdig, place, read_frame, secured, send, slow_and_quick};
use crate::harness::{PATIENCE, addresses, question, question_without_edns, tag};

#[tokio::test]
async fn answers_come_as_they_are_ready_with_tag_padding_and_their_addresses_in_the_set() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    let mut stream = connect(place(&greenlane, "DoT on "), &pair.der, &["dot"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"dot"[..]));
    let slow = question("slow.example", RecordType::A);
    let quick = question("quick.listed.example", RecordType::A);
    let both = [framed(&slow.to_vec().unwrap()), framed(&quick.to_vec().unwrap())].concat();
    send(&mut stream, &both).await;
    let octets = read_frame(&mut stream).await.unwrap();
    let in_set = greenlane.prefixes("").await;
    assert_eq!(in_set, ["192.0.2.1/32"], "in the set before the client reads the answer");
    let first = Message::from_vec(&octets).unwrap();
    assert_eq!((first.metadata.id, octets.len() % 468), (quick.metadata.id, 0), "padded (RFC 8467)");
    assert!(tag(&first).unwrap().starts_with("app=demo;"));
    let second = Message::from_vec(&read_frame(&mut stream).await.unwrap()).unwrap();
    assert_eq!(second.metadata.id, slow.metadata.id);
    send(&mut stream, &framed(&question_without_edns("quick.listed.example", RecordType::A).to_vec().unwrap())).await;
    let bare = read_frame(&mut stream).await.unwrap();
    assert!(bare.len() < 100, "who sends no OPT gets none, and no padding");
    assert!(greenlane.metric("greenlane_listen_queries_total{transport=\"dot\",type=\"a\"}").await >= 3.0);
    // Over UDP nothing is padded.
    let plain = greenlane.udp(&quick.to_vec().unwrap()).await.unwrap();
    assert!(plain.len() < 200);
}

#[tokio::test]
async fn frames_may_be_cut_anywhere_and_many_may_stand_in_one_record() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    let mut stream = connect(place(&greenlane, "DoT on "), &pair.der, &[]).await.unwrap();
    let frame = framed(&question("cut.example", RecordType::A).to_vec().unwrap());
    for octet in &frame {
        send(&mut stream, &[*octet]).await;
    }
    assert!(read_frame(&mut stream).await.is_some());
    send(&mut stream, &frame.repeat(300)).await;
    for i in 0..300 {
        assert!(read_frame(&mut stream).await.is_some(), "answer {i}");
    }
    // A half frame behind a whole one delays nothing.
    send(&mut stream, &[&frame[..], &frame[..7]].concat()).await;
    assert!(read_frame(&mut stream).await.is_some());
}

#[tokio::test]
async fn a_client_of_another_protocol_is_turned_away() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    assert!(connect(place(&greenlane, "DoT on "), &pair.der, &["h2"]).await.is_err());
}

#[tokio::test]
async fn handshakes_that_stall_delay_nobody_and_count_among_the_connections() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).with("clients", "max-connections = 60\nper-client = 40").start().await;
    let addr = place(&greenlane, "DoT on ");
    let mut stalled = Vec::new();
    for _ in 0..100 {
        stalled.push(TcpStream::connect(addr).await.unwrap());
    }
    let mut stream = connect(addr, &pair.der, &["dot"]).await.unwrap();
    send(&mut stream, &framed(&question("a.example", RecordType::A).to_vec().unwrap())).await;
    assert!(read_frame(&mut stream).await.is_some());
    greenlane.until_metric("greenlane_listen_dropped_total{reason=\"evicted\"}", |count| count >= 60.0).await;
    assert!(greenlane.metric("greenlane_listen_connections").await <= 41.0);
}

#[tokio::test]
async fn a_certificate_is_swapped_under_load_and_a_bad_one_is_said_once() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let mut greenlane = secured(&upstream, &pair).start().await;
    let addr = place(&greenlane, "DoT on ");
    let mut kept = connect(addr, &pair.der, &["dot"]).await.unwrap();
    let frame = framed(&question("kept.example", RecordType::A).to_vec().unwrap());
    std::fs::write(greenlane.path("key.pem"), "half a key\n").unwrap();
    greenlane.until(|this| this.log().contains("the old certificate stays in force: tls.key: ").then_some(())).await;
    let new = Pair::new(&[NAME]);
    new.put(&greenlane);
    let swap = async {
        while connect(addr, &new.der, &["dot"]).await.is_err() {
            send(&mut kept, &frame).await;
            assert!(read_frame(&mut kept).await.is_some(), "connections that are open stay so");
        }
    };
    timeout(PATIENCE, swap).await.expect("the new certificate in time");
    send(&mut kept, &frame).await;
    assert!(read_frame(&mut kept).await.is_some());
    let log = greenlane.log();
    assert_eq!(log.matches("the old certificate stays in force").count(), 1, "{log}");
    assert!(!log.contains("half a key"));
}

#[tokio::test]
async fn a_client_that_comes_back_resumes_its_session_by_either_version() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    let addr = place(&greenlane, "DoT on ");
    let frame = framed(&question("a.example", RecordType::A).to_vec().unwrap());
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let connector = TlsConnector::from(Arc::new(client_of(&[version], &[&pair.der], &["dot"])));
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let stream = TcpStream::connect(addr).await.unwrap();
            let mut stream = connector.connect(ServerName::try_from(NAME).unwrap(), stream).await.unwrap();
            send(&mut stream, &frame).await;
            // The ticket has come before the answer.
            assert!(read_frame(&mut stream).await.is_some());
            assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
            kinds.push(stream.get_ref().1.handshake_kind());
        }
        assert_eq!(kinds[1], Some(HandshakeKind::Resumed), "{kinds:?}");
    }
}

#[tokio::test]
async fn kdig_gets_an_answer() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    kdig(&greenlane, place(&greenlane, "DoT on "), "+tls a.example").await;
}

#[tokio::test]
async fn what_was_asked_before_the_end_is_answered() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let mut greenlane = secured(&upstream, &pair).start().await;
    let mut stream = connect(place(&greenlane, "DoT on "), &pair.der, &["dot"]).await.unwrap();
    send(&mut stream, &framed(&question("slow-last.example", RecordType::A).to_vec().unwrap())).await;
    while upstream.count() == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    greenlane.signal("TERM");
    let reply = read_frame(&mut stream).await.expect("an answer");
    assert_eq!(addresses(&Message::from_vec(&reply).unwrap()), ["192.0.2.1"]);
    assert_eq!(greenlane.ended().await, Some(0));
}
