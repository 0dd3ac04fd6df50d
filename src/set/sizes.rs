//! How large the set is, counted as it changes.
//!
//! The gauges are moved by what a commit changed; no commit walks the set to count it.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use prometheus::{IntGauge, IntGaugeVec, Opts};

use super::delta::{Delta, Item};
use super::sighting::Host;
use super::snapshot::Origin;
use crate::catalogue::AppId;
use crate::metrics::Registry;
use crate::prefix::Family;

/// The gauges of the set.
#[derive(Debug)]
pub(crate) struct Sizes {
    entries: [IntGauge; 4],
    app_entries: IntGaugeVec,
    /// Handles by app, family and origin: looking one up by its label values costs an allocation.
    by_app: HashMap<AppId, [IntGauge; 4], RandomState>,
    serial: IntGauge,
    sightings: IntGauge,
}

impl Sizes {
    /// Registers the gauges.
    pub(crate) fn new(registry: &Registry) -> Self {
        let entries = registry.add(IntGaugeVec::new(
            Opts::new("greenlane_set_entries", "Static prefixes and learned hosts in the set."),
            &["family", "origin"],
        ));
        let app_entries = registry.add(IntGaugeVec::new(
            Opts::new("greenlane_set_app_entries", "Static prefixes and learned hosts in the set by app."),
            &["app", "family", "origin"],
        ));
        let serial = registry.add(IntGauge::new("greenlane_set_serial", "Serial of the current snapshot."));
        let sightings =
            registry.add(IntGauge::new("greenlane_set_sightings", "Sightings: pairs of a learned host and a name."));
        let entries = KINDS.map(|(family, origin)| entries.with_label_values(&[family.digit(), origin.as_str()]));
        Self { entries, app_entries, by_app: HashMap::default(), serial, sightings }
    }

    /// Counts what a commit changed.
    pub(crate) fn count(&mut self, delta: &Delta) {
        for item in delta.withdrawn.iter().chain(&delta.replaced) {
            self.add(item, -1);
        }
        for item in &delta.announced {
            self.add(item, 1);
        }
        self.serial.set(i64::try_from(delta.to).unwrap_or(i64::MAX));
    }

    /// Tells how many sightings there are.
    pub(crate) fn set_sightings(&self, count: usize) {
        self.sightings.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts hosts that a set begins with.
    pub(crate) fn add_run(&mut self, run: &Run) {
        self.add_kind(kind(run.family, Origin::Learned), &run.apps, run.count);
    }

    fn add(&mut self, item: &Item, count: i64) {
        let (family, origin) = match item {
            Item::Static { prefix, .. } => (prefix.family(), Origin::Static),
            Item::Host { addr, .. } => (Family::of(*addr), Origin::Learned),
        };
        self.add_kind(kind(family, origin), item.apps(), count);
    }

    fn add_kind(&mut self, kind: usize, apps: &[AppId], count: i64) {
        self.entries[kind].add(count);
        for app in apps {
            if !self.by_app.contains_key(app) {
                let gauge = |(family, origin): (Family, Origin)| {
                    self.app_entries.with_label_values(&[app.as_str(), family.digit(), origin.as_str()])
                };
                self.by_app.insert(app.clone(), KINDS.map(gauge));
            }
            if let Some(gauges) = self.by_app.get(app) {
                gauges[kind].add(count);
            }
        }
    }
}

/// Hosts of one family that the same apps want.
#[derive(Debug)]
pub(crate) struct Run {
    family: Family,
    apps: Arc<[AppId]>,
    count: i64,
}

impl Run {
    /// Begins with a host.
    pub(crate) fn new(host: &Host) -> Self {
        Self { family: Family::of(host.addr()), apps: host.apps(), count: 1 }
    }

    /// Takes another host in, if it is alike at one look.
    pub(crate) fn takes(&mut self, host: &Host) -> bool {
        let [one] = host.sightings() else { return false };
        let is_like = Arc::ptr_eq(one.record().apps(), &self.apps) && Family::of(host.addr()) == self.family;
        self.count += i64::from(is_like);
        is_like
    }
}

/// Each family with each origin, in the order of [`kind`].
const KINDS: [(Family, Origin); 4] = [
    (Family::V4, Origin::Static),
    (Family::V4, Origin::Learned),
    (Family::V6, Origin::Static),
    (Family::V6, Origin::Learned),
];

fn kind(family: Family, origin: Origin) -> usize {
    2 * usize::from(family == Family::V6) + usize::from(origin == Origin::Learned)
}
