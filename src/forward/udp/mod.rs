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
//! Whoever waits (see `hopes`) is told on the reader's thread.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::time::Instant;

mod port;
mod reader;

pub(super) use reader::Reader;

use self::port::{Line, Port};
use super::hopes::{Broken, Courier, Hope, Leaves, Place};
use super::message::Manner;
use crate::wire::Question;

/// How many ports are in use at a time: enough that one reply seldom meets another on its socket.
const PORTS_MAX: usize = 256;

/// How many sockets all upstreams may have open together, however many the process may.
const SOCKETS_MAX: usize = 4096;

/// The fewest ports that are in use at a time under load.
const PORTS_MIN: usize = 8;

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
        let (port, id) = self.enlist(question, due, hope)?;
        let place = port.send(id, question, manner);
        self.reader.alert();
        place
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
    fn enlist(
        &self,
        question: &Arc<Question>,
        due: Option<Instant>,
        mut hope: Box<dyn Hope>,
    ) -> Option<(Arc<Port>, u16)> {
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
                Ok(id) => return Some((port, id)),
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
