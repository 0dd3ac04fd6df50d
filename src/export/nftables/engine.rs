//! What the kernel should hold, what it holds as far as we know, and the way from one to the other.
//!
//! The engine knows the desired state whole: hosts with the instant until which they are granted, and the static
//! prefixes. An order changes it and commits the difference; [`Engine::look_if_due`] dumps the sets and commits the
//! difference that it finds. Both threads call it under one lock, so no commit of ours comes between a dump and what
//! is made of it.
//!
//! An order counts as held if the kernel holds everything that it asked for; what later orders of the same
//! transaction took back does not count. A host that another's element covers as long as it is wanted is held, too.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use nix::errno::Errno;
use tokio::time::Instant;

use super::layout::{Layout, Ownership, Standing};
use super::link::{Link, Monitor};
use super::message::{Batch, Kind};
use super::meter::{Meter, Metrics};
use super::plan::{Held, Plan, Renewal, Surplus, Wanted, is_covered, plan};
use super::range::{Dump, Found, Range, Shape};
use super::sets::{self, SetInfo, Target};
use super::transaction::{self, Broken, Op, Outcome, Place, Table, Verb};
use super::trouble::Trouble;
use super::{Mode, Options};
use crate::clock::{Clock, Timestamp};
use crate::prefix::{Family, Prefix};
use crate::set::aggregate;
use crate::set::outlet::{Applied, Change, Health, State};

/// How often the whole is compared.
const COMPARE_EVERY: Duration = Duration::from_secs(60);
/// The first pause after trouble; it doubles each time.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Looks for changes by others are this far apart at least: a ruleset that changes all the time is no reason to dump
/// all the time. Repairs stay within a second.
const LOOK_GAP_MIN: Duration = Duration::from_millis(20);
/// The longest such gap.
const LOOK_GAP_MAX: Duration = Duration::from_millis(400);
/// How often a set without timeouts is searched for hosts whose time has come.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// So many commits in a row that take more than half the hold make us slow.
const SLOW_COMMITS: usize = 20;
/// A renewal by less than this tells nothing about whether the kernel did it.
const TELLING_RENEWAL: Duration = Duration::from_secs(5);

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
    #[cfg(test)]
    pub(super) kernel: super::testing::Kernel,
}

/// That a set of ours holds what we know of, without a dump: a dump of 100,000 elements costs the kernel 200 ms.
///
/// Every transaction in this network namespace, whoever commits it, raises the generation of the ruleset by one. If it
/// has grown by as many as we committed since the last dump, nobody else changed anything. That does not speak for sets
/// of the operator, to which rules may add elements while packets pass.
#[derive(Clone, Copy, Debug)]
struct Proof {
    /// The generation before the dump.
    generation: u32,
    /// How many transactions the link had committed by then.
    commits: u32,
    /// How often it was relied on.
    uses: u32,
}

/// So often a proof is relied on before a dump is made all the same.
const PROOF_USES_MAX: u32 = 9;

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
            #[cfg(test)]
            kernel: super::testing::Kernel::default(),
        }
    }

    /// Says what becomes of elements that the next look finds and nobody knows of.
    pub(super) fn set_surplus(&mut self, surplus: Surplus) {
        self.surplus = surplus;
    }

    /// Takes changes in order and says of each whether the kernel holds it now.
    pub(super) fn take(&mut self, changes: &[Arc<Change>]) -> Vec<Applied> {
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
                hosts.push(*addr);
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
        changes.iter().map(|change| if self.holds(change, now) { Applied::Held } else { Applied::Failed }).collect()
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
        let next = if self.must_sweep() { self.look_at.min(self.sweep_at) } else { self.look_at };
        next.since(self.clock.now())
    }

    /// Looks at the kernel if it is time, and withdraws from sets without timeouts what has ended.
    pub(super) fn look_if_due(&mut self) {
        let now = self.clock.now();
        if self.look_at <= now {
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
                self.renew(shape)
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

    /// Looks at the table and every set, and puts right what is not as it should be.
    fn look(&mut self) {
        let begun = Instant::now();
        let is_first = self.is_blocked;
        let result = self.try_look();
        let now = self.clock.now();
        self.look_took = begun.elapsed();
        self.looked_at = now;
        match result {
            Ok(changed) => {
                self.metrics.compared(now);
                if changed > 0 && !is_first && self.is_told {
                    self.metrics.repairs.inc();
                    tracing::info!(table = %self.name(), changed, "nftables was not as it should be, put right");
                }
            }
            Err(trouble) => {
                self.is_blocked = true;
                self.metrics.failed(trouble.errno());
                self.note(Some(trouble));
            }
        }
        self.look_at = self.next_look(now);
    }

    fn next_look(&mut self, now: Timestamp) -> Timestamp {
        if self.trouble.is_some() {
            let pause = self.retry;
            self.retry = (self.retry * 2).min(RETRY_MAX);
            return now.after(pause);
        }
        self.retry = RETRY_MIN;
        // Where another's element stands in the way of a later end, ours must come when it goes.
        let ends = self.sets.iter().flat_map(|set| &set.foreign).filter_map(|found| found.until);
        let next_end = ends.filter(|end| *end > now).min().map(|end| end.after(LOOK_GAP_MIN));
        next_end.into_iter().fold(now.after(COMPARE_EVERY), Timestamp::min)
    }

    /// Returns how many elements had to change; a table made counts as one more.
    fn try_look(&mut self) -> Result<usize, Trouble> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.open_link().map_err(|error| Trouble::of(super::link::errno(&error)))?,
        };
        let result = match self.layout.clone() {
            Some(layout) => self.look_at_own(&mut link, &layout),
            None => self.look_at_guest(&mut link),
        };
        self.link = Some(link);
        result
    }

    fn look_at_own(&mut self, link: &mut Link, layout: &Layout) -> Result<usize, Trouble> {
        let standing = layout.look(link, self.ownership).map_err(Trouble::of_first)?;
        let (family, table) = (self.options.family, &self.options.table);
        match standing {
            Standing::Foreign => return Err(Trouble::ForeignTable { family, table: table.clone() }),
            Standing::Owned => return Err(Trouble::OwnedByAnother { family, table: table.clone() }),
            Standing::Absent | Standing::Good | Standing::Orphaned | Standing::Outdated => {}
        }
        if !self.is_told {
            self.note(None);
            return Ok(0);
        }
        let is_made = matches!(standing, Standing::Absent | Standing::Outdated);
        for (set, info) in self.sets.iter_mut().zip(layout.set_infos()) {
            set.info = Some(info);
        }
        if is_made {
            return self.make(link, layout, standing);
        }
        if standing == Standing::Orphaned {
            let outcome = self.commit(link, Vec::new(), Some(&|batch| layout.adopt(batch)));
            if let Some(broken) = outcome.broken {
                return Err(self.broken(broken));
            }
        }
        if self.is_proven(link) {
            self.hosts.retain(|_, until| *until > self.looked_at);
            self.sets.iter_mut().for_each(|set| set.drop_ended(self.looked_at));
            self.show();
            return Ok(0);
        }
        self.compare(link)
    }

    /// Whether the sets need no dump, since nobody else has changed anything since the last one.
    fn is_proven(&mut self, link: &mut Link) -> bool {
        let Some(proof) = self.proof.as_mut().filter(|proof| proof.uses < PROOF_USES_MAX) else { return false };
        if self.trouble.is_some() || self.is_blocked {
            return false;
        }
        proof.uses += 1;
        let ours = link.commits().wrapping_sub(proof.commits);
        link.generation() == Some(proof.generation.wrapping_add(ours))
    }

    /// Makes the table with all that it should hold, in place of one that will not do.
    fn make(&mut self, link: &mut Link, layout: &Layout, standing: Standing) -> Result<usize, Trouble> {
        loop {
            let ownership = self.ownership;
            let mut ops = Vec::new();
            for at in 0..self.sets.len() {
                let set = &mut self.sets[at];
                set.forget();
                let Some(shape) = set.shape(false) else { continue };
                ops.extend(self.plan(at, shape, Vec::new(), false).ops);
            }
            let count = ops.len();
            let head = |batch: &mut Batch| {
                if standing == Standing::Outdated {
                    layout.remove(batch);
                }
                layout.create(batch, ownership);
            };
            let outcome = self.commit(link, ops, Some(&head));
            let refused = matches!(outcome.broken, Some(Broken::Head(Errno::EOPNOTSUPP | Errno::EINVAL)));
            if refused && ownership == Ownership::Owned {
                // A kernel before 6.9: no flags, then.
                self.ownership = Ownership::Shared;
                continue;
            }
            if let Some(Broken::Head(errno @ (Errno::EOPNOTSUPP | Errno::EINVAL))) = outcome.broken {
                // The flags were not what it refused.
                self.ownership = Ownership::Owned;
                return Err(Trouble::TooOld { family: self.options.family, table: self.options.table.clone(), errno });
            }
            if let Some(broken) = outcome.broken {
                return Err(self.broken(broken));
            }
            self.is_blocked = false;
            self.surplus = Surplus::Withdraw;
            tracing::info!(table = %self.name(), elements = count, "made the nftables table");
            self.conclude(outcome);
            return Ok(count + 1);
        }
    }

    fn look_at_guest(&mut self, link: &mut Link) -> Result<usize, Trouble> {
        let (family, table) = (self.options.family, self.options.table.clone());
        let mut flaws = Vec::new();
        for set in &mut self.sets {
            let name = set.target.name.clone();
            let found = sets::look(link, family, &table, &name).map_err(Trouble::of_first)?;
            let flaw = match &found {
                None => Some("it is missing".to_owned()),
                Some(info) => info.flaw(&set.target),
            };
            if set.info != found {
                set.forget();
            }
            set.info = found.filter(|_| flaw.is_none());
            if let Some(flaw) = flaw {
                let command = sets::command(family, &table, &set.target);
                let (family, verb) = (family.as_str(), if found.is_some() { "remake" } else { "make" });
                flaws.push(format!("set {family} {table} {name} cannot be filled: {flaw}; {verb} it with: {command}"));
            }
        }
        // A set that will do is filled although another will not.
        let changed = if self.is_told { self.compare(link)? } else { 0 };
        if flaws.is_empty() {
            if !self.is_told {
                self.note(None);
            }
            return Ok(changed);
        }
        let trouble = Trouble::Sets(flaws);
        if self.sets.iter().all(|set| set.info.is_none()) {
            return Err(trouble);
        }
        self.note(Some(trouble));
        Ok(changed)
    }

    /// Compares every set with what it should hold and commits the difference.
    fn compare(&mut self, link: &mut Link) -> Result<usize, Trouble> {
        let now = self.clock.now();
        self.hosts.retain(|_, until| *until > now);
        let adopts = self.surplus == Surplus::Adopt;
        let proof = link.generation().filter(|_| self.layout.is_some());
        let proof = proof.map(|generation| Proof { generation, commits: link.commits(), uses: 0 });
        let mut ops = Vec::new();
        for at in 0..self.sets.len() {
            let Some(shape) = self.sets[at].shape(self.is_signed()) else { continue };
            let found = self.dump(link, at, shape).map_err(Trouble::of)?;
            let plan = self.plan(at, shape, found, adopts);
            let set = &mut self.sets[at];
            (set.held, set.foreign, set.adopted) = (plan.held, plan.foreign, plan.adopted);
            ops.extend(plan.ops);
        }
        self.surplus = Surplus::Withdraw;
        self.is_blocked = false;
        let count = ops.len();
        let outcome = self.commit(link, ops, None);
        if let Some(broken) = outcome.broken {
            return Err(self.broken(broken));
        }
        let is_fine = outcome.failed.is_empty();
        self.proof = proof.filter(|_| is_fine);
        self.conclude(outcome);
        Ok(if is_fine { count } else { 0 })
    }

    fn dump(&self, link: &mut Link, at: usize, shape: Shape) -> Result<Vec<Found>, Errno> {
        let question = transaction::ask_for(&self.options.table, &self.sets[at].target.name, None);
        let take = |dump: &mut Dump, attrs: &[u8]| dump.take(transaction::elements(attrs));
        let dump = link.dump(Kind::GetElements, self.options.family, question, Dump::default, take)?;
        Ok(dump.finish(shape, self.clock.now()))
    }

    /// Commits changes that an order asks for.
    fn apply(&mut self, ops: Vec<Op>) {
        if ops.is_empty() {
            return;
        }
        let Some(mut link) = self.link.take() else { return };
        let probe = self.probe(&ops);
        let mut ops = ops;
        if self.renewal.is_none() && probe.is_none() {
            // Nothing here would show whether the kernel renews.
            ops.iter_mut().filter(|op| op.verb == Verb::Update).for_each(|op| op.verb = Verb::Replace);
        }
        let mut outcome = self.commit(&mut link, ops, None);
        if let Some(probe) = probe.filter(|_| outcome.broken.is_none()) {
            self.read_probe(&mut link, probe);
            if self.renewal == Some(Renewal::Replace) {
                let (again, done): (Vec<Op>, Vec<Op>) =
                    outcome.done.into_iter().partition(|op| op.verb == Verb::Update);
                let again = again.into_iter().map(|op| Op { verb: Verb::Replace, ..op }).collect();
                let second = self.commit(&mut link, again, None);
                outcome.done = done;
                outcome.done.extend(second.done);
                outcome.failed.extend(second.failed);
                outcome.broken = second.broken;
            }
        }
        self.link = Some(link);
        let is_gone = |(op, errno): &(Op, Errno)| *errno == Errno::ENOENT && op.verb != Verb::Delete;
        let is_in_the_way = |(_, errno): &(Op, Errno)| *errno == Errno::EEXIST;
        // The table or a set has gone, or something of others' has come: the look tells what is what.
        let must_look =
            outcome.broken.is_some() || outcome.failed.iter().any(|failed| is_gone(failed) || is_in_the_way(failed));
        if let Some(broken) = outcome.broken {
            let trouble = self.broken(broken);
            self.metrics.failed(trouble.errno());
            self.note(Some(trouble));
        }
        if must_look {
            // No trouble yet.
            outcome.failed.retain(|failed| !is_gone(failed) && !is_in_the_way(failed));
        }
        self.conclude(outcome);
        if must_look {
            self.proof = None;
            self.look();
        } else if self.trouble.is_some() {
            self.look_at = self.look_at.min(self.clock.now().after(self.retry));
        }
    }

    /// Whether answers should not wait for us.
    fn is_slow(&self) -> bool {
        self.slow_commits >= SLOW_COMMITS
    }

    /// Finds out, without a commit, whether one would be quick again.
    fn try_pace(&mut self) {
        let Some(link) = &mut self.link else { return };
        let begun = Instant::now();
        if link.queue_up().is_ok() && begun.elapsed() <= self.options.hold / 2 {
            self.slow_commits = 0;
            self.show();
        }
    }

    /// Picks a renewal whose effect can be seen, if it is unknown how the kernel renews.
    fn probe(&self, ops: &[Op]) -> Option<Op> {
        if self.renewal.is_some() {
            return None;
        }
        let tells = |op: &&Op| {
            let (_, ends) = self.sets[op.set].held.get(&op.range.first)?;
            let (until, ends) = (op.until?, (*ends)?);
            Some(until.since(ends) > TELLING_RENEWAL && ends > self.clock.now())
        };
        ops.iter().filter(|op| op.verb == Verb::Update).find(|op| tells(op) == Some(true)).copied()
    }

    fn read_probe(&mut self, link: &mut Link, probe: Op) {
        let set = &self.sets[probe.set];
        let Some(shape) = set.shape(self.is_signed()) else { return };
        let which = transaction::ask_for(&self.options.table, &set.target.name, Some((shape, probe.range)));
        let mut dump = Dump::default();
        let take = |attrs: &[u8]| dump.take(transaction::elements(attrs));
        let is_there = link.ask(Kind::GetElements, self.options.family, which, take);
        let ends = dump.finish(shape, self.clock.now()).first().and_then(|found| found.until);
        let is_renewed = ends.zip(probe.until).is_some_and(|(ends, until)| until.since(ends) < TELLING_RENEWAL / 2);
        if is_there == Ok(true) {
            let renewal = if is_renewed { Renewal::Update } else { Renewal::Replace };
            tracing::debug!(?renewal, "how this kernel renews elements");
            self.renewal = Some(renewal);
        }
    }

    fn commit(&mut self, link: &mut Link, ops: Vec<Op>, head: Option<&dyn Fn(&mut Batch)>) -> Outcome {
        let is_signed = self.is_signed();
        let place = |set: &'_ Set| set.shape(is_signed).map(|shape| (set.target.name.clone(), shape));
        let places: Vec<_> = self.sets.iter().map(place).collect();
        let table = Table {
            family: self.options.family,
            name: &self.options.table,
            sets: places
                .iter()
                .map(|place| place.as_ref().map(|(name, shape)| Place { name, shape: *shape }))
                .collect(),
        };
        let (metrics, clock) = (&self.metrics, &self.clock);
        let slow = self.options.hold / 2;
        let mut slow_commits = self.slow_commits;
        let outcome = transaction::commit(
            link,
            &table,
            ops,
            head,
            || clock.now(),
            |link, sealed| {
                let begun = Instant::now();
                let result = link.commit(sealed);
                let took = begun.elapsed();
                slow_commits = if took > slow { slow_commits.saturating_add(1) } else { 0 };
                metrics.committed(result.is_ok(), took);
                result
            },
        );
        self.slow_commits = slow_commits;
        outcome
    }

    /// Takes over what a transaction came to.
    fn conclude(&mut self, outcome: Outcome) {
        for op in outcome.done {
            let set = &mut self.sets[op.set];
            set.adopted.remove(&op.range.first);
            if op.verb == Verb::Delete {
                set.held.remove(&op.range.first);
            } else {
                set.held.insert(op.range.first, (op.range.last, op.until));
            }
        }
        for (_, errno) in &outcome.failed {
            self.metrics.failed(*errno);
        }
        if outcome.broken.is_none() {
            let trouble = self.refused(&outcome.failed);
            // A set that is missing or unfit stays the greater trouble.
            if !(trouble.is_none() && matches!(self.trouble, Some(Trouble::Sets(_))) && self.lacks_a_set()) {
                self.note(trouble.or_else(|| self.trouble_left()));
            }
        }
        self.show();
    }

    fn lacks_a_set(&self) -> bool {
        self.sets.iter().any(|set| set.info.is_none())
    }

    /// Returns the trouble that a transaction without failures does not end: what failed before is still wanted.
    fn trouble_left(&self) -> Option<Trouble> {
        let trouble = self.trouble.as_ref()?;
        let is_whole = || (0..self.sets.len()).all(|at| self.sets[at].info.is_some() && !self.lacks_anything(at));
        (!is_whole()).then(|| trouble.clone())
    }

    /// Whether a set lacks something that it should hold.
    fn lacks_anything(&self, at: usize) -> bool {
        let set = &self.sets[at];
        self.wanted(&set.target).into_iter().any(|wanted| !set.holds(wanted) && !set.is_in_pieces(wanted))
    }

    /// Puts refused elements into words.
    fn refused(&self, failed: &[(Op, Errno)]) -> Option<Trouble> {
        let is_full = |errno: Errno| matches!(errno, Errno::ENFILE | Errno::ENOSPC);
        let (op, errno) = failed.iter().find(|(_, errno)| is_full(*errno)).or_else(|| failed.first())?;
        let set = &self.sets[op.set];
        let name = set.target.name.clone();
        Some(match *errno {
            errno if is_full(errno) => {
                Trouble::Full { set: name, size: set.info.and_then(|info| info.size), is_own: self.layout.is_some() }
            }
            errno @ (Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ERANGE) if op.until.is_some() => {
                Trouble::Timeouts { set: name, errno }
            }
            errno => Trouble::Refused {
                set: name,
                element: op.range.display(set.target.family).to_string(),
                errno,
                more: failed.len() - 1,
            },
        })
    }

    fn broken(&self, broken: Broken) -> Trouble {
        match broken {
            Broken::Unknown => Trouble::Lost,
            Broken::Head(Errno::EPERM) => {
                Trouble::OwnedByAnother { family: self.options.family, table: self.options.table.clone() }
            }
            Broken::Head(errno) | Broken::Whole(errno) => Trouble::of(errno),
        }
    }

    /// Takes note of trouble, or of its end; each is told once.
    fn note(&mut self, trouble: Option<Trouble>) {
        if trouble != self.trouble {
            match &trouble {
                Some(trouble) => {
                    tracing::warn!(table = %self.name(), "{trouble}; trying again, and nothing waits for it")
                }
                None => tracing::info!(table = %self.name(), "nftables holds everything again"),
            }
        }
        self.trouble = trouble;
        self.show();
    }

    fn show(&self) {
        let state = match (&self.trouble, self.is_told && self.is_blocked) {
            (Some(_), _) | (_, true) => State::Down,
            (None, false) if self.is_slow() => State::Slow,
            (None, false) => State::Up,
        };
        if self.health.state() != state {
            self.health.set(state);
        }
        self.metrics.up.set(i64::from(self.trouble.is_none() && !self.is_blocked));
        let mut adopted = 0;
        for set in &self.sets {
            adopted += set.adopted.len();
            self.metrics.elements(&set.target.name, set.held.len() + set.adopted.len());
        }
        self.metrics.unexplained.set(i64::try_from(adopted).unwrap_or(i64::MAX));
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
