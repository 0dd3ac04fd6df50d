//! `/sightings`: each address with each name that it was answered for, and its times, as lines of JSON.
//!
//! The form is that of [`crate::export::dump`]: what a store keeps, so that `greenlane store dump` can ask a daemon whose
//! file nobody else may open. Written in pieces: however large the set, a reader costs a piece of memory.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;

use super::query;
use super::reply::{failed, not_ready, refused, stamped, with_type};
use super::state::Web;
use crate::export::dump::{self, Head};
use crate::set::Snapshot;

/// A piece is sent once it is this long.
const PIECE_LEN: usize = 64 * 1024;

/// Answers `/sightings`.
pub(super) async fn sightings(web: Arc<Web>, uri: Uri) -> Response {
    if !web.is_ready() {
        return not_ready();
    }
    if let Err(error) = query::none(&uri) {
        return refused(StatusCode::BAD_REQUEST, &error.to_string());
    }
    let snapshot = web.state.reader.snapshot();
    let addresses = match web.addresses(&snapshot).await {
        Ok(addresses) => addresses,
        Err(error) => return failed(&error),
    };
    let own = snapshot.clone();
    let count = web.walk(&snapshot, move || own.hosts().map(|host| host.sightings().len() as u64).sum()).await;
    let count = match count {
        Ok(count) => count,
        Err(error) => return failed(&error),
    };
    let now = web.now();
    let mut head = Vec::new();
    Head::new(snapshot.session(), snapshot.serial(), now, count).write(&mut head);
    let pieces = Pieces { snapshot, addresses, next: 0, head };
    let body = Body::from_stream(stream::iter(pieces.map(Ok::<_, Infallible>)));
    stamped(with_type(StatusCode::OK, "application/jsonl", body), now)
}

/// The lines that are left, in pieces.
struct Pieces {
    snapshot: Snapshot,
    addresses: Arc<[IpAddr]>,
    next: usize,
    head: Vec<u8>,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut piece = std::mem::take(&mut self.head);
        while piece.len() < PIECE_LEN {
            let Some(addr) = self.addresses.get(self.next) else { break };
            self.next += 1;
            for sighting in self.snapshot.host(*addr).map(|host| host.sightings()).unwrap_or_default() {
                dump::write_kept(&dump::kept(sighting), &mut piece);
            }
        }
        (!piece.is_empty()).then(|| piece.into())
    }
}
