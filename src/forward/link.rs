//! What questions go over when it is not UDP: how it is made ([`Dial`]), and what it is once it stands ([`Link`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use prometheus::IntCounter;
use rustls::pki_types::ServerName;

use super::connection::Connection;
use super::hopes::Broken;
use super::https::Https;
use super::message::Manner;
use super::quic::Quic;
use crate::wire::Question;

/// How long connecting may take, handshakes included.
const CONNECT_MAX: Duration = Duration::from_secs(4);

/// How to connect to an upstream.
#[derive(Clone)]
pub(super) enum Dial {
    /// Over TCP, also for what UDP cut.
    Tcp,
    /// Over TLS; the certificate must be for the name.
    Tls(ServerName<'static>, Arc<rustls::ClientConfig>),
    /// Over HTTP/2, to this URI.
    Https(ServerName<'static>, Arc<rustls::ClientConfig>, Uri),
    /// Over QUIC; the certificate must be for the name.
    Quic(String, quinn::ClientConfig),
}

/// A connection to an upstream; cheap to clone, closed when the last clone is gone and nobody waits on it.
#[derive(Clone)]
pub(super) enum Link {
    /// TCP or TLS.
    Stream(Connection),
    /// HTTP/2.
    Https(Https),
    /// QUIC.
    Quic(Quic),
}

/// Why a question over a connection got no reply.
#[derive(Clone, Debug)]
pub(super) enum Lost {
    /// The connection ended or failed; another may do better.
    Connection(Broken),
    /// The upstream refused this question, or answered something else; the connection stands.
    Question(Broken),
}

impl Lost {
    /// Says that the connection failed.
    pub(super) fn connection(error: impl ToString) -> Self {
        Self::Connection(Broken(error.to_string()))
    }

    /// Says that only the question did.
    pub(super) fn question(error: impl ToString) -> Self {
        Self::Question(Broken(error.to_string()))
    }
}

impl Dial {
    /// Connects.
    ///
    /// # Errors
    /// What the system or the handshake says, or that it took too long.
    pub(super) async fn connect(self, addr: SocketAddr, mismatches: IntCounter) -> Result<Link, Broken> {
        let connecting = async {
            Ok(match self {
                Self::Tcp => Link::Stream(Connection::tcp(addr, mismatches).await?),
                Self::Tls(name, config) => Link::Stream(Connection::tls(addr, name, config, mismatches).await?),
                Self::Https(name, config, uri) => {
                    Link::Https(Https::connect(addr, name, config, uri, mismatches).await?)
                }
                Self::Quic(name, config) => Link::Quic(Quic::connect(addr, &name, config, mismatches).await?),
            })
        };
        match tokio::time::timeout(CONNECT_MAX, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(Broken(format!("not connected within {} s", CONNECT_MAX.as_secs()))),
        }
    }
}

impl Link {
    /// Asks and waits for the reply to exactly this question. Safe to cancel.
    ///
    /// # Errors
    /// [`Lost`] as its variants say.
    pub(super) async fn ask(&self, question: &Arc<Question>, manner: Manner) -> Result<Vec<u8>, Lost> {
        match self {
            Self::Stream(stream) => stream.ask(question, manner).await.map_err(Lost::Connection),
            Self::Https(https) => https.ask(question, manner).await,
            Self::Quic(quic) => quic.ask(question, manner).await,
        }
    }

    /// Returns whether nothing can be asked over it any more.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Stream(stream) => stream.is_over(),
            Self::Https(https) => https.is_over(),
            Self::Quic(quic) => quic.is_over(),
        }
    }

    /// Lets nothing further be asked over it; what waits goes on waiting.
    pub(super) fn retire(&self) {
        match self {
            Self::Stream(stream) => stream.retire(),
            Self::Https(https) => https.retire(),
            Self::Quic(quic) => quic.retire(),
        }
    }
}
