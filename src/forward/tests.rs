//! Tests of asking, against scripted upstreams on loopback. Bounds on time are generous: two cores, many tests.

mod encrypted;
mod letters;
#[path = "../../tests/it/upstream.rs"]
pub(crate) mod scripted;
mod udp;

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;

use self::scripted::{A, AAAA, Act, Asked, CNAME, HTTPS, TXT, Via, record, wire_name};
use super::*;
use crate::clock::Timestamp;
use crate::wire::rcode;

const RULES: Rules = Rules { min_ttl: 0, max_ttl: 86_400, negative_max_ttl: 3600, trust_ad: false };

/// What a lost packet or a dead upstream may cost: one patience, and slack for a busy machine.
const ONE_SHORT_TRY: Duration = Duration::from_millis(1900);

/// Below the patience with an upstream that was never measured: no try was waited out.
const AT_ONCE: Duration = Duration::from_millis(390);

fn udp(upstream: &scripted::Upstream) -> Upstream {
    Upstream { protocol: Protocol::Udp, addr: upstream.addr, tls_name: None, path: None }
}

fn tcp(upstream: &scripted::Upstream) -> Upstream {
    Upstream { protocol: Protocol::Tcp, addr: upstream.addr, tls_name: None, path: None }
}

fn tls(upstream: &scripted::Upstream, name: Option<&str>) -> Upstream {
    Upstream {
        protocol: Protocol::Tls,
        addr: upstream.tls_addr.unwrap(),
        tls_name: name.map(str::to_owned),
        path: None,
    }
}

fn options(upstreams: Vec<Upstream>) -> Options {
    Options {
        upstreams,
        strategy: Strategy::Ordered,
        timeout: Duration::from_secs(8),
        trust_ad: TrustAd::Auto,
        case_randomization: false,
        routes: Vec::new(),
    }
}

fn clock() -> Clock {
    Clock::manual(Timestamp::from_secs(1_700_000_000))
}

fn forward_with(options: Options, clock: Clock) -> Forward {
    Forward::with_roots(options, RULES, clock, &Registry::new(), Vec::new()).unwrap()
}

fn forward(upstreams: Vec<Upstream>) -> Forward {
    forward_with(options(upstreams), clock())
}

fn question(name: &str, qtype: u16) -> Question {
    Question { name: Name::parse(name).unwrap(), qtype, qclass: 1, dnssec_ok: false, checking_disabled: false }
}

/// Returns the address in an answer's first A record.
fn first_a(walked: &Walked) -> [u8; 4] {
    match walked.facts.addresses.first().map(|sighted| sighted.addr) {
        Some(IpAddr::V4(addr)) => addr.octets(),
        other => panic!("no address in {other:?}"),
    }
}

async fn timed<T>(asking: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    let got = asking.await;
    (got, begun.elapsed())
}

/// A script that answers everything with one address.
fn answers(addr: [u8; 4]) -> impl Fn(&Asked) -> Act + Send + Sync + 'static {
    move |asked| asked.a(addr)
}

fn loses(_: &Asked) -> Act {
    Act::Drop
}

// What goes upstream.

#[tokio::test]
async fn query_carries_the_question_and_an_opt_of_ours_only() {
    let upstream = scripted::Upstream::start(answers([192, 0, 2, 1])).await;
    let forward = forward(vec![udp(&upstream)]);
    let mut asked = question("Www.Example.com", A);
    asked.dnssec_ok = true;
    asked.checking_disabled = true;
    forward.ask(&asked).await.unwrap();
    let seen = &upstream.log()[0];
    assert!(seen.rd() && seen.cd() && seen.ad() && seen.dnssec_ok());
    assert_eq!(seen.octets[2] & 0xfe, 0, "QR, opcode, AA and TC are zero");
    assert_eq!(seen.question(), b"\x03www\x07example\x03com\x00\x00\x01\x00\x01");
    assert_eq!(seen.rest(), b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00");

    forward.ask(&question("www.example.com", AAAA)).await.unwrap();
    let seen = &upstream.log()[1];
    assert!(!seen.cd() && !seen.dnssec_ok());
}

#[tokio::test]
async fn name_of_odd_octets_goes_upstream_as_it_is() {
    let upstream = scripted::Upstream::start(|asked| asked.fail(rcode::NXDOMAIN)).await;
    for ask in [udp(&upstream), tcp(&upstream)] {
        let name = Name::from_wire(b"\x06\x00\xff. \\\x07\x04_tcp\x00").unwrap();
        let asked = Question { name: name.clone(), ..question(".", 65_280) };
        let walked = forward(vec![ask]).ask(&asked).await.unwrap();
        assert_eq!(walked.answer.rcode(), rcode::NXDOMAIN);
    }
    let name = Name::from_wire(b"\x06\x00\xff. \\\x07\x04_tcp\x00").unwrap();
    assert!(upstream.log().iter().all(|asked| asked.qname() == name.as_wire() && asked.qtype() == 65_280));
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn each_try_has_an_id_and_a_port_of_its_own() {
    let upstream = scripted::Upstream::start(loses).await;
    let mut options = options(vec![udp(&upstream)]);
    options.timeout = Duration::from_millis(1500);
    let failure = forward_with(options, clock()).ask(&question("a.example", A)).await.unwrap_err();
    assert_eq!(failure, Failure::TimedOut);
    assert_eq!(failure.ede().code, 22);
    let log = upstream.log();
    assert!(log.len() >= 2, "{} tries", log.len());
    assert_ne!(log[0].from.port(), log[1].from.port());
    assert_ne!(log[0].id(), log[1].id());
}

#[tokio::test]
async fn ad_is_asked_for_and_passed_from_trusted_upstreams_only() {
    let upstream = scripted::Upstream::start(|asked| {
        asked.reply().authentic().answer(&record(&[0xc0, 12], A, 300, &[192, 0, 2, 1])).act()
    })
    .await;
    for (trust_ad, is_passed) in [(TrustAd::Auto, true), (TrustAd::Always, true), (TrustAd::Never, false)] {
        let options = Options { trust_ad, ..options(vec![udp(&upstream)]) };
        let walked = forward_with(options, clock()).ask(&question("a.example", A)).await.unwrap();
        assert_eq!(walked.answer.bytes()[3] & 0x20 != 0, is_passed, "{trust_ad:?}");
        assert_eq!(upstream.log().last().unwrap().ad(), is_passed, "{trust_ad:?}");
    }
}

// What comes back.

#[tokio::test]
async fn answer_comes_back_unchanged_over_every_transport() {
    // Records of no octets, odd options, unknown types and parameters, authority, additional, EDE: parsers refuse or
    // lose each of these.
    let empty = record(&[0xc0, 12], 42, 60, &[]);
    let unknown = record(&[0xc0, 12], 65_281, 60, &[1, 2, 3]);
    let svcb = record(&[0xc0, 12], HTTPS, 60, &[0, 1, 0, 0xff, 0x00, 0, 1, 9, 0xff, 0x01, 0, 0]);
    let caa = record(&[0xc0, 12], 257, 60, &[0, 1, b'!', 0xff]);
    let extra = record(&wire_name("ns.example"), A, 60, &[192, 0, 2, 53]);
    let script = {
        let records = [empty.clone(), unknown.clone(), svcb.clone(), caa.clone()];
        let extra = extra.clone();
        move |asked: &Asked| {
            let reply = records.iter().fold(asked.reply(), |reply, record| reply.answer(record));
            reply.authority(&unknown).additional(&extra).option(8, &[0, 9, 1]).ede(17, "filtered").act()
        }
    };
    let upstream = scripted::Upstream::start_tls(&["dns.example"], script).await;
    let roots = vec![upstream.certificate.clone().unwrap()];
    for ask in [udp(&upstream), tcp(&upstream), tls(&upstream, Some("dns.example"))] {
        let forward =
            Forward::with_roots(options(vec![ask.clone()]), RULES, clock(), &Registry::new(), roots.clone()).unwrap();
        let walked = forward.ask(&question("www.example", 65_281)).await.unwrap();
        let bytes = walked.answer.bytes();
        assert_eq!(bytes[4..12], [0, 1, 0, 4, 0, 1, 0, 1], "{ask}");
        for part in [&empty, &svcb, &caa, &extra] {
            // The owner may have been rewritten; type, class, TTL and RDATA are as they were.
            let part = &part[part.len().min(if part[0] == 0xc0 { 2 } else { 12 })..];
            assert!(bytes.windows(part.len()).any(|window| window == part), "{ask}: {part:?}");
        }
        assert_eq!(walked.answer.edes().len(), 1);
        assert_eq!((walked.answer.edes()[0].code, &*walked.answer.edes()[0].text), (17, "filtered"));
    }
}

#[tokio::test]
async fn nxdomain_and_nodata_are_final() {
    let first = scripted::Upstream::start(|asked| match &*asked.name() {
        "gone.example" => asked.fail(rcode::NXDOMAIN),
        _ => asked.fail(rcode::NOERROR),
    })
    .await;
    let second = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
    let forward = forward(vec![udp(&first), udp(&second)]);
    assert_eq!(forward.ask(&question("gone.example", A)).await.unwrap().answer.rcode(), rcode::NXDOMAIN);
    let nodata = forward.ask(&question("empty.example", A)).await.unwrap();
    assert_eq!((nodata.answer.rcode(), nodata.facts.addresses.len()), (rcode::NOERROR, 0));
    assert_eq!(second.count(), 0);
}

#[tokio::test]
async fn wrong_replies_are_dropped_and_the_wait_goes_on() {
    let script = |asked: &Asked| {
        let forged = |reply: scripted::Reply| {
            let reply = reply.answer(&record(&wire_name("a.example"), A, 300, &[203, 0, 113, 66]));
            Act::Send(reply.octets())
        };
        let mut query = asked.reply();
        query.flags &= !0x8000;
        let mut bare = asked.reply().question(&[]).without_opt().octets();
        bare[3] = rcode::SERVFAIL as u8;
        Act::Each(vec![
            forged(asked.reply().id(asked.id() ^ 1)),
            forged(asked.reply().question(b"\x01b\x07example\x00\x00\x01\x00\x01")),
            forged(asked.reply().question(b"\x01a\x07example\x00\x00\x1c\x00\x01")),
            forged(asked.reply().question(b"\x01a\x07example\x00\x00\x01\x00\x03")),
            forged(query),
            Act::SendFromElsewhere(asked.reply().answer(&record(&[0xc0, 12], A, 300, &[203, 0, 113, 66])).octets()),
            Act::Send(asked.octets[..2].to_vec()),
            Act::Send(bare),
            // The genuine one, in other letters.
            asked
                .reply()
                .question(b"\x01A\x07eXample\x00\x00\x01\x00\x01")
                .answer(&record(&[0xc0, 12], A, 300, &[192, 0, 2, 1]))
                .act()
                .after(Duration::from_millis(20)),
        ])
    };
    let upstream = scripted::Upstream::start(script).await;
    let registry = Registry::new();
    let forward = Forward::with_roots(options(vec![udp(&upstream)]), RULES, clock(), &registry, Vec::new()).unwrap();
    let (walked, took) = timed(forward.ask_now("a.example")).await;
    assert_eq!(first_a(&walked), [192, 0, 2, 1]);
    assert_eq!(upstream.count(), 1, "within the same try");
    assert!(took < AT_ONCE, "{took:?}");
    // What came from elsewhere was dropped by the system.
    let text = String::from_utf8(registry.render()).unwrap();
    assert!(text.contains(r#"{kind="mismatch",upstream="upstream-1"} 7"#), "{text}");
}

#[tokio::test]
async fn wrong_question_over_tcp_is_dropped_and_the_wait_goes_on() {
    let upstream = scripted::Upstream::start(|asked| {
        let wrong = asked.reply().question(b"\x01b\x07example\x00\x00\x01\x00\x01");
        let wrong = wrong.answer(&record(&[0xc0, 12], A, 300, &[203, 0, 113, 66])).act();
        wrong.then(asked.a([192, 0, 2, 1]).after(Duration::from_millis(30)))
    })
    .await;
    let walked = forward(vec![tcp(&upstream)]).ask(&question("a.example", A)).await.unwrap();
    assert_eq!(first_a(&walked), [192, 0, 2, 1]);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn malformed_replies_are_not_used() {
    let first = scripted::Upstream::start(|asked| match &*asked.name() {
        "short.example" => asked.reply().answer(&record(&[0xc0, 12], A, 300, &[192, 0, 2])).act(),
        "cut.example" => {
            let whole = asked.reply().without_opt().answer(&record(&[0xc0, 12], A, 300, &[203, 0, 113, 66])).octets();
            Act::Send(whole[..whole.len() - 1].to_vec())
        }
        "loop.example" => {
            let other = wire_name("other.example");
            asked
                .reply()
                .answer(&record(&[0xc0, 12], CNAME, 300, &other))
                .answer(&record(&other, CNAME, 300, &[0xc0, 12]))
                .act()
        }
        _ => asked.a([192, 0, 2, 1]),
    })
    .await;
    let second = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
    for make in [udp, tcp] {
        let both = forward(vec![make(&first), make(&second)]);
        let alone = forward(vec![make(&first)]);
        for name in ["short.example", "cut.example", "loop.example"] {
            let (walked, took) = timed(both.ask(&question(name, A))).await;
            assert_eq!(first_a(&walked.unwrap()), [192, 0, 2, 2], "{name}");
            assert!(took < AT_ONCE, "{name}: {took:?}");
            let failure = alone.ask(&question(name, A)).await.unwrap_err();
            assert_eq!((failure, failure.ede().code), (Failure::Malformed, 23), "{name}");
        }
    }
}

#[tokio::test]
async fn malformed_reply_is_asked_for_once_more() {
    let upstream = scripted::Upstream::start(|asked| match asked.before {
        0 => asked.reply().answer(&record(&[0xc0, 12], A, 300, &[192, 0, 2])).act(),
        _ => asked.a([192, 0, 2, 1]),
    })
    .await;
    let walked = forward(vec![udp(&upstream)]).ask(&question("a.example", A)).await.unwrap();
    assert_eq!(first_a(&walked), [192, 0, 2, 1]);
}

// Loss, silence, slowness.

#[tokio::test]
async fn lost_packet_is_made_up_for_within_a_second() {
    let upstream = scripted::Upstream::start(|asked| match asked.before {
        0 => Act::Drop,
        _ => asked.a([192, 0, 2, 1]),
    })
    .await;
    let (walked, took) = timed(forward(vec![udp(&upstream)]).ask(&question("a.example", A))).await;
    assert_eq!(first_a(&walked.unwrap()), [192, 0, 2, 1]);
    assert!(took < ONE_SHORT_TRY, "{took:?}");
}

#[tokio::test]
async fn dead_first_upstream_costs_one_short_try_and_then_nothing() {
    let dead = scripted::Upstream::start(loses).await;
    let alive = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
    let forward = forward(vec![udp(&dead), udp(&alive)]);
    let (walked, took) = timed(forward.ask(&question("a.example", A))).await;
    assert_eq!(first_a(&walked.unwrap()), [192, 0, 2, 2]);
    assert!(took < ONE_SHORT_TRY, "{took:?}");
    assert!(!forward.status()[0].is_up && forward.status()[1].is_up);
    for _ in 0..5 {
        let (walked, took) = timed(forward.ask(&question("b.example", A))).await;
        walked.unwrap();
        assert!(took < AT_ONCE, "{took:?}");
    }
    assert_eq!(dead.count(), 1, "no question goes to it before its pause is over");
}

#[tokio::test]
async fn upstream_that_is_back_is_found_by_a_probe_that_costs_nothing() {
    let is_dead = Arc::new(AtomicUsize::new(1));
    let script = {
        let is_dead = is_dead.clone();
        move |asked: &Asked| if is_dead.load(Ordering::SeqCst) == 1 { Act::Drop } else { asked.a([192, 0, 2, 1]) }
    };
    let first = scripted::Upstream::start(script).await;
    let second = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
    let clock = clock();
    let forward = forward_with(options(vec![udp(&first), udp(&second)]), clock.clone());
    forward.ask(&question("a.example", A)).await.unwrap();
    assert!(!forward.status()[0].is_up);

    clock.advance(Duration::from_millis(1100));
    let (walked, took) = timed(forward.ask(&question("b.example", A))).await;
    walked.unwrap();
    assert!(took < AT_ONCE, "the probe holds nobody up: {took:?}");
    assert_eq!(first.count(), 2);

    is_dead.store(0, Ordering::SeqCst);
    clock.advance(Duration::from_secs(2));
    forward.ask(&question("c.example", A)).await.unwrap();
    for _ in 0..100 {
        if forward.status()[0].is_up {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(forward.status()[0].is_up);
    assert_eq!(first_a(&forward.ask(&question("d.example", A)).await.unwrap()), [192, 0, 2, 1]);
}

#[tokio::test]
async fn refused_port_costs_no_time() {
    let gone = scripted::Upstream::start(loses).await;
    let (gone_udp, gone_tcp) = (udp(&gone), tcp(&gone));
    drop(gone);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let alive = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
    for gone in [gone_udp, gone_tcp] {
        let (walked, took) = timed(forward(vec![gone.clone(), udp(&alive)]).ask(&question("a.example", A))).await;
        assert_eq!(first_a(&walked.unwrap()), [192, 0, 2, 2]);
        assert!(took < AT_ONCE, "{took:?}");
        let (failure, took) = timed(forward(vec![gone]).ask(&question("a.example", A))).await;
        let failure = failure.unwrap_err();
        assert_eq!((failure, failure.ede().code), (Failure::Network, 23));
        assert!(took < AT_ONCE, "{took:?}");
    }
}

#[tokio::test]
async fn slow_answer_is_given_when_it_comes() {
    let slow = |asked: &Asked| match asked.before {
        0 => asked.a([192, 0, 2, 1]).after(Duration::from_millis(2500)),
        _ => Act::Drop,
    };
    for over_tcp in [false, true] {
        let (first, second) = (scripted::Upstream::start(slow).await, scripted::Upstream::start(loses).await);
        let make = if over_tcp { tcp } else { udp };
        let (walked, took) = timed(forward(vec![make(&first), udp(&second)]).ask(&question("a.example", A))).await;
        assert_eq!(first_a(&walked.unwrap()), [192, 0, 2, 1]);
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(second.count() > 0);
    }
}

#[tokio::test]
async fn nothing_takes_longer_than_the_timeout() {
    let (silent, hung) = (scripted::Upstream::start(loses).await, scripted::Upstream::start(loses).await);
    // A server that takes the connection and never says a word of TLS.
    let hung = Upstream { protocol: Protocol::Tls, addr: hung.addr, tls_name: None, path: None };
    for upstream in [udp(&silent), tcp(&silent), hung] {
        let options = Options { timeout: Duration::from_millis(1200), ..options(vec![upstream.clone()]) };
        let (failure, took) = timed(forward_with(options, clock()).ask(&question("a.example", A))).await;
        assert_eq!(failure.unwrap_err(), Failure::TimedOut, "{upstream}");
        assert!(took >= Duration::from_millis(1150) && took < Duration::from_millis(2500), "{upstream}: {took:?}");
    }
}

#[tokio::test]
async fn hung_handshake_gives_way_to_the_next_upstream() {
    let hung = scripted::Upstream::start(loses).await;
    let alive = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
    let hung = Upstream { protocol: Protocol::Tls, addr: hung.addr, tls_name: None, path: None };
    let forward = forward(vec![hung, udp(&alive)]);
    let (walked, took) = timed(forward.ask(&question("a.example", A))).await;
    assert_eq!(first_a(&walked.unwrap()), [192, 0, 2, 2]);
    assert!(took < ONE_SHORT_TRY, "{took:?}");
    let (_, took) = timed(forward.ask(&question("b.example", A))).await;
    assert!(took < AT_ONCE, "{took:?}");
}

// Failure replies.

#[tokio::test]
async fn failure_replies_lead_to_the_next_upstream() {
    for code in [rcode::SERVFAIL, rcode::REFUSED, rcode::NOTIMP, rcode::FORMERR, 9] {
        let first = scripted::Upstream::start(move |asked| asked.fail(code)).await;
        let second = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
        let (walked, took) = timed(forward(vec![udp(&first), udp(&second)]).ask(&question("a.example", A))).await;
        assert_eq!(first_a(&walked.unwrap()), [192, 0, 2, 2], "rcode {code}");
        assert!(took < AT_ONCE, "rcode {code}: {took:?}");
    }
}

#[tokio::test]
async fn servfail_by_dnssec_is_final() {
    for (code, is_final) in
        [(1, true), (2, true), (5, true), (6, true), (12, true), (3, false), (13, false), (22, false)]
    {
        let first = scripted::Upstream::start(move |asked| asked.reply().rcode(2).ede(code, "no").act()).await;
        let second = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
        let walked = forward(vec![udp(&first), udp(&second)]).ask(&question("a.example", A)).await.unwrap();
        assert_eq!(walked.answer.rcode() == rcode::SERVFAIL, is_final, "EDE {code}");
        assert_eq!(second.count() == 0, is_final, "EDE {code}");
    }
}

#[tokio::test]
async fn best_failure_reply_is_the_answer_when_all_fail() {
    let refusing = scripted::Upstream::start(|asked| asked.fail(rcode::REFUSED)).await;
    let failing = scripted::Upstream::start(|asked| asked.reply().rcode(2).ede(22, "lame").act()).await;
    let dead = scripted::Upstream::start(loses).await;
    let forward = forward(vec![udp(&refusing), udp(&failing), udp(&dead)]);
    let (walked, took) = timed(forward.ask(&question("a.example", A))).await;
    let walked = walked.unwrap();
    assert_eq!(walked.answer.rcode(), rcode::SERVFAIL);
    assert_eq!(walked.answer.edes()[0].code, 22);
    assert!(took < ONE_SHORT_TRY, "with a failure in hand the silent one gets one patience: {took:?}");
    assert_eq!(refusing.count(), 1);
}

// EDNS trouble.

#[tokio::test]
async fn upstream_without_edns_is_asked_plainly_and_remembered() {
    let bare = |asked: &Asked| {
        let mut octets = asked.reply().question(&[]).without_opt().octets();
        octets[3] |= rcode::FORMERR as u8;
        Act::Send(octets)
    };
    type Refusal = fn(&Asked) -> Act;
    let refusals: [(&str, Refusal); 4] = [
        ("FORMERR", |asked| asked.reply().rcode(rcode::FORMERR).without_opt().act()),
        ("NOTIMP", |asked| asked.reply().rcode(rcode::NOTIMP).without_opt().act()),
        ("BADVERS", |asked| asked.reply().rcode(rcode::BADVERS).act()),
        ("bare FORMERR", bare),
    ];
    for (what, refusal) in refusals {
        for make in [udp, tcp] {
            let script = move |asked: &Asked| if asked.has_opt() { refusal(asked) } else { asked.a([192, 0, 2, 1]) };
            let upstream = scripted::Upstream::start(script).await;
            let clock = clock();
            let forward = forward_with(options(vec![make(&upstream)]), clock.clone());
            for _ in 0..2 {
                let walked = forward.ask(&question("a.example", A)).await.unwrap();
                assert_eq!(first_a(&walked), [192, 0, 2, 1], "{what}");
            }
            assert_eq!(upstream.count(), 3, "{what}: refused once, then asked plainly");
            clock.advance(Duration::from_secs(15 * 60));
            forward.ask(&question("a.example", A)).await.unwrap();
            assert_eq!(upstream.count(), 5, "{what}: tried again after a while");
        }
    }
}

#[tokio::test]
async fn formerr_with_and_without_edns_is_not_remembered() {
    let upstream = scripted::Upstream::start(|asked| match &*asked.name() {
        "bad.example" => asked.fail(rcode::FORMERR),
        _ => asked.a([192, 0, 2, 1]),
    })
    .await;
    let forward = forward(vec![udp(&upstream)]);
    assert_eq!(forward.ask(&question("bad.example", A)).await.unwrap().answer.rcode(), rcode::FORMERR);
    forward.ask(&question("good.example", A)).await.unwrap();
    assert!(upstream.log().last().unwrap().has_opt());
}

// Truncation.

#[tokio::test]
async fn cut_reply_is_asked_for_over_tcp() {
    let upstream = scripted::Upstream::start(|asked| match asked.via {
        Via::Udp => asked.reply().truncated().act(),
        _ => (0..100u8)
            .fold(asked.reply(), |reply, at| reply.answer(&record(&[0xc0, 12], TXT, 60, &[3, at, at, at])))
            .act(),
    })
    .await;
    let walked = forward(vec![udp(&upstream)]).ask(&question("big.example", TXT)).await.unwrap();
    assert!(!walked.truncated);
    assert_eq!(walked.answer.bytes()[6..8], [0, 100]);
}

#[tokio::test]
async fn cut_reply_without_tcp_leads_to_the_next_upstream_and_is_never_used() {
    let cut = |asked: &Asked| asked.reply().truncated().answer(&record(&[0xc0, 12], A, 60, &[203, 0, 113, 66])).act();
    let first = scripted::Upstream::start_udp(cut).await;
    let second = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
    let both = forward(vec![udp(&first), udp(&second)]);
    assert_eq!(first_a(&both.ask(&question("a.example", A)).await.unwrap()), [192, 0, 2, 2]);
    assert!(both.status()[0].is_up, "it answers over UDP");
    assert_eq!(forward(vec![udp(&first)]).ask(&question("a.example", A)).await.unwrap_err(), Failure::Network);
}

// Connections.

#[tokio::test]
async fn connection_is_made_once_and_kept() {
    let slow = |asked: &Asked| asked.a([192, 0, 2, 1]).after(Duration::from_millis(50));
    let upstream = scripted::Upstream::start_tls(&["dns.example"], slow).await;
    let roots = vec![upstream.certificate.clone().unwrap()];
    for (at, ask) in [tcp(&upstream), tls(&upstream, Some("dns.example"))].into_iter().enumerate() {
        let forward = Forward::with_roots(options(vec![ask]), RULES, clock(), &Registry::new(), roots.clone());
        let forward = Arc::new(forward.unwrap());
        let mut asking = JoinSet::new();
        for number in 0..200 {
            let forward = forward.clone();
            asking.spawn(async move { forward.ask(&question(&format!("n{number}.example"), A)).await });
        }
        while let Some(done) = asking.join_next().await {
            done.unwrap().unwrap();
        }
        forward.ask(&question("later.example", A)).await.unwrap();
        assert_eq!(upstream.connections(), at + 1);
    }
}

#[tokio::test]
async fn answers_may_come_in_any_order() {
    let upstream = scripted::Upstream::start(|asked| match &*asked.name() {
        "slow.example" => asked.a([192, 0, 2, 1]).after(Duration::from_millis(500)),
        _ => asked.a([192, 0, 2, 2]),
    })
    .await;
    let forward = forward(vec![tcp(&upstream)]);
    let (slow, (quick, took)) = tokio::join!(forward.ask_now("slow.example"), timed(forward.ask_now("quick.example")));
    assert_eq!((first_a(&slow), first_a(&quick)), ([192, 0, 2, 1], [192, 0, 2, 2]));
    assert!(took < Duration::from_millis(450), "{took:?}");
}

impl Forward {
    async fn ask_now(&self, name: &str) -> Walked {
        self.ask(&question(name, A)).await.unwrap()
    }
}

#[tokio::test]
async fn question_in_flight_on_a_closed_connection_goes_over_a_new_one() {
    let upstream = scripted::Upstream::start(|asked| match (&*asked.name(), asked.connection) {
        ("closes.example", 1) => Act::Close,
        _ => asked.a([192, 0, 2, 1]),
    })
    .await;
    let forward = forward(vec![tcp(&upstream)]);
    forward.ask_now("a.example").await;
    let (walked, took) = timed(forward.ask_now("closes.example")).await;
    assert_eq!(first_a(&walked), [192, 0, 2, 1]);
    assert!(took < AT_ONCE, "{took:?}");
    assert_eq!(upstream.connections(), 2);
    assert!(forward.status()[0].is_up);
}

#[tokio::test]
async fn connection_that_always_closes_is_given_up() {
    let upstream = scripted::Upstream::start(|_| Act::Close).await;
    let failure = forward(vec![tcp(&upstream)]).ask(&question("a.example", A)).await.unwrap_err();
    assert_eq!(failure, Failure::Network);
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn connection_closed_while_idle_is_made_anew() {
    let upstream = scripted::Upstream::start(|asked| match asked.before {
        0 => asked.a([192, 0, 2, 1]).then(Act::Close),
        _ => asked.a([192, 0, 2, 1]),
    })
    .await;
    let forward = forward(vec![tcp(&upstream)]);
    forward.ask_now("a.example").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    forward.ask_now("b.example").await;
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn connection_without_a_sign_of_life_is_replaced() {
    // The path died: the first connection swallows everything from its second question on.
    let upstream = scripted::Upstream::start(|asked| match (asked.connection, asked.before) {
        (1, 1..) => Act::Drop,
        _ => asked.a([192, 0, 2, 1]),
    })
    .await;
    let forward = forward(vec![tcp(&upstream)]);
    forward.ask_now("a.example").await;
    let (_, took) = timed(forward.ask_now("b.example")).await;
    assert!(took < ONE_SHORT_TRY, "{took:?}");
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn garbage_on_a_connection_harms_only_itself() {
    let upstream = scripted::Upstream::start(|asked| match &*asked.name() {
        "noise.example" => Act::Send(vec![0xff])
            .then(Act::Send(vec![0xab; 5]))
            .then(Act::Send(vec![0xff; 65_535]))
            .then(asked.a([192, 0, 2, 1])),
        _ => asked.a([192, 0, 2, 2]),
    })
    .await;
    let forward = forward(vec![tcp(&upstream)]);
    assert_eq!(first_a(&forward.ask_now("noise.example").await), [192, 0, 2, 1]);
    assert_eq!(first_a(&forward.ask_now("a.example").await), [192, 0, 2, 2]);
    assert_eq!(upstream.connections(), 1);
}

// TLS.

#[tokio::test]
async fn certificate_is_checked_and_the_name_is_sent() {
    let upstream = scripted::Upstream::start_tls(&["dns.example"], answers([192, 0, 2, 1])).await;
    let other = scripted::Upstream::start_tls(&["127.0.0.1"], answers([192, 0, 2, 2])).await;
    let roots = vec![upstream.certificate.clone().unwrap(), other.certificate.clone().unwrap()];
    let ask = async |ask: Upstream, roots: &[CertificateDer<'static>]| {
        let forward = Forward::with_roots(options(vec![ask]), RULES, clock(), &Registry::new(), roots.to_vec());
        let forward = forward.unwrap();
        (forward.ask(&question("a.example", A)).await, forward.status().remove(0))
    };

    let (walked, _) = ask(tls(&upstream, Some("dns.example")), &roots).await;
    assert_eq!(first_a(&walked.unwrap()), [192, 0, 2, 1]);
    assert_eq!(upstream.log()[0].sni.as_deref(), Some("dns.example"));

    let (walked, _) = ask(tls(&other, None), &roots).await;
    assert_eq!(first_a(&walked.unwrap()), [192, 0, 2, 2], "without a name the address must be in the certificate");
    assert_eq!(other.log()[0].sni, None);

    for (ask_it, roots) in [
        (tls(&upstream, Some("evil.example")), &roots[..]),
        (tls(&upstream, None), &roots[..]),
        (tls(&upstream, Some("dns.example")), &roots[1..]),
        (tls(&upstream, Some("dns.example")), &[]),
    ] {
        let (failure, status) = ask(ask_it, roots).await;
        assert_eq!(failure.unwrap_err(), Failure::Network);
        assert!(!status.is_up && status.last_error.unwrap().contains("certificate"));
    }
    assert_eq!(upstream.count(), 1, "no question goes out before the certificate is checked");
}

// Choice.

#[tokio::test]
async fn ordered_asks_the_first_only() {
    let first = scripted::Upstream::start(|asked| asked.a([192, 0, 2, 1]).after(Duration::from_millis(30))).await;
    let second = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
    let forward = forward(vec![udp(&first), udp(&second)]);
    for _ in 0..20 {
        assert_eq!(first_a(&forward.ask_now("a.example").await), [192, 0, 2, 1]);
    }
    assert_eq!(second.count(), 0);
}

#[tokio::test]
async fn fastest_prefers_the_quick_one_and_keeps_an_eye_on_the_other() {
    let first = scripted::Upstream::start(|asked| asked.a([192, 0, 2, 1]).after(Duration::from_millis(250))).await;
    let second = scripted::Upstream::start(|asked| asked.a([192, 0, 2, 2]).after(Duration::from_millis(20))).await;
    let options = Options { strategy: Strategy::Fastest, ..options(vec![udp(&first), udp(&second)]) };
    let forward = forward_with(options, clock());
    forward.ask_now("warm-up.example").await;
    // The first question went to both; the slower reply is waited for in the background.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let before = first.count();
    for _ in 0..64 {
        assert_eq!(first_a(&forward.ask_now("a.example").await), [192, 0, 2, 2]);
    }
    // Where the machine is busy, questions that take long are put to the other beside it.
    let eyed = first.count() - before;
    assert!((2..16).contains(&eyed), "one question in 32 goes to the other too: {eyed}");
    assert!(forward.status()[0].latency.unwrap() > forward.status()[1].latency.unwrap());
}

#[tokio::test]
async fn deepest_route_wins() {
    let make = async |last: u8| scripted::Upstream::start(answers([192, 0, 2, last])).await;
    let (general, corp, deep) = (make(1).await, make(2).await, make(3).await);
    let route = |zone: &str, upstream| Route { zone: Name::parse(zone).unwrap(), upstreams: vec![udp(upstream)] };
    let options = Options {
        routes: vec![route("corp.example", &corp), route("a.corp.example", &deep)],
        ..options(vec![udp(&general)])
    };
    let forward = forward_with(options, clock());
    for (name, last) in [
        ("corp.example", 2),
        ("x.CORP.example", 2),
        ("a.corp.example", 3),
        ("x.y.a.corp.example", 3),
        ("ba.corp.example", 2),
        ("notcorp.example", 1),
        ("example", 1),
        (".", 1),
    ] {
        let forward = &forward;
        let walked = forward.ask(&question(name, A)).await.unwrap();
        assert_eq!(first_a(&walked), [192, 0, 2, last], "{name}");
    }
    let places: Vec<String> = forward.status().into_iter().map(|status| status.place).collect();
    assert_eq!(places, ["upstream-1", "route-1-upstream-1", "route-2-upstream-1"]);
}

// Bounds and the rest.

#[tokio::test]
async fn dropped_question_leaves_nothing_behind() {
    let upstream = scripted::Upstream::start(loses).await;
    let forward = forward(vec![udp(&upstream)]);
    let asked = question("a.example", A);
    assert!(tokio::time::timeout(Duration::from_millis(50), forward.ask(&asked)).await.is_err());
    assert_eq!(forward.waiting(), 0);
}

#[tokio::test]
async fn flood_evicts_the_oldest_question() {
    let upstream = scripted::Upstream::start(loses).await;
    let mut forward = forward(vec![tcp(&upstream)]);
    forward.waiting = Waiting::new(2);
    let (first, second, third) = (question("a.example", A), question("b.example", A), question("c.example", A));
    let mut oldest = std::pin::pin!(forward.ask(&first));
    assert!(futures_util::poll!(&mut oldest).is_pending());
    let mut others = std::pin::pin!(async { tokio::join!(forward.ask(&second), forward.ask(&third)) });
    assert!(futures_util::poll!(&mut others).is_pending());
    assert_eq!(oldest.await.unwrap_err(), Failure::Evicted);
    assert!(futures_util::poll!(&mut others).is_pending());
}

#[tokio::test]
async fn burst_beyond_the_open_sockets_is_answered_whole() {
    let upstream = scripted::Upstream::start(answers([192, 0, 2, 1])).await;
    let mut asking = JoinSet::new();
    let forward = Arc::new(forward(vec![udp(&upstream)]));
    for number in 0..1000 {
        let forward = forward.clone();
        asking.spawn(async move { forward.ask(&question(&format!("n{number}.example"), A)).await });
    }
    while let Some(done) = asking.join_next().await {
        done.unwrap().unwrap();
    }
}

#[tokio::test]
async fn logging_everything_breaks_nothing() {
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(io::sink);
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let upstream = scripted::Upstream::start(|asked| asked.fail(rcode::NXDOMAIN)).await;
    for make in [udp, tcp] {
        let forward = forward(vec![make(&upstream)]);
        for qtype in [0, 1, 41, 250, 255, 65_535] {
            let name = Name::from_wire(b"\x06\x00\xff. \\\x07\x04_tcp\x00").unwrap();
            forward.ask(&Question { name, ..question(".", qtype) }).await.unwrap();
        }
    }
}

#[tokio::test]
async fn metrics_name_places_not_addresses() {
    let first = scripted::Upstream::start(|asked| asked.fail(rcode::REFUSED)).await;
    let second = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
    let registry = Registry::new();
    let options = options(vec![udp(&first), udp(&second)]);
    let forward = Forward::with_roots(options.clone(), RULES, clock(), &registry, Vec::new()).unwrap();
    forward.ask_now("a.example").await;
    let text = String::from_utf8(registry.render()).unwrap();
    assert!(text.contains(r#"_failures_total{kind="refused",upstream="upstream-1"} 1"#), "{text}");
    assert!(text.contains(r#"_seconds_count{upstream="upstream-2"} 1"#), "{text}");
    assert!(!text.contains("127.0.0.1") && !text.contains("example"), "{text}");
    // A new configuration takes over the same metrics.
    let renewed = forward.renewed(options, RULES).unwrap();
    renewed.ask_now("a.example").await;
    let text = String::from_utf8(registry.render()).unwrap();
    assert!(text.contains(r#"_seconds_count{upstream="upstream-2"} 2"#), "{text}");
}

#[test]
fn url_prints_as_it_is_written() {
    let upstream = |protocol, addr: &str, name: Option<&str>| {
        Upstream { protocol, addr: addr.parse().unwrap(), tls_name: name.map(str::to_owned), path: None }.to_string()
    };
    assert_eq!(upstream(Protocol::Udp, "192.0.2.1:53", None), "udp://192.0.2.1");
    assert_eq!(upstream(Protocol::Tcp, "192.0.2.1:5353", None), "tcp://192.0.2.1:5353");
    assert_eq!(upstream(Protocol::Tls, "[2001:db8::1]:853", Some("dns.example")), "tls://[2001:db8::1]#dns.example");
    assert_eq!(upstream(Protocol::Tls, "[2001:db8::1]:8853", None), "tls://[2001:db8::1]:8853");
}

#[test]
fn unusable_options_are_refused() {
    let build = |options| Forward::with_roots(options, RULES, clock(), &Registry::new(), Vec::new()).map(|_| ());
    assert!(matches!(build(options(Vec::new())), Err(OptionsError::NoUpstreams(_))));
    let addr = "192.0.2.1:853".parse().unwrap();
    let bad = Upstream { protocol: Protocol::Tls, addr, tls_name: Some("not a name".to_owned()), path: None };
    let error = build(options(vec![bad])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tls://192.0.2.1#not a name: expected a host name or an address after `#`, found `not a name`"
    );
}
