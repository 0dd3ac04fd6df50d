//! Short answers: one line of plain text, or one JSON value.

use std::fmt::Display;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use axum::response::Response;

use crate::clock::Timestamp;

/// Answers with a status and one line.
pub(super) fn refused(status: StatusCode, line: &str) -> Response {
    text(status, format!("{line}\n"))
}

/// Answers in plain text that nobody may keep.
pub(super) fn text(status: StatusCode, text: String) -> Response {
    with_type(status, "text/plain; charset=utf-8", text.into())
}

/// Answers 200 with one JSON value.
pub(super) fn json(value: &serde_json::Value) -> Response {
    with_type(StatusCode::OK, "application/json", format!("{value}\n").into())
}

/// Answers with a body of this type that nobody may keep.
pub(super) fn with_type(status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Answers 503: the set is not restored yet; a consumer keeps what it has and comes again.
pub(super) fn not_ready() -> Response {
    again_in(refused(StatusCode::SERVICE_UNAVAILABLE, "the set is not restored yet"), 1)
}

/// Answers 500: the consumer keeps what it has.
pub(super) fn failed(error: &dyn Display) -> Response {
    refused(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())
}

/// Adds `Retry-After`.
pub(super) fn again_in(mut response: Response, secs: u32) -> Response {
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(secs));
    response
}

/// The header that tells our clock, in which all ends are told: milliseconds since the Unix epoch. A follower whose
/// clock differs shifts the ends by as much.
pub(super) const CLOCK: HeaderName = HeaderName::from_static("x-greenlane-now");

/// Tells our clock.
pub(super) fn stamped(mut response: Response, now: Timestamp) -> Response {
    response.headers_mut().insert(CLOCK, now.as_millis().into());
    response
}

/// Sets a header field to text that we made; what no field can hold is left out.
pub(super) fn with_header(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
