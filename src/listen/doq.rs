//! DNS over QUIC (RFC 9250): one question a bidirectional stream, behind two octets of length, with id 0.
//!
//! One endpoint an address, one task a connection, one a stream; a handshake is a task of its own and bounded in time, so
//! that one that stalls delays nobody. While many handshakes are under way, clients must show first that they get what is
//! sent to their address (RFC 9000 §8.1.2). There is no early data: a question in it could be replayed. Connections count
//! among those over TCP.
//!
//! What a client does against the protocol ends its connection with `DOQ_PROTOCOL_ERROR` (§4.3.3): another id than 0, a
//! message that is not whole or not alone on its stream, one that asks nothing. A connection that has to leave gets
//! `DOQ_EXCESSIVE_LOAD`, one that is idle or drained `DOQ_NO_ERROR`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, Incoming, ReadToEndError, RecvStream, SendStream,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::meter::{Dropped, Way};
use super::open::{Activity, Seat};
use super::streams::{IDLE, LINGER, LINGER_MAX};
use super::tls::{HANDSHAKE_TIME_MAX, Identity, Use};
use super::{Front, Open};
use crate::clock::Stopwatch;
use crate::pipeline::Tried;
use crate::wire::{MESSAGE_LEN_MAX, Transport};

/// Error codes of RFC 9250 §8.4.
const NO_ERROR: VarInt = VarInt::from_u32(0);
const INTERNAL_ERROR: VarInt = VarInt::from_u32(1);
const PROTOCOL_ERROR: VarInt = VarInt::from_u32(2);
const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(4);

/// Questions of one connection that are answered at once; more wait with the client.
const STREAMS_MAX: u32 = 256;

/// Octets of one stream, and of all of a connection, that may be on their way to us.
const STREAM_WINDOW_LEN: u32 = 66 << 10;
const WINDOW_LEN: u32 = 1 << 20;

/// Octets that are kept for a client until it has acknowledged them.
const SEND_WINDOW_LEN: u64 = 4 << 20;

/// How many handshakes may be under way before addresses are validated.
const HANDSHAKES_TRUSTED: usize = 64;

/// How long a client may take to send a question, or to take an answer.
const STREAM_TIME_MAX: Duration = Duration::from_secs(5);

/// Why an address cannot be served.
#[derive(Debug, Error)]
pub enum DoqError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// The one cipher that QUIC begins with is missing.
    #[error("TLS has no cipher for QUIC's first packets")]
    Cipher,
}

/// What all connections share.
#[derive(Clone, Debug)]
pub struct Doq {
    /// The pipeline behind the door.
    pub front: Front,
    /// The connections open now.
    pub open: Arc<Open>,
    /// Where each connection is awaited when the daemon drains.
    pub talking: TaskTracker,
}

/// Makes the endpoint of an address.
///
/// # Errors
/// [`DoqError`].
pub fn endpoint(socket: std::net::UdpSocket, identity: &Identity) -> Result<Endpoint, DoqError> {
    socket.set_nonblocking(true)?;
    let tls = identity.server(Use::Doq)?;
    let crypto = QuicServerConfig::try_from(tls).map_err(|_| DoqError::Cipher)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_LEN))
        .receive_window(VarInt::from_u32(WINDOW_LEN))
        .send_window(SEND_WINDOW_LEN)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IDLE.try_into().ok());
    config.transport_config(Arc::new(transport));
    Ok(Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))?)
}

impl Doq {
    /// Serves an endpoint until `stop`; then what was asked is answered.
    pub async fn run(self, endpoint: Endpoint, stop: CancellationToken) {
        let handshakes = TaskTracker::new();
        loop {
            let incoming = tokio::select! {
                incoming = endpoint.accept() => incoming,
                () = stop.cancelled() => break,
            };
            // An endpoint ends when its socket does.
            let Some(incoming) = incoming else { return };
            let must_show = handshakes.len() >= HANDSHAKES_TRUSTED && !incoming.remote_address_validated();
            if must_show && incoming.may_retry() {
                // One that cannot be sent is lost like any packet.
                let _ = incoming.retry();
                continue;
            }
            let seat = self.open.enter(incoming.remote_address().ip(), self.front.clock.now());
            let handshake = handshakes.token();
            let serving = self.clone().serve(incoming, seat, stop.clone(), handshake);
            self.talking.spawn(serving);
        }
        // New clients find nobody; those who are here end by themselves.
        endpoint.set_server_config(None);
        let _ = timeout(LINGER_MAX + LINGER_MAX, endpoint.wait_idle()).await;
        endpoint.close(NO_ERROR, b"");
        let _ = timeout(LINGER, endpoint.wait_idle()).await;
    }

    /// Serves one connection to its end.
    async fn serve(self, incoming: Incoming, seat: Seat, stop: CancellationToken, handshake: impl Sized) {
        let client = incoming.remote_address();
        let shaking = async {
            let connecting = incoming.accept()?;
            match timeout(HANDSHAKE_TIME_MAX, connecting).await {
                Ok(connection) => connection,
                Err(_) => Err(ConnectionError::TimedOut),
            }
        };
        let connection = tokio::select! {
            connection = shaking => connection,
            () = seat.evict.cancelled() => return self.front.meter.dropped(Dropped::Evicted),
        };
        drop(handshake);
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => return tracing::debug!("a client over doq: {error}"),
        };
        self.front.meter.connections.inc();
        let streams = TaskTracker::new();
        tokio::select! {
            () = self.converse(&connection, client, &seat, &streams, &stop) => {}
            () = seat.evict.cancelled() => {
                self.front.meter.dropped(Dropped::Evicted);
                connection.close(EXCESSIVE_LOAD, b"");
            }
        }
        self.front.meter.connections.dec();
    }

    async fn converse(
        &self,
        connection: &Connection,
        client: SocketAddr,
        seat: &Seat,
        streams: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let mut over = None::<Instant>;
        loop {
            let accepted = match over {
                None => tokio::select! {
                    accepted = connection.accept_bi() => accepted,
                    () = stop.cancelled() => {
                        over = Some(Instant::now());
                        continue;
                    }
                },
                Some(over) if over.elapsed() >= LINGER_MAX => break,
                Some(_) => match timeout(LINGER, connection.accept_bi()).await {
                    Ok(accepted) => accepted,
                    Err(_) => break,
                },
            };
            // The client has closed, or is gone.
            let Ok((send, receive)) = accepted else { return };
            let talk = Talk {
                front: self.front.clone(),
                connection: connection.clone(),
                client: client.ip(),
                activity: seat.activity(),
                stop: stop.clone(),
            };
            streams.spawn(talk.answer(send, receive));
        }
        streams.close();
        streams.wait().await;
        // What was sent last must be on its way before the connection is closed.
        sleep(LINGER).await;
        connection.close(NO_ERROR, b"");
    }
}

/// One question's stream.
struct Talk {
    front: Front,
    connection: Connection,
    client: IpAddr,
    activity: Activity,
    stop: CancellationToken,
}

impl Talk {
    async fn answer(self, mut send: SendStream, mut receive: RecvStream) {
        let framed = match timeout(STREAM_TIME_MAX, receive.read_to_end(2 + MESSAGE_LEN_MAX)).await {
            Ok(Ok(framed)) => framed,
            Ok(Err(ReadToEndError::TooLong)) => return self.against_protocol(),
            // The client has cancelled its question, or is gone.
            Ok(Err(ReadToEndError::Read(_))) => return,
            Err(_) => {
                let _ = receive.stop(EXCESSIVE_LOAD);
                let _ = send.reset(EXCESSIVE_LOAD);
                return;
            }
        };
        let Some(message) = message_in(&framed) else { return self.against_protocol() };
        let mut reply = vec![0, 0];
        let answered = tokio::select! {
            answered = self.reply(message, &mut reply) => answered,
            // The client does not want it any more; the exchange goes on for others.
            _ = send.stopped() => return,
        };
        if !answered {
            return self.against_protocol();
        }
        let Ok(len) = u16::try_from(reply.len() - 2) else {
            let _ = send.reset(INTERNAL_ERROR);
            return;
        };
        reply[..2].copy_from_slice(&len.to_be_bytes());
        let written = timeout(STREAM_TIME_MAX, send.write_all(&reply)).await;
        self.activity.touch(self.front.clock.now());
        match written {
            Ok(Ok(())) => {
                let _ = send.finish();
                if self.stop.is_cancelled() {
                    // The connection is closed soon, and what is lost then is not sent again.
                    let _ = timeout(LINGER_MAX, send.stopped()).await;
                }
            }
            Ok(Err(_)) => {}
            Err(_) => {
                let _ = send.reset(EXCESSIVE_LOAD);
            }
        }
    }

    /// Makes the pipeline's two calls; the reply follows two octets. Returns whether there is one.
    async fn reply(&self, message: &[u8], framed: &mut Vec<u8>) -> bool {
        let mut out = Vec::new();
        let (tried, began) = self.quick(message, &mut out);
        if tried == Tried::Miss {
            self.front.slow(message, Transport::Doq, self.client, &mut out).await;
            self.front.meter.answered(Transport::Doq, Way::Miss, began.elapsed(), 1);
        }
        framed.extend_from_slice(&out);
        tried != Tried::Drop && !out.is_empty()
    }

    fn quick(&self, message: &[u8], out: &mut Vec<u8>) -> (Tried, Stopwatch) {
        let mut moment = self.front.moment();
        let tried = moment.quick(message, Transport::Doq, self.client, out);
        let began = moment.began();
        moment.end();
        (tried, began)
    }

    fn against_protocol(&self) {
        self.connection.close(PROTOCOL_ERROR, b"");
    }
}

/// Returns the one message of a stream; `None` if it is cut, not alone, or has an id.
fn message_in(framed: &[u8]) -> Option<&[u8]> {
    let (head, message) = framed.split_first_chunk::<2>()?;
    let is_whole = usize::from(u16::from_be_bytes(*head)) == message.len();
    (is_whole && message.starts_with(&[0, 0])).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_holds_one_whole_message_without_an_id() {
        assert_eq!(message_in(&[0, 3, 0, 0, 7]), Some(&[0, 0, 7][..]));
        for wrong in [&[][..], &[0], &[0, 0], &[0, 1, 0], &[0, 3, 0, 0], &[0, 2, 0, 0, 1], &[0, 3, 0, 1, 7]] {
            assert_eq!(message_in(wrong), None, "{wrong:?}");
        }
    }
}
