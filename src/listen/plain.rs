//! Plain DNS over UDP: one loop a socket.
//!
//! A datagram is looked at where it was received. Refusals and hits are answered in the loop; a miss gets a task of
//! its own with a copy of the datagram, so that it delays nobody. Tasks are bounded: beyond the bound a question is
//! dropped and counted, and the client's own retry finds the answer in the cache.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::meter::Dropped;
use super::{Access, Meter};
use crate::clock::Clock;
use crate::pipeline::{Pipeline, Tried};
use crate::wire::{self, Seen, Transport};

/// The most questions over UDP that wait for an upstream or for the set, over all sockets.
pub const WAITING_MAX: usize = 8192;

/// The largest datagram that UDP can carry; a question is far smaller, but what is cut would look malformed.
const DATAGRAM_LEN_MAX: usize = 65_535;

/// What all loops share.
#[derive(Clone, Debug)]
pub struct Plain {
    /// Answers.
    pub pipeline: Pipeline,
    /// Who may ask.
    pub access: Arc<Access>,
    /// Time.
    pub clock: Clock,
    /// Counters.
    pub meter: Meter,
    /// [`WAITING_MAX`] permits; the daemon waits for all of them when it drains.
    pub waiting: Arc<Semaphore>,
}

impl Plain {
    /// Answers what comes in on `socket` until `stop`.
    pub async fn run(self, socket: Arc<UdpSocket>, stop: CancellationToken) {
        let mut datagram = vec![0; DATAGRAM_LEN_MAX];
        let mut out = Vec::with_capacity(DATAGRAM_LEN_MAX);
        loop {
            let received = tokio::select! {
                received = socket.recv_from(&mut datagram) => received,
                () = stop.cancelled() => return,
            };
            match received {
                Ok((len, client)) => {
                    if self.handle(&datagram[..len], client, &socket, &mut out) {
                        send(&socket, &out, client).await;
                    }
                }
                // An ICMP error of an earlier reply, or a short lack of memory: neither ends the service.
                Err(error) => {
                    tracing::debug!("receiving from UDP clients: {error}");
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Looks at a datagram; returns whether a reply stands in `out`.
    fn handle(&self, datagram: &[u8], client: SocketAddr, socket: &Arc<UdpSocket>, out: &mut Vec<u8>) -> bool {
        let view = match wire::see(datagram, Transport::Udp) {
            Seen::Question(view) => view,
            Seen::Refuse(refusal) => {
                self.pipeline.refuse(&refusal, out);
                return true;
            }
            Seen::Silence => {
                self.meter.dropped(Dropped::Nonsense);
                return false;
            }
        };
        self.meter.query(Transport::Udp, view.qtype());
        if !self.access.allows(client.ip()) {
            self.pipeline.refuse(&view.refuse(wire::rcode::REFUSED), out);
            return true;
        }
        match self.pipeline.try_answer(&view, Transport::Udp, self.clock.now(), out) {
            Tried::Answered => true,
            Tried::Drop => false,
            Tried::Miss => {
                match Arc::clone(&self.waiting).try_acquire_owned() {
                    Ok(permit) => {
                        let way = self.pipeline.clone();
                        tokio::spawn(answer(way, datagram.to_vec(), client, Arc::clone(socket), permit));
                    }
                    Err(_) => self.meter.dropped(Dropped::Overload),
                }
                false
            }
        }
    }
}

/// Answers a miss.
async fn answer(
    pipeline: Pipeline,
    datagram: Vec<u8>,
    client: SocketAddr,
    socket: Arc<UdpSocket>,
    _permit: OwnedSemaphorePermit,
) {
    // The same octets gave a question before.
    let Seen::Question(view) = wire::see(&datagram, Transport::Udp) else { return };
    let mut out = Vec::with_capacity(wire::limit(&view, Transport::Udp));
    pipeline.resolve(&view, Transport::Udp, client.ip(), &mut out).await;
    send(&socket, &out, client).await;
}

/// Sends a reply. One that the system refuses is lost, as any datagram may be.
async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!("sending to a UDP client: {error}");
    }
}
