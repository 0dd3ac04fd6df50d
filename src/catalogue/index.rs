//! The label index: which triggers decide a name.
//!
//! Every name that a trigger or `catalogue.never` speaks of is a [`Node`], and the nearest such name above it is its
//! parent. [`Builder`] collects the nodes and then resolves each once, parents first: which rules say yes to the
//! name itself, and which to the names below it that have no node of their own. Both results are [`MatchId`]s, so a
//! look-up finds the deepest node at or above the name asked and reads one of them; how many apps there are costs it
//! nothing.
//!
//! Nodes are found by the hash of their name, taken label by label from the right, so that one pass over a name
//! yields the hash of each name above it. An octet of each hash stands in a dense table of its own, which answers
//! for nearly all names that have no node; only then is a [`Slot`] read, which holds the name (up to 35 octets of
//! it) and both results in place. So a look-up costs one far memory access, whatever the number of triggers, and at
//! most one step for each depth that any node has. Names are chosen by strangers: the hash is seeded anew in each
//! process, and a slot counts only if all octets of the name are equal.
//!
//! Rules of one app: the deepest name wins, at equal depth the lesser [`Kind`]. A node at or below a name in
//! `catalogue.never` matches nothing, whatever is listed further down.
//!
//! Memory, for a name with one trigger: 65 octets of slot (48 and a tag, a quarter of them empty), 16 of node, 12 of
//! rule, and the name. A result of several apps adds 4 octets an app.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashTable};
use smallvec::{SmallVec, smallvec};

use super::trigger::Kind;
use crate::name::{LABEL_LEN_MAX, Name, WIRE_LEN_MAX};

/// The most labels a name has: 127 of one octet each fill 254 octets.
const LABELS_MAX: usize = 127;

/// The number that stands for no rule, no match, no node.
const NONE: u32 = u32::MAX;

/// How many depths a look-up goes at a time; few names have more labels.
const ROUND: usize = 8;

/// The node of the root name, which is always there and takes no rule.
const ROOT: u32 = 0;

/// Which triggers said yes to a name: a row in the tables of one catalogue, equal for names with the same result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MatchId(u32);

impl MatchId {
    /// Returns the row's number, below the count of triggers and combinations in its catalogue.
    pub fn as_u32(self) -> u32 {
        self.0
    }
}

/// The number of a rule, in the order in which they were added.
pub(super) type RuleId = u32;

/// One trigger on its node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    node: u32,
    /// The rule added to this node before.
    next: u32,
    /// The place of its app among the apps.
    pub(super) app: u16,
    pub(super) kind: Kind,
}

/// A name that something is said of.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// The nearest name above that is a node; the root's is [`NONE`]. Known once all are there.
    parent: u32,
    /// The rule added last.
    head: u32,
    /// Where its wire form starts among all names.
    name_at: u32,
    name_len: u8,
    label_count: u8,
    /// Whether it is, or lies below, a name that no app may have.
    is_sealed: bool,
}

impl Node {
    /// Returns the name in wire form.
    fn wire<'a>(&self, names: &'a [u8]) -> &'a [u8] {
        let start = self.name_at as usize;
        &names[start..start + usize::from(self.name_len)]
    }
}

/// A node as the look-up sees it.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The match of the name itself.
    at: u32,
    /// The match of names below without a node nearer to them.
    below: u32,
    node: u32,
    name_len: u8,
    /// The name in wire form, as far as there is room.
    name: [u8; Self::NAME_LEN],
}

impl Slot {
    /// What makes a slot 48 octets; nine in ten names of real lists fit.
    const NAME_LEN: usize = 35;

    const EMPTY: Self = Self { at: NONE, below: NONE, node: NONE, name_len: 0, name: [0; Self::NAME_LEN] };

    fn new(node: u32, wire: &[u8], at: u32, below: u32) -> Self {
        let mut name = [0; Self::NAME_LEN];
        let len = wire.len().min(Self::NAME_LEN);
        name[..len].copy_from_slice(&wire[..len]);
        // A name has at most 255 octets.
        Self { at, below, node, name_len: wire.len() as u8, name }
    }
}

/// A label as it is hashed.
#[derive(Clone, Copy)]
struct Label<'a> {
    /// The length octet and the first 15 octets, zeros after them.
    head: u128,
    /// The octets after those.
    tail: &'a [u8],
}

impl<'a> Label<'a> {
    /// How many octets of length and label the head holds.
    const HEAD_LEN: usize = 16;

    /// Takes the label whose length octet stands at `start` of a name in wire form. Reads 16 octets at once where it
    /// can: copying a few octets costs more than hashing them.
    fn at(wire: &'a [u8], start: usize) -> Self {
        let len = 1 + usize::from(wire[start]);
        let head = if let Some(chunk) = wire[start..].first_chunk() {
            u128::from_le_bytes(*chunk)
        } else if let Some(chunk) = wire.last_chunk() {
            u128::from_le_bytes(*chunk) >> (8 * (Self::HEAD_LEN - (wire.len() - start)))
        } else {
            let mut buffer = [0; Self::HEAD_LEN];
            let rest = &wire[start..];
            buffer[..rest.len()].copy_from_slice(rest);
            u128::from_le_bytes(buffer)
        };
        if len < Self::HEAD_LEN {
            Self { head: head & ((1 << (8 * len)) - 1), tail: &[] }
        } else {
            Self { head, tail: &wire[start + Self::HEAD_LEN..start + len] }
        }
    }
}

/// Hashes names label by label from the right.
#[derive(Clone)]
struct Hash(RandomState);

impl Hash {
    /// The hash of the root.
    const START: u64 = 0;

    /// Goes on from the hash of a name to that of the name with one more label in front.
    fn step(&self, hash: u64, label: Label<'_>) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write_u64(hash);
        hasher.write_u128(label.head);
        if !label.tail.is_empty() {
            hasher.write(label.tail);
        }
        hasher.finish()
    }

    fn name(&self, wire: &[u8], starts: &[u8]) -> u64 {
        starts.iter().rev().fold(Self::START, |hash, &start| self.step(hash, Label::at(wire, usize::from(start))))
    }
}

/// The nodes while they are collected.
pub(super) struct Builder {
    hash: Hash,
    nodes: Vec<Node>,
    /// The hash of each node.
    hashes: Vec<u64>,
    /// The wire forms of all nodes.
    names: Vec<u8>,
    rules: Vec<Rule>,
    table: HashTable<u32>,
}

impl Builder {
    /// Starts with the root alone.
    pub(super) fn new() -> Self {
        let root = Node { parent: NONE, head: NONE, name_at: 0, name_len: 1, label_count: 0, is_sealed: false };
        Self {
            hash: Hash(RandomState::default()),
            nodes: vec![root],
            hashes: vec![Hash::START],
            names: vec![0],
            rules: Vec::new(),
            table: HashTable::new(),
        }
    }

    /// Makes room for so many names.
    pub(super) fn reserve(&mut self, names: usize) {
        self.rules.reserve(names);
        self.nodes.reserve(names);
        self.hashes.reserve(names);
        let hashes = &self.hashes;
        self.table.reserve(names, |&node| hashes[node as usize]);
    }

    /// Adds a rule; all of an app's rules come one after another.
    ///
    /// # Errors
    /// The earlier rule, if this app has the same kind at this name already; nothing is added then.
    pub(super) fn add(&mut self, name: &Name, kind: Kind, app: u16) -> Result<RuleId, RuleId> {
        let node = self.node(name);
        let head = self.nodes[node as usize].head;
        let of_app = chain(&self.rules, head).take_while(|(_, rule)| rule.app == app);
        if let Some((earlier, _)) = of_app.into_iter().find(|(_, rule)| rule.kind == kind) {
            return Err(earlier);
        }
        let id = self.rules.len() as RuleId;
        self.rules.push(Rule { node, next: head, app, kind });
        self.nodes[node as usize].head = id;
        Ok(id)
    }

    /// Keeps every app from the name and all below it.
    pub(super) fn seal(&mut self, name: &Name) {
        let node = self.node(name);
        self.nodes[node as usize].is_sealed = true;
    }

    /// Finds or makes the node of a name.
    fn node(&mut self, name: &Name) -> u32 {
        let wire = name.as_wire();
        let mut starts = [0; LABELS_MAX + 1];
        let count = label_starts(wire, &mut starts).unwrap_or(0);
        if count == 0 {
            return ROOT;
        }
        let hash = self.hash.name(wire, &starts[..count]);
        let Self { nodes, hashes, names, table, .. } = self;
        if let Some(&node) = table.find(hash, |&node| nodes[node as usize].wire(names) == wire) {
            return node;
        }
        let made = nodes.len() as u32;
        // Neither number can be cut: names have at most 255 octets and 127 labels.
        let (name_at, name_len, label_count) = (names.len() as u32, wire.len() as u8, count as u8);
        nodes.push(Node { parent: ROOT, head: NONE, name_at, name_len, label_count, is_sealed: false });
        hashes.push(hash);
        names.extend_from_slice(wire);
        table.insert_unique(hash, made, |&node| hashes[node as usize]);
        made
    }

    /// Resolves every node; apps whose place in `is_disabled` is true match nothing.
    pub(super) fn finish(self, is_disabled: &[bool]) -> Index {
        let Self { hash, nodes, hashes, names, rules, table } = self;
        drop(table);
        let mut results = Results::new(rules.len() as u32);
        let mut index = Index { hash, slots: Slots::new(nodes.len()), nodes, names, rules, results: Results::new(0) };
        let mut below = vec![NONE; index.nodes.len()];
        // Fewer labels first, so that each node finds all above it.
        let mut order: Vec<u32> = (0..index.nodes.len() as u32).collect();
        order.sort_by_key(|&id| index.nodes[id as usize].label_count);
        for id in order {
            let node = index.nodes[id as usize];
            let wire = node.wire(&index.names);
            let parent = if id == ROOT { NONE } else { index.deepest(wire).map_or(ROOT, |slot| slot.node) };
            let above = index.nodes.get(parent as usize);
            let is_sealed = node.is_sealed || above.is_some_and(|above| above.is_sealed);
            let inherited = below.get(parent as usize).copied().unwrap_or(NONE);
            let (at, under) = if is_sealed {
                (NONE, NONE)
            } else {
                let own = own_rules(&index.rules, node.head, is_disabled);
                (
                    results.merge(&index.rules, &own, inherited, Kind::covers_itself),
                    results.merge(&index.rules, &own, inherited, Kind::covers_below),
                )
            };
            below[id as usize] = under;
            if id != ROOT {
                index.slots.insert(hashes[id as usize], Slot::new(id, wire, at, under), node.label_count);
            }
            let node = &mut index.nodes[id as usize];
            (node.parent, node.is_sealed) = (parent, is_sealed);
        }
        results.close();
        index.nodes.shrink_to_fit();
        index.names.shrink_to_fit();
        index.rules.shrink_to_fit();
        index.results = results;
        index
    }
}

/// The slots, by hash: open addressing with linear steps, three quarters full.
struct Slots {
    /// An octet of each slot's hash, 0 for an empty one.
    tags: Vec<u8>,
    slots: Vec<Slot>,
    /// Bit `n - 1` tells whether any slot's name has `n` labels.
    depths: u128,
}

impl Slots {
    /// Makes room for so many slots; there is always an empty one more, which ends a search.
    fn new(count: usize) -> Self {
        let capacity = count + count / 3 + 1;
        Self { tags: vec![0; capacity], slots: vec![Slot::EMPTY; capacity], depths: 0 }
    }

    /// Returns the most labels that any name here has.
    fn depth_max(&self) -> usize {
        (u128::BITS - self.depths.leading_zeros()) as usize
    }

    fn has_depth(&self, label_count: usize) -> bool {
        self.depths >> (label_count - 1) & 1 == 1
    }

    fn tag_of(hash: u64) -> u8 {
        (hash as u8).max(1)
    }

    /// Maps the hash evenly to a place; its high bits weigh most, so the tag's are free.
    fn place_of(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.tags.len() as u128) >> 64) as usize
    }

    fn insert(&mut self, hash: u64, slot: Slot, label_count: u8) {
        let mut place = self.place_of(hash);
        while self.tags[place] != 0 {
            place = if place + 1 == self.tags.len() { 0 } else { place + 1 };
        }
        self.tags[place] = Self::tag_of(hash);
        self.slots[place] = slot;
        self.depths |= 1 << (label_count - 1);
    }

    /// Finds the slot of this hash that `is_it` accepts.
    fn find(&self, hash: u64, is_it: impl Fn(&Slot) -> bool) -> Option<&Slot> {
        let tag = Self::tag_of(hash);
        let mut place = self.place_of(hash);
        loop {
            match self.tags[place] {
                0 => return None,
                found if found == tag && is_it(&self.slots[place]) => return Some(&self.slots[place]),
                _ => place = if place + 1 == self.tags.len() { 0 } else { place + 1 },
            }
        }
    }
}

/// The nodes, resolved.
pub(super) struct Index {
    hash: Hash,
    slots: Slots,
    nodes: Vec<Node>,
    /// The wire forms of all nodes.
    names: Vec<u8>,
    rules: Vec<Rule>,
    results: Results,
}

impl Index {
    /// Finds the match of a name in lower-case wire form; one that is malformed matches nothing.
    pub(super) fn find(&self, wire: &[u8]) -> Option<MatchId> {
        let slot = self.deepest(wire)?;
        let result = if usize::from(slot.name_len) == wire.len() { slot.at } else { slot.below };
        (result != NONE).then_some(MatchId(result))
    }

    /// Finds the slot with the most labels that is the name or lies above it.
    ///
    /// Goes eight depths at a time: first all hashes, reading the tag that each leads to, then the slots, deepest
    /// first. The tags do not wait for each other that way, and one slot is read for a name that is listed.
    fn deepest(&self, wire: &[u8]) -> Option<&Slot> {
        let mut starts = [0; LABELS_MAX + 1];
        let count = label_starts(wire, &mut starts)?;
        let nearest = count.min(self.slots.depth_max());
        let (mut hash, mut deepest) = (Hash::START, None);
        for (round, starts) in starts[count - nearest..count].rchunks(ROUND).enumerate() {
            let mut hashes = [0; ROUND];
            let mut touched = 0;
            for (to, &start) in hashes.iter_mut().zip(starts.iter().rev()) {
                hash = self.hash.step(hash, Label::at(wire, usize::from(start)));
                *to = hash;
                touched |= self.slots.tags[self.slots.place_of(hash)];
            }
            std::hint::black_box(touched);
            for (i, (&hash, &start)) in hashes.iter().zip(starts.iter().rev()).enumerate().rev() {
                let rest = &wire[usize::from(start)..];
                if self.slots.has_depth(round * ROUND + i + 1)
                    && let Some(slot) = self.slots.find(hash, |slot| self.is_name_of(slot, rest))
                {
                    deepest = Some(slot);
                    break;
                }
            }
        }
        deepest
    }

    fn is_name_of(&self, slot: &Slot, wire: &[u8]) -> bool {
        let len = usize::from(slot.name_len);
        if len != wire.len() {
            return false;
        }
        match slot.name.get(..len) {
            Some(name) => name == wire,
            None => self.nodes[slot.node as usize].wire(&self.names) == wire,
        }
    }

    /// Returns the rules of a match, most specific first: deeper before shallower, then by kind, then by app.
    pub(super) fn rules_of(&self, id: MatchId) -> SmallVec<[RuleId; 8]> {
        self.results.rules_of(id.0)
    }

    /// Returns a rule.
    pub(super) fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(id as usize)
    }

    /// Returns how many rules there are; their ids count from 0.
    pub(super) fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// Returns the name that a rule speaks of.
    pub(super) fn name_of(&self, rule: &Rule) -> Name {
        self.name_of_node(rule.node)
    }

    fn name_of_node(&self, node: u32) -> Name {
        let wire = self.nodes.get(node as usize).map(|node| node.wire(&self.names));
        // The octets were taken from a name, so they make one again.
        wire.and_then(|wire| Name::from_wire(wire).ok()).unwrap_or_else(Name::root)
    }

    /// Returns how many different names the rules that `is_wanted` accepts stand at.
    pub(super) fn count_names(&self, is_wanted: impl Fn(&Rule) -> bool) -> usize {
        self.nodes.iter().filter(|node| chain(&self.rules, node.head).any(|(_, rule)| is_wanted(rule))).count()
    }

    /// Walks the nodes from `name` upwards: the rules of each that cover `name`, strongest first, and the name of
    /// the node if it is sealed.
    pub(super) fn covering(&self, name: &Name) -> Vec<Covering> {
        let mut coverings = Vec::new();
        let mut id = self.deepest(name.as_wire()).map_or(ROOT, |slot| slot.node);
        while let Some(node) = self.nodes.get(id as usize) {
            let is_itself = node.wire(&self.names) == name.as_wire();
            let covers = |kind: Kind| if is_itself { kind.covers_itself() } else { kind.covers_below() };
            let mut rules: Vec<(Kind, u16, RuleId)> = chain(&self.rules, node.head)
                .filter(|(_, rule)| covers(rule.kind))
                .map(|(id, rule)| (rule.kind, rule.app, id))
                .collect();
            rules.sort_unstable();
            coverings.push(Covering {
                rules: rules.into_iter().map(|(_, _, id)| id).collect(),
                sealed: node.is_sealed.then(|| self.name_of_node(id)),
            });
            id = node.parent;
        }
        coverings
    }

    /// Visits the rules of the same app that stand at the rule's name or above it, nearest first, until `visit`
    /// says to stop.
    pub(super) fn visit_around(&self, id: RuleId, mut visit: impl FnMut(RuleId, &Rule, Around) -> Go) {
        let Some(&own) = self.rules.get(id as usize) else { return };
        let mut at = own.node;
        let mut around = Around::Same;
        while let Some(node) = self.nodes.get(at as usize) {
            for (other, rule) in
                chain(&self.rules, node.head).filter(|&(other, rule)| rule.app == own.app && other != id)
            {
                if let Go::Stop = visit(other, rule, around) {
                    return;
                }
            }
            at = node.parent;
            around = Around::Above;
        }
    }

    /// Returns the octets held on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.slots.tags.capacity()
            + self.slots.slots.capacity() * size_of::<Slot>()
            + self.nodes.capacity() * size_of::<Node>()
            + self.rules.capacity() * size_of::<Rule>()
            + self.names.capacity()
            + (self.results.rules.capacity() + self.results.starts.capacity()) * size_of::<u32>()
    }
}

/// What covers a name at one name above it, or at itself.
pub(super) struct Covering {
    /// Rules that speak of the name asked.
    pub(super) rules: Vec<RuleId>,
    /// The name of the node, if no app may have what lies here.
    pub(super) sealed: Option<Name>,
}

/// Where another rule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Around {
    /// At the same name.
    Same,
    /// At a name above.
    Above,
}

/// Whether a visit goes on.
pub(super) enum Go {
    /// To the next one.
    On,
    /// No further.
    Stop,
}

/// Sets of rules that said yes. A set of one rule is that rule's own number and takes no room; a set of several is
/// kept once, its number counted on from the rules'.
struct Results {
    single_count: u32,
    /// Where each set of several starts in `rules`; a last one marks the end.
    starts: Vec<u32>,
    rules: Vec<RuleId>,
    known: HashMap<Box<[RuleId]>, u32, RandomState>,
}

impl Results {
    fn new(single_count: u32) -> Self {
        Self { single_count, starts: vec![0], rules: Vec::new(), known: HashMap::default() }
    }

    /// Drops what only building needs.
    fn close(&mut self) {
        self.known = HashMap::default();
        self.starts.shrink_to_fit();
        self.rules.shrink_to_fit();
    }

    fn rules_of(&self, id: u32) -> SmallVec<[RuleId; 8]> {
        if id < self.single_count {
            return smallvec![id];
        }
        let at = (id - self.single_count) as usize;
        let (Some(&start), Some(&end)) = (self.starts.get(at), self.starts.get(at.saturating_add(1))) else {
            return SmallVec::new();
        };
        self.rules[start as usize..end as usize].into()
    }

    /// Puts the strongest of each app's own rules that pass `covers` before what is inherited from other apps.
    fn merge(&mut self, rules: &[Rule], own: &[RuleId], inherited: u32, covers: fn(Kind) -> bool) -> u32 {
        let mut decided: SmallVec<[u16; 8]> = SmallVec::new();
        let mut set: SmallVec<[RuleId; 8]> = SmallVec::new();
        for &id in own {
            let rule = &rules[id as usize];
            if !covers(rule.kind) || decided.contains(&rule.app) {
                continue;
            }
            decided.push(rule.app);
            if rule.kind != Kind::Never {
                set.push(id);
            }
        }
        if decided.is_empty() {
            return inherited;
        }
        if inherited != NONE {
            let others = self.rules_of(inherited);
            set.extend(others.into_iter().filter(|&id| !decided.contains(&rules[id as usize].app)));
        }
        self.intern(&set)
    }

    fn intern(&mut self, set: &[RuleId]) -> u32 {
        match *set {
            [] => NONE,
            [one] => one,
            _ => {
                if let Some(&id) = self.known.get(set) {
                    return id;
                }
                let id = self.single_count + (self.starts.len() - 1) as u32;
                self.rules.extend_from_slice(set);
                self.starts.push(self.rules.len() as u32);
                self.known.insert(set.into(), id);
                id
            }
        }
    }
}

/// Returns the rules of one node that count, strongest kind first, then by app.
fn own_rules(rules: &[Rule], head: u32, is_disabled: &[bool]) -> SmallVec<[RuleId; 8]> {
    let counts = |rule: &Rule| !is_disabled.get(usize::from(rule.app)).copied().unwrap_or(false);
    let mut own: SmallVec<[RuleId; 8]> =
        chain(rules, head).filter(|(_, rule)| counts(rule)).map(|(id, _)| id).collect();
    own.sort_by_key(|&id| (rules[id as usize].kind, rules[id as usize].app));
    own
}

/// Walks the rules of a node, the last one added first.
fn chain(rules: &[Rule], head: u32) -> impl Iterator<Item = (RuleId, &Rule)> {
    let mut at = head;
    std::iter::from_fn(move || {
        let rule = rules.get(at as usize)?;
        let id = at;
        at = rule.next;
        Some((id, rule))
    })
}

/// Writes where each label of a name in wire form starts, leftmost first, and returns how many there are.
/// `None` if the octets are no name, or more than one.
fn label_starts(wire: &[u8], starts: &mut [u8; LABELS_MAX + 1]) -> Option<usize> {
    if wire.len() > WIRE_LEN_MAX {
        return None;
    }
    let (mut at, mut count) = (0, 0);
    loop {
        let len = usize::from(*wire.get(at)?);
        if len == 0 {
            return (at + 1 == wire.len()).then_some(count);
        }
        if len > LABEL_LEN_MAX {
            return None;
        }
        // `at` is below 255 since `wire` is no longer than that, and 128 labels do not fit.
        *starts.get_mut(count)? = at as u8;
        count += 1;
        at += 1 + len;
    }
}
