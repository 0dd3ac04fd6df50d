//! Sinks that come and go while the writer runs: followers elsewhere that acknowledge what they hold.
//!
//! ```text
//!   follower ── Joins::join(outlet, who) ─▶ [ newcomers ] ─▶ Joins::take ─▶ writer
//! ```
//! One that joins has got the set by a way of its own and says that it is up once it holds it, so it is sent neither
//! the whole set nor anything that nobody waits for. It leaves by dropping its [`Intake`](super::outlet::Intake).

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::outlet::Outlet;

/// Where they join; cheap to clone. Whoever makes newcomers bounds their number.
#[derive(Clone, Debug, Default)]
pub struct Joins(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    newcomers: Mutex<Vec<Joined>>,
    news: OnceLock<Arc<Notify>>,
}

/// A sink that has joined.
#[derive(Debug)]
pub struct Joined {
    /// The way to it.
    pub outlet: Outlet,
    /// Who it is, for the log.
    pub who: String,
}

impl Joins {
    /// Joins; the writer is told.
    pub fn join(&self, outlet: Outlet, who: String) {
        self.0.newcomers.lock().push(Joined { outlet, who });
        if let Some(news) = self.0.news.get() {
            news.notify_one();
        }
    }

    /// Takes those who joined since the last time.
    pub fn take(&self) -> Vec<Joined> {
        std::mem::take(&mut *self.0.newcomers.lock())
    }

    /// Has the writer woken when one joins. The first call counts.
    pub fn report_to(&self, news: &Arc<Notify>) {
        let _ = self.0.news.set(Arc::clone(news));
    }
}
