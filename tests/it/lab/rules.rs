//! What an operator types, as `docs/firewalls.md` has it.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::netns::{ip, load};

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
            Self::Redirect => "redirect to",
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

    /// Loads the rules, and makes the routes that TPROXY needs.
    pub(super) fn take(self) {
        load(&self.rules());
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
