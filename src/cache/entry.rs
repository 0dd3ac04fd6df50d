//! One cached answer, and what was found out about it.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::metrics::Tally;
use crate::wire::{Answer, Question, TagOption};

/// Longest key: type, flags and a name of 255 octets.
const KEY_LEN_MAX: usize = 3 + 255;

/// What is prebuilt for all answers with the same tag, so that a hit only copies it.
#[derive(Debug)]
pub struct Tagged {
    /// The option and the extended error for the client.
    pub option: TagOption,
    /// One counter for each app of the tag, raised with every answer given.
    pub answers: Box<[Tally]>,
}

/// What matching and learning made of an answer.
///
/// The match belongs to one generation of the catalogue. A reader whose catalogue is of another generation, or who
/// finds the addresses not yet in the set, must not answer from the entry before they were offered again.
#[derive(Clone, Debug)]
pub struct Mark {
    /// The generation of the catalogue that matched the name.
    pub generation: u64,
    /// The tag, if the name asked is listed.
    pub tagged: Option<Arc<Tagged>>,
    /// Whether the addresses were learned: for the name asked, or for a listed name that led to it.
    pub is_learned: bool,
    /// Whether every address it tells is in the set for long enough (true, too, if none needs to be).
    pub programmed: bool,
}

/// An answer as it is kept: the upstream's octets, their times, and what was found out about it.
#[derive(Debug)]
pub struct Entry {
    /// The answer.
    pub answer: Answer,
    /// When it came.
    pub stored: Timestamp,
    /// How long it is good for.
    pub lifetime_secs: u32,
    /// Match and learning.
    pub mark: Mark,
}

impl Entry {
    /// Returns whether the answer may still be given.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        now < self.stored.after(Duration::from_secs(u64::from(self.lifetime_secs)))
    }

    /// Returns the whole seconds since it came; a TTL is told less this.
    ///
    /// Rounded down, so an answer is told to live up to a second longer than it was stored for; the learner is
    /// offered a TTL longer by that second.
    pub fn age_secs(&self, now: Timestamp) -> u32 {
        u32::try_from(now.since(self.stored).as_secs()).unwrap_or(u32::MAX)
    }

    /// Returns the octets it takes, its allocations included.
    pub(super) fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.answer.heap_bytes()
    }
}

/// What an answer is found by: type, DO, CD and the name without case. The class is always IN.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Box<[u8]>);

impl Key {
    /// Makes the key of a question.
    pub fn of(question: &Question) -> Self {
        Self(KeyBuf::new().fill_of(question).into())
    }

    /// Returns the octets, as [`KeyBuf::fill`] makes them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::borrow::Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// Room for a key on the stack, for a look-up without allocation.
pub struct KeyBuf([u8; KEY_LEN_MAX]);

impl KeyBuf {
    /// Makes an empty buffer.
    pub fn new() -> Self {
        Self([0; KEY_LEN_MAX])
    }

    /// Writes the key of a question.
    pub fn fill_of(&mut self, question: &Question) -> &[u8] {
        let flags = (question.dnssec_ok, question.checking_disabled);
        self.fill(question.qtype, flags, question.name.as_wire())
    }

    /// Writes the key of a lower-case name in wire form; `flags` are DO and CD. A longer name than 255 octets is cut.
    pub fn fill(&mut self, qtype: u16, flags: (bool, bool), name: &[u8]) -> &[u8] {
        let name = &name[..name.len().min(KEY_LEN_MAX - 3)];
        self.0[..2].copy_from_slice(&qtype.to_be_bytes());
        self.0[2] = u8::from(flags.0) | u8::from(flags.1) << 1;
        self.0[3..3 + name.len()].copy_from_slice(name);
        &self.0[..3 + name.len()]
    }
}

impl Default for KeyBuf {
    fn default() -> Self {
        Self::new()
    }
}
