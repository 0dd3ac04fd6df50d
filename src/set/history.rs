//! The current snapshot, the deltas that led to it, and who is told of changes.
//!
//! The writer publishes through [`Publisher`]; everybody else holds a [`Reader`]. Both share a [`History`]: the
//! current snapshot and a bounded queue of deltas, newest first, each leading to the one before it in the queue.
//! A [`Subscription`] hears of new serials and later ends. Subscribe first and compare serials after: then no change
//! slips between.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::broadcast;

use super::delta::Delta;
use super::names::Names;
use super::serial::Session;
use super::sighting::Sighting;
use super::snapshot::Snapshot;
use crate::clock::Timestamp;
use crate::name::Name;

/// The most deltas kept: a consumer that asks every minute is served from them through hours of a busy day.
const DELTAS_KEPT_MAX: usize = 1024;

/// The most items kept in all deltas together: some 6 MB.
const ITEMS_KEPT_MAX: usize = 100_000;

/// The most events that a subscriber may be behind before it has lagged.
const EVENTS_KEPT_MAX: usize = 1024;

/// What a consumer gets that holds some serial of some session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// Apply this.
    Delta(Arc<Delta>),
    /// Nothing changed.
    Current,
    /// Start anew with the whole snapshot.
    Reset,
}

/// The current snapshot and how the set came to it.
#[derive(Debug)]
pub struct History {
    current: Snapshot,
    /// Newest first; `deltas[0].to` is the current serial.
    deltas: VecDeque<Arc<Delta>>,
    item_count: usize,
    deltas_kept_max: usize,
    items_kept_max: usize,
}

impl History {
    /// Begins a history at `current`.
    pub fn new(current: Snapshot) -> Self {
        Self::with_bounds(current, DELTAS_KEPT_MAX, ITEMS_KEPT_MAX)
    }

    /// Begins a history that keeps at most so many deltas, and so many items in them.
    pub fn with_bounds(current: Snapshot, deltas_kept_max: usize, items_kept_max: usize) -> Self {
        Self { current, deltas: VecDeque::new(), item_count: 0, deltas_kept_max, items_kept_max }
    }

    /// Makes `next` the current snapshot; `delta` leads from the old one to it, `None` if the serial stays.
    pub fn push(&mut self, next: Snapshot, delta: Option<Delta>) {
        self.current = next;
        let Some(delta) = delta else { return };
        self.item_count += delta.len();
        self.deltas.push_front(Arc::new(delta));
        while self.deltas.len() > self.deltas_kept_max || self.item_count > self.items_kept_max {
            let Some(oldest) = self.deltas.pop_back() else { break };
            self.item_count -= oldest.len();
        }
    }

    /// Returns the current snapshot.
    pub fn current(&self) -> &Snapshot {
        &self.current
    }

    /// Returns the deltas from `serial` on, oldest first; `Err` with the answer if there is nothing to merge.
    fn steps(&self, session: Session, serial: u64) -> Result<Vec<Arc<Delta>>, Since> {
        // Another session: the serial counts something else.
        if session != self.current.session() {
            return Err(Since::Reset);
        }
        // Up to date.
        if serial == self.current.serial() {
            return Err(Since::Current);
        }
        // From the future: not a serial that we gave out.
        if serial > self.current.serial() {
            return Err(Since::Reset);
        }
        // Too old: the queue no longer reaches back that far.
        if self.deltas.back().is_none_or(|oldest| serial < oldest.from) {
            return Err(Since::Reset);
        }
        // Behind: one step as stored, or all steps since.
        let steps = self.deltas.iter().take_while(|delta| delta.from >= serial);
        let mut steps: Vec<_> = steps.cloned().collect();
        steps.reverse();
        Ok(steps)
    }
}

/// What a subscriber hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The members changed; ask for what is new.
    Changed {
        /// The serial of now.
        serial: u64,
    },
    /// These hosts end later than they did; no serial came.
    Renewed(Arc<[(IpAddr, Timestamp)]>),
    /// Events were missed: compare serials, and take the ends from the snapshot.
    Lagged,
}

/// What writer and readers share.
#[derive(Debug)]
struct Shared {
    history: RwLock<History>,
    names: RwLock<Names>,
    events: broadcast::Sender<Event>,
}

/// The writer's end: there is one.
#[derive(Debug)]
pub(crate) struct Publisher(Arc<Shared>);

impl Publisher {
    /// Begins a history; readers come from [`Self::reader`].
    pub(crate) fn new(history: History) -> Self {
        let (events, _) = broadcast::channel(EVENTS_KEPT_MAX);
        Self(Arc::new(Shared { history: RwLock::new(history), names: RwLock::default(), events }))
    }

    /// Publishes a snapshot and tells subscribers if it has a new serial.
    pub(crate) fn publish(&self, next: Snapshot, delta: Option<Delta>) {
        let changed = delta.as_ref().map(|delta| Event::Changed { serial: delta.to });
        self.0.history.write().push(next, delta);
        // Without a subscriber the send fails, and nobody misses it.
        changed.map(|event| self.0.events.send(event).ok());
    }

    /// Begins the history anew at a snapshot, whatever was published before.
    pub(crate) fn begin(&self, first: Snapshot) {
        let event = Event::Changed { serial: first.serial() };
        *self.0.history.write() = History::new(first);
        self.0.events.send(event).ok();
    }

    /// Tells subscribers of later ends.
    pub(crate) fn renewed(&self, ends: Arc<[(IpAddr, Timestamp)]>) {
        self.0.events.send(Event::Renewed(ends)).ok();
    }

    /// Returns the index of names, which only the writer changes.
    pub(crate) fn names(&self) -> &RwLock<Names> {
        &self.0.names
    }

    /// Returns a read side.
    pub(crate) fn reader(&self) -> Reader {
        Reader(Arc::clone(&self.0))
    }
}

/// The read side of the set; cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Shared>);

impl Reader {
    /// Returns the latest snapshot.
    pub fn snapshot(&self) -> Snapshot {
        self.0.history.read().current.clone()
    }

    /// Returns what a consumer needs that holds `serial` of `session`.
    ///
    /// Merges outside the lock; linear in the items since.
    pub fn since(&self, session: Session, serial: u64) -> Since {
        let steps = match self.0.history.read().steps(session, serial) {
            Ok(steps) => steps,
            Err(answer) => return answer,
        };
        merge_all(&steps).map_or(Since::Reset, Since::Delta)
    }

    /// Returns the sightings of a listed name, in no order; empty if nothing is learned for it.
    pub fn sightings_of(&self, name: &Name) -> Vec<Arc<Sighting>> {
        self.0.names.read().sightings(name).to_vec()
    }

    /// Tells subscribers that these addresses end later than they did.
    pub(crate) fn tell_renewed(&self, snapshot: &Snapshot, addrs: Vec<IpAddr>) {
        // Most of the time nobody listens.
        if self.0.events.receiver_count() > 0 {
            let ends = addrs.into_iter().filter_map(|addr| Some((addr, snapshot.host(addr)?.end())));
            self.0.events.send(Event::Renewed(ends.collect())).ok();
        }
    }

    /// Begins to listen for changes.
    pub fn subscribe(&self) -> Subscription {
        Subscription { events: self.0.events.subscribe(), _shared: Arc::clone(&self.0) }
    }
}

/// Merges consecutive steps, oldest first; a single one is handed out as stored. `None` if there is none.
fn merge_all(steps: &[Arc<Delta>]) -> Option<Arc<Delta>> {
    match steps {
        [] => None,
        [one] => Some(Arc::clone(one)),
        // Halving keeps the cost at n log n however many the steps are.
        _ => {
            let (left, right) = steps.split_at(steps.len() / 2);
            Some(Arc::new(merge_all(left)?.merge(&*merge_all(right)?)))
        }
    }
}

/// A listener for changes, at most 1,024 events behind.
#[derive(Debug)]
pub struct Subscription {
    events: broadcast::Receiver<Event>,
    /// Keeps the sending end, so the channel never closes under us.
    _shared: Arc<Shared>,
}

impl Subscription {
    /// Returns how many events wait to be taken.
    pub fn waiting_count(&self) -> usize {
        self.events.len()
    }

    /// Waits for the next event; safe to cancel.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => Event::Lagged,
            // Cannot come while we hold the sending end.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::Content;
    use super::super::testing::{START, addr};
    use super::super::tree::Tree;
    use super::super::{Item, StaticEntry};
    use super::*;

    const SESSION: Session = Session(7);

    fn snapshot(serial: u64) -> Snapshot {
        let statics: Arc<[StaticEntry]> = Arc::default();
        Snapshot::new(Content { session: SESSION, serial, changed: START, statics, hosts: Tree::default() })
    }

    /// A history at serial `serial`, each step of which announced one host.
    fn history(serial: u16, deltas_kept_max: usize, items_kept_max: usize) -> History {
        let mut history = History::with_bounds(snapshot(0), deltas_kept_max, items_kept_max);
        for to in 1..=serial {
            let mut delta = Delta::empty(u64::from(to) - 1, u64::from(to));
            delta.announced.push(Item::Host { addr: addr(to, true), apps: Arc::default() });
            history.push(snapshot(to.into()), Some(delta));
        }
        history
    }

    fn since(history: History, session: Session, serial: u64) -> Since {
        Publisher::new(history).reader().since(session, serial)
    }

    #[test]
    fn each_consumer_gets_what_it_needs() {
        let made = || history(10, 5, 100);
        assert_eq!(since(made(), SESSION, 10), Since::Current);
        assert_eq!(since(made(), SESSION, 11), Since::Reset, "from the future");
        assert_eq!(since(made(), Session(8), 10), Since::Reset, "of another session");
        assert_eq!(since(made(), SESSION, 4), Since::Reset, "too old");
        for (serial, count) in [(9, 1), (8, 2), (7, 3), (6, 4), (5, 5)] {
            let Since::Delta(delta) = since(made(), SESSION, serial) else { panic!("{serial} is kept") };
            assert_eq!((delta.from, delta.to, delta.announced.len()), (serial, 10, count));
        }
    }

    #[test]
    fn one_step_is_handed_out_as_stored() {
        let history = history(3, 5, 100);
        let stored = Arc::clone(&history.deltas[0]);
        let Since::Delta(found) = since(history, SESSION, 2) else { panic!("one step behind") };
        assert!(Arc::ptr_eq(&found, &stored));
    }

    #[test]
    fn history_is_bounded_in_deltas_and_in_items() {
        assert_eq!(history(10, 5, 100).deltas.len(), 5);
        assert_eq!(history(10, 5, 3).deltas.len(), 3);
        assert_eq!(history(10, 5, 3).item_count, 3);
        let mut one = history(2, 5, 3);
        let mut large = Delta::empty(2, 3);
        large.announced = (0..4).map(|n| Item::Host { addr: addr(n, true), apps: Arc::default() }).collect();
        one.push(snapshot(3), Some(large));
        assert_eq!(one.item_count, 0);
        assert_eq!(since(one, SESSION, 2), Since::Reset, "larger than all that is kept");
    }

    #[test]
    fn new_history_resets_everybody_but_the_current() {
        assert_eq!(since(history(0, 5, 5), SESSION, 0), Since::Current);
        assert_eq!(since(history(0, 5, 5), SESSION, 1), Since::Reset);
    }
}
