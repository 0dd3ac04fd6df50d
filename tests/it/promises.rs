//! Never late, never lost, never more than asked: for any sequence of answers, failures, questions, reloads
//! and steps of time.
//!
//! A [`Model`] remembers what clients were told, and nothing of how learning works: an address told with TTL `t` at
//! `x` for a listed name must be in the set until `x + t`, and may be in it until `x + max(t + 1 s, min-hold) +
//! grace`; a name that is listed no longer owes nothing and may hold nothing. After every step the set is held
//! against both bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use greenlane::cache::Ahead;
use greenlane::clock::Timestamp;
use greenlane::learn;
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use proptest::prelude::{
    BoxedStrategy, ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use proptest::test_runner::TestCaseError;

use crate::harness::{question, tag};
use crate::scenarios::told;
use crate::stage::{Stage, Trouble, options};
use crate::upstream::{A, CNAME, HTTPS, wire_name};

/// Whoever asks one of these learns for it, if a list of the moment has it.
const NAMES: [&str; 5] =
    ["a.listed.example", "b.listed.example", "alias.listed.example", "c.second.example", "d.stranger.example"];

/// Has an HTTPS record that points at [`TARGET`], with a hint.
const POINTING: &str = "www.listed.example";
const TARGET: &str = "svc.cdn.example";

/// Where the CNAME of `alias.listed.example` leads.
const EDGE: &str = "edge.cdn.example";

/// What is asked ahead is learned though nobody was told of it, which the model would not know.
const AHEAD: Ahead = Ahead { serve_stale: Duration::from_secs(1800), prefetch: false };

/// Lists to reload between.
const LISTS: [&str; 4] = [
    "listed.example\n",
    "listed.example\nsecond.example\n",
    "second.example\n=a.listed.example\n",
    "listed.example\n!b.listed.example\n!www.listed.example\n",
];

const HOSTILE: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(169, 254, 169, 254)];

/// An address by number; the last ones are hostile.
fn addr(n: u8) -> Ipv4Addr {
    match n.checked_sub(8) {
        None => Ipv4Addr::new(198, 18, 0, n),
        Some(n) => HOSTILE[usize::from(n) % HOSTILE.len()],
    }
}

fn is_admissible(addr: IpAddr) -> bool {
    !HOSTILE.iter().any(|hostile| IpAddr::V4(*hostile) == addr)
}

#[derive(Clone, Debug)]
enum Step {
    /// The upstream answers for this name (see [`Step::owner`]) with these addresses from now on.
    Answer {
        name: usize,
        addrs: BTreeSet<u8>,
        ttl: u32,
    },
    /// The same for the HTTPS record, with one hint.
    Point {
        hint: u8,
        ttl: u32,
    },
    /// A client asks for the addresses of one of [`NAMES`].
    Ask {
        name: usize,
        dnssec_ok: bool,
    },
    AskPointing,
    AskTarget,
    /// The upstream fails from now on, or no longer.
    Fail(bool),
    Pass(u64),
    Reload(usize),
}

impl Step {
    /// The name that owns the addresses of a number.
    fn owner(name: usize) -> &'static str {
        match NAMES.get(name) {
            Some(&"alias.listed.example") => EDGE,
            Some(name) => name,
            None => TARGET,
        }
    }
}

/// The longest of all TTLs.
const TTL_MAX: Duration = Duration::from_secs(3600);

fn ttl() -> impl Strategy<Value = u32> {
    prop_oneof![prop::sample::select(vec![0, 1, 2, 5, 30]), prop::sample::select(vec![60, 300, 3600])]
}

fn step() -> impl Strategy<Value = Step> {
    let answer = (0..=NAMES.len(), prop::collection::btree_set(0u8..11, 1..4), ttl())
        .prop_map(|(name, addrs, ttl)| Step::Answer { name, addrs, ttl });
    // Short steps around whole seconds, where rounding happens; some minutes; beyond every TTL.
    let millis = prop_oneof![
        5 => (0u64..4).prop_flat_map(|secs| prop::sample::select(vec![1, 499, 500, 999, 1000]).prop_map(move |ms| secs * 1000 + ms)),
        2 => 0u64..70_000,
        1 => 0u64..4_000_000,
    ];
    prop_oneof![
        3 => answer,
        1 => (0u8..11, ttl()).prop_map(|(hint, ttl)| Step::Point { hint, ttl }),
        8 => (0..NAMES.len(), any::<bool>()).prop_map(|(name, dnssec_ok)| Step::Ask { name, dnssec_ok }),
        2 => proptest::strategy::Just(Step::AskPointing),
        2 => proptest::strategy::Just(Step::AskTarget),
        1 => any::<bool>().prop_map(Step::Fail),
        6 => millis.prop_map(Step::Pass),
        1 => (0..LISTS.len()).prop_map(Step::Reload),
    ]
}

fn keeping() -> BoxedStrategy<(Duration, Duration)> {
    let span = |secs: Vec<u64>| prop::sample::select(secs).prop_map(Duration::from_secs);
    (span(vec![0, 0, 1, 600]), span(vec![0, 0, 5, 300])).boxed()
}

/// What clients were told.
struct Model {
    min_hold: Duration,
    grace: Duration,
    /// Answers told for a second may have been refused: they promise nothing.
    has_caps: bool,
    list: usize,
    told: BTreeMap<(String, IpAddr), Told>,
    /// Until when the target of [`POINTING`] must be followed.
    follows_until: Timestamp,
    /// Until when it may be.
    may_follow_until: Timestamp,
}

#[derive(Clone, Copy, Default)]
struct Told {
    must_until: Timestamp,
    may_until: Timestamp,
}

impl Model {
    /// Whether the list of the moment has a name, as one reads it.
    fn lists(&self, name: &str) -> bool {
        let is_below = |zone: &str| name == zone || name.ends_with(&format!(".{zone}"));
        match self.list {
            0 => is_below("listed.example"),
            1 => is_below("listed.example") || is_below("second.example"),
            2 => is_below("second.example") || name == "a.listed.example",
            _ => is_below("listed.example") && !is_below("b.listed.example") && !is_below("www.listed.example"),
        }
    }

    /// A client was given this answer, which is learned for `name`.
    fn tell(&mut self, name: &str, answer: &Message, now: Timestamp, must: bool) {
        for (addr, ttl_secs) in told(answer).into_iter().filter(|(addr, _)| is_admissible(*addr)) {
            let ttl = Duration::from_secs(u64::from(ttl_secs));
            let entry = self.told.entry((name.to_owned(), addr)).or_default();
            if must && !(self.has_caps && ttl_secs <= 1) {
                entry.must_until = entry.must_until.max(now.after(ttl));
            }
            // What is known of a refused answer is renewed for its TTL, though the client is told a second.
            let longest = if self.has_caps && ttl_secs <= 1 { TTL_MAX } else { ttl };
            let may = (longest + Duration::from_secs(1)).max(self.min_hold) + self.grace;
            entry.may_until = entry.may_until.max(now.after(may));
        }
    }

    /// A client was told of the target for so long.
    fn follow(&mut self, ttl_secs: u32, now: Timestamp) {
        let ttl = Duration::from_secs(u64::from(ttl_secs.max(1)));
        self.follows_until = self.follows_until.max(now.after(ttl));
        // Ages are rounded down; and an answer whose hints were refused is told for less than its record lives.
        let longest = if self.has_caps { TTL_MAX } else { ttl };
        self.may_follow_until = self.may_follow_until.max(now.after(longest + Duration::from_secs(1)));
    }

    fn reload(&mut self, list: usize) {
        self.list = list;
        let gone: Vec<_> = self.told.keys().filter(|(name, _)| !self.lists(name)).cloned().collect();
        gone.iter().for_each(|key| {
            self.told.remove(key);
        });
        if !self.lists(POINTING) {
            (self.follows_until, self.may_follow_until) = Default::default();
        }
    }

    fn check(&self, stage: &Stage) -> Result<(), TestCaseError> {
        let (now, set) = (stage.clock.now(), stage.set());
        for ((name, addr), told) in &self.told {
            let is_there = set.host(*addr).is_some();
            prop_assert!(
                is_there || told.must_until <= now,
                "{addr} of {name} is lost, told until {}",
                told.must_until
            );
        }
        for host in set.hosts() {
            prop_assert!(is_admissible(host.addr()), "{} was learned", host.addr());
            for sighting in host.sightings() {
                let name = sighting.name().to_string();
                let told = self.told.get(&(name.trim_end_matches('.').to_owned(), host.addr()));
                let may_until = told.map(|told| told.may_until).unwrap_or_default();
                prop_assert!(may_until > now, "{} stays for {name}, which may hold it until {may_until}", host.addr());
            }
        }
        Ok(())
    }
}

/// Plays the steps and holds the set against the model after each.
async fn play(steps: &[Step], options: learn::Options, has_caps: bool) -> Result<(), TestCaseError> {
    let lists = |list: usize| BTreeMap::from([("demo".to_owned(), LISTS[list].to_owned())]);
    let mut stage = Stage::start(&lists(0), options.clone(), AHEAD).await.unwrap();
    let (min_hold, grace) = (options.min_hold, options.grace);
    let (follows_until, may_follow_until) = Default::default();
    let mut model =
        Model { min_hold, grace, has_caps, list: 0, told: BTreeMap::new(), follows_until, may_follow_until };
    {
        let mut zone = stage.zone.lock().unwrap();
        zone.set("alias.listed.example", CNAME, vec![wire_name(EDGE)], 60);
        for name in 0..=NAMES.len() {
            zone.set(Step::owner(name), A, vec![addr(name as u8).octets().to_vec()], 60);
        }
        zone.set(POINTING, HTTPS, vec![pointing(6)], 60);
    }
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Answer { name, addrs, ttl } => {
                let rdata = addrs.iter().map(|n| addr(*n).octets().to_vec()).collect();
                stage.zone.lock().unwrap().set(Step::owner(*name), A, rdata, *ttl);
            }
            Step::Point { hint, ttl } => {
                stage.zone.lock().unwrap().set(POINTING, HTTPS, vec![pointing(*hint)], *ttl);
            }
            Step::Ask { name, dnssec_ok } => {
                let answer = ask(&stage, NAMES[*name], RecordType::A, *dnssec_ok).await;
                prop_assert_eq!(
                    tag(&answer).is_some(),
                    model.lists(NAMES[*name]),
                    "{} after step {}",
                    NAMES[*name],
                    at
                );
                if model.lists(NAMES[*name]) {
                    model.tell(NAMES[*name], &answer, stage.clock.now(), true);
                }
            }
            Step::AskPointing => {
                let answer = ask(&stage, POINTING, RecordType::HTTPS, false).await;
                if model.lists(POINTING) {
                    let now = stage.clock.now();
                    model.tell(POINTING, &answer, now, true);
                    if let Some(record) = answer.answers.first() {
                        model.follow(record.ttl, now);
                    }
                }
            }
            Step::AskTarget => {
                let answer = ask(&stage, TARGET, RecordType::A, false).await;
                let now = stage.clock.now();
                prop_assert!(tag(&answer).is_none());
                if now < model.may_follow_until {
                    model.tell(POINTING, &answer, now, now < model.follows_until);
                }
            }
            Step::Fail(is_failing) => {
                stage.zone.lock().unwrap().trouble = is_failing.then_some(Trouble::Fails(2, None));
            }
            Step::Pass(millis) => stage.pass(Duration::from_millis(*millis)).await,
            Step::Reload(list) => {
                stage.reload(&lists(*list), options.clone(), AHEAD).await.unwrap();
                model.reload(*list);
            }
        }
        prop_assert!(stage.set().hosts().count() <= options.max_total);
        model.check(&stage).map_err(|error| TestCaseError::fail(format!("after step {at}, {step:?}: {error}")))?;
    }
    Ok(())
}

fn pointing(hint: u8) -> Vec<u8> {
    let mut rdata = vec![0, 1];
    rdata.extend(wire_name(TARGET));
    rdata.extend([0, 4, 0, 4]);
    rdata.extend(addr(hint).octets());
    rdata
}

async fn ask(stage: &Stage, name: &str, rtype: RecordType, dnssec_ok: bool) -> Message {
    let mut query = question(name, rtype);
    query.edns.as_mut().unwrap().set_dnssec_ok(dnssec_ok);
    stage.ask(&query, Ipv4Addr::LOCALHOST).await
}

fn run(steps: &[Step], options: learn::Options, has_caps: bool) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(play(steps, options, has_caps))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_clients_were_told_is_in_the_set_as_long_as_they_were_told(
        steps in prop::collection::vec(step(), 1..60),
        (min_hold, grace) in keeping(),
    ) {
        run(&steps, learn::Options { min_hold, grace, ..options() }, false)?;
    }

    #[test]
    fn a_full_set_keeps_every_promise_that_it_made(
        steps in prop::collection::vec(step(), 1..60),
        (min_hold, grace) in keeping(),
        (max_total, max_per_name, max_per_trigger) in (1usize..6, 1usize..4, 1usize..6),
        new_per_client_per_minute in prop::sample::select(vec![0, 3, 20]),
    ) {
        let options = learn::Options {
            min_hold, grace, max_total, max_per_name, max_per_trigger, new_per_client_per_minute, ..options()
        };
        run(&steps, options, true)?;
    }
}
