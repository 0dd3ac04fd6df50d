//! What learning counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts};

use super::Outcome;
use super::admit::Reason;
use crate::metrics::Registry;

/// Upper bounds in seconds: around the usual hold of 100 ms, and what a quick writer takes.
const HOLD_BUCKETS: [f64; 10] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];

/// The counters of learning; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    offers: IntCounterVec,
    refused: IntCounterVec,
    /// Sightings that were new.
    pub(crate) admitted: IntCounter,
    /// Sightings that left before their end to make room.
    pub(crate) evicted: IntCounter,
    /// How long answers waited for the writer.
    pub(crate) hold: Histogram,
}

impl Metrics {
    /// Registers the counters; every label value is shown from the start, as zero.
    pub(crate) fn new(registry: &Registry) -> Self {
        let offers = registry.add(IntCounterVec::new(
            Opts::new("greenlane_learn_offers_total", "Answers offered to the set by outcome."),
            &["outcome"],
        ));
        let refused = registry.add(IntCounterVec::new(
            Opts::new("greenlane_learn_refused_total", "Addresses not learned by reason."),
            &["reason"],
        ));
        for outcome in [Outcome::Programmed, Outcome::Late, Outcome::Refused] {
            let _ = offers.with_label_values(&[outcome.as_str()]);
        }
        for reason in Reason::labels() {
            let _ = refused.with_label_values(&[reason]);
        }
        let hold = HistogramOpts::new("greenlane_learn_hold_seconds", "Time that answers with new addresses waited.");
        Self {
            offers,
            refused,
            admitted: registry.add(IntCounter::new("greenlane_learn_admitted_total", "Sightings learned.")),
            evicted: registry
                .add(IntCounter::new("greenlane_learn_evicted_total", "Sightings that left early to make room.")),
            hold: registry.add(Histogram::with_opts(hold.buckets(HOLD_BUCKETS.to_vec()))),
        }
    }

    pub(crate) fn offered(&self, outcome: Outcome) {
        self.offers.with_label_values(&[outcome.as_str()]).inc();
    }

    pub(crate) fn refused(&self, reason: impl Into<Reason>, count: usize) {
        self.refused.with_label_values(&[reason.into().as_str()]).inc_by(count as u64);
    }
}
