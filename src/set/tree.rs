//! The hosts of a snapshot: a sorted tree whose versions share what they have in common.
//!
//! A [`Tree`] is two B+ trees of [`Host`]s, one a family, nodes in `Arc`s. A clone is two pointers; a change to a tree
//! that a clone shares copies the nodes on one path and leaves the rest to both. Changes that nobody else sees yet, as
//! within one batch, are made in place.
//!
//! # Why a tree of our own
//! Publishing one more address among a million may cost the writer 5 µs, and nearly all of that is cache misses. A copy
//! of a node touches the reference count of each thing in it, so wide blocks (two levels of a thousand) are out and
//! nodes are short. A search reads only keys, so they lie side by side inside the node, as wide as their family needs:
//! one or two cache lines a level. `imbl::OrdMap` works alike, but its keys would be whole hosts twice as wide, and it
//! would add an MPL-2.0 crate with six of its own; `rpds` pays an allocation an entry.
//!
//! # Invariants
//! Keys are strictly ascending and `keys[i]` is the first key of `values[i]` or below `nodes[i]`; no node but the root
//! is empty; every leaf is equally deep.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::sighting::Host;
use crate::prefix::Family;

/// The most entries of a node. Shorter nodes copy less and search more: 12 to 24 take the same time within a tenth,
/// and longer ones less memory.
const NODE_LEN_MAX: usize = 24;

/// What a node holds, inside the node: one more than may stay, until it is split.
type List<T> = SmallVec<[T; NODE_LEN_MAX + 1]>;

/// A node that falls below this is joined with a neighbour if both fit into one.
const NODE_LEN_LOW: usize = NODE_LEN_MAX / 3;

/// Hosts, sorted by address, IPv4 first; a clone costs two reference counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    v4: Side<u32>,
    v6: Side<u128>,
}

impl Tree {
    /// Puts a host in; one of the same address is replaced.
    pub(crate) fn insert(&mut self, host: Host) {
        match host.addr() {
            IpAddr::V4(addr) => self.v4.insert(addr.to_bits(), host),
            IpAddr::V6(addr) => self.v6.insert(addr.to_bits(), host),
        }
    }

    /// Takes the host at `addr` out.
    pub(crate) fn remove(&mut self, addr: IpAddr) -> Option<Host> {
        match addr {
            IpAddr::V4(addr) => self.v4.remove(addr.to_bits()),
            IpAddr::V6(addr) => self.v6.remove(addr.to_bits()),
        }
    }

    /// Returns the host at `addr`.
    pub(crate) fn get(&self, addr: IpAddr) -> Option<&Host> {
        match addr {
            IpAddr::V4(addr) => self.v4.get(addr.to_bits()),
            IpAddr::V6(addr) => self.v6.get(addr.to_bits()),
        }
    }

    /// Returns how many hosts there are of one family.
    pub(crate) fn count(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.v4.len,
            Family::V6 => self.v6.len,
        }
    }

    /// Returns how many hosts there are.
    pub(crate) fn len(&self) -> usize {
        self.v4.len + self.v6.len
    }

    /// Returns the hosts in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Host> + Clone {
        self.iter_with_addr().map(|(_, host)| host)
    }

    /// Returns the hosts in order, with their addresses as the tree has them: asking a host costs a cache miss.
    pub(crate) fn iter_with_addr(&self) -> impl Iterator<Item = (IpAddr, &Host)> + Clone {
        let v4 = self.v4.iter().map(|(key, host)| (IpAddr::V4(Ipv4Addr::from_bits(*key)), host));
        v4.chain(self.v6.iter().map(|(key, host)| (IpAddr::V6(Ipv6Addr::from_bits(*key)), host)))
    }
}

/// A tree that grows from hosts in order, from its leaves up.
#[derive(Debug, Default)]
pub(crate) struct Growing {
    v4: Leaves<u32>,
    v6: Leaves<u128>,
}

impl Growing {
    /// Puts the next host in: its address comes after those of its family before.
    pub(crate) fn push(&mut self, host: Host) {
        match host.addr() {
            IpAddr::V4(addr) => self.v4.push(addr.to_bits(), host),
            IpAddr::V6(addr) => self.v6.push(addr.to_bits(), host),
        }
    }

    /// Returns the tree of all hosts.
    pub(crate) fn grown(self) -> Tree {
        Tree { v4: self.v4.grown(), v6: self.v6.grown() }
    }
}

/// How full nodes are that grow from hosts in order: some room is left, so that the next ones split no node each.
const NODE_LEN_GROWN: usize = NODE_LEN_MAX - NODE_LEN_MAX / 6;

/// The leaves of one family.
#[derive(Debug)]
struct Leaves<K> {
    full: Vec<(K, Arc<Node<K>>)>,
    keys: List<K>,
    values: List<Host>,
    len: usize,
}

impl<K> Default for Leaves<K> {
    fn default() -> Self {
        Self { full: Vec::new(), keys: List::new(), values: List::new(), len: 0 }
    }
}

impl<K: Copy + Ord> Leaves<K> {
    fn push(&mut self, key: K, host: Host) {
        debug_assert!(self.keys.last().is_none_or(|last| *last < key), "in order");
        if self.keys.len() == NODE_LEN_GROWN {
            self.cut();
        }
        self.keys.push(key);
        self.values.push(host);
        self.len += 1;
    }

    fn cut(&mut self) {
        let (keys, values) = (std::mem::take(&mut self.keys), std::mem::take(&mut self.values));
        if let Some(&first) = keys.first() {
            self.full.push((first, Arc::new(Node::Leaf { keys, values })));
        }
    }

    fn grown(mut self) -> Side<K> {
        self.cut();
        let mut level = self.full;
        while level.len() > 1 {
            let above = level.chunks(NODE_LEN_GROWN).map(|below| {
                let keys = below.iter().map(|(key, _)| *key).collect();
                let nodes = below.iter().map(|(_, node)| Arc::clone(node)).collect();
                (below[0].0, Arc::new(Node::Inner { keys, nodes }))
            });
            level = above.collect();
        }
        let root = level.pop().map_or_else(|| Arc::new(Node::empty()), |(_, root)| root);
        Side { root, len: self.len }
    }
}

/// The hosts of one family.
#[derive(Clone, Debug)]
struct Side<K> {
    root: Arc<Node<K>>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Node<K> {
    Leaf { keys: List<K>, values: List<Host> },
    Inner { keys: List<K>, nodes: List<Arc<Self>> },
}

/// A node that was split off to the right, and its first key.
type Split<K> = Option<(K, Arc<Node<K>>)>;

impl<K> Default for Side<K> {
    fn default() -> Self {
        Self { root: Arc::new(Node::empty()), len: 0 }
    }
}

impl<K: Copy + Ord> Side<K> {
    fn insert(&mut self, key: K, host: Host) {
        let (is_new, right) = insert(&mut self.root, key, host);
        self.len += usize::from(is_new);
        if let (Some((right_key, right)), Some(left_key)) = (right, self.root.first()) {
            let left = Arc::clone(&self.root);
            self.root = Arc::new(Node::Inner {
                keys: [left_key, right_key].into_iter().collect(),
                nodes: [left, right].into_iter().collect(),
            });
        }
    }

    fn remove(&mut self, key: K) -> Option<Host> {
        // Look before copying: a path is copied only for a host that is there.
        self.get(key)?;
        let gone = remove(&mut self.root, key)?;
        self.len -= 1;
        // A root with one child is one level too many.
        while let Node::Inner { nodes, .. } = &*self.root {
            match nodes.as_slice() {
                [] => self.root = Arc::new(Node::empty()),
                [only] => self.root = Arc::clone(only),
                _ => break,
            }
        }
        Some(gone)
    }

    fn get(&self, key: K) -> Option<&Host> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf { keys, values } => return keys.binary_search(&key).ok().map(|at| &values[at]),
                Node::Inner { keys, nodes } => node = &nodes[child_of(keys, key)],
            }
        }
    }

    fn iter(&self) -> Iter<'_, K> {
        let mut iter = Iter { above: Vec::new(), leaf: [].iter().zip(&[]) };
        iter.descend(&self.root);
        iter
    }
}

/// Keys and hosts of a leaf, side by side.
type Entries<'a, K> = std::iter::Zip<std::slice::Iter<'a, K>, std::slice::Iter<'a, Host>>;

/// The hosts of one family in order.
#[derive(Clone, Debug)]
struct Iter<'a, K> {
    above: Vec<std::slice::Iter<'a, Arc<Node<K>>>>,
    leaf: Entries<'a, K>,
}

impl<'a, K> Iter<'a, K> {
    fn descend(&mut self, mut node: &'a Node<K>) {
        loop {
            match node {
                Node::Leaf { keys, values } => {
                    self.leaf = keys.iter().zip(values);
                    return;
                }
                Node::Inner { nodes, .. } => {
                    let mut rest = nodes.iter();
                    let Some(first) = rest.next() else { return };
                    self.above.push(rest);
                    node = first;
                }
            }
        }
    }
}

impl<'a, K> Iterator for Iter<'a, K> {
    type Item = (&'a K, &'a Host);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.leaf.next() {
                return Some(entry);
            }
            match self.above.last_mut()?.next() {
                Some(node) => self.descend(node),
                None => {
                    self.above.pop();
                }
            }
        }
    }
}

impl<K> Node<K> {
    fn empty() -> Self {
        Self::Leaf { keys: List::new(), values: List::new() }
    }

    fn keys(&self) -> &[K] {
        match self {
            Self::Leaf { keys, .. } | Self::Inner { keys, .. } => keys,
        }
    }

    fn len(&self) -> usize {
        self.keys().len()
    }
}

impl<K: Copy + Ord> Node<K> {
    fn first(&self) -> Option<K> {
        self.keys().first().copied()
    }

    /// Cuts the right half off a node that has grown too long.
    fn split(&mut self) -> Split<K> {
        if self.len() <= NODE_LEN_MAX {
            return None;
        }
        let half = self.len() / 2;
        let right = match self {
            Self::Leaf { keys, values } => Self::Leaf { keys: cut(keys, half), values: cut(values, half) },
            Self::Inner { keys, nodes } => Self::Inner { keys: cut(keys, half), nodes: cut(nodes, half) },
        };
        Some((right.first()?, Arc::new(right)))
    }

    /// Takes in what stands in the neighbour to the right.
    fn append(&mut self, right: Self) {
        match (self, right) {
            (Self::Leaf { keys, values }, Self::Leaf { keys: mut more_keys, values: mut more }) => {
                keys.append(&mut more_keys);
                values.append(&mut more);
            }
            (Self::Inner { keys, nodes }, Self::Inner { keys: mut more_keys, nodes: mut more }) => {
                keys.append(&mut more_keys);
                nodes.append(&mut more);
            }
            // Siblings are equally deep, so they are of one kind.
            _ => {}
        }
    }
}

fn cut<T>(list: &mut List<T>, at: usize) -> List<T> {
    list.drain(at..).collect()
}

/// Returns which child holds `key`, or would.
fn child_of<K: Ord + Copy>(keys: &[K], key: K) -> usize {
    keys.partition_point(|first| *first <= key).saturating_sub(1)
}

/// Returns whether the key is new, and what was split off.
fn insert<K: Copy + Ord>(node: &mut Arc<Node<K>>, key: K, host: Host) -> (bool, Split<K>) {
    let node = Arc::make_mut(node);
    let is_new = match node {
        Node::Leaf { keys, values } => match keys.binary_search(&key) {
            Ok(at) => {
                values[at] = host;
                false
            }
            Err(at) => {
                keys.insert(at, key);
                values.insert(at, host);
                true
            }
        },
        Node::Inner { keys, nodes } => {
            let at = child_of(keys, key);
            keys[at] = keys[at].min(key);
            let (is_new, right) = insert(&mut nodes[at], key, host);
            if let Some((right_key, right)) = right {
                keys.insert(at + 1, right_key);
                nodes.insert(at + 1, right);
            }
            is_new
        }
    };
    (is_new, node.split())
}

fn remove<K: Copy + Ord>(node: &mut Arc<Node<K>>, key: K) -> Option<Host> {
    match Arc::make_mut(node) {
        Node::Leaf { keys, values } => {
            let at = keys.binary_search(&key).ok()?;
            keys.remove(at);
            Some(values.remove(at))
        }
        Node::Inner { keys, nodes } => {
            let at = child_of(keys, key);
            let gone = remove(&mut nodes[at], key)?;
            tidy(keys, nodes, at);
            Some(gone)
        }
    }
}

/// After a removal below child `at`: drops it if empty, joins it with a neighbour if small, corrects its first key.
fn tidy<K: Copy + Ord>(keys: &mut List<K>, nodes: &mut List<Arc<Node<K>>>, at: usize) {
    let Some(first) = nodes[at].first() else {
        keys.remove(at);
        nodes.remove(at);
        return;
    };
    keys[at] = first;
    if nodes[at].len() >= NODE_LEN_LOW || nodes.len() < 2 {
        return;
    }
    let left = at.saturating_sub(1);
    if nodes[left].len() + nodes[left + 1].len() > NODE_LEN_MAX {
        return;
    }
    keys.remove(left + 1);
    let right = nodes.remove(left + 1);
    Arc::make_mut(&mut nodes[left]).append(Arc::unwrap_or_clone(right));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::testing::{addr, host};
    use super::*;

    /// Checks order, first keys, fill and depth; returns the depth.
    fn check<K: Copy + Ord>(node: &Node<K>, is_root: bool) -> usize {
        assert!(node.len() <= NODE_LEN_MAX);
        assert!(is_root || node.len() > 0);
        assert!(node.keys().is_sorted_by(|a, b| a < b));
        match node {
            Node::Leaf { keys, values } => {
                assert_eq!(keys.len(), values.len());
                1
            }
            Node::Inner { keys, nodes } => {
                assert!(!is_root || nodes.len() > 1);
                assert_eq!(keys.len(), nodes.len());
                assert!(keys.iter().zip(nodes).all(|(key, node)| node.first() == Some(*key)));
                let depths: Vec<usize> = nodes.iter().map(|node| check(node, false)).collect();
                assert!(depths.iter().all(|depth| *depth == depths[0]));
                depths[0] + 1
            }
        }
    }

    fn addrs(tree: &Tree) -> Vec<IpAddr> {
        assert!(tree.iter_with_addr().all(|(addr, host)| addr == host.addr()));
        tree.iter().map(Host::addr).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn tree_agrees_with_a_map_and_clones_keep_their_hosts(
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0..1500_u16), 1..4000),
        ) {
            let (mut tree, mut map) = (Tree::default(), BTreeMap::new());
            let mut clones = Vec::new();
            for (at, (inserts, is_v4, n)) in steps.into_iter().enumerate() {
                let one = addr(n, is_v4);
                // Twice as many go in as come out at first, then the other way round.
                if inserts || (at % 3 == 0) == (at < 2000) {
                    tree.insert(host(one));
                    map.insert(one, ());
                } else {
                    prop_assert_eq!(tree.remove(one).map(|host| host.addr()), map.remove(&one).map(|()| one));
                }
                prop_assert_eq!(tree.get(one).is_some(), map.contains_key(&one));
                if at % 500 == 0 {
                    clones.push((tree.clone(), map.clone()));
                }
            }
            clones.push((tree, map));
            for (tree, map) in clones {
                check(&tree.v4.root, true);
                check(&tree.v6.root, true);
                prop_assert_eq!(tree.count(Family::V4), map.keys().filter(|addr| addr.is_ipv4()).count());
                prop_assert_eq!(tree.len(), map.len());
                prop_assert_eq!(addrs(&tree), map.into_keys().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn grown_tree_equals_one_of_single_hosts_and_goes_on_as_one() {
        for count in [0, 1, 20, 21, 24, 400, 401, 5000_u16] {
            let (mut growing, mut single) = (Growing::default(), Tree::default());
            for (n, is_v4) in (0..count).flat_map(|n| [(2 * n, true), (2 * n, false)]) {
                growing.push(host(addr(n, is_v4)));
                single.insert(host(addr(n, is_v4)));
            }
            let mut tree = growing.grown();
            check(&tree.v4.root, true);
            check(&tree.v6.root, true);
            assert_eq!((addrs(&tree), tree.len()), (addrs(&single), single.len()));
            let twin = tree.clone();
            for n in 0..count {
                tree.insert(host(addr(2 * n + 1, true)));
                assert!(tree.remove(addr(2 * n, false)).is_some());
            }
            check(&tree.v4.root, true);
            check(&tree.v6.root, true);
            assert_eq!((tree.count(Family::V4), tree.count(Family::V6)), (2 * usize::from(count), 0));
            assert_eq!(addrs(&twin), addrs(&single));
        }
    }

    #[test]
    fn emptied_tree_shrinks_to_a_leaf() {
        let mut tree = Tree::default();
        for n in 0..5000 {
            tree.insert(host(addr(n, true)));
        }
        assert!(check(&tree.v4.root, true) >= 3);
        for n in (0..5000).rev() {
            assert!(tree.remove(addr(n, true)).is_some());
        }
        assert_eq!(check(&tree.v4.root, true), 1);
        assert!(tree.remove(addr(1, true)).is_none());
        assert_eq!(tree.iter().count(), 0);
    }
}
