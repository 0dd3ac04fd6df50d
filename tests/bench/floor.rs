//! What no server can undercut: a batched echo for hits, a relay that only swaps ids for misses. Each runs as a process
//! of its own, so that it is measured as the servers are.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use rand::RngExt;

/// Datagrams a call.
const BATCH: usize = 64;

/// Octets of a datagram.
const DATAGRAM: usize = 1_500;

/// Octets that an answer with one address has more than its question.
const RECORD: usize = 16;

/// Source ports of the relay.
const PORTS: usize = 256;

/// Returns what this process is to be instead of the bench: `--floor echo PORT` or `--floor relay PORT UPSTREAM`.
pub(crate) fn asked_for(args: &[String]) -> Option<Box<dyn FnOnce()>> {
    let [word, which, ports @ ..] = args else { return None };
    let ports: Vec<u16> = ports.iter().filter_map(|port| port.parse().ok()).collect();
    match (word.as_str(), which.as_str(), ports.as_slice()) {
        ("--floor", "echo", [port]) => {
            let port = *port;
            Some(Box::new(move || serve(&bind(port), echo)))
        }
        ("--floor", "relay", [port, upstream]) => {
            let (port, upstream) = (*port, *upstream);
            Some(Box::new(move || relay(port, upstream).expect("loopback")))
        }
        _ => None,
    }
}

fn bind(port: u16) -> UdpSocket {
    UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], port))).expect("the port was free a moment ago")
}

/// The question back with QR set, as long as an answer with one address.
fn echo(question: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(question);
    out[2] |= 0x80;
    out.resize(question.len() + RECORD, 0);
}

/// Answers every datagram, up to 64 with two system calls, until the process ends.
pub(crate) fn serve(socket: &UdpSocket, reply: impl Fn(&[u8], &mut Vec<u8>)) {
    let mut octets = vec![[0u8; DATAGRAM]; BATCH];
    let mut replies = vec![Vec::new(); BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut out = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    loop {
        let Ok(got) = receive(socket, &mut headers, &mut octets) else { continue };
        for ((octets, (length, _)), out) in octets.iter().zip(&got).zip(&mut replies) {
            out.clear();
            if *length > 12 {
                reply(&octets[..*length], out);
            }
        }
        let clients: Vec<_> = got.iter().map(|(_, client)| *client).collect();
        let slices: Vec<[IoSlice<'_>; 1]> = replies[..got.len()].iter().map(|reply| [IoSlice::new(reply)]).collect();
        let _ = sendmmsg(socket.as_raw_fd(), &mut out, &slices, &clients, [], MsgFlags::empty());
    }
}

/// Waits for a datagram, takes those that came with it: the length and the sender of each.
fn receive(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<SockaddrStorage>,
    octets: &mut [[u8; DATAGRAM]],
) -> nix::Result<Vec<(usize, Option<SockaddrStorage>)>> {
    let mut slices: Vec<[IoSliceMut<'_>; 1]> = octets.iter_mut().map(|octets| [IoSliceMut::new(octets)]).collect();
    let got = recvmmsg(socket.as_raw_fd(), headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None)?;
    Ok(got.map(|got| (got.bytes, got.address)).collect())
}

/// Forwards each question from a socket drawn at random, with an id of its own, and answers with the reply.
fn relay(port: u16, upstream: u16) -> io::Result<()> {
    let mut clients = mio::net::UdpSocket::from_std(nonblocking(bind(port))?);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut clients, Token(PORTS), Interest::READABLE)?;
    let mut ports = Vec::new();
    for token in 0..PORTS {
        let mut socket = mio::net::UdpSocket::from_std(nonblocking(bind(0))?);
        socket.connect(SocketAddr::from(([127, 0, 0, 1], upstream)))?;
        poll.registry().register(&mut socket, Token(token), Interest::READABLE)?;
        ports.push(socket);
    }
    let mut waiting: HashMap<(usize, u16), (SocketAddr, [u8; 2])> = HashMap::new();
    let mut random = rand::rng();
    let mut events = Events::with_capacity(PORTS);
    let mut octets = [0u8; DATAGRAM];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            let Token(at) = event.token();
            if at == PORTS {
                while let Ok((length, client)) = clients.recv_from(&mut octets) {
                    let (port, id) = (random.random_range(0..PORTS), random.random::<u16>());
                    waiting.insert((port, id), (client, [octets[0], octets[1]]));
                    octets[..2].copy_from_slice(&id.to_be_bytes());
                    let _ = ports[port].send(&octets[..length]);
                }
            } else {
                while let Ok(length) = ports[at].recv(&mut octets) {
                    let id = u16::from_be_bytes([octets[0], octets[1]]);
                    if let Some((client, id)) = waiting.remove(&(at, id)) {
                        octets[..2].copy_from_slice(&id);
                        let _ = clients.send_to(&octets[..length], client);
                    }
                }
            }
        }
    }
}

fn nonblocking(socket: UdpSocket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    Ok(socket)
}
