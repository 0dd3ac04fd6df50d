//! Who may ask and how much: access rules, rate limits.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::harness::{PATIENCE, Setup, question, read_frame, send_frame};
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

/// Sends octets of a question with a COOKIE option; returns the reply and the cookie in it.
async fn ask_with(socket: &UdpSocket, cookie: &[u8]) -> Option<(Message, Vec<u8>)> {
    let mut octets = question("a.example", RecordType::A).to_vec().unwrap();
    let at = octets.len() - 2;
    octets[at..].copy_from_slice(&(cookie.len() as u16 + 4).to_be_bytes());
    octets.extend([0, 10]);
    octets.extend((cookie.len() as u16).to_be_bytes());
    octets.extend(cookie);
    socket.send(&octets).await.unwrap();
    let mut reply = [0; 1500];
    let len = timeout(PATIENCE, socket.recv(&mut reply)).await.ok()?.unwrap();
    // Our OPT comes last, and the cookie last in it.
    let cookie = reply[..len].last_chunk::<28>().filter(|end| end.starts_with(&[0, 10, 0, 24]));
    Some((Message::from_vec(&reply[..len]).unwrap(), cookie.map_or_else(Vec::new, |end| end[4..].to_vec())))
}

/// RFC 7873 §5.2: who shows a cookie of ours is answered however much it asks; a server with the same secret knows it.
#[tokio::test]
async fn a_cookie_of_ours_lifts_the_limit() {
    let upstream = plain().await;
    let limits = "rate-limit = 1\nrate-slip = 1\nrate-exempt = []\ncookie-secret-file = \"secret\"";
    let setup = || {
        let secret = "00112233445566778899aabbccddeeff\n";
        Setup::new(upstream.addr).with("clients", limits).file("secret", secret).start()
    };
    let (greenlane, other) = (setup().await, setup().await);
    let socket = client_at(Ipv4Addr::LOCALHOST, greenlane.dns).await;
    let (reply, cookie) = ask_with(&socket, &[7; 8]).await.unwrap();
    assert_eq!((reply.answers.len(), cookie.len()), (1, 24));
    assert_eq!((&cookie[..8], &cookie[8..12]), (&[7; 8][..], &[1, 0, 0, 0][..]));
    for _ in 0..20 {
        let (reply, again) = ask_with(&socket, &cookie).await.unwrap();
        assert_eq!((reply.answers.len(), &again), (1, &cookie));
    }
    let socket = client_at(Ipv4Addr::LOCALHOST, other.dns).await;
    for _ in 0..20 {
        assert_eq!(ask_with(&socket, &cookie).await.unwrap().0.answers.len(), 1);
    }
    // Beyond the limit, one that knows cookies gets BADCOOKIE with a good one, and others are sent to TCP.
    let mut wrong = cookie.clone();
    wrong[23] ^= 1;
    let mut bad = None;
    for _ in 0..100 {
        let (reply, fresh) = ask_with(&socket, &wrong).await.unwrap();
        if reply.metadata.response_code != ResponseCode::NoError {
            bad = Some((reply, fresh));
            break;
        }
    }
    let (reply, fresh) = bad.expect("100 questions in less than 100 s");
    assert_eq!(reply.metadata.response_code, ResponseCode::BADCOOKIE);
    assert_eq!(ask_with(&socket, &fresh).await.unwrap().0.answers.len(), 1);
    // A cookie of a length that none has (RFC 7873 §5.2.2).
    let (reply, _) = ask_with(&client_at(Ipv4Addr::new(127, 0, 1, 1), other.dns).await, &[1; 9]).await.unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
}

/// Without a COOKIE option nothing is different, and without a secret nobody gets one.
#[tokio::test]
async fn cookies_are_for_those_who_ask_for_them() {
    let upstream = plain().await;
    let secret = "00112233445566778899aabbccddeeff\n";
    let with = Setup::new(upstream.addr)
        .with("clients", "cookie-secret-file = \"secret\"")
        .file("secret", secret)
        .start()
        .await;
    let without = Setup::new(upstream.addr).start().await;
    let mut octets = question("a.example", RecordType::A).to_vec().unwrap();
    octets[..2].copy_from_slice(&[0, 7]);
    assert_eq!(with.udp(&octets).await.unwrap(), without.udp(&octets).await.unwrap());
    let socket = client_at(Ipv4Addr::LOCALHOST, without.dns).await;
    assert_eq!(ask_with(&socket, &[7; 8]).await.unwrap().1, [0; 0]);
}

#[tokio::test]
async fn a_secret_that_is_none_is_told_at_the_start() {
    let folder = Setup::new(([127, 0, 0, 1], 1).into())
        .with("clients", "cookie-secret-file = \"secret\"")
        .file("secret", "too short\n")
        .write();
    for command in ["serve", "check"] {
        let said = crate::harness::greenlane().arg(command).arg("-c").arg(folder.path().join("config.toml")).output();
        let said = said.unwrap();
        let text = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(2), "{text}");
        assert!(text.contains("secret:1: expected a secret of 32 hexadecimal digits"), "{text}");
        assert!(!text.contains("too short"), "{text}");
    }
}

/// A PROXY header of version 2 for a client with an IPv4 address.
fn header(client: [u8; 4], transport: u8) -> Vec<u8> {
    let mut octets = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    octets.extend([0x10 | transport, 0, 12]);
    octets.extend(client);
    octets.extend([198, 51, 100, 1, 0x30, 0x39, 0, 53]);
    octets
}

/// The client that a listed balancer names counts, over UDP and TCP; of others a header is no question.
#[tokio::test]
async fn a_listed_balancer_tells_who_asks() {
    let upstream = plain().await;
    let greenlane = Setup::new(upstream.addr)
        .with("listen", "proxy-protocol = [\"127.0.0.2/32\"]")
        .with("clients", "allow = [\"127.0.0.1/32\", \"192.0.2.0/24\"]")
        .start()
        .await;
    let balancer = client_at(Ipv4Addr::new(127, 0, 0, 2), greenlane.dns).await;
    let asked = question("a.example", RecordType::A).to_vec().unwrap();
    let mut reply = [0; 1500];
    for (client, rcode) in [([192, 0, 2, 7], ResponseCode::NoError), ([203, 0, 113, 7], ResponseCode::Refused)] {
        // Missed, then kept.
        for _ in 0..2 {
            balancer.send(&[header(client, 2), asked.clone()].concat()).await.unwrap();
            let len = timeout(PATIENCE, balancer.recv(&mut reply)).await.unwrap().unwrap();
            assert_eq!(Message::from_vec(&reply[..len]).unwrap().metadata.response_code, rcode, "{client:?}");
        }
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).unwrap();
        let mut stream = socket.connect(greenlane.dns).await.unwrap();
        // In two parts, and more than one question behind them.
        let header = header(client, 1);
        stream.write_all(&header[..9]).await.unwrap();
        stream.flush().await.unwrap();
        stream.write_all(&header[9..]).await.unwrap();
        for _ in 0..2 {
            send_frame(&mut stream, &asked).await;
            let reply = read_frame(&mut stream).await.unwrap();
            assert_eq!(Message::from_vec(&reply).unwrap().metadata.response_code, rcode, "{client:?}");
        }
    }
    // Without a header the balancer is not heard.
    const NONSENSE: &str = "greenlane_listen_dropped_total{reason=\"nonsense\"}";
    balancer.send(&asked).await.unwrap();
    greenlane.until_metric(NONSENSE, |count| count == 1.0).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).unwrap();
    let mut stream = socket.connect(greenlane.dns).await.unwrap();
    send_frame(&mut stream, &asked).await;
    assert!(read_frame(&mut stream).await.is_none());
    greenlane.until_metric(NONSENSE, |count| count == 2.0).await;
    // Others are who they are, whatever they say.
    let reply = greenlane.udp(&[header([192, 0, 2, 7], 2), asked.clone()].concat()).await.unwrap();
    assert_ne!(Message::from_vec(&reply).unwrap().metadata.response_code, ResponseCode::NoError);
    let stranger = client_at(Ipv4Addr::new(127, 0, 0, 3), greenlane.dns).await;
    stranger.send(&[header([192, 0, 2, 7], 2), asked].concat()).await.unwrap();
    let len = timeout(PATIENCE, stranger.recv(&mut reply.clone())).await.unwrap().unwrap();
    assert!(len < 64, "no answer");
    assert_eq!(ask(&stranger, "a.example", PATIENCE).await.unwrap().metadata.response_code, ResponseCode::Refused);
}

/// Each switch lets out what it names and nothing else; a reload turns it, too.
#[tokio::test]
async fn special_names_are_let_out_one_by_one() {
    let upstream = plain().await;
    let greenlane = Setup::new(upstream.addr)
        .with("catalogue", "watch = false")
        .with("forward", "special = [\"home.arpa\"]")
        .with("[forward.route]", &format!("zone = \"10.in-addr.arpa\"\nupstreams = [\"udp://{}\"]", upstream.addr))
        .start()
        .await;
    for (name, is_asked) in [
        ("nas.home.arpa", true),
        ("1.0.0.10.in-addr.arpa", true),
        ("nas.local", false),
        ("1.1.168.192.in-addr.arpa", false),
        ("nas.test", false),
    ] {
        let before = upstream.count();
        let reply = greenlane.ask(name, RecordType::A).await;
        assert_eq!((reply.answers.len(), upstream.count() - before), (is_asked.into(), is_asked.into()), "{name}");
    }
    let text = std::fs::read_to_string(greenlane.path("config.toml")).unwrap();
    std::fs::write(greenlane.path("config.toml"), text.replace("special = [\"home.arpa\"]", "special = [\"local\"]"))
        .unwrap();
    greenlane.signal("HUP");
    greenlane.until_metric("greenlane_catalogue_reloads_total{result=\"done\"}", |count| count >= 1.0).await;
    assert!(greenlane.ask("nas.home.arpa", RecordType::A).await.answers.is_empty());
    assert!(!greenlane.ask("nas.local", RecordType::A).await.answers.is_empty());
}

/// What stands in a hosts file is answered at home and never learned, even if a list covers the name; a reload reads it anew.
#[tokio::test]
async fn a_hosts_file_is_answered_at_home() {
    let upstream = plain().await;
    let greenlane = Setup::new(upstream.addr)
        .with("catalogue", "watch = false")
        .with("forward", "hosts = \"hosts\"")
        .file("hosts", "192.0.2.77 nas.listed.example nas\nnonsense here\n")
        .start()
        .await;
    let reply = greenlane.ask("NAS.listed.example", RecordType::A).await;
    assert_eq!(crate::harness::addresses(&reply), ["192.0.2.77"]);
    let none = greenlane.ask("nas.listed.example", RecordType::HTTPS).await;
    assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0));
    let ptr = greenlane.ask("77.2.0.192.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(ptr.answers[0].data.to_string(), "nas.listed.example.");
    assert_eq!(upstream.count(), 0);
    assert_eq!(greenlane.prefixes("").await, [""; 0]);
    assert!(greenlane.log().contains("hosts:2: `nonsense` is no address; skipped"), "{}", greenlane.log());
    std::fs::write(greenlane.path("hosts"), "192.0.2.78 other.example\n").unwrap();
    greenlane.signal("HUP");
    greenlane.until_metric("greenlane_catalogue_reloads_total{result=\"done\"}", |count| count >= 1.0).await;
    let reply = greenlane.ask("nas.listed.example", RecordType::A).await;
    assert_eq!(crate::harness::addresses(&reply), ["192.0.2.1"], "an upstream's again");
    assert_eq!(crate::harness::addresses(&greenlane.ask("other.example", RecordType::A).await), ["192.0.2.78"]);
}
