//! Consumers of the set: lists, deltas, streams and files of a real daemon, held to each other after real changes.
//!
//! The law of the feed: whoever applies every delta to what it had, holds exactly what the lists of that serial cover.
//! A [`Model`] does so, without knowing how the set works; [`covered`] compares it with a list address by address.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use greenlane::prefix::Prefix;
use hickory_proto::rr::RecordType;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::harness::{Client, Greenlane, PATIENCE, Setup};
use crate::upstream::{A, AAAA, Asked, Upstream, record};

/// The names of [`answer`] in words: `n7-20` has 20 addresses from the seventh block, `brief…` ones that end soon.
const LIST: &str = "# Demo\nlisted.example\n203.0.113.0/24\n2001:db8:1::/48\n";

/// Answers `n<block>-<count>.…` with that many addresses of a block of 256, every second one of them in a row.
fn answer(asked: &Asked) -> crate::upstream::Act {
    let name = asked.name();
    let label = name.split('.').next().unwrap_or_default();
    let numbers = label.trim_start_matches(|c: char| c.is_ascii_alphabetic()).split_once('-');
    let (block, count): (u32, u32) = match numbers {
        Some((block, count)) => (block.parse().unwrap(), count.parse().unwrap()),
        None => (0, 1),
    };
    let ttl = if label.starts_with("brief") { 1 } else { 300 };
    let address = |i: u32| 0xc612_0000 + block * 256 + i + i / 3;
    let reply = (0..count).fold(asked.reply(), |reply, i| match asked.qtype() {
        A => reply.answer(&record(&[0xc0, 12], A, ttl, &address(i).to_be_bytes())),
        AAAA => {
            let mut octets = [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            octets[12..].copy_from_slice(&address(i).to_be_bytes());
            reply.answer(&record(&[0xc0, 12], AAAA, ttl, &octets))
        }
        _ => reply,
    });
    if asked.via == crate::upstream::Via::Udp && count > 60 { asked.reply().truncated().act() } else { reply.act() }
}

async fn daemon() -> (Upstream, Greenlane) {
    let upstream = Upstream::start(answer).await;
    let greenlane = setup(&upstream).start().await;
    (upstream, greenlane)
}

fn setup(upstream: &Upstream) -> Setup {
    Setup::new(upstream.addr)
        .list("demo.list", LIST)
        .list("other.list", "# Other\nother.example\nboth.listed.example\n198.51.100.0/25\n")
        // Reloads are counted here; the folder's watch would make some of its own.
        .with("catalogue", "watch = false")
        .with("learn", "new-per-client-per-minute = 0\nmax-per-trigger = 32768")
}

// --- the law -------------------------------------------------------------------------------------------------------

/// Addresses as numbers, IPv4 apart from IPv6: what a list covers, as ranges that neither touch nor overlap.
fn covered(prefixes: impl IntoIterator<Item = Prefix>) -> Vec<(bool, u128, u128)> {
    let number = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => u128::from(u32::from(addr)),
        IpAddr::V6(addr) => u128::from(addr),
    };
    let mut ranges: Vec<_> = prefixes
        .into_iter()
        .map(|prefix| {
            let bits = if prefix.addr().is_ipv4() { 32 } else { 128 };
            let first = number(prefix.addr());
            let span =
                if prefix.len() == 0 { u128::MAX >> (128 - bits) } else { (1 << (bits - u32::from(prefix.len()))) - 1 };
            (prefix.addr().is_ipv6(), first, first + span)
        })
        .collect();
    ranges.sort_unstable();
    let mut merged: Vec<(bool, u128, u128)> = Vec::new();
    for (is_v6, first, last) in ranges {
        match merged.last_mut() {
            Some((same, _, end)) if *same == is_v6 && first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((is_v6, first, last)),
        }
    }
    merged
}

fn read_list(text: &str) -> Vec<Prefix> {
    text.lines().map(|line| line.parse().unwrap_or_else(|error| panic!("{line:?}: {error}"))).collect()
}

/// What somebody holds who follows the deltas.
#[derive(Debug, Default)]
struct Model {
    session: String,
    serial: u64,
    /// Apps by prefix or address; the origin stands with them.
    items: BTreeMap<String, Vec<String>>,
    resets: usize,
}

impl Model {
    /// Applies a change and holds it to what a change may be.
    #[track_caller]
    fn apply(&mut self, change: &Value) {
        let key =
            |item: &Value| item["prefix"].as_str().or_else(|| item["address"].as_str()).expect("an item").to_owned();
        let words = |item: &Value| {
            let apps = item["apps"].as_array().unwrap().iter();
            let mut words: Vec<String> = apps.map(|app| app.as_str().unwrap().to_owned()).collect();
            assert!(!words.is_empty() && words.is_sorted(), "{item}");
            words.push(item["origin"].as_str().unwrap().to_owned());
            words
        };
        if change["reset"].as_bool().unwrap() {
            self.items.clear();
            self.resets += 1;
        } else {
            assert_eq!(change["session"], self.session, "a step stays in its session");
            assert!(change["serial"].as_u64().unwrap() >= self.serial, "serials go up: {change}");
        }
        for item in change["announced"].as_array().unwrap() {
            let before = self.items.insert(key(item), words(item));
            assert_ne!(before, Some(words(item)), "announced again without a change: {item}");
            assert_eq!(item["address"].is_string(), item["end"].is_u64(), "hosts have ends, prefixes none: {item}");
        }
        for item in change["withdrawn"].as_array().unwrap() {
            assert!(self.items.remove(&key(item)).is_some(), "withdrawn, but never announced: {item}");
        }
        self.session = change["session"].as_str().unwrap().to_owned();
        self.serial = change["serial"].as_u64().unwrap();
    }

    /// What it covers, of all or of the items with a word: an app or an origin.
    fn covered(&self, word: Option<&str>) -> Vec<(bool, u128, u128)> {
        let items = self.items.iter().filter(|(_, words)| word.is_none_or(|word| words.iter().any(|own| own == word)));
        covered(items.map(|(key, _)| match key.parse::<IpAddr>() {
            Ok(addr) => Prefix::host(addr),
            Err(_) => key.parse().unwrap(),
        }))
    }

    fn tag(&self) -> String {
        format!("\"{}-{}\"", self.session, self.serial)
    }
}

/// Brings the model to the present by `/delta` and holds it to every list.
async fn hold(greenlane: &Greenlane, model: &mut Model) {
    for _ in 0..50 {
        let path = match model.serial {
            0 if model.session.is_empty() => "/delta".to_owned(),
            serial => format!("/delta?session={}&serial={serial}", model.session),
        };
        model.apply(&greenlane.json(&path).await);
        if agrees(greenlane, model).await {
            return;
        }
    }
    panic!("the set never rests");
}

/// Compares with the lists, if they are of the model's serial.
async fn agrees(client: &Client, model: &Model) -> bool {
    for (query, word) in
        [("", None), ("?app=demo", Some("demo")), ("?app=other", Some("other")), ("?origin=learned", Some("learned"))]
    {
        let page = client.get(&format!("/prefixes.txt{query}")).await;
        if page.header("etag") != Some(&model.tag()) {
            return false;
        }
        let list = read_list(&page.body);
        assert!(list.is_sorted(), "{query}: {list:?}");
        assert_eq!(covered(list.iter().copied()), model.covered(word), "{query} at {}", model.tag());
    }
    true
}

// --- the stream ----------------------------------------------------------------------------------------------------

/// One event of `/watch`.
#[derive(Debug)]
struct Event {
    name: String,
    id: Option<String>,
    data: Value,
}

/// Somebody who follows `/watch`.
struct Follower {
    stream: TcpStream,
    text: Vec<u8>,
}

impl Follower {
    async fn new(web: SocketAddr, query: &str, fields: &str) -> Self {
        Self::over(TcpStream::connect(web).await.unwrap(), web, query, fields).await
    }

    /// Follows over a connection; by HTTP/1.0, so the body comes as it is until the end.
    async fn over(mut stream: TcpStream, web: SocketAddr, query: &str, fields: &str) -> Self {
        let request = format!("GET /watch{query} HTTP/1.0\r\nHost: {web}\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { stream, text: Vec::new() }
    }

    /// Reads the answer's head; returns its status line and fields.
    async fn head(&mut self) -> String {
        self.until(b"\r\n\r\n").await.expect("a head")
    }

    /// Reads up to and over `end`; `None` if the stream ends before.
    async fn until(&mut self, end: &[u8]) -> Option<String> {
        loop {
            if let Some(at) = self.text.windows(end.len()).position(|part| part == end) {
                let read: Vec<u8> = self.text.drain(..at + end.len()).collect();
                return Some(String::from_utf8(read).unwrap());
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.text)).await.expect("an event");
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Returns the next event, comments left out.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let block = self.until(b"\n\n").await?;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            let Some(name) = field("event") else {
                assert!(block.starts_with(':'), "{block:?}");
                continue;
            };
            let data = serde_json::from_str(field("data").expect("data")).unwrap();
            return Some(Event { name: name.to_owned(), id: field("id").map(str::to_owned), data });
        }
    }

    /// Applies events until the model has come to `serial`.
    async fn follow(&mut self, model: &mut Model, serial: u64) {
        while model.serial < serial || model.session.is_empty() {
            let event = self.next().await.expect("the stream goes on");
            if event.name == "delta" {
                model.apply(&event.data);
                assert_eq!(event.id, Some(format!("{}-{}", model.session, model.serial)));
            } else {
                assert_eq!((event.name.as_str(), &event.id), ("renewed", &None));
                assert_eq!(event.data["session"], model.session);
            }
        }
    }
}

#[tokio::test]
async fn deltas_and_streams_lead_to_what_the_lists_cover() {
    let upstream = Upstream::start(answer).await;
    let greenlane = setup(&upstream)
        .with("learn", "min-hold = \"1s\"\ngrace = \"0s\"")
        .with("log", "level = \"info\"")
        .start()
        .await;
    let (mut polled, mut watched) = (Model::default(), Model::default());
    hold(&greenlane, &mut polled).await;
    assert_eq!(polled.items.len(), 3, "static prefixes: {polled:?}");
    let mut follower = Follower::new(greenlane.web, "", "").await;
    let head = follower.head().await;
    assert!(head.starts_with("HTTP/1.0 200") && head.contains("text/event-stream"), "{head}");
    let reloads = AtomicU32::new(0);
    let reload = async |file: &str, text: &str| {
        std::fs::write(greenlane.path("zones").join(file), text).unwrap();
        greenlane.signal("HUP");
        let done = f64::from(reloads.fetch_add(1, Ordering::Relaxed) + 1);
        greenlane.until_metric("greenlane_catalogue_reloads_total{result=\"done\"}", |count| count >= done).await;
    };
    for step in 0..16 {
        match step {
            0 => drop(greenlane.ask("n1-20.listed.example", RecordType::A).await),
            // The same addresses for a name of both apps, and of one more name.
            1 => drop(greenlane.ask("n1-20.both.listed.example", RecordType::A).await),
            2 => drop(greenlane.ask("n1-30.other.example", RecordType::A).await),
            3 => drop(greenlane.ask("n2-25.listed.example", RecordType::AAAA).await),
            4 => drop(greenlane.ask_tcp("n3-190.listed.example", RecordType::A).await),
            5 => drop(greenlane.ask("n9-5.unlisted.example", RecordType::A).await),
            // These leave by themselves.
            6 => drop(greenlane.ask("brief4-40.listed.example", RecordType::A).await),
            // A prefix around learned hosts comes, and goes with its list.
            7 => reload("more.list", "# More\n198.18.1.0/24\nother.example\n").await,
            8 => drop(greenlane.ask("n5-10.other.example", RecordType::A).await),
            9 => {
                let is_gone = async || !greenlane.prefixes("").await.iter().any(|line| line.starts_with("198.18.4."));
                assert!(!is_gone().await, "they have come");
                until("what ends leaves", is_gone).await;
            }
            10 => reload("more.list", "# More\n198.18.1.0/28\n").await,
            11 => reload("demo.list", "# Demo\nboth.listed.example\n203.0.113.0/25\n").await,
            12 => drop(greenlane.ask("n6-10.listed.example", RecordType::A).await),
            13 => reload("demo.list", LIST).await,
            14 => drop(greenlane.ask("n6-10.listed.example", RecordType::A).await),
            _ => {
                let asked = (10..40).map(|i| {
                    let client = *greenlane;
                    async move { client.ask(&format!("n{i}-3.listed.example"), RecordType::A).await }
                });
                futures_util::future::join_all(asked).await;
            }
        }
        let before = polled.serial;
        hold(&greenlane, &mut polled).await;
        // An end may pass between the two, and makes one more serial.
        for round in 0.. {
            follower.follow(&mut watched, polled.serial).await;
            if agrees(&greenlane, &watched).await {
                break;
            }
            assert!(round < 10, "the stream after step {step}");
            hold(&greenlane, &mut polled).await;
        }
        let moves = !matches!(step, 5 | 9 | 12);
        assert!(!moves || polled.serial > before, "step {step} made a serial");
    }
    assert_eq!((polled.resets, watched.resets), (1, 1), "only the first answer was the whole set");
    // Whoever was away for all of it gets there in one step.
    let mut late = Model { session: polled.session.clone(), serial: 1, ..Model::default() };
    let from_1 = greenlane.json(&format!("/delta?session={}&serial=1", late.session)).await;
    assert_eq!(from_1["reset"], false);
    for item in greenlane_statics() {
        late.items.insert(item.0.to_owned(), item.1.iter().map(|&word| word.to_owned()).collect());
    }
    late.apply(&from_1);
    assert!(agrees(&greenlane, &late).await || late.serial > polled.serial);
}

/// What serial 1 of [`setup`] holds: the static prefixes.
fn greenlane_statics() -> [(&'static str, &'static [&'static str]); 3] {
    [
        ("198.51.100.0/25", &["other", "static"]),
        ("203.0.113.0/24", &["demo", "static"]),
        ("2001:db8:1::/48", &["demo", "static"]),
    ]
}

#[tokio::test]
async fn a_follower_goes_on_where_it_broke_off_or_starts_anew() {
    let (_upstream, greenlane) = daemon().await;
    greenlane.ask("n1-3.listed.example", RecordType::A).await;
    let mut model = Model::default();
    hold(&greenlane, &mut model).await;
    let (session, serial) = (model.session.clone(), model.serial);
    greenlane.ask("n2-2.listed.example", RecordType::A).await;
    let now = greenlane.json("/delta").await["serial"].as_u64().unwrap();
    // By the last event's id, which counts more than the query.
    let id = format!("Last-Event-ID: {session}-{serial}\r\n");
    let mut follower = Follower::new(greenlane.web, &format!("?session={session}&serial=0"), &id).await;
    follower.head().await;
    follower.follow(&mut model, now).await;
    assert_eq!(model.resets, 1, "no reset but the model's own first");
    assert!(agrees(&greenlane, &model).await);
    // What it missed of renewals comes after it, the ends of all hosts.
    let event = follower.next().await.unwrap();
    assert_eq!((event.name.as_str(), event.data["renewed"].as_array().unwrap().len()), ("renewed", 5));
    // Of another session, from the future, or no id of ours: the whole set.
    for held in [format!("?session=0123456789abcdef&serial={serial}"), format!("?session={session}&serial={}", now + 9)]
    {
        let change = greenlane.json(&format!("/delta{held}")).await;
        assert_eq!((&change["reset"], change["serial"].as_u64()), (&Value::Bool(true), Some(now)), "{held}");
        let mut follower = Follower::new(greenlane.web, &held, "").await;
        follower.head().await;
        let event = follower.next().await.unwrap();
        assert_eq!((event.name.as_str(), &event.data["reset"]), ("delta", &Value::Bool(true)), "{held}");
    }
    let current = greenlane.json(&format!("/delta?session={session}&serial={now}")).await;
    assert_eq!(
        (&current["reset"], &current["announced"], &current["withdrawn"]),
        (&false.into(), &Value::Array(vec![]), &Value::Array(vec![]))
    );
}

#[tokio::test]
async fn a_later_end_is_told_to_followers_without_a_serial() {
    let (_upstream, greenlane) = daemon().await;
    greenlane.ask("brief1-2.listed.example", RecordType::A).await;
    let mut model = Model::default();
    let mut follower = Follower::new(greenlane.web, "", "").await;
    follower.head().await;
    let first = follower.next().await.unwrap();
    model.apply(&first.data);
    let end_of = |items: &Value| {
        let hosts = items.as_array().unwrap().iter().filter(|item| item["address"].is_string());
        hosts.map(|item| item["end"].as_u64().unwrap()).min().unwrap()
    };
    let end = end_of(&first.data["announced"]);
    // The answer lives a second; asked again it moves the ends, at the latest when the slack is used up.
    let renewed = async {
        loop {
            let event = follower.next().await.unwrap();
            if event.name == "renewed" && end_of(&event.data["renewed"]) > end {
                return event;
            }
        }
    };
    let asking = async {
        loop {
            sleep(Duration::from_millis(300)).await;
            greenlane.ask("brief1-2.listed.example", RecordType::A).await;
        }
    };
    let event = tokio::select! {
        event = timeout(Duration::from_secs(7), renewed) => event.expect("a later end"),
        () = asking => unreachable!(),
    };
    assert_eq!(event.id, None);
    assert_eq!(greenlane.json("/delta").await["serial"].as_u64(), Some(model.serial), "a later end makes no serial");
}

#[tokio::test]
async fn a_follower_that_reads_slowly_delays_nobody_and_still_arrives() {
    let (_upstream, greenlane) = daemon().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(greenlane.web).await.unwrap();
    let mut slow = Follower::over(stream, greenlane.web, "", "").await;
    let (mut quick, mut model) = (Follower::new(greenlane.web, "", "").await, Model::default());
    quick.head().await;
    // Each name brings 40 addresses: some 3 kB an event, more in all than the sockets hold.
    for round in 0..20 {
        let asked = (0..25).map(|i| {
            let client = *greenlane;
            async move { client.ask(&format!("n{}-40.listed.example", 1 + round * 25 + i), RecordType::A).await }
        });
        futures_util::future::join_all(asked).await;
        let serial = greenlane.json("/delta?session=0000000000000000&serial=1").await["serial"].as_u64().unwrap();
        quick.follow(&mut model, serial).await;
    }
    assert_eq!(model.resets, 1, "who reads gets every step");
    assert_eq!(model.items.len(), 3 + 20 * 25 * 40);
    let mut behind = Model::default();
    slow.head().await;
    slow.follow(&mut behind, model.serial).await;
    assert_eq!(behind.items, model.items, "after {} resets", behind.resets);
    assert!(agrees(&greenlane, &behind).await);
}

#[tokio::test]
async fn firewalls_that_ask_for_a_list_and_never_read_it_delay_nobody() {
    let upstream = Upstream::start(answer).await;
    // More than the sockets hold: every second host, so that none joins its neighbour.
    let hosts: String = (0..60_000_u32).map(|n| format!("{}\n", Ipv4Addr::from(0x0800_0000 + n * 2))).collect();
    let greenlane = setup(&upstream).list("many.list", &format!("# Many\n{hosts}")).start().await;
    let mut hanging = Vec::new();
    for _ in 0..100 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(greenlane.web).await.unwrap();
        stream.write_all(b"GET /prefixes.json HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        // Its answer has begun, and does not fit.
        stream.readable().await.unwrap();
        hanging.push(stream);
    }
    assert!(greenlane.text("/prefixes.txt").await.lines().count() >= 60_000);
    assert!(!greenlane.ask("n1.listed.example", RecordType::A).await.answers.is_empty());
    assert_eq!(greenlane.get("/readyz").await.status, 200);
    // Who reads at last gets what was asked for.
    let mut late = hanging.pop().unwrap();
    let mut read = vec![0; 64 * 1024];
    let mut len = 0;
    while len < 64 << 10 {
        let more = timeout(PATIENCE, late.read(&mut read)).await.expect("more of the list").unwrap();
        assert!(more > 0, "cut off after {len} octets");
        len += more;
    }
}

#[tokio::test]
async fn streams_are_capped_and_end_with_the_daemon() {
    let (_upstream, mut greenlane) = daemon().await;
    let mut followers = Vec::new();
    for _ in 0..8 {
        let mut follower = Follower::new(greenlane.web, "", "").await;
        assert!(follower.head().await.starts_with("HTTP/1.0 200"));
        assert_eq!(follower.next().await.unwrap().name, "delta");
        followers.push(follower);
    }
    let ninth = greenlane.get("/watch").await;
    assert_eq!(ninth.status, 429, "{ninth:?}");
    assert!(ninth.header("retry-after").is_some());
    drop(followers.pop());
    greenlane.until_metric("greenlane_set_serial", |_| true).await;
    greenlane.signal("TERM");
    for mut follower in followers {
        while follower.next().await.is_some() {}
    }
    assert_eq!(greenlane.ended().await, Some(0));
}

// --- the lists -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn every_form_holds_the_same_prefixes_under_one_tag() {
    let (_upstream, greenlane) = daemon().await;
    greenlane.ask("n1-40.listed.example", RecordType::A).await;
    greenlane.ask("n2-40.both.listed.example", RecordType::AAAA).await;
    let text = greenlane.get("/prefixes.txt").await;
    let expected = read_list(&text.body);
    assert!(expected.len() > 40 && text.body.ends_with('\n') && !text.body.contains('\r'));
    let found = |form: &str, body: &str| -> Vec<String> {
        match form {
            "json" => {
                let value: Value = serde_json::from_str(body).unwrap();
                value["prefixes"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
            }
            "csv" => body.split("\r\n").skip(1).filter_map(|row| Some(row.split_once(',')?.0.to_owned())).collect(),
            "ipset" => {
                let adds = body.lines().filter_map(|line| line.strip_prefix("add ")?.split(' ').nth(1));
                adds.map(str::to_owned).collect()
            }
            "nft" => {
                let lines = body.lines().map(|line| line.trim_end_matches(','));
                lines.filter(|line| line.parse::<Prefix>().is_ok()).map(str::to_owned).collect()
            }
            "rsc" => {
                let address = body.lines().filter_map(|line| line.split_once("address=")?.1.split(' ').next());
                address.map(|text| text.trim_matches('"').to_owned()).collect()
            }
            _ => body.lines().map(str::to_owned).collect(),
        }
    };
    for (form, content_type) in [
        ("txt", "text/plain"),
        ("json", "application/json"),
        ("csv", "text/csv"),
        ("nft", "text/plain"),
        ("ipset", "text/plain"),
        ("rsc", "text/plain"),
    ] {
        let page = greenlane.get(&format!("/prefixes.{form}")).await;
        assert_eq!(page.status, 200);
        assert!(page.header("content-type").unwrap().starts_with(content_type), "{form}: {page:?}");
        assert_eq!(page.header("etag"), text.header("etag"), "{form}");
        assert!(page.header("last-modified").is_some(), "{form}");
        let mut prefixes: Vec<Prefix> = found(form, &page.body).iter().map(|text| text.parse().unwrap()).collect();
        prefixes.sort_unstable();
        assert_eq!(prefixes, expected, "{form}: {}", page.body);
        let head = greenlane.request("HEAD", &format!("/prefixes.{form}"), &[]).await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{form}");
        for field in ["etag", "last-modified", "content-type", "content-length", "vary"] {
            assert_eq!(head.header(field), page.header(field), "{form}: {field}");
        }
    }
    assert_eq!(greenlane.text("/domains.txt").await, "both.listed.example\nlisted.example\nother.example\n");
    assert_eq!(greenlane.text("/domains.txt?app=other").await, "both.listed.example\nother.example\n");
}

#[tokio::test]
async fn a_list_is_sent_again_when_it_has_changed_and_only_then() {
    let (_upstream, greenlane) = daemon().await;
    // Enough to be worth compressing.
    for name in ["n1-40.listed.example", "n2-40.listed.example", "n3-40.listed.example"] {
        greenlane.ask(name, RecordType::A).await;
    }
    let with = async |fields: &[(&str, &str)]| greenlane.request("GET", "/prefixes.txt", fields).await;
    let page = with(&[]).await;
    let (tag, date) = (page.header("etag").unwrap(), page.header("last-modified").unwrap());
    let other = format!("W/\"x\", {tag}");
    for (fields, status) in [
        (&[("If-None-Match", tag)][..], 304),
        (&[("If-None-Match", &other)], 304),
        (&[("If-None-Match", "*")], 304),
        (&[("If-None-Match", "\"x\"")], 200),
        // With If-None-Match present the date does not count (RFC 9110 §13.1.3).
        (&[("If-None-Match", "\"x\""), ("If-Modified-Since", date)], 200),
        (&[("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT")], 200),
        (&[("If-Modified-Since", "yesterday")], 200),
        (&[("If-Match", "\"x\"")], 412),
    ] {
        let again = with(fields).await;
        assert_eq!(again.status, status, "{fields:?}: {again:?}");
        assert!(status != 304 || again.body.is_empty());
        assert!(status != 304 || again.header("etag") == Some(tag), "{again:?}");
    }
    // Compressed, it is another representation of the same list.
    let packed = with(&[("Accept-Encoding", "gzip")]).await;
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert_eq!(packed.header("etag"), Some(&*format!("{}-gz\"", tag.trim_end_matches('"'))));
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(&*packed.octets).read_to_string(&mut unpacked).unwrap();
    assert_eq!(unpacked, page.body);
    // A hit changes nothing; a new address does.
    greenlane.ask("n1-40.listed.example", RecordType::A).await;
    assert_eq!(with(&[("If-None-Match", tag)]).await.status, 304);
    greenlane.ask("n4-1.listed.example", RecordType::A).await;
    let changed = with(&[("If-None-Match", tag), ("If-Modified-Since", date)]).await;
    assert_eq!(changed.status, 200);
    assert_ne!(changed.header("etag"), Some(tag));
    // Who asks by the old date alone does not miss it, though it is the same second.
    assert_eq!(with(&[("If-Modified-Since", date)]).await.status, 200);
}

#[tokio::test]
async fn a_wrong_request_gets_one_line_and_no_list() {
    let (_upstream, greenlane) = daemon().await;
    for (path, line) in [
        ("/prefixes.txt?famly=4", "unknown parameter `famly`, expected family, app, origin, group or max"),
        ("/prefixes.nft?app=nobody", "unknown app `nobody`"),
        ("/delta?serial=1", "session and serial go together, session is missing"),
        ("/explain", "expected one parameter, name or address"),
        ("/explain?address=10.0.0.0/8", "address: expected an IPv4 or IPv6 address without a length"),
        ("/apps?x=1", "unknown parameter `x`, expected none"),
    ] {
        let page = greenlane.get(path).await;
        assert_eq!((page.status, page.body.trim_end()), (400, line), "{path}");
    }
    for (method, path, status) in
        [("POST", "/prefixes.txt", 405), ("DELETE", "/delta", 405), ("GET", "/prefixes.xml", 404), ("GET", "/etc", 404)]
    {
        assert_eq!(greenlane.request(method, path, &[]).await.status, status, "{method} {path}");
    }
    let allow = greenlane.request("PUT", "/prefixes.txt", &[]).await;
    assert!(allow.header("allow").is_some_and(|allow| allow.contains("GET") && allow.contains("HEAD")), "{allow:?}");
    // A page that a browser was lured to must not read for it (DNS rebinding).
    let lured = greenlane.request("GET", "/explain?name=a.example", &[("Host", "evil.example")]).await;
    assert_eq!(lured.status, 421);
    assert!(!lured.body.contains("a.example"));
}

#[tokio::test]
async fn tables_and_explanations_follow_the_set() {
    let (_upstream, greenlane) = daemon().await;
    for path in ["/readyz", "/healthz"] {
        assert_eq!(greenlane.get(path).await.status, 200, "{path}");
    }
    greenlane.ask("n1-4.listed.example", RecordType::A).await;
    greenlane.ask("n1-4.both.listed.example", RecordType::A).await;
    greenlane.ask("n2-3.listed.example", RecordType::AAAA).await;
    let apps = greenlane.json("/apps").await;
    let of = |id: &str| apps["apps"].as_array().unwrap().iter().find(|app| app["id"] == id).unwrap().clone();
    let (demo, other) = (of("demo"), of("other"));
    assert_eq!((&demo["title"], &demo["names"], &demo["prefixes"]), (&"Demo".into(), &1.into(), &2.into()));
    assert_eq!((&demo["learned"]["4"], &demo["learned"]["6"]), (&4.into(), &3.into()));
    assert_eq!((&other["learned"]["4"], &other["learned"]["6"]), (&4.into(), &0.into()));
    let stats = greenlane.json("/stats").await;
    assert_eq!(stats["upstreams"][0]["place"], "upstream-1", "{stats}");
    assert_eq!(stats["upstreams"][0]["up"], true);
    assert_eq!(stats["generation"], 1);
    let why = greenlane.json("/explain?address=198.18.1.0").await;
    assert_eq!((&why["in_set"], why["sightings"].as_array().unwrap().len()), (&true.into(), 2), "{why}");
    let both =
        why["sightings"].as_array().unwrap().iter().find(|seen| seen["name"] == "n1-4.both.listed.example").unwrap();
    let triggers: Vec<&str> =
        both["apps"].as_array().unwrap().iter().map(|app| app["trigger"].as_str().unwrap()).collect();
    assert_eq!(triggers, ["both.listed.example", "listed.example"], "{both}");
    assert!(both["end"].as_u64() > both["told_until"].as_u64());
    let static_ = greenlane.json("/explain?address=203.0.113.9").await;
    assert_eq!(static_["statics"][0]["prefix"], "203.0.113.0/24");
    let index = greenlane.get("/").await;
    assert!(index.status == 200 && index.header("content-type").unwrap().starts_with("text/html"));
}

// --- the files -----------------------------------------------------------------------------------------------------

/// A folder of our own, and the lines of an `[[export.file]]` in it.
fn export(folder: &Path, file: &str, format: &str, on_change: &[&str]) -> String {
    let words: Vec<String> = on_change.iter().map(|word| format!("{word:?}")).collect();
    let path = folder.join(file);
    format!("path = {path:?}\nformat = \"{format}\"\non-change = [{}]\n", words.join(", "))
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    for _ in 0..PATIENCE.as_millis() / 20 {
        if is_so().await {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain: {what}");
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn files_follow_the_set_and_their_commands_run_after_each_change() {
    let upstream = Upstream::start(answer).await;
    let folder = TempDir::new().unwrap();
    let (log, text) = (folder.path().join("log"), folder.path().join("list.txt"));
    let script = format!("wc -l < {} >> {}", text.display(), log.display());
    let files = [
        export(folder.path(), "list.txt", "txt", &["sh", "-c", &script]),
        export(folder.path(), "list.nft", "nft", &["/no/such/program"]),
        export(folder.path(), "list.json", "json", &["sh", "-c", "exit 3"]),
    ]
    .join("[[export.file]]\n");
    let greenlane = setup(&upstream).with("[export.file]", &files).start().await;
    let counted = |lines: usize| {
        let log = &log;
        async move || read(log).lines().next_back().is_some_and(|line| line.trim() == lines.to_string())
    };
    until("the command after the first write", counted(3)).await;
    for (step, name) in ["n1-2.listed.example", "n2-2.listed.example", "n3-2.listed.example"].iter().enumerate() {
        greenlane.ask(name, RecordType::A).await;
        let list = greenlane.text("/prefixes.txt").await;
        until("the list in the file", async || read(&text) == list).await;
        until("the command after it", counted(4 + step)).await;
        for form in ["nft", "json"] {
            let list = greenlane.text(&format!("/prefixes.{form}")).await;
            until(form, async || read(&folder.path().join(format!("list.{form}"))) == list).await;
        }
    }
    assert_eq!(read(&log).lines().count(), 4, "one run a change: {}", read(&log));
    let runs = |result: &str| format!("greenlane_export_commands_total{{result=\"{result}\"}}");
    for (result, count) in [("done", 4.0), ("not_started", 4.0), ("failed", 4.0)] {
        greenlane.until_metric(&runs(result), |value| value == count).await;
    }
    assert_eq!(greenlane.metric("greenlane_export_file_writes_total{result=\"done\"}").await, 12.0);
    // Told once each, not at every change.
    let log = greenlane.log();
    assert_eq!(log.matches("the on-change command").count(), 2, "{log}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4, "nothing is left beside the files");
}

#[tokio::test]
async fn a_reader_never_sees_a_part_of_a_file() {
    let upstream = Upstream::start(answer).await;
    let folder = TempDir::new().unwrap();
    let greenlane =
        setup(&upstream).with("[export.file]", &export(folder.path(), "list.json", "json", &[])).start().await;
    let path: PathBuf = folder.path().join("list.json");
    until("the first write", async || path.exists()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, reading) = (Arc::clone(&stop), path.clone());
    let reader = std::thread::spawn(move || {
        let (mut last, mut seen) = (0, 0);
        while !stopped.load(Ordering::Relaxed) {
            let text = std::fs::read_to_string(&reading).expect("the file is always there");
            let value: Value = serde_json::from_str(&text).expect("a whole list");
            let serial = value["serial"].as_u64().unwrap();
            assert!(serial >= last, "lists do not go back");
            seen += usize::from(serial > last);
            last = serial;
        }
        (last, seen)
    });
    // Ten lists, the last ones of some 3,000 lines.
    for round in 0..10 {
        let asked = (0..10).map(|i| {
            let client = *greenlane;
            async move { client.ask(&format!("n{}-40.listed.example", 1 + round * 10 + i), RecordType::A).await }
        });
        futures_util::future::join_all(asked).await;
        sleep(Duration::from_millis(250)).await;
    }
    let serial = greenlane.json("/prefixes.json").await["serial"].as_u64().unwrap();
    until("the last list", async || read(&path).contains(&format!("\"serial\":{serial},"))).await;
    sleep(Duration::from_millis(50)).await;
    stop.store(true, Ordering::Relaxed);
    let (last, seen) = reader.join().unwrap();
    assert_eq!(last, serial);
    assert!(seen >= 5, "{seen} lists were seen");
}

#[tokio::test]
async fn a_folder_that_goes_away_is_told_counted_and_tried_again() {
    let upstream = Upstream::start(answer).await;
    let folder = TempDir::new().unwrap();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let greenlane = setup(&upstream)
        .with("[export.file]", &export(&inner, "list.txt", "txt", &[]))
        .with("log", "level = \"info\"")
        .start()
        .await;
    let path = inner.join("list.txt");
    until("the first write", async || path.exists()).await;
    let before = read(&path);
    std::fs::rename(&inner, folder.path().join("moved")).unwrap();
    let failed = "greenlane_export_file_writes_total{result=\"failed\"}";
    assert_eq!(greenlane.metric(failed).await, 0.0);
    greenlane.ask("n1-5.listed.example", RecordType::A).await;
    greenlane.until_metric(failed, |count| count >= 1.0).await;
    // Nothing else suffers, and the old list stays where it is.
    greenlane.ask("n2-5.listed.example", RecordType::A).await;
    let list = greenlane.text("/prefixes.txt").await;
    assert!(list.contains("198.18.2.0"), "{list}");
    assert_eq!(read(&folder.path().join("moved/list.txt")), before);
    assert!(!path.exists());
    // Something else in its place does not work either.
    std::fs::write(&inner, "a file").unwrap();
    let count = greenlane.metric(failed).await;
    greenlane.until_metric(failed, |now| now > count).await;
    std::fs::remove_file(&inner).unwrap();
    std::fs::rename(folder.path().join("moved"), &inner).unwrap();
    until("the list of now", async || read(&path) == list).await;
    let log = greenlane.log();
    assert_eq!(log.matches("the export file cannot be written, trying on").count(), 1, "told once: {log}");
    greenlane.until_metric("greenlane_set_serial", |_| true).await;
    until("the good news", async || greenlane.log().contains("the export file is written again")).await;
}
