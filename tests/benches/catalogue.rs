//! The catalogue at size: a list of 1,000,000 triggers loads in under 2 s, and a name is matched in under 200 ns
//! whatever the size. `cargo bench --bench catalogue`.
//!
//! `load` reads text from memory: parse, checks, index. `find` asks names in an order that no cache foresees, each
//! after the answer to the one before: a listed name, one below a listed name, one that is not listed, one of 30
//! labels more. They are picked out of all that are listed, the worst case, where each misses the processor's
//! caches, and (`busy`) out of 10,000. An iteration asks 1,000,000 names, so its milliseconds are nanoseconds a
//! name. Wall time: run it on an idle machine.

use std::fmt::Write;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use greenlane::catalogue::{Catalogue, Options, compile};
use greenlane::name::Name;
use jiff::civil::date;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SEED: u64 = 20_261_124;
const SIZES: [usize; 3] = [320, 30_000, 1_000_000];
/// So many that a millisecond for all is a nanosecond for one.
const ASKED: usize = 1_000_000;

/// How many different names a busy site asks within the minutes that caches remember.
const BUSY: usize = 10_000;

/// Makes names as lists hold them: two to four labels under a few endings.
fn names(count: usize) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(SEED);
    let endings = ["com", "net", "org", "io", "co.uk", "example"];
    let hosts = ["", "", "cdn.", "login.", "static.assets."];
    (0..count)
        .map(|i| {
            let host = hosts[rng.random_range(0..hosts.len())];
            let ending = endings[rng.random_range(0..endings.len())];
            let word: String = (0..rng.random_range(4..9)).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect();
            format!("{host}{word}{i}.{ending}")
        })
        .collect()
}

/// Writes the names as a list, all kinds among them.
fn list(names: &[String]) -> String {
    let mut text = String::from("# Bench\n");
    for (i, name) in names.iter().enumerate() {
        let sign = ["", "", "", "*.", "="][i % 5];
        // Writing to a string never fails.
        let _ = writeln!(text, "{sign}{name}");
    }
    text
}

fn catalogue(text: &str) -> Catalogue {
    match compile([("bench.list", text.as_bytes())], &Options::default(), date(2026, 11, 24)) {
        Ok(loaded) => loaded.catalogue,
        Err(problems) => panic!("{problems}"),
    }
}

fn wire(text: &str) -> Box<[u8]> {
    Name::parse(text).map(|name| name.as_wire().into()).unwrap_or_default()
}

fn load(c: &mut Criterion) {
    let mut group = c.benchmark_group("load");
    group.sample_size(10);
    for size in SIZES {
        let text = list(&names(size));
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(format!("{size}"), |b| b.iter_with_large_drop(|| catalogue(black_box(&text))));
    }
    group.finish();
}

/// Asks all names once, each after the answer to the one before: what one name takes, not what many take at a time.
fn ask(catalogue: &Catalogue, wires: &[u8], ends: &[u32]) -> usize {
    let zero = black_box(0);
    let (mut start, mut found, mut i) = (0, 0, 0);
    while let Some(&end) = ends.get(i) {
        let id = catalogue.find_wire(&wires[start as usize..end as usize]).map_or(0, |id| id.as_u32() | 1);
        found += usize::from(id != 0);
        i += 1 + (id & zero) as usize;
        start = end;
    }
    found
}

/// Makes the name asked out of a listed one.
type Form = fn(&str) -> String;

fn find(c: &mut Criterion) {
    let mut group = c.benchmark_group("find");
    group.sample_size(10);
    for size in SIZES {
        let names = names(size);
        let catalogue = catalogue(&list(&names));
        println!("{size} triggers: {} octets a trigger on the heap", catalogue.heap_bytes() / size);
        let mut rng = StdRng::seed_from_u64(SEED);
        let forms: [(&str, usize, Form); 6] = [
            ("listed", size, |name| name.to_owned()),
            ("below", size, |name| format!("edge-7.eu-west.{name}")),
            ("miss", size, |name| format!("www.not{name}")),
            ("deep", size, |name| format!("{}{name}", "x.".repeat(30))),
            ("busy-listed", BUSY, |name| name.to_owned()),
            ("busy-below", BUSY, |name| format!("edge-7.eu-west.{name}")),
        ];
        for (what, pool, form) in forms {
            let picked = (0..ASKED).map(|_| &names[rng.random_range(0..size.min(pool))]);
            let (mut wires, mut ends) = (Vec::new(), Vec::new());
            for name in picked {
                wires.extend_from_slice(&wire(&form(name)));
                ends.push(wires.len() as u32);
            }
            group.throughput(Throughput::Elements(ASKED as u64));
            group.bench_function(format!("{what}/{size}"), |b| b.iter(|| ask(&catalogue, &wires, &ends)));
        }
    }
    group.finish();
}

criterion_group!(benches, load, find);
criterion_main!(benches);
