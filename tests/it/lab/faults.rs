//! Others' hands in the ruleset, reloads, and a greenlane that is killed.

use greenlane::clock::Stopwatch;
use hickory_proto::rr::RecordType;

use super::rules::{Way, block};
use super::{Ground, Lab, Seen, in_gateway, listed4, listed6, numbering, until};
use crate::netns::{has, lists, load, nft};

const GUEST: &str = "mode = \"guest\"\ntable = \"filter\"\nlearned4 = \"bypass4\"\nlearned6 = \"bypass6\"\n\
                     static4 = \"vendors4\"\nstatic6 = \"vendors6\"";

fn name(n: u32) -> String {
    format!("n{n}.listed.example")
}

/// Connects to all of these, and to a listed prefix.
async fn all_pass(ground: &Ground, known: u32, when: &str) {
    for n in 0..known {
        assert_eq!(ground.client.sees(listed4(n), &name(n)).await, Seen::Bypassed, "{when}, n{n}");
        assert_eq!(ground.client.sees(listed6(n), &name(n)).await, Seen::Bypassed, "{when}, n{n}");
    }
    let vendors = std::net::Ipv4Addr::new(198, 18, 200, 7);
    assert_eq!(ground.client.sees(vendors, "n0.listed.example").await, Seen::Bypassed, "{when}");
}

#[test]
fn sets_of_the_operator_are_whole_again_after_whatever_others_do() {
    in_gateway(async || {
        let ground = Ground::lay(None, numbering).await;
        let way = if Way::Tproxy.is_there() { Way::Tproxy } else { Way::Redirect };
        way.take();
        let setup = ground.setup().list("demo.list", "# Demo\nlisted.example\n198.18.200.0/24\n");
        let greenlane = setup.with("[export.nftables]", GUEST).start().await;
        // No table, no bypass; names are answered.
        assert_eq!(ground.client.visit(&name(0), RecordType::A).await, Seen::Inspected);
        let script = format!("flush ruleset\n{}{}", block("set vendors4"), way.rules());
        load(&script);
        let known = 10;
        let is_whole = || {
            let table = nft("list table inet filter");
            let all = (0..known).all(|n| lists(&table, &listed4(n).to_string()));
            all && (0..known).all(|n| lists(&table, &listed6(n).to_string())) && lists(&table, "198.18.200.0/24")
        };
        for n in 0..known {
            ground.client.ask(&name(n), RecordType::A).await;
            ground.client.ask(&name(n), RecordType::AAAA).await;
        }
        until("the table that appeared", is_whole).await;
        all_pass(&ground, known, "after the table appeared").await;

        let mut flow = ground.client.open(listed4(1), &name(1)).await;
        let (connection, mut request) = flow.get().await;
        let deeds: [&[&str]; 5] = [
            &["flush set inet filter bypass4"],
            &["flush set inet filter vendors4", "flush set inet filter bypass6"],
            &["delete table inet filter"],
            &["flush ruleset"],
            &[],
        ];
        for lines in deeds {
            lines.iter().for_each(|line| drop(nft(line)));
            // After the sets alone, nobody reloads anything.
            if lines.is_empty() || !lines[0].starts_with("flush set") {
                load(&script);
            }
            let done = Stopwatch::start();
            until("the mended sets", is_whole).await;
            println!("whole again {:?} after {lines:?}", done.elapsed());
            all_pass(&ground, known, &format!("after {lines:?}")).await;
            request += 1;
            assert_eq!(flow.get().await, (connection, request), "an open connection, after {lines:?}");
        }
        assert_eq!(ground.client.visit("n1.other.example", RecordType::A).await, Seen::Inspected);
        assert_eq!(greenlane.metric("greenlane_nftables_up").await, 1.0);
    });
}

#[test]
fn table_of_ours_outlives_what_others_do() {
    in_gateway(async || {
        let listed = "# Demo\nlisted.example\n198.18.200.0/24\n";
        let lab = Lab::start(Way::Redirect, |setup| setup.list("demo.list", listed), numbering).await;
        let known = 10;
        for n in 0..known {
            assert_eq!(lab.client.visit(&name(n), RecordType::A).await, Seen::Bypassed);
            assert_eq!(lab.client.visit(&name(n), RecordType::AAAA).await, Seen::Bypassed);
        }
        let mut flow = lab.client.open(listed4(1), &name(1)).await;
        let (connection, mut request) = flow.get().await;
        for line in [
            "flush set inet greenlane learned4",
            "flush table inet greenlane",
            "delete table inet greenlane",
            "flush ruleset",
        ] {
            // Where the kernel knows owners, the first three are refused.
            let done = std::process::Command::new("nft").args(line.split(' ')).output().unwrap().status.success();
            if line == "flush ruleset" {
                Way::Redirect.take();
            }
            let asked = Stopwatch::start();
            until("the whole table", || {
                let table = nft("list ruleset");
                (0..known).all(|n| lists(&table, &listed4(n).to_string())) && table.contains("chain flows")
            })
            .await;
            println!("{line}: {}, whole after {:?}", if done { "done" } else { "refused" }, asked.elapsed());
            all_pass(&lab, known, line).await;
            request += 1;
            assert_eq!(flow.get().await, (connection, request), "an open connection, after {line}");
            assert_eq!(lab.client.visit("n1.other.example", RecordType::A).await, Seen::Inspected, "{line}");
        }
    });
}

#[test]
fn reload_leaves_no_gap_and_what_is_listed_no_longer_is_inspected_at_once() {
    in_gateway(async || {
        let listed = "# Demo\nlisted.example\nn1.other.example\n";
        let lab = Lab::start(Way::Redirect, |setup| setup.list("demo.list", listed), numbering).await;
        let other = std::net::Ipv4Addr::new(198, 19, 0, 2);
        let mut flow = {
            assert_eq!(lab.client.visit("n1.other.example", RecordType::A).await, Seen::Bypassed);
            lab.client.open(other, "n1.other.example").await
        };
        let first = flow.get().await;
        let done = "greenlane_catalogue_reloads_total{result=\"done\"}";
        let before = lab.greenlane.metric(done).await;
        let reloads = async {
            for n in 1..=10 {
                lab.greenlane.signal("HUP");
                lab.greenlane.until_metric(done, |count| count >= before + f64::from(n)).await;
            }
        };
        let visits = async {
            let mut n = 0;
            loop {
                // A new one, and an old one out of the cache.
                for n in [n, n / 2] {
                    assert_eq!(lab.client.visit(&name(n), RecordType::A).await, Seen::Bypassed, "n{n}");
                }
                n += 1;
            }
        };
        tokio::select! {
            () = reloads => {}
            () = visits => {}
        }
        assert_eq!(lab.late().await, 0.0);
        std::fs::write(lab.greenlane.path("zones/demo.list"), "# Demo\nlisted.example\n").unwrap();
        lab.greenlane.signal("HUP");
        lab.greenlane.until_metric(done, |count| count >= before + 11.0).await;
        until("the withdrawal", || !has("learned4", &other.to_string())).await;
        assert_eq!(lab.client.sees(other, "n1.other.example").await, Seen::Inspected);
        assert_eq!(lab.client.visit("n1.other.example", RecordType::A).await, Seen::Inspected);
        assert_eq!(lab.client.visit(&name(0), RecordType::A).await, Seen::Bypassed, "what is listed still");
        assert_eq!(flow.get().await, (first.0, 2), "a connection that was open goes on");
    });
}

#[test]
fn killed_greenlane_costs_no_client_its_bypass() {
    in_gateway(async || {
        let mut lab = Lab::start(Way::Redirect, |setup| setup, numbering).await;
        lab.client.ask(&name(0), RecordType::A).await;
        let mut flow = lab.client.open(listed4(0), &name(0)).await;
        let (connection, mut request) = flow.get().await;
        for round in 1..=3 {
            lab.client.ask(&name(round), RecordType::A).await;
            // Right behind the answer.
            lab.greenlane.signal("KILL");
            lab.greenlane.ended().await;
            for n in 0..=round {
                assert_eq!(lab.client.sees(listed4(n), &name(n)).await, Seen::Bypassed, "n{n} without greenlane");
            }
            lab.greenlane.begin_again().await;
            for n in 0..=round {
                assert_eq!(lab.client.sees(listed4(n), &name(n)).await, Seen::Bypassed, "n{n} with a new one");
            }
            request += 1;
            assert_eq!(flow.get().await, (connection, request), "a connection that was open goes on");
            assert_eq!(lab.client.visit(&name(10 + round), RecordType::A).await, Seen::Bypassed);
        }
    });
}
