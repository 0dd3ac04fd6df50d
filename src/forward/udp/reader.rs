//! The thread that reads the replies on all ports of all upstreams.
//!
//! One wait for all sockets, one sweep for all patience: every [`TICK`] while anybody waits, those whose time is over
//! are told, and ports that are done are closed. With nobody waiting the thread sleeps, until a question wakes it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use foldhash::fast::RandomState;
use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::port::{Line, Port, Use};
use crate::metrics::Lane;

/// How exactly patience is kept.
const TICK: Duration = Duration::from_millis(10);

/// How long it stays alert after the last wait, so that a question now and then need not wake it.
const ALERT_FOR: Duration = Duration::from_secs(2);

/// How often it looks after idle ports.
const IDLE_TICK: Duration = Duration::from_secs(5);

/// Sockets looked at in one go.
const EVENTS_MAX: usize = 256;

/// The room for a datagram: above what we advertise, since some upstreams go by their own limit.
const DATAGRAM_LEN_MAX: usize = 4096;

/// Wakes the thread, and is no port.
const WAKE: Token = Token(usize::MAX);

/// The handle; the thread ends when it is dropped.
pub(in crate::forward) struct Reader(Arc<Shared>);

struct Shared {
    registry: Registry,
    waker: Waker,
    ports: Mutex<HashMap<Token, Arc<Port>, RandomState>>,
    next: AtomicUsize,
    /// It sleeps for long; whoever begins to wait must wake it.
    is_asleep: AtomicBool,
    is_over: AtomicBool,
}

impl Reader {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the system says: no thread or no descriptor is left.
    pub(in crate::forward) fn start() -> io::Result<Self> {
        let poll = Poll::new()?;
        let shared = Arc::new(Shared {
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKE)?,
            ports: Mutex::default(),
            next: AtomicUsize::new(0),
            is_asleep: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        thread::Builder::new().name("udp-replies".to_owned()).spawn(move || of_thread.run(poll))?;
        Ok(Self(shared))
    }

    /// Opens a port to `addr`.
    ///
    /// The system draws it at random among those meant for this (RFC 6056), passing by what the operator reserved
    /// (`ip_local_reserved_ports`).
    pub(super) fn open(&self, addr: SocketAddr, line: &Arc<Line>) -> io::Result<Arc<Port>> {
        let any = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let mut socket = UdpSocket::bind(any.parse().map_err(io::Error::other)?)?;
        socket.connect(addr)?;
        let token = Token(self.0.next.fetch_add(1, Ordering::Relaxed) % WAKE.0);
        self.0.registry.register(&mut socket, token, Interest::READABLE)?;
        let port = Arc::new(Port::new(token, socket, Arc::clone(line)));
        self.0.ports.lock().insert(token, Arc::clone(&port));
        Ok(port)
    }

    /// Makes sure that the thread keeps time: somebody waits.
    pub(super) fn alert(&self) {
        if self.0.is_asleep.load(Ordering::SeqCst) && self.0.is_asleep.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Err(error) = self.0.waker.wake() {
            tracing::error!("waking the reader of upstream replies: {error}");
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
        self.wake();
    }
}

impl Shared {
    fn run(&self, mut poll: Poll) {
        // What follows from a reply is counted here.
        let _lane = Lane::take();
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut room = vec![0; DATAGRAM_LEN_MAX];
        let (mut swept, mut alert_until) = (Instant::now(), Instant::now());
        while !self.is_over.load(Ordering::SeqCst) {
            let pause = if self.is_asleep.load(Ordering::SeqCst) { IDLE_TICK } else { TICK };
            if let Err(error) = poll.poll(&mut events, Some(pause))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!("waiting for upstream replies: {error}");
                thread::sleep(TICK);
            }
            for event in &events {
                let port = self.ports.lock().get(&event.token()).cloned();
                if let Some(port) = port {
                    port.read(&mut room);
                }
            }
            let now = Instant::now();
            if now.saturating_duration_since(swept) >= TICK {
                swept = now;
                if self.sweep(now) {
                    alert_until = now + ALERT_FOR;
                } else if now >= alert_until {
                    self.is_asleep.store(true, Ordering::SeqCst);
                }
                // Whoever began to wait before it was marked asleep did not wake it.
                if self.is_asleep.load(Ordering::SeqCst) && self.sweep(now) {
                    self.is_asleep.store(false, Ordering::SeqCst);
                }
            }
        }
    }

    /// Tells who is due and closes what is done; returns whether anybody waits.
    fn sweep(&self, now: Instant) -> bool {
        let ports: Vec<Arc<Port>> = self.ports.lock().values().cloned().collect();
        let mut anybody = false;
        for port in ports {
            match port.look_after(now) {
                Use::Waiting => anybody = true,
                Use::Idle => {}
                Use::Over => drop(self.ports.lock().remove(&port.token)),
            }
        }
        anybody
    }
}
