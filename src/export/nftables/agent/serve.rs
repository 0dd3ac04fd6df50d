//! The agent's side: takes orders off the sockets, lets through what may pass, gives it to the engines, and reports.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, Opts};

use super::super::engine::Engine;
use super::super::{MERGED_MAX, Metrics, Options, Surplus, run_engine};
use super::frame::{Ask, BadFrame, FRAME_LEN_MAX, TEXT_LEN_MAX, Tell};
use super::gate::{Ahead, Gate, Order, Refusal, Rules};
use super::{Buffer, Channel, Received};
use crate::clock::{Clock, Timestamp};
use crate::metrics::Registry;
use crate::prefix::Prefix;
use crate::set::outlet::{Applied, Health, State};

/// How often it is looked whether there is something to report that no answer has said.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// Ways that wait for an engine; only the newest counts.
const WAYS_MAX: usize = 4;
/// So often in a row the resolver can have the files read anew, once a second in the long run.
const READS_MAX: u32 = 10;

/// Reads from the operator's files what they allow; says in words what is wrong with them.
pub type Read = Box<dyn FnMut() -> Result<Rules, String> + Send>;

/// What an agent begins with.
pub struct Start {
    /// The firewalls.
    pub firewalls: Vec<Options>,
    /// What the files allow.
    pub rules: Rules,
    /// Reads it anew.
    pub read: Read,
    /// Called when the resolver has sent what no honest one sends.
    pub complain: Box<dyn Fn() + Send + Sync>,
}

/// Engines that take their orders from another process.
pub struct Agent {
    seats: Vec<(Arc<Seat>, SyncSender<OwnedFd>)>,
    shared: Arc<Shared>,
}

struct Shared {
    rules: ArcSwap<Rules>,
    files: Mutex<Files>,
    clock: Clock,
    registry: Registry,
    meter: Meter,
    complain: Box<dyn Fn() + Send + Sync>,
}

struct Files {
    read: Read,
    reads_left: u32,
    refilled: Timestamp,
    /// What was said last, so that it is said once.
    fault: Option<String>,
}

/// One firewall.
struct Seat {
    engine: Arc<Mutex<Engine>>,
    health: Health,
    /// Locked before the engine, and until it has taken what was let through.
    gate: Mutex<Gate>,
    told: Mutex<Option<Told>>,
    /// Whether it reports the metrics, which are those of all.
    has_metrics: bool,
}

/// What the resolver has been told on this connection.
struct Told {
    channel: Arc<Channel>,
    state: Option<State>,
    metrics: Vec<u8>,
}

/// Starts an engine for each firewall; none changes anything before its resolver has told it the whole set.
///
/// # Errors
/// If a thread cannot be started.
pub fn start(start: Start, clock: Clock) -> io::Result<Agent> {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry);
    let files = Files { read: start.read, reads_left: READS_MAX, refilled: clock.now(), fault: None };
    let shared = Arc::new(Shared {
        rules: ArcSwap::from_pointee(start.rules),
        files: Mutex::new(files),
        clock: clock.clone(),
        meter: Meter::new(&registry),
        registry,
        complain: start.complain,
    });
    let mut seats = Vec::new();
    for (at, options) in start.firewalls.into_iter().enumerate() {
        let health = Health::unread();
        let engine = Engine::new(options, Surplus::Adopt, health.clone(), clock.clone(), &metrics);
        let (sender, ways) = sync_channel(WAYS_MAX);
        let seat = Arc::new(Seat {
            engine: Arc::new(Mutex::new(engine)),
            health,
            gate: Mutex::default(),
            told: Mutex::new(None),
            has_metrics: at == 0,
        });
        let (serving, for_serving) = (Arc::clone(&seat), Arc::clone(&shared));
        run_engine(Arc::clone(&seat.engine), move || serving.serve(&ways, &for_serving))?;
        seats.push((seat, sender));
    }
    let reporting: Vec<_> = seats.iter().map(|(seat, _)| Arc::clone(seat)).collect();
    let registry = shared.registry.clone();
    thread::Builder::new().name("nft-report".to_owned()).spawn(move || {
        loop {
            thread::sleep(REPORT_EVERY);
            reporting.iter().for_each(|seat| seat.report(&registry));
        }
    })?;
    Ok(Agent { seats, shared })
}

impl Agent {
    /// Takes new ways to the resolver, one for each firewall, in their order; those before are over.
    pub fn take_ways(&self, ways: Vec<OwnedFd>) {
        if ways.len() != self.seats.len() {
            tracing::warn!(
                "the firewall agent has {} firewalls, the resolver {}: restart greenlane after a change of export.nftables",
                self.seats.len(),
                ways.len()
            );
        }
        for ((_, sender), way) in self.seats.iter().zip(ways) {
            // Full: the keeper starts resolvers faster than we look at them; it sees that this way is closed.
            let _ = sender.try_send(way);
        }
    }

    /// Reads the files again, as the operator asked; what they do not allow any more leaves at once.
    pub fn reload(&self) {
        self.shared.read();
        let (rules, now) = (self.shared.rules.load(), self.shared.clock.now());
        for (seat, _) in &self.seats {
            let mut gate = seat.gate.lock();
            if let Some(change) = gate.tighten(&rules, now) {
                seat.engine.lock().take(&[change]);
            }
        }
    }
}

impl Shared {
    fn read(&self) {
        let mut files = self.files.lock();
        match (files.read)() {
            Ok(rules) => {
                files.fault = None;
                self.rules.store(Arc::new(rules));
            }
            Err(fault) => {
                if files.fault.as_ref() != Some(&fault) {
                    tracing::error!("the firewall agent keeps to the files as they were: {fault}");
                }
                files.fault = Some(fault);
            }
        }
    }

    /// Reads the files again because the resolver says that they have changed; not all the time.
    fn read_if_rested(&self) {
        {
            let mut files = self.files.lock();
            let now = self.clock.now();
            let rested = u32::try_from(now.since(files.refilled).as_secs()).unwrap_or(u32::MAX);
            if rested > 0 {
                files.reads_left = files.reads_left.saturating_add(rested).min(READS_MAX);
                files.refilled = now;
            }
            let Some(left) = files.reads_left.checked_sub(1) else { return };
            files.reads_left = left;
        }
        self.read();
    }
}

impl Seat {
    /// Serves one resolver after another.
    fn serve(&self, ways: &Receiver<OwnedFd>, shared: &Shared) {
        while let Ok(way) = ways.recv() {
            let way = ways.try_iter().last().unwrap_or(way);
            let Ok(channel) = Channel::new(way).map(Arc::new) else { continue };
            let result = self.converse(&channel, shared);
            *self.told.lock() = None;
            channel.close();
            match result {
                Ok(()) => tracing::debug!("the resolver is gone; what it asked for stays until its ends"),
                Err(bad) => {
                    shared.meter.bad_frames.inc();
                    tracing::error!("the resolver sent {bad}: the connection is closed, nothing of it is believed");
                    (shared.complain)();
                }
            }
        }
    }

    /// Takes orders until the resolver is gone.
    fn converse(&self, channel: &Arc<Channel>, shared: &Shared) -> Result<(), BadFrame> {
        let (mut buffer, mut out) = (Buffer::new(), Vec::with_capacity(FRAME_LEN_MAX));
        Tell::Welcome.write(&mut out);
        if channel.send(&out).is_err() {
            return Ok(());
        }
        let Received::Frame(octets) = channel.receive(&mut buffer) else { return Ok(()) };
        let Ask::Hello { now, adopts } = read(octets)? else { return Err(BadFrame::Turn) };
        let ahead = Ahead::new(shared.clock.now(), now);
        self.engine.lock().set_surplus(if adopts { Surplus::Adopt } else { Surplus::Withdraw });
        *self.told.lock() = Some(Told { channel: Arc::clone(channel), state: None, metrics: Vec::new() });
        let mut talk = Talk { shared, ahead, order: Order::default(), told_reasons: Vec::new() };
        loop {
            let Received::Frame(octets) = channel.receive(&mut buffer) else { return Ok(()) };
            let Some(order) = talk.take(octets)? else { continue };
            let mut orders = vec![order];
            let mut gate = self.gate.lock();
            let mut engine = self.engine.lock();
            // What came while the locks were held joins the transaction.
            let mut bad = None;
            while orders.len() < MERGED_MAX
                && let Received::Frame(octets) = channel.receive_now(&mut buffer)
            {
                match talk.take(octets) {
                    Ok(order) => orders.extend(order),
                    Err(found) => {
                        bad = Some(found);
                        break;
                    }
                }
            }
            let orders: Vec<_> = orders.into_iter().map(|order| talk.pass(&mut gate, order)).collect();
            let changes: Vec<_> = orders.iter().map(|passed| Arc::clone(&passed.change)).collect();
            let results = engine.take(&changes);
            drop(engine);
            drop(gate);
            if self.has_news() {
                self.report(&shared.registry);
            }
            for (passed, result) in orders.iter().zip(results) {
                let applied = if passed.is_whole { result } else { Applied::Failed };
                Tell::Reply { order: passed.number, applied, state: self.health.state() }.write(&mut out);
                if channel.send(&out).is_err() {
                    return Ok(());
                }
            }
            if let Some(bad) = bad {
                return Err(bad);
            }
        }
    }

    fn has_news(&self) -> bool {
        self.told.lock().as_ref().is_some_and(|told| told.state != Some(self.health.state()))
    }

    /// Tells the resolver what is new.
    fn report(&self, registry: &Registry) {
        let mut told = self.told.lock();
        let Some(told) = told.as_mut() else { return };
        let mut out = Vec::new();
        if self.has_metrics {
            let text = registry.render();
            if text != told.metrics
                && text.len() <= TEXT_LEN_MAX
                && let Ok(printed) = String::from_utf8(text.clone())
            {
                Tell::Metrics(printed).write(&mut out);
                // Who is gone is noticed by whoever reads from it.
                let _ = told.channel.send(&out);
                told.metrics = text;
            }
        }
        let state = self.health.state();
        if told.state != Some(state) {
            Tell::State(state).write(&mut out);
            let _ = told.channel.send(&out);
            told.state = Some(state);
        }
    }
}

fn read(octets: &[u8]) -> Result<Ask, BadFrame> {
    if octets.len() > FRAME_LEN_MAX { Err(BadFrame::Length) } else { Ask::read(octets) }
}

/// A conversation with one resolver.
struct Talk<'a> {
    shared: &'a Shared,
    ahead: Ahead,
    order: Order,
    /// Refusals are logged once a reason.
    told_reasons: Vec<&'static str>,
}

/// An order for the engine.
struct ForEngine {
    number: u64,
    change: Arc<crate::set::outlet::Change>,
    /// Whether all of it was let through.
    is_whole: bool,
}

impl Talk<'_> {
    /// Takes a frame; returns an order once it is complete.
    fn take(&mut self, octets: &[u8]) -> Result<Option<Order>, BadFrame> {
        let Ask::Part(part) = read(octets)? else { return Err(BadFrame::Turn) };
        let is_last = self.order.take(part, &self.shared.rules.load())?;
        Ok(is_last.then(|| std::mem::take(&mut self.order)))
    }

    fn pass(&mut self, gate: &mut Gate, order: Order) -> ForEngine {
        let shared = self.shared;
        if order.statics().is_some_and(|statics| !gate.knows(statics, &shared.rules.load())) {
            shared.read_if_rested();
        }
        let number = order.number();
        let passed = gate.pass(order, &shared.rules.load(), &self.ahead, shared.clock.now());
        for (what, refusal) in &passed.refused {
            self.refused(*what, *refusal);
        }
        ForEngine { number, change: passed.change, is_whole: passed.refused.is_empty() }
    }

    fn refused(&mut self, what: Prefix, refusal: Refusal) {
        let reason = refusal.as_str();
        self.shared.meter.refused.with_label_values(&[reason]).inc();
        if !self.told_reasons.contains(&reason) {
            self.told_reasons.push(reason);
            tracing::warn!(
                "the firewall agent refuses {what}, which the resolver asked for: {reason}; more are counted"
            );
        }
    }
}

/// What the agent counts beside its engines.
#[derive(Debug)]
struct Meter {
    refused: IntCounterVec,
    bad_frames: IntCounter,
}

impl Meter {
    fn new(registry: &Registry) -> Self {
        let refused = registry.add(IntCounterVec::new(
            Opts::new(
                "greenlane_agent_refused_total",
                "What the resolver asked the firewall agent for and did not get, by reason.",
            ),
            &["reason"],
        ));
        for reason in Refusal::labels() {
            refused.with_label_values(&[reason]);
        }
        let bad_frames = registry.add(IntCounter::new(
            "greenlane_agent_bad_frames_total",
            "Times that the resolver sent the firewall agent what no honest one sends.",
        ));
        Self { refused, bad_frames }
    }
}
