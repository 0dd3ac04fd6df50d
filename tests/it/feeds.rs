//! Lists for appliances, and who may read the rest, against the running daemon.
//!
//! Two tests need more than loopback: Squid's own parser, and a peer that is not on loopback, for which greenlane and
//! `curl` run in a network namespace of their own. Without the tools they say so and pass, unless
//! `GREENLANE_TEST_REQUIRE` is `all`.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tokio::time::sleep;

use crate::formats::has_tools;
use crate::harness::{Greenlane, PATIENCE, Setup, greenlane};
use crate::upstream::Upstream;

const PRODUCTS: [&str; 9] =
    ["paloalto", "fortigate", "opnsense", "pfsense", "checkpoint", "cisco", "mikrotik", "squid-ip", "squid-domains"];

const LIST: &str = "# Demo\nlisted.example\n=login.listed.example\n=one.example\n203.0.113.0/24\n2001:db8:1::/48\n";

/// A greenlane that has learned 192.0.2.7.
async fn learned(setup: impl FnOnce(Setup) -> Setup) -> (Upstream, Greenlane) {
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 7])).await;
    let greenlane = setup(Setup::new(upstream.addr).list("demo.list", LIST)).start().await;
    greenlane.ask("listed.example", RecordType::A).await;
    (upstream, greenlane)
}

/// Waits until a file holds this.
async fn until_file(greenlane: &Greenlane, file: &str, expected: &str) {
    let mut text = String::new();
    for _ in 0..PATIENCE.as_millis() / 20 {
        text = fs::read_to_string(greenlane.path(file)).unwrap_or_default();
        if text == expected {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("{file} holds {text:?}, not {expected:?}:\n{}", greenlane.log());
}

#[tokio::test]
async fn every_feed_holds_the_set_in_its_products_words() {
    let (_upstream, greenlane) = learned(|setup| setup).await;
    let bare = "192.0.2.7\n203.0.113.0/24\n2001:db8:1::/48\n";
    let long = "192.0.2.7/32\n203.0.113.0/24\n2001:db8:1::/48\n";
    for product in PRODUCTS {
        let path = format!("/feeds/{product}.txt");
        let page = greenlane.get(&path).await;
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/plain; charset=utf-8")), "{product}");
        match product {
            "paloalto" | "fortigate" | "checkpoint" | "cisco" => assert_eq!(page.body, bare, "{product}"),
            "opnsense" | "pfsense" | "squid-ip" => assert_eq!(page.body, long, "{product}"),
            "mikrotik" => assert_eq!(page.body, greenlane.text("/prefixes.rsc").await),
            _ => assert_eq!(page.body, ".listed.example\none.example\n"),
        }
        assert!(!page.octets.contains(&b'\r'), "{product}");
        let etag = page.header("etag").unwrap();
        assert_eq!(greenlane.request("GET", &path, &[("If-None-Match", etag)]).await.status, 304, "{product}");
        let head = greenlane.request("HEAD", &path, &[("Authorization", "Bearer stray")]).await;
        assert_eq!((head.status, head.header("etag")), (200, Some(etag)), "{product}");
    }
    let cut = greenlane.get("/feeds/paloalto.txt?max=2").await;
    assert_eq!(cut.header("x-greenlane-omitted"), Some("1"));
    assert_eq!(cut.body, "203.0.113.0/24\n2001:db8:1::/48\n", "static prefixes come first");
    assert_eq!(greenlane.get("/feeds/paloalto.txt").await.header("x-greenlane-omitted"), Some("0"));
}

#[tokio::test]
async fn feeds_as_files_follow_the_set_and_the_lists() {
    let (_upstream, greenlane) = learned(|setup| {
        setup
            .with(
                "[export.file]",
                "path = \"edl\"\nformat = \"paloalto\"\n[[export.file]]\npath = \"names\"\nformat = \"squid-domains\"",
            )
            .with("catalogue", "watch = false")
    })
    .await;
    until_file(&greenlane, "edl", "192.0.2.7\n203.0.113.0/24\n2001:db8:1::/48\n").await;
    until_file(&greenlane, "names", ".listed.example\none.example\n").await;
    // No prefix changes with this, and so no serial: the file of names has to see it all the same.
    fs::write(greenlane.path("zones/demo.list"), LIST.replace("=one.example", "=two.example")).unwrap();
    greenlane.signal("HUP");
    until_file(&greenlane, "names", ".listed.example\ntwo.example\n").await;
}

#[tokio::test]
async fn squid_reads_both_lists_without_a_word() {
    if !has_tools(&["squid"]) {
        return;
    }
    let (_upstream, greenlane) = learned(|setup| {
        // A parent behind its children, in other lists, too; hosts beside their network.
        setup.list("more.list", "# More\na.listed.example\n*.b.one.example\n=c.b.one.example\n192.0.2.0/30\n")
    })
    .await;
    for product in ["squid-ip", "squid-domains"] {
        fs::write(greenlane.path(product), greenlane.text(&format!("/feeds/{product}.txt")).await).unwrap();
    }
    let path = |file: &str| greenlane.path(file).display().to_string();
    let config = format!(
        "visible_hostname test\nhttp_port 127.0.0.1:3128\nacl ips dst \"{}\"\nacl names ssl::server_name \"{}\"\n\
         http_access deny all\n",
        path("squid-ip"),
        path("squid-domains")
    );
    fs::write(greenlane.path("squid.conf"), config).unwrap();
    let ran = Command::new("squid").args(["-k", "parse", "-f", &path("squid.conf")]).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(said.contains("Processing: acl ips dst") && said.contains("Processing: acl names"), "{said}");
    let complaints = ["subdomain", "subnetwork", "Bungled", "replaced by", "empty ACL", "Bad host", "unknown"];
    assert!(!complaints.iter().any(|word| said.contains(word)), "{said}");
}

const READ: &str = "read-token-of-the-test";
const ADMIN: &str = "admin-token-of-the-test";

#[test]
fn tokens_count_from_beyond_loopback_alone() {
    if !has_tools(&["curl", "ip"]) {
        return;
    }
    let setup = Setup::new("127.0.0.1:9".parse().unwrap())
        .list("demo.list", LIST)
        .only("listen", "dns = [\"127.0.0.1:5300\"]\nweb = \"0.0.0.0:8053\"")
        .with("web", "read-token-file = \"read\"\nadmin-token-file = \"admin\"");
    let folder = setup.write();
    fs::write(folder.path().join("read"), format!("{READ}\n")).unwrap();
    fs::write(folder.path().join("admin"), format!("{ADMIN}\n")).unwrap();
    // 192.0.2.1 is this host's own, so that what connects to it comes from it.
    let script = r#"
ip link set lo up; ip address add 192.0.2.1/32 dev lo
"$GREENLANE" serve -c config.toml 2>log & pid=$!
trap 'kill "$pid"' EXIT
curl -sS -o /dev/null --retry 100 --retry-delay 1 --retry-all-errors -f http://127.0.0.1:8053/readyz
near=http://127.0.0.1:8053 far=http://192.0.2.1:8053
ask() { printf '%s %s\n' "$*" "$(curl -sS -o /dev/null -w '%{http_code} %header{www-authenticate}' "$@")"; }
ask $near/stats
ask $far/stats
ask $far/feeds/paloalto.txt
ask $far/feeds/squid-domains.txt -H 'Authorization: Bearer wrong'
ask $far/stats -H 'Authorization: Bearer wrong'
ask $far/stats -H "Authorization: Bearer $READ"
ask $far/explain?name=listed.example -H "Authorization: Bearer $ADMIN" -H 'Host: greenlane.corp.example'
ask $far/stats -X POST -H "Authorization: Bearer $READ"
printf '%s\n' another-token-of-the-test >read; printf short >admin; kill -HUP "$pid"
until grep -q 'web.admin-token-file' log; do sleep 0.05; done
ask $far/stats -H "Authorization: Bearer $READ"
printf '%s\n' another-admin-of-the-test >admin; kill -HUP "$pid"
until [ "$(curl -sS -o /dev/null -w '%{http_code}' $far/stats -H "Authorization: Bearer $READ")" = 401 ]; do sleep 0.05; done
ask $far/stats -H 'Authorization: Bearer another-token-of-the-test'
"#;
    let ran = Command::new("unshare")
        .args(["--net", "timeout", "60", "sh", "-euc", script])
        .current_dir(folder.path())
        .envs([("GREENLANE", env!("CARGO_BIN_EXE_greenlane")), ("READ", READ), ("ADMIN", ADMIN)])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    assert!(ran.status.success(), "{}\n{log}", String::from_utf8_lossy(&ran.stderr));
    let out = String::from_utf8_lossy(&ran.stdout);
    let found: Vec<(&str, &str)> = out
        .lines()
        .map(|line| {
            let at = line.rfind("8053/").unwrap();
            let code =
                line.split(' ').find(|word| word.len() == 3 && word.bytes().all(|b| b.is_ascii_digit())).unwrap();
            (line[at + 4..].split(' ').next().unwrap(), code)
        })
        .collect();
    let expected = [
        ("/stats", "200"),
        ("/stats", "401"),
        ("/feeds/paloalto.txt", "200"),
        ("/feeds/squid-domains.txt", "200"),
        ("/stats", "401"),
        ("/stats", "200"),
        ("/explain?name=listed.example", "200"),
        ("/stats", "403"),
        // A reload that fails leaves both tokens as they were.
        ("/stats", "200"),
        ("/stats", "200"),
    ];
    assert_eq!(found, expected, "{out}\n{log}");
    assert!(out.contains("401 Bearer realm=\"greenlane\"\n"), "{out}");
    assert!(out.contains("401 Bearer realm=\"greenlane\", error=\"invalid_token\""), "{out}");
    assert!(out.contains("403 Bearer realm=\"greenlane\", error=\"insufficient_scope\""), "{out}");
    assert!(!log.contains(READ) && !log.contains("another-token"), "a token is in the log:\n{log}");
}

#[test]
fn start_with_an_unusable_token_names_key_file_and_remedy() {
    let setup = Setup::new("127.0.0.1:9".parse().unwrap()).with("web", "read-token-file = \"token\"");
    let folder = setup.write();
    let refused = || {
        let config = folder.path().join("config.toml");
        let ran = greenlane().arg("serve").arg("-c").arg(config).output().unwrap();
        assert_eq!(ran.status.code(), Some(2), "{ran:?}");
        String::from_utf8(ran.stderr).unwrap()
    };
    let path = folder.path().join("token").display().to_string();
    assert!(refused().contains(&format!("web.read-token-file: {path}: cannot be read: ")), "{}", refused());
    for (text, found) in [("", "empty"), ("secret", "6 characters long")] {
        fs::write(&path, text).unwrap();
        let said = refused();
        let expected = format!("web.read-token-file: {path}: the first line is {found}, expected 16 to 512 letters");
        assert!(said.contains(&expected) && !said.contains("secret"), "{said}");
    }
}
