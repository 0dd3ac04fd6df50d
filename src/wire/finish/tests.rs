//! What one client is given of a stored answer.

use hickory_proto::op::Message;

use super::*;
use crate::wire::testing::{
    ADDITIONAL, ANSWER, AUTHORITY, Draft, ID, P, a, asks, options_bytes, parse, rrsig, seen, walked,
};
use crate::wire::{Answer, Question, TagText, rtype, synthesize};

const QNAME: &str = "www.example.com";

fn tag() -> TagOption {
    TagOption::new(65_313, true, &TagText { app: "zoom", trigger: "zoom.us", also: &["teams"] })
}

/// The tag's two options as they must stand in an OPT.
fn tag_options() -> Vec<(u16, Vec<u8>)> {
    vec![(65_313, b"app=zoom;match=zoom.us;also=teams".to_vec()), (15, b"\0\0bypass zoom (zoom.us)".to_vec())]
}

fn ede_option(code: u8, text: &str) -> (u16, Vec<u8>) {
    (15, [&[0, code], text.as_bytes()].concat())
}

/// An answer with all sections, and two EDEs.
fn full() -> Answer {
    full_draft().0
}

fn full_draft() -> (Answer, Question) {
    let question = asks(QNAME, rtype::A);
    let draft = Draft::packed_reply(QNAME, rtype::A)
        .flags(0x0020, 0)
        .cname(QNAME, 300, "cdn.example.net")
        .a("cdn.example.net", 60, "192.0.2.1")
        .record(AUTHORITY, "example.net", rtype::NS, 90, &[P::Name("ns.example.net".into())])
        .record(ADDITIONAL, "ns.example.net", rtype::A, 80, &[a("192.0.2.53")])
        .opt(1232, false, &[(15, b"\0\x03"), (15, b"\0\x16no way")]);
    (walked(&draft, &question).answer, question)
}

fn query() -> Draft {
    Draft::query("WWW.eXample.com", rtype::A)
}

fn with_opt() -> Draft {
    query().opt(1232, false, &[])
}

/// Finishes for a query; the reply must hold to the limit and parse.
fn reply_to(query: &Draft, answer: &Answer, given: &Given<'_>, limit: usize) -> (Fit, Vec<u8>, Message) {
    let packet = query.build();
    let mut out = b"left over".to_vec();
    let fit = finish(answer.kept(), &seen(&packet), given, limit, &mut out);
    assert!(out.len() <= limit, "{} octets, at most {limit}", out.len());
    let message = parse(&out);
    assert_eq!(message.metadata.id, ID);
    assert_eq!(message.metadata.truncation, fit == Fit::Truncated);
    (fit, out, message)
}

fn ttls(message: &Message) -> Vec<u32> {
    message.all_sections().map(|record| record.ttl).collect()
}

/// Codes and values of the options in the OPT, which must be the last record.
fn options(reply: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let edns = parse(reply).edns.unwrap();
    assert_eq!((edns.max_payload(), edns.version()), (1232, 0));
    let options = edns.options().options.iter();
    options.map(|(code, option)| (u16::from(*code), Vec::<u8>::try_from(option).unwrap())).collect()
}

#[test]
fn reply_echoes_the_client_and_is_ours_otherwise() {
    let (fit, out, message) = reply_to(&query().flags(0x0010, 0), &full(), &Given::default(), 512);
    assert_eq!(fit, Fit::Whole);
    assert_eq!(&out[12..29], b"\x03WWW\x07eXample\x03com\0");
    assert_eq!(out[2..4], [0x81, 0x90]);
    assert_eq!(ttls(&message), [300, 60, 90, 80]);
    assert!(message.edns.is_none());
    // Owners compressed against the question wear the client's letters.
    assert_eq!(message.answers[0].name.to_string(), "WWW.eXample.com.");
    let (_, out, _) = reply_to(&query().flags(0, 0x0100), &full(), &Given::default(), 512);
    assert_eq!(out[2..4], [0x80, 0x80]);
}

#[test]
fn ad_goes_to_those_who_understand_it() {
    // AD and DO of the client, AD of the answer.
    let plain = Draft::packed_reply(QNAME, rtype::A).a(QNAME, 60, "192.0.2.1");
    let question = asks(QNAME, rtype::A);
    let without = walked(&plain, &question).answer;
    let with = walked(&plain.flags(0x0020, 0), &question).answer;
    for (ad, dnssec_ok, answer, expected) in [
        (false, false, &with, false),
        (true, false, &with, true),
        (false, true, &with, true),
        (true, true, &without, false),
    ] {
        let query = query().flags(if ad { 0x0020 } else { 0 }, 0).opt(1232, dnssec_ok, &[]);
        let (_, _, message) = reply_to(&query, answer, &Given::default(), 512);
        assert_eq!(message.metadata.authentic_data, expected, "{ad} {dnssec_ok}");
        assert_eq!(message.edns.unwrap().flags().dnssec_ok, dnssec_ok);
    }
}

#[test]
fn ttls_count_down_and_are_capped() {
    let told = |age_secs, ttl_cap| {
        let (_, _, message) = reply_to(&query(), &full(), &Given { age_secs, ttl_cap, tag: None }, 512);
        ttls(&message)
    };
    assert_eq!(told(10, None), [290, 50, 80, 70]);
    assert_eq!(told(75, None), [225, 0, 15, 5]);
    assert_eq!(told(0, Some(30)), [30, 30, 30, 30]);
    // The cap is no span that ages.
    assert_eq!(told(55, Some(30)), [30, 5, 30, 25]);
    assert_eq!(told(0, Some(0)), [0; 4]);
    assert_eq!(told(u32::MAX, None), [0; 4]);
}

#[test]
fn negative_soa_counts_down_too() {
    let draft = Draft::packed_reply(QNAME, rtype::A).flags(3, 0).soa(AUTHORITY, "example.com", 300, 60);
    let answer = walked(&draft, &asks(QNAME, rtype::A)).answer;
    let (_, _, message) = reply_to(&query(), &answer, &Given { age_secs: 20, ..Given::default() }, 512);
    assert_eq!((ttls(&message), u16::from(message.metadata.response_code)), (vec![40], 3));
}

#[test]
fn tag_and_edes_stand_in_the_opt_of_clients_that_sent_one() {
    let tag = tag();
    let given = Given { tag: Some(&tag), ..Given::default() };
    let (fit, out, message) = reply_to(&with_opt(), &full(), &given, 1232);
    assert_eq!(fit, Fit::Whole);
    let expected = [tag_options(), vec![ede_option(3, ""), ede_option(22, "no way")]].concat();
    assert_eq!(options(&out), expected);
    assert_eq!(message.additionals.len(), 1);
    // The OPT is the very end.
    let values: Vec<_> = expected.iter().map(|(code, value)| (*code, &value[..])).collect();
    assert!(out.ends_with(&options_bytes(&values)));
    let (fit, untagged, message) = reply_to(&query(), &full(), &given, 512);
    assert_eq!(fit, Fit::Whole);
    assert!(message.edns.is_none() && !untagged.windows(4).any(|octets| octets == b"zoom"));
}

#[test]
fn options_of_the_client_are_never_echoed() {
    let query = query().opt(1232, true, &[(10, b"12345678"), (3, b""), (65_313, b"app=evil")]);
    let (_, out, _) = reply_to(&query, &full(), &Given::default(), 1232);
    assert_eq!(options(&out), [ede_option(3, ""), ede_option(22, "no way")]);
}

#[test]
fn what_is_too_long_goes_in_its_order() {
    let tag = tag();
    let given = Given { tag: Some(&tag), ..Given::default() };
    let answer = full();
    let whole = reply_to(&with_opt(), &answer, &given, 1232).1.len();
    let counts = |message: &Message| (message.answers.len(), message.authorities.len(), message.additionals.len());
    // What each step saves, what is then left.
    let steps = [
        (0, Fit::Whole, 4, (2, 1, 1)),
        (37 + 27, Fit::Shortened, 2, (2, 1, 1)),
        (6, Fit::Shortened, 2, (2, 1, 1)),
        (6 + 6, Fit::Shortened, 0, (2, 1, 1)),
        (16, Fit::Shortened, 0, (2, 1, 0)),
    ];
    let mut limit = whole;
    for (saved, fit, options_left, sections) in steps {
        limit -= saved;
        for limit in [limit, limit + 1] {
            let (is_fit, out, message) = reply_to(&with_opt(), &answer, &given, limit);
            if limit <= whole {
                assert_eq!((is_fit, options(&out).len(), counts(&message)), (fit, options_left, sections), "{limit}");
            }
        }
    }
    let (fit, out, message) = reply_to(&with_opt(), &answer, &given, limit - 1);
    assert_eq!((fit, counts(&message)), (Fit::Shortened, (2, 0, 0)));
    let (fit, bare, message) = reply_to(&with_opt(), &answer, &given, out.len() - 1);
    assert_eq!((fit, counts(&message)), (Fit::Truncated, (0, 0, 0)));
    assert_eq!(bare.len(), 12 + 21 + 11);
    assert_eq!(message.queries.len(), 1);
    assert!(message.edns.is_some());
    let (fit, bare, message) = reply_to(&query(), &answer, &given, 40);
    assert_eq!((fit, bare.len(), message.edns.is_none()), (Fit::Truncated, 33, true));
}

#[test]
fn authority_that_the_client_needs_is_not_left_out() {
    let soa = |rcode| {
        let draft = Draft::packed_reply(QNAME, rtype::A)
            .flags(rcode, 0)
            .cname(QNAME, 60, "x.example")
            .soa(AUTHORITY, "example", 60, 60);
        walked(&draft, &asks(QNAME, rtype::A)).answer
    };
    for (rcode, fit) in [(0, Fit::Truncated), (3, Fit::Truncated), (2, Fit::Shortened)] {
        let answer = soa(rcode);
        assert_eq!(reply_to(&query(), &answer, &Given::default(), answer.bytes().len()).0, Fit::Whole);
        assert_eq!(reply_to(&query(), &answer, &Given::default(), answer.bytes().len() - 1).0, fit, "{rcode}");
    }
    // With DO the proof of a wildcard stands there (RFC 4035 §3.1.1).
    let mut question = asks(QNAME, rtype::A);
    question.dnssec_ok = true;
    let draft = Draft::packed_reply(QNAME, rtype::A)
        .a(QNAME, 60, "192.0.2.1")
        .record(ANSWER, QNAME, rtype::RRSIG, 60, &rrsig(rtype::A, "example.com"))
        .record(
            AUTHORITY,
            "z.example.com",
            rtype::NSEC,
            60,
            &[P::Plain("zz.example.com".into()), P::Octets(vec![0, 1, 64])],
        );
    let answer = walked(&draft, &question).answer;
    let query = query().opt(1232, true, &[]);
    assert_eq!(reply_to(&query, &answer, &Given::default(), answer.bytes().len() + 10).0, Fit::Truncated);
}

#[test]
fn extended_rcodes_need_an_opt() {
    let answer = synthesize(&asks(QNAME, rtype::A), 23, &[]);
    assert_eq!(u16::from(reply_to(&with_opt(), &answer, &Given::default(), 512).2.metadata.response_code), 23);
    assert_eq!(u16::from(reply_to(&query(), &answer, &Given::default(), 512).2.metadata.response_code), 2);
    // 16 has no lower bits: without care it would read NOERROR.
    let answer = synthesize(&asks(QNAME, rtype::A), rcode::BADVERS, &[]);
    assert_eq!(u16::from(reply_to(&query(), &answer, &Given::default(), 512).2.metadata.response_code), 2);
}

#[test]
fn limits_follow_client_and_transport() {
    let at = |draft: Draft, transport| limit(&seen(&draft.build()), transport);
    assert_eq!(at(query(), Transport::Udp), 512);
    for (size, expected) in [(0, 512), (511, 512), (512, 512), (1000, 1000), (1232, 1232), (4096, 1232), (65_535, 1232)]
    {
        assert_eq!(at(query().opt(size, false, &[]), Transport::Udp), expected);
        assert_eq!(at(query().opt(size, false, &[]), Transport::Tcp), 65_535);
    }
    assert_eq!(at(query(), Transport::Tcp), 65_535);
}

#[test]
fn answer_to_another_question_comes_out_as_servfail() {
    for other in
        [Draft::query("www.example.co", rtype::A), Draft::query(QNAME, rtype::AAAA), Draft::query("wwx.example.com", 1)]
    {
        let (_, _, message) = reply_to(&other, &full(), &Given::default(), 512);
        assert_eq!((u16::from(message.metadata.response_code), message.answers.len()), (2, 0));
    }
    // HTTPS is type 65, `A`; type 97 is `a`.
    let https = synthesize(&asks(QNAME, 65), 0, &[]);
    let (_, _, message) = reply_to(&Draft::query(QNAME, 97), &https, &Given::default(), 512);
    assert_eq!(u16::from(message.metadata.response_code), 2);
}

#[test]
fn buffer_with_room_is_not_moved() {
    let tag = tag();
    let packet = with_opt().build();
    let mut out = Vec::with_capacity(1232);
    let place = out.as_ptr();
    for age_secs in 0..100 {
        finish(full().kept(), &seen(&packet), &Given { age_secs, tag: Some(&tag), ttl_cap: None }, 1232, &mut out);
        assert_eq!((out.as_ptr(), out.capacity()), (place, 1232));
    }
}
