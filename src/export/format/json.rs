//! One JSON object: what was asked for, which snapshot it is, and the prefixes.
//!
//! ```json
//! {"session":"00000000000000ab","serial":7,
//!  "selection":{"apps":["zoom"],"family":4,"max":null,"origin":null},
//!  "omitted":0,"prefixes":[
//!   "192.0.2.1/32"
//! ]}
//! ```
//! `prefixes` holds exactly the lines of the text form. No end stands here: the object is told apart by its serial
//! alone, and a later end makes no serial; `/delta` gives ends. A prefix takes a line, so that two of them diff well.

use serde_json::json;

use super::{List, Query, push_prefix};
use crate::catalogue::AppId;
use crate::prefix::Family;
use crate::set::Origin;

/// Writes the list.
pub(super) fn write(list: &List, query: &Query, out: &mut Vec<u8>) {
    out.reserve(list.prefixes.len() * 24 + 256);
    let head = format!(
        "{{\"session\":\"{}\",\"serial\":{},\"selection\":{},\"omitted\":{},\"prefixes\":[",
        list.session,
        list.serial,
        selection(query),
        list.omitted
    );
    out.extend_from_slice(head.as_bytes());
    for (i, prefix) in list.prefixes.iter().enumerate() {
        // Text of a prefix holds digits, letters, `.`, `:` and `/`: nothing that JSON escapes.
        out.extend_from_slice(if i == 0 { b"\n\"" } else { b",\n\"" });
        push_prefix(out, prefix);
        out.push(b'"');
    }
    out.extend_from_slice(b"\n]}\n");
}

/// Echoes what was asked for; `null` for what was left open.
fn selection(query: &Query) -> serde_json::Value {
    let which = &query.selection;
    json!({
        "apps": which.apps.as_ref().map(|apps| apps.iter().map(AppId::as_str).collect::<Vec<_>>()),
        "family": which.family.map(|family| match family { Family::V4 => 4, Family::V6 => 6 }),
        "max": query.max,
        "origin": which.origin.map(Origin::as_str),
    })
}
