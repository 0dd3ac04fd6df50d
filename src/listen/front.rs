//! What every transport does with a packet, before anything waits.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::access::Rules;
use super::cookie::Shown;
use super::meter::{Dropped, Way};
use super::proxy::{self, Header};
use super::rate::{Limiter, Verdict};
use super::{Access, Meter};
use crate::clock::{Clock, Stopwatch, Timestamp};
use crate::pipeline::{Near, Pipeline, Tried};
use crate::wire::{self, Ede, Refusal, ReplyCookie, Seen, Transport, View};

/// The pipeline behind the door: who may ask, and what is counted.
#[derive(Clone, Debug)]
pub struct Front {
    /// Answers.
    pub pipeline: Pipeline,
    /// Who may ask.
    pub access: Arc<Access>,
    /// Time.
    pub clock: Clock,
    /// Counters.
    pub meter: Meter,
}

impl Front {
    /// Takes one look at clock and access rules, for the packets of one read.
    pub fn moment(&self) -> Moment<'_> {
        let (rules, now) = (self.access.look(), self.clock.now());
        Moment { front: self, near: None, rules, now, began: Stopwatch::start(), answered: [0; Transport::ALL.len()] }
    }

    /// The same for a thread with a table of its own.
    pub fn moment_near<'a>(&'a self, near: &'a mut Near) -> Moment<'a> {
        Moment { near: Some(near), ..self.moment() }
    }

    /// Does as [`Front::slow`] without a task where none is needed: `tell` gets the reply, maybe on another thread. It
    /// must not block.
    pub fn slow_then(
        &self,
        packet: &[u8],
        transport: Transport,
        client: IpAddr,
        runtime: &Handle,
        tell: impl FnOnce(&[u8]) + Send + 'static,
    ) {
        let cookie = self.reply_cookie(packet, transport, client);
        self.pipeline.resolve_then((packet, cookie), transport, client, runtime, tell);
    }

    /// Answers a packet that the quick way missed, however long it takes.
    pub async fn slow(&self, packet: &[u8], transport: Transport, client: IpAddr, out: &mut Vec<u8>) {
        // The same octets gave a question before.
        let cookie = self.reply_cookie(packet, transport, client);
        if let Seen::Question(view) = wire::see(packet, transport) {
            let view = view.with_reply_cookie(cookie);
            self.pipeline.resolve(&view, transport, client, out).await;
            pad(transport, out);
        }
    }

    /// Returns the cookie that the reply to a packet carries.
    fn reply_cookie(&self, packet: &[u8], transport: Transport, client: IpAddr) -> Option<ReplyCookie> {
        let rules = self.access.look();
        let secrets = rules.secrets()?;
        let Seen::Question(view) = wire::see(packet, transport) else { return None };
        match secrets.look(&view, client, self.clock.now())? {
            Shown::Known(cookie) | Shown::Unknown(cookie) => Some(cookie),
            Shown::Malformed => None,
        }
    }
}

/// The front as it is while the packets of one read are answered: looked at once, since they came together.
#[derive(Debug)]
pub struct Moment<'a> {
    front: &'a Front,
    near: Option<&'a mut Near>,
    rules: Rules,
    now: Timestamp,
    /// When the packets had been read.
    began: Stopwatch,
    /// How many were answered, by transport.
    answered: [u64; Transport::ALL.len()],
}

impl Moment<'_> {
    /// Returns the watch that runs since the packets were read.
    pub fn began(&self) -> Stopwatch {
        self.began
    }

    /// Notes how long the replies given took; call it when they are sent.
    pub fn end(self) {
        let took = self.began.elapsed();
        for (transport, count) in Transport::ALL.into_iter().zip(self.answered).filter(|one| one.1 > 0) {
            self.front.meter.answered(transport, Way::Hit, took, count);
        }
    }

    /// Returns what a datagram asks and who asks it: a load balancer tells both. `None` if it does not.
    pub(super) fn sender<'p>(&self, datagram: &'p [u8], peer: IpAddr) -> Option<(&'p [u8], IpAddr)> {
        if !self.rules.is_balancer(peer) {
            return Some((datagram, peer));
        }
        match proxy::read(datagram) {
            Header::Whole { client, len } => Some((datagram.get(len..)?, client.unwrap_or(peer))),
            Header::Partial | Header::Malformed => {
                self.front.meter.dropped(Dropped::Nonsense);
                None
            }
        }
    }

    /// Looks ahead at packets that [`Moment::quick`] is about to be given; worth it for several.
    pub fn foresee<'p>(&mut self, packets: impl Iterator<Item = &'p [u8]>, transport: Transport) {
        let Some(near) = &mut self.near else { return };
        for packet in packets {
            if let Seen::Question(view) = wire::see(packet, transport) {
                self.front.pipeline.foresee(near, &view);
            }
        }
        near.reach();
    }

    /// Answers a packet if that takes no wait: what is refused, and what is in the cache.
    ///
    /// With [`Tried::Answered`] the reply stands in `out`. After [`Tried::Miss`] the same octets go to
    /// [`Front::slow`].
    pub fn quick(&mut self, packet: &[u8], transport: Transport, client: IpAddr, out: &mut Vec<u8>) -> Tried {
        let tried = self.look(packet, transport, client, out);
        if tried == Tried::Answered {
            self.answered[transport as usize] += 1;
            pad(transport, out);
        }
        tried
    }

    fn look(&mut self, packet: &[u8], transport: Transport, client: IpAddr, out: &mut Vec<u8>) -> Tried {
        let seen = wire::see(packet, transport);
        let qtype = match &seen {
            Seen::Silence => return self.drop_as(Dropped::Nonsense),
            Seen::Refuse(refusal) => refusal.qtype().unwrap_or_default(),
            Seen::Question(view) => view.qtype(),
        };
        // Refused ones are answered, so they count as asked: the sums of both agree.
        self.front.meter.query(transport, qtype);
        let may_ask = self.rules.may_ask(client);
        if !may_ask && self.rules.is_silent() {
            return self.drop_as(Dropped::Denied);
        }
        let (seen, is_known) = self.read_cookie(seen, client);
        let limiter = match transport {
            // Who shows a cookie of ours is no forgery.
            _ if is_known => None,
            Transport::Udp => self.rules.limiter(client).map(Arc::clone),
            // Its sender is who it says, and connections are limited on their own.
            _ => None,
        };
        if let Some(limiter) = &limiter {
            match limiter.question(client, self.now) {
                Verdict::Pass => {}
                beyond => return self.beyond(beyond, packet, client, out),
            }
        }
        let tried = match seen {
            Seen::Silence => Tried::Drop,
            Seen::Refuse(refusal) => self.refuse(&judged(refusal, may_ask), out),
            Seen::Question(view) if !may_ask => self.refuse(&denied(view.refuse(wire::rcode::REFUSED)), out),
            Seen::Question(view) => self.answer(&view, transport, out),
        };
        match limiter {
            Some(limiter) if tried == Tried::Answered && wire::is_error(out) => match limiter.error(client, self.now) {
                Verdict::Pass => tried,
                beyond => self.beyond(beyond, packet, client, out),
            },
            _ => tried,
        }
    }

    /// Looks at the cookie of a question; returns whether it is one of ours.
    fn read_cookie<'a>(&self, seen: Seen<'a>, client: IpAddr) -> (Seen<'a>, bool) {
        let (Some(secrets), Seen::Question(view)) = (self.rules.secrets(), &seen) else { return (seen, false) };
        match secrets.look(view, client, self.now) {
            None => (seen, false),
            Some(Shown::Malformed) => (Seen::Refuse(view.refuse(wire::rcode::FORMERR)), false),
            Some(Shown::Unknown(cookie)) => (Seen::Question(view.with_reply_cookie(Some(cookie))), false),
            Some(Shown::Known(cookie)) => (Seen::Question(view.with_reply_cookie(Some(cookie))), true),
        }
    }

    fn answer(&mut self, view: &View<'_>, transport: Transport, out: &mut Vec<u8>) -> Tried {
        match &mut self.near {
            Some(near) => self.front.pipeline.try_answer_near(near, view, transport, self.now, out),
            None => self.front.pipeline.try_answer(view, transport, self.now, out),
        }
    }

    fn refuse(&self, refusal: &Refusal<'_>, out: &mut Vec<u8>) -> Tried {
        self.front.pipeline.refuse(refusal, out);
        Tried::Answered
    }

    fn drop_as(&self, why: Dropped) -> Tried {
        self.front.meter.dropped(why);
        Tried::Drop
    }

    /// Does with a datagram what becomes of those beyond a limit.
    fn beyond(&self, verdict: Verdict, packet: &[u8], client: IpAddr, out: &mut Vec<u8>) -> Tried {
        match self.front.beyond(verdict, packet, client, out) {
            true => Tried::Answered,
            false => Tried::Drop,
        }
    }

    fn is_known(&self, packet: &[u8], client: IpAddr) -> bool {
        let Seen::Question(view) = wire::see(packet, Transport::Udp) else { return false };
        let shown = self.rules.secrets().and_then(|secrets| secrets.look(&view, client, self.now));
        matches!(shown, Some(Shown::Known(_)))
    }

    /// Returns what judges the reply to a datagram that was missed; `None` where nothing does.
    pub(super) fn brake(&self, packet: &[u8], client: IpAddr) -> Option<Brake> {
        let limiter = Arc::clone(self.rules.limiter(client)?);
        if self.is_known(packet, client) {
            return None;
        }
        Some(Brake { limiter, front: self.front.clone(), packet: packet.into(), client })
    }
}

impl Front {
    /// Writes the reply that some datagrams beyond a limit get; returns false for those that get none. A client that knows
    /// cookies gets one to come back with, all others are to come over TCP.
    fn beyond(&self, verdict: Verdict, packet: &[u8], client: IpAddr, out: &mut Vec<u8>) -> bool {
        match wire::see(packet, Transport::Udp) {
            Seen::Question(view) if verdict == Verdict::Slip => {
                self.meter.slipped();
                let cookie = self.reply_cookie(packet, Transport::Udp, client);
                let view = view.with_reply_cookie(cookie);
                let refusal = match cookie {
                    Some(_) => view.refuse(wire::rcode::BADCOOKIE),
                    None => view.refuse(wire::rcode::NOERROR).truncated(),
                };
                self.pipeline.refuse(&refusal, out);
                true
            }
            _ => {
                self.meter.dropped(Dropped::Limited);
                false
            }
        }
    }
}

/// Withholds a reply that comes late if it is an error too many.
#[derive(Debug)]
pub(super) struct Brake {
    limiter: Arc<Limiter>,
    front: Front,
    packet: Box<[u8]>,
    client: IpAddr,
}

impl Brake {
    /// Has `send` called with the reply, with one in its place, or not at all.
    pub(super) fn pass(&self, reply: &[u8], send: impl FnOnce(&[u8])) {
        if !wire::is_error(reply) {
            return send(reply);
        }
        match self.limiter.error(self.client, self.front.clock.now()) {
            Verdict::Pass => send(reply),
            beyond => {
                let mut out = Vec::new();
                if self.front.beyond(beyond, &self.packet, self.client, &mut out) {
                    send(&out);
                }
            }
        }
    }
}

/// Who may not ask is told only that, not even the minimal answer to ANY.
fn judged(refusal: Refusal<'_>, may_ask: bool) -> Refusal<'_> {
    let is_answer = refusal.rcode() == wire::rcode::NOERROR;
    if is_answer && !may_ask { denied(refusal.into_refused()) } else { refusal }
}

/// Pads what nobody on the way can read (RFC 8467 §4.1); over the others padding hides nothing.
fn pad(transport: Transport, out: &mut Vec<u8>) {
    if transport.is_encrypted() {
        wire::pad(out);
    }
}

/// RFC 8914 §4.19: the client is not on the list of those who may ask.
fn denied(refusal: Refusal<'_>) -> Refusal<'_> {
    refusal.with_ede(Ede::new(wire::ede::PROHIBITED, ""))
}
