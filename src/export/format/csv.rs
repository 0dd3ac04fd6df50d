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
use std::sync::Arc;

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
    let mut apps = Apps::default();
    for prefix in &list.prefixes {
        apps.lists.clear();
        let (mut is_learned, mut is_static) = (false, false);
        while let Some(entry) = statics.next_if(|entry| is_before_end(prefix, &entry.prefix)) {
            if prefix.covers(&entry.prefix) {
                is_static = true;
                apps.add(Arc::clone(&entry.apps));
            }
        }
        while let Some(host) = hosts.next_if(|host| is_before_end(prefix, &Prefix::host(host.addr()))) {
            if prefix.contains(host.addr()) {
                is_learned = true;
                apps.add(host.apps());
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
        apps.push_field(out);
        out.extend_from_slice(b"\r\n");
    }
}

/// The app ids found inside one prefix.
#[derive(Default)]
struct Apps {
    /// The lists of its entries, those in a row that are the same one only once.
    lists: Vec<Arc<[AppId]>>,
    /// The last field written and whose it is: entries of one name share their list, so most rows repeat it.
    last: Option<(Arc<[AppId]>, Vec<u8>)>,
}

impl Apps {
    fn add(&mut self, list: Arc<[AppId]>) {
        if !self.lists.last().is_some_and(|last| Arc::ptr_eq(last, &list)) {
            self.lists.push(list);
        }
    }

    fn push_field(&mut self, out: &mut Vec<u8>) {
        if let ([list], Some((last, field))) = (self.lists.as_slice(), &self.last)
            && Arc::ptr_eq(list, last)
        {
            out.extend_from_slice(field);
            return;
        }
        let ids: BTreeSet<&str> = self.lists.iter().flat_map(|list| list.iter().map(AppId::as_str)).collect();
        let mut field = Vec::new();
        push_field(&mut field, &ids.into_iter().collect::<Vec<_>>().join(" "));
        out.extend_from_slice(&field);
        if let [list] = self.lists.as_slice() {
            self.last = Some((Arc::clone(list), field));
        }
    }
}

/// Returns whether `item` lies in `prefix` or sorts before it: what the pass has to take off before it goes on.
fn is_before_end(prefix: &Prefix, item: &Prefix) -> bool {
    item <= prefix || prefix.covers(item)
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
