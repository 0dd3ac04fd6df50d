//! Names inside a message: read through their compression pointers, and numbered so that equal ones are one.
//!
//! [`Source`] reads names out of one message into a [`NameBuf`]. A pointer must go below the start of the labels it
//! ends (RFC 1035 §4.1.4: a *prior* occurrence) and not into the header, so every walk ends; the hops of one name and
//! of the whole message are bounded, so a message made of pointers costs no more than its length. [`NameTable`]
//! gives each distinct name a small number, compared without case.
//!
//! A pointer into octets that are not the start of a label of an earlier name reads well, but what it points at may
//! be a TTL that we are about to count down. [`Source::has_stray_pointer`] tells, and such a message is written anew.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use smallvec::SmallVec;
use thiserror::Error;

use super::HEADER_LEN;
use crate::name::WIRE_LEN_MAX;

/// Pointers followed for one name: it has at most 127 labels, and a pointer with no label after it gains nothing.
const HOPS_PER_NAME_MAX: usize = 127;

/// Pointers reach the first 16,384 octets (RFC 1035 §4.1.4).
pub(super) const POINTER_REACH: usize = 0x4000;

/// Why a name in a message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameFault {
    /// The message ends inside the name.
    #[error("the message ends inside it")]
    Ended,
    /// A label type other than a label or a pointer (RFC 6891 §5 retired the rest).
    #[error("label type {0:#04x}")]
    LabelType(u8),
    /// More than 255 octets.
    #[error("longer than 255 octets")]
    TooLong,
    /// A pointer that does not go backwards, or goes into the header.
    #[error("compression pointer to {0}, expected an earlier name")]
    Pointer(u16),
    /// More pointers than names of this message need.
    #[error("too many compression pointers")]
    TooManyPointers,
}

/// One decoded name, letter case kept.
pub(super) struct NameBuf {
    octets: [u8; WIRE_LEN_MAX],
    len: usize,
}

impl NameBuf {
    pub(super) fn new() -> Self {
        Self { octets: [0; WIRE_LEN_MAX], len: 0 }
    }

    /// Returns the uncompressed wire form, root label included.
    pub(super) fn as_wire(&self) -> &[u8] {
        &self.octets[..self.len]
    }

    /// Folds the name to lower case.
    pub(super) fn fold(&mut self) -> &[u8] {
        // Length octets are below `A`, so folding the whole slice leaves them alone.
        self.octets[..self.len].make_ascii_lowercase();
        self.as_wire()
    }

    /// Appends a label with its length octet; `None` if there is no room, so a name that fits ends with its root.
    fn push(&mut self, label: &[u8]) -> Option<()> {
        let end = self.len + label.len();
        self.octets.get_mut(self.len..end)?.copy_from_slice(label);
        self.len = end;
        Some(())
    }
}

/// A message that names are read from, with what has been seen and spent so far.
pub(super) struct Source<'a> {
    message: &'a [u8],
    /// One bit for each octet in reach of a pointer: a label of some name starts there.
    label_starts: [u64; POINTER_REACH / 64],
    hops_left: usize,
    has_stray_pointer: bool,
}

impl<'a> Source<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        // One hop per octet is more than twenty times what the densest sound message needs.
        let hops_left = message.len() + HOPS_PER_NAME_MAX;
        Self { message, label_starts: [0; POINTER_REACH / 64], hops_left, has_stray_pointer: false }
    }

    pub(super) fn message(&self) -> &'a [u8] {
        self.message
    }

    /// Returns whether a pointer led to octets that are no label start of an earlier name.
    pub(super) fn has_stray_pointer(&self) -> bool {
        self.has_stray_pointer
    }

    /// Returns where the name at `at` ends if it stands there in full and is this one, octet for octet: that is faster
    /// than reading it.
    pub(super) fn skip_name(&mut self, at: usize, name: &[u8]) -> Option<usize> {
        let end = at + name.len();
        if self.message.get(at..end)? != name {
            return None;
        }
        let mut label_at = at;
        while label_at < end {
            self.mark_label(label_at);
            label_at += 1 + usize::from(name[label_at - at]);
        }
        Some(end)
    }

    /// Returns where the name at `at` ends if it is nothing but a pointer to the first name of the message, which was
    /// read before.
    pub(super) fn skip_pointer_to_first(&mut self, at: usize) -> Option<usize> {
        const POINTER: [u8; 2] = [0xc0, HEADER_LEN as u8];
        if self.message.get(at..at + 2)? != POINTER || self.spend_hop(1).is_err() {
            return None;
        }
        self.mark_label(at);
        Some(at + 2)
    }

    /// Reads the name at `at` into `buf`; returns where it ends in place.
    pub(super) fn read_name(&mut self, at: usize, buf: &mut NameBuf) -> Result<usize, NameFault> {
        buf.len = 0;
        let mut end_in_place = None;
        let mut hops = 0;
        let (mut label_at, mut run_at) = (at, at);
        loop {
            let len = *self.message.get(label_at).ok_or(NameFault::Ended)?;
            if end_in_place.is_none() {
                self.mark_label(label_at);
            }
            match len >> 6 {
                0 => {
                    let end = label_at + 1 + usize::from(len);
                    let label = self.message.get(label_at..end).ok_or(NameFault::Ended)?;
                    buf.push(label).ok_or(NameFault::TooLong)?;
                    if len == 0 {
                        return Ok(end_in_place.unwrap_or(end));
                    }
                    label_at = end;
                }
                3 => {
                    let low = *self.message.get(label_at + 1).ok_or(NameFault::Ended)?;
                    end_in_place = end_in_place.or(Some(label_at + 2));
                    let pointer = u16::from_be_bytes([len & 0x3f, low]);
                    let target = usize::from(pointer);
                    if target >= run_at || target < HEADER_LEN {
                        return Err(NameFault::Pointer(pointer));
                    }
                    hops += 1;
                    self.spend_hop(hops)?;
                    self.has_stray_pointer |= !self.is_label_start(target);
                    (label_at, run_at) = (target, target);
                }
                _ => return Err(NameFault::LabelType(len)),
            }
        }
    }

    fn spend_hop(&mut self, hops: usize) -> Result<(), NameFault> {
        match self.hops_left.checked_sub(1) {
            Some(left) if hops <= HOPS_PER_NAME_MAX => {
                self.hops_left = left;
                Ok(())
            }
            _ => Err(NameFault::TooManyPointers),
        }
    }

    fn mark_label(&mut self, at: usize) {
        if let Some(word) = self.label_starts.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }

    fn is_label_start(&self, at: usize) -> bool {
        self.label_starts.get(at / 64).is_some_and(|word| word & (1 << (at % 64)) != 0)
    }
}

/// The number of a name in its [`NameTable`].
pub(super) type NameId = u16;

/// So many names are found by looking at each; most messages have no more, and need no table then.
const LOOKED_THROUGH_MAX: usize = 8;

/// Distinct lower-case names, numbered in the order in which they came.
pub(super) struct NameTable {
    arena: SmallVec<[u8; 256]>,
    /// Where each name starts in the arena; the next one's start ends it.
    starts: SmallVec<[u32; LOOKED_THROUGH_MAX]>,
    /// Empty as long as there are few.
    by_content: HashTable<NameId>,
    state: RandomState,
}

impl NameTable {
    pub(super) fn new() -> Self {
        let (arena, starts) = (SmallVec::new(), SmallVec::new());
        Self { arena, starts, by_content: HashTable::new(), state: RandomState::default() }
    }

    /// Returns how many names there are.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Returns the name of this number, empty if there is none.
    pub(super) fn wire(&self, id: NameId) -> &[u8] {
        slice_of(&self.arena, &self.starts, id)
    }

    /// Returns the number of a lower-case name, giving it one if it is new.
    pub(super) fn intern(&mut self, lower: &[u8]) -> NameId {
        if let Some(id) = self.find(lower) {
            return id;
        }
        // A message of 64 KiB holds at most 6,000 records with two names each.
        let id = self.starts.len() as NameId;
        self.starts.push(self.arena.len() as u32);
        self.arena.extend_from_slice(lower);
        if self.starts.len() > LOOKED_THROUGH_MAX {
            self.put_into_table(if self.by_content.is_empty() { 0 } else { id }..=id);
        }
        id
    }

    /// Returns the number of a lower-case name, if it has one.
    pub(super) fn find(&self, lower: &[u8]) -> Option<NameId> {
        if self.by_content.is_empty() {
            return (0..self.starts.len() as NameId).find(|&id| self.wire(id) == lower);
        }
        self.by_content.find(self.state.hash_one(lower), |&id| self.wire(id) == lower).copied()
    }

    fn put_into_table(&mut self, ids: std::ops::RangeInclusive<NameId>) {
        let Self { arena, starts, by_content, state } = self;
        let hash = |id| state.hash_one(slice_of(arena, starts, id));
        for id in ids {
            by_content.insert_unique(hash(id), id, |&id| hash(id));
        }
    }
}

fn slice_of<'t>(arena: &'t [u8], starts: &[u32], id: NameId) -> &'t [u8] {
    let id = usize::from(id);
    let Some(&start) = starts.get(id) else { return &[] };
    let end = starts.get(id + 1).map_or(arena.len(), |&end| end as usize);
    arena.get(start as usize..end).unwrap_or_default()
}
