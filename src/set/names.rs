//! Which sightings a name has.
//!
//! The index behind "what was learned for this name": kept by the writer, read by `explain` and by the rules that hold
//! a name to its bounds. A name stands here exactly as long as it has a sighting.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use smallvec::{SmallVec, smallvec};

use super::sighting::{NameRecord, Sighting};
use crate::name::Name;

/// Names with their sightings. Keyed randomly per process, so that strangers cannot choose names that collide.
#[derive(Debug, Default)]
pub(crate) struct Names {
    table: HashTable<Known>,
    hasher: RandomState,
}

/// A name that has sightings; never none.
#[derive(Debug)]
struct Known {
    record: Arc<NameRecord>,
    sightings: Listed,
}

/// Sightings of one name. Two take no more room than the list of them would.
pub(crate) type Listed = SmallVec<[Arc<Sighting>; 2]>;

impl Names {
    /// Adds a sighting under its name.
    pub(crate) fn insert(&mut self, sighting: Arc<Sighting>) {
        let hash = self.hash(sighting.name());
        let hasher = |known: &Known| self.hasher.hash_one(known.record.name().as_wire());
        match self.table.entry(hash, |known| known.record.name() == sighting.name(), hasher) {
            Entry::Occupied(mut entry) => entry.get_mut().sightings.push(sighting),
            Entry::Vacant(entry) => {
                entry.insert(Known { record: Arc::clone(sighting.record()), sightings: smallvec![sighting] });
            }
        }
    }

    /// Adds names that are not there yet, each with its sightings; those without any are left out.
    pub(crate) fn fill(&mut self, names: impl ExactSizeIterator<Item = (Arc<NameRecord>, Listed)>) {
        let Self { table, hasher } = self;
        let hash = |known: &Known| hasher.hash_one(known.record.name().as_wire());
        table.reserve(names.len(), hash);
        for (record, sightings) in names.filter(|(_, sightings)| !sightings.is_empty()) {
            let known = Known { record, sightings };
            table.insert_unique(hash(&known), known, hash);
        }
    }

    /// Takes a sighting out.
    pub(crate) fn remove(&mut self, sighting: &Sighting) {
        let hash = self.hash(sighting.name());
        let Ok(mut entry) = self.table.find_entry(hash, |known| known.record.name() == sighting.name()) else { return };
        let sightings = &mut entry.get_mut().sightings;
        sightings.retain(|one| !std::ptr::eq(&**one, sighting));
        if sightings.is_empty() {
            entry.remove();
        }
    }

    /// Returns the record that the sightings of `name` share.
    pub(crate) fn record(&self, name: &Name) -> Option<&Arc<NameRecord>> {
        self.find(name).map(|known| &known.record)
    }

    /// Returns the sightings of `name`, in no order.
    pub(crate) fn sightings(&self, name: &Name) -> &[Arc<Sighting>] {
        self.find(name).map_or(&[], |known| &known.sightings)
    }

    /// Returns every name's record, in no order.
    pub(crate) fn records(&self) -> impl Iterator<Item = &Arc<NameRecord>> {
        self.table.iter().map(|known| &known.record)
    }

    fn find(&self, name: &Name) -> Option<&Known> {
        self.table.find(self.hash(name), |known| known.record.name() == name)
    }

    fn hash(&self, name: &Name) -> u64 {
        self.hasher.hash_one(name.as_wire())
    }
}
