//! Plain DNS over TCP (RFC 7766): frames, answers out of order, limits.
//!
//! A connection is one task. It reads what the socket has, answers every whole frame of it (refusals and hits at
//! once, misses by tasks that send their reply back through a bounded channel), and writes each answer as soon as it
//! is ready. A half-sent frame waits in the buffer and delays nothing. A connection that is idle, that does not take
//! its answers, or that asks for more at once than is let in is closed or not read from; when there are too many
//! connections, the idlest goes: of the same client prefix if that has too many, else of all.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::poll_immediate;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::meter::{Dropped, Way};
use super::{Front, client_prefix};
use crate::clock::{Stopwatch, Timestamp};
use crate::pipeline::Tried;
use crate::prefix::Prefix;
use crate::wire::Transport;

/// An idle connection is closed after this; RFC 7766 §6.2.3 leaves it to us, 10 to 30 s is common.
const IDLE: Duration = Duration::from_secs(20);

/// A client that does not take its answers for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Once the daemon is about to end, a connection that is silent for this long is closed: what its client sent before is
/// read by then.
const LINGER: Duration = Duration::from_millis(50);

/// And nothing more is read from it after this long.
const LINGER_MAX: Duration = Duration::from_secs(1);

/// How long accepting pauses when the system gives no descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often that is said at most.
const COMPLAIN_PAUSE: Duration = Duration::from_secs(60);

/// The most questions of one connection that wait at once; more are read when some of them are answered.
const PIPELINED_MAX: usize = 128;

/// Octets read at once; larger than any sane question, so most reads hold whole frames.
const READ_BYTES: usize = 4096;

/// Answers gathered before they are written, so that a client that asks in bursts gets few packets.
const WRITE_BYTES_SOFT: usize = 64 << 10;

/// What all connections share.
#[derive(Clone, Debug)]
pub struct Streams {
    /// The pipeline behind the door.
    pub front: Front,
    /// The connections open now.
    pub open: Arc<Open>,
    /// Where each connection is awaited when the daemon drains.
    pub talking: TaskTracker,
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
                Err(error) if is_of_client(&error) => tracing::debug!("accepting TCP clients: {error}"),
                // Out of descriptors, most likely: those who are here must leave first.
                Err(error) => {
                    if complained.is_none_or(|at: Instant| at.elapsed() >= COMPLAIN_PAUSE) {
                        complained = Some(Instant::now());
                        tracing::warn!(
                            "no TCP client can be accepted: {error}; the idlest connections are closed, questions over UDP                              are answered; allow more open files (LimitNOFILE= of the unit), or lower                              clients.max-connections"
                        );
                    }
                    self.open.evict_idlest();
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        match listener.into_std() {
            Ok(listener) => self.take_in_the_last(&listener, &stop),
            Err(error) => tracing::debug!("accepting TCP clients: {error}"),
        }
    }

    /// Takes in those who were connected by the system before the listener is closed.
    fn take_in_the_last(&self, listener: &std::net::TcpListener, stop: &CancellationToken) {
        for _ in 0..self.open.max {
            let Ok((stream, client)) = listener.accept() else { return };
            match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                Ok(stream) => self.welcome(stream, client, stop),
                Err(error) => tracing::debug!("accepting TCP clients: {error}"),
            }
        }
    }

    fn welcome(&self, stream: TcpStream, client: SocketAddr, stop: &CancellationToken) {
        // Answers are written whole; waiting for more to send would only delay them.
        let _ = stream.set_nodelay(true);
        let seat = self.open.enter(client.ip(), self.front.clock.now());
        self.talking.spawn(self.clone().serve(stream, client, seat, stop.clone()));
    }

    /// Serves one connection to its end.
    async fn serve<S>(self, stream: S, client: SocketAddr, seat: Seat, stop: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.front.meter.connections.inc();
        let evict = seat.evict.clone();
        tokio::select! {
            result = self.converse(stream, client, &seat, &stop) => {
                if let Err(error) = result {
                    tracing::debug!("a TCP client: {error}");
                }
            }
            () = evict.cancelled() => self.front.meter.dropped(Dropped::Evicted),
        }
        self.front.meter.connections.dec();
    }

    async fn converse<S>(
        &self,
        mut stream: S,
        client: SocketAddr,
        seat: &Seat,
        stop: &CancellationToken,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (sender, mut answers) = mpsc::channel::<Vec<u8>>(PIPELINED_MAX);
        let mut talk =
            Talk { streams: self, client: client.ip(), sender, waiting: 0, reply: Vec::new(), out: Vec::new() };
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

/// Returns whether accepting failed for what the client did.
fn is_of_client(error: &io::Error) -> bool {
    let kind = error.kind();
    matches!(kind, io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
}

/// Writes all octets; most often they go at once and no timer is needed.
async fn write<S: AsyncWrite + Unpin>(stream: &mut S, octets: &[u8]) -> io::Result<()> {
    let mut all = pin!(stream.write_all(octets));
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
        while self.has_room() && self.out.len() < WRITE_BYTES_SOFT {
            let Some(frame) = input.next() else { break };
            let moment = moment.get_or_insert_with(|| self.streams.front.moment());
            let mut reply = std::mem::take(&mut self.reply);
            match moment.quick(frame, Transport::Tcp, self.client, &mut reply) {
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
        tokio::spawn(async move {
            let mut reply = Vec::new();
            front.slow(&frame, Transport::Tcp, client, &mut reply).await;
            front.meter.answered(Transport::Tcp, Way::Miss, began.elapsed(), 1);
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

/// The connections open now, within their bounds.
#[derive(Debug)]
pub struct Open {
    max: usize,
    max_per_client: usize,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    taken: HashMap<u64, Taken>,
    by_client: HashMap<Prefix, usize>,
}

#[derive(Debug)]
struct Taken {
    client: Prefix,
    /// When it was last answered, in milliseconds.
    active: Arc<AtomicU64>,
    evict: CancellationToken,
}

/// One connection's place; leaving frees it.
#[derive(Debug)]
struct Seat {
    number: u64,
    open: Arc<Open>,
    active: Arc<AtomicU64>,
    evict: CancellationToken,
}

impl Open {
    /// Makes room for `max` connections, `max_per_client` of one client prefix; both at least one.
    pub fn new(max: usize, max_per_client: usize) -> Self {
        Self { max: max.max(1), max_per_client: max_per_client.max(1), seats: Mutex::default() }
    }

    /// Returns how many connections are open.
    pub fn len(&self) -> usize {
        self.seats.lock().taken.len()
    }

    /// Returns whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells the connection that was answered longest ago to leave, if there is one.
    fn evict_idlest(&self) {
        self.seats.lock().evict_idlest(|_| true);
    }

    /// Seats a new connection; the idlest one leaves if there are too many.
    fn enter(self: &Arc<Self>, client: IpAddr, now: Timestamp) -> Seat {
        let client = client_prefix(client);
        let mut seats = self.seats.lock();
        if seats.by_client.get(&client).is_some_and(|&count| count >= self.max_per_client) {
            seats.evict_idlest(|taken| taken.client == client);
        } else if seats.taken.len() >= self.max {
            seats.evict_idlest(|_| true);
        }
        let number = seats.next;
        seats.next += 1;
        let active = Arc::new(AtomicU64::new(now.as_millis()));
        let evict = CancellationToken::new();
        *seats.by_client.entry(client).or_default() += 1;
        seats.taken.insert(number, Taken { client, active: Arc::clone(&active), evict: evict.clone() });
        Seat { number, open: Arc::clone(self), active, evict }
    }
}

impl Seats {
    /// Tells the connection that was answered longest ago to leave; its place is free at once.
    fn evict_idlest(&mut self, may_go: impl Fn(&Taken) -> bool) {
        let idlest = self
            .taken
            .iter()
            .filter(|(_, taken)| may_go(taken))
            .min_by_key(|(number, taken)| (taken.active.load(Ordering::Relaxed), **number))
            .map(|(number, _)| *number);
        if let Some(number) = idlest {
            self.leave(number);
        }
    }

    fn leave(&mut self, number: u64) {
        let Some(taken) = self.taken.remove(&number) else { return };
        taken.evict.cancel();
        if let Some(count) = self.by_client.get_mut(&taken.client) {
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&taken.client);
            }
        }
    }
}

impl Seat {
    fn touch(&self, now: Timestamp) {
        self.active.store(now.as_millis(), Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.open.seats.lock().leave(self.number);
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

    #[test]
    fn the_idlest_connection_leaves_for_a_new_one() {
        let open = Arc::new(Open::new(3, 2));
        let at = Timestamp::from_secs;
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = open.enter(ip("192.0.2.1"), at(1));
        let second = open.enter(ip("192.0.2.2"), at(2));
        first.touch(at(3));
        let third = open.enter(ip("192.0.2.3"), at(4));
        assert!(second.evict.is_cancelled(), "one prefix has two at most, the idlest of them goes");
        assert!(!first.evict.is_cancelled());
        let _other = open.enter(ip("198.51.100.1"), at(5));
        let _more = open.enter(ip("203.0.113.1"), at(6));
        assert!(first.evict.is_cancelled(), "three in all, the idlest goes");
        assert!(!third.evict.is_cancelled());
        assert_eq!(open.len(), 3);
    }

    #[test]
    fn a_connection_that_ends_frees_its_place() {
        let open = Arc::new(Open::new(1, 1));
        let seat = open.enter("192.0.2.1".parse().unwrap(), Timestamp::from_secs(1));
        drop(seat);
        assert!(open.is_empty());
        assert!(open.seats.lock().by_client.is_empty());
    }
}
