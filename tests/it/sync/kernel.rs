//! The whole way: a resolver, the agent, a real kernel looked at with the real `nft`.

use std::time::Duration;

use greenlane::clock::Stopwatch;
use hickory_proto::rr::RecordType;
use tokio::time::sleep;

use super::agent::{Agent, command, run};
use super::resolver::{Page, Resolver};
use super::{url, whole};
use crate::firewall::numbering;
use crate::harness::Setup;
use crate::metrics::assert_asked_for_what_a_firewall_has;
use crate::netns::{has, in_namespace, nft};

async fn until_has(set: &str, address: &str, agent: &Agent) {
    // Before, there may be no table to look at.
    agent.metrics.until_metric("greenlane_sync_applied_timestamp_seconds", |value| value > 0.0).await;
    agent.until(address, |_| has(set, address).then_some(())).await;
}

#[test]
fn agent_fills_the_kernel_and_empties_it_in_time() {
    in_namespace(async || {
        let upstream = numbering().await;
        let lists = "# Demo\nlisted.example\n198.51.100.0/24\n";
        let greenlane = Setup::new(upstream.addr).list("demo.list", lists).start().await;
        greenlane.ask("n1.listed.example", RecordType::A).await;
        let agent = Agent::start(&[url(&greenlane)], "").await;
        until_has("learned4", "203.0.113.1", &agent).await;
        until_has("static4", "198.51.100.0/24", &agent).await;
        greenlane.ask("n2.listed.example", RecordType::A).await;
        until_has("learned4", "203.0.113.2", &agent).await;
        // What is no longer listed leaves.
        std::fs::write(greenlane.path("zones/demo.list"), "# Demo\nn1.listed.example\n198.51.100.0/24\n").unwrap();
        greenlane.signal("HUP");
        agent.until("the withdrawal", |_| (!has("learned4", "203.0.113.2")).then_some(())).await;
        assert!(has("learned4", "203.0.113.1"));
        assert_asked_for_what_a_firewall_has(&agent.metrics.text("/metrics").await);
        // Others' flushes pass our table by.
        nft("flush ruleset");
        assert!(has("learned4", "203.0.113.1") && has("static4", "198.51.100.0/24"));
        assert!(
            agent.metrics.metric("greenlane_nftables_elements{set=\"learned4\",table=\"inet greenlane\"}").await >= 1.0
        );
    });
}

#[test]
fn change_at_the_resolver_is_in_the_kernel_within_milliseconds() {
    in_namespace(async || {
        let upstream = numbering().await;
        let greenlane = Setup::new(upstream.addr).start().await;
        let agent = Agent::start(&[url(&greenlane)], "").await;
        agent.metrics.until_metric("greenlane_sync_applied_timestamp_seconds", |value| value > 0.0).await;
        agent.metrics.until_metric("greenlane_sync_followed{resolver=\"resolver-1\"}", |value| value == 1.0).await;
        let count = "greenlane_sync_changes_total{result=\"held\"}";
        let mut took = Vec::new();
        for n in 1..=100 {
            let before = agent.metrics.metric(count).await;
            greenlane.ask(&format!("n{n}.listed.example"), RecordType::A).await;
            let answered = Stopwatch::start();
            while agent.metrics.metric(count).await <= before {
                assert!(answered.elapsed() < Duration::from_secs(10), "{}", agent.log());
            }
            took.push(answered.elapsed());
        }
        took.sort();
        let lag = agent.metrics.metric("greenlane_sync_lag_seconds_sum").await
            / agent.metrics.metric("greenlane_sync_lag_seconds_count").await;
        println!(
            "from the answer until the kernel has it, looked at over HTTP: p50 {:?}, p99 {:?}; inside the agent {:.2} ms",
            took[50],
            took[98],
            lag * 1000.0
        );
        assert!(has("learned4", "203.0.113.100"));
        assert!(took[50] < Duration::from_millis(100), "{:?}", took[50]);
    });
}

#[test]
fn agent_is_killed_while_every_resolver_is_gone_and_nothing_is_lost() {
    in_namespace(async || {
        let (one, two) = (("203.0.113.1", 900), ("203.0.113.2", 900));
        let mut first = Resolver::start(Page::json(whole(1, 1, &[one], &["198.51.100.0/24"]))).await;
        let second = Resolver::start(Page::json(whole(2, 1, &[two], &["198.51.100.0/24"]))).await;
        let urls = [first.url(), second.url()];
        let mut agent = Agent::start(&urls, "").await;
        until_has("learned4", "203.0.113.1", &agent).await;
        until_has("learned4", "203.0.113.2", &agent).await;
        agent.kill();
        assert!(has("learned4", "203.0.113.1") && has("static4", "198.51.100.0/24"), "the table outlives its owner");
        // Only the second is there when the agent comes back: what the first told is adopted.
        first.die();
        let agent = Agent::start(&urls, "").await;
        agent.metrics.until_metric("greenlane_sync_applied_timestamp_seconds", |value| value > 0.0).await;
        sleep(Duration::from_millis(300)).await;
        for address in ["203.0.113.1", "203.0.113.2"] {
            assert!(has("learned4", address), "{address}: {}\n{}", nft("list table inet greenlane"), agent.log());
        }
    });
}

#[test]
fn agent_without_any_resolver_leaves_the_kernel_as_it_is() {
    in_namespace(async || {
        let mut resolver =
            Resolver::start(Page::json(whole(1, 1, &[("203.0.113.1", 900)], &["198.51.100.0/24"]))).await;
        let urls = [resolver.url()];
        let mut agent = Agent::start(&urls, "").await;
        until_has("learned4", "203.0.113.1", &agent).await;
        resolver.die();
        agent.kill();
        let agent = Agent::start(&urls, "").await;
        let failures = "greenlane_sync_failures_total{kind=\"unreachable\",resolver=\"resolver-1\"}";
        agent.metrics.until_metric(failures, |value| value >= 2.0).await;
        assert!(has("learned4", "203.0.113.1") && has("static4", "198.51.100.0/24"), "{}", agent.log());
    });
}

#[test]
fn once_fills_the_operators_sets_and_ends() {
    in_namespace(async || {
        nft("add table ip fw");
        nft("add set ip fw bypass { type ipv4_addr; flags timeout; }");
        nft("add element ip fw bypass { 9.9.9.9 }");
        let resolver = Resolver::start(Page::json(whole(1, 1, &[("203.0.113.1", 900)], &[]))).await;
        let words = "--once --nftables guest --family ip --table fw --learned4 bypass";
        let output = run(command(&[resolver.url()], words)).await;
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let set = nft("list set ip fw bypass");
        assert!(set.contains("203.0.113.1") && set.contains("9.9.9.9"), "{set}");
        // A set that is missing: 1, and the words say what to do.
        let output =
            run(command(&[resolver.url()], "--once --nftables guest --family ip --table fw --learned4 gone")).await;
        let talk = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && talk.contains("add set ip fw gone"), "{talk}");
    });
}
