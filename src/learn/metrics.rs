//! What learning counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::Outcome;
use super::admit::Reason;
use crate::metrics::Registry;

/// Upper bounds in seconds: around the usual hold of 100 ms, and what a quick writer takes.
const HOLD_BUCKETS: [f64; 10] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];

/// Upper bounds in seconds: from one on the same machine to what no answer waits for.
const ACK_BUCKETS: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 2.0];

/// The name that followers have together where sinks are counted.
pub(crate) const FOLLOWERS: &str = "followers";

/// The counters of learning; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// By outcome: looking one up by its label costs more than counting it.
    offers: [IntCounter; 3],
    refused: IntCounterVec,
    /// Sightings that were new.
    pub(crate) admitted: IntCounter,
    /// Sightings that left before their end to make room.
    pub(crate) evicted: IntCounter,
    /// How long answers waited for the writer.
    pub(crate) hold: Histogram,
    /// Entries kept until a shrink is confirmed.
    pub(crate) shrink_held: IntGauge,
    /// Whether answers wait for a sink.
    pub(crate) sink_waited: IntGaugeVec,
    /// Changes that a sink did not hold in time.
    pub(crate) sink_late: IntCounterVec,
    /// Changes that a sink failed to hold.
    pub(crate) sink_failed: IntCounterVec,
    /// How long followers took to acknowledge.
    pub(crate) ack: Histogram,
    followers: IntGauge,
    followers_waited: IntGauge,
    /// Answers with more names in their chain than are followed.
    pub(crate) cut_chains: IntCounter,
    restored: IntCounterVec,
}

/// What became of a sighting that a store kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is in the set again.
    Kept,
    /// It has ended meanwhile.
    Ended,
    /// Its name is listed no longer.
    Unlisted,
    /// Its address may not be learned any more.
    Inadmissible,
    /// A cap is reached.
    Full,
}

impl Fate {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Kept, "kept"),
        (Self::Ended, "ended"),
        (Self::Unlisted, "unlisted"),
        (Self::Inadmissible, "inadmissible"),
        (Self::Full, "full"),
    ];
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
        let offers = [Outcome::Programmed, Outcome::Late, Outcome::Refused]
            .map(|outcome| offers.with_label_values(&[outcome.as_str()]));
        for reason in Reason::labels() {
            let _ = refused.with_label_values(&[reason]);
        }
        let of_sinks = |name: &str, help: &str| registry.add(IntCounterVec::new(Opts::new(name, help), &["sink"]));
        let restored = registry.add(IntCounterVec::new(
            Opts::new(
                "greenlane_learn_restored_total",
                "Sightings found in the store at start by what became of them.",
            ),
            &["result"],
        ));
        for (_, label) in Fate::ALL {
            let _ = restored.with_label_values(&[label]);
        }
        let (sink_late, sink_failed) = (
            of_sinks("greenlane_learn_sink_late_total", "Changes that the sink did not hold in time."),
            of_sinks("greenlane_learn_sink_failures_total", "Changes that the sink failed to hold."),
        );
        for counter in [&sink_late, &sink_failed] {
            let _ = counter.with_label_values(&[FOLLOWERS]);
        }
        let ack = HistogramOpts::new(
            "greenlane_learn_ack_seconds",
            "Time from a change to the word of a follower elsewhere that it holds it.",
        );
        let hold = HistogramOpts::new("greenlane_learn_hold_seconds", "Time that answers with new addresses waited.");
        Self {
            offers,
            refused,
            admitted: registry.add(IntCounter::new("greenlane_learn_admitted_total", "Sightings learned.")),
            evicted: registry
                .add(IntCounter::new("greenlane_learn_evicted_total", "Sightings that left early to make room.")),
            hold: registry.add(Histogram::with_opts(hold.buckets(HOLD_BUCKETS.to_vec()))),
            shrink_held: registry.add(IntGauge::new(
                "greenlane_learn_shrink_held",
                "Entries no longer listed that stay until the shrink is confirmed.",
            )),
            sink_waited: registry.add(IntGaugeVec::new(
                Opts::new("greenlane_learn_sink_waited", "Whether answers wait for the sink: 0 if it is slow or down."),
                &["sink"],
            )),
            sink_late,
            sink_failed,
            ack: registry.add(Histogram::with_opts(ack.buckets(ACK_BUCKETS.to_vec()))),
            followers: registry.add(IntGauge::new(
                "greenlane_learn_followers",
                "Followers elsewhere that are connected and acknowledge what they hold.",
            )),
            followers_waited: registry
                .add(IntGauge::new("greenlane_learn_followers_waited", "Those of them that answers wait for.")),
            cut_chains: registry.add(IntCounter::new(
                "greenlane_learn_cut_chains_total",
                "Answers of listed names whose chain has more than 32 names: what is behind is not learned.",
            )),
            restored,
        }
    }

    pub(crate) fn followers(&self, joined: usize, waited: usize) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.followers.set(gauge(joined));
        self.followers_waited.set(gauge(waited));
    }

    pub(crate) fn offered(&self, outcome: Outcome) {
        self.offers[outcome as usize].inc();
    }

    pub(crate) fn restored(&self, fate: Fate, count: usize) {
        let label = Fate::ALL.iter().find(|(one, _)| *one == fate).map_or("", |(_, label)| label);
        self.restored.with_label_values(&[label]).inc_by(count as u64);
    }

    pub(crate) fn refused(&self, reason: impl Into<Reason>, count: usize) {
        self.refused.with_label_values(&[reason.into().as_str()]).inc_by(count as u64);
    }
}
