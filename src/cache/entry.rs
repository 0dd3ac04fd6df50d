//! One cached answer, and what was found out about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::Timestamp;
use crate::metrics::Tally;
use crate::wire::{Answer, HEADER_LEN, Question, TagOption};

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
    /// Whether it left the cache.
    has_left: AtomicBool,
}

impl Entry {
    /// Puts an entry together.
    pub fn new(answer: Answer, stored: Timestamp, lifetime_secs: u32, mark: Mark) -> Self {
        Self { answer, stored, lifetime_secs, mark, has_left: AtomicBool::new(false) }
    }

    /// Returns whether the answer may still be given.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        let lifetime_millis = u64::from(self.lifetime_secs) * 1000;
        now.as_millis() < self.stored.as_millis().saturating_add(lifetime_millis)
    }

    /// Returns the whole seconds since it came; a TTL is told less this.
    ///
    /// Rounded down, so an answer is told to live up to a second longer than it was stored for; the learner is
    /// offered a TTL longer by that second.
    pub fn age_secs(&self, now: Timestamp) -> u32 {
        let age_millis = now.as_millis().saturating_sub(self.stored.as_millis());
        u32::try_from(age_millis / 1000).unwrap_or(u32::MAX)
    }

    /// Returns whether the answer is to the name and type of a key; its flags stand in the hash.
    pub(super) fn has_question(&self, key: &[u8]) -> bool {
        let kept = self.answer.bytes().get(HEADER_LEN..).unwrap_or_default();
        let Some((qtype, name)) = key.split_at_checked(2).and_then(|(qtype, rest)| Some((qtype, rest.get(1..)?)))
        else {
            return false;
        };
        kept.get(name.len()..name.len() + 2) == Some(qtype) && kept.starts_with(name)
    }

    /// Reads what stands at both ends of the entry itself, only to have it read.
    pub(super) fn touch_head(&self) -> usize {
        self.answer.bytes().len() ^ self.lifetime_secs as usize ^ usize::from(self.is_kept())
    }

    /// Reads an octet of each cache line of the answer, only to have it read.
    pub(super) fn touch_octets(&self) -> usize {
        const LINE: usize = 64;
        let octets = self.answer.bytes();
        let firsts = octets.iter().step_by(LINE).chain(octets.last());
        firsts.fold(0, |touched, octet| touched ^ usize::from(*octet))
    }

    /// Returns whether it has not left the cache since it was found there.
    pub(super) fn is_kept(&self) -> bool {
        !self.has_left.load(Ordering::Acquire)
    }

    pub(super) fn leave(&self) {
        self.has_left.store(true, Ordering::Release);
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
        let mut buf = KeyBuf::new();
        let flags = (question.dnssec_ok, question.checking_disabled);
        Self(buf.fill(question.qtype, flags, question.name.as_wire()).into())
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

    /// Writes the key of a lower-case name in wire form; `flags` are DO and CD. A longer name than 255 octets is cut.
    pub fn fill(&mut self, qtype: u16, flags: (bool, bool), name: &[u8]) -> &[u8] {
        let name = &name[..name.len().min(KEY_LEN_MAX - 3)];
        let len = 3 + name.len();
        let octets = &mut self.0[..len];
        octets[..2].copy_from_slice(&qtype.to_be_bytes());
        octets[2] = u8::from(flags.0) | u8::from(flags.1) << 1;
        octets[3..].copy_from_slice(name);
        octets
    }

    /// The same with a name whose letters may have any case.
    pub fn fill_folded(&mut self, qtype: u16, flags: (bool, bool), name: &[u8]) -> &[u8] {
        let len = self.fill(qtype, flags, name).len();
        let octets = &mut self.0[..len];
        // Length octets are below `A`, so folding the whole slice leaves them alone.
        octets[3..].make_ascii_lowercase();
        octets
    }
}

impl Default for KeyBuf {
    fn default() -> Self {
        Self::new()
    }
}
