//! The same listener without `unsafe`, for any system: tasks over `quinn-udp`.
//!
//! It is what other systems than Linux run, and the tests run it beside the batched one, which must do the same.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::Arc;

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use socket2::Socket;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Asked, Desk, Door, Route};
use crate::wire::UDP_SIZE;

/// Octets for what one receive yields: a whole datagram, or several that the system has joined.
const BUFFER_LEN: usize = 65_535;

/// A socket with what `quinn-udp` knows of it.
pub(super) struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Udp {
    fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { socket, state })
    }

    /// Sends a reply without waiting for room.
    pub(super) fn send(&self, reply: &[u8], route: &Route) -> io::Result<()> {
        let transmit = transmit(reply, route);
        self.socket.try_io(Interest::WRITABLE, || self.state.try_send((&self.socket).into(), &transmit))
    }

    /// Sends a reply and waits for room; one that the system refuses is lost.
    async fn send_when_ready(&self, reply: &[u8], route: &Route) {
        let transmit = transmit(reply, route);
        let send = || self.state.try_send((&self.socket).into(), &transmit);
        if let Err(error) = self.socket.async_io(Interest::WRITABLE, send).await {
            tracing::debug!("sending to a UDP client: {error}");
        }
    }

    async fn receive(&self, buffers: &mut [Vec<u8>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        self.socket.async_io(Interest::READABLE, || self.receive_now(buffers, metas)).await
    }

    /// Takes what is there, whether the runtime has heard of it or not.
    fn receive_now(&self, buffers: &mut [Vec<u8>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        let mut parts: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        self.state.recv((&self.socket).into(), &mut parts, metas)
    }
}

fn transmit<'a>(reply: &'a [u8], route: &Route) -> Transmit<'a> {
    let src_ip = route.asked.map(|asked| asked.addr);
    Transmit { destination: route.client, ecn: None, contents: reply, segment_size: None, src_ip }
}

/// The most reads of a loop that ends; see the other listener.
const LAST_READS_MAX: usize = 1024;

/// Answers what comes in on the sockets until `stop`, or until one of them fails.
pub(super) async fn read(desk: Desk, sockets: Vec<Socket>, stop: CancellationToken) {
    let mut loops = JoinSet::new();
    for socket in sockets {
        let (desk, stop) = (desk.clone(), stop.clone());
        loops.spawn(async move {
            if let Err(error) = serve(&desk, socket, &stop).await {
                tracing::error!("reading from UDP clients: {error}");
            }
        });
    }
    drop(desk);
    loops.join_next().await;
    if !stop.is_cancelled() {
        loops.shutdown().await;
    }
    while loops.join_next().await.is_some() {}
}

/// Answers what comes in on one socket, at the end what waits in it by then.
async fn serve(desk: &Desk, socket: Socket, stop: &CancellationToken) -> io::Result<()> {
    let udp = Arc::new(Udp::new(socket)?);
    let door = Door::Portable(Arc::clone(&udp));
    let mut buffers = vec![vec![0; BUFFER_LEN]; BATCH_SIZE];
    let mut metas = vec![RecvMeta::default(); BATCH_SIZE];
    let mut out = Vec::with_capacity(usize::from(UDP_SIZE));
    let mut last_reads = 0;
    while last_reads < LAST_READS_MAX {
        let received = match stop.is_cancelled() {
            true => {
                last_reads += 1;
                udp.receive_now(&mut buffers, &mut metas)
            }
            false => tokio::select! {
                received = udp.receive(&mut buffers, &mut metas) => received,
                () = stop.cancelled() => continue,
            },
        };
        let count = match received {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && last_reads > 0 => break,
            // An ICMP error of an earlier reply, or a short lack of memory: neither ends the service.
            Err(error) => {
                tracing::debug!("receiving from UDP clients: {error}");
                tokio::task::yield_now().await;
                continue;
            }
        };
        for (buffer, meta) in buffers.iter().zip(&metas).take(count) {
            let route = route(meta);
            for datagram in datagrams(buffer, meta) {
                let mut moment = desk.front.moment();
                let is_answered = desk.judge(&mut moment, datagram, route, &door, &mut out);
                moment.end();
                if is_answered {
                    udp.send_when_ready(&out, &route).await;
                }
            }
        }
    }
    Ok(())
}

/// Yields the datagrams of one buffer; an empty one counts, too.
fn datagrams<'a>(buffer: &'a [u8], meta: &RecvMeta) -> impl Iterator<Item = &'a [u8]> {
    let octets = &buffer[..meta.len.min(buffer.len())];
    octets.chunks(meta.stride.max(1)).chain(octets.is_empty().then_some(octets))
}

fn route(meta: &RecvMeta) -> Route {
    let client: SocketAddr = meta.addr;
    // Nothing can be sent from a group's address.
    let asked = meta.dst_ip.filter(|addr| !addr.is_multicast()).map(|addr| Asked { addr, interface: 0 });
    Route { client, asked }
}
