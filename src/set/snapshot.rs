//! The set at one serial.
//!
//! A [`Snapshot`] holds static prefixes ([`StaticEntry`]) and learned hosts ([`Host`]), both sorted (IPv4 first, then
//! address, then length) and each once. Its members never change; a clone is one reference count. The times of its
//! sightings are live (see [`super::sighting`]). What is exported is its union, aggregated without loss, as far as a
//! [`Selection`] asks for it.

use std::iter::Peekable;
use std::net::IpAddr;
use std::sync::Arc;

use super::aggregate::Aggregate;
use super::serial::Session;
use super::sighting::Host;
use super::tree::Tree;
use crate::catalogue::AppId;
use crate::clock::Timestamp;
use crate::prefix::{Family, Prefix};

/// A static prefix and the apps that list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticEntry {
    /// The prefix as listed.
    pub prefix: Prefix,
    /// The apps, sorted, each once; at least one.
    pub apps: Arc<[AppId]>,
}

/// Where an entry of the set comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A prefix written in a list.
    Static,
    /// An address learned from an answer.
    Learned,
}

impl Origin {
    /// Returns `static` or `learned`, as used in metric labels, query strings and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Learned => "learned",
        }
    }
}

/// Which part of the set is asked for; by default all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// One IP version only.
    pub family: Option<Family>,
    /// Only what one of these apps wants; an empty list selects nothing.
    pub apps: Option<Vec<AppId>>,
    /// One origin only.
    pub origin: Option<Origin>,
}

impl Selection {
    /// Returns whether the static prefix is asked for.
    pub fn has_static(&self, entry: &StaticEntry) -> bool {
        self.origin != Some(Origin::Learned)
            && self.has_family(entry.prefix.family())
            && self.apps.as_ref().is_none_or(|apps| entry.apps.iter().any(|app| apps.contains(app)))
    }

    /// Returns whether the host is asked for.
    pub fn has_host(&self, host: &Host) -> bool {
        self.origin != Some(Origin::Static) && self.has_family(Family::of(host.addr())) && self.has_apps_of(host)
    }

    fn has_family(&self, family: Family) -> bool {
        self.family.is_none_or(|asked| asked == family)
    }

    fn has_apps_of(&self, host: &Host) -> bool {
        self.apps.as_ref().is_none_or(|apps| host.has_any_app(apps))
    }
}

/// The set at one serial; immutable, cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshot(Arc<Content>);

#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) session: Session,
    pub(crate) serial: u64,
    pub(crate) changed: Timestamp,
    pub(crate) statics: Arc<[StaticEntry]>,
    pub(crate) hosts: Tree,
}

impl Snapshot {
    pub(crate) fn new(content: Content) -> Self {
        Self(Arc::new(content))
    }

    /// Returns the session that the serial counts in.
    pub fn session(&self) -> Session {
        self.0.session
    }

    /// Returns the serial.
    pub fn serial(&self) -> u64 {
        self.0.serial
    }

    /// Returns when this serial came: the time of the last change of members.
    pub fn changed(&self) -> Timestamp {
        self.0.changed
    }

    /// Returns the static prefixes, sorted, each once.
    pub fn statics(&self) -> &[StaticEntry] {
        &self.0.statics
    }

    /// Returns the learned hosts, sorted by address, IPv4 first.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> + Clone {
        self.0.hosts.iter()
    }

    /// Returns the learned host at `addr`.
    pub fn host(&self, addr: IpAddr) -> Option<&Host> {
        self.0.hosts.get(addr)
    }

    /// Returns how many learned hosts there are of one IP version.
    pub fn host_count(&self, family: Family) -> usize {
        self.0.hosts.count(family)
    }

    /// Returns the fewest prefixes that cover exactly what is asked for, sorted, none inside another.
    ///
    /// Linear in the set; call it off the threads that answer DNS.
    pub fn prefixes(&self, which: &Selection) -> Vec<Prefix> {
        let mut statics = self.statics().iter().filter(|entry| which.has_static(entry)).peekable();
        let mut all = Aggregate::with_capacity(self.capacity(which));
        if which.origin != Some(Origin::Static) {
            for (addr, host) in self.0.hosts.iter_with_addr() {
                if which.has_family(Family::of(addr)) && which.has_apps_of(host) {
                    push_until(&mut all, &mut statics, addr);
                    all.push_host(addr);
                }
            }
        }
        for entry in statics {
            all.push(entry.prefix);
        }
        all.finish()
    }
}

impl Snapshot {
    /// Guesses how many prefixes a selection has: exact for the whole set of hosts that are no neighbours.
    fn capacity(&self, which: &Selection) -> usize {
        if which.apps.is_some() || which.origin == Some(Origin::Static) {
            return 0;
        }
        let hosts = which.family.map_or_else(|| self.0.hosts.len(), |family| self.host_count(family));
        hosts + self.statics().len()
    }
}

/// Pushes the static prefixes that sort no later than the host at `addr`.
fn push_until<'a>(all: &mut Aggregate, statics: &mut Peekable<impl Iterator<Item = &'a StaticEntry>>, addr: IpAddr) {
    while let Some(entry) = statics.next_if(|entry| entry.prefix <= Prefix::host(addr)) {
        all.push(entry.prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{START, addr, draft, entry, record, sighting};
    use super::*;

    fn snapshot() -> Snapshot {
        let mut draft = draft();
        draft.set_statics(vec![
            entry("192.0.0.2/32", &["zoom"]),
            entry("192.0.0.8/29", &["webex"]),
            entry("2001:db8::/127", &["zoom", "webex"]),
        ]);
        for (n, is_v4, app) in [(3, true, "zoom"), (1, true, "zoom"), (9, true, "zoom"), (3, false, "teams")] {
            draft.insert(sighting(addr(n, is_v4), &record(&format!("n{n}.test"), &[app]), START));
        }
        draft.commit(START);
        draft.reader().snapshot()
    }

    fn prefixes(which: &Selection) -> Vec<String> {
        snapshot().prefixes(which).iter().map(Prefix::to_string).collect()
    }

    #[test]
    fn members_are_sorted_and_found() {
        let snapshot = snapshot();
        let hosts: Vec<IpAddr> = snapshot.hosts().map(Host::addr).collect();
        assert_eq!(hosts, [addr(1, true), addr(3, true), addr(9, true), addr(3, false)]);
        assert_eq!((snapshot.host_count(Family::V4), snapshot.host_count(Family::V6)), (3, 1));
        assert!(snapshot.host(addr(9, true)).is_some() && snapshot.host(addr(9, false)).is_none());
    }

    #[test]
    fn selections_choose_by_family_app_and_origin() {
        let all = Selection::default();
        assert_eq!(
            prefixes(&all),
            ["192.0.0.1/32", "192.0.0.2/31", "192.0.0.8/29", "2001:db8::/127", "2001:db8::3/128"]
        );
        let statics = Selection { origin: Some(Origin::Static), ..all.clone() };
        assert_eq!(prefixes(&statics), ["192.0.0.2/32", "192.0.0.8/29", "2001:db8::/127"]);
        let learned = Selection { origin: Some(Origin::Learned), family: Some(Family::V4), ..all.clone() };
        assert_eq!(prefixes(&learned), ["192.0.0.1/32", "192.0.0.3/32", "192.0.0.9/32"]);
        let webex = Selection { apps: Some(vec![AppId::new("webex")]), ..all.clone() };
        assert_eq!(prefixes(&webex), ["192.0.0.8/29", "2001:db8::/127"]);
        let zoom = Selection { apps: Some(vec![AppId::new("zoom"), AppId::new("teams")]), ..all.clone() };
        assert_eq!(
            prefixes(&zoom),
            ["192.0.0.1/32", "192.0.0.2/31", "192.0.0.9/32", "2001:db8::/127", "2001:db8::3/128"]
        );
        assert!(prefixes(&Selection { apps: Some(Vec::new()), ..all }).is_empty());
    }
}
