//! A scripted resolver: it says over HTTP what a test wants it to say, true or not.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use crate::harness::PATIENCE;

/// How a page is answered.
#[derive(Clone, Debug)]
pub(super) enum Page {
    /// A status, a media type, and a body that ends with the connection.
    Body(u16, &'static str, String),
    /// The same, then the events that the test sends.
    Stream(String),
    /// These octets as they stand, then the end.
    Raw(Vec<u8>),
    /// Nothing, for ever.
    Hang,
    /// This over and over, without an end.
    Endless(&'static str, Vec<u8>),
}

impl Page {
    pub(super) fn json(body: impl Into<String>) -> Self {
        Self::Body(200, "application/json", body.into())
    }
}

#[derive(Debug)]
struct Script {
    delta: Page,
    watch: Page,
    ack: Page,
    /// A field of each head.
    field: String,
    requests: Vec<String>,
}

/// A scripted resolver; its connections end with it.
pub(super) struct Resolver {
    pub(super) addr: SocketAddr,
    /// Its certificate in PEM, if it speaks TLS.
    pub(super) pem: Option<String>,
    script: Arc<Mutex<Script>>,
    events: broadcast::Sender<String>,
    tasks: JoinSet<()>,
}

impl Resolver {
    /// Answers `/delta` so, and `/watch` with the events that follow.
    pub(super) async fn start(delta: Page) -> Self {
        Self::listen(delta, None).await
    }

    /// The same over TLS, with a certificate for 127.0.0.1 signed by itself.
    pub(super) async fn start_tls(delta: Page) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut resolver = Self::listen(delta, Some(TlsAcceptor::from(Arc::new(config)))).await;
        resolver.pem = Some(made.cert.pem());
        resolver
    }

    async fn listen(delta: Page, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let script = Script {
            delta,
            watch: Page::Stream(String::new()),
            ack: Page::Body(204, "text/plain", String::new()),
            field: String::new(),
            requests: Vec::new(),
        };
        let (script, events) = (Arc::new(Mutex::new(script)), broadcast::Sender::new(64));
        let mut tasks = JoinSet::new();
        let serving = (Arc::clone(&script), events.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, events) = serving.clone();
                match tls.clone() {
                    None => connections.spawn(serve(stream, script, events)),
                    Some(tls) => connections.spawn(async move {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve(stream, script, events).await;
                        }
                    }),
                };
            }
        });
        Self { addr, pem: None, script, events, tasks }
    }

    pub(super) fn url(&self) -> String {
        let scheme = if self.pem.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// Answers `/delta` so from now on.
    pub(super) fn delta(&self, page: Page) {
        self.script.lock().unwrap().delta = page;
    }

    /// Answers `/watch` so from now on.
    pub(super) fn watch(&self, page: Page) {
        self.script.lock().unwrap().watch = page;
    }

    /// Answers `/ack` so from now on.
    pub(super) fn ack(&self, page: Page) {
        self.script.lock().unwrap().ack = page;
    }

    /// Adds a field to each head.
    pub(super) fn field(&self, field: &str) {
        self.script.lock().unwrap().field = format!("{field}\r\n");
    }

    /// Waits until somebody watches: an event before that reaches nobody.
    pub(super) async fn until_watched(&self) {
        for _ in 0..PATIENCE.as_millis() / 10 {
            if self.requests().iter().any(|head| head.starts_with("GET /watch")) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("nobody watches: {:?}", self.requests());
    }

    /// Sends an event to those who watch.
    pub(super) fn send(&self, name: &str, data: &str) {
        let _ = self.events.send(format!("event: {name}\ndata: {data}\n\n"));
    }

    /// Ends every stream and answers nothing from now on.
    pub(super) fn die(&mut self) {
        self.tasks.abort_all();
    }

    /// The heads that came.
    pub(super) fn requests(&self) -> Vec<String> {
        self.script.lock().unwrap().requests.clone()
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    script: Arc<Mutex<Script>>,
    events: broadcast::Sender<String>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(octet) => head.push(octet),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut events = events.subscribe();
    let (page, field) = {
        let mut script = script.lock().unwrap();
        let page = match head.split(['?', ' ']).nth(1) {
            Some("/watch") => script.watch.clone(),
            Some("/ack") => script.ack.clone(),
            _ => script.delta.clone(),
        };
        script.requests.push(head);
        (page, script.field.clone())
    };
    let start = |status: u16, kind: &str| {
        format!("HTTP/1.1 {status} Word\r\nConnection: close\r\nContent-Type: {kind}\r\n{field}\r\n").into_bytes()
    };
    let octets = match &page {
        Page::Body(status, kind, body) => [start(*status, kind), body.clone().into_bytes()].concat(),
        Page::Stream(first) => [start(200, "text/event-stream"), first.clone().into_bytes()].concat(),
        Page::Raw(octets) => octets.clone(),
        Page::Hang => return std::future::pending().await,
        Page::Endless(kind, _) => start(200, kind),
    };
    let _ = stream.write_all(&octets).await;
    match page {
        Page::Endless(_, piece) => while stream.write_all(&piece).await.is_ok() {},
        Page::Stream(_) => {
            while let Ok(event) = events.recv().await {
                let _ = stream.write_all(event.as_bytes()).await;
                let _ = stream.flush().await;
            }
        }
        _ => {}
    }
    let _ = stream.shutdown().await;
    // What the peer has not read would be lost with a reset.
    sleep(Duration::from_millis(50)).await;
}
