//! What of an answer is learned, and that it is there when the client reads it.

use futures_util::future::join_all;
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;

use super::{DNAME, SVCB, a, aaaa, addr, cname, holds, number, patient, reply, serial, svcb, ttls, with};
use crate::harness::{addresses, question, tag};
use crate::upstream::{AAAA, Act, Asked, HTTPS, Upstream, Via, record, wire_name};

#[tokio::test]
async fn an_address_is_in_the_feed_when_the_client_reads_it() {
    let (_upstream, greenlane) = with(|asked| reply(asked, &[a(&asked.name(), 300, addr(number(asked)))])).await;
    for n in 0..40 {
        let answer = greenlane.ask(&format!("n{n}.listed.example"), RecordType::A).await;
        assert_eq!(addresses(&answer), [addr(n).to_string()]);
        assert_eq!(ttls(&answer), [300]);
        let feed = greenlane.prefixes("").await;
        assert!(feed.contains(&format!("{}/32", addr(n))), "{n} right after its answer: {feed:?}");
    }
    greenlane.ask("n41.other.example", RecordType::A).await;
    assert_eq!(greenlane.prefixes("").await.len(), 40, "what is not listed is not learned");
}

#[tokio::test]
async fn two_hundred_names_asked_by_eight_clients_at_once_are_each_there_in_time() {
    let (upstream, greenlane) = with(|asked| reply(asked, &[a(&asked.name(), 300, addr(number(asked)))])).await;
    let greenlane = &greenlane;
    let clients = (0..8).map(|client| async move {
        for n in 0..200 {
            // Half of them go through the names together, the others from the middle on.
            let n = (n + client % 2 * 100) % 200;
            let answer = greenlane.ask(&format!("n{n}.listed.example"), RecordType::A).await;
            assert_eq!(ttls(&answer).len(), 1);
            assert!(ttls(&answer)[0] > 1, "programmed, so told with its TTL");
            let feed = greenlane.prefixes("").await;
            assert!(feed.contains(&format!("{}/32", addr(n))), "client {client}, name {n}");
        }
    });
    join_all(clients).await;
    // Eight clients would cause 1,600 without a common flight. A busy machine makes greenlane ask again now and then.
    assert!((200..220).contains(&upstream.count()), "{}", upstream.count());
    assert!(serial(greenlane).await <= 200.0);
}

#[tokio::test]
async fn ipv6_addresses_are_learned_too() {
    let (_upstream, greenlane) = with(|asked| match asked.qtype() {
        AAAA => reply(asked, &[aaaa(&asked.name(), 300, "2001:db8::5")]),
        _ => reply(asked, &[a(&asked.name(), 300, addr(1))]),
    })
    .await;
    greenlane.ask("www.listed.example", RecordType::AAAA).await;
    assert_eq!(greenlane.prefixes("").await, ["2001:db8::5/128"]);
    greenlane.ask("www.listed.example", RecordType::A).await;
    assert_eq!(greenlane.prefixes("").await, [format!("{}/32", addr(1)), "2001:db8::5/128".into()]);
    assert_eq!(greenlane.prefixes("?family=6").await, ["2001:db8::5/128"]);
    assert_eq!(greenlane.metric("greenlane_set_entries{family=\"6\",origin=\"learned\"}").await, 1.0);
}

/// Sixty addresses over TCP; over UDP they are cut.
fn sixty_by_tcp(asked: &Asked) -> Act {
    let all: Vec<_> = (0..60).map(|n| a(&asked.name(), 300, addr(n))).collect();
    match asked.via {
        Via::Udp => asked.reply().truncated().act(),
        _ => reply(asked, &all),
    }
}

#[tokio::test]
async fn sixty_addresses_of_one_answer_over_tcp_are_all_learned() {
    let (_upstream, greenlane) = with(sixty_by_tcp).await;
    let answer = greenlane.ask_tcp("large.listed.example", RecordType::A).await;
    assert_eq!(answer.answers.len(), 60);
    assert_eq!(greenlane.prefixes("").await, (0..60).map(|n| format!("{}/32", addr(n))).collect::<Vec<_>>());
    assert_eq!(serial(&greenlane).await, 1.0, "one answer, one serial");
}

#[tokio::test]
async fn what_is_cut_for_a_udp_client_is_learned_whole() {
    let (_upstream, greenlane) = with(sixty_by_tcp).await;
    let mut query = question("large.listed.example", RecordType::A);
    query.edns.as_mut().unwrap().set_max_payload(512);
    let cut = Message::from_vec(&greenlane.udp(&query.to_vec().unwrap()).await.unwrap()).unwrap();
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(greenlane.prefixes("").await.len(), 60, "its retry over TCP must not be the first to bring them");
}

// What counts of an answer.

#[tokio::test]
async fn a_chain_of_one_to_twelve_names_is_followed_and_nothing_beside_it() {
    // c4.listed.example → c4-1.cdn.example → … → c4-4.cdn.example, which owns the address; in any order.
    let (_upstream, greenlane) = with(|asked| {
        let (name, len) = (asked.name(), number(asked));
        let link = |i: u32| if i == 0 { name.clone() } else { format!("c{len}-{i}.cdn.example") };
        let mut records: Vec<_> = (0..len).map(|i| cname(&link(i), 300, &link(i + 1))).collect();
        records.push(a(&link(len), 300, addr(len)));
        // Put in by somebody along the way.
        records.push(a("stranger.example", 300, addr(1000)));
        records.push(a(&format!("sub.{name}"), 300, addr(1001)));
        records.push(a("listed.example", 300, addr(1002)));
        if len % 2 == 0 {
            records.reverse();
        }
        records
            .iter()
            .fold(asked.reply(), |reply, record| reply.answer(record))
            .authority(&record(&wire_name("listed.example"), 2, 300, &wire_name("ns.listed.example")))
            .authority(&a(&name, 300, addr(1003)))
            .additional(&a("ns.listed.example", 300, addr(1004)))
            .additional(&a(&name, 300, addr(1005)))
            .act()
    })
    .await;
    for len in 1..=12 {
        let answer = greenlane.ask_tcp(&format!("c{len}.listed.example"), RecordType::A).await;
        assert_eq!(answer.answers.len(), len as usize + 4, "the client gets all of it");
        let expected: Vec<_> = (1..=len).map(|n| format!("{}/32", addr(n))).collect();
        assert_eq!(greenlane.prefixes("").await, expected, "a chain of {len}");
    }
    let why = greenlane.json(&format!("/explain?address={}", addr(7))).await;
    assert!(why.to_string().contains("c7.listed.example"), "a sighting of the name asked: {why}");
}

#[tokio::test]
async fn a_dname_is_followed() {
    let (_upstream, greenlane) = with(|asked| {
        let dname = |owner: &str, target: &str| record(&wire_name(owner), DNAME, 300, &wire_name(target));
        let moved = asked.name().replace(".old.listed.example", ".new.example");
        match asked.name().as_str() {
            // As RFC 6672 has it, with the CNAME made from it.
            "www.old.listed.example" => reply(
                asked,
                &[
                    dname("old.listed.example", "new.example"),
                    cname(&asked.name(), 300, &moved),
                    a(&moved, 300, addr(1)),
                ],
            ),
            // And without.
            _ => reply(asked, &[dname("old.listed.example", "new.example"), a(&moved, 300, addr(2))]),
        }
    })
    .await;
    greenlane.ask("www.old.listed.example", RecordType::A).await;
    greenlane.ask("api.old.listed.example", RecordType::A).await;
    assert_eq!(greenlane.prefixes("").await, [format!("{}/32", addr(1)), format!("{}/32", addr(2))]);
}

#[tokio::test]
async fn hints_of_https_and_svcb_are_learned() {
    let (_upstream, greenlane) = with(|asked| match (asked.name().as_str(), asked.qtype()) {
        ("www.listed.example", HTTPS) => {
            let rdata = svcb(1, "", &[addr(1), addr(2)], &["2001:db8::1"]);
            reply(asked, &[record(&[0xc0, 12], HTTPS, 300, &rdata)])
        }
        ("_dns.listed.example", SVCB) => {
            reply(asked, &[record(&[0xc0, 12], SVCB, 300, &svcb(1, "svc.example", &[addr(3)], &[]))])
        }
        // Behind a CNAME, and beside one of a stranger.
        ("far.listed.example", HTTPS) => reply(
            asked,
            &[
                cname("far.listed.example", 300, "cdn.example"),
                record(&wire_name("cdn.example"), HTTPS, 300, &svcb(2, "", &[addr(4)], &[])),
                record(&wire_name("stranger.example"), HTTPS, 300, &svcb(2, "", &[addr(5)], &[])),
            ],
        ),
        other => panic!("{other:?}"),
    })
    .await;
    let answer = greenlane.ask("www.listed.example", RecordType::HTTPS).await;
    assert_eq!(tag(&answer).as_deref(), Some("app=demo;match=listed.example"));
    let feed = greenlane.prefixes("").await;
    assert_eq!(feed, [format!("{}/32", addr(1)), format!("{}/32", addr(2)), "2001:db8::1/128".into()]);
    greenlane.ask("_dns.listed.example", RecordType::SVCB).await;
    assert!(holds(&greenlane.prefixes("").await, addr(3)));
    greenlane.ask("far.listed.example", RecordType::HTTPS).await;
    let feed = greenlane.prefixes("").await;
    assert!(holds(&feed, addr(4)) && !holds(&feed, addr(5)), "{feed:?}");
}

#[tokio::test]
async fn a_listed_target_makes_no_strangers_name_listed() {
    let (_upstream, greenlane) = with(|asked| {
        let name = asked.name();
        reply(asked, &[cname(&name, 300, "www.listed.example"), a("www.listed.example", 300, addr(66))])
    })
    .await;
    let answer = greenlane.ask("stranger.example", RecordType::A).await;
    assert_eq!(addresses(&answer), [addr(66).to_string()]);
    assert_eq!(tag(&answer), None);
    assert_eq!(greenlane.prefixes("").await, [""; 0]);
    assert_eq!(greenlane.metric("greenlane_tag_answers_total{app=\"demo\"}").await, 0.0);
}

#[tokio::test]
async fn every_app_decides_alone_and_a_name_carries_all_that_say_yes() {
    let upstream = Upstream::start(|asked| {
        let last = match asked.name().split('.').next().unwrap() {
            "both" => 1,
            "files" => 2,
            _ => 3,
        };
        reply(asked, &[a(&asked.name(), 300, addr(last))])
    })
    .await;
    let greenlane = patient(&upstream)
        .list("demo.list", "# Demo\nlisted.example\n!files.listed.example\n!no.listed.example\n")
        .list("second.list", "# Second\n*.listed.example\n!no.listed.example\n")
        .start()
        .await;
    let tag_of = async |name: &str| tag(&greenlane.ask(name, RecordType::A).await);
    let both = tag_of("both.listed.example").await;
    assert_eq!(both.as_deref(), Some("app=second;match=*.listed.example;also=demo"), "`*.` is the more specific");
    assert_eq!(tag_of("files.listed.example").await.as_deref(), Some("app=second;match=*.listed.example"));
    assert_eq!(tag_of("deep.no.listed.example").await, None, "`!` speaks from that name down");
    let lines = |ns: &[u32]| ns.iter().map(|n| format!("{}/32", addr(*n))).collect::<Vec<_>>();
    assert_eq!(greenlane.prefixes("").await, lines(&[1, 2]));
    assert_eq!(greenlane.prefixes("?app=demo").await, lines(&[1]));
    assert_eq!(greenlane.prefixes("?app=second").await, lines(&[1, 2]));
}
