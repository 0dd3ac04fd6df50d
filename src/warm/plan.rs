//! Which names are asked ahead, and when each question is due.
//!
//! A [`Plan`] is pure state; `now` and the jitter come as arguments. A name stands in it because it is *listed* (a
//! trigger's own name, or one of the operator's file) or because it was *used* lately by a client; either way each of
//! [`TYPES`] is a question with a time of its own:
//!
//! ```text
//!   waiting, by when it is due ─▶ ready, the addresses that end soonest first ─▶ next ─▶ on its way ─▶ heard ─┐
//!      ▲                          never asked before all others                                             │
//!      └── addresses: listed, when the cached answer ends; used, shortly before the addresses do ◀──────────┤
//!          none: after a pause twice as long each time ◀────────────────────────────────────────────────────┤
//!          failed: the same, from shorter pauses ◀──────────────────────────────────────────────────────────┘
//! ```
//!
//! A used name is asked only shortly before its addresses end. Until then a client who asks finds nothing in the cache once
//! the TTL has ended, renews the sightings, and so shows that the name is in use; our own questions renew them, too, so the
//! plan keeps a mark of the last one for each name and takes for use only what was seen after it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::clock::Timestamp;
use crate::name::Name;
use crate::pipeline::Heard;
use crate::wire::rtype;

/// What each name is asked for, the most important first.
pub(super) const TYPES: [u16; 3] = [rtype::A, rtype::AAAA, rtype::HTTPS];

/// A listed name with addresses is asked no more often than this, unless these end sooner: within the usual stay of an
/// address (a quarter of an hour) three answers of a name that turns them in a circle.
const REST: Duration = Duration::from_secs(300);

/// The first and the longest pause before a name without addresses is asked again.
const EMPTY_REST: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(6 * 3600));

/// The first and the longest pause after a failure. The cache keeps a failure for two seconds.
const RETRY: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(300));

/// How long before the end of its addresses a question is due: a quarter of their stay within these bounds.
const LEAD: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// No question is due sooner after its answer than this.
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// The deadline of what has no addresses to lose: behind all others.
const NEVER: Timestamp = Timestamp::from_millis(u64::MAX);

/// One question to ask now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// The name.
    pub(super) name: Name,
    /// The place of its type in [`TYPES`].
    pub(super) at: usize,
    /// A cached answer that ends sooner than this is asked anew.
    pub(super) ahead: Duration,
}

/// What the set says of a listed name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The name.
    pub(super) name: Name,
    /// When one of its addresses was last seen.
    pub(super) last: Timestamp,
    /// When the last of its IPv4 and of its IPv6 addresses ends; the epoch without any.
    pub(super) ends: [Timestamp; 2],
}

/// Why a name is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Listed,
    /// A client asked last at that time.
    Used(Timestamp),
}

#[derive(Clone, Debug)]
struct Named {
    why: Why,
    /// How many of its questions are on their way.
    flying: usize,
    asks: [Ask; TYPES.len()],
}

/// The state of one question.
#[derive(Clone, Debug, Default)]
struct Ask {
    /// Where it stands; `None` while it is on its way.
    stand: Option<Stand>,
    /// When its addresses leave; the epoch before it was asked, [`NEVER`] without any.
    end: Timestamp,
    /// How long before that it is due.
    lead: Duration,
    /// How often in a row it brought no address.
    empty: u32,
    /// How often in a row it failed.
    failed: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    /// Until that time.
    Waiting(Timestamp),
    /// With that deadline.
    Ready(Timestamp),
}

/// A question by the place of its type, then by name: the more important type first.
type Key = (usize, Name);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Plan {
    names: HashMap<Name, Named, RandomState>,
    waiting: BTreeSet<(Timestamp, Key)>,
    ready: BTreeSet<(Timestamp, Key)>,
    /// Until when what was seen of a name may be our own doing. Names that left the plan stay here as long as the set shows
    /// them, or they would look as if they were used.
    marks: HashMap<Name, Timestamp, RandomState>,
    names_max: usize,
    used_for: Duration,
}

impl Plan {
    /// Goes over to these listed names, of which the first `names_max` count; all are asked at once, as the budget lets
    /// them. Used names stay if there is room and `is_listed` still says so.
    pub(super) fn want(
        &mut self,
        listed: &[Name],
        (names_max, used_for): (usize, Duration),
        is_listed: impl Fn(&Name) -> bool,
        now: Timestamp,
    ) {
        (self.names_max, self.used_for) = (names_max, used_for);
        let listed: HashSet<&Name> = listed.iter().take(names_max).collect();
        let gone = self.names.iter().filter(|(name, named)| match named.why {
            Why::Listed => !listed.contains(name),
            Why::Used(_) => !is_listed(name),
        });
        let gone: Vec<Name> = gone.map(|(name, _)| name.clone()).collect();
        gone.iter().for_each(|name| self.remove(name));
        for name in listed {
            let named = self.names.entry(name.clone()).or_insert_with(|| Named::new(Why::Listed));
            named.why = Why::Listed;
            for at in 0..TYPES.len() {
                self.move_to(name, at, now, |ask| (ask.empty, ask.failed) = (0, 0));
            }
        }
        self.keep_used(Vec::new(), now);
    }

    /// Takes note of what the set shows: of names that clients used since, and of when addresses end.
    pub(super) fn look(&mut self, seen: Vec<Seen>, now: Timestamp) {
        let shown: HashSet<&Name> = seen.iter().map(|seen| &seen.name).collect();
        let names = &self.names;
        self.marks.retain(|name, _| names.contains_key(name) || shown.contains(name));
        let mut fresh = Vec::new();
        for seen in seen {
            let is_use = self.marks.get(&seen.name).is_none_or(|mark| seen.last > *mark);
            match self.names.get_mut(&seen.name) {
                None if is_use => fresh.push(seen),
                None => {}
                Some(named) => {
                    let Why::Used(used) = &mut named.why else { continue };
                    // What is on its way has left no mark yet.
                    if is_use && named.flying == 0 {
                        *used = seen.last.max(*used);
                    }
                    self.hold(&seen, now);
                }
            }
        }
        self.keep_used(fresh, now);
    }

    /// Returns the most urgent question that is due, which is on its way from then on.
    pub(super) fn next(&mut self, now: Timestamp) -> Option<Turn> {
        self.ripen(now);
        let (_, (at, name)) = self.ready.pop_first()?;
        let named = self.names.get_mut(&name)?;
        named.flying += 1;
        let ask = &mut named.asks[at];
        ask.stand = None;
        Some(Turn { ahead: ask.lead, name, at })
    }

    /// Returns when the next question is due; `None` if none will be.
    pub(super) fn due(&self) -> Option<Timestamp> {
        if self.ready.is_empty() { self.waiting.first().map(|(due, _)| *due) } else { Some(Timestamp::default()) }
    }

    /// Takes note of what a question came to. `jitter` is a random number from 0 to 1.
    pub(super) fn heard(&mut self, turn: &Turn, heard: Heard, jitter: f64, now: Timestamp) {
        self.marks.insert(turn.name.clone(), now);
        let Some(named) = self.names.get_mut(&turn.name) else { return };
        named.flying = named.flying.saturating_sub(1);
        if named.asks[turn.at].stand.is_some() {
            // It left the plan and came back meanwhile.
            return;
        }
        let due = named.asks[turn.at].take(heard, named.why, jitter, now);
        self.move_to(&turn.name, turn.at, due, |_| ());
    }

    /// Lets everything that failed be asked again at once: upstreams are well again.
    pub(super) fn hurry(&mut self, now: Timestamp) {
        let failed = self.names.iter().flat_map(|(name, named)| {
            let asks = named.asks.iter().enumerate();
            asks.filter(|(_, ask)| ask.failed > 0 && ask.stand.is_some()).map(|(at, _)| (name.clone(), at))
        });
        for (name, at) in failed.collect::<Vec<_>>() {
            self.move_to(&name, at, now, |_| ());
        }
    }

    /// Returns how many names there are.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Holds the used names, those known and those of `fresh`, to the room that there is, the latest use first, and to
    /// `used_for`.
    fn keep_used(&mut self, fresh: Vec<Seen>, now: Timestamp) {
        let is_late = |at: Timestamp| now.since(at) >= self.used_for;
        let mut used: Vec<(Timestamp, Name)> = Vec::new();
        let mut gone: Vec<Name> = Vec::new();
        let mut listed_count = 0;
        for (name, named) in &self.names {
            match named.why {
                Why::Listed => listed_count += 1,
                Why::Used(at) if is_late(at) => gone.push(name.clone()),
                Why::Used(at) => used.push((at, name.clone())),
            }
        }
        let fresh: HashMap<Name, Seen, RandomState> =
            fresh.into_iter().filter(|seen| !is_late(seen.last)).map(|seen| (seen.name.clone(), seen)).collect();
        used.extend(fresh.values().map(|seen| (seen.last, seen.name.clone())));
        let room = self.names_max.saturating_sub(listed_count);
        if used.len() > room {
            used.sort_unstable_by(|a, b| b.cmp(a));
            gone.extend(used.drain(room..).map(|(_, name)| name));
        }
        gone.iter().for_each(|name| self.remove(name));
        for (at, name) in used {
            let Some(seen) = fresh.get(&name) else { continue };
            self.names.insert(name.clone(), Named::new(Why::Used(at)));
            let last = seen.ends[0].max(seen.ends[1]);
            for (at, end) in [seen.ends[0], seen.ends[1], last].into_iter().enumerate() {
                // A family without addresses is asked along with the other.
                self.set_end(&name, at, if end == Timestamp::default() { last } else { end }, now);
            }
        }
    }

    /// Puts off questions of a used name whose addresses end later than was known.
    fn hold(&mut self, seen: &Seen, now: Timestamp) {
        for (at, end) in [seen.ends[0], seen.ends[1], seen.ends[0].max(seen.ends[1])].into_iter().enumerate() {
            let asks = self.names.get(&seen.name).map(|named| &named.asks);
            let is_later = asks.is_some_and(|asks| end > asks[at].end && asks[at].stand.is_some());
            if is_later {
                self.set_end(&seen.name, at, end, now);
            }
        }
    }

    fn set_end(&mut self, name: &Name, at: usize, end: Timestamp, now: Timestamp) {
        let lead = lead(end.since(now));
        self.move_to(name, at, before(end, lead, now), |ask| (ask.end, ask.lead) = (end, lead));
    }

    /// Changes a question that is not on its way and lets it wait until `due`; one on its way is put back by what comes of it.
    fn move_to(&mut self, name: &Name, at: usize, due: Timestamp, change: impl FnOnce(&mut Ask)) {
        let Some(named) = self.names.get_mut(name) else { return };
        let ask = &mut named.asks[at];
        let key = (at, name.clone());
        match ask.stand {
            Some(Stand::Waiting(before)) => drop(self.waiting.remove(&(before, key.clone()))),
            Some(Stand::Ready(deadline)) => drop(self.ready.remove(&(deadline, key.clone()))),
            None => {}
        }
        change(ask);
        ask.stand = Some(Stand::Waiting(due));
        self.waiting.insert((due, key));
    }

    /// Makes ready what is due.
    fn ripen(&mut self, now: Timestamp) {
        while self.waiting.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, (at, name))) = self.waiting.pop_first() else { return };
            let Some(named) = self.names.get_mut(&name) else { continue };
            let ask = &mut named.asks[at];
            ask.stand = Some(Stand::Ready(ask.end));
            self.ready.insert((ask.end, (at, name)));
        }
    }

    fn remove(&mut self, name: &Name) {
        let Some(named) = self.names.remove(name) else { return };
        for (at, ask) in named.asks.into_iter().enumerate() {
            match ask.stand {
                Some(Stand::Waiting(due)) => drop(self.waiting.remove(&(due, (at, name.clone())))),
                Some(Stand::Ready(deadline)) => drop(self.ready.remove(&(deadline, (at, name.clone())))),
                None => {}
            }
        }
    }
}

impl Named {
    fn new(why: Why) -> Self {
        Self { why, flying: 0, asks: Default::default() }
    }
}

impl Ask {
    /// Takes note of what came; returns when to ask again.
    fn take(&mut self, heard: Heard, why: Why, jitter: f64, now: Timestamp) -> Timestamp {
        let spread = |span: Duration| span.mul_f64(jitter / 10.0);
        match heard {
            Heard::Held { fresh_until, end } => {
                (self.empty, self.failed, self.end) = (0, 0, end);
                self.lead = lead(end.since(now));
                let last = before(end, self.lead + spread(self.lead), now);
                let due = match why {
                    Why::Used(_) => last,
                    Why::Listed => {
                        let rest = fresh_until.since(now).max(REST);
                        now.after(rest + spread(rest)).min(last)
                    }
                };
                due.max(now.after(PAUSE_MIN))
            }
            Heard::Nothing { fresh_until } => {
                (self.failed, self.end) = (0, NEVER);
                self.lead = Duration::ZERO;
                let rest = doubled(EMPTY_REST, self.empty).max(fresh_until.since(now));
                self.empty = self.empty.saturating_add(1);
                now.after(rest + spread(rest))
            }
            Heard::Late | Heard::Failed => {
                let pause = doubled(RETRY, self.failed);
                self.failed = self.failed.saturating_add(1);
                now.after(pause + spread(pause))
            }
        }
    }
}

/// Returns how long before the end of addresses that stay for `span` a question is due.
fn lead(span: Duration) -> Duration {
    (span / 4).clamp(LEAD.0, LEAD.1)
}

/// Returns the instant `lead` before `end`, `now` if that has gone by.
fn before(end: Timestamp, lead: Duration, now: Timestamp) -> Timestamp {
    now.after(end.since(now).saturating_sub(lead))
}

/// Returns the first of two bounds, doubled so many times, at most the second.
fn doubled((first, most): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(2u32.saturating_pow(times.min(31))).min(most)
}
