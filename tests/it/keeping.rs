//! `greenlane store` and `explain --offline`: what survives a restart, looked at and put back, beside a daemon and without
//! one.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use hickory_proto::rr::RecordType;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::harness::{Greenlane, PATIENCE, Setup, greenlane};
use crate::upstream::{Asked, Upstream};

struct Ran {
    code: Option<i32>,
    out: String,
    error: String,
}

async fn run_with(folder: &Path, arguments: &[&str], input: &str) -> Ran {
    let mut command = tokio::process::Command::from(greenlane());
    command.current_dir(folder).args(arguments).kill_on_drop(true);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that wants no input may be gone.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("the command ends by itself").unwrap();
    let text = |octets: Vec<u8>| String::from_utf8(octets).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
}

async fn run(folder: &Path, arguments: &[&str]) -> Ran {
    run_with(folder, arguments, "").await
}

impl Ran {
    #[track_caller]
    fn done(&self) -> &str {
        assert_eq!((self.code, self.error.as_str()), (Some(0), ""), "{}", self.out);
        &self.out
    }

    #[track_caller]
    fn refused(&self, code: i32, part: &str) {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{}", self.error);
        assert!(self.error.contains(part) && !self.error.contains("panicked"), "{}", self.error);
    }
}

/// Answers `n7.…` with 192.0.2.7.
async fn numbering() -> Upstream {
    let number = |asked: &Asked| asked.name().split('.').next().unwrap()[1..].parse().unwrap_or(0);
    Upstream::start(move |asked| asked.a([192, 0, 2, number(asked)])).await
}

/// A greenlane that has learned 192.0.2.1 to 192.0.2.3; `there.toml` says where it listens now.
async fn learned(upstream: &Upstream) -> Greenlane {
    let greenlane = Setup::new(upstream.addr).with("learn", "hold = \"1s\"").start().await;
    for n in 1..=3 {
        greenlane.ask(&format!("n{n}.listed.example"), RecordType::A).await;
    }
    say_where(&greenlane);
    greenlane
}

fn say_where(greenlane: &Greenlane) {
    let config = fs::read_to_string(greenlane.path("config.toml")).unwrap();
    let there = config.replace("web = \"127.0.0.1:0\"", &format!("web = \"{}\"", greenlane.web));
    fs::write(greenlane.path("there.toml"), there).unwrap();
}

async fn stopped(greenlane: &mut Greenlane) {
    greenlane.signal("TERM");
    assert_eq!(greenlane.ended().await, Some(0));
}

/// The sightings of a dump.
fn lines(dump: &str) -> Vec<Value> {
    let mut lines = dump.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let head = lines.next().unwrap();
    assert_eq!((&head["greenlane"], &head["version"]), (&"sightings".into(), &1.into()));
    let lines: Vec<Value> = lines.collect();
    assert_eq!(head["count"], lines.len());
    lines
}

#[tokio::test]
async fn dump_is_the_same_from_the_daemon_and_from_the_file() {
    let upstream = numbering().await;
    let mut greenlane = learned(&upstream).await;
    let folder = greenlane.path("");
    let asked = run(&folder, &["store", "dump", "--json", "-c", "there.toml"]).await;
    let asked = lines(asked.done());
    let names: Vec<&str> = asked.iter().map(|line| line["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["n1.listed.example", "n2.listed.example", "n3.listed.example"]);
    let by_url = run(&folder, &["store", "dump", "--json", "--url", &format!("http://{}", greenlane.web)]).await;
    assert_eq!(lines(by_url.done()), asked);
    let columns = run(&folder, &["store", "dump", "-c", "there.toml"]).await;
    let columns: Vec<Vec<&str>> = columns.done().lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(
        (columns.len(), columns[0][0], columns[2][0], columns[2][1]),
        (4, "ADDRESS", "192.0.2.2", "n2.listed.example")
    );
    stopped(&mut greenlane).await;
    let read = run(&folder, &["store", "dump", "--json"]).await;
    assert_eq!(lines(read.done()), asked);
    // Not even a repair is written.
    greenlane.begin_again().await;
    greenlane.signal("KILL");
    greenlane.ended().await;
    let before: Vec<Vec<u8>> = files(&folder).iter().map(|file| fs::read(file).unwrap()).collect();
    assert_eq!(lines(run(&folder, &["store", "dump", "--json"]).await.done()).len(), 3);
    assert!(run(&folder, &["store", "check"]).await.done().contains("\n  3 sightings, and 0 that have ended\n"));
    assert!(run(&folder, &["store", "check"]).await.done().contains("not closed in order"));
    let after: Vec<Vec<u8>> = files(&folder).iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(before == after, "looking changes nothing");
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("greenlane.redb"));
    files.sort();
    files
}

#[tokio::test]
async fn restored_dump_is_in_the_feed() {
    let upstream = numbering().await;
    let mut greenlane = learned(&upstream).await;
    let folder = greenlane.path("");
    let dump = run(&folder, &["store", "dump", "--json", "-c", "there.toml"]).await.out;
    fs::write(greenlane.path("dump.jsonl"), &dump).unwrap();
    run(&folder, &["store", "restore", "dump.jsonl"]).await.refused(1, "is in use by another greenlane; stop it");
    let before = greenlane.prefixes("").await;
    stopped(&mut greenlane).await;
    files(&folder).iter().for_each(|file| fs::remove_file(file).unwrap());
    let ran = run(&folder, &["store", "restore", "dump.jsonl"]).await;
    assert!(ran.done().ends_with(": 3 sightings are new, 0 stay longer, 0 were known as long\n"), "{}", ran.out);
    let ran = run_with(&folder, &["store", "restore", "-"], &dump).await;
    assert!(ran.done().ends_with(": 0 sightings are new, 0 stay longer, 3 were known as long\n"), "{}", ran.out);
    let read = run(&folder, &["store", "dump", "--json"]).await;
    assert_eq!(lines(read.done()), lines(&dump), "all times are kept");
    greenlane.begin_again().await;
    assert_eq!(greenlane.prefixes("").await, before);
}

/// A line with these members, told for `span` more seconds.
fn line(addr: &str, name: &str, span: i64) -> String {
    let now = i64::try_from(greenlane::clock::Clock::system().now().as_millis()).unwrap();
    let (seen, end) = (now - 10_000_000, now + span * 1000);
    let name = serde_json::to_string(name).unwrap();
    format!(
        "{{\"address\":\"{addr}\",\"name\":{name},\"first_seen\":{seen},\"last_seen\":{seen},\"told_until\":{end},\
         \"end\":{end},\"granted\":{end}}}\n"
    )
}

fn dump_of(lines: &[String]) -> String {
    let head = format!(
        "{{\"greenlane\":\"sightings\",\"version\":1,\"session\":\"1\",\"serial\":1,\"now\":1,\"count\":{}}}\n",
        lines.len()
    );
    head + &lines.concat()
}

#[tokio::test]
async fn restore_lets_in_no_more_than_an_answer_could() {
    let upstream = numbering().await;
    let folder = Setup::new(upstream.addr).write();
    let dump = dump_of(&[
        line("192.0.2.1", "n1.listed.example", 300),
        line("192.0.2.2", "n2.listed.example", -1),
        line("10.0.0.1", "n3.listed.example", 300),
        line("::ffff:127.0.0.1", "n3.listed.example", 300),
        line("192.0.2.4", "other.example", 300),
        line("192.0.2.5", "n5.listed.example", 100 * 365 * 86_400),
    ]);
    let ran = run_with(folder.path(), &["store", "restore", "-"], &dump).await;
    let (first, second) = ran.done().split_once('\n').unwrap();
    assert!(first.ends_with(": 2 sightings are new, 0 stay longer, 0 were known as long"), "{first}");
    assert_eq!(second, "left out: 1 that have ended, 2 that may never be learned, 1 whose name no list has\n");
    let now = greenlane::clock::Clock::system().now().as_millis();
    let kept = lines(run(folder.path(), &["store", "dump", "--json"]).await.done());
    let ends: Vec<u64> = kept.iter().map(|line| line["granted"].as_u64().unwrap()).collect();
    assert_eq!(ends.len(), 2);
    assert!(ends[1] < now + 2 * 86_400_000, "a day at most, as `cache.max-ttl` says: {ends:?}");
}

#[tokio::test]
async fn dumps_with_mistakes_change_nothing() {
    let folder = Setup::new("127.0.0.1:9".parse().unwrap()).write();
    let good = line("192.0.2.1", "n1.listed.example", 300);
    let whole = dump_of(std::slice::from_ref(&good));
    for (dump, part) in [
        (String::new(), "standard input:1: this is no dump of sightings"),
        ("192.0.2.1/32\n".to_owned(), "standard input:1: this is no dump of sightings"),
        (whole.replace("\"version\":1", "\"version\":9"), "standard input:1: the dump has version 9"),
        (dump_of(&[good.clone(), "{}\n".to_owned()]), "standard input:3: no sighting: "),
        (dump_of(&[good.clone(), line("192.0.2.1", "a..b", 3)]), "standard input:3: name: empty label"),
        (dump_of(&[good.replace("\"end\":", "\"end\":1")]), "standard input:2: expected first_seen <= last_seen"),
        (whole.lines().next().unwrap().to_owned(), "expected 2 lines, found 1: the dump is not whole"),
        (dump_of(&[good]) + &line("192.0.2.1", "b.listed.example", 3), "expected 2 lines, found 3"),
    ] {
        run_with(folder.path(), &["store", "restore", "-"], &dump).await.refused(1, part);
        assert!(files(folder.path()).is_empty(), "nothing is made");
    }
    run(folder.path(), &["store", "restore", "no-such-file"]).await.refused(1, "no-such-file: No such file");
    run(folder.path(), &["store", "restore"]).await.refused(2, "<FILE>");
    run(folder.path(), &["store"]).await.refused(2, "Usage");
}

#[tokio::test]
async fn check_tells_what_is_wrong_and_leaves_it() {
    let upstream = numbering().await;
    let mut greenlane = learned(&upstream).await;
    let folder = greenlane.path("");
    run(&folder, &["store", "check"]).await.refused(1, "is in use by a running greenlane");
    stopped(&mut greenlane).await;
    let sound = run(&folder, &["store", "check"]).await;
    assert!(sound.done().contains("greenlane.redb: sound, schema 2, "), "{}", sound.out);
    assert!(sound.out.contains(", closed in order\n"), "{}", sound.out);
    let path = greenlane.path("greenlane.redb");
    let octets = fs::read(&path).unwrap();
    let mut damaged = octets.clone();
    let len = damaged.len();
    damaged[..len / 2].fill(0x5a);
    for octets in [&damaged[..], &octets[..len / 3], b"dear diary", b""] {
        fs::write(&path, octets).unwrap();
        for command in [&["store", "check"][..], &["store", "dump"]] {
            run(&folder, command).await.refused(1, "is no store that can be read: ");
        }
        assert_eq!(fs::read(&path).unwrap(), octets, "it is left as it is");
        // Without it the lists say what they say.
        let ran = run(&folder, &["explain", "--offline", "n1.listed.example"]).await;
        assert!(ran.code == Some(0) && ran.error.starts_with("warning: store.path: "), "{}", ran.error);
    }
    fs::remove_file(&path).unwrap();
    for command in [&["store", "check"][..], &["store", "dump"]] {
        run(&folder, command).await.refused(1, "there is no store at ");
    }
    assert!(!path.exists());
}

#[tokio::test]
async fn explain_offline_knows_what_was_learned() {
    let upstream = numbering().await;
    let mut greenlane = learned(&upstream).await;
    let folder = greenlane.path("");
    let asked = run(&folder, &["explain", "--offline", "-c", "there.toml", "192.0.2.2"]).await;
    assert!(asked.done().contains("answered for n2.listed.example"), "{}", asked.out);
    // The daemon has the store and cannot be asked: port 0 is nobody's.
    let alone = run(&folder, &["explain", "--offline", "n2.listed.example"]).await;
    assert!(alone.done().ends_with("(the lists alone were asked, not what was learned)\n"), "{}", alone.out);
    stopped(&mut greenlane).await;
    let read = run(&folder, &["explain", "--offline", "192.0.2.2"]).await;
    assert_eq!(read.done(), asked.out.replace(&folder.display().to_string(), ""), "the daemon tells whole paths");
    let name = run(&folder, &["explain", "--offline", "n2.listed.example"]).await;
    assert!(name.done().contains("\n  192.0.2.2 in the set since "), "{}", name.out);
    assert!(name.out.ends_with("(the lists and the store were read; no greenlane has it open)\n"), "{}", name.out);
    // What is listed no longer is not believed.
    fs::write(greenlane.path("zones/demo.list"), "# Demo\nelsewhere.example\n=n1.listed.example\n=n3.listed.example\n")
        .unwrap();
    let gone = run(&folder, &["explain", "--offline", "192.0.2.2"]).await;
    assert!(gone.done().starts_with("192.0.2.2 is not bypassed\n"), "{}", gone.out);
}

#[tokio::test]
async fn many_sightings_go_there_and_back() {
    const COUNT: usize = 20_000;
    let upstream = numbering().await;
    let setup = Setup::new(upstream.addr).with("learn", "max-per-trigger = 100000");
    let dump: Vec<String> =
        (0..COUNT).map(|n| line(&format!("2001:db8::{n:x}"), &format!("n{}.listed.example", n / 7), 3600)).collect();
    let mut greenlane = setup.start().await;
    stopped(&mut greenlane).await;
    let folder = greenlane.path("");
    let ran = run_with(&folder, &["store", "restore", "-"], &dump_of(&dump)).await;
    // Standard error is no terminal: no progress is told there.
    assert!(ran.done().ends_with(": 20000 sightings are new, 0 stay longer, 0 were known as long\n"), "{}", ran.out);
    let read = run(&folder, &["store", "dump", "--json"]).await;
    greenlane.begin_again().await;
    say_where(&greenlane);
    let asked = run(&folder, &["store", "dump", "--json", "-c", "there.toml"]).await;
    let (read, asked) = (lines(read.done()), lines(asked.done()));
    assert_eq!(read.len(), COUNT);
    assert!(read == asked, "the daemon tells the same");
}
