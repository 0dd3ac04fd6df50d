//! `/explain`: why a name is tagged, why an address is in the set, or why not.
//!
//! For a name: what each app that lists anything about it says, by which trigger and where that stands, and which
//! addresses were learned for it. For an address: the static prefixes and the sightings that hold it in the set, or
//! what keeps it out. Times are Unix seconds, ends rounded up. Names are printed in the escapes of RFC 1035, then
//! escaped for JSON.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde_json::{Value, json};
use thiserror::Error;

use super::query::{self, Subject};
use super::reply::{failed, json as reply, not_ready, refused};
use super::state::{Hooks, Web};
use crate::catalogue::{Catalogue, Tag, Verdict};
use crate::name::{Name, NameError};
use crate::set::{Reader, Sighting, Snapshot};

/// Text that names nothing to explain.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SubjectError {
    /// A name that does not parse.
    #[error("name: {0}")]
    Name(#[from] NameError),
    /// A name outside ASCII that makes no A-labels.
    #[error("name: no valid internationalized name (RFC 5891)")]
    Idn,
    /// Text that is no address.
    #[error("address: expected an IPv4 or IPv6 address without a length")]
    Address,
}

/// Answers `/explain`.
pub(super) async fn explain(web: Arc<Web>, uri: Uri) -> Response {
    if !web.is_ready() {
        return not_ready();
    }
    let subject = match query::subject(&uri) {
        Ok(subject) => subject,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let catalogue = web.state.catalogue.load_full();
    let value = match subject {
        Subject::Name(text) => {
            read_name(&text).map(|asked| name(&catalogue, &web.state.reader, &web.state.hooks, &asked))
        }
        Subject::Address(text) => match read_address(&text) {
            Err(error) => Err(error),
            Ok(asked) => {
                let (snapshot, hooks) = (web.state.reader.snapshot(), web.state.hooks.clone());
                // A catalogue may hold a million prefixes.
                match web.store.blocking(move || address(&catalogue, &snapshot, &hooks, asked)).await {
                    Ok(value) => Ok(value),
                    Err(error) => return failed(&error),
                }
            }
        },
    };
    match value {
        Ok(value) => reply(&value),
        Err(error) => refused(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// Reads a name as a user types it: presentation form, or a name outside ASCII, which becomes A-labels.
///
/// # Errors
/// [`SubjectError::Name`] or [`SubjectError::Idn`].
pub fn read_name(text: &str) -> Result<Name, SubjectError> {
    if text.is_ascii() {
        return Ok(Name::parse(text)?);
    }
    let ascii = idna::domain_to_ascii(text).map_err(|_| SubjectError::Idn)?;
    Ok(Name::parse(&ascii)?)
}

/// Reads an address; an IPv4-mapped one is the IPv4 address.
///
/// # Errors
/// [`SubjectError::Address`].
pub fn read_address(text: &str) -> Result<IpAddr, SubjectError> {
    text.trim().parse::<IpAddr>().map(|addr| addr.to_canonical()).map_err(|_| SubjectError::Address)
}

/// Explains a name.
///
/// ```json
/// {"name":"eu.zoom.us","tagged":true,
///  "apps":[{"app":"zoom","verdict":"bypass","trigger":"zoom.us","location":"zones/zoom.list:3:1"}],
///  "followed_from":null,
///  "addresses":[{"address":"192.0.2.1","first_seen":1,"last_seen":2,"told_until":62,"end":902}]}
/// ```
/// `verdict` is `bypass`, `excepted` (a `!` of the app's own list) or `never` (`catalogue.never`). `followed_from` is
/// the listed name whose HTTPS or SVCB answer named this one as its target.
pub fn name(catalogue: &Catalogue, reader: &Reader, hooks: &Hooks, asked: &Name) -> Value {
    let decisions = catalogue.decide(asked);
    let apps: Vec<Value> = decisions
        .iter()
        .map(|decision| {
            json!({
                "app": decision.app.as_str(),
                "verdict": verdict(decision.verdict),
                "trigger": &*decision.trigger,
                "location": decision.location.to_string(),
            })
        })
        .collect();
    let followed =
        (hooks.followed)(asked).map(|(listed, tag)| json!({ "name": listed.to_string(), "apps": tag_apps(&tag) }));
    let mut sightings = reader.sightings_of(asked);
    sightings.sort_unstable_by_key(|sighting| sighting.addr());
    let addresses: Vec<Value> = sightings
        .iter()
        .map(|sighting| {
            let mut value = times(sighting);
            value["address"] = json!(sighting.addr().to_string());
            value
        })
        .collect();
    json!({
        "name": asked.to_string(),
        "tagged": catalogue.find(asked).is_some(),
        "apps": apps,
        "followed_from": followed,
        "addresses": addresses,
    })
}

/// Explains an address.
///
/// ```json
/// {"address":"192.0.2.1","in_set":true,
///  "statics":[{"prefix":"192.0.2.0/24",
///              "apps":[{"app":"box","trigger":"192.0.2.0/24","location":"zones/box.list:9:1"}]}],
///  "sightings":[{"name":"eu.zoom.us","apps":[{"app":"zoom","trigger":"zoom.us","location":"zones/zoom.list:3:1"}],
///                "first_seen":1,"last_seen":2,"told_until":62,"end":902}],
///  "why_not":null}
/// ```
/// `why_not` says for an address outside the set what keeps it from being learned, or that nothing does.
pub fn address(catalogue: &Catalogue, snapshot: &Snapshot, hooks: &Hooks, asked: IpAddr) -> Value {
    let statics: Vec<Value> = snapshot
        .statics()
        .iter()
        .filter(|entry| entry.prefix.contains(asked))
        .map(|entry| {
            let listed = catalogue.prefixes().binary_search_by_key(&entry.prefix, |listed| listed.prefix);
            let apps = match listed.ok().and_then(|at| catalogue.prefixes().get(at)) {
                Some(listed) => tag_apps(&listed.tag),
                // Between a reload's two steps the set may hold what the lists of now do not.
                None => entry.apps.iter().map(|app| json!({ "app": app.as_str() })).collect(),
            };
            json!({ "prefix": entry.prefix.to_string(), "apps": apps })
        })
        .collect();
    let sightings: Vec<Value> = snapshot
        .host(asked)
        .map(|host| host.sightings())
        .unwrap_or_default()
        .iter()
        .map(|sighting| {
            let mut value = times(sighting);
            value["name"] = json!(sighting.name().to_string());
            value["apps"] = json!(tag_apps(sighting.tag()));
            value
        })
        .collect();
    let in_set = !statics.is_empty() || !sightings.is_empty();
    let why_not = (!in_set).then(|| {
        (hooks.why_not)(asked).unwrap_or_else(|| "no listed name was answered with it and no list holds it".to_owned())
    });
    json!({
        "address": asked.to_string(),
        "in_set": in_set,
        "statics": statics,
        "sightings": sightings,
        "why_not": why_not,
    })
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Bypass => "bypass",
        Verdict::Excepted => "excepted",
        Verdict::Never => "never",
    }
}

fn tag_apps(tag: &Tag) -> Vec<Value> {
    let app = |hit: &crate::catalogue::TagApp| json!({ "app": hit.app.as_str(), "trigger": &*hit.trigger, "location": hit.location.to_string() });
    tag.apps().iter().map(app).collect()
}

fn times(sighting: &Sighting) -> Value {
    let times = sighting.times();
    json!({
        "first_seen": sighting.first_seen().as_secs(),
        "last_seen": times.last_seen.as_secs(),
        "told_until": times.told_until.as_secs_ceil(),
        "end": times.end.as_secs_ceil(),
    })
}
