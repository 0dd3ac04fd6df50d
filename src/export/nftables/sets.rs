//! Sets of the kernel: which ones we fill, what they are like, and whether they will do.

use std::fmt::Write;

use nix::errno::Errno;

use super::attr::{self, Attrs};
use super::link::Link;
use super::message::{Batch, CREATE, Kind, TableFamily};
use super::range::Shape;
use crate::prefix::Family;
use crate::set::Origin;

// linux/netfilter/nf_tables.h
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DESC: u16 = 9;
const SET_ID: u16 = 10;
const SET_TIMEOUT: u16 = 11;
const SET_USERDATA: u16 = 13;
const DESC_SIZE: u16 = 1;
const FLAG_ANONYMOUS: u32 = 0x1;
const FLAG_CONSTANT: u32 = 0x2;
const FLAG_INTERVAL: u32 = 0x4;
const FLAG_MAP: u32 = 0x8;
pub(super) const FLAG_TIMEOUT: u32 = 0x10;
const FLAG_OBJECT: u32 = 0x40;
/// The numbers that `nft` gives its types; the kernel only keeps them.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
/// User data by which `nft` knows that keys are in network order: type 0, 4 bytes, the value 2 in native order.
const KEY_BYTE_ORDER: u8 = 0;
const BIG_ENDIAN: u32 = 2;

/// One set that we fill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) family: Family,
    pub(super) origin: Origin,
    pub(super) name: String,
}

impl Target {
    /// Whether it is for learned hosts, rather than for static prefixes.
    pub(super) fn is_learned(&self) -> bool {
        self.origin == Origin::Learned
    }
}

/// What a set of the kernel is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetInfo {
    flags: u32,
    key_type: u32,
    /// The most elements; `None` if there is no bound.
    pub(super) size: Option<u32>,
    /// What elements get that come without a timeout.
    default_timeout_millis: Option<u64>,
}

impl SetInfo {
    /// Returns what a set of our own table is like.
    pub(super) fn own(target: &Target, size: u32) -> Self {
        let (flags, size) = match target.origin {
            Origin::Static => (FLAG_INTERVAL, None),
            Origin::Learned => (FLAG_TIMEOUT, Some(size)),
        };
        Self { flags, key_type: key_type(target.family), size, default_timeout_millis: None }
    }

    fn read(attrs: Attrs<'_>) -> Self {
        Self {
            flags: attrs.number(SET_FLAGS).unwrap_or(0),
            key_type: attrs.number(SET_KEY_TYPE).unwrap_or(0),
            size: attrs.inside(SET_DESC).number(DESC_SIZE).filter(|size| *size > 0),
            default_timeout_millis: attrs.long(SET_TIMEOUT).filter(|millis| *millis > 0),
        }
    }

    /// Returns how its elements are encoded.
    pub(super) fn shape(&self, family: Family, is_signed: bool) -> Shape {
        Shape {
            family,
            has_intervals: self.flags & FLAG_INTERVAL != 0,
            has_timeouts: self.flags & FLAG_TIMEOUT != 0,
            is_signed,
        }
    }

    /// Returns what keeps an operator's set from holding what it is meant for, in words.
    pub(super) fn flaw(&self, target: &Target) -> Option<String> {
        let mut flaw = String::new();
        if self.flags & (FLAG_MAP | FLAG_OBJECT) != 0 {
            flaw.push_str("it is a map");
        } else if self.flags & (FLAG_ANONYMOUS | FLAG_CONSTANT) != 0 {
            flaw.push_str("its elements cannot be changed (`flags constant`)");
        } else if self.key_type != key_type(target.family) {
            let _ = write!(flaw, "its type is {}, not {}", type_name(self.key_type), type_word(target.family));
        } else if target.origin == Origin::Static && self.flags & FLAG_INTERVAL == 0 {
            flaw.push_str("it has no `flags interval`, so it cannot hold prefixes");
        } else if self.default_timeout_millis.is_some() && target.origin == Origin::Static {
            flaw.push_str("it has a default timeout, so prefixes would leave it by themselves");
        }
        (!flaw.is_empty()).then_some(flaw)
    }
}

/// Returns the command that makes a set as it is needed.
pub(super) fn command(family: TableFamily, table: &str, target: &Target) -> String {
    let flags = match target.origin {
        Origin::Learned => "timeout",
        Origin::Static => "interval",
    };
    let (name, kind) = (&target.name, type_word(target.family));
    format!("nft add set {} {table} {name} '{{ type {kind}; flags {flags}; }}'", family.as_str())
}

/// Looks at a set; `None` if it, or its table, is not there.
pub(super) fn look(link: &mut Link, family: TableFamily, table: &str, name: &str) -> Result<Option<SetInfo>, Errno> {
    let mut info = None;
    let which = |out: &mut Vec<u8>| {
        attr::put_text(out, SET_TABLE, table);
        attr::put_text(out, SET_NAME, name);
    };
    link.ask(Kind::GetSet, family, which, |attrs| info = Some(SetInfo::read(Attrs(attrs))))?;
    Ok(info)
}

/// Appends what makes a set. `id` tells the sets of one transaction apart.
pub(super) fn create(batch: &mut Batch, table: &str, target: &Target, info: &SetInfo, id: u32) {
    batch.push(Kind::NewSet, CREATE, |out| {
        attr::put_text(out, SET_TABLE, table);
        attr::put_text(out, SET_NAME, &target.name);
        attr::put_u32(out, SET_FLAGS, info.flags);
        attr::put_u32(out, SET_KEY_TYPE, info.key_type);
        attr::put_u32(out, SET_KEY_LEN, u32::from(target.family.bits() / 8));
        attr::put_u32(out, SET_ID, id);
        if let Some(size) = info.size {
            attr::nest(out, SET_DESC, |out| attr::put_u32(out, DESC_SIZE, size));
        }
        let mut userdata = vec![KEY_BYTE_ORDER, 4];
        userdata.extend_from_slice(&BIG_ENDIAN.to_ne_bytes());
        attr::put(out, SET_USERDATA, &userdata);
    });
}

fn key_type(family: Family) -> u32 {
    match family {
        Family::V4 => TYPE_IPV4,
        Family::V6 => TYPE_IPV6,
    }
}

fn type_word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

fn type_name(key_type: u32) -> String {
    match key_type {
        TYPE_IPV4 => "ipv4_addr".to_owned(),
        TYPE_IPV6 => "ipv6_addr".to_owned(),
        9 => "ether_addr".to_owned(),
        13 => "inet_service".to_owned(),
        // Six bits a type, one after the other.
        key_type if key_type >= 1 << 6 => "a concatenation".to_owned(),
        key_type => format!("of number {key_type}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(origin: Origin) -> Target {
        Target { family: Family::V4, origin, name: "bypass".to_owned() }
    }

    #[test]
    fn flaws_are_named() {
        let info = |flags, key_type| SetInfo { flags, key_type, size: None, default_timeout_millis: None };
        let learned = target(Origin::Learned);
        assert_eq!(info(FLAG_TIMEOUT, TYPE_IPV4).flaw(&learned), None);
        assert_eq!(info(0, TYPE_IPV4).flaw(&learned), None, "then we withdraw on time ourselves");
        assert_eq!(info(FLAG_INTERVAL | FLAG_TIMEOUT, TYPE_IPV4).flaw(&learned), None);
        let flaw = |flags, key_type| info(flags, key_type).flaw(&learned).unwrap();
        assert_eq!(flaw(0, TYPE_IPV6), "its type is ipv6_addr, not ipv4_addr");
        assert_eq!(flaw(0, TYPE_IPV4 << 6 | 13), "its type is a concatenation, not ipv4_addr");
        assert_eq!(flaw(FLAG_MAP, TYPE_IPV4), "it is a map");
        assert_eq!(flaw(FLAG_CONSTANT, TYPE_IPV4), "its elements cannot be changed (`flags constant`)");
        let fixed = target(Origin::Static);
        assert!(info(0, TYPE_IPV4).flaw(&fixed).unwrap().contains("flags interval"));
        let timed = SetInfo { default_timeout_millis: Some(1), ..info(FLAG_INTERVAL | FLAG_TIMEOUT, TYPE_IPV4) };
        assert!(timed.flaw(&fixed).unwrap().contains("default timeout"));
        assert_eq!(timed.flaw(&learned), None);
    }

    #[test]
    fn command_can_be_typed() {
        let line = command(TableFamily::Ip, "filter", &target(Origin::Learned));
        assert_eq!(line, "nft add set ip filter bypass '{ type ipv4_addr; flags timeout; }'");
        let line = command(TableFamily::Inet, "filter", &target(Origin::Static));
        assert_eq!(line, "nft add set inet filter bypass '{ type ipv4_addr; flags interval; }'");
    }
}
