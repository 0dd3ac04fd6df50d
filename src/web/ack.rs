//! `/ack`: followers that say what they hold, so that answers can wait for them.
//!
//! ```text
//!   GET /watch?ack=1 ─▶ Follower joins ─▶ delta, renewed, … ─▶ `hold` {"follower":…,"mark":1}
//!   POST /ack?follower=…&mark=1 ─▶ up: from now on answers wait for it
//!   writer ─ order ─▶ delta, renewed, … as usual ─▶ `hold` {…,"mark":2} ─▶ POST /ack … ─▶ order is held
//! ```
//! A *mark* numbers the `hold` events of one stream. An acknowledgement says that the follower holds everything that
//! the stream told before that event, so it speaks for all marks up to its own. The id is a secret of the stream: who
//! does not read it cannot acknowledge in its place. It ends with the stream.
//!
//! Bounds: [`FOLLOWERS_MAX`] followers; one more is served an ordinary stream. Orders that wait for a mark are few, as
//! the writer asks again only once it was answered; beyond [`ORDERS_LEN_MAX`] the oldest fails.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use hyper::body::Body as _;
use parking_lot::Mutex;
use thiserror::Error;

use super::query;
use super::reply::{refused, text};
use super::state::Web;
use crate::set::Joins;
use crate::set::outlet::{Applied, Health, Intake, ORDERS_LEN_MAX, Order, State, outlet};

/// The most followers that acknowledge; every answer with new addresses waits for the slowest of them.
const FOLLOWERS_MAX: usize = 32;

/// A follower's id: 128 random bits, 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FollowerId(u128);

impl std::fmt::Display for FollowerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FollowerId {
    /// Reads an id in the form that it is told in; `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_form = text.len() == 32 && text.bytes().all(|octet| matches!(octet, b'0'..=b'9' | b'a'..=b'f'));
        is_form.then(|| u128::from_str_radix(text, 16).ok().map(Self))?
    }
}

/// Those who acknowledge, by id; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Followers {
    joins: Joins,
    table: Arc<Mutex<HashMap<FollowerId, Arc<Mutex<Marks>>>>>,
}

/// What one follower was asked and has said.
#[derive(Debug)]
struct Marks {
    health: Health,
    /// The last mark that was told.
    told: u64,
    /// Whether it has ever acknowledged.
    is_up: bool,
    /// Orders and the marks that answer them, in order.
    orders: VecDeque<(u64, Order)>,
}

/// Why an acknowledgement counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum AckError {
    #[error("no open stream has this follower; /watch?ack=1 gives a new one")]
    Unknown,
    #[error("mark: this follower was told marks up to {0}")]
    Ahead(u64),
}

impl Followers {
    pub(super) fn new(joins: Joins) -> Self {
        Self { joins, table: Arc::default() }
    }

    /// Lets a follower join that has just begun to listen; `None` if there are too many.
    pub(super) fn join(&self, client: IpAddr) -> Option<Acknowledging> {
        let (outlet, intake) = outlet("followers");
        let health = intake.health();
        // Until it has acknowledged what it begins with.
        health.set(State::Down);
        let marks = Marks { health, told: 0, is_up: false, orders: VecDeque::new() };
        let marks = Arc::new(Mutex::new(marks));
        let id = FollowerId(rand::random());
        {
            let mut table = self.table.lock();
            if table.len() >= FOLLOWERS_MAX {
                return None;
            }
            table.insert(id, Arc::clone(&marks));
        }
        self.joins.join(outlet, format!("the follower at {client}"));
        Some(Acknowledging { followers: self.clone(), id, marks, intake })
    }

    /// Takes the word of a follower that it holds everything up to `mark`.
    pub(super) fn ack(&self, id: FollowerId, mark: u64) -> Result<(), AckError> {
        let marks = self.table.lock().get(&id).cloned().ok_or(AckError::Unknown)?;
        let mut marks = marks.lock();
        if mark > marks.told {
            return Err(AckError::Ahead(marks.told));
        }
        while marks.orders.front().is_some_and(|(of, _)| *of <= mark) {
            let Some((_, order)) = marks.orders.pop_front() else { break };
            order.done(Applied::Held);
        }
        if !std::mem::replace(&mut marks.is_up, true) {
            marks.health.set(State::Up);
        }
        Ok(())
    }
}

/// The stream's side of a follower that acknowledges; it leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Acknowledging {
    followers: Followers,
    id: FollowerId,
    marks: Arc<Mutex<Marks>>,
    intake: Intake,
}

impl Acknowledging {
    /// Waits for the next order and takes it; `false` once none will come. Safe to cancel.
    pub(super) async fn next(&mut self) -> bool {
        let Some(order) = self.intake.next().await else { return false };
        // The mark that is told next comes after everything that the order is about.
        let mut marks = self.marks.lock();
        let mark = marks.told + 1;
        marks.orders.push_back((mark, order));
        if marks.orders.len() > ORDERS_LEN_MAX {
            marks.orders.pop_front();
        }
        true
    }

    /// Makes the next mark and returns the event's data: what it takes to acknowledge everything told before.
    pub(super) fn mark(&mut self) -> String {
        let mut marks = self.marks.lock();
        marks.told += 1;
        format!("{{\"follower\":\"{}\",\"mark\":{}}}", self.id, marks.told)
    }
}

impl Drop for Acknowledging {
    fn drop(&mut self) {
        self.followers.table.lock().remove(&self.id);
        // Whoever waits for it waits no longer, also if an acknowledgement holds the rest of it right now.
        self.marks.lock().orders.clear();
    }
}

/// Answers `POST /ack`.
pub(super) fn ack(web: &Web, uri: &Uri, body: &Body) -> Response {
    if !body.is_end_stream() {
        return refused(StatusCode::BAD_REQUEST, "expected no body: follower and mark stand in the query");
    }
    let (follower, mark) = match query::ack(uri) {
        Ok(read) => read,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match web.followers.ack(follower, mark) {
        Ok(()) => text(StatusCode::NO_CONTENT, String::new()),
        Err(error @ AckError::Unknown) => refused(StatusCode::NOT_FOUND, &error.to_string()),
        Err(error @ AckError::Ahead(_)) => refused(StatusCode::CONFLICT, &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::Timestamp;
    use crate::set::Session;
    use crate::set::outlet::{Change, Outlet};

    fn followers() -> (Followers, Joins) {
        let joins = Joins::default();
        (Followers::new(joins.clone()), joins)
    }

    fn join(followers: &Followers, joins: &Joins) -> (Acknowledging, Outlet) {
        let follower = followers.join(IpAddr::from([192, 0, 2, 7])).unwrap();
        let joined = joins.take().pop().unwrap();
        assert_eq!(joined.who, "the follower at 192.0.2.7");
        (follower, joined.outlet)
    }

    fn change() -> Arc<Change> {
        Arc::new(Change::empty(Session(7), 1, Timestamp::default()))
    }

    #[tokio::test]
    async fn acknowledgement_speaks_for_all_marks_before_it() {
        let (followers, joins) = followers();
        let (mut follower, outlet) = join(&followers, &joins);
        assert_eq!(outlet.state(), State::Down);
        assert_eq!(follower.mark(), format!("{{\"follower\":\"{}\",\"mark\":1}}", follower.id));
        followers.ack(follower.id, 1).unwrap();
        assert_eq!(outlet.state(), State::Up);
        let (mut first, mut second) = (outlet.send(&change()).unwrap(), outlet.send(&change()).unwrap());
        assert!(follower.next().await && follower.next().await);
        assert_eq!(followers.ack(follower.id, 2), Err(AckError::Ahead(1)), "it was not told yet");
        follower.mark();
        let mut third = outlet.send(&change()).unwrap();
        assert!(follower.next().await);
        followers.ack(follower.id, 1).unwrap();
        followers.ack(follower.id, 2).unwrap();
        assert_eq!((first.wait().await, second.wait().await), (Applied::Held, Applied::Held));
        follower.mark();
        followers.ack(follower.id, 2).unwrap();
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), third.wait()).await.is_err());
        followers.ack(follower.id, 3).unwrap();
        assert_eq!(third.wait().await, Applied::Held);
    }

    #[tokio::test]
    async fn follower_that_leaves_fails_its_orders_and_is_unknown() {
        let (followers, joins) = followers();
        let (mut follower, outlet) = join(&followers, &joins);
        let (mut taken, mut lying) = (outlet.send(&change()).unwrap(), outlet.send(&change()).unwrap());
        assert!(follower.next().await);
        let id = follower.id;
        drop(follower);
        assert_eq!((taken.wait().await, lying.wait().await), (Applied::Failed, Applied::Failed));
        assert!(outlet.is_gone());
        assert_eq!(followers.ack(id, 0), Err(AckError::Unknown));
    }

    #[tokio::test]
    async fn followers_and_their_orders_are_bounded() {
        let (followers, joins) = followers();
        let (mut follower, outlet) = join(&followers, &joins);
        let mut replies = Vec::new();
        for _ in 0..=ORDERS_LEN_MAX {
            replies.push(outlet.send(&change()).unwrap());
            assert!(follower.next().await);
        }
        assert_eq!(replies[0].wait().await, Applied::Failed);
        assert_eq!(follower.marks.lock().orders.len(), ORDERS_LEN_MAX);
        let others: Vec<_> = (1..FOLLOWERS_MAX).map(|_| followers.join(IpAddr::from([192, 0, 2, 7]))).collect();
        assert!(others.iter().all(Option::is_some));
        assert!(followers.join(IpAddr::from([192, 0, 2, 7])).is_none());
        drop(others);
        assert!(followers.join(IpAddr::from([192, 0, 2, 7])).is_some());
    }

    #[test]
    fn ids_are_read_as_they_are_told() {
        let id = FollowerId(0xab);
        assert_eq!(FollowerId::parse(&id.to_string()), Some(id));
        for text in ["", "ab", "+00000000000000000000000000000ab", "000000000000000000000000000000AB"] {
            assert_eq!(FollowerId::parse(text), None, "{text}");
        }
    }
}
