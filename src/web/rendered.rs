//! Bodies that are rendered once and handed to many.
//!
//! A body is a pure function of a version (session and serial, or the catalogue's hash) and of what is asked for. The
//! store keeps the newest version of each, bounded in count and octets; what is pushed out is rendered anew. Equal
//! requests that come together wait for one rendering. Rendering and compressing run on blocking threads, two at a
//! time, so that a stranger who asks for a thousand different lists slows other lists, not DNS.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};

use super::coding::{Coding, GZIP_LEN_MIN, gzip};
use crate::catalogue::AppId;
use crate::export::Query;
use crate::export::format::{Format, Names};

/// The most bodies kept.
const ENTRIES_MAX: usize = 32;
/// The most octets kept, compressed copies included: a million hosts are some 20 MB a dialect.
const BYTES_MAX: usize = 128 << 20;
/// Renderings at once.
const RENDERINGS_MAX: usize = 2;

/// What a body shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// `/prefixes.<format>` or a product's list.
    Prefixes(Format, Query),
    /// Listed names of these apps, or of all.
    Names(Names, Option<Vec<AppId>>),
    /// How many prefixes of each family are exported, for `/metrics`.
    PrefixCounts,
}

/// Which state a body shows: session, serial and the catalogue's hash, each 0 where it does not speak.
pub(super) type Version = (u64, u64, u64);

/// A rendered body.
#[derive(Debug)]
pub(super) struct Body {
    /// As it is.
    plain: Bytes,
    /// Compressed, unless it is short.
    gzip: OnceCell<Option<Bytes>>,
    /// Prefixes left out, if there was a bound.
    pub(super) omitted: Option<usize>,
}

/// Rendering did not end: the program is going down, or it panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the list could not be rendered")]
pub(super) struct RenderError;

/// The bodies kept.
#[derive(Debug)]
pub(super) struct Store {
    /// Least recently asked for first.
    entries: Mutex<Vec<Entry>>,
    permits: Semaphore,
}

type Cell = Arc<OnceCell<Arc<Body>>>;

#[derive(Clone, Debug)]
struct Entry {
    version: Version,
    what: What,
    cell: Cell,
}

impl Store {
    /// Makes an empty store.
    pub(super) fn new() -> Self {
        Self { entries: Mutex::default(), permits: Semaphore::new(RENDERINGS_MAX) }
    }

    /// Returns the body of `what` at `version`, rendering it if nobody has yet.
    pub(super) async fn body(
        &self,
        version: Version,
        what: What,
        render: impl FnOnce() -> (Vec<u8>, Option<usize>) + Send + 'static,
    ) -> Result<Arc<Body>, RenderError> {
        let cell = self.cell(version, what);
        let body = cell.get_or_try_init(|| async {
            let (plain, omitted) = self.blocking(render).await?;
            Ok(Arc::new(Body { plain: plain.into(), gzip: OnceCell::new(), omitted }))
        });
        let body = Arc::clone(body.await?);
        self.trim();
        Ok(body)
    }

    /// Returns the octets of a body in a coding; a short one only as it is.
    pub(super) async fn coded(&self, body: &Arc<Body>, coding: Coding) -> Result<(Bytes, Coding), RenderError> {
        if coding == Coding::Identity || body.plain.len() < GZIP_LEN_MIN {
            return Ok((body.plain.clone(), Coding::Identity));
        }
        let plain = body.plain.clone();
        let packed = body.gzip.get_or_try_init(|| self.blocking(move || gzip(&plain).map(Bytes::from))).await?.clone();
        self.trim();
        Ok(packed.map_or_else(|| (body.plain.clone(), Coding::Identity), |packed| (packed, Coding::Gzip)))
    }

    /// Runs `work` on a blocking thread, in its turn.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RenderError> {
        let _permit = self.permits.acquire().await.map_err(|_| RenderError)?;
        tokio::task::spawn_blocking(work).await.map_err(|_| RenderError)
    }

    /// Finds or makes the place of a body; an older version of the same gives way.
    fn cell(&self, version: Version, what: What) -> Cell {
        let mut entries = self.entries.lock();
        if let Some(at) = entries.iter().position(|entry| entry.version == version && entry.what == what) {
            let entry = entries.remove(at);
            let cell = Arc::clone(&entry.cell);
            entries.push(entry);
            return cell;
        }
        entries.retain(|entry| entry.what != what);
        if entries.len() >= ENTRIES_MAX {
            entries.remove(0);
        }
        let cell = Cell::default();
        entries.push(Entry { version, what, cell: Arc::clone(&cell) });
        cell
    }

    /// Drops the least recently asked for until the octets fit; the newest always stays.
    fn trim(&self) {
        let mut entries = self.entries.lock();
        let mut sum: usize = entries.iter().map(Entry::len).sum();
        while sum > BYTES_MAX && entries.len() > 1 {
            sum -= entries.remove(0).len();
        }
    }
}

impl Entry {
    fn len(&self) -> usize {
        self.cell.get().map_or(0, |body| {
            let packed = body.gzip.get().and_then(Option::as_ref).map_or(0, Bytes::len);
            body.plain.len() + packed
        })
    }
}

impl Body {
    /// Returns the octets as they are.
    pub(super) fn plain(&self) -> &Bytes {
        &self.plain
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn what(max: u32) -> What {
        What::Prefixes(Format::Txt, Query { max: NonZeroU32::new(max), ..Query::default() })
    }

    #[tokio::test]
    async fn equal_requests_share_one_rendering() {
        let store = Arc::new(Store::new());
        let count = Arc::new(AtomicUsize::new(0));
        let asks: Vec<_> = (0..20)
            .map(|_| {
                let (store, count) = (Arc::clone(&store), Arc::clone(&count));
                tokio::spawn(async move {
                    let render = move || {
                        count.fetch_add(1, Ordering::Relaxed);
                        (b"x".to_vec(), None)
                    };
                    store.body((1, 1, 0), what(1), render).await.unwrap().plain().clone()
                })
            })
            .collect();
        for ask in asks {
            assert_eq!(ask.await.unwrap(), "x");
        }
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn store_is_bounded_and_newest_version_wins() {
        let store = Store::new();
        for max in 1..100 {
            store.body((1, 1, 0), what(max), || (Vec::new(), None)).await.unwrap();
        }
        assert_eq!(store.entries.lock().len(), ENTRIES_MAX);
        store.body((1, 2, 0), what(99), || (b"new".to_vec(), None)).await.unwrap();
        assert_eq!(store.entries.lock().len(), ENTRIES_MAX);
        let again = store.body((1, 2, 0), what(99), || (b"never".to_vec(), None)).await.unwrap();
        assert_eq!(again.plain(), "new");
    }

    #[tokio::test]
    async fn octets_are_bounded() {
        let store = Store::new();
        for max in 1..=5 {
            store.body((1, 1, 0), what(max), || (vec![0; BYTES_MAX / 3], None)).await.unwrap();
        }
        assert_eq!(store.entries.lock().len(), 3);
    }

    #[tokio::test]
    async fn panic_while_rendering_is_an_error_and_not_kept() {
        let store = Store::new();
        let failed = store.body((1, 1, 0), what(1), || panic!("on purpose")).await;
        assert_eq!(failed.unwrap_err(), RenderError);
        let body = store.body((1, 1, 0), what(1), || (b"x".to_vec(), None)).await.unwrap();
        assert_eq!(body.plain(), "x");
    }
}
