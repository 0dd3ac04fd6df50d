//! Who reads the replies on ports, and keeps the time of those who wait there.
//!
//! An [`Exchange`] is one wait for all its sockets and one sweep for all patience: every [`TICK`] while anybody waits,
//! those whose time is over are told, and ports that are done are closed. A thread that answers clients owns one and
//! takes its turns between their datagrams ([`Exchange::own`]), so that its questions come back to it without another
//! thread. Whoever else asks does so over the one that [`Reader::start`] gives a thread of its own.
//!
//! A [`Reader`] is what others see of an exchange. It keeps the ports by upstream: questions of one exchange never
//! wait on the ports of another.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use foldhash::fast::RandomState;
use mio::net::UdpSocket;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::pool::{Enlisted, Pool, Unplaced};
use super::port::{Berth, Line, Port, Use};
use crate::metrics::Lane;

/// How exactly patience is kept.
const TICK: Duration = Duration::from_millis(10);

/// How long the thread of its own stays alert after the last wait, so that a question now and then need not wake it.
const ALERT_FOR: Duration = Duration::from_secs(2);

/// How long a thread that answers clients does: it can wait for their datagrams alone at less cost.
const ALERT_FOR_OWN: Duration = Duration::from_millis(100);

/// How often idle ports are looked after.
const IDLE_TICK: Duration = Duration::from_secs(5);

/// Sockets looked at in one go.
const EVENTS_MAX: usize = 64;

/// The room for a datagram: above what we advertise, since some upstreams go by their own limit.
const DATAGRAM_LEN_MAX: usize = 4096;

/// Wakes the thread, and is no port.
const WAKE: Token = Token(usize::MAX);

/// The socket of the owner, which is no port either.
const OWNERS: Token = Token(usize::MAX - 1);

thread_local! {
    /// The reader whose turns this thread takes between other work.
    static OWN: RefCell<Option<Arc<Reader>>> = const { RefCell::new(None) };
}

/// What others see of an exchange.
pub(in crate::forward) struct Reader {
    registry: Registry,
    waker: Waker,
    ports: Mutex<HashMap<Token, Arc<Port>, RandomState>>,
    /// The ports that take questions, by upstream; mostly there are one or two.
    pools: Mutex<Vec<Pool>>,
    next: AtomicUsize,
    /// Nobody keeps time; whoever begins to wait must see to it.
    is_asleep: AtomicBool,
    /// Whether only the thread that takes the turns asks here: it is never asleep then.
    is_own: bool,
}

/// The one wait, and the turns.
pub struct Exchange {
    reader: Arc<Reader>,
    poll: Poll,
    events: Events,
    room: Vec<u8>,
    swept: Instant,
    alert_until: Instant,
    alert_for: Duration,
    /// Whether the owner's socket is looked at, too.
    is_watching: bool,
}

/// Ends the thread of a reader when it is dropped.
pub(in crate::forward) struct Started {
    reader: Arc<Reader>,
    is_over: Arc<AtomicBool>,
}

impl Reader {
    /// Starts an exchange with a thread of its own.
    ///
    /// # Errors
    /// What the system says: no thread or no descriptor is left.
    pub(in crate::forward) fn start() -> io::Result<Started> {
        let mut exchange = Exchange::new(ALERT_FOR, false)?;
        let (reader, is_over) = (Arc::clone(&exchange.reader), Arc::<AtomicBool>::default());
        let is_done = Arc::clone(&is_over);
        thread::Builder::new().name("udp-replies".to_owned()).spawn(move || {
            // What follows from a reply is counted here.
            let _lane = Lane::take();
            while !is_done.load(Ordering::SeqCst) {
                let pause = if exchange.is_idle() { IDLE_TICK } else { TICK };
                exchange.turn(pause);
            }
        })?;
        Ok(Started { reader, is_over })
    }

    /// Returns the reader whose turns this thread takes, if it takes any.
    pub(super) fn of_this_thread() -> Option<Arc<Self>> {
        OWN.with_borrow(Option::clone)
    }

    /// Notes on one of the ports of `line` who waits; gives the hope back if there is no port.
    pub(super) fn enlist(&self, line: &Arc<Line>, asked: Unplaced<'_>) -> Enlisted {
        let mut pools = self.pools.lock();
        let at = pools.iter().position(|pool| pool.is_of(line)).unwrap_or_else(|| {
            pools.push(Pool::new(Arc::clone(line)));
            pools.len() - 1
        });
        pools[at].enlist(asked, |berth| self.open(line.addr, berth))
    }

    /// Opens a port.
    ///
    /// The system draws it at random among those meant for this (RFC 6056), passing by what the operator reserved
    /// (`ip_local_reserved_ports`).
    fn open(&self, addr: SocketAddr, berth: Berth) -> io::Result<Arc<Port>> {
        let any = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let mut socket = UdpSocket::bind(any.parse().map_err(io::Error::other)?)?;
        socket.connect(addr)?;
        let token = Token(self.next.fetch_add(1, Ordering::Relaxed) % OWNERS.0);
        self.registry.register(&mut socket, token, Interest::READABLE)?;
        let port = Arc::new(Port::new(token, socket, berth));
        self.ports.lock().insert(token, Arc::clone(&port));
        Ok(port)
    }

    /// Makes sure that somebody keeps time: somebody waits.
    pub(super) fn alert(&self) {
        let was_asleep = self.is_asleep.load(Ordering::SeqCst) && self.is_asleep.swap(false, Ordering::SeqCst);
        if was_asleep && !self.is_own {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!("waking the reader of upstream replies: {error}");
        }
    }

    /// Tells who is due and closes what is done; returns whether anybody waits.
    fn sweep(&self, now: Instant) -> bool {
        let ports: Vec<Arc<Port>> = self.ports.lock().values().cloned().collect();
        let (mut anybody, mut is_any_over) = (false, false);
        for port in ports {
            match port.look_after(now) {
                Use::Waiting => anybody = true,
                Use::Idle => {}
                Use::Over => {
                    is_any_over = true;
                    self.ports.lock().remove(&port.token);
                }
            }
        }
        if is_any_over {
            self.pools.lock().retain_mut(Pool::is_of_use);
        }
        anybody
    }
}

impl Started {
    /// Returns the reader.
    pub(super) fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.reader.wake();
    }
}

impl Exchange {
    /// Makes one for this thread: whatever it asks over UDP from now on waits here, and is told in [`Exchange::turn`].
    ///
    /// # Errors
    /// What the system says: no descriptor is left.
    pub fn own() -> io::Result<Self> {
        let exchange = Self::new(ALERT_FOR_OWN, true)?;
        OWN.set(Some(Arc::clone(&exchange.reader)));
        Ok(exchange)
    }

    fn new(alert_for: Duration, is_own: bool) -> io::Result<Self> {
        let poll = Poll::new()?;
        let reader = Reader {
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKE)?,
            ports: Mutex::default(),
            pools: Mutex::default(),
            next: AtomicUsize::new(0),
            is_asleep: AtomicBool::new(is_own),
            is_own,
        };
        let now = Instant::now();
        Ok(Self {
            reader: Arc::new(reader),
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            room: vec![0; DATAGRAM_LEN_MAX],
            swept: now,
            alert_until: now,
            alert_for,
            is_watching: false,
        })
    }

    /// Returns whether nobody waits, nor did a moment ago: no turn is needed until this thread asks again.
    pub fn is_idle(&self) -> bool {
        self.reader.is_asleep.load(Ordering::SeqCst)
    }

    /// Begins to look at a socket of the owner's in each turn.
    ///
    /// # Errors
    /// What the system says.
    pub fn watch(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        if !self.is_watching {
            self.reader.registry.register(&mut SourceFd(&socket.as_raw_fd()), OWNERS, Interest::READABLE)?;
            self.is_watching = true;
        }
        Ok(())
    }

    /// Looks at it no more; while it is looked at, each datagram on it costs a little.
    ///
    /// # Errors
    /// What the system says.
    pub fn unwatch(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        if self.is_watching {
            self.reader.registry.deregister(&mut SourceFd(&socket.as_raw_fd()))?;
            self.is_watching = false;
        }
        Ok(())
    }

    /// Waits at most `pause` for replies and tells those who wait for them, or have waited too long. Returns whether
    /// something came on the owner's socket, which is said once.
    pub fn turn(&mut self, pause: Duration) -> bool {
        if let Err(error) = self.poll.poll(&mut self.events, Some(pause.min(IDLE_TICK)))
            && error.kind() != io::ErrorKind::Interrupted
        {
            tracing::error!("waiting for upstream replies: {error}");
            thread::sleep(TICK);
        }
        let mut is_owners = false;
        for event in &self.events {
            is_owners |= event.token() == OWNERS;
            let port = self.reader.ports.lock().get(&event.token()).cloned();
            if let Some(port) = port {
                port.read(&mut self.room);
            }
        }
        self.look_after(Instant::now());
        is_owners
    }

    /// Looks after ports that nobody uses.
    pub fn rest(&self) {
        self.reader.sweep(Instant::now());
    }

    /// Returns for how long [`Exchange::turn`] may wait without anybody's patience being overdrawn.
    pub const fn tick() -> Duration {
        TICK
    }

    /// Sees to it that nobody waits here any more: takes turns until nobody does.
    pub fn finish(mut self) {
        OWN.set(None);
        while self.reader.sweep(Instant::now()) {
            self.turn(TICK);
        }
    }

    /// Looks after ports and patience, if it is time.
    fn look_after(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept) < TICK {
            return;
        }
        self.swept = now;
        let is_asleep = &self.reader.is_asleep;
        if self.reader.sweep(now) {
            self.alert_until = now + self.alert_for;
        } else if now >= self.alert_until {
            is_asleep.store(true, Ordering::SeqCst);
        }
        // Whoever began to wait before it was marked asleep did not wake it.
        if is_asleep.load(Ordering::SeqCst) && self.reader.sweep(now) {
            is_asleep.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // A thread that ends may have taken it away before.
        let _ = OWN.try_with(|own| own.borrow_mut().take_if(|own| Arc::ptr_eq(own, &self.reader)));
    }
}
