//! What a Prometheus sees: every metric, its right value, no name and no address, and what boards and alerts ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use greenlane::prefix::Prefix;
use hickory_proto::rr::RecordType;
use tempfile::TempDir;

use crate::harness::{Greenlane, Setup, question};
use crate::upstream::{A, AAAA, Upstream, record};

/// Every metric there is, and its type.
const METRICS: [(&str, &str); 49] = [
    ("greenlane_build_info", "gauge"),
    ("greenlane_cache_bytes", "gauge"),
    ("greenlane_cache_entries", "gauge"),
    ("greenlane_cache_lookups_total", "counter"),
    ("greenlane_cache_prefetches_total", "counter"),
    ("greenlane_catalogue_reloads_total", "counter"),
    ("greenlane_catalogue_triggers", "gauge"),
    ("greenlane_export_commands_total", "counter"),
    ("greenlane_export_file_writes_total", "counter"),
    ("greenlane_export_prefixes", "gauge"),
    ("greenlane_forward_case_fallbacks_total", "counter"),
    ("greenlane_forward_hedges_total", "counter"),
    ("greenlane_forward_upstream_failures_total", "counter"),
    ("greenlane_forward_upstream_seconds", "histogram"),
    ("greenlane_learn_ack_seconds", "histogram"),
    ("greenlane_learn_admitted_total", "counter"),
    ("greenlane_learn_cut_chains_total", "counter"),
    ("greenlane_learn_evicted_total", "counter"),
    ("greenlane_learn_followers", "gauge"),
    ("greenlane_learn_followers_waited", "gauge"),
    ("greenlane_learn_hold_seconds", "histogram"),
    ("greenlane_learn_offers_total", "counter"),
    ("greenlane_learn_refused_total", "counter"),
    ("greenlane_learn_restored_total", "counter"),
    ("greenlane_learn_shrink_held", "gauge"),
    ("greenlane_learn_sink_failures_total", "counter"),
    ("greenlane_learn_sink_late_total", "counter"),
    ("greenlane_learn_sink_waited", "gauge"),
    ("greenlane_listen_answer_seconds", "histogram"),
    ("greenlane_listen_connections", "gauge"),
    ("greenlane_listen_dropped_total", "counter"),
    ("greenlane_listen_queries_total", "counter"),
    ("greenlane_listen_responses_total", "counter"),
    ("greenlane_listen_slipped_total", "counter"),
    ("greenlane_set_app_entries", "gauge"),
    ("greenlane_set_entries", "gauge"),
    ("greenlane_set_serial", "gauge"),
    ("greenlane_set_sightings", "gauge"),
    ("greenlane_listen_tagged_total", "counter"),
    ("greenlane_store_checkpoints_total", "counter"),
    ("greenlane_store_commit_seconds", "histogram"),
    ("greenlane_store_commits_total", "counter"),
    ("greenlane_store_file_bytes", "gauge"),
    ("greenlane_store_sightings", "gauge"),
    ("greenlane_tag_answers_total", "counter"),
    ("greenlane_warm_names", "gauge"),
    ("greenlane_warm_queries_total", "counter"),
    ("greenlane_web_followers_refused_total", "counter"),
    ("greenlane_web_requests_total", "counter"),
];

/// One line of `/metrics`.
#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Reads the text form; its own strict reader, since promtool may not be there.
fn read(text: &str) -> Vec<Sample> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("{line:?}"))),
                None => (series, ""),
            };
            let pairs = labels.split("\",").filter(|pair| !pair.is_empty());
            let labels = pairs.map(|pair| {
                let (label, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("{line:?}"));
                (label.to_owned(), value.trim_end_matches('"').to_owned())
            });
            Sample { name: name.to_owned(), labels: labels.collect(), value: value.parse().unwrap() }
        })
        .collect()
}

/// A greenlane that has seen some of everything.
struct Busy {
    greenlane: Greenlane,
    _upstreams: [Upstream; 2],
    _folder: TempDir,
}

impl Busy {
    async fn start() -> Self {
        let general = Upstream::start(|asked| match asked.name().as_str() {
            "broken.example" => asked.fail(2),
            "refused.example" => asked.fail(5),
            "none.example" => asked.fail(3),
            "private.listed.example" => asked.a([10, 0, 0, 1]),
            "short.example" => asked.reply().answer(&record(&[0xc0, 12], A, 60, &[1, 2, 3])).act(),
            _ if asked.qtype() == A => asked
                .reply()
                .answer(&record(&[0xc0, 12], A, 300, &[192, 0, 2, 1]))
                .answer(&record(&[0xc0, 12], A, 300, &[192, 0, 2, 2]))
                .act(),
            _ if asked.qtype() == AAAA => {
                let octets = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
                asked.reply().answer(&record(&[0xc0, 12], AAAA, 300, &octets)).act()
            }
            _ => asked.reply().act(),
        })
        .await;
        let corp = Upstream::start(|asked| asked.a([192, 0, 2, 9])).await;
        let folder = TempDir::new().unwrap();
        let file = format!("path = {:?}\non-change = [\"true\"]", folder.path().join("list.txt"));
        let route = format!("zone = \"corp.example\"\nupstreams = [\"udp://{}\"]", corp.addr);
        let greenlane = Setup::new(general.addr)
            .list("demo.list", "# Demo\nlisted.example\n203.0.113.0/24\n2001:db8:1::/48\n")
            .list("other.list", "# Other\nboth.listed.example\n198.51.100.0/25\n198.51.100.128/25\n")
            .with("forward", "timeout = \"2s\"")
            .with("[forward.route]", &route)
            .with("[export.file]", &file)
            .with("catalogue", "watch = false")
            .start()
            .await;
        let busy = Self { greenlane, _upstreams: [general, corp], _folder: folder };
        busy.ask_everything().await;
        busy
    }

    async fn ask_everything(&self) {
        let greenlane = &self.greenlane;
        for _ in 0..3 {
            greenlane.ask("a.listed.example", RecordType::A).await;
        }
        greenlane.ask_tcp("a.listed.example", RecordType::AAAA).await;
        greenlane.ask("a.both.listed.example", RecordType::A).await;
        greenlane.ask("a.corp.example", RecordType::A).await;
        greenlane.ask("private.listed.example", RecordType::A).await;
        for name in ["broken.example", "none.example", "short.example", "plain.example", "localhost"] {
            greenlane.ask(name, RecordType::A).await;
        }
        for rtype in [RecordType::HTTPS, RecordType::MX, RecordType::ANY, RecordType::Unknown(65_280)] {
            greenlane.ask("types.example", rtype).await;
        }
        let mut odd = question("odd.example", RecordType::A).to_vec().unwrap();
        odd[2] |= 0x28;
        greenlane.udp(&odd).await.expect("NOTIMP");
        odd[2] |= 0x80;
        // A response: silence. What is asked after it on the same socket has its answer after it.
        assert_eq!(greenlane.udp_within(&odd, std::time::Duration::from_millis(200)).await, None);
        for path in ["/prefixes.txt", "/prefixes.json", "/nowhere", "/explain?name=a.listed.example"] {
            greenlane.get(path).await;
        }
        let reloads = |result: &str| format!("greenlane_catalogue_reloads_total{{result=\"{result}\"}}");
        greenlane.signal("HUP");
        greenlane.until_metric(&reloads("done"), |count| count == 1.0).await;
        std::fs::write(greenlane.path("zones/bad.list"), "# Bad\ncom\n").unwrap();
        greenlane.signal("HUP");
        greenlane.until_metric(&reloads("failed"), |count| count == 1.0).await;
        let runs = "greenlane_export_commands_total{result=\"done\"}";
        let list = greenlane.text("/prefixes.txt").await;
        let path = self._folder.path().join("list.txt");
        while std::fs::read_to_string(&path).ok().as_ref() != Some(&list) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        greenlane.until_metric(runs, |count| count >= 1.0).await;
    }
}

/// The value of a series, which must be there.
#[track_caller]
fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let is_it = |sample: &&Sample| {
        sample.name == name
            && sample.labels.len() == labels.len()
            && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|own| own == value))
    };
    samples.iter().find(is_it).unwrap_or_else(|| panic!("no {name}{labels:?}")).value
}

#[tokio::test]
async fn every_metric_is_there_with_its_value() {
    let busy = Busy::start().await;
    let text = busy.greenlane.text("/metrics").await;
    for (name, kind) in METRICS {
        assert_eq!(text.matches(&format!("# TYPE {name} {kind}\n")).count(), 1, "{name}");
        let help = text.lines().find_map(|line| line.strip_prefix("# HELP ")?.strip_prefix(name)?.strip_prefix(' '));
        assert!(help.is_some_and(|help| help.ends_with('.') && help.len() > 10), "{name}: {help:?}");
    }
    let types: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(types, METRICS.iter().map(|(name, _)| *name).collect(), "and no other");

    let samples = read(&text);
    let is = |name: &str, labels: &[(&str, &str)], expected: f64| {
        assert_eq!(value(&samples, &format!("greenlane_{name}"), labels), expected, "{name}{labels:?}");
    };
    is("build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    // Queries: all that are answered, those at home and those refused for their form, too.
    for (transport, class, count) in [
        ("udp", "a", 12.0),
        ("tcp", "aaaa", 1.0),
        ("tcp", "a", 0.0),
        ("udp", "https", 1.0),
        ("udp", "mx", 1.0),
        ("udp", "any", 1.0),
        ("udp", "other", 1.0),
        ("udp", "txt", 0.0),
    ] {
        is("listen_queries_total", &[("transport", transport), ("type", class)], count);
    }
    for (rcode, count) in [("noerror", 13.0), ("nxdomain", 1.0), ("servfail", 2.0), ("notimp", 1.0), ("refused", 0.0)] {
        is("listen_responses_total", &[("rcode", rcode)], count);
    }
    let sum =
        |name: &str| -> f64 { samples.iter().filter(|sample| sample.name == name).map(|sample| sample.value).sum() };
    assert_eq!(sum("greenlane_listen_queries_total"), sum("greenlane_listen_responses_total"), "each has its answer");
    is("listen_dropped_total", &[("reason", "nonsense")], 1.0);
    is("listen_dropped_total", &[("reason", "overload")], 0.0);
    // ANY over UDP and what is refused for its form never look at the cache.
    is("cache_lookups_total", &[("result", "hit")], 2.0);
    is("cache_lookups_total", &[("result", "miss")], 13.0);
    is("cache_lookups_total", &[("result", "stale")], 0.0);
    for result in ["refreshed", "unlearned", "failed", "forgotten"] {
        is("cache_prefetches_total", &[("result", result)], 0.0);
    }
    assert!(value(&samples, "greenlane_cache_entries", &[]) >= 8.0);
    assert!(value(&samples, "greenlane_cache_bytes", &[]) > 500.0);
    // Upstreams by their place.
    let failures = |upstream: &str, kind: &str| {
        value(&samples, "greenlane_forward_upstream_failures_total", &[("kind", kind), ("upstream", upstream)])
    };
    assert!(failures("upstream-1", "servfail") >= 1.0);
    assert!(failures("upstream-1", "malformed") >= 1.0);
    assert_eq!((failures("upstream-1", "timeout"), failures("route-1-upstream-1", "malformed")), (0.0, 0.0));
    is("forward_upstream_seconds_count", &[("upstream", "route-1-upstream-1")], 1.0);
    assert!(value(&samples, "greenlane_forward_upstream_seconds_count", &[("upstream", "upstream-1")]) >= 9.0);
    // Tags, and what was learned.
    is("tag_answers_total", &[("app", "demo")], 6.0);
    is("tag_answers_total", &[("app", "other")], 1.0);
    is("learn_admitted_total", &[], 5.0);
    is("learn_refused_total", &[("reason", "special-purpose")], 1.0);
    is("learn_refused_total", &[("reason", "max-total")], 0.0);
    is("learn_offers_total", &[("outcome", "programmed")], 4.0);
    is("learn_offers_total", &[("outcome", "late")], 0.0);
    is("learn_evicted_total", &[], 0.0);
    is("learn_cut_chains_total", &[], 0.0);
    is("learn_hold_seconds_count", &[], 3.0);
    // The set.
    for (family, origin, count) in
        [("4", "learned", 2.0), ("6", "learned", 1.0), ("4", "static", 3.0), ("6", "static", 1.0)]
    {
        is("set_entries", &[("family", family), ("origin", origin)], count);
    }
    for (app, family, origin, count) in [
        ("demo", "4", "learned", 2.0),
        ("demo", "6", "learned", 1.0),
        ("other", "4", "learned", 2.0),
        ("demo", "4", "static", 1.0),
        ("other", "4", "static", 2.0),
    ] {
        is("set_app_entries", &[("app", app), ("family", family), ("origin", origin)], count);
    }
    is("set_sightings", &[], 5.0);
    assert_eq!(
        value(&samples, "greenlane_set_serial", &[]) as u64,
        busy.greenlane.json("/prefixes.json").await["serial"].as_u64().unwrap()
    );
    // Two halves are one prefix when they are exported; so are neighbours that were learned, where they can.
    is("export_prefixes", &[("family", "4")], 4.0);
    is("export_prefixes", &[("family", "6")], 2.0);
    assert_eq!(busy.greenlane.prefixes("").await.len(), 6);
    assert!(value(&samples, "greenlane_export_file_writes_total", &[("result", "done")]) >= 1.0);
    is("export_file_writes_total", &[("result", "failed")], 0.0);
    is("export_commands_total", &[("result", "failed")], 0.0);
    // Lists and reloads.
    is("catalogue_triggers", &[], 6.0);
    is("catalogue_reloads_total", &[("result", "done")], 1.0);
    is("catalogue_reloads_total", &[("result", "failed")], 1.0);
    // Consumers.
    is("web_requests_total", &[("endpoint", "prefixes"), ("status", "200")], 3.0);
    is("web_requests_total", &[("endpoint", "other"), ("status", "404")], 1.0);
    is("web_requests_total", &[("endpoint", "explain"), ("status", "200")], 1.0);
}

#[tokio::test]
async fn no_label_takes_a_name_or_an_address() {
    let busy = Busy::start().await;
    let greenlane = &busy.greenlane;
    // What strangers can choose must not become a label either.
    for i in 0..30 {
        greenlane.get(&format!("/x{i}.example?y=192.0.2.{i}")).await;
        greenlane.request(&format!("METHOD{i}"), "/prefixes.txt", &[]).await;
        greenlane.ask(&format!("n{i}.listed.example"), RecordType::Unknown(1000 + i)).await;
    }
    let samples = read(&greenlane.text("/metrics").await);
    for Sample { name, labels, .. } in &samples {
        for (label, value) in labels.iter().filter(|(label, _)| !matches!(label.as_str(), "version" | "le")) {
            let is_address = value.parse::<IpAddr>().is_ok()
                || value.parse::<SocketAddr>().is_ok()
                || value.parse::<Prefix>().is_ok()
                || value.contains(':');
            assert!(!is_address && !value.contains('.'), "{name} has {label}={value:?}");
            assert!(
                value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)),
                "{name}: {label}={value:?}"
            );
            assert!(!value.is_empty() && value.len() <= 63, "{name} has {label}={value:?}");
        }
    }
    let series: BTreeSet<_> = samples.iter().map(|sample| (sample.name.clone(), sample.labels.clone())).collect();
    assert_eq!(series.len(), samples.len(), "no series twice");
    // Some fifty for each of five transports; far more would be a label that grows.
    assert!(series.len() < 550, "{} series", series.len());
}

/// Returns whether a tool is there; says so if not.
fn has(tool: &str) -> bool {
    let ran = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let is_there = ran.is_ok_and(|status| status.success());
    if !is_there {
        assert!(std::env::var("GREENLANE_TEST_REQUIRE").as_deref() != Ok("all"), "this test needs {tool}");
        eprintln!("skipped: this test needs {tool}");
    }
    is_there
}

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

#[tokio::test]
async fn promtool_has_nothing_to_say() {
    if !has("promtool") {
        return;
    }
    let busy = Busy::start().await;
    let text = busy.greenlane.text("/metrics").await;
    let mut check = Command::new("promtool");
    let check = check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = check.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let output = Command::new("promtool").args(arguments).current_dir(deploy("prometheus")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
}

/// A metric that an expression asks for, with the label values that it picks.
#[derive(Debug)]
struct Wanted {
    name: String,
    picks: Vec<(String, String)>,
}

/// Finds the metrics of ours in a text of expressions.
fn wanted(text: &str) -> Vec<Wanted> {
    let text = text.replace("\\\"", "\"");
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let starts = text.match_indices("greenlane_").map(|(at, _)| at);
    starts
        .map(|at| {
            let name: String = text[at..].chars().take_while(|c| is_name(*c)).collect();
            let rest = &text[at + name.len()..];
            let inside = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
            let picks = inside.split(',').filter_map(|pick| {
                let (label, value) = pick.split_once('=')?;
                Some((label.trim().to_owned(), value.trim_start_matches('~').trim().trim_matches('"').to_owned()))
            });
            Wanted { name, picks: picks.collect() }
        })
        .collect()
}

/// Whether a label value is one that a pattern of alternatives, each perhaps with `.*` at its end, picks.
fn is_picked(pattern: &str, value: &str) -> bool {
    pattern.split('|').any(|part| match part.strip_suffix(".*") {
        Some(start) => value.starts_with(start),
        None => part == value,
    })
}

#[tokio::test]
async fn board_and_alerts_ask_for_what_there_is() {
    let busy = Busy::start().await;
    let samples = read(&busy.greenlane.text("/metrics").await);
    let board = std::fs::read_to_string(deploy("grafana/greenlane.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&board).unwrap();
    assert!(json["panels"].as_array().unwrap().len() >= 7, "queries, hits, tags, set, refused, upstreams, serial");
    for (file, text) in [
        ("the board", board),
        ("the alerts", std::fs::read_to_string(deploy("prometheus/alerts.yml")).unwrap()),
        ("the alerts' test", std::fs::read_to_string(deploy("prometheus/alerts_test.yml")).unwrap()),
    ] {
        assert!(wanted(&text).len() > 8, "{file}");
        assert_there(file, &text, &samples, |name| !is_of_a_firewall(name) && !is_of_a_cluster(name));
    }
}

/// Whether a metric is there only where nftables is filled, or of `greenlane sync`.
fn is_of_a_firewall(name: &str) -> bool {
    name.starts_with("greenlane_nftables_") || name.starts_with("greenlane_sync_")
}

/// Whether a metric is there only where several resolvers share the set.
fn is_of_a_cluster(name: &str) -> bool {
    name.starts_with("greenlane_cluster_")
}

/// Holds the alerts and their test to ask a cluster for what `/metrics` of one of its resolvers has.
#[track_caller]
pub(crate) fn assert_asked_for_what_a_cluster_has(metrics: &str) {
    let samples = read(metrics);
    for file in ["prometheus/alerts.yml", "prometheus/alerts_test.yml"] {
        assert_there(file, &std::fs::read_to_string(deploy(file)).unwrap(), &samples, is_of_a_cluster);
    }
}

/// Holds the board, the alerts and their test to ask a firewall for what `/metrics` of `greenlane sync` has.
#[track_caller]
pub(crate) fn assert_asked_for_what_a_firewall_has(metrics: &str) {
    let samples = read(metrics);
    for file in ["grafana/greenlane.json", "prometheus/alerts.yml", "prometheus/alerts_test.yml"] {
        assert_there(file, &std::fs::read_to_string(deploy(file)).unwrap(), &samples, is_of_a_firewall);
    }
}

/// Holds every series that a text of expressions picks, of the metrics in question, to be there.
#[track_caller]
fn assert_there(file: &str, text: &str, samples: &[Sample], is_asked: impl Fn(&str) -> bool) {
    for Wanted { name, picks } in wanted(text).into_iter().filter(|wanted| is_asked(&wanted.name)) {
        let series: Vec<&Sample> = samples.iter().filter(|sample| sample.name == name).collect();
        assert!(!series.is_empty(), "{file} asks for {name}, which /metrics does not have");
        for (label, pattern) in picks.iter().filter(|(label, _)| !matches!(label.as_str(), "instance" | "job")) {
            // The names of apps and tables and the places of upstreams are the installation's own.
            let is_own = matches!(label.as_str(), "app" | "upstream" | "table" | "sink");
            let mut found = series.iter().filter_map(|sample| sample.labels.get(label));
            let is_there = found.any(|value| is_own || is_picked(pattern, value));
            assert!(is_there, "{file} asks for {name} with {label}={pattern:?}, which nothing has");
        }
    }
}

#[tokio::test]
async fn a_fresh_daemon_shows_its_counters_at_zero() {
    // A rate over a series that is not there yet is empty, and an alert on it silent.
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let greenlane = Setup::new(upstream.addr).start().await;
    let samples = read(&greenlane.text("/metrics").await);
    let alerts = std::fs::read_to_string(deploy("prometheus/alerts.yml")).unwrap();
    assert_there("the alerts", &alerts, &samples, |name| !is_of_a_firewall(name) && !is_of_a_cluster(name));
}
