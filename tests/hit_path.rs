//! What memory costs: a hit allocates nothing ([`Pipeline::try_answer`]), and a cache takes what it says. Both are seen
//! by an allocator that counts.
//!
//! The parts are joined as the daemon joins them, with a scripted upstream behind real sockets. Only what the test's
//! own thread allocates is counted, and only while a hit is answered.

#![expect(unsafe_code, reason = "an allocator that counts is an `unsafe impl GlobalAlloc`; it only passes calls on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use greenlane::cache::{Cache, Entry, KeyBuf, Mark};
use greenlane::catalogue::{self, Catalogue};
use greenlane::clock::{Clock, Timestamp};
use greenlane::forward::{self, Forward, Protocol};
use greenlane::learn::{self, Listing};
use greenlane::listen::cookie::Secrets;
use greenlane::listen::{Access, Front, Meter, access, rate};
use greenlane::metrics::Registry;
use greenlane::name::Name;
use greenlane::pipeline::{Current, Near, Pipeline, TagOptions, Tried};
use greenlane::policy::Special;
use greenlane::wire::{self, Question, Rules, Seen, Transport, View, see};

#[path = "it/upstream.rs"]
mod upstream;

use upstream::{A, AAAA, Asked, CNAME, TXT, Upstream, record, wire_name};

/// Passes every call on to the system, and counts those that may take memory.
struct Counting;

thread_local! {
    /// Allocations of this thread. Constant and without a destructor, so that reading it allocates nothing itself.
    static COUNT: Cell<usize> = const { Cell::new(0) };
    /// Octets that this thread took less those that it gave back, as glibc's allocator rounds them.
    static TAKEN: Cell<isize> = const { Cell::new(0) };
}

fn count(taken: usize) {
    COUNT.set(COUNT.get() + 1);
    TAKEN.set(TAKEN.get() + rounded(taken));
}

fn give_back(size: usize) {
    TAKEN.set(TAKEN.get() - rounded(size));
}

fn rounded(size: usize) -> isize {
    (size + 8).next_multiple_of(16).max(32) as isize
}

// SAFETY: every call goes to the system's allocator as it came, under the same contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that the system asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that the system asks for.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        give_back(layout.size());
        count(size);
        // SAFETY: the caller's promises are those that the system asks for.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        give_back(layout.size());
        // SAFETY: the caller's promises are those that the system asks for.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns how many allocations `work` makes on this thread, and what it returns.
fn counted<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = COUNT.get();
    let value = work();
    (COUNT.get() - before, value)
}

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
const RULES: Rules = Rules { min_ttl: 0, max_ttl: 86_400, negative_max_ttl: 3600, trust_ad: false };

fn answer(asked: &Asked) -> upstream::Act {
    let target = wire_name("edge.cdn.example");
    match asked.name().split('.').next().unwrap_or_default() {
        // A chain, both families, an extended error, authority and additional sections.
        "rich" => {
            let chain = asked.reply().answer(&record(&[0xc0, 12], CNAME, 300, &target));
            (0..9u8)
                .fold(chain, |reply, i| reply.answer(&record(&target, A, 300, &[192, 0, 2, i])))
                .answer(&record(&target, AAAA, 200, &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]))
                .authority(&record(&wire_name("example"), 2, 400, &target))
                .additional(&record(&target, A, 500, &[192, 0, 2, 53]))
                .ede(3, "an extended error of the upstream")
                .act()
        }
        // More than fits a datagram.
        "large" => {
            let text = [&[200][..], &[b'x'; 200]].concat();
            (0..7).fold(asked.reply(), |reply, _| reply.answer(&record(&[0xc0, 12], TXT, 300, &text))).act()
        }
        "none" => {
            let mut soa = [wire_name("ns.example"), wire_name("host.example")].concat();
            (0..5u32).for_each(|_| soa.extend(300u32.to_be_bytes()));
            asked.reply().rcode(3).authority(&record(&wire_name("example"), 6, 300, &soa)).act()
        }
        "broken" => asked.fail(2),
        _ => asked.a([192, 0, 2, 1]),
    }
}

/// Joins the parts around an upstream.
fn pipeline(upstream: &Upstream) -> (Pipeline, Clock) {
    let list = "# Demo\nlisted.example\n";
    let more = "# More\nboth.listed.example\n";
    let files = [("demo.list", list.as_bytes()), ("more.list", more.as_bytes())];
    let loaded = catalogue::compile(files, &catalogue::Options::default(), jiff::civil::date(2027, 1, 15)).unwrap();
    let catalogue: Arc<Catalogue> = Arc::new(loaded.catalogue);
    let matching = Arc::clone(&catalogue);
    let listing = Listing::new(Vec::new(), move |name| matching.find(name).map(|id| matching.tag(id)));
    let (clock, registry) = (Clock::manual(START), Registry::new());
    let asked = forward::Upstream { protocol: Protocol::Udp, addr: upstream.addr, tls_name: None, path: None };
    let options = forward::Options { upstreams: vec![asked], ..forward::Options::default() };
    let forward = Forward::with_roots(options, RULES, clock.clone(), &registry, Vec::new()).unwrap();
    let options = learn::Options {
        treat_as_public: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
        ..learn::Options::default()
    };
    let (learner, writer) = learn::start(learn::Start::new(options, listing, 1), clock.clone(), &registry);
    tokio::spawn(writer.run());
    let special = Special::new(Vec::new());
    let current = Current::new(1, catalogue, Arc::new(forward), special, RULES, TagOptions::default());
    (Pipeline::new(current, Cache::new(1 << 20), learner, clock.clone(), &registry), clock)
}

/// What a client sends beside the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edns {
    None,
    Plain,
    DnssecOk,
    Cookie,
}

fn question(name: &str, qtype: u16, edns: Edns) -> Vec<u8> {
    let mut octets = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    octets.extend(wire_name(name));
    octets.extend(qtype.to_be_bytes());
    octets.extend([0, 1]);
    if edns != Edns::None {
        octets[11] = 1;
        let flags = if edns == Edns::DnssecOk { 0x80 } else { 0 };
        octets.extend([0, 0, 41, 4, 0xd0, 0, 0, flags, 0]);
        let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
        octets.extend(if edns == Edns::Cookie { [&[0, 12][..], &cookie].concat() } else { vec![0, 0] });
    }
    octets
}

fn seen(octets: &[u8], transport: Transport) -> View<'_> {
    match see(octets, transport) {
        Seen::Question(view) => view,
        _ => panic!("no question: {octets:02x?}"),
    }
}

#[tokio::test]
async fn a_hit_does_not_allocate() {
    let upstream = Upstream::start(answer).await;
    let (pipeline, clock) = pipeline(&upstream);
    let mut out = Vec::with_capacity(65_535);
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut cases = Vec::new();
    for (name, qtype) in [
        ("plain.example", A),
        ("a.listed.example", A),
        ("Mixed.LISTED.example", A),
        ("a.both.listed.example", A),
        ("rich.listed.example", A),
        ("rich.example", A),
        ("large.listed.example", TXT),
        ("none.listed.example", A),
        ("broken.listed.example", A),
    ] {
        for edns in [Edns::None, Edns::Plain, Edns::DnssecOk, Edns::Cookie] {
            cases.push((name, edns, question(name, qtype, edns)));
        }
    }
    for (_, _, octets) in &cases {
        let view = seen(octets, Transport::Udp);
        if pipeline.try_answer(&view, Transport::Udp, clock.now(), &mut out) == Tried::Miss {
            pipeline.resolve(&view, Transport::Udp, client, &mut out).await;
        }
    }
    let asked = upstream.count();
    let (mut tagged, mut truncated) = (0, 0);
    let mut near = Near::new();
    for (name, edns, octets) in &cases {
        for transport in [Transport::Udp, Transport::Tcp] {
            for age in 0..3 {
                clock.advance(std::time::Duration::from_millis(100 * age));
                let (allocations, tried) = counted(|| {
                    let view = seen(octets, transport);
                    pipeline.try_answer(&view, transport, clock.now(), &mut out)
                });
                // A failure lives for two seconds only.
                if name.starts_with("broken") && tried == Tried::Miss {
                    continue;
                }
                assert_eq!((tried, allocations), (Tried::Answered, 0), "{name} with {edns:?}");
                assert_eq!(out[..2], octets[..2]);
                // The same through a thread's own table, filled by its first look.
                let reply = out.clone();
                for _ in 0..2 {
                    let (allocations, tried) = counted(|| {
                        let view = seen(octets, transport);
                        pipeline.try_answer_near(&mut near, &view, transport, clock.now(), &mut out)
                    });
                    assert_eq!((tried, allocations), (Tried::Answered, 0), "{name} with {edns:?} at hand");
                    assert_eq!(out, reply);
                }
                tagged += usize::from(out.windows(8).any(|part| part == b"app=demo" || part == b"app=more"));
                truncated += usize::from(out[2] & 2 != 0);
            }
        }
    }
    assert_eq!(upstream.count(), asked, "all of them were hits");
    assert!(tagged > 50 && truncated > 5, "{tagged} with a tag, {truncated} cut");
    // The counter does count.
    assert_eq!(counted(|| Box::new(7)).0, 1);
    assert!(counted(|| seen(&cases[0].2, Transport::Udp).question()).0 > 0);
}

#[tokio::test]
async fn a_hit_that_asks_ahead_does_not_allocate() {
    let upstream = Upstream::start(answer).await;
    let (pipeline, clock) = pipeline(&upstream);
    let mut out = Vec::with_capacity(65_535);
    // More than wait at once: those beyond are forgotten.
    let questions: Vec<_> = (0..300).map(|i| question(&format!("n{i}.listed.example"), A, Edns::Plain)).collect();
    for octets in &questions {
        let view = seen(octets, Transport::Udp);
        pipeline.resolve(&view, Transport::Udp, IpAddr::V4(Ipv4Addr::LOCALHOST), &mut out).await;
    }
    let mut ask_all = || {
        for octets in &questions {
            let view = seen(octets, Transport::Udp);
            let (allocations, tried) = counted(|| pipeline.try_answer(&view, Transport::Udp, clock.now(), &mut out));
            assert_eq!((tried, allocations), (Tried::Answered, 0));
        }
    };
    (0..3).for_each(|_| ask_all());
    clock.advance(std::time::Duration::from_secs(280));
    ask_all();
    let asked = upstream.count();
    let looking_ahead = tokio::spawn(pipeline.clone().look_ahead());
    let begun = async {
        while upstream.count() == asked {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), begun).await.expect("they are asked for");
    looking_ahead.abort();
}

#[tokio::test]
async fn looking_at_a_miss_or_at_noise_does_not_allocate() {
    let upstream = Upstream::start(answer).await;
    let (pipeline, clock) = pipeline(&upstream);
    let mut out = Vec::with_capacity(65_535);
    let warm = question("warm.example", A, Edns::Plain);
    pipeline.try_answer(&seen(&warm, Transport::Udp), Transport::Udp, clock.now(), &mut out);
    let miss = question("miss.listed.example", A, Edns::Cookie);
    let (allocations, tried) =
        counted(|| pipeline.try_answer(&seen(&miss, Transport::Udp), Transport::Udp, clock.now(), &mut out));
    assert_eq!((tried, allocations), (Tried::Miss, 0));
    let opcode = [&miss[..2], &[0x29], &miss[3..]].concat();
    let trailing = [&miss[..], &[0]].concat();
    for noise in [&miss[..11], &[0xff; 300][..], &opcode, &trailing] {
        let (allocations, ()) = counted(|| {
            if let Seen::Refuse(refusal) = see(noise, Transport::Udp) {
                pipeline.refuse(&refusal, &mut out);
            }
        });
        assert_eq!(allocations, 0, "{noise:02x?}");
    }
}

/// With limits and cookies in force: what passes, what is dropped, what is told to come again.
#[tokio::test]
async fn a_hit_of_a_limited_client_does_not_allocate() {
    let upstream = Upstream::start(answer).await;
    let (pipeline, clock) = pipeline(&upstream);
    let rate = rate::Options { per_second: 20, exempt: Vec::new(), ..rate::Options::default() };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "00112233445566778899aabbccddeeff\n").unwrap();
    let secrets = Secrets::load(file.path()).unwrap();
    let access = Access::new(access::Options { rate, ..access::Options::default() }, Some(secrets));
    let front = Front { pipeline, access: Arc::new(access), clock, meter: Meter::new(&Registry::new()) };
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut out = Vec::with_capacity(65_535);
    let [plain, asking] = [Edns::Plain, Edns::Cookie].map(|edns| question("plain.example", A, edns));
    front.slow(&asking, Transport::Udp, client, &mut out).await;
    assert_eq!(out[out.len() - 28..][..12], [0, 10, 0, 24, 1, 2, 3, 4, 5, 6, 7, 8]);
    // The same question with the cookie that came back.
    let mut knowing = asking[..asking.len() - 14].to_vec();
    knowing.extend([0, 28]);
    knowing.extend(&out[out.len() - 28..]);
    let mut quick = |octets: &[u8]| {
        let (allocations, tried) = counted(|| {
            let mut moment = front.moment();
            let tried = moment.quick(octets, Transport::Udp, client, &mut out);
            moment.end();
            tried
        });
        assert_eq!(allocations, 0);
        (tried, out.get(3).map(|low| low & 15), out.get(2).map(|high| high & 2))
    };
    // The first look may make what a thread needs once.
    front.moment().quick(&plain, Transport::Udp, client, &mut Vec::with_capacity(512));
    for octets in [&plain, &asking, &knowing] {
        assert_eq!(quick(octets), (Tried::Answered, Some(0), Some(0)));
    }
    let tried: Vec<_> = (0..40).map(|_| quick(&plain)).collect();
    assert!(tried.iter().any(|(tried, ..)| *tried == Tried::Drop));
    assert!(tried.contains(&(Tried::Answered, Some(0), Some(2))), "TC");
    let tried: Vec<_> = (0..4).map(|_| quick(&asking)).collect();
    // The lower bits of BADCOOKIE, 23.
    assert!(tried.contains(&(Tried::Answered, Some(7), Some(0))));
    (0..40).for_each(|_| assert_eq!(quick(&knowing), (Tried::Answered, Some(0), Some(0))));
}

/// Puts answers for this many names into a cache and returns the octets that it took and those that it counts.
fn fill(cache: &Cache, names: u32, address_count: u8) -> (f64, f64) {
    let mark = Mark { generation: 1, tagged: None, is_learned: false, programmed: true };
    let before = TAKEN.get();
    for i in 0..names {
        let name = Name::parse(&format!("{:x}.www.name-{i}.example", i.wrapping_mul(0x9e37_79b9))).unwrap();
        let question = Question { name, qtype: A, qclass: 1, dnssec_ok: false, checking_disabled: false };
        let mut reply = b"\0\0\x81\x80\0\x01\0\0\0\0\0\0".to_vec();
        reply[7] = address_count;
        reply.extend(question.name.as_wire());
        reply.extend([0, 1, 0, 1]);
        (0..address_count).for_each(|n| reply.extend(record(&[0xc0, 12], A, 300, &[192, 0, 2, n])));
        let answer = wire::walk(&reply, &question, &RULES).unwrap().answer;
        cache.insert(KeyBuf::new().fill_of(&question), Entry::new(&question, answer.kept(), START, 300, mark.clone()));
    }
    ((TAKEN.get() - before) as f64, cache.size_bytes() as f64)
}

#[test]
fn a_cache_takes_what_it_counts() {
    for (names, address_count) in [(40_000, 1), (5_000, 30)] {
        let cache = Cache::new(256 << 20);
        let (taken, counted) = fill(&cache, names, address_count);
        println!(
            "{address_count} addresses: {:.0} octets a name, {:.0} counted",
            taken / f64::from(names),
            counted / f64::from(names)
        );
        assert_eq!(cache.len(), names as usize);
        assert!((0.85..1.15).contains(&(taken / counted)), "{taken} taken, {counted} counted");
    }
    // Full and turned over several times, it stays within its bound.
    let cache = Cache::new(8 << 20);
    let (taken, counted) = fill(&cache, 300_000, 1);
    println!("full: {taken} taken, {counted} counted, {} names", cache.len());
    assert!(counted <= f64::from(8 << 20) && taken <= f64::from(8 << 20) * 1.15, "{taken} taken, {counted} counted");
}
