//! Scripts for firewalls load as they stand: checked with the real tools, each in a network namespace of its own.
//!
//! Needs root, `unshare`, `nft` and `ipset`. Without them a test says so and passes, unless `GREENLANE_TEST_REQUIRE`
//! is `all`, as it is in CI.

#![allow(unreachable_pub, reason = "the modules beside it use it; a test binary has nothing to reach it from")]

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use greenlane::catalogue::{AppId, Tag, TagApp};
use greenlane::clock::Timestamp;
use greenlane::export::Query;
use greenlane::export::format::Format;
use greenlane::metrics::Registry;
use greenlane::prefix::Prefix;
use greenlane::set::{Draft, NameRecord, Need, Session, Sighting, Snapshot, StaticEntry, Times};
use greenlane::source::Location;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Returns whether root, `unshare` and the tools are there; says so if not.
pub fn has_tools(tools: &[&str]) -> bool {
    let works = |program: &str, argument: &str| {
        let ran = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
        ran.is_ok_and(|status| status.success())
    };
    let is_root = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
    let missing = if !is_root.is_ok_and(|status| status.success()) {
        "root and `unshare --net`"
    } else if let Some(tool) = tools.iter().find(|tool| !works(tool, "--version") && !works(tool, "-V")) {
        tool
    } else {
        return true;
    };
    lacks(missing)
}

/// Says what a test is skipped for, and returns false; with `GREENLANE_TEST_REQUIRE=all` the test fails.
pub fn lacks(missing: &str) -> bool {
    assert!(std::env::var("GREENLANE_TEST_REQUIRE").as_deref() != Ok("all"), "this test needs {missing}");
    eprintln!("skipped: this test needs {missing}");
    false
}

/// Runs shell lines in a fresh network namespace with `script` as file `$0`; returns what they print.
fn in_namespace(script: &[u8], lines: &str) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(script).unwrap();
    let ran: Output = Command::new("unshare")
        .args(["--net", "sh", "-ec", lines])
        .arg(file.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, error) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{lines}\n{error}\n{}", String::from_utf8_lossy(&script[..script.len().min(2000)]));
    out.into_owned()
}

fn snapshot(statics: &[&str], hosts: impl IntoIterator<Item = IpAddr>) -> Snapshot {
    let mut draft = Draft::new(Session(0xab), NOW, &Registry::new());
    let apps: Arc<[AppId]> = [AppId::new("zoom")].into();
    let entry = |prefix: &&str| StaticEntry { prefix: prefix.parse().unwrap(), apps: Arc::clone(&apps) };
    draft.set_statics(statics.iter().map(entry).collect());
    let hit =
        TagApp { app: AppId::new("zoom"), trigger: "zoom.us".into(), location: Location::file("zones/zoom.list") };
    let record = Arc::new(NameRecord::new("zoom.us".parse().unwrap(), Tag::new(vec![hit])));
    let need = Need::new(NOW, Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(300));
    for addr in hosts {
        draft.insert(Sighting::new(addr, Arc::clone(&record), NOW, Times::from(need)));
    }
    draft.commit(NOW);
    draft.reader().snapshot()
}

/// Every kind of content: nothing, both families, one only, everything, ends of the address space, many.
fn snapshots() -> Vec<(&'static str, Snapshot)> {
    let addr = |text: &str| text.parse::<IpAddr>().unwrap();
    vec![
        ("empty", snapshot(&[], [])),
        (
            "mixed",
            snapshot(&["198.51.100.0/24", "2001:db8:1::/48"], ["192.0.2.1", "192.0.2.0", "2001:db8::1"].map(addr)),
        ),
        ("v6", snapshot(&["2001:db8:1::/48"], [])),
        ("whole", snapshot(&["0.0.0.0/0", "::/0"], [])),
        ("ends", snapshot(&["0.0.0.0/8", "255.255.255.255/32", "::/128", "ff00::/8"], [])),
        ("many", snapshot(&[], (0..70_000_u32).map(|i| IpAddr::from((0x0b00_0000 + 2 * i).to_be_bytes())))),
    ]
}

fn render(format: Format, snapshot: &Snapshot) -> Vec<u8> {
    format.render(snapshot, &Query::default()).bytes
}

fn expected(snapshot: &Snapshot) -> BTreeSet<Prefix> {
    String::from_utf8(render(Format::Txt, snapshot)).unwrap().lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn nft_script_loads_twice_and_holds_the_set() {
    if !has_tools(&["nft"]) {
        return;
    }
    for (state, snapshot) in snapshots() {
        let script = render(Format::Nft, &snapshot);
        let lines = "nft -c -f $0; nft -f $0; nft -f $0; nft -j list table inet greenlane_feed";
        let loaded = in_namespace(&script, lines);
        assert_eq!(nft_elements(&loaded), expected(&snapshot), "{state}");
    }
}

#[test]
fn nft_script_replaces_what_was_there_and_leaves_other_tables() {
    if !has_tools(&["nft"]) {
        return;
    }
    let script = render(Format::Nft, &snapshot(&["198.51.100.0/24"], []));
    let lines =
        "nft add table inet greenlane; nft add set inet greenlane static4 '{ type ipv4_addr; flags interval; }';
        nft add element inet greenlane static4 '{ 203.0.113.0/24 }';
        nft -f $0; nft add element inet greenlane_feed bypass4 '{ 192.0.2.0/24 }'; nft -f $0;
        nft -j list table inet greenlane_feed; echo; nft list table inet greenlane >&2;
        nft list table inet greenlane | grep -q 203.0.113.0/24";
    let loaded = in_namespace(&script, lines);
    assert_eq!(nft_elements(&loaded), BTreeSet::from(["198.51.100.0/24".parse().unwrap()]));
}

#[test]
fn ipset_script_loads_twice_and_holds_the_set() {
    if !has_tools(&["ipset"]) {
        return;
    }
    for (state, snapshot) in snapshots() {
        let script = render(Format::Ipset, &snapshot);
        let loaded = in_namespace(&script, "ipset restore <$0; ipset restore <$0; ipset save");
        let mut expected = expected(&snapshot);
        if state == "whole" {
            expected =
                ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"].iter().map(|text| text.parse().unwrap()).collect();
        }
        assert_eq!(ipset_elements(&loaded), expected, "{state}");
    }
}

#[test]
fn ipset_scripts_of_any_size_follow_each_other() {
    if !has_tools(&["ipset"]) {
        return;
    }
    // The sets that one script leaves must be as the next one, larger or smaller, declares them.
    let mut script = Vec::new();
    for at in [1, 5, 1] {
        script.extend_from_slice(&render(Format::Ipset, &snapshots()[at].1));
    }
    // A run that broke off has left its temporary set behind.
    let lines = "ipset create greenlane4_new hash:net family inet maxelem 4294967295; ipset restore <$0; ipset save";
    assert_eq!(ipset_elements(&in_namespace(&script, lines)), expected(&snapshots()[1].1));
}

/// Reads the elements of all sets out of `nft -j`, ranges and hosts as prefixes.
fn nft_elements(json: &str) -> BTreeSet<Prefix> {
    let value: serde_json::Value = serde_json::from_str(json.trim()).unwrap();
    let sets = value["nftables"].as_array().unwrap().iter().filter_map(|entry| entry["set"]["elem"].as_array());
    sets.flatten()
        .map(|element| match element.as_str() {
            Some(host) => host.parse().unwrap(),
            None => {
                let prefix = &element["prefix"];
                format!("{}/{}", prefix["addr"].as_str().unwrap(), prefix["len"]).parse().unwrap()
            }
        })
        .collect()
}

/// Reads the elements of all sets out of `ipset save`.
fn ipset_elements(save: &str) -> BTreeSet<Prefix> {
    save.lines().filter_map(|line| line.strip_prefix("add ")?.split(' ').nth(1)?.parse().ok()).collect()
}
