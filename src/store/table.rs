//! The database: sightings by key, and what is known of the whole, in one `redb` file.
//!
//! A [`Table`] is written in whole transactions that redb syncs to the disk, so that the file is right after a kill and
//! after a loss of power alike: it holds one transaction or the next. It is checked from end to end when it is opened.
//! redb is believed to panic on some damage still; such a panic is caught here and counts as damage.

use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::backends::InMemoryBackend;
use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageBackend, TableDefinition,
};
use thiserror::Error;

use super::StoreError;
use super::disk::Disk;
use super::pending::Pending;
use crate::set::Session;

/// The layout of the file. A change that an older greenlane would misread takes the next number; what a file of a
/// number before lacks is none, and it becomes one of this number with the first transaction.
///
/// | schema | new in it |
/// |---|---|
/// | 1 | |
/// | 2 | `ahead`, the clock that times are told in; without it they are wall time |
pub(super) const SCHEMA: u64 = 2;

/// What redb may keep in memory: the upper pages of the tree; the set itself is in memory already, and what is not here
/// the kernel has.
const CACHE_LEN_MAX: usize = 1 << 20;

const SIGHTINGS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("greenlane.sightings");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("greenlane.numbers");
const TEXTS: TableDefinition<'_, &str, &str> = TableDefinition::new("greenlane.texts");

/// What is known of the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    /// Drawn when the file was made; journals name it, so that none is read into another file.
    pub(super) id: u64,
    pub(super) session: Session,
    pub(super) serial: u64,
    /// Whether the last change of a process was kept, the one that is marked so.
    pub(super) is_complete: bool,
    /// The sequence number of the newest journal that is in here whole: it and older ones say nothing new.
    pub(super) covered: u64,
    /// Which boot of the kernel wrote this, if the kernel tells.
    pub(super) boot: Option<String>,
    /// How far the clock that times are told in is ahead of that boot's monotonic one, if that is known.
    pub(super) ahead_millis: Option<i64>,
}

/// Why the database does not serve.
#[derive(Debug, Error)]
pub(super) enum TableError {
    /// It was changed by something else than us, or by a failing disk.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It was not made by a greenlane like this.
    #[error("{0}")]
    Foreign(String),
    /// A file beside it cannot be had.
    #[error(transparent)]
    Refused(StoreError),
    /// The system says no.
    #[error(transparent)]
    Io(std::io::Error),
    /// Anything else that redb says.
    #[error("{0}")]
    Other(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for TableError {
    fn from(error: E) -> Self {
        // Beyond its end a file says the one, a copy in memory the other.
        use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        match error.into() {
            redb::Error::Corrupted(what) => Self::Damaged(what),
            redb::Error::Io(error) if matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof) => {
                Self::Damaged(error.to_string())
            }
            redb::Error::Io(error) => Self::Io(error),
            redb::Error::RepairAborted => Self::Damaged("it cannot be repaired".to_owned()),
            redb::Error::UpgradeRequired(version) => {
                Self::Foreign(format!("it is of the file format {version} of redb, which is not read any longer"))
            }
            error @ (redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::TypeDefinitionChanged { .. }) => Self::Foreign(format!("it is of another program: {error}")),
            error => Self::Other(error),
        }
    }
}

/// An open database.
#[derive(Debug)]
pub(super) struct Table {
    database: Database,
}

impl Table {
    /// Opens the database in a file, or makes it in an empty one. `None` stands for what is known of the whole in a
    /// new one.
    pub(super) fn open(disk: Disk) -> Result<(Self, Option<Meta>), TableError> {
        Self::open_on(disk)
    }

    /// The same for a copy, to be looked at and thrown away.
    pub(super) fn open_copy(copy: InMemoryBackend) -> Result<(Self, Option<Meta>), TableError> {
        Self::open_on(copy)
    }

    fn open_on(backend: impl StorageBackend) -> Result<(Self, Option<Meta>), TableError> {
        caught(|| {
            let is_new = backend.len()? == 0;
            let mut builder = Builder::new();
            builder.set_cache_size(CACHE_LEN_MAX).set_check_integrity_on_open(!is_new);
            let table = Self { database: builder.create_with_backend(backend)? };
            let meta = if is_new { None } else { table.meta()? };
            Ok((table, meta))
        })
    }

    fn meta(&self) -> Result<Option<Meta>, TableError> {
        let read = self.database.begin_read()?;
        if read.list_tables()?.next().is_none() && read.list_multimap_tables()?.next().is_none() {
            // Whoever made it came no further.
            return Ok(None);
        }
        let numbers = read.open_table(NUMBERS)?;
        let number = |name: &str| -> Result<u64, TableError> {
            let number = numbers.get(name)?.map(|number| number.value());
            number.ok_or_else(|| TableError::Damaged(format!("it does not say its {name}")))
        };
        match number("schema")? {
            1..=SCHEMA => {}
            found => {
                let text = format!("it has the schema {found} of a newer greenlane; this one reads up to {SCHEMA}");
                return Err(TableError::Foreign(text));
            }
        }
        let boot = read.open_table(TEXTS)?.get("boot")?.map(|text| text.value().to_owned());
        let ahead_millis = numbers.get("ahead")?.map(|number| number.value().cast_signed());
        Ok(Some(Meta {
            id: number("id")?,
            session: Session(number("session")?),
            serial: number("serial")?,
            is_complete: number("complete")? != 0,
            covered: number("covered")?,
            boot,
            ahead_millis,
        }))
    }

    /// Returns the schema that the file has.
    pub(super) fn schema(&self) -> Result<u64, TableError> {
        caught(|| {
            let read = self.database.begin_read()?;
            Ok(read.open_table(NUMBERS)?.get("schema")?.map_or(0, |number| number.value()))
        })
    }

    /// Returns how many entries there are with those that `logged` adds and without those that it takes.
    pub(super) fn count(&self, logged: &Pending) -> Result<u64, TableError> {
        let mut count = logged.entries().filter(|(_, times)| times.is_some()).count() as u64;
        if !logged.is_whole() {
            self.for_each(|key, _| count += u64::from(!logged.has(key)))?;
        }
        Ok(count)
    }

    /// Hands every entry to `take`, sorted by key.
    pub(super) fn for_each(&self, mut take: impl FnMut(&[u8], &[u8])) -> Result<(), TableError> {
        caught(|| {
            let read = self.database.begin_read()?;
            let sightings = match read.open_table(SIGHTINGS) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
                sightings => sightings?,
            };
            for entry in sightings.iter()? {
                let (key, times) = entry?;
                take(key.value(), times.value());
            }
            Ok(())
        })
    }

    /// Writes changes in one transaction and waits for the disk; returns how many entries there are then.
    pub(super) fn commit(&self, changes: &Pending, meta: &Meta) -> Result<u64, TableError> {
        caught(|| {
            let write = self.database.begin_write()?;
            let count = {
                let mut sightings = write.open_table(SIGHTINGS)?;
                if changes.is_whole() {
                    replace(&mut sightings, changes)?;
                } else {
                    for (key, times) in changes.entries() {
                        match times {
                            Some(times) => sightings.insert(key, times)?,
                            None => sightings.remove(key)?,
                        };
                    }
                }
                sightings.len()?
            };
            {
                let mut numbers = write.open_table(NUMBERS)?;
                numbers.insert("schema", SCHEMA)?;
                numbers.insert("id", meta.id)?;
                numbers.insert("session", meta.session.0)?;
                numbers.insert("serial", meta.serial)?;
                numbers.insert("covered", meta.covered)?;
                numbers.insert("complete", u64::from(meta.is_complete))?;
                match meta.ahead_millis {
                    Some(millis) => drop(numbers.insert("ahead", millis.cast_unsigned())?),
                    None => drop(numbers.remove("ahead")?),
                }
                let mut texts = write.open_table(TEXTS)?;
                match &meta.boot {
                    Some(boot) => drop(texts.insert("boot", boot.as_str())?),
                    None => drop(texts.remove("boot")?),
                }
            }
            write.commit()?;
            Ok(count)
        })
    }

    /// Returns how many octets of the file hold something now. Walks all of it.
    pub(super) fn live_len(&self) -> Result<u64, TableError> {
        caught(|| {
            let write = self.database.begin_write()?;
            let stats = write.stats()?;
            write.abort()?;
            Ok((stats.leaf_pages() + stats.branch_pages()).saturating_mul(stats.page_size() as u64))
        })
    }

    /// Gives back to the system what the file does not need. Takes seconds for a million entries.
    pub(super) fn compact(&mut self) -> Result<(), TableError> {
        caught(|| {
            self.database.compact()?;
            Ok(())
        })
    }

    /// Closes the file in order, so that the next open needs no repair.
    pub(super) fn close(self) -> Result<(), TableError> {
        caught(|| Ok(self.database.close()?))
    }
}

/// Makes a table hold what `changes` say and nothing else; what it holds already is not written again: after a start it
/// is all of it, or nearly.
fn replace(sightings: &mut redb::Table<'_, &[u8], &[u8]>, changes: &Pending) -> Result<(), TableError> {
    let mut wanted = changes.entries().filter_map(|(key, times)| Some((key, times?))).peekable();
    let (mut gone, mut puts) = (Vec::<Box<[u8]>>::new(), Vec::new());
    // Both are sorted by key.
    for entry in sightings.iter()? {
        let (key, times) = entry?;
        while let Some(put) = wanted.next_if(|(wanted, _)| *wanted < key.value()) {
            puts.push(put);
        }
        match wanted.next_if(|(wanted, _)| *wanted == key.value()) {
            Some((_, same)) if same == times.value() => {}
            Some(put) => puts.push(put),
            None => gone.push(key.value().into()),
        }
    }
    puts.extend(wanted);
    for key in &gone {
        sightings.remove(&**key)?;
    }
    for (key, times) in puts {
        sightings.insert(key, times)?;
    }
    Ok(())
}

/// Turns a panic of redb into damage. Whatever it left half done is not used again: the database is opened anew.
fn caught<T>(work: impl FnOnce() -> Result<T, TableError>) -> Result<T, TableError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(TableError::Damaged(text.unwrap_or("redb gave up on it").to_owned()))
    })
}
