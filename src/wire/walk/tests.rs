//! What becomes of an upstream's reply.

use std::net::IpAddr;

use hickory_proto::op::{Message as HickoryMessage, ResponseCode};
use hickory_proto::rr::RecordType;

use super::*;
use crate::wire::testing::{
    ADDITIONAL, ANSWER, AUTHORITY, Draft, P, PLAIN, a, aaaa, asks, name, parse, rrsig, soa, svcb, walked, wire,
};
use crate::wire::{CHAIN_LEN_MAX, Ede, Kind, Sighted, class};

const QNAME: &str = "www.example.com";

fn reply() -> Draft {
    Draft::packed_reply(QNAME, rtype::A)
}

fn asked() -> Question {
    asks(QNAME, rtype::A)
}

fn with_do(mut question: Question) -> Question {
    question.dnssec_ok = true;
    question
}

fn error(draft: &Draft) -> WalkError {
    walk(&draft.build(), &asked(), &PLAIN).map(|walked| walked.answer.bytes().to_vec()).unwrap_err()
}

fn kept(draft: &Draft) -> HickoryMessage {
    parse(walked(draft, &asked()).answer.bytes())
}

fn ttls(message: &HickoryMessage) -> Vec<u32> {
    message.all_sections().map(|record| record.ttl).collect()
}

fn types(message: &HickoryMessage) -> Vec<u16> {
    message.all_sections().map(|record| record.record_type().into()).collect()
}

fn sighted(addr: &str, ttl_secs: u32, is_hint: bool) -> Sighted {
    Sighted { addr: addr.parse().unwrap(), ttl_secs, is_hint }
}

/// The usual answer behind a content network: three CNAMEs, two addresses, an OPT.
fn typical() -> Draft {
    reply()
        .cname(QNAME, 300, "www.example.com.cdn.example.net")
        .cname("www.example.com.cdn.example.net", 60, "edge7.cdn.example.net")
        .cname("edge7.cdn.example.net", 30, "pop.cdn.example.org")
        .a("pop.cdn.example.org", 20, "192.0.2.1")
        .a("pop.cdn.example.org", 20, "192.0.2.2")
        .opt(1232, false, &[])
}

// --- what is no reply to the question -------------------------------------------------------------------------

#[test]
fn what_is_no_reply_is_told_apart() {
    assert_eq!(walk(&[0; 11], &asked(), &PLAIN).unwrap_err(), WalkError::TooShort(11));
    assert_eq!(walk(&vec![0; 65_536], &asked(), &PLAIN).unwrap_err(), WalkError::TooLong(65_536));
    assert_eq!(error(&Draft::query(QNAME, rtype::A)), WalkError::NotReply);
    assert_eq!(error(&reply().flags(0x2000, 0)), WalkError::Opcode(4));
    assert!(WalkError::NotReply.is_stray() && !WalkError::Loop.is_stray());
}

#[test]
fn question_must_be_the_one_asked() {
    for other in [
        Draft::reply("www.example.org", rtype::A),
        Draft::reply(QNAME, rtype::AAAA),
        Draft::empty(0x8180).question(QNAME, rtype::A, class::CH),
        Draft::empty(0x8180).count(0),
        Draft::empty(0x8180).raw(&wire(QNAME)).raw(&[0, 1]).count(0),
    ] {
        assert_eq!(error(&other), WalkError::WrongQuestion);
        assert!(error(&other).is_stray());
    }
    let two = reply().question(QNAME, rtype::A, class::IN);
    assert_eq!(error(&two), WalkError::QuestionCount(2));
    // Letters may differ: the upstream echoes those that we randomized.
    assert!(walk(&Draft::reply("wWw.eXAMPLE.com", rtype::A).build(), &asked(), &PLAIN).is_ok());
}

#[test]
fn missing_question_is_excused_in_a_failure_only() {
    for rcode in [1, 2, 4, 5] {
        let answer = walked(&Draft::empty(0x8180 | rcode), &asked()).answer;
        assert_eq!((answer.rcode(), answer.kind(), answer.lifetime_secs()), (rcode, Kind::Failure, None));
        assert_eq!(parse(answer.bytes()).queries[0].name().to_string(), "www.example.com.");
    }
    assert_eq!(error(&Draft::empty(0x8180)), WalkError::QuestionCount(0));
    assert_eq!(error(&Draft::empty(0x8183)), WalkError::QuestionCount(0));
    let badvers = Draft::empty(0x8180).opt_with(&[0], 1232, 1 << 24, &[]);
    assert_eq!(walked(&badvers, &asked()).answer.rcode(), rcode::BADVERS);
}

// --- malformed ------------------------------------------------------------------------------------------------

#[test]
fn every_cut_of_a_reply_is_refused() {
    let whole = typical().soa(AUTHORITY, "example.com", 5, 5).build();
    // Counts say the SOA is in the authority section, octets that it comes last: it parses all the same.
    assert!(walk(&whole, &asked(), &PLAIN).is_err());
    let whole = typical().build();
    for len in 0..whole.len() {
        assert!(walk(&whole[..len], &asked(), &PLAIN).is_err(), "{len}");
    }
    assert_eq!(error(&typical().raw(&[0])), WalkError::Trailing(1));
}

#[test]
fn addresses_have_their_length() {
    for len in [0, 3, 5, 16] {
        let draft = reply().record(ANSWER, QNAME, rtype::A, 1, &[P::Octets(vec![0; len])]);
        assert_eq!(error(&draft), WalkError::Rdata { record_type: rtype::A });
    }
    for section in [ANSWER, AUTHORITY, ADDITIONAL] {
        let draft = reply().record(section, "other.example", rtype::AAAA, 1, &[P::Octets(vec![0; 15])]);
        assert_eq!(error(&draft), WalkError::Rdata { record_type: rtype::AAAA });
    }
}

#[test]
fn names_fill_their_rdata_exactly() {
    let layouts: [(u16, usize, usize, usize); 11] = [
        (rtype::NS, 0, 1, 0),
        (rtype::CNAME, 0, 1, 0),
        (rtype::PTR, 0, 1, 0),
        (rtype::DNAME, 0, 1, 0),
        (rtype::MX, 2, 1, 0),
        (rtype::SRV, 6, 1, 0),
        (rtype::SOA, 0, 2, 20),
        (rtype::MINFO, 0, 2, 0),
        (rtype::PX, 2, 2, 0),
        (rtype::RP, 0, 2, 0),
        (rtype::AFSDB, 2, 1, 0),
    ];
    for (rtype, before, names, after) in layouts {
        let rdata = [vec![0; before], wire("a.example").repeat(names), vec![0; after]].concat();
        let draft = |rdata: &[u8]| reply().record_of(AUTHORITY, b"\x01x\0", rtype, 1, rdata);
        assert!(walk(&draft(&rdata).build(), &asked(), &PLAIN).is_ok(), "{rtype}");
        assert!(walk(&draft(&[&rdata[..], &[0]].concat()).build(), &asked(), &PLAIN).is_err(), "{rtype} longer");
        for len in 0..rdata.len() {
            assert!(walk(&draft(&rdata[..len]).build(), &asked(), &PLAIN).is_err(), "{rtype} cut to {len}");
        }
    }
    // A name that runs on into the next record.
    let runs_on = reply().record_of(ANSWER, b"\xc0\x0c", rtype::CNAME, 1, b"\x03ab").a("x", 1, "192.0.2.1");
    assert!(matches!(error(&runs_on), WalkError::RdataName { record_type: rtype::CNAME, .. }));
}

#[test]
fn pointers_go_backwards_and_not_into_the_header() {
    let end = reply().len() as u8;
    for owner in [[0xc0, end], [0xc0, end + 1], [0xff, 0xff], [0xc0, 0], [0xc0, 11]] {
        let draft = reply().record_of(ANSWER, &owner, rtype::TXT, 1, b"\x01x");
        assert!(matches!(error(&draft), WalkError::Owner(NameFault::Pointer(_))), "{owner:?}");
    }
    let own_start = [&b"\x01a"[..], &[0xc0, end]].concat();
    assert!(matches!(
        error(&reply().record_of(ANSWER, &own_start, rtype::TXT, 1, b"")),
        WalkError::Owner(NameFault::Pointer(_))
    ));
    let reserved = reply().record_of(ANSWER, b"\x41x\0", rtype::TXT, 1, b"");
    assert_eq!(error(&reserved), WalkError::Owner(NameFault::LabelType(0x41)));
}

#[test]
fn names_longer_than_255_octets_are_refused() {
    // Two names of 130 octets each: one points at the other.
    let half = [&[63u8][..], &[b'x'; 63]].concat().repeat(2);
    let at = reply().len() as u8;
    let draft = reply().record_of(AUTHORITY, &[&half[..], &[0]].concat(), rtype::TXT, 1, b"\0").record_of(
        AUTHORITY,
        &[&half[..64], &[0xc0, at]].concat(),
        rtype::TXT,
        1,
        b"\0",
    );
    assert!(walk(&draft.build(), &asked(), &PLAIN).is_ok());
    let draft = draft.record_of(AUTHORITY, &[&half[..], &[0xc0, at]].concat(), rtype::TXT, 1, b"\0");
    assert_eq!(error(&draft), WalkError::Owner(NameFault::TooLong));
}

#[test]
fn pointer_chains_are_bounded() {
    // Each owner is a bare pointer at the one before.
    let mut draft = reply();
    let mut target = 12u16;
    for _ in 0..400 {
        let here = draft.len() as u16;
        draft = draft.record_of(ADDITIONAL, &(0xc000 | target).to_be_bytes(), 65_280, 1, b"");
        target = here;
    }
    assert_eq!(error(&draft), WalkError::Owner(NameFault::TooManyPointers));
}

#[test]
fn sixty_thousand_octets_of_pointers_are_bounded_too() {
    // A staircase of names with 120 labels, each label a name of its own, then thousands that climb it whole.
    let mut draft = reply();
    let mut target = 12u16;
    for _ in 0..100 {
        let here = draft.len() as u16;
        draft =
            draft.record_of(ADDITIONAL, &[&b"\x01a"[..], &(0xc000 | target).to_be_bytes()].concat(), 65_280, 1, b"");
        target = here;
    }
    while draft.len() < 60_000 {
        draft = draft.record_of(ADDITIONAL, &(0xc000 | target).to_be_bytes(), 65_280, 1, b"");
    }
    assert_eq!(error(&draft), WalkError::Owner(NameFault::TooManyPointers));
}

#[test]
fn svcb_is_checked_to_the_last_parameter() {
    let https = |rdata: &[P]| Draft::packed_reply(QNAME, rtype::A).record(ANSWER, QNAME, rtype::HTTPS, 1, rdata);
    let good = https(&svcb(1, "t.example", &[(1, b"\x02h2"), (4, &[1; 8]), (6, &[2; 32])]));
    assert!(walk(&good.build(), &asked(), &PLAIN).is_ok());
    // Parameters of AliasMode are ignored, but must be there (RFC 9460 §2.4.2).
    assert!(walk(&https(&svcb(0, "t.example", &[(4, &[1; 5])])).build(), &asked(), &PLAIN).is_ok());
    let bad = [
        svcb(1, "", &[(4, &[1; 4]), (1, b"\x02h2")]),
        svcb(1, "", &[(4, &[1; 4]), (4, &[1; 4])]),
        svcb(1, "", &[(4, &[1; 5])]),
        svcb(1, "", &[(4, &[])]),
        svcb(1, "", &[(6, &[1; 15])]),
        [P::Octets(vec![0]), P::Octets(vec![]), P::Octets(vec![])],
        [P::Octets(vec![0, 1]), P::Octets(vec![0xc0, 12]), P::Octets(vec![])],
        [P::Octets(vec![0, 1]), P::Octets(vec![0]), P::Octets(vec![0, 1, 0])],
        [P::Octets(vec![0, 1]), P::Octets(vec![0]), P::Octets(vec![0, 1, 0, 2, 1])],
    ];
    for rdata in bad {
        assert_eq!(error(&https(&rdata)), WalkError::Rdata { record_type: rtype::HTTPS }, "{rdata:?}");
    }
}

#[test]
fn opt_is_single_in_place_and_whole() {
    assert_eq!(error(&reply().opt(1232, false, &[]).opt(1232, false, &[])), WalkError::TwoOpts);
    assert_eq!(error(&reply().record(ANSWER, "", rtype::OPT, 0, &[])), WalkError::OptPlace);
    assert_eq!(error(&reply().opt_with(b"\x01a\0", 1232, 0, &[])), WalkError::OptPlace);
    assert_eq!(error(&reply().opt_with(&[0], 1232, 0, &[0, 15, 0, 9])), WalkError::OptOptions);
}

// --- what is kept ---------------------------------------------------------------------------------------------

#[test]
fn typical_answer_is_kept_octet_for_octet() {
    let draft = typical();
    let Walked { answer, facts, truncated } = walked(&draft, &asked());
    let sent = draft.build();
    let opt_at = sent.len() - 11;
    assert_eq!(answer.bytes()[12..], sent[12..opt_at]);
    assert_eq!((answer.kind(), answer.rcode(), answer.lifetime_secs()), (Kind::Positive, 0, Some(20)));
    assert!(!truncated && answer.edes().is_empty());
    let chain = ["www.example.com.cdn.example.net", "edge7.cdn.example.net", "pop.cdn.example.org"];
    assert_eq!(facts.chain, chain.map(name));
    assert_eq!(facts.addresses, [sighted("192.0.2.1", 20, false), sighted("192.0.2.2", 20, false)]);
    assert!(facts.all_addresses && facts.targets.is_empty());
    assert_eq!((answer.heap_bytes(), size_of::<Answer>()), (sent.len() - 11 + 2 * 5, 32));
}

#[test]
fn header_is_ours() {
    // AA, Z, CD set by the upstream; TC is looked at apart.
    let answer = walked(&reply().flags(0x0470, 0).a(QNAME, 1, "192.0.2.1"), &asked()).answer;
    assert_eq!(answer.bytes()[..4], [0, 0, 0x80, 0xa0]);
    let rules = Rules { trust_ad: false, ..PLAIN };
    let answer = walk(&reply().flags(0x0470, 0x0080).build(), &asked(), &rules).unwrap().answer;
    assert_eq!(answer.bytes()[..4], [0, 0, 0x80, 0x80]);
}

#[test]
fn ttls_are_clamped_and_a_set_top_bit_is_zero() {
    let rules = Rules { min_ttl: 10, max_ttl: 100, ..PLAIN };
    for (sent, told) in [(0, 10), (9, 10), (50, 50), (101, 100), (0x7fff_ffff, 100), (0x8000_0000, 10), (u32::MAX, 10)]
    {
        let walked = walk(&reply().a(QNAME, sent, "192.0.2.1").build(), &asked(), &rules).unwrap();
        assert_eq!(ttls(&parse(walked.answer.bytes())), [told], "{sent}");
        assert_eq!(walked.facts.addresses, [sighted("192.0.2.1", told, false)]);
        assert_eq!(walked.answer.lifetime_secs(), Some(told));
    }
    let zero = walked(&reply().a(QNAME, u32::MAX, "192.0.2.1"), &asked());
    assert_eq!((zero.answer.kind(), zero.answer.lifetime_secs()), (Kind::Positive, None));
    assert_eq!(zero.facts.addresses, [sighted("192.0.2.1", 0, false)]);
}

#[test]
fn records_of_one_rrset_get_its_lowest_ttl() {
    let draft = reply()
        .a(QNAME, 300, "192.0.2.1")
        .a("other.example", 7, "192.0.2.9")
        .a("WWW.example.COM", 40, "192.0.2.2")
        .record(ANSWER, QNAME, rtype::AAAA, 200, &[aaaa("2001:db8::1")])
        .record_in(class::CH, ANSWER, QNAME, rtype::A, 5, &[a("192.0.2.5")])
        .record(ADDITIONAL, QNAME, rtype::A, 60, &[a("192.0.2.3")]);
    assert_eq!(ttls(&kept(&draft)), [40, 7, 40, 200, 5, 60]);
    let facts = walked(&draft, &asked()).facts;
    let expected =
        [sighted("192.0.2.1", 40, false), sighted("192.0.2.2", 40, false), sighted("2001:db8::1", 200, false)];
    assert_eq!(facts.addresses, expected);
    // RRSIGs of different RRsets are no RRset (RFC 4034 §3).
    let signed = reply()
        .a(QNAME, 300, "192.0.2.1")
        .record(ANSWER, QNAME, rtype::RRSIG, 300, &rrsig(rtype::A, "example.com"))
        .record(ANSWER, QNAME, rtype::RRSIG, 20, &rrsig(rtype::AAAA, "example.com"));
    let walked = walk(&signed.build(), &with_do(asked()), &PLAIN).unwrap();
    assert_eq!(ttls(&parse(walked.answer.bytes())), [300, 300, 20]);
}

#[test]
fn negative_answers_live_as_their_soa_says() {
    // TTL and MINIMUM sent, TTL told, lifetime.
    let cases = [
        (300, 60, 60, Some(60)),
        (60, 300, 60, Some(60)),
        (9000, 9000, 3600, Some(3600)),
        (300, 0, 0, None),
        (0, 300, 0, None),
        (u32::MAX, 300, 0, None),
    ];
    for (rcode, kind) in [(0, Kind::NoData), (3, Kind::NxDomain)] {
        for (ttl, minimum, told, lifetime) in cases {
            let draft = reply().flags(rcode, 0).soa(AUTHORITY, "example.com", ttl, minimum);
            // A raised minimum must not lengthen what the zone says.
            let walked = walk(&draft.build(), &asked(), &Rules { min_ttl: 120, ..PLAIN }).unwrap();
            let answer = walked.answer;
            assert_eq!((answer.kind(), answer.lifetime_secs()), (kind, lifetime), "{ttl} {minimum}");
            assert_eq!(ttls(&parse(answer.bytes())), [told]);
        }
        let bare = walked(&reply().flags(rcode, 0), &asked()).answer;
        assert_eq!((bare.kind(), bare.lifetime_secs()), (kind, None));
        let referral =
            reply().flags(rcode, 0).record(AUTHORITY, "example.com", rtype::NS, 9, &[P::Name("n.example".into())]);
        assert_eq!(walked(&referral, &asked()).answer.lifetime_secs(), None);
    }
}

#[test]
fn negative_end_of_a_chain_is_negative_and_bounded_by_the_chain() {
    for (rcode, kind) in [(0, Kind::NoData), (3, Kind::NxDomain)] {
        let draft = reply().flags(rcode, 0).cname(QNAME, 25, "t.example.net").soa(AUTHORITY, "example.net", 300, 300);
        let walked = walked(&draft, &asked());
        assert_eq!((walked.answer.kind(), walked.answer.lifetime_secs()), (kind, Some(25)));
        assert_eq!(ttls(&parse(walked.answer.bytes())), [25, 300]);
        assert_eq!(walked.facts.chain.len(), 1);
    }
    // Asked for the CNAME itself, it is the answer; records of the type under other names are not.
    let cname = Draft::reply(QNAME, rtype::CNAME).cname(QNAME, 25, "t.example.net");
    assert_eq!(walked(&cname, &asks(QNAME, rtype::CNAME)).answer.kind(), Kind::Positive);
    assert_eq!(walked(&reply().a("x.example", 25, "192.0.2.1"), &asked()).answer.kind(), Kind::NoData);
    // A positive answer's SOA keeps its TTL.
    let positive = reply().a(QNAME, 900, "192.0.2.1").soa(AUTHORITY, "example.com", 800, 5);
    assert_eq!(ttls(&kept(&positive)), [900, 800]);
}

#[test]
fn rcodes_pass_and_the_upper_bits_are_merged() {
    for rcode in [1u16, 2, 4, 5, 6, 9, 11, 15] {
        let answer = walked(&reply().flags(rcode, 0), &asked()).answer;
        assert_eq!((answer.rcode(), answer.kind(), answer.lifetime_secs()), (rcode, Kind::Failure, None));
        assert_eq!(answer.bytes()[3] & 15, rcode as u8);
    }
    let extended = reply().flags(7, 0).opt_with(&[0], 1232, 1 << 24, &[]);
    assert_eq!(walked(&extended, &asked()).answer.rcode(), 23);
}

#[test]
fn edes_are_kept_and_every_other_option_dropped() {
    let long = format!("\0\x16{}é", "x".repeat(63));
    let options: [(u16, &[u8]); 9] = [
        (65_313, b"app=zoom;match=zoom.us"),
        (10, b"12345678"),
        (15, b"\0\x12blocked\0"),
        (15, b"\0"),
        (8, &[0, 1, 24, 0, 1, 2, 3]),
        (15, long.as_bytes()),
        (15, b"\0\0bypass zoom (zoom.us)"),
        (15, b"\0\x17one too many"),
        (3, b"ns1"),
    ];
    let answer = walked(&reply().opt(1232, false, &options), &asked()).answer;
    assert_eq!(answer.edes(), [Ede::new(18, "blocked"), Ede::new(22, &"x".repeat(63)), Ede::new(0, "")]);
    assert_eq!(parse(answer.bytes()).edns, None);
    let not_utf8 = walked(&reply().opt(1232, false, &[(15, b"\0\x16\xff\xfe")]), &asked()).answer;
    assert_eq!(not_utf8.edes(), [Ede::new(22, "")]);
}

#[test]
fn a_synthesized_answer_has_three_edes_at_most() {
    let long = Ede { code: 1, text: "y".repeat(80).into() };
    let edes = [long, Ede::new(3, ""), Ede::new(22, "a"), Ede::new(23, "b")];
    let answer = crate::wire::synthesize(&asked(), rcode::SERVFAIL, &edes);
    assert_eq!((answer.kind(), answer.rcode(), answer.lifetime_secs()), (Kind::Failure, 2, None));
    assert_eq!(answer.edes(), [Ede::new(1, &"y".repeat(64)), Ede::new(3, ""), Ede::new(22, "a")]);
    let message = parse(answer.bytes());
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert_eq!((message.queries.len(), message.answers.len()), (1, 0));
}

#[test]
fn truncated_replies_say_so_and_are_not_cached() {
    let whole = walked(&reply().flags(0x0200, 0).a(QNAME, 60, "192.0.2.1"), &asked());
    assert!(whole.truncated);
    assert_eq!((whole.answer.lifetime_secs(), whole.answer.bytes()[2]), (None, 0x80));
    assert_eq!(whole.facts.addresses.len(), 1);
    let mut cut = reply().flags(0x0200, 0).a(QNAME, 60, "192.0.2.1").build();
    cut.truncate(cut.len() - 2);
    let cut = walk(&cut, &asked(), &PLAIN).unwrap();
    assert!(cut.truncated && cut.facts.addresses.is_empty());
    assert_eq!((cut.answer.rcode(), cut.answer.lifetime_secs()), (rcode::SERVFAIL, None));
}

#[test]
fn unknown_types_pass_octet_for_octet() {
    let draft = reply()
        .record(ANSWER, QNAME, 65_280, 60, &[P::Octets(b"\xc0\x0c\0\xffanything".to_vec())])
        .record(AUTHORITY, "", 1234, 60, &[])
        .record(ADDITIONAL, QNAME, 99, 60, &[P::Octets(vec![0xc0; 30])]);
    let sent = draft.build();
    assert_eq!(walked(&draft, &asked()).answer.bytes()[12..], sent[12..]);
}

// --- DNSSEC records without DO --------------------------------------------------------------------------------

fn signed(draft: Draft, section: usize) -> Draft {
    draft
        .record(section, QNAME, rtype::RRSIG, 60, &rrsig(rtype::A, "example.com"))
        .record(section, QNAME, rtype::NSEC, 60, &[P::Plain("z.example.com".into()), P::Octets(vec![0, 1, 0x40])])
        .record(section, QNAME, rtype::NSEC3, 60, &[P::Octets(vec![1, 0, 0, 1, 0, 1, 9, 0, 1, 0x40])])
        .record(section, QNAME, rtype::DS, 60, &[P::Octets(vec![1; 36])])
}

#[test]
fn dnssec_records_pass_only_with_do_or_when_asked_by_type() {
    let build = |qtype| {
        let draft = signed(Draft::packed_reply(QNAME, qtype).a(QNAME, 60, "192.0.2.1"), ANSWER);
        signed(draft, AUTHORITY).record(ADDITIONAL, "ns.example.com", rtype::A, 60, &[a("192.0.2.53")]).build()
    };
    let types_for = |question: Question| {
        let walked = walk(&build(question.qtype), &question, &PLAIN).unwrap();
        types(&parse(walked.answer.bytes()))
    };
    let all = [1, 46, 47, 50, 43];
    assert_eq!(types_for(asked()), [1, 1]);
    assert_eq!(types_for(with_do(asked())), [&all[..], &all[1..], &[1]].concat());
    assert_eq!(types_for(asks(QNAME, rtype::RRSIG)), [1, 46, 46, 1]);
    assert_eq!(types_for(asks(QNAME, rtype::DS)), [1, 43, 43, 1]);
    // ANY asks for all that the name has, not for the proofs in other sections.
    assert_eq!(types_for(asks(QNAME, rtype::ANY)), [&all[..], &[1]].concat());
}

// --- written anew ---------------------------------------------------------------------------------------------

#[test]
fn names_stay_right_when_something_in_front_goes() {
    // The owner that all later names were compressed against is the one that is stripped.
    let draft = reply()
        .record(ANSWER, "deep.zone.example.net", rtype::RRSIG, 60, &rrsig(rtype::A, "example.com"))
        .cname(QNAME, 50, "Deeper.zone.Example.org")
        .a("deeper.zone.example.org", 40, "192.0.2.1")
        .record(AUTHORITY, "zone.example.net", rtype::SOA, 30, &soa(9))
        .record(
            AUTHORITY,
            "zone.example.net",
            rtype::MX,
            30,
            &[P::Octets(vec![0, 5]), P::Name("mx.zone.example.net".into())],
        )
        .record(
            ADDITIONAL,
            "mx.zone.example.net",
            rtype::SRV,
            20,
            &[P::Octets(vec![0; 6]), P::Plain("s.zone.example.net".into())],
        )
        .record(
            ADDITIONAL,
            "mx.zone.example.net",
            rtype::NAPTR,
            20,
            &[P::Octets(b"\0\x01\0\x02\x01U\x03E2U\0".to_vec()), P::Name("n.example.net".into())],
        )
        .record(ADDITIONAL, "mx.zone.example.net", 65_280, 10, &[P::Octets(vec![0xc0, 12])]);
    let walked = walked(&draft, &asked());
    let (was, is) = (parse(&draft.build()), parse(walked.answer.bytes()));
    let rest: Vec<_> = was.all_sections().skip(1).collect();
    assert_eq!(is.all_sections().collect::<Vec<_>>(), rest);
    assert_eq!((is.answers.len(), is.authorities.len(), is.additionals.len()), (2, 2, 3));
    assert!(walked.answer.bytes().len() < draft.len());
    // Letters of names are kept where they stand.
    assert_eq!(is.answers[0].data.to_string(), "Deeper.zone.Example.org.");
    assert_eq!(walked.facts.addresses, [sighted("192.0.2.1", 40, false)]);
    assert!(walked.answer.kept().authority_at() < walked.answer.kept().additional_at());
}

#[test]
fn opt_in_front_of_other_records_is_taken_out() {
    let draft = reply()
        .a(QNAME, 60, "192.0.2.1")
        .opt(1232, false, &[(15, b"\0\x16")])
        .record(ADDITIONAL, "ns.example.com", rtype::AAAA, 60, &[aaaa("2001:db8::53")])
        .record(ADDITIONAL, "key.example", rtype::TSIG, 0, &[P::Octets(vec![0; 20])]);
    let answer = walked(&draft, &asked()).answer;
    assert_eq!(types(&parse(answer.bytes())), [1, 28]);
    assert_eq!((answer.edes().len(), answer.lifetime_secs()), (1, Some(60)));
    let sig0 = reply().a(QNAME, 60, "192.0.2.1").record(ADDITIONAL, "", rtype::SIG, 0, &rrsig(0, "k.example"));
    assert_eq!(types(&kept(&sig0)), [1]);
}

#[test]
fn name_that_points_into_a_ttl_is_written_out() {
    // The owner of the second A is read from the TTL of the first: 1 label `a`, then the root.
    let at = reply().len();
    let owner_in_ttl = (0xc000 | (at + 2 + 4) as u16).to_be_bytes();
    let draft = reply().record_of(ANSWER, b"\xc0\x0c", rtype::A, 0x0161_0000, &[192, 0, 2, 1]).record_of(
        ANSWER,
        &owner_in_ttl,
        rtype::A,
        5,
        &[192, 0, 2, 2],
    );
    assert_eq!(parse(&draft.build()).answers[1].name.to_string(), "a.");
    let walked = walked(&draft, &asked());
    let message = parse(walked.answer.bytes());
    assert_eq!(message.answers[1].name.to_string(), "a.");
    assert_eq!(ttls(&message), [86_400, 5]);
}

#[test]
fn large_answers_stay_within_a_message_when_written_anew() {
    let mut draft = reply().record(ANSWER, QNAME, rtype::RRSIG, 60, &rrsig(rtype::A, "example.com"));
    let mut count = 0;
    while draft.len() < 65_400 {
        draft = draft.record(ANSWER, QNAME, rtype::NS, 60, &[P::Name(format!("ns{count}.a.long.zone.example.net"))]);
        count += 1;
    }
    let walked = walked(&draft, &asked());
    assert!(walked.answer.bytes().len() <= draft.len());
    assert_eq!(parse(walked.answer.bytes()).answers.len(), count);
    // A name that first stands out of reach of a pointer is written out each time.
    let mut draft = reply().record(ANSWER, QNAME, rtype::RRSIG, 60, &rrsig(rtype::A, "example.com"));
    while draft.len() < 0x4400 {
        draft = draft.record(ANSWER, QNAME, 65_280, 60, &[P::Octets(vec![7; 250])]);
    }
    draft = draft.cname(QNAME, 60, "late.example.net").a("late.example.net", 60, "192.0.2.1");
    let late = walk(&draft.build(), &asked(), &PLAIN).unwrap();
    assert_eq!(parse(late.answer.bytes()).answers.last().unwrap().name.to_string(), "late.example.net.");
    // Compressed where we must write names in full: too large.
    let mut draft = reply().record(ANSWER, QNAME, rtype::RRSIG, 60, &rrsig(rtype::A, "example.com"));
    let long = format!("{0}.{0}.{0}", "x".repeat(60));
    while draft.len() < 60_000 {
        draft = draft.record(ANSWER, QNAME, rtype::SRV, 60, &[P::Octets(vec![0; 6]), P::Name(long.clone())]);
    }
    assert_eq!(error(&draft), WalkError::Overflow);
}

#[test]
fn densest_sound_replies_are_walked_and_written_anew() {
    // 127 labels to a name, one new label and one pointer to a record, something to strip in front.
    let deep = vec!["a"; 118].join(".");
    let mut draft = reply().record(ANSWER, QNAME, rtype::RRSIG, 60, &rrsig(rtype::A, "example.com"));
    let at = draft.len() as u16;
    draft = draft.a(&format!("{deep}.net"), 60, "192.0.2.1");
    let mut count = 1;
    while draft.len() < 65_500 {
        let owner = [&[2, b'0' + (count % 10) as u8, b'0' + (count / 10 % 10) as u8][..], &(0xc000 | at).to_be_bytes()]
            .concat();
        draft = draft.record_of(ANSWER, &owner, rtype::A, 60, &[192, 0, 2, 2]);
        count += 1;
    }
    let walked = walked(&draft, &asked());
    assert_eq!(parse(walked.answer.bytes()).answers.len(), count);
    assert!(walked.answer.bytes().len() <= draft.len());
}

// --- facts ----------------------------------------------------------------------------------------------------

#[test]
fn chain_is_followed_in_any_order_and_nothing_else_counts() {
    let draft = reply()
        .a("c.example", 10, "192.0.2.3")
        .a("injected.example", 10, "203.0.113.1")
        .cname("b.example", 20, "C.example")
        .cname("stray.example", 20, "injected.example")
        .cname(QNAME, 30, "b.example")
        .record(ANSWER, "c.example", rtype::AAAA, 10, &[aaaa("2001:db8::3")])
        .record_in(class::CH, ANSWER, "c.example", rtype::A, 10, &[a("203.0.113.4")])
        .record(AUTHORITY, "c.example", rtype::A, 10, &[a("203.0.113.2")])
        .record(ADDITIONAL, "c.example", rtype::A, 10, &[a("203.0.113.3")]);
    let facts = walked(&draft, &asked()).facts;
    assert_eq!(facts.chain, ["b.example", "c.example"].map(name));
    assert_eq!(facts.addresses, [sighted("192.0.2.3", 10, false), sighted("2001:db8::3", 10, false)]);
}

#[test]
fn loops_are_refused_wherever_they_close() {
    assert_eq!(error(&reply().cname(QNAME, 1, QNAME)), WalkError::Loop);
    let long = reply().cname(QNAME, 1, "b.example").cname("c.example", 1, "WWW.example.com").cname(
        "b.example",
        1,
        "c.example",
    );
    assert_eq!(error(&long), WalkError::Loop);
    let behind =
        reply().cname(QNAME, 1, "b.example").cname("b.example", 1, "c.example").cname("c.example", 1, "b.example");
    assert_eq!(error(&behind), WalkError::Loop);
    let mut far = reply();
    for i in 0..60 {
        let owner = if i == 0 { QNAME.to_owned() } else { format!("n{i}.example") };
        far = far.cname(&owner, 1, &format!("n{}.example", i + 1));
    }
    assert_eq!(error(&far.cname("n60.example", 1, "n50.example")), WalkError::Loop);
    let apart = reply().a(QNAME, 1, "192.0.2.1").cname("x.example", 1, "x.example");
    assert!(walk(&apart.build(), &asked(), &PLAIN).is_ok());
    let dnames = reply().record(ANSWER, "example.com", rtype::DNAME, 1, &[P::Plain("example.net".into())]).record(
        ANSWER,
        "example.net",
        rtype::DNAME,
        1,
        &[P::Plain("example.com".into())],
    );
    assert_eq!(error(&dnames), WalkError::Loop);
}

#[test]
fn several_cnames_lead_to_all_their_targets() {
    let draft = reply()
        .cname(QNAME, 9, "b.example")
        .cname(QNAME, 5, "c.example")
        .cname(QNAME, 5, "b.example")
        .cname("b.example", 5, "d.example")
        .cname("c.example", 5, "d.example")
        .a("d.example", 5, "192.0.2.4")
        .a("c.example", 5, "192.0.2.3");
    let walked = walked(&draft, &asked());
    assert_eq!(walked.facts.chain.len(), 3);
    assert_eq!(walked.facts.addresses.len(), 2);
}

#[test]
fn long_chains_pass_but_facts_are_cut() {
    for (links, all) in [(CHAIN_LEN_MAX - 1, true), (CHAIN_LEN_MAX, false), (255, false)] {
        let mut draft = reply();
        for i in 0..links {
            let owner = if i == 0 { QNAME.to_owned() } else { format!("n{i}.example") };
            draft = draft.cname(&owner, 60, &format!("n{}.example", i + 1)).a(
                &format!("n{}.example", i + 1),
                60,
                "192.0.2.1",
            );
        }
        let last = draft.a(&format!("n{links}.example"), 60, "192.0.2.200");
        let walked = walked(&last, &asked());
        assert_eq!(walked.facts.chain.len(), CHAIN_LEN_MAX.min(links + 1) - 1);
        assert_eq!(walked.facts.all_addresses, all);
        let last: IpAddr = "192.0.2.200".parse().unwrap();
        assert_eq!(walked.facts.addresses.iter().any(|sighted| sighted.addr == last), all);
        assert_eq!(walked.answer.kind(), Kind::Positive);
        assert_eq!(parse(walked.answer.bytes()).answers.len(), 2 * links + 1);
    }
}

#[test]
fn dname_leads_on_with_and_without_its_cname() {
    let dname = reply().record(ANSWER, "example.com", rtype::DNAME, 50, &[P::Plain("example.net".into())]);
    let with = dname.clone().cname(QNAME, 50, "www.example.net").a("www.example.net", 50, "192.0.2.1");
    let without = dname.a("www.example.net", 50, "192.0.2.1");
    for draft in [with, without] {
        let walked = walked(&draft, &asked());
        assert_eq!(walked.facts.chain, ["www.example.net"].map(name));
        assert_eq!(walked.facts.addresses, [sighted("192.0.2.1", 50, false)]);
        assert_eq!(walked.answer.kind(), Kind::Positive);
    }
    // A CNAME that stands there goes first, whatever the DNAME says.
    let other = reply()
        .record(ANSWER, "example.com", rtype::DNAME, 50, &[P::Plain("example.net".into())])
        .cname(QNAME, 50, "else.example")
        .a("www.example.net", 50, "192.0.2.1");
    assert_eq!(walked(&other, &asked()).facts.chain, ["else.example"].map(name));
    // One more than counts, by a DNAME.
    let mut long = reply().record(ANSWER, "example", rtype::DNAME, 50, &[P::Plain("example.net".into())]);
    for i in 1..CHAIN_LEN_MAX {
        let owner = if i == 1 { QNAME.to_owned() } else { format!("n{i}.test") };
        let target = if i == CHAIN_LEN_MAX - 1 { "last.example".to_owned() } else { format!("n{}.test", i + 1) };
        long = long.cname(&owner, 60, &target);
    }
    let facts = walked(&long, &asked()).facts;
    assert_eq!((facts.chain.len(), facts.all_addresses), (CHAIN_LEN_MAX - 1, false));
    // Its own owner is not redirected, nor is what lies elsewhere.
    let own = Draft::reply("example.com", rtype::A)
        .record(ANSWER, "example.com", rtype::DNAME, 50, &[P::Plain("example.net".into())])
        .record(ANSWER, "notexample.com", rtype::DNAME, 50, &[P::Plain("example.org".into())])
        .a("example.net", 50, "192.0.2.1");
    assert_eq!(walked(&own, &asks("example.com", rtype::A)).facts.chain, []);
    // One that grows without end stops where names do.
    let grows = reply().record(ANSWER, "com", rtype::DNAME, 50, &[P::Plain("longer-and-longer.com".into())]);
    let facts = walked(&grows, &asked()).facts;
    assert!(facts.chain.len() + 1 < CHAIN_LEN_MAX && facts.all_addresses);
}

#[test]
fn hints_and_targets_of_the_chain_count() {
    let v6 = "2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets();
    // `mandatory` names a key that nobody knows.
    let service =
        svcb(1, "Pool.example.net", &[(0, &[0xff, 0]), (4, &[192, 0, 2, 7, 192, 0, 2, 8]), (6, &v6), (0xff00, b"")]);
    let draft = Draft::packed_reply(QNAME, rtype::HTTPS)
        .cname(QNAME, 99, "h.example")
        .record(ANSWER, "h.example", rtype::HTTPS, 80, &service)
        .record(ANSWER, "h.example", rtype::SVCB, 70, &svcb(0, "alias.example", &[(4, &[203, 0, 113, 9])]))
        .record(ANSWER, "h.example", rtype::SVCB, 70, &svcb(3, "", &[(4, &[192, 0, 2, 8])]))
        .record(ANSWER, "h.example", rtype::SVCB, 70, &svcb(9, "pool.example.net", &[]))
        .record(ANSWER, "h.example", rtype::A, 60, &[a("192.0.2.7")])
        .record(ANSWER, "else.example", rtype::HTTPS, 80, &svcb(1, "evil.example", &[(4, &[203, 0, 113, 8])]));
    let walked = walked(&draft, &asks(QNAME, rtype::HTTPS));
    let expected = [sighted("192.0.2.7", 80, false), sighted("192.0.2.8", 80, true), sighted("2001:db8::7", 80, true)];
    assert_eq!(walked.facts.addresses, expected);
    assert_eq!(walked.facts.targets, [(name("pool.example.net"), 80), (name("alias.example"), 70)]);
    assert_eq!(walked.answer.kind(), Kind::Positive);
}

#[test]
fn reply_of_another_implementation_is_kept_whole() {
    use hickory_proto::op::{Edns, MessageType, OpCode, Query};
    use hickory_proto::rr::{Name as HickoryName, RData, Record as HickoryRecord, rdata};
    let owner = HickoryName::from_ascii("www.example.com.").unwrap();
    let target = HickoryName::from_ascii("cdn.example.net.").unwrap();
    let mut message = HickoryMessage::new(9, MessageType::Response, OpCode::Query);
    message.add_query(Query::query(owner.clone(), RecordType::A));
    message.add_answer(HickoryRecord::from_rdata(owner, 70, RData::CNAME(rdata::CNAME(target.clone()))));
    message.add_answer(HickoryRecord::from_rdata(target.clone(), 60, RData::A(rdata::A::new(192, 0, 2, 1))));
    message.add_authority(HickoryRecord::from_rdata(target.clone(), 50, RData::NS(rdata::NS(target))));
    message.set_edns(Edns::new());
    let walked = walk(&message.to_vec().unwrap(), &asked(), &PLAIN).unwrap();
    let is = parse(walked.answer.bytes());
    assert_eq!((is.answers, is.authorities, is.additionals), (message.answers, message.authorities, vec![]));
    assert_eq!(walked.facts.addresses, [sighted("192.0.2.1", 60, false)]);
}
