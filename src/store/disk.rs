//! A file that is ours alone while it is open: positioned reads and writes, and a lock.
//!
//! [`Disk`] is what the database and the journals stand on. The lock is the kernel's (`flock`): it ends with the
//! process, however that ends, so a crash leaves none behind. Clones share file and lock.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redb::StorageBackend;

/// Only its user reads the file: it tells who asked for what.
const MODE: u32 = 0o600;

/// An open file; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    file: Arc<File>,
    #[cfg(test)]
    faults: Arc<Faults>,
}

/// Why a file cannot be had for ourselves.
#[derive(Debug)]
pub(super) enum LockError {
    /// Another process, or this one, has it open.
    InUse,
    /// It is a folder, a device, a pipe or a socket.
    NotAFile,
    Io(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// How often a locked file is tried again, and the pause between: the greenlane before us may be about to end, and a
/// command that is just being started holds copies of our files until it runs.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

impl Disk {
    /// Opens the file, making it if there is none.
    pub(super) fn open(path: &Path) -> Result<Self, LockError> {
        // A folder cannot be opened for writing; say what it is rather than what the system says of it.
        if path.metadata().is_ok_and(|meta| !meta.is_file()) {
            return Err(LockError::NotAFile);
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(MODE).open(path)?;
        Ok(Self {
            file: Arc::new(file),
            #[cfg(test)]
            faults: Arc::default(),
        })
    }

    /// Opens a file that is there, to be read alone.
    pub(super) fn open_to_read(path: &Path) -> Result<Self, LockError> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(LockError::NotAFile);
        }
        Ok(Self {
            file: Arc::new(file),
            #[cfg(test)]
            faults: Arc::default(),
        })
    }

    /// Opens the file and locks it.
    pub(super) fn lock(path: &Path) -> Result<Self, LockError> {
        Self::lock_with(path, Self::open, LOCK_TRIES)
    }

    /// Opens a file that is there and locks it, to be read alone; whoever has it locked is not waited for.
    pub(super) fn lock_to_read(path: &Path) -> Result<Self, LockError> {
        Self::lock_with(path, Self::open_to_read, 0)
    }

    fn lock_with(path: &Path, open: fn(&Path) -> Result<Self, LockError>, mut tries: u32) -> Result<Self, LockError> {
        // Between open and lock another process may have set the file aside: then the lock is on the wrong one.
        loop {
            let disk = open(path)?;
            match disk.file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(LOCK_PAUSE);
                    continue;
                }
                Err(TryLockError::WouldBlock) => return Err(LockError::InUse),
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            let mine = disk.file.metadata()?;
            if path.metadata().is_ok_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino())) {
                return Ok(disk);
            }
        }
    }

    /// Returns the length in octets.
    pub(super) fn size(&self) -> io::Result<u64> {
        self.may_go_on()?;
        Ok(self.file.metadata()?.len())
    }

    /// Fills `out` from `offset` on.
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.may_go_on()?;
        self.file.read_exact_at(out, offset)
    }

    /// Writes all of `bytes` from `offset` on.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.may_go_on()?;
        #[cfg(test)]
        self.faults.power.written(offset, bytes);
        self.file.write_all_at(bytes, offset)
    }

    /// Cuts the file, or lengthens it with zeros.
    pub(super) fn resize(&self, len: u64) -> io::Result<()> {
        self.may_go_on()?;
        #[cfg(test)]
        self.faults.power.resized(len);
        self.file.set_len(len)
    }

    /// Waits until what was written has reached the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.may_go_on()?;
        #[cfg(test)]
        self.faults.power.synced();
        self.file.sync_data()
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests let it fail")]
    fn may_go_on(&self) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn may_go_on(&self) -> io::Result<()> {
        self.faults.count()
    }

    /// Returns what lets this file fail.
    #[cfg(test)]
    pub(super) fn faults(&self) -> &Arc<Faults> {
        &self.faults
    }
}

/// The database syncs for real: what it says is committed survives the loss of power.
impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.resize(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes)
    }
}

/// Lets a file fail: every call from the `n`th on, until it is mended; or be slow.
#[cfg(test)]
#[derive(Debug)]
pub(super) struct Faults {
    calls_left: std::sync::atomic::AtomicU64,
    delay_millis: std::sync::atomic::AtomicU64,
    power: Arc<Power>,
}

/// What would be left of a file if the power were lost: it remembers what was synced, and each write since.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Power(parking_lot::Mutex<(Vec<u8>, Vec<Write>)>);

/// A write that the disk may not have yet.
#[cfg(test)]
#[derive(Debug)]
enum Write {
    At(usize, Vec<u8>),
    Len(usize),
}

#[cfg(test)]
impl Power {
    /// A disk writes so many octets whole or not at all.
    const SECTOR_LEN: usize = 512;

    fn written(&self, offset: u64, bytes: &[u8]) {
        let mut writes = self.0.lock();
        let (mut at, mut rest) = (offset as usize, bytes);
        while !rest.is_empty() {
            let (sector, after) = rest.split_at(rest.len().min(Self::SECTOR_LEN - at % Self::SECTOR_LEN));
            writes.1.push(Write::At(at, sector.to_vec()));
            (at, rest) = (at + sector.len(), after);
        }
    }

    fn resized(&self, len: u64) {
        self.0.lock().1.push(Write::Len(len as usize));
    }

    fn synced(&self) {
        let (image, writes) = &mut *self.0.lock();
        writes.drain(..).for_each(|write| write.apply(image));
    }

    /// Returns a file that a loss of power may leave: what was synced, and some of what was written since.
    pub(super) fn lose(&self, mut seed: u64) -> Vec<u8> {
        let (image, writes) = &*self.0.lock();
        let mut image = image.clone();
        for write in writes {
            // xorshift64: any half of the writes, none if there is no seed.
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            if seed & 1 == 1 {
                write.apply(&mut image);
            }
        }
        image
    }
}

#[cfg(test)]
impl Write {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::At(at, bytes) => {
                image.resize(image.len().max(at + bytes.len()), 0);
                image[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Len(len) => image.resize(*len, 0),
        }
    }
}

#[cfg(test)]
impl Default for Faults {
    fn default() -> Self {
        Self { calls_left: u64::MAX.into(), delay_millis: 0.into(), power: Arc::default() }
    }
}

#[cfg(test)]
impl Faults {
    /// Lets `calls` calls pass and all later ones fail.
    pub(super) fn after(&self, calls: u64) {
        self.calls_left.store(calls, std::sync::atomic::Ordering::SeqCst);
    }

    /// Lets all calls pass again.
    pub(super) fn mend(&self) {
        self.after(u64::MAX);
    }

    /// Lets every call take so long.
    pub(super) fn delay(&self, millis: u64) {
        self.delay_millis.store(millis, std::sync::atomic::Ordering::SeqCst);
    }

    /// Returns what a loss of power would leave of the file.
    pub(super) fn power(&self) -> Arc<Power> {
        Arc::clone(&self.power)
    }

    fn count(&self) -> io::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        std::thread::sleep(Duration::from_millis(self.delay_millis.load(SeqCst)));
        let take = |left: u64| match left {
            u64::MAX => Some(left),
            0 => None,
            left => Some(left - 1),
        };
        match self.calls_left.fetch_update(SeqCst, SeqCst, take) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::new(io::ErrorKind::StorageFull, "the test's disk is full")),
        }
    }
}
