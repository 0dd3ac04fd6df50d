//! A script for `nft -f`: two named sets in a table of their own, filled anew in one transaction.
//!
//! ```text
//! table inet greenlane_feed {
//!         set bypass4 {
//!                 type ipv4_addr
//!                 flags interval
//!         }
//! }
//! flush set inet greenlane_feed bypass4
//! add element inet greenlane_feed bypass4 {
//! 192.0.2.1/32,
//! 198.51.100.0/24
//! }
//! ```
//! The table has its own name, apart from the table that a local greenlane programs itself, so that both can stand
//! on one host. `nft -f` commits the file as one transaction: packets see the old elements or the new ones, never
//! an empty set, and loading it again changes nothing. Rules of the operator's refer to the sets from chains in the
//! same table, which the script leaves alone. A list asked for with `family=` speaks of that family's set only.
//! An empty list declares and flushes (`elements = { }` is a syntax error). Only prefixes and numbers stand here.

use super::{List, Query, push_prefix};
use crate::prefix::{Family, Prefix};

/// Elements of one `add` command: nft checks each command against the whole set, so few large ones load fastest,
/// and its parser holds one command in memory at a time.
const CHUNK: usize = 32_768;

/// The table of the sets.
const TABLE: &str = "inet greenlane_feed";

/// Writes the script.
pub(super) fn write(list: &List, query: &Query, out: &mut Vec<u8>) {
    out.reserve(list.prefixes.len() * 21 + 512);
    let mut text = format!("# greenlane session {} serial {}\ntable {TABLE} {{\n", list.session, list.serial);
    for family in query.families() {
        let (set, addr) = names(family);
        text += &format!("\tset {set} {{\n\t\ttype {addr}\n\t\tflags interval\n\t}}\n");
    }
    text += "}\n";
    for family in query.families() {
        text += &format!("flush set {TABLE} {}\n", names(family).0);
    }
    out.extend_from_slice(text.as_bytes());
    for family in query.families() {
        for chunk in list.of(family).chunks(CHUNK) {
            add(names(family).0, chunk, out);
        }
    }
}

/// Writes one `add element` command.
fn add(set: &str, chunk: &[Prefix], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("add element {TABLE} {set} {{\n").as_bytes());
    for (i, prefix) in chunk.iter().enumerate() {
        if i > 0 {
            out.extend_from_slice(b",\n");
        }
        push_prefix(out, prefix);
    }
    out.extend_from_slice(b"\n}\n");
}

/// Returns the set of a family and the type of its elements.
fn names(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("bypass4", "ipv4_addr"),
        Family::V6 => ("bypass6", "ipv6_addr"),
    }
}
