//! What would change, a line each, for `--dry-run`.
//!
//! ```text
//! + 198.51.100.0/24 (box)
//! + 192.0.2.1/32 until 2026-07-18T12:00:00Z (zoom)
//! ~ 192.0.2.1/32 until 2026-07-18T12:20:00Z (zoom)     a later end
//! - 192.0.2.1/32
//! ```

use std::collections::BTreeSet;
use std::io::{self, Write};

use super::book::{Book, News};
use crate::catalogue::AppId;
use crate::clock::Timestamp;
use crate::prefix::Prefix;

/// Writes changes down instead of making them.
pub struct Printer {
    out: Box<dyn Write + Send>,
    hosts: BTreeSet<Prefix>,
    statics: BTreeSet<Prefix>,
}

impl Printer {
    /// Writes to `out`.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self { out: Box::new(out), hosts: BTreeSet::new(), statics: BTreeSet::new() }
    }

    /// Writes what `news` would change; `is_whole`: all else would go.
    pub(super) fn print(&mut self, news: &News, is_whole: bool, book: &Book) -> io::Result<()> {
        if let Some(statics) = &news.statics {
            let listed: BTreeSet<Prefix> = statics.iter().map(|entry| entry.prefix).collect();
            for gone in self.statics.difference(&listed) {
                writeln!(self.out, "- {gone}")?;
            }
            for entry in statics.iter().filter(|entry| !self.statics.contains(&entry.prefix)) {
                writeln!(self.out, "+ {}{}", entry.prefix, named(&entry.apps))?;
            }
            self.statics = listed;
        }
        if is_whole {
            let kept: BTreeSet<Prefix> = news.hosts.iter().map(|(addr, _)| Prefix::host(*addr)).collect();
            for gone in self.hosts.difference(&kept) {
                writeln!(self.out, "- {gone}")?;
            }
            self.hosts = self.hosts.intersection(&kept).copied().collect();
        }
        for (addr, until) in &news.hosts {
            let prefix = Prefix::host(*addr);
            match until.and_then(|_| book.host(*addr)) {
                Some((end, apps)) => {
                    let sign = if self.hosts.insert(prefix) { '+' } else { '~' };
                    writeln!(self.out, "{sign} {prefix} until {}{}", instant(end), named(apps))?;
                }
                None if self.hosts.remove(&prefix) => writeln!(self.out, "- {prefix}")?,
                None => {}
            }
        }
        self.out.flush()
    }
}

/// The apps in brackets, escaped: they were sent by a stranger.
fn named(apps: &[AppId]) -> String {
    if apps.is_empty() {
        return String::new();
    }
    let apps: Vec<String> = apps.iter().map(|app| app.as_str().escape_debug().collect()).collect();
    format!(" ({})", apps.join(", "))
}

fn instant(at: Timestamp) -> String {
    let secs = i64::try_from(at.as_secs_ceil()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(secs).map_or_else(|_| at.to_string(), |at| at.to_string())
}
