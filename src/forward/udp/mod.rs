//! Plain UDP to one upstream: many questions over few sockets, none guessable.
//!
//! ```text
//! Datagrams::send ─▶ a port drawn at random ─▶ noted under a random id ─▶ sent, by whoever asks
//!                    Hope::replied ◀─ id and question match ◀─ Exchange::turn ◀─ reply
//!                    Hope::overdue ◀─ patience is over ◀──────────┘ (one sweep for all)
//! ```
//!
//! Each try goes out from a random port under a random id (RFC 5452 §9.2): from a fresh port as long as fewer than
//! [`PORTS_MAX`] are open, else from one of those, and a port that was used 256 times or for 30 s is replaced by a
//! fresh one. If wanted, the letters of its name are drawn at random, too (`letters`). So a flood costs no socket a question, and a port that somebody found out is soon of no use to him.
//!
//! Whoever waits (see `hopes`) is told by the thread whose exchange has the port: its own where it has one, else the
//! one thread that reads for all others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::time::Instant;

mod pool;
mod port;
mod reader;

pub use reader::Exchange;
pub(super) use reader::{Reader, Started};

use self::pool::Unplaced;
use self::port::Line;
use super::hopes::{Broken, Courier, Hope, Leaves, Place};
use super::letters::Repeats;
use super::measure::Tally;
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
    /// Who reads for those that have no exchange of their own.
    reader: Arc<Started>,
    line: Arc<Line>,
}

impl Datagrams {
    /// Makes ready to ask `addr` over at most `sockets_max` sockets; none is opened yet.
    pub(super) fn new(
        addr: SocketAddr,
        sockets_max: usize,
        repeats: Repeats,
        tally: Tally,
        reader: Arc<Started>,
    ) -> Self {
        // The other half is for retired ports on which stragglers wait.
        let ports_max = (sockets_max / 2).clamp(PORTS_MIN, PORTS_MAX);
        let (pools, open, open_max) = (AtomicUsize::new(0), AtomicUsize::new(0), sockets_max.max(ports_max));
        Self { reader, line: Arc::new(Line { addr, ports_max, pools, repeats, tally, open, open_max }) }
    }

    /// Sends a question; `hope` hears what comes of it, of silence first at `due`. Returns where it waits, unless it
    /// has heard of a failure already.
    pub(super) fn send(
        &self,
        question: &Arc<Question>,
        manner: Manner,
        (now, due): (Instant, Option<Instant>),
        hope: Box<dyn Hope>,
    ) -> Option<Place> {
        let common = self.reader.reader();
        let own = Reader::of_this_thread();
        let reader = own.as_ref().unwrap_or(common);
        let letters = self.line.repeats.draw();
        let enlisted = match reader.enlist(&self.line, Unplaced { question, letters, now, due, hope }) {
            // Others have taken what ports there may be.
            Err((hope, _)) if own.is_some() => {
                let asked = Unplaced { question, letters, now, due, hope };
                common.enlist(&self.line, asked).map(|placed| (common, placed))
            }
            enlisted => enlisted.map(|placed| (reader, placed)),
        };
        match enlisted {
            Ok((reader, (port, id))) => {
                let place = port.send(id, (question, letters), manner);
                reader.alert();
                place
            }
            Err((hope, broken)) => {
                hope.broke(broken);
                None
            }
        }
    }

    /// Asks and waits for the reply to exactly this question. Safe to cancel.
    ///
    /// # Errors
    /// [`Broken`] when the socket failed.
    pub(super) async fn ask(&self, question: &Arc<Question>, manner: Manner) -> Result<Vec<u8>, Broken> {
        let (courier, reply) = Courier::new();
        let _leaves = self.send(question, manner, (Instant::now(), None), courier).map(Leaves);
        reply.await.unwrap_or_else(|_| Err(Broken("the socket was closed".to_owned())))
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
