//! Telling one resolver what is held here, so that its answers can wait for that.
//!
//! The merging task says which mark it has reached ([`Acks::say`]); a thread posts it over a connection that stays open.
//! A mark speaks for all before it, so only the latest waits, and one that could not be told is told again until there
//! is a later one, or the resolver says that it does not know us any more: then its stream has ended, and the next one
//! has marks of its own.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::client::{Failure, Way};
use super::told::Ask;

/// The first pause after a failure; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The way of marks to one resolver; the thread ends with it.
#[derive(Debug)]
pub(super) struct Acks(Arc<Slot>);

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    latest: Option<Ask>,
    is_closed: bool,
}

/// What became of a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acked {
    Taken,
    Failed,
}

impl Acked {
    pub(super) const ALL: [Self; 2] = [Self::Taken, Self::Failed];

    /// Returns the metric label value.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Failed => "failed",
        }
    }
}

impl Acks {
    /// Starts the thread; `count` hears what became of each mark.
    pub(super) fn start(way: Way, count: impl Fn(Acked) + Send + 'static) -> io::Result<Self> {
        let slot = Arc::new(Slot::default());
        let own = Arc::clone(&slot);
        thread::Builder::new().name("sync-ack".to_owned()).spawn(move || tell(&own, &way, count))?;
        Ok(Self(slot))
    }

    /// Says that everything before this mark is held.
    pub(super) fn say(&self, ask: Ask) {
        self.0.state.lock().latest = Some(ask);
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
impl Acks {
    /// Makes one whose marks are told to nobody.
    pub(super) fn silent() -> Self {
        Self(Arc::default())
    }

    /// Takes the mark that waits to be told.
    pub(super) fn take(&self) -> Option<u64> {
        self.0.state.lock().latest.take().map(|ask| ask.mark)
    }
}

impl Drop for Acks {
    fn drop(&mut self) {
        self.0.state.lock().is_closed = true;
        self.0.changed.notify_one();
    }
}

fn tell(slot: &Slot, way: &Way, count: impl Fn(Acked)) {
    let mut pause = PAUSE_MIN;
    while let Some(ask) = next(slot) {
        match way.post(&format!("/ack?follower={}&mark={}", ask.follower, ask.mark)) {
            Ok(()) => {
                pause = PAUSE_MIN;
                count(Acked::Taken);
            }
            Err(failure) => {
                count(Acked::Failed);
                tracing::debug!("{}: not acknowledged: {failure}", way.url());
                if is_final(&failure) {
                    continue;
                }
                wait_again(slot, ask, pause);
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// Whether saying it again would not help: the stream that it belongs to has ended.
fn is_final(failure: &Failure) -> bool {
    matches!(failure, Failure::Status { status, .. } if status.is_client_error() && status.as_u16() != 401)
}

/// Waits for the next mark to tell; `None` at the end.
fn next(slot: &Slot) -> Option<Ask> {
    let mut state = slot.state.lock();
    loop {
        if state.is_closed {
            return None;
        }
        if let Some(ask) = state.latest.take() {
            return Some(ask);
        }
        slot.changed.wait(&mut state);
    }
}

/// Puts a mark back that could not be told, unless there is a later one, and lets time pass; a later one ends the wait.
fn wait_again(slot: &Slot, ask: Ask, pause: Duration) {
    let mut state = slot.state.lock();
    if state.latest.is_none() && !state.is_closed {
        slot.changed.wait_for(&mut state, pause);
        state.latest.get_or_insert(ask);
    }
}
