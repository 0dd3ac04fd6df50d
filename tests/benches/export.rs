//! What the lists of a million learned hosts cost, aggregation included.
//!
//! `cargo bench --bench export` renders each dialect of 500,000 IPv4 and 500,000 IPv6 hosts that do not aggregate, and
//! compresses the text form.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use greenlane::catalogue::{AppId, Tag, TagApp};
use greenlane::clock::Timestamp;
use greenlane::export::Query;
use greenlane::export::format::Format;
use greenlane::metrics::Registry;
use greenlane::set::{Draft, NameRecord, Need, Session, Sighting, Snapshot, Times};
use greenlane::source::Location;

const HOSTS: u64 = 1_000_000;
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Every other address: no two are halves of one prefix.
fn addr(n: u64) -> IpAddr {
    let host = n / 2 * 2;
    match n % 2 {
        0 => Ipv4Addr::from(0x0b00_0000 + u32::try_from(host).unwrap()).into(),
        _ => Ipv6Addr::from((0x2001_0db8 << 96) | (u128::from(host) * 0x1_0001_0000)).into(),
    }
}

fn snapshot() -> Snapshot {
    let mut draft = Draft::new(Session(1), NOW, &Registry::new());
    let hit =
        TagApp { app: AppId::new("zoom"), trigger: "zoom.us".into(), location: Location::file("zones/zoom.list") };
    let record = Arc::new(NameRecord::new("zoom.us".parse().unwrap(), Tag::new(vec![hit])));
    let need = Need::new(NOW, Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(300));
    for n in 0..HOSTS {
        draft.insert(Sighting::new(addr(n), Arc::clone(&record), NOW, Times::from(need)));
    }
    draft.commit(NOW);
    draft.reader().snapshot()
}

fn render(criterion: &mut Criterion) {
    let snapshot = snapshot();
    let mut group = criterion.benchmark_group("render 1,000,000 hosts");
    group.sample_size(10);
    for format in Format::PREFIXES {
        let rendered = format.render(&snapshot, &Query::default());
        println!("{}: {} octets", format.name(), rendered.bytes.len());
        group.bench_function(format.name(), |bencher| {
            bencher.iter(|| black_box(format.render(&snapshot, &Query::default())));
        });
    }
    let max = std::num::NonZeroU32::new(100_000);
    group.bench_function("txt, max=100000", |bencher| {
        bencher.iter(|| black_box(Format::Txt.render(&snapshot, &Query { max, ..Query::default() })));
    });
}

criterion_group!(benches, render);
criterion_main!(benches);
