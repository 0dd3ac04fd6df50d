//! One question and its reply over a connection: TCP or TLS.
//!
//! An [`Exchange`] is a connection to one upstream, a hickory `DnsExchange` with our own parts below it:
//!
//! ```text
//! Exchange::ask ─▶ DnsExchange ─▶ DnsMultiplexer ─▶ Enveloped ─▶ hickory's framing ─▶ TCP, TLS (RFC 7766, 7858)
//! ```
//!
//! What comes back are the upstream's octets, unread but for the question they must repeat (see `message`). A reply
//! that fails this is counted, dropped, and the wait goes on; it ends only with the exchange or when the caller drops
//! the future. That is also how an exchange is cancelled.
//!
//! Why hickory's parts are not used as they come (0.26.3):
//! - It reads a whole reply into records before it hands out the octets. One it cannot read is dropped: a record of no octets (`InvalidEmptyRecord`, so an empty APL or any unknown type), HTTPS
//!   and SVCB parameters out of order or without octets, an odd client subnet option, a record whose type is a
//!   question type. A forwarder passes on what its own walker can vouch for. So a reply travels in an *envelope*: a
//!   message with its id and a single NULL record that holds the reply as it came, which always reads.
//! - Its multiplexer lets 32 questions wait and its send queue holds 32: both are [`IN_FLIGHT_MAX`] here. It draws
//!   the id itself, at random among the free ones. It does not compare the question, so that is done above it: the
//!   late answer to an abandoned question may meet a new one of the same id.
//! - Its TLS connector switches the server name indication off, which some operators' front ends need: the
//!   handshake is done here. A zero-length frame makes it close the connection, which we take as it is.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use hickory_net::NetError;
use hickory_net::proto::op::{DnsRequest, DnsRequestOptions, Edns, Message, Query, SerialMessage};
use hickory_net::proto::rr::{DNSClass, Name as HickoryName, RecordType};
use hickory_net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_net::runtime::{DnsTcpStream, TokioRuntimeProvider};
use hickory_net::tcp::{TcpClientStream, TcpStream as FramedStream};
use hickory_net::xfer::{DnsClientStream, DnsExchange, DnsHandle, DnsMultiplexer, DnsRequestSender};
use prometheus::IntCounter;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::message::{Manner, UDP_SIZE, is_reply};
use crate::wire::{HEADER_LEN, Question};

/// How many questions may wait on one connection; as many as may wait in all.
const IN_FLIGHT_MAX: usize = 4096;

/// How long connecting may take, handshake included.
const CONNECT_MAX: Duration = Duration::from_secs(4);

/// How long the multiplexer keeps a question; longer than any question may take, so that our own limits rule.
const MULTIPLEXER_TIMEOUT: Duration = Duration::from_secs(60);

/// Octets of an envelope before the reply: header, root name, type, class, TTL, length.
const ENVELOPE_LEN: usize = HEADER_LEN + 1 + 2 + 2 + 4 + 2;

/// Why an exchange gave no reply.
#[derive(Clone, Debug)]
pub(super) struct Broken(pub(super) String);

impl From<NetError> for Broken {
    fn from(error: NetError) -> Self {
        Self(error.to_string())
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// A connection to one upstream; cheap to clone, closed when the last clone and the last wait are gone.
#[derive(Clone)]
pub(super) struct Exchange {
    handle: DnsExchange<TokioRuntimeProvider>,
    /// Nothing can be asked over it any more.
    over: Arc<AtomicBool>,
    mismatches: IntCounter,
}

impl Exchange {
    /// Connects over TCP.
    ///
    /// # Errors
    /// What the system says, or that it took too long.
    pub(super) async fn tcp(addr: SocketAddr, mismatches: IntCounter) -> Result<Self, Broken> {
        bounded(async { Ok(Self::framed(connect(addr).await?, addr, mismatches)) }).await
    }

    /// Connects over TLS; the certificate must be for `name`, which is sent as SNI unless it is an address.
    ///
    /// # Errors
    /// What the system or the handshake says, or that it took too long.
    pub(super) async fn tls(
        addr: SocketAddr,
        name: ServerName<'static>,
        config: Arc<rustls::ClientConfig>,
        mismatches: IntCounter,
    ) -> Result<Self, Broken> {
        bounded(async {
            let stream = TlsConnector::from(config).connect(name, connect(addr).await?).await?;
            Ok(Self::framed(stream, addr, mismatches))
        })
        .await
    }

    /// Asks and waits for the reply to exactly this question.
    ///
    /// # Errors
    /// [`Broken`] when the transport ended or failed first.
    pub(super) async fn ask(&self, question: &Question, manner: Manner) -> Result<Vec<u8>, Broken> {
        let mut replies = self.handle.send(request(question, manner)?);
        while let Some(envelope) = replies.next().await {
            let reply = open(envelope?.into_buffer());
            if is_reply(&reply, question) {
                return Ok(reply);
            }
            self.mismatches.inc();
        }
        Err(Broken("the exchange ended without a reply".to_owned()))
    }

    /// Returns whether nothing can be asked over it any more.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Lets nothing further be asked over it; what waits goes on waiting.
    pub(super) fn retire(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Puts framing and the multiplexer over a connected stream.
    fn framed<S>(stream: S, addr: SocketAddr, mismatches: IntCounter) -> Self
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + Sync + 'static,
    {
        let stream = AsyncIoTokioAsStd(stream);
        let (framed, handle) = FramedStream::from_stream_with_buffer_size(stream, addr, IN_FLIGHT_MAX);
        let multiplexer = DnsMultiplexer::new(Enveloped(TcpClientStream::from_stream(framed)), handle)
            .with_timeout(MULTIPLEXER_TIMEOUT)
            .with_max_active_requests(IN_FLIGHT_MAX);
        Self::spawn(multiplexer, mismatches)
    }

    /// Starts the task that drives `sender`; it ends when the stream closes or the last handle is dropped.
    fn spawn(sender: impl DnsRequestSender, mismatches: IntCounter) -> Self {
        let (handle, background) = DnsExchange::from_stream(sender);
        let over = Arc::new(AtomicBool::new(false));
        let retire = Retire(over.clone());
        tokio::spawn(async move {
            let _retire = retire;
            background.await;
        });
        Self { handle, over, mismatches }
    }
}

/// Marks an exchange as over when its task ends, however it ends.
struct Retire(Arc<AtomicBool>);

impl Drop for Retire {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Connects, with keep-alives so that a path that died unseen is noticed within a minute.
async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

/// Ends what takes longer than [`CONNECT_MAX`].
async fn bounded(connecting: impl Future<Output = Result<Exchange, Broken>>) -> Result<Exchange, Broken> {
    match tokio::time::timeout(CONNECT_MAX, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(Broken(format!("not connected within {} s", CONNECT_MAX.as_secs()))),
    }
}

/// Builds the query: RD, CD as asked, a fresh random id, one OPT of our own without options.
///
/// The labels go over as they are, whatever octets they hold.
fn request(question: &Question, manner: Manner) -> Result<DnsRequest, Broken> {
    let name = HickoryName::from_labels(question.name.labels()).map_err(|error| Broken(error.to_string()))?;
    let mut query = Query::query(name, RecordType::from(question.qtype));
    query.set_query_class(DNSClass::from(question.qclass));
    let mut message = Message::query();
    message.add_query(query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.checking_disabled;
    message.metadata.authentic_data = manner.authentic_data;
    if manner.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_SIZE).set_dnssec_ok(question.dnssec_ok);
        message.set_edns(edns);
    }
    Ok(DnsRequest::new(message, DnsRequestOptions::default()))
}

/// Wraps a reply so that hickory reads nothing of it but the id; `None` if it has none or is too long to be one.
fn envelope(reply: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(reply.len()).ok()?;
    let mut octets = Vec::with_capacity(ENVELOPE_LEN + reply.len());
    octets.extend_from_slice(reply.get(..2)?);
    // QR; no question, no answer, no authority, one additional record.
    octets.extend_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    // Root name, type NULL (RFC 1035 §3.3.10), class IN, TTL 0.
    octets.extend_from_slice(&[0, 0, 10, 0, 1, 0, 0, 0, 0]);
    octets.extend_from_slice(&len.to_be_bytes());
    octets.extend_from_slice(reply);
    Some(octets)
}

/// Takes the reply out of its envelope.
fn open(mut envelope: Vec<u8>) -> Vec<u8> {
    envelope.drain(..ENVELOPE_LEN.min(envelope.len()));
    envelope
}

/// Framed messages, each in an envelope.
struct Enveloped<S: DnsTcpStream>(TcpClientStream<S>);

impl<S: DnsTcpStream> Stream for Enveloped<S> {
    type Item = Result<SerialMessage, NetError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let message = match self.0.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(message))) => message,
                other => return other,
            };
            let (reply, addr) = message.into_parts();
            // A frame of one octet has no id to match; the connection is otherwise intact.
            if let Some(envelope) = envelope(&reply) {
                return Poll::Ready(Some(Ok(SerialMessage::new(envelope, addr))));
            }
        }
    }
}

impl<S: DnsTcpStream> DnsClientStream for Enveloped<S> {
    type Time = S::Time;

    fn name_server_addr(&self) -> SocketAddr {
        self.0.name_server_addr()
    }
}

#[cfg(test)]
mod tests {
    use hickory_net::proto::op::DnsResponse;

    use super::*;

    const QUESTION: &[u8] = b"\x01a\x07example\x00\x00\x01\x00\x01";

    /// Returns a reply with one record of `rtype` and with one option of `code`, if it has octets.
    fn reply(rtype: u16, rdata: &[u8], code: u16, value: &[u8]) -> Vec<u8> {
        let mut octets = b"\x12\x34\x81\x80\x00\x01\x00\x01\x00\x00\x00\x01".to_vec();
        octets.extend_from_slice(QUESTION);
        octets.extend_from_slice(&[0xc0, 12]);
        octets.extend_from_slice(&rtype.to_be_bytes());
        octets.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
        octets.extend_from_slice(&(rdata.len() as u16).to_be_bytes());
        octets.extend_from_slice(rdata);
        octets.extend_from_slice(&[0, 0, 41, 4, 0xd0, 0, 0, 0, 0]);
        let mut options = Vec::new();
        if !value.is_empty() {
            options.extend_from_slice(&code.to_be_bytes());
            options.extend_from_slice(&(value.len() as u16).to_be_bytes());
            options.extend_from_slice(value);
        }
        octets.extend_from_slice(&(options.len() as u16).to_be_bytes());
        octets.extend_from_slice(&options);
        octets
    }

    #[test]
    fn replies_that_hickory_refuses_travel_in_an_envelope() {
        assert!(DnsResponse::from_buffer(reply(1, &[192, 0, 2, 1], 0, &[])).is_ok(), "the frame is sound");
        for (what, refused) in [
            ("an empty APL", reply(42, &[], 0, &[])),
            ("an unknown type without octets", reply(65_281, &[], 0, &[])),
            ("SVCB keys out of order", reply(65, &[0, 1, 0, 0, 3, 0, 2, 1, 0xbb, 0, 1, 0, 3, 2, b'h', b'2'], 0, &[])),
            ("an ALPN list without octets", reply(65, &[0, 1, 0, 0, 1, 0, 0], 0, &[])),
            ("an odd client subnet", reply(1, &[192, 0, 2, 1], 8, &[0, 9, 1])),
            ("a record of a question type", reply(255, &[0], 0, &[])),
        ] {
            assert!(DnsResponse::from_buffer(refused.clone()).is_err(), "{what}: hickory reads it by now");
            let carried = DnsResponse::from_buffer(envelope(&refused).unwrap()).unwrap();
            assert_eq!(carried.id, 0x1234, "{what}");
            assert_eq!(open(carried.into_buffer()), refused, "{what}");
        }
    }

    #[test]
    fn envelope_holds_the_longest_and_the_shortest_reply() {
        for len in [2, 3, 12, 65_535] {
            let whole = vec![0xff; len];
            let carried = DnsResponse::from_buffer(envelope(&whole).unwrap()).unwrap();
            assert_eq!(open(carried.into_buffer()), whole);
        }
        assert_eq!(envelope(&[]), None);
        assert_eq!(envelope(&[1]), None);
        assert_eq!(envelope(&vec![0; 65_536]), None);
    }
}
