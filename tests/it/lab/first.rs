//! First connections, and connections within what a client was told.

use std::time::Duration;

use futures_util::future::join_all;
use greenlane::clock::Stopwatch;
use hickory_proto::rr::RecordType;
use tokio::time::sleep;

use super::rules::Way;
use super::{Lab, Seen, either_way, in_gateway, listed4, numbering, told, until};
use crate::harness::addresses;
use crate::netns::has;

#[test]
fn first_connection_of_400_fresh_names_is_never_inspected() {
    either_way(async |way| {
        let lab = Lab::start(way, |setup| setup, numbering).await;
        let visit = async |n: u32| {
            let rtype = if n.is_multiple_of(2) { RecordType::A } else { RecordType::AAAA };
            (n, lab.client.visit(&format!("n{n}.listed.example"), rtype).await)
        };
        let mut inspected = Vec::new();
        for n in 0..200 {
            inspected.push(visit(n).await);
        }
        // Eight at a time.
        for eight in (200..400).collect::<Vec<u32>>().chunks(8) {
            inspected.extend(join_all(eight.iter().map(|n| visit(*n))).await);
        }
        inspected.retain(|(_, seen)| *seen == Seen::Inspected);
        assert_eq!(inspected, [], "of {way:?}; {} answers were late", lab.late().await);
        // What is not listed goes to the proxy: the lab can tell.
        for n in 0..10 {
            for rtype in [RecordType::A, RecordType::AAAA] {
                assert_eq!(lab.client.visit(&format!("n{n}.other.example"), rtype).await, Seen::Inspected);
            }
        }
    });
}

#[test]
fn rotating_and_short_lived_addresses_are_never_inspected() {
    in_gateway(async || {
        let seconds = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let script = move |asked: &crate::upstream::Asked| match asked.name().as_str() {
            // Another address for each question, none of which may be kept.
            "rotation.listed.example" => {
                let n = seconds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                asked.reply().answer(&told(listed4(1000 + n), 0)).act()
            }
            "constant.listed.example" => asked.reply().answer(&told(listed4(1), 2)).act(),
            _ => numbering(asked),
        };
        let ends = |setup: crate::harness::Setup| setup.with("learn", "min-hold = \"1s\"\ngrace = \"1s\"");
        let lab = Lab::start(Way::Redirect, ends, script).await;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let addr = addresses(&lab.client.ask("rotation.listed.example", RecordType::A).await).remove(0);
            let asked = Stopwatch::start();
            let flow = lab.client.open(addr.parse::<std::net::IpAddr>().unwrap(), "rotation.listed.example").await;
            assert!(flow.seen == Seen::Bypassed || asked.elapsed() > Duration::from_secs(1), "{addr}");
            seen.insert(addr);
        }
        assert_eq!(seen.len(), 100, "each time another");
        // Through four of its ends.
        let all = Stopwatch::start();
        while all.elapsed() < Duration::from_secs(8) {
            let asked = Stopwatch::start();
            let seen = lab.client.visit("constant.listed.example", RecordType::A).await;
            assert!(seen == Seen::Bypassed || asked.elapsed() > Duration::from_secs(1), "after {:?}", all.elapsed());
            sleep(Duration::from_millis(20)).await;
        }
        let asked = lab.upstream.counts()["constant.listed.example"];
        assert!((3..=8).contains(&asked), "out of the cache, but not for ever: {asked}");
    });
}

#[test]
fn last_moment_of_a_cached_answer_is_bypassed_and_what_comes_after_its_end_is_not() {
    in_gateway(async || {
        let script = |asked: &crate::upstream::Asked| asked.reply().answer(&told(super::address(asked), 4)).act();
        let ends = |setup: crate::harness::Setup| setup.with("learn", "min-hold = \"1s\"\ngrace = \"0s\"");
        let lab = Lab::start(Way::Redirect, ends, script).await;
        let name = "n1.listed.example";
        lab.client.ask(name, RecordType::A).await;
        let mut judged = 0;
        // The address leaves with the last answer that had it: the last that says "one second more".
        for n in 1..=3 {
            let name = format!("n{n}.listed.example");
            let last = loop {
                let asked = Stopwatch::start();
                let answer = lab.client.ask(&name, RecordType::A).await;
                if answer.answers[0].ttl == 1 {
                    break asked;
                }
                sleep(Duration::from_millis(50)).await;
            };
            sleep(Duration::from_millis(900).saturating_sub(last.elapsed())).await;
            let seen = lab.client.sees(listed4(n), &name).await;
            if last.elapsed() < Duration::from_secs(1) {
                judged += 1;
                assert_eq!(seen, Seen::Bypassed, "n{n}");
            }
            let left = Stopwatch::start();
            until("the end", || !has("learned4", &listed4(n).to_string())).await;
            println!("gone {:?} after a connection in the last tenth of its second", left.elapsed());
            assert_eq!(lab.client.sees(listed4(n), &name).await, Seen::Inspected, "n{n}");
        }
        assert!(judged > 0, "this machine is too slow to judge");
    });
}
