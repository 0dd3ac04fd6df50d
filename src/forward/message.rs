//! Queries and replies as octets: what we send, and whether what comes back belongs to it.
//!
//! A reply counts only if it repeats the question (RFC 5452 §9.1): QR, name without letter case, type and class; the
//! id is compared by whoever holds it. Nothing else of a reply is read here.

use smallvec::SmallVec;

use super::letters::Letters;
use crate::wire::{HEADER_LEN, Question, rcode};

/// The UDP size we advertise: what passes every path without fragments (RFC 9715).
pub(super) const UDP_SIZE: u16 = 1232;

/// Octets of the longest query: header, name, type, class, OPT without options.
const QUERY_LEN_MAX: usize = HEADER_LEN + 255 + 4 + 11;

/// Encrypted queries are as long as a multiple of this (RFC 8467 §4.1).
const PADDED_TO: usize = 128;

/// How a question is put to an upstream, beside the question itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// Whether it carries an OPT record (RFC 6891).
    pub(super) edns: bool,
    /// Whether it sets AD, which asks for AD in the reply (RFC 6840 §5.7).
    pub(super) authentic_data: bool,
    /// Whether its OPT is padded, so that its length tells nothing of the name (RFC 7830); on encrypted ways only.
    pub(super) padded: bool,
}

/// A query on the stack.
pub(super) type Query = SmallVec<[u8; QUERY_LEN_MAX]>;

/// Writes the query: RD, CD as asked, one OPT of our own without options but padding. The name goes over as it is, in `letters`.
pub(super) fn query(id: u16, question: &Question, letters: Letters, manner: Manner) -> Query {
    let bits = u8::from(manner.authentic_data) << 5 | u8::from(question.checking_disabled) << 4;
    let [id_high, id_low] = id.to_be_bytes();
    let head = [id_high, id_low, 0x01, bits, 0, 1, 0, 0, 0, 0, 0, u8::from(manner.edns)];
    let ([type_high, type_low], [class_high, class_low]) =
        (question.qtype.to_be_bytes(), question.qclass.to_be_bytes());
    let [size_high, size_low] = UDP_SIZE.to_be_bytes();
    let dnssec_ok = u8::from(question.dnssec_ok) << 7;
    // Behind type and class: root name, type OPT, our size, extended rcode and version 0, DO; options, and their length.
    let opt = [0, 0, 41, size_high, size_low, 0, 0, dnssec_ok, 0];
    let mut octets = Query::from_slice(&head);
    octets.extend_from_slice(question.name.as_wire());
    letters.apply(&mut octets[HEADER_LEN..]);
    octets.extend_from_slice(&[type_high, type_low, class_high, class_low]);
    if manner.edns {
        octets.extend_from_slice(&opt);
        if manner.padded { pad(&mut octets) } else { octets.extend_from_slice(&[0, 0]) }
    }
    octets
}

/// Ends a query that ends before the length of its options: with that length, and zeros up to a whole block.
fn pad(octets: &mut Query) {
    const PADDING: u8 = 12;
    // The length of the options, and code and length of the one.
    let bare_len = octets.len() + 2 + 4;
    let padding_len = bare_len.next_multiple_of(PADDED_TO) - bare_len;
    // Below a block.
    octets.extend_from_slice(&[0, padding_len as u8 + 4, 0, PADDING, 0, padding_len as u8]);
    octets.resize(bare_len + padding_len, 0);
}

/// Returns whether `reply` is a response to `question`; the id is the caller's.
///
/// A server that knows no EDNS may answer FORMERR or NOTIMP with a bare header (RFC 6891 §7); that is let through, as
/// it can do no more than make us ask once more without EDNS.
pub(super) fn is_reply(reply: &[u8], question: &Question) -> bool {
    const QR: u8 = 0x80;
    const OPCODE: u8 = 0x78;
    let Some(header) = reply.first_chunk::<HEADER_LEN>() else {
        return false;
    };
    if header[2] & QR == 0 || header[2] & OPCODE != 0 {
        return false;
    }
    match u16::from_be_bytes([header[4], header[5]]) {
        0 => is_bare_refusal(reply),
        1 => repeats(&reply[HEADER_LEN..], question),
        _ => false,
    }
}

/// Returns whether `reply`, which is one to `question`, repeats its name in the letters in which it was sent.
pub(super) fn is_in_letters(reply: &[u8], question: &Question, letters: Letters) -> bool {
    let name = question.name.as_wire();
    // A bare refusal repeats no name.
    match reply.get(HEADER_LEN..HEADER_LEN + name.len()) {
        Some(repeated) => letters.are_in(repeated, name),
        None => true,
    }
}

/// Returns whether `octets` begin with `question`. Length octets are below `A`, so folding compares them exactly. Most
/// upstreams repeat the name as it was sent, which is compared faster.
fn repeats(octets: &[u8], question: &Question) -> bool {
    let name = question.name.as_wire();
    let [type_high, type_low] = question.qtype.to_be_bytes();
    let [class_high, class_low] = question.qclass.to_be_bytes();
    octets.len() >= name.len() + 4
        && (octets[..name.len()] == *name || octets[..name.len()].eq_ignore_ascii_case(name))
        && octets[name.len()..name.len() + 4] == [type_high, type_low, class_high, class_low]
}

/// Returns whether `reply` is FORMERR or NOTIMP without any section.
pub(super) fn is_bare_refusal(reply: &[u8]) -> bool {
    let Some(header) = reply.first_chunk::<HEADER_LEN>() else {
        return false;
    };
    let code = u16::from(header[3] & 0x0f);
    header[4..] == [0; 8] && (code == rcode::FORMERR || code == rcode::NOTIMP)
}

/// Returns whether TC is set: the reply was cut to fit.
pub(super) fn is_truncated(reply: &[u8]) -> bool {
    reply.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;

    const OCTETS: &[u8] = b"\x01a\x07example\x00\x00\x01\x00\x01";

    fn question() -> Question {
        let name = Name::parse("a.example").unwrap();
        Question { name, qtype: 1, qclass: 1, dnssec_ok: false, checking_disabled: false }
    }

    fn reply() -> Vec<u8> {
        [
            b"\x12\x34\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00",
            OCTETS,
            b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04",
        ]
        .concat()
        .into_iter()
        .chain([192, 0, 2, 1])
        .collect()
    }

    #[test]
    fn query_is_a_header_the_question_and_an_opt() {
        let asked = Question { dnssec_ok: true, checking_disabled: true, ..question() };
        let plain = query(0x1234, &asked, Letters::ANY, Manner { edns: false, authentic_data: false, padded: false });
        assert_eq!(&plain[..HEADER_LEN], b"\x12\x34\x01\x10\x00\x01\x00\x00\x00\x00\x00\x00");
        assert_eq!(&plain[HEADER_LEN..], OCTETS);
        let rich = query(0, &asked, Letters::ANY, Manner { edns: true, authentic_data: true, padded: false });
        assert_eq!(&rich[..HEADER_LEN], b"\x00\x00\x01\x30\x00\x01\x00\x00\x00\x00\x00\x01");
        assert_eq!(&rich[HEADER_LEN + OCTETS.len()..], b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00");
        assert!(!rich.spilled());
    }

    #[test]
    fn padded_query_fills_whole_blocks_whatever_the_name() {
        for len in 1..=245 {
            let labels: Vec<String> =
                (0..len).step_by(50).map(|at| "a".repeat(50.min(len - at))).filter(|label| !label.is_empty()).collect();
            let asked = Question { name: Name::parse(&labels.join(".")).unwrap(), ..question() };
            let bare = query(7, &asked, Letters::ANY, Manner { edns: true, authentic_data: false, padded: false });
            let padded = query(7, &asked, Letters::ANY, Manner { edns: true, authentic_data: false, padded: true });
            assert_eq!(padded.len() % 128, 0, "{len}");
            assert!(padded.len() >= bare.len() + 4 && padded.len() < bare.len() + 4 + 128);
            assert_eq!(padded[..bare.len() - 2], bare[..bare.len() - 2]);
            let options = &padded[bare.len() - 2..];
            let padding_len = options.len() - 6;
            assert_eq!(options[..6], [0, padding_len as u8 + 4, 0, 12, 0, padding_len as u8]);
            assert!(options[6..].iter().all(|&octet| octet == 0));
            let plain = query(7, &asked, Letters::ANY, Manner { edns: false, authentic_data: false, padded: true });
            assert_eq!(plain.len(), bare.len() - 11, "there is no room for it without OPT");
        }
    }

    #[test]
    fn longest_query_stays_on_the_stack() {
        let labels = format!("{0}.{0}.{0}.{1}.", "a".repeat(63), "b".repeat(61));
        let asked = Question { name: Name::parse(&labels).unwrap(), ..question() };
        assert_eq!(asked.name.as_wire().len(), 255);
        assert!(!query(0, &asked, Letters::ANY, Manner { edns: true, authentic_data: true, padded: false }).spilled());
    }

    #[test]
    fn reply_must_repeat_the_question_but_for_letter_case() {
        let sound = reply();
        assert!(is_reply(&sound, &question()));
        let spoilt = |at: usize, octet: u8| {
            let mut octets = sound.clone();
            octets[at] = octet;
            is_reply(&octets, &question())
        };
        assert!(spoilt(13, b'A'));
        assert!(!spoilt(13, b'b'), "name");
        assert!(!spoilt(2, 0x01), "QR");
        assert!(!spoilt(2, 0x89), "opcode");
        assert!(!spoilt(5, 0) && !spoilt(5, 2), "QDCOUNT");
        assert!(!spoilt(24, 28), "type");
        assert!(!spoilt(26, 3), "class");
        for len in 0..27 {
            assert!(!is_reply(&sound[..len], &question()), "{len} octets");
        }
    }

    #[test]
    fn only_formerr_and_notimp_may_come_without_a_question() {
        for code in 0..16u8 {
            let mut header = [0u8; HEADER_LEN];
            header[2] = 0x80;
            header[3] = code;
            assert_eq!(is_reply(&header, &question()), code == 1 || code == 4, "rcode {code}");
            header[11] = 1;
            assert!(!is_reply(&header, &question()));
        }
    }
}
