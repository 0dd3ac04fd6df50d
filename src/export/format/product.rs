//! Lists for products that pull one: the set within each product's rules and limits.
//!
//! Common to all, since it is right everywhere: one entry a line, LF, both families in one list, no comment, no empty
//! line, no word that could be looked up as a host name, an empty set as an empty body. `/0` never stands in a list:
//! Cisco refuses it, and Squid takes `0.0.0.0/0` for IPv6 as well; its two halves say the same. Where the products
//! differ:
//!
//! | product | a host is written | entries at most | why |
//! |---|---|---|---|
//! | PAN-OS | bare | 50,000 | what every model holds in all its lists; PA-5000 and PA-7000 series 150,000 |
//! | FortiOS | bare | 131,072 | one feed before 7.4.4 (and 10 MB, which so many lines never reach); later 300,000 in all |
//! | OPNsense | with length | 100,000 | a line with a slash is never resolved; the table limit counts all aliases |
//! | pfSense | with length | 100,000 | as OPNsense |
//! | Check Point | bare | 50,000 | no figure found, careful |
//! | Cisco | bare | 10,000 | the dynamic attributes connector's; a Security Intelligence feed takes 500 MB |
//! | MikroTik | script | 20,000 | no figure found, careful; see [`super::rsc`] |
//! | Squid | with length | 100,000 | a word without a slash goes to `getaddrinfo`; no figure found, careful |
//!
//! `docs/firewalls.md` names the documents behind the figures.

use std::num::NonZeroU32;

use super::{Format, List, halved, push_addr, push_prefix};

/// Octets a line takes, about: an IPv4 host is 8 to 19 long.
const LINE_LEN: usize = 20;

/// How a prefix of full length is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hosts {
    /// `192.0.2.1`.
    Bare,
    /// `192.0.2.1/32`.
    WithLength,
}

/// Returns how many prefixes a product takes.
pub(super) fn limit(format: Format) -> Option<NonZeroU32> {
    let entries_max = match format {
        Format::Txt | Format::Json | Format::Csv | Format::Nft | Format::Ipset | Format::Rsc => return None,
        Format::PaloAlto | Format::CheckPoint => 50_000,
        Format::FortiGate => 131_072,
        Format::Opnsense | Format::Pfsense | Format::SquidIp => 100_000,
        Format::Cisco => 10_000,
        Format::MikroTik => 20_000,
    };
    NonZeroU32::new(entries_max)
}

/// Writes the list.
pub(super) fn write(list: &List, hosts: Hosts, out: &mut Vec<u8>) {
    out.reserve(list.prefixes.len() * LINE_LEN);
    for prefix in list.prefixes.iter().flat_map(halved) {
        if hosts == Hosts::Bare && prefix.is_host() {
            push_addr(out, &prefix);
        } else {
            push_prefix(out, &prefix);
        }
        out.push(b'\n');
    }
}
