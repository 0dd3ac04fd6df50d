//! What the resolvers claim, merged: the union, each address until its latest end.
//!
//! ```text
//!   resolver 1 ─ claims ─┐
//!                        ├─▶ host: until its latest end ─▶ what the sink must be told
//!   resolver 2 ─ claims ─┘
//! ```
//! A *claim* is one resolver's word that an address must be held until an end, or a prefix while it is listed. A claim
//! leaves when its resolver withdraws it, or with its end. Nothing else takes it away:
//!
//! | what happens | what becomes of the claims that are not told again |
//! |---|---|
//! | the whole set of the same session | those gone were withdrawn: they leave, unless they are more than half |
//! | the whole set of another session, or more than half gone at once | hosts stay until their ends, prefixes for the lease |
//! | a resolver fails while another answers | hosts stay until their ends, prefixes for the lease |
//! | all resolvers fail | every host stays until its end, or until the lease has passed since then if that is later; prefixes stay |
//!
//! While a resolver is followed it withdraws its hosts itself, the moment that they end: what it has not withdrawn
//! may have been renewed a moment ago, or it may have gone just now without our knowing. So a claim of a resolver that
//! is followed is kept for [`LIVE_MARGIN`] past its end, longer than it takes to notice that the resolver is gone.
//!
//! The sink is granted more than needed, at most [`SLACK_MAX`], so that repeats rarely write. We withdraw on time.
//!
//! Laws (see the tests): telling two resolvers' sets in either order comes to the same, the union with the latest ends;
//! what the sink was told is what the book holds; nothing leaves before its end unless it was withdrawn.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::client::SILENCE_MAX;
use super::gate::{Refusal, Refusals};
use super::told::{Apps, Delta, Renewed};
use crate::catalogue::AppId;
use crate::clock::Timestamp;
use crate::prefix::{Family, Prefix};
use crate::set::StaticEntry;

/// How long a claim outlives its end while its resolver is followed.
const LIVE_MARGIN: Duration = Duration::from_secs(SILENCE_MAX.as_secs() + 5);
/// How long it does otherwise: ends are told in whole seconds.
const MARGIN: Duration = Duration::from_secs(1);
/// What leaves so long before its end did not end by itself.
const EARLY: Duration = Duration::from_secs(2);
/// The most that the sink is granted beyond what is needed.
const SLACK_MAX: Duration = Duration::from_secs(600);

/// The place of a resolver on the command line.
pub(super) type Source = usize;

/// How much may be held, and how long without a resolver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) hosts_max: usize,
    pub(super) statics_max: usize,
    pub(super) lease: Duration,
}

/// Everything that is claimed.
#[derive(Debug)]
pub(super) struct Book {
    limits: Limits,
    sources: Vec<State>,
    hosts: HashMap<IpAddr, Host>,
    /// How many are IPv4, and IPv6.
    host_counts: [usize; 2],
    statics: BTreeMap<Prefix, Static>,
    /// When each host may leave.
    ends: BTreeSet<(Timestamp, IpAddr)>,
    /// When the prefixes that nobody lists any more leave.
    lapses: BTreeSet<(Timestamp, Prefix)>,
    /// Hosts whose hold the sink must be told anew, as far as it changed.
    touched: BTreeSet<IpAddr>,
    statics_changed: bool,
    /// No host leaves before: all resolvers are gone.
    floor: Option<Timestamp>,
}

/// What is known of one resolver.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    session: Option<u64>,
    is_live: bool,
    /// When its prefixes lapse although it withdrew none; only once it failed.
    lapses_at: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Host {
    claims: SmallVec<[Claim; 1]>,
    apps: Apps,
    /// Its place in `ends`.
    leaves: Timestamp,
    /// Until when the sink holds it.
    granted: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    source: Source,
    end: Timestamp,
    /// Whether the resolver's set holds it still; if not, it is of an earlier session, or not believed gone.
    is_listed: bool,
}

#[derive(Clone, Debug)]
struct Static {
    claims: SmallVec<[StaticClaim; 1]>,
    apps: Apps,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StaticClaim {
    source: Source,
    /// When it lapses, once the resolver lists it no more.
    lapses: Option<Timestamp>,
}

/// What a delta came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) refused: Refusals,
    /// Whether a new session took the place of another.
    pub(super) is_new_session: bool,
    /// How many hosts and prefixes a whole set left out that are held all the same.
    pub(super) kept: usize,
    /// Whether that is because more than half were gone at once.
    pub(super) is_disbelieved: bool,
}

/// What the sink must be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Sorted; until when each must be held, or `None` to withdraw it.
    pub(super) hosts: Vec<(IpAddr, Option<Timestamp>)>,
    /// All of them, if they changed.
    pub(super) statics: Option<Arc<[StaticEntry]>>,
}

impl Book {
    pub(super) fn new(sources: usize, limits: Limits) -> Self {
        Self {
            limits,
            sources: vec![State::default(); sources],
            hosts: HashMap::new(),
            host_counts: [0; 2],
            statics: BTreeMap::new(),
            ends: BTreeSet::new(),
            lapses: BTreeSet::new(),
            touched: BTreeSet::new(),
            statics_changed: false,
            floor: None,
        }
    }

    /// Takes a change of a resolver's set, or the whole of it. The resolver is followed from now on.
    pub(super) fn told(&mut self, source: Source, delta: Delta, now: Timestamp) -> Taken {
        let mut taken = Taken { refused: delta.refused, ..Taken::default() };
        let session = self.sources[source].session.replace(delta.session);
        let is_other = session.is_some_and(|session| session != delta.session);
        taken.is_new_session = session != Some(delta.session);
        self.revive(source);
        if delta.reset || is_other {
            self.leave_out(source, &delta.hosts, &delta.statics, is_other, now, &mut taken);
        }
        for addr in delta.hosts_withdrawn {
            self.withdraw(addr, source, now);
        }
        for prefix in delta.statics_withdrawn {
            self.drop_static_claim(prefix, source);
        }
        for (addr, (end, apps)) in delta.hosts {
            self.claim(addr, Claim { source, end, is_listed: true }, apps, &mut taken.refused);
        }
        for (prefix, apps) in delta.statics {
            self.claim_static(prefix, source, apps, &mut taken.refused);
        }
        taken
    }

    /// Takes later ends of what a resolver claims.
    pub(super) fn renewed(&mut self, source: Source, renewed: &Renewed) {
        if self.sources[source].session != Some(renewed.session) {
            return;
        }
        for (addr, end) in &renewed.ends {
            let Some(host) = self.hosts.get_mut(addr) else { continue };
            let claims = host.claims.iter_mut();
            for claim in claims.filter(|claim| claim.source == source && claim.is_listed && claim.end < *end) {
                claim.end = *end;
            }
            self.settle(*addr);
        }
    }

    /// Notes that a resolver cannot be followed now.
    pub(super) fn failed(&mut self, source: Source, now: Timestamp) {
        let state = &mut self.sources[source];
        if !state.is_live {
            return;
        }
        state.is_live = false;
        state.lapses_at = Some(now.after(self.limits.lease));
        if !self.is_followed() {
            self.floor = Some(now.after(self.limits.lease));
        }
        self.settle_all(source);
    }

    /// Lets go of what has ended.
    pub(super) fn expire(&mut self, now: Timestamp) {
        if self.floor.is_none_or(|floor| floor <= now) {
            while let Some((_, addr)) = self.ends.first().copied().filter(|(leaves, _)| *leaves <= now) {
                self.forget(addr);
            }
        }
        if !self.is_followed() {
            return;
        }
        while let Some((_, prefix)) = self.lapses.first().copied().filter(|(lapses, _)| *lapses <= now) {
            self.lapses.pop_first();
            self.lapse(prefix, |claim, _| claim.lapses.is_some_and(|lapses| lapses <= now));
        }
        if self.sources.iter().any(|state| state.lapses_at.is_some_and(|lapses| lapses <= now)) {
            let prefixes: Vec<Prefix> = self.statics.keys().copied().collect();
            for prefix in prefixes {
                self.lapse(prefix, |claim, state| {
                    !state.is_live && state.lapses_at.is_some_and(|lapses| lapses <= now) && claim.lapses.is_none()
                });
            }
            for state in &mut self.sources {
                state.lapses_at = state.lapses_at.filter(|lapses| *lapses > now);
            }
        }
    }

    /// Returns when [`Self::expire`] has something to do next.
    pub(super) fn next_end(&self) -> Option<Timestamp> {
        let hosts = self.ends.first().map(|(leaves, _)| self.floor.map_or(*leaves, |floor| floor.max(*leaves)));
        let followed = self.is_followed();
        let statics = self.lapses.first().map(|(lapses, _)| *lapses).filter(|_| followed);
        let sources = self.sources.iter().filter_map(|state| state.lapses_at).min().filter(|_| followed);
        [hosts, statics, sources].into_iter().flatten().min()
    }

    /// Returns what the sink must be told since the last time; `None` if nothing.
    pub(super) fn news(&mut self, now: Timestamp) -> Option<News> {
        let touched = std::mem::take(&mut self.touched);
        let hosts: Vec<_> = touched.into_iter().filter_map(|addr| self.grant(addr, now)).collect();
        let statics = std::mem::take(&mut self.statics_changed).then(|| self.static_entries());
        (!hosts.is_empty() || statics.is_some()).then_some(News { hosts, statics })
    }

    /// Returns everything that the sink must hold.
    pub(super) fn whole(&mut self, now: Timestamp) -> News {
        self.statics_changed = false;
        self.touched.clear();
        let mut hosts: Vec<_> = self.hosts.keys().copied().collect();
        hosts.sort_unstable();
        let floor = self.floor;
        let all = hosts.into_iter().filter_map(|addr| {
            let host = self.hosts.get_mut(&addr)?;
            let until = with_slack(host.needed(floor), now);
            host.granted = Some(until);
            Some((addr, Some(until)))
        });
        let hosts = all.collect();
        News { hosts, statics: Some(self.static_entries()) }
    }

    /// Returns whether a resolver is followed now.
    pub(super) fn is_followed(&self) -> bool {
        self.sources.iter().any(|state| state.is_live)
    }

    /// Returns until when every host stays because all resolvers are gone.
    pub(super) fn floor(&self) -> Option<Timestamp> {
        self.floor
    }

    /// Returns until when a host must be held, and the apps that want it.
    pub(super) fn host(&self, addr: IpAddr) -> Option<(Timestamp, &[AppId])> {
        self.hosts.get(&addr).map(|host| (host.end(), &*host.apps))
    }

    /// Counts hosts and static prefixes.
    pub(super) fn counts(&self, family: Family) -> (usize, usize) {
        (
            self.host_counts[usize::from(family == Family::V6)],
            self.statics.keys().filter(|prefix| prefix.family() == family).count(),
        )
    }

    /// A resolver answers: its prefixes do not lapse, and the time without any is over.
    fn revive(&mut self, source: Source) {
        let state = &mut self.sources[source];
        let was_live = std::mem::replace(&mut state.is_live, true);
        state.lapses_at = None;
        self.floor = None;
        if !was_live {
            self.settle_all(source);
        }
    }

    /// Deals with what a whole set does not hold any more.
    fn leave_out(
        &mut self,
        source: Source,
        hosts: &HashMap<IpAddr, (Timestamp, Apps)>,
        statics: &HashMap<Prefix, Apps>,
        is_other: bool,
        now: Timestamp,
        taken: &mut Taken,
    ) {
        let lists = |claim: &&Claim| claim.source == source && claim.is_listed;
        let listed: Vec<IpAddr> = self
            .hosts
            .iter()
            .filter(|(_, host)| host.claims.iter().any(|claim| lists(&claim)))
            .map(|(a, _)| *a)
            .collect();
        let gone: Vec<IpAddr> = listed.iter().filter(|addr| !hosts.contains_key(addr)).copied().collect();
        let is_shrink = gone.len() * 2 > listed.len();
        // Another session begins anew with what it tells again, so that its word can end its own promises only.
        for addr in if is_other { &listed } else { &gone } {
            if is_other || is_shrink {
                self.orphan(*addr, source);
            } else {
                self.drop_claim(*addr, source);
            }
        }
        let listed: Vec<Prefix> =
            self.statics.iter().filter(|(_, entry)| entry.is_listed_by(source)).map(|(prefix, _)| *prefix).collect();
        let gone_statics: Vec<Prefix> = listed.iter().filter(|prefix| !statics.contains_key(prefix)).copied().collect();
        let is_static_shrink = gone_statics.len() * 2 > listed.len();
        for prefix in &gone_statics {
            if is_other || is_static_shrink {
                self.orphan_static(*prefix, source, now.after(self.limits.lease));
            } else {
                self.drop_static_claim(*prefix, source);
            }
        }
        let kept = |is_kept: bool, count: usize| if is_kept { count } else { 0 };
        taken.kept = kept(is_other || is_shrink, gone.len()) + kept(is_other || is_static_shrink, gone_statics.len());
        taken.is_disbelieved = !is_other && (is_shrink || is_static_shrink);
    }

    fn claim(&mut self, addr: IpAddr, claim: Claim, apps: Apps, refused: &mut Refusals) {
        let count = self.hosts.len();
        match self.hosts.entry(addr) {
            Entry::Occupied(mut known) => {
                let host = known.get_mut();
                host.merge(claim);
                host.apps = apps;
            }
            Entry::Vacant(_) if count >= self.limits.hosts_max => return refused.count(Refusal::FullTotal),
            Entry::Vacant(place) => {
                let leaves = Timestamp::default();
                place.insert(Host { claims: SmallVec::from_buf([claim]), apps, leaves, granted: None });
                self.host_counts[usize::from(addr.is_ipv6())] += 1;
            }
        }
        self.settle(addr);
    }

    fn claim_static(&mut self, prefix: Prefix, source: Source, apps: Apps, refused: &mut Refusals) {
        let claim = StaticClaim { source, lapses: None };
        let is_full = self.statics.len() >= self.limits.statics_max;
        match self.statics.get_mut(&prefix) {
            Some(entry) => {
                let others = entry.claims.iter().filter(|claim| claim.source != source).copied();
                entry.claims = others.chain([claim]).collect();
                self.statics_changed |= entry.apps != apps;
                entry.apps = apps;
            }
            None if is_full => refused.count(Refusal::FullStatics),
            None => {
                self.statics.insert(prefix, Static { claims: SmallVec::from_buf([claim]), apps });
                self.statics_changed = true;
            }
        }
    }

    /// Takes a resolver's word that a host has left.
    ///
    /// One that leaves before its end was taken off the lists, and that beats every earlier promise. At its end it
    /// leaves this session alone: an earlier one may have promised more.
    fn withdraw(&mut self, addr: IpAddr, source: Source, now: Timestamp) {
        let Some(host) = self.hosts.get_mut(&addr) else { return };
        let is_early = |claim: &Claim| claim.source == source && claim.is_listed && claim.end > now.after(EARLY);
        if host.claims.iter().any(is_early) {
            host.claims.retain(|claim| claim.source != source);
        }
        self.drop_claim(addr, source);
    }

    /// Lets a listed claim go.
    fn drop_claim(&mut self, addr: IpAddr, source: Source) {
        let Some(host) = self.hosts.get_mut(&addr) else { return };
        host.claims.retain(|claim| claim.source != source || !claim.is_listed);
        self.settle(addr);
    }

    /// Keeps a claim until its end, although it is listed no more.
    fn orphan(&mut self, addr: IpAddr, source: Source) {
        let Some(host) = self.hosts.get_mut(&addr) else { return };
        let listed = host.claims.iter().position(|claim| claim.source == source && claim.is_listed);
        if let Some(listed) = listed {
            let claim = host.claims.remove(listed);
            host.merge(Claim { is_listed: false, ..claim });
        }
        self.settle(addr);
    }

    fn drop_static_claim(&mut self, prefix: Prefix, source: Source) {
        self.lapse(prefix, |claim, _| claim.source == source && claim.lapses.is_none());
    }

    fn orphan_static(&mut self, prefix: Prefix, source: Source, lapses: Timestamp) {
        let Some(entry) = self.statics.get_mut(&prefix) else { return };
        let listed = entry.claims.iter_mut().filter(|claim| claim.source == source && claim.lapses.is_none());
        listed.for_each(|claim| claim.lapses = Some(lapses));
        self.lapses.insert((lapses, prefix));
    }

    /// Takes away claims on a prefix, and the prefix with its last.
    fn lapse(&mut self, prefix: Prefix, has_lapsed: impl Fn(&StaticClaim, &State) -> bool) {
        let Some(entry) = self.statics.get_mut(&prefix) else { return };
        let sources = &self.sources;
        entry.claims.retain(|claim| !has_lapsed(claim, &sources[claim.source]));
        if entry.claims.is_empty() {
            self.statics.remove(&prefix);
            self.statics_changed = true;
        }
    }

    /// Puts a host where its claims put it.
    fn settle(&mut self, addr: IpAddr) {
        let Some(host) = self.hosts.get_mut(&addr) else { return };
        if host.claims.is_empty() {
            return self.forget(addr);
        }
        let leaves = host.claims.iter().map(|claim| {
            let is_live = claim.is_listed && self.sources[claim.source].is_live;
            claim.end.after(if is_live { LIVE_MARGIN } else { MARGIN })
        });
        let leaves = leaves.max().unwrap_or_default();
        if leaves != host.leaves {
            self.ends.remove(&(host.leaves, addr));
            self.ends.insert((leaves, addr));
            host.leaves = leaves;
        }
        if host.granted.is_none_or(|granted| granted < host.needed(self.floor)) {
            self.touched.insert(addr);
        }
    }

    /// Settles all hosts that a resolver claims; all there are if the floor moved.
    fn settle_all(&mut self, source: Source) {
        let is_floored = self.floor.is_some();
        let claimed = |host: &Host| host.claims.iter().any(|claim| claim.source == source);
        let addrs: Vec<IpAddr> =
            self.hosts.iter().filter(|(_, host)| is_floored || claimed(host)).map(|(addr, _)| *addr).collect();
        addrs.into_iter().for_each(|addr| self.settle(addr));
    }

    fn forget(&mut self, addr: IpAddr) {
        if let Some(host) = self.hosts.remove(&addr) {
            self.ends.remove(&(host.leaves, addr));
            self.host_counts[usize::from(addr.is_ipv6())] -= 1;
            self.touched.insert(addr);
        }
    }

    /// Returns what the sink must be told of a host, if it must.
    fn grant(&mut self, addr: IpAddr, now: Timestamp) -> Option<(IpAddr, Option<Timestamp>)> {
        let floor = self.floor;
        let Some(host) = self.hosts.get_mut(&addr) else { return Some((addr, None)) };
        let needed = host.needed(floor);
        if host.granted.is_some_and(|granted| granted >= needed) {
            return None;
        }
        let until = with_slack(needed, now);
        host.granted = Some(until);
        Some((addr, Some(until)))
    }

    fn static_entries(&self) -> Arc<[StaticEntry]> {
        self.statics
            .iter()
            .map(|(prefix, entry)| StaticEntry { prefix: *prefix, apps: Arc::clone(&entry.apps) })
            .collect()
    }
}

impl Host {
    /// Adds a claim, or lengthens the one of its kind that there is: an end once told is never cut.
    fn merge(&mut self, claim: Claim) {
        let is_same = |known: &&mut Claim| (known.source, known.is_listed) == (claim.source, claim.is_listed);
        match self.claims.iter_mut().find(is_same) {
            Some(known) => known.end = known.end.max(claim.end),
            None => self.claims.push(claim),
        }
    }

    /// Until when it must be held.
    fn needed(&self, floor: Option<Timestamp>) -> Timestamp {
        floor.map_or(self.leaves, |floor| floor.max(self.leaves))
    }

    /// The latest end that a resolver told.
    fn end(&self) -> Timestamp {
        self.claims.iter().map(|claim| claim.end).max().unwrap_or_default()
    }
}

impl Static {
    fn is_listed_by(&self, source: Source) -> bool {
        self.claims.iter().any(|claim| claim.source == source && claim.lapses.is_none())
    }
}

/// As much again as is needed, within bounds.
fn with_slack(needed: Timestamp, now: Timestamp) -> Timestamp {
    needed.after(needed.since(now).min(SLACK_MAX))
}

#[cfg(test)]
mod tests;
