//! HTTPS and QUIC: what is sent, what counts as an answer, and what becomes of the connection.

use super::*;

const NAME: &str = "dns.example";

async fn https(script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> (scripted::Upstream, Forward) {
    let upstream = scripted::Upstream::start_https(&[NAME], script).await;
    let asked = at(&upstream, Protocol::Https, NAME);
    let forward = trusting(&upstream, vec![asked]);
    (upstream, forward)
}

async fn quic(script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> (scripted::Upstream, Forward) {
    let upstream = scripted::Upstream::start_quic(&[NAME], script).await;
    let asked = at(&upstream, Protocol::Quic, NAME);
    let forward = trusting(&upstream, vec![asked]);
    (upstream, forward)
}

fn at(upstream: &scripted::Upstream, protocol: Protocol, name: &str) -> Upstream {
    Upstream { protocol, addr: upstream.tls_addr.unwrap(), tls_name: Some(name.to_owned()), path: None }
}

fn trusting(upstream: &scripted::Upstream, upstreams: Vec<Upstream>) -> Forward {
    let roots = vec![upstream.certificate.clone().unwrap()];
    Forward::with_roots(options(upstreams), RULES, clock(), &Registry::new(), roots).unwrap()
}

/// Asks `count` questions at once.
async fn ask_many(forward: &Forward, count: usize) {
    let asking = (0..count).map(|number| async move {
        let walked = forward.ask(&question(&format!("n{number}.example"), A)).await.unwrap();
        assert_eq!(first_a(&walked), [192, 0, 2, 1]);
    });
    futures_util::future::join_all(asking).await;
}

#[tokio::test]
async fn https_question_is_a_padded_post_of_id_zero() {
    let (upstream, forward) = https(answers([192, 0, 2, 1])).await;
    ask_many(&forward, 1).await;
    let log = upstream.log();
    let port = upstream.tls_addr.unwrap().port();
    let media_type = "application/dns-message";
    let request = format!("POST https://{NAME}:{port}/dns-query {media_type} {media_type}");
    assert_eq!(log[0].request.as_deref(), Some(&*request));
    assert_eq!((log[0].via, log[0].id(), log[0].octets.len()), (Via::Https, 0, 128));
    assert_eq!(log[0].sni.as_deref(), Some(NAME));
    assert!(log[0].ad(), "an encrypted upstream's AD is of use");
}

#[tokio::test]
async fn quic_question_is_a_padded_stream_of_id_zero() {
    let (upstream, forward) = quic(answers([192, 0, 2, 1])).await;
    ask_many(&forward, 1).await;
    let log = upstream.log();
    assert_eq!((log[0].via, log[0].id(), log[0].octets.len()), (Via::Quic, 0, 128));
    assert_eq!(log[0].sni.as_deref(), Some(NAME));
    assert!(log[0].ad());
}

#[tokio::test]
async fn tls_question_is_padded_and_a_plain_one_is_not() {
    let upstream = scripted::Upstream::start_tls(&[NAME], answers([192, 0, 2, 1])).await;
    ask_many(&trusting(&upstream, vec![tls(&upstream, Some(NAME))]), 1).await;
    ask_many(&trusting(&upstream, vec![tcp(&upstream)]), 1).await;
    let lens: Vec<usize> = upstream.log().iter().map(|asked| asked.octets.len()).collect();
    assert_eq!(lens[0], 128);
    assert!(lens[1] < 50, "{lens:?}");
}

#[tokio::test]
async fn many_questions_go_over_one_connection_and_answers_come_in_any_order() {
    let script = |asked: &Asked| match asked.name().trim_start_matches('n').starts_with('7') {
        true => asked.a([192, 0, 2, 1]).after(Duration::from_millis(150)),
        false => asked.a([192, 0, 2, 1]),
    };
    for (upstream, forward) in [https(script).await, quic(script).await] {
        ask_many(&forward, 80).await;
        assert!(upstream.count() >= 80);
        assert_eq!(upstream.connections(), 1);
        assert!(upstream.log().iter().all(|asked| asked.id() == 0));
    }
}

#[tokio::test]
async fn response_that_is_no_answer_fails_the_try_and_the_next_upstream_is_asked() {
    let second = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
    let sound = |asked: &Asked| match asked.a([203, 0, 113, 66]) {
        Act::Send(octets) => octets,
        _ => unreachable!(),
    };
    let script = move |asked: &Asked| match &*asked.name() {
        "500.example" => Act::Respond(500, "application/dns-message", sound(asked)),
        "redirect.example" => Act::Respond(307, "application/dns-message", sound(asked)),
        "type.example" => Act::Respond(200, "text/html", sound(asked)),
        "huge.example" => Act::Respond(200, "application/dns-message", vec![0; 1 << 20]),
        "empty.example" => Act::Respond(200, "application/dns-message", Vec::new()),
        "id.example" => asked.reply().id(1).act(),
        "other.example" => asked.reply().question(b"\x01b\x07example\x00\x00\x01\x00\x01").act(),
        "reset.example" => Act::Reset,
        _ => asked.a([192, 0, 2, 1]),
    };
    let (upstream, forward) = https(script).await;
    let both = trusting(&upstream, vec![at(&upstream, Protocol::Https, NAME), udp(&second)]);
    for (name, error) in [
        ("500", "HTTP status 500"),
        ("redirect", "HTTP status 307"),
        ("type", "the response is no application/dns-message"),
        ("huge", "the response is longer than a message"),
        ("empty", "the response answers another question"),
        ("id", "the response answers another question"),
        ("other", "the response answers another question"),
        ("reset", "error"),
    ] {
        let asked = question(&format!("{name}.example"), A);
        assert_eq!(first_a(&both.ask(&asked).await.unwrap()), [192, 0, 2, 2], "{name}");
        let failure = forward.ask(&asked).await.unwrap_err();
        let status = forward.status().remove(0);
        if name != "reset" {
            assert_eq!(failure, Failure::Malformed, "{name}");
            assert!(status.is_up, "{name}: one question must not take it down");
        }
        let told = status.last_error.unwrap();
        assert!(told.contains(error), "{name}: {told}");
        // The upstream is asked again, since there is no other, and answers what it can.
        assert_eq!(first_a(&forward.ask_now("good.example").await), [192, 0, 2, 1], "{name}");
    }
}

#[tokio::test]
async fn stream_that_is_no_answer_fails_the_try_and_the_next_upstream_is_asked() {
    let second = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
    let script = |asked: &Asked| match &*asked.name() {
        "reset.example" => Act::Reset,
        "short.example" => Act::Bare(vec![0]),
        "bare.example" => Act::Bare(asked.reply().octets()),
        "empty.example" => Act::Bare(Vec::new()),
        "id.example" => asked.reply().id(1).act(),
        "huge.example" => Act::Bare(vec![0; 1 << 20]),
        "other.example" => asked.reply().question(b"\x01b\x07example\x00\x00\x01\x00\x01").act(),
        _ => asked.a([192, 0, 2, 1]),
    };
    let (upstream, forward) = quic(script).await;
    let both = trusting(&upstream, vec![at(&upstream, Protocol::Quic, NAME), udp(&second)]);
    for (name, error) in [
        ("reset", "the upstream gave the question up (code 1)"),
        ("short", "no message with id 0 on a stream"),
        ("bare", "no message with id 0 on a stream"),
        ("empty", "no message with id 0 on a stream"),
        ("id", "no message with id 0 on a stream"),
        ("huge", "more than one message on a stream"),
        ("other", "the reply answers another question"),
    ] {
        let asked = question(&format!("{name}.example"), A);
        assert_eq!(first_a(&both.ask(&asked).await.unwrap()), [192, 0, 2, 2], "{name}");
        assert_eq!(forward.ask(&asked).await.unwrap_err(), Failure::Malformed, "{name}");
        let status = forward.status().remove(0);
        assert!(status.is_up, "{name}: one question must not take it down");
        let told = status.last_error.unwrap();
        assert!(told.contains(error), "{name}: {told}");
        assert_eq!(first_a(&forward.ask_now("good.example").await), [192, 0, 2, 1], "{name}");
    }
}

#[tokio::test]
async fn closed_connection_is_replaced_within_the_try() {
    // The first of each name closes the connection on which it came.
    fn script() -> impl Fn(&Asked) -> Act + Send + Sync + 'static {
        let seen = parking_lot::Mutex::new(std::collections::HashSet::new());
        move |asked| if seen.lock().insert(asked.name()) { Act::Close } else { asked.a([192, 0, 2, 1]) }
    }
    for (upstream, forward) in [https(script()).await, quic(script()).await] {
        for name in ["a.example", "b.example", "c.example"] {
            assert_eq!(first_a(&forward.ask_now(name).await), [192, 0, 2, 1]);
        }
        assert!(upstream.connections() >= 4, "{}", upstream.connections());
        assert!(forward.status()[0].is_up);
    }
}

#[tokio::test]
async fn tls_session_is_resumed_when_a_connection_is_replaced() {
    let closes_first = |asked: &Asked| if asked.before == 1 { Act::Close } else { asked.a([192, 0, 2, 1]) };
    let (upstream, forward) = https(closes_first).await;
    forward.ask_now("a.example").await;
    forward.ask_now("b.example").await;
    assert_eq!((upstream.connections(), upstream.resumed()), (2, 1));

    let upstream = scripted::Upstream::start_tls(&[NAME], closes_first).await;
    let forward = trusting(&upstream, vec![tls(&upstream, Some(NAME))]);
    forward.ask_now("a.example").await;
    forward.ask_now("b.example").await;
    assert_eq!((upstream.connections(), upstream.resumed()), (2, 1));
}

#[tokio::test]
async fn strangers_certificate_is_refused_over_https_and_quic() {
    let https = scripted::Upstream::start_https(&[NAME], answers([203, 0, 113, 66])).await;
    let quic = scripted::Upstream::start_quic(&[NAME], answers([203, 0, 113, 66])).await;
    for (upstream, protocol) in [(&https, Protocol::Https), (&quic, Protocol::Quic)] {
        let other_name = trusting(upstream, vec![at(upstream, protocol, "other.example")]);
        let unknown = forward(vec![at(upstream, protocol, NAME)]);
        for forward in [other_name, unknown] {
            assert_eq!(forward.ask(&question("a.example", A)).await.unwrap_err(), Failure::Network);
        }
        assert_eq!(upstream.count(), 0, "{protocol:?}: not a word to a stranger");
    }
}

#[tokio::test]
async fn server_without_http2_is_refused() {
    let upstream = scripted::Upstream::start_tls(&[NAME], loses).await;
    let forward = trusting(&upstream, vec![at(&upstream, Protocol::Https, NAME)]);
    assert_eq!(forward.ask(&question("a.example", A)).await.unwrap_err(), Failure::Network);
    assert_eq!(forward.status()[0].last_error.as_deref(), Some("the server speaks no HTTP/2"));
}

#[tokio::test]
async fn ad_cd_and_do_pass_both_ways_over_every_transport() {
    let script = |asked: &Asked| asked.reply().authentic().answer(&record(&[0xc0, 12], A, 300, &[192, 0, 2, 1])).act();
    let plain = scripted::Upstream::start_tls(&[NAME], script).await;
    let over_https = scripted::Upstream::start_https(&[NAME], script).await;
    let over_quic = scripted::Upstream::start_quic(&[NAME], script).await;
    for (upstream, asked_at) in [
        (&plain, udp(&plain)),
        (&plain, tcp(&plain)),
        (&plain, tls(&plain, Some(NAME))),
        (&over_https, at(&over_https, Protocol::Https, NAME)),
        (&over_quic, at(&over_quic, Protocol::Quic, NAME)),
    ] {
        let roots = vec![upstream.certificate.clone().unwrap()];
        for (trust_ad, is_passed) in [(TrustAd::Auto, true), (TrustAd::Always, true), (TrustAd::Never, false)] {
            let options = Options { trust_ad, ..options(vec![asked_at.clone()]) };
            let forward = Forward::with_roots(options, RULES, clock(), &Registry::new(), roots.clone()).unwrap();
            for bits in [false, true] {
                let mut asked = question("a.example", A);
                (asked.dnssec_ok, asked.checking_disabled) = (bits, bits);
                let walked = forward.ask(&asked).await.unwrap();
                let seen = upstream.log().pop().unwrap();
                assert_eq!(
                    (seen.dnssec_ok(), seen.cd(), seen.ad()),
                    (bits, bits, is_passed),
                    "{asked_at} {trust_ad:?}"
                );
                assert_eq!(walked.answer.bytes()[3] & 0x20 != 0, is_passed, "{asked_at} {trust_ad:?}");
            }
        }
    }
}
