//! DNS over QUIC (RFC 9250).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::{NAME, Pair, client, framed, kdig, place, secured, slow_and_quick};
use crate::harness::{PATIENCE, addresses, question, tag};

fn endpoint(der: &CertificateDer<'static>) -> Endpoint {
    let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let crypto = QuicClientConfig::try_from(client(&[der], &["doq"])).unwrap();
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(crypto)));
    endpoint
}

async fn connect(endpoint: &Endpoint, addr: SocketAddr) -> Connection {
    let connecting = endpoint.connect(addr, NAME).unwrap();
    timeout(PATIENCE, connecting).await.expect("a handshake in time").unwrap()
}

fn octets(name: &str) -> Vec<u8> {
    let mut message = question(name, RecordType::A);
    message.metadata.id = 0;
    message.to_vec().unwrap()
}

/// Asks on a stream of its own; `None` if the connection ended or the stream was reset.
async fn exchange(connection: &Connection, sent: &[u8]) -> Option<Vec<u8>> {
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.ok()?;
        send.write_all(sent).await.ok()?;
        send.finish().ok()?;
        receive.read_to_end(1 << 16).await.ok()
    };
    timeout(4 * PATIENCE, exchange).await.expect("an answer in time")
}

#[tokio::test]
async fn each_question_has_a_stream_and_a_padded_answer() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    let endpoint = endpoint(&pair.der);
    let connection = connect(&endpoint, place(&greenlane, "DoQ on ")).await;
    let slow = tokio::spawn({
        let connection = connection.clone();
        async move { exchange(&connection, &framed(&octets("slow.example"))).await }
    });
    let reply = exchange(&connection, &framed(&octets("a.listed.example"))).await.unwrap();
    assert_eq!(usize::from(u16::from_be_bytes([reply[0], reply[1]])), reply.len() - 2);
    assert_eq!((reply.len() - 2) % 468, 0);
    let message = Message::from_vec(&reply[2..]).unwrap();
    assert_eq!((message.metadata.id, addresses(&message)), (0, vec!["192.0.2.1".to_owned()]));
    assert!(tag(&message).unwrap().starts_with("app=demo;"));
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
    assert!(slow.await.unwrap().is_some());
    assert!(greenlane.metric("greenlane_listen_queries_total{transport=\"doq\",type=\"a\"}").await >= 2.0);
    kdig(&greenlane, place(&greenlane, "DoQ on "), "+quic a.example").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_thousand_questions_on_one_connection_none_is_lost() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    let endpoint = endpoint(&pair.der);
    let connection = connect(&endpoint, place(&greenlane, "DoQ on ")).await;
    let mut asking = Vec::new();
    for worker in 0..100 {
        let connection = connection.clone();
        asking.push(tokio::spawn(async move {
            let mut answered = 0;
            for i in 0..100 {
                let sent = framed(&octets(&format!("n{}.example", (worker + i) % 50)));
                answered += usize::from(exchange(&connection, &sent).await.is_some_and(|reply| reply.len() > 2));
            }
            answered
        }));
    }
    let mut answered = 0;
    for worker in asking {
        answered += worker.await.unwrap();
    }
    assert_eq!(answered, 10_000);
}

#[tokio::test]
async fn what_is_against_the_protocol_ends_the_connection_with_its_code() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    let endpoint = endpoint(&pair.der);
    let addr = place(&greenlane, "DoQ on ");
    let whole = octets("a.example");
    let mut with_id = whole.clone();
    with_id[1] = 1;
    let mut response = whole.clone();
    response[2] |= 0x80;
    for (what, sent) in [
        ("an id", framed(&with_id)),
        ("half a message", framed(&whole)[..20].to_vec()),
        ("two messages", framed(&whole).repeat(2)),
        ("nothing", Vec::new()),
        ("a response", framed(&response)),
    ] {
        let connection = connect(&endpoint, addr).await;
        assert_eq!(exchange(&connection, &sent).await, None, "{what}");
        match timeout(PATIENCE, connection.closed()).await.expect("an end in time") {
            ConnectionError::ApplicationClosed(close) => assert_eq!(close.error_code, VarInt::from_u32(2), "{what}"),
            other => panic!("{what}: {other}"),
        }
    }
    let connection = connect(&endpoint, addr).await;
    assert!(exchange(&connection, &framed(&whole)).await.is_some(), "others go on");
}

#[tokio::test]
async fn handshakes_that_stall_delay_nobody() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    let addr = place(&greenlane, "DoQ on ");
    // What clients send first gets through, and nothing after it.
    let relay = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let through = relay.local_addr().unwrap();
    let passing = tokio::spawn(async move {
        let mut octets = vec![0; 2048];
        let mut passed = std::collections::HashMap::new();
        while let Ok((len, from)) = relay.recv_from(&mut octets).await {
            if passed.len() < 100 && !passed.contains_key(&from) {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                socket.send_to(&octets[..len], addr).await.unwrap();
                passed.insert(from, socket);
            }
        }
    });
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let endpoint = endpoint(&pair.der);
        let connecting = endpoint.connect(through, NAME).unwrap();
        stalled.push((endpoint, tokio::spawn(connecting)));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let endpoint = endpoint(&pair.der);
    let connection = connect(&endpoint, addr).await;
    assert!(exchange(&connection, &framed(&octets("a.example"))).await.is_some());
    assert!(stalled.iter().all(|(_, connecting)| !connecting.is_finished()));
    passing.abort();
}

#[tokio::test]
async fn what_was_asked_before_the_end_is_answered() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let mut greenlane = secured(&upstream, &pair).start().await;
    let endpoint = endpoint(&pair.der);
    let connection = connect(&endpoint, place(&greenlane, "DoQ on ")).await;
    let sent = framed(&octets("slow.example"));
    let asking = async {
        let ((), reply) = tokio::join!(
            async {
                while upstream.count() == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                greenlane.signal("TERM");
            },
            exchange(&connection, &sent)
        );
        reply
    };
    assert!(asking.await.is_some());
    assert_eq!(greenlane.ended().await, Some(0));
}
