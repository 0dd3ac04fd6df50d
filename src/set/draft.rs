//! The set in the hands of its one writer.
//!
//! A [`Draft`] takes changes and publishes them together: [`Draft::commit`] makes one snapshot, and a new serial only
//! if the members or their apps differ from the last one. Between commits readers see nothing of it, except that the
//! times of a sighting are live. What changed is noted by address as it happens, so a commit costs what the batch
//! changed and nothing more.
//!
//! Where others hold the set elsewhere, [`Draft::publish`] takes the place of a commit: the [`Batch`] that it returns
//! says what they must be told, and its grants count once they have confirmed them.

use std::net::IpAddr;
use std::sync::Arc;

use super::batch::{Batch, Step};
use super::delta::{Delta, Item, walk};
use super::expiry::Expiry;
use super::history::{History, Publisher, Reader};
use super::serial::Session;
use super::sighting::{Host, NameRecord, Need, Sighting};
use super::sizes::Sizes;
use super::snapshot::{Content, Snapshot, StaticEntry};
use super::tree::Tree;
use crate::catalogue::AppId;
use crate::clock::Timestamp;
use crate::metrics::Registry;
use crate::name::Name;

/// The set as its writer changes it.
#[derive(Debug)]
pub struct Draft {
    pub(super) publisher: Publisher,
    session: Session,
    serial: u64,
    changed: Timestamp,
    statics: Arc<[StaticEntry]>,
    pub(super) hosts: Tree,
    pub(super) sighting_count: usize,
    pub(super) expiry: Expiry,
    pub(super) sizes: Sizes,
    /// The apps that each host touched since the last commit had before; `None` if it was not there. The first entry
    /// of an address is how it stood at the last commit.
    pub(super) hosts_before: Vec<(IpAddr, Option<Arc<[AppId]>>)>,
    /// The static prefixes of the last commit, if they were replaced since.
    statics_before: Option<Arc<[StaticEntry]>>,
    /// Hosts whose end moved since the last commit.
    renewed: Vec<IpAddr>,
    /// What others must be told since the last commit.
    pub(super) steps: Vec<Step>,
    /// The next publication begins the history, under a new serial whatever it holds.
    pub(super) begins: bool,
}

impl Draft {
    /// Begins with the empty set, serial 0 of `session`.
    pub fn new(session: Session, now: Timestamp, registry: &Registry) -> Self {
        Self::with_serial(session, 0, now, registry)
    }

    /// Goes on with a session after `serial`: the first publication has the next serial, and the history begins with
    /// it, since nobody knows any more what the serials before it held. After serial 0 nothing was published yet, and
    /// nothing is gone on with.
    pub fn resume(session: Session, serial: u64, now: Timestamp, registry: &Registry) -> Self {
        Self { begins: serial > 0, ..Self::with_serial(session, serial, now, registry) }
    }

    fn with_serial(session: Session, serial: u64, now: Timestamp, registry: &Registry) -> Self {
        let statics: Arc<[StaticEntry]> = Arc::default();
        let empty = Content { session, serial, changed: now, statics: Arc::clone(&statics), hosts: Tree::default() };
        Self {
            publisher: Publisher::new(History::new(Snapshot::new(empty))),
            session,
            serial,
            changed: now,
            statics,
            hosts: Tree::default(),
            sighting_count: 0,
            expiry: Expiry::default(),
            sizes: Sizes::new(registry),
            hosts_before: Vec::new(),
            statics_before: None,
            renewed: Vec::new(),
            steps: Vec::new(),
            begins: false,
        }
    }

    /// Adds a sighting; its host comes with its first one. What it was granted is asked of those who hold the set
    /// elsewhere, and counts once the batch is confirmed.
    ///
    /// A sighting of the same name at the same address must have been taken out before.
    pub fn insert(&mut self, mut sighting: Sighting) -> Arc<Sighting> {
        let grant = sighting.take_grant();
        let sighting = self.put_back(sighting);
        self.steps.push(Step::Grant(Arc::clone(&sighting), grant));
        sighting
    }

    /// Adds a sighting that takes the place of one taken out in this batch: what was granted to that one holds.
    pub fn put_back(&mut self, sighting: Sighting) -> Arc<Sighting> {
        let sighting = Arc::new(sighting);
        let addr = sighting.addr();
        let before = self.hosts.get(addr).cloned();
        self.touch(addr, before.as_ref());
        self.hosts.insert(match before {
            Some(host) => host.with(Arc::clone(&sighting)),
            None => Host::new(Arc::clone(&sighting)),
        });
        self.publisher.names().write().insert(Arc::clone(&sighting));
        self.expiry.push(Arc::clone(&sighting));
        self.sighting_count += 1;
        sighting
    }

    /// Lets a sighting that is in the set last until `need`, asking for a later grant if need be. Returns whether it
    /// had to ask.
    pub fn renew(&mut self, sighting: &Arc<Sighting>, need: &Need) -> bool {
        let raised = sighting.raise(need);
        if raised.end_moved {
            self.renewed.push(sighting.addr());
        }
        if let Some(grant) = raised.grant {
            self.steps.push(Step::Grant(Arc::clone(sighting), grant));
        }
        raised.grant.is_some()
    }

    /// Takes a sighting out that was marked as left; its host goes with its last one.
    pub fn remove(&mut self, sighting: &Sighting) {
        let addr = sighting.addr();
        let Some(host) = self.hosts.get(addr).cloned() else { return };
        let Some(own) = host.sighting(sighting.name()).filter(|one| std::ptr::eq(&***one, sighting)) else { return };
        self.steps.push(Step::Gone(Arc::clone(own)));
        self.touch(addr, Some(&host));
        match host.without(sighting.name()) {
            Some(rest) => self.hosts.insert(rest),
            None => drop(self.hosts.remove(addr)),
        }
        self.publisher.names().write().remove(sighting);
        self.sighting_count -= 1;
    }

    /// Takes a sighting out as [`Self::remove`] does, for want of room, before the `end` that it had.
    pub fn evict(&mut self, sighting: &Arc<Sighting>, end: Timestamp) {
        self.remove(sighting);
        self.steps.push(Step::Evicted(Arc::clone(sighting), end));
    }

    /// Returns one sighting that has ended by `now`, marked as left and still to be removed; `None` once there is none.
    pub fn due(&mut self, now: Timestamp) -> Option<Arc<Sighting>> {
        self.expiry.pop(now)
    }

    /// Replaces the static prefixes. They are sorted here; entries of one prefix are joined.
    pub fn set_statics(&mut self, entries: Vec<StaticEntry>) {
        let before = std::mem::replace(&mut self.statics, joined(entries));
        self.statics_before.get_or_insert(before);
    }

    /// Publishes what changed, with nobody else to ask; returns the serial of now.
    pub fn commit(&mut self, now: Timestamp) -> u64 {
        self.publish(now).confirm();
        self.serial
    }

    /// Publishes what changed; returns what others must be told of it.
    pub fn publish(&mut self, now: Timestamp) -> Batch {
        let statics_changed = self.statics_before.is_some();
        let delta = self.take_delta();
        if std::mem::take(&mut self.begins) {
            self.begin(delta, now);
        } else if let Some(delta) = delta {
            let delta = (!delta.is_empty()).then_some(delta);
            if let Some(delta) = &delta {
                self.serial = delta.to;
                self.changed = now;
                self.sizes.count(delta);
            }
            self.publisher.publish(self.snapshot(), delta);
        }
        self.sizes.set_sightings(self.sighting_count);
        self.expiry.sweep(self.sighting_count);
        self.tell_renewed();
        Batch::new(std::mem::take(&mut self.steps), statics_changed)
    }

    fn begin(&mut self, delta: Option<Delta>, now: Timestamp) {
        let delta = delta.unwrap_or_else(|| Delta::empty(self.serial, self.serial + 1));
        self.serial = delta.to;
        self.changed = now;
        self.sizes.count(&delta);
        self.publisher.begin(self.snapshot());
    }

    /// Returns the session.
    pub fn session(&self) -> Session {
        self.session
    }

    /// Returns the serial of the last publication.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Returns the static prefixes, as changed so far.
    pub fn statics(&self) -> &Arc<[StaticEntry]> {
        &self.statics
    }

    /// Returns no later than when the next sighting ends; `None` if there is none.
    pub fn next_end(&self) -> Option<Timestamp> {
        self.expiry.next_end()
    }

    /// Returns how many steps others must be told of so far.
    pub fn step_count(&self) -> usize {
        self.steps.len()
    }

    /// Returns the host at `addr`, as changed so far.
    pub fn host(&self, addr: IpAddr) -> Option<&Host> {
        self.hosts.get(addr)
    }

    /// Returns the hosts, as changed so far, sorted.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter()
    }

    /// Returns how many hosts there are, as changed so far.
    pub fn host_count(&self) -> usize {
        self.hosts.len()
    }

    /// Returns how many sightings there are, as changed so far.
    pub fn sighting_count(&self) -> usize {
        self.sighting_count
    }

    /// Returns the record that the sightings of `name` share, if it has any.
    pub fn record(&self, name: &Name) -> Option<Arc<NameRecord>> {
        self.publisher.names().read().record(name).cloned()
    }

    /// Returns the records of all names that have sightings, in no order.
    pub fn records(&self) -> Vec<Arc<NameRecord>> {
        self.publisher.names().read().records().cloned().collect()
    }

    /// Returns the sightings of `name`, in no order.
    pub fn sightings_of(&self, name: &Name) -> Vec<Arc<Sighting>> {
        self.publisher.names().read().sightings(name).to_vec()
    }

    /// Returns how many addresses `name` has.
    pub fn address_count(&self, name: &Name) -> usize {
        self.publisher.names().read().sightings(name).len()
    }

    /// Returns a read side.
    pub fn reader(&self) -> Reader {
        self.publisher.reader()
    }

    /// Remembers that `addr` changes; `host` is what stands there before.
    fn touch(&mut self, addr: IpAddr, host: Option<&Host>) {
        self.hosts_before.push((addr, host.map(Host::apps)));
    }

    /// Returns the delta since the last commit, maybe empty; `None` if nothing was touched.
    fn take_delta(&mut self) -> Option<Delta> {
        let mut touched = std::mem::take(&mut self.hosts_before);
        // Stable, so of several changes to one address the first is kept.
        touched.sort_by_key(|(addr, _)| *addr);
        touched.dedup_by_key(|(addr, _)| *addr);
        let statics_before = self.statics_before.take();
        if touched.is_empty() && statics_before.is_none() {
            return None;
        }
        let (mut before, mut after) = (Vec::new(), Vec::with_capacity(touched.len()));
        if let Some(statics) = statics_before {
            before.extend(statics.iter().map(Item::from));
            after.extend(self.statics.iter().map(Item::from));
        }
        for (addr, apps) in touched {
            before.extend(apps.map(|apps| Item::Host { addr, apps }));
            after.extend(self.hosts.get(addr).map(Item::from));
        }
        before.sort_unstable_by_key(Item::key);
        after.sort_unstable_by_key(Item::key);
        let mut delta = Delta::empty(self.serial, self.serial + 1);
        walk(&before, &after, |was, is| delta.note(was.cloned(), is.cloned()));
        Some(delta)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::new(Content {
            session: self.session,
            serial: self.serial,
            changed: self.changed,
            statics: Arc::clone(&self.statics),
            hosts: self.hosts.clone(),
        })
    }

    fn tell_renewed(&mut self) {
        if self.renewed.is_empty() {
            return;
        }
        let mut addrs = std::mem::take(&mut self.renewed);
        addrs.sort_unstable();
        addrs.dedup();
        let ends = addrs.into_iter().filter_map(|addr| Some((addr, self.hosts.get(addr)?.end())));
        self.publisher.renewed(ends.collect());
    }
}

/// Sorts entries and joins those of one prefix.
fn joined(mut entries: Vec<StaticEntry>) -> Arc<[StaticEntry]> {
    entries.sort_by_key(|entry| entry.prefix);
    let mut joined: Vec<StaticEntry> = Vec::with_capacity(entries.len());
    for entry in entries {
        match joined.last_mut().filter(|last| last.prefix == entry.prefix) {
            Some(last) => {
                last.apps = super::sighting::apps_sorted(last.apps.iter().chain(entry.apps.iter()).cloned());
            }
            None => {
                joined.push(StaticEntry { apps: super::sighting::apps_sorted(entry.apps.iter().cloned()), ..entry })
            }
        }
    }
    joined.into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{START, addr, draft, entry, record, sighting};
    use super::super::{Event, Selection, Since};
    use super::*;

    fn leave(draft: &mut Draft, sighting: &Sighting) {
        sighting.leave_if(|_| true).unwrap();
        draft.remove(sighting);
    }

    #[test]
    fn batch_makes_one_serial_and_a_later_end_none() {
        let mut draft = draft();
        let reader = draft.reader();
        let zoom = record("zoom.example", &["zoom"]);
        let one = draft.insert(sighting(addr(1, true), &zoom, START));
        draft.insert(sighting(addr(0, true), &zoom, START));
        assert_eq!(draft.commit(START), 1);
        assert_eq!(reader.snapshot().prefixes(&Selection::default()), ["192.0.0.0/31".parse().unwrap()]);

        let later = START.after(Duration::from_secs(10));
        draft.renew(&one, &Need::new(later, Duration::from_secs(60), Duration::ZERO, Duration::from_secs(2000)));
        assert_eq!(draft.commit(later), 1);
        assert_eq!(reader.since(Session(7), 1), Since::Current);
        assert_eq!(reader.snapshot().changed(), START);

        let end = START.after(Duration::from_secs(900));
        let last = draft.due(end).unwrap();
        draft.remove(&last);
        assert!(draft.due(end).is_none(), "the renewed one stays");
        assert_eq!(draft.commit(end), 2);
        let Since::Delta(delta) = reader.since(Session(7), 1) else { panic!("one step behind") };
        assert_eq!(delta.withdrawn.len(), 1);
        assert_eq!(delta.withdrawn[0].prefix(), "192.0.0.0/32".parse().unwrap());
    }

    #[test]
    fn batch_that_undoes_itself_makes_no_serial() {
        let mut draft = draft();
        let zoom = record("zoom.example", &["zoom"]);
        let one = draft.insert(sighting(addr(1, true), &zoom, START));
        leave(&mut draft, &one);
        assert_eq!(draft.commit(START), 0);
        draft.set_statics(vec![entry("198.51.100.0/24", &["zoom"])]);
        assert_eq!(draft.commit(START), 1);
        draft.set_statics(vec![entry("198.51.100.0/24", &["zoom"])]);
        assert_eq!(draft.commit(START), 1);
    }

    #[test]
    fn second_name_at_an_address_counts_only_if_the_apps_change() {
        let mut draft = draft();
        let reader = draft.reader();
        draft.insert(sighting(addr(1, true), &record("a.test", &["zoom"]), START));
        assert_eq!(draft.commit(START), 1);
        let twin = draft.insert(sighting(addr(1, true), &record("b.test", &["zoom"]), START));
        assert_eq!(draft.commit(START), 1);
        assert_eq!(reader.snapshot().host(addr(1, true)).unwrap().sightings().len(), 2, "published all the same");
        draft.insert(sighting(addr(1, true), &record("c.test", &["webex", "zoom"]), START));
        assert_eq!(draft.commit(START), 2);
        leave(&mut draft, &twin);
        assert_eq!(draft.commit(START), 2);
        assert_eq!(reader.snapshot().host_count(crate::prefix::Family::V4), 1);
        assert_eq!(reader.sightings_of(twin.name()).len(), 0);
    }

    #[test]
    fn statics_of_one_prefix_are_joined() {
        let mut draft = draft();
        draft.set_statics(vec![
            entry("2001:db8::/32", &["b"]),
            entry("192.0.2.0/24", &["b"]),
            entry("192.0.2.0/24", &["c", "a"]),
        ]);
        draft.commit(START);
        let snapshot = draft.reader().snapshot();
        assert_eq!(snapshot.statics(), [entry("192.0.2.0/24", &["a", "b", "c"]), entry("2001:db8::/32", &["b"])]);
    }

    #[test]
    fn gauges_follow_the_set() {
        let registry = Registry::new();
        let mut draft = Draft::new(Session(1), START, &registry);
        draft.set_statics(vec![entry("192.0.2.0/24", &["zoom"])]);
        let one = draft.insert(sighting(addr(1, false), &record("a.test", &["webex", "zoom"]), START));
        draft.insert(sighting(addr(2, false), &record("b.test", &["webex"]), START));
        draft.commit(START);
        leave(&mut draft, &one);
        draft.commit(START);
        let text = String::from_utf8(registry.render()).unwrap();
        for line in [
            r#"greenlane_set_entries{family="4",origin="learned"} 0"#,
            r#"greenlane_set_entries{family="4",origin="static"} 1"#,
            r#"greenlane_set_entries{family="6",origin="learned"} 1"#,
            r#"greenlane_set_app_entries{app="webex",family="6",origin="learned"} 1"#,
            r#"greenlane_set_app_entries{app="zoom",family="6",origin="learned"} 0"#,
            r#"greenlane_set_app_entries{app="zoom",family="4",origin="static"} 1"#,
            "greenlane_set_serial 2",
            "greenlane_set_sightings 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[tokio::test]
    async fn subscriber_hears_of_serials_and_later_ends() {
        let mut draft = draft();
        let mut events = draft.reader().subscribe();
        let one = draft.insert(sighting(addr(1, true), &record("a.test", &["zoom"]), START));
        draft.commit(START);
        assert_eq!(events.next().await, Event::Changed { serial: 1 });
        let need = Need::new(START, Duration::from_secs(5000), Duration::ZERO, Duration::ZERO);
        draft.renew(&one, &need);
        draft.commit(START);
        assert_eq!(events.next().await, Event::Renewed([(addr(1, true), need.end)].into()));
        for n in 2..2000 {
            draft.insert(sighting(addr(n, true), &record("a.test", &["zoom"]), START));
            draft.commit(START);
        }
        assert_eq!(events.next().await, Event::Lagged);
        assert!(matches!(events.next().await, Event::Changed { .. }));
    }
}
