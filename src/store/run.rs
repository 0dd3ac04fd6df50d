//! The store at work: changes into the journal, the journal into the database.
//!
//! ```text
//!   thread of `run`      orders that wait ─▶ one append to journal A ─▶ Held        … then to journal B
//!                                        └▶ pending ─┐ about each second
//!   thread of its own                                └▶ one transaction ─▶ disk ─▶ journal A is free again
//! ```
//! Two things can fail, and each covers for the other. If the database cannot be written, the journal grows and the
//! pending changes stay; nothing is lost or late until it is [full](super::journal::LEN_MAX). If the journal cannot be
//! written, orders fail, the sink is down, and what they said waits in memory until a transaction has taken it; then
//! the store is up to date again by itself. What waits is bounded by the set, since only the last word on each
//! sighting is kept.

use std::sync::mpsc::{Receiver, RecvError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::disk::Disk;
use super::entry;
use super::journal::{Frames, Journal};
use super::pending::Pending;
use super::table::{Meta, Table, TableError};
use super::{Durability, Files, Metrics, Store};
use crate::clock::{Clock, Stopwatch, Timestamp};
use crate::set::outlet::{Applied, Health, Intake, Next, ORDERS_LEN_MAX, Order, State};

/// How long changes wait in the journal before the database takes them.
const INTERVAL: Duration = Duration::from_secs(1);
/// A journal so long is taken at once.
const JOURNAL_LEN_HIGH: u64 = 8 << 20;
/// The pause after the first failure; each further one doubles it.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest pause between tries: a disk that is full has space again when somebody is at work.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A commit so long is slow: half the usual hold of an answer.
const SLOW: Duration = Duration::from_millis(50);
/// So many slow commits in a row, and nobody waits for them until there is a quick one.
const SLOW_COUNT_MAX: u32 = 20;
/// How often a transaction under way is looked after.
const POLL: Duration = Duration::from_millis(50);
/// How long to wait for an order when nothing else is to be done.
const IDLE: Duration = Duration::from_secs(60);

/// Keeps what the writer sends until it ends, then writes everything and closes the files. Blocks: give it a thread.
///
/// Orders that wait are kept together, and answered once they are. The store is closed as complete if the writer's last
/// change was marked so.
pub fn run(store: Store, mut intake: Intake, clock: &Clock, metrics: Metrics) {
    let health = intake.health();
    let Store { files, disk, table, meta, journals, durability, sighting_count } = store;
    metrics.sightings.set(i64::try_from(sighting_count).unwrap_or(i64::MAX));
    let (jobs, jobs_in) = sync_channel(1);
    let (results, results_in) = sync_channel(1);
    let id = meta.id;
    thread::scope(|scope| {
        let work = move || write_database(table, &disk, id, &jobs_in, &results);
        if let Err(error) = thread::Builder::new().name("store-database".to_owned()).spawn_scoped(scope, work) {
            tracing::error!(%error, "the store cannot start its thread: nothing is kept from now on");
            return;
        }
        let mut keeper = Keeper {
            sequence: meta.covered + 1,
            files,
            meta,
            journals,
            current: 0,
            is_other_free: true,
            must_sync: durability == Durability::Disk,
            since: Pending::default(),
            is_logged: true,
            under_way: None,
            due: Timestamp::default(),
            retry: RETRY_MIN,
            is_behind: false,
            health,
            said: State::Up,
            slow_count: 0,
            jobs,
            results: results_in,
            metrics,
        };
        loop {
            match intake.blocking_next(keeper.patience(clock.now())) {
                Next::Order(first) => keeper.keep(waiting(first, &mut intake), clock.now()),
                Next::Idle => {}
                Next::Closed => break,
            }
            keeper.tend(clock.now());
        }
        keeper.finish(clock.now());
    });
}

/// Takes the orders that wait behind the first one.
fn waiting(first: Order, intake: &mut Intake) -> Vec<Order> {
    let mut orders = vec![first];
    while orders.len() < ORDERS_LEN_MAX {
        let Next::Order(order) = intake.blocking_next(Duration::ZERO) else { break };
        orders.push(order);
    }
    orders
}

/// The state of the store at work.
struct Keeper {
    files: Files,
    meta: Meta,
    journals: [Journal; 2],
    /// Which journal is appended to.
    current: usize,
    /// The sequence number of that one.
    sequence: u64,
    /// Whether the database holds all that the other one says.
    is_other_free: bool,
    must_sync: bool,
    /// What came since the last transaction began.
    since: Pending,
    /// Whether all of that is in a journal.
    is_logged: bool,
    /// A transaction under way; whether all of it is in a journal.
    under_way: Option<bool>,
    /// When the next transaction begins, if there is something for it.
    due: Timestamp,
    retry: Duration,
    /// The last transaction failed.
    is_behind: bool,
    health: Health,
    /// What was said last.
    said: State,
    slow_count: u32,
    jobs: SyncSender<Job>,
    results: Receiver<Done>,
    metrics: Metrics,
}

impl Keeper {
    /// Keeps orders and answers them.
    fn keep(&mut self, orders: Vec<Order>, now: Timestamp) {
        let watch = Stopwatch::start();
        let mut frames = Frames::default();
        if self.since.is_empty() && !self.is_behind {
            self.due = now.after(INTERVAL);
        }
        let mut said = Vec::with_capacity(orders.len());
        for Order { change, .. } in &orders {
            let entries: Vec<_> = change.sightings.iter().map(entry::encode).collect();
            frames.push(change, &entries);
            said.push(((change.session, change.serial), (change.whole, change.last), entries));
        }
        // Behind a gap nothing is appended: what is read again must have no holes.
        let is_held = self.is_logged && self.append(frames);
        self.metrics.committed(is_held);
        if is_held {
            let took = watch.elapsed();
            self.metrics.commit_seconds.observe(took.as_secs_f64());
            self.slow_count = if took > SLOW { self.slow_count.saturating_add(1) } else { 0 };
            self.tell_health(None);
        }
        for order in orders {
            order.done(if is_held { Applied::Held } else { Applied::Failed });
        }
        // Nobody waits for this any more.
        for ((session, serial), flags, entries) in said {
            self.since.add(session, serial, flags, entries);
        }
    }

    fn append(&mut self, frames: Frames) -> bool {
        let appended = self.journals[self.current].append(frames, self.must_sync);
        if let Err(error) = &appended {
            self.is_logged = false;
            self.tell_health(Some(error));
        }
        appended.is_ok()
    }

    /// Looks after the transaction under way, and begins the next one when it is time.
    fn tend(&mut self, now: Timestamp) {
        if self.under_way.is_some()
            && let Ok(done) = self.results.try_recv()
        {
            self.settle(done, now);
        }
        let is_long = self.journals[self.current].len() >= JOURNAL_LEN_HIGH && !self.is_behind;
        if self.under_way.is_none() && !self.since.is_empty() && (now >= self.due || is_long) {
            self.begin();
        }
    }

    /// Hands what came since to the database, and goes over to the other journal if that one is free.
    fn begin(&mut self) {
        let mut covered = self.meta.covered;
        if self.is_other_free {
            let other = 1 - self.current;
            // If it cannot be made ready, the current one goes on; it is tried again with the next transaction.
            if self.journals[other].begin(self.meta.id, self.sequence + 1).is_ok() {
                covered = self.sequence;
                self.sequence += 1;
                self.current = other;
                self.is_other_free = false;
            }
        } else {
            // The other one, of the number before, was not taken by the transaction that failed.
            covered = self.sequence - 1;
        }
        self.send(covered);
    }

    fn send(&mut self, covered: u64) {
        let changes = std::mem::take(&mut self.since);
        let is_logged = std::mem::replace(&mut self.is_logged, true);
        if let Some((session, serial)) = changes.stand() {
            (self.meta.session, self.meta.serial) = (session, serial);
        }
        self.meta.is_complete = changes.is_complete();
        let job = Job { changes, meta: Meta { covered, ..self.meta.clone() } };
        match self.jobs.try_send(job) {
            Ok(()) => self.under_way = Some(is_logged),
            // The thread is gone, which takes a panic of ours in it.
            Err(error) => {
                let (std::sync::mpsc::TrySendError::Full(job) | std::sync::mpsc::TrySendError::Disconnected(job)) =
                    error;
                (self.since, self.is_logged) = (job.changes, is_logged);
            }
        }
    }

    /// Takes note of what became of a transaction.
    fn settle(&mut self, done: Done, now: Timestamp) {
        let was_logged = self.under_way.take().unwrap_or(true);
        self.metrics.checkpointed(done.result.is_ok());
        match done.result {
            Ok(count) => {
                self.meta.covered = done.covered;
                if !self.is_other_free {
                    self.is_other_free = true;
                    // If it stays as it is, its number says that it counts no longer.
                    let _ = self.journals[1 - self.current].clear();
                }
                if self.since.is_empty() && self.journals[self.current].len() >= JOURNAL_LEN_HIGH {
                    // The database holds all of it, and it could not take turns.
                    self.sequence += 1;
                    let _ = self.journals[self.current].begin(self.meta.id, self.sequence);
                }
                self.due = now.after(INTERVAL);
                self.retry = RETRY_MIN;
                self.metrics.sightings.set(i64::try_from(count).unwrap_or(i64::MAX));
                if std::mem::take(&mut self.is_behind) {
                    tracing::info!("store.path: the database is written again");
                }
            }
            Err((error, changes)) => {
                let later = std::mem::replace(&mut self.since, changes);
                self.since.merge(later);
                self.is_logged &= was_logged;
                self.due = now.after(self.retry);
                self.retry = (self.retry * 2).min(RETRY_MAX);
                if !std::mem::replace(&mut self.is_behind, true) {
                    let path = self.files.path.display();
                    tracing::error!(%path, %error, "store.path: the database cannot be written, trying on");
                }
            }
        }
        self.metrics.file_bytes.set(i64::try_from(self.files.len()).unwrap_or(i64::MAX));
        self.tell_health(None);
    }

    /// Says how the store does, if that is another than before.
    fn tell_health(&mut self, error: Option<&std::io::Error>) {
        let is_behind = !self.is_logged || self.under_way == Some(false);
        let state = match is_behind {
            true => State::Down,
            false if self.slow_count >= SLOW_COUNT_MAX => State::Slow,
            false => State::Up,
        };
        let before = std::mem::replace(&mut self.said, state);
        if before == state {
            return;
        }
        self.health.set(state);
        let path = self.files.path.display();
        match (state, error) {
            (State::Up, _) => tracing::info!(%path, "store.path: the store works again and holds everything"),
            (State::Slow, _) => {
                tracing::warn!(%path, "store.path: the disk takes more than 50 ms a batch; answers do not wait for it");
            }
            (State::Down, Some(error)) => tracing::error!(
                %path, %error,
                "store.path: the store cannot be written; answers go on, and what they teach is written once it can be"
            ),
            (State::Down, None) => tracing::error!(%path, "store.path: the store does not hold everything"),
        }
    }

    /// Returns how long to wait for the next order.
    fn patience(&self, now: Timestamp) -> Duration {
        if self.under_way.is_some() {
            POLL
        } else if self.since.is_empty() {
            IDLE
        } else {
            self.due.since(now).min(IDLE)
        }
    }

    /// Writes everything and closes the files.
    fn finish(mut self, now: Timestamp) {
        self.wait(now);
        for _ in 0..2 {
            if !self.since.is_empty() {
                self.send(self.sequence);
                self.wait(now);
            }
        }
        let Self { since, jobs, results, mut journals, .. } = self;
        if !since.is_empty() {
            let kept = if self.is_logged { "the journal has it" } else { "some of it is lost" };
            tracing::warn!("store.path: the database could not be written at the end; {kept}");
        }
        drop(jobs);
        // It closes the database, then it ends.
        let _: Result<Done, RecvError> = results.recv();
        if since.is_empty() {
            journals.iter_mut().for_each(|journal| drop(journal.clear()));
        }
    }

    /// Waits for the transaction under way.
    fn wait(&mut self, now: Timestamp) {
        if self.under_way.is_some() {
            match self.results.recv() {
                Ok(done) => self.settle(done, now),
                Err(RecvError) => self.under_way = None,
            }
        }
    }
}

/// A transaction to be made.
#[derive(Debug)]
struct Job {
    changes: Pending,
    meta: Meta,
}

/// What became of one.
#[derive(Debug)]
struct Done {
    covered: u64,
    /// How many entries there are, or why not, and what is still to be written.
    result: Result<u64, (TableError, Pending)>,
}

/// Writes jobs into the database, one after another, until there are no more; then closes it.
///
/// After a failure redb wants the file opened anew.
fn write_database(table: Table, disk: &Disk, id: u64, jobs: &Receiver<Job>, results: &SyncSender<Done>) {
    let mut open = Some(table);
    let mut room = Room::default();
    while let Ok(Job { changes, meta }) = jobs.recv() {
        let result = match open.take().map_or_else(|| reopen(disk, id), Ok) {
            Ok(table) => match table.commit(&changes, &meta) {
                Ok(count) => {
                    open = Some(table);
                    Ok(count)
                }
                Err(error) => {
                    let _ = table.close();
                    Err(error)
                }
            },
            Err(error) => Err(error),
        };
        let count = result.as_ref().ok().copied();
        let (result, written) = match result {
            Ok(count) => (Ok(count), Some(changes)),
            Err(error) => (Err((error, changes)), None),
        };
        if results.send(Done { covered: meta.covered, result }).is_err() {
            break;
        }
        // Thousands of entries are let go of here, where nobody waits, and not by the thread that answers wait for.
        drop(written);
        // Meanwhile the next changes wait in the journal, which is long enough for that.
        if let (Some(count), Some(mut table)) = (count, open.take()) {
            match room.tidy(&mut table, disk, count) {
                Ok(()) => open = Some(table),
                Err(error) => {
                    tracing::warn!(%error, "store.path: the database could not be made smaller");
                    let _ = table.close();
                }
            }
        }
    }
    if let Some(Err(error)) = open.map(Table::close) {
        tracing::warn!(%error, "store.path: the database was not closed in order; the next start checks it");
    }
}

/// Whether the file has much more room than it needs.
///
/// A transaction writes beside what it replaces, so that under change the file is some two or three times as long as what
/// it holds; to make it smaller then would be in vain. It is looked at again only once it is twice as long as it was, or
/// holds half of what it did.
#[derive(Debug)]
struct Room {
    /// A shorter file is not worth a look.
    len_min: u64,
    /// How many entries there were when it was looked at last.
    count: u64,
}

/// A file up to this long is left as it is.
const ROOM_LEN_MIN: u64 = 4 << 20;

impl Default for Room {
    fn default() -> Self {
        Self { len_min: ROOM_LEN_MIN, count: 0 }
    }
}

impl Room {
    /// Makes the file smaller if it is much longer than what it holds.
    fn tidy(&mut self, table: &mut Table, disk: &Disk, count: u64) -> Result<(), TableError> {
        let len = disk.size()?;
        if len < ROOM_LEN_MIN || len < self.len_min && count >= self.count / 2 {
            return Ok(());
        }
        (self.len_min, self.count) = (len.saturating_mul(2), count);
        if len < table.live_len()? / 2 * 3 {
            return Ok(());
        }
        table.compact()?;
        tracing::info!("store.path: the database was made smaller: from {len} to {} octets", disk.size()?);
        Ok(())
    }
}

fn reopen(disk: &Disk, id: u64) -> Result<Table, TableError> {
    match Table::open(disk.clone())? {
        (table, Some(meta)) if meta.id == id => Ok(table),
        _ => Err(TableError::Damaged("it was replaced while it was open; restart greenlane".to_owned())),
    }
}
