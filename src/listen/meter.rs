//! What the listeners count.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};

use crate::metrics::Registry;
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

/// Why a question got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// No question at all: a response, or shorter than a header.
    Nonsense,
    /// More questions wait for upstreams than are let in.
    Overload,
    /// A connection had to go for a newer one.
    Evicted,
}

/// Counters of the listeners; cheap to clone, each handle taken once.
#[derive(Clone, Debug)]
pub struct Meter {
    queries: [[IntCounter; TYPES.len()]; 2],
    nonsense: IntCounter,
    overload: IntCounter,
    evicted: IntCounter,
    /// TCP connections open now.
    pub connections: IntGauge,
}

impl Meter {
    /// Registers the counters.
    pub fn new(registry: &Registry) -> Self {
        let queries = registry.add(IntCounterVec::new(
            Opts::new("greenlane_listen_queries_total", "Questions received by transport and type."),
            &["transport", "type"],
        ));
        let dropped = registry.add(IntCounterVec::new(
            Opts::new(
                "greenlane_listen_dropped_total",
                "What got no answer: packets that ask nothing (nonsense), questions beyond the bound of those that \
                 wait (overload), connections closed for newer ones (evicted).",
            ),
            &["reason"],
        ));
        let connections =
            registry.add(IntGauge::new("greenlane_listen_connections", "TCP connections of clients open now."));
        let of = |transport: &str| TYPES.map(|(_, name)| queries.with_label_values(&[transport, name]));
        Self {
            queries: [of("udp"), of("tcp")],
            nonsense: dropped.with_label_values(&["nonsense"]),
            overload: dropped.with_label_values(&["overload"]),
            evicted: dropped.with_label_values(&["evicted"]),
            connections,
        }
    }

    /// Counts a question; type 0, where none could be read, is another one like any type without a name here.
    pub fn query(&self, transport: Transport, qtype: u16) {
        let row = match transport {
            Transport::Udp => 0,
            Transport::Tcp => 1,
        };
        let column = TYPES.iter().position(|&(number, _)| number == qtype).unwrap_or(TYPES.len() - 1);
        self.queries[row][column].inc();
    }

    /// Counts what got no answer.
    pub fn dropped(&self, why: Dropped) {
        match why {
            Dropped::Nonsense => self.nonsense.inc(),
            Dropped::Overload => self.overload.inc(),
            Dropped::Evicted => self.evicted.inc(),
        }
    }
}
