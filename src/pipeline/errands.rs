//! Tasks that a thread has to start, started together.
//!
//! A thread that answers many questions in a round comes upon some whose answers must be learned first. A task for each
//! would wake the writer of the set for each, and that the store: the offers of one round make one batch instead.

use std::cell::RefCell;
use std::pin::Pin;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;

type Errand = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// What this thread has gathered, if it gathers.
    static GATHERED: RefCell<Option<Vec<Errand>>> = const { RefCell::new(None) };
}

/// Has this thread gather what it would start, until it is dropped.
#[derive(Debug)]
pub struct Errands {
    runtime: Handle,
}

impl Errands {
    /// Begins to gather; what was gathered runs on `runtime`.
    pub fn gather(runtime: Handle) -> Self {
        GATHERED.set(Some(Vec::new()));
        Self { runtime }
    }

    /// Starts what was gathered, as one task. To be called before the thread waits for anything.
    pub fn send_off(&self) {
        let gathered = GATHERED.with_borrow_mut(|gathered| gathered.as_mut().map(std::mem::take)).unwrap_or_default();
        start(&self.runtime, gathered);
    }
}

impl Drop for Errands {
    fn drop(&mut self) {
        // A thread that ends may have taken it away before.
        if let Ok(Some(gathered)) = GATHERED.try_with(RefCell::take) {
            start(&self.runtime, gathered);
        }
    }
}

fn start(runtime: &Handle, errands: Vec<Errand>) {
    if !errands.is_empty() {
        let all = FuturesUnordered::from_iter(errands);
        drop(runtime.spawn(all.for_each(|()| std::future::ready(()))));
    }
}

/// Starts a task, now or with others of this thread.
pub(super) fn spawn(runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
    let left = GATHERED.with_borrow_mut(|gathered| match gathered {
        Some(gathered) => {
            gathered.push(Box::pin(task));
            None
        }
        None => Some(task),
    });
    if let Some(task) = left {
        drop(runtime.spawn(task));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn gathered_errands_start_when_they_are_sent_off_and_at_the_end() {
        let (errands, done) = (Errands::gather(Handle::current()), Arc::<AtomicUsize>::default());
        let count = |more: usize| {
            let done = Arc::clone(&done);
            async move {
                done.fetch_add(more, Ordering::SeqCst);
            }
        };
        let (sender, waits) = oneshot::channel::<()>();
        spawn(&errands.runtime, async { drop(waits.await) });
        spawn(&errands.runtime, count(1));
        tokio::task::yield_now().await;
        assert_eq!(done.load(Ordering::SeqCst), 0, "not yet");
        errands.send_off();
        while done.load(Ordering::SeqCst) < 1 {
            tokio::task::yield_now().await;
        }
        spawn(&errands.runtime, count(10));
        let runtime = errands.runtime.clone();
        drop(errands);
        spawn(&runtime, count(100));
        while done.load(Ordering::SeqCst) < 111 {
            tokio::task::yield_now().await;
        }
        drop(sender);
    }
}
