//! Asking ahead, so that the set holds the addresses of listed names before a client asks.
//!
//! ```text
//!  catalogue, file of names ─▶ Wanted ─▶ Plan ◀── names used lately ◀── the set, looked through now and then
//!                                         │ ▲
//!                              Pace ─▶ a question ─▶ Pipeline::ask_ahead ─▶ the set, the cache
//! ```
//!
//! [`Wanted`] is what one generation of configuration and lists asks for; a reload sends another. The task owns a `Plan`
//! (which name, when) and a `Pace` (how fast, and slower while upstreams suffer). Questions take the pipeline's way without
//! a client; what clients do costs nothing here, since the set itself shows when a name was seen last. At most
//! [`Options::names_max`] names are asked, and at most [`Options::per_second`] questions a second.

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounterVec, IntGauge, Opts};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::catalogue::Catalogue;
use crate::clock::{Clock, Stopwatch, Timestamp};
use crate::learn::Learner;
use crate::metrics::Registry;
use crate::name::Name;
use crate::pipeline::{Heard, Pipeline};
use crate::source::{Located, Location, Problem, Problems};
use crate::wire::Question;

mod names;
mod pace;
mod plan;
#[cfg(test)]
mod tests;

use pace::Pace;
use plan::{Plan, Seen, TYPES, Turn};

/// What is asked ahead, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether anything is.
    pub is_on: bool,
    /// A file of further names.
    pub names_file: Option<PathBuf>,
    /// How long after a client used it a name under a trigger is asked ahead.
    pub used_for: Duration,
    /// The most names.
    pub names_max: usize,
    /// The most questions a second.
    pub per_second: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { is_on: true, names_file: None, used_for: Duration::from_secs(3600), names_max: 2000, per_second: 20 }
    }
}

/// An answer that takes longer than this shows an upstream that suffers: at least two tries were given up on its way.
const SLOW: Duration = Duration::from_secs(2);

/// While more questions than this wait for upstreams, those of clients come first: an eighth of what may wait.
const WAITING_MAX: usize = 512;

/// How long they do.
const WAITING_PAUSE: Duration = Duration::from_secs(1);

/// Questions of ours on their way at once, where the budget of a second is no larger.
const FLYING_MAX: usize = 16;

/// The set is looked through no more often than this, and for less than a hundredth of the time.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// See [`LOOK_EVERY`].
const LOOK_SHARE: u32 = 100;

/// What one generation of configuration and lists wants asked ahead.
pub struct Wanted {
    options: Options,
    /// The names of the operator's file, then those of the triggers; each once.
    listed: Vec<Name>,
    catalogue: Arc<Catalogue>,
}

impl Wanted {
    /// Reads the file of names, and takes from the catalogue each name that a trigger stands for itself. Warns of names
    /// that no list covers, and of more names than the budget has room for.
    ///
    /// `place` is where the configuration names the file.
    ///
    /// # Errors
    /// Every mistake of the file.
    pub fn new(options: &Options, place: Option<&Location>, catalogue: &Arc<Catalogue>) -> Result<Self, Problems> {
        let (options, catalogue) = (options.clone(), Arc::clone(catalogue));
        let written = read_names(&options, place)?;
        let mut wanted = Self { listed: Vec::new(), options, catalogue };
        if wanted.options.is_on {
            wanted.list(written);
        }
        Ok(wanted)
    }

    fn list(&mut self, written: Vec<Located<Name>>) {
        let is_listed = |name: &Name| self.catalogue.find(name).is_some();
        let (covered, strange): (Vec<_>, Vec<_>) = written.into_iter().partition(|at| is_listed(&at.value));
        if let Some(first) = strange.first() {
            let (count, name) = (strange.len(), &first.value);
            let said = format!("`{name}`: no list covers it, so it is not asked ahead ({count} such in all)");
            tracing::warn!("{}", Problem::new(first.location.clone(), said));
        }
        let triggers = self.catalogue.names().filter(|listed| listed.kind.covers_itself()).map(|listed| listed.name);
        // A `!` of the same app, or `catalogue.never`, may speak against a trigger's own name.
        let triggers = triggers.filter(is_listed);
        let mut seen = HashSet::new();
        let names = covered.into_iter().map(|at| at.value).chain(triggers);
        // One more than counts, to tell whether some are left out.
        self.listed = names.filter(|name| seen.insert(name.clone())).take(self.options.names_max + 1).collect();
        if self.listed.len() > self.options.names_max {
            self.listed.truncate(self.options.names_max);
            tracing::warn!("learn.warm-max-names: only the first {} names are asked ahead", self.options.names_max);
        }
    }
}

/// Reads the file of names, if there is one. A file that is named is read even if nothing is asked ahead, so that mistakes
/// show.
///
/// # Errors
/// Every mistake of the file.
pub fn read_names(options: &Options, place: Option<&Location>) -> Result<Vec<Located<Name>>, Problems> {
    options.names_file.as_deref().map_or_else(|| Ok(Vec::new()), |path| names::read(path, place))
}

/// What asking ahead counts.
#[derive(Clone, Debug)]
struct Metrics {
    queries: IntCounterVec,
    names: IntGauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let queries = registry.add(IntCounterVec::new(
            Opts::new(
                "greenlane_warm_queries_total",
                "Questions asked ahead of clients by what came of them: addresses that the set holds, none, addresses that it \
                 did not take, or a failure.",
            ),
            &["result"],
        ));
        for result in ["addresses", "none", "late", "failed"] {
            let _ = queries.with_label_values(&[result]);
        }
        let names = registry
            .add(IntGauge::new("greenlane_warm_names", "Names that are asked ahead, those used lately included."));
        Self { queries, names }
    }

    fn count(&self, heard: Heard) {
        let result = match heard {
            Heard::Held { .. } => "addresses",
            Heard::Nothing { .. } => "none",
            Heard::Late => "late",
            Heard::Failed => "failed",
        };
        self.queries.with_label_values(&[result]).inc();
    }
}

/// The task that asks ahead.
pub struct Warm {
    pipeline: Pipeline,
    learner: Learner,
    clock: Clock,
    wanted: watch::Receiver<Arc<Wanted>>,
    metrics: Metrics,
}

impl Warm {
    /// Makes the task; `wanted` brings what each reload asks for.
    pub fn new(
        pipeline: Pipeline,
        learner: Learner,
        clock: Clock,
        wanted: watch::Receiver<Arc<Wanted>>,
        registry: &Registry,
    ) -> Self {
        Self { pipeline, learner, clock, wanted, metrics: Metrics::new(registry) }
    }

    /// Asks ahead until `stop`. What is on its way then goes on for clients who share it.
    pub async fn run(mut self, stop: CancellationToken) {
        let first = Arc::clone(&self.wanted.borrow_and_update());
        let (mut plan, mut pace) = (Plan::default(), Pace::new(first.options.per_second));
        self.go_over(&first, &mut plan, &mut pace);
        let (mut wanted, mut look_at) = (first, self.clock.now());
        let (mut flying, mut looking) = (JoinSet::new(), JoinSet::<(Vec<Seen>, Duration)>::new());
        loop {
            let flying_max = FLYING_MAX.max(wanted.options.per_second as usize);
            let ask_at = plan.due().filter(|_| flying.len() < flying_max).map(|due| due.max(pace.next()));
            let is_looking = wanted.options.is_on && !wanted.options.used_for.is_zero() && looking.is_empty();
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.wanted.changed() => {
                    // Whoever sends has gone, and with it the daemon.
                    let Ok(()) = changed else { return };
                    wanted = Arc::clone(&self.wanted.borrow_and_update());
                    self.go_over(&wanted, &mut plan, &mut pace);
                }
                Some(done) = flying.join_next() => {
                    // A question that panicked is one that was asked for nothing; its name waits for the next reload.
                    let Ok((turn, heard, took)) = done else { continue };
                    self.heard(&turn, heard, took, &mut plan, &mut pace);
                }
                Some(seen) = looking.join_next() => {
                    let Ok((mut seen, took)) = seen else { continue };
                    let now = self.clock.now();
                    // A reload may have come in between.
                    seen.retain(|seen| wanted.catalogue.find(&seen.name).is_some());
                    plan.look(seen, now);
                    look_at = now.after(LOOK_EVERY.max(took * LOOK_SHARE));
                }
                () = self.clock.sleep_until(look_at), if is_looking => self.look(&wanted, &mut looking),
                () = self.clock.sleep_until(ask_at.unwrap_or_default()), if ask_at.is_some() => {
                    self.ask(&mut plan, &mut pace, &mut flying);
                }
            }
            self.metrics.names.set(i64::try_from(plan.len()).unwrap_or(i64::MAX));
        }
    }

    fn go_over(&self, wanted: &Wanted, plan: &mut Plan, pace: &mut Pace) {
        let Wanted { options, listed, catalogue } = wanted;
        let bounds = if options.is_on { (options.names_max, options.used_for) } else { (0, Duration::ZERO) };
        plan.want(listed, bounds, |name| catalogue.find(name).is_some(), self.clock.now());
        pace.set(options.per_second);
        self.metrics.names.set(i64::try_from(plan.len()).unwrap_or(i64::MAX));
    }

    fn ask(&self, plan: &mut Plan, pace: &mut Pace, flying: &mut JoinSet<(Turn, Heard, Duration)>) {
        let now = self.clock.now();
        if self.pipeline.current().forward().waiting() > WAITING_MAX {
            return pace.wait(now.after(WAITING_PAUSE));
        }
        let Some(turn) = plan.next(now) else { return };
        pace.asked(now);
        let pipeline = self.pipeline.clone();
        flying.spawn(async move {
            let watch = Stopwatch::start();
            let heard = pipeline.ask_ahead(Question::new(turn.name.clone(), TYPES[turn.at]), turn.ahead).await;
            (turn, heard, watch.elapsed())
        });
    }

    fn heard(&self, turn: &Turn, heard: Heard, took: Duration, plan: &mut Plan, pace: &mut Pace) {
        let now = self.clock.now();
        self.metrics.count(heard);
        plan.heard(turn, heard, rand::random(), now);
        if heard == Heard::Failed || took > SLOW {
            pace.suffered();
        } else if pace.well() {
            plan.hurry(now);
        }
    }

    /// Looks through the set, on a thread that may take its time.
    fn look(&self, wanted: &Wanted, looking: &mut JoinSet<(Vec<Seen>, Duration)>) {
        let (reader, used_for, now) = (self.learner.reader(), wanted.options.used_for, self.clock.now());
        looking.spawn_blocking(move || {
            let watch = Stopwatch::start();
            let mut seen = HashMap::new();
            let snapshot = reader.snapshot();
            for sighting in snapshot.hosts().flat_map(|host| host.sightings()) {
                let times = sighting.times();
                if now.since(times.last_seen) < used_for {
                    let one = seen.entry(sighting.name()).or_insert_with(|| [Timestamp::default(); 3]);
                    let family = usize::from(sighting.addr().is_ipv6());
                    one[family] = one[family].max(times.end);
                    one[2] = one[2].max(times.last_seen);
                }
            }
            let seen = seen.into_iter().map(|(name, [v4, v6, last])| Seen { name: name.clone(), last, ends: [v4, v6] });
            (seen.collect(), watch.elapsed())
        });
    }
}
