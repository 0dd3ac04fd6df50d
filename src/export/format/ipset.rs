//! A script for `ipset restore`: `hash:net` sets `greenlane4` and `greenlane6`, filled aside and swapped in.
//!
//! The temporary set is filled first and `swap` exchanges both at once, so packets never see a half-filled set and
//! a script that breaks off leaves the live set as it was. It loads onto a host without the sets, onto the one it
//! filled before, and after a run that broke off.
//!
//! `create -exist` takes an existing set only if its `maxelem` is equal, and a swapped-in set brings its own along:
//! a bound that grew with the list would fail on the second load. `maxelem` therefore always stands at its largest
//! value; it is a limit, not an allocation. `hashsize` may differ and is fitted, so that filling never rehashes.
//!
//! `hash:net` cannot hold `/0`; it becomes its two halves. Only prefixes and numbers stand here.

use super::{List, Query, halved, push_prefix};
use crate::prefix::{Family, Prefix};

/// The smallest hash that the kernel makes.
const HASHSIZE_MIN: usize = 64;
/// The largest hash that is asked for ahead; a bigger list still fits and is rehashed by the kernel.
const HASHSIZE_MAX: usize = 1 << 22;

/// Writes the script.
pub(super) fn write(list: &List, query: &Query, out: &mut Vec<u8>) {
    out.reserve(list.prefixes.len() * 40 + 512);
    for family in query.families() {
        write_family(family, list.of(family), out);
    }
}

/// Fills a temporary set, swaps it with the live one and drops the old elements.
fn write_family(family: Family, prefixes: &[Prefix], out: &mut Vec<u8>) {
    let (live, kind) = match family {
        Family::V4 => ("greenlane4", "inet"),
        Family::V6 => ("greenlane6", "inet6"),
    };
    let hashsize = prefixes.len().next_power_of_two().clamp(HASHSIZE_MIN, HASHSIZE_MAX);
    let create = |set: &str, hashsize: usize| {
        format!("create {set} hash:net family {kind} hashsize {hashsize} maxelem {} -exist\n", u32::MAX)
    };
    let temporary = format!("{live}_new");
    out.extend_from_slice(create(live, HASHSIZE_MIN).as_bytes());
    out.extend_from_slice(create(&temporary, hashsize).as_bytes());
    out.extend_from_slice(format!("flush {temporary}\n").as_bytes());
    for prefix in prefixes.iter().flat_map(halved) {
        out.extend_from_slice(b"add ");
        out.extend_from_slice(temporary.as_bytes());
        out.push(b' ');
        push_prefix(out, &prefix);
        out.push(b'\n');
    }
    out.extend_from_slice(format!("swap {temporary} {live}\ndestroy {temporary}\n").as_bytes());
}
