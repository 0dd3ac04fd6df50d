//! The accept loop: connections, bounded in number, size and patience.
//!
//! | bound | value | beyond it |
//! |---|---|---|
//! | connections in all, of one client | 1,024, 128 | closed at once |
//! | request head: size, fields | 32 KiB, 64 | 431 |
//! | time for a request head, and between requests | 20 s | closed |
//! | time that sent octets stay unacknowledged | 60 s | closed by the kernel (Linux) |
//!
//! HTTP/1.1 and 1.0 only: on a port without TLS nobody speaks HTTP/2, and its multiplexing would need bounds of its own.
//! A client outside `web.allow` is closed before a byte is read, never told 403: some firewalls drop their list on one.
//! When the daemon stops, requests under way are answered, streams end, and after a second the rest is cut off.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::guard::Peer;
use super::reply::{text, with_type};
use super::state::Limiter;
use super::{Options, State, router};
use crate::metrics::{self, Registry};
use crate::prefix::Prefix;

const CONNECTIONS_MAX: usize = 1024;
const CONNECTIONS_PER_CLIENT_MAX: usize = 128;
const HEAD_LEN_MAX: usize = 32 * 1024;
const HEAD_FIELDS_MAX: usize = 64;
const HEAD_TIME_MAX: Duration = Duration::from_secs(20);
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIME_MAX: Duration = Duration::from_secs(60);
/// How long a stop waits for requests under way.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);
/// How long accepting pauses when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often that is said at most.
const COMPLAIN_PAUSE: Duration = Duration::from_secs(60);

/// Serves HTTP on `listener` until `shutdown` is cancelled; returns within about a second of that.
///
/// Registers the metrics of this part, so call it once a registry.
pub async fn serve(listener: TcpListener, state: State, options: Options, shutdown: CancellationToken) {
    accept(listener, router(state, shutdown.clone()), &options.allow, shutdown).await;
}

/// Serves `/metrics` and `/healthz` alone, for a process that has no set to serve; otherwise like [`serve`].
pub async fn serve_metrics(listener: TcpListener, registry: Registry, shutdown: CancellationToken) {
    let metrics = move || async move { with_type(StatusCode::OK, metrics::CONTENT_TYPE, registry.render().into()) };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { text(StatusCode::OK, "ok\n".to_owned()) }));
    accept(listener, router, &[], shutdown).await;
}

async fn accept(listener: TcpListener, router: Router, allow: &[Prefix], shutdown: CancellationToken) {
    let limiter = Limiter::new(CONNECTIONS_MAX, CONNECTIONS_PER_CLIENT_MAX);
    let (connections, cut) = (TaskTracker::new(), CancellationToken::new());
    let mut complained = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
            Err(error) => {
                pause_after(&error, &mut complained).await;
                continue;
            }
        };
        if !allow.is_empty() && !allow.iter().any(|prefix| prefix.contains(peer)) {
            continue;
        }
        let Ok(place) = limiter.take(peer) else { continue };
        let connection = connection(stream, peer, router.clone(), shutdown.clone());
        let cut = cut.clone();
        connections.spawn(async move {
            let _place = place;
            cut.run_until_cancelled(connection).await;
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(DRAIN_TIME_MAX, connections.wait()).await.is_err() {
        cut.cancel();
        connections.wait().await;
    }
}

/// Serves one connection to its end.
async fn connection(stream: TcpStream, peer: IpAddr, router: Router, shutdown: CancellationToken) {
    tune(&stream);
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        service.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_LEN_MAX)
        .max_headers(HEAD_FIELDS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // What ends a connection early is the client's doing: nothing to tell anybody.
    let done = tokio::select! {
        done = connection.as_mut() => Some(done),
        () = shutdown.cancelled() => None,
    };
    if done.is_none() {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

/// Sets what bounds a peer that stops reading; a socket that refuses is served all the same.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIME_MAX));
}

/// A connection that broke before we took it is no reason to wait; anything else is.
async fn pause_after(error: &io::Error, complained: &mut Option<Instant>) {
    let is_peer = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    );
    if !is_peer {
        if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_PAUSE) {
            *complained = Some(Instant::now());
            tracing::warn!(%error, "the web listener cannot accept");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
