//! What can be wrong with the configuration, and the list in which a run collects it.
//!
//! A [`Fault`] carries values; with its place and the dotted key in front it becomes one [`Problem`] for the user.
//! Readers push into [`Faults`] and go on, so one run reports everything. What a user wrote is quoted through
//! [`quoted`], so a message is one line whatever the file holds.

use std::fmt;

use thiserror::Error;

use super::upstream::UpstreamError;
use crate::cluster::UrlError;
use crate::export::nftables::SetsError;
use crate::name::NameError;
use crate::prefix::PrefixError;
use crate::source::{Location, Problem, Problems};

/// What is wrong with one key, table or value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Fault {
    /// The text is no TOML there.
    #[error("TOML: {what}{}{}", part(", found ", found), part(", expected ", expected))]
    Syntax { what: String, found: String, expected: String },
    /// The file or the variable holds octets that are no text.
    #[error("not UTF-8, expected text in UTF-8")]
    NotUtf8,
    /// No such key or table; `hint` says which there are.
    #[error("unknown {what}, {hint}")]
    Unknown { what: &'static str, hint: String },
    /// A value of another type, or outside its bounds.
    #[error("expected {expected}, found {found}")]
    Unexpected { expected: String, found: String },
    /// A key that its table cannot do without.
    #[error("missing, expected {expected}")]
    Missing { expected: String },
    /// No prefix.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// No domain name.
    #[error("{found} is no domain name: {source}")]
    Name { found: String, source: NameError },
    /// A name with characters outside ASCII that has no A-label form (RFC 5891).
    #[error("{found} has no A-label form, expected letters and digits that IDNA allows (RFC 5891)")]
    Idna { found: String },
    /// No upstream.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The same thing twice.
    #[error("{what} stands already {first}, expected it once")]
    Twice { what: String, first: First },
    /// Two sockets that cannot be open together.
    #[error("{what} takes the port of {other}, which stands {first}, expected one of them or another port")]
    Overlap { what: String, other: String, first: First },
    /// An upstream that is this server.
    #[error("{upstream} is our own address {listening}, questions would go in a circle, expected another server")]
    Circle { upstream: String, listening: String },
    /// Encrypted listeners without the certificate that they need, or half of it.
    #[error("needs {missing}, expected the certificate's files in [tls]")]
    NoCertificate { missing: &'static str },
    /// No URL of a cluster.
    #[error(transparent)]
    Cluster(#[from] UrlError),
    /// A name that is no special-use zone, nor below one.
    #[error("{name} is not answered at home, expected a special-use zone or a name below one, such as \"home.arpa\"")]
    NotSpecial { name: String },
    /// Sets of nftables that cannot be filled as they are named.
    #[error(transparent)]
    Sets(#[from] SetsError),
    /// Checked, but without effect in this release.
    #[error("not built yet, setting it has no effect")]
    NotBuilt,
}

/// Where the other one of two stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// In the file or a variable.
    At(Location),
    /// Nowhere: it is the default of this key.
    DefaultOf(&'static str),
}

impl fmt::Display for First {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(location) => write!(f, "at {location}"),
            Self::DefaultOf(key) => write!(f, "as the default of {key}"),
        }
    }
}

/// Puts `lead` before `text`, or nothing before nothing.
fn part(lead: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{lead}{text}") }
}

/// The faults of one run.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Problem>);

impl Faults {
    /// Notes a fault of `key` (dotted; empty for the file as a whole).
    pub(super) fn push(&mut self, location: Location, key: &str, fault: impl Into<Fault>) {
        let fault = fault.into();
        let message = if key.is_empty() { fault.to_string() } else { format!("{key}: {fault}") };
        self.0.push(Problem::new(location, message));
    }

    /// Returns whether nothing was wrong so far.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops what stands at or after line and column of `end` in the file; variables are kept.
    pub(super) fn keep_before(&mut self, end: &Location) {
        self.0.retain(|problem| problem.location.line == 0 || problem.location < *end);
    }

    /// Returns all, each once: the file's in its order, then those of variables by name.
    pub(super) fn into_problems(self) -> Problems {
        let mut problems = self.0;
        problems.sort_by(|a, b| (a.location.line == 0, a).cmp(&(b.location.line == 0, b)));
        problems.dedup();
        Problems(problems)
    }
}

/// The most characters of a user's text that a message repeats.
const QUOTED_LEN_MAX: usize = 60;

/// Returns a user's text in double quotes on one line: control characters escaped, a long text cut.
pub(super) fn quoted(text: &str) -> String {
    let cut = text.char_indices().nth(QUOTED_LEN_MAX).map_or(text.len(), |(at, _)| at);
    let dots = if cut < text.len() { "…" } else { "" };
    let escaped: String = text[..cut].chars().map(escape).collect();
    format!("\"{escaped}{dots}\"")
}

/// Escapes what would break the line, the quotes or the terminal.
fn escape(c: char) -> String {
    match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => c.escape_default().to_string(),
        // Direction marks would let a message read otherwise than it is.
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
            c.escape_unicode().to_string()
        }
        c => c.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_stays_on_one_line() {
        assert_eq!(quoted("a\n\"b\u{1b}[2J\u{202e}"), "\"a\\n\\\"b\\u{1b}[2J\\u{202e}\"");
        assert_eq!(quoted(&"x".repeat(61)), format!("\"{}…\"", "x".repeat(60)));
        assert_eq!(quoted("bücher"), "\"bücher\"");
    }

    #[test]
    fn problems_stand_in_the_order_of_the_file() {
        let mut faults = Faults::default();
        let at = |line, col| Location { file: "z.toml".into(), line, col };
        let fault = || Fault::NotUtf8;
        faults.push(Location::file("GREENLANE__A__B"), "", fault());
        faults.push(at(10, 1), "", fault());
        faults.push(at(2, 7), "", fault());
        faults.push(at(2, 7), "", fault());
        let places: Vec<String> = faults.into_problems().0.iter().map(|p| p.location.to_string()).collect();
        assert_eq!(places, ["z.toml:2:7", "z.toml:10:1", "GREENLANE__A__B"]);
    }
}
