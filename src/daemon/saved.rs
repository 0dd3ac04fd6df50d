//! The cache over a restart: a file beside the store's, written at an orderly end and read at the next start.
//!
//! Neither is waited for by a client: questions are answered while the file is written, and again before it is read.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Daemon, clamps};
use crate::cache::save::{self, Fault, Frame};
use crate::config::Config;
use crate::wire::{Question, Rules};

/// How long writing may take; questions are answered meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most answers that are learned at once. More are learned when they are asked for.
const LEARNED_MAX: usize = 4096;

/// Where it is; `None` if nothing is to be saved.
fn path(config: &Config) -> Option<PathBuf> {
    let store = config.store.as_ref().filter(|_| config.cache.save)?;
    let mut name = store.path.clone().into_os_string();
    name.push(".cache");
    Some(name.into())
}

fn frame(daemon: &Daemon, config: &Config) -> Frame {
    // What makes a reload forget the cache makes a start do so.
    let origin = crc32fast::hash(format!("{:?} {:?}", config.forward, clamps(config)).as_bytes());
    // TTLs were raised, and AD was judged, when the answer came.
    let rules = Rules { min_ttl: 0, trust_ad: true, ..clamps(config) };
    Frame { origin, now: daemon.clock.now(), rules }
}

/// Writes the cache, if that is asked for.
pub(super) async fn write(daemon: &Daemon) {
    let (path, frame) = {
        let loaded = daemon.loaded.lock().await;
        let Some(path) = path(&loaded.config) else { return };
        (path, frame(daemon, &loaded.config))
    };
    let is_late = Arc::new(AtomicBool::new(false));
    let (pipeline, must_end, file) = (daemon.pipeline.clone(), Arc::clone(&is_late), path.clone());
    let writing = tokio::task::spawn_blocking(move || {
        save::save(pipeline.cache(), &file, &frame, || !must_end.load(Ordering::Relaxed))
    });
    let saved = tokio::time::timeout(PATIENCE, writing).await;
    is_late.store(true, Ordering::Relaxed);
    match saved {
        Ok(Ok(Ok(Some(count)))) => tracing::info!("cache.save: {count} answers in `{}`", path.display()),
        Ok(Ok(Err(error))) => tracing::warn!("cache.save: `{}` cannot be written: {error}", path.display()),
        _ => tracing::warn!("cache.save: not written within {} s, and given up", PATIENCE.as_secs()),
    }
}

/// Begins to read the cache of the run before, if that is asked for.
pub(super) fn start_reading(daemon: &Arc<Daemon>, config: &Config) {
    let Some(path) = path(config) else { return };
    let frame = frame(daemon, config);
    let (pipeline, stop) = (daemon.pipeline.clone(), daemon.stop.clone());
    let upstreams = Arc::clone(pipeline.current().forward());
    daemon.tasks.spawn(async move {
        let (reading, of, ending) = (pipeline.clone(), Arc::clone(&upstreams), stop.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut to_learn: Vec<Question> = Vec::new();
            let (count, fault) = save::restore(&path, &frame, |question, entry| {
                if reading.restore(&question, &entry, &of) && to_learn.len() < LEARNED_MAX {
                    to_learn.push(question);
                }
                !ending.is_cancelled()
            });
            match fault {
                None if count > 0 => tracing::info!("cache.save: {count} answers out of `{}`", path.display()),
                None => {}
                Some(fault) => {
                    let rest = if matches!(fault, Fault::NotOurs | Fault::Damaged(_)) { ", set aside" } else { "" };
                    tracing::warn!("cache.save: `{}` {fault}; {count} answers taken{rest}", path.display());
                }
            }
            to_learn
        });
        let Ok(to_learn) = read.await else { return };
        for question in to_learn.iter().take_while(|_| !stop.is_cancelled()) {
            pipeline.learn_restored(question, &upstreams).await;
        }
    });
}
