//! A change of the set as one JSON object, written piece by piece.
//!
//! ```json
//! {"session":"00000000000000ab","serial":7,"reset":false,
//!  "announced":[{"prefix":"198.51.100.0/24","origin":"static","apps":["box"]},
//!               {"address":"192.0.2.1","origin":"learned","apps":["zoom"],"end":1700000900}],
//!  "withdrawn":[{"address":"192.0.2.9","origin":"learned","apps":["zoom"]}]}
//! ```
//! With `reset` the announced items are the whole set and take the place of all that the follower has. Items are
//! sorted (IPv4 first, then address, then length); `prefix` stands for static prefixes as listed, `address` for
//! learned hosts, nothing is aggregated. An item announced again replaces the one of the same prefix or address.
//! `end` counts Unix seconds, rounded up; it is the end of now, which may be later than it was at that serial.
//!
//! [`Change`] is an iterator over pieces of some 64 KiB on one line: however large the set, a follower costs a piece
//! of memory, and a follower that does not read stops the writing.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use crate::catalogue::AppId;
use crate::clock::Timestamp;
use crate::prefix::Prefix;
use crate::set::{Delta, Item, Origin, Session, Snapshot};

/// A piece is sent once it is this long.
const PIECE_LEN: usize = 64 * 1024;

/// The items that a change announces and withdraws.
#[derive(Clone, Debug)]
pub(super) enum Items {
    /// The whole set: static prefixes of the snapshot and hosts at these addresses.
    All(Arc<[IpAddr]>),
    /// The steps since what the follower holds.
    Since(Arc<Delta>),
    /// None: the follower is up to date.
    None,
}

/// One change on its way out.
#[derive(Clone, Debug)]
pub(super) struct Change {
    session: Session,
    serial: u64,
    items: Items,
    /// Where ends are looked up; not older than the change.
    snapshot: Snapshot,
    now: Timestamp,
    at: At,
}

/// What is written next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Head,
    /// The next static prefix and the next host.
    All(usize, usize),
    Announced(usize),
    Withdrawn(usize),
    Done,
}

impl Change {
    /// Makes the change to `serial`; ends come from `snapshot`, which must not be older.
    pub(super) fn new(serial: u64, items: Items, snapshot: Snapshot, now: Timestamp) -> Self {
        Self { session: snapshot.session(), serial, items, snapshot, now, at: At::Head }
    }

    /// Returns the serial that a follower holds after it.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// Returns whether it announces the whole set.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.items, Items::All(_))
    }

    /// Returns whether all is written.
    pub(super) fn is_done(&self) -> bool {
        self.at == At::Done
    }

    fn head(&self, out: &mut Vec<u8>) -> At {
        let (reset, at) = match &self.items {
            Items::All(_) => (true, At::All(0, 0)),
            Items::Since(_) => (false, At::Announced(0)),
            Items::None => (false, At::Withdrawn(0)),
        };
        let head =
            format!("{{\"session\":\"{}\",\"serial\":{},\"reset\":{reset},\"announced\":[", self.session, self.serial);
        out.extend_from_slice(head.as_bytes());
        if at == At::Withdrawn(0) {
            out.extend_from_slice(WITHDRAWN);
        }
        at
    }

    /// Writes the next item of the whole set.
    fn whole(&self, addresses: &[IpAddr], (next_static, next_host): (usize, usize), out: &mut Vec<u8>) -> At {
        let addr = addresses.get(next_host).copied();
        let entry = self.snapshot.statics().get(next_static);
        let entry = entry.filter(|entry| addr.is_none_or(|addr| entry.prefix <= Prefix::host(addr)));
        if entry.is_some() || addr.is_some() {
            separate(out, next_static + next_host == 0);
        }
        if let Some(entry) = entry {
            push_item(out, Member::Prefix(entry.prefix), &entry.apps, None);
            At::All(next_static + 1, next_host)
        } else if let Some(addr) = addr {
            let apps = self.snapshot.host(addr).map(|host| host.apps()).unwrap_or_default();
            push_item(out, Member::Host(addr), &apps, Some(self.end_of(addr)));
            At::All(next_static, next_host + 1)
        } else {
            out.extend_from_slice(WITHDRAWN);
            At::Withdrawn(0)
        }
    }

    fn announced(&self, delta: &Delta, next: usize, out: &mut Vec<u8>) -> At {
        let Some(item) = delta.announced.get(next) else {
            out.extend_from_slice(WITHDRAWN);
            return At::Withdrawn(0);
        };
        separate(out, next == 0);
        match item {
            Item::Static { prefix, apps } => push_item(out, Member::Prefix(*prefix), apps, None),
            Item::Host { addr, apps } => push_item(out, Member::Host(*addr), apps, Some(self.end_of(*addr))),
        }
        At::Announced(next + 1)
    }

    fn withdrawn(&self, next: usize, out: &mut Vec<u8>) -> At {
        let item = match &self.items {
            Items::Since(delta) => delta.withdrawn.get(next),
            Items::All(_) | Items::None => None,
        };
        let Some(item) = item else {
            out.extend_from_slice(b"]}");
            return At::Done;
        };
        separate(out, next == 0);
        match item {
            Item::Static { prefix, apps } => push_item(out, Member::Prefix(*prefix), apps, None),
            Item::Host { addr, apps } => push_item(out, Member::Host(*addr), apps, None),
        }
        At::Withdrawn(next + 1)
    }

    /// Returns when a host ends; one that has left since ends now, and a later change withdraws it.
    fn end_of(&self, addr: IpAddr) -> u64 {
        let end = self.snapshot.host(addr).map(|host| host.end()).unwrap_or_default();
        end.max(self.now).as_secs_ceil()
    }
}

/// The pieces in order; none is empty.
impl Iterator for Change {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.at == At::Done {
            return None;
        }
        let mut out = Vec::with_capacity(1024);
        while out.len() < PIECE_LEN && self.at != At::Done {
            self.at = match (self.at, &self.items) {
                (At::Head, _) => self.head(&mut out),
                (At::All(statics, hosts), Items::All(addresses)) => self.whole(addresses, (statics, hosts), &mut out),
                (At::Announced(next), Items::Since(delta)) => self.announced(delta, next, &mut out),
                (At::Withdrawn(next), _) => self.withdrawn(next, &mut out),
                _ => At::Done,
            };
        }
        Some(out.into())
    }
}

/// Later ends as one JSON object, written piece by piece: `{"session":…,"renewed":[{"address":…,"end":…}]}`.
#[derive(Clone, Debug)]
pub(super) struct Renewed {
    session: Session,
    ends: Ends,
    at: RenewedAt,
    is_first: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RenewedAt {
    Head,
    Next(usize),
    Done,
}

/// Whose ends are told.
#[derive(Clone, Debug)]
pub(super) enum Ends {
    /// These.
    Of(Arc<[(IpAddr, Timestamp)]>),
    /// Those of all hosts of a snapshot, at these addresses.
    All(Snapshot, Arc<[IpAddr]>),
}

impl Renewed {
    /// Makes the object.
    pub(super) fn new(session: Session, ends: Ends) -> Self {
        Self { session, ends, at: RenewedAt::Head, is_first: true }
    }

    /// Returns whether all is written.
    pub(super) fn is_done(&self) -> bool {
        self.at == RenewedAt::Done
    }

    /// Returns the next address and end; the end is the epoch if the host has left since.
    fn get(&self, next: usize) -> Option<(IpAddr, Timestamp)> {
        match &self.ends {
            Ends::Of(ends) => ends.get(next).copied(),
            Ends::All(snapshot, addresses) => {
                addresses.get(next).map(|addr| (*addr, snapshot.host(*addr).map(|host| host.end()).unwrap_or_default()))
            }
        }
    }

    fn push(&mut self, next: usize, out: &mut Vec<u8>) -> RenewedAt {
        let Some((addr, end)) = self.get(next) else {
            out.extend_from_slice(b"]}");
            return RenewedAt::Done;
        };
        // What has left is withdrawn by a change; it has no later end.
        if end > Timestamp::default() {
            separate(out, self.is_first);
            self.is_first = false;
            out.extend_from_slice(format!("{{\"address\":\"{addr}\",\"end\":{}}}", end.as_secs_ceil()).as_bytes());
        }
        RenewedAt::Next(next + 1)
    }
}

/// The pieces in order; none is empty.
impl Iterator for Renewed {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::with_capacity(256);
        while out.len() < PIECE_LEN {
            self.at = match self.at {
                RenewedAt::Head => {
                    out.extend_from_slice(format!("{{\"session\":\"{}\",\"renewed\":[", self.session).as_bytes());
                    RenewedAt::Next(0)
                }
                RenewedAt::Next(next) => self.push(next, &mut out),
                RenewedAt::Done => break,
            };
        }
        (!out.is_empty()).then(|| out.into())
    }
}

const WITHDRAWN: &[u8] = b"],\"withdrawn\":[";

enum Member {
    Prefix(Prefix),
    Host(IpAddr),
}

fn separate(out: &mut Vec<u8>, is_first: bool) {
    if !is_first {
        out.push(b',');
    }
}

/// Writes one item; an address or prefix holds nothing that JSON escapes, an app id might.
fn push_item(out: &mut Vec<u8>, member: Member, apps: &[AppId], end: Option<u64>) {
    let (member, origin) = match member {
        Member::Prefix(prefix) => (format!("{{\"prefix\":\"{prefix}\""), Origin::Static),
        Member::Host(addr) => (format!("{{\"address\":\"{addr}\""), Origin::Learned),
    };
    out.extend_from_slice(member.as_bytes());
    out.extend_from_slice(format!(",\"origin\":\"{}\",\"apps\":[", origin.as_str()).as_bytes());
    for (i, app) in apps.iter().enumerate() {
        separate(out, i == 0);
        out.extend_from_slice(json!(app.as_str()).to_string().as_bytes());
    }
    out.push(b']');
    if let Some(end) = end {
        out.extend_from_slice(format!(",\"end\":{end}").as_bytes());
    }
    out.push(b'}');
}
