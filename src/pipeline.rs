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
//! `try_answer` is synchronous and does not allocate. A [`Current`] is everything that a reload replaces, under one
//! generation number: an entry matched by another generation is matched and learned anew before it is given, without
//! asking an upstream. An answer that could not be programmed in time is told with TTLs of one second and takes the
//! slow way again.

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use parking_lot::Mutex;

pub use crate::cache::Near;
use crate::cache::{Cache, Entry, Key, KeyBuf, Mark, Tagged};
use crate::catalogue::{Catalogue, MatchId, Tag};
use crate::clock::{Clock, Timestamp};
use crate::forward::Forward;
use crate::learn::{Learner, Offer, Outcome};
use crate::metrics::Registry;
use crate::name::Name;
use crate::policy::Special;
use crate::wire::{self, Answer, Ede, Facts, Given, Question, Refusal, Rules, TagOption, TagText, Transport, View};

mod flight;
mod meter;

use flight::{Boarding, Flights, Landed, Leader};
use meter::Meter;

/// A failure is kept this long: RFC 9520 §3.2 asks for at least a second, so that a broken zone is not asked for by
/// every client; much more would outlast a short trouble.
const FAILURE_SECS: u32 = 2;

/// What an answer is told with while its addresses are not in the set: the client comes back for the rest soon.
const UNPROGRAMMED_TTL_SECS: u32 = 1;

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
        Self { generation, catalogue, forward, special, rules, tag, tags: Mutex::default() }
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
    clock: Clock,
    meter: Meter,
}

impl Pipeline {
    /// Joins the parts.
    pub fn new(current: Current, cache: Cache, learner: Learner, clock: Clock, registry: &Registry) -> Self {
        let generation = AtomicU64::new(current.generation);
        let current = ArcSwap::from_pointee(current);
        let cache = Arc::new(cache);
        let meter = Meter::new(registry, &cache);
        Self(Arc::new(Shared { cache, learner, current, generation, flights: Arc::default(), clock, meter }))
    }

    /// Answers from the cache if that takes neither a wait nor an allocation.
    ///
    /// `out` is cleared first; it does not grow once it has room for the largest reply.
    pub fn try_answer(&self, view: &View<'_>, transport: Transport, now: Timestamp, out: &mut Vec<u8>) -> Tried {
        self.try_answer_by(view, transport, now, out, |key| self.0.cache.find(key))
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

    fn try_answer_by<E: Deref<Target = Entry>>(
        &self,
        view: &View<'_>,
        transport: Transport,
        now: Timestamp,
        out: &mut Vec<u8>,
        find: impl FnOnce(&[u8]) -> Option<E>,
    ) -> Tried {
        let mut key = KeyBuf::new();
        let flags = (view.dnssec_ok(), view.checking_disabled());
        let key = key.fill_folded(view.qtype(), flags, view.qname());
        let Some(entry) = find(key) else { return Tried::Miss };
        let is_matched = entry.mark.generation == self.0.generation.load(Ordering::Acquire);
        if !entry.is_fresh(now) || !entry.mark.programmed || !is_matched {
            return Tried::Miss;
        }
        self.0.meter.hit();
        self.finish(&entry, view, transport, now, out);
        Tried::Answered
    }

    /// Answers whatever it takes: asks an upstream, learns, waits for the set; SERVFAIL at the latest after the
    /// forwarding time-out and the hold. Cancelling it harms nobody: the exchange goes on for others and the cache.
    pub async fn resolve(&self, view: &View<'_>, transport: Transport, client: IpAddr, out: &mut Vec<u8>) {
        let question = view.question();
        match self.land(question, client).await {
            Some(landed) => self.finish(&landed.entry, view, transport, self.0.clock.now(), out),
            None => self.refuse(&view.refuse(wire::rcode::SERVFAIL), out),
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
            ttl_cap: (!entry.mark.programmed).then_some(UNPROGRAMMED_TTL_SECS),
            tag: entry.mark.tagged.as_deref().map(|tagged| &tagged.option),
        };
        wire::finish(&entry.answer, view, &given, wire::limit(view, transport), out);
        self.0.meter.response(entry.answer.rcode());
        if let Some(tagged) = &entry.mark.tagged {
            self.0.meter.tagged(tagged);
        }
    }

    /// Waits for the flight of a question, starting it if it is the first.
    async fn land(&self, question: Question, client: IpAddr) -> Option<Landed> {
        let key = Key::of(&question);
        let seat = match self.0.flights.board(&key) {
            Boarding::Follow(seat) => seat,
            Boarding::Lead(leader, seat) => {
                tokio::spawn(self.clone().fly(question, key, client, leader));
                seat
            }
            Boarding::Full => return None,
        };
        flight::wait(seat).await
    }

    /// Answers a question for all who wait for it.
    async fn fly(self, question: Question, key: Key, client: IpAddr, leader: Leader) {
        let now = self.0.clock.now();
        let upstreams = Arc::clone(self.0.current.load().forward());
        let cached = self.0.cache.find(key.as_bytes()).filter(|entry| entry.is_fresh(now));
        let entry = match cached {
            // Came in between, by the flight before this one.
            Some(entry) if entry.mark.programmed && entry.mark.generation == self.0.current.load().generation => {
                self.0.meter.hit();
                return leader.land(Landed { entry });
            }
            Some(entry) => self.learn_again(&question, &entry, client).await,
            None => {
                self.0.meter.miss();
                self.ask(&question, client).await
            }
        };
        let entry = Arc::new(entry);
        if entry.lifetime_secs > 0 {
            self.keep(&question, &key, &entry, &upstreams);
        }
        leader.land(Landed { entry });
    }

    /// Asks policy or an upstream, and learns from the answer.
    async fn ask(&self, question: &Question, client: IpAddr) -> Entry {
        let current = self.current();
        let own =
            current.special.answer(question).and_then(|octets| wire::walk(&octets, question, &current.rules).ok());
        let (answer, facts) = match own {
            Some(walked) => (walked.answer, Facts::default()),
            None => match current.forward.ask(question).await {
                Ok(walked) => (walked.answer, walked.facts),
                Err(failure) => (failed(question, failure.ede()), Facts::default()),
            },
        };
        drop(current);
        let stored = self.0.clock.now();
        let lifetime_secs = match answer.kind() {
            wire::Kind::Failure => FAILURE_SECS,
            _ => answer.lifetime_secs().unwrap_or(0),
        };
        let mark = self.learn(question, (facts, answer.heap_bytes()), 0, client).await;
        Entry::new(answer, stored, lifetime_secs, mark)
    }

    /// Matches and learns a cached answer anew, without asking anybody.
    async fn learn_again(&self, question: &Question, entry: &Entry, client: IpAddr) -> Entry {
        let now = self.0.clock.now();
        // What is kept has been walked and clamped before: walking it again under the widest rules changes nothing.
        let rules = Rules { min_ttl: 0, max_ttl: u32::MAX, negative_max_ttl: u32::MAX, trust_ad: true };
        let facts = wire::walk(entry.answer.bytes(), question, &rules).map(|walked| walked.facts).unwrap_or_default();
        let octets = entry.answer.heap_bytes();
        let mark = self.learn(question, (facts, octets), entry.age_secs(now), client).await;
        Entry::new(entry.answer.clone(), entry.stored, entry.lifetime_secs, mark)
    }

    /// Matches the name asked and offers the answer's addresses; `octets` is how large the answer is that waits.
    async fn learn(&self, question: &Question, (facts, octets): (Facts, usize), age_secs: u32, client: IpAddr) -> Mark {
        let Shared { learner, clock, meter, .. } = &*self.0;
        let current = self.current();
        let id = current.catalogue.find(&question.name);
        let found = id.map(|id| (id, current.catalogue.tag(id)));
        let tagged = found.as_ref().map(|(id, tag)| current.tagged(*id, tag, meter));
        // A name that a listed name's HTTPS record pointed to is learned for that one, but answers for it carry no tag.
        let (listed, targets) = match found {
            Some((_, tag)) => (Some((question.name.clone(), tag)), facts.targets),
            // What a target points to in its turn is not followed.
            None => (learner.followed(&question.name, clock.now()), Vec::new()),
        };
        let mark = Mark { generation: current.generation, tagged, is_learned: listed.is_some(), programmed: true };
        let Some((name, tag)) = listed else { return mark };
        // What stands behind the last name of a chain that counts is given, but not learned: told like any answer
        // that is not in the set. Without a chain the answer is our own.
        let mark = Mark { programmed: facts.all_addresses || facts.chain.is_empty(), ..mark };
        if facts.addresses.is_empty() && targets.is_empty() {
            return mark;
        }
        // A second more than is told: the age of a cached answer is rounded down to whole seconds.
        let needed = |ttl_secs: u32| ttl_secs.saturating_sub(age_secs).saturating_add(1);
        let offer = Offer {
            name,
            tag,
            addresses: facts.addresses.iter().map(|seen| (seen.addr, needed(seen.ttl_secs))).collect(),
            targets: targets.iter().map(|(name, ttl)| (name.clone(), needed(*ttl))).collect(),
            octets,
            client: Some(client),
            generation: current.generation,
        };
        let outcome = learner.offer(offer, clock.now()).await;
        self.forget_addresses_of(&targets);
        Mark { programmed: mark.programmed && outcome == Outcome::Programmed, ..mark }
    }

    /// Drops cached addresses of names that are followed from now on: they were given without being learned.
    fn forget_addresses_of(&self, targets: &[(Name, u32)]) {
        let mut key = KeyBuf::new();
        for (name, _) in targets {
            for (qtype, dnssec_ok, checking_disabled) in ADDRESS_TYPES.into_iter().flat_map(|qtype| {
                [(qtype, false, false), (qtype, true, false), (qtype, false, true), (qtype, true, true)]
            }) {
                self.0.cache.remove(key.fill(qtype, (dnssec_ok, checking_disabled), name.as_wire()));
            }
        }
    }

    /// Puts an entry into the cache, unless its name became a followed target while it was on its way, or others than
    /// `upstreams` are asked now. Both are looked at afterwards: what changes later finds the entry there and drops it.
    fn keep(&self, question: &Question, key: &Key, entry: &Arc<Entry>, upstreams: &Arc<Forward>) {
        let Shared { cache, learner, clock, current, .. } = &*self.0;
        cache.insert(key, Arc::clone(entry));
        let was_not_learned = !entry.mark.is_learned && ADDRESS_TYPES.contains(&question.qtype);
        let is_followed = was_not_learned && learner.followed(&question.name, clock.now()).is_some();
        if is_followed || !Arc::ptr_eq(upstreams, current.load().forward()) {
            cache.remove(key.as_bytes());
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
