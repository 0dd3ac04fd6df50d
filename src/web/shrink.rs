//! `/shrink/accept`: the operator's word that the set may shrink as the lists say.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use hyper::body::Body as _;
use serde_json::{Value, json};

use super::query;
use super::reply::{json as reply, refused};
use super::state::Web;
use crate::set::Item;

/// Answers `POST /shrink/accept`: how many entries were kept, and which prefixes left with them. Nothing kept is no
/// fault.
pub(super) async fn accept(web: Arc<Web>, uri: Uri, body: Body) -> Response {
    if !body.is_end_stream() {
        return refused(StatusCode::BAD_REQUEST, "expected no body");
    }
    if let Err(error) = query::none(&uri) {
        return refused(StatusCode::BAD_REQUEST, &error.to_string());
    }
    let released = (web.state.hooks.accept_shrink)().await;
    let withdrawn: Vec<Value> = released.withdrawn.iter().map(item).collect();
    reply(&json!({ "released": released.entries, "serial": released.serial, "withdrawn": withdrawn }))
}

fn item(item: &Item) -> Value {
    let apps: Vec<&str> = item.apps().iter().map(|app| app.as_str()).collect();
    json!({ "prefix": item.prefix().to_string(), "origin": item.origin().as_str(), "apps": apps })
}
