//! What survives the end of the process: the set, its session and its serial.

use std::fs;

use hickory_proto::rr::RecordType;

use crate::harness::{Greenlane, Setup};
use crate::upstream::{Asked, Upstream};

/// Answers `n7.…` with 192.0.2.7.
async fn numbering() -> Upstream {
    let number = |asked: &Asked| asked.name().split('.').next().unwrap()[1..].parse().unwrap_or(0);
    Upstream::start(move |asked| asked.a([192, 0, 2, number(asked)])).await
}

async fn session_and_serial(greenlane: &Greenlane) -> (String, u64) {
    let json = greenlane.json("/prefixes.json").await;
    (json["session"].as_str().unwrap().to_owned(), json["serial"].as_u64().unwrap())
}

#[tokio::test]
async fn a_kill_right_after_an_answer_loses_nothing() {
    let upstream = numbering().await;
    let mut greenlane = Setup::new(upstream.addr).with("learn", "hold = \"1s\"").start().await;
    for round in 0..3u8 {
        for i in 0..10u8 {
            greenlane.ask(&format!("n{}.listed.example", 10 * round + i), RecordType::A).await;
        }
        let before = greenlane.prefixes("").await;
        let (session, serial) = session_and_serial(&greenlane).await;
        greenlane.restart("KILL").await;
        assert_eq!(greenlane.prefixes("").await, before, "round {round}");
        let after = session_and_serial(&greenlane).await;
        assert_eq!(after.0, session, "the session goes on");
        assert!(after.1 > serial, "no serial means two things: {serial}, then {}", after.1);
    }
    let json = greenlane.json("/explain?address=192.0.2.5").await;
    assert_eq!(json["sightings"][0]["name"], "n5.listed.example");
}

#[tokio::test]
async fn an_orderly_end_keeps_the_ends() {
    let upstream = numbering().await;
    let mut greenlane = Setup::new(upstream.addr).start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    let end = |json: serde_json::Value| json["sightings"][0]["end"].as_u64().unwrap();
    let before = end(greenlane.json("/explain?address=192.0.2.1").await);
    greenlane.restart("TERM").await;
    assert_eq!(end(greenlane.json("/explain?address=192.0.2.1").await), before);
}

#[tokio::test]
async fn what_is_listed_no_longer_does_not_come_back() {
    let upstream = numbering().await;
    let mut greenlane = Setup::new(upstream.addr).list("more.list", "# More\nother.example\n").start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    greenlane.ask("n2.other.example", RecordType::A).await;
    fs::remove_file(greenlane.path("zones/more.list")).unwrap();
    greenlane.restart("KILL").await;
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"], "state from disk is matched as an answer is");
}

#[tokio::test]
async fn a_damaged_store_is_set_aside_and_said() {
    let upstream = numbering().await;
    let mut greenlane = Setup::new(upstream.addr).start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    greenlane.signal("TERM");
    assert_eq!(greenlane.ended().await, Some(0));
    fs::write(greenlane.path("greenlane.redb"), b"this is no database").unwrap();
    greenlane.begin_again().await;
    assert!(greenlane.log().contains("greenlane.redb.damaged-"), "{}", greenlane.log());
    assert!(!greenlane.ask("n2.listed.example", RecordType::A).await.answers.is_empty());
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.2/32"]);
}

#[tokio::test]
async fn a_list_that_shrinks_by_mistake_takes_nothing_until_it_is_confirmed() {
    let upstream = numbering().await;
    let greenlane = Setup::new(upstream.addr)
        .with("catalogue", "watch = false")
        .list("demo.list", "# Demo\nlisted.example\n")
        .list("more.list", "# More\nother.example\n")
        .start()
        .await;
    for i in 1..=20u8 {
        greenlane.ask(&format!("n{i}.listed.example"), RecordType::A).await;
    }
    let before = greenlane.prefixes("").await;
    fs::write(greenlane.path("zones/demo.list"), "# Demo\nelsewhere.example\n").unwrap();
    greenlane.signal("HUP");
    greenlane.until_metric("greenlane_learn_shrink_held", |held| held > 0.0).await;
    assert_eq!(greenlane.prefixes("").await, before);
    greenlane.signal("HUP");
    greenlane.until_metric("greenlane_learn_shrink_held", |held| held == 0.0).await;
    assert_eq!(greenlane.prefixes("").await, Vec::<String>::new());
}

/// A small file system of its own, which goes with it; `None` where only root could make one.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn new(folder: std::path::PathBuf) -> Option<Self> {
        fs::create_dir(&folder).unwrap();
        let mut mount = std::process::Command::new("mount");
        let status =
            mount.args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(&folder).stderr(std::process::Stdio::null());
        if status.status().is_ok_and(|status| status.success()) {
            return Some(Self(folder));
        }
        let is_required = std::env::var("GREENLANE_TEST_REQUIRE").is_ok_and(|value| value == "all");
        assert!(!is_required, "needs root");
        println!("skipped: needs root");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_stops_no_answer_and_loses_nothing_once_it_has_room() {
    let upstream = numbering().await;
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::new(folder.path().join("small")) else { return };
    let path = disk.0.join("greenlane.redb");
    let mut greenlane = Setup::new(upstream.addr)
        .with("learn", "hold = \"1s\"")
        .with("store", &format!("path = \"{}\"", path.display()))
        .start()
        .await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    let filler = disk.0.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    drop(file);
    // What is left of the journal's last page is used up first.
    let mut asked = 1_u8;
    while !greenlane.log().contains("the store cannot be written") && asked < 250 {
        asked += 1;
        let answer = greenlane.ask(&format!("n{asked}.listed.example"), RecordType::A).await;
        assert_eq!(answer.answers.len(), 1, "n{asked}: the answer is given");
    }
    assert!(greenlane.log().contains("the store cannot be written; answers go on"), "{}", greenlane.log());
    assert!(greenlane.metric("greenlane_store_commits_total{result=\"failed\"}").await >= 1.0);
    // Neighbours make one prefix; the sightings are as many as the names.
    let before = greenlane.prefixes("").await;
    fs::remove_file(&filler).unwrap();
    greenlane.until_metric("greenlane_store_sightings", |count| count == f64::from(asked)).await;
    greenlane.restart("KILL").await;
    assert_eq!(greenlane.prefixes("").await, before);
}

#[tokio::test]
async fn a_store_that_cannot_be_is_told_at_the_start() {
    let upstream = numbering().await;
    for (path, part) in [
        ("missing/greenlane.redb", "create it first, or name another file"),
        ("zones", "is no path of a file"),
        ("/proc/greenlane.redb", "/proc/greenlane.redb"),
    ] {
        let folder = Setup::new(upstream.addr).with("store", &format!("path = \"{path}\"")).write();
        let output = crate::harness::greenlane().current_dir(folder.path()).arg("serve").output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("store.path: ") && error.contains(part), "{error}");
    }
}
