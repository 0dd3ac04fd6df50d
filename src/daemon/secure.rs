//! The encrypted listeners of a daemon: their certificate, their sockets, and what discovery tells of them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use quinn::Endpoint;
use thiserror::Error;
use tokio::net::TcpListener;

use super::{Daemon, interface_addresses};
use crate::config::Config;
use crate::listen::doq::{self, Doq, DoqError};
use crate::listen::streams::{Door, Streams};
use crate::listen::tls::{Files, Identity, Pair, PairError};
use crate::listen::{Kind, Secure, doh};
use crate::policy::{Designated, Way};

/// How many addresses of each family are told where we listen on all.
const HINTS_MAX: usize = 4;

/// Why encrypted listeners cannot start.
#[derive(Debug, Error)]
pub enum SecureError {
    /// The certificate.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// A socket.
    #[error("{} on {addr}: {source}", kind.title())]
    Socket {
        /// What was to be spoken.
        kind: Kind,
        /// Where.
        addr: SocketAddr,
        /// Why not.
        source: DoqError,
    },
}

/// What reads of an encrypted listener.
enum Ready {
    Stream(TcpListener, Door),
    Endpoint(Endpoint),
}

/// Encrypted listeners that are set up and not read yet.
pub(super) struct Prepared {
    identity: Option<Arc<Identity>>,
    ready: Vec<Ready>,
    /// What each speaks, and where.
    pub(super) places: Vec<(Kind, SocketAddr)>,
}

impl Prepared {
    /// Reads the certificate, if one is configured, and has the runtime of this task read the sockets.
    pub(super) fn new(config: &Config, sockets: Vec<Secure>) -> Result<Self, SecureError> {
        let identity = config.listen.tls.clone().map(Identity::load).transpose()?.map(Arc::new);
        let places = sockets.iter().map(|one| (one.kind, one.addr)).collect();
        let mut ready = Vec::new();
        if let Some(identity) = &identity {
            for Secure { kind, addr, socket } in sockets {
                let in_place = |source| SecureError::Socket { kind, addr, source };
                let one = match kind {
                    Kind::Doq => doq::endpoint(socket.into(), identity).map(Ready::Endpoint),
                    Kind::Dot => Door::dot(identity).map_err(DoqError::from).and_then(|door| stream(socket, door)),
                    Kind::Doh => Door::doh(identity).map_err(DoqError::from).and_then(|door| stream(socket, door)),
                };
                ready.push(one.map_err(in_place)?);
            }
        }
        Ok(Self { identity, ready, places })
    }
}

fn stream(socket: socket2::Socket, door: Door) -> Result<Ready, DoqError> {
    Ok(Ready::Stream(TcpListener::from_std(socket.into())?, door))
}

/// The certificate of a running daemon, and what it lets be told.
#[derive(Debug, Default)]
pub(super) struct Certified {
    identity: Option<Arc<Identity>>,
    places: Vec<(Kind, SocketAddr)>,
    told: Arc<ArcSwap<Designated>>,
}

impl Certified {
    pub(super) fn new(prepared: &Prepared) -> Self {
        let certified = Self {
            identity: prepared.identity.clone(),
            places: prepared.places.clone(),
            told: Arc::new(ArcSwap::from_pointee(Designated::default())),
        };
        certified.tell();
        certified
    }

    /// Returns what discovery answers with.
    pub(super) fn told(&self) -> Arc<ArcSwap<Designated>> {
        Arc::clone(&self.told)
    }

    /// Returns what each encrypted listener speaks, and where.
    pub(super) fn places(&self) -> &[(Kind, SocketAddr)] {
        &self.places
    }

    /// Tells what the certificate in force lets be told.
    fn tell(&self) {
        let names = self.identity.as_ref().map(|identity| identity.names()).unwrap_or_default();
        self.told.store(Arc::new(Designated::new(&names, &ways(&self.places))));
    }

    /// Reads the pair that a reload names, for [`Self::put`].
    pub(super) fn renewed(&self, files: Option<&Files>) -> Result<Option<Pair>, PairError> {
        match (&self.identity, files) {
            (Some(_), Some(files)) => Pair::load(files).map(Some),
            _ => Ok(None),
        }
    }

    /// Puts a pair in force.
    pub(super) fn put(&self, pair: Option<Pair>, files: Option<&Files>) {
        if let (Some(identity), Some(pair), Some(files)) = (&self.identity, pair, files) {
            identity.put(pair, files);
            self.tell();
        }
    }
}

/// The transports by preference, each port with the addresses that have it.
fn ways(places: &[(Kind, SocketAddr)]) -> Vec<Way> {
    let mut ways: Vec<Way> = Vec::new();
    // HTTPS first: it is what most clients that discover can speak.
    for kind in [Kind::Doh, Kind::Dot, Kind::Doq] {
        for (_, addr) in places.iter().filter(|(of, _)| *of == kind) {
            let (alpn, path) = match kind {
                Kind::Dot => ("dot", None),
                Kind::Doh => ("h2", Some("/dns-query{?dns}")),
                Kind::Doq => ("doq", None),
            };
            debug_assert!(path.is_none_or(|path| path.starts_with(doh::PATH)));
            let at = match ways.iter().position(|way| way.alpn == alpn && way.port == addr.port()) {
                Some(at) => at,
                None => {
                    ways.push(Way { alpn, port: addr.port(), path, addresses: Vec::new() });
                    ways.len() - 1
                }
            };
            ways[at].addresses.extend(reached(addr.ip()));
        }
    }
    ways
}

/// Where clients reach a listener: the address itself, or those of this host that others can use.
fn reached(listening: IpAddr) -> Vec<IpAddr> {
    if !listening.is_unspecified() {
        return vec![listening];
    }
    let is_useful = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    let same_family = |ip: &IpAddr| ip.is_ipv4() == listening.is_ipv4();
    interface_addresses().filter(same_family).filter(is_useful).take(HINTS_MAX).collect()
}

/// Reads encrypted listeners from now on, and looks after their certificate.
pub(super) fn start(daemon: &Arc<Daemon>, prepared: Prepared, streams: &Streams) {
    let Prepared { identity, ready, .. } = prepared;
    for one in ready {
        let stop = daemon.stop.clone();
        match one {
            Ready::Stream(listener, door) => {
                let streams = Streams { door, ..streams.clone() };
                daemon.must_run("a TLS listener", &daemon.listeners, streams.run(listener, stop));
            }
            Ready::Endpoint(endpoint) => {
                let Streams { front, open, talking, .. } = streams.clone();
                daemon.must_run("a QUIC listener", &daemon.listeners, Doq { front, open, talking }.run(endpoint, stop));
            }
        }
    }
    if let Some(identity) = identity {
        let (stop, weak) = (daemon.stop_rest.clone(), Arc::downgrade(daemon));
        daemon.tasks.spawn(async move {
            let swapped = || {
                if let Some(daemon) = weak.upgrade() {
                    daemon.certified.tell();
                }
            };
            identity.watch(swapped, stop).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_port_are_one_way_and_https_comes_first() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let places = [
            (Kind::Dot, at("192.0.2.1:853")),
            (Kind::Dot, at("[2001:db8::1]:853")),
            (Kind::Doh, at("192.0.2.1:443")),
            (Kind::Doq, at("192.0.2.1:853")),
        ];
        let ways = ways(&places);
        let shown: Vec<_> = ways.iter().map(|way| (way.alpn, way.port, way.addresses.len())).collect();
        assert_eq!(shown, [("h2", 443, 1), ("dot", 853, 2), ("doq", 853, 1)]);
        assert_eq!(ways[0].path, Some("/dns-query{?dns}"));
    }
}
