//! `greenlane sync`: a firewall elsewhere follows real resolvers, lying ones, and none.

mod acks;
pub(crate) mod agent;
mod kernel;
mod resolver;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use greenlane::clock::Clock;
use hickory_proto::rr::RecordType;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::harness::{Greenlane, Setup};
use agent::{Agent, command, run};
use resolver::{Page, Resolver};

fn url(greenlane: &Greenlane) -> String {
    format!("http://{}", greenlane.web)
}

/// Unix seconds.
fn now() -> u64 {
    Clock::system().now().as_secs()
}

/// A change as a resolver tells it: hosts with the seconds until their ends, and static prefixes.
fn whole(session: u64, serial: u64, hosts: &[(&str, u64)], statics: &[&str]) -> String {
    let mut items: Vec<String> =
        statics.iter().map(|prefix| format!(r#"{{"prefix":"{prefix}","origin":"static","apps":["box"]}}"#)).collect();
    items.extend(hosts.iter().map(|(addr, secs)| {
        format!(r#"{{"address":"{addr}","origin":"learned","apps":["zoom"],"end":{}}}"#, now() + secs)
    }));
    let items = items.join(",");
    format!(r#"{{"session":"{session:016x}","serial":{serial},"reset":true,"announced":[{items}],"withdrawn":[]}}"#)
}

/// The word after `until` of a line, in Unix seconds.
fn until_of(line: &str) -> i64 {
    let word = line.split(' ').skip_while(|word| *word != "until").nth(1).unwrap();
    word.parse::<jiff::Timestamp>().unwrap().as_second()
}

#[tokio::test]
async fn once_prints_the_present_set_without_any_privilege() {
    let upstream = crate::firewall::numbering().await;
    let lists = "# Demo\nlisted.example\n198.51.100.0/24\n";
    let greenlane = Setup::new(upstream.addr).list("demo.list", lists).start().await;
    greenlane.ask("n7.listed.example", RecordType::A).await;
    let output = run(command(&[url(&greenlane)], "--once --dry-run")).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((lines.len(), lines[0]), (2, "+ 198.51.100.0/24 (demo)"), "{printed}");
    assert!(lines[1].starts_with("+ 203.0.113.7/32 until ") && lines[1].ends_with("Z (demo)"), "{printed}");
    let left = until_of(lines[1]) - i64::try_from(now()).unwrap();
    assert!((880..=910).contains(&left), "a TTL of a minute, ten of hold, five of grace: {left}");
}

#[tokio::test]
async fn changes_are_followed_as_they_happen() {
    let upstream = crate::firewall::numbering().await;
    let greenlane = Setup::new(upstream.addr).with("learn", "min-hold = \"1s\"\ngrace = \"1s\"").start().await;
    let agent = Agent::start(&[url(&greenlane)], "--dry-run").await;
    agent.metrics.until_metric("greenlane_sync_followed{resolver=\"resolver-1\"}", |value| value == 1.0).await;
    greenlane.ask("n7.listed.example", RecordType::A).await;
    agent.until_line("+ 203.0.113.7/32 until ").await;
    fs::write(greenlane.path("zones/demo.list"), "# Demo\nother.example\n198.51.100.0/24\n").unwrap();
    greenlane.signal("HUP");
    agent.until_line("+ 198.51.100.0/24").await;
    greenlane.signal("HUP");
    agent.until_line("- 203.0.113.7/32").await;
    assert_eq!(agent.metrics.metric("greenlane_sync_entries{family=\"4\",origin=\"static\"}").await, 1.0);
    assert_eq!(agent.metrics.metric("greenlane_sync_entries{family=\"4\",origin=\"learned\"}").await, 0.0);
}

#[tokio::test]
async fn nothing_is_taken_that_this_host_does_not_admit() {
    let hosts =
        [("10.0.0.1", 60), ("127.0.0.1", 60), ("8.8.8.8", 60), ("9.9.9.9", 60), ("fe80::1", 60), ("ff02::1", 60)];
    let prefixes = ["0.0.0.0/0", "10.0.0.0/8", "20.0.0.0/15", "20.50.0.0/16", "2600::/19", "192.168.0.0/24"];
    let resolver = Resolver::start(Page::json(whole(1, 1, &hosts, &prefixes))).await;
    let words = "--dry-run --never 9.9.9.0/24 --widest-ipv4 16 --widest-ipv6 32 --max-total 5";
    let agent = Agent::start(&[resolver.url()], words).await;
    agent.until_line("+ 8.8.8.8/32").await;
    assert_eq!(agent.lines().len(), 2, "{:?}", agent.lines());
    agent.until_line("+ 20.50.0.0/16 (box)").await;
    // Some of the private ones may be addresses of the host that runs the tests.
    let reasons: [(&[&str], f64); 4] =
        [(&["special-purpose", "own"], 4.0), (&["never"], 1.0), (&["multicast"], 1.0), (&["too-wide"], 4.0)];
    for (reasons, expected) in reasons {
        let mut count = 0.0;
        for reason in reasons {
            count += agent.metrics.metric(&format!("greenlane_sync_refused_total{{reason=\"{reason}\"}}")).await;
        }
        assert_eq!(count, expected, "{reasons:?}");
    }
    let log = agent.log();
    assert_eq!(log.matches("items refused: special-purpose").count(), 1, "{log}");
}

#[tokio::test]
async fn set_beyond_the_bound_is_cut_and_counted() {
    let hosts: Vec<String> = (0..200).map(|n| format!("203.0.113.{n}")).collect();
    let hosts: Vec<(&str, u64)> = hosts.iter().map(|host| (host.as_str(), 60)).collect();
    let resolver = Resolver::start(Page::json(whole(1, 1, &hosts, &[]))).await;
    let output = run(command(&[resolver.url()], "--once --dry-run --max-total 10")).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 10);
    assert!(String::from_utf8_lossy(&output.stderr).contains("items refused: max-total"));
}

#[tokio::test]
async fn one_of_two_resolvers_dies_and_nothing_is_lost() {
    let upstream = crate::firewall::numbering().await;
    let mut first = Setup::new(upstream.addr).start().await;
    let second = Setup::new(upstream.addr).start().await;
    first.ask("n1.listed.example", RecordType::A).await;
    second.ask("n2.listed.example", RecordType::A).await;
    let agent = Agent::start(&[url(&first), url(&second)], "--dry-run").await;
    agent.until_line("+ 203.0.113.1/32").await;
    agent.until_line("+ 203.0.113.2/32").await;
    first.signal("KILL");
    first.ended().await;
    agent.metrics.until_metric("greenlane_sync_followed{resolver=\"resolver-1\"}", |value| value == 0.0).await;
    second.ask("n3.listed.example", RecordType::A).await;
    agent.until_line("+ 203.0.113.3/32").await;
    assert!(agent.lines().iter().all(|line| !line.starts_with('-')), "{:?}", agent.lines());
    assert_eq!(agent.metrics.metric("greenlane_sync_entries{family=\"4\",origin=\"learned\"}").await, 3.0);
    assert_eq!(agent.metrics.metric("greenlane_sync_leased").await, 0.0);
    // Once: the one that is left is enough, and the other is named.
    let output = run(command(&[url(&first), url(&second)], "--once --dry-run")).await;
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("warning: {}", url(&first))));
}

#[tokio::test]
async fn all_resolvers_die_and_everything_stays() {
    let mut resolver = Resolver::start(Page::json(whole(1, 1, &[("203.0.113.1", 2)], &["198.51.100.0/24"]))).await;
    let agent = Agent::start(&[resolver.url()], "--dry-run").await;
    agent.until_line("+ 203.0.113.1/32").await;
    resolver.die();
    agent.metrics.until_metric("greenlane_sync_leased", |value| value == 1.0).await;
    sleep(Duration::from_secs(4)).await;
    assert_eq!(agent.metrics.metric("greenlane_sync_entries{family=\"4\",origin=\"learned\"}").await, 1.0);
    assert!(agent.lines().iter().all(|line| !line.starts_with('-')), "{:?}", agent.lines());
    assert_eq!(agent.log().matches("no resolver answers").count(), 1, "{}", agent.log());
}

#[tokio::test]
async fn short_lease_lets_go_of_what_has_ended() {
    let mut resolver = Resolver::start(Page::json(whole(1, 1, &[("203.0.113.1", 2)], &["198.51.100.0/24"]))).await;
    let agent = Agent::start(&[resolver.url()], "--dry-run --lease 1s").await;
    agent.until_line("+ 203.0.113.1/32").await;
    resolver.die();
    agent.until_line("- 203.0.113.1/32").await;
    assert!(!agent.lines().contains(&"- 198.51.100.0/24".to_owned()), "prefixes have no end");
}

#[tokio::test]
async fn new_session_is_merged_before_anything_leaves() {
    let first = [("203.0.113.1", 900), ("203.0.113.2", 900)];
    let resolver = Resolver::start(Page::json(whole(1, 9, &first, &["198.51.100.0/24"]))).await;
    let agent = Agent::start(&[resolver.url()], "--dry-run").await;
    agent.until_line("+ 203.0.113.2/32").await;
    resolver.until_watched().await;
    resolver.send("delta", &whole(2, 1, &[("203.0.113.3", 900)], &["198.51.100.0/24"]));
    agent.until_line("+ 203.0.113.3/32").await;
    // An empty whole set, and one of the same session.
    resolver.send("delta", &whole(2, 2, &[], &[]));
    resolver.send("delta", &whole(2, 3, &[("203.0.113.4", 900)], &[]));
    agent.until_line("+ 203.0.113.4/32").await;
    assert!(agent.lines().iter().all(|line| !line.starts_with('-')), "{:?}", agent.lines());
    assert_eq!(agent.metrics.metric("greenlane_sync_sessions_total{resolver=\"resolver-1\"}").await, 2.0);
    assert!(agent.log().contains("more than half of its set is gone at once"), "{}", agent.log());
}

#[tokio::test]
async fn renewals_lengthen_and_absurd_ends_are_cut() {
    let resolver =
        Resolver::start(Page::json(whole(1, 1, &[("203.0.113.1", 10), ("203.0.113.2", 1 << 40)], &[]))).await;
    let agent = Agent::start(&[resolver.url()], "--dry-run").await;
    let line = agent.until_line("+ 203.0.113.2/32").await;
    let week = i64::try_from(now() + 7 * 24 * 3600).unwrap();
    assert!((week - 20..=week + 1).contains(&until_of(&line)), "{line}");
    resolver.until_watched().await;
    let end = now() + 5000;
    resolver
        .send("renewed", &format!(r#"{{"session":"{:016x}","renewed":[{{"address":"203.0.113.1","end":{end}}}]}}"#, 1));
    let line = agent.until_line("~ 203.0.113.1/32").await;
    assert_eq!(until_of(&line), i64::try_from(end).unwrap());
}

#[tokio::test]
async fn clocks_that_differ_are_told_apart() {
    let an_hour_behind = (now() - 3600) * 1000;
    // Ends in 60 s on its clock, which is an hour behind.
    let end = now() - 3600 + 60;
    let told = format!(
        r#"{{"session":"{:016x}","serial":1,"reset":true,"announced":[{{"address":"203.0.113.1","origin":"learned","apps":[],"end":{end}}}],"withdrawn":[]}}"#,
        1
    );
    let resolver = Resolver::start(Page::json(told)).await;
    resolver.field(&format!("X-Greenlane-Now: {an_hour_behind}"));
    let output = run(command(&[resolver.url()], "--once --dry-run")).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    let left = until_of(printed.trim_end()) - i64::try_from(now()).unwrap();
    assert!((40..=62).contains(&left), "{printed}");
}

/// Broken answers, and the kind of failure that each is.
fn broken() -> Vec<(Page, &'static str, &'static str)> {
    let good = whole(1, 1, &[("203.0.113.9", 60)], &[]);
    let cut = good[..good.len() - 20].to_owned();
    let raw = |text: &str| Page::Raw(text.as_bytes().to_vec());
    let json = "application/json";
    vec![
        (
            Page::Body(200, "text/html", "<html>hello</html>".to_owned()),
            "malformed",
            "is this greenlane's web listener",
        ),
        (Page::Body(404, "text/plain", "no\n".to_owned()), "refused", "404"),
        (Page::Body(503, "text/plain", "not ready\n".to_owned()), "refused", "not ready"),
        (Page::Body(401, "text/plain", "token\n".to_owned()), "refused", "--token-file"),
        (
            raw("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
            "refused",
            "redirects",
        ),
        (Page::json(""), "broken_off", "malformed answer"),
        (Page::json("{}"), "malformed", "expected session"),
        (Page::json(cut), "broken_off", "malformed answer"),
        (Page::json(format!("{good}{good}")), "malformed", "trailing"),
        (Page::json("[".repeat(100_000)), "malformed", "malformed answer"),
        (Page::json(format!("{{\"session\":\"{}\"}}", "x".repeat(100_000))), "broken_off", "1024 octets"),
        (Page::Endless(json, b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx".to_vec()), "malformed", "malformed answer"),
        (Page::Endless(json, b"                                ".to_vec()), "broken_off", "1024 octets"),
        (raw("SSH-2.0-OpenSSH_9.9\r\n"), "unreachable", ""),
        (raw(""), "unreachable", ""),
        (raw("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"), "broken_off", ""),
    ]
}

#[tokio::test]
async fn broken_answers_change_nothing_and_are_counted() {
    let good = Page::json(whole(1, 1, &[("203.0.113.1", 900)], &["198.51.100.0/24"]));
    let good = &good;
    let cases = broken().into_iter().map(async |(page, kind, word)| {
        let resolver = Resolver::start(good.clone()).await;
        // The stream ends at once, so that /delta is asked again.
        resolver.watch(Page::Body(200, "text/event-stream", ": x\n\n".to_owned()));
        let agent = Agent::start(&[resolver.url()], "--dry-run").await;
        agent.until_line("+ 203.0.113.1/32").await;
        let metric = format!("greenlane_sync_failures_total{{kind=\"{kind}\",resolver=\"resolver-1\"}}");
        resolver.delta(page.clone());
        let before = resolver.requests().len();
        agent.until("two more requests", |_| (resolver.requests().len() > before + 2).then_some(())).await;
        agent.metrics.until_metric(&metric, |value| value >= 1.0).await;
        assert!(agent.log().contains(word), "{page:?}: {}", agent.log());
        assert!(agent.lines().iter().all(|line| !line.starts_with('-')), "{page:?}: {:?}", agent.lines());
        resolver.delta(good.clone());
        resolver.watch(Page::Stream(": x\n\n".to_owned()));
        agent.metrics.until_metric("greenlane_sync_followed{resolver=\"resolver-1\"}", |value| value == 1.0).await;
    });
    join_all(cases).await;
}

#[tokio::test]
async fn broken_streams_change_nothing_and_are_counted() {
    let good = whole(1, 1, &[("203.0.113.1", 900)], &[]);
    let cut = format!("event: delta\ndata: {}", &good[..good.len() - 20]);
    let streams = [
        (Page::Body(200, "text/event-stream", cut), "broken_off"),
        (Page::Body(200, "text/event-stream", "data: {\"x\":1}\n\n".to_owned()), "malformed"),
        (Page::Body(200, "text/event-stream", "nonsense\n".to_owned()), "malformed"),
        (Page::Endless("text/event-stream", b"event: xxxxxxxxxxxxxxx".to_vec()), "malformed"),
        (Page::Endless("text/event-stream", b"\n\n\n\n".to_vec()), "malformed"),
        (Page::Body(200, "application/json", good.clone()), "malformed"),
        (Page::Body(429, "text/plain", "too many streams\n".to_owned()), "refused"),
    ];
    let good = &good;
    let cases = streams.into_iter().map(async |(page, kind)| {
        let resolver = Resolver::start(Page::json(good.clone())).await;
        resolver.watch(page.clone());
        let agent = Agent::start(&[resolver.url()], "--dry-run").await;
        let metric = format!("greenlane_sync_failures_total{{kind=\"{kind}\",resolver=\"resolver-1\"}}");
        agent.metrics.until_metric(&metric, |value| value >= 2.0).await;
        assert!(agent.lines().iter().all(|line| !line.starts_with('-')), "{page:?}: {:?}", agent.lines());
        assert_eq!(agent.metrics.metric("greenlane_sync_entries{family=\"4\",origin=\"learned\"}").await, 1.0);
    });
    join_all(cases).await;
}

#[tokio::test]
async fn resolver_that_hangs_holds_up_nobody() {
    let hanging = Resolver::start(Page::Hang).await;
    let good = Resolver::start(Page::json(whole(1, 1, &[("203.0.113.1", 900)], &[]))).await;
    let agent = Agent::start(&[hanging.url(), good.url()], "--dry-run").await;
    // Only the first whole set waits for the other, for five seconds.
    agent.until_line("+ 203.0.113.1/32").await;
    let told = whole(1, 2, &[("203.0.113.1", 900), ("203.0.113.2", 900)], &[]);
    good.until_watched().await;
    good.send("delta", &told);
    agent.until_line("+ 203.0.113.2/32").await;
}

#[tokio::test]
async fn token_is_shown_and_read_anew() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("token");
    fs::write(&path, "first-token\n").unwrap();
    let resolver = Resolver::start(Page::json(whole(1, 1, &[], &[]))).await;
    resolver.watch(Page::Body(200, "text/event-stream", String::new()));
    let agent = Agent::start(&[resolver.url()], &format!("--dry-run --token-file {}", path.display())).await;
    let shows = |token: &'static str| {
        let resolver = &resolver;
        move |_: &Agent| {
            let requests = resolver.requests();
            let field = format!("\r\nauthorization: bearer {token}\r\n");
            requests.last().filter(|head| head.to_ascii_lowercase().contains(&field)).map(|_| ())
        }
    };
    agent.until("the token", shows("first-token")).await;
    fs::write(&path, "second-token\n").unwrap();
    agent.until("the new token", shows("second-token")).await;
    fs::remove_file(&path).unwrap();
    let metric = "greenlane_sync_failures_total{kind=\"token\",resolver=\"resolver-1\"}";
    agent.metrics.until_metric(metric, |value| value >= 1.0).await;
    assert!(!agent.log().contains("first-token") && !agent.log().contains("second-token"));
}

#[tokio::test]
async fn only_the_pinned_certificates_are_believed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("ca.pem");
    let told = Page::json(whole(1, 1, &[("203.0.113.1", 900)], &[]));
    let (resolver, stranger) = (Resolver::start_tls(told.clone()).await, Resolver::start_tls(told).await);
    fs::write(&path, resolver.pem.as_ref().unwrap()).unwrap();
    let pinned = format!("--once --dry-run --ca {}", path.display());
    let output = run(command(&[resolver.url()], &pinned)).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for (url, words) in [(stranger.url(), pinned.as_str()), (resolver.url(), "--once --dry-run")] {
        let output = run(command(&[url], words)).await;
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    }
    let output = run(command(&[resolver.url()], "--once --dry-run --ca /nowhere/ca.pem")).await;
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn systemd_hears_of_readiness_and_life() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let resolver = Resolver::start(Page::json(whole(1, 1, &[("203.0.113.1", 900)], &[]))).await;
    let mut command = command(&[resolver.url()], "--dry-run");
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "2000000");
    let mut agent = Agent::start_command(command).await;
    let heard = tokio::task::spawn_blocking(move || {
        let (mut ready, mut beats, mut status) = (false, 0, false);
        let mut octets = [0; 4096];
        while !ready || beats < 3 || !status {
            let len = socket.recv(&mut octets).expect("word from the agent");
            let text = String::from_utf8_lossy(&octets[..len]).into_owned();
            ready |= text.lines().any(|line| line == "READY=1");
            beats += text.lines().filter(|line| *line == "WATCHDOG=1").count();
            status |= text.contains("STATUS=following 1 of 1 resolvers; 1 hosts and 0 prefixes held");
        }
        socket
    });
    let socket = heard.await.unwrap();
    assert_eq!(agent.ended_by("TERM").await, Some(0));
    let mut octets = [0; 4096];
    socket.set_nonblocking(true).unwrap();
    let mut last = String::new();
    while let Ok(len) = socket.recv(&mut octets) {
        last = String::from_utf8_lossy(&octets[..len]).into_owned();
    }
    assert!(last.contains("STOPPING=1"), "{last}");
}

#[tokio::test]
async fn mistakes_of_the_command_line_are_told() {
    for (words, code) in [("--once --dry-run", 1), ("--lease soon", 2), ("--nftables guest --once", 2)] {
        let output = run(command(&["http://127.0.0.1:1".to_owned()], words)).await;
        assert_eq!(output.status.code(), Some(code), "{words}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty());
    }
    let mut without = crate::harness::greenlane();
    let output = without.arg("sync").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
