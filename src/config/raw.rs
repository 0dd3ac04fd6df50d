//! The file exactly as typed, and the variables that override it.
//!
//! [`Document`] owns what was parsed, [`Raw`] is a view of it by known keys: values of the tables that stand once,
//! and one [`RawTable`] for each `[[table]]`. Names are checked here, values are not. An [`Item`] is a value with
//! its key and its place; readers (`read.rs`) turn it into a type. Neither disk nor network is touched.
//!
//! A variable `GREENLANE__LEARN__MIN_HOLD` speaks for `learn.min-hold`. Its text is an array if it parses as one in
//! TOML, otherwise a plain string from which readers take numbers, flags and comma-separated lists.

use std::borrow::Cow;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::env::{Env, PREFIX};
use super::error::{Fault, Faults, quoted};
use super::key::{AnyKey, Key, Shape, Table, find_key, find_table, names_in, nearest};
use crate::source::Location;

/// A text with the starts of its lines, so that a place is found without going through all of it.
#[derive(Debug)]
pub(super) struct Text<'a> {
    file: Arc<str>,
    text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> Text<'a> {
    fn new(file: Arc<str>, text: &'a str) -> Self {
        let after_newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        Self { file, text, line_starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// Returns line and column of the octet at `offset`.
    fn locate(&self, offset: usize) -> Location {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let before = self.text.get(start..offset).unwrap_or("");
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        // A byte order mark takes no column in an editor.
        let col = before.chars().filter(|c| *c != '\u{feff}').count() + 1;
        Location { file: self.file.clone(), line: count(line), col: count(col) }
    }
}

/// Where a value was written.
#[derive(Clone, Copy, Debug)]
pub(super) enum At<'a> {
    /// At an octet of the file.
    File(&'a Text<'a>, usize),
    /// In a variable of this name.
    Variable(&'a str),
}

impl At<'_> {
    /// Returns the place as it is printed.
    pub(super) fn location(self) -> Location {
        match self {
            Self::File(text, offset) => text.locate(offset),
            Self::Variable(name) => Location::file(name),
        }
    }
}

/// A value as typed, with its key and place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a> {
    /// The dotted key that it belongs to.
    pub(super) key: &'a str,
    /// What was typed.
    pub(super) value: &'a DeValue<'a>,
    /// Where.
    pub(super) at: At<'a>,
}

impl<'a> Item<'a> {
    /// Runs `read` on `toml` as if it stood in place of `like`; `None` also if that is no TOML.
    pub(super) fn with_toml<T>(toml: &str, like: &Item<'_>, read: impl FnOnce(&Item<'_>) -> Option<T>) -> Option<T> {
        let value = DeValue::parse(toml).ok()?;
        read(&Item { key: like.key, value: value.get_ref(), at: like.at })
    }

    /// Returns whether the value is the text of a variable, which may stand for a number, a flag or a list.
    pub(super) fn is_variable(&self) -> bool {
        matches!(self.at, At::Variable(_))
    }

    /// Returns the value as it is quoted in a message.
    pub(super) fn found(&self) -> String {
        match self.value {
            DeValue::String(text) => quoted(text),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.as_str().to_owned(),
            DeValue::Boolean(flag) => flag.to_string(),
            DeValue::Datetime(time) => time.to_string(),
            DeValue::Array(items) if items.is_empty() => "an empty list".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        }
    }

    /// Returns an element of the list that this value is.
    pub(super) fn element<'e>(&'e self, element: &'e Spanned<DeValue<'a>>) -> Item<'e> {
        let at = match self.at {
            At::File(text, _) => At::File(text, element.span().start),
            At::Variable(name) => At::Variable(name),
        };
        Item { key: self.key, value: element.get_ref(), at }
    }

    /// Notes that the value is not what was expected.
    pub(super) fn unexpected(&self, expected: impl Into<String>, faults: &mut Faults) {
        self.fault(Fault::Unexpected { expected: expected.into(), found: self.found() }, faults);
    }

    /// Notes a fault of the value.
    pub(super) fn fault(&self, fault: impl Into<Fault>, faults: &mut Faults) {
        faults.push(self.at.location(), self.key, fault);
    }
}

/// Known keys that were written, each once.
#[derive(Default)]
pub(super) struct Entries<'a>(Vec<(&'static dyn AnyKey, Item<'a>)>);

impl<'a> Entries<'a> {
    /// Reads a key; `None` if it is not written, or wrong, which is noted.
    pub(super) fn read<T>(&self, key: &Key<T>, faults: &mut Faults) -> Option<T> {
        (key.read)(self.item(key.spec.path)?, faults)
    }

    /// Returns the value of a key as typed.
    pub(super) fn item(&self, path: &str) -> Option<&Item<'a>> {
        self.iter().find(|(key, _)| key.spec().path == path).map(|(_, item)| item)
    }

    /// Goes through all of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(&'static dyn AnyKey, Item<'a>)> {
        self.0.iter()
    }

    /// Sets a value in place of an earlier one.
    fn set(&mut self, key: &'static dyn AnyKey, item: Item<'a>) {
        self.0.retain(|(other, _)| other.spec().path != key.spec().path);
        self.0.push((key, item));
    }
}

/// One `[[table]]`.
pub(super) struct RawTable<'a> {
    /// Which.
    pub(super) table: &'static Table,
    /// Its header.
    pub(super) at: At<'a>,
    /// Its keys.
    pub(super) entries: Entries<'a>,
}

/// Everything that was written, by known keys.
#[derive(Default)]
pub(super) struct Raw<'a> {
    /// Keys of the tables that stand once.
    pub(super) entries: Entries<'a>,
    /// The others, in their order.
    pub(super) tables: Vec<RawTable<'a>>,
}

impl<'a> Raw<'a> {
    /// Goes through the `[[table]]`s of one name.
    pub(super) fn tables(&self, path: &str) -> impl Iterator<Item = &RawTable<'a>> {
        self.tables.iter().filter(move |raw| raw.table.path == path)
    }
}

/// The parsed file and the parsed variables.
pub(super) struct Document<'a> {
    text: Text<'a>,
    table: DeTable<'a>,
    syntax: Vec<toml::de::Error>,
    variables: Vec<Variable<'a>>,
}

/// One variable of ours.
struct Variable<'a> {
    name: &'a str,
    /// The dotted name that it speaks for.
    path: String,
    /// `None` for octets that are no text.
    value: Option<DeValue<'a>>,
}

impl<'a> Document<'a> {
    /// Parses the file and the variables; mistakes are kept for [`Document::note_mistakes`].
    pub(super) fn parse(text: &'a str, file: Arc<str>, env: &'a Env) -> Self {
        let (table, syntax) = DeTable::parse_recoverable(text);
        let variables = env
            .iter()
            .map(|(name, value)| Variable { name, path: path_of(name), value: value.map(variable_value) })
            .collect();
        Self { text: Text::new(file, text), table: table.into_inner(), syntax, variables }
    }

    /// Sorts everything by known keys and notes what has none.
    pub(super) fn walk(&'a self, faults: &mut Faults) -> Raw<'a> {
        let mut raw = Raw::default();
        walk_table("", &self.table, |offset| At::File(&self.text, offset), &mut raw, faults);
        for variable in &self.variables {
            variable.apply(&mut raw, faults);
        }
        raw
    }

    /// Returns the line of the first mistake in the syntax. What stands there or behind may have been meant
    /// otherwise than it was read, so nothing else is said of it.
    pub(super) fn first_mistake(&self) -> Option<Location> {
        let offset = self.syntax.iter().map(|error| error.span().map_or(0, |span| span.start)).min()?;
        Some(Location { col: 0, ..self.text.locate(offset) })
    }

    /// Notes every mistake in the syntax.
    pub(super) fn note_mistakes(&self, faults: &mut Faults) {
        for error in &self.syntax {
            self.note_mistake(error, faults);
        }
    }

    /// Notes one mistake, in the parser's words but for its guess at what an unquoted text was meant to be.
    fn note_mistake(&self, error: &toml::de::Error, faults: &mut Faults) {
        const UNQUOTED: &str = "string values must be quoted";
        let span = error.span().unwrap_or(0..0);
        let typed = self.text.text.get(span.clone()).unwrap_or("");
        let (what, expected) = error.message().split_once(", expected ").unwrap_or_else(|| (error.message(), ""));
        let (what, found, expected) = match (what, expected) {
            (UNQUOTED, _) if typed.is_empty() => ("no value after `=`", String::new(), String::new()),
            (UNQUOTED, _) if is_like_flag(typed) => {
                ("a flag is one of two words", format!("`{typed}`"), "true or false".to_owned())
            }
            (UNQUOTED, _) => ("text stands in quotes", format!("`{}`", unquoted(typed)), quoted(typed)),
            (what, expected) => {
                let found = if typed.is_empty() { String::new() } else { format!("`{}`", unquoted(typed)) };
                (what, found, if expected == "nothing" { String::new() } else { expected.to_owned() })
            }
        };
        faults.push(self.text.locate(span.start), "", Fault::Syntax { what: what.to_owned(), found, expected });
    }
}

/// Returns whether a word is a flag elsewhere; TOML has `true` and `false` only.
fn is_like_flag(word: &str) -> bool {
    ["yes", "no", "on", "off"].iter().any(|flag| flag.eq_ignore_ascii_case(word))
}

/// Returns what [`quoted`] does without the quotes.
fn unquoted(text: &str) -> String {
    quoted(text).trim_matches('"').to_owned()
}

/// Sorts the keys of the table `path`, which stands once; `""` is the file.
fn walk_table<'a>(
    path: &str,
    table: &'a DeTable<'a>,
    at: impl Fn(usize) -> At<'a> + Copy,
    raw: &mut Raw<'a>,
    faults: &mut Faults,
) {
    for (name, value) in table {
        let full = join(path, name.get_ref());
        let value_at = at(value.span().start);
        if let Some(key) = find_key(&full) {
            raw.entries.set(key, Item { key: key.spec().path, value: value.get_ref(), at: value_at });
        } else if let Some(found) = find_table(&full) {
            let item = Item { key: found.path, value: value.get_ref(), at: value_at };
            match (found.shape, item.value) {
                (Shape::Once, DeValue::Table(inner)) => walk_table(&full, inner, at, raw, faults),
                (Shape::Once, _) => item.unexpected(format!("a table, written once as [{full}]"), faults),
                (Shape::Many, _) => walk_tables(found, &item, at, raw, faults),
            }
        } else {
            let location = at(name.span().start).location();
            faults.push(location, &full, unknown(&full, what(value.get_ref()), str::to_owned));
        }
    }
}

/// Returns the word for what holds a value of this form.
fn what(value: &DeValue<'_>) -> &'static str {
    let is_tables = value.as_array().is_some_and(|items| items.iter().any(|item| item.get_ref().is_table()));
    if value.is_table() || is_tables { "table" } else { "key" }
}

/// Sorts the keys of each `[[table]]` in the array `item`.
fn walk_tables<'a>(
    table: &'static Table,
    item: &Item<'a>,
    at: impl Fn(usize) -> At<'a>,
    raw: &mut Raw<'a>,
    faults: &mut Faults,
) {
    let expected = || format!("tables, each written as [[{}]]", table.path);
    let DeValue::Array(items) = item.value else {
        return item.unexpected(expected(), faults);
    };
    for inner in items.iter() {
        let place = at(inner.span().start);
        let DeValue::Table(inner) = inner.get_ref() else {
            Item { value: inner.get_ref(), at: place, ..*item }.unexpected(expected(), faults);
            continue;
        };
        let mut entries = Entries::default();
        for (name, value) in inner {
            let full = join(table.path, name.get_ref());
            match find_key(&full) {
                Some(key) => {
                    let value_at = at(value.span().start);
                    entries.set(key, Item { key: key.spec().path, value: value.get_ref(), at: value_at });
                }
                None => {
                    let location = at(name.span().start).location();
                    faults.push(location, &full, unknown(&full, what(value.get_ref()), str::to_owned));
                }
            }
        }
        raw.tables.push(RawTable { table, at: place, entries });
    }
}

impl<'a> Variable<'a> {
    /// Sets the value in place of the file's.
    fn apply(&'a self, raw: &mut Raw<'a>, faults: &mut Faults) {
        let at = At::Variable(self.name);
        let Some(value) = &self.value else {
            return faults.push(at.location(), "", Fault::NotUtf8);
        };
        let key = find_key(&self.path);
        let of_many = key.and_then(|key| find_table(key.spec().table())).filter(|table| table.shape == Shape::Many);
        match (key, of_many, find_table(&self.path)) {
            (Some(key), None, _) => raw.entries.set(key, Item { key: key.spec().path, value, at }),
            (_, _, Some(table)) if table.shape == Shape::Many => {
                raw.tables.retain(|other| other.table.path != table.path);
                let item = Item { key: table.path, value, at };
                walk_tables(table, &item, |_| at, raw, faults);
            }
            (_, Some(table), _) => {
                let hint = format!("expected {}=[{{…}}] or [[{}]] in the file", variable_of(table.path), table.path);
                faults.push(at.location(), "", Fault::Unknown { what: "key", hint });
            }
            (_, _, Some(table)) => faults.push(at.location(), "", one_of(table.path, "key", variable_of)),
            _ => faults.push(at.location(), "", unknown(&self.path, "key", variable_of)),
        }
    }
}

/// Says that `path` is unknown, with the one that was probably meant or the ones there are; `written` writes a
/// dotted name as the user would.
fn unknown(path: &str, what: &'static str, written: impl Fn(&str) -> String) -> Fault {
    match nearest(path) {
        Some(meant) => Fault::Unknown { what, hint: format!("did you mean {}?", written(meant)) },
        None => one_of(path.rsplit_once('.').map_or("", |(table, _)| table), what, written),
    }
}

/// Says that something is unknown, with what may stand in `table`.
fn one_of(table: &str, what: &'static str, written: impl Fn(&str) -> String) -> Fault {
    let names = names_in(table);
    // A name below a table that is itself unknown: the tables there are help more.
    let (table, names) = if names.is_empty() { ("", names_in("")) } else { (table, names) };
    let full = |name: &str| written(&if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") });
    let list: Vec<String> = names.into_iter().map(full).collect();
    Fault::Unknown { what, hint: format!("expected one of {}", list.join(", ")) }
}

/// Returns the dotted name that a variable speaks for: `GREENLANE__LEARN__MIN_HOLD` for `learn.min-hold`.
fn path_of(variable: &str) -> String {
    variable.strip_prefix(PREFIX).unwrap_or(variable).replace("__", ".").replace('_', "-").to_lowercase()
}

/// Returns the variable that speaks for a dotted name.
pub(super) fn variable_of(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").replace('-', "_").to_uppercase())
}

/// Makes a value of a variable's text: an array or a string if it is written as one, else the text as it stands.
fn variable_value(text: &str) -> DeValue<'_> {
    let text = text.trim();
    let plain = DeValue::String(Cow::Borrowed(text));
    if !text.starts_with(['[', '"', '\'']) {
        return plain;
    }
    // An IPv6 address with its port begins like an array, but does not parse as one.
    DeValue::parse(text).map_or(plain, Spanned::into_inner)
}

/// Joins a table's dotted name and the name of something in it, quoted unless it is a bare key.
fn join(table: &str, name: &str) -> String {
    let is_bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let name = if is_bare && name.len() <= 64 { Cow::Borrowed(name) } else { Cow::Owned(quoted(name)) };
    if table.is_empty() { name.into_owned() } else { format!("{table}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_dotted_names_map_both_ways() {
        assert_eq!(path_of("GREENLANE__LEARN__MIN_HOLD"), "learn.min-hold");
        assert_eq!(variable_of("learn.min-hold"), "GREENLANE__LEARN__MIN_HOLD");
        for key in super::super::table::KEYS {
            assert_eq!(path_of(&variable_of(key.spec().path)), key.spec().path);
        }
    }

    #[test]
    fn line_index_agrees_with_counting() {
        let text = "a\nbüch x\n\n y";
        let indexed = Text::new("f".into(), text);
        for (offset, _) in text.char_indices().chain([(text.len(), ' ')]) {
            assert_eq!(indexed.locate(offset), Location::in_text("f".into(), text, offset));
        }
    }
}
