//! A plan on a clock that stands still until a test moves it.

use std::collections::HashMap;

use super::plan::{Plan, Seen, TYPES, Turn};
use super::*;

const START: Timestamp = Timestamp::from_secs(1_000_000);
const A: usize = 0;
const HOUR: Duration = Duration::from_secs(3600);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Plays a plan: what each question comes to, and when each was asked.
struct Play {
    plan: Plan,
    now: Timestamp,
    asked: Vec<(Timestamp, Turn)>,
}

impl Play {
    fn new(listed: &[&str], names_max: usize) -> Self {
        let mut play = Self { plan: Plan::default(), now: START, asked: Vec::new() };
        play.want(listed, names_max);
        play
    }

    fn want(&mut self, listed: &[&str], names_max: usize) {
        let listed: Vec<Name> = listed.iter().map(|text| name(text)).collect();
        self.plan.want(&listed, (names_max, HOUR), |_| true, self.now);
    }

    /// Lets `span` pass; a question asked is answered at once.
    fn run(&mut self, span: Duration, mut answer: impl FnMut(&Turn, Timestamp) -> Heard) {
        let end = self.now.after(span);
        while let Some(due) = self.plan.due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            let Some(turn) = self.plan.next(self.now) else { continue };
            let heard = answer(&turn, self.now);
            self.plan.heard(&turn, heard, 0.5, self.now);
            self.asked.push((self.now, turn));
        }
        self.now = end;
    }

    fn counts(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        self.asked.iter().for_each(|(_, turn)| *counts.entry(turn.name.to_string()).or_default() += 1);
        counts
    }

    /// The pauses between questions of one name for A.
    fn pauses(&self, of: &str) -> Vec<Duration> {
        let of = name(of);
        let times: Vec<_> =
            self.asked.iter().filter(|(_, turn)| turn.at == A && turn.name == of).map(|(at, _)| *at).collect();
        times.windows(2).map(|two| two[1].since(two[0])).collect()
    }
}

/// Addresses with that TTL, which stay that much longer.
fn held(now: Timestamp, ttl: u64, stay: u64) -> Heard {
    Heard::Held { fresh_until: now.after(secs(ttl)), end: now.after(secs(ttl.max(stay))) }
}

fn nothing(now: Timestamp) -> Heard {
    Heard::Nothing { fresh_until: now }
}

#[test]
fn every_listed_name_is_asked_at_once_for_each_type_addresses_first() {
    let mut play = Play::new(&["b.test", "a.test"], 10);
    play.run(Duration::ZERO, |_, now| held(now, 300, 900));
    let asked: Vec<_> = play.asked.iter().map(|(_, turn)| (turn.at, turn.name.to_string())).collect();
    let both = |at| [(at, "a.test".to_owned()), (at, "b.test".to_owned())];
    assert_eq!(asked, (0..TYPES.len()).flat_map(both).collect::<Vec<_>>());
}

#[test]
fn addresses_are_asked_again_before_they_end_whatever_their_ttl_and_stay() {
    for (ttl, stay) in [(1, 2), (2, 3), (5, 5), (60, 900), (300, 900), (3600, 3900), (86_400, 86_700), (30, 31)] {
        let mut play = Play::new(&["a.test"], 10);
        let mut end = START.after(secs(100_000));
        play.run(secs(200_000).min(secs(ttl * 2000)), |turn, now| {
            let heard = held(now, ttl, stay);
            if let (A, Heard::Held { end: later, .. }) = (turn.at, heard) {
                assert!(now < end, "ttl {ttl}, stay {stay}: gone before it was asked");
                end = later;
            }
            heard
        });
        assert!(play.pauses("a.test").len() > 1, "ttl {ttl}, stay {stay}");
    }
}

#[test]
fn a_listed_name_is_asked_when_its_answer_ends_but_not_all_the_time() {
    for (ttl, least, most) in [(20, 300, 330), (900, 900, 990), (3600, 3600, 3960)] {
        let mut play = Play::new(&["a.test"], 10);
        play.run(secs(40_000), |_, now| held(now, ttl, ttl.max(600) + 300));
        for pause in play.pauses("a.test") {
            assert!((secs(least)..=secs(most)).contains(&pause), "ttl {ttl}: {pause:?}");
        }
    }
}

#[test]
fn a_name_without_addresses_is_asked_ever_more_rarely() {
    let mut play = Play::new(&["a.test"], 10);
    play.run(secs(7 * 86_400), |_, now| nothing(now));
    let pauses = play.pauses("a.test");
    assert!(pauses[0] <= secs(66), "{pauses:?}");
    assert!(pauses.windows(2).all(|two| two[0] <= two[1]), "{pauses:?}");
    assert!(pauses.last().unwrap() >= &secs(6 * 3600) && pauses.len() < 45, "{pauses:?}");
    // Once it has addresses, it counts as any other.
    play.asked.clear();
    play.run(secs(86_400), |_, now| held(now, 300, 900));
    assert!(play.pauses("a.test").iter().all(|pause| *pause <= secs(330)), "{:?}", play.pauses("a.test"));
}

#[test]
fn a_failure_is_tried_again_soon_then_later_and_at_once_when_all_is_well() {
    let mut play = Play::new(&["a.test"], 10);
    play.run(secs(3600), |_, _| Heard::Failed);
    let pauses = play.pauses("a.test");
    assert!(pauses[0] >= secs(3) && pauses[0] < secs(4), "beyond the time that the cache keeps it: {pauses:?}");
    assert!(pauses.last().unwrap() >= &secs(300) && pauses.len() < 25, "{pauses:?}");
    play.asked.clear();
    play.plan.hurry(play.now);
    play.run(Duration::ZERO, |_, now| held(now, 300, 900));
    assert_eq!(play.asked.len(), TYPES.len());
    play.asked.clear();
    play.plan.hurry(play.now);
    play.run(Duration::ZERO, |_, now| held(now, 300, 900));
    assert!(play.asked.is_empty(), "what did not fail is not in a hurry");
}

#[test]
fn what_ends_soonest_goes_first_when_time_is_short() {
    let mut play = Play::new(&["late.test", "none.test", "soon.test"], 10);
    play.run(Duration::ZERO, |turn, now| match turn.name.to_string().as_str() {
        "late.test" => held(now, 600, 700),
        "soon.test" => held(now, 500, 600),
        _ => Heard::Nothing { fresh_until: now.after(secs(500)) },
    });
    // Nothing is asked until all are due.
    let now = START.after(secs(2000));
    let order: Vec<String> = std::iter::from_fn(|| play.plan.next(now)).map(|turn| turn.name.to_string()).collect();
    let mut expected = vec!["soon.test"; 3];
    expected.extend(["late.test"; 3]);
    expected.extend(["none.test"; 3]);
    assert_eq!(order, expected);
}

#[test]
fn names_are_bounded_and_listed_ones_come_before_used_ones() {
    let mut play = Play::new(&["a.test", "b.test", "c.test"], 2);
    assert_eq!(play.plan.len(), 2);
    play.plan.look(vec![seen("used.test", START, START.after(secs(900)))], START);
    assert_eq!(play.plan.len(), 2);
    play.want(&["a.test"], 3);
    let seen = (1..9u64).map(|i| seen(&format!("u{i}.test"), START.after(secs(i)), START.after(secs(900))));
    play.plan.look(seen.collect(), START.after(secs(10)));
    assert_eq!(play.plan.len(), 3);
    play.run(secs(900), |_, now| held(now, 60, 900));
    let mut names: Vec<String> = play.counts().into_keys().collect();
    names.sort();
    assert_eq!(names, ["a.test", "u7.test", "u8.test"], "the latest used");
}

fn seen(text: &str, last: Timestamp, end: Timestamp) -> Seen {
    Seen { name: name(text), last, ends: [end, Timestamp::default()] }
}

/// Looks through a set that holds one used name, each minute; our own answers show in it as any other does.
fn minutes(play: &mut Play, count: u64, shown: &mut Seen, mut client: impl FnMut(u64) -> bool) {
    for minute in 0..count {
        play.run(secs(60), |turn, now| {
            if turn.at != A {
                return nothing(now);
            }
            (shown.last, shown.ends[0]) = (now, now.after(secs(900)));
            Heard::Held { fresh_until: now.after(secs(60)), end: shown.ends[0] }
        });
        if client(minute) {
            (shown.last, shown.ends[0]) = (play.now, play.now.after(secs(900)));
        }
        if shown.ends[0] > play.now && play.now.since(shown.last) < HOUR {
            play.plan.look(vec![shown.clone()], play.now);
        } else {
            play.plan.look(Vec::new(), play.now);
        }
    }
}

#[test]
fn a_used_name_is_kept_for_a_while_and_forgotten_although_our_own_questions_show_in_the_set() {
    let mut play = Play::new(&[], 10);
    let mut shown = seen("used.test", START, START.after(secs(900)));
    play.plan.look(vec![shown.clone()], START);
    assert_eq!(play.plan.len(), 1);
    minutes(&mut play, 59, &mut shown, |_| false);
    assert_eq!(play.plan.len(), 1);
    let kept = play.pauses("used.test");
    assert!(kept.len() >= 2 && kept.iter().all(|pause| *pause >= secs(780) && *pause < secs(900)), "{kept:?}");
    minutes(&mut play, 2, &mut shown, |_| false);
    assert_eq!(play.plan.len(), 0);
    let count = play.asked.len();
    minutes(&mut play, 240, &mut shown, |_| false);
    assert_eq!((play.plan.len(), play.asked.len()), (0, count), "and does not come back by itself");
    // A client asks again.
    minutes(&mut play, 1, &mut shown, |_| true);
    assert_eq!(play.plan.len(), 1);
}

#[test]
fn a_name_that_clients_keep_alive_costs_no_question() {
    let mut play = Play::new(&[], 10);
    let mut shown = seen("used.test", START, START.after(secs(900)));
    play.plan.look(vec![shown.clone()], START);
    minutes(&mut play, 600, &mut shown, |minute| minute % 10 == 0);
    assert_eq!(play.plan.len(), 1);
    assert_eq!(play.asked.iter().filter(|(_, turn)| turn.at == A).count(), 0);
}

#[test]
fn a_reload_asks_what_is_new_and_what_stays_and_forgets_the_rest() {
    let mut play = Play::new(&["a.test", "b.test"], 10);
    play.run(secs(10), |_, now| nothing(now));
    play.asked.clear();
    play.want(&["b.test", "c.test"], 10);
    play.run(Duration::ZERO, |_, now| nothing(now));
    assert_eq!(play.counts(), HashMap::from([("b.test".to_owned(), 3), ("c.test".to_owned(), 3)]));
    // One that was on its way comes to nothing.
    play.want(&["a.test"], 10);
    let turn = play.plan.next(play.now).unwrap();
    play.want(&[], 10);
    play.plan.heard(&turn, held(play.now, 60, 900), 0.5, play.now);
    assert_eq!((play.plan.len(), play.plan.due()), (0, None));
}
