//! The journal: what changed since the database was last written, appended in one write for each batch.
//!
//! ```text
//!   header = magic   id of the database   sequence   checksum
//!   frame  = length  checksum             session, serial, flags, then entries: key, times
//! ```
//!
//! What `write` returned from is in the kernel's hands and survives the end of the process, a kill included; a sync
//! after it makes it survive the loss of power. Each checksum (CRC-32) goes on from the one before it, the header's
//! first, so that only frames written one after another into this very journal are read again: a torn last one, what
//! is left of an earlier use of the file, or damage ends the reading there.

use std::io;

use super::disk::Disk;
use super::entry::{self, KEY_LEN_MAX, TIMES_LEN_MAX};
use super::pending::Pending;
use crate::set::Session;
use crate::set::outlet::Change;

const MAGIC: [u8; 8] = *b"greenlj1";
const HEADER_LEN: usize = 28;
const FRAME_HEAD_LEN: usize = 8;

/// The longest journal that is appended to. The database is written about each second; so long a journal means that
/// this fails.
pub(super) const LEN_MAX: u64 = 64 << 20;

/// Flags of a frame.
const WHOLE: u8 = 1;
const LAST: u8 = 2;

/// One of the two journals of a store.
#[derive(Debug)]
pub(super) struct Journal {
    disk: Disk,
    /// Where the next frame begins; 0 before there is a header.
    len: u64,
    /// The checksum of the last frame or of the header.
    chain: u32,
}

/// What a journal held.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) id: u64,
    pub(super) sequence: u64,
    pub(super) changes: Pending,
}

impl Journal {
    /// Takes a file that the next [`Self::begin`] makes a journal of.
    pub(super) fn new(disk: Disk) -> Self {
        Self { disk, len: 0, chain: 0 }
    }

    /// Begins anew: what the file held counts no longer.
    pub(super) fn begin(&mut self, id: u64, sequence: u64) -> io::Result<()> {
        self.clear()?;
        let mut header = Vec::with_capacity(HEADER_LEN);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&id.to_le_bytes());
        header.extend_from_slice(&sequence.to_le_bytes());
        let chain = crc32fast::hash(&header);
        header.extend_from_slice(&chain.to_le_bytes());
        self.disk.write_at(0, &header)?;
        (self.len, self.chain) = (header.len() as u64, chain);
        Ok(())
    }

    /// Empties the file.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.len = 0;
        self.disk.resize(0)
    }

    /// Returns the length in octets.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether frames can be appended: it was begun.
    pub(super) fn has_begun(&self) -> bool {
        self.len > 0
    }

    /// Appends frames in one write, and waits for the disk if `must_sync`. After an error none of them counts: the
    /// next ones are written over them.
    pub(super) fn append(&mut self, mut frames: Frames, must_sync: bool) -> io::Result<()> {
        if !self.has_begun() {
            return Err(io::Error::other("the journal was not begun"));
        }
        if self.len >= LEN_MAX {
            return Err(io::Error::other("the journal is full, since the database cannot be written"));
        }
        let chain = frames.seal(self.chain);
        self.disk.write_at(self.len, &frames.octets)?;
        if must_sync {
            self.disk.sync()?;
        }
        (self.len, self.chain) = (self.len + frames.octets.len() as u64, chain);
        Ok(())
    }

    /// Returns what lets this file fail.
    #[cfg(test)]
    pub(super) fn faults(&self) -> &std::sync::Arc<super::disk::Faults> {
        self.disk.faults()
    }

    /// Reads what the file holds: `None` if it is no journal.
    pub(super) fn replay(&self) -> io::Result<Option<Replay>> {
        let size = self.disk.size()?;
        let mut header = [0; HEADER_LEN];
        if size < HEADER_LEN as u64 {
            return Ok(None);
        }
        self.disk.read_at(0, &mut header)?;
        let (told, chain) = (&header[..HEADER_LEN - 4], crc32fast::hash(&header[..HEADER_LEN - 4]));
        if !told.starts_with(&MAGIC) || header[HEADER_LEN - 4..] != chain.to_le_bytes() {
            return Ok(None);
        }
        let mut fields = Fields(&told[MAGIC.len()..]);
        let (Some(id), Some(sequence)) = (fields.number(), fields.number()) else { return Ok(None) };
        let mut octets = vec![0; usize::try_from(size).unwrap_or(usize::MAX).saturating_sub(HEADER_LEN)];
        self.disk.read_at(HEADER_LEN as u64, &mut octets)?;
        Ok(Some(Replay { id, sequence, changes: read_frames(&octets, chain) }))
    }
}

/// Frames to be written together.
#[derive(Debug, Default)]
pub(super) struct Frames {
    octets: Vec<u8>,
    /// Where each frame begins.
    starts: Vec<usize>,
}

impl Frames {
    /// Adds what a change says of sightings.
    pub(super) fn push(&mut self, change: &Change, entries: &[(entry::Key, Option<Box<[u8]>>)]) {
        let start = self.octets.len();
        self.starts.push(start);
        self.octets.resize(start + FRAME_HEAD_LEN, 0);
        self.octets.extend_from_slice(&change.session.0.to_le_bytes());
        self.octets.extend_from_slice(&change.serial.to_le_bytes());
        self.octets.push(if change.whole { WHOLE } else { 0 } | if change.last { LAST } else { 0 });
        for (key, times) in entries {
            // Keys and times are short, see `KEY_LEN_MAX` and `TIMES_LEN_MAX`; no times: it left.
            self.octets.extend_from_slice(&(key.len() as u16).to_le_bytes());
            self.octets.extend_from_slice(key);
            let times = times.as_deref().unwrap_or_default();
            self.octets.push(times.len() as u8);
            self.octets.extend_from_slice(times);
        }
    }

    /// Fills in lengths and checksums, going on from `chain`, and returns the last checksum.
    fn seal(&mut self, mut chain: u32) -> u32 {
        let ends = self.starts.iter().skip(1).copied().chain([self.octets.len()]);
        for (&start, end) in self.starts.iter().zip(ends) {
            let frame = &mut self.octets[start..end];
            let (head, body) = frame.split_at_mut(FRAME_HEAD_LEN);
            // Memory ends before a frame of 4 GiB does; one that claims less than it has fails its checksum.
            let len = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
            chain = checksum(chain, len, body);
            head[..4].copy_from_slice(&len);
            head[4..].copy_from_slice(&chain.to_le_bytes());
        }
        chain
    }
}

fn checksum(chain: u32, len: [u8; 4], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(chain);
    hasher.update(&len);
    hasher.update(body);
    hasher.finalize()
}

fn read_frames(octets: &[u8], mut chain: u32) -> Pending {
    let mut changes = Pending::default();
    let mut rest = octets;
    while let Some((head, after)) = rest.split_first_chunk::<FRAME_HEAD_LEN>() {
        let [l0, l1, l2, l3, told @ ..] = *head;
        let len = [l0, l1, l2, l3];
        let Some((body, after)) = after.split_at_checked(u32::from_le_bytes(len) as usize) else { break };
        chain = checksum(chain, len, body);
        if told != chain.to_le_bytes() || read_frame(body, &mut changes).is_none() {
            break;
        }
        rest = after;
    }
    changes
}

/// Adds one frame to `changes`; `None` if it is malformed, which a right checksum makes next to impossible.
fn read_frame(body: &[u8], changes: &mut Pending) -> Option<()> {
    let mut fields = Fields(body);
    let (session, serial, flags) = (Session(fields.number()?), fields.number()?, fields.octet()?);
    let mut entries = Vec::new();
    while !fields.0.is_empty() {
        let key_len = usize::from(u16::from_le_bytes([fields.octet()?, fields.octet()?]));
        let key = fields.take(key_len)?;
        let times_len = usize::from(fields.octet()?);
        let times = fields.take(times_len)?;
        if key.len() > KEY_LEN_MAX || times.len() > TIMES_LEN_MAX {
            return None;
        }
        entries.push((key.into(), (!times.is_empty()).then(|| times.into())));
    }
    changes.add(session, serial, (flags & WHOLE != 0, flags & LAST != 0), entries);
    Some(())
}

/// Octets that are read from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn octet(&mut self) -> Option<u8> {
        self.take(1).map(|octets| octets[0])
    }

    fn number(&mut self) -> Option<u64> {
        let (octets, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*octets))
    }
}
