//! The registry and the names that metrics share.
//!
//! Each part defines its metrics beside its code and takes them from a [`Registry`] once. Names follow
//! `greenlane_<part>_<what>_<unit>`, counters end in `_total`. Label values come from enums, app ids and the
//! numbered places of upstreams in the configuration; a metric label never takes a domain name or an address.
//! What is counted with every question goes into a [`Tally`], so that threads do not meet at a counter.

use prometheus::core::Collector;
use prometheus::{Encoder, TextEncoder};

mod tally;

pub use tally::{Lane, Tallied, Tally};

/// The media type of the text format that [`Registry::render`] prints.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of one daemon; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Registry(prometheus::Registry);

impl Registry {
    /// Makes an empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a collector and hands it back.
    ///
    /// # Panics
    /// If its name is malformed or taken: both are mistakes in this program and show at the first start.
    pub fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("metric names and help are constants of this program");
        self.0.register(Box::new(collector.clone())).expect("each metric is registered once");
        collector
    }

    /// Prints every metric in the Prometheus text format.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        // Writing to a vector fails only for a family without metrics; what was written before it stays valid.
        let _ = TextEncoder::new().encode(&self.0.gather(), &mut text);
        text
    }
}
