//! Counters and latencies of the upstreams.

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts};

use crate::metrics::Registry;

/// Why a try was of no use; the values of the metric label `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No reply within the try's patience.
    Timeout,
    /// The socket, the connection or the handshake failed.
    Network,
    /// The reply could not be walked, or was cut over TCP too.
    Malformed,
    /// The UDP reply was cut and there was none over TCP.
    Truncated,
    /// Not a try: a packet that answered another question and was dropped.
    Mismatch,
    /// Not a try: a packet that answered the question in other letters and was dropped.
    Letters,
    /// SERVFAIL.
    Servfail,
    /// REFUSED.
    Refused,
    /// Any other rcode but NOERROR, NXDOMAIN and YXDOMAIN.
    Rcode,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Timeout,
        Self::Network,
        Self::Malformed,
        Self::Truncated,
        Self::Mismatch,
        Self::Letters,
        Self::Servfail,
        Self::Refused,
        Self::Rcode,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Network => "network",
            Self::Malformed => "malformed",
            Self::Truncated => "truncated",
            Self::Mismatch => "mismatch",
            Self::Letters => "letters",
            Self::Servfail => "servfail",
            Self::Refused => "refused",
            Self::Rcode => "rcode",
        }
    }
}

/// The metrics of this part; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    seconds: HistogramVec,
    failures: IntCounterVec,
    let_off: IntCounterVec,
    /// Questions put to a second upstream because the first was late.
    pub(super) hedges: IntCounter,
}

impl Metrics {
    /// Registers them.
    pub(super) fn new(registry: &Registry) -> Self {
        let seconds = HistogramOpts::new(
            "greenlane_forward_upstream_seconds",
            "Time from a question to the upstream's reply, by the upstream's place in the configuration.",
        )
        .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
        let failures = Opts::new(
            "greenlane_forward_upstream_failures_total",
            "Tries that gave no usable reply, by the upstream's place in the configuration and what went wrong.",
        );
        let let_off = Opts::new(
            "greenlane_forward_case_fallbacks_total",
            "How often questions went out without random letter case for an hour, as the upstream did not repeat it.",
        );
        Self {
            seconds: registry.add(HistogramVec::new(seconds, &["upstream"])),
            failures: registry.add(IntCounterVec::new(failures, &["upstream", "kind"])),
            let_off: registry.add(IntCounterVec::new(let_off, &["upstream"])),
            hedges: registry.add(IntCounter::new(
                "greenlane_forward_hedges_total",
                "Questions put to a second upstream beside the first because that was later than 19 of 20 replies.",
            )),
        }
    }

    /// Takes those of the upstream at `place`, all at zero if they are new.
    pub(super) fn of(&self, place: &str) -> Tally {
        Tally {
            seconds: self.seconds.with_label_values(&[place]),
            let_off: self.let_off.with_label_values(&[place]),
            failures: Kind::ALL.map(|kind| self.failures.with_label_values(&[place, kind.label()])),
        }
    }
}

/// The metrics of one upstream.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// Latency of every reply that could be walked.
    pub(super) seconds: Histogram,
    /// How often it was let off repeating letters.
    pub(super) let_off: IntCounter,
    failures: [IntCounter; Kind::ALL.len()],
}

impl Tally {
    /// Returns the counter of one kind of failure.
    pub(super) fn failures(&self, kind: Kind) -> &IntCounter {
        // `Kind::ALL` lists the kinds in the order of their discriminants; a test holds it.
        &self.failures[kind as usize]
    }

    /// Returns how many tries failed in all.
    pub(super) fn failed(&self) -> u64 {
        Kind::ALL
            .into_iter()
            .filter(|&kind| !matches!(kind, Kind::Mismatch | Kind::Letters))
            .map(|kind| self.failures(kind).get())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_counter() {
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
        }
        let registry = Registry::new();
        let tally = Metrics::new(&registry).of("upstream-1");
        tally.failures(Kind::Refused).inc();
        tally.failures(Kind::Mismatch).inc();
        assert_eq!(tally.failed(), 1);
        let text = String::from_utf8(registry.render()).unwrap();
        assert!(text.contains(r#"upstream_failures_total{kind="refused",upstream="upstream-1"} 1"#), "{text}");
        assert!(text.contains(r#"upstream_failures_total{kind="timeout",upstream="upstream-1"} 0"#), "{text}");
    }
}
