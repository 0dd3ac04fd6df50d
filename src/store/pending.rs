//! Changes that the database does not hold yet.

use std::collections::BTreeMap;

use super::entry::Key;
use crate::set::Session;

/// The most sightings that left to be remembered. Beyond, all are forgotten: such an entry is found ended, or listed no
/// longer, when it is restored.
const GONE_LEN_MAX: usize = 1 << 20;

/// The last word on each sighting, sorted by key, with what goes into the database beside them.
///
/// Bounded: entries that are put are no more than the set has, those that left no more than [`GONE_LEN_MAX`].
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    entries: BTreeMap<Key, Option<Box<[u8]>>>,
    gone_len: usize,
    /// What was there before goes first.
    is_whole: bool,
    /// Where the set stands: session and serial of the last change; `None` if there was none.
    stand: Option<(Session, u64)>,
    /// Whether the last change was marked as the last.
    is_complete: bool,
}

impl Pending {
    /// Says that there is this and nothing else, without being a change of the set.
    pub(super) fn whole(entries: impl Iterator<Item = (Key, Box<[u8]>)>) -> Self {
        Self { is_whole: true, ..Self::more(entries) }
    }

    /// Says that there is this, too, without being a change of the set.
    pub(super) fn more(entries: impl Iterator<Item = (Key, Box<[u8]>)>) -> Self {
        Self { entries: entries.map(|(key, times)| (key, Some(times))).collect(), ..Self::default() }
    }

    /// Adds a change: `(is_whole, is_last)`, and what it says of each key.
    pub(super) fn add(
        &mut self,
        session: Session,
        serial: u64,
        (is_whole, is_last): (bool, bool),
        entries: Vec<(Key, Option<Box<[u8]>>)>,
    ) {
        if is_whole {
            self.entries.clear();
            self.gone_len = 0;
            self.is_whole = true;
        }
        self.stand = Some((session, serial));
        self.is_complete = is_last;
        for (key, times) in entries {
            self.set(key, times);
        }
    }

    /// Adds all that `later` says.
    pub(super) fn merge(&mut self, later: Self) {
        if later.is_whole {
            *self = later;
            return;
        }
        if later.stand.is_some() {
            (self.stand, self.is_complete) = (later.stand, later.is_complete);
        }
        for (key, times) in later.entries {
            self.set(key, times);
        }
    }

    fn set(&mut self, key: Key, times: Option<Box<[u8]>>) {
        let is_gone = times.is_none();
        let before = if is_gone && self.is_whole { self.entries.remove(&key) } else { self.entries.insert(key, times) };
        self.gone_len -= usize::from(matches!(before, Some(None)));
        self.gone_len += usize::from(is_gone && !self.is_whole);
        if self.gone_len > GONE_LEN_MAX {
            self.entries.retain(|_, times| times.is_some());
            self.gone_len = 0;
        }
    }

    /// Says of keys that they left, without being a change of the set.
    pub(super) fn forget(&mut self, keys: Vec<Key>) {
        keys.into_iter().for_each(|key| self.set(key, None));
    }

    /// Returns the entries, sorted by key; `None`: it left.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.entries.iter().map(|(key, times)| (&**key, times.as_deref()))
    }

    /// Returns whether something is said of the key.
    pub(super) fn has(&self, key: &[u8]) -> bool {
        self.entries.contains_key(key)
    }

    /// Returns whether what was there before goes first.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Returns whether there was no change.
    pub(super) fn is_empty(&self) -> bool {
        self.stand.is_none()
    }

    /// Returns session and serial of the last change, if there was one.
    pub(super) fn stand(&self) -> Option<(Session, u64)> {
        self.stand
    }

    /// Returns whether the last change was marked as the last.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }
}
