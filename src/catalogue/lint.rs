//! What is allowed in a list and looks wrong, and what a name may not open.
//!
//! [`reach`] asks of one trigger how far it opens: a public suffix of the ICANN section (`com`, `co.uk`) is refused;
//! one of the private section (`firebaseapp.com`), under which strangers get names of their own, and a short list
//! of whole clouds are warned of. The rest looks at the catalogue as a whole: triggers that repeat or lie inside
//! another of the same app, exceptions without effect, review dates gone by. [`Counts`] counts each sort.
//!
//! A *pair* of overlapping triggers is an inner one and an outer one of the same app, where the outer covers all
//! that the inner one opens and no `!` stands between: `a.b.example` counts twice if both `b.example` and `example`
//! are listed too.

use std::collections::HashMap;
use std::sync::LazyLock;

use psl::Psl;
use smallvec::SmallVec;

use super::draft::{Draft, Place};
use super::index::{Around, Go, Index, RuleId};
use super::trigger::{Found, Kind, Trigger};
use crate::name::Name;

/// Names that open a whole cloud, and who can be reached there. Kept short: what the lists of vendors really name,
/// and their likes. Suffixes that the public suffix list knows need no entry.
const CLOUDS: [(&str, &str); 49] = [
    ("adobe.com", "a whole vendor with hosted customer content"),
    ("akamai.net", "a content network that serves any customer"),
    ("akamaiedge.net", "a content network that serves any customer"),
    ("amazonaws.com", "a cloud where anyone can host"),
    ("appdynamics.com", "collects data for the account of anyone"),
    ("apple.com", "a whole vendor with hosted user content"),
    ("azure.com", "a cloud where anyone can host"),
    ("azure.net", "a cloud where anyone can host"),
    ("bam.nr-data.net", "collects data for the account of anyone"),
    ("box.com", "file sharing open to anyone"),
    ("cloudflare.net", "a content network that serves any customer"),
    ("core.windows.net", "storage that anyone can rent"),
    ("data.logentries.com", "collects data for the account of anyone"),
    ("digicert.com", "a certificate authority with services for any customer"),
    ("documentforce.com", "files of any customer"),
    ("dropbox.com", "file sharing open to anyone"),
    ("dropboxusercontent.com", "files that anyone can upload"),
    ("edgekey.net", "a content network that serves any customer"),
    ("edgesuite.net", "a content network that serves any customer"),
    ("eum-appdynamics.com", "collects data for the account of anyone"),
    ("facebook.com", "a network where anyone can post"),
    ("fastly.net", "a content network that serves any customer"),
    ("firebaseio.com", "databases that anyone can make"),
    ("force.com", "sites and apps of any customer"),
    ("github.com", "code and files that anyone can upload"),
    ("githubusercontent.com", "files that anyone can upload"),
    ("godaddy.com", "a registrar and web host for anyone"),
    ("google-analytics.com", "collects data for the account of anyone"),
    ("google.com", "search, mail, sites, forms and drives of anyone"),
    ("googleapis.com", "storage and interfaces of every Google cloud customer"),
    ("googleusercontent.com", "files and machines of any Google customer"),
    ("icloud-content.com", "files that anyone can upload"),
    ("icloud.com", "mail and drives of anyone"),
    ("identrust.com", "a certificate authority with services for any customer"),
    ("internap.net", "a hosting provider's network"),
    ("internapcdn.net", "a content network that serves any customer"),
    ("live.com", "mail and drives of anyone"),
    ("microsoft.com", "a whole vendor with hosted customer content"),
    ("newrelic.com", "collects data for the account of anyone"),
    ("nr-data.net", "collects data for the account of anyone"),
    ("office.com", "a whole vendor with forms of anyone"),
    ("office365.com", "mail of any customer"),
    ("onedrive.com", "drives of anyone"),
    ("outlook.com", "mail of anyone"),
    ("quovadisglobal.com", "a certificate authority with services for any customer"),
    ("salesforce.com", "sites and apps of any customer"),
    ("sharepoint.com", "files of any Microsoft 365 customer"),
    ("trafficmanager.net", "names that anyone can rent"),
    ("windows.net", "a cloud where anyone can host"),
];

/// How many warnings there are of each sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pairs of an inner and an outer trigger of the same app.
    pub overlaps: usize,
    /// Triggers under which strangers can register or host, whole clouds among them.
    pub strangers: usize,
    /// Triggers that stand twice in a file.
    pub repeats: usize,
    /// Triggers without effect: a `!` with nothing around it, or one at the very name of another.
    pub idle: usize,
    /// Review dates gone by.
    pub reviews: usize,
}

impl Counts {
    /// Adds another's counts.
    pub(super) fn add(&mut self, other: &Self) {
        self.overlaps += other.overlaps;
        self.strangers += other.strangers;
        self.repeats += other.repeats;
        self.idle += other.idle;
        self.reviews += other.reviews;
    }
}

/// How far a trigger opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// No further than its owner's names, for all that is known.
    Own,
    /// Names that strangers can get, for the reason given.
    Strangers(String),
    /// A whole registry of the ICANN section.
    PublicSuffix(Name),
}

/// Asks the public suffix list and the table of clouds about a trigger.
pub(super) fn reach(trigger: &Trigger) -> Reach {
    // An exception opens nothing; a name alone opens no more than itself.
    if matches!(trigger.kind, Kind::Never | Kind::Exact) {
        return Reach::Own;
    }
    let suffix = public_suffix(&trigger.name);
    if suffix == Some(psl::Type::Icann) {
        return Reach::PublicSuffix(trigger.name.clone());
    }
    if let Some(reason) = cloud(&trigger.name) {
        return Reach::Strangers(reason.to_owned());
    }
    match suffix {
        Some(_) => Reach::Strangers("a public suffix of the private section (publicsuffix.org)".to_owned()),
        None => Reach::Own,
    }
}

/// Returns the section of the public suffix list that has this very name, or every name right below it.
fn public_suffix(name: &Name) -> Option<psl::Type> {
    let labels: SmallVec<[&[u8]; 8]> = name.labels().collect();
    let len = name.as_wire().len().saturating_sub(2);
    // One kind of iterator for both questions: each kind would be another copy of the whole list, which is code.
    let find = |below: Option<&'static [u8]>| psl::List.find(labels.iter().rev().copied().chain(below));
    let below = find(Some(b"x"));
    let own = if below.len == len + 2 { find(None) } else { below };
    match (below.typ, own.typ) {
        (_, Some(psl::Type::Icann)) if own.len == len => own.typ,
        // A rule `*.ck` makes `ck` the parent of suffixes, and so at least as wide as one.
        (Some(typ), _) if below.len == len + 2 => Some(typ),
        (_, Some(typ)) if own.len == len => Some(typ),
        _ => None,
    }
}

/// Looks a name up in the table of clouds.
fn cloud(name: &Name) -> Option<&'static str> {
    static BY_NAME: LazyLock<HashMap<Name, &'static str>> = LazyLock::new(|| {
        // A test holds that every entry is a name.
        CLOUDS.iter().filter_map(|&(cloud, reason)| Some((Name::parse(cloud).ok()?, reason))).collect()
    });
    BY_NAME.get(name).copied()
}

pub(super) fn public_suffix_message(written: &Found, suffix: &Name) -> String {
    format!(
        "`{written}`: `{suffix}` is a public suffix and would open the names of all who register there, expected a name below it"
    )
}

pub(super) fn strangers_message(written: &Found, reason: &str) -> String {
    format!("`{written}` opens names of strangers: {reason}; list the names that the app needs")
}

/// Returns the candidate that was probably meant, if one is near enough.
pub(super) fn near_miss<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // More than a third of the letters wrong is another word.
    let edits_max = (found.chars().count() / 3).clamp(1, 3);
    let rated = candidates.into_iter().map(|candidate| (strsim::damerau_levenshtein(found, candidate), candidate));
    rated.min().filter(|&(edits, _)| edits <= edits_max).map(|(_, candidate)| candidate)
}

/// Warns of each trigger of `draft` that another of the same app makes needless, or that has no effect.
/// `rules` holds the rule of each of its names, `NONE` where the name was a repeat.
pub(super) fn check_names(draft: &mut Draft, rules: &[Option<RuleId>], first: RuleId, index: &Index) {
    // Rule ids of one app are consecutive; this finds the line of a rule.
    let mut line_of_rule: Vec<u32> = Vec::with_capacity(rules.len());
    for (line, rule) in rules.iter().enumerate() {
        if rule.is_some() {
            line_of_rule.push(line as u32);
        }
    }
    let mut found: Vec<(u32, u32, Clash)> = Vec::new();
    for (line, rule) in rules.iter().enumerate() {
        let Some(rule) = *rule else { continue };
        clashes(rule, draft.names[line].kind, index, |other, clash| {
            let other_line = other.and_then(|id| line_of_rule.get((id - first) as usize).copied());
            found.push((line as u32, other_line.unwrap_or(line as u32), clash));
        });
    }
    for (line, other, clash) in found {
        let (inner, outer) = (&draft.names[line as usize], &draft.names[other as usize]);
        let (place, outer_line) = (inner.place, outer.place.line);
        let (inner, outer) =
            (Found::new(inner.written.of(&draft.written)), Found::new(outer.written.of(&draft.written)));
        let message = match clash {
            Clash::Inside => {
                format!("`{inner}` lies inside `{outer}` (line {outer_line}), which covers it; one of them is enough")
            }
            Clash::Overruled => {
                format!("`{inner}` has no effect: `{outer}` (line {outer_line}) stands at the same name and wins")
            }
            Clash::Lone => format!("`{inner}` excepts nothing: no trigger of this list lies above it"),
        };
        match clash {
            Clash::Inside => draft.counts.overlaps += 1,
            Clash::Overruled | Clash::Lone => draft.counts.idle += 1,
        }
        draft.warn(place, message);
    }
}

/// What is the matter between two triggers of an app.
#[derive(Clone, Copy)]
enum Clash {
    Inside,
    Overruled,
    Lone,
}

/// Finds what other triggers of its app do to a trigger.
fn clashes(rule: RuleId, kind: Kind, index: &Index, mut tell: impl FnMut(Option<RuleId>, Clash)) {
    let mut has_outer = false;
    index.visit_around(rule, |other, it, around| match (around, it.kind) {
        // All that stands at the same name as a `!` is void: it wins over each kind there and covers all names.
        (Around::Same, Kind::Never) => {
            tell(Some(other), Clash::Overruled);
            Go::Stop
        }
        (Around::Same, Kind::Suffix) if kind != Kind::Never => {
            tell(Some(other), Clash::Inside);
            Go::On
        }
        (Around::Same, _) => {
            has_outer = true;
            Go::On
        }
        // What a `!` closes may be opened again further down; a second `!` closes nothing more.
        (Around::Above, Kind::Never) => {
            if kind == Kind::Never {
                has_outer = true;
                tell(Some(other), Clash::Inside);
            }
            Go::Stop
        }
        (Around::Above, Kind::Suffix | Kind::Below) => {
            has_outer = true;
            if kind == Kind::Never {
                return Go::Stop;
            }
            tell(Some(other), Clash::Inside);
            Go::On
        }
        (Around::Above, Kind::Exact) => Go::On,
    });
    if kind == Kind::Never && !has_outer {
        tell(None, Clash::Lone);
    }
}

/// Warns of prefixes that stand twice or inside another of the same file, and sorts them.
pub(super) fn check_prefixes(draft: &mut Draft) {
    draft.prefixes.sort_by_key(|line| (line.prefix, line.place.line, line.place.col));
    let mut notes: Vec<(Place, String)> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut is_repeat = vec![false; draft.prefixes.len()];
    for (i, line) in draft.prefixes.iter().enumerate() {
        while open.last().is_some_and(|&outer| !draft.prefixes[outer].prefix.covers(&line.prefix)) {
            open.pop();
        }
        if let Some(outer) =
            open.last().map(|&outer| &draft.prefixes[outer]).filter(|outer| outer.prefix == line.prefix)
        {
            notes.push((line.place, repeat_message(&Found::new(line.written.of(&draft.written)), outer.place.line)));
            is_repeat[i] = true;
            draft.counts.repeats += 1;
            continue;
        }
        for &outer in &open {
            let outer = &draft.prefixes[outer];
            let message = format!(
                "{} lies inside {} (line {}), which covers it; one of them is enough",
                line.prefix, outer.prefix, outer.place.line
            );
            notes.push((line.place, message));
        }
        draft.counts.overlaps += open.len();
        open.push(i);
    }
    let mut repeats = is_repeat.into_iter();
    draft.prefixes.retain(|_| !repeats.next().unwrap_or(false));
    for (place, message) in notes {
        draft.warn(place, message);
    }
}

pub(super) fn repeat_message(written: &Found, first_line: u32) -> String {
    format!("`{written}` stands on line {first_line} already; one of them is enough")
}

/// Warns of a review date that has gone by.
pub(super) fn check_review(draft: &mut Draft, today: jiff::civil::Date) {
    let Some(review_by) = draft.keys.review_by.clone().filter(|review_by| review_by.value < today) else { return };
    let date = review_by.value;
    let place = Place { line: review_by.location.line, col: review_by.location.col };
    draft.counts.reviews += 1;
    draft.warn(
        place,
        format!("review-by {date} has gone by, today is {today}; compare the list with its source and set a new date"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach_of(text: &str) -> Reach {
        reach(&text.parse().unwrap())
    }

    #[test]
    fn clouds_are_sorted_names_and_each_is_found() {
        assert!(CLOUDS.is_sorted());
        for (cloud, reason) in CLOUDS {
            assert_eq!(reach_of(cloud), Reach::Strangers(reason.to_owned()));
            assert_eq!(reach_of(&format!("=one.{cloud}")), Reach::Own);
        }
    }

    #[test]
    fn public_suffixes_are_told_by_section() {
        for text in ["com", "co.uk", "*.com", "ck", "*.ck", "x.ck", "kobe.jp", "xn--p1ai", "bd", "aero"] {
            assert!(matches!(reach_of(text), Reach::PublicSuffix(_)), "{text}");
        }
        for text in
            ["firebaseapp.com", "*.github.io", "s3.amazonaws.com", "compute.amazonaws.com", "blob.core.windows.net"]
        {
            assert!(matches!(reach_of(text), Reach::Strangers(_)), "{text}");
        }
        for text in
            ["zoom.us", "www.ck", "city.kobe.jp", "corp", "goto-desktop.s3.amazonaws.com", "=com", "!com", "a.b.x.ck"]
        {
            assert_eq!(reach_of(text), Reach::Own, "{text}");
        }
    }

    #[test]
    fn near_misses_are_near() {
        assert_eq!(near_miss("titel", ["title", "source"]), Some("title"));
        assert_eq!(near_miss("colour", ["title", "source"]), None);
        assert_eq!(near_miss("", ["a"]), Some("a"));
        assert_eq!(near_miss("x", []), None);
    }
}
