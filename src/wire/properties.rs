//! Laws that hold for any octets: nothing panics, and what passes means the same to an independent parser.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::Message;
use hickory_proto::rr::{RData, Record};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::testing::{ADDITIONAL, ANSWER, AUTHORITY, Draft, P, PLAIN, asks, rrsig, soa, svcb};
use super::{
    Ede, Facts, Given, Kind, Question, Rules, Seen, TagOption, TagText, Transport, Walked, finish, limit, rtype, see,
    walk,
};
use crate::name::Name;

const NAMES: [&str; 8] =
    ["www.example.com", "example.com", "b.example.com", "c.b.example.com", "cdn.example.net", "d.net", "x", "."];

/// One record of a reply being made up.
#[derive(Clone, Debug)]
struct Sketch {
    section: usize,
    owner: &'static str,
    rtype: u16,
    ttl: u32,
    rdata: Vec<P>,
}

fn any_name() -> impl Strategy<Value = &'static str> {
    select(&NAMES[..])
}

fn any_rdata() -> impl Strategy<Value = (u16, Vec<P>)> {
    let octets = |len| vec(any::<u8>(), len).prop_map(|octets| vec![P::Octets(octets)]);
    let named = |rtype, before: usize| {
        any_name().prop_map(move |name| (rtype, vec![P::Octets(vec![0; before]), P::Name(name.into())]))
    };
    let plain = |rtype, before: usize| {
        any_name().prop_map(move |name| (rtype, vec![P::Octets(vec![0; before]), P::Plain(name.into())]))
    };
    prop_oneof![
        4 => octets(4).prop_map(|rdata| (rtype::A, rdata)),
        2 => octets(16).prop_map(|rdata| (rtype::AAAA, rdata)),
        4 => named(rtype::CNAME, 0),
        1 => plain(rtype::DNAME, 0),
        1 => named(rtype::NS, 0),
        1 => named(rtype::MX, 2),
        1 => plain(rtype::SRV, 6),
        1 => (0..500u32).prop_map(|minimum| (rtype::SOA, soa(minimum).to_vec())),
        1 => any_name().prop_map(|name| (rtype::RRSIG, rrsig(rtype::A, name).to_vec())),
        1 => vec(any::<u8>(), 1..20).prop_map(|octets| (65_280, vec![P::Octets(octets)])),
        2 => (0..3u16, any_name(), 1..3usize, any::<[u8; 4]>()).prop_map(|(priority, target, count, addr)| {
            let (v4, v6) = (addr.repeat(count), addr.repeat(4));
            let params: [(u16, &[u8]); 2] = [(4, &v4), (6, &v6)];
            // Clients ignore the parameters of AliasMode; other parsers refuse them there.
            (rtype::HTTPS, svcb(priority, target, if priority == 0 { &[] } else { &params }).to_vec())
        }),
    ]
}

fn any_record() -> impl Strategy<Value = Sketch> {
    let section = prop_oneof![3 => Just(ANSWER), 1 => Just(AUTHORITY), 1 => Just(ADDITIONAL)];
    let ttl = prop_oneof![3 => 0..400u32, 1 => any::<u32>()];
    (section, any_name(), ttl, any_rdata()).prop_map(|(section, owner, ttl, (rtype, rdata))| Sketch {
        section,
        owner,
        rtype,
        ttl,
        rdata,
    })
}

/// A reply that is well-formed: what is in it, and where among the additional records its OPT stands.
fn any_reply() -> impl Strategy<Value = (Question, Draft, Vec<Sketch>)> {
    let flags = select(vec![0u16, 3, 2, 0x0020, 0x0400]);
    let qtype = select(vec![rtype::A, rtype::AAAA, rtype::HTTPS, rtype::CNAME, rtype::ANY, rtype::RRSIG]);
    (any_name(), qtype, any::<bool>(), flags, vec(any_record(), 0..12), any::<Index>(), any::<bool>()).prop_map(
        |(qname, qtype, dnssec_ok, flags, mut sketches, opt_at, is_packed)| {
            sketches.sort_by_key(|sketch| sketch.section);
            let make = if is_packed { Draft::packed_reply } else { Draft::reply };
            let mut draft = make(qname, qtype).flags(flags, 0);
            let fixed = sketches.iter().filter(|sketch| sketch.section != ADDITIONAL).count();
            let opt_at = fixed + opt_at.index(sketches.len() - fixed + 1);
            for i in 0..=sketches.len() {
                if i == opt_at {
                    draft = draft.opt(1232, true, &[(15, b"\0\x16text"), (10, b"12345678")]);
                }
                if let Some(sketch) = sketches.get(i) {
                    draft = draft.record(sketch.section, sketch.owner, sketch.rtype, sketch.ttl, &sketch.rdata);
                }
            }
            let question = Question { dnssec_ok, ..asks(qname, qtype) };
            (question, draft, sketches)
        },
    )
}

/// What a client with a parser of its own reads from an answer: every address on the chain, with the longest TTL.
///
/// Written without regard to speed: names as text, links looked up one by one.
fn addresses_read_by_a_client(message: &Message) -> BTreeSet<(IpAddr, u32)> {
    let mut chain = vec![message.queries[0].name().to_lowercase()];
    let mut at = 0;
    while let Some(name) = chain.get(at).cloned() {
        at += 1;
        let owned = |record: &&Record| record.name.to_lowercase() == name;
        let mut targets: Vec<_> = message.answers.iter().filter(owned).filter_map(cname_of).collect();
        if targets.is_empty() {
            targets.extend(dname_target(message, &name));
        }
        for target in targets {
            if !chain.contains(&target) {
                chain.push(target);
            }
        }
    }
    let mut read: Vec<(IpAddr, u32)> = Vec::new();
    for record in message.answers.iter().filter(|record| chain.contains(&record.name.to_lowercase())) {
        match &record.data {
            RData::A(a) => read.push((a.0.into(), record.ttl)),
            RData::AAAA(aaaa) => read.push((aaaa.0.into(), record.ttl)),
            RData::HTTPS(https) => read.extend(hints(&https.0).map(|addr| (addr, record.ttl))),
            _ => {}
        }
    }
    let longest = |addr| read.iter().filter(|(other, _)| *other == addr).map(|(_, ttl)| *ttl).max();
    read.iter().filter_map(|(addr, _)| Some((*addr, longest(*addr)?))).collect()
}

fn cname_of(record: &Record) -> Option<hickory_proto::rr::Name> {
    match &record.data {
        RData::CNAME(cname) => Some(cname.0.to_lowercase()),
        _ => None,
    }
}

/// DNAME is opaque to the independent parser in this build; its RDATA is one uncompressed name.
fn dname_target(message: &Message, name: &hickory_proto::rr::Name) -> Option<hickory_proto::rr::Name> {
    let mut found: Vec<_> = message
        .answers
        .iter()
        .filter(|record| u16::from(record.record_type()) == rtype::DNAME)
        .filter(|record| record.name.zone_of(name) && record.name.to_lowercase() != *name)
        .collect();
    let deepest = found.iter().map(|record| record.name.num_labels()).max()?;
    found.retain(|record| record.name.num_labels() == deepest);
    let mut targets: Vec<_> = found.iter().map(|record| rdata_name(record)).collect();
    targets.sort();
    targets.dedup();
    // Several DNAMEs at one owner are left out of these tests.
    let [target] = &targets[..] else { return None };
    let kept = usize::from(name.num_labels()) - usize::from(deepest);
    let labels: Vec<&[u8]> = name.iter().take(kept).chain(target.iter()).collect();
    hickory_proto::rr::Name::from_labels(labels).ok()
}

fn rdata_name(record: &Record) -> hickory_proto::rr::Name {
    let RData::Unknown { rdata, .. } = &record.data else { return hickory_proto::rr::Name::root() };
    let mut decoder = hickory_proto::serialize::binary::BinDecoder::new(&rdata.anything);
    hickory_proto::serialize::binary::BinDecodable::read(&mut decoder).unwrap()
}

fn hints(svcb: &hickory_proto::rr::rdata::SVCB) -> impl Iterator<Item = IpAddr> {
    use hickory_proto::rr::rdata::svcb::SvcParamValue::{Ipv4Hint, Ipv6Hint};
    svcb.svc_params.iter().flat_map(|(_, value)| -> Vec<IpAddr> {
        match value {
            Ipv4Hint(hint) => hint.0.iter().map(|a| a.0.into()).collect(),
            Ipv6Hint(hint) => hint.0.iter().map(|aaaa| aaaa.0.into()).collect(),
            _ => Vec::new(),
        }
    })
}

/// Whether some name has two DNAMEs that differ, which nothing defines.
fn has_two_dnames(sketches: &[Sketch]) -> bool {
    let dnames = || sketches.iter().filter(|sketch| sketch.rtype == rtype::DNAME && sketch.section == ANSWER);
    dnames().any(|one| dnames().any(|other| one.owner == other.owner && one.rdata != other.rdata))
}

fn is_dnssec(rtype: u16) -> bool {
    rtype == rtype::RRSIG
}

/// Everything that must hold for a reply that passed, whatever its octets.
fn check_walked(walked: &Walked, question: &Question, rules: &Rules) -> Result<(), TestCaseError> {
    let answer = &walked.answer;
    prop_assert!(!walked.facts.chain.contains(&question.name));
    prop_assert!(walked.facts.addresses.is_sorted_by(|a, b| a.addr < b.addr));
    prop_assert!(walked.facts.addresses.iter().all(|sighted| sighted.ttl_secs <= rules.max_ttl.max(rules.min_ttl)));
    prop_assert!(answer.edes().len() <= 3 && answer.edes().iter().all(|ede| ede.text.len() <= 64));
    if answer.rcode() > 15 {
        return Ok(());
    }
    // Kept octets are a reply in themselves, and walking them again changes nothing; but the upper bits of an rcode
    // stand outside of them.
    let again = walk(answer.bytes(), question, &PLAIN_MAX);
    let Ok(again) = again else { return Err(TestCaseError::fail(format!("{again:?}"))) };
    prop_assert_eq!(again.answer.bytes(), answer.bytes());
    prop_assert_eq!(&again.facts, &walked.facts);
    let (read, kept) = (again.answer.kept(), answer.kept());
    prop_assert_eq!((read.authority_at(), read.additional_at()), (kept.authority_at(), kept.additional_at()));
    // Cut where a section starts, and without the counts of what went, it is a whole message.
    for (end, uncounted) in [(kept.authority_at(), 8..12), (kept.additional_at(), 10..12), (answer.bytes().len(), 0..0)]
    {
        let mut cut = answer.bytes()[..end].to_vec();
        cut[uncounted].fill(0);
        let walked = walk(&cut, question, &PLAIN_MAX);
        prop_assert_eq!(walked.map(|walked| walked.answer.bytes().len()).ok(), Some(end));
    }
    prop_assert_eq!(read.ttl_offsets().collect::<Vec<_>>(), kept.ttl_offsets().collect::<Vec<_>>());
    prop_assert_eq!(again.answer.kind(), answer.kind());
    if !walked.truncated {
        prop_assert_eq!(again.answer.lifetime_secs(), answer.lifetime_secs());
    }
    Ok(())
}

/// Rules that change nothing.
const PLAIN_MAX: Rules = Rules { min_ttl: 0, max_ttl: u32::MAX, negative_max_ttl: u32::MAX, trust_ad: true };

/// Finishes an answer for clients of many kinds; every reply must parse and hold to its limit.
fn check_finish(walked: &Walked, query: &Draft, given: &Given<'_>, limit: usize) -> Result<(), TestCaseError> {
    let packet = query.build();
    let Seen::Question(view) = see(&packet, Transport::Tcp) else { return Ok(()) };
    let mut out = Vec::new();
    let fit = finish(walked.answer.kept(), &view, given, limit, &mut out);
    let bare = 12 + view.question_bytes().len() + if view.edns().is_some() { 11 } else { 0 };
    prop_assert!(out.len() <= limit.max(bare));
    prop_assert_eq!(&out[12..12 + view.question_bytes().len()], view.question_bytes());
    let counted = walk(&out, &view.question(), &PLAIN_MAX);
    prop_assert!(counted.is_ok(), "{:?}", counted);
    if let Ok(counted) = counted {
        prop_assert_eq!(counted.truncated, fit == super::Fit::Truncated);
        let told =
            |facts: &Facts| facts.addresses.iter().map(|sighted| (sighted.addr, sighted.ttl_secs)).collect::<Vec<_>>();
        if fit != super::Fit::Truncated {
            let cap = given.ttl_cap.unwrap_or(u32::MAX);
            let aged: Vec<_> = told(&walked.facts)
                .into_iter()
                .map(|(addr, ttl)| (addr, ttl.saturating_sub(given.age_secs).min(cap)))
                .collect();
            // The heart of the matter: what a client is told never outlives what was learned.
            prop_assert_eq!(told(&counted.facts), aged);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_octets_are_seen_and_answered_without_panic(packet in vec(any::<u8>(), 0..200), is_query in any::<bool>()) {
        let mut packet = packet;
        if let (true, Some(flags)) = (is_query, packet.get_mut(2..6)) {
            flags.copy_from_slice(&[1, 0, 0, 1]);
        }
        for transport in [Transport::Udp, Transport::Tcp] {
            let mut out = Vec::new();
            match see(&packet, transport) {
                Seen::Question(view) => view.refuse(23).with_ede(Ede::new(0, "x")).write(&mut out),
                Seen::Refuse(refusal) => refusal.write(&mut out),
                Seen::Silence => continue,
            }
            prop_assert!(out.len() <= 512);
            prop_assert!(Message::from_vec(&out).is_ok());
        }
    }

    #[test]
    fn spoilt_queries_are_seen_without_panic(
        name in any_name(),
        options in vec((any::<u16>(), vec(any::<u8>(), 0..20)), 0..4),
        spoils in vec((any::<Index>(), any::<u8>()), 0..4),
    ) {
        let options: Vec<_> = options.iter().map(|(code, value)| (*code, &value[..])).collect();
        let mut packet = Draft::query(name, rtype::A).opt(1232, true, &options).build();
        for (at, octet) in spoils {
            let at = at.index(packet.len());
            packet[at] = octet;
        }
        match see(&packet, Transport::Udp) {
            Seen::Question(view) => {
                prop_assert_eq!(view.question().name, Name::from_wire(view.qname()).unwrap());
                prop_assert!((512..=1232).contains(&limit(&view, Transport::Udp)));
                // Another parser is stricter with what stands behind, but reads the same question.
                if let Ok(message) = Message::from_vec(&packet) {
                    prop_assert_eq!(message.queries.len(), 1);
                    prop_assert_eq!(u16::from(message.queries[0].query_type()), view.qtype());
                }
            }
            Seen::Refuse(refusal) => {
                let mut out = Vec::new();
                refusal.write(&mut out);
                prop_assert!(Message::from_vec(&out).is_ok());
            }
            Seen::Silence => {}
        }
    }

    #[test]
    fn any_octets_are_walked_without_panic(octets in vec(any::<u8>(), 0..300), question_first in any::<bool>()) {
        let reply = if question_first {
            let mut reply = Draft::reply("x", rtype::A).raw(&octets).build();
            reply[7] = octets.first().copied().unwrap_or_default() % 4;
            reply[11] = octets.last().copied().unwrap_or_default() % 4;
            reply
        } else {
            octets
        };
        let question = asks("x", rtype::A);
        if let Ok(walked) = walk(&reply, &question, &PLAIN) {
            check_walked(&walked, &question, &PLAIN)?;
        }
    }

    #[test]
    fn sound_replies_mean_the_same_to_an_independent_parser((question, draft, sketches) in any_reply(), min_ttl in 0..3u32) {
        let rules = Rules { min_ttl, max_ttl: 300, negative_max_ttl: 200, trust_ad: true };
        let sent = draft.build();
        let walked = match walk(&sent, &question, &rules) {
            Err(super::WalkError::Loop) => return Ok(()),
            other => other.map_err(|error| TestCaseError::fail(error.to_string()))?,
        };
        check_walked(&walked, &question, &rules)?;
        let (was, is) = (Message::from_vec(&sent).unwrap(), Message::from_vec(walked.answer.bytes()).unwrap());
        let sections = |message: &Message| {
            [message.answers.clone(), message.authorities.clone(), message.additionals.clone()]
        };
        let lowest = is.all_sections().map(|record| record.ttl).min();
        let strips = |at: usize, record: &Record| {
            let rtype = u16::from(record.record_type());
            let is_asked = rtype == question.qtype || (question.qtype == rtype::ANY && at == 0);
            is_dnssec(rtype) && !question.dnssec_ok && !is_asked
        };
        for (at, (was, is)) in sections(&was).into_iter().zip(sections(&is)).enumerate() {
            let expected: Vec<_> = was.into_iter().filter(|record| !strips(at, record)).collect();
            prop_assert_eq!(expected.len(), is.len());
            for (expected, found) in expected.iter().zip(&is) {
                prop_assert_eq!(&expected.name, &found.name);
                prop_assert_eq!(&expected.data, &found.data);
                prop_assert!(found.ttl <= 300);
                // One RRset, one TTL.
                let twin = is.iter().find(|other| other.name == found.name && other.record_type() == found.record_type());
                prop_assert_eq!(twin.map(|twin| twin.ttl), Some(found.ttl));
            }
        }
        if let Some(lifetime) = walked.answer.lifetime_secs() {
            prop_assert_eq!(Some(lifetime), lowest);
        }
        prop_assert_eq!(walked.answer.edes(), &[Ede::new(22, "text")]);
        if !has_two_dnames(&sketches) && walked.facts.all_addresses {
            let learned: BTreeSet<_> = walked.facts.addresses.iter().map(|sighted| (sighted.addr, sighted.ttl_secs)).collect();
            prop_assert_eq!(learned, addresses_read_by_a_client(&is));
        }
    }

    #[test]
    fn spoilt_replies_pass_whole_or_not_at_all((question, draft, _) in any_reply(), spoils in vec((any::<Index>(), any::<u8>()), 1..4)) {
        let mut sent = draft.build();
        for (at, octet) in spoils {
            let at = at.index(sent.len());
            sent[at] = octet;
        }
        if let Ok(walked) = walk(&sent, &question, &PLAIN) {
            check_walked(&walked, &question, &PLAIN)?;
        }
    }

    #[test]
    fn replies_to_clients_hold_to_their_limit_and_to_what_was_learned(
        (question, draft, _) in any_reply(),
        age_secs in 0..500u32,
        ttl_cap in prop::option::of(0..40u32),
        limit in 0..600usize,
        has_opt in any::<bool>(),
        spoils in vec((any::<Index>(), any::<u8>()), 0..3),
    ) {
        let mut sent = draft.build();
        for (at, octet) in spoils {
            let at = at.index(sent.len());
            sent[at] = octet;
        }
        let Ok(walked) = walk(&sent, &question, &PLAIN) else { return Ok(()) };
        let tag = TagOption::new(65_313, true, &TagText { app: "zoom", trigger: "zoom.us", also: &[] });
        let given = Given { age_secs, ttl_cap, tag: Some(&tag) };
        let query = Draft::query(&question.name.to_string().to_uppercase(), question.qtype).flags(0x0020, 0);
        let query = if has_opt { query.opt(1232, question.dnssec_ok, &[]) } else { query };
        if has_opt || !question.dnssec_ok {
            check_finish(&walked, &query, &given, limit)?;
            check_finish(&walked, &query, &given, 65_535)?;
        }
        prop_assert!(walked.answer.kind() != Kind::Failure || walked.answer.lifetime_secs().is_none());
    }
}
