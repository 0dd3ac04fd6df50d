//! One address seen for one name, and all that is seen at one address.
//!
//! A [`Sighting`] joins an address with the [`NameRecord`] of a listed name; sightings of one name share the record.
//! A [`Host`] is an address with its sightings, never empty, sorted by name; it leaves the set with its last one.
//!
//! Who belongs to a snapshot is immutable, *when* a sighting ends is not: the times stand behind a lock of their own
//! and are shared by every snapshot that holds the sighting. So a later end costs no copy and no serial, and an answer
//! whose addresses are all known extends them itself, without waiting for the writer:
//!
//! ```text
//!   last_seen ≤ told_until ≤ end   ≤   granted
//!   └ asked     └ TTL told   │         └ what store and sinks hold: `end` plus slack, so that repeats rarely write
//!                            └ when our own clock withdraws it
//! ```
//!
//! A grant is asked for by the writer and counts once store and sinks have confirmed it; until then `granted` stays
//! behind `end`, and whoever needs the address waits. Each of the four only ever grows. *Left* is final: the writer marks a sighting before it takes it out, and
//! [`Sighting::extend`] fails from then on, so no extension is ever lost to an expiry at the same moment.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::catalogue::{AppId, Tag};
use crate::clock::Timestamp;
use crate::name::Name;

/// A listed name with its tag, shared by all its sightings.
#[derive(Debug)]
pub struct NameRecord {
    name: Name,
    tag: Tag,
    apps: Arc<[AppId]>,
}

impl NameRecord {
    /// Puts a name and its tag together.
    pub fn new(name: Name, tag: Tag) -> Self {
        let apps = apps_sorted(tag.apps().iter().map(|hit| hit.app.clone()));
        Self { name, tag, apps }
    }

    /// Makes the record of another name with the same tag, which both share then.
    #[must_use]
    pub fn with_name(&self, name: Name) -> Self {
        Self { name, tag: self.tag.clone(), apps: Arc::clone(&self.apps) }
    }

    /// Returns the listed name that was asked.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Returns the apps that want it, with their triggers.
    pub fn tag(&self) -> &Tag {
        &self.tag
    }

    /// Returns the ids of these apps, sorted, each once.
    pub fn apps(&self) -> &Arc<[AppId]> {
        &self.apps
    }
}

/// Sorts app ids and drops repeats.
pub fn apps_sorted(apps: impl IntoIterator<Item = AppId>) -> Arc<[AppId]> {
    let mut apps: Vec<AppId> = apps.into_iter().collect();
    apps.sort_unstable();
    apps.dedup();
    apps.into()
}

/// What one answer needs of a sighting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// When the answer was given.
    pub now: Timestamp,
    /// When the TTL that the client was told ends.
    pub told_until: Timestamp,
    /// No earlier than this may the address leave: the need of the answer plus its grace.
    pub end: Timestamp,
    /// What is granted to store and sinks if the end that they hold is too early: `end` plus slack.
    pub grant: Timestamp,
}

impl Need {
    /// The longest slack of a grant: an address outlives its end by no more than this after a crash.
    pub const SLACK_MAX: Duration = Duration::from_secs(600);

    /// Works out what an answer told at `now` with `ttl` needs: `now + max(ttl, min_hold) + grace`, granted with the
    /// same again as slack, at most [`Self::SLACK_MAX`].
    pub fn new(now: Timestamp, ttl: Duration, min_hold: Duration, grace: Duration) -> Self {
        let span = ttl.max(min_hold).saturating_add(grace);
        let end = now.after(span);
        Self { now, told_until: now.after(ttl), end, grant: end.after(span.min(Self::SLACK_MAX)) }
    }
}

/// Ends of a set that is shared are whole multiples of this, so that a sighting in constant use tells the others of a
/// later end no more often.
pub const SHARED_STEP: Duration = Duration::from_secs(30);

impl Need {
    /// The same for a set that several resolvers share, where an end is all that they know of each other's answers: it
    /// is rounded up to a whole [`SHARED_STEP`], and a client counts as told until the grace begins.
    pub fn shared(now: Timestamp, ttl: Duration, min_hold: Duration, grace: Duration) -> Self {
        let step = u64::try_from(SHARED_STEP.as_millis()).unwrap_or(u64::MAX);
        let exact = Self::new(now, ttl, min_hold, grace).end.as_millis();
        let end = Timestamp::from_millis(exact.div_ceil(step).saturating_mul(step));
        Self::heard(now, end, grace)
    }

    /// What it takes to hold a sighting until an end that another resolver has set.
    pub fn heard(now: Timestamp, end: Timestamp, grace: Duration) -> Self {
        let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let told_until = Timestamp::from_millis(end.as_millis().saturating_sub(grace_millis));
        Self { now, told_until, end, grant: end.after(end.since(now).min(Self::SLACK_MAX)) }
    }
}

/// The times of a sighting; none ever goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// When an answer last gave this address for this name.
    pub last_seen: Timestamp,
    /// When the last TTL that a client was told ends.
    pub told_until: Timestamp,
    /// When the sighting ends.
    pub end: Timestamp,
    /// The end that store and sinks hold; before `end` while they are still to confirm it.
    pub granted: Timestamp,
}

impl Times {
    fn raise(&mut self, need: &Need) {
        self.last_seen = self.last_seen.max(need.now);
        self.told_until = self.told_until.max(need.told_until);
        self.end = self.end.max(need.end);
    }
}

impl From<Need> for Times {
    fn from(need: Need) -> Self {
        Self { last_seen: need.now, told_until: need.told_until, end: need.end, granted: need.grant }
    }
}

/// What an attempt to extend a sighting came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extended {
    /// What was granted covers the need and so does the end now; the end stood that late already.
    Known,
    /// What was granted covers the need; the end is later than before.
    Renewed,
    /// What store and sinks hold ends too early, or the sighting has left: the writer has to grant anew.
    Short,
}

/// What [`Sighting::raise`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Raised {
    /// The end is later than before.
    pub(crate) end_moved: bool,
    /// What store and sinks hold ends too early for the need: they must be asked to hold the address until then.
    pub(crate) grant: Option<Timestamp>,
}

/// One address seen for one listed name.
///
/// 80 octets on the heap; the times cost an uncontended lock of some 10 ns to read.
#[derive(Debug)]
pub struct Sighting {
    addr: IpAddr,
    record: Arc<NameRecord>,
    first_seen: Timestamp,
    /// `end` is [`LEFT`] once the sighting has left.
    times: Mutex<Times>,
}

/// The end of a sighting that has left; no clock of ours shows the epoch.
const LEFT: Timestamp = Timestamp::from_millis(0);

impl Sighting {
    /// Makes a sighting.
    pub fn new(addr: IpAddr, record: Arc<NameRecord>, first_seen: Timestamp, times: Times) -> Self {
        Self { addr, record, first_seen, times: Mutex::new(times) }
    }

    /// Returns the address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Returns the listed name.
    pub fn name(&self) -> &Name {
        &self.record.name
    }

    /// Returns the tag of the name.
    pub fn tag(&self) -> &Tag {
        &self.record.tag
    }

    /// Returns the name with its tag, as shared by all sightings of it.
    pub fn record(&self) -> &Arc<NameRecord> {
        &self.record
    }

    /// Returns when the address was first seen for this name.
    pub fn first_seen(&self) -> Timestamp {
        self.first_seen
    }

    /// Returns when it was last seen.
    pub fn last_seen(&self) -> Timestamp {
        self.times.lock().last_seen
    }

    /// Returns when the last TTL that a client was told ends.
    pub fn told_until(&self) -> Timestamp {
        self.times.lock().told_until
    }

    /// Returns when the sighting ends; the epoch once it has left.
    pub fn end(&self) -> Timestamp {
        self.times.lock().end
    }

    /// Returns the end that store and sinks hold; the epoch before they have confirmed any.
    pub fn granted(&self) -> Timestamp {
        self.times.lock().granted
    }

    /// Returns all times at one instant.
    pub fn times(&self) -> Times {
        *self.times.lock()
    }

    /// Returns whether the sighting was taken out of the set.
    pub fn has_left(&self) -> bool {
        self.times.lock().end == LEFT
    }

    /// Extends the sighting to what an answer needs, if what was granted covers that; changes nothing otherwise.
    ///
    /// Any thread may call this. After it returned anything but [`Extended::Short`], the writer keeps the address
    /// until `need.end` at least, unless its name is no longer listed.
    pub fn extend(&self, need: &Need) -> Extended {
        let mut times = self.times.lock();
        if times.end == LEFT || times.granted < need.end {
            return Extended::Short;
        }
        let before = times.end;
        times.raise(need);
        if times.end > before { Extended::Renewed } else { Extended::Known }
    }

    /// Extends the sighting, whatever store and sinks hold; for the writer alone.
    pub(crate) fn raise(&self, need: &Need) -> Raised {
        let mut times = self.times.lock();
        if times.end == LEFT {
            return Raised { end_moved: false, grant: None };
        }
        let before = times.end;
        times.raise(need);
        // An end that failed to be granted before counts, too.
        let grant = (times.granted < need.end).then(|| need.grant.max(times.end));
        Raised { end_moved: times.end > before, grant }
    }

    /// Notes that store and sinks hold the sighting until `grant`; for the writer alone.
    pub(crate) fn confirm(&self, grant: Timestamp) {
        let mut times = self.times.lock();
        times.granted = times.granted.max(grant);
    }

    /// Takes back what was granted, to be confirmed yet, and returns it; for the writer alone.
    pub(crate) fn take_grant(&mut self) -> Timestamp {
        std::mem::take(&mut self.times.get_mut().granted)
    }

    /// Marks the sighting as left if `may_leave` agrees to its times of this moment; `None` if it stays or had left.
    pub(crate) fn leave_if(&self, may_leave: impl FnOnce(&Times) -> bool) -> Option<Times> {
        let mut times = self.times.lock();
        if times.end == LEFT || !may_leave(&times) {
            return None;
        }
        let last = *times;
        times.end = LEFT;
        Some(last)
    }
}

/// An address of the set with its sightings: never empty, sorted by name, each name once.
#[derive(Clone, Debug)]
pub struct Host {
    sightings: Sightings,
}

/// One sighting is by far the most common case and costs no list.
#[derive(Clone, Debug)]
enum Sightings {
    One(Arc<Sighting>),
    Many(Arc<Vec<Arc<Sighting>>>),
}

impl Host {
    /// Makes a host of its first sighting.
    pub(crate) fn new(sighting: Arc<Sighting>) -> Self {
        Self { sightings: Sightings::One(sighting) }
    }

    /// Makes a host of its sightings: at least one, sorted by name, each name once.
    pub(crate) fn of_many(sightings: Vec<Arc<Sighting>>) -> Self {
        Self { sightings: Sightings::of(sightings) }
    }

    /// Adds a sighting; one of the same name is replaced.
    pub(crate) fn with(&self, sighting: Arc<Sighting>) -> Self {
        let mut list = self.sightings().to_vec();
        match list.binary_search_by(|one| one.name().cmp(sighting.name())) {
            Ok(at) => list[at] = sighting,
            Err(at) => list.insert(at, sighting),
        }
        Self { sightings: Sightings::of(list) }
    }

    /// Takes the sighting of `name` out; `None` if nothing is left.
    pub(crate) fn without(&self, name: &Name) -> Option<Self> {
        let list: Vec<_> = self.sightings().iter().filter(|one| one.name() != name).cloned().collect();
        (!list.is_empty()).then(|| Self { sightings: Sightings::of(list) })
    }

    /// Returns the address.
    pub fn addr(&self) -> IpAddr {
        // Never empty: made of one sighting, and gone with the last.
        self.sightings()[0].addr
    }

    /// Returns the sightings, sorted by name; at least one.
    pub fn sightings(&self) -> &[Arc<Sighting>] {
        match &self.sightings {
            Sightings::One(one) => std::slice::from_ref(one),
            Sightings::Many(list) => list,
        }
    }

    /// Returns the sighting of `name`.
    pub fn sighting(&self, name: &Name) -> Option<&Arc<Sighting>> {
        let list = self.sightings();
        list.binary_search_by(|one| one.name().cmp(name)).ok().map(|at| &list[at])
    }

    /// Returns when the last of its sightings ends.
    pub fn end(&self) -> Timestamp {
        self.sightings().iter().map(|one| one.end()).max().unwrap_or_default()
    }

    /// Returns the apps that want the address, sorted, each once.
    pub fn apps(&self) -> Arc<[AppId]> {
        let [first, more @ ..] = self.sightings() else { return Arc::default() };
        if more.iter().all(|one| one.record.apps == first.record.apps) {
            return Arc::clone(&first.record.apps);
        }
        apps_sorted(self.sightings().iter().flat_map(|one| one.record.apps.iter().cloned()))
    }

    /// Returns whether one of `apps` wants the address.
    pub fn has_any_app(&self, apps: &[AppId]) -> bool {
        self.sightings().iter().any(|one| one.record.apps.iter().any(|app| apps.contains(app)))
    }
}

impl Sightings {
    fn of(mut list: Vec<Arc<Sighting>>) -> Self {
        match (list.pop(), list.is_empty()) {
            (Some(one), true) => Self::One(one),
            (last, _) => {
                list.extend(last);
                list.shrink_to_fit();
                Self::Many(Arc::new(list))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{START, addr, record, sighting};
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn shared_ends_are_whole_steps_and_never_earlier_than_an_answer_needs() {
        let secs = Duration::from_secs;
        for (now, ttl, grace) in [(1_000_000, 60, 300), (1_000_001, 3600, 0), (29_999, 0, 1)] {
            let now = Timestamp::from_millis(now);
            let (own, shared) = (
                Need::new(now, secs(ttl), secs(600), secs(grace)),
                Need::shared(now, secs(ttl), secs(600), secs(grace)),
            );
            assert!(shared.end >= own.end && shared.end.since(own.end) < SHARED_STEP);
            assert_eq!(shared.end.as_millis() % 30_000, 0);
            assert!(shared.told_until >= own.told_until && shared.told_until <= shared.end);
            assert!(shared.grant >= shared.end);
            assert_eq!(
                Need::shared(now.after(Duration::from_millis(1)), secs(ttl), secs(600), secs(grace))
                    .end
                    .since(shared.end)
                    .as_millis()
                    % 30_000,
                0
            );
        }
        let last = Need::shared(Timestamp::from_millis(u64::MAX - 5), Duration::MAX, Duration::MAX, Duration::MAX);
        assert_eq!(last.end, Timestamp::from_millis(u64::MAX));
    }

    #[test]
    fn need_is_the_longer_of_ttl_and_hold_plus_grace() {
        let need = Need::new(START, secs(60), secs(600), secs(300));
        assert_eq!(need.told_until, START.after(secs(60)));
        assert_eq!(need.end, START.after(secs(900)));
        assert_eq!(need.grant, START.after(secs(1500)), "the need again, at most ten minutes");
        let need = Need::new(START, secs(3600), secs(600), secs(300));
        assert_eq!((need.end, need.grant), (START.after(secs(3900)), START.after(secs(4500))));
        let need = Need::new(START, secs(5), secs(0), secs(2));
        assert_eq!((need.end, need.grant), (START.after(secs(7)), START.after(secs(14))));
        let need = Need::new(START, Duration::MAX, Duration::MAX, Duration::MAX);
        assert!(need.end <= need.grant);
    }

    #[test]
    fn no_offer_shortens_an_end() {
        let one = sighting(addr(1, true), &record("a.test", &["a"]), START);
        let before = one.times();
        assert_eq!(one.extend(&Need::new(START, secs(1), secs(1), secs(1))), Extended::Known);
        let raised = one.raise(&Need::new(START, secs(1), secs(1), secs(1)));
        assert_eq!(raised, Raised { end_moved: false, grant: None });
        assert_eq!(one.times(), before);
    }

    #[test]
    fn extension_beyond_the_grant_needs_a_confirmed_one() {
        let one = sighting(addr(1, true), &record("a.test", &["a"]), START);
        let now = START.after(secs(600));
        assert_eq!(one.extend(&Need::new(now, secs(60), secs(600), secs(300))), Extended::Renewed);
        let now = START.after(secs(601));
        let need = Need::new(now, secs(60), secs(600), secs(300));
        assert_eq!(one.extend(&need), Extended::Short);
        assert_eq!(one.end(), START.after(secs(1500)), "left as it was");
        assert_eq!(one.raise(&need), Raised { end_moved: true, grant: Some(need.grant) });
        assert_eq!((one.end(), one.granted()), (need.end, START.after(secs(1500))), "nobody has confirmed it");
        assert_eq!(one.extend(&need), Extended::Short);
        one.confirm(need.grant);
        assert_eq!(one.extend(&need), Extended::Known);
    }

    #[test]
    fn host_keeps_its_sightings_sorted_and_unites_their_apps() {
        let at = addr(1, true);
        let make = |name: &str, apps: &[&str]| Arc::new(sighting(at, &record(name, apps), START));
        let host = Host::new(make("m.test", &["b", "a"]));
        assert_eq!(host.apps().iter().map(AppId::as_str).collect::<Vec<_>>(), ["a", "b"]);
        let host = host.with(make("z.test", &["c"])).with(make("a.test", &["a"])).with(make("z.test", &["d"]));
        let names: Vec<_> = host.sightings().iter().map(|one| one.name().to_string()).collect();
        assert_eq!(names, ["a.test", "m.test", "z.test"]);
        assert_eq!(host.apps().iter().map(AppId::as_str).collect::<Vec<_>>(), ["a", "b", "d"]);
        let host = host.without(&"m.test".parse().unwrap()).unwrap();
        assert!(host.sighting(&"m.test".parse().unwrap()).is_none());
        let host = host.without(&"a.test".parse().unwrap()).unwrap();
        assert!(matches!(host.sightings, Sightings::One(_)));
        assert!(host.without(&"z.test".parse().unwrap()).is_none());
    }
}
