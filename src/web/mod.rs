//! Feeds, API and metrics over HTTP.

use std::net::SocketAddr;

use crate::prefix::Prefix;

/// Who may read, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The address to listen on; `None` for no web listener.
    pub listen: Option<SocketAddr>,
    /// Client prefixes that may connect; empty for all.
    pub allow: Vec<Prefix>,
}
