//! What an operator does to a running greenlane from the command line, and with which token.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use hickory_proto::rr::RecordType;

use crate::firewall::numbering;
use crate::formats::has_tools;
use crate::harness::{Greenlane, Setup, greenlane};

/// Runs a command beside the tests; returns its code, what it printed and what it said.
async fn run(folder: &Path, words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = greenlane();
    command.current_dir(folder).args(words).stdin(Stdio::null());
    let output: Output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |octets: Vec<u8>| String::from_utf8(octets).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A greenlane that keeps twenty addresses and a prefix that its lists have no longer.
async fn shrunk(more: &str) -> (crate::upstream::Upstream, Greenlane) {
    let upstream = numbering().await;
    let greenlane = Setup::new(upstream.addr)
        .with("catalogue", "watch = false")
        .list("demo.list", "# Demo\nlisted.example\n198.51.100.0/24\n")
        .list("more.list", "# More\nother.example\n")
        .start()
        .await;
    for i in 1..=20u8 {
        greenlane.ask(&format!("n{i}.listed.example"), RecordType::A).await;
    }
    fs::write(greenlane.path("zones/demo.list"), format!("# Demo\nelsewhere.example\n{more}")).unwrap();
    greenlane.signal("HUP");
    greenlane.until_metric("greenlane_learn_shrink_held", |held| held > 0.0).await;
    (upstream, greenlane)
}

#[tokio::test]
async fn shrink_is_accepted_in_so_many_words() {
    let (_upstream, greenlane) = shrunk("192.0.2.0/24\n").await;
    let url = format!("http://{}", greenlane.web);
    let accept = ["prefixes", "--accept-shrink", "--url", &url];
    assert_eq!(greenlane.prefixes("").await.iter().filter(|prefix| prefix.starts_with("198.51.100.")).count(), 1);
    let (code, printed, said) = run(greenlane.path(".").as_path(), &accept).await;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!((code, lines.len()), (Some(0), 21), "{printed}{said}");
    assert!(lines.contains(&"198.51.100.0/24") && lines.contains(&"203.0.113.20/32"), "{printed}");
    assert!(said.starts_with("let go of 21 entries that are listed no longer; 21 prefixes left the set"), "{said}");
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.0/24"]);
    assert_eq!(greenlane.metric("greenlane_learn_shrink_held").await, 0.0);
    // Once more there is nothing to accept, and that is no fault.
    let again = run(greenlane.path(".").as_path(), &accept).await;
    assert_eq!(again, (Some(0), String::new(), "nothing is held back: the set is as the lists say\n".to_owned()));
}

#[tokio::test]
async fn shrink_is_not_accepted_by_accident() {
    let (_upstream, mut greenlane) = shrunk("").await;
    for (method, fields) in [
        ("GET", vec![]),
        ("PUT", vec![]),
        ("POST", vec![("Origin", "http://evil.example")]),
        ("POST", vec![("Sec-Fetch-Site", "cross-site")]),
        ("POST", vec![("Host", "evil.example")]),
        ("POST", vec![("Content-Length", "5")]),
    ] {
        let page = greenlane.request(method, "/shrink/accept", &fields).await;
        assert!((400..500).contains(&page.status), "{method} {fields:?}: {page:?}");
    }
    assert_eq!(greenlane.metric("greenlane_learn_shrink_held").await, 21.0);
    let url = format!("http://{}", greenlane.web);
    let folder = greenlane.path(".");
    for words in [
        &["prefixes", "--accept-shrink", "--family", "4"][..],
        &["prefixes", "--accept-shrink", "--format", "csv"],
        &["prefixes", "--accept-shrink", "--token-file", "nowhere", "--url", &url],
    ] {
        let (code, printed, said) = run(&folder, words).await;
        assert_eq!((code, printed.as_str(), said.is_empty()), (Some(2), "", false), "{words:?}");
    }
    assert_eq!(greenlane.metric("greenlane_learn_shrink_held").await, 21.0);
    // A second SIGHUP still says it, too.
    greenlane.signal("HUP");
    greenlane.until_metric("greenlane_learn_shrink_held", |held| held == 0.0).await;
    greenlane.signal("TERM");
    greenlane.ended().await;
    let (code, printed, said) = run(&folder, &["prefixes", "--accept-shrink", "--url", &url]).await;
    assert!(code == Some(1) && printed.is_empty() && said.contains("is greenlane running there?"), "{said}");
}

#[test]
fn token_files_of_the_command_line_open_what_is_not_open() {
    if !has_tools(&["curl", "ip"]) {
        return;
    }
    let setup = Setup::new("127.0.0.1:9".parse().unwrap())
        .only("listen", "dns = [\"127.0.0.1:5300\"]\nweb = \"192.0.2.1:8053\"")
        .with("web", "read-token-file = \"read\"\nadmin-token-file = \"admin\"");
    let folder = setup.write();
    for (name, text) in [
        ("read", "read-token-of-the-test\n"),
        ("admin", "admin-token-of-the-test\n"),
        ("wrong", "wrong-token-of-the-test\n"),
        ("short", "short\n"),
        ("bare.toml", "[listen]\nweb = \"192.0.2.1:8053\"\n"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    // What connects to this host's own address comes from it, and so from beyond loopback.
    let script = r#"
ip link set lo up; ip address add 192.0.2.1/32 dev lo
"$GREENLANE" serve -c config.toml 2>log & pid=$!
trap 'kill "$pid"' EXIT
curl -sS -o /dev/null --retry 100 --retry-delay 1 --retry-all-errors -f http://192.0.2.1:8053/readyz
ask() { code=0; "$GREENLANE" "$@" >out 2>err || code=$?; printf '%s|%s|%s\n' "$*" "$code" "$(tr '\n' ' ' <err)"; }
ask explain listed.example
ask -c bare.toml explain listed.example
ask -c bare.toml explain listed.example --token-file read
ask -c bare.toml explain listed.example --token-file wrong
ask -c bare.toml explain listed.example --token-file short
ask explain listed.example --url http://192.0.2.1:8053
ask -c bare.toml prefixes
ask prefixes --accept-shrink
ask prefixes --accept-shrink --token-file read
ask -c bare.toml prefixes --accept-shrink
ask -c bare.toml prefixes --accept-shrink --token-file admin
rm admin
ask prefixes --accept-shrink
"#;
    let ran = Command::new("unshare")
        .args(["--net", "timeout", "60", "sh", "-euc", script])
        .current_dir(folder.path())
        .env("GREENLANE", env!("CARGO_BIN_EXE_greenlane"))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    assert!(ran.status.success(), "{}\n{log}", String::from_utf8_lossy(&ran.stderr));
    let out = String::from_utf8_lossy(&ran.stdout).into_owned();
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.splitn(3, '|').collect()).collect();
    let expected: [(&str, &str); 12] = [
        ("0", ""),
        ("1", "401 Unauthorized: from here this takes a token: `Authorization: Bearer …` (`--token-file` names"),
        ("0", ""),
        ("1", "401 Unauthorized: this is no token of ours"),
        ("2", "--token-file: short: the first line is 5 characters long, expected 16 to 512"),
        ("0", ""),
        ("0", ""),
        ("0", "nothing is held back"),
        ("1", "403 Forbidden: this takes the admin token"),
        ("1", "401 Unauthorized"),
        ("0", "nothing is held back"),
        ("1", "web.admin-token-file: admin: cannot be read"),
    ];
    assert_eq!(lines.len(), expected.len(), "{out}");
    for (line, (code, words)) in lines.iter().zip(expected) {
        assert!(line[1] == code && line[2].contains(words), "{line:?}: expected {code} and `{words}`\n{log}");
    }
    assert!(!out.contains("token-of-the-test"), "{out}");
}

#[tokio::test]
async fn check_looks_at_the_files_that_the_configuration_names() {
    let setup = Setup::new("127.0.0.1:9".parse().unwrap())
        .only("web", "read-token-file = \"read\"\nadmin-token-file = \"admin\"")
        .with("[export.file]", "path = \"nowhere/set.txt\"");
    let folder = setup.write();
    let file = |name: &str, text: &str, mode: u32| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let config = fs::read_to_string(folder.path().join("config.toml")).unwrap();
    let line_of = |word: &str| 1 + config.lines().position(|line| line.starts_with(word)).unwrap();
    let (read, admin, path) = (line_of("read-token-file"), line_of("admin-token-file"), line_of("path = \"nowhere"));
    file("admin", "\n", 0o600);
    let (code, printed, said) = run(folder.path(), &["check"]).await;
    assert_eq!((code, printed.as_str()), (Some(2), ""), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    let starts = [
        format!("config.toml:{read}:19: web.read-token-file: read: cannot be read: No such file"),
        format!("config.toml:{admin}:20: web.admin-token-file: admin: the first line is empty, expected 16"),
        format!("config.toml:{path}:8: export.file.path: the folder `nowhere` cannot be used"),
    ];
    assert_eq!(lines.len(), 3, "{said}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(&start), "{line}\n{start}");
    }
    // The lists are told of in the same run.
    file("zones/bad.list", "# Bad\ncom\n", 0o644);
    let (code, _, said) = run(folder.path(), &["check"]).await;
    assert!(code == Some(2) && said.contains("web.read-token-file") && said.contains("zones/bad.list:2:1: "), "{said}");
    fs::remove_file(folder.path().join("zones/bad.list")).unwrap();

    fs::create_dir(folder.path().join("nowhere")).unwrap();
    file("read", "read-token-of-the-test\n", 0o644);
    file("admin", "admin-token-of-the-test\n", 0o600);
    let (code, printed, said) = run(folder.path(), &["check"]).await;
    let warning = format!("warning: config.toml:{read}:19: web.read-token-file: read: everybody on this host can read");
    assert!(code == Some(0) && !printed.is_empty() && said.starts_with(&warning), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    file("read", "admin-token-of-the-test\n", 0o600);
    let (code, _, said) = run(folder.path(), &["check"]).await;
    let warning = format!("warning: config.toml:{admin}:20: web.admin-token-file: holds the read token");
    assert!(code == Some(0) && said.starts_with(&warning), "{said}");
    assert!(fs::read_dir(folder.path().join("nowhere")).unwrap().next().is_none(), "nothing is left behind");
}
