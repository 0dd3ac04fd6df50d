//! What the way of a question counts.

use std::sync::{Arc, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};

use crate::cache::Cache;
use crate::metrics::Registry;

/// Response codes with a name of their own in the metrics, by number (IANA DNS RCODEs).
const RCODES: [&str; 11] = [
    "noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "yxdomain", "yxrrset", "nxrrset", "notauth",
    "notzone",
];

/// Counters of the pipeline; cheap to clone, each handle taken once.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    responses: [IntCounter; RCODES.len()],
    responses_badvers: IntCounter,
    responses_other: IntCounter,
    pub(super) hits: IntCounter,
    pub(super) misses: IntCounter,
    tagged: IntCounterVec,
    /// Tagged answers, each once however many apps it has.
    pub(super) tagged_answers: IntCounter,
}

impl Meter {
    pub(super) fn new(registry: &Registry, cache: &Arc<Cache>) -> Self {
        let responses = registry.add(IntCounterVec::new(
            Opts::new("greenlane_listen_responses_total", "Responses sent to clients by response code."),
            &["rcode"],
        ));
        let lookups = registry.add(IntCounterVec::new(
            Opts::new(
                "greenlane_cache_lookups_total",
                "Questions by what the cache knew: a fresh answer (hit), none (miss), one past its TTL that was given \
                 all the same (stale).",
            ),
            &["result"],
        ));
        // Present from the start, so that a rate over it is never empty.
        lookups.with_label_values(&["stale"]);
        let tagged = registry.add(IntCounterVec::new(
            Opts::new("greenlane_tag_answers_total", "Answers under a bypass trigger by app, hits included."),
            &["app"],
        ));
        let tagged_answers = registry.add(IntCounter::new(
            "greenlane_listen_tagged_total",
            "Responses under a bypass trigger, each once however many apps it has.",
        ));
        registry.add(CacheSize::new(cache));
        Self {
            responses: RCODES.map(|name| responses.with_label_values(&[name])),
            responses_badvers: responses.with_label_values(&["badvers"]),
            responses_other: responses.with_label_values(&["other"]),
            hits: lookups.with_label_values(&["hit"]),
            misses: lookups.with_label_values(&["miss"]),
            tagged,
            tagged_answers,
        }
    }

    /// Counts a response.
    pub(super) fn response(&self, rcode: u16) {
        match self.responses.get(usize::from(rcode)) {
            Some(counter) => counter.inc(),
            None if rcode == crate::wire::rcode::BADVERS => self.responses_badvers.inc(),
            None => self.responses_other.inc(),
        }
    }

    /// Returns the counter of answers tagged with an app.
    pub(super) fn tagged(&self, app: &str) -> IntCounter {
        self.tagged.with_label_values(&[app])
    }
}

/// The size of the cache, read when it is asked for: counting on each insertion would cost more than it tells.
#[derive(Clone)]
struct CacheSize {
    cache: Weak<Cache>,
    entries: IntGauge,
    bytes: IntGauge,
}

impl CacheSize {
    fn new(cache: &Arc<Cache>) -> prometheus::Result<Self> {
        Ok(Self {
            cache: Arc::downgrade(cache),
            entries: IntGauge::new("greenlane_cache_entries", "Answers in the cache, those past their TTL included.")?,
            bytes: IntGauge::new("greenlane_cache_bytes", "Octets that the answers in the cache take.")?,
        })
    }
}

impl Collector for CacheSize {
    fn desc(&self) -> Vec<&Desc> {
        self.entries.desc().into_iter().chain(self.bytes.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(cache) = self.cache.upgrade() {
            self.entries.set(i64::try_from(cache.len()).unwrap_or(i64::MAX));
            self.bytes.set(i64::try_from(cache.size_bytes()).unwrap_or(i64::MAX));
        }
        self.entries.collect().into_iter().chain(self.bytes.collect()).collect()
    }
}
