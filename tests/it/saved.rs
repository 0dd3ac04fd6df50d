//! The cache over an orderly restart (`cache.save`): answers go on, and nothing about them is believed that is not so now.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use hickory_proto::rr::RecordType;

use crate::harness::{Greenlane, Setup, addresses, tag};
use crate::upstream::{Asked, HTTPS, Upstream, record, wire_name};

const ENTRIES: &str = "greenlane_cache_entries";

/// Answers `n7.…` with 192.0.2.7; HTTPS questions with a pointer at `n8.target.example`.
async fn numbering() -> Upstream {
    let number = |asked: &Asked| asked.name().split('.').next().unwrap()[1..].parse().unwrap_or(0);
    Upstream::start(move |asked| match asked.qtype() {
        HTTPS => {
            let rdata = [&[0, 1][..], &wire_name("n8.target.example")].concat();
            asked.reply().answer(&record(&[0xc0, 12], HTTPS, 600, &rdata)).act()
        }
        _ => asked.reply().answer(&record(&[0xc0, 12], 1, 600, &[192, 0, 2, number(asked)])).act(),
    })
    .await
}

fn saving(upstream: SocketAddr) -> Setup {
    // Late is late on a busy machine, too, so that an answer that is given has been learned.
    let setup = Setup::new(upstream).with("cache", "save = true").with("catalogue", "watch = false");
    setup.with("learn", "hold = \"1s\"")
}

/// Ends it in order, forgets what the store holds, and starts it again.
async fn restart_without_store(greenlane: &mut Greenlane, change: impl FnOnce(&Greenlane)) {
    greenlane.signal("TERM");
    assert_eq!(greenlane.ended().await, Some(0), "{}", greenlane.log());
    let mode = fs::metadata(greenlane.path("greenlane.redb.cache")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for entry in fs::read_dir(greenlane.path("")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("greenlane.redb") && !name.contains("cache") {
            fs::remove_file(path).unwrap();
        }
    }
    change(greenlane);
    greenlane.begin_again().await;
}

#[tokio::test]
async fn a_saved_answer_is_tagged_and_learned_before_it_is_given() {
    let upstream = numbering().await;
    let mut greenlane = saving(upstream.addr).start().await;
    let before = greenlane.ask("n1.listed.example", RecordType::A).await;
    greenlane.ask("n2.other.example", RecordType::A).await;
    restart_without_store(&mut greenlane, |_| {}).await;
    greenlane.until_metric(ENTRIES, |entries| entries == 2.0).await;
    assert_eq!(greenlane.prefixes("").await, Vec::<String>::new(), "the set begins empty");
    let after = greenlane.ask("n1.listed.example", RecordType::A).await;
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"], "never late");
    assert_eq!((addresses(&after), tag(&after)), (addresses(&before), tag(&before)));
    assert!(tag(&after).is_some());
    assert!(after.answers[0].ttl > 1 && after.answers[0].ttl <= before.answers[0].ttl);
    assert_eq!(addresses(&greenlane.ask("n2.other.example", RecordType::A).await), ["192.0.2.2"]);
    assert_eq!(upstream.counts()["n1.listed.example"], 1);
    assert_eq!(upstream.counts()["n2.other.example"], 1);
    assert!(!greenlane.path("greenlane.redb.cache").exists(), "it is read once");
    greenlane.restart("KILL").await;
    assert_eq!(greenlane.metric(ENTRIES).await, 0.0, "what was not ended in order saved nothing");
}

#[tokio::test]
async fn lists_that_changed_meanwhile_count() {
    let upstream = numbering().await;
    let mut greenlane = saving(upstream.addr).start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    greenlane.ask("n2.other.example", RecordType::A).await;
    let list = |greenlane: &Greenlane| fs::write(greenlane.path("zones/demo.list"), "# Demo\nother.example\n").unwrap();
    restart_without_store(&mut greenlane, list).await;
    greenlane.until_metric(ENTRIES, |entries| entries == 2.0).await;
    assert_eq!(tag(&greenlane.ask("n1.listed.example", RecordType::A).await), None);
    assert!(tag(&greenlane.ask("n2.other.example", RecordType::A).await).is_some());
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.2/32"]);
    assert!(upstream.counts().values().all(|count| *count == 1));
}

#[tokio::test]
async fn what_a_saved_answer_points_to_is_followed() {
    let upstream = numbering().await;
    let mut greenlane = saving(upstream.addr).start().await;
    greenlane.ask("n1.listed.example", RecordType::HTTPS).await;
    greenlane.ask("n8.target.example", RecordType::A).await;
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.8/32"]);
    restart_without_store(&mut greenlane, |_| {}).await;
    // Nobody asks for the HTTPS record again: its client remembers it.
    greenlane.until_metric("greenlane_learn_offers_total{outcome=\"programmed\"}", |offers| offers > 0.0).await;
    greenlane.ask("n8.target.example", RecordType::A).await;
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.8/32"]);
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_said() {
    let upstream = numbering().await;
    let mut greenlane = saving(upstream.addr).start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    let spoil = |greenlane: &Greenlane| {
        let path = greenlane.path("greenlane.redb.cache");
        let mut octets = fs::read(&path).unwrap();
        octets[60] ^= 1;
        fs::write(&path, octets).unwrap();
    };
    restart_without_store(&mut greenlane, spoil).await;
    let told = |this: &mut Greenlane| this.log().contains("greenlane.redb.cache` is damaged at octet 36").then_some(());
    greenlane.until(told).await;
    assert_eq!(greenlane.log().matches("cache.save").count(), 1, "{}", greenlane.log());
    assert!(greenlane.path("greenlane.redb.cache.damaged").exists());
    assert!(!greenlane.ask("n1.listed.example", RecordType::A).await.answers.is_empty());
    assert_eq!(upstream.counts()["n1.listed.example"], 2);
}

#[tokio::test]
async fn answers_of_other_upstreams_are_not_taken() {
    let (upstream, other) = (numbering().await, numbering().await);
    let mut greenlane = saving(upstream.addr).start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    let change = |greenlane: &Greenlane| {
        let config = fs::read_to_string(greenlane.path("config.toml")).unwrap();
        let changed = config.replace(&upstream.addr.to_string(), &other.addr.to_string());
        fs::write(greenlane.path("config.toml"), changed).unwrap();
    };
    restart_without_store(&mut greenlane, change).await;
    let told = |this: &mut Greenlane| this.log().contains("answers of other upstreams").then_some(());
    greenlane.until(told).await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    assert_eq!(other.counts()["n1.listed.example"], 1);
}
