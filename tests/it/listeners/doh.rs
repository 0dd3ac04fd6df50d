//! DNS over HTTPS (RFC 8484): statuses, caching, both versions of HTTP.

use data_encoding::BASE64URL_NOPAD;
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::{NAME, Pair, connect, kdig, place, run, secured, slow_and_quick};
use crate::harness::{PATIENCE, addresses, question, tag};
use crate::upstream::{Upstream, record, wire_name};

/// A question with id 0, as clients of DoH send it.
fn octets(name: &str) -> Vec<u8> {
    let mut message = question(name, RecordType::A);
    message.metadata.id = 0;
    message.to_vec().unwrap()
}

struct Page {
    status: u16,
    head: String,
    body: Vec<u8>,
}

/// Sends one request over HTTP/1.1 on a connection of its own.
async fn request(addr: SocketAddr, der: &CertificateDer<'static>, head: &str, body: &[u8]) -> Page {
    let mut stream = connect(addr, der, &["http/1.1"]).await.unwrap();
    let (line, fields) = head.split_once('\n').unwrap_or((head, ""));
    let fields: String = fields.lines().map(|field| format!("{field}\r\n")).collect();
    let mut sent = format!("{line} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n{fields}\r\n").into_bytes();
    sent.extend_from_slice(body);
    // A server that has refused a body may close before it has read it.
    let _ = stream.write_all(&sent).await;
    let _ = stream.flush().await;
    let mut octets = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut octets)).await.expect("an end in time");
    let end = octets.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head");
    let head = String::from_utf8(octets[..end].to_vec()).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Page { status, head, body: octets[end + 4..].to_vec() }
}

#[tokio::test]
async fn get_and_post_answer_with_tag_padding_and_the_lowest_ttl() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    let addr = place(&greenlane, "DoH on https://");
    let asked = octets("a.listed.example");
    let text = BASE64URL_NOPAD.encode(&asked);
    let post = format!("POST /dns-query\nContent-Type: application/dns-message\nContent-Length: {}", asked.len());
    for (head, body) in [
        (format!("GET /dns-query?dns={text}"), &[][..]),
        (format!("GET /dns-query?ct=x&dns={text}=="), &[]),
        (post, &asked[..]),
    ] {
        let page = request(addr, &pair.der, &head, body).await;
        assert_eq!(page.status, 200, "{head}");
        assert!(page.head.contains("content-type: application/dns-message"), "{}", page.head);
        let reply = Message::from_vec(&page.body).unwrap();
        assert_eq!((reply.metadata.id, page.body.len() % 468), (0, 0));
        assert_eq!(addresses(&reply), ["192.0.2.1"]);
        assert!(tag(&reply).unwrap().starts_with("app=demo;"));
        let ttl = reply.answers[0].ttl;
        assert!(page.head.contains(&format!("cache-control: max-age={ttl}\r\n")), "{ttl}: {}", page.head);
        assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
    }
    let head = request(addr, &pair.der, &format!("HEAD /dns-query?dns={text}"), &[]).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert!(head.head.contains("content-length: 468"), "{}", head.head);
    assert!(greenlane.metric("greenlane_listen_queries_total{transport=\"doh\",type=\"a\"}").await >= 4.0);
}

#[tokio::test]
async fn a_negative_answer_may_be_kept_as_its_soa_says_and_a_failure_not_at_all() {
    let upstream = Upstream::start(|asked| {
        let mut soa = [wire_name("ns.example"), wire_name("root.example")].concat();
        for number in [1u32, 2, 3, 4, 20] {
            soa.extend_from_slice(&number.to_be_bytes());
        }
        match asked.name().starts_with("no") {
            true => asked.reply().rcode(3).authority(&record(&wire_name("example"), 6, 900, &soa)).act(),
            false => asked.fail(2),
        }
    })
    .await;
    let pair = Pair::new(&[NAME]);
    let greenlane = secured(&upstream, &pair).start().await;
    let addr = place(&greenlane, "DoH on https://");
    for (name, max_age) in [("no.example", "max-age=20\r\n"), ("fails.example", "max-age=0\r\n")] {
        let head = format!("GET /dns-query?dns={}", BASE64URL_NOPAD.encode(&octets(name)));
        let page = request(addr, &pair.der, &head, &[]).await;
        assert_eq!(page.status, 200, "the rcode is in the message");
        assert!(page.head.contains(max_age), "{name}: {}", page.head);
    }
}

#[tokio::test]
async fn what_is_no_question_has_its_status() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    let addr = place(&greenlane, "DoH on https://");
    let whole = BASE64URL_NOPAD.encode(&octets("a.example"));
    let mut response = octets("a.example");
    response[2] |= 0x80;
    let response = BASE64URL_NOPAD.encode(&response);
    let of_type = "Content-Type: application/dns-message\nContent-Length: ";
    let large = vec![0; 65_536];
    for (status, head, body) in [
        (404, format!("GET /?dns={whole}"), &[][..]),
        (404, format!("GET /dns-query/x?dns={whole}"), &[]),
        (405, "PUT /dns-query\nContent-Length: 0".to_owned(), &[]),
        (405, "DELETE /dns-query".to_owned(), &[]),
        (400, "GET /dns-query".to_owned(), &[]),
        (400, "GET /dns-query?dns=".to_owned(), &[]),
        (400, "GET /dns-query?dns=AA*A".to_owned(), &[]),
        (400, "GET /dns-query?dns=AAAA".to_owned(), &[]),
        (400, format!("GET /dns-query?dns={response}"), &[]),
        (415, "POST /dns-query\nContent-Type: text/plain\nContent-Length: 3".to_owned(), b"abc"),
        (415, "POST /dns-query\nContent-Length: 3".to_owned(), b"abc"),
        (400, format!("POST /dns-query\n{of_type}0"), &[]),
        (413, format!("POST /dns-query\n{of_type}65536"), &large),
    ] {
        let page = request(addr, &pair.der, &head, body).await;
        assert_eq!(page.status, status, "{head}");
        assert_eq!(page.head.contains("\r\nallow: get, head, post"), status == 405, "{}", page.head);
    }
    // A message that parses as none is answered by DNS itself.
    let page = request(addr, &pair.der, "GET /dns-query?dns=AAABAAACAAAAAAAA", &[]).await;
    assert_eq!((page.status, page.body[3] & 15), (200, 1));
}

#[tokio::test]
async fn http_2_is_spoken_by_curl_and_kdig() {
    let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
    let greenlane = secured(&upstream, &pair).start().await;
    let addr = place(&greenlane, "DoH on https://");
    let (port, ca) = (addr.port(), greenlane.path("chain.pem").display().to_string());
    let text = BASE64URL_NOPAD.encode(&octets("a.example"));
    for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let url = format!("https://{NAME}:{port}/dns-query?dns={text}");
        let resolve = format!("{NAME}:{port}:127.0.0.1");
        let shown = "%{http_version} %{response_code} %{content_type}";
        let args = ["-sS", flag, "--cacert", &ca, "--resolve", &resolve, "-o", "/dev/null", "-w", shown, &url];
        if let Some(output) = run("curl", &args.map(str::to_owned)).await {
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(told, format!("{version} 200 application/dns-message"), "{output:?}");
        }
    }
    kdig(&greenlane, addr, "+https=/dns-query a.example").await;
    kdig(&greenlane, addr, "+https-get a.example").await;
}
