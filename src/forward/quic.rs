//! DNS over QUIC to one upstream (RFC 9250): each question on a stream of its own, all of them over one connection.
//!
//! A lost packet holds up the one answer that was in it. The id is 0 (§4.2.1), and a message is framed as over TCP. A
//! session is resumed where the server lets us, but nothing is sent in the first flight (0-RTT): that could be sent
//! again by others. A connection on which nothing is asked ends by itself; the next question makes another.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::IntCounter;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, IdleTimeout, ReadError, ReadToEndError, RecvStream, TransportConfig, VarInt};

use super::OptionsError;
use super::hopes::Broken;
use super::letters::Letters;
use super::link::Lost;
use super::message::{Manner, is_reply, query};
use crate::wire::{MESSAGE_LEN_MAX, Question};

/// What DNS over QUIC is called in a handshake (§4.1.1).
pub(super) const ALPN: &[u8] = b"doq";

/// DOQ_PROTOCOL_ERROR (§4.3).
const PROTOCOL_ERROR: VarInt = VarInt::from_u32(2);

/// DOQ_REQUEST_CANCELLED (§4.3).
const REQUEST_CANCELLED: VarInt = VarInt::from_u32(3);

/// How long a connection stands on which nothing is said.
const IDLE_MAX: VarInt = VarInt::from_u32(30_000);

/// A QUIC connection; its socket goes with it.
#[derive(Clone)]
pub(super) struct Quic(Arc<Shared>);

struct Shared {
    connection: Connection,
    is_retired: AtomicBool,
    mismatches: IntCounter,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // DOQ_NO_ERROR: nobody asks any more.
        self.connection.close(VarInt::from_u32(0), &[]);
    }
}

/// Makes the QUIC side of `tls`, which must offer [`ALPN`].
///
/// # Errors
/// [`OptionsError::Quic`] if the TLS library lacks what QUIC begins with.
pub(super) fn client_config(tls: rustls::ClientConfig) -> Result<quinn::ClientConfig, OptionsError> {
    let tls = QuicClientConfig::try_from(tls).map_err(|_| OptionsError::Quic)?;
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(IdleTimeout::from(IDLE_MAX)));
    // The peer opens no streams and sends no datagrams (§4.2).
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0)).max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.datagram_receive_buffer_size(None);
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

impl Quic {
    /// Connects; the certificate must be for `name`.
    ///
    /// # Errors
    /// What the system or the handshake says.
    pub(super) async fn connect(
        addr: SocketAddr,
        name: &str,
        config: quinn::ClientConfig,
        mismatches: IntCounter,
    ) -> Result<Self, Broken> {
        let any = if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let endpoint = Endpoint::client(SocketAddr::new(any, 0))?;
        let connecting = endpoint.connect_with(config, addr, name).map_err(|error| Broken(error.to_string()))?;
        let connection = connecting.await.map_err(|error| Broken(error.to_string()))?;
        Ok(Self(Arc::new(Shared { connection, is_retired: AtomicBool::new(false), mismatches })))
    }

    /// Asks and waits for the reply to exactly this question. Safe to cancel: the stream is given up.
    ///
    /// # Errors
    /// [`Lost`] as its variants say.
    pub(super) async fn ask(&self, question: &Question, manner: Manner) -> Result<Vec<u8>, Lost> {
        let octets = query(0, question, Letters::ANY, manner);
        // A query is far shorter than a frame may be.
        let frame = [&(octets.len() as u16).to_be_bytes(), &*octets].concat();
        let (mut sending, receiving) = self.0.connection.open_bi().await.map_err(Lost::connection)?;
        let mut receiving = Receiving(receiving);
        sending.write_all(&frame).await.map_err(Lost::connection)?;
        sending.finish().map_err(Lost::connection)?;
        let frame = match receiving.0.read_to_end(2 + MESSAGE_LEN_MAX).await {
            Ok(frame) => frame,
            Err(ReadToEndError::Read(ReadError::Reset(code))) => {
                return Err(Lost::question(format!("the upstream gave the question up (code {code})")));
            }
            Err(ReadToEndError::TooLong) => return Err(self.breach("more than one message on a stream")),
            Err(error) => return Err(Lost::connection(error)),
        };
        match frame.split_first_chunk() {
            Some((len, reply))
                if usize::from(u16::from_be_bytes(*len)) == reply.len() && reply.starts_with(&[0, 0]) =>
            {
                if is_reply(reply, question) {
                    return Ok(reply.to_vec());
                }
                self.0.mismatches.inc();
                Err(Lost::question("the reply answers another question"))
            }
            // An end before the message is one, too (§4.3.3).
            _ => Err(self.breach("no message with id 0 on a stream")),
        }
    }

    /// Returns whether nothing can be asked over it any more.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_retired.load(Ordering::Acquire) || self.0.connection.close_reason().is_some()
    }

    /// Lets nothing further be asked over it; what waits goes on waiting.
    pub(super) fn retire(&self) {
        self.0.is_retired.store(true, Ordering::Release);
    }

    /// Ends the connection with a peer that does not keep to the protocol (§4.3.3).
    fn breach(&self, what: &str) -> Lost {
        self.0.connection.close(PROTOCOL_ERROR, what.as_bytes());
        Lost::question(what)
    }
}

/// The way back of a stream; says that nobody waits any more if it is dropped before its end.
struct Receiving(RecvStream);

impl Drop for Receiving {
    fn drop(&mut self) {
        // An error says that it has ended.
        let _ = self.0.stop(REQUEST_CANCELLED);
    }
}
