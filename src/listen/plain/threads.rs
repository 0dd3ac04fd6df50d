//! The threads of the batched listener: one a socket.
//!
//! A thread sleeps in the kernel until a datagram comes; nothing wakes it in between. To end it, its socket is shut
//! down for reading: that wakes it, and replies of misses can still be sent.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Shutdown};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{MsgHdr, SockAddr, Socket};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::batch::Batch;
use super::envelope::{self, Control};
use super::{Desk, Door, Route};
use crate::metrics::Lane;
use crate::pipeline::Near;
use crate::wire::Transport;

/// How long a thread waits after the system refused to give it datagrams, such as for lack of memory.
const PAUSE: Duration = Duration::from_millis(1);

/// From how many datagrams on it pays to look at all of them before the first is answered.
const FORESEEN_MIN: usize = 4;

/// Answers what comes in on the sockets until `stop`, or until one thread ends.
pub(super) async fn read(desk: Desk, sockets: Vec<Socket>, stop: CancellationToken) {
    let sockets: Vec<Arc<Socket>> = sockets.into_iter().map(Arc::new).collect();
    let halt = Halt { is_over: Arc::default(), sockets: sockets.clone() };
    let ended = CancellationToken::new();
    // Nothing is sent: the channel closes when the last thread has dropped its end.
    let (running, mut all_ended) = mpsc::channel::<()>(1);
    for (i, socket) in sockets.into_iter().enumerate() {
        let (desk, is_over) = (desk.clone(), Arc::clone(&halt.is_over));
        let (ended, running) = (ended.clone().drop_guard(), running.clone());
        let work = move || {
            let _guards = (ended, running);
            if let Err(error) = serve(&desk, &socket, &is_over) {
                tracing::error!("reading from UDP clients: {error}");
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
struct Halt {
    is_over: Arc<AtomicBool>,
    sockets: Vec<Arc<Socket>>,
}

impl Drop for Halt {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for socket in &self.sockets {
            // Linux says that it is not connected, and wakes the reader all the same.
            let _ = socket.shutdown(Shutdown::Read);
        }
    }
}

/// Answers what comes in on one socket.
///
/// # Errors
/// What the system says to the first looks at the socket; later errors are waited out.
fn serve(desk: &Desk, socket: &Arc<Socket>, is_over: &AtomicBool) -> io::Result<()> {
    let _lane = Lane::take();
    let tells_asked = tell_asked(socket)?;
    socket.set_nonblocking(false)?;
    let is_ipv6 = socket.local_addr()?.is_ipv6();
    let mut batch = Batch::new(is_ipv6, tells_asked);
    let mut near = Near::new();
    let door = Door::Batched(Arc::clone(socket));
    while !is_over.load(Ordering::Relaxed) {
        match batch.receive(socket) {
            Ok(()) => {
                let mut moment = desk.front.moment_near(&mut near);
                if batch.datagrams().len() >= FORESEEN_MIN {
                    moment.foresee(batch.datagrams(), Transport::Udp);
                }
                batch.answer(|datagram, route, out| desk.judge(&mut moment, datagram, route, &door, out));
                batch.send(socket);
                moment.end();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::debug!("receiving from UDP clients: {error}");
                thread::sleep(PAUSE);
            }
        }
    }
    Ok(())
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

/// Sends the reply of a miss. It does not wait for room: this is a task's thread.
pub(super) fn send(socket: &Socket, reply: &[u8], route: &Route) -> io::Result<()> {
    let (client, parts) = (SockAddr::from(route.client), [IoSlice::new(reply)]);
    let mut control = Control::default();
    let control_len = route.asked.map_or(0, |asked| envelope::write_control(&asked, &mut control));
    let message = MsgHdr::new().with_addr(&client).with_buffers(&parts);
    let message = if control_len > 0 { message.with_control(&control.0[..control_len]) } else { message };
    socket.sendmsg(&message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).map(|_| ())
}
