//! The IANA special-purpose address registries, as tables.
//!
//! The rows of the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, RFC 8190), compared with a copy of
//! their CSV files of 2026-07-18; what is allocated later has to be added here. The most specific row that holds an
//! address decides by its column *Globally Reachable*: some anycast addresses inside protocol space are reachable and may be learned, everything else may not; "N/A" counts as no,
//! since what is there (Teredo, 6to4) embeds addresses that nobody checked. Beside them stand the ranges that the
//! registries leave to other documents: multicast, and IPv6 outside the global unicast space of 2000::/3.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::prefix::{Family, Prefix};

/// One row: a block of addresses with a purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    family: Family,
    /// Left-aligned in 128 bits for both families.
    addr: u128,
    len: u8,
    /// The name in the registry.
    pub name: &'static str,
    /// The document that the registry cites.
    pub rfc: &'static str,
    /// When the block was allocated, year and month.
    pub allocated: &'static str,
    /// The column *Globally Reachable*; "N/A" is `false`.
    pub globally_reachable: bool,
}

const fn v4(octets: [u8; 4], len: u8, name: &'static str, rfc: &'static str, date: &'static str, global: bool) -> Row {
    let addr = (u32::from_be_bytes(octets) as u128) << 96;
    Row { family: Family::V4, addr, len, name, rfc, allocated: date, globally_reachable: global }
}

const fn v6(groups: [u16; 8], len: u8, name: &'static str, rfc: &'static str, date: &'static str, global: bool) -> Row {
    let [a, b, c, d, e, f, g, h] = groups;
    let addr = Ipv6Addr::new(a, b, c, d, e, f, g, h).to_bits();
    Row { family: Family::V6, addr, len, name, rfc, allocated: date, globally_reachable: global }
}

/// Finds the most specific row that holds `addr`.
pub(crate) fn row(addr: IpAddr) -> Option<&'static Row> {
    let (bits, rows) = match addr {
        IpAddr::V4(addr) => (u128::from(u32::from(addr)) << 96, V4),
        IpAddr::V6(addr) => (u128::from(addr), V6),
    };
    rows.iter().filter(|row| row.holds(bits)).max_by_key(|row| row.len)
}

/// Returns the rows of one IP version.
pub(super) fn rows(family: Family) -> &'static [Row] {
    match family {
        Family::V4 => V4,
        Family::V6 => V6,
    }
}

/// Finds the most specific row that holds all of `prefix`.
pub(super) fn row_around(prefix: &Prefix) -> Option<&'static Row> {
    rows(prefix.family()).iter().filter(|row| row.prefix().covers(prefix)).max_by_key(|row| row.len)
}

/// The multicast addresses (RFC 5771, RFC 4291 §2.7).
pub(super) fn multicast() -> [Prefix; 2] {
    [
        Prefix::truncated(Ipv4Addr::new(224, 0, 0, 0).into(), 4),
        Prefix::truncated(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    ]
}

/// The IPv6 space of which unicast addresses of the public Internet are allocated (RFC 4291 §2.4).
pub(super) fn unicast_space_v6() -> Prefix {
    Prefix::truncated(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0).into(), 3)
}

/// Returns whether `addr` is a multicast address (RFC 5771, RFC 4291 §2.7).
pub(crate) fn is_multicast(addr: IpAddr) -> bool {
    addr.is_multicast()
}

/// Returns whether `addr` lies where unicast addresses of the public Internet are allocated (RFC 4291 §2.4).
pub(crate) fn is_unicast_space(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr < Ipv4Addr::new(224, 0, 0, 0),
        IpAddr::V6(addr) => addr.segments()[0] >> 13 == 0b001,
    }
}

impl Row {
    /// Returns the block.
    pub(super) fn prefix(&self) -> Prefix {
        let addr = match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from_bits((self.addr >> 96) as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(self.addr)),
        };
        Prefix::truncated(addr, self.len)
    }

    fn holds(&self, bits: u128) -> bool {
        // No row has length 0, so the shift stays below 128.
        (self.addr ^ bits) >> (128 - u32::from(self.len)) == 0
    }
}

#[rustfmt::skip]
const V4: &[Row] = &[
    v4([0, 0, 0, 0], 8,        "\"This network\"",                    "RFC 791",  "1981-09", false),
    v4([0, 0, 0, 0], 32,       "\"This host on this network\"",       "RFC 1122", "1981-09", false),
    v4([10, 0, 0, 0], 8,       "Private-Use",                         "RFC 1918", "1996-02", false),
    v4([100, 64, 0, 0], 10,    "Shared Address Space",                "RFC 6598", "2012-04", false),
    v4([127, 0, 0, 0], 8,      "Loopback",                            "RFC 1122", "1981-09", false),
    v4([169, 254, 0, 0], 16,   "Link Local",                          "RFC 3927", "2005-05", false),
    v4([172, 16, 0, 0], 12,    "Private-Use",                         "RFC 1918", "1996-02", false),
    v4([192, 0, 0, 0], 24,     "IETF Protocol Assignments",           "RFC 6890", "2010-01", false),
    v4([192, 0, 0, 0], 29,     "IPv4 Service Continuity Prefix",      "RFC 7335", "2011-06", false),
    v4([192, 0, 0, 8], 32,     "IPv4 dummy address",                  "RFC 7600", "2015-03", false),
    v4([192, 0, 0, 9], 32,     "Port Control Protocol Anycast",       "RFC 7723", "2015-10", true),
    v4([192, 0, 0, 10], 32,    "Traversal Using Relays around NAT Anycast", "RFC 8155", "2017-02", true),
    v4([192, 0, 0, 170], 32,   "NAT64/DNS64 Discovery",               "RFC 8880", "2013-02", false),
    v4([192, 0, 0, 171], 32,   "NAT64/DNS64 Discovery",               "RFC 8880", "2013-02", false),
    v4([192, 0, 2, 0], 24,     "Documentation (TEST-NET-1)",          "RFC 5737", "2010-01", false),
    v4([192, 31, 196, 0], 24,  "AS112-v4",                            "RFC 7535", "2014-12", true),
    v4([192, 52, 193, 0], 24,  "AMT",                                 "RFC 7450", "2014-12", true),
    v4([192, 88, 99, 0], 24,   "Deprecated (6to4 Relay Anycast)",     "RFC 7526", "2001-06", false),
    v4([192, 88, 99, 2], 32,   "6a44-relay anycast address",          "RFC 6751", "2012-10", false),
    v4([192, 168, 0, 0], 16,   "Private-Use",                         "RFC 1918", "1996-02", false),
    v4([192, 175, 48, 0], 24,  "Direct Delegation AS112 Service",     "RFC 7534", "1996-01", true),
    v4([198, 18, 0, 0], 15,    "Benchmarking",                        "RFC 2544", "1999-03", false),
    v4([198, 51, 100, 0], 24,  "Documentation (TEST-NET-2)",          "RFC 5737", "2010-01", false),
    v4([203, 0, 113, 0], 24,   "Documentation (TEST-NET-3)",          "RFC 5737", "2010-01", false),
    v4([240, 0, 0, 0], 4,      "Reserved",                            "RFC 1112", "1989-08", false),
    v4([255, 255, 255, 255], 32, "Limited Broadcast",                 "RFC 919",  "1984-10", false),
];

#[rustfmt::skip]
const V6: &[Row] = &[
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128,      "Loopback Address",                "RFC 4291", "2006-02", false),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128,      "Unspecified Address",             "RFC 4291", "2006-02", false),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96,  "IPv4-mapped Address",             "RFC 4291", "2006-02", false),
    v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, "IPv4-IPv6 Translat.",           "RFC 6052", "2010-10", true),
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, "IPv4-IPv6 Translat.",           "RFC 8215", "2017-06", false),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64,   "Discard-Only Address Block",      "RFC 6666", "2012-06", false),
    v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64,   "Dummy IPv6 Prefix",               "RFC 9780", "2025-04", false),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23,  "IETF Protocol Assignments",       "RFC 2928", "2000-09", false),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32,  "TEREDO",                          "RFC 4380", "2006-01", false),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 1], 128, "Port Control Protocol Anycast",   "RFC 7723", "2015-10", true),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 2], 128, "Traversal Using Relays around NAT Anycast", "RFC 8155", "2017-02", true),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 3], 128, "DNS-SD Service Registration Protocol Anycast", "RFC 9665", "2024-04", true),
    v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48,  "Benchmarking",                    "RFC 5180", "2008-04", false),
    v6([0x2001, 3, 0, 0, 0, 0, 0, 0], 32,  "AMT",                             "RFC 7450", "2014-12", true),
    v6([0x2001, 4, 0x112, 0, 0, 0, 0, 0], 48, "AS112-v6",                     "RFC 7535", "2014-12", true),
    v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, "Deprecated (previously ORCHID)", "RFC 4843", "2007-03", false),
    v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28, "ORCHIDv2",                      "RFC 7343", "2014-07", true),
    v6([0x2001, 0x30, 0, 0, 0, 0, 0, 0], 28, "Drone Remote ID Protocol Entity Tags (DETs) Prefix", "RFC 9374", "2022-12", true),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, "Documentation",                "RFC 3849", "2004-07", false),
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16,  "6to4",                            "RFC 3056", "2001-02", false),
    v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48, "Direct Delegation AS112 Service", "RFC 7534", "2011-05", true),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20,  "Documentation",                   "RFC 9637", "2024-07", false),
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16,  "Segment Routing (SRv6) SIDs",     "RFC 9602", "2024-04", false),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7,   "Unique-Local",                    "RFC 4193", "2005-10", false),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10,  "Link-Local Unicast",              "RFC 4291", "2006-02", false),
];
