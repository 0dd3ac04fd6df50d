//! The line between the keeper and a process that it keeps: words of one octet, some with descriptors.
//!
//! It is a pair of sockets that keep messages apart (SOCK_SEQPACKET). The child finds its end as standard input; the
//! other end closes with the keeper, so that the end of the line means that nobody is there any more.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_type;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The most descriptors in one message; the system allows 253.
const FDS_MAX: usize = 128;

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// To the resolver: listening sockets, those of DNS first. More may follow.
    Sockets,
    /// To the resolver: these were all.
    Begin,
    /// To both: the ways to each other, one for each firewall, in their order.
    Ways,
    /// To the agent: read the files again.
    Reload,
    /// From the resolver: everything runs.
    Ready,
    /// From either: the other one does not speak as it should.
    Broken,
    /// From the resolver: the ways are lost.
    Apart,
    /// From the resolver: everything still runs.
    Alive,
}

impl Word {
    const ALL: [Self; 8] =
        [Self::Sockets, Self::Begin, Self::Ways, Self::Reload, Self::Ready, Self::Broken, Self::Apart, Self::Alive];

    fn octet(self) -> u8 {
        self as u8 + b'A'
    }
}

/// One end of a line.
#[derive(Debug)]
pub struct Line(OwnedFd);

/// Makes two connected sockets that keep messages apart.
///
/// # Errors
/// What the system says.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

impl Line {
    /// Takes an end of a [`pair`].
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Takes standard input, which becomes empty.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`] if it is no line, so that nobody keeps this process.
    pub fn of_stdin() -> io::Result<Self> {
        let line = io::stdin().as_fd().try_clone_to_owned()?;
        if socket_type(&line) != Ok(SocketType::SEQPACKET) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        // Commands that we run must not find the line there.
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Ok(Self(line))
    }

    /// Says a word; never waits.
    ///
    /// # Errors
    /// What the system says; the other end is gone or stuck then.
    pub fn say(&self, word: Word, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if fds.is_empty() {
            return self.say_some(word, &[]);
        }
        fds.chunks(FDS_MAX).try_for_each(|some| self.say_some(word, some))
    }

    fn say_some(&self, word: Word, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let octet = [word.octet()];
        sendmsg(&self.0, &[IoSlice::new(&octet)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Waits for a word; `None` once the other end is gone.
    ///
    /// # Errors
    /// What the system says, or [`io::ErrorKind::InvalidData`] for what is no word.
    pub fn hear(&self) -> io::Result<Option<(Word, Vec<OwnedFd>)>> {
        self.receive(RecvFlags::CMSG_CLOEXEC)
    }

    /// Takes a word that is there.
    ///
    /// # Errors
    /// As [`Self::hear`], and [`io::ErrorKind::WouldBlock`] if none is there.
    pub fn hear_now(&self) -> io::Result<Option<(Word, Vec<OwnedFd>)>> {
        self.receive(RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
    }

    /// Waits that long, and returns whether the other end is gone.
    pub fn ends_within(&self, span: Duration) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::empty())];
        let timeout = Timespec::try_from(span).ok();
        // A hang-up is told unasked; interrupted means that it is looked for a bit earlier.
        let _ = poll(&mut fds, timeout.as_ref());
        fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn receive(&self, flags: RecvFlags) -> io::Result<Option<(Word, Vec<OwnedFd>)>> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut octets = [0; 2];
        let received = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut octets)], &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                // A peer that is gone with words of ours unread.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                received => break received?,
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        let fds = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
                _ => None,
            })
            .flatten()
            .collect();
        match Word::ALL.into_iter().find(|word| octets[..received.bytes] == [word.octet()]) {
            Some(word) => Ok(Some((word, fds))),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::send;

    use super::*;

    fn line() -> (Line, Line) {
        let (ours, theirs) = pair().unwrap();
        (Line::new(ours), Line::new(theirs))
    }

    #[test]
    fn words_arrive_with_their_descriptors_until_the_line_ends() {
        let (ours, theirs) = line();
        let many: Vec<OwnedFd> = (0..130).map(|_| File::open("/dev/null").unwrap().into()).collect();
        ours.say(Word::Ready, &[]).unwrap();
        ours.say(Word::Sockets, &many.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
        drop(ours);
        let heard = |line: &Line| line.hear().unwrap().map(|(word, fds)| (word, fds.len()));
        assert_eq!(heard(&theirs), Some((Word::Ready, 0)));
        assert_eq!(heard(&theirs), Some((Word::Sockets, 128)));
        assert_eq!(heard(&theirs), Some((Word::Sockets, 2)));
        assert_eq!(heard(&theirs), None);
    }

    #[test]
    fn what_is_no_word_is_an_error() {
        for octets in [&b"!"[..], b"AB", b"ABC", b"\0"] {
            let (ours, theirs) = line();
            send(&ours.0, octets, SendFlags::NOSIGNAL).unwrap();
            assert_eq!(theirs.hear().unwrap_err().kind(), io::ErrorKind::InvalidData, "{octets:?}");
        }
        let (_ours, theirs) = line();
        assert_eq!(theirs.hear_now().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_child_that_does_not_listen_is_not_waited_for() {
        let (ours, _theirs) = line();
        while ours.say(Word::Reload, &[]).is_ok() {}
    }
}
