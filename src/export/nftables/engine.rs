//! What the kernel should hold, what it holds as far as we know, and the way from one to the other.
//!
//! The engine knows the desired state whole: hosts with the instant until which they are granted, and the static
//! prefixes. An order changes it and commits the difference; [`Engine::look_if_due`] dumps the sets and commits the
//! difference that it finds. Both threads call it under one lock, so no commit of ours comes between a dump and what
//! is made of it.
//!
//! An order counts as held if the kernel holds everything that it asked for; what later orders of the same
//! transaction took back does not count. A host that another's element covers as long as it is wanted is held, too.
//!
//! Here stand the state, orders and what is heard of others; `look` compares with the kernel, `commit` changes it.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use nix::errno::Errno;

use super::layout::{Layout, Ownership};
use super::link::{Link, Monitor};
use super::message::Kind;
use super::meter::{Meter, Metrics};
use super::plan::{Held, Plan, Renewal, Surplus, Wanted, is_covered, plan};
use super::range::{Found, Range, Shape};
use super::sets::{SetInfo, Target};
use super::transaction::{Op, Verb};
use super::trouble::Trouble;
use super::{Mode, Options};
use crate::clock::{Clock, Timestamp};
use crate::prefix::{Family, Prefix};
use crate::set::aggregate;
use crate::set::outlet::{Applied, Change, Health};

mod commit;
mod look;

/// The first pause after trouble; it doubles each time.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Looks for changes by others are this far apart at least: a ruleset that changes all the time is no reason to dump
/// all the time. Repairs stay within a second.
const LOOK_GAP_MIN: Duration = Duration::from_millis(20);
/// The longest such gap.
const LOOK_GAP_MAX: Duration = Duration::from_millis(400);
/// How often a set without timeouts is searched for hosts whose time has come.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// So many hosts of a backlog are changed in one transaction: some 30 ms, so that what is fresh comes within the hold.
const CHUNK_LEN: usize = 2048;

/// One set that we fill.
#[derive(Debug)]
struct Set {
    target: Target,
    /// What the kernel's set is like; `None` while it is not there, or will not do.
    info: Option<SetInfo>,
    /// What is ours in it.
    held: Held,
    /// Others' ranges as of the last look, sorted.
    foreign: Vec<Found>,
    /// Elements of ours that nobody knows of, with their ends.
    adopted: HashMap<u128, Timestamp>,
}

/// What was heard of others, the more urgent the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum News {
    /// Nothing that touches us.
    None,
    /// Something in our table, or one of our sets.
    Touched,
    /// Something may have gone unheard.
    Lost,
}

/// Keeps one table.
#[derive(Debug)]
pub(super) struct Engine {
    options: Options,
    layout: Option<Layout>,
    surplus: Surplus,
    health: Health,
    clock: Clock,
    metrics: Meter,
    link: Option<Link>,
    pub(super) ownership: Ownership,
    /// `None` until a renewal has shown it.
    pub(super) renewal: Option<Renewal>,
    sets: Vec<Set>,
    hosts: HashMap<IpAddr, Timestamp>,
    statics: Vec<Prefix>,
    /// Whether the first whole order has come: before it, nothing is changed.
    is_told: bool,
    trouble: Option<Trouble>,
    /// Whether the table or the link is in no state to take elements.
    is_blocked: bool,
    retry: Duration,
    look_at: Timestamp,
    sweep_at: Timestamp,
    looked_at: Timestamp,
    look_took: Duration,
    slow_commits: usize,
    /// What the last dump may be relied on for; `None` if the next look must dump.
    proof: Option<Proof>,
    /// Whether something was heard since the last look.
    is_touched: bool,
    /// Hosts whose change waits for its turn: many came at once, and what is fresh goes before them.
    backlog: Vec<IpAddr>,
    #[cfg(test)]
    pub(super) kernel: super::testing::Kernel,
}

/// That the sets hold what we know of, without a dump: a dump of 100,000 elements costs the kernel 200 ms.
///
/// Every transaction in this network namespace, whoever commits it, raises the generation of the ruleset by one. If it
/// has grown by as many as we committed since the last dump, nobody else changed anything. That does not speak for
/// tables of the operator with rules that change sets while packets pass, so those are always dumped.
#[derive(Clone, Copy, Debug)]
struct Proof {
    /// The generation before the dump.
    generation: u32,
    /// How many transactions the link had committed by then.
    commits: u32,
    /// How often it was relied on.
    uses: u32,
}

impl Engine {
    pub(super) fn new(options: Options, surplus: Surplus, health: Health, clock: Clock, metrics: &Metrics) -> Self {
        let targets = options.targets();
        let layout = match options.mode {
            Mode::Own { mark, size } => Some(Layout::new(options.family, &options.table, mark, size, &targets)),
            Mode::Guest => None,
        };
        let set = |target| Set { target, info: None, held: Held::new(), foreign: Vec::new(), adopted: HashMap::new() };
        let now = clock.now();
        let metrics = metrics.of(&name(&options));
        Self {
            sets: targets.into_iter().map(set).collect(),
            layout,
            options,
            surplus,
            health,
            clock,
            metrics,
            link: None,
            ownership: Ownership::Owned,
            renewal: None,
            hosts: HashMap::new(),
            statics: Vec::new(),
            is_told: false,
            trouble: None,
            is_blocked: true,
            retry: RETRY_MIN,
            look_at: now,
            sweep_at: now,
            looked_at: now,
            look_took: Duration::ZERO,
            slow_commits: 0,
            proof: None,
            is_touched: false,
            backlog: Vec::new(),
            #[cfg(test)]
            kernel: super::testing::Kernel::default(),
        }
    }

    /// Says what becomes of elements that the next look finds and nobody knows of.
    pub(super) fn set_surplus(&mut self, surplus: Surplus) {
        self.surplus = surplus;
    }

    /// Takes changes in order and commits what is fresh; what is bulk waits for [`Engine::work_off`].
    pub(super) fn begin(&mut self, changes: &[Arc<Change>]) {
        let now = self.clock.now();
        let (mut hosts, mut statics_changed, mut is_whole) = (Vec::new(), false, false);
        for change in changes {
            if change.whole {
                self.hosts.clear();
                is_whole = true;
                self.is_told = true;
                self.proof = None;
            }
            for (addr, until) in &change.hosts {
                match until.filter(|until| *until > now) {
                    Some(until) => self.hosts.insert(*addr, until),
                    None => self.hosts.remove(addr),
                };
                if change.is_bulk() && !change.whole { &mut self.backlog } else { &mut hosts }.push(*addr);
            }
            if let Some(statics) = &change.statics {
                self.statics = aggregate(statics.iter().map(|entry| entry.prefix));
                statics_changed = true;
            }
        }
        if is_whole || (self.is_blocked && self.look_at <= now) {
            self.look();
        } else if !self.is_blocked {
            hosts.sort_unstable();
            hosts.dedup();
            let ops = self.changes_for(&hosts, statics_changed);
            if ops.is_empty() && self.is_slow() {
                self.try_pace();
            }
            self.apply(ops);
        }
    }

    /// Takes changes to their end and says of each whether the kernel holds it.
    pub(super) fn take(&mut self, changes: &[Arc<Change>]) -> Vec<Applied> {
        self.begin(changes);
        while self.has_backlog() {
            self.work_off();
        }
        changes.iter().map(|change| self.judgement(change)).collect()
    }

    /// Whether changes wait for their turn.
    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether the answer to a change must wait until there is no backlog.
    pub(super) fn must_wait(&self, change: &Change) -> bool {
        self.has_backlog() && (change.whole || change.is_bulk())
    }

    /// Commits a part of the backlog.
    pub(super) fn work_off(&mut self) {
        if self.is_blocked {
            // The look that ends this looks at everything.
            self.backlog.clear();
            return;
        }
        let rest = self.backlog.len().saturating_sub(CHUNK_LEN);
        let part = self.backlog.split_off(rest);
        let ops = self.changes_for(&part, false);
        self.apply(ops);
        if !self.has_backlog() {
            self.backlog = Vec::new();
            self.show();
        }
    }

    /// Says whether the kernel holds a change.
    pub(super) fn judgement(&self, change: &Change) -> Applied {
        if self.holds(change, self.clock.now()) { Applied::Held } else { Applied::Failed }
    }

    /// Says what a message about a change means for us.
    pub(super) fn judge(&self, port: u32, kind: u16, family: u8, attrs: &[u8]) -> News {
        let attrs = super::attr::Attrs(attrs);
        let is_ours = self.link.as_ref().is_some_and(|link| link.port() == port);
        // In every kind of message the table's name comes as the first type, the set's as the second.
        if is_ours || family != self.options.family.number() || attrs.text(1) != Some(&self.options.table) {
            return News::None;
        }
        let is_about_a_set = [Kind::NewSet as u16, DEL_SET, Kind::NewElements as u16, Kind::DelElements as u16];
        let is_about_the_table = [Kind::NewTable as u16, Kind::DelTable as u16].contains(&kind);
        let names_our_set = || self.sets.iter().any(|set| attrs.text(2) == Some(&set.target.name));
        match kind {
            kind if kind == Kind::NewGeneration as u16 => News::None,
            kind if is_about_a_set.contains(&kind) => {
                if names_our_set() {
                    News::Touched
                } else {
                    News::None
                }
            }
            _ if is_about_the_table || self.layout.is_some() => News::Touched,
            _ => News::None,
        }
    }

    /// Takes note of what was heard.
    pub(super) fn hear(&mut self, news: News) {
        if news != News::None {
            self.proof = None;
            self.is_touched = true;
            let gap = (self.look_took * 4).clamp(LOOK_GAP_MIN, LOOK_GAP_MAX);
            self.look_at = self.look_at.min(self.looked_at.after(gap).max(self.clock.now()));
        }
    }

    /// Returns what is wrong now.
    #[cfg(test)]
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    fn open_link(&self) -> io::Result<Link> {
        #[cfg(not(test))]
        return Link::open();
        #[cfg(test)]
        Link::open().map(|link| link.to(self.kernel.clone()))
    }

    /// Opens the socket that hears of changes.
    pub(super) fn open_monitor(&self) -> io::Result<Monitor> {
        let monitor = Monitor::open()?;
        #[cfg(test)]
        self.kernel.monitor_len().into_iter().for_each(|len| monitor.shrink(len));
        Ok(monitor)
    }

    /// Takes note that changes went unheard.
    pub(super) fn note_lost(&self) {
        self.metrics.failed(Errno::ENOBUFS);
        tracing::warn!(
            table = %self.name(),
            "nftables changed faster than could be followed (ENOBUFS), so the whole is compared; \
             nothing is to be done unless it goes on: then let rulesets be reloaded less often"
        );
    }

    /// Looks twice and says whether each look was spared the dump.
    #[cfg(test)]
    pub(super) fn spared_dumps(&mut self) -> [bool; 2] {
        std::array::from_fn(|_| {
            let uses = self.proof.map(|proof| proof.uses);
            self.look();
            self.proof.is_some_and(|proof| Some(proof.uses) > uses && uses.is_some())
        })
    }

    /// Returns how long nothing is to be done.
    pub(super) fn patience(&self) -> Duration {
        if self.has_backlog() {
            return Duration::ZERO;
        }
        let next = if self.must_sweep() { self.look_at.min(self.sweep_at) } else { self.look_at };
        next.since(self.clock.now())
    }

    /// Looks at the kernel if it is time, and withdraws from sets without timeouts what has ended.
    pub(super) fn look_if_due(&mut self) {
        let now = self.clock.now();
        if self.has_backlog() {
            self.work_off();
        } else if self.look_at <= now {
            self.look();
        } else if self.must_sweep() && self.sweep_at <= now {
            self.sweep_at = now.after(SWEEP_EVERY);
            let over: Vec<IpAddr> =
                self.hosts.iter().filter(|(_, until)| **until <= now).map(|(addr, _)| *addr).collect();
            for addr in &over {
                self.hosts.remove(addr);
            }
            let ops = self.changes_for(&over, false);
            self.apply(ops);
        }
    }

    /// Whether there is a set whose elements do not end by themselves.
    fn must_sweep(&self) -> bool {
        let keeps_for_ever = |set: &Set| set.shape(self.is_signed()).is_some_and(|shape| !shape.has_timeouts);
        !self.is_blocked && self.sets.iter().any(|set| set.target.is_learned() && keeps_for_ever(set))
    }

    fn is_signed(&self) -> bool {
        self.layout.is_none()
    }

    /// Whether the kernel holds what a change asked for, as far as it is still wanted.
    fn holds(&self, change: &Change, now: Timestamp) -> bool {
        if self.is_blocked || !self.is_told {
            return false;
        }
        let holds_host = |(addr, until): &(IpAddr, Option<Timestamp>)| {
            let family = Family::of(*addr);
            let Some(set) = self.sets.iter().find(|set| set.target.is_learned() && set.target.family == family) else {
                return true;
            };
            let range = Range::host(*addr);
            match (until.filter(|until| *until > now), self.hosts.get(addr)) {
                (Some(until), Some(wanted)) => set.holds(Wanted { range, until: Some(until.min(*wanted)) }),
                (_, None) => !set.held.contains_key(&range.first),
                (None, Some(_)) => true,
            }
        };
        let holds_statics = || {
            self.sets
                .iter()
                .enumerate()
                .filter(|(_, set)| !set.target.is_learned())
                .all(|(at, set)| set.info.is_some() && self.plan_from_memory(at).ops.is_empty())
        };
        change.hosts.iter().all(holds_host) && (change.statics.is_none() || holds_statics())
    }

    /// Returns what must change in the kernel for these hosts, and for the static prefixes.
    fn changes_for(&self, hosts: &[IpAddr], statics_changed: bool) -> Vec<Op> {
        let mut ops = Vec::new();
        for (at, set) in self.sets.iter().enumerate() {
            let Some(shape) = set.shape(self.is_signed()) else { continue };
            if set.target.is_learned() {
                let of_family = hosts.iter().filter(|addr| Family::of(**addr) == shape.family);
                ops.extend(of_family.filter_map(|addr| self.change_for(at, set, shape, *addr)));
            } else if statics_changed {
                ops.extend(self.plan_from_memory(at).ops);
            }
        }
        ops
    }

    fn change_for(&self, at: usize, set: &Set, shape: Shape, addr: IpAddr) -> Option<Op> {
        let range = Range::host(addr);
        let held = set.held.get(&range.first);
        let until = self.hosts.get(&addr).copied();
        let verb = match (until, held) {
            (None, None) if set.adopted.contains_key(&range.first) => Verb::Delete,
            (None, None) => return None,
            (None, Some(_)) => Verb::Delete,
            (Some(until), Some((_, ends))) => {
                if !shape.has_timeouts || ends.is_some_and(|ends| ends == until) {
                    return None;
                }
                // What was made without an end has no place for one.
                if ends.is_none() { Verb::Replace } else { self.renew(shape) }
            }
            // Not known to us, but there, and perhaps with too early an end.
            (Some(_), None) if set.adopted.contains_key(&range.first) => Verb::Replace,
            (Some(until), None) => {
                if is_covered(Wanted { range, until: Some(until) }, &set.foreign) {
                    return None;
                }
                Verb::Add
            }
        };
        Some(Op { set: at, verb, range, until })
    }

    /// How an element with an end gets a later one.
    fn renew(&self, shape: Shape) -> Verb {
        if shape.has_intervals { Verb::Replace } else { self.renewal.unwrap_or(Renewal::Update).verb() }
    }

    /// Plans for a set from what we know of it, without asking the kernel.
    fn plan_from_memory(&self, at: usize) -> Plan {
        let set = &self.sets[at];
        let Some(shape) = set.shape(self.is_signed()) else { return Plan::default() };
        let ours = set.held.iter().map(|(first, (last, until))| Found {
            range: Range { first: *first, last: *last },
            until: *until,
            is_signed: true,
        });
        let mut found: Vec<Found> = ours.chain(set.foreign.iter().copied()).collect();
        found.sort_unstable_by_key(|found| found.range);
        self.plan(at, shape, found, false)
    }

    fn plan(&self, at: usize, shape: Shape, found: Vec<Found>, adopts: bool) -> Plan {
        let set = &self.sets[at];
        let wanted = self.wanted(&set.target);
        let is_adopted =
            |found: &Found| set.target.is_learned() && (adopts || set.adopted.contains_key(&found.range.first));
        plan(at, shape, self.renewal.unwrap_or(Renewal::Replace), &wanted, found, is_adopted)
    }

    /// What a set should hold, sorted.
    fn wanted(&self, target: &Target) -> Vec<Wanted> {
        if !target.is_learned() {
            let of_family = self.statics.iter().filter(|prefix| prefix.family() == target.family);
            return of_family.map(|prefix| Wanted { range: Range::prefix(*prefix), until: None }).collect();
        }
        let of_family = self.hosts.iter().filter(|(addr, _)| Family::of(**addr) == target.family);
        let mut wanted: Vec<Wanted> =
            of_family.map(|(addr, until)| Wanted { range: Range::host(*addr), until: Some(*until) }).collect();
        wanted.sort_unstable_by_key(|wanted| wanted.range);
        wanted
    }

    fn name(&self) -> String {
        name(&self.options)
    }
}

fn name(options: &Options) -> String {
    format!("{} {}", options.family.as_str(), options.table)
}

/// The kernel's number for a set that was deleted.
const DEL_SET: u16 = 11;

impl Set {
    fn shape(&self, is_signed: bool) -> Option<Shape> {
        self.info.map(|info| info.shape(self.target.family, is_signed))
    }

    fn holds(&self, wanted: Wanted) -> bool {
        let held = self.held.get(&wanted.range.first);
        let has_timeouts = self.shape(false).is_some_and(|shape| shape.has_timeouts);
        let lasts = |ends: &Option<Timestamp>| {
            !has_timeouts || ends.is_none_or(|ends| wanted.until.is_some_and(|until| ends >= until))
        };
        held.is_some_and(|(last, ends)| *last == wanted.range.last && lasts(ends)) || is_covered(wanted, &self.foreign)
    }

    /// Whether the range is held in pieces between others' ranges.
    fn is_in_pieces(&self, wanted: Wanted) -> bool {
        !self.target.is_learned()
            && self
                .foreign
                .iter()
                .any(|found| wanted.range.first <= found.range.last && found.range.first <= wanted.range.last)
    }

    /// Forgets what the kernel has dropped by itself.
    fn drop_ended(&mut self, now: Timestamp) {
        self.held.retain(|_, (_, until)| until.is_none_or(|until| until > now));
        self.adopted.retain(|_, until| *until > now);
    }

    fn forget(&mut self) {
        self.held.clear();
        self.foreign.clear();
        self.adopted.clear();
    }
}
