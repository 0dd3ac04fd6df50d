//! What a resolver tells, read as it comes: `/delta`'s object and the three events of `/watch`.
//!
//! ```text
//!   {"session":…,"serial":…,"reset":…,"announced":[item,…],"withdrawn":[item,…]}   Told::Delta
//!   {"session":…,"renewed":[{"address":…,"end":…},…]}                             Told::Renewed
//!   {"follower":…,"mark":…}                                                       Told::Hold
//! ```
//! Items pass the [`Gate`] one by one while they are read, so what is refused or beyond the bounds takes no memory; it is
//! counted. An object that breaks off, lacks something or holds a malformed item is an error as a whole: nobody acts
//! on half a set. Fields that we do not know are passed over.
//!
//! Ends are told in seconds of the resolver's clock; [`Theirs`] turns them into ours and cuts those that lie absurdly
//! far ahead.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::gate::{Gate, Refusals};
use crate::catalogue::AppId;
use crate::clock::Timestamp;
use crate::prefix::Prefix;
use crate::set::Session;

/// An end further ahead is cut: no TTL, hold and grace come to more, and a mistaken clock or a lie must not hold an
/// address for years.
pub(super) const AHEAD_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// The most apps kept for one item, and the longest id: they are shown, nothing hangs on them.
const APPS_MAX: usize = 16;
const APP_LEN_MAX: usize = 64;
/// The most different lists of apps in one object; items beyond have none.
const APP_LISTS_MAX: usize = 1024;

/// The longest name that a resolver may give us.
const FOLLOWER_LEN_MAX: usize = 64;

/// The apps of an item, shared.
pub(super) type Apps = Arc<[AppId]>;

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Delta(Box<Delta>),
    Renewed(Renewed),
    Hold(Ask),
}

/// The question when everything told before is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ask {
    /// Who we are to the resolver, for as long as the stream lasts: letters and digits.
    pub(super) follower: String,
    /// How far we were told.
    pub(super) mark: u64,
}

/// A change of the resolver's set, or all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    pub(super) session: u64,
    pub(super) serial: u64,
    /// Whether this is the whole set.
    pub(super) reset: bool,
    /// Hosts with their ends, each once.
    pub(super) hosts: HashMap<IpAddr, (Timestamp, Apps)>,
    /// Static prefixes.
    pub(super) statics: HashMap<Prefix, Apps>,
    pub(super) hosts_withdrawn: HashSet<IpAddr>,
    pub(super) statics_withdrawn: HashSet<Prefix>,
    pub(super) refused: Refusals,
}

/// Later ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Renewed {
    pub(super) session: u64,
    pub(super) ends: HashMap<IpAddr, Timestamp>,
}

/// The resolver's clock beside ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Theirs {
    /// Its time in milliseconds at a moment of ours; `None` if it does not say: then both clocks are taken as set.
    pub(super) seen: Option<(u64, Timestamp)>,
    /// Our time as something is read.
    pub(super) now: Timestamp,
}

impl Theirs {
    /// Compares the clocks: theirs, if it was told, and ours.
    pub(super) fn new(millis: Option<u64>, now: Timestamp) -> Self {
        Self { seen: millis.map(|millis| (millis, now)), now }
    }

    /// Returns the same for something read later: neither clock is ever set, so the difference stays.
    pub(super) fn at(self, now: Timestamp) -> Self {
        Self { now, ..self }
    }

    fn end(self, secs: u64) -> Timestamp {
        let told = secs.saturating_mul(1000);
        let end = match self.seen {
            None => told,
            // In this order, so that an end before their now is one before ours.
            Some((theirs, ours)) => ours.as_millis().saturating_add(told).saturating_sub(theirs),
        };
        Timestamp::from_millis(end).min(self.now.after(AHEAD_MAX))
    }
}

/// Why what came is no such object.
#[derive(Debug, Error)]
#[error("{0}")]
pub(super) struct Malformed(#[from] serde_json::Error);

impl Malformed {
    /// Returns whether reading failed, not what was read.
    pub(super) fn is_io(&self) -> bool {
        self.0.is_io() || self.0.is_eof()
    }
}

/// Reads one object; what follows it other than spaces is an error.
pub(super) fn read(input: impl Read, gate: &Gate, theirs: Theirs) -> Result<Told, Malformed> {
    let mut json = serde_json::Deserializer::from_reader(input);
    let told = Object { gate, theirs, apps: AppLists::default() }.deserialize(&mut json)?;
    json.end()?;
    Ok(told)
}

struct Object<'a> {
    gate: &'a Gate,
    theirs: Theirs,
    apps: AppLists,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Told;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Told, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Told;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a change or renewed ends")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Told, A::Error> {
        let mut delta = Delta::default();
        let mut renewed = Renewed::default();
        let mut ask = Ask::default();
        let mut seen = HashSet::new();
        while let Some(Field(field)) = map.next_key()? {
            if field != Known::Other && !seen.insert(field) {
                return Err(A::Error::custom("a field comes twice"));
            }
            match field {
                Known::Session => delta.session = map.next_value::<SessionText>()?.0,
                Known::Serial => delta.serial = map.next_value()?,
                Known::Reset => delta.reset = map.next_value()?,
                Known::Announced => {
                    map.next_value_seed(Items { object: &mut self, into: Place::Announced(&mut delta) })?
                }
                Known::Withdrawn => {
                    map.next_value_seed(Items { object: &mut self, into: Place::Withdrawn(&mut delta) })?
                }
                Known::Renewed => {
                    map.next_value_seed(Items { object: &mut self, into: Place::Renewed(&mut renewed) })?
                }
                Known::Follower => ask.follower = map.next_value::<FollowerText>()?.0,
                Known::Mark => ask.mark = map.next_value()?,
                Known::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let has = |fields: &[Known]| fields.iter().all(|field| seen.contains(field));
        if has(&[Known::Session, Known::Serial, Known::Reset, Known::Announced, Known::Withdrawn]) {
            return Ok(Told::Delta(Box::new(delta)));
        }
        if has(&[Known::Session, Known::Renewed]) {
            renewed.session = delta.session;
            return Ok(Told::Renewed(renewed));
        }
        if has(&[Known::Follower, Known::Mark]) {
            return Ok(Told::Hold(ask));
        }
        Err(A::Error::custom(
            "expected session, serial, reset, announced and withdrawn; session and renewed; or follower and mark",
        ))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Known {
    Session,
    Serial,
    Reset,
    Announced,
    Withdrawn,
    Renewed,
    Follower,
    Mark,
    Other,
}

/// The name of a field.
struct Field(Known);

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, |text| {
            Ok(Self(match text {
                "session" => Known::Session,
                "serial" => Known::Serial,
                "reset" => Known::Reset,
                "announced" => Known::Announced,
                "withdrawn" => Known::Withdrawn,
                "renewed" => Known::Renewed,
                "follower" => Known::Follower,
                "mark" => Known::Mark,
                _ => Known::Other,
            }))
        })
    }
}

struct SessionText(u64);

impl<'de> Deserialize<'de> for SessionText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, |text| Ok(Self(text.parse::<Session>().map_err(|error| error.to_string())?.0)))
    }
}

/// What we are called by a resolver: it goes into a URL as it stands.
struct FollowerText(String);

impl<'de> Deserialize<'de> for FollowerText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, |text| {
            let is_id = (1..=FOLLOWER_LEN_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
            is_id.then(|| Self(text.to_owned())).ok_or_else(|| "a follower that is not letters and digits".to_owned())
        })
    }
}

struct PrefixText(Prefix);

impl<'de> Deserialize<'de> for PrefixText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, |text| text.parse().map(Self).map_err(|error: crate::prefix::PrefixError| error.to_string()))
    }
}

/// Reads a string without copying it.
fn text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Text<F>(F);
    impl<T, F: Fn(&str) -> Result<T, String>> Visitor<'_> for Text<F> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("text")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            (self.0)(text).map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text(parse))
}

/// Where items go.
enum Place<'a> {
    Announced(&'a mut Delta),
    Withdrawn(&'a mut Delta),
    Renewed(&'a mut Renewed),
}

struct Items<'a, 'b> {
    object: &'a mut Object<'b>,
    into: Place<'a>,
}

#[derive(Deserialize)]
struct Item {
    prefix: Option<PrefixText>,
    address: Option<IpAddr>,
    #[serde(default)]
    apps: AppTexts,
    end: Option<u64>,
}

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of items")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element::<Item>()? {
            self.take(item).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

impl Items<'_, '_> {
    fn take(&mut self, item: Item) -> Result<(), &'static str> {
        let Self { object, into } = self;
        match (into, item.prefix, item.address) {
            (Place::Announced(delta), Some(PrefixText(prefix)), None) => {
                object.announce_static(delta, prefix, item.apps)
            }
            (Place::Announced(delta), None, Some(addr)) => {
                let end = object.theirs.end(item.end.ok_or("an address without an end")?);
                object.announce_host(delta, addr, end, item.apps);
            }
            (Place::Withdrawn(delta), Some(PrefixText(prefix)), None) => {
                if delta.statics_withdrawn.len() < object.gate.statics_max() {
                    delta.statics_withdrawn.insert(prefix);
                }
            }
            // What does not fit can be nothing that we hold.
            (Place::Withdrawn(delta), None, Some(addr)) => {
                if object.gate.check_host(addr).is_ok() && delta.hosts_withdrawn.len() < object.gate.hosts_max() {
                    delta.hosts_withdrawn.insert(addr);
                }
            }
            (Place::Renewed(renewed), None, Some(addr)) => {
                let end = object.theirs.end(item.end.ok_or("an address without an end")?);
                if object.gate.check_host(addr).is_ok() && renewed.ends.len() < object.gate.hosts_max() {
                    let known = renewed.ends.entry(addr).or_insert(end);
                    *known = end.max(*known);
                }
            }
            _ => return Err("an item is a prefix or an address"),
        }
        Ok(())
    }
}

impl Object<'_> {
    fn announce_static(&mut self, delta: &mut Delta, prefix: Prefix, apps: AppTexts) {
        let is_known = delta.statics.contains_key(&prefix);
        match self.gate.check_static(&prefix) {
            Ok(()) if is_known || delta.statics.len() < self.gate.statics_max() => {
                delta.statics.insert(prefix, self.apps.share(apps));
            }
            Ok(()) => delta.refused.count(super::gate::Refusal::FullStatics),
            Err(refusal) => delta.refused.count(refusal),
        }
    }

    fn announce_host(&mut self, delta: &mut Delta, addr: IpAddr, end: Timestamp, apps: AppTexts) {
        let known = delta.hosts.get(&addr).map(|(end, _)| *end);
        match self.gate.check_host(addr) {
            Ok(()) if known.is_some() || delta.hosts.len() < self.gate.hosts_max() => {
                delta.hosts.insert(addr, (end.max(known.unwrap_or(end)), self.apps.share(apps)));
            }
            Ok(()) => delta.refused.count(super::gate::Refusal::FullTotal),
            Err(refusal) => delta.refused.count(refusal),
        }
    }
}

/// App ids as they were sent, cut.
#[derive(Default)]
struct AppTexts(Vec<AppId>);

impl<'de> Deserialize<'de> for AppTexts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ids;
        impl<'de> Visitor<'de> for Ids {
            type Value = AppTexts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of apps")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut ids: A) -> Result<AppTexts, A::Error> {
                let mut kept = Vec::new();
                while let Some(id) = ids.next_element::<CutId>()? {
                    if kept.len() < APPS_MAX {
                        kept.push(id.0);
                    }
                }
                Ok(AppTexts(kept))
            }
        }
        deserializer.deserialize_seq(Ids)
    }
}

struct CutId(AppId);

impl<'de> Deserialize<'de> for CutId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, |text| Ok(Self(AppId::new(text.chars().take(APP_LEN_MAX).collect::<String>()))))
    }
}

/// Keeps equal lists of apps once.
#[derive(Default)]
struct AppLists(HashSet<Apps>);

impl AppLists {
    fn share(&mut self, apps: AppTexts) -> Apps {
        if let Some(known) = self.0.get(apps.0.as_slice()) {
            return Arc::clone(known);
        }
        if self.0.len() >= APP_LISTS_MAX {
            return Arc::from([]);
        }
        let apps: Apps = apps.0.into();
        self.0.insert(Arc::clone(&apps));
        apps
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::gate::testing::gate;
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const SAME: Theirs = Theirs { seen: None, now: NOW };

    fn delta(text: &str) -> Delta {
        match read(text.as_bytes(), &gate(), SAME) {
            Ok(Told::Delta(delta)) => *delta,
            other => panic!("{other:?}"),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn change_is_read_as_http_md_shows_it() {
        let text = r#"{"session":"d1c91a9d8040b95d","serial":559,"reset":true,"announced":[
            {"prefix":"20.50.235.0/24","origin":"static","apps":["webex"]},
            {"address":"8.8.0.114","origin":"learned","apps":["zoom"],"end":1800000900}
            ],"withdrawn":[{"address":"8.8.0.1","origin":"learned","apps":["zoom"]},
            {"prefix":"20.1.0.0/16","origin":"static","apps":[]}]}"#;
        let delta = delta(text);
        assert_eq!((delta.session, delta.serial, delta.reset), (0xd1c9_1a9d_8040_b95d, 559, true));
        assert_eq!(delta.statics[&"20.50.235.0/24".parse().unwrap()][0].as_str(), "webex");
        let (end, apps) = &delta.hosts[&ip("8.8.0.114")];
        assert_eq!((*end, apps[0].as_str()), (Timestamp::from_secs(1_800_000_900), "zoom"));
        assert!(delta.hosts_withdrawn.contains(&ip("8.8.0.1")));
        assert!(delta.statics_withdrawn.contains(&"20.1.0.0/16".parse().unwrap()));
    }

    #[test]
    fn renewed_ends_are_read() {
        let text = r#"{"session":"00000000000000ab","renewed":[{"address":"8.8.0.1","end":1800000001},{"address":"8.8.0.1","end":1}]}"#;
        let told = read(text.as_bytes(), &gate(), SAME).unwrap();
        let ends = HashMap::from([(ip("8.8.0.1"), Timestamp::from_secs(1_800_000_001))]);
        assert_eq!(told, Told::Renewed(Renewed { session: 0xab, ends }));
    }

    #[test]
    fn broken_objects_are_refused_whole() {
        let whole = r#"{"session":"00000000000000ab","serial":1,"reset":true,"announced":[{"address":"8.8.0.1","end":1800000001}],"withdrawn":[]}"#;
        assert!(read(whole.as_bytes(), &gate(), SAME).is_ok());
        for cut in 0..whole.len() {
            assert!(read(&whole.as_bytes()[..cut], &gate(), SAME).is_err(), "{cut}");
        }
        for text in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"session":"00000000000000ab","serial":1,"reset":true,"announced":[]}"#,
            r#"{"session":"00000000000000ab","serial":1,"announced":[],"withdrawn":[]}"#,
            r#"{"session":"ab","serial":1,"reset":true,"announced":[],"withdrawn":[]}"#,
            r#"{"session":"00000000000000ab","serial":-1,"reset":true,"announced":[],"withdrawn":[]}"#,
            r#"{"session":"00000000000000ab","serial":1,"reset":true,"announced":[{"address":"8.8.0.1"}],"withdrawn":[]}"#,
            r#"{"session":"00000000000000ab","serial":1,"reset":true,"announced":[{"address":"8.8.0.1","prefix":"8.8.0.1/32","end":1}],"withdrawn":[]}"#,
            r#"{"session":"00000000000000ab","serial":1,"reset":true,"announced":[{"address":"8.8.0.1/24","end":1}],"withdrawn":[]}"#,
            r#"{"session":"00000000000000ab","serial":1,"reset":true,"announced":[{"prefix":"8.8.0.1/24"}],"withdrawn":[]}"#,
            r#"{"session":"00000000000000ab","serial":1,"reset":true,"reset":false,"announced":[],"withdrawn":[]}"#,
            r#"{"session":"00000000000000ab","renewed":[{"prefix":"8.8.0.0/24","end":1}]}"#,
            r#"{"session":"00000000000000ab","renewed":[]} x"#,
        ] {
            assert!(read(text.as_bytes(), &gate(), SAME).is_err(), "{text}");
        }
    }

    #[test]
    fn ends_are_theirs_turned_into_ours_and_never_absurd() {
        let theirs = |millis| Theirs::new(millis, NOW);
        let an_hour_ahead = Some(NOW.as_millis() + 3_600_000);
        assert_eq!(theirs(an_hour_ahead).end(NOW.as_secs() + 3610), NOW.after(Duration::from_secs(10)));
        let an_hour_behind = Some(NOW.as_millis() - 3_600_000);
        assert_eq!(theirs(an_hour_behind).end(NOW.as_secs() - 3590), NOW.after(Duration::from_secs(10)));
        assert_eq!(theirs(None).end(NOW.as_secs() + 10), NOW.after(Duration::from_secs(10)));
        let later = NOW.after(Duration::from_secs(30 * 24 * 3600));
        assert_eq!(theirs(an_hour_ahead).at(later).end(later.as_secs() + 3610), later.after(Duration::from_secs(10)));
        for millis in [None, an_hour_behind, Some(0), Some(u64::MAX)] {
            assert!(theirs(millis).end(u64::MAX) <= NOW.after(AHEAD_MAX));
        }
    }

    #[test]
    fn items_beyond_the_bounds_take_no_room_and_are_counted() {
        let items: Vec<String> =
            (0..3000).map(|n| format!(r#"{{"address":"8.8.{}.{}","end":1800000001}}"#, n / 256, n % 256)).collect();
        let text = format!(
            r#"{{"session":"00000000000000ab","serial":1,"reset":true,"announced":[{}],"withdrawn":[]}}"#,
            items.join(",")
        );
        let delta = delta(&text);
        assert_eq!(delta.hosts.len(), gate().hosts_max());
        assert_eq!(delta.refused.of("max-total"), 3000 - gate().hosts_max() as u64);
    }

    proptest! {
        #[test]
        fn noise_is_an_error_and_nothing_worse(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(noise.as_slice(), &gate(), SAME);
        }

        #[test]
        fn damaged_objects_never_panic(at in 0_usize..400, octet: u8) {
            let mut text = br#"{"session":"00000000000000ab","serial":7,"reset":true,"announced":[{"prefix":"20.50.235.0/24","origin":"static","apps":["webex"]},{"address":"2606:4700::1","origin":"learned","apps":["zoom"],"end":1800000900}],"withdrawn":[{"address":"8.8.0.1","origin":"learned","apps":["zoom"]}]}"#.to_vec();
            let at = at % text.len();
            text[at] = octet;
            let _ = read(text.as_slice(), &gate(), SAME);
        }
    }
}
