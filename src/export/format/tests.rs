//! Goldens: `tests/golden/prefixes-<state>.<format>` and `tests/golden/feed-<product>-<state>.txt`, one for each state
//! and form, compared octet by octet.
//! `UPDATE_GOLDEN=1` writes them anew; read the difference before you commit it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::catalogue::{self, AppId, Tag, TagApp};
use crate::clock::Timestamp;
use crate::metrics::Registry;
use crate::name::Name;
use crate::prefix::Family;
use crate::set::{Draft, NameRecord, Need, Origin, Selection, Session, Sighting, StaticEntry, Times};
use crate::source::Location;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// A label that breaks out of every quoting at once.
const HOSTILE: &[u8] = b"\x11\"<>;`$(reboot)\n\x1b,\x07example\x00";

fn record(name: &[u8], app: &str) -> Arc<NameRecord> {
    let hit = TagApp { app: AppId::new(app), trigger: "example".into(), location: Location::file("zones/x.list") };
    Arc::new(NameRecord::new(Name::from_wire(name).unwrap(), Tag::new(vec![hit])))
}

/// Makes a snapshot of static prefixes and hosts, each with an app; the first host is in use longest.
fn snapshot(statics: &[(&str, &[&str])], hosts: &[(&str, &str)]) -> Snapshot {
    let mut draft = Draft::new(Session(0xab), NOW, &Registry::new());
    let entry = |(prefix, apps): &(&str, &[&str])| StaticEntry {
        prefix: prefix.parse().unwrap(),
        apps: apps.iter().map(|app| AppId::new(*app)).collect(),
    };
    draft.set_statics(statics.iter().map(entry).collect());
    for (at, (addr, app)) in hosts.iter().enumerate() {
        let now = NOW.after(Duration::from_secs(at as u64));
        let need = Need::new(now, Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(300));
        draft.insert(Sighting::new(addr.parse().unwrap(), record(HOSTILE, app), now, Times::from(need)));
    }
    draft.commit(NOW);
    draft.reader().snapshot()
}

fn mixed() -> Snapshot {
    snapshot(
        &[("198.51.100.0/24", &["box"]), ("2001:db8:1::/48", &["zoom", "box"]), ("203.0.113.128/25", &["a,\"b\""])],
        &[
            ("203.0.113.9", "zoom"),
            ("192.0.2.1", "zoom"),
            ("192.0.2.0", "box"),
            ("198.51.100.7", "zoom"),
            ("2001:db8::1", "zoom"),
            ("2001:db8:1::5", "box"),
            ("10.0.0.0", "zoom"),
        ],
    )
}

fn golden(state: &str, snapshot: &Snapshot, query: &Query) {
    for format in Format::PREFIXES {
        same_as(&format!("prefixes-{state}.{}", format.name()), &format.render(snapshot, query).bytes);
    }
    for format in Format::FEEDS {
        same_as(&format!("feed-{}-{state}.txt", format.name()), &format.render(snapshot, query).bytes);
    }
}

/// Compares with a golden file, or writes it.
fn same_as(file: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let expected = std::fs::read(&path).unwrap_or_default();
    assert_eq!(String::from_utf8_lossy(bytes), String::from_utf8_lossy(&expected), "{file}");
    assert!(path.exists(), "{file} is missing");
}

#[test]
fn every_form_writes_its_golden_bytes() {
    golden("empty", &snapshot(&[], &[]), &Query::default());
    golden("mixed", &mixed(), &Query::default());
    golden("v6", &snapshot(&[("2001:db8:1::/48", &["zoom"])], &[("2001:db8::1", "zoom")]), &Query::default());
    let selection = Selection { family: Some(Family::V4), apps: Some(vec![AppId::new("zoom")]), origin: None };
    golden("app", &mixed(), &Query { selection, max: NonZeroU32::new(3) });
    golden("cut", &mixed(), &Query { max: NonZeroU32::new(4), ..Query::default() });
    golden("whole", &snapshot(&[("0.0.0.0/0", &["zoom"]), ("::/0", &["zoom"])], &[]), &Query::default());
}

#[test]
fn forms_of_names_write_their_golden_bytes() {
    let list = "# Demo\nzoom.us\n=login.zoom.us\n*.cdn.zoom.us\n!files.zoom.us\n=login.example.com\n*.example.net\nb\u{fc}cher.example\n";
    let load = |lists: Vec<(&'static str, &[u8])>| {
        catalogue::compile(lists, &catalogue::Options::default(), jiff::civil::date(2027, 1, 15)).unwrap().catalogue
    };
    for (state, catalogue) in [("empty", load(Vec::new())), ("mixed", load(vec![("zones/demo.list", list.as_bytes())]))]
    {
        same_as(&format!("domains-{state}.txt"), &Names::Plain.render(&catalogue, None));
        same_as(&format!("feed-squid-domains-{state}.txt"), &Names::Squid.render(&catalogue, None));
    }
}

#[test]
fn executable_dialects_hold_no_name_and_no_app() {
    for format in [Format::Nft, Format::Ipset, Format::Rsc].into_iter().chain(Format::FEEDS) {
        let text = String::from_utf8(format.render(&mixed(), &Query::default()).bytes).unwrap();
        for word in ["example", "reboot", "zoom", "box", "`", "$", ";", "\u{1b}"] {
            assert!(!text.contains(word), "{} holds {word}", format.name());
        }
    }
}

/// The products that read a list of prefixes rather than a script.
const LISTS: [Format; 7] = [
    Format::PaloAlto,
    Format::FortiGate,
    Format::Opnsense,
    Format::Pfsense,
    Format::CheckPoint,
    Format::Cisco,
    Format::SquidIp,
];

#[test]
fn product_list_holds_addresses_and_nothing_else() {
    for format in LISTS {
        let text = String::from_utf8(format.render(&mixed(), &Query::default()).bytes).unwrap();
        assert!(text.ends_with('\n') && !text.contains("\n\n"), "{}", format.name());
        assert!(text.bytes().all(|octet| b"0123456789abcdef.:/\n".contains(&octet)), "{}: {text}", format.name());
        let read = |line: &str| line.parse().unwrap_or_else(|_| Prefix::host(line.parse().unwrap()));
        assert_eq!(text.lines().map(read).collect::<Vec<Prefix>>(), mixed().prefixes(&Selection::default()));
    }
}

#[test]
fn product_that_resolves_words_gets_every_host_with_its_length() {
    for format in [Format::Opnsense, Format::Pfsense, Format::SquidIp] {
        let text = String::from_utf8(format.render(&mixed(), &Query::default()).bytes).unwrap();
        assert!(text.lines().all(|line| line.contains('/')), "{}: {text}", format.name());
    }
}

#[test]
fn no_product_list_has_a_length_of_zero() {
    let whole = snapshot(&[("0.0.0.0/0", &["zoom"]), ("::/0", &["zoom"])], &[]);
    for format in LISTS {
        let text = String::from_utf8(format.render(&whole, &Query::default()).bytes).unwrap();
        assert_eq!(text, "0.0.0.0/1\n128.0.0.0/1\n::/1\n8000::/1\n", "{}", format.name());
    }
}

#[test]
fn product_limit_holds_unless_the_query_says_otherwise() {
    let limits = Format::FEEDS.map(|format| (format.name(), format.limit().unwrap().get()));
    let expected = [
        ("paloalto", 50_000),
        ("fortigate", 131_072),
        ("opnsense", 100_000),
        ("pfsense", 100_000),
        ("checkpoint", 50_000),
        ("cisco", 10_000),
        ("mikrotik", 20_000),
        ("squid-ip", 100_000),
    ];
    assert_eq!(limits, expected);
    assert!(Format::PREFIXES.iter().all(|format| format.limit().is_none()));

    let hosts: Vec<String> =
        (0..10_010_u32).map(|i| IpAddr::from((0x0b00_0000 + i * 2).to_be_bytes()).to_string()).collect();
    let hosts: Vec<(&str, &str)> = hosts.iter().map(|addr| (addr.as_str(), "zoom")).collect();
    let snapshot = snapshot(&[("198.51.100.0/24", &["zoom"])], &hosts);
    let list = |max: Option<u32>| {
        let rendered =
            Format::Cisco.render(&snapshot, &Query { max: max.and_then(NonZeroU32::new), ..Query::default() });
        (String::from_utf8(rendered.bytes).unwrap().lines().count(), rendered.omitted)
    };
    assert_eq!(list(None), (10_000, Some(11)));
    assert_eq!(list(Some(5)), (5, Some(10_006)));
    assert_eq!(list(Some(20_000)), (10_011, Some(0)), "a larger model is the operator's to know");
    assert_eq!(Format::Txt.render(&snapshot, &Query::default()).omitted, None);
    let text = String::from_utf8(Format::Cisco.render(&snapshot, &Query::default()).bytes).unwrap();
    assert!(text.contains("198.51.100.0/24\n") && text.contains("11.0.0.0\n"), "static first, then longest in use");
    assert!(!text.contains(&format!("{}\n", hosts[10_009].0)));
}

#[test]
fn script_for_mikrotik_is_the_general_one_within_the_limit() {
    let render = |format: Format| format.render(&mixed(), &Query::default()).bytes;
    assert_eq!(render(Format::MikroTik), render(Format::Rsc));
}

#[test]
fn list_longer_than_a_chunk_is_several_commands() {
    let hosts: Vec<String> = (0..70_000_u32).map(|i| IpAddr::from((i * 2).to_be_bytes()).to_string()).collect();
    let hosts: Vec<(&str, &str)> = hosts.iter().map(|addr| (addr.as_str(), "zoom")).collect();
    let text = String::from_utf8(Format::Nft.render(&snapshot(&[], &hosts), &Query::default()).bytes).unwrap();
    assert_eq!(text.matches("add element").count(), 3);
    assert_eq!(text.matches("/32").count(), 70_000);
}

#[test]
fn bound_takes_static_first_then_longest_in_use() {
    let list = |max: u32| {
        let rendered = Format::Txt.render(&mixed(), &Query { max: NonZeroU32::new(max), ..Query::default() });
        (String::from_utf8(rendered.bytes).unwrap(), rendered.omitted)
    };
    let whole = "10.0.0.0/32\n192.0.2.0/31\n198.51.100.0/24\n203.0.113.9/32\n203.0.113.128/25\n2001:db8::1/128\n2001:db8:1::/48\n";
    assert_eq!(list(7), (whole.to_owned(), Some(0)));
    assert_eq!(list(2), ("198.51.100.0/24\n203.0.113.128/25\n".to_owned(), Some(5)));
    assert_eq!(list(4).0, "198.51.100.0/24\n203.0.113.9/32\n203.0.113.128/25\n2001:db8:1::/48\n");
    // 192.0.2.1 and 192.0.2.0 become one, 198.51.100.7 lies inside a static prefix: the next one still fits.
    assert_eq!(
        list(6).0,
        "192.0.2.0/31\n198.51.100.0/24\n203.0.113.9/32\n203.0.113.128/25\n2001:db8::1/128\n2001:db8:1::/48\n"
    );
}

prop_compose! {
    fn statics()(list in prop::collection::vec((any::<u8>(), 24_u8..=32, 0..3_usize), 0..8)) -> Vec<(String, &'static str)> {
        list.into_iter()
            .map(|(octet, len, app)| {
                let prefix = Prefix::truncated(IpAddr::from([192, 0, 2, octet]), len);
                (prefix.to_string(), ["box", "teams", "zoom"][app])
            })
            .collect()
    }
}

prop_compose! {
    fn hosts()(map in prop::collection::btree_map(any::<u8>(), 0..3_usize, 0..40), v6 in prop::collection::btree_set(any::<u8>(), 0..6))
        -> Vec<(String, &'static str)>
    {
        let v4 = map.into_iter().map(|(octet, app)| (format!("192.0.2.{octet}"), ["box", "teams", "zoom"][app]));
        v4.chain(v6.into_iter().map(|octet| (format!("2001:db8::{octet:x}"), "zoom"))).collect()
    }
}

fn random(statics: &[(String, &'static str)], hosts: &[(String, &'static str)]) -> Snapshot {
    let apps: Vec<[&str; 1]> = statics.iter().map(|(_, app)| [*app]).collect();
    let statics: Vec<(&str, &[&str])> =
        statics.iter().zip(&apps).map(|((prefix, _), apps)| (prefix.as_str(), apps.as_slice())).collect();
    let hosts: Vec<(&str, &str)> = hosts.iter().map(|(addr, app)| (addr.as_str(), *app)).collect();
    snapshot(&statics, &hosts)
}

fn selection(family: u8, app: u8, origin: u8) -> Selection {
    Selection {
        family: [None, Some(Family::V4), Some(Family::V6)][usize::from(family % 3)],
        apps: (app % 2 == 1).then(|| vec![AppId::new("box"), AppId::new("zoom")]),
        origin: [None, Some(Origin::Static), Some(Origin::Learned)][usize::from(origin % 3)],
    }
}

proptest! {
    /// The columns beside a prefix are what a naive look at every entry inside it gives.
    #[test]
    fn csv_rows_agree_with_a_naive_scan(statics in statics(), hosts in hosts(), which in any::<[u8; 3]>(), max in 0..6_u32) {
        let snapshot = random(&statics, &hosts);
        let query = Query { selection: selection(which[0], which[1], which[2]), max: NonZeroU32::new(max) };
        let csv = String::from_utf8(Format::Csv.render(&snapshot, &query).bytes).unwrap();
        let txt = String::from_utf8(Format::Txt.render(&snapshot, &query).bytes).unwrap();
        prop_assert!(csv.ends_with("\r\n"));
        let mut rows = csv.split_terminator("\r\n");
        prop_assert_eq!(rows.next(), Some("prefix,family,origin,apps"));
        let mut lines = txt.lines();
        for row in rows {
            let prefix: Prefix = lines.next().unwrap().parse().unwrap();
            let (mut origins, mut apps) = (BTreeSet::new(), BTreeSet::new());
            for entry in snapshot.statics().iter().filter(|entry| query.selection.has_static(entry) && prefix.covers(&entry.prefix)) {
                origins.insert("static");
                apps.extend(entry.apps.iter().map(AppId::as_str));
            }
            let inside: Vec<_> = snapshot.hosts().filter(|host| query.selection.has_host(host) && prefix.contains(host.addr())).collect();
            let host_apps: Vec<_> = inside.iter().map(|host| host.apps()).collect();
            for list in &host_apps {
                origins.insert("learned");
                apps.extend(list.iter().map(AppId::as_str));
            }
            let join = |set: &BTreeSet<&str>| set.iter().copied().collect::<Vec<_>>().join(" ");
            prop_assert_eq!(row, format!("{prefix},{},{},{}", prefix.family().digit(), join(&origins), join(&apps)));
        }
        prop_assert_eq!(lines.next(), None);
    }

    /// A bounded list is no longer than its bound, inside the whole list, and says how much is missing.
    #[test]
    fn bounded_list_is_part_of_the_whole(statics in statics(), hosts in hosts(), which in any::<[u8; 3]>(), max in 1..12_u32) {
        let snapshot = random(&statics, &hosts);
        let selection = selection(which[0], which[1], which[2]);
        let whole = snapshot.prefixes(&selection);
        let cut = List::cut(&snapshot, &Query { selection, max: NonZeroU32::new(max) });
        prop_assert!(cut.prefixes.len() <= max as usize);
        prop_assert!(cut.prefixes.iter().all(|part| whole.iter().any(|all| all.covers(part))));
        prop_assert_eq!(cut.prefixes.len() + cut.omitted, whole.len());
        if whole.len() <= max as usize {
            prop_assert_eq!(cut.prefixes, whole);
        }
    }

    #[test]
    fn written_prefix_is_what_display_writes(v4: [u8; 4], v6: [u16; 8], zeros: u8, len: u8) {
        // Segments are zero half of the time, or hardly any address would have two in a row.
        let v6: [u16; 8] = std::array::from_fn(|i| if zeros >> i & 1 == 0 { 0 } else { v6[i] >> (v6[i] % 16) });
        for prefix in [Prefix::truncated(v4.into(), len % 33), Prefix::truncated(v6.into(), len % 129), Prefix::truncated(v6.into(), 128)] {
            let mut out = Vec::new();
            push_prefix(&mut out, &prefix);
            prop_assert_eq!(String::from_utf8(out).unwrap(), prefix.to_string());
        }
    }
}
