//! Encrypted listeners, as clients see them: DoT, DoH, DoQ, and how they are discovered.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::formats::lacks;
use crate::harness::{Greenlane, PATIENCE, Setup};
use crate::upstream::Upstream;

mod ddr;
mod doh;
mod doq;
mod dot;
mod kept;

/// The name of the certificate.
const NAME: &str = "dns.test.example";

/// A certificate and its key, as files hold them.
struct Pair {
    chain: String,
    key: String,
    der: CertificateDer<'static>,
}

impl Pair {
    fn new(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Self { chain: made.cert.pem(), key: made.signing_key.serialize_pem(), der: made.cert.der().clone() }
    }

    /// Replaces the files beside a configuration, the key first.
    fn put(&self, greenlane: &Greenlane) {
        for (file, text) in [("key.pem", &self.key), ("chain.pem", &self.chain)] {
            let beside = greenlane.path(&format!("{file}.new"));
            std::fs::write(&beside, text).unwrap();
            std::fs::rename(beside, greenlane.path(file)).unwrap();
        }
    }
}

/// A greenlane with every encrypted listener on a free port.
fn secured(upstream: &Upstream, pair: &Pair) -> Setup {
    let any = "[\"127.0.0.1:0\"]";
    Setup::new(upstream.addr)
        .with("listen", &format!("dot = {any}\ndoh = {any}\ndoq = {any}"))
        .with("tls", "certificate = \"chain.pem\"\nkey = \"key.pem\"")
        .file("chain.pem", &pair.chain)
        .file("key.pem", &pair.key)
}

/// An upstream that takes its time with names that start with `slow`.
async fn slow_and_quick() -> Upstream {
    Upstream::start(|asked| {
        let answer = asked.a([192, 0, 2, 1]);
        if asked.name().starts_with("slow") { answer.after(Duration::from_millis(700)) } else { answer }
    })
    .await
}

/// Where a listener is, as the greeting says: `DoT on `, `DoH on https://` or `DoQ on `.
fn place(greenlane: &Greenlane, before: &str) -> SocketAddr {
    let log = greenlane.log();
    let rest = &log[log.find(before).unwrap_or_else(|| panic!("no `{before}`: {log}")) + before.len()..];
    rest.split(['/', ',']).next().unwrap().parse().unwrap()
}

fn client(trusted: &[&CertificateDer<'static>], alpn: &[&str]) -> rustls::ClientConfig {
    client_of(rustls::DEFAULT_VERSIONS, trusted, alpn)
}

/// The same with only these versions of TLS.
fn client_of(
    versions: &[&'static rustls::SupportedProtocolVersion],
    trusted: &[&CertificateDer<'static>],
    alpn: &[&str],
) -> rustls::ClientConfig {
    let mut roots = RootCertStore::empty();
    trusted.iter().for_each(|der| roots.add((*der).clone()).unwrap());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// Connects over TLS as a client that trusts `der`.
async fn connect(
    addr: SocketAddr,
    der: &CertificateDer<'static>,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(Arc::new(client(&[der], alpn)));
    let name = ServerName::try_from(NAME).unwrap();
    timeout(PATIENCE, connector.connect(name, stream)).await.expect("a handshake in time")
}

fn framed(octets: &[u8]) -> Vec<u8> {
    let mut frame = (octets.len() as u16).to_be_bytes().to_vec();
    frame.extend_from_slice(octets);
    frame
}

/// Reads one frame; `None` if the connection ended.
async fn read_frame(stream: &mut TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let read = async {
        let mut octets = vec![0; usize::from(stream.read_u16().await.ok()?)];
        stream.read_exact(&mut octets).await.ok()?;
        Some(octets)
    };
    timeout(PATIENCE, read).await.expect("an answer or an end in time")
}

/// Sends octets in one write.
async fn send(stream: &mut TlsStream<TcpStream>, octets: &[u8]) {
    stream.write_all(octets).await.unwrap();
    stream.flush().await.unwrap();
}

/// Runs a client that may not be installed; `None` if it is not.
async fn run(program: &str, args: &[String]) -> Option<Output> {
    let (program, args) = (program.to_owned(), args.to_vec());
    let ran = tokio::task::spawn_blocking(move || (Command::new(&program).args(&args).output(), program));
    match ran.await.unwrap() {
        (Ok(output), _) => Some(output),
        (Err(_), program) => {
            assert!(!lacks(&program));
            None
        }
    }
}

/// Asks with `kdig`, which must get the answer.
async fn kdig(greenlane: &Greenlane, addr: SocketAddr, more: &str) {
    let (ip, port, ca) = (addr.ip(), addr.port(), greenlane.path("chain.pem"));
    let text = format!("@{ip} -p {port} +tls-ca={} +tls-hostname={NAME} +timeout=15 {more}", ca.display());
    let args: Vec<String> = text.split(' ').map(str::to_owned).collect();
    if let Some(output) = run("kdig", &args).await {
        let shown = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(shown.contains("status: NOERROR") && shown.contains("192.0.2.1"), "kdig {text}: {shown}");
    }
}
