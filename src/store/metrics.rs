//! What the store counts.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts};

use crate::metrics::Registry;

/// Upper bounds in seconds: from an append to the kernel's memory to a disk that hangs.
const BUCKETS: [f64; 12] = [0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0];

/// The metrics of the store.
#[derive(Clone, Debug)]
pub struct Metrics {
    commits: IntCounterVec,
    checkpoints: IntCounterVec,
    /// How long a batch of changes took to be kept.
    pub(super) commit_seconds: Histogram,
    /// Sightings in the database.
    pub(super) sightings: IntGauge,
    /// The octets of database and journals.
    pub(super) file_bytes: IntGauge,
}

impl Metrics {
    /// Registers the metrics; once a registry.
    pub fn new(registry: &Registry) -> Self {
        let by_result = |name: &str, help: &str| {
            let counter = registry.add(IntCounterVec::new(Opts::new(name, help), &["result"]));
            for result in ["done", "failed"] {
                let _ = counter.with_label_values(&[result]);
            }
            counter
        };
        let seconds =
            HistogramOpts::new("greenlane_store_commit_seconds", "Time that a batch of changes took to be kept.");
        Self {
            commits: by_result("greenlane_store_commits_total", "Batches of changes given to the store, by result."),
            checkpoints: by_result(
                "greenlane_store_checkpoints_total",
                "Writes of the journal's changes into the database, by result.",
            ),
            commit_seconds: registry.add(Histogram::with_opts(seconds.buckets(BUCKETS.to_vec()))),
            sightings: registry
                .add(IntGauge::new("greenlane_store_sightings", "Sightings in the database, about a second behind.")),
            file_bytes: registry.add(IntGauge::new(
                "greenlane_store_file_bytes",
                "Octets of the store's files: database and journals.",
            )),
        }
    }

    pub(super) fn committed(&self, is_done: bool) {
        self.commits.with_label_values(&[result(is_done)]).inc();
    }

    pub(super) fn checkpointed(&self, is_done: bool) {
        self.checkpoints.with_label_values(&[result(is_done)]).inc();
    }
}

fn result(is_done: bool) -> &'static str {
    if is_done { "done" } else { "failed" }
}
