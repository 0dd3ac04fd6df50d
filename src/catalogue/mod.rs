//! The bypass catalogue: lists, and the match of a name against them.
//!
//! `zones/` holds one file per app; the file's name is the app's id. [`load()`] reads them all into a [`Catalogue`],
//! or says everything that is wrong with them. A catalogue is immutable: a reload makes another, and a [`MatchId`]
//! of the one means nothing to the other.
//!
//! Each app decides alone, by its own most specific [`Trigger`]: the deepest one, and at equal depth `!`, then `=`,
//! then `*.`, then plain. A name carries every app that says yes ([`Tag`]). Names in `catalogue.never` speak for all
//! apps, from that name down and whatever a list has below. Lists of disabled apps are read and checked as the
//! others are, and match nothing.
//!
//! ```
//! use greenlane::catalogue::{Options, compile};
//! use greenlane::name::Name;
//!
//! let list = "# Example\nexample.com, !files.example.com\n*.example.net\n198.51.100.0/24\n";
//! let loaded = compile([("zones/example.list", list.as_bytes())], &Options::default(), jiff::civil::date(2026, 11, 24))?;
//! let catalogue = loaded.catalogue;
//!
//! let id = catalogue.find(&Name::parse("www.example.com")?).ok_or("listed")?;
//! assert_eq!(&*catalogue.tag(id).primary().trigger, "example.com");
//! assert_eq!(catalogue.find(&Name::parse("a.files.example.com")?), None);
//! assert_eq!(catalogue.find(&Name::parse("example.net")?), None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::civil::Date;

mod draft;
mod index;
mod lint;
mod list;
mod load;
mod master;
mod report;
mod rpz;
pub mod tag;
mod trigger;

#[cfg(test)]
mod tests;

pub use draft::MESSAGES_MAX;
pub use index::MatchId;
pub use lint::Counts;
pub use list::LINE_LEN_MAX;
pub use load::{FILE_LEN_MAX, LISTS_MAX, Loaded, TOTAL_LEN_MAX, compile, load};
pub use report::{Report, report};
pub use tag::{AppId, Tag, TagApp};
pub use trigger::{Entry, Found, Kind, Trigger, TriggerError, V4_LEN_MIN, V6_LEN_MIN};

use draft::{Place, Span};
use index::{Index, Rule, RuleId};

use crate::name::Name;
use crate::prefix::Prefix;
use crate::source::Location;

/// What the catalogue is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The folder of `.list` and `.rpz` files.
    pub path: PathBuf,
    /// Ids of apps whose lists are read and checked but match nothing.
    pub disabled: Vec<String>,
    /// Names that no app may bypass, from each name down.
    pub never: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { path: "zones".into(), disabled: Vec::new(), never: Vec::new() }
    }
}

/// One app: what its list says of itself, and how much it lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// The file's name without its ending.
    pub id: AppId,
    /// The list's title; the id if it has none.
    pub title: String,
    /// Where the list comes from, in its own words.
    pub source: Option<String>,
    /// When it was taken from there.
    pub retrieved: Option<Date>,
    /// When it wants to be looked at again.
    pub review_by: Option<Date>,
    /// Why its names are bypassed.
    pub reason: Option<String>,
    /// The file as the user would name it.
    pub file: Arc<str>,
    /// All its triggers, each once: `name_count + exception_count + prefix_count`.
    pub trigger_count: usize,
    /// Triggers that open names: plain, `=` and `*.`.
    pub name_count: usize,
    /// Triggers that close names: `!`.
    pub exception_count: usize,
    /// Prefixes.
    pub prefix_count: usize,
    /// Whether the configuration keeps its list from matching.
    pub disabled: bool,
}

/// A prefix that lists name, and who lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticPrefix {
    /// The prefix.
    pub prefix: Prefix,
    /// Each app that lists it, by id, with the place.
    pub tag: Tag,
}

impl StaticPrefix {
    /// Returns the ids of the apps that list it, sorted.
    pub fn apps(&self) -> impl Iterator<Item = &AppId> {
        self.tag.apps().iter().map(|listed| &listed.app)
    }
}

/// A trigger that opens names, as [`Catalogue::names`] gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedName<'a> {
    /// The app.
    pub app: &'a AppId,
    /// Plain, `=` or `*.`.
    pub kind: Kind,
    /// The name after the sign.
    pub name: Name,
    /// The trigger as its list writes it.
    pub written: &'a str,
    /// Where it stands.
    pub location: Location,
}

/// What one app says to a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The app.
    pub app: AppId,
    /// Yes or no.
    pub verdict: Verdict,
    /// The trigger that decided as its list writes it; for [`Verdict::Never`] the name in `catalogue.never`.
    pub trigger: Arc<str>,
    /// Where that stands.
    pub location: Location,
}

/// Yes or no, and what kind of no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Yes: the name is bypassed for this app.
    Bypass,
    /// No: a `!` of the app's own list.
    Excepted,
    /// No: the app would say yes, but `catalogue.never` speaks for all.
    Never,
}

/// All lists, ready to match. Immutable; share it in an `Arc`.
pub struct Catalogue {
    /// Sorted by id.
    apps: Vec<App>,
    /// The text of each app's triggers, in the order of `apps`.
    written: Vec<Box<str>>,
    index: Index,
    /// Where each rule of the index was written.
    places: Vec<(Span, Place)>,
    prefixes: Vec<StaticPrefix>,
    hash: u64,
}

/// An empty catalogue: no app, no trigger.
impl Default for Catalogue {
    fn default() -> Self {
        load::assemble(Vec::new(), &[], &[]).0
    }
}

impl Catalogue {
    /// Finds which triggers want a name bypassed.
    pub fn find(&self, name: &Name) -> Option<MatchId> {
        self.index.find(name.as_wire())
    }

    /// Does the same for a name in uncompressed lower-case wire form, root label included; octets that are no such
    /// name match nothing. Allocates nothing; costs about 50 ns, and a memory access more where the catalogue is
    /// larger than the processor's caches, whatever the number of triggers.
    pub fn find_wire(&self, lower_case_wire: &[u8]) -> Option<MatchId> {
        self.index.find(lower_case_wire)
    }

    /// Returns the apps of a match with the triggers that decided, the most specific first: deeper before
    /// shallower, `=` before `*.` before plain, then by app id.
    ///
    /// # Panics
    /// If `id` came from another catalogue and this one has no such row. Keep ids with their catalogue.
    pub fn tag(&self, id: MatchId) -> Tag {
        let apps: Vec<TagApp> = self.index.rules_of(id).into_iter().filter_map(|rule| self.tag_app(rule)).collect();
        Tag::new(apps)
    }

    /// Returns all apps, disabled ones too, sorted by id.
    pub fn apps(&self) -> &[App] {
        &self.apps
    }

    /// Returns the app of this id.
    pub fn app(&self, id: &str) -> Option<&App> {
        self.apps.binary_search_by(|app| app.id.as_str().cmp(id)).ok().map(|at| &self.apps[at])
    }

    /// Returns the prefixes that enabled apps list: sorted, each once; one may lie inside another.
    pub fn prefixes(&self) -> &[StaticPrefix] {
        &self.prefixes
    }

    /// Returns every trigger of enabled apps that opens names, in the order of apps and lines. Names under
    /// `catalogue.never` are among them.
    pub fn names(&self) -> impl Iterator<Item = ListedName<'_>> {
        (0..self.index.rule_count() as RuleId).filter_map(|id| {
            let rule = self.index.rule(id)?;
            let app = self.apps.get(usize::from(rule.app)).filter(|app| !app.disabled && rule.kind != Kind::Never)?;
            let (written, location) = self.text_of(id, rule)?;
            Some(ListedName { app: &app.id, kind: rule.kind, name: self.index.name_of(rule), written, location })
        })
    }

    /// Returns what each enabled app that lists anything about a name says to it, by app id, and why. An app
    /// without a trigger for the name is left out; it says no.
    pub fn decide(&self, name: &Name) -> Vec<Decision> {
        let coverings = self.index.covering(name);
        let mut deciding: BTreeMap<u16, RuleId> = BTreeMap::new();
        for &id in coverings.iter().flat_map(|covering| &covering.rules) {
            if let Some(rule) = self.index.rule(id) {
                deciding.entry(rule.app).or_insert(id);
            }
        }
        // The topmost sealed name is the one that `catalogue.never` holds; those below only inherit it.
        let sealed = coverings.iter().rev().find_map(|covering| covering.sealed.as_ref());
        deciding.into_values().filter_map(|id| self.decision(id, sealed)).collect()
    }

    fn decision(&self, id: RuleId, sealed: Option<&Name>) -> Option<Decision> {
        let rule = self.index.rule(id)?;
        let app = self.apps.get(usize::from(rule.app)).filter(|app| !app.disabled)?.id.clone();
        if rule.kind == Kind::Never {
            let (written, location) = self.text_of(id, rule)?;
            return Some(Decision { app, verdict: Verdict::Excepted, trigger: written.into(), location });
        }
        if let Some(never) = sealed {
            let location = Location::file(load::NEVER_PLACE);
            return Some(Decision { app, verdict: Verdict::Never, trigger: never.to_string().into(), location });
        }
        let (written, location) = self.text_of(id, rule)?;
        Some(Decision { app, verdict: Verdict::Bypass, trigger: written.into(), location })
    }

    /// Returns whether no enabled app lists anything.
    pub fn is_empty(&self) -> bool {
        self.trigger_count() == 0
    }

    /// Returns how many triggers, names and prefixes, the enabled apps list in all.
    pub fn trigger_count(&self) -> usize {
        self.apps.iter().filter(|app| !app.disabled).map(|app| app.trigger_count).sum()
    }

    /// Returns how many different names the enabled apps open.
    pub fn name_count(&self) -> usize {
        let is_enabled = |rule: &Rule| self.apps.get(usize::from(rule.app)).is_some_and(|app| !app.disabled);
        self.index.count_names(|rule| rule.kind != Kind::Never && is_enabled(rule))
    }

    /// Returns a hash of what matches and what a match is called: apps, which of them are disabled, their triggers
    /// as written, and `catalogue.never`. It is the same in each process and does not depend on the order of lines,
    /// on comments, keys or file names.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Returns the octets that the catalogue holds on the heap, without the allocator's own.
    pub fn heap_bytes(&self) -> usize {
        self.index.heap_bytes()
            + self.places.capacity() * size_of::<(Span, Place)>()
            + self.written.iter().map(|text| text.len()).sum::<usize>()
    }

    fn tag_app(&self, id: RuleId) -> Option<TagApp> {
        let rule = self.index.rule(id)?;
        let app = self.apps.get(usize::from(rule.app))?.id.clone();
        let (written, location) = self.text_of(id, rule)?;
        Some(TagApp { app, trigger: written.into(), location })
    }

    fn text_of(&self, id: RuleId, rule: &Rule) -> Option<(&str, Location)> {
        let app = usize::from(rule.app);
        let &(span, Place { line, col }) = self.places.get(id as usize)?;
        let location = Location { file: Arc::clone(&self.apps.get(app)?.file), line, col };
        Some((span.of(self.written.get(app)?), location))
    }
}

impl fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalogue")
            .field("apps", &self.apps.len())
            .field("triggers", &self.trigger_count())
            .field("hash", &format_args!("{:016x}", self.hash))
            .finish_non_exhaustive()
    }
}
