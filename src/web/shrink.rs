//! `/shrink/accept`: the operator's word that the set may shrink as the lists say.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use hyper::body::Body as _;
use serde_json::{Value, json};

use super::query;
use super::reply::{json as reply, not_ready, refused};
use super::state::Web;
use crate::set::Item;

/// Answers `POST /shrink/accept`: how many entries were kept, and which prefixes left with them. Nothing kept is no
/// fault. They are `null` if they are too many to be told.
pub(super) async fn accept(web: Arc<Web>, uri: Uri, body: Body) -> Response {
    if !web.is_ready() {
        return not_ready();
    }
    if !body.is_end_stream() {
        return refused(StatusCode::BAD_REQUEST, "expected no body");
    }
    if let Err(error) = query::none(&uri) {
        return refused(StatusCode::BAD_REQUEST, &error.to_string());
    }
    let released = (web.state.hooks.accept_shrink)().await;
    let withdrawn = released.withdrawn.map(|items| items.iter().map(item).collect::<Vec<Value>>());
    reply(&json!({ "released": released.entries, "serial": released.serial, "withdrawn": withdrawn }))
}

fn item(item: &Item) -> Value {
    let apps: Vec<&str> = item.apps().iter().map(|app| app.as_str()).collect();
    json!({ "prefix": item.prefix().to_string(), "origin": item.origin().as_str(), "apps": apps })
}
