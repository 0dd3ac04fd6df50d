//! `greenlane sync`: the set of one or more resolvers, kept by a firewall elsewhere.
//!
//! ```text
//!   resolver ─▶ client ─ bounded, events, told ─▶ gate ─▶ book ─▶ change ─▶ the same engine as beside a resolver
//!               a thread each                    admission  merged  run: one task
//!   resolver ◀─ acks: a thread each ◀── marks whose changes the engine holds ◀─┘
//! ```
//! All resolvers are followed at the same time, by `/delta` and then `/watch`, and their sets are merged: a client may
//! ask any of them, and when one is gone nothing has to be found out first. What they tell is believed no more than an
//! answer (`gate`); nothing that fails ever takes an address away (`book` has the rules).
//!
//! A fault is logged once, counted, and tried again with growing pauses for as long as it takes.

use std::time::Duration;

use crate::admission::Admission;

mod acks;
mod book;
mod bounded;
mod client;
mod events;
mod gate;
mod meter;
mod print;
mod run;
mod told;

pub use client::{Access, AccessError, Resolver, UrlError};
pub use gate::{WIDEST4, WIDEST6};
pub use print::Printer;
pub use run::{Follower, OnceError, Sink, Standing};

/// Whom to follow, and what to take.
#[derive(Clone, Debug)]
pub struct Options {
    /// The resolvers; at least one.
    pub resolvers: Vec<Resolver>,
    /// How they are asked.
    pub access: Access,
    /// Which addresses may be in the set.
    pub admission: Admission,
    /// The shortest length of a static IPv4 prefix, at least [`WIDEST4`].
    pub widest4: u8,
    /// The shortest length of a static IPv6 prefix, at least [`WIDEST6`].
    pub widest6: u8,
    /// The most learned addresses held.
    pub max_total: usize,
    /// How long everything is held, beyond its ends, when no resolver answers.
    pub lease: Duration,
    /// Whether resolvers are told what is held here, so that their answers can wait for it.
    pub acknowledges: bool,
}
