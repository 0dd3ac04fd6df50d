//! Sockets of encrypted listeners: which transport each is for, and where it is bound.

use std::net::SocketAddr;

use socket2::{Socket, Type};

use super::{BindError, Options, Spot, bind_tcp, bind_udp, classify};
use crate::wire::Transport;

/// An encrypted transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TLS (RFC 7858).
    Dot,
    /// HTTPS (RFC 8484).
    Doh,
    /// QUIC (RFC 9250).
    Doq,
}

impl Kind {
    /// Every encrypted transport, in the order of the configuration.
    pub const ALL: [Self; 3] = [Self::Dot, Self::Doh, Self::Doq];

    /// Returns the transport that metrics and rules know.
    pub fn transport(self) -> Transport {
        match self {
            Self::Dot => Transport::Dot,
            Self::Doh => Transport::Doh,
            Self::Doq => Transport::Doq,
        }
    }

    /// Returns what it is called among people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Dot => "DoT",
            Self::Doh => "DoH",
            Self::Doq => "DoQ",
        }
    }

    /// Returns whether it takes datagrams rather than connections.
    pub fn is_udp(self) -> bool {
        self == Self::Doq
    }

    /// Returns what carries it.
    pub fn below(self) -> &'static str {
        if self.is_udp() { "UDP" } else { "TCP" }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Dot => "listen.dot",
            Self::Doh => "listen.doh",
            Self::Doq => "listen.doq",
        }
    }
}

impl Options {
    /// Returns the addresses of an encrypted transport.
    pub fn secure(&self, kind: Kind) -> &[SocketAddr] {
        match kind {
            Kind::Dot => &self.dot,
            Kind::Doh => &self.doh,
            Kind::Doq => &self.doq,
        }
    }
}

/// A socket that is bound and that nobody reads yet.
#[derive(Debug)]
pub struct Secure {
    /// What is spoken there.
    pub kind: Kind,
    /// Where, with the port that the system chose if it was to.
    pub addr: SocketAddr,
    /// Listening, or for datagrams.
    pub socket: Socket,
}

impl Secure {
    /// Binds an address.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(kind: Kind, addr: SocketAddr) -> Result<Self, BindError> {
        let spot = Spot { key: kind.key(), addr, transport: kind.below() };
        let bind = || {
            let socket = if kind.is_udp() { bind_udp(addr, false)? } else { Socket::from(bind_tcp(addr)?) };
            Self::adopt(kind, socket)
        };
        bind().map_err(|error| classify(spot, error))
    }

    /// Takes a socket that is bound.
    ///
    /// # Errors
    /// What the system says of it; [`std::io::ErrorKind::InvalidInput`] if it is of another type.
    pub fn adopt(kind: Kind, socket: Socket) -> std::io::Result<Self> {
        let expected = if kind.is_udp() { Type::DGRAM } else { Type::STREAM };
        match socket.local_addr()?.as_socket() {
            Some(addr) if socket.r#type()? == expected => {
                socket.set_nonblocking(true)?;
                Ok(Self { kind, addr, socket })
            }
            _ => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }
}
