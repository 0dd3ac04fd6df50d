//! Many questions over one connection: TCP (RFC 7766) or TLS (RFC 7858).
//!
//! ```text
//! Connection::send ─▶ noted under a random id ─▶ queued ─▶ the task writes all that is queued at once
//!                     Hope::replied ◀─ id and question match ◀─ the task reads, as many replies as came
//! ```
//!
//! Replies may come in any order. A frame that answers nobody is counted and dropped, and the connection goes on. The
//! task ends when the stream does or fails, and then tells all who wait; or when the last handle is gone and nobody
//! waits any more. Both directions run side by side: a peer that reads nothing until we read is no trouble.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntCounter;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::hopes::{Broken, Courier, Hope, Hopes, Leaves, Place, tell_due};
use super::letters::Letters;
use super::message::{Manner, query};
use crate::wire::Question;

/// How many questions may wait on one connection; as many as may wait in all, with their further tries.
const WAITS_MAX: usize = 8192;

/// How exactly patience is kept.
const TICK: Duration = Duration::from_millis(10);

/// Room for replies read at once, to begin with; the longest frame still fits.
const READ_LEN: usize = 16 << 10;

/// A connection to one upstream; cheap to clone, closed when the last clone and the last wait are gone.
#[derive(Clone)]
pub(super) struct Connection(Arc<Handle>);

/// Tells the task when nobody can ask any more.
struct Handle(Arc<Shared>);

struct Shared {
    hopes: Arc<Mutex<Hopes>>,
    /// Frames to be written. Bounded by the questions that may wait, each of which is written once.
    queued: Mutex<Vec<u8>>,
    /// Something is queued, or the last handle is gone.
    written: Notify,
    /// Somebody waits.
    watched: Notify,
    /// Nothing is to be asked over it any more.
    is_over: AtomicBool,
    mismatches: IntCounter,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.hopes.lock().is_closed = true;
        self.0.written.notify_one();
    }
}

impl Connection {
    /// Connects over TCP.
    ///
    /// # Errors
    /// What the system says.
    pub(super) async fn tcp(addr: SocketAddr, mismatches: IntCounter) -> Result<Self, Broken> {
        Ok(Self::start(connect(addr).await?, mismatches))
    }

    /// Connects over TLS; the certificate must be for `name`, which is sent as SNI unless it is an address.
    ///
    /// # Errors
    /// What the system or the handshake says.
    pub(super) async fn tls(
        addr: SocketAddr,
        name: ServerName<'static>,
        config: Arc<rustls::ClientConfig>,
        mismatches: IntCounter,
    ) -> Result<Self, Broken> {
        let stream = TlsConnector::from(config).connect(name, connect(addr).await?).await?;
        Ok(Self::start(stream, mismatches))
    }

    /// Sends a question; `hope` hears what comes of it, of silence first at `due`. Returns where it waits, unless it
    /// has heard already that the connection is over.
    pub(super) fn send(
        &self,
        question: &Arc<Question>,
        manner: Manner,
        due: Option<Instant>,
        hope: Box<dyn Hope>,
    ) -> Option<Place> {
        let shared = &*self.0.0;
        let enlisted = shared.hopes.lock().enlist(question, Letters::ANY, due, hope);
        let id = match enlisted {
            Ok(id) => id,
            Err(hope) => {
                hope.broke(Broken("the connection is closed, or too many questions wait on it".to_owned()));
                return None;
            }
        };
        let octets = query(id, question, Letters::ANY, manner);
        let is_first = {
            let mut queued = shared.queued.lock();
            let is_first = queued.is_empty();
            // A query is far shorter than a frame may be.
            queued.extend_from_slice(&(octets.len() as u16).to_be_bytes());
            queued.extend_from_slice(&octets);
            is_first
        };
        if is_first {
            shared.written.notify_one();
        }
        shared.watched.notify_one();
        Some(Place::new(&shared.hopes, id))
    }

    /// Asks and waits for the reply to exactly this question. Safe to cancel.
    ///
    /// # Errors
    /// [`Broken`] when the connection ended or failed first.
    pub(super) async fn ask(&self, question: &Arc<Question>, manner: Manner) -> Result<Vec<u8>, Broken> {
        let (courier, reply) = Courier::new();
        let _leaves = self.send(question, manner, None, courier).map(Leaves);
        reply.await.unwrap_or_else(|_| Err(Broken("the connection was closed".to_owned())))
    }

    /// Returns whether nothing can be asked over it any more.
    pub(super) fn is_over(&self) -> bool {
        self.0.0.is_over.load(Ordering::Acquire)
    }

    /// Lets nothing further be asked over it; what waits goes on waiting.
    pub(super) fn retire(&self) {
        self.0.0.is_over.store(true, Ordering::Release);
    }

    /// Starts the task that reads and writes.
    fn start<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S, mismatches: IntCounter) -> Self {
        let shared = Arc::new(Shared {
            hopes: Hopes::new(WAITS_MAX),
            queued: Mutex::default(),
            written: Notify::new(),
            watched: Notify::new(),
            is_over: AtomicBool::new(false),
            mismatches,
        });
        let ending = Ending(Arc::clone(&shared));
        tokio::spawn(async move {
            let shared = &ending.0;
            let (reading, writing) = tokio::io::split(stream);
            let ended = tokio::select! {
                ended = shared.read(reading) => ended,
                ended = shared.write(writing) => ended,
                () = shared.keep_time() => Ok(()),
            };
            if let Err(error) = ended {
                ending.0.fail(&error);
            }
        });
        Self(Arc::new(Handle(shared)))
    }
}

/// Tells all who wait that there will be no reply, however the task ends.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.fail(&io::Error::other("the connection was closed"));
    }
}

impl Shared {
    /// Reads replies until the stream ends.
    async fn read(&self, mut stream: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut octets = vec![0; READ_LEN];
        let mut len = 0;
        loop {
            let more = stream.read(&mut octets[len..]).await?;
            if more == 0 {
                return Ok(());
            }
            len += more;
            let used = self.deliver_frames(&octets[..len]);
            octets.copy_within(used..len, 0);
            len -= used;
            if self.is_done() {
                return Ok(());
            }
            // A frame that has begun must fit whole.
            let wanted = octets[..len].first_chunk().map_or(0, |head| 2 + usize::from(u16::from_be_bytes(*head)));
            if wanted > octets.len() {
                octets.resize(wanted, 0);
            }
        }
    }

    /// Gives each whole frame to who waits for it; returns how many octets they took.
    fn deliver_frames(&self, octets: &[u8]) -> usize {
        let mut rest = octets;
        while let Some((head, tail)) = rest.split_first_chunk()
            && let Some((reply, next)) = tail.split_at_checked(usize::from(u16::from_be_bytes(*head)))
        {
            let taken = self.hopes.lock().claim(reply);
            match taken {
                Ok((hope, _)) => hope.replied(reply),
                Err(_) => self.mismatches.inc(),
            }
            rest = next;
        }
        octets.len() - rest.len()
    }

    /// Writes what is queued, until the last handle is gone and nobody waits.
    async fn write(&self, mut stream: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut writing = Vec::new();
        loop {
            writing.clear();
            std::mem::swap(&mut writing, &mut *self.queued.lock());
            if !writing.is_empty() {
                stream.write_all(&writing).await?;
                stream.flush().await?;
            } else if self.is_done() {
                return Ok(());
            } else {
                self.written.notified().await;
            }
        }
    }

    /// Tells those whose patience is over; ends once the last handle is gone and nobody waits, be it that they gave up.
    async fn keep_time(&self) {
        while !self.is_done() {
            self.watched.notified().await;
            while !self.hopes.lock().is_empty() {
                tokio::time::sleep(TICK).await;
                tell_due(&self.hopes, Instant::now());
            }
        }
    }

    fn is_done(&self) -> bool {
        let hopes = self.hopes.lock();
        hopes.is_closed && hopes.is_empty()
    }

    fn fail(&self, error: &io::Error) {
        self.is_over.store(true, Ordering::Release);
        let failed = {
            let mut hopes = self.hopes.lock();
            hopes.is_closed = true;
            hopes.take_all_but(None)
        };
        failed.into_iter().for_each(|hope| hope.broke(Broken(error.to_string())));
    }
}

/// Connects, with keep-alives so that a path that died unseen is noticed within a minute.
pub(super) async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}
