//! A server as a process: started on a core of its own, measured from `/proc`, ended by its pid.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::servers::{Place, Server};

/// Where the server runs, and where all else does.
pub(crate) const SERVER_CORE: usize = 0;
pub(crate) const LOAD_CORE: usize = 1;

/// Ticks a second in `/proc/PID/stat`, the same on every Linux (`USER_HZ`).
const TICKS: f64 = 100.0;

/// Times that a new server is asked, 20 ms each, before it counts as dead.
const TRIES: u32 = 500;

/// Puts this process, and so the load that it starts, on a core.
pub(crate) fn stay_on(core: usize) {
    let mut set = CpuSet::new();
    if set.set(core).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

/// A server that answers.
pub(crate) struct Running {
    child: Child,
    /// Where it answers, on 127.0.0.1.
    pub(crate) port: u16,
    /// What it writes goes when it does.
    _folder: TempDir,
}

impl Running {
    /// Starts a server, and waits until it answers.
    pub(crate) fn start(server: &Server, upstream: u16, folder: &Path) -> Result<Self, String> {
        let folder = TempDir::new_in(folder).map_err(|error| format!("no folder: {error}"))?;
        let place = Place { port: free_port()?, spare: free_port()?, upstream, folder: folder.path() };
        let argv = server.command(&place).map_err(|error| format!("configuration cannot be written: {error}"))?;
        let log = fs::File::create(folder.path().join("log")).map_err(|error| format!("no log: {error}"))?;
        let child = Command::new("taskset")
            .args(["-c", &SERVER_CORE.to_string()])
            .args(&argv)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("taskset (package util-linux) cannot be run: {error}"))?;
        let mut running = Self { child, port: place.port, _folder: folder };
        running.wait(server)?;
        Ok(running)
    }

    fn wait(&mut self, server: &Server) -> Result<(), String> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
        let _ = socket.set_read_timeout(Some(Duration::from_millis(20)));
        for id in 0..TRIES {
            // `probe.example.net. IN A`, RD set.
            let mut question = vec![(id >> 8) as u8, id as u8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            question.extend_from_slice(b"\x05probe\x07example\x03net\x00\x00\x01\x00\x01");
            let _ = socket.send_to(&question, (Ipv4Addr::LOCALHOST, self.port));
            let mut octets = [0; 512];
            if socket.recv(&mut octets).is_ok_and(|length| length > 3 && octets[3] & 0xf == 0) {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                let log = fs::read_to_string(self._folder.path().join("log")).unwrap_or_default();
                return Err(format!("ended with {status}: {}", log.trim()));
            }
        }
        Err(format!("{} gives no answer on port {}", server.name(), self.port))
    }

    /// CPU time of the process so far, user and system. Ticks are coarse and forget nothing, the threads' own times are
    /// exact and forget ended threads: the larger of the two.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let pid = self.child.id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks: f64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let nanos: f64 = threads
            .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
            .filter_map(|stat| stat.split_whitespace().next()?.parse::<f64>().ok())
            .sum();
        (ticks / TICKS).max(nanos / 1e9)
    }

    /// Resident octets.
    pub(crate) fn resident_bytes(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        kib.unwrap_or(0.0) * 1024.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        for _ in 0..200 {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that UDP and TCP have free now.
fn free_port() -> Result<u16, String> {
    for _ in 0..100 {
        let Ok(tcp) = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) else { continue };
        let Ok(address) = tcp.local_addr() else { continue };
        if UdpSocket::bind(address).is_ok() {
            return Ok(address.port());
        }
    }
    Err("no port is free on 127.0.0.1".to_owned())
}
