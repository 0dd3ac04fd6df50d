//! One source port: a connected socket, and the questions whose replies it waits for.
//!
//! What answers nobody here is counted, dropped, and the wait goes on. The socket is connected: the system drops what
//! comes from another address or port, and reports an ICMP error at once, which ends every wait on this port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mio::Token;
use mio::net::UdpSocket;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::forward::hopes::{Broken, Hope, Hopes, Place, Stray, tell_due};
use crate::forward::letters::{Letters, Repeats};
use crate::forward::measure::{Kind, Tally};
use crate::forward::message::{Manner, query};
use crate::wire::Question;

/// How many questions a port is used for before a fresh one takes its place: whoever finds out a port gains little.
pub(super) const USES_MAX: u32 = 256;

/// How long a port is used.
pub(super) const AGE_MAX: Duration = Duration::from_secs(30);

/// How many questions may wait on one port.
const WAITS_MAX: usize = 512;

/// What all ports of one upstream share.
#[derive(Debug)]
pub(super) struct Line {
    /// Where they lead.
    pub(super) addr: SocketAddr,
    /// How many are drawn from at a time, over all exchanges.
    pub(super) ports_max: usize,
    /// How many exchanges draw from some.
    pub(super) pools: AtomicUsize,
    /// Whether its letters come back.
    pub(super) repeats: Repeats,
    /// Where packets that answer nobody are counted.
    pub(super) tally: Tally,
    /// Ports open now, retired ones included.
    pub(super) open: AtomicUsize,
    /// How many may be.
    pub(super) open_max: usize,
}

impl Line {
    /// Counts what answers nobody, and lets the upstream off that keeps changing letters.
    fn note_stray(&self, stray: Stray) {
        match stray {
            Stray::Unasked => self.tally.failures(Kind::Mismatch).inc(),
            Stray::OtherLetters => {
                self.tally.failures(Kind::Letters).inc();
                if self.repeats.changed() {
                    self.tally.let_off.inc();
                    tracing::warn!(
                        upstream = %self.addr,
                        "upstream does not repeat letter case; for an hour its questions go out without"
                    );
                }
            }
        }
    }

    /// Returns how many ports one exchange may draw from.
    pub(super) fn share(&self) -> usize {
        (self.ports_max / self.pools.load(Ordering::Relaxed).max(1)).max(1)
    }

    /// Returns whether there is room for another port.
    fn has_room(&self) -> bool {
        self.open.load(Ordering::Relaxed) < self.open_max
    }

    /// Takes the room for another port, if there is any.
    pub(super) fn berth(self: &Arc<Self>) -> Option<Berth> {
        let more = |open: usize| (open < self.open_max).then_some(open + 1);
        let taken = self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Berth(Arc::clone(self)))
    }
}

/// The room for one port of a line.
pub(super) struct Berth(Arc<Line>);

impl Drop for Berth {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
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

/// A connected socket with a port that the system drew. It takes no more questions once its hopes are closed.
pub(super) struct Port {
    pub(super) token: Token,
    socket: UdpSocket,
    berth: Berth,
    opened: Instant,
    hopes: Arc<Mutex<Hopes>>,
}

impl Port {
    /// Puts a connected socket into service.
    pub(super) fn new(token: Token, socket: UdpSocket, berth: Berth) -> Self {
        Self { token, socket, berth, opened: Instant::now(), hopes: Hopes::new(WAITS_MAX) }
    }

    /// Returns whether it takes further questions.
    pub(super) fn takes_questions(&self) -> bool {
        !self.hopes.lock().is_closed
    }

    /// Takes a question in; gives its hope back if this port takes no more, or is too old.
    pub(super) fn enlist(
        &self,
        (question, letters): (&Arc<Question>, Letters),
        (now, due): (Instant, Option<Instant>),
        hope: Box<dyn Hope>,
    ) -> Result<u16, Box<dyn Hope>> {
        let mut hopes = self.hopes.lock();
        self.retire_if_old(&mut hopes, now);
        let id = hopes.enlist(question, letters, due, hope)?;
        if hopes.uses >= USES_MAX {
            self.retire(&mut hopes);
        }
        Ok(id)
    }

    /// Sends the question that was enlisted under `id`; returns where its reply is waited for. Without a place its
    /// hope has heard that there is none.
    pub(super) fn send(&self, id: u16, (question, letters): (&Question, Letters), manner: Manner) -> Option<Place> {
        let octets = query(id, question, letters, manner);
        let mut sent = self.socket.send(&octets);
        if let Err(error) = &sent
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            // The system tells of an earlier question's fate; the packet was not sent.
            self.fail_all_but(Some(id), error);
            sent = self.socket.send(&octets);
        }
        let Err(error) = sent else { return Some(Place::new(&self.hopes, id)) };
        // Taken already if the reader heard of it first.
        let hope = self.hopes.lock().take(id);
        if let Some(hope) = hope {
            hope.broke(error.into());
        }
        None
    }

    /// Reads what came, until nobody waits here any more or there is nothing left.
    pub(super) fn read(&self, room: &mut [u8]) {
        let mut is_waiting = !self.hopes.lock().is_empty();
        while is_waiting {
            match self.socket.recv(room) {
                Ok(len) => is_waiting = self.deliver(&room[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nobody listens there (ICMP), no route, or the like.
                Err(error) => return self.fail_all_but(None, &error),
            }
        }
    }

    /// Tells those whose patience is over, and looks at its age.
    pub(super) fn look_after(&self, now: Instant) -> Use {
        {
            let mut hopes = self.hopes.lock();
            self.retire_if_old(&mut hopes, now);
            if hopes.is_empty() {
                return if hopes.is_closed { Use::Over } else { Use::Idle };
            }
        }
        tell_due(&self.hopes, now);
        Use::Waiting
    }

    fn retire_if_old(&self, hopes: &mut Hopes, now: Instant) {
        if !hopes.is_closed && now.saturating_duration_since(self.opened) >= AGE_MAX {
            self.retire(hopes);
        }
    }

    /// Lets it go, if another may be opened in its place.
    fn retire(&self, hopes: &mut Hopes) {
        hopes.is_closed = self.berth.0.has_room();
    }

    /// Gives a reply to who waits for it; returns whether anybody waits on.
    fn deliver(&self, reply: &[u8]) -> bool {
        let (taken, is_waiting) = {
            let mut hopes = self.hopes.lock();
            (hopes.claim(reply), !hopes.is_empty())
        };
        match taken {
            Ok((hope, letters)) => {
                self.berth.0.repeats.kept(letters);
                hope.replied(reply);
            }
            Err(stray) => self.berth.0.note_stray(stray),
        }
        is_waiting
    }

    fn fail_all_but(&self, id: Option<u16>, error: &io::Error) {
        let failed = self.hopes.lock().take_all_but(id);
        failed.into_iter().for_each(|hope| hope.broke(Broken(error.to_string())));
    }
}
