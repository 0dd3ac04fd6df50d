//! What a key is, which there are, and which one was probably meant.
//!
//! A [`Key`] ties the dotted name of a key to the function that reads its value, so that a value is never asked for
//! as another type than it was checked for. [`Spec`] is the part that does not depend on the type. A [`Table`] is a
//! `[table]` that stands once or a `[[table]]` that stands any number of times. The rows are in `table.rs`.

use super::error::Faults;
use super::raw::Item;
use super::table::{KEYS, TABLES};

/// Whether the part behind a key or table works in this release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It does.
    Built,
    /// Not yet: setting it to something other than its default warns.
    Later,
}

/// What holds when a key is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unset {
    /// This value, as TOML.
    Default(&'static str),
    /// Nothing; the text is an example, as TOML.
    Absent(&'static str),
    /// It must be written wherever its table stands; the text is an example, as TOML.
    Required(&'static str),
}

impl Unset {
    /// Returns the default or the example as TOML.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Default(text) | Self::Absent(text) | Self::Required(text) => text,
        }
    }
}

/// What there is to know of a key but its type.
#[derive(Debug)]
pub(super) struct Spec {
    /// The dotted name: that of its table, a dot, its own.
    pub(super) path: &'static str,
    /// What holds when it is not written.
    pub(super) unset: Unset,
    /// Whether it has an effect.
    pub(super) state: State,
    /// One line for the operator.
    pub(super) doc: &'static str,
}

impl Spec {
    /// Returns the dotted name of its table.
    pub(super) fn table(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(table, _)| table)
    }

    /// Returns its own name, without that of its table.
    pub(super) fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }
}

/// A key whose value is a `T`.
pub(super) struct Key<T: 'static> {
    /// Name, default, state.
    pub(super) spec: Spec,
    /// Reads a value, or notes what is wrong with it.
    pub(super) read: fn(&Item<'_>, &mut Faults) -> Option<T>,
}

/// A key of any type.
pub(super) trait AnyKey: Sync {
    /// Returns name, default and state.
    fn spec(&self) -> &Spec;

    /// Checks a value; returns whether it is right and something other than the default.
    fn differs(&self, item: &Item<'_>, faults: &mut Faults) -> bool;
}

impl<T: PartialEq> AnyKey for Key<T> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn differs(&self, item: &Item<'_>, faults: &mut Faults) -> bool {
        let Some(value) = (self.read)(item, faults) else {
            return false;
        };
        let default = match self.spec.unset {
            Unset::Default(text) => Item::with_toml(text, item, |default| (self.read)(default, &mut Faults::default())),
            Unset::Absent(_) | Unset::Required(_) => None,
        };
        default != Some(value)
    }
}

/// How often a table stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `[table]`, once.
    Once,
    /// `[[table]]`, any number of times.
    Many,
}

/// A table of the file.
#[derive(Debug)]
pub(super) struct Table {
    /// The dotted name.
    pub(super) path: &'static str,
    /// How often it stands.
    pub(super) shape: Shape,
    /// Whether it has an effect; a table that has none is warned of as a whole.
    pub(super) state: State,
    /// One line for the operator.
    pub(super) doc: &'static str,
}

/// Finds a key by its dotted name.
pub(super) fn find_key(path: &str) -> Option<&'static dyn AnyKey> {
    KEYS.iter().copied().find(|key| key.spec().path == path)
}

/// Finds a table by its dotted name.
pub(super) fn find_table(path: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.path == path)
}

/// Returns the dotted name of the key or table that was probably meant by `path`, which is none.
///
/// First the same words with other separators or letter case, then a slip of the fingers within the same table,
/// then the same name in another table, then a slip anywhere.
pub(super) fn nearest(path: &str) -> Option<&'static str> {
    let asked = path.to_lowercase().replace('_', "-");
    let (asked_table, asked_name) = asked.rsplit_once('.').unwrap_or(("", &asked));
    let everything = || KEYS.iter().map(|key| key.spec().path).chain(TABLES.iter().map(|table| table.path));
    let name_of = |path: &'static str| path.rsplit_once('.').map_or(path, |(_, name)| name);
    let table_of = |path: &'static str| path.rsplit_once('.').map_or("", |(table, _)| table);
    everything()
        .find(|path| *path == asked)
        .or_else(|| closest(asked_name, everything().filter(|path| table_of(path) == asked_table), name_of))
        .or_else(|| everything().find(|path| name_of(path) == asked_name))
        .or_else(|| closest(&asked, everything(), |path| path))
}

/// Returns the candidate whose `word` takes the fewest slips to become `asked`, if they are few for its length.
fn closest(
    asked: &str,
    candidates: impl Iterator<Item = &'static str>,
    word: impl Fn(&'static str) -> &'static str,
) -> Option<&'static str> {
    // A word of three letters is near with one slip; long ones get one for each three letters.
    let slips_max = (asked.chars().count() / 3).clamp(1, 4);
    // Names longer than any key are not measured: the cost grows with the product of the lengths.
    candidates
        .filter(|_| asked.len() <= 64)
        .map(|path| (strsim::damerau_levenshtein(asked, word(path)), path))
        .filter(|(slips, _)| *slips <= slips_max)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, path)| path)
}

/// Returns the names of the keys and tables that may stand in the table `path`, in their order; `""` is the file.
pub(super) fn names_in(path: &str) -> Vec<&'static str> {
    let inside = |full: &'static str| {
        let rest = if path.is_empty() { full } else { full.strip_prefix(path)?.strip_prefix('.')? };
        rest.split('.').next()
    };
    let mut names = Vec::new();
    let everything = KEYS.iter().map(|key| key.spec().path).chain(TABLES.iter().map(|table| table.path));
    for name in everything.filter_map(inside) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_the_key_that_was_meant() {
        for (asked, meant) in [
            ("learn.min_hold", Some("learn.min-hold")),
            ("Learn.Min-Hold", Some("learn.min-hold")),
            ("learn.minhold", Some("learn.min-hold")),
            ("learn.hodl", Some("learn.hold")),
            ("listen.dsn", Some("listen.dns")),
            ("lisen", Some("listen")),
            ("upstreams", Some("forward.upstreams")),
            ("tag.grace", Some("learn.grace")),
            ("export.files", Some("export.file")),
            ("catalog.path", Some("catalogue.path")),
            ("cache.frobnicate", None),
            ("x", None),
        ] {
            assert_eq!(nearest(asked), meant, "{asked}");
        }
    }

    #[test]
    fn names_of_a_table_hold_its_subtables_once() {
        assert_eq!(names_in("export"), ["max-shrink", "nftables", "file"]);
        assert_eq!(names_in("tag"), ["edns-option", "extended-error"]);
        assert!(names_in("").starts_with(&["listen", "tls", "clients", "forward"]));
    }
}
