//! CSV (RFC 4180): the prefixes of the text form, each with where it came from and for whom.
//!
//! ```text
//! prefix,family,origin,apps
//! 192.0.2.0/31,4,learned,zoom
//! 198.51.100.0/24,4,learned static,box zoom
//! ```
//! A row is an aggregated prefix, so the first column is the text form line by line. What aggregation merges, the
//! other columns gather: `origin` and `apps` hold every value found among the static prefixes and learned hosts
//! inside, sorted, a space between. Lines end in CRLF; a field with a quote, a comma or a line break is quoted.

use std::collections::BTreeSet;

use super::{List, Query, push_prefix};
use crate::catalogue::AppId;
use crate::prefix::Prefix;
use crate::set::Snapshot;

/// Writes the list; `snapshot` is the one that it was cut from.
pub(super) fn write(list: &List, snapshot: &Snapshot, query: &Query, out: &mut Vec<u8>) {
    out.reserve(list.prefixes.len() * 40 + 64);
    out.extend_from_slice(b"prefix,family,origin,apps\r\n");
    // Prefixes, static prefixes and hosts stand in the same order and the prefixes do not overlap: one pass.
    let mut statics = snapshot.statics().iter().filter(|entry| query.selection.has_static(entry)).peekable();
    let mut hosts = snapshot.hosts().filter(|host| query.selection.has_host(host)).peekable();
    let mut apps = BTreeSet::new();
    for prefix in &list.prefixes {
        apps.clear();
        let (mut is_learned, mut is_static) = (false, false);
        while let Some(entry) = statics.next_if(|entry| is_before_end(prefix, &entry.prefix)) {
            if prefix.covers(&entry.prefix) {
                is_static = true;
                apps.extend(entry.apps.iter().cloned());
            }
        }
        while let Some(host) = hosts.next_if(|host| is_before_end(prefix, &Prefix::host(host.addr()))) {
            if prefix.contains(host.addr()) {
                is_learned = true;
                apps.extend(host.apps().iter().cloned());
            }
        }
        push_prefix(out, prefix);
        out.push(b',');
        out.extend_from_slice(prefix.family().digit().as_bytes());
        out.extend_from_slice(match (is_learned, is_static) {
            (true, true) => b",learned static,".as_slice(),
            (true, false) => b",learned,",
            (false, _) => b",static,",
        });
        push_field(out, &joined(&apps));
        out.extend_from_slice(b"\r\n");
    }
}

/// Returns whether `item` lies in `prefix` or sorts before it: what the pass has to take off before it goes on.
fn is_before_end(prefix: &Prefix, item: &Prefix) -> bool {
    item <= prefix || prefix.covers(item)
}

/// Puts a space between the ids.
fn joined(apps: &BTreeSet<AppId>) -> String {
    apps.iter().map(AppId::as_str).collect::<Vec<_>>().join(" ")
}

/// Writes a field, in quotes where RFC 4180 section 2 asks for them.
fn push_field(out: &mut Vec<u8>, text: &str) {
    if !text.contains(['"', ',', '\r', '\n']) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    out.push(b'"');
    out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_with_quote_comma_or_line_break_is_quoted() {
        for (text, field) in
            [("zoom box", "zoom box"), ("a,b", "\"a,b\""), ("a\"b", "\"a\"\"b\""), ("a\nb", "\"a\nb\"")]
        {
            let mut out = Vec::new();
            push_field(&mut out, text);
            assert_eq!(String::from_utf8(out).unwrap(), field);
        }
    }
}
