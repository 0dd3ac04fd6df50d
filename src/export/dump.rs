//! The sightings themselves as lines of JSON: what `greenlane store dump --json` prints and `store restore` reads.
//!
//! ```text
//! {"greenlane":"sightings","version":1,"session":"d1c91a9d8040b95d","serial":559,"now":1795509000000,"count":1}
//! {"address":"192.0.2.1","name":"eu.zoom.us","first_seen":…,"last_seen":…,"told_until":…,"end":…,"granted":…}
//! ```
//! The first line is a [`Head`]; `count` lines follow, sorted by address, then name. All times are milliseconds since the
//! Unix epoch. A dump is no more than a claim: whoever reads it has each line admitted and matched as an answer is.
//! Members that are not known are passed over; a later version may have more.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::clock::Timestamp;
use crate::name::{Name, NameError};
use crate::set::outlet::Kept;
use crate::set::{Session, Sighting};

/// What stands in the first line, so that nothing else is taken for a dump.
const KIND: &str = "sightings";

/// The version that is written, and the last one that is read.
const VERSION: u32 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    greenlane: String,
    version: u32,
    session: String,
    serial: u64,
    now: u64,
    /// How many lines follow.
    pub count: u64,
}

impl Head {
    /// Makes the first line of a dump made at `now`.
    pub fn new(session: Session, serial: u64, now: Timestamp, count: u64) -> Self {
        let session = session.to_string();
        Self { greenlane: KIND.to_owned(), version: VERSION, session, serial, now: now.as_millis(), count }
    }

    /// Reads a first line.
    ///
    /// # Errors
    /// See [`LineError`].
    pub fn read(line: &str) -> Result<Self, LineError> {
        let head: Self = serde_json::from_str(line).map_err(|_| LineError::NoDump)?;
        if head.greenlane != KIND {
            return Err(LineError::NoDump);
        }
        if head.version > VERSION {
            return Err(LineError::Newer(head.version));
        }
        Ok(head)
    }

    /// Writes the line, its end included.
    pub fn write(&self, out: &mut Vec<u8>) {
        write(self, out);
    }
}

/// One sighting as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    address: IpAddr,
    name: String,
    first_seen: u64,
    last_seen: u64,
    told_until: u64,
    end: u64,
    granted: u64,
}

/// Why a line is not read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LineError {
    /// The first line is another one.
    #[error("this is no dump of sightings; expected the output of `greenlane store dump --json`")]
    NoDump,
    /// It is of a later version.
    #[error("the dump has version {0}, this greenlane reads up to {VERSION}")]
    Newer(u32),
    /// The line is no sighting.
    #[error("no sighting: {0}")]
    Malformed(String),
    /// The name is none.
    #[error("name: {0}")]
    Name(#[from] NameError),
    /// The times are out of order.
    #[error("expected first_seen <= last_seen <= told_until <= end <= granted")]
    Order,
}

/// Writes a line that a store keeps.
pub fn write_kept(kept: &Kept, out: &mut Vec<u8>) {
    let line = Line {
        address: kept.addr,
        name: kept.name.to_string(),
        first_seen: kept.first_seen.as_millis(),
        last_seen: kept.last_seen.as_millis(),
        told_until: kept.told_until.as_millis(),
        end: kept.end.as_millis(),
        granted: kept.granted.as_millis(),
    };
    write(&line, out);
}

/// Returns a sighting of the set as a store keeps it. One that has left meanwhile ends as it was told.
pub fn kept(sighting: &Sighting) -> Kept {
    let kept = Kept::of(sighting);
    let end = kept.end.max(kept.told_until);
    Kept { end, granted: kept.granted.max(end), ..kept }
}

/// Reads a line.
///
/// # Errors
/// See [`LineError`].
pub fn read(line: &str) -> Result<Kept, LineError> {
    let line: Line = serde_json::from_str(line).map_err(|error| LineError::Malformed(error.to_string()))?;
    let Line { address, name, first_seen, last_seen, told_until, end, granted } = line;
    let times = [first_seen, last_seen, told_until, end, granted];
    if !times.is_sorted() {
        return Err(LineError::Order);
    }
    let [first_seen, last_seen, told_until, end, granted] = times.map(Timestamp::from_millis);
    let name = Name::parse(&name)?;
    Ok(Kept { addr: address.to_canonical(), name, first_seen, last_seen, told_until, end, granted })
}

fn write(line: &impl Serialize, out: &mut Vec<u8>) {
    // Numbers and strings into memory: nothing that can fail.
    let _ = serde_json::to_writer(&mut *out, line);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_dump_is_told_so() {
        let read = |text: &str| Head::read(text).unwrap_err();
        assert_eq!(read(""), LineError::NoDump);
        assert_eq!(read("192.0.2.1/32"), LineError::NoDump);
        assert_eq!(read("{\"session\":\"1\"}"), LineError::NoDump);
        let mut head = Head::new(Session(1), 2, Timestamp::from_secs(3), 4);
        head.version = 2;
        let mut line = Vec::new();
        head.write(&mut line);
        assert_eq!(read(std::str::from_utf8(&line).unwrap()), LineError::Newer(2));
    }

    #[test]
    fn times_out_of_order_are_refused() {
        let line = |end| {
            format!(
                "{{\"address\":\"192.0.2.1\",\"name\":\"a.example\",\"first_seen\":1,\"last_seen\":2,\
                 \"told_until\":3,\"end\":{end},\"granted\":5,\"more\":true}}"
            )
        };
        assert_eq!(read(&line(4)).unwrap().end, Timestamp::from_millis(4));
        assert_eq!(read(&line(2)), Err(LineError::Order));
        assert_eq!(read(&line(6)), Err(LineError::Order));
        assert!(matches!(read(&line(-1)), Err(LineError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn lines_round_trip(
            bits: u128,
            is_v4: bool,
            labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 1..6),
            mut times in any::<[u64; 5]>(),
        ) {
            times.sort_unstable();
            let addr = if is_v4 { IpAddr::from((bits as u32).to_be_bytes()) } else { IpAddr::from(bits.to_be_bytes()) };
            let mut wire: Vec<u8> = Vec::new();
            for label in labels {
                wire.push(label.len() as u8);
                wire.extend(label.to_ascii_lowercase());
            }
            wire.push(0);
            let [first_seen, last_seen, told_until, end, granted] = times.map(Timestamp::from_millis);
            let name = Name::from_wire(&wire).unwrap();
            let kept = Kept { addr: addr.to_canonical(), name, first_seen, last_seen, told_until, end, granted };
            let mut line = Vec::new();
            write_kept(&kept, &mut line);
            prop_assert_eq!(line.pop(), Some(b'\n'));
            prop_assert!(!line.contains(&b'\n'));
            prop_assert_eq!(read(std::str::from_utf8(&line).unwrap()), Ok(kept));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text: String) {
            let _ = Head::read(&text);
            let _ = read(&text);
        }
    }
}
