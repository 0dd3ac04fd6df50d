//! What `/stats` tells beside the set: upstreams, cache, generation.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Daemon;
use crate::forward::UpstreamStatus;

/// Returns the source of the numbers; it holds the daemon weakly, since the daemon holds the web listener.
pub(super) fn of(daemon: &Arc<Daemon>) -> Arc<dyn Fn() -> Value + Send + Sync> {
    let daemon = Arc::downgrade(daemon);
    Arc::new(move || {
        let Some(daemon) = daemon.upgrade() else { return Value::Null };
        let (current, cache) = (daemon.pipeline.current(), daemon.pipeline.cache());
        json!({
            "generation": current.generation(),
            "upstreams": current.forward().status().iter().map(upstream).collect::<Vec<_>>(),
            "questions_waiting": current.forward().waiting(),
            "cache": { "entries": cache.len(), "bytes": cache.size_bytes() },
        })
    })
}

fn upstream(status: &UpstreamStatus) -> Value {
    json!({
        "place": status.place,
        "url": status.url,
        "up": status.is_up,
        "latency_ms": status.latency.map(|latency| latency.as_secs_f64() * 1000.0),
        "asked": status.asked,
        "answered": status.answered,
        "failed": status.failed,
        "last_error": status.last_error,
    })
}
