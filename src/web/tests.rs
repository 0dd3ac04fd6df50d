//! The web part over a real socket, with a raw client: what stands on the wire is what is compared.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use futures_util::StreamExt;
use hyper::service::Service;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::guard::Peer;
use super::*;
use crate::catalogue::{self, AppId, Tag, TagApp};
use crate::clock::{Clock, Timestamp};
use crate::metrics::Registry;
use crate::name::Name;
use crate::set::outlet::{Applied, Change as OrderedChange, State as SinkState};
use crate::set::{Draft, NameRecord, Need, Session, Sighting, StaticEntry, Times};
use crate::source::Location;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

const ZOOM: &str = "# Zoom\n#: source = https://zoom.example/list\nzoom.us\n=login.zoom.example\n*.zoom.example\n!files.zoom.us\n198.51.100.0/24\n";
const BOX: &str = "# Box\nbox.com\n";

/// A server on a port of its own and the hands to move what it shows.
struct Site {
    addr: SocketAddr,
    draft: Draft,
    clock: Clock,
    ready: Arc<AtomicBool>,
    state: State,
    shutdown: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

fn state(draft: &Draft, clock: &Clock, ready: &Arc<AtomicBool>, registry: Registry) -> State {
    let lists = [("zones/zoom.list", ZOOM.as_bytes()), ("zones/box.list", BOX.as_bytes())];
    let options = catalogue::Options { never: vec!["never.zoom.us".to_owned()], ..catalogue::Options::default() };
    let loaded = catalogue::compile(lists, &options, jiff::civil::date(2027, 1, 15)).unwrap();
    State {
        reader: draft.reader(),
        catalogue: Arc::new(ArcSwap::from_pointee(loaded.catalogue)),
        registry,
        clock: clock.clone(),
        ready: Arc::clone(ready),
        tokens: Arc::default(),
        joins: crate::set::Joins::default(),
        hooks: Hooks {
            stats: Arc::new(|| json!({ "upstreams": [], "serial": "not ours to say" })),
            why_not: Arc::new(|addr| addr.is_loopback().then(|| "loopback (RFC 1122)".to_owned())),
            ..Hooks::default()
        },
    }
}

impl Site {
    async fn open() -> Self {
        Self::open_with(Options::default()).await
    }

    async fn open_with(options: Options) -> Self {
        let (clock, ready, registry) = (Clock::manual(NOW), Arc::new(AtomicBool::new(true)), Registry::new());
        let draft = Draft::new(Session(0xab), NOW, &registry);
        let state = state(&draft, &clock, &ready, registry);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(serve(listener, state.clone(), options, shutdown.clone()));
        Self { addr, draft, clock, ready, state, shutdown, served }
    }

    fn learn(&mut self, addr: &str) -> Arc<Sighting> {
        self.learn_for(addr, Name::parse("eu.zoom.us").unwrap())
    }

    fn learn_for(&mut self, addr: &str, name: Name) -> Arc<Sighting> {
        let now = self.clock.now();
        let location = Location { file: "zones/zoom.list".into(), line: 3, col: 1 };
        let hit = TagApp { app: AppId::new("zoom"), trigger: "zoom.us".into(), location };
        let record = Arc::new(NameRecord::new(name, Tag::new(vec![hit])));
        let sighting = Sighting::new(addr.parse().unwrap(), record, now, Times::from(need(now)));
        let sighting = self.draft.insert(sighting);
        self.draft.commit(now);
        sighting
    }

    fn list_static(&mut self, prefix: &str) {
        let entry = StaticEntry { prefix: prefix.parse().unwrap(), apps: [AppId::new("zoom")].into() };
        self.draft.set_statics(vec![entry]);
        self.draft.commit(self.clock.now());
    }

    async fn get(&self, target: &str) -> Reply {
        self.ask("GET", target, "").await
    }

    async fn ask(&self, method: &str, target: &str, fields: &str) -> Reply {
        self.raw(&format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n")).await
    }

    async fn raw(&self, request: &str) -> Reply {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        // A server that closes on unread octets resets the connection; what it said before stands.
        let _ = stream.read_to_end(&mut bytes).await;
        Reply::read(&bytes)
    }

    async fn watch(&self, target: &str, fields: &str) -> Watch {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Watch { stream, raw: Vec::new(), taken: 0 }
    }
}

fn need(now: Timestamp) -> Need {
    Need::new(now, Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(300))
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn read(bytes: &[u8]) -> Self {
        let at = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(bytes.len());
        let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
        let mut body = bytes.get(at + 4..).unwrap_or_default().to_vec();
        if head.contains("transfer-encoding: chunked") {
            body = unchunk(&body);
        }
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        Self { status, head, body }
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(known, _)| *known == name))
            .map(|(_, value)| value)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = bytes.windows(2).position(|window| window == b"\r\n") {
        let len = usize::from_str_radix(std::str::from_utf8(&bytes[..at]).unwrap(), 16).unwrap();
        // The last chunk, or one that is still under way.
        if len == 0 || bytes.len() < at + len + 4 {
            break;
        }
        body.extend_from_slice(&bytes[at + 2..at + 2 + len]);
        bytes = &bytes[at + 2 + len + 2..];
    }
    body
}

/// An open event stream.
struct Watch {
    stream: TcpStream,
    raw: Vec<u8>,
    /// How many events were taken off it.
    taken: usize,
}

#[derive(Debug, PartialEq)]
struct Received {
    event: String,
    id: Option<String>,
    data: Value,
}

impl Watch {
    /// Waits for the next event; `None` if the stream ended.
    async fn next(&mut self) -> Option<Received> {
        loop {
            if let Some(event) = self.received() {
                return Some(event);
            }
            let mut buffer = [0; 65536];
            let read = tokio::time::timeout(Duration::from_secs(10), self.stream.read(&mut buffer)).await.unwrap();
            let len = read.unwrap_or(0);
            if len == 0 {
                return None;
            }
            self.raw.extend_from_slice(&buffer[..len]);
        }
    }

    /// Takes the first whole event off what came so far.
    fn received(&mut self) -> Option<Received> {
        let reply = Reply::read(&self.raw);
        let text = String::from_utf8(reply.body).unwrap();
        let block = text.split_inclusive("\n\n").filter(|block| block.ends_with("\n\n")).nth(self.taken)?;
        self.taken += 1;
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let data = serde_json::from_str(&field("data: ")?).unwrap();
        Some(Received { event: field("event: ")?, id: field("id: "), data })
    }
}

#[tokio::test]
async fn list_has_validators_and_a_second_request_gets_304() {
    let mut site = Site::open().await;
    site.learn("192.0.2.1");
    let list = site.get("/prefixes.txt").await;
    assert_eq!((list.status, list.text()), (200, "192.0.2.1/32\n"));
    assert_eq!(list.field("etag"), Some("\"00000000000000ab-1\""));
    assert_eq!(list.field("last-modified"), Some("Fri, 15 Jan 2027 08:00:00 GMT"));
    assert_eq!(list.field("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(list.field("cache-control"), Some("no-cache"));
    assert_eq!(list.field("vary"), Some("Accept-Encoding"));
    assert_eq!(list.field("content-length"), Some("13"));

    for fields in [
        "If-None-Match: \"00000000000000ab-1\"\r\n",
        "If-None-Match: *\r\n",
        "If-Modified-Since: Fri, 15 Jan 2027 08:00:00 GMT\r\n",
    ] {
        let same = site.ask("GET", "/prefixes.txt", fields).await;
        assert_eq!((same.status, same.body.len()), (304, 0), "{fields}");
        assert_eq!(same.field("etag"), Some("\"00000000000000ab-1\""));
        assert_eq!(same.field("content-length"), None);
    }
    site.learn("192.0.2.9");
    let next = site.ask("GET", "/prefixes.txt", "If-None-Match: \"00000000000000ab-1\"\r\n").await;
    assert_eq!((next.status, next.text()), (200, "192.0.2.1/32\n192.0.2.9/32\n"));
    let same_second = "If-Modified-Since: Fri, 15 Jan 2027 08:00:00 GMT\r\n";
    assert_eq!(site.ask("GET", "/prefixes.txt", same_second).await.status, 200, "the date is that of the last list");
}

#[tokio::test]
async fn later_end_changes_no_list() {
    let mut site = Site::open().await;
    let sighting = site.learn("192.0.2.1");
    let before = site.get("/prefixes.json").await;
    site.clock.advance(Duration::from_secs(30));
    site.draft.renew(&sighting, &need(site.clock.now()));
    site.draft.commit(site.clock.now());
    let after = site.get("/prefixes.json").await;
    assert_eq!(before.body, after.body);
    assert_eq!(before.field("etag"), after.field("etag"));
}

#[tokio::test]
async fn head_tells_what_get_would() {
    let mut site = Site::open().await;
    site.learn("192.0.2.1");
    for target in ["/prefixes.txt", "/domains.txt", "/stats", "/metrics", "/"] {
        let (head, get) = (site.ask("HEAD", target, "").await, site.get(target).await);
        assert_eq!((head.status, head.body.len()), (200, 0), "{target}");
        assert_eq!(head.field("etag"), get.field("etag"), "{target}");
        assert_eq!(head.field("content-type"), get.field("content-type"), "{target}");
    }
    assert_eq!(site.ask("HEAD", "/prefixes.txt", "").await.field("content-length"), Some("13"));
}

#[tokio::test]
async fn compressed_list_has_a_tag_of_its_own() {
    let mut site = Site::open().await;
    for octet in 0..128 {
        site.learn(&format!("192.0.2.{}", octet * 2));
    }
    let plain = site.get("/prefixes.txt").await;
    let packed = site.ask("GET", "/prefixes.txt", "Accept-Encoding: gzip, br\r\n").await;
    assert_eq!(packed.field("content-encoding"), Some("gzip"));
    assert_eq!(packed.field("etag"), Some("\"00000000000000ab-128-gz\""));
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*packed.body), &mut unpacked).unwrap();
    assert_eq!(unpacked, plain.body);
    let fields = "Accept-Encoding: gzip\r\nIf-None-Match: \"00000000000000ab-128-gz\"\r\n";
    let same = site.ask("GET", "/prefixes.txt", fields).await;
    assert_eq!((same.status, same.field("etag")), (304, Some("\"00000000000000ab-128-gz\"")));
}

#[tokio::test]
async fn bound_says_what_it_left_out() {
    let mut site = Site::open().await;
    for addr in ["192.0.2.1", "192.0.2.5", "192.0.2.9"] {
        site.learn(addr);
    }
    let list = site.get("/prefixes.txt?max=2").await;
    assert_eq!(list.field("x-greenlane-omitted"), Some("1"));
    assert_eq!(list.text().lines().count(), 2);
    assert_eq!(site.get("/prefixes.txt?max=3").await.field("x-greenlane-omitted"), Some("0"));
    assert_eq!(site.get("/prefixes.txt").await.field("x-greenlane-omitted"), None);
}

#[tokio::test]
async fn wrong_query_gets_400_and_no_list() {
    let site = Site::open().await;
    for (target, line) in [
        ("/prefixes.txt?app=teams", "unknown app `teams`\n"),
        ("/prefixes.nft?familly=4", "unknown parameter `familly`, expected family, app, origin, group or max\n"),
        ("/domains.txt?family=4", "unknown parameter `family`, expected app or group\n"),
        ("/feeds/cisco.txt?max=0", "max: expected 1 to 4294967295, found `0`\n"),
        ("/feeds/squid-domains.txt?max=5", "unknown parameter `max`, expected app or group\n"),
        ("/delta?serial=1", "session and serial go together, session is missing\n"),
        ("/watch?session=1&serial=1", "session: expected 16 hexadecimal digits, found `1`\n"),
        ("/explain", "expected one parameter, name or address\n"),
        ("/explain?name=a..b", "name: empty label\n"),
        ("/explain?address=192.0.2.1/32", "address: expected an IPv4 or IPv6 address without a length\n"),
        ("/apps?app=zoom", "unknown parameter `app`, expected none\n"),
    ] {
        let reply = site.get(target).await;
        assert_eq!((reply.status, reply.text()), (400, line), "{target}");
        assert_eq!(reply.field("x-content-type-options"), Some("nosniff"));
    }
}

#[tokio::test]
async fn nothing_is_given_out_before_the_set_is_restored() {
    let site = Site::open().await;
    site.ready.store(false, Ordering::Release);
    for target in [
        "/prefixes.txt",
        "/prefixes.nft?family=4",
        "/feeds/paloalto.txt",
        "/feeds/squid-domains.txt",
        "/domains.txt",
        "/delta",
        "/watch",
        "/explain?name=a",
        "/apps",
        "/readyz",
    ] {
        let reply = site.get(target).await;
        assert_eq!((reply.status, reply.field("retry-after")), (503, Some("1")), "{target}");
    }
    for target in ["/healthz", "/metrics", "/stats", "/"] {
        assert_eq!(site.get(target).await.status, 200, "{target}");
    }
    site.ready.store(true, Ordering::Release);
    assert_eq!(site.get("/readyz").await.text(), "ready\n");
}

#[tokio::test]
async fn other_methods_and_paths_are_refused() {
    let site = Site::open().await;
    for target in ["/prefixes.txt", "/feeds/cisco.txt", "/watch", "/"] {
        let reply = site.ask("POST", target, "Content-Length: 0\r\n").await;
        assert_eq!((reply.status, reply.field("allow")), (405, Some("GET,HEAD")), "{target}");
        assert_eq!(reply.text(), "expected GET or HEAD\n");
    }
    for target in [
        "/prefixes",
        "/prefixes.xml",
        "/prefixes.paloalto",
        "/prefixes.txt/",
        "/../etc/passwd",
        "/feeds/x.txt",
        "/feeds/txt.txt",
        "/feeds/",
    ] {
        assert_eq!(site.get(target).await.status, 404, "{target}");
    }
}

#[tokio::test]
async fn foreign_host_reads_open_lists_only() {
    let mut site = Site::open().await;
    site.learn("192.0.2.1");
    let ask = async |target: &str, host: &str| {
        site.raw(&format!("GET {target} HTTP/1.1\r\n{host}Connection: close\r\n\r\n")).await.status
    };
    for target in NOT_OPEN {
        assert_eq!(ask(target, "Host: evil.example:8053\r\n").await, 421, "{target}");
        assert_eq!(ask(target, "Host: localhost\r\nHost: evil.example\r\n").await, 400, "{target}");
    }
    assert_eq!(ask("http://evil.example/stats", "Host: localhost\r\n").await, 421, "the target's host counts");
    for target in ["/prefixes.txt", "/feeds/cisco.txt", "/domains.txt", "/metrics", "/healthz", "/readyz"] {
        assert_eq!(ask(target, "Host: firewall-feeds.corp.example\r\n").await, 200, "{target}");
        assert_eq!(ask(target, "").await, 400, "{target}");
    }
    assert_eq!(site.raw("GET /prefixes.txt HTTP/1.0\r\n\r\n").await.status, 200);
}

/// What is served to everybody.
const OPEN: [&str; 9] = [
    "/prefixes.txt",
    "/prefixes.rsc",
    "/feeds/paloalto.txt",
    "/feeds/squid-ip.txt",
    "/feeds/squid-domains.txt",
    "/domains.txt",
    "/metrics",
    "/healthz",
    "/readyz",
];
/// What is not.
const NOT_OPEN: [&str; 7] = ["/explain?name=zoom.us", "/sightings", "/stats", "/apps", "/delta", "/watch", "/"];

/// Asks as if from `peer`; returns the status and the challenge.
async fn ask_from(
    router: &Router,
    method: &str,
    target: &str,
    peer: &str,
    fields: &[(&str, &str)],
) -> (u16, Option<String>) {
    let service = hyper_util::service::TowerToHyperService::new(router.clone());
    let mut request = hyper::Request::builder().method(method).uri(target).header("host", "192.0.2.53");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).unwrap();
    request.extensions_mut().insert(Peer(peer.parse().unwrap()));
    let response = service.call(request).await.unwrap();
    let challenge = response.headers().get("www-authenticate").map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), challenge)
}

#[tokio::test]
async fn other_peers_read_open_lists_only() {
    let (clock, ready, registry) = (Clock::manual(NOW), Arc::new(AtomicBool::new(true)), Registry::new());
    let draft = Draft::new(Session(0xab), NOW, &registry);
    let router = router(state(&draft, &clock, &ready, registry), CancellationToken::new());
    for target in NOT_OPEN {
        assert_eq!(ask_from(&router, "GET", target, "192.0.2.7", &[]).await, (403, None), "{target}");
        assert_eq!(ask_from(&router, "GET", target, "127.0.0.1", &[]).await.0, 200, "{target}");
        assert_eq!(ask_from(&router, "GET", target, "::1", &[]).await.0, 200, "{target}");
    }
    for target in OPEN {
        assert_eq!(ask_from(&router, "GET", target, "192.0.2.7", &[]).await.0, 200, "{target}");
    }
    assert_eq!(ask_from(&router, "GET", "/nothing", "192.0.2.7", &[]).await.0, 404);
}

const READ: &str = "read-token-0123456789";
const ADMIN: &str = "admin-token-0123456789";

/// Both tokens, in files of a folder that goes when it is dropped.
fn with_tokens() -> (tempfile::TempDir, Options) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, token: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, token).unwrap();
        Some(path)
    };
    let options =
        Options { read_token_file: file("read", READ), admin_token_file: file("admin", ADMIN), ..Options::default() };
    (folder, options)
}

#[tokio::test]
async fn token_opens_to_other_peers_what_is_not_open() {
    let (_folder, options) = with_tokens();
    let (clock, ready, registry) = (Clock::manual(NOW), Arc::new(AtomicBool::new(true)), Registry::new());
    let draft = Draft::new(Session(0xab), NOW, &registry);
    let state = state(&draft, &clock, &ready, registry);
    state.tokens.store(Arc::new(Tokens::load(&options).unwrap().0));
    let router = router(state.clone(), CancellationToken::new());
    let ask = async |method: &str, target: &str, token: &str| {
        ask_from(&router, method, target, "192.0.2.7", &[("authorization", &format!("Bearer {token}"))]).await
    };
    let (none, wrong) = ("Bearer realm=\"greenlane\"", "Bearer realm=\"greenlane\", error=\"invalid_token\"");
    for target in NOT_OPEN {
        assert_eq!(ask_from(&router, "GET", target, "192.0.2.7", &[]).await, (401, Some(none.to_owned())), "{target}");
        assert_eq!(ask("GET", target, "wrong-token-0123456789").await, (401, Some(wrong.to_owned())), "{target}");
        assert_eq!(ask("GET", target, READ).await, (200, None), "{target}");
        assert_eq!(ask("HEAD", target, ADMIN).await, (200, None), "{target}");
        assert_eq!(ask_from(&router, "GET", target, "127.0.0.1", &[]).await.0, 200, "{target}");
        // An action that is not there is 405 to those who might act.
        let scope = Some("Bearer realm=\"greenlane\", error=\"insufficient_scope\"".to_owned());
        assert_eq!(ask("POST", target, READ).await, (403, scope), "{target}");
        assert_eq!(ask("POST", target, ADMIN).await, (405, None), "{target}");
        assert_eq!(ask_from(&router, "POST", target, "127.0.0.1", &[]).await, (405, None), "{target}");
    }
    for target in OPEN {
        for token in ["wrong-token-0123456789", "", READ] {
            assert_eq!(ask("GET", target, token).await, (200, None), "{target}");
        }
        let fields = [("authorization", "Basic Zm9vOmJhcg=="), ("authorization", "nonsense")];
        assert_eq!(ask_from(&router, "GET", target, "192.0.2.7", &fields).await, (200, None), "{target}");
        assert_eq!(ask("POST", target, "wrong-token-0123456789").await, (405, None), "{target}");
    }
    // Whoever has a token is no web page: the name it reaches us by does not matter.
    let with_name = |fields: &[(&'static str, &str)]| {
        let mut request = hyper::Request::get("/stats").header("host", "greenlane.corp.example");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(Peer("127.0.0.1".parse().unwrap()));
        hyper_util::service::TowerToHyperService::new(router.clone()).call(request)
    };
    assert_eq!(with_name(&[]).await.unwrap().status(), 421);
    assert_eq!(with_name(&[("authorization", &format!("Bearer {READ}"))]).await.unwrap().status(), 200);

    let only_read = Options { admin_token_file: None, ..options };
    state.tokens.store(Arc::new(Tokens::load(&only_read).unwrap().0));
    assert_eq!(ask("GET", "/stats", ADMIN).await.0, 401, "a reload changes what counts");
    assert_eq!(ask("POST", "/stats", READ).await, (403, None), "no token could do it");
}

/// Where actions are, and what may be sent there.
#[tokio::test]
async fn actions_take_a_post_of_somebody_who_may_and_no_foreign_page() {
    let (_folder, options) = with_tokens();
    let (clock, ready, registry) = (Clock::manual(NOW), Arc::new(AtomicBool::new(true)), Registry::new());
    let draft = Draft::new(Session(0xab), NOW, &registry);
    let mut state = state(&draft, &clock, &ready, registry);
    let accepted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counting = Arc::clone(&accepted);
    state.hooks.accept_shrink = Arc::new(move || {
        counting.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { crate::learn::Released::default() })
    });
    let router = router(state.clone(), CancellationToken::new());
    let ack = format!("/ack?follower={}&mark=1", "0".repeat(32));
    let shrink = "/shrink/accept";
    let post = async |target: &str, peer: &str, fields: &[(&str, &str)]| {
        ask_from(&router, "POST", target, peer, fields).await.0
    };

    // Without tokens: loopback alone.
    assert_eq!((post(&ack, "127.0.0.1", &[]).await, post(shrink, "::1", &[]).await), (404, 200));
    assert_eq!((post(&ack, "192.0.2.7", &[]).await, post(shrink, "192.0.2.7", &[]).await), (403, 403));
    state.tokens.store(Arc::new(Tokens::load(&options).unwrap().0));
    for (token, expected) in [("", (401, 401)), ("wrong", (401, 401)), (READ, (404, 403)), (ADMIN, (404, 200))] {
        let value = format!("Bearer {token}");
        let fields: &[(&str, &str)] = if token.is_empty() { &[] } else { &[("authorization", &value)] };
        let got = (post(&ack, "192.0.2.7", fields).await, post(shrink, "192.0.2.7", fields).await);
        assert_eq!(got, expected, "{token}");
    }
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
        for target in [&ack, shrink] {
            assert_eq!(ask_from(&router, method, target, "127.0.0.1", &[]).await.0, 405, "{method} {target}");
        }
    }
    // What a browser says of a page that is not ours, whatever token it was given.
    let before = accepted.load(Ordering::Relaxed);
    let token = format!("Bearer {ADMIN}");
    for foreign in [
        ("origin", "https://evil.example"),
        ("origin", "http://192.0.2.53.evil.example"),
        ("origin", "http://192.0.2.53:8080"),
        ("origin", "null"),
        ("origin", ""),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "nonsense"),
    ] {
        for target in [&ack, shrink] {
            assert_eq!(post(target, "127.0.0.1", &[foreign]).await, 403, "{target} {foreign:?}");
            assert_eq!(post(target, "192.0.2.7", &[foreign, ("authorization", &token)]).await, 403, "{foreign:?}");
        }
    }
    assert_eq!(accepted.load(Ordering::Relaxed), before);
    let own = [("origin", "http://192.0.2.53"), ("sec-fetch-site", "same-origin")];
    assert_eq!(post(shrink, "127.0.0.1", &own).await, 200);
    assert_eq!(post(shrink, "127.0.0.1", &[("sec-fetch-site", "none")]).await, 200);
    // Nothing but the query says anything.
    for target in ["/ack", "/ack?follower=x&mark=1", "/shrink/accept?force=1"] {
        assert_eq!(post(target, "127.0.0.1", &[]).await, 400, "{target}");
    }
}

#[tokio::test]
async fn bodies_of_actions_are_refused_unread() {
    let site = Site::open().await;
    for target in ["/ack", "/shrink/accept"] {
        let fields = "Content-Length: 1000000\r\n";
        let reply = site.ask("POST", target, fields).await;
        assert!(reply.status == 400 && reply.text().starts_with("expected no body"), "{reply:?}");
        let fields = "Transfer-Encoding: chunked\r\n";
        let reply = site.ask("POST", target, fields).await;
        assert!(reply.status == 400 && reply.text().starts_with("expected no body"), "{reply:?}");
    }
    let reply = site.ask("POST", "/shrink/accept", "Content-Length: 0\r\n").await;
    assert_eq!(reply.json(), json!({ "released": 0, "serial": 0, "withdrawn": [] }));
    let get = site.get("/ack").await;
    assert_eq!((get.status, get.field("allow"), get.text()), (405, Some("POST"), "expected POST\n"));
}

#[tokio::test]
async fn feed_is_served_like_any_list() {
    let mut site = Site::open().await;
    site.list_static("198.51.100.0/24");
    for octet in 0..128 {
        site.learn(&format!("192.0.2.{}", octet * 2));
    }
    site.learn("2001:db8::1");
    for product in ["paloalto", "fortigate", "opnsense", "pfsense", "checkpoint", "cisco", "mikrotik", "squid-ip"] {
        let target = format!("/feeds/{product}.txt");
        let list = site.get(&target).await;
        assert_eq!((list.status, list.field("content-type")), (200, Some("text/plain; charset=utf-8")), "{product}");
        assert_eq!(list.field("etag"), Some("\"00000000000000ab-130\""), "{product}");
        assert_eq!(list.field("x-greenlane-omitted"), Some("0"), "{product}");
        assert!(list.text().contains("198.51.100.0/24"), "{product}");
        let same = site.ask("GET", &target, "If-None-Match: \"00000000000000ab-130\"\r\n").await;
        assert_eq!((same.status, same.body.len()), (304, 0), "{product}");
        let head = site.ask("HEAD", &target, "").await;
        assert_eq!((head.status, head.body.len(), head.field("etag")), (200, 0, list.field("etag")), "{product}");
        let packed = site.ask("GET", &target, "Accept-Encoding: gzip\r\n").await;
        assert_eq!(packed.field("content-encoding"), Some("gzip"), "{product}");
        let cut = site.get(&format!("{target}?max=2&family=4")).await;
        assert_eq!(cut.field("x-greenlane-omitted"), Some("127"), "{product}");
        assert!(cut.text().contains("198.51.100.0/24") && cut.text().contains("192.0.2.0"), "{product}");
    }
    assert_eq!(site.get("/feeds/paloalto.txt?family=6").await.text(), "2001:db8::1\n");
    assert_eq!(site.get("/feeds/squid-ip.txt?family=6").await.text(), "2001:db8::1/128\n");
    assert_eq!(site.get("/feeds/cisco.txt?origin=static&app=zoom").await.text(), "198.51.100.0/24\n");
    assert_eq!(site.get("/feeds/cisco.txt?app=box").await.text(), "", "box has nothing, and that is no fault");

    let names = site.get("/feeds/squid-domains.txt").await;
    assert_eq!(names.text(), ".box.com\n.zoom.example\n.zoom.us\n");
    assert_eq!(site.get("/feeds/squid-domains.txt?app=box").await.text(), ".box.com\n");
    let tag = names.field("etag").unwrap().to_owned();
    assert_eq!(site.ask("GET", "/feeds/squid-domains.txt", &format!("If-None-Match: {tag}\r\n")).await.status, 304);
    let metrics = site.get("/metrics").await;
    assert!(metrics.text().contains("greenlane_web_requests_total{endpoint=\"feeds\",status=\"304\"} 9"));
}

#[tokio::test]
async fn client_that_is_not_allowed_is_closed_unheard() {
    let site = Site::open_with(Options { allow: vec!["192.0.2.0/24".parse().unwrap()], ..Options::default() }).await;
    let reply = site.get("/prefixes.txt").await;
    assert_eq!((reply.status, reply.head.as_str()), (0, ""));
    let site = Site::open_with(Options { allow: vec!["127.0.0.0/8".parse().unwrap()], ..Options::default() }).await;
    assert_eq!(site.get("/prefixes.txt").await.status, 200);
}

#[tokio::test]
async fn domains_are_names_that_a_list_opens() {
    let site = Site::open().await;
    let list = site.get("/domains.txt").await;
    assert_eq!(list.text(), "*.zoom.example\nbox.com\nlogin.zoom.example\nzoom.us\n");
    assert_eq!(site.get("/domains.txt?app=box").await.text(), "box.com\n");
    let tag = list.field("etag").unwrap().to_owned();
    assert_eq!(site.ask("GET", "/domains.txt", &format!("If-None-Match: {tag}\r\n")).await.status, 304);

    let options = catalogue::Options {
        never: vec!["zoom.us".to_owned()],
        disabled: vec!["box".to_owned()],
        ..Default::default()
    };
    let lists = [("zones/zoom.list", ZOOM.as_bytes()), ("zones/box.list", BOX.as_bytes())];
    let loaded = catalogue::compile(lists, &options, jiff::civil::date(2027, 1, 15)).unwrap();
    site.state.catalogue.store(Arc::new(loaded.catalogue));
    let list = site.ask("GET", "/domains.txt", &format!("If-None-Match: {tag}\r\n")).await;
    assert_eq!(list.text(), "*.zoom.example\nlogin.zoom.example\n");
    assert_eq!(site.get("/domains.txt?app=box").await.text(), "", "a disabled app is known");
}

#[tokio::test]
async fn delta_leads_from_each_serial_to_the_present() {
    let mut site = Site::open().await;
    site.list_static("198.51.100.0/24");
    let first = site.learn("192.0.2.1");
    let whole = site.get("/delta").await.json();
    let host =
        |addr: &str| json!({ "address": addr, "origin": "learned", "apps": ["zoom"], "end": NOW.as_secs() + 900 });
    let prefix = json!({ "prefix": "198.51.100.0/24", "origin": "static", "apps": ["zoom"] });
    let expected = json!({
        "session": "00000000000000ab", "serial": 2, "reset": true,
        "announced": [host("192.0.2.1"), prefix], "withdrawn": [],
    });
    assert_eq!(whole, expected);
    let clock = site.clock.now().as_millis().to_string();
    assert_eq!(site.get("/delta").await.field("x-greenlane-now"), Some(clock.as_str()), "the clock of the ends");

    let current = site.get("/delta?session=00000000000000ab&serial=2").await.json();
    let nothing =
        json!({ "session": "00000000000000ab", "serial": 2, "reset": false, "announced": [], "withdrawn": [] });
    assert_eq!(current, nothing);

    site.learn("2001:db8::1");
    let left = site.draft.due(NOW.after(Duration::from_secs(900))).unwrap();
    assert_eq!(left.addr(), first.addr());
    site.draft.remove(&left);
    site.draft.commit(NOW);
    let step = site.get("/delta?session=00000000000000ab&serial=2").await.json();
    let gone = json!({ "address": "192.0.2.1", "origin": "learned", "apps": ["zoom"] });
    let expected = json!({
        "session": "00000000000000ab", "serial": 4, "reset": false,
        "announced": [host("2001:db8::1")], "withdrawn": [gone],
    });
    assert_eq!(step, expected);

    for held in ["session=00000000000000ab&serial=5", "session=00000000000000ac&serial=4"] {
        let reset = site.get(&format!("/delta?{held}")).await.json();
        assert_eq!((&reset["reset"], &reset["serial"]), (&json!(true), &json!(4)), "{held}");
        assert_eq!(reset["announced"], json!([prefix, host("2001:db8::1")]), "{held}");
    }
}

#[tokio::test]
async fn long_delta_comes_whole_in_pieces() {
    let mut site = Site::open().await;
    let now = site.clock.now();
    let hit =
        TagApp { app: AppId::new("zoom"), trigger: "zoom.us".into(), location: Location::file("zones/zoom.list") };
    let record = Arc::new(NameRecord::new(Name::parse("zoom.us").unwrap(), Tag::new(vec![hit])));
    for i in 0..10_000_u32 {
        let addr = IpAddr::from((0x0b00_0000 + i).to_be_bytes());
        site.draft.insert(Sighting::new(addr, Arc::clone(&record), now, Times::from(need(now))));
    }
    site.draft.commit(now);
    for target in ["/delta", "/delta?session=00000000000000ab&serial=0"] {
        let reply = site.get(target).await;
        assert!(reply.head.contains("transfer-encoding: chunked"));
        assert_eq!(reply.json()["announced"].as_array().unwrap().len(), 10_000, "{target}");
    }
}

#[tokio::test]
async fn watch_brings_the_present_then_every_change() {
    let mut site = Site::open().await;
    let sighting = site.learn("192.0.2.1");
    let mut watch = site.watch("/watch", "").await;
    let first = watch.next().await.unwrap();
    assert_eq!((first.event.as_str(), first.id.as_deref()), ("delta", Some("00000000000000ab-1")));
    assert_eq!(first.data, site.get("/delta").await.json());
    assert_eq!(first.data["reset"], json!(true));

    site.learn("192.0.2.2");
    let next = watch.next().await.unwrap();
    assert_eq!(next.id.as_deref(), Some("00000000000000ab-2"));
    assert_eq!(next.data, site.get("/delta?session=00000000000000ab&serial=1").await.json());

    site.clock.advance(Duration::from_millis(100));
    site.draft.renew(&sighting, &need(site.clock.now()));
    site.draft.commit(site.clock.now());
    let renewed = watch.next().await.unwrap();
    let ends = json!([{ "address": "192.0.2.1", "end": NOW.as_secs() + 901 }]);
    assert_eq!(
        renewed,
        Received {
            event: "renewed".to_owned(),
            id: None,
            data: json!({ "session": "00000000000000ab", "renewed": ends }),
        }
    );
}

#[tokio::test]
async fn follower_that_was_away_gets_the_steps_and_every_end() {
    let mut site = Site::open().await;
    site.learn("192.0.2.1");
    site.learn("192.0.2.2");
    for (target, fields) in [
        ("/watch?session=00000000000000ab&serial=1", ""),
        // The id of the last event counts more than the URL, which names where the follower once began.
        ("/watch?session=00000000000000ab&serial=0", "Last-Event-ID: 00000000000000ab-1\r\n"),
    ] {
        let mut watch = site.watch(target, fields).await;
        let first = watch.next().await.unwrap();
        assert_eq!(first.data["reset"], json!(false));
        assert_eq!(first.data["announced"].as_array().unwrap().len(), 1);
        let ends = watch.next().await.unwrap();
        assert_eq!(ends.event, "renewed");
        assert_eq!(ends.data["renewed"].as_array().unwrap().len(), 2);
    }
    let mut watch = site.watch("/watch", "Last-Event-ID: nonsense\r\n").await;
    assert_eq!(watch.next().await.unwrap().data["reset"], json!(true));
}

/// The id and the mark of a `hold` event.
fn hold(received: Received) -> (String, u64) {
    assert_eq!((received.event.as_str(), received.id), ("hold", None));
    (received.data["follower"].as_str().unwrap().to_owned(), received.data["mark"].as_u64().unwrap())
}

async fn ack(site: &Site, (follower, mark): &(String, u64)) -> Reply {
    site.ask("POST", &format!("/ack?follower={follower}&mark={mark}"), "").await
}

#[tokio::test]
async fn follower_acknowledges_what_it_was_told() {
    let mut site = Site::open().await;
    let first = site.learn("192.0.2.1");
    let mut watch = site.watch("/watch?ack=1", "").await;
    assert_eq!(watch.next().await.unwrap().event, "delta");
    let begin = hold(watch.next().await.unwrap());
    assert_eq!(begin.1, 1);
    let joined = site.state.joins.take().pop().unwrap();
    assert_eq!((joined.outlet.state(), joined.who.as_str()), (SinkState::Down, "the follower at 127.0.0.1"));
    let ahead = ack(&site, &(begin.0.clone(), 2)).await;
    assert_eq!((ahead.status, ahead.text()), (409, "mark: this follower was told marks up to 1\n"));
    assert_eq!(joined.outlet.state(), SinkState::Down);
    assert_eq!((ack(&site, &begin).await.status, joined.outlet.state()), (204, SinkState::Up));

    // A new address, then a later end: both come before the mark that asks for them.
    let order = Arc::new(OrderedChange::empty(Session(0xab), 2, NOW));
    site.learn("192.0.2.2");
    let mut reply = joined.outlet.send(&order).unwrap();
    assert_eq!(watch.next().await.unwrap().id.as_deref(), Some("00000000000000ab-2"));
    let second = hold(watch.next().await.unwrap());
    assert_eq!(second, (begin.0.clone(), 2));
    assert_eq!(ack(&site, &begin).await.status, 204, "said again it says nothing new");
    assert!(tokio::time::timeout(Duration::from_millis(20), reply.wait()).await.is_err());
    assert_eq!(ack(&site, &second).await.status, 204);
    assert_eq!(reply.wait().await, Applied::Held);
    site.clock.advance(Duration::from_millis(100));
    site.draft.renew(&first, &need(site.clock.now()));
    site.draft.commit(site.clock.now());
    let mut reply = joined.outlet.send(&order).unwrap();
    assert_eq!(watch.next().await.unwrap().event, "renewed");
    let third = hold(watch.next().await.unwrap());
    assert_eq!((third.1, ack(&site, &third).await.status), (3, 204));
    assert_eq!(reply.wait().await, Applied::Held);

    // A flood of words changes nothing and is answered.
    for _ in 0..500 {
        assert_eq!(ack(&site, &third).await.status, 204);
    }
    // Its id ends with its stream, and what it was asked with it.
    let mut reply = joined.outlet.send(&order).unwrap();
    hold(watch.next().await.unwrap());
    drop(watch);
    assert_eq!(reply.wait().await, Applied::Failed);
    assert_eq!(ack(&site, &third).await.status, 404);
}

#[tokio::test]
async fn follower_that_comes_back_is_asked_after_its_ends() {
    let mut site = Site::open().await;
    site.learn("192.0.2.1");
    let mut watch = site.watch("/watch?session=00000000000000ab&serial=1&ack=1", "").await;
    assert_eq!(watch.next().await.unwrap().event, "delta");
    assert_eq!(watch.next().await.unwrap().event, "renewed");
    assert_eq!(hold(watch.next().await.unwrap()).1, 1);
    let mut plain = site.watch("/watch?ack=0", "").await;
    plain.next().await.unwrap();
    assert_eq!(site.state.joins.take().len(), 1, "one that does not ask is not asked");
}

#[tokio::test]
async fn streams_of_one_client_are_capped() {
    let site = Site::open().await;
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut watch = site.watch("/watch", "").await;
        watch.next().await.unwrap();
        open.push(watch);
    }
    let reply = site.get("/watch").await;
    assert_eq!((reply.status, reply.field("retry-after")), (429, Some("10")));
    assert_eq!(site.get("/stats").await.json()["streams"], json!(8));
    drop(open.pop());
    // The server notices the closed connection when it runs next.
    for _ in 0..100 {
        if site.get("/stats").await.json()["streams"] == json!(7) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the place of a closed stream was not given back");
}

#[tokio::test]
async fn stop_ends_streams_within_a_second() {
    let site = Site::open().await;
    let mut watch = site.watch("/watch", "").await;
    watch.next().await.unwrap();
    // An idle connection, and one that never ends its head.
    let _idle = TcpStream::connect(site.addr).await.unwrap();
    let mut half = TcpStream::connect(site.addr).await.unwrap();
    half.write_all(b"GET / HT").await.unwrap();
    site.shutdown.cancel();
    assert_eq!(watch.next().await, None);
    tokio::time::timeout(Duration::from_secs(2), site.served).await.unwrap().unwrap();
    assert!(TcpStream::connect(site.addr).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn half_a_head_is_waited_for_only_so_long() {
    let site = Site::open().await;
    let mut stream = TcpStream::connect(site.addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: local").await.unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}

#[tokio::test]
async fn huge_head_is_refused() {
    let site = Site::open().await;
    assert_eq!(site.ask("GET", "/", &format!("X: {}\r\n", "x".repeat(64 * 1024))).await.status, 431);
    assert_eq!(site.ask("GET", "/", &"X: y\r\n".repeat(100)).await.status, 431);
    assert_eq!(site.get("/stats").await.status, 200);
}

#[tokio::test]
async fn explain_says_why_a_name_is_tagged() {
    let mut site = Site::open().await;
    site.learn("192.0.2.1");
    let why = site.get("/explain?name=EU.zoom.us.").await.json();
    let expected = json!({
        "name": "eu.zoom.us", "tagged": true, "followed_from": null,
        "apps": [{ "app": "zoom", "verdict": "bypass", "trigger": "zoom.us", "location": "zones/zoom.list:3:1" }],
        "addresses": [{
            "address": "192.0.2.1", "first_seen": NOW.as_secs(), "last_seen": NOW.as_secs(),
            "told_until": NOW.as_secs() + 60, "end": NOW.as_secs() + 900,
        }],
    });
    assert_eq!(why, expected);
    let why = site.get("/explain?name=a.files.zoom.us").await.json();
    assert_eq!((&why["tagged"], &why["apps"][0]["verdict"]), (&json!(false), &json!("excepted")));
    let why = site.get("/explain?name=never.zoom.us").await.json();
    assert_eq!((&why["tagged"], &why["apps"][0]["verdict"]), (&json!(false), &json!("never")));
    let why = site.get("/explain?name=example.com").await.json();
    assert_eq!((&why["tagged"], &why["apps"], &why["addresses"]), (&json!(false), &json!([]), &json!([])));
    assert_eq!(site.get("/explain?name=b%C3%BCcher.example").await.json()["name"], json!("xn--bcher-kva.example"));
}

#[tokio::test]
async fn explain_says_why_an_address_is_in_the_set() {
    let mut site = Site::open().await;
    site.list_static("198.51.100.0/24");
    let hostile = Name::from_wire(b"\x08\"<>;\n\x1b\\\x00\x04zoom\x02us\0").unwrap();
    site.learn_for("198.51.100.7", hostile);
    let reply = site.get("/explain?address=::ffff:198.51.100.7").await;
    assert!(!reply.text().contains("\\u001b") && !reply.text().contains('\u{1b}'), "escapes of RFC 1035 first");
    let why = reply.json();
    assert_eq!(
        (&why["address"], &why["in_set"], &why["why_not"]),
        (&json!("198.51.100.7"), &json!(true), &Value::Null)
    );
    let app = json!({ "app": "zoom", "trigger": "198.51.100.0/24", "location": "zones/zoom.list:7:1" });
    assert_eq!(why["statics"], json!([{ "prefix": "198.51.100.0/24", "apps": [app] }]));
    assert_eq!(why["sightings"][0]["name"], json!("\\\"<>\\;\\010\\027\\\\\\000.zoom.us"));
    assert_eq!(why["sightings"][0]["end"], json!(NOW.as_secs() + 900));

    let why = site.get("/explain?address=127.0.0.1").await.json();
    assert_eq!((&why["in_set"], &why["why_not"]), (&json!(false), &json!("loopback (RFC 1122)")));
    let why = site.get("/explain?address=203.0.113.1").await.json();
    assert_eq!(why["why_not"], json!("no listed name was answered with it and no list holds it"));
}

#[tokio::test]
async fn counts_are_told_by_app_and_in_all() {
    let mut site = Site::open().await;
    site.list_static("198.51.100.0/24");
    site.learn("192.0.2.1");
    site.learn("2001:db8::1");
    let apps = site.get("/apps").await.json();
    assert_eq!(apps["apps"][0]["id"], json!("box"));
    let zoom = &apps["apps"][1];
    assert_eq!((&zoom["title"], &zoom["source"]), (&json!("Zoom"), &json!("https://zoom.example/list")));
    assert_eq!(
        (&zoom["names"], &zoom["prefixes"], &zoom["learned"]),
        (&json!(3), &json!(1), &json!({ "4": 1, "6": 1 }))
    );
    let stats = site.get("/stats").await.json();
    assert_eq!((&stats["serial"], &stats["upstreams"]), (&json!(3), &json!([])), "hooks add, they do not replace");
    assert_eq!((&stats["static"], &stats["learned"]), (&json!({ "4": 1, "6": 0 }), &json!({ "4": 1, "6": 1 })));
}

#[tokio::test]
async fn metrics_count_prefixes_and_requests() {
    let mut site = Site::open().await;
    site.learn("192.0.2.0");
    site.learn("192.0.2.1");
    site.get("/prefixes.txt").await;
    site.get("/prefixes.txt?app=teams").await;
    site.get("/watch/../../x").await;
    let text = site.get("/metrics").await;
    assert_eq!(text.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for line in [
        "greenlane_export_prefixes{family=\"4\"} 1\n",
        "greenlane_export_prefixes{family=\"6\"} 0\n",
        "greenlane_web_requests_total{endpoint=\"prefixes\",status=\"200\"} 1\n",
        "greenlane_web_requests_total{endpoint=\"prefixes\",status=\"400\"} 1\n",
        "greenlane_web_requests_total{endpoint=\"other\",status=\"404\"} 1\n",
    ] {
        assert!(text.text().contains(line), "{line}{}", text.text());
    }
}

#[tokio::test]
async fn page_runs_nothing_and_is_framed_nowhere() {
    let site = Site::open().await;
    let page = site.get("/").await;
    assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
    let policy = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    assert_eq!(page.field("content-security-policy"), Some(policy));
}

/// A follower without a socket: what it is sent, piece by piece, as it asks.
async fn follower(draft: &Draft) -> impl futures_util::Stream<Item = String> + use<> {
    let clock = Clock::manual(NOW);
    let state = state(draft, &clock, &Arc::new(AtomicBool::new(true)), Registry::new());
    let web = Arc::new(Web::new(state, CancellationToken::new()));
    let response = watch::watch(web, [127, 0, 0, 1].into(), Uri::from_static("/watch"), HeaderMap::new()).await;
    response.into_body().into_data_stream().map(|piece| String::from_utf8(piece.unwrap().to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn idle_stream_is_kept_alive_by_comments() {
    let draft = Draft::new(Session(0xab), NOW, &Registry::new());
    let mut pieces = Box::pin(follower(&draft).await);
    let begun = tokio::time::Instant::now();
    loop {
        let piece = pieces.next().await.unwrap();
        if piece == ": still here\n\n" {
            break;
        }
    }
    assert_eq!(begun.elapsed(), Duration::from_secs(15));
}

#[tokio::test]
async fn follower_that_does_not_read_starts_anew() {
    let mut site = Site::open().await;
    let mut pieces = Box::pin(follower(&site.draft).await);
    // The first event is read to its end, then the follower sleeps through more changes than are kept for it.
    assert!(pieces.next().await.unwrap().ends_with("\n\n"));
    for i in 0..2000_u32 {
        let addr = IpAddr::from((0x0b00_0000 + 2 * (i % 500)).to_be_bytes()).to_string();
        let sighting = site.learn(&addr);
        if i % 2 == 0 {
            site.draft.renew(&sighting, &need(NOW.after(Duration::from_secs(1))));
        }
        if i % 500 == 499 {
            while let Some(left) = site.draft.due(NOW.after(Duration::from_secs(1000))) {
                site.draft.remove(&left);
            }
        }
    }
    site.draft.commit(NOW);
    let event = pieces.next().await.unwrap();
    let serial = site.draft.reader().snapshot().serial();
    assert!(event.starts_with(&format!("event: delta\nid: 00000000000000ab-{serial}\n")), "{event:.100}");
    assert!(event.contains("\"reset\":true"), "{event:.200}");
    assert!(event.ends_with("\n\n"));
    site.learn("192.0.2.1");
    let event = pieces.next().await.unwrap();
    assert!(event.contains("\"reset\":false") && event.contains("192.0.2.1"), "and goes on from there: {event}");
}
