//! First connections, and connections within what a client was told.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use greenlane::clock::Stopwatch;
use hickory_proto::rr::RecordType;
use tokio::time::sleep;

use super::rules::Way;
use super::{Lab, Seen, address, either_way, in_gateway, listed4, numbering, told, until};
use crate::harness::{PATIENCE, Setup, addresses};
use crate::netns::has;
use crate::upstream::Asked;

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
        // Eight who ask the same at the same time.
        for n in 400..410 {
            inspected.extend(join_all((0..8).map(|_| visit(n))).await);
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
        let rotated = AtomicU32::new(0);
        let script = move |asked: &Asked| match asked.name().as_str() {
            // Another address for each question, none of which may be kept.
            "rotation.listed.example" => {
                let n = rotated.fetch_add(1, Ordering::Relaxed);
                asked.reply().answer(&told(listed4(1000 + n), 0)).act()
            }
            "constant.listed.example" => asked.reply().answer(&told(listed4(1), 2)).act(),
            _ => numbering(asked),
        };
        let ends = |setup: Setup| setup.with("learn", "min-hold = \"1s\"\ngrace = \"1s\"");
        let lab = Lab::start(Way::Redirect, ends, script).await;
        let mut different = BTreeSet::new();
        for _ in 0..100 {
            let name = "rotation.listed.example";
            let asked = Stopwatch::start();
            let addr: IpAddr = addresses(&lab.client.ask(name, RecordType::A).await)[0].parse().unwrap();
            let seen = lab.client.sees(addr, name).await;
            assert!(seen == Seen::Bypassed || asked.elapsed() > Duration::from_secs(1), "{addr}");
            different.insert(addr);
        }
        assert_eq!(different.len(), 100, "each time another");
        // Through four of its ends.
        let all = Stopwatch::start();
        while all.elapsed() < Duration::from_secs(8) {
            let asked = Stopwatch::start();
            let seen = lab.client.visit("constant.listed.example", RecordType::A).await;
            assert!(seen == Seen::Bypassed || asked.elapsed() > Duration::from_secs(1), "after {:?}", all.elapsed());
            sleep(Duration::from_millis(20)).await;
        }
        assert!(lab.upstream.counts()["constant.listed.example"] > 1, "it did end");
        assert_eq!(lab.client.visit("n1.other.example", RecordType::A).await, Seen::Inspected);
    });
}

#[test]
fn last_moment_of_a_cached_answer_is_bypassed_and_what_comes_after_its_end_is_not() {
    in_gateway(async || {
        let script = |asked: &Asked| asked.reply().answer(&told(address(asked), 4)).act();
        let ends = |setup: Setup| setup.with("learn", "min-hold = \"1s\"\ngrace = \"0s\"");
        let lab = Lab::start(Way::Redirect, ends, script).await;
        let mut judged = 0;
        for n in 1..=3 {
            let name = format!("n{n}.listed.example");
            // The last answer says "one second more".
            let all = Stopwatch::start();
            let last = loop {
                let asked = Stopwatch::start();
                let answer = lab.client.ask(&name, RecordType::A).await;
                if answer.answers[0].ttl == 1 {
                    break asked;
                }
                assert!(all.elapsed() < 4 * PATIENCE, "{answer:?}");
                sleep(Duration::from_millis(50)).await;
            };
            sleep(Duration::from_millis(800).saturating_sub(last.elapsed())).await;
            let seen = lab.client.sees(listed4(n), &name).await;
            if last.elapsed() < Duration::from_secs(1) {
                judged += 1;
                assert_eq!(seen, Seen::Bypassed, "n{n}");
            }
            until("the end", || !has("learned4", &listed4(n).to_string())).await;
            println!("gone {:?} after an answer for one second", last.elapsed());
            assert_eq!(lab.client.sees(listed4(n), &name).await, Seen::Inspected, "n{n}");
        }
        println!("{judged} of 3 connections were quick enough to be judged");
    });
}
