//! What consumers read, as bytes, one file a dialect.
//!
//! ```text
//!   Dialect ─┬─ Format   the set: six general forms, and one for each product that pulls a list (`product`)
//!            └─ Names    the listed names (`names`)
//! ```
//! Every [`Format`] is a pure function of the snapshot and the query: no clock, no host, no user speaks into it, so
//! equal session, serial and query give equal bytes and the serial can stand for them in an ETag. All hold exactly the
//! prefixes of one [`List`]. What a machine executes (`nft`, `ipset`, `rsc`, `mikrotik`) and what a product reads
//! contains prefixes, numbers and constant words, never a name or an app id.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::ops::Range;

use super::list::{List, Query};
use crate::catalogue::Catalogue;
use crate::prefix::{Family, Prefix};
use crate::set::Snapshot;

mod csv;
mod ipset;
mod json;
mod names;
mod nft;
mod product;
mod rsc;
mod txt;

pub use names::Names;

/// Anything that a file can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// The set.
    Set(Format),
    /// The listed names.
    Names(Names),
}

impl Default for Dialect {
    fn default() -> Self {
        Self::Set(Format::Txt)
    }
}

impl Dialect {
    /// Returns every dialect, the general forms of the set first.
    pub fn all() -> impl Iterator<Item = Self> {
        let set = Format::PREFIXES.into_iter().chain(Format::FEEDS).map(Self::Set);
        set.chain(Names::ALL.map(Self::Names))
    }

    /// Returns the word for it in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Set(format) => format.name(),
            Self::Names(names) => names.name(),
        }
    }

    /// Writes all of the set, or all names; see [`Format::render`] for the cost.
    pub fn render(self, snapshot: &Snapshot, catalogue: &Catalogue) -> Rendered {
        match self {
            Self::Set(format) => format.render(snapshot, &Query::default()),
            Self::Names(names) => Rendered { bytes: names.render(catalogue, None), omitted: None },
        }
    }
}

/// A form of the set.
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
    /// An External Dynamic List of type IP for PAN-OS.
    PaloAlto,
    /// An IP address threat feed for FortiOS.
    FortiGate,
    /// A URL table for OPNsense.
    Opnsense,
    /// A URL table for pfSense.
    Pfsense,
    /// A network feed (flat list) for Check Point.
    CheckPoint,
    /// A network feed for Cisco Secure Firewall.
    Cisco,
    /// A RouterOS script within MikroTik's limits.
    MikroTik,
    /// A file for Squid's `acl … dst`.
    SquidIp,
}

/// A list written in a dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The whole text; always UTF-8.
    pub bytes: Vec<u8>,
    /// How many prefixes the bound left out, if there was one.
    pub omitted: Option<usize>,
}

impl Format {
    /// The general forms, served as `/prefixes.<name>`.
    pub const PREFIXES: [Self; 6] = [Self::Txt, Self::Json, Self::Csv, Self::Nft, Self::Ipset, Self::Rsc];
    /// The forms for one product each, served as `/feeds/<name>.txt`.
    pub const FEEDS: [Self; 8] = [
        Self::PaloAlto,
        Self::FortiGate,
        Self::Opnsense,
        Self::Pfsense,
        Self::CheckPoint,
        Self::Cisco,
        Self::MikroTik,
        Self::SquidIp,
    ];

    /// Returns its name in URLs and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Nft => "nft",
            Self::Ipset => "ipset",
            Self::Rsc => "rsc",
            Self::PaloAlto => "paloalto",
            Self::FortiGate => "fortigate",
            Self::Opnsense => "opnsense",
            Self::Pfsense => "pfsense",
            Self::CheckPoint => "checkpoint",
            Self::Cisco => "cisco",
            Self::MikroTik => "mikrotik",
            Self::SquidIp => "squid-ip",
        }
    }

    /// Returns how many prefixes it holds at most unless a query says otherwise; `None` for any number.
    pub fn limit(self) -> Option<NonZeroU32> {
        product::limit(self)
    }

    /// Returns its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            // Scripts have no registered type; as plain text a browser shows them and starts nothing.
            _ => "text/plain; charset=utf-8",
        }
    }

    /// Writes the part of the snapshot that is asked for. `query.max` takes the place of [`Self::limit`], also where
    /// it is larger: the operator knows the model.
    ///
    /// Linear in the set: for a million hosts 150 ms of one core, twice that for CSV. Keep it off the threads that
    /// answer DNS.
    pub fn render(self, snapshot: &Snapshot, query: &Query) -> Rendered {
        let bounded = Query { max: query.max.or_else(|| self.limit()), ..query.clone() };
        let query = &bounded;
        let list = List::cut(snapshot, query);
        let mut bytes = Vec::new();
        match self {
            Self::Txt => txt::write(&list, &mut bytes),
            Self::Json => json::write(&list, query, &mut bytes),
            Self::Csv => csv::write(&list, snapshot, query, &mut bytes),
            Self::Nft => nft::write(&list, query, &mut bytes),
            Self::Ipset => ipset::write(&list, query, &mut bytes),
            Self::Rsc | Self::MikroTik => rsc::write(&list, query, &mut bytes),
            Self::PaloAlto | Self::FortiGate | Self::CheckPoint | Self::Cisco => {
                product::write(&list, product::Hosts::Bare, &mut bytes);
            }
            Self::Opnsense | Self::Pfsense | Self::SquidIp => {
                product::write(&list, product::Hosts::WithLength, &mut bytes);
            }
        }
        Rendered { bytes, omitted: query.max.map(|_| list.omitted) }
    }
}

/// Returns the prefix for consumers that cannot hold `/0`: itself, or the two halves of `/0`.
fn halved(prefix: &Prefix) -> impl Iterator<Item = Prefix> + use<> {
    let whole = *prefix;
    let (first, second) = if whole.len() > 0 {
        (whole, None)
    } else {
        let upper = match whole.family() {
            Family::V4 => [128, 0, 0, 0].into(),
            Family::V6 => Ipv6Addr::from(1_u128 << 127).into(),
        };
        (Prefix::truncated(whole.addr(), 1), Some(Prefix::truncated(upper, 1)))
    };
    std::iter::once(first).chain(second)
}

/// Writes address/length, by hand: through `fmt` a million of them take longer than aggregating them.
fn push_prefix(out: &mut Vec<u8>, prefix: &Prefix) {
    push_addr(out, prefix);
    out.push(b'/');
    push_octet(out, prefix.len());
}

/// Writes the address of a prefix.
fn push_addr(out: &mut Vec<u8>, prefix: &Prefix) {
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
