//! A process that answers uses the files that its configuration named at the start, and no others.

use std::fs;

use hickory_proto::rr::RecordType;
use tempfile::TempDir;

use crate::harness::{Setup, tag};
use crate::upstream::Upstream;

const FAILED: &str = "greenlane_catalogue_reloads_total{result=\"failed\"}";

#[tokio::test]
async fn files_named_later_are_read_after_a_restart() {
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let mut greenlane = Setup::new(upstream.addr).with("catalogue", "watch = false").start().await;
    if greenlane.log().contains("files are not confined") {
        println!("skipped: no Landlock here");
        return;
    }
    let elsewhere = TempDir::new().unwrap();
    fs::write(elsewhere.path().join("demo.list"), "# Demo\nother.example\n").unwrap();
    let config = fs::read_to_string(greenlane.path("config.toml")).unwrap();
    let there = format!("path = \"{}\"", elsewhere.path().display());
    fs::write(greenlane.path("config.toml"), config.replace("path = \"zones\"", &there)).unwrap();
    greenlane.signal("HUP");
    greenlane.until_metric(FAILED, |failed| failed == 1.0).await;
    assert!(greenlane.log().contains("Permission denied"), "{}", greenlane.log());
    assert!(tag(&greenlane.ask("n1.listed.example", RecordType::A).await).is_some(), "the old lists are in force");
    greenlane.restart("TERM").await;
    assert!(tag(&greenlane.ask("n1.other.example", RecordType::A).await).is_some());
}

#[tokio::test]
async fn a_folder_of_lists_that_is_made_anew_is_read() {
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let greenlane = Setup::new(upstream.addr).with("catalogue", "watch = false").start().await;
    fs::remove_dir_all(greenlane.path("zones")).unwrap();
    fs::create_dir(greenlane.path("zones")).unwrap();
    fs::write(greenlane.path("zones/demo.list"), "# Demo\nother.example\n").unwrap();
    greenlane.signal("HUP");
    greenlane.until_metric("greenlane_catalogue_reloads_total{result=\"done\"}", |done| done == 1.0).await;
    assert!(tag(&greenlane.ask("n1.other.example", RecordType::A).await).is_some());
}
