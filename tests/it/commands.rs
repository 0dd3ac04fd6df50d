//! The command line from outside: what each command prints, how it ends, and what it says when it cannot.
//!
//! A command that fails prints nothing to standard output, says in lines of its own what is wrong, where, and what
//! would be right, and ends with 1 (failed) or 2 (usage, configuration). Nothing is left half-started.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tokio::time::timeout;

use crate::harness::{Client, Greenlane, PATIENCE, Setup, greenlane};
use crate::upstream::{Act, Upstream};

/// How a command ended.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    error: String,
}

impl Ran {
    /// Holds it to exactly these lines on standard error, and to silence on the other side.
    #[track_caller]
    fn refused(&self, code: i32, lines: &[&str]) {
        assert_eq!(self.error.lines().collect::<Vec<_>>(), lines, "{self:?}");
        self.failed(code);
    }

    /// Holds it to this code and to what every failure owes.
    #[track_caller]
    fn failed(&self, code: i32) {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{self:?}");
        assert!(!self.error.trim().is_empty() && !self.error.contains("panicked"), "{self:?}");
    }

    /// Holds it to success, returns what it printed.
    #[track_caller]
    fn done(&self) -> &str {
        assert_eq!((self.code, self.error.as_str()), (Some(0), ""), "{self:?}");
        &self.out
    }
}

/// Runs a command to its end in `folder`; one that goes on is a failure.
async fn run_in(folder: &Path, arguments: &[&str]) -> Ran {
    let mut command = greenlane();
    command.current_dir(folder).args(arguments);
    run(command).await
}

async fn run(command: Command) -> Ran {
    let mut command = tokio::process::Command::from(command);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(PATIENCE, output).await.expect("the command ends by itself").unwrap();
    let text = |octets: Vec<u8>| String::from_utf8(octets).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
}

/// Nothing is asked of this upstream.
fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9))
}

/// The names of everything in a folder and its `zones`.
fn listing(folder: &Path) -> BTreeSet<String> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path().display().to_string()).collect()
    };
    names(folder).into_iter().chain(names(&folder.join("zones"))).collect()
}

/// Starts `serve`, which must refuse, and leave the folder as it was.
async fn serve(setup: &Setup) -> Ran {
    let folder = setup.write();
    let before = listing(folder.path());
    let ran = run_in(folder.path(), &["serve"]).await;
    assert_eq!(listing(folder.path()), before, "nothing is left behind");
    ran
}

#[tokio::test]
async fn every_mistake_of_a_configuration_is_told_in_one_run() {
    let setup = Setup::new(nobody())
        .only("listen", "dsn = [\"127.0.0.1:0\"]\nweb = 8053")
        .only("cache", "size = 12\nmax-ttl = \"1 fortnight\"")
        .only("catalog", "path = \"zones\"")
        .only("log", "level = \"loud\"");
    let folder = setup.write();
    let lines = [
        "config.toml:2:8: cache.size: expected a size such as \"256MiB\" or \"16MB\", found 12",
        "config.toml:3:11: cache.max-ttl: expected a duration such as \"100ms\", \"8s\", \"10m\" or \"1d\", \
         found \"1 fortnight\"",
        "config.toml:4:2: catalog: unknown table, did you mean catalogue?",
        "config.toml:13:1: listen.dsn: unknown key, did you mean listen.dns?",
        "config.toml:14:7: listen.web: expected an address and port such as \"127.0.0.1:5300\" or \"[::1]:5300\", \
         found 8053",
        "config.toml:16:9: log.level: expected \"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\", \
         found \"loud\"",
    ];
    for command in [&["serve"][..], &[], &["check"], &["explain", "a.example"], &["prefixes"]] {
        run_in(folder.path(), command).await.refused(2, &lines);
    }
}

#[tokio::test]
async fn a_wrong_upstream_says_what_would_be_right() {
    let upstreams = "upstreams = [\n\"dns.quad9.net\",\n\"h3://9.9.9.9/dns-query\",\n\"tls://9.9.9.9:99999\"\n]";
    serve(&Setup::new(nobody()).only("forward", upstreams)).await.refused(
        2,
        &[
            "config.toml:5:1: forward.upstreams: \"dns.quad9.net\" names a host, write an address such as \
             udp://192.0.2.53 or udp://[2001:db8::53]:53",
            "config.toml:6:1: forward.upstreams: \"h3://9.9.9.9/dns-query\" is not built yet, expected udp://, \
             tcp://, tls://, https:// or quic:// with an address, such as tls://9.9.9.9#dns.quad9.net",
            "config.toml:7:1: forward.upstreams: port of \"tls://9.9.9.9:99999\": expected 1 to 65535, found \"99999\"",
        ],
    );
}

#[tokio::test]
async fn a_wrong_variable_is_named() {
    let folder = Setup::new(nobody()).write();
    let mut command = greenlane();
    command.current_dir(folder.path()).arg("check").env("GREENLANE__CACHE__SIZE", "lots");
    run(command).await.refused(
        2,
        &["GREENLANE__CACHE__SIZE: cache.size: expected a size such as \"256MiB\" or \"16MB\", found \"lots\""],
    );
}

#[tokio::test]
async fn a_configuration_that_is_not_there_or_no_text_is_told() {
    let folder = Setup::new(nobody()).write();
    for place in ["before", "after"] {
        let arguments: &[&str] =
            if place == "before" { &["-c", "missing.toml", "serve"] } else { &["serve", "-c", "missing.toml"] };
        run_in(folder.path(), arguments).await.refused(
            2,
            &["missing.toml: cannot be read: No such file or directory (os error 2), expected a file in TOML"],
        );
    }
    std::fs::write(folder.path().join("config.toml"), b"[listen]\nweb = \"\xff\"\n").unwrap();
    run_in(folder.path(), &["serve"]).await.refused(2, &["config.toml:2:8: not UTF-8, expected text in UTF-8"]);
}

#[tokio::test]
async fn a_port_in_use_says_which_transport_and_what_to_do() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let (udp_addr, tcp_addr) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let remedy = "stop the other server, or choose another address with";
    for (listen, line) in [
        (
            format!("dns = [\"{udp_addr}\"]\nweb = \"off\""),
            format!("listen.dns: {udp_addr} is in use (UDP): {remedy} `listen.dns`"),
        ),
        (
            format!("dns = [\"127.0.0.1:0\", \"{tcp_addr}\"]\nweb = \"off\""),
            format!("listen.dns: {tcp_addr} is in use (TCP): {remedy} `listen.dns`"),
        ),
        (
            format!("dns = [\"127.0.0.1:0\"]\nweb = \"{tcp_addr}\""),
            format!("listen.web: {tcp_addr}: the port is in use (TCP): {remedy} `listen.web`"),
        ),
        (
            "dns = [\"192.0.2.1:0\"]\nweb = \"off\"".to_owned(),
            "listen.dns: 192.0.2.1:0 is no address of this host: take one that `ip address` shows".to_owned(),
        ),
    ] {
        serve(&Setup::new(nobody()).only("listen", &listen)).await.refused(1, &[&line]);
    }
    for (flags, line) in [
        (
            ["--dns".to_owned(), udp_addr.to_string(), "--web".to_owned(), "127.0.0.1:0".to_owned()],
            format!("--dns: {udp_addr} is in use (UDP): {remedy} `--dns`"),
        ),
        (
            ["--dns".to_owned(), "127.0.0.1:0".to_owned(), "--web".to_owned(), tcp_addr.to_string()],
            format!("--web: {tcp_addr}: the port is in use (TCP): {remedy} `--web`"),
        ),
    ] {
        let mut command = greenlane();
        command.arg("demo").args(flags);
        run(command).await.refused(1, &[&line]);
    }
}

#[tokio::test]
async fn a_zones_folder_that_cannot_be_read_stops_the_start() {
    let remedy = "create it, or point `catalogue.path` at the folder of `.list` files";
    for (path, why) in
        [("missing", "No such file or directory (os error 2)"), ("config.toml", "Not a directory (os error 20)")]
    {
        let setup = Setup::new(nobody()).only("catalogue", &format!("path = \"{path}\""));
        let line = format!("{path}: folder of lists cannot be read: {why}; {remedy}");
        serve(&setup).await.refused(2, &[&line]);
        let folder = setup.write();
        run_in(folder.path(), &["check"]).await.refused(1, &[&line, &format!("1 error in {path}")]);
    }
    // A list that cannot be opened is no empty list.
    let folder = Setup::new(nobody()).write();
    std::os::unix::fs::symlink("nowhere", folder.path().join("zones/gone.list")).unwrap();
    let ran = run_in(folder.path(), &["serve"]).await;
    ran.failed(2);
    assert!(ran.error.starts_with("zones/gone.list: cannot be read: No such file or directory"), "{ran:?}");
}

/// A list with a mistake on nearly every line.
const SPOILT: &str =
    "# Spoilt\n#: review-by = soon\ncom\n198.51.100.1/24\n10.0.0.0/7\na..b\nx.*.example\nfine.example\n";

#[tokio::test]
async fn bad_lists_are_told_whole() {
    let setup = Setup::new(nobody())
        .list("spoilt.list", SPOILT)
        .list("worse.list", "# Worse\n999.1.1.1/8\n")
        .list("not text.list", "# X\n");
    let folder = setup.write();
    std::fs::write(folder.path().join("zones/latin.list"), b"# L\nb\xfccher.example\n").unwrap();
    let check = run_in(folder.path(), &["check"]).await;
    check.failed(1);
    let lines: Vec<&str> = check.error.lines().collect();
    for place in [
        "zones/latin.list:2:2: ",
        "zones/not text.list: ",
        "zones/spoilt.list:2:",
        "zones/spoilt.list:3:1: ",
        "zones/spoilt.list:4:1: ",
        "zones/spoilt.list:5:1: ",
        "zones/spoilt.list:6:1: ",
        "zones/spoilt.list:7:1: ",
        "zones/worse.list:2:1: ",
    ] {
        assert_eq!(lines.iter().filter(|line| line.starts_with(place)).count(), 1, "{place} in {lines:#?}");
    }
    assert_eq!(lines.last(), Some(&"9 errors in zones"));
    assert_eq!(lines.len(), 10);
    let mut sorted = lines[..9].to_vec();
    sorted.sort_unstable();
    assert_eq!(sorted, lines[..9], "in the order of files and lines");
    // The daemon refuses to start with the same lines.
    run_in(folder.path(), &["serve"]).await.refused(2, &lines[..9]);
    run_in(folder.path(), &["explain", "--offline", "a.example"]).await.refused(2, &lines[..9]);
}

#[tokio::test]
async fn an_export_path_that_cannot_be_written_stops_the_start() {
    for (path, code, line) in [
        (
            "missing/list.txt",
            1,
            "export.file: the folder `missing` cannot be used: No such file or directory (os error 2); create it first",
        ),
        (
            "config.toml/list.txt",
            1,
            "export.file: the folder `config.toml` cannot be used: not a directory; create it first",
        ),
        ("zones", 2, "export.file: `zones` is no path of a file; name a file in a folder that exists"),
        (
            "/proc/list.txt",
            1,
            "export.file: the folder `/proc` cannot be written to: No such file or directory (os error 2); \
             let greenlane write there, or choose another folder",
        ),
    ] {
        let file = format!("path = \"good.txt\"\n[[export.file]]\npath = \"{path}\"");
        serve(&Setup::new(nobody()).only("[export.file]", &file)).await.refused(code, &[line]);
    }
}

#[tokio::test]
async fn unknown_commands_and_flags_are_usage_errors() {
    let folder = Setup::new(nobody()).write();
    for (arguments, said) in [
        (&["prefixs"][..], "unrecognized subcommand 'prefixs'"),
        (&["--frobnicate"], "unexpected argument '--frobnicate'"),
        (&["serve", "--once"], "unexpected argument '--once'"),
        (&["check", "more"], "unexpected argument 'more'"),
        (&["explain"], "<NAME|ADDRESS>"),
        (&["explain", "--offline", "--url", "http://127.0.0.1:1", "a.example"], "cannot be used with"),
        (&["prefixes", "--format", "xml"], "txt, json, csv, nft, ipset, rsc"),
        (&["prefixes", "--family", "5"], "invalid value '5' for '--family <4|6>'"),
        (&["prefixes", "--origin", "moon"], "invalid value 'moon' for '--origin <static|learned>'"),
        (&["prefixes", "--url", "nonsense"], "expected http://ADDRESS:PORT, such as http://127.0.0.1:8053"),
        (&["explain", "--url", "https://127.0.0.1", "a.example"], "expected http://ADDRESS:PORT"),
        (&["prefixes", "--url", "http://127.0.0.1:1/list?x"], "expected http://ADDRESS:PORT"),
        (&["demo", "--dns", "5300"], "invalid value '5300' for '--dns <ADDRESS:PORT>'"),
        (&["demo", "-c", "config.toml"], "--config: the demo reads no configuration file"),
    ] {
        let ran = run_in(folder.path(), arguments).await;
        ran.failed(2);
        assert!(ran.error.contains(said), "{arguments:?}: {ran:?}");
    }
    for flag in ["--help", "--version"] {
        assert!(run_in(folder.path(), &[flag]).await.done().contains("greenlane"));
    }
}

#[tokio::test]
async fn check_counts_the_lists_of_the_repository() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ran = run_in(root, &["check"]).await;
    let out = ran.done();
    assert!(out.contains("16 apps, 320 names, 35 prefixes in all"), "{out}");
    let apps = out.lines().skip(1).take_while(|line| !line.is_empty()).count();
    assert_eq!(apps, 16);
    assert!(out.contains("warning: 33 pairs of a trigger inside another"), "{out}");
    let pairs = out.lines().filter(|line| line.contains("` lies inside `"));
    assert_eq!(pairs.clone().count(), 33);
    assert!(pairs.clone().all(|line| line.starts_with("warning: zones/") && line.contains(".list:")), "{out}");
    // Each name is counted for the app that lists it.
    for (app, names, prefixes) in [("zoom", 1, 0), ("webex", 17, 26), ("ringcentral", 0, 9), ("apple", 80, 0)] {
        let row = out.lines().find(|line| line.starts_with(app)).unwrap();
        let columns: Vec<&str> = row.split_whitespace().collect();
        assert_eq!((columns[1], columns[3]), (&*names.to_string(), &*prefixes.to_string()), "{row}");
    }
}

#[tokio::test]
async fn check_reads_another_folder_when_told_to() {
    let folder = Setup::new(nobody()).list("demo.list", SPOILT).write();
    std::fs::create_dir(folder.path().join("other")).unwrap();
    std::fs::write(folder.path().join("other/one.list"), "# One\none.example\n").unwrap();
    let ran = run_in(folder.path(), &["check", "--zones", "other"]).await;
    assert!(ran.done().contains("1 app, 1 name, 0 prefixes in all"), "{ran:?}");
}

#[tokio::test]
async fn explain_reads_the_lists_when_offline() {
    let list = "# Demo\nlisted.example\n!no.listed.example\n203.0.113.0/24\n";
    let folder = Setup::new(nobody()).list("demo.list", list).write();
    let note = "(the lists alone were asked, not what was learned)\n";
    for (what, text) in [
        (
            "A.Listed.Example.",
            "a.listed.example is bypassed\n  demo: yes, by `listed.example` at zones/demo.list:2:1\n",
        ),
        (
            "x.no.listed.example",
            "x.no.listed.example is not bypassed\n  demo: no, excepted by `!no.listed.example` at \
             zones/demo.list:3:1\n",
        ),
        ("other.example", "other.example is not bypassed\n  no list has a trigger for it\n"),
        ("10.1.2.3", "10.1.2.3 is not bypassed\n  special-purpose space: Private-Use (RFC 1918)\n"),
        ("192.0.2.9", "192.0.2.9 is not bypassed\n  no listed name was answered with it and no list holds it\n"),
    ] {
        let ran = run_in(folder.path(), &["explain", "--offline", what]).await;
        assert_eq!(ran.done(), format!("{text}{note}"), "{what}");
    }
    let ran = run_in(folder.path(), &["explain", "--offline", "203.0.113.7"]).await;
    assert_eq!(ran.done(), "203.0.113.7 is bypassed\n  demo: inside 203.0.113.0/24, listed at zones/demo.list:4:1\n");
    let ran = run_in(folder.path(), &["explain", "--offline", "--json", "a.listed.example"]).await;
    let value: serde_json::Value = serde_json::from_str(ran.done()).unwrap();
    assert_eq!((&value["name"], &value["tagged"]), (&"a.listed.example".into(), &true.into()));
    assert_eq!(value["apps"][0]["location"], "zones/demo.list:2:1");
}

#[tokio::test]
async fn explain_refuses_what_is_neither_name_nor_address() {
    let folder = Setup::new(nobody()).write();
    let expected = "expected a domain name or an IP address";
    let long = "x".repeat(64);
    for (what, line) in [
        ("a..b", format!("`a..b`: name: empty label, {expected}")),
        ("", format!("``: name: empty label, {expected}")),
        ("10.0.0.0/8", "`10.0.0.0/8`: expected one address, found a prefix; leave the length out".to_owned()),
        ("a\u{1b}[31m..b", format!("`a\\u{{1b}}[31m..b`: name: empty label, {expected}")),
    ] {
        for mode in [&["--offline"][..], &[]] {
            let arguments = [&["explain"], mode, &["--", what]].concat();
            run_in(folder.path(), &arguments).await.refused(2, &[&line]);
        }
    }
    run_in(folder.path(), &["explain", "--offline", &long]).await.failed(2);
}

async fn demo_daemon() -> (Upstream, Greenlane) {
    let upstream = Upstream::start(|asked| match asked.qtype() {
        crate::upstream::A => asked.a([192, 0, 2, 1]),
        _ => asked.fail(3),
    })
    .await;
    let list = "# Demo\nlisted.example\n203.0.113.0/24\n2001:db8:1::/48\n";
    let greenlane = Setup::new(upstream.addr)
        .list("demo.list", list)
        .list("other.list", "# Other\nother.example\n198.51.100.0/24\n")
        .start()
        .await;
    (upstream, greenlane)
}

#[tokio::test]
async fn explain_asks_the_daemon() {
    let (_upstream, greenlane) = demo_daemon().await;
    greenlane.ask("www.listed.example", RecordType::A).await;
    let url = format!("http://{}", greenlane.web);
    let folder = greenlane.path("");
    let explain = async |what: &str| run_in(&folder, &["explain", "--url", &url, "--", what]).await;
    let ran = explain("www.listed.example").await;
    let (head, learned) = ran.done().rsplit_once("\n  192.0.2.1 in the set since ").expect("the address is told");
    assert!(head.starts_with("www.listed.example is bypassed\n  demo: yes, by `listed.example` at "), "{head}");
    assert!(head.ends_with("zones/demo.list:2:1"), "{head}");
    let (since, until) = learned.trim_end().split_once(" until ").unwrap();
    let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_second();
    assert_eq!(at(until) - at(since), 900 + 1, "10 minutes min-hold and 5 grace, rounded up");
    let ran = explain("192.0.2.1").await;
    assert!(ran.done().contains("  demo: answered for www.listed.example, by `listed.example` at "), "{ran:?}");
    assert!(explain("203.0.113.99").await.done().contains("  demo: inside 203.0.113.0/24, listed at "));
    assert!(explain("10.0.0.1").await.done().ends_with("  special-purpose space: Private-Use (RFC 1918)\n"));
    assert_eq!(explain("x.example").await.done(), "x.example is not bypassed\n  no list has a trigger for it\n");
    // Text of strangers is printed in the escapes of RFC 1035 and by JSON's rules.
    let hostile = "a\n\u{1b}]0;x\u{7}\"<;>$(id).listed.example";
    let ran = explain(hostile).await;
    let first = ran.done().lines().next().unwrap();
    assert_eq!(first, "a\\010\\027]0\\;x\\007\\\"<\\;>\\$\\(id\\).listed.example is bypassed");
    let ran = run_in(&folder, &["explain", "--json", "--url", &url, "--", hostile]).await;
    assert!(!ran.done().contains('\u{1b}') && !ran.out.contains('\u{7}'), "{ran:?}");
    let value: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(value["name"], "a\\010\\027]0\\;x\\007\\\"<\\;>\\$\\(id\\).listed.example");
}

#[tokio::test]
async fn prefixes_prints_what_the_feeds_give() {
    let (_upstream, greenlane) = demo_daemon().await;
    greenlane.ask("www.listed.example", RecordType::A).await;
    // The URL comes from the configuration.
    let config = format!("[listen]\nweb = \"{}\"\n", greenlane.web);
    std::fs::write(greenlane.path("there.toml"), config).unwrap();
    let folder = greenlane.path("");
    for format in ["txt", "json", "csv", "nft", "ipset", "rsc"] {
        let ran = run_in(&folder, &["prefixes", "-c", "there.toml", "--format", format]).await;
        assert_eq!(ran.done(), greenlane.text(&format!("/prefixes.{format}")).await, "{format}");
    }
    let url = format!("http://{}/", greenlane.web);
    for (flags, expected) in [
        (&[][..], &["192.0.2.1/32", "198.51.100.0/24", "203.0.113.0/24", "2001:db8:1::/48"][..]),
        (&["--family", "6"], &["2001:db8:1::/48"]),
        (&["--family", "4", "--origin", "static"], &["198.51.100.0/24", "203.0.113.0/24"]),
        (&["--origin", "learned"], &["192.0.2.1/32"]),
        (&["--app", "other"], &["198.51.100.0/24"]),
        (&["--app", "other,demo", "--family", "4", "--origin", "learned"], &["192.0.2.1/32"]),
    ] {
        let arguments = [&["prefixes", "--url", &url], flags].concat();
        let ran = run_in(&folder, &arguments).await;
        assert_eq!(ran.done().lines().collect::<Vec<_>>(), expected, "{flags:?}");
    }
    let base = url.trim_end_matches('/');
    run_in(&folder, &["prefixes", "--url", &url, "--app", "demo,n\u{1b}o"])
        .await
        .refused(1, &[&format!("{base}/prefixes.txt?app=demo,n%1Bo: 400 Bad Request: unknown app `n\\\\u{{1b}}o`")]);
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_told_with_what_to_do() {
    // Bound and not listening: nobody can take the port meanwhile.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap().as_socket().unwrap());
    let folder = Setup::new(nobody()).write();
    let trouble =
        "io: Connection refused (os error 111): is greenlane running there? `listen.web` says where it listens";
    run_in(folder.path(), &["prefixes", "--url", &url]).await.refused(1, &[&format!("{url}/prefixes.txt: {trouble}")]);
    run_in(folder.path(), &["explain", "--url", &url, "a.example"]).await.refused(
        1,
        &[&format!("{url}/explain?name=a.example: {trouble}"), "(`--offline` reads the lists and the store)"],
    );
    let off = Setup::new(nobody()).only("listen", "dns = [\"127.0.0.1:0\"]\nweb = \"off\"").write();
    run_in(off.path(), &["prefixes"])
        .await
        .refused(2, &["listen.web: is off, so there is nothing to ask; name a listener with --url"]);
}

/// Answers every connection with these octets.
fn other_server(octets: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut room = [0; 4096];
            let _ = std::io::Read::read(&mut stream, &mut room);
            let _ = stream.write_all(octets);
        }
    });
    url
}

#[tokio::test]
async fn another_server_at_the_url_does_no_harm() {
    let folder = Setup::new(nobody()).write();
    let page = b"HTTP/1.1 404 Not Found\r\nContent-Length: 31\r\n\r\n<h1>\x1b[2JNot here</h1>\n<p>line 2</p>";
    for octets in
        [&page[..], b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n192.0.2.0/24\n", b"SSH-2.0-OpenSSH_9.2\r\n", b""]
    {
        let url = other_server(octets);
        for command in [&["prefixes", "--url", &url][..], &["explain", "--url", &url, "a.example"]] {
            let ran = run_in(folder.path(), command).await;
            // Half a list is no list.
            ran.failed(1);
            assert!(ran.error.starts_with(&url) && !ran.error.contains('\u{1b}'), "{ran:?}");
            assert!(ran.error.lines().count() <= 2, "{ran:?}");
        }
    }
    let url = other_server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let ran = run_in(folder.path(), &["explain", "--url", &url, "a.example"]).await;
    ran.failed(1);
    assert!(ran.error.contains("no JSON"), "{ran:?}");
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_failure() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for arguments in [&["check"][..], &["explain", "--offline", "zoom.us"]] {
        let mut command = greenlane();
        command.current_dir(root).args(arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        drop(command);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
        assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
        // A full disk is one.
        let mut command = greenlane();
        command.current_dir(root).args(arguments);
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command.stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), said.as_str()),
            (Some(1), "standard output: No space left on device (os error 28)\n")
        );
    }
}

/// A child whose one stream is read line by line; killed when dropped.
struct Talking {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Drop for Talking {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Talking {
    fn new(mut child: Child, stream: impl std::io::Read + Send + 'static) -> Self {
        let (sender, lines) = std::sync::mpsc::sync_channel(10_000);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        child.stdin.take();
        Self { child, lines }
    }

    /// Reads on to a line that contains `text`; returns all lines up to it.
    fn until(&self, text: &str) -> Vec<String> {
        let mut read = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {text:?} after {read:#?}"));
            let is_it = line.contains(text);
            read.push(line);
            if is_it {
                return read;
            }
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    fn ended(&mut self) -> Option<i32> {
        for _ in 0..PATIENCE.as_millis() / 20 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it goes on");
    }
}

/// What the show of the demo must hold.
fn assert_show(show: &str) {
    let has = |parts: &[&str]| {
        let found = show.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "no line with {parts:?} in:\n{show}");
    };
    has(&["16 apps, 320 names, 35 prefixes"]);
    has(&["udp", " A ", "zoom.us", "198.18.", "zoom: zoom.us"]);
    has(&["udp", "AAAA", "us04web.zoom.us", "2001:2::", "zoom: zoom.us"]);
    has(&["HTTPS", "198.18.", "microsoft-defender: x.cp.wd.microsoft.com"]);
    has(&["tcp", "CNAMEs"]);
    for (name, answer) in [("www.example.com", "198.19."), ("nothing.example", "NXDOMAIN")] {
        has(&[name, answer]);
        let is_plain = |line: &str| line.contains(name) && line.contains(answer) && line.ends_with(" -");
        assert!(show.lines().any(is_plain), "{name} has no tag:\n{show}");
    }
    has(&["A and AAAA of all 320 names", "addresses in the set"]);
    has(&["/prefixes.txt: ", " prefixes, aggregated without loss"]);
    has(&["20.50.235.0/24"]);
    has(&["dig @127.0.0.1 -p ", "zoom.us"]);
    for path in ["prefixes.txt?family=4", "prefixes.nft", "explain?name=", "explain?address=", "metrics"] {
        has(&["curl 'http://127.0.0.1:", path]);
    }
    // Glanceable: no line of the show is wider than a common terminal's double.
    assert!(show.lines().all(|line| line.chars().count() <= 140), "{show}");
}

fn demo() -> Command {
    let mut command = greenlane();
    command.args(["demo", "--dns", "127.0.0.1:0", "--web", "127.0.0.1:0"]);
    command
}

#[tokio::test]
async fn the_demo_shows_everything_and_ends() {
    let mut command = demo();
    command.arg("--once");
    let ran = run(command).await;
    assert_show(ran.done());
    assert!(!ran.out.contains("Ctrl-C"), "{ran:?}");
}

#[tokio::test]
async fn the_demo_goes_on_serving_until_it_is_told_to_stop() {
    let mut child = demo().stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let mut demo = Talking::new(child, stdout);
    let show = demo.until("Serving until Ctrl-C").join("\n");
    assert_show(&show);
    // What it says to try works.
    let between = |from: &str, to: &str| show.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned();
    let port = between("dig @127.0.0.1 -p ", " ");
    let web = between("curl 'http://", "/");
    let there = Client { dns: format!("127.0.0.1:{port}").parse().unwrap(), web: web.parse().unwrap() };
    let reply = there.ask("zoom.us", RecordType::A).await;
    assert_eq!(crate::harness::tag(&reply).as_deref(), Some("app=zoom;match=zoom.us"));
    assert_eq!(crate::harness::tag(&there.ask("www.example.com", RecordType::A).await), None);
    for line in show.lines().filter_map(|line| line.trim().strip_prefix("curl 'http://")) {
        let path = line.trim_end_matches('\'').split_once('/').unwrap().1;
        assert!(!there.text(&format!("/{path}")).await.is_empty(), "{path}");
    }
    demo.signal("INT");
    assert_eq!(demo.ended(), Some(0));
}

#[tokio::test]
async fn without_a_command_it_serves_and_ends_well_when_told_to() {
    for (arguments, signal) in [(&[][..], "TERM"), (&["serve"], "INT")] {
        let folder = Setup::new(nobody()).write();
        let mut command = greenlane();
        command.current_dir(folder.path()).args(arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let mut serving = Talking::new(child, stderr);
        let said = serving.until(": DNS on ");
        assert_eq!(said.len(), 1, "one line when all is well: {said:?}");
        assert!(said[0].ends_with(", 1 app with 1 trigger"), "{said:?}");
        serving.signal(signal);
        assert_eq!(serving.ended(), Some(0));
        assert_eq!(serving.lines.try_recv().ok(), None, "it ends without a word");
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_ends_nothing() {
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let folder = Setup::new(upstream.addr).write();
    let mut command = greenlane();
    command.current_dir(folder.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let address = |from: &str, to: &str| line.split_once(from).unwrap().1.split_once(to).unwrap().0.parse().unwrap();
    let there = Client { dns: address("DNS on ", " "), web: address("http://", "/") };
    drop(stderr);
    let serving = Talking::new(child, std::io::empty());
    // Each of these logs a line.
    for count in 1..=3 {
        std::fs::write(folder.path().join("config.toml"), "nonsense").unwrap();
        serving.signal("HUP");
        let failed = "greenlane_catalogue_reloads_total{result=\"failed\"}";
        there.until_metric(failed, |value| value >= f64::from(count)).await;
    }
    assert!(!there.ask("a.listed.example", RecordType::A).await.answers.is_empty());
}

#[tokio::test]
async fn a_daemon_without_an_upstream_starts_and_says_servfail() {
    let upstream = Upstream::start(|_| Act::Drop).await;
    let greenlane = Setup::new(upstream.addr).with("forward", "timeout = \"500ms\"").start().await;
    let reply = greenlane.ask("a.example", RecordType::A).await;
    assert_eq!(u16::from(reply.metadata.response_code), 2);
    assert_eq!(greenlane.get("/readyz").await.status, 200);
}
