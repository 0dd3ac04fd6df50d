//! The listed names, for firewalls and proxies that match SNI.
//!
//! Both forms list what opens a name: exceptions (`!`) are left out, and so is a name that an exception or
//! `catalogue.never` closes whole. Lines are sorted, each once, LF, A-labels.
//!
//! | a list says | `/domains.txt` | Squid's `ssl::server_name` |
//! |---|---|---|
//! | `example.com`: the name and what lies below | `example.com` | `.example.com` |
//! | `=login.example.com`: that name only | `login.example.com` | `login.example.com` |
//! | `*.example.net`: what lies below only | `*.example.net` | `.example.net` |
//!
//! Neither can say everything. The plain form cannot say "only this name"; names stand in the escapes of RFC 1035.
//! Squid's form cannot say "not the name itself". Squid gives up on a list that holds `a.example.com` before
//! `.example.com` and warns of one that holds it behind, so what a shorter entry covers is pruned. It splits lines
//! at spaces and reads signs, so a name with anything but letters, digits, `-` and `_` is left out; no client sends
//! such a name as SNI (RFC 6066 §3).

use std::collections::{BTreeSet, HashSet};

use crate::catalogue::{AppId, Catalogue, Kind, ListedName};
use crate::name::Name;

/// A form of the listed names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Names {
    /// A name a line.
    Plain,
    /// A file for Squid's `acl … ssl::server_name`.
    Squid,
}

impl Names {
    /// Every form.
    pub const ALL: [Self; 2] = [Self::Squid, Self::Plain];

    /// Returns its name in URLs and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "domains",
            Self::Squid => "squid-domains",
        }
    }

    /// Writes the names that `apps`, or all, open.
    pub fn render(self, catalogue: &Catalogue, apps: Option<&[AppId]>) -> Vec<u8> {
        let listed = catalogue
            .names()
            .filter(|listed| apps.is_none_or(|apps| apps.contains(listed.app)))
            .filter(|listed| is_open(catalogue, listed))
            .map(|listed| (listed.kind, listed.name));
        let lines = match self {
            Self::Plain => plain(listed),
            Self::Squid => squid(listed),
        };
        let mut text = Vec::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
        for line in lines {
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
        text
    }
}

fn plain(listed: impl Iterator<Item = (Kind, Name)>) -> BTreeSet<String> {
    listed
        .map(|(kind, name)| match kind {
            Kind::Below => format!("*.{name}"),
            Kind::Exact | Kind::Suffix | Kind::Never => name.to_string(),
        })
        .collect()
}

fn squid(listed: impl Iterator<Item = (Kind, Name)>) -> BTreeSet<String> {
    let listed: Vec<(Kind, Name)> = listed.filter(|(_, name)| is_host_name(name)).collect();
    let suffixes: HashSet<&[u8]> =
        listed.iter().filter(|(kind, _)| *kind != Kind::Exact).map(|(_, name)| name.as_wire()).collect();
    let is_covered = |kind: Kind, name: &Name| {
        let from = usize::from(kind != Kind::Exact);
        ancestors(name).skip(from).any(|ancestor| suffixes.contains(ancestor))
    };
    listed
        .iter()
        .filter(|(kind, name)| !is_covered(*kind, name))
        .map(|(kind, name)| if *kind == Kind::Exact { name.to_string() } else { format!(".{name}") })
        .collect()
}

/// Returns the wire form of the name, then of each one above it, without the root.
fn ancestors(name: &Name) -> impl Iterator<Item = &[u8]> {
    let mut rest = name.as_wire();
    std::iter::from_fn(move || {
        let at = rest;
        let len = usize::from(*at.first().filter(|len| **len > 0)?);
        rest = at.get(1 + len..)?;
        Some(at)
    })
}

/// Returns whether every label is made of letters, digits, `-` and `_` and does not look like an option.
fn is_host_name(name: &Name) -> bool {
    let is_plain = |label: &[u8]| label.iter().all(|octet| octet.is_ascii_alphanumeric() || b"-_".contains(octet));
    !name.is_root() && name.labels().all(|label| is_plain(label) && label.first() != Some(&b'-'))
}

/// Returns whether the trigger opens the name that it is written as: a `!` at the same name and `catalogue.never` close it.
fn is_open(catalogue: &Catalogue, listed: &ListedName<'_>) -> bool {
    let asked = match listed.kind {
        Kind::Below => match below(&listed.name) {
            Some(name) => name,
            // No name fits below it.
            None => return false,
        },
        _ => listed.name.clone(),
    };
    catalogue.find(&asked).is_some_and(|id| catalogue.tag(id).has_app(listed.app.as_str()))
}

/// Returns some name right below `name`.
fn below(name: &Name) -> Option<Name> {
    let wire = [b"\x01*", name.as_wire()].concat();
    Name::from_wire(&wire).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    fn catalogue(text: &str, never: &[&str]) -> Catalogue {
        let never = never.iter().map(|&name| name.to_owned()).collect();
        let options = catalogue::Options { never, ..catalogue::Options::default() };
        let lists = [("zones/demo.list", text.as_bytes())];
        catalogue::compile(lists, &options, jiff::civil::date(2027, 1, 15)).unwrap().catalogue
    }

    fn lines(names: Names, text: &str) -> Vec<String> {
        let bytes = names.render(&catalogue(text, &[]), None);
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn squid_gets_no_entry_that_another_covers() {
        let text = "example.com\n=a.example.com\n*.b.example.com\nx.y.b.example.com\n=example.com\n";
        assert_eq!(lines(Names::Squid, text), [".example.com"]);
        assert_eq!(lines(Names::Squid, "=example.net\n*.example.net\n"), [".example.net"]);
        assert_eq!(
            lines(Names::Squid, "=a.example.org\n=b.a.example.org\nc.example.org\n"),
            [".c.example.org", "a.example.org", "b.a.example.org"],
            "an exact name covers nothing but itself"
        );
        assert_eq!(lines(Names::Squid, "notexample.com\nexample.com\n"), [".example.com", ".notexample.com"]);
    }

    #[test]
    fn squid_gets_no_name_that_it_would_split_or_take_for_an_option() {
        let is_taken = |text: &str| !squid(std::iter::once((Kind::Exact, Name::parse(text).unwrap()))).is_empty();
        for name in ["a.example", "x_y.example", "xn--bcher-kva.example", "1.example", "a-.example"] {
            assert!(is_taken(name), "{name}");
        }
        for name in
            ["a\\032b.example", "x\\035y.example", "a\\.b.example", "-i.example", "*.example", "\\195.example", "."]
        {
            assert!(!is_taken(name), "{name}");
        }
    }

    #[test]
    fn closed_names_stand_in_no_form() {
        let catalogue = catalogue("a.example\nb.example\n!b.example\nc.example\n", &["c.example"]);
        assert_eq!(Names::Squid.render(&catalogue, None), b".a.example\n");
        assert_eq!(Names::Plain.render(&catalogue, None), b"a.example\n");
        assert_eq!(Names::Squid.render(&catalogue, Some(&[AppId::new("other")])), b"");
    }

    mod laws {
        use proptest::prelude::*;

        use super::*;

        fn name() -> impl Strategy<Value = String> {
            prop::collection::vec("[a-c]", 0..4).prop_map(|labels| {
                labels.into_iter().chain(["example".to_owned(), "org".to_owned()]).collect::<Vec<_>>().join(".")
            })
        }

        /// What Squid makes of an entry and a name (`matchDomainName`).
        fn opens(entry: &str, name: &str) -> bool {
            match entry.strip_prefix('.') {
                Some(suffix) => name == suffix || name.ends_with(entry),
                None => name == entry,
            }
        }

        proptest! {
            /// Pruning takes nothing away and leaves no two entries of which one covers the other.
            #[test]
            fn pruned_list_opens_the_same_names(triggers in prop::collection::vec(("[=*]?", name()), 1..12), asked in name()) {
                let text: String = triggers
                    .iter()
                    .map(|(sign, name)| format!("{}{name}\n", if sign == "*" { "*." } else { sign }))
                    .collect();
                let entries = lines(Names::Squid, &text);
                let is_listed = triggers.iter().any(|(sign, name)| {
                    let entry = if sign == "=" { name.clone() } else { format!(".{name}") };
                    opens(&entry, &asked)
                });
                prop_assert_eq!(entries.iter().any(|entry| opens(entry, &asked)), is_listed, "{:?} of {}", entries, text);
                for (i, entry) in entries.iter().enumerate() {
                    for other in entries.iter().skip(i + 1) {
                        let bare = |text: &str| text.trim_start_matches('.').to_owned();
                        prop_assert!(!opens(entry, &bare(other)) && !opens(other, &bare(entry)), "{entry} {other}");
                    }
                }
            }
        }
    }
}
