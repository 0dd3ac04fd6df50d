//! The resolver's side: a sink whose engine works in another process.
//!
//! One thread takes orders and sends them; for each connection another takes the answers. While the agent is away the
//! sink is down and orders fail at once. After that it asks the writer for the whole set.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};

use super::super::Surplus;
use super::frame::{Ask, BadFrame, FRAME_LEN_MAX, HOSTS_MAX, PREFIXES_MAX, Part, Tell};
use super::{Buffer, Channel, Received};
use crate::clock::Clock;
use crate::metrics::{Registry, Text};
use crate::set::outlet::{Change, Health, Intake, Next, Order, State};

/// How long the sending thread sleeps at most before it looks whether something has ended.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long answers are waited for once the writer has ended.
const LAST_PATIENCE: Duration = Duration::from_secs(3);
/// Ways that wait; only the newest counts.
const WAYS_MAX: usize = 4;

/// What the resolver counts of its agent, for all firewalls.
#[derive(Clone, Debug)]
pub struct Meter {
    connected: IntGauge,
    connections: IntCounter,
    /// The agent's own metrics.
    text: Text,
}

impl Meter {
    /// Registers the metrics; once a registry.
    pub fn new(registry: &Registry) -> Self {
        Self {
            connected: registry.add(IntGauge::new(
                "greenlane_agent_connected",
                "Firewalls whose agent is there; the agent's own metrics are as of its last report.",
            )),
            connections: registry.add(IntCounter::new(
                "greenlane_agent_connections_total",
                "Connections to the firewall agent; each but the first is one that had ended.",
            )),
            text: registry.add_text(),
        }
    }
}

/// The handle by which a sink gets its ways to the agent.
#[derive(Debug)]
pub struct Remote(SyncSender<OwnedFd>);

impl Remote {
    /// Gives it a new way; the one before is over.
    pub fn take_way(&self, way: OwnedFd) {
        // Full, or the sink has ended: the agent sees that the way is closed.
        let _ = self.0.try_send(way);
    }
}

/// The handles of all sinks, in the order of their firewalls; ways may come before the sinks are there.
#[derive(Debug, Default)]
pub struct Remotes(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    remotes: Vec<Remote>,
    ways: Vec<OwnedFd>,
}

impl Remotes {
    /// Takes the handles.
    pub fn begin(&self, remotes: Vec<Remote>) {
        let mut waiting = self.0.lock();
        let ways = mem::take(&mut waiting.ways);
        remotes.iter().zip(ways).for_each(|(remote, way)| remote.take_way(way));
        waiting.remotes = remotes;
    }

    /// Gives each sink a new way.
    pub fn take_ways(&self, ways: Vec<OwnedFd>) {
        let mut waiting = self.0.lock();
        if waiting.remotes.is_empty() {
            waiting.ways = ways;
        } else {
            waiting.remotes.iter().zip(ways).for_each(|(remote, way)| remote.take_way(way));
        }
    }
}

/// Starts a sink that passes orders on to the agent. `surplus` as in [`start`](super::super::start); `complain` is called
/// when the agent has sent what no honest one sends.
///
/// # Errors
/// If a thread cannot be started.
pub fn connect(
    intake: Intake,
    surplus: Surplus,
    clock: Clock,
    meter: Meter,
    complain: Arc<dyn Fn() + Send + Sync>,
) -> io::Result<Remote> {
    let (sender, ways) = sync_channel(WAYS_MAX);
    let (health, adopts) = (intake.health(), surplus == Surplus::Adopt);
    let sink = Sink { intake, health, adopts, clock, meter, complain, is_first: true, orders: 0 };
    thread::Builder::new().name("nft-remote".to_owned()).spawn(move || sink.run(&ways))?;
    Ok(Remote(sender))
}

struct Sink {
    intake: Intake,
    health: Health,
    adopts: bool,
    clock: Clock,
    meter: Meter,
    complain: Arc<dyn Fn() + Send + Sync>,
    is_first: bool,
    /// How many orders were sent.
    orders: u64,
}

/// What the two threads of a connection share.
struct Shared {
    channel: Channel,
    pending: Mutex<HashMap<u64, Order>>,
    has_ended: AtomicBool,
}

impl Sink {
    fn run(mut self, ways: &Receiver<OwnedFd>) {
        while let Some(way) = self.next_way(ways) {
            let Ok(channel) = Channel::new(way) else { continue };
            if !self.is_welcome(&channel) {
                self.health.set(State::Down);
                self.is_first = false;
                continue;
            }
            if !mem::take(&mut self.is_first) {
                self.intake.start_over();
            }
            self.meter.connected.inc();
            self.meter.connections.inc();
            let is_over = self.converse(channel);
            self.meter.connected.dec();
            if is_over {
                return;
            }
            self.health.set(State::Down);
            self.meter.text.change(without_up);
            tracing::warn!("the firewall agent is gone; DNS goes on, and the kernel keeps what it has until its ends");
        }
    }

    /// Waits for a way; `None` if the writer has ended. Before the first one orders wait, after that they fail.
    fn next_way(&mut self, ways: &Receiver<OwnedFd>) -> Option<OwnedFd> {
        loop {
            match ways.recv_timeout(PATIENCE) {
                Ok(way) => return Some(ways.try_iter().last().unwrap_or(way)),
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody could give us one any more.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(PATIENCE),
            }
            if self.is_first {
                continue;
            }
            // Dropped orders have failed.
            while match self.intake.blocking_next(Duration::ZERO) {
                Next::Order(_) => true,
                Next::Idle => false,
                Next::Closed => return None,
            } {}
        }
    }

    /// Waits for the agent's first word and answers it.
    fn is_welcome(&self, channel: &Channel) -> bool {
        let mut buffer = Buffer::new();
        let Received::Frame(octets) = channel.receive(&mut buffer) else { return false };
        match read(octets) {
            Ok(Tell::Welcome) => {
                let mut out = Vec::new();
                Ask::Hello { now: self.clock.now(), adopts: self.adopts }.write(&mut out);
                channel.send(&out).is_ok()
            }
            Ok(_) => self.is_bad(BadFrame::Turn),
            Err(bad) => self.is_bad(bad),
        }
    }

    fn is_bad(&self, bad: BadFrame) -> bool {
        tell_bad(bad);
        (self.complain)();
        false
    }

    /// Passes orders on until the agent is gone, or the writer has ended: then it returns true.
    fn converse(&mut self, channel: Channel) -> bool {
        let (pending, has_ended) = (Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { channel, pending, has_ended });
        let listener = Listener {
            shared: Arc::clone(&shared),
            health: self.health.clone(),
            text: self.meter.text.clone(),
            complain: Arc::clone(&self.complain),
        };
        let Ok(listening) = thread::Builder::new().name("nft-replies".to_owned()).spawn(move || listener.run()) else {
            return false;
        };
        let is_over = self.send_orders(&shared);
        shared.channel.close();
        let _ = listening.join();
        is_over
    }

    fn send_orders(&mut self, shared: &Shared) -> bool {
        let mut out = Vec::with_capacity(FRAME_LEN_MAX);
        while !shared.has_ended.load(Ordering::Acquire) {
            match self.intake.blocking_next(PATIENCE) {
                Next::Order(order) => {
                    self.orders += 1;
                    let change = Arc::clone(&order.change);
                    shared.pending.lock().insert(self.orders, order);
                    let sent = parts(self.orders, &change).try_for_each(|part| {
                        Ask::Part(part).write(&mut out);
                        shared.channel.send(&out)
                    });
                    if sent.is_err() {
                        break;
                    }
                }
                Next::Idle => {}
                Next::Closed => {
                    let end = self.clock.now().after(LAST_PATIENCE);
                    while !shared.pending.lock().is_empty()
                        && !shared.has_ended.load(Ordering::Acquire)
                        && self.clock.now() < end
                    {
                        thread::sleep(Duration::from_millis(1));
                    }
                    return true;
                }
            }
        }
        false
    }
}

fn tell_bad(bad: BadFrame) {
    tracing::error!("the firewall agent sent {bad}: the connection is closed");
}

fn read(octets: &[u8]) -> Result<Tell, BadFrame> {
    if octets.len() > FRAME_LEN_MAX { Err(BadFrame::Length) } else { Tell::read(octets) }
}

/// Cuts a change into parts that fit into frames; at least one.
fn parts(order: u64, change: &Change) -> impl Iterator<Item = Part> {
    let statics: Vec<_> = change.statics.iter().flat_map(|all| all.iter().map(|entry| entry.prefix)).collect();
    let (host_count, static_count) = (change.hosts.len(), statics.len());
    let count = host_count.div_ceil(HOSTS_MAX).max(static_count.div_ceil(PREFIXES_MAX)).max(1);
    let slice = |at: usize, size: usize, len: usize| (at * size).min(len)..((at + 1) * size).min(len);
    (0..count).map(move |at| Part {
        order,
        is_whole: change.whole,
        has_statics: change.statics.is_some(),
        is_last: at + 1 == count,
        hosts: change.hosts[slice(at, HOSTS_MAX, host_count)].to_vec(),
        statics: statics[slice(at, PREFIXES_MAX, static_count)].to_vec(),
    })
}

/// While nobody programs the firewall it is not up, whatever the last report said.
fn without_up(text: &str) -> String {
    let line = |line: &str| match line.rsplit_once(' ') {
        Some((name, _)) if name.split('{').next() == Some("greenlane_nftables_up") => format!("{name} 0\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// Takes what the agent says on one connection.
struct Listener {
    shared: Arc<Shared>,
    health: Health,
    text: Text,
    complain: Arc<dyn Fn() + Send + Sync>,
}

impl Listener {
    fn run(self) {
        let mut buffer = Buffer::new();
        // What the agent says of itself before it holds the whole set does not count.
        let mut is_told = false;
        while let Received::Frame(octets) = self.shared.channel.receive(&mut buffer) {
            match read(octets) {
                Ok(Tell::Reply { order, applied, state }) => {
                    is_told = true;
                    self.note(state);
                    match self.shared.pending.lock().remove(&order) {
                        Some(order) => order.done(applied),
                        None => {
                            self.is_bad(BadFrame::Turn);
                            break;
                        }
                    }
                }
                Ok(Tell::State(state)) if is_told => self.note(state),
                Ok(Tell::State(_)) => {}
                Ok(Tell::Metrics(text)) => self.text.set(text),
                Ok(Tell::Welcome) => {
                    self.is_bad(BadFrame::Turn);
                    break;
                }
                Err(bad) => {
                    self.is_bad(bad);
                    break;
                }
            }
        }
        self.shared.has_ended.store(true, Ordering::Release);
        self.shared.channel.close();
        self.health.set(State::Down);
        // Dropped orders have failed.
        self.shared.pending.lock().clear();
    }

    fn note(&self, state: State) {
        if self.health.state() != state {
            self.health.set(state);
        }
    }

    fn is_bad(&self, bad: BadFrame) {
        tell_bad(bad);
        (self.complain)();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::clock::Timestamp;
    use crate::prefix::Prefix;
    use crate::set::{Session, StaticEntry};

    #[test]
    fn large_changes_go_in_parts() {
        let mut change = Change::empty(Session(1), 1, Timestamp::default());
        assert_eq!(parts(7, &change).collect::<Vec<_>>(), [Part { order: 7, is_last: true, ..Part::default() }]);
        let addr = |n: u32| IpAddr::V4(Ipv4Addr::from(0x0900_0000 + n));
        change.whole = true;
        change.hosts = (0..2500).map(|n| (addr(n), None)).collect();
        let entry = |n| StaticEntry { prefix: Prefix::host(addr(n)), apps: Arc::new([]) };
        change.statics = Some((0..300).map(entry).collect());
        let parts: Vec<_> = parts(7, &change).collect();
        let lens: Vec<_> = parts.iter().map(|part| (part.hosts.len(), part.statics.len(), part.is_last)).collect();
        assert_eq!(lens, [(1024, 256, false), (1024, 44, false), (452, 0, true)]);
        assert!(parts.iter().all(|part| part.is_whole && part.has_statics));
        let hosts: Vec<_> = parts.into_iter().flat_map(|part| part.hosts).collect();
        assert_eq!(hosts, change.hosts);
    }

    #[test]
    fn nothing_is_up_while_the_agent_is_away() {
        let text = "# HELP greenlane_nftables_up x\ngreenlane_nftables_up 1\ngreenlane_nftables_repairs_total 3\n";
        let expected = text.replace("_up 1", "_up 0");
        assert_eq!(without_up(text), expected);
    }
}
