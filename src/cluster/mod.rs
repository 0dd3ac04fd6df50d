//! One set for many resolvers, joined by a Valkey or Redis server.
//!
//! ```text
//!   learn's writer ─▶ ear ─▶ ledger, queue ─▶ sender ─▶ sorted sets and stream ─▶ receiver ─▶ learn's writer of another
//!                     renewed ends ──┘                       engine                  match, admission
//! ```
//! A sighting is a member of a sorted set; its score is its end. A member's score only grows (`ZADD GT`), and so does
//! the end at which one left early, kept in a second set; so whatever order words arrive in, all resolvers that have
//! heard the same agree, and what is told twice is told once. The stream says what changes, the sets say what is. Who
//! comes, comes back, or was too slow for the stream compares its set with the sets, in both directions.
//!
//! Nothing waits for the engine: it is one more sink of the writer, and one that no answer is held for. While it is away
//! everything goes on; ends need no queue then, since all of the set is compared on return, and removals wait in a
//! bounded one.
//!
//! What comes from the engine is believed no more than an answer. The name must be listed here, the address admissible,
//! the end within what an answer could have given; the writer then applies its caps as ever.
//!
//! Ends are wall time. In a shared set they are whole half minutes, so that a sighting in constant use is told to the
//! others twice a minute at most; all resolvers hold it until the same end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::learn::Learner;
use crate::metrics::Registry;
use crate::set::outlet::Intake;

mod connect;
mod engine;
mod ledger;
mod message;
mod metrics;
mod node;
mod run;
#[cfg(test)]
mod simulation;
mod url;
mod valkey;

pub use url::UrlError;

use connect::Connector;
use metrics::Metrics;
use run::Member;
use url::Url;
use valkey::Valkey;

/// Where the engine is, and which cluster in it is ours.
#[derive(Clone, PartialEq)]
pub struct Options {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether it is reached by TLS.
    pub is_tls: bool,
    /// The user to log in as (ACL).
    pub user: Option<String>,
    /// The password.
    pub password: Password,
    /// The number of the database.
    pub db: i64,
    /// What all resolvers of one cluster share, and no others.
    pub id: String,
    /// Certificates to trust besides the public ones, PEM.
    pub ca_file: Option<PathBuf>,
    /// The longest span that an answer can hold an address for.
    pub span_max: Duration,
}

impl Options {
    /// Returns the files that are read, now or when the engine is reached anew.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let password = match &self.password {
            Password::File(file) => Some(file.as_path()),
            _ => None,
        };
        password.into_iter().chain(self.ca_file.as_deref())
    }
}

/// Where the password comes from.
#[derive(Clone, PartialEq)]
pub enum Password {
    /// None is needed.
    None,
    /// It was given.
    Given(String),
    /// It is the first line of a file.
    File(PathBuf),
}

/// Without the password itself.
impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Given(_) => "Given(…)",
            Self::File(_) => "File(…)",
        })
    }
}

/// Without user and password.
impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("place", &self.place()).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Options {
    /// How much farther ahead than the longest answer an end may be: another's clock, and the rounding.
    const SPAN_SLACK: Duration = Duration::from_secs(600);

    /// Takes an URL, the cluster's id, and the longest span that an answer can hold an address for.
    ///
    /// # Errors
    /// See [`UrlError`]; `is_insecure` lets `redis://` leave the host.
    pub fn new(url: &str, is_insecure: bool, id: String, longest: Duration) -> Result<Self, UrlError> {
        let Url { host, port, is_tls, user, password, db } = Url::parse(url, is_insecure)?;
        let span_max = longest.saturating_add(Self::SPAN_SLACK);
        Ok(Self { host, port, is_tls, user, password, db, id, ca_file: None, span_max })
    }

    /// Takes the password from a file instead of the URL, and trusts more certificates.
    pub fn with_files(self, password_file: Option<PathBuf>, ca_file: Option<PathBuf>) -> Self {
        let password = password_file.map_or(self.password, Password::File);
        Self { password, ca_file, ..self }
    }

    /// Returns the engine's place for logs, without user and password.
    pub fn place(&self) -> String {
        let scheme = if self.is_tls { "rediss" } else { "redis" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{scheme}://{host}:{}", self.port)
    }
}

/// Why a cluster cannot be joined with these options.
#[derive(Debug, Error)]
pub enum OptionsError {
    /// The password's file.
    #[error("store.cluster-password-file: {path}: {reason}")]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never its text.
        reason: String,
    },
    /// The file of certificates.
    #[error("store.cluster-ca-file: {path}: {reason}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS otherwise.
    #[error("store.cluster: {0}")]
    Tls(String),
}

/// A cluster that can be joined.
#[derive(Debug)]
pub struct Prepared {
    engine: Valkey,
    place: String,
    span_max: Duration,
    metrics: Metrics,
}

impl Prepared {
    /// Checks the options and what they name; nothing is connected yet.
    ///
    /// # Errors
    /// See [`OptionsError`].
    pub fn new(options: &Options, registry: &Registry) -> Result<Self, OptionsError> {
        let metrics = Metrics::new(registry);
        let connector = Connector::new(options, metrics.octets())?;
        let engine = Valkey::new(connector, &options.id);
        Ok(Self { engine, place: options.place(), span_max: options.span_max, metrics })
    }

    /// Joins: `intake` is where the learner tells what changes, `catalogue` what is listed. The future must run for it.
    pub fn join(
        self,
        learner: Learner,
        intake: Intake,
        catalogue: watch::Receiver<Arc<Catalogue>>,
        clock: Clock,
    ) -> (Cluster, impl Future<Output = ()> + Send) {
        let Self { engine, place, span_max, metrics } = self;
        let (member, cluster) = Member::new(engine, place, span_max, learner, catalogue, clock, metrics);
        (cluster, member.run(intake))
    }
}

/// How the cluster is seen by the rest.
#[derive(Clone, Debug)]
pub struct Cluster {
    joined: watch::Receiver<bool>,
    told: watch::Receiver<bool>,
}

impl Cluster {
    /// Waits until the set holds what the others know, or it turns out that they cannot be reached.
    pub async fn joined(&self) {
        // One that ended has nothing to wait for.
        let _ = self.joined.clone().wait_for(|joined| *joined).await;
    }

    /// Waits, after the learner was closed, until the others were told everything, or cannot be.
    pub async fn told(&self) {
        let _ = self.told.clone().wait_for(|told| *told).await;
    }
}
