//! Matched addresses become sightings: admission, caps, and the one writer.
//!
//! ```text
//!  Learner (any task)                                          Writer (one task)
//!   offer ─▶ all known? ─ yes ─▶ extended in place ─▶ Programmed
//!              └ no ─▶ admit ─▶ bounded queue ─▶ a batch ─▶ Book: match, rate, caps ─▶ set: one snapshot
//!                       Late ◀─ hold ran out ◀─ answered ◀─ Sinks: store, firewalls ◀──┘
//! ```
//!
//! A [`Learner`] is the handle that the pipeline offers answers to. An address is *known* when the end that store and
//! sinks hold is no earlier than the answer needs: `now + max(ttl told, min_hold) + grace`. Known addresses are
//! extended on the spot and cost neither the writer nor a serial; anything else goes to the [`Writer`], the only task
//! that changes the set, and the answer waits for it and for the sinks at most `hold`. A [`Listing`] is what learning
//! needs of the catalogue: how a name is matched, and the static prefixes. What a process begins with is a [`Start`].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};

use crate::catalogue::Tag;
use crate::clock::{Clock, Timestamp};
use crate::metrics::Registry;
use crate::name::Name;
use crate::prefix::Prefix;
use crate::set::outlet::{Outlet, Restored};
use crate::set::{Extended, Joins, Need, Reader, StaticEntry};

mod admit;
mod book;
mod caps;
mod follow;
mod hear;
#[cfg(test)]
mod held;
mod metrics;
mod queue;
mod rate;
mod restore;
mod shrink;
mod sinks;
#[cfg(test)]
mod tests;
mod writer;

pub use admit::{Admission, Reason};
pub use hear::{Heard, Hearing, Word};
pub use shrink::Released;
pub use writer::Writer;

use book::{Admitted, Book};
use follow::Targets;
use hear::Hearings;
use metrics::Metrics;
use queue::{Pending, Queue};
use sinks::Sinks;
use writer::{Command, Reload};

/// What may be learned, how much, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How long an answer with new addresses waits for the set and its local sinks.
    pub hold: Duration,
    /// Whether it waits for followers elsewhere that acknowledge, too.
    pub hold_for_followers: bool,
    /// A sighting lives at least this long, however short its TTL.
    pub min_hold: Duration,
    /// A sighting lives this much longer than the TTL that the client was told.
    pub grace: Duration,
    /// Addresses that are never learned, whatever else says so.
    pub never: Vec<Prefix>,
    /// Special-purpose space that a laboratory lets in (RFC 6890 registries are lifted here).
    pub treat_as_public: Vec<Prefix>,
    /// NAT64 prefixes (/96) whose embedded IPv4 address decides.
    pub nat64: Vec<Prefix>,
    /// Our own addresses and those of the upstreams: never learned.
    pub own: Vec<Prefix>,
    /// The most learned addresses in all.
    pub max_total: usize,
    /// The most addresses for one name.
    pub max_per_name: usize,
    /// The most addresses under one trigger.
    pub max_per_trigger: usize,
    /// New sightings a minute for one client prefix (/24, /56); 0 for no limit.
    pub new_per_client_per_minute: u32,
    /// Whether other resolvers share the set: ends are rounded, so that all of them keep the same.
    pub is_shared: bool,
    /// The largest share of the set, 0 to 1, that lists may take out at once without the operator's word.
    pub max_shrink: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hold: Duration::from_millis(100),
            hold_for_followers: false,
            min_hold: Duration::from_secs(600),
            grace: Duration::from_secs(300),
            never: Vec::new(),
            treat_as_public: Vec::new(),
            nat64: Vec::new(),
            own: Vec::new(),
            max_total: 32_768,
            max_per_name: 1000,
            max_per_trigger: 8192,
            new_per_client_per_minute: 3000,
            is_shared: false,
            max_shrink: 0.5,
        }
    }
}

/// Finds the tag of a name; `None` if no app wants it.
pub type Matcher = Box<dyn Fn(&Name) -> Option<Tag> + Send + Sync>;

/// What learning needs of one generation of the catalogue.
pub struct Listing {
    /// The static prefixes, in any order.
    pub statics: Vec<StaticEntry>,
    /// Matches a name; `None` if no app wants it.
    pub matcher: Matcher,
}

impl Listing {
    /// Makes a listing of static prefixes and a match.
    pub fn new(statics: Vec<StaticEntry>, matcher: impl Fn(&Name) -> Option<Tag> + Send + Sync + 'static) -> Self {
        Self { statics, matcher: Box::new(matcher) }
    }

    /// Matches a name; `None` if no app wants it.
    pub fn tag(&self, name: &Name) -> Option<Tag> {
        (self.matcher)(name)
    }
}

impl fmt::Debug for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listing").field("statics", &self.statics.len()).finish_non_exhaustive()
    }
}

/// The addresses of one answer, offered to the set before a client reads it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The listed name that the addresses are sightings of.
    pub name: Name,
    /// Its tag.
    pub tag: Tag,
    /// Addresses with the TTL in seconds that the client is told; repeats allowed.
    pub addresses: Vec<(IpAddr, u32)>,
    /// Where HTTPS and SVCB records of the listed name itself point, with their TTL in seconds; empty for the answers
    /// of a followed target, so that nothing is followed twice.
    pub targets: Vec<(Name, u32)>,
    /// How many octets wait with the offer: the answer.
    pub octets: usize,
    /// Who asked; `None` for our own questions.
    pub client: Option<IpAddr>,
    /// The generation of the catalogue that gave the tag.
    pub generation: u64,
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every admissible address is in the set, and in the sinks, for as long as the answer needs.
    Programmed,
    /// The hold ran out: give the answer with a TTL of 1 s and offer it again.
    Late,
    /// A cap or a rate said no: give the answer with a TTL of 1 s.
    Refused,
}

impl Outcome {
    /// Returns the metric label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Programmed => "programmed",
            Self::Late => "late",
            Self::Refused => "refused",
        }
    }
}

/// What is left of an offer once the known addresses have been extended.
#[derive(Debug)]
pub struct Unknown {
    rest: Admitted,
    octets: usize,
    hold: Duration,
    now: Timestamp,
}

/// What handles and writer share.
#[derive(Debug)]
struct Shared {
    rules: ArcSwap<Rules>,
    targets: Targets,
}

/// What a handle needs of the options, swapped by the writer.
#[derive(Debug)]
struct Rules {
    admission: Arc<Admission>,
    hold: Duration,
    min_hold: Duration,
    grace: Duration,
    is_shared: bool,
}

impl Rules {
    fn new(admission: Arc<Admission>, options: &Options) -> Self {
        let &Options { hold, min_hold, grace, is_shared, .. } = options;
        Self { admission, hold, min_hold, grace, is_shared }
    }

    /// Works out what an answer needs that is told at `now`.
    fn need(&self, now: Timestamp, ttl_secs: u32) -> Need {
        let need = if self.is_shared { Need::shared } else { Need::new };
        need(now, Duration::from_secs(u64::from(ttl_secs)), self.min_hold, self.grace)
    }
}

/// Whether the operator asked for a reload, or a file that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirm {
    /// The operator did: the second time confirms that the set may shrink.
    Explicit,
    /// Nobody did.
    No,
}

/// What learning begins with.
#[derive(Debug)]
pub struct Start {
    /// What may be learned.
    pub options: Options,
    /// How names are matched.
    pub listing: Listing,
    /// The generation of the catalogue behind the listing.
    pub generation: u64,
    /// The ways to those who hold the set elsewhere. Each sink must take its orders from the start.
    pub outlets: Vec<Outlet>,
    /// Where followers elsewhere join those.
    pub joins: Joins,
    /// What a store kept of the set.
    pub restored: Option<Restored>,
}

impl Start {
    /// Begins with an empty set that nobody else holds.
    pub fn new(options: Options, listing: Listing, generation: u64) -> Self {
        Self { options, listing, generation, outlets: Vec::new(), joins: Joins::default(), restored: None }
    }
}

/// Begins to learn: a handle, and the task that must run for it.
pub fn start(start: Start, clock: Clock, registry: &Registry) -> (Learner, Writer) {
    let Start { options, listing, generation, outlets, joins, restored } = start;
    let metrics = Metrics::new(registry);
    let (book, first) = Book::new(options, listing, generation, restored, clock.now(), (metrics.clone(), registry));
    let shared = Arc::new(Shared {
        rules: ArcSwap::from_pointee(Rules::new(Arc::clone(book.admission()), book.options())),
        targets: Targets::new(generation),
    });
    let reader = book.draft().reader();
    let offers = Queue::new();
    let (commands, commands_in) = mpsc::channel(1);
    let (hearings, hearings_in) = Hearings::channel();
    let (begun_in, begun) = watch::channel(false);
    let mut sinks = Sinks::new(outlets, joins, &metrics, clock.clone());
    sinks.wait_for_followers(book.options().hold_for_followers);
    let writer = Writer {
        book,
        first: Some(first),
        begun: begun_in,
        sinks,
        shared: Arc::clone(&shared),
        clock: clock.clone(),
        offers: Arc::clone(&offers),
        commands: commands_in,
        hearings: hearings_in,
    };
    (Learner { shared, reader, offers, commands, hearings, begun, metrics, clock }, writer)
}

/// The handle that answers are offered to; cheap to clone.
#[derive(Clone, Debug)]
pub struct Learner {
    shared: Arc<Shared>,
    reader: Reader,
    offers: Arc<Queue>,
    commands: mpsc::Sender<Command>,
    hearings: mpsc::Sender<Hearings>,
    begun: watch::Receiver<bool>,
    metrics: Metrics,
    clock: Clock,
}

impl Learner {
    /// Offers the addresses of an answer that is given at `now`; waits at most the hold.
    ///
    /// An offer is applied even if its caller stops waiting. Addresses that may not be learned are left out and
    /// counted; they do not change the outcome.
    pub async fn offer(&self, offer: Offer, now: Timestamp) -> Outcome {
        match self.offer_known(offer, now) {
            Ok(outcome) => outcome,
            Err(unknown) => self.offer_rest(unknown).await,
        }
    }

    /// Does as [`Learner::offer`] if that takes no wait.
    ///
    /// # Errors
    /// What is left to offer with [`Learner::offer_rest`]: addresses that are not known yet.
    pub fn offer_known(&self, mut offer: Offer, now: Timestamp) -> Result<Outcome, Box<Unknown>> {
        self.follow(&mut offer, now);
        let rules = self.shared.rules.load();
        let octets = offer.octets;
        match self.extend_known(offer, &rules, now) {
            None => {
                self.metrics.offered(Outcome::Programmed);
                Ok(Outcome::Programmed)
            }
            Some(rest) => Err(Box::new(Unknown { rest, octets, hold: rules.hold, now })),
        }
    }

    /// Offers what is not known yet; waits at most the hold.
    pub async fn offer_rest(&self, unknown: Box<Unknown>) -> Outcome {
        let outcome = self.wait(*unknown).await;
        self.metrics.offered(outcome);
        outcome
    }

    /// Takes note of an answer whose chain of names is too long to be followed to its end.
    pub fn cut(&self) {
        self.metrics.cut_chains.inc();
    }

    /// Returns the listed name and its tag if `name` is where an HTTPS or SVCB answer of that name points now.
    pub fn followed(&self, name: &Name, now: Timestamp) -> Option<(Name, Tag)> {
        self.shared.targets.find(name, now)
    }

    /// Lets an address through, or says why it is never learned.
    ///
    /// # Errors
    /// The reason, as [`Admission::check`] gives it.
    pub fn admits(&self, addr: IpAddr) -> Result<(), Reason> {
        Ok(self.shared.rules.load().admission.check(addr)?)
    }

    /// Takes in what other resolvers say of the set that they share; returns what became of it once that is published.
    /// It is believed no more than an answer. Nothing becomes of anything once the writer is gone.
    pub async fn hear(&self, words: Vec<Heard>) -> Hearing {
        let (done, is_done) = oneshot::channel();
        match self.hearings.send(Hearings { words, done }).await {
            Ok(()) => is_done.await.unwrap_or_default(),
            Err(_) => Hearing::default(),
        }
    }

    /// Returns the read side of the set.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Waits until those who hold the set elsewhere hold what it begins with, or were given some seconds for it. The
    /// first question should wait for this.
    pub async fn begun(&self) {
        // A writer that is gone leaves nothing to wait for.
        let _ = self.begun.clone().wait_for(|begun| *begun).await;
    }

    /// Goes over to another listing, and other options if there are any: matches every sighting anew, takes out at once
    /// what is no longer listed or admissible, and replaces the static prefixes, all as one serial. Returns once that
    /// is published and told.
    ///
    /// If more than `max_shrink` of the set would leave, what is listed no longer stays instead until that is
    /// confirmed: by another [`Confirm::Explicit`] reload, or by [`Self::accept_shrink`]. Returns how many entries
    /// stay for now.
    ///
    /// Call it before names are matched by the new catalogue: offers of an older generation are matched again when
    /// they arrive late, offers of a newer one are believed.
    pub async fn reload(&self, listing: Listing, generation: u64, options: Option<Options>, confirm: Confirm) -> usize {
        self.command(|done| Command::Reload(Box::new(Reload { listing, generation, options, confirm, done }))).await
    }

    /// Confirms that the set may shrink; returns what left. Nothing that is kept makes nothing leave.
    pub async fn accept_shrink(&self) -> Released {
        self.command(Command::AcceptShrink).await
    }

    /// Waits until the writer takes its next turn; false if it is gone.
    pub async fn is_alive(&self) -> bool {
        self.command(Command::ShowLife).await
    }

    /// Ends learning in order: store and sinks are told the ends of now and that no more will come, and the writer
    /// ends. Returns once they hold that, or after some seconds. Offers are late from then on.
    pub async fn close(&self) {
        self.command(Command::Close).await
    }

    /// Has the writer do something and waits for it; the default if the writer is gone.
    async fn command<T: Default>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (done, is_done) = oneshot::channel();
        match self.commands.send(command(done)).await {
            Ok(()) => is_done.await.unwrap_or_default(),
            Err(_) => T::default(),
        }
    }

    fn follow(&self, offer: &mut Offer, now: Timestamp) {
        for (target, ttl_secs) in std::mem::take(&mut offer.targets) {
            // A TTL of 0 still lets the client ask for the target.
            let until = now.after(Duration::from_secs(u64::from(ttl_secs.max(1))));
            if !self.shared.targets.insert(target, &offer.name, &offer.tag, until, (offer.generation, now)) {
                self.metrics.refused(Reason::FullTargets, 1);
            }
        }
    }

    /// Extends what is known and returns the rest, if any address is not.
    fn extend_known(&self, offer: Offer, rules: &Rules, now: Timestamp) -> Option<Admitted> {
        let addresses = each_once(offer.addresses);
        let snapshot = self.reader.snapshot();
        let (mut rest, mut renewed, mut known_count) = (Vec::new(), Vec::new(), 0);
        for (addr, ttl_secs) in addresses {
            let Some(sighting) = snapshot.host(addr).and_then(|host| host.sighting(&offer.name)) else {
                match rules.admission.check(addr) {
                    Ok(()) => rest.push((addr, ttl_secs)),
                    Err(reason) => self.metrics.refused(reason, 1),
                }
                continue;
            };
            match sighting.extend(&rules.need(now, ttl_secs)) {
                Extended::Known => known_count += 1,
                Extended::Renewed => {
                    known_count += 1;
                    renewed.push(addr);
                }
                Extended::Short => rest.push((addr, ttl_secs)),
            }
        }
        if !renewed.is_empty() {
            self.reader.tell_renewed(&snapshot, renewed);
        }
        let address_count = known_count + rest.len();
        (!rest.is_empty()).then(|| Admitted {
            name: offer.name,
            tag: offer.tag,
            addresses: rest,
            address_count,
            client: offer.client,
            generation: offer.generation,
            admission: Arc::clone(&rules.admission),
        })
    }

    /// Hands the offer to the writer and waits until it is published and held.
    async fn wait(&self, Unknown { rest: offer, octets, hold, now }: Unknown) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        // The queue is as long as answers may wait: one that finds no room, or must make some, goes out at once with a
        // TTL of 1 s, and its next hit offers it again.
        self.offers.push(Pending { offer, now, octets, reply });
        let outcome = match tokio::time::timeout(hold, outcome).await {
            Ok(Ok(outcome)) => outcome,
            // The hold ran out, there was no room, or the writer is gone.
            Err(_) | Ok(Err(_)) => Outcome::Late,
        };
        self.metrics.hold.observe(self.clock.now().since(now).as_secs_f64());
        outcome
    }
}

/// Sorts addresses and keeps each once, with the longest TTL told.
fn each_once(mut addresses: Vec<(IpAddr, u32)>) -> Vec<(IpAddr, u32)> {
    addresses.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    addresses.dedup_by_key(|(addr, _)| *addr);
    addresses
}
