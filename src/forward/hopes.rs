//! Who waits for which reply.
//!
//! [`Hopes`] belongs to one socket: a UDP port or a connection. A question is enlisted under a fresh random id among
//! the free ones; a reply is given to whoever waits under its id, and only if it repeats the question (RFC 5452 §9.1).
//! Whoever waits is a [`Hope`], told exactly once what came of it. It is told outside of every lock, by the one who
//! read the reply: what follows needs no other thread, and must not wait there. A [`Place`] is where somebody waits.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::letters::Letters;
use super::message::{is_in_letters, is_reply};
use crate::wire::Question;

/// Why there will be no reply.
#[derive(Clone, Debug)]
pub(super) struct Broken(pub(super) String);

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Why nobody gets what came; the wait goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stray {
    /// Nobody asked this question under this id.
    Unasked,
    /// Somebody did, in other letters.
    OtherLetters,
}

/// Whoever waits for a reply.
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

/// Those who wait for replies on one socket.
pub(super) struct Hopes {
    by_id: HashMap<u16, Wait, RandomState>,
    wait_max: usize,
    /// How many were enlisted so far.
    pub(super) uses: u32,
    /// Nobody is enlisted any more.
    pub(super) is_closed: bool,
}

struct Wait {
    question: Arc<Question>,
    letters: Letters,
    /// When the one who waits wants to hear that nothing came.
    due: Option<Instant>,
    /// Away for the moment in which it is told that it is due.
    hope: Option<Box<dyn Hope>>,
}

impl Hopes {
    /// Makes room for `wait_max` questions; far fewer than there are ids, so that a free one is soon drawn.
    pub(super) fn new(wait_max: usize) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { by_id: HashMap::default(), wait_max, uses: 0, is_closed: false }))
    }

    /// Takes a question in; gives its hope back if it is closed or full.
    pub(super) fn enlist(
        &mut self,
        question: &Arc<Question>,
        letters: Letters,
        due: Option<Instant>,
        hope: Box<dyn Hope>,
    ) -> Result<u16, Box<dyn Hope>> {
        if self.is_closed || self.by_id.len() >= self.wait_max {
            return Err(hope);
        }
        self.uses += 1;
        let id = self.draw_id();
        self.by_id.insert(id, Wait { question: Arc::clone(question), letters, due, hope: Some(hope) });
        Ok(id)
    }

    /// Takes out who waits for this reply, and tells how its letters were drawn.
    pub(super) fn claim(&mut self, reply: &[u8]) -> Result<(Box<dyn Hope>, Letters), Stray> {
        let id = u16::from_be_bytes(*reply.first_chunk().ok_or(Stray::Unasked)?);
        let wait = self.by_id.get(&id).filter(|wait| is_reply(reply, &wait.question)).ok_or(Stray::Unasked)?;
        let letters = wait.letters;
        if !is_in_letters(reply, &wait.question, letters) {
            return Err(Stray::OtherLetters);
        }
        self.take(id).map(|hope| (hope, letters)).ok_or(Stray::Unasked)
    }

    /// Takes out who waits under `id`, if anybody does.
    pub(super) fn take(&mut self, id: u16) -> Option<Box<dyn Hope>> {
        self.by_id.remove(&id)?.hope
    }

    /// Takes out all but who waits under `id`, to be told that the socket failed.
    pub(super) fn take_all_but(&mut self, id: Option<u16>) -> Vec<Box<dyn Hope>> {
        self.by_id.extract_if(|&key, _| Some(key) != id).filter_map(|(_, wait)| wait.hope).collect()
    }

    /// Returns whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    fn draw_id(&self) -> u16 {
        loop {
            let id = rand::random();
            if !self.by_id.contains_key(&id) {
                return id;
            }
        }
    }
}

/// Tells those whose patience is over.
pub(super) fn tell_due(hopes: &Arc<Mutex<Hopes>>, now: Instant) {
    let due: Vec<(u16, Box<dyn Hope>)> = {
        let mut hopes = hopes.lock();
        let is_due = |(_, wait): &(&u16, &mut Wait)| wait.due.is_some_and(|due| due <= now);
        let told = |(&id, wait): (&u16, &mut Wait)| {
            wait.due = None;
            wait.hope.take().map(|hope| (id, hope))
        };
        hopes.by_id.iter_mut().filter(is_due).filter_map(told).collect()
    };
    for (id, hope) in due {
        let hope = hope.overdue(Place { hopes: Arc::clone(hopes), id });
        let mut hopes = hopes.lock();
        // Gone if the socket failed meanwhile; then dropping the hope tells.
        if let Some(wait) = hopes.by_id.get_mut(&id).filter(|wait| wait.hope.is_none()) {
            wait.hope = Some(hope);
        }
    }
}

/// Where somebody waits.
#[derive(Clone)]
pub(super) struct Place {
    hopes: Arc<Mutex<Hopes>>,
    id: u16,
}

impl Place {
    /// Names the place of who was enlisted under `id`.
    pub(super) fn new(hopes: &Arc<Mutex<Hopes>>, id: u16) -> Self {
        Self { hopes: Arc::clone(hopes), id }
    }

    /// Takes out who waits here, if the reply has not come; it hears nothing more.
    pub(super) fn take(&self) -> Option<Box<dyn Hope>> {
        self.hopes.lock().take(self.id)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("id", &self.id).finish_non_exhaustive()
    }
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
