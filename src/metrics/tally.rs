//! Counters for the way of a hit: raised without a lock and without a cache line that two cores share.
//!
//! A [`Tally`] is a row of counters for each *lane*, and a lane is one thread's own: a thread that took a [`Lane`]
//! raises its counters with a plain load and store. All other threads share the first lane and add atomically. What is
//! read is the sum over all lanes, at the time it is asked for; a scrape pays for it, not a question.
//!
//! A lane's number is unique in the process, so that no two threads ever write the same row, of whatever tally. A
//! thread that ends leaves its counts, and its lane to the next.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use prometheus::Opts;
use prometheus::core::{Collector, Desc, Describer};
use prometheus::proto::{Counter, LabelPair, Metric, MetricFamily, MetricType};

/// Lanes of single threads; threads beyond share.
const LANES: usize = 64;

/// The lanes taken, one bit each.
static TAKEN: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// This thread's row: 0 is the shared one.
    static ROW: Cell<usize> = const { Cell::new(0) };
}

/// A thread's right to count without sharing; ends with the value.
#[derive(Debug)]
pub struct Lane {
    row: usize,
    /// It belongs to the thread that took it.
    _not_send: PhantomData<*const ()>,
}

impl Lane {
    /// Takes a lane for this thread. When none is left, or this thread has one, its counts go where they went before.
    pub fn take() -> Self {
        let mut row = 0;
        if ROW.get() == 0 {
            let free = |taken: u64| (taken != u64::MAX).then(|| taken | (taken + 1));
            // Acquire and release: the next owner of a lane sees the last counts of the one before.
            if let Ok(before) = TAKEN.fetch_update(Ordering::AcqRel, Ordering::Acquire, free) {
                row = 1 + before.trailing_ones() as usize;
                ROW.set(row);
            }
        }
        Self { row, _not_send: PhantomData }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(lane) = self.row.checked_sub(1) {
            ROW.set(0);
            TAKEN.fetch_and(!(1 << lane), Ordering::AcqRel);
        }
    }
}

/// A row of counters for each lane; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tally(Arc<Rows>);

#[derive(Debug)]
struct Rows {
    columns: usize,
    /// The shared row first; the others are made when their thread first counts in them.
    rows: [OnceLock<Box<[AtomicU64]>>; 1 + LANES],
}

/// Counters in a cache line; rows are padded to whole ones at both ends.
const LINE: usize = 8;

impl Tally {
    /// Makes a tally of so many counters, all zero.
    pub fn new(columns: usize) -> Self {
        let rows = Rows { columns, rows: std::array::from_fn(|_| OnceLock::new()) };
        rows.rows[0].get_or_init(|| rows.make_row());
        Self(Arc::new(rows))
    }

    /// Adds one to a counter; one that is not there is left alone.
    pub fn raise(&self, column: usize) {
        self.add(column, 1);
    }

    /// Adds to a counter; one that is not there is left alone.
    #[inline]
    pub fn add(&self, column: usize, count: u64) {
        let row = ROW.get();
        let cells = self.0.rows[row].get_or_init(|| self.0.make_row());
        let Some(cell) = cells.get(LINE + column) else { return };
        if row == 0 {
            cell.fetch_add(count, Ordering::Relaxed);
        } else {
            // No other thread writes this row.
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
        }
    }

    /// Returns a counter's sum over all threads.
    pub fn sum(&self, column: usize) -> u64 {
        let rows = self.0.rows.iter().filter_map(OnceLock::get);
        rows.filter_map(|cells| cells.get(LINE + column)).map(|cell| cell.load(Ordering::Relaxed)).sum()
    }
}

impl Rows {
    fn make_row(&self) -> Box<[AtomicU64]> {
        let len = LINE + self.columns.next_multiple_of(LINE) + LINE;
        (0..len).map(|_| AtomicU64::new(0)).collect()
    }
}

/// One metric whose values are counters of a tally: which label values belong to which column.
#[derive(Clone, Debug)]
pub struct Tallied {
    desc: Desc,
    help: String,
    tally: Tally,
    series: Arc<[(Vec<LabelPair>, usize)]>,
}

impl Tallied {
    /// Makes a metric from columns of a tally, each with the values of `labels`.
    ///
    /// # Errors
    /// A malformed name.
    pub fn new(
        (name, help): (&str, &str),
        labels: &[&str],
        tally: &Tally,
        series: impl IntoIterator<Item = (Vec<String>, usize)>,
    ) -> prometheus::Result<Self> {
        let opts = Opts::new(name, help).variable_labels(labels.iter().map(|&label| label.to_owned()).collect());
        let series = series.into_iter().map(|(values, column)| (pairs(labels, values), column));
        Ok(Self { desc: opts.describe()?, help: help.to_owned(), tally: tally.clone(), series: series.collect() })
    }
}

/// Puts labels and their values together.
pub(super) fn pairs(labels: &[&str], values: Vec<String>) -> Vec<LabelPair> {
    let pair = |(label, value): (&&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name((*label).to_owned());
        pair.set_value(value);
        pair
    };
    labels.iter().zip(values).map(pair).collect()
}

impl Collector for Tallied {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let metrics = self.series.iter().map(|(labels, column)| {
            let mut counter = Counter::default();
            // Exact up to 2^53.
            counter.set_value(self.tally.sum(*column) as f64);
            let mut metric = Metric::default();
            metric.set_label(labels.clone());
            metric.set_counter(counter);
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.help.clone());
        family.set_field_type(MetricType::COUNTER);
        family.set_metric(metrics.collect());
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::metrics::Registry;

    #[test]
    fn no_count_of_any_thread_is_lost() {
        let tally = Tally::new(3);
        thread::scope(|scope| {
            for i in 0..8 {
                let tally = &tally;
                scope.spawn(move || {
                    let _lane = (i % 2 == 0).then(Lane::take);
                    (0..10_000).for_each(|_| tally.raise(1));
                });
            }
        });
        assert_eq!([0, 1, 2].map(|column| tally.sum(column)), [0, 80_000, 0]);
        tally.raise(3);
        tally.raise(1_000_000);
        assert_eq!(tally.sum(2), 0);
    }

    #[test]
    fn a_lane_is_free_again_and_keeps_its_counts() {
        let tally = Tally::new(1);
        for _ in 0..200 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let _lane = Lane::take();
                    // A second one of the same thread changes nothing.
                    drop(Lane::take());
                    assert_ne!(ROW.get(), 0);
                    tally.raise(0);
                });
            });
        }
        assert_eq!(tally.sum(0), 200);
        let before = ROW.get();
        drop(Lane::take());
        assert_eq!(ROW.get(), before);
    }

    #[test]
    fn tallied_metrics_print_as_counters() {
        let (tally, registry) = (Tally::new(2), Registry::new());
        let series = [(vec!["a".to_owned()], 0), (vec!["b".to_owned()], 1)];
        registry.add(Tallied::new(("x_total", "Help."), &["kind"], &tally, series));
        registry.add(Tallied::new(("y_total", "More."), &[], &tally, [(vec![], 1)]));
        tally.raise(1);
        let text = String::from_utf8(registry.render()).unwrap();
        let expected = "# HELP x_total Help.\n# TYPE x_total counter\nx_total{kind=\"a\"} 0\nx_total{kind=\"b\"} 1\n# HELP \
                        y_total More.\n# TYPE y_total counter\ny_total 1\n";
        assert_eq!(text, expected);
    }
}
