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
