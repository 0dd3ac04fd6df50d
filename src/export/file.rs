//! `[[export.file]]`: the set in a file, replaced atomically, and a command afterwards.
//!
//! ```text
//!   new serial ─▶ wait 200 ms for more ─▶ render ─▶ same bytes? done
//!                                              └─▶ temporary file ─▶ fsync ─▶ rename ─▶ fsync folder ─▶ command
//! ```
//! A file of names follows the lists instead of the serial. A reader of the file sees the old list or the new one, never
//! a part. [`keep`] follows the set for one file: a failed write is counted, told once, and tried again with growing
//! pauses until it works; the file meanwhile stays as it was.
//! The command runs without a shell and without input, at most 30 s, never twice at once; a change while it runs makes
//! it run again afterwards. A file that holds these bytes already is left alone, and no command runs.
//!
//! The file is made with mode 0644 and belongs to us; where the path is a symbolic link, the link is replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounterVec, Opts};
use thiserror::Error;
use tokio::process::Command;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::format::Dialect;
use crate::catalogue::Catalogue;
use crate::metrics::Registry;
use crate::set::{Event, Reader, Snapshot, Subscription};

/// How long the first change of a burst waits for the others.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// The pause after the first failed write; each further one doubles it.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest pause between tries.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How long a command may run.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(30);

/// One file to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The file; its folder must exist.
    pub path: PathBuf,
    /// What is written into it.
    pub format: Dialect,
    /// The command to run after a change: program and arguments, no shell; empty for none.
    pub on_change: Vec<String>,
}

/// What files are written from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The set.
    pub reader: Reader,
    /// The lists in force; a reload sends new ones.
    pub catalogue: watch::Receiver<Arc<Catalogue>>,
}

/// Why a file cannot be kept.
#[derive(Debug, Error)]
pub enum CheckError {
    /// The path ends in `/` or `..`, or is a folder.
    #[error("`{0}` is no path of a file; name a file in a folder that exists")]
    NoFile(PathBuf),
    /// The folder is missing or cannot be looked at.
    #[error("the folder `{folder}` cannot be used: {source}; create it first")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Files cannot be made in the folder.
    #[error(
        "the folder `{folder}` cannot be written to: {source}; let greenlane write there, or choose another folder"
    )]
    Unwritable {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The metrics of all files.
#[derive(Clone, Debug)]
pub struct Metrics {
    writes: IntCounterVec,
    commands: IntCounterVec,
}

impl Metrics {
    /// Registers the metrics; once a registry.
    pub fn new(registry: &Registry) -> Self {
        let writes = Opts::new("greenlane_export_file_writes_total", "Export files written, by result.");
        let commands = Opts::new("greenlane_export_commands_total", "Commands run after a file changed, by result.");
        let metrics = Self {
            writes: registry.add(IntCounterVec::new(writes, &["result"])),
            commands: registry.add(IntCounterVec::new(commands, &["result"])),
        };
        // Shown from the start, as zero: an increase from nothing to one is none to an alert.
        for result in ["done", "failed"] {
            metrics.writes.with_label_values(&[result]);
        }
        for result in ["done", "failed", "killed", "not_started"] {
            metrics.commands.with_label_values(&[result]);
        }
        metrics
    }
}

/// Checks that the file can be written, by making and removing the temporary file beside it.
///
/// # Errors
/// [`CheckError`] says which part of the path is in the way.
pub fn check(options: &Options) -> Result<(), CheckError> {
    let place = Place::of(&options.path).filter(|_| !options.path.is_dir());
    let Some(place) = place else { return Err(CheckError::NoFile(options.path.clone())) };
    let folder = place.folder.clone();
    match fs::metadata(&folder) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(CheckError::Folder { folder, source: io::ErrorKind::NotADirectory.into() }),
        Err(source) => return Err(CheckError::Folder { folder, source }),
    }
    let made = place.create().and_then(|file| {
        drop(file);
        fs::remove_file(&place.temporary)
    });
    made.map_err(|source| CheckError::Unwritable { folder, source })
}

/// Keeps one file equal to the set until `shutdown` is cancelled. Start it once the set is restored.
///
/// A command that runs at that moment is left to end by itself: a firewall reload cut in half helps nobody.
pub async fn keep(options: Options, sources: Sources, metrics: Metrics, shutdown: CancellationToken) {
    let changed = Notify::new();
    tokio::join!(
        write_changes(&options, sources, &metrics, &changed, &shutdown),
        run_commands(&options, &metrics, &changed, &shutdown),
    );
}

/// Writes the file whenever what it shows moves on, and tells `changed` when its bytes did.
async fn write_changes(
    options: &Options,
    mut sources: Sources,
    metrics: &Metrics,
    changed: &Notify,
    shutdown: &CancellationToken,
) {
    let mut subscription = sources.reader.subscribe();
    let mut retry = RETRY_MIN;
    let mut is_failing = false;
    let mut is_cut = false;
    loop {
        let snapshot = sources.reader.snapshot();
        let serial = snapshot.serial();
        let catalogue = Arc::clone(&sources.catalogue.borrow_and_update());
        let pause = match write_off_thread(options, snapshot, catalogue).await {
            Ok((outcome, omitted)) => {
                let was_cut = std::mem::replace(&mut is_cut, omitted > 0);
                if is_cut && !was_cut {
                    let (path, format) = (options.path.display(), options.format.name());
                    tracing::warn!(%path, format, omitted, "the export file is at its format's limit and leaves out prefixes");
                }
                if outcome == Written::Changed {
                    metrics.writes.with_label_values(&["done"]).inc();
                    changed.notify_one();
                }
                if std::mem::take(&mut is_failing) {
                    tracing::info!(path = %options.path.display(), "the export file is written again");
                }
                retry = RETRY_MIN;
                None
            }
            Err(error) => {
                metrics.writes.with_label_values(&["failed"]).inc();
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(path = %options.path.display(), %error, "the export file cannot be written, trying on");
                }
                let pause = retry;
                retry = (retry * 2).min(RETRY_MAX);
                Some(pause)
            }
        };
        let wait = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => {
                    match options.format {
                        Dialect::Set(_) => newer(&mut subscription, serial).await,
                        Dialect::Names(_) => relisted(&mut sources.catalogue).await,
                    }
                    tokio::time::sleep(DEBOUNCE).await;
                }
            }
        };
        if shutdown.run_until_cancelled(wait).await.is_none() {
            return;
        }
    }
}

/// Waits until the set has gone on from `serial`, or may have.
async fn newer(subscription: &mut Subscription, serial: u64) {
    loop {
        match subscription.next().await {
            Event::Changed { serial: now } if now <= serial => {}
            Event::Renewed(_) => {}
            Event::Changed { .. } | Event::Lagged => return,
        }
    }
}

/// Waits until there are other lists; for ever once nobody can send any.
async fn relisted(catalogue: &mut watch::Receiver<Arc<Catalogue>>) {
    if catalogue.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// The file has new bytes.
    Changed,
    /// It had these bytes already.
    Same,
}

/// Renders and writes; returns how many prefixes the format's limit left out, too.
async fn write_off_thread(
    options: &Options,
    snapshot: Snapshot,
    catalogue: Arc<Catalogue>,
) -> io::Result<(Written, usize)> {
    let (path, format) = (options.path.clone(), options.format);
    let work = move || {
        let rendered = format.render(&snapshot, &catalogue);
        replace(&path, &rendered.bytes).map(|written| (written, rendered.omitted.unwrap_or(0)))
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Gives the file these bytes, all at once.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<Written> {
    if holds(path, bytes) {
        return Ok(Written::Same);
    }
    let place = Place::of(path).ok_or(io::ErrorKind::InvalidFilename)?;
    let mut file = place.create()?;
    let written =
        file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&place.temporary, path));
    if let Err(error) = written {
        // What is left of it is of no use, and the error to tell is the first one.
        let _ = fs::remove_file(&place.temporary);
        return Err(error);
    }
    // The file is in its place; only a loss of power in the next seconds could still bring the old one back.
    if let Err(error) = File::open(&place.folder).and_then(|folder| folder.sync_all()) {
        tracing::debug!(folder = %place.folder.display(), %error, "the folder of an export file cannot be synced");
    }
    Ok(Written::Changed)
}

/// Returns whether the file holds exactly these bytes.
fn holds(path: &Path, bytes: &[u8]) -> bool {
    let has_length = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == bytes.len() as u64);
    has_length && fs::read(path).is_ok_and(|old| old == bytes)
}

/// The folder of a file and the temporary file beside it.
#[derive(Clone, Debug)]
struct Place {
    folder: PathBuf,
    temporary: PathBuf,
}

impl Place {
    /// Finds both; `None` if the path does not end in a name.
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?;
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".greenlane-new");
        let temporary = folder.join(hidden);
        Some(Self { folder, temporary })
    }

    /// Makes the temporary file anew: what a crash left goes, and a link that somebody laid there is not followed.
    fn create(&self) -> io::Result<File> {
        match fs::remove_file(&self.temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).open(&self.temporary)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
        }
        Ok(file)
    }
}

/// Runs the command after changes, one at a time; changes while it runs are one more run.
async fn run_commands(options: &Options, metrics: &Metrics, changed: &Notify, shutdown: &CancellationToken) {
    let mut was_done = true;
    loop {
        if shutdown.run_until_cancelled(changed.notified()).await.is_none() {
            return;
        }
        let Some((program, arguments)) = options.on_change.split_first() else { continue };
        let Some(ran) = shutdown.run_until_cancelled(run(program, arguments, COMMAND_TIME_MAX)).await else { return };
        let (result, is_done) = match &ran {
            Ok(Ran::Ended(status)) if status.success() => ("done", true),
            Ok(Ran::Ended(_)) => ("failed", false),
            Ok(Ran::Killed) => ("killed", false),
            Err(_) => ("not_started", false),
        };
        metrics.commands.with_label_values(&[result]).inc();
        if was_done && !is_done {
            let path = options.path.display();
            match ran {
                Ok(Ran::Ended(status)) => tracing::warn!(%path, program, %status, "the on-change command failed"),
                Ok(Ran::Killed) => tracing::warn!(%path, program, "the on-change command was killed after 30 s"),
                Err(error) => tracing::warn!(%path, program, %error, "the on-change command cannot be started"),
            }
        } else if !was_done && is_done {
            tracing::info!(path = %options.path.display(), program, "the on-change command works again");
        }
        was_done = is_done;
    }
}

/// How a command came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ran {
    Ended(ExitStatus),
    Killed,
}

/// Runs a command for at most `limit`.
async fn run(program: &str, arguments: &[String], limit: Duration) -> io::Result<Ran> {
    let mut child =
        Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(false).spawn()?;
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(status) => status.map(Ran::Ended),
        Err(_) => {
            child.kill().await?;
            Ok(Ran::Killed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;
    use crate::clock::Timestamp;
    use crate::export::format::{Format, Names};
    use crate::set::{Draft, Session, StaticEntry};

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn draft() -> Draft {
        Draft::new(Session(0xab), NOW, &Registry::new())
    }

    fn statics(draft: &mut Draft, prefixes: &[&str]) {
        let entry =
            |text: &&str| StaticEntry { prefix: text.parse().unwrap(), apps: [catalogue::AppId::new("zoom")].into() };
        draft.set_statics(prefixes.iter().map(entry).collect());
        draft.commit(NOW);
    }

    fn catalogue(list: &str) -> Arc<Catalogue> {
        let options = catalogue::Options::default();
        let lists = [("zones/zoom.list", list.as_bytes())];
        Arc::new(catalogue::compile(lists, &options, jiff::civil::date(2027, 1, 15)).unwrap().catalogue)
    }

    fn sources(draft: &Draft) -> Sources {
        Sources { reader: draft.reader(), catalogue: watch::channel(catalogue("zoom.us\n")).1 }
    }

    fn options(path: PathBuf, on_change: &[&str]) -> Options {
        Options { path, format: Dialect::default(), on_change: on_change.iter().map(|&word| word.to_owned()).collect() }
    }

    /// Waits until `is_so`, at most 10 s.
    async fn until(is_so: impl Fn() -> bool) {
        for _ in 0..500 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("waited in vain");
    }

    #[test]
    fn check_names_what_is_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: PathBuf| check(&options(path, &[])).unwrap_err().to_string();
        assert!(check(&options(folder.path().join("list.txt"), &[])).is_ok());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the check leaves nothing behind");
        assert!(message(folder.path().join("no/list.txt")).contains("create it first"));
        assert!(message(folder.path().to_owned()).contains("is no path of a file"));
        assert!(message(folder.path().join("..")).contains("is no path of a file"));
        fs::write(folder.path().join("plain"), "").unwrap();
        assert!(message(folder.path().join("plain/list.txt")).contains("cannot be used"));
        assert!(message("/proc/list.txt".into()).contains("cannot be written to"));
    }

    #[test]
    fn replaced_file_is_whole_and_readable_by_all() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.txt");
        // A crash left a temporary file, and a stranger made it a link.
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join(".list.txt.greenlane-new")).unwrap();
        assert_eq!(replace(&path, b"a\n").unwrap(), Written::Changed);
        assert_eq!(replace(&path, b"a\n").unwrap(), Written::Same);
        assert_eq!(replace(&path, b"b\n").unwrap(), Written::Changed);
        assert_eq!(fs::read(&path).unwrap(), b"b\n");
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn file_follows_the_set_and_runs_its_command() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.txt");
        let log = folder.path().join("log");
        let script = format!("cat {} >> {}", path.display(), log.display());
        let mut draft = draft();
        let shutdown = CancellationToken::new();
        let registry = Registry::new();
        let kept = tokio::spawn(keep(
            options(path.clone(), &["sh", "-c", &script]),
            sources(&draft),
            Metrics::new(&registry),
            shutdown.clone(),
        ));
        until(|| fs::read(&path).is_ok_and(|bytes| bytes.is_empty())).await;
        statics(&mut draft, &["192.0.2.0/24"]);
        until(|| fs::read(&path).is_ok_and(|bytes| bytes == b"192.0.2.0/24\n")).await;
        until(|| fs::read(&log).is_ok_and(|bytes| bytes == b"192.0.2.0/24\n")).await;
        shutdown.cancel();
        kept.await.unwrap();
        let text = String::from_utf8(registry.render()).unwrap();
        assert!(text.contains("greenlane_export_file_writes_total{result=\"done\"} 2"), "{text}");
    }

    #[tokio::test]
    async fn file_of_names_follows_the_lists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names");
        let options = Options { format: Dialect::Names(Names::Squid), ..options(path.clone(), &[]) };
        let (lists, receiver) = watch::channel(catalogue("zoom.us\n"));
        let draft = draft();
        let sources = Sources { reader: draft.reader(), catalogue: receiver };
        let shutdown = CancellationToken::new();
        let kept = tokio::spawn(keep(options, sources, Metrics::new(&Registry::new()), shutdown.clone()));
        until(|| fs::read(&path).is_ok_and(|bytes| bytes == b".zoom.us\n")).await;
        lists.send_replace(catalogue("zoom.us\n=eu.zoom.example\n"));
        until(|| fs::read(&path).is_ok_and(|bytes| bytes == b".zoom.us\neu.zoom.example\n")).await;
        shutdown.cancel();
        kept.await.unwrap();
    }

    #[tokio::test]
    async fn file_keeps_to_the_limit_of_its_product() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { format: Dialect::Set(Format::Cisco), ..options(folder.path().join("list.txt"), &[]) };
        let limit = Format::Cisco.limit().unwrap().get();
        let prefixes: Vec<String> =
            (0..=limit).map(|i| format!("{}/32", std::net::Ipv4Addr::from((1 << 24) + 2 * i))).collect();
        let mut draft = draft();
        statics(&mut draft, &prefixes.iter().map(String::as_str).collect::<Vec<_>>());
        let (written, omitted) =
            write_off_thread(&options, draft.reader().snapshot(), catalogue("zoom.us\n")).await.unwrap();
        assert_eq!((written, omitted), (Written::Changed, 1));
        assert_eq!(fs::read_to_string(&options.path).unwrap().lines().count(), limit as usize);
    }

    #[tokio::test]
    async fn failed_write_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("late/list.txt");
        let mut draft = draft();
        statics(&mut draft, &["192.0.2.0/24"]);
        let shutdown = CancellationToken::new();
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let failed = metrics.writes.with_label_values(&["failed"]);
        let kept = tokio::spawn(keep(options(path.clone(), &[]), sources(&draft), metrics, shutdown.clone()));
        until(|| failed.get() > 0).await;
        fs::create_dir(folder.path().join("late")).unwrap();
        until(|| fs::read(&path).is_ok_and(|bytes| bytes == b"192.0.2.0/24\n")).await;
        shutdown.cancel();
        kept.await.unwrap();
    }

    #[tokio::test]
    async fn command_ends_in_time_or_is_killed() {
        let limit = Duration::from_millis(200);
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let ran = run("sh", &words(&["-c", "read line; exit 3"]), limit).await.unwrap();
        assert!(matches!(ran, Ran::Ended(status) if status.code() == Some(3)), "input is empty: {ran:?}");
        assert_eq!(run("sleep", &words(&["60"]), limit).await.unwrap(), Ran::Killed);
        assert!(run("/no/such/program", &[], limit).await.is_err());
    }

    #[tokio::test]
    async fn change_while_a_command_runs_makes_one_more_run() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = format!("echo in >> {0}; sleep 0.5; echo out >> {0}", log.display());
        let options = options(folder.path().join("list.txt"), &["sh", "-c", &script]);
        let (metrics, changed, shutdown) = (Metrics::new(&Registry::new()), Notify::new(), CancellationToken::new());
        let feed = async {
            changed.notify_one();
            until(|| log.exists()).await;
            for _ in 0..3 {
                changed.notify_one();
            }
            until(|| metrics.commands.with_label_values(&["done"]).get() == 2).await;
            shutdown.cancel();
        };
        tokio::join!(run_commands(&options, &metrics, &changed, &shutdown), feed);
        assert_eq!(fs::read_to_string(&log).unwrap(), "in\nout\nin\nout\n");
    }
}
