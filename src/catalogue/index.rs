//! The label index: which triggers decide a name, found label by label from the right.
//!
//! A tree of labels whose root is the root name. Every name that a trigger or `catalogue.never` speaks of is a
//! [`Node`], and so is every name above it. [`Builder`] grows the tree and then resolves each node once, parents
//! first: which rules say yes to the name itself, and which to the names below it that have no node of their own.
//! Both results are [`MatchId`]s, so a look-up only walks down as far as the tree goes and reads one of them;
//! how many triggers there are, or how many apps, costs it nothing.
//!
//! The children of all nodes live in one hash table keyed by (parent, label). A [`Slot`] is half a cache line and
//! holds labels of up to 15 octets in place, so a step costs one far memory access, and a miss mostly none: the
//! table's own octet per slot tells. Names are chosen by strangers: the hash is seeded anew in each process, and a
//! miss ends at the first label that is not in the tree.
//!
//! Rules of one app: the deepest name wins, at equal depth the lesser [`Kind`]. A node at or below a name in
//! `catalogue.never` matches nothing, whatever is listed further down.
//!
//! Memory: 33 octets a slot in a table that is at most 7/8 full, 16 a node, 12 a rule, and the labels once; a result
//! of several apps adds 4 octets an app.

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

/// A name in the tree.
#[derive(Clone, Copy, Debug)]
struct Node {
    parent: u32,
    /// The rule added last.
    head: u32,
    /// Where its leftmost label starts among all labels, length octet first.
    label_at: u32,
    has_children: bool,
    /// Whether it is, or lies below, a name that no app may have.
    is_sealed: bool,
}

/// A node as the look-up sees it.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// [`Label::head`] of its leftmost label.
    head: u128,
    parent: u32,
    /// The node, with [`LEAF`] set if it has no children.
    node: u32,
    /// The match of the name itself.
    at: u32,
    /// The match of names below without a node.
    below: u32,
}

impl Slot {
    fn node_id(&self) -> u32 {
        self.node & !LEAF
    }
}

/// Marks a slot whose node has no children, so that a look-up stops there. Nodes number fewer than this: the text
/// of all lists is bounded far below it.
const LEAF: u32 = 1 << 31;

/// A label as it is hashed and compared.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Label<'a> {
    /// The length octet and the first 15 octets, zeros after them.
    head: u128,
    /// The octets after those.
    tail: &'a [u8],
}

impl<'a> Label<'a> {
    /// How many octets of length and label the head holds.
    const HEAD_LEN: usize = 16;

    /// Takes the label whose length octet stands at `start`; what follows it must be there. Reads 16 octets at once
    /// where it can, since copying a few octets costs more than all else.
    fn at(octets: &'a [u8], start: usize) -> Self {
        let len = 1 + usize::from(octets[start]);
        let mut buffer = [0; Self::HEAD_LEN];
        let head = if let Some(chunk) = octets[start..].first_chunk() {
            u128::from_le_bytes(*chunk)
        } else if let Some(chunk) = octets.last_chunk() {
            u128::from_le_bytes(*chunk) >> (8 * (Self::HEAD_LEN - (octets.len() - start)))
        } else {
            let rest = &octets[start..];
            buffer[..rest.len()].copy_from_slice(rest);
            u128::from_le_bytes(buffer)
        };
        if len < Self::HEAD_LEN {
            Self { head: head & ((1 << (8 * len)) - 1), tail: &[] }
        } else {
            Self { head, tail: &octets[start + Self::HEAD_LEN..start + len] }
        }
    }

    /// Hashes the label as a child of `parent`.
    fn hash(self, state: &RandomState, parent: u32) -> u64 {
        let mut hasher = state.build_hasher();
        hasher.write_u32(parent);
        hasher.write_u128(self.head);
        if !self.tail.is_empty() {
            hasher.write(self.tail);
        }
        hasher.finish()
    }
}

impl Node {
    /// Returns the leftmost label of the node's name.
    fn label<'a>(&self, labels: &'a [u8]) -> Label<'a> {
        Label::at(labels, self.label_at as usize)
    }

    /// Hashes the node as it is found.
    fn hash(&self, state: &RandomState, labels: &[u8]) -> u64 {
        self.label(labels).hash(state, self.parent)
    }
}

/// The tree while it grows.
pub(super) struct Builder {
    hash: RandomState,
    nodes: Vec<Node>,
    labels: Vec<u8>,
    rules: Vec<Rule>,
    table: HashTable<u32>,
}

/// The tree, resolved.
pub(super) struct Index {
    hash: RandomState,
    nodes: Vec<Node>,
    labels: Vec<u8>,
    rules: Vec<Rule>,
    slots: HashTable<Slot>,
    results: Results,
}

impl Builder {
    /// Makes a tree of the root alone.
    pub(super) fn new() -> Self {
        let root = Node { parent: NONE, head: NONE, label_at: 0, has_children: false, is_sealed: false };
        Self {
            hash: RandomState::default(),
            nodes: vec![root],
            labels: vec![0],
            rules: Vec::new(),
            table: HashTable::new(),
        }
    }

    /// Makes room for so many names.
    pub(super) fn reserve(&mut self, names: usize) {
        self.rules.reserve(names);
        self.nodes.reserve(names);
        let (hash, nodes, labels) = (&self.hash, &self.nodes, &self.labels);
        self.table.reserve(names, |&node| nodes[node as usize].hash(hash, labels));
    }

    /// Adds a rule; all of an app's rules come one after another.
    ///
    /// # Errors
    /// The earlier rule, if this app has the same kind at this name already; nothing is added then.
    pub(super) fn add(&mut self, name: &Name, kind: Kind, app: u16) -> Result<RuleId, RuleId> {
        let node = self.grow(name);
        let head = self.nodes[node as usize].head;
        let mut at = head;
        while let Some(rule) = self.rules.get(at as usize).filter(|rule| rule.app == app) {
            if rule.kind == kind {
                return Err(at);
            }
            at = rule.next;
        }
        let id = self.rules.len() as RuleId;
        self.rules.push(Rule { node, next: head, app, kind });
        self.nodes[node as usize].head = id;
        Ok(id)
    }

    /// Keeps every app from the name and all below it.
    pub(super) fn seal(&mut self, name: &Name) {
        let node = self.grow(name);
        self.nodes[node as usize].is_sealed = true;
    }

    /// Finds or makes the node of a name and of all names above it.
    fn grow(&mut self, name: &Name) -> u32 {
        let mut starts = [0; LABELS_MAX + 1];
        let wire = name.as_wire();
        let count = label_starts(wire, &mut starts).unwrap_or(0);
        let mut node = 0;
        for &start in starts[..count].iter().rev() {
            node = self.child(node, wire, start);
        }
        node
    }

    /// Finds or makes the child of `parent` with the label that starts at `start` in `wire`.
    fn child(&mut self, parent: u32, wire: &[u8], start: u8) -> u32 {
        let Self { hash, nodes, labels, table, .. } = self;
        let label = Label::at(wire, usize::from(start));
        let key = label.hash(hash, parent);
        let is_it = |&node: &u32| {
            let node = &nodes[node as usize];
            node.parent == parent && node.label(labels) == label
        };
        if let Some(&node) = table.find(key, is_it) {
            return node;
        }
        let made = nodes.len() as u32;
        let label_at = labels.len() as u32;
        labels.extend_from_slice(label_of(wire, usize::from(start)));
        nodes[parent as usize].has_children = true;
        nodes.push(Node { parent, head: NONE, label_at, has_children: false, is_sealed: false });
        table.insert_unique(key, made, |&node| nodes[node as usize].hash(hash, labels));
        made
    }

    /// Resolves every node; apps whose place in `is_disabled` is true match nothing.
    pub(super) fn finish(mut self, is_disabled: &[bool]) -> Index {
        self.table = HashTable::new();
        let mut slots = HashTable::with_capacity(self.nodes.len());
        let mut results = Results::new(self.rules.len() as u32);
        let mut below = vec![NONE; self.nodes.len()];
        // A parent is always made before its children.
        for id in 0..self.nodes.len() {
            let node = self.nodes[id];
            let parent = self.nodes.get(node.parent as usize);
            let inherited = below.get(node.parent as usize).copied().unwrap_or(NONE);
            let is_sealed = node.is_sealed || parent.is_some_and(|parent| parent.is_sealed);
            self.nodes[id].is_sealed = is_sealed;
            let (at, under) = if is_sealed {
                (NONE, NONE)
            } else if node.head == NONE {
                (inherited, inherited)
            } else {
                let own = own_rules(&self.rules, node.head, is_disabled);
                (
                    results.merge(&self.rules, &own, inherited, Kind::covers_itself),
                    results.merge(&self.rules, &own, inherited, Kind::covers_below),
                )
            };
            below[id] = under;
            if id > 0 {
                let leaf = if node.has_children { 0 } else { LEAF };
                let head = node.label(&self.labels).head;
                let slot = Slot { head, parent: node.parent, node: id as u32 | leaf, at, below: under };
                let rehash = |slot: &Slot| self.nodes[slot.node_id() as usize].hash(&self.hash, &self.labels);
                slots.insert_unique(node.hash(&self.hash, &self.labels), slot, rehash);
            }
        }
        let Self { hash, mut nodes, mut labels, mut rules, .. } = self;
        nodes.shrink_to_fit();
        labels.shrink_to_fit();
        rules.shrink_to_fit();
        results.close();
        Index { hash, nodes, labels, rules, slots, results }
    }
}

impl Index {
    /// Finds the match of a name in lower-case wire form; one that is malformed matches nothing.
    pub(super) fn find(&self, wire: &[u8]) -> Option<MatchId> {
        let mut starts = [0; LABELS_MAX + 1];
        let mut left = label_starts(wire, &mut starts)?;
        let (mut node, mut result) = (0, NONE);
        while left > 0 {
            left -= 1;
            let Some(slot) = self.slot(node & !LEAF, wire, starts[left]) else { break };
            (node, result) = (slot.node, if left == 0 { slot.at } else { slot.below });
            if node & LEAF != 0 {
                break;
            }
        }
        (result != NONE).then_some(MatchId(result))
    }

    /// Finds the child of `parent` with the label that starts at `start` in `wire`.
    fn slot(&self, parent: u32, wire: &[u8], start: u8) -> Option<&Slot> {
        let label = Label::at(wire, usize::from(start));
        self.slots.find(label.hash(&self.hash, parent), |slot| {
            slot.parent == parent
                && slot.head == label.head
                && (label.tail.is_empty() || self.nodes[slot.node_id() as usize].label(&self.labels).tail == label.tail)
        })
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

    fn name_of_node(&self, mut node: u32) -> Name {
        let mut wire: SmallVec<[u8; WIRE_LEN_MAX]> = SmallVec::new();
        while let Some(it) = self.nodes.get(node as usize).filter(|it| it.parent != NONE) {
            wire.extend_from_slice(label_of(&self.labels, it.label_at as usize));
            node = it.parent;
        }
        wire.push(0);
        // The labels were taken from a name, so they make one again.
        Name::from_wire(&wire).unwrap_or_else(|_| Name::root())
    }

    /// Returns how many different names the rules that `is_wanted` accepts stand at.
    pub(super) fn count_names(&self, is_wanted: impl Fn(&Rule) -> bool) -> usize {
        self.nodes.iter().filter(|node| chain(&self.rules, node.head).any(|(_, rule)| is_wanted(rule))).count()
    }

    /// Walks the names from `name` upwards that have a node: the rules that cover `name`, strongest first within
    /// a name and an app, and whether this very name is sealed.
    pub(super) fn covering(&self, name: &Name) -> Vec<Covering> {
        let mut starts = [0; LABELS_MAX + 1];
        let wire = name.as_wire();
        let count = label_starts(wire, &mut starts).unwrap_or(0);
        let mut nodes: SmallVec<[u32; 16]> = smallvec![0];
        for &start in starts[..count].iter().rev() {
            let parent = nodes[nodes.len() - 1];
            let Some(slot) = self.slot(parent, wire, start) else { break };
            nodes.push(slot.node_id());
        }
        let is_whole = nodes.len() == count + 1;
        let deepest = nodes[nodes.len() - 1];
        let collect = |&id: &u32| {
            let covers =
                |kind: Kind| if is_whole && id == deepest { kind.covers_itself() } else { kind.covers_below() };
            let mut rules: Vec<RuleId> = chain(&self.rules, self.nodes[id as usize].head)
                .filter(|(_, rule)| covers(rule.kind))
                .map(|(id, _)| id)
                .collect();
            rules.sort_by_key(|&id| self.rules.get(id as usize).map(|rule| (rule.kind, rule.app)));
            Covering { rules, sealed: self.nodes[id as usize].is_sealed.then(|| self.name_of_node(id)) }
        };
        nodes.iter().rev().map(collect).collect()
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
        self.slots.allocation_size()
            + self.nodes.capacity() * size_of::<Node>()
            + self.rules.capacity() * size_of::<Rule>()
            + self.labels.capacity()
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

/// Returns the label that starts at `start`, length octet first.
fn label_of(octets: &[u8], start: usize) -> &[u8] {
    &octets[start..=start + usize::from(octets[start])]
}
