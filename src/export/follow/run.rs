//! The one task that merges: news of resolvers in, changes for the sinks out.
//!
//! At most one change is on its way to the sinks; what comes meanwhile gathers in the book and makes the next one. So a
//! slow kernel costs no memory beyond the book, and bursts become one transaction.
//!
//! The first change is whole, and is sent once every resolver has answered or failed, or [`FIRST_PATIENCE`] after the
//! first answer: what only another resolver knows must not look like surplus. Without any answer nothing is sent, and
//! whatever the kernel holds stays as it is.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::acks::Acks;
use super::book::{self, Book, Limits, Source};
use super::client::{Client, Failure, News, Unheard, Way};
use super::gate::{Gate, Refusals};
use super::meter::Metrics;
use super::print::Printer;
use super::told::{Ask, Told};
use super::{AccessError, Options};
use crate::clock::{Clock, Stopwatch, Timestamp};
use crate::metrics::Registry;
use crate::prefix::Family;
use crate::set::Session;
use crate::set::outlet::{Applied, Change, NotSent, Outlet, Reply};

/// How long the first whole change waits for the other resolvers.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);
/// How often life is shown.
const BEAT: Duration = Duration::from_secs(1);
/// How much may wait to be merged; a resolver's thread that finds it full waits.
const NEWS_LEN_MAX: usize = 16;
/// How long `once` waits for the sinks.
const ONCE_PATIENCE: Duration = Duration::from_secs(30);

/// Where changes go.
pub enum Sink {
    /// To an engine that makes them.
    Outlet(Outlet),
    /// On paper.
    Printer(Printer),
}

/// How following goes, once a second and after each change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many resolvers are followed.
    pub followed: usize,
    /// Of how many.
    pub resolvers: usize,
    /// Learned hosts held.
    pub hosts: usize,
    /// Static prefixes held.
    pub statics: usize,
    /// Whether the sinks have held a whole set.
    pub has_applied: bool,
    /// Whether the sinks hold the last change.
    pub is_held: bool,
}

/// Why [`Follower::once`] did not do it.
#[derive(Debug, Error)]
pub enum OnceError {
    /// No resolver answered.
    #[error("{}", .0.join("\n"))]
    NoAnswer(Vec<String>),
    /// A sink does not hold the set.
    #[error("{0} does not hold the set; the log says why")]
    NotHeld(&'static str),
    /// The lines could not be written.
    #[error("standard output: {0}")]
    Print(io::Error),
}

/// Follows resolvers.
pub struct Follower {
    clients: Vec<Client>,
    /// Those that are told what is held.
    ways: Vec<Way>,
    clock: Clock,
    state: Merger,
}

impl Follower {
    /// Reads the certificates and registers the metrics; once a registry.
    ///
    /// # Errors
    /// [`AccessError`] if the certificates cannot be used.
    pub fn new(options: Options, sinks: Vec<Sink>, clock: Clock, registry: &Registry) -> Result<Self, AccessError> {
        let gate = Gate::new(options.admission, (options.widest4, options.widest6), options.max_total);
        let limits = Limits { hosts_max: gate.max_total(), statics_max: gate.statics_max(), lease: options.lease };
        let gate = Arc::new(gate);
        let ways = options.resolvers.iter().map(|resolver| Way::new(resolver.clone(), &options.access));
        let ways = ways.collect::<Result<Vec<_>, _>>()?;
        let client = |way: &Way| Client::new(way.clone(), options.acknowledges, Arc::clone(&gate), clock.clone());
        let clients: Vec<_> = ways.iter().map(client).collect();
        let count = clients.len();
        let state = Merger {
            book: Book::new(count, limits),
            sources: (0..count).map(|_| State::default()).collect(),
            sinks,
            session: Session::random(),
            serial: 0,
            metrics: Metrics::new(registry, count),
            refused: HashSet::new(),
            urls: options.resolvers.iter().map(|resolver| resolver.url().to_owned()).collect(),
            first_answer: None,
            is_whole_due: false,
            has_sent: false,
            in_flight: None,
            asked: vec![None; count],
            acks: Vec::new(),
            unsent: None,
            has_applied: false,
            is_held: false,
        };
        Ok(Self { clients, ways: if options.acknowledges { ways } else { Vec::new() }, clock, state })
    }

    /// Follows until `stop`; what the sinks hold stays there. `beat` hears how it goes at least once a second, and no
    /// more if this task hangs.
    ///
    /// # Errors
    /// If a thread cannot be started, or a line not be printed.
    pub async fn follow(self, stop: CancellationToken, mut beat: impl FnMut(Standing)) -> io::Result<()> {
        let Self { clients, ways, clock, mut state } = self;
        for (source, way) in ways.into_iter().enumerate() {
            let metrics = state.metrics.clone();
            state.acks.push(Acks::start(way, move |acked| metrics.acked(source, acked))?);
        }
        let (sender, mut news) = mpsc::channel(NEWS_LEN_MAX);
        for (source, client) in clients.into_iter().enumerate() {
            let sender = sender.clone();
            client.start(Box::new(move |news| sender.blocking_send((source, news)).map_err(|_| Unheard)))?;
        }
        let mut beats = tokio::time::interval(BEAT);
        loop {
            let wake = state.wakes(clock.now());
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some((source, news)) = news.recv() => state.hear(source, news, clock.now()),
                (is_held, took) = in_flight(&mut state.in_flight) => state.answered(is_held, took, clock.now()),
                () = sleep_until(&clock, wake) => {}
                _ = beats.tick() => {}
            }
            state.step(clock.now())?;
            beat(state.standing());
        }
    }

    /// Asks every resolver once and gives the sinks what those say that answer. Returns what the others did.
    ///
    /// # Errors
    /// See [`OnceError`].
    pub async fn once(self) -> Result<Vec<String>, OnceError> {
        let Self { clients, clock, mut state, .. } = self;
        let asked = clients.into_iter().map(|mut client| tokio::task::spawn_blocking(move || client.delta()));
        let asked: Vec<_> = asked.collect();
        let mut failures = Vec::new();
        for (source, asked) in asked.into_iter().enumerate() {
            match asked.await {
                Ok(Ok(told)) => state.hear(source, News::Told(told), clock.now()),
                Ok(Err(failure)) => failures.push(format!("{}: {failure}", state.urls[source])),
                Err(error) => failures.push(format!("{}: {error}", state.urls[source])),
            }
        }
        if failures.len() == state.sources.len() {
            return Err(OnceError::NoAnswer(failures));
        }
        state.is_whole_due = true;
        state.book.expire(clock.now());
        state.send(clock.now()).map_err(OnceError::Print)?;
        let Some(mut sent) = state.in_flight.take() else { return Ok(failures) };
        for (name, reply) in &mut sent.replies {
            if tokio::time::timeout(ONCE_PATIENCE, reply.wait()).await != Ok(Applied::Held) {
                return Err(OnceError::NotHeld(name));
            }
        }
        if sent.is_refused { Err(OnceError::NotHeld("a sink that is gone")) } else { Ok(failures) }
    }

    /// Adds a place where changes go.
    pub fn add(&mut self, sink: Sink) {
        self.state.sinks.push(sink);
    }
}

/// Waits for the answers to what is in flight; for ever if nothing is. Returns whether all sinks hold it.
async fn in_flight(in_flight: &mut Option<InFlight>) -> (bool, Duration) {
    match in_flight {
        None => std::future::pending().await,
        Some(sent) => {
            while let Some((_, reply)) = sent.replies.last_mut() {
                let answer = reply.wait().await;
                sent.is_refused |= answer != Applied::Held;
                sent.replies.pop();
            }
            (!sent.is_refused, sent.began.elapsed())
        }
    }
}

async fn sleep_until(clock: &Clock, wake: Option<Timestamp>) {
    match wake {
        Some(wake) => clock.sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// A change that the sinks have not answered yet.
struct InFlight {
    replies: Vec<(&'static str, Reply)>,
    is_refused: bool,
    /// Since the first of the news came that it is made of.
    began: Stopwatch,
    /// Who is to be told once it is held.
    asks: Vec<(Source, Ask)>,
}

/// What is told of a resolver.
#[derive(Clone, Debug, Default)]
struct State {
    has_answered: bool,
    has_failed: bool,
    is_followed: bool,
    /// The failure that was told last, so that it is told once.
    told: Option<String>,
}

struct Merger {
    book: Book,
    sources: Vec<State>,
    sinks: Vec<Sink>,
    session: Session,
    serial: u64,
    metrics: Metrics,
    /// What refusals were told, so that each is told once.
    refused: HashSet<(Source, &'static str)>,
    urls: Vec<String>,
    first_answer: Option<Timestamp>,
    is_whole_due: bool,
    has_sent: bool,
    in_flight: Option<InFlight>,
    /// What each resolver asked last, until what it told before that is on its way to the sinks.
    asked: Vec<Option<Ask>>,
    /// Where each resolver is answered; empty if none is.
    acks: Vec<Acks>,
    /// Since news came that the sinks were not told yet.
    unsent: Option<Stopwatch>,
    has_applied: bool,
    is_held: bool,
}

impl Merger {
    fn hear(&mut self, source: Source, news: News, now: Timestamp) {
        match news {
            News::Alive => {
                self.metrics.heard(source, now);
                self.note_followed(source);
            }
            News::Told(told) => {
                self.metrics.heard(source, now);
                self.sources[source].has_answered = true;
                self.first_answer.get_or_insert(now);
                self.unsent.get_or_insert_with(Stopwatch::start);
                self.take(source, told, now);
            }
            News::Asked(ask) => {
                self.metrics.heard(source, now);
                self.asked[source] = Some(ask);
            }
            News::Failed(failure) => self.fail(source, &failure, now),
        }
    }

    fn take(&mut self, source: Source, told: Told, now: Timestamp) {
        let delta = match told {
            Told::Renewed(renewed) => return self.book.renewed(source, &renewed),
            Told::Hold(_) => return,
            Told::Delta(delta) => *delta,
        };
        let serial = delta.serial;
        let taken = self.book.told(source, delta, now);
        self.metrics.told(source, serial, taken.is_new_session);
        self.tell_refused(source, &taken.refused);
        let url = &self.urls[source];
        if taken.is_disbelieved {
            tracing::warn!(
                "{url}: more than half of its set is gone at once; {} items stay until their ends",
                taken.kept
            );
        } else if taken.kept > 0 {
            tracing::info!("{url}: a new session; {} items of the one before stay until their ends", taken.kept);
        }
    }

    fn tell_refused(&mut self, source: Source, refused: &Refusals) {
        self.metrics.refused(refused);
        for (reason, count) in refused.iter() {
            if self.refused.insert((source, reason)) {
                let url = &self.urls[source];
                tracing::warn!(
                    "{url}: {count} items refused: {reason}; told once, greenlane_sync_refused_total counts on"
                );
            }
        }
    }

    fn note_followed(&mut self, source: Source) {
        self.metrics.followed(source);
        let state = &mut self.sources[source];
        if !std::mem::replace(&mut state.is_followed, true) {
            state.told = None;
            tracing::info!("{}: followed", self.urls[source]);
        }
    }

    fn fail(&mut self, source: Source, failure: &Failure, now: Timestamp) {
        self.metrics.failed(source, failure);
        let state = &mut self.sources[source];
        (state.has_failed, state.is_followed) = (true, false);
        let text = failure.to_string();
        if state.told.as_ref() != Some(&text) {
            tracing::warn!("{}: {text}; what it told is kept, trying again", self.urls[source]);
            state.told = Some(text);
        }
        let was_floored = self.book.floor().is_some();
        self.book.failed(source, now);
        if let Some(floor) = self.book.floor().filter(|_| !was_floored) {
            tracing::warn!("no resolver answers; everything is held for another {} s", floor.since(now).as_secs());
        }
    }

    /// Lets go of what has ended and sends what there is to say, if the sinks have answered the last.
    fn step(&mut self, now: Timestamp) -> io::Result<()> {
        self.book.expire(now);
        self.metrics.show(&self.book, now);
        if !self.has_sent && !self.is_whole_due {
            let is_complete = self.sources.iter().all(|state| state.has_answered || state.has_failed);
            let first = self.first_answer;
            self.is_whole_due = first.is_some_and(|first| is_complete || now >= first.after(FIRST_PATIENCE));
        }
        if self.in_flight.is_none() { self.send(now) } else { Ok(()) }
    }

    fn send(&mut self, now: Timestamp) -> io::Result<()> {
        let wants_whole = |sink: &Sink| matches!(sink, Sink::Outlet(outlet) if outlet.wants_whole());
        let is_whole = self.is_whole_due || (self.has_sent && self.sinks.iter().any(wants_whole));
        if !is_whole && !self.has_sent {
            return Ok(());
        }
        let news = if is_whole { Some(self.book.whole(now)) } else { self.book.news(now) };
        let began = self.unsent.take().unwrap_or_else(Stopwatch::start);
        let Some(news) = news else {
            // Everything that was told is held already.
            if self.is_held {
                let asks = self.take_asked();
                self.acknowledge(asks);
            }
            return Ok(());
        };
        (self.is_whole_due, self.has_sent) = (false, true);
        self.serial += 1;
        let mut sent = InFlight { replies: Vec::new(), is_refused: false, began, asks: self.take_asked() };
        let change = Arc::new(self.change(&news, is_whole, now));
        for sink in &mut self.sinks {
            match sink {
                Sink::Printer(printer) => printer.print(&news, is_whole, &self.book)?,
                Sink::Outlet(outlet) => match outlet.send(&change) {
                    Ok(reply) => sent.replies.push((outlet.name(), reply)),
                    // It asks for a whole change when it is ready for one; one that is gone says so in its log.
                    Err(NotSent::Full | NotSent::Gone) => sent.is_refused = true,
                },
            }
        }
        self.in_flight = Some(sent);
        Ok(())
    }

    fn change(&self, news: &book::News, whole: bool, now: Timestamp) -> Change {
        Change {
            whole,
            hosts: news.hosts.clone(),
            statics: news.statics.clone(),
            ..Change::empty(self.session, self.serial, now)
        }
    }

    fn answered(&mut self, is_held: bool, took: Duration, now: Timestamp) {
        let asks = self.in_flight.take().map(|sent| sent.asks).unwrap_or_default();
        self.has_applied |= is_held;
        self.is_held = is_held;
        if is_held {
            self.acknowledge(asks);
        } else {
            // They are answered once a later change is held.
            for (source, ask) in asks {
                self.asked[source].get_or_insert(ask);
            }
        }
        self.metrics.answered(is_held, took, now);
    }

    fn take_asked(&mut self) -> Vec<(Source, Ask)> {
        let asked = self.asked.iter_mut().enumerate();
        asked.filter_map(|(source, ask)| Some((source, ask.take()?))).collect()
    }

    fn acknowledge(&self, asks: Vec<(Source, Ask)>) {
        for (source, ask) in asks {
            if let Some(acks) = self.acks.get(source) {
                acks.say(ask);
            }
        }
    }

    /// Returns when there is something to do although nobody says anything.
    fn wakes(&self, now: Timestamp) -> Option<Timestamp> {
        let first = self.first_answer.filter(|_| !self.has_sent).map(|first| first.after(FIRST_PATIENCE));
        let wake = [self.book.next_end(), first].into_iter().flatten().min();
        // What is due and not done yet waits for an answer of the sinks.
        wake.filter(|wake| *wake > now)
    }

    fn standing(&self) -> Standing {
        let (v4, v6) = (self.book.counts(Family::V4), self.book.counts(Family::V6));
        Standing {
            followed: self.sources.iter().filter(|state| state.is_followed).count(),
            resolvers: self.sources.len(),
            hosts: v4.0 + v6.0,
            statics: v4.1 + v6.1,
            has_applied: self.has_applied,
            is_held: self.is_held,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::gate::{WIDEST4, WIDEST6};
    use super::super::told::Delta;
    use super::*;
    use crate::admission::{Admission, Rules};
    use crate::set::outlet::{Intake, Order, outlet};

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    /// A merging task by hand, with one resolver and one sink.
    struct Stage {
        merger: Merger,
        intake: Intake,
    }

    impl Stage {
        fn new() -> Self {
            let (way, intake) = outlet("nftables");
            let options = Options {
                resolvers: vec!["http://192.0.2.53:8053".parse().unwrap()],
                access: super::super::Access::default(),
                admission: Admission::new(Rules::default()),
                widest4: WIDEST4,
                widest6: WIDEST6,
                max_total: 100,
                lease: Duration::from_secs(3600),
                acknowledges: true,
            };
            let follower =
                Follower::new(options, vec![Sink::Outlet(way)], Clock::manual(NOW), &Registry::new()).unwrap();
            let mut merger = follower.state;
            merger.acks.push(Acks::silent());
            Self { merger, intake }
        }

        fn hear(&mut self, news: News) {
            self.merger.hear(0, news, NOW);
            self.merger.step(NOW).unwrap();
        }

        /// Tells the whole set: that many hosts.
        fn tell(&mut self, serial: u64, count: u8) {
            let end = (NOW.after(Duration::from_secs(900)), Default::default());
            let hosts: HashMap<_, _> = (0..count).map(|n| ([8, 8, 8, n].into(), end.clone())).collect();
            self.hear(News::Told(Told::Delta(Box::new(Delta {
                session: 7,
                serial,
                reset: true,
                hosts,
                ..Delta::default()
            }))));
        }

        fn ask(&mut self, mark: u64) {
            self.hear(News::Asked(Ask { follower: "abc".to_owned(), mark }));
        }

        async fn order(&mut self) -> Order {
            self.intake.next().await.unwrap()
        }

        /// Answers an order as the sink and lets the task take the answer.
        async fn answer(&mut self, order: Order, applied: Applied) {
            order.done(applied);
            let (is_held, took) = in_flight(&mut self.merger.in_flight).await;
            self.merger.answered(is_held, took, NOW);
            self.merger.step(NOW).unwrap();
        }

        fn acked(&self) -> Option<u64> {
            self.merger.acks[0].take()
        }
    }

    #[tokio::test]
    async fn mark_is_acknowledged_once_everything_before_it_is_held() {
        let mut stage = Stage::new();
        stage.ask(1);
        assert_eq!(stage.acked(), None, "nothing was told yet");
        stage.tell(1, 1);
        let order = stage.order().await;
        assert_eq!(stage.acked(), None, "the sink is at it");
        stage.answer(order, Applied::Held).await;
        assert_eq!(stage.acked(), Some(1));
        stage.ask(2);
        assert_eq!(stage.acked(), Some(2), "there is nothing before it");

        // What comes while the sink is at it makes the next change, and its mark waits for that one.
        stage.tell(2, 2);
        let order = stage.order().await;
        stage.tell(3, 3);
        stage.ask(3);
        stage.answer(order, Applied::Held).await;
        assert_eq!(stage.acked(), None);
        let order = stage.order().await;
        stage.answer(order, Applied::Held).await;
        assert_eq!(stage.acked(), Some(3));
        // Its change is on the way already.
        stage.tell(4, 4);
        stage.ask(4);
        let order = stage.order().await;
        stage.answer(order, Applied::Held).await;
        assert_eq!(stage.acked(), Some(4));
    }

    #[tokio::test]
    async fn mark_of_a_change_that_failed_waits_for_a_later_one() {
        let mut stage = Stage::new();
        stage.tell(1, 1);
        stage.ask(1);
        let order = stage.order().await;
        stage.answer(order, Applied::Failed).await;
        assert_eq!(stage.acked(), None);
        stage.ask(2);
        assert_eq!(stage.acked(), None, "what was told before it is not held");
        stage.tell(2, 2);
        let order = stage.order().await;
        stage.answer(order, Applied::Held).await;
        assert_eq!(stage.acked(), Some(2));
    }
}
