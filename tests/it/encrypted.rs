//! Upstreams over TLS (RFC 7858), HTTPS (RFC 8484) and QUIC (RFC 9250), as the daemon asks them.

use std::fs;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tempfile::TempDir;

use crate::harness::{Greenlane, Setup, addresses};
use crate::upstream::{Upstream, Via};

/// Writes a certificate as PEM, for `SSL_CERT_FILE`.
fn pem(upstream: &Upstream) -> TempDir {
    let folder = TempDir::new().unwrap();
    let octets = upstream.certificate.as_ref().unwrap();
    let encoded = base64(octets);
    let text = format!("-----BEGIN CERTIFICATE-----\n{encoded}\n-----END CERTIFICATE-----\n");
    fs::write(folder.path().join("ca.pem"), text).unwrap();
    folder
}

fn base64(octets: &[u8]) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in octets.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(three.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let sign = char::from(SIGNS[(bits >> (18 - 6 * i) & 63) as usize]);
            text.push(if i <= three.len() { sign } else { '=' });
        }
    }
    text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect::<Vec<_>>().join("\n")
}

async fn over_tls(name: &str) -> (Upstream, Greenlane) {
    let upstream = Upstream::start_tls(&["dns.test.example"], |asked| asked.a([192, 0, 2, 1])).await;
    let url = format!("tls://{}#{name}", upstream.tls_addr.unwrap());
    let greenlane = asking(&upstream, &url).await;
    (upstream, greenlane)
}

async fn asking(upstream: &Upstream, url: &str) -> Greenlane {
    let folder = pem(upstream);
    Setup::new(upstream.addr)
        .only("forward", &format!("upstreams = [\"{url}\"]\ntimeout = \"3s\""))
        .env("SSL_CERT_FILE", folder.path().join("ca.pem").to_str().unwrap())
        .start()
        .await
}

#[tokio::test]
async fn a_tls_upstream_is_asked_over_one_connection_with_its_name() {
    let (upstream, greenlane) = over_tls("dns.test.example").await;
    for i in 0..20 {
        let reply = greenlane.ask(&format!("n{i}.example"), RecordType::A).await;
        assert_eq!(addresses(&reply), ["192.0.2.1"]);
    }
    let log = upstream.log();
    assert!(log.iter().all(|asked| asked.via == Via::Tls && asked.sni.as_deref() == Some("dns.test.example")));
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn a_certificate_of_another_name_is_not_accepted() {
    let (upstream, greenlane) = over_tls("other.test.example").await;
    let reply = greenlane.ask("a.example", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(upstream.count(), 0, "not a word to a stranger");
}

#[tokio::test]
async fn https_and_quic_upstreams_are_asked_over_one_connection_with_their_name() {
    const NAME: &str = "dns.test.example";
    let https = Upstream::start_https(&[NAME], |asked| asked.a([192, 0, 2, 1])).await;
    let quic = Upstream::start_quic(&[NAME], |asked| asked.a([192, 0, 2, 1])).await;
    for (upstream, scheme, path, via) in [(&https, "https", "/resolve", Via::Https), (&quic, "quic", "", Via::Quic)] {
        let url = format!("{scheme}://{}{path}#{NAME}", upstream.tls_addr.unwrap());
        let greenlane = asking(upstream, &url).await;
        for i in 0..20 {
            let reply = greenlane.ask(&format!("n{i}.example"), RecordType::A).await;
            assert_eq!(addresses(&reply), ["192.0.2.1"], "{scheme}");
        }
        let log = upstream.log();
        assert!(log.iter().all(|asked| asked.via == via && asked.sni.as_deref() == Some(NAME)), "{scheme}");
        assert_eq!(upstream.connections(), 1, "{scheme}");
        let is_at_path = |request: &str| request.split(' ').nth(1).is_some_and(|uri| uri.ends_with(path));
        assert!(log.iter().all(|asked| asked.request.as_deref().is_none_or(is_at_path)), "{:?}", log[0].request);
    }
}
