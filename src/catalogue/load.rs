//! From the files of a folder to a catalogue.
//!
//! [`load`] reads `*.list` and `*.rpz` of one folder, in the order of their names; other files, folders below and
//! names that begin with a dot (editors keep theirs there) are passed over. Every file is read to its end before
//! anything fails, so one run tells all problems, sorted by file and line. Nothing here panics on what a file holds.
//!
//! Bounds: a file has at most 64 MiB, all files 512 MiB, and there are at most 4,096 lists.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use jiff::civil::Date;

use super::draft::{Draft, Place, Span};
use super::index::{Builder, RuleId};
use super::lint::{self, Counts};
use super::tag::{AppId, Tag, TagApp};
use super::trigger::{Found, Kind, Trigger};
use super::{App, Catalogue, Options, StaticPrefix, list, rpz};
use crate::name::Name;
use crate::prefix::Prefix;
use crate::source::{Location, Problem, Problems};

/// The most octets of a file.
pub const FILE_LEN_MAX: u64 = 64 << 20;

/// The most octets of all files together.
pub const TOTAL_LEN_MAX: u64 = 512 << 20;

/// The most lists in a folder.
pub const LISTS_MAX: usize = 4096;

/// The most characters of an app's id.
const ID_LEN_MAX: usize = 63;

/// The place of a name that the configuration keeps from all apps.
pub(super) const NEVER_PLACE: &str = "catalogue.never";

/// The place of an id that the configuration disables.
const DISABLED_PLACE: &str = "catalogue.disabled";

/// A catalogue, and what should be said about it.
#[derive(Debug)]
pub struct Loaded {
    /// The catalogue.
    pub catalogue: Catalogue,
    /// What is allowed and looks wrong, in the order of files and lines.
    pub warnings: Vec<Problem>,
    /// How many warnings there are of each sort, those left off too.
    pub counts: Counts,
}

/// Reads the folder that the options name. A review date before `today` is warned of.
///
/// # Errors
/// Every problem of every file, or that the folder cannot be read. A folder without lists is no problem: it makes an
/// empty catalogue and a warning.
pub fn load(options: &Options, today: Date) -> Result<Loaded, Problems> {
    let mut reading = Reading::new(options, today);
    match file_names(&options.path) {
        Ok(names) => {
            for name in names {
                reading.read_path(&options.path.join(name));
            }
        }
        Err(error) => reading.problems.push(Problem::new(
            Location::file(shown(&options.path)),
            format!("folder of lists cannot be read: {error}; create it, or point `catalogue.path` at the folder of `.list` files"),
        )),
    }
    reading.finish()
}

/// Does the same with files that are in memory: pairs of path and octets. Other endings are passed over here too.
///
/// # Errors
/// Every problem of every file.
pub fn compile<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    options: &'a Options,
    today: Date,
) -> Result<Loaded, Problems> {
    let mut reading = Reading::new(options, today);
    for (path, bytes) in files {
        if let Some((stem, form)) = Form::of(file_name(Path::new(path))) {
            reading.read_list(stem, form, path.into(), |_| Ok(Cow::Borrowed(bytes)));
        }
    }
    reading.finish()
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    List,
    Rpz,
}

impl Form {
    /// Splits a file's name into id and form; `None` for a file that is none of ours.
    fn of(file_name: &str) -> Option<(&str, Self)> {
        let (stem, ending) = file_name.rsplit_once('.')?;
        let form = match ending {
            "list" => Self::List,
            "rpz" => Self::Rpz,
            _ => return None,
        };
        if stem.is_empty() || stem.starts_with('.') { None } else { Some((stem, form)) }
    }

    fn ending(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Rpz => "rpz",
        }
    }
}

/// Lists the names in a folder, sorted.
fn file_names(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Returns a path as messages print it.
fn shown(path: &Path) -> Arc<str> {
    let text = path.display().to_string();
    if text.chars().any(char::is_control) { text.escape_debug().to_string().into() } else { text.into() }
}

/// What has been read so far.
struct Reading<'a> {
    options: &'a Options,
    today: Date,
    drafts: Vec<Draft>,
    /// The file of each id that was met, whether it could be read or not.
    files: BTreeMap<String, Arc<str>>,
    len_left: u64,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl<'a> Reading<'a> {
    fn new(options: &'a Options, today: Date) -> Self {
        Self {
            options,
            today,
            drafts: Vec::new(),
            files: BTreeMap::new(),
            len_left: TOTAL_LEN_MAX,
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn read_path(&mut self, path: &Path) {
        let file = shown(path);
        // A name that is not UTF-8 keeps its ending when shown, and is then refused as an id.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some((stem, form)) = Form::of(&name) {
            self.read_list(stem, form, file, |len_max| read_file(path, len_max).map(Cow::Owned));
        }
    }

    /// Reads one list, unless its id is taken or impossible.
    fn read_list(
        &mut self,
        stem: &str,
        form: Form,
        file: Arc<str>,
        octets: impl FnOnce(u64) -> Result<Cow<'a, [u8]>, String>,
    ) {
        let mut refuse = |message: String| self.problems.push(Problem::new(Location::file(Arc::clone(&file)), message));
        if !is_app_id(stem) {
            let message = format!(
                "`{}` is no app id, expected a file name of lower-case letters, digits and `-` (at most {ID_LEN_MAX}), such as `{}.{}`",
                Found::new(stem),
                likely_id(stem),
                form.ending()
            );
            return refuse(message);
        }
        if let Some(other) = self.files.get(stem) {
            return refuse(format!(
                "app `{stem}` has the list {other} already, expected one file for each app; put both into one"
            ));
        }
        if self.files.len() == LISTS_MAX {
            return refuse(format!("more than {LISTS_MAX} lists in the folder; put lists together"));
        }
        self.files.insert(stem.to_owned(), Arc::clone(&file));
        let len_max = FILE_LEN_MAX.min(self.len_left);
        let bytes = match octets(len_max) {
            Ok(bytes) if bytes.len() as u64 > len_max => return refuse(too_long(len_max)),
            Ok(bytes) => bytes,
            Err(message) => return refuse(message),
        };
        self.len_left = self.len_left.saturating_sub(bytes.len() as u64);
        let mut draft = Draft::new(AppId::new(stem), file);
        match form {
            Form::List => list::read(&mut draft, &bytes),
            Form::Rpz => rpz::read(&mut draft, &bytes),
        }
        lint::check_review(&mut draft, self.today);
        self.drafts.push(draft);
    }

    fn finish(mut self) -> Result<Loaded, Problems> {
        self.drafts.sort_by(|a, b| a.id.cmp(&b.id));
        let never = self.never_names();
        let is_disabled = self.disabled_apps();
        for draft in &mut self.drafts {
            let file = Arc::clone(&draft.file);
            draft.problems.drain_into(&file, "problems", &mut self.problems);
        }
        if !self.problems.is_empty() {
            self.problems.sort();
            return Err(Problems(self.problems));
        }
        if self.drafts.is_empty() {
            self.warnings.push(Problem::new(
                Location::file(shown(&self.options.path)),
                "no `.list` or `.rpz` file here, nothing will match",
            ));
        }
        let (catalogue, mut drafts) = assemble(self.drafts, &is_disabled, &never);
        let mut counts = Counts::default();
        for draft in &mut drafts {
            counts.add(&draft.counts);
            let file = Arc::clone(&draft.file);
            draft.warnings.drain_into(&file, "warnings", &mut self.warnings);
        }
        self.warnings.sort();
        Ok(Loaded { catalogue, warnings: self.warnings, counts })
    }

    /// Reads `catalogue.never`.
    fn never_names(&mut self) -> Vec<Name> {
        let mut names = Vec::with_capacity(self.options.never.len());
        for text in &self.options.never {
            let message = match text.trim().parse::<Trigger>() {
                Ok(Trigger { name, kind: Kind::Suffix }) => {
                    names.push(name);
                    continue;
                }
                Ok(Trigger { name, .. }) => {
                    format!(
                        "`{}`: a sign has no meaning here, expected a name such as `{name}`, which speaks from there down",
                        Found::new(text)
                    )
                }
                Err(error) => error.to_string(),
            };
            self.problems.push(Problem::new(Location::file(NEVER_PLACE), message));
        }
        names
    }

    /// Tells which drafts are disabled, and warns of ids that no file has.
    fn disabled_apps(&mut self) -> Vec<bool> {
        for id in &self.options.disabled {
            if !self.files.contains_key(id) {
                let near = lint::near_miss(id, self.files.keys().map(String::as_str));
                let hint = near.map_or_else(|| "the id of a list in the folder".to_owned(), |near| format!("`{near}`"));
                let message = format!("no list has the app id `{}`, expected {hint}", Found::new(id));
                self.warnings.push(Problem::new(Location::file(DISABLED_PLACE), message));
            }
        }
        self.drafts.iter().map(|draft| self.options.disabled.iter().any(|id| id == draft.id.as_str())).collect()
    }
}

/// Reads a file, but no more than one octet over `len_max`.
fn read_file(path: &Path, len_max: u64) -> Result<Vec<u8>, String> {
    let unreadable =
        |error: io::Error| format!("cannot be read: {error}; make it readable or move it out of the folder");
    // Asked before it is opened: a named pipe would wait for a writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("is not a regular file; move it out of the folder".to_owned());
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(len_max + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    Ok(bytes)
}

fn too_long(len_max: u64) -> String {
    if len_max < FILE_LEN_MAX {
        format!("all lists together have more than {} MiB; take lists out", TOTAL_LEN_MAX >> 20)
    } else {
        format!("has more than {} MiB; split it into several apps", FILE_LEN_MAX >> 20)
    }
}

fn is_app_id(stem: &str) -> bool {
    let is_fine = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
    !stem.is_empty() && stem.len() <= ID_LEN_MAX && stem.bytes().all(is_fine)
}

/// Returns an id near to a file name that is none.
fn likely_id(stem: &str) -> String {
    let fold = |character: char| if character.is_ascii_alphanumeric() { character.to_ascii_lowercase() } else { '-' };
    let id: String = stem.chars().take(ID_LEN_MAX).map(fold).collect();
    let id = id.trim_matches('-');
    if id.is_empty() { "app".to_owned() } else { id.to_owned() }
}

/// Puts drafts sorted by id together. Hands the drafts back with the warnings that only the whole can show.
pub(super) fn assemble(mut drafts: Vec<Draft>, is_disabled: &[bool], never: &[Name]) -> (Catalogue, Vec<Draft>) {
    let mut builder = Builder::new();
    builder.reserve(drafts.iter().map(|draft| draft.names.len()).sum());
    for name in never {
        builder.seal(name);
    }
    let mut places = Vec::new();
    let rules: Vec<Rules> =
        drafts.iter_mut().enumerate().map(|(app, draft)| add_names(app, draft, &mut builder, &mut places)).collect();
    let index = builder.finish(is_disabled);
    for (draft, rules) in drafts.iter_mut().zip(&rules) {
        lint::check_names(draft, &rules.of_line, rules.first, &index);
        lint::check_prefixes(draft);
    }
    let apps: Vec<App> = drafts
        .iter_mut()
        .zip(&rules)
        .enumerate()
        .map(|(i, (draft, rules))| app_of(draft, rules, is_disabled.get(i) == Some(&true)))
        .collect();
    let catalogue = Catalogue {
        prefixes: static_prefixes(&drafts, &apps),
        hash: content_hash(&drafts, &rules, &apps, never),
        written: drafts.iter_mut().map(|draft| std::mem::take(&mut draft.written).into_boxed_str()).collect(),
        index,
        places,
        apps,
    };
    (catalogue, drafts)
}

/// The rules that the names of a draft became.
struct Rules {
    /// The id that the draft's first rule has, or would have.
    first: RuleId,
    /// For each name its rule; `None` for one that repeats another.
    of_line: Vec<Option<RuleId>>,
}

/// Adds a draft's names to the index and warns of those that stand twice.
fn add_names(app: usize, draft: &mut Draft, builder: &mut Builder, places: &mut Vec<(Span, Place)>) -> Rules {
    let first = places.len() as RuleId;
    let mut of_line = Vec::with_capacity(draft.names.len());
    let mut notes = Vec::new();
    for line in &draft.names {
        // `LISTS_MAX` keeps the number of apps far below 65,536.
        match builder.add(&line.name, line.kind, app as u16) {
            Ok(rule) => {
                places.push((line.written, line.place));
                of_line.push(Some(rule));
            }
            Err(earlier) => {
                let earlier_line = places.get(earlier as usize).map_or(0, |(_, place)| place.line);
                notes.push((
                    line.place,
                    lint::repeat_message(&Found::new(line.written.of(&draft.written)), earlier_line),
                ));
                of_line.push(None);
            }
        }
    }
    draft.counts.repeats += notes.len();
    for (place, message) in notes {
        draft.warn(place, message);
    }
    Rules { first, of_line }
}

fn app_of(draft: &mut Draft, rules: &Rules, disabled: bool) -> App {
    let keys = std::mem::take(&mut draft.keys);
    let kept = draft.names.iter().zip(&rules.of_line).filter(|(_, rule)| rule.is_some());
    let (mut name_count, mut exception_count) = (0, 0);
    for (line, _) in kept {
        if line.kind == Kind::Never { exception_count += 1 } else { name_count += 1 }
    }
    let prefix_count = draft.prefixes.len();
    App {
        id: draft.id.clone(),
        title: keys.title.unwrap_or_else(|| draft.id.to_string()),
        source: keys.source,
        retrieved: keys.retrieved,
        review_by: keys.review_by.map(|review_by| review_by.value),
        reason: keys.reason,
        file: Arc::clone(&draft.file),
        trigger_count: name_count + exception_count + prefix_count,
        name_count,
        exception_count,
        prefix_count,
        disabled,
    }
}

/// Puts the prefixes of enabled apps together, each once.
fn static_prefixes(drafts: &[Draft], apps: &[App]) -> Vec<StaticPrefix> {
    let mut by_prefix: BTreeMap<Prefix, Vec<TagApp>> = BTreeMap::new();
    for (draft, _) in drafts.iter().zip(apps).filter(|(_, app)| !app.disabled) {
        for line in &draft.prefixes {
            by_prefix.entry(line.prefix).or_default().push(TagApp {
                app: draft.id.clone(),
                trigger: line.written.of(&draft.written).into(),
                location: draft.location(line.place),
            });
        }
    }
    by_prefix.into_iter().map(|(prefix, apps)| StaticPrefix { prefix, tag: Tag::new(apps) }).collect()
}

/// Hashes what matches. Sums over triggers, so that their order has no say.
fn content_hash(drafts: &[Draft], rules: &[Rules], apps: &[App], never: &[Name]) -> u64 {
    let mut hash = Fnv::START;
    for ((draft, rules), app) in drafts.iter().zip(rules).zip(apps) {
        let names =
            draft.names.iter().zip(&rules.of_line).filter(|(_, rule)| rule.is_some()).map(|(line, _)| line.written);
        let triggers = names.chain(draft.prefixes.iter().map(|line| line.written));
        let sum = triggers
            .fold(0u64, |sum, written| sum.wrapping_add(Fnv::START.add(written.of(&draft.written).as_bytes()).0));
        hash = hash.add(draft.id.as_str().as_bytes()).add(&[0xff, u8::from(app.disabled)]).add(&sum.to_le_bytes());
    }
    let sum = never.iter().fold(0u64, |sum, name| sum.wrapping_add(Fnv::START.add(name.as_wire()).0));
    hash.add(&sum.to_le_bytes()).0
}

/// FNV-1a, 64 bits: stable for good, which hash tables' own hashes are not meant to be.
#[derive(Clone, Copy)]
struct Fnv(u64);

impl Fnv {
    const START: Self = Self(0xcbf2_9ce4_8422_2325);

    fn add(self, octets: &[u8]) -> Self {
        Self(octets.iter().fold(self.0, |hash, &octet| (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3)))
    }
}
