//! What `greenlane check` says about a catalogue that loads: a table of apps, totals, warnings.

use std::fmt;

use super::load::Loaded;

/// The report on a loaded catalogue, printed through `Display`: lines of text, LF at the end of each.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a>(&'a Loaded);

/// Makes the report: per app its names, exceptions and prefixes, then the totals, then every warning.
pub fn report(loaded: &Loaded) -> Report<'_> {
    Report(loaded)
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_table(f)?;
        self.write_totals(f)?;
        self.write_warnings(f)
    }
}

impl Report<'_> {
    fn write_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let apps = self.0.catalogue.apps();
        if apps.is_empty() {
            return Ok(());
        }
        let width = apps.iter().map(|app| app.id.as_str().len()).max().unwrap_or(0).max("app".len());
        writeln!(f, "{:width$}  {:>7}  {:>7}  {:>7}  {:>8}  title", "app", "names", "except", "prefix", "triggers")?;
        for app in apps {
            let disabled = if app.disabled { " (disabled)" } else { "" };
            let (id, title) = (app.id.as_str(), super::Found::new(&app.title));
            let (names, exceptions, prefixes) = (app.name_count, app.exception_count, app.prefix_count);
            writeln!(
                f,
                "{id:width$}  {names:>7}  {exceptions:>7}  {prefixes:>7}  {:>8}  {title}{disabled}",
                app.trigger_count
            )?;
        }
        writeln!(f)
    }

    fn write_totals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let catalogue = &self.0.catalogue;
        let enabled = catalogue.apps().iter().filter(|app| !app.disabled).count();
        let (names, prefixes) = (catalogue.name_count(), catalogue.prefixes().len());
        writeln!(
            f,
            "{}, {}, {} in all, hash {:016x}",
            count(enabled, "app", "apps"),
            count(names, "name", "names"),
            count(prefixes, "prefix", "prefixes"),
            catalogue.hash()
        )
    }

    fn write_warnings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (warnings, counts) = (&self.0.warnings, &self.0.counts);
        for (number, what) in [
            (counts.overlaps, "pairs of a trigger inside another"),
            (counts.strangers, "triggers that open names of strangers"),
            (counts.repeats, "triggers that stand twice"),
            (counts.idle, "triggers without effect"),
            (counts.reviews, "review dates gone by"),
        ] {
            if number > 0 {
                writeln!(f, "warning: {number} {what}")?;
            }
        }
        warnings.iter().try_for_each(|warning| writeln!(f, "warning: {warning}"))
    }
}

fn count(number: usize, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}
