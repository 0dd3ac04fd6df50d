//! One block of octets holds all of an answer: the message, where its TTLs stand, its extended errors.
//!
//! ```text
//! message, no OPT │ u16 per TTL, in the machine's order │ EDE options as they go into an OPT
//! ```
//! A [`Shape`] says where the parts meet. [`Kept`] reads both wherever they lie: in an [`Answer`](super::Answer) of its
//! own, or behind the head of a cache's entry, so that a cached answer is one allocation.

use super::answer::Kind;
use super::opt::{self, EDE_LEN, Ede, Options};
use super::{HEADER_LEN, u16_at};

/// What is known of an answer's block without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Zero for an answer that must not be cached.
    pub(super) lifetime_secs: u32,
    /// Octets of the message.
    pub(super) message_len: u16,
    /// How many TTLs the message has.
    pub(super) ttl_count: u16,
    pub(super) rcode: u16,
    pub(super) kind: Kind,
}

impl Shape {
    /// Returns it with another lifetime, in seconds; zero for none.
    #[must_use]
    pub fn with_lifetime(self, lifetime_secs: u32) -> Self {
        Self { lifetime_secs, ..self }
    }

    /// Returns how long the answer may be kept, in seconds; zero for not at all.
    pub fn lifetime_secs(self) -> u32 {
        self.lifetime_secs
    }

    /// Returns the rcode, 12 bits.
    pub fn rcode(self) -> u16 {
        self.rcode
    }

    /// Takes it apart, for those who keep many of them.
    pub fn parts(self) -> Parts {
        let Self { lifetime_secs, message_len, ttl_count, rcode, kind } = self;
        Parts { lifetime_secs, message_len, ttl_count, rcode, kind }
    }
}

/// A [`Shape`] taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// See [`Shape::lifetime_secs`].
    pub lifetime_secs: u32,
    /// Octets of the message.
    pub message_len: u16,
    /// How many TTLs it has.
    pub ttl_count: u16,
    /// 12 bits.
    pub rcode: u16,
    /// What it amounts to.
    pub kind: Kind,
}

impl From<Parts> for Shape {
    fn from(parts: Parts) -> Self {
        let Parts { lifetime_secs, message_len, ttl_count, rcode, kind } = parts;
        Self { lifetime_secs, message_len, ttl_count, rcode, kind }
    }
}

/// An answer, read where it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept<'a> {
    shape: Shape,
    octets: &'a [u8],
}

impl<'a> Kept<'a> {
    /// Reads a block that was made with this shape; of another one it comes out garbled, but within its octets.
    pub fn new(shape: Shape, octets: &'a [u8]) -> Self {
        Self { shape, octets }
    }

    /// Returns what is known of the block.
    pub fn shape(self) -> Shape {
        self.shape
    }

    /// Returns the whole block.
    pub fn octets(self) -> &'a [u8] {
        self.octets
    }

    /// Returns the message: header, question (lower case), records, no OPT; id 0, RD and CD clear.
    pub fn bytes(self) -> &'a [u8] {
        self.octets.get(..usize::from(self.shape.message_len)).unwrap_or_default()
    }

    /// Returns the rcode, 12 bits.
    pub fn rcode(self) -> u16 {
        self.shape.rcode
    }

    /// Returns what the answer amounts to.
    pub fn kind(self) -> Kind {
        self.shape.kind
    }

    /// Returns the extended errors that go with it.
    pub fn edes(self) -> Vec<Ede> {
        opt::edes_in(self.ede_options())
    }

    /// Returns where each record's TTL stands, ascending.
    pub(super) fn ttl_offsets(self) -> impl Iterator<Item = usize> + 'a {
        let octets = self.octets.get(usize::from(self.shape.message_len)..self.edes_at()).unwrap_or_default();
        octets.chunks_exact(2).map(|two| usize::from(u16::from_ne_bytes([two[0], two[1]])))
    }

    /// Returns the EDE options, one after the other.
    pub(super) fn ede_options(self) -> &'a [u8] {
        self.octets.get(self.edes_at()..).unwrap_or_default()
    }

    /// Returns how many octets the EDE options take without their texts.
    pub(super) fn textless_edes_len(self) -> usize {
        match self.ede_options() {
            [] => 0,
            options => Options::new(options).count() * EDE_LEN,
        }
    }

    /// Returns where the authority section starts.
    pub(super) fn authority_at(self) -> usize {
        self.end_of_records(self.count(6))
    }

    /// Returns where the additional section starts.
    pub(super) fn additional_at(self) -> usize {
        self.end_of_records(self.count(6) + self.count(8))
    }

    /// Returns the count of records that stands at an octet of the header.
    fn count(self, at: usize) -> usize {
        u16_at(self.bytes(), at).map_or(0, usize::from)
    }

    /// Returns where the first `count` records end: every record has a TTL, and behind it its length.
    fn end_of_records(self, count: usize) -> usize {
        let message = self.bytes();
        let last_ttl_at = count.checked_sub(1).and_then(|last| self.ttl_offsets().nth(last));
        let end = match last_ttl_at {
            Some(ttl_at) => ttl_at + 6 + u16_at(message, ttl_at + 4).map_or(0, usize::from),
            None => self.records_at(),
        };
        end.min(message.len())
    }

    /// Returns where the question ends: it is one, its name is whole.
    fn records_at(self) -> usize {
        let mut at = HEADER_LEN;
        while let Some(len @ 1..) = self.octets.get(at) {
            at += 1 + usize::from(*len);
        }
        at + 5
    }

    fn edes_at(self) -> usize {
        usize::from(self.shape.message_len) + 2 * usize::from(self.shape.ttl_count)
    }
}
