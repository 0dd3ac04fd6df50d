//! The ports to one upstream that an exchange draws from.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::PORTS_MAX;
use super::port::{Berth, Line, Port};
use crate::forward::hopes::{Broken, Hope};
use crate::forward::letters::Letters;
use crate::wire::Question;

/// A question on its way to a port.
pub(super) struct Unplaced<'a> {
    pub(super) question: &'a Arc<Question>,
    pub(super) letters: Letters,
    pub(super) now: Instant,
    /// When the one who waits wants to hear that nothing came.
    pub(super) due: Option<Instant>,
    pub(super) hope: Box<dyn Hope>,
}

/// The port, and the id under which the question is noted there; or the one who waits in vain, and why.
pub(super) type Enlisted = Result<(Arc<Port>, u16), (Box<dyn Hope>, Broken)>;

/// Ports to draw from. The reader keeps them alive until they are over.
pub(super) struct Pool {
    line: Arc<Line>,
    ports: Vec<Weak<Port>>,
}

impl Pool {
    /// Makes an empty one.
    pub(super) fn new(line: Arc<Line>) -> Self {
        line.pools.fetch_add(1, Ordering::Relaxed);
        Self { line, ports: Vec::new() }
    }

    /// Returns whether its ports lead there.
    pub(super) fn is_of(&self, line: &Arc<Line>) -> bool {
        Arc::ptr_eq(&self.line, line)
    }

    /// Strikes off what is closed; returns whether anything is left.
    pub(super) fn is_of_use(&mut self) -> bool {
        self.ports.retain(|port| port.strong_count() > 0);
        !self.ports.is_empty()
    }

    /// Finds a port for a question and notes there who waits; `open` opens another.
    pub(super) fn enlist(&mut self, asked: Unplaced<'_>, open: impl Fn(Berth) -> io::Result<Arc<Port>>) -> Enlisted {
        /// Ports that are over are met once each, full ones only in a flood.
        const DRAWS_MAX: usize = 2 * PORTS_MAX;
        let Unplaced { question, letters, now, due, mut hope } = asked;
        for _ in 0..DRAWS_MAX {
            let (at, port) = match self.draw(&open) {
                Ok((at, Some(port))) => (at, port),
                Ok((at, None)) => {
                    self.ports.swap_remove(at);
                    continue;
                }
                Err(error) => return Err((hope, error.into())),
            };
            match port.enlist((question, letters), (now, due), hope) {
                Ok(id) => return Ok((port, id)),
                Err(back) => hope = back,
            }
            if !port.takes_questions() {
                self.ports.swap_remove(at);
            }
        }
        Err((hope, Broken("too many questions wait on every port".to_owned())))
    }

    /// Draws a port, a fresh one if there is room; tells its place, and that what stood there is gone.
    fn draw(&mut self, open: impl Fn(Berth) -> io::Result<Arc<Port>>) -> io::Result<(usize, Option<Arc<Port>>)> {
        if self.ports.len() < self.line.share()
            && let Some(berth) = self.line.berth()
        {
            match open(berth) {
                Ok(port) => {
                    self.ports.push(Arc::downgrade(&port));
                    return Ok((self.ports.len() - 1, Some(port)));
                }
                Err(error) if self.ports.is_empty() => return Err(error),
                // No descriptor is left: the ports that there are must do.
                Err(_) => {}
            }
        }
        if self.ports.is_empty() {
            return Err(io::Error::other("every port is waited on"));
        }
        let at = rand::random_range(..self.ports.len());
        Ok((at, self.ports[at].upgrade()))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.line.pools.fetch_sub(1, Ordering::Relaxed);
    }
}
