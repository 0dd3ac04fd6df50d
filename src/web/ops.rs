//! For people and machines that watch us: `/`, `/apps`, `/stats`, `/metrics`, `/healthz`, `/readyz`.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CONTENT_SECURITY_POLICY, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde_json::{Value, json};

use super::query;
use super::rendered::{RenderError, What};
use super::reply::{again_in, failed, json as reply, not_ready, refused, text, with_type};
use super::state::Web;
use crate::catalogue::{App, AppId};
use crate::metrics;
use crate::prefix::Family;
use crate::set::{Selection, Snapshot};

/// The page at `/`: no script, no style, nothing from elsewhere.
const INDEX: &str = include_str!("index.html");

/// Answers `/`.
pub(super) fn index() -> Response {
    let mut response = with_type(StatusCode::OK, "text/html; charset=utf-8", Body::from(INDEX));
    let policy = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}

/// Answers `/healthz`: the process is alive.
pub(super) fn healthz() -> Response {
    text(StatusCode::OK, "alive\n".to_owned())
}

/// Answers `/readyz`: the set is restored and the listeners are open.
pub(super) fn readyz(web: &Web) -> Response {
    if web.is_ready() {
        return text(StatusCode::OK, "ready\n".to_owned());
    }
    again_in(refused(StatusCode::SERVICE_UNAVAILABLE, "not ready: the set is not restored yet"), 1)
}

/// Answers `/metrics`; the prefixes are counted now, once a serial, rather than at each change.
pub(super) async fn metrics(web: Arc<Web>) -> Response {
    match prefix_counts(&web).await {
        Ok(counts) => {
            for (family, count) in [Family::V4, Family::V6].into_iter().zip(counts) {
                web.metrics.prefixes.with_label_values(&[family.digit()]).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
        // The other metrics are worth more than this one.
        Err(error) => tracing::warn!(%error, "the exported prefixes could not be counted"),
    }
    with_type(StatusCode::OK, metrics::CONTENT_TYPE, web.state.registry.render().into())
}

/// Counts the exported prefixes of each family.
async fn prefix_counts(web: &Web) -> Result<[u64; 2], RenderError> {
    let snapshot = web.state.reader.snapshot();
    let version = (snapshot.session().0, snapshot.serial(), 0);
    let render = move || {
        let prefixes = snapshot.prefixes(&Selection::default());
        let v4 = prefixes.partition_point(|prefix| prefix.family() == Family::V4);
        let counts = [v4, prefixes.len() - v4].map(|count| (count as u64).to_be_bytes());
        (counts.concat(), None)
    };
    let body = web.store.body(version, What::PrefixCounts, render).await?;
    let (v4, v6) = body.plain().split_first_chunk::<8>().ok_or(RenderError)?;
    let v6 = v6.first_chunk::<8>().ok_or(RenderError)?;
    Ok([u64::from_be_bytes(*v4), u64::from_be_bytes(*v6)])
}

/// Answers `/apps`: each app with what its list says and holds, and how much was learned for it.
pub(super) async fn apps(web: Arc<Web>, uri: Uri) -> Response {
    if !web.is_ready() {
        return not_ready();
    }
    if let Err(error) = query::none(&uri) {
        return refused(StatusCode::BAD_REQUEST, &error.to_string());
    }
    let catalogue = web.state.catalogue.load_full();
    let snapshot = web.state.reader.snapshot();
    let own = snapshot.clone();
    match web.walk(&snapshot, move || learned_by_app(&own)).await {
        Ok(learned) => {
            let apps: Vec<Value> = catalogue.apps().iter().map(|app| app_value(app, &learned)).collect();
            reply(&json!({ "apps": apps }))
        }
        Err(error) => failed(&error),
    }
}

/// Counts the learned hosts of each app, IPv4 and IPv6.
fn learned_by_app(snapshot: &Snapshot) -> HashMap<AppId, [u64; 2]> {
    let mut counts: HashMap<AppId, [u64; 2]> = HashMap::new();
    for host in snapshot.hosts() {
        for app in host.apps().iter() {
            if !counts.contains_key(app) {
                counts.insert(app.clone(), [0; 2]);
            }
            if let Some(count) = counts.get_mut(app) {
                count[usize::from(host.addr().is_ipv6())] += 1;
            }
        }
    }
    counts
}

fn app_value(app: &App, learned: &HashMap<AppId, [u64; 2]>) -> Value {
    let [v4, v6] = learned.get(&app.id).copied().unwrap_or_default();
    json!({
        "id": app.id.as_str(),
        "title": app.title,
        "source": app.source,
        "reason": app.reason,
        "retrieved": app.retrieved.map(|date| date.to_string()),
        "review_by": app.review_by.map(|date| date.to_string()),
        "disabled": app.disabled,
        "triggers": app.trigger_count,
        "names": app.name_count,
        "prefixes": app.prefix_count,
        "learned": { "4": v4, "6": v6 },
    })
}

/// Answers `/stats`: one object of counters, with what the daemon adds.
pub(super) fn stats(web: &Web, uri: &Uri) -> Response {
    if let Err(error) = query::none(uri) {
        return refused(StatusCode::BAD_REQUEST, &error.to_string());
    }
    let snapshot = web.state.reader.snapshot();
    let catalogue = web.state.catalogue.load_full();
    let now = web.now();
    let statics_v6 = snapshot.statics().iter().filter(|entry| entry.prefix.family() == Family::V6).count();
    let mut stats = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": web.is_ready(),
        "now": now.as_secs(),
        "uptime_secs": now.since(web.started).as_secs(),
        "session": snapshot.session().to_string(),
        "serial": snapshot.serial(),
        "changed": snapshot.changed().as_secs(),
        "static": { "4": snapshot.statics().len() - statics_v6, "6": statics_v6 },
        "learned": { "4": snapshot.host_count(Family::V4), "6": snapshot.host_count(Family::V6) },
        "apps": catalogue.apps().iter().filter(|app| !app.disabled).count(),
        "triggers": catalogue.trigger_count(),
        "streams": web.streams.count(),
    });
    if let (Value::Object(own), Value::Object(more)) = (&mut stats, (web.state.hooks.stats)()) {
        for (key, value) in more {
            own.entry(key).or_insert(value);
        }
    }
    reply(&stats)
}
