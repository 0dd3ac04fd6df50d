//! Asking an upstream.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::name::Name;

/// How an upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Plain DNS over UDP, over TCP when truncated.
    Udp,
    /// Plain DNS over TCP.
    Tcp,
    /// DNS over TLS (RFC 7858).
    Tls,
}

/// One upstream as an URL names it: `udp://192.0.2.1`, `tcp://192.0.2.1:5353`, `tls://192.0.2.1#dns.example`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Where it listens.
    pub addr: SocketAddr,
    /// The name in its certificate; with [`Protocol::Tls`] only. `None`: the address itself must be in it.
    pub tls_name: Option<String>,
}

/// Which upstream of a group is asked first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The one that answered fastest of late, the others now and then to stay informed.
    #[default]
    Fastest,
    /// Always the first that is not known to be down.
    Ordered,
}

/// Whether an upstream's AD bit is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrustAd {
    /// From encrypted upstreams and those on loopback (RFC 6840 §5.8).
    #[default]
    Auto,
    /// From every upstream.
    Always,
    /// From none.
    Never,
}

/// A zone whose questions go to upstreams of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The zone, from its apex down; the deepest route wins.
    pub zone: Name,
    /// Its upstreams, in order; not empty.
    pub upstreams: Vec<Upstream>,
}

/// Whom to ask and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Upstreams of everything that no route takes, in order; not empty.
    pub upstreams: Vec<Upstream>,
    /// Which of them is asked first.
    pub strategy: Strategy,
    /// How long a question may take over all its tries.
    pub timeout: Duration,
    /// Whose AD bit passes.
    pub trust_ad: TrustAd,
    /// Zones with upstreams of their own.
    pub routes: Vec<Route>,
}

/// Quad9 over TLS, fastest first, 8 s a question.
impl Default for Options {
    fn default() -> Self {
        let quad9 = |addr| Upstream {
            protocol: Protocol::Tls,
            addr: SocketAddr::new(addr, 853),
            tls_name: Some("dns.quad9.net".to_owned()),
        };
        Self {
            upstreams: vec![
                quad9(IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9))),
                quad9(IpAddr::V4(Ipv4Addr::new(149, 112, 112, 112))),
                quad9(IpAddr::V6(Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 0xfe))),
                quad9(IpAddr::V6(Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 9))),
            ],
            strategy: Strategy::default(),
            timeout: Duration::from_secs(8),
            trust_ad: TrustAd::default(),
            routes: Vec::new(),
        }
    }
}
