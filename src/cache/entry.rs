//! One cached answer, and what was found out about it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::time::Duration;

use triomphe::ThinArc;

use crate::clock::Timestamp;
use crate::metrics::Tally;
use crate::name::Name;
use crate::wire::{HEADER_LEN, Kept, Kind, Parts, Question, Shape, TagOption, class};

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

/// An answer as it is kept: the upstream's octets, their times, and what was found out about it. Cheap to clone.
///
/// All of it is one allocation, octets included, and a handle is one word: most of the process's memory is entries.
#[derive(Clone)]
pub struct Entry(ThinArc<Head, u8>);

/// What stands before the octets, in half a cache line: with the two words before it, the octets begin at a multiple of
/// what allocations are rounded to.
struct Head {
    tagged: Option<Arc<Tagged>>,
    /// When the answer came: the lower 32 bits of its milliseconds, and the upper ones.
    stored_low: u32,
    stored_high: u16,
    /// Of the shape; the lifetime is how long the entry is good for.
    message_len: u16,
    ttl_count: u16,
    /// The rcode in 12 bits, and the flags of [`FLAGS`] in the upper four.
    rcode_and_flags: u16,
    lifetime_secs: u32,
    /// Generations beyond its range are never found again; that many reloads do not happen.
    generation: u32,
    /// The lower bits of the second in which it was last asked for in vain; 0 for never.
    failed: AtomicU16,
    kind: Kind,
    /// What becomes of it while it is kept: see [`GIVEN`], [`ASKED_ANEW`], [`HAS_LEFT`] and [`USED`].
    state: AtomicU8,
}

/// Bits that count how often an answer was given; once they are full it is in demand.
const GIVEN: u8 = 0b11;
/// It is to be asked anew, which is said once.
const ASKED_ANEW: u8 = 1 << 2;
/// It left the cache.
const HAS_LEFT: u8 = 1 << 3;
/// Bits that count how often it was found in the cache since it was last looked at to leave.
const USED: u8 = 0b11 << 4;
const USED_ONCE: u8 = 1 << 4;

/// Shorter lives than this are not asked for ahead: it would come to asking all the time.
const LIFETIME_MIN_SECS: u32 = 10;

/// After a failure nobody is asked for this long (RFC 8767 §5).
const RECHECK_SECS: u16 = 30;

/// Where the flags stand beside the rcode.
const FLAGS: u32 = 12;

/// DO and CD of the question, as in a key.
const FLAGS_OF_QUESTION: u8 = DNSSEC_OK | CHECKING_DISABLED;
const DNSSEC_OK: u8 = 1;
const CHECKING_DISABLED: u8 = 1 << 1;
const IS_LEARNED: u8 = 1 << 2;
const PROGRAMMED: u8 = 1 << 3;

impl Entry {
    /// Copies an answer that came at `stored`; it is good for `lifetime_secs`.
    pub fn new(question: &Question, answer: Kept<'_>, stored: Timestamp, lifetime_secs: u32, mark: Mark) -> Self {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flags_of(question.dnssec_ok, question.checking_disabled)
            | flag(mark.is_learned, IS_LEARNED)
            | flag(mark.programmed, PROGRAMMED);
        let Parts { message_len, ttl_count, rcode, kind, .. } = answer.shape().parts();
        // 48 bits of milliseconds reach to the year 10,889.
        let millis = stored.as_millis().min((1 << 48) - 1);
        let head = Head {
            tagged: mark.tagged,
            stored_low: millis as u32,
            stored_high: (millis >> 32) as u16,
            message_len,
            ttl_count,
            rcode_and_flags: rcode & ((1 << FLAGS) - 1) | u16::from(flags) << FLAGS,
            lifetime_secs,
            generation: u32::try_from(mark.generation).unwrap_or(u32::MAX),
            failed: AtomicU16::new(0),
            kind,
            state: AtomicU8::new(0),
        };
        Self(ThinArc::from_header_and_slice(head, answer.octets()))
    }

    /// Returns the answer for reading.
    pub fn answer(&self) -> Kept<'_> {
        Kept::new(self.head().shape(), &self.0.slice)
    }

    /// Returns when the answer came.
    pub fn stored(&self) -> Timestamp {
        self.head().stored()
    }

    /// Returns how long it is good for, in seconds.
    pub fn lifetime_secs(&self) -> u32 {
        self.head().lifetime_secs
    }

    /// Returns the tag, if the name asked is listed.
    pub fn tagged(&self) -> Option<&Tagged> {
        self.head().tagged.as_deref()
    }

    /// Returns whether the catalogue of that generation matched it.
    pub fn is_of(&self, generation: u64) -> bool {
        u64::from(self.head().generation) == generation
    }

    /// See [`Mark::is_learned`].
    pub fn is_learned(&self) -> bool {
        self.head().flags() & IS_LEARNED != 0
    }

    /// See [`Mark::programmed`].
    pub fn is_programmed(&self) -> bool {
        self.head().flags() & PROGRAMMED != 0
    }

    /// Returns whether the answer may still be given.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        let lifetime_millis = u64::from(self.lifetime_secs()) * 1000;
        now.as_millis() < self.stored().as_millis().saturating_add(lifetime_millis)
    }

    /// Returns when its lowest TTL ends.
    pub fn end(&self) -> Timestamp {
        self.stored().after(Duration::from_secs(u64::from(self.lifetime_secs())))
    }

    /// Takes note that the answer is given at `now`, and returns whether it must be asked for anew: it is in demand,
    /// and in the last tenth of its life. That is said once in a life.
    ///
    /// All threads share the count, so it is written only until the demand is known.
    #[inline]
    pub fn is_due(&self, now: Timestamp) -> bool {
        let Head { state: shared, lifetime_secs, .. } = self.head();
        let state = shared.load(Ordering::Relaxed);
        if state & ASKED_ANEW != 0 {
            return false;
        }
        if state & GIVEN < GIVEN {
            // Of two at once one may be lost: it is a demand still if many ask.
            let _ = shared.compare_exchange(state, state + 1, Ordering::Relaxed, Ordering::Relaxed);
            return false;
        }
        let (lifetime_secs, age_millis) = (*lifetime_secs, now.as_millis().saturating_sub(self.stored().as_millis()));
        lifetime_secs >= LIFETIME_MIN_SECS
            && age_millis >= u64::from(lifetime_secs) * 900
            && shared.fetch_or(ASKED_ANEW, Ordering::Relaxed) & ASKED_ANEW == 0
    }

    /// Takes note that asking for it anew failed.
    pub fn note_failure(&self, now: Timestamp) {
        self.head().failed.store(low_secs(now).max(1), Ordering::Relaxed);
    }

    /// Returns whether that was less than 30 s ago, when nobody needs to be asked again.
    ///
    /// Only the lower bits of the time are kept: 18 hours after a failure it seems a moment ago once more, which
    /// delays a try by as much.
    pub fn has_failed_lately(&self, now: Timestamp) -> bool {
        let failed = self.head().failed.load(Ordering::Relaxed);
        failed != 0 && low_secs(now).wrapping_sub(failed) < RECHECK_SECS
    }

    /// Returns the question that it answers; `None` never comes of an entry that was made of an answer.
    pub fn question(&self) -> Option<Question> {
        let (name, rest) = self.name_and_rest()?;
        let qtype = u16::from_be_bytes(*rest.first_chunk()?);
        let flags = self.head().flags();
        let (dnssec_ok, checking_disabled) = (flags & DNSSEC_OK != 0, flags & CHECKING_DISABLED != 0);
        Some(Question { name: Name::from_wire(name).ok()?, qtype, qclass: class::IN, dnssec_ok, checking_disabled })
    }

    /// Returns the whole seconds since it came; a TTL is told less this.
    ///
    /// Rounded down, so an answer is told to live up to a second longer than it was stored for; the learner is
    /// offered a TTL longer by that second.
    pub fn age_secs(&self, now: Timestamp) -> u32 {
        let age_millis = now.as_millis().saturating_sub(self.stored().as_millis());
        u32::try_from(age_millis / 1000).unwrap_or(u32::MAX)
    }

    /// Reads what stands before the octets, only to have it read.
    pub(super) fn touch_head(&self) -> usize {
        self.lifetime_secs() as usize ^ usize::from(self.is_kept())
    }

    /// Reads an octet of each cache line of the answer, only to have it read.
    pub(super) fn touch_octets(&self) -> usize {
        const LINE: usize = 64;
        let octets = &self.0.slice;
        let firsts = octets.iter().step_by(LINE).chain(octets.last());
        firsts.fold(0, |touched, octet| touched ^ usize::from(*octet))
    }

    /// Returns whether it has not left the cache since it was found there.
    pub(super) fn is_kept(&self) -> bool {
        self.head().state.load(Ordering::Acquire) & HAS_LEFT == 0
    }

    /// Notes that it was found in the cache. All threads share the note, so it is written only until it is full.
    pub(super) fn note_found(&self) {
        let state = &self.head().state;
        let before = state.load(Ordering::Relaxed);
        if before & USED < USED {
            // Of two at once one may be lost.
            let _ = state.compare_exchange(before, before + USED_ONCE, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Returns how often it was found since, at most three times, and forgets one of these.
    pub(super) fn count_down(&self) -> u8 {
        let state = &self.head().state;
        let before = state.load(Ordering::Relaxed);
        if before & USED != 0 {
            let _ = state.compare_exchange(before, before - USED_ONCE, Ordering::Relaxed, Ordering::Relaxed);
        }
        (before & USED) / USED_ONCE
    }

    pub(super) fn leave(&self) {
        self.head().state.fetch_or(HAS_LEFT, Ordering::Release);
    }

    /// Returns whether it answers the question of a key.
    pub(super) fn answers(&self, key: &[u8]) -> bool {
        let Some((&[high, low, flags], name)) = key.split_first_chunk() else { return false };
        // The question stands behind the header: the name, lower case and whole, then type and class.
        let kept = self.0.slice.get(HEADER_LEN..).unwrap_or_default();
        flags == self.head().flags() & FLAGS_OF_QUESTION
            && kept.get(..name.len()) == Some(name)
            && kept.get(name.len()..name.len() + 2) == Some(&[high, low])
    }

    /// Returns the octets of its allocation: count and length, head, answer, and what the allocator adds.
    pub(super) fn size_bytes(&self) -> usize {
        let asked = 2 * size_of::<usize>() + size_of::<Head>() + self.0.slice.len();
        (asked + ALLOCATION_BYTES).next_multiple_of(ALLOCATION_UNIT)
    }

    /// Writes the key that it answers.
    pub(super) fn fill_key<'a>(&self, key: &'a mut KeyBuf) -> &'a [u8] {
        let (name, rest) = self.name_and_rest().unwrap_or_default();
        let qtype = rest.first_chunk().map_or(0, |octets| u16::from_be_bytes(*octets));
        let flags = self.head().flags();
        key.fill(qtype, (flags & DNSSEC_OK != 0, flags & CHECKING_DISABLED != 0), name)
    }

    /// Splits the octets behind the header after the question's name, which is lower case and whole.
    fn name_and_rest(&self) -> Option<(&[u8], &[u8])> {
        let rest = self.0.slice.get(HEADER_LEN..)?;
        let mut name_len = 1;
        while let Some(len @ 1..) = rest.get(name_len - 1) {
            name_len += 1 + usize::from(*len);
        }
        rest.split_at_checked(name_len)
    }

    fn head(&self) -> &Head {
        &self.0.header.header
    }
}

impl Head {
    fn stored(&self) -> Timestamp {
        Timestamp::from_millis(u64::from(self.stored_high) << 32 | u64::from(self.stored_low))
    }

    fn flags(&self) -> u8 {
        (self.rcode_and_flags >> FLAGS) as u8
    }

    fn shape(&self) -> Shape {
        let &Self { lifetime_secs, message_len, ttl_count, rcode_and_flags, kind, .. } = self;
        Parts { lifetime_secs, message_len, ttl_count, rcode: rcode_and_flags & ((1 << FLAGS) - 1), kind }.into()
    }
}

/// What the usual allocators (glibc's) keep beside each allocation, and the unit that they round to.
const ALLOCATION_BYTES: usize = 8;
const ALLOCATION_UNIT: usize = 16;

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("stored", &self.stored()).field("answer", &self.answer()).finish_non_exhaustive()
    }
}

fn low_secs(now: Timestamp) -> u16 {
    now.as_secs() as u16
}

fn flags_of(dnssec_ok: bool, checking_disabled: bool) -> u8 {
    u8::from(dnssec_ok) | u8::from(checking_disabled) << 1
}

/// What an answer is found by: type, DO, CD and the name without case. The class is always IN. On the stack, so that a
/// look-up takes no allocation.
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
        let len = 3 + name.len();
        let octets = &mut self.0[..len];
        octets[..2].copy_from_slice(&qtype.to_be_bytes());
        octets[2] = flags_of(flags.0, flags.1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use crate::wire;

    fn entry(name: &str, qtype: u16, flags: (bool, bool)) -> (Entry, Vec<u8>) {
        let (dnssec_ok, checking_disabled) = flags;
        let question = Question { name: Name::parse(name).unwrap(), qtype, qclass: 1, dnssec_ok, checking_disabled };
        let mark = Mark { generation: 7, tagged: None, is_learned: true, programmed: false };
        let answer = wire::synthesize(&question, 0, &[wire::Ede::new(22, "text")]);
        (
            Entry::new(&question, answer.kept(), Timestamp::from_secs(1), 30, mark),
            KeyBuf::new().fill_of(&question).to_vec(),
        )
    }

    #[test]
    fn an_entry_answers_the_question_of_its_own_key_only() {
        let cases = [
            ("a.example", 1, (false, false)),
            ("a.example", 1, (true, false)),
            ("a.example", 1, (false, true)),
            ("a.example", 28, (false, false)),
            ("b.example", 1, (false, false)),
            ("example", 1, (false, false)),
            ("x.a.example", 1, (false, false)),
            (".", 1, (false, false)),
        ];
        for (i, (name, qtype, flags)) in cases.into_iter().enumerate() {
            for (j, (other, other_type, other_flags)) in cases.into_iter().enumerate() {
                let (entry, key) = (entry(name, qtype, flags).0, entry(other, other_type, other_flags).1);
                assert_eq!(entry.answers(&key), i == j, "{name} {qtype} for {other} {other_type}");
            }
        }
        assert!(!entry("a.example", 1, (false, false)).0.answers(&[0]));
    }

    #[test]
    fn an_entry_knows_its_question() {
        for (name, qtype, flags) in [("a.b.example", 28, (true, false)), (".", 2, (false, true))] {
            let question = entry(name, qtype, flags).0.question().unwrap();
            assert_eq!((question.name, question.qtype, question.qclass), (Name::parse(name).unwrap(), qtype, 1));
            assert_eq!((question.dnssec_ok, question.checking_disabled), flags);
        }
    }

    #[test]
    fn an_entry_in_demand_is_due_once_and_in_its_last_tenth() {
        let at = |millis: u64| Timestamp::from_millis(1000 + millis);
        let (entry, _) = entry("a.example", 1, (false, false));
        // It lives for 30 s.
        assert!(!entry.is_due(at(0)) && !entry.is_due(at(1)), "not in demand");
        assert!(!entry.is_due(at(28_000)), "the third time it is");
        assert!(!entry.is_due(at(26_999)), "too early");
        assert!(entry.clone().is_due(at(27_000)));
        assert!(!entry.is_due(at(27_000)) && !entry.is_due(at(29_999)), "once");
    }

    #[test]
    fn a_failure_is_remembered_for_half_a_minute() {
        let (entry, _) = entry("a.example", 1, (false, false));
        // Where the kept bits are 0, too.
        for secs in [1_800_000_000, 0x6b4a_0000] {
            let at = |more: u64| Timestamp::from_secs(secs + more);
            assert!(!entry.has_failed_lately(at(0)));
            entry.note_failure(at(0));
            assert!(entry.clone().has_failed_lately(at(1)) && entry.has_failed_lately(at(29)));
            assert!(!entry.has_failed_lately(at(31)));
        }
    }

    #[test]
    fn a_head_holds_what_was_put_in() {
        let (entry, _) = entry("a.example", 1, (true, true));
        assert!(entry.is_of(7) && !entry.is_of(8) && entry.is_learned() && !entry.is_programmed());
        assert_eq!((entry.lifetime_secs(), entry.stored()), (30, Timestamp::from_secs(1)));
        assert_eq!(entry.answer().edes(), [wire::Ede::new(22, "text")]);
        assert!(entry.is_fresh(Timestamp::from_secs(30)) && !entry.is_fresh(Timestamp::from_secs(31)));
        assert_eq!((size_of::<Entry>(), size_of::<Head>()), (8, 32));
    }
}
