//! An answer as it is kept: octets without OPT, header and TTLs already as clients are told.
//!
//! Normalising happens once, when the reply is walked, so that giving the answer is a copy with new TTLs:
//! - QR and RA are set, AA, TC, Z and CD clear; AD stays only if the upstream is trusted with it.
//! - TTLs: the top bit counts as 0, then at most `max_ttl`, at least `min_ttl`; one RRset has one TTL, its lowest
//!   (RFC 2181 §5.2, §8).
//! - A negative answer's SOA shows min(TTL, MINIMUM), capped, never raised (RFC 2308 §3, §5).
//! - Records of one hop go: OPT, TSIG, SIG(0). Without DO so do DNSSEC records not asked for (RFC 4035 §3.2.1).
//!
//! Where nothing is taken out before something that stays, the octets are the upstream's own; otherwise names are
//! written anew (`rebuild.rs`). [`Answer::lifetime_secs`] is the lowest TTL in those octets, whatever its section:
//! within it no client is ever told a record that has ended.

use smallvec::SmallVec;

use super::facts::Chain;
use super::kept::{Kept, Shape};
use super::opt::{self, EDES_MAX, Ede};
use super::walk::{Header, Message, Record, Records, Section, WalkError};
use super::{HEADER_LEN, Question, flag, put_u16, put_u32, rcode, rebuild, rtype, u16_at, u32_at};

/// How TTLs are bounded, and whether the upstream's AD bit is believed. All spans are in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// TTLs below this are raised to it; a negative answer's SOA is not.
    pub min_ttl: u32,
    /// TTLs above this are cut to it.
    pub max_ttl: u32,
    /// The SOA of a negative answer lives at most this long (RFC 2308 §5).
    pub negative_max_ttl: u32,
    /// The upstream validates and the way to it is safe (RFC 6840 §5.7).
    pub trust_ad: bool,
}

/// What an answer amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// NOERROR, and the chain ends in a record of the type asked.
    Positive,
    /// NOERROR without such a record (RFC 2308 §2.2).
    NoData,
    /// The last name of the chain does not exist (RFC 2308 §2.1).
    NxDomain,
    /// Any other rcode.
    Failure,
}

/// A whole answer, in a block of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    shape: Shape,
    octets: Box<[u8]>,
}

impl Answer {
    /// Puts the parts into one block. No more than [`EDES_MAX`] EDEs are given.
    fn assemble(placed: Placed, edes: &[Ede], (rcode, kind, lifetime_secs): (u16, Kind, u32)) -> Self {
        // A message is at most 65,535 octets, and a record takes eleven of them or more.
        let (message_len, ttl_count) = (placed.bytes.len() as u16, placed.ttl_offsets.len() as u16);
        let shape = Shape { lifetime_secs, message_len, ttl_count, rcode, kind };
        let edes_len: usize = edes.iter().map(Ede::option_len).sum();
        let mut octets = placed.bytes;
        octets.reserve_exact(2 * placed.ttl_offsets.len() + edes_len);
        octets.extend(placed.ttl_offsets.iter().flat_map(|at| at.to_ne_bytes()));
        edes.iter().for_each(|ede| ede.write(&mut octets, true));
        Self { shape, octets: octets.into_boxed_slice() }
    }

    /// Returns the answer for reading.
    pub fn kept(&self) -> Kept<'_> {
        Kept::new(self.shape, &self.octets)
    }

    /// Returns the message: header, question (lower case), records, no OPT; id 0, RD and CD clear.
    pub fn bytes(&self) -> &[u8] {
        self.kept().bytes()
    }

    /// Returns the rcode, 12 bits.
    pub fn rcode(&self) -> u16 {
        self.shape.rcode
    }

    /// Returns what the answer amounts to.
    pub fn kind(&self) -> Kind {
        self.shape.kind
    }

    /// Returns how long the answer may be cached: its lowest TTL. `None` if not at all: a TTL of 0, a negative answer
    /// without SOA or with MINIMUM 0, a failure, a truncated reply.
    pub fn lifetime_secs(&self) -> Option<u32> {
        (self.shape.lifetime_secs > 0).then_some(self.shape.lifetime_secs)
    }

    /// Returns the extended errors that go with it, at most [`EDES_MAX`].
    pub fn edes(&self) -> Vec<Ede> {
        self.kept().edes()
    }

    /// Returns how many octets it holds on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.octets.len()
    }

    /// Returns it with these extended errors in the place of its own; no more than [`EDES_MAX`] are given.
    #[must_use]
    pub fn with_edes(self, edes: &[Ede]) -> Self {
        let mut octets = self.octets.into_vec();
        octets.truncate(usize::from(self.shape.message_len) + 2 * usize::from(self.shape.ttl_count));
        edes.iter().take(EDES_MAX).for_each(|ede| ede.write(&mut octets, true));
        Self { shape: self.shape, octets: octets.into_boxed_slice() }
    }

    /// Returns whether it is a SERVFAIL because DNSSEC validation said no.
    ///
    /// Its EDEs say so (RFC 8914: 1 and 2 unsupported algorithm or digest, 5 to 12 indeterminate to no NSEC). Neither
    /// another upstream nor an older answer may undo it.
    pub fn is_refused_by_dnssec(&self) -> bool {
        self.rcode() == rcode::SERVFAIL && self.edes().iter().any(|ede| matches!(ede.code, 1 | 2 | 5..=12))
    }

    pub(super) fn forbid_caching(&mut self) {
        self.shape.lifetime_secs = 0;
    }
}

/// Makes an answer without records: our own failures, and names denied at home. It is not cacheable by itself.
pub fn synthesize(question: &Question, rcode: u16, edes: &[Ede]) -> Answer {
    let mut bytes = Vec::with_capacity(HEADER_LEN + question.name.as_wire().len() + 4);
    write_head(&mut bytes, question, flag::QR | flag::RA | (rcode & flag::RCODE));
    let kind = match rcode {
        rcode::NOERROR => Kind::NoData,
        rcode::NXDOMAIN => Kind::NxDomain,
        _ => Kind::Failure,
    };
    let placed = Placed { bytes, ttl_offsets: Offsets::new() };
    Answer::assemble(placed, &edes[..edes.len().min(EDES_MAX)], (rcode, kind, 0))
}

/// Appends a header with no records, and the question.
pub(super) fn write_head(out: &mut Vec<u8>, question: &Question, flags: u16) {
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(question.name.as_wire());
    out.extend_from_slice(&question.qtype.to_be_bytes());
    out.extend_from_slice(&question.qclass.to_be_bytes());
}

/// Decides what a reply amounts to.
pub(super) fn kind_of(rcode: u16, records: &[Record], chain: &Chain, question: &Question) -> Kind {
    let is_asked = |record: &Record| {
        record.section == Section::Answer
            && record.record_class == question.qclass
            && (record.record_type == question.qtype || question.qtype == rtype::ANY)
            && chain.has(record.owner)
    };
    match rcode {
        rcode::NOERROR if records.iter().any(is_asked) => Kind::Positive,
        rcode::NOERROR => Kind::NoData,
        rcode::NXDOMAIN => Kind::NxDomain,
        _ => Kind::Failure,
    }
}

/// Turns the TTLs as sent into those that clients are told.
pub(super) fn set_ttls(records: &mut [Record], rules: &Rules, kind: Kind, reply: &[u8]) {
    let mut order: SmallVec<[(u64, u16); 8]> =
        records.iter().zip(0..).map(|(record, i)| (rrset_key(record, reply), i)).collect();
    order.sort_unstable();
    for rrset in order.chunk_by(|a, b| a.0 == b.0) {
        let members = || rrset.iter().map(|(_, i)| usize::from(*i));
        let lowest = members().map(|i| told_ttl(&records[i], rules, kind, reply)).min().unwrap_or_default();
        for i in members() {
            records[i].ttl_secs = lowest;
        }
    }
}

/// Returns a number that records of one RRset, and only they, share.
///
/// RRSIGs go by the type they cover: those of different RRsets rightly differ in TTL (RFC 4034 §3).
fn rrset_key(record: &Record, reply: &[u8]) -> u64 {
    let (is_rrsig, record_type) = match record.record_type {
        rtype::RRSIG => (1, u16_at(record.rdata(reply), 0).unwrap_or_default()),
        other => (0, other),
    };
    (record.section as u64) << 49
        | is_rrsig << 48
        | u64::from(record.owner) << 32
        | u64::from(record_type) << 16
        | u64::from(record.record_class)
}

/// Returns what one record's TTL becomes, taken alone.
fn told_ttl(record: &Record, rules: &Rules, kind: Kind, reply: &[u8]) -> u32 {
    // RFC 2181 §8: the top bit is a sign, and negative spans are none.
    let sent = if record.ttl_secs > i32::MAX as u32 { 0 } else { record.ttl_secs };
    if is_negative_soa(record, kind) {
        // MINIMUM is the last field (RFC 1035 §3.3.13).
        let minimum_at = usize::from(record.end).saturating_sub(4);
        let minimum = u32_at(reply, minimum_at).unwrap_or_default();
        return sent.min(minimum).min(rules.negative_max_ttl).min(rules.max_ttl);
    }
    sent.min(rules.max_ttl).max(rules.min_ttl)
}

/// Returns whether this SOA says how long a negative answer lives.
fn is_negative_soa(record: &Record, kind: Kind) -> bool {
    record.record_type == rtype::SOA
        && record.section == Section::Authority
        && matches!(kind, Kind::NoData | Kind::NxDomain)
}

/// Makes the answer of a message whose TTLs are set.
///
/// # Errors
/// [`WalkError::Overflow`] if the names, written anew, do not fit.
pub(super) fn make(
    message: &Message<'_>,
    header: &Header,
    question: &Question,
    rules: &Rules,
    rcode: u16,
    kind: Kind,
) -> Result<Answer, WalkError> {
    let kept: Records = message.records.iter().filter(|record| stays(record, message, question)).copied().collect();
    let ad = if rules.trust_ad { header.flags & flag::AD } else { 0 };
    let flags = flag::QR | flag::RA | ad | (rcode & flag::RCODE);
    let placed = if may_copy(message, header, &kept) {
        copy(message, question, flags, &kept)
    } else {
        rebuild::write(message.source.message(), question, flags, &kept)?
    };
    let edes = message.opt.map(|(_, rdata)| opt::edes_in(rdata)).unwrap_or_default();
    Ok(Answer::assemble(placed, &edes, (rcode, kind, lifetime(&kept, kind))))
}

/// Returns whether a record may be told to clients who ask this question.
fn stays(record: &Record, message: &Message<'_>, question: &Question) -> bool {
    match record.record_type {
        // Signatures over the message belong to the hop (RFC 8945, RFC 2931); we asked for none.
        rtype::TSIG => false,
        rtype::SIG => u16_at(record.rdata(message.source.message()), 0) != Some(0),
        rtype::RRSIG | rtype::NSEC | rtype::NSEC3 | rtype::NSEC3PARAM | rtype::DNSKEY | rtype::DS => {
            let is_asked_by_any = question.qtype == rtype::ANY && record.section == Section::Answer;
            question.dnssec_ok || record.record_type == question.qtype || is_asked_by_any
        }
        _ => true,
    }
}

/// Returns how long the answer may be cached, zero for not at all.
fn lifetime(kept: &[Record], kind: Kind) -> u32 {
    let is_cacheable = match kind {
        Kind::Positive => true,
        Kind::NoData | Kind::NxDomain => kept.iter().any(|record| is_negative_soa(record, kind)),
        Kind::Failure => false,
    };
    let lowest = kept.iter().map(|record| record.ttl_secs).min();
    lowest.filter(|_| is_cacheable).unwrap_or_default()
}

/// Where TTLs stand.
pub(super) type Offsets = SmallVec<[u16; 16]>;

/// A message being kept, and where its TTLs stand: one for every record.
pub(super) struct Placed {
    pub(super) bytes: Vec<u8>,
    pub(super) ttl_offsets: Offsets,
}

/// Returns whether the upstream's own octets can be kept: the question is there, everything that goes stands after
/// everything that stays, and no name depends on octets that we change.
fn may_copy(message: &Message<'_>, header: &Header, kept: &[Record]) -> bool {
    let end = end_of(message, kept);
    let kept_len: usize = kept.iter().map(|record| usize::from(record.end - record.at)).sum();
    header.question_count == 1 && !message.source.has_stray_pointer() && message.records_at + kept_len == end
}

/// Returns where the last record that stays ends.
fn end_of(message: &Message<'_>, kept: &[Record]) -> usize {
    kept.last().map_or(message.records_at, |record| usize::from(record.end))
}

/// Keeps the upstream's octets, with our header and TTLs.
fn copy(message: &Message<'_>, question: &Question, flags: u16, kept: &[Record]) -> Placed {
    let end = end_of(message, kept);
    // The places of the TTLs come behind.
    let mut bytes = Vec::with_capacity(end + 2 * kept.len());
    write_head(&mut bytes, question, flags);
    bytes.extend_from_slice(message.source.message().get(bytes.len()..end).unwrap_or_default());
    let mut counts = [0u16; 3];
    let mut ttl_offsets = Offsets::with_capacity(kept.len());
    for record in kept {
        counts[record.section as usize] += 1;
        let ttl_at = record.type_at + 4;
        put_u32(&mut bytes, usize::from(ttl_at), record.ttl_secs);
        ttl_offsets.push(ttl_at);
    }
    put_counts(&mut bytes, counts);
    Placed { bytes, ttl_offsets }
}

/// Writes the records' counts into a header.
pub(super) fn put_counts(bytes: &mut [u8], counts: [u16; 3]) {
    for (at, count) in [6, 8, 10].into_iter().zip(counts) {
        put_u16(bytes, at, count);
    }
}
