//! A scripted upstream: real UDP, TCP, TLS, HTTPS and QUIC sockets on loopback that do what a test says.
//!
//! A *script* is a closure that gets each question as it came ([`Asked`]) and returns what to do ([`Act`]): answer
//! well or badly, late, twice, or not at all. UDP and TCP share one port; what is encrypted has one of its own and a
//! certificate made for it. Every question is logged. Dropping the [`Upstream`] closes its sockets and connections.
//!
//! The file stands alone, so that unit tests can take it in by `#[path]`.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub const A: u16 = 1;
pub const NS: u16 = 2;
pub const CNAME: u16 = 5;
pub const SOA: u16 = 6;
pub const TXT: u16 = 16;
pub const AAAA: u16 = 28;
pub const OPT: u16 = 41;
pub const HTTPS: u16 = 65;

/// What a question came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    Udp,
    Tcp,
    Tls,
    Https,
    Quic,
}

/// A question as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub via: Via,
    pub octets: Vec<u8>,
    /// The asker's address and port.
    pub from: SocketAddr,
    /// Over what is encrypted: the server name it sent.
    pub sni: Option<String>,
    /// Over HTTPS: method, URI and media types.
    pub request: Option<String>,
    /// The number of the connection, from 1; 0 over UDP.
    pub connection: usize,
    /// How many came before it, over all transports.
    pub before: usize,
}

impl Asked {
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.octets[0], self.octets[1]])
    }

    pub fn rd(&self) -> bool {
        self.octets[2] & 0x01 != 0
    }

    pub fn ad(&self) -> bool {
        self.octets[3] & 0x20 != 0
    }

    pub fn cd(&self) -> bool {
        self.octets[3] & 0x10 != 0
    }

    /// The name in wire form.
    pub fn qname(&self) -> &[u8] {
        &self.octets[12..self.question_end() - 4]
    }

    /// The name as text, lower case, without escapes and trailing dot.
    pub fn name(&self) -> String {
        let mut labels = Vec::new();
        let mut rest = self.qname();
        while let Some((&len, tail)) = rest.split_first() {
            if len == 0 {
                break;
            }
            let (label, tail) = tail.split_at(usize::from(len));
            labels.push(String::from_utf8_lossy(label).to_lowercase());
            rest = tail;
        }
        labels.join(".")
    }

    pub fn qtype(&self) -> u16 {
        let end = self.question_end();
        u16::from_be_bytes([self.octets[end - 4], self.octets[end - 3]])
    }

    /// The question section's octets.
    pub fn question(&self) -> &[u8] {
        &self.octets[12..self.question_end()]
    }

    /// What follows the question: an OPT or nothing.
    pub fn rest(&self) -> &[u8] {
        &self.octets[self.question_end()..]
    }

    pub fn has_opt(&self) -> bool {
        !self.rest().is_empty()
    }

    /// The size in its OPT.
    pub fn udp_size(&self) -> Option<u16> {
        let rest = self.rest();
        (rest.len() >= 11).then(|| u16::from_be_bytes([rest[3], rest[4]]))
    }

    /// The DO bit of its OPT.
    pub fn dnssec_ok(&self) -> bool {
        self.rest().get(7).is_some_and(|flags| flags & 0x80 != 0)
    }

    /// Starts a reply to it: NOERROR, RD and CD echoed, RA, an OPT if it had one.
    pub fn reply(&self) -> Reply {
        Reply {
            id: self.id(),
            flags: 0x8080 | u16::from(self.octets[2] & 1) << 8 | u16::from(self.octets[3] & 0x10),
            question: self.question().to_vec(),
            rcode: 0,
            sections: Default::default(),
            opt: self.has_opt().then(Vec::new),
        }
    }

    /// Answers with one A record of the name asked.
    pub fn a(&self, addr: [u8; 4]) -> Act {
        self.reply().answer(&record(&[0xc0, 12], A, 300, &addr)).act()
    }

    /// Answers with an rcode and nothing else.
    pub fn fail(&self, rcode: u16) -> Act {
        self.reply().rcode(rcode).act()
    }

    fn question_end(&self) -> usize {
        let mut at = 12;
        while self.octets[at] != 0 {
            at += 1 + usize::from(self.octets[at]);
        }
        at + 5
    }
}

/// A reply in the making; every part can be spoilt.
#[derive(Clone, Debug)]
pub struct Reply {
    pub id: u16,
    /// The header's flags without the rcode.
    pub flags: u16,
    /// The question section; empty: QDCOUNT 0.
    pub question: Vec<u8>,
    pub rcode: u16,
    sections: [(u16, Vec<u8>); 3],
    /// The options of its OPT; `None`: no OPT.
    pub opt: Option<Vec<u8>>,
}

impl Reply {
    pub fn rcode(mut self, rcode: u16) -> Self {
        self.rcode = rcode;
        self
    }

    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    pub fn question(mut self, octets: &[u8]) -> Self {
        self.question = octets.to_vec();
        self
    }

    /// Sets TC.
    pub fn truncated(mut self) -> Self {
        self.flags |= 0x0200;
        self
    }

    /// Sets AD.
    pub fn authentic(mut self) -> Self {
        self.flags |= 0x0020;
        self
    }

    pub fn answer(self, record: &[u8]) -> Self {
        self.add(0, record)
    }

    pub fn authority(self, record: &[u8]) -> Self {
        self.add(1, record)
    }

    pub fn additional(self, record: &[u8]) -> Self {
        self.add(2, record)
    }

    pub fn without_opt(mut self) -> Self {
        self.opt = None;
        self
    }

    /// Adds an option to its OPT.
    pub fn option(mut self, code: u16, value: &[u8]) -> Self {
        let options = self.opt.get_or_insert_with(Vec::new);
        options.extend_from_slice(&code.to_be_bytes());
        options.extend_from_slice(&(value.len() as u16).to_be_bytes());
        options.extend_from_slice(value);
        self
    }

    /// Adds an extended error.
    pub fn ede(self, code: u16, text: &str) -> Self {
        let mut value = code.to_be_bytes().to_vec();
        value.extend_from_slice(text.as_bytes());
        self.option(15, &value)
    }

    pub fn octets(&self) -> Vec<u8> {
        let flags = self.flags | self.rcode & 0x000f;
        let additional = self.sections[2].0 + u16::from(self.opt.is_some());
        let counts = [u16::from(!self.question.is_empty()), self.sections[0].0, self.sections[1].0, additional];
        let mut octets = self.id.to_be_bytes().to_vec();
        octets.extend_from_slice(&flags.to_be_bytes());
        counts.iter().for_each(|count| octets.extend_from_slice(&count.to_be_bytes()));
        octets.extend_from_slice(&self.question);
        self.sections.iter().for_each(|(_, records)| octets.extend_from_slice(records));
        if let Some(options) = &self.opt {
            octets.extend_from_slice(&[0, 0, OPT as u8, 0x04, 0xd0, (self.rcode >> 4) as u8, 0, 0, 0]);
            octets.extend_from_slice(&(options.len() as u16).to_be_bytes());
            octets.extend_from_slice(options);
        }
        octets
    }

    pub fn act(self) -> Act {
        Act::Send(self.octets())
    }

    fn add(mut self, section: usize, record: &[u8]) -> Self {
        self.sections[section].0 += 1;
        self.sections[section].1.extend_from_slice(record);
        self
    }
}

/// Makes a record of class IN; `owner` in wire form, `[0xc0, 12]` points at the name asked.
pub fn record(owner: &[u8], rtype: u16, ttl: u32, rdata: &[u8]) -> Vec<u8> {
    let mut octets = owner.to_vec();
    octets.extend_from_slice(&rtype.to_be_bytes());
    octets.extend_from_slice(&1u16.to_be_bytes());
    octets.extend_from_slice(&ttl.to_be_bytes());
    octets.extend_from_slice(&(rdata.len() as u16).to_be_bytes());
    octets.extend_from_slice(rdata);
    octets
}

/// Makes the wire form of a name without escapes.
pub fn wire_name(text: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        octets.push(label.len() as u8);
        octets.extend_from_slice(label.as_bytes());
    }
    octets.push(0);
    octets
}

/// What the upstream does on a question.
#[derive(Clone, Debug)]
pub enum Act {
    /// Nothing: the packet is lost.
    Drop,
    /// Sends these octets, whatever they are.
    Send(Vec<u8>),
    /// Sends these octets from another port (UDP only).
    SendFromElsewhere(Vec<u8>),
    /// Does it later; other questions are not held up.
    After(Duration, Box<Self>),
    /// Does one after the other.
    Each(Vec<Self>),
    /// Closes the connection with all that waits on it; over UDP as [`Act::Drop`].
    Close,
    /// Over HTTPS: responds with this status, media type and body.
    Respond(u16, &'static str, Vec<u8>),
    /// Over HTTPS and QUIC: gives up the question's stream.
    Reset,
    /// Over QUIC: sends these octets without their length before them.
    Bare(Vec<u8>),
}

impl Act {
    pub fn after(self, delay: Duration) -> Self {
        Self::After(delay, Box::new(self))
    }

    pub fn then(self, next: Self) -> Self {
        Self::Each(vec![self, next])
    }
}

type Script = dyn Fn(&Asked) -> Act + Send + Sync;

/// The upstream.
pub struct Upstream {
    /// Where it listens for UDP and TCP.
    pub addr: SocketAddr,
    /// Where it listens for TLS.
    pub tls_addr: Option<SocketAddr>,
    /// Its certificate, which is its own authority.
    pub certificate: Option<CertificateDer<'static>>,
    state: Arc<State>,
    tasks: JoinSet<()>,
}

struct State {
    script: Box<Script>,
    log: Mutex<Vec<Asked>>,
    connections: AtomicUsize,
    resumed: AtomicUsize,
}

impl Upstream {
    /// Listens on UDP and TCP.
    pub async fn start(script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        loop {
            let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let addr = tcp.local_addr().unwrap();
            // The port may be taken for UDP; the next one may not.
            let Ok(udp) = UdpSocket::bind(addr).await else { continue };
            return Self::over(udp, tcp, script);
        }
    }

    /// Listens on these two, which have one address.
    pub fn over(udp: UdpSocket, tcp: TcpListener, script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let mut upstream = Self::silent(udp.local_addr().unwrap(), Box::new(script));
        upstream.tasks.spawn(serve_udp(udp, upstream.state.clone()));
        upstream.tasks.spawn(serve_tcp(tcp, upstream.state.clone()));
        upstream
    }

    /// Listens on UDP only: TCP is refused.
    pub async fn start_udp(script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut upstream = Self::silent(udp.local_addr().unwrap(), Box::new(script));
        upstream.tasks.spawn(serve_udp(udp, upstream.state.clone()));
        upstream
    }

    /// Listens on UDP, TCP and TLS, with a certificate for `names` (host names or addresses).
    pub async fn start_tls(names: &[&str], script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let (mut upstream, listener, acceptor) = Self::start_with_certificate(names, &[], script).await;
        upstream.tasks.spawn(serve_tls(listener, acceptor, upstream.state.clone()));
        upstream
    }

    /// Listens on HTTPS (HTTP/2) at [`Self::tls_addr`], with a certificate for `names`; UDP and TCP are heard, too.
    pub async fn start_https(names: &[&str], script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let (mut upstream, listener, acceptor) = Self::start_with_certificate(names, &[b"h2"], script).await;
        upstream.tasks.spawn(serve_https(listener, acceptor, upstream.state.clone()));
        upstream
    }

    /// Listens on UDP and TCP, and binds what is to be served at [`Self::tls_addr`].
    async fn start_with_certificate(
        names: &[&str],
        protocols: &[&[u8]],
        script: impl Fn(&Asked) -> Act + Send + Sync + 'static,
    ) -> (Self, TcpListener, TlsAcceptor) {
        let mut upstream = Self::start(script).await;
        let (certificate, config) = credentials(names, protocols);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        upstream.tls_addr = Some(listener.local_addr().unwrap());
        upstream.certificate = Some(certificate);
        (upstream, listener, TlsAcceptor::from(Arc::new(config)))
    }

    /// Listens on QUIC at [`Self::tls_addr`], with a certificate for `names`; UDP and TCP are heard, too.
    pub async fn start_quic(names: &[&str], script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let mut upstream = Self::start(script).await;
        let (certificate, config) = credentials(names, &[b"doq"]);
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(config).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let endpoint = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        upstream.tls_addr = Some(endpoint.local_addr().unwrap());
        upstream.certificate = Some(certificate);
        upstream.tasks.spawn(serve_quic(endpoint, upstream.state.clone()));
        upstream
    }

    /// Every question so far.
    pub fn log(&self) -> Vec<Asked> {
        self.state.log.lock().unwrap().clone()
    }

    /// How many questions came.
    pub fn count(&self) -> usize {
        self.state.log.lock().unwrap().len()
    }

    /// How many connections were made, TLS handshakes that failed not among them.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// How many TLS sessions went on from earlier ones (TLS and HTTPS only).
    pub fn resumed(&self) -> usize {
        self.state.resumed.load(Ordering::SeqCst)
    }

    /// How many questions came for each name.
    pub fn counts(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        self.log().iter().for_each(|asked| *counts.entry(asked.name()).or_default() += 1);
        counts
    }

    fn silent(addr: SocketAddr, script: Box<Script>) -> Self {
        let state = Arc::new(State {
            script,
            log: Mutex::default(),
            connections: AtomicUsize::new(0),
            resumed: AtomicUsize::new(0),
        });
        Self { addr, tls_addr: None, certificate: None, state, tasks: JoinSet::new() }
    }
}

/// Makes a certificate, its own authority, and the server's side of TLS with it.
fn credentials(names: &[&str], alpn: &[&[u8]]) -> (CertificateDer<'static>, rustls::ServerConfig) {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    (certificate, config)
}

impl State {
    /// Counts a session; returns its number and the server name in it.
    fn note_session(&self, stream: &tokio_rustls::server::TlsStream<tokio::net::TcpStream>) -> (usize, Option<String>) {
        let session = stream.get_ref().1;
        if session.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
            self.resumed.fetch_add(1, Ordering::SeqCst);
        }
        (self.connections.fetch_add(1, Ordering::SeqCst) + 1, session.server_name().map(str::to_owned))
    }

    /// Logs a question and asks the script.
    fn decide(&self, mut asked: Asked) -> Act {
        let mut log = self.log.lock().unwrap();
        asked.before = log.len();
        log.push(asked.clone());
        drop(log);
        (self.script)(&asked)
    }
}

/// Where an act's octets go.
trait Sink: Send + Sync {
    fn send(&self, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    fn send_from_elsewhere(&self, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    fn close(&self);
    fn respond(&self, _: u16, _: &'static str, _: Vec<u8>) {}
    fn reset(&self) {}
    fn bare(&self, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.send(octets)
    }
}

fn perform<'a>(act: Act, sink: &'a dyn Sink) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    Box::pin(async move {
        match act {
            Act::Drop => {}
            Act::Send(octets) => sink.send(octets).await,
            Act::SendFromElsewhere(octets) => sink.send_from_elsewhere(octets).await,
            Act::After(delay, act) => {
                tokio::time::sleep(delay).await;
                perform(*act, sink).await;
            }
            Act::Each(acts) => {
                for act in acts {
                    perform(act, sink).await;
                }
            }
            Act::Close => sink.close(),
            Act::Respond(status, media_type, body) => sink.respond(status, media_type, body),
            Act::Reset => sink.reset(),
            Act::Bare(octets) => sink.bare(octets).await,
        }
    })
}

struct Datagram {
    socket: Arc<UdpSocket>,
    to: SocketAddr,
}

impl Sink for Datagram {
    fn send(&self, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let _ = self.socket.send_to(&octets, self.to).await;
        })
    }

    fn send_from_elsewhere(&self, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let _ = other.send_to(&octets, self.to).await;
        })
    }

    fn close(&self) {}
}

async fn serve_udp(socket: UdpSocket, state: Arc<State>) {
    let socket = Arc::new(socket);
    let mut acts = JoinSet::new();
    let mut room = vec![0; 65_535];
    loop {
        // An asker that is gone shows as an error here; the next one is not its fault.
        let Ok((len, from)) = socket.recv_from(&mut room).await else { continue };
        let asked = Asked {
            via: Via::Udp,
            octets: room[..len].to_vec(),
            from,
            sni: None,
            request: None,
            connection: 0,
            before: 0,
        };
        let (act, sink) = (state.decide(asked), Datagram { socket: socket.clone(), to: from });
        acts.spawn(async move { perform(act, &sink).await });
        while acts.try_join_next().is_some() {}
    }
}

async fn serve_tcp(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, from)) = listener.accept().await {
        let number = state.connections.fetch_add(1, Ordering::SeqCst) + 1;
        connections.spawn(serve_stream(stream, Via::Tcp, from, None, number, state.clone()));
    }
}

async fn serve_tls(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, from)) = listener.accept().await {
        let (acceptor, state) = (acceptor.clone(), state.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let (number, sni) = state.note_session(&stream);
            serve_stream(stream, Via::Tls, from, sni, number, state).await;
        });
    }
}

struct Frames<W> {
    writer: tokio::sync::Mutex<W>,
    closed: Notify,
}

impl<W: AsyncWrite + Unpin + Send> Sink for Frames<W> {
    fn send(&self, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let mut frame = (octets.len() as u16).to_be_bytes().to_vec();
            frame.extend_from_slice(&octets);
            let mut writer = self.writer.lock().await;
            let _ = writer.write_all(&frame).await;
            let _ = writer.flush().await;
        })
    }

    fn send_from_elsewhere(&self, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.send(octets)
    }

    fn close(&self) {
        self.closed.notify_one();
    }
}

async fn serve_stream<S: AsyncRead + AsyncWrite + Send + 'static>(
    stream: S,
    via: Via,
    from: SocketAddr,
    sni: Option<String>,
    connection: usize,
    state: Arc<State>,
) {
    let (mut reader, writer) = tokio::io::split(stream);
    let sink = Arc::new(Frames { writer: tokio::sync::Mutex::new(writer), closed: Notify::new() });
    let mut acts = JoinSet::new();
    let reading = async {
        while let Ok(len) = reader.read_u16().await {
            let mut octets = vec![0; usize::from(len)];
            if reader.read_exact(&mut octets).await.is_err() || len < 17 {
                break;
            }
            let asked = Asked { via, octets, from, sni: sni.clone(), request: None, connection, before: 0 };
            let (act, sink) = (state.decide(asked), sink.clone());
            acts.spawn(async move { perform(act, &*sink).await });
        }
    };
    tokio::select! {
        () = reading => {}
        () = sink.closed.notified() => {}
    }
    acts.shutdown().await;
}

/// What an HTTP response is being made of.
#[derive(Default)]
struct Responding {
    made: Mutex<Option<Result<Response<Full<Bytes>>, std::io::Error>>>,
    closed: Arc<Notify>,
}

impl Sink for Responding {
    fn send(&self, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.respond(200, "application/dns-message", octets);
        Box::pin(async {})
    }

    fn send_from_elsewhere(&self, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.send(octets)
    }

    fn close(&self) {
        self.closed.notify_one();
    }

    fn respond(&self, status: u16, media_type: &'static str, body: Vec<u8>) {
        let response = Response::builder().status(status).header("content-type", media_type);
        // A redirect must not be followed.
        let response = response.header("location", "https://elsewhere.example/dns-query");
        *self.made.lock().unwrap() = Some(Ok(response.body(Full::new(Bytes::from(body))).unwrap()));
    }

    fn reset(&self) {
        *self.made.lock().unwrap() = Some(Err(std::io::Error::other("reset")));
    }
}

async fn serve_https(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, from)) = listener.accept().await {
        let (acceptor, state) = (acceptor.clone(), state.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let (number, sni) = state.note_session(&stream);
            let closed = Arc::new(Notify::new());
            let service = {
                let closed = closed.clone();
                hyper::service::service_fn(move |request| {
                    let responding = Responding { closed: closed.clone(), ..Responding::default() };
                    respond(request, (from, sni.clone(), number), state.clone(), responding)
                })
            };
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::select! {
                _ = builder.serve_connection(TokioIo::new(stream), service) => {}
                () = closed.notified() => {}
            }
        });
    }
}

async fn respond(
    request: Request<Incoming>,
    (from, sni, connection): (SocketAddr, Option<String>, usize),
    state: Arc<State>,
    responding: Responding,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
    let head = format!("{} {} {} {}", request.method(), request.uri(), header("content-type"), header("accept"));
    let octets = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes().to_vec();
    let asked = Asked { via: Via::Https, octets, from, sni, request: Some(head), connection, before: 0 };
    perform(state.decide(asked), &responding).await;
    let made = responding.made.lock().unwrap().take();
    match made {
        Some(made) => made,
        None => std::future::pending().await,
    }
}

/// A question's stream.
struct Streaming {
    connection: quinn::Connection,
    sending: Mutex<Option<quinn::SendStream>>,
}

impl Sink for Streaming {
    fn send(&self, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.bare([&(octets.len() as u16).to_be_bytes(), &*octets].concat())
    }

    fn send_from_elsewhere(&self, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.send(octets)
    }

    fn close(&self) {
        self.connection.close(0u8.into(), b"");
    }

    fn reset(&self) {
        let _ = self.sending.lock().unwrap().as_mut().map(|sending| sending.reset(1u8.into()));
    }

    fn bare(&self, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let taken = self.sending.lock().unwrap().take();
            if let Some(mut sending) = taken {
                let _ = sending.write_all(&octets).await;
                let _ = sending.finish();
            }
        })
    }
}

async fn serve_quic(endpoint: quinn::Endpoint, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        let state = state.clone();
        connections.spawn(async move {
            let Ok(connection) = incoming.await else { return };
            let number = state.connections.fetch_add(1, Ordering::SeqCst) + 1;
            let handshake = connection.handshake_data();
            let handshake = handshake.and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
            let (from, sni) = (connection.remote_address(), handshake.and_then(|data| data.server_name));
            let mut acts = JoinSet::new();
            while let Ok((sending, mut receiving)) = connection.accept_bi().await {
                let (state, connection, sni) = (state.clone(), connection.clone(), sni.clone());
                acts.spawn(async move {
                    let Ok(frame) = receiving.read_to_end(65_537).await else { return };
                    let octets = frame[2..].to_vec();
                    let asked =
                        Asked { via: Via::Quic, octets, from, sni, request: None, connection: number, before: 0 };
                    let streaming = Streaming { connection, sending: Mutex::new(Some(sending)) };
                    perform(state.decide(asked), &streaming).await;
                    // A stream that is let go would end.
                    std::future::pending::<()>().await;
                });
            }
        });
    }
}
