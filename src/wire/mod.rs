//! DNS messages as bytes: read in place, walked once, finished per client. No I/O.
//!
//! The way of a message through the files:
//!
//! ```text
//!  client's packet ─▶ view::see ─▶ View ──────────────┐
//!                        └▶ Refusal ─▶ reply          ├─▶ finish::finish ─▶ reply
//!  upstream's reply ─▶ walk::walk ─▶ Answer (cached) ─┘
//!                          └▶ Facts (learned)
//! ```
//!
//! A [`View`] borrows the packet, an [`Answer`] owns the bytes that are kept; both were checked whole when they were
//! made, so nothing behind them can fail. Every octet here may come from a stranger: malformed input ends as a
//! [`Refusal`], as silence or as a [`WalkError`], never as a panic, and work is linear in the length of the message.
//! The rules are those of RFC 1035 with RFC 2181, 2308, 3597, 4035, 6891, 8914 and 9619.

mod answer;
mod facts;
mod finish;
mod kept;
mod names;
mod opt;
#[cfg(test)]
mod properties;
mod rdata;
mod rebuild;
mod reply;
#[cfg(test)]
mod testing;
mod view;
mod walk;

pub use answer::{Answer, Kind, Rules, synthesize};
pub use facts::{CHAIN_LEN_MAX, Facts, Sighted};
pub use finish::{Fit, Given, finish, limit};
pub use kept::{Kept, Parts, Shape};
pub use names::NameFault;
pub use opt::{EDES_MAX, Ede, Edns, ReplyCookie, TAG_TEXT_LEN_MAX, TagOption, TagText, UDP_SIZE};
pub use reply::{max_age_secs, pad};
pub use view::{Refusal, Seen, Transport, View, see};
pub use walk::{WalkError, Walked, walk};

use crate::name::Name;

/// Octets of a message header (RFC 1035 §4.1.1).
pub const HEADER_LEN: usize = 12;

/// The most octets a message may take: its length stands in 16 bits over TCP (RFC 1035 §4.2.2).
pub const MESSAGE_LEN_MAX: usize = 65_535;

/// Record types (IANA "Resource Record (RR) TYPEs").
pub mod rtype {
    #![expect(missing_docs, reason = "the mnemonics are IANA's")]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const MD: u16 = 3;
    pub const MF: u16 = 4;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const MB: u16 = 7;
    pub const MG: u16 = 8;
    pub const MR: u16 = 9;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const MINFO: u16 = 14;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const RP: u16 = 17;
    pub const AFSDB: u16 = 18;
    pub const RT: u16 = 21;
    pub const SIG: u16 = 24;
    pub const PX: u16 = 26;
    pub const AAAA: u16 = 28;
    pub const NXT: u16 = 30;
    pub const SRV: u16 = 33;
    pub const NAPTR: u16 = 35;
    pub const KX: u16 = 36;
    pub const DNAME: u16 = 39;
    pub const OPT: u16 = 41;
    pub const DS: u16 = 43;
    pub const RRSIG: u16 = 46;
    pub const NSEC: u16 = 47;
    pub const DNSKEY: u16 = 48;
    pub const NSEC3: u16 = 50;
    pub const NSEC3PARAM: u16 = 51;
    pub const SVCB: u16 = 64;
    pub const HTTPS: u16 = 65;
    pub const NXNAME: u16 = 128;
    pub const TKEY: u16 = 249;
    pub const TSIG: u16 = 250;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const MAILB: u16 = 253;
    pub const MAILA: u16 = 254;
    pub const ANY: u16 = 255;
}

/// Classes (IANA "DNS CLASSes").
pub mod class {
    #![expect(missing_docs, reason = "the mnemonics are IANA's")]
    pub const IN: u16 = 1;
    pub const CH: u16 = 3;
    pub const HS: u16 = 4;
    pub const NONE: u16 = 254;
    pub const ANY: u16 = 255;
}

/// Response codes (IANA "DNS RCODEs"); those above 15 need an OPT to carry their upper bits.
pub mod rcode {
    #![expect(missing_docs, reason = "the mnemonics are IANA's")]
    pub const NOERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const YXDOMAIN: u16 = 6;
    pub const NOTAUTH: u16 = 9;
    pub const BADVERS: u16 = 16;
    pub const BADCOOKIE: u16 = 23;
}

/// INFO-CODEs of extended DNS errors that we give or act on (IANA "Extended DNS Error Codes", RFC 8914).
pub mod ede {
    #![expect(missing_docs, reason = "the names are IANA's")]
    pub const OTHER: u16 = 0;
    pub const STALE_ANSWER: u16 = 3;
    pub const DNSSEC_BOGUS: u16 = 6;
    pub const PROHIBITED: u16 = 18;
    pub const STALE_NXDOMAIN: u16 = 19;
    pub const NOT_SUPPORTED: u16 = 21;
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
    pub const NETWORK_ERROR: u16 = 23;
}

/// Bits of the second header word (RFC 1035 §4.1.1, RFC 4035 §3).
mod flag {
    pub(super) const QR: u16 = 0x8000;
    pub(super) const OPCODE: u16 = 0x7800;
    pub(super) const TC: u16 = 0x0200;
    pub(super) const RD: u16 = 0x0100;
    pub(super) const RA: u16 = 0x0080;
    pub(super) const AD: u16 = 0x0020;
    pub(super) const CD: u16 = 0x0010;
    pub(super) const RCODE: u16 = 0x000f;
}

/// What is asked upstream and keyed in the cache: name lower-case, DO and CD included.
///
/// Two clients whose letters, ids, sizes or AD bits differ ask the same question; DO and CD change what comes back
/// and keep answers apart (RFC 4035 §3.2.1, RFC 6840 §5.9).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The name asked.
    pub name: Name,
    /// The type asked.
    pub qtype: u16,
    /// The class asked; [`see`] lets only [`class::IN`] pass.
    pub qclass: u16,
    /// DNSSEC records are wanted (RFC 3225).
    pub dnssec_ok: bool,
    /// The client checks signatures itself (RFC 4035 §3.2.2).
    pub checking_disabled: bool,
}

impl Question {
    /// Makes a plain question of class IN, without DO and CD: what our own questions are.
    pub fn new(name: Name, qtype: u16) -> Self {
        Self { name, qtype, qclass: class::IN, dnssec_ok: false, checking_disabled: false }
    }

    /// Returns the same without owning the name.
    pub fn as_key(&self) -> QuestionKey<'_> {
        QuestionKey {
            name: self.name.as_wire(),
            qtype: self.qtype,
            qclass: self.qclass,
            dnssec_ok: self.dnssec_ok,
            checking_disabled: self.checking_disabled,
        }
    }
}

/// A [`Question`] that borrows its name, to look one up without allocating.
///
/// It hashes exactly as the [`Question`] with the same fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuestionKey<'a> {
    /// The name asked: lower-case, uncompressed wire form.
    pub name: &'a [u8],
    /// The type asked.
    pub qtype: u16,
    /// The class asked.
    pub qclass: u16,
    /// DNSSEC records are wanted.
    pub dnssec_ok: bool,
    /// The client checks signatures itself.
    pub checking_disabled: bool,
}

impl hashbrown::Equivalent<Question> for QuestionKey<'_> {
    fn equivalent(&self, question: &Question) -> bool {
        *self == question.as_key()
    }
}

/// Returns whether a reply says anything but that all went well, as far as its header tells.
pub fn is_error(reply: &[u8]) -> bool {
    u16_at(reply, 2).is_some_and(|flags| flags & flag::RCODE != rcode::NOERROR)
}

/// Reads 16 bits at `at`.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([two[0], two[1]]))
}

/// Reads 32 bits at `at`.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes([four[0], four[1], four[2], four[3]]))
}

/// Writes 16 bits over those at `at`, if they are there.
fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(two) = bytes.get_mut(at..at + 2) {
        two.copy_from_slice(&value.to_be_bytes());
    }
}

/// Writes 32 bits over those at `at`, if they are there.
fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(four) = bytes.get_mut(at..at + 4) {
        four.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn borrowed_question_hashes_as_the_owned_one() {
        let state = foldhash::fast::RandomState::default();
        for (name, qtype, dnssec_ok, checking_disabled) in
            [("zoom.us", rtype::A, true, false), (".", rtype::NS, false, true), ("a.b", 65_280, true, true)]
        {
            let mut question = Question::new(Name::parse(name).unwrap(), qtype);
            question.dnssec_ok = dnssec_ok;
            question.checking_disabled = checking_disabled;
            assert_eq!(state.hash_one(&question), state.hash_one(question.as_key()));
            assert!(hashbrown::Equivalent::equivalent(&question.as_key(), &question));
        }
    }
}
