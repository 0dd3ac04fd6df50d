//! Plain UDP to one upstream: many questions over few sockets, none guessable.
//!
//! ```text
//! Datagrams::send ─▶ a port drawn at random ─▶ noted under a random id ─▶ sent, by whoever asks
//!                    Hope::replied ◀─ id and question match ◀─ the one Reader thread ◀─ reply
//!                    Hope::overdue ◀─ patience is over ◀──────────┘ (one sweep for all)
//! ```
//!
//! Each try goes out from a random port under a random id (RFC 5452 §9.2): from a fresh port as long as fewer than
//! [`PORTS_MAX`] are open, else from one of those, and a port that was used 256 times or for 30 s is replaced by a
//! fresh one. So a flood costs no socket a question, and a port that somebody found out is soon of no use to him.
//!
//! Whoever waits is a [`Hope`]. It is told on the reader's thread, so that what follows from a reply needs no other
//! thread; it must not wait there.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::sync::oneshot;
use tokio::time::Instant;

mod port;
mod reader;

pub(super) use port::Place;
pub(super) use reader::Reader;

use self::port::{Line, Port};
use super::exchange::Broken;
use super::message::Manner;
use crate::wire::Question;

/// How many ports are in use at a time: enough that one reply seldom meets another on its socket.
const PORTS_MAX: usize = 256;

/// How many sockets all upstreams may have open together, however many the process may.
const SOCKETS_MAX: usize = 4096;

/// The fewest ports that are in use at a time under load.
const PORTS_MIN: usize = 8;

/// Whoever waits for a reply; told once, on the reader's thread or on that of the sender.
pub(super) trait Hope: Send {
    /// The reply came; it repeats the question.
    fn replied(self: Box<Self>, reply: &[u8]);
    /// There will be none: the socket failed.
    fn broke(self: Box<Self>, broken: Broken);
    /// Nothing has come in the time it gave; returns who waits on at `place`.
    fn overdue(self: Box<Self>, place: Place) -> Box<dyn Hope>;
    /// The wait was ended by others: too many wait.
    fn evicted(self: Box<Self>);
}

/// The ports to one upstream.
pub(super) struct Datagrams {
    addr: SocketAddr,
    reader: Arc<Reader>,
    line: Arc<Line>,
    /// Those to draw from. The reader keeps them alive until they are over.
    ports: Mutex<Vec<Weak<Port>>>,
    ports_max: usize,
}

impl Datagrams {
    /// Makes ready to ask `addr` over at most `sockets_max` sockets; none is opened yet.
    pub(super) fn new(addr: SocketAddr, sockets_max: usize, mismatches: IntCounter, reader: Arc<Reader>) -> Self {
        // The other half is for retired ports on which stragglers wait.
        let ports_max = (sockets_max / 2).clamp(PORTS_MIN, PORTS_MAX);
        let line = Line { mismatches, open: AtomicUsize::new(0), open_max: sockets_max.max(ports_max) };
        Self { addr, reader, line: Arc::new(line), ports: Mutex::default(), ports_max }
    }

    /// Sends a question; `hope` hears what comes of it, of silence first at `due`. Returns where it waits, unless it
    /// has heard of a failure already.
    pub(super) fn send(
        &self,
        question: &Arc<Question>,
        manner: Manner,
        due: Option<Instant>,
        hope: Box<dyn Hope>,
    ) -> Option<Place> {
        let place = self.enlist(question, due, hope)?;
        let is_sent = place.port.send(place.id, question, manner);
        self.reader.alert();
        is_sent.then_some(place)
    }

    /// Asks and waits for the reply to exactly this question. Safe to cancel.
    ///
    /// # Errors
    /// [`Broken`] when the socket failed.
    pub(super) async fn ask(&self, question: &Arc<Question>, manner: Manner) -> Result<Vec<u8>, Broken> {
        let (courier, reply) = Courier::new();
        let _leaves = self.send(question, manner, None, courier).map(Leaves);
        reply.await.unwrap_or_else(|_| Err(Broken("the socket was closed".to_owned())))
    }

    /// Finds a port for a question and notes there who waits.
    fn enlist(&self, question: &Arc<Question>, due: Option<Instant>, mut hope: Box<dyn Hope>) -> Option<Place> {
        /// Ports that are over are met once each, full ones only in a flood.
        const DRAWS_MAX: usize = 2 * PORTS_MAX;
        let mut ports = self.ports.lock();
        for _ in 0..DRAWS_MAX {
            let port = match self.draw(&mut ports) {
                Ok(Some(port)) => port,
                Ok(None) => continue,
                Err(error) => {
                    drop(ports);
                    hope.broke(error.into());
                    return None;
                }
            };
            match port.enlist(question, due, hope) {
                Ok(id) => return Some(Place { port, id }),
                Err(back) => hope = back,
            }
        }
        drop(ports);
        hope.broke(Broken("too many questions wait on every port".to_owned()));
        None
    }

    /// Draws a port, a fresh one if there is room; `None` if what was drawn is over and was struck off.
    fn draw(&self, ports: &mut Vec<Weak<Port>>) -> io::Result<Option<Arc<Port>>> {
        if ports.len() < self.ports_max && self.line.open.load(Ordering::Relaxed) < self.line.open_max {
            match self.reader.open(self.addr, &self.line) {
                Ok(port) => {
                    ports.push(Arc::downgrade(&port));
                    return Ok(Some(port));
                }
                Err(error) if ports.is_empty() => return Err(error),
                // No descriptor is left: the ports that there are must do.
                Err(_) => {}
            }
        }
        if ports.is_empty() {
            return Err(io::Error::other("every port is waited on"));
        }
        let at = rand::random_range(..ports.len());
        let port = ports[at].upgrade().filter(|port| port.takes_questions());
        if port.is_none() {
            ports.swap_remove(at);
        }
        Ok(port)
    }
}

/// Returns how many UDP sockets may be open at a time: half of the process's descriptors, at most [`SOCKETS_MAX`].
///
/// The other half is for clients and files. Where the limit cannot be read, it is the usual one of 1,024.
pub(super) fn sockets_max() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next())
        .map_or(Some(1024), |soft| if soft == "unlimited" { Some(usize::MAX) } else { soft.parse().ok() })
        .unwrap_or(1024);
    (soft / 2).clamp(16, SOCKETS_MAX)
}

/// Brings the reply to a task.
pub(super) struct Courier(oneshot::Sender<Result<Vec<u8>, Broken>>);

impl Courier {
    /// Makes one, and what the task waits for.
    pub(super) fn new() -> (Box<Self>, oneshot::Receiver<Result<Vec<u8>, Broken>>) {
        let (sender, reply) = oneshot::channel();
        (Box::new(Self(sender)), reply)
    }
}

impl Hope for Courier {
    fn replied(self: Box<Self>, reply: &[u8]) {
        // Whoever waited may have gone that moment.
        let _ = self.0.send(Ok(reply.to_vec()));
    }

    fn broke(self: Box<Self>, broken: Broken) {
        let _ = self.0.send(Err(broken));
    }

    fn overdue(self: Box<Self>, _: Place) -> Box<dyn Hope> {
        self
    }

    fn evicted(self: Box<Self>) {}
}

/// Leaves the place when dropped.
pub(super) struct Leaves(pub(super) Place);

impl Drop for Leaves {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}
