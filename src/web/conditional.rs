//! Conditional requests (RFC 9110 §13) and the validators that stand beside a representation (§8.8).
//!
//! [`Validators`] describe what would be sent: an entity tag, strong, one a content coding (§8.8.3.3), and the date of
//! the last change. [`Validators::check`] says what a request's preconditions make of it, before anything is rendered.
//!
//! A date counts whole seconds, the set changes more often. [`Dates`] therefore gives a serial a date later than any
//! second in which an older serial was still handed out: a consumer that asks by date alone, be it with the date that
//! we gave it or with the time of its last fetch, never gets "not modified" for a list that it does not have.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::header::{HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
use parking_lot::Mutex;

use super::coding::Coding;
use crate::clock::Timestamp;

/// What a representation is told apart by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Validators {
    /// The opaque part of the entity tag without coding and quotes.
    pub(super) tag: String,
    /// The second of the last change, if one is known.
    pub(super) modified_secs: Option<u64>,
}

/// What the preconditions of a request come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Send the representation.
    Send,
    /// The consumer has it, in this coding: 304.
    NotModified(Coding),
    /// A precondition failed: 412.
    Failed,
}

impl Validators {
    /// Returns the entity tag of the representation in this coding.
    pub(super) fn etag(&self, coding: Coding) -> String {
        format!("\"{}{}\"", self.tag, coding.tag_suffix())
    }

    /// Evaluates the preconditions of a GET or HEAD in the order of RFC 9110 §13.2.2.
    ///
    /// A consumer may name the tag of either coding: each is a current representation, so "not modified" is told with
    /// the tag that it named. Dates that do not parse, or lie ahead of our clock, are ignored.
    pub(super) fn check(&self, request: &HeaderMap, now: Timestamp) -> Verdict {
        if request.contains_key(IF_MATCH) {
            if self.named(request, IF_MATCH, Compare::Strong).is_none() {
                return Verdict::Failed;
            }
        } else if let (Some(since), Some(modified)) = (date(request, IF_UNMODIFIED_SINCE), self.modified_secs)
            && modified > since
        {
            return Verdict::Failed;
        }
        if request.contains_key(IF_NONE_MATCH) {
            // Present, even if malformed, it alone decides (§13.1.3).
            return self.named(request, IF_NONE_MATCH, Compare::Weak).map_or(Verdict::Send, Verdict::NotModified);
        }
        match (date(request, IF_MODIFIED_SINCE), self.modified_secs) {
            (Some(since), Some(modified)) if modified <= since && since <= now.as_secs() => {
                Verdict::NotModified(Coding::Identity)
            }
            _ => Verdict::Send,
        }
    }

    /// Returns the coding whose tag the field names; `*` names any.
    fn named(&self, request: &HeaderMap, field: HeaderName, compare: Compare) -> Option<Coding> {
        let lines = request.get_all(field);
        let tags: Vec<Tag<'_>> = lines.iter().flat_map(|line| tags(line.as_bytes())).collect();
        Coding::ALL.into_iter().find(|coding| {
            let own = self.etag(*coding);
            tags.iter().any(|tag| match tag {
                Tag::Any => true,
                Tag::Weak(text) => compare == Compare::Weak && *text == own.as_bytes(),
                Tag::Strong(text) => *text == own.as_bytes(),
            })
        })
    }
}

/// How entity tags are compared (RFC 9110 §8.8.3.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compare {
    Strong,
    Weak,
}

/// One member of `If-None-Match`, quotes included.
enum Tag<'a> {
    Any,
    Strong(&'a [u8]),
    Weak(&'a [u8]),
}

/// Reads a list of entity tags up to the first thing that is none; a comma may stand inside quotes.
fn tags(mut text: &[u8]) -> Vec<Tag<'_>> {
    let mut found = Vec::new();
    if text.trim_ascii() == b"*" {
        return vec![Tag::Any];
    }
    loop {
        while let [b' ' | b'\t' | b',', rest @ ..] = text {
            text = rest;
        }
        let (is_weak, quoted) = match text.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, text),
        };
        let Some(inner) = quoted.strip_prefix(b"\"") else { return found };
        let Some(len) = inner.iter().position(|octet| *octet == b'"') else { return found };
        let (tag, rest) = quoted.split_at(len + 2);
        found.push(if is_weak { Tag::Weak(tag) } else { Tag::Strong(tag) });
        text = rest;
    }
}

/// Reads an HTTP date in any of its three forms, as seconds since the epoch; `None` if there is not exactly one.
fn date(request: &HeaderMap, field: HeaderName) -> Option<u64> {
    let mut lines = request.get_all(field).iter();
    let line = lines.next()?.to_str().ok()?;
    if lines.next().is_some() {
        return None;
    }
    let date = httpdate::parse_http_date(line.trim()).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|span| span.as_secs())
}

/// Prints seconds since the epoch as an HTTP date; `None` after the year 9999, which the form cannot hold.
pub(super) fn http_date(secs: u64) -> Option<String> {
    const YEAR_10000: u64 = 253_402_300_800;
    let time: SystemTime = UNIX_EPOCH.checked_add(Duration::from_secs(secs))?;
    (secs < YEAR_10000).then(|| httpdate::fmt_http_date(time))
}

/// Which second stands for which serial; one for all representations of the set.
#[derive(Debug, Default)]
pub(super) struct Dates(Mutex<Dated>);

#[derive(Debug, Default)]
struct Dated {
    version: Option<(u64, u64)>,
    modified_secs: u64,
    /// The last second in which `version` was handed out.
    served_secs: u64,
}

impl Dates {
    /// Notes that `version` (session, serial), which came at `changed`, is handed out now; returns its date.
    ///
    /// The date may lie up to a second ahead; what is printed is cut at `now` and then validates nothing yet.
    pub(super) fn of(&self, version: (u64, u64), changed: Timestamp, now: Timestamp) -> u64 {
        let mut dated = self.0.lock();
        if dated.version != Some(version) {
            // The first serial of all replaces none that we gave out.
            let after = if dated.version.is_some() { dated.served_secs + 1 } else { 0 };
            dated.modified_secs = changed.as_secs().max(after);
            dated.version = Some(version);
        }
        dated.served_secs = dated.served_secs.max(now.as_secs());
        dated.modified_secs
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    fn validators() -> Validators {
        Validators { tag: "00ab-7".to_owned(), modified_secs: Some(999_000) }
    }

    fn check(fields: &[(HeaderName, &str)]) -> Verdict {
        let mut request = HeaderMap::new();
        for (name, value) in fields {
            request.append(name, HeaderValue::from_str(value).unwrap());
        }
        validators().check(&request, NOW)
    }

    const HAVE: Verdict = Verdict::NotModified(Coding::Identity);

    #[test]
    fn tag_in_a_list_matches_weakly() {
        for value in ["\"00ab-7\"", "W/\"00ab-7\"", "\"x\", \"00ab-7\"", "\"x,y\",W/\"z\" ,\t\"00ab-7\"", "*", " * "] {
            assert_eq!(check(&[(IF_NONE_MATCH, value)]), HAVE, "{value}");
        }
        assert_eq!(check(&[(IF_NONE_MATCH, "\"x\""), (IF_NONE_MATCH, "\"00ab-7\"")]), HAVE);
        assert_eq!(check(&[(IF_NONE_MATCH, "\"00ab-7-gz\"")]), Verdict::NotModified(Coding::Gzip));
    }

    #[test]
    fn other_tag_or_garbage_does_not_match() {
        for value in ["\"00ab-8\"", "00ab-7", "\"00ab-7", "", "\"x\" * \"00ab-7\"", "w/\"00ab-7\"", "\"*\""] {
            assert_eq!(check(&[(IF_NONE_MATCH, value)]), Verdict::Send, "{value}");
        }
    }

    #[test]
    fn date_is_ignored_beside_a_tag() {
        let fresh = &*http_date(999_500).unwrap();
        assert_eq!(check(&[(IF_MODIFIED_SINCE, fresh)]), HAVE);
        assert_eq!(check(&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, fresh)]), Verdict::Send);
    }

    #[test]
    fn date_decides_by_the_second() {
        assert_eq!(check(&[(IF_MODIFIED_SINCE, &http_date(999_000).unwrap())]), HAVE);
        assert_eq!(check(&[(IF_MODIFIED_SINCE, &http_date(998_999).unwrap())]), Verdict::Send);
        assert_eq!(check(&[(IF_MODIFIED_SINCE, "yesterday")]), Verdict::Send);
        assert_eq!(check(&[(IF_MODIFIED_SINCE, &http_date(1_000_001).unwrap())]), Verdict::Send);
    }

    #[test]
    fn precondition_on_another_state_fails() {
        assert_eq!(check(&[(IF_MATCH, "\"x\"")]), Verdict::Failed);
        assert_eq!(check(&[(IF_MATCH, "W/\"00ab-7\"")]), Verdict::Failed);
        assert_eq!(check(&[(IF_MATCH, "*")]), Verdict::Send);
        assert_eq!(check(&[(IF_UNMODIFIED_SINCE, &http_date(998_999).unwrap())]), Verdict::Failed);
        assert_eq!(check(&[(IF_UNMODIFIED_SINCE, &http_date(999_000).unwrap())]), Verdict::Send);
    }

    #[test]
    fn serial_of_the_same_second_gets_a_later_date() {
        let dates = Dates::default();
        let at = Timestamp::from_millis;
        assert_eq!(dates.of((1, 1), at(10_200), at(10_300)), 10);
        assert_eq!(dates.of((1, 1), at(10_200), at(10_900)), 10);
        // A consumer was served serial 1 in second 10: asking with that date it must not miss serial 2.
        assert_eq!(dates.of((1, 2), at(10_950), at(10_980)), 11);
        assert_eq!(dates.of((1, 3), at(60_000), at(61_000)), 60);
    }
}
