//! Datagrams in batches: `recvmmsg` and `sendmmsg` of Linux. The only module of this crate with `unsafe` code.
//!
//! A [`Batch`] owns the buffers of one thread: for each place the octets received, the sender's name, the control
//! messages, and the reply. An [`Outbox`] gathers replies that are made later, from any thread; a batch sends them. The pointers that the kernel is handed are laid anew before each call, from buffers that
//! live in the same value, and are not used after it: no pointer outlives the borrow that it was made from.
//!
//! Two steps make a call, so that all but the call itself runs under Miri: laying the headers is safe code, and the
//! call is a closure, which the tests replace by one that writes and reads through the headers as the kernel does.
//! `MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=8 cargo +nightly miri test --lib plain::` runs them.

#![allow(clippy::unnecessary_cast, reason = "the widths of these fields differ between libcs")]

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use socket2::Socket;

use super::Route;
use super::envelope::{self, CONTROL_LEN, Control, NAME_LEN, NAME_LEN_V4};
use crate::wire::UDP_SIZE;

/// The most datagrams of one call. More gain nothing that could be measured: the calls themselves are then a
/// hundredth of the cost.
const PLACES: usize = 64;

/// The fewest that are asked for: at a low rate one comes at a time, and laying headers for all places would be waste.
const PLACES_MIN: usize = 4;

/// The most replies that are gathered: what several turns at upstreams' replies bring.
const GATHERED_MAX: usize = 4 * PLACES;

/// Octets of a datagram that are kept: more than any client's question takes. A longer one is cut and parses no more.
const DATAGRAM_LEN_MAX: usize = 4096;

/// From one place's octets to the next: a cache line more than what is kept, or all places would contend for the
/// same sets of the processor's caches.
const STRIDE: usize = DATAGRAM_LEN_MAX + 64;

/// Buffers for the datagrams of one socket, used by one thread.
pub(super) struct Batch {
    octets: Box<[u8]>,
    names: [[u8; NAME_LEN]; PLACES],
    controls: [Control; PLACES],
    replies: Vec<Vec<u8>>,
    heads: Vec<libc::mmsghdr>,
    parts: Vec<libc::iovec>,
    /// Octets of a name in the socket's family.
    name_len: usize,
    /// Octets of control messages that may come: none where the socket has an address of its own.
    control_len: usize,
    /// How many are asked for next.
    wanted: usize,
    /// What was received and not yet answered.
    received: usize,
    /// Places with a reply, and the length of its control message.
    answered: Vec<(usize, usize)>,
}

/// Replies to questions of earlier batches, gathered to be sent together.
pub(super) struct Outbox {
    letters: Vec<Letter>,
    /// How many of them are to be sent.
    len: usize,
}

/// A reply with its envelope.
struct Letter {
    name: [u8; NAME_LEN],
    control: Control,
    control_len: usize,
    octets: Vec<u8>,
}

impl Outbox {
    /// Makes an empty one.
    pub(super) fn new() -> Self {
        Self { letters: Vec::new(), len: 0 }
    }

    /// Takes a reply in; returns false if there is no room.
    pub(super) fn push(&mut self, reply: &[u8], route: &Route) -> bool {
        if self.len == GATHERED_MAX {
            return false;
        }
        if self.len == self.letters.len() {
            let (name, control) = ([0; NAME_LEN], Control::default());
            self.letters.push(Letter { name, control, control_len: 0, octets: Vec::new() });
        }
        let letter = &mut self.letters[self.len];
        envelope::write_name(&route.client, &mut letter.name);
        letter.control_len = route.asked.map_or(0, |asked| envelope::write_control(&asked, &mut letter.control));
        letter.octets.clear();
        letter.octets.extend_from_slice(reply);
        self.len += 1;
        true
    }

    /// Returns whether nothing is to be sent.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What a call is handed: headers whose pointers are good until it returns.
type Heads<'a> = &'a mut [libc::mmsghdr];

impl Batch {
    /// Makes the buffers for a socket of a family; `tells_asked` says that it tells which address was asked.
    pub(super) fn new(is_ipv6: bool, tells_asked: bool) -> Self {
        // SAFETY: both are C structures of integers and pointers, for which all octets zero are a value.
        let (head, part) = unsafe { (std::mem::zeroed::<libc::mmsghdr>(), std::mem::zeroed::<libc::iovec>()) };
        Self {
            octets: vec![0; PLACES * STRIDE].into_boxed_slice(),
            names: [[0; NAME_LEN]; PLACES],
            controls: [Control::default(); PLACES],
            replies: (0..PLACES).map(|_| Vec::with_capacity(usize::from(UDP_SIZE))).collect(),
            heads: vec![head; PLACES],
            parts: vec![part; PLACES],
            name_len: if is_ipv6 { NAME_LEN } else { NAME_LEN_V4 },
            control_len: if tells_asked { CONTROL_LEN } else { 0 },
            wanted: PLACES_MIN,
            received: 0,
            answered: Vec::with_capacity(PLACES),
        }
    }

    /// Waits for a datagram, as long as the socket's time-out says, and takes what else is there.
    ///
    /// # Errors
    /// What the system says; nothing was received then.
    pub(super) fn receive(&mut self, socket: &Socket) -> io::Result<()> {
        self.receive_with(socket, libc::MSG_WAITFORONE)
    }

    /// Takes what is there. Returns whether there may be more.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::WouldBlock`] if nothing is there.
    pub(super) fn receive_now(&mut self, socket: &Socket) -> io::Result<bool> {
        let wanted = self.wanted;
        self.receive_with(socket, libc::MSG_DONTWAIT)?;
        Ok(self.received == wanted)
    }

    fn receive_with(&mut self, socket: &Socket, flags: libc::c_int) -> io::Result<()> {
        self.receive_by(|heads| {
            let (at, count) = (heads.as_mut_ptr(), heads.len() as libc::c_uint);
            // SAFETY: `at` points to `count` headers, each with pointers to buffers of the lengths that it tells,
            // all of them borrowed by the caller until this returns and aliased by nothing. The kernel keeps none.
            counted(unsafe { libc::recvmmsg(socket.as_raw_fd(), at, count, flags as _, ptr::null_mut()) })
        })
    }

    fn receive_by(&mut self, call: impl FnOnce(Heads<'_>) -> io::Result<usize>) -> io::Result<()> {
        self.received = 0;
        let wanted = self.wanted;
        let received = call(self.lay_empty(wanted))?.min(wanted);
        self.received = received;
        self.wanted = (received * 2).clamp(PLACES_MIN, PLACES);
        Ok(())
    }

    /// Yields what was received, as long as it is not answered.
    pub(super) fn datagrams(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.received).map(|i| self.datagram(i))
    }

    fn datagram(&self, i: usize) -> &[u8] {
        &self.octets[i * STRIDE..][..(self.heads[i].msg_len as usize).min(DATAGRAM_LEN_MAX)]
    }

    /// Has each datagram judged, and remembers the replies of those for which `judge` returns true.
    pub(super) fn answer(&mut self, mut judge: impl FnMut(&[u8], Route, &mut Vec<u8>) -> bool) {
        self.answered.clear();
        for i in 0..std::mem::take(&mut self.received) {
            let head = &self.heads[i];
            // A name of another length is no name.
            if head.msg_hdr.msg_namelen as usize != self.name_len {
                continue;
            }
            let Some(client) = envelope::read_name(&self.names[i][..self.name_len]) else { continue };
            let control_len = (head.msg_hdr.msg_controllen as usize).min(self.control_len);
            let asked = envelope::read_control(&self.controls[i].0[..control_len]);
            let len = (head.msg_len as usize).min(DATAGRAM_LEN_MAX);
            let datagram = &self.octets[i * STRIDE..][..len];
            if judge(datagram, Route { client, asked }, &mut self.replies[i]) {
                let control_len = asked.map_or(0, |asked| envelope::write_control(&asked, &mut self.controls[i]));
                self.answered.push((i, control_len));
            }
        }
    }

    /// Sends the replies. One that the system refuses is lost, as any datagram may be.
    pub(super) fn send(&mut self, socket: &Socket) {
        self.send_by(|heads| send(socket, heads));
    }

    /// Sends what was gathered, in the same manner.
    pub(super) fn send_gathered(&mut self, outbox: &mut Outbox, socket: &Socket) {
        self.send_gathered_by(outbox, |heads| send(socket, heads));
    }

    fn send_by(&mut self, call: impl FnMut(Heads<'_>) -> io::Result<usize>) {
        send_all(self.lay_replies(), call);
    }

    fn send_gathered_by(&mut self, outbox: &mut Outbox, mut call: impl FnMut(Heads<'_>) -> io::Result<usize>) {
        for letters in outbox.letters[..outbox.len].chunks_mut(PLACES) {
            send_all(self.lay_letters(letters), &mut call);
        }
        outbox.len = 0;
    }

    /// Lays headers for `count` datagrams to be received.
    fn lay_empty(&mut self, count: usize) -> Heads<'_> {
        let buffers = self.octets.chunks_exact_mut(STRIDE).zip(&mut self.names).zip(&mut self.controls);
        let headers = self.heads.iter_mut().zip(&mut self.parts);
        for (((octets, name), control), (head, part)) in buffers.zip(headers).take(count) {
            part.iov_base = octets.as_mut_ptr().cast();
            part.iov_len = DATAGRAM_LEN_MAX;
            lay(head, part, (name, self.name_len), (control, self.control_len));
        }
        &mut self.heads[..count]
    }

    /// Lays headers for all replies.
    fn lay_replies(&mut self) -> Heads<'_> {
        let headers = self.heads.iter_mut().zip(&mut self.parts);
        for (&(i, control_len), (head, part)) in self.answered.iter().zip(headers) {
            let reply = &mut self.replies[i];
            part.iov_base = reply.as_mut_ptr().cast();
            part.iov_len = reply.len();
            lay(head, part, (&mut self.names[i], self.name_len), (&mut self.controls[i], control_len));
        }
        &mut self.heads[..self.answered.len()]
    }

    /// Lays headers for as many letters as there are places, at most.
    fn lay_letters<'a>(&'a mut self, letters: &'a mut [Letter]) -> Heads<'a> {
        let len = letters.len().min(PLACES);
        let headers = self.heads.iter_mut().zip(&mut self.parts);
        for (letter, (head, part)) in letters.iter_mut().zip(headers) {
            part.iov_base = letter.octets.as_mut_ptr().cast();
            part.iov_len = letter.octets.len();
            lay(head, part, (&mut letter.name, self.name_len), (&mut letter.control, letter.control_len));
        }
        &mut self.heads[..len]
    }
}

fn send(socket: &Socket, heads: Heads<'_>) -> io::Result<usize> {
    let (at, count) = (heads.as_mut_ptr(), heads.len() as libc::c_uint);
    // SAFETY: as for receiving; of these buffers the kernel only reads.
    counted(unsafe { libc::sendmmsg(socket.as_raw_fd(), at, count, 0) })
}

/// Has all messages sent, by as many calls as it takes.
fn send_all(heads: Heads<'_>, mut call: impl FnMut(Heads<'_>) -> io::Result<usize>) {
    let mut sent = 0;
    while sent < heads.len() {
        match call(&mut heads[sent..]) {
            Ok(more) if more > 0 => sent += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The first of them cannot be sent: to a port 0, or forbidden by a filter of this host.
            _ => sent += 1,
        }
    }
}

/// Points a header at the buffers of one datagram; without control messages at none.
fn lay(
    head: &mut libc::mmsghdr,
    part: &mut libc::iovec,
    (name, name_len): (&mut [u8; NAME_LEN], usize),
    (control, control_len): (&mut Control, usize),
) {
    let head = &mut head.msg_hdr;
    head.msg_name = name.as_mut_ptr().cast();
    head.msg_namelen = name_len as _;
    head.msg_iov = part;
    head.msg_iovlen = 1;
    head.msg_control = if control_len == 0 { ptr::null_mut() } else { control.0.as_mut_ptr().cast() };
    head.msg_controllen = control_len as _;
    head.msg_flags = 0;
}

/// Takes what a call returned.
fn counted(returned: libc::c_int) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests;
