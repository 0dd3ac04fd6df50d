//! Engines against a real kernel, in a network namespace of their own, looked at from outside with the real `nft`.
//!
//! A test that may not make a namespace, or finds no `nft`, says so and passes; with `GREENLANE_TEST_REQUIRE=all` it
//! fails.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use tokio::time::Instant;

use super::layout::Ownership;
use super::plan::Renewal;
use super::testing::Kernel;
use super::*;
use crate::clock::Timestamp;
use crate::metrics::Registry;
use crate::set::outlet::{Change, Outlet, State, outlet};
use crate::set::{Session, StaticEntry};

/// Runs a test on a thread in a network namespace of its own, which goes with the thread.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let is_required = std::env::var("GREENLANE_TEST_REQUIRE").is_ok_and(|value| value == "all");
    let has_nft = Command::new("nft").arg("--version").output().is_ok_and(|output| output.status.success());
    let ran = thread::spawn(move || {
        if !has_nft || unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return false;
        }
        test();
        true
    });
    let ran = ran.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert!(ran || !is_required, "needs root and nft");
    if !ran {
        println!("skipped: needs root and nft");
    }
}

fn nft(line: &str) -> String {
    let output = Command::new("nft").arg(line).output().unwrap();
    assert!(output.status.success(), "nft {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the elements of a set as `nft -j` tells them: key, and seconds until it ends.
fn elements(set: &str) -> Vec<(String, Option<u64>)> {
    let output = Command::new("nft").args(["-j", "list", "set"]).args(set.split(' ')).output().unwrap();
    let Ok(list) = serde_json::from_slice::<Value>(&output.stdout) else { return Vec::new() };
    let set =
        list["nftables"].as_array().unwrap().iter().find_map(|thing| thing.get("set")).cloned().unwrap_or_default();
    let key = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Object(map) if map.contains_key("prefix") => {
            format!("{}/{}", map["prefix"]["addr"].as_str().unwrap(), map["prefix"]["len"])
        }
        other => format!("{}-{}", other["range"][0].as_str().unwrap(), other["range"][1].as_str().unwrap()),
    };
    let element = |value: &Value| match value.get("elem") {
        Some(elem) => (key(&elem["val"]), elem.get("expires").and_then(Value::as_u64)),
        None => (key(value), None),
    };
    let mut found: Vec<_> = set["elem"].as_array().into_iter().flatten().map(element).collect();
    found.sort();
    found
}

fn keys(set: &str) -> Vec<String> {
    elements(set).into_iter().map(|(key, _)| key).collect()
}

fn expires(set: &str, key: &str) -> u64 {
    elements(set)
        .into_iter()
        .find(|(found, _)| found == key)
        .and_then(|(_, expires)| expires)
        .unwrap_or_else(|| panic!("{key} in {set}"))
}

/// Waits until something holds and says how long that took: some 20 ms where a second is the promise. The bound is
/// wider, since a busy machine is no broken engine.
fn soon(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
        thread::sleep(Duration::from_millis(5));
    }
    println!("{what}: {} ms", begun.elapsed().as_millis());
}

fn own() -> Options {
    let name = |name: &str| Some(name.to_owned());
    Options {
        mode: Mode::Own { mark: 0x1000_0000, size: 65_536 },
        family: TableFamily::Inet,
        table: "greenlane".to_owned(),
        sets: SetNames {
            learned4: name("learned4"),
            learned6: name("learned6"),
            static4: name("static4"),
            static6: name("static6"),
        },
        hold: Duration::from_millis(100),
    }
}

fn guest(learned4: Option<&str>, static4: Option<&str>) -> Options {
    let name = |name: Option<&str>| name.map(str::to_owned);
    let sets = SetNames { learned4: name(learned4), static4: name(static4), ..SetNames::default() };
    Options { mode: Mode::Guest, table: "filter".to_owned(), sets, ..own() }
}

/// An engine at work, and the writer's end of its way.
struct Rig {
    outlet: Outlet,
    clock: Clock,
    registry: Registry,
    table: String,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    fn start(options: Options) -> Self {
        Self::start_with(options, Surplus::Withdraw, |_| {})
    }

    /// Starts one whose table anybody may change.
    fn start_shared(options: Options) -> Self {
        Self::start_with(options, Surplus::Withdraw, |engine| engine.ownership = Ownership::Shared)
    }

    fn start_with(options: Options, surplus: Surplus, prepare: impl FnOnce(&mut Engine)) -> Self {
        let (outlet, intake) = outlet("nftables");
        let (clock, registry) = (Clock::system(), Registry::new());
        let table = format!("{} {}", options.family.as_str(), options.table);
        let mut engine = Engine::new(options, surplus, intake.health(), clock.clone(), &Metrics::new(&registry));
        prepare(&mut engine);
        start_engine(engine, intake).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        Self { outlet, clock, registry, table, runtime }
    }

    fn send(&self, fill: impl FnOnce(&mut Change)) -> Applied {
        let mut change = Change::empty(Session(7), 1, self.clock.now());
        fill(&mut change);
        change.hosts.sort_unstable();
        let mut reply = self.outlet.send(&Arc::new(change)).unwrap();
        let answer = async { tokio::time::timeout(Duration::from_secs(20), reply.wait()).await };
        self.runtime.block_on(answer).expect("an answer")
    }

    fn whole(&self, hosts: &[(&str, u64)], statics: &[&str]) -> Applied {
        self.send(|change| {
            change.whole = true;
            change.hosts = self.hosts(hosts);
            change.statics = Some(entries(statics));
        })
    }

    fn grant(&self, hosts: &[(&str, u64)]) -> Applied {
        self.send(|change| change.hosts = self.hosts(hosts))
    }

    fn withdraw(&self, host: &str) -> Applied {
        self.send(|change| change.hosts = vec![(host.parse().unwrap(), None)])
    }

    fn hosts(&self, hosts: &[(&str, u64)]) -> Vec<(IpAddr, Option<Timestamp>)> {
        let until = |secs: u64| Some(self.clock.now().after(Duration::from_secs(secs)));
        hosts.iter().map(|(addr, secs)| (addr.parse().unwrap(), until(*secs))).collect()
    }

    /// Returns a metric of this engine; its label `table` is left out.
    fn metric(&self, line: &str) -> f64 {
        let text = String::from_utf8(self.registry.render()).unwrap();
        let label = format!("table=\"{}\"", self.table);
        let line = match line.strip_suffix('}') {
            Some(line) => format!("{line},{label}}}"),
            None => format!("{line}{{{label}}}"),
        };
        let value = text.lines().find_map(|found| found.strip_prefix(&line)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {line} in {text}")).parse().unwrap()
    }

    /// Ends the engine and waits until its socket is closed.
    fn end(self) {
        drop(self);
        thread::sleep(Duration::from_millis(600));
    }
}

fn entries(statics: &[&str]) -> Arc<[StaticEntry]> {
    statics.iter().map(|prefix| StaticEntry { prefix: prefix.parse().unwrap(), apps: Arc::from([]) }).collect()
}

#[test]
fn own_table_is_made_as_documented() {
    in_namespace(|| {
        let rig = Rig::start_shared(own());
        assert_eq!(rig.whole(&[], &["198.51.100.0/25", "198.51.100.128/25", "2001:db8::/32"]), Applied::Held);
        let expected = include_str!("../../../tests/golden/nftables-own.txt");
        assert_eq!(nft("list table inet greenlane"), expected);
        assert_eq!(rig.outlet.state(), State::Up);
        assert_eq!(rig.metric("greenlane_nftables_up"), 1.0);
        assert_eq!(rig.metric("greenlane_nftables_elements{set=\"static4\"}"), 1.0);
    });
}

#[test]
fn owned_table_is_out_of_others_reach_and_outlives_its_owner() {
    in_namespace(|| {
        let rig = Rig::start(own());
        assert_eq!(rig.whole(&[("192.0.2.1", 600)], &["198.51.100.0/24"]), Applied::Held);
        nft("flush ruleset");
        assert_eq!(keys("inet greenlane learned4"), ["192.0.2.1"]);
        let output = Command::new("nft").arg("flush set inet greenlane learned4").output().unwrap();
        assert!(!output.status.success());
        assert_eq!(
            remove(&own()).unwrap_err().0,
            Trouble::OwnedByAnother { family: TableFamily::Inet, table: "greenlane".to_owned() }
        );
        rig.end();
        assert_eq!(keys("inet greenlane learned4"), ["192.0.2.1"], "it outlives us");
        let rig = Rig::start(own());
        let handle = || Command::new("nft").args(["-a", "list", "tables"]).output().unwrap().stdout;
        let made = handle();
        assert_eq!(rig.whole(&[("192.0.2.1", 900), ("192.0.2.2", 900)], &["198.51.100.0/24"]), Applied::Held);
        assert_eq!(keys("inet greenlane learned4"), ["192.0.2.1", "192.0.2.2"]);
        assert!(expires("inet greenlane learned4", "192.0.2.1") > 890);
        assert_eq!(handle(), made, "adopted, not made anew");
        rig.end();
        assert_eq!(remove(&own()), Ok(Removed::Table));
        assert_eq!(remove(&own()), Ok(Removed::Nothing));
        assert_eq!(nft("list ruleset"), "");
    });
}

#[test]
fn hosts_are_added_renewed_withdrawn_and_expire() {
    for renewal in [None, Some(Renewal::Replace)] {
        in_namespace(move || {
            let rig = Rig::start_with(own(), Surplus::Withdraw, |engine| engine.renewal = renewal);
            rig.whole(&[], &[]);
            assert_eq!(rig.grant(&[("192.0.2.1", 60), ("192.0.2.2", 2), ("2001:db8::1", 60)]), Applied::Held);
            assert_eq!(keys("inet greenlane learned4"), ["192.0.2.1", "192.0.2.2"]);
            assert_eq!(keys("inet greenlane learned6"), ["2001:db8::1"]);
            assert!((58..=60).contains(&expires("inet greenlane learned4", "192.0.2.1")));
            // A plain add of an element that is there would succeed and renew nothing.
            for secs in [120, 600, 601] {
                assert_eq!(rig.grant(&[("192.0.2.1", secs), ("2001:db8::1", secs)]), Applied::Held);
                for (set, key) in [("inet greenlane learned4", "192.0.2.1"), ("inet greenlane learned6", "2001:db8::1")]
                {
                    assert!((secs - 2..=secs).contains(&expires(set, key)), "{key} renewed to {secs}");
                }
            }
            assert_eq!(rig.withdraw("192.0.2.1"), Applied::Held);
            assert_eq!(rig.withdraw("192.0.2.1"), Applied::Held, "gone already");
            thread::sleep(Duration::from_millis(2100));
            assert_eq!(keys("inet greenlane learned4"), Vec::<String>::new());
            assert_eq!(rig.withdraw("192.0.2.2"), Applied::Held, "the kernel was quicker");
            assert_eq!(rig.grant(&[("192.0.2.2", 60)]), Applied::Held);
            assert_eq!(keys("inet greenlane learned4"), ["192.0.2.2"]);
            let commits = rig.metric("greenlane_nftables_transactions_total{result=\"done\"}");
            rig.send(|_| {});
            assert_eq!(
                rig.metric("greenlane_nftables_transactions_total{result=\"done\"}"),
                commits,
                "none without a change"
            );
        });
    }
}

#[test]
fn statics_change_and_are_aggregated() {
    in_namespace(|| {
        let rig = Rig::start(own());
        rig.whole(&[], &["198.51.100.0/24", "203.0.113.0/25", "2001:db8::/48"]);
        let change = |statics: &[&str]| rig.send(|change| change.statics = Some(entries(statics)));
        assert_eq!(
            change(&["198.51.100.0/24", "198.51.101.0/24", "203.0.113.0/24", "255.255.255.255/32"]),
            Applied::Held
        );
        assert_eq!(keys("inet greenlane static4"), ["198.51.100.0/23", "203.0.113.0/24", "255.255.255.255"]);
        assert_eq!(keys("inet greenlane static6"), Vec::<String>::new());
        assert_eq!(change(&["198.51.100.0/25", "198.51.101.0/24"]), Applied::Held);
        assert_eq!(keys("inet greenlane static4"), ["198.51.100.0/25", "198.51.101.0/24"]);
    });
}

#[test]
fn what_others_do_to_our_table_is_put_right() {
    in_namespace(|| {
        let rig = Rig::start_shared(own());
        rig.whole(&[("192.0.2.1", 600), ("192.0.2.2", 600), ("2001:db8::1", 600)], &["198.51.100.0/24"]);
        let golden = nft("list table inet greenlane");
        let shape =
            |text: &str| text.lines().filter(|line| !line.contains("expires")).map(str::to_owned).collect::<Vec<_>>();
        let is_whole = || {
            keys("inet greenlane learned4") == ["192.0.2.1", "192.0.2.2"]
                && keys("inet greenlane learned6") == ["2001:db8::1"]
                && keys("inet greenlane static4") == ["198.51.100.0/24"]
                && elements("inet greenlane learned4")[0].1.is_some_and(|secs| secs > 500)
                && shape(&nft("list table inet greenlane")) == shape(&golden)
        };
        assert!(is_whole());
        let deeds = [
            "flush set inet greenlane learned4",
            "flush set inet greenlane static4",
            "delete element inet greenlane learned6 { 2001:db8::1 }",
            "add element inet greenlane learned4 { 203.0.113.9 }",
            "delete element inet greenlane learned4 { 192.0.2.1 }; add element inet greenlane learned4 { 192.0.2.1 timeout 5s }",
            "delete element inet greenlane learned4 { 192.0.2.1 }; add element inet greenlane learned4 { 192.0.2.1 }",
            "flush chain inet greenlane flows",
            "add rule inet greenlane flows counter",
            "delete table inet greenlane",
            "flush ruleset",
            "add table inet greenlane { flags dormant; }",
        ];
        for (count, deed) in (1..).zip(deeds) {
            nft(deed);
            soon(deed, is_whole);
            soon("counted", || rig.metric("greenlane_nftables_repairs_total") >= f64::from(count));
        }
        assert_eq!(rig.outlet.state(), State::Up);
        assert_eq!(rig.grant(&[("192.0.2.3", 600)]), Applied::Held);
        // A reload deletes all and comes back with others' tables at once.
        nft("flush ruleset; add table inet filter");
        soon("reload", || keys("inet greenlane learned4").len() == 3);
    });
}

#[test]
fn order_finds_the_table_gone_and_makes_it() {
    in_namespace(|| {
        let rig = Rig::start_shared(own());
        rig.whole(&[("192.0.2.1", 600)], &[]);
        nft("delete table inet greenlane");
        assert_eq!(rig.grant(&[("192.0.2.2", 600)]), Applied::Held);
        assert_eq!(keys("inet greenlane learned4"), ["192.0.2.1", "192.0.2.2"]);
    });
}

#[test]
fn other_layouts_of_our_table_are_replaced_in_one_step() {
    in_namespace(|| {
        nft(
            "add table inet greenlane { comment \"greenlane, layout 0\"; set old { type ipv4_addr; elements = { 192.0.2.1 } }; }",
        );
        let rig = Rig::start(own());
        assert_eq!(rig.whole(&[("192.0.2.1", 600)], &[]), Applied::Held);
        assert!(!nft("list table inet greenlane").contains("set old"));
        rig.end();
        let marked = Options { mode: Mode::Own { mark: 0x3, size: 1000 }, ..own() };
        let rig = Rig::start(marked);
        assert_eq!(rig.whole(&[("192.0.2.1", 600)], &[]), Applied::Held);
        let text = nft("list table inet greenlane");
        assert!(text.contains("ct mark set ct mark | 0x00000003") && text.contains("size 1000"), "{text}");
    });
}

#[test]
fn anothers_table_of_our_name_is_left_alone() {
    in_namespace(|| {
        nft("add table inet greenlane { set learned4 { type ipv4_addr; }; }");
        let before = nft("list ruleset");
        let rig = Rig::start(own());
        assert_eq!(rig.whole(&[("192.0.2.1", 600)], &[]), Applied::Failed);
        assert_eq!(rig.outlet.state(), State::Down);
        assert_eq!(nft("list ruleset"), before);
        assert!(matches!(remove(&own()), Err(RemoveError(Trouble::ForeignTable { .. }))));
        nft("delete table inet greenlane");
        soon("made once there is room", || keys("inet greenlane learned4") == ["192.0.2.1"]);
        soon("up", || rig.outlet.state() == State::Up);
    });
}

#[test]
fn surplus_is_adopted_only_when_asked() {
    for surplus in [Surplus::Adopt, Surplus::Withdraw] {
        in_namespace(move || {
            let rig = Rig::start(own());
            rig.whole(&[("192.0.2.1", 600), ("192.0.2.2", 600), ("192.0.2.3", 600)], &["198.51.100.0/24"]);
            rig.end();
            let rig = Rig::start_with(own(), surplus, |_| {});
            assert_eq!(rig.whole(&[("192.0.2.1", 600)], &[]), Applied::Held);
            assert_eq!(keys("inet greenlane static4"), Vec::<String>::new());
            if surplus == Surplus::Withdraw {
                assert_eq!(keys("inet greenlane learned4"), ["192.0.2.1"]);
                return;
            }
            assert_eq!(keys("inet greenlane learned4").len(), 3);
            assert_eq!(rig.metric("greenlane_nftables_unexplained_elements"), 2.0);
            // Learned again, it is explained; withdrawn, it leaves.
            assert_eq!(rig.grant(&[("192.0.2.2", 1200)]), Applied::Held);
            assert!(expires("inet greenlane learned4", "192.0.2.2") > 1190);
            assert_eq!(rig.withdraw("192.0.2.3"), Applied::Held);
            assert_eq!(keys("inet greenlane learned4"), ["192.0.2.1", "192.0.2.2"]);
            assert_eq!(rig.metric("greenlane_nftables_unexplained_elements"), 0.0);
        });
    }
}

#[test]
fn full_set_keeps_what_fits_and_recovers() {
    in_namespace(|| {
        let rig = Rig::start(Options { mode: Mode::Own { mark: 1, size: 4 }, ..own() });
        rig.whole(&[], &[]);
        let hosts: Vec<String> = (1..=6).map(|n| format!("192.0.2.{n}")).collect();
        let hosts: Vec<(&str, u64)> = hosts.iter().map(|host| (host.as_str(), 600)).collect();
        assert_eq!(rig.grant(&hosts), Applied::Failed);
        assert_eq!(keys("inet greenlane learned4").len(), 4);
        assert_eq!(rig.outlet.state(), State::Down);
        assert!(rig.metric("greenlane_nftables_failures_total{kind=\"full\"}") >= 2.0);
        assert_eq!(rig.metric("greenlane_nftables_up"), 0.0);
        for host in keys("inet greenlane learned4").iter().take(3) {
            rig.withdraw(host);
        }
        let begun = Instant::now();
        while rig.outlet.state() != State::Up {
            assert!(begun.elapsed() < Duration::from_secs(5));
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(keys("inet greenlane learned4").len(), 3);
    });
}

#[test]
fn guest_keeps_others_elements() {
    in_namespace(|| {
        nft(
            "add table inet filter { set bypass { type ipv4_addr; flags timeout; elements = { 203.0.113.1, 203.0.113.2 timeout 1h, 203.0.113.3 timeout 3s }; }; \
             set nets { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 198.51.100.64/26 }; }; }",
        );
        let rig = Rig::start(guest(Some("bypass"), Some("nets")));
        let statics = ["10.1.0.0/16", "198.51.100.0/24", "203.0.113.0/24"];
        assert_eq!(rig.whole(&[("203.0.113.1", 600), ("192.0.2.1", 600)], &statics), Applied::Held);
        assert_eq!(keys("inet filter bypass"), ["192.0.2.1", "203.0.113.1", "203.0.113.2", "203.0.113.3"]);
        let nets = ["10.0.0.0/8", "198.51.100.0/26", "198.51.100.128/25", "198.51.100.64/26", "203.0.113.0/24"];
        assert_eq!(keys("inet filter nets"), nets);
        // Others' elements cover as long as they last; they neither get our end nor leave with our host.
        assert_eq!(rig.grant(&[("203.0.113.1", 900), ("203.0.113.2", 900)]), Applied::Held);
        assert_eq!(rig.withdraw("203.0.113.1"), Applied::Held);
        assert_eq!(rig.withdraw("203.0.113.2"), Applied::Held);
        assert_eq!(keys("inet filter bypass"), ["192.0.2.1", "203.0.113.1", "203.0.113.2", "203.0.113.3"]);
        assert!(expires("inet filter bypass", "203.0.113.2") > 3000);
        // One that ends too early is no cover; ours comes when it goes.
        assert_eq!(rig.grant(&[("203.0.113.3", 900)]), Applied::Failed);
        thread::sleep(Duration::from_secs(3));
        soon("after the other's end", || {
            elements("inet filter bypass").iter().any(|(key, expires)| key == "203.0.113.3" && *expires > Some(800))
        });
        // The operator's prefix goes: ours takes its place.
        nft("delete element inet filter nets { 10.0.0.0/8, 198.51.100.64/26 }");
        soon("prefix uncovered", || {
            keys("inet filter nets") == ["10.1.0.0/16", "198.51.100.0/24", "203.0.113.0/24"]
                || keys("inet filter nets").contains(&"10.1.0.0/16".to_owned())
        });
        nft("flush set inet filter bypass");
        soon("flush", || keys("inet filter bypass") == ["192.0.2.1", "203.0.113.3"]);
        nft("flush ruleset");
        soon("down", || rig.outlet.state() == State::Down);
        nft(
            "add table inet filter { set bypass { type ipv4_addr; flags timeout; elements = { 203.0.113.7 }; }; set nets { type ipv4_addr; flags interval; }; }",
        );
        soon("reload", || keys("inet filter bypass") == ["192.0.2.1", "203.0.113.3", "203.0.113.7"]);
        soon("up", || rig.outlet.state() == State::Up);
        assert_eq!(keys("inet filter nets"), ["10.1.0.0/16", "198.51.100.0/24", "203.0.113.0/24"]);
        rig.end();
        assert_eq!(remove(&guest(Some("bypass"), Some("nets"))), Ok(Removed::Elements(5)));
        assert_eq!(keys("inet filter bypass"), ["203.0.113.7"]);
        assert_eq!(remove(&guest(Some("bypass"), Some("nets"))), Ok(Removed::Nothing));
    });
}

#[test]
fn guest_fills_interval_sets_and_sets_without_timeouts() {
    in_namespace(|| {
        nft(
            "add table inet filter { set ranges { type ipv4_addr; flags interval, timeout; elements = { 10.0.0.0/8 }; }; \
             set plain { type ipv6_addr; }; }",
        );
        let mut options = guest(Some("ranges"), None);
        options.sets.learned6 = Some("plain".to_owned());
        let rig = Rig::start(options);
        assert_eq!(rig.whole(&[("10.1.2.3", 60), ("192.0.2.1", 60), ("2001:db8::1", 2)], &[]), Applied::Held);
        assert_eq!(keys("inet filter ranges"), ["10.0.0.0/8", "192.0.2.1"]);
        assert_eq!(keys("inet filter plain"), ["2001:db8::1"]);
        assert_eq!(rig.grant(&[("192.0.2.1", 600), ("192.0.2.2", 600)]), Applied::Held);
        assert_eq!(keys("inet filter ranges"), ["10.0.0.0/8", "192.0.2.1", "192.0.2.2"]);
        assert!(expires("inet filter ranges", "192.0.2.1") > 590);
        assert_eq!(rig.withdraw("192.0.2.1"), Applied::Held);
        assert_eq!(keys("inet filter ranges"), ["10.0.0.0/8", "192.0.2.2"]);
        // The operator takes an address of ours into a prefix of theirs while it is not ours, then we want it.
        nft("add element inet filter ranges { 198.51.100.0/24 }");
        assert_eq!(rig.grant(&[("198.51.100.7", 600)]), Applied::Held, "covered");
        assert_eq!(keys("inet filter ranges"), ["10.0.0.0/8", "192.0.2.2", "198.51.100.0/24"]);
        thread::sleep(Duration::from_millis(3100));
        assert_eq!(keys("inet filter plain"), Vec::<String>::new(), "withdrawn on time by ourselves");
    });
}

#[test]
fn unfit_sets_are_named_with_the_command() {
    in_namespace(|| {
        nft("add table inet filter { set bypass { type ipv6_addr; }; }");
        let (_outlet, intake) = outlet("nftables");
        let options = guest(Some("bypass"), Some("nets"));
        let mut engine =
            Engine::new(options, Surplus::Withdraw, intake.health(), Clock::system(), &Metrics::new(&Registry::new()));
        engine.look_if_due();
        let text = engine.trouble().unwrap().to_string();
        assert_eq!(
            text,
            "set inet filter nets cannot be filled: it is missing; make it with: \
             nft add set inet filter nets '{ type ipv4_addr; flags interval; }'; \
             set inet filter bypass cannot be filled: its type is ipv6_addr, not ipv4_addr; remake it with: \
             nft add set inet filter bypass '{ type ipv4_addr; flags timeout; }'"
        );
        assert_eq!(intake.health().state(), State::Down);
    });
}

#[test]
fn bad_element_costs_no_other() {
    in_namespace(|| {
        // An operator's range that we do not know of is in the way of one host among many.
        nft("add table inet filter { set ranges { type ipv4_addr; flags interval, timeout; }; }");
        let rig = Rig::start_with(guest(Some("ranges"), None), Surplus::Withdraw, |_| {});
        rig.whole(&[], &[]);
        nft("add element inet filter ranges { 192.0.2.40-192.0.2.41 timeout 1h, 192.0.2.77 timeout 2s }");
        let hosts: Vec<String> = (1..=100).map(|n| format!("192.0.2.{n}")).collect();
        let hosts: Vec<(&str, u64)> = hosts.iter().map(|host| (host.as_str(), 600)).collect();
        assert_eq!(rig.grant(&hosts), Applied::Failed, "one is not covered for long");
        assert_eq!(keys("inet filter ranges").len(), 99, "two are one range of the operator's");
        thread::sleep(Duration::from_secs(2));
        soon("the last one comes, too", || {
            elements("inet filter ranges").iter().any(|(key, expires)| key == "192.0.2.77" && *expires > Some(500))
        });
    });
}

#[test]
fn many_elements_come_from_nothing_and_are_found_again() {
    in_namespace(|| {
        let rig = Rig::start(Options { mode: Mode::Own { mark: 1, size: 300_000 }, ..own() });
        let addr = |n: u32| IpAddr::from((0x0b00_0000 + n * 7).to_be_bytes());
        let until = Some(rig.clock.now().after(Duration::from_secs(3600)));
        let held = rig.send(|change| {
            change.whole = true;
            change.hosts = (0..100_000).map(|n| (addr(n), until)).collect();
        });
        assert_eq!(held, Applied::Held);
        assert_eq!(rig.metric("greenlane_nftables_elements{set=\"learned4\"}"), 100_000.0);
        let list = nft("list set inet greenlane learned4");
        assert_eq!(list.matches("expires").count(), 100_000);
        rig.end();
        let rig = Rig::start(Options { mode: Mode::Own { mark: 1, size: 300_000 }, ..own() });
        rig.send(|change| {
            change.whole = true;
            change.hosts = (0..100_000).map(|n| (addr(n), until)).collect();
        });
        // The adoption; and where the kernel took more than a second over the first transaction, ends set right.
        let done = rig.metric("greenlane_nftables_transactions_total{result=\"done\"}");
        assert!((1.0..=2.0).contains(&done), "{done} transactions");
    });
}

#[test]
fn dump_is_spared_only_while_nobody_else_changes_anything() {
    in_namespace(|| {
        let (_outlet, intake) = outlet("nftables");
        let (clock, registry) = (Clock::system(), Registry::new());
        let mut engine =
            Engine::new(own(), Surplus::Withdraw, intake.health(), clock.clone(), &Metrics::new(&registry));
        engine.ownership = Ownership::Shared;
        let order = |addr: &str, whole: bool| {
            let hosts = vec![(addr.parse().unwrap(), Some(clock.now().after(Duration::from_secs(600))))];
            [Arc::new(Change { whole, hosts, ..Change::empty(Session(7), 1, clock.now()) })]
        };
        assert_eq!(engine.take(&order("192.0.2.1", true)), [Applied::Held]);
        assert_eq!(engine.spared_dumps(), [false, true], "the first look after it was made");
        assert_eq!(engine.take(&order("192.0.2.2", false)), [Applied::Held]);
        assert_eq!(engine.spared_dumps(), [true; 2]);
        nft("add table inet other");
        assert_eq!(engine.spared_dumps(), [false, true], "somebody's transaction");
        nft("flush set inet greenlane learned4");
        assert_eq!(engine.spared_dumps(), [false, true], "unheard, and found all the same");
        assert_eq!(keys("inet greenlane learned4"), ["192.0.2.1", "192.0.2.2"]);
    });
}

/// Starts an engine on a kernel with whims.
fn start_on(kernel: &Kernel, options: Options) -> Rig {
    Rig::start_with(options, Surplus::Withdraw, |engine| engine.kernel = kernel.clone())
}

#[test]
fn kernel_that_knows_no_owners_gets_a_table_that_is_anybodys() {
    in_namespace(|| {
        let kernel = Kernel::default().without_owners();
        let rig = start_on(&kernel, own());
        assert_eq!(rig.whole(&[("192.0.2.1", 600)], &["198.51.100.0/24"]), Applied::Held);
        assert_eq!(rig.outlet.state(), State::Up);
        let is_ours = || keys("inet greenlane learned4") == ["192.0.2.1"];
        assert!(is_ours());
        assert!(!nft("list table inet greenlane").contains("owner"), "nobody's");
        nft("flush ruleset");
        soon("made again after a flush that an owner would have been spared", is_ours);
        rig.end();
        assert!(is_ours(), "it outlives us");
        let rig = start_on(&kernel, own());
        assert_eq!(rig.whole(&[("192.0.2.1", 600), ("192.0.2.2", 600)], &[]), Applied::Held);
        assert_eq!(keys("inet greenlane learned4"), ["192.0.2.1", "192.0.2.2"]);
    });
}

#[test]
fn renewal_is_probed_and_lasts_on_kernels_that_know_it_and_that_do_not() {
    for (kernel, renewal) in
        [(Kernel::default(), Renewal::Update), (Kernel::default().without_renewal(), Renewal::Replace)]
    {
        in_namespace(move || {
            let (_outlet, intake) = outlet("nftables");
            let (clock, registry) = (Clock::system(), Registry::new());
            let mut engine =
                Engine::new(own(), Surplus::Withdraw, intake.health(), clock.clone(), &Metrics::new(&registry));
            engine.kernel = kernel;
            let order = |whole: bool, hosts: &[(&str, u64)]| {
                let until = |secs: &u64| Some(clock.now().after(Duration::from_secs(*secs)));
                let hosts = hosts.iter().map(|(addr, secs)| (addr.parse().unwrap(), until(secs))).collect();
                [Arc::new(Change { whole, hosts, ..Change::empty(Session(7), 1, clock.now()) })]
            };
            assert_eq!(engine.take(&order(true, &[("192.0.2.1", 60), ("192.0.2.2", 60)])), [Applied::Held]);
            assert_eq!(engine.renewal, None, "nothing has shown it");
            for secs in [300, 600, 1200] {
                // Each is held already, so that a plain add would renew nothing and be a success.
                assert_eq!(engine.take(&order(false, &[("192.0.2.1", secs), ("192.0.2.2", secs)])), [Applied::Held]);
                assert_eq!(engine.renewal, Some(renewal));
                for host in ["192.0.2.1", "192.0.2.2"] {
                    let left = expires("inet greenlane learned4", host);
                    assert!((secs - 20..=secs).contains(&left), "{host} ends in {left} s, not {secs}");
                }
            }
        });
    }
}

#[test]
fn kernel_without_renewal_is_never_seen_without_the_element() {
    in_namespace(|| {
        let rig = start_on(&Kernel::default().without_renewal(), own());
        rig.whole(&[("192.0.2.1", 60)], &[]);
        let counts = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&counts);
        // Looks again and again while the element is deleted and added in one step.
        let file = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let looking = thread::spawn(move || {
            nix::sched::setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            let mut looks = 0;
            while !is_over.load(Ordering::Acquire) || looks < 5 {
                assert_eq!(keys("inet greenlane learned4"), ["192.0.2.1"]);
                looks += 1;
            }
        });
        for secs in 1..=100 {
            assert_eq!(rig.grant(&[("192.0.2.1", 60 + 10 * secs)]), Applied::Held);
        }
        counts.store(true, Ordering::Release);
        looking.join().unwrap();
        assert!(expires("inet greenlane learned4", "192.0.2.1") > 1000);
    });
}

#[test]
fn kernel_that_refuses_timeouts_is_told_and_filled_once_it_takes_them() {
    in_namespace(|| {
        let kernel = Kernel::default();
        kernel.set_without_timeouts(true);
        let rig = start_on(&kernel, own());
        assert_eq!(rig.whole(&[("192.0.2.1", 600)], &["198.51.100.0/24"]), Applied::Failed);
        assert_eq!(rig.outlet.state(), State::Down);
        assert_eq!(rig.metric("greenlane_nftables_up"), 0.0);
        assert!(rig.metric("greenlane_nftables_failures_total{kind=\"unsupported\"}") >= 1.0);
        kernel.set_without_timeouts(false);
        soon("made and filled", || keys("inet greenlane learned4") == ["192.0.2.1"]);
        soon("up", || rig.outlet.state() == State::Up);

        nft(
            "add table inet filter { set bypass { type ipv4_addr; flags timeout; }; set nets { type ipv4_addr; flags interval; }; }",
        );
        kernel.set_without_timeouts(true);
        let rig = start_on(&kernel, guest(Some("bypass"), Some("nets")));
        assert_eq!(rig.whole(&[("192.0.2.1", 600)], &["198.51.100.0/24"]), Applied::Failed);
        assert_eq!(keys("inet filter nets"), ["198.51.100.0/24"], "what needs no timeout is there");
        assert!(rig.metric("greenlane_nftables_failures_total{kind=\"invalid\"}") >= 1.0);
        assert_eq!(rig.metric("greenlane_nftables_up"), 0.0);
        kernel.set_without_timeouts(false);
        soon("filled", || keys("inet filter bypass") == ["192.0.2.1"]);
        soon("up", || rig.outlet.state() == State::Up);
    });
}

#[test]
fn kernel_without_nf_tables_is_told_and_filled_once_it_has_them() {
    in_namespace(|| {
        let kernel = Kernel::default();
        kernel.set_without_nf_tables(true);
        for options in [own(), guest(Some("bypass"), None)] {
            let (_outlet, intake) = outlet("nftables");
            let metrics = Metrics::new(&Registry::new());
            let mut engine = Engine::new(options, Surplus::Withdraw, intake.health(), Clock::system(), &metrics);
            engine.kernel = kernel.clone();
            engine.look_if_due();
            assert_eq!(engine.trouble(), Some(&Trouble::Unsupported(nix::errno::Errno::EINVAL)));
        }
        let rig = start_on(&kernel, own());
        assert_eq!(rig.whole(&[("192.0.2.1", 600)], &[]), Applied::Failed);
        assert_eq!(rig.outlet.state(), State::Down);
        assert!(rig.metric("greenlane_nftables_failures_total{kind=\"unsupported\"}") >= 1.0);
        kernel.set_without_nf_tables(false);
        soon("filled", || keys("inet greenlane learned4") == ["192.0.2.1"]);
        soon("up", || rig.outlet.state() == State::Up);
    });
}

#[test]
fn lost_acknowledgements_lead_to_a_compare_and_nothing_is_lost() {
    in_namespace(|| {
        let kernel = Kernel::default();
        let rig = start_on(&kernel, own());
        rig.whole(&[("192.0.2.1", 600)], &[]);
        kernel.lose_acknowledgements(1);
        // Whether the kernel took it is seen by looking.
        assert_eq!(rig.grant(&[("192.0.2.2", 600)]), Applied::Held);
        assert_eq!(keys("inet greenlane learned4"), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(rig.metric("greenlane_nftables_failures_total{kind=\"lost\"}"), 1.0);
        assert_eq!(rig.outlet.state(), State::Up);
        assert_eq!(rig.metric("greenlane_nftables_up"), 1.0);
        kernel.lose_acknowledgements(1);
        assert_eq!(rig.withdraw("192.0.2.1"), Applied::Held);
        assert_eq!(keys("inet greenlane learned4"), ["192.0.2.2"]);
    });
}

#[test]
fn flush_among_more_events_than_there_is_room_for_is_put_right() {
    in_namespace(|| {
        let kernel = Kernel::default().with_monitor_room(2048);
        let rig = Rig::start_with(own(), Surplus::Withdraw, |engine| {
            (engine.kernel, engine.ownership) = (kernel, Ownership::Shared);
        });
        let lost = || rig.metric("greenlane_nftables_failures_total{kind=\"lost\"}");
        rig.whole(&[("192.0.2.1", 600), ("192.0.2.2", 600)], &[]);
        assert_eq!(lost(), 0.0);
        nft("add table inet other { set many { type ipv4_addr; }; }");
        // One transaction, whose last event is about us: by then there is no room left.
        let many: Vec<String> =
            (0..4000).map(|n: u32| format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255)).collect();
        let script = std::env::temp_dir().join(format!("greenlane-many-{}.nft", std::process::id()));
        let adds: String = many.iter().map(|addr| format!("add element inet other many {{ {addr} }}\n")).collect();
        std::fs::write(&script, format!("{adds}flush set inet greenlane learned4\n")).unwrap();
        assert!(Command::new("nft").arg("-f").arg(&script).status().unwrap().success());
        std::fs::remove_file(&script).unwrap();
        soon("whole again", || keys("inet greenlane learned4") == ["192.0.2.1", "192.0.2.2"]);
        soon("counted", || lost() >= 1.0);
        soon("up", || rig.outlet.state() == State::Up);
    });
}

#[test]
fn slow_kernel_is_not_waited_for_until_it_is_quick_again() {
    in_namespace(|| {
        let kernel = Kernel::default();
        let rig = start_on(&kernel, Options { hold: Duration::from_millis(500), ..own() });
        rig.whole(&[], &[]);
        kernel.set_delay(Duration::from_millis(260));
        let addr = |n: u32| format!("192.0.2.{n}");
        for n in 1..20 {
            assert_eq!(rig.grant(&[(&addr(n), 600)]), Applied::Held);
            assert_eq!(rig.outlet.state(), State::Up, "{n} slow commits are none too many");
        }
        assert_eq!(rig.grant(&[(&addr(20), 600)]), Applied::Held);
        assert_eq!(rig.outlet.state(), State::Slow);
        assert_eq!(rig.metric("greenlane_nftables_up"), 1.0, "it holds everything");
        // A probe is a change that changes nothing.
        assert_eq!(rig.send(|_| {}), Applied::Held);
        assert_eq!(rig.outlet.state(), State::Slow);
        let commits = || rig.metric("greenlane_nftables_transactions_total{result=\"done\"}");
        let before = commits();
        kernel.set_delay(Duration::ZERO);
        soon("up", || {
            assert_eq!(rig.send(|_| {}), Applied::Held);
            rig.outlet.state() == State::Up
        });
        assert_eq!(commits(), before, "and no probe is a commit");
        assert_eq!(keys("inet greenlane learned4").len(), 20);
    });
}

/// Not a test by itself: [`missing_privilege_is_told`] runs it without the capability.
#[test]
#[ignore = "run by another test"]
fn child_without_the_privilege() {
    in_namespace(|| {
        let (_outlet, intake) = outlet("nftables");
        let mut engine =
            Engine::new(own(), Surplus::Withdraw, intake.health(), Clock::system(), &Metrics::new(&Registry::new()));
        engine.look_if_due();
        assert_eq!(engine.trouble(), Some(&Trouble::NotPermitted));
        assert_eq!(intake.health().state(), State::Down);
        assert!(matches!(remove(&own()), Err(RemoveError(Trouble::NotPermitted))));
        let rig = Rig::start(own());
        assert_eq!(rig.whole(&[("192.0.2.1", 60)], &[]), Applied::Failed);
        assert!(rig.metric("greenlane_nftables_failures_total{kind=\"privilege\"}") >= 1.0);
    });
}

#[test]
fn missing_privilege_is_told() {
    in_namespace(|| {
        let child = Command::new("setpriv")
            .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
            .arg(std::env::current_exe().unwrap())
            .args(["export::nftables::tests::child_without_the_privilege", "--exact", "--ignored", "--nocapture"])
            .env("GREENLANE_TEST_REQUIRE", "all")
            .output()
            .unwrap();
        assert!(
            child.status.success(),
            "{}{}",
            String::from_utf8_lossy(&child.stdout),
            String::from_utf8_lossy(&child.stderr)
        );
    });
}

/// A named namespace, removed with this.
struct Host(String);

impl Host {
    fn new(name: &str) -> Self {
        let name = format!("gl-{}-{name}", std::process::id());
        ip(&format!("netns add {name}"));
        Self(name)
    }

    /// Runs something on a thread in the namespace.
    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let file = std::fs::File::open(format!("/run/netns/{}", self.0)).unwrap();
        thread::spawn(move || {
            nix::sched::setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Client and server with the engine's namespace as the gateway between them, which counts packets by mark.
struct Lab {
    client: Host,
    server: Host,
}

impl Lab {
    /// `round` tells labs of one test apart, since links go only some time after their namespace.
    fn new(mark: &str, round: usize) -> Self {
        let (client, server) = (Host::new(&format!("client{round}")), Host::new(&format!("server{round}")));
        for (host, inner, outer) in [
            (&client, ["10.9.0.2/24", "fd09::2/64"], ["10.9.0.1/24", "fd09::1/64"]),
            (&server, ["198.51.100.2/24", "2001:db8::2/64"], ["198.51.100.1/24", "2001:db8::1/64"]),
        ] {
            let (name, link) = (&host.0, format!("l{}", &host.0[host.0.len() - 6..]));
            ip(&format!("link add {link} type veth peer name eth0 netns {name}"));
            ip(&format!("link set {link} up"));
            ip(&format!("-n {name} link set eth0 up"));
            for at in 0..2 {
                ip(&format!("-n {name} addr add {} dev eth0{}", inner[at], ["", " nodad"][at]));
                ip(&format!("addr add {} dev {link}{}", outer[at], ["", " nodad"][at]));
                let gateway = outer[at].split('/').next().unwrap();
                ip(&format!("-n {name} route add default via {gateway}"));
            }
        }
        for key in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            assert!(Command::new("sysctl").args(["-qw", key]).status().unwrap().success());
        }
        nft(
            "add table inet operator { counter marked {}; counter plain {}; chain forward { type filter hook forward priority filter; }; }",
        );
        nft(&format!("add rule inet operator forward meta mark & {mark} == {mark} counter name marked accept"));
        nft("add rule inet operator forward meta l4proto { tcp, udp } counter name plain");
        let echo = |mut stream: TcpStream| {
            let mut buffer = [0; 64];
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                stream.write_all(&buffer[..len]).unwrap();
            }
        };
        let listening = server.run(move || {
            let listener = TcpListener::bind("[::]:443").unwrap();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    thread::spawn(move || echo(stream.unwrap()));
                }
            });
        });
        listening.join().unwrap();
        Self { client, server }
    }

    fn connect(&self, addr: &str) -> TcpStream {
        let addr: std::net::SocketAddr = addr.parse().unwrap();
        self.client.run(move || TcpStream::connect_timeout(&addr, Duration::from_secs(5)).unwrap()).join().unwrap()
    }

    /// Opens a flow that nobody answers.
    fn send_unanswered(&self, addr: &str) -> UdpSocket {
        let addr: std::net::SocketAddr = addr.parse().unwrap();
        let open = move || {
            let socket = UdpSocket::bind(if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            socket.connect(addr).unwrap();
            socket.send(b"hello").unwrap();
            socket
        };
        self.server.run(|| mem::forget(UdpSocket::bind("[::]:443"))).join().unwrap();
        self.client.run(open).join().unwrap()
    }

    /// Sends and receives on a flow and says whether its packets were marked.
    fn is_marked(&self, flow: &mut TcpStream) -> bool {
        let before = (packets("marked"), packets("plain"));
        flow.write_all(b"hello").unwrap();
        flow.read_exact(&mut [0; 5]).unwrap();
        // The last acknowledgement may be on its way.
        thread::sleep(Duration::from_millis(100));
        let (marked, plain) = (packets("marked") - before.0, packets("plain") - before.1);
        assert!((marked == 0) != (plain == 0), "{marked} marked, {plain} plain: a flow is one or the other");
        marked > 0
    }
}

fn packets(counter: &str) -> u64 {
    let output = Command::new("nft").args(["-j", "list", "counter", "inet", "operator", counter]).output().unwrap();
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    list["nftables"].as_array().unwrap().iter().find_map(|thing| thing["counter"]["packets"].as_u64()).unwrap()
}

#[test]
fn flow_is_marked_as_its_first_packet_found_it() {
    in_namespace(|| {
        for (round, (mark, addr, flow)) in
            [(0x1000_0000, "198.51.100.2", "198.51.100.2:443"), (0x3, "2001:db8::2", "[2001:db8::2]:443")]
                .into_iter()
                .enumerate()
        {
            let lab = Lab::new(&format!("{mark:#x}"), round);
            let rig = Rig::start(Options { mode: Mode::Own { mark, size: 100 }, ..own() });
            rig.whole(&[], &[]);
            let mut before = lab.connect(flow);
            assert!(!lab.is_marked(&mut before));
            let unanswered = lab.send_unanswered(flow);
            assert_eq!(rig.grant(&[(addr, 600)]), Applied::Held);
            let mut during = lab.connect(flow);
            assert!(lab.is_marked(&mut during));
            assert!(!lab.is_marked(&mut before), "opened before, it stays inspected");
            let marked = packets("marked");
            unanswered.send(b"again").unwrap();
            thread::sleep(Duration::from_millis(100));
            assert_eq!(packets("marked"), marked, "though conntrack calls it new until it is answered");
            assert_eq!(rig.withdraw(addr), Applied::Held);
            assert!(lab.is_marked(&mut during), "opened while it was there, it goes on");
            assert!(!lab.is_marked(&mut lab.connect(flow)));
            assert_eq!(
                rig.send(|change| change.statics = Some(entries(&["198.51.100.0/24", "2001:db8::/64"]))),
                Applied::Held
            );
            assert!(lab.is_marked(&mut lab.connect(flow)), "static prefixes count, too");
            rig.end();
            assert!(lab.is_marked(&mut during), "and without us");
            nft("flush ruleset");
        }
    });
}
