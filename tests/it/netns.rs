//! Network namespaces without a name: they go with whoever holds them, and nothing is left behind.
//!
//! A test runs on a thread in a namespace of its own ([`in_namespace`]); further ones are [`Place`]s, which the thread
//! enters for as long as it makes a socket or starts a program there. Both stay there afterwards, wherever the thread
//! is. Needs root and `nft`; the rule for skipping is that of `formats`.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};

use crate::formats::has_tools;

/// Runs a test in a namespace of its own, with loopback up.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !has_tools(&["nft"]) {
        return;
    }
    let ran = std::thread::spawn(move || {
        leave_for_a_new_one();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    ran.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn leave_for_a_new_one() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link set lo up");
}

/// A namespace.
#[derive(Clone, Debug)]
pub(crate) struct Place(Arc<File>);

impl Place {
    /// Makes one, with loopback up.
    pub(crate) fn new() -> Self {
        let make = || {
            leave_for_a_new_one();
            Self::here()
        };
        std::thread::spawn(make).join().unwrap()
    }

    /// The one where this thread is.
    pub(crate) fn here() -> Self {
        Self(Arc::new(File::open("/proc/thread-self/ns/net").unwrap()))
    }

    /// Does something there: sockets that it makes and programs that it starts belong there.
    pub(crate) fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Back(Place);
        impl Drop for Back {
            fn drop(&mut self) {
                setns(&*self.0.0, CloneFlags::CLONE_NEWNET).unwrap();
            }
        }
        let _back = Back(Self::here());
        setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    }

    /// How `ip link … netns` names it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Runs `ip` here with the words of a line.
pub(crate) fn ip(line: &str) -> String {
    run("ip", line)
}

/// Runs `nft` here with the words of a line.
pub(crate) fn nft(line: &str) -> String {
    run("nft", line)
}

fn run(program: &str, line: &str) -> String {
    let output = Command::new(program).args(line.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Loads a file of rules here, as `nft -f` does.
pub(crate) fn load(rules: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{rules}", String::from_utf8_lossy(&output.stderr));
}

/// Whether a set of our own table has an address or prefix.
pub(crate) fn has(set: &str, address: &str) -> bool {
    lists(&nft(&format!("list set inet greenlane {set}")), address)
}

/// Whether `nft` has listed an address or prefix.
pub(crate) fn lists(listing: &str, address: &str) -> bool {
    listing.split([' ', ',', '\n', '\t']).any(|word| word == address)
}
