//! The rules by which offers become sightings, without tasks or channels.
//!
//! A [`Book`] takes what the writer hands it, always with the time, and changes its draft of the set:
//!
//! ```text
//!   Admitted ─▶ matched by the current listing? ─▶ known: renew
//!                                                └▶ new: whole answer, client's rate, caps ─▶ sightings
//!   Reload   ─▶ every name matched, every address admitted anew; statics replaced
//!   time     ─▶ sightings that ended leave
//!   publish  ─▶ at most one serial, and what those must be told who hold the set elsewhere
//! ```
//!
//! New addresses of one answer are learned together or not at all, and nobody is evicted for an answer that is then
//! refused. Known ones are renewed whatever becomes of the rest.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::admit::{Admission, Reason};
use super::caps::{Queues, Scope, TriggerKey, Triggers};
use super::metrics::Metrics;
use super::rate::Rates;
use super::shrink::Shrink;
use super::{Confirm, Listing, Options, Outcome};
use crate::catalogue::Tag;
use crate::clock::Timestamp;
use crate::metrics::Registry;
use crate::name::Name;
use crate::set::outlet::Restored;
use crate::set::{Batch, Draft, NameRecord, Need, Session, Sighting, Times};

/// The most sightings at one address: as many names behind one address share its fate at most.
pub(super) const SIGHTINGS_PER_ADDRESS_MAX: usize = 512;

/// The most sightings in all, as a multiple of the most addresses: names that share addresses are bounded too.
const SIGHTINGS_PER_ADDRESS_MEAN: usize = 4;

/// The most sightings that expire in one batch: some 20 ms, so that answers never wait long behind a mass that ends.
const EXPIRE_LEN_MAX: usize = 4096;

/// What passed admission of an answer's addresses and is not known well enough.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    pub(crate) name: Name,
    pub(crate) tag: Tag,
    /// Address and TTL told; each address once.
    pub(crate) addresses: Vec<(IpAddr, u32)>,
    /// How many admissible addresses the answer has, known ones included.
    pub(crate) address_count: usize,
    pub(crate) client: Option<IpAddr>,
    pub(crate) generation: u64,
    /// The rules that let them through.
    pub(crate) admission: Arc<Admission>,
}

/// The state of learning.
#[derive(Debug)]
pub(crate) struct Book {
    pub(super) draft: Draft,
    listing: Listing,
    generation: u64,
    admission: Arc<Admission>,
    pub(super) options: Options,
    pub(super) triggers: Triggers,
    queues: Queues,
    rates: Rates,
    pub(super) metrics: Metrics,
    /// Entries that stay until a shrink is confirmed.
    pub(super) shrink: Option<Shrink>,
}

impl Book {
    /// Begins with the static prefixes of the listing, as serial 1 if there are any; or with what a store kept.
    /// The batch is the first one.
    pub(crate) fn new(
        options: Options,
        mut listing: Listing,
        generation: u64,
        restored: Option<Restored>,
        now: Timestamp,
        (metrics, registry): (Metrics, &Registry),
    ) -> (Self, Batch) {
        let mut draft = match &restored {
            None => Draft::new(Session::random(), now, registry),
            Some(restored) => Draft::resume(restored.session, restored.serial, now, registry),
        };
        draft.set_statics(std::mem::take(&mut listing.statics));
        let mut book = Self {
            draft,
            listing,
            generation,
            admission: Arc::new(Admission::new(&options)),
            triggers: Triggers::default(),
            queues: Queues::default(),
            rates: Rates::new(options.new_per_client_per_minute, now),
            options,
            metrics,
            shrink: None,
        };
        if let Some(restored) = restored {
            book.restore(restored, now);
        }
        let first = book.publish(now);
        (book, first)
    }

    /// Learns what an answer holds. The addresses are in the draft, and published by the next [`Self::publish`].
    pub(crate) fn offer(&mut self, mut offer: Admitted, now: Timestamp) -> Outcome {
        // A reload has passed the answer on its way: what counts is the listing of now.
        if offer.generation < self.generation {
            let Some(tag) = self.listing.tag(&offer.name) else { return Outcome::Programmed };
            offer.tag = tag;
        }
        if !Arc::ptr_eq(&offer.admission, &self.admission) {
            self.admit_again(&mut offer);
        }
        let fresh = self.renew_known(&offer, now);
        if fresh.is_empty() {
            return Outcome::Programmed;
        }
        match self.make_room(&offer, &fresh, now) {
            Ok(()) => {
                self.learn(&offer, &fresh, now);
                Outcome::Programmed
            }
            Err(reason) => {
                self.metrics.refused(reason, fresh.len());
                Outcome::Refused
            }
        }
    }

    /// Matches every name and admits every address anew. Names that are listed no longer leave at once, unless these
    /// are too many. Returns how many entries stay until that is confirmed.
    pub(crate) fn reload(
        &mut self,
        mut listing: Listing,
        generation: u64,
        options: Option<Options>,
        confirm: Confirm,
        now: Timestamp,
    ) -> usize {
        let before = self.draft.host_count() + self.draft.statics().len();
        let statics = std::mem::take(&mut listing.statics);
        self.listing = listing;
        self.generation = generation;
        if let Some(options) = options.filter(|options| *options != self.options) {
            self.rates = Rates::new(options.new_per_client_per_minute, now);
            self.queues = Queues::default();
            self.admission = Arc::new(Admission::new(&options));
            self.options = options;
            self.drop_inadmissible();
        }
        let mut gone = Vec::new();
        for record in self.draft.records() {
            match self.listing.tag(record.name()) {
                None => gone.push(record),
                Some(tag) if tag != *record.tag() => self.retag(&record, tag),
                Some(_) => {}
            }
        }
        self.withdraw(gone, statics, before, confirm)
    }

    /// Takes out what has ended by `now`; of very many the first ones, and the others when called again.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        let mut due: Vec<_> = std::iter::from_fn(|| self.draft.due(now)).take(EXPIRE_LEN_MAX).collect();
        // Neighbours share nodes of the tree: many that end together leave faster in order.
        due.sort_unstable_by_key(|sighting| sighting.addr());
        due.iter().for_each(|sighting| self.take_out(sighting));
    }

    /// Publishes what changed since the last time, at most one new serial. Returns what others must be told of it.
    pub(crate) fn publish(&mut self, now: Timestamp) -> Batch {
        let (draft, triggers, options) = (&self.draft, &self.triggers, &self.options);
        self.queues.tidy(|scope| (count(scope, draft, triggers), cap(scope, options)));
        self.draft.publish(now)
    }

    /// Returns no later than when the next sighting ends.
    pub(crate) fn next_end(&self) -> Option<Timestamp> {
        self.draft.next_end()
    }

    /// Returns the draft, for its read side and its counts.
    pub(crate) fn draft(&self) -> &Draft {
        &self.draft
    }

    /// Returns the rules of admission that hold now.
    pub(crate) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// Returns the listing that holds now.
    pub(crate) fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Returns the options that hold now.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// Returns the counts by trigger.
    #[cfg(test)]
    pub(super) fn triggers(&self) -> &Triggers {
        &self.triggers
    }

    fn admit_again(&self, offer: &mut Admitted) {
        let before = offer.addresses.len();
        offer.addresses.retain(|(addr, _)| match self.admission.check(*addr) {
            Ok(()) => true,
            Err(reason) => {
                self.metrics.refused(reason, 1);
                false
            }
        });
        offer.address_count -= before - offer.addresses.len();
    }

    fn need(&self, ttl_secs: u32, now: Timestamp) -> Need {
        let ttl = Duration::from_secs(u64::from(ttl_secs));
        let need = if self.options.is_shared { Need::shared } else { Need::new };
        need(now, ttl, self.options.min_hold, self.options.grace)
    }

    /// Renews the sightings that there are and returns the addresses that there are none of.
    fn renew_known(&mut self, offer: &Admitted, now: Timestamp) -> Vec<(IpAddr, u32)> {
        let mut fresh = Vec::new();
        for &(addr, ttl_secs) in &offer.addresses {
            let known = self.draft.host(addr).and_then(|host| host.sighting(&offer.name)).cloned();
            match known {
                Some(sighting) => {
                    self.draft.renew(&sighting, &self.need(ttl_secs, now));
                }
                None => fresh.push((addr, ttl_secs)),
            }
        }
        fresh
    }

    /// Makes room for the new addresses of an answer, or says why there is none and changes nothing.
    pub(super) fn make_room(
        &mut self,
        offer: &Admitted,
        fresh: &[(IpAddr, u32)],
        now: Timestamp,
    ) -> Result<(), Reason> {
        if offer.address_count > self.options.max_per_name {
            return Err(Reason::FullName);
        }
        if self.has_plenty(offer, fresh) {
            return if self.rates.take(offer.client, fresh.len(), now) { Ok(()) } else { Err(Reason::ClientRate) };
        }
        let kept: Vec<IpAddr> = offer.addresses.iter().map(|(addr, _)| *addr).collect();
        let fresh: Vec<IpAddr> = fresh.iter().map(|(addr, _)| *addr).collect();
        let wanted = self.wanted(&offer.name, &offer.tag, &fresh);
        // First ask every scope, so that nobody leaves for an answer that another scope refuses.
        for (scope, more) in &wanted {
            let missing = self.missing(scope, *more);
            if missing > 0 && !self.has_victims(scope, missing, &kept, now) {
                return Err(full(scope));
            }
        }
        if !self.rates.take(offer.client, fresh.len(), now) {
            return Err(Reason::ClientRate);
        }
        // Then let them leave, from the narrow scope to the wide: each makes room in the next.
        for (scope, more) in &wanted {
            let missing = self.missing(scope, *more);
            if missing > 0 {
                self.evict(scope, missing, &kept, now);
            }
        }
        Ok(())
    }

    /// Returns whether the new addresses fit whatever else stands there: a look at each count, far from the caps as
    /// most of the time, instead of a list of scopes.
    fn has_plenty(&self, offer: &Admitted, fresh: &[(IpAddr, u32)]) -> bool {
        let (draft, options, more) = (&self.draft, &self.options, fresh.len());
        let fits = |count: usize, cap: usize| count + more <= cap;
        let has_room_at =
            |addr| self.draft.host(addr).is_none_or(|host| fits(host.sightings().len(), SIGHTINGS_PER_ADDRESS_MAX));
        fits(draft.host_count(), options.max_total)
            && fits(draft.sighting_count(), sightings_max(options))
            && fits(draft.address_count(&offer.name), options.max_per_name)
            && fresh.iter().all(|(addr, _)| has_room_at(*addr))
            && offer
                .tag
                .apps()
                .iter()
                .all(|hit| fits(self.triggers.address_count(&TriggerKey::new(hit)), options.max_per_trigger))
    }

    /// Returns whether one more address of a name fits without anybody leaving.
    pub(super) fn has_room(&self, name: &Name, tag: &Tag, addr: IpAddr) -> bool {
        self.wanted(name, tag, &[addr]).iter().all(|(scope, more)| self.missing(scope, *more) == 0)
    }

    /// Returns each scope that the new addresses take room in, and how much; the narrow ones first.
    fn wanted(&self, name: &Name, tag: &Tag, fresh: &[IpAddr]) -> Vec<(Scope, usize)> {
        let mut wanted = vec![(Scope::Name(name.clone()), fresh.len())];
        let host_of = |addr: &IpAddr| self.draft.host(*addr);
        for hit in tag.apps() {
            let key = TriggerKey::new(hit);
            let is_new = |addr: &&IpAddr| {
                !host_of(addr).is_some_and(|host| host.sightings().iter().any(|one| key.is_in(one.tag())))
            };
            let more = fresh.iter().filter(is_new).count();
            wanted.push((Scope::Trigger(key), more));
        }
        let shared = fresh.iter().filter(|addr| host_of(addr).is_some());
        wanted.extend(shared.map(|addr| (Scope::Address(*addr), 1)));
        wanted.push((Scope::Sightings, fresh.len()));
        wanted.push((Scope::Total, fresh.iter().filter(|addr| host_of(addr).is_none()).count()));
        wanted
    }

    /// Returns how many too many `more` would be in the scope.
    fn missing(&self, scope: &Scope, more: usize) -> usize {
        if more == 0 {
            return 0;
        }
        (count(scope, &self.draft, &self.triggers) + more).saturating_sub(cap(scope, &self.options))
    }

    fn has_victims(&mut self, scope: &Scope, missing: usize, kept: &[IpAddr], now: Timestamp) -> bool {
        let kept = kept_in(scope, kept);
        let picked = self.queues.pick(scope, missing, kept, now, (&self.draft, &self.triggers));
        let has_all = picked.len() == missing;
        self.queues.put_back(scope, picked);
        has_all
    }

    fn evict(&mut self, scope: &Scope, missing: usize, kept: &[IpAddr], now: Timestamp) {
        let kept = kept_in(scope, kept);
        let picked = self.queues.pick(scope, missing, kept, now, (&self.draft, &self.triggers));
        for sighting in picked.into_iter().flatten() {
            // An answer may extend it at this very moment; then it stays, and the cap is passed by one for a while.
            if let Some(times) = sighting.leave_if(|times| times.told_until < now) {
                self.uncount(&sighting);
                self.draft.evict(&sighting, times.end);
                self.note_left(&sighting);
                self.metrics.evicted.inc();
            } else {
                self.queues.put_back(scope, vec![vec![sighting]]);
            }
        }
    }

    fn learn(&mut self, offer: &Admitted, fresh: &[(IpAddr, u32)], now: Timestamp) {
        let record = self.record(&offer.name, &offer.tag);
        for &(addr, ttl_secs) in fresh {
            let times = Times::from(self.need(ttl_secs, now));
            self.put_in(Sighting::new(addr, Arc::clone(&record), now, times));
        }
        self.metrics.admitted.inc_by(fresh.len() as u64);
    }

    /// Returns the record that the name's sightings share; what a newer listing says of a known name waits for the
    /// reload that brings it.
    pub(super) fn record(&self, name: &Name, tag: &Tag) -> Arc<NameRecord> {
        self.draft.record(name).unwrap_or_else(|| {
            Arc::new(match self.triggers.alike(tag) {
                Some(alike) => alike.with_name(name.clone()),
                None => NameRecord::new(name.clone(), tag.clone()),
            })
        })
    }

    pub(super) fn put_in(&mut self, sighting: Sighting) {
        let sighting = self.draft.insert(sighting);
        self.count_in(&sighting);
    }

    fn count_in(&mut self, sighting: &Arc<Sighting>) {
        if let Some(host) = self.draft.host(sighting.addr()) {
            self.triggers.insert(sighting.record(), host);
        }
        self.queues.insert(sighting);
    }

    /// Takes a sighting out that is marked as left.
    pub(super) fn take_out(&mut self, sighting: &Sighting) {
        self.uncount(sighting);
        self.draft.remove(sighting);
        self.note_left(sighting);
    }

    fn uncount(&mut self, sighting: &Sighting) {
        if let Some(host) = self.draft.host(sighting.addr()) {
            let is_last = self.draft.address_count(sighting.name()) == 1;
            self.triggers.remove(sighting.record(), host, is_last);
        }
    }

    pub(super) fn drop_name(&mut self, name: &Name) {
        for sighting in self.draft.sightings_of(name) {
            if sighting.leave_if(|_| true).is_some() {
                self.take_out(&sighting);
            }
        }
    }

    /// Gives all sightings of a name a new tag; their times go with them.
    fn retag(&mut self, record: &Arc<NameRecord>, tag: Tag) {
        let retagged = Arc::new(NameRecord::new(record.name().clone(), tag));
        let mut moved = Vec::new();
        for sighting in self.draft.sightings_of(record.name()) {
            if let Some(times) = sighting.leave_if(|_| true) {
                self.take_out(&sighting);
                moved.push(Sighting::new(sighting.addr(), Arc::clone(&retagged), sighting.first_seen(), times));
            }
        }
        for sighting in moved {
            let sighting = self.draft.put_back(sighting);
            self.count_in(&sighting);
        }
    }

    fn drop_inadmissible(&mut self) {
        let refused = |addr| self.admission.check(addr).is_err();
        let hosts = self.draft.hosts().filter(|host| refused(host.addr()));
        let sightings: Vec<_> = hosts.flat_map(|host| host.sightings().iter().cloned()).collect();
        for sighting in sightings {
            if sighting.leave_if(|_| true).is_some() {
                self.take_out(&sighting);
            }
        }
    }
}

/// At one address the other names are the ones to leave, so there it protects nobody that the answer brings it again.
fn kept_in<'a>(scope: &Scope, kept: &'a [IpAddr]) -> &'a [IpAddr] {
    if matches!(scope, Scope::Address(_)) { &[] } else { kept }
}

fn count(scope: &Scope, draft: &Draft, triggers: &Triggers) -> usize {
    match scope {
        Scope::Name(name) => draft.address_count(name),
        Scope::Trigger(key) => triggers.address_count(key),
        Scope::Address(addr) => draft.host(*addr).map_or(0, |host| host.sightings().len()),
        Scope::Sightings => draft.sighting_count(),
        Scope::Total => draft.host_count(),
    }
}

fn cap(scope: &Scope, options: &Options) -> usize {
    match scope {
        Scope::Name(_) => options.max_per_name,
        Scope::Trigger(_) => options.max_per_trigger,
        Scope::Address(_) => SIGHTINGS_PER_ADDRESS_MAX,
        Scope::Sightings => sightings_max(options),
        Scope::Total => options.max_total,
    }
}

/// Returns how many sightings there may be in all.
pub(super) fn sightings_max(options: &Options) -> usize {
    options.max_total.saturating_mul(SIGHTINGS_PER_ADDRESS_MEAN)
}

fn full(scope: &Scope) -> Reason {
    match scope {
        Scope::Name(_) => Reason::FullName,
        Scope::Trigger(_) => Reason::FullTrigger,
        Scope::Address(_) | Scope::Sightings => Reason::FullSightings,
        Scope::Total => Reason::FullTotal,
    }
}
