//! What one publication asks of those who hold the set elsewhere.
//!
//! The draft notes each step as it happens: a sighting wants to be held until some instant, or is gone. A [`Batch`] is
//! the steps of one publication. [`Draft::change`] words them as a [`Change`], reduced to what differs from what is
//! held already; [`Batch::confirm`] lets the grants count, once all who were waited for hold them. A batch that is
//! dropped unconfirmed leaves its sightings short, so that the next answer with these addresses asks again.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::draft::Draft;
use super::outlet::{Change, Kept, SightingChange};
use super::sighting::{Host, Sighting};
use crate::clock::Timestamp;

/// What became of one sighting.
#[derive(Debug)]
pub(crate) enum Step {
    /// It must be held until then.
    Grant(Arc<Sighting>, Timestamp),
    /// It left.
    Gone(Arc<Sighting>),
    /// It left before this end, to make room.
    Evicted(Arc<Sighting>, Timestamp),
}

/// The steps of one publication; to be [confirmed](Self::confirm).
#[derive(Debug)]
pub struct Batch {
    steps: Vec<Step>,
    statics_changed: bool,
}

impl Batch {
    pub(crate) fn new(steps: Vec<Step>, statics_changed: bool) -> Self {
        Self { steps, statics_changed }
    }

    /// Notes that everything that was asked for is held.
    pub fn confirm(self) {
        for step in self.steps {
            if let Step::Grant(sighting, grant) = step {
                sighting.confirm(grant);
            }
        }
    }
}

impl Draft {
    /// Words a batch that was just published: what those who hold the set elsewhere must do.
    pub fn change(&self, batch: &Batch, now: Timestamp) -> Change {
        let mut change = Change::empty(self.session(), self.serial(), now);
        change.statics = batch.statics_changed.then(|| Arc::clone(self.statics()));
        let mut gone: HashSet<IpAddr, RandomState> = HashSet::default();
        for step in &batch.steps {
            match step {
                // What left later in the batch has a step of its own, or was put back.
                Step::Grant(one, _) if one.has_left() => {}
                Step::Grant(one, grant) => {
                    change.sightings.push(SightingChange::Put(kept(one, *grant)));
                    change.hosts.push((one.addr(), Some(*grant)));
                }
                Step::Evicted(one, end) => {
                    if self.host(one.addr()).and_then(|host| host.sighting(one.name())).is_none() {
                        change.evicted.push((one.addr(), one.name().clone(), *end));
                    }
                }
                Step::Gone(one) => {
                    let host = self.host(one.addr());
                    if host.is_none() && gone.insert(one.addr()) {
                        change.hosts.push((one.addr(), None));
                    }
                    if host.and_then(|host| host.sighting(one.name())).is_none() {
                        change.sightings.push(SightingChange::Gone { addr: one.addr(), name: one.name().clone() });
                    }
                }
            }
        }
        // The latest grant of a host counts. A host that is gone has none.
        change.hosts.sort_unstable_by_key(|(addr, until)| (*addr, std::cmp::Reverse(*until)));
        change.hosts.dedup_by_key(|(addr, _)| *addr);
        // One that is held that long for another name already needs nothing.
        change
            .hosts
            .retain(|(addr, until)| until.is_none_or(|until| self.host(*addr).is_none_or(|host| held(host) < until)));
        change
    }

    /// Words the whole set, for somebody who holds nothing of it yet, or has lost track.
    pub fn whole(&self, now: Timestamp) -> Change {
        let hosts = self.hosts().map(|host| (host.addr(), Some(held(host).max(host.end())))).collect();
        let statics = Some(Arc::clone(self.statics()));
        let sightings = self.kept().map(SightingChange::Put).collect();
        Change { whole: true, hosts, statics, sightings, ..Change::empty(self.session(), self.serial(), now) }
    }

    /// Words the last change: every sighting with the end that it has now.
    pub fn last(&self, now: Timestamp) -> Change {
        let sightings = self.kept().map(SightingChange::Put).collect();
        Change { last: true, sightings, ..Change::empty(self.session(), self.serial(), now) }
    }

    fn kept(&self) -> impl Iterator<Item = Kept> {
        self.hosts().flat_map(|host| host.sightings().iter().map(|one| kept(one, one.granted())))
    }
}

/// Returns until when all who were asked hold a host.
fn held(host: &Host) -> Timestamp {
    host.sightings().iter().map(|one| one.granted()).max().unwrap_or_default()
}

fn kept(sighting: &Sighting, grant: Timestamp) -> Kept {
    let kept = Kept::of(sighting);
    Kept { granted: grant.max(kept.granted), ..kept }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{START, addr, draft, entry, record, sighting};
    use super::super::{Extended, Need};
    use super::*;

    fn need(now: Timestamp, ttl_secs: u64) -> Need {
        Need::new(now, Duration::from_secs(ttl_secs), Duration::from_secs(600), Duration::from_secs(300))
    }

    fn after(secs: u64) -> Timestamp {
        START.after(Duration::from_secs(secs))
    }

    /// The names of a change's sightings, `-` before those that are gone.
    fn names(change: &Change) -> Vec<String> {
        let name = |step: &SightingChange| match step {
            SightingChange::Put(kept) => kept.name.to_string(),
            SightingChange::Gone { name, .. } => format!("-{name}"),
        };
        change.sightings.iter().map(name).collect()
    }

    #[test]
    fn grant_counts_once_it_is_confirmed() {
        let mut draft = draft();
        let one = draft.insert(sighting(addr(1, true), &record("a.test", &["a"]), START));
        let batch = draft.publish(START);
        assert_eq!(draft.change(&batch, START).hosts, [(addr(1, true), Some(after(1500)))]);
        assert_eq!(one.extend(&need(START, 60)), Extended::Short, "nobody holds it yet");
        drop(batch);
        assert!(draft.renew(&one, &need(START, 60)), "failed, so it is asked for again");
        let batch = draft.publish(START);
        assert_eq!(draft.change(&batch, START).hosts.len(), 1);
        batch.confirm();
        assert_eq!(one.extend(&need(START, 60)), Extended::Known);
        assert!(!draft.renew(&one, &need(START, 60)));
        let batch = draft.publish(START);
        assert!(draft.change(&batch, START).is_empty());
    }

    #[test]
    fn address_held_long_enough_for_another_name_needs_nothing() {
        let mut draft = draft();
        draft.insert(sighting(addr(1, true), &record("a.test", &["a"]), START));
        draft.commit(START);
        draft.insert(sighting(addr(1, true), &record("b.test", &["a"]), START));
        let batch = draft.publish(START);
        let change = draft.change(&batch, START);
        assert_eq!(change.hosts, []);
        assert_eq!(names(&change), ["b.test"], "but the store must know it");
        batch.confirm();
        let later = after(700);
        let two = draft.host(addr(1, true)).unwrap().sightings()[1].clone();
        assert!(draft.renew(&two, &need(later, 60)));
        let batch = draft.publish(later);
        assert_eq!(draft.change(&batch, later).hosts, [(addr(1, true), Some(after(2200)))]);
    }

    #[test]
    fn host_is_withdrawn_with_its_last_sighting() {
        let mut draft = draft();
        let one = draft.insert(sighting(addr(1, true), &record("a.test", &["a"]), START));
        let two = draft.insert(sighting(addr(1, true), &record("b.test", &["a"]), START));
        draft.commit(START);
        one.leave_if(|_| true).unwrap();
        draft.remove(&one);
        let batch = draft.publish(START);
        let change = draft.change(&batch, START);
        assert_eq!((change.hosts.len(), names(&change)), (0, vec!["-a.test".to_owned()]));
        two.leave_if(|_| true).unwrap();
        draft.remove(&two);
        let batch = draft.publish(START);
        assert_eq!(draft.change(&batch, START).hosts, [(addr(1, true), None)]);
    }

    #[test]
    fn what_is_put_back_is_no_change_and_what_comes_back_is_new() {
        let mut draft = draft();
        let one = draft.insert(sighting(addr(1, true), &record("a.test", &["a"]), START));
        draft.commit(START);
        let times = one.leave_if(|_| true).unwrap();
        draft.remove(&one);
        draft.put_back(Sighting::new(one.addr(), record("a.test", &["b"]), START, times));
        let batch = draft.publish(START);
        assert!(draft.change(&batch, START).is_empty());
        let again = draft.host(addr(1, true)).unwrap().sightings()[0].clone();
        assert_eq!(again.extend(&need(START, 60)), Extended::Known);
        again.leave_if(|_| true).unwrap();
        draft.remove(&again);
        draft.insert(sighting(addr(1, true), &record("a.test", &["a"]), START));
        let batch = draft.publish(START);
        let change = draft.change(&batch, START);
        assert_eq!(change.hosts, [(addr(1, true), Some(after(1500)))]);
        assert_eq!(names(&change), ["a.test"]);
    }

    #[test]
    fn whole_and_last_hold_everything() {
        let mut draft = draft();
        draft.set_statics(vec![entry("198.51.100.0/24", &["a"])]);
        let one = draft.insert(sighting(addr(1, true), &record("a.test", &["a"]), START));
        draft.commit(START);
        assert_eq!(one.extend(&need(after(100), 60)), Extended::Renewed);
        let whole = draft.whole(START);
        assert_eq!(whole.hosts, [(addr(1, true), Some(after(1500)))]);
        assert_eq!(whole.statics.unwrap().len(), 1);
        let last = draft.last(START);
        assert_eq!((last.hosts.len(), last.statics), (0, None));
        let [SightingChange::Put(kept)] = &*last.sightings else { panic!("one") };
        assert_eq!((kept.end, kept.granted), (after(1000), after(1500)), "with the end of now");
    }

    #[test]
    fn resumed_set_gives_no_delta_from_what_nobody_remembers() {
        use super::super::{Session, Since};
        let registry = crate::metrics::Registry::new();
        let mut draft = Draft::resume(Session(7), 41, START, &registry);
        draft.insert(sighting(addr(1, true), &record("a.test", &["a"]), START));
        assert_eq!(draft.commit(START), 42);
        let reader = draft.reader();
        assert_eq!(reader.since(Session(7), 41), Since::Reset);
        assert_eq!(reader.since(Session(7), 42), Since::Current);
        let mut nothing = Draft::resume(Session(7), 41, START, &crate::metrics::Registry::new());
        assert_eq!(nothing.commit(START), 42, "whatever was there before is gone");
    }
}
