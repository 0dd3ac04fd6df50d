//! `greenlane store`: what survives a restart, looked at, printed, and put back.
//!
//! The file belongs to the daemon that has it open. `dump` asks that daemon over its web listener then; `check` and
//! `restore` are for a store that none has open, and say so.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::site::{Right, Site};
use super::{ConfigFile, Failure, StoreCommand, StoreDumpArgs, StoreRestoreArgs};
use crate::catalogue;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::daemon::{listing, today};
use crate::export::dump::{self, Head};
use crate::learn;
use crate::metrics::Registry;
use crate::set::outlet::Kept;
use crate::store::{self, Look, StoreError};

/// How much longer than its end an answer is granted at most.
const SLACK: Duration = Duration::from_secs(600);

/// After so many lines the progress is told.
const PROGRESS_LINES: u64 = 10_000;

/// Does what was asked for.
pub(super) fn run(file: &ConfigFile, command: &StoreCommand) -> Result<(), Failure> {
    match command {
        StoreCommand::Check => check(&options(&file.load()?)?.path),
        StoreCommand::Dump(args) => dump(file, args),
        StoreCommand::Restore(args) => restore(&file.load()?, args),
    }
}

fn options(config: &Config) -> Result<store::Options, Failure> {
    let none = || Failure::usage("store.path: without a configuration file nothing is kept; name one with --config");
    config.store.clone().ok_or_else(none)
}

/// Says whether the store can be read, and what is in it.
fn check(path: &Path) -> Result<(), Failure> {
    let look = store::look(path, &Clock::system()).map_err(|error| {
        Failure::failed(match error {
            StoreError::InUse(_) => format!(
                "store.path: `{}` is in use by a running greenlane, which checked it when it started; stop it to check \
                 again",
                path.display()
            ),
            StoreError::Unsound { .. } => {
                format!("store.path: {error}; `greenlane serve` would set it aside and begin with an empty set")
            }
            error => format!("store.path: {error}"),
        })
    })?;
    if look.unread_count > 0 {
        return Err(Failure::failed(format!(
            "store.path: {} entries of `{}` cannot be read; `greenlane serve` would drop them",
            look.unread_count,
            path.display()
        )));
    }
    super::print(report(path, &look))
}

fn report(path: &Path, look: &Look) -> String {
    let restored = &look.restored;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}: sound, schema {}, {} octets with its journals", path.display(), look.schema, look.len);
    let _ = writeln!(text, "  {} sightings, and {} that have ended", restored.sightings.len(), look.ended_count);
    let closed = if restored.is_complete {
        "closed in order"
    } else {
        "not closed in order: ends are as late as they were granted, and the serial jumps ahead"
    };
    let _ = writeln!(text, "  session {}, serial {}, {closed}", restored.session, restored.serial);
    text
}

/// Prints every sighting, out of the file or as the daemon that has it open tells.
fn dump(file: &ConfigFile, args: &StoreDumpArgs) -> Result<(), Failure> {
    let lines = if args.site.url.is_some() {
        Site::find(file, &args.site, Right::Read)?.get("/sightings")?.into_bytes()
    } else {
        let path = options(&file.load()?)?.path;
        let clock = Clock::system();
        match store::look(&path, &clock) {
            Ok(look) => lines(look, clock.now()),
            Err(error @ (StoreError::InUse(_) | StoreError::Denied { .. })) => {
                let site = Site::find(file, &args.site, Right::Read)?;
                let asked = site.get("/sightings");
                asked
                    .map_err(|failure| Failure {
                        message: format!("store.path: {error}\n{}", failure.message),
                        ..failure
                    })?
                    .into_bytes()
            }
            Err(error) => return Err(Failure::failed(format!("store.path: {error}"))),
        }
    };
    if args.json {
        return super::print(lines);
    }
    let (_, sightings) = read_dump(Path::new("the dump"), &lines[..])?;
    super::print(in_columns(&sightings))
}

/// Writes what a file holds as a dump.
fn lines(look: Look, now: Timestamp) -> Vec<u8> {
    let restored = look.restored;
    let mut sightings = restored.sightings;
    sightings.sort_unstable_by(|one, other| (one.addr, &one.name).cmp(&(other.addr, &other.name)));
    let mut lines = Vec::new();
    Head::new(restored.session, restored.serial, now, sightings.len() as u64).write(&mut lines);
    sightings.iter().for_each(|kept| dump::write_kept(kept, &mut lines));
    lines
}

/// Address, name, since when and until when; separated by tabs.
fn in_columns(sightings: &[Kept]) -> String {
    let at = |time: Timestamp| {
        let instant = i64::try_from(time.as_secs_ceil()).ok().and_then(|secs| jiff::Timestamp::from_second(secs).ok());
        instant.map_or_else(|| "?".to_owned(), |instant| instant.to_string())
    };
    let mut text = String::from("ADDRESS\tNAME\tFIRST SEEN\tLAST SEEN\tTOLD UNTIL\tEND\n");
    for Kept { addr, name, first_seen, last_seen, told_until, end, .. } in sightings {
        let [first_seen, last_seen, told_until, end] = [*first_seen, *last_seen, *told_until, *end].map(at);
        let _ = writeln!(text, "{addr}\t{name}\t{first_seen}\t{last_seen}\t{told_until}\t{end}");
    }
    text
}

/// Reads a whole dump; the first mistake ends it.
fn read_dump(place: &Path, input: impl BufRead) -> Result<(Head, Vec<Kept>), Failure> {
    let mut progress = Progress::new();
    let fault =
        |line: u64, what: &dyn std::fmt::Display| Failure::failed(format!("{}:{line}: {what}", place.display()));
    let mut lines = (1..).zip(input.lines());
    let head = match lines.next() {
        None => String::new(),
        Some((line, text)) => text.map_err(|error| fault(line, &error))?,
    };
    let head = Head::read(&head).map_err(|error| fault(1, &error))?;
    let mut sightings = Vec::new();
    for (line, text) in lines {
        let text = text.map_err(|error| fault(line, &error))?;
        sightings.push(dump::read(&text).map_err(|error| fault(line, &error))?);
        progress.tell(sightings.len() as u64, head.count);
    }
    progress.done();
    let found = sightings.len() as u64;
    if found != head.count {
        let (found, count) = (found + 1, head.count + 1);
        return Err(Failure::failed(format!(
            "{}: expected {count} lines, found {found}: the dump is not whole",
            place.display()
        )));
    }
    Ok((head, sightings))
}

/// Puts the sightings of a dump into the store: those that an answer could bring in today.
fn restore(config: &Config, args: &StoreRestoreArgs) -> Result<(), Failure> {
    let options = options(config)?;
    let catalogue = catalogue::load(&config.catalogue, today()).map_err(Failure::usage)?.catalogue;
    let (_, sightings) = if args.file == Path::new("-") {
        read_dump(Path::new("standard input"), io::stdin().lock())
    } else {
        let file = std::fs::File::open(&args.file)
            .map_err(|error| Failure::failed(format!("{}: {error}", args.file.display())))?;
        read_dump(&args.file, BufReader::new(file))
    }?;
    let clock = Clock::system();
    let mut sieve = Sieve::new(config, catalogue, &clock);
    let sightings: Vec<Kept> = sightings.into_iter().filter_map(|kept| sieve.pass(kept)).collect();
    let merged =
        store::merge(&options, &clock, sightings).map_err(|error| Failure::failed(format!("store.path: {error}")))?;
    let mut text = format!(
        "{}: {} sightings are new, {} stay longer, {} were known as long\n",
        options.path.display(),
        merged.new_count,
        merged.changed_count,
        merged.known_count
    );
    let Sieve { ended, inadmissible, unlisted, .. } = sieve;
    if ended + inadmissible + unlisted > 0 {
        let _ = writeln!(
            text,
            "left out: {ended} that have ended, {inadmissible} that may never be learned, {unlisted} whose name no list has"
        );
    }
    super::print(text)
}

/// What lets pass what an answer could bring in.
struct Sieve {
    learner: learn::Learner,
    listing: learn::Listing,
    now: Timestamp,
    /// No answer is told for longer.
    end_max: Timestamp,
    ended: u64,
    inadmissible: u64,
    unlisted: u64,
}

impl Sieve {
    fn new(config: &Config, catalogue: catalogue::Catalogue, clock: &Clock) -> Self {
        let catalogue = Arc::new(catalogue);
        let options = config.learn.clone();
        let span = config.cache.max_ttl.max(options.min_hold).saturating_add(options.grace);
        let start = learn::Start::new(options, listing(&catalogue), 1);
        let (learner, _writer) = learn::start(start, clock.clone(), &Registry::new());
        let now = clock.now();
        let (listing, end_max) = (listing(&catalogue), now.after(span));
        Self { learner, listing, now, end_max, ended: 0, inadmissible: 0, unlisted: 0 }
    }

    fn pass(&mut self, mut kept: Kept) -> Option<Kept> {
        if kept.granted <= self.now {
            self.ended += 1;
        } else if self.learner.admits(kept.addr).is_err() {
            self.inadmissible += 1;
        } else if self.listing.tag(&kept.name).is_none() {
            self.unlisted += 1;
        } else {
            kept.last_seen = kept.last_seen.min(self.now);
            kept.first_seen = kept.first_seen.min(kept.last_seen);
            kept.told_until = kept.told_until.min(self.end_max);
            kept.end = kept.end.min(self.end_max);
            kept.granted = kept.granted.min(self.end_max.after(SLACK));
            return Some(kept);
        }
        None
    }
}

/// A line that tells how far we are, where somebody watches.
struct Progress {
    is_watched: bool,
    is_begun: bool,
}

impl Progress {
    fn new() -> Self {
        Self { is_watched: io::stderr().is_terminal(), is_begun: false }
    }

    fn tell(&mut self, line: u64, count: u64) {
        if self.is_watched && line.is_multiple_of(PROGRESS_LINES) {
            self.is_begun = true;
            // Where nobody listens it is lost.
            let _ = write!(io::stderr(), "\r{line} of {count} read");
        }
    }

    fn done(&self) {
        if self.is_begun {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Where a dump is read from.
pub(super) fn dump_file(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() { Err("expected a file, or - for standard input") } else { Ok(text.into()) }
}
