//! Random letter case over UDP: what goes out, what counts, and who is let off.

use super::*;

fn with_letters(upstreams: Vec<Upstream>) -> Options {
    Options { case_randomization: true, ..options(upstreams) }
}

fn lower_cased(asked: &Asked) -> Act {
    let question = asked.question().to_ascii_lowercase();
    asked.reply().question(&question).answer(&record(&[0xc0, 12], A, 300, &[192, 0, 2, 1])).act()
}

fn is_mixed(asked: &Asked) -> bool {
    asked.qname() != asked.qname().to_ascii_lowercase()
}

#[tokio::test]
async fn each_try_goes_out_in_letters_of_its_own_and_the_answer_is_in_lower_case() {
    let upstream = scripted::Upstream::start(answers([192, 0, 2, 1])).await;
    let forward = forward_with(with_letters(vec![udp(&upstream)]), clock());
    for _ in 0..20 {
        let walked = forward.ask(&question("a-long-name-of-many-letters.example", A)).await.unwrap();
        let asked = wire_name("a-long-name-of-many-letters.example");
        assert_eq!(walked.answer.bytes()[12..12 + asked.len()], asked);
    }
    let log = upstream.log();
    assert!(log.iter().all(is_mixed));
    let seen: std::collections::HashSet<_> = log.iter().map(|asked| asked.qname().to_vec()).collect();
    assert_eq!(seen.len(), log.len());
}

#[tokio::test]
async fn reply_in_other_letters_is_dropped_and_the_wait_goes_on() {
    let upstream = scripted::Upstream::start(|asked| {
        let mut question = asked.question().to_vec();
        question[1] ^= 0x20;
        let forged = asked.reply().question(&question).answer(&record(&[0xc0, 12], A, 300, &[203, 0, 113, 66])).act();
        forged.then(asked.a([192, 0, 2, 1]))
    })
    .await;
    let registry = Registry::new();
    let forward =
        Forward::with_roots(with_letters(vec![udp(&upstream)]), RULES, clock(), &registry, Vec::new()).unwrap();
    for _ in 0..5 {
        assert_eq!(first_a(&forward.ask_now("a.example").await), [192, 0, 2, 1]);
    }
    // Once for each try; on a busy machine there may be more of them.
    let text = String::from_utf8(registry.render()).unwrap();
    let line = text.lines().find(|line| line.contains(r#"failures_total{kind="letters",upstream="upstream-1"}"#));
    let dropped: u64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(dropped >= 5, "{dropped}");
}

#[tokio::test]
async fn upstream_that_lower_cases_is_let_off_and_tried_again_after_an_hour() {
    let upstream = scripted::Upstream::start(lower_cased).await;
    let (registry, clock) = (Registry::new(), clock());
    let options = with_letters(vec![udp(&upstream)]);
    let forward = Forward::with_roots(options, RULES, clock.clone(), &registry, Vec::new()).unwrap();
    let fallbacks = || {
        let text = String::from_utf8(registry.render()).unwrap();
        (0..9).find(|n| text.contains(&format!("case_fallbacks_total{{upstream=\"upstream-1\"}} {n}\n"))).unwrap()
    };
    let asked = question("long-name-of-many-letters.example", A);
    let ask = || forward.ask(&asked);
    // The question that finds it out is answered, too.
    assert_eq!(first_a(&ask().await.unwrap()), [192, 0, 2, 1]);
    assert_eq!(fallbacks(), 1);
    let found_out = upstream.count();
    for _ in 0..5 {
        ask().await.unwrap();
    }
    let log = upstream.log();
    assert!(log.len() >= found_out + 5 && !log[found_out..].iter().any(is_mixed));
    clock.advance(Duration::from_secs(3600));
    ask().await.unwrap();
    assert!(upstream.log().last().is_some_and(|asked| !is_mixed(asked)));
    assert!(upstream.log()[log.len()..].iter().any(is_mixed));
    assert_eq!(fallbacks(), 2);
}

#[tokio::test]
async fn connections_carry_the_name_as_it_is() {
    let upstream = scripted::Upstream::start(|asked| match asked.via {
        Via::Udp => asked.reply().truncated().act(),
        _ => lower_cased(asked),
    })
    .await;
    let forward = forward_with(with_letters(vec![udp(&upstream)]), clock());
    let walked = forward.ask(&question("long-name-of-many-letters.example", A)).await.unwrap();
    assert_eq!(first_a(&walked), [192, 0, 2, 1]);
    let log = upstream.log();
    assert!(is_mixed(&log[0]) && log[1].via == Via::Tcp && !is_mixed(&log[1]));
}
