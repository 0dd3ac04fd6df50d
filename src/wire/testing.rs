//! Messages for tests, put together octet by octet so that wrong ones can be made as easily as right ones.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::Message;

use super::{Question, Rules, Seen, Transport, View, Walked, class, rtype, see, walk};
use crate::name::Name;

pub(super) const ID: u16 = 0xbeef;

/// Sections as the counts of a header have them.
pub(super) const ANSWER: usize = 1;
pub(super) const AUTHORITY: usize = 2;
pub(super) const ADDITIONAL: usize = 3;

/// Rules that leave TTLs alone.
pub(super) const PLAIN: Rules = Rules { min_ttl: 0, max_ttl: 86_400, negative_max_ttl: 3600, trust_ad: true };

/// A piece of RDATA.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum P {
    Octets(Vec<u8>),
    /// A name that this draft may compress.
    Name(String),
    /// A name that it never does.
    Plain(String),
}

/// A message being made.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    bytes: Vec<u8>,
    /// Where suffixes stand, if names are compressed.
    packed: Option<HashMap<Vec<u8>, u16>>,
}

impl Draft {
    /// A query with RD, class IN.
    pub(super) fn query(name: &str, qtype: u16) -> Self {
        Self::empty(0x0100).question(name, qtype, class::IN)
    }

    /// A reply with QR, RD and RA.
    pub(super) fn reply(name: &str, qtype: u16) -> Self {
        Self::empty(0x8180).question(name, qtype, class::IN)
    }

    /// The same, with compressed names.
    pub(super) fn packed_reply(name: &str, qtype: u16) -> Self {
        Self { packed: Some(HashMap::new()), ..Self::empty(0x8180) }.question(name, qtype, class::IN)
    }

    pub(super) fn empty(flags: u16) -> Self {
        let mut bytes = vec![0; 12];
        bytes[..2].copy_from_slice(&ID.to_be_bytes());
        bytes[2..4].copy_from_slice(&flags.to_be_bytes());
        Self { bytes, packed: None }
    }

    pub(super) fn question(mut self, name: &str, qtype: u16, qclass: u16) -> Self {
        self.name(name);
        self.raw(&qtype.to_be_bytes()).raw(&qclass.to_be_bytes()).count(0)
    }

    /// Sets or clears flags.
    pub(super) fn flags(mut self, set: u16, clear: u16) -> Self {
        let flags = (u16::from_be_bytes([self.bytes[2], self.bytes[3]]) & !clear) | set;
        self.bytes[2..4].copy_from_slice(&flags.to_be_bytes());
        self
    }

    pub(super) fn raw(mut self, octets: &[u8]) -> Self {
        self.bytes.extend_from_slice(octets);
        self
    }

    /// Counts one more record (or question) in a section.
    pub(super) fn count(mut self, section: usize) -> Self {
        let at = 4 + 2 * section;
        let count = u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]) + 1;
        self.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
        self
    }

    fn name(&mut self, text: &str) {
        let wire = wire(text);
        let mut at = 0;
        while wire[at] != 0 {
            let suffix = wire[at..].to_ascii_lowercase();
            let here = self.bytes.len();
            if let Some(packed) = &mut self.packed {
                if let Some(place) = packed.get(&suffix) {
                    self.bytes.extend_from_slice(&(0xc000 | place).to_be_bytes());
                    return;
                }
                if here < 0x4000 {
                    packed.insert(suffix, here as u16);
                }
            }
            let end = at + 1 + usize::from(wire[at]);
            self.bytes.extend_from_slice(&wire[at..end]);
            at = end;
        }
        self.bytes.push(0);
    }

    pub(super) fn record(self, section: usize, owner: &str, rtype: u16, ttl: u32, rdata: &[P]) -> Self {
        self.record_in(class::IN, section, owner, rtype, ttl, rdata)
    }

    pub(super) fn record_in(
        mut self,
        class: u16,
        section: usize,
        owner: &str,
        rtype: u16,
        ttl: u32,
        rdata: &[P],
    ) -> Self {
        self.name(owner);
        self = self.raw(&rtype.to_be_bytes()).raw(&class.to_be_bytes()).raw(&ttl.to_be_bytes()).raw(&[0, 0]);
        let rdata_at = self.bytes.len();
        for piece in rdata {
            match piece {
                P::Octets(octets) => self.bytes.extend_from_slice(octets),
                P::Name(name) => self.name(name),
                P::Plain(name) => self.bytes.extend_from_slice(&wire(name)),
            }
        }
        let len = (self.bytes.len() - rdata_at) as u16;
        self.bytes[rdata_at - 2..rdata_at].copy_from_slice(&len.to_be_bytes());
        self.count(section)
    }

    /// A record whose owner is given as it stands in the message.
    pub(super) fn record_of(self, section: usize, owner: &[u8], rtype: u16, ttl: u32, rdata: &[u8]) -> Self {
        self.raw(owner)
            .raw(&rtype.to_be_bytes())
            .raw(&class::IN.to_be_bytes())
            .raw(&ttl.to_be_bytes())
            .raw(&(rdata.len() as u16).to_be_bytes())
            .raw(rdata)
            .count(section)
    }

    pub(super) fn a(self, owner: &str, ttl: u32, addr: &str) -> Self {
        self.record(ANSWER, owner, rtype::A, ttl, &[a(addr)])
    }

    pub(super) fn cname(self, owner: &str, ttl: u32, target: &str) -> Self {
        self.record(ANSWER, owner, rtype::CNAME, ttl, &[P::Name(target.into())])
    }

    pub(super) fn soa(self, section: usize, owner: &str, ttl: u32, minimum: u32) -> Self {
        self.record(section, owner, rtype::SOA, ttl, &soa(minimum))
    }

    pub(super) fn opt(self, size: u16, dnssec_ok: bool, options: &[(u16, &[u8])]) -> Self {
        self.opt_with(&[0], size, u32::from(dnssec_ok) << 15, &options_bytes(options))
    }

    pub(super) fn opt_with(self, owner: &[u8], size: u16, ttl: u32, rdata: &[u8]) -> Self {
        self.raw(owner)
            .raw(&rtype::OPT.to_be_bytes())
            .raw(&size.to_be_bytes())
            .raw(&ttl.to_be_bytes())
            .raw(&(rdata.len() as u16).to_be_bytes())
            .raw(rdata)
            .count(ADDITIONAL)
    }

    pub(super) fn build(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

pub(super) fn options_bytes(options: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (code, value) in options {
        bytes.extend_from_slice(&code.to_be_bytes());
        bytes.extend_from_slice(&(value.len() as u16).to_be_bytes());
        bytes.extend_from_slice(value);
    }
    bytes
}

/// Wire form of dotted text, letter case kept.
pub(super) fn wire(text: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        wire.push(label.len() as u8);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire
}

pub(super) fn a(addr: &str) -> P {
    P::Octets(addr.parse::<Ipv4Addr>().unwrap().octets().to_vec())
}

pub(super) fn aaaa(addr: &str) -> P {
    P::Octets(addr.parse::<Ipv6Addr>().unwrap().octets().to_vec())
}

pub(super) fn soa(minimum: u32) -> [P; 3] {
    let mut numbers = Vec::new();
    for number in [2026, 7200, 900, 1_209_600, minimum] {
        numbers.extend_from_slice(&u32::to_be_bytes(number));
    }
    [P::Name("ns.example".into()), P::Name("hostmaster.example".into()), P::Octets(numbers)]
}

/// RDATA of HTTPS or SVCB.
pub(super) fn svcb(priority: u16, target: &str, params: &[(u16, &[u8])]) -> [P; 3] {
    let params = options_bytes(params);
    [P::Octets(priority.to_be_bytes().to_vec()), P::Plain(target.into()), P::Octets(params)]
}

/// RDATA of an RRSIG or, with 0, of a SIG(0).
pub(super) fn rrsig(covered: u16, signer: &str) -> [P; 3] {
    let mut fixed = covered.to_be_bytes().to_vec();
    fixed.extend_from_slice(&[13, 2, 0, 0, 1, 44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    [P::Octets(fixed), P::Plain(signer.into()), P::Octets(vec![7; 64])]
}

pub(super) fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

pub(super) fn asks(text: &str, qtype: u16) -> Question {
    Question::new(name(text), qtype)
}

pub(super) fn walked(draft: &Draft, question: &Question) -> Walked {
    walk(&draft.build(), question, &PLAIN).unwrap()
}

/// Sees a query that must be answerable.
pub(super) fn seen(packet: &[u8]) -> View<'_> {
    match see(packet, Transport::Tcp) {
        Seen::Question(view) => view,
        other => panic!("{other:?}"),
    }
}

/// Reads a message with the independent parser.
pub(super) fn parse(message: &[u8]) -> Message {
    Message::from_vec(message).unwrap_or_else(|error| panic!("{error}: {message:02x?}"))
}
