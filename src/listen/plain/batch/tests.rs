//! The headers as the kernel uses them, played by a closure; Miri runs all of this.

use std::net::SocketAddr;

use super::*;
use crate::listen::plain::Asked;

/// A datagram as it arrives.
struct Arrival {
    name: Vec<u8>,
    control: Vec<u8>,
    octets: Vec<u8>,
}

fn arrival(port: u16, octets: &[u8]) -> Arrival {
    let mut name = (libc::AF_INET as u16).to_ne_bytes().to_vec();
    name.extend(port.to_be_bytes());
    name.extend([192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    Arrival { name, control: Vec::new(), octets: octets.to_vec() }
}

impl Arrival {
    fn asking(mut self, addr: &str) -> Self {
        let mut control = Control::default();
        let asked = Asked { addr: addr.parse().unwrap(), interface: 0 };
        let len = envelope::write_control(&asked, &mut control);
        self.control = control.0[..len].to_vec();
        self
    }

    /// Writes it through a header, cutting what has no room, as `recvmsg` does.
    fn deliver(&self, head: &mut libc::mmsghdr) {
        let write = |at: *mut u8, room: usize, octets: &[u8]| {
            let len = octets.len().min(room);
            if len > 0 {
                // SAFETY: the header says that there is room for as many octets.
                unsafe { ptr::copy_nonoverlapping(octets.as_ptr(), at, len) };
            }
            len
        };
        let message = &mut head.msg_hdr;
        assert_eq!(message.msg_iovlen, 1);
        // SAFETY: a header points to one part.
        let part = unsafe { *message.msg_iov };
        head.msg_len = write(part.iov_base.cast(), part.iov_len, &self.octets) as _;
        message.msg_namelen = write(message.msg_name.cast(), message.msg_namelen as usize, &self.name) as _;
        message.msg_controllen = write(message.msg_control.cast(), message.msg_controllen as usize, &self.control) as _;
        if self.octets.len() > part.iov_len {
            message.msg_flags |= libc::MSG_TRUNC;
        }
    }
}

/// Reads what a header sends: name, control messages, octets.
fn sent(head: &libc::mmsghdr) -> (SocketAddr, Option<Asked>, Vec<u8>) {
    let read = |at: *const u8, len: usize| {
        // SAFETY: the header says that there are as many octets.
        if len == 0 { Vec::new() } else { unsafe { std::slice::from_raw_parts(at, len) }.to_vec() }
    };
    let message = &head.msg_hdr;
    // SAFETY: a header points to one part.
    let part = unsafe { *message.msg_iov };
    let name = read(message.msg_name.cast(), message.msg_namelen as usize);
    let control = read(message.msg_control.cast(), message.msg_controllen as usize);
    (envelope::read_name(&name).unwrap(), envelope::read_control(&control), read(part.iov_base.cast(), part.iov_len))
}

fn receive(batch: &mut Batch, arrivals: &[Arrival]) -> usize {
    let mut taken = 0;
    batch
        .receive_by(|heads| {
            taken = arrivals.len().min(heads.len());
            heads.iter_mut().zip(arrivals).for_each(|(head, arrival)| arrival.deliver(head));
            Ok(taken)
        })
        .unwrap();
    taken
}

#[test]
fn replies_go_back_where_their_questions_came_from() {
    let mut batch = Batch::new(false, true);
    let arrivals = [
        arrival(1001, b"one").asking("127.0.0.2"),
        arrival(1002, b"silence").asking("127.0.0.3"),
        arrival(1003, b"three").asking("127.0.0.4"),
        arrival(1004, b"four"),
    ];
    for _ in 0..3 {
        assert_eq!(receive(&mut batch, &arrivals), 4);
        batch.answer(|datagram, route, out| {
            out.clear();
            out.extend_from_slice(b"re: ");
            out.extend_from_slice(datagram);
            assert_eq!(route.client.ip().to_string(), "192.0.2.1");
            datagram != b"silence"
        });
        let mut seen = Vec::new();
        batch.send_by(|heads| {
            seen.extend(heads.iter().map(sent));
            Ok(heads.len())
        });
        let told: Vec<_> = seen
            .iter()
            .map(|(client, asked, octets)| {
                let asked = asked.map(|asked| asked.addr.to_string()).unwrap_or_default();
                format!("{} {asked} {}", client.port(), String::from_utf8_lossy(octets))
            })
            .collect();
        assert_eq!(told, ["1001 127.0.0.2 re: one", "1003 127.0.0.4 re: three", "1004  re: four"]);
    }
}

#[test]
fn what_is_cut_is_as_long_as_the_room() {
    let mut batch = Batch::new(false, false);
    receive(&mut batch, &[arrival(1, &[7; DATAGRAM_LEN_MAX + 1]), arrival(2, &[])]);
    let mut lens = Vec::new();
    batch.answer(|datagram, _, _| {
        lens.push(datagram.len());
        false
    });
    assert_eq!(lens, [DATAGRAM_LEN_MAX, 0]);
}

#[test]
fn a_datagram_without_a_sender_is_passed_over() {
    let mut batch = Batch::new(false, false);
    let nobody = Arrival { name: Vec::new(), control: Vec::new(), octets: Vec::new() };
    receive(&mut batch, &[nobody, arrival(2, b"two")]);
    let mut clients = Vec::new();
    batch.answer(|_, route, _| {
        clients.push(route.client.port());
        false
    });
    assert_eq!(clients, [2]);
}

#[test]
fn an_error_leaves_nothing_to_answer() {
    let mut batch = Batch::new(true, true);
    receive(&mut batch, &[arrival(1, b"one")]);
    assert!(batch.receive_by(|_| Err(io::ErrorKind::Interrupted.into())).is_err());
    batch.answer(|_, _, _| panic!("nothing was received"));
    batch.send_by(|_| panic!("nothing is to be sent"));
}

#[test]
fn more_are_asked_for_when_more_come() {
    let mut batch = Batch::new(false, false);
    let many: Vec<Arrival> = (0..200).map(|port| arrival(port + 1, b"x")).collect();
    let taken: Vec<usize> = (0..7).map(|_| receive(&mut batch, &many)).collect();
    assert_eq!(taken, [4, 8, 16, 32, 64, 64, 64]);
    receive(&mut batch, &many[..1]);
    assert_eq!(receive(&mut batch, &many), PLACES_MIN);
}

#[test]
fn a_reply_that_is_refused_does_not_hold_up_the_others() {
    let mut batch = Batch::new(false, false);
    let arrivals: Vec<Arrival> = (1..=4).map(|port| arrival(port, b"x")).collect();
    receive(&mut batch, &arrivals);
    batch.answer(|_, route, out| {
        out.clear();
        out.extend_from_slice(&route.client.port().to_be_bytes());
        true
    });
    let (mut calls, mut seen) = (0, Vec::new());
    batch.send_by(|heads| {
        calls += 1;
        match calls {
            // A signal, then one that goes, one that is refused, and the rest.
            1 => Err(io::ErrorKind::Interrupted.into()),
            2 => {
                seen.push(sent(&heads[0]).2);
                Ok(1)
            }
            3 => Err(io::ErrorKind::PermissionDenied.into()),
            _ => {
                seen.extend(heads.iter().map(|head| sent(head).2));
                Ok(heads.len())
            }
        }
    });
    assert_eq!(seen, [[0, 1], [0, 3], [0, 4]].map(|octets| octets.to_vec()));
}

#[test]
fn gathered_replies_go_out_together_and_what_has_no_room_does_not_go_in() {
    let (mut batch, mut outbox) = (Batch::new(false, true), Outbox::new());
    let asked = Asked { addr: "127.0.0.2".parse().unwrap(), interface: 0 };
    for round in [GATHERED_MAX + 3, 1, PLACES + 1] {
        let mut expected = Vec::new();
        for i in 0..round {
            let (client, octets) = (SocketAddr::from(([192, 0, 2, 1], 1000 + i as u16)), vec![i as u8; 1 + i % 7]);
            let route = Route { client, asked: (i % 2 == 0).then_some(asked) };
            assert_eq!(outbox.push(&octets, &route), i < GATHERED_MAX);
            expected.push((client, route.asked, octets));
        }
        expected.truncate(GATHERED_MAX);
        let (mut seen, mut calls) = (Vec::new(), 0);
        batch.send_gathered_by(&mut outbox, |heads| {
            calls += 1;
            seen.extend(heads.iter().map(sent));
            Ok(heads.len())
        });
        assert_eq!((seen, calls), (expected.clone(), expected.len().div_ceil(PLACES)));
        assert!(outbox.is_empty());
    }
    batch.send_gathered_by(&mut outbox, |_| panic!("nothing is to be sent"));
}

/// The same through real sockets.
#[test]
#[cfg_attr(miri, ignore = "there is no kernel under Miri")]
fn the_kernel_agrees() {
    let server = Socket::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let addr = server.local_addr().unwrap().as_socket().unwrap();
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut batch = Batch::new(false, false);
    for i in 0..100u8 {
        client.send_to(&[i; 20], addr).unwrap();
    }
    let mut answered = 0;
    while answered < 100 {
        batch.receive(&server).unwrap();
        batch.answer(|datagram, _, out| {
            out.clear();
            out.extend_from_slice(&datagram[..1]);
            answered += 1;
            true
        });
        batch.send(&server);
    }
    let mut octets = [0; 8];
    let replies: Vec<u8> = (0..100).map(|_| (client.recv(&mut octets).unwrap(), octets[0]).1).collect();
    assert_eq!(replies, (0..100).collect::<Vec<u8>>());
}
