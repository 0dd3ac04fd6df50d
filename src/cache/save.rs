//! Answers over a restart: written at an orderly end, read at the next start.
//!
//! ```text
//! head:    magic │ version u32 │ origin u32 │ saved at u64 │ crc32 of these
//! records: length u32 │ crc32 │ stored at u64, lifetime u32, DO and CD u8, message, extended errors
//! end:     length 0 │ crc32 │ count of records u64
//! ```
//! Numbers are little-endian, times are milliseconds of wall time. The file is believed no more than an upstream: each
//! message is walked again, under the clamps of now, and what has ended is left out. A restored [`Entry`] is of no
//! generation, so that whoever asks for it first has it matched by the catalogue of now and its addresses learned before
//! it is given. *Origin* stands for whom the answers were asked of: those of other upstreams are not taken.
//!
//! The file is written beside its place and renamed. Nothing waits for the disk: what the loss of power leaves of it does
//! not pass its checksums. It is removed once it is read; one that is damaged is set aside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{Cache, Entry, Mark};
use crate::clock::Timestamp;
use crate::name::Name;
use crate::wire::{self, EDES_MAX, Ede, HEADER_LEN, Kind, MESSAGE_LEN_MAX, Question, Rules, class};

const MAGIC: [u8; 16] = *b"greenlane cache\n";

/// Of this form; another one is not read.
const VERSION: u32 = 1;

/// The most octets of a record: a message, what stands before it, and extended errors with their texts.
const RECORD_LEN_MAX: usize = MESSAGE_LEN_MAX + 64 + EDES_MAX * (3 + u8::MAX as usize);

/// How much may be written and read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Only its user reads the file: it tells what was asked for.
const MODE: u32 = 0o600;

const DNSSEC_OK: u8 = 1;
const CHECKING_DISABLED: u8 = 1 << 1;

/// Why a file was not read, or not to its end.
#[derive(Debug, Error)]
pub enum Fault {
    /// Another kind of file.
    #[error("is no saved cache")]
    NotOurs,
    /// Written by another greenlane.
    #[error("is of form {0}, expected {VERSION}")]
    Version(u32),
    /// Asked of others.
    #[error("holds answers of other upstreams or limits than those of now")]
    Origin,
    /// Saved in the future, so that nobody knows what has ended.
    #[error("was saved at {0}, which is still to come: the clock was set back")]
    Clock(Timestamp),
    /// What was written is not what is there.
    #[error("is damaged at octet {0}")]
    Damaged(u64),
    /// What the system says.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// What must be the same when answers are read as when they were saved, and what they are bounded by.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Stands for whom the answers were asked of.
    pub origin: u32,
    /// Now, in wall time.
    pub now: Timestamp,
    /// How TTLs are bounded now.
    pub rules: Rules,
}

/// Writes what is fresh into the file at `path`, as long as `may_go_on`; returns how many answers that were, or `None` if
/// it may not go on.
///
/// # Errors
/// What the system says; an older file is left as it was.
pub fn save(cache: &Cache, path: &Path, frame: &Frame, may_go_on: impl Fn() -> bool) -> io::Result<Option<u64>> {
    let new = beside(path, "new");
    // One that an earlier end left may be of another user.
    let _ = fs::remove_file(&new);
    let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&new)?;
    let written = write(file, cache.entries().take_while(|_| may_go_on()), frame);
    let result = written.and_then(|count| {
        let is_whole = may_go_on();
        if is_whole {
            fs::rename(&new, path)?;
        }
        Ok(is_whole.then_some(count))
    });
    if !matches!(result, Ok(Some(_))) {
        let _ = fs::remove_file(&new);
    }
    result
}

/// Reads the file at `path`, if there is one, gives each answer that is fresh to `each` until that returns false, and
/// removes the file. Returns how many were given, and why not all.
pub fn restore(path: &Path, frame: &Frame, each: impl FnMut(Question, Entry) -> bool) -> (u64, Option<Fault>) {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return (0, None),
        Err(error) => return (0, Some(error.into())),
    };
    let (count, result) = read(file, frame, each);
    let _ = match result {
        Ok(()) | Err(Fault::Origin | Fault::Clock(_) | Fault::Version(_)) => fs::remove_file(path),
        Err(Fault::Io(_)) => Ok(()),
        Err(Fault::NotOurs | Fault::Damaged(_)) => fs::rename(path, beside(path, "damaged")),
    };
    (count, result.err())
}

/// The file's name with an ending.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

fn write(file: impl Write, entries: impl Iterator<Item = Entry>, frame: &Frame) -> io::Result<u64> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    let mut head = MAGIC.to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend(frame.origin.to_le_bytes());
    head.extend(frame.now.as_millis().to_le_bytes());
    let crc = crc32fast::hash(&head);
    head.extend(crc.to_le_bytes());
    out.write_all(&head)?;
    let (mut count, mut body) = (0_u64, Vec::new());
    for entry in entries.filter(|entry| entry.is_fresh(frame.now) && entry.answer().kind() != Kind::Failure) {
        if !encode(&entry, &mut body) {
            continue;
        }
        // At most a record's length, far below 4 GiB.
        out.write_all(&(body.len() as u32).to_le_bytes())?;
        out.write_all(&crc32fast::hash(&body).to_le_bytes())?;
        out.write_all(&body)?;
        count += 1;
    }
    let last = count.to_le_bytes();
    out.write_all(&0_u32.to_le_bytes())?;
    out.write_all(&crc32fast::hash(&last).to_le_bytes())?;
    out.write_all(&last)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.flush()?;
    Ok(count)
}

/// Writes a record; returns false for an entry that has no question, of which there are none.
fn encode(entry: &Entry, out: &mut Vec<u8>) -> bool {
    out.clear();
    let Some(question) = entry.question() else { return false };
    let answer = entry.answer();
    out.extend(entry.stored().as_millis().to_le_bytes());
    out.extend(entry.lifetime_secs().to_le_bytes());
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    out.push(flag(question.dnssec_ok, DNSSEC_OK) | flag(question.checking_disabled, CHECKING_DISABLED));
    // A message has at most 65,535 octets.
    out.extend((answer.bytes().len() as u16).to_le_bytes());
    out.extend(answer.bytes());
    for ede in answer.edes().iter().take(EDES_MAX) {
        let text = ede.text.as_bytes();
        let text = &text[..text.len().min(usize::from(u8::MAX))];
        out.extend(ede.code.to_le_bytes());
        out.push(text.len() as u8);
        out.extend(text);
    }
    true
}

fn read(file: impl Read, frame: &Frame, mut each: impl FnMut(Question, Entry) -> bool) -> (u64, Result<(), Fault>) {
    let mut source = Source { file: BufReader::with_capacity(BUFFER_BYTES, file), at: 0 };
    let saved = match source.head(frame) {
        Ok(saved) => saved,
        Err(fault) => return (0, Err(fault)),
    };
    let (mut body, mut seen, mut given) = (Vec::new(), 0, 0);
    loop {
        let at = source.at;
        let damaged = || Fault::Damaged(at);
        match source.record(&mut body) {
            Ok(true) => seen += 1,
            Ok(false) => {
                let is_whole = body[..] == u64::to_le_bytes(seen);
                return (given, if is_whole { Ok(()) } else { Err(damaged()) });
            }
            Err(fault) => return (given, Err(fault)),
        }
        let Some(record) = Record::decode(&body) else { return (given, Err(damaged())) };
        if let Some((question, entry)) = record.entry(saved, frame) {
            given += 1;
            if !each(question, entry) {
                return (given, Ok(()));
            }
        }
    }
}

/// The file while it is read.
struct Source<R: Read> {
    file: BufReader<R>,
    at: u64,
}

impl<R: Read> Source<R> {
    /// Reads that many octets.
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut octets = [0; N];
        self.fill(&mut octets)?;
        Ok(octets)
    }

    fn fill(&mut self, octets: &mut [u8]) -> Result<(), Fault> {
        self.file.read_exact(octets).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Fault::Damaged(self.at),
            _ => error.into(),
        })?;
        self.at += octets.len() as u64;
        Ok(())
    }

    /// Reads the head, and returns when the file was saved.
    fn head(&mut self, frame: &Frame) -> Result<Timestamp, Fault> {
        let magic =
            self.take::<16>().map_err(|fault| if matches!(fault, Fault::Io(_)) { fault } else { Fault::NotOurs })?;
        if magic != MAGIC {
            return Err(Fault::NotOurs);
        }
        let (version, origin, saved) = (self.take::<4>()?, self.take::<4>()?, self.take::<8>()?);
        let crc = self.take::<4>()?;
        if crc32fast::hash(&[&magic[..], &version, &origin, &saved].concat()).to_le_bytes() != crc {
            return Err(Fault::Damaged(0));
        }
        let saved = Timestamp::from_millis(u64::from_le_bytes(saved));
        match (u32::from_le_bytes(version), u32::from_le_bytes(origin)) {
            (version, _) if version != VERSION => Err(Fault::Version(version)),
            (_, origin) if origin != frame.origin => Err(Fault::Origin),
            _ if saved > frame.now => Err(Fault::Clock(saved)),
            _ => Ok(saved),
        }
    }

    /// Reads a record into `body`; false for the end.
    fn record(&mut self, body: &mut Vec<u8>) -> Result<bool, Fault> {
        let at = self.at;
        let len = u32::from_le_bytes(self.take()?) as usize;
        let crc = u32::from_le_bytes(self.take()?);
        let is_end = len == 0;
        let len = if is_end { size_of::<u64>() } else { len };
        if len > RECORD_LEN_MAX {
            return Err(Fault::Damaged(at));
        }
        body.resize(len, 0);
        self.fill(body)?;
        if crc32fast::hash(body) == crc { Ok(!is_end) } else { Err(Fault::Damaged(at)) }
    }
}

/// A record as it was read.
struct Record<'a> {
    stored: Timestamp,
    lifetime_secs: u32,
    flags: u8,
    message: &'a [u8],
    edes: Vec<Ede>,
}

impl<'a> Record<'a> {
    fn decode(mut octets: &'a [u8]) -> Option<Self> {
        let stored = Timestamp::from_millis(u64::from_le_bytes(*octets.split_off(..8)?.first_chunk()?));
        let lifetime_secs = u32::from_le_bytes(*octets.split_off(..4)?.first_chunk()?);
        let flags = *octets.split_off_first()?;
        let len = u16::from_le_bytes(*octets.split_off(..2)?.first_chunk()?);
        let message = octets.split_off(..usize::from(len))?;
        let mut edes = Vec::new();
        while !octets.is_empty() {
            let code = u16::from_le_bytes(*octets.split_off(..2)?.first_chunk()?);
            let len = usize::from(*octets.split_off_first()?);
            edes.push(Ede::new(code, std::str::from_utf8(octets.split_off(..len)?).ok()?));
        }
        Some(Self { stored, lifetime_secs, flags, message, edes })
    }

    /// Makes an entry of it; `None` if it has ended, or is no answer that may be kept.
    fn entry(self, saved: Timestamp, frame: &Frame) -> Option<(Question, Entry)> {
        let question = self.question()?;
        let answer = wire::walk(self.message, &question, &frame.rules).ok()?.answer.with_edes(&self.edes);
        let lifetime_secs = self.lifetime_secs.min(answer.lifetime_secs()?);
        let mark = Mark { generation: 0, tagged: None, is_learned: false, programmed: false };
        let entry = Entry::new(&question, answer.kept(), self.stored, lifetime_secs, mark);
        let is_sound = answer.kind() != Kind::Failure && self.stored <= saved;
        (is_sound && entry.is_fresh(frame.now)).then_some((question, entry))
    }

    /// Reads the question out of the message, where it stands as in a cached answer: whole, lower case.
    fn question(&self) -> Option<Question> {
        let rest = self.message.get(HEADER_LEN..)?;
        let mut name_len = 1;
        while let Some(len @ 1..) = rest.get(name_len - 1) {
            name_len += 1 + usize::from(*len);
        }
        let (name, rest) = rest.split_at_checked(name_len)?;
        let qtype = u16::from_be_bytes(*rest.first_chunk()?);
        let (dnssec_ok, checking_disabled) = (self.flags & DNSSEC_OK != 0, self.flags & CHECKING_DISABLED != 0);
        Some(Question { name: Name::from_wire(name).ok()?, qtype, qclass: class::IN, dnssec_ok, checking_disabled })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::KeyBuf;
    use crate::wire::Answer;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const RULES: Rules = Rules { min_ttl: 0, max_ttl: 86_400, negative_max_ttl: 3600, trust_ad: true };
    const FRAME: Frame = Frame { origin: 7, now: NOW, rules: RULES };

    fn at(secs: u64) -> Frame {
        Frame { now: Timestamp::from_secs(1_800_000_000 + secs), ..FRAME }
    }

    fn answer(question: &Question, ttl_secs: u32, last: u8, edes: &[Ede]) -> Answer {
        let mut octets = b"\0\0\x81\xa0\0\x01\0\x01\0\0\0\0".to_vec();
        octets.extend(question.name.as_wire());
        octets.extend([0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1]);
        octets.extend(ttl_secs.to_be_bytes());
        octets.extend([0, 4, 192, 0, 2, last]);
        wire::walk(&octets, question, &RULES).unwrap().answer.with_edes(edes)
    }

    fn question(name: &str) -> Question {
        Question::new(Name::parse(name).unwrap(), 1)
    }

    fn keep(cache: &Cache, question: &Question, answer: &Answer, lifetime_secs: u32) {
        let mark = Mark { generation: 9, tagged: None, is_learned: true, programmed: true };
        let entry = Entry::new(question, answer.kept(), NOW, lifetime_secs, mark);
        cache.insert(KeyBuf::new().fill_of(question), entry);
    }

    /// Three answers, of 30, 60 and 90 s.
    fn some() -> Cache {
        let cache = Cache::new(1 << 20);
        let plain = question("a.example");
        let with_flags = Question { dnssec_ok: true, checking_disabled: true, ..question("b.example") };
        keep(&cache, &plain, &answer(&plain, 30, 1, &[]), 30);
        keep(&cache, &with_flags, &answer(&with_flags, 60, 2, &[Ede::new(10, "why"), Ede::new(22, "")]), 60);
        let last = question("c.example");
        keep(&cache, &last, &answer(&last, 90, 3, &[]), 90);
        cache
    }

    fn written(cache: &Cache) -> Vec<u8> {
        let mut octets = Vec::new();
        write(&mut octets, cache.entries(), &FRAME).unwrap();
        octets
    }

    type Told = (Question, Vec<u8>, Vec<Ede>, Timestamp, u32);

    fn told(entry: &Entry) -> Told {
        let answer = entry.answer();
        let question = entry.question().unwrap();
        (question, answer.bytes().to_vec(), answer.edes(), entry.stored(), entry.lifetime_secs())
    }

    fn back(octets: &[u8], frame: &Frame) -> (Vec<Told>, Option<Fault>) {
        let mut all = Vec::new();
        let (count, result) = read(octets, frame, |question, entry| {
            assert_eq!(entry.question(), Some(question));
            assert!(
                entry.is_of(0) && !entry.is_programmed() && entry.tagged().is_none(),
                "it is matched and learned anew"
            );
            all.push(told(&entry));
            true
        });
        assert_eq!(count, all.len() as u64);
        all.sort_by_key(|told| told.4);
        (all, result.err())
    }

    fn sorted(cache: &Cache) -> Vec<Told> {
        let mut all: Vec<Told> = cache.entries().map(|entry| told(&entry)).collect();
        all.sort_by_key(|told| told.4);
        all
    }

    #[test]
    fn what_was_saved_comes_back_until_it_ends() {
        let cache = some();
        let (octets, all) = (written(&cache), sorted(&cache));
        assert_eq!(all.len(), 3);
        for (secs, left) in [(0, 3), (29, 3), (30, 2), (60, 1), (89, 1), (90, 0)] {
            let (restored, fault) = back(&octets, &at(secs));
            assert_eq!(restored, all[3 - left..], "after {secs} s");
            assert!(fault.is_none());
        }
    }

    #[test]
    fn limits_of_now_hold_for_what_was_saved() {
        let rules = Rules { max_ttl: 40, ..RULES };
        let (restored, _) = back(&written(&some()), &Frame { rules, ..at(35) });
        assert_eq!(restored.iter().map(|told| told.4).collect::<Vec<_>>(), [40, 40]);
        assert!(back(&written(&some()), &Frame { rules, ..at(40) }).0.is_empty());
    }

    #[test]
    fn what_cannot_be_trusted_is_not_read() {
        let octets = written(&some());
        let fault = |octets: &[u8], frame: &Frame| {
            let (restored, fault) = back(octets, frame);
            assert_eq!(restored, []);
            fault.unwrap()
        };
        assert!(matches!(fault(&octets, &Frame { origin: 8, ..FRAME }), Fault::Origin));
        let before = Frame { now: Timestamp::from_secs(1_799_999_999), ..FRAME };
        assert!(matches!(fault(&octets, &before), Fault::Clock(NOW)));
        assert!(matches!(fault(b"", &FRAME), Fault::NotOurs));
        assert!(matches!(fault(b"something else entirely, and long", &FRAME), Fault::NotOurs));
        let mut newer = octets.clone();
        newer[16] = 2;
        let crc = crc32fast::hash(&newer[..32]);
        newer[32..36].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(fault(&newer, &FRAME), Fault::Version(2)));
    }

    #[test]
    fn failures_and_what_has_ended_are_not_saved() {
        let cache = Cache::new(1 << 20);
        let (failed, ended) = (question("a.example"), question("b.example"));
        keep(&cache, &failed, &wire::synthesize(&failed, wire::rcode::SERVFAIL, &[]), 2);
        keep(&cache, &ended, &answer(&ended, 5, 1, &[]), 5);
        let mut octets = Vec::new();
        assert_eq!(write(&mut octets, cache.entries(), &at(0)).unwrap(), 1);
        assert_eq!(write(&mut octets, cache.entries(), &at(5)).unwrap(), 0);
    }

    #[test]
    fn files_are_replaced_whole_read_once_and_set_aside_when_damaged() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("greenlane.redb.cache");
        let files = || {
            let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert!(matches!(restore(&path, &FRAME, |_, _| true), (0, None)), "none is no fault");
        assert_eq!(save(&some(), &path, &FRAME, || true).unwrap(), Some(3));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(save(&some(), &path, &FRAME, || false).unwrap(), None);
        assert_eq!(files(), ["greenlane.redb.cache"], "what was interrupted leaves the old one");
        assert!(matches!(restore(&path, &FRAME, |_, _| true), (3, None)));
        assert!(files().is_empty());
        fs::write(&path, "what is this").unwrap();
        assert!(matches!(restore(&path, &FRAME, |_, _| true), (0, Some(Fault::NotOurs))));
        assert_eq!(files(), ["greenlane.redb.cache.damaged"]);
    }

    proptest! {
        #[test]
        fn spoilt_octets_give_nothing_that_was_not_saved(
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let cache = some();
            let (mut octets, all) = (written(&cache), sorted(&cache));
            for (at, flip) in flips {
                let at = at.index(octets.len());
                octets[at] ^= flip;
            }
            if let Some(cut) = cut {
                octets.truncate(cut.index(octets.len()));
            }
            let (restored, _) = back(&octets, &FRAME);
            prop_assert!(restored.iter().all(|told| all.contains(told)));
        }

        /// Whoever can write the file can write checksums.
        #[test]
        fn no_octets_break_the_reader(
            body in prop::collection::vec(any::<u8>(), 0..200),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let _ = back(&body, &FRAME);
            if let Some(record) = Record::decode(&body) {
                let _ = record.entry(NOW, &FRAME);
            }
            let mut sound = Vec::new();
            for entry in some().entries() {
                encode(&entry, &mut sound);
                for (at, flip) in &flips {
                    let at = at.index(sound.len());
                    sound[at] ^= flip;
                }
                if let Some(record) = Record::decode(&sound) {
                    let _ = record.entry(NOW, &FRAME);
                }
            }
        }
    }
}
