//! The short way of a question: one upstream, over UDP or a connection that stands, answered at the first try.
//!
//! No task and no timer are made for it. Whoever asks sends it; whoever reads the reply walks the answer and goes on
//! with what follows. What turns out to be more (a failure reply, a cut or malformed one, EDNS trouble,
//! silence, a socket that failed) goes over to a race of tries in a task, with the try that was begun as its first.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::group::{Group, Plan};
use super::hopes::{Broken, Courier, Hope, Leaves, Place};
use super::upstream::{Begun, SoFar};
use super::waiting::Seat;
use super::{Failure, Forward};
use crate::wire::{Question, Walked};

impl Forward {
    /// Does as [`Forward::ask`], and calls `then` with what came of it: from here, from where the reply is read, or from
    /// a task on `runtime`. It must not block.
    pub fn ask_then(
        &self,
        question: Arc<Question>,
        runtime: &Handle,
        then: impl FnOnce(Result<Walked, Failure>) + Send + 'static,
    ) {
        let group = self.group(&question.name);
        let plan = group.plan(&self.clock);
        let (at, seat) = (Instant::now(), self.waiting.enter());
        let asking = Asking {
            group: Arc::clone(group),
            plan,
            deadline: at + self.timeout,
            at,
            edns: false,
            heard: 0,
            seat,
            question,
            runtime: runtime.clone(),
            then,
        };
        asking.begin();
    }
}

/// A question on the short way.
struct Asking<F> {
    group: Arc<Group>,
    plan: Plan,
    question: Arc<Question>,
    seat: Seat,
    at: Instant,
    deadline: Instant,
    edns: bool,
    heard: u64,
    runtime: Handle,
    then: F,
}

impl<F: FnOnce(Result<Walked, Failure>) + Send + 'static> Asking<F> {
    fn begin(mut self) {
        let group = Arc::clone(&self.group);
        let first = self.plan.only().map(|at| &group.peers()[at]);
        let Some((peer, way)) = first.and_then(|peer| Some((peer, peer.way()?))) else {
            return self.race(None);
        };
        let (manner, heard) = peer.begin();
        (self.edns, self.heard) = (manner.edns, heard);
        let patience = group.hedge_after(self.plan.order()).unwrap_or_else(|| peer.patience());
        let (question, times) = (self.question.clone(), (self.at, self.at + patience));
        let (waiting, number) = (Arc::clone(self.seat.waiting()), self.seat.number());
        if let Some(place) = way.send(&question, manner, times, Box::new(self)) {
            waiting.notify_at(number, place);
        }
    }

    /// Goes on in a task; with a try that was begun, if there is one.
    fn race(self, so_far: Option<SoFar>) {
        let Self { group, plan, question, seat, at, deadline, edns, heard, runtime, then } = self;
        runtime.spawn(async move {
            let asking = async {
                match so_far {
                    Some(so_far) => group.go_on(plan, question, Begun { edns, heard, at, so_far }, deadline).await,
                    None => group.ask_as_planned(plan, question, deadline).await,
                }
            };
            let result = tokio::select! {
                biased;
                result = asking => result,
                () = seat.evicted() => Err(Failure::Evicted),
            };
            drop(seat);
            then(result);
        });
    }
}

impl<F: FnOnce(Result<Walked, Failure>) + Send + 'static> Hope for Asking<F> {
    fn replied(self: Box<Self>, reply: &[u8]) {
        let latency = self.at.elapsed();
        let peer = self.plan.only().map(|at| &self.group.peers()[at]);
        match peer.and_then(|peer| peer.answer_of(reply, &self.question, latency)) {
            Some(walked) => {
                let Self { seat, then, .. } = *self;
                drop(seat);
                then(Ok(walked));
            }
            None => self.race(Some(SoFar::Ended(Ok((reply.to_vec(), latency))))),
        }
    }

    fn broke(self: Box<Self>, broken: Broken) {
        self.race(Some(SoFar::Ended(Err(broken))));
    }

    fn overdue(self: Box<Self>, place: Place) -> Box<dyn Hope> {
        let (courier, reply) = Courier::new();
        self.race(Some(SoFar::Waiting(reply, Leaves(place))));
        courier
    }

    fn evicted(self: Box<Self>) {
        let Self { seat, then, .. } = *self;
        drop(seat);
        then(Err(Failure::Evicted));
    }
}
