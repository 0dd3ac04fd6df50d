//! Plain DNS over UDP: one loop a socket.
//!
//! A datagram is looked at where it was received. Refusals and hits are answered in the loop; a miss gets a task of
//! its own with a copy of the datagram, so that it delays nobody. Tasks are bounded: beyond the bound a question is
//! dropped and counted, and the client's own retry finds the answer in the cache.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Front;
use super::meter::Dropped;
use crate::pipeline::Tried;
use crate::wire::Transport;

/// The most questions over UDP that wait for an upstream or for the set, over all sockets.
pub const WAITING_MAX: usize = 8192;

/// The largest datagram that UDP can carry; a question is far smaller, but what is cut would look malformed.
const DATAGRAM_LEN_MAX: usize = 65_535;

/// What all loops share.
#[derive(Clone, Debug)]
pub struct Plain {
    /// The pipeline behind the door.
    pub front: Front,
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
                    let datagram = &datagram[..len];
                    match self.front.quick(datagram, Transport::Udp, client.ip(), &mut out) {
                        Tried::Answered => send(&socket, &out, client).await,
                        Tried::Drop => {}
                        Tried::Miss => self.wait_for(datagram, client, &socket),
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

    /// Has a miss answered: where the upstream's reply is read, as a rule.
    fn wait_for(&self, datagram: &[u8], client: SocketAddr, socket: &Arc<UdpSocket>) {
        let Ok(permit) = Arc::clone(&self.waiting).try_acquire_owned() else {
            return self.front.meter.dropped(Dropped::Overload);
        };
        let (socket, runtime) = (Arc::clone(socket), Handle::current());
        self.front.slow_then(datagram, Transport::Udp, client.ip(), &runtime.clone(), move |reply| {
            match socket.try_send_to(reply, client) {
                // The system has no room for the moment.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let reply = reply.to_vec();
                    runtime.spawn(async move {
                        send(&socket, &reply, client).await;
                        drop(permit);
                    });
                }
                Err(error) => tracing::debug!("sending to a UDP client: {error}"),
                Ok(_) => drop(permit),
            }
        });
    }
}

/// Sends a reply. One that the system refuses is lost, as any datagram may be.
async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!("sending to a UDP client: {error}");
    }
}
