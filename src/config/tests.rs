//! The configuration as an operator meets it: text in, options or messages out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::key::{AnyKey, Shape, State, Table, Unset, find_table};
use super::raw::variable_of;
use super::table::{KEYS, TABLES};
use super::*;
use crate::export::format::{Dialect, Format};
use crate::forward::{Protocol, Strategy as Order, TrustAd};

fn read(text: &str) -> Result<Config, Problems> {
    Config::from_text(text, Path::new("config.toml"), &Env::none())
}

fn read_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, Problems> {
    let env = variables.iter().copied().collect();
    Config::from_text(text, Path::new("config.toml"), &env)
}

/// Returns the messages of a text that must be refused.
fn messages(result: Result<Config, Problems>) -> Vec<String> {
    result.expect_err("refused").0.iter().map(ToString::to_string).collect()
}

fn shipped() -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (path, text)
}

#[test]
fn shipped_file_is_the_table_of_keys_printed() {
    let (path, text) = shipped();
    let printed = default_file();
    if std::env::var_os("GREENLANE_BLESS").is_some() {
        std::fs::write(&path, &printed).unwrap();
    } else {
        assert!(text == printed, "config.toml is not what the table prints; GREENLANE_BLESS=1 rewrites it\n{printed}");
    }
}

#[test]
fn shipped_file_means_the_defaults() {
    assert_eq!(read(&shipped().1), Ok(Config::default()));
    assert_eq!(read(""), Ok(Config::default()));
    assert_eq!(Config::without_file(&Env::none()), Ok(Config::default()));
}

#[test]
fn shipped_file_names_every_key_and_table() {
    let (_, text) = shipped();
    for table in TABLES {
        let header = match table.shape {
            Shape::Once => format!("\n[{}]\n", table.path),
            Shape::Many => format!("\n#[[{}]]\n", table.path),
        };
        assert!(text.contains(&header), "{header}");
    }
    for spec in KEYS.iter().map(|key| key.spec()) {
        let line = format!("{} = {}\n", spec.name(), spec.unset.text());
        assert!(text.contains(&line), "{line}");
    }
}

#[test]
fn shipped_examples_are_right_once_uncommented() {
    let (_, text) = shipped();
    let uncommented: String = text
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();
    let config = read(&uncommented).unwrap();
    assert_eq!(config.forward.routes.len(), 1);
    // What stands behind `#` in a `[[table]]` is the default too, where there is one.
    let bare = read("[[export.file]]\npath = \"/var/lib/greenlane/prefixes.txt\"").unwrap();
    assert_eq!(config.export_files, bare.export_files);
    // Each key and table without a default is now set; those that are not built warn.
    let later = |table: &&Table| table.state == State::Later;
    let absent = |key: &&&dyn AnyKey| {
        matches!(key.spec().unset, Unset::Absent(_))
            && key.spec().state == State::Later
            && find_table(key.spec().table()).is_some_and(|table| table.state == State::Built)
    };
    let warned = TABLES.iter().filter(later).count() + KEYS.iter().filter(absent).count();
    assert_eq!(config.not_built.len(), warned, "{:#?}", config.not_built);
}

#[test]
fn every_line_of_the_table_explains_in_one_line() {
    for spec in KEYS.iter().map(|key| key.spec()) {
        assert!(find_table(spec.table()).is_some(), "{}", spec.path);
        assert!(spec.doc.ends_with('.') && spec.doc.len() < 125, "{}", spec.path);
    }
}

#[test]
fn access_prefixes_by_default_are_all_prefixes() {
    let allow = listen::Options::default().clients.allow;
    assert_eq!(allow.len(), listen::access::ALLOWED_BY_DEFAULT.len());
}

#[test]
fn every_built_key_reaches_its_option() {
    let config = read(
        r#"
        [listen]
        dns = ["192.0.2.1:53", "127.0.0.1:5300"]
        web = "192.0.2.1:80"
        proxy-protocol = ["192.0.2.8/32"]
        [clients]
        allow = ["192.0.2.0/24"]
        deny = ["192.0.2.9/32"]
        refuse = "drop"
        rate-limit = 21
        error-rate-limit = 22
        rate-slip = 3
        rate-prefix4 = 32
        rate-prefix6 = 64
        rate-exempt = ["192.0.2.1/32"]
        cookie-secret-file = "keys/cookie"
        max-connections = 7
        per-client = 3
        [forward]
        upstreams = ["9.9.9.9", "tcp://[2620:fe::fe]:5353"]
        strategy = "ordered"
        timeout = "2s"
        trust-ad = "never"
        special = ["home.arpa", "corp.test"]
        hosts = "hosts"
        [[forward.route]]
        zone = "Bücher.example."
        upstreams = ["tls://10.0.0.53#ns.corp.example"]
        [cache]
        size = "16MB"
        min-ttl = "5s"
        max-ttl = "1h"
        negative-max-ttl = "1m"
        [catalogue]
        path = "lists"
        disabled = ["goto"]
        never = ["Bank.example", "münchen.example"]
        watch = false
        [tag]
        edns-option = 0
        extended-error = false
        [learn]
        hold = "0s"
        hold-for-followers = true
        min-hold = "1m"
        grace = "30s"
        never = ["203.0.113.0/24"]
        treat-as-public = ["198.18.0.0/15"]
        nat64 = ["64:ff9b::/96"]
        max-total = 10
        max-per-name = 11
        max-per-trigger = 12
        new-per-client-per-minute = 0
        warm = false
        warm-names = "ahead.txt"
        warm-used-for = "2h"
        warm-max-names = 13
        warm-max-per-second = 14
        [[export.file]]
        path = "out/set.nft"
        format = "nft"
        on-change = ["bin/load", "--now"]
        [[export.file]]
        path = "/srv/set.txt"
        on-change = ["systemctl", "reload", "squid"]
        [web]
        allow = ["10.0.0.0/8"]
        [log]
        level = "debug"
        format = "json"
        "#,
    )
    .unwrap();
    let host = |text: &str| text.parse::<crate::prefix::Prefix>().unwrap();
    assert_eq!(
        config.listen.dns,
        [
            listen::Address { addr: "192.0.2.1:53".parse().unwrap(), is_default: false },
            listen::Address { addr: "127.0.0.1:5300".parse().unwrap(), is_default: true },
        ]
    );
    assert_eq!(config.web.listen, Some("192.0.2.1:80".parse().unwrap()));
    assert_eq!(config.web.allow, [host("10.0.0.0/8")]);
    assert_eq!(
        config.listen.clients,
        listen::access::Options {
            allow: vec![host("192.0.2.0/24")],
            deny: vec![host("192.0.2.9/32")],
            refuse: listen::access::Refuse::Drop,
            rate: listen::rate::Options {
                per_second: 21,
                errors_per_second: 22,
                slip: 3,
                len4: 32,
                len6: 64,
                exempt: vec![host("192.0.2.1/32")],
            },
            balancers: vec![host("192.0.2.8/32")],
            cookie_secret_file: Some(PathBuf::from("keys/cookie")),
        }
    );
    assert_eq!((config.listen.max_connections, config.listen.max_connections_per_client), (7, 3));
    assert_eq!(config.forward.upstreams[0].addr, "9.9.9.9:53".parse().unwrap());
    assert_eq!(config.forward.upstreams[1].protocol, Protocol::Tcp);
    assert_eq!((config.forward.strategy, config.forward.trust_ad), (Order::Ordered, TrustAd::Never));
    assert_eq!(config.forward.timeout, Duration::from_secs(2));
    assert_eq!(config.forward.routes[0].zone.to_string(), "xn--bcher-kva.example");
    assert_eq!(config.forward.routes[0].upstreams[0].tls_name.as_deref(), Some("ns.corp.example"));
    assert_eq!(config.hosts, Some(PathBuf::from("hosts")));
    assert_eq!(config.special, ["home.arpa", "corp.test"].map(|name| Name::parse(name).unwrap()));
    assert_eq!(config.cache.size_bytes, 16_000_000);
    assert_eq!(config.cache.min_ttl, Duration::from_secs(5));
    assert_eq!(config.cache.max_ttl, Duration::from_secs(3600));
    assert_eq!(config.cache.negative_max_ttl, Duration::from_secs(60));
    assert_eq!(config.catalogue.path, PathBuf::from("lists"));
    assert_eq!(config.catalogue.disabled, ["goto"]);
    assert_eq!(config.catalogue.never, ["bank.example", "xn--mnchen-3ya.example"]);
    assert!(!config.watch);
    assert_eq!(config.tag, TagOptions { edns_option: 0, extended_error: false });
    assert_eq!(
        config.warm,
        warm::Options {
            is_on: false,
            names_file: Some(PathBuf::from("ahead.txt")),
            used_for: Duration::from_secs(7200),
            names_max: 13,
            per_second: 14,
        }
    );
    assert_eq!(
        config.learn,
        learn::Options {
            hold: Duration::ZERO,
            hold_for_followers: true,
            min_hold: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            never: vec![host("203.0.113.0/24")],
            treat_as_public: vec![host("198.18.0.0/15")],
            nat64: vec![host("64:ff9b::/96")],
            own: vec![
                host("9.9.9.9/32"),
                host("10.0.0.53/32"),
                host("127.0.0.1/32"),
                host("192.0.2.1/32"),
                host("2620:fe::fe/128")
            ],
            max_total: 10,
            max_per_name: 11,
            max_per_trigger: 12,
            new_per_client_per_minute: 0,
            is_shared: false,
            max_shrink: 0.5,
        }
    );
    assert_eq!(config.export_files[0].path, PathBuf::from("out/set.nft"));
    assert_eq!(config.export_files[0].format, Dialect::Set(Format::Nft));
    assert_eq!(config.export_files[1].format, Dialect::Set(Format::Txt));
    assert_eq!(config.export_files[1].on_change, ["systemctl", "reload", "squid"]);
    assert_eq!(config.log, LogOptions { level: LogLevel::Debug, format: LogFormat::Json });
    assert_eq!(config.not_built, []);
}

#[test]
fn relative_paths_start_at_the_folder_of_the_file() {
    let text = "[catalogue]\npath = \"lists\"\n[[export.file]]\npath = \"a.txt\"\non-change = [\"./load\"]\n\
        [web]\nread-token-file = \"read\"\nadmin-token-file = \"/run/admin\"";
    let config = Config::from_text(text, Path::new("/etc/greenlane/config.toml"), &Env::none()).unwrap();
    assert_eq!(config.catalogue.path, PathBuf::from("/etc/greenlane/lists"));
    assert_eq!(config.export_files[0].path, PathBuf::from("/etc/greenlane/a.txt"));
    assert_eq!(config.web.read_token_file, Some(PathBuf::from("/etc/greenlane/read")));
    assert_eq!(config.web.admin_token_file, Some(PathBuf::from("/run/admin")));
    assert_eq!(config.export_files[0].on_change, ["/etc/greenlane/./load"]);
    let config = Config::from_text("", Path::new("/etc/greenlane/config.toml"), &Env::none()).unwrap();
    assert_eq!(config.catalogue.path, PathBuf::from("/etc/greenlane/zones"));
}

/// One mistake each: the text, and the message after `config.toml:`.
const MISTAKES: &[(&str, &str)] = &[
    // Names.
    ("[learn]\nmin_hold = \"5m\"", "2:1: learn.min_hold: unknown key, did you mean learn.min-hold?"),
    ("[learn]\n  hodl = \"5m\"", "2:3: learn.hodl: unknown key, did you mean learn.hold?"),
    ("[tag]\ngrace = \"5m\"", "2:1: tag.grace: unknown key, did you mean learn.grace?"),
    ("[lisen]\ndns = []", "1:2: lisen: unknown table, did you mean listen?"),
    ("upstreams = []", "1:1: upstreams: unknown key, did you mean forward.upstreams?"),
    ("[tag]\nfrobnicate = 1", "2:1: tag.frobnicate: unknown key, expected one of tag.edns-option, tag.extended-error"),
    ("[tag]\n\"a b\\n\" = 1", "2:1: tag.\"a b\\n\": unknown key, expected one of tag.edns-option, tag.extended-error"),
    (
        "[[export.file]]\npath = \"x\"\nonchange = []",
        "3:1: export.file.onchange: unknown key, did you mean export.file.on-change?",
    ),
    // Tables.
    ("listen = 5", "1:10: listen: expected a table, written once as [listen], found 5"),
    ("[[listen]]\ndns = []", "1:1: listen: expected a table, written once as [listen], found a list"),
    (
        "[export.file]\npath = \"x\"",
        "1:1: export.file: expected tables, each written as [[export.file]], found a table",
    ),
    ("group = [1]", "1:10: group: expected tables, each written as [[group]], found 1"),
    (
        "[[forward.route]]\nupstreams = [\"9.9.9.9\"]",
        "1:1: forward.route.zone: missing, expected zone = \"corp.example\"",
    ),
    ("[[group]]\nname = \"a\"\napps = []", "1:1: group.clients: missing, expected clients = [\"10.20.0.0/16\"]"),
    // Types.
    (
        "[learn]\nhold = 100",
        "2:8: learn.hold: expected a duration such as \"100ms\", \"8s\", \"10m\" or \"1d\", found 100",
    ),
    ("[learn]\nhold = \"2s\"", "2:8: learn.hold: expected 0s to 1s, found \"2s\""),
    ("[cache]\nmax-ttl = \"1500ms\"", "2:11: cache.max-ttl: expected whole seconds, found \"1500ms\""),
    ("[cache]\nmax-ttl = \"0s\"", "2:11: cache.max-ttl: expected 1s to 2147483647s, found \"0s\""),
    ("[cache]\nsize = \"256M\"", "2:8: cache.size: expected a size such as \"256MiB\" or \"16MB\", found \"256M\""),
    ("[cache]\nsize = \"1B\"", "2:8: cache.size: expected 64KiB to 16TiB, found \"1B\""),
    ("[cache]\nprefetch = \"yes\"", "2:12: cache.prefetch: expected true or false, found \"yes\""),
    (
        "[forward]\nspecial = [\"home.arpa\", \"example.com\"]",
        "2:25: forward.special: example.com is not answered at home, expected a special-use zone or a name below one, such as \"home.arpa\"",
    ),
    ("[clients]\nper-client = 0", "2:14: clients.per-client: expected 1 to 1000000, found 0"),
    ("[clients]\nper-client = -1", "2:14: clients.per-client: expected 1 to 1000000, found -1"),
    ("[clients]\nper-client = 1.5", "2:14: clients.per-client: expected a whole number, 1 to 1000000, found 1.5"),
    ("[clients]\nper-client = \"9\"", "2:14: clients.per-client: expected a whole number, 1 to 1000000, found \"9\""),
    (
        "[clients]\nper-client = 99999999999999999999999999999999999999999",
        "2:14: clients.per-client: expected 1 to 1000000, found 99999999999999999999999999999999999999999",
    ),
    ("[tag]\nedns-option = 70000", "2:15: tag.edns-option: expected 0 to 65535, found 70000"),
    ("[tag]\nedns-option = 10", "2:15: tag.edns-option: expected 0 or 65001 to 65534, found 10"),
    ("[export]\nmax-shrink = 1.5", "2:14: export.max-shrink: expected a number from 0 to 1, found 1.5"),
    ("[export]\nmax-shrink = nan", "2:14: export.max-shrink: expected a number from 0 to 1, found nan"),
    (
        "[forward]\nstrategy = \"random\"",
        "2:12: forward.strategy: expected \"fastest\" or \"ordered\", found \"random\"",
    ),
    (
        "[log]\nlevel = \"loud\"",
        "2:9: log.level: expected \"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\", found \"loud\"",
    ),
    ("[catalogue]\npath = \"\"", "2:8: catalogue.path: expected a path, found \"\""),
    (
        "[catalogue]\ndisabled = [\"a/b\"]",
        "2:13: catalogue.disabled: expected the id of an app such as \"zoom\", found \"a/b\"",
    ),
    ("[catalogue]\nnever = [\"a..b\"]", "2:10: catalogue.never: \"a..b\" is no domain name: empty label"),
    (
        "[catalogue]\nnever = [\"*.example\"]",
        "2:10: catalogue.never: expected a domain name such as \"example.com\", which includes all below it, \
         found \"*.example\"",
    ),
    (
        "[catalogue]\nnever = [\"\u{378}.example\"]",
        "2:10: catalogue.never: \"\u{378}.example\" has no A-label form, \
         expected letters and digits that IDNA allows (RFC 5891)",
    ),
    (
        "[learn]\nnever = [\"10.0.0.1/8\"]",
        "2:10: learn.never: host bits are set in 10.0.0.1/8, the prefix is 10.0.0.0/8",
    ),
    (
        "[learn]\nnever = \"10.0.0.0/8\"",
        "2:9: learn.never: expected a list of prefixes such as [\"198.51.100.0/24\"], found \"10.0.0.0/8\"",
    ),
    (
        "[learn]\nnever = [\"10.0.0.0/33\"]",
        "2:10: learn.never: prefix length 33 is too long, at most 32 for this family",
    ),
    (
        "[learn]\nnat64 = [\"64:ff9b::/64\"]",
        "2:10: learn.nat64: expected an IPv6 prefix of 96 bits such as \"64:ff9b::/96\", found \"64:ff9b::/64\"",
    ),
    (
        "[[export.file]]\npath = \"x\"\nformat = \"xml\"",
        "3:10: export.file.format: expected \"txt\", \"json\", \"csv\", \"nft\", \"ipset\", \"rsc\", \"paloalto\", \"fortigate\", \"opnsense\", \"pfsense\", \"checkpoint\", \"cisco\", \"mikrotik\", \"squid-ip\", \"squid-domains\" or \"domains\", found \"xml\"",
    ),
    (
        "[[export.file]]\npath = \"x\"\non-change = [\"\"]",
        "3:13: export.file.on-change: expected a program first, found a list",
    ),
    (
        "[store]\ncluster = \"http://me:secret@host\"",
        "2:11: store.cluster: expected an URL that begins with rediss://, redis://, found \"http://…\"",
    ),
    (
        "[store]\ncluster = \"redis://me:secret@10.0.0.1\"",
        "2:11: store.cluster: expected rediss:// beyond loopback, found redis://; store.insecure = true allows it",
    ),
    (
        "[store]\ncluster = \"rediss://me:secret@h:x\"",
        "2:11: store.cluster: expected rediss://[USER[:PASSWORD]@]HOST[:PORT][/DATABASE], found something else",
    ),
    (
        "[store]\ncluster-id = \"a b\"",
        "2:14: store.cluster-id: expected 1 to 64 letters, digits, `_`, `-` or `.`, found \"a b\"",
    ),
    // Sockets.
    (
        "[listen]\ndns = [\"127.0.0.1\"]",
        "2:8: listen.dns: expected an address and port such as \"127.0.0.1:5300\" or \"[::1]:5300\", found \"127.0.0.1\"",
    ),
    (
        "[listen]\nweb = \"127.0.0.1:70000\"",
        "2:7: listen.web: expected an address and port such as \"127.0.0.1:5300\" or \"[::1]:5300\", found \"127.0.0.1:70000\"",
    ),
    ("[listen]\ndns = []", "2:7: listen.dns: expected at least one address, found an empty list"),
    (
        "[listen]\ndns = [\"127.0.0.1:53\", \"127.0.0.1:53\"]",
        "2:24: listen.dns: 127.0.0.1:53 stands already at config.toml:2:8, expected it once",
    ),
    (
        "[listen]\ndns = [\"0.0.0.0:53\", \"127.0.0.1:53\"]",
        "2:22: listen.dns: 127.0.0.1:53 takes the port of 0.0.0.0:53, which stands at config.toml:2:8, \
         expected one of them or another port",
    ),
    (
        "[listen]\ndns = [\"0.0.0.0:53\"]\nweb = \"0.0.0.0:53\"",
        "3:7: listen.web: 0.0.0.0:53 stands already at config.toml:2:8, expected it once",
    ),
    (
        "[listen]\ndns = [\"127.0.0.1:8053\"]",
        "2:8: listen.dns: 127.0.0.1:8053 stands already as the default of listen.web, expected it once",
    ),
    (
        "[listen]\nweb = \"[::]:5300\"",
        "2:7: listen.web: [::]:5300 takes the port of [::1]:5300, which stands as the default of listen.dns, \
         expected one of them or another port",
    ),
    (
        "[clients]\nallow = []",
        "2:9: clients.allow: expected at least one prefix, \"0.0.0.0/0\" and \"::/0\" for everyone, found an empty list",
    ),
    // Upstreams.
    ("[forward]\nupstreams = []", "2:13: forward.upstreams: expected at least one upstream, found an empty list"),
    (
        "[forward]\nupstreams = [\"https://dns.quad9.net/dns-query\"]",
        "2:14: forward.upstreams: \"https://dns.quad9.net/dns-query\" names a host, \
         write an address such as https://9.9.9.9/dns-query#dns.quad9.net",
    ),
    (
        "[forward]\nupstreams = [\"tls://dns.quad9.net\"]",
        "2:14: forward.upstreams: \"tls://dns.quad9.net\" names a host, \
         write an address such as tls://9.9.9.9#dns.quad9.net",
    ),
    (
        "[forward]\nupstreams = [\"9.9.9.9\", \"udp://9.9.9.9:53\"]",
        "2:25: forward.upstreams: udp://9.9.9.9:53 stands already at config.toml:2:14, expected it once",
    ),
    (
        "[forward]\nupstreams = [\"127.0.0.1:5300\"]",
        "2:14: forward.upstreams: udp://127.0.0.1:5300 is our own address 127.0.0.1:5300, \
         questions would go in a circle, expected another server",
    ),
    (
        "[[forward.route]]\nzone = \"a.example\"\nupstreams = [\"9.9.9.9\"]\n\
         [[forward.route]]\nzone = \"A.example.\"\nupstreams = [\"9.9.9.9\"]",
        "5:8: forward.route.zone: a.example stands already at config.toml:2:8, expected it once",
    ),
    // Values against each other.
    ("[cache]\nmin-ttl = \"2d\"", "2:11: cache.min-ttl: expected at most cache.max-ttl (1d), found 2d"),
    (
        "[cache]\nmax-ttl = \"1m\"\nmin-ttl = \"2m\"",
        "3:11: cache.min-ttl: expected at most cache.max-ttl (1m), found 2m",
    ),
    (
        "[[export.file]]\npath = \"x\"\n[[export.file]]\npath = \"x\"",
        "4:8: export.file.path: \"x\" stands already at config.toml:2:8, expected it once",
    ),
    // Syntax.
    ("[learn]\nhold = 100ms", "2:8: TOML: text stands in quotes, found `100ms`, expected \"100ms\""),
    ("[cache]\nprefetch = yes", "2:12: TOML: a flag is one of two words, found `yes`, expected true or false"),
    ("[learn]\nhold =\n", "2:7: TOML: no value after `=`"),
    ("[learn\n", "1:7: TOML: unclosed table, expected `]`"),
    ("[learn]\nhold", "2:5: TOML: key with no value, expected `=`"),
    ("[learn]\nhold = \"1s\"\nhold = \"1s\"", "3:1: TOML: duplicate key, found `hold`"),
    ("[learn]\nhold = \"1s", "2:11: TOML: invalid basic string, expected `\"`"),
];

#[test]
fn each_mistake_has_its_place_and_remedy() {
    for (text, message) in MISTAKES {
        assert_eq!(messages(read(text)), [format!("config.toml:{message}")], "{text}");
    }
}

#[test]
fn all_mistakes_are_reported_in_one_run() {
    let text = "\
[listen]
dns = [\"localhost:53\", \"127.0.0.1\"]
[learn]
hold = \"1h\"
min_hold = \"5m\"
never = [\"10.0.0.1/8\", \"x\"]
[[forward.route]]
zone = \"a..b\"
upstreams = []
[nonsense]
";
    let found = messages(read_with(text, &[("GREENLANE__LEARN__GRACE", "soon"), ("GREENLANE__CACHE__SISE", "1MB")]));
    let places: Vec<&str> = found.iter().map(|message| message.split(": ").next().unwrap()).collect();
    assert_eq!(
        places,
        [
            "config.toml:2:8",
            "config.toml:2:24",
            "config.toml:4:8",
            "config.toml:5:1",
            "config.toml:6:10",
            "config.toml:6:24",
            "config.toml:8:8",
            "config.toml:9:13",
            "config.toml:10:2",
            "GREENLANE__CACHE__SISE",
            "GREENLANE__LEARN__GRACE",
        ],
        "{found:#?}"
    );
}

#[test]
fn before_a_syntax_mistake_values_are_still_judged() {
    let text = "[learn]\nhold = \"1h\"\ngrace = 5m\nmin-hold = \"never\"\n[[forward.route]]\n";
    assert_eq!(
        messages(read(text)),
        [
            "config.toml:2:8: learn.hold: expected 0s to 1s, found \"1h\"",
            "config.toml:3:9: TOML: text stands in quotes, found `5m`, expected \"5m\"",
        ]
    );
}

#[test]
fn columns_count_characters() {
    let text = "[catalogue]\nnever = [\"bücher.example\", \"ä..b\"]";
    let found = messages(read(text));
    assert!(found[0].starts_with("config.toml:2:28: catalogue.never: "), "{found:?}");
}

#[test]
fn variables_override_the_file() {
    let text = "[learn]\nmin-hold = \"1m\"\n[[export.file]]\npath = \"a\"";
    let config = read_with(
        text,
        &[
            ("GREENLANE__LEARN__MIN_HOLD", "5m"),
            ("GREENLANE__LEARN__GRACE", "\"7m\""),
            ("GREENLANE__LISTEN__DNS", "127.0.0.1:0, [::1]:0"),
            ("GREENLANE__FORWARD__UPSTREAMS", r#"["udp://192.0.2.1", 'udp://192.0.2.2']"#),
            ("GREENLANE__CATALOGUE__WATCH", "false"),
            ("GREENLANE__CLIENTS__PER_CLIENT", " 9 "),
            ("GREENLANE__CATALOGUE__DISABLED", ""),
            ("GREENLANE__EXPORT__FILE", r#"[{path = "b", format = "json"}]"#),
            ("GREENLANE__EXPORT__MAX_SHRINK", "0.25"),
            ("GREENLANE__LISTEN__THREADS", "2"),
            ("GREENLANE__LEARN__STRICT", "true"),
            ("GREENLANE_UNRELATED", "x"),
        ],
    )
    .unwrap();
    assert_eq!(config.learn.min_hold, Duration::from_secs(300));
    assert_eq!(config.learn.grace, Duration::from_secs(420));
    let dns: Vec<String> = config.listen.dns.iter().map(|address| address.addr.to_string()).collect();
    assert_eq!(dns, ["127.0.0.1:0", "[::1]:0"]);
    assert_eq!(config.forward.upstreams.len(), 2);
    assert!(!config.watch);
    assert_eq!(config.listen.max_connections_per_client, 9);
    assert_eq!(config.catalogue.disabled, [""; 0]);
    assert_eq!(config.export_files[0].path, PathBuf::from("b"));
    assert_eq!(config.export_files.len(), 1);
    let warned: Vec<String> = config.not_built.iter().map(ToString::to_string).collect();
    assert_eq!(config.listen.threads, 2);
    assert_eq!(warned, ["GREENLANE__LEARN__STRICT: learn.strict: not built yet, setting it has no effect"]);
    assert!((config.learn.max_shrink - 0.25).abs() < f64::EPSILON);
}

#[test]
fn variables_that_are_wrong_are_named() {
    for (name, value, message) in [
        ("GREENLANE__LEARN__MINHOLD", "5m", "unknown key, did you mean GREENLANE__LEARN__MIN_HOLD?"),
        (
            "GREENLANE__TAG",
            "5m",
            "unknown key, expected one of GREENLANE__TAG__EDNS_OPTION, GREENLANE__TAG__EXTENDED_ERROR",
        ),
        (
            "GREENLANE__FORWARD__ROUTE__ZONE",
            "a.example",
            "unknown key, expected GREENLANE__FORWARD__ROUTE=[{…}] or [[forward.route]] in the file",
        ),
        ("GREENLANE__LEARN__HOLD", "2s", "learn.hold: expected 0s to 1s, found \"2s\""),
        (
            "GREENLANE__CLIENTS__PER_CLIENT",
            "many",
            "clients.per-client: expected a whole number, 1 to 1000000, found \"many\"",
        ),
        ("GREENLANE__CLIENTS__PER_CLIENT", "0", "clients.per-client: expected 1 to 1000000, found \"0\""),
        ("GREENLANE__CATALOGUE__WATCH", "yes", "catalogue.watch: expected true or false, found \"yes\""),
        ("GREENLANE__EXPORT__FILE", "x", "export.file: expected tables, each written as [[export.file]], found \"x\""),
        (
            "GREENLANE__LISTEN__DNS",
            "localhost",
            "listen.dns: expected an address and port such as \"127.0.0.1:5300\" or \"[::1]:5300\", found \"localhost\"",
        ),
    ] {
        assert_eq!(messages(read_with("", &[(name, value)])), [format!("{name}: {message}")]);
    }
}

#[cfg(unix)]
#[test]
fn variable_that_is_no_text_is_named() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let env = [(OsString::from("GREENLANE__LEARN__HOLD"), OsString::from_vec(vec![0xff]))].into_iter().collect();
    assert_eq!(messages(Config::without_file(&env)), ["GREENLANE__LEARN__HOLD: not UTF-8, expected text in UTF-8"]);
}

#[test]
fn what_is_not_built_warns_only_when_it_is_set_otherwise() {
    let defaults = read("[cache]\nsave = false\n[learn]\nstrict = false\n").unwrap();
    assert_eq!(defaults.not_built, []);
    let text = "\
[cache]
save = true
[[group]]
name = \"guests\"
clients = [\"10.0.0.0/8\"]
apps = [\"zoom\"]
[[zone]]
file = \"corp.zone\"
[learn]
strict = true
";
    let warned: Vec<String> = read(text).unwrap().not_built.iter().map(ToString::to_string).collect();
    assert_eq!(
        warned,
        [
            "config.toml:3:1: [[group]]: not built yet, setting it has no effect",
            "config.toml:7:1: [[zone]]: not built yet, setting it has no effect",
            "config.toml:10:10: learn.strict: not built yet, setting it has no effect",
        ]
    );
}

#[test]
fn nftables_of_ours_have_every_set_and_those_of_the_operator_the_named_ones() {
    use crate::export::nftables::{Mode, SetNames, TableFamily};
    let text = "\
[learn]
max-total = 100
[[export.nftables]]
mark = 0x20000000
[[export.nftables]]
mode = \"guest\"
family = \"ip\"
table = \"filter\"
learned4 = \"bypass\"
";
    let engines = read(text).unwrap().export_nftables;
    assert_eq!(engines[0].mode, Mode::Own { mark: 0x2000_0000, size: 200 });
    assert_eq!((engines[0].family, engines[0].table.as_str()), (TableFamily::Inet, "greenlane"));
    assert_eq!(engines[0].sets.static6.as_deref(), Some("static6"));
    assert_eq!((engines[1].mode, engines[1].family), (Mode::Guest, TableFamily::Ip));
    assert_eq!(engines[1].sets, SetNames { learned4: Some("bypass".to_owned()), ..SetNames::default() });
    let twice = "[[export.nftables]]\n[[export.nftables]]\nmode = \"guest\"\nlearned4 = \"bypass\"\n";
    assert_eq!(
        messages(read(twice)),
        ["config.toml:2:1: export.nftables.table: inet greenlane stands already at config.toml:1:1, expected it once"]
    );
}

#[test]
fn sets_of_nftables_that_cannot_be_are_told_with_their_place() {
    let said = |lines: &str| messages(read(&format!("[[export.nftables]]\n{lines}")));
    let guest = "mode = \"guest\"\ntable = \"filter\"\n";
    assert_eq!(
        said(&format!("{guest}learned4 = \"bypass\"\nstatic4 = \"bypass\"\n")),
        ["config.toml:4:12: export.nftables.learned4: bypass is the set of static4 already, expected a set of its own"]
    );
    // One of them may be a default.
    assert_eq!(
        said("static6 = \"learned6\"\n"),
        [
            "config.toml:2:11: export.nftables.learned6: learned6 is the set of static6 already, expected a set of its own"
        ]
    );
    assert_eq!(
        said(guest),
        ["config.toml:1:1: export.nftables: no set to fill, expected at least one of learned4, learned6, static4, \
             static6 in a table of family inet"]
    );
    assert_eq!(
        said(&format!("{guest}family = \"ip\"\nlearned6 = \"bypass\"\n")),
        ["config.toml:1:1: export.nftables: no set to fill, expected at least one of learned4, static4 in a table \
             of family ip"]
    );
    // What the family has no room for is left out, so it is in nobody's way.
    assert!(read("[[export.nftables]]\nfamily = \"ip\"\nstatic6 = \"learned4\"\n").is_ok());
}

#[test]
fn every_key_is_checked_for_its_type() {
    for spec in KEYS.iter().map(|key| key.spec()) {
        let header = match find_table(spec.table()).unwrap().shape {
            Shape::Once => format!("[{}]", spec.table()),
            Shape::Many => format!("[[{}]]", spec.table()),
        };
        let found = messages(read(&format!("{header}\n{} = 1979-05-27\n", spec.name())));
        let own: Vec<&String> = found.iter().filter(|message| message.contains(", found 1979-05-27")).collect();
        assert_eq!(own.len(), 1, "{}: {found:?}", spec.path);
        assert!(own[0].contains(&format!(" {}: expected ", spec.path)), "{found:?}");
    }
}

#[test]
fn hostile_text_never_breaks_a_message() {
    const HOSTILE: &str = "\\u001b[2Ja\\n\\\"\\u202e";
    for spec in KEYS.iter().map(|key| key.spec()) {
        let header = match find_table(spec.table()).unwrap().shape {
            Shape::Once => format!("[{}]", spec.table()),
            Shape::Many => format!("[[{}]]", spec.table()),
        };
        for value in [format!("\"{HOSTILE}\""), format!("[\"{HOSTILE}\"]"), format!("{{\"{HOSTILE}\" = 1}}")] {
            let Err(problems) = read(&format!("{header}\n{} = {value}\n\"{HOSTILE}\" = 1", spec.name())) else {
                panic!("{}: an unknown key was taken", spec.path);
            };
            for message in problems.0.iter().map(ToString::to_string) {
                assert!(!message.contains(|c: char| c.is_control() || c == '\u{202e}'), "{message:?}");
            }
        }
    }
    let variable = messages(read_with("", &[("GREENLANE__A\n\u{1b}", "x")]));
    assert!(!variable[0].contains(char::is_control), "{variable:?}");
}

#[test]
fn every_variable_of_a_key_is_known() {
    let once = |path: &str| find_table(path).is_some_and(|table| table.shape == Shape::Once);
    for spec in KEYS.iter().map(|key| key.spec()).filter(|spec| once(spec.table())) {
        let text = spec.unset.text();
        assert!(read_with("", &[(&variable_of(spec.path), text)]).is_ok(), "{}", spec.path);
    }
}

#[test]
fn web_listener_can_be_switched_off() {
    assert_eq!(read("[listen]\nweb = \"off\"").unwrap().web.listen, None);
}

#[test]
fn ports_chosen_by_the_system_never_collide() {
    let config = read("[listen]\ndns = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\nweb = \"127.0.0.1:0\"").unwrap();
    assert_eq!(config.listen.dns.len(), 2);
}

#[test]
fn wildcards_of_both_families_stand_side_by_side() {
    let config = read("[listen]\ndns = [\"0.0.0.0:53\", \"[::]:53\"]").unwrap();
    assert!(config.listen.dns.iter().all(|address| !address.is_default));
    assert!(config.learn.own.iter().all(|own| !own.addr().is_unspecified()));
}

#[test]
fn file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.toml");
    let found = messages(Config::load(&missing, &Env::none()));
    assert!(found[0].starts_with(&format!("{}: cannot be read: ", missing.display())), "{found:?}");

    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, b"[learn]\nx = \xff").unwrap();
    assert_eq!(
        messages(Config::load(&binary, &Env::none())),
        [format!("{}:2:5: not UTF-8, expected text in UTF-8", binary.display())]
    );

    let right = folder.path().join("config.toml");
    std::fs::write(&right, "\u{feff}[catalogue]\r\npath = \"x\"\r\n").unwrap();
    assert_eq!(Config::load(&right, &Env::none()).unwrap().catalogue.path, folder.path().join("x"));
}

/// A line of a configuration, right or wrong.
fn line() -> impl Strategy<Value = String> {
    let name = prop::sample::select(
        KEYS.iter().map(|key| key.spec().path).chain(TABLES.iter().map(|table| table.path)).collect::<Vec<_>>(),
    );
    let value = prop::sample::select(vec![
        "1",
        "-1",
        "0x10",
        "1e9",
        "true",
        "\"\"",
        "\"1s\"",
        "\"::1\"",
        "\"a\\n\"",
        "[\"a\\n\"]",
        "[\"192.0.2.1\", \"192.0.2.1\"]",
        "[]",
        "[1, [2]]",
        "{a = 1}",
        "[[",
        "'",
        "2020-01-01",
    ]);
    prop_oneof![
        (name.clone(), value).prop_map(|(name, value)| format!("{name} = {value}")),
        name.clone().prop_map(|name| format!("[{name}]")),
        name.prop_map(|name| format!("[[{name}]]")),
        "\\PC{0,20}",
    ]
}

proptest! {
    #[test]
    fn no_text_panics_and_every_message_is_one_line(lines in prop::collection::vec(line(), 0..12), noise in any::<String>()) {
        for text in [lines.join("\n"), noise] {
            if let Err(problems) = read(&text) {
                prop_assert!(!problems.0.is_empty());
                for problem in problems.0 {
                    prop_assert!(!problem.to_string().contains(char::is_control), "{:?}", problem);
                }
            }
        }
    }

    #[test]
    fn no_variable_panics(name in "[A-Z_]{0,12}", value in any::<String>(), key in prop::sample::select(KEYS.iter().map(|key| key.spec().path).collect::<Vec<_>>())) {
        let _ = read_with("", &[(&format!("GREENLANE__{name}"), &value)]);
        let _ = read_with("", &[(&variable_of(key), &value)]);
    }
}

#[test]
fn file_may_hold_any_feed() {
    for dialect in Dialect::all() {
        let config = read(&format!("[[export.file]]\npath = \"x\"\nformat = \"{}\"", dialect.name())).unwrap();
        assert_eq!(config.export_files[0].format, dialect);
    }
}

#[test]
fn encrypted_listeners_need_both_files_of_their_certificate() {
    let problems = |text: &str| messages(read(text));
    let found = "needs tls.certificate and tls.key, expected the certificate's files in [tls]";
    assert_eq!(
        problems("[listen]\ndot = [\"127.0.0.1:853\"]\ndoq = [\"127.0.0.1:853\"]\n"),
        [format!("config.toml:2:8: listen.dot: {found}"), format!("config.toml:3:8: listen.doq: {found}")]
    );
    assert_eq!(
        problems("[listen]\ndoh = [\"127.0.0.1:443\"]\n[tls]\nkey = \"k.pem\"\n"),
        ["config.toml:2:8: listen.doh: needs tls.certificate, expected the certificate's files in [tls]"]
    );
    assert_eq!(
        problems("[listen]\ndoh = [\"127.0.0.1:443\"]\n[tls]\ncertificate = \"c.pem\"\n"),
        ["config.toml:2:8: listen.doh: needs tls.key, expected the certificate's files in [tls]"]
    );
    let tls = "[tls]\ncertificate = \"c.pem\"\nkey = \"k.pem\"\n";
    let text = format!("[listen]\ndot = [\"0.0.0.0:853\"]\ndoh = [\"0.0.0.0:443\"]\ndoq = [\"0.0.0.0:853\"]\n{tls}");
    let config = read(&text).unwrap();
    assert_eq!(config.listen.dot, config.listen.doq, "TCP and UDP have ports of their own");
    assert_eq!(config.listen.tls.unwrap().key, PathBuf::from("k.pem"));
    assert_eq!(config.not_built, []);
    let found = problems(&format!("[listen]\ndot = [\"127.0.0.1:853\"]\ndoh = [\"0.0.0.0:853\"]\n{tls}"));
    assert!(found[0].contains("0.0.0.0:853 takes the port of 127.0.0.1:853"), "{found:?}");
}
