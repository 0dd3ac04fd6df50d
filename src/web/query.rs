//! Query strings, read strictly.
//!
//! An unknown parameter, a repeated one or a bad value is an error with one line that says what would be right, never
//! a list that silently holds something else. That goes for an app that no list defines, too: the consumer keeps what
//! it has. A disabled app is known and selects nothing.

use std::num::NonZeroU32;

use axum::http::Uri;
use thiserror::Error;

use super::ack::FollowerId;
use crate::catalogue::AppId;
use crate::export::Query;
use crate::prefix::Family;
use crate::set::{Origin, Session};

/// What is wrong with a query string; the text is for the answer's body.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum QueryError {
    #[error("malformed query string")]
    Malformed,
    #[error("unknown parameter `{found}`, expected {expected}")]
    Unknown { found: String, expected: &'static str },
    #[error("parameter `{0}` is given twice")]
    Repeated(&'static str),
    #[error("{parameter}: expected {expected}, found `{found}`")]
    Value { parameter: &'static str, expected: &'static str, found: String },
    #[error("unknown app `{0}`")]
    UnknownApp(String),
    #[error("unknown group `{0}`, no groups are configured")]
    UnknownGroup(String),
    #[error("session and serial go together, {0} is missing")]
    Half(&'static str),
    #[error("expected follower and mark, as a `hold` event tells them")]
    FollowerAndMark,
    #[error("expected one parameter, name or address")]
    NameOrAddress,
}

/// Splits a query string into names and values, decoded; each of `expected` at most once, nothing else.
fn parameters<const N: usize>(
    uri: &Uri,
    names: [&'static str; N],
    expected: &'static str,
) -> Result<[Option<String>; N], QueryError> {
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|_| QueryError::Malformed)?.0;
    let mut values = [const { None }; N];
    for (name, value) in pairs {
        let Some(at) = names.iter().position(|known| *known == name) else {
            return Err(QueryError::Unknown { found: shown(&name), expected });
        };
        if values[at].replace(value).is_some() {
            return Err(QueryError::Repeated(names[at]));
        }
    }
    Ok(values)
}

/// Shortens and escapes what a stranger sent, for one line of text.
fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 64;
    text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect()
}

fn bad_value(parameter: &'static str, expected: &'static str, found: &str) -> QueryError {
    QueryError::Value { parameter, expected, found: shown(found) }
}

/// Reads the query of a list of prefixes; `find` knows the apps.
pub(super) fn prefixes(uri: &Uri, find: impl Fn(&str) -> Option<AppId>) -> Result<Query, QueryError> {
    let [family, app, origin, group, max] =
        parameters(uri, ["family", "app", "origin", "group", "max"], "family, app, origin, group or max")?;
    let mut query = Query::default();
    query.selection.family = match family.as_deref() {
        None => None,
        Some("4") => Some(Family::V4),
        Some("6") => Some(Family::V6),
        Some(other) => return Err(bad_value("family", "4 or 6", other)),
    };
    query.selection.origin = match origin.as_deref() {
        None => None,
        Some("static") => Some(Origin::Static),
        Some("learned") => Some(Origin::Learned),
        Some(other) => return Err(bad_value("origin", "static or learned", other)),
    };
    if let Some(group) = group {
        return Err(QueryError::UnknownGroup(shown(&group)));
    }
    query.selection.apps = app.map(|text| apps(&text, find)).transpose()?;
    query.max = max.map(|text| number(&text).ok_or_else(|| bad_value("max", "1 to 4294967295", &text))).transpose()?;
    Ok(query)
}

/// Reads the query of a list of names.
pub(super) fn domains(uri: &Uri, find: impl Fn(&str) -> Option<AppId>) -> Result<Option<Vec<AppId>>, QueryError> {
    let [app, group] = parameters(uri, ["app", "group"], "app or group")?;
    if let Some(group) = group {
        return Err(QueryError::UnknownGroup(shown(&group)));
    }
    app.map(|text| apps(&text, find)).transpose()
}

/// Reads the query of `/delta`.
pub(super) fn held(uri: &Uri) -> Result<Option<(Session, u64)>, QueryError> {
    let [session, serial] = parameters(uri, ["session", "serial"], "session and serial")?;
    held_serial(session, serial)
}

/// Reads the query of `/watch`; the second is whether the follower acknowledges.
pub(super) fn watch(uri: &Uri) -> Result<(Option<(Session, u64)>, bool), QueryError> {
    let [session, serial, ack] = parameters(uri, ["session", "serial", "ack"], "session, serial or ack")?;
    let acknowledges = match ack.as_deref() {
        None | Some("0") => false,
        Some("1") => true,
        Some(other) => return Err(bad_value("ack", "0 or 1", other)),
    };
    Ok((held_serial(session, serial)?, acknowledges))
}

/// Reads the query of `/ack`.
pub(super) fn ack(uri: &Uri) -> Result<(FollowerId, u64), QueryError> {
    let [follower, mark] = parameters(uri, ["follower", "mark"], "follower and mark")?;
    let (Some(follower), Some(mark)) = (follower, mark) else { return Err(QueryError::FollowerAndMark) };
    let id = FollowerId::parse(&follower);
    let id = id.ok_or_else(|| bad_value("follower", "32 hexadecimal digits as a `hold` event tells", &follower))?;
    let read = decimal(&mark).filter(|mark| *mark > 0);
    Ok((id, read.ok_or_else(|| bad_value("mark", "a decimal number from 1", &mark))?))
}

fn held_serial(session: Option<String>, serial: Option<String>) -> Result<Option<(Session, u64)>, QueryError> {
    let (session, serial) = match (session, serial) {
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(QueryError::Half("serial")),
        (None, Some(_)) => return Err(QueryError::Half("session")),
        (Some(session), Some(serial)) => (session, serial),
    };
    let session = session.parse().map_err(|_| bad_value("session", "16 hexadecimal digits", &session))?;
    let serial = decimal(&serial).ok_or_else(|| bad_value("serial", "a decimal number", &serial))?;
    Ok(Some((session, serial)))
}

/// Reads an event id, `session-serial`; `None` for anything else.
pub(super) fn event_id(text: &str) -> Option<(Session, u64)> {
    let (session, serial) = text.trim().split_once('-')?;
    Some((session.parse().ok()?, decimal(serial)?))
}

/// Refuses every parameter, where none is known.
pub(super) fn none(uri: &Uri) -> Result<(), QueryError> {
    parameters(uri, [], "none").map(|[]| ())
}

/// What `/explain` is asked about, as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Name(String),
    Address(String),
}

/// Reads the query of `/explain`.
pub(super) fn subject(uri: &Uri) -> Result<Subject, QueryError> {
    match parameters(uri, ["name", "address"], "name or address")? {
        [Some(name), None] => Ok(Subject::Name(name)),
        [None, Some(address)] => Ok(Subject::Address(address)),
        _ => Err(QueryError::NameOrAddress),
    }
}

/// Reads ids with commas between; sorted, each once.
fn apps(text: &str, find: impl Fn(&str) -> Option<AppId>) -> Result<Vec<AppId>, QueryError> {
    let mut apps = text
        .split(',')
        .map(|id| find(id).ok_or_else(|| QueryError::UnknownApp(shown(id))))
        .collect::<Result<Vec<_>, _>>()?;
    apps.sort_unstable();
    apps.dedup();
    Ok(apps)
}

/// Reads a decimal number without a sign.
fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())?
}

fn number(text: &str) -> Option<NonZeroU32> {
    decimal(text).and_then(|number| u32::try_from(number).ok()).and_then(NonZeroU32::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(query: &str) -> Uri {
        format!("/x?{query}").parse().unwrap()
    }

    fn read(query: &str) -> Result<Query, String> {
        let find = |id: &str| ["box", "zoom"].contains(&id).then(|| AppId::new(id));
        prefixes(&uri(query), find).map_err(|error| error.to_string())
    }

    #[test]
    fn every_parameter_is_read() {
        let query = read("family=6&app=zoom,box,zoom&origin=learned&max=10").unwrap();
        assert_eq!(query.selection.family, Some(Family::V6));
        assert_eq!(query.selection.apps, Some(vec![AppId::new("box"), AppId::new("zoom")]));
        assert_eq!(query.selection.origin, Some(Origin::Learned));
        assert_eq!(query.max, NonZeroU32::new(10));
        assert_eq!(read("").unwrap(), Query::default());
        assert_eq!(read("app=zoom%2Cbox").unwrap().selection.apps.unwrap().len(), 2);
    }

    #[test]
    fn anything_else_is_refused_in_one_line() {
        for (query, line) in [
            ("familiy=4", "unknown parameter `familiy`, expected family, app, origin, group or max"),
            ("family=5", "family: expected 4 or 6, found `5`"),
            ("family=", "family: expected 4 or 6, found ``"),
            ("family=4&family=6", "parameter `family` is given twice"),
            ("app=zoom,teams", "unknown app `teams`"),
            ("app=", "unknown app ``"),
            ("app=zoom,", "unknown app ``"),
            ("origin=Static", "origin: expected static or learned, found `Static`"),
            ("group=floor-2", "unknown group `floor-2`, no groups are configured"),
            ("max=0", "max: expected 1 to 4294967295, found `0`"),
            ("max=%2B5", "max: expected 1 to 4294967295, found `+5`"),
            ("max=4294967296", "max: expected 1 to 4294967295, found `4294967296`"),
            ("max=%0A%1B[31m", "max: expected 1 to 4294967295, found `\\n\\u{1b}[31m`"),
        ] {
            assert_eq!(read(query).unwrap_err(), line, "{query}");
        }
    }

    #[test]
    fn held_serial_needs_its_session() {
        let held = |query: &str| held(&uri(query)).map_err(|error| error.to_string());
        assert_eq!(held("").unwrap(), None);
        assert_eq!(held("session=00000000000000aB&serial=7").unwrap(), Some((Session(0xab), 7)));
        for (query, line) in [
            ("session=00000000000000ab", "session and serial go together, serial is missing"),
            ("serial=7", "session and serial go together, session is missing"),
            ("session=ab&serial=7", "session: expected 16 hexadecimal digits, found `ab`"),
            ("session=00000000000000ab&serial=-1", "serial: expected a decimal number, found `-1`"),
            ("session=00000000000000ab&serial=", "serial: expected a decimal number, found ``"),
            (
                "session=00000000000000ab&serial=18446744073709551616",
                "serial: expected a decimal number, found `18446744073709551616`",
            ),
        ] {
            assert_eq!(held(query).unwrap_err(), line, "{query}");
        }
        assert_eq!(event_id("00000000000000ab-7"), Some((Session(0xab), 7)));
        assert_eq!(event_id("7"), None);
    }

    #[test]
    fn followers_are_read_strictly() {
        let (watch, ack) = (
            |query: &str| watch(&uri(query)).map_err(|error| error.to_string()),
            |query: &str| ack(&uri(query)).map_err(|error| error.to_string()),
        );
        assert_eq!(watch("ack=1"), Ok((None, true)));
        assert_eq!(watch("session=00000000000000ab&serial=7&ack=0"), Ok((Some((Session(0xab), 7)), false)));
        assert_eq!(watch("ack=yes").unwrap_err(), "ack: expected 0 or 1, found `yes`");
        assert_eq!(watch("hold=1").unwrap_err(), "unknown parameter `hold`, expected session, serial or ack");
        let id = "000000000000000000000000000000ab";
        assert_eq!(ack(&format!("follower={id}&mark=7")), Ok((FollowerId::parse(id).unwrap(), 7)));
        for query in ["", "mark=1", &format!("follower={id}")] {
            assert_eq!(ack(query).unwrap_err(), "expected follower and mark, as a `hold` event tells them", "{query}");
        }
        for mark in ["", "0", "-1", "+1", "1.0", "18446744073709551616", "x"] {
            let line = ack(&format!("follower={id}&mark={mark}")).unwrap_err();
            assert!(line.starts_with("mark: expected a decimal number from 1, found `"), "{line}");
        }
        assert!(ack("follower=ab&mark=1").unwrap_err().starts_with("follower: expected 32 hexadecimal digits"));
    }

    #[test]
    fn explain_asks_about_one_thing() {
        assert_eq!(subject(&uri("name=a.b")), Ok(Subject::Name("a.b".to_owned())));
        assert_eq!(subject(&uri("name=a&address=192.0.2.1")), Err(QueryError::NameOrAddress));
        assert_eq!(subject(&uri("")), Err(QueryError::NameOrAddress));
    }
}
