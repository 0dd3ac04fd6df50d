//! What a reply says about addresses: the chain from the name asked, and what the names on it own.
//!
//! A [`Chain`] is every name reached from the name asked by CNAME or DNAME records of the answer section, in whatever
//! order they stand there. Only what chain names own counts: an address under another name, or in another section,
//! may have been put there by anyone along the way. Circles are refused, and facts are taken from the first
//! [`CHAIN_LEN_MAX`] names.
//!
//! Facts speak of exactly what a client reads from the answer: the same records, with the TTL that it is told.

use std::net::IpAddr;

use smallvec::{SmallVec, smallvec};

use super::names::{NameId, NameTable};
use super::rdata::Svcb;
use super::walk::{Record, Section, WalkError};
use super::{class, rtype};
use crate::name::{Name, WIRE_LEN_MAX};

/// The most names of a chain that facts are taken from; real chains have fewer than ten.
pub const CHAIN_LEN_MAX: usize = 32;

/// What the learner needs of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Names on the CNAME and DNAME chain behind the one asked, in order, each once; with it at most [`CHAIN_LEN_MAX`].
    pub chain: Vec<Name>,
    /// A, AAAA and hints owned by the chain: sorted, each address once, with the longest TTL told for it.
    pub addresses: Vec<Sighted>,
    /// TargetNames other than `.` of the chain's HTTPS and SVCB records: sorted, each once, with the longest TTL
    /// told, in seconds.
    pub targets: Vec<(Name, u32)>,
    /// False when the chain was longer than [`CHAIN_LEN_MAX`], so that addresses may be missing.
    pub all_addresses: bool,
}

/// Those of an answer that says nothing.
impl Default for Facts {
    fn default() -> Self {
        Self { chain: Vec::new(), addresses: Vec::new(), targets: Vec::new(), all_addresses: true }
    }
}

/// An address in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighted {
    /// The address.
    pub addr: IpAddr,
    /// What a client of this moment is told: clamped, and the lowest of the RRset.
    pub ttl_secs: u32,
    /// It stands only in an HTTPS or SVCB hint, not in an address record.
    pub is_hint: bool,
}

/// The names reached from the name asked.
pub(super) struct Chain {
    /// In the order in which they are reached, the name asked first.
    order: SmallVec<[NameId; NAMES_USUAL]>,
    /// For each name number, how far the walk over it came.
    state: SmallVec<[State; NAMES_USUAL]>,
}

/// How many names a reply has at most, commonly: following their chain takes no allocation.
const NAMES_USUAL: usize = 16;

impl Chain {
    pub(super) fn has(&self, name: NameId) -> bool {
        self.state.get(usize::from(name)) == Some(&State::Done)
    }
}

/// How far the walk over one name has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Open,
    Done,
}

/// A name on the path that is being walked, and the links out of it still to take.
struct Step {
    name: NameId,
    links: std::ops::Range<usize>,
    synthesized: Option<NameId>,
}

/// Follows the chain from the name asked, which is number 0.
///
/// A name with several CNAMEs (RFC 2181 §10.1 forbids it, some servers do it) leads to all their targets, since one
/// client will take the first and another the last. Where a DNAME covers a name that has no CNAME, the CNAME that
/// belongs to it (RFC 6672 §3.1) is followed as if it stood there.
///
/// # Errors
/// [`WalkError::Loop`] if a name is reached from itself.
pub(super) fn trace(records: &[Record], names: &mut NameTable, class: u16) -> Result<Chain, WalkError> {
    let cnames = links(records, rtype::CNAME, class);
    let dnames = links(records, rtype::DNAME, class);
    let mut state: SmallVec<[State; NAMES_USUAL]> = smallvec![State::New; names.len()];
    let mut order = SmallVec::new();
    let mut path = SmallVec::<[Step; 4]>::new();
    let mut next = Some(0);
    loop {
        if let Some(name) = next {
            state.resize(names.len(), State::New);
            match state[usize::from(name)] {
                State::Open => return Err(WalkError::Loop),
                State::Done => {}
                State::New => {
                    state[usize::from(name)] = State::Open;
                    order.push(name);
                    let links = links_of(&cnames, name);
                    // Beyond the names that count only circles matter, and those need CNAMEs to lead a client round.
                    let may_synthesize = links.is_empty() && !dnames.is_empty() && order.len() <= CHAIN_LEN_MAX;
                    let synthesized = if may_synthesize { synthesize_cname(names, &dnames, name) } else { None };
                    path.push(Step { name, links, synthesized });
                }
            }
        }
        let Some(step) = path.last_mut() else { break };
        next = step.links.next().map(|i| cnames[i].1).or_else(|| step.synthesized.take());
        if next.is_none() {
            state[usize::from(step.name)] = State::Done;
            path.pop();
        }
    }
    Ok(Chain { order, state })
}

/// Collects owner and target of the answer section's records of one type, sorted, each pair once.
fn links(records: &[Record], record_type: u16, class: u16) -> Vec<(NameId, NameId)> {
    let mut links: Vec<_> = records
        .iter()
        .filter(|record| record.section == Section::Answer)
        .filter(|record| record.record_type == record_type && record.record_class == class)
        .filter_map(|record| Some((record.owner, record.target?)))
        .collect();
    links.sort_unstable();
    links.dedup();
    links
}

/// Returns where the links of one owner stand.
fn links_of(links: &[(NameId, NameId)], owner: NameId) -> std::ops::Range<usize> {
    let start = links.partition_point(|link| link.0 < owner);
    let len = links[start..].iter().take_while(|link| link.0 == owner).count();
    start..start + len
}

/// Applies the DNAME of the closest ancestor, if there is one and the result is a name (RFC 6672 §2.2).
fn synthesize_cname(names: &mut NameTable, dnames: &[(NameId, NameId)], name: NameId) -> Option<NameId> {
    let wire = names.wire(name);
    let mut cut = 0;
    let target = loop {
        // The DNAME's own owner is not redirected, only what lies below it.
        cut += 1 + usize::from(*wire.get(cut).filter(|len| **len > 0)?);
        let ancestor = names.find(wire.get(cut..)?);
        let link = ancestor.and_then(|ancestor| dnames.get(links_of(dnames, ancestor).next()?));
        if let Some((_, target)) = link {
            break names.wire(*target);
        }
    };
    let synthesized = [&wire[..cut], target].concat();
    (synthesized.len() <= WIRE_LEN_MAX).then(|| names.intern(&synthesized))
}

/// Collects what the chain owns. TTLs must be those that clients are told.
pub(super) fn collect(records: &[Record], names: &NameTable, chain: &Chain, reply: &[u8]) -> Facts {
    let counted = &chain.order[..chain.order.len().min(CHAIN_LEN_MAX)];
    let mut facts = Facts {
        chain: counted.iter().skip(1).filter_map(|name| Name::from_wire(names.wire(*name)).ok()).collect(),
        all_addresses: counted.len() == chain.order.len(),
        ..Facts::default()
    };
    let on_chain = records
        .iter()
        .filter(|record| record.section == Section::Answer && record.record_class == class::IN)
        .filter(|record| chain.has(record.owner) && counted.contains(&record.owner));
    for record in on_chain {
        take_record(&mut facts, record, record.rdata(reply));
    }
    tidy(&mut facts);
    facts
}

/// Adds the addresses and targets of one record.
fn take_record(facts: &mut Facts, record: &Record, rdata: &[u8]) {
    let ttl_secs = record.ttl_secs;
    match record.record_type {
        rtype::A => facts.addresses.extend(ipv4s(rdata).map(|addr| Sighted { addr, ttl_secs, is_hint: false })),
        rtype::AAAA => facts.addresses.extend(ipv6s(rdata).map(|addr| Sighted { addr, ttl_secs, is_hint: false })),
        rtype::HTTPS | rtype::SVCB => {
            let Some(svcb) = Svcb::parse(rdata) else { return };
            let (v4, v6) = svcb.hints();
            let hints = ipv4s(v4).chain(ipv6s(v6));
            facts.addresses.extend(hints.map(|addr| Sighted { addr, ttl_secs, is_hint: true }));
            let target = svcb.target().and_then(|target| Name::from_wire(target).ok());
            facts.targets.extend(target.map(|target| (target, ttl_secs)));
        }
        _ => {}
    }
}

/// Sorts, and keeps each address and each target once.
fn tidy(facts: &mut Facts) {
    facts.addresses.sort_unstable_by_key(|sighted| sighted.addr);
    facts.addresses.dedup_by(|later, kept| {
        let is_same = later.addr == kept.addr;
        if is_same {
            kept.ttl_secs = kept.ttl_secs.max(later.ttl_secs);
            kept.is_hint &= later.is_hint;
        }
        is_same
    });
    facts.targets.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    facts.targets.dedup_by(|later, kept| later.0 == kept.0);
}

fn ipv4s(octets: &[u8]) -> impl Iterator<Item = IpAddr> {
    octets.chunks_exact(4).filter_map(|octets| Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)))
}

fn ipv6s(octets: &[u8]) -> impl Iterator<Item = IpAddr> {
    octets.chunks_exact(16).filter_map(|octets| Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?)))
}
