//! The way of a change from the one writer to those who keep addresses or sightings elsewhere: a store, a firewall.
//!
//! ```text
//!   writer ── Outlet::send ─▶ [ orders, at most ORDERS_LEN_MAX ] ─▶ Intake::next ─▶ sink
//!          ◀─ Reply ───────────────────────── Order::done(Held) ◀──────────────────┘
//! ```
//!
//! A [`Change`] is what one batch changed, shared by all outlets. An [`Order`] is a change on its way to one sink,
//! which answers it once it holds it; an order that is dropped counts as failed. Orders arrive in the order in which
//! the set changed. The first one is *whole*: all hosts, all static prefixes, all sightings. So is the first one after
//! orders had to be dropped because a sink left them lying; whatever else the sink holds by then must go.
//!
//! A sink owns what it needs to keep its state right by itself: it repairs and retries without being asked again. It
//! says through [`Health`] whether the writer may wait for it, and says [`State::Up`] only when it holds everything
//! that it has taken so far. A sink that is gone (its [`Intake`] dropped) is down for good.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use super::Sighting;
use super::serial::Session;
use super::snapshot::StaticEntry;
use crate::clock::Timestamp;
use crate::name::Name;

/// The most orders that wait for one sink; beyond, they are dropped and one whole change takes their place.
pub const ORDERS_LEN_MAX: usize = 64;

/// A change of more hosts than this is *bulk*: a reload, not answers. A sink works it off beside what is fresh, and
/// nobody waits for it.
pub const BULK_LEN: usize = 4096;

/// What one batch changed, for those who keep addresses or sightings elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The session of the set.
    pub session: Session,
    /// The serial that the set has with this change; it may be that of the change before.
    pub serial: u64,
    /// When the batch was made.
    pub now: Timestamp,
    /// Whether this is the whole set: what is not in it is not to be held any longer.
    pub whole: bool,
    /// Whether it is the last one of a process that stops in order.
    pub last: bool,
    /// Hosts whose hold elsewhere must change, sorted, each once: until when they must be held at least (slack
    /// included, the latest of the host's sightings); `None`: withdraw them at once.
    pub hosts: Vec<(IpAddr, Option<Timestamp>)>,
    /// The static prefixes, all of them, sorted but not aggregated, if they changed.
    pub statics: Option<Arc<[StaticEntry]>>,
    /// Sightings that are new or granted anew, and those that left; in the order of events, so the last word on a
    /// sighting counts.
    pub sightings: Vec<SightingChange>,
    /// Sightings that left before their end to make room, each with that end; they are among `sightings`, too.
    pub evicted: Vec<(IpAddr, Name, Timestamp)>,
}

impl Change {
    /// Makes a change that changes nothing.
    pub fn empty(session: Session, serial: u64, now: Timestamp) -> Self {
        Self {
            session,
            serial,
            now,
            whole: false,
            last: false,
            hosts: Vec::new(),
            statics: None,
            sightings: Vec::new(),
            evicted: Vec::new(),
        }
    }

    /// Returns whether it changes so many hosts that fresh ones go before them.
    pub fn is_bulk(&self) -> bool {
        self.hosts.len() > BULK_LEN
    }

    /// Returns whether there is nothing to do for it.
    pub fn is_empty(&self) -> bool {
        !self.whole && !self.last && self.hosts.is_empty() && self.statics.is_none() && self.sightings.is_empty()
    }
}

/// What became of a sighting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SightingChange {
    /// It is new, or lasts longer.
    Put(Kept),
    /// It left.
    Gone {
        /// Its address.
        addr: IpAddr,
        /// Its name.
        name: Name,
    },
}

/// A sighting as it is kept on disk. Without its tag: the catalogue of the day decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The address.
    pub addr: IpAddr,
    /// The listed name.
    pub name: Name,
    /// When the address was first seen for the name.
    pub first_seen: Timestamp,
    /// When it was last seen.
    pub last_seen: Timestamp,
    /// When the last TTL that a client was told ends.
    pub told_until: Timestamp,
    /// When the sighting ends.
    pub end: Timestamp,
    /// Until when it may be extended without another word; never before `end`.
    pub granted: Timestamp,
}

impl Kept {
    /// Returns a sighting of the set as it would be kept now.
    pub fn of(sighting: &Sighting) -> Self {
        let times = sighting.times();
        Self {
            addr: sighting.addr(),
            name: sighting.name().clone(),
            first_seen: sighting.first_seen(),
            last_seen: times.last_seen,
            told_until: times.told_until,
            end: times.end,
            granted: times.granted.max(times.end),
        }
    }
}

/// What a store kept of a set, as the next process begins with it. It is believed no more than an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The session to go on with.
    pub session: Session,
    /// The serial to go on after: no consumer has seen a later one.
    pub serial: u64,
    /// Whether the last change was kept, the one that is marked so. If not, any sighting may have been extended up to
    /// what was granted since it was written.
    pub is_complete: bool,
    /// The sightings, in any order; each pair of address and name once.
    pub sightings: Vec<Kept>,
}

/// How a sink does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It holds all that it has taken; answers wait for it.
    Up,
    /// It works, but takes too long to be waited for.
    Slow,
    /// It cannot hold anything now.
    Down,
}

/// How a sink does, as it says itself; cheap to clone. Up until it says otherwise.
#[derive(Clone, Debug)]
pub struct Health(Arc<Shared>);

impl Health {
    /// Makes one that no writer reads: up until it is told otherwise.
    pub fn unread() -> Self {
        Self(Arc::new(Shared::new()))
    }

    /// Says how the sink does.
    pub fn set(&self, state: State) {
        self.0.state.store(state as u8, Ordering::Release);
        self.0.tell_writer();
    }

    /// Returns what was said last; down if the sink is gone.
    pub fn state(&self) -> State {
        self.0.state()
    }
}

/// What a sink answers to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It holds the change.
    Held,
    /// It does not hold all of it.
    Failed,
}

/// Makes the two ends of the way to a sink. The name stands in logs and metrics, like `store`.
pub fn outlet(name: &'static str) -> (Outlet, Intake) {
    let shared = Arc::new(Shared::new());
    (Outlet { name, is_awaited: true, shared: Arc::clone(&shared) }, Intake { shared })
}

/// The same for a sink that no answer ever waits for, however well it does.
pub fn outlet_aside(name: &'static str) -> (Outlet, Intake) {
    let (mut outlet, intake) = outlet(name);
    outlet.is_awaited = false;
    (outlet, intake)
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// For a sink that is a thread.
    arrived: Condvar,
    /// For a sink that is a task.
    arrived_async: Notify,
    /// For the writer: the sink wants a whole change, or said how it does.
    news: OnceLock<Arc<Notify>>,
    /// A [`State`].
    state: AtomicU8,
}

#[derive(Debug, Default)]
struct Queue {
    orders: VecDeque<Order>,
    /// Orders were dropped; nothing but a whole change may follow.
    must_be_whole: bool,
    /// And the sink came for the next order since.
    wants_whole: bool,
    writer_is_gone: bool,
    sink_is_gone: bool,
}

impl Shared {
    fn new() -> Self {
        Self {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            arrived_async: Notify::new(),
            news: OnceLock::new(),
            state: AtomicU8::new(State::Up as u8),
        }
    }

    fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Up,
            1 => State::Slow,
            _ => State::Down,
        }
    }

    fn tell_writer(&self) {
        if let Some(news) = self.news.get() {
            news.notify_one();
        }
    }
}

/// The writer's end of the way to a sink.
#[derive(Debug)]
pub struct Outlet {
    name: &'static str,
    is_awaited: bool,
    shared: Arc<Shared>,
}

/// Why a change was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// Too many orders lie there. They are dropped; send a whole change once [`Outlet::wants_whole`].
    Full,
    /// The sink is gone.
    Gone,
}

/// The answer to an order, to be awaited: [`Applied::Failed`] if the sink dropped it.
#[derive(Debug)]
pub struct Reply(oneshot::Receiver<Applied>);

impl Reply {
    /// Waits for the answer. Safe to cancel.
    pub async fn wait(&mut self) -> Applied {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Looks for the answer. Once it came, do not look again.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Applied> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll(cx)).unwrap_or(Applied::Failed))
    }
}

impl Outlet {
    /// Returns the name for logs and metrics.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns whether answers may wait for the sink at all.
    pub fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    /// Returns how the sink does, as it says itself.
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Returns whether the sink is gone for good.
    pub fn is_gone(&self) -> bool {
        self.shared.queue.lock().sink_is_gone
    }

    /// Sends a change; never waits.
    ///
    /// # Errors
    /// See [`NotSent`]: the queue was full, or was before and no whole change was sent since; or the sink is gone.
    pub fn send(&self, change: &Arc<Change>) -> Result<Reply, NotSent> {
        let (reply, answer) = oneshot::channel();
        let order = Order { change: Arc::clone(change), reply };
        {
            let mut queue = self.shared.queue.lock();
            if queue.sink_is_gone {
                return Err(NotSent::Gone);
            }
            if change.whole {
                // It says everything that those before it say.
                queue.orders.clear();
                (queue.must_be_whole, queue.wants_whole) = (false, false);
            }
            if queue.must_be_whole || queue.orders.len() >= ORDERS_LEN_MAX {
                queue.orders.clear();
                queue.must_be_whole = true;
                return Err(NotSent::Full);
            }
            queue.orders.push_back(order);
        }
        self.shared.arrived.notify_one();
        self.shared.arrived_async.notify_one();
        Ok(Reply(answer))
    }

    /// Returns whether orders were dropped and the sink has come for the next one since: a whole change is due.
    pub fn wants_whole(&self) -> bool {
        self.shared.queue.lock().wants_whole
    }

    /// Has the writer woken when the sink wants a whole change, or says how it does. The first call counts.
    pub fn report_to(&self, news: &Arc<Notify>) {
        let _ = self.shared.news.set(Arc::clone(news));
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.shared.queue.lock().writer_is_gone = true;
        self.shared.arrived.notify_all();
        self.shared.arrived_async.notify_one();
    }
}

/// The sink's end: orders come out of it.
#[derive(Debug)]
pub struct Intake {
    shared: Arc<Shared>,
}

/// What [`Intake::blocking_next`] came back with.
#[derive(Debug)]
pub enum Next {
    /// The next order.
    Order(Order),
    /// None came in time.
    Idle,
    /// All orders were taken and no more will come: the writer has ended.
    Closed,
}

impl Intake {
    /// Waits for the next order; `None` once all are taken and the writer has ended. Safe to cancel.
    pub async fn next(&mut self) -> Option<Order> {
        loop {
            match self.take() {
                Next::Order(order) => return Some(order),
                Next::Closed => return None,
                // A permit is kept for a send that comes before we wait.
                Next::Idle => self.shared.arrived_async.notified().await,
            }
        }
    }

    /// Waits for the next order at most `timeout`, for a sink that is a thread of its own.
    pub fn blocking_next(&mut self, timeout: Duration) -> Next {
        match self.take() {
            Next::Idle => {}
            next => return next,
        }
        {
            let mut queue = self.shared.queue.lock();
            if queue.orders.is_empty() && !queue.writer_is_gone {
                self.shared.arrived.wait_for(&mut queue, timeout);
            }
        }
        self.take()
    }

    /// Drops the orders that lie there and has the writer send the whole set: what this sink held is gone, or unknown.
    pub fn start_over(&mut self) {
        let dropped = {
            let mut queue = self.shared.queue.lock();
            (queue.must_be_whole, queue.wants_whole) = (true, true);
            std::mem::take(&mut queue.orders)
        };
        drop(dropped);
        self.shared.tell_writer();
    }

    /// Returns the handle by which the sink says how it does.
    pub fn health(&self) -> Health {
        Health(Arc::clone(&self.shared))
    }

    fn take(&mut self) -> Next {
        let mut queue = self.shared.queue.lock();
        if let Some(order) = queue.orders.pop_front() {
            return Next::Order(order);
        }
        if queue.must_be_whole && !queue.wants_whole {
            queue.wants_whole = true;
            self.shared.tell_writer();
        }
        if queue.writer_is_gone { Next::Closed } else { Next::Idle }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.sink_is_gone = true;
        queue.orders.clear();
        drop(queue);
        self.shared.state.store(State::Down as u8, Ordering::Release);
        self.shared.tell_writer();
    }
}

/// A change on its way to one sink.
#[derive(Debug)]
pub struct Order {
    /// What changed.
    pub change: Arc<Change>,
    reply: oneshot::Sender<Applied>,
}

impl Order {
    /// Answers: call it once the change is held, or has failed.
    pub fn done(self, result: Applied) {
        // The writer may have stopped waiting.
        let _ = self.reply.send(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn change(serial: u64) -> Arc<Change> {
        Arc::new(Change::empty(Session(7), serial, NOW))
    }

    fn whole(serial: u64) -> Arc<Change> {
        Arc::new(Change { whole: true, ..Change::empty(Session(7), serial, NOW) })
    }

    #[tokio::test]
    async fn orders_come_in_order_and_answers_go_back() {
        let (outlet, mut intake) = outlet("test");
        let (mut one, mut two) = (outlet.send(&change(1)).unwrap(), outlet.send(&change(2)).unwrap());
        let first = intake.next().await.unwrap();
        assert_eq!(first.change.serial, 1);
        first.done(Applied::Held);
        assert_eq!(one.wait().await, Applied::Held);
        drop(intake.next().await.unwrap());
        assert_eq!(two.wait().await, Applied::Failed, "dropped unanswered");
        drop(outlet);
        assert!(intake.next().await.is_none());
    }

    #[tokio::test]
    async fn orders_left_lying_make_room_for_a_whole_change() {
        let (outlet, mut intake) = outlet("test");
        let news = Arc::new(Notify::new());
        outlet.report_to(&news);
        let mut replies: Vec<_> = (0..64).map(|n| outlet.send(&change(n)).unwrap()).collect();
        assert_eq!(outlet.send(&change(64)).unwrap_err(), NotSent::Full);
        assert_eq!(replies[0].wait().await, Applied::Failed);
        assert_eq!(outlet.send(&change(65)).unwrap_err(), NotSent::Full, "there is a gap before it");
        assert!(!outlet.wants_whole(), "the sink is still at it");
        assert!(matches!(intake.blocking_next(Duration::ZERO), Next::Idle));
        news.notified().await;
        assert!(outlet.wants_whole());
        outlet.send(&whole(66)).unwrap();
        outlet.send(&change(67)).unwrap();
        assert!(intake.next().await.unwrap().change.whole);
        assert_eq!(intake.next().await.unwrap().change.serial, 67);
    }

    #[tokio::test]
    async fn a_sink_that_starts_over_gets_the_whole_set_next() {
        let (outlet, mut intake) = outlet("test");
        let mut lying = outlet.send(&change(1)).unwrap();
        intake.start_over();
        assert_eq!(lying.wait().await, Applied::Failed);
        assert!(outlet.wants_whole());
        assert_eq!(outlet.send(&change(2)).unwrap_err(), NotSent::Full);
        outlet.send(&whole(3)).unwrap();
        assert!(intake.next().await.unwrap().change.whole);
        assert!(!outlet.wants_whole());
    }

    #[test]
    fn thread_waits_for_orders_and_ends_with_the_writer() {
        let (outlet, mut intake) = outlet("test");
        let sink = std::thread::spawn(move || {
            let mut seen = Vec::new();
            loop {
                match intake.blocking_next(Duration::from_secs(60)) {
                    Next::Order(order) => {
                        seen.push(order.change.serial);
                        order.done(Applied::Held);
                    }
                    Next::Idle => {}
                    Next::Closed => return seen,
                }
            }
        });
        for serial in 0..10 {
            outlet.send(&change(serial)).unwrap();
        }
        drop(outlet);
        assert_eq!(sink.join().unwrap(), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn sink_that_is_gone_is_down() {
        let (outlet, intake) = outlet("test");
        assert_eq!(outlet.state(), State::Up);
        intake.health().set(State::Slow);
        assert_eq!(outlet.state(), State::Slow);
        drop(intake);
        assert_eq!(outlet.state(), State::Down);
        assert_eq!(outlet.send(&change(1)).unwrap_err(), NotSent::Gone);
    }
}
