//! Changes between two snapshots of one session.
//!
//! A [`Delta`] made for serial `from` turns that snapshot into the one of serial `to`. What was *announced* and what
//! was *withdrawn* are both sorted (IPv4 first, then address, then length, static before learned), hold no key twice,
//! and share none. A key is a prefix together with its origin; a static prefix and a learned host of the same
//! address are two items. The apps of an item are its value: an item whose apps alone changed is announced again
//! with the new apps, and `replaced` keeps it as it was. To apply a delta: take out what is withdrawn, put in what is
//! announced, over whatever stands there under the same key.
//!
//! Law: merging consecutive deltas equals the delta between the ends.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use super::sighting::Host;
use super::snapshot::{Origin, Snapshot, StaticEntry};
use crate::catalogue::AppId;
use crate::prefix::Prefix;

/// One member of the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A static prefix.
    Static {
        /// The prefix as listed.
        prefix: Prefix,
        /// The apps that list it, sorted, each once.
        apps: Arc<[AppId]>,
    },
    /// A learned host.
    Host {
        /// Its address.
        addr: IpAddr,
        /// The apps that want it, sorted, each once.
        apps: Arc<[AppId]>,
    },
}

impl Item {
    /// Returns the prefix; a host as `/32` or `/128`.
    pub fn prefix(&self) -> Prefix {
        match self {
            Self::Static { prefix, .. } => *prefix,
            Self::Host { addr, .. } => Prefix::host(*addr),
        }
    }

    /// Returns where the item comes from.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Static { .. } => Origin::Static,
            Self::Host { .. } => Origin::Learned,
        }
    }

    /// Returns the apps, sorted, each once.
    pub fn apps(&self) -> &Arc<[AppId]> {
        match self {
            Self::Static { apps, .. } | Self::Host { apps, .. } => apps,
        }
    }

    /// Returns what makes an item the same item, and orders items.
    pub fn key(&self) -> (Prefix, Origin) {
        (self.prefix(), self.origin())
    }
}

impl From<&StaticEntry> for Item {
    fn from(entry: &StaticEntry) -> Self {
        Self::Static { prefix: entry.prefix, apps: Arc::clone(&entry.apps) }
    }
}

impl From<&Host> for Item {
    fn from(host: &Host) -> Self {
        Self::Host { addr: host.addr(), apps: host.apps() }
    }
}

/// What turns the snapshot `from` into the snapshot `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The serial it starts from.
    pub from: u64,
    /// The serial it leads to.
    pub to: u64,
    /// Items that came, or whose apps changed, as they are at `to`.
    pub announced: Vec<Item>,
    /// Items that went, as they were at `from`.
    pub withdrawn: Vec<Item>,
    /// For each announced key that stood at `from` with other apps: the item as it was there.
    pub replaced: Vec<Item>,
}

impl Delta {
    /// Makes a delta without changes.
    pub fn empty(from: u64, to: u64) -> Self {
        Self { from, to, announced: Vec::new(), withdrawn: Vec::new(), replaced: Vec::new() }
    }

    /// Makes the delta between two snapshots of one session by walking both once.
    pub fn between(from: &Snapshot, to: &Snapshot) -> Self {
        let mut delta = Self::empty(from.serial(), to.serial());
        let (before, after) = (items(from), items(to));
        walk(&before, &after, |was, is| delta.note(was.cloned(), is.cloned()));
        delta
    }

    /// Merges this delta with the next one, which must start where this one ends.
    ///
    /// Linear in both. An item that came and went again, or that is back as it was, is in neither list.
    pub fn merge(&self, next: &Self) -> Self {
        debug_assert_eq!(self.to, next.from, "only consecutive deltas merge");
        let mut merged = Self::empty(self.from, next.to);
        let (first, second) = (self.changes(), next.changes());
        let mut second = second.into_iter().peekable();
        for (key, was, is) in first {
            while let Some((_, was, is)) = second.next_if(|change| change.0 < key) {
                merged.note(was.cloned(), is.cloned());
            }
            let is = match second.next_if(|change| change.0 == key) {
                Some((_, _, later)) => later,
                None => is,
            };
            merged.note(was.cloned(), is.cloned());
        }
        for (_, was, is) in second {
            merged.note(was.cloned(), is.cloned());
        }
        merged
    }

    /// Returns whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.announced.is_empty() && self.withdrawn.is_empty()
    }

    /// Returns how many items it holds.
    pub fn len(&self) -> usize {
        self.announced.len() + self.withdrawn.len() + self.replaced.len()
    }

    /// Notes one key's change; keys must come in order.
    pub(crate) fn note(&mut self, was: Option<Item>, is: Option<Item>) {
        match (was, is) {
            (Some(was), None) => self.withdrawn.push(was),
            (None, Some(is)) => self.announced.push(is),
            (Some(was), Some(is)) if was.apps() != is.apps() => {
                self.replaced.push(was);
                self.announced.push(is);
            }
            _ => {}
        }
    }

    /// Returns each changed key in order, with the item before and after.
    fn changes(&self) -> Vec<Change<'_>> {
        let mut changes = Vec::with_capacity(self.announced.len() + self.withdrawn.len());
        let mut replaced = self.replaced.iter().peekable();
        let mut withdrawn = self.withdrawn.iter().peekable();
        for is in &self.announced {
            let key = is.key();
            while let Some(was) = withdrawn.next_if(|was| was.key() < key) {
                changes.push((was.key(), Some(was), None));
            }
            changes.push((key, replaced.next_if(|was| was.key() == key), Some(is)));
        }
        changes.extend(withdrawn.map(|was| (was.key(), Some(was), None)));
        changes
    }
}

/// A key, the item before and the item after.
type Change<'a> = ((Prefix, Origin), Option<&'a Item>, Option<&'a Item>);

/// Returns the members of a snapshot in the order of their keys.
pub fn items(snapshot: &Snapshot) -> Vec<Item> {
    let mut items = Vec::with_capacity(snapshot.statics().len());
    let mut statics = snapshot.statics().iter().peekable();
    for host in snapshot.hosts() {
        let prefix = Prefix::host(host.addr());
        while let Some(entry) = statics.next_if(|entry| entry.prefix <= prefix) {
            items.push(entry.into());
        }
        items.push(host.into());
    }
    items.extend(statics.map(Item::from));
    items
}

/// Walks two sorted lists once and tells each key with what stands before and after.
pub(crate) fn walk<'a>(
    before: &'a [Item],
    after: &'a [Item],
    mut tell: impl FnMut(Option<&'a Item>, Option<&'a Item>),
) {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (Some(was), Some(is)) => was.key().cmp(&is.key()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        let was = if order.is_le() { before.next() } else { None };
        let is = if order.is_ge() { after.next() } else { None };
        tell(was, is);
    }
}
