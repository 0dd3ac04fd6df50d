//! The engine dies, forgets, asks for a password, or is not there at all.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use crate::harness::Setup;
use crate::sync::agent::Agent;

use super::*;

#[tokio::test]
async fn engine_that_dies_is_missed_by_nobody_and_caught_up_with() {
    if !has_engine() {
        return;
    }
    let (upstream, mut engine) = (numbering().await, Engine::start_durable().await);
    let (mut a, b) = two_joined(&upstream, &engine).await;
    learn(&a, 1, 0..10).await;
    until_one(&[&a, &b], |page| host_count(page) == 10).await;
    for (round, keeps) in [(2, true), (3, false)] {
        engine.kill();
        a.until_metric("greenlane_cluster_up", |up| up == 0.0).await;
        // Answers go on, on both sides.
        learn(&a, 10 * round, 0..10).await;
        learn(&b, 10 * round + 1, 0..10).await;
        let mine = a.text("/prefixes.txt").await;
        assert!(mine.contains(&format!("198.18.{}.0/", 10 * round)));
        if !keeps {
            engine.empty();
        }
        engine.begin_again().await;
        let expected = 10 + 20 * (u64::from(round) - 1);
        let page = until_one(&[&a, &b], |page| host_count(page) == expected).await;
        until_joined(&a).await;
        until_joined(&b).await;
        let c = setup(&upstream, &engine).start().await;
        assert_eq!(c.text("/prefixes.txt").await, page, "the engine holds all of it again");
    }
    let log = a.until(|a| Some(a.log()).filter(|log| log.matches(" is back after ").count() == 2)).await;
    assert_eq!(log.matches(" is away: ").count(), 2, "one line an outage: {log}");
}

#[tokio::test]
async fn engine_that_forgets_is_told_all_again() {
    if !has_engine() {
        return;
    }
    let (upstream, engine) = (numbering().await, Engine::start().await);
    let a = setup(&upstream, &engine).start().await;
    until_joined(&a).await;
    learn(&a, 1, 0..10).await;
    a.until_metric("greenlane_cluster_sent_total", |sent| sent >= 10.0).await;
    let _: String = engine.run(&[b"FLUSHALL"]).await;
    let mut held = 0;
    for _ in 0..PATIENCE.as_millis() / 20 {
        held = engine.run::<u64>(&[b"ZCARD", b"greenlane:{greenlane}:sightings"]).await;
        if held == 10 {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("it holds {held}\n{}", a.log());
}

#[tokio::test]
async fn without_an_engine_everything_but_the_others_is_there() {
    let upstream = numbering().await;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mut a = Setup::new(upstream.addr)
        .with("store", &format!("cluster = \"redis://me:geheim@127.0.0.1:{port}\""))
        .with("log", "level = \"debug\"")
        .start()
        .await;
    learn(&a, 1, 0..10).await;
    assert_eq!(host_count(&a.text("/prefixes.txt").await), 10);
    a.until_metric("greenlane_cluster_errors_total", |errors| errors >= 3.0).await;
    assert_eq!(a.metric("greenlane_cluster_up").await, 0.0);
    let log = a.until(|a| Some(a.log()).filter(|log| log.contains("is still away"))).await;
    assert_eq!(log.matches(" is away: ").count(), 1, "{log}");
    assert!(!log.contains("geheim"), "{log}");
    a.restart("TERM").await;
    assert_eq!(host_count(&a.text("/prefixes.txt").await), 10, "a local durable write is never skipped");
}

#[tokio::test]
async fn tls_and_a_user_with_few_rights_are_enough() {
    if !has_engine() {
        return;
    }
    let folder = tempfile::TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let path = |file: &str| folder.path().join(file).display().to_string();
    fs::write(path("cert.pem"), made.cert.pem()).unwrap();
    fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let rights = "on >right ~greenlane:{greenlane}:* +zadd +zscan +zremrangebyscore +xadd +xread +xrevrange +set +get \
                  +hset +hlen +hgetall +hdel +multi +exec +time";
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let mut options = vec!["--port", "0", "--tls-port", "{port}", "--tls-cert-file", &cert, "--tls-key-file", &key];
    options.extend(["--tls-auth-clients", "no", "--save", "", "--user", "default", "off", "--user", "resolver"]);
    options.extend(rights.split_whitespace());
    let engine = Engine::start_with(Ipv4Addr::LOCALHOST.into(), &options).await;
    let upstream = numbering().await;
    let tls = |password: &str| {
        let store = format!(
            "cluster = \"rediss://resolver@{}\"\ncluster-password-file = \"password\"\ncluster-ca-file = \"{}\"",
            engine.addr,
            path("cert.pem"),
        );
        setup(&upstream, &engine).only("store", &store).file("password", password)
    };
    let a = tls("right\n").start().await;
    let mut b = tls("wrong\nright\n").start().await;
    until_joined(&a).await;
    learn(&a, 1, 0..5).await;
    b.until(|b| b.log().contains(" is away: ").then_some(())).await;
    assert!(!b.log().contains("wrong\n"), "{}", b.log());
    // The file is read for each connection.
    fs::write(b.path("password"), "right").unwrap();
    until_one(&[&a, &b], |page| host_count(page) == 5).await;
    // A certificate that nobody vouches for is not talked to.
    let store = format!("cluster = \"rediss://resolver:right@{}\"", engine.addr);
    let c = setup(&upstream, &engine).only("store", &store).start().await;
    c.until_metric("greenlane_cluster_errors_total", |errors| errors >= 1.0).await;
    assert_eq!(host_count(&c.text("/prefixes.txt").await), 0);
    assert!(c.log().contains("certificate"), "{}", c.log());
}

#[tokio::test]
async fn password_file_that_cannot_be_used_is_named_at_the_start() {
    let store = "cluster = \"rediss://me@127.0.0.1:1\"\ncluster-password-file = \"nowhere\"";
    let folder = Setup::new(([127, 0, 0, 1], 1).into()).with("store", store).write();
    let ran =
        crate::harness::greenlane().arg("serve").arg("-c").arg(folder.path().join("config.toml")).output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{said}");
    assert!(said.contains("store.cluster-password-file: ") && said.contains("nowhere"), "{said}");
}

/// A firewall's follower that loses its resolver finds all it had at the next one.
#[tokio::test]
async fn followers_move_between_resolvers_without_a_withdrawal() {
    if !has_engine() {
        return;
    }
    let (upstream, engine) = (numbering().await, Engine::start().await);
    let (mut a, b) = two_joined(&upstream, &engine).await;
    learn(&a, 1, 0..10).await;
    until_one(&[&a, &b], |page| host_count(page) == 10).await;
    let urls = [&a, &b].map(|one| format!("http://{}", one.web));
    let agent = Agent::start(&urls, "--dry-run").await;
    agent.until_line("+ 198.18.1.9/32").await;
    a.signal("KILL");
    a.ended().await;
    learn(&b, 2, 0..10).await;
    agent.until_line("+ 198.18.2.9/32").await;
    a.begin_again().await;
    assert_eq!(host_count(&a.text("/prefixes.txt").await), 20, "from its first answer on");
    assert!(agent.lines().iter().all(|line| !line.starts_with('-')), "{:?}", agent.lines());
    assert_eq!(agent.metrics.metric("greenlane_sync_entries{family=\"4\",origin=\"learned\"}").await, 20.0);
    // One that follows the new process alone finds as much there.
    let other = Agent::start(&[format!("http://{}", a.web)], "--dry-run").await;
    other.until_line("+ 198.18.2.9/32").await;
    assert_eq!(other.metrics.metric("greenlane_sync_entries{family=\"4\",origin=\"learned\"}").await, 20.0);
}
