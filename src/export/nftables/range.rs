//! Addresses in a row, and their elements in a set.
//!
//! A [`Range`] counts addresses as numbers of its family: a host, a prefix, or what an operator's prefix leaves of one.
//! In a hash set a host is one element. In an interval set a range is two: its first address, and, marked as an end, the
//! address behind its last; a range that reaches the last address there is has no end.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::attr::{self, Attrs};
use crate::clock::Timestamp;
use crate::prefix::{Family, Prefix};

// linux/netfilter/nf_tables.h
pub(super) const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
pub(super) const ELEM_KEY: u16 = 1;
const ELEM_FLAGS: u16 = 3;
pub(super) const ELEM_TIMEOUT: u16 = 4;
pub(super) const ELEM_EXPIRATION: u16 = 5;
const ELEM_USERDATA: u16 = 6;
const ELEM_KEY_END: u16 = 10;
const FLAG_INTERVAL_END: u32 = 1;
const FLAG_CATCHALL: u32 = 2;

/// How we sign elements among others': as the comment `greenlane` is kept by `nft`.
const SIGNATURE: &[u8] = b"\x00\x0agreenlane\x00";

/// The most bytes that one range takes in a message: two elements with all they can have.
pub(super) const ENCODED_LEN_MAX: usize = 2 * (4 + 28 + 12 + 12 + 16 + 8);

/// Addresses from `first` to `last`, counted in their family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Range {
    pub(super) first: u128,
    pub(super) last: u128,
}

impl Range {
    /// Makes the range of one address.
    pub(super) fn host(addr: IpAddr) -> Self {
        let at = number(addr);
        Self { first: at, last: at }
    }

    /// Makes the range of a prefix.
    pub(super) fn prefix(prefix: Prefix) -> Self {
        let first = number(prefix.addr());
        let free = u32::from(prefix.family().bits() - prefix.len());
        Self { first, last: first | 1_u128.checked_shl(free).map_or(u128::MAX, |size| size - 1) }
    }

    /// Takes it apart into as few prefixes as can be, in their order.
    pub(super) fn prefixes(self, family: Family) -> impl Iterator<Item = Prefix> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let Self { first, last } = rest?;
            // As large as its place allows, and as there is room for.
            let room = (last - first).checked_add(1).map_or(128, u128::ilog2);
            let free = first.trailing_zeros().min(room).min(u32::from(family.bits()));
            let taken = 1_u128.checked_shl(free).map_or(last, |size| first + (size - 1));
            rest = (taken < last).then(|| Self { first: taken + 1, last });
            let len = family.bits().saturating_sub(u8::try_from(free).unwrap_or(u8::MAX));
            Some(Prefix::truncated(address(first, family), len))
        })
    }

    /// Names it for people.
    pub(super) fn display(self, family: Family) -> Display {
        Display { range: self, family }
    }
}

/// Prints a range as `nft` does: an address, a prefix, or first and last.
#[derive(Debug)]
pub(super) struct Display {
    range: Range,
    family: Family,
}

impl fmt::Display for Display {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, family } = self;
        let first = address(range.first, *family);
        if range.first == range.last {
            return first.fmt(f);
        }
        // As many host bits as a prefix of this size has.
        let free = u8::try_from((range.last - range.first).trailing_ones()).unwrap_or(u8::MAX);
        let prefix = Prefix::truncated(first, family.bits().saturating_sub(free));
        if Range::prefix(prefix) == *range {
            prefix.fmt(f)
        } else {
            write!(f, "{first}-{}", address(range.last, *family))
        }
    }
}

/// Takes `taken` out of `whole`; both sorted and disjoint. What is left is sorted and disjoint.
pub(super) fn without(whole: &[Range], taken: &[Range]) -> Vec<Range> {
    let mut left = Vec::with_capacity(whole.len());
    let mut taken = taken.iter().copied().peekable();
    for range in whole {
        let mut first = Some(range.first);
        while let Some(next) = taken.peek().copied().filter(|next| next.first <= range.last) {
            if let Some(from) = first.filter(|from| *from < next.first) {
                left.push(Range { first: from, last: next.first - 1 });
            }
            if next.last >= range.first {
                first = next.last.checked_add(1).filter(|after| *after <= range.last);
            }
            if next.last > range.last {
                // It may reach into the next range, too.
                break;
            }
            taken.next();
        }
        left.extend(first.filter(|from| *from <= range.last).map(|first| Range { first, last: range.last }));
    }
    left
}

/// Returns the number of an address in its family.
fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(u32::from(addr)),
        IpAddr::V6(addr) => u128::from(addr),
    }
}

/// Returns the address of a number.
pub(super) fn address(number: u128, family: Family) -> IpAddr {
    match family {
        // The numbers of IPv4 have 32 bits.
        Family::V4 => Ipv4Addr::from(number as u32).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

/// How a set keeps its elements, as far as encoding hangs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) family: Family,
    /// Whether it keeps ranges rather than addresses.
    pub(super) has_intervals: bool,
    /// Whether elements may have a timeout.
    pub(super) has_timeouts: bool,
    /// Whether ours are signed, since others' may stand beside them.
    pub(super) is_signed: bool,
}

/// Appends the elements of a range, to be added or renewed; `lifetime_millis` if it is to end by itself.
pub(super) fn encode(out: &mut Vec<u8>, shape: Shape, range: Range, lifetime_millis: Option<u64>) {
    element(out, shape, range.first, 0, |out| {
        if let Some(millis) = lifetime_millis.filter(|_| shape.has_timeouts) {
            attr::put_u64(out, ELEM_TIMEOUT, millis);
            attr::put_u64(out, ELEM_EXPIRATION, millis);
        }
        if shape.is_signed {
            attr::put(out, ELEM_USERDATA, SIGNATURE);
        }
    });
    encode_end(out, shape, range);
}

/// Appends the elements of a range, to be deleted or asked for.
pub(super) fn encode_key(out: &mut Vec<u8>, shape: Shape, range: Range) {
    element(out, shape, range.first, 0, |_| {});
    encode_end(out, shape, range);
}

fn encode_end(out: &mut Vec<u8>, shape: Shape, range: Range) {
    let end = range.last.checked_add(1).filter(|end| shape.family == Family::V6 || *end <= u128::from(u32::MAX));
    if let Some(end) = end.filter(|_| shape.has_intervals) {
        element(out, shape, end, FLAG_INTERVAL_END, |_| {});
    }
}

fn element(out: &mut Vec<u8>, shape: Shape, key: u128, flags: u32, more: impl FnOnce(&mut Vec<u8>)) {
    attr::nest(out, LIST_ELEM, |out| {
        attr::nest(out, ELEM_KEY, |out| match shape.family {
            // The numbers of IPv4 have 32 bits.
            Family::V4 => attr::put(out, DATA_VALUE, &(key as u32).to_be_bytes()),
            Family::V6 => attr::put(out, DATA_VALUE, &key.to_be_bytes()),
        });
        if flags != 0 {
            attr::put_u32(out, ELEM_FLAGS, flags);
        }
        more(out);
    });
}

/// A range that was found in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) range: Range,
    /// When it ends by itself; `None`: never.
    pub(super) until: Option<Timestamp>,
    /// Whether it carries our signature.
    pub(super) is_signed: bool,
}

/// Elements as they come out of a dump, before ends are joined with their starts.
#[derive(Debug, Default)]
pub(super) struct Dump {
    elements: Vec<Raw>,
}

#[derive(Clone, Copy, Debug)]
struct Raw {
    key: u128,
    is_end: bool,
    until: Option<Timestamp>,
    is_signed: bool,
}

impl Dump {
    /// Makes one with room for about so many elements.
    pub(super) fn with_capacity(len: usize) -> Self {
        Self { elements: Vec::with_capacity(len) }
    }

    /// Hands out the elements of a set of single addresses: key, when it ends, whether it is signed.
    pub(super) fn singles(&self) -> impl Iterator<Item = (u128, Option<Timestamp>, bool)> + '_ {
        self.elements.iter().map(|raw| (raw.key, raw.until, raw.is_signed))
    }

    /// Takes the elements of one message that came `now`: the kernel tells what is left of each element's time, and a
    /// dump may take seconds. What has no key of the set's type is passed over.
    pub(super) fn take(&mut self, elements: Attrs<'_>, now: Timestamp) {
        self.elements.extend(elements.filter_map(|(_, element)| Raw::read(Attrs(element), now)));
    }

    /// Joins ends with starts and returns what the set holds, sorted by address.
    pub(super) fn finish(self, shape: Shape) -> Vec<Found> {
        let mut elements = self.elements;
        let found = |raw: &Raw, last: u128| Found {
            range: Range { first: raw.key, last },
            until: raw.until,
            is_signed: raw.is_signed,
        };
        // An end sorts before the start of the range behind it.
        elements.sort_unstable_by_key(|raw| (raw.key, !raw.is_end));
        if !shape.has_intervals {
            return elements.iter().map(|raw| found(raw, raw.key)).collect();
        }
        let top = if shape.family == Family::V4 { u128::from(u32::MAX) } else { u128::MAX };
        let mut ranges = Vec::with_capacity(elements.len() / 2);
        let mut elements = elements.iter().peekable();
        while let Some(raw) = elements.next() {
            if !raw.is_end {
                // `nft` leaves out the end of a range that the next one follows at once.
                let last = elements.peek().map_or(top, |next| next.key.saturating_sub(1).max(raw.key));
                ranges.push(found(raw, last));
            }
        }
        ranges
    }
}

impl Raw {
    fn read(attrs: Attrs<'_>, now: Timestamp) -> Option<Self> {
        let until = |millis: u64| Timestamp::from_millis(now.as_millis().saturating_add(millis));
        let (mut key, mut flags, mut ends, mut is_signed) = (None, 0, None, false);
        // One walk for all, since there may be very many.
        for (kind, value) in attrs {
            match kind {
                ELEM_KEY => key = Self::key(Attrs(value)),
                ELEM_FLAGS => flags = value.try_into().map_or(0, u32::from_be_bytes),
                ELEM_EXPIRATION => ends = value.try_into().ok().map(|millis| until(u64::from_be_bytes(millis))),
                ELEM_USERDATA => is_signed = value == SIGNATURE,
                ELEM_KEY_END => return None,
                _ => {}
            }
        }
        let key = key.filter(|_| flags & FLAG_CATCHALL == 0)?;
        Some(Self { key, is_end: flags & FLAG_INTERVAL_END != 0, until: ends, is_signed })
    }

    fn key(data: Attrs<'_>) -> Option<u128> {
        let bytes = data.find(DATA_VALUE)?;
        let v4 = || bytes.try_into().map(|bytes| u128::from(u32::from_be_bytes(bytes))).ok();
        bytes.try_into().map(u128::from_be_bytes).ok().or_else(v4)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn shape(family: Family, has_intervals: bool) -> Shape {
        Shape { family, has_intervals, has_timeouts: true, is_signed: true }
    }

    fn ranges(texts: &[&str]) -> Vec<Range> {
        texts.iter().map(|text| Range::prefix(text.parse().unwrap())).collect()
    }

    #[test]
    fn ranges_are_printed_as_nft_prints_them() {
        let texts =
            ["192.0.2.0/24", "192.0.2.7", "0.0.0.0/0", "2001:db8::/32", "::/0", "2001:db8::1", "255.255.255.255"];
        for text in texts {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(Range::prefix(prefix).display(prefix.family()).to_string(), text);
        }
        let odd = Range { first: 1, last: 4 };
        assert_eq!(odd.display(Family::V4).to_string(), "0.0.0.1-0.0.0.4");
        assert_eq!(Range { first: 1, last: 2 }.display(Family::V4).to_string(), "0.0.0.1-0.0.0.2");
    }

    #[test]
    fn what_others_hold_is_taken_out() {
        let table: [(&[&str], &[&str], &[&str]); 6] = [
            (&["10.0.0.0/8"], &[], &["10.0.0.0/8"]),
            (&["10.0.0.0/8"], &["10.0.0.0/8"], &[]),
            (&["10.1.0.0/16"], &["10.0.0.0/8"], &[]),
            (&["10.0.0.0/8"], &["10.0.0.0/9"], &["10.128.0.0/9"]),
            (&["10.0.0.0/16", "10.1.0.0/16"], &["10.0.0.0/15"], &[]),
            (&["0.0.0.0/0"], &["128.0.0.0/1"], &["0.0.0.0/1"]),
        ];
        for (whole, taken, left) in table {
            assert_eq!(without(&ranges(whole), &ranges(taken)), ranges(left), "{whole:?} without {taken:?}");
        }
    }

    #[test]
    fn ranges_are_taken_apart_into_prefixes() {
        let apart = |first: u128, last: u128, family| -> Vec<String> {
            Range { first, last }.prefixes(family).map(|prefix| prefix.to_string()).collect()
        };
        assert_eq!(apart(1, 6, Family::V4), ["0.0.0.1/32", "0.0.0.2/31", "0.0.0.4/31", "0.0.0.6/32"]);
        assert_eq!(apart(0, u128::from(u32::MAX), Family::V4), ["0.0.0.0/0"]);
        assert_eq!(apart(0, u128::MAX, Family::V6), ["::/0"]);
        assert_eq!(apart(u128::MAX, u128::MAX, Family::V6), ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"]);
        let prefix: Prefix = "198.51.100.0/25".parse().unwrap();
        assert_eq!(Range::prefix(prefix).prefixes(Family::V4).collect::<Vec<_>>(), [prefix]);
    }

    proptest! {
        #[test]
        fn without_leaves_exactly_the_rest(whole in prop::collection::vec(any::<bool>(), 32), taken in prop::collection::vec(any::<bool>(), 32)) {
            let runs = |has: &[bool]| {
                let mut runs: Vec<Range> = Vec::new();
                for (at, _) in has.iter().enumerate().filter(|(_, has)| **has) {
                    let at = at as u128;
                    match runs.last_mut() {
                        // Some stay apart though they touch.
                        Some(run) if run.last + 1 == at && !at.is_multiple_of(5) => run.last = at,
                        _ => runs.push(Range { first: at, last: at }),
                    }
                }
                runs
            };
            let left = without(&runs(&whole), &runs(&taken));
            prop_assert!(left.is_sorted_by(|a, b| a.last < b.first));
            let found: Vec<bool> = (0..32).map(|at| left.iter().any(|run| run.first <= at && at <= run.last)).collect();
            let model: Vec<bool> = whole.iter().zip(&taken).map(|(has, gone)| *has && !gone).collect();
            prop_assert_eq!(found, model);
        }

        #[test]
        fn what_is_encoded_is_found(
            family in prop_oneof![Just(Family::V4), Just(Family::V6)],
            mut bounds in prop::collection::btree_set(any::<u32>(), 2..20),
            has_intervals: bool,
        ) {
            bounds.insert(u32::MAX);
            let scale = if family == Family::V4 { 0 } else { 96 };
            let bounds: Vec<u128> = bounds.into_iter().map(|bound| u128::from(bound) << scale).collect();
            let given: Vec<Range> = bounds.windows(2).map(|pair| Range { first: pair[0], last: if has_intervals { pair[1] - 1 } else { pair[0] } }).collect();
            let mut out = Vec::new();
            for range in given.iter().rev() {
                let at = out.len();
                encode(&mut out, shape(family, has_intervals), *range, Some(1500));
                prop_assert!(out.len() - at <= ENCODED_LEN_MAX);
            }
            let mut dump = Dump::default();
            dump.take(Attrs(&out), NOW);
            let found = dump.finish(shape(family, has_intervals));
            let until = Some(Timestamp::from_millis(NOW.as_millis() + 1500));
            let model: Vec<Found> = given.iter().map(|range| Found { range: *range, until, is_signed: true }).collect();
            prop_assert_eq!(found, model);
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), has_intervals: bool) {
            let mut dump = Dump::default();
            dump.take(Attrs(&bytes), NOW);
            let _ = dump.finish(shape(Family::V4, has_intervals));
        }
    }

    #[test]
    fn last_address_of_all_needs_no_end() {
        for (text, family) in [("255.255.255.0/24", Family::V4), ("::/0", Family::V6)] {
            let range = Range::prefix(text.parse().unwrap());
            let mut out = Vec::new();
            encode(&mut out, shape(family, true), range, None);
            assert_eq!(Attrs(&out).count(), 1);
            let mut dump = Dump::default();
            dump.take(Attrs(&out), NOW);
            assert_eq!(dump.finish(shape(family, true))[0].range, range);
        }
    }
}
