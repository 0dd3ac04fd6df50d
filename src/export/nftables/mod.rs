//! `[[export.nftables]]`: the set in the local kernel, before the client reads the answer.
//!
//! ```text
//!   orders ─▶ engine ── plan ── transaction ─▶ link ─▶ nf_tables
//!                ▲         what is wanted                  │
//!                └── watch ◀── monitor ◀── what others change
//! ```
//! An engine keeps two kinds of sets: learned hosts, each with a timeout, and static prefixes, aggregated. In its *own*
//! table greenlane makes sets and a chain that marks flows (see `layout`); as a *guest* it fills sets of the operator
//! and touches nothing but its own elements, which it signs with the comment `greenlane`.
//!
//! Two threads share it: one takes orders, merges what waits into one transaction and answers each order once the
//! kernel has acknowledged; the other watches for changes by others and compares the whole at the start, after such
//! changes, after lost messages, and once a minute. A commit can wait behind another's for half a second inside `send`,
//! so neither thread is one of the runtime's.
//!
//! Whatever is wrong ([`Trouble`]) is logged once, counted, shown to the writer as `Down`, and tried again; DNS goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use std::{io, mem};

use parking_lot::Mutex;
use thiserror::Error;

use crate::clock::Clock;
use crate::prefix::Family;
use crate::set::Origin;
use crate::set::outlet::{Applied, Intake, Next, Order};

pub mod agent;
mod attr;
mod engine;
mod layout;
mod link;
mod message;
mod meter;
mod plan;
mod range;
mod removal;
mod sets;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transaction;
mod trouble;

use engine::{Engine, News};
use link::{Heard, Monitor};
pub use message::TableFamily;
pub use meter::Metrics;
pub use plan::Surplus;
pub use removal::{RemoveError, Removed, is_owned_by_another, remove};
use sets::Target;
pub use trouble::Trouble;

/// How long the watching thread sleeps at most: then it looks whether the engine is still there.
const WATCH_PATIENCE: Duration = Duration::from_millis(250);
/// How long a burst of changes is left to end before it is looked at.
const BURST: Duration = Duration::from_millis(2);
/// How long the order thread sleeps at most.
const ORDER_PATIENCE: Duration = Duration::from_secs(1);
/// The most orders that are merged into one transaction.
const MERGED_MAX: usize = 256;

/// The bits of the packet mark that mean "bypassed", unless others are configured: high ones, since most rules of
/// others use low ones.
pub const MARK: u32 = 0x1000_0000;

/// One place to keep the set in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whose table it is.
    pub mode: Mode,
    /// The family of the table.
    pub family: TableFamily,
    /// The name of the table.
    pub table: String,
    /// The sets to fill.
    pub sets: SetNames,
    /// How long an answer waits for the kernel; when commits take more than half of it, it is waited for no longer.
    pub hold: Duration,
}

/// Whose table it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Ours: made, kept and removed by greenlane alone.
    Own {
        /// The bits that mark a flow to an address of the sets; at least one.
        mark: u32,
        /// The most elements of each set of learned addresses: twice the bound of the set, as those that have ended
        /// count until the kernel collects them.
        size: u32,
    },
    /// The operator's.
    Guest,
}

/// Names of sets; `None`: that part is not kept there. A table of one IP version has no sets of the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetNames {
    /// Learned IPv4 addresses.
    pub learned4: Option<String>,
    /// Learned IPv6 addresses.
    pub learned6: Option<String>,
    /// Static IPv4 prefixes.
    pub static4: Option<String>,
    /// Static IPv6 prefixes.
    pub static6: Option<String>,
}

/// What cannot be about the sets of one table.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SetsError {
    /// Two keys name one set.
    #[error("{name} is the set of {first} already, expected a set of its own")]
    Same {
        /// The key that names it, too.
        first: &'static str,
        /// The key in question.
        second: &'static str,
        /// The set.
        name: String,
    },
    /// No key names a set that the table can have.
    #[error(
        "no set to fill, expected at least one of {} in a table of family {}",
        match .0 {
            TableFamily::Inet => "learned4, learned6, static4, static6",
            TableFamily::Ip => "learned4, static4",
            TableFamily::Ip6 => "learned6, static6",
        },
        .0.as_str()
    )]
    NoneFits(TableFamily),
}

impl Options {
    /// Checks that there is something to fill, and that no set is to be two things at once.
    ///
    /// # Errors
    /// See [`SetsError`].
    pub fn check(&self) -> Result<(), SetsError> {
        let named: Vec<_> = self.named().collect();
        for (at, (second, target)) in named.iter().enumerate() {
            if let Some((first, _)) = named[..at].iter().find(|(_, other)| other.name == target.name) {
                return Err(SetsError::Same { first, second, name: target.name.clone() });
            }
        }
        if named.is_empty() { Err(SetsError::NoneFits(self.family)) } else { Ok(()) }
    }

    /// Returns the sets to fill, those of static prefixes first.
    fn targets(&self) -> Vec<Target> {
        self.named().map(|(_, target)| target).collect()
    }

    /// Returns the sets to fill by the keys that name them.
    fn named(&self) -> impl Iterator<Item = (&'static str, Target)> + '_ {
        let sets = &self.sets;
        let all = [
            ("static4", Family::V4, Origin::Static, &sets.static4),
            ("static6", Family::V6, Origin::Static, &sets.static6),
            ("learned4", Family::V4, Origin::Learned, &sets.learned4),
            ("learned6", Family::V6, Origin::Learned, &sets.learned6),
        ];
        let fits = |family| match self.family {
            TableFamily::Inet => true,
            TableFamily::Ip => family == Family::V4,
            TableFamily::Ip6 => family == Family::V6,
        };
        let fitting = all.into_iter().filter(move |(_, family, ..)| fits(*family));
        fitting.filter_map(|(key, family, origin, name)| Some((key, Target { family, origin, name: name.clone()? })))
    }
}

/// Starts an engine on two threads of its own. It ends with the writer behind `intake`; what is in the kernel stays.
///
/// `surplus` says what becomes of elements that are in the kernel at the start and in no order: adopt them where the
/// set could not be restored. It works in the network namespace of the calling thread.
///
/// # Errors
/// If a thread cannot be started.
pub fn start(options: Options, surplus: Surplus, intake: Intake, clock: Clock, metrics: Metrics) -> io::Result<()> {
    let health = intake.health();
    start_engine(Engine::new(options, surplus, health, clock, &metrics), intake)
}

fn start_engine(engine: Engine, intake: Intake) -> io::Result<()> {
    let engine = Arc::new(Mutex::new(engine));
    let ordered = Arc::clone(&engine);
    run_engine(engine, move || take_orders(&ordered, intake))
}

/// Runs an engine on two threads until `take_orders`, which one of them calls, returns.
fn run_engine(engine: Arc<Mutex<Engine>>, take_orders: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let has_ended = Arc::new(AtomicBool::new(false));
    let watching = (engine, Arc::clone(&has_ended));
    thread::Builder::new().name("nft-watch".to_owned()).spawn(move || watch(&watching.0, &watching.1))?;
    let ordered = thread::Builder::new().name("nft-orders".to_owned()).spawn(move || {
        take_orders();
        has_ended.store(true, Ordering::Release);
    });
    ordered.map(|_| ())
}

/// Takes orders until the writer ends.
fn take_orders(engine: &Mutex<Engine>, mut intake: Intake) {
    loop {
        let mut orders = Vec::new();
        match intake.blocking_next(ORDER_PATIENCE) {
            Next::Order(order) => orders.push(order),
            Next::Idle => continue,
            Next::Closed => return,
        }
        let mut engine = engine.lock();
        // What came while the lock was held joins the transaction.
        while orders.len() < MERGED_MAX
            && let Next::Order(order) = intake.blocking_next(Duration::ZERO)
        {
            orders.push(order);
        }
        let changes: Vec<_> = orders.iter().map(|order| Arc::clone(&order.change)).collect();
        let results = engine.take(&changes);
        let answer = |(order, result): (Order, Applied)| order.done(result);
        orders.into_iter().zip(results).for_each(answer);
    }
}

/// Watches for what others change, and looks again when it is time.
fn watch(engine: &Mutex<Engine>, has_ended: &AtomicBool) {
    let mut monitor: Option<Monitor> = None;
    while !has_ended.load(Ordering::Acquire) {
        if monitor.is_none() {
            monitor = engine.lock().open_monitor().ok();
            if monitor.is_some() {
                // From here on nothing is missed; what was before is looked at now.
                engine.lock().hear(News::Lost);
            }
        }
        let patience = engine.lock().patience().min(WATCH_PATIENCE);
        let Some(open) = &mut monitor else {
            thread::sleep(WATCH_PATIENCE);
            engine.lock().look_if_due();
            continue;
        };
        if open.wait(patience) {
            thread::sleep(BURST);
        }
        let mut engine = engine.lock();
        let mut news = News::None;
        let heard = open.drain(|port, kind, family, attrs| {
            news = news.max(engine.judge(port, kind, family, attrs));
        });
        match heard {
            Ok(Heard::All) => {}
            Ok(Heard::Lost) => {
                engine.note_lost();
                news = News::Lost;
            }
            Err(_) => {
                news = News::Lost;
                drop(mem::take(&mut monitor));
            }
        }
        engine.hear(news);
        engine.look_if_due();
    }
}
