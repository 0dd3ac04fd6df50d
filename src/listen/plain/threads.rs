//! The threads of the batched listener: one a socket.
//!
//! A thread sleeps in the kernel until a datagram comes, or until it is time to see whether all is over. The socket is
//! not touched to end it: another process may hold it, too, and read on. A thread that ends answers what waits in the
//! socket by then; what comes later is for whoever reads next.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{MsgHdr, SockAddr, Socket};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::batch::Batch;
use super::beats::{Beat, Beats};
use super::envelope::{self, Control};
use super::{Desk, Door, Route};
use crate::metrics::Lane;
use crate::pipeline::Near;
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
            let _guards = (ended, running);
            if let Err(error) = serve(&desk, &socket, &is_over, &beat) {
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
struct Halt(Arc<AtomicBool>);

impl Drop for Halt {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Answers what comes in on one socket.
///
/// # Errors
/// What the system says to the first looks at the socket; later errors are waited out.
fn serve(desk: &Desk, socket: &Arc<Socket>, is_over: &AtomicBool, beat: &Beat) -> io::Result<()> {
    let _lane = Lane::take();
    let tells_asked = tell_asked(socket)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(NAP))?;
    let is_ipv6 = socket.local_addr()?.is_ipv6();
    let mut batch = Batch::new(is_ipv6, tells_asked);
    let mut near = Near::new();
    let door = Door::Batched(Arc::clone(socket));
    let mut answer = |batch: &mut Batch| {
        let mut moment = desk.front.moment_near(&mut near);
        if batch.datagrams().len() >= FORESEEN_MIN {
            moment.foresee(batch.datagrams(), Transport::Udp);
        }
        batch.answer(|datagram, route, out| desk.judge(&mut moment, datagram, route, &door, out));
        batch.send(socket);
    };
    while !is_over.load(Ordering::Relaxed) {
        beat.beat();
        match batch.receive(socket) {
            Ok(()) => answer(&mut batch),
            // Nothing came during the nap.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                tracing::debug!("receiving from UDP clients: {error}");
                thread::sleep(PAUSE);
            }
        }
    }
    for _ in 0..LAST_READS_MAX {
        match batch.receive_now(socket) {
            Ok(()) => answer(&mut batch),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
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
