//! Questions come in: sockets, frames, who may ask.
//!
//! [`plain`] reads datagrams, [`streams`] frames from connections, also inside TLS, [`doh`] HTTP requests, [`doq`] streams
//! of QUIC; [`tls`] holds the certificate. All hand what they read to a [`Front`], which sees the question in place, asks
//! [`Access`] whether its sender may and how much ([`rate`]), and makes the pipeline's two calls. All sockets
//! are bound by [`bind`] before anything is answered, so that an address in use stops the start and not half of it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, UdpSocket};

use crate::prefix::Prefix;

pub mod access;
pub mod cookie;
pub mod doh;
pub mod doq;
mod front;
pub mod hickory;
mod meter;
mod open;
pub mod plain;
mod proxy;
pub mod rate;
mod secure;
pub mod streams;
pub mod tls;

pub use access::Access;
pub use front::Front;
pub use meter::Meter;
pub use open::Open;
pub use secure::{Kind, Secure};

/// An address to listen on, and what its absence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Where.
    pub addr: SocketAddr,
    /// Whether it comes from the built-in defaults: a default that the host lacks (no IPv6) is skipped.
    pub is_default: bool,
}

/// Where questions come in, and from whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// UDP and TCP addresses.
    pub dns: Vec<Address>,
    /// Addresses for DNS over TLS; they need `tls`, as the next two do.
    pub dot: Vec<SocketAddr>,
    /// Addresses for DNS over HTTPS.
    pub doh: Vec<SocketAddr>,
    /// Addresses for DNS over QUIC.
    pub doq: Vec<SocketAddr>,
    /// The certificate of these.
    pub tls: Option<tls::Files>,
    /// UDP sockets for each address, each with a reader of its own; 0 for as many as this host has cores.
    pub threads: u16,
    /// How datagrams are read; the default is the best that this system has.
    pub backend: plain::Backend,
    /// The most questions over UDP that wait for an upstream or for the set.
    pub waiting_max: usize,
    /// Who may ask, and how much.
    pub clients: access::Options,
    /// Most connections at once, over whichever transport has them.
    pub max_connections: usize,
    /// Most connections of one client prefix (/24, /56).
    pub max_connections_per_client: usize,
}

/// Port 5300 on loopback, for loopback and the private ranges.
impl Default for Options {
    fn default() -> Self {
        let address = |ip| Address { addr: SocketAddr::new(ip, 5300), is_default: true };
        Self {
            dns: vec![address(IpAddr::V4(Ipv4Addr::LOCALHOST)), address(IpAddr::V6(Ipv6Addr::LOCALHOST))],
            dot: Vec::new(),
            doh: Vec::new(),
            doq: Vec::new(),
            tls: None,
            threads: 0,
            backend: plain::Backend::default(),
            waiting_max: plain::WAITING_MAX,
            clients: access::Options::default(),
            max_connections: 1000,
            max_connections_per_client: 200,
        }
    }
}

/// The sockets of one listen address: the same port for both.
#[derive(Debug)]
pub struct Bound {
    /// Where, with the port that the system chose if it was to.
    pub addr: SocketAddr,
    /// For datagrams, at least one; the system spreads clients over them.
    pub udp: Vec<Socket>,
    /// For connections.
    pub tcp: TcpListener,
}

impl Bound {
    /// Takes one socket of each kind, for a server that reads datagrams in a task.
    ///
    /// # Errors
    /// What the system says.
    pub fn into_pair(mut self) -> io::Result<(UdpSocket, TcpListener)> {
        let udp = self.udp.remove(0);
        udp.set_nonblocking(true)?;
        Ok((UdpSocket::from_std(udp.into())?, self.tcp))
    }
}

/// The same before anybody reads from them, so that one process may bind them and another read.
#[derive(Debug)]
pub struct Unread {
    /// Where, with the port that the system chose if it was to.
    pub addr: SocketAddr,
    /// For datagrams, at least one.
    pub udp: Vec<Socket>,
    /// For connections.
    pub tcp: std::net::TcpListener,
}

/// Has the runtime of this task read from them.
impl TryFrom<Unread> for Bound {
    type Error = io::Error;

    fn try_from(Unread { addr, udp, tcp }: Unread) -> io::Result<Self> {
        Ok(Self { addr, udp, tcp: TcpListener::from_std(tcp)? })
    }
}

/// Sorts sockets that another process has bound: those of one address for DNS, and a listener that has no other half.
///
/// # Errors
/// What the system says of them; [`io::ErrorKind::InvalidInput`] if a socket is left over.
pub fn adopt(sockets: Vec<OwnedFd>) -> io::Result<(Vec<Unread>, Option<std::net::TcpListener>)> {
    let (mut udp, mut tcp): (Vec<(SocketAddr, Vec<Socket>)>, Vec<_>) = (Vec::new(), Vec::new());
    for socket in sockets.into_iter().map(Socket::from) {
        let addr = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        if socket.r#type()? != Type::DGRAM {
            tcp.push((addr, socket));
        } else if let Some((_, same)) = udp.iter_mut().find(|(other, _)| *other == addr) {
            same.push(socket);
        } else {
            udp.push((addr, vec![socket]));
        }
    }
    let mut bound = Vec::new();
    for (addr, datagrams) in udp {
        let at = tcp.iter().position(|(other, _)| *other == addr).ok_or(io::ErrorKind::InvalidInput)?;
        let (_, connections) = tcp.remove(at);
        bound.push(Unread { addr, udp: datagrams, tcp: connections.into() });
    }
    if tcp.len() > 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok((bound, tcp.pop().map(|(_, listener)| listener.into())))
}

/// A socket that was to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The key of the configuration.
    pub key: &'static str,
    /// The address.
    pub addr: SocketAddr,
    /// UDP or TCP.
    pub transport: &'static str,
}

/// An address that could not be bound.
#[derive(Debug, Error)]
pub enum BindError {
    /// Somebody else listens there.
    #[error(
        "{}: {} is in use ({}): stop the other server, or choose another address with `{}`",
        .0.key, .0.addr, .0.transport, .0.key
    )]
    InUse(Spot),
    /// A port below 1024 without the privilege.
    #[error(
        "{}: {} needs the right to bind ports below 1024: grant CAP_NET_BIND_SERVICE, or choose another port",
        .0.key, .0.addr
    )]
    Forbidden(Spot),
    /// The host has no such address.
    #[error("{}: {} is no address of this host: take one that `ip address` shows", .0.key, .0.addr)]
    NoSuchAddress(Spot),
    /// Anything else.
    #[error("{}: {} ({}): {source}", spot.key, spot.addr, spot.transport)]
    Other {
        /// The socket.
        spot: Spot,
        /// What the system said.
        source: io::Error,
    },
}

/// How many ports the system may choose for UDP before one is free for TCP, too.
const FREE_PORT_TRIES: usize = 16;

/// Room for datagrams that come while all hands are busy; the system may grant less.
const UDP_BUFFER_BYTES: usize = 4 << 20;

/// Connections that wait to be accepted.
const TCP_BACKLOG: i32 = 256;

/// Binds every address, UDP and TCP, for the runtime of this task. A default address that the host lacks is left out.
///
/// # Errors
/// The first address that cannot be bound; the sockets bound before it are closed again.
pub fn bind(options: &Options) -> Result<Vec<Bound>, BindError> {
    bind_unread(options)?.into_iter().map(read).collect()
}

/// Has the runtime of this task read from sockets.
///
/// # Errors
/// [`BindError::Other`] if the system does not let it.
pub fn read(sockets: Unread) -> Result<Bound, BindError> {
    let addr = sockets.addr;
    Bound::try_from(sockets).map_err(|source| BindError::Other { spot: plain_spot(addr, "UDP and TCP"), source })
}

/// Binds as [`bind`] does, and leaves the reading to others.
///
/// # Errors
/// As [`bind`].
pub fn bind_unread(options: &Options) -> Result<Vec<Unread>, BindError> {
    let readers = readers(options);
    let mut bound = Vec::new();
    for address in &options.dns {
        match bind_one(address.addr, readers) {
            Ok(sockets) => bound.push(sockets),
            Err(BindError::NoSuchAddress(spot)) if address.is_default => {
                tracing::info!("this host has no {}: not listening on {}", spot.addr.ip(), spot.addr);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(bound)
}

/// Returns how many sockets an address gets. Only Linux spreads clients over sockets of the same port.
pub fn readers(options: &Options) -> usize {
    match options.threads {
        _ if !cfg!(target_os = "linux") => 1,
        0 => std::thread::available_parallelism().map_or(1, NonZero::get),
        threads => usize::from(threads),
    }
}

fn bind_one(addr: SocketAddr, readers: usize) -> Result<Unread, BindError> {
    let mut tries = if addr.port() == 0 { FREE_PORT_TRIES } else { 1 };
    loop {
        let first = bind_udp(addr, false).map_err(|error| classify(plain_spot(addr, "UDP"), error))?;
        let local = first.local_addr().map_err(|error| classify(plain_spot(addr, "UDP"), error))?;
        let chosen = local.as_socket().unwrap_or(addr);
        tries -= 1;
        match bind_tcp(chosen) {
            Ok(tcp) => {
                let udp =
                    join_udp(first, chosen, readers).map_err(|error| classify(plain_spot(chosen, "UDP"), error))?;
                return Ok(Unread { addr: chosen, udp, tcp });
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(classify(plain_spot(chosen, "TCP"), error)),
        }
    }
}

/// Binds what is missing beside sockets that another process has bound at `addr`: UDP sockets until there are `readers`
/// (at least one), and the one for TCP unless it is there.
///
/// # Errors
/// As [`bind`].
pub fn bind_beside(
    addr: SocketAddr,
    udp: &[&Socket],
    has_tcp: bool,
    readers: usize,
) -> Result<(Vec<Socket>, Option<std::net::TcpListener>), BindError> {
    let in_words = |error| classify(plain_spot(addr, "UDP"), error);
    let more = match udp {
        [] => join_udp(bind_udp(addr, false).map_err(in_words)?, addr, readers).map_err(in_words)?,
        _ => {
            if udp.len() < readers {
                udp.iter().try_for_each(|socket| share_port(socket)).map_err(in_words)?;
            }
            (udp.len()..readers).map(|_| bind_udp(addr, true)).collect::<io::Result<_>>().map_err(in_words)?
        }
    };
    udp.iter().for_each(|socket| make_room(socket));
    let tcp =
        if has_tcp { None } else { Some(bind_tcp(addr).map_err(|error| classify(plain_spot(addr, "TCP"), error))?) };
    Ok((more, tcp))
}

/// Binds further sockets beside the first one. That one was bound alone, so that another server's port is not shared
/// unawares; only then it lets its like in.
fn join_udp(first: Socket, addr: SocketAddr, readers: usize) -> io::Result<Vec<Socket>> {
    let mut sockets = vec![first];
    if readers > 1 {
        share_port(&sockets[0])?;
    }
    for _ in 1..readers {
        sockets.push(bind_udp(addr, true)?);
    }
    Ok(sockets)
}

fn bind_udp(addr: SocketAddr, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if is_shared {
        share_port(&socket)?;
    }
    make_room(&socket);
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// Enlarges a socket's buffers: what comes while nobody reads, as over a restart, waits there. The system's bound
/// (`net.core.rmem_max`) holds for all who have not CAP_NET_ADMIN; smaller buffers than asked for work, too.
fn make_room(socket: &Socket) {
    if socket.recv_buffer_size().is_ok_and(|size| size < UDP_BUFFER_BYTES) {
        #[cfg(target_os = "linux")]
        let is_forced = rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, UDP_BUFFER_BYTES).is_ok();
        #[cfg(not(target_os = "linux"))]
        let is_forced = false;
        if !is_forced {
            let _ = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
        }
    }
    if socket.send_buffer_size().is_ok_and(|size| size < UDP_BUFFER_BYTES) {
        let _ = socket.set_send_buffer_size(UDP_BUFFER_BYTES);
    }
}

#[cfg(unix)]
fn share_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

#[cfg(not(unix))]
fn share_port(_: &Socket) -> io::Result<()> {
    Ok(())
}

fn bind_tcp(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    // Connections of an earlier run that linger must not keep us from starting; a live listener still does.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(TCP_BACKLOG)?;
    Ok(socket.into())
}

/// A socket of `listen.dns`.
fn plain_spot(addr: SocketAddr, transport: &'static str) -> Spot {
    Spot { key: "listen.dns", addr, transport }
}

fn classify(spot: Spot, source: io::Error) -> BindError {
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(spot),
        io::ErrorKind::PermissionDenied => BindError::Forbidden(spot),
        io::ErrorKind::AddrNotAvailable => BindError::NoSuchAddress(spot),
        // No IPv6 at all in this kernel.
        _ if source.raw_os_error() == Some(EAFNOSUPPORT) => BindError::NoSuchAddress(spot),
        _ => BindError::Other { spot, source },
    }
}

/// "Address family not supported by protocol" on Linux; `io::ErrorKind` has no name for it.
const EAFNOSUPPORT: i32 = 97;

/// The client prefix that limits count by: /24 or /56, what one household or office commonly has.
pub fn client_prefix(client: IpAddr) -> Prefix {
    let client = client.to_canonical();
    Prefix::truncated(client, if client.is_ipv4() { 24 } else { 56 })
}
