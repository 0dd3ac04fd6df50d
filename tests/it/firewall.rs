//! The local nftables as the daemon fills it: a real kernel, looked at with the real `nft`.
//!
//! Each test runs in a network namespace of its own (`netns`); the greenlane that it starts is in there, too.

use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tokio::time::sleep;

use crate::harness::{Greenlane, Setup};
use crate::netns::{has, in_namespace, nft};
use crate::upstream::{A, AAAA, Asked, HTTPS, Upstream, record, wire_name};

/// Answers `n7.…` with 203.0.113.7.
pub(crate) async fn numbering() -> Upstream {
    let number = |asked: &Asked| asked.name().split('.').next().unwrap()[1..].parse().unwrap_or(0);
    Upstream::start(move |asked| asked.a([203, 0, 113, number(asked)])).await
}

/// Waits for the kernel as long as it may be told to, so that a busy machine makes no answer late.
fn own(upstream: &Upstream) -> Setup {
    // Late is what the machine is when it is busy; here it would be a fault.
    Setup::new(upstream.addr).with("[export.nftables]", "mode = \"own\"").with("learn", "hold = \"1s\"")
}

async fn until(what: &str, greenlane: &Greenlane, mut is_so: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: waited in vain\n{}\n{}", nft("list ruleset"), greenlane.log());
}

#[test]
fn the_kernel_has_the_address_before_the_client_reads_it() {
    in_namespace(async || {
        let upstream = numbering().await;
        let greenlane = own(&upstream).list("demo.list", "# Demo\nlisted.example\n192.0.2.0/24\n").start().await;
        assert!(nft("list set inet greenlane static4").contains("192.0.2.0/24"));
        for i in 0..=200u8 {
            greenlane.ask(&format!("n{i}.listed.example"), RecordType::A).await;
            assert!(has("learned4", &format!("203.0.113.{i}")), "n{i}: {}", greenlane.log());
        }
        assert_eq!(greenlane.metric("greenlane_learn_offers_total{outcome=\"late\"}").await, 0.0);
    });
}

#[test]
fn hints_chains_and_ipv6_reach_the_kernel() {
    in_namespace(async || {
        let upstream = Upstream::start(|asked| match asked.qtype() {
            HTTPS => {
                let mut rdata = vec![0, 1, 0, 0, 4, 0, 4, 203, 0, 113, 9];
                rdata.extend([0, 6, 0, 16]);
                rdata.extend("2001:db8::9".parse::<std::net::Ipv6Addr>().unwrap().octets());
                asked.reply().answer(&record(&[0xc0, 12], HTTPS, 60, &rdata)).act()
            }
            AAAA => {
                let address = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets();
                asked
                    .reply()
                    .answer(&record(&[0xc0, 12], 5, 60, &wire_name("edge.example")))
                    .answer(&record(&wire_name("edge.example"), AAAA, 60, &address))
                    .answer(&record(&wire_name("stranger.example"), A, 60, &Ipv4Addr::new(203, 0, 113, 66).octets()))
                    .act()
            }
            _ => asked.fail(2),
        })
        .await;
        let greenlane = own(&upstream).start().await;
        greenlane.ask("a.listed.example", RecordType::HTTPS).await;
        assert!(has("learned4", "203.0.113.9") && has("learned6", "2001:db8::9"));
        greenlane.ask("a.listed.example", RecordType::AAAA).await;
        assert!(has("learned6", "2001:db8::1"));
        assert!(!has("learned4", "203.0.113.66"), "an injected record opens nothing");
    });
}

#[test]
fn an_address_leaves_the_kernel_soon_after_its_end() {
    in_namespace(async || {
        let upstream =
            Upstream::start(|asked| asked.reply().answer(&record(&[0xc0, 12], A, 1, &[203, 0, 113, 1])).act()).await;
        let greenlane = own(&upstream).with("learn", "min-hold = \"1s\"\ngrace = \"0s\"").start().await;
        greenlane.ask("a.listed.example", RecordType::A).await;
        sleep(Duration::from_millis(900)).await;
        assert!(has("learned4", "203.0.113.1"), "a client may still use it");
        until("the end", &greenlane, || !has("learned4", "203.0.113.1")).await;
        assert_eq!(greenlane.prefixes("").await, Vec::<String>::new());
    });
}

#[test]
fn a_killed_greenlane_leaves_its_elements_and_takes_them_up_again() {
    in_namespace(async || {
        let upstream = numbering().await;
        let mut greenlane = own(&upstream).start().await;
        greenlane.ask("n1.listed.example", RecordType::A).await;
        greenlane.signal("KILL");
        greenlane.ended().await;
        assert!(has("learned4", "203.0.113.1"), "the kernel goes on without us");
        greenlane.begin_again().await;
        assert!(has("learned4", "203.0.113.1"));
        greenlane.ask("n2.listed.example", RecordType::A).await;
        assert!(has("learned4", "203.0.113.2"));
    });
}

#[test]
fn sets_of_the_operator_are_filled_and_mended() {
    in_namespace(async || {
        nft("add table inet filter");
        nft("add set inet filter bypass { type ipv4_addr ; flags timeout ; }");
        nft("add element inet filter bypass { 198.51.100.99 }");
        let upstream = numbering().await;
        let greenlane = Setup::new(upstream.addr)
            .with("[export.nftables]", "mode = \"guest\"\ntable = \"filter\"\nlearned4 = \"bypass\"")
            .start()
            .await;
        greenlane.ask("n1.listed.example", RecordType::A).await;
        let list = || nft("list set inet filter bypass");
        assert!(list().contains("203.0.113.1") && list().contains("198.51.100.99"), "{}", list());
        nft("flush set inet filter bypass");
        until("the flushed set is whole again", &greenlane, || list().contains("203.0.113.1")).await;
        nft("flush ruleset");
        nft("add table inet filter");
        nft("add set inet filter bypass { type ipv4_addr ; flags timeout ; }");
        until("the set that is back is filled", &greenlane, || list().contains("203.0.113.1")).await;
    });
}

#[test]
fn a_missing_set_is_told_with_its_remedy_and_stops_no_answer() {
    in_namespace(async || {
        let upstream = numbering().await;
        let greenlane = Setup::new(upstream.addr)
            .with("[export.nftables]", "mode = \"guest\"\ntable = \"filter\"\nlearned4 = \"bypass\"")
            .start()
            .await;
        assert!(!greenlane.ask("n1.listed.example", RecordType::A).await.answers.is_empty());
        assert!(greenlane.log().contains("nft add"), "{}", greenlane.log());
        assert_eq!(greenlane.metric("greenlane_nftables_up{table=\"inet filter\"}").await, 0.0);
        assert_eq!(greenlane.prefixes("").await, ["203.0.113.1/32"]);
    });
}

#[test]
fn what_is_removed_is_gone() {
    in_namespace(async || {
        let upstream = numbering().await;
        let mut greenlane = own(&upstream).start().await;
        greenlane.ask("n1.listed.example", RecordType::A).await;
        greenlane.signal("TERM");
        greenlane.ended().await;
        let remove = || {
            let mut command = crate::harness::greenlane();
            command.args(["nft", "remove", "-c"]).arg(greenlane.path("config.toml")).output().unwrap()
        };
        let removed = remove();
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
        assert_eq!(nft("list ruleset"), "");
        assert!(String::from_utf8_lossy(&remove().stdout).contains("nothing of ours was there"));
    });
}
