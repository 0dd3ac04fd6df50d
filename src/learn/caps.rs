//! Which addresses leave when there is no room.
//!
//! A *scope* is what a cap counts in: the whole set, one name, one trigger, all sightings, the sightings of one address.
//! When an offer needs room in a scope that is full, addresses leave that nobody was told of any more (past the TTL
//! told, held by min-hold or grace alone), longest unasked first. Addresses that a client may still use never leave, so
//! a flood is refused instead of pushing them out.
//!
//! The choice comes from a [`Queue`] of the scope's sightings, made when its cap is first reached and kept up to date
//! while the scope stays near it. So a set far from its caps pays nothing, and each choice at a cap costs `log n`:
//! a queue is made from at most as many sightings as the cap allows, and thrown away only when a quarter of them left.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::catalogue::{AppId, Tag, TagApp};
use crate::clock::Timestamp;
use crate::name::Name;
use crate::set::{Draft, Host, NameRecord, Sighting};

/// A trigger of one app, as its list writes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TriggerKey {
    app: AppId,
    trigger: Arc<str>,
}

impl TriggerKey {
    pub(crate) fn new(hit: &TagApp) -> Self {
        Self { app: hit.app.clone(), trigger: Arc::clone(&hit.trigger) }
    }

    /// Returns whether this trigger is one of the tag's.
    pub(crate) fn is_in(&self, tag: &Tag) -> bool {
        tag.apps().iter().any(|hit| hit.app == self.app && hit.trigger == self.trigger)
    }
}

/// What a cap counts in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// Addresses of one name.
    Name(Name),
    /// Addresses under one trigger.
    Trigger(TriggerKey),
    /// Sightings at one address.
    Address(IpAddr),
    /// Sightings in all.
    Sightings,
    /// Addresses in all.
    Total,
}

/// How many addresses stand under each trigger, and which names.
#[derive(Debug, Default)]
pub(crate) struct Triggers {
    table: HashMap<TriggerKey, Below, RandomState>,
}

#[derive(Debug, Default)]
struct Below {
    address_count: usize,
    names: HashSet<ByPointer, RandomState>,
}

/// A name's record, told from others by where it lies.
#[derive(Clone, Debug)]
struct ByPointer(Arc<NameRecord>);

impl PartialEq for ByPointer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ByPointer {}

impl Hash for ByPointer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl Triggers {
    /// Counts a sighting that was just put into `host`.
    pub(crate) fn insert(&mut self, record: &Arc<NameRecord>, host: &Host) {
        for hit in record.tag().apps() {
            let key = TriggerKey::new(hit);
            let is_first = !others_have(&key, record, host);
            let below = self.table.entry(key).or_default();
            below.address_count += usize::from(is_first);
            below.names.insert(ByPointer(Arc::clone(record)));
        }
    }

    /// Counts what a set begins with: how many addresses stand under each trigger, and the names that have sightings.
    pub(crate) fn fill<'a>(
        &mut self,
        counts: impl IntoIterator<Item = (TriggerKey, usize)>,
        records: impl Iterator<Item = &'a Arc<NameRecord>>,
    ) {
        for (key, count) in counts {
            self.table.entry(key).or_default().address_count += count;
        }
        for record in records {
            for hit in record.tag().apps() {
                let below = self.table.entry(TriggerKey::new(hit)).or_default();
                below.names.insert(ByPointer(Arc::clone(record)));
            }
        }
    }

    /// Takes a sighting out of the count that is about to leave `host`; `is_last` if its name has no other.
    pub(crate) fn remove(&mut self, record: &Arc<NameRecord>, host: &Host, is_last: bool) {
        for hit in record.tag().apps() {
            let key = TriggerKey::new(hit);
            let was_only = !others_have(&key, record, host);
            let Some(below) = self.table.get_mut(&key) else { continue };
            below.address_count -= usize::from(was_only);
            if is_last {
                below.names.remove(&ByPointer(Arc::clone(record)));
            }
            if below.names.is_empty() {
                self.table.remove(&key);
            }
        }
    }

    /// Returns how many addresses stand under a trigger.
    pub(crate) fn address_count(&self, key: &TriggerKey) -> usize {
        self.table.get(key).map_or(0, |below| below.address_count)
    }

    /// Returns the record of some name with this tag, if one is found at once: most names under a trigger have the same.
    pub(crate) fn alike(&self, tag: &Tag) -> Option<&NameRecord> {
        let below = self.table.get(&TriggerKey::new(tag.primary()))?;
        below.names.iter().next().map(|record| &*record.0).filter(|record| record.tag() == tag)
    }

    /// Returns how many addresses and names stand under each trigger, in no order.
    #[cfg(test)]
    pub(crate) fn all(&self) -> impl Iterator<Item = (&TriggerKey, usize, usize)> {
        self.table.iter().map(|(key, below)| (key, below.address_count, below.names.len()))
    }

    /// Returns whether no trigger is counted.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Returns the names under a trigger that have sightings.
    fn names(&self, key: &TriggerKey) -> impl Iterator<Item = &Name> {
        self.table.get(key).into_iter().flat_map(|below| &below.names).map(|record| record.0.name())
    }
}

/// Returns whether another name of the host stands under the trigger too.
fn others_have(key: &TriggerKey, record: &Arc<NameRecord>, host: &Host) -> bool {
    host.sightings().iter().any(|one| one.name() != record.name() && key.is_in(one.tag()))
}

/// The queues of scopes that are near their caps.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    table: HashMap<Scope, Queue, RandomState>,
}

/// Sightings of one scope. Entries may be out of date to the early side, as in the set's expiry: each is looked at
/// again when it comes up.
#[derive(Debug, Default)]
struct Queue {
    /// By the end of the TTL told: these may not leave yet.
    told: BinaryHeap<Reverse<Entry>>,
    /// By when they were last asked: these may.
    unasked: BinaryHeap<Reverse<Entry>>,
}

#[derive(Clone, Debug)]
struct Entry(Timestamp, Arc<Sighting>);

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Entry {}

impl Queues {
    /// Lets every queue that a new sighting belongs to know of it.
    pub(crate) fn insert(&mut self, sighting: &Arc<Sighting>) {
        if self.table.is_empty() {
            return;
        }
        let own =
            [Scope::Total, Scope::Sightings, Scope::Name(sighting.name().clone()), Scope::Address(sighting.addr())];
        let triggers = sighting.tag().apps().iter().map(|hit| Scope::Trigger(TriggerKey::new(hit)));
        for scope in own.into_iter().chain(triggers) {
            if let Some(queue) = self.table.get_mut(&scope) {
                queue.told.push(Reverse(Entry(sighting.told_until(), Arc::clone(sighting))));
            }
        }
    }

    /// Picks up to `count` addresses that may leave the scope at `now`, none of them in `kept`; each with the
    /// sightings that must go for it. What is picked is out of the queue until [`Self::put_back`].
    pub(crate) fn pick(
        &mut self,
        scope: &Scope,
        count: usize,
        kept: &[IpAddr],
        now: Timestamp,
        (draft, triggers): (&Draft, &Triggers),
    ) -> Vec<Vec<Arc<Sighting>>> {
        let queue = self.table.entry(scope.clone()).or_insert_with(|| Queue::make(scope, draft, triggers));
        let (mut picked, mut passed, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        while picked.len() < count {
            let Some(candidate) = queue.next(now, |one| unit(scope, one, draft)) else { break };
            let mark = (candidate.addr(), scope.is_of_sightings().then(|| candidate.name().clone()));
            if kept.contains(&candidate.addr()) || seen.contains(&mark) {
                passed.push(candidate);
            } else {
                picked.push(unit(scope, &candidate, draft));
                seen.insert(mark);
            }
        }
        for one in passed {
            queue.put_back(one);
        }
        picked
    }

    /// Puts sightings back that were picked and stay.
    pub(crate) fn put_back(&mut self, scope: &Scope, picked: Vec<Vec<Arc<Sighting>>>) {
        if let Some(queue) = self.table.get_mut(scope) {
            picked.into_iter().flatten().for_each(|one| queue.put_back(one));
        }
    }

    /// Throws away the queues of scopes that are no longer near their caps, and those that hold too much of the past.
    pub(crate) fn tidy(&mut self, count_and_cap: impl Fn(&Scope) -> (usize, usize)) {
        self.table.retain(|scope, queue| {
            let (count, cap) = count_and_cap(scope);
            count > 0 && count >= cap - cap / 4 && queue.told.len() + queue.unasked.len() <= 4 * count + 1024
        });
    }
}

impl Scope {
    /// Returns whether the cap counts sightings; the others count addresses.
    fn is_of_sightings(&self) -> bool {
        matches!(self, Self::Sightings | Self::Address(_))
    }
}

/// Returns the sightings that must all go for `one` to make room in its scope.
fn unit(scope: &Scope, one: &Arc<Sighting>, draft: &Draft) -> Vec<Arc<Sighting>> {
    let at_address = || draft.host(one.addr()).map_or(&[][..], Host::sightings).iter();
    match scope {
        Scope::Name(_) | Scope::Sightings | Scope::Address(_) => vec![Arc::clone(one)],
        Scope::Trigger(key) => at_address().filter(|other| key.is_in(other.tag())).cloned().collect(),
        Scope::Total => at_address().cloned().collect(),
    }
}

impl Queue {
    fn make(scope: &Scope, draft: &Draft, triggers: &Triggers) -> Self {
        let mut queue = Self::default();
        let mut take = |one: &Arc<Sighting>| queue.told.push(Reverse(Entry(one.told_until(), Arc::clone(one))));
        match scope {
            Scope::Name(name) => draft.sightings_of(name).iter().for_each(&mut take),
            Scope::Trigger(key) => {
                triggers.names(key).for_each(|name| draft.sightings_of(name).iter().for_each(&mut take));
            }
            Scope::Address(addr) => {
                draft.host(*addr).map_or(&[][..], Host::sightings).iter().for_each(&mut take);
            }
            Scope::Sightings | Scope::Total => {
                draft.hosts().for_each(|host| host.sightings().iter().for_each(&mut take));
            }
        }
        queue
    }

    /// Takes out the sighting that was asked longest ago among those whose whole unit is past the TTL told.
    fn next(
        &mut self,
        now: Timestamp,
        unit_of: impl Fn(&Arc<Sighting>) -> Vec<Arc<Sighting>>,
    ) -> Option<Arc<Sighting>> {
        while self.told.peek().is_some_and(|Reverse(top)| top.0 < now) {
            let Reverse(Entry(_, one)) = self.told.pop()?;
            let times = one.times();
            if one.has_left() {
                continue;
            }
            if times.told_until < now {
                self.unasked.push(Reverse(Entry(times.last_seen, one)));
            } else {
                self.told.push(Reverse(Entry(times.told_until, one)));
            }
        }
        while let Some(Reverse(Entry(key, one))) = self.unasked.pop() {
            if one.has_left() {
                continue;
            }
            // The unit is as young as its youngest sighting: come back when that one's turn is.
            let times = unit_of(&one).into_iter().map(|one| one.times());
            let (told_until, last_seen) = times
                .fold((Timestamp::default(), Timestamp::default()), |(told, seen), t| {
                    (told.max(t.told_until), seen.max(t.last_seen))
                });
            if told_until >= now {
                self.told.push(Reverse(Entry(told_until, one)));
            } else if last_seen > key {
                self.unasked.push(Reverse(Entry(last_seen, one)));
            } else {
                return Some(one);
            }
        }
        None
    }

    fn put_back(&mut self, one: Arc<Sighting>) {
        self.unasked.push(Reverse(Entry(one.last_seen(), one)));
    }
}
