//! One source port: a connected socket, and the questions whose replies it waits for.
//!
//! A reply is taken by whoever waits under its id, and only if it repeats the question; anything else is counted,
//! dropped, and the wait goes on. The socket is connected: the system drops what comes from another address or port,
//! and reports an ICMP error at once, which ends every wait on this port.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mio::Token;
use mio::net::UdpSocket;
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::time::Instant;

use super::{Broken, Hope};
use crate::forward::message::{Manner, is_reply, query};
use crate::wire::Question;

/// How many questions a port is used for before a fresh one takes its place: whoever finds out a port gains little.
pub(super) const USES_MAX: u32 = 256;

/// How long a port is used.
pub(super) const AGE_MAX: Duration = Duration::from_secs(30);

/// How many questions may wait on one port; ids stay easy to draw and hard to guess.
const WAITS_MAX: usize = 512;

/// What all ports of one upstream share.
#[derive(Debug)]
pub(super) struct Line {
    /// Packets that answered another question.
    pub(super) mismatches: IntCounter,
    /// Ports open now, retired ones included.
    pub(super) open: AtomicUsize,
    /// How many may be.
    pub(super) open_max: usize,
}

/// What a port is good for at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Somebody waits on it.
    Waiting,
    /// Nobody does.
    Idle,
    /// Nobody does or ever will: it can be closed.
    Over,
}

/// A connected socket with a port that the system drew.
pub(in crate::forward) struct Port {
    pub(super) token: Token,
    pub(super) socket: UdpSocket,
    line: Arc<Line>,
    opened: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waits: Vec<Wait>,
    uses: u32,
    /// Takes no more questions; closed once nobody waits on it.
    is_retired: bool,
}

/// A question whose reply is waited for.
struct Wait {
    id: u16,
    question: Arc<Question>,
    /// When the one who waits wants to hear that nothing came.
    due: Option<Instant>,
    /// Away for the moment in which it is told that it is due.
    hope: Option<Box<dyn Hope>>,
}

impl Port {
    /// Puts a connected socket into service.
    pub(super) fn new(token: Token, socket: UdpSocket, line: Arc<Line>) -> Self {
        line.open.fetch_add(1, Ordering::Relaxed);
        Self { token, socket, line, opened: Instant::now(), state: Mutex::default() }
    }

    /// Returns whether it takes further questions.
    pub(super) fn takes_questions(&self) -> bool {
        !self.state.lock().is_retired
    }

    /// Takes a question in; gives its hope back if this port takes no more.
    pub(super) fn enlist(
        &self,
        question: &Arc<Question>,
        due: Option<Instant>,
        hope: Box<dyn Hope>,
    ) -> Result<u16, Box<dyn Hope>> {
        let mut state = self.state.lock();
        if state.is_retired || state.waits.len() >= WAITS_MAX {
            return Err(hope);
        }
        state.uses += 1;
        if state.uses >= USES_MAX {
            self.retire(&mut state);
        }
        let id = state.draw_id();
        state.waits.push(Wait { id, question: question.clone(), due, hope: Some(hope) });
        Ok(id)
    }

    /// Lets it go, if another may be opened in its place.
    fn retire(&self, state: &mut State) {
        state.is_retired = self.line.open.load(Ordering::Relaxed) < self.line.open_max;
    }

    /// Returns whether anybody waits on it.
    pub(super) fn has_waits(&self) -> bool {
        !self.state.lock().waits.is_empty()
    }

    /// Sends the question that was enlisted under `id`; returns whether its reply is waited for now. If not, its hope
    /// has heard so.
    pub(super) fn send(&self, id: u16, question: &Question, manner: Manner) -> bool {
        let octets = query(id, question, manner);
        let mut sent = self.socket.send(&octets);
        if let Err(error) = &sent
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            // The system tells of an earlier question's fate; the packet was not sent.
            self.fail_all_but(id, error);
            sent = self.socket.send(&octets);
        }
        let Err(error) = sent else { return true };
        // Taken already if the reader heard of it first.
        if let Some(hope) = self.take(id) {
            hope.broke(error.into());
        }
        false
    }

    /// Takes out who waits under `id`, if anybody does.
    pub(super) fn take(&self, id: u16) -> Option<Box<dyn Hope>> {
        let mut state = self.state.lock();
        let at = state.waits.iter().position(|wait| wait.id == id)?;
        state.waits.swap_remove(at).hope
    }

    /// Reads what came, until nobody waits here any more or there is nothing left.
    pub(super) fn read(&self, room: &mut [u8]) {
        while self.has_waits() {
            match self.socket.recv(room) {
                Ok(len) => self.deliver(&room[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nobody listens there (ICMP), no route, or the like.
                Err(error) => return self.fail_all(&error),
            }
        }
    }

    /// Gives a reply to who waits for it.
    fn deliver(&self, reply: &[u8]) {
        let taken = reply.first_chunk().and_then(|id| self.claim(u16::from_be_bytes(*id), reply));
        match taken {
            Some(hope) => hope.replied(reply),
            None => self.line.mismatches.inc(),
        }
    }

    fn claim(&self, id: u16, reply: &[u8]) -> Option<Box<dyn Hope>> {
        let mut state = self.state.lock();
        let at = state.waits.iter().position(|wait| wait.id == id && is_reply(reply, &wait.question))?;
        state.waits.swap_remove(at).hope
    }

    fn fail_all(&self, error: &io::Error) {
        let waits = std::mem::take(&mut self.state.lock().waits);
        waits.into_iter().filter_map(|wait| wait.hope).for_each(|hope| hope.broke(Broken(error.to_string())));
    }

    fn fail_all_but(&self, id: u16, error: &io::Error) {
        let failed: Vec<Wait> = self.state.lock().waits.extract_if(.., |wait| wait.id != id).collect();
        failed.into_iter().filter_map(|wait| wait.hope).for_each(|hope| hope.broke(Broken(error.to_string())));
    }

    /// Tells those whose patience is over, and looks at its age.
    pub(super) fn look_after(self: &Arc<Self>, now: Instant) -> Use {
        let due: Vec<(u16, Box<dyn Hope>)> = {
            let mut state = self.state.lock();
            if !state.is_retired && now.saturating_duration_since(self.opened) >= AGE_MAX {
                self.retire(&mut state);
            }
            if state.waits.is_empty() {
                return if state.is_retired { Use::Over } else { Use::Idle };
            }
            let is_due = |wait: &&mut Wait| wait.due.is_some_and(|due| due <= now);
            let told = |wait: &mut Wait| {
                wait.due = None;
                wait.hope.take().map(|hope| (wait.id, hope))
            };
            state.waits.iter_mut().filter(is_due).filter_map(told).collect()
        };
        for (id, hope) in due {
            let hope = hope.overdue(Place { port: Arc::clone(self), id });
            let mut state = self.state.lock();
            // Gone if the socket failed meanwhile; then dropping the hope tells.
            if let Some(wait) = state.waits.iter_mut().find(|wait| wait.id == id && wait.hope.is_none()) {
                wait.hope = Some(hope);
            }
        }
        Use::Waiting
    }
}

impl State {
    fn draw_id(&self) -> u16 {
        loop {
            let id = rand::random();
            if self.waits.iter().all(|wait| wait.id != id) {
                return id;
            }
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.line.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where somebody waits.
#[derive(Clone)]
pub(in crate::forward) struct Place {
    pub(super) port: Arc<Port>,
    pub(super) id: u16,
}

impl Place {
    /// Takes out who waits here, if the reply has not come; it hears nothing more.
    pub(in crate::forward) fn take(&self) -> Option<Box<dyn Hope>> {
        self.port.take(self.id)
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("id", &self.id).finish_non_exhaustive()
    }
}
