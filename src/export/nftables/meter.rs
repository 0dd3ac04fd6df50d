//! What programming the kernel counts, for all engines of one daemon.

use std::time::Duration;

use nix::errno::Errno;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use crate::metrics::Registry;

/// Upper bounds in seconds: from one element in a quiet kernel to a commit behind another's.
const COMMIT_BUCKETS: [f64; 12] = [0.000_05, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 2.0];

/// The metrics; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    elements: IntGaugeVec,
    transactions: IntCounterVec,
    seconds: Histogram,
    failures: IntCounterVec,
    pub(super) repairs: IntCounter,
    pub(super) unexplained: IntGauge,
    last_compare: Gauge,
    pub(super) up: IntGauge,
}

/// Kinds of failures.
const KINDS: [&str; 9] = ["privilege", "unsupported", "absent", "full", "exists", "busy", "lost", "invalid", "other"];

impl Metrics {
    /// Registers the metrics; once a registry.
    pub fn new(registry: &Registry) -> Self {
        let counters = |name: &str, help: &str, label: &str, values: &[&str]| {
            let counters = registry.add(IntCounterVec::new(Opts::new(name, help), &[label]));
            for value in values {
                counters.with_label_values(&[*value]);
            }
            counters
        };
        let elements = Opts::new("greenlane_nftables_elements", "Elements of ours in each set of the kernel.");
        let seconds = HistogramOpts::new(
            "greenlane_nftables_transaction_seconds",
            "Time that the kernel took for each transaction.",
        );
        Self {
            elements: registry.add(IntGaugeVec::new(elements, &["set"])),
            transactions: counters(
                "greenlane_nftables_transactions_total",
                "Transactions given to the kernel, by result.",
                "result",
                &["done", "failed"],
            ),
            seconds: registry.add(Histogram::with_opts(seconds.buckets(COMMIT_BUCKETS.to_vec()))),
            failures: counters(
                "greenlane_nftables_failures_total",
                "What the kernel refused, by kind: elements, or transactions as such.",
                "kind",
                &KINDS,
            ),
            repairs: registry.add(IntCounter::new(
                "greenlane_nftables_repairs_total",
                "Times that the kernel did not hold what it should and was put right.",
            )),
            unexplained: registry.add(IntGauge::new(
                "greenlane_nftables_unexplained_elements",
                "Elements found at the start that nobody knows of; they stay until they time out.",
            )),
            last_compare: registry.add(Gauge::new(
                "greenlane_nftables_last_compare_timestamp_seconds",
                "When the kernel was last compared with what it should hold.",
            )),
            up: registry
                .add(IntGauge::new("greenlane_nftables_up", "1 while the kernel holds everything that it should.")),
        }
    }

    pub(super) fn elements(&self, set: &str, count: usize) {
        self.elements.with_label_values(&[set]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn committed(&self, is_done: bool, took: Duration) {
        self.transactions.with_label_values(&[if is_done { "done" } else { "failed" }]).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn failed(&self, errno: Errno) {
        self.failures.with_label_values(&[kind(errno)]).inc();
    }

    pub(super) fn compared(&self, now: crate::clock::Timestamp) {
        self.last_compare.set(now.as_millis() as f64 / 1000.0);
    }
}

fn kind(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => "privilege",
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => "unsupported",
        Errno::ENOENT => "absent",
        Errno::ENFILE | Errno::ENOSPC | Errno::ENOMEM => "full",
        Errno::EEXIST => "exists",
        Errno::EBUSY | Errno::EAGAIN | Errno::EINTR => "busy",
        Errno::ENOBUFS => "lost",
        Errno::EINVAL | Errno::ERANGE => "invalid",
        _ => "other",
    }
}
