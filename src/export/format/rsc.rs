//! A script for RouterOS `/import`: the address list `greenlane` of the IPv4 and the IPv6 firewall.
//!
//! RouterOS has no transactions. The new entries are gathered in a list of their own, `greenlane-new`, which no rule
//! refers to; only when all are there the old ones are removed and the new ones renamed, two commands in a row. An
//! import that breaks off half-way leaves the live list as it was, and the next one starts by clearing the leavings.
//! Only prefixes stand here.

use super::{List, Query, push_prefix};
use crate::prefix::Family;

/// Writes the script.
pub(super) fn write(list: &List, query: &Query, out: &mut Vec<u8>) {
    out.reserve(list.prefixes.len() * 52 + 512);
    out.extend_from_slice(format!("# greenlane session {} serial {}\n", list.session, list.serial).as_bytes());
    for family in query.families() {
        let menu = match family {
            Family::V4 => "/ip firewall address-list\n",
            Family::V6 => "/ipv6 firewall address-list\n",
        };
        out.extend_from_slice(menu.as_bytes());
        out.extend_from_slice(b"remove [find list=\"greenlane-new\"]\n");
        for prefix in list.of(family) {
            out.extend_from_slice(b"add list=\"greenlane-new\" address=");
            push_prefix(out, prefix);
            out.push(b'\n');
        }
        out.extend_from_slice(b"remove [find list=\"greenlane\"]\n");
        out.extend_from_slice(b"set [find list=\"greenlane-new\"] list=\"greenlane\"\n");
    }
}
