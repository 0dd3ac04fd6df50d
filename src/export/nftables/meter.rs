//! What programming the kernel counts, for all engines of one daemon.

use std::time::Duration;

use nix::errno::Errno;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
};

use crate::metrics::Registry;

/// Upper bounds in seconds: from one element in a quiet kernel to a commit behind another's.
const COMMIT_BUCKETS: [f64; 12] = [0.000_05, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 2.0];

/// The metrics of all engines of a daemon, one series each a table; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    elements: IntGaugeVec,
    transactions: IntCounterVec,
    seconds: HistogramVec,
    failures: IntCounterVec,
    repairs: IntCounterVec,
    unexplained: IntGaugeVec,
    last_compare: GaugeVec,
    up: IntGaugeVec,
}

/// Kinds of failures.
const KINDS: [&str; 9] = ["privilege", "unsupported", "absent", "full", "exists", "busy", "lost", "invalid", "other"];

impl Metrics {
    /// Registers the metrics; once a registry.
    pub fn new(registry: &Registry) -> Self {
        let counters =
            |name: &str, help: &str, labels: &[&str]| registry.add(IntCounterVec::new(Opts::new(name, help), labels));
        let gauges =
            |name: &str, help: &str, labels: &[&str]| registry.add(IntGaugeVec::new(Opts::new(name, help), labels));
        let seconds = HistogramOpts::new(
            "greenlane_nftables_transaction_seconds",
            "Time that the kernel took for each transaction.",
        );
        let last_compare = Opts::new(
            "greenlane_nftables_last_compare_timestamp_seconds",
            "When the kernel was last compared with what it should hold.",
        );
        Self {
            elements: gauges(
                "greenlane_nftables_elements",
                "Elements of ours in each set of the kernel.",
                &["table", "set"],
            ),
            transactions: counters(
                "greenlane_nftables_transactions_total",
                "Transactions given to the kernel, by result.",
                &["table", "result"],
            ),
            seconds: registry.add(HistogramVec::new(seconds.buckets(COMMIT_BUCKETS.to_vec()), &["table"])),
            failures: counters(
                "greenlane_nftables_failures_total",
                "What the kernel refused, by kind: elements, or transactions as such; `lost`: what it told unheard.",
                &["table", "kind"],
            ),
            repairs: counters(
                "greenlane_nftables_repairs_total",
                "Times that the kernel did not hold what it should and was put right.",
                &["table"],
            ),
            unexplained: gauges(
                "greenlane_nftables_unexplained_elements",
                "Elements found at the start that nobody knows of; they stay until they time out.",
                &["table"],
            ),
            last_compare: registry.add(GaugeVec::new(last_compare, &["table"])),
            up: gauges("greenlane_nftables_up", "1 while the kernel holds everything that it should.", &["table"]),
        }
    }

    /// Returns what one engine counts; `table` as in `inet greenlane`.
    pub(super) fn of(&self, table: &str) -> Meter {
        let counter = |counters: &IntCounterVec, value: &str| counters.with_label_values(&[table, value]);
        Meter {
            table: table.to_owned(),
            elements: self.elements.clone(),
            done: counter(&self.transactions, "done"),
            failed: counter(&self.transactions, "failed"),
            seconds: self.seconds.with_label_values(&[table]),
            failures: KINDS.map(|kind| counter(&self.failures, kind)),
            repairs: self.repairs.with_label_values(&[table]),
            unexplained: self.unexplained.with_label_values(&[table]),
            last_compare: self.last_compare.with_label_values(&[table]),
            up: self.up.with_label_values(&[table]),
        }
    }
}

/// What one engine counts.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    table: String,
    elements: IntGaugeVec,
    done: IntCounter,
    failed: IntCounter,
    seconds: Histogram,
    /// By [`KINDS`].
    failures: [IntCounter; KINDS.len()],
    pub(super) repairs: IntCounter,
    pub(super) unexplained: IntGauge,
    last_compare: Gauge,
    pub(super) up: IntGauge,
}

impl Meter {
    pub(super) fn elements(&self, set: &str, count: usize) {
        self.elements.with_label_values(&[self.table.as_str(), set]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn committed(&self, is_done: bool, took: Duration) {
        if is_done { &self.done } else { &self.failed }.inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn failed(&self, errno: Errno) {
        let kind = kind(errno);
        self.failures.iter().zip(KINDS).filter(|(_, known)| *known == kind).for_each(|(counter, _)| counter.inc());
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
