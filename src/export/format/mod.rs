//! A list as bytes, one file a dialect.
//!
//! Every dialect is a pure function of the snapshot and the query: no clock, no host, no user speaks into it, so equal
//! session, serial and query give equal bytes and the serial can stand for them in an ETag. All hold exactly the
//! prefixes of one [`List`]. The dialects that a machine executes (`nft`, `ipset`, `rsc`) contain prefixes, numbers and
//! constant words, never a name or an app id.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;
use std::str::FromStr;

use super::list::{List, Query};
use crate::prefix::Prefix;
use crate::set::Snapshot;

mod csv;
mod ipset;
mod json;
mod nft;
mod rsc;
mod txt;

/// A dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// A prefix a line.
    Txt,
    /// One JSON object.
    Json,
    /// CSV with a header line (RFC 4180).
    Csv,
    /// A script for `nft -f`.
    Nft,
    /// A script for `ipset restore`.
    Ipset,
    /// A RouterOS script.
    Rsc,
}

/// A list written in a dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The whole text; always UTF-8.
    pub bytes: Vec<u8>,
    /// How many prefixes `max` left out.
    pub omitted: usize,
}

impl Format {
    /// Every dialect.
    pub const ALL: [Self; 6] = [Self::Txt, Self::Json, Self::Csv, Self::Nft, Self::Ipset, Self::Rsc];

    /// Returns its name: the file ending in `/prefixes.<name>` and the word in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Nft => "nft",
            Self::Ipset => "ipset",
            Self::Rsc => "rsc",
        }
    }

    /// Returns its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            // Scripts have no registered type; as plain text a browser shows them and starts nothing.
            Self::Txt | Self::Nft | Self::Ipset | Self::Rsc => "text/plain; charset=utf-8",
        }
    }

    /// Writes the part of the snapshot that is asked for.
    ///
    /// Linear in the set: for a million hosts 150 ms of one core, twice that for CSV. Keep it off the threads that
    /// answer DNS.
    pub fn render(self, snapshot: &Snapshot, query: &Query) -> Rendered {
        let list = List::cut(snapshot, query);
        let mut bytes = Vec::new();
        match self {
            Self::Txt => txt::write(&list, &mut bytes),
            Self::Json => json::write(&list, query, &mut bytes),
            Self::Csv => csv::write(&list, snapshot, query, &mut bytes),
            Self::Nft => nft::write(&list, query, &mut bytes),
            Self::Ipset => ipset::write(&list, query, &mut bytes),
            Self::Rsc => rsc::write(&list, query, &mut bytes),
        }
        Rendered { bytes, omitted: list.omitted }
    }
}

/// A word that names no dialect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown format `{0}`, expected txt, json, csv, nft, ipset or rsc")]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        Self::ALL.into_iter().find(|f| f.name() == text).ok_or_else(|| UnknownFormat(text.to_owned()))
    }
}

/// Writes address/length, by hand: through `fmt` a million of them take longer than aggregating them.
fn push_prefix(out: &mut Vec<u8>, prefix: &Prefix) {
    match prefix.addr() {
        IpAddr::V4(addr) => {
            for (i, octet) in addr.octets().into_iter().enumerate() {
                if i > 0 {
                    out.push(b'.');
                }
                push_octet(out, octet);
            }
        }
        IpAddr::V6(addr) => push_v6(out, addr),
    }
    out.push(b'/');
    push_octet(out, prefix.len());
}

/// Writes an IPv6 address in the form of RFC 5952.
fn push_v6(out: &mut Vec<u8>, addr: Ipv6Addr) {
    let segments = addr.segments();
    if segments[0] == 0 {
        // Among these are forms of their own, such as `::ffff:192.0.2.1`. Writing to a vector does not fail.
        let _ = write!(out, "{addr}");
        return;
    }
    let zeros = longest_zeros(&segments);
    for (i, segment) in segments.into_iter().enumerate() {
        if zeros.contains(&i) {
            if i == zeros.start {
                out.extend_from_slice(b"::");
            }
            continue;
        }
        if i > 0 && i != zeros.end {
            out.push(b':');
        }
        push_hex(out, segment);
    }
}

/// Finds the longest run of two zero segments or more, the first of equals; an empty range at 0 if there is none.
fn longest_zeros(segments: &[u16; 8]) -> Range<usize> {
    let (mut longest, mut run) = (0..0, 0..0);
    for (i, segment) in segments.iter().enumerate() {
        run = if *segment != 0 { i + 1..i + 1 } else { run.start..i + 1 };
        if run.len() > longest.len() && run.len() > 1 {
            longest = run.clone();
        }
    }
    longest
}

/// Writes a segment without leading zeros.
fn push_hex(out: &mut Vec<u8>, segment: u16) {
    let digits = (16 - segment.leading_zeros()).div_ceil(4).max(1);
    for at in (0..digits).rev() {
        let digit = (segment >> (4 * at) & 0xf) as u8;
        out.push(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
    }
}

/// Writes a number up to 255 in decimal.
fn push_octet(out: &mut Vec<u8>, octet: u8) {
    if octet >= 100 {
        out.push(b'0' + octet / 100);
    }
    if octet >= 10 {
        out.push(b'0' + octet / 10 % 10);
    }
    out.push(b'0' + octet % 10);
}

#[cfg(test)]
mod tests;
