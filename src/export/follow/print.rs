//! What would change, a line each, for `--dry-run`.
//!
//! ```text
//! + 198.51.100.0/24 (box)
//! + 192.0.2.1/32 until 2026-07-18T12:00:00Z (zoom)
//! ~ 192.0.2.1/32 until 2026-07-18T12:20:00Z (zoom)     a later end
//! - 192.0.2.1/32
//! = 192.0.2.7/32 until 2026-07-18T12:00:00Z            there, and told by nobody: it is left to end by itself
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use super::book::{Book, News};
use crate::catalogue::AppId;
use crate::clock::Timestamp;
use crate::prefix::Prefix;
use crate::set::{StaticEntry, aggregate};

/// Writes changes down instead of making them.
pub struct Printer {
    out: Box<dyn Write + Send>,
    /// With the instant until which each is held; `None`: for ever.
    hosts: BTreeMap<IpAddr, Option<Timestamp>>,
    statics: BTreeSet<Prefix>,
    /// What was there before us is left to end by itself.
    is_first: bool,
}

impl Printer {
    /// Writes to `out` what would change in a place that holds nothing.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self { out: Box::new(out), hosts: BTreeMap::new(), statics: BTreeSet::new(), is_first: true }
    }

    /// Makes it hold these hosts, each until then, and these prefixes.
    pub fn holding(
        self,
        hosts: impl IntoIterator<Item = (IpAddr, Option<Timestamp>)>,
        statics: impl IntoIterator<Item = Prefix>,
    ) -> Self {
        Self { hosts: hosts.into_iter().collect(), statics: statics.into_iter().collect(), ..self }
    }

    /// Writes what `news` would change; `is_whole`: all else would go.
    pub(super) fn print(&mut self, news: &News, is_whole: bool, book: &Book) -> io::Result<()> {
        if let Some(statics) = &news.statics {
            self.print_statics(statics)?;
        }
        if is_whole {
            let kept: BTreeSet<IpAddr> = news.hosts.iter().map(|(addr, _)| *addr).collect();
            for (gone, until) in &self.hosts {
                match until {
                    _ if kept.contains(gone) => {}
                    Some(until) if self.is_first => {
                        writeln!(self.out, "= {} until {}", Prefix::host(*gone), instant(*until))?;
                    }
                    _ => writeln!(self.out, "- {}", Prefix::host(*gone))?,
                }
            }
            self.hosts.retain(|addr, _| kept.contains(addr));
            self.is_first = false;
        }
        for (addr, until) in &news.hosts {
            let prefix = Prefix::host(*addr);
            match until.and_then(|until| Some((until, book.host(*addr)?))) {
                Some((until, (end, apps))) => {
                    let sign = match self.hosts.insert(*addr, Some(until)) {
                        None => '+',
                        Some(Some(held)) if held.since(until).max(until.since(held)) <= SAME => continue,
                        Some(_) => '~',
                    };
                    writeln!(self.out, "{sign} {prefix} until {}{}", instant(end), named(apps))?;
                }
                None if self.hosts.remove(addr).is_some() => writeln!(self.out, "- {prefix}")?,
                None => {}
            }
        }
        self.out.flush()
    }

    /// Goes by what is covered, since neighbours are one prefix where they are held.
    fn print_statics(&mut self, statics: &[StaticEntry]) -> io::Result<()> {
        let listed = aggregate(statics.iter().map(|entry| entry.prefix));
        // Sorted and disjoint, so the last one that does not come after it is the only one that can.
        let is_in = |all: &[Prefix], prefix: Prefix| {
            let behind = all.partition_point(|one| *one <= prefix);
            behind.checked_sub(1).is_some_and(|at| all[at].covers(&prefix))
        };
        let (kept, gone): (Vec<Prefix>, Vec<Prefix>) = self.statics.iter().partition(|held| is_in(&listed, **held));
        for gone in gone {
            writeln!(self.out, "- {gone}")?;
        }
        let kept = aggregate(kept);
        for entry in statics.iter().filter(|entry| !is_in(&kept, entry.prefix)) {
            writeln!(self.out, "+ {}{}", entry.prefix, named(&entry.apps))?;
        }
        self.statics = statics.iter().map(|entry| entry.prefix).collect();
        Ok(())
    }
}

/// Ends so close are one: the kernel counts in ticks, and a dump takes its time.
const SAME: Duration = Duration::from_secs(2);

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
