//! Many clients who ask all the time and never twice: what nobody answered is seen.

#![allow(unreachable_pub, reason = "the modules beside it use it; a test binary has nothing to reach it from")]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use greenlane::clock::{Clock, Timestamp};
use tokio::time::sleep;

use crate::harness::PATIENCE;
use crate::upstream::wire_name;

/// Sockets of clients, so that the system spreads them over those of the server.
const CLIENTS: usize = 16;

/// Octets that a datagram takes in a socket's buffer, and some to spare.
const DATAGRAM_BYTES: usize = 1280;

/// The most questions without an answer: more would not fit into a single socket's buffer where nobody reads for a while
/// on a slow machine, and that is another matter. The system doubles what it is asked for; root gets that in any case.
fn open_max() -> usize {
    let asked = 4 << 20;
    let bound = std::fs::read_to_string("/proc/sys/net/core/rmem_max").ok().and_then(|text| text.trim().parse().ok());
    let granted = if nix::unistd::geteuid().is_root() { asked } else { bound.unwrap_or(asked).min(asked) };
    2 * granted / DATAGRAM_BYTES
}

/// The load.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    clients: Vec<Client>,
    clock: Clock,
    began: Timestamp,
    asked: AtomicUsize,
    answered: AtomicUsize,
    /// In milliseconds.
    longest: AtomicUsize,
    /// What the system said to a client, as that nobody listens there.
    refused: AtomicUsize,
    must_stop: AtomicBool,
    is_still: AtomicBool,
    is_over: AtomicBool,
}

struct Client {
    socket: UdpSocket,
    /// By id.
    open: Mutex<HashMap<u16, Timestamp>>,
}

/// What became of it.
#[derive(Debug)]
pub struct Outcome {
    pub asked: usize,
    pub answered: usize,
    /// When those were asked that nobody answered.
    pub lost: Vec<Timestamp>,
    pub refused: usize,
    pub longest: Duration,
    pub per_second: usize,
}

impl Load {
    /// Begins to ask that often; some of the names are asked often, some were never asked before, and some of those are
    /// listed.
    pub fn start(server: SocketAddr, per_second: u32) -> Self {
        let client = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.connect(server).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            Client { socket, open: Mutex::default() }
        };
        let clock = Clock::system();
        let shared = Arc::new(Shared {
            clients: (0..CLIENTS).map(|_| client()).collect(),
            began: clock.now(),
            clock,
            asked: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            longest: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            must_stop: AtomicBool::new(false),
            is_still: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        });
        let mut threads: Vec<_> = (0..CLIENTS)
            .map(|i| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.hear(i))
            })
            .collect();
        let asking = Arc::clone(&shared);
        threads.push(thread::spawn(move || asking.ask(per_second)));
        Self { shared, threads }
    }

    /// How many were asked so far.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// Now, on the clock of the outcome.
    pub fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// Waits until so many more are asked.
    pub async fn more(&self, count: usize) {
        let until = self.asked() + count;
        for _ in 0..10 * PATIENCE.as_millis() / 10 {
            if self.asked() >= until {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{} asked, {} answered", self.asked(), self.shared.answered.load(Ordering::SeqCst));
    }

    /// Stops asking, without waiting for the last answers.
    pub fn stop_asking(&self) {
        self.shared.must_stop.store(true, Ordering::SeqCst);
    }

    /// Waits until nobody asks any more after [`Self::stop_asking`].
    pub async fn until_still(&self) {
        for _ in 0..PATIENCE.as_millis() / 10 {
            if self.shared.is_still.load(Ordering::SeqCst) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("the thread that asks does not end");
    }

    /// Stops asking, waits for the answers, and tells.
    pub async fn end(self) -> Outcome {
        let shared = &self.shared;
        self.stop_asking();
        let took = shared.clock.now().since(shared.began);
        for _ in 0..PATIENCE.as_millis() / 20 {
            if shared.clients.iter().all(|client| client.open.lock().unwrap().is_empty()) {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        shared.is_over.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let of = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        let open = shared.clients.iter().flat_map(|client| {
            let open = client.open.lock().unwrap();
            open.values().copied().collect::<Vec<_>>()
        });
        Outcome {
            asked: of(&shared.asked),
            answered: of(&shared.answered),
            lost: open.collect(),
            refused: of(&shared.refused),
            longest: Duration::from_millis(of(&shared.longest) as u64),
            per_second: of(&shared.asked) * 1000 / (took.as_millis() as usize).max(1),
        }
    }
}

impl Shared {
    fn ask(&self, per_second: u32) {
        let (mut number, open_max) = (0_usize, open_max());
        while !self.must_stop.load(Ordering::SeqCst) {
            let due = self.clock.now().since(self.began).as_millis() as usize * per_second as usize / 1000;
            let open = self.asked.load(Ordering::SeqCst) - self.answered.load(Ordering::SeqCst);
            let room = open_max.saturating_sub(open).min(due.saturating_sub(number));
            for _ in 0..room {
                self.ask_one(number);
                number += 1;
            }
            // Behind where it should be: nothing is made up for.
            if room == 0 && due > number {
                number = due;
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.is_still.store(true, Ordering::SeqCst);
    }

    fn ask_one(&self, number: usize) {
        let name = match number % 50 {
            7 => format!("n{}.m{number}.listed.example", number % 200),
            2 | 12 | 22 | 32 | 42 => format!("n1.m{number}.other.example"),
            _ => format!("n{}.listed.example", number % 40),
        };
        let client = &self.clients[number % CLIENTS];
        let id = (number / CLIENTS) as u16;
        let mut octets = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 1], &wire_name(&name)].concat();
        octets.extend([0, 1, 0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        client.open.lock().unwrap().insert(id, self.clock.now());
        self.asked.fetch_add(1, Ordering::SeqCst);
        if client.socket.send(&octets).is_err() {
            self.refused.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn hear(&self, i: usize) {
        let client = &self.clients[i];
        let mut octets = [0; 1500];
        while !self.is_over.load(Ordering::SeqCst) {
            match client.socket.recv(&mut octets) {
                Ok(len) if len >= 12 => {
                    let id = u16::from_be_bytes([octets[0], octets[1]]);
                    if let Some(asked) = client.open.lock().unwrap().remove(&id) {
                        let took = self.clock.now().since(asked).as_millis() as usize;
                        self.longest.fetch_max(took, Ordering::SeqCst);
                        self.answered.fetch_add(1, Ordering::SeqCst);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    self.refused.fetch_add(1, Ordering::SeqCst);
                }
                _ => {}
            }
        }
    }
}
