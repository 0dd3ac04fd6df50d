//! The database: sightings by key, and what is known of the whole, in one `redb` file.
//!
//! A [`Table`] is written in whole transactions that redb syncs to the disk, so that the file is right after a kill and
//! after a loss of power alike: it holds one transaction or the next. It is checked from end to end when it is opened.
//! redb is believed to panic on some damage still; such a panic is caught here and counts as damage.

use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::{Builder, Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use thiserror::Error;

use super::StoreError;
use super::disk::Disk;
use super::pending::Pending;
use crate::set::Session;

/// The layout of the file. A change to keys or times that an older greenlane would misread takes the next number.
const SCHEMA: u64 = 1;

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
        use std::io::ErrorKind::{InvalidData, UnexpectedEof};
        match error.into() {
            redb::Error::Corrupted(what) => Self::Damaged(what),
            redb::Error::Io(error) if matches!(error.kind(), InvalidData | UnexpectedEof) => {
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
        caught(|| {
            let is_new = disk.size()? == 0;
            let mut builder = Builder::new();
            builder.set_cache_size(CACHE_LEN_MAX).set_check_integrity_on_open(!is_new);
            let table = Self { database: builder.create_with_backend(disk)? };
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
            SCHEMA => {}
            found => {
                let newer = if found > SCHEMA { "newer" } else { "older" };
                let text = format!("it has the schema {found} of a {newer} greenlane; this one reads schema {SCHEMA}");
                return Err(TableError::Foreign(text));
            }
        }
        let boot = read.open_table(TEXTS)?.get("boot")?.map(|text| text.value().to_owned());
        Ok(Some(Meta {
            id: number("id")?,
            session: Session(number("session")?),
            serial: number("serial")?,
            is_complete: number("complete")? != 0,
            covered: number("covered")?,
            boot,
        }))
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
            if changes.is_whole() {
                write.delete_table(SIGHTINGS)?;
            }
            let count = {
                let mut sightings = write.open_table(SIGHTINGS)?;
                for (key, times) in changes.entries() {
                    match times {
                        Some(times) => sightings.insert(key, times)?,
                        None => sightings.remove(key)?,
                    };
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

    /// Closes the file in order, so that the next open needs no repair.
    pub(super) fn close(self) -> Result<(), TableError> {
        caught(|| Ok(self.database.close()?))
    }
}

/// Turns a panic of redb into damage. Whatever it left half done is not used again: the database is opened anew.
fn caught<T>(work: impl FnOnce() -> Result<T, TableError>) -> Result<T, TableError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(TableError::Damaged(text.unwrap_or("redb gave up on it").to_owned()))
    })
}
