//! One question's way, on one screen.
//!
//! Two calls make the core, and every transport uses these two and nothing else:
//!
//! ```text
//! try_answer(view, …, out) ── fresh entry of this catalogue, its addresses in the set ──▶ finish ──▶ Tried::Answered
//!       └─ anything else ──▶ Tried::Miss
//! resolve(view, …) ──▶ flight (equal questions share it)
//!       ├─ cached, but matched by an older catalogue or not yet in the set ──────────────┐
//!       └─ policy (special names) or forward (an upstream) ── walk ──┐                   │
//!                           catalogue match ◀────────────────────────┴───────────────────┘
//!                                 └─▶ learn: offer, hold ──▶ cache ──▶ finish, once per client
//! ```
//!
//! While an upstream keeps silent or fails, answers past their end are given (`stale`); answers in demand are asked for
//! before their end (`ahead`). [`Pipeline::look_ahead`] is the task behind both.
//!
//! `try_answer` is synchronous and does not allocate. A [`Current`] is everything that a reload replaces, under one
//! generation number: an entry matched by another generation is matched and learned anew before it is given, without
//! asking an upstream. An answer that could not be programmed in time is told with TTLs of one second and takes the
//! slow way again.

use std::cell::RefCell;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub use crate::cache::Near;
use crate::cache::{Ahead, Cache, Entry, Found, KeyBuf, Mark, Tagged};
use crate::catalogue::{Catalogue, MatchId, Tag};
use crate::clock::{Clock, Timestamp};
pub use crate::forward::Exchange;
use crate::forward::Forward;
use crate::learn::{Learner, Offer, Outcome, Unknown};
use crate::metrics::Registry;
use crate::name::Name;
use crate::policy::Special;
use crate::wire::{
    self, Answer, Ede, Facts, Given, Question, Refusal, ReplyCookie, Rules, Seen, TagOption, TagText, Transport, View,
};

mod ahead;
mod errands;
mod flight;
mod meter;
mod own;
mod restored;
mod stale;

pub use errands::Errands;
pub use flight::Tell;
pub use own::Heard;

use ahead::Due;
use flight::{Aged, Boarding, Flights, Leader, Packet, Passenger, Passengers};
use meter::{Meter, Prefetch};
use stale::Overdue;

/// A failure is kept this long: RFC 9520 §3.2 asks for at least a second, so that a broken zone is not asked for by
/// every client; much more would outlast a short trouble.
const FAILURE_SECS: u32 = 2;

/// What an answer is told with while its addresses are not in the set: the client comes back for the rest soon.
const UNPROGRAMMED_TTL_SECS: u32 = 1;

thread_local! {
    /// Room for the reply that is being told. Telling does not wait, and asks nothing in its turn.
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Address types, whose cached answers must be learned once their name becomes a followed target.
const ADDRESS_TYPES: [u16; 2] = [wire::rtype::A, wire::rtype::AAAA];

/// How the tag is shown to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagOptions {
    /// The code of the EDNS option, 65001 to 65534 (RFC 6891 §9); 0 for none.
    pub edns_option: u16,
    /// Whether an extended error of code 0 carries it, too (RFC 8914).
    pub extended_error: bool,
}

impl Default for TagOptions {
    fn default() -> Self {
        Self { edns_option: 65_313, extended_error: true }
    }
}

/// What a reload replaces, all at once.
pub struct Current {
    generation: u64,
    catalogue: Arc<Catalogue>,
    forward: Arc<Forward>,
    special: Special,
    rules: Rules,
    tag: TagOptions,
    ahead: Ahead,
    /// Prebuilt tags by match; grows with the matches seen, at most one each.
    tags: Mutex<HashMap<MatchId, Arc<Tagged>>>,
}

impl Current {
    /// Puts the parts of one generation together. `rules` are the clamps that `forward` was made with.
    pub fn new(
        generation: u64,
        catalogue: Arc<Catalogue>,
        forward: Arc<Forward>,
        special: Special,
        rules: Rules,
        tag: TagOptions,
    ) -> Self {
        let ahead = Ahead::default();
        Self { generation, catalogue, forward, special, rules, tag, ahead, tags: Mutex::default() }
    }

    /// Sets what is done before and beyond the end of answers.
    #[must_use]
    pub fn with_ahead(self, ahead: Ahead) -> Self {
        Self { ahead, ..self }
    }

    /// Returns the number of this generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the catalogue of this generation.
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// Returns the upstreams of this generation.
    pub fn forward(&self) -> &Arc<Forward> {
        &self.forward
    }

    /// Returns the prebuilt tag of a match.
    fn tagged(&self, id: MatchId, tag: &Tag, meter: &Meter) -> Arc<Tagged> {
        let build = || {
            let also: Vec<&str> = tag.apps()[1..].iter().map(|hit| hit.app.as_str()).collect();
            let first = tag.primary();
            let text = TagText { app: first.app.as_str(), trigger: &first.trigger, also: &also };
            Arc::new(Tagged {
                option: TagOption::new(self.tag.edns_option, self.tag.extended_error, &text),
                answers: tag.apps().iter().map(|hit| meter.of_app(hit.app.as_str())).collect(),
            })
        };
        Arc::clone(self.tags.lock().entry(id).or_insert_with(build))
    }
}

/// What the quick call could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// The reply stands in the buffer.
    Answered,
    /// There is nothing to say; send nothing.
    Drop,
    /// The slow call must answer.
    Miss,
}

/// The core; cheap to clone.
#[derive(Clone)]
pub struct Pipeline(Arc<Shared>);

struct Shared {
    cache: Arc<Cache>,
    learner: Learner,
    current: ArcSwap<Current>,
    /// That of `current`, where a hit finds it without touching what other threads count references in.
    generation: AtomicU64,
    flights: Arc<Flights>,
    overdue: Overdue,
    due: Due,
    clock: Clock,
    meter: Meter,
}

/// One question on its way.
struct Flight<S: FnOnce(Passengers)> {
    question: Arc<Question>,
    /// Who asked; `None` for ourselves.
    client: Option<IpAddr>,
    /// Whom it is put to.
    upstreams: Arc<Forward>,
    /// Where tasks run that it may need.
    runtime: Handle,
    leader: Leader<S>,
    /// What may be given if it takes too long, or fails.
    aged: Option<Aged>,
    /// Held by a question of our own.
    seat: Option<OwnedSemaphorePermit>,
}

/// What is left to learn from an answer.
struct Lesson {
    mark: Mark,
    targets: Vec<(Name, u32)>,
    unknown: Box<Unknown>,
}

impl Pipeline {
    /// Joins the parts.
    pub fn new(current: Current, cache: Cache, learner: Learner, clock: Clock, registry: &Registry) -> Self {
        let generation = AtomicU64::new(current.generation);
        let current = ArcSwap::from_pointee(current);
        let cache = Arc::new(cache);
        let meter = Meter::new(registry, &cache);
        let (flights, overdue, due) = (Arc::default(), Overdue::default(), Due::default());
        Self(Arc::new(Shared { cache, learner, current, generation, flights, overdue, due, clock, meter }))
    }

    /// Gives answers past their end to those who have waited long enough, and asks anew for what is in demand. Must run
    /// for as long as questions come, inside a tokio runtime; it never ends by itself.
    pub async fn look_ahead(self) {
        tokio::join!(self.relieve_overdue(), self.ask_for_due());
    }

    /// Answers from the cache if that takes neither a wait nor an allocation.
    ///
    /// `out` is cleared first; it does not grow once it has room for the largest reply.
    pub fn try_answer(&self, view: &View<'_>, transport: Transport, now: Timestamp, out: &mut Vec<u8>) -> Tried {
        self.try_answer_by(view, transport, now, out, |key| self.0.cache.find(key).map(Found::Far))
    }

    /// The same for a thread with a table of its own.
    pub fn try_answer_near(
        &self,
        near: &mut Near,
        view: &View<'_>,
        transport: Transport,
        now: Timestamp,
        out: &mut Vec<u8>,
    ) -> Tried {
        self.try_answer_by(view, transport, now, out, |key| near.find(&self.0.cache, key))
    }

    /// Notes in a thread's own table that a question is about to be answered by it.
    pub fn foresee(&self, near: &mut Near, view: &View<'_>) {
        let mut key = KeyBuf::new();
        let flags = (view.dnssec_ok(), view.checking_disabled());
        near.foresee(&self.0.cache, key.fill_folded(view.qtype(), flags, view.qname()));
    }

    fn try_answer_by<'a>(
        &self,
        view: &View<'_>,
        transport: Transport,
        now: Timestamp,
        out: &mut Vec<u8>,
        find: impl FnOnce(&[u8]) -> Option<Found<'a>>,
    ) -> Tried {
        let mut key = KeyBuf::new();
        let flags = (view.dnssec_ok(), view.checking_disabled());
        let key = key.fill_folded(view.qtype(), flags, view.qname());
        let Some(entry) = find(key) else { return Tried::Miss };
        let is_matched = entry.is_of(self.0.generation.load(Ordering::Acquire));
        if !entry.is_fresh(now) || !entry.is_programmed() || !is_matched {
            return Tried::Miss;
        }
        self.given(&entry, now);
        self.0.meter.hit();
        self.finish(&entry, view, transport, now, out);
        Tried::Answered
    }

    /// Answers whatever it takes: asks an upstream, learns, waits for the set; SERVFAIL at the latest after the
    /// forwarding time-out and the hold. Cancelling it harms nobody: the exchange goes on for others and the cache.
    pub async fn resolve(&self, view: &View<'_>, transport: Transport, client: IpAddr, out: &mut Vec<u8>) {
        let (sender, seat) = oneshot::channel();
        self.set_out(view.question(), client, Passenger::Task(sender), &Handle::current());
        match seat.await {
            Ok(entry) => self.finish(&entry, view, transport, self.0.clock.now(), out),
            Err(_) => self.refuse(&view.refuse(wire::rcode::SERVFAIL), out),
        }
    }

    /// Does as [`Pipeline::resolve`] for the question in `packet`, without a task where none is needed: `tell` gets the
    /// reply, now or later, here or on another thread; it carries `cookie`. It must not block. Without a question in `packet` it
    /// is dropped.
    pub fn resolve_then(
        &self,
        (packet, cookie): (&[u8], Option<ReplyCookie>),
        transport: Transport,
        client: IpAddr,
        runtime: &Handle,
        tell: impl FnOnce(&[u8]) + Send + 'static,
    ) {
        if let Seen::Question(view) = wire::see(packet, transport) {
            let packet = Packet { octets: packet.into(), cookie, transport, tell: Box::new(tell) };
            self.set_out(view.question(), client, Passenger::Packet(packet), runtime);
        }
    }

    /// Writes a refusal and counts it.
    pub fn refuse(&self, refusal: &Refusal<'_>, out: &mut Vec<u8>) {
        out.clear();
        refusal.write(out);
        self.0.meter.response(refusal.rcode());
    }

    /// Replaces catalogue, upstreams and tags at once. Entries of the cache stay and are matched anew when asked for.
    pub fn replace(&self, current: Current) {
        let generation = current.generation;
        self.0.current.store(Arc::new(current));
        // Afterwards: who sees the new number and takes the slow way finds the parts that belong to it.
        self.0.generation.store(generation, Ordering::Release);
    }

    /// Returns the parts in force.
    pub fn current(&self) -> Arc<Current> {
        self.0.current.load_full()
    }

    /// Forgets every cached answer, as new upstreams or clamps ask for.
    pub fn clear_cache(&self) {
        self.0.cache.clear();
    }

    /// Returns the cache, for those who show its size.
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Writes this client's reply from an entry. Both calls end here.
    fn finish(&self, entry: &Entry, view: &View<'_>, transport: Transport, now: Timestamp, out: &mut Vec<u8>) {
        let given = Given {
            age_secs: entry.age_secs(now),
            ttl_cap: (!entry.is_programmed()).then_some(UNPROGRAMMED_TTL_SECS),
            tag: entry.tagged().map(|tagged| &tagged.option),
        };
        wire::finish(entry.answer(), view, &given, wire::limit(view, transport), out);
        self.0.meter.response(entry.answer().rcode());
        if let Some(tagged) = entry.tagged() {
            self.0.meter.tagged(tagged);
        }
    }

    /// Joins the flight of a question, or starts it.
    fn set_out(&self, question: Question, client: IpAddr, passenger: Passenger, runtime: &Handle) {
        let (question, pipeline, now) = (Arc::new(question), self.clone(), self.0.clock.now());
        match self.0.flights.board(&question, passenger, now, move |left| pipeline.apologize(left)) {
            Boarding::Follow => {}
            Boarding::Relieved(passenger, entry) => {
                self.relieve(question, entry, Some(client), Passengers::from_iter([passenger]), runtime);
            }
            Boarding::Full(left) => self.leave_behind(question, client, left, now, runtime),
            Boarding::Lead(leader) => {
                let upstreams = Arc::clone(self.0.current.load().forward());
                let (client, runtime) = (Some(client), runtime.clone());
                self.fly(Flight { question, client, upstreams, runtime, leader, aged: None, seat: None }, now);
            }
        }
    }

    /// Answers a question for all who wait for it.
    fn fly<S: FnOnce(Passengers) + Send + 'static>(&self, mut flight: Flight<S>, now: Timestamp) {
        let Shared { cache, current, meter, .. } = &*self.0;
        match cache.find(KeyBuf::new().fill_of(&flight.question)) {
            // Came in between, by the flight before this one.
            Some(entry) if entry.is_fresh(now) && entry.is_programmed() && entry.is_of(current.load().generation) => {
                meter.hit();
                self.tell(flight.leader.land(), &entry, now);
            }
            Some(entry) if entry.is_fresh(now) => {
                let pipeline = self.clone();
                errands::spawn(&flight.runtime.clone(), async move {
                    let again = pipeline.learn_again(&flight.question, &entry, flight.client).await;
                    pipeline.deliver(flight, &again, pipeline.0.clock.now());
                });
            }
            Some(entry) if self.may_be_stale(&entry, now) => {
                if entry.has_failed_lately(now) {
                    let Flight { question, client, leader, runtime, .. } = flight;
                    return self.relieve(question, entry, client, leader.land(), &runtime);
                }
                let aged = self.aged(entry, now);
                flight.leader.replaces(aged.clone());
                self.watch(&aged, &flight.question, flight.client);
                flight.aged = Some(aged);
                self.ask(flight);
            }
            _ => {
                meter.miss();
                self.ask(flight);
            }
        }
    }

    /// Answers a question that the cache cannot answer.
    fn ask<S: FnOnce(Passengers) + Send + 'static>(&self, flight: Flight<S>) {
        let pipeline = self.clone();
        if let Some(answer) = self.own_answer(&flight.question) {
            return pipeline.arrived(flight, answer, Facts::default());
        }
        let (question, runtime) = (Arc::clone(&flight.question), flight.runtime.clone());
        Arc::clone(&flight.upstreams).ask_then(question, &runtime, move |result| {
            let (answer, facts) = match result {
                Ok(walked) => (walked.answer, walked.facts),
                Err(failure) => (failed(&flight.question, failure.ede()), Facts::default()),
            };
            pipeline.arrived(flight, answer, facts);
        });
    }

    /// Answers a question that finds no room among those on their way.
    fn leave_behind(
        &self,
        question: Arc<Question>,
        client: IpAddr,
        passenger: Passenger,
        now: Timestamp,
        runtime: &Handle,
    ) {
        let passengers = Passengers::from_iter([passenger]);
        let cached = self.0.cache.find(KeyBuf::new().fill_of(&question));
        match cached.filter(|entry| entry.is_fresh(now) || self.may_be_stale(entry, now)) {
            Some(entry) => self.relieve(question, entry, Some(client), passengers, runtime),
            None => self.apologize(passengers),
        }
    }

    /// Answers names that are ours to answer.
    fn own_answer(&self, question: &Question) -> Option<Answer> {
        let current = self.0.current.load();
        let octets = current.special.answer(question)?;
        Some(wire::walk(&octets, question, &current.rules).ok()?.answer)
    }

    /// Learns from an answer, and delivers it where it stands unless that takes a wait.
    fn arrived<S: FnOnce(Passengers) + Send + 'static>(self, mut flight: Flight<S>, answer: Answer, facts: Facts) {
        let stored = self.0.clock.now();
        if answer.kind() == wire::Kind::Failure
            && let Some(aged) = flight.aged.take_if(|aged| aged.outlasts(&answer, stored))
        {
            return self.refresh_failed(flight, &aged.entry, stored);
        }
        let lifetime_secs = match answer.kind() {
            wire::Kind::Failure => FAILURE_SECS,
            _ => answer.lifetime_secs().unwrap_or(0),
        };
        let octets = answer.heap_bytes();
        let entry = move |question: &Question, mark| Entry::new(question, answer.kept(), stored, lifetime_secs, mark);
        match self.learn_known(&flight.question, (facts, octets), 0, (flight.client, stored)) {
            Ok(mark) => {
                let entry = entry(&flight.question, mark);
                self.deliver(flight, &entry, stored);
            }
            Err(lesson) => errands::spawn(&flight.runtime.clone(), async move {
                let entry = entry(&flight.question, self.learn_rest(lesson).await);
                self.deliver(flight, &entry, self.0.clock.now());
            }),
        }
    }

    /// Keeps an answer and tells it to all who wait for it.
    fn deliver<S: FnOnce(Passengers)>(&self, flight: Flight<S>, entry: &Entry, now: Timestamp) {
        let Flight { question, client, upstreams, leader, aged, seat, .. } = flight;
        let (is_kept, is_failure) = (entry.lifetime_secs() > 0, entry.answer().kind() == wire::Kind::Failure);
        let result = match (is_kept && !is_failure, entry.is_programmed()) {
            (false, _) => Prefetch::Failed,
            (true, false) => Prefetch::Unlearned,
            (true, true) => Prefetch::Refreshed,
        };
        if seat.is_some() {
            self.0.meter.prefetch(result);
        }
        let is_old_better = |aged: &Aged| seat.is_some() && result != Prefetch::Refreshed && aged.entry.is_fresh(now);
        if aged.as_ref().is_some_and(is_old_better) {
            // The old one is given to its end, as if nobody had asked.
        } else if is_kept && (client.is_some() || !self.is_worse(&question, entry)) {
            self.keep(&question, entry, &upstreams, now);
        } else if aged.is_some() && !is_failure {
            // What came instead cannot be kept, but it is the truth.
            self.0.cache.remove(KeyBuf::new().fill_of(&question));
        }
        let passengers = leader.land();
        if aged.is_some() && !passengers.is_empty() {
            self.0.meter.miss();
        }
        self.tell(passengers, entry, now);
    }

    /// Returns whether the entry is a failure where the cache has an answer that may still be given: one of our own
    /// questions was asked before its time.
    fn is_worse(&self, question: &Question, entry: &Entry) -> bool {
        let Shared { cache, clock, .. } = &*self.0;
        let now = clock.now();
        let may_be_given = |held: Entry| held.is_fresh(now) || self.may_be_stale(&held, now);
        let is_better = |held: Entry| held.answer().kind() != wire::Kind::Failure && may_be_given(held);
        entry.answer().kind() == wire::Kind::Failure
            && cache.find(KeyBuf::new().fill_of(question)).is_some_and(is_better)
    }

    /// Tells an answer to those who waited for it.
    fn tell(&self, passengers: Passengers, entry: &Entry, now: Timestamp) {
        for passenger in passengers {
            match passenger {
                // Whoever waited may be gone.
                Passenger::Task(seat) => drop(seat.send(entry.clone())),
                Passenger::Packet(packet) => self.reply(packet, |view, transport, out| {
                    self.finish(entry, view, transport, now, out);
                }),
            }
        }
    }

    /// Tells those who waited that nothing came; tasks hear it by the end of their channel.
    fn apologize(&self, passengers: Passengers) {
        for passenger in passengers {
            if let Passenger::Packet(packet) = passenger {
                self.reply(packet, |view, _, out| self.refuse(&view.refuse(wire::rcode::SERVFAIL), out));
            }
        }
    }

    fn reply(&self, packet: Packet, write: impl FnOnce(&View<'_>, Transport, &mut Vec<u8>)) {
        let Packet { octets, cookie, transport, tell } = packet;
        // The same octets gave a question before.
        if let Seen::Question(view) = wire::see(&octets, transport) {
            let view = view.with_reply_cookie(cookie);
            REPLY.with_borrow_mut(|out| {
                write(&view, transport, out);
                tell(out);
            });
        }
    }

    /// Matches and learns a cached answer anew, without asking anybody.
    async fn learn_again(&self, question: &Question, entry: &Entry, client: Option<IpAddr>) -> Entry {
        let now = self.0.clock.now();
        // What is kept has been walked and clamped before: walking it again under the widest rules changes nothing.
        let rules = Rules { min_ttl: 0, max_ttl: u32::MAX, negative_max_ttl: u32::MAX, trust_ad: true };
        let facts = wire::walk(entry.answer().bytes(), question, &rules).map(|walked| walked.facts).unwrap_or_default();
        let octets = entry.answer().octets().len();
        let mark = match self.learn_known(question, (facts, octets), entry.age_secs(now), (client, now)) {
            Ok(mark) => mark,
            Err(lesson) => self.learn_rest(lesson).await,
        };
        Entry::new(question, entry.answer(), entry.stored(), entry.lifetime_secs(), mark)
    }

    /// Matches the name asked and offers the answer's addresses; `octets` is how large the answer is that waits.
    ///
    /// # Errors
    /// A lesson for [`Pipeline::learn_rest`], if addresses are not known yet.
    fn learn_known(
        &self,
        question: &Question,
        (facts, octets): (Facts, usize),
        age_secs: u32,
        (client, now): (Option<IpAddr>, Timestamp),
    ) -> Result<Mark, Box<Lesson>> {
        let Shared { learner, meter, current, .. } = &*self.0;
        let current = current.load();
        let id = current.catalogue.find(&question.name);
        let found = id.map(|id| (id, current.catalogue.tag(id)));
        let tagged = found.as_ref().map(|(id, tag)| current.tagged(*id, tag, meter));
        // A name that a listed name's HTTPS record pointed to is learned for that one, but answers for it carry no tag.
        let (listed, targets) = match found {
            Some((_, tag)) => (Some((question.name.clone(), tag)), facts.targets),
            // What a target points to in its turn is not followed.
            None => (learner.followed(&question.name, now), Vec::new()),
        };
        let mark = Mark { generation: current.generation, tagged, is_learned: listed.is_some(), programmed: true };
        let Some((name, tag)) = listed else { return Ok(mark) };
        // What stands behind the last name of a chain that counts is given, but not learned: told like any answer
        // that is not in the set.
        let is_cut = !facts.all_addresses;
        if is_cut {
            learner.cut();
        }
        let mark = Mark { programmed: !is_cut, ..mark };
        if facts.addresses.is_empty() && targets.is_empty() {
            return Ok(mark);
        }
        // A second more than is told: the age of a cached answer is rounded down to whole seconds.
        let needed = |ttl_secs: u32| ttl_secs.saturating_sub(age_secs).saturating_add(1);
        let offer = Offer {
            name,
            tag,
            addresses: facts.addresses.iter().map(|seen| (seen.addr, needed(seen.ttl_secs))).collect(),
            targets: targets.iter().map(|(name, ttl)| (name.clone(), needed(*ttl))).collect(),
            octets,
            client,
            generation: current.generation,
        };
        match learner.offer_known(offer, now) {
            Ok(outcome) => Ok(self.learned(mark, outcome, &targets)),
            Err(unknown) => Err(Box::new(Lesson { mark, targets, unknown })),
        }
    }

    /// Offers the addresses that are not known yet; waits at most the hold.
    async fn learn_rest(&self, lesson: Box<Lesson>) -> Mark {
        let Lesson { mark, targets, unknown } = *lesson;
        let outcome = self.0.learner.offer_rest(unknown).await;
        self.learned(mark, outcome, &targets)
    }

    fn learned(&self, mark: Mark, outcome: Outcome, targets: &[(Name, u32)]) -> Mark {
        self.forget_addresses_of(targets);
        Mark { programmed: mark.programmed && outcome == Outcome::Programmed, ..mark }
    }

    /// Drops cached addresses of names that are followed from now on: they were given without being learned. Those past
    /// their end stay: they are learned whenever they are given.
    fn forget_addresses_of(&self, targets: &[(Name, u32)]) {
        let (mut key, now) = (KeyBuf::new(), self.0.clock.now());
        for (name, _) in targets {
            for (qtype, dnssec_ok, checking_disabled) in ADDRESS_TYPES.into_iter().flat_map(|qtype| {
                [(qtype, false, false), (qtype, true, false), (qtype, false, true), (qtype, true, true)]
            }) {
                let key = key.fill(qtype, (dnssec_ok, checking_disabled), name.as_wire());
                if self.0.cache.find(key).is_some_and(|entry| entry.is_fresh(now) && !entry.is_learned()) {
                    self.0.cache.remove(key);
                }
            }
        }
    }

    /// Puts an entry into the cache, unless its name became a followed target while it was on its way, or others than
    /// `upstreams` are asked now. Both are looked at afterwards: what changes later finds the entry there and drops it.
    fn keep(&self, question: &Question, entry: &Entry, upstreams: &Arc<Forward>, now: Timestamp) {
        let Shared { cache, learner, current, .. } = &*self.0;
        cache.insert(KeyBuf::new().fill_of(question), entry.clone());
        let was_not_learned = !entry.is_learned() && ADDRESS_TYPES.contains(&question.qtype);
        let is_followed = was_not_learned && learner.followed(&question.name, now).is_some();
        if is_followed || !Arc::ptr_eq(upstreams, current.load().forward()) {
            cache.remove(KeyBuf::new().fill_of(question));
        }
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline").field("cache", &self.0.cache).finish_non_exhaustive()
    }
}

/// The answer when no upstream gave one.
fn failed(question: &Question, ede: Ede) -> Answer {
    wire::synthesize(question, wire::rcode::SERVFAIL, &[ede])
}
