//! Reading an `.rpz` file: the response policy zones that other resolvers take their exceptions from.
//!
//! Two kinds of policy become triggers, and only where the action is `CNAME rpz-passthru.`:
//! ```text
//! login.example.com             CNAME rpz-passthru.     =login.example.com   RPZ means that name only
//! *.example.net                 CNAME rpz-passthru.     *.example.net        everything below
//! 24.0.100.51.198.rpz-ip        CNAME rpz-passthru.     198.51.100.0/24
//! 48.zz.1.db8.2001.rpz-ip       CNAME rpz-passthru.     2001:db8:1::/48
//! ```
//! A trigger is shown in the form of a list, on the right above. Other actions (NXDOMAIN, NODATA, drop, TCP only,
//! local data) and other triggers (`rpz-client-ip`, `rpz-nsip`, `rpz-nsdname`) close nothing here: they are counted,
//! with one warning for each sort. SOA, NS and the records of DNSSEC are passed over.
//!
//! Owners are told relative to the zone's own name: the owner of the SOA, or the first `$ORIGIN` where there is no
//! SOA, or the root where there is neither. A record outside it is refused, as is one that cannot be read; the rest
//! of the file is read all the same. The first comment before any record is the title; there are no other keys.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::draft::{Draft, Place};
use super::master::{Data, Record, Word, Zone};
use super::trigger::{Entry, Found, Kind, Trigger, TriggerError, admit_name, admit_prefix};
use crate::name::Name;
use crate::prefix::Prefix;
use crate::source::Location;

/// The target that lets a name pass.
const PASSTHRU: &str = "rpz-passthru";

/// Reads the octets of a file into its draft.
pub(super) fn read(draft: &mut Draft, bytes: &[u8]) {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return refuse_octet(draft, bytes, error.valid_up_to()),
    };
    let mut zone = Zone::new(text);
    let mut policies = Vec::new();
    let mut apex = None;
    while let Some(record) = zone.next_record() {
        match record {
            Ok(Record { owner, data: Data::Soa, .. }) => {
                apex.get_or_insert(owner);
            }
            Ok(Record { data: Data::Housekeeping, .. }) => {}
            Ok(record) => match action_of(&record.data, zone.origin()) {
                Ok(action) => policies.push((record, action)),
                Err((place, message)) => draft.refuse(place, message),
            },
            Err((place, message)) => draft.refuse(place, message),
        }
    }
    draft.keys.title = zone.title().map(str::to_owned);
    let apex = apex.or_else(|| zone.first_origin().cloned()).unwrap_or_else(Name::root);
    let mut others = Others::default();
    for (record, action) in policies {
        if let Err(message) = take(draft, &mut others, &apex, &record, action) {
            draft.refuse(record.word.place, message);
        }
    }
    others.warn(draft);
}

/// Tells of an octet that is not UTF-8.
fn refuse_octet(draft: &mut Draft, bytes: &[u8], at: usize) {
    let good = String::from_utf8_lossy(&bytes[..at]);
    let Location { line, col, .. } = Location::in_text(draft.file.clone(), &good, good.len());
    let octet = bytes.get(at).copied().unwrap_or_default();
    draft.refuse(Place { line, col }, format!("octet 0x{octet:02X} is not UTF-8, expected the file saved as UTF-8"));
}

/// Takes one policy, or counts it.
fn take(
    draft: &mut Draft,
    others: &mut Others,
    apex: &Name,
    record: &Record<'_>,
    action: Action,
) -> Result<(), String> {
    let Record { owner, word, .. } = record;
    let Some(relative) = below(owner, apex) else {
        return Err(format!("`{}` lies outside the zone `{apex}`, expected a name below it", Found::new(word.text)));
    };
    if relative.is_root() && !matches!(action, Action::Pass) {
        return Ok(()); // Records of the zone itself.
    }
    let labels: Vec<&[u8]> = relative.labels().collect();
    let other = match labels.last().copied().unwrap_or_default() {
        b"rpz-client-ip" => Some(Other::ClientIp),
        b"rpz-nsip" => Some(Other::NsIp),
        b"rpz-nsdname" => Some(Other::NsDname),
        _ => None,
    };
    if let Some(other) = other.or_else(|| action.other()) {
        others.count(other, word.place);
        return Ok(());
    }
    if let [address @ .., b"rpz-ip"] = labels.as_slice() {
        let prefix = prefix_of(address, word)?;
        draft.push(Entry::Prefix(prefix), &prefix.to_string(), word.place);
    } else {
        let trigger = trigger_of(&relative).map_err(|error| error.to_string())?;
        let written = trigger.to_string();
        draft.push(Entry::Name(trigger), &written, word.place);
    }
    Ok(())
}

/// Cuts the zone's own name off.
fn below(owner: &Name, apex: &Name) -> Option<Name> {
    if !owner.is_at_or_below(apex) {
        return None;
    }
    let mut wire = owner.as_wire()[..owner.as_wire().len() - apex.as_wire().len()].to_vec();
    wire.push(0);
    Name::from_wire(&wire).ok()
}

fn trigger_of(relative: &Name) -> Result<Trigger, TriggerError> {
    let text = relative.to_string();
    match relative.as_wire().strip_prefix(b"\x01*") {
        Some(rest) => admit_name(&text, Name::from_wire(rest).unwrap_or_else(|_| Name::root()), Kind::Below),
        None => admit_name(&text, relative.clone(), Kind::Exact),
    }
}

/// Reads the labels before `rpz-ip`: the length, then the address from its end, `zz` for `::`.
fn prefix_of(labels: &[&[u8]], word: &Word<'_>) -> Result<Prefix, String> {
    let malformed = || {
        format!(
            "`{}` is no address policy, expected length and address from its end such as 24.0.100.51.198.rpz-ip or 48.zz.1.db8.2001.rpz-ip",
            Found::new(word.text)
        )
    };
    let texts: Option<Vec<&str>> = labels.iter().rev().map(|label| std::str::from_utf8(label).ok()).collect();
    let texts = texts.ok_or_else(malformed)?;
    let (&len, address) = texts.split_last().ok_or_else(malformed)?;
    let len: u8 = len.parse().map_err(|_| malformed())?;
    let addr = match v4(address) {
        Some(addr) => IpAddr::V4(addr),
        None => IpAddr::V6(v6(address).ok_or_else(malformed)?),
    };
    admit_prefix(addr, len).map_err(|error| error.to_string())
}

fn v4(parts: &[&str]) -> Option<Ipv4Addr> {
    let parts: &[&str; 4] = parts.try_into().ok()?;
    let mut octets = [0; 4];
    for (octet, part) in octets.iter_mut().zip(parts) {
        *octet = part.parse().ok()?;
    }
    Some(octets.into())
}

fn v6(parts: &[&str]) -> Option<Ipv6Addr> {
    let word = |part: &&str| if part.len() <= 4 { u16::from_str_radix(part, 16).ok() } else { None };
    let (left, right) = match parts.iter().position(|&part| part == "zz") {
        Some(at) => (&parts[..at], &parts[at + 1..]),
        None if parts.len() == 8 => (parts, &parts[8..]),
        None => return None,
    };
    if left.len() + right.len() > 8 {
        return None;
    }
    let mut words = [0; 8];
    for (to, from) in words.iter_mut().zip(left) {
        *to = word(from)?;
    }
    for (to, from) in words.iter_mut().rev().zip(right.iter().rev()) {
        *to = word(from)?;
    }
    Some(words.into())
}

/// What a policy does to the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Pass,
    Other(Other),
}

impl Action {
    fn other(self) -> Option<Other> {
        match self {
            Self::Pass => None,
            Self::Other(other) => Some(other),
        }
    }
}

/// Reads the action out of a record's data.
fn action_of(data: &Data<'_>, origin: &Name) -> Result<Action, (Place, String)> {
    let Data::Cname(target, word) = data else {
        return Ok(Action::Other(Other::LocalData));
    };
    if !origin.is_root() && word.text.eq_ignore_ascii_case(PASSTHRU) {
        return Err((
            word.place,
            format!("`{}` lacks its final dot and so means `{target}.`, expected `{PASSTHRU}.`", Found::new(word.text)),
        ));
    }
    Ok(match target.to_string().as_str() {
        PASSTHRU => Action::Pass,
        "." => Action::Other(Other::NxDomain),
        "*" => Action::Other(Other::NoData),
        "rpz-drop" => Action::Other(Other::Drop),
        "rpz-tcp-only" => Action::Other(Other::TcpOnly),
        _ => Action::Other(Other::LocalData),
    })
}

/// Policies that open nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Other {
    ClientIp,
    NsIp,
    NsDname,
    NxDomain,
    NoData,
    Drop,
    TcpOnly,
    LocalData,
}

impl Other {
    fn what(self) -> &'static str {
        match self {
            Self::ClientIp => "trigger `rpz-client-ip`",
            Self::NsIp => "trigger `rpz-nsip`",
            Self::NsDname => "trigger `rpz-nsdname`",
            Self::NxDomain => "action NXDOMAIN (`CNAME .`)",
            Self::NoData => "action NODATA (`CNAME *.`)",
            Self::Drop => "action `rpz-drop.`",
            Self::TcpOnly => "action `rpz-tcp-only.`",
            Self::LocalData => "local data",
        }
    }
}

/// How many policies of each sort open nothing, and where the first of them stands.
#[derive(Default)]
struct Others(BTreeMap<Other, (usize, Place)>);

impl Others {
    fn count(&mut self, other: Other, place: Place) {
        self.0.entry(other).or_insert((0, place)).0 += 1;
    }

    fn warn(self, draft: &mut Draft) {
        for (other, (number, place)) in self.0 {
            let records =
                if number == 1 { "1 record".to_owned() } else { format!("{number} records, this the first,") };
            draft.warn(
                place,
                format!(
                    "{records} with {} passed over; only `{PASSTHRU}.` for a name or `rpz-ip` opens something",
                    other.what()
                ),
            );
        }
    }
}
