//! Sockets to nf_tables: transactions, questions, and word of what others change.
//!
//! The kernel works a request off inside `send`, so by the time that `send` returns every acknowledgement lies in the
//! socket: they are read until none is left, and what belongs to an earlier transaction is passed over. A transaction
//! whose acknowledgement is missing has an unknown outcome, which is an error of its own.

use std::borrow::Cow;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::attr::Attrs;
use super::message::{self, Batch, Body, Extent, Kind, Messages, Sealed, TableFamily};

/// Room for what one read brings; the kernel fills at most 32 KiB of a dump at once, and more of errors never.
const READ_LEN: usize = 256 * 1024;
/// What a transaction may take, and what may wait to be read. Only limits: memory is taken as needed.
const BUFFER_LEN: usize = 64 * 1024 * 1024;
/// What fits without the privilege to raise the limit.
const SEND_LEN_MIN: usize = 128 * 1024;
/// The multicast group of nf_tables, as a bit (linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES = 7).
const GROUP_NFTABLES: u32 = 1 << 6;
/// How often a dump is tried that changes interrupt.
const DUMP_TRIES: usize = 8;

/// linux/netfilter/nf_tables.h: NFTA_GEN_ID.
const GENERATION_ID: u16 = 1;

/// The flag of `recv` that never waits (linux/socket.h).
const DONT_WAIT: i32 = 0x40;

/// A socket for transactions and questions. What it creates with the owner flag lives as long as it does.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    port: u32,
    seq: u32,
    /// The most bytes of one transaction.
    send_len_max: usize,
    read: Vec<u8>,
    commits: u32,
    #[cfg(test)]
    kernel: super::testing::Kernel,
}

/// A message of a transaction that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Its number.
    pub(super) seq: u32,
    /// Why.
    pub(super) errno: Errno,
}

/// Why a transaction was not taken. Nothing of it is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// These messages failed.
    Messages(Vec<Refusal>),
    /// The transaction as such failed, or could not be sent.
    Whole(Errno),
    /// The acknowledgement is missing; what is in force is unknown.
    Unknown,
}

impl Link {
    /// Opens a socket. That works without privileges; using it does not.
    pub(super) fn open() -> io::Result<Self> {
        let (socket, port) = socket(0)?;
        let send_len_max = match setsockopt(&socket, sockopt::SndBufForce, &BUFFER_LEN) {
            Ok(()) => BUFFER_LEN / 2,
            Err(_) => SEND_LEN_MIN,
        };
        Ok(Self {
            socket,
            port,
            seq: 1,
            send_len_max,
            read: Vec::with_capacity(READ_LEN),
            commits: 0,
            #[cfg(test)]
            kernel: super::testing::Kernel::default(),
        })
    }

    /// Turns it to a kernel with whims.
    #[cfg(test)]
    pub(super) fn to(self, kernel: super::testing::Kernel) -> Self {
        Self { kernel, ..self }
    }

    /// Returns the number by which the kernel names this socket in messages about changes.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Returns the number for the first message of the next transaction.
    pub(super) fn seq(&self) -> u32 {
        self.seq
    }

    /// Returns how many bytes a transaction may have.
    pub(super) fn send_len_max(&self) -> usize {
        self.send_len_max
    }

    /// Commits a transaction and reads every acknowledgement.
    pub(super) fn commit(&mut self, batch: &Sealed) -> Result<(), NotTaken> {
        self.seq = batch.next;
        let bytes = self.outgoing(batch)?;
        send(&self.socket, &bytes).map_err(NotTaken::Whole)?;
        let mut refusals = Vec::new();
        let (mut whole, mut is_acknowledged) = (None, false);
        loop {
            match read(&self.socket, &mut self.read) {
                Ok(true) => {}
                Ok(false) => break,
                // Acknowledgements were lost; the rest is read, and the outcome is unknown.
                Err(Errno::ENOBUFS) => whole = whole.or(Some(Errno::ENOBUFS)),
                Err(errno) => return Err(NotTaken::Whole(errno)),
            }
            for message in Messages(&self.read) {
                let is_ours = message.seq.wrapping_sub(batch.begin) <= batch.last.wrapping_sub(batch.begin);
                let Body::Status(code) = message.body else { continue };
                if !is_ours {
                    continue;
                }
                is_acknowledged |= message.seq == batch.last;
                if code != 0 {
                    let errno = Errno::from_raw(code);
                    if message.seq == batch.begin {
                        whole = Some(errno);
                    } else {
                        refusals.push(Refusal { seq: message.seq, errno });
                    }
                }
            }
        }
        match whole {
            Some(Errno::ENOBUFS) => Err(NotTaken::Unknown),
            Some(errno) => Err(NotTaken::Whole(errno)),
            None if !refusals.is_empty() => Err(NotTaken::Messages(refusals)),
            None if is_acknowledged && !self.loses_acknowledgement() => {
                self.commits = self.commits.wrapping_add(1);
                Ok(())
            }
            None => Err(NotTaken::Unknown),
        }
    }

    #[cfg(not(test))]
    fn outgoing<'a>(&mut self, batch: &'a Sealed) -> Result<Cow<'a, [u8]>, NotTaken> {
        Ok(Cow::Borrowed(&batch.bytes))
    }

    /// What goes to the kernel in a test that plays another one.
    #[cfg(test)]
    fn outgoing<'a>(&mut self, batch: &'a Sealed) -> Result<Cow<'a, [u8]>, NotTaken> {
        let kernel = self.kernel.clone();
        kernel.wait();
        Ok(kernel.alter(self, batch)?.map_or(Cow::Borrowed(batch.bytes.as_slice()), Cow::Owned))
    }

    fn loses_acknowledgement(&self) -> bool {
        #[cfg(test)]
        return self.kernel.loses_acknowledgement();
        #[cfg(not(test))]
        false
    }

    /// Waits until a transaction could be committed, and commits none: an empty one takes its turn behind others',
    /// and leaves no trace.
    pub(super) fn queue_up(&mut self) -> Result<(), Errno> {
        #[cfg(test)]
        self.kernel.wait();
        let empty = Batch::empty(self.seq);
        self.seq = empty.next;
        send(&self.socket, &empty.bytes)?;
        while read(&self.socket, &mut self.read)? {}
        Ok(())
    }

    /// Returns how many transactions this link has committed.
    pub(super) fn commits(&self) -> u32 {
        self.commits
    }

    /// Returns the generation of the ruleset, which every transaction raises by one.
    pub(super) fn generation(&mut self) -> Option<u32> {
        let mut generation = None;
        let take = |attrs: &[u8]| generation = Attrs(attrs).number(GENERATION_ID);
        self.ask(Kind::GetGeneration, TableFamily::Inet, |_| {}, take).ok()?;
        generation
    }

    /// Asks for one thing and hands its attributes to `take`; returns whether it is there.
    pub(super) fn ask(
        &mut self,
        kind: Kind,
        family: TableFamily,
        fill: impl Fn(&mut Vec<u8>),
        take: impl FnMut(&[u8]),
    ) -> Result<bool, Errno> {
        match self.tell(kind, family, Extent::One, fill, take) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Asks for all things of a kind and hands each one's attributes to `take`. A dump that a change interrupts is asked
    /// for anew, from a new `state`; the last one tried counts.
    pub(super) fn dump<S>(
        &mut self,
        kind: Kind,
        family: TableFamily,
        fill: impl Fn(&mut Vec<u8>),
        state: impl Fn() -> S,
        mut take: impl FnMut(&mut S, &[u8]),
    ) -> Result<S, Errno> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut taken = state();
            let is_interrupted = self.tell(kind, family, Extent::All, &fill, |attrs| take(&mut taken, attrs));
            match is_interrupted {
                Ok(false) => return Ok(taken),
                Ok(true) | Err(Errno::EINTR) if tries < DUMP_TRIES => {}
                Ok(true) => return Ok(taken),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Asks, and hands each answer's attributes to `take`; returns whether a change interrupted the answer.
    fn tell(
        &mut self,
        kind: Kind,
        family: TableFamily,
        extent: Extent,
        fill: impl Fn(&mut Vec<u8>),
        mut take: impl FnMut(&[u8]),
    ) -> Result<bool, Errno> {
        #[cfg(test)]
        self.kernel.hears()?;
        let seq = self.seq;
        self.seq = seq.wrapping_add(1);
        send(&self.socket, &message::question(kind, family, extent, seq, fill))?;
        let (mut is_interrupted, mut is_answered) = (false, false);
        while read(&self.socket, &mut self.read)? {
            for message in Messages(&self.read).filter(|message| message.seq == seq) {
                is_interrupted |= message.is_interrupted;
                match message.body {
                    Body::Status(0) | Body::Other => {}
                    Body::Status(code) => return Err(Errno::from_raw(code)),
                    Body::Done => return Ok(is_interrupted),
                    Body::Thing { attrs, .. } => {
                        is_answered = true;
                        take(attrs);
                    }
                }
            }
        }
        // A dump is told to its end while it is read; one that stops before has lost something.
        if is_answered && extent == Extent::One { Ok(is_interrupted) } else { Err(Errno::EINTR) }
    }
}

/// A socket that hears of every change in the ruleset of this network namespace.
#[derive(Debug)]
pub(super) struct Monitor {
    socket: Socket,
    read: Vec<u8>,
}

/// What [`Monitor::drain`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// All that there was.
    All,
    /// More than there was room for: some changes were not told.
    Lost,
}

impl Monitor {
    /// Opens the socket; changes from now on are heard. Needs CAP_NET_ADMIN.
    pub(super) fn open() -> io::Result<Self> {
        let (socket, _) = socket(GROUP_NFTABLES)?;
        // Without it the default must do: losses are noticed.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_LEN);
        Ok(Self { socket, read: Vec::with_capacity(READ_LEN) })
    }

    /// Leaves it less room.
    #[cfg(test)]
    pub(super) fn shrink(&self, len: usize) {
        setsockopt(&self.socket, sockopt::RcvBufForce, &len).unwrap();
    }

    /// Waits at most `patience` for something to be heard; returns whether it was.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let millis = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX);
        // Whatever else ends it early, the socket is read next.
        poll(&mut fds, PollTimeout::from(millis)).is_ok_and(|ready| ready > 0)
    }

    /// Hands every message that waits to `take`: who made the change, the message's number, its family, its attributes.
    pub(super) fn drain(&mut self, mut take: impl FnMut(u32, u16, u8, &[u8])) -> Result<Heard, Errno> {
        let mut heard = Heard::All;
        loop {
            match read(&self.socket, &mut self.read) {
                Ok(true) => {}
                Ok(false) => return Ok(heard),
                Err(Errno::ENOBUFS) => {
                    heard = Heard::Lost;
                    continue;
                }
                Err(errno) => return Err(errno),
            }
            for message in Messages(&self.read) {
                if let Body::Thing { kind, family, attrs } = message.body {
                    take(message.port, kind, family, attrs);
                }
            }
        }
    }
}

fn socket(groups: u32) -> io::Result<(Socket, u32)> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind(&SocketAddr::new(0, groups))?;
    let mut addr = SocketAddr::new(0, 0);
    socket.get_address(&mut addr)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // Errors need not bring the message along that they are about.
    socket.set_cap_ack(true)?;
    Ok((socket, addr.port_number()))
}

fn send(socket: &Socket, bytes: &[u8]) -> Result<(), Errno> {
    loop {
        match socket.send(bytes, 0) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(errno(&error)),
        }
    }
}

/// Reads what lies in the socket next; `false` if nothing does.
fn read(socket: &Socket, buffer: &mut Vec<u8>) -> Result<bool, Errno> {
    loop {
        buffer.clear();
        match socket.recv(buffer, DONT_WAIT) {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => {
                buffer.clear();
                return Err(errno(&error));
            }
        }
    }
}

/// Returns the number that the system gave an error.
pub(super) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
