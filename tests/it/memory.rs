//! The cache's bound is what the process really takes: a process of its own fills a small cache far past it.

use std::process::Command;

use greenlane::cache::{Cache, Entry, KeyBuf, Mark};
use greenlane::clock::Timestamp;
use greenlane::name::Name;
use greenlane::wire::{self, Question, Rules};

use crate::upstream::{A, record};

const BOUND_MIB: u64 = 24;

/// Tells the process made by the test from the test itself.
const CHILD: &str = "GREENLANE_TEST_FILLS_A_CACHE";

const RULES: Rules = Rules { min_ttl: 0, max_ttl: 86_400, negative_max_ttl: 3600, trust_ad: false };

/// Returns what the process has in memory that no file backs, in octets.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("Linux tells it");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Keeps an answer whose name and number of addresses differ from one to the next.
fn keep(cache: &Cache, i: u32) {
    let mixed = i.wrapping_mul(0x9e37_79b9);
    let label = "x".repeat(1 + (mixed >> 27) as usize);
    let name = Name::parse(&format!("{mixed:x}.{label}.name.example")).unwrap();
    let question = Question::new(name, A);
    let address_count = [1, 1, 1, 2, 2, 3, 8, 25][(mixed >> 8) as usize % 8];
    let mut reply = b"\0\0\x81\x80\0\x01\0\0\0\0\0\0".to_vec();
    reply[7] = address_count;
    reply.extend(question.name.as_wire());
    reply.extend([0, 1, 0, 1]);
    (0..address_count).for_each(|n| reply.extend(record(&[0xc0, 12], A, 300, &[192, 0, 2, n])));
    let answer = wire::walk(&reply, &question, &RULES).unwrap().answer;
    let mark = Mark { generation: 1, tagged: None, is_learned: false, programmed: true };
    let entry = Entry::new(&question, answer.kept(), Timestamp::from_secs(1), 300, mark);
    cache.insert(KeyBuf::new().fill_of(&question), entry);
}

#[test]
fn a_full_cache_takes_its_bound_of_memory() {
    if std::env::var_os(CHILD).is_none() {
        let name = "memory::a_full_cache_takes_its_bound_of_memory";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        print!("{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let cache = Cache::new(BOUND_MIB << 20);
    let before = resident();
    let bound = (BOUND_MIB << 20) as f64;
    // Some five times what fits; looked at while it fills, when it is full, and when all in it was replaced.
    for i in 0..500_000 {
        keep(&cache, i);
        if [20_000, 100_000, 499_999].contains(&i) {
            let (taken, counted) = ((resident() - before) as f64, cache.size_bytes() as f64);
            println!("{i}: {} names, {taken} octets taken, {counted} counted, bound {bound}", cache.len());
            assert!((0.85..1.15).contains(&(taken / counted)), "{taken} taken, {counted} counted");
        }
    }
    assert!(cache.size_bytes() as f64 > 0.95 * bound);
}
