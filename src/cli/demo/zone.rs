//! The internet of the demo: a root zone as a master file, made from the catalogue.
//!
//! Every listed name and everything below it has A and AAAA records; each third has an HTTPS record with hints, each
//! fifth is reached through a CNAME chain of two. Addresses come from 198.18.0.0/15 (RFC 2544) and 2001:2::/48
//! (RFC 5180), which are nobody's, so the demo cannot touch a real service. TTLs are short, so that one sees them run.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::name::Name;

/// The TTL of the demo's records.
const TTL_SECS: u32 = 60;

/// Ordinary names, in no list, with the number of their address.
pub(super) const ORDINARY: [(&str, u16); 4] =
    [("www.example.com", 60_001), ("news.example.org", 60_002), ("shop.example.net", 60_003), ("example.com", 60_004)];

/// A name under which listed and ordinary names meet: the content network of the demo.
const NETWORK: &str = "edge.demo-cdn.example";

/// Which part of the names has an HTTPS record, and which a CNAME.
const HTTPS_EVERY: usize = 3;
const CNAME_EVERY: usize = 5;

/// Writes the root zone for these names; equal names are written once.
pub(super) fn master_file(names: &[Name]) -> String {
    let mut names: Vec<&Name> = names.iter().collect();
    names.sort();
    names.dedup();
    let mut text = format!(
        "$TTL {TTL_SECS}\n\
         . IN SOA ns.demo-root.example. nobody.demo-root.example. 1 3600 1200 604800 {TTL_SECS}\n\
         . IN NS ns.demo-root.example.\n"
    );
    for (name, number) in ORDINARY {
        addresses(&mut text, &format!("{name}."), usize::from(number), 1);
    }
    for (i, name) in names.iter().enumerate() {
        for owner in [format!("{name}."), format!("*.{name}.")] {
            if i % CNAME_EVERY == CNAME_EVERY - 1 {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{owner} IN CNAME n{i}.{NETWORK}.");
                continue;
            }
            addresses(&mut text, &owner, i, 2);
            if i % HTTPS_EVERY == 0 {
                let (v4, v6) = (v4(i, 0), v6(i, 0));
                let _ = writeln!(text, "{owner} IN HTTPS 1 . alpn=h2,h3 ipv4hint={v4} ipv6hint={v6}");
            }
        }
        if i % CNAME_EVERY == CNAME_EVERY - 1 {
            let _ = writeln!(text, "n{i}.{NETWORK}. IN CNAME pop{i}.{NETWORK}.");
            addresses(&mut text, &format!("pop{i}.{NETWORK}."), i, 2);
        }
    }
    text
}

fn addresses(text: &mut String, owner: &str, number: usize, count: usize) {
    for copy in 0..count {
        let _ = writeln!(text, "{owner} IN A {}", v4(number, copy));
    }
    let _ = writeln!(text, "{owner} IN AAAA {}", v6(number, 0));
}

/// The addresses of a number, two in a row, so that a pair aggregates to one prefix.
fn v4(number: usize, copy: usize) -> Ipv4Addr {
    let offset = (number * 2 + copy) as u32 & 0x1_ffff;
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) | offset)
}

fn v6(number: usize, copy: usize) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0)) | (number * 2 + copy) as u128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_all_below_it_is_in_the_zone() {
        let names: Vec<Name> =
            ["zoom.us", "a.zoom.us", "b.example", "c.example", "d.example"].map(|n| Name::parse(n).unwrap()).to_vec();
        let text = master_file(&names);
        for name in &names {
            assert!(text.contains(&format!("\n{name}. IN ")), "{name}");
            assert!(text.contains(&format!("\n*.{name}. IN ")), "{name}");
        }
        crate::listen::hickory::Zones::new().add(".", &text).expect("hickory reads what we write");
    }

    #[test]
    fn addresses_stay_inside_the_benchmarking_space() {
        assert_eq!(v4(usize::from(u16::MAX), 1), Ipv4Addr::new(198, 19, 255, 255));
        assert_eq!(v6(3, 1).to_string(), "2001:2::7");
    }
}
