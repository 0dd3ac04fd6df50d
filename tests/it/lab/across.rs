//! A firewall that is not the resolver's host: `greenlane sync` on the gateway.
//!
//! The resolver is a fourth host with one leg to the gateway (for `sync`), one to the client (for its questions) and
//! one to the internet, so that the first can be cut without the others.

use std::time::Duration;

use greenlane::clock::Stopwatch;
use hickory_proto::rr::RecordType;
use tokio::time::sleep;

use super::rules::Way;
use super::{Ground, Seen, in_gateway, listed4, numbering, until, up};
use crate::netns::{Place, has, ip};
use crate::sync::agent::Agent;

const TOKEN: &str = "read-token-of-the-lab";

/// Connects the resolver's host with the others.
fn connect(ground: &Ground) -> Place {
    let office = Place::new();
    ip(&format!("link add name dmz0 type veth peer name dmz0 netns {}", office.path()));
    up("dmz0", &["10.98.0.1/24"]);
    ground.net.client.enter(|| {
        ip(&format!("link add name eth1 type veth peer name lan0 netns {}", office.path()));
        up("eth1", &["10.97.0.2/24"]);
    });
    ground.net.internet.enter(|| {
        ip(&format!("link add name eth1 type veth peer name wan0 netns {}", office.path()));
        up("eth1", &["10.96.0.53/24"]);
    });
    office.enter(|| {
        up("dmz0", &["10.98.0.2/24"]);
        up("lan0", &["10.97.0.1/24"]);
        up("wan0", &["10.96.0.1/24"]);
        ip("route add 192.0.2.53 via 10.96.0.53");
    });
    office
}

#[test]
fn firewall_elsewhere_follows_catches_up_and_loses_nothing() {
    in_gateway(async || {
        let ground = Ground::lay(None, numbering).await;
        let office = connect(&ground);
        Way::Redirect.take();
        let folder = tempfile::TempDir::new().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, TOKEN).unwrap();
        let greenlane = ground
            .setup()
            .only("listen", "dns = [\"10.97.0.1:53\"]\nweb = \"10.98.0.2:8053\"")
            .with("web", &format!("read-token-file = \"{}\"", token.display()))
            .inside(&office)
            .start()
            .await;
        let client = ground.client.clone().with_resolver(greenlane.dns);
        let name = |n: u32| format!("n{n}.listed.example");
        let is_there = |n: u32| has("learned4", &listed4(n).to_string());
        assert_eq!(client.visit(&name(0), RecordType::A).await, Seen::Inspected, "nobody has told the firewall");

        let start = async || {
            let urls = [format!("http://{}", greenlane.web)];
            let agent = Agent::start(&urls, &format!("--token-file {}", token.display())).await;
            agent.metrics.until_metric("greenlane_sync_applied_timestamp_seconds", |value| value > 0.0).await;
            agent.metrics.until_metric("greenlane_sync_followed{resolver=\"resolver-1\"}", |value| value == 1.0).await;
            agent
        };
        let mut agent = start().await;
        assert_eq!(client.sees(listed4(0), &name(0)).await, Seen::Bypassed, "what was learned before");
        let mut late = 0;
        for n in 1..=100 {
            late += usize::from(client.visit(&name(n), RecordType::A).await == Seen::Inspected);
            until("the follower", || is_there(n)).await;
            assert_eq!(client.sees(listed4(n), &name(n)).await, Seen::Bypassed, "{n}");
        }
        println!("{late} of 100 first connections came before the follower");

        // Killed: the kernel goes on, and a new agent takes up what was missed.
        agent.kill();
        client.ask(&name(101), RecordType::A).await;
        for n in [0, 50, 100] {
            assert_eq!(client.sees(listed4(n), &name(n)).await, Seen::Bypassed, "{n}, without an agent");
        }
        assert_eq!(client.sees(listed4(101), &name(101)).await, Seen::Inspected);
        let agent = start().await;
        for n in [0, 50, 100, 101] {
            assert_eq!(client.sees(listed4(n), &name(n)).await, Seen::Bypassed, "{n}, with a new agent");
        }

        // The way to the resolver is cut for some seconds.
        ip("link set dmz0 down");
        client.ask(&name(102), RecordType::A).await;
        let cut = Stopwatch::start();
        while cut.elapsed() < Duration::from_secs(3) {
            for n in [0, 50, 100, 101] {
                assert_eq!(client.sees(listed4(n), &name(n)).await, Seen::Bypassed, "{n}, cut off");
            }
            sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(client.sees(listed4(102), &name(102)).await, Seen::Inspected);
        ip("link set dmz0 up");
        let mended = Stopwatch::start();
        until("the follower after the cut", || is_there(102)).await;
        println!("caught up {:?} after the end of a cut of {:?}", mended.elapsed(), cut.elapsed() - mended.elapsed());
        for n in [0, 50, 100, 101, 102] {
            assert_eq!(client.sees(listed4(n), &name(n)).await, Seen::Bypassed, "{n}, together again");
        }
        drop(agent);
    });
}
