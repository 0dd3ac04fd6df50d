//! `greenlane prefixes`: the set of a running greenlane, as its feeds give it; and the word that it may shrink.

use serde_json::Value;

use super::site::{Right, Site, percent_encoded};
use super::{ConfigFile, Failure, PrefixesArgs};
use crate::export::format::Format;

/// Fetches and prints the set, or accepts a shrink.
pub(super) fn run(file: &ConfigFile, args: &PrefixesArgs) -> Result<(), Failure> {
    if args.accept_shrink {
        return accept_shrink(&Site::find(file, &args.site, Right::Act)?);
    }
    let page = match args.format {
        format if Format::PREFIXES.contains(&format) => format!("prefixes.{}", format.name()),
        feed => format!("feeds/{}.txt", feed.name()),
    };
    let mut query = Vec::new();
    query.extend(args.family.as_ref().map(|family| format!("family={family}")));
    query.extend(args.app.as_ref().map(|apps| format!("app={}", percent_encoded(apps))));
    query.extend(args.origin.as_ref().map(|origin| format!("origin={}", percent_encoded(origin))));
    let target = format!("/{page}{}{}", if query.is_empty() { "" } else { "?" }, query.join("&"));
    super::print(Site::find(file, &args.site, Right::Open)?.get(&target)?)
}

/// Prints the prefixes that left, one a line, and says how many entries were let go.
fn accept_shrink(site: &Site) -> Result<(), Failure> {
    let answer = site.post_json("/shrink/accept")?;
    let Some(released) = answer["released"].as_u64() else {
        return Err(Failure::failed(format!("{}: the answer says nothing of a shrink", site.url())));
    };
    if released == 0 {
        super::tell("nothing is held back: the set is as the lists say");
        return Ok(());
    }
    let withdrawn = answer["withdrawn"].as_array();
    let lines = withdrawn.into_iter().flatten().filter_map(|item| item["prefix"].as_str());
    super::print(lines.flat_map(|prefix| [escaped(prefix), "\n".to_owned()]).collect::<String>())?;
    let noun = if released == 1 { "entry that is" } else { "entries that are" };
    let left = match withdrawn.map(Vec::len) {
        None => "they are too many to list".to_owned(),
        Some(1) => "1 prefix left the set".to_owned(),
        Some(count) => format!("{count} prefixes left the set"),
    };
    let serial = match &answer["serial"] {
        Value::Number(serial) => format!(", which is at serial {serial}"),
        _ => String::new(),
    };
    super::tell(format_args!("let go of {released} {noun} listed no longer; {left}{serial}"));
    Ok(())
}

/// Makes text that any server may have sent safe for a terminal.
fn escaped(text: &str) -> String {
    text.chars().flat_map(char::escape_debug).collect()
}
