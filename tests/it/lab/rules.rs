//! What an operator types, as `docs/firewalls.md` has it.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::netns::{in_namespace, ip, load, nft};

const PAGE: &str = include_str!("../../../docs/firewalls.md");

/// How flows without the mark come to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Redirect,
    Tproxy,
}

impl Way {
    /// The operator's rules.
    pub(super) fn rules(self) -> String {
        block(match self {
            Self::Redirect => "redirect to :3129",
            Self::Tproxy => "tproxy to",
        })
    }

    /// Whether this kernel knows them.
    pub(super) fn is_there(self) -> bool {
        let mut check = Command::new("nft");
        let mut child = check.args(["-c", "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(self.rules().as_bytes()).unwrap();
        child.wait().unwrap().success()
    }

    /// Loads the rules behind an input chain that drops, and makes the routes that TPROXY needs.
    pub(super) fn take(self) {
        load(&self.rules());
        load(&format!(
            "table inet guard {{\nchain input {{\ntype filter hook input priority filter; policy drop;\n\
             ct state established,related accept\niifname lo accept\nmeta l4proto ipv6-icmp accept\n{}}}\n}}\n",
            block("ct status dnat accept")
        ));
        if self == Self::Tproxy {
            routes().iter().for_each(|line| drop(ip(line)));
        }
    }
}

/// The block that has these words; there is one.
pub(super) fn block(words: &str) -> String {
    let found: Vec<&str> = PAGE.split("```").skip(1).step_by(2).filter(|block| block.contains(words)).collect();
    assert_eq!(found.len(), 1, "docs/firewalls.md has one block with {words:?}");
    let (_language, text) = found[0].split_once('\n').unwrap();
    text.to_owned()
}

/// The words after `ip` of the commands that bring marked packets to the proxy.
fn routes() -> Vec<String> {
    let lines = block("ip rule add");
    let commands = lines.lines().flat_map(|line| line.trim_start_matches("# ").split(" && "));
    commands.map(|command| command.strip_prefix("ip ").unwrap().to_owned()).collect()
}

#[test]
fn page_shows_the_table_that_greenlane_makes() {
    in_namespace(async || {
        load(&block("table inet greenlane {"));
        let golden = include_str!("../../golden/nftables-own.txt");
        assert_eq!(bare(&nft("list table inet greenlane")), bare(golden));
    });
}

/// A listing without comments, elements and indentation.
fn bare(listing: &str) -> Vec<&str> {
    let lines = listing.lines().map(|line| line.split("comment \"").next().unwrap().trim());
    lines.filter(|line| !line.is_empty() && !line.starts_with("elements = ")).collect()
}
