//! What the resolver may put into this firewall: no more than the operator's files allow.
//!
//! A [`Gate`] stands before each engine and knows what it let through. The [`Rules`] are read from the files by the
//! agent's own eyes. Of static prefixes the resolver only says which are in force: one passes if the lists have it, or had
//! it when it came into force and the resolver has kept it since, as it does while a shrink waits to be confirmed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::frame::{BadFrame, Part};
use crate::admission::{Admission, Refused};
use crate::clock::Timestamp;
use crate::prefix::Prefix;
use crate::set::outlet::Change;
use crate::set::{Session, StaticEntry};

/// The most static prefixes of one order.
const STATICS_MAX: usize = 65_536;

/// What the operator's files allow.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Which addresses may be in the set.
    pub admission: Admission,
    /// The most learned addresses.
    pub max_total: usize,
    /// How far ahead an end may lie.
    pub span_max: Duration,
    /// The static prefixes of the lists, sorted.
    pub statics: Vec<Prefix>,
}

/// Why something is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No such address may be in the set.
    Address(Refused),
    /// The bound of learned addresses is reached.
    FullTotal,
    /// No list has this prefix.
    Unlisted,
}

impl Refusal {
    const OTHERS: [&str; 2] = ["max-total", "unlisted-prefix"];

    /// Returns every metric label value.
    pub(super) fn labels() -> impl Iterator<Item = &'static str> {
        Refused::LABELS.into_iter().chain(Self::OTHERS)
    }

    /// Returns the metric label value.
    pub(super) fn as_str(self) -> &'static str {
        Self::OTHERS[match self {
            Self::Address(refused) => return refused.as_str(),
            Self::FullTotal => 0,
            Self::Unlisted => 1,
        }]
    }
}

/// An order as it came over the socket, whole or still growing.
#[derive(Debug, Default)]
pub(super) struct Order {
    parts: Part,
    is_begun: bool,
}

impl Order {
    /// Takes the next part. Returns whether it was the last one.
    pub(super) fn take(&mut self, part: Part, rules: &Rules) -> Result<bool, BadFrame> {
        let Part { order, is_whole, has_statics, is_last, hosts, statics } = part;
        let all = &mut self.parts;
        if self.is_begun && (all.order, all.is_whole, all.has_statics) != (order, is_whole, has_statics) {
            return Err(BadFrame::Turn);
        }
        self.is_begun = true;
        (all.order, all.is_whole, all.has_statics) = (order, is_whole, has_statics);
        // What is held, and as many again that take their place.
        let hosts_max = rules.max_total.saturating_mul(2).saturating_add(super::frame::HOSTS_MAX);
        if all.hosts.len() + hosts.len() > hosts_max || all.statics.len() + statics.len() > STATICS_MAX {
            return Err(BadFrame::TooMuch);
        }
        all.hosts.extend(hosts);
        all.statics.extend(statics);
        Ok(is_last)
    }

    /// Returns its number.
    pub(super) fn number(&self) -> u64 {
        self.parts.order
    }

    /// Returns the static prefixes that it says are in force, if it says so.
    pub(super) fn statics(&self) -> Option<&[Prefix]> {
        self.parts.has_statics.then_some(&self.parts.statics)
    }
}

/// What was let through, and what was not.
#[derive(Debug)]
pub(super) struct Passed {
    /// For the engine.
    pub(super) change: Arc<Change>,
    /// What was refused and why.
    pub(super) refused: Vec<(Prefix, Refusal)>,
}

/// What one engine was told.
#[derive(Debug, Default)]
pub(super) struct Gate {
    hosts: HashMap<IpAddr, Timestamp>,
    statics: Vec<Prefix>,
}

impl Gate {
    /// Returns whether every prefix is in the lists, or was let through and kept.
    pub(super) fn knows(&self, statics: &[Prefix], rules: &Rules) -> bool {
        statics.iter().all(|prefix| self.may_be_in_force(prefix, rules))
    }

    fn may_be_in_force(&self, prefix: &Prefix, rules: &Rules) -> bool {
        rules.statics.binary_search(prefix).is_ok() || self.statics.binary_search(prefix).is_ok()
    }

    /// Lets through what the rules allow. `ahead` turns the resolver's times into ours.
    pub(super) fn pass(&mut self, order: Order, rules: &Rules, ahead: &Ahead, now: Timestamp) -> Passed {
        let Part { is_whole, has_statics, hosts, statics, .. } = order.parts;
        let (mut change, mut refused) = (Change::empty(Session(0), 0, now), Vec::new());
        change.whole = is_whole;
        if is_whole {
            self.hosts.clear();
        }
        let latest = now.after(rules.span_max);
        let until = |until: Option<Timestamp>| until.map(|until| ahead.ours(until).min(latest));
        // Those that leave make room for those that come.
        let (coming, leaving): (Vec<_>, Vec<_>) = hosts
            .into_iter()
            .map(|(addr, end)| (addr, until(end)))
            .partition(|(_, end)| end.is_some_and(|end| end > now));
        for (addr, _) in leaving {
            self.hosts.remove(&addr);
            change.hosts.push((addr, None));
        }
        for (addr, end) in coming {
            match self.let_in(addr, rules, now) {
                Ok(()) => {
                    self.hosts.extend(end.map(|end| (addr, end)));
                    change.hosts.push((addr, end));
                }
                Err(refusal) => refused.push((Prefix::host(addr), refusal)),
            }
        }
        if has_statics || is_whole {
            let (mut passed, others): (Vec<_>, Vec<_>) =
                statics.into_iter().partition(|prefix| self.may_be_in_force(prefix, rules));
            refused.extend(others.into_iter().map(|prefix| (prefix, Refusal::Unlisted)));
            passed.sort_unstable();
            passed.dedup();
            change.statics = Some(entries(&passed));
            self.statics = passed;
        }
        Passed { change: Arc::new(change), refused }
    }

    fn let_in(&mut self, addr: IpAddr, rules: &Rules, now: Timestamp) -> Result<(), Refusal> {
        rules.admission.check(addr).map_err(Refusal::Address)?;
        if self.hosts.contains_key(&addr) || self.hosts.len() < rules.max_total {
            return Ok(());
        }
        self.hosts.retain(|_, end| *end > now);
        if self.hosts.len() < rules.max_total { Ok(()) } else { Err(Refusal::FullTotal) }
    }

    /// Takes out what new rules do not allow any more; `None` if that is nothing.
    pub(super) fn tighten(&mut self, rules: &Rules, now: Timestamp) -> Option<Arc<Change>> {
        let mut change = Change::empty(Session(0), 0, now);
        let gone = self.hosts.extract_if(|addr, _| rules.admission.check(*addr).is_err());
        change.hosts = gone.map(|(addr, _)| (addr, None)).collect();
        (!change.hosts.is_empty()).then(|| Arc::new(change))
    }
}

fn entries(statics: &[Prefix]) -> Arc<[StaticEntry]> {
    statics.iter().map(|prefix| StaticEntry { prefix: *prefix, apps: Arc::new([]) }).collect()
}

/// How far our clock is ahead of the resolver's: each process sets its own when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ahead(i128);

impl Ahead {
    pub(super) fn new(ours: Timestamp, theirs: Timestamp) -> Self {
        Self(i128::from(ours.as_millis()) - i128::from(theirs.as_millis()))
    }

    fn ours(self, theirs: Timestamp) -> Timestamp {
        let millis = (i128::from(theirs.as_millis()) + self.0).clamp(0, i128::from(u64::MAX));
        Timestamp::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const SAME: Ahead = Ahead(0);

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    pub(in super::super) fn rules(max_total: usize) -> Rules {
        let rules = crate::admission::Rules { never: prefixes(&["8.8.4.0/24"]), ..Default::default() };
        Rules {
            admission: Admission::new(rules),
            max_total,
            span_max: Duration::from_secs(86_400),
            statics: prefixes(&["20.0.0.0/16", "2600::/32"]),
        }
    }

    fn order(hosts: &[(&str, u64)]) -> Order {
        let until = |secs: u64| (secs > 0).then(|| NOW.after(Duration::from_secs(secs)));
        let hosts = hosts.iter().map(|(addr, secs)| (addr.parse().unwrap(), until(*secs))).collect();
        Order { parts: Part { hosts, ..Part::default() }, is_begun: true }
    }

    fn statics(texts: &[&str]) -> Order {
        let parts = Part { has_statics: true, statics: prefixes(texts), ..Part::default() };
        Order { parts, is_begun: true }
    }

    fn reasons(passed: &Passed) -> Vec<(String, &'static str)> {
        passed.refused.iter().map(|(what, why)| (what.to_string(), why.as_str())).collect()
    }

    #[test]
    fn only_public_hosts_within_the_bound_pass() {
        let (mut gate, rules) = (Gate::default(), rules(2));
        let passed = gate.pass(
            order(&[("10.0.0.1", 60), ("8.8.4.4", 60), ("9.9.9.9", 60), ("9.9.9.10", 60), ("9.9.9.11", 60)]),
            &rules,
            &SAME,
            NOW,
        );
        let refused = [("10.0.0.1/32", "special-purpose"), ("8.8.4.4/32", "never"), ("9.9.9.11/32", "max-total")];
        assert_eq!(reasons(&passed), refused.map(|(what, why)| (what.to_owned(), why)));
        let held: Vec<_> = passed.change.hosts.iter().map(|(addr, _)| addr.to_string()).collect();
        assert_eq!(held, ["9.9.9.9", "9.9.9.10"]);
        let passed = gate.pass(order(&[("9.9.9.11", 60), ("9.9.9.9", 0)]), &rules, &SAME, NOW);
        assert!(passed.refused.is_empty(), "who leaves makes room: {:?}", passed.refused);
        let later = NOW.after(Duration::from_secs(61));
        let passed = gate.pass(order(&[("9.9.9.12", 120), ("9.9.9.13", 120)]), &rules, &SAME, later);
        assert!(passed.refused.is_empty(), "so do those that have ended");
    }

    #[test]
    fn ends_are_ours_and_bounded() {
        let (mut gate, rules) = (Gate::default(), rules(9));
        let behind = Ahead::new(NOW.after(Duration::from_secs(100)), NOW);
        let now = NOW.after(Duration::from_secs(100));
        let passed = gate.pass(order(&[("9.9.9.9", 60), ("9.9.9.10", 1_000_000)]), &rules, &behind, now);
        let ends: Vec<_> = passed.change.hosts.iter().map(|(_, end)| end.unwrap().since(now).as_secs()).collect();
        assert_eq!(ends, [60, 86_400]);
        assert_eq!(Ahead::new(Timestamp::default(), NOW).ours(Timestamp::default()), Timestamp::default());
    }

    #[test]
    fn only_listed_prefixes_come_into_force_and_kept_ones_may_stay() {
        let (mut gate, mut rules) = (Gate::default(), rules(9));
        let in_force = |passed: &Passed| {
            passed.change.statics.as_ref().unwrap().iter().map(|one| one.prefix.to_string()).collect::<Vec<_>>()
        };
        let passed = gate.pass(statics(&["0.0.0.0/0", "20.0.0.0/16", "20.0.0.0/8"]), &rules, &SAME, NOW);
        assert_eq!(in_force(&passed), ["20.0.0.0/16"]);
        assert_eq!(passed.refused.len(), 2);
        rules.statics = prefixes(&["30.0.0.0/16"]);
        let passed = gate.pass(statics(&["20.0.0.0/16", "30.0.0.0/16"]), &rules, &SAME, NOW);
        assert_eq!(in_force(&passed), ["20.0.0.0/16", "30.0.0.0/16"], "a shrink that is not confirmed yet");
        let passed = gate.pass(statics(&["30.0.0.0/16"]), &rules, &SAME, NOW);
        assert_eq!(in_force(&passed), ["30.0.0.0/16"]);
        let passed = gate.pass(statics(&["20.0.0.0/16", "30.0.0.0/16"]), &rules, &SAME, NOW);
        assert_eq!(in_force(&passed), ["30.0.0.0/16"], "what has left does not come back");
    }

    #[test]
    fn tighter_rules_take_out_what_they_do_not_allow() {
        let (mut gate, mut rules) = (Gate::default(), rules(9));
        gate.pass(order(&[("9.9.9.9", 60), ("8.8.8.8", 60)]), &rules, &SAME, NOW);
        assert_eq!(gate.tighten(&rules, NOW), None);
        let never = crate::admission::Rules { never: prefixes(&["9.9.9.0/24"]), ..Default::default() };
        rules.admission = Admission::new(never);
        let change = gate.tighten(&rules, NOW).unwrap();
        assert_eq!(change.hosts, [("9.9.9.9".parse().unwrap(), None)]);
    }

    #[test]
    fn an_order_has_one_head_and_an_end() {
        let rules = rules(1);
        let part = |order, is_whole, count| {
            let host = ("9.9.9.9".parse().unwrap(), None);
            Part { order, is_whole, hosts: vec![host; count], ..Part::default() }
        };
        let mut order = Order::default();
        assert_eq!(order.take(part(1, true, 5), &rules), Ok(false));
        assert_eq!(order.take(part(2, true, 5), &rules), Err(BadFrame::Turn));
        assert_eq!(order.take(part(1, false, 5), &rules), Err(BadFrame::Turn));
        assert_eq!(order.take(part(1, true, 1024), &rules), Err(BadFrame::TooMuch));
        assert_eq!(order.take(Part { is_last: true, ..part(1, true, 1) }, &rules), Ok(true));
    }

    proptest! {
        /// Whatever is asked for: nothing is held that the rules refuse, and no more than they allow.
        #[test]
        fn no_order_gets_past_the_rules(
            orders in proptest::collection::vec(
                (any::<bool>(), proptest::collection::vec((any::<[u8; 4]>(), any::<bool>(), proptest::option::of(0..200_000u64)), 0..12)),
                1..12,
            ),
        ) {
            let (mut gate, rules) = (Gate::default(), rules(4));
            let mut held = HashMap::new();
            for (is_whole, hosts) in orders {
                // Few enough addresses that they repeat.
                let host = |(octets, is_near, secs): ([u8; 4], bool, Option<u64>)| {
                    let octets = if is_near { [9, 9, 9, octets[0] & 7] } else { octets };
                    (IpAddr::from(octets), secs.map(|secs| NOW.after(Duration::from_secs(secs))))
                };
                let parts = Part { is_whole, hosts: hosts.into_iter().map(host).collect(), ..Part::default() };
                let passed = gate.pass(Order { parts, is_begun: true }, &rules, &SAME, NOW);
                if passed.change.whole {
                    held.clear();
                }
                for (addr, end) in &passed.change.hosts {
                    match end {
                        Some(end) => held.insert(*addr, *end),
                        None => held.remove(addr),
                    };
                }
                prop_assert!(held.len() <= 4);
                prop_assert_eq!(&held, &gate.hosts);
                for (addr, end) in &held {
                    prop_assert!(rules.admission.check(*addr).is_ok());
                    prop_assert!(*end <= NOW.after(rules.span_max));
                }
            }
        }
    }
}
