//! Consumers take the set: formats and files.
//!
//! ```text
//!   list     what is asked for (family, apps, origin, max) → prefixes, aggregated without loss
//!   format   list → bytes, one file a dialect
//!   dump     sightings with their times, to be read again
//!   file     a format kept in a file, replaced atomically, and a command afterwards
//!   follow   the set of resolvers elsewhere
//!   nftables sets of the local kernel, programmed before the answer is given
//! ```

pub mod dump;
pub mod file;
pub mod follow;
pub mod format;
mod list;
pub mod nftables;

pub use list::{List, Query};
