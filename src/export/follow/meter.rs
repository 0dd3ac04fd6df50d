//! What following counts.

use std::time::Duration;

use prometheus::{Gauge, GaugeVec, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::acks::Acked;
use super::book::{Book, Source};
use super::client::Failure;
use super::gate::{Refusal, Refusals};
use crate::clock::Timestamp;
use crate::metrics::Registry;
use crate::prefix::Family;

/// Upper bounds in seconds: from one element in a quiet kernel to what nobody wants to wait for.
const LAG_BUCKETS: [f64; 10] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0];

/// The metrics of one follower; resolvers stand in them by their place on the command line.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    followed: IntGaugeVec,
    serial: IntGaugeVec,
    contact: GaugeVec,
    sessions: IntCounterVec,
    failures: IntCounterVec,
    refused: IntCounterVec,
    entries: IntGaugeVec,
    changes: IntCounterVec,
    acks: IntCounterVec,
    lag: Histogram,
    leased: IntGauge,
    applied: Gauge,
}

impl Metrics {
    pub(super) fn new(registry: &Registry, sources: usize) -> Self {
        let gauges =
            |name: &str, help: &str, labels: &[&str]| registry.add(IntGaugeVec::new(Opts::new(name, help), labels));
        let counters =
            |name: &str, help: &str, labels: &[&str]| registry.add(IntCounterVec::new(Opts::new(name, help), labels));
        let lag = HistogramOpts::new(
            "greenlane_sync_lag_seconds",
            "Time from the arrival of a change to the moment that every sink held it.",
        );
        let contact = Opts::new(
            "greenlane_sync_contact_timestamp_seconds",
            "When something came from the resolver last; 0 if nothing did.",
        );
        let metrics = Self {
            followed: gauges("greenlane_sync_followed", "Whether the resolver is followed now.", &["resolver"]),
            serial: gauges("greenlane_sync_serial", "The serial of the resolver's set that is merged.", &["resolver"]),
            contact: registry.add(GaugeVec::new(contact, &["resolver"])),
            sessions: counters(
                "greenlane_sync_sessions_total",
                "Sessions of the resolver that were seen.",
                &["resolver"],
            ),
            failures: counters(
                "greenlane_sync_failures_total",
                "Times that the resolver could not be followed, by kind.",
                &["resolver", "kind"],
            ),
            refused: counters(
                "greenlane_sync_refused_total",
                "Addresses and prefixes that resolvers told and that were not taken, by reason.",
                &["reason"],
            ),
            entries: gauges("greenlane_sync_entries", "Learned hosts and static prefixes held.", &["family", "origin"]),
            changes: counters("greenlane_sync_changes_total", "Changes given to the sinks, by result.", &["result"]),
            acks: counters(
                "greenlane_sync_acks_total",
                "Times that the resolver was told what is held here, by result.",
                &["resolver", "result"],
            ),
            lag: registry.add(Histogram::with_opts(lag.buckets(LAG_BUCKETS.to_vec()))),
            leased: registry
                .add(IntGauge::new("greenlane_sync_leased", "1 while hosts are held because no resolver answers.")),
            applied: registry.add(Gauge::new(
                "greenlane_sync_applied_timestamp_seconds",
                "When every sink held everything last; 0 if never.",
            )),
        };
        metrics.show_zeros(sources);
        metrics
    }

    /// Shows every series from the start: an increase from nothing to one is none to an alert.
    fn show_zeros(&self, sources: usize) {
        for source in 0..sources {
            let name = name(source);
            self.followed.with_label_values(&[&name]);
            self.serial.with_label_values(&[&name]);
            self.contact.with_label_values(&[&name]);
            self.sessions.with_label_values(&[&name]);
            for acked in Acked::ALL {
                self.acks.with_label_values(&[name.as_str(), acked.as_str()]);
            }
            for kind in Failure::KINDS {
                self.failures.with_label_values(&[name.as_str(), kind]);
            }
        }
        for reason in Refusal::labels() {
            self.refused.with_label_values(&[reason]);
        }
        for result in ["held", "failed"] {
            self.changes.with_label_values(&[result]);
        }
    }

    pub(super) fn heard(&self, source: Source, now: Timestamp) {
        self.contact.with_label_values(&[&name(source)]).set(seconds(now));
    }

    /// Its stream is open; asking for the set alone is not following.
    pub(super) fn followed(&self, source: Source) {
        self.followed.with_label_values(&[&name(source)]).set(1);
    }

    pub(super) fn told(&self, source: Source, serial: u64, is_new_session: bool) {
        let name = name(source);
        self.serial.with_label_values(&[&name]).set(i64::try_from(serial).unwrap_or(i64::MAX));
        self.sessions.with_label_values(&[&name]).inc_by(u64::from(is_new_session));
    }

    pub(super) fn failed(&self, source: Source, failure: &Failure) {
        let name = name(source);
        self.followed.with_label_values(&[&name]).set(0);
        self.failures.with_label_values(&[name.as_str(), failure.kind()]).inc();
    }

    pub(super) fn acked(&self, source: Source, acked: Acked) {
        self.acks.with_label_values(&[name(source).as_str(), acked.as_str()]).inc();
    }

    pub(super) fn refused(&self, refusals: &Refusals) {
        refusals.iter().for_each(|(reason, count)| self.refused.with_label_values(&[reason]).inc_by(count));
    }

    pub(super) fn answered(&self, is_held: bool, took: Duration, now: Timestamp) {
        self.changes.with_label_values(&[if is_held { "held" } else { "failed" }]).inc();
        if is_held {
            self.lag.observe(took.as_secs_f64());
            self.applied.set(seconds(now));
        }
    }

    pub(super) fn show(&self, book: &Book, now: Timestamp) {
        for family in [Family::V4, Family::V6] {
            let (hosts, statics) = book.counts(family);
            for (origin, count) in [("learned", hosts), ("static", statics)] {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.entries.with_label_values(&[family.digit(), origin]).set(count);
            }
        }
        self.leased.set(i64::from(book.floor().is_some_and(|floor| floor > now)));
    }
}

/// Names a resolver by its place, without its address.
pub(super) fn name(source: Source) -> String {
    format!("resolver-{}", source + 1)
}

fn seconds(now: Timestamp) -> f64 {
    now.as_millis() as f64 / 1000.0
}
