//! Reloads the lists when their folder changes.
//!
//! The system's events only say that something happened; the folder is read once it has been quiet for a moment, so
//! that an editor's three renames or a `git pull` make one reload.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::Daemon;

/// How long the folder must be quiet.
const QUIET: Duration = Duration::from_millis(300);

/// A folder that is watched until this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    watcher: RecommendedWatcher,
    folder: PathBuf,
}

/// Watches `folder`. Without a watch (no such facility, or its limit reached) the daemon runs all the same, and SIGHUP
/// reloads.
pub(super) fn start(daemon: &Arc<Daemon>, folder: &Path) -> Option<Watch> {
    let (sender, receiver) = mpsc::channel(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // Reading the lists is an event, too.
        let is_change = event.map_or(true, |event| !matches!(event.kind, EventKind::Access(_)));
        if is_change {
            // Full means that a reload is already due.
            let _ = sender.try_send(());
        }
    });
    let watched = watcher.and_then(|mut watcher| {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(Watch { watcher, folder: folder.to_owned() })
    });
    match watched {
        Ok(watch) => {
            let stop = daemon.stop_rest.clone();
            let reloads = reload_when_quiet(Arc::downgrade(daemon), receiver);
            daemon.tasks.spawn(async move {
                tokio::select! {
                    () = reloads => {}
                    () = stop.cancelled() => {}
                }
            });
            Some(watch)
        }
        Err(error) => {
            tell(folder, &error);
            None
        }
    }
}

impl Watch {
    /// Watches `folder` from now on: another one than before, or the same, which may have been removed and made anew.
    pub(super) fn turn_to(&mut self, folder: &Path) {
        if folder != self.folder {
            // One that was removed is watched no longer anyway.
            let _ = self.watcher.unwatch(&self.folder);
            folder.clone_into(&mut self.folder);
        }
        if let Err(error) = self.watcher.watch(folder, RecursiveMode::NonRecursive) {
            tell(folder, &error);
        }
    }
}

fn tell(folder: &Path, error: &notify::Error) {
    tracing::warn!("catalogue.watch: {}: {error}; send SIGHUP after changes", folder.display());
}

async fn reload_when_quiet(daemon: Weak<Daemon>, mut changes: mpsc::Receiver<()>) {
    while changes.recv().await.is_some() {
        while tokio::time::timeout(QUIET, changes.recv()).await.is_ok_and(|change| change.is_some()) {}
        let Some(daemon) = daemon.upgrade() else { return };
        daemon.reload_catalogue().await;
    }
}
