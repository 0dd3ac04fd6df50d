//! The envelope of a datagram as the kernel writes and reads it: who sent it, and which of our addresses was asked.
//!
//! Everything here is octets in and values out, without pointers, so that it can be tested and fuzzed anywhere. The
//! layouts are Linux's own, the same for every libc: a socket address (`sockaddr_in`, `sockaddr_in6`), and control
//! messages (`cmsghdr`: length, level and type, then the body, padded to a machine word) that hold an `in_pktinfo`
//! or an `in6_pktinfo` (RFC 3542 §6). All numbers are in the machine's order but ports and addresses.
//! What the kernel cut or what is not known is skipped; the reply then leaves from the address that routing chooses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::Asked;

/// Octets of a `sockaddr_in`.
pub(super) const NAME_LEN_V4: usize = 16;

/// Octets of a `sockaddr_in6`, the longest name there is here.
pub(super) const NAME_LEN: usize = 28;

/// Octets of a machine word: what control messages are aligned to.
const WORD: usize = size_of::<usize>();

/// Octets of a `cmsghdr`: a length of one word, level and type.
const HEAD: usize = WORD + 8;

/// Octets of the bodies: `in_pktinfo` and `in6_pktinfo`.
const PKTINFO_LEN: usize = 12;
const PKTINFO6_LEN: usize = 20;

/// Room for one control message with either body.
pub(super) const CONTROL_LEN: usize = HEAD + PKTINFO6_LEN.next_multiple_of(WORD);

/// A buffer for control messages, aligned as the kernel's macros assume.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub(super) struct Control(pub(super) [u8; CONTROL_LEN]);

impl Default for Control {
    fn default() -> Self {
        Self([0; CONTROL_LEN])
    }
}

/// Reads the address of a sender; `None` for a family that is not of the Internet, or too few octets.
pub(super) fn read_name(octets: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(array(octets, 0)?));
    let port = u16::from_be_bytes(array(octets, 2)?);
    match family {
        libc::AF_INET => Some(SocketAddr::from((array::<4>(octets, 4)?, port))),
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(array(octets, 4)?);
            let ip = Ipv6Addr::from(array::<16>(octets, 8)?);
            let scope = u32::from_ne_bytes(array(octets, 24)?);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope)))
        }
        _ => None,
    }
}

/// Writes the address of a client, as [`read_name`] reads it.
pub(super) fn write_name(client: &SocketAddr, octets: &mut [u8; NAME_LEN]) {
    *octets = [0; NAME_LEN];
    octets[2..4].copy_from_slice(&client.port().to_be_bytes());
    let family = match client {
        SocketAddr::V4(client) => {
            octets[4..8].copy_from_slice(&client.ip().octets());
            libc::AF_INET
        }
        SocketAddr::V6(client) => {
            octets[4..8].copy_from_slice(&client.flowinfo().to_be_bytes());
            octets[8..24].copy_from_slice(&client.ip().octets());
            octets[24..28].copy_from_slice(&client.scope_id().to_ne_bytes());
            libc::AF_INET6
        }
    };
    octets[..2].copy_from_slice(&(family as u16).to_ne_bytes());
}

/// Reads which address was asked out of the control messages of a datagram; the first that says so counts.
pub(super) fn read_control(octets: &[u8]) -> Option<Asked> {
    let mut rest = octets;
    loop {
        let len = usize::from_ne_bytes(array(rest, 0)?);
        let kind = (i32::from_ne_bytes(array(rest, WORD)?), i32::from_ne_bytes(array(rest, WORD + 4)?));
        // A length below the head's, or beyond what is there: cut, and nothing behind it can be found.
        let body = rest.get(HEAD..len)?;
        if let Some(asked) = read_pktinfo(kind, body) {
            return Some(asked);
        }
        rest = rest.get(len.checked_next_multiple_of(WORD)?..)?;
    }
}

fn read_pktinfo(kind: (i32, i32), body: &[u8]) -> Option<Asked> {
    match kind {
        // Interface, our address, the address in the header: the two differ for a broadcast.
        (libc::IPPROTO_IP, libc::IP_PKTINFO) if body.len() >= PKTINFO_LEN => {
            let addr = Ipv4Addr::from(array::<4>(body, 4)?);
            (!addr.is_unspecified()).then_some(Asked { addr: addr.into(), interface: 0 })
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            let addr = Ipv6Addr::from(array::<16>(body, 0)?);
            let interface = u32::from_ne_bytes(array(body, 16)?);
            let interface = if addr.is_unicast_link_local() { interface } else { 0 };
            (!addr.is_unspecified() && !addr.is_multicast()).then_some(Asked { addr: addr.into(), interface })
        }
        _ => None,
    }
}

/// Writes the control message that makes a reply leave from the address asked; returns its length.
pub(super) fn write_control(asked: &Asked, control: &mut Control) -> usize {
    let Control(octets) = control;
    *octets = [0; CONTROL_LEN];
    let body = HEAD;
    let (level, kind, len) = match asked.addr {
        IpAddr::V4(addr) => {
            octets[body..body + 4].copy_from_slice(&asked.interface.to_ne_bytes());
            octets[body + 4..body + 8].copy_from_slice(&addr.octets());
            (libc::IPPROTO_IP, libc::IP_PKTINFO, PKTINFO_LEN)
        }
        IpAddr::V6(addr) => {
            octets[body..body + 16].copy_from_slice(&addr.octets());
            octets[body + 16..body + 20].copy_from_slice(&asked.interface.to_ne_bytes());
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, PKTINFO6_LEN)
        }
    };
    octets[..WORD].copy_from_slice(&(HEAD + len).to_ne_bytes());
    octets[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
    octets[WORD + 4..HEAD].copy_from_slice(&kind.to_ne_bytes());
    HEAD + len.next_multiple_of(WORD)
}

fn array<const N: usize>(octets: &[u8], at: usize) -> Option<[u8; N]> {
    octets.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(level: i32, kind: i32, body: &[u8]) -> Vec<u8> {
        let mut octets = (HEAD + body.len()).to_ne_bytes().to_vec();
        octets.extend(level.to_ne_bytes());
        octets.extend(kind.to_ne_bytes());
        octets.extend(body);
        octets.resize(octets.len().next_multiple_of(WORD), 0);
        octets
    }

    fn asked(text: &str) -> Asked {
        Asked { addr: text.parse().unwrap(), interface: 0 }
    }

    #[test]
    fn layouts_are_those_of_the_system() {
        assert_eq!(NAME_LEN_V4, size_of::<libc::sockaddr_in>());
        assert_eq!(NAME_LEN, size_of::<libc::sockaddr_in6>());
        assert_eq!(HEAD, size_of::<libc::cmsghdr>());
        assert_eq!(PKTINFO_LEN, size_of::<libc::in_pktinfo>());
        assert_eq!(PKTINFO6_LEN, size_of::<libc::in6_pktinfo>());
        assert_eq!(align_of::<Control>() % align_of::<libc::cmsghdr>(), 0);
    }

    #[test]
    fn the_address_asked_is_ours_and_not_the_broadcast_in_the_header() {
        let body = [7, 0, 0, 0, 192, 0, 2, 1, 192, 0, 2, 255];
        let octets = message(libc::IPPROTO_IP, libc::IP_PKTINFO, &body);
        assert_eq!(read_control(&octets), Some(asked("192.0.2.1")));
    }

    #[test]
    fn other_control_messages_are_skipped() {
        let mut octets = message(libc::SOL_SOCKET, libc::SO_TIMESTAMP, &[1; 17]);
        octets.extend(message(libc::IPPROTO_IP, libc::IP_PKTINFO, &[0, 0, 0, 0, 127, 0, 0, 2, 127, 0, 0, 2]));
        assert_eq!(read_control(&octets), Some(asked("127.0.0.2")));
    }

    #[test]
    fn only_a_link_local_address_keeps_its_interface() {
        let of = |text: &str| {
            let addr: Ipv6Addr = text.parse().unwrap();
            let body = [&addr.octets()[..], &9u32.to_ne_bytes()].concat();
            read_control(&message(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &body))
        };
        assert_eq!(of("2001:db8::1"), Some(asked("2001:db8::1")));
        assert_eq!(of("fe80::1"), Some(Asked { interface: 9, ..asked("fe80::1") }));
        assert_eq!(of("ff02::1"), None, "nothing can be sent from a multicast address");
    }

    #[test]
    fn names_of_other_families_are_none() {
        let mut octets = [0; NAME_LEN];
        assert_eq!(read_name(&octets), None);
        octets[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
        assert_eq!(read_name(&octets), None);
        assert_eq!(read_name(&[]), None);
    }

    #[test]
    fn names_are_read_as_the_system_writes_them() {
        for text in ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%3]:65535"] {
            let addr: SocketAddr = text.parse().unwrap();
            let system = socket2::SockAddr::from(addr);
            let octets: Vec<u8> = match addr {
                SocketAddr::V4(v4) => {
                    let mut octets = (libc::AF_INET as u16).to_ne_bytes().to_vec();
                    octets.extend(v4.port().to_be_bytes());
                    octets.extend(v4.ip().octets());
                    octets.extend([0; 8]);
                    octets
                }
                SocketAddr::V6(v6) => {
                    let mut octets = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
                    octets.extend(v6.port().to_be_bytes());
                    octets.extend(v6.flowinfo().to_be_bytes());
                    octets.extend(v6.ip().octets());
                    octets.extend(v6.scope_id().to_ne_bytes());
                    octets
                }
            };
            assert_eq!(octets.len(), system.len() as usize);
            assert_eq!(read_name(&octets), Some(addr));
            let mut written = [7; NAME_LEN];
            write_name(&addr, &mut written);
            assert_eq!(written[..octets.len()], octets);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(v6 in any::<[u8; 16]>(), v4 in any::<[u8; 4]>(), interface in any::<u32>()) {
            for addr in [IpAddr::from(v4), IpAddr::from(v6)] {
                let is_local = matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
                let asked = Asked { addr, interface: if is_local { interface } else { 0 } };
                let mut control = Control::default();
                let len = write_control(&asked, &mut control);
                let is_usable = !(addr.is_unspecified() || addr.is_ipv6() && addr.is_multicast());
                prop_assert_eq!(read_control(&control.0[..len]), is_usable.then_some(asked));
                prop_assert_eq!(read_control(&control.0[..len - WORD]), None, "cut short");
            }
        }

        #[test]
        fn no_octets_break_the_readers(octets in prop::collection::vec(any::<u8>(), 0..128)) {
            read_control(&octets);
            read_name(&octets);
        }

        /// Lengths that are nearly right reach further into the reader than noise does.
        #[test]
        fn no_chain_of_messages_breaks_the_reader(
            parts in prop::collection::vec((0usize..48, 0i32..60, 0i32..60, prop::collection::vec(any::<u8>(), 0..40)), 0..5),
            cut in 0usize..200,
        ) {
            let mut octets = Vec::new();
            for (len, level, kind, body) in parts {
                let at = octets.len();
                octets.extend(message(level, kind, &body));
                octets[at..at + WORD].copy_from_slice(&len.to_ne_bytes());
            }
            octets.truncate(cut);
            read_control(&octets);
        }
    }
}
