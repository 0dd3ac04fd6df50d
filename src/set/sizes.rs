//! How large the set is, counted as it changes.
//!
//! The gauges are moved by what a commit changed; no commit walks the set to count it.

use std::collections::HashMap;

use prometheus::{IntGauge, IntGaugeVec, Opts};

use super::delta::{Delta, Item};
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
    by_app: HashMap<AppId, [IntGauge; 4]>,
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
        Self { entries, app_entries, by_app: HashMap::new(), serial, sightings }
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

    fn add(&mut self, item: &Item, count: i64) {
        let kind = kind(item.prefix().family(), item.origin());
        self.entries[kind].add(count);
        for app in item.apps().iter() {
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
