//! Guard against lists that shrink by mistake.
//!
//! A reload, or a restart under other lists, that would take more than `max_shrink` of the set out at once is likely a
//! list that failed to copy. [`Book`] then keeps the entries that are listed no longer, until the operator confirms: by
//! reloading once more on purpose, or in so many words. Until then they are exported as before. Their ends pass as
//! ever, they are not extended, and what the new lists add is learned. Addresses that may no longer be learned leave
//! at once all the same: nothing keeps a hole open.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::Confirm;
use super::book::Book;
use crate::name::Name;
use crate::set::{Item, NameRecord, Sighting, StaticEntry};

/// Fewer entries than these may always leave at once: in a small set one name is a large share.
const SHRINK_COUNT_MIN: usize = 10;

/// What left when a shrink was confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// How many entries were kept: static prefixes and sightings of names.
    pub entries: usize,
    /// The serial of the set without them; 0 if nothing was kept.
    pub serial: u64,
    /// What the set has lost with them, sorted; `None` if it is more than the history of the set holds.
    pub withdrawn: Option<Vec<Item>>,
}

/// Nothing.
impl Default for Released {
    fn default() -> Self {
        Self { entries: 0, serial: 0, withdrawn: Some(Vec::new()) }
    }
}

/// Entries that stay although no list has them.
#[derive(Debug, Default)]
pub(super) struct Shrink {
    /// The static prefixes that the lists have.
    listed: Vec<StaticEntry>,
    /// How many others are kept.
    static_count: usize,
    /// Names that are kept.
    names: HashSet<Name, RandomState>,
    /// Their sightings.
    sighting_count: usize,
    /// The operator has reloaded on purpose and heard of it.
    is_told: bool,
}

impl Shrink {
    fn len(&self) -> usize {
        self.static_count + self.sighting_count
    }
}

/// What a listing would take out.
struct Withdrawal {
    records: Vec<Arc<NameRecord>>,
    names: HashSet<Name, RandomState>,
    /// Hosts and static prefixes.
    entry_count: usize,
}

impl Book {
    /// Takes out what is listed no longer and replaces the static prefixes; or keeps both if that is too much of
    /// `before` entries at once. Returns how many entries are kept.
    pub(super) fn withdraw(
        &mut self,
        gone: Vec<Arc<NameRecord>>,
        listed: Vec<StaticEntry>,
        before: usize,
        confirm: Confirm,
    ) -> usize {
        let withdrawal = self.withdrawal(gone, &listed);
        if self.must_keep(withdrawal.entry_count, before, confirm) {
            let was_told = self.shrink.as_ref().is_some_and(|shrink| shrink.is_told);
            self.keep(withdrawal, listed, was_told || confirm == Confirm::Explicit)
        } else {
            self.shrink = None;
            self.metrics.shrink_held.set(0);
            self.draft.set_statics(listed);
            withdrawal.records.iter().for_each(|record| self.drop_name(record.name()));
            0
        }
    }

    /// Lets go of what was kept. Returns how many entries that were.
    pub(crate) fn accept_shrink(&mut self) -> usize {
        let Some(shrink) = self.shrink.take() else { return 0 };
        self.metrics.shrink_held.set(0);
        let kept = shrink.len();
        self.draft.set_statics(shrink.listed);
        shrink.names.iter().for_each(|name| self.drop_name(name));
        tracing::info!("{kept} entries that are listed no longer were let go as confirmed");
        kept
    }

    /// Keeps sightings whose names no list has, which were put in already.
    pub(super) fn keep_restored(&mut self, names: HashSet<Name, RandomState>) {
        let listed = self.draft.statics().to_vec();
        let records = names.iter().filter_map(|name| self.draft.record(name)).collect();
        self.keep(Withdrawal { records, names, entry_count: 0 }, listed, false);
    }

    /// Notes that a sighting leaves.
    pub(super) fn note_left(&mut self, sighting: &Sighting) {
        let Some(shrink) = self.shrink.as_mut().filter(|shrink| shrink.names.contains(sighting.name())) else { return };
        shrink.sighting_count = shrink.sighting_count.saturating_sub(1);
        self.metrics.shrink_held.set(gauge(shrink.len()));
        if shrink.len() == 0 {
            self.shrink = None;
        }
    }

    /// Returns whether so many of `total` entries are too many to leave at once.
    pub(super) fn is_too_many(&self, count: usize, total: usize) -> bool {
        // Both are far below 2^52, so nothing is lost.
        count >= SHRINK_COUNT_MIN && count as f64 > self.options.max_shrink * total as f64
    }

    fn must_keep(&self, count: usize, total: usize, confirm: Confirm) -> bool {
        match &self.shrink {
            _ if count == 0 || self.options.max_shrink >= 1.0 => false,
            Some(shrink) if shrink.is_told && confirm == Confirm::Explicit => false,
            // What waits to be confirmed does not slip out because the set has grown.
            Some(_) => true,
            None => self.is_too_many(count, total),
        }
    }

    fn withdrawal(&self, records: Vec<Arc<NameRecord>>, listed: &[StaticEntry]) -> Withdrawal {
        let names: HashSet<Name, RandomState> = records.iter().map(|record| record.name().clone()).collect();
        let addrs: HashSet<IpAddr, RandomState> = records
            .iter()
            .flat_map(|record| self.draft.sightings_of(record.name()))
            .map(|sighting| sighting.addr())
            .collect();
        let leaves = |addr: &&IpAddr| {
            self.draft.host(**addr).is_some_and(|host| host.sightings().iter().all(|one| names.contains(one.name())))
        };
        let entry_count = addrs.iter().filter(leaves).count() + unlisted(self.draft.statics(), listed).count();
        Withdrawal { records, names, entry_count }
    }

    fn keep(&mut self, withdrawal: Withdrawal, listed: Vec<StaticEntry>, is_told: bool) -> usize {
        let before = Arc::clone(self.draft.statics());
        let kept: Vec<StaticEntry> = unlisted(&before, &listed).cloned().collect();
        let sighting_count = withdrawal.records.iter().map(|record| self.draft.address_count(record.name())).sum();
        let shrink = Shrink {
            static_count: kept.len(),
            names: withdrawal.names,
            sighting_count,
            is_told,
            listed: listed.clone(),
        };
        self.draft.set_statics(listed.into_iter().chain(kept).collect());
        self.metrics.shrink_held.set(gauge(shrink.len()));
        let count = shrink.len();
        self.shrink = Some(shrink);
        tracing::warn!(
            "the lists would withdraw more of the set at once than export.max-shrink allows: {count} entries that they \
             no longer have stay; if that is meant, confirm with `greenlane prefixes --accept-shrink` or {} SIGHUP",
            if is_told { "another" } else { "two times" },
        );
        count
    }
}

/// Returns the entries of `before` whose prefix is not in `listed`.
fn unlisted<'a>(before: &'a [StaticEntry], listed: &[StaticEntry]) -> impl Iterator<Item = &'a StaticEntry> {
    let listed: HashSet<_, RandomState> = listed.iter().map(|entry| entry.prefix).collect();
    before.iter().filter(move |entry| !listed.contains(&entry.prefix))
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
