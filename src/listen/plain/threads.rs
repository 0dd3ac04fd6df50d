//! The threads of the batched listener: one a socket.
//!
//! A thread sleeps in the kernel until a datagram comes, or until it is time to see whether all is over. While questions
//! of its own wait for upstreams it waits for both ([`Exchange`]), and makes and sends the replies of those, too, all of one
//! round together. The socket is not touched to end a thread: another process may hold it, too, and read on. A thread that
//! ends answers what waits in the socket by then; what comes later is for whoever reads next.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use parking_lot::Mutex;
use socket2::{MsgHdr, SockAddr, Socket};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::batch::{Batch, Outbox};
use super::beats::{Beat, Beats};
use super::envelope::{self, Control};
use super::{Desk, Door, Route};
use crate::metrics::Lane;
use crate::pipeline::{Errands, Exchange, Near};
use crate::wire::Transport;

/// How long a thread waits after the system refused to give it datagrams, such as for lack of memory.
const PAUSE: Duration = Duration::from_millis(1);

/// How long a thread sleeps at most before it sees that all is over.
const NAP: Duration = Duration::from_millis(250);

/// The most reads of a thread that ends: together they take more than any socket's buffer holds, and a flood that never
/// lets it become empty does not keep us.
const LAST_READS_MAX: usize = 1024;

/// From how many datagrams on it pays to look at all of them before the first is answered.
const FORESEEN_MIN: usize = 4;

/// Answers what comes in on the sockets until `stop`, or until one thread ends.
pub(super) async fn read(desk: Desk, sockets: Vec<Socket>, beats: &Beats, stop: CancellationToken) {
    let halt = Halt(Arc::default());
    let ended = CancellationToken::new();
    // Nothing is sent: the channel closes when the last thread has dropped its end.
    let (running, mut all_ended) = mpsc::channel::<()>(1);
    for (i, socket) in sockets.into_iter().enumerate() {
        let (desk, socket, is_over) = (desk.clone(), Arc::new(socket), Arc::clone(&halt.0));
        let (ended, running, beat) = (ended.clone().drop_guard(), running.clone(), beats.join());
        let work = move || {
            let _lane = Lane::take();
            let guards = (ended, running);
            match serve(desk, socket, &is_over, &beat) {
                Ok(exchange) => {
                    // Those who wait are answered yet.
                    drop(guards);
                    exchange.finish();
                }
                Err(error) => tracing::error!("reading from UDP clients: {error}"),
            }
        };
        // On failure `work` is dropped, and `ended` with it.
        if let Err(error) = thread::Builder::new().name(format!("udp-{i}")).spawn(work) {
            tracing::error!("starting a thread for UDP clients: {error}");
        }
    }
    drop((desk, running));
    tokio::select! {
        () = stop.cancelled() => {}
        () = ended.cancelled() => {}
    }
    drop(halt);
    all_ended.recv().await;
}

/// Ends the threads when it is dropped.
struct Halt(Arc<AtomicBool>);

impl Drop for Halt {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A socket, and the replies of misses that its thread is about to send.
pub(super) struct Gate {
    socket: Arc<Socket>,
    outbox: Mutex<Gathering>,
}

/// What becomes of an outbox that was emptied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// More is gathered.
    Open,
    /// The thread goes to sleep.
    Closed,
}

struct Gathering {
    outbox: Outbox,
    /// Whether the thread sends what is gathered in a moment; else it may sleep.
    is_open: bool,
}

impl Gate {
    fn new(socket: Arc<Socket>) -> Self {
        Self { socket, outbox: Mutex::new(Gathering { outbox: Outbox::new(), is_open: false }) }
    }

    fn open(&self) {
        self.outbox.lock().is_open = true;
    }

    /// Sends what was gathered.
    fn flush(&self, batch: &mut Batch, then: Then) {
        let mut gathering = self.outbox.lock();
        gathering.is_open = then == Then::Open;
        if !gathering.outbox.is_empty() {
            batch.send_gathered(&mut gathering.outbox, &self.socket);
        }
    }

    /// Has the reply of a miss sent, together with others if the thread of the socket is at it. Does not wait for room:
    /// this may be a task's thread.
    pub(super) fn send(&self, reply: &[u8], route: &Route) -> io::Result<()> {
        // Held by the thread while it sends.
        if let Some(mut gathering) = self.outbox.try_lock()
            && gathering.is_open
            && gathering.outbox.push(reply, route)
        {
            return Ok(());
        }
        send(&self.socket, reply, route)
    }
}

/// Answers what comes in on one socket.
///
/// # Errors
/// What the system says to the first looks at the socket; later errors are waited out.
fn serve(desk: Desk, socket: Arc<Socket>, is_over: &AtomicBool, beat: &Beat) -> io::Result<Exchange> {
    let tells_asked = tell_asked(&socket)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(NAP))?;
    let is_ipv6 = socket.local_addr()?.is_ipv6();
    let mut rounds = Rounds {
        gate: Arc::new(Gate::new(Arc::clone(&socket))),
        batch: Batch::new(is_ipv6, tells_asked),
        near: Near::new(),
        exchange: Exchange::own()?,
        errands: Errands::gather(desk.runtime.clone()),
        desk,
        socket,
        is_ready: false,
    };
    while !is_over.load(Ordering::Relaxed) {
        beat.beat();
        if let Err(error) = rounds.round() {
            tracing::debug!("receiving from UDP clients: {error}");
            thread::sleep(PAUSE);
        }
    }
    rounds.last();
    Ok(rounds.exchange)
}

/// What one thread has in hand.
struct Rounds {
    desk: Desk,
    socket: Arc<Socket>,
    gate: Arc<Gate>,
    batch: Batch,
    near: Near,
    /// The questions that this thread has put to upstreams.
    exchange: Exchange,
    /// The tasks that this round asks for.
    errands: Errands,
    /// Whether clients' datagrams may be there although a turn of the exchange did not say so anew.
    is_ready: bool,
}

impl Rounds {
    /// Waits for datagrams of clients or upstreams, and does what they ask for.
    fn round(&mut self) -> io::Result<()> {
        let received = self.receive();
        if received.is_ok() && self.batch.datagrams().len() > 0 {
            self.answer();
        }
        self.errands.send_off();
        self.gate.flush(&mut self.batch, Then::Closed);
        received.or_else(|error| match error.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(()),
            _ => Err(error),
        })
    }

    /// Takes what clients have sent; waits for it, or for replies of upstreams, and tells those.
    fn receive(&mut self) -> io::Result<()> {
        if self.exchange.is_idle() {
            // Where nobody waits for an upstream a datagram costs the least.
            self.exchange.unwatch(self.socket.as_fd())?;
            let received = self.batch.receive(&self.socket);
            match &received {
                Ok(()) => self.gate.open(),
                Err(_) => self.exchange.rest(),
            }
            received
        } else {
            self.exchange.watch(self.socket.as_fd())?;
            self.gate.open();
            let pause = if self.is_ready { Duration::ZERO } else { Exchange::tick() };
            self.is_ready |= self.exchange.turn(pause);
            self.gate.flush(&mut self.batch, Then::Open);
            if std::mem::take(&mut self.is_ready) {
                self.is_ready = self.batch.receive_now(&self.socket)?;
            }
            Ok(())
        }
    }

    /// Answers what waits in the socket.
    fn last(&mut self) {
        for _ in 0..LAST_READS_MAX {
            match self.batch.receive_now(&self.socket) {
                Ok(_) => self.answer(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }

    fn answer(&mut self) {
        let Self { desk, gate, batch, near, .. } = self;
        let mut moment = desk.front.moment_near(near);
        if batch.datagrams().len() >= FORESEEN_MIN {
            moment.foresee(batch.datagrams(), Transport::Udp);
        }
        let door = Door::Batched(Arc::clone(gate));
        batch.answer(|datagram, route, out| desk.judge(&mut moment, datagram, route, &door, out));
        batch.send(&self.socket);
        moment.end();
    }
}

/// Has a socket that listens on all addresses tell which one was asked; returns whether it does.
fn tell_asked(socket: &Socket) -> io::Result<bool> {
    let local = socket.local_addr()?.as_socket();
    match local.map(|addr| addr.ip()).filter(IpAddr::is_unspecified) {
        None => return Ok(false),
        Some(IpAddr::V4(_)) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        Some(IpAddr::V6(_)) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(true)
}

fn send(socket: &Socket, reply: &[u8], route: &Route) -> io::Result<()> {
    let (client, parts) = (SockAddr::from(route.client), [IoSlice::new(reply)]);
    let mut control = Control::default();
    let control_len = route.asked.map_or(0, |asked| envelope::write_control(&asked, &mut control));
    let message = MsgHdr::new().with_addr(&client).with_buffers(&parts);
    let message = if control_len > 0 { message.with_control(&control.0[..control_len]) } else { message };
    socket.sendmsg(&message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).map(|_| ())
}
