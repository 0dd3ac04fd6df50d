//! A stored answer becomes one client's reply.
//!
//! [`finish`] is the last step of every reply that came from an upstream or the cache. It copies: the client's id and
//! question as sent, the kept records with their TTLs counted down, our OPT if the client sent one. It allocates
//! nothing once `out` has room.
//!
//! When the reply is larger than the client takes, these go in turn: the tag (option and EDE), the EDEs' texts, the
//! EDEs, the additional section, the authority section. A section goes whole, so no RRset is ever halved (RFC 2181
//! §9). What is left without a section that the client needs is no answer, and is not sent: then TC is set and only
//! question and OPT stay. Needed is the answer section always; the authority section in a negative answer, whose SOA
//! says how long it lives (RFC 2308 §3; of a referral it is all there is), and for a client with DO, whose proofs may
//! stand there (RFC 4035 §3.1.1). The additional section never is.

use super::answer::Kind;
use super::kept::Kept;
use super::opt::{self, OPT_LEN, ReplyCookie, TagOption, UDP_SIZE};
use super::view::{Transport, View};
use super::{HEADER_LEN, MESSAGE_LEN_MAX, flag, put_u16, rcode, u16_at, u32_at};

/// What is given along with an answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given<'a> {
    /// How long ago the answer came, in seconds.
    pub age_secs: u32,
    /// TTLs are told at most this: 1 for an answer not yet programmed, 30 for a stale one.
    pub ttl_cap: Option<u32>,
    /// The tag of the name asked; told only to clients that sent an OPT (RFC 6891 §6.1.1).
    pub tag: Option<&'a TagOption>,
}

/// How much of an answer a reply holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Everything.
    Whole,
    /// All that the client needs; tag, EDEs or whole sections are left out.
    Shortened,
    /// TC is set, there are no records.
    Truncated,
}

/// Returns how many octets a reply to this client may have.
pub fn limit(view: &View<'_>, transport: Transport) -> usize {
    match transport {
        Transport::Udp => view.edns().map_or(512, |edns| usize::from(edns.udp_size.clamp(512, UDP_SIZE))),
        _ => MESSAGE_LEN_MAX,
    }
}

/// Writes the client's reply into `out`, which is cleared first.
///
/// QR and RA are set, RD and CD echoed, AA and Z clear; AD stands if the answer has it and the client set AD or DO
/// (RFC 6840 §5.7, §5.8). A TTL is told as `min(ttl - age, cap)`, never below 0. An rcode above 15 becomes SERVFAIL for
/// a client without EDNS. `answer` must answer the question in `view`; another one comes out as SERVFAIL.
pub fn finish(answer: Kept<'_>, view: &View<'_>, given: &Given<'_>, limit: usize, out: &mut Vec<u8>) -> Fit {
    out.clear();
    let question = view.question_bytes();
    let records_at = HEADER_LEN + question.len();
    if !answers(answer, question) {
        write_bare(view, question, rcode::SERVFAIL, 0, out);
        return Fit::Whole;
    }
    let rcode = if view.edns().is_none() && answer.rcode() > flag::RCODE { rcode::SERVFAIL } else { answer.rcode() };
    let Some((part, fit)) = choose(answer, view, given, limit) else {
        write_bare(view, question, rcode, flag::TC, out);
        return Fit::Truncated;
    };
    let is_ad_wanted = view.authentic_data() || view.dnssec_ok();
    let ad = if is_ad_wanted { u16_at(answer.bytes(), 2).unwrap_or_default() & flag::AD } else { 0 };
    out.extend_from_slice(&view.id().to_be_bytes());
    out.extend_from_slice(&(view.reply_flags() | ad | (rcode & flag::RCODE)).to_be_bytes());
    let end = part.sections.end(answer);
    // Counts come with the copy; those of sections left out are set right below.
    out.extend_from_slice(answer.bytes().get(4..HEADER_LEN).unwrap_or_default());
    out.extend_from_slice(question);
    out.extend_from_slice(answer.bytes().get(records_at..end).unwrap_or_default());
    count_down(answer, given, end, out);
    part.sections.put_counts(answer, view.edns().is_some(), out);
    write_opt(answer, view, given, rcode, part.options, out);
    fit
}

/// Returns whether the answer is to this question: then both take the same octets, but for letter case.
fn answers(answer: Kept<'_>, question: &[u8]) -> bool {
    let kept = answer.bytes().get(HEADER_LEN..HEADER_LEN + question.len()).unwrap_or_default();
    // Most clients send lower case, and comparing whole words is quicker than looking for letters.
    if kept == question {
        return true;
    }
    let name_len = question.len().saturating_sub(4);
    match (kept.split_at_checked(name_len), question.split_at_checked(name_len)) {
        (Some((kept_name, kept_rest)), Some((name, rest))) => kept_rest == rest && kept_name.eq_ignore_ascii_case(name),
        _ => false,
    }
}

/// Which options a reply holds, each step without what the step before had last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Options {
    All,
    Edes,
    EdesWithoutText,
    None,
}

impl Options {
    fn len(self, answer: Kept<'_>, given: &Given<'_>) -> usize {
        let edes_len = || answer.ede_options().len();
        match self {
            Self::All => given.tag.map_or(0, TagOption::len) + edes_len(),
            Self::Edes => edes_len(),
            Self::EdesWithoutText => answer.textless_edes_len(),
            Self::None => 0,
        }
    }
}

/// Which sections a reply holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sections {
    All,
    WithoutAdditional,
    AnswerOnly,
}

impl Sections {
    /// Returns where the answer's octets end.
    fn end(self, answer: Kept<'_>) -> usize {
        match self {
            Self::All => answer.bytes().len(),
            Self::WithoutAdditional => answer.additional_at(),
            Self::AnswerOnly => answer.authority_at(),
        }
    }

    /// Sets the counts of what is left out to 0, and counts the OPT.
    fn put_counts(self, answer: Kept<'_>, has_opt: bool, out: &mut [u8]) {
        if self == Self::AnswerOnly {
            put_u16(out, 8, 0);
        }
        let kept = if self == Self::All { u16_at(answer.bytes(), 10).unwrap_or_default() } else { 0 };
        put_u16(out, 10, kept.saturating_add(u16::from(has_opt)));
    }
}

/// What of an answer goes into a reply.
#[derive(Clone, Copy)]
struct Part {
    sections: Sections,
    options: Options,
}

/// Finds the most that fits, `None` if what the client needs does not.
fn choose(answer: Kept<'_>, view: &View<'_>, given: &Given<'_>, limit: usize) -> Option<(Part, Fit)> {
    const STEPS: [Part; 6] = [
        Part { sections: Sections::All, options: Options::All },
        Part { sections: Sections::All, options: Options::Edes },
        Part { sections: Sections::All, options: Options::EdesWithoutText },
        Part { sections: Sections::All, options: Options::None },
        Part { sections: Sections::WithoutAdditional, options: Options::None },
        Part { sections: Sections::AnswerOnly, options: Options::None },
    ];
    let fits = |part: &Part| {
        let opt_len = match view.edns() {
            Some(_) => OPT_LEN + part.options.len(answer, given) + cookie_len(view),
            None => 0,
        };
        part.sections.end(answer) + opt_len <= limit
    };
    let needs_authority = view.dnssec_ok() || matches!(answer.kind(), Kind::NoData | Kind::NxDomain);
    let allowed = if needs_authority { &STEPS[..5] } else { &STEPS[..] };
    let step = allowed.iter().position(fits)?;
    Some((allowed[step], if step == 0 { Fit::Whole } else { Fit::Shortened }))
}

/// Writes a reply of question and OPT.
fn write_bare(view: &View<'_>, question: &[u8], rcode: u16, flags: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&view.id().to_be_bytes());
    out.extend_from_slice(&(view.reply_flags() | flags | (rcode & flag::RCODE)).to_be_bytes());
    out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(view.edns().is_some())]);
    out.extend_from_slice(question);
    if let Some(edns) = view.edns() {
        opt::write_opt_head(out, rcode, edns.dnssec_ok, cookie_len(view));
        write_cookie(view, out);
    }
}

/// Writes the TTLs that are left.
fn count_down(answer: Kept<'_>, given: &Given<'_>, end: usize, out: &mut [u8]) {
    if given.age_secs == 0 && given.ttl_cap.is_none() {
        return;
    }
    let cap = given.ttl_cap.unwrap_or(u32::MAX);
    for ttl_at in answer.ttl_offsets().take_while(|at| *at < end) {
        let kept = u32_at(answer.bytes(), ttl_at).unwrap_or_default();
        super::put_u32(out, ttl_at, kept.saturating_sub(given.age_secs).min(cap));
    }
}

/// Appends our OPT, if the client sent one: the tag before the EDEs, so that its EDE is read first.
fn write_opt(answer: Kept<'_>, view: &View<'_>, given: &Given<'_>, rcode: u16, options: Options, out: &mut Vec<u8>) {
    let Some(edns) = view.edns() else { return };
    match (options, given.tag) {
        (Options::All, Some(tag)) => {
            tag.write_opt(out, rcode, edns.dnssec_ok, answer.ede_options().len() + cookie_len(view));
        }
        _ => opt::write_opt_head(out, rcode, edns.dnssec_ok, options.len(answer, given) + cookie_len(view)),
    }
    match options {
        Options::None => {}
        Options::All | Options::Edes => out.extend_from_slice(answer.ede_options()),
        Options::EdesWithoutText => answer.edes().iter().for_each(|ede| ede.write(out, false)),
    }
    write_cookie(view, out);
}

/// Returns how many octets the cookie takes that the reply carries.
fn cookie_len(view: &View<'_>) -> usize {
    view.reply_cookie().map_or(0, |_| ReplyCookie::OPTION_LEN)
}

fn write_cookie(view: &View<'_>, out: &mut Vec<u8>) {
    if let Some(cookie) = view.reply_cookie() {
        cookie.write(out);
    }
}

#[cfg(test)]
mod tests;
