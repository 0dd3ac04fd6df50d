//! The look: the table and its sets as the kernel has them, and what is done about the difference.

use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use tokio::time::Instant;

use super::super::layout::{self, Layout, Ownership, Standing};
use super::super::link::{self, Link};
use super::super::message::{Batch, Kind};
use super::super::plan::{Surplus, is_end_right};
use super::super::range::{Dump, Found, Range, Shape};
use super::super::sets;
use super::super::transaction::{self, Broken};
use super::super::trouble::Trouble;
use super::{Engine, LOOK_GAP_MIN, Proof, RETRY_MIN};
use crate::clock::Timestamp;
use crate::prefix::Family;

/// How often the whole is compared.
const COMPARE_EVERY: Duration = Duration::from_secs(60);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Elements that end within this time are left to it when all else is as it should be.
const ENDING: Duration = Duration::from_secs(2);
/// So often a proof is relied on before a dump is made all the same.
const PROOF_USES_MAX: u32 = 9;

impl Engine {
    /// Looks at the table and every set, and puts right what is not as it should be.
    pub(super) fn look(&mut self) {
        let begun = Instant::now();
        let is_first = self.is_blocked;
        let result = self.try_look();
        let now = self.clock.now();
        self.is_touched = false;
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

    pub(super) fn next_look(&mut self, now: Timestamp) -> Timestamp {
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
    pub(super) fn try_look(&mut self) -> Result<usize, Trouble> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.open_link().map_err(|error| Trouble::of(link::errno(&error)))?,
        };
        let result = match self.layout.clone() {
            Some(layout) => self.look_at_own(&mut link, &layout),
            None => self.look_at_guest(&mut link),
        };
        self.link = Some(link);
        result
    }

    pub(super) fn look_at_own(&mut self, link: &mut Link, layout: &Layout) -> Result<usize, Trouble> {
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
            self.rely();
            return Ok(0);
        }
        self.compare(link)
    }

    /// Goes on with what is known: only time has passed.
    pub(super) fn rely(&mut self) {
        let now = self.clock.now();
        self.hosts.retain(|_, until| *until > now);
        self.sets.iter_mut().for_each(|set| set.drop_ended(now));
        self.show();
    }

    /// Whether rules of the table change sets while packets pass, which raises no generation.
    pub(super) fn has_rules_that_change_sets(&self, link: &mut Link) -> bool {
        let question = layout::ask_for_rules(&self.options.table);
        let take = |found: &mut bool, attrs: &[u8]| *found |= layout::changes_a_set(attrs);
        link.dump(Kind::GetRule, self.options.family, question, || false, take).unwrap_or(true)
    }

    /// Whether the sets need no dump, since nobody else has changed anything since the last one.
    pub(super) fn is_proven(&mut self, link: &mut Link) -> bool {
        // Where another's element was as good as ours until now, ours must come.
        let now = self.clock.now();
        let ends = |found: &Found| found.until.is_some_and(|until| until <= now);
        if self.trouble.is_some() || self.is_blocked || self.sets.iter().any(|set| set.foreign.iter().any(ends)) {
            return false;
        }
        let Some(proof) = self.proof.as_mut().filter(|proof| proof.uses < PROOF_USES_MAX) else { return false };
        proof.uses += 1;
        let ours = link.commits().wrapping_sub(proof.commits);
        link.generation() == Some(proof.generation.wrapping_add(ours))
    }

    /// Makes the table with all that it should hold, in place of one that will not do.
    pub(super) fn make(&mut self, link: &mut Link, layout: &Layout, standing: Standing) -> Result<usize, Trouble> {
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
            // A table that is replaced is replaced whole.
            self.backlog = if standing == Standing::Absent { self.leave_for_later(&mut ops) } else { Vec::new() };
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

    pub(super) fn look_at_guest(&mut self, link: &mut Link) -> Result<usize, Trouble> {
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
        if flaws.is_empty() && self.is_told && self.is_proven(link) {
            self.rely();
            return Ok(0);
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
    pub(super) fn compare(&mut self, link: &mut Link) -> Result<usize, Trouble> {
        let now = self.clock.now();
        self.hosts.retain(|_, until| *until > now);
        let adopts = self.surplus == Surplus::Adopt;
        let is_certain = self.layout.is_some() || !self.has_rules_that_change_sets(link);
        let proof = link.generation().filter(|_| is_certain);
        let proof = proof.map(|generation| Proof { generation, commits: link.commits(), uses: 0 });
        let mut ops = Vec::new();
        for at in 0..self.sets.len() {
            let Some(shape) = self.sets[at].shape(self.is_signed()) else { continue };
            let dump = self.dump(link, at).map_err(Trouble::of)?;
            let now = self.clock.now();
            self.sets[at].drop_ended(now);
            if self.is_as_known(at, shape, &dump, now) {
                continue;
            }
            let plan = self.plan(at, shape, dump.finish(shape), adopts);
            let set = &mut self.sets[at];
            (set.held, set.foreign, set.adopted) = (plan.held, plan.foreign, plan.adopted);
            ops.extend(plan.ops);
        }
        self.surplus = Surplus::Withdraw;
        self.is_blocked = false;
        let count = ops.len();
        self.backlog = self.leave_for_later(&mut ops);
        let outcome = self.commit(link, ops, None);
        if let Some(broken) = outcome.broken {
            return Err(self.broken(broken));
        }
        let is_fine = outcome.failed.is_empty();
        self.proof = proof.filter(|_| is_fine);
        self.conclude(outcome);
        Ok(if is_fine { count } else { 0 })
    }

    pub(super) fn dump(&self, link: &mut Link, at: usize) -> Result<Dump, Errno> {
        let question = transaction::ask_for(&self.options.table, &self.sets[at].target.name, None);
        let take = |dump: &mut Dump, attrs: &[u8]| dump.take(transaction::elements(attrs), self.clock.now());
        // More than that is somebody else's, and grows it.
        let len = self.sets[at].held.len() + 16;
        link.dump(Kind::GetElements, self.options.family, question, || Dump::with_capacity(len), take)
    }

    /// Whether a set of learned hosts holds what we know of and what it should: found out in one go, since that is how
    /// it nearly always is. `false` only says that it takes a closer look.
    pub(super) fn is_as_known(&self, at: usize, shape: Shape, dump: &Dump, now: Timestamp) -> bool {
        let set = &self.sets[at];
        let has_more = !set.foreign.is_empty() || !set.adopted.is_empty();
        if !set.target.is_learned() || shape.has_intervals || !shape.has_timeouts || has_more || self.is_touched {
            return false;
        }
        // What is about to end may have ended in one place and not yet in the other.
        let soon = now.after(ENDING);
        let lasts = |until: &Timestamp| *until > soon;
        let mut lasting_found = 0;
        for (key, ends, is_signed) in dump.singles() {
            let (Some(ends), true) = (ends, is_signed || !shape.is_signed) else { return false };
            match set.held.get(&key) {
                Some((_, Some(until))) if is_end_right(*until, ends) => {
                    lasting_found += usize::from(lasts(until));
                }
                None if !lasts(&ends) => {}
                _ => return false,
            }
        }
        let lasting = set.held.values().filter(|(_, until)| until.as_ref().is_some_and(lasts)).count();
        let mut wanted = 0;
        let is_held = |(addr, until): (&IpAddr, &Timestamp)| {
            wanted += 1;
            let held = set.held.get(&Range::host(*addr).first);
            held.is_some_and(|(_, ends)| ends.as_ref() == Some(until))
        };
        let of_family = |(addr, until): &(&IpAddr, &Timestamp)| Family::of(**addr) == shape.family && lasts(until);
        lasting == lasting_found && self.hosts.iter().filter(of_family).all(is_held) && wanted == lasting
    }
}
