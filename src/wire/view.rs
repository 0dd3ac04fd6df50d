//! A client's packet seen in place: the question in it, or why there is none to answer.
//!
//! [`see`] sorts a packet into a [`View`] of one answerable question, a [`Refusal`] that writes its own reply, or
//! silence. It reads the packet once and allocates nothing. Rows it decides, in this order:
//!
//! | packet | outcome |
//! |---|---|
//! | shorter than a header, QR = 1 | silence: an answer could start a loop |
//! | opcode other than QUERY | NOTIMP |
//! | QDCOUNT ≠ 1 (RFC 9619), a question or record that does not parse, a compressed question name | FORMERR |
//! | trailing octets, two OPTs, an OPT owner other than the root, EDNS options that do not parse | FORMERR |
//! | a TSIG that is not the last record (RFC 8945 §5.1) | FORMERR |
//! | EDNS version above 0 | BADVERS, our version in the reply (RFC 6891 §6.1.3) |
//! | class other than IN | REFUSED |
//! | AXFR, IXFR | REFUSED |
//! | ANCOUNT or NSCOUNT ≠ 0 | FORMERR |
//! | type 0, OPT, TSIG, NXNAME: never a question (RFC 6895 §3.1, RFC 9824 §3.5) | FORMERR |
//! | TKEY, MAILA, MAILB: a question, but not one that a forwarder implements | NOTIMP |
//! | ANY over UDP | the minimal answer of RFC 8482 §4.2 |
//!
//! Other records in the additional section (TSIG with a key we do not hold, SIG(0), anything else) are ignored if
//! they parse: a forwarder has no say in them, so the client gets its answer unsigned and decides itself. AA, TC, RA,
//! Z and RCODE of a query mean nothing and are ignored.

use super::names::{NameBuf, Source};
use super::opt::{self, Ede, Edns, OPT_LEN, OptFields, ReplyCookie};
use super::{HEADER_LEN, Question, QuestionKey, class, flag, rcode, rtype, u16_at, u32_at};
use crate::name::{LABEL_LEN_MAX, Name, WIRE_LEN_MAX};

/// How long the answer to ANY may be kept; it never changes.
const ANY_TTL_SECS: u32 = 3600;

/// HINFO RDATA of RFC 8482 §4.2: CPU "RFC8482", OS empty.
const ANY_HINFO: &[u8] = b"\x07RFC8482\0";

/// How a packet came; rules hang on it: size limits, ANY, padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams: the source may be forged, the size is limited.
    Udp,
    /// Frames over TCP (RFC 7766).
    Tcp,
    /// Frames over TLS (RFC 7858).
    Dot,
    /// Requests over HTTPS (RFC 8484).
    Doh,
    /// Streams of QUIC (RFC 9250).
    Doq,
}

impl Transport {
    /// Every transport, in the order of their numbers (`as usize`).
    pub const ALL: [Self; 5] = [Self::Udp, Self::Tcp, Self::Dot, Self::Doh, Self::Doq];

    /// Returns the word for it in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Dot => "dot",
            Self::Doh => "doh",
            Self::Doq => "doq",
        }
    }

    /// Returns whether nobody on the way can read it, so that lengths are all there is to see.
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Dot | Self::Doh | Self::Doq)
    }
}

/// What a packet turns out to be.
#[derive(Clone, Debug)]
pub enum Seen<'a> {
    /// One question to answer.
    Question(View<'a>),
    /// Answered as it stands, without asking anybody.
    Refuse(Refusal<'a>),
    /// No answer at all.
    Silence,
}

/// A question seen in a datagram or frame, without copying.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    id: u16,
    flags: u16,
    /// Name, type and class: 5 to 259 octets.
    question: &'a [u8],
    edns: Option<Edns>,
    /// The client's COOKIE option, whatever it holds.
    cookie: Option<&'a [u8]>,
    /// What the reply says in its place.
    reply_cookie: Option<ReplyCookie>,
}

/// Sorts a packet from a client.
pub fn see(packet: &[u8], transport: Transport) -> Seen<'_> {
    let (Some(id), Some(flags)) = (u16_at(packet, 0), u16_at(packet, 2)) else {
        return Seen::Silence;
    };
    if packet.len() < HEADER_LEN || flags & flag::QR != 0 {
        return Seen::Silence;
    }
    let scan = Scan::of(packet);
    let refuse = |rcode| {
        let edns = scan.opt.map(|opt| opt.edns);
        Seen::Refuse(Refusal {
            id,
            flags,
            question: scan.question,
            edns,
            reply_cookie: None,
            rcode,
            ede: None,
            is_any: false,
            is_truncated: false,
        })
    };
    if flags & flag::OPCODE != 0 {
        return refuse(rcode::NOTIMP);
    }
    let Some(question) = scan.question.filter(|_| scan.is_whole) else {
        return refuse(rcode::FORMERR);
    };
    let edns = scan.opt.map(|opt| opt.edns);
    let view = View { id, flags, question, edns, cookie: scan.cookie, reply_cookie: None };
    if scan.opt.is_some_and(|opt| opt.version != 0) {
        return refuse(rcode::BADVERS);
    }
    match verdict(&view, scan.has_foreign_sections, transport) {
        Verdict::Answer => Seen::Question(view),
        Verdict::Minimal => Seen::Refuse(Refusal { is_any: true, ..view.refuse(rcode::NOERROR) }),
        Verdict::Refuse(rcode) => Seen::Refuse(view.refuse(rcode)),
    }
}

enum Verdict {
    Answer,
    Minimal,
    Refuse(u16),
}

/// Decides on a packet that parses, by class and type.
fn verdict(view: &View<'_>, has_foreign_sections: bool, transport: Transport) -> Verdict {
    match view.qtype() {
        _ if view.qclass() != class::IN => Verdict::Refuse(rcode::REFUSED),
        // Before the look at the sections: an IXFR carries the client's SOA in its authority section (RFC 1995 §3).
        rtype::AXFR | rtype::IXFR => Verdict::Refuse(rcode::REFUSED),
        _ if has_foreign_sections => Verdict::Refuse(rcode::FORMERR),
        0 | rtype::OPT | rtype::TSIG | rtype::NXNAME => Verdict::Refuse(rcode::FORMERR),
        rtype::TKEY | rtype::MAILA | rtype::MAILB => Verdict::Refuse(rcode::NOTIMP),
        rtype::ANY if transport == Transport::Udp => Verdict::Minimal,
        _ => Verdict::Answer,
    }
}

impl<'a> View<'a> {
    /// Returns the id to echo.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Returns whether the client wants recursion (RD).
    pub fn recursion_desired(&self) -> bool {
        self.flags & flag::RD != 0
    }

    /// Returns whether the client checks signatures itself (CD).
    pub fn checking_disabled(&self) -> bool {
        self.flags & flag::CD != 0
    }

    /// Returns whether the client understands AD in the reply (RFC 6840 §5.7).
    pub fn authentic_data(&self) -> bool {
        self.flags & flag::AD != 0
    }

    /// Returns the name as sent, letter case kept, in uncompressed wire form.
    pub fn qname(&self) -> &'a [u8] {
        &self.question[..self.question.len() - 4]
    }

    /// Writes the name in lower case into `buf` and returns it.
    pub fn fold_qname<'b>(&self, buf: &'b mut [u8; 255]) -> &'b [u8] {
        let qname = self.qname();
        let folded = &mut buf[..qname.len()];
        folded.copy_from_slice(qname);
        // Length octets are below `A`, so folding the whole slice leaves them alone.
        folded.make_ascii_lowercase();
        folded
    }

    /// Returns the type asked.
    pub fn qtype(&self) -> u16 {
        u16_at(self.question, self.question.len() - 4).unwrap_or_default()
    }

    /// Returns the class asked.
    pub fn qclass(&self) -> u16 {
        u16_at(self.question, self.question.len() - 2).unwrap_or_default()
    }

    /// Returns what the client's OPT said, if there was one.
    pub fn edns(&self) -> Option<Edns> {
        self.edns
    }

    /// Returns the value of the client's COOKIE option (RFC 7873), well-formed or not.
    pub fn cookie(&self) -> Option<&'a [u8]> {
        self.cookie
    }

    /// Returns the same question, whose reply carries a cookie if the client sent an OPT.
    #[must_use]
    pub fn with_reply_cookie(self, reply_cookie: Option<ReplyCookie>) -> Self {
        Self { reply_cookie, ..self }
    }

    /// Returns the cookie that the reply carries.
    pub(super) fn reply_cookie(&self) -> Option<ReplyCookie> {
        self.reply_cookie
    }

    /// Returns whether the client wants DNSSEC records; false without EDNS.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// Returns the question as it is looked up, its name folded into `buf`; allocates nothing.
    pub fn key<'b>(&self, buf: &'b mut [u8; 255]) -> QuestionKey<'b> {
        QuestionKey {
            name: self.fold_qname(buf),
            qtype: self.qtype(),
            qclass: self.qclass(),
            dnssec_ok: self.dnssec_ok(),
            checking_disabled: self.checking_disabled(),
        }
    }

    /// Returns the question as it is asked upstream; allocates.
    pub fn question(&self) -> Question {
        Question {
            // The name was checked when the packet was seen; the root stands for what cannot be.
            name: Name::from_wire(self.qname()).unwrap_or_else(|_| Name::root()),
            qtype: self.qtype(),
            qclass: self.qclass(),
            dnssec_ok: self.dnssec_ok(),
            checking_disabled: self.checking_disabled(),
        }
    }

    /// Answers with an rcode and no records.
    pub fn refuse(&self, rcode: u16) -> Refusal<'a> {
        Refusal {
            id: self.id,
            flags: self.flags,
            question: Some(self.question),
            edns: self.edns,
            reply_cookie: self.reply_cookie,
            rcode,
            ede: None,
            is_any: false,
            is_truncated: false,
        }
    }

    /// Returns name, type and class as sent.
    pub(super) fn question_bytes(&self) -> &'a [u8] {
        self.question
    }

    /// Returns the flags of a reply: QR and RA set, RD and CD echoed, all others clear.
    pub(super) fn reply_flags(&self) -> u16 {
        flag::QR | flag::RA | (self.flags & (flag::RD | flag::CD))
    }
}

/// A reply without an upstream: an rcode, or the minimal answer to ANY.
#[derive(Clone, Debug)]
pub struct Refusal<'a> {
    id: u16,
    flags: u16,
    question: Option<&'a [u8]>,
    edns: Option<Edns>,
    reply_cookie: Option<ReplyCookie>,
    rcode: u16,
    ede: Option<Ede>,
    is_any: bool,
    is_truncated: bool,
}

impl Refusal<'_> {
    /// Sets TC: whoever asked is to come over TCP.
    #[must_use]
    pub fn truncated(mut self) -> Self {
        self.is_truncated = true;
        self
    }

    /// Adds an extended error, told to clients that sent an OPT.
    #[must_use]
    pub fn with_ede(mut self, ede: Ede) -> Self {
        self.ede = Some(ede);
        self
    }

    /// Turns whatever is said into REFUSED.
    #[must_use]
    pub fn into_refused(mut self) -> Self {
        self.rcode = rcode::REFUSED;
        self.is_any = false;
        self
    }

    /// Returns the rcode that is written.
    pub fn rcode(&self) -> u16 {
        // Without an OPT there is no place for the upper bits.
        if self.rcode > flag::RCODE && self.edns.is_none() { rcode::SERVFAIL } else { self.rcode }
    }

    /// Returns the type asked for; `None` if no question could be read.
    pub fn qtype(&self) -> Option<u16> {
        let question = self.question?;
        u16_at(question, question.len().checked_sub(4)?)
    }

    /// Writes the reply into `out`, which is cleared first; at most 512 octets.
    ///
    /// Id, opcode, RD and CD are echoed, QR and RA set; the question follows if one could be read, and our OPT if the
    /// client sent a readable one.
    pub fn write(&self, out: &mut Vec<u8>) {
        let rcode = self.rcode();
        let echoed = self.flags & (flag::OPCODE | flag::RD | flag::CD);
        let truncated = if self.is_truncated { flag::TC } else { 0 };
        let flags = flag::QR | flag::RA | truncated | echoed | (rcode & flag::RCODE);
        let counts = [u16::from(self.question.is_some()), u16::from(self.is_any), 0, u16::from(self.edns.is_some())];
        out.clear();
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        for count in counts {
            out.extend_from_slice(&count.to_be_bytes());
        }
        out.extend_from_slice(self.question.unwrap_or_default());
        if self.is_any {
            write_any_record(out);
        }
        if let Some(edns) = self.edns {
            let cookie_len = self.reply_cookie.map_or(0, |_| ReplyCookie::OPTION_LEN);
            let ede_len = self.ede.as_ref().map_or(0, Ede::option_len);
            opt::write_opt_head(out, rcode, edns.dnssec_ok, ede_len + cookie_len);
            if let Some(ede) = &self.ede {
                ede.write(out, true);
            }
            if let Some(cookie) = self.reply_cookie {
                cookie.write(out);
            }
        }
    }
}

/// Appends the HINFO record that answers ANY, owned by the question's name.
fn write_any_record(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xc0, HEADER_LEN as u8]);
    out.extend_from_slice(&rtype::HINFO.to_be_bytes());
    out.extend_from_slice(&class::IN.to_be_bytes());
    out.extend_from_slice(&ANY_TTL_SECS.to_be_bytes());
    out.extend_from_slice(&(ANY_HINFO.len() as u16).to_be_bytes());
    out.extend_from_slice(ANY_HINFO);
}

/// What one pass over a query finds, as far as it can be read.
struct Scan<'a> {
    /// The question, if there is exactly one and it parses.
    question: Option<&'a [u8]>,
    /// The first OPT whose owner is the root.
    opt: Option<OptFields>,
    /// The first COOKIE option in it.
    cookie: Option<&'a [u8]>,
    /// Everything parses, and nothing is left over.
    is_whole: bool,
    /// There are records in the answer or authority section.
    has_foreign_sections: bool,
}

impl<'a> Scan<'a> {
    fn of(packet: &'a [u8]) -> Self {
        let count = |at| u16_at(packet, at).unwrap_or_default();
        let foreign_count = u32::from(count(6)) + u32::from(count(8));
        let mut scan =
            Self { question: None, opt: None, cookie: None, is_whole: false, has_foreign_sections: foreign_count > 0 };
        scan.is_whole = scan.read(packet, count(4), foreign_count, u32::from(count(10))).is_some();
        scan
    }

    /// Reads all sections; `None` where the packet is not well-formed. What was found until then stays.
    fn read(&mut self, packet: &'a [u8], question_count: u16, foreign_count: u32, count: u32) -> Option<()> {
        let mut at = HEADER_LEN;
        for _ in 0..question_count {
            let end = question_end(packet, at)?;
            if question_count == 1 {
                self.question = packet.get(at..end);
            }
            at = end;
        }
        let record_count = foreign_count + count;
        let mut names = None;
        let mut is_well_formed = question_count == 1;
        for i in 0..record_count {
            let is_last = i + 1 == record_count;
            // The usual owner is the root of an OPT; anything else is read with a name buffer made only then.
            let fixed_at = if packet.get(at) == Some(&0) {
                at + 1
            } else {
                let (source, buf) = names.get_or_insert_with(|| (Source::new(packet), NameBuf::new()));
                source.read_name(at, buf).ok()?
            };
            let rtype = u16_at(packet, fixed_at)?;
            let opt = OptFields::from_class_and_ttl(u16_at(packet, fixed_at + 2)?, u32_at(packet, fixed_at + 4)?);
            let rdata_at = fixed_at + 10;
            let end = rdata_at + usize::from(u16_at(packet, fixed_at + 8)?);
            let rdata = packet.get(rdata_at..end)?;
            is_well_formed &= match rtype {
                rtype::OPT => fixed_at == at + 1 && i >= foreign_count && self.take_opt(opt, rdata),
                rtype::TSIG => is_last,
                _ => true,
            };
            at = end;
        }
        (is_well_formed && at == packet.len()).then_some(())
    }

    /// Takes an OPT; returns whether it is the only one and parses.
    fn take_opt(&mut self, opt: OptFields, rdata: &'a [u8]) -> bool {
        if self.opt.is_some() {
            return false;
        }
        self.opt = Some(opt);
        // Another version may lay its options out another way.
        opt.version != 0 || opt::cookie_in(rdata).map(|cookie| self.cookie = cookie).is_some()
    }
}

/// Returns where the question at `at` ends: an uncompressed name, type and class.
fn question_end(packet: &[u8], at: usize) -> Option<usize> {
    let mut label_at = at;
    loop {
        let len = usize::from(*packet.get(label_at)?);
        if len > LABEL_LEN_MAX {
            return None;
        }
        label_at += 1 + len;
        if label_at - at > WIRE_LEN_MAX {
            return None;
        }
        if len == 0 {
            break;
        }
    }
    let end = label_at + 4;
    (end <= packet.len()).then_some(end)
}

// A refusal holds a header, the longest question, the HINFO record and an OPT with the longest EDE and a cookie: always below the
// 512 octets that any client takes.
const _: () = assert!(
    HEADER_LEN + WIRE_LEN_MAX + 4 + 12 + ANY_HINFO.len() + OPT_LEN + opt::EDE_LEN + 64 + ReplyCookie::OPTION_LEN <= 512
);

#[cfg(test)]
mod tests;
