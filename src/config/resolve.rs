//! The file's values as the parts' options, checked against each other.

use crate::prefix::Prefix;
use crate::{forward, listen};

/// Collects the addresses that must never be learned: those that we listen on and those of the upstreams.
pub(super) fn own_addresses(listen: &listen::Options, forward: &forward::Options) -> Vec<Prefix> {
    let listening = listen.dns.iter().map(|address| address.addr.ip()).filter(|ip| !ip.is_unspecified());
    let routed = forward.routes.iter().flat_map(|route| &route.upstreams);
    let upstreams = forward.upstreams.iter().chain(routed).map(|upstream| upstream.addr.ip());
    let mut own: Vec<Prefix> = listening.chain(upstreams).map(|ip| Prefix::host(ip.to_canonical())).collect();
    own.sort();
    own.dedup();
    own
}
