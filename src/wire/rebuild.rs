//! A message written anew, names compressed again.
//!
//! Needed when something was taken out in front of what stays: every pointer behind it would be wrong. Names are
//! compressed against all earlier ones without regard to case (RFC 1035 §4.1.4), in owners and in the RDATA of types
//! that RFC 1035 defines; names in the RDATA of later types are written in full (RFC 3597 §4), unknown RDATA is copied.
//! Work per name is linear in its labels: suffixes are hashed from the right, each hash made from the one before.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::answer::{Offsets, Placed, put_counts, write_head};
use super::names::{NameBuf, POINTER_REACH, Source};
use super::rdata::{Layout, Piece, layout};
use super::walk::{Record, WalkError};
use super::{HEADER_LEN, MESSAGE_LEN_MAX, Question, put_u16};
use crate::name::WIRE_LEN_MAX;

/// Writes question and records.
///
/// # Errors
/// [`WalkError::Overflow`] if they do not fit a message.
pub(super) fn write(reply: &[u8], question: &Question, flags: u16, kept: &[Record]) -> Result<Placed, WalkError> {
    let mut writer = Writer::new(reply.len());
    write_head(&mut writer.out, question, flags);
    hash_suffixes(&writer.state, question.name.as_wire(), &mut writer.cuts);
    writer.register(HEADER_LEN, question.name.as_wire().len());
    let mut source = Source::new(reply);
    let mut counts = [0u16; 3];
    let mut ttl_offsets = Offsets::with_capacity(kept.len());
    for record in kept {
        counts[record.section as usize] += 1;
        ttl_offsets.push(writer.record(&mut source, record)?);
        if writer.out.len() > MESSAGE_LEN_MAX {
            return Err(WalkError::Overflow);
        }
    }
    put_counts(&mut writer.out, counts);
    Ok(Placed { bytes: writer.out, ttl_offsets })
}

/// The message so far, and the names in it that later ones may point at.
struct Writer {
    out: Vec<u8>,
    /// Hash of a suffix, and where it stands.
    suffixes: HashTable<(u64, u16)>,
    state: RandomState,
    /// Hash and place of each suffix of the name being written.
    cuts: Vec<(u64, u8)>,
    buf: NameBuf,
}

impl Writer {
    fn new(len_hint: usize) -> Self {
        Self {
            out: Vec::with_capacity(len_hint),
            suffixes: HashTable::new(),
            state: RandomState::default(),
            cuts: Vec::with_capacity(8),
            buf: NameBuf::new(),
        }
    }

    /// Appends one record; returns where its TTL stands.
    fn record(&mut self, source: &mut Source<'_>, record: &Record) -> Result<u16, WalkError> {
        source.read_name(usize::from(record.at), &mut self.buf).map_err(WalkError::Owner)?;
        self.name(true);
        let ttl_at = self.out.len() + 4;
        self.out.extend_from_slice(&record.record_type.to_be_bytes());
        self.out.extend_from_slice(&record.record_class.to_be_bytes());
        self.out.extend_from_slice(&record.ttl_secs.to_be_bytes());
        let len_at = self.out.len();
        self.out.extend_from_slice(&[0, 0]);
        match layout(record.record_type) {
            Some(layout) => self.pieces(source, record, &layout)?,
            None => self.out.extend_from_slice(record.rdata(source.message())),
        }
        let rdata_len = u16::try_from(self.out.len() - len_at - 2).map_err(|_| WalkError::Overflow)?;
        put_u16(&mut self.out, len_at, rdata_len);
        u16::try_from(ttl_at).map_err(|_| WalkError::Overflow)
    }

    /// Appends RDATA that holds names.
    fn pieces(&mut self, source: &mut Source<'_>, record: &Record, layout: &Layout) -> Result<(), WalkError> {
        let message = source.message();
        let end = usize::from(record.end);
        let mut at = record.rdata_at();
        for piece in layout.pieces {
            let piece_end = match piece {
                Piece::Octets(len) => at + len,
                Piece::Text => at + 1 + message.get(at).map_or(0, |len| usize::from(*len)),
                Piece::Rest => end,
                Piece::Name => {
                    let fault = |fault| WalkError::RdataName { record_type: record.record_type, fault };
                    at = source.read_name(at, &mut self.buf).map_err(fault)?;
                    self.name(layout.may_compress);
                    continue;
                }
            };
            self.out.extend_from_slice(message.get(at..piece_end).ok_or(WalkError::Ended)?);
            at = piece_end;
        }
        Ok(())
    }

    /// Appends the name in the buffer.
    fn name(&mut self, may_compress: bool) {
        let at = self.out.len();
        if !may_compress {
            self.out.extend_from_slice(self.buf.as_wire());
            return;
        }
        hash_suffixes(&self.state, self.buf.as_wire(), &mut self.cuts);
        // From the left, so that the longest suffix that stands already is taken.
        let known = self.cuts.iter().find_map(|&(hash, cut)| {
            let suffix = &self.buf.as_wire()[usize::from(cut)..];
            let found = self.suffixes.find(hash, |&(other, place)| other == hash && self.stands_at(place, suffix));
            found.map(|&(_, place)| (usize::from(cut), place))
        });
        let literal_len = known.map_or(self.buf.as_wire().len(), |(cut, _)| cut);
        self.out.extend_from_slice(&self.buf.as_wire()[..literal_len]);
        if let Some((_, place)) = known {
            self.out.extend_from_slice(&(0xc000 | place).to_be_bytes());
        }
        self.register(at, literal_len);
    }

    /// Makes the suffixes last hashed, as far as they were written at `at`, targets for pointers.
    fn register(&mut self, at: usize, literal_len: usize) {
        for &(hash, cut) in self.cuts.iter().take_while(|(_, cut)| usize::from(*cut) < literal_len) {
            let place = at + usize::from(cut);
            if place < POINTER_REACH {
                self.suffixes.insert_unique(hash, (hash, place as u16), |&(hash, _)| hash);
            }
        }
    }

    /// Returns whether `suffix` stands at `place`, compared without case. Our own pointers end.
    fn stands_at(&self, place: u16, suffix: &[u8]) -> bool {
        let mut at = usize::from(place);
        let mut rest = suffix;
        loop {
            let Some(&len) = self.out.get(at) else { return false };
            if len >= 0xc0 {
                let low = self.out.get(at + 1).copied().unwrap_or_default();
                at = usize::from(u16::from_be_bytes([len & 0x3f, low]));
                continue;
            }
            let label_len = 1 + usize::from(len);
            let (Some(label), Some((wanted, tail))) =
                (self.out.get(at..at + label_len), rest.split_at_checked(label_len))
            else {
                return false;
            };
            if !label.eq_ignore_ascii_case(wanted) {
                return false;
            }
            if len == 0 {
                return true;
            }
            (at, rest) = (at + label_len, tail);
        }
    }
}

/// Puts hash and place of every suffix of a name into `cuts`, the whole name first, the root left out.
fn hash_suffixes(state: &RandomState, wire: &[u8], cuts: &mut Vec<(u64, u8)>) {
    let mut lower = [0; WIRE_LEN_MAX];
    let lower = &mut lower[..wire.len()];
    lower.copy_from_slice(wire);
    lower.make_ascii_lowercase();
    cuts.clear();
    let mut at = 0;
    while let Some(&len) = lower.get(at).filter(|len| **len > 0) {
        // A name has at most 255 octets.
        cuts.push((0, at as u8));
        at += 1 + usize::from(len);
    }
    let mut hash = 0;
    let mut end = at;
    for slot in cuts.iter_mut().rev() {
        let cut = usize::from(slot.1);
        hash = state.hash_one((hash, &lower[cut..end]));
        end = cut;
        slot.0 = hash;
    }
}
