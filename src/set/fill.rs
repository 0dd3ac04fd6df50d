//! Many sightings at once, as a set begins with them.
//!
//! A [`Filling`] gathers them: each name once, then its sightings. [`Draft::fill`] builds from it, in one pass over the
//! sorted sightings, what [`Draft::insert`] would have come to one by one: the tree from below, the index of names with
//! lists of the right length, the order of ends as one heap, the counts a run of like hosts at a time. That is a tenth
//! of the work, and what a start with a million sightings waits for.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table;

use super::batch::Step;
use super::draft::Draft;
use super::names::Listed;
use super::sighting::{Host, NameRecord, Sighting, Times};
use super::sizes::Run;
use super::tree::Growing;
use crate::clock::Timestamp;
use crate::name::Name;

/// Sightings that are to come into a set together.
#[derive(Debug, Default)]
pub struct Filling {
    /// Places in `records`, by name.
    places: HashTable<u32>,
    hasher: RandomState,
    records: Vec<Arc<NameRecord>>,
    seen: Vec<Seen>,
}

/// A name of a [`Filling`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u32);

impl Place {
    /// Returns how many names came before it.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A sighting of a [`Filling`].
#[derive(Clone, Debug)]
pub struct Seen {
    addr: IpAddr,
    place: Place,
    first_seen: Timestamp,
    times: Times,
}

impl Seen {
    /// Returns its name.
    pub fn place(&self) -> Place {
        self.place
    }
}

impl Filling {
    /// Makes room for so many sightings.
    pub fn with_capacity(len: usize) -> Self {
        Self { seen: Vec::with_capacity(len), ..Self::default() }
    }

    /// Returns the place of a name; a new name gets the record that `make` makes of it.
    pub fn place(&mut self, name: Name, make: impl FnOnce(Name) -> NameRecord) -> Place {
        let Self { places, hasher, records, .. } = self;
        let hash = hasher.hash_one(name.as_wire());
        let is_same = |place: &u32| *records[*place as usize].name() == name;
        match places.entry(hash, is_same, |place| hasher.hash_one(records[*place as usize].name().as_wire())) {
            hash_table::Entry::Occupied(entry) => Place(*entry.get()),
            hash_table::Entry::Vacant(entry) => {
                // Memory ends before the numbers do.
                let place = u32::try_from(records.len()).unwrap_or(u32::MAX);
                entry.insert(place);
                records.push(Arc::new(make(name)));
                Place(place)
            }
        }
    }

    /// Adds a sighting of a name.
    pub fn add(&mut self, place: Place, addr: IpAddr, first_seen: Timestamp, times: Times) {
        self.seen.push(Seen { addr, place, first_seen, times });
    }

    /// Sorts the sightings by address, then name, and keeps one of those that are the same: the one that clients were
    /// told of for longest. Returns how many went.
    pub fn sort(&mut self) -> usize {
        let Self { seen, records, .. } = self;
        let order = |a: &Seen, b: &Seen| {
            let names = || records[a.place.index()].name().cmp(records[b.place.index()].name());
            let told = || b.times.told_until.cmp(&a.times.told_until);
            a.addr.cmp(&b.addr).then_with(|| if a.place == b.place { told() } else { names() })
        };
        // As it comes from disk it is sorted, or two runs are.
        if !seen.is_sorted_by(|a, b| order(a, b).is_le()) {
            seen.sort_by(order);
        }
        let before = seen.len();
        seen.dedup_by(|b, a| (a.addr, a.place) == (b.addr, b.place));
        before - seen.len()
    }

    /// Keeps the sightings of some names only.
    pub fn retain(&mut self, mut keeps: impl FnMut(Place) -> bool) {
        self.seen.retain(|seen| keeps(seen.place));
    }

    /// Returns how many sightings there are.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Returns the records of all names in their order, those of names without a sighting too.
    pub fn records(&self) -> &[Arc<NameRecord>] {
        &self.records
    }

    /// Returns the sightings of each host; [sorted](Self::sort) before.
    pub fn hosts(&self) -> impl Iterator<Item = &[Seen]> {
        self.seen.chunk_by(|a, b| a.addr == b.addr)
    }

    /// Returns how many sightings each name has.
    pub fn counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.records.len()];
        self.seen.iter().for_each(|seen| counts[seen.place.index()] += 1);
        counts
    }

    /// Returns the sightings one by one.
    pub fn into_sightings(self) -> impl Iterator<Item = (Place, Sighting)> {
        let Self { records, seen, .. } = self;
        seen.into_iter().map(move |Seen { addr, place, first_seen, times }| {
            (place, Sighting::new(addr, Arc::clone(&records[place.index()]), first_seen, times))
        })
    }
}

impl Draft {
    /// Puts all sightings in at once, as [`Self::insert`] does one by one. The set holds none yet.
    pub fn fill(&mut self, mut filling: Filling) {
        filling.sort();
        if self.sighting_count() > 0 {
            filling.into_sightings().for_each(|(_, sighting)| drop(self.insert(sighting)));
            return;
        }
        let counts = filling.counts();
        let Filling { records, seen, .. } = filling;
        let count = seen.len();
        let mut lists: Vec<Listed> = counts.iter().map(|count| Listed::with_capacity(*count as usize)).collect();
        let (mut tree, mut ends) = (Growing::default(), Vec::with_capacity(count));
        let mut run: Option<Run> = None;
        self.steps.reserve(count);
        for at_host in seen.chunk_by(|a, b| a.addr == b.addr) {
            let mut put = |seen: &Seen| {
                let (times, grant) = (Times { granted: Timestamp::default(), ..seen.times }, seen.times.granted);
                let record = Arc::clone(&records[seen.place.index()]);
                let sighting = Arc::new(Sighting::new(seen.addr, record, seen.first_seen, times));
                lists[seen.place.index()].push(Arc::clone(&sighting));
                ends.push((times.end, Arc::clone(&sighting)));
                self.steps.push(Step::Grant(Arc::clone(&sighting), grant));
                sighting
            };
            let host = match at_host {
                [one] => Host::new(put(one)),
                several => Host::of_many(several.iter().map(put).collect()),
            };
            if !self.begins {
                self.hosts_before.push((host.addr(), None));
            } else if !run.as_mut().is_some_and(|run| run.takes(&host)) {
                run.replace(Run::new(&host)).iter().for_each(|run| self.sizes.add_run(run));
            }
            tree.push(host);
        }
        run.iter().for_each(|run| self.sizes.add_run(run));
        self.hosts = tree.grown();
        self.expiry.fill(ends);
        self.publisher.names().write().fill(records.into_iter().zip(lists));
        self.sighting_count = count;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::testing::{START, addr, entry, record};
    use super::super::{Need, Session, Since};
    use super::*;
    use crate::metrics::Registry;

    const NAMES: [(&str, &[&str]); 4] =
        [("a.test", &["zoom"]), ("b.test", &["zoom"]), ("c.test", &["webex", "zoom"]), ("d.test", &["webex"])];

    fn times(end: u64) -> Times {
        let ttl = Duration::from_secs(end);
        Times::from(Need::new(START, ttl, Duration::ZERO, Duration::from_secs(60)))
    }

    /// All that can be seen of a set, and then of how it ends.
    fn look(draft: &mut Draft, registry: &Registry) -> (Vec<String>, String) {
        let batch = draft.publish(START);
        let change = draft.change(&batch, START);
        let mut seen = vec![format!("{:?} {:?}", change.hosts, change.sightings)];
        batch.confirm();
        let reader = draft.reader();
        let snapshot = reader.snapshot();
        seen.push(format!("{} {:?}", snapshot.serial(), reader.since(snapshot.session(), 0) == Since::Reset));
        for host in snapshot.hosts() {
            let told = host
                .sightings()
                .iter()
                .map(|one| (one.name(), one.record().apps().clone(), one.first_seen(), one.times()));
            seen.push(format!("{} {:?}", host.addr(), told.collect::<Vec<_>>()));
        }
        for (name, _) in NAMES {
            let name: Name = name.parse().unwrap();
            let mut addrs: Vec<IpAddr> = draft.sightings_of(&name).iter().map(|one| one.addr()).collect();
            addrs.sort_unstable();
            seen.push(format!("{:?} {addrs:?}", draft.record(&name).map(|record| record.name().clone())));
        }
        let gauges = String::from_utf8(registry.render()).unwrap();
        while let Some(end) = draft.next_end() {
            let mut due: Vec<_> = std::iter::from_fn(|| draft.due(end)).collect();
            due.sort_by_key(|one| (one.addr(), one.name().clone()));
            for one in due {
                seen.push(format!("{end:?} {} {}", one.addr(), one.name()));
                draft.remove(&one);
                draft.commit(end);
            }
        }
        assert_eq!((draft.host_count(), draft.sighting_count()), (0, 0));
        (seen, gauges)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn filled_set_equals_the_one_built_one_by_one(
            seen in prop::collection::hash_map((0..NAMES.len(), 0..60_u16, any::<bool>()), 1..500_u64, 0..300),
            serial in prop_oneof![Just(0_u64), Just(41)],
        ) {
            let (registries, make) = ([Registry::new(), Registry::new()], |registry: &Registry| {
                let mut draft = Draft::resume(Session(7), serial, START, registry);
                draft.set_statics(vec![entry("198.51.100.0/24", &["zoom"])]);
                draft
            });
            let (mut single, mut filled) = (make(&registries[0]), make(&registries[1]));
            let records = NAMES.map(|(name, apps)| record(name, apps));
            let mut filling = Filling::with_capacity(seen.len());
            for (&(name, n, is_v4), &end) in &seen {
                single.insert(Sighting::new(addr(n, is_v4), Arc::clone(&records[name]), START, times(end)));
                let place = filling.place(records[name].name().clone(), |_| {
                    NameRecord::new(records[name].name().clone(), records[name].tag().clone())
                });
                filling.add(place, addr(n, is_v4), START, times(end));
            }
            filled.fill(filling);
            prop_assert_eq!(filled.hosts().count(), single.host_count());
            // The order in which steps are told is not the same, nor need it be.
            let (mut one, mut other) = (look(&mut single, &registries[0]), look(&mut filled, &registries[1]));
            (one.0[0], other.0[0]) = (sorted(&one.0[0]), sorted(&other.0[0]));
            prop_assert_eq!(one, other);
        }
    }

    fn sorted(text: &str) -> String {
        let mut parts: Vec<&str> = text.split("Put(").collect();
        parts.iter_mut().for_each(|part| *part = part.trim_end_matches([' ', ',', ')', ']']));
        parts.sort_unstable();
        parts.concat()
    }

    #[test]
    fn of_repeats_the_one_told_for_longest_stays_in_any_order() {
        for order in [[60, 3600], [3600, 60]] {
            let mut draft = super::super::testing::draft();
            let mut filling = Filling::default();
            for end in order {
                let place = filling.place("a.test".parse().unwrap(), |name| {
                    NameRecord::new(name, record("a.test", &["zoom"]).tag().clone())
                });
                filling.add(place, addr(1, true), START, times(end));
            }
            assert_eq!(filling.sort(), 1);
            draft.fill(filling);
            assert_eq!(draft.host(addr(1, true)).unwrap().end(), times(3600).end);
        }
    }
}
