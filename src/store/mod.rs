//! What survives us: sightings with their ends, the session and the serial, in a file.
//!
//! ```text
//!   Change ─▶ Order ─▶ journal: one write a batch ─▶ Held           survives the end of the process, kill -9 included
//!                        └ about each second ─▶ database: one transaction, synced     survives the loss of power
//!   start:  database, then what the journals say after it ─▶ what has not ended ─▶ Restored
//! ```
//!
//! The store is three files: the database at `store.path` (redb, see `table.rs`), and two short journals beside it that
//! take turns (`journal.rs`): while the database takes over what one holds, the other one is appended to. So an answer
//! waits for one append, some microseconds, and not for a transaction; with [`Durability::Disk`] the append is synced
//! before the answer goes. [`Store::open`] reads everything and locks it; [`run()`] is the sink of the writer's changes.
//!
//! - **Killed**: nothing that was answered [`Held`](crate::set::outlet::Applied::Held) is lost. The session goes on; the
//!   serial goes on above all that may have been announced and not kept.
//! - **Loss of power** (the kernel's boot id is another, and the last change was not kept): what is younger than a second
//!   or two may be lost, so consumers are told a new session. The database is right all the same.
//! - **Damaged or foreign**: the files are set aside under a new name, and an empty store begins.
//! - **Fails while running**: said once, and the sink is down until it works again; meanwhile the last word on each
//!   sighting is remembered, and written first.
//!
//! Times are told in wall time, whose zone is none. The wall clock may be set between two runs; while the kernel is not
//! started anew its monotonic clock says by how much, and all times move along (`Boot`). Over a reboot nobody can say:
//! then a restored entry is bounded to how long it was granted for, so that a clock that was set back makes no entry
//! immortal.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::clock::{Clock, Timestamp};
use crate::set::Session;
use crate::set::outlet::{Kept, Restored};

mod disk;
mod entry;
mod journal;
mod metrics;
mod offline;
mod pending;
mod run;
mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use metrics::Metrics;
pub use offline::{Look, Merged, look, merge};
pub use run::run;

use disk::{Disk, LockError};
use entry::Key;
use journal::{Journal, Replay};
use pending::Pending;
use table::{Meta, Table, TableError};

/// How far the serial jumps when the last change was not kept: as many may have been announced and lost. One each
/// millisecond for seven weeks, and two million such jumps until a program that counts in doubles could be wrong.
const SERIALS_LOST_MAX: u64 = 1 << 32;

/// Where Linux tells which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// So much of a difference between two clocks is none: it is what passes while they are read.
const SHIFT_MILLIS_MIN: u64 = 100;

/// Where the set is kept, and what a commit survives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The file of the database; its folder must exist, and be ours to write in.
    pub path: PathBuf,
    /// What a commit survives.
    pub durability: Durability,
}

/// What a change survives from the moment that it is answered as held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, however it ends. The disk is about a second behind.
    #[default]
    Process,
    /// The loss of power too: every batch waits for the disk.
    Disk,
}

/// Why there is no store. Each message says what would help.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The path names no file.
    #[error("`{0}` is no path of a file; name a file in a folder that exists")]
    NoFile(PathBuf),
    /// The folder is missing or cannot be looked at.
    #[error("the folder `{folder}` cannot be used: {source}; create it first, or name another file")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file may not be made or written.
    #[error("`{path}` cannot be written: {source}; let greenlane write it and its folder, or name another file")]
    Denied {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another greenlane has the file open.
    #[error("`{0}` is in use by another greenlane; stop it, or name another file for this one")]
    InUse(PathBuf),
    /// There is no file to look at.
    #[error("there is no store at `{0}`: no greenlane has run with this configuration yet")]
    Missing(PathBuf),
    /// A file that is looked at is damaged or another program's.
    #[error("`{path}` is no store that can be read: {why}")]
    Unsound {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file that is no store of ours could not be moved out of the way.
    #[error("`{path}` is no store that can be read ({why}) and cannot be set aside: {source}; move it away")]
    Stuck {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What the system says.
        source: io::Error,
    },
    /// Anything else that the system says, like a full disk.
    #[error("`{path}` cannot be opened: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// A store that is open and locked; give it to [`run()`].
#[derive(Debug)]
pub struct Store {
    files: Files,
    disk: Disk,
    table: Table,
    meta: Meta,
    /// The one that is appended to, and the one that waits its turn.
    journals: [Journal; 2],
    durability: Durability,
    sighting_count: u64,
}

/// What [`Store::open`] found.
#[derive(Debug)]
pub struct Opened {
    /// The store, open.
    pub store: Store,
    /// What it kept and has not ended.
    pub restored: Restored,
}

/// The boot of the kernel that a process lives in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Boot {
    /// `None` where the kernel does not tell.
    id: Option<String>,
    /// How far our clock is ahead of the monotonic one of this boot.
    ahead_millis: Option<i64>,
}

impl Boot {
    fn of(clock: &Clock) -> Self {
        let id = fs::read_to_string(BOOT_ID).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        Self { id, ahead_millis: clock.ahead_of_monotonic_millis() }
    }

    /// Returns how far the wall clock was set ahead since `meta` was written; 0 if nobody knows.
    fn shift_millis(&self, meta: &Meta) -> i64 {
        let (Some(now), Some(before)) = (self.ahead_millis, meta.ahead_millis) else { return 0 };
        let shift = now.saturating_sub(before);
        let is_one_boot = self.id.is_some() && self.id == meta.boot;
        if is_one_boot && shift.unsigned_abs() >= SHIFT_MILLIS_MIN { shift } else { 0 }
    }
}

impl Store {
    /// Opens the store or makes it, and reads what has not ended by now. It is ours alone from here on.
    ///
    /// A file that is damaged or not ours is set aside as `<path>.damaged-<seconds>`, which is logged, and an empty
    /// store begins. Entries that have ended are dropped for good. Works long: a second for a million entries.
    ///
    /// # Errors
    /// See [`StoreError`]; a store that can be read but not written, as on a full disk, is one of them.
    pub fn open(options: &Options, clock: &Clock) -> Result<Opened, StoreError> {
        let boot = Boot::of(clock);
        if boot.id.is_none() {
            tracing::info!("the kernel does not tell its boot id ({BOOT_ID}): a loss of power is taken for a kill");
        }
        Self::open_in_boot(options, clock.now(), boot)
    }

    fn open_in_boot(options: &Options, now: Timestamp, boot: Boot) -> Result<Opened, StoreError> {
        let files = Files::new(&options.path)?;
        let disk = files.lock()?;
        let why = match Self::begin(&files, disk.clone(), options.durability, now, boot.clone()) {
            Ok(opened) => return Ok(opened),
            Err(error @ (TableError::Damaged(_) | TableError::Foreign(_))) => error.to_string(),
            Err(error) => return Err(files.failed(error)),
        };
        // The old file stays locked until it has its new name.
        let aside = files.set_aside(now).map_err(|source| StoreError::Stuck {
            path: files.path.clone(),
            why: why.clone(),
            source,
        })?;
        let (path, aside) = (files.path.display(), aside.display());
        tracing::error!(
            "store.path: `{path}` is no store that can be read: {why}; it is set aside as `{aside}`, and the set begins \
             empty, with a new session"
        );
        let disk = files.lock()?;
        Self::begin(&files, disk, options.durability, now, boot).map_err(|error| files.failed(error))
    }

    /// Reads the files, and makes them ready to be written.
    fn begin(
        files: &Files,
        disk: Disk,
        durability: Durability,
        now: Timestamp,
        boot: Boot,
    ) -> Result<Opened, TableError> {
        let mut journals = [files.open_journal(0)?, files.open_journal(1)?];
        let (table, found) = Table::open(disk.clone())?;
        let (logged, sequence) = replays(journals.iter(), found.as_ref())?;
        let before = found.unwrap_or_else(|| Meta {
            id: rand::random(),
            session: Session::random(),
            serial: 0,
            is_complete: true,
            covered: 0,
            boot: boot.id.clone(),
            ahead_millis: boot.ahead_millis,
        });
        let shift_millis = boot.shift_millis(&before);
        let meta = Meta { covered: sequence, ..next_meta(&before, &logged, boot) };
        let is_complete = if logged.is_empty() { before.is_complete } else { logged.is_complete() };
        let Found { sightings, mut changes, unread_count } = restore(&table, logged, is_complete, (now, shift_millis))?;
        if unread_count > 0 {
            tracing::warn!("{unread_count} entries of the store cannot be read and are dropped");
        }
        if shift_millis != 0 {
            let ahead = shift_millis as f64 / 1000.0;
            tracing::info!(
                "the wall clock was set by {ahead} s since the store was written; the ends in it move along"
            );
            // All of it is told in the new clock, or none of it.
            changes = Pending::whole(sightings.iter().map(entry::put));
        }
        let sighting_count = table.commit(&changes, &meta)?;
        let [current, other] = &mut journals;
        other.clear()?;
        current.begin(meta.id, meta.covered + 1)?;
        files.sync_folder();
        let (session, serial, files) = (meta.session, meta.serial, files.clone());
        let store = Self { files, disk, table, meta, journals, durability, sighting_count };
        Ok(Opened { store, restored: Restored { session, serial, is_complete, sightings } })
    }

    /// Returns the session that the store goes on with.
    pub fn session(&self) -> Session {
        self.meta.session
    }
}

/// Where the set stands from now on. It is written as not complete: only the last change of this process is.
fn next_meta(before: &Meta, logged: &Pending, boot: Boot) -> Meta {
    let (session, serial, is_complete) = match logged.stand() {
        Some((session, serial)) => (session, serial, logged.is_complete()),
        None => (before.session, before.serial, before.is_complete),
    };
    let is_same_boot = match (&before.boot, &boot.id) {
        (Some(before), Some(now)) => before == now,
        _ => true,
    };
    let (session, serial) = match (is_complete, is_same_boot) {
        (true, _) => (session, serial),
        (false, true) => (session, serial.saturating_add(SERIALS_LOST_MAX)),
        (false, false) => {
            tracing::warn!(
                "the machine stopped without warning: what the store was told last may be lost, so the set begins a \
                 new session"
            );
            (Session::random(), 0)
        }
    };
    Meta { session, serial, is_complete: false, boot: boot.id, ahead_millis: boot.ahead_millis, ..*before }
}

/// Returns what the journals of this database say beyond it, and the highest sequence number of any.
fn replays<'a>(journals: impl Iterator<Item = &'a Journal>, meta: Option<&Meta>) -> io::Result<(Pending, u64)> {
    let mut all = Pending::default();
    let Some(meta) = meta else { return Ok((all, 0)) };
    let mut found: Vec<Replay> = Vec::new();
    for journal in journals {
        found.extend(journal.replay()?.filter(|replay| replay.id == meta.id && replay.sequence > meta.covered));
    }
    found.sort_unstable_by_key(|replay| replay.sequence);
    let sequence = found.last().map_or(meta.covered, |replay| replay.sequence);
    found.into_iter().for_each(|replay| all.merge(replay.changes));
    Ok((all, sequence))
}

/// What is in the files.
struct Found {
    /// What has not ended.
    sightings: Vec<Kept>,
    /// What the database must be told: what the journals say and it does not, and that the others are gone.
    changes: Pending,
    /// How many entries are none.
    unread_count: u64,
}

/// Reads everything. `now` comes with how far its clock is ahead of the one that times are told in.
fn restore(
    table: &Table,
    logged: Pending,
    is_complete: bool,
    (now, shift_millis): (Timestamp, i64),
) -> Result<Found, TableError> {
    let mut sightings = Vec::new();
    let mut ended: Vec<Key> = Vec::new();
    let mut unread_count = 0_u64;
    let mut take = |key: &[u8], times: &[u8]| {
        let Some(mut kept) = entry::decode(key, times) else {
            unread_count += 1;
            ended.push(key.into());
            return;
        };
        entry::shift(&mut kept, shift_millis);
        entry::bound(&mut kept, now);
        // Unless the last change was kept, it may have been extended without another word up to what was granted.
        if (if is_complete { kept.end } else { kept.granted }) > now {
            sightings.push(kept);
        } else {
            ended.push(key.into());
        }
    };
    if !logged.is_whole() {
        table.for_each(|key, times| {
            if !logged.has(key) {
                take(key, times);
            }
        })?;
    }
    for (key, times) in logged.entries() {
        if let Some(times) = times {
            take(key, times);
        }
    }
    let mut changes = logged;
    changes.forget(ended);
    Ok(Found { sightings, changes, unread_count })
}

/// The names of the store's files.
#[derive(Clone, Debug)]
struct Files {
    path: PathBuf,
}

impl Files {
    fn new(path: &Path) -> Result<Self, StoreError> {
        if path.file_name().is_none() || path.is_dir() {
            return Err(StoreError::NoFile(path.to_owned()));
        }
        let folder = folder_of(path);
        let problem = match fs::metadata(folder) {
            Ok(meta) if meta.is_dir() => return Ok(Self { path: path.to_owned() }),
            Ok(_) => io::ErrorKind::NotADirectory.into(),
            Err(source) => source,
        };
        Err(StoreError::Folder { folder: folder.to_owned(), source: problem })
    }

    fn open_journal(&self, n: usize) -> Result<Journal, TableError> {
        // The lock of the database is the lock of all.
        match Disk::open(&self.journal(n)) {
            Ok(disk) => Ok(Journal::new(disk)),
            Err(error) => Err(TableError::Refused(refused(&self.journal(n), error))),
        }
    }

    fn lock(&self) -> Result<Disk, StoreError> {
        Disk::lock(&self.path).map_err(|error| refused(&self.path, error))
    }

    fn journal(&self, n: usize) -> PathBuf {
        self.beside(&format!(".journal-{n}"))
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(ending);
        name.into()
    }

    /// Gives database and journals a new name that nothing has; returns that of the database.
    fn set_aside(&self, now: Timestamp) -> io::Result<PathBuf> {
        let free = |ending: &String| !self.beside(ending).exists();
        let mut endings = (0..).map(|n| match n {
            0 => format!(".damaged-{}", now.as_secs()),
            n => format!(".damaged-{}-{n}", now.as_secs()),
        });
        let Some(ending) = endings.find(free) else { return Err(io::ErrorKind::AlreadyExists.into()) };
        let aside = self.beside(&ending);
        fs::rename(&self.path, &aside)?;
        for n in 0..2 {
            match fs::rename(self.journal(n), self.beside(&format!("{ending}.journal-{n}"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(aside)
    }

    fn io(&self, source: io::Error) -> StoreError {
        StoreError::Io { path: self.path.clone(), source }
    }

    fn failed(&self, error: TableError) -> StoreError {
        match error {
            TableError::Refused(error) => error,
            TableError::Io(source) => self.io(source),
            error => self.io(io::Error::other(error)),
        }
    }

    /// Lets the names of new files reach the disk. Not all file systems can; then they do so in their own time.
    fn sync_folder(&self) {
        let _ = fs::File::open(folder_of(&self.path)).and_then(|folder| folder.sync_all());
    }

    /// Returns the octets of all files.
    fn len(&self) -> u64 {
        let paths = [self.path.clone(), self.journal(0), self.journal(1)];
        paths.iter().filter_map(|path| path.metadata().ok()).map(|meta| meta.len()).sum()
    }
}

/// Returns the folder of a file; `greenlane.redb` lies in `.`.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn refused(path: &Path, error: LockError) -> StoreError {
    let path = path.to_owned();
    match error {
        LockError::InUse => StoreError::InUse(path),
        LockError::NotAFile => StoreError::NoFile(path),
        LockError::Io(source) => match source.kind() {
            io::ErrorKind::NotFound => StoreError::Missing(path),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StoreError::Denied { path, source },
            _ => StoreError::Io { path, source },
        },
    }
}
