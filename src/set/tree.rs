//! The hosts of a snapshot: a sorted tree whose versions share what they have in common.
//!
//! A B+ tree of [`Host`]s by address, nodes in `Arc`s. A clone is one pointer; a change to a tree that a clone shares
//! copies the nodes on one path and leaves the rest to both. Changes that nobody else sees yet, as within one batch,
//! are made in place.
//!
//! # Why a tree of our own
//! Publishing one more address among a million may cost the writer 5 µs. Copying a node touches the reference count of
//! each thing in it, most of them cache misses, so wide blocks (two levels of a thousand) are out, and fanouts near 16
//! measured best. `imbl::OrdMap` works the same way but keeps room for 16 entries in every leaf where ours are as long
//! as what they hold, and would add an MPL-2.0 crate with six of its own. `rpds` pays an allocation an entry.
//!
//! # Invariants
//! Hosts are strictly ascending; no node but the root is empty; every leaf is equally deep; an inner node keeps the
//! first address below each child beside it.

use std::net::IpAddr;
use std::sync::Arc;

use super::sighting::Host;

/// The most hosts in a leaf, and the most children of an inner node.
const NODE_LEN_MAX: usize = 24;

/// A node that falls below this is joined with a neighbour if both fit into one.
const NODE_LEN_LOW: usize = NODE_LEN_MAX / 3;

/// Hosts, sorted by address; a clone costs one reference count.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    root: Arc<Node>,
    len: usize,
}

#[derive(Debug)]
enum Node {
    Leaf(Vec<Host>),
    Inner(Vec<Child>),
}

#[derive(Clone, Debug)]
struct Child {
    /// The first address below `node`.
    first: IpAddr,
    node: Arc<Node>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

impl Tree {
    /// Puts a host in; one of the same address is replaced.
    pub(crate) fn insert(&mut self, host: Host) {
        let addr = host.addr();
        let (added, right) = insert(&mut self.root, host);
        self.len += usize::from(added);
        if let Some(right) = right {
            let first = self.root.first().unwrap_or(addr);
            let left = Child { first, node: Arc::clone(&self.root) };
            self.root = Arc::new(Node::Inner(vec![left, right]));
        }
    }

    /// Takes the host at `addr` out.
    pub(crate) fn remove(&mut self, addr: IpAddr) -> Option<Host> {
        let gone = remove(&mut self.root, addr)?;
        self.len -= 1;
        // A root with one child is one level too many.
        while let Node::Inner(children) = &*self.root {
            match children.as_slice() {
                [] => self.root = Arc::new(Node::Leaf(Vec::new())),
                [only] => self.root = Arc::clone(&only.node),
                _ => break,
            }
        }
        Some(gone)
    }

    /// Returns the host at `addr`.
    pub(crate) fn get(&self, addr: IpAddr) -> Option<&Host> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(hosts) => return position(hosts, addr).ok().map(|at| &hosts[at]),
                Node::Inner(children) => node = &children[child_of(children, addr)].node,
            }
        }
    }

    /// Returns how many hosts there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the hosts in order.
    pub(crate) fn iter(&self) -> Iter<'_> {
        let mut iter = Iter { above: Vec::new(), leaf: [].iter() };
        iter.descend(&self.root);
        iter
    }
}

/// The hosts of a tree in order.
#[derive(Clone, Debug)]
pub(crate) struct Iter<'a> {
    above: Vec<std::slice::Iter<'a, Child>>,
    leaf: std::slice::Iter<'a, Host>,
}

impl<'a> Iter<'a> {
    fn descend(&mut self, mut node: &'a Node) {
        loop {
            match node {
                Node::Leaf(hosts) => {
                    self.leaf = hosts.iter();
                    return;
                }
                Node::Inner(children) => {
                    let mut rest = children.iter();
                    let Some(first) = rest.next() else { return };
                    self.above.push(rest);
                    node = &first.node;
                }
            }
        }
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Host;

    fn next(&mut self) -> Option<&'a Host> {
        loop {
            if let Some(host) = self.leaf.next() {
                return Some(host);
            }
            match self.above.last_mut()?.next() {
                Some(child) => self.descend(&child.node),
                None => {
                    self.above.pop();
                }
            }
        }
    }
}

impl Node {
    fn first(&self) -> Option<IpAddr> {
        match self {
            Self::Leaf(hosts) => hosts.first().map(Host::addr),
            Self::Inner(children) => children.first().map(|child| child.first),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(hosts) => hosts.len(),
            Self::Inner(children) => children.len(),
        }
    }

    /// Cuts the right half off a node that has grown too long.
    fn split(&mut self) -> Option<Child> {
        if self.len() <= NODE_LEN_MAX {
            return None;
        }
        let half = self.len() / 2;
        let right = match self {
            Self::Leaf(hosts) => Self::Leaf(cut(hosts, half)),
            Self::Inner(children) => Self::Inner(cut(children, half)),
        };
        Some(Child { first: right.first()?, node: Arc::new(right) })
    }
}

/// A clone has room for one more, since it is made to be changed.
impl Clone for Node {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(hosts) => Self::Leaf(with_room(hosts)),
            Self::Inner(children) => Self::Inner(with_room(children)),
        }
    }
}

fn with_room<T: Clone>(list: &[T]) -> Vec<T> {
    let mut copy = Vec::with_capacity(list.len() + 1);
    copy.extend_from_slice(list);
    copy
}

fn cut<T>(list: &mut Vec<T>, at: usize) -> Vec<T> {
    let right = list.split_off(at);
    list.shrink_to_fit();
    right
}

/// Puts one more in without the doubling of a vector: a million half-empty leaves are what we are here to avoid.
fn insert_at<T>(list: &mut Vec<T>, at: usize, one: T) {
    list.reserve_exact(1);
    list.insert(at, one);
}

fn position(hosts: &[Host], addr: IpAddr) -> Result<usize, usize> {
    hosts.binary_search_by(|host| host.addr().cmp(&addr))
}

/// Returns which child holds `addr`, or would.
fn child_of(children: &[Child], addr: IpAddr) -> usize {
    children.partition_point(|child| child.first <= addr).saturating_sub(1)
}

/// Returns whether the address is new, and what was split off to the right.
fn insert(node: &mut Arc<Node>, host: Host) -> (bool, Option<Child>) {
    let node = Arc::make_mut(node);
    let added = match node {
        Node::Leaf(hosts) => match position(hosts, host.addr()) {
            Ok(at) => {
                hosts[at] = host;
                false
            }
            Err(at) => {
                insert_at(hosts, at, host);
                true
            }
        },
        Node::Inner(children) => {
            let at = child_of(children, host.addr());
            let child = &mut children[at];
            child.first = child.first.min(host.addr());
            let (added, right) = insert(&mut child.node, host);
            if let Some(right) = right {
                insert_at(children, at + 1, right);
            }
            added
        }
    };
    (added, node.split())
}

fn remove(node: &mut Arc<Node>, addr: IpAddr) -> Option<Host> {
    // Look before copying: a path is copied only for a host that is there.
    match &**node {
        Node::Leaf(hosts) => {
            let at = position(hosts, addr).ok()?;
            match Arc::make_mut(node) {
                Node::Leaf(hosts) => Some(hosts.remove(at)),
                Node::Inner(_) => None,
            }
        }
        Node::Inner(children) => {
            let at = child_of(children, addr);
            let Node::Inner(children) = Arc::make_mut(node) else { return None };
            let gone = remove(&mut children[at].node, addr)?;
            tidy(children, at);
            Some(gone)
        }
    }
}

/// After a removal below child `at`: drops it if empty, joins it with a neighbour if small, corrects its first address.
fn tidy(children: &mut Vec<Child>, at: usize) {
    let Some(first) = children[at].node.first() else {
        children.remove(at);
        return;
    };
    children[at].first = first;
    if children[at].node.len() >= NODE_LEN_LOW || children.len() < 2 {
        return;
    }
    let left = if at > 0 { at - 1 } else { at };
    if children[left].node.len() + children[left + 1].node.len() > NODE_LEN_MAX {
        return;
    }
    let right = children.remove(left + 1);
    match (Arc::make_mut(&mut children[left].node), Arc::unwrap_or_clone(right.node)) {
        (Node::Leaf(hosts), Node::Leaf(mut more)) => hosts.append(&mut more),
        (Node::Inner(nodes), Node::Inner(mut more)) => nodes.append(&mut more),
        // Siblings are equally deep, so they are of one kind.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::testing::{addr, host};
    use super::*;

    /// Checks depth, order, first addresses and fill; returns the depth.
    fn check(node: &Node, is_root: bool) -> usize {
        assert!(node.len() <= NODE_LEN_MAX);
        assert!(is_root || node.len() > 0);
        match node {
            Node::Leaf(hosts) => {
                assert!(hosts.is_sorted_by(|a, b| a.addr() < b.addr()));
                1
            }
            Node::Inner(children) => {
                assert!(!is_root || children.len() > 1);
                assert!(children.is_sorted_by(|a, b| a.first < b.first));
                let depths: Vec<usize> = children.iter().map(|child| check(&child.node, false)).collect();
                assert!(children.iter().all(|child| child.node.first() == Some(child.first)));
                assert!(depths.iter().all(|depth| *depth == depths[0]));
                depths[0] + 1
            }
        }
    }

    fn addrs(tree: &Tree) -> Vec<IpAddr> {
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
                check(&tree.root, true);
                prop_assert_eq!(tree.len(), map.len());
                prop_assert_eq!(addrs(&tree), map.into_keys().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn emptied_tree_shrinks_to_a_leaf() {
        let mut tree = Tree::default();
        for n in 0..5000 {
            tree.insert(host(addr(n, true)));
        }
        assert!(check(&tree.root, true) >= 3);
        for n in (0..5000).rev() {
            assert!(tree.remove(addr(n, true)).is_some());
        }
        assert_eq!(check(&tree.root, true), 1);
        assert!(tree.remove(addr(1, true)).is_none());
        assert_eq!(tree.iter().count(), 0);
    }
}
