//! What a store kept becomes sightings again.
//!
//! It is believed no more than an answer: each address must be admissible, each name listed, each end ahead, and the
//! caps hold; when they leave no room, those that clients were told of for longest come first. If the last process
//! stopped in order the ends are exact. If not, a sighting may have been extended since it was written, up to what it
//! was granted, so that it ends then: after a crash an address may outlive its end by that slack, and is never lost.
//!
//! All of it comes in at once, each name matched and each trigger counted once. Only where a cap would be passed they
//! come one by one, as answers do.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use foldhash::fast::RandomState;

use super::book::{Book, SIGHTINGS_PER_ADDRESS_MAX, sightings_max};
use super::caps::TriggerKey;
use super::metrics::Fate;
use super::{Listing, Options};
use crate::catalogue::{AppId, Tag, TagApp};
use crate::clock::Timestamp;
use crate::name::Name;
use crate::set::outlet::{Kept, Restored};
use crate::set::{Filling, NameRecord, Place, Seen, Times};
use crate::source::Location;

/// No end lies further ahead, whatever a clock that was wrong has left in the store.
const SPAN_MAX: Duration = Duration::from_secs(60 * 86_400);

/// The app of entries that no list has and that stay until a shrink is confirmed.
const UNLISTED: &str = "unlisted";

impl Book {
    /// Puts in what a store kept; the set holds nothing yet.
    pub(super) fn restore(&mut self, restored: Restored, now: Timestamp) {
        let Restored { is_complete, sightings, .. } = restored;
        let (mut found, mut ended, mut inadmissible) = (Found::new(sightings.len()), 0, 0);
        for kept in sightings {
            let times = self.restored_times(&kept, is_complete, now);
            if times.end <= now {
                ended += 1;
            } else if self.admission().check(kept.addr).is_err() {
                inadmissible += 1;
            } else {
                found.add(kept, times, now, self.listing());
            }
        }
        let repeated = found.filling.sort();
        let keeps_unlisted = self.keeps_unlisted(&found);
        let unlisted = if keeps_unlisted { 0 } else { found.drop_unlisted() };
        let names = found.unlisted_names();
        let (kept, full) = self.put_found(found);
        for (fate, count) in [
            (Fate::Kept, kept),
            (Fate::Ended, ended),
            (Fate::Inadmissible, inadmissible),
            (Fate::Unlisted, unlisted),
            (Fate::Full, full + repeated),
        ] {
            self.metrics.restored(fate, count);
        }
        if keeps_unlisted {
            let names = names.into_iter().filter(|name| self.draft.record(name).is_some());
            self.keep_restored(names.collect());
        }
    }

    /// Returns whether what no list has is too much to leave at once.
    fn keeps_unlisted(&self, found: &Found) -> bool {
        let (mut unlisted, mut listed) = (0, 0);
        for host in found.filling.hosts() {
            let is_listed = host.iter().any(|seen| !found.is_unlisted(seen.place()));
            *(if is_listed { &mut listed } else { &mut unlisted }) += 1;
        }
        self.options().max_shrink < 1.0 && self.is_too_many(unlisted, unlisted + listed)
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

    /// Puts in what there is room for. Returns how many sightings that were, and how many not.
    fn put_found(&mut self, found: Found) -> (usize, usize) {
        let count = found.filling.len();
        let counts = found.trigger_counts();
        if found.fits(&counts, self.options()) {
            let Found { filling, .. } = found;
            let names = filling.counts();
            let records = filling.records().iter().zip(names).filter(|(_, count)| *count > 0);
            self.triggers.fill(counts, records.map(|(record, _)| record));
            self.draft.fill(filling);
            return (count, 0);
        }
        // Where a cap is reached those stay that were told for longest; what no list has comes after all others.
        let Found { filling, tag_of, .. } = found;
        let mut sightings: Vec<_> = filling.into_sightings().collect();
        sightings.sort_by_cached_key(|(place, sighting)| {
            let times = sighting.times();
            (tag_of[place.index()] == UNLISTED_TAG, Reverse((times.told_until, times.last_seen)))
        });
        let mut kept = 0;
        for (_, sighting) in sightings {
            if self.has_room(sighting.name(), sighting.tag(), sighting.addr()) {
                self.put_in(sighting);
                kept += 1;
            }
        }
        (kept, count - kept)
    }
}

/// What a store kept and may be in the set, with the match of each name: looked up once a name.
struct Found {
    filling: Filling,
    /// Which of `tags` each name has.
    tag_of: Vec<usize>,
    /// One record of each tag: names that are matched alike share it.
    tags: Vec<NameRecord>,
    /// The tags whose first trigger this is.
    by_trigger: HashMap<TriggerKey, Vec<usize>, RandomState>,
}

/// The tag of what no list has, the first one of [`Found::tags`].
const UNLISTED_TAG: usize = 0;

impl Found {
    fn new(len: usize) -> Self {
        let hit = TagApp { app: AppId::new(UNLISTED), trigger: "".into(), location: Location::file(UNLISTED) };
        let unlisted = NameRecord::new(Name::root(), Tag::new(vec![hit]));
        let (filling, tags) = (Filling::with_capacity(len), vec![unlisted]);
        Self { filling, tag_of: Vec::new(), tags, by_trigger: HashMap::default() }
    }

    fn add(&mut self, kept: Kept, times: Times, now: Timestamp, listing: &Listing) {
        let Self { filling, tag_of, tags, by_trigger } = self;
        let Kept { addr, name, first_seen, .. } = kept;
        let place = filling.place(name, |name| {
            let tag = listing.tag(&name).map_or(UNLISTED_TAG, |tag| {
                let alike = by_trigger.entry(TriggerKey::new(tag.primary())).or_default();
                let known = alike.iter().copied().find(|known| *tags[*known].tag() == tag);
                known.unwrap_or_else(|| {
                    alike.push(tags.len());
                    tags.push(NameRecord::new(Name::root(), tag));
                    tags.len() - 1
                })
            });
            tag_of.push(tag);
            tags[tag].with_name(name)
        });
        filling.add(place, addr, first_seen.min(now), times);
    }

    fn is_unlisted(&self, place: Place) -> bool {
        self.tag_of[place.index()] == UNLISTED_TAG
    }

    /// Drops what no list has. Returns how many sightings that were.
    fn drop_unlisted(&mut self) -> usize {
        let before = self.filling.len();
        self.filling.retain(|place| self.tag_of[place.index()] != UNLISTED_TAG);
        before - self.filling.len()
    }

    fn unlisted_names(&self) -> Vec<Name> {
        let names = self.filling.records().iter().zip(&self.tag_of).filter(|(_, tag)| **tag == UNLISTED_TAG);
        names.map(|(record, _)| record.name().clone()).collect()
    }

    /// Returns how many addresses stand under each trigger.
    fn trigger_counts(&self) -> HashMap<TriggerKey, usize, RandomState> {
        let mut of_tag = vec![0; self.tags.len()];
        let mut counts: HashMap<TriggerKey, usize, RandomState> = HashMap::default();
        for host in self.filling.hosts() {
            let tag_of = |seen: &Seen| self.tag_of[seen.place().index()];
            let first = tag_of(&host[0]);
            if host.iter().all(|seen| tag_of(seen) == first) {
                of_tag[first] += 1;
                continue;
            }
            // Several names at one address count once under a trigger that they share.
            let hits = host.iter().flat_map(|seen| self.tags[tag_of(seen)].tag().apps());
            let keys: HashSet<TriggerKey, RandomState> = hits.map(TriggerKey::new).collect();
            keys.into_iter().for_each(|key| *counts.entry(key).or_default() += 1);
        }
        for (tag, count) in self.tags.iter().zip(of_tag).filter(|(_, count)| *count > 0) {
            for hit in tag.tag().apps() {
                *counts.entry(TriggerKey::new(hit)).or_default() += count;
            }
        }
        counts
    }

    /// Returns whether no cap is passed if all of it comes in.
    fn fits(&self, counts: &HashMap<TriggerKey, usize, RandomState>, options: &Options) -> bool {
        let (mut host_count, mut at_one_max) = (0, 0);
        for host in self.filling.hosts() {
            host_count += 1;
            at_one_max = at_one_max.max(host.len());
        }
        let of_name_max = self.filling.counts().into_iter().max().unwrap_or_default();
        host_count <= options.max_total
            && self.filling.len() <= sightings_max(options)
            && at_one_max <= SIGHTINGS_PER_ADDRESS_MAX
            && of_name_max as usize <= options.max_per_name
            && counts.values().all(|count| *count <= options.max_per_trigger)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::book::Admitted;
    use super::super::metrics::Metrics;
    use super::super::tests::{START, addr, after, listing, name};
    use super::*;
    use crate::metrics::Registry;
    use crate::set::Session;
    use crate::set::outlet::SightingChange;

    const NAMES: [&str; 5] = ["a.zoom.test", "b.zoom.test", "a.webex.test", "a.teams.test", "zoom.test"];

    fn book(options: &Options, restored: Option<Restored>, now: Timestamp) -> Book {
        let registry = Registry::new();
        let metrics = (Metrics::new(&registry), &registry);
        let (book, first) = Book::new(options.clone(), listing(&[]), 1, restored, now, metrics);
        first.confirm();
        book
    }

    fn offer(book: &mut Book, of: usize, addrs: &[u32], ttl_secs: u32, now: Timestamp) {
        let addresses: Vec<(IpAddr, u32)> = addrs.iter().map(|n| (addr(*n), ttl_secs)).collect();
        let name = name(NAMES[of]);
        book.offer(
            Admitted {
                tag: listing(&[]).tag(&name).unwrap(),
                name,
                address_count: addresses.len(),
                addresses,
                client: None,
                generation: 1,
                admission: Arc::clone(book.admission()),
            },
            now,
        );
        book.publish(now).confirm();
    }

    /// What a store holds of it after an orderly end.
    fn stored(book: &Book, now: Timestamp) -> Vec<Kept> {
        let puts = book.draft().last(now).sightings.into_iter().map(|change| match change {
            SightingChange::Put(kept) => kept,
            SightingChange::Gone { .. } => panic!("it is there"),
        });
        puts.collect()
    }

    /// Members with all their times, and the counts behind the caps.
    fn look(book: &Book) -> (Vec<String>, Vec<String>) {
        let of_host = |host: &crate::set::Host| {
            let sightings = host.sightings().iter().map(|one| {
                let times = one.times();
                format!("{} {:?} {:?}", one.name(), one.first_seen(), (times.last_seen, times.told_until, times.end))
            });
            format!("{} {:?} {:?}", host.addr(), host.apps(), sightings.collect::<Vec<_>>())
        };
        let mut counts: Vec<String> = book.triggers().all().map(|count| format!("{count:?}")).collect();
        counts.extend(NAMES.map(|of| format!("{of} {}", book.draft().address_count(&name(of)))));
        counts.push(format!("{} {}", book.draft().host_count(), book.draft().sighting_count()));
        counts.sort_unstable();
        (book.draft().hosts().map(of_host).collect(), counts)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn restored_set_equals_the_one_built_by_offers_and_ends_alike(
            offers in prop::collection::vec(
                (0..NAMES.len(), prop::collection::btree_set(1..30_u32, 1..6), 1..2000_u32, 0..500_u64), 0..40),
            order in any::<prop::sample::Index>(),
        ) {
            let options = Options::default();
            let mut built = book(&options, None, START);
            let mut now = START;
            for (of, addrs, ttl_secs, pass) in offers {
                now = now.after(Duration::from_secs(pass));
                built.expire(now);
                offer(&mut built, of, &addrs.into_iter().collect::<Vec<_>>(), ttl_secs, now);
            }
            let mut sightings = stored(&built, now);
            let middle = order.index(sightings.len().max(1)).min(sightings.len());
            sightings.rotate_left(middle);
            let restored = Restored { session: Session(7), serial: 41, is_complete: true, sightings };
            let mut back = book(&options, Some(restored), now);
            prop_assert_eq!(look(&back), look(&built));
            while let Some(end) = built.next_end() {
                for book in [&mut back, &mut built] {
                    book.expire(end);
                    book.publish(end).confirm();
                }
                prop_assert_eq!(look(&back), look(&built));
                prop_assert_eq!(back.next_end().is_some(), built.next_end().is_some());
            }
            prop_assert!(back.triggers().is_empty() && built.triggers().is_empty());
        }

        #[test]
        fn what_is_restored_keeps_within_the_caps_and_fills_them(
            seen in prop::collection::btree_map((0..NAMES.len(), 1..30_u32), 1..5000_u64, 0..80),
            (max_total, max_per_name, max_per_trigger) in (1..40_usize, 1..30_usize, 1..40_usize),
        ) {
            let sightings: Vec<Kept> = seen.iter().map(|(&(of, n), &told)| Kept {
                addr: addr(n),
                name: name(NAMES[of]),
                first_seen: START,
                last_seen: START,
                told_until: after(told),
                end: after(told + 300),
                granted: after(told + 300),
            }).collect();
            let options = Options { max_total, max_per_name, max_per_trigger, ..Options::default() };
            let restored = Restored { session: Session(7), serial: 41, is_complete: true, sightings: sightings.clone() };
            let mut back = book(&options, Some(restored), START);
            prop_assert!(back.draft().host_count() <= max_total);
            prop_assert!(back.triggers().all().all(|(_, count, _)| count <= max_per_trigger));
            for of in NAMES {
                prop_assert!(back.draft().address_count(&name(of)) <= max_per_name);
            }
            // Nothing that is missing would have had room.
            for kept in sightings {
                let is_there = back.draft().host(kept.addr).is_some_and(|host| host.sighting(&kept.name).is_some());
                let tag = listing(&[]).tag(&kept.name).unwrap();
                prop_assert!(is_there || !back.has_room(&kept.name, &tag, kept.addr));
            }
            back.expire(after(10_000));
            prop_assert!(back.triggers().is_empty());
        }
    }
}
