//! A service manager for one service, as systemd is one: it hears what the service says (`NOTIFY_SOCKET`), keeps the
//! sockets that it is given (`FDSTORE=1`), and passes them to the next process (`LISTEN_FDS`).

#![allow(unreachable_pub, reason = "the modules beside it use it; a test binary has nothing to reach it from")]

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::cmsg_space;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use crate::harness::WARM;

/// The most descriptors in one message.
const FDS_MAX: usize = 16;

/// The first descriptor that is passed.
const FIRST_FD: i32 = 3;

/// The manager; clones are the same one.
#[derive(Clone)]
pub struct Manager {
    shared: Arc<Shared>,
}

struct Shared {
    folder: TempDir,
    /// What the socket unit opened.
    opened: Mutex<Vec<(String, OwnedFd)>>,
    /// What the service gave.
    kept: Mutex<Vec<(String, OwnedFd)>>,
    /// Every line that the service said.
    lines: Mutex<Vec<String>>,
}

impl Manager {
    /// Begins to listen.
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let shared =
            Arc::new(Shared { folder, opened: Mutex::default(), kept: Mutex::default(), lines: Mutex::default() });
        let heard = Arc::downgrade(&shared);
        std::thread::spawn(move || listen(&socket, &heard));
        Self { shared }
    }

    /// Passes a socket to every process, as a socket unit does.
    pub fn open(&self, name: &str, socket: impl Into<OwnedFd>) {
        self.shared.opened.lock().unwrap().push((name.to_owned(), socket.into()));
    }

    /// The names of what is kept, sorted.
    pub fn kept(&self) -> Vec<String> {
        let mut names: Vec<String> = self.shared.kept.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// How often the service has said a line.
    pub fn heard(&self, line: &str) -> usize {
        self.shared.lines.lock().unwrap().iter().filter(|said| *said == line).count()
    }

    /// The built binary as the next process of the service; see `harness::greenlane`.
    pub fn command(&self) -> Command {
        // Only the process itself knows its number.
        let script = "export LISTEN_PID=$$; exec \"$0\" \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_greenlane")]).env_remove("RUST_LOG").env(WARM, "false");
        let (opened, kept) = (self.shared.opened.lock().unwrap(), self.shared.kept.lock().unwrap());
        let all: Vec<&(String, OwnedFd)> = opened.iter().chain(kept.iter()).collect();
        let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDS", all.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        command.env("NOTIFY_SOCKET", self.shared.folder.path().join("notify"));
        let fds = all
            .iter()
            .zip(FIRST_FD..)
            .map(|((_, fd), child_fd)| FdMapping { parent_fd: fd.as_fd().try_clone_to_owned().unwrap(), child_fd });
        command.fd_mappings(fds.collect()).unwrap();
        command
    }
}

/// Hears until nobody needs the manager any more.
fn listen(socket: &UnixDatagram, shared: &Weak<Shared>) {
    while shared.strong_count() > 0 {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut octets = [0; 4096];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let Ok(received) = recvmsg(socket, &mut [IoSliceMut::new(&mut octets)], &mut control, flags) else { continue };
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds: Vec<OwnedFd> = fds.flatten().collect();
        let Some(shared) = shared.upgrade() else { return };
        let text = String::from_utf8_lossy(&octets[..received.bytes]).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored").to_owned();
        let mut kept = shared.kept.lock().unwrap();
        if lines.contains(&"FDSTORE=1") {
            kept.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
        } else if lines.contains(&"FDSTOREREMOVE=1") {
            kept.retain(|(kept, _)| *kept != name);
        }
        shared.lines.lock().unwrap().extend(lines.into_iter().map(str::to_owned));
    }
}
