//! What resolvers tell each other, as octets.
//!
//! ```text
//!   member   = 4 │ 6   address (4 or 16 octets)   labels of the name (wire form, lower case, without the root)
//!   message  = version (1)   sender (8)   sent (8)   records
//!   record   = kind (1)   end (6)   length (2)   member
//! ```
//! Numbers are in network order, times in milliseconds since the Unix epoch. A member is a member of a sorted set and
//! stands in a message as it stands there; which list line wants the name is for the reader to find again. A record of
//! a kind that is not known is passed over, so that kinds may be added; so is a message of another version. Whatever
//! comes in may be of a stranger's making.

use std::net::IpAddr;

use crate::clock::Timestamp;
use crate::name::{Name, WIRE_LEN_MAX};

/// The longest member: family, IPv6 address, name.
pub(super) const MEMBER_LEN_MAX: usize = 1 + 16 + WIRE_LEN_MAX;

/// The latest instant: what a double tells from its neighbours, and 6 octets hold.
pub(super) const END_MAX: u64 = (1 << 48) - 1;

/// The version of messages that is written and read.
const VERSION: u8 = 1;

/// A sighting's name in the engine.
pub(super) type Member = Box<[u8]>;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The sighting is held until the end.
    Held,
    /// The sighting left before that end.
    Gone,
}

/// Reserved for addresses that are withheld from exports while they are shared with other names: no resolver writes it
/// yet, and those who read pass it over.
pub(super) const WITHHELD: u8 = 3;

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Held => 1,
            Self::Gone => 2,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Self::Held, Self::Gone].into_iter().find(|kind| kind.code() == code)
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    /// Milliseconds, at most [`END_MAX`].
    pub(super) end: u64,
    pub(super) member: Member,
}

/// What one resolver tells at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Which resolver.
    pub(super) sender: u64,
    /// When, by its clock.
    pub(super) sent: Timestamp,
    pub(super) records: Vec<Record>,
    /// How many records were passed over.
    pub(super) unread_count: u64,
}

/// Names a sighting.
pub(super) fn member(addr: IpAddr, name: &Name) -> Member {
    let labels = name.as_wire().split_last().map_or(&[][..], |(_root, labels)| labels);
    let mut member = Vec::with_capacity(17 + labels.len());
    match addr {
        IpAddr::V4(addr) => {
            member.push(4);
            member.extend_from_slice(&addr.octets());
        }
        IpAddr::V6(addr) => {
            member.push(6);
            member.extend_from_slice(&addr.octets());
        }
    }
    member.extend_from_slice(labels);
    member.into()
}

/// Returns what a member names; `None` if it is none, or is written otherwise than [`member`] writes it.
pub(super) fn read_member(octets: &[u8]) -> Option<(IpAddr, Name)> {
    if octets.len() > MEMBER_LEN_MAX {
        return None;
    }
    let (family, rest) = octets.split_first()?;
    let (addr, labels) = match family {
        4 => rest.split_first_chunk::<4>().map(|(addr, labels)| (IpAddr::from(*addr), labels))?,
        6 => rest.split_first_chunk::<16>().map(|(addr, labels)| (IpAddr::from(*addr), labels))?,
        _ => return None,
    };
    let mut wire = Vec::with_capacity(labels.len() + 1);
    wire.extend_from_slice(labels);
    wire.push(0);
    let name = Name::from_wire(&wire).ok()?;
    // One sighting has one name here: no upper case, no IPv4 address in the clothes of IPv6.
    (name.as_wire() == wire && addr == addr.to_canonical()).then_some((addr, name))
}

/// Writes a message.
pub(super) fn encode(sender: u64, sent: Timestamp, records: &[Record]) -> Vec<u8> {
    let len = 17 + records.iter().map(|record| 9 + record.member.len()).sum::<usize>();
    let mut octets = Vec::with_capacity(len);
    octets.push(VERSION);
    octets.extend_from_slice(&sender.to_be_bytes());
    octets.extend_from_slice(&sent.as_millis().to_be_bytes());
    for record in records {
        octets.push(record.kind.code());
        octets.extend_from_slice(&record.end.min(END_MAX).to_be_bytes()[2..]);
        // Members are made by `member`, which keeps within `MEMBER_LEN_MAX`.
        octets.extend_from_slice(&(record.member.len() as u16).to_be_bytes());
        octets.extend_from_slice(&record.member);
    }
    octets
}

/// Reads a message; `None` if the octets are none.
pub(super) fn decode(octets: &[u8]) -> Option<Message> {
    let (&version, rest) = octets.split_first()?;
    if version != VERSION {
        return None;
    }
    let (sender, rest) = rest.split_first_chunk::<8>()?;
    let (sent, mut rest) = rest.split_first_chunk::<8>()?;
    let (mut records, mut unread_count) = (Vec::new(), 0);
    while let Some((&code, after)) = rest.split_first() {
        let (end, after) = after.split_first_chunk::<6>()?;
        let (len, after) = after.split_first_chunk::<2>()?;
        let (member, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        rest = after;
        let mut millis = [0; 8];
        millis[2..].copy_from_slice(end);
        match Kind::of(code) {
            Some(kind) if member.len() <= MEMBER_LEN_MAX => {
                records.push(Record { kind, end: u64::from_be_bytes(millis), member: member.into() });
            }
            None if code == WITHHELD => {}
            _ => unread_count += 1,
        }
    }
    let (sender, sent) = (u64::from_be_bytes(*sender), Timestamp::from_millis(u64::from_be_bytes(*sent)));
    Some(Message { sender, sent, records, unread_count })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn member_is_compact_and_means_one_thing() {
        let one = member("192.0.2.1".parse().unwrap(), &name("cdn-17.media.zoom.example"));
        assert_eq!(one.len(), 1 + 4 + 26);
        assert_eq!(read_member(&one), Some(("192.0.2.1".parse().unwrap(), name("cdn-17.media.zoom.example"))));
        let mapped = member("::ffff:192.0.2.1".parse().unwrap(), &name("a.example"));
        let mut upper = one.to_vec();
        upper[6] = b'C';
        let long = [&one[..], &[1; 300]].concat();
        for bad in
            [&mapped[..], &upper, &long, &[], &[4], &[5, 1, 2, 3, 4], &[4, 1, 2, 3, 4, 9, b'a'], &[4, 1, 2, 3, 4, 0]]
        {
            assert_eq!(read_member(bad), None, "{bad:?}");
        }
        assert_eq!(read_member(&[4, 1, 2, 3, 4]).unwrap().1, Name::root(), "the root has no labels");
    }

    #[test]
    fn kinds_of_tomorrow_are_passed_over() {
        let member = member("192.0.2.1".parse().unwrap(), &name("a.example"));
        let held = Record { kind: Kind::Held, end: 7, member };
        let mut octets = encode(1, Timestamp::from_secs(2), &[held.clone(), held.clone()]);
        for (code, unread_count) in [(WITHHELD, 0), (200, 1)] {
            octets[17] = code;
            let read = decode(&octets).unwrap();
            assert_eq!((read.records, read.unread_count), (vec![held.clone()], unread_count));
        }
        octets[0] = VERSION + 1;
        assert_eq!(decode(&octets), None);
    }

    proptest! {
        #[test]
        fn messages_round_trip(sender: u64, sent: u64, ends in proptest::collection::vec(0..=END_MAX, 0..5), host: [u16; 8]) {
            let records: Vec<Record> = ends.iter().map(|&end| {
                let kind = if end % 2 == 0 { Kind::Held } else { Kind::Gone };
                Record { kind, end, member: member(IpAddr::from(host), &name("some.name.example")) }
            }).collect();
            let sent = Timestamp::from_millis(sent);
            let read = decode(&encode(sender, sent, &records)).unwrap();
            prop_assert_eq!(read, Message { sender, sent, records, unread_count: 0 });
        }

        #[test]
        fn any_octets_are_read_without_a_panic(mut octets in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read_member(&octets);
            let _ = decode(&octets);
            if let Some(first) = octets.first_mut() {
                *first = VERSION;
                let _ = decode(&octets);
            }
        }

        #[test]
        fn cut_messages_are_none(cut in 0usize..200) {
            let member = member("192.0.2.1".parse().unwrap(), &name("a.example"));
            let records = vec![Record { kind: Kind::Held, end: 7, member }; 4];
            let whole = encode(1, Timestamp::default(), &records);
            let cut = cut.min(whole.len());
            let is_at_a_record = cut >= 17 && (cut - 17) % (9 + records[0].member.len()) == 0;
            prop_assert_eq!(decode(&whole[..cut]).is_some(), is_at_a_record);
        }
    }
}
