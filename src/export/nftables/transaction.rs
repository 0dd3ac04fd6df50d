//! Changes of elements, committed: many in one transaction, and none lost because of a bad one beside it.
//!
//! The kernel takes a transaction whole or not at all, and names the message that failed, not the element. So elements
//! go many to a message first; those of a message that failed go alone next time, and what fails alone is left out.
//! Deletions come first, so that a range may take the place of another that it overlaps.

use nix::errno::Errno;

use super::attr;
use super::link::{Link, NotTaken};
use super::message::{Batch, CREATE, EXCLUSIVE, Kind, TableFamily};
use super::range::{self, ENCODED_LEN_MAX, Range, Shape};
use crate::clock::Timestamp;

// linux/netfilter/nf_tables.h
pub(super) const LIST_TABLE: u16 = 1;
pub(super) const LIST_SET: u16 = 2;
pub(super) const LIST_ELEMENTS: u16 = 3;

/// The most ranges in one message, so that its elements stay below the 64 KiB of an attribute.
const PER_MESSAGE_MAX: usize = 65_000 / ENCODED_LEN_MAX;
/// The most changes in one transaction: others' transactions wait behind it.
const PER_COMMIT_MAX: usize = 16_384;
/// The same where all must come at once, since a table is replaced.
const PER_REPLACEMENT_MAX: usize = 131_072;
/// What a range may take that goes alone: its message's header, the names of table and set, its elements.
const ALONE_LEN_MAX: usize = 64 + 2 * 260 + ENCODED_LEN_MAX;
/// How often a transaction is tried; each time some changes go alone, are left out, or become others.
const TRIES_MAX: usize = 12;

/// What is done with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verb {
    /// It leaves.
    Delete,
    /// It leaves and comes back with a new end, in one step.
    Replace,
    /// It gets a new end where it stands.
    Update,
    /// It comes.
    Add,
}

/// One change of one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Op {
    /// The set's place among those that we fill.
    pub(super) set: usize,
    pub(super) verb: Verb,
    pub(super) range: Range,
    /// When it is to end by itself.
    pub(super) until: Option<Timestamp>,
}

/// A set to change, as far as a transaction must know it.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) name: &'a str,
    pub(super) shape: Shape,
}

/// Where a transaction goes.
#[derive(Debug)]
pub(super) struct Table<'a> {
    pub(super) family: TableFamily,
    pub(super) name: &'a str,
    /// By the same numbers as [`Op::set`]; `None` for a set that is not there.
    pub(super) sets: Vec<Option<Place<'a>>>,
}

/// What came of changes.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) done: Vec<Op>,
    pub(super) failed: Vec<(Op, Errno)>,
    /// A message before the elements failed, or the transaction as such.
    pub(super) broken: Option<Broken>,
}

/// What kept a transaction as such from being taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// A message before the elements failed.
    Head(Errno),
    /// All of it.
    Whole(Errno),
    /// Nobody knows whether it was taken.
    Unknown,
}

/// Commits changes. `head` puts messages before those of the first transaction, anew at each try; `send` hands each
/// transaction to the kernel, and measures.
pub(super) fn commit(
    link: &mut Link,
    table: &Table<'_>,
    mut ops: Vec<Op>,
    head: Option<&dyn Fn(&mut Batch)>,
    now: impl Fn() -> Timestamp,
    mut send: impl FnMut(&mut Link, &super::message::Sealed) -> Result<(), NotTaken>,
) -> Outcome {
    let mut outcome = Outcome::default();
    ops.sort_by_key(|op| (op.set, op.verb));
    let per_commit = if head.is_some() { PER_REPLACEMENT_MAX } else { PER_COMMIT_MAX };
    let mut rest = ops.as_slice();
    let mut head = head;
    loop {
        let limit = per_commit.min(link.send_len_max() / (2 * ENCODED_LEN_MAX)).min(rest.len());
        let (part, after) = rest.split_at(limit);
        rest = after;
        commit_part(link, table, part, head.take(), &now, &mut send, &mut outcome);
        if rest.is_empty() || outcome.broken.is_some() {
            return outcome;
        }
    }
}

/// A change on its way through the tries.
#[derive(Clone, Copy, Debug)]
struct Pending {
    op: Op,
    goes_alone: bool,
}

fn commit_part(
    link: &mut Link,
    table: &Table<'_>,
    ops: &[Op],
    head: Option<&dyn Fn(&mut Batch)>,
    now: &impl Fn() -> Timestamp,
    send: &mut impl FnMut(&mut Link, &super::message::Sealed) -> Result<(), NotTaken>,
    outcome: &mut Outcome,
) {
    let mut pending: Vec<Pending> = ops.iter().map(|op| Pending { op: *op, goes_alone: false }).collect();
    for _ in 0..TRIES_MAX {
        let mut batch = Batch::new(table.family, link.seq());
        if let Some(head) = head {
            head(&mut batch);
        }
        let carriers = fill(&mut batch, table, &pending, now(), link.send_len_max());
        let Some(sealed) = batch.finish() else { return };
        match send(link, &sealed) {
            Ok(()) => {
                outcome.done.extend(pending.iter().map(|pending| pending.op));
                return;
            }
            Err(NotTaken::Whole(errno)) => {
                outcome.broken = Some(Broken::Whole(errno));
                return;
            }
            Err(NotTaken::Unknown) => {
                outcome.broken = Some(Broken::Unknown);
                return;
            }
            Err(NotTaken::Messages(refusals)) => {
                let mut fates: Vec<Fate> = vec![Fate::Stays; pending.len()];
                for refusal in refusals {
                    // Numbers grow within a transaction, if need be past the last one of all.
                    let place = |seq: u32| seq.wrapping_sub(sealed.begin);
                    let found = carriers.binary_search_by_key(&place(refusal.seq), |carrier| place(carrier.seq));
                    let Some(carrier) = found.ok().map(|at| &carriers[at]) else {
                        outcome.broken = Some(Broken::Head(refusal.errno));
                        return;
                    };
                    judge(carrier, refusal.errno, &mut fates);
                }
                pending = settle(pending, &fates, outcome);
            }
        }
    }
    outcome.failed.extend(pending.iter().map(|pending| (pending.op, Errno::EAGAIN)));
}

/// A message of a transaction and the changes that it carries, by their places among those pending.
#[derive(Debug)]
struct Carrier {
    seq: u32,
    kind: Kind,
    changes: Vec<usize>,
}

/// What becomes of a pending change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    GoesAlone,
    /// What should leave was not there.
    WasGone,
    Fails(Errno),
}

fn judge(carrier: &Carrier, errno: Errno, fates: &mut [Fate]) {
    // A set that is not there fails every element alike.
    let is_about_the_set = carrier.kind == Kind::NewElements && errno == Errno::ENOENT;
    for change in &carrier.changes {
        let fate = &mut fates[*change];
        *fate = match *fate {
            Fate::Fails(errno) => Fate::Fails(errno),
            _ if is_about_the_set => Fate::Fails(errno),
            _ if carrier.changes.len() > 1 => Fate::GoesAlone,
            _ if carrier.kind == Kind::DelElements && errno == Errno::ENOENT => Fate::WasGone,
            _ => Fate::Fails(errno),
        };
    }
}

fn settle(pending: Vec<Pending>, fates: &[Fate], outcome: &mut Outcome) -> Vec<Pending> {
    let settled = pending.into_iter().zip(fates).filter_map(|(mut pending, fate)| match fate {
        Fate::Stays => Some(pending),
        Fate::GoesAlone => {
            pending.goes_alone = true;
            Some(pending)
        }
        Fate::WasGone if pending.op.verb == Verb::Replace => {
            pending.op.verb = Verb::Add;
            Some(pending)
        }
        Fate::WasGone => {
            outcome.done.push(pending.op);
            None
        }
        Fate::Fails(errno) => {
            outcome.failed.push((pending.op, *errno));
            None
        }
    });
    settled.collect()
}

/// Appends the messages for the changes: those that delete, then those that add, set by set. Changes that should go
/// alone and find no room for that go together once more.
fn fill(batch: &mut Batch, table: &Table<'_>, pending: &[Pending], now: Timestamp, len_max: usize) -> Vec<Carrier> {
    let mut carriers = Vec::new();
    for kind in [Kind::DelElements, Kind::NewElements] {
        for (set, place) in table.sets.iter().enumerate() {
            let Some(place) = place else { continue };
            for flags in [CREATE, CREATE | EXCLUSIVE] {
                let fits =
                    |pending: &Pending| pending.op.set == set && flags_of(kind, pending.op, place) == Some(flags);
                let (alone, together): (Vec<usize>, Vec<usize>) = (0..pending.len())
                    .filter(|at| fits(&pending[*at]))
                    .partition(|at| pending[*at].goes_alone && batch.len() + ALONE_LEN_MAX < len_max);
                let chunks = alone.chunks(1).chain(together.chunks(PER_MESSAGE_MAX));
                for changes in chunks {
                    let flags = if kind == Kind::DelElements { 0 } else { flags };
                    let seq = batch.push(kind, flags, |out| {
                        attr::put_text(out, LIST_TABLE, table.name);
                        attr::put_text(out, LIST_SET, place.name);
                        attr::nest(out, LIST_ELEMENTS, |out| {
                            for change in changes {
                                encode(out, kind, place.shape, pending[*change].op, now);
                            }
                        });
                    });
                    carriers.push(Carrier { seq, kind, changes: changes.to_vec() });
                }
            }
        }
    }
    carriers
}

/// Returns with which flags a change goes into messages of this kind, if it does.
fn flags_of(kind: Kind, op: Op, place: &Place<'_>) -> Option<u16> {
    match (kind, op.verb) {
        (Kind::DelElements, Verb::Delete | Verb::Replace) => Some(CREATE),
        (Kind::DelElements, Verb::Update | Verb::Add) | (_, Verb::Delete) => None,
        // Among others' elements, one that is there already is not ours to change.
        (_, Verb::Add | Verb::Replace) if place.shape.is_signed => Some(CREATE | EXCLUSIVE),
        (_, Verb::Replace | Verb::Update | Verb::Add) => Some(CREATE),
    }
}

fn encode(out: &mut Vec<u8>, kind: Kind, shape: Shape, op: Op, now: Timestamp) {
    if kind == Kind::DelElements {
        range::encode_key(out, shape, op.range);
    } else {
        // What has just ended gets a moment: the kernel takes 0 for «never».
        let lifetime = op.until.map(|until| until.as_millis().saturating_sub(now.as_millis()).max(1));
        range::encode(out, shape, op.range, lifetime);
    }
}

/// Asks for the elements of a set, one range or all, as [`range::Dump`] takes them.
pub(super) fn ask_for(table: &str, set: &str, which: Option<(Shape, Range)>) -> impl Fn(&mut Vec<u8>) {
    move |out| {
        attr::put_text(out, LIST_TABLE, table);
        attr::put_text(out, LIST_SET, set);
        if let Some((shape, range)) = which {
            attr::nest(out, LIST_ELEMENTS, |out| range::encode_key(out, shape, range));
        }
    }
}

/// Returns the elements in an answer.
pub(super) fn elements(attrs: &[u8]) -> attr::Attrs<'_> {
    attr::Attrs(attrs).inside(LIST_ELEMENTS)
}
