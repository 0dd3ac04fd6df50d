//! Reloads the lists when their folder changes.
//!
//! The system's events only say that something happened; the folder is read once it has been quiet for a moment, so
//! that an editor's three renames or a `git pull` make one reload.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use notify::{Event, EventKind, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::Daemon;

/// How long the folder must be quiet.
const QUIET: Duration = Duration::from_millis(300);

/// Watches `folder` until the daemon ends. Without a watch (no such facility, or its limit reached) the daemon runs
/// all the same, and SIGHUP reloads.
pub(super) fn start(daemon: &Arc<Daemon>, folder: &Path) {
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
        Ok(watcher)
    });
    match watched {
        Ok(watcher) => {
            let stop = daemon.stop_rest.clone();
            let reloads = reload_when_quiet(Arc::downgrade(daemon), receiver);
            daemon.tasks.spawn(async move {
                let _watcher = watcher;
                tokio::select! {
                    () = reloads => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        Err(error) => {
            tracing::warn!("catalogue.watch: {}: {error}; send SIGHUP after changes", folder.display());
        }
    }
}

async fn reload_when_quiet(daemon: Weak<Daemon>, mut changes: mpsc::Receiver<()>) {
    while changes.recv().await.is_some() {
        while tokio::time::timeout(QUIET, changes.recv()).await.is_ok_and(|change| change.is_some()) {}
        let Some(daemon) = daemon.upgrade() else { return };
        daemon.reload_catalogue().await;
    }
}
