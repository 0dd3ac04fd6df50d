//! What finding and keeping an answer costs: in the cache, and through a thread's own table.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use greenlane::cache::{Cache, Entry, KeyBuf, Mark, Near};
use greenlane::clock::Timestamp;
use greenlane::name::Name;
use greenlane::wire::{Question, rcode, rtype, synthesize};

/// Names of the benches; a thread's own table holds some four thousand.
const NAMES: usize = 10_000;

fn question(i: usize) -> Question {
    Question::new(Name::parse(&format!("host-{i}.example{}.com", i % 97)).unwrap(), rtype::A)
}

fn entry(question: &Question) -> Entry {
    let answer = synthesize(question, rcode::NOERROR, &[]);
    let mark = Mark { generation: 1, tagged: None, is_learned: false, programmed: true };
    Entry::new(question, answer.kept(), Timestamp::from_secs(1), 300, mark)
}

fn benches(c: &mut Criterion) {
    let cache = Cache::new(64 << 20);
    let questions: Vec<Question> = (0..NAMES).map(question).collect();
    let keys: Vec<Vec<u8>> = questions.iter().map(|asked| KeyBuf::new().fill_of(asked).to_vec()).collect();
    for (question, key) in questions.iter().zip(&keys) {
        cache.insert(key, entry(question));
    }
    // Each index is drawn about as often as a name of that rank is asked for.
    let asked: Vec<usize> = (0..100_000u64)
        .map(|i| {
            let even = (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64;
            ((NAMES as f64).powf(even) as usize - 1).min(NAMES - 1)
        })
        .collect();
    let mut next = asked.iter().cycle();
    c.bench_function("cache/find", |b| {
        b.iter(|| black_box(cache.find(&keys[*next.next().unwrap()])).is_some());
    });
    let mut near = Near::new();
    let mut next = asked.iter().cycle();
    c.bench_function("cache/find_near", |b| {
        b.iter(|| black_box(near.find(&cache, &keys[*next.next().unwrap()])).is_some());
    });
    let mut next = (0..NAMES).cycle();
    c.bench_function("cache/insert", |b| {
        b.iter_batched(
            || next.next().map(|i| (i, entry(&questions[i]))).unwrap(),
            |(i, entry)| cache.insert(&keys[i], entry),
            BatchSize::SmallInput,
        );
    });
}

criterion_group! {
    name = cache;
    config = Criterion::default().sample_size(50);
    targets = benches
}
criterion_main!(cache);
