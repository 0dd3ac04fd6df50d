//! The short way over UDP: ports and ids, and that it ends as a race does whatever comes up.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::*;
use crate::forward::hopes::{Broken, Hope, Place};
use crate::forward::letters::Repeats;
use crate::forward::measure::{Kind, Metrics};
use crate::forward::message::Manner;
use crate::forward::udp::{Datagrams, Reader};

const MANNER: Manner = Manner { edns: true, authentic_data: false, padded: false };

/// Asks on the short way, and waits for it.
async fn short(forward: &Forward, question: Question) -> Result<Walked, Failure> {
    let (sender, result) = oneshot::channel();
    forward.ask_then(Arc::new(question), &Handle::current(), move |result| drop(sender.send(result)));
    result.await.unwrap()
}

#[tokio::test]
async fn ports_and_ids_are_drawn_anew_and_ports_are_replaced() {
    let upstream = scripted::Upstream::start(answers([192, 0, 2, 1])).await;
    let tally = Metrics::new(&Registry::new()).of("upstream-1");
    // Room for eight ports and eight that end.
    let ports =
        Datagrams::new(upstream.addr, 16, Repeats::new(false, clock()), tally, Arc::new(Reader::start().unwrap()));
    for number in 0..4000 {
        let asked = Arc::new(question(&format!("n{number}.example"), A));
        ports.ask(&asked, MANNER).await.unwrap();
    }
    let (mut uses, mut ids) = (HashMap::new(), HashMap::new());
    for asked in upstream.log() {
        *uses.entry(asked.from.port()).or_insert(0) += 1;
        *ids.entry(asked.id()).or_insert(0) += 1;
    }
    assert!(uses.len() >= 4000 / 256, "{uses:?}");
    // The system may draw a port a second time.
    assert!(uses.values().all(|&uses| uses <= 2 * 256), "{uses:?}");
    assert!(ids.len() > 3500 && ids.values().all(|&uses| uses < 12), "{} ids", ids.len());
}

#[tokio::test]
async fn late_reply_to_an_abandoned_question_reaches_nobody() {
    let upstream = scripted::Upstream::start(|asked| match &*asked.name() {
        "late.example" => asked.a([203, 0, 113, 66]).after(Duration::from_millis(200)),
        _ => asked.a([192, 0, 2, 1]).after(Duration::from_millis(400)),
    })
    .await;
    let tally = Metrics::new(&Registry::new()).of("upstream-1");
    let ports = Datagrams::new(
        upstream.addr,
        16,
        Repeats::new(false, clock()),
        tally.clone(),
        Arc::new(Reader::start().unwrap()),
    );
    let asked = Arc::new(question("late.example", A));
    assert!(tokio::time::timeout(Duration::from_millis(50), ports.ask(&asked, MANNER)).await.is_err());
    // Somebody waits on every port when it comes.
    let asking = (0..8).map(|number| {
        let (ports, asked) = (&ports, Arc::new(question(&format!("n{number}.example"), A)));
        async move { ports.ask(&asked, MANNER).await.unwrap() }
    });
    for reply in futures_util::future::join_all(asking).await {
        assert_eq!(reply[reply.len() - 15..reply.len() - 11], [192, 0, 2, 1]);
    }
    assert!(tally.failures(Kind::Mismatch).get() <= 1);
}

#[tokio::test]
async fn short_way_ends_as_a_race_does() {
    type Script = fn(&Asked) -> Act;
    let scripts: [(&str, Script, Result<u16, Failure>); 8] = [
        ("an answer", |asked| asked.a([192, 0, 2, 1]), Ok(0)),
        ("NXDOMAIN", |asked| asked.fail(rcode::NXDOMAIN), Ok(3)),
        ("a failure reply", |asked| asked.fail(rcode::SERVFAIL), Ok(2)),
        ("a lost packet", |asked| if asked.before == 0 { Act::Drop } else { asked.a([192, 0, 2, 1]) }, Ok(0)),
        (
            "a late reply",
            |asked| {
                if asked.before == 0 { asked.a([192, 0, 2, 1]).after(Duration::from_millis(900)) } else { Act::Drop }
            },
            Ok(0),
        ),
        (
            "a cut reply",
            |asked| if asked.via == Via::Udp { asked.reply().truncated().act() } else { asked.a([192, 0, 2, 1]) },
            Ok(0),
        ),
        ("no EDNS", |asked| if asked.has_opt() { asked.fail(rcode::FORMERR) } else { asked.a([192, 0, 2, 1]) }, Ok(0)),
        (
            "a malformed reply",
            |asked| asked.reply().answer(&record(&[0xc0, 12], A, 300, &[192, 0, 2])).act(),
            Err(Failure::Malformed),
        ),
    ];
    for (what, script, expected) in scripts {
        let mut logs = Vec::new();
        for is_short in [false, true] {
            let upstream = scripted::Upstream::start(script).await;
            let forward = forward(vec![udp(&upstream)]);
            let asked = question("a.example", A);
            let got = if is_short { short(&forward, asked).await } else { forward.ask(&asked).await };
            assert_eq!(got.map(|walked| walked.answer.rcode()), expected, "{what}");
            assert_eq!(forward.waiting(), 0, "{what}");
            let status = forward.status().remove(0);
            logs.push((upstream.count(), status.asked, status.answered, status.failed));
        }
        assert_eq!(logs[0], logs[1], "{what}: the same tries, counted alike");
    }
}

#[tokio::test]
async fn refused_port_ends_the_short_way_at_once() {
    let gone = scripted::Upstream::start(loses).await;
    let gone_udp = udp(&gone);
    drop(gone);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let alive = scripted::Upstream::start(answers([192, 0, 2, 2])).await;
    let forward = forward(vec![gone_udp, udp(&alive)]);
    let (walked, took) = timed(short(&forward, question("a.example", A))).await;
    assert_eq!(first_a(&walked.unwrap()), [192, 0, 2, 2]);
    assert!(took < AT_ONCE, "{took:?}");
    assert!(!forward.status()[0].is_up);
}

#[tokio::test]
async fn flood_evicts_the_oldest_question_on_the_short_way() {
    let upstream = scripted::Upstream::start(loses).await;
    let mut forward = forward(vec![udp(&upstream)]);
    forward.waiting = Waiting::new(2);
    let mut oldest = std::pin::pin!(short(&forward, question("a.example", A)));
    assert!(futures_util::poll!(&mut oldest).is_pending());
    let mut others = std::pin::pin!(async {
        tokio::join!(short(&forward, question("b.example", A)), short(&forward, question("c.example", A)))
    });
    assert!(futures_util::poll!(&mut others).is_pending());
    assert_eq!(oldest.await.unwrap_err(), Failure::Evicted);
    assert!(futures_util::poll!(&mut others).is_pending());
}

/// Asks from a thread with an exchange of its own, `count` questions at a time, until `until`; tells which thread heard
/// each answer.
fn ask_on_own_exchange(ports: &Datagrams, count: usize, work: impl FnOnce(Exchange)) -> Vec<thread::ThreadId> {
    let exchange = Exchange::own().unwrap();
    assert!(exchange.is_idle());
    let heard = Arc::<Mutex<Vec<_>>>::default();
    for number in 0..count {
        let asked = Arc::new(question(&format!("n{number}.example"), A));
        let now = Instant::now();
        ports.send(&asked, MANNER, (now, None), Box::new(Ear(Arc::clone(&heard))));
        assert!(!exchange.is_idle(), "somebody waits");
    }
    work(exchange);
    std::mem::take(&mut *heard.lock())
}

/// Notes which thread tells it.
struct Ear(Arc<Mutex<Vec<thread::ThreadId>>>);

impl Hope for Ear {
    fn replied(self: Box<Self>, _: &[u8]) {
        self.0.lock().push(thread::current().id());
    }

    fn broke(self: Box<Self>, broken: Broken) {
        panic!("{broken:?}");
    }

    fn overdue(self: Box<Self>, _: Place) -> Box<dyn Hope> {
        self
    }

    fn evicted(self: Box<Self>) {}
}

fn ports(upstream: &scripted::Upstream, sockets_max: usize) -> Datagrams {
    let tally = Metrics::new(&Registry::new()).of("upstream-1");
    Datagrams::new(upstream.addr, sockets_max, Repeats::new(false, clock()), tally, Arc::new(Reader::start().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_hear_the_replies_to_their_own_questions() {
    let upstream = scripted::Upstream::start(answers([192, 0, 2, 1])).await;
    let ports = Arc::new(ports(&upstream, 64));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let ports = Arc::clone(&ports);
            thread::spawn(move || {
                let heard = ask_on_own_exchange(&ports, 50, |mut exchange| {
                    // Until nobody has waited for a moment.
                    while !exchange.is_idle() {
                        exchange.turn(Exchange::tick());
                    }
                });
                assert_eq!(heard, [thread::current().id(); 50]);
            })
        })
        .collect();
    for thread in threads {
        tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
    }
    // A thread without one is told by the common reader.
    ports.ask(&Arc::new(question("a.example", A)), MANNER).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_ends_when_nobody_waits_any_more() {
    let upstream = scripted::Upstream::start(|asked| {
        asked.a([192, 0, 2, 1]).after(Duration::from_millis(if asked.name().starts_with("n1") { 300 } else { 1 }))
    })
    .await;
    let ports = ports(&upstream, 64);
    let heard = tokio::task::spawn_blocking(move || ask_on_own_exchange(&ports, 20, Exchange::finish)).await.unwrap();
    assert_eq!(heard.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_threads_than_ports_share_those_of_the_common_reader() {
    let upstream = scripted::Upstream::start(|asked| asked.a([192, 0, 2, 1]).after(Duration::from_millis(200))).await;
    // Sixteen sockets, and more threads that each would like some.
    let ports = Arc::new(ports(&upstream, 16));
    ports.ask(&Arc::new(question("a.example", A)), MANNER).await.unwrap();
    let threads: Vec<_> = (0..40)
        .map(|_| {
            let ports = Arc::clone(&ports);
            thread::spawn(move || {
                let waits = Arc::new(Mutex::new(Vec::new()));
                let exchange = Exchange::own().unwrap();
                for number in 0..3 {
                    let asked = Arc::new(question(&format!("n{number}.example"), A));
                    ports.send(&asked, MANNER, (Instant::now(), None), Box::new(Ear(Arc::clone(&waits))));
                }
                exchange.finish();
                // The common reader may be at it yet.
                while waits.lock().len() < 3 {
                    thread::sleep(Duration::from_millis(5));
                }
            })
        })
        .collect();
    for thread in threads {
        tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
    }
    let from: std::collections::HashSet<u16> = upstream.log().iter().map(|asked| asked.from.port()).collect();
    assert!(from.len() <= 16, "{} ports", from.len());
}

#[tokio::test]
async fn thousands_wait_on_one_connection() {
    let slow = |asked: &Asked| asked.a([192, 0, 2, 1]).after(Duration::from_millis(300));
    let upstream = scripted::Upstream::start(slow).await;
    let forward = Arc::new(forward(vec![tcp(&upstream)]));
    let mut asking = JoinSet::new();
    for number in 0..3000 {
        let forward = forward.clone();
        asking.spawn(async move { forward.ask(&question(&format!("n{number}.example"), A)).await });
    }
    while let Some(done) = asking.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn late_first_try_is_hedged_by_the_next_upstream() {
    let script = |asked: &Asked| match &*asked.name() {
        "late.example" => Act::Drop,
        _ => asked.a([192, 0, 2, 1]),
    };
    let first = scripted::Upstream::start(script).await;
    let second = scripted::Upstream::start(|asked| asked.a([192, 0, 2, 2]).after(Duration::from_millis(15))).await;
    let registry = Registry::new();
    let options = Options { strategy: Strategy::Fastest, ..options(vec![udp(&first), udp(&second)]) };
    let forward = Forward::with_roots(options, RULES, clock(), &registry, Vec::new()).unwrap();
    for number in 0..100 {
        short(&forward, question(&format!("n{number}.example"), A)).await.unwrap();
    }
    let walked = short(&forward, question("late.example", A)).await.unwrap();
    assert_eq!(first_a(&walked), [192, 0, 2, 2]);
    let text = String::from_utf8(registry.render()).unwrap();
    assert!(text.contains("greenlane_forward_hedges_total") && !text.contains("hedges_total 0\n"), "{text}");
}
