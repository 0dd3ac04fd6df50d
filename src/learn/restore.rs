//! What a store kept becomes sightings again.
//!
//! It is believed no more than an answer: each address must be admissible, each name listed, each end ahead, and the
//! caps hold; when they leave no room, those that clients were told of for longest come first. If the last process
//! stopped in order the ends are exact. If not, a sighting may have been extended since it was written, up to what it
//! was granted, so that it ends then: after a crash an address may outlive its end by that slack, and is never lost.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::book::Book;
use super::metrics::Fate;
use crate::catalogue::{AppId, Tag, TagApp};
use crate::clock::Timestamp;
use crate::name::Name;
use crate::set::outlet::{Kept, Restored};
use crate::set::{NameRecord, Sighting, Times};
use crate::source::Location;

/// No end lies further ahead, whatever a clock that was wrong has left in the store.
const SPAN_MAX: Duration = Duration::from_secs(60 * 86_400);

/// The app of entries that no list has and that stay until a shrink is confirmed.
const UNLISTED: &str = "unlisted";

impl Book {
    /// Puts in what a store kept.
    pub(super) fn restore(&mut self, restored: Restored, now: Timestamp) {
        let Restored { is_complete, mut sightings, .. } = restored;
        // Where a cap is reached those stay that were told for longest.
        sightings.sort_by_key(|kept| Reverse((kept.told_until, kept.last_seen)));
        let (mut unlisted, mut listed_hosts) = (Vec::new(), HashSet::<IpAddr, RandomState>::default());
        for kept in sightings {
            let times = self.restored_times(&kept, is_complete, now);
            if times.end <= now {
                self.metrics.restored(Fate::Ended, 1);
            } else if self.admission().check(kept.addr).is_err() {
                self.metrics.restored(Fate::Inadmissible, 1);
            } else if let Some(record) = self.listed(&kept.name) {
                listed_hosts.insert(kept.addr);
                self.put_restored(&kept, record, times, now);
            } else {
                unlisted.push((kept, times));
            }
        }
        self.restore_unlisted(unlisted, &listed_hosts, now);
    }

    /// Drops the sightings that no list has, unless these are too many at once.
    fn restore_unlisted(
        &mut self,
        unlisted: Vec<(Kept, Times)>,
        listed_hosts: &HashSet<IpAddr, RandomState>,
        now: Timestamp,
    ) {
        let hosts: HashSet<IpAddr, RandomState> =
            unlisted.iter().map(|(kept, _)| kept.addr).filter(|addr| !listed_hosts.contains(addr)).collect();
        if self.options().max_shrink >= 1.0 || !self.is_too_many(hosts.len(), hosts.len() + listed_hosts.len()) {
            self.metrics.restored(Fate::Unlisted, unlisted.len());
            return;
        }
        let hit = TagApp { app: AppId::new(UNLISTED), trigger: "".into(), location: Location::file(UNLISTED) };
        let tag = Tag::new(vec![hit]);
        let mut names: HashSet<Name, RandomState> = HashSet::default();
        for (kept, times) in unlisted {
            let record = self.record(&kept.name, &tag);
            if self.put_restored(&kept, record, times, now) {
                names.insert(kept.name);
            }
        }
        self.keep_restored(names);
    }

    /// Returns the record of a name, if a list has it.
    fn listed(&self, name: &Name) -> Option<Arc<NameRecord>> {
        let known = self.draft().record(name);
        known.or_else(|| Some(Arc::new(NameRecord::new(name.clone(), self.listing().tag(name)?))))
    }

    fn restored_times(&self, kept: &Kept, is_complete: bool, now: Timestamp) -> Times {
        let end = if is_complete { kept.end } else { kept.end.max(kept.granted) };
        let end = end.min(now.after(SPAN_MAX));
        let grace_millis = u64::try_from(self.options().grace.as_millis()).unwrap_or(u64::MAX);
        // No client was told of more than its end allows.
        let told_at_most = Timestamp::from_millis(end.as_millis().saturating_sub(grace_millis));
        let told_until = if is_complete { kept.told_until } else { kept.told_until.max(told_at_most) };
        Times { last_seen: kept.last_seen.min(now), told_until: told_until.min(end), end, granted: end }
    }

    /// Puts a sighting in if there is room for it. Returns whether there was.
    fn put_restored(&mut self, kept: &Kept, record: Arc<NameRecord>, times: Times, now: Timestamp) -> bool {
        let is_there = self.draft().host(kept.addr).is_some_and(|host| host.sighting(&kept.name).is_some());
        if is_there || !self.has_room(record.name(), record.tag(), kept.addr) {
            self.metrics.restored(Fate::Full, 1);
            return false;
        }
        self.put_in(Sighting::new(kept.addr, record, kept.first_seen.min(now), times));
        self.metrics.restored(Fate::Kept, 1);
        true
    }
}
