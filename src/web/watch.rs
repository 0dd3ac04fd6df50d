//! `/watch`: the set as server-sent events, as it changes.
//!
//! ```text
//!   subscribe ─▶ compare serials ─▶ `delta` (or the whole set with `reset: true`) ─▶ `renewed`: every end of now
//!        └────▶ Changed ─▶ `delta`      Renewed ─▶ `renewed`      Lagged ─▶ `delta` with `reset: true`
//! ```
//! Event `delta` has the form of [`super::change`] and the id `session-serial`; a follower that comes back names it in
//! `Last-Event-ID`, which then counts more than the query. Event `renewed` tells later ends and has no id. A follower
//! that was away has missed renewals, so the ends of all hosts follow its first `delta`; after a lag the whole set comes
//! again for the same reason. Every 15 s without an event a comment keeps the connection alive.
//!
//! A follower that asks with `ack=1` is told a *mark* in an event `hold`, once after what it begins with and then after all
//! that each change has made ([`super::ack`]).
//!
//! Events are written when the follower reads: a slow one holds its place in the bounded queue of the set and one piece
//! of 64 KiB, and lags when the queue runs over.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio_util::sync::CancellationToken;

use super::ack::Acknowledging;
use super::change::{Change, Ends, Renewed};
use super::delta::since;
use super::query;
use super::reply::{again_in, not_ready, refused, stamped, with_type};
use super::state::{Full, Place, Web};
use crate::set::{Event, Session, Subscription};

/// A comment is sent after so long without an event, so that proxies keep the connection.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// What a follower held when its connection broke.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Answers `/watch`.
pub(super) async fn watch(web: Arc<Web>, client: IpAddr, uri: Uri, request: HeaderMap) -> Response {
    if !web.is_ready() {
        return not_ready();
    }
    let (held, acknowledges) = match query::watch(&uri) {
        Ok(read) => read,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    // An id that we did not give stands for another session: the whole set.
    let held = match request.get(LAST_EVENT_ID) {
        Some(id) => id.to_str().ok().and_then(query::event_id),
        None => held,
    };
    let place = match web.streams.take(client) {
        Ok(place) => place,
        Err(Full::Client) => {
            let line = "too many streams are open from this address";
            return again_in(refused(StatusCode::TOO_MANY_REQUESTS, line), 10);
        }
        Err(Full::All) => return again_in(refused(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open"), 10),
    };
    let now = web.now();
    let mut follower = Follower::new(web, held, place);
    if acknowledges {
        follower.join(client);
    }
    let mut response = with_type(StatusCode::OK, "text/event-stream", Body::from_stream(follower.pieces()));
    // nginx would gather events before it passes them on.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    stamped(response, now)
}

/// One open stream.
struct Follower {
    web: Arc<Web>,
    /// Begun before the first comparison, so that no change slips between.
    subscription: Subscription,
    shutdown: CancellationToken,
    /// What the follower holds once `sending` is out.
    held: Option<(Session, u64)>,
    first: First,
    marks: Option<Marks>,
    sending: Option<Sending>,
    _place: Place,
}

/// What a follower that acknowledges is asked.
struct Marks {
    follower: Acknowledging,
    /// So many events that are queued already come before the next mark; `None` if none is due.
    due_after: Option<usize>,
    /// The writer has ended.
    is_last: bool,
}

impl Marks {
    /// Waits for a reason to ask.
    async fn wait(marks: &mut Option<Self>) {
        match marks.as_mut().filter(|marks| !marks.is_last) {
            Some(marks) => marks.is_last = !marks.follower.next().await,
            None => std::future::pending().await,
        }
    }
}

/// What came while an event was waited for.
enum Came {
    Event(Event),
    Order,
    Nothing,
}

/// What is due before events are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Change,
    Ends,
    Done,
}

/// An event on its way out.
struct Sending {
    /// The lines before the data; empty once they are out.
    head: String,
    data: Data,
}

enum Data {
    Change(Change),
    Renewed(Renewed),
    /// A comment has none.
    None,
}

impl Sending {
    /// Returns the next piece, and whether it is the last.
    fn piece(&mut self) -> (Bytes, bool) {
        let mut out = std::mem::take(&mut self.head).into_bytes();
        let (piece, is_last) = match &mut self.data {
            Data::Change(change) => (change.next(), change.is_done()),
            Data::Renewed(renewed) => (renewed.next(), renewed.is_done()),
            Data::None => (None, true),
        };
        out.extend_from_slice(&piece.unwrap_or_default());
        if is_last {
            out.extend_from_slice(b"\n\n");
        }
        (out.into(), is_last)
    }
}

impl Follower {
    fn new(web: Arc<Web>, held: Option<(Session, u64)>, place: Place) -> Self {
        let subscription = web.state.reader.subscribe();
        let shutdown = web.shutdown.clone();
        Self { web, subscription, shutdown, held, first: First::Change, marks: None, sending: None, _place: place }
    }

    /// Has it asked what it holds, if there is room.
    fn join(&mut self, client: IpAddr) {
        match self.web.followers.join(client) {
            // The first mark comes with what it begins with.
            Some(follower) => self.marks = Some(Marks { follower, due_after: Some(0), is_last: false }),
            None => {
                self.web.metrics.followers_refused.inc();
                tracing::warn!("too many followers acknowledge: answers do not wait for the one at {client}");
            }
        }
    }

    /// Returns the body: it ends when the daemon stops, or a rendering fails.
    fn pieces(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        stream::unfold(self, async |mut follower| {
            let shutdown = follower.shutdown.clone();
            let piece = shutdown.run_until_cancelled(follower.piece()).await??;
            Some((Ok(piece), follower))
        })
    }

    /// Returns the next piece, waiting for an event if need be.
    async fn piece(&mut self) -> Option<Bytes> {
        let mut sending = match self.sending.take() {
            Some(sending) => sending,
            None => self.next().await?,
        };
        let (piece, is_last) = sending.piece();
        if !is_last {
            self.sending = Some(sending);
        }
        Some(piece)
    }

    /// Returns the next event to send; `None` if it cannot be made.
    async fn next(&mut self) -> Option<Sending> {
        match self.first {
            First::Change => {
                let change = since(&self.web, self.held).await.ok()?;
                // The whole set has its ends beside it.
                self.first = if change.is_whole() { First::Done } else { First::Ends };
                return Some(self.change(change));
            }
            First::Ends => {
                self.first = First::Done;
                if let Some(renewed) = self.all_ends().await {
                    return Some(renewed);
                }
            }
            First::Done => {}
        }
        loop {
            if let Some(hold) = self.mark() {
                return Some(hold);
            }
            let event = match self.wait().await {
                Came::Event(event) => event,
                Came::Order => continue,
                Came::Nothing => return Some(Sending { head: ": still here".to_owned(), data: Data::None }),
            };
            match event {
                Event::Changed { serial } => {
                    if self.held.is_some_and(|(_, held)| serial <= held) {
                        continue;
                    }
                    let change = since(&self.web, self.held).await.ok()?;
                    return Some(self.change(change));
                }
                Event::Renewed(ends) => return Some(renewed(self.session(), Ends::Of(ends))),
                Event::Lagged => {
                    // What is still queued is older than the set that is read now.
                    self.subscription = self.web.state.reader.subscribe();
                    self.events_taken(usize::MAX);
                    let change = since(&self.web, None).await.ok()?;
                    return Some(self.change(change));
                }
            }
        }
    }

    /// Waits for an event of the set or a question of the writer, at most until the next sign of life is due.
    async fn wait(&mut self) -> Came {
        let (subscription, marks) = (&mut self.subscription, &mut self.marks);
        let came = tokio::time::timeout(HEARTBEAT, async {
            tokio::select! {
                biased;
                event = subscription.next() => Came::Event(event),
                () = Marks::wait(marks) => Came::Order,
            }
        });
        let came = came.await.unwrap_or(Came::Nothing);
        match came {
            Came::Event(_) => self.events_taken(1),
            // What it is about was published before, so it is in the queue by now.
            Came::Order => {
                let waiting_count = self.subscription.waiting_count();
                if let Some(marks) = self.marks.as_mut().filter(|marks| !marks.is_last) {
                    marks.due_after = Some(waiting_count);
                }
            }
            Came::Nothing => {}
        }
        came
    }

    fn events_taken(&mut self, count: usize) {
        if let Some(due_after) = self.marks.as_mut().and_then(|marks| marks.due_after.as_mut()) {
            *due_after = due_after.saturating_sub(count);
        }
    }

    /// Returns the next mark if it is due: everything before it is out.
    fn mark(&mut self) -> Option<Sending> {
        let marks = self.marks.as_mut()?;
        marks.due_after.take_if(|due_after| *due_after == 0)?;
        Some(Sending { head: format!("event: hold\ndata: {}", marks.follower.mark()), data: Data::None })
    }

    fn change(&mut self, change: Change) -> Sending {
        let session = self.session();
        self.held = Some((session, change.serial()));
        let head = format!("event: delta\nid: {session}-{}\ndata: ", change.serial());
        Sending { head, data: Data::Change(change) }
    }

    /// Returns every end of now; `None` if there is no host.
    async fn all_ends(&self) -> Option<Sending> {
        let snapshot = self.web.state.reader.snapshot();
        let addresses = self.web.addresses(&snapshot).await.ok().filter(|addresses| !addresses.is_empty())?;
        Some(renewed(snapshot.session(), Ends::All(snapshot, addresses)))
    }

    fn session(&self) -> Session {
        self.web.state.reader.snapshot().session()
    }
}

fn renewed(session: Session, ends: Ends) -> Sending {
    Sending { head: "event: renewed\ndata: ".to_owned(), data: Data::Renewed(Renewed::new(session, ends)) }
}
