//! The registry and the names that metrics share.
//!
//! Each part defines its metrics beside its code and takes them from a [`Registry`] once. Names follow
//! `greenlane_<part>_<what>_<unit>`, counters end in `_total`. Label values come from enums, app ids and the
//! numbered places of upstreams in the configuration; a metric label never takes a domain name or an address.
//! What is counted with every question goes into a [`Tally`], what is measured into [`Spans`], so that threads do not
//! meet at a counter.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{Encoder, TextEncoder};

mod spans;
mod tally;

pub use spans::Spans;
pub use tally::{Lane, Tallied, Tally};

/// The media type of the text format that [`Registry::render`] prints.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of one daemon; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    collectors: prometheus::Registry,
    texts: Arc<Mutex<Vec<Text>>>,
}

/// Metrics that another process has printed; cheap to clone, empty at first. Its names must be of no collector here.
#[derive(Clone, Debug, Default)]
pub struct Text(Arc<Mutex<String>>);

impl Text {
    /// Puts a new text in place of the last one.
    pub fn set(&self, text: String) {
        *self.0.lock() = text;
    }

    /// Changes the text.
    pub fn change(&self, change: impl FnOnce(&str) -> String) {
        let mut text = self.0.lock();
        *text = change(&text);
    }
}

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
        self.collectors.register(Box::new(collector.clone())).expect("each metric is registered once");
        collector
    }

    /// Prints every metric in the Prometheus text format.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        // Writing to a vector fails only for a family without metrics; what was written before it stays valid.
        let _ = TextEncoder::new().encode(&self.collectors.gather(), &mut text);
        for other in &*self.texts.lock() {
            text.extend_from_slice(other.0.lock().as_bytes());
        }
        text
    }

    /// Adds a place for what another process prints, behind our own.
    pub fn add_text(&self) -> Text {
        let text = Text::default();
        self.texts.lock().push(text.clone());
        text
    }
}
