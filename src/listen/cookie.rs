//! DNS cookies for clients (RFC 7873) in the form that servers share (RFC 9018).
//!
//! A client that shows a server cookie which we made for its address is there, and nobody who writes its address into a
//! packet. Rate limits do not hold for it. Who has only a client cookie gets ours with the answer, and, beyond the limit,
//! with BADCOOKIE in the place of a truncated reply. Nothing is kept of a client: a cookie holds the time when it was made
//! and a hash of that and the client's address under a secret, so that any server with the same secret takes it.

use std::hash::Hasher;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::clock::Timestamp;
use crate::wire::{ReplyCookie, View};

/// Octets of a client cookie (RFC 7873 §4).
const CLIENT_LEN: usize = 8;

/// Octets of our server cookie (RFC 9018 §4).
const SERVER_LEN: usize = 16;

/// The version of RFC 9018 and its reserved octets.
const VERSION: [u8; 4] = [1, 0, 0, 0];

/// A cookie is good for an hour (RFC 9018 §4.3),
const LIFE_SECS: u32 = 3600;

/// replaced after half of it,
const RENEWAL_SECS: u32 = 1800;

/// and may be so much ahead of our clock.
const AHEAD_SECS: u32 = 300;

/// How much of a file is read: two secrets with the ends of their lines, and room to see that there is more.
const READ_LEN_MAX: u64 = 256;

/// Why a file of secrets cannot be used.
#[derive(Debug, Error)]
pub enum SecretError {
    /// It is not there, or we may not read it.
    #[error("clients.cookie-secret-file: {path}: cannot be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It holds no secret.
    #[error(
        "clients.cookie-secret-file: {path}:{line}: expected a secret of 32 hexadecimal digits, such as `openssl rand -hex 16` \
         prints, and no more than two lines"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line that is wrong.
        line: usize,
    },
}

/// The secrets in force: the first makes cookies, both know them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets(Vec<[u8; 16]>);

/// Never the secrets.
impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("count", &self.0.len()).finish()
    }
}

/// What a client's COOKIE option says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Of a length that none has (RFC 7873 §5.2.2).
    Malformed,
    /// No server cookie of ours, or one that is over.
    Unknown(ReplyCookie),
    /// One of ours.
    Known(ReplyCookie),
}

impl Secrets {
    /// Reads the file: a secret in the first line, and in the second, if there is one, another that is known, too.
    ///
    /// # Errors
    /// It cannot be read, or holds something else.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        let mut octets = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(READ_LEN_MAX).read_to_end(&mut octets))
            .map_err(|source| SecretError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&octets).map_err(|line| SecretError::Malformed { path: path.to_owned(), line })
    }

    /// Reads the text of a file; the error is the number of the line that is wrong.
    fn parse(octets: &[u8]) -> Result<Self, usize> {
        let text = octets.trim_ascii_end();
        let lines = text.split(|octet| *octet == b'\n').map(<[u8]>::trim_ascii).enumerate();
        let secrets = lines.map(|(i, line)| secret(line).filter(|_| i < 2).ok_or(i + 1));
        Ok(Self(secrets.collect::<Result<_, _>>()?))
    }

    /// Looks at the cookie that came with a question; `None` if there was none.
    pub(super) fn look(&self, view: &View<'_>, client: IpAddr, now: Timestamp) -> Option<Shown> {
        let (sent, client) = (view.cookie()?, client.to_canonical());
        // The seconds of RFC 9018 wrap, too.
        let now = now.as_secs() as u32;
        let Some((client_cookie, server_cookie)) = sent.split_first_chunk::<CLIENT_LEN>() else {
            return Some(Shown::Malformed);
        };
        let fresh = || self.make(client_cookie, client, now);
        Some(match server_cookie.len() {
            0 => Shown::Unknown(fresh()),
            SERVER_LEN => match self.age(client_cookie, server_cookie, client, now) {
                Some(age)
                    if age < i64::from(RENEWAL_SECS) && self.is_of_first(client_cookie, server_cookie, client) =>
                {
                    Shown::Known(whole(client_cookie, server_cookie))
                }
                Some(_) => Shown::Known(fresh()),
                None => Shown::Unknown(fresh()),
            },
            8..=32 => Shown::Unknown(fresh()),
            _ => Shown::Malformed,
        })
    }

    /// Returns how old a server cookie is, in seconds; `None` unless it is ours and in force.
    fn age(&self, client_cookie: &[u8; CLIENT_LEN], server_cookie: &[u8], client: IpAddr, now: u32) -> Option<i64> {
        let (head, hash) = server_cookie.split_first_chunk::<8>()?;
        let made = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        // Serial number arithmetic (RFC 1982).
        let age = i64::from(now.wrapping_sub(made) as i32);
        let is_in_force = (-i64::from(AHEAD_SECS)..=i64::from(LIFE_SECS)).contains(&age);
        let is_ours = |secret: &[u8; 16]| bool::from(hash.ct_eq(&hash_of(secret, client_cookie, head, client)));
        (is_in_force && head[..4] == VERSION && self.0.iter().any(is_ours)).then_some(age)
    }

    /// Returns whether a cookie of ours was made with the secret that makes them now.
    fn is_of_first(&self, client_cookie: &[u8; CLIENT_LEN], server_cookie: &[u8], client: IpAddr) -> bool {
        let (Some((head, hash)), [first, ..]) = (server_cookie.split_first_chunk::<8>(), &self.0[..]) else {
            return false;
        };
        self.0.len() == 1 || bool::from(hash.ct_eq(&hash_of(first, client_cookie, head, client)))
    }

    fn make(&self, client_cookie: &[u8; CLIENT_LEN], client: IpAddr, now: u32) -> ReplyCookie {
        let mut server_cookie = [0; SERVER_LEN];
        let (head, hash) = server_cookie.split_at_mut(8);
        head[..4].copy_from_slice(&VERSION);
        head[4..].copy_from_slice(&now.to_be_bytes());
        if let Some(secret) = self.0.first() {
            hash.copy_from_slice(&hash_of(secret, client_cookie, head, client));
        }
        whole(client_cookie, &server_cookie)
    }
}

/// Puts both halves together; the second has as many octets as ours have.
fn whole(client_cookie: &[u8; CLIENT_LEN], server_cookie: &[u8]) -> ReplyCookie {
    let mut octets = [0; CLIENT_LEN + SERVER_LEN];
    octets[..CLIENT_LEN].copy_from_slice(client_cookie);
    octets[CLIENT_LEN..].copy_from_slice(server_cookie);
    ReplyCookie::new(octets)
}

/// RFC 9018 §4.4: SipHash-2-4 of the client cookie, what stands before the hash, and the client's address.
#[expect(deprecated, reason = "what took its place promises no algorithm; this one is SipHash-2-4 and cannot change")]
fn hash_of(secret: &[u8; 16], client_cookie: &[u8; CLIENT_LEN], head: &[u8], client: IpAddr) -> [u8; 8] {
    let key = u128::from_le_bytes(*secret);
    let mut input = [0; CLIENT_LEN + 8 + 16];
    input[..CLIENT_LEN].copy_from_slice(client_cookie);
    input[CLIENT_LEN..][..8].copy_from_slice(head);
    let address = &mut input[CLIENT_LEN + 8..];
    let address_len = match client {
        IpAddr::V4(addr) => {
            address[..4].copy_from_slice(&addr.octets());
            4
        }
        IpAddr::V6(addr) => {
            address.copy_from_slice(&addr.octets());
            16
        }
    };
    let mut hasher = std::hash::SipHasher::new_with_keys(key as u64, (key >> 64) as u64);
    hasher.write(&input[..CLIENT_LEN + 8 + address_len]);
    hasher.finish().to_le_bytes()
}

/// Reads 32 hexadecimal digits.
fn secret(line: &[u8]) -> Option<[u8; 16]> {
    let digits: &[u8; 32] = line.try_into().ok()?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let text = std::str::from_utf8(digits).ok()?;
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{Seen, Transport, see};

    fn secrets(lines: &str) -> Secrets {
        Secrets::parse(lines.as_bytes()).unwrap()
    }

    fn octets(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    fn look(secrets: &Secrets, cookie: &[u8], client: &str, now: u64) -> Shown {
        let mut packet = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x01a\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0".to_vec();
        packet.extend_from_slice(&(cookie.len() as u16 + 4).to_be_bytes());
        packet.extend_from_slice(&[0, 10]);
        packet.extend_from_slice(&(cookie.len() as u16).to_be_bytes());
        packet.extend_from_slice(cookie);
        let Seen::Question(view) = see(&packet, Transport::Udp) else { panic!("no question") };
        secrets.look(&view, client.parse().unwrap(), Timestamp::from_secs(now)).unwrap()
    }

    fn reply(shown: Shown) -> Vec<u8> {
        match shown {
            Shown::Known(cookie) | Shown::Unknown(cookie) => cookie.octets().to_vec(),
            Shown::Malformed => panic!("malformed"),
        }
    }

    /// RFC 9018 Appendix A.1 to A.4.
    #[test]
    fn cookies_are_those_of_the_examples_of_the_rfc() {
        let first = secrets("e5e973e5a6b2a43f48e7dc849e37bfcf");
        let new = look(&first, &octets("2464c4abcf10c957"), "198.51.100.100", 1_559_731_985);
        assert_eq!(
            new,
            Shown::Unknown(ReplyCookie::new(
                *octets("2464c4abcf10c957010000005cf79f111f8130c3eee29480").first_chunk().unwrap()
            ))
        );
        // The renewal of A.2: half an hour later it is made anew.
        let sent = octets("2464c4abcf10c957010000005cf79f111f8130c3eee29480");
        let renewed = look(&first, &sent, "198.51.100.100", 1_559_734_385);
        assert!(matches!(renewed, Shown::Known(_)));
        assert_eq!(reply(renewed), octets("2464c4abcf10c957010000005cf7a871d4a564a1442aca77"));
        // A.4, over IPv6, with a secret that is on its way out.
        let both = secrets("445536bcd2513298075a5d379663c962\ndd3bdf9344b678b185a6f5cb60fca715");
        let sent = octets("22681ab97d52c298010000005cf7c57926556bd0934c72f8");
        let rolled = look(&both, &sent, "2001:db8:220:1:59de:d0f4:8769:82b8", 1_559_741_961);
        assert!(matches!(rolled, Shown::Known(_)));
        assert_eq!(reply(rolled), octets("22681ab97d52c298010000005cf7c609a6bb79d16625507a"));
    }

    #[test]
    fn a_cookie_is_good_for_an_hour_and_for_its_client_alone() {
        let (ours, other) = (secrets("00112233445566778899aabbccddeeff"), secrets("ff112233445566778899aabbccddeeff"));
        let now = 1_800_000_000;
        let sent = reply(look(&ours, &[7; 8], "192.0.2.1", now));
        let is_known =
            |secrets: &Secrets, sent: &[u8], client, at| matches!(look(secrets, sent, client, at), Shown::Known(_));
        for (at, expected) in
            [(now, true), (now + 3600, true), (now + 3601, false), (now - 300, true), (now - 301, false)]
        {
            assert_eq!(is_known(&ours, &sent, "192.0.2.1", at), expected, "{at}");
        }
        assert!(is_known(&ours, &sent, "::ffff:192.0.2.1", now));
        assert!(!is_known(&ours, &sent, "192.0.2.2", now));
        assert!(!is_known(&other, &sent, "192.0.2.1", now));
        assert_eq!(reply(look(&ours, &sent, "192.0.2.1", now + 1799)), sent, "kept for half an hour");
        assert_ne!(reply(look(&ours, &sent, "192.0.2.1", now + 1801)), sent);
    }

    #[test]
    fn two_secrets_roll_over() {
        let (old, new) = ("00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100");
        let sent = reply(look(&secrets(old), &[7; 8], "192.0.2.1", 1000));
        let both = look(&secrets(&format!("{new}\n{old}\n")), &sent, "192.0.2.1", 1001);
        assert!(matches!(both, Shown::Known(_)));
        assert!(
            matches!(look(&secrets(new), &reply(both), "192.0.2.1", 1002), Shown::Known(_)),
            "made with the new one"
        );
        assert!(matches!(look(&secrets(new), &sent, "192.0.2.1", 1002), Shown::Unknown(_)));
    }

    #[test]
    fn lengths_that_no_cookie_has_are_malformed() {
        let ours = secrets("00112233445566778899aabbccddeeff");
        for len in 0..60 {
            let is_malformed = look(&ours, &vec![1; len], "192.0.2.1", 1000) == Shown::Malformed;
            assert_eq!(is_malformed, !(len == 8 || (16..=40).contains(&len)), "{len}");
        }
    }

    #[test]
    fn a_file_that_holds_no_secret_is_told_with_its_line() {
        let good = "00112233445566778899AABBCCDDEEFF";
        assert_eq!(secrets(&format!("{good}\r\n")).0, [*octets(good).first_chunk::<16>().unwrap()]);
        for (text, line) in [
            (String::new(), 1),
            ("secret".to_owned(), 1),
            (format!("{good}0"), 1),
            (format!("+{}", &good[1..]), 1),
            (format!("{good}\nsecret\n"), 2),
            (format!("{good}\n{good}\n{good}\n"), 3),
        ] {
            assert_eq!(Secrets::parse(text.as_bytes()), Err(line), "{text}");
        }
        let missing = Secrets::load(Path::new("/nonexistent/secret")).unwrap_err();
        assert!(missing.to_string().starts_with("clients.cookie-secret-file: /nonexistent/secret: cannot be read"));
    }

    proptest! {
        #[test]
        fn nothing_but_ours_is_known(sent in prop::collection::vec(any::<u8>(), 0..48), now in any::<u32>()) {
            let ours = secrets("00112233445566778899aabbccddeeff");
            prop_assert!(!matches!(look(&ours, &sent, "192.0.2.1", now.into()), Shown::Known(_)));
        }

        #[test]
        fn one_octet_changed_is_another_cookie(at in 0usize..24, by in 1u8.., now in any::<u32>()) {
            let ours = secrets("00112233445566778899aabbccddeeff");
            let mut sent = reply(look(&ours, &[9; 8], "2001:db8::1", now.into()));
            prop_assert!(matches!(look(&ours, &sent, "2001:db8::1", now.into()), Shown::Known(_)));
            sent[at] ^= by;
            prop_assert!(!matches!(look(&ours, &sent, "2001:db8::1", now.into()), Shown::Known(_)));
        }
    }
}
