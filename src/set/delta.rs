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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::testing::{START, addr, draft, entry, record, sighting};
    use super::*;

    /// A change to a small set: which address, which name, in or out; or which static prefixes.
    #[derive(Clone, Debug)]
    enum Change {
        Insert(u16, usize),
        Remove(u16, usize),
        Statics(Vec<(u8, usize)>),
    }

    const APPS: [&[&str]; 4] = [&["a"], &["b"], &["a", "b"], &["c"]];

    fn changes() -> impl Strategy<Value = Vec<Vec<Change>>> {
        let one = prop_oneof![
            4 => (0..12_u16, 0..4_usize).prop_map(|(n, name)| Change::Insert(n, name)),
            4 => (0..12_u16, 0..4_usize).prop_map(|(n, name)| Change::Remove(n, name)),
            1 => prop::collection::vec((0..6_u8, 0..4_usize), 0..4).prop_map(Change::Statics),
        ];
        prop::collection::vec(prop::collection::vec(one, 0..6), 1..12)
    }

    /// Makes each batch of changes and returns every snapshot, and the delta to it if its serial is new.
    fn snapshots(batches: &[Vec<Change>]) -> Vec<(Snapshot, Option<Arc<Delta>>)> {
        let mut draft = draft();
        let reader = draft.reader();
        let mut made = vec![(reader.snapshot(), None)];
        for batch in batches {
            for change in batch {
                let (n, name) = match change {
                    Change::Insert(n, name) | Change::Remove(n, name) => (*n, *name),
                    Change::Statics(list) => {
                        let entries = list.iter().map(|(n, apps)| entry(&format!("192.0.0.{n}/32"), APPS[*apps]));
                        draft.set_statics(entries.collect());
                        continue;
                    }
                };
                let record = record(&format!("n{name}.test"), APPS[name]);
                let addr = addr(n, n % 2 == 0);
                let held = draft.host(addr).and_then(|host| host.sighting(record.name())).cloned();
                match (change, held) {
                    (Change::Remove(..), Some(held)) => {
                        held.leave_if(|_| true);
                        draft.remove(&held);
                    }
                    (Change::Insert(..), None) => drop(draft.insert(sighting(addr, &record, START))),
                    _ => {}
                }
            }
            let before = reader.snapshot();
            draft.commit(START);
            let since = reader.since(before.session(), before.serial());
            let delta = if let super::super::Since::Delta(delta) = since { Some(delta) } else { None };
            made.push((reader.snapshot(), delta));
        }
        made
    }

    type Model = HashMap<(Prefix, Origin), Arc<[AppId]>>;

    fn model(snapshot: &Snapshot) -> Model {
        items(snapshot).iter().map(|item| (item.key(), Arc::clone(item.apps()))).collect()
    }

    fn is_well_formed(delta: &Delta) -> bool {
        let keys = |items: &[Item]| -> Vec<_> { items.iter().map(Item::key).collect() };
        let (announced, withdrawn, replaced) = (keys(&delta.announced), keys(&delta.withdrawn), keys(&delta.replaced));
        [&announced, &withdrawn, &replaced].into_iter().all(|keys| keys.is_sorted_by(|a, b| a < b))
            && announced.iter().all(|key| !withdrawn.contains(key))
            && replaced.iter().all(|key| announced.contains(key))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn delta_turns_one_snapshot_into_the_next(batches in changes()) {
            let made = snapshots(&batches);
            for pair in made.windows(2) {
                let (from, (to, delta)) = (&pair[0].0, &pair[1]);
                let mut applied = model(from);
                if let Some(delta) = delta {
                    prop_assert!(is_well_formed(delta) && !delta.is_empty());
                    prop_assert_eq!((delta.from, delta.to), (from.serial(), to.serial()));
                    prop_assert_eq!(to.serial(), from.serial() + 1);
                    prop_assert_eq!(&**delta, &Delta::between(from, to));
                    for item in &delta.withdrawn {
                        prop_assert!(applied.remove(&item.key()).is_some(), "only what is there is withdrawn");
                    }
                    for item in &delta.announced {
                        let before = applied.insert(item.key(), Arc::clone(item.apps()));
                        prop_assert_ne!(before.as_ref(), Some(item.apps()), "only what is new is announced");
                    }
                } else {
                    prop_assert_eq!(from.serial(), to.serial());
                }
                prop_assert_eq!(applied, model(to));
            }
        }

        #[test]
        fn merged_steps_equal_the_delta_between_the_ends(batches in changes()) {
            let made = snapshots(&batches);
            for from in 0..made.len() {
                let steps: Vec<_> = made[from + 1..].iter().filter_map(|(_, delta)| delta.clone()).collect();
                let Some(merged) = steps.iter().map(|one| Delta::clone(one)).reduce(|a, b| a.merge(&b)) else { continue };
                let between = Delta::between(&made[from].0, &made[made.len() - 1].0);
                prop_assert!(is_well_formed(&merged));
                prop_assert_eq!(merged, between);
            }
        }
    }

    #[test]
    fn table_of_merges() {
        let host = |n: u16, app: &str| Item::Host { addr: addr(n, true), apps: [AppId::new(app)].into() };
        let delta = |from, announced: &[Item], withdrawn: &[Item], replaced: &[Item]| Delta {
            from,
            to: from + 1,
            announced: announced.to_vec(),
            withdrawn: withdrawn.to_vec(),
            replaced: replaced.to_vec(),
        };
        let (x, y) = (host(1, "x"), host(1, "y"));
        let a = std::slice::from_ref;
        let table = [
            // first step                  second step                   merged
            (delta(0, a(&x), &[], &[]), delta(1, &[], a(&x), &[]), delta(0, &[], &[], &[])),
            (delta(0, &[], a(&x), &[]), delta(1, a(&x), &[], &[]), delta(0, &[], &[], &[])),
            (delta(0, &[], a(&x), &[]), delta(1, a(&y), &[], &[]), delta(0, a(&y), &[], a(&x))),
            (delta(0, a(&x), &[], &[]), delta(1, a(&y), &[], a(&x)), delta(0, a(&y), &[], &[])),
            (delta(0, a(&y), &[], a(&x)), delta(1, a(&x), &[], a(&y)), delta(0, &[], &[], &[])),
            (delta(0, a(&y), &[], a(&x)), delta(1, &[], a(&y), &[]), delta(0, &[], a(&x), &[])),
        ];
        for (first, second, mut merged) in table {
            merged.to = 2;
            assert_eq!(first.merge(&second), merged, "{first:?} then {second:?}");
        }
    }
}
