//! Feeds, API and metrics over HTTP.
//!
//! ```text
//!   server ─▶ guard ─┬▶ feeds    /prefixes.*  /feeds/*  /domains.txt   conditional, coding, rendered: once a serial
//!                    ├▶ delta    /delta                      change: written piece by piece
//!                    ├▶ watch    /watch
//!                    ├▶ ack      /ack         by POST: a follower holds what /watch told
//!                    ├▶ explain  /explain
//!                    ├▶ sightings  /sightings
//!                    ├▶ shrink   /shrink/accept   by POST: the set may shrink as the lists say
//!                    └▶ ops      /  /apps  /stats  /metrics  /healthz  /readyz
//! ```
//! What is not marked answers GET and HEAD; other methods get 405 with `Allow`. A fault is a status of 500 or above with
//! one line of text, never an empty list: a consumer keeps what it has. Nothing here changes the set by itself.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Request};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio_util::sync::CancellationToken;
use tower_http::compression::CompressionLayer;

use crate::export::format::{Format, Names};
use crate::prefix::Prefix;

mod ack;
mod change;
mod coding;
mod conditional;
mod delta;
pub mod explain;
mod feeds;
mod guard;
mod ops;
mod query;
mod rendered;
mod reply;
mod server;
mod shrink;
mod sightings;
mod state;
mod token;
mod watch;

#[cfg(test)]
mod tests;

pub use server::{serve, serve_metrics};
pub use state::{AcceptShrink, Followed, Hooks, State};
pub use token::{TokenError, Tokens, read_token};

use guard::Peer;
use state::Web;

/// Who may read, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The address to listen on; `None` for no web listener.
    pub listen: Option<SocketAddr>,
    /// Client prefixes that may connect; empty for all.
    pub allow: Vec<Prefix>,
    /// The file of the token for reading what is not open; `None` keeps that to loopback.
    pub read_token_file: Option<PathBuf>,
    /// The file of the token for actions; it reads, too.
    pub admin_token_file: Option<PathBuf>,
}

/// Where followers acknowledge.
const ACK: &str = "/ack";

/// Where a shrink is accepted.
const SHRINK_ACCEPT: &str = "/shrink/accept";

/// Puts the endpoints together.
fn router(state: State, shutdown: CancellationToken) -> Router {
    let web = Arc::new(Web::new(state, shutdown));
    feed_routes(&web)
        .merge(other_routes(&web))
        .fallback(async || reply::refused(StatusCode::NOT_FOUND, "nothing here; / lists what there is"))
        .method_not_allowed_fallback(async |uri: Uri| {
            let is_action = [ACK, SHRINK_ACCEPT].contains(&uri.path());
            let line = if is_action { "expected POST" } else { "expected GET or HEAD" };
            reply::refused(StatusCode::METHOD_NOT_ALLOWED, line)
        })
        .layer(from_fn_with_state(web, guard::guard))
}

/// The lists, which are compressed once and have a tag a coding.
fn feed_routes(web: &Arc<Web>) -> Router {
    let mut router = Router::new();
    let general = Format::PREFIXES.map(|format| (format!("/prefixes.{}", format.name()), format));
    let products = Format::FEEDS.map(|format| (format!("/feeds/{}.txt", format.name()), format));
    for (path, format) in general.into_iter().chain(products) {
        let web = Arc::clone(web);
        let handler = move |uri: Uri, request: HeaderMap| feeds::prefixes(Arc::clone(&web), format, uri, request);
        router = router.route(&path, get(handler));
    }
    for (path, names) in [("/domains.txt", Names::Plain), ("/feeds/squid-domains.txt", Names::Squid)] {
        let web = Arc::clone(web);
        let handler = move |uri: Uri, request: HeaderMap| feeds::names(Arc::clone(&web), names, uri, request);
        router = router.route(path, get(handler));
    }
    router
}

/// Answers of the moment, compressed on the way out; event streams are not.
fn other_routes(web: &Arc<Web>) -> Router {
    let own = || Arc::clone(web);
    let (delta, watch, explain, apps, stats, metrics, readyz) = (own(), own(), own(), own(), own(), own(), own());
    let (ack, shrink, seen) = (own(), own(), own());
    Router::new()
        .route("/", get(async || ops::index()))
        .route("/delta", get(move |uri: Uri| delta::delta(Arc::clone(&delta), uri)))
        .route(
            "/watch",
            get(move |Extension(Peer(peer)): Extension<Peer>, uri: Uri, request: HeaderMap| {
                watch::watch(Arc::clone(&watch), peer, uri, request)
            }),
        )
        .route(ACK, post(async move |uri: Uri, request: Request| ack::ack(&ack, &uri, request.body())))
        .route(
            SHRINK_ACCEPT,
            post(move |uri: Uri, request: Request| shrink::accept(Arc::clone(&shrink), uri, request.into_body())),
        )
        .route("/explain", get(move |uri: Uri| explain::explain(Arc::clone(&explain), uri)))
        .route("/sightings", get(move |uri: Uri| sightings::sightings(Arc::clone(&seen), uri)))
        .route("/apps", get(move |uri: Uri| ops::apps(Arc::clone(&apps), uri)))
        .route("/stats", get(async move |uri: Uri| ops::stats(&stats, &uri)))
        .route("/metrics", get(move || ops::metrics(Arc::clone(&metrics))))
        .route("/healthz", get(async || ops::healthz()))
        .route("/readyz", get(async move || ops::readyz(&readyz)))
        .layer(CompressionLayer::new())
}
