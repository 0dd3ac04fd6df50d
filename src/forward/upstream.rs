//! One upstream at work: its transports, its health, and what its replies are worth.
//!
//! [`Peer::attempt`] is one *try*: the question over the upstream's protocol, over TCP when the UDP reply was cut,
//! once more without EDNS when EDNS was refused, once more on a new connection when the one it went over was closed.
//! It ends in an [`Outcome`], or waits for as long as it is polled; giving up is its caller's business. What it
//! learns about the upstream it notes itself, so a try that somebody merely lets run on still counts.
//!
//! A connection is made once for all who need it, kept, and replaced when it is closed or when a try got no sign of
//! life from it. The failure replies that are *final* are those which another upstream could only repeat.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connection::Connection;
use super::health::Health;
use super::hopes::{Broken, Hope, Leaves, Place};
use super::letters::Repeats;
use super::link::{Dial, Link, Lost};
use super::measure::{Kind, Tally};
use super::message::{Manner, is_bare_refusal, is_truncated};
use super::udp::{Datagrams, Started};
use super::{Protocol, Upstream, UpstreamStatus};
use crate::clock::Clock;
use crate::wire::{Question, Rules, Walked, rcode, walk};

/// How a try ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// An answer for the client; NXDOMAIN and final failures among them.
    Final(Box<Walked>),
    /// A failure reply that another upstream may not share.
    Refused(Box<Walked>),
    /// No reply, or none that can be used.
    Unusable(Trouble),
}

/// Why a try brought nothing that can be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The socket, the connection or the handshake failed; asking again now is of no use.
    Network,
    /// The reply cannot be walked; the next may be sound.
    Malformed,
}

/// What an upstream is made of beside its URL.
#[derive(Clone)]
pub(super) struct Setting {
    /// Its name in the metrics.
    pub(super) place: String,
    /// How it is connected to; with [`Protocol::Udp`] for what was cut.
    pub(super) dial: Dial,
    /// How its answers are walked, its AD bit included.
    pub(super) rules: Rules,
    /// Whether letters are drawn for its questions; with [`Protocol::Udp`] only.
    pub(super) case_randomization: bool,
    /// Its metrics.
    pub(super) tally: Tally,
    /// The bound on its open UDP sockets, and who reads them; with [`Protocol::Udp`] only.
    pub(super) sockets_max: usize,
    pub(super) reader: Option<Arc<Started>>,
    /// Where stamps come from.
    pub(super) clock: Clock,
}

/// One upstream at work.
pub(super) struct Peer {
    upstream: Upstream,
    setting: Setting,
    health: Mutex<Health>,
    /// Tries begun and replies that were of use.
    asked: AtomicU64,
    answered: AtomicU64,
    /// With [`Protocol::Udp`] only.
    datagrams: Option<Datagrams>,
    connection: Mutex<Option<Connecting>>,
}

/// A connection, or the wait for one, shared by all who need it.
type Connecting = Shared<BoxFuture<'static, Result<Link, Broken>>>;

impl Peer {
    /// Makes an upstream that was never asked.
    pub(super) fn new(upstream: Upstream, setting: Setting) -> Self {
        let ports = |reader| {
            let repeats = Repeats::new(setting.case_randomization, setting.clock.clone());
            Datagrams::new(upstream.addr, setting.sockets_max, repeats, setting.tally.clone(), reader)
        };
        Self {
            datagrams: setting.reader.clone().map(ports),
            upstream,
            setting,
            health: Mutex::default(),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            connection: Mutex::new(None),
        }
    }

    /// Returns what is known of its health, locked.
    pub(super) fn health(&self) -> parking_lot::MutexGuard<'_, Health> {
        self.health.lock()
    }

    /// Returns whether it was ever asked.
    pub(super) fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) > 0
    }

    /// Returns how many tries one question is worth: a packet may be lost, a connection makes up for that itself.
    pub(super) fn tries_max(&self) -> u32 {
        if self.upstream.protocol == Protocol::Udp { 4 } else { 2 }
    }

    /// Returns how long its next try waits before another is started beside it.
    pub(super) fn patience(&self) -> Duration {
        /// A connection costs two or three round trips before the question is even sent.
        const CONNECTING: Duration = Duration::from_millis(900);
        let patience = self.health().patience();
        if self.upstream.protocol == Protocol::Udp || self.is_connected() { patience } else { patience.max(CONNECTING) }
    }

    /// Returns how long a question put to it waits before it is hedged, if it is to be.
    pub(super) fn hedge_after(&self) -> Option<Duration> {
        let hedge_after = self.health().hedge_after();
        hedge_after.filter(|_| self.upstream.protocol == Protocol::Udp || self.is_connected())
    }

    /// Returns what a status page tells.
    pub(super) fn status(&self) -> UpstreamStatus {
        let health = self.health();
        UpstreamStatus {
            place: self.setting.place.clone(),
            url: self.upstream.to_string(),
            is_up: !health.is_down(),
            latency: health.latency(),
            asked: self.asked.load(Ordering::Relaxed),
            answered: self.answered.load(Ordering::Relaxed),
            failed: self.setting.tally.failed(),
            last_error: health.last_error().map(str::to_owned),
        }
    }

    /// Asks once; `patience` is when the silence is noted, not when the try ends.
    pub(super) async fn attempt(self: Arc<Self>, question: Arc<Question>, patience: Duration) -> Outcome {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let heard = self.health().heard();
        self.follow(&question, None, heard, patience).await
    }

    /// Goes on with a try that was begun elsewhere; `patience` is what is left of it.
    pub(super) async fn resume(self: Arc<Self>, question: Arc<Question>, begun: Begun, patience: Duration) -> Outcome {
        let heard = begun.heard;
        self.follow(&question, Some(begun), heard, patience).await
    }

    /// Returns how it can be asked without a wait: over UDP, or over a connection that stands.
    pub(super) fn way(&self) -> Option<Way<'_>> {
        match &self.datagrams {
            Some(datagrams) => Some(Way::Datagrams(datagrams)),
            // Over HTTP and QUIC a question has a task anyhow.
            None => match self.connected()? {
                Link::Stream(connection) => Some(Way::Connection(connection)),
                Link::Https(_) | Link::Quic(_) => None,
            },
        }
    }

    /// Notes that a try begins without a task; returns how it is put, and what [`Health::heard`] says.
    ///
    /// The try is ended by [`Peer::answer_of`], or by [`Peer::resume`] with what was returned here.
    pub(super) fn begin(&self) -> (Manner, u64) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let health = self.health();
        let edns = health.never_refused_edns() || health.knows_edns(self.setting.clock.now());
        (self.manner(edns), health.heard())
    }

    /// Returns the answer in a reply if nothing is left to do: whole, sound and final. Notes it only then.
    pub(super) fn answer_of(&self, reply: &[u8], question: &Question, latency: Duration) -> Option<Walked> {
        if is_truncated(reply) {
            return None;
        }
        let walked = walk(reply, question, &self.setting.rules).ok().filter(is_final)?;
        self.setting.tally.seconds.observe(latency.as_secs_f64());
        let was_down = {
            let mut health = self.health();
            health.served(true);
            health.answered(latency)
        };
        if was_down {
            self.tell_recovery();
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
        Some(walked)
    }

    async fn follow(&self, question: &Arc<Question>, begun: Option<Begun>, heard: u64, patience: Duration) -> Outcome {
        let mut asking = std::pin::pin!(self.ask_with_or_without_edns(question, begun));
        if patience.is_zero() {
            self.note_silence(heard);
            return self.judge(asking.await);
        }
        let result = match tokio::time::timeout(patience, &mut asking).await {
            Ok(result) => result,
            Err(_) => {
                self.note_silence(heard);
                asking.await
            }
        };
        self.judge(result)
    }

    /// Asks with EDNS unless it is known to refuse it, and once without if it refuses now (RFC 6891 §7).
    async fn ask_with_or_without_edns(&self, question: &Arc<Question>, begun: Option<Begun>) -> Result<Walked, Reason> {
        let edns =
            begun.as_ref().map_or_else(|| self.health().knows_edns(self.setting.clock.now()), |begun| begun.edns);
        let first = self.ask_and_walk(question, edns, begun).await;
        if !edns || !is_edns_refusal(&first) {
            return first;
        }
        let second = self.ask_and_walk(question, false, None).await;
        if second.is_ok() && !is_edns_refusal(&second) {
            self.health().refused_edns(self.setting.clock.now());
            return second;
        }
        // It was not EDNS then. The first reply says more, unless it was a bare header.
        if first.is_ok() { first } else { second }
    }

    /// Gets a reply, walks it, and measures it.
    async fn ask_and_walk(&self, question: &Arc<Question>, edns: bool, begun: Option<Begun>) -> Result<Walked, Reason> {
        let (reply, latency) = self.ask(question, self.manner(edns), begun).await?;
        self.note_reply(latency);
        if is_bare_refusal(&reply) {
            return Err(Reason::BareRefusal);
        }
        let walked = walk(&reply, question, &self.setting.rules).map_err(|_| Reason::Malformed)?;
        if walked.truncated { Err(Reason::Malformed) } else { Ok(walked) }
    }

    fn manner(&self, edns: bool) -> Manner {
        Manner { edns, authentic_data: self.setting.rules.trust_ad, padded: self.upstream.protocol.is_encrypted() }
    }

    /// Gets a whole reply over the upstream's protocol, and the time it took without connecting.
    async fn ask(
        &self,
        question: &Arc<Question>,
        manner: Manner,
        begun: Option<Begun>,
    ) -> Result<(Vec<u8>, Duration), Reason> {
        let Some(datagrams) = &self.datagrams else {
            return self.ask_connected(question, manner, begun).await;
        };
        let (reply, latency) = match begun {
            Some(begun) => begun.reply().await?,
            None => {
                let begun = Instant::now();
                (datagrams.ask(question, manner).await?, begun.elapsed())
            }
        };
        if !is_truncated(&reply) {
            return Ok((reply, latency));
        }
        self.note_reply(latency);
        // The upstream is well, only its TCP is not; what is cut is never used, for nobody could tell it from whole.
        self.ask_connected(question, manner, None).await.map_err(|_| Reason::Truncated)
    }

    /// Asks over the connection; once more over a new one if it closes first.
    async fn ask_connected(
        &self,
        question: &Arc<Question>,
        manner: Manner,
        mut begun: Option<Begun>,
    ) -> Result<(Vec<u8>, Duration), Reason> {
        let mut last = None;
        for _ in 0..2 {
            let result = match begun.take() {
                Some(begun) => begun.reply().await,
                None => self.ask_once_connected(question, manner).await?,
            };
            match result {
                Ok(reply) => return Ok(reply),
                Err(broken) => last = Some(broken),
            }
        }
        Err(last.map_or(Reason::Malformed, Reason::Broken))
    }

    /// Asks over the connection that stands or is made for it; losing it is another error than all others, since
    /// another one may do better.
    async fn ask_once_connected(
        &self,
        question: &Arc<Question>,
        manner: Manner,
    ) -> Result<Result<(Vec<u8>, Duration), Broken>, Reason> {
        let connection = self.connect().await?;
        let begun = Instant::now();
        match connection.ask(question, manner).await {
            Ok(reply) => Ok(Ok((reply, begun.elapsed()))),
            Err(Lost::Question(broken)) => Err(Reason::Refused(broken)),
            Err(Lost::Connection(broken)) => {
                connection.retire();
                Ok(Err(broken))
            }
        }
    }

    /// Returns the kept connection, the one being made, or a new one.
    fn connect(&self) -> Connecting {
        let mut connection = self.connection.lock();
        if let Some(kept) = &*connection {
            // Still connecting, or connected and usable.
            if kept.peek().is_none_or(|made| made.as_ref().is_ok_and(|connection| !connection.is_over())) {
                return kept.clone();
            }
        }
        connection.insert(self.start_connecting()).clone()
    }

    /// Connects in a task of its own: whoever asked first may be gone before it is done.
    fn start_connecting(&self) -> Connecting {
        let mismatches = self.setting.tally.failures(Kind::Mismatch).clone();
        let task = tokio::spawn(self.setting.dial.clone().connect(self.upstream.addr, mismatches));
        async move { task.await.unwrap_or_else(|_| Err(Broken("the runtime is ending".to_owned()))) }.boxed().shared()
    }

    /// Returns the connection if it stands.
    fn connected(&self) -> Option<Link> {
        let kept = self.connection.lock();
        let connection = kept.as_ref()?.peek()?.as_ref().ok()?;
        (!connection.is_over()).then(|| connection.clone())
    }

    fn is_connected(&self) -> bool {
        self.connected().is_some()
    }

    /// Notes that a reply came.
    fn note_reply(&self, latency: Duration) {
        self.setting.tally.seconds.observe(latency.as_secs_f64());
        if self.health().answered(latency) {
            self.tell_recovery();
        }
    }

    fn tell_recovery(&self) {
        tracing::info!(upstream = %self.upstream, "upstream answers again");
    }

    /// Notes that a try got nothing within its patience.
    fn note_silence(&self, heard: u64) {
        self.setting.tally.failures(Kind::Timeout).inc();
        let (silent, fell) = {
            let mut health = self.health();
            let silent = health.heard() == heard;
            (silent, health.missed(heard, self.setting.clock.now()))
        };
        if fell {
            tracing::warn!(upstream = %self.upstream, "upstream does not answer");
        }
        // The path of a connection may have died unseen; what waits on it goes on waiting.
        if silent && let Some(connection) = self.connected() {
            connection.retire();
        }
    }

    /// Counts how a try ended and says what it is worth.
    fn judge(&self, result: Result<Walked, Reason>) -> Outcome {
        let kind = match result {
            Ok(walked) if is_final(&walked) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                self.health().served(true);
                return Outcome::Final(Box::new(walked));
            }
            Ok(walked) => {
                self.health().served(false);
                self.setting.tally.failures(kind_of(walked.answer.rcode())).inc();
                return Outcome::Refused(Box::new(walked));
            }
            Err(Reason::Broken(Broken(error))) => {
                self.note_broken(error);
                Kind::Network
            }
            Err(Reason::Refused(Broken(error))) => {
                self.health().refused(error);
                Kind::Malformed
            }
            Err(Reason::BareRefusal) => Kind::Rcode,
            Err(Reason::Truncated) => Kind::Truncated,
            Err(Reason::Malformed) => Kind::Malformed,
        };
        self.setting.tally.failures(kind).inc();
        let is_network = matches!(kind, Kind::Network | Kind::Truncated);
        Outcome::Unusable(if is_network { Trouble::Network } else { Trouble::Malformed })
    }

    fn note_broken(&self, error: String) {
        if self.health().broke(error.clone(), self.setting.clock.now()) {
            tracing::warn!(upstream = %self.upstream, %error, "upstream cannot be reached");
        }
    }
}

/// How an upstream can be asked without a wait.
pub(super) enum Way<'a> {
    /// Over UDP.
    Datagrams(&'a Datagrams),
    /// Over a connection that stands.
    Connection(Connection),
}

impl Way<'_> {
    /// Sends a question; see [`Datagrams::send`] and [`Connection::send`].
    pub(super) fn send(
        &self,
        question: &Arc<Question>,
        manner: Manner,
        (now, due): (Instant, Instant),
        hope: Box<dyn Hope>,
    ) -> Option<Place> {
        match self {
            Self::Datagrams(datagrams) => datagrams.send(question, manner, (now, Some(due)), hope),
            Self::Connection(connection) => connection.send(question, manner, Some(due), hope),
        }
    }
}

/// A try that was begun without a task of its own.
pub(super) struct Begun {
    /// Whether it was asked with EDNS.
    pub(super) edns: bool,
    /// What [`Health::heard`] said when it began.
    pub(super) heard: u64,
    /// When it began.
    pub(super) at: Instant,
    /// What has come of it.
    pub(super) so_far: SoFar,
}

/// What has come of a try.
pub(super) enum SoFar {
    /// A reply, and when; or the news that there is none.
    Ended(Result<(Vec<u8>, Duration), Broken>),
    /// Nothing yet.
    Waiting(oneshot::Receiver<Result<Vec<u8>, Broken>>, Leaves),
}

impl Begun {
    /// Waits for the reply, if it has not come.
    async fn reply(self) -> Result<(Vec<u8>, Duration), Broken> {
        match self.so_far {
            SoFar::Ended(result) => result,
            SoFar::Waiting(reply, _leaves) => match reply.await {
                Ok(reply) => Ok((reply?, self.at.elapsed())),
                Err(_) => Err(Broken("the socket was closed".to_owned())),
            },
        }
    }
}

/// Why asking gave nothing walked.
#[derive(Debug)]
enum Reason {
    /// The transport failed.
    Broken(Broken),
    /// An upstream that stands answered with something else than a DNS reply to the question.
    Refused(Broken),
    /// FORMERR or NOTIMP in a bare header.
    BareRefusal,
    /// The UDP reply was cut, and TCP failed.
    Truncated,
    /// A reply that cannot be walked, or that is cut although it had room.
    Malformed,
}

impl From<Broken> for Reason {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// Returns whether a reply may mean "I do not know EDNS" (RFC 6891 §7, §6.1.3).
fn is_edns_refusal(result: &Result<Walked, Reason>) -> bool {
    match result {
        Ok(walked) => matches!(walked.answer.rcode(), rcode::FORMERR | rcode::NOTIMP | rcode::BADVERS),
        Err(reason) => matches!(reason, Reason::BareRefusal),
    }
}

/// Returns whether another upstream could only repeat this answer.
///
/// YXDOMAIN is what a DNAME that makes the name too long gives (RFC 6672 §2.2). A SERVFAIL is final when its EDE
/// says that DNSSEC validation decided: an upstream that does not validate must not be found to undo it.
fn is_final(walked: &Walked) -> bool {
    match walked.answer.rcode() {
        rcode::NOERROR | rcode::NXDOMAIN | rcode::YXDOMAIN => true,
        _ => walked.answer.is_refused_by_dnssec(),
    }
}

fn kind_of(code: u16) -> Kind {
    match code {
        rcode::SERVFAIL => Kind::Servfail,
        rcode::REFUSED => Kind::Refused,
        _ => Kind::Rcode,
    }
}
