//! The set: static prefixes and learned hosts, its snapshots, serials and deltas.
//!
//! ```text
//!   sighting   one address seen for one name; a host has one or more
//!   tree       hosts by address, sharing what versions have in common
//!   snapshot   the set at one serial: members immutable, ends live
//!   aggregate  snapshot → the fewest prefixes that cover exactly it
//!   serial     session and serial: which snapshot a consumer holds
//!   delta      what turns one snapshot into another
//!   history    the current snapshot, deltas behind it, who is told
//!   expiry     which sighting ends next
//!   draft      the set in the hands of its one writer
//!   fill       many sightings at once, as a set begins with them
//!   outlet     the way of a change to those who hold the set elsewhere
//!   joins      sinks that come and go: followers that acknowledge
//!   batch      what of a publication they must be told
//! ```
//!
//! One writer changes the set through a [`Draft`]; everybody else holds a [`Reader`].

mod aggregate;
mod batch;
mod delta;
mod draft;
mod expiry;
mod fill;
mod history;
mod joins;
mod names;
pub mod outlet;
mod serial;
mod sighting;
mod sizes;
mod snapshot;
#[cfg(test)]
pub(crate) mod testing;
mod tree;

pub use aggregate::{Aggregate, aggregate};
pub use batch::Batch;
pub use delta::{Delta, Item, items};
pub use draft::Draft;
pub use fill::{Filling, Place, Seen};
pub use history::{Event, History, Reader, Since, Subscription};
pub use joins::{Joined, Joins};
pub use serial::{Session, SessionError};
pub use sighting::{Extended, Host, NameRecord, Need, SHARED_STEP, Sighting, Times, apps_sorted};
pub use snapshot::{Origin, Selection, Snapshot, StaticEntry};
