//! The service manager, as systemd is one: sockets that it passes to us, sockets that it keeps for our successor, and
//! what it is told.
//!
//! Sockets are passed by number (`LISTEN_FDS`), each with a name (`LISTEN_FDNAMES`): that of a socket unit
//! (`FileDescriptorName=`), or the one under which we gave it away ([`keep`]). What is kept comes back at the next start,
//! whatever ended us; questions wait in it meanwhile. Without a manager (`NOTIFY_SOCKET` is not set) nothing is kept, and
//! every word falls silent.

use std::fmt;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use sd_notify::NotifyState;
use socket2::Socket;
use thiserror::Error;

/// The variable with the sockets' names.
const NAMES: &str = "LISTEN_FDNAMES";

/// Keeps the manager from dropping a socket that has an error to tell, or was hung up: it may do so unless told not to.
const KEEP_ANYWAY: &str = "FDPOLL=0";

/// A socket that the manager has passed.
#[derive(Debug)]
pub struct Passed {
    /// Its place and name, for messages.
    pub label: Label,
    /// What it is.
    pub socket: Transport,
}

/// What a passed socket is called in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its place among those passed, from 1.
    pub place: usize,
    /// Its name; `unknown` if it has none.
    pub name: String,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "socket {} of the service manager (`{}`)", self.place, self.name.escape_default())
    }
}

/// A socket by its transport.
#[derive(Debug)]
pub enum Transport {
    /// UDP.
    Udp(Socket),
    /// TCP, listening.
    Tcp(TcpListener),
}

/// A socket that is none of ours to read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PassedError {
    /// Neither UDP nor TCP.
    #[error(
        "{0}: neither UDP nor TCP; the socket unit should have ListenDatagram=ADDRESS:PORT and ListenStream=ADDRESS:PORT"
    )]
    Unfit(Label),
    /// A connection that the manager accepted.
    #[error("{0}: a connection, expected a socket that listens; the socket unit should have Accept=no")]
    Connection(Label),
}

/// Takes the sockets that were passed to this process, in their order. Call it once, before any thread starts: the
/// variables that tell of them are removed.
///
/// # Errors
/// [`PassedError`] for the first that is no socket for questions.
pub fn passed() -> Result<Vec<Passed>, PassedError> {
    let names = std::env::var(NAMES).unwrap_or_default();
    let mut all = ListenFd::from_env();
    let mut names = names.split(':').filter(|name| !name.is_empty());
    (0..all.len())
        .map(|i| {
            let label = Label { place: i + 1, name: names.next().unwrap_or("unknown").to_owned() };
            if let Ok(Some(socket)) = all.take_udp_socket(i) {
                return Ok(Passed { label, socket: Transport::Udp(socket.into()) });
            }
            match all.take_tcp_listener(i) {
                Ok(Some(listener)) if socket_acceptconn(&listener) == Ok(true) => {
                    Ok(Passed { label, socket: Transport::Tcp(listener) })
                }
                Ok(Some(_)) => Err(PassedError::Connection(label)),
                Ok(None) | Err(_) => Err(PassedError::Unfit(label)),
            }
        })
        .collect()
}

/// Has the manager keep a socket for our successor, under a name of its own.
pub fn keep(name: &str, socket: &impl AsFd) {
    let states = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom(KEEP_ANYWAY)];
    if let Err(error) = sd_notify::notify_with_fds(&states, &[socket.as_fd()]) {
        tracing::warn!("the service manager cannot keep the socket `{name}`: {error}");
    }
}

/// Has the manager close what it keeps under a name.
pub fn forget(name: &str) {
    if let Err(error) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]) {
        tracing::warn!("the service manager cannot be told to close the socket `{name}`: {error}");
    }
}

/// Tells that questions are answered. A manager that does not listen is no reason to stop.
pub fn tell_ready() {
    let _ = sd_notify::notify(&[NotifyState::Ready]);
}

/// Returns how often the manager wants to hear that we are alive, if at all.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Tells that we are alive, to a manager that wants to hear it.
pub fn tell_alive() {
    if watchdog().is_some() {
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    }
}

/// Tells that the end has begun.
pub fn tell_stopping() {
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
}
