//! Histograms of spans of time for the way of a hit: without a lock, by thread, several observations at once.
//!
//! A [`Spans`] has a histogram for each *row*, such as a transport and a result, all with the bounds of
//! [`BOUNDS_MICROS`]. It counts in a [`Tally`]: what is printed is summed over all threads when it is asked for.

use std::sync::Arc;
use std::time::Duration;

use prometheus::Opts;
use prometheus::core::{Collector, Desc, Describer};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::tally::{Tally, pairs};

/// The upper bounds of the buckets in microseconds: a hit takes some ten, an answer waits for some seconds at most.
const BOUNDS_MICROS: [u32; 12] = [10, 20, 50, 100, 200, 500, 1000, 5000, 20_000, 100_000, 500_000, 2_000_000];

/// Columns of a row: a bucket each, that of all longer spans, and the sum in nanoseconds.
const LONGER: usize = BOUNDS_MICROS.len();
const SUM: usize = LONGER + 1;
const COLUMNS: usize = SUM + 1;

/// Histograms by row; cheap to clone.
#[derive(Clone, Debug)]
pub struct Spans {
    desc: Desc,
    help: String,
    tally: Tally,
    rows: Arc<[Vec<LabelPair>]>,
}

impl Spans {
    /// Makes a histogram for each row of values of `labels`.
    ///
    /// # Errors
    /// A malformed name.
    pub fn new(
        (name, help): (&str, &str),
        labels: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> prometheus::Result<Self> {
        let opts = Opts::new(name, help).variable_labels(labels.iter().map(|&label| label.to_owned()).collect());
        let rows: Arc<[_]> = rows.into_iter().map(|values| pairs(labels, values)).collect();
        Ok(Self { desc: opts.describe()?, help: help.to_owned(), tally: Tally::new(rows.len() * COLUMNS), rows })
    }

    /// Notes that `count` things took so long each, in the histogram of a row.
    pub fn note(&self, row: usize, span: Duration, count: u64) {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.iter().position(|&bound| nanos <= u64::from(bound) * 1000).unwrap_or(LONGER);
        self.tally.add(row * COLUMNS + bucket, count);
        self.tally.add(row * COLUMNS + SUM, nanos.saturating_mul(count));
    }

    fn histogram(&self, row: usize) -> Histogram {
        let column = |column: usize| self.tally.sum(row * COLUMNS + column);
        let mut count = 0;
        let mut buckets = Vec::with_capacity(LONGER);
        for (at, &bound) in BOUNDS_MICROS.iter().enumerate() {
            count += column(at);
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(f64::from(bound) / 1e6);
            bucket.set_cumulative_count(count);
            buckets.push(bucket);
        }
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count + column(LONGER));
        // Exact up to 104 days of spans, and then as close as a double is.
        histogram.set_sample_sum(column(SUM) as f64 / 1e9);
        histogram
    }
}

impl Collector for Spans {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let metrics = self.rows.iter().enumerate().map(|(row, labels)| {
            let mut metric = Metric::default();
            metric.set_label(labels.clone());
            metric.set_histogram(self.histogram(row));
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(metrics.collect());
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::metrics::{Lane, Registry};

    #[test]
    fn spans_of_all_threads_stand_in_their_buckets() {
        let registry = Registry::new();
        let rows = ["a", "b"].map(|value| vec![value.to_owned()]);
        let spans = registry.add(Spans::new(("x_seconds", "Help."), &["kind"], rows));
        thread::scope(|scope| {
            for i in 0..4 {
                let spans = &spans;
                scope.spawn(move || {
                    let _lane = (i % 2 == 0).then(Lane::take);
                    spans.note(1, Duration::from_micros(10), 3);
                    spans.note(1, Duration::from_nanos(10_001), 1);
                    spans.note(1, Duration::from_secs(6), 1);
                });
            }
        });
        let text = String::from_utf8(registry.render()).unwrap();
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        has("# TYPE x_seconds histogram");
        has("x_seconds_bucket{kind=\"b\",le=\"0.00001\"} 12");
        has("x_seconds_bucket{kind=\"b\",le=\"0.00002\"} 16");
        has("x_seconds_bucket{kind=\"b\",le=\"2\"} 16");
        has("x_seconds_bucket{kind=\"b\",le=\"+Inf\"} 20");
        has("x_seconds_count{kind=\"b\"} 20");
        has("x_seconds_sum{kind=\"b\"} 24.000160004");
        has("x_seconds_count{kind=\"a\"} 0");
    }
}
