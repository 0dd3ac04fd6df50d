//! Asking an upstream.
//!
//! [`Forward::ask`] takes a question and returns what an upstream answered, walked and unchanged: any rcode, negative
//! answers, unknown types, all sections, the EDEs. The deepest [`Route`] that covers the name picks the group of
//! upstreams, the group whom to ask and when the next (`group`), the upstream how (`upstream`: connections, EDNS,
//! truncation; `health`: who is down and how fast the others are), the transports carry octets (`udp`, `connection`,
//! `https`, `quic`; `link` stands for any but the first).
//!
//! ```text
//! Forward::ask ─▶ waiting ─▶ route ─▶ Group::ask ─ race of tries ─▶ Peer::attempt ─┬▶ Datagrams ─▶ wire::walk
//! Forward::ask_then ── one upstream to ask, and a way to it ──▶ Hope ──────────────┴▶ Link ──────▶ wire::walk
//!        └─ anything else, now or later ──▶ the race
//! ```
//!
//! [`Forward::ask_then`] is for the many questions that one upstream answers at the first try: no task, no timer, and
//! what follows happens where the reply was read (`quick`): in the thread that asked, if it has an [`Exchange`] of its
//! own. Whatever else comes up goes over to the race, the try that was begun included.
//!
//! What is asked upstream: the question with RD and a fresh random id (over UDP in random letters, if wanted: `letters`), CD as the client set it, and one OPT of our
//! own with DO as the client set it, 1232 octets and no option but padding where it is encrypted (RFC 8467); nothing else of the client's query. AD is set when
//! the upstream's AD bit is believed ([`TrustAd`]), since only then is the reply's of use (RFC 6840 §5.7).
//!
//! Bounds: [`WAITING_MAX`] questions wait at a time, the oldest gives way; each at most [`Options::timeout`]; four
//! tries per upstream; UDP sockets at most half of what the process may open, in equal shares. Dropping the future of
//! an `ask` gives up its tries. A question that fails does so with a [`Failure`], each of which has its EDE (RFC 8914).

mod connection;
mod group;
mod health;
mod hopes;
mod https;
mod letters;
mod link;
mod measure;
mod message;
mod quic;
mod quick;
mod system;
mod tls;
mod udp;
mod upstream;
mod waiting;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::group::Group;
use self::measure::Metrics;
use self::udp::{Reader, Started};
use self::upstream::{Peer, Setting};
use self::waiting::Waiting;
use crate::clock::Clock;
use crate::metrics::Registry;
use crate::name::Name;
use crate::wire::{Ede, Question, Rules, Walked, ede};

pub use self::system::{SystemError, system_upstreams};
pub use self::udp::Exchange;

/// How many questions wait for an upstream at a time.
pub const WAITING_MAX: usize = 4096;

/// How many UDP sockets an upstream may have open at least, however many upstreams share what there is.
const SOCKETS_MIN: usize = 16;

/// The environment variable that names a PEM file of certificate authorities to trust beside the built-in ones.
pub const ROOTS_VARIABLE: &str = "SSL_CERT_FILE";

/// What is asked of an HTTPS upstream whose URL has no path.
pub const DEFAULT_PATH: &str = "/dns-query";

/// How an upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Plain DNS over UDP, over TCP when truncated.
    Udp,
    /// Plain DNS over TCP.
    Tcp,
    /// DNS over TLS (RFC 7858).
    Tls,
    /// DNS over HTTPS (RFC 8484), HTTP/2 only.
    Https,
    /// DNS over QUIC (RFC 9250).
    Quic,
}

/// One upstream as an URL names it: `udp://192.0.2.1`, `tcp://192.0.2.1:5353`, `tls://192.0.2.1#dns.example`,
/// `https://192.0.2.1/dns-query#dns.example`, `quic://192.0.2.1#dns.example`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Where it listens.
    pub addr: SocketAddr,
    /// The name in its certificate; with an encrypted protocol only. `None`: the address itself must be in it.
    pub tls_name: Option<String>,
    /// What is asked there, from `/` on; with [`Protocol::Https`] only. `None`: [`DEFAULT_PATH`].
    pub path: Option<String>,
}

impl Protocol {
    /// Returns the port it has by default.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => 53,
            Self::Tls | Self::Quic => 853,
            Self::Https => 443,
        }
    }

    /// Returns the scheme of its URLs.
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Https => "https",
            Self::Quic => "quic",
        }
    }

    /// Returns whether nobody on the way can read or change what is said.
    pub const fn is_encrypted(self) -> bool {
        match self {
            Self::Udp | Self::Tcp => false,
            Self::Tls | Self::Https | Self::Quic => true,
        }
    }
}

impl Upstream {
    /// Returns what is asked there, empty unless it is asked over HTTPS.
    pub fn path(&self) -> &str {
        match self.protocol {
            Protocol::Https => self.path.as_deref().unwrap_or(DEFAULT_PATH),
            _ => "",
        }
    }
}

/// The URL, without the port if it is the default one.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.protocol.scheme())?;
        match self.addr {
            addr if addr.port() != self.protocol.default_port() => write!(f, "{addr}")?,
            SocketAddr::V4(addr) => write!(f, "{}", addr.ip())?,
            SocketAddr::V6(addr) => write!(f, "[{}]", addr.ip())?,
        }
        f.write_str(self.path())?;
        match &self.tls_name {
            Some(name) => write!(f, "#{name}"),
            None => Ok(()),
        }
    }
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
    /// Whether the letters of questions over UDP are drawn at random, so that who forges a reply must guess them.
    pub case_randomization: bool,
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
            path: None,
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
            case_randomization: false,
            routes: Vec::new(),
        }
    }
}

/// Why [`Options`] cannot be used.
#[derive(Debug, Error)]
pub enum OptionsError {
    /// A group without upstreams.
    #[error("no upstream for {0}")]
    NoUpstreams(String),
    /// The name after `#` can stand in no certificate.
    #[error("{upstream}: expected a host name or an address after `#`, found `{name}`")]
    TlsName {
        /// The upstream's URL.
        upstream: String,
        /// What stands after `#`.
        name: String,
    },
    /// The path, or the name before it, can stand in no URI.
    #[error("{0}: expected a URI such as https://9.9.9.9/dns-query#dns.quad9.net")]
    Uri(String),
    /// The TLS library lacks the cipher suite that QUIC begins with.
    #[error("QUIC cannot be set up")]
    Quic,
    /// The file that the environment names cannot be read.
    #[error("{ROOTS_VARIABLE}: {path}: {reason}", path = path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No thread or no descriptor is left for the replies over UDP.
    #[error("reading upstream replies: {0}")]
    Reader(#[source] io::Error),
    /// The TLS library refused its own defaults.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// Why no upstream's reply can be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// No reply came in time.
    #[error("no upstream answered in time")]
    TimedOut,
    /// No upstream could be reached.
    #[error("no upstream could be reached")]
    Network,
    /// Replies came, but none that can be used.
    #[error("upstreams sent malformed replies")]
    Malformed,
    /// Too many questions wait; this one had waited longest.
    #[error("too many questions wait for upstreams")]
    Evicted,
}

impl Failure {
    /// Returns what the client is told beside SERVFAIL (RFC 8914 §4.23, §4.24).
    pub fn ede(&self) -> Ede {
        match self {
            Self::TimedOut => Ede::new(ede::NO_REACHABLE_AUTHORITY, "no upstream answered in time"),
            Self::Network => Ede::new(ede::NETWORK_ERROR, "no upstream could be reached"),
            Self::Malformed => Ede::new(ede::NETWORK_ERROR, "upstreams sent malformed replies"),
            Self::Evicted => Ede::new(ede::NO_REACHABLE_AUTHORITY, "too many questions wait for upstreams"),
        }
    }
}

/// One upstream's state, for a status page.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamStatus {
    /// Its place in the configuration, as the metrics name it: `upstream-1`, `route-1-upstream-2`.
    pub place: String,
    /// Its URL.
    pub url: String,
    /// Whether it is thought to answer; true before it was asked.
    pub is_up: bool,
    /// Smoothed latency; `None` before its first reply.
    pub latency: Option<Duration>,
    /// Tries begun.
    pub asked: u64,
    /// Tries that gave an answer.
    pub answered: u64,
    /// Tries that failed or were not answered in their patience.
    pub failed: u64,
    /// What went wrong last, if anything did.
    pub last_error: Option<String>,
}

/// The upstreams of one configuration; share it in an `Arc`.
pub struct Forward {
    timeout: Duration,
    general: Arc<Group>,
    routes: Vec<Arc<Group>>,
    /// Zone in wire form → index into `routes`.
    zones: HashMap<Box<[u8]>, usize>,
    waiting: Arc<Waiting>,
    /// Who reads the replies over UDP; `None` without such an upstream.
    reader: Option<Arc<Started>>,
    clock: Clock,
    metrics: Metrics,
}

impl Forward {
    /// Makes the upstreams ready; nothing is asked or connected yet.
    ///
    /// `rules` say how answers are walked; their `trust_ad` is set here for each upstream. Certificates are checked
    /// against the roots of Mozilla's programme and those in the file that [`ROOTS_VARIABLE`] names, if it is set.
    ///
    /// # Errors
    /// [`OptionsError`] as its variants say.
    pub fn new(options: Options, rules: Rules, clock: Clock, registry: &Registry) -> Result<Self, OptionsError> {
        Self::with_roots(options, rules, clock, registry, tls::roots_from_environment()?)
    }

    /// Does as [`Forward::new`], with `roots` beside the built-in ones and without a look at the environment.
    ///
    /// # Errors
    /// [`OptionsError`] as its variants say.
    pub fn with_roots(
        options: Options,
        rules: Rules,
        clock: Clock,
        registry: &Registry,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, OptionsError> {
        Self::build(options, rules, clock, Metrics::new(registry), (roots, None))
    }

    /// Makes the upstreams of a new configuration, with the metrics and the clock of this one.
    ///
    /// Health and connections start anew; questions that wait here are not touched.
    ///
    /// # Errors
    /// [`OptionsError`] as its variants say.
    pub fn renewed(&self, options: Options, rules: Rules) -> Result<Self, OptionsError> {
        let roots = tls::roots_from_environment()?;
        Self::build(options, rules, self.clock.clone(), self.metrics.clone(), (roots, self.reader.clone()))
    }

    /// Asks the upstreams of the deepest route that covers the name, or the general ones.
    ///
    /// The answer may be a failure reply (SERVFAIL, REFUSED …) when no upstream did better. Safe to cancel: dropping
    /// the future gives up its tries. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// [`Failure`] when nothing can be passed on.
    pub async fn ask(&self, question: &Question) -> Result<Walked, Failure> {
        let deadline = Instant::now() + self.timeout;
        let seat = self.waiting.enter();
        let asking = self.group(&question.name).ask(question, &self.clock, deadline);
        tokio::select! {
            biased;
            result = asking => result,
            () = seat.evicted() => Err(Failure::Evicted),
        }
    }

    /// Returns how many questions wait for an upstream.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the state of each upstream: the general ones, then those of each route, as configured.
    pub fn status(&self) -> Vec<UpstreamStatus> {
        let groups = std::iter::once(&self.general).chain(&self.routes);
        groups.flat_map(|group| group.peers()).map(|peer| peer.status()).collect()
    }

    /// Finds the deepest route that covers `name`.
    fn group(&self, name: &Name) -> &Arc<Group> {
        let mut rest = name.as_wire();
        while !self.zones.is_empty() {
            if let Some(&at) = self.zones.get(rest) {
                return &self.routes[at];
            }
            match rest.split_first() {
                Some((&len, tail)) if len > 0 => rest = &tail[usize::from(len)..],
                _ => break,
            }
        }
        &self.general
    }

    fn build(
        options: Options,
        rules: Rules,
        clock: Clock,
        metrics: Metrics,
        (roots, reader): (Vec<CertificateDer<'static>>, Option<Arc<Started>>),
    ) -> Result<Self, OptionsError> {
        let upstreams = || options.upstreams.iter().chain(options.routes.iter().flat_map(|route| &route.upstreams));
        let upstream_count = upstreams().count();
        let reader = match reader {
            None if upstreams().any(|upstream| upstream.protocol == Protocol::Udp) => {
                Some(Arc::new(Reader::start().map_err(OptionsError::Reader)?))
            }
            kept => kept,
        };
        let maker = Maker {
            strategy: options.strategy,
            trust_ad: options.trust_ad,
            case_randomization: options.case_randomization,
            rules,
            tls: tls::Configs::new(roots)?,
            sockets_max: (udp::sockets_max() / upstream_count.max(1)).max(SOCKETS_MIN),
            reader: reader.clone(),
            lingering: Arc::new(Semaphore::new(group::LINGERING_MAX)),
            clock: clock.clone(),
            metrics: metrics.clone(),
        };
        let general = maker.group("upstream", "all names", options.upstreams)?;
        let mut routes = Vec::with_capacity(options.routes.len());
        let mut zones = HashMap::with_capacity(options.routes.len());
        for (at, route) in options.routes.into_iter().enumerate() {
            let place = format!("route-{}-upstream", at + 1);
            routes.push(maker.group(&place, &format!("route `{}`", route.zone), route.upstreams)?);
            // Of two routes for one zone the first counts.
            zones.entry(route.zone.as_wire().into()).or_insert(at);
        }
        let waiting = Waiting::new(WAITING_MAX);
        Ok(Self { timeout: options.timeout, general, routes, zones, waiting, reader, clock, metrics })
    }
}

/// What all upstreams share while they are made.
struct Maker {
    strategy: Strategy,
    trust_ad: TrustAd,
    case_randomization: bool,
    rules: Rules,
    tls: tls::Configs,
    /// Of each upstream: a dead one must not keep the sockets that the others need.
    sockets_max: usize,
    reader: Option<Arc<Started>>,
    lingering: Arc<Semaphore>,
    clock: Clock,
    metrics: Metrics,
}

impl Maker {
    /// Makes one group; `place` is what its upstreams are called, before their number.
    fn group(&self, place: &str, of: &str, upstreams: Vec<Upstream>) -> Result<Arc<Group>, OptionsError> {
        if upstreams.is_empty() {
            return Err(OptionsError::NoUpstreams(of.to_owned()));
        }
        let peers = upstreams
            .into_iter()
            .enumerate()
            .map(|(at, upstream)| Ok(Arc::new(self.peer(format!("{place}-{}", at + 1), upstream)?)))
            .collect::<Result<_, OptionsError>>()?;
        Ok(Arc::new(Group::new(peers, self.strategy, self.lingering.clone(), self.metrics.hedges.clone())))
    }

    fn peer(&self, place: String, upstream: Upstream) -> Result<Peer, OptionsError> {
        let dial = self.tls.dial(&upstream)?;
        let trust_ad = match self.trust_ad {
            TrustAd::Auto => upstream.protocol.is_encrypted() || upstream.addr.ip().to_canonical().is_loopback(),
            TrustAd::Always => true,
            TrustAd::Never => false,
        };
        let setting = Setting {
            tally: self.metrics.of(&place),
            place,
            dial,
            rules: Rules { trust_ad, ..self.rules },
            case_randomization: self.case_randomization,
            sockets_max: self.sockets_max,
            reader: self.reader.clone().filter(|_| upstream.protocol == Protocol::Udp),
            clock: self.clock.clone(),
        };
        Ok(Peer::new(upstream, setting))
    }
}

#[cfg(test)]
pub(crate) mod tests;
