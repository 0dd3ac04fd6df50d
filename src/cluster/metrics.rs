//! What the cluster counts.

use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts};

use crate::learn::Hearing;
use crate::metrics::Registry;

/// Upper bounds in seconds: from the same rack to what is an outage.
const LAG_BUCKETS: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0];

/// The counters of the cluster; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    /// Whether the engine is there and everything was compared.
    pub(super) up: IntGauge,
    /// Other resolvers that are there.
    pub(super) peers: IntGauge,
    /// Those of them with other lists.
    pub(super) peers_differing: IntGauge,
    /// Changes that wait to be sent.
    pub(super) queue: IntGauge,
    /// Changes that were sent.
    pub(super) sent: IntCounter,
    /// Removals that found no room.
    pub(super) dropped: IntCounter,
    /// Times that everything was compared.
    pub(super) merges: IntCounter,
    /// Outages, and connections that failed.
    pub(super) errors: IntCounter,
    /// How long a change takes until it comes back by the stream.
    pub(super) lag: Histogram,
    /// How far the engine's clock is ahead of ours, in seconds.
    pub(super) clock_offset: Gauge,
    received: IntCounterVec,
    octets: IntCounterVec,
}

/// What became of what came, besides what learning says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is nothing that a greenlane writes.
    Malformed,
    /// Its end is farther ahead than any can be.
    TooFar,
    /// No list has its name here.
    Unlisted,
    /// The address may not be learned.
    Inadmissible,
}

impl Refused {
    fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooFar => "too-far",
            Self::Unlisted => "unlisted",
            Self::Inadmissible => "inadmissible",
        }
    }
}

impl Metrics {
    /// Registers the counters; every label value is shown from the start, as zero.
    pub(super) fn new(registry: &Registry) -> Self {
        let gauge = |name: &str, help: &str| registry.add(IntGauge::new(name, help));
        let counter = |name: &str, help: &str| registry.add(IntCounter::new(name, help));
        let received = registry.add(IntCounterVec::new(
            Opts::new("greenlane_cluster_received_total", "What came from the cluster by what became of it."),
            &["result"],
        ));
        let results = ["learned", "renewed", "removed", "kept", "idle", "full"];
        let refused = [Refused::Malformed, Refused::TooFar, Refused::Unlisted, Refused::Inadmissible];
        for result in results.into_iter().chain(refused.map(Refused::as_str)) {
            let _ = received.with_label_values(&[result]);
        }
        let octets = registry.add(IntCounterVec::new(
            Opts::new("greenlane_cluster_bytes_total", "Octets exchanged with the engine of the cluster."),
            &["direction"],
        ));
        let lag = HistogramOpts::new(
            "greenlane_cluster_lag_seconds",
            "Time from a change here until it came back from the engine by the stream that all resolvers read.",
        );
        Self {
            up: gauge("greenlane_cluster_up", "Whether the engine of the cluster is there and the sets were compared."),
            peers: gauge("greenlane_cluster_peers", "Other resolvers of the cluster that are there."),
            peers_differing: gauge("greenlane_cluster_peers_differing", "Those of them whose lists differ from ours."),
            queue: gauge("greenlane_cluster_queue", "Changes that wait to be sent to the cluster."),
            sent: counter("greenlane_cluster_sent_total", "Changes sent to the cluster."),
            dropped: counter(
                "greenlane_cluster_dropped_total",
                "Removals that found no room in the queue; their addresses stay elsewhere until their ends.",
            ),
            merges: counter("greenlane_cluster_merges_total", "Times that our set was compared with the cluster's."),
            errors: counter("greenlane_cluster_errors_total", "Connections to the engine that failed or broke."),
            lag: registry.add(Histogram::with_opts(lag.buckets(LAG_BUCKETS.to_vec()))),
            clock_offset: registry.add(Gauge::new(
                "greenlane_cluster_clock_offset_seconds",
                "How far the clock of the engine's host is ahead of ours.",
            )),
            received,
            octets,
        }
    }

    /// Returns the counters of octets that come and go.
    pub(super) fn octets(&self) -> [IntCounter; 2] {
        ["in", "out"].map(|direction| self.octets.with_label_values(&[direction]))
    }

    /// Counts something that was refused before the set was asked.
    pub(super) fn refused(&self, refused: Refused, count: u64) {
        self.received.with_label_values(&[refused.as_str()]).inc_by(count);
    }

    /// Counts what the set made of what came.
    pub(super) fn heard(&self, hearing: &Hearing) {
        let counts = [
            ("learned", hearing.learned),
            ("renewed", hearing.renewed),
            ("removed", hearing.removed),
            ("kept", hearing.kept),
            ("idle", hearing.idle),
            ("full", hearing.full),
            (Refused::Unlisted.as_str(), hearing.unlisted),
            (Refused::Inadmissible.as_str(), hearing.inadmissible),
        ];
        for (result, count) in counts {
            self.received.with_label_values(&[result]).inc_by(count);
        }
    }
}
