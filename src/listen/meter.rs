//! What the listeners count.

use std::time::Duration;

use prometheus::IntGauge;

use crate::metrics::{Registry, Spans, Tallied, Tally};
use crate::wire::Transport;

/// Question types with a name of their own in the metrics (IANA DNS resource record types).
const TYPES: [(u16, &str); 12] = [
    (1, "a"),
    (28, "aaaa"),
    (65, "https"),
    (12, "ptr"),
    (16, "txt"),
    (15, "mx"),
    (2, "ns"),
    (6, "soa"),
    (33, "srv"),
    (64, "svcb"),
    (255, "any"),
    (0, "other"),
];

/// Why a question got no answer; in the order of [`REASONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// No question at all: a response, or shorter than a header.
    Nonsense,
    /// More questions wait for upstreams than are let in.
    Overload,
    /// A connection had to go for a newer one.
    Evicted,
    /// Who asks may not, and is to hear nothing.
    Denied,
    /// Its client asks more than it may.
    Limited,
}

/// Reasons by column.
const REASONS: [&str; 5] = ["nonsense", "overload", "evicted", "denied", "limited"];

/// Where the reasons' columns start: behind those of all transports.
const DROPPED_AT: usize = Transport::ALL.len() * TYPES.len();

/// Where the slipped are counted: behind the reasons.
const SLIPPED_AT: usize = DROPPED_AT + REASONS.len();

/// How an answer came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// At once: kept, made at home, or refused.
    Hit,
    /// After a wait for an upstream or for the set.
    Miss,
}

/// Counters of the listeners; cheap to clone.
#[derive(Clone, Debug)]
pub struct Meter {
    tally: Tally,
    spans: Spans,
    /// Connections open now.
    pub connections: IntGauge,
}

impl Meter {
    /// Registers the counters.
    pub fn new(registry: &Registry) -> Self {
        let tally = Tally::new(SLIPPED_AT + 1);
        let queries = Transport::ALL.into_iter().flat_map(|transport| {
            let of = move |(column, &(_, name)): (usize, &(u16, &str))| {
                (vec![transport.name().to_owned(), name.to_owned()], transport as usize * TYPES.len() + column)
            };
            TYPES.iter().enumerate().map(of)
        });
        registry.add(Tallied::new(
            ("greenlane_listen_queries_total", "Questions received by transport and type."),
            &["transport", "type"],
            &tally,
            queries,
        ));
        registry.add(Tallied::new(
            (
                "greenlane_listen_dropped_total",
                "What got no answer: packets that ask nothing (nonsense), questions beyond the bound of those that \
                 wait (overload), connections closed for newer ones (evicted), clients that may not ask and are to hear \
                 nothing (denied), what is beyond a rate limit (limited).",
            ),
            &["reason"],
            &tally,
            REASONS.iter().enumerate().map(|(column, &reason)| (vec![reason.to_owned()], DROPPED_AT + column)),
        ));
        registry.add(Tallied::new(
            (
                "greenlane_listen_slipped_total",
                "Truncated replies, or BADCOOKIE, instead of what is beyond a rate limit, so that real clients come again.",
            ),
            &[],
            &tally,
            std::iter::once((Vec::new(), SLIPPED_AT)),
        ));
        let rows = Transport::ALL.into_iter().flat_map(|transport| ["hit", "miss"].map(|way| (transport.name(), way)));
        let spans = registry.add(Spans::new(
            (
                "greenlane_listen_answer_seconds",
                "From reading a question to its reply: given at once (hit), or after a wait for an upstream or for the \
                 set (miss). Questions read together count the time of all of them.",
            ),
            &["transport", "result"],
            rows.map(|(transport, way)| vec![transport.to_owned(), way.to_owned()]),
        ));
        let connections = registry.add(IntGauge::new(
            "greenlane_listen_connections",
            "Connections of clients open now, over whichever transport has them.",
        ));
        Self { tally, spans, connections }
    }

    /// Counts a question; type 0, where none could be read, is another one like any type without a name here.
    pub fn query(&self, transport: Transport, qtype: u16) {
        let row = transport as usize;
        let column = TYPES.iter().position(|&(number, _)| number == qtype).unwrap_or(TYPES.len() - 1);
        self.tally.raise(row * TYPES.len() + column);
    }

    /// Counts what got no answer.
    pub fn dropped(&self, why: Dropped) {
        self.tally.raise(DROPPED_AT + why as usize);
    }

    /// Counts a reply in the place of what is beyond a limit.
    pub fn slipped(&self) {
        self.tally.raise(SLIPPED_AT);
    }

    /// Notes that `count` replies took so long each.
    pub fn answered(&self, transport: Transport, way: Way, took: Duration, count: u64) {
        self.spans.note(2 * (transport as usize) + way as usize, took, count);
    }
}
