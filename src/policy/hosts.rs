//! A hosts file, answered at home: names for addresses of one's own network.
//!
//! A line is an address and its names (`hosts(5)`); `#` starts a comment. A name has the addresses of all its lines, an
//! address the first name of its first line. Other types than A, AAAA and PTR have no records: the name is ours, so
//! nobody else is asked for it. What cannot be read is skipped and told with its place, since such files are written by
//! many hands: one odd line is no reason to answer nobody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use crate::name::Name;

/// The most addresses of one name: more would hardly fit a reply.
const ADDRESSES_MAX: usize = 64;

/// Names and addresses of a hosts file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    addresses: HashMap<Name, Vec<IpAddr>>,
    /// Keyed by the reverse name.
    names: HashMap<Name, Name>,
}

impl Hosts {
    /// Reads a file; returns what was skipped, too, with its place.
    ///
    /// # Errors
    /// What the system says.
    pub fn load(path: &Path) -> std::io::Result<(Self, Vec<String>)> {
        let octets = std::fs::read(path)?;
        let (hosts, skipped) = Self::parse(&String::from_utf8_lossy(&octets));
        let place = |(line, what)| format!("{}:{line}: {what}", path.display());
        Ok((hosts, skipped.into_iter().map(place).collect()))
    }

    /// Reads the text of a file; returns the lines that were skipped, or in part, and why.
    pub fn parse(text: &str) -> (Self, Vec<(usize, String)>) {
        let (mut hosts, mut skipped) = (Self::default(), Vec::new());
        for (i, line) in text.lines().enumerate() {
            let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
            let Some(first) = words.next() else { continue };
            let Ok(addr) = first.parse::<IpAddr>() else {
                skipped.push((i + 1, format!("`{first}` is no address")));
                continue;
            };
            for word in words {
                match Name::parse(word) {
                    Ok(name) => hosts.add(name, addr.to_canonical()),
                    Err(error) => skipped.push((i + 1, format!("`{word}` is no name: {error}"))),
                }
            }
        }
        (hosts, skipped)
    }

    fn add(&mut self, name: Name, addr: IpAddr) {
        if let Ok(reverse) = Name::parse(&reverse_of(addr)) {
            self.names.entry(reverse).or_insert_with(|| name.clone());
        }
        let addresses = self.addresses.entry(name).or_default();
        if addresses.len() < ADDRESSES_MAX && !addresses.contains(&addr) {
            addresses.push(addr);
        }
    }

    /// Returns the addresses of a name; `None` if it is not in the file.
    pub(super) fn addresses(&self, name: &Name) -> Option<&[IpAddr]> {
        self.addresses.get(name).map(Vec::as_slice)
    }

    /// Returns the name behind a reverse name.
    pub(super) fn name(&self, reverse: &Name) -> Option<&Name> {
        self.names.get(reverse)
    }
}

/// RFC 1035 §3.5, RFC 3596 §2.5.
fn reverse_of(addr: IpAddr) -> String {
    match addr {
        IpAddr::V4(addr) => {
            let [a, b, c, d] = addr.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(addr) => {
            let nibbles = addr.octets().into_iter().rev().map(|octet| format!("{:x}.{:x}.", octet & 15, octet >> 4));
            nibbles.chain(["ip6.arpa".to_owned()]).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn names_have_the_addresses_of_all_their_lines() {
        let text = "10.0.0.1 nas.corp.example NAS # the old one\n\n# all of it\n\
                    2001:db8::1\tnas.corp.example\n10.0.0.1 other.example\n10.0.0.1 nas.corp.example\n";
        let (hosts, skipped) = Hosts::parse(text);
        assert_eq!(skipped, []);
        let of = |text: &str| hosts.addresses(&name(text)).map(<[_]>::to_vec);
        assert_eq!(of("nas.corp.example"), Some(vec!["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]));
        assert_eq!(of("nas"), Some(vec!["10.0.0.1".parse().unwrap()]));
        assert_eq!(of("corp.example"), None);
        assert_eq!(hosts.name(&name("1.0.0.10.in-addr.arpa")), Some(&name("nas.corp.example")));
        let reverse = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        assert_eq!(hosts.name(&name(reverse)), Some(&name("nas.corp.example")));
    }

    #[test]
    fn what_cannot_be_read_is_told_and_the_rest_counts() {
        let (hosts, skipped) = Hosts::parse("fe80::1%lo0 localhost\n10.0.0.1 a..b good.example\nnonsense\n10.0.0.2\n");
        assert_eq!(skipped.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(skipped[0].1.contains("`fe80::1%lo0` is no address"));
        assert!(hosts.addresses(&name("good.example")).is_some());
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[ -~\\n]{0,200}", addr in any::<IpAddr>()) {
            Hosts::parse(&text);
            let (hosts, skipped) = Hosts::parse(&format!("{addr} x.example"));
            prop_assert!(skipped.is_empty());
            prop_assert_eq!(hosts.addresses(&name("x.example")), Some(&[addr.to_canonical()][..]));
        }
    }
}
