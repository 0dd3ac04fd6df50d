//! What a consumer asks for, and the list cut from a snapshot for it.
//!
//! A [`Query`] names a part of the set; [`List::cut`] takes it from a snapshot, aggregated without loss and sorted.
//! Static prefixes stand for an app if it lists them, learned hosts if one of their sightings carries it.
//!
//! `max` is for consumers with a bounded table. If the whole list is longer, static prefixes come first (in their
//! order), then learned hosts, longest in use first, until no more fit. What is kept is aggregated like any list, so
//! the prefixes never cover an address that is not in the set; [`List::omitted`] tells how many lines are missing.

use std::num::NonZeroU32;

use crate::prefix::{Family, Prefix};
use crate::set::{Selection, Session, Snapshot, aggregate};

/// Which part of the set is asked for; the default is all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Family, apps and origin.
    pub selection: Selection,
    /// At most so many prefixes.
    pub max: Option<NonZeroU32>,
}

impl Query {
    /// Returns the families that the list speaks of, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = Family> + use<> {
        let only = self.selection.family;
        [Family::V4, Family::V6].into_iter().filter(move |family| only.is_none_or(|only| only == *family))
    }
}

/// The prefixes of one query on one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The snapshot's session.
    pub session: Session,
    /// The snapshot's serial.
    pub serial: u64,
    /// Aggregated, sorted, none overlaps another; may be empty.
    pub prefixes: Vec<Prefix>,
    /// How many prefixes longer the list would be without `max`.
    pub omitted: usize,
}

impl List {
    /// Cuts the list out of a snapshot; costs what aggregating that part costs, with `max` a few times that.
    pub fn cut(snapshot: &Snapshot, query: &Query) -> Self {
        let whole = snapshot.prefixes(&query.selection);
        let max = query.max.map_or(usize::MAX, |max| usize::try_from(max.get()).unwrap_or(usize::MAX));
        let len = whole.len();
        let prefixes = if len <= max { whole } else { shortened(snapshot, query, max) };
        let omitted = len.saturating_sub(prefixes.len());
        Self { session: snapshot.session(), serial: snapshot.serial(), prefixes, omitted }
    }

    /// Returns the prefixes of one family.
    pub fn of(&self, family: Family) -> &[Prefix] {
        let v6_at = self.prefixes.partition_point(|prefix| prefix.family() == Family::V4);
        match family {
            Family::V4 => &self.prefixes[..v6_at],
            Family::V6 => &self.prefixes[v6_at..],
        }
    }
}

/// How often items are added to what aggregation left free; each round adds fewer, and a list that could still take
/// one or two after the last is only that much shorter than it might be.
const ROUNDS_MAX: usize = 16;

/// Takes the foremost items that aggregate into at most `max` prefixes.
fn shortened(snapshot: &Snapshot, query: &Query, max: usize) -> Vec<Prefix> {
    let mut hosts: Vec<_> = snapshot
        .hosts()
        .filter(|host| query.selection.has_host(host))
        .map(|host| (host.sightings().iter().map(|sighting| sighting.first_seen()).min(), host.addr()))
        .collect();
    hosts.sort_unstable();
    let statics = snapshot.statics().iter().filter(|entry| query.selection.has_static(entry)).map(|entry| entry.prefix);
    let items: Vec<Prefix> = statics.chain(hosts.into_iter().map(|(_, addr)| Prefix::host(addr))).collect();
    // So many items make at most as many prefixes; what they leave free by merging, the next items may take, since
    // one more item makes at most one more prefix.
    let mut taken = max.min(items.len());
    let mut kept = aggregate(items[..taken].iter().copied());
    for _ in 0..ROUNDS_MAX {
        let free = max.saturating_sub(kept.len());
        if free == 0 || taken == items.len() {
            break;
        }
        taken = (taken + free).min(items.len());
        kept = aggregate(items[..taken].iter().copied());
    }
    kept
}
