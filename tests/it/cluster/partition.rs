//! One resolver is cut off from the engine, in a network namespace of its own.

use std::net::{Ipv4Addr, SocketAddr};

use crate::formats::has_tools;
use crate::netns::{Place, in_namespace, ip};

use super::*;

/// Connects this namespace and `place` by a link of its own: `.1` here, `.2` there.
fn link(place: &Place, name: &str, net: &str) {
    ip(&format!("link add {name} type veth peer name {name} netns {}", place.path()));
    ip(&format!("address add {net}.1/24 dev {name}"));
    ip(&format!("link set {name} up"));
    place.enter(|| {
        ip(&format!("address add {net}.2/24 dev {name}"));
        ip(&format!("link set {name} up"));
    });
}

#[test]
fn both_sides_of_a_partition_go_on_and_become_one_again() {
    if !has_engine() || !has_tools(&["nft"]) {
        return;
    }
    in_namespace(|| async {
        let there = Place::new();
        // By one link the test and the upstream reach the resolver, by the other it reaches the engine.
        link(&there, "front", "10.99.1");
        link(&there, "back", "10.99.2");
        let engine = Engine::start_with(Ipv4Addr::new(10, 99, 2, 1).into(), &["--save", ""]).await;
        let front: SocketAddr = "10.99.1.1:0".parse().unwrap();
        let udp = tokio::net::UdpSocket::bind(front).await.unwrap();
        let front = udp.local_addr().unwrap();
        let tcp = tokio::net::TcpListener::bind(front).await.unwrap();
        let upstream = Upstream::over(udp, tcp, |asked| asked.a(number(asked)));
        let shared = || setup(&upstream, &engine).with("store", "insecure = true");
        let a = shared().start().await;
        let b = shared()
            .only("listen", "dns = [\"10.99.1.2:0\"]\nweb = \"10.99.1.2:0\"")
            .only("clients", "allow = [\"10.99.1.0/24\"]")
            .inside(&there)
            .start()
            .await;
        until_joined(&a).await;
        until_joined(&b).await;
        learn(&a, 1, 0..10).await;
        until_one(&[&a, &b], |page| host_count(page) == 10).await;

        ip("link set back down");
        learn(&a, 2, 0..10).await;
        learn(&b, 3, 0..10).await;
        b.until_metric("greenlane_cluster_up", |up| up == 0.0).await;
        learn(&b, 4, 0..10).await;
        assert_eq!(a.metric("greenlane_cluster_up").await, 1.0, "only one is cut off");
        assert_eq!(host_count(&a.text("/prefixes.txt").await), 20);
        assert_eq!(host_count(&b.text("/prefixes.txt").await), 30);

        ip("link set back up");
        until_one(&[&a, &b], |page| host_count(page) == 40).await;
    });
}
