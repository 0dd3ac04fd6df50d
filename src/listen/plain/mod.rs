//! Plain DNS over UDP: refusals and hits are answered where they were received, misses where the upstream's reply is.
//!
//! ```text
//!  socket of a core ─▶ thread: Batch of up to 64 ─▶ Front::quick ─ answered ─▶ one send for all
//!                       ▲                               └─ miss ─▶ Front::slow_then ─▶ upstream
//!                       └─ Exchange: replies of upstreams ─▶ Gate ─ one send for all ─▶ same socket
//! ```
//!
//! On Linux each listen address has as many sockets as there are threads (`SO_REUSEPORT`), and each socket has a
//! thread of its own that sleeps in `recvmmsg`, so that a hit costs no hop, no allocation and no lock that another
//! core holds. The thread reads what upstreams reply to its own questions, too: a miss that teaches nothing new costs no
//! hop either, and the answers of a round leave together. What must be learned first, or turns out to take more than one
//! try over UDP, goes on in tasks, and its answer leaves from wherever it is made. Elsewhere, and where the tests ask for it, `portable` does the same in tasks, without `unsafe`.
//! Either way a reply leaves from the address that was asked, which matters where a socket listens on all of them.
//!
//! What waits for an upstream or for the set is bounded by [`WAITING_MAX`] permits: beyond it a question is dropped and
//! counted, and the client's own retry finds the answer in the cache.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use socket2::Socket;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Front;
use super::front::Moment;
use super::meter::{Dropped, Way};
use crate::pipeline::Tried;
use crate::wire::Transport;

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no safe binding of the batching calls reuses its buffers")]
mod batch;
mod beats;
#[cfg(target_os = "linux")]
mod envelope;
mod portable;
#[cfg(target_os = "linux")]
mod threads;

pub use beats::Beats;

/// The most questions over UDP that wait for an upstream or for the set, over all sockets.
pub const WAITING_MAX: usize = 8192;

/// How datagrams are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Threads that sleep in `recvmmsg`. Where there is no Linux it means the other.
    Batched,
    /// Tasks over `quinn-udp`.
    Portable,
}

impl Default for Backend {
    fn default() -> Self {
        if cfg!(target_os = "linux") { Self::Batched } else { Self::Portable }
    }
}

/// What all loops share.
#[derive(Clone, Debug)]
pub struct Plain {
    /// The pipeline behind the door.
    pub front: Front,
    /// [`WAITING_MAX`] permits; the daemon waits for all of them when it drains.
    pub waiting: Arc<Semaphore>,
    /// How it is done.
    pub backend: Backend,
    /// Where threads show that they are alive; tasks do not.
    pub beats: Beats,
}

impl Plain {
    /// Answers what comes in on the sockets of one listen address until `stop`, or until reading from one fails.
    pub async fn run(self, sockets: Vec<Socket>, stop: CancellationToken) {
        let desk = Desk { front: self.front, waiting: self.waiting, runtime: Handle::current() };
        match self.backend {
            #[cfg(target_os = "linux")]
            Backend::Batched => threads::read(desk, sockets, &self.beats, stop).await,
            _ => portable::read(desk, sockets, stop).await,
        }
    }
}

/// Which of our addresses a datagram asked: the one that its reply must come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    /// The address.
    addr: IpAddr,
    /// The interface it came in by; 0 where the reply may take any. Only a link-local address needs it (RFC 4007).
    interface: u32,
}

/// The way back of a reply.
#[derive(Clone, Copy, Debug)]
struct Route {
    /// Who asked.
    client: SocketAddr,
    /// Which of our addresses, where the system tells it.
    asked: Option<Asked>,
}

/// A socket, to send the reply of a miss.
#[derive(Clone)]
enum Door {
    #[cfg(target_os = "linux")]
    Batched(Arc<threads::Gate>),
    Portable(Arc<portable::Udp>),
}

impl Door {
    /// Sends a reply. One that the system refuses is lost, as any datagram may be.
    fn send(&self, reply: &[u8], route: &Route) {
        let sent = match self {
            #[cfg(target_os = "linux")]
            Self::Batched(gate) => gate.send(reply, route),
            Self::Portable(socket) => socket.send(reply, route),
        };
        if let Err(error) = sent {
            tracing::debug!("sending to a UDP client: {error}");
        }
    }
}

/// Where a loop brings what it received.
#[derive(Clone)]
struct Desk {
    front: Front,
    waiting: Arc<Semaphore>,
    /// Where tasks run that a miss may need.
    runtime: Handle,
}

impl Desk {
    /// Returns whether a datagram has its reply in `out`; a miss goes the slow way.
    fn judge(&self, moment: &mut Moment<'_>, datagram: &[u8], route: Route, door: &Door, out: &mut Vec<u8>) -> bool {
        let Some((datagram, client)) = moment.sender(datagram, route.client.ip()) else { return false };
        match moment.quick(datagram, Transport::Udp, client, out) {
            Tried::Answered => true,
            Tried::Drop => false,
            Tried::Miss => {
                self.hand_over((datagram, client), route, door, moment);
                false
            }
        }
    }

    /// Has a miss answered, its reply told from wherever it is made; when too many wait it is dropped and counted.
    fn hand_over(&self, (datagram, client): (&[u8], IpAddr), route: Route, door: &Door, moment: &Moment<'_>) {
        let Ok(permit) = Arc::clone(&self.waiting).try_acquire_owned() else {
            return self.front.meter.dropped(Dropped::Overload);
        };
        let (door, meter) = (door.clone(), self.front.meter.clone());
        let (began, brake) = (moment.began(), moment.brake(datagram, client));
        self.front.slow_then(datagram, Transport::Udp, client, &self.runtime, move |reply| {
            match brake {
                None => door.send(reply, &route),
                Some(brake) => brake.pass(reply, |reply| door.send(reply, &route)),
            }
            meter.answered(Transport::Udp, Way::Miss, began.elapsed(), 1);
            drop(permit);
        });
    }
}
