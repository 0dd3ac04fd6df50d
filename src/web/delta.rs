//! `/delta`: what changed since a serial.
//!
//! | the consumer holds | answer |
//! |---|---|
//! | nothing (no parameters) | the whole set, `reset: true` |
//! | the current serial | empty lists |
//! | an older one that the history reaches | the steps since, merged |
//! | one too old, from the future, or of another session | the whole set, `reset: true` |
//!
//! The form is that of [`super::change`]. Ends change without a serial, so there is no entity tag and no 304. They are
//! instants of our clock, which `X-Greenlane-Now` tells.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use futures_util::stream;

use super::change::{Change, Items};
use super::query;
use super::rendered::RenderError;
use super::reply::{failed, not_ready, refused, stamped, with_type};
use super::state::Web;
use crate::set::{Session, Since};

/// Answers `/delta`.
pub(super) async fn delta(web: Arc<Web>, uri: Uri) -> Response {
    if !web.is_ready() {
        return not_ready();
    }
    let held = match query::held(&uri) {
        Ok(held) => held,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let now = web.now();
    match since(&web, held).await {
        Ok(change) => stamped(with_type(StatusCode::OK, "application/json", body(change)), now),
        Err(error) => failed(&error),
    }
}

/// Returns what brings a follower that holds `held` to the present.
pub(super) async fn since(web: &Web, held: Option<(Session, u64)>) -> Result<Change, RenderError> {
    let reader = &web.state.reader;
    let answer = held.map_or(Since::Reset, |(session, serial)| reader.since(session, serial));
    // Taken after, so it is not older than the delta.
    let snapshot = reader.snapshot();
    let now = web.now();
    Ok(match (answer, held) {
        (Since::Delta(delta), _) => Change::new(delta.to, Items::Since(delta), snapshot, now),
        (Since::Current, Some((_, serial))) => Change::new(serial, Items::None, snapshot, now),
        (Since::Current | Since::Reset, _) => {
            let addresses = web.addresses(&snapshot).await?;
            Change::new(snapshot.serial(), Items::All(addresses), snapshot, now)
        }
    })
}

/// Makes a body: short changes of known length, long ones as they are written.
fn body(mut change: Change) -> Body {
    let first = change.next().unwrap_or_default();
    match change.next() {
        None => Body::from(first),
        Some(second) => {
            Body::from_stream(stream::iter([first, second].into_iter().chain(change).map(Ok::<_, Infallible>)))
        }
    }
}
