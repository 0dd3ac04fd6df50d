//! A sighting as octets: the key that sorts it, and its times.
//!
//! ```text
//!   key   = 4 │ 6   address (4 or 16 octets)   name (wire form, lower case)
//!   times = last_seen   last_seen - first_seen   told_until - last_seen   end - told_until   granted - end
//! ```
//! Each time is a number of milliseconds in groups of seven bits, the lowest first (LEB128), so that an entry takes
//! some 20 octets beside its name. The order of the times (see [`Times`](crate::set::Times)) makes every difference
//! positive; times out of order, which no sighting has, are brought into order.

use std::net::IpAddr;

use crate::clock::Timestamp;
use crate::name::Name;
use crate::set::outlet::{Kept, SightingChange};

/// The key of a sighting.
pub(super) type Key = Box<[u8]>;

/// The longest key: family, IPv6 address, name.
pub(super) const KEY_LEN_MAX: usize = 1 + 16 + crate::name::WIRE_LEN_MAX;

/// The longest times: five numbers of 64 bits.
pub(super) const TIMES_LEN_MAX: usize = 5 * 10;

/// What becomes of a key: its times, or `None` if the sighting left.
pub(super) fn encode(change: &SightingChange) -> (Key, Option<Box<[u8]>>) {
    match change {
        SightingChange::Put(kept) => {
            let (key, times) = put(kept);
            (key, Some(times))
        }
        SightingChange::Gone { addr, name } => (key(*addr, name), None),
    }
}

/// The key and the times of a sighting.
pub(super) fn put(kept: &Kept) -> (Key, Box<[u8]>) {
    (key(kept.addr, &kept.name), times(kept))
}

fn key(addr: IpAddr, name: &Name) -> Key {
    let wire = name.as_wire();
    let mut key = Vec::with_capacity(17 + wire.len());
    match addr {
        IpAddr::V4(addr) => {
            key.push(4);
            key.extend_from_slice(&addr.octets());
        }
        IpAddr::V6(addr) => {
            key.push(6);
            key.extend_from_slice(&addr.octets());
        }
    }
    key.extend_from_slice(wire);
    key.into()
}

fn times(kept: &Kept) -> Box<[u8]> {
    let ordered = [kept.last_seen, kept.told_until, kept.end, kept.granted].map(Timestamp::as_millis);
    let mut octets = Vec::with_capacity(24);
    put_number(&mut octets, ordered[0]);
    put_number(&mut octets, ordered[0].saturating_sub(kept.first_seen.as_millis()));
    let mut before = ordered[0];
    for &time in &ordered[1..] {
        put_number(&mut octets, time.saturating_sub(before));
        before = before.max(time);
    }
    octets.into()
}

/// Reads an entry; `None` if the octets are none.
pub(super) fn decode(key: &[u8], times: &[u8]) -> Option<Kept> {
    let (addr, name) = decode_key(key)?;
    let mut rest = times;
    let last_seen = take_number(&mut rest)?;
    let first_seen = last_seen.saturating_sub(take_number(&mut rest)?);
    let told_until = last_seen.saturating_add(take_number(&mut rest)?);
    let end = told_until.saturating_add(take_number(&mut rest)?);
    let granted = end.saturating_add(take_number(&mut rest)?);
    let [first_seen, last_seen, told_until, end, granted] =
        [first_seen, last_seen, told_until, end, granted].map(Timestamp::from_millis);
    rest.is_empty().then_some(Kept { addr, name, first_seen, last_seen, told_until, end, granted })
}

fn decode_key(key: &[u8]) -> Option<(IpAddr, Name)> {
    let (family, rest) = key.split_first()?;
    let (addr, wire) = match family {
        4 => rest.split_first_chunk::<4>().map(|(octets, wire)| (IpAddr::from(*octets), wire))?,
        6 => rest.split_first_chunk::<16>().map(|(octets, wire)| (IpAddr::from(*octets), wire))?,
        _ => return None,
    };
    Some((addr, Name::from_wire(wire).ok()?))
}

fn put_number(octets: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        octets.push(number as u8 | 0x80);
        number >>= 7;
    }
    octets.push(number as u8);
}

fn take_number(octets: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (&octet, rest) = octets.split_first()?;
        *octets = rest;
        let bits = u64::from(octet & 0x7f);
        // The tenth octet has room for one bit.
        if shift == 63 && octet > 1 {
            return None;
        }
        number |= bits << shift;
        if octet < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Tells the times of an entry in another clock, which is so far ahead of the one that they were told in.
pub(super) fn shift(kept: &mut Kept, millis: i64) {
    let Kept { first_seen, last_seen, told_until, end, granted, .. } = kept;
    for time in [first_seen, last_seen, told_until, end, granted] {
        *time = time.shifted(millis);
    }
}

/// Brings the times of an entry into the present of `now`.
///
/// Its end may lie no farther ahead than it did when it was granted: a clock that was set back since makes no entry
/// immortal. The same cut goes for the other times.
pub(super) fn bound(kept: &mut Kept, now: Timestamp) {
    let seen = kept.last_seen;
    for time in [&mut kept.told_until, &mut kept.end, &mut kept.granted] {
        *time = (*time).min(now.after(time.since(seen)));
    }
    kept.last_seen = seen.min(now);
    kept.first_seen = kept.first_seen.min(kept.last_seen);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::store::testing::kept;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn round_trip(kept: &Kept) -> Option<Kept> {
        let (key, times) = encode(&SightingChange::Put(kept.clone()));
        let times = times.unwrap();
        assert!(key.len() <= KEY_LEN_MAX && times.len() <= TIMES_LEN_MAX);
        decode(&key, &times)
    }

    #[test]
    fn entry_is_small() {
        let (key, times) = encode(&SightingChange::Put(kept(1, "a.example", NOW)));
        assert_eq!(key.len(), 1 + 4 + 11);
        assert!(times.unwrap().len() <= 20);
    }

    #[test]
    fn clock_set_back_makes_no_entry_immortal() {
        let before = kept(1, "a.example", NOW);
        let mut after = before.clone();
        bound(&mut after, NOW.after(Duration::from_secs(1)));
        assert_eq!(after, before, "time went on: nothing is cut");
        let back = Timestamp::from_secs(1_000_000_000);
        bound(&mut after, back);
        assert_eq!(after.granted, back.after(before.granted.since(before.last_seen)));
        assert_eq!(after.end, back.after(before.end.since(before.last_seen)));
        assert_eq!((after.last_seen, after.first_seen), (back, back));
    }

    proptest! {
        #[test]
        fn entries_round_trip(host: u32, last: u64, spans in any::<[u32; 4]>(), ends in any::<bool>()) {
            let mut one = kept(host, "some.name.example", NOW);
            if ends {
                one.addr = IpAddr::from([host as u16, 1, 2, 3, 4, 5, 6, 7]);
            }
            one.last_seen = Timestamp::from_millis(last);
            one.first_seen = Timestamp::from_millis(last.saturating_sub(u64::from(spans[0])));
            let later = |time: Timestamp, span: u32| time.after(Duration::from_millis(u64::from(span)));
            one.told_until = later(one.last_seen, spans[1]);
            one.end = later(one.told_until, spans[2]);
            one.granted = later(one.end, spans[3]);
            prop_assert_eq!(round_trip(&one), Some(one));
        }

        #[test]
        fn any_octets_are_read_without_a_panic(
            key in proptest::collection::vec(any::<u8>(), 0..40),
            times in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let _ = decode(&key, &times);
        }

        #[test]
        fn no_time_is_cut_to_more_than_it_had(back: u32, last: u32) {
            let before = kept(1, "a.example", Timestamp::from_secs(u64::from(last)));
            let now = Timestamp::from_secs(u64::from(back));
            let mut after = before.clone();
            bound(&mut after, now);
            prop_assert!(after.last_seen <= after.told_until && after.told_until <= after.end);
            prop_assert!(after.end <= after.granted && after.granted <= before.granted);
            prop_assert!(after.granted.since(now) <= before.granted.since(before.last_seen));
        }
    }
}
