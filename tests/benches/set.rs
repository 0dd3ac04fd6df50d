//! What a set of a million sightings costs: memory, one more address, the aggregated list, the end of all.
//!
//! `cargo bench --bench set` first prints what criterion does not measure (octets allocated a sighting, the expiry of
//! the whole set in one batch), then times an insert with its publication, and the aggregation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use greenlane::catalogue::{AppId, Tag, TagApp};
use greenlane::clock::{Clock, Timestamp};
use greenlane::metrics::Registry;
use greenlane::name::Name;
use greenlane::set::{Draft, NameRecord, Need, Selection, Session, Sighting, Times};
use greenlane::source::Location;

/// The system's allocator, counting what is asked of it.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator that counts cannot be written without")]
// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: see above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: see above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SIGHTINGS: u64 = 1_000_000;

/// Addresses to a name: what the pool of a large service answers with over its hold.
const PER_NAME: u64 = 8;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);

fn need(now: Timestamp) -> Need {
    Need::new(now, Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(300))
}

/// Spreads `n` over 64 bits: a step of splitmix64.
fn spread(n: u64) -> u64 {
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The `n`th address: half IPv4, half IPv6, in no order.
fn address(n: u64) -> IpAddr {
    let bits = spread(n);
    if n.is_multiple_of(2) {
        IpAddr::V4(Ipv4Addr::from_bits((bits >> 32) as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits((0x2600_u128 << 112) | u128::from(bits)))
    }
}

fn record(n: u64, tags: &[Tag]) -> Arc<NameRecord> {
    let name = Name::parse(&format!("host-{n}.pool.example.com")).expect("a name");
    Arc::new(NameRecord::new(name, tags[n as usize % tags.len()].clone()))
}

fn tags() -> Vec<Tag> {
    let tag = |n: u32| {
        let app = format!("app-{n}");
        Tag::new(vec![TagApp {
            app: AppId::new(&*app),
            trigger: "example.com".into(),
            location: Location::file(&*app),
        }])
    };
    (0..16).map(tag).collect()
}

fn sighting(n: u64, record: &Arc<NameRecord>) -> Sighting {
    Sighting::new(address(n), Arc::clone(record), START, Times::from(need(START)))
}

/// Fills a draft, each name's addresses published by themselves.
fn filled(tags: &[Tag]) -> Draft {
    let mut draft = Draft::new(Session(1), START, &Registry::new());
    for name in 0..SIGHTINGS / PER_NAME {
        let record = record(name, tags);
        for n in 0..PER_NAME {
            draft.insert(sighting(name * PER_NAME + n, &record));
        }
        draft.commit(START);
    }
    draft
}

fn figures(tags: &[Tag]) {
    let clock = Clock::system();
    let before = ALLOCATED.load(Ordering::Relaxed);
    let mut draft = filled(tags);
    let held = ALLOCATED.load(Ordering::Relaxed) - before;
    let count = draft.sighting_count();
    println!("set/memory: {count} sightings in {:.1} MB, {} octets each", held as f64 / 1e6, held / count);
    let started = clock.now();
    let end = need(START).end;
    let mut due: Vec<_> = std::iter::from_fn(|| draft.due(end)).collect();
    due.sort_unstable_by_key(|sighting| sighting.addr());
    due.iter().for_each(|sighting| draft.remove(sighting));
    draft.commit(end);
    println!("set/expiry: {count} sightings left in one batch in {} ms", clock.now().since(started).as_millis());
    assert_eq!(draft.host_count(), 0, "all have ended");
}

fn benches(c: &mut Criterion) {
    let tags = tags();
    figures(&tags);
    let mut draft = filled(&tags);
    let reader = draft.reader();

    // One more address in a batch of its own, and its snapshot; the last one goes. The writer's whole work but I/O.
    let mut next = SIGHTINGS;
    c.bench_function("set/insert_one_and_publish", |b| {
        b.iter_batched(
            || {
                next += 1;
                sighting(next, &record(next, &tags))
            },
            |sighting| {
                draft.insert(sighting);
                draft.commit(START)
            },
            BatchSize::SmallInput,
        );
    });

    let snapshot = reader.snapshot();
    c.bench_function("set/aggregate_all", |b| b.iter(|| black_box(snapshot.prefixes(&Selection::default())).len()));
    let one_app = Selection { apps: Some(vec![AppId::new("app-3")]), ..Selection::default() };
    c.bench_function("set/aggregate_one_app", |b| b.iter(|| black_box(snapshot.prefixes(&one_app)).len()));
    c.bench_function("set/find_host", |b| {
        let mut n = 0;
        b.iter(|| {
            n = (n + 7919) % SIGHTINGS;
            snapshot.host(address(n)).is_some()
        });
    });
}

criterion_group! {
    name = set;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(5));
    targets = benches
}
criterion_main!(set);
