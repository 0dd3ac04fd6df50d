//! RDATA: where the names in it stand, and whether it is well-formed.
//!
//! Types unknown to this file are opaque (RFC 3597): they pass octet for octet. Known are those that senders may
//! compress names in (RFC 1035 §3.3, and those that RFC 3597 §4 asks receivers to decompress), the addresses, and
//! SVCB and HTTPS (RFC 9460).

use super::names::{NameBuf, NameFault, Source};
use super::walk::WalkError;
use super::{class, rtype, u16_at};
use crate::name::{LABEL_LEN_MAX, WIRE_LEN_MAX};

/// SvcParamKey of IPv4 hints (RFC 9460 §7.3).
const KEY_IPV4HINT: u16 = 4;

/// SvcParamKey of IPv6 hints.
const KEY_IPV6HINT: u16 = 6;

/// A piece of RDATA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// This many octets.
    Octets(usize),
    /// A domain name, possibly compressed.
    Name,
    /// A length octet and that many octets (RFC 1035 §3.3).
    Text,
    /// Whatever is left.
    Rest,
}

/// What the RDATA of a type is made of.
pub(super) struct Layout {
    pub(super) pieces: &'static [Piece],
    /// Its names may be compressed when we write them: only in types of RFC 1035 (RFC 3597 §4).
    pub(super) may_compress: bool,
}

/// Returns the layout of a type whose RDATA holds names, `None` for all that are copied as they stand.
pub(super) fn layout(record_type: u16) -> Option<Layout> {
    use Piece::{Name, Octets, Rest, Text};
    let compressible = |pieces| Some(Layout { pieces, may_compress: true });
    let plain = |pieces| Some(Layout { pieces, may_compress: false });
    match record_type {
        rtype::NS | rtype::MD | rtype::MF | rtype::CNAME | rtype::MB | rtype::MG | rtype::MR | rtype::PTR => {
            compressible(&[Name])
        }
        rtype::SOA => compressible(&[Name, Name, Octets(20)]),
        rtype::MINFO => compressible(&[Name, Name]),
        rtype::MX => compressible(&[Octets(2), Name]),
        rtype::DNAME => plain(&[Name]),
        rtype::RP => plain(&[Name, Name]),
        rtype::AFSDB | rtype::RT | rtype::KX => plain(&[Octets(2), Name]),
        rtype::PX => plain(&[Octets(2), Name, Name]),
        rtype::SRV => plain(&[Octets(6), Name]),
        rtype::NAPTR => plain(&[Octets(4), Text, Text, Text, Name]),
        rtype::SIG | rtype::RRSIG => plain(&[Octets(18), Name, Rest]),
        rtype::NXT | rtype::NSEC => plain(&[Name, Rest]),
        _ => None,
    }
}

/// Checks the RDATA of one record; leaves the last name in it in `buf`.
///
/// Names must end exactly where the layout says, inside the RDATA (pointers may lead out of it, backwards).
pub(super) fn check(
    source: &mut Source<'_>,
    record_type: u16,
    record_class: u16,
    at: usize,
    end: usize,
    buf: &mut NameBuf,
) -> Result<(), WalkError> {
    let malformed = WalkError::Rdata { record_type };
    let rdata = source.message().get(at..end).ok_or(WalkError::Ended)?;
    let is_well_formed = match record_type {
        rtype::A if record_class == class::IN => rdata.len() == 4,
        rtype::AAAA if record_class == class::IN => rdata.len() == 16,
        rtype::SVCB | rtype::HTTPS if record_class == class::IN => Svcb::parse(rdata).is_some(),
        _ => match layout(record_type) {
            Some(layout) => check_pieces(source, layout.pieces, at, end, buf)
                .map_err(|fault| WalkError::RdataName { record_type, fault })?,
            None => true,
        },
    };
    if is_well_formed { Ok(()) } else { Err(malformed) }
}

/// Returns whether the pieces fill the RDATA exactly.
fn check_pieces(
    source: &mut Source<'_>,
    pieces: &[Piece],
    at: usize,
    end: usize,
    buf: &mut NameBuf,
) -> Result<bool, NameFault> {
    let mut piece_at = at;
    for piece in pieces {
        if piece_at > end {
            return Ok(false);
        }
        piece_at = match piece {
            Piece::Octets(len) => piece_at + len,
            Piece::Name => source.read_name(piece_at, buf)?,
            Piece::Text => match source.message().get(piece_at) {
                Some(&len) => piece_at + 1 + usize::from(len),
                None => return Ok(false),
            },
            Piece::Rest => end,
        };
    }
    Ok(piece_at == end)
}

/// RDATA of SVCB and HTTPS (RFC 9460 §2.2).
#[derive(Clone, Copy, Debug)]
pub(super) struct Svcb<'a> {
    priority: u16,
    target: &'a [u8],
    params: &'a [u8],
}

impl<'a> Svcb<'a> {
    /// Reads it; `None` if it is malformed: a TargetName that is compressed or runs out, parameters that run out or
    /// whose keys do not strictly increase, hints that are not whole addresses or none at all (RFC 9460 §2.2, §7.3).
    pub(super) fn parse(rdata: &'a [u8]) -> Option<Self> {
        let priority = u16_at(rdata, 0)?;
        let rest = rdata.get(2..)?;
        let (target, params) = rest.split_at_checked(plain_name_len(rest)?)?;
        let svcb = Self { priority, target, params };
        let mut last_key = None;
        for param in svcb.params() {
            let (key, value) = param?;
            if last_key.is_some_and(|last| key <= last) {
                return None;
            }
            last_key = Some(key);
            let address_len = match key {
                _ if svcb.is_alias() => continue,
                KEY_IPV4HINT => 4,
                KEY_IPV6HINT => 16,
                _ => continue,
            };
            if value.is_empty() || value.len() % address_len != 0 {
                return None;
            }
        }
        Some(svcb)
    }

    /// Returns whether it only points elsewhere (AliasMode); its parameters are ignored then (RFC 9460 §2.4.2).
    pub(super) fn is_alias(&self) -> bool {
        self.priority == 0
    }

    /// Returns TargetName, letter case kept, unless it is `.`.
    pub(super) fn target(&self) -> Option<&'a [u8]> {
        (self.target.len() > 1).then_some(self.target)
    }

    /// Returns the octets of the IPv4 hints, 4 each, and of the IPv6 hints, 16 each; none in AliasMode.
    pub(super) fn hints(&self) -> (&'a [u8], &'a [u8]) {
        let mut hints: (&[u8], &[u8]) = (&[], &[]);
        if self.is_alias() {
            return hints;
        }
        for (key, value) in self.params().flatten() {
            match key {
                KEY_IPV4HINT => hints.0 = value,
                KEY_IPV6HINT => hints.1 = value,
                _ => {}
            }
        }
        hints
    }

    /// Goes through the parameters; yields `None` once, as the last item, if one runs past the end.
    fn params(&self) -> super::opt::Options<'a> {
        // Key, length and value stand exactly as in an EDNS option.
        super::opt::Options::new(self.params)
    }
}

/// Returns the length of the uncompressed name at the start of `octets`.
fn plain_name_len(octets: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let len = usize::from(*octets.get(at)?);
        at += 1 + len;
        if len > LABEL_LEN_MAX || at > WIRE_LEN_MAX {
            return None;
        }
        if len == 0 {
            return Some(at);
        }
    }
}
