//! What a file of `zones/` says, while it is read: the step between text and index.
//!
//! [`Draft`] collects the triggers of one file with the place of each, the file's keys, and everything that is to
//! be said about it. The readers of both forms fill one; what is checked of every trigger, whatever its form, is
//! checked here. Messages are bounded per file: a file that is no list at all must not fill the terminal.

use std::sync::Arc;

use jiff::civil::Date;

use super::lint::{self, Counts};
use super::tag::AppId;
use super::trigger::{Entry, Found, Kind};
use crate::name::Name;
use crate::prefix::Prefix;
use crate::source::{Located, Location, Problem};

/// The most problems, and the most warnings, told of one file; the rest is counted.
pub const MESSAGES_MAX: usize = 1000;

/// Where something stands in the file of a draft: line and column from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: u32,
    pub(super) col: u32,
}

/// A piece of the draft's text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    at: u32,
    len: u16,
}

impl Span {
    /// Cuts the piece out.
    pub(super) fn of(self, text: &str) -> &str {
        text.get(self.at as usize..self.at as usize + usize::from(self.len)).unwrap_or_default()
    }
}

/// A trigger that speaks of names, as it was read.
pub(super) struct NameLine {
    pub(super) name: Name,
    pub(super) kind: Kind,
    pub(super) written: Span,
    pub(super) place: Place,
}

/// A prefix, as it was read.
pub(super) struct PrefixLine {
    pub(super) prefix: Prefix,
    pub(super) written: Span,
    pub(super) place: Place,
}

/// The keys of a file; all may be missing.
#[derive(Default)]
pub(super) struct Keys {
    pub(super) title: Option<String>,
    pub(super) source: Option<String>,
    pub(super) retrieved: Option<Date>,
    pub(super) review_by: Option<Located<Date>>,
    pub(super) reason: Option<String>,
}

/// One file, read.
pub(super) struct Draft {
    pub(super) id: AppId,
    pub(super) file: Arc<str>,
    pub(super) keys: Keys,
    pub(super) names: Vec<NameLine>,
    pub(super) prefixes: Vec<PrefixLine>,
    /// The text of all triggers, one after another.
    pub(super) written: String,
    pub(super) problems: Notes,
    pub(super) warnings: Notes,
    pub(super) counts: Counts,
}

impl Draft {
    /// Starts an empty draft.
    pub(super) fn new(id: AppId, file: Arc<str>) -> Self {
        Self {
            id,
            file,
            keys: Keys::default(),
            names: Vec::new(),
            prefixes: Vec::new(),
            written: String::new(),
            problems: Notes::default(),
            warnings: Notes::default(),
            counts: Counts::default(),
        }
    }

    /// Returns a place of this file.
    pub(super) fn location(&self, place: Place) -> Location {
        Location { file: Arc::clone(&self.file), line: place.line, col: place.col }
    }

    /// Notes a mistake; the file is refused.
    pub(super) fn refuse(&mut self, place: Place, message: impl Into<String>) {
        let problem = Problem::new(self.location(place), message);
        self.problems.push(problem);
    }

    /// Notes something that is allowed and looks wrong.
    pub(super) fn warn(&mut self, place: Place, message: impl Into<String>) {
        let problem = Problem::new(self.location(place), message);
        self.warnings.push(problem);
    }

    /// Takes a trigger, written as `written`, unless it opens a public suffix.
    pub(super) fn push(&mut self, entry: Entry, written: &str, place: Place) {
        match entry {
            Entry::Name(trigger) => {
                match lint::reach(&trigger) {
                    lint::Reach::PublicSuffix(suffix) => {
                        self.refuse(place, lint::public_suffix_message(&Found::new(written), &suffix));
                        return;
                    }
                    lint::Reach::Strangers(reason) => {
                        self.counts.strangers += 1;
                        self.warn(place, lint::strangers_message(&Found::new(written), &reason));
                    }
                    lint::Reach::Own => {}
                }
                let written = self.keep(written);
                self.names.push(NameLine { name: trigger.name, kind: trigger.kind, written, place });
            }
            Entry::Prefix(prefix) => {
                let written = self.keep(written);
                self.prefixes.push(PrefixLine { prefix, written, place });
            }
        }
    }

    /// Keeps the text of a trigger. Files are at most 64 MiB and entries at most 1,024 octets, so both numbers fit.
    fn keep(&mut self, text: &str) -> Span {
        let at = self.written.len() as u32;
        self.written.push_str(text);
        Span { at, len: text.len().min(usize::from(u16::MAX)) as u16 }
    }
}

/// Messages about one file, at most [`MESSAGES_MAX`] of them.
#[derive(Default)]
pub(super) struct Notes {
    told: Vec<Problem>,
    left_off: usize,
}

impl Notes {
    /// Adds one, or counts it.
    pub(super) fn push(&mut self, problem: Problem) {
        if self.told.len() < MESSAGES_MAX {
            self.told.push(problem);
        } else {
            self.left_off += 1;
        }
    }

    /// Appends all to `out`, with one line for those left off.
    pub(super) fn drain_into(&mut self, file: &Arc<str>, what: &str, out: &mut Vec<Problem>) {
        self.told.sort();
        out.append(&mut self.told);
        if self.left_off > 0 {
            let message = format!("{} more {what} in this file than the {MESSAGES_MAX} told", self.left_off);
            out.push(Problem::new(Location::file(Arc::clone(file)), message));
            self.left_off = 0;
        }
    }
}
