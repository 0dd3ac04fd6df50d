//! What changes while it runs: lists, configuration, and the end.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout};

use crate::harness::{Greenlane, PATIENCE, Setup, addresses, question, read_frame, send_frame, tag};
use crate::upstream::{Asked, Upstream};

/// Answers for every name with an address that its first label numbers: `n7.…` is 192.0.2.7.
async fn numbering() -> Upstream {
    Upstream::start(|asked| asked.a([192, 0, 2, number(asked)])).await
}

fn number(asked: &Asked) -> u8 {
    asked.name().split('.').next().unwrap()[1..].parse().unwrap_or(0)
}

/// Reloads on SIGHUP alone, and waits for the set as long as it may be told to.
fn setup(upstream: &Upstream) -> Setup {
    Setup::new(upstream.addr).with("catalogue", "watch = false").with("learn", "hold = \"1s\"")
}

/// How many reloads were done, and how many were refused.
async fn reloads(greenlane: &Greenlane) -> (f64, f64) {
    let of = async |result: &str| {
        greenlane.metric(&format!("greenlane_catalogue_reloads_total{{result=\"{result}\"}}")).await
    };
    (of("done").await, of("failed").await)
}

/// Waits until so many reloads were done and refused.
async fn until_reloads(greenlane: &Greenlane, expected: (f64, f64)) {
    let start = Instant::now();
    while reloads(greenlane).await != expected {
        assert!(start.elapsed() < PATIENCE, "{:?}, not {expected:?}:\n{}", reloads(greenlane).await, greenlane.log());
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the log has it, and returns the log: a line comes by a pipe, and later than what it tells.
async fn logged(greenlane: &Greenlane, has_it: impl Fn(&str) -> bool) -> String {
    let start = Instant::now();
    loop {
        let log = greenlane.log();
        if has_it(&log) {
            return log;
        }
        assert!(start.elapsed() < PATIENCE, "no word of it:\n{log}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Sends SIGHUP and waits for the reload, which is done or refused.
async fn hangup(greenlane: &Greenlane, is_done: bool) {
    let (done, failed) = reloads(greenlane).await;
    greenlane.signal("HUP");
    let expected = if is_done { (done + 1.0, failed) } else { (done, failed + 1.0) };
    until_reloads(greenlane, expected).await;
}

/// Replaces a file as an editor does: a new one beside it, then a rename.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

/// Replaces a part of a file.
fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    replace(path, &text.replace(from, to));
}

// Lists.

#[tokio::test]
async fn addresses_of_a_removed_trigger_leave_at_once() {
    let upstream = numbering().await;
    let greenlane =
        setup(&upstream).list("demo.list", "# Demo\nlisted.example\nsecond.example\n203.0.113.0/24\n").start().await;
    for name in ["n1.listed.example", "n3.second.example", "n5.second.example"] {
        greenlane.ask(name, RecordType::A).await;
    }
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32", "192.0.2.3/32", "192.0.2.5/32", "203.0.113.0/24"]);
    let before = greenlane.metric("greenlane_set_serial").await;
    replace(&greenlane.path("zones/demo.list"), "# Demo\nlisted.example\n");
    hangup(&greenlane, true).await;
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
    assert_eq!(greenlane.metric("greenlane_set_serial").await, before + 1.0, "all in one step");
    let answer = greenlane.ask("n3.second.example", RecordType::A).await;
    assert_eq!(tag(&answer), None, "and its cached answers lose their tag");
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn an_added_trigger_tags_and_learns_the_next_cached_hit() {
    let upstream = numbering().await;
    let greenlane = setup(&upstream).start().await;
    assert_eq!(tag(&greenlane.ask("n1.added.example", RecordType::A).await), None);
    replace(&greenlane.path("zones/new.list"), "# New\nadded.example\n203.0.113.0/24\n");
    hangup(&greenlane, true).await;
    assert_eq!(greenlane.prefixes("").await, ["203.0.113.0/24"], "static prefixes at once");
    let answer = greenlane.ask("n1.added.example", RecordType::A).await;
    assert_eq!(tag(&answer).as_deref(), Some("app=new;match=added.example"));
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32", "203.0.113.0/24"]);
    assert_eq!(upstream.count(), 1, "no upstream is asked again");
    assert_eq!(greenlane.metric("greenlane_catalogue_triggers").await, 3.0);
}

#[tokio::test]
async fn an_address_goes_over_to_the_app_that_lists_it_now() {
    let upstream = numbering().await;
    let greenlane = setup(&upstream).list("other.list", "# Other\nother.example\n").start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    replace(&greenlane.path("zones/demo.list"), "# Demo\nelse.example\n");
    replace(&greenlane.path("zones/other.list"), "# Other\nlisted.example\n");
    hangup(&greenlane, true).await;
    assert_eq!(greenlane.prefixes("?app=demo").await, [""; 0]);
    assert_eq!(greenlane.prefixes("?app=other").await, ["192.0.2.1/32"]);
    let answer = greenlane.ask("n1.listed.example", RecordType::A).await;
    assert_eq!(tag(&answer).as_deref(), Some("app=other;match=listed.example"));
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_new_exception_withdraws_what_it_covers() {
    let upstream = numbering().await;
    let greenlane = setup(&upstream).start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    greenlane.ask("n3.files.listed.example", RecordType::A).await;
    replace(&greenlane.path("zones/demo.list"), "# Demo\nlisted.example\n!files.listed.example\n");
    hangup(&greenlane, true).await;
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
}

#[tokio::test]
async fn the_folder_is_watched() {
    let upstream = numbering().await;
    let greenlane = Setup::new(upstream.addr).with("learn", "hold = \"1s\"").start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    greenlane.ask("n3.added.example", RecordType::A).await;
    // As an editor writes it, and several files in one go.
    replace(&greenlane.path("zones/demo.list"), "# Demo\nelse.example\n");
    replace(&greenlane.path("zones/new.list"), "# New\nadded.example\n");
    until_reloads(&greenlane, (1.0, 0.0)).await;
    assert_eq!(greenlane.prefixes("").await, [""; 0]);
    assert!(tag(&greenlane.ask("n3.added.example", RecordType::A).await).is_some());
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.3/32"]);
    // Written in place.
    fs::write(greenlane.path("zones/new.list"), "# New\nadded.example\nlisted.example\n").unwrap();
    until_reloads(&greenlane, (2.0, 0.0)).await;
    assert!(tag(&greenlane.ask("n1.listed.example", RecordType::A).await).is_some());
    // Removed.
    fs::remove_file(greenlane.path("zones/new.list")).unwrap();
    until_reloads(&greenlane, (3.0, 0.0)).await;
    assert_eq!(greenlane.prefixes("").await, [""; 0]);
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn a_broken_list_keeps_everything_and_is_told_once_with_its_place() {
    let upstream = numbering().await;
    let greenlane = Setup::new(upstream.addr).with("learn", "hold = \"1s\"").start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    replace(&greenlane.path("zones/demo.list"), "# Demo\nfine.example\na..b\n  com\n");
    replace(&greenlane.path("zones/other.list"), "# Other\nother.example\n10.0.0.1/8\n");
    until_reloads(&greenlane, (0.0, 1.0)).await;
    let log = logged(&greenlane, |log| log.contains("other.list:3:1: ")).await;
    for place in ["demo.list:3:1: ", "demo.list:4:3: ", "other.list:3:1: "] {
        assert_eq!(log.matches(place).count(), 1, "{place} in {log}");
    }
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
    assert!(tag(&greenlane.ask("n3.listed.example", RecordType::A).await).is_some(), "the old list decides");
    assert_eq!(tag(&greenlane.ask("n5.fine.example", RecordType::A).await), None);
    assert_eq!(tag(&greenlane.ask("n6.other.example", RecordType::A).await), None, "no list of the new ones");
    sleep(Duration::from_millis(700)).await;
    assert_eq!(reloads(&greenlane).await, (0.0, 1.0), "and it is not tried again before something changes");
    // Mended, it counts.
    replace(&greenlane.path("zones/other.list"), "# Other\nother.example\n");
    until_reloads(&greenlane, (0.0, 2.0)).await;
    replace(&greenlane.path("zones/demo.list"), "# Demo\nfine.example\n");
    until_reloads(&greenlane, (1.0, 2.0)).await;
    assert!(tag(&greenlane.ask("n5.fine.example", RecordType::A).await).is_some());
}

#[tokio::test]
async fn an_emptied_folder_is_refused() {
    let upstream = numbering().await;
    let greenlane = setup(&upstream).start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    fs::remove_file(greenlane.path("zones/demo.list")).unwrap();
    hangup(&greenlane, false).await;
    logged(&greenlane, |log| log.contains("no trigger is left")).await;
    replace(&greenlane.path("zones/demo.list"), "# Demo, with nothing in it\n");
    hangup(&greenlane, false).await;
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
    fs::remove_dir_all(greenlane.path("zones")).unwrap();
    hangup(&greenlane, false).await;
    assert!(tag(&greenlane.ask("n1.listed.example", RecordType::A).await).is_some());
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
}

// Configuration.

#[tokio::test]
async fn a_bad_configuration_changes_nothing() {
    let upstream = numbering().await;
    let greenlane = setup(&upstream).start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    let config = greenlane.path("config.toml");
    let good = fs::read_to_string(&config).unwrap();
    // The list changes, too, and the rest of the file would refuse everybody.
    replace(&greenlane.path("zones/demo.list"), "# Demo\nelse.example\n");
    let deny = "[clients]\nallow = [\"192.0.2.0/24\"]\n";
    for (text, expected) in [
        (format!("{good}{deny}[cache]\nsiz = \"1MiB\"\n"), "cache.siz"),
        (format!("{good}{deny}[cache]\nmax-ttl = \"soon\"\n"), "cache.max-ttl"),
        (format!("{good}{deny}[cache\n"), "config.toml:"),
    ] {
        replace(&config, &text);
        hangup(&greenlane, false).await;
        let is_said = |log: &str| log.lines().any(|line| line.contains("config.toml:") && line.contains(expected));
        logged(&greenlane, is_said).await;
        let answer = greenlane.ask("n1.listed.example", RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(tag(&answer).is_some());
        assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
    }
    fs::remove_file(&config).unwrap();
    hangup(&greenlane, false).await;
    replace(&config, &good);
    hangup(&greenlane, true).await;
    assert_eq!(greenlane.prefixes("").await, [""; 0], "now the list counts, too");
}

#[tokio::test]
async fn a_good_configuration_with_a_broken_list_changes_nothing() {
    let upstream = numbering().await;
    let greenlane = setup(&upstream).start().await;
    edit(&greenlane.path("config.toml"), "[learn]", "[clients]\nallow = [\"192.0.2.0/24\"]\n[learn]");
    replace(&greenlane.path("zones/demo.list"), "# Demo\na..b\n");
    hangup(&greenlane, false).await;
    let answer = greenlane.ask("n1.listed.example", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
}

#[tokio::test]
async fn changed_upstreams_take_effect_and_answers_of_the_old_ones_are_forgotten() {
    let old = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let new = Upstream::start(|asked| asked.a([192, 0, 2, 3])).await;
    let greenlane = setup(&old).start().await;
    assert_eq!(addresses(&greenlane.ask("www.listed.example", RecordType::A).await), ["192.0.2.1"]);
    edit(&greenlane.path("config.toml"), &old.addr.to_string(), &new.addr.to_string());
    hangup(&greenlane, true).await;
    assert_eq!(addresses(&greenlane.ask("www.listed.example", RecordType::A).await), ["192.0.2.3"]);
    assert_eq!((old.count(), new.count()), (1, 1));
    // What was told stays as long as it was told.
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32", "192.0.2.3/32"]);
}

#[tokio::test]
async fn changed_clients_take_effect() {
    let upstream = numbering().await;
    let greenlane = setup(&upstream).with("clients", "allow = [\"127.0.0.0/8\"]").start().await;
    let rcode = async || greenlane.ask("n1.listed.example", RecordType::A).await.metadata.response_code;
    assert_eq!(rcode().await, ResponseCode::NoError);
    let mut open = TcpStream::connect(greenlane.dns).await.unwrap();
    let query = question("n1.listed.example", RecordType::A).to_vec().unwrap();
    send_frame(&mut open, &query).await;
    assert!(read_frame(&mut open).await.is_some());
    edit(&greenlane.path("config.toml"), "allow = [\"127.0.0.0/8\"]", "allow = [\"192.0.2.0/24\"]");
    hangup(&greenlane, true).await;
    assert_eq!(rcode().await, ResponseCode::Refused, "although it is cached");
    let tcp = greenlane.ask_tcp("n1.listed.example", RecordType::A).await;
    assert_eq!(tcp.metadata.response_code, ResponseCode::Refused);
    // A connection that was open before is closed or refused, but not served.
    send_frame(&mut open, &query).await;
    if let Some(reply) = read_frame(&mut open).await {
        assert_eq!(Message::from_vec(&reply).unwrap().metadata.response_code, ResponseCode::Refused);
    }
    edit(&greenlane.path("config.toml"), "allow = [\"192.0.2.0/24\"]", "allow = [\"127.0.0.0/8\"]");
    hangup(&greenlane, true).await;
    assert_eq!(rcode().await, ResponseCode::NoError);
}

#[tokio::test]
async fn what_may_be_learned_changes_at_once() {
    let upstream = numbering().await;
    let greenlane = setup(&upstream).start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    greenlane.ask("n200.listed.example", RecordType::A).await;
    edit(&greenlane.path("config.toml"), "[learn]\n", "[learn]\nnever = [\"192.0.2.128/25\"]\n");
    hangup(&greenlane, true).await;
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
    let answer = greenlane.ask("n200.listed.example", RecordType::A).await;
    assert_eq!(addresses(&answer), ["192.0.2.200"], "clients still get it");
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
    edit(&greenlane.path("config.toml"), "never = [\"192.0.2.128/25\"]\n", "");
    hangup(&greenlane, true).await;
    greenlane.ask("n200.listed.example", RecordType::A).await;
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32", "192.0.2.200/32"], "and from the cache it comes back");
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn a_changed_tag_option_shows_in_cached_answers() {
    let upstream = numbering().await;
    let greenlane = setup(&upstream).start().await;
    assert!(tag(&greenlane.ask("n1.listed.example", RecordType::A).await).is_some());
    let config = greenlane.path("config.toml");
    edit(&config, "[learn]", "[tag]\nedns-option = 0\nextended-error = false\n[learn]");
    hangup(&greenlane, true).await;
    let answer = greenlane.ask("n1.listed.example", RecordType::A).await;
    assert!(answer.edns.unwrap().options().as_ref().is_empty());
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn what_waits_for_a_restart_is_named() {
    let upstream = numbering().await;
    let greenlane = setup(&upstream).start().await;
    let config = greenlane.path("config.toml");
    edit(&config, "dns = [\"127.0.0.1:0\"]", "dns = [\"127.0.0.2:0\"]");
    edit(
        &config,
        "[learn]",
        "[cache]\nsize = \"8MiB\"\n[clients]\nper-client = 7\n[web]\nallow = [\"127.0.0.0/8\"]\n[learn]",
    );
    hangup(&greenlane, true).await;
    let log = logged(&greenlane, |log| log.lines().any(|line| line.contains("restart"))).await;
    let line = log.lines().find(|line| line.contains("restart")).unwrap();
    for (key, is_named) in [
        ("listen.dns", true),
        ("cache.size", true),
        ("clients.per-client", true),
        ("web.allow", true),
        ("listen.web", false),
        ("clients.max-connections", false),
        ("catalogue.watch", false),
        ("log", false),
    ] {
        assert_eq!(line.contains(key), is_named, "{key} in {line}");
    }
    assert!(!greenlane.ask("n1.listed.example", RecordType::A).await.answers.is_empty(), "the old socket serves on");
    hangup(&greenlane, true).await;
}

#[tokio::test]
async fn another_folder_is_watched_from_then_on() {
    let upstream = numbering().await;
    let greenlane = Setup::new(upstream.addr).start().await;
    fs::create_dir(greenlane.path("lists")).unwrap();
    fs::write(greenlane.path("lists/demo.list"), "# Demo\nlisted.example\n").unwrap();
    edit(&greenlane.path("config.toml"), "path = \"zones\"", "path = \"lists\"");
    hangup(&greenlane, true).await;
    replace(&greenlane.path("lists/new.list"), "# New\nadded.example\n");
    until_reloads(&greenlane, (2.0, 0.0)).await;
    assert!(tag(&greenlane.ask("n1.added.example", RecordType::A).await).is_some());
    replace(&greenlane.path("zones/demo.list"), "# Demo\nelse.example\n");
    sleep(Duration::from_millis(700)).await;
    assert_eq!(reloads(&greenlane).await, (2.0, 0.0), "the old folder is watched no longer");
}

#[tokio::test]
async fn an_answer_of_an_upstream_that_is_no_longer_asked_is_not_kept() {
    let old = Upstream::start(|asked| asked.a([192, 0, 2, 1]).after(Duration::from_millis(500))).await;
    let new = Upstream::start(|asked| asked.a([192, 0, 2, 3])).await;
    let greenlane = setup(&old).start().await;
    let asking = greenlane.ask("www.listed.example", RecordType::A);
    let reloading = async {
        while old.count() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        edit(&greenlane.path("config.toml"), &old.addr.to_string(), &new.addr.to_string());
        hangup(&greenlane, true).await;
    };
    let (answer, ()) = tokio::join!(asking, reloading);
    assert_eq!(addresses(&answer), ["192.0.2.1"], "who waited for it gets it");
    assert_eq!(addresses(&greenlane.ask("www.listed.example", RecordType::A).await), ["192.0.2.3"]);
}

#[tokio::test]
async fn questions_on_their_way_outlive_a_reload() {
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1]).after(Duration::from_millis(1200))).await;
    let greenlane = setup(&upstream).start().await;
    let asking = greenlane.ask("www.added.example", RecordType::A);
    let reloading = async {
        while upstream.count() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        replace(&greenlane.path("zones/demo.list"), "# Demo\nadded.example\n");
        hangup(&greenlane, true).await;
    };
    let (answer, ()) = tokio::join!(asking, reloading);
    assert_eq!(addresses(&answer), ["192.0.2.1"]);
    assert!(tag(&answer).is_some(), "it came when the new list was in force");
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"]);
}

// The end.

#[tokio::test]
async fn sigterm_answers_what_waits_and_ends_well() {
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1]).after(Duration::from_millis(700))).await;
    let mut greenlane = setup(&upstream).start().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(greenlane.dns).await.unwrap();
    socket.send(&question("udp.listed.example", RecordType::A).to_vec().unwrap()).await.unwrap();
    let mut stream = TcpStream::connect(greenlane.dns).await.unwrap();
    send_frame(&mut stream, &question("tcp.listed.example", RecordType::A).to_vec().unwrap()).await;
    while upstream.count() < 2 {
        sleep(Duration::from_millis(5)).await;
    }
    greenlane.signal("TERM");
    let mut octets = [0; 1500];
    let len = timeout(PATIENCE, socket.recv(&mut octets)).await.expect("an answer over UDP").unwrap();
    assert_eq!(addresses(&Message::from_vec(&octets[..len]).unwrap()), ["192.0.2.1"]);
    let reply = read_frame(&mut stream).await.expect("an answer over TCP");
    assert_eq!(addresses(&Message::from_vec(&reply).unwrap()), ["192.0.2.1"]);
    assert_eq!(greenlane.ended().await, Some(0));
}

#[tokio::test]
async fn the_end_does_not_wait_for_who_only_watches() {
    let upstream = numbering().await;
    let mut greenlane = setup(&upstream).start().await;
    let _idle = TcpStream::connect(greenlane.dns).await.unwrap();
    let mut watcher = TcpStream::connect(greenlane.web).await.unwrap();
    let request = format!("GET /watch HTTP/1.1\r\nHost: {}\r\n\r\n", greenlane.web);
    tokio::io::AsyncWriteExt::write_all(&mut watcher, request.as_bytes()).await.unwrap();
    let mut first = [0; 16];
    tokio::io::AsyncReadExt::read_exact(&mut watcher, &mut first).await.unwrap();
    assert_eq!(&first[..15], b"HTTP/1.1 200 OK");
    let start = Instant::now();
    greenlane.signal("INT");
    assert_eq!(greenlane.ended().await, Some(0));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_folder_made_anew_is_watched_again_after_sighup() {
    // The watch hung on the folder that was removed, and no reload brought it back.
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let greenlane = Setup::new(upstream.addr).start().await;
    let zones = greenlane.path("zones");
    fs::remove_dir_all(&zones).unwrap();
    fs::create_dir(&zones).unwrap();
    fs::write(zones.join("demo.list"), "# Demo\nfirst.example\n").unwrap();
    greenlane.signal("HUP");
    greenlane.until_metric("greenlane_catalogue_reloads_total{result=\"done\"}", |count| count >= 1.0).await;
    // The removal, too, makes a reload once the folder has been quiet; what comes after that one needs a watch.
    sleep(Duration::from_secs(1)).await;
    fs::write(zones.join("demo.list"), "# Demo\nfirst.example\nsecond.example\n").unwrap();
    greenlane.until_metric("greenlane_catalogue_triggers", |count| count == 2.0).await;
}
