//! What a set should hold against what it holds: the changes that make one of the other.

use hashbrown::HashMap;

use super::range::{Found, Range, Shape, without};
use super::transaction::{Op, Verb};
use crate::clock::Timestamp;

/// How much too early an end in the kernel may be before it is set anew: the kernel counts ticks.
const EARLY_MILLIS: u64 = 100;
/// How much too late: what a dump tells lies a while until it is read, which makes every end look later.
const LATE_MILLIS: u64 = 1500;

/// A range that a set should hold, until then; `None`: until it is withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) range: Range,
    pub(super) until: Option<Timestamp>,
}

/// How an element gets a later end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    /// Where it stands: Linux 6.12 and later, in a hash set.
    Update,
    /// By deleting and adding it in one transaction.
    Replace,
}

impl Renewal {
    /// Returns the verb for it.
    pub(super) fn verb(self) -> Verb {
        match self {
            Self::Update => Verb::Update,
            Self::Replace => Verb::Replace,
        }
    }
}

/// What becomes of timed elements of ours that nobody knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surplus {
    /// They stay until they time out: what they were granted for is lost, but clients may still use it.
    Adopt,
    /// They leave.
    Withdraw,
}

/// What is ours in a set, by first address: the last one, and when it ends by itself.
pub(super) type Held = HashMap<u128, (u128, Option<Timestamp>)>;

/// How a set becomes what it should be.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The changes.
    pub(super) ops: Vec<Op>,
    /// What is ours and there before them, adopted elements left out.
    pub(super) held: Held,
    /// Others' ranges, sorted.
    pub(super) foreign: Vec<Found>,
    /// What stays although nobody knows of it, by first address.
    pub(super) adopted: HashMap<u128, Timestamp>,
}

/// Plans for one set, number `set`. `wanted` and `found` are sorted and disjoint each.
pub(super) fn plan(
    set: usize,
    shape: Shape,
    renewal: Renewal,
    wanted: &[Wanted],
    found: Vec<Found>,
    is_adopted: impl Fn(&Found) -> bool,
) -> Plan {
    let (ours, foreign): (Vec<Found>, Vec<Found>) =
        found.into_iter().partition(|found| !shape.is_signed || found.is_signed);
    let pieces = if foreign.is_empty() { wanted.to_vec() } else { pieces(shape, wanted, &foreign) };
    let mut plan = Plan { foreign, held: Held::with_capacity(ours.len()), ..Plan::default() };
    let (mut pieces, mut ours) = (pieces.into_iter().peekable(), ours.into_iter().peekable());
    loop {
        let op = |verb, range, until| Op { set, verb, range, until };
        let order = match (pieces.peek(), ours.peek()) {
            (None, None) => return plan,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(piece), Some(found)) => piece.range.cmp(&found.range),
        };
        if order.is_lt() {
            plan.ops.extend(pieces.next().map(|piece| op(Verb::Add, piece.range, piece.until)));
            continue;
        }
        let Some(found) = ours.next() else { continue };
        if order.is_eq() {
            let Some(piece) = pieces.next() else { continue };
            let verb = verb(shape, renewal, piece, &found);
            // Where nothing is to be done, small differences are none.
            let until = if verb.is_none() { piece.until } else { found.until };
            plan.held.insert(found.range.first, (found.range.last, until));
            plan.ops.extend(verb.map(|verb| op(verb, found.range, piece.until)));
        } else if let Some(until) = found.until.filter(|_| is_adopted(&found)) {
            plan.adopted.insert(found.range.first, until);
        } else {
            plan.held.insert(found.range.first, (found.range.last, found.until));
            plan.ops.push(op(Verb::Delete, found.range, None));
        }
    }
}

/// Returns what must be done about an element that is there, if anything.
fn verb(shape: Shape, renewal: Renewal, wanted: Wanted, found: &Found) -> Option<Verb> {
    match (wanted.until.filter(|_| shape.has_timeouts), found.until) {
        (None, None) => None,
        (Some(until), Some(found)) => {
            (!is_end_right(until, found)).then(|| if shape.has_intervals { Verb::Replace } else { renewal.verb() })
        }
        // An element that was made without an end has no place for one, and the other way round.
        (None, Some(_)) | (Some(_), None) => Some(Verb::Replace),
    }
}

/// Whether an end in the kernel is as good as the one that it should be.
pub(super) fn is_end_right(until: Timestamp, found: Timestamp) -> bool {
    let (until, found) = (until.as_millis(), found.as_millis());
    found + EARLY_MILLIS >= until && until + LATE_MILLIS >= found
}

/// Takes out of what is wanted what others' ranges cover or are in the way of.
fn pieces(shape: Shape, wanted: &[Wanted], foreign: &[Found]) -> Vec<Wanted> {
    let foreign: Vec<Range> = foreign.iter().map(|found| found.range).collect();
    let mut pieces = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        let from = foreign.partition_point(|range| range.last < wanted.range.first);
        let to = foreign.partition_point(|range| range.first <= wanted.range.last);
        if from >= to {
            pieces.push(*wanted);
        } else if shape.has_intervals {
            let left = without(&[wanted.range], &foreign[from..to]);
            pieces.extend(left.into_iter().map(|range| Wanted { range, until: wanted.until }));
        }
    }
    pieces
}

/// Returns whether others' ranges (sorted) cover all of `wanted` as long as it is wanted.
pub(super) fn is_covered(wanted: Wanted, foreign: &[Found]) -> bool {
    let from = foreign.partition_point(|found| found.range.last < wanted.range.first);
    let mut at = wanted.range.first;
    for found in &foreign[from..] {
        let lasts = found.until.is_none_or(|ends| wanted.until.is_some_and(|until| ends >= until));
        if found.range.first > at || !lasts {
            return false;
        }
        if found.range.last >= wanted.range.last {
            return true;
        }
        at = found.range.last + 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::Family;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn shape(has_intervals: bool, is_signed: bool) -> Shape {
        Shape { family: Family::V4, has_intervals, has_timeouts: true, is_signed }
    }

    fn at(secs: u64) -> Option<Timestamp> {
        Some(Timestamp::from_millis(NOW.as_millis() + secs * 1000))
    }

    fn wanted(first: u128, last: u128, until: Option<Timestamp>) -> Wanted {
        Wanted { range: Range { first, last }, until }
    }

    fn found(first: u128, last: u128, until: Option<Timestamp>, is_signed: bool) -> Found {
        Found { range: Range { first, last }, until, is_signed }
    }

    fn ops(plan: &Plan) -> Vec<(Verb, u128, u128)> {
        plan.ops.iter().map(|op| (op.verb, op.range.first, op.range.last)).collect()
    }

    #[test]
    fn hash_set_of_ours_is_put_right() {
        let wants = [wanted(1, 1, at(60)), wanted(2, 2, at(60)), wanted(3, 3, at(60)), wanted(4, 4, at(60))];
        let has = vec![
            found(1, 1, at(61), false),
            found(2, 2, at(50), false),
            found(3, 3, None, false),
            found(9, 9, at(5), false),
        ];
        let plan = |adopts: bool| plan(0, shape(false, false), Renewal::Update, &wants, has.clone(), |_| adopts);
        let expected = [(Verb::Update, 2, 2), (Verb::Replace, 3, 3), (Verb::Add, 4, 4), (Verb::Delete, 9, 9)];
        assert_eq!(ops(&plan(false)), expected);
        assert_eq!(ops(&plan(true)), expected[..3]);
        assert_eq!(plan(true).adopted.len(), 1);
    }

    #[test]
    fn others_elements_are_left_alone() {
        let wants = [wanted(1, 1, at(60)), wanted(2, 2, at(60)), wanted(3, 3, at(60))];
        let has = vec![
            found(1, 1, None, false),
            found(2, 2, at(5), false),
            found(7, 7, None, false),
            found(8, 8, at(9), true),
        ];
        let plan = plan(0, shape(false, true), Renewal::Replace, &wants, has, |_| false);
        assert_eq!(ops(&plan), [(Verb::Add, 3, 3), (Verb::Delete, 8, 8)]);
        assert!(is_covered(wants[0], &plan.foreign));
        assert!(!is_covered(wants[1], &plan.foreign), "it ends too early");
        assert!(!is_covered(wants[2], &plan.foreign));
    }

    #[test]
    fn ranges_fill_what_others_leave() {
        let wants = [wanted(0, 99, None), wanted(200, 200, at(60)), wanted(300, 399, None)];
        let has = vec![found(10, 19, None, false), found(150, 250, None, false), found(350, 500, None, false)];
        let plan = plan(0, shape(true, true), Renewal::Update, &wants, has, |_| false);
        assert_eq!(ops(&plan), [(Verb::Add, 0, 9), (Verb::Add, 20, 99), (Verb::Add, 300, 349)]);
        assert!(is_covered(wants[1], &plan.foreign));
        assert!(!is_covered(wants[2], &plan.foreign));
    }

    #[test]
    fn range_with_an_end_is_renewed_by_replacing() {
        let plan = plan(
            0,
            shape(true, true),
            Renewal::Update,
            &[wanted(1, 1, at(60))],
            vec![found(1, 1, at(5), true)],
            |_| false,
        );
        assert_eq!(ops(&plan), [(Verb::Replace, 1, 1)]);
    }
}
