//! Who may ask and how much: access rules, rate limits.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::harness::{PATIENCE, Setup, question};
use crate::upstream::Upstream;

/// Long enough for any reply that is on its way on an idle machine; used only where a reply is no failure by itself.
const SHORT: Duration = Duration::from_millis(300);

async fn plain() -> Upstream {
    Upstream::start(|asked| match asked.name() {
        name if name.starts_with("none") => asked.fail(3),
        _ => asked.a([192, 0, 2, 1]),
    })
    .await
}

/// A client with an address of its own.
async fn client_at(addr: Ipv4Addr, dns: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((addr, 0)).await.unwrap();
    socket.connect(dns).await.unwrap();
    socket
}

/// Sends a question and returns what comes back, if anything does in a while.
async fn ask(socket: &UdpSocket, name: &str, patience: Duration) -> Option<Message> {
    let asked = question(name, RecordType::A);
    socket.send(&asked.to_vec().unwrap()).await.unwrap();
    let mut reply = [0; 1500];
    let len = timeout(patience, socket.recv(&mut reply)).await.ok()?.unwrap();
    let reply = Message::from_vec(&reply[..len]).unwrap();
    assert_eq!(reply.metadata.id, asked.metadata.id);
    Some(reply)
}

const DROPPED: &str = "greenlane_listen_dropped_total{reason=\"limited\"}";

/// What is beyond the limit is dropped or truncated, each counted; the same client is answered over TCP, and another
/// client as ever.
#[tokio::test]
async fn who_asks_too_much_over_udp_is_sent_to_tcp() {
    let upstream = plain().await;
    let limits = "rate-limit = 1\nrate-slip = 2\nrate-prefix4 = 32\nrate-exempt = [\"127.0.0.1/32\"]";
    let greenlane = Setup::new(upstream.addr).with("clients", limits).start().await;
    let socket = client_at(Ipv4Addr::new(127, 0, 0, 2), greenlane.dns).await;
    assert!(!greenlane.ask("a.example", RecordType::A).await.answers.is_empty());
    let mut octets = question("a.example", RecordType::A).to_vec().unwrap();
    // All at once: they are read within the second, or nearly so.
    for id in 0..200u16 {
        octets[..2].copy_from_slice(&id.to_be_bytes());
        socket.send(&octets).await.unwrap();
    }
    let (mut whole, mut truncated) = (0, 0);
    let mut reply = [0; 1500];
    while let Ok(received) = timeout(Duration::from_secs(2), socket.recv(&mut reply)).await {
        let reply = Message::from_vec(&reply[..received.unwrap()]).unwrap();
        match reply.metadata.truncation {
            true => truncated += 1,
            false => whole += 1,
        }
        assert_eq!(reply.answers.is_empty(), reply.metadata.truncation);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.edns.is_some());
    }
    assert!((1..=20).contains(&whole), "{whole} of 200 at one a second");
    assert!((80..=100).contains(&truncated), "{truncated} of 200, every second one beyond the limit");
    let dropped = greenlane.metric(DROPPED).await;
    assert!((80.0..=100.0).contains(&dropped), "{dropped}");
    assert_eq!(greenlane.metric("greenlane_listen_slipped_total").await, f64::from(truncated));
    // Over TCP as often as it likes, and others over UDP, too.
    for _ in 0..10 {
        assert!(!greenlane.ask_tcp("a.example", RecordType::A).await.answers.is_empty());
        assert!(!greenlane.ask("a.example", RecordType::A).await.answers.is_empty(), "exempt");
    }
    let other = client_at(Ipv4Addr::new(127, 0, 0, 3), greenlane.dns).await;
    assert!(ask(&other, "a.example", PATIENCE).await.is_some_and(|reply| !reply.answers.is_empty()));
}

/// Errors have a limit of their own, whether they come from the cache or from an upstream.
#[tokio::test]
async fn errors_are_limited_apart_from_answers() {
    let upstream = plain().await;
    let limits = "error-rate-limit = 1\nrate-slip = 0\nrate-exempt = []";
    let greenlane = Setup::new(upstream.addr).with("clients", limits).start().await;
    let socket = client_at(Ipv4Addr::LOCALHOST, greenlane.dns).await;
    for id in 0..60u16 {
        // One half is the same name each time, the other half a new one.
        let name = if id % 2 == 0 { "none.example".to_owned() } else { format!("none-{id}.example") };
        socket.send(&question(&name, RecordType::A).to_vec().unwrap()).await.unwrap();
    }
    greenlane.until_metric(DROPPED, |count| count >= 45.0).await;
    for i in 0..20 {
        let reply = greenlane.ask(&format!("a{i}.example"), RecordType::A).await;
        assert!(!reply.answers.is_empty(), "answers are not limited");
    }
}

#[tokio::test]
async fn a_denied_client_hears_refused_or_nothing() {
    let upstream = plain().await;
    let rules = "allow = [\"127.0.0.0/8\"]\ndeny = [\"127.0.0.2/32\"]";
    let greenlane = Setup::new(upstream.addr).with("clients", rules).start().await;
    let denied = client_at(Ipv4Addr::new(127, 0, 0, 2), greenlane.dns).await;
    let reply = ask(&denied, "a.example", PATIENCE).await.unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert!(!greenlane.ask("a.example", RecordType::A).await.answers.is_empty());

    let silent = Setup::new(upstream.addr).with("clients", rules).with("clients", "refuse = \"drop\"").start().await;
    let denied = client_at(Ipv4Addr::new(127, 0, 0, 2), silent.dns).await;
    assert!(ask(&denied, "a.example", SHORT).await.is_none());
    silent.until_metric("greenlane_listen_dropped_total{reason=\"denied\"}", |count| count == 1.0).await;
    assert!(!silent.ask("a.example", RecordType::A).await.answers.is_empty());
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).unwrap();
    let mut stream: TcpStream = socket.connect(silent.dns).await.unwrap();
    let closed = timeout(PATIENCE, stream.read(&mut [0])).await.expect("closed at once");
    assert!(matches!(closed, Ok(0) | Err(_)));
}
