//! An upstream's reply, checked and walked once.
//!
//! [`walk`] believes nothing: header, question, every record of every section, every name and every known RDATA is
//! checked before one octet is kept, and a reply with any fault is refused whole, because both the client's answer
//! and the firewall's set are made of these octets. What passes becomes an [`Answer`] (what clients are given) and
//! [`Facts`] (what is learned); both speak of the same octets. Work is linear in the length of the reply.
//!
//! The id is not looked at: it belongs to the exchange.

use smallvec::SmallVec;
use thiserror::Error;

use super::answer::{self, Answer, Rules};
use super::facts::{self, Facts};
use super::names::{NameBuf, NameFault, NameId, NameTable, Source};
use super::opt::{OptFields, Options};
use super::{HEADER_LEN, MESSAGE_LEN_MAX, Question, flag, rcode, rdata, rtype, u16_at, u32_at};

/// The number of the name asked.
const ASKED: NameId = 0;

/// How many records a reply has at most, commonly: reading them takes no allocation.
const RECORDS_USUAL: usize = 8;

/// Octets of a record without RDATA and with the shortest owner.
const RECORD_LEN_MIN: usize = 11;

/// Why a reply is not used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WalkError {
    /// Fewer octets than a header.
    #[error("{0} octets, expected a header of 12")]
    TooShort(usize),
    /// More octets than a message may have.
    #[error("{0} octets, expected at most 65535")]
    TooLong(usize),
    /// QR is 0: a query.
    #[error("a query, expected a reply")]
    NotReply,
    /// Another opcode than QUERY.
    #[error("opcode {0}, expected QUERY")]
    Opcode(u8),
    /// No question (and no failure that excuses it), or several.
    #[error("{0} questions, expected one")]
    QuestionCount(u16),
    /// The question is not the one asked.
    #[error("answers another question")]
    WrongQuestion,
    /// The message ends inside a section.
    #[error("ends inside a record")]
    Ended,
    /// The owner name of a record is malformed.
    #[error("owner name: {0}")]
    Owner(NameFault),
    /// RDATA does not have the form of its type.
    #[error("malformed RDATA of type {record_type}")]
    Rdata {
        /// The record's type.
        record_type: u16,
    },
    /// A name in RDATA is malformed.
    #[error("name in RDATA of type {record_type}: {fault}")]
    RdataName {
        /// The record's type.
        record_type: u16,
        /// What is wrong with it.
        fault: NameFault,
    },
    /// Octets are left after the last record.
    #[error("{0} octets after the last record")]
    Trailing(usize),
    /// An OPT outside the additional section, or not owned by the root (RFC 6891 §6.1.1).
    #[error("OPT out of place")]
    OptPlace,
    /// More than one OPT.
    #[error("more than one OPT")]
    TwoOpts,
    /// Options that run past the end of their OPT.
    #[error("malformed EDNS options")]
    OptOptions,
    /// CNAMEs that lead in a circle.
    #[error("CNAME loop")]
    Loop,
    /// Written anew the answer would not fit a message.
    #[error("longer than 65535 octets once names are written anew")]
    Overflow,
}

impl WalkError {
    /// Returns whether the message is no reply to this question at all, so that the real one may still come
    /// (RFC 5452 §9.1); otherwise the upstream answered, but badly.
    pub fn is_stray(&self) -> bool {
        matches!(self, Self::TooShort(_) | Self::NotReply | Self::Opcode(_) | Self::WrongQuestion)
    }
}

/// What a reply comes to.
#[derive(Clone, Debug)]
pub struct Walked {
    /// What clients are given.
    pub answer: Answer,
    /// What the learner needs.
    pub facts: Facts,
    /// TC was set: ask again over TCP. The answer may be used if that fails, but has no lifetime; of a reply that was
    /// cut inside a record nothing is kept, and the answer is SERVFAIL.
    pub truncated: bool,
}

/// Checks and walks a reply to `question`. Never panics; work is linear in the length of the reply.
///
/// # Errors
/// A [`WalkError`] for a message that is no reply to this question, or that has a fault anywhere.
pub fn walk(reply: &[u8], question: &Question, rules: &Rules) -> Result<Walked, WalkError> {
    let header = Header::read(reply)?;
    let mut message = Message::new(reply, question);
    let records_at = message.check_question(&header, question)?;
    let truncated = header.flags & flag::TC != 0;
    match message.read_records(&header, records_at) {
        // Servers of old cut anywhere (RFC 2181 §9 tells to ignore such a reply); TCP will bring the whole.
        Err(_) if truncated && header.question_count == 1 => return Ok(cut_inside_record(question)),
        other => other?,
    }
    let rcode = message.rcode(&header);
    if header.question_count == 0 && matches!(rcode, rcode::NOERROR | rcode::NXDOMAIN) {
        return Err(WalkError::QuestionCount(0));
    }
    let chain = facts::trace(&message.records, &mut message.names, question.qclass)?;
    let kind = answer::kind_of(rcode, &message.records, &chain, question);
    answer::set_ttls(&mut message.records, rules, kind, reply);
    let facts = facts::collect(&message.records, &message.names, &chain, reply);
    let mut answer = answer::make(&message, &header, question, rules, rcode, kind)?;
    if truncated {
        answer.forbid_caching();
    }
    Ok(Walked { answer, facts, truncated })
}

/// What is made of a reply that ends inside a record and says so with TC.
fn cut_inside_record(question: &Question) -> Walked {
    Walked { answer: answer::synthesize(question, rcode::SERVFAIL, &[]), facts: Facts::default(), truncated: true }
}

/// The header of a reply.
pub(super) struct Header {
    pub(super) flags: u16,
    pub(super) question_count: u16,
    /// Records in the answer, authority and additional sections.
    counts: [u16; 3],
}

impl Header {
    fn read(reply: &[u8]) -> Result<Self, WalkError> {
        if reply.len() > MESSAGE_LEN_MAX {
            return Err(WalkError::TooLong(reply.len()));
        }
        let word = |at| u16_at(reply, at).ok_or(WalkError::TooShort(reply.len()));
        let header = Self { counts: [word(6)?, word(8)?, word(10)?], flags: word(2)?, question_count: word(4)? };
        if header.flags & flag::QR == 0 {
            return Err(WalkError::NotReply);
        }
        match (header.flags & flag::OPCODE) >> 11 {
            0 => Ok(header),
            opcode => Err(WalkError::Opcode(opcode as u8)),
        }
    }
}

/// A section of records, in the order of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// One record as it stands in the reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) section: Section,
    pub(super) owner: NameId,
    pub(super) record_type: u16,
    pub(super) record_class: u16,
    /// As sent at first; after [`answer::set_ttls`] what clients are told.
    pub(super) ttl_secs: u32,
    /// Where the record, its type and its RDATA start, and where it ends.
    pub(super) at: u16,
    pub(super) type_at: u16,
    pub(super) end: u16,
    /// Target of a CNAME or DNAME in the answer section.
    pub(super) target: Option<NameId>,
}

impl Record {
    /// Returns where the RDATA starts.
    pub(super) fn rdata_at(&self) -> usize {
        usize::from(self.type_at) + 10
    }

    /// Returns the RDATA.
    pub(super) fn rdata<'a>(&self, reply: &'a [u8]) -> &'a [u8] {
        reply.get(self.rdata_at()..usize::from(self.end)).unwrap_or_default()
    }
}

/// Records in the order of the message.
pub(super) type Records = SmallVec<[Record; RECORDS_USUAL]>;

/// A reply whose records have been read. The OPT is not among them.
pub(super) struct Message<'a> {
    pub(super) source: Source<'a>,
    pub(super) records: Records,
    /// The asked name is number 0.
    pub(super) names: NameTable,
    /// The OPT's fields and RDATA.
    pub(super) opt: Option<(OptFields, &'a [u8])>,
    /// Where the first record starts.
    pub(super) records_at: usize,
    buf: NameBuf,
}

impl<'a> Message<'a> {
    fn new(reply: &'a [u8], question: &Question) -> Self {
        let mut names = NameTable::new();
        names.intern(question.name.as_wire());
        let buf = NameBuf::new();
        Self { source: Source::new(reply), records: Records::new(), names, opt: None, records_at: HEADER_LEN, buf }
    }

    /// Compares the question; returns where the records start. A missing one is left for [`walk`] to judge.
    fn check_question(&mut self, header: &Header, question: &Question) -> Result<usize, WalkError> {
        match header.question_count {
            0 => return Ok(HEADER_LEN),
            1 => {}
            count => return Err(WalkError::QuestionCount(count)),
        }
        let name = question.name.as_wire();
        let (end, is_same_name) = match self.source.skip_name(HEADER_LEN, name) {
            Some(end) => (end, true),
            None => {
                let end = self.source.read_name(HEADER_LEN, &mut self.buf).map_err(|_| WalkError::WrongQuestion)?;
                (end, self.buf.fold() == name)
            }
        };
        let message = self.source.message();
        let is_same = is_same_name
            && u16_at(message, end) == Some(question.qtype)
            && u16_at(message, end + 2) == Some(question.qclass);
        if is_same { Ok(end + 4) } else { Err(WalkError::WrongQuestion) }
    }

    fn read_records(&mut self, header: &Header, records_at: usize) -> Result<(), WalkError> {
        let len = self.source.message().len();
        let count_max = (len - records_at) / RECORD_LEN_MIN;
        let count: usize = header.counts.iter().copied().map(usize::from).sum();
        self.records.reserve_exact(count.min(count_max));
        self.records_at = records_at;
        let mut at = records_at;
        for (section, count) in
            [Section::Answer, Section::Authority, Section::Additional].into_iter().zip(header.counts)
        {
            for _ in 0..count {
                at = self.read_record(section, at)?;
            }
        }
        if at == len { Ok(()) } else { Err(WalkError::Trailing(len - at)) }
    }

    /// Reads the record at `at`; returns where it ends.
    fn read_record(&mut self, section: Section, at: usize) -> Result<usize, WalkError> {
        let message = self.source.message();
        // Mostly the owner is the name asked, by a pointer; without a question there is none to point at.
        let is_asked = self.records_at > HEADER_LEN;
        let asked_end = if is_asked { self.source.skip_pointer_to_first(at) } else { None };
        let type_at = match asked_end {
            Some(end) => end,
            None => self.source.read_name(at, &mut self.buf).map_err(WalkError::Owner)?,
        };
        let word = |offset| u16_at(message, type_at + offset).ok_or(WalkError::Ended);
        let (record_type, record_class, rdata_len) = (word(0)?, word(2)?, word(8)?);
        let ttl_secs = u32_at(message, type_at + 4).ok_or(WalkError::Ended)?;
        let end = type_at + 10 + usize::from(rdata_len);
        let rdata = message.get(type_at + 10..end).ok_or(WalkError::Ended)?;
        if record_type == rtype::OPT {
            let is_in_place = section == Section::Additional && type_at == at + 1;
            self.take_opt(OptFields::from_class_and_ttl(record_class, ttl_secs), rdata, is_in_place)?;
            return Ok(end);
        }
        let owner = if asked_end.is_some() { ASKED } else { self.names.intern(self.buf.fold()) };
        rdata::check(&mut self.source, record_type, record_class, type_at + 10, end, &mut self.buf)?;
        let leads_on = section == Section::Answer && matches!(record_type, rtype::CNAME | rtype::DNAME);
        let target = leads_on.then(|| self.names.intern(self.buf.fold()));
        // Offsets lie within the message, whose length fits 16 bits.
        let (at, type_at) = (at as u16, type_at as u16);
        self.records.push(Record {
            section,
            owner,
            record_type,
            record_class,
            ttl_secs,
            at,
            type_at,
            end: end as u16,
            target,
        });
        Ok(end)
    }

    fn take_opt(&mut self, fields: OptFields, rdata: &'a [u8], is_in_place: bool) -> Result<(), WalkError> {
        if !is_in_place {
            return Err(WalkError::OptPlace);
        }
        if self.opt.is_some() {
            return Err(WalkError::TwoOpts);
        }
        if !Options::are_whole(rdata) {
            return Err(WalkError::OptOptions);
        }
        self.opt = Some((fields, rdata));
        Ok(())
    }

    /// Returns the rcode with the OPT's upper bits.
    fn rcode(&self, header: &Header) -> u16 {
        let high = self.opt.map_or(0, |(fields, _)| u16::from(fields.rcode_high));
        (high << 4) | (header.flags & flag::RCODE)
    }
}

#[cfg(test)]
mod tests;
