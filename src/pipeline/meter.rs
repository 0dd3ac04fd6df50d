//! What the way of a question counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc, Describer};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Opts};

use crate::cache::{Cache, Tagged};
use crate::metrics::{Registry, Tallied, Tally};

/// Response codes with a name of their own in the metrics, by number (IANA DNS RCODEs).
const RCODES: [&str; 11] = [
    "noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "yxdomain", "yxrrset", "nxrrset", "notauth",
    "notzone",
];

/// Columns behind those of the named codes.
const BADVERS: usize = RCODES.len();
const OTHER: usize = BADVERS + 1;
const HIT: usize = OTHER + 1;
const MISS: usize = HIT + 1;
const STALE: usize = MISS + 1;
const REFRESHED: usize = STALE + 1;
const UNLEARNED: usize = REFRESHED + 1;
const FAILED: usize = UNLEARNED + 1;
const FORGOTTEN: usize = FAILED + 1;
const TAGGED: usize = FORGOTTEN + 1;

/// What became of a cached answer that was due to be asked anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefetch {
    Refreshed,
    Unlearned,
    Failed,
    Forgotten,
}

/// Counters of the pipeline; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    tally: Tally,
    apps: Apps,
}

impl Meter {
    pub(super) fn new(registry: &Registry, cache: &Arc<Cache>) -> Self {
        let tally = Tally::new(TAGGED + 1);
        let of = |(name, column): (&str, usize)| (vec![name.to_owned()], column);
        let codes = RCODES.iter().copied().zip(0..).chain([("badvers", BADVERS), ("other", OTHER)]);
        registry.add(Tallied::new(
            ("greenlane_listen_responses_total", "Responses sent to clients by response code."),
            &["rcode"],
            &tally,
            codes.map(of),
        ));
        registry.add(Tallied::new(
            (
                "greenlane_cache_lookups_total",
                "Questions by what the cache knew: a fresh answer (hit), none (miss), one past its TTL that was given \
                 all the same (stale).",
            ),
            &["result"],
            &tally,
            [("hit", HIT), ("miss", MISS), ("stale", STALE)].map(of),
        ));
        registry.add(Tallied::new(
            (
                "greenlane_cache_prefetches_total",
                "Cached answers that were due to be asked anew: replaced by a newer one (refreshed), left alone because \
                 its addresses were not in the set in time (unlearned) or no upstream gave one (failed), or not asked \
                 for since too many were due at once or somebody else was asking (forgotten).",
            ),
            &["result"],
            &tally,
            [("refreshed", REFRESHED), ("unlearned", UNLEARNED), ("failed", FAILED), ("forgotten", FORGOTTEN)].map(of),
        ));
        registry.add(Tallied::new(
            ("greenlane_listen_tagged_total", "Responses under a bypass trigger, each once however many apps it has."),
            &[],
            &tally,
            [(Vec::new(), TAGGED)],
        ));
        let apps = registry.add(Apps::new());
        registry.add(CacheSize::new(cache));
        Self { tally, apps }
    }

    /// Counts a response.
    pub(super) fn response(&self, rcode: u16) {
        self.tally.raise(match usize::from(rcode) {
            named if named < RCODES.len() => named,
            _ if rcode == crate::wire::rcode::BADVERS => BADVERS,
            _ => OTHER,
        });
    }

    /// Counts an answer from the cache.
    pub(super) fn hit(&self) {
        self.tally.raise(HIT);
    }

    /// Counts a question that the cache had no answer to.
    pub(super) fn miss(&self) {
        self.tally.raise(MISS);
    }

    /// Counts an answer past its TTL.
    pub(super) fn stale(&self) {
        self.tally.raise(STALE);
    }

    /// Counts what became of an answer that was due to be asked anew.
    pub(super) fn prefetch(&self, result: Prefetch) {
        self.tally.raise(match result {
            Prefetch::Refreshed => REFRESHED,
            Prefetch::Unlearned => UNLEARNED,
            Prefetch::Failed => FAILED,
            Prefetch::Forgotten => FORGOTTEN,
        });
    }

    /// Counts an answer with a tag.
    pub(super) fn tagged(&self, tagged: &Tagged) {
        self.tally.raise(TAGGED);
        tagged.answers.iter().for_each(|app| app.raise(0));
    }

    /// Returns the counter of answers tagged with an app.
    pub(super) fn of_app(&self, app: &str) -> Tally {
        let mut apps = self.apps.counts.lock();
        apps.entry(app.to_owned()).or_insert_with(|| Tally::new(1)).clone()
    }
}

/// Answers by app; an app has a counter from the first answer that it tags.
#[derive(Clone, Debug)]
struct Apps {
    desc: Desc,
    counts: Arc<Mutex<BTreeMap<String, Tally>>>,
}

impl Apps {
    const NAME: &str = "greenlane_tag_answers_total";
    const HELP: &str = "Answers under a bypass trigger by app, hits included.";

    fn new() -> prometheus::Result<Self> {
        let desc = Opts::new(Self::NAME, Self::HELP).variable_labels(vec!["app".to_owned()]).describe()?;
        Ok(Self { desc, counts: Arc::default() })
    }
}

impl Collector for Apps {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let counts = self.counts.lock();
        if counts.is_empty() {
            return Vec::new();
        }
        // One row of labels and values for each app, printed as any tallied metric.
        let families = counts.iter().filter_map(|(app, tally)| {
            Tallied::new((Self::NAME, Self::HELP), &["app"], tally, [(vec![app.clone()], 0)]).ok()?.collect().pop()
        });
        families.reduce(join).into_iter().collect()
    }
}

/// Puts the rows of two families of one name together.
fn join(mut one: MetricFamily, mut other: MetricFamily) -> MetricFamily {
    one.mut_metric().append(other.mut_metric());
    one
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
