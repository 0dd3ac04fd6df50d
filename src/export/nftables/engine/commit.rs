//! The commits: changes into transactions, and what their outcome says of the kernel and its pace.

use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use tokio::time::Instant;

use super::super::MERGED_MAX;
use super::super::link::Link;
use super::super::message::{Batch, Kind};
use super::super::plan::Renewal;
use super::super::range::{Dump, address};
use super::super::transaction::{self, Broken, Op, Outcome, Place, Table, Verb};
use super::super::trouble::Trouble;
use super::{CHUNK_LEN, Engine, Set};
use crate::set::outlet::State;

/// So many commits in a row that take more than half the hold make us slow.
const SLOW_COMMITS: usize = 20;
/// A renewal by less than this tells nothing about whether the kernel did it.
const TELLING_RENEWAL: Duration = Duration::from_secs(5);

impl Engine {
    /// Takes out of very many changes what is more than one turn, and returns its hosts.
    pub(super) fn leave_for_later(&self, ops: &mut Vec<Op>) -> Vec<IpAddr> {
        let mut later = Vec::new();
        let mut room = CHUNK_LEN;
        ops.retain(|op| {
            let target = &self.sets[op.set].target;
            // Ranges of the operator's sets that are no hosts are few, and not found again by a host.
            let is_host = target.is_learned() && op.range.first == op.range.last;
            let stays = !is_host || room > 0;
            if stays {
                room = room.saturating_sub(usize::from(is_host));
            } else {
                later.push(address(op.range.first, target.family));
            }
            stays
        });
        later
    }

    /// Commits changes that an order asks for.
    pub(super) fn apply(&mut self, ops: Vec<Op>) {
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
    pub(super) fn is_slow(&self) -> bool {
        self.slow_commits >= SLOW_COMMITS
    }

    /// Finds out, without a commit, whether one would be quick again.
    pub(super) fn try_pace(&mut self) {
        let Some(link) = &mut self.link else { return };
        let begun = Instant::now();
        if link.queue_up().is_ok() && begun.elapsed() <= self.options.hold / 2 {
            self.slow_commits = 0;
            self.show();
        }
    }

    /// Picks a renewal whose effect can be seen, if it is unknown how the kernel renews.
    pub(super) fn probe(&self, ops: &[Op]) -> Option<Op> {
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

    pub(super) fn read_probe(&mut self, link: &mut Link, probe: Op) {
        let set = &self.sets[probe.set];
        let Some(shape) = set.shape(self.is_signed()) else { return };
        let which = transaction::ask_for(&self.options.table, &set.target.name, Some((shape, probe.range)));
        let mut dump = Dump::default();
        let take = |attrs: &[u8]| dump.take(transaction::elements(attrs), self.clock.now());
        let is_there = link.ask(Kind::GetElements, self.options.family, which, take);
        let ends = dump.finish(shape).first().and_then(|found| found.until);
        let is_renewed = ends.zip(probe.until).is_some_and(|(ends, until)| until.since(ends) < TELLING_RENEWAL / 2);
        if is_there == Ok(true) {
            let renewal = if is_renewed { Renewal::Update } else { Renewal::Replace };
            tracing::debug!(?renewal, "how this kernel renews elements");
            self.renewal = Some(renewal);
        }
    }

    pub(super) fn commit(&mut self, link: &mut Link, ops: Vec<Op>, head: Option<&dyn Fn(&mut Batch)>) -> Outcome {
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
        // How long very many take says nothing about a few.
        let is_telling = ops.len() <= MERGED_MAX;
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
                if is_telling {
                    slow_commits = if took > slow { slow_commits.saturating_add(1) } else { 0 };
                }
                metrics.committed(result.is_ok(), took);
                result
            },
        );
        self.slow_commits = slow_commits;
        outcome
    }

    /// Takes over what a transaction came to.
    pub(super) fn conclude(&mut self, outcome: Outcome) {
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

    pub(super) fn lacks_a_set(&self) -> bool {
        self.sets.iter().any(|set| set.info.is_none())
    }

    /// Returns the trouble that a transaction without failures does not end: what failed before is still wanted.
    pub(super) fn trouble_left(&self) -> Option<Trouble> {
        let trouble = self.trouble.as_ref()?;
        let is_whole = || (0..self.sets.len()).all(|at| self.sets[at].info.is_some() && !self.lacks_anything(at));
        (!is_whole()).then(|| trouble.clone())
    }

    /// Whether a set lacks something that it should hold.
    pub(super) fn lacks_anything(&self, at: usize) -> bool {
        let set = &self.sets[at];
        self.wanted(&set.target).into_iter().any(|wanted| !set.holds(wanted) && !set.is_in_pieces(wanted))
    }

    /// Puts refused elements into words.
    pub(super) fn refused(&self, failed: &[(Op, Errno)]) -> Option<Trouble> {
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

    pub(super) fn broken(&self, broken: Broken) -> Trouble {
        match broken {
            Broken::Unknown => Trouble::Lost,
            Broken::Head(Errno::EPERM) => {
                Trouble::OwnedByAnother { family: self.options.family, table: self.options.table.clone() }
            }
            Broken::Head(errno) | Broken::Whole(errno) => Trouble::of(errno),
        }
    }

    /// Takes note of trouble, or of its end; each is told once.
    pub(super) fn note(&mut self, trouble: Option<Trouble>) {
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

    pub(super) fn show(&self) {
        let state = match (&self.trouble, self.is_told && self.is_blocked) {
            (Some(_), _) | (_, true) => State::Down,
            (None, false) if self.is_slow() => State::Slow,
            (None, false) => State::Up,
        };
        if self.health.state() != state {
            self.health.set(state);
        }
        self.metrics.up.set(i64::from(self.trouble.is_none() && !self.is_blocked && !self.has_backlog()));
        let mut adopted = 0;
        for set in &self.sets {
            adopted += set.adopted.len();
            self.metrics.elements(&set.target.name, set.held.len() + set.adopted.len());
        }
        self.metrics.unexplained.set(i64::try_from(adopted).unwrap_or(i64::MAX));
    }
}
