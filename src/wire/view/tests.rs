//! What becomes of a client's packet, one test a row of the table in `view.rs`.

use hickory_proto::op::{Edns as HickoryEdns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name as HickoryName, RData, RecordType};

use super::*;
use crate::wire::testing::{ADDITIONAL, ANSWER, AUTHORITY, Draft, ID, P, a, parse, seen, soa, wire};

/// Sees a packet over UDP that must be refused; returns the rcode and the reply as an independent parser reads it.
fn refused(draft: &Draft) -> (u16, Message) {
    let packet = draft.build();
    match see(&packet, Transport::Udp) {
        Seen::Refuse(refusal) => {
            let mut out = vec![1, 2, 3];
            refusal.write(&mut out);
            assert!(out.len() <= 512);
            let reply = parse(&out);
            assert_eq!(reply.metadata.id, ID);
            assert_eq!(reply.metadata.message_type, MessageType::Response);
            assert!(reply.metadata.recursion_available && !reply.metadata.authoritative);
            assert_eq!(reply.edns.is_some(), reply.edns.as_ref().is_some_and(|edns| edns.max_payload() == 1232));
            (refusal.rcode(), reply)
        }
        other => panic!("{other:?}"),
    }
}

fn rcode_of(draft: &Draft) -> u16 {
    refused(draft).0
}

fn is_silence(packet: &[u8]) -> bool {
    matches!(see(packet, Transport::Udp), Seen::Silence) && matches!(see(packet, Transport::Tcp), Seen::Silence)
}

#[test]
fn question_is_seen_as_sent() {
    let packet = Draft::query("WwW.Zoom.us", rtype::AAAA).opt(4096, true, &[]).build();
    let view = seen(&packet);
    assert_eq!(view.id(), ID);
    assert_eq!(view.qname(), b"\x03WwW\x04Zoom\x02us\0");
    assert_eq!((view.qtype(), view.qclass()), (rtype::AAAA, class::IN));
    assert!(view.recursion_desired() && !view.checking_disabled() && !view.authentic_data());
    assert_eq!(view.edns(), Some(Edns { udp_size: 4096, dnssec_ok: true }));
    let mut buf = [0xff; 255];
    assert_eq!(view.fold_qname(&mut buf), b"\x03www\x04zoom\x02us\0");
    let mut buf = [0xff; 255];
    assert_eq!(view.key(&mut buf), view.question().as_key());
    assert!(view.question().dnssec_ok);
}

#[test]
fn query_of_another_implementation_is_seen() {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.metadata.checking_disabled = true;
    message.metadata.authentic_data = true;
    message.add_query(Query::query(HickoryName::from_ascii("Mixed.Example.").unwrap(), RecordType::HTTPS));
    let mut edns = HickoryEdns::new();
    edns.set_max_payload(100).set_dnssec_ok(false);
    message.set_edns(edns);
    let packet = message.to_vec().unwrap();
    let view = seen(&packet);
    assert_eq!((view.id(), view.qtype()), (7, rtype::HTTPS));
    assert!(view.checking_disabled() && view.authentic_data() && !view.dnssec_ok());
    // RFC 6891 §6.2.3: values below 512 count as 512.
    assert_eq!(view.edns().unwrap().udp_size, 512);
}

#[test]
fn reply_or_less_than_a_header_meets_silence() {
    let query = Draft::query("a.example", rtype::A).build();
    for len in 0..12 {
        assert!(is_silence(&query[..len]), "{len}");
    }
    assert!(is_silence(&Draft::reply("a.example", rtype::A).build()));
    assert!(is_silence(&Draft::empty(0xffff).build()));
}

#[test]
fn other_opcodes_are_not_implemented_and_echoed() {
    for opcode in 1..16 {
        let (rcode, reply) =
            refused(&Draft::query("a.example", rtype::SOA).flags(opcode << 11, 0).opt(1400, true, &[]));
        assert_eq!(rcode, rcode::NOTIMP);
        assert_eq!(reply.metadata.op_code, OpCode::from_u8(opcode as u8));
        assert!(reply.metadata.recursion_desired);
        assert_eq!(reply.queries.len(), 1);
        assert!(reply.edns.unwrap().flags().dnssec_ok);
    }
    // An UPDATE with records in all sections, and a DSO message without a question.
    let update = Draft::query("example", rtype::SOA).flags(5 << 11, 0).record(AUTHORITY, "a.example", 1, 0, &[]);
    assert_eq!(rcode_of(&update), rcode::NOTIMP);
    assert_eq!(rcode_of(&Draft::empty(6 << 11)), rcode::NOTIMP);
}

#[test]
fn question_count_other_than_one_is_a_format_error() {
    // RFC 9619.
    let (rcode, reply) = refused(&Draft::empty(0x0100).opt(1232, false, &[]));
    assert_eq!((rcode, reply.queries.len()), (rcode::FORMERR, 0));
    assert!(reply.edns.is_some());
    let two = Draft::query("a.example", rtype::A).question("b.example", rtype::A, class::IN).opt(1232, false, &[]);
    let (rcode, reply) = refused(&two);
    assert_eq!((rcode, reply.queries.len()), (rcode::FORMERR, 0));
    assert!(reply.edns.is_some());
    // A count that the packet does not hold.
    assert_eq!(rcode_of(&Draft::query("a.example", rtype::A).count(0)), rcode::FORMERR);
    assert_eq!(rcode_of(&Draft::empty(0).count(0)), rcode::FORMERR);
}

#[test]
fn malformed_names_are_format_errors() {
    let question = |name: &[u8]| Draft::empty(0x0100).raw(name).raw(&[0, 1, 0, 1]).count(0);
    let long_label = [&[64u8][..], &[b'a'; 64], &[0]].concat();
    let mut long_name: Vec<u8> = [&[63u8][..], &[b'a'; 63]].concat().repeat(4);
    long_name.push(0);
    let fitting_name = [&[63u8][..], &[b'a'; 63]].concat().repeat(3).into_iter().chain([61; 62]).chain([0]);
    assert_eq!(fitting_name.clone().count(), 255);
    assert!(matches!(see(&question(&fitting_name.collect::<Vec<_>>()).build(), Transport::Udp), Seen::Question(_)));
    for name in [&long_label[..], &long_name, b"\x80a\0", b"\x40a\0", b"\xc0\x0c", b"\x01a\xc0\x0c", b"\x05ab"] {
        let (rcode, reply) = refused(&question(name));
        assert_eq!((rcode, reply.queries.len()), (rcode::FORMERR, 0), "{name:?}");
    }
}

#[test]
fn records_in_answer_or_authority_are_a_format_error() {
    let query = || Draft::query("a.example", rtype::A);
    for section in [ANSWER, AUTHORITY] {
        let (rcode, reply) = refused(&query().record(section, "a.example", rtype::A, 1, &[a("192.0.2.1")]));
        assert_eq!((rcode, reply.queries.len()), (rcode::FORMERR, 1));
        assert_eq!(rcode_of(&query().count(section)), rcode::FORMERR);
    }
}

#[test]
fn transfers_are_refused_even_with_the_soa_of_ixfr() {
    assert_eq!(rcode_of(&Draft::query("example", rtype::AXFR)), rcode::REFUSED);
    assert_eq!(rcode_of(&Draft::query("example", rtype::IXFR)), rcode::REFUSED);
    let with_soa = Draft::query("example", rtype::IXFR).record(AUTHORITY, "example", rtype::SOA, 0, &soa(1));
    assert_eq!(rcode_of(&with_soa), rcode::REFUSED);
}

#[test]
fn classes_other_than_in_are_refused() {
    for qclass in [0, 2, class::CH, class::HS, class::NONE, class::ANY, 65_280] {
        let (rcode, reply) = refused(&Draft::empty(0).question("version.bind", rtype::TXT, qclass));
        assert_eq!((rcode, reply.queries.len()), (rcode::REFUSED, 1), "{qclass}");
    }
}

#[test]
fn types_that_are_no_question_are_turned_down() {
    for qtype in [0, rtype::OPT, rtype::TSIG, rtype::NXNAME] {
        assert_eq!(rcode_of(&Draft::query("a.example", qtype)), rcode::FORMERR, "{qtype}");
    }
    for qtype in [rtype::TKEY, rtype::MAILA, rtype::MAILB] {
        assert_eq!(rcode_of(&Draft::query("a.example", qtype)), rcode::NOTIMP, "{qtype}");
    }
    for qtype in [rtype::HINFO, rtype::RRSIG, 256, 32_769, 65_534] {
        assert_eq!(seen(&Draft::query("a.example", qtype).build()).qtype(), qtype);
    }
}

#[test]
fn any_gets_the_minimal_answer_over_udp_only() {
    let (rcode, reply) = refused(&Draft::query("ANY.example", rtype::ANY).opt(1232, true, &[]));
    assert_eq!(rcode, rcode::NOERROR);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    let [record] = &reply.answers[..] else { panic!("{:?}", reply.answers) };
    assert_eq!(record.name.to_string(), "ANY.example.");
    assert_eq!(record.ttl, 3600);
    assert!(matches!(&record.data, RData::HINFO(hinfo) if &*hinfo.cpu == b"RFC8482" && hinfo.os.is_empty()));
    let packet = Draft::query("any.example", rtype::ANY).build();
    assert!(matches!(see(&packet, Transport::Tcp), Seen::Question(_)));
}

#[test]
fn two_opts_are_a_format_error_answered_with_one() {
    let (rcode, reply) = refused(&Draft::query("a.example", rtype::A).opt(1232, true, &[]).opt(1232, false, &[]));
    assert_eq!(rcode, rcode::FORMERR);
    assert!(reply.edns.unwrap().flags().dnssec_ok);
}

#[test]
fn opt_out_of_place_is_a_format_error() {
    let query = || Draft::query("a.example", rtype::A);
    let (rcode, reply) = refused(&query().opt_with(&wire("example"), 1232, 0, &[]));
    assert_eq!((rcode, reply.edns.is_none()), (rcode::FORMERR, true));
    // A pointer to the root of the question is the root, but not as RFC 6891 §6.1.2 wants it.
    assert_eq!(rcode_of(&query().opt_with(&[0xc0, 22], 1232, 0, &[])), rcode::FORMERR);
    assert_eq!(rcode_of(&query().record(ANSWER, "", rtype::OPT, 0, &[])), rcode::FORMERR);
}

#[test]
fn malformed_options_are_a_format_error() {
    for options in [&[0][..], &[0, 10, 0], &[0, 10, 0, 1], &[0, 10, 0, 1, 7, 0, 3, 0, 9]] {
        let (rcode, reply) = refused(&Draft::query("a.example", rtype::A).opt_with(&[0], 1232, 0, options));
        assert_eq!((rcode, reply.edns.is_some()), (rcode::FORMERR, true), "{options:?}");
    }
}

#[test]
fn options_of_real_clients_are_ignored_and_not_echoed() {
    let cookie = [1, 2, 3, 4, 5, 6, 7, 8];
    // NSID, client subnet, COOKIE, KEEPALIVE, PADDING, an unknown and a local-use code.
    let options: [(u16, &[u8]); 7] = [
        (3, b""),
        (8, &[0, 1, 24, 0, 192, 0, 2]),
        (10, &cookie),
        (11, b""),
        (12, &[0; 40]),
        (4242, b"x"),
        (65_313, b"app=x"),
    ];
    let packet = Draft::query("a.example", rtype::A).opt(1232, false, &options).build();
    let view = seen(&packet);
    assert_eq!(view.edns(), Some(Edns { udp_size: 1232, dnssec_ok: false }));
    let mut out = Vec::new();
    view.refuse(rcode::SERVFAIL).write(&mut out);
    assert!(parse(&out).edns.unwrap().options().options.is_empty());
}

#[test]
fn unknown_edns_versions_get_badvers_and_ours() {
    for version in [1u32, 255] {
        // Octets that are no options of version 0 may be some of this one.
        let draft = Draft::query("a.example", rtype::A).opt_with(&[0], 512, version << 16 | 0x8000, &[1, 2, 3]);
        let (rcode, reply) = refused(&draft);
        assert_eq!(rcode, rcode::BADVERS);
        assert_eq!(u16::from(reply.metadata.response_code), 16);
        let edns = reply.edns.unwrap();
        assert_eq!((edns.version(), edns.flags().dnssec_ok), (0, true));
        assert_eq!((reply.queries.len(), reply.answers.len()), (1, 0));
    }
}

#[test]
fn trailing_octets_are_a_format_error() {
    assert_eq!(rcode_of(&Draft::query("a.example", rtype::A).raw(&[0])), rcode::FORMERR);
    let (rcode, reply) = refused(&Draft::query("a.example", rtype::A).opt(1232, false, &[]).raw(&[0; 5]));
    assert_eq!((rcode, reply.edns.is_some(), reply.queries.len()), (rcode::FORMERR, true, 1));
}

#[test]
fn other_additional_records_are_ignored_if_they_parse() {
    let query = || Draft::query("a.example", rtype::A);
    let sig0 = query().record(ADDITIONAL, "", rtype::SIG, 0, &[P::Octets(vec![0; 18]), P::Plain("k.example".into())]);
    let tsig =
        query().opt(1232, true, &[]).record(ADDITIONAL, "key.example", rtype::TSIG, 0, &[P::Octets(vec![9; 30])]);
    let compressed = query().record_of(ADDITIONAL, b"\x01x\xc0\x0c", rtype::TXT, 5, b"\x01y").opt(1232, true, &[]);
    for draft in [sig0, tsig, compressed] {
        assert!(matches!(see(&draft.build(), Transport::Udp), Seen::Question(_)));
    }
    let early_tsig = query().record(ADDITIONAL, "key.example", rtype::TSIG, 0, &[]).opt(1232, true, &[]);
    let forward = query().record_of(ADDITIONAL, b"\xc0\x40", rtype::TXT, 5, b"\x01y");
    let own_start = query().record_of(ADDITIONAL, b"\xc0\x1b", rtype::TXT, 5, b"\x01y");
    let cut = query().record_of(ADDITIONAL, b"\0", rtype::TXT, 5, b"\x01y").count(ADDITIONAL);
    for draft in [early_tsig, forward, own_start, cut] {
        assert_eq!(rcode_of(&draft), rcode::FORMERR);
    }
}

#[test]
fn flags_that_mean_nothing_in_a_query_are_ignored_and_cleared() {
    // AA, TC, RA, Z and RCODE set, AD and CD set.
    let packet = Draft::query("a.example", rtype::A).flags(0x06ff, 0).build();
    let view = seen(&packet);
    let mut out = Vec::new();
    view.refuse(rcode::REFUSED).write(&mut out);
    assert_eq!(out[2..4], [0x81, 0x95]);
    let packet = Draft::query("a.example", rtype::A).flags(0, 0x0100).build();
    seen(&packet).refuse(rcode::REFUSED).write(&mut out);
    assert_eq!(out[2..4], [0x80, 0x85]);
}

#[test]
fn refusal_carries_its_ede_only_inside_an_opt() {
    let with = Draft::query("a.example", rtype::A).opt(1232, false, &[]).build();
    let without = Draft::query("a.example", rtype::A).build();
    let mut out = Vec::new();
    seen(&with).refuse(rcode::REFUSED).with_ede(Ede::new(18, &"é".repeat(40))).write(&mut out);
    let text = "é".repeat(32);
    let ending = [&[0, 15, 0, 66, 0, 18], text.as_bytes()].concat();
    assert!(out.ends_with(&ending));
    parse(&out);
    seen(&without).refuse(rcode::REFUSED).with_ede(Ede::new(18, "no")).write(&mut out);
    assert_eq!(out.len(), without.len());
    // There is no place for the upper bits of an rcode without an OPT.
    assert_eq!(seen(&without).refuse(rcode::BADVERS).rcode(), rcode::SERVFAIL);
}
