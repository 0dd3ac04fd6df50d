//! Plain text: one prefix a line.
//!
//! Sorted, LF after every line, no comments, a host as `/32` or `/128`: what every firewall that pulls a list
//! understands. An empty set is an empty file.

use super::{List, push_prefix};

/// Octets a line takes, about: an IPv4 host is 10 to 19 long.
const LINE_LEN: usize = 20;

/// Writes the list.
pub(super) fn write(list: &List, out: &mut Vec<u8>) {
    out.reserve(list.prefixes.len() * LINE_LEN);
    for prefix in &list.prefixes {
        push_prefix(out, prefix);
        out.push(b'\n');
    }
}
