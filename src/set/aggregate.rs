//! Lossless aggregation: the fewest prefixes that cover exactly the given addresses.
//!
//! [`Aggregate`] takes prefixes in order. What lies inside the last one is dropped, and two halves of one prefix become
//! that prefix, again and again. No address is added and none is lost. Linear in the input; only left halves whose
//! right half may still come are held back, at most one of each length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::prefix::{Family, Prefix};

/// Aggregates prefixes that come in order (IPv4 first, address, shorter first; repeats allowed).
#[derive(Debug, Default)]
pub struct Aggregate {
    done: Vec<Prefix>,
    /// Each lies in the right half of the parent of the one before it; the last is the last one taken.
    open: Vec<Block>,
}

/// A prefix as numbers: `addr` is left-aligned in 128 bits for both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    addr: u128,
    family: Family,
    len: u8,
}

impl Aggregate {
    /// Makes an empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes an empty one with room for so many prefixes.
    pub fn with_capacity(count: usize) -> Self {
        Self { done: Vec::with_capacity(count), open: Vec::new() }
    }

    /// Takes the next prefix; it must not sort before the last one.
    pub fn push(&mut self, prefix: Prefix) {
        self.push_block(Block::new(prefix.addr(), prefix.len()));
    }

    /// Takes the next address as a host prefix; the same order applies.
    pub fn push_host(&mut self, addr: IpAddr) {
        self.push_block(Block::new(addr, Family::of(addr).bits()));
    }

    fn push_block(&mut self, mut next: Block) {
        if self.open.last().is_some_and(|last| last.covers(&next)) {
            return;
        }
        while let Some(parent) = self.open.last().and_then(|last| last.joined(&next)) {
            self.open.pop();
            next = parent;
        }
        // Past the parent of the last one nothing can complete it any more, nor any before it.
        if !self.open.last().is_some_and(|last| last.parent().covers(&next)) {
            self.close();
        }
        self.open.push(next);
    }

    fn close(&mut self) {
        self.done.extend(self.open.drain(..).map(Block::prefix));
    }

    /// Returns the prefixes: sorted, disjoint, the fewest that cover exactly what was taken.
    pub fn finish(mut self) -> Vec<Prefix> {
        self.close();
        self.done
    }
}

/// Aggregates prefixes in any order.
pub fn aggregate(prefixes: impl IntoIterator<Item = Prefix>) -> Vec<Prefix> {
    let mut sorted: Vec<Prefix> = prefixes.into_iter().collect();
    sorted.sort_unstable();
    let mut all = Aggregate::new();
    for prefix in sorted {
        all.push(prefix);
    }
    all.finish()
}

impl Block {
    fn new(addr: IpAddr, len: u8) -> Self {
        let (addr, family) = match addr {
            IpAddr::V4(addr) => (u128::from(u32::from(addr)) << 96, Family::V4),
            IpAddr::V6(addr) => (u128::from(addr), Family::V6),
        };
        Self { addr, family, len }
    }

    fn prefix(self) -> Prefix {
        let addr = match self.family {
            // The upper 32 of 128 bits always fit.
            Family::V4 => IpAddr::V4(Ipv4Addr::from((self.addr >> 96) as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(self.addr)),
        };
        // Most prefixes are hosts, and these need no bits cleared.
        if self.len == self.family.bits() { Prefix::host(addr) } else { Prefix::truncated(addr, self.len) }
    }

    fn covers(&self, other: &Self) -> bool {
        self.family == other.family && self.len <= other.len && (self.addr ^ other.addr) & mask(self.len) == 0
    }

    /// Returns the prefix that this is a half of; the whole space is its own parent.
    fn parent(&self) -> Self {
        let len = self.len.saturating_sub(1);
        Self { addr: self.addr & mask(len), len, ..*self }
    }

    /// Returns the prefix whose halves are `self` and `right`, if they are.
    fn joined(&self, right: &Self) -> Option<Self> {
        let len = self.len.checked_sub(1)?;
        let bit = 1 << (127 - len);
        let halves = self.family == right.family
            && self.len == right.len
            && self.addr & bit == 0
            && self.addr | bit == right.addr;
        halves.then_some(Self { len, ..*self })
    }
}

/// Returns a mask of the upper `len` of 128 bits.
fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Prefixes among 32 addresses of each family: mostly hosts, so that covers are built and not given.
    fn prefixes() -> impl Strategy<Value = Vec<Prefix>> {
        let len = prop_oneof![30 => Just(0_u8), 3 => 1..3_u8, 1 => 3..6_u8];
        let one = (any::<bool>(), 0..32_u8, len).prop_map(|(is_v4, at, short)| {
            let addr = address(is_v4, at);
            Prefix::truncated(addr, Family::of(addr).bits() - short)
        });
        prop::collection::vec(one, 0..70)
    }

    fn address(is_v4: bool, at: u8) -> IpAddr {
        if is_v4 { Ipv4Addr::new(192, 0, 2, at).into() } else { Ipv6Addr::from_bits(u128::from(at)).into() }
    }

    /// The naive model: for each of the 64 addresses whether it is covered.
    fn covered(prefixes: &[Prefix]) -> Vec<bool> {
        let space = [true, false].into_iter().flat_map(|is_v4| (0..32).map(move |at| address(is_v4, at)));
        space.map(|addr| prefixes.iter().any(|prefix| prefix.contains(addr))).collect()
    }

    /// The fewest prefixes for a run of addresses whose length is a power of two.
    fn fewest(covered: &[bool]) -> usize {
        if covered.iter().all(|is| *is) {
            return 1;
        }
        if covered.len() == 1 {
            return 0;
        }
        let (left, right) = covered.split_at(covered.len() / 2);
        fewest(left) + fewest(right)
    }

    proptest! {
        #[test]
        fn aggregate_covers_exactly_the_same_addresses_with_the_fewest_prefixes(given in prefixes()) {
            let found = aggregate(given.clone());
            let model = covered(&given);
            prop_assert_eq!(&covered(&found), &model);
            prop_assert!(found.iter().all(|prefix| prefix.len() >= prefix.family().bits() - 5), "and none beside them");
            prop_assert!(found.is_sorted_by(|a, b| a < b));
            prop_assert_eq!(found.len(), fewest(&model[..32]) + fewest(&model[32..]));
        }
    }

    #[test]
    fn whole_space_and_its_edges_aggregate() {
        let parse = |texts: &[&str]| -> Vec<Prefix> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let table: [(&[&str], &[&str]); 5] = [
            (&["0.0.0.0/1", "128.0.0.0/1"], &["0.0.0.0/0"]),
            (&["::/1", "8000::/1"], &["::/0"]),
            (&["255.255.255.255/32", "::/128"], &["255.255.255.255/32", "::/128"]),
            (&["192.0.2.1/32", "192.0.2.2/32"], &["192.0.2.1/32", "192.0.2.2/32"]),
            (&["192.0.2.0/24", "192.0.2.7/32", "192.0.3.0/24"], &["192.0.2.0/23"]),
        ];
        for (given, expected) in table {
            assert_eq!(aggregate(parse(given)), parse(expected));
        }
    }
}
