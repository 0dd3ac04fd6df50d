//! What is found and what is not, in the cache itself and through a thread's own table.

use super::*;
use crate::clock::Timestamp;
use crate::name::Name;
use crate::wire::{Ede, Question, rcode, rtype, synthesize};

fn question(name: &str) -> Question {
    Question::new(Name::parse(name).unwrap(), rtype::A)
}

fn key_of(question: &Question) -> Vec<u8> {
    KeyBuf::new().fill_of(question).to_vec()
}

fn entry(question: &Question, lifetime_secs: u32) -> Entry {
    let answer = synthesize(question, rcode::NOERROR, &[]);
    let mark = Mark { generation: 1, tagged: None, is_learned: false, programmed: true };
    Entry::new(question, answer.kept(), Timestamp::from_secs(1), lifetime_secs, mark)
}

fn keep(cache: &Cache, question: &Question, lifetime_secs: u32) -> Vec<u8> {
    let key = key_of(question);
    cache.insert(&key, entry(question, lifetime_secs));
    key
}

/// What both ways find: the lifetime tells one entry from another.
fn found(cache: &Cache, near: &mut Near, key: &[u8]) -> Option<u32> {
    let far = cache.find(key).map(|entry| entry.lifetime_secs());
    // Looking ahead changes nothing.
    near.foresee(cache, key);
    near.reach();
    let near = near.find(cache, key).map(|entry| entry.lifetime_secs());
    assert_eq!(near, far);
    near
}

#[test]
fn names_types_and_flags_tell_entries_apart() {
    let (cache, mut near) = (Cache::new(1 << 20), Near::new());
    let plain = question("a.example");
    let mut keys = vec![keep(&cache, &plain, 0)];
    for (dnssec_ok, checking_disabled) in [(true, false), (false, true), (true, true)] {
        let asked = Question { dnssec_ok, checking_disabled, ..plain.clone() };
        keys.push(keep(&cache, &asked, keys.len() as u32));
    }
    keys.push(keep(&cache, &Question { qtype: rtype::AAAA, ..plain }, 4));
    keys.push(keep(&cache, &question("b.a.example"), 5));
    for _ in 0..3 {
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(found(&cache, &mut near, key), Some(i as u32));
        }
    }
    for other in ["example", "aa.example", "a.example.example", "."] {
        assert_eq!(found(&cache, &mut near, &key_of(&question(other))), None);
    }
}

#[test]
fn two_questions_of_one_hash_are_not_confused() {
    let shards = Shards::new(1 << 20);
    let asked = [question("one.example"), question("other.example")];
    let hash = Cache::new(1 << 20).hash(&key_of(&asked[0]));
    for (question, lifetime_secs) in asked.iter().zip(7..) {
        assert!(shards.find(hash, &key_of(question)).is_none());
        shards.insert(hash, &key_of(question), entry(question, lifetime_secs), |_| hash);
    }
    for (question, lifetime_secs) in asked.iter().zip(7..) {
        assert_eq!(shards.find(hash, &key_of(question)).map(|entry| entry.lifetime_secs()), Some(lifetime_secs));
    }
}

#[test]
fn an_entry_hashes_like_its_key() {
    let cache = Cache::new(1 << 20);
    for (name, qtype, flags) in
        [("a.example", 1, (true, false)), (".", 2, (false, true)), ("b.c.example", 28, (true, true))]
    {
        let asked = Question { qtype, dnssec_ok: flags.0, checking_disabled: flags.1, ..question(name) };
        let mut key = KeyBuf::new();
        assert_eq!(entry(&asked, 1).fill_key(&mut key), key_of(&asked));
        cache.insert(&key_of(&asked), entry(&asked, 1));
    }
    // Many tables grow; everything is found again.
    let keys: Vec<_> = (0..5000).map(|i| keep(&cache, &question(&format!("n{i}.example")), i)).collect();
    let kept = keys.iter().filter(|key| cache.find(key).is_some()).count();
    assert_eq!((kept, cache.len()), (5000, 5003));
}

#[test]
fn what_is_asked_often_outlives_what_is_asked_once() {
    let cache = Cache::new(200_000);
    let popular: Vec<_> = (0..200).map(|i| keep(&cache, &question(&format!("p{i}.example")), i)).collect();
    for i in 0..20_000 {
        keep(&cache, &question(&format!("n{i}.example")), i);
        cache.find(&popular[(i % 200) as usize]);
    }
    let kept = popular.iter().filter(|key| cache.find(key).is_some()).count();
    assert!(kept > 190, "{kept}");
    assert!(cache.size_bytes() <= 200_000 && cache.size_bytes() > 190_000);
}

#[test]
fn an_entry_beyond_the_bound_is_not_kept_and_nothing_leaves_for_it() {
    let cache = Cache::new(400);
    let key = keep(&cache, &question("a.example"), 1);
    let long = format!("{0}.{0}.{0}.example", "x".repeat(60));
    let asked = question(&long);
    let answer = synthesize(&asked, rcode::SERVFAIL, &[0, 1, 2].map(|code| Ede::new(code, &"x".repeat(64))));
    let mark = Mark { generation: 1, tagged: None, is_learned: false, programmed: true };
    let large = Entry::new(&asked, answer.kept(), Timestamp::from_secs(1), 1, mark);
    assert!(large.size_bytes() > 400, "{}", large.size_bytes());
    cache.insert(&key_of(&asked), large);
    assert!(cache.find(&key_of(&asked)).is_none() && cache.find(&key).is_some());
}

#[test]
fn what_was_replaced_removed_or_cleared_is_not_at_hand_any_more() {
    let (cache, mut near) = (Cache::new(1 << 20), Near::new());
    let asked = question("a.example");
    let key = keep(&cache, &asked, 1);
    assert_eq!(found(&cache, &mut near, &key), Some(1));
    keep(&cache, &asked, 2);
    assert_eq!(found(&cache, &mut near, &key), Some(2));
    cache.remove(&key);
    assert_eq!(found(&cache, &mut near, &key), None);
    keep(&cache, &asked, 3);
    assert_eq!(found(&cache, &mut near, &key), Some(3));
    cache.clear();
    assert_eq!(found(&cache, &mut near, &key), None);
}

#[test]
fn what_was_evicted_is_not_at_hand_any_more() {
    let (cache, mut near) = (Cache::new(50_000), Near::new());
    let keys: Vec<Vec<u8>> = (0..2000).map(|i| keep(&cache, &question(&format!("n{i}.example")), i)).collect();
    let kept = keys.iter().filter(|key| found(&cache, &mut near, key).is_some()).count();
    assert!(kept < 500, "{kept}");
    for i in 2000..4000 {
        keep(&cache, &question(&format!("n{i}.example")), i);
        found(&cache, &mut near, &keys[(i % 2000) as usize]);
    }
    assert!(cache.size_bytes() <= 50_000);
}

#[test]
fn an_answer_asked_for_often_stays_though_only_its_thread_sees_it() {
    let (cache, mut near) = (Cache::new(50_000), Near::new());
    let key = keep(&cache, &question("popular.example"), 9);
    for i in 0..20_000 {
        if near.find(&cache, &key).is_none() {
            panic!("left after {i} others");
        }
        if i % 4 == 0 {
            keep(&cache, &question(&format!("n{i}.example")), i);
        }
    }
}
