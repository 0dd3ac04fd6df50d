//! Lists for firewalls: `/prefixes.<format>`, `/feeds/<product>.txt` and `/domains.txt`.
//!
//! ```text
//!   request ─▶ ready? ─▶ query ─▶ snapshot ─▶ preconditions ─▶ store ─▶ rendered once ─▶ coding ─▶ consumer
//!               503       400                  304, 412                  500, never an empty list
//! ```
//! The entity tag of a list is `"<session>-<serial>"`, that of its compressed copy ends in `-gz`. The query is part of
//! the URL and the bytes are a function of both, so no more is needed.
//!
//! The lists of names, `/domains.txt` and `/feeds/squid-domains.txt`, are functions of the catalogue alone; their entity
//! tag is its hash.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED, VARY,
};
use axum::http::{StatusCode, Uri};
use axum::response::Response;

use super::coding::Coding;
use super::conditional::{Validators, Verdict, http_date};
use super::query;
use super::rendered::{Version, What};
use super::reply::{failed, not_ready, refused, with_header};
use super::state::Web;
use crate::export::format::{Format, Names};

/// How many prefixes `max` or the product's limit left out.
const OMITTED: HeaderName = HeaderName::from_static("x-greenlane-omitted");

/// The bytes of a feed and how many prefixes were left out.
type Render = Box<dyn FnOnce() -> (Vec<u8>, Option<usize>) + Send>;

/// What one feed request comes to before it is rendered.
struct Feed {
    validators: Validators,
    version: Version,
    what: What,
    content_type: &'static str,
    render: Render,
}

/// Answers `/prefixes.<format>` and the products' lists of prefixes.
pub(super) async fn prefixes(web: Arc<Web>, format: Format, uri: Uri, request: HeaderMap) -> Response {
    if !web.is_ready() {
        return not_ready();
    }
    let catalogue = web.state.catalogue.load_full();
    let query = match query::prefixes(&uri, |id| catalogue.app(id).map(|app| app.id.clone())) {
        Ok(query) => query,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let snapshot = web.state.reader.snapshot();
    let version = (snapshot.session().0, snapshot.serial());
    let modified_secs = web.dates.of(version, snapshot.changed(), web.now());
    let what = What::Prefixes(format, query.clone());
    let tag = format!("{}-{}", snapshot.session(), snapshot.serial());
    let render = Box::new(move || {
        let rendered = format.render(&snapshot, &query);
        (rendered.bytes, rendered.omitted)
    });
    let validators = Validators { tag, modified_secs: Some(modified_secs) };
    let version = (version.0, version.1, 0);
    send(&web, &request, Feed { validators, version, what, content_type: format.content_type(), render }).await
}

/// Answers `/domains.txt` and `/feeds/squid-domains.txt`.
pub(super) async fn names(web: Arc<Web>, names: Names, uri: Uri, request: HeaderMap) -> Response {
    if !web.is_ready() {
        return not_ready();
    }
    let catalogue = web.state.catalogue.load_full();
    let apps = match query::domains(&uri, |id| catalogue.app(id).map(|app| app.id.clone())) {
        Ok(apps) => apps,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let hash = catalogue.hash();
    let what = What::Names(names, apps.clone());
    let render = Box::new(move || (names.render(&catalogue, apps.as_deref()), None));
    let feed = Feed {
        validators: Validators { tag: format!("{hash:016x}"), modified_secs: None },
        version: (0, 0, hash),
        what,
        content_type: "text/plain; charset=utf-8",
        render,
    };
    send(&web, &request, feed).await
}

/// Evaluates the preconditions and sends what they leave to send.
async fn send(web: &Web, request: &HeaderMap, feed: Feed) -> Response {
    let now = web.now();
    match feed.validators.check(request, now) {
        Verdict::Failed => return refused(StatusCode::PRECONDITION_FAILED, "the list has changed"),
        Verdict::NotModified(coding) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            describe(response.headers_mut(), &feed.validators, coding, now.as_secs());
            return response;
        }
        Verdict::Send => {}
    }
    let body = match web.store.body(feed.version, feed.what, feed.render).await {
        Ok(body) => body,
        Err(error) => return failed(&error),
    };
    let (bytes, coding) = match web.store.coded(&body, Coding::accepted(request)).await {
        Ok(coded) => coded,
        Err(error) => return failed(&error),
    };
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    describe(headers, &feed.validators, coding, now.as_secs());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(feed.content_type));
    if coding == Coding::Gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Some(omitted) = body.omitted {
        headers.insert(OMITTED, HeaderValue::from(omitted));
    }
    response
}

/// Writes what 200 and 304 have in common (RFC 9110 §15.4.5).
fn describe(headers: &mut HeaderMap, validators: &Validators, coding: Coding, now_secs: u64) {
    with_header(headers, ETAG, &validators.etag(coding));
    if let Some(date) = validators.modified_secs.and_then(|secs| http_date(secs.min(now_secs))) {
        with_header(headers, LAST_MODIFIED, &date);
    }
    // Caches may keep a list and must ask each time: a stale one misses addresses.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
}
