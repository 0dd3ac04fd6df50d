//! The PROXY protocol, version 2: a load balancer tells whose question it passes on.
//!
//! In front of each datagram, and once at the start of a connection, stands a header: a signature, a command, the family,
//! a length, addresses, and extensions that are skipped. [`read`] takes nothing else for a header: version 1, Unix sockets
//! and lengths that do not fit the family are refused, so that no two readers can take the same octets for different
//! clients. Only listed balancers are asked for a header, and of them it is demanded: who guesses can be talked into
//! anything. Of all others the same octets are a packet like any other, and not a well-formed one.
//!
//! The protocol is specified in HAProxy's `proxy-protocol.txt`, section 2.2. The crate `ppp` reads it, too, but allocates for
//! each header and takes version 1 along.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What each header starts with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Octets in front of the addresses.
pub(super) const HEAD_LEN: usize = 16;

/// The longest header that is taken; addresses take 36 octets, the rest is extensions.
pub(super) const HEADER_LEN_MAX: usize = HEAD_LEN + 1024;

/// Two addresses and two ports.
const ADDRESSES4_LEN: usize = 12;
const ADDRESSES6_LEN: usize = 36;

/// What stands at the start of some octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// A header, so many octets long; the client if the balancer passes one on, `None` if it speaks for itself.
    Whole { client: Option<IpAddr>, len: usize },
    /// The start of one.
    Partial,
    /// No header.
    Malformed,
}

/// Reads a header.
pub(super) fn read(octets: &[u8]) -> Header {
    let known = octets.len().min(SIGNATURE.len());
    if octets[..known] != SIGNATURE[..known] {
        return Header::Malformed;
    }
    let Some(head) = octets.first_chunk::<HEAD_LEN>() else { return Header::Partial };
    let len = HEAD_LEN + usize::from(u16::from_be_bytes([head[14], head[15]]));
    if len > HEADER_LEN_MAX {
        return Header::Malformed;
    }
    let Some(body) = octets.get(HEAD_LEN..len) else { return Header::Partial };
    let client = match (head[12], head[13]) {
        // LOCAL: a health check; what it says of addresses does not count.
        (0x20, _) => None,
        // PROXY of an IPv4 or IPv6 client, over a stream or in datagrams.
        (0x21, 0x11 | 0x12) if body.len() >= ADDRESSES4_LEN => {
            body.first_chunk::<4>().map(|octets| IpAddr::V4(Ipv4Addr::from(*octets)))
        }
        (0x21, 0x21 | 0x22) if body.len() >= ADDRESSES6_LEN => {
            body.first_chunk::<16>().map(|octets| IpAddr::V6(Ipv6Addr::from(*octets)).to_canonical())
        }
        // PROXY without an address: the balancer does not know it either.
        (0x21, 0x00) => None,
        _ => return Header::Malformed,
    };
    Header::Whole { client, len }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let len = (body.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &len, body].concat()
    }

    #[test]
    fn the_client_is_the_source_address() {
        let v4 = header(0x21, 0x12, &[192, 0, 2, 1, 198, 51, 100, 1, 0x30, 0x39, 0, 53]);
        assert_eq!(read(&v4), Header::Whole { client: Some("192.0.2.1".parse().unwrap()), len: 28 });
        let mut body = [0; 36];
        body[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        body[15] = 9;
        // Extensions and what follows are left alone.
        let v6 = [header(0x21, 0x21, &[&body[..], &[4, 0, 1, 0]].concat()), b"question".to_vec()].concat();
        assert_eq!(read(&v6), Header::Whole { client: Some("2001:db8::9".parse().unwrap()), len: 56 });
        let mapped = "::ffff:192.0.2.7".parse::<Ipv6Addr>().unwrap().octets();
        body[..16].copy_from_slice(&mapped);
        let Header::Whole { client, .. } = read(&header(0x21, 0x22, &body)) else { panic!("a header") };
        assert_eq!(client, Some("192.0.2.7".parse().unwrap()));
    }

    #[test]
    fn a_balancer_may_speak_for_itself() {
        for octets in [header(0x20, 0, &[]), header(0x20, 0x11, &[9; 12]), header(0x21, 0, &[])] {
            assert_eq!(read(&octets), Header::Whole { client: None, len: octets.len() });
        }
    }

    #[test]
    fn what_is_not_exactly_a_header_is_none() {
        let good = header(0x21, 0x11, &[9; 12]);
        let changed = |at: usize, to: u8| {
            let mut octets = good.clone();
            octets[at] = to;
            octets
        };
        let malformed = [
            changed(0, b'P'),
            changed(11, 0),
            // Versions 1 and 3, an unknown command, a Unix socket, an unknown transport.
            changed(12, 0x11),
            changed(12, 0x31),
            changed(12, 0x22),
            changed(13, 0x31),
            changed(13, 0x13),
            changed(13, 0x01),
            // Too short for its family, too long for anybody.
            header(0x21, 0x11, &[9; 11]),
            header(0x21, 0x21, &[9; 35]),
            header(0x21, 0x11, &[9; HEADER_LEN_MAX]),
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\n".to_vec(),
        ];
        for octets in malformed {
            assert_eq!(read(&octets), Header::Malformed, "{octets:02x?}");
        }
    }

    proptest! {
        #[test]
        fn a_header_is_found_as_soon_as_it_is_whole_and_not_before(
            command in prop::sample::select(vec![0x20u8, 0x21]),
            family in prop::sample::select(vec![0x11u8, 0x12, 0x21, 0x22]),
            body in prop::collection::vec(any::<u8>(), 36..200),
            rest in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let header = header(command, family, &body);
            let whole = read(&header);
            let is_whole = matches!(whole, Header::Whole { len, .. } if len == header.len());
            prop_assert!(is_whole);
            prop_assert_eq!(read(&[&header[..], &rest].concat()), whole);
            for end in 0..header.len() {
                prop_assert_eq!(read(&header[..end]), Header::Partial);
            }
        }

        #[test]
        fn no_octets_are_too_strange(octets in prop::collection::vec(any::<u8>(), 0..80), head in any::<bool>()) {
            let octets = if head { [&SIGNATURE[..], &octets].concat() } else { octets };
            if let Header::Whole { len, .. } = read(&octets) {
                prop_assert!(len <= octets.len() && len >= HEAD_LEN);
            }
        }
    }
}
