//! DNS over TCP (RFC 7766): any cut of the frames, answers out of order, limits.

use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::harness::{PATIENCE, Setup, question, read_frame, send_frame};
use crate::upstream::Upstream;

async fn slow_and_quick() -> Upstream {
    Upstream::start(|asked| {
        let answer = asked.a([192, 0, 2, 1]);
        if asked.name().starts_with("slow") { answer.after(Duration::from_millis(700)) } else { answer }
    })
    .await
}

#[tokio::test]
async fn answers_come_as_they_are_ready() {
    let upstream = slow_and_quick().await;
    let greenlane = Setup::new(upstream.addr).start().await;
    let mut stream = TcpStream::connect(greenlane.dns).await.unwrap();
    let slow = question("slow.example", RecordType::A);
    let quick = question("quick.example", RecordType::A);
    send_frame(&mut stream, &slow.to_vec().unwrap()).await;
    send_frame(&mut stream, &quick.to_vec().unwrap()).await;
    let first = Message::from_vec(&read_frame(&mut stream).await.unwrap()).unwrap();
    let second = Message::from_vec(&read_frame(&mut stream).await.unwrap()).unwrap();
    assert_eq!((first.metadata.id, second.metadata.id), (quick.metadata.id, slow.metadata.id));
}

#[tokio::test]
async fn frames_may_be_cut_anywhere() {
    let upstream = slow_and_quick().await;
    let greenlane = Setup::new(upstream.addr).start().await;
    let mut stream = TcpStream::connect(greenlane.dns).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let octets = question("cut.example", RecordType::A).to_vec().unwrap();
    let mut frame = (octets.len() as u16).to_be_bytes().to_vec();
    frame.extend_from_slice(&octets);
    for octet in &frame {
        stream.write_all(&[*octet]).await.unwrap();
        sleep(Duration::from_millis(2)).await;
    }
    assert!(read_frame(&mut stream).await.is_some());
    // Many frames in one write.
    let many: Vec<u8> = frame.repeat(300);
    stream.write_all(&many).await.unwrap();
    for i in 0..300 {
        assert!(read_frame(&mut stream).await.is_some(), "answer {i}");
    }
}

#[tokio::test]
async fn a_half_sent_question_delays_nobody() {
    let upstream = slow_and_quick().await;
    let greenlane = Setup::new(upstream.addr).start().await;
    let mut half = TcpStream::connect(greenlane.dns).await.unwrap();
    send_frame(&mut half, &question("one.example", RecordType::A).to_vec().unwrap()).await;
    half.write_all(&[0, 40, 1, 2, 3]).await.unwrap();
    assert!(read_frame(&mut half).await.is_some(), "what came before the half frame is answered");
    assert!(!greenlane.ask_tcp("two.example", RecordType::A).await.answers.is_empty());
}

#[tokio::test]
async fn what_was_asked_before_the_end_is_answered() {
    let upstream = slow_and_quick().await;
    let greenlane = Setup::new(upstream.addr).start().await;
    let mut stream = TcpStream::connect(greenlane.dns).await.unwrap();
    send_frame(&mut stream, &question("slow-last.example", RecordType::A).to_vec().unwrap()).await;
    stream.shutdown().await.unwrap();
    assert!(read_frame(&mut stream).await.is_some());
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_flood_of_connections_evicts_the_idlest() {
    let upstream = slow_and_quick().await;
    let greenlane = Setup::new(upstream.addr).with("clients", "max-connections = 20\nper-client = 8").start().await;
    let mut first = TcpStream::connect(greenlane.dns).await.unwrap();
    send_frame(&mut first, &question("a.example", RecordType::A).to_vec().unwrap()).await;
    assert!(read_frame(&mut first).await.is_some());
    let mut held = Vec::new();
    for _ in 0..30 {
        held.push(TcpStream::connect(greenlane.dns).await.unwrap());
    }
    let mut newest = TcpStream::connect(greenlane.dns).await.unwrap();
    send_frame(&mut newest, &question("b.example", RecordType::A).to_vec().unwrap()).await;
    assert!(read_frame(&mut newest).await.is_some(), "the newest is served");
    let mut octet = [0];
    let closed = timeout(PATIENCE, first.read(&mut octet)).await.expect("closed, not forgotten");
    assert!(matches!(closed, Ok(0) | Err(_)));
    assert!(greenlane.metric("greenlane_listen_dropped_total{reason=\"evicted\"}").await >= 20.0);
}
