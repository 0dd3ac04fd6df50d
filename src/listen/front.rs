//! What every transport does with a packet, before anything waits.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::access::Allowed;
use super::meter::{Dropped, Way};
use super::{Access, Meter};
use crate::clock::{Clock, Stopwatch, Timestamp};
use crate::pipeline::{Near, Pipeline, Tried};
use crate::wire::{self, Ede, Refusal, Seen, Transport, View};

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
    /// Takes one look at clock and access list, for the packets of one read.
    pub fn moment(&self) -> Moment<'_> {
        let (allowed, now) = (self.access.look(), self.clock.now());
        Moment { front: self, near: None, allowed, now, began: Stopwatch::start(), answered: [0; Transport::ALL.len()] }
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
        self.pipeline.resolve_then(packet, transport, client, runtime, tell);
    }

    /// Answers a packet that the quick way missed, however long it takes.
    pub async fn slow(&self, packet: &[u8], transport: Transport, client: IpAddr, out: &mut Vec<u8>) {
        // The same octets gave a question before.
        if let Seen::Question(view) = wire::see(packet, transport) {
            self.pipeline.resolve(&view, transport, client, out).await;
            pad(transport, out);
        }
    }
}

/// The front as it is while the packets of one read are answered: looked at once, since they came together.
#[derive(Debug)]
pub struct Moment<'a> {
    front: &'a Front,
    near: Option<&'a mut Near>,
    allowed: Allowed,
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
        match wire::see(packet, transport) {
            Seen::Silence => {
                self.front.meter.dropped(Dropped::Nonsense);
                Tried::Drop
            }
            Seen::Refuse(refusal) => {
                // It is answered, so it counts as asked: the sums of both agree.
                self.front.meter.query(transport, refusal.qtype().unwrap_or_default());
                self.front.pipeline.refuse(&self.judged(refusal, client), out);
                Tried::Answered
            }
            Seen::Question(view) => self.quick_question(&view, transport, client, out),
        }
    }

    fn quick_question(&mut self, view: &View<'_>, transport: Transport, client: IpAddr, out: &mut Vec<u8>) -> Tried {
        self.front.meter.query(transport, view.qtype());
        if !self.allowed.has(client) {
            self.front.pipeline.refuse(&denied(view.refuse(wire::rcode::REFUSED)), out);
            return Tried::Answered;
        }
        match &mut self.near {
            Some(near) => self.front.pipeline.try_answer_near(near, view, transport, self.now, out),
            None => self.front.pipeline.try_answer(view, transport, self.now, out),
        }
    }

    /// Who may not ask is told only that, not even the minimal answer to ANY.
    fn judged<'a>(&self, refusal: Refusal<'a>, client: IpAddr) -> Refusal<'a> {
        let is_answer = refusal.rcode() == wire::rcode::NOERROR;
        if is_answer && !self.allowed.has(client) { denied(refusal.into_refused()) } else { refusal }
    }
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
