//! The tasks of one resolver in a cluster.
//!
//! ```text
//!   ear       always: what changes here ─▶ ledger
//!   session   while there is a link:
//!     sender      ledger's queue ─▶ engine
//!     receiver    compare everything, then read the stream until there is a gap or the lists change ─▶ learner
//!     beat        says that we are there, asks who else is, removes what has ended
//! ```
//! They share the [`Ledger`] and run as one task, side by side. The first error of any ends the session; the next one
//! begins after a pause that grows.

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::Cluster;
use super::engine::{Commit, Engine, EngineError, Link, Pulse, RECORDS_LEN_MAX, Table};
use super::ledger::{Ends, Ledger};
use super::message::{self, END_MAX, Kind, Record};
use super::metrics::{Metrics, Refused};
use super::node::Said;
use crate::catalogue::Catalogue;
use crate::clock::{Clock, Timestamp};
use crate::learn::{Heard, Learner, Word};
use crate::name::Name;
use crate::set::outlet::{Applied, Change, Intake, SightingChange};
use crate::set::{Event, Sighting};

/// The most changes that are sent at once.
const COMMIT_LEN_MAX: usize = 1024;

/// The most words that the writer takes in at once: some milliseconds of its time.
const HEAR_LEN_MAX: usize = 512;

/// An end that far ahead is nobody's, whatever clock and TTL.
const FAR: Duration = Duration::from_secs(60 * 86_400);

/// How often we say that we are there.
const BEAT_EVERY: Duration = Duration::from_secs(2);

/// How often everything is compared although nothing was missed: no message is worth trusting in for ever.
const COMPARE_EVERY: Duration = Duration::from_secs(300);

/// What has ended stays in the engine for so long, for those whose clocks are behind.
const PURGE_AFTER: Duration = Duration::from_secs(300);

/// Clocks that are further apart than this are worth a word.
const OFFSET_MAX: Duration = Duration::from_secs(10);

/// The first pause after a failure; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The most members that an engine may hold; beyond, it is not ours.
const MEMBERS_LEN_MAX: usize = 4 << 20;

/// A resolver in a cluster.
pub(super) struct Member<E> {
    engine: E,
    place: String,
    /// Who we are, for this process's life.
    id: u64,
    /// The longest span that an answer can hold an address for.
    span_max: Duration,
    learner: Learner,
    catalogue: watch::Receiver<Arc<Catalogue>>,
    clock: Clock,
    metrics: Metrics,
    ledger: Mutex<Ledger>,
    /// Something waits to be sent.
    queued: Notify,
    joined: watch::Sender<bool>,
    told: watch::Sender<bool>,
    /// The learner has said its last word.
    is_closed: watch::Sender<bool>,
}

/// What is said once about an outage, and once about its end.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Timestamp>,
    failures: u32,
}

/// What is said once about the others.
#[derive(Debug, Default)]
struct Seen {
    /// Beats in a row at which lists differed.
    differing_beats: u32,
    has_told_lists: bool,
    has_told_offset: bool,
}

impl<E: Engine> Member<E> {
    pub(super) fn new(
        engine: E,
        place: String,
        span_max: Duration,
        learner: Learner,
        catalogue: watch::Receiver<Arc<Catalogue>>,
        clock: Clock,
        metrics: Metrics,
    ) -> (Self, Cluster) {
        let (joined, is_joined) = watch::channel(false);
        let (told, is_told) = watch::channel(false);
        let member = Self {
            engine,
            place,
            id: rand::random(),
            span_max,
            learner,
            catalogue,
            clock,
            metrics,
            ledger: Mutex::default(),
            queued: Notify::new(),
            joined,
            told,
            is_closed: watch::Sender::new(false),
        };
        (member, Cluster { joined: is_joined, told: is_told })
    }

    /// Runs until the learner is closed and the others were told everything.
    pub(super) async fn run(self, intake: Intake) {
        tokio::join!(self.listen_here(intake), self.keep_linked());
    }

    /// Notes what changes here.
    async fn listen_here(&self, mut intake: Intake) {
        let mut events = self.learner.reader().subscribe();
        loop {
            let lifts = tokio::select! {
                order = intake.next() => {
                    let Some(order) = order else { break };
                    let lifts = self.note_change(&order.change);
                    let is_last = order.change.last;
                    order.done(Applied::Held);
                    if is_last {
                        break;
                    }
                    lifts
                }
                event = events.next() => match event {
                    Event::Renewed(ends) => self.note_renewed(&ends),
                    Event::Changed { .. } => Vec::new(),
                    Event::Lagged => {
                        self.ledger.lock().tell_all();
                        self.queued.notify_one();
                        Vec::new()
                    }
                },
            };
            self.hear(lifts).await;
        }
        self.is_closed.send_replace(true);
        self.queued.notify_one();
    }

    fn note_change(&self, change: &Change) -> Vec<Heard> {
        let mut ledger = self.ledger.lock();
        let mut lifts = Vec::new();
        // What left first: an address may have come back in the same change.
        for (addr, name, end) in &change.evicted {
            ledger.gone(*addr, name, *end);
        }
        for step in &change.sightings {
            if let SightingChange::Put(kept) = step {
                let lift = ledger.held(kept.addr, &kept.name, kept.end);
                lifts.extend(lift.map(|end| held(kept.addr, &kept.name, end)));
            }
        }
        self.note_queue(&mut ledger);
        lifts
    }

    fn note_renewed(&self, ends: &[(IpAddr, Timestamp)]) -> Vec<Heard> {
        let snapshot = self.learner.reader().snapshot();
        let hosts = ends.iter().filter_map(|(addr, _)| snapshot.host(*addr));
        let mut ledger = self.ledger.lock();
        let mut lifts = Vec::new();
        for one in hosts.flat_map(|host| host.sightings()).filter(|one| !one.has_left()) {
            let lift = ledger.held(one.addr(), one.name(), one.end());
            lifts.extend(lift.map(|end| held(one.addr(), one.name(), end)));
        }
        self.note_queue(&mut ledger);
        lifts
    }

    fn note_queue(&self, ledger: &mut Ledger) {
        self.metrics.queue.set(i64::try_from(ledger.queue_len()).unwrap_or(i64::MAX));
        self.metrics.dropped.inc_by(ledger.take_dropped_count());
        self.queued.notify_one();
    }

    /// Keeps a link to the engine, come what may.
    async fn keep_linked(&self) {
        let mut outage = Outage::default();
        loop {
            let ended = match self.engine.connect().await {
                Ok(link) => self.session(&link, &mut outage).await,
                Err(error) => ControlFlow::Continue(error),
            };
            self.metrics.up.set(0);
            self.ledger.lock().unlink();
            let ControlFlow::Continue(error) = ended else { break };
            self.metrics.errors.inc();
            self.tell_outage(&mut outage, &error);
            self.joined.send_replace(true);
            if *self.is_closed.borrow() {
                break;
            }
            let pause = PAUSE_MIN.saturating_mul(1 << outage.failures.min(10)).min(PAUSE_MAX);
            outage.failures += 1;
            let mut closed = self.is_closed.subscribe();
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => {}
                _ = closed.wait_for(|closed| *closed) => {}
            }
        }
        self.told.send_replace(true);
    }

    fn tell_outage(&self, outage: &mut Outage, error: &EngineError) {
        match outage.since {
            None => {
                outage.since = Some(self.clock.now());
                tracing::warn!(
                    "cluster: {} is away: {error}; answers go on, and what is learned is told to the others once it is back",
                    self.place
                );
            }
            Some(_) => tracing::debug!("cluster: {} is still away: {error}", self.place),
        }
    }

    fn tell_return(&self, outage: &mut Outage) {
        match outage.since {
            None => tracing::info!("cluster: joined at {}", self.place),
            Some(since) => {
                let secs = self.clock.now().since(since).as_secs();
                tracing::info!("cluster: {} is back after {secs} s, and the sets are one again", self.place);
            }
        }
        *outage = Outage::default();
    }

    /// Talks over a link until it fails, or everything is said.
    async fn session(&self, link: &E::Link, outage: &mut Outage) -> ControlFlow<(), EngineError> {
        self.ledger.lock().link();
        let mine = format!("{:016x}", rand::random::<u64>());
        let mark = match link.mark(&mine).await {
            Ok(mark) => mark,
            Err(error) => return ControlFlow::Continue(error),
        };
        tokio::select! {
            ended = self.send(link) => ended.map_or_else(ControlFlow::Continue, ControlFlow::Break),
            Err(error) = self.listen(link, outage) => ControlFlow::Continue(error),
            Err(error) = self.beat(link, &mark) => ControlFlow::Continue(error),
            else => ControlFlow::Break(()),
        }
    }

    /// Tells what waits, as it comes; ends once the learner was closed and nothing is left.
    async fn send(&self, link: &E::Link) -> Result<(), EngineError> {
        loop {
            let is_closed = *self.is_closed.borrow();
            let (batch, all) = {
                let mut ledger = self.ledger.lock();
                let all = ledger.take_must_tell_all();
                (ledger.take(COMMIT_LEN_MAX), all)
            };
            if !batch.is_empty() {
                self.commit(link, &batch).await?;
                let mut ledger = self.ledger.lock();
                ledger.sent();
                self.metrics.queue.set(i64::try_from(ledger.queue_len()).unwrap_or(i64::MAX));
            }
            if all {
                self.tell_all(link).await?;
            } else if batch_is_done(&self.ledger) {
                if is_closed {
                    return Ok(());
                }
                self.queued.notified().await;
            }
        }
    }

    async fn commit(&self, link: &E::Link, batch: &[(message::Member, Ends)]) -> Result<(), EngineError> {
        let of = |pick: fn(&Ends) -> u64| {
            let ends = batch.iter().map(|(member, ends)| (member.clone(), pick(ends)));
            ends.filter(|(_, end)| *end > 0).collect::<Vec<_>>()
        };
        let (held, gone) = (of(|ends| ends.held), of(|ends| ends.gone));
        let record =
            |kind| move |(member, end): &(message::Member, u64)| Record { kind, end: *end, member: member.clone() };
        let records: Vec<Record> =
            gone.iter().map(record(Kind::Gone)).chain(held.iter().map(record(Kind::Held))).collect();
        let now = self.clock.now();
        let messages = records.chunks(RECORDS_LEN_MAX).map(|part| message::encode(self.id, now, part)).collect();
        link.commit(&Commit { held, gone, messages }).await?;
        self.metrics.sent.inc_by(records.len() as u64);
        Ok(())
    }

    /// Compares all of our set with what the engine is known to hold, and tells what it lacks.
    async fn tell_all(&self, link: &E::Link) -> Result<(), EngineError> {
        let snapshot = self.learner.reader().snapshot();
        let sightings = snapshot.hosts().flat_map(|host| host.sightings()).cloned().collect::<Vec<Arc<Sighting>>>();
        drop(snapshot);
        for part in sightings.chunks(COMMIT_LEN_MAX) {
            let (mut batch, mut lifts) = (Vec::new(), Vec::new());
            {
                let (now, mut ledger) = (self.clock.now(), self.ledger.lock());
                for one in part.iter().filter(|one| one.end() > now) {
                    let judged = ledger.judge(one.addr(), one.name(), one.end());
                    let ends = judged.tell.map(|held| Ends { held, gone: 0 });
                    batch.extend(ends.map(|ends| (message::member(one.addr(), one.name()), ends)));
                    lifts.extend(judged.lift.map(|end| held(one.addr(), one.name(), end)));
                }
            }
            if !batch.is_empty() {
                self.commit(link, &batch).await?;
            }
            self.hear(lifts).await;
        }
        Ok(())
    }

    /// Compares everything, then listens to the stream; again whenever there is a gap, or the lists are others.
    async fn listen(&self, link: &E::Link, outage: &mut Outage) -> Result<(), EngineError> {
        let mut relisted = self.catalogue.clone();
        loop {
            relisted.mark_unchanged();
            // The stream from before the comparison on: what changes meanwhile is heard twice rather than never.
            let cursor = link.tail().await?;
            self.compare(link).await?;
            self.metrics.merges.inc();
            if self.metrics.up.get() == 0 {
                self.metrics.up.set(1);
                self.tell_return(outage);
                self.joined.send_replace(true);
            }
            let again = self.clock.now().after(jittered(COMPARE_EVERY));
            tokio::select! {
                gap = self.receive(link, cursor) => gap?,
                changed = relisted.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = self.clock.sleep_until(again) => self.ledger.lock().link(),
            }
        }
    }

    /// Takes in what the engine holds, and tells what it lacks.
    async fn compare(&self, link: &E::Link) -> Result<(), EngineError> {
        // What left early is known first, so that it does not come back for a moment.
        let mut left = Vec::new();
        self.read_table(link, Table::Gone, |addr, name, end| {
            self.ledger.lock().heard_gone(addr, &name, end);
            left.push(Heard { addr, name, word: Word::Gone, end: Timestamp::from_millis(end) });
            None
        })
        .await?;
        self.read_table(link, Table::Held, |addr, name, end| {
            self.ledger.lock().heard_held(addr, &name, end).then(|| held(addr, &name, end))
        })
        .await?;
        left.retain(|one| self.ledger.lock().heard_gone(one.addr, &one.name, one.end.as_millis()));
        self.hear(left).await;
        self.tell_all(link).await
    }

    /// Reads a table and has the learner hear what `take` makes of each entry that may be one of ours.
    async fn read_table(
        &self,
        link: &E::Link,
        table: Table,
        mut take: impl FnMut(IpAddr, Name, u64) -> Option<Heard>,
    ) -> Result<(), EngineError> {
        let (mut at, mut count) = (0, 0);
        loop {
            let page = link.page(table, at).await?;
            count += page.entries.len().max(1);
            if count > MEMBERS_LEN_MAX {
                return Err(EngineError::Foreign("it holds more than all resolvers of a cluster can"));
            }
            let now = self.clock.now();
            let words = page.entries.iter().filter_map(|(member, score)| {
                let (addr, name, end) = self.admit(member, end_of(*score), now)?;
                take(addr, name, end)
            });
            let words = words.collect();
            self.hear(words).await;
            at = page.next;
            if at == 0 {
                return Ok(());
            }
        }
    }

    /// Hears what the others say; ends when something may have been missed.
    async fn receive(&self, link: &E::Link, mut cursor: String) -> Result<(), EngineError> {
        loop {
            let news = link.news(&cursor).await?;
            for octets in &news.messages {
                self.receive_one(octets).await;
            }
            if news.has_gap {
                return Ok(());
            }
            cursor = news.cursor;
        }
    }

    async fn receive_one(&self, octets: &[u8]) {
        let now = self.clock.now();
        let Some(message) = message::decode(octets) else { return self.metrics.refused(Refused::Malformed, 1) };
        if message.sender == self.id {
            return self.metrics.lag.observe(now.since(message.sent).as_secs_f64());
        }
        self.metrics.refused(Refused::Malformed, message.unread_count);
        let mut words = Vec::new();
        for record in &message.records {
            let Some((addr, name, end)) = self.admit(&record.member, Some(record.end), now) else { continue };
            let (word, is_news) = match record.kind {
                Kind::Held => (Word::Held, self.ledger.lock().heard_held(addr, &name, end)),
                Kind::Gone => (Word::Gone, self.ledger.lock().heard_gone(addr, &name, end)),
            };
            if is_news {
                words.push(Heard { addr, name, word, end: Timestamp::from_millis(end) });
            }
        }
        self.hear(words).await;
    }

    /// Lets through what an answer could have brought, too; counts the rest.
    fn admit(&self, member: &[u8], end: Option<u64>, now: Timestamp) -> Option<(IpAddr, Name, u64)> {
        let refused = |refused| {
            self.metrics.refused(refused, 1);
            None
        };
        let (Some((addr, name)), Some(end)) = (message::read_member(member), end) else {
            return refused(Refused::Malformed);
        };
        if end <= now.as_millis() {
            return None;
        }
        if end > now.after(FAR).as_millis() {
            return refused(Refused::TooFar);
        }
        if self.catalogue.borrow().find(&name).is_none() {
            return refused(Refused::Unlisted);
        }
        if self.learner.admits(addr).is_err() {
            return refused(Refused::Inadmissible);
        }
        // Another's options may let answers live longer than ours.
        Some((addr, name, end.min(now.after(self.span_max).as_millis())))
    }

    /// Has the writer take in words, some at a time.
    async fn hear(&self, words: Vec<Heard>) {
        let mut words = words.into_iter();
        loop {
            let part: Vec<Heard> = words.by_ref().take(HEAR_LEN_MAX).collect();
            if part.is_empty() {
                return;
            }
            self.metrics.heard(&self.learner.hear(part).await);
        }
    }

    /// Says that we are there, and looks who else is.
    async fn beat(&self, link: &E::Link, mark: &[u8]) -> Result<(), EngineError> {
        let mut seen = Seen::default();
        let id = format!("{:016x}", self.id);
        // Before the engine has told its time ours must do.
        let mut engine_now = self.clock.now();
        loop {
            let lists = self.catalogue.borrow().hash();
            let asked = self.clock.now();
            let pulse = link.beat(&id, &Said { lists, at: engine_now }.write()).await?;
            let now = self.clock.now();
            if pulse.mark.as_deref() != Some(mark) {
                return Err(EngineError::Emptied);
            }
            self.look_around(&pulse, lists, &mut seen);
            self.look_at_clocks(pulse.time, asked.after(now.since(asked) / 2), &mut seen);
            self.ledger.lock().prune(now);
            let purge = now.min(pulse.time).as_millis().saturating_sub(millis(PURGE_AFTER));
            link.purge(purge).await?;
            engine_now = pulse.time.after(BEAT_EVERY);
            let mut relisted = self.catalogue.clone();
            relisted.mark_unchanged();
            tokio::select! {
                () = self.clock.sleep_until(now.after(BEAT_EVERY)) => {}
                // New lists are told at once.
                Ok(()) = relisted.changed() => engine_now = pulse.time.after(self.clock.now().since(now)),
            }
        }
    }

    fn look_around(&self, pulse: &Pulse, lists: u64, seen: &mut Seen) {
        let said = pulse.nodes.iter().filter_map(|octets| Said::read(octets));
        let present: Vec<Said> = said.filter(|said| said.is_present(pulse.time)).collect();
        // One of them is ours.
        let peers = present.len().saturating_sub(1);
        let differing = present.iter().filter(|said| said.lists != lists).count();
        self.metrics.peers.set(i64::try_from(peers).unwrap_or(i64::MAX));
        self.metrics.peers_differing.set(i64::try_from(differing).unwrap_or(i64::MAX));
        seen.differing_beats = if differing > 0 { seen.differing_beats + 1 } else { 0 };
        // While lists are rolled out they differ for a moment.
        if seen.differing_beats >= 2 && !seen.has_told_lists {
            seen.has_told_lists = true;
            tracing::warn!(
                "cluster: {differing} of {peers} other resolvers have other lists than this one: each keeps what its own \
                 lists have, so their sets differ; bring the zones folder, catalogue.disabled and catalogue.never in line"
            );
        } else if differing == 0 && std::mem::take(&mut seen.has_told_lists) {
            tracing::info!("cluster: all resolvers have the same lists again");
        }
    }

    fn look_at_clocks(&self, engine: Timestamp, ours: Timestamp, seen: &mut Seen) {
        let (ahead, behind) = (engine.since(ours), ours.since(engine));
        self.metrics.clock_offset.set(ahead.as_secs_f64() - behind.as_secs_f64());
        let offset = ahead.max(behind);
        if offset > OFFSET_MAX && !seen.has_told_offset {
            seen.has_told_offset = true;
            tracing::warn!(
                "cluster: the clocks of this host and of {} are {} s apart: ends are wall time, so addresses leave that \
                 much early or late elsewhere; let both hosts follow NTP",
                self.place,
                offset.as_secs()
            );
        } else if offset < OFFSET_MAX / 2 {
            seen.has_told_offset = false;
        }
    }
}

/// Returns whether nothing waits.
fn batch_is_done(ledger: &Mutex<Ledger>) -> bool {
    ledger.lock().queue_len() == 0
}

fn held(addr: IpAddr, name: &Name, end: u64) -> Heard {
    Heard { addr, name: name.clone(), word: Word::Held, end: Timestamp::from_millis(end) }
}

/// Returns the end that a score stands for; `None` if it stands for none.
fn end_of(score: f64) -> Option<u64> {
    // Within the bounds the conversion is exact.
    (score >= 0.0 && score <= END_MAX as f64 && score.fract() == 0.0).then_some(score as u64)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Returns a span between half and one and a half times as long, so that not all do the same at once.
fn jittered(span: Duration) -> Duration {
    span.mul_f64(rand::random_range(0.5..1.5))
}
