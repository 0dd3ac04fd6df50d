//! Connections: plain DNS over TCP (RFC 7766) and over TLS (RFC 7858), frames, answers out of order, limits.
//!
//! One loop accepts, whatever is spoken inside ([`Door`]); a handshake is the connection's own, takes its time from
//! nobody, and has a bound. What HTTPS carries goes on in [`super::doh`].
//!
//! A connection is one task. It reads what the socket has, answers every whole frame of it (refusals and hits at
//! once, misses by tasks that send their reply back through a bounded channel), and writes each answer as soon as it
//! is ready. A half-sent frame waits in the buffer and delays nothing. A connection that is idle, that does not take
//! its answers, or that asks for more at once than is let in is closed or not read from; when there are too many
//! connections, the idlest goes: of the same client prefix if that has too many, else of all.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::poll_immediate;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::meter::{Dropped, Way};
use super::open::Seat;
use super::proxy::{self, Header};
use super::tls::{HANDSHAKE_TIME_MAX, Identity, Use};
use super::{Front, Open, doh};
use crate::clock::Stopwatch;
use crate::pipeline::Tried;
use crate::wire::Transport;

/// An idle connection is closed after this; RFC 7766 §6.2.3 leaves it to us, 10 to 30 s is common.
pub(super) const IDLE: Duration = Duration::from_secs(20);

/// A client that does not take its answers for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a load balancer may take to say whose connection it is.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);

/// Once the daemon is about to end, a connection that is silent for this long is closed: what its client sent before is
/// read by then.
pub(super) const LINGER: Duration = Duration::from_millis(50);

/// And nothing more is read from it after this long.
pub(super) const LINGER_MAX: Duration = Duration::from_secs(1);

/// How long accepting pauses when the system gives no descriptor.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often that is said at most.
const COMPLAIN_PAUSE: Duration = Duration::from_secs(60);

/// The most questions of one connection that wait at once; more are read when some of them are answered.
const PIPELINED_MAX: usize = 128;

/// Octets read at once; larger than any sane question, so most reads hold whole frames.
const READ_BYTES: usize = 4096;

/// Answers gathered before they are written, so that a client that asks in bursts gets few packets.
const WRITE_BYTES_SOFT: usize = 64 << 10;

/// What is spoken on the connections of a listener.
#[derive(Clone)]
pub enum Door {
    /// Frames.
    Tcp,
    /// Frames inside TLS.
    Dot(TlsAcceptor),
    /// HTTP inside TLS.
    Doh(TlsAcceptor),
}

impl Door {
    /// Frames inside TLS, as `identity`.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn dot(identity: &Identity) -> Result<Self, rustls::Error> {
        Ok(Self::Dot(TlsAcceptor::from(Arc::new(identity.server(Use::Dot)?))))
    }

    /// HTTP inside TLS, as `identity`.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn doh(identity: &Identity) -> Result<Self, rustls::Error> {
        Ok(Self::Doh(TlsAcceptor::from(Arc::new(identity.server(Use::Doh)?))))
    }

    fn transport(&self) -> Transport {
        match self {
            Self::Tcp => Transport::Tcp,
            Self::Dot(_) => Transport::Dot,
            Self::Doh(_) => Transport::Doh,
        }
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.transport().name())
    }
}

/// What all connections share.
#[derive(Clone, Debug)]
pub struct Streams {
    /// The pipeline behind the door.
    pub front: Front,
    /// The connections open now.
    pub open: Arc<Open>,
    /// Where each connection is awaited when the daemon drains.
    pub talking: TaskTracker,
    /// What they speak.
    pub door: Door,
}

impl Streams {
    /// Accepts connections until `stop`; then those that are open, or wait to be accepted, end when they have answered
    /// what they were asked.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let mut complained = None;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, client)) => self.welcome(stream, client, &stop),
                // The client is gone before we took it.
                Err(error) if is_of_client(&error) => tracing::debug!("accepting clients: {error}"),
                // Out of descriptors, most likely: those who are here must leave first.
                Err(error) => {
                    if complained.is_none_or(|at: Instant| at.elapsed() >= COMPLAIN_PAUSE) {
                        complained = Some(Instant::now());
                        tracing::warn!(
                            "no TCP client can be accepted: {error}; the idlest connections are closed, questions over UDP \
                             are answered; allow more open files (LimitNOFILE= of the unit), or lower \
                             clients.max-connections"
                        );
                    }
                    self.open.evict_idlest();
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        match listener.into_std() {
            Ok(listener) => self.take_in_the_last(&listener, &stop),
            Err(error) => tracing::debug!("accepting clients: {error}"),
        }
    }

    /// Takes in those who were connected by the system before the listener is closed.
    fn take_in_the_last(&self, listener: &std::net::TcpListener, stop: &CancellationToken) {
        for _ in 0..self.open.max {
            let Ok((stream, client)) = listener.accept() else { return };
            match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                Ok(stream) => self.welcome(stream, client, stop),
                Err(error) => tracing::debug!("accepting clients: {error}"),
            }
        }
    }

    fn welcome(&self, stream: TcpStream, client: SocketAddr, stop: &CancellationToken) {
        let rules = self.front.access.look();
        let is_balancer = rules.is_balancer(client.ip());
        if !is_balancer && rules.is_silent() && !rules.may_ask(client.ip()) {
            return self.front.meter.dropped(Dropped::Denied);
        }
        // Answers are written whole; waiting for more to send would only delay them.
        let _ = stream.set_nodelay(true);
        let seat = self.open.enter(client.ip(), self.front.clock.now());
        let (this, stop) = (self.clone(), stop.clone());
        if is_balancer {
            self.talking.spawn(this.serve_balancer(stream, client.ip(), seat, stop));
        } else {
            self.talking.spawn(this.serve(stream, client.ip(), seat, stop));
        }
    }

    /// Serves a connection of a load balancer, which tells first whose it is. Until then it counts as the balancer's.
    async fn serve_balancer(self, mut stream: TcpStream, balancer: IpAddr, seat: Seat, stop: CancellationToken) {
        let evict = seat.evict.clone();
        let told = tokio::select! {
            told = timeout(HEADER_PATIENCE, introduce(&mut stream)) => told.ok().flatten(),
            () = evict.cancelled() => return self.front.meter.dropped(Dropped::Evicted),
            () = async { stop.cancelled().await; sleep(LINGER_MAX).await } => None,
        };
        let Some(told) = told else { return self.front.meter.dropped(Dropped::Nonsense) };
        let client = told.unwrap_or(balancer);
        let (may_ask, is_silent) = {
            let rules = self.front.access.look();
            (rules.may_ask(client), rules.is_silent())
        };
        if is_silent && !may_ask {
            return self.front.meter.dropped(Dropped::Denied);
        }
        drop(seat);
        let seat = self.open.enter(client, self.front.clock.now());
        self.serve(stream, client, seat, stop).await;
    }

    /// Serves one connection to its end.
    async fn serve(self, stream: TcpStream, client: IpAddr, seat: Seat, stop: CancellationToken) {
        self.front.meter.connections.inc();
        let evict = seat.evict.clone();
        tokio::select! {
            result = self.enter(stream, client, &seat, &stop) => {
                if let Err(error) = result {
                    tracing::debug!("a client over {}: {error}", self.door.transport().name());
                }
            }
            () = evict.cancelled() => self.front.meter.dropped(Dropped::Evicted),
        }
        self.front.meter.connections.dec();
    }

    async fn enter(&self, stream: TcpStream, client: IpAddr, seat: &Seat, stop: &CancellationToken) -> io::Result<()> {
        match &self.door {
            Door::Tcp => self.converse(stream, client, seat, stop).await,
            Door::Dot(acceptor) => {
                let stream = shake_hands(acceptor, stream).await?;
                Box::pin(self.converse(stream, client, seat, stop)).await
            }
            Door::Doh(acceptor) => {
                let stream = shake_hands(acceptor, stream).await?;
                Box::pin(doh::converse(&self.front, stream, client, seat, stop)).await
            }
        }
    }

    async fn converse<S>(&self, mut stream: S, client: IpAddr, seat: &Seat, stop: &CancellationToken) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (sender, mut answers) = mpsc::channel::<Vec<u8>>(PIPELINED_MAX);
        let mut talk = Talk { streams: self, client, sender, waiting: 0, reply: Vec::new(), out: Vec::new() };
        let mut input = Frames::default();
        let mut is_open = true;
        // Both are made once: a timer or a listener made for each read would cost more than the answers to it.
        let mut stopped = pin!(stop.cancelled());
        let mut idle = pin!(sleep(IDLE));
        let mut active = Instant::now();
        // How long a client may be silent, and when it became so short.
        let (mut patience, mut over) = (IDLE, None::<Instant>);
        loop {
            talk.answer_frames(&mut input);
            if !talk.out.is_empty() {
                write(&mut stream, &talk.out).await?;
                talk.clear();
                active = Instant::now();
                seat.touch(self.front.clock.now());
                continue;
            }
            if over.is_some_and(|over| over.elapsed() >= LINGER_MAX) {
                is_open = false;
            }
            if talk.waiting == 0 && !is_open {
                return stream.shutdown().await;
            }
            tokio::select! {
                biased;
                Some(reply) = answers.recv(), if talk.waiting > 0 => {
                    talk.take(&reply);
                    // What else is ready goes out with it.
                    while talk.out.len() < WRITE_BYTES_SOFT && let Ok(reply) = answers.try_recv() {
                        talk.take(&reply);
                    }
                }
                read = stream.read_buf(input.room()), if is_open && talk.has_room() => {
                    is_open = read? > 0;
                }
                () = &mut stopped, if over.is_none() => {
                    active = Instant::now();
                    (patience, over) = (LINGER, Some(active));
                    idle.as_mut().reset(active + patience);
                }
                () = &mut idle, if talk.waiting == 0 => {
                    // It was set long ago: what has happened since counts.
                    if active.elapsed() >= patience {
                        return stream.shutdown().await;
                    }
                    idle.as_mut().reset(active + patience);
                }
            }
        }
    }
}

/// Reads the PROXY header in front of everything else, and no octet beyond it: what follows may be a TLS handshake. The
/// client is `None` if the balancer speaks for itself. `None` if there is no such header.
async fn introduce(stream: &mut TcpStream) -> Option<Option<IpAddr>> {
    let mut octets = vec![0; proxy::HEAD_LEN];
    stream.read_exact(&mut octets).await.ok()?;
    if proxy::read(&octets) == Header::Partial {
        let more = usize::from(u16::from_be_bytes([octets[14], octets[15]]));
        octets.resize(proxy::HEAD_LEN + more, 0);
        stream.read_exact(&mut octets[proxy::HEAD_LEN..]).await.ok()?;
    }
    match proxy::read(&octets) {
        Header::Whole { client, .. } => Some(client),
        Header::Partial | Header::Malformed => None,
    }
}

/// Does the server's half of a handshake, within bounds. It lies on the heap: a connection is far smaller without it.
async fn shake_hands(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    timeout(HANDSHAKE_TIME_MAX, Box::pin(acceptor.accept(stream))).await?
}

/// Returns whether accepting failed for what the client did.
pub(super) fn is_of_client(error: &io::Error) -> bool {
    let kind = error.kind();
    matches!(kind, io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
}

/// Writes all octets; most often they go at once and no timer is needed.
async fn write<S: AsyncWrite + Unpin>(stream: &mut S, octets: &[u8]) -> io::Result<()> {
    let mut all = pin!(async {
        stream.write_all(octets).await?;
        // TLS may keep what the socket did not take.
        stream.flush().await
    });
    match poll_immediate(&mut all).await {
        Some(written) => written,
        None => timeout(WRITE_TIMEOUT, all).await?,
    }
}

/// One connection's side of the pipeline.
struct Talk<'a> {
    streams: &'a Streams,
    client: IpAddr,
    sender: mpsc::Sender<Vec<u8>>,
    /// Questions that tasks are answering.
    waiting: usize,
    /// One reply before it is put into its frame.
    reply: Vec<u8>,
    /// Frames to be written.
    out: Vec<u8>,
}

impl Talk<'_> {
    /// Returns whether one more question may wait.
    fn has_room(&self) -> bool {
        self.waiting < PIPELINED_MAX
    }

    /// Answers every whole frame of the input, as far as there is room.
    fn answer_frames(&mut self, input: &mut Frames) {
        let mut moment = None;
        let transport = self.streams.door.transport();
        while self.has_room() && self.out.len() < WRITE_BYTES_SOFT {
            let Some(frame) = input.next() else { break };
            let moment = moment.get_or_insert_with(|| self.streams.front.moment());
            let mut reply = std::mem::take(&mut self.reply);
            match moment.quick(frame, transport, self.client, &mut reply) {
                Tried::Answered => self.frame(&reply),
                Tried::Drop => {}
                Tried::Miss => self.wait_for(frame.to_vec(), moment.began()),
            }
            self.reply = reply;
        }
        if let Some(moment) = moment {
            moment.end();
        }
        input.compact();
    }

    /// Forgets what was written. A connection that waits for its next question holds no large buffers.
    fn clear(&mut self) {
        for buffer in [&mut self.reply, &mut self.out] {
            buffer.clear();
            buffer.shrink_to(READ_BYTES * 2);
        }
    }

    /// Has a miss answered by a task of its own.
    fn wait_for(&mut self, frame: Vec<u8>, began: Stopwatch) {
        self.waiting += 1;
        let (front, client, sender) = (self.streams.front.clone(), self.client, self.sender.clone());
        let transport = self.streams.door.transport();
        tokio::spawn(async move {
            let mut reply = Vec::new();
            front.slow(&frame, transport, client, &mut reply).await;
            front.meter.answered(transport, Way::Miss, began.elapsed(), 1);
            // The channel holds as many as may wait, so this never blocks; without a receiver the client is gone.
            let _ = sender.send(reply).await;
        });
    }

    /// Takes the reply of a task.
    fn take(&mut self, reply: &[u8]) {
        self.waiting -= 1;
        self.frame(reply);
    }

    /// Puts a reply into its frame (RFC 1035 §4.2.2); an empty one means that nothing is to be said.
    fn frame(&mut self, reply: &[u8]) {
        let Ok(len) = u16::try_from(reply.len()) else { return };
        if len > 0 {
            self.out.extend_from_slice(&len.to_be_bytes());
            self.out.extend_from_slice(reply);
        }
    }
}

/// Octets as they came, cut into frames. Holds at most one frame and what one read adds.
#[derive(Debug, Default)]
struct Frames {
    octets: Vec<u8>,
    /// Where the next frame starts.
    at: usize,
}

impl Frames {
    /// Returns the buffer to read into.
    fn room(&mut self) -> &mut Vec<u8> {
        self.octets.reserve(READ_BYTES);
        &mut self.octets
    }

    /// Takes the next whole frame.
    fn next(&mut self) -> Option<&[u8]> {
        let rest = &self.octets[self.at..];
        let (head, body) = rest.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_be_bytes(*head));
        let frame = body.get(..len)?;
        self.at += 2 + len;
        Some(frame)
    }

    /// Forgets the frames taken.
    fn compact(&mut self) {
        self.octets.drain(..self.at);
        self.at = 0;
        if self.octets.is_empty() && self.octets.capacity() > READ_BYTES * 2 {
            self.octets = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_wherever_the_stream_is_cut() {
        let stream = b"\x00\x03abc\x00\x00\x00\x02de";
        for cut in 0..stream.len() {
            let mut frames = Frames::default();
            let mut found: Vec<Vec<u8>> = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                frames.room().extend_from_slice(part);
                while let Some(frame) = frames.next() {
                    found.push(frame.to_vec());
                }
                frames.compact();
            }
            assert_eq!(found, [b"abc".to_vec(), b"".to_vec(), b"de".to_vec()], "cut at {cut}");
        }
    }
}
