//! A firewall that takes a list instead of being filled.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use hickory_proto::rr::RecordType;
use tempfile::TempDir;

use super::rules::{Way, block};
use super::{Ground, Seen, in_gateway, listed4, listed6, numbering, until};
use crate::formats::has_tools;
use crate::netns::load;

#[test]
fn nftables_that_pull_a_script_let_through_what_it_has() {
    in_gateway(async || {
        if !has_tools(&["curl"]) {
            return;
        }
        let ground = Ground::lay(None, numbering).await;
        load(&format!("{}{}", block("table inet greenlane_feed {"), Way::Redirect.rules()));
        let greenlane = ground.setup().list("demo.list", "# Demo\nlisted.example\n198.18.200.0/24\n").start().await;
        let folder = TempDir::new().unwrap();
        let line = block("/prefixes.nft -o")
            .trim_start_matches("# ")
            .replace("192.0.2.53:8053", &greenlane.web.to_string())
            .replace("/run/", &format!("{}/", folder.path().display()));
        let pull = || {
            let ran = Command::new("sh").args(["-ec", &line]).output().unwrap();
            assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
        };
        let name = |n: u32| format!("n{n}.listed.example");
        for n in 0..5 {
            ground.client.ask(&name(n), RecordType::A).await;
            ground.client.ask(&name(n), RecordType::AAAA).await;
        }
        assert_eq!(ground.client.sees(listed4(0), &name(0)).await, Seen::Inspected, "nothing is pulled yet");
        pull();
        for n in 0..5 {
            assert_eq!(ground.client.sees(listed4(n), &name(n)).await, Seen::Bypassed);
            assert_eq!(ground.client.sees(listed6(n), &name(n)).await, Seen::Bypassed);
        }
        assert_eq!(ground.client.sees(Ipv4Addr::new(198, 18, 200, 7), &name(0)).await, Seen::Bypassed);
        assert_eq!(ground.client.visit("n1.other.example", RecordType::A).await, Seen::Inspected);
        // Again, with an open connection.
        let mut flow = ground.client.open(listed4(1), &name(1)).await;
        let first = flow.get().await;
        ground.client.ask(&name(6), RecordType::A).await;
        pull();
        assert_eq!(ground.client.sees(listed4(6), &name(6)).await, Seen::Bypassed);
        assert_eq!(flow.get().await, (first.0, 2));
    });
}

#[test]
fn squid_splices_what_the_written_lists_have() {
    in_gateway(async || {
        let folder = TempDir::new().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = |file: &str| folder.path().join(file).display().to_string();
        for file in ["squid-ip", "squid-domains"] {
            fs::write(path(file), "").unwrap();
        }
        let at = |text: String| text.replace("/var/lib/greenlane/", &path(""));
        let mut ground = Ground::lay(Some(&at(block("ssl_bump splice greenlane_ip"))), numbering).await;
        Way::Redirect.take();
        let files = at(block("format = \"squid-ip\""));
        let files = files.strip_prefix("[[export.file]]\n").unwrap();
        let _greenlane = ground.setup().with("[export.file]", files).start().await;
        let seen = ground.client.visit("n1.listed.example", RecordType::A).await;
        assert_eq!(seen, Seen::Inspected, "squid has not read the lists yet");
        let holds = |file: &str, words: &str| fs::read_to_string(path(file)).unwrap().contains(words);
        let address = format!("{}/32", listed4(1));
        until("the files", || holds("squid-ip", &address) && holds("squid-domains", ".listed.example")).await;
        ground.proxy.reconfigure().await;
        // By its address, whatever name comes in the handshake; by its name, whatever the address.
        assert_eq!(ground.client.sees(listed4(1), "n9.other.example").await, Seen::Bypassed);
        assert_eq!(ground.client.sees(listed4(77), "n77.listed.example").await, Seen::Bypassed);
        assert_eq!(ground.client.sees(listed4(77), "n9.other.example").await, Seen::Inspected);
    });
}
