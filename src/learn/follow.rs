//! Where HTTPS and SVCB answers of listed names point.
//!
//! The TargetName of a listed name's record (RFC 9460) is asked for its addresses by the client next. [`Targets`]
//! remembers it until that record's TTL ends; until then its A and AAAA answers are sightings of the listed name. Only
//! listed names are followed from, never a target, so a stranger's chain ends after one step. The table is bounded:
//! when it is full of targets that have not ended, a new one is refused.

use std::collections::HashMap;
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::RwLock;

use crate::catalogue::Tag;
use crate::clock::Timestamp;
use crate::name::Name;

/// The most targets remembered at a time: some 1 MB.
const TARGETS_MAX: usize = 4096;

/// A full table is searched for ended targets no more often than this.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Targets by name.
#[derive(Debug)]
pub(crate) struct Targets {
    table: RwLock<Table>,
    targets_max: usize,
}

#[derive(Debug, Default)]
struct Table {
    followed: HashMap<Name, Followed, RandomState>,
    /// The generation of the catalogue that every tag in here is of.
    generation: u64,
    swept: Timestamp,
}

/// Whose target it is.
#[derive(Clone, Debug)]
struct Followed {
    /// The listed name; of several the one whose record ends last.
    name: Name,
    tag: Tag,
    until: Timestamp,
}

impl Targets {
    /// Makes an empty table for one generation of the catalogue.
    pub(crate) fn new(generation: u64) -> Self {
        let table = Table { generation, ..Table::default() };
        Self { table: RwLock::new(table), targets_max: TARGETS_MAX }
    }

    /// Remembers that `target` is where the listed `name` points, until `until`. Returns whether there was room.
    ///
    /// What an older generation of the catalogue said is dropped: the name may be listed no longer.
    pub(crate) fn insert(
        &self,
        target: Name,
        name: &Name,
        tag: &Tag,
        until: Timestamp,
        (generation, now): (u64, Timestamp),
    ) -> bool {
        let mut table = self.table.write();
        if generation < table.generation {
            return true;
        }
        let followed = Followed { name: name.clone(), tag: tag.clone(), until };
        if let Some(held) = table.followed.get_mut(&target) {
            if held.until <= until {
                *held = followed;
            }
            return true;
        }
        if table.followed.len() >= self.targets_max && now.since(table.swept) >= SWEEP_EVERY {
            table.swept = now;
            table.followed.retain(|_, held| held.until > now);
        }
        if table.followed.len() >= self.targets_max {
            return false;
        }
        table.followed.insert(target, followed);
        true
    }

    /// Returns the listed name that points at `target`, with its tag.
    pub(crate) fn find(&self, target: &Name, now: Timestamp) -> Option<(Name, Tag)> {
        let table = self.table.read();
        let held = table.followed.get(target).filter(|held| held.until > now)?;
        Some((held.name.clone(), held.tag.clone()))
    }

    /// Matches every listed name by a new generation and forgets the targets of those that are listed no longer.
    pub(crate) fn rematch(&self, generation: u64, tag_of: impl Fn(&Name) -> Option<Tag>) {
        let mut table = self.table.write();
        table.generation = generation;
        table.followed.retain(|_, held| {
            let tag = tag_of(&held.name);
            tag.map(|tag| held.tag = tag).is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::tests::tag;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn target_is_followed_until_its_record_ends() {
        let start = Timestamp::from_secs(1000);
        let end = start.after(Duration::from_secs(60));
        let targets = Targets::new(1);
        assert!(targets.insert(name("cdn.test"), &name("zoom.us"), &tag("zoom", "zoom.us"), end, (1, start)));
        assert_eq!(targets.find(&name("cdn.test"), start).unwrap().0, name("zoom.us"));
        assert!(targets.find(&name("x.cdn.test"), start).is_none());
        assert!(targets.find(&name("cdn.test"), end).is_none());
        // A shorter record of another name does not shorten it, nor take it over.
        let sooner = start.after(Duration::from_secs(30));
        assert!(targets.insert(name("cdn.test"), &name("other.test"), &tag("o", "other.test"), sooner, (1, start)));
        assert_eq!(targets.find(&name("cdn.test"), sooner).unwrap().0, name("zoom.us"));
    }

    #[test]
    fn full_table_refuses_new_targets_until_old_ones_end() {
        let start = Timestamp::from_secs(1000);
        let end = start.after(Duration::from_secs(60));
        let targets = Targets { targets_max: 2, ..Targets::new(1) };
        let insert = |target: &str, until, now| {
            targets.insert(name(target), &name("zoom.us"), &tag("zoom", "zoom.us"), until, (1, now))
        };
        assert!(insert("a.test", end, start) && insert("b.test", end, start));
        assert!(!insert("c.test", end, start));
        assert!(insert("a.test", end.after(SWEEP_EVERY), start), "a known one is extended");
        assert!(insert("c.test", end.after(FILL), end), "b.test has ended");
        assert!(targets.find(&name("a.test"), end).is_some());
    }

    const FILL: Duration = Duration::from_secs(60);

    #[test]
    fn reload_forgets_what_is_listed_no_longer() {
        let start = Timestamp::from_secs(1000);
        let end = start.after(Duration::from_secs(60));
        let targets = Targets::new(1);
        let insert = |target: &str, listed: &str, generation| {
            targets.insert(name(target), &name(listed), &tag("app", listed), end, (generation, start));
        };
        insert("a.test", "gone.test", 1);
        insert("b.test", "kept.test", 1);
        targets.rematch(2, |listed| (*listed == name("kept.test")).then(|| tag("new", "kept.test")));
        assert!(targets.find(&name("a.test"), start).is_none());
        assert!(targets.find(&name("b.test"), start).unwrap().1.has_app("new"));
        insert("a.test", "gone.test", 1);
        assert!(targets.find(&name("a.test"), start).is_none(), "an answer matched before the reload comes late");
    }
}
