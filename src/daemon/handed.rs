//! Sockets that come from the service manager, matched with what the configuration asks for.
//!
//! A socket serves the configured address that it listens on. One of a socket unit may be named `dns`, `web`, `dot`, `doh`
//! or `doq` instead:
//! it serves as such wherever it listens, in the place of the built-in default addresses. What is missing at an address
//! is bound here, and given to the manager to keep, so that the next process finds the very same sockets: one a UDP
//! thread, since a question waits in the socket that its client was assigned to.
//!
//! What we gave away comes back as `kept-dns-7` or `kept-web-8`. If the configuration asks for it no longer, or for
//! fewer threads, the manager is told to close it: a socket of a shared port that nobody reads swallows questions.

use std::net::{SocketAddr, TcpListener};

use socket2::Socket;
use thiserror::Error;

use super::given::web_error;
use super::{Sockets, StartError};
use crate::config::Config;
use crate::listen::{self, Kind, Secure, Unread};
use crate::manager::{self, Label, Passed, PassedError, Transport};

/// A socket of the service manager that cannot be used.
#[derive(Debug, Error)]
pub enum HandedError {
    /// It is none for questions.
    #[error("{0}")]
    Passed(#[from] PassedError),
    /// The name asks for another transport.
    #[error("{label}: UDP on {addr}, expected TCP: the web is served over ListenStream= alone")]
    WebOverUdp {
        /// Which one.
        label: Label,
        /// Where it listens.
        addr: SocketAddr,
    },
    /// The same of an encrypted transport.
    #[error("{label}: expected {} on {addr}, which carries {}", kind.below(), kind.title())]
    OverAnother {
        /// Which one.
        label: Label,
        /// Where it listens.
        addr: SocketAddr,
        /// What it was to carry.
        kind: Kind,
    },
    /// The system does not tell where it listens.
    #[error("{label}: {source}")]
    NoAddress {
        /// Which one.
        label: Label,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Dns,
    Web,
    Secure(Kind),
}

impl Purpose {
    const ALL: [Self; 5] =
        [Self::Dns, Self::Web, Self::Secure(Kind::Dot), Self::Secure(Kind::Doh), Self::Secure(Kind::Doq)];

    fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Web => "web",
            Self::Secure(kind) => kind.transport().name(),
        }
    }
}

/// What a name says of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// We gave it away under this number.
    Kept(Purpose, u32),
    /// The operator says what it is for.
    Named(Purpose),
    /// Nothing.
    Other,
}

impl Name {
    fn of(name: &str) -> Self {
        if let Some(purpose) = Purpose::ALL.into_iter().find(|purpose| purpose.name() == name) {
            return Self::Named(purpose);
        }
        let kept = |purpose: Purpose| {
            let number = name.strip_prefix("kept-")?.strip_prefix(purpose.name())?.strip_prefix('-')?.parse().ok()?;
            Some(Self::Kept(purpose, number))
        };
        Purpose::ALL.into_iter().find_map(kept).unwrap_or(Self::Other)
    }

    fn kept(purpose: Purpose, number: u32) -> String {
        format!("kept-{}-{number}", purpose.name())
    }
}

/// A socket for datagrams, and under which name the manager keeps it, if we gave it away.
#[derive(Debug)]
struct Udp {
    socket: Socket,
    kept: Option<String>,
}

/// What was passed for one address.
#[derive(Debug)]
struct Place {
    addr: SocketAddr,
    udp: Vec<Udp>,
    tcp: Option<TcpListener>,
}

/// What was passed.
#[derive(Debug, Default)]
pub(super) struct Handed {
    dns: Vec<Place>,
    web: Option<TcpListener>,
    secure: Vec<Secure>,
    /// Whether names, rather than the configuration, say where questions come in.
    is_named: bool,
    /// Above every number in use.
    next_number: u32,
}

impl Handed {
    /// Sorts what was passed by what the configuration asks for.
    pub(super) fn sort(passed: Vec<Passed>, config: &Config) -> Result<Self, HandedError> {
        let mut handed = Self::default();
        for Passed { label, socket } in passed {
            let local = match &socket {
                Transport::Udp(socket) => socket.local_addr().map(|addr| addr.as_socket()),
                Transport::Tcp(listener) => listener.local_addr().map(Some),
            };
            let addr = match local {
                Ok(Some(addr)) => addr,
                Ok(None) => return Err(PassedError::Unfit(label).into()),
                Err(source) => return Err(HandedError::NoAddress { label, source }),
            };
            let name = Name::of(&label.name);
            if let Name::Kept(_, number) = name {
                handed.next_number = handed.next_number.max(number.saturating_add(1));
            }
            match (purpose(name, addr, &socket, config), socket) {
                (Some(Purpose::Dns), socket) => {
                    handed.is_named |= !is_asked(config, Purpose::Dns, addr, matches!(name, Name::Kept(..)));
                    let kept = matches!(name, Name::Kept(..)).then_some(label.name);
                    handed.take_dns(addr, socket, kept);
                }
                (Some(Purpose::Web), Transport::Tcp(listener)) if handed.web.is_none() => handed.web = Some(listener),
                (Some(Purpose::Secure(kind)), socket) => {
                    let socket = match socket {
                        Transport::Udp(socket) => socket,
                        Transport::Tcp(listener) => listener.into(),
                    };
                    let taken = Secure::adopt(kind, socket);
                    handed.secure.push(taken.map_err(|_| HandedError::OverAnother { label, addr, kind })?);
                }
                (Some(Purpose::Web), Transport::Udp(_)) => return Err(HandedError::WebOverUdp { label, addr }),
                (_, socket) => {
                    refuse(&label, addr, &socket, name);
                }
            }
        }
        handed.limit_kept(config);
        Ok(handed)
    }

    fn take_dns(&mut self, addr: SocketAddr, socket: Transport, kept: Option<String>) {
        let place = match self.dns.iter().position(|place| place.addr == addr) {
            Some(at) => &mut self.dns[at],
            None => {
                self.dns.push(Place { addr, udp: Vec::new(), tcp: None });
                let last = self.dns.len() - 1;
                &mut self.dns[last]
            }
        };
        match socket {
            Transport::Udp(socket) => place.udp.push(Udp { socket, kept }),
            // Two that listen at one address have one queue of connections each: reading one loses nothing only if
            // there is one, and no manager makes two.
            Transport::Tcp(listener) => place.tcp = place.tcp.take().or(Some(listener)),
        }
    }

    /// Gives up sockets of ours that would have no thread.
    fn limit_kept(&mut self, config: &Config) {
        let readers = listen::readers(&config.listen);
        for place in &mut self.dns {
            while place.udp.len() > readers
                && let Some(at) = place.udp.iter().rposition(|udp| udp.kept.is_some())
            {
                let Udp { kept, .. } = place.udp.remove(at);
                kept.iter().for_each(|name| manager::forget(name));
            }
        }
    }

    /// Binds what is missing.
    pub(super) fn bind_missing(&self, config: &Config) -> Result<Missing, StartError> {
        let mut missing = Missing { dns: Vec::new(), others: Vec::new(), web: None, secure: Vec::new() };
        for place in &self.dns {
            let udp: Vec<&Socket> = place.udp.iter().map(|udp| &udp.socket).collect();
            // Those of a socket unit are as many as the operator wants, and may belong to another user.
            let may_join = place.udp.iter().all(|udp| udp.kept.is_some());
            let readers = if may_join { listen::readers(&config.listen) } else { udp.len() };
            missing.dns.push(listen::bind_beside(place.addr, &udp, place.tcp.is_some(), readers)?);
        }
        let mut others = config.listen.clone();
        others.dns.retain(|address| {
            let is_there = self.dns.iter().any(|place| fits(address.addr, place.addr));
            let is_replaced = self.is_named && address.is_default;
            !is_there && !is_replaced
        });
        missing.others = listen::bind_unread(&others)?;
        if self.dns.is_empty() && missing.others.is_empty() {
            return Err(StartError::NoAddress);
        }
        if let (Some(addr), None) = (config.web.listen, &self.web) {
            let bind = || {
                let listener = TcpListener::bind(addr)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            missing.web = Some(bind().map_err(|source| web_error(config, source))?);
        }
        for kind in Kind::ALL {
            for &addr in config.listen.secure(kind) {
                let is_there = self.secure.iter().any(|one| one.kind == kind && fits(addr, one.addr));
                // Names stand in for the default addresses, which these have none of.
                if !is_there {
                    missing.secure.push(Secure::bind(kind, addr)?);
                }
            }
        }
        Ok(missing)
    }

    /// Joins both, and has the manager keep what was bound here.
    pub(super) fn join(self, missing: Missing) -> std::io::Result<Sockets> {
        let mut keeping = Keeping(self.next_number);
        let mut dns = Vec::new();
        for (place, (more, tcp)) in self.dns.into_iter().zip(missing.dns) {
            more.iter().for_each(|socket| keeping.keep(Purpose::Dns, socket));
            tcp.iter().for_each(|listener| keeping.keep(Purpose::Dns, listener));
            let udp = place.udp.into_iter().map(|udp| udp.socket).chain(more).collect();
            // `bind_beside` binds the one that is not there.
            let Some(tcp) = place.tcp.or(tcp) else { continue };
            tcp.set_nonblocking(true)?;
            dns.push(Unread { addr: place.addr, udp, tcp });
        }
        for unread in missing.others {
            unread.udp.iter().for_each(|socket| keeping.keep(Purpose::Dns, socket));
            keeping.keep(Purpose::Dns, &unread.tcp);
            dns.push(unread);
        }
        missing.web.iter().for_each(|listener| keeping.keep(Purpose::Web, listener));
        let web = self.web.or(missing.web);
        web.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        missing.secure.iter().for_each(|one| keeping.keep(Purpose::Secure(one.kind), &one.socket));
        let secure = self.secure.into_iter().chain(missing.secure).collect();
        Ok(Sockets { dns, web, secure })
    }
}

/// What was bound beside what was passed: for each place of it, for the addresses that it lacks, and for the web.
#[derive(Debug)]
pub(super) struct Missing {
    dns: Vec<(Vec<Socket>, Option<TcpListener>)>,
    others: Vec<Unread>,
    web: Option<TcpListener>,
    secure: Vec<Secure>,
}

/// Gives sockets away under numbers that are not in use.
struct Keeping(u32);

impl Keeping {
    fn keep(&mut self, purpose: Purpose, socket: &impl std::os::fd::AsFd) {
        manager::keep(&Name::kept(purpose, self.0), socket);
        self.0 = self.0.saturating_add(1);
    }
}

/// Decides what a socket is for; `None` if nobody asks for it.
fn purpose(name: Name, addr: SocketAddr, socket: &Transport, config: &Config) -> Option<Purpose> {
    if let Name::Kept(purpose, _) = name {
        return is_asked(config, purpose, addr, true).then_some(purpose);
    }
    let may_be = |purpose: &Purpose| match purpose {
        Purpose::Dns => true,
        Purpose::Web => matches!(socket, Transport::Tcp(_)),
        Purpose::Secure(kind) => kind.is_udp() == matches!(socket, Transport::Udp(_)),
    };
    let by_address = || Purpose::ALL.into_iter().filter(may_be).find(|&of| is_asked(config, of, addr, false));
    let by_name = || if let Name::Named(purpose) = name { Some(purpose) } else { None };
    by_address().or_else(by_name)
}

/// Returns whether the configuration names the address; a port that the system was to choose may be any, if that socket
/// is certainly ours.
fn is_asked(config: &Config, purpose: Purpose, addr: SocketAddr, is_ours: bool) -> bool {
    let is_it = |asked: SocketAddr| if is_ours { fits(asked, addr) } else { asked == addr };
    match purpose {
        Purpose::Dns => config.listen.dns.iter().any(|address| is_it(address.addr)),
        Purpose::Web => config.web.listen.is_some_and(is_it),
        Purpose::Secure(kind) => config.listen.secure(kind).iter().copied().any(is_it),
    }
}

fn fits(asked: SocketAddr, bound: SocketAddr) -> bool {
    asked == bound || (asked.port() == 0 && asked.ip() == bound.ip())
}

/// Closes a socket that nobody asks for.
fn refuse(label: &Label, addr: SocketAddr, socket: &Transport, name: Name) {
    let transport = match socket {
        Transport::Udp(_) => "UDP",
        Transport::Tcp(_) => "TCP",
    };
    if matches!(name, Name::Kept(..)) {
        tracing::info!("{label}: the configuration no longer asks for {addr} ({transport}), closing it");
        manager::forget(&label.name);
    } else {
        tracing::warn!(
            "{label}: the configuration asks for nothing on {addr} ({transport}), ignoring it; add the address to \
             `listen`, or name the socket with FileDescriptorName=dns, web, dot, doh or doq"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::Address;

    fn config(dns: &[&str], web: Option<&str>) -> Config {
        let mut config = Config::default();
        config.listen.threads = 2;
        config.web.listen = web.map(|addr| addr.parse().unwrap());
        if !dns.is_empty() {
            let address = |addr: &&str| Address { addr: addr.parse().unwrap(), is_default: false };
            config.listen.dns = dns.iter().map(address).collect();
        }
        config
    }

    fn udp() -> (Transport, SocketAddr) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        (Transport::Udp(socket.into()), addr)
    }

    fn tcp(addr: SocketAddr) -> (Transport, SocketAddr) {
        let listener = TcpListener::bind(addr).unwrap();
        let addr = listener.local_addr().unwrap();
        (Transport::Tcp(listener), addr)
    }

    fn any() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    fn passed(sockets: Vec<(&str, Transport)>) -> Vec<Passed> {
        let all = sockets.into_iter().zip(1..);
        all.map(|((name, socket), place)| Passed { label: Label { place, name: name.to_owned() }, socket }).collect()
    }

    fn sockets(passed: Vec<Passed>, config: &Config) -> Sockets {
        let handed = Handed::sort(passed, config).unwrap();
        let missing = handed.bind_missing(config).unwrap();
        handed.join(missing).unwrap()
    }

    #[test]
    fn a_socket_serves_the_address_that_it_listens_on_whatever_its_name() {
        let ((first, addr), (web, web_addr)) = (udp(), tcp(any()));
        let config = config(&[&addr.to_string()], Some(&web_addr.to_string()));
        let sockets = sockets(passed(vec![("greenlane.socket", first), ("dns", web)]), &config);
        assert_eq!((sockets.dns.len(), sockets.dns[0].addr, sockets.dns[0].udp.len()), (1, addr, 1));
        assert_eq!(sockets.dns[0].tcp.local_addr().unwrap(), addr, "the other half is bound beside it");
        assert_eq!(sockets.web.unwrap().local_addr().unwrap(), web_addr);
    }

    #[test]
    fn named_sockets_stand_in_for_the_default_addresses() {
        let ((datagrams, addr), (web, web_addr)) = (udp(), tcp(any()));
        let sockets = sockets(passed(vec![("dns", datagrams), ("web", web)]), &config(&[], Some("127.0.0.1:1")));
        assert_eq!(sockets.dns.iter().map(|unread| unread.addr).collect::<Vec<_>>(), [addr]);
        assert_eq!(sockets.web.unwrap().local_addr().unwrap(), web_addr);
    }

    #[test]
    fn what_nobody_asks_for_is_closed() {
        let ((stray, _), (kept, _)) = (udp(), udp());
        let config = config(&["127.0.0.1:0"], None);
        let stray = passed(vec![("other", stray)]);
        assert!(Handed::sort(stray, &config).unwrap().dns.is_empty(), "a port of the system's choice is not this one");
        let elsewhere = self::config(&["127.0.0.2:0"], None);
        let handed = Handed::sort(passed(vec![("kept-dns-3", kept)]), &elsewhere).unwrap();
        assert!(handed.dns.is_empty() && !handed.is_named, "nor does one that we had");
    }

    #[test]
    fn kept_sockets_come_back_as_many_as_there_are_threads() {
        let config = config(&["127.0.0.1:0"], Some("127.0.0.1:0"));
        let first = sockets(Vec::new(), &config);
        let (addr, web) = (first.dns[0].addr, first.web.as_ref().unwrap().local_addr().unwrap());
        assert_eq!(first.dns[0].udp.len(), 2);
        for (threads, kept) in [(2, 2), (3, 2), (1, 1)] {
            let mut config = config.clone();
            config.listen.threads = threads;
            let mut again = Vec::new();
            for socket in &first.dns[0].udp {
                again.push(("kept-dns-0", Transport::Udp(socket.try_clone().unwrap())));
            }
            again.push(("kept-dns-4", Transport::Tcp(first.dns[0].tcp.try_clone().unwrap())));
            again.push(("kept-web-5", Transport::Tcp(first.web.as_ref().unwrap().try_clone().unwrap())));
            let handed = Handed::sort(passed(again), &config).unwrap();
            assert_eq!((handed.dns[0].udp.len(), handed.next_number), (kept, 6));
            let missing = handed.bind_missing(&config).unwrap();
            let sockets = handed.join(missing).unwrap();
            assert_eq!((sockets.dns[0].addr, sockets.dns[0].udp.len()), (addr, usize::from(threads)));
            assert_eq!(sockets.web.unwrap().local_addr().unwrap(), web);
        }
    }

    #[test]
    fn datagrams_for_the_web_are_a_mistake() {
        let (socket, addr) = udp();
        let error = Handed::sort(passed(vec![("web", socket)]), &config(&[], None)).unwrap_err().to_string();
        let told = format!("socket 1 of the service manager (`web`): UDP on {addr}, expected TCP");
        assert!(error.starts_with(&told), "{error}");
    }

    #[test]
    fn encrypted_transports_are_told_apart_by_socket_and_come_back() {
        let mut config = config(&["127.0.0.1:0"], None);
        let (_held, addr) = tcp(any());
        drop(_held);
        (config.listen.dot, config.listen.doh, config.listen.doq) = (vec![addr], vec![any()], vec![addr]);
        let first = sockets(Vec::new(), &config);
        let places: Vec<_> = first.secure.iter().map(|one| (one.kind, one.addr == addr)).collect();
        assert_eq!(places, [(Kind::Dot, true), (Kind::Doh, false), (Kind::Doq, true)]);
        let again = first.secure.iter().map(|one| {
            let socket = one.socket.try_clone().unwrap();
            match one.kind {
                Kind::Dot => ("greenlane.socket", Transport::Tcp(socket.into())),
                Kind::Doh => ("kept-doh-7", Transport::Tcp(socket.into())),
                Kind::Doq => ("any", Transport::Udp(socket)),
            }
        });
        let handed = Handed::sort(passed(again.collect()), &config).unwrap();
        let missing = handed.bind_missing(&config).unwrap();
        assert!(missing.secure.is_empty(), "all are there");
        let second = handed.join(missing).unwrap();
        let addrs = |sockets: &Sockets| sockets.secure.iter().map(|one| (one.kind, one.addr)).collect::<Vec<_>>();
        assert_eq!(addrs(&second), addrs(&first));
        let shown = addrs(&second);
        let adopted = Sockets::adopt(second.into_fds().unwrap()).unwrap();
        assert_eq!((addrs(&adopted), adopted.dns.len()), (shown, 1), "and over the keeper's line");
    }

    #[test]
    fn a_named_socket_of_the_wrong_type_is_a_mistake() {
        let (socket, addr) = udp();
        let error = Handed::sort(passed(vec![("dot", socket)]), &config(&[], None)).unwrap_err().to_string();
        assert!(error.ends_with(&format!("expected TCP on {addr}, which carries DoT")), "{error}");
    }

    #[test]
    fn names_say_what_we_gave_away() {
        for (purpose, number) in [
            (Purpose::Dns, 0),
            (Purpose::Web, u32::MAX),
            (Purpose::Secure(Kind::Doq), 3),
            (Purpose::Secure(Kind::Dot), 4),
        ] {
            assert_eq!(Name::of(&Name::kept(purpose, number)), Name::Kept(purpose, number));
        }
        for other in ["", "unknown", "stored", "kept-dns-", "kept-dns--1", "kept-mail-1", "DNS"] {
            assert_eq!(Name::of(other), Name::Other, "{other}");
        }
    }
}
