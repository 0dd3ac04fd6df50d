//! What this process may do to the system, and how it gives that up.
//!
//! Programming nftables takes CAP_NET_ADMIN, which could reconfigure the whole network, so it should be far from
//! whatever reads a stranger's packets. A process keeps one capability or none ([`keep_only`]) as its first act, while
//! it has one thread: the system counts capabilities a thread. What is given up cannot come back: the bounding set
//! shrinks, too, where the process may do that (CAP_SETPCAP), and no program that it runs gains any privilege
//! (`no_new_privs`).

use std::io;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

/// What a process goes on holding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// CAP_NET_ADMIN: programming nftables.
    NetAdmin,
    /// Nothing.
    Nothing,
}

impl Kept {
    fn set(self) -> CapabilitySet {
        match self {
            Self::NetAdmin => CapabilitySet::NET_ADMIN,
            Self::Nothing => CapabilitySet::empty(),
        }
    }
}

/// Returns whether this thread may program the network.
pub fn has_net_admin() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// Gives up every capability but what is kept, for ever. Call it before any thread starts.
///
/// # Errors
/// If the system does not let go of them; do not go on then.
pub fn keep_only(kept: Kept) -> io::Result<()> {
    let kept = kept.set();
    // Each of the 64 that a kernel could have; most do not exist, and without CAP_SETPCAP none may be removed.
    for bit in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        if !kept.contains(bit) {
            let _ = remove_capability_from_bounding_set(bit);
        }
    }
    // A kernel without ambient capabilities has none to clear.
    let _ = clear_ambient_capability_set();
    let held = capabilities(None)?.permitted & kept;
    set_capabilities(None, CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() })?;
    set_no_new_privs(true)?;
    Ok(())
}

/// Lets this process open as many files as it may at most. The usual bound of 1,024 is there for programs that count
/// descriptors in sets of bits; connections may be more.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // What is refused leaves the bound as it was, and that is lived with.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Has this process killed when its parent ends.
///
/// Killed rather than asked: another start may follow at once, and needs the sockets, the store and the table.
///
/// # Errors
/// What the system says.
pub fn end_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_gives_up_its_capabilities_has_none() {
        // Capabilities are counted a thread, so that those of the test's process stay.
        let given_up = std::thread::spawn(|| {
            keep_only(Kept::Nothing).unwrap();
            (capabilities(None).unwrap(), has_net_admin())
        });
        let (sets, has_net_admin) = given_up.join().unwrap();
        let none = CapabilitySet::empty();
        assert_eq!(sets, CapabilitySets { effective: none, permitted: none, inheritable: none });
        assert!(!has_net_admin);
    }

    #[test]
    fn one_can_be_kept() {
        let had = has_net_admin();
        let kept = std::thread::spawn(|| {
            keep_only(Kept::NetAdmin).unwrap();
            capabilities(None).unwrap().permitted
        });
        let expected = if had { CapabilitySet::NET_ADMIN } else { CapabilitySet::empty() };
        assert_eq!(kept.join().unwrap(), expected);
    }
}
