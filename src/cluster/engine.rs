//! What is asked of the engine: few commands, so that a simulation can stand in for it.
//!
//! An [`Engine`] is where it is, a [`Link`] is open to it. Everything that comes back may be of a stranger's making: the
//! link hands out octets within its bounds and vouches for nothing.

use std::future::Future;

use thiserror::Error;

use super::message::Member;
use crate::clock::Timestamp;

/// The messages that the stream keeps; who is further behind compares everything.
pub(super) const STREAM_LEN: usize = 1024;

/// The most records in one message: with [`STREAM_LEN`], the stream stays below 3 MB.
pub(super) const RECORDS_LEN_MAX: usize = 32;

/// Why the engine cannot be used.
#[derive(Debug, Error)]
pub(super) enum EngineError {
    /// No connection.
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    /// The password, or the certificates to trust.
    #[error("{0}")]
    Secret(String),
    /// What the engine or its client library says.
    #[error("{0}")]
    Engine(#[from] redis::RedisError),
    /// It does not answer.
    #[error("no answer within {0} s")]
    Silent(u64),
    /// Something comes that no greenlane asked for.
    #[error("{0}")]
    Foreign(&'static str),
    /// It has lost what it held.
    #[error("it has lost its data")]
    Emptied,
}

/// One of the sorted sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Sightings by end.
    Held,
    /// Those that left early, by the end that they had.
    Gone,
}

impl Table {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Held, Self::Gone];
}

/// What is told at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Commit {
    /// Ends of sightings.
    pub(super) held: Vec<(Member, u64)>,
    /// Ends of sightings that left early.
    pub(super) gone: Vec<(Member, u64)>,
    /// The same as messages for those who listen.
    pub(super) messages: Vec<Vec<u8>>,
}

/// A part of a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Page {
    /// Where the next one begins; 0 after the last.
    pub(super) next: u64,
    /// Members with their scores. A member may come twice.
    pub(super) entries: Vec<(Vec<u8>, f64)>,
}

/// What came by the stream.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    /// Where to read on.
    pub(super) cursor: String,
    /// The messages, oldest first.
    pub(super) messages: Vec<Vec<u8>>,
    /// Older ones may have been trimmed unread.
    pub(super) has_gap: bool,
}

/// The state of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulse {
    /// What [`Link::mark`] returned, if the engine still holds it.
    pub(super) mark: Option<Vec<u8>>,
    /// The engine's clock.
    pub(super) time: Timestamp,
    /// What each resolver said last.
    pub(super) nodes: Vec<Vec<u8>>,
}

/// Where an engine is.
pub(super) trait Engine: Send + Sync + 'static {
    type Link: Link;

    /// Opens a link.
    fn connect(&self) -> impl Future<Output = Result<Self::Link, EngineError>> + Send;
}

/// An open link. All but [`Link::news`] may be under way at the same time.
pub(super) trait Link: Send + Sync {
    /// Marks the engine's data, if it is not marked; returns the mark.
    fn mark(&self, mark: &str) -> impl Future<Output = Result<Vec<u8>, EngineError>> + Send;

    /// Returns where the stream ends.
    fn tail(&self) -> impl Future<Output = Result<String, EngineError>> + Send;

    /// Reads a part of a table; all of it from `at` 0 on.
    fn page(&self, table: Table, at: u64) -> impl Future<Output = Result<Page, EngineError>> + Send;

    /// Tells changes: all of them, or none.
    fn commit(&self, commit: &Commit) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Waits some seconds for messages behind the cursor.
    fn news(&self, cursor: &str) -> impl Future<Output = Result<News, EngineError>> + Send;

    /// Says what we are, forgets `stale` resolvers, and asks how things are.
    fn beat(&self, node: &str, text: &str) -> impl Future<Output = Result<Pulse, EngineError>> + Send;

    /// Removes what ended before `end`.
    fn purge(&self, end: u64) -> impl Future<Output = Result<(), EngineError>> + Send;
}
