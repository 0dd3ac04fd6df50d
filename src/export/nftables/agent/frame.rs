//! What resolver and firewall agent say to each other, as octets.
//!
//! A frame is one message of the socket: a kind, then its fields, numbers in network order. Times are milliseconds of the
//! resolver's clock. Neither side believes the other: a frame that is too long, too short, of unknown kind, or that holds
//! a number out of its range is a [`BadFrame`], and the connection is over.
//!
//! ```text
//! Hello    1  version u8 · now u64 · adopts u8
//! Part     2  order u64 · flags u8 · hosts u16 (each: 4|6 · address · end u64, 0 withdraws) · prefixes u16 (each: 4|6 · address · length)
//! Welcome  3  version u8
//! Reply    4  order u64 · held u8 · state u8
//! State    5  state u8
//! Metrics  6  text
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use crate::clock::Timestamp;
use crate::prefix::Prefix;
use crate::set::outlet::{Applied, State};

/// The version of this language: both ends are one program, but it may be replaced while it runs.
pub(super) const VERSION: u8 = 1;
/// The longest frame.
pub(super) const FRAME_LEN_MAX: usize = 32 * 1024;
/// The most hosts in one part: of the longest ones a bit less than a frame.
pub(super) const HOSTS_MAX: usize = 1024;
/// The most prefixes in one part.
pub(super) const PREFIXES_MAX: usize = 256;
/// The longest text of metrics.
pub(super) const TEXT_LEN_MAX: usize = FRAME_LEN_MAX - 1;

/// From the resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// The first frame.
    Hello {
        /// The resolver's clock.
        now: Timestamp,
        /// Whether elements that nobody knows of stay until they time out.
        adopts: bool,
    },
    /// A part of an order; those of one order follow each other.
    Part(Part),
}

/// A part of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// The number of the order.
    pub(super) order: u64,
    /// Whether the order is the whole set.
    pub(super) is_whole: bool,
    /// Whether the order says which static prefixes are in force.
    pub(super) has_statics: bool,
    /// Whether it is the last part.
    pub(super) is_last: bool,
    /// Hosts and until when they are held; `None`: no longer.
    pub(super) hosts: Vec<(IpAddr, Option<Timestamp>)>,
    /// Static prefixes in force.
    pub(super) statics: Vec<Prefix>,
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    /// The first frame: orders are taken.
    Welcome,
    /// The answer to an order.
    Reply {
        /// Its number.
        order: u64,
        /// What became of it.
        applied: Applied,
        /// How the firewall does.
        state: State,
    },
    /// How the firewall does.
    State(State),
    /// The metrics of all firewalls.
    Metrics(String),
}

/// Octets that no honest peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum BadFrame {
    /// It ends too early, goes on too long, or is empty.
    #[error("a frame of the wrong length")]
    Length,
    /// A kind, a flag or a number that there is not.
    #[error("a frame with a value that there is not")]
    Value,
    /// Another version.
    #[error("a frame of version {0}: another greenlane was installed, restart it")]
    Version(u8),
    /// In its place another one was due.
    #[error("a frame out of turn")]
    Turn,
    /// More than may be held.
    #[error("an order beyond every bound")]
    TooMuch,
}

const WHOLE: u8 = 1;
const STATICS: u8 = 2;
const LAST: u8 = 4;

impl Ask {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            Self::Hello { now, adopts } => {
                out.extend([1, VERSION]);
                out.extend(now.as_millis().to_be_bytes());
                out.push(u8::from(*adopts));
            }
            Self::Part(part) => {
                out.push(2);
                out.extend(part.order.to_be_bytes());
                let flag = |is_set, flag| if is_set { flag } else { 0 };
                out.push(flag(part.is_whole, WHOLE) | flag(part.has_statics, STATICS) | flag(part.is_last, LAST));
                put_len(out, part.hosts.len());
                for (addr, until) in &part.hosts {
                    put_addr(out, *addr);
                    out.extend(until.map_or(0, Timestamp::as_millis).to_be_bytes());
                }
                put_len(out, part.statics.len());
                for prefix in &part.statics {
                    put_addr(out, prefix.addr());
                    out.push(prefix.len());
                }
            }
        }
    }

    pub(super) fn read(octets: &[u8]) -> Result<Self, BadFrame> {
        let mut rest = Rest(octets);
        let ask = match rest.octet()? {
            1 => {
                rest.version()?;
                Self::Hello { now: Timestamp::from_millis(rest.long()?), adopts: rest.yes_or_no()? }
            }
            2 => Self::Part(Part::read(&mut rest)?),
            _ => return Err(BadFrame::Value),
        };
        rest.end(ask)
    }
}

impl Part {
    fn read(rest: &mut Rest<'_>) -> Result<Self, BadFrame> {
        let (order, flags) = (rest.long()?, rest.octet()?);
        if flags & !(WHOLE | STATICS | LAST) != 0 {
            return Err(BadFrame::Value);
        }
        let has = |flag| flags & flag != 0;
        let host_count = rest.count(HOSTS_MAX)?;
        let host = |rest: &mut Rest<'_>| {
            let (addr, until) = (rest.addr()?, rest.long()?);
            Ok((addr, (until != 0).then(|| Timestamp::from_millis(until))))
        };
        let hosts = (0..host_count).map(|_| host(rest)).collect::<Result<_, BadFrame>>()?;
        let static_count = rest.count(PREFIXES_MAX)?;
        let statics = (0..static_count).map(|_| rest.prefix()).collect::<Result<Vec<_>, _>>()?;
        if !has(STATICS) && !statics.is_empty() {
            return Err(BadFrame::Value);
        }
        Ok(Self { order, is_whole: has(WHOLE), has_statics: has(STATICS), is_last: has(LAST), hosts, statics })
    }
}

impl Tell {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            Self::Welcome => out.extend([3, VERSION]),
            Self::Reply { order, applied, state } => {
                out.push(4);
                out.extend(order.to_be_bytes());
                out.extend([u8::from(*applied == Applied::Held), *state as u8]);
            }
            Self::State(state) => out.extend([5, *state as u8]),
            Self::Metrics(text) => {
                out.push(6);
                out.extend(text.as_bytes());
            }
        }
    }

    pub(super) fn read(octets: &[u8]) -> Result<Self, BadFrame> {
        let mut rest = Rest(octets);
        let tell = match rest.octet()? {
            3 => {
                rest.version()?;
                Self::Welcome
            }
            4 => {
                let (order, held) = (rest.long()?, rest.yes_or_no()?);
                let applied = if held { Applied::Held } else { Applied::Failed };
                Self::Reply { order, applied, state: rest.state()? }
            }
            5 => Self::State(rest.state()?),
            6 => {
                let text = std::str::from_utf8(rest.0).map_err(|_| BadFrame::Value)?;
                rest = Rest(&[]);
                Self::Metrics(text.to_owned())
            }
            _ => return Err(BadFrame::Value),
        };
        rest.end(tell)
    }
}

/// Writes a count; those who make parts keep it small.
fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend(u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
}

fn put_addr(out: &mut Vec<u8>, addr: IpAddr) {
    match addr {
        IpAddr::V4(addr) => {
            out.push(4);
            out.extend(addr.octets());
        }
        IpAddr::V6(addr) => {
            out.push(6);
            out.extend(addr.octets());
        }
    }
}

/// What is left of a frame.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BadFrame> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(BadFrame::Length)?;
        self.0 = rest;
        Ok(*first)
    }

    fn octet(&mut self) -> Result<u8, BadFrame> {
        self.take::<1>().map(|[octet]| octet)
    }

    fn long(&mut self) -> Result<u64, BadFrame> {
        self.take().map(u64::from_be_bytes)
    }

    fn count(&mut self, max: usize) -> Result<usize, BadFrame> {
        let count = usize::from(u16::from_be_bytes(self.take()?));
        if count > max { Err(BadFrame::Value) } else { Ok(count) }
    }

    fn yes_or_no(&mut self) -> Result<bool, BadFrame> {
        match self.octet()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(BadFrame::Value),
        }
    }

    fn version(&mut self) -> Result<(), BadFrame> {
        match self.octet()? {
            VERSION => Ok(()),
            other => Err(BadFrame::Version(other)),
        }
    }

    fn state(&mut self) -> Result<State, BadFrame> {
        match self.octet()? {
            0 => Ok(State::Up),
            1 => Ok(State::Slow),
            2 => Ok(State::Down),
            _ => Err(BadFrame::Value),
        }
    }

    fn addr(&mut self) -> Result<IpAddr, BadFrame> {
        match self.octet()? {
            4 => Ok(IpAddr::V4(Ipv4Addr::from(self.take::<4>()?))),
            6 => Ok(IpAddr::V6(Ipv6Addr::from(self.take::<16>()?))),
            _ => Err(BadFrame::Value),
        }
    }

    fn prefix(&mut self) -> Result<Prefix, BadFrame> {
        let (addr, len) = (self.addr()?, self.octet()?);
        Prefix::new(addr, len).map_err(|_| BadFrame::Value)
    }

    fn end<T>(&self, read: T) -> Result<T, BadFrame> {
        if self.0.is_empty() { Ok(read) } else { Err(BadFrame::Length) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = vec![9; 3];
        write(&mut out);
        out
    }

    fn asks() -> impl Strategy<Value = Ask> {
        let hello = (any::<u64>(), any::<bool>())
            .prop_map(|(now, adopts)| Ask::Hello { now: Timestamp::from_millis(now), adopts });
        let until = option::of((1..=u64::MAX).prop_map(Timestamp::from_millis));
        let prefix = (any::<IpAddr>(), 0..=128_u8).prop_map(|(addr, len)| Prefix::truncated(addr, len));
        let flags = (any::<bool>(), any::<bool>(), any::<bool>());
        let parts = (any::<u64>(), flags, vec((any::<IpAddr>(), until), 0..40), vec(prefix, 0..20));
        let part = parts.prop_map(|(order, (is_whole, has_statics, is_last), hosts, statics)| {
            let statics = if has_statics { statics } else { Vec::new() };
            Ask::Part(Part { order, is_whole, has_statics, is_last, hosts, statics })
        });
        prop_oneof![hello, part]
    }

    fn tells() -> impl Strategy<Value = Tell> {
        let state = prop_oneof![Just(State::Up), Just(State::Slow), Just(State::Down)];
        let applied = prop_oneof![Just(Applied::Held), Just(Applied::Failed)];
        let reply = (any::<u64>(), applied, state.clone()).prop_map(|(order, applied, state)| Tell::Reply {
            order,
            applied,
            state,
        });
        prop_oneof![Just(Tell::Welcome), reply, state.prop_map(Tell::State), ".{0,200}".prop_map(Tell::Metrics)]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(ask in asks(), tell in tells()) {
            prop_assert_eq!(Ask::read(&written(|out| ask.write(out))), Ok(ask));
            prop_assert_eq!(Tell::read(&written(|out| tell.write(out))), Ok(tell));
        }

        #[test]
        fn any_octets_are_a_frame_or_an_error(octets in vec(any::<u8>(), 0..400)) {
            if let Ok(ask) = Ask::read(&octets) {
                prop_assert_eq!(written(|out| ask.write(out)), octets.clone());
            }
            if let Ok(tell) = Tell::read(&octets) {
                prop_assert_eq!(written(|out| tell.write(out)), octets);
            }
        }

        #[test]
        fn a_frame_with_one_octet_changed_harms_nobody(ask in asks(), at: proptest::sample::Index, octet: u8) {
            let mut octets = written(|out| ask.write(out));
            let at = at.index(octets.len());
            octets[at] = octet;
            let _ = Ask::read(&octets);
            let _ = Ask::read(&octets[..at]);
        }
    }

    #[test]
    fn prefixes_with_host_bits_and_lengths_that_there_are_not_are_refused() {
        for (addr, len) in [([10, 0, 0, 1], 8), ([10, 0, 0, 0], 33), ([10, 0, 0, 0], 255)] {
            let mut octets = written(|out| {
                Ask::Part(Part { has_statics: true, ..Part::default() }).write(out);
            });
            octets.truncate(octets.len() - 2);
            octets.extend([0, 1, 4]);
            octets.extend(addr);
            octets.push(len);
            assert_eq!(Ask::read(&octets), Err(BadFrame::Value), "{addr:?}/{len}");
        }
    }

    #[test]
    fn the_longest_part_fits_into_a_frame() {
        let host = (IpAddr::V6(Ipv6Addr::LOCALHOST), Some(Timestamp::from_millis(1)));
        let statics = vec![Prefix::host(host.0); PREFIXES_MAX];
        let part = Part { has_statics: true, hosts: vec![host; HOSTS_MAX], statics, ..Part::default() };
        assert!(written(|out| Ask::Part(part).write(out)).len() <= FRAME_LEN_MAX);
        assert_eq!(Ask::read(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0]), Err(BadFrame::Value), "flags");
        let one_too_many = [&[2][..], &[0; 9], &1025_u16.to_be_bytes(), &[0; 100]].concat();
        assert_eq!(Ask::read(&one_too_many), Err(BadFrame::Value), "not even looked for");
        assert_eq!(Tell::read(&[3, 2]), Err(BadFrame::Version(2)));
    }
}
