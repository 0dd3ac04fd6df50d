//! The firewall agent: programs nftables for a resolver that may not.
//!
//! ```text
//!   resolver: writer ─▶ outlet ─▶ remote ══ socket ══▶ serve ─▶ gate ─▶ engine ─▶ kernel    :agent
//!                                   ◀═ replies, state, metrics ══┘
//! ```
//! The resolver reads packets of strangers, so the agent believes it no more than an answer (`gate`): it takes hosts for
//! the learned sets, each of which passes the admission of the operator's files, `learn.never` and `learn.max-total` once
//! more; which tables there are, and every static prefix, it reads from the files itself. A resolver in a stranger's hands
//! can add public addresses up to the bound, and that is all.
//!
//! Each firewall has a socket and threads of its own on both sides. When the resolver ends, what it asked for stays until
//! its ends; the next one tells the whole set. When the agent ends, the sink is down at once; the next agent gets the
//! whole set and finds in the kernel what it left there.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

mod frame;
mod gate;
mod remote;
mod serve;

pub use gate::Rules;
pub use remote::{Meter as RemoteMeter, Remote, Remotes, connect};
pub use serve::{Agent, Read, Start, start};

use frame::FRAME_LEN_MAX;

/// How long a peer may leave our frames lying.
const SEND_PATIENCE: Duration = Duration::from_secs(10);

/// One end of the way between resolver and agent.
#[derive(Debug)]
struct Channel(OwnedFd);

/// What [`Channel::receive`] came back with.
enum Received<'a> {
    /// A frame; one octet longer than allowed if it was too long.
    Frame(&'a [u8]),
    /// None is there.
    Nothing,
    /// The peer is gone.
    End,
}

impl Channel {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        set_socket_timeout(&socket, Timeout::Send, Some(SEND_PATIENCE))?;
        Ok(Self(socket))
    }

    /// Sends a frame. An error means that the peer is gone or stuck.
    fn send(&self, octets: &[u8]) -> io::Result<()> {
        loop {
            match send(&self.0, octets, SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                sent => return Ok(sent.map(|_| ())?),
            }
        }
    }

    /// Waits for a frame.
    fn receive<'a>(&self, buffer: &'a mut Buffer) -> Received<'a> {
        self.receive_with(buffer, RecvFlags::empty())
    }

    /// Takes a frame that is there.
    fn receive_now<'a>(&self, buffer: &'a mut Buffer) -> Received<'a> {
        self.receive_with(buffer, RecvFlags::DONTWAIT)
    }

    fn receive_with<'a>(&self, buffer: &'a mut Buffer, flags: RecvFlags) -> Received<'a> {
        loop {
            return match recv(&self.0, &mut buffer.0[..], flags) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => Received::Nothing,
                Ok((_, 0)) | Err(_) => Received::End,
                Ok((_, len)) => Received::Frame(&buffer.0[..len.min(FRAME_LEN_MAX + 1)]),
            };
        }
    }

    /// Ends the connection for both sides; whoever waits in [`Self::receive`] wakes.
    fn close(&self) {
        // It may be closed already.
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

/// Room for a frame, and for one octet more, by which one that is too long shows.
struct Buffer(Box<[u8; FRAME_LEN_MAX + 1]>);

impl Buffer {
    fn new() -> Self {
        Self(Box::new([0; FRAME_LEN_MAX + 1]))
    }
}
