//! What keeps the kernel from holding what it should, in words that name the remedy.

use nix::errno::Errno;
use thiserror::Error;

use super::message::TableFamily;

/// What is wrong. Nothing waits for the kernel meanwhile, so DNS goes on in every case.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Trouble {
    /// No CAP_NET_ADMIN.
    #[error(
        "not permitted to program nftables: CAP_NET_ADMIN is missing; with systemd set \
         `AmbientCapabilities=CAP_NET_ADMIN` in the unit, elsewhere run `setcap cap_net_admin=ep` on the greenlane binary"
    )]
    NotPermitted,
    /// No nf_tables in the kernel.
    #[error(
        "the kernel has no nf_tables ({}); load it with `modprobe nf_tables`, or remove [[export.nftables]]",
        words(*.0)
    )]
    Unsupported(Errno),
    /// A table of this name is not ours.
    #[error(
        "table {} {table} exists and was not made by greenlane, so it is left alone; set another \
         export.nftables.table, or remove it with `nft delete table {} {table}`",
        .family.as_str(), .family.as_str()
    )]
    ForeignTable {
        /// The family.
        family: TableFamily,
        /// The name.
        table: String,
    },
    /// Another process owns the table.
    #[error("table {} {table} belongs to another running process, likely another greenlane; stop that one first", .family.as_str())]
    OwnedByAnother {
        /// The family.
        family: TableFamily,
        /// The name.
        table: String,
    },
    /// Sets of the operator are missing or unfit; one sentence each.
    #[error("{}", .0.join("; "))]
    Sets(Vec<String>),
    /// A set takes no more elements.
    #[error(
        "set {set} is full{}; {}",
        .size.map(|size| format!(" at {size} elements")).unwrap_or_default(),
        if *.is_own { "raise learn.max-total" } else { "make it again with a greater `size`" }
    )]
    Full {
        /// The set.
        set: String,
        /// The most elements it may have.
        size: Option<u32>,
        /// Whether it is in our own table.
        is_own: bool,
    },
    /// The kernel takes no timeouts.
    #[error(
        "the kernel refuses elements with a timeout in set {set} ({}); make it again with `flags timeout`, or use Linux 5.10 or later",
        words(*.errno)
    )]
    Timeouts {
        /// The set.
        set: String,
        /// What the kernel says.
        errno: Errno,
    },
    /// The kernel takes no table like ours.
    #[error(
        "the kernel refuses what table {} {table} needs ({}): sets with timeouts and a chain before routing; use Linux \
         5.10 or later, or fill sets of your own with export.nftables.mode = \"guest\"",
        .family.as_str(), words(*.errno)
    )]
    TooOld {
        /// The family.
        family: TableFamily,
        /// The name.
        table: String,
        /// What the kernel says.
        errno: Errno,
    },
    /// The kernel refuses an element.
    #[error("set {set} does not take {element}: {}{}", words(*.errno), if *.more == 0 { String::new() } else { format!(", and {} more", .more) })]
    Refused {
        /// The set.
        set: String,
        /// The first element refused.
        element: String,
        /// What the kernel says.
        errno: Errno,
        /// How many others were refused.
        more: usize,
    },
    /// The kernel fails otherwise.
    #[error("nftables: {}", words(*.0))]
    Kernel(Errno),
    /// Acknowledgements were lost.
    #[error("nftables: the kernel's acknowledgements were lost; comparing and trying again")]
    Lost,
}

impl Trouble {
    /// Makes the trouble of a request that failed as such.
    pub(super) fn of(errno: Errno) -> Self {
        match errno {
            Errno::EPERM | Errno::EACCES => Self::NotPermitted,
            Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT => Self::Unsupported(errno),
            errno => Self::Kernel(errno),
        }
    }

    /// Makes the trouble of the first question of all: where nf_tables is not loaded, nfnetlink calls it invalid.
    pub(super) fn of_first(errno: Errno) -> Self {
        if errno == Errno::EINVAL { Self::Unsupported(errno) } else { Self::of(errno) }
    }

    /// Returns the error number under which it is counted.
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::NotPermitted | Self::ForeignTable { .. } | Self::OwnedByAnother { .. } => Errno::EPERM,
            Self::Sets(_) => Errno::ENOENT,
            Self::Full { .. } => Errno::ENFILE,
            // Whatever nfnetlink says.
            Self::Unsupported(Errno::EINVAL) => Errno::EOPNOTSUPP,
            Self::Unsupported(errno)
            | Self::Kernel(errno)
            | Self::Timeouts { errno, .. }
            | Self::TooOld { errno, .. }
            | Self::Refused { errno, .. } => *errno,
            Self::Lost => Errno::ENOBUFS,
        }
    }
}

/// Says what an error number means here, and how it is called.
fn words(errno: Errno) -> String {
    let meaning = match errno {
        Errno::EEXIST => "another range overlaps it",
        Errno::ENOENT => "no such table or set",
        Errno::ENFILE => "the set is full",
        Errno::EBUSY => "it is in use",
        Errno::EMSGSIZE => "the transaction is too large for the socket",
        Errno::EAGAIN => "too much changed meanwhile",
        Errno::EPERM => "another process owns it",
        errno => errno.desc(),
    };
    format!("{meaning}, {errno:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_remedy() {
        let table = || "greenlane".to_owned();
        let set = || "learned4".to_owned();
        let family = TableFamily::Inet;
        let cases = [
            (Trouble::of(Errno::EPERM), "AmbientCapabilities=CAP_NET_ADMIN"),
            (Trouble::of(Errno::EPROTONOSUPPORT), "modprobe nf_tables"),
            (Trouble::ForeignTable { family, table: table() }, "`nft delete table inet greenlane`"),
            (Trouble::OwnedByAnother { family, table: table() }, "stop that one first"),
            (
                Trouble::Full { set: set(), size: Some(9), is_own: true },
                "set learned4 is full at 9 elements; raise learn.max-total",
            ),
            (Trouble::Full { set: set(), size: None, is_own: false }, "make it again with a greater `size`"),
            (Trouble::Timeouts { set: set(), errno: Errno::EINVAL }, "`flags timeout`"),
            (
                Trouble::Refused { set: set(), element: "192.0.2.1".to_owned(), errno: Errno::EEXIST, more: 2 },
                "set learned4 does not take 192.0.2.1: another range overlaps it, EEXIST, and 2 more",
            ),
            (Trouble::TooOld { family, table: table(), errno: Errno::EOPNOTSUPP }, "use Linux 5.10 or later"),
            (Trouble::of(Errno::EMSGSIZE), "too large for the socket, EMSGSIZE"),
        ];
        for (trouble, remedy) in cases {
            let text = trouble.to_string();
            assert!(text.contains(remedy), "{text}");
        }
    }
}
