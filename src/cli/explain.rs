//! `greenlane explain`: why a name or an address is bypassed, or why not.
//!
//! The running daemon is asked over its web listener, since it knows what was learned. `--offline` does without one: it
//! reads the lists and what the store has kept. A daemon that has the store open is asked all the same; if it cannot be
//! asked, the lists alone say what they say.

use std::fmt::Write as _;

use serde_json::Value;

use super::site::{Right, Site, percent_encoded};
use super::{ConfigFile, ExplainArgs, Failure};
use crate::catalogue::{self, Catalogue};
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::{listing, today};
use crate::learn;
use crate::metrics::Registry;
use crate::prefix::Prefix;
use crate::set::outlet::Restored;
use crate::store::{self, StoreError};
use crate::web::{Hooks, explain};

/// Explains and prints.
pub(super) fn run(file: &ConfigFile, args: &ExplainArgs) -> Result<(), Failure> {
    let what = Subject::read(&args.what)?;
    let target = format!("/explain?{}={}", what.key(), percent_encoded(&args.what));
    let (value, source) = if args.offline {
        let config = file.load()?;
        let loaded = catalogue::load(&config.catalogue, today()).map_err(Failure::usage)?;
        let ask = || Site::find(file, &args.site, Right::Read)?.get_json(&target);
        match stored(&config, ask) {
            Stored::Told(value) => (value, Source::Daemon),
            Stored::Kept(restored) => (offline(&what, loaded.catalogue, config.learn, Some(restored)), Source::Store),
            Stored::Unknown => (offline(&what, loaded.catalogue, config.learn, None), Source::Lists),
        }
    } else {
        let site = Site::find(file, &args.site, Right::Read)?;
        let value = site.get_json(&target).map_err(|failure| Failure {
            message: format!("{}\n(`--offline` reads the lists and the store)", failure.message),
            ..failure
        })?;
        (value, Source::Daemon)
    };
    super::print(if args.json { format!("{value:#}\n") } else { in_words(&value, source) })
}

/// What is known of the addresses learned, without a daemon.
enum Stored {
    /// The store has it.
    Kept(Restored),
    /// The daemon that has the store open says it all.
    Told(Value),
    /// Nobody says.
    Unknown,
}

/// Reads the store, or asks who has it open.
fn stored(config: &Config, ask: impl FnOnce() -> Result<Value, Failure>) -> Stored {
    let Some(options) = &config.store else { return Stored::Unknown };
    match store::look(&options.path, &Clock::system()) {
        Ok(look) => Stored::Kept(look.restored),
        Err(StoreError::InUse(_) | StoreError::Denied { .. }) => ask().map_or(Stored::Unknown, Stored::Told),
        Err(StoreError::Missing(_)) => Stored::Unknown,
        Err(error) => {
            super::tell(format_args!("warning: store.path: {error}"));
            Stored::Unknown
        }
    }
}

/// Where an explanation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Daemon,
    Store,
    Lists,
}

impl Source {
    /// What is said below an explanation that may lack something.
    fn note(self) -> &'static str {
        match self {
            Self::Daemon => "",
            Self::Store => "(the lists and the store were read; no greenlane has it open)\n",
            Self::Lists => "(the lists alone were asked, not what was learned)\n",
        }
    }
}

/// What is to be explained.
enum Subject {
    Name(crate::name::Name),
    Address(std::net::IpAddr),
}

impl Subject {
    fn read(text: &str) -> Result<Self, Failure> {
        if let Ok(addr) = explain::read_address(text) {
            return Ok(Self::Address(addr));
        }
        // As a name it would be explained, too: as one that no list has.
        let found = text.escape_debug();
        if text.parse::<Prefix>().is_ok() {
            return Err(Failure::usage(format!(
                "`{found}`: expected one address, found a prefix; leave the length out"
            )));
        }
        explain::read_name(text)
            .map(Self::Name)
            .map_err(|error| Failure::usage(format!("`{found}`: {error}, expected a domain name or an IP address")))
    }

    fn key(&self) -> &'static str {
        match self {
            Self::Name(_) => "name",
            Self::Address(_) => "address",
        }
    }
}

/// Explains by lists and rules, as a daemon would that begins with what was kept.
fn offline(what: &Subject, catalogue: Catalogue, options: learn::Options, restored: Option<Restored>) -> Value {
    let catalogue = std::sync::Arc::new(catalogue);
    let start = learn::Start { restored, ..learn::Start::new(options, listing(&catalogue), 1) };
    let (learner, _writer) = learn::start(start, Clock::system(), &Registry::new());
    let admitting = learner.clone();
    let hooks = Hooks {
        why_not: std::sync::Arc::new(move |addr| admitting.admits(addr).err().map(|reason| reason.to_string())),
        ..Hooks::default()
    };
    match what {
        Subject::Name(name) => explain::name(&catalogue, &learner.reader(), &hooks, name),
        Subject::Address(addr) => explain::address(&catalogue, &learner.reader().snapshot(), &hooks, *addr),
    }
}

/// The same for people. Members that are missing are left out: another version may have answered.
fn in_words(value: &Value, source: Source) -> String {
    let mut text = String::new();
    if let Some(name) = value["name"].as_str() {
        name_in_words(&mut text, name, value);
        text.push_str(source.note());
    } else if let Some(address) = value["address"].as_str() {
        address_in_words(&mut text, address, value);
        if value["in_set"] == false {
            text.push_str(source.note());
        }
    }
    text
}

fn name_in_words(text: &mut String, name: &str, value: &Value) {
    let verdict = if value["tagged"] == true { "is bypassed" } else { "is not bypassed" };
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(text, "{name} {verdict}");
    for app in members(&value["apps"]) {
        let why = match app["verdict"].as_str() {
            Some("bypass") => "yes, by",
            Some("excepted") => "no, excepted by",
            Some("never") => "no, catalogue.never has",
            _ => "by",
        };
        let _ =
            writeln!(text, "  {}: {why} `{}` at {}", word(&app["app"]), word(&app["trigger"]), word(&app["location"]));
    }
    if members(&value["apps"]).next().is_none() {
        text.push_str("  no list has a trigger for it\n");
    }
    if let Some(listed) = value["followed_from"]["name"].as_str() {
        let _ = writeln!(text, "  its addresses are learned for {listed}, whose HTTPS record points to it");
    }
    for seen in members(&value["addresses"]) {
        let _ = writeln!(text, "  {} in the set {}", word(&seen["address"]), span(seen));
    }
}

fn address_in_words(text: &mut String, address: &str, value: &Value) {
    let verdict = if value["in_set"] == true { "is bypassed" } else { "is not bypassed" };
    let _ = writeln!(text, "{address} {verdict}");
    for entry in members(&value["statics"]) {
        for app in members(&entry["apps"]) {
            let _ = writeln!(
                text,
                "  {}: inside {}, listed at {}",
                word(&app["app"]),
                word(&entry["prefix"]),
                word(&app["location"])
            );
        }
    }
    for seen in members(&value["sightings"]) {
        for app in members(&seen["apps"]) {
            let _ = writeln!(
                text,
                "  {}: answered for {}, by `{}` at {}, {}",
                word(&app["app"]),
                word(&seen["name"]),
                word(&app["trigger"]),
                word(&app["location"]),
                span(seen)
            );
        }
    }
    if let Some(why) = value["why_not"].as_str() {
        let _ = writeln!(text, "  {why}");
    }
}

fn members(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// Since when and until when, in UTC.
fn span(seen: &Value) -> String {
    let at = |key: &str| {
        let instant = seen[key].as_i64().and_then(|secs| jiff::Timestamp::from_second(secs).ok());
        instant.map_or_else(|| "?".to_owned(), |instant| instant.to_string())
    };
    format!("since {} until {}", at("first_seen"), at("end"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_is_explained_in_words() {
        let value = json!({
            "name": "eu.zoom.us", "tagged": true, "followed_from": null,
            "apps": [{"app": "zoom", "verdict": "bypass", "trigger": "zoom.us", "location": "zones/zoom.list:6:1"}],
            "addresses": [{"address": "192.0.2.1", "first_seen": 0, "end": 900}],
        });
        assert_eq!(
            in_words(&value, Source::Daemon),
            "eu.zoom.us is bypassed\n  zoom: yes, by `zoom.us` at zones/zoom.list:6:1\n  \
             192.0.2.1 in the set since 1970-01-01T00:00:00Z until 1970-01-01T00:15:00Z\n"
        );
    }

    #[test]
    fn an_address_outside_the_set_says_why() {
        let value =
            json!({"address": "10.0.0.1", "in_set": false, "statics": [], "sightings": [], "why_not": "private"});
        assert_eq!(in_words(&value, Source::Daemon), "10.0.0.1 is not bypassed\n  private\n");
    }
}
