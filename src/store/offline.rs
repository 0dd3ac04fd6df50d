//! A store that no greenlane has open: looked at without a change, or given more sightings.
//!
//! [`look`] works on a copy in memory, so that even a repair, which a kill makes due, is none to the file; [`merge`] is
//! an open, one transaction and a close. Both hold the lock meanwhile, as a daemon does.

use std::collections::HashMap;
use std::path::Path;

use foldhash::fast::RandomState;
use redb::StorageBackend as _;
use redb::backends::InMemoryBackend;

use super::disk::{Disk, LockError};
use super::entry::{self, Key};
use super::journal::Journal;
use super::pending::Pending;
use super::table::{Table, TableError};
use super::{Boot, Files, Options, Store, StoreError, next_meta, replays, restore};
use crate::clock::{Clock, Timestamp};
use crate::set::outlet::{Kept, Restored};

/// What a store holds.
#[derive(Clone, Debug)]
pub struct Look {
    /// What a daemon would begin with: session, serial, and the sightings that have not ended.
    pub restored: Restored,
    /// The schema of the file.
    pub schema: u64,
    /// How many more sightings there are that have ended.
    pub ended_count: u64,
    /// How many entries cannot be read.
    pub unread_count: u64,
    /// The octets of all its files.
    pub len: u64,
}

/// Reads the store at `path` and changes nothing. Takes as much memory as the file is long.
///
/// # Errors
/// [`StoreError::Missing`] if there is none, [`StoreError::InUse`] if a greenlane has it open, [`StoreError::Unsound`]
/// if it is damaged or another program's; see the others.
pub fn look(path: &Path, clock: &Clock) -> Result<Look, StoreError> {
    let files = Files::new(path)?;
    let disk = Disk::lock_to_read(path).map_err(|error| super::refused(path, error))?;
    look_at(&files, &disk, clock.now(), Boot::of(clock)).map_err(|error| match error {
        TableError::Damaged(_) | TableError::Foreign(_) => {
            StoreError::Unsound { path: path.to_owned(), why: error.to_string() }
        }
        error => files.failed(error),
    })
}

fn look_at(files: &Files, disk: &Disk, now: Timestamp, boot: Boot) -> Result<Look, TableError> {
    let (table, found) = Table::open_copy(memory(disk)?)?;
    let Some(before) = found else {
        return Err(TableError::Foreign("it is empty".to_owned()));
    };
    let journals = [open_journal(files, 0)?, open_journal(files, 1)?];
    let (logged, _) = replays(journals.iter().flatten(), Some(&before))?;
    let is_complete = if logged.is_empty() { before.is_complete } else { logged.is_complete() };
    let shift_millis = boot.shift_millis(&before);
    let meta = next_meta(&before, &logged, boot);
    let all_count = table.count(&logged)?;
    let found = restore(&table, logged, is_complete, (now, shift_millis))?;
    let (unread_count, live_count) = (found.unread_count, found.sightings.len() as u64);
    Ok(Look {
        restored: Restored { session: meta.session, serial: meta.serial, is_complete, sightings: found.sightings },
        schema: table.schema()?,
        ended_count: all_count.saturating_sub(live_count + unread_count),
        unread_count,
        len: files.len(),
    })
}

/// Reads a whole file.
fn memory(disk: &Disk) -> std::io::Result<InMemoryBackend> {
    let backend = InMemoryBackend::new();
    let len = disk.size()?;
    backend.set_len(len)?;
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let piece = &mut piece[..(len - at).min(1 << 20) as usize];
        disk.read_at(at, piece)?;
        backend.write(at, piece)?;
        at += piece.len() as u64;
    }
    Ok(backend)
}

fn open_journal(files: &Files, n: usize) -> Result<Option<Journal>, TableError> {
    match Disk::open_to_read(&files.journal(n)) {
        Ok(disk) => Ok(Some(Journal::new(disk))),
        Err(LockError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TableError::Refused(super::refused(&files.journal(n), error))),
    }
}

/// What became of sightings given to a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// The store did not have them.
    pub new_count: u64,
    /// The store had them, and has them for longer or since earlier now.
    pub changed_count: u64,
    /// The store had them as long already.
    pub known_count: u64,
}

/// Puts sightings into a store that no greenlane has open, or makes it. Nothing in it is shortened, none leaves.
///
/// # Errors
/// See [`StoreError`]; then the store is as it was.
pub fn merge(options: &Options, clock: &Clock, sightings: Vec<Kept>) -> Result<Merged, StoreError> {
    let now = clock.now();
    let opened = Store::open(options, clock)?;
    let Store { files, table, mut meta, .. } = opened.store;
    let Restored { is_complete, sightings: there, .. } = opened.restored;
    let mut there: HashMap<Key, Kept, RandomState> =
        there.into_iter().map(|kept| (entry::put(&kept).0, kept)).collect();
    let mut merged = Merged::default();
    let mut changed: HashMap<Key, Kept, RandomState> = HashMap::default();
    for mut kept in sightings {
        entry::bound(&mut kept, now);
        let key = entry::put(&kept).0;
        match there.get_mut(&key) {
            None => merged.new_count += 1,
            Some(known) => {
                let longer = longest(known, &kept);
                if longer == *known {
                    merged.known_count += 1;
                    continue;
                }
                merged.changed_count += u64::from(!changed.contains_key(&key));
                kept = longer;
            }
        }
        there.insert(key.clone(), kept.clone());
        changed.insert(key, kept);
    }
    // What consumers hold of this serial is another set now.
    meta.serial = meta.serial.saturating_add(u64::from(!changed.is_empty()));
    meta.is_complete = is_complete;
    let changes = Pending::more(changed.values().map(entry::put));
    let done = table.commit(&changes, &meta).and_then(|_| table.close());
    done.map_err(|error| files.failed(error))?;
    Ok(merged)
}

/// Seen since the earlier moment, told and granted until the later one.
fn longest(one: &Kept, other: &Kept) -> Kept {
    Kept {
        addr: one.addr,
        name: one.name.clone(),
        first_seen: one.first_seen.min(other.first_seen),
        last_seen: one.last_seen.max(other.last_seen),
        told_until: one.told_until.max(other.told_until),
        end: one.end.max(other.end),
        granted: one.granted.max(other.granted),
    }
}
