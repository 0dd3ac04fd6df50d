//! What the web part is given, and what it keeps while it serves.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts};
use tokio_util::sync::CancellationToken;

use super::ack::Followers;
use super::conditional::Dates;
use super::rendered::{RenderError, Store};
use super::token::Tokens;
use crate::catalogue::{Catalogue, Tag};
use crate::clock::{Clock, Timestamp};
use crate::learn::Released;
use crate::metrics::Registry;
use crate::name::Name;
use crate::prefix::Family;
use crate::set::{Joins, Reader, Snapshot};

/// What the web part reads; made by the daemon, cheap to clone.
#[derive(Clone)]
pub struct State {
    /// The set.
    pub reader: Reader,
    /// The lists of now; a reload swaps them.
    pub catalogue: Arc<ArcSwap<Catalogue>>,
    /// Every metric of the daemon.
    pub registry: Registry,
    /// Where `now` comes from.
    pub clock: Clock,
    /// Whether the set is restored and the listeners are open: until then lists are answered with 503.
    pub ready: Arc<AtomicBool>,
    /// Who may read from beyond loopback, and act; a reload swaps them.
    pub tokens: Arc<ArcSwap<Tokens>>,
    /// Where followers that acknowledge join those whom answers wait for.
    pub joins: Joins,
    /// What other parts know and do.
    pub hooks: Hooks,
}

/// Questions and orders to parts that the web part does not import.
#[derive(Clone)]
pub struct Hooks {
    /// More members for `/stats`: an object, such as `{"upstreams": […]}`.
    pub stats: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Why an address is never learned; `None` if it may be.
    pub why_not: Arc<dyn Fn(IpAddr) -> Option<String> + Send + Sync>,
    /// The listed name whose HTTPS or SVCB answer named this one as its target, and that name's tag.
    pub followed: Arc<Followed>,
    /// Confirms that the set may shrink as the lists say.
    pub accept_shrink: Arc<AcceptShrink>,
}

/// Tells where a followed name comes from.
pub type Followed = dyn Fn(&Name) -> Option<(Name, Tag)> + Send + Sync;

/// Lets go of what is listed no longer and was kept.
pub type AcceptShrink = dyn Fn() -> BoxFuture<'static, Released> + Send + Sync;

/// Hooks that know and do nothing.
impl Default for Hooks {
    fn default() -> Self {
        Self {
            stats: Arc::new(|| serde_json::Value::Null),
            why_not: Arc::new(|_| None),
            followed: Arc::new(|_| None),
            accept_shrink: Arc::new(|| Box::pin(async { Released::default() })),
        }
    }
}

/// What all requests share.
pub(super) struct Web {
    pub(super) state: State,
    pub(super) store: Store,
    pub(super) dates: Dates,
    pub(super) streams: Limiter,
    pub(super) followers: Followers,
    pub(super) metrics: Metrics,
    pub(super) started: Timestamp,
    /// Cancelled when the daemon stops: open streams end.
    pub(super) shutdown: CancellationToken,
    /// Names under which browsers may reach what is not open to everybody, lower case.
    pub(super) host_names: Vec<String>,
    addresses: Mutex<Option<Addresses>>,
}

/// The addresses of one snapshot (session, serial).
type Addresses = ((u64, u64), Arc<[IpAddr]>);

/// Above so many hosts a walk over the set is left to a blocking thread.
const INLINE_HOSTS_MAX: usize = 4096;

impl Web {
    pub(super) fn new(state: State, shutdown: CancellationToken) -> Self {
        Self {
            metrics: Metrics::new(&state.registry),
            started: state.clock.now(),
            store: Store::new(),
            dates: Dates::default(),
            streams: Limiter::new(STREAMS_MAX, STREAMS_PER_CLIENT_MAX),
            followers: Followers::new(state.joins.clone()),
            host_names: host_names(),
            addresses: Mutex::default(),
            state,
            shutdown,
        }
    }

    /// Returns whether lists may be given out.
    pub(super) fn is_ready(&self) -> bool {
        self.state.ready.load(Ordering::Acquire)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.state.clock.now()
    }

    /// Returns the addresses of a snapshot's hosts in order; followers that start anew share one list.
    pub(super) async fn addresses(&self, snapshot: &Snapshot) -> Result<Arc<[IpAddr]>, RenderError> {
        let version = (snapshot.session().0, snapshot.serial());
        if let Some((of, addresses)) = &*self.addresses.lock()
            && *of == version
        {
            return Ok(Arc::clone(addresses));
        }
        let own = snapshot.clone();
        let addresses: Arc<[IpAddr]> =
            self.walk(snapshot, move || own.hosts().map(|host| host.addr()).collect()).await?;
        *self.addresses.lock() = Some((version, Arc::clone(&addresses)));
        Ok(addresses)
    }

    /// Runs a walk over the hosts of `snapshot`, here if they are few.
    pub(super) async fn walk<T: Send + 'static>(
        &self,
        snapshot: &Snapshot,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RenderError> {
        let count = snapshot.host_count(Family::V4) + snapshot.host_count(Family::V6);
        if count <= INLINE_HOSTS_MAX { Ok(work()) } else { self.store.blocking(work).await }
    }
}

/// The metrics of this part.
pub(super) struct Metrics {
    /// By endpoint and status.
    pub(super) requests: IntCounterVec,
    /// By family; brought up to date when it is read.
    pub(super) prefixes: IntGaugeVec,
    /// Followers beyond the bound.
    pub(super) followers_refused: IntCounter,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        Self {
            requests: registry.add(IntCounterVec::new(
                Opts::new("greenlane_web_requests_total", "HTTP requests answered, by endpoint and status."),
                &["endpoint", "status"],
            )),
            prefixes: registry.add(IntGaugeVec::new(
                Opts::new("greenlane_export_prefixes", "Prefixes in the aggregated export, by IP version."),
                &["family"],
            )),
            followers_refused: registry.add(IntCounter::new(
                "greenlane_web_followers_refused_total",
                "Followers that wanted to acknowledge and were too many: answers do not wait for them.",
            )),
        }
    }
}

/// The most streams open at once.
const STREAMS_MAX: usize = 256;
/// The most streams of one client.
const STREAMS_PER_CLIENT_MAX: usize = 8;

/// Counts what is open, in all and for each client: an IPv4 address or an IPv6 /64.
#[derive(Clone, Debug)]
pub(super) struct Limiter(Arc<Limits>);

#[derive(Debug)]
struct Limits {
    max: usize,
    per_client_max: usize,
    /// Clients with something open; never an entry of 0, so never more entries than `max`.
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// Which bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    All,
    Client,
}

/// One place taken; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Place {
    limiter: Limiter,
    client: IpAddr,
}

impl Limiter {
    pub(super) fn new(max: usize, per_client_max: usize) -> Self {
        Self(Arc::new(Limits { max, per_client_max, open: Mutex::default() }))
    }

    /// Takes a place for `client`.
    pub(super) fn take(&self, client: IpAddr) -> Result<Place, Full> {
        let client = network(client);
        let mut open = self.0.open.lock();
        if open.values().sum::<usize>() >= self.0.max {
            return Err(Full::All);
        }
        if open.get(&client).is_some_and(|count| *count >= self.0.per_client_max) {
            return Err(Full::Client);
        }
        *open.entry(client).or_insert(0) += 1;
        Ok(Place { limiter: self.clone(), client })
    }

    /// Returns how many places are taken.
    pub(super) fn count(&self) -> usize {
        self.0.open.lock().values().sum()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.limiter.0.open.lock();
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// Cuts an IPv6 address to its /64, which one client owns as a whole.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(addr) => Ipv6Addr::from(u128::from(addr) & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

/// Returns the names of this host: as the kernel has it, its first label, and that under `.local`.
fn host_names() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = text.trim().trim_end_matches('.').to_ascii_lowercase();
    if name.is_empty() {
        return Vec::new();
    }
    let first = name.split('.').next().unwrap_or(&name).to_owned();
    vec![format!("{first}.local"), first, name]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_for_each_client() {
        let limiter = Limiter::new(3, 2);
        let client = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = limiter.take(client("2001:db8::1")).unwrap();
        let _second = limiter.take(client("2001:db8::2")).unwrap();
        assert_eq!(limiter.take(client("2001:db8::3")).unwrap_err(), Full::Client);
        let _third = limiter.take(client("192.0.2.1")).unwrap();
        assert_eq!(limiter.take(client("192.0.2.2")).unwrap_err(), Full::All);
        drop(first);
        assert_eq!(limiter.count(), 2);
        assert!(limiter.take(client("2001:db8::3")).is_ok());
    }
}
