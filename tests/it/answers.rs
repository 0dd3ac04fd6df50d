//! What clients get: the upstream's answer unchanged but for what a forwarder owes each side.

use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

use crate::harness::{Greenlane, Setup, addresses, option, question, question_without_edns, tag};
use crate::upstream::{A, AAAA, Act, Asked, SOA, TXT, Upstream, record, wire_name};

const EDE: u16 = 15;

async fn with(script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> (Upstream, Greenlane) {
    let upstream = Upstream::start(script).await;
    let greenlane = Setup::new(upstream.addr).start().await;
    (upstream, greenlane)
}

fn soa(ttl: u32, minimum: u32) -> Vec<u8> {
    let mut rdata = wire_name("ns.example");
    rdata.extend(wire_name("host.example"));
    for number in [1, 2, 3, 4, minimum] {
        rdata.extend(number.to_be_bytes());
    }
    record(&wire_name("example"), SOA, ttl, &rdata)
}

#[tokio::test]
async fn an_unknown_type_and_every_section_pass_unchanged() {
    let (_upstream, greenlane) = with(|asked| {
        asked
            .reply()
            .answer(&record(&[0xc0, 12], 65_280, 300, b"\x01\x02\xff"))
            .authority(&record(&wire_name("example"), 2, 400, &wire_name("ns.example")))
            .additional(&record(&wire_name("ns.example"), A, 500, &[192, 0, 2, 53]))
            .act()
    })
    .await;
    let query = question("odd.example", RecordType::Unknown(65_280)).to_vec().unwrap();
    let reply = greenlane.udp(&query).await.unwrap();
    let message = Message::from_vec(&reply).unwrap();
    assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    assert_eq!(message.answers.len(), 1);
    assert_eq!(message.authorities.len(), 1);
    assert_eq!(message.additionals.len(), 1);
    assert!(reply.windows(5).any(|five| five == b"\x00\x03\x01\x02\xff"), "RDATA of an unknown type (RFC 3597)");
}

#[tokio::test]
async fn each_client_gets_its_own_id_letters_and_opt() {
    let (upstream, greenlane) = with(|asked| asked.a([192, 0, 2, 1])).await;
    for name in ["MiXeD.ExAmPlE", "mixed.example", "MIXED.EXAMPLE"] {
        let query = question(name, RecordType::A);
        let octets = query.to_vec().unwrap();
        let reply = greenlane.udp(&octets).await.unwrap();
        assert_eq!(reply[..2], octets[..2], "{name}");
        assert_eq!(reply[12..12 + name.len() + 2], octets[12..12 + name.len() + 2], "{name}");
    }
    assert_eq!(upstream.count(), 1, "letters make no difference to the cache");
    let old = question_without_edns("mixed.example", RecordType::A).to_vec().unwrap();
    let reply = Message::from_vec(&greenlane.udp(&old).await.unwrap()).unwrap();
    assert!(reply.edns.is_none(), "no OPT to a client that sent none (RFC 6891 §6.1.1)");
}

#[tokio::test]
async fn an_opt_is_answered_although_the_upstream_sent_none() {
    let (_upstream, greenlane) = with(|asked| asked.reply().without_opt().answer(&a_record(60)).act()).await;
    let reply = greenlane.ask("plain.example", RecordType::A).await;
    assert_eq!(reply.edns.as_ref().map(|edns| edns.max_payload()), Some(1232));
}

fn a_record(ttl: u32) -> Vec<u8> {
    record(&[0xc0, 12], A, ttl, &[192, 0, 2, 1])
}

#[tokio::test]
async fn only_the_question_goes_upstream() {
    let (upstream, greenlane) = with(|asked| asked.a([192, 0, 2, 1])).await;
    let mut query = question("private.example", RecordType::A);
    let edns = query.edns.as_mut().unwrap();
    use hickory_proto::rr::rdata::opt::EdnsOption;
    for (code, value) in [(10, vec![1; 8]), (8, vec![0, 1, 24, 0, 192, 0, 2]), (3, vec![]), (65_001, vec![7; 4])] {
        edns.options_mut().insert(EdnsOption::Unknown(code, value));
    }
    let reply = Message::from_vec(&greenlane.udp(&query.to_vec().unwrap()).await.unwrap()).unwrap();
    assert!(reply.edns.unwrap().options().as_ref().is_empty(), "unknown options are not echoed");
    let asked = &upstream.log()[0];
    assert_eq!(asked.rest().len(), 11, "our own OPT, without options");
    assert_ne!(asked.id(), query.metadata.id, "an id of our own");
}

#[tokio::test]
async fn options_of_an_upstream_are_dropped_but_ede() {
    let (_upstream, greenlane) = with(|asked| {
        asked
            .reply()
            .answer(&a_record(60))
            .option(65_313, b"app=faked;match=faked")
            .option(10, &[1; 16])
            .ede(3, "stale")
            .ede(0, "bypass faked")
            .act()
    })
    .await;
    for _ in 0..2 {
        let reply = greenlane.ask("lies.example", RecordType::A).await;
        assert_eq!(tag(&reply), None, "an upstream must not fake our tag");
        assert_eq!(option(&reply, 10), None);
        let octets = reply.to_vec().unwrap();
        assert!(octets.windows(5).any(|five| five == b"stale"), "EDE passes, from the cache, too");
        assert!(!octets.windows(5).any(|five| five == b"faked"), "an EDE of code 0 loses its text");
    }
}

#[tokio::test]
async fn nxdomain_and_nodata_pass_with_the_negative_ttl() {
    let (upstream, greenlane) = with(|asked| match asked.name().as_str() {
        "none.example" => asked.reply().rcode(3).authority(&soa(900, 30)).act(),
        "void.example" => asked.reply().authority(&soa(20, 900)).act(),
        _ => asked.reply().rcode(3).authority(&soa(900, 0)).act(),
    })
    .await;
    let none = greenlane.ask("none.example", RecordType::A).await;
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(none.authorities[0].ttl, 30, "the lower of SOA TTL and MINIMUM (RFC 2308 §5)");
    let void = greenlane.ask("void.example", RecordType::AAAA).await;
    assert_eq!(void.metadata.response_code, ResponseCode::NoError);
    assert_eq!(void.authorities[0].ttl, 20);
    greenlane.ask("none.example", RecordType::A).await;
    greenlane.ask("void.example", RecordType::AAAA).await;
    assert_eq!(upstream.count(), 2, "both are cached");
    greenlane.ask("brief.example", RecordType::A).await;
    greenlane.ask("brief.example", RecordType::A).await;
    assert_eq!(upstream.count(), 4, "MINIMUM 0 is not");
}

#[tokio::test]
async fn the_header_is_ours() {
    let (_upstream, greenlane) = with(|asked| {
        let mut reply = asked.reply().answer(&a_record(60)).authentic();
        // AA and Z as well.
        reply.flags |= 0x0440;
        reply.act()
    })
    .await;
    let mut query = question("header.example", RecordType::A).to_vec().unwrap();
    let flags = |reply: &[u8]| u16::from_be_bytes([reply[2], reply[3]]);
    let plain = greenlane.udp(&query).await.unwrap();
    assert_eq!(flags(&plain), 0x8180, "QR, RD, RA; no AD for a client that set neither AD nor DO");
    query[3] |= 0x20;
    let aware = greenlane.udp(&query).await.unwrap();
    assert_eq!(flags(&aware), 0x81a0, "AD of an upstream on loopback, for a client that set AD (RFC 6840 §5.7)");
}

#[tokio::test]
async fn do_and_cd_have_answers_of_their_own() {
    let (upstream, greenlane) = with(|asked| asked.a([192, 0, 2, if asked.cd() { 9 } else { 1 }])).await;
    let mut query = question("signed.example", RecordType::A);
    let plain = greenlane.ask("signed.example", RecordType::A).await;
    query.metadata.checking_disabled = true;
    let cd = Message::from_vec(&greenlane.udp(&query.to_vec().unwrap()).await.unwrap()).unwrap();
    assert_eq!((addresses(&plain), addresses(&cd)), (vec!["192.0.2.1".into()], vec!["192.0.2.9".into()]));
    assert!(cd.metadata.checking_disabled);
    query.metadata.checking_disabled = false;
    let mut octets = query.to_vec().unwrap();
    let len = octets.len();
    // The DO bit: the third octet from the end of an OPT without options is the high one of the flags.
    octets[len - 4] |= 0x80;
    let reply = Message::from_vec(&greenlane.udp(&octets).await.unwrap()).unwrap();
    assert!(reply.edns.unwrap().flags().dnssec_ok, "DO is echoed (RFC 3225)");
    assert_eq!(upstream.count(), 3);
    assert!(upstream.log()[2].dnssec_ok());
}

#[tokio::test]
async fn ttls_count_down_and_an_rrset_has_one() {
    let (_upstream, greenlane) = with(|asked| {
        asked
            .reply()
            .answer(&record(&[0xc0, 12], A, 100, &[192, 0, 2, 1]))
            .answer(&record(&[0xc0, 12], A, 50, &[192, 0, 2, 2]))
            .answer(&record(&[0xc0, 12], A, 0x8000_0000 | 70, &[192, 0, 2, 3]))
            .act()
    })
    .await;
    let reply = greenlane.ask("zero.example", RecordType::A).await;
    assert!(reply.answers.iter().all(|record| record.ttl == 0), "top bit set is 0, and the lowest of the RRset");
    let (_upstream, greenlane) = with(|asked| {
        asked
            .reply()
            .answer(&record(&[0xc0, 12], A, 100, &[192, 0, 2, 1]))
            .answer(&record(&[0xc0, 12], A, 50, &[192, 0, 2, 2]))
            .act()
    })
    .await;
    let first = greenlane.ask("down.example", RecordType::A).await;
    assert!(first.answers.iter().all(|record| record.ttl == 50));
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let later = greenlane.ask("down.example", RecordType::A).await;
    assert!(later.answers.iter().all(|record| (46..=48).contains(&record.ttl)), "{:?}", later.answers);
}

#[tokio::test]
async fn equal_questions_share_one_exchange() {
    let (upstream, greenlane) = with(|asked| asked.a([192, 0, 2, 1]).after(Duration::from_millis(300))).await;
    let asked = (0..50).map(|_| greenlane.ask("shared.example", RecordType::A));
    let replies = futures_util::future::join_all(asked).await;
    assert!(replies.iter().all(|reply| addresses(reply) == ["192.0.2.1"]));
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn answers_without_a_lifetime_are_shared_but_not_kept() {
    let (upstream, greenlane) =
        with(|asked| asked.reply().answer(&a_record(0)).act().after(Duration::from_millis(200))).await;
    let asked = (0..10).map(|_| greenlane.ask("now.example", RecordType::A));
    futures_util::future::join_all(asked).await;
    assert_eq!(upstream.count(), 1);
    greenlane.ask("now.example", RecordType::A).await;
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn servfail_is_kept_briefly() {
    let (upstream, greenlane) = with(|asked| asked.fail(2)).await;
    let first = greenlane.ask("broken.example", RecordType::A).await;
    assert_eq!(first.metadata.response_code, ResponseCode::ServFail);
    let count = upstream.count();
    greenlane.ask("broken.example", RecordType::A).await;
    assert_eq!(upstream.count(), count, "at least a second (RFC 9520 §3.2)");
    tokio::time::sleep(Duration::from_millis(5100)).await;
    greenlane.ask("broken.example", RecordType::A).await;
    assert!(upstream.count() > count, "at most a few");
}

#[tokio::test]
async fn silence_upstream_is_servfail_with_its_reason() {
    let upstream = Upstream::start(|_| Act::Drop).await;
    let greenlane = Setup::new(upstream.addr).with("forward", "timeout = \"1s\"").start().await;
    let reply = greenlane.ask("silent.example", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    let ede = option(&reply, EDE).expect("an extended error");
    assert!(ede.contains("22") || ede.contains("NoReachableAuthority") || ede.starts_with("\0\u{16}"), "{ede:?}");
    assert!(upstream.count() > 1, "a lost packet is sent again by us");
}

#[tokio::test]
async fn a_large_answer_is_fetched_over_tcp_and_cut_for_udp_clients_only() {
    let (upstream, greenlane) = with(|asked| {
        let many =
            (0..100u8).fold(asked.reply(), |reply, i| reply.answer(&record(&[0xc0, 12], A, 300, &[192, 0, 2, i])));
        match asked.via {
            crate::upstream::Via::Udp => asked.reply().truncated().act(),
            _ => many.act(),
        }
    })
    .await;
    let query = question("large.example", RecordType::A).to_vec().unwrap();
    let cut = greenlane.udp(&query).await.unwrap();
    let message = Message::from_vec(&cut).unwrap();
    assert!(message.metadata.truncation && message.answers.is_empty() && message.edns.is_some());
    assert!(cut.len() <= 1232);
    let whole = greenlane.ask_tcp("large.example", RecordType::A).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 100);
    assert_eq!(upstream.log().iter().filter(|asked| asked.via == crate::upstream::Via::Tcp).count(), 1);
}

#[tokio::test]
async fn a_client_without_edns_gets_512_octets() {
    let (_upstream, greenlane) = with(|asked| {
        (0..40u8).fold(asked.reply(), |reply, i| reply.answer(&record(&[0xc0, 12], A, 300, &[192, 0, 2, i]))).act()
    })
    .await;
    let old = question_without_edns("forty.example", RecordType::A).to_vec().unwrap();
    let reply = greenlane.udp(&old).await.unwrap();
    let message = Message::from_vec(&reply).unwrap();
    assert!(reply.len() <= 512 && message.metadata.truncation);
    let new = greenlane.ask("forty.example", RecordType::A).await;
    assert_eq!(new.answers.len(), 40);
}

#[tokio::test]
async fn what_is_no_question_is_answered_at_home() {
    let (upstream, greenlane) = with(|asked| asked.a([192, 0, 2, 1])).await;
    let good = question("home.example", RecordType::A).to_vec().unwrap();
    let rcode = |reply: &[u8]| reply[3] & 0x0f;
    let change = |at: usize, octet: u8| {
        let mut octets = good.clone();
        octets[at] = octet;
        octets
    };
    // Opcode STATUS; QDCOUNT 2; class CH.
    assert_eq!(rcode(&greenlane.udp(&change(2, 0x11)).await.unwrap()), 4, "NOTIMP");
    assert_eq!(rcode(&greenlane.udp(&change(5, 2)).await.unwrap()), 1, "FORMERR");
    let class_at = 12 + "home.example".len() + 2 + 2 + 1;
    assert_eq!(rcode(&greenlane.udp(&change(class_at, 3)).await.unwrap()), 5, "REFUSED");
    let mut rest = good.clone();
    rest.push(0);
    assert_eq!(rcode(&greenlane.udp(&rest).await.unwrap()), 1, "FORMERR");
    let axfr = question("home.example", RecordType::AXFR).to_vec().unwrap();
    assert_eq!(rcode(&greenlane.udp(&axfr).await.unwrap()), 5, "REFUSED");
    let any = greenlane.ask("home.example", RecordType::ANY).await;
    assert_eq!(any.answers.len(), 1, "minimal (RFC 8482)");
    // EDNS version 1: BADVERS is 16, its upper octet stands in the OPT.
    let mut versed = good.clone();
    let version_at = versed.len() - 5;
    versed[version_at] = 1;
    let badvers = Message::from_vec(&greenlane.udp(&versed).await.unwrap()).unwrap();
    assert_eq!(u16::from(badvers.metadata.response_code), 16, "BADVERS");
    for silent in [change(2, 0x81), good[..11].to_vec()] {
        assert_eq!(greenlane.udp_within(&silent, Duration::from_millis(400)).await, None);
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn special_names_never_leave_the_house() {
    let (upstream, greenlane) = with(|asked| asked.a([192, 0, 2, 1])).await;
    let localhost = greenlane.ask("localhost", RecordType::A).await;
    assert_eq!(addresses(&localhost), ["127.0.0.1"]);
    for name in ["printer.local", "x.invalid", "a.test", "b.onion", "c.home.arpa", "1.1.168.192.in-addr.arpa"] {
        let reply = greenlane.ask(name, RecordType::PTR).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_route_sends_its_zone_elsewhere() {
    let general = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let corp = Upstream::start(|asked| asked.a([192, 0, 2, 2])).await;
    let route = format!("zone = \"corp.home.arpa\"\nupstreams = [\"udp://{}\"]", corp.addr);
    let greenlane = Setup::new(general.addr).with("[forward.route]", &route).start().await;
    assert_eq!(addresses(&greenlane.ask("a.corp.home.arpa", RecordType::A).await), ["192.0.2.2"]);
    assert_eq!(addresses(&greenlane.ask("a.example", RecordType::A).await), ["192.0.2.1"]);
    assert_eq!((general.count(), corp.count()), (1, 1));
}

#[tokio::test]
async fn who_may_not_ask_is_refused() {
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let greenlane = Setup::new(upstream.addr).with("clients", "allow = [\"192.0.2.0/24\"]").start().await;
    for reply in [greenlane.ask("a.example", RecordType::A).await, greenlane.ask_tcp("a.example", RecordType::A).await]
    {
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_tag_is_for_listed_names_and_for_clients_with_edns() {
    let (_upstream, greenlane) = with(|asked| match asked.qtype() {
        TXT => asked.reply().answer(&record(&[0xc0, 12], TXT, 60, b"\x02hi")).act(),
        AAAA => asked.reply().authority(&soa(60, 60)).act(),
        _ => asked.a([192, 0, 2, 1]),
    })
    .await;
    for rtype in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
        for round in ["miss", "hit"] {
            let reply = greenlane.ask("a.listed.example", rtype).await;
            assert_eq!(tag(&reply).as_deref(), Some("app=demo;match=listed.example"), "{rtype} {round}");
            let octets = reply.to_vec().unwrap();
            let text = b"bypass demo (listed.example)";
            assert!(octets.windows(text.len()).any(|part| part == text), "{rtype} {round}: EDE");
        }
    }
    assert_eq!(tag(&greenlane.ask("other.example", RecordType::A).await), None);
    let old = question_without_edns("a.listed.example", RecordType::A).to_vec().unwrap();
    assert!(Message::from_vec(&greenlane.udp(&old).await.unwrap()).unwrap().edns.is_none());
}

#[tokio::test]
async fn the_tag_can_be_turned_off() {
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let greenlane = Setup::new(upstream.addr).with("tag", "edns-option = 0\nextended-error = false").start().await;
    let reply = greenlane.ask("a.listed.example", RecordType::A).await;
    assert!(reply.edns.unwrap().options().as_ref().is_empty());
    assert_eq!(greenlane.prefixes("").await, ["192.0.2.1/32"], "and yet it is learned");
}

#[tokio::test]
async fn a_dead_first_upstream_costs_one_short_try() {
    let dead = Upstream::start(|_| Act::Drop).await;
    let alive = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    for strategy in ["ordered", "fastest"] {
        let lines = format!(
            "upstreams = [\"udp://{}\", \"udp://{}\"]\nstrategy = \"{strategy}\"\ntimeout = \"8s\"",
            dead.addr, alive.addr
        );
        let greenlane = Setup::new(alive.addr).only("forward", &lines).start().await;
        let reply = tokio::time::timeout(Duration::from_secs(4), greenlane.ask("a.example", RecordType::A)).await;
        assert_eq!(addresses(&reply.expect("well before the time-out")), ["192.0.2.1"], "{strategy}");
    }
}

#[tokio::test]
async fn wrong_replies_are_dropped_and_the_wait_goes_on() {
    let (_upstream, greenlane) = with(|asked| {
        let lie = |reply: crate::upstream::Reply| reply.answer(&record(&[0xc0, 12], A, 60, &[203, 0, 113, 66])).act();
        let mut elsewhere = wire_name("elsewhere.example");
        elsewhere.extend([0, 1, 0, 1]);
        lie(asked.reply().id(asked.id().wrapping_add(1)))
            .then(lie(asked.reply().question(&elsewhere)))
            .then(Act::SendFromElsewhere(asked.reply().answer(&a_record(60)).octets()))
            .then(Act::Send(b"garbage".to_vec()))
            .then(asked.a([192, 0, 2, 1]))
    })
    .await;
    let reply = greenlane.ask("spoofed.example", RecordType::A).await;
    assert_eq!(addresses(&reply), ["192.0.2.1"]);
}

#[tokio::test]
async fn who_may_not_ask_gets_no_minimal_answer_either() {
    // ANY over UDP is answered before it is a question, so the door once stood open for it.
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let greenlane = Setup::new(upstream.addr).with("clients", "allow = [\"192.0.2.0/24\"]").start().await;
    let reply = greenlane.ask("a.example", RecordType::ANY).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert!(reply.answers.is_empty());
}
