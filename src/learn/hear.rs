//! What other resolvers say of the set that they share with this one.
//!
//! A [`Heard`] is one word on one sighting: held until an end, or gone though it had until then. It is believed no more
//! than an answer: the address must be admissible, the name listed, and the caps hold. An end is only ever moved later;
//! a sighting leaves at another's word only if it had no later end here than there, and no client of ours may still
//! hold it. Otherwise it gets an end just after that of the word, so that it wins there, too.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::book::{Admitted, Book};
use crate::clock::Timestamp;
use crate::name::Name;
use crate::set::{Need, Sighting, Times};

/// How many bundles of words wait for the writer at most; who has more waits.
const HEARINGS_LEN_MAX: usize = 4;

/// One word of another resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The address.
    pub addr: IpAddr,
    /// The listed name.
    pub name: Name,
    /// What is said.
    pub word: Word,
    /// The end that it has, or had.
    pub end: Timestamp,
}

/// What is said of a sighting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is held until the end.
    Held,
    /// It left before that end.
    Gone,
}

/// How many words came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hearing {
    /// New sightings.
    pub learned: u64,
    /// Sightings that last longer, or did already.
    pub renewed: u64,
    /// Sightings that left.
    pub removed: u64,
    /// Sightings that stay although they were said to have left.
    pub kept: u64,
    /// Words on sightings that have ended, or were not there.
    pub idle: u64,
    /// Words on names that no list has here.
    pub unlisted: u64,
    /// Words on addresses that may not be learned.
    pub inadmissible: u64,
    /// Words on sightings that there is no room for.
    pub full: u64,
}

/// What became of one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Became {
    Learned,
    Renewed,
    Removed,
    Kept,
    Idle,
    Unlisted,
    Inadmissible,
    Full,
}

impl Hearing {
    pub(super) fn count(&mut self, became: Became) {
        *match became {
            Became::Learned => &mut self.learned,
            Became::Renewed => &mut self.renewed,
            Became::Removed => &mut self.removed,
            Became::Kept => &mut self.kept,
            Became::Idle => &mut self.idle,
            Became::Unlisted => &mut self.unlisted,
            Became::Inadmissible => &mut self.inadmissible,
            Became::Full => &mut self.full,
        } += 1;
    }
}

/// Words on their way to the writer.
#[derive(Debug)]
pub(super) struct Hearings {
    pub(super) words: Vec<Heard>,
    /// Hears what became of them once that is published.
    pub(super) done: oneshot::Sender<Hearing>,
}

impl Hearings {
    pub(super) fn channel() -> (mpsc::Sender<Self>, mpsc::Receiver<Self>) {
        mpsc::channel(HEARINGS_LEN_MAX)
    }
}

impl Book {
    /// Takes in one word of another resolver.
    pub(super) fn hear(&mut self, heard: &Heard, now: Timestamp) -> Became {
        let known = self.draft().host(heard.addr).and_then(|host| host.sighting(&heard.name)).cloned();
        match (heard.word, known) {
            _ if heard.end <= now => Became::Idle,
            (Word::Held, known) => self.hear_held(heard, known, now),
            (Word::Gone, Some(known)) => self.hear_gone(heard.end, &known, now),
            (Word::Gone, None) => Became::Idle,
        }
    }

    fn hear_held(&mut self, heard: &Heard, known: Option<Arc<Sighting>>, now: Timestamp) -> Became {
        if let Err(reason) = self.admission().check(heard.addr) {
            self.metrics.refused(reason, 1);
            return Became::Inadmissible;
        }
        let Some(tag) = self.listing().tag(&heard.name) else { return Became::Unlisted };
        let need = Need::heard(now, heard.end, self.options().grace);
        if let Some(known) = known {
            self.draft.renew(&known, &need);
            return Became::Renewed;
        }
        let fresh = vec![(heard.addr, 0)];
        let (admission, generation) = (Arc::clone(self.admission()), u64::MAX);
        let (name, addresses) = (heard.name.clone(), fresh.clone());
        let offer = Admitted { name, tag, addresses, address_count: 1, client: None, generation, admission };
        if let Err(reason) = self.make_room(&offer, &fresh, now) {
            self.metrics.refused(reason, 1);
            return Became::Full;
        }
        let record = self.record(&offer.name, &offer.tag);
        self.put_in(Sighting::new(heard.addr, record, now, Times::from(need)));
        self.metrics.admitted.inc();
        Became::Learned
    }

    fn hear_gone(&mut self, end: Timestamp, known: &Arc<Sighting>, now: Timestamp) -> Became {
        if known.leave_if(|times| times.end <= end && times.told_until < now).is_some() {
            self.take_out(known);
            return Became::Removed;
        }
        if known.end() <= end {
            let outbid = Need::heard(now, end.after(Duration::from_millis(1)), self.options().grace);
            self.draft.renew(known, &outbid);
        }
        Became::Kept
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{START, addr, after, listing, name, tag};
    use super::super::{Learner, Offer, Options, Outcome, Start, start};
    use super::*;
    use crate::clock::Clock;
    use crate::metrics::Registry;
    use crate::set::outlet::{Applied, outlet_aside};

    fn learner(options: Options) -> (Learner, Clock, crate::set::outlet::Intake) {
        let clock = Clock::manual(START);
        let options = Options { is_shared: true, hold: Duration::from_millis(100), ..options };
        let mut start_with = Start::new(options, listing(&["unlisted"]), 1);
        let (outlet, intake) = outlet_aside("cluster");
        start_with.outlets.push(outlet);
        let (learner, writer) = start(start_with, clock.clone(), &Registry::new());
        tokio::spawn(writer.run());
        (learner, clock, intake)
    }

    fn held(n: u32, of: &str, secs: u64) -> Heard {
        Heard { addr: addr(n), name: name(of), word: Word::Held, end: after(secs) }
    }

    fn gone(n: u32, of: &str, secs: u64) -> Heard {
        Heard { word: Word::Gone, ..held(n, of, secs) }
    }

    fn end(learner: &Learner, n: u32) -> Option<Timestamp> {
        learner.reader().snapshot().host(addr(n)).map(|host| host.end())
    }

    async fn offer(learner: &Learner, n: u32, now: Timestamp) -> Outcome {
        let offer = Offer {
            name: name("a.zoom.test"),
            tag: tag("zoom", "zoom.test"),
            addresses: vec![(addr(n), 60)],
            targets: Vec::new(),
            octets: 100,
            client: None,
            generation: 1,
        };
        learner.offer(offer, now).await
    }

    #[tokio::test(start_paused = true)]
    async fn word_passes_what_an_answer_passes() {
        let (learner, _clock, _intake) = learner(Options::default());
        let private = Heard { addr: "10.0.0.1".parse().unwrap(), ..held(1, "a.zoom.test", 900) };
        let words = vec![
            held(1, "a.zoom.test", 900),
            held(1, "a.zoom.test", 800),
            held(1, "a.zoom.test", 1000),
            held(2, "a.unlisted.test", 900),
            private,
            held(3, "a.zoom.test", 0),
            gone(4, "a.zoom.test", 900),
        ];
        let hearing = learner.hear(words).await;
        let expected = Hearing { learned: 1, renewed: 2, unlisted: 1, inadmissible: 1, idle: 2, ..Hearing::default() };
        assert_eq!(hearing, expected);
        assert_eq!(end(&learner, 1), Some(after(1000)), "the latest end, not the last word");
        assert_eq!(learner.reader().snapshot().hosts().count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn removal_waits_until_nobody_can_hold_the_address_and_is_outbid_before() {
        let (learner, clock, _intake) = learner(Options::default());
        learner.hear(vec![held(1, "a.zoom.test", 900)]).await;
        assert_eq!(learner.hear(vec![gone(1, "a.zoom.test", 900)]).await.kept, 1, "told until 600 at most");
        assert_eq!(end(&learner, 1), Some(after(900).after(Duration::from_millis(1))));
        clock.advance(Duration::from_secs(602));
        assert_eq!(learner.hear(vec![gone(1, "a.zoom.test", 899)]).await.kept, 1, "it has a later end here");
        assert_eq!(learner.hear(vec![gone(1, "a.zoom.test", 901)]).await.removed, 1);
        assert_eq!(end(&learner, 1), None);
    }

    #[tokio::test(start_paused = true)]
    async fn own_answer_about_what_was_heard_needs_nobody_to_wait_for() {
        let (learner, _clock, _intake) = learner(Options::default());
        learner.hear(vec![held(1, "a.zoom.test", 900)]).await;
        assert_eq!(offer(&learner, 1, START).await, Outcome::Programmed);
        assert_eq!(end(&learner, 1), Some(after(900)), "600 of hold and 300 of grace are a whole half minute already");
        assert_eq!(offer(&learner, 1, after(1)).await, Outcome::Programmed);
        assert_eq!(end(&learner, 1), Some(after(930)));
    }

    #[tokio::test(start_paused = true)]
    async fn without_room_what_is_in_its_grace_leaves_and_that_is_told() {
        let (learner, clock, mut intake) = learner(Options { max_total: 1, ..Options::default() });
        learner.hear(vec![held(1, "a.zoom.test", 900)]).await;
        assert_eq!(learner.hear(vec![held(2, "b.zoom.test", 900)]).await.full, 1);
        clock.advance(Duration::from_secs(601));
        assert_eq!(learner.hear(vec![held(2, "b.zoom.test", 900)]).await.learned, 1);
        assert_eq!((end(&learner, 1), end(&learner, 2)), (None, Some(after(900))));
        loop {
            let order = intake.next().await.unwrap();
            let evicted = order.change.evicted.clone();
            order.done(Applied::Held);
            if !evicted.is_empty() {
                assert_eq!(evicted, [(addr(1), name("a.zoom.test"), after(900))]);
                return;
            }
        }
    }
}
